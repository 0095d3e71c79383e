//! Which messages of which partitions are here, and up to where each partition may be committed: only
//! what is acked without a hole below it.
//!
//! Pure: no Kafka, no clock. A message has a number, given in the order in which messages come over
//! all partitions, and a place, its partition and offset. What is released comes again from its place,
//! under a new number, because its partition is read again from there; all else that then passes by is
//! known and dropped.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;

use crate::remote::outstanding::Outstanding;

/// A partition for as long as it is ours; when it comes back after another had it, it is a new one.
#[derive(Debug)]
struct Slot {
    partition: i32,
    /// It is still ours.
    ours: bool,
    /// The first offset that never came.
    next: i64,
    /// From the first that is not acked on: the offset, and whether it is acked. Ascending.
    open: VecDeque<(i64, bool)>,
    /// Came, and is to come again.
    released: BTreeSet<i64>,
    /// Something was acked since it was last asked.
    dirty: bool,
    /// Where it ended at the start, if the end is waited for.
    end: Option<i64>,
    /// All up to there has come.
    over: bool,
}

/// What came of a message of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is new.
    New,
    /// It was here before, and was released.
    Again,
    /// It is not to be handed out: it is here, or was, or is behind the end.
    Passed,
}

/// The partitions of one consumer.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    slots: Vec<Slot>,
    /// The slot of each partition that is ours.
    ours: HashMap<i32, usize>,
    /// The place of each message, from the lowest number that is not settled on.
    places: VecDeque<(usize, i64)>,
    outstanding: Outstanding,
    /// Where each partition ended at the start, if the end is waited for.
    ends: Option<HashMap<i32, i64>>,
    assigned: bool,
}

impl Partitions {
    /// With `ends`, nothing at or behind them is handed out.
    pub(super) fn new(ends: Option<HashMap<i32, i64>>) -> Partitions {
        Partitions { ends, ..Partitions::default() }
    }

    /// Partitions became ours.
    pub(super) fn assign(&mut self, partitions: &[i32]) {
        self.assigned = true;
        for &partition in partitions {
            self.revoke(&[partition]);
            let end = self.ends.as_ref().map(|ends| ends.get(&partition).copied().unwrap_or(0));
            self.ours.insert(partition, self.slots.len());
            self.slots.push(Slot {
                partition,
                ours: true,
                next: i64::MIN,
                open: VecDeque::new(),
                released: BTreeSet::new(),
                dirty: false,
                end,
                over: end == Some(0),
            });
        }
    }

    /// Partitions are ours no more: what came from them goes to another.
    pub(super) fn revoke(&mut self, partitions: &[i32]) {
        for partition in partitions {
            if let Some(slot) = self.ours.remove(partition) {
                self.slots[slot].ours = false;
            }
        }
    }

    /// A message came.
    pub(super) fn arrive(&mut self, partition: i32, offset: i64) -> Arrival {
        let Some(&at) = self.ours.get(&partition) else { return Arrival::Passed };
        let slot = &mut self.slots[at];
        if slot.end.is_some_and(|end| offset >= end) {
            slot.over = true;
            return Arrival::Passed;
        }
        let arrival = if offset >= slot.next {
            slot.next = offset + 1;
            slot.open.push_back((offset, false));
            slot.over |= slot.end == Some(slot.next);
            Arrival::New
        } else if slot.released.remove(&offset) {
            Arrival::Again
        } else {
            return Arrival::Passed;
        };
        self.places.push_back((at, offset));
        self.outstanding.delivered(1);
        arrival
    }

    /// A partition has no more for now.
    pub(super) fn at_end(&mut self, partition: i32) {
        if let Some(&slot) = self.ours.get(&partition) {
            self.slots[slot].over = true;
        }
    }

    /// Whether all that was there at the start has come, as far as it is ours.
    pub(super) fn is_over(&self) -> bool {
        self.ends.is_some()
            && self.assigned
            && self.ours.values().all(|slot| self.slots[*slot].over)
    }

    /// How many messages are not settled.
    pub(super) fn open(&self) -> u64 {
        self.outstanding.open()
    }

    /// The numbers from the lowest that is not settled to the next that is given.
    pub(super) fn numbers(&self) -> Range<u64> {
        self.outstanding.floor()..self.outstanding.next()
    }

    fn settled(&mut self, range: &Range<u64>) -> Vec<(usize, i64)> {
        let floor = self.outstanding.floor();
        let place = |number: u64| usize::try_from(number - floor).expect("a place in memory");
        let places: Vec<_> =
            self.places.range(place(range.start)..place(range.end)).copied().collect();
        self.outstanding.settle(range);
        let gone = self.outstanding.floor() - floor;
        self.places.drain(..usize::try_from(gone).expect("a place in memory"));
        places
    }

