//! What a receiver does with lists of ranges: ascending, without overlap.

use std::collections::VecDeque;

use crate::limits;
use crate::units::OffsetRange;

/// What was acknowledged last, merged; older ranges are forgotten.
#[derive(Debug, Default)]
pub(super) struct Acked(VecDeque<OffsetRange>);

impl Acked {
    pub(super) fn push(&mut self, range: OffsetRange) {
        match self.0.back_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.0.push_back(range),
        }
        if self.0.len() > limits::ACKED_RANGES_REMEMBERED {
            self.0.pop_front();
        }
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = OffsetRange> {
        self.0.iter().copied()
    }
}

/// What of `whole` lies in none of `ranges`.
pub(super) fn gaps(whole: OffsetRange, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
    let mut gaps = Vec::new();
    let mut at = whole.start;
    for part in ranges.iter().filter_map(|range| range.intersection(&whole)) {
        if at < part.start {
            gaps.push(OffsetRange::new(at, part.start));
        }
        at = part.end;
    }
    if at < whole.end {
        gaps.push(OffsetRange::new(at, whole.end));
    }
    gaps
}

/// What of `ranges` lies in one of `others`.
#[must_use]
pub fn intersection(ranges: &[OffsetRange], others: &[OffsetRange]) -> Vec<OffsetRange> {
    ranges
        .iter()
        .flat_map(|range| others.iter().filter_map(|other| range.intersection(other)))
        .collect()
}

/// What of `ranges` lies in none of `others`.
pub(super) fn without(ranges: &[OffsetRange], others: &[OffsetRange]) -> Vec<OffsetRange> {
    ranges.iter().flat_map(|range| gaps(*range, others)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Offset;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    #[test]
    fn what_is_left_of_ranges() {
        let held = [range(2, 4), range(6, 9)];
        assert_eq!(gaps(range(0, 10), &held), [range(0, 2), range(4, 6), range(9, 10)]);
        assert_eq!(gaps(range(2, 4), &held), []);
        assert_eq!(intersection(&[range(1, 3), range(8, 12)], &held), [range(2, 3), range(8, 9)]);
        assert_eq!(without(&[range(1, 3), range(8, 12)], &held), [range(1, 2), range(9, 12)]);
    }

    #[test]
    fn acknowledged_ranges_are_merged_and_bounded() {
        let mut acked = Acked::default();
        acked.push(range(1, 2));
        acked.push(range(2, 5));
        assert_eq!(acked.ranges().collect::<Vec<_>>(), [range(1, 5)]);
        for n in 0..1000 {
            acked.push(range(10 + 2 * n, 11 + 2 * n));
        }
        assert_eq!(acked.ranges().count(), limits::ACKED_RANGES_REMEMBERED);
    }
}
