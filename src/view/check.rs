//! A judgement for monitoring, as its plug-ins give one: a line of text with figures behind a bar,
//! and a severity that is the exit status.
//!
//! Pure. What is not asked for is not judged, but a queue or group that stands still, which is
//! always critical.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::format;
use crate::units::{Micros, Name, WallTime};
use crate::wire::QueuePattern;
use crate::wire::stat::{self, QueueFigures, Slice};

/// Queues that the text names, and of which there are figures, at most: a line must stay one that
/// monitoring can take.
const NAMED_MAX: usize = 5;
/// See [`NAMED_MAX`].
const FIGURES_MAX: usize = 32;

/// Minutes of history that latencies are looked at in.
const LATENCY_MINUTES: u64 = 2;
/// Minutes of history that dead letters are counted in.
pub const HISTORY_MINUTES: u32 = 60;

/// How bad it is; the number is the exit status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// All is well.
    #[default]
    Ok = 0,
    /// Look at it.
    Warning = 1,
    /// Look at it now.
    Critical = 2,
    /// It cannot be told.
    Unknown = 3,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Ok => "OK",
            Severity::Warning => "WARNING",
            Severity::Critical => "CRITICAL",
            Severity::Unknown => "UNKNOWN",
        }
    }
}

/// Two levels: at which it is a warning, at which critical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Beyond this a warning.
    pub warn: u64,
    /// Beyond this critical.
    pub crit: u64,
}

/// Reads `WARN,CRIT`, for clap.
///
/// # Errors
/// How to write it.
pub fn levels(
    text: &str,
    read: fn(&str) -> Result<u64, String>,
    is_least: bool,
) -> Result<Levels, String> {
    let Some((warn, crit)) = text.split_once(',') else {
        return Err("two levels are wanted, as in WARN,CRIT".to_owned());
    };
    let levels = Levels { warn: read(warn.trim())?, crit: read(crit.trim())? };
    match (is_least, levels.warn.cmp(&levels.crit)) {
        (false, std::cmp::Ordering::Greater) => {
            Err("the warning must not come after what is critical: WARN,CRIT".to_owned())
        }
        (true, std::cmp::Ordering::Less) => {
            Err("of least numbers the warning is the larger one: WARN,CRIT".to_owned())
        }
        _ => Ok(levels),
    }
}

/// What is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The age of the oldest message, in microseconds.
    pub age: Option<Levels>,
    /// Messages ready.
    pub ready: Option<Levels>,
    /// Messages that receivers hold.
    pub unacked: Option<Levels>,
    /// The whole latency that 99 % of the last minutes' messages did not exceed, in microseconds.
    pub latency: Option<Levels>,
    /// Dead letters within the last hour.
    pub dead: Option<Levels>,
    /// The least number of receivers.
    pub receivers: Option<Levels>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How bad it is.
    pub severity: Severity,
    /// The line, without its end.
    pub line: String,
}

/// One figure of a queue.
struct Figure {
    name: &'static str,
    value: u64,
    levels: Option<Levels>,
    is_least: bool,
    is_time: bool,
}

impl Figure {
    fn severity(&self) -> Severity {
        let Some(levels) = self.levels else { return Severity::Ok };
        let is_beyond = |level: u64| match self.is_least {
            true => self.value < level,
            false => self.value > level,
        };
        match (is_beyond(levels.warn), is_beyond(levels.crit)) {
            (_, true) => Severity::Critical,
            (true, _) => Severity::Warning,
            _ => Severity::Ok,
        }
    }

    fn shown(&self, value: u64) -> String {
        if self.is_time { format::latency(Micros(value)) } else { value.to_string() }
    }

    /// What is wrong with it, in words.
    fn complaint(&self) -> Option<String> {
        let levels = self.levels.filter(|_| self.severity() > Severity::Ok)?;
        let level = if self.severity() == Severity::Critical { levels.crit } else { levels.warn };
        let than = if self.is_least { "below" } else { "over" };
        Some(format!("{} {} ({than} {})", self.name, self.shown(self.value), self.shown(level)))
    }

