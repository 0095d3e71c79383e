//! The columns of the table of queues: what each shows, how wide it is, how it sorts, and which
//! of them a terminal has room for.
//!
//! Pure. The table and `--sort` use it.

use std::cmp::Ordering;

use super::canvas::{Colour, Style};
use super::format;
use super::glyphs::Glyphs;
use super::model::Row;
use super::track::{Step, Track, Trend};
use crate::wire::stat::unknown;

/// A column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Column {
    /// A mark where somebody should look; the order is: those first, then by name.
    #[default]
    Mark,
    /// The name.
    Queue,
    /// Messages ready.
    Ready,
    /// Messages with receivers.
    Unacked,
    /// Messages stored in a second.
    In,
    /// Messages delivered in a second.
    Out,
    /// The age of the oldest message.
    Age,
    /// The whole latency: half of the messages took no longer.
    P50,
    /// 99 % took no longer.
    P99,
    /// Tries that failed.
    Retry,
    /// Dead letters.
    Dead,
    /// When the backlog is gone.
    Eta,
    /// The backlog over the last steps.
    Backlog,
    /// Receivers.
    Receivers,
    /// Senders.
    Senders,
    /// Messages that wait for their time.
    Delayed,
    /// Messages that failed and wait to be tried again.
    Resting,
    /// Bytes of messages that are not gone.
    Size,
    /// Bytes stored in a second.
    BytesIn,
    /// Bytes delivered in a second.
    BytesOut,
    /// The longest whole latency.
    Max,
    /// What came in over the last steps.
    InLine,
    /// What went out over the last steps.
    OutLine,
}

/// The columns by the words of `--sort`.
pub const SORTS: [(&str, Column); 18] = [
    ("mark", Column::Mark),
    ("queue", Column::Queue),
    ("ready", Column::Ready),
    ("unacked", Column::Unacked),
    ("in", Column::In),
    ("out", Column::Out),
    ("age", Column::Age),
    ("p50", Column::P50),
    ("p99", Column::P99),
    ("max", Column::Max),
    ("retry", Column::Retry),
    ("dead", Column::Dead),
    ("eta", Column::Eta),
    ("receivers", Column::Receivers),
    ("senders", Column::Senders),
    ("delayed", Column::Delayed),
    ("resting", Column::Resting),
    ("size", Column::Size),
];

/// Reads the name of a column to sort by.
///
/// # Errors
/// The names that there are.
pub fn sort_column(text: &str) -> Result<Column, String> {
    let found = SORTS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, column)| *column).ok_or_else(|| {
        let names: Vec<&str> = SORTS.iter().map(|(name, _)| *name).collect();
        format!("there is no column {text:?} to sort by; there are {}", names.join(", "))
    })
}

/// The columns that every table has, in their order.
const ALWAYS: [Column; 13] = [
    Column::Mark,
    Column::Queue,
    Column::Ready,
    Column::Unacked,
    Column::In,
    Column::Out,
    Column::Age,
    Column::P50,
    Column::P99,
    Column::Retry,
    Column::Dead,
    Column::Eta,
    Column::Backlog,
];

/// What else there is room for in wider terminals, the most wanted first.
const MORE: [Column; 10] = [
    Column::Receivers,
    Column::Senders,
    Column::InLine,
    Column::OutLine,
    Column::BytesIn,
    Column::BytesOut,
    Column::Size,
    Column::Delayed,
    Column::Resting,
    Column::Max,
];

/// The order in which all of them stand.
const ORDER: [Column; 23] = [
    Column::Mark,
    Column::Queue,
    Column::Ready,
    Column::Unacked,
    Column::Delayed,
    Column::Resting,
    Column::Size,
    Column::In,
    Column::BytesIn,
    Column::InLine,
    Column::Out,
    Column::BytesOut,
    Column::OutLine,
    Column::Age,
    Column::P50,
    Column::P99,
    Column::Max,
    Column::Retry,
    Column::Dead,
    Column::Receivers,
    Column::Senders,
    Column::Eta,
    Column::Backlog,
];

/// The least columns of a name, and the most that it gets beyond what it needs.
const NAME_WIDTH_MIN: usize = 12;
/// See [`NAME_WIDTH_MIN`].
const NAME_WIDTH_MAX: usize = 48;

