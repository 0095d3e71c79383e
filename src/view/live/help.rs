//! The help.

use super::Line;
use crate::view::canvas::Style;
use crate::view::columns::{mark, trend_style};
use crate::view::glyphs::Glyphs;
use crate::view::track::Trend;

const KEYS: [(&str, &str); 14] = [
    ("Up Down j k", "move the cursor; PgUp PgDn Home End g G go farther"),
    ("Enter", "the page of the queue under the cursor; Esc goes back"),
    ("Left Right", "in the table: sort by another column; on a page: another queue"),
    ("s S", "sort by the next column, the one before"),
    ("i", "invert the order"),
    ("/ f", "show only queues whose names hold a text, or match a pattern"),
    ("w", "another window: the last minute, since reset, since start"),
    ("z", "reset: the window begins now"),
    ("p Space", "pause, go on"),
    ("Ctrl-L", "paint everything anew"),
    ("Ctrl-Z", "suspend"),
    ("? h", "this help"),
    ("q", "quit"),
    ("Ctrl-C", "quit"),
];

const COLUMNS: [(&str, &str); 13] = [
    ("READY", "messages that can be delivered, of all groups together"),
    ("UNACK", "messages that receivers hold"),
    ("IN/s OUT/s", "messages stored and delivered in a second"),
    ("AGE", "age of the oldest message that some group has not settled"),
    ("P50 P99", "whole latency, from read to acknowledged, within the window"),
    ("RETRY DEAD", "tries that failed, dead letters, within the window"),
    ("ETA", "when the backlog is gone, if it goes on shrinking so"),
    ("TREND", "the backlog of the last minute; a step is an interval, there are 60"),
    ("RECV SEND", "receivers and senders"),
    ("DELAY REST", "messages that wait for their time, or to be tried again"),
    ("SIZE", "bytes of messages that are not gone"),
    ("B IN B OUT", "bytes stored and delivered in a second"),
    ("IN OUT", "the same of what was stored and delivered"),
];

pub(super) fn lines(glyphs: &Glyphs) -> Vec<Line> {
    let mut lines = vec![Line::head("KEYS")];
    let item = |name: &str, text: &str| {
        let mut line = Line::default();
        line.push(format!("{name:<13}"), Style::BOLD);
        line.push(text, Style::PLAIN);
        line
    };
    lines.extend(KEYS.iter().map(|(name, text)| item(name, text)));
    lines.extend([Line::default(), Line::head("MARKS")]);
    for (trend, text) in [
        (Trend::Growing, "the backlog grows"),
        (Trend::Ageing, "messages are ready, and for ten seconds nobody took the oldest"),
        (Trend::Stuck, "the queue or one of its groups stands still; its page says why"),
        (Trend::Draining(Default::default()), "the backlog shrinks"),
    ] {
        let mut line = Line::default();
        line.push(format!("{:<13}", mark(trend, glyphs).0), trend_style(trend));
        line.push(text, Style::PLAIN);
        lines.push(line);
    }
    lines.extend([Line::default(), Line::head("COLUMNS")]);
    lines.extend(COLUMNS.iter().map(|(name, text)| item(name, text)));
    lines.extend([Line::default(), Line::plain("All of it is in mq-stat(1).")]);
    lines
}