    /// As performance data.
    fn performance(&self, queue: &str) -> String {
        let number = |value: u64| {
            if self.is_time { format!("{}", value as f64 / 1e6) } else { value.to_string() }
        };
        let unit = if self.is_time { "s" } else { "" };
        let level = |of: fn(Levels) -> u64| {
            let colon = if self.is_least { ":" } else { "" };
            self.levels.map_or_else(String::new, |levels| format!("{}{colon}", number(of(levels))))
        };
        format!(
            "'{queue} {}'={}{unit};{};{};0",
            self.name,
            number(self.value),
            level(|levels| levels.warn),
            level(|levels| levels.crit)
        )
    }
}

/// The queues that were asked for by name in `wanted` and are not among `there`, for a sentence.
#[must_use]
pub fn missing<'a>(there: impl Iterator<Item = &'a Name>, wanted: &[QueuePattern]) -> String {
    let there: BTreeSet<&Name> = there.collect();
    let wanted = wanted.iter().filter_map(QueuePattern::as_name);
    let missing = wanted.filter(|name| !there.contains(name)).map(|name| name.to_string());
    missing.collect::<Vec<_>>().join(", ")
}

/// Judges the figures of the queues that were asked for with `wanted`.
#[must_use]
pub fn judge(
    queues: &[QueueFigures],
    now: WallTime,
    wanted: &[QueuePattern],
    limits: &Limits,
) -> Verdict {
    let missing = missing(queues.iter().map(|figures| &figures.queue), wanted);
    if !missing.is_empty() {
        return unknown(&format!("there is no queue {missing}"));
    }
    if let Some((queue, what)) = queues.iter().find_map(|queue| untold(queue, now, limits)) {
        return unknown(&format!("{queue}: its engine does not tell {what}"));
    }
    let mut judged: Vec<(Severity, Vec<String>, &QueueFigures)> = queues
        .iter()
        .map(|figures| {
            let (severity, complaints) = judge_queue(figures, now, limits);
            (severity, complaints, figures)
        })
        .collect();
    // The worst first; queues come by name.
    judged.sort_by_key(|(severity, ..)| std::cmp::Reverse(*severity));
    let severity = judged.first().map_or(Severity::Ok, |(severity, ..)| *severity);
    let bad: Vec<_> = judged.iter().filter(|(severity, ..)| *severity > Severity::Ok).collect();
    let mut line = format!("MQ {}: ", severity.word());
    if bad.is_empty() {
        line.push_str(&all_well(queues, now));
    }
    for (at, (_, complaints, figures)) in bad.iter().take(NAMED_MAX).enumerate() {
        let before = if at == 0 { "" } else { "; " };
        write!(line, "{before}{}: {}", figures.queue, complaints.join(", ")).expect("a string");
    }
    if bad.len() > NAMED_MAX {
        write!(line, "; and {} more", bad.len() - NAMED_MAX).expect("a string takes all");
    }
    let figures = judged.iter().take(FIGURES_MAX).flat_map(|(_, _, queue)| {
        let figures = figures(queue, now, limits);
        figures.into_iter().map(|figure| figure.performance(queue.queue.as_str()))
    });
    for (at, figure) in figures.enumerate() {
        line.push_str(if at == 0 { " | " } else { " " });
        line.push_str(&figure);
    }
    Verdict { severity, line }
}

/// The verdict when nothing can be said.
#[must_use]
pub fn unknown(why: &str) -> Verdict {
    Verdict { severity: Severity::Unknown, line: format!("MQ UNKNOWN: {}", one_line(why)) }
}

/// What is to be judged of a queue and is not known.
fn untold<'a>(
    queue: &'a QueueFigures,
    now: WallTime,
    limits: &Limits,
) -> Option<(&'a Name, &'static str)> {
    let figures = all_figures(queue, now, limits);
    let untold =
        figures.iter().find(|figure| figure.levels.is_some() && !is_told(queue, figure))?;
    Some((&queue.queue, untold.name))
}

