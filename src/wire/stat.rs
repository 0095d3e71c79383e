//! The figures that `mq-stat` shows: what a server counts, as it tells it.
//!
//! Plain values with what can be computed from them alone. Asked for by [`Admin::Figures`](super::Admin::Figures),
//! a page at a time; made by the server's engine, read by clients. Whatever is zero, empty or
//! unknown is left out, so that a page of idle queues is small.
//!
//! # Gauges, counters, histograms
//!
//! *Gauges* say what is now. *Counters* only grow over the life of a queue; those that follow from
//! what is stored (all of [`Account`], and of [`Counted`] those marked *exact*) are right after any
//! end of a server, the others are recorded now and then, and a kill takes back what was counted
//! since. *Histograms* count since the server started: a rate, or the latencies of a window, are
//! the difference of two snapshots of the same [`ServerFigures::instance`].
//!
//! # The three latencies
//!
//! ```text
//!   read by mq-send      visible            handed over            settled by an ack
//!        │   produce        │     queue          │      consume         │
//!        ├──────────────────┼────────────────────┼──────────────────────┤
//!        │                          whole                               │
//! ```
//!
//! *Visible* is durable under `sync=always`, else written. *Handed over* is put on its way to the
//! receiver's reader; for a receiver that runs commands, the moment the command is begun, as
//! until then the message only waits. A message that comes again counts in `consume` with its last
//! try and in `whole`, and not in `queue`. Where nothing is known of when a message was read, as
//! for one whose server was started anew since, the time at which it was stored stands for it.
//!

use serde::{Deserialize, Serialize};

use super::{PipeInfo, QueuePattern};
use crate::settings::Settings;
use crate::units::{Bytes, Count, Micros, Name, QueueId, WallTime};

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FiguresWanted {
    /// Names and patterns; none: every queue.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueuePattern>,
    /// Only queues whose names come behind this one, for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Name>,
    /// Only queues of which anything changed since the answer with this
    /// [`tick`](ServerFigures::tick) (the first page's) of the same
    /// [`instance`](ServerFigures::instance) was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_since: Option<u64>,
    /// With groups, clients, settings and all four latencies; else only the whole one.
    #[serde(skip_serializing_if = "is_zero")]
    pub detail: bool,
    /// So many of the newest seconds of the history, at most
    /// [`HISTORY_SECONDS`](crate::limits::HISTORY_SECONDS).
    #[serde(skip_serializing_if = "is_zero")]
    pub seconds: u32,
    /// So many of the newest minutes, at most
    /// [`HISTORY_MINUTES`](crate::limits::HISTORY_MINUTES).
    #[serde(skip_serializing_if = "is_zero")]
    pub minutes: u32,
}

/// The answer: as many queues as fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// The server.
    pub server: ServerFigures,
    /// Queues, in the order of their names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueFigures>,
    /// Where the next page goes on: ask again with this as [`after`](FiguresWanted::after).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Name>,
}

/// The server, as of the moment of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerFigures {
    /// A random number for each start of a server: with another, histograms begin anew and
    /// `changed_since` means nothing.
    pub instance: u64,
    /// Its process.
    pub pid: u32,
    /// The version of the package.
    pub version: String,
    /// When it was started.
    pub started: WallTime,
    /// Its wall clock now: ages are differences to this.
    pub now: WallTime,
    /// The number of this answer, for [`changed_since`](FiguresWanted::changed_since).
    pub tick: u64,
    /// Grows when a queue comes or goes: then what was known of the set of queues is out of date,
    /// and all are to be asked for anew, without `changed_since`.
    pub set: u64,
    /// Queues that there are, damaged ones included.
    pub queues: u64,
    /// Connections, that of whoever asks included.
    pub connections: u64,
}

