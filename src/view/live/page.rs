//! The page of one queue: its latencies, its groups with their accounts, the pipes that write to it,
//! who sends and receives, its settings.

use super::{Detail, Line, Screen, alarm};
use crate::cli;
use crate::units::{DEFAULT_GROUP, Micros, WallTime};
use crate::view::canvas::{Colour, Style};
use crate::view::columns::trend_style;
use crate::view::format;
use crate::view::latency::{Percentiles, STAGES, within};
use crate::view::track::Trend;
use crate::wire::PipeFigures;
use crate::wire::stat::{ClientFigures, GroupFigures, QueueFigures, Role};

impl Screen {
    /// The page of the queue that is open.
    pub(super) fn page_lines(&self, width: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        let Some(queue) = self.open() else { return lines };
        let mut title = Line::head(queue.as_str());
        let Some(detail) = &self.detail else {
            lines.push(title);
            let text = match (self.model.row(queue), self.is_paused()) {
                (None, false) if self.model.server().is_some() => "there is no such queue now",
                (_, true) => "paused; p goes on",
                _ => "asking the server ...",
            };
            lines.extend([Line::default(), Line::plain(text)]);
            return lines;
        };
        let now = self.model.now();
        let figures = detail.track.now();
        let trend = self.model.row(queue).map_or(Trend::Steady, |row| row.trend);
        title.push(trend_text(trend), trend_style(trend));
        lines.push(title);
        self.push_trouble(&mut lines, figures, width);
        lines.push(Line::default());
        self.push_latencies(&mut lines, detail, now, width);
        lines.push(Line::default());
        push_groups(&mut lines, &figures.groups, now);
        lines.push(Line::default());
        if !figures.pipes.is_empty() {
            self.push_pipes(&mut lines, detail, width);
            lines.push(Line::default());
        }
        self.push_clients(&mut lines, detail, now, width);
        lines.push(Line::default());
        push_facts(&mut lines, figures, now);
        lines
    }

    fn push_trouble(&self, lines: &mut Vec<Line>, figures: &QueueFigures, width: usize) {
        let red = Style::of(Colour::Red);
        if let Some(trouble) = &figures.trouble {
            let text = format::printable(trouble, self.setting.glyphs.is_utf8);
            let mut rest = format!("It stands still: {text}");
            while !rest.is_empty() {
                let cut = rest.char_indices().nth(width - 2).map_or(rest.len(), |(at, _)| at);
                let tail = rest.split_off(cut);
                lines.push(Line(vec![(std::mem::replace(&mut rest, tail), red)]));
            }
        }
        for group in figures.groups.iter().filter(|group| group.stuck) {
            let text = format!(
                "The group {} is stuck: too many messages are settled out of order.",
                group.group
            );
            lines.push(Line(vec![(text, red)]));
        }
    }

    fn push_latencies(&self, lines: &mut Vec<Line>, detail: &Detail, now: WallTime, width: usize) {
        let track = &detail.track;
        let base = self.model.base_of(track, now);
        let stages: Vec<(&str, Option<Percentiles>)> = STAGES
            .iter()
            .map(|(name, of)| {
                let then = base.and_then(|base| of(&base.latency));
                let histogram = of(&track.now().latency).map(|all| within(all, then));
                (*name, histogram.as_ref().and_then(Percentiles::of))
            })
            .collect();
        let longest = stages.iter().filter_map(|(_, found)| *found).map(|found| found.mean.0).max();
        let longest = longest.unwrap_or(0).max(1);
        let bar_width = width.saturating_sub(58).clamp(8, 80);
        let mut head = Line::head(format!("{:<9}", "LATENCY"));
        let names = ["MESSAGES", "MEAN", "P50", "P90", "P99", "P99.9", "MAX"];
        let columns: String = names
            .iter()
            .zip([9, 6, 6, 6, 6, 6, 6])
            .fold(String::new(), |line, (name, width)| format!("{line}{name:>width$}"));
        head.push(columns, Style::BOLD);
        head.push(format!("  {}", self.page_window_text(detail)), Style::DIM);
        lines.push(head);
        for (name, found) in stages {
            let mut line = Line::default();
            let strong = if name == "whole" { Style::BOLD } else { Style::PLAIN };
            line.push(format!("{name:<9}"), strong);
            match found {
                None => line.push(format!("{:>9}", "-"), Style::DIM),
                Some(found) => {
                    line.push(format!("{:>9}", format::count(found.count)), Style::PLAIN);
                    let all = [found.mean, found.p50, found.p90, found.p99, found.p999, found.max];
                    for value in all {
                        line.push(format!("{:>6}", format::latency(value)), strong);
                    }
                    let part = found.mean.0 as f64 / longest as f64;
                    let bar = self.setting.glyphs.bar(part, bar_width);
                    line.push(format!("  {bar}"), Style::of(Colour::Cyan));
                }
            }
            lines.push(line);
        }
    }