/// Columns of a sparkline, at least and at most.
const LINE_WIDTH: (usize, usize) = (6, 30);

/// So many of the newest steps are in a sparkline, if it is not wider.
pub const SPAN: usize = 60;

/// A column with its place in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which.
    pub column: Column,
    /// Where it begins.
    pub x: usize,
    /// How wide it is.
    pub width: usize,
}

/// What a cell shows, and how.
pub type Cell = (String, Style);

impl Column {
    /// What stands above it.
    #[must_use]
    pub fn head(self) -> &'static str {
        match self {
            Column::Mark => "!",
            Column::Queue => "QUEUE",
            Column::Ready => "READY",
            Column::Unacked => "UNACK",
            Column::In => "IN/s",
            Column::Out => "OUT/s",
            Column::Age => "AGE",
            Column::P50 => "P50",
            Column::P99 => "P99",
            Column::Retry => "RETRY",
            Column::Dead => "DEAD",
            Column::Eta => "ETA",
            Column::Backlog => "TREND",
            Column::Receivers => "RECV",
            Column::Senders => "SEND",
            Column::Delayed => "DELAY",
            Column::Resting => "REST",
            Column::Size => "SIZE",
            Column::BytesIn => "B IN",
            Column::BytesOut => "B OUT",
            Column::Max => "MAX",
            Column::InLine => "IN",
            Column::OutLine => "OUT",
        }
    }

    /// Its least width.
    fn width(self) -> usize {
        match self {
            Column::Mark => 1,
            Column::Queue => NAME_WIDTH_MIN,
            Column::Backlog | Column::InLine | Column::OutLine => LINE_WIDTH.0,
            Column::Dead | Column::Receivers | Column::Senders | Column::Resting => 4,
            _ => format::NUMBER_WIDTH,
        }
    }

    fn is_line(self) -> bool {
        matches!(self, Column::Backlog | Column::InLine | Column::OutLine)
    }

    /// Whether its cells begin at the left.
    #[must_use]
    pub fn is_left(self) -> bool {
        self.is_line() || matches!(self, Column::Mark | Column::Queue)
    }

    /// Whether a table can be sorted by it.
    #[must_use]
    pub fn is_sortable(self) -> bool {
        SORTS.iter().any(|(_, column)| *column == self)
    }

    /// Which of two queues comes first: what is large as a rule, names from A to Z.
    #[must_use]
    pub fn order(self, a: &Row, b: &Row) -> Ordering {
        let by = |key: fn(&Row) -> u64| key(b).cmp(&key(a));
        let by_rate = |key: fn(&Row) -> f64| key(b).total_cmp(&key(a));
        match self {
            Column::Mark | Column::Backlog => {
                let severity = |row: &Row| match row.trend {
                    Trend::Steady | Trend::Draining(_) => 0,
                    Trend::Growing => 1,
                    Trend::Ageing => 2,
                    Trend::Stuck => 3,
                };
                severity(b).cmp(&severity(a))
            }
            Column::Queue => Ordering::Equal,
            Column::Ready => by(|row| row.now.ready.0),
            Column::Unacked => by(|row| row.now.unacked.0),
            Column::In | Column::InLine => by_rate(|row| row.rates.stored),
            Column::Out | Column::OutLine => by_rate(|row| row.rates.delivered),
            Column::Age => by(|row| row.age.map_or(0, |age| age.0.saturating_add(1))),
            Column::P50 => by(|row| row.latency.map_or(0, |latency| latency.p50.0)),
            Column::P99 => by(|row| row.latency.map_or(0, |latency| latency.p99.0)),
            Column::Max => by(|row| row.latency.map_or(0, |latency| latency.max.0)),
            Column::Retry => by(|row| row.counted.retried.0),
            Column::Dead => by(|row| row.counted.dead.0),
            Column::Eta => by(|row| row.trend.eta().map_or(0, |eta| eta.0)),
            Column::Receivers => by(|row| row.now.receivers),
            Column::Senders => by(|row| row.now.senders),
            Column::Delayed => by(|row| row.now.delayed.0),
            Column::Resting => by(|row| row.now.resting.0),
            Column::Size => by(|row| row.now.present_bytes.0),
            Column::BytesIn => by_rate(|row| row.rates.stored_bytes),
            Column::BytesOut => by_rate(|row| row.rates.delivered_bytes),
        }
        .then_with(|| a.queue().cmp(b.queue()))
    }

    /// What it shows, as [`QueueFigures::unknown`](crate::wire::stat::QueueFigures) calls it.
    fn field(self) -> &'static str {
        match self {
            Column::Ready | Column::Backlog => "ready",
            Column::Unacked => "unacked",
            Column::In | Column::Out | Column::InLine | Column::OutLine => unknown::RATES,
            Column::BytesIn | Column::BytesOut => unknown::RATES,
            Column::Age => unknown::AGE,
            Column::P50 | Column::P99 | Column::Max => "latency",
            Column::Retry | Column::Dead => "counted",
            Column::Receivers => "receivers",
            Column::Senders => "senders",
            Column::Delayed => "delayed",
            Column::Resting => "resting",
            Column::Size => "present_bytes",
            Column::Mark | Column::Queue | Column::Eta => "",
        }
    }

    /// The cell of a queue, not wider than `width`.
    #[must_use]
    pub fn cell(self, row: &Row, track: Option<&Track>, width: usize, glyphs: &Glyphs) -> Cell {
        let latency = |of: fn(&super::latency::Percentiles) -> crate::units::Micros| {
            row.latency
                .as_ref()
                .map_or_else(quiet_dash, |latency| (format::latency(of(latency)), Style::PLAIN))
        };
        let line = |of: fn(&Step) -> f64, style: Style| {
            let past: Vec<f64> = track.into_iter().flat_map(Track::steps).map(of).collect();
            (glyphs.condensed(&past, SPAN, width), style)
        };
        if !row.now.knows(self.field()) {
            return quiet_dash();
        }
        match self {
            Column::Mark => mark(row.trend, glyphs),
            Column::Queue => (format::cut(row.queue().as_str(), width, glyphs.cut), Style::PLAIN),
            Column::Ready => counted(row.now.ready.0, Style::BOLD),
            Column::Unacked => counted(row.now.unacked.0, Style::PLAIN),
            Column::In => flow(row.rates.stored, Colour::Cyan),
            Column::Out => flow(row.rates.delivered, Colour::Green),
            Column::Age => match row.age {
                Some(age) if row.trend == Trend::Ageing => {
                    (format::age(age), Style::of(Colour::Yellow))
                }
                Some(age) => (format::age(age), Style::PLAIN),
                None => quiet_dash(),
            },
            Column::P50 => latency(|latency| latency.p50),
            Column::P99 => latency(|latency| latency.p99),
            Column::Max => latency(|latency| latency.max),
            Column::Retry => counted(row.counted.retried.0, Style::of(Colour::Yellow)),
            Column::Dead => few(row.counted.dead.0, Style::of(Colour::Red)),
            Column::Eta => match row.trend.eta() {
                Some(eta) => (format::age(eta), Style::PLAIN),
                None => quiet_dash(),
            },
            Column::Backlog => line(|step| step.ready, trend_style(row.trend)),
            Column::InLine => line(|step| step.rates.stored, Style::of(Colour::Cyan)),
            Column::OutLine => line(|step| step.rates.delivered, Style::of(Colour::Green)),
            Column::Receivers => few(row.now.receivers, Style::PLAIN),
            Column::Senders => few(row.now.senders, Style::PLAIN),
            Column::Delayed => counted(row.now.delayed.0, Style::PLAIN),
            Column::Resting => few(row.now.resting.0, Style::PLAIN),
            Column::Size => sized(row.now.present_bytes.0 as f64),
            Column::BytesIn => sized(row.rates.stored_bytes),
            Column::BytesOut => sized(row.rates.delivered_bytes),
        }
    }
}