/// One queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueFigures {
    /// Its name.
    pub queue: Name,
    /// Its incarnation: with another, counters begin anew.
    pub id: QueueId,
    /// When it was made.
    pub created: WallTime,
    /// Why it stands still, if it does. Of a queue that could not be opened nothing else is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// One of its groups has too many holes to get anything new.
    #[serde(skip_serializing_if = "is_zero")]
    pub stuck: bool,
    /// Messages that are ready, of all groups together; without a group, those that the first will
    /// find.
    #[serde(skip_serializing_if = "is_zero")]
    pub ready: Count,
    /// Messages that receivers hold or that are leased, of all groups together.
    #[serde(skip_serializing_if = "is_zero")]
    pub unacked: Count,
    /// Messages that failed and wait for their back-off, of all groups together.
    #[serde(skip_serializing_if = "is_zero")]
    pub resting: Count,
    /// Messages that are on their way to the dead letters, of all groups together.
    #[serde(skip_serializing_if = "is_zero")]
    pub dying: Count,
    /// Messages that wait for their time.
    #[serde(skip_serializing_if = "is_zero")]
    pub delayed: Count,
    /// Messages that are not gone: each once, however many groups wait for it.
    #[serde(skip_serializing_if = "is_zero")]
    pub present: Count,
    /// About how many bytes those have.
    #[serde(skip_serializing_if = "is_zero")]
    pub present_bytes: Bytes,
    /// Bytes of its files.
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_bytes: Bytes,
    /// Receivers that take.
    #[serde(skip_serializing_if = "is_zero")]
    pub receivers: u64,
    /// Senders.
    #[serde(skip_serializing_if = "is_zero")]
    pub senders: u64,
    /// When the oldest message that some group has not settled was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<WallTime>,
    /// The group that holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_group: Option<Name>,
    /// Counters.
    #[serde(skip_serializing_if = "is_zero")]
    pub counted: Counted,
    /// Latencies since the server started, or since the queue was made.
    #[serde(skip_serializing_if = "is_zero")]
    pub latency: Latencies,
    /// With `detail`: its groups, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupFigures>,
    /// With `detail`: the pipes that write to it, by name; at most
    /// [`PIPES_SHOWN_MAX`](crate::limits::PIPES_SHOWN_MAX).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pipes: Vec<PipeInfo>,
    /// With `detail`: who sends and receives; at most
    /// [`CLIENTS_SHOWN_MAX`](crate::limits::CLIENTS_SHOWN_MAX).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<ClientFigures>,
    /// With `detail`: its settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<Settings>,
    /// The newest seconds, oldest first. A second in which nothing was counted is not there:
    /// [`Slice::at`] tells. The one that is not over yet is the last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seconds: Vec<Slice>,
    /// The newest minutes, as the seconds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub minutes: Vec<Slice>,
    /// Of a queue at an engine: what of this is not known, by the names of the fields, and by
    /// [`RATES`](unknown::RATES) and [`AGE`](unknown::AGE).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// Names in [`QueueFigures::unknown`] that are no field's.
pub mod unknown {
    /// What comes and goes in a second.
    pub const RATES: &str = "rates";
    /// How old the oldest message is.
    pub const AGE: &str = "oldest";
}

impl QueueFigures {
    /// Whether the value of a field is one.
    #[must_use]
    pub fn knows(&self, field: &str) -> bool {
        !self.unknown.iter().any(|name| name == field)
    }
}

/// Counters over the life of a queue. Those marked *exact* follow from what is stored, and are
/// right after any end of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    /// Messages that senders announced: `stored`, `there_already`, `refused`, and those that are
    /// on their way to being visible.
    #[serde(skip_serializing_if = "is_zero")]
    pub announced: Count,
    /// Messages that were stored, delayed ones included. Exact.
    #[serde(skip_serializing_if = "is_zero")]
    pub stored: Count,
    /// Bytes of their batches, as they stand in the log. Exact.
    #[serde(skip_serializing_if = "is_zero")]
    pub stored_bytes: Bytes,
    /// Messages that were not stored because they, or one of their key, were there.
    #[serde(skip_serializing_if = "is_zero")]
    pub there_already: Count,
    /// Messages that were turned away: the queue or the disk was full, or they could not be stored
    /// as they were. Their senders were told.
    #[serde(skip_serializing_if = "is_zero")]
    pub refused: Count,
    /// Messages handed over, of all groups together, each time.
    #[serde(skip_serializing_if = "is_zero")]
    pub delivered: Count,
    /// Bytes of those, with their batches' headers.
    #[serde(skip_serializing_if = "is_zero")]
    pub delivered_bytes: Bytes,
    /// Of `delivered`, those that may have been delivered to their group before.
    #[serde(skip_serializing_if = "is_zero")]
    pub redelivered: Count,
    /// Messages acked, of all groups together, those that were removed included. Exact; but a seek
    /// that a kill of the server undoes takes along how messages have ended since, here and below.
    #[serde(skip_serializing_if = "is_zero")]
    pub acked: Count,
    /// Tries that failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub retried: Count,
    /// Messages that became dead letters. Exact.
    #[serde(skip_serializing_if = "is_zero")]
    pub dead: Count,
    /// Messages whose time was over before a group got them. Exact.
    #[serde(skip_serializing_if = "is_zero")]
    pub expired: Count,
    /// Messages that went to make room or for their age before a group had settled them. Exact.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped: Count,
    /// Messages that were purged. Exact.
    #[serde(skip_serializing_if = "is_zero")]
    pub purged: Count,
    /// Messages that some group had still to settle, and that a power loss took, each once, however
    /// many groups had: see [`Account::lost`]. Exact.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: Count,
}

