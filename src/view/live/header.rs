//! What stands above everything: whose store it is, and the three measures, throughput, latency
//! and reliability, of all queues or of the one whose page is open.

use super::{Link, Screen, alarm};
use crate::units::Micros;
use crate::view::canvas::{Canvas, Colour, Style};
use crate::view::columns::SPAN;
use crate::view::format;
use crate::view::latency::Percentiles;
use crate::view::model::Row;
use crate::view::track::{Rates, Trend};
use crate::wire::stat::Counted;

/// Where values begin, behind what names them.
const VALUES: usize = 13;

/// The columns that messages and bytes in a second take, with a space behind them.
const WAY_WIDTH: usize = 21;

/// Below this height only the most important lines are there.
const HEIGHT_FULL: usize = 16;

/// What the measures are of.
struct Measured {
    rates: Rates,
    latency: Option<Percentiles>,
    ever: Counted,
    ready: u64,
    bytes: u64,
    unacked: u64,
    delayed: u64,
    age: Option<Micros>,
    /// The colour of the backlog.
    style: Style,
}

/// How many of the messages whose fate is known are stored, and of how many; see
/// [`reliability`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reliability {
    /// Messages that are, or were, stored.
    pub saved: u64,
    /// Messages that were announced and are not on their way any more.
    pub total: u64,
    /// Messages that are on their way.
    pub on_the_way: u64,
}

/// What became of what was announced. A message that was there already is saved; one that a power
/// loss took is not.
#[must_use]
pub fn reliability(counted: &Counted) -> Reliability {
    let stored = counted.stored.0 + counted.there_already.0;
    let total = stored + counted.refused.0;
    Reliability {
        saved: stored.saturating_sub(counted.lost.0),
        total,
        on_the_way: counted.announced.0.saturating_sub(total),
    }
}

impl Screen {
    /// Paints the lines above; returns the line on which the rest begins.
    pub(super) fn draw_header(&self, canvas: &mut Canvas) -> usize {
        self.draw_title(canvas);
        let measured = self.measured();
        let mut y = 1;
        self.draw_throughput(canvas, y);
        y += 1;
        if canvas.height() >= HEIGHT_FULL {
            self.draw_backlog(canvas, y, &measured);
            y += 1;
        }
        self.draw_latency(canvas, y, measured.latency.as_ref());
        y += 1;
        if canvas.height() >= HEIGHT_FULL {
            draw_reliability(canvas, y, &measured.ever);
            y += 1;
        }
        self.draw_notice(canvas, y);
        y + 1
    }

    fn draw_title(&self, canvas: &mut Canvas) {
        let dot = self.setting.glyphs.dot;
        let mut facts = Vec::new();
        if let Some(server) = self.model.server() {
            let totals = self.model.totals();
            facts.push(match totals.queues {
                1 => "1 queue".to_owned(),
                queues => format!("{} queues", format::grouped(queues as u64)),
            });
            if totals.marked > 0 {
                facts.push(format!("{} marked", totals.marked));
            }
            let up = Micros(server.now.0.saturating_sub(server.started.0));
            facts.push(format!("mq-serve {} up {}", server.pid, format::age(up)));
        }
        let facts = facts.join(&format!(" {dot} "));
        let end = canvas.width() - 1;
        let room = end.saturating_sub(facts.chars().count() + 6);
        let store = format::printable(&self.setting.store, self.setting.glyphs.is_utf8);
        let x = canvas.put(1, 0, "mq ", Style::BOLD);
        canvas.put(x, 0, &cut_left(&store, room, self.setting.glyphs.cut), Style::DIM);
        canvas.put_right(end, 0, &facts, Style::DIM);
    }

    fn measured(&self) -> Measured {
        if let Some(row) = self.open().and_then(|name| self.model.row(name)) {
            return of_row(row);
        }
        let totals = self.model.totals();
        let is_marked = totals.marked > 0;
        Measured {
            rates: totals.rates,
            latency: totals.latency,
            ever: totals.ever,
            ready: totals.ready,
            bytes: totals.present_bytes,
            unacked: totals.unacked,
            delayed: totals.delayed,
            age: totals.age,
            style: if is_marked { Style::of(Colour::Yellow) } else { Style::PLAIN },
        }
    }

