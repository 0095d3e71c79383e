//! What outlives a restart of a group: its position, and the facts that make it up.
//!
//! Facts are monotone: in whatever order they are read, and however often, the same position
//! comes out. Computes only; `record` has the bytes, `journal` the file. Called by those two and
//! by recovery.

use std::collections::BTreeMap;

use crate::units::{Attempts, Count, Ending, LeaseNumber, Offset, OffsetRange, Tally, WallTime};

/// What a group's journal keeps: everything that outlives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPosition {
    /// The settled offsets: disjoint ranges, in order.
    pub settled: Vec<OffsetRange>,
    /// Below this, messages may have been handed out before.
    pub handed: Offset,
    /// Messages that were tried and are not settled: disjoint ranges, in order.
    pub tried: Vec<TriedRange>,
    /// Messages under a lease with a receipt: disjoint ranges, in order.
    pub leases: Vec<LeasedRange>,
    /// How often an exclusive receiver took over.
    pub epoch: u64,
    /// The highest counter (the upper half) of any lease number, those that ended included: the
    /// next one must be above it.
    pub lease_counter: u32,
    /// What became of its messages.
    pub account: GroupAccount,
}

/// What became of the messages of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupAccount {
    /// Where the account begins; absent in a journal from before there were accounts.
    pub start: Option<AccountStart>,
    /// How messages ended since.
    pub tally: Tally,
    /// How messages ended before that, when the group stood elsewhere.
    pub before: Tally,
}

/// Where the account of a group begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccountStart {
    /// When the group was made: so it is told from one of the same name.
    pub born: WallTime,
    /// Of the messages that the queue had stored then, so many are not the group's.
    pub base: Count,
}

/// Messages that were tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TriedRange {
    /// Which.
    pub range: OffsetRange,
    /// How often.
    pub attempts: Attempts,
    /// When they may be tried again; none: at once.
    pub ready_at: Option<WallTime>,
}

/// Messages under a lease with a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasedRange {
    /// Which.
    pub range: OffsetRange,
    /// The delivery: the upper 32 bits count up within the group, the lower are random.
    pub number: LeaseNumber,
    /// When the lease ends.
    pub deadline: WallTime,
}

/// Something that became true of a group, settling and handing out apart; it stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupFact {
    /// These were tried. Of what is said of one message, the most attempts hold, and of those
    /// the latest time.
    Tried(TriedRange),
    /// These are leased. Of what is said of one message the newest number holds; said again with
    /// the same number, the latest deadline does.
    Leased(LeasedRange),
    /// The lease of this number is over for these.
    Returned {
        /// Which messages.
        range: OffsetRange,
        /// Which lease.
        number: LeaseNumber,
    },
    /// An exclusive receiver took over for the n-th time.
    Epoch(u64),
    /// Its account begins there.
    Account(AccountStart),
}

impl GroupPosition {
    /// The offset behind the last one that the group has seen.
    pub(super) fn seen(&self) -> Offset {
        self.settled.last().map_or(self.handed, |range| range.end.max(self.handed))
    }
}

/// The counter in a lease number.
pub(super) fn counter(number: LeaseNumber) -> u32 {
    (number.0 >> 32) as u32
}

/// What is known of the lease of one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lease {
    counter: u32,
    number: Option<LeaseNumber>,
    deadline: WallTime,
    over: bool,
}

impl Lease {
    fn join(self, other: Lease) -> Lease {
        match self.counter.cmp(&other.counter) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal => Lease {
                counter: self.counter,
                number: self.number.or(other.number),
                deadline: self.deadline.max(other.deadline),
                over: self.over || other.over,
            },
        }
    }
}

/// Facts being gathered into a position.
#[derive(Default)]
pub(super) struct Gathering {
    settled: Covered,
    handed: Offset,
    tried: Overlay<(Attempts, Option<WallTime>)>,
    leases: Overlay<Lease>,
    epoch: u64,
    lease_counter: u32,
    account: GroupAccount,
}

impl Gathering {
    /// `range` is settled; those of its messages that were not before ended so, if that is to be
    /// counted.
    pub fn settled(&mut self, range: OffsetRange, ending: Option<Ending>) {
        let new = self.settled.cover(range);
        if let Some(ending) = ending {
            self.account.tally.add(ending, new);
        }
    }

    pub fn account(&mut self, start: AccountStart) {
        self.account.start = self.account.start.max(Some(start));
    }

