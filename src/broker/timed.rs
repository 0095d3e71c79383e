//! Ranges of messages that wait for a time: pauses after a failure, leases.
//!
//! A range map with a line of due times beside it. An entry in that line only says when to look:
//! a range that was taken out or put off leaves its old entry behind, which finds nothing when it
//! comes up. So nothing has to be searched for; entries that outnumber the ranges are swept.
//! Used by the broker only.

use std::collections::BTreeMap;

use crate::units::{Monotonic, Offset, OffsetRange};

use super::range_map::RangeMap;

/// Something that runs out at a time.
pub(super) trait Due {
    fn due(&self) -> Monotonic;
}

/// Old entries that are kept beside as many as there are ranges, before they are swept.
const STALE_ENTRIES: usize = 64;

/// See the module's page.
#[derive(Clone, Debug)]
pub(super) struct Timed<V> {
    ranges: RangeMap<V>,
    /// Due time and start to the end of what then is to be looked at.
    line: BTreeMap<(Monotonic, Offset), Offset>,
}

impl<V: Copy + PartialEq + Due> Timed<V> {
    pub(super) fn new() -> Timed<V> {
        Timed { ranges: RangeMap::new(), line: BTreeMap::new() }
    }

    pub(super) fn ranges(&self) -> &RangeMap<V> {
        &self.ranges
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn set(&mut self, range: OffsetRange, value: V) {
        if range.is_empty() {
            return;
        }
        self.ranges.set(range, value);
        let end = self.line.entry((value.due(), range.start)).or_insert(range.end);
        *end = (*end).max(range.end);
        self.sweep();
    }

    /// Takes `range` out; returns how many messages of it were in.
    pub(super) fn unset(&mut self, range: OffsetRange) -> u64 {
        let removed = self.ranges.unset(range);
        self.sweep();
        removed
    }

    fn sweep(&mut self) {
        if self.ranges.is_empty() {
            self.line.clear();
        } else if self.line.len() > 2 * self.ranges.len() + STALE_ENTRIES {
            let alive = self.ranges.iter();
            self.line = alive.map(|(range, v)| ((v.due(), range.start), range.end)).collect();
        }
    }

    /// When to look next; perhaps in vain.
    pub(super) fn next_due(&self) -> Option<Monotonic> {
        self.line.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes out what is due.
    pub(super) fn take_due(&mut self, now: Monotonic) -> Vec<(OffsetRange, V)> {
        let mut taken = Vec::new();
        while let Some(entry) = self.line.first_entry()
            && entry.key().0 <= now
        {
            let ((_, start), end) = entry.remove_entry();
            let looked_at = OffsetRange { start, end };
            let due = self.ranges.pieces_in(looked_at).filter(|(_, value)| value.due() <= now);
            let from = taken.len();
            taken.extend(due);
            for (range, _) in &taken[from..] {
                self.ranges.unset(*range);
            }
        }
        self.sweep();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Due for u64 {
        fn due(&self) -> Monotonic {
            Monotonic(*self)
        }
    }

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    #[test]
    fn what_was_put_off_does_not_come_up_early() {
        let mut timed = Timed::new();
        timed.set(range(0, 10), 5);
        timed.set(range(3, 4), 9);
        timed.unset(range(7, 8));
        assert_eq!(timed.next_due(), Some(Monotonic(5)));
        assert_eq!(timed.take_due(Monotonic(4)), []);
        let due = timed.take_due(Monotonic(5));
        assert_eq!(due, [(range(0, 3), 5), (range(4, 7), 5), (range(8, 10), 5)]);
        assert_eq!(timed.next_due(), Some(Monotonic(9)));
        assert_eq!(timed.take_due(Monotonic(20)), [(range(3, 4), 9)]);
        assert!(timed.is_empty() && timed.next_due().is_none());
    }

    #[test]
    fn putting_one_range_off_for_ever_takes_no_memory() {
        let mut timed = Timed::new();
        for n in 1..10_000 {
            timed.set(range(0, 1), n);
            assert!(timed.line.len() <= 2 + STALE_ENTRIES + 1);
        }
        assert_eq!(timed.take_due(Monotonic(9_998)), []);
        assert_eq!(timed.take_due(Monotonic(9_999)), [(range(0, 1), 9_999)]);
    }
}
