//! Retention: what is dropped to make room, or for its age; and messages for one group only.
//!
//! What is leased or dying is in someone's hands and stays until it is settled. When it is given
//! back after its time, it is settled by that.

use crate::settings::Retention;
use crate::units::{Count, Ending, Offset, OffsetRange};

use super::{Broker, GroupKey, QueueKey, RangeSet};

/// What was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// What became settled in which group, for the journals.
    pub groups: Vec<(GroupKey, Vec<OffsetRange>)>,
    /// What was dropped in any group, or from the queue, merged.
    pub messages: RangeSet,
}

impl Broker {
    /// What becomes of messages that every group has settled, from now on. What is gone stays so.
    pub fn set_retention(&mut self, q: QueueKey, retention: Retention) {
        if self.queue(q).retention == retention {
            return;
        }
        let gone = self.gone(q);
        let queue = self.queue_mut(q);
        queue.gone = gone;
        queue.retention = retention;
        let extent = queue.extent();
        self.recheck_queue(q, extent);
        self.queue_changed(q);
    }

    /// Drops the oldest `count` messages that are not gone and in no one's hands; fewer if there
    /// are not so many. Walks what it drops and what it passes over.
    pub fn drop_oldest(&mut self, q: QueueKey, count: Count) -> Dropped {
        let chosen = self.oldest_free(q, count);
        self.drop_ranges(q, chosen)
    }

    /// The oldest `count` messages that are not gone and in no one's hands; fewer if there are not
    /// so many. Walks these and what it passes over.
    #[must_use]
    pub fn oldest_free(&self, q: QueueKey, count: Count) -> RangeSet {
        let mut chosen = RangeSet::new();
        let mut at = Offset(0);
        while chosen.span() < count.0 {
            let rest = OffsetRange::new(at, self.visible_end(q));
            let Some(present) = self.first_present_in(q, rest) else { break };
            let mut free: RangeSet = std::iter::once(present).collect();
            for &g in &self.queue(q).groups {
                for held in &self.group(g).in_hands_in(present) {
                    free.uncover(held);
                }
            }
            for part in &free {
                let room = count.0 - chosen.span();
                let end = part.end.min(Offset(part.start.0.saturating_add(room)));
                chosen.cover(OffsetRange::new(part.start, end));
            }
            at = present.end;
        }
        chosen
    }

    /// Drops everything below `offset` that is in no one's hands; what is, is settled when it is
    /// given back.
    pub fn drop_before(&mut self, q: QueueKey, offset: Offset) -> Dropped {
        let queue = self.queue_mut(q);
        let offset = offset.min(queue.end);
        queue.kept_from = queue.kept_from.max(offset);
        let mut present = RangeSet::new();
        let mut at = Offset(0);
        while let Some(part) = self.first_present_in(q, OffsetRange::new(at, offset)) {
            present.cover(part);
            at = part.end;
        }
        for g in self.queue(q).groups.clone() {
            let group = self.group_mut(g);
            group.kept_from = group.kept_from.max(offset);
        }
        self.drop_ranges(q, present)
    }

    /// What was given back after its time, and so was settled as dropped, in which groups; for the
    /// journals. Asked for in each turn.
    pub fn take_lost(&mut self) -> Vec<(GroupKey, OffsetRange)> {
        std::mem::take(&mut self.lost)
    }

    fn drop_ranges(&mut self, q: QueueKey, chosen: RangeSet) -> Dropped {
        let queue = self.queue_mut(q);
        let bare = queue.groups.is_empty() || queue.retention == Retention::Log;
        if bare {
            queue.gone.extend(&chosen);
        }
        let mut groups = Vec::new();
        let mut messages = RangeSet::new();
        for g in self.queue(q).groups.clone() {
            let mut settled = Vec::new();
            for range in &chosen {
                settled.extend(self.settle_idle(g, range, Ending::Dropped));
            }
            messages.extend(settled.iter().copied());
            if !settled.is_empty() {
                groups.push((g, settled));
            }
        }
        if bare {
            messages = chosen.clone();
        }
        for range in &chosen {
            self.recheck_queue(q, range);
        }
        self.queue_changed(q);
        Dropped { groups, messages }
    }

    /// As [`Broker::extend`], for messages that are for one group only: for the others they are
    /// settled at once. Returns what their journals have to know. A group that has all the settled
    /// ranges that it may have gets them as ready; they are to be found out at delivery.
    pub fn extend_for(
        &mut self,
        q: QueueKey,
        range: OffsetRange,
        only: GroupKey,
    ) -> Vec<(GroupKey, Vec<OffsetRange>)> {
        self.extend(q, range);
        let mut settled = Vec::new();
        for g in self.queue(q).groups.clone() {
            if g != only && !self.group(g).has_all_settled_ranges() {
                let ranges = self.settle_idle(g, range, Ending::Others);
                settled.push((g, ranges));
            }
        }
        self.recheck_queue(q, range);
        self.queue_changed(q);
        settled
    }
}