/// What became of the messages of a group since it was made, or last set to another place.
///
/// `stored` = `acked` + `dead` + `expired` + `dropped` + `purged` + `lost` + what is ready,
/// unacked, resting or dying in the group; always, and after any end of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// Messages that were there for it at its start, and that became visible to it since.
    #[serde(skip_serializing_if = "is_zero")]
    pub stored: Count,
    /// Messages that its receivers acked.
    #[serde(skip_serializing_if = "is_zero")]
    pub acked: Count,
    /// Messages that are dead letters now.
    #[serde(skip_serializing_if = "is_zero")]
    pub dead: Count,
    /// Messages whose time was over.
    #[serde(skip_serializing_if = "is_zero")]
    pub expired: Count,
    /// Messages that went to make room, or for their age.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped: Count,
    /// Messages that were purged.
    #[serde(skip_serializing_if = "is_zero")]
    pub purged: Count,
    /// Messages that a power loss took under `sync=interval` or `never`, as far as a journal shows
    /// that they had been visible. What a group had settled before counts as that.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: Count,
}

impl Account {
    /// Messages that are settled, in whatever way.
    #[must_use]
    pub fn settled(&self) -> Count {
        let Account { stored: _, acked, dead, expired, dropped, purged, lost } = *self;
        Count([acked, dead, expired, dropped, purged, lost].iter().map(|count| count.0).sum())
    }
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupFigures {
    /// Its name.
    pub group: Name,
    /// Messages that are ready.
    #[serde(skip_serializing_if = "is_zero")]
    pub ready: Count,
    /// Messages that receivers hold or that are leased.
    #[serde(skip_serializing_if = "is_zero")]
    pub unacked: Count,
    /// Messages that failed and wait for their back-off.
    #[serde(skip_serializing_if = "is_zero")]
    pub resting: Count,
    /// Messages that are on their way to the dead letters.
    #[serde(skip_serializing_if = "is_zero")]
    pub dying: Count,
    /// Receivers that take.
    #[serde(skip_serializing_if = "is_zero")]
    pub receivers: u64,
    /// When its oldest message that is not settled was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<WallTime>,
    /// It has too many holes to get anything new.
    #[serde(skip_serializing_if = "is_zero")]
    pub stuck: bool,
    /// What became of its messages.
    #[serde(skip_serializing_if = "is_zero")]
    pub account: Account,
}

impl GroupFigures {
    /// Messages that are not settled: what the account's `stored` must leave.
    #[must_use]
    pub fn unsettled(&self) -> Count {
        Count(self.ready.0 + self.unacked.0 + self.resting.0 + self.dying.0)
    }
}

/// What a client does with a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It sends.
    #[default]
    Sender,
    /// It takes.
    Receiver,
    /// It only looks.
    Peeker,
}

/// A sender or receiver. What of it is a process, its user and its command, is the kernel's word;
/// `tool` is its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientFigures {
    /// What it does.
    pub role: Role,
    /// Its process; 0 where the system did not say.
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: u32,
    /// The user it runs as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The tool that it says it is: `mq-recv`. Any text, of at most
    /// [`TOOL_BYTES_MAX`](crate::limits::TOOL_BYTES_MAX).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tool: String,
    /// The program that it says it runs on messages: `sleep`. Any text, as `tool`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// A receiver's group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
    /// Since when.
    pub since: WallTime,
    /// Messages that it sent, or that were handed over to it.
    #[serde(skip_serializing_if = "is_zero")]
    pub messages: Count,
    /// Bytes of those.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes: Bytes,
    /// Messages that it holds.
    #[serde(skip_serializing_if = "is_zero")]
    pub unacked: Count,
}

