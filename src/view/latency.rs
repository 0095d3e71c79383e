//! Latencies of several queues together, and the percentiles that are shown.
//!
//! Pure. What a histogram is and how a window is cut out of it stands with the
//! [wire](crate::wire::stat::Histogram).

use std::collections::BTreeMap;

use crate::units::Micros;
use crate::wire::stat::{Histogram, Latencies};

/// One of the latencies.
pub type Stage = fn(&Latencies) -> Option<&Histogram>;

/// From being read by the sender to being visible.
pub const PRODUCE: Stage = |latency| latency.produce.as_ref();
/// From there to being handed over.
pub const QUEUE: Stage = |latency| latency.queue.as_ref();
/// From there to being acked.
pub const CONSUME: Stage = |latency| latency.consume.as_ref();
/// All of it.
pub const WHOLE: Stage = |latency| latency.whole.as_ref();

/// The latencies, in the order in which they pass, by the names that are shown.
pub const STAGES: [(&str, Stage); 4] =
    [("produce", PRODUCE), ("queue", QUEUE), ("consume", CONSUME), ("whole", WHOLE)];

/// Several histograms as one.
#[must_use]
pub fn sum<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Histogram {
    let mut buckets: BTreeMap<Micros, u64> = BTreeMap::new();
    let mut all = Histogram::default();
    for histogram in histograms {
        all.count += histogram.count;
        all.sum = Micros(all.sum.0.saturating_add(histogram.sum.0));
        all.max = all.max.max(histogram.max);
        for (highest, count) in &histogram.buckets {
            *buckets.entry(*highest).or_default() += count;
        }
    }
    all.buckets = buckets.into_iter().collect();
    all
}

/// What was measured within a window that began with `then`.
#[must_use]
pub fn within(now: &Histogram, then: Option<&Histogram>) -> Histogram {
    then.map_or_else(|| now.clone(), |then| now.since(then))
}

/// What is shown of a latency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// Messages.
    pub count: u64,
    /// Their mean.
    pub mean: Micros,
    /// Half of them took no longer.
    pub p50: Micros,
    /// 90 %.
    pub p90: Micros,
    /// 99 %.
    pub p99: Micros,
    /// 99.9 %.
    pub p999: Micros,
    /// The longest.
    pub max: Micros,
}

impl Percentiles {
    /// Of a histogram; `None` when it is empty.
    #[must_use]
    pub fn of(histogram: &Histogram) -> Option<Percentiles> {
        Some(Percentiles {
            count: histogram.count,
            mean: histogram.mean()?,
            p50: histogram.quantile(0.5)?,
            p90: histogram.quantile(0.9)?,
            p99: histogram.quantile(0.99)?,
            p999: histogram.quantile(0.999)?,
            max: histogram.max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(buckets: &[(u64, u64)]) -> Histogram {
        Histogram {
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum: Micros(buckets.iter().map(|(highest, count)| highest * count).sum()),
            max: Micros(buckets.last().map_or(0, |(highest, _)| *highest)),
            buckets: buckets.iter().map(|(highest, count)| (Micros(*highest), *count)).collect(),
        }
    }

    #[test]
    fn sums_add_bucket_by_bucket() {
        let (a, b) = (histogram(&[(10, 1), (20, 2)]), histogram(&[(20, 3), (31, 1)]));
        let all = sum([&a, &b].into_iter());
        assert_eq!(all.buckets, [(Micros(10), 1), (Micros(20), 5), (Micros(31), 1)]);
        assert_eq!((all.count, all.max, all.sum), (7, Micros(31), Micros(141)));
    }

    #[test]
    fn percentiles_are_of_what_there_is() {
        let all = histogram(&[(10, 50), (20, 40), (25, 9), (30, 1)]);
        let found = Percentiles::of(&all).expect("not empty");
        assert_eq!(
            [found.p50, found.p90, found.p99, found.p999, found.max].map(|micros| micros.0),
            [10, 20, 25, 30, 30]
        );
        assert_eq!(Percentiles::of(&Histogram::default()), None);
    }
}
