//! How often which latency was measured: one histogram, weighted by messages.

use hdrhistogram::Histogram;

use crate::limits;
use crate::units::Micros;

/// Significant decimal digits of a bucket's bounds: 16 buckets between a power of two and the
/// next, so that the middle of one is within 3.2 % of every value in it.
const DIGITS: u8 = 1;

/// See the module's page. Takes no memory before something is measured, and about 5 KiB at most.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    counts: Option<Box<Histogram<u64>>>,
    sum: u64,
    max: Micros,
}

impl Latency {
    /// So many messages had this latency.
    pub fn note(&mut self, latency: Micros, messages: u64) {
        if messages == 0 {
            return;
        }
        let latency = latency.min(limits::LATENCY_MAX);
        let counts = self.counts.get_or_insert_with(|| Box::new(empty()));
        counts.record_n(latency.0, messages).expect("it grows up to the longest");
        self.sum = self.sum.saturating_add(latency.0.saturating_mul(messages));
        self.max = self.max.max(latency);
    }

    /// Adds what another has measured.
    pub fn add(&mut self, other: &Latency) {
        let Some(theirs) = &other.counts else { return };
        let counts = self.counts.get_or_insert_with(|| Box::new(empty()));
        counts.add(&**theirs).expect("both have the same buckets");
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// Forgets what was measured, and keeps the memory for the next.
    pub fn clear(&mut self) {
        if let Some(counts) = &mut self.counts {
            counts.reset();
        }
        (self.sum, self.max) = (0, Micros(0));
    }

    /// Messages that were measured.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.as_ref().map_or(0, |counts| counts.len())
    }

    /// The sum of their latencies; saturates.
    #[must_use]
    pub fn sum(&self) -> Micros {
        Micros(self.sum)
    }

    /// The greatest.
    #[must_use]
    pub fn max(&self) -> Micros {
        self.max
    }

    /// The greatest value of each bucket that holds any, ascending, and how many it holds.
    pub fn buckets(&self) -> impl Iterator<Item = (Micros, u64)> {
        let recorded = self.counts.iter().flat_map(|counts| counts.iter_recorded());
        recorded.map(|step| (Micros(step.value_iterated_to()), step.count_at_value()))
    }

    /// The value that so much of the messages do not exceed, by the middle of its bucket; none
    /// without messages.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Micros> {
        let counts = self.counts.as_ref().filter(|counts| !counts.is_empty())?;
        let value = counts.value_at_quantile(share);
        let (low, high) = (counts.lowest_equivalent(value), counts.highest_equivalent(value));
        Some(Micros(low + (high - low) / 2).min(self.max))
    }
}

/// Small, and grows with what it is told.
fn empty() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("one digit is possible")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_and_weighted_by_messages() {
        let mut latency = Latency::default();
        assert_eq!((latency.quantile(0.5), latency.count()), (None, 0));
        latency.note(Micros(1_000_000), 90);
        latency.note(Micros(50_000), 10);
        latency.note(Micros(0), 0);
        for (share, expected) in [(0.05, 50_000.0), (0.5, 1e6), (1.0, 1e6)] {
            let found = latency.quantile(share).expect("messages").0 as f64;
            assert!((found / expected - 1.0).abs() < 0.032, "{share}: {found}");
        }
        assert_eq!((latency.count(), latency.max()), (100, Micros(1_000_000)));
        assert_eq!(latency.sum(), Micros(90_500_000));
        latency.note(Micros(u64::MAX), 1);
        assert_eq!(latency.max(), limits::LATENCY_MAX);
    }

    /// The wire says which buckets there are.
    #[test]
    fn buckets_have_sixteen_bounds_between_powers_of_two() {
        let mut latency = Latency::default();
        let values: Vec<u64> =
            (0..200).chain((8..37).flat_map(|power| [(1 << power) - 1, 1 << power])).collect();
        values.iter().for_each(|value| latency.note(Micros(*value), 1));
        let bounds: Vec<u64> = latency.buckets().map(|(bound, _)| bound.0).collect();
        for bound in &bounds {
            let power = bound.max(&1).ilog2().saturating_sub(4);
            assert!((bound + 1).is_multiple_of(1 << power), "{bound}");
        }
        let in_bucket = |value: u64| *bounds.iter().find(|bound| **bound >= value).expect("one");
        assert_eq!([31, 32, 33, 64, 130].map(in_bucket), [31, 33, 33, 67, 135]);
        assert_eq!(latency.buckets().map(|(_, n)| n).sum::<u64>(), values.len() as u64);
    }

    #[test]
    fn what_is_added_counts_and_what_is_cleared_does_not() {
        let (mut all, mut part) = (Latency::default(), Latency::default());
        part.note(Micros(70_000), 3);
        all.add(&part);
        all.add(&Latency::default());
        part.clear();
        part.note(Micros(5), 1);
        all.add(&part);
        assert_eq!((all.count(), all.max(), all.sum()), (4, Micros(70_000), Micros(210_005)));
        assert_eq!((part.count(), part.max()), (1, Micros(5)));
    }
}