/// One second or one minute of a queue, of all groups together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slice {
    /// When it began: a whole second or minute.
    pub at: WallTime,
    /// Messages that became visible.
    #[serde(skip_serializing_if = "is_zero")]
    pub stored: Count,
    /// Bytes of their batches.
    #[serde(skip_serializing_if = "is_zero")]
    pub stored_bytes: Bytes,
    /// Messages handed over.
    #[serde(skip_serializing_if = "is_zero")]
    pub delivered: Count,
    /// Bytes of those.
    #[serde(skip_serializing_if = "is_zero")]
    pub delivered_bytes: Bytes,
    /// Messages acked.
    #[serde(skip_serializing_if = "is_zero")]
    pub acked: Count,
    /// Tries that failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub retried: Count,
    /// Messages that became dead letters.
    #[serde(skip_serializing_if = "is_zero")]
    pub dead: Count,
    /// Messages that were ready at its end; where a second is not there, as many as at the end of
    /// the one before.
    #[serde(skip_serializing_if = "is_zero")]
    pub ready: Count,
    /// The whole latency of what was acked: p50 and p99.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole: Option<(Micros, Micros)>,
}

/// The three latencies and the whole, weighted by messages; absent: nothing was measured, or it
/// was not asked for. See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latencies {
    /// From being read by the sender to being visible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub produce: Option<Histogram>,
    /// From there to being handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Histogram>,
    /// From there to being acked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consume: Option<Histogram>,
    /// From being read to being acked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole: Option<Histogram>,
}

/// How often which latency was measured.
///
/// The bounds of buckets are the same in every histogram: below 32 µs each holds one value; from
/// there on 16 buckets of equal width lie between a power of two and the next. So the middle of a
/// bucket is within 3.2 % of every value in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Messages.
    pub count: u64,
    /// The sum of their latencies; saturates.
    pub sum: Micros,
    /// The greatest, since the beginning.
    pub max: Micros,
    /// The greatest value of each bucket that holds any, ascending, and how many it holds.
    pub buckets: Vec<(Micros, u64)>,
}

/// Buckets between a power of two and the next, as a power of two.
const SUB_BUCKETS_LOG2: u32 = 4;

impl Histogram {
    /// The lowest value of the bucket of which `highest` is the greatest.
    #[must_use]
    pub fn lowest_of(highest: Micros) -> Micros {
        let power = highest.0.max(1).ilog2().saturating_sub(SUB_BUCKETS_LOG2);
        Micros(highest.0.saturating_sub((1 << power) - 1))
    }

    /// The middle of the bucket of which `highest` is the greatest value.
    #[must_use]
    pub fn middle_of(highest: Micros) -> Micros {
        let lowest = Histogram::lowest_of(highest).0;
        Micros(lowest + (highest.0 - lowest) / 2)
    }

