//! Queues that keep their messages for replay give up what is beyond their settings.
//!
//! The log says what that is, the broker moves the groups. Called in each turn of a queue, and
//! for whatever was dropped to make room.

use crate::broker::Dropped;
use crate::log::storage::Storage;
use crate::settings::Retention;
use crate::units::{Ending, Moment, Monotonic, OffsetRange};

use super::{Engine, QueueNumber};

impl<S: Storage> Engine<S> {
    /// Gives up what is overdue. Returns when to look again though nothing happened.
    pub(super) fn retain(&mut self, number: QueueNumber, moment: Moment) -> Option<Monotonic> {
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        if hosted.log.settings().retain != Retention::Log {
            return None;
        }
        hosted.log.roll_for_retention(moment.wall);
        let overdue = hosted.log.overdue(moment.wall).filter(|offset| *offset > hosted.kept_from);
        if let Some(offset) = overdue {
            hosted.kept_from = offset;
            let dropped = self.broker.drop_before(hosted.key, offset);
            self.settle_dropped(number, dropped);
        }
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        let due = hosted.log.retention_due(moment.wall, hosted.kept_from)?;
        Some(Monotonic(moment.now.0.saturating_add(due.0 - moment.wall.0)))
    }

    /// Writes down what was given back after its time.
    pub(super) fn settle_lost(&mut self) {
        for (group, range) in self.broker.take_lost() {
            let key = self.broker.queue_of_group(group);
            if let Some(&number) = self.by_key.get(&key) {
                self.settle(number, group, &[range], Ending::Dropped);
            }
        }
    }

    /// Writes down what was dropped, and drops the segments that nobody needs any more.
    pub(super) fn settle_dropped(&mut self, number: QueueNumber, dropped: Dropped) {
        for (group, settled) in &dropped.groups {
            self.settle(number, *group, settled, Ending::Dropped);
        }
        let messages: Vec<OffsetRange> = dropped.messages.iter().collect();
        self.drop_gone_segments(number, Some(&messages));
        self.roll_if_gone(number);
    }
}
