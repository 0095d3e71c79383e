//! Packing input into batches when its messages have attributes: from the command line (`-k`,
//! `-H`, ...), from envelopes (`-J`), or when each batch says how far the input is
//! (`--producer`).
//!
//! As with the [cutter](super::cut::Cutter), what one read returned becomes one batch, if it fits; but
//! here every message is looked at, and copied once. Plain lines without attributes stay
//! delimited. Messages that are delayed never share a batch with ones that are not. It reads
//! nothing itself: the sender reads into [`Packer::space`] and tells how much came.

mod draft;

use std::ops::Range;

use draft::{DelayedLarge, Draft, Message, Original, Shape};

use super::cut::{Cut, Misfit, TooLarge};
use super::envelope::Reader;
use super::given::{Given, too_many};
use super::rerun::Rerun;
use super::window::Window;
use crate::limits;
use crate::units::WallTime;

/// Bytes of a line with an envelope. A body that is escaped byte for byte is six times as long.
const LINE_BYTES_MAX: usize =
    6 * (limits::MESSAGE_BYTES_MAX + limits::ATTRIBUTE_BYTES_MAX) + (1 << 16);

/// A buffer that has become larger than this is given back when it is not needed any more.
const KEPT_BYTES: usize = 4 * limits::SEND_BATCH_BYTES;

/// What to make of an input.
#[derive(Debug)]
pub struct Packing {
    /// What ends a message, or a line with an envelope.
    pub cut: Cut,
    /// Whether the lines are envelopes.
    pub envelopes: bool,
    /// What the command line gives.
    pub given: Given,
    /// For a producer with a name.
    pub rerun: Option<Rerun>,
    /// Whether the window is to keep a copy of the input.
    pub copies: bool,
}

/// See the module's page.
#[derive(Debug)]
pub struct Packer {
    input: Input,
    press: Press,
}

/// What was read, and how much of it was dealt with.
#[derive(Debug, Default)]
struct Input {
    buffer: Vec<u8>,
    /// Where the next message begins.
    start: usize,
    /// Up to here there is no delimiter.
    scanned: usize,
    filled: usize,
    /// Bytes of this source before `start`, and messages or lines.
    position: u64,
    line: u64,
}

impl Input {
    /// The next message that is whole, without its delimiter.
    fn next(&mut self, delimiter: u8) -> Option<Range<usize>> {
        let found = memchr::memchr(delimiter, &self.buffer[self.scanned..self.filled]);
        let Some(at) = found.map(|at| self.scanned + at) else {
            self.scanned = self.filled;
            return None;
        };
        let message = self.start..at;
        self.pass(at + 1);
        Some(message)
    }

    /// Everything before `next` is dealt with.
    fn pass(&mut self, next: usize) {
        self.position += (next - self.start) as u64;
        self.line += 1;
        (self.start, self.scanned) = (next, next);
    }
}

impl Packer {
    /// Packs as `packing` says.
    #[must_use]
    pub fn new(packing: Packing) -> Packer {
        let Packing { cut, envelopes, given, rerun, copies } = packing;
        let draft = Draft::new(copies, rerun.is_some());
        Packer {
            input: Input::default(),
            press: Press {
                cut,
                envelopes: envelopes.then(Reader::default),
                given,
                rerun,
                now: WallTime(0),
                fixed: Vec::new(),
                fixed_until: None,
                attributes: Vec::new(),
                draft,
            },
        }
    }

    /// Where to read into: a batch's worth.
    pub fn space(&mut self) -> &mut [u8] {
        let input = &mut self.input;
        if input.start > 0 {
            input.buffer.copy_within(input.start..input.filled, 0);
            input.scanned -= input.start;
            input.filled -= input.start;
            input.start = 0;
        }
        let wanted = input.filled + limits::SEND_BATCH_BYTES;
        if input.buffer.len() > KEPT_BYTES && wanted < KEPT_BYTES {
            // A large message has passed.
            input.buffer.truncate(wanted);
            input.buffer.shrink_to_fit();
        }
        if input.buffer.len() < wanted {
            // Doubled, so that a large message is not copied over and over.
            input.buffer.resize(wanted.max(2 * input.buffer.len()), 0);
        }
        &mut input.buffer[input.filled..wanted]
    }

    /// `bytes` were read into [`Packer::space`] at the time `now`: puts the messages that are
    /// whole into the window.
    ///
    /// # Errors
    /// A message that cannot be taken; everything before it is in the window.
    pub fn advance(
        &mut self,
        bytes: usize,
        now: WallTime,
        window: &mut Window,
    ) -> Result<(), Misfit> {
        self.input.filled += bytes;
        self.press.at(now);
        let packed = self.pack(window);
        self.press.flush(window);
        packed.and_then(|()| self.check_size(window))
    }

    fn pack(&mut self, window: &mut Window) -> Result<(), Misfit> {
        let Cut::At(delimiter) = self.press.cut else { return Ok(()) };
        loop {
            let (position, line) = (self.input.position, self.input.line);
            let Some(message) = self.input.next(delimiter) else { return Ok(()) };
            let place = Place { line: line + 1, position };
            self.press.take(&self.input.buffer[message], place, window)?;
        }
    }

    fn check_size(&self, window: &Window) -> Result<(), Misfit> {
        let bytes = self.input.filled - self.input.start;
        let most = match self.press.envelopes {
            Some(_) => LINE_BYTES_MAX,
            None => limits::MESSAGE_BYTES_MAX,
        };
        if bytes <= most {
            return Ok(());
        }
        Err(self.press.too_large(self.input.position, window))
    }