    /// The value that so much of the messages (0.0 to 1.0) do not exceed: the middle of its
    /// bucket, and never above `max`. None without messages.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Micros> {
        let rank = ((share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut below = 0;
        for &(highest, count) in &self.buckets {
            below += count;
            if below >= rank {
                return Some(Histogram::middle_of(highest).min(self.max));
            }
        }
        None
    }

    /// The mean; none without messages.
    #[must_use]
    pub fn mean(&self) -> Option<Micros> {
        self.sum.0.checked_div(self.count).map(Micros)
    }

    /// What was measured since `earlier`, a snapshot of the same server; all of it, if that was
    /// of another. The greatest value is known by its bucket only, unless it is that of all.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut before = earlier.buckets.iter().copied().peekable();
        let mut buckets = Vec::with_capacity(self.buckets.len());
        for &(highest, count) in &self.buckets {
            while before.next_if(|(other, _)| *other < highest).is_some() {}
            let known = before.next_if(|(other, _)| *other == highest).map_or(0, |(_, n)| n);
            let Some(new) = count.checked_sub(known) else { return self.clone() };
            if new > 0 {
                buckets.push((highest, new));
            }
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.0.saturating_sub(earlier.sum.0);
        let top = buckets.last().map_or(Micros(0), |(highest, _)| *highest);
        Histogram { count, sum: Micros(sum), max: top.min(self.max), buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(buckets: &[(u64, u64)]) -> Histogram {
        let buckets: Vec<_> = buckets.iter().map(|&(high, n)| (Micros(high), n)).collect();
        let sum = buckets.iter().map(|(high, n)| Histogram::middle_of(*high).0 * n).sum();
        Histogram {
            count: buckets.iter().map(|(_, n)| n).sum(),
            sum: Micros(sum),
            max: buckets.last().map_or(Micros(0), |(high, _)| *high),
            buckets,
        }
    }

    #[test]
    fn figures_round_trip_and_idle_queues_are_small() {
        let full = QueueFigures {
            ready: Count(3),
            oldest: Some(WallTime(7)),
            counted: Counted { announced: Count(9), lost: Count(1), ..Counted::default() },
            latency: Latencies {
                whole: Some(histogram(&[(5, 1), (67, 2)])),
                ..Latencies::default()
            },
            groups: vec![GroupFigures {
                stuck: true,
                account: Account { stored: Count(5), dead: Count(2), ..Account::default() },
                ..GroupFigures::default()
            }],
            clients: vec![ClientFigures {
                role: Role::Receiver,
                uid: Some(0),
                group: Some(Name::default()),
                ..ClientFigures::default()
            }],
            pipes: vec![PipeInfo { lag: Some(Count(3)), ..PipeInfo::default() }],
            settings: Some(Settings::default()),
            seconds: vec![Slice { whole: Some((Micros(1), Micros(2))), ..Slice::default() }],
            ..QueueFigures::default()
        };
        let figures = Figures {
            queues: vec![full, QueueFigures::default()],
            next: Some(Name::default()),
            ..Figures::default()
        };
        let json = serde_json::to_string(&figures).expect("serializes");
        assert_eq!(serde_json::from_str::<Figures>(&json).expect("parses"), figures);
        let idle = serde_json::to_string(&QueueFigures::default()).expect("serializes");
        assert!(idle.len() < 100, "{idle}");
        let wanted: FiguresWanted = serde_json::from_str("{}").expect("everything can be absent");
        assert_eq!(wanted, FiguresWanted::default());
    }

    #[test]
    fn middles_are_near_all_values_of_their_buckets() {
        for (highest, lowest) in
            [(0, 0), (1, 1), (31, 31), (33, 32), (63, 62), (67, 64), (135, 128)]
        {
            assert_eq!(Histogram::lowest_of(Micros(highest)), Micros(lowest), "{highest}");
            let middle = Histogram::middle_of(Micros(highest)).0 as f64;
            assert!((middle - lowest as f64) <= 0.032 * lowest as f64);
        }
    }

    #[test]
    fn quantiles_and_windows_follow_from_buckets() {
        let earlier = histogram(&[(5, 1), (33, 3)]);
        let later = histogram(&[(5, 1), (33, 5), (67, 90), (135, 8)]);
        assert_eq!(later.quantile(0.5), Some(Micros(65)));
        assert_eq!(later.quantile(0.0), Some(Micros(5)));
        assert_eq!(later.quantile(1.0), Some(Micros(131)));
        assert_eq!(Histogram::default().quantile(0.5), None);
        let window = later.since(&earlier);
        assert_eq!(window.buckets, [(Micros(33), 2), (Micros(67), 90), (Micros(135), 8)]);
        assert_eq!((window.count, window.max), (100, Micros(135)));
        assert_eq!(window.sum, Micros(later.sum.0 - earlier.sum.0));
        assert_eq!(earlier.since(&later), earlier, "another server's");
        assert_eq!(later.since(&Histogram::default()), later);
    }

    #[test]
    fn settled_is_all_but_what_was_stored() {
        let n = Count;
        let account = Account {
            stored: n(100),
            acked: n(1),
            dead: n(2),
            expired: n(4),
            dropped: n(8),
            purged: n(16),
            lost: n(32),
        };
        assert_eq!(account.settled(), Count(63));
    }
}
