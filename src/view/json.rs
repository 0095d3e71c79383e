//! Figures as JSON, one object for each queue and interval. Fields are only ever added; times are
//! RFC 3339, lengths of time are seconds. What each field means stands in mq-stat(1).

use serde::Serialize;

use super::interval::Interval;
use super::latency::Percentiles;
use super::model::Model;
use crate::cli::rfc3339_millis;
use crate::units::{Bytes, Count, Micros, Name, Offset, QueueId, WallTime};
use crate::wire::stat::{Account, Counted, GroupFigures, Histogram, QueueFigures, Slice, unknown};
use crate::wire::{PipeFigures, PipeInfo};

/// A line for an interval.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    time: String,
    queue: &'a Name,
    id: QueueId,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unacked: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resting: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dying: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delayed: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    present: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    present_bytes: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receivers: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    senders: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_age: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_group: Option<&'a Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counted: Option<AllCounted>,
    latency: Stages,
    groups: Vec<Group<'a>>,
    pipes: Vec<Pipe<'a>>,
}

#[derive(Debug, Serialize)]
struct Rate {
    stored: f64,
    stored_bytes: f64,
    delivered: f64,
    delivered_bytes: f64,
    acked: f64,
}

/// All counters, also those that are zero.
#[derive(Debug, Serialize)]
struct AllCounted {
    announced: Count,
    stored: Count,
    stored_bytes: Bytes,
    there_already: Count,
    refused: Count,
    delivered: Count,
    delivered_bytes: Bytes,
    redelivered: Count,
    acked: Count,
    retried: Count,
    dead: Count,
    expired: Count,
    dropped: Count,
    purged: Count,
    lost: Count,
}

#[derive(Debug, Serialize)]
struct Stages {
    #[serde(skip_serializing_if = "Option::is_none")]
    produce: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consume: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    whole: Option<Latency>,
}

#[derive(Debug, Serialize)]
struct Latency {
    count: u64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct Group<'a> {
    group: &'a Name,
    ready: Count,
    unacked: Count,
    resting: Count,
    dying: Count,
    receivers: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_age: Option<f64>,
    stuck: bool,
    account: AllAccount,
}

#[derive(Debug, Serialize)]
struct Pipe<'a> {
    pipe: &'a str,
    src: &'a str,
    next: Offset,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<Count>,
    batches: u64,
    read: u64,
    written: u64,
    retries: u64,
    dead: u64,
    filter_seconds: f64,
    open_windows: u64,
    late: u64,
    untimed: u64,
}

#[derive(Debug, Serialize)]
struct AllAccount {
    stored: Count,
    acked: Count,
    dead: Count,
    expired: Count,
    dropped: Count,
    purged: Count,
    lost: Count,
}

/// A value, unless it is not known.
fn known<T>(figures: &QueueFigures, field: &str, value: T) -> Option<T> {
    figures.knows(field).then_some(value)
}

/// The line of a queue.
#[must_use]
pub fn line<'a>(interval: &'a Interval<'a>, model: &Model) -> Line<'a> {
    let now = model.now();
    let figures = interval.now;
    let latency = |of: &Option<Histogram>| of.as_ref().and_then(Percentiles::of).map(Latency::from);
    Line {
        time: rfc3339_millis(now),
        queue: &figures.queue,
        id: figures.id,
        interval: model.elapsed().map(seconds),
        trouble: figures.trouble.as_deref(),
        ready: known(figures, "ready", figures.ready),
        unacked: known(figures, "unacked", figures.unacked),
        resting: known(figures, "resting", figures.resting),
        dying: known(figures, "dying", figures.dying),
        delayed: known(figures, "delayed", figures.delayed),
        present: known(figures, "present", figures.present),
        present_bytes: known(figures, "present_bytes", figures.present_bytes),
        disk_bytes: known(figures, "disk_bytes", figures.disk_bytes),
        receivers: known(figures, "receivers", figures.receivers),
        senders: known(figures, "senders", figures.senders),
        oldest_age: interval.age.map(seconds),
        oldest_group: figures.oldest_group.as_ref(),
        rate: figures.knows(unknown::RATES).then(|| Rate {
            stored: rounded(interval.rates.stored),
            stored_bytes: rounded(interval.rates.stored_bytes),
            delivered: rounded(interval.rates.delivered),
            delivered_bytes: rounded(interval.rates.delivered_bytes),
            acked: rounded(interval.rates.acked),
        }),
        counted: known(figures, "counted", figures.counted.into()),
        latency: Stages {
            produce: latency(&interval.latency.produce),
            queue: latency(&interval.latency.queue),
            consume: latency(&interval.latency.consume),
            whole: latency(&interval.latency.whole),
        },
        groups: figures.groups.iter().map(|group| of_group(group, now)).collect(),
        pipes: figures.pipes.iter().map(of_pipe).collect(),
    }
}

fn of_pipe(pipe: &PipeInfo) -> Pipe<'_> {
    let PipeFigures { batches, read, written, retries, dead, .. } = pipe.figures;
    let PipeFigures { filter_us, open_windows, late, untimed, .. } = pipe.figures;
    Pipe {
        pipe: &pipe.name,
        src: &pipe.src,
        next: pipe.next,
        lag: pipe.lag,
        batches,
        read,
        written,
        retries,
        dead,
        filter_seconds: seconds(filter_us),
        open_windows,
        late,
        untimed,
    }
}

fn of_group(figures: &GroupFigures, now: WallTime) -> Group<'_> {
    Group {
        group: &figures.group,
        ready: figures.ready,
        unacked: figures.unacked,
        resting: figures.resting,
        dying: figures.dying,
        receivers: figures.receivers,
        oldest_age: figures.oldest.map(|time| seconds(Micros(now.0.saturating_sub(time.0)))),
        stuck: figures.stuck,
        account: figures.account.into(),
    }
}

