//! Figures as Prometheus text (version 0.0.4 of the format, which every scraper reads).
//!
//! Counters belong to queues and groups, never to connections. Latencies are histograms in
//! seconds with the same buckets for all, so that they can be added up; a bucket of the server
//! counts below the first bound that its greatest value does not exceed.

use std::fmt::{Display, Write};

use super::latency::{self, Stage};
use crate::units::{Micros, Name, WallTime};
use crate::wire::PipeInfo;
use crate::wire::stat::{GroupFigures, Histogram, QueueFigures, ServerFigures, unknown};

/// The bounds of buckets, with how they are written, in seconds.
const BOUNDS: [(u64, &str); 22] = [
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
    (30_000_000, "30"),
    (60_000_000, "60"),
    (300_000_000, "300"),
    (1_800_000_000, "1800"),
    (3_600_000_000, "3600"),
    (86_400_000_000, "86400"),
];

type Number<T> = fn(&T, WallTime) -> Option<f64>;

/// What there is of each queue: name, type, help, value.
const OF_QUEUES: [(&str, &str, &str, Number<QueueFigures>); 24] = [
    (
        "mq_queue_messages_ready",
        "gauge",
        "Messages that can be delivered, of all groups together.",
        |q, _| Some(q.ready.0 as f64),
    ),
    (
        "mq_queue_messages_unacked",
        "gauge",
        "Messages that receivers hold, of all groups together.",
        |q, _| Some(q.unacked.0 as f64),
    ),
    (
        "mq_queue_messages_resting",
        "gauge",
        "Messages that failed and wait to be tried again.",
        |q, _| Some((q.resting.0 + q.dying.0) as f64),
    ),
    ("mq_queue_messages_delayed", "gauge", "Messages that wait for their time.", |q, _| {
        Some(q.delayed.0 as f64)
    }),
    ("mq_queue_ready_bytes", "gauge", "Bytes of the messages that are not gone, about.", |q, _| {
        Some(q.present_bytes.0 as f64)
    }),
    ("mq_queue_disk_bytes", "gauge", "Bytes of the files of the queue.", |q, _| {
        Some(q.disk_bytes.0 as f64)
    }),
    ("mq_queue_consumers", "gauge", "Receivers.", |q, _| Some(q.receivers as f64)),
    ("mq_queue_producers", "gauge", "Senders.", |q, _| Some(q.senders as f64)),
    (
        "mq_queue_oldest_message_age_seconds",
        "gauge",
        "Age of the oldest message that some group has not settled; 0 without one.",
        |q, now| Some(age(q.oldest, now)),
    ),
    (
        "mq_queue_stuck",
        "gauge",
        "1 if the queue or one of its groups stands still, else 0.",
        |q, _| Some(f64::from(u8::from(is_stuck(q)))),
    ),
    ("mq_queue_messages_announced_total", "counter", "Messages that senders announced.", |q, _| {
        Some(q.counted.announced.0 as f64)
    }),
    ("mq_queue_messages_published_total", "counter", "Messages stored.", |q, _| {
        Some(q.counted.stored.0 as f64)
    }),
    ("mq_queue_published_bytes_total", "counter", "Bytes stored.", |q, _| {
        Some(q.counted.stored_bytes.0 as f64)
    }),
    (
        "mq_queue_messages_duplicate_total",
        "counter",
        "Messages not stored as they were there already.",
        |q, _| Some(q.counted.there_already.0 as f64),
    ),
    ("mq_queue_messages_refused_total", "counter", "Messages refused.", |q, _| {
        Some(q.counted.refused.0 as f64)
    }),
    ("mq_queue_messages_delivered_total", "counter", "Messages handed over, each time.", |q, _| {
        Some(q.counted.delivered.0 as f64)
    }),
    ("mq_queue_messages_redelivered_total", "counter", "Messages handed over again.", |q, _| {
        Some(q.counted.redelivered.0 as f64)
    }),
    ("mq_queue_messages_acked_total", "counter", "Messages acknowledged.", |q, _| {
        Some(q.counted.acked.0 as f64)
    }),
    ("mq_queue_messages_retried_total", "counter", "Tries that failed.", |q, _| {
        Some(q.counted.retried.0 as f64)
    }),
    (
        "mq_queue_messages_dead_lettered_total",
        "counter",
        "Messages that became dead letters.",
        |q, _| Some(q.counted.dead.0 as f64),
    ),
    ("mq_queue_messages_expired_total", "counter", "Messages whose time was over.", |q, _| {
        Some(q.counted.expired.0 as f64)
    }),
    (
        "mq_queue_messages_dropped_total",
        "counter",
        "Messages dropped to make room, or for their age.",
        |q, _| Some(q.counted.dropped.0 as f64),
    ),
    ("mq_queue_messages_purged_total", "counter", "Messages purged.", |q, _| {
        Some(q.counted.purged.0 as f64)
    }),
    ("mq_queue_messages_lost_total", "counter", "Messages that a power loss took.", |q, _| {
        Some(q.counted.lost.0 as f64)
    }),
];

