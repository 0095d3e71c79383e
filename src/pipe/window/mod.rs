//! Windows: which messages belong together, and when no more of them will come.
//!
//! A pure state machine. It knows offsets, times and keys; it has no bodies, no clock, no files,
//! and never asks for any. The run loop of the pipe feeds it with every message of the source in
//! order and takes the windows that are closed by it.
//!
//! ```text
//! handle_message ─▶ late? ─▶ panes | sessions | counts ─▶ watermark rises ─▶ next_closed
//! handle_clock, handle_flush ───────────────────────────────────▲
//! checkpoint ─▶ into the commit ─▶ (crash) ─▶ resume, handle_message from the floor on
//! ```
//!
//! # What is exact
//!
//! What is closed, and in which order, depends on the messages alone and not on how they come in
//! batches: a window closes with the message that takes the watermark to its end, and as no
//! window is opened that would be closed already, the ends never decrease. Windows of one end
//! come in the order of their starts and keys; one without a key comes first.
//!
//! After a restart, the messages from the checkpoint's floor (the oldest that was in an open
//! window) to its position are read again, with the watermark that there was just before the
//! floor. Windows that close meanwhile were told before. Of a session that was closed, some
//! messages may lie before the floor; what is left of it closes no later and reaches no further
//! than the whole did, so it neither takes in nor splits what was open. `model.rs` holds all this
//! against a plain model.

mod checkpoint;
mod counts;
mod firsts;
mod members;
#[cfg(test)]
mod model;
mod panes;
mod sessions;
mod spec;
mod watermark;

use std::ops::Range;
use std::sync::Arc;

use crate::limits;
use crate::planted::{self, Bug};
use crate::units::{Offset, WallTime};
pub use checkpoint::Checkpoint;
use counts::Counts;
use firsts::Firsts;
pub use members::{Members, Run};
use panes::Panes;
use sessions::Sessions;
pub use spec::{Kind, Spec};
pub use watermark::Rise;
use watermark::Watermark;

/// The key of a message. Those without one have one in common, the first of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Option<Arc<[u8]>>);

impl Key {
    /// This key.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Key {
        Key(Some(bytes.into()))
    }

    /// That of messages without one.
    #[must_use]
    pub fn none() -> Key {
        Key(None)
    }

    /// Its bytes, if it is one.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }
}

/// A message, as far as windows know it.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its offset; greater than that of the message before.
    pub offset: Offset,
    /// Its time, if it has one that can be read.
    pub time: Option<WallTime>,
    /// Its key.
    pub key: Key,
    /// Where its bytes are kept. Only carried.
    pub place: Range<u64>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is in a window, or in several.
    Taken,
    /// All its windows were closed already.
    Late,
    /// It has no time, and the windows have.
    Untimed,
    /// It was read before the checkpoint already; it is in those of its windows that are open.
    Reread,
}

/// What a window spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// The time from `start` to just before `end`, in microseconds since 1970; signed, as a
    /// sliding window of early messages may begin before.
    Times {
        /// The first microsecond inside.
        start: i64,
        /// The first behind.
        end: i64,
    },
    /// Messages.
    Offsets {
        /// The first.
        first: Offset,
        /// The last.
        last: Offset,
    },
}

/// A window to which nothing will be added any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// What it spans.
    pub extent: Extent,
    /// The key of all its messages.
    pub key: Key,
    /// Its messages; never none.
    pub members: Members,
}

/// Why a message cannot be taken. Nothing has changed; it would be the same the next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// See [`limits::OPEN_WINDOWS_MAX`].
    #[error(
        "{} windows are open, which is the most that there may be; with fewer keys or shorter \
         windows there are fewer",
        limits::OPEN_WINDOWS_MAX
    )]
    Windows,
    /// See [`limits::OPEN_RUNS_MAX`].
    #[error(
        "the open windows hold {} messages apart from each other, which is the most that there \
         may be; shorter windows hold fewer",
        limits::OPEN_RUNS_MAX
    )]
    Messages,
    /// See [`limits::COUNTED_KEYS_MAX`].
    #[error(
        "{} keys have filled a window of messages since the oldest window that is still open \
         began, which is the most that can be remembered; take windows of time, or fewer keys",
        limits::COUNTED_KEYS_MAX
    )]
    Keys,
}

/// What is open, as figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Open windows. For sliding ones, the parts of time that they have in common.
    pub windows: usize,
    /// Runs of messages in them, each some 32 bytes of memory.
    pub runs: usize,
}

#[derive(Debug)]
enum Shape {
    Panes(Panes),
    Sessions(Sessions),
    Counts(Counts),
}