fn is_told(queue: &QueueFigures, figure: &Figure) -> bool {
    queue.knows(match figure.name {
        "oldest" => stat::unknown::AGE,
        "p99" => "latency",
        "dead" => "counted",
        name => name,
    })
}

fn judge_queue(queue: &QueueFigures, now: WallTime, limits: &Limits) -> (Severity, Vec<String>) {
    let figures = figures(queue, now, limits);
    let mut severity = figures.iter().map(Figure::severity).max().unwrap_or_default();
    let mut complaints: Vec<String> = Vec::new();
    if let Some(trouble) = &queue.trouble {
        complaints.push(format!("stands still, {}", one_line(trouble)));
    }
    for group in queue.groups.iter().filter(|group| group.stuck) {
        complaints.push(format!("the group {} is stuck", group.group));
    }
    if !complaints.is_empty() {
        severity = Severity::Critical;
    }
    complaints.extend(figures.iter().filter_map(Figure::complaint));
    (severity, complaints)
}

fn figures(queue: &QueueFigures, now: WallTime, limits: &Limits) -> Vec<Figure> {
    let mut figures = all_figures(queue, now, limits);
    figures.retain(|figure| is_told(queue, figure));
    figures
}

fn all_figures(queue: &QueueFigures, now: WallTime, limits: &Limits) -> Vec<Figure> {
    let age = queue.oldest.map_or(0, |oldest| now.0.saturating_sub(oldest.0));
    let figure = |name, value, levels| {
        let is_time = matches!(name, "oldest" | "p99");
        Figure { name, value, levels, is_least: name == "receivers", is_time }
    };
    let mut figures = vec![
        figure("ready", queue.ready.0, limits.ready),
        figure("unacked", queue.unacked.0, limits.unacked),
        figure("oldest", age, limits.age),
        figure("receivers", queue.receivers, limits.receivers),
    ];
    if limits.latency.is_some() {
        let since = now.0.saturating_sub(LATENCY_MINUTES * 60_000_000);
        let newest = queue.minutes.iter().filter(|slice| slice.at.0 >= since);
        let p99 = newest.filter_map(|slice| slice.whole).map(|(_, p99)| p99.0).max();
        figures.push(figure("p99", p99.unwrap_or(0), limits.latency));
    }
    if limits.dead.is_some() {
        let since = now.0.saturating_sub(u64::from(HISTORY_MINUTES) * 60_000_000);
        let newest = queue.minutes.iter().filter(|slice: &&Slice| slice.at.0 >= since);
        figures.push(figure("dead", newest.map(|slice| slice.dead.0).sum(), limits.dead));
    }
    figures
}

fn all_well(queues: &[QueueFigures], now: WallTime) -> String {
    let ready: u64 = queues.iter().map(|queue| queue.ready.0).sum();
    let what = match queues {
        [] => return "no queue".to_owned(),
        [queue] => queue.queue.to_string(),
        queues => format!("{} queues", queues.len()),
    };
    let oldest = queues.iter().filter_map(|queue| queue.oldest).min();
    let oldest = oldest.map_or_else(String::new, |oldest| {
        format!(", oldest {}", format::age(Micros(now.0.saturating_sub(oldest.0))))
    });
    if !queues.iter().all(|queue| queue.knows("ready")) {
        return what;
    }
    format!("{what}, {ready} ready{oldest}")
}

