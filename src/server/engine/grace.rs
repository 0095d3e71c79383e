//! A short grace after a restart, for receivers that come back with what they held.
//!
//! The first receiver of a group that is back would be given what the others hold, and each of
//! those messages would come a second time. So while a group has messages ready that the server
//! before had handed out, its receivers get no credit: what they hold they get back when they
//! open, and nothing else. It ends as soon as all such messages are held again, else a moment
//! after the first receiver is there. Not after a reboot: nobody comes back from before one.

use std::collections::BTreeMap;

use crate::broker::{ConsumerKey, GroupKey, Mode};
use crate::limits;
use crate::log::storage::Storage;
use crate::units::{Moment, Monotonic};

use super::session::Receiver;
use super::{Engine, QueueNumber};

/// What is withheld in the groups of one queue; empty but for a moment after a restart.
#[derive(Default)]
pub(super) struct Grace {
    groups: BTreeMap<GroupKey, Withheld>,
}

#[derive(Default)]
struct Withheld {
    /// Known from the first turn on in which somebody waits.
    due: Option<Monotonic>,
    /// The credit of each receiver that has given any.
    credits: BTreeMap<ConsumerKey, u64>,
}

impl Grace {
    /// When the first grace that somebody waits for is over.
    pub fn deadline(&self) -> Option<Monotonic> {
        self.groups.values().filter_map(|withheld| withheld.due).min()
    }
}

impl<S: Storage> Engine<S> {
    /// After a restart on the same boot: the groups of this queue whose receivers may come back.
    pub(super) fn begin_grace(&mut self, number: QueueNumber) {
        let hosted = self.hosted.get_mut(&number).expect("a queue that was just opened");
        for &group in hosted.groups.keys() {
            if self.broker.has_handed_ready(group) {
                hosted.grace.groups.insert(group, Withheld::default());
            }
        }
    }

    /// Whether a receiver's credit is kept for later.
    pub(super) fn withholds(&mut self, receiver: Receiver, total: u64) -> bool {
        let Some(hosted) = self.hosted.get_mut(&receiver.queue) else { return false };
        let Some(group) = receiver.group.filter(|_| receiver.mode == Mode::Take) else {
            return false;
        };
        let Some(withheld) = hosted.grace.groups.get_mut(&group) else { return false };
        withheld.credits.insert(receiver.consumer, total);
        self.touch(receiver.queue);
        true
    }

    /// In a queue's turn: ends the grace of groups that have waited long enough, or in which
    /// nothing is left to wait for.
    pub(super) fn end_grace(&mut self, number: QueueNumber, moment: Moment) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let Engine { broker, consumers, .. } = self;
        let groups = &hosted.groups;
        hosted.grace.groups.retain(|group, withheld| {
            if !groups.contains_key(group) {
                return false;
            }
            if withheld.credits.is_empty() {
                return true;
            }
            let due = *withheld.due.get_or_insert(moment.now.plus(limits::RETURN_GRACE));
            if due > moment.now && broker.has_handed_ready(*group) {
                return true;
            }
            for (consumer, total) in &withheld.credits {
                // Who has gone meanwhile is not in the broker any more.
                if consumers.contains_key(consumer) {
                    broker.credit(*consumer, *total);
                }
            }
            false
        });
    }
}
