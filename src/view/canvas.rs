//! A picture of the terminal in memory, and the bytes that turn one picture into the next.
//!
//! Nothing is written here. The bytes of a frame are meant for one write: they change only what
//! differs, within one synchronized update, so that nothing flickers. Every cell is one column
//! wide; a text is cut at the edge; control characters never get in.

use std::fmt::Write;

/// What a colour says; the terminal's own palette decides how it looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    /// The terminal's own.
    #[default]
    Plain,
    /// Something is wrong.
    Red,
    /// Something may become wrong.
    Yellow,
    /// What comes in.
    Cyan,
    /// What goes out.
    Green,
}

/// How a cell looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Its colour.
    pub colour: Colour,
    /// Strong.
    pub bold: bool,
    /// Weak.
    pub dim: bool,
    /// With front and ground exchanged.
    pub reverse: bool,
}

impl Style {
    /// As text usually is.
    pub const PLAIN: Style =
        Style { colour: Colour::Plain, bold: false, dim: false, reverse: false };
    /// Strong.
    pub const BOLD: Style = Style { bold: true, ..Style::PLAIN };
    /// Weak.
    pub const DIM: Style = Style { dim: true, ..Style::PLAIN };

    /// In this colour.
    #[must_use]
    pub const fn of(colour: Colour) -> Style {
        Style { colour, ..Style::PLAIN }
    }

    fn write(self, with_colour: bool, out: &mut String) {
        out.push_str("\x1b[0");
        for (is_on, code) in [(self.bold, ";1"), (self.dim, ";2"), (self.reverse, ";7")] {
            if is_on {
                out.push_str(code);
            }
        }
        if with_colour {
            out.push_str(match self.colour {
                Colour::Plain => "",
                Colour::Red => ";31",
                Colour::Green => ";32",
                Colour::Yellow => ";33",
                Colour::Cyan => ";36",
            });
        }
        out.push('m');
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    glyph: char,
    style: Style,
}

const BLANK: Cell = Cell { glyph: ' ', style: Style::PLAIN };

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canvas {
    width: usize,
    height: usize,
    cells: Vec<Cell>,
}

impl Canvas {
    /// An empty one.
    #[must_use]
    pub fn new(width: usize, height: usize) -> Canvas {
        Canvas { width, height, cells: vec![BLANK; width * height] }
    }

    /// Columns.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Lines.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// Writes a text at a place; what lies outside is not shown. Returns the column behind it.
    pub fn put(&mut self, x: usize, y: usize, text: &str, style: Style) -> usize {
        let mut at = x;
        for c in text.chars() {
            if at < self.width && y < self.height {
                let glyph = if c.is_control() { '?' } else { c };
                self.cells[y * self.width + at] = Cell { glyph, style };
            }
            at += 1;
        }
        at
    }

    /// Writes a text so that it ends before column `end`.
    pub fn put_right(&mut self, end: usize, y: usize, text: &str, style: Style) {
        self.put(end.saturating_sub(text.chars().count()), y, text, style);
    }

    /// Fills a line from column `x` on with one character.
    pub fn fill(&mut self, x: usize, y: usize, glyph: char, style: Style) {
        if y < self.height && x < self.width {
            let line = y * self.width;
            self.cells[line + x..line + self.width].fill(Cell { glyph, style });
        }
    }

    /// Changes how a whole line looks, and leaves its text.
    pub fn restyle(&mut self, y: usize, change: impl Fn(Style) -> Style) {
        if y < self.height {
            let line = y * self.width;
            for cell in &mut self.cells[line..line + self.width] {
                cell.style = change(cell.style);
            }
        }
    }

    /// The lines as text, without what is blank at their ends.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.cells.chunks(self.width.max(1)) {
            let line: String = line.iter().map(|cell| cell.glyph).collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Knows what the terminal shows.
#[derive(Debug)]
pub struct Painter {
    with_colour: bool,
    shown: Option<Canvas>,
}

impl Painter {
    /// Of a terminal of which nothing is known.
    #[must_use]
    pub fn new(with_colour: bool) -> Painter {
        Painter { with_colour, shown: None }
    }

    /// The terminal may show anything now: the next frame is painted as a whole.
    pub fn forget(&mut self) {
        self.shown = None;
    }

