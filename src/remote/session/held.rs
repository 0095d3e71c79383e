//! What the client holds: ranges of offsets that were delivered and are not settled. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Held {
    /// The ends of the ranges, by their starts; they neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl Held {
    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// These were delivered, and were not held.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.count += range.end - range.start;
        let mut added = range;
        if let Some((start, end)) = self.ranges.range(..=added.start).next_back() {
            assert!(*end <= added.start, "delivered twice");
            if *end == added.start {
                added.start = *start;
            }
        }
        if let Some(end) = self.ranges.remove(&added.end) {
            added.end = end;
        }
        self.ranges.insert(added.start, added.end);
    }

    /// Takes those of a range out that are held, ascending: what else a client speaks of was lost with
    /// a connection, or settled before.
    pub fn take(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        let before = self.ranges.range(..range.start).next_back().map(|(start, end)| *start..*end);
        let inside = self.ranges.range(range.start..range.end).map(|(start, end)| *start..*end);
        let touched: Vec<Range<u64>> =
            before.filter(|before| before.end > range.start).into_iter().chain(inside).collect();
        let mut taken = Vec::with_capacity(touched.len());
        for held in touched {
            let part = held.start.max(range.start)..held.end.min(range.end);
            self.ranges.remove(&held.start);
            if held.start < part.start {
                self.ranges.insert(held.start, part.start);
            }
            if part.end < held.end {
                self.ranges.insert(part.end, held.end);
            }
            self.count -= part.end - part.start;
            taken.push(part);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_holds_what_a_set_holds(steps in proptest::collection::vec((0u64..40, 0u64..8, any::<bool>()), 0..60)) {
            let mut held = Held::default();
            let mut model = BTreeSet::new();
            for (start, length, is_take) in steps {
                let range = start..start + length;
                if is_take {
                    let taken: Vec<u64> = held.take(&range).into_iter().flatten().collect();
                    let wanted: Vec<u64> = range.filter(|n| model.remove(n)).collect();
                    prop_assert_eq!(taken, wanted);
                } else if range.clone().all(|n| !model.contains(&n)) {
                    held.add(range.clone());
                    model.extend(range);
                }
                prop_assert_eq!(held.count(), model.len() as u64);
                let ranges: Vec<_> = held.ranges().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(ranges.into_iter().flatten().eq(model.iter().copied()));
            }
        }
    }
}
