//! A set of offsets, kept as disjoint sorted half-open ranges: what is settled, leased, ready.
//!
//! Its size depends on the number of holes, never on the number of offsets. It never stores an
//! empty range, and never two ranges that touch: neighbours are merged. Used by the broker
//! throughout, and by whoever asks the broker what is gone.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt;

use crate::units::{Offset, OffsetRange};

/// Disjoint, sorted, half-open ranges of offsets. Every operation takes O(log n) for each range
/// that it touches, n being the number of ranges, unless it says otherwise.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end of each range.
    ends: BTreeMap<Offset, Offset>,
    /// The sum of all spans, so that counting messages needs no walk.
    span: u64,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> RangeSet {
        RangeSet::default()
    }

    /// How many ranges there are. O(1).
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether no offset is inside. O(1).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many offsets are inside. O(1).
    #[must_use]
    pub fn span(&self) -> u64 {
        self.span
    }

    /// The lowest range.
    #[must_use]
    pub fn first(&self) -> Option<OffsetRange> {
        self.ends.first_key_value().map(range_of)
    }

    /// The highest range.
    #[must_use]
    pub fn last(&self) -> Option<OffsetRange> {
        self.ends.last_key_value().map(range_of)
    }

    /// All ranges, lowest first.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.ends.iter())
    }

    /// Whether `offset` is inside.
    #[must_use]
    pub fn contains(&self, offset: Offset) -> bool {
        self.ends.range(..=offset).next_back().is_some_and(|(_, end)| *end > offset)
    }

    /// Whether all of `range` is inside; an empty one always is.
    #[must_use]
    pub fn covers(&self, range: OffsetRange) -> bool {
        range.is_empty()
            || self.ends.range(..=range.start).next_back().is_some_and(|(_, end)| *end >= range.end)
    }

    /// Adds `range`, merging neighbours; returns the parts that were not inside before.
    pub fn insert(&mut self, range: OffsetRange) -> Vec<OffsetRange> {
        let new = self.gaps_in(range).collect();
        self.cover(range);
        new
    }

    /// Adds `range`, merging neighbours; returns how many offsets were not inside before.
    pub fn cover(&mut self, range: OffsetRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let OffsetRange { mut start, mut end } = range;
        let mut absorbed = 0;
        if let Some((&before, &before_end)) = self.ends.range(..=start).next_back()
            && before_end >= start
        {
            if before_end >= end {
                return 0;
            }
            start = before;
            absorbed += before_end.0 - before.0;
        }
        // Whatever begins behind `start` and touches the range becomes part of it. The range at
        // `start` itself, if there is one, is overwritten below.
        let behind = |start: Offset| Offset(start.0 + 1);
        while let Some((&next, &next_end)) = self.ends.range(behind(start)..=end).next() {
            self.ends.remove(&next);
            absorbed += next_end.0 - next.0;
            end = end.max(next_end);
        }
        self.ends.insert(start, end);
        let added = (end.0 - start.0) - absorbed;
        self.span += added;
        added
    }

    /// Takes `range` out; returns the parts that were inside.
    pub fn remove(&mut self, range: OffsetRange) -> Vec<OffsetRange> {
        let mut removed = Vec::new();
        self.remove_into(range, &mut removed);
        removed
    }

    /// Takes `range` out and appends the parts that were inside to `removed`; a part that goes
    /// on where the last one there ends is joined to it.
    pub fn remove_into(&mut self, range: OffsetRange, removed: &mut Vec<OffsetRange>) {
        for piece in self.pieces_in(range) {
            match removed.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => removed.push(piece),
            }
        }
        self.uncover(range);
    }

    /// Takes `range` out; returns how many offsets of it were inside.
    pub fn uncover(&mut self, range: OffsetRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.span;
        let mut tail = None;
        if let Some((_, end)) = self.ends.range_mut(..range.start).next_back()
            && *end > range.start
        {
            self.span -= end.0.min(range.end.0) - range.start.0;
            tail = Some(*end);
            *end = range.start;
        }
        while let Some((&start, &end)) = self.ends.range(range.start..range.end).next() {
            self.ends.remove(&start);
            self.span -= end.0.min(range.end.0) - start.0;
            tail = Some(end);
        }
        // Only the last range that was touched can reach beyond.
        if let Some(end) = tail
            && end > range.end
        {
            self.ends.insert(range.end, end);
        }
        before - self.span
    }

    /// What of `range` is inside, lowest first.
    pub fn pieces_in(
        &self,
        range: OffsetRange,
    ) -> impl DoubleEndedIterator<Item = OffsetRange> + use<'_> {
        let from = match self.ends.range(..=range.start).next_back() {
            Some((start, end)) if *end > range.start => *start,
            _ => range.start,
        };
        self.ends
            .range(from..range.end)
            .filter_map(move |entry| range_of(entry).intersection(&range))
    }

    /// What of `range` is not inside, lowest first: the complement within it.
    pub fn gaps_in(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> + use<'_> {
        let mut at = range.start;
        let mut pieces = self.pieces_in(range);
        std::iter::from_fn(move || {
            while at < range.end {
                let start = at;
                let piece = pieces.next();
                let end = piece.map_or(range.end, |piece| piece.start);
                at = piece.map_or(range.end, |piece| piece.end);
                if start < end {
                    return Some(OffsetRange { start, end });
                }
            }
            None
        })
    }

    /// The lowest gap in `range`: O(log n) however many ranges lie inside it.
    #[must_use]
    pub fn first_gap_in(&self, range: OffsetRange) -> Option<OffsetRange> {
        self.gaps_in(range).next()
    }

    /// The highest gap in `range`: O(log n) however many ranges lie inside it.
    #[must_use]
    pub fn last_gap_in(&self, range: OffsetRange) -> Option<OffsetRange> {
        let mut pieces = self.pieces_in(range).rev();
        let mut end = range.end;
        let mut piece = pieces.next();
        if let Some(highest) = piece
            && highest.end == end
        {
            end = highest.start;
            piece = pieces.next();
        }
        let start = piece.map_or(range.start, |piece| piece.end);
        (start < end).then_some(OffsetRange { start, end })
    }

    /// The lowest part of `range` that is inside.
    #[must_use]
    pub fn first_in(&self, range: OffsetRange) -> Option<OffsetRange> {
        self.pieces_in(range).next()
    }

    /// The highest part of `range` that is inside.
    #[must_use]
    pub fn last_in(&self, range: OffsetRange) -> Option<OffsetRange> {
        self.pieces_in(range).next_back()
    }

    /// How many offsets of `range` are inside. Walks the ranges in it.
    #[must_use]
    pub fn span_in(&self, range: OffsetRange) -> u64 {
        self.pieces_in(range).map(|piece| piece.span()).sum()
    }

    /// What is inside both sets. Walks the one with fewer ranges.
    #[must_use]
    pub fn intersection(&self, other: &RangeSet) -> RangeSet {
        let (few, many) = if self.len() <= other.len() { (self, other) } else { (other, self) };
        few.iter().flat_map(|range| many.pieces_in(range)).collect()
    }
}

