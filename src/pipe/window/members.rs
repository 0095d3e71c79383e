//! The members of a window: which messages, and where their bytes are kept.
//!
//! Messages come in the order of their offsets, so neighbours make one run; a window that takes
//! every message costs one run, however many it has. Used by every kind of window.

use std::ops::Range;

use crate::units::{Offset, OffsetRange};

/// Messages with consecutive offsets whose bytes lie one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which messages; each offset of it is one.
    pub offsets: OffsetRange,
    /// Where whoever keeps the bytes has them. Windows only carry it.
    pub place: Range<u64>,
}

/// Messages in the order of their offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    runs: Vec<Run>,
    count: u64,
}

impl Members {
    /// The runs, in order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// How many messages.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The oldest. Panics when there is none.
    #[must_use]
    pub fn first(&self) -> Offset {
        self.runs[0].offsets.start
    }

    /// The newest. Panics when there is none.
    #[must_use]
    pub fn last(&self) -> Offset {
        Offset(self.runs[self.runs.len() - 1].offsets.end.0 - 1)
    }

    /// Their bytes in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.place.end - run.place.start).sum()
    }

    /// Adds a message that is newer than all.
    pub fn push(&mut self, offset: Offset, place: Range<u64>) {
        self.push_run(Run { offsets: OffsetRange::new(offset, Offset(offset.0 + 1)), place });
    }

    fn push_run(&mut self, run: Run) {
        self.count += run.offsets.span();
        if let Some(last) = self.runs.last_mut() {
            assert!(last.offsets.end <= run.offsets.start, "messages come in order");
            if last.offsets.end == run.offsets.start && last.place.end == run.place.start {
                last.offsets.end = run.offsets.end;
                last.place.end = run.place.end;
                return;
            }
        }
        self.runs.push(run);
    }

    /// Takes in the messages of others, none of which is among these.
    pub fn merge(&mut self, others: Members) {
        if others.runs.is_empty() {
            return;
        }
        if self.runs.is_empty() || self.last() < others.first() {
            others.runs.into_iter().for_each(|run| self.push_run(run));
            return;
        }
        self.count = 0;
        let mut ours = std::mem::take(&mut self.runs).into_iter().peekable();
        let mut theirs = others.runs.into_iter().peekable();
        loop {
            let next = match (ours.peek(), theirs.peek()) {
                (Some(our), Some(their)) if their.offsets.start < our.offsets.start => {
                    theirs.next()
                }
                (Some(_), _) => ours.next(),
                (None, _) => theirs.next(),
            };
            let Some(run) = next else { return };
            self.push_run(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of one byte each, whose bytes lie at their offsets.
    fn members(offsets: &[u64]) -> Members {
        let mut members = Members::default();
        offsets.iter().for_each(|o| members.push(Offset(*o), *o..*o + 1));
        members
    }

    #[test]
    fn neighbours_are_one_run_where_their_bytes_are_too() {
        let mut all = members(&[3, 4, 5, 7]);
        assert_eq!(all.runs().len(), 2);
        all.push(Offset(8), 100..101);
        assert_eq!(all.runs().len(), 3);
        assert_eq!((all.count(), all.bytes()), (5, 5));
        assert_eq!((all.first(), all.last()), (Offset(3), Offset(8)));
    }

    #[test]
    fn merged_members_are_in_order() {
        for (ours, theirs) in [
            (vec![1, 2, 5], vec![3, 4, 9]),
            (vec![], vec![1]),
            (vec![1], vec![]),
            (vec![1, 2], vec![3, 4]),
            (vec![3, 4], vec![1, 2]),
            (vec![1, 3, 5], vec![2, 4, 6]),
        ] {
            let mut merged = members(&ours);
            merged.merge(members(&theirs));
            let mut all = [ours, theirs].concat();
            all.sort_unstable();
            assert_eq!(merged, members(&all));
        }
    }
}