/// What there is of each group.
const OF_GROUPS: [(&str, &str, &str, Number<GroupFigures>); 4] = [
    ("mq_group_messages_ready", "gauge", "Messages that can be delivered to the group.", |g, _| {
        Some(g.ready.0 as f64)
    }),
    ("mq_group_messages_unacked", "gauge", "Messages that receivers of the group hold.", |g, _| {
        Some(g.unacked.0 as f64)
    }),
    ("mq_group_consumers", "gauge", "Receivers of the group.", |g, _| Some(g.receivers as f64)),
    (
        "mq_group_oldest_message_age_seconds",
        "gauge",
        "Age of the oldest message that the group has not settled; 0 without one.",
        |g, now| Some(age(g.oldest, now)),
    ),
];

/// What there is of each pipe, by the queue that it writes to.
const OF_PIPES: [(&str, &str, &str, Number<PipeInfo>); 8] = [
    (
        "mq_pipe_lag_messages",
        "gauge",
        "Messages of its source that the pipe has not committed; absent if that is not there.",
        |p, _| p.lag.map(|lag| lag.0 as f64),
    ),
    ("mq_pipe_open_windows", "gauge", "Windows that are open.", |p, _| {
        Some(p.figures.open_windows as f64)
    }),
    ("mq_pipe_batches_total", "counter", "Commits of the pipe.", |p, _| {
        Some(p.figures.batches as f64)
    }),
    ("mq_pipe_messages_read_total", "counter", "Messages committed as read.", |p, _| {
        Some(p.figures.read as f64)
    }),
    ("mq_pipe_messages_written_total", "counter", "Messages that came of them.", |p, _| {
        Some(p.figures.written as f64)
    }),
    ("mq_pipe_retries_total", "counter", "Runs of the filter that failed.", |p, _| {
        Some(p.figures.retries as f64)
    }),
    ("mq_pipe_filter_seconds_total", "counter", "Time in the filter.", |p, _| {
        Some(p.figures.filter_us.0 as f64 / 1e6)
    }),
    (
        "mq_pipe_messages_late_total",
        "counter",
        "Messages that came too late for their windows, or without a time.",
        |p, _| Some((p.figures.late + p.figures.untimed) as f64),
    ),
];

/// The latencies.
const STAGES: [(&str, &str, Stage); 4] = [
    (
        "mq_queue_produce_latency_seconds",
        "From being read by the sender to being stored.",
        latency::PRODUCE,
    ),
    ("mq_queue_wait_latency_seconds", "From being stored to being handed over.", latency::QUEUE),
    (
        "mq_queue_consume_latency_seconds",
        "From being handed over to being acknowledged.",
        latency::CONSUME,
    ),
    (
        "mq_queue_whole_latency_seconds",
        "From being read by the sender to being acknowledged.",
        latency::WHOLE,
    ),
];

