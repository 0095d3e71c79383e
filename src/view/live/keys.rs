//! What keys do.

use super::{Detail, Screen};
use crate::units::Name;
use crate::view::columns::{Column, layout};

/// A key, as far as the view knows any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Control and a letter.
    Control(char),
    /// Keys with names.
    Enter,
    /// See `Enter`.
    Escape,
    /// See `Enter`.
    Backspace,
    /// See `Enter`.
    Up,
    /// See `Enter`.
    Down,
    /// See `Enter`.
    Left,
    /// See `Enter`.
    Right,
    /// See `Enter`.
    PageUp,
    /// See `Enter`.
    PageDown,
    /// See `Enter`.
    Home,
    /// See `Enter`.
    End,
}

/// What a key asks of whoever owns the terminal and the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Only the picture may have changed.
    Draw,
    /// The end.
    Quit,
    /// Ctrl-C: the end, as by that signal.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
    /// Paint everything anew.
    Repaint,
    /// What is wanted of the server has changed: ask it at once.
    Ask,
}

impl Screen {
    /// Takes a key.
    pub fn press(&mut self, key: Key) -> Action {
        match key {
            Key::Control('c') => return Action::Interrupt,
            Key::Control('z') => return Action::Suspend,
            Key::Control('l') => return Action::Repaint,
            _ if self.is_typing => return self.type_filter(key),
            Key::Char('q' | 'Q') => return Action::Quit,
            Key::Char('?' | 'h' | 'H') => (self.is_helping, self.scroll) = (!self.is_helping, 0),
            Key::Char('p' | 'P' | ' ') => {
                self.is_paused = !self.is_paused;
                return Action::Ask;
            }
            Key::Char('w' | 'W') => self.model.look_at(self.model.span().next()),
            Key::Char('z' | 'Z') => self.reset(),
            _ if self.is_helping => self.press_in_text(key),
            _ if self.open.is_some() => return self.press_on_page(key),
            _ => return self.press_in_table(key),
        }
        Action::Draw
    }

    fn reset(&mut self) {
        self.model.reset();
        if let Some(Detail { track, .. }) = &mut self.detail {
            track.reset();
        }
    }

    fn type_filter(&mut self, key: Key) -> Action {
        match key {
            Key::Char(c) => self.filter.push(c),
            Key::Backspace => self.filter.pop(),
            Key::Control('u') => self.filter.clear(),
            Key::Escape => {
                self.filter.clear();
                self.is_typing = false;
            }
            Key::Enter => self.is_typing = false,
            Key::Up | Key::Down | Key::PageUp | Key::PageDown => {
                self.is_typing = false;
                return self.press_in_table(key);
            }
            _ => {}
        }
        Action::Draw
    }

    fn press_in_text(&mut self, key: Key) {
        let page = self.room.saturating_sub(1).max(1);
        self.scroll = match key {
            Key::Up | Key::Char('k') => self.scroll.saturating_sub(1),
            Key::Down | Key::Char('j') => self.scroll + 1,
            Key::PageUp => self.scroll.saturating_sub(page),
            Key::PageDown => self.scroll + page,
            Key::Home | Key::Char('g') => 0,
            // Drawing takes it back to the last line.
            Key::End | Key::Char('G') => usize::MAX,
            Key::Escape | Key::Enter | Key::Backspace => {
                self.is_helping = false;
                0
            }
            _ => self.scroll,
        };
    }

    fn press_on_page(&mut self, key: Key) -> Action {
        let neighbour = |by: isize| {
            let names = self.shown();
            let at = names.iter().position(|name| Some(name) == self.open.as_ref())?;
            names.get(at.checked_add_signed(by)?).cloned()
        };
        match key {
            Key::Escape | Key::Backspace | Key::Enter => self.visit(None),
            Key::Left => match neighbour(-1) {
                Some(name) => self.visit(Some(name)),
                None => Action::Draw,
            },
            Key::Right => match neighbour(1) {
                Some(name) => self.visit(Some(name)),
                None => Action::Draw,
            },
            key => {
                self.press_in_text(key);
                Action::Draw
            }
        }
    }

    /// Opens the page of a queue, or goes back to the table.
    fn visit(&mut self, queue: Option<Name>) -> Action {
        if queue.is_some() {
            self.selected.clone_from(&queue);
        }
        (self.open, self.detail, self.scroll) = (queue, None, 0);
        Action::Ask
    }

    fn press_in_table(&mut self, key: Key) -> Action {
        let page = self.room.saturating_sub(1).max(1) as isize;
        match key {
            Key::Up | Key::Char('k') => self.step_by(-1),
            Key::Down | Key::Char('j') => self.step_by(1),
            Key::PageUp => self.step_by(-page),
            Key::PageDown => self.step_by(page),
            Key::Home | Key::Char('g') => self.step_by(isize::MIN / 2),
            Key::End | Key::Char('G') => self.step_by(isize::MAX / 2),
            Key::Char('s') | Key::Right | Key::Char('>') => self.sort_by_next(1),
            Key::Char('S') | Key::Left | Key::Char('<') => self.sort_by_next(-1),
            Key::Char('i' | 'I') => self.is_inverted = !self.is_inverted,
            Key::Char('/' | 'f') => self.is_typing = true,
            Key::Escape if self.selected.is_some() => self.selected = None,
            Key::Escape => self.filter.clear(),
            Key::Enter => {
                let names = self.shown();
                let selected = self.selected.as_ref().filter(|name| names.contains(name));
                if let Some(name) = selected.or(names.get(self.top)).cloned() {
                    return self.visit(Some(name));
                }
            }
            _ => {}
        }
        Action::Draw
    }

    /// Moves the cursor; the first time it appears where the table begins.
    fn step_by(&mut self, by: isize) {
        let names = self.shown();
        let Some(last) = names.len().checked_sub(1) else { return };
        let at = self
            .selected
            .as_ref()
            .and_then(|selected| names.iter().position(|name| name == selected));
        let to = match at {
            Some(at) => (at as isize).saturating_add(by).clamp(0, last as isize) as usize,
            None if by.unsigned_abs() > 1 => (by.max(0) as usize).min(last),
            None => self.top.min(last),
        };
        self.selected = Some(names[to].clone());
    }

    fn sort_by_next(&mut self, by: isize) {
        let columns: Vec<Column> = layout(usize::MAX / 4, 0)
            .into_iter()
            .map(|placed| placed.column)
            .filter(|column| column.is_sortable())
            .collect();
        let at = columns.iter().position(|column| *column == self.sort).unwrap_or(0) as isize;
        self.sort = columns[(at + by).rem_euclid(columns.len() as isize) as usize];
        self.top = 0;
    }
}