/// See the module's page.
#[derive(Debug)]
pub struct Windows {
    shape: Shape,
    watermark: Watermark,
    /// Behind the last message that was read.
    next: Offset,
    /// While what was read before it is read again: the checkpoint, and how many of its rises
    /// have been done.
    resuming: Option<(Checkpoint, usize)>,
    /// Whether all windows that are closed were taken.
    is_told: bool,
}

impl Windows {
    /// No window is open, and the first message is at `from` or behind.
    #[must_use]
    pub fn new(spec: &Spec, from: Offset) -> Windows {
        let shape = match spec.kind {
            Kind::Aligned { size, every } => Shape::Panes(Panes::new(size, every)),
            Kind::Session { gap } => Shape::Sessions(Sessions::new(gap)),
            Kind::Count(count) => Shape::Counts(Counts::new(count)),
        };
        let watermark = Watermark::new(spec.late, WallTime(0));
        Windows { shape, watermark, next: from, resuming: None, is_told: true }
    }

    /// As they were at a checkpoint, once the messages from its floor to its position are handed
    /// in again.
    #[must_use]
    pub fn resume(spec: &Spec, checkpoint: Checkpoint) -> Windows {
        let mut windows = Windows::new(spec, checkpoint.floor);
        windows.watermark = Watermark::new(spec.late, checkpoint.floor_watermark);
        if let Shape::Counts(counts) = &mut windows.shape {
            counts.reread(&checkpoint.lasts);
        }
        windows.resuming = Some((checkpoint, 0));
        windows.discard_closed();
        windows
    }

    /// Takes the next message. Before the next one, [`next_closed`](Windows::next_closed) must have said
    /// that there is nothing more.
    ///
    /// # Errors
    /// More would be open than there may be.
    pub fn handle_message(&mut self, message: Message) -> Result<Fate, Full> {
        assert!(self.is_told, "closed windows are taken before the next message");
        assert!(message.offset >= self.next, "messages come in order");
        if self.resuming.as_ref().is_some_and(|(until, _)| message.offset >= until.next) {
            self.catch_up();
        }
        self.repeat_rises(message.offset);
        self.check_room(&message.key)?;
        self.next = Offset(message.offset.0 + 1);
        let fate = self.take(message);
        if self.resuming.is_some() {
            self.discard_closed();
            return Ok(Fate::Reread);
        }
        self.is_told = fate != Fate::Taken;
        Ok(fate)
    }

    fn take(&mut self, message: Message) -> Fate {
        if let Shape::Counts(counts) = &mut self.shape {
            counts.insert(message);
            return Fate::Taken;
        }
        let Some(time) = message.time.filter(|time| *time <= limits::EVENT_TIME_MAX) else {
            return Fate::Untimed;
        };
        self.watermark.note(time);
        let watermark = self.watermark.at();
        let is_taken = match &mut self.shape {
            Shape::Panes(panes) if panes.is_late(time, watermark) => false,
            Shape::Panes(panes) => {
                panes.insert(message, time, watermark);
                true
            }
            Shape::Sessions(sessions) => sessions.insert(message, time, watermark),
            Shape::Counts(_) => unreachable!("they are done with"),
        };
        // A late one is no later than the watermark, so it could not raise it.
        self.watermark.pass(time);
        if is_taken { Fate::Taken } else { Fate::Late }
    }

    /// What is read again had room before.
    fn check_room(&mut self, key: &Key) -> Result<(), Full> {
        if self.resuming.is_some() {
            return Ok(());
        }
        let Figures { windows, runs } = self.figures();
        if windows >= limits::OPEN_WINDOWS_MAX {
            return Err(Full::Windows);
        }
        if runs >= limits::OPEN_RUNS_MAX {
            return Err(Full::Messages);
        }
        match &mut self.shape {
            Shape::Counts(counts) if !counts.has_room(key) => {
                let floor = counts.firsts().floor().map_or(self.next, |(floor, _)| floor);
                counts.forget_below(floor);
                if counts.has_room(key) { Ok(()) } else { Err(Full::Keys) }
            }
            _ => Ok(()),
        }
    }

    /// The source is read to its end, which is before the offset `next`, and its server's clock
    /// says `now`; for windows of stored time only, as no message will be stored at an earlier
    /// one. Windows of event time know no clock.
    pub fn handle_clock(&mut self, next: Offset, now: WallTime) {
        self.reach(next);
        // When it was set back so often that no more can be remembered, the next messages will
        // close what the clock does not.
        if matches!(self.shape, Shape::Counts(_)) || self.watermark.is_full() {
            return;
        }
        let now = now.min(limits::EVENT_TIME_MAX);
        if self.watermark.pass_clock(next, now) {
            self.is_told = false;
        }
    }

