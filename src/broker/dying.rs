//! Dying messages: those that had their last attempt, or expired where that is to be kept.
//!
//! They wait for the server to move them away; [`Output::Dying`](super::Output::Dying) says that
//! there are some. Here too: what ends a ready message without anybody having had it.

use crate::units::{Ending, OffsetRange};

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
        settled.iter().for_each(|range| group.cover_settled(*range, Ending::Dead));
        self.settled_in_group(g, &settled);
        settled
    }

    /// A mover has stored `ranges` elsewhere, in an earlier life of the server: what of them no
    /// consumer holds is settled, be it ready, resting, dying, or under a lease with a receipt
    /// that was over when it was moved. Returns what that is, for the journal.
    pub fn settle_stored(
        &mut self,
        g: GroupKey,
        ranges: &[OffsetRange],
        ending: Ending,
    ) -> Vec<OffsetRange> {
        let mut settled = self.expire(g, ranges, ending);
        let group = self.group_mut(g);
        let mut leased = Vec::new();
        for &range in ranges {
            let from = settled.len();
            group.dying.remove_into(range, &mut settled);
            settled[from..].iter().for_each(|range| group.cover_settled(*range, ending));
        }
        for &range in ranges {
            leased.extend(group.leases.ranges().pieces_in(range).map(|(piece, _)| piece));
            group.leases.unset(range);
        }
        leased.iter().for_each(|range| group.settle(*range, ending));
        self.retime(g);
        settled.extend(leased);
        self.settled_in_group(g, &settled);
        settled
    }

    /// What of `ranges` is ready or rests is settled: nobody is to have it any more. Returns what
    /// that is, for the journal.
    pub fn expire(
        &mut self,
        g: GroupKey,
        ranges: &[OffsetRange],
        ending: Ending,
    ) -> Vec<OffsetRange> {
        let mut settled = Vec::new();
        for &range in ranges {
            settled.extend(self.settle_idle(g, range, ending));
        }
        self.settled_in_group(g, &settled);
        settled
    }

    /// Settles what of `range` is ready or rests; the queue is not told.
    pub(super) fn settle_idle(
        &mut self,
        g: GroupKey,
        range: OffsetRange,
        ending: Ending,
    ) -> Vec<OffsetRange> {
        let settled: Vec<OffsetRange> = self.withdraw(g, range).iter().collect();
        let group = self.group_mut(g);
        settled.iter().for_each(|range| group.cover_settled(*range, ending));
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

#[cfg(test)]
mod tests {
    use super::super::{GroupState, Lease, Tried};
    use super::*;
    use crate::units::{Attempts, Count, LeaseNumber, Monotonic, Name, Offset};

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    /// A group of ten messages: one leased with a receipt, one resting, one dying.
    fn broker() -> (Broker, GroupKey) {
        let mut broker = Broker::new();
        let q = broker.add_queue(Offset(0), Offset(10), &[], &[]);
        broker.set_delivery_limit(q, Some(3));
        let tried = |at, attempts, ready_at| Tried {
            range: range(at, at + 1),
            attempts: Attempts(attempts),
            ready_at,
        };
        let (number, deadline) = (LeaseNumber(7), Monotonic(50));
        let state = GroupState {
            handed: Offset(4),
            tried: vec![tried(0, 1, None), tried(1, 1, Some(Monotonic(90))), tried(2, 3, None)],
            leases: vec![Lease { range: range(0, 1), number, deadline }],
            ..GroupState::default()
        };
        let g = broker.add_group(q, &Name::new("g").unwrap(), Some(state)).unwrap();
        (broker, g)
    }

    #[test]
    fn one_group_more_than_can_be_made_is_loaded() {
        let (mut broker, g) = broker();
        let q = broker.queue_of_group(g);
        let name = |n: usize| Name::new(&format!("g{n}")).unwrap();
        let most = crate::limits::GROUPS_PER_QUEUE_MAX;
        for n in 1..most {
            broker.add_group(q, &name(n), None).unwrap();
        }
        let state = GroupState::default();
        let refused = broker.add_group(q, &name(most), Some(state.clone()));
        assert_eq!(refused, Err(super::super::Refusal::TooManyGroups));
        broker.restore_group(q, &name(most), state).unwrap();
        assert_eq!(broker.groups(q).count(), most + 1);
    }

    #[test]
    fn what_was_stored_elsewhere_is_settled_wherever_it_stands() {
        let (mut broker, g) = broker();
        let counts = broker.counts(g);
        assert_eq!((counts.leased.0, counts.resting.0, counts.dying.0), (1, 1, 1));
        let settled: RangeSet =
            broker.settle_stored(g, &[range(0, 4)], Ending::Dead).into_iter().collect();
        assert_eq!(settled.iter().collect::<Vec<_>>(), [range(0, 4)]);
        broker.wake(Monotonic(1_000));
        let counts = broker.counts(g);
        assert_eq!((counts.leased.0, counts.resting.0, counts.dying.0), (0, 0, 0));
        assert_eq!((counts.ready.0, counts.floor), (6, Offset(4)));
        assert_eq!(broker.tally(g).of(Ending::Dead), Count(4));
    }
}