    /// One value of each step, of the queue whose page is open or of all together.
    fn line_of(&self, of: impl Fn(&crate::view::track::Step) -> f64, width: usize) -> String {
        let mut sums = vec![0.0; SPAN.max(width)];
        let all = self.model.tracks();
        let tracks = all.filter(|track| self.open().is_none_or(|open| *open == track.now().queue));
        for track in tracks {
            for (sum, step) in sums.iter_mut().rev().zip(track.steps().rev()) {
                *sum += of(step);
            }
        }
        self.setting.glyphs.condensed(&sums, SPAN, width)
    }

    fn draw_throughput(&self, canvas: &mut Canvas, y: usize) {
        canvas.put(1, y, "throughput", Style::DIM);
        let half = (canvas.width() - VALUES) / 2;
        self.draw_way(canvas, VALUES, y, Colour::Cyan, "in", |rates| {
            (rates.stored, rates.stored_bytes)
        });
        self.draw_way(canvas, VALUES + half, y, Colour::Green, "out", |rates| {
            (rates.delivered, rates.delivered_bytes)
        });
    }

    /// Messages and bytes in a second, and the line of the messages, from column `x` on.
    fn draw_way(
        &self,
        canvas: &mut Canvas,
        x: usize,
        y: usize,
        colour: Colour,
        name: &str,
        of: impl Fn(&Rates) -> (f64, f64),
    ) {
        let (messages, bytes) = of(&self.measured().rates);
        let is_idle = format::rate(messages) == "0";
        let quiet = |style| if is_idle { Style::DIM } else { style };
        canvas.put(x, y, name, Style::DIM);
        let strong = Style { bold: true, ..Style::of(colour) };
        canvas.put_right(x + 11, y, &format!("{}/s", format::rate(messages)), quiet(strong));
        // Where both ways leave no room for bytes, messages say enough.
        if (canvas.width() - VALUES) / 2 < WAY_WIDTH {
            return;
        }
        let bytes = format!("{}B/s", format::bytes(bytes));
        canvas.put_right(x + 20, y, &bytes, quiet(Style::PLAIN));
        let width = ((canvas.width() - VALUES) / 2).saturating_sub(23);
        let line = self.line_of(|step| of(&step.rates).0, width);
        canvas.put(x + 21, y, &line, Style::of(colour));
    }

    fn draw_backlog(&self, canvas: &mut Canvas, y: usize, measured: &Measured) {
        canvas.put(1, y, "backlog", Style::DIM);
        let mut x = canvas.put(VALUES, y, "ready ", Style::DIM);
        let ready = format::grouped(measured.ready);
        x = canvas.put(x, y, &ready, Style { bold: measured.ready > 0, ..measured.style });
        x = canvas.put(x, y, &format!(" ({}B)", format::bytes(measured.bytes as f64)), Style::DIM);
        let mut fact = |name: &str, value: &str| {
            x = canvas.put(x + 2, y, name, Style::DIM);
            x = canvas.put(x + 1, y, value, Style::PLAIN);
        };
        fact("unacked", &format::grouped(measured.unacked));
        if measured.delayed > 0 {
            fact("delayed", &format::grouped(measured.delayed));
        }
        if let Some(age) = measured.age {
            fact("oldest", &format::age(age));
        }
        // As the lines of what goes out above it.
        let begin = VALUES + (canvas.width() - VALUES) / 2 + 21;
        if x + 2 <= begin {
            let width = ((canvas.width() - VALUES) / 2).saturating_sub(23);
            let line = self.line_of(|step| step.ready, width);
            canvas.put(begin, y, &line, measured.style);
        }
    }

    fn draw_latency(&self, canvas: &mut Canvas, y: usize, latency: Option<&Percentiles>) {
        canvas.put(1, y, "latency", Style::DIM);
        let window = self.window_text();
        let mut x = VALUES;
        match latency {
            None => {
                canvas.put(x, y, "nothing acknowledged", Style::DIM);
            }
            Some(latency) => {
                for (name, value) in [
                    ("p50", latency.p50),
                    ("p90", latency.p90),
                    ("p99", latency.p99),
                    ("p99.9", latency.p999),
                    ("max", latency.max),
                ] {
                    x = canvas.put(x, y, name, Style::DIM);
                    let is_main = matches!(name, "p50" | "p99");
                    let style = if is_main { Style::BOLD } else { Style::PLAIN };
                    x = canvas.put(x + 1, y, &format::latency(value), style) + 2;
                }
            }
        }
        if x + window.len() < canvas.width() {
            canvas.put_right(canvas.width() - 1, y, &window, Style::DIM);
        }
    }