    /// There is nothing behind `next`, and nothing more to wait for: closes all windows. Messages
    /// that come later and would have been in them are late.
    pub fn handle_flush(&mut self, next: Offset) {
        self.reach(next);
        let end = match &mut self.shape {
            Shape::Panes(panes) => panes.last_closing(),
            Shape::Sessions(sessions) => sessions.last_closing(),
            Shape::Counts(counts) => {
                counts.flush();
                None
            }
        };
        if let Some(end) = end {
            self.watermark.rise(Rise { at: next, to: end });
        }
        self.is_told = false;
    }

    fn reach(&mut self, next: Offset) {
        assert!(self.is_told, "closed windows are taken before anything else");
        self.next = self.next.max(next);
        if self.resuming.is_some() {
            self.catch_up();
        }
    }

    /// The next window that is closed.
    pub fn next_closed(&mut self) -> Option<Closed> {
        let watermark = self.watermark.at();
        let closed = match &mut self.shape {
            Shape::Panes(panes) => panes.next_closed(watermark),
            Shape::Sessions(sessions) => sessions.next_closed(watermark),
            Shape::Counts(counts) => counts.next_closed(),
        };
        self.is_told = closed.is_none();
        closed
    }

    /// Whether messages are to be read again before what is new.
    #[must_use]
    pub fn is_resuming(&self) -> bool {
        self.resuming.is_some()
    }

    /// Does the rises of the checkpoint again that came before this message.
    fn repeat_rises(&mut self, offset: Offset) {
        let Some((checkpoint, done)) = &mut self.resuming else { return };
        while let Some(rise) = checkpoint.rises.get(*done).filter(|rise| rise.at <= offset) {
            self.watermark.rise(*rise);
            *done += 1;
        }
        self.discard_closed();
    }

    /// All that was read before has been read again.
    fn catch_up(&mut self) {
        self.repeat_rises(self.next);
        let Some((checkpoint, _)) = self.resuming.take() else { return };
        self.next = self.next.max(checkpoint.next);
        self.watermark.resume_at(checkpoint.watermark);
        if let Shape::Counts(counts) = &mut self.shape {
            counts.caught_up();
        }
        self.discard_closed();
    }

    /// Passes over windows that were told before the restart.
    fn discard_closed(&mut self) {
        while !planted::is(Bug::WindowClosedTwice) && self.next_closed().is_some() {}
    }

    fn firsts(&self) -> &Firsts {
        match &self.shape {
            Shape::Panes(panes) => panes.firsts(),
            Shape::Sessions(sessions) => sessions.firsts(),
            Shape::Counts(counts) => counts.firsts(),
        }
    }

    /// The oldest message in an open window and the watermark just before it.
    fn floor(&self, next: Offset) -> (Offset, WallTime) {
        self.firsts().floor().unwrap_or((next, self.watermark.at()))
    }

    /// What a commit must say so that a restart comes to the same windows, when all messages
    /// before `next` have been handed in and all closed windows taken.
    pub fn checkpoint(&mut self, next: Offset) -> Checkpoint {
        assert!(self.is_told, "closed windows are taken before a checkpoint");
        if let Some((checkpoint, _)) = &self.resuming {
            return checkpoint.clone();
        }
        assert!(next >= self.next, "the position is behind all that was read");
        let (floor, floor_watermark) = self.floor(next);
        self.watermark.forget_below(floor);
        let mut lasts = Vec::new();
        if let Shape::Counts(counts) = &mut self.shape {
            counts.forget_below(floor);
            lasts = counts.lasts();
        }
        Checkpoint {
            next,
            watermark: self.watermark.at(),
            floor,
            floor_watermark,
            rises: self.watermark.rises().to_vec(),
            lasts,
        }
    }

    /// With stored time: when the server's clock will close the next window, if nothing comes.
    pub fn next_deadline(&mut self) -> Option<WallTime> {
        let end = match &mut self.shape {
            Shape::Panes(panes) => panes.next_closing(),
            Shape::Sessions(sessions) => sessions.next_closing(),
            Shape::Counts(_) => None,
        };
        end.map(|end| self.watermark.clock_at(end))
    }

    /// How much is open.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let (windows, runs) = match &self.shape {
            Shape::Panes(panes) => (panes.groups(), panes.runs()),
            Shape::Sessions(sessions) => (sessions.groups(), sessions.runs()),
            Shape::Counts(counts) => (counts.groups(), counts.runs()),
        };
        Figures { windows, runs }
    }
}