    /// The pipes that write here: how far behind each is, and what it has made of what.
    fn push_pipes(&self, lines: &mut Vec<Line>, detail: &Detail, width: usize) {
        let track = &detail.track;
        let glyphs = &self.setting.glyphs;
        let shown = |text: &str| format::printable(text, glyphs.is_utf8);
        let pipes = &track.now().pipes;
        let longest = pipes.iter().map(|pipe| shown(&pipe.name).chars().count()).max();
        let name = longest.unwrap_or(0).clamp(4, (width / 5).clamp(16, 60));
        lines.push(Line::head(format!(
            "{:<name$}{:>7}{:>8}{:>8}{:>8}{:>6}{:>6}{:>6}{:>6}",
            "PIPE", "LAG", "READ/s", "WRIT/s", "FILTER", "OPEN", "LATE", "RETRY", "DEAD"
        )));
        let before = &track.before().pipes;
        let apart = detail.seconds(self.setting.step);
        for pipe in pipes {
            let earlier = before.iter().find(|other| other.name == pipe.name);
            let since = |of: fn(&PipeFigures) -> u64| {
                let then = earlier.map_or(of(&pipe.figures), |earlier| of(&earlier.figures));
                of(&pipe.figures).saturating_sub(then) as f64 / apart
            };
            let filter = (since(|figures| figures.filter_us.0) / 1e4).round();
            let PipeFigures { open_windows, late, untimed, retries, dead, .. } = pipe.figures;
            let lag = pipe.lag.map_or_else(|| "-".to_owned(), |lag| format::count(lag.0));
            let mut line = Line::default();
            let label = format::cut(&shown(&pipe.name), name, glyphs.cut);
            line.push(
                format!(
                    "{label:<name$}{lag:>7}{:>8}{:>8}{:>8}{:>6}",
                    format::rate(since(|figures| figures.read)),
                    format::rate(since(|figures| figures.written)),
                    format!("{filter} %"),
                    format::short_count(open_windows),
                ),
                Style::PLAIN,
            );
            for (count, colour) in
                [(late + untimed, Colour::Yellow), (retries, Colour::Yellow), (dead, Colour::Red)]
            {
                line.push(format!("{:>6}", format::short_count(count)), alarm(count, colour));
            }
            lines.push(line);
            let work = format!("  from {}: {}", shown(&pipe.src), work_text(&pipe.figures));
            let work = format::cut(&work, width.saturating_sub(2), glyphs.cut);
            lines.push(Line(vec![(work, Style::DIM)]));
        }
    }

    fn push_clients(&self, lines: &mut Vec<Line>, detail: &Detail, now: WallTime, width: usize) {
        let track = &detail.track;
        let clients = &track.now().clients;
        if clients.is_empty() {
            lines.push(Line::head("CLIENTS"));
            lines.push(Line(vec![("nobody sends and nobody receives".to_owned(), Style::DIM)]));
            return;
        }
        lines.push(Line::head(format!(
            "{:<9}{:>8}  {:<10}{:>8}{:>9}{:>7}{:>7}  {}",
            "CLIENT", "PID", "USER", "MSGS/s", "MESSAGES", "UNACK", "SINCE", "PROGRAM, GROUP"
        )));
        let before = &track.before().clients;
        let apart = detail.seconds(self.setting.step);
        for client in clients {
            let earlier = before.iter().find(|other| is_same(other, client));
            let more =
                client.messages.0 - earlier.map_or(0, |c| c.messages.0.min(client.messages.0));
            let rate = if earlier.is_some() { more as f64 / apart } else { 0.0 };
            lines.push(self.client_line(client, rate, now, width));
        }
    }

    fn client_line(&self, client: &ClientFigures, rate: f64, now: WallTime, width: usize) -> Line {
        let is_utf8 = self.setting.glyphs.is_utf8;
        let (role, colour) = match client.role {
            Role::Sender => ("sender", Colour::Cyan),
            Role::Receiver => ("receiver", Colour::Green),
            Role::Peeker => ("peeker", Colour::Plain),
        };
        let user = client.uid.map_or_else(|| "?".to_owned(), self.setting.user);
        let user = format::cut(&format::printable(&user, is_utf8), 9, self.setting.glyphs.cut);
        let pid = if client.pid == 0 { "?".to_owned() } else { client.pid.to_string() };
        let mut line = Line::default();
        line.push(format!("{role:<9}"), Style::of(colour));
        line.push(
            format!(
                "{pid:>8}  {user:<10}{:>8}{:>9}{:>7}{:>7}  ",
                format::rate(rate),
                format::count(client.messages.0),
                format::count(client.unacked.0),
                format::age(since(client.since, now)),
            ),
            Style::PLAIN,
        );
        let mut what = format::printable(&client.tool, is_utf8);
        if !client.command.is_empty() {
            what.push_str(&format!(" -- {}", format::printable(&client.command, is_utf8)));
        }
        if let Some(group) = client.group.as_ref().filter(|group| group.as_str() != DEFAULT_GROUP) {
            what.push_str(&format!(", {group}"));
        }
        line.push(
            format::cut(&what, width.saturating_sub(63), self.setting.glyphs.cut),
            Style::PLAIN,
        );
        line
    }
}

