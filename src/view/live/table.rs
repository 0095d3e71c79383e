//! The table of queues.

use super::{Link, Screen};
use crate::units::Name;
use crate::view::canvas::{Canvas, Style};
use crate::view::columns::layout;
use crate::view::model::Row;

impl Screen {
    /// The rows that pass the filter, in the order in which they are shown.
    fn sorted(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> =
            self.model.rows().iter().filter(|row| self.filter.matches(row.queue())).collect();
        rows.sort_by(|a, b| match self.is_inverted {
            false => self.sort.order(a, b),
            true => self.sort.order(b, a),
        });
        rows
    }

    /// Their names.
    pub(super) fn shown(&self) -> Vec<Name> {
        self.sorted().into_iter().map(|row| row.queue().clone()).collect()
    }

    /// Paints the table from line `y` on.
    pub(super) fn draw_table(&mut self, canvas: &mut Canvas, y: usize) {
        self.room = (canvas.height() - 1).saturating_sub(y + 1).max(1);
        self.follow_cursor();
        let rows = self.sorted();
        if rows.is_empty() {
            self.draw_nothing(canvas, y + 1);
            return;
        }
        let name = rows.iter().map(|row| row.queue().as_str().len()).max().unwrap_or(0);
        let columns = layout(canvas.width(), name);
        canvas.fill(0, y, ' ', Style::BOLD);
        for placed in &columns {
            let style = if placed.column == self.sort {
                Style { reverse: true, ..Style::BOLD }
            } else {
                Style::BOLD
            };
            if placed.column.is_left() {
                canvas.put(placed.x, y, placed.column.head(), style);
            } else {
                canvas.put_right(placed.x + placed.width, y, placed.column.head(), style);
            }
        }
        for (at, row) in rows.iter().skip(self.top).take(self.room).enumerate() {
            let y = y + 1 + at;
            let track = self.model.track(row.queue());
            for placed in &columns {
                let glyphs = &self.setting.glyphs;
                let (text, style) = placed.column.cell(row, track, placed.width, glyphs);
                if placed.column.is_left() {
                    canvas.put(placed.x, y, &text, style);
                } else {
                    canvas.put_right(placed.x + placed.width, y, &text, style);
                }
            }
            if self.selected.as_ref() == Some(row.queue()) {
                canvas.restyle(y, |style| Style { reverse: true, dim: false, ..style });
            }
        }
        self.draw_range(canvas, y, rows.len());
    }

    /// Which lines of how many are shown, where the head has room.
    fn draw_range(&self, canvas: &mut Canvas, y: usize, rows: usize) {
        if rows > self.room {
            let last = (self.top + self.room).min(rows);
            let text = format!(" {}-{last} of {rows} ", self.top + 1);
            canvas.put_right(canvas.width() - 1, y - 1, &text, Style::DIM);
        }
    }

    /// Keeps the line with the cursor among those that are shown, and the last line at the end.
    fn follow_cursor(&mut self) {
        let names = self.shown();
        self.top = self.top.min(names.len().saturating_sub(self.room));
        let at = self
            .selected
            .as_ref()
            .and_then(|selected| names.iter().position(|name| name == selected));
        match at {
            Some(at) if at < self.top => self.top = at,
            Some(at) if at >= self.top + self.room => self.top = at + 1 - self.room,
            _ => {}
        }
    }

    fn draw_nothing(&self, canvas: &mut Canvas, y: usize) {
        let text = match &self.link {
            Link::New => "asking the server ...",
            Link::Down(_) if self.model.server().is_none() => {
                "waiting for a server; mq-send and mq-recv start one"
            }
            _ if !self.model.rows().is_empty() => "no queue passes the filter; Esc clears it",
            _ => "no queue yet; mq-send QUEUE makes one",
        };
        canvas.put(2, y + 1, text, Style::PLAIN);
    }
}