/// The text of a server that answers.
#[must_use]
pub fn text(server: &ServerFigures, queues: &[QueueFigures]) -> String {
    let now = server.now;
    let mut out = Text::default();
    out.family("mq_up", "gauge", "1 if the server answers, else 0.");
    out.sample("mq_up", &[], 1);
    out.family("mq_server_info", "gauge", "The server's version.");
    out.sample("mq_server_info", &[("version", &server.version)], 1);
    out.family("mq_server_start_time_seconds", "gauge", "When the server was started.");
    out.sample("mq_server_start_time_seconds", &[], server.started.0 as f64 / 1e6);
    out.family("mq_server_connections", "gauge", "Connections.");
    out.sample("mq_server_connections", &[], server.connections);
    for (name, kind, help, number) in OF_QUEUES {
        out.family(name, kind, help);
        for queue in queues {
            if queue.knows(field(name))
                && let Some(number) = number(queue, now)
            {
                out.sample(name, &[("queue", queue.queue.as_str())], number);
            }
        }
    }
    for (name, kind, help, number) in OF_GROUPS {
        out.family(name, kind, help);
        for (queue, group) in groups(queues) {
            if let Some(number) = number(group, now) {
                out.sample(name, &labels(queue, group), number);
            }
        }
    }
    account(&mut out, queues);
    for (name, kind, help, number) in OF_PIPES {
        out.family(name, kind, help);
        let pipes = queues.iter().flat_map(|q| q.pipes.iter().map(move |p| (&q.queue, p)));
        for (queue, pipe) in pipes {
            if let Some(number) = number(pipe, now) {
                let labels =
                    [("queue", queue.as_str()), ("pipe", &pipe.name), ("source", &pipe.src)];
                out.sample(name, &labels, number);
            }
        }
    }
    for (name, help, stage) in STAGES {
        out.family(name, "histogram", help);
        for queue in queues {
            if let Some(histogram) = stage(&queue.latency) {
                out.histogram(name, &queue.queue, histogram);
            }
        }
    }
    out.0
}

/// The text when no server answers.
#[must_use]
pub fn text_without_server() -> String {
    let mut out = Text::default();
    out.family("mq_up", "gauge", "1 if the server answers, else 0.");
    out.sample("mq_up", &[], 0);
    out.0
}

/// What a metric shows, as [`QueueFigures::unknown`] calls it.
fn field(metric: &str) -> &str {
    match metric {
        "mq_queue_messages_ready" => "ready",
        "mq_queue_messages_unacked" => "unacked",
        "mq_queue_messages_resting" => "resting",
        "mq_queue_messages_delayed" => "delayed",
        "mq_queue_ready_bytes" => "present_bytes",
        "mq_queue_disk_bytes" => "disk_bytes",
        "mq_queue_consumers" => "receivers",
        "mq_queue_producers" => "senders",
        "mq_queue_oldest_message_age_seconds" => unknown::AGE,
        "mq_queue_stuck" => "trouble",
        // The rest are counters.
        _ => "counted",
    }
}

fn groups<'a>(
    queues: impl IntoIterator<Item = &'a QueueFigures>,
) -> impl Iterator<Item = (&'a Name, &'a GroupFigures)> {
    queues.into_iter().flat_map(|queue| queue.groups.iter().map(move |group| (&queue.queue, group)))
}

fn labels<'a>(queue: &'a Name, group: &'a GroupFigures) -> [(&'static str, &'a str); 2] {
    [("queue", queue.as_str()), ("group", group.group.as_str())]
}

/// The accounts of groups: what was stored for each, and what became of it. A gauge, as setting a
/// group to another place begins its account anew.
fn account(out: &mut Text, queues: &[QueueFigures]) {
    let name = "mq_group_account_messages";
    out.family(
        name,
        "gauge",
        "What became of the messages of the group: stored is all the others.",
    );
    for (queue, group) in groups(queues.iter().filter(|queue| queue.knows("counted"))) {
        let account = &group.account;
        for (fate, count) in [
            ("stored", account.stored),
            ("acked", account.acked),
            ("dead", account.dead),
            ("expired", account.expired),
            ("dropped", account.dropped),
            ("purged", account.purged),
            ("lost", account.lost),
            ("unsettled", group.unsettled()),
        ] {
            let [queue, group] = labels(queue, group);
            out.sample(name, &[queue, group, ("fate", fate)], count);
        }
    }
}