    /// So many ended so before what else is said here, and so many before the account began.
    pub fn tallied(&mut self, ending: Ending, count: u64, before: u64) {
        self.account.tally.add(ending, count);
        self.account.before.add(ending, before);
    }

    pub fn handed(&mut self, up_to: Offset) {
        self.handed = self.handed.max(up_to);
    }

    pub fn tried(&mut self, tried: TriedRange) {
        self.tried.join(tried.range, (tried.attempts, tried.ready_at), Ord::max);
    }

    pub fn leased(&mut self, range: OffsetRange, number: LeaseNumber) {
        let lease = Lease { counter: counter(number), number: Some(number), ..Lease::default() };
        self.lease(range, lease);
    }

    /// The lease of this counter ends no sooner.
    pub fn lease_until(&mut self, range: OffsetRange, counter: u32, deadline: WallTime) {
        self.lease(range, Lease { counter, deadline, ..Lease::default() });
    }

    pub fn returned(&mut self, range: OffsetRange, number: LeaseNumber) {
        self.lease(range, Lease { counter: counter(number), over: true, ..Lease::default() });
    }

    fn lease(&mut self, range: OffsetRange, lease: Lease) {
        self.lease_counter = self.lease_counter.max(lease.counter);
        self.leases.join(range, lease, Lease::join);
    }

    pub fn numbers(&mut self, epoch: u64, lease_counter: u32) {
        self.epoch = self.epoch.max(epoch);
        self.lease_counter = self.lease_counter.max(lease_counter);
    }

    /// What is true in the end: what is settled is neither tried nor leased.
    pub fn position(mut self) -> GroupPosition {
        let settled = self.settled.ranges();
        for range in &settled {
            self.tried.remove(*range);
            self.leases.remove(*range);
        }
        let tried = self.tried.parts().map(|(range, (attempts, ready_at))| TriedRange {
            range,
            attempts,
            ready_at,
        });
        // One of the two records of a lease may be lost: without its number none can settle by
        // it, without its end it is over.
        let leases = self.leases.parts().filter(|(_, lease)| !lease.over);
        let leases = leases.filter_map(|(range, lease)| {
            Some(LeasedRange { range, number: lease.number?, deadline: lease.deadline })
        });
        GroupPosition {
            settled,
            handed: self.handed,
            tried: tried.collect(),
            leases: leases.collect(),
            epoch: self.epoch,
            lease_counter: self.lease_counter,
            account: self.account,
        }
    }
}

/// Disjoint ranges that grow.
#[derive(Default)]
struct Covered(BTreeMap<Offset, Offset>);

impl Covered {
    /// Adds a range; returns how many of its offsets were not in.
    fn cover(&mut self, range: OffsetRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let OffsetRange { mut start, mut end } = range;
        let mut known = 0;
        if let Some((&first, &last)) = self.0.range(..start).next_back()
            && last >= start
        {
            self.0.remove(&first);
            known += last.0 - first.0;
            (start, end) = (first, end.max(last));
        }
        while let Some((&first, &last)) = self.0.range(start..=end).next() {
            self.0.remove(&first);
            known += last.0 - first.0;
            end = end.max(last);
        }
        self.0.insert(start, end);
        (end.0 - start.0) - known
    }

    fn ranges(&self) -> Vec<OffsetRange> {
        self.0.iter().map(|(start, end)| OffsetRange::new(*start, *end)).collect()
    }
}

/// Ranges in any order as disjoint ones in order.
pub(super) fn merge(mut ranges: Vec<OffsetRange>) -> Vec<OffsetRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    let mut out: Vec<OffsetRange> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// What of `whole` lies in none of the ranges, which are disjoint and in order.
pub(super) fn holes(ranges: &[OffsetRange], whole: OffsetRange) -> Vec<OffsetRange> {
    let (mut at, mut holes) = (whole.start, Vec::new());
    for range in ranges.iter().filter_map(|range| range.intersection(&whole)) {
        if at < range.start {
            holes.push(OffsetRange::new(at, range.start));
        }
        at = range.end;
    }
    if at < whole.end {
        holes.push(OffsetRange::new(at, whole.end));
    }
    holes
}

/// A value for some offsets, kept as disjoint ranges.
#[derive(Default)]
struct Overlay<T> {
    /// By their starts; with their ends.
    parts: BTreeMap<Offset, (Offset, T)>,
}

impl<T: Copy + PartialEq> Overlay<T> {
    /// Parts that hold `at` inside end and begin there afterwards.
    fn split(&mut self, at: Offset) {
        let Some((_, (end, value))) = self.parts.range_mut(..at).next_back() else { return };
        if *end > at {
            let behind = (*end, *value);
            *end = at;
            self.parts.insert(at, behind);
        }
    }

