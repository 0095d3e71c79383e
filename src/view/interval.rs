//! What happened in a queue between two looks, for the lines and the JSON.

use super::latency::{self, Percentiles, Stage, within};
use super::model::{Model, difference, sum};
use super::track::{Rates, Track};
use crate::units::Micros;
use crate::wire::stat::{Counted, Latencies, QueueFigures};

/// A queue from one look to the next; at the first look, from its beginning, with the rates that the
/// server's history knows.
#[derive(Clone, Debug)]
pub struct Interval<'a> {
    /// Its figures at the end.
    pub now: &'a QueueFigures,
    /// What went through it in a second.
    pub rates: Rates,
    /// What was counted.
    pub counted: Counted,
    /// The latencies of what was settled meanwhile.
    pub latency: Latencies,
    /// The age of its oldest message.
    pub age: Option<Micros>,
}

impl<'a> Interval<'a> {
    /// Of the newest interval of a queue.
    #[must_use]
    pub fn of(track: &'a Track, model: &Model) -> Interval<'a> {
        let figures: &QueueFigures = track.now();
        let then = (!model.is_first_look()).then(|| track.before());
        let stage = |of: Stage| {
            let then = then.and_then(|then| of(&then.latency));
            of(&figures.latency).map(|all| within(all, then))
        };
        Interval {
            now: figures,
            rates: track.rates(),
            counted: then
                .map_or(figures.counted, |then| difference(&figures.counted, &then.counted)),
            latency: Latencies {
                produce: stage(latency::PRODUCE),
                queue: stage(latency::QUEUE),
                consume: stage(latency::CONSUME),
                whole: stage(latency::WHOLE),
            },
            age: figures.oldest.map(|time| Micros(model.now().0.saturating_sub(time.0))),
        }
    }

    /// The whole latency.
    #[must_use]
    pub fn whole(&self) -> Option<Percentiles> {
        self.latency.whole.as_ref().and_then(Percentiles::of)
    }
}

/// Several intervals as one line: everything but names.
#[derive(Clone, Debug, Default)]
pub struct Together {
    /// Messages ready.
    pub ready: u64,
    /// Messages with receivers.
    pub unacked: u64,
    /// See [`Interval::rates`].
    pub rates: Rates,
    /// See [`Interval::counted`].
    pub counted: Counted,
    /// See [`Interval::whole`].
    pub whole: Option<Percentiles>,
    /// The age of the oldest message of all.
    pub age: Option<Micros>,
}

impl Together {
    /// Adds them up.
    #[must_use]
    pub fn of(intervals: &[Interval<'_>]) -> Together {
        let mut all = Together::default();
        for interval in intervals {
            all.ready += interval.now.ready.0;
            all.unacked += interval.now.unacked.0;
            all.rates = all.rates.plus(interval.rates);
            all.counted = sum(&all.counted, &interval.counted);
            all.age = all.age.max(interval.age);
        }
        let whole = intervals.iter().filter_map(|interval| interval.latency.whole.as_ref());
        all.whole = Percentiles::of(&latency::sum(whole));
        all
    }
}