fn range_of((start, end): (&Offset, &Offset)) -> OffsetRange {
    OffsetRange { start: *start, end: *end }
}

/// The ranges of a [`RangeSet`], lowest first.
#[derive(Clone, Debug)]
pub struct Iter<'a>(btree_map::Iter<'a, Offset, Offset>);

impl Iterator for Iter<'_> {
    type Item = OffsetRange;

    fn next(&mut self) -> Option<OffsetRange> {
        self.0.next().map(range_of)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<OffsetRange> {
        self.0.next_back().map(range_of)
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a RangeSet {
    type Item = OffsetRange;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl Extend<OffsetRange> for RangeSet {
    fn extend<I: IntoIterator<Item = OffsetRange>>(&mut self, ranges: I) {
        for range in ranges {
            self.cover(range);
        }
    }
}

impl FromIterator<OffsetRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = OffsetRange>>(ranges: I) -> RangeSet {
        let mut set = RangeSet::new();
        set.extend(ranges);
        set
    }
}

impl fmt::Debug for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|range| format!("{range}"))).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        ranges.iter().map(|&(start, end)| range(start, end)).collect()
    }

    #[test]
    fn touching_ranges_become_one() {
        let mut ranges = set(&[(0, 2), (4, 6), (8, 9)]);
        assert_eq!(ranges.insert(range(2, 4)), [range(2, 4)]);
        assert_eq!(ranges, set(&[(0, 6), (8, 9)]));
        assert_eq!(ranges.insert(range(1, 20)), [range(6, 8), range(9, 20)]);
        assert_eq!(ranges, set(&[(0, 20)]));
        assert_eq!(ranges.insert(range(3, 9)), []);
        assert_eq!(ranges.insert(range(9, 9)), []);
    }

    #[test]
    fn removal_splits_and_says_what_was_there() {
        let mut ranges = set(&[(0, 10), (12, 14)]);
        assert_eq!(ranges.remove(range(3, 5)), [range(3, 5)]);
        assert_eq!(ranges, set(&[(0, 3), (5, 10), (12, 14)]));
        assert_eq!(ranges.remove(range(9, 13)), [range(9, 10), range(12, 13)]);
        assert_eq!(ranges, set(&[(0, 3), (5, 9), (13, 14)]));
        assert_eq!(ranges.remove(range(20, 30)), []);
        let mut joined = vec![range(1, 5)];
        ranges.remove_into(range(0, 7), &mut joined);
        assert_eq!(joined, [range(1, 5), range(0, 3), range(5, 7)]);
        ranges.remove_into(range(7, 8), &mut joined);
        assert_eq!(joined.last(), Some(&range(5, 8)));
    }

    #[test]
    fn gaps_are_found_from_both_sides() {
        let ranges = set(&[(0, 3), (5, 9), (13, 14)]);
        assert_eq!(ranges.first_gap_in(range(0, 20)), Some(range(3, 5)));
        assert_eq!(ranges.last_gap_in(range(0, 20)), Some(range(14, 20)));
        assert_eq!(ranges.last_gap_in(range(0, 14)), Some(range(9, 13)));
        assert_eq!(ranges.first_gap_in(range(6, 9)), None);
        assert_eq!(ranges.last_gap_in(range(6, 9)), None);
        assert_eq!(ranges.last_gap_in(range(4, 8)), Some(range(4, 5)));
    }

    /// Everything that can be asked about `range`, against the offsets one by one.
    fn check(ranges: &RangeSet, model: &BTreeSet<u64>, asked: OffsetRange) {
        let inside = |n: &u64| model.contains(n);
        let offsets = asked.start.0..asked.end.0;
        let spread = |parts: &mut dyn Iterator<Item = OffsetRange>| -> Vec<u64> {
            parts.flat_map(|part| part.start.0..part.end.0).collect()
        };
        assert_eq!(ranges.span(), model.len() as u64);
        let touching = ranges.iter().zip(ranges.iter().skip(1)).any(|(a, b)| a.end >= b.start);
        assert!(!touching && ranges.iter().all(|r| !r.is_empty()), "{ranges:?}");
        let pieces: Vec<u64> = offsets.clone().filter(inside).collect();
        let gaps: Vec<u64> = offsets.clone().filter(|n| !inside(n)).collect();
        assert_eq!(spread(&mut ranges.pieces_in(asked)), pieces);
        assert_eq!(spread(&mut ranges.gaps_in(asked)), gaps);
        assert_eq!(ranges.span_in(asked), pieces.len() as u64);
        assert_eq!(ranges.covers(asked), gaps.is_empty());
        assert_eq!(ranges.contains(asked.start), inside(&asked.start.0));
        assert_eq!(ranges.first_gap_in(asked), ranges.gaps_in(asked).next());
        assert_eq!(ranges.last_gap_in(asked), ranges.gaps_in(asked).last());
        assert_eq!(ranges.first_in(asked), ranges.pieces_in(asked).next());
        assert_eq!(ranges.last_in(asked), ranges.pieces_in(asked).last());
    }

    proptest! {
        #[test]
        fn ranges_behave_like_single_offsets(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 1..60),
        ) {
            let mut ranges = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, start, span) in steps {
                let range = range(start, start + span);
                let offsets = start..start + span;
                let (parts, changed): (Vec<_>, Vec<u64>) = if add {
                    let new = offsets.clone().filter(|n| !model.contains(n)).collect();
                    model.extend(offsets);
                    (ranges.insert(range), new)
                } else {
                    let old = offsets.clone().filter(|n| model.contains(n)).collect();
                    model.retain(|n| !offsets.contains(n));
                    (ranges.remove(range), old)
                };
                let spread: Vec<u64> = parts.iter().flat_map(|p| p.start.0..p.end.0).collect();
                prop_assert_eq!(spread, changed);
                check(&ranges, &model, range);
                check(&ranges, &model, OffsetRange::new(Offset(0), Offset(90)));
            }
        }

        #[test]
        fn intersection_holds_what_both_hold(
            a in prop::collection::vec((0u64..60, 0u64..20), 0..12),
            b in prop::collection::vec((0u64..60, 0u64..20), 0..12),
        ) {
            let make = |ranges: &[(u64, u64)]| -> RangeSet {
                ranges.iter().map(|&(start, span)| range(start, start + span)).collect()
            };
            let (a, b) = (make(&a), make(&b));
            let both = a.intersection(&b);
            prop_assert_eq!(&both, &b.intersection(&a));
            for n in (0..90).map(Offset) {
                prop_assert_eq!(both.contains(n), a.contains(n) && b.contains(n));
            }
        }
    }
}