    /// The bytes that make the terminal show `next`; none when it does already.
    pub fn paint(&mut self, next: Canvas) -> Vec<u8> {
        let before = self
            .shown
            .take()
            .filter(|shown| (shown.width, shown.height) == (next.width, next.height));
        let mut out = String::new();
        if before.is_none() {
            out.push_str("\x1b[0m\x1b[2J");
        }
        for y in 0..next.height {
            self.paint_line(y, before.as_ref(), &next, &mut out);
        }
        self.shown = Some(next);
        if out.is_empty() {
            return Vec::new();
        }
        format!("\x1b[?2026h{out}\x1b[0m\x1b[?2026l").into_bytes()
    }

    fn paint_line(&self, y: usize, before: Option<&Canvas>, next: &Canvas, out: &mut String) {
        let line = y * next.width..(y + 1) * next.width;
        let new = &next.cells[line.clone()];
        let is_shown = |x: usize| match before {
            Some(before) => before.cells[line.start + x] == new[x],
            None => new[x] == BLANK,
        };
        let mut pen = None;
        // Where the cursor stands; a short stretch that is shown already is cheaper written again
        // than jumped over.
        let mut cursor = None;
        for x in (0..new.len()).filter(|x| !is_shown(*x)) {
            match cursor {
                Some(at) if at <= x && x - at <= 4 => {
                    for cell in &new[at..x] {
                        self.write_cell(*cell, &mut pen, out);
                    }
                }
                _ => write!(out, "\x1b[{};{}H", y + 1, x + 1).expect("a string takes all"),
            }
            self.write_cell(new[x], &mut pen, out);
            cursor = Some(x + 1);
        }
    }

    fn write_cell(&self, cell: Cell, pen: &mut Option<Style>, out: &mut String) {
        if *pen != Some(cell.style) {
            cell.style.write(self.with_colour, out);
            *pen = Some(cell.style);
        }
        out.push(cell.glyph);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn painted(painter: &mut Painter, canvas: &Canvas) -> String {
        String::from_utf8(painter.paint(canvas.clone())).expect("UTF-8")
    }

    #[test]
    fn only_what_changed_is_written_and_in_one_update() {
        let mut painter = Painter::new(true);
        let mut canvas = Canvas::new(20, 3);
        canvas.put(2, 1, "ready 10", Style::PLAIN);
        let first = painted(&mut painter, &canvas);
        assert!(first.starts_with("\x1b[?2026h\x1b[0m\x1b[2J"), "{first:?}");
        assert!(first.ends_with("\x1b[?2026l"), "{first:?}");
        assert!(first.contains("\x1b[2;3H\x1b[0mready 10"), "{first:?}");
        assert_eq!(painted(&mut painter, &canvas), "", "nothing changed");
        canvas.put(8, 1, "11", Style::of(Colour::Red));
        let second = painted(&mut painter, &canvas);
        assert_eq!(second, "\x1b[?2026h\x1b[2;9H\x1b[0;31m11\x1b[0m\x1b[?2026l");
        painter.forget();
        assert!(painted(&mut painter, &canvas).contains("\x1b[2J"));
        let larger = Canvas::new(21, 3);
        assert!(painted(&mut painter, &larger).contains("\x1b[2J"), "another size");
    }

    #[test]
    fn without_colour_none_is_written() {
        let mut canvas = Canvas::new(9, 1);
        canvas.put(0, 0, "x", Style { bold: true, ..Style::of(Colour::Red) });
        let plain = painted(&mut Painter::new(false), &canvas);
        assert!(plain.contains("\x1b[0;1mx"), "{plain:?}");
        assert!(!plain.contains(";31"), "{plain:?}");
    }

    #[test]
    fn nothing_leaves_the_canvas_and_no_control_gets_in() {
        let mut canvas = Canvas::new(4, 2);
        canvas.put(2, 0, "abc\x1b[2J", Style::PLAIN);
        canvas.put(9, 9, "x", Style::PLAIN);
        canvas.put(0, 1, "\x1b\u{9b}", Style::PLAIN);
        canvas.put_right(4, 1, "z", Style::PLAIN);
        assert_eq!(canvas.text(), "  ab\n?? z\n");
    }
}