fn quiet_dash() -> Cell {
    ("-".to_owned(), Style::DIM)
}

/// Nothing is said quietly.
fn counted(count: u64, style: Style) -> Cell {
    (format::count(count), if count == 0 { Style::DIM } else { style })
}

fn few(count: u64, style: Style) -> Cell {
    (format::short_count(count), if count == 0 { Style::DIM } else { style })
}

fn sized(bytes: f64) -> Cell {
    (format::bytes(bytes), if bytes < 0.5 { Style::DIM } else { Style::PLAIN })
}

fn flow(per_second: f64, colour: Colour) -> Cell {
    let text = format::rate(per_second);
    let style = if text == "0" { Style::DIM } else { Style::of(colour) };
    (text, style)
}

/// The mark of a queue at which somebody should look.
#[must_use]
pub fn mark(trend: Trend, glyphs: &Glyphs) -> Cell {
    match trend {
        Trend::Steady => (" ".to_owned(), Style::PLAIN),
        Trend::Draining(_) => (glyphs.down.to_string(), Style::DIM),
        Trend::Growing => (glyphs.up.to_string(), trend_style(trend)),
        Trend::Ageing => ("!".to_owned(), trend_style(trend)),
        Trend::Stuck => ("X".to_owned(), trend_style(trend)),
    }
}