/// Whether two looks are at the same client.
fn is_same(a: &ClientFigures, b: &ClientFigures) -> bool {
    (a.pid, a.role, a.since, &a.group) == (b.pid, b.role, b.since, &b.group)
}

fn since(time: WallTime, now: WallTime) -> Micros {
    Micros(now.0.saturating_sub(time.0))
}

fn trend_text(trend: Trend) -> String {
    match trend {
        Trend::Steady => String::new(),
        Trend::Draining(eta) => format!("  shrinks, empty in {}", format::age(eta)),
        Trend::Growing => "  grows".to_owned(),
        Trend::Ageing => "  nobody takes its oldest message".to_owned(),
        Trend::Stuck => "  stands still".to_owned(),
    }
}

/// The groups: what is where now, and what became of all that was stored for them.
fn push_groups(lines: &mut Vec<Line>, groups: &[GroupFigures], now: WallTime) {
    if groups.is_empty() {
        lines.push(Line::head("GROUPS"));
        lines.push(Line(vec![("none: nobody has received yet".to_owned(), Style::DIM)]));
        return;
    }
    let name =
        groups.iter().map(|group| group.group.as_str().len()).max().unwrap_or(0).clamp(5, 24);
    lines.push(Line::head(format!(
        "{:<name$}{:>7}{:>7}{:>6}{:>6}{:>7}",
        "GROUP", "READY", "UNACK", "REST", "RECV", "AGE"
    )));
    for group in groups {
        let mut line = Line::default();
        line.push(format!("{:<name$}", format::cut(group.group.as_str(), name, '~')), Style::PLAIN);
        let age = group.oldest.map(|time| format::age(since(time, now)));
        line.push(
            format!(
                "{:>7}{:>7}{:>6}{:>6}{:>7}",
                format::count(group.ready.0),
                format::count(group.unacked.0),
                format::short_count(group.resting.0 + group.dying.0),
                format::short_count(group.receivers),
                age.unwrap_or_else(|| "-".to_owned()),
            ),
            Style::PLAIN,
        );
        lines.push(line);
        lines.push(account_line(group, name));
    }
}

/// What a pipe has done so far.
fn work_text(figures: &PipeFigures) -> String {
    let PipeFigures { batches, read, written, filter_us, .. } = *figures;
    format!(
        "{} read in {} batches, {} written, {} in the filter",
        format::grouped(read),
        format::grouped(batches),
        format::grouped(written),
        format::latency(filter_us),
    )
}

/// The sum that must add up.
fn account_line(group: &GroupFigures, name: usize) -> Line {
    let account = &group.account;
    let mut line = Line::default();
    line.push(format!("{:<name$}  {} stored", "", format::grouped(account.stored.0)), Style::DIM);
    let parts = [
        ("acked", account.acked.0, Colour::Plain, true),
        ("dead", account.dead.0, Colour::Red, false),
        ("expired", account.expired.0, Colour::Yellow, false),
        ("dropped", account.dropped.0, Colour::Yellow, false),
        ("purged", account.purged.0, Colour::Plain, false),
        ("lost", account.lost.0, Colour::Red, false),
        ("waiting", group.unsettled().0, Colour::Plain, true),
    ];
    let mut sign = " = ";
    for (what, count, colour, is_always) in parts {
        if count > 0 || is_always {
            line.push(sign, Style::DIM);
            let style = if colour == Colour::Plain { Style::PLAIN } else { alarm(count, colour) };
            line.push(format::grouped(count), style);
            line.push(format!(" {what}"), Style::DIM);
            sign = " + ";
        }
    }
    line
}

fn push_facts(lines: &mut Vec<Line>, figures: &QueueFigures, now: WallTime) {
    lines.push(Line::head("SETTINGS"));
    if let Some(settings) = &figures.settings {
        lines.push(Line::plain(cli::settings_flags(settings).join(" ")));
    }
    // Of a queue that could not be opened not even that is known.
    if figures.created.0 > 0 {
        let age = format::age(since(figures.created, now));
        let mut made = format!("made {} ({age} ago)", cli::rfc3339(figures.created));
        if figures.disk_bytes.0 > 0 {
            made.push_str(&format!(", {}B on disk", format::bytes(figures.disk_bytes.0 as f64)));
        }
        lines.push(Line::plain(made));
        lines.push(Line::plain(format!("id {}", figures.id)));
    }
    if let (Some(oldest), Some(group)) = (figures.oldest, &figures.oldest_group) {
        let age = format::age(since(oldest, now));
        lines.push(Line::plain(format!(
            "its oldest message, {age} old, is held by the group {group}"
        )));
    }
}