    /// What a user has to know now: that the server is gone, that the view is paused.
    fn draw_notice(&self, canvas: &mut Canvas, y: usize) {
        let warn = Style { bold: true, ..Style::of(Colour::Yellow) };
        let (text, style) = match (&self.link, self.is_paused, &self.notice) {
            (Link::Down(why), _, _) => {
                let why = format::printable(why, self.setting.glyphs.is_utf8);
                let seen = self.model.server().is_some();
                (if seen { format!("{why}; these figures are the last") } else { why }, warn)
            }
            (_, true, _) => ("paused; p goes on".to_owned(), warn),
            (_, _, Some((_, text))) => (text.clone(), Style::BOLD),
            _ => return,
        };
        let room = canvas.width() - 2;
        canvas.put(1, y, &format::cut(&text, room, self.setting.glyphs.cut), style);
    }
}

fn of_row(row: &Row) -> Measured {
    Measured {
        rates: row.rates,
        latency: row.latency,
        ever: row.now.counted,
        ready: row.now.ready.0,
        bytes: row.now.present_bytes.0,
        unacked: row.now.unacked.0,
        delayed: row.now.delayed.0,
        age: row.age,
        style: match row.trend {
            Trend::Steady | Trend::Draining(_) => Style::PLAIN,
            Trend::Growing | Trend::Ageing => Style::of(Colour::Yellow),
            Trend::Stuck => Style::of(Colour::Red),
        },
    }
}

fn draw_reliability(canvas: &mut Canvas, y: usize, ever: &Counted) {
    canvas.put(1, y, "reliability", Style::DIM);
    let Reliability { saved, total, on_the_way } = reliability(ever);
    let style = if saved < total { alarm(1, Colour::Red) } else { Style::BOLD };
    let mut x = canvas.put(VALUES, y, &format::percent(saved, total), style);
    let (saved, total) = (format::grouped(saved), format::grouped(total));
    x = canvas.put(x + 1, y, &format!("stored, {saved} of {total}"), Style::PLAIN);
    let always = [("lost", ever.lost.0, Colour::Red), ("dead", ever.dead.0, Colour::Red)];
    let if_any = [
        ("refused", ever.refused.0, Colour::Yellow),
        ("dropped", ever.dropped.0, Colour::Yellow),
        ("expired", ever.expired.0, Colour::Yellow),
        ("on the way", on_the_way, Colour::Plain),
        ("redelivered", ever.redelivered.0, Colour::Plain),
    ];
    let facts = always.into_iter().chain(if_any.into_iter().filter(|(_, count, _)| *count > 0));
    for (name, count, colour) in facts {
        let text = format::count(count);
        if x + 2 + text.len() + 1 + name.len() > canvas.width() {
            break;
        }
        x = canvas.put(x + 2, y, &text, alarm(count, colour));
        x = canvas.put(x + 1, y, name, Style::DIM);
    }
}

/// The end of a path, when not all of it has room.
fn cut_left(text: &str, room: usize, mark: char) -> String {
    let length = text.chars().count();
    if length <= room {
        return text.to_owned();
    }
    std::iter::once(mark).chain(text.chars().skip(length + 1 - room.max(1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Count;

    #[test]
    fn what_is_on_its_way_is_not_lost() {
        let counted = Counted {
            announced: Count(110),
            stored: Count(90),
            there_already: Count(5),
            refused: Count(5),
            lost: Count(1),
            ..Counted::default()
        };
        let expected = Reliability { saved: 94, total: 100, on_the_way: 10 };
        assert_eq!(reliability(&counted), expected);
        let none = reliability(&Counted::default());
        assert_eq!((none.saved, none.total, none.on_the_way), (0, 0, 0));
    }

    #[test]
    fn paths_keep_their_ends() {
        assert_eq!(cut_left("/home/ada/mq", 12, '~'), "/home/ada/mq");
        assert_eq!(cut_left("/home/ada/mq", 7, '~'), "~ada/mq");
    }
}
