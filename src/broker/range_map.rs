//! What is known of ranges of offsets: attempts, pauses, leases. One value for each offset at
//! most.
//!
//! Neighbours of equal value are one entry, so its size depends on how often the value changes,
//! never on the number of offsets. Used by the broker only.

use std::collections::BTreeMap;

use crate::units::{Offset, OffsetRange};

/// Disjoint, sorted, half-open ranges, each with a value. Every operation takes O(log n) for each
/// entry that it touches.
#[derive(Clone, Debug)]
pub(super) struct RangeMap<V> {
    /// Start to end and value of each range.
    entries: BTreeMap<Offset, (Offset, V)>,
    /// The sum of all spans.
    span: u64,
}

impl<V: Copy + PartialEq> RangeMap<V> {
    pub(super) fn new() -> RangeMap<V> {
        RangeMap { entries: BTreeMap::new(), span: 0 }
    }

    /// How many ranges there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many offsets have a value.
    pub(super) fn span(&self) -> u64 {
        self.span
    }

    /// The value of one offset.
    pub(super) fn at(&self, offset: Offset) -> Option<V> {
        let (_, (end, value)) = self.entries.range(..=offset).next_back()?;
        (*end > offset).then_some(*value)
    }

    /// All ranges with their values, lowest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (OffsetRange, V)> + use<'_, V> {
        self.entries.iter().map(|(&start, &(end, value))| (OffsetRange { start, end }, value))
    }

    /// What of `range` has a value, lowest first.
    pub(super) fn pieces_in(
        &self,
        range: OffsetRange,
    ) -> impl Iterator<Item = (OffsetRange, V)> + use<'_, V> {
        let from = match self.entries.range(..=range.start).next_back() {
            Some((start, (end, _))) if *end > range.start => *start,
            _ => range.start,
        };
        let entries = self.entries.range(from..range.end.max(from));
        entries.filter_map(move |(&start, &(end, value))| {
            let piece = OffsetRange { start, end }.intersection(&range)?;
            Some((piece, value))
        })
    }

    /// Gives all of `range` this value, whatever it had.
    pub(super) fn set(&mut self, range: OffsetRange, value: V) {
        if range.is_empty() {
            return;
        }
        self.unset(range);
        self.span += range.span();
        let OffsetRange { mut start, mut end } = range;
        if let Some((&before, &(before_end, other))) = self.entries.range(..start).next_back()
            && before_end == start
            && other == value
        {
            start = before;
        }
        if let Some(&(behind_end, other)) = self.entries.get(&end)
            && other == value
        {
            self.entries.remove(&end);
            end = behind_end;
        }
        self.entries.insert(start, (end, value));
    }

    /// Takes the values of `range` away; returns how many offsets had one.
    pub(super) fn unset(&mut self, range: OffsetRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.span;
        let mut tail = None;
        if let Some((_, (end, value))) = self.entries.range_mut(..range.start).next_back()
            && *end > range.start
        {
            self.span -= end.0.min(range.end.0) - range.start.0;
            tail = Some((*end, *value));
            *end = range.start;
        }
        while let Some((&start, &(end, value))) = self.entries.range(range.start..range.end).next()
        {
            self.entries.remove(&start);
            self.span -= end.0.min(range.end.0) - start.0;
            tail = Some((end, value));
        }
        // Only the last range that was touched can reach beyond.
        if let Some((end, value)) = tail
            && end > range.end
        {
            self.entries.insert(range.end, (end, value));
        }
        before - self.span
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    #[test]
    fn equal_neighbours_are_one_range() {
        let mut map = RangeMap::new();
        for n in [0, 2, 1] {
            map.set(range(n, n + 1), 'a');
        }
        map.set(range(3, 5), 'b');
        assert!(map.iter().eq([(range(0, 3), 'a'), (range(3, 5), 'b')]));
        map.set(range(1, 4), 'b');
        assert!(map.iter().eq([(range(0, 1), 'a'), (range(1, 5), 'b')]));
    }

    proptest! {
        #[test]
        fn values_behave_like_those_of_single_offsets(
            steps in prop::collection::vec((0u8..4, 0u64..50, 0u64..15), 1..60),
        ) {
            let mut map = RangeMap::new();
            let mut model = BTreeMap::new();
            for (value, start, span) in steps {
                let range = range(start, start + span);
                if value == 0 {
                    let had = model.len();
                    model.retain(|n, _| !(start..start + span).contains(n));
                    prop_assert_eq!(map.unset(range), (had - model.len()) as u64);
                } else {
                    map.set(range, value);
                    model.extend((start..start + span).map(|n| (n, value)));
                }
                prop_assert_eq!(map.span(), model.len() as u64);
                for n in 0..70 {
                    prop_assert_eq!(map.at(Offset(n)), model.get(&n).copied());
                }
                let spread = |parts: Vec<(OffsetRange, u8)>| -> Vec<(u64, u8)> {
                    let each = |(r, v): (OffsetRange, u8)| (r.start.0..r.end.0).map(move |n| (n, v));
                    parts.into_iter().flat_map(each).collect()
                };
                let all: Vec<(u64, u8)> = model.iter().map(|(n, v)| (*n, *v)).collect();
                prop_assert_eq!(spread(map.iter().collect()), all.clone());
                let inside = all.into_iter().filter(|(n, _)| (start..start + span).contains(n));
                prop_assert_eq!(spread(map.pieces_in(range).collect()), inside.collect::<Vec<_>>());
                let merged = map.iter().zip(map.iter().skip(1));
                prop_assert!(!merged.into_iter().any(|((a, v), (b, w))| a.end == b.start && v == w));
            }
        }
    }
}