/// How what belongs to a trend looks.
#[must_use]
pub fn trend_style(trend: Trend) -> Style {
    match trend {
        Trend::Steady | Trend::Draining(_) => Style::PLAIN,
        Trend::Growing | Trend::Ageing => Style { bold: true, ..Style::of(Colour::Yellow) },
        Trend::Stuck => Style { bold: true, ..Style::of(Colour::Red) },
    }
}

/// The columns that `width` has room for, with their places; a name may need `name` columns.
#[must_use]
pub fn layout(width: usize, name: usize) -> Vec<Placed> {
    let gap = 1;
    let needed =
        |columns: &[Column]| columns.iter().map(|column| column.width() + gap).sum::<usize>();
    let mut shown: Vec<Column> = ALWAYS.to_vec();
    // What does not fit leaves from the right.
    while shown.len() > 3 && needed(&shown) - gap > width {
        shown.pop();
    }
    let mut room = width.saturating_sub(needed(&shown) - gap);
    let mut names = NAME_WIDTH_MIN;
    let grow = room.min(name.clamp(NAME_WIDTH_MIN, NAME_WIDTH_MAX) - NAME_WIDTH_MIN);
    (names, room) = (names + grow, room - grow);
    for column in MORE {
        let wanted = column.width() + gap;
        if room >= wanted && shown.len() >= ALWAYS.len() {
            shown.push(column);
            room -= wanted;
        }
    }
    let lines = shown.iter().filter(|column| column.is_line()).count();
    let line_width = |room: usize| match lines {
        0 => 0,
        lines => LINE_WIDTH.1.min(LINE_WIDTH.0 + room / lines),
    };
    let line_width = line_width(room);
    let mut x = 0;
    let mut placed = Vec::with_capacity(shown.len());
    for column in ORDER.into_iter().filter(|column| shown.contains(column)) {
        let width = match column {
            Column::Queue => names,
            column if column.is_line() => line_width,
            column => column.width(),
        };
        placed.push(Placed { column, x, width });
        x += width + gap;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_of_80_columns_has_room_for_all_that_matters() {
        let placed = layout(80, 40);
        assert_eq!(placed.iter().map(|p| p.column).collect::<Vec<_>>(), ALWAYS);
        let last = placed.last().expect("columns");
        assert_eq!(last.x + last.width, 80, "{placed:?}");
    }

    #[test]
    fn no_width_is_left_and_none_is_too_narrow() {
        for width in 1..300 {
            for name in [1, 12, 30, 200] {
                let placed = layout(width, name);
                let last = placed.last().expect("columns");
                assert!(width < 20 || last.x + last.width <= width, "{width}: {placed:?}");
                assert!(placed.windows(2).all(|pair| pair[0].x + pair[0].width < pair[1].x));
            }
        }
        assert_eq!(layout(200, 20).len(), ORDER.len(), "200 columns show all");
    }

    #[test]
    fn columns_to_sort_by_are_named_in_the_error() {
        assert_eq!(sort_column("READY"), Ok(Column::Ready));
        let error = sort_column("colour").expect_err("no such column");
        assert!(error.contains("unacked"), "{error}");
    }
}