    /// Messages are done.
    pub(super) fn ack(&mut self, range: &Range<u64>) {
        for (at, offset) in self.settled(range) {
            let slot = &mut self.slots[at];
            let place = slot.open.binary_search_by_key(&offset, |(offset, _)| *offset);
            slot.open[place.expect("it is open until it is acked")].1 = true;
            slot.dirty = true;
            while slot.open.front().is_some_and(|(_, acked)| *acked) {
                slot.open.pop_front();
            }
        }
    }

    /// Messages are to come again: from where each of their partitions has to be read anew.
    pub(super) fn release(&mut self, range: &Range<u64>) -> Vec<(i32, i64)> {
        let mut from: HashMap<usize, i64> = HashMap::new();
        for (at, offset) in self.settled(range) {
            let slot = &mut self.slots[at];
            if slot.ours {
                slot.released.insert(offset);
                let first = *slot.released.first().expect("one was inserted");
                from.insert(at, first);
            }
        }
        from.into_iter().map(|(at, offset)| (self.slots[at].partition, offset)).collect()
    }

    /// Up to where partitions may be committed, of those where that changed: the offset to go on at.
    pub(super) fn take_commits(&mut self) -> Vec<(i32, i64)> {
        let mut places = Vec::new();
        for slot in &mut self.slots {
            if std::mem::take(&mut slot.dirty) && slot.ours {
                let next = slot.open.front().map_or(slot.next, |(offset, _)| *offset);
                places.push((slot.partition, next));
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(partitions: &[i32]) -> Partitions {
        let mut all = Partitions::default();
        all.assign(partitions);
        all
    }

    #[test]
    fn only_what_has_no_hole_below_it_is_committed() {
        let mut all = with(&[0, 1]);
        for (partition, offset) in [(0, 5), (1, 7), (0, 6), (0, 8), (1, 9)] {
            assert_eq!(all.arrive(partition, offset), Arrival::New);
        }
        all.ack(&(2..4));
        assert_eq!(all.take_commits(), [(0, 5)]);
        all.ack(&(0..1));
        assert_eq!(all.take_commits(), [(0, 9)]);
        all.ack(&(4..5));
        assert_eq!(all.take_commits(), [(1, 7)]);
        all.ack(&(1..2));
        assert_eq!(all.take_commits(), [(1, 10)]);
        assert_eq!((all.open(), all.take_commits()), (0, vec![]));
    }

    #[test]
    fn what_is_released_alone_comes_again() {
        let mut all = with(&[0]);
        for offset in 0..4 {
            all.arrive(0, offset);
        }
        all.ack(&(0..1));
        assert_eq!(all.release(&(1..2)), [(0, 1)]);
        assert_eq!(all.arrive(0, 1), Arrival::Again);
        assert_eq!(all.arrive(0, 2), Arrival::Passed);
        assert_eq!(all.arrive(0, 3), Arrival::Passed);
        assert_eq!(all.arrive(0, 4), Arrival::New);
        all.ack(&(2..4));
        assert_eq!(all.take_commits(), [(0, 1)]);
        // 4 is offset 1, which came again, and 5 is offset 4.
        all.ack(&(4..5));
        assert_eq!(all.take_commits(), [(0, 4)]);
    }

    #[test]
    fn a_partition_that_another_has_is_not_committed() {
        let mut all = with(&[0, 1]);
        all.arrive(0, 0);
        all.arrive(1, 0);
        all.revoke(&[0]);
        assert_eq!(all.arrive(0, 1), Arrival::Passed);
        all.ack(&(0..2));
        assert_eq!(all.take_commits(), [(1, 1)]);
        all.assign(&[0]);
        assert_eq!(all.arrive(0, 0), Arrival::New);
        assert_eq!(all.release(&(2..3)), [(0, 0)]);
    }

    #[test]
    fn the_end_is_that_of_all_partitions_at_the_start() {
        let mut all = Partitions::new(Some([(0, 2), (1, 0), (2, 5)].into()));
        assert!(!all.is_over());
        all.assign(&[0, 1, 2]);
        all.arrive(0, 0);
        all.arrive(0, 1);
        assert!(!all.is_over());
        assert_eq!(all.arrive(0, 2), Arrival::Passed);
        all.at_end(2);
        assert!(all.is_over());
        let mut none = Partitions::new(Some(HashMap::new()));
        none.assign(&[]);
        assert!(none.is_over());
    }
}