    /// Says `value` of each offset in `range`, beside what was said before.
    fn join(&mut self, range: OffsetRange, value: T, join: impl Fn(T, T) -> T) {
        if range.is_empty() {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        let mut holes = Vec::new();
        let mut at = range.start;
        for (start, (end, old)) in self.parts.range_mut(range.start..range.end) {
            if at < *start {
                holes.push((at, *start));
            }
            at = *end;
            *old = join(*old, value);
        }
        if at < range.end {
            holes.push((at, range.end));
        }
        self.parts.extend(holes.into_iter().map(|(start, end)| (start, (end, value))));
    }

    fn remove(&mut self, range: OffsetRange) {
        self.split(range.start);
        self.split(range.end);
        let inside: Vec<Offset> =
            self.parts.range(range.start..range.end).map(|(start, _)| *start).collect();
        for start in inside {
            self.parts.remove(&start);
        }
    }

    /// All parts in order, equal neighbours joined.
    fn parts(&self) -> impl Iterator<Item = (OffsetRange, T)> {
        let mut out: Vec<(OffsetRange, T)> = Vec::new();
        for (start, (end, value)) in &self.parts {
            match out.last_mut() {
                Some((last, before)) if last.end == *start && before == value => last.end = *end,
                _ => out.push((OffsetRange::new(*start, *end), *value)),
            }
        }
        out.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    fn gather(facts: &[(u8, OffsetRange, u64, u64)]) -> GroupPosition {
        let mut gathering = Gathering::default();
        for &(kind, range, number, time) in facts {
            // One number for each counter, as the server draws them.
            let lease = LeaseNumber((number << 32) | (number * 77 + 1));
            match kind {
                0 => gathering.settled(range, Some(Ending::Acked)),
                1 => gathering.handed(range.end),
                2 => {
                    let attempts = Attempts(number as u32);
                    let ready_at = (time > 0).then_some(WallTime(time));
                    gathering.tried(TriedRange { range, attempts, ready_at });
                }
                3 => gathering.leased(range, lease),
                4 => gathering.lease_until(range, counter(lease), WallTime(time)),
                5 => gathering.returned(range, lease),
                _ => gathering.numbers(number, 0),
            }
        }
        gathering.position()
    }

    #[test]
    fn facts_merge_in_any_order() {
        let ranges = vec![range(5, 7), range(0, 2), range(2, 3), range(6, 9), range(4, 4)];
        assert_eq!(merge(ranges), [range(0, 3), range(5, 9)]);
    }

    #[test]
    fn newest_lease_and_most_attempts_hold() {
        let position = gather(&[
            (3, range(0, 10), 1, 0),
            (4, range(0, 10), 1, 50),
            (3, range(4, 6), 2, 0),
            (4, range(4, 6), 2, 40),
            (5, range(8, 10), 1, 0),
            (2, range(0, 10), 1, 70),
            (2, range(4, 6), 2, 0),
            (0, range(0, 2), 0, 0),
        ]);
        let number = |n: u64| LeaseNumber((n << 32) | (n * 77 + 1));
        let lease = |range, n, at| LeasedRange { range, number: number(n), deadline: WallTime(at) };
        let leases =
            [lease(range(2, 4), 1, 50), lease(range(4, 6), 2, 40), lease(range(6, 8), 1, 50)];
        assert_eq!(position.leases, leases);
        let tried = |range, n, ready_at| TriedRange { range, attempts: Attempts(n), ready_at };
        let at = Some(WallTime(70));
        assert_eq!(
            position.tried,
            [tried(range(2, 4), 1, at), tried(range(4, 6), 2, None), tried(range(6, 10), 1, at)]
        );
        assert_eq!(position.lease_counter, 2);
    }

    proptest! {
        /// Order and repetition do not matter.
        #[test]
        fn facts_are_order_free(
            facts in prop::collection::vec((0u8..7, 0u64..20, 0u64..6, 1u64..5, 0u64..4), 0..25),
            again in prop::collection::vec(0usize..25, 0..25),
        ) {
            let facts: Vec<_> = facts
                .into_iter()
                .map(|(kind, start, length, n, time)| (kind, range(start, start + length), n, time))
                .collect();
            let mut other: Vec<_> = facts.iter().rev().copied().collect();
            other.extend(again.iter().filter_map(|at| facts.get(*at)));
            prop_assert_eq!(gather(&facts), gather(&other));
        }
    }
}