fn age(oldest: Option<WallTime>, now: WallTime) -> f64 {
    oldest.map_or(0.0, |oldest| now.0.saturating_sub(oldest.0) as f64 / 1e6)
}

fn is_stuck(queue: &QueueFigures) -> bool {
    queue.trouble.is_some() || queue.stuck
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes all");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let begin = if at == 0 { '{' } else { ',' };
            write!(self.0, "{begin}{label}=\"{}\"", escaped(text)).expect("a string takes all");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        writeln!(self.0, " {value}").expect("a string takes all");
    }

    fn histogram(&mut self, name: &str, queue: &Name, histogram: &Histogram) {
        let queue = ("queue", queue.as_str());
        let bucket = format!("{name}_bucket");
        let mut buckets = histogram.buckets.iter().peekable();
        let mut below = 0;
        for (bound, written) in BOUNDS {
            while let Some((_, count)) = buckets.next_if(|(highest, _)| *highest <= Micros(bound)) {
                below += count;
            }
            self.sample(&bucket, &[queue, ("le", written)], below);
        }
        let all = below + buckets.map(|(_, count)| count).sum::<u64>();
        self.sample(&bucket, &[queue, ("le", "+Inf")], all);
        self.sample(&format!("{name}_sum"), &[queue], histogram.sum.0 as f64 / 1e6);
        self.sample(&format!("{name}_count"), &[queue], all);
    }
}

/// A label's value between its quotes.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Count;
    use crate::wire::stat::Latencies;
    use openmetrics_parser::{PrometheusValue, prometheus::parse_prometheus};

    #[test]
    fn histograms_are_what_a_parser_takes_and_hold_every_message() {
        let buckets = vec![
            (Micros(100), 3),
            (Micros(101), 4),
            (Micros(4_999), 5),
            (Micros(2_000_000), 6),
            (Micros(90_000_000_000), 7),
        ];
        let whole = Histogram { count: 25, sum: Micros(1_500_000), max: Micros(1), buckets };
        let queue = |name: &str| QueueFigures {
            queue: Name::new(name).expect("a name"),
            latency: Latencies { whole: Some(whole.clone()), ..Latencies::default() },
            groups: vec![GroupFigures::default()],
            pipes: vec![PipeInfo {
                name: "any \"name\"".to_owned(),
                lag: Some(Count(7)),
                ..PipeInfo::default()
            }],
            ..QueueFigures::default()
        };
        let server = ServerFigures { version: "1\"\\\n2".to_owned(), ..ServerFigures::default() };
        let text = text(&server, &[queue("a"), queue("b.c-d")]);
        let parsed = parse_prometheus(&text).unwrap_or_else(|error| panic!("{error:?}\n{text}"));
        let lag = &parsed.families["mq_pipe_lag_messages"];
        assert_eq!(lag.iter_samples().count(), 2, "{text}");
        let family = &parsed.families["mq_queue_whole_latency_seconds"];
        let samples: Vec<_> = family.iter_samples().collect();
        assert_eq!(samples.len(), 2, "{text}");
        for sample in samples {
            let PrometheusValue::Histogram(histogram) = &sample.value else { panic!("{text}") };
            assert_eq!(histogram.count, Some(25));
            assert_eq!(histogram.sum.map(|sum| sum.as_f64()), Some(1.5));
            let below = |bound: f64| {
                let bucket = histogram.buckets.iter().find(|b| b.upper_bound == bound);
                bucket.expect("a bucket").count.as_f64()
            };
            assert_eq!(below(0.0001), 3.0);
            assert_eq!(below(0.005), 12.0);
            assert_eq!(below(86_400.0), 18.0);
            assert_eq!(below(f64::INFINITY), 25.0);
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_down() {
        let text = text_without_server();
        assert!(parse_prometheus(&text).is_ok() && text.ends_with("mq_up 0\n"), "{text}");
    }
}
