//! Plain lines, as `vmstat` prints them: one for each queue and interval, numbers first, the name
//! last, the head again now and then.

use super::format;
use super::interval::{Interval, Together};
use super::latency::Percentiles;
use super::track::Rates;
use crate::units::{Micros, Name, WallTime};
use crate::wire::stat::{Slice, unknown};

/// After so many lines the head comes again.
pub const HEAD_EVERY: usize = 22;

/// The name of the line of all queues together; no queue is called so.
const TOTAL: &str = "(total)";

/// The head.
#[must_use]
pub fn head() -> String {
    "TIME      READY UNACK  IN/s OUT/s   AGE   P50   P99 RETRY  DEAD QUEUE\n".to_owned()
}

/// One line.
struct Shown<'a> {
    time: &'a str,
    ready: Option<u64>,
    unacked: Option<u64>,
    rates: Option<Rates>,
    age: Option<Micros>,
    latency: Option<(Micros, Micros)>,
    /// Tries that failed, and dead letters.
    failed: Option<(u64, u64)>,
    name: &'a str,
}

impl Shown<'_> {
    fn text(&self) -> String {
        let dash = || "-".to_owned();
        let (p50, p99) = match self.latency {
            Some((p50, p99)) => (format::latency(p50), format::latency(p99)),
            None => (dash(), dash()),
        };
        format!(
            "{} {:>6} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {}\n",
            self.time,
            self.ready.map_or_else(dash, format::count),
            self.unacked.map_or_else(dash, format::count),
            self.rates.map_or_else(dash, |rates| format::rate(rates.stored)),
            self.rates.map_or_else(dash, |rates| format::rate(rates.delivered)),
            self.age.map_or_else(dash, format::age),
            p50,
            p99,
            self.failed.map_or_else(dash, |(retried, _)| format::count(retried)),
            self.failed.map_or_else(dash, |(_, dead)| format::count(dead)),
            self.name,
        )
    }
}

/// The line of a queue. `time` is a clock's time.
#[must_use]
pub fn line(time: &str, interval: &Interval<'_>) -> String {
    let counted = (interval.counted.retried.0, interval.counted.dead.0);
    let now = interval.now;
    Shown {
        time,
        ready: now.knows("ready").then_some(now.ready.0),
        unacked: now.knows("unacked").then_some(now.unacked.0),
        rates: now.knows(unknown::RATES).then_some(interval.rates),
        age: interval.age,
        latency: interval.whole().map(ends),
        failed: now.knows("counted").then_some(counted),
        name: interval.now.queue.as_str(),
    }
    .text()
}

/// The line of all queues together.
#[must_use]
pub fn total(time: &str, all: &Together) -> String {
    Shown {
        time,
        ready: Some(all.ready),
        unacked: Some(all.unacked),
        rates: Some(all.rates),
        age: all.age,
        latency: all.whole.map(ends),
        failed: Some((all.counted.retried.0, all.counted.dead.0)),
        name: TOTAL,
    }
    .text()
}

/// The line of a slice of the history that is, or was until now, so long.
#[must_use]
pub fn slice(time: &str, queue: &Name, slice: &Slice, long: Micros) -> String {
    let seconds = long.0.max(1) as f64 / 1e6;
    let rates = Rates {
        stored: slice.stored.0 as f64 / seconds,
        delivered: slice.delivered.0 as f64 / seconds,
        ..Rates::default()
    };
    Shown {
        time,
        ready: Some(slice.ready.0),
        unacked: None,
        rates: Some(rates),
        age: None,
        latency: slice.whole,
        failed: Some((slice.retried.0, slice.dead.0)),
        name: queue.as_str(),
    }
    .text()
}

fn ends(latency: Percentiles) -> (Micros, Micros) {
    (latency.p50, latency.p99)
}

/// A time as a clock on the wall shows it; eight characters.
#[must_use]
pub fn clock(time: WallTime, zone: &jiff::tz::TimeZone) -> String {
    let time = i64::try_from(time.0).ok().and_then(|t| jiff::Timestamp::from_microsecond(t).ok());
    time.map_or_else(
        || "--:--:--".to_owned(),
        |time| time.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Count;

    #[test]
    fn lines_stand_below_their_heads() {
        let name = Name::new("jobs").expect("a name");
        let utc = jiff::tz::TimeZone::UTC;
        let time = clock(WallTime(1_764_237_845_000_000), &utc);
        assert_eq!(time, "10:04:05");
        let of = Slice {
            stored: Count(120),
            delivered: Count(60),
            ready: Count(12_345),
            dead: Count(3),
            whole: Some((Micros(1_200), Micros(45_000))),
            ..Slice::default()
        };
        let text = slice(&time, &name, &of, Micros::from_secs(60));
        assert_eq!(
            text,
            "10:04:05  12.3k     - 2.0     1.0     -  1.2ms  45ms     0     3 jobs\n"
                .replace("     - 2.0     1.0     -  1.2ms", "     -   2.0   1.0     - 1.2ms")
        );
        let ends_of = |line: &str| -> Vec<usize> {
            let ends = line.char_indices().zip(line.chars().skip(1).chain([' ']));
            ends.filter(|((_, c), next)| *c != ' ' && *next == ' ').map(|((at, _), _)| at).collect()
        };
        let (heads, values) = (head(), text);
        let last = |ends: Vec<usize>| ends[1..ends.len() - 1].to_vec();
        assert_eq!(last(ends_of(heads.trim_end())), last(ends_of(values.trim_end())));
    }
}
