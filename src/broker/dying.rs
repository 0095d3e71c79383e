//! Dying messages: those that had their last attempt, or expired where that is to be kept.
//!
//! They wait for the server to move them away; [`Output::Dying`](super::Output::Dying) says that
//! there are some. Here too: what ends a ready message without anybody having had it.

use crate::units::OffsetRange;

use super::turn::Work;
use super::{Broker, GroupKey, RangeSet};

impl Broker {
    /// The messages of the group that wait to be moved away.
    #[must_use]
    pub fn dying(&self, g: GroupKey) -> &RangeSet {
        &self.group(g).dying
    }

    /// What of `ranges` is ready or rests is dying.
    pub fn kill(&mut self, g: GroupKey, ranges: &[OffsetRange]) {
        for &range in ranges {
            let killed = self.withdraw(g, range);
            self.group_mut(g).dying.extend(&killed);
        }
        self.group_changed(g);
    }

    /// What of `ranges` was dying has been moved away: it is settled. Returns what that is, for
    /// the journal.
    pub fn settle_dying(&mut self, g: GroupKey, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
        let group = self.group_mut(g);
        let mut settled = Vec::new();
        for &range in ranges {
            group.dying.remove_into(range, &mut settled);
        }
        settled.iter().for_each(|range| group.cover_settled(*range));
        self.settled_in_group(g, &settled);
        settled
    }

    /// What of `ranges` is ready or rests is settled: nobody is to have it any more. Returns what
    /// that is, for the journal.
    pub fn expire(&mut self, g: GroupKey, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
        let mut settled = Vec::new();
        for &range in ranges {
            settled.extend(self.settle_idle(g, range));
        }
        self.settled_in_group(g, &settled);
        settled
    }

    /// Settles what of `range` is ready or rests; the queue is not told.
    pub(super) fn settle_idle(&mut self, g: GroupKey, range: OffsetRange) -> Vec<OffsetRange> {
        let settled: Vec<OffsetRange> = self.withdraw(g, range).iter().collect();
        let group = self.group_mut(g);
        settled.iter().for_each(|range| group.cover_settled(*range));
        if !settled.is_empty() {
            self.group_changed(g);
        }
        settled
    }

    /// What of `range` is ready or rests is neither any more; what it is instead is the caller's.
    fn withdraw(&mut self, g: GroupKey, range: OffsetRange) -> RangeSet {
        let withdrawn = self.group_mut(g).withdraw(range);
        for part in &withdrawn {
            self.recheck_group(g, part);
        }
        self.retime(g);
        withdrawn
    }

    /// The queue's own look at what became settled in a group.
    pub(super) fn settled_in_group(&mut self, g: GroupKey, settled: &[OffsetRange]) {
        if settled.is_empty() {
            return;
        }
        self.group_changed(g);
        let q = self.group(g).queue;
        for range in settled {
            self.recheck_queue(q, *range);
        }
    }

    /// Lets it be said that messages are dying that were not.
    pub(super) fn tell_dying(&mut self, g: GroupKey) {
        let group = self.groups.at_mut(g.0);
        let span = group.dying.span();
        if span > group.dying_told && group.dying_work.is_none() {
            group.dying_work = Some(self.work.join(Work::Dying(g)));
        }
        group.dying_told = span;
    }
}
