//! Figures as JSON, one object for each queue and interval. Fields are only ever added; times are
//! RFC 3339, lengths of time are seconds. What each field means stands in mq-stat(1).

use serde::Serialize;

use super::interval::Interval;
use super::latency::Percentiles;
use super::model::Model;
use crate::units::{Bytes, Count, Micros, Name, QueueId, WallTime};
use crate::wire::stat::{Account, Counted, GroupFigures, Histogram, Slice};

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
    ready: Count,
    unacked: Count,
    resting: Count,
    dying: Count,
    delayed: Count,
    present: Count,
    present_bytes: Bytes,
    disk_bytes: Bytes,
    receivers: u64,
    senders: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_age: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_group: Option<&'a Name>,
    rate: Rate,
    counted: AllCounted,
    latency: Stages,
    groups: Vec<Group<'a>>,
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
struct AllAccount {
    stored: Count,
    acked: Count,
    dead: Count,
    expired: Count,
    dropped: Count,
    purged: Count,
    lost: Count,
}

/// The line of a queue.
#[must_use]
pub fn line<'a>(interval: &'a Interval<'a>, model: &Model) -> Line<'a> {
    let now = model.now();
    let figures = interval.now;
    let latency = |of: &Option<Histogram>| of.as_ref().and_then(Percentiles::of).map(Latency::from);
    Line {
        time: rfc3339(now),
        queue: &figures.queue,
        id: figures.id,
        interval: model.elapsed().map(seconds),
        trouble: figures.trouble.as_deref(),
        ready: figures.ready,
        unacked: figures.unacked,
        resting: figures.resting,
        dying: figures.dying,
        delayed: figures.delayed,
        present: figures.present,
        present_bytes: figures.present_bytes,
        disk_bytes: figures.disk_bytes,
        receivers: figures.receivers,
        senders: figures.senders,
        oldest_age: interval.age.map(seconds),
        oldest_group: figures.oldest_group.as_ref(),
        rate: Rate {
            stored: rounded(interval.rates.stored),
            stored_bytes: rounded(interval.rates.stored_bytes),
            delivered: rounded(interval.rates.delivered),
            delivered_bytes: rounded(interval.rates.delivered_bytes),
            acked: rounded(interval.rates.acked),
        },
        counted: figures.counted.into(),
        latency: Stages {
            produce: latency(&interval.latency.produce),
            queue: latency(&interval.latency.queue),
            consume: latency(&interval.latency.consume),
            whole: latency(&interval.latency.whole),
        },
        groups: figures.groups.iter().map(|group| of_group(group, now)).collect(),
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
        time: rfc3339(slice.at),
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

/// To the millisecond.
fn rfc3339(time: WallTime) -> String {
    i64::try_from(time.0)
        .ok()
        .and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok())
        .map_or_else(|| "?".to_owned(), |time| format!("{time:.3}"))
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
