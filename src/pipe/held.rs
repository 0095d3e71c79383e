//! What a source was delivered and has not settled, as ranges in order. Computes only.

use crate::units::{Count, Offset, OffsetRange};

/// See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held(Vec<OffsetRange>);

/// The range of one message.
#[must_use]
pub fn alone(offset: Offset) -> OffsetRange {
    OffsetRange::new(offset, offset.plus(Count(1)))
}

impl Held {
    /// Adds what came next.
    pub fn push(&mut self, range: OffsetRange) {
        match self.0.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.0.push(range),
        }
    }

    /// Takes out what is below.
    pub fn take_below(&mut self, floor: Offset) -> Vec<OffsetRange> {
        let below = self.0.partition_point(|range| range.start < floor);
        let mut taken: Vec<OffsetRange> = self.0.drain(..below).collect();
        if let Some(last) = taken.last_mut().filter(|last| last.end > floor) {
            self.0.insert(0, OffsetRange::new(floor, last.end));
            last.end = floor;
        }
        taken
    }

    /// Takes out what is in `wanted`, which is in order too.
    pub fn take(&mut self, wanted: &[OffsetRange]) -> Vec<OffsetRange> {
        let (mut taken, mut left) = (Vec::new(), Vec::with_capacity(self.0.len()));
        let mut wanted = wanted.iter().peekable();
        for mut range in self.0.drain(..) {
            while let Some(next) = wanted.peek().filter(|next| next.start < range.end) {
                let (start, end) = (next.start.max(range.start), next.end.min(range.end));
                if start < end {
                    taken.push(OffsetRange::new(start, end));
                    if range.start < start {
                        left.push(OffsetRange::new(range.start, start));
                    }
                    range.start = end;
                }
                if next.end > range.end {
                    break;
                }
                wanted.next();
            }
            if !range.is_empty() {
                left.push(range);
            }
        }
        self.0 = left;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(u64, u64)]) -> Vec<OffsetRange> {
        pairs.iter().map(|(a, b)| OffsetRange::new(Offset(*a), Offset(*b))).collect()
    }

    #[test]
    fn ranges_that_follow_are_one() {
        let mut held = Held::default();
        ranges(&[(1, 3), (3, 5), (7, 8)]).into_iter().for_each(|range| held.push(range));
        assert_eq!(held.0, ranges(&[(1, 5), (7, 8)]));
        assert_eq!(held.take_below(Offset(4)), ranges(&[(1, 4)]));
        assert_eq!(held.take_below(Offset(4)), []);
        assert_eq!(held.take_below(Offset(9)), ranges(&[(4, 5), (7, 8)]));
        assert_eq!(held, Held::default());
    }

    /// Once, each message of a window that was given up had a frame of its own, with the whole of
    /// what the filter had said on stderr: gigabytes for a large window.
    #[test]
    fn many_messages_are_given_up_as_ranges() {
        for (held, wanted, taken, left) in [
            (&[(0, 10)][..], &[(0, 10)][..], &[(0, 10)][..], &[][..]),
            (&[(0, 10)], &[(3, 4)], &[(3, 4)], &[(0, 3), (4, 10)]),
            (&[(0, 10)], &[(1, 2), (9, 12)], &[(1, 2), (9, 10)], &[(0, 1), (2, 9)]),
            (&[(0, 2), (4, 6)], &[(1, 5)], &[(1, 2), (4, 5)], &[(0, 1), (5, 6)]),
            (&[(4, 6)], &[(0, 1), (2, 5), (7, 9)], &[(4, 5)], &[(5, 6)]),
            (&[(4, 6), (8, 9)], &[(6, 8)], &[], &[(4, 6), (8, 9)]),
            (&[], &[(1, 2)], &[], &[]),
        ] {
            let mut rest = Held(ranges(held));
            assert_eq!(rest.take(&ranges(wanted)), ranges(taken), "{held:?} {wanted:?}");
            assert_eq!(rest.0, ranges(left), "{held:?} {wanted:?}");
        }
    }
}
