//! The live view as a value: figures and keys go in, pictures come out.
//!
//! Pure: nothing here reads a clock, a terminal or a socket. [`Screen::hear`] takes what the server
//! has said, [`Screen::press`] a key, [`Screen::draw`] paints a [`Canvas`] of any size. `mq-stat`
//! carries all of it between the server and the terminal.

mod header;
mod help;
mod keys;
mod page;
mod table;
#[cfg(test)]
mod tests;

use super::canvas::{Canvas, Colour, Style};
use super::columns::Column;
use super::glyphs::Glyphs;
use super::model::{Model, Span};
use super::track::Track;
use super::{Filter, format};
use crate::units::{Micros, Name, WallTime};
use crate::wire::stat::{QueueFigures, ServerFigures};

pub use keys::{Action, Key};

/// The least size in which there is something to see.
const WIDTH_MIN: usize = 40;
/// See [`WIDTH_MIN`].
const HEIGHT_MIN: usize = 6;

/// How long a notice stands.
const NOTICE: Micros = Micros::from_secs(10);

/// What the server says in one answer.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The server.
    pub server: ServerFigures,
    /// The queues that changed, or all.
    pub queues: Vec<QueueFigures>,
    /// Whether they are all.
    pub is_whole: bool,
    /// Whether it was asked between two steps.
    pub is_early: bool,
    /// Everything about the queue whose page is open; `None` when it is not there.
    pub detail: Option<QueueFigures>,
}

/// What does not change while the view is open.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The path of the store.
    pub store: String,
    /// How often the server is asked.
    pub step: Micros,
    /// The characters that the terminal knows.
    pub glyphs: Glyphs,
    /// The column that the table is sorted by at first.
    pub sort: Column,
    /// The name of a user.
    pub user: fn(u32) -> String,
}

/// Whether the server can be heard.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Link {
    /// It was not asked yet.
    New,
    Up,
    /// Why not.
    Down(String),
}

/// What is known of the queue whose page is open.
#[derive(Debug)]
struct Detail {
    track: Track,
    /// Since when.
    since: WallTime,
    /// Between the last two looks, if there were two.
    elapsed: Option<Micros>,
}

/// The live view.
#[derive(Debug)]
pub struct Screen {
    setting: Setting,
    model: Model,
    link: Link,
    notice: Option<(WallTime, String)>,
    is_paused: bool,
    is_helping: bool,
    sort: Column,
    is_inverted: bool,
    filter: Filter,
    is_typing: bool,
    /// The line that the cursor is on, once it was moved.
    selected: Option<Name>,
    /// The first line of the table that is shown.
    top: usize,
    /// How many lines of the table there was room for.
    room: usize,
    /// The queue whose page is open.
    open: Option<Name>,
    /// What is known of it beyond the table.
    detail: Option<Detail>,
    /// The first line of the page, or of the help, that is shown.
    scroll: usize,
}

impl Screen {
    /// One of which nothing is known yet.
    #[must_use]
    pub fn new(setting: Setting) -> Screen {
        Screen {
            model: Model::new(setting.step),
            sort: setting.sort,
            setting,
            link: Link::New,
            notice: None,
            is_paused: false,
            is_helping: false,
            is_inverted: false,
            filter: Filter::default(),
            is_typing: false,
            selected: None,
            top: 0,
            room: 1,
            open: None,
            detail: None,
            scroll: 0,
        }
    }

    /// Takes what the server has said. While the view is paused nothing changes.
    pub fn hear(&mut self, heard: Heard) {
        if self.is_paused {
            return;
        }
        let Heard { server, queues, is_whole, is_early, detail } = heard;
        let (pid, now) = (server.pid, server.now);
        let before = self.model.now();
        self.link = Link::Up;
        let replaced = match is_early {
            true => self.model.update_between_steps(server, queues, is_whole),
            false => self.model.update(server, queues, is_whole),
        };
        if let Some(old) = replaced {
            let text = format!("the server was started anew: process {pid} in the place of {old}");
            self.notice = Some((now, text));
            if let Some(detail) = &mut self.detail {
                detail.track.forget_latencies();
            }
        }
        if self.notice.as_ref().is_some_and(|(at, _)| now.0.saturating_sub(at.0) > NOTICE.0) {
            self.notice = None;
        }
        self.take_detail(detail, now, Micros(now.0.saturating_sub(before.0)));
    }

    fn take_detail(&mut self, detail: Option<QueueFigures>, now: WallTime, elapsed: Micros) {
        let Some(figures) = detail.filter(|figures| Some(&figures.queue) == self.open.as_ref())
        else {
            self.detail = None;
            return;
        };
        let step = self.setting.step;
        match &mut self.detail {
            Some(detail) if detail.track.is_of(figures.id) => {
                detail.track.take(figures, now, step);
                detail.track.advance(now, Some(elapsed), step);
                detail.elapsed = Some(elapsed);
            }
            known => {
                let mut track = Track::begin(figures, now, step, Some(self.model.started()));
                track.advance(now, None, step);
                *known = Some(Detail { track, since: now, elapsed: None });
            }
        }
    }

    /// Says why the server cannot be heard.
    pub fn miss(&mut self, why: &str) {
        self.link = Link::Down(why.to_owned());
    }

    /// The queue about which everything is wanted.
    #[must_use]
    pub fn open(&self) -> Option<&Name> {
        self.open.as_ref()
    }