/// A text that does not end the line, nor its first part.
fn one_line(text: &str) -> String {
    format::printable(text, true).replace('|', "/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Count, Name};
    use crate::wire::stat::GroupFigures;

    const NOW: WallTime = WallTime(10_000_000_000);

    fn queue(name: &str, ready: u64, age: u64) -> QueueFigures {
        QueueFigures {
            queue: Name::new(name).expect("a name"),
            ready: Count(ready),
            oldest: (ready > 0).then_some(WallTime(NOW.0 - age * 1_000_000)),
            receivers: 1,
            ..QueueFigures::default()
        }
    }

    fn limits() -> Limits {
        Limits {
            ready: Some(Levels { warn: 10, crit: 100 }),
            age: Some(Levels { warn: 60_000_000, crit: 600_000_000 }),
            ..Limits::default()
        }
    }

    fn judged(queues: &[QueueFigures], limits: &Limits) -> (Severity, String) {
        let verdict = judge(queues, NOW, &[], limits);
        (verdict.severity, verdict.line)
    }

    #[test]
    fn levels_are_passed_not_reached() {
        for (ready, severity) in [
            (10, Severity::Ok),
            (11, Severity::Warning),
            (100, Severity::Warning),
            (101, Severity::Critical),
        ] {
            assert_eq!(judged(&[queue("q", ready, 1)], &limits()).0, severity, "{ready}");
        }
        let least = Limits { receivers: Some(Levels { warn: 2, crit: 1 }), ..Limits::default() };
        assert_eq!(judged(&[queue("q", 0, 0)], &least).0, Severity::Warning);
    }

    #[test]
    fn the_line_is_that_of_a_plugin() {
        let (_, line) = judged(&[queue("jobs", 3, 4)], &limits());
        assert_eq!(
            line,
            "MQ OK: jobs, 3 ready, oldest 4s | 'jobs ready'=3;10;100;0 'jobs unacked'=0;;;0 \
             'jobs oldest'=4s;60;600;0 'jobs receivers'=1;;;0"
        );
        let (_, line) = judged(&[queue("a", 3, 4), queue("b", 50, 700)], &limits());
        assert!(
            line.starts_with(
                "MQ CRITICAL: b: ready 50 (over 10), oldest 11m (over 10m) | 'b ready'=50;"
            ),
            "{line}"
        );
    }

    #[test]
    fn what_stands_still_is_critical_whatever_is_asked() {
        let trouble = Some("a | b\nsecond line".to_owned());
        let (severity, line) = judged(&[QueueFigures { trouble, ..queue("q", 0, 0) }], &limits());
        assert_eq!(severity, Severity::Critical);
        assert!(line.starts_with("MQ CRITICAL: q: stands still, a / b?second line | "), "{line}");
        let groups = vec![GroupFigures { stuck: true, ..GroupFigures::default() }];
        let stuck = QueueFigures { groups, ..queue("q", 0, 0) };
        assert_eq!(judged(&[stuck], &Limits::default()).0, Severity::Critical);
    }

    #[test]
    fn a_queue_that_is_not_there_is_unknown_and_a_pattern_may_match_none() {
        let wanted = [QueuePattern("jobs".to_owned())];
        let verdict = judge(&[], NOW, &wanted, &limits());
        assert_eq!(verdict.severity, Severity::Unknown);
        assert_eq!(verdict.line, "MQ UNKNOWN: there is no queue jobs");
        let wanted = [QueuePattern("*.dead".to_owned())];
        assert_eq!(judge(&[], NOW, &wanted, &limits()).severity, Severity::Ok);
    }

    #[test]
    fn the_line_stays_short_enough() {
        let queues: Vec<_> = (0..1000).map(|n| queue(&format!("q{n}"), 1000, 1)).collect();
        let (_, line) = judged(&queues, &limits());
        assert!(line.contains("; and 995 more | "), "{line}");
        assert!(line.len() < 8 << 10, "{}", line.len());
    }

    #[test]
    fn levels_read_as_written() {
        let read = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
        assert_eq!(levels("1, 2", read, false), Ok(Levels { warn: 1, crit: 2 }));
        for bad in ["1", "2,1", "a,1", "1,2,3", ","] {
            assert!(levels(bad, read, false).is_err(), "{bad}");
        }
        assert!(levels("2,1", read, true).is_ok());
        assert!(levels("1,2", read, true).is_err());
    }
}