    /// The source has ended, and with it its last message.
    ///
    /// # Errors
    /// A message that cannot be taken.
    pub fn end_source(&mut self, now: WallTime, window: &mut Window) -> Result<(), Misfit> {
        self.press.at(now);
        let Input { start, filled, position, line, .. } = self.input;
        let is_whole = self.press.cut == Cut::Whole;
        let packed = if filled > start || is_whole {
            let place = Place { line: line + 1, position };
            self.press.take(&self.input.buffer[start..filled], place, window)
        } else {
            Ok(())
        };
        self.press.flush(window);
        let buffer = std::mem::take(&mut self.input.buffer);
        self.input = Input { buffer, ..Input::default() };
        packed
    }

    /// Takes one message that is at hand, whatever is in it.
    ///
    /// # Errors
    /// A message that cannot be taken.
    pub fn message(
        &mut self,
        message: &[u8],
        now: WallTime,
        window: &mut Window,
    ) -> Result<(), Misfit> {
        self.press.at(now);
        let packed = self.press.take(message, Place { line: 1, position: 0 }, window);
        self.press.flush(window);
        packed
    }

    /// Forgets the message that has begun and not ended.
    pub fn drop_unfinished(&mut self) {
        let buffer = std::mem::take(&mut self.input.buffer);
        self.input = Input { buffer, ..Input::default() };
    }

    /// Whether the input is text, cut at newlines, which NUL bytes would be strange in.
    #[must_use]
    pub fn expects_text(&self) -> bool {
        self.press.cut == Cut::At(b'\n') && self.press.envelopes.is_none()
    }

    /// What is known of an earlier run of the same input.
    pub fn rerun(&mut self) -> Option<&mut Rerun> {
        self.press.rerun.as_mut()
    }

    /// Whether nothing of it may be sent yet.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.press.rerun.as_ref().is_some_and(Rerun::is_open)
    }
}

/// Where a message stands in its source.
#[derive(Clone, Copy, Debug)]
struct Place {
    line: u64,
    position: u64,
}

/// Makes messages of lines, and batches of messages.
#[derive(Debug)]
struct Press {
    cut: Cut,
    envelopes: Option<Reader>,
    given: Given,
    rerun: Option<Rerun>,
    now: WallTime,
    /// The attributes of every message without an envelope, at this moment, and until when they
    /// say that it is delayed.
    fixed: Vec<u8>,
    fixed_until: Option<WallTime>,
    /// Those of the message that is being packed.
    attributes: Vec<u8>,
    draft: Draft,
}

impl Press {
    fn at(&mut self, now: WallTime) {
        self.now = now;
        if self.envelopes.is_none() && !self.given.is_empty() {
            self.fixed.clear();
            self.fixed_until = self.given.push_attributes(now, &mut self.fixed);
        }
    }

    /// Packs one message.
    fn take(&mut self, line: &[u8], place: Place, window: &mut Window) -> Result<(), Misfit> {
        // Files that were put together have empty lines between them, which say nothing.
        if self.envelopes.is_some() && line.trim_ascii().is_empty() {
            return Ok(());
        }
        if let Some(rerun) = &mut self.rerun
            && rerun.is_next_stored()
        {
            rerun.next(line)?;
            return Ok(());
        }
        let is_line = self.envelopes.is_none();
        let Press { cut, envelopes, given, rerun, now, fixed, attributes, draft, .. } = self;
        let envelope;
        let message = match envelopes {
            None => Message {
                attributes: fixed,
                body: line,
                is_delayed: self.fixed_until.is_some_and(|until| until > *now),
            },
            Some(reader) => {
                let misfit = |what| Misfit::Envelope { line: place.line, what };
                envelope = given.complete(reader.read(line).map_err(misfit)?, *now);
                attributes.clear();
                envelope.push_attributes(attributes);
                if attributes.len() > limits::ATTRIBUTE_BYTES_MAX {
                    return Err(misfit(too_many(attributes.len())));
                }
                let is_delayed = envelope.not_before.is_some_and(|until| until > *now);
                Message { attributes, body: &envelope.body, is_delayed }
            }
        };
        let number = window.sequence().0 + draft.count() + 1;
        if message.body.len() > limits::MESSAGE_BYTES_MAX {
            return Err(TooLarge { message: number, begins: place.position }.into());
        }
        let delimiter = match cut {
            Cut::At(delimiter) => Some(*delimiter),
            Cut::Whole => None,
        };
        // Only lines as they came are known not to hold the delimiter.
        let is_plain = is_line && message.attributes.is_empty();
        let shape = Shape { delimiter: delimiter.filter(|_| is_plain), ..message.shape() };
        if !draft.has_room_for(&message, shape) {
            draft.flush(rerun.as_ref(), window);
        }
        let mut rerun = rerun.as_mut();
        if let Some(rerun) = &mut rerun {
            rerun.next(line)?;
        }
        let original = Original { bytes: line, delimiter };
        match draft.add(&message, shape, original, rerun.as_deref(), window) {
            Ok(()) => Ok(()),
            Err(DelayedLarge) => Err(Misfit::DelayedLarge { message: number }),
        }
    }

    fn flush(&mut self, window: &mut Window) {
        self.draft.flush(self.rerun.as_ref(), window);
    }

    fn too_large(&self, begins: u64, window: &Window) -> Misfit {
        let message = window.sequence().0 + self.draft.count() + 1;
        TooLarge { message, begins }.into()
    }
}

#[cfg(test)]
mod tests;