/// A line for a slice of the history.
#[derive(Debug, Serialize)]
pub struct SliceLine<'a> {
    time: String,
    queue: &'a Name,
    interval: f64,
    ready: Count,
    stored: Count,
    stored_bytes: Bytes,
    delivered: Count,
    delivered_bytes: Bytes,
    acked: Count,
    retried: Count,
    dead: Count,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
}

/// The line of a slice that is, or was until now, so long.
#[must_use]
pub fn slice<'a>(queue: &'a Name, slice: &Slice, long: Micros) -> SliceLine<'a> {
    SliceLine {
        time: rfc3339_millis(slice.at),
        queue,
        interval: seconds(long),
        ready: slice.ready,
        stored: slice.stored,
        stored_bytes: slice.stored_bytes,
        delivered: slice.delivered,
        delivered_bytes: slice.delivered_bytes,
        acked: slice.acked,
        retried: slice.retried,
        dead: slice.dead,
        p50: slice.whole.map(|(p50, _)| seconds(p50)),
        p99: slice.whole.map(|(_, p99)| seconds(p99)),
    }
}

fn seconds(time: Micros) -> f64 {
    time.0 as f64 / 1e6
}

/// To a thousandth: more digits say nothing of a rate.
fn rounded(rate: f64) -> f64 {
    (rate * 1e3).round() / 1e3
}

impl From<Percentiles> for Latency {
    fn from(of: Percentiles) -> Latency {
        Latency {
            count: of.count,
            mean: seconds(of.mean),
            p50: seconds(of.p50),
            p90: seconds(of.p90),
            p99: seconds(of.p99),
            p999: seconds(of.p999),
            max: seconds(of.max),
        }
    }
}

impl From<Counted> for AllCounted {
    fn from(of: Counted) -> AllCounted {
        AllCounted {
            announced: of.announced,
            stored: of.stored,
            stored_bytes: of.stored_bytes,
            there_already: of.there_already,
            refused: of.refused,
            delivered: of.delivered,
            delivered_bytes: of.delivered_bytes,
            redelivered: of.redelivered,
            acked: of.acked,
            retried: of.retried,
            dead: of.dead,
            expired: of.expired,
            dropped: of.dropped,
            purged: of.purged,
            lost: of.lost,
        }
    }
}

impl From<Account> for AllAccount {
    fn from(of: Account) -> AllAccount {
        AllAccount {
            stored: of.stored,
            acked: of.acked,
            dead: of.dead,
            expired: of.expired,
            dropped: of.dropped,
            purged: of.purged,
            lost: of.lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::wire::stat::{Latencies, QueueFigures, ServerFigures};

    /// The paths of all values in an object, with lists taken for their elements.
    fn paths(value: &Value, before: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let dot = if before.is_empty() { "" } else { "." };
                    paths(value, &format!("{before}{dot}{name}"), found);
                }
            }
            Value::Array(elements) => {
                elements.iter().for_each(|element| paths(element, before, found));
            }
            _ => {
                found.insert(before.to_owned());
            }
        }
    }

    /// The names behind `.It Li` in the part of the page about JSON.
    fn documented() -> BTreeSet<String> {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/man/mq-stat.1");
        let page = std::fs::read_to_string(page).expect("the page");
        page.lines()
            .skip_while(|line| *line != ".Ss Fields of JSON")
            .skip(1)
            .take_while(|line| !line.starts_with(".S"))
            .filter_map(|line| line.strip_prefix(".It Li "))
            .flat_map(|names| names.split(" , ").map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// A queue of which everything is known.
    fn full(second: u64) -> QueueFigures {
        let histogram = || {
            let buckets = vec![(Micros(20), second)];
            Some(Histogram { count: second, sum: Micros(20 * second), max: Micros(20), buckets })
        };
        QueueFigures {
            trouble: Some("it is broken".to_owned()),
            oldest: Some(WallTime(1)),
            oldest_group: Some(Name::default()),
            latency: Latencies {
                produce: histogram(),
                queue: histogram(),
                consume: histogram(),
                whole: histogram(),
            },
            groups: vec![GroupFigures { oldest: Some(WallTime(1)), ..GroupFigures::default() }],
            pipes: vec![PipeInfo { lag: Some(Count(1)), ..PipeInfo::default() }],
            counted: Counted { stored: Count(10 * second), ..Counted::default() },
            ..QueueFigures::default()
        }
    }

    #[test]
    fn the_page_tells_of_every_field_and_of_no_other() {
        let mut model = Model::new(Micros::from_secs(1));
        for second in 1..=2 {
            let now = WallTime(second * 1_000_000);
            let server = ServerFigures { now, ..ServerFigures::default() };
            model.update(server, vec![full(second)], true);
        }
        let track = model.tracks().next().expect("a queue");
        let interval = Interval::of(track, &model);
        let json = serde_json::to_value(line(&interval, &model)).expect("serializes");
        assert_eq!(json["rate"]["stored"], 10.0);
        assert_eq!(json["latency"]["queue"]["count"], 1, "what came in the interval");
        assert_eq!(json["latency"]["queue"]["p99"], 0.00002);
        assert_eq!(json["interval"], 1.0);
        assert_eq!(json["time"], "1970-01-01T00:00:02.000Z");
        let mut found = BTreeSet::new();
        paths(&json, "", &mut found);
        let general: BTreeSet<String> = found
            .iter()
            .map(|path| {
                ["produce", "queue", "consume", "whole"].iter().fold(path.clone(), |path, stage| {
                    path.replace(&format!("latency.{stage}."), "latency.STAGE.")
                })
            })
            .collect();
        assert_eq!(general, documented());
    }
}