    /// Whether nothing is to be asked for.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Paints it.
    pub fn draw(&mut self, width: usize, height: usize) -> Canvas {
        let mut canvas = Canvas::new(width, height);
        if width < WIDTH_MIN || height < HEIGHT_MIN {
            canvas.put(0, 0, "too small", Style::PLAIN);
            return canvas;
        }
        let body = self.draw_header(&mut canvas);
        if self.is_helping {
            self.draw_lines(&mut canvas, body, &help::lines(&self.setting.glyphs));
        } else if self.open.is_some() {
            let lines = self.page_lines(width);
            self.draw_lines(&mut canvas, body, &lines);
        } else {
            self.draw_table(&mut canvas, body);
        }
        self.draw_footer(&mut canvas);
        canvas
    }

    /// Paints lines from line `y` on, as far as the last but one of the screen, from the line to
    /// which was scrolled.
    fn draw_lines(&mut self, canvas: &mut Canvas, y: usize, lines: &[Line]) {
        let room = (canvas.height() - 1).saturating_sub(y);
        self.room = room;
        self.scroll = self.scroll.min(lines.len().saturating_sub(room));
        for (at, line) in lines.iter().skip(self.scroll).take(room).enumerate() {
            line.draw(canvas, y + at);
        }
    }

    fn draw_footer(&self, canvas: &mut Canvas) {
        let y = canvas.height() - 1;
        if self.is_typing {
            let x = canvas.put(1, y, "filter: ", Style::BOLD);
            let x = canvas.put(x, y, self.filter.text(), Style::PLAIN);
            canvas.put(x, y, " ", Style { reverse: true, ..Style::PLAIN });
            canvas.put_right(canvas.width() - 1, y, "Enter keeps it, Esc clears it", Style::DIM);
            return;
        }
        let keys: &[(&str, &str)] = match (self.is_helping, &self.open) {
            (true, _) => &[("Esc", "back"), ("q", "quit")],
            (false, Some(_)) => &[
                ("Esc", "back"),
                ("Up Down", "scroll"),
                ("Left Right", "others"),
                ("w", "window"),
                ("p", "pause"),
                ("?", "help"),
                ("q", "quit"),
            ],
            (false, None) => &[
                ("q", "quit"),
                ("?", "help"),
                ("/", "filter"),
                ("s", "sort"),
                ("w", "window"),
                ("z", "reset"),
                ("p", "pause"),
                ("Enter", "open"),
            ],
        };
        let mut x = 1;
        for (key, what) in keys {
            x = canvas.put(x, y, key, Style::BOLD);
            x = canvas.put(x + 1, y, what, Style::DIM) + 2;
        }
        let state = self.state_text();
        if x + state.chars().count() < canvas.width() {
            canvas.put_right(canvas.width() - 1, y, &state, Style::DIM);
        }
    }

    /// How the table is sorted and filtered.
    fn state_text(&self) -> String {
        if self.open.is_some() || self.is_helping {
            return String::new();
        }
        let inverted = if self.is_inverted { " inverted" } else { "" };
        let sort = match self.sort {
            Column::Mark => "marked first".to_owned(),
            column => format!("by {}", column.head().to_ascii_lowercase()),
        };
        match self.filter.text() {
            "" => format!("{sort}{inverted}"),
            text => format!("{sort}{inverted}, filter {text}"),
        }
    }

    /// The window that is shown, in words.
    fn window_text(&self) -> String {
        match (self.model.span(), self.model.window()) {
            (Span::Recent, Some(window)) if window >= super::model::RECENT => {
                "last minute".to_owned()
            }
            (Span::Recent, Some(window)) => format!("last {}", format::age(window)),
            (_, Some(window)) => format!("since reset, {}", format::age(window)),
            (_, None) => "since start".to_owned(),
        }
    }

    /// The same for what only the page of a queue tells: of the time before it was opened that knows
    /// nothing.
    fn page_window_text(&self, detail: &Detail) -> String {
        let known = Micros(self.model.now().0.saturating_sub(detail.since.0));
        match self.model.window() {
            Some(window) if known < window => format!("since opened, {}", format::age(known)),
            _ => self.window_text(),
        }
    }
}

impl Detail {
    /// Between the last two looks, in seconds; before there were two, as they are to be apart.
    fn seconds(&self, step: Micros) -> f64 {
        self.elapsed.unwrap_or(step).0.max(1) as f64 / 1e6
    }
}

/// A line of a page: pieces of text, one behind the other.
#[derive(Clone, Debug, Default)]
struct Line(Vec<(String, Style)>);

impl Line {
    fn plain(text: impl Into<String>) -> Line {
        Line(vec![(text.into(), Style::PLAIN)])
    }

    fn head(text: impl Into<String>) -> Line {
        Line(vec![(text.into(), Style::BOLD)])
    }

    fn push(&mut self, text: impl Into<String>, style: Style) {
        self.0.push((text.into(), style));
    }

    fn draw(&self, canvas: &mut Canvas, y: usize) {
        let mut x = 1;
        for (text, style) in &self.0 {
            x = canvas.put(x, y, text, *style);
        }
    }
}

/// How a count of what should not be looks.
fn alarm(count: u64, colour: Colour) -> Style {
    if count > 0 { Style { bold: true, ..Style::of(colour) } } else { Style::DIM }
}
