//! Cutting input into batches: where the last complete message ends, and how many there are.
//!
//! What one read returned becomes one batch; the unfinished message at its end is carried into the
//! next buffer. Nothing is done per message. It reads nothing itself: the sender reads into
//! [`Cutter::space`] and tells how much came.

use super::envelope::EnvelopeError;
use super::rerun::Mismatch;
use super::window::{BODY_AT, BUFFER_BYTES, PART_BUFFER_BYTES, PART_BYTES, SMALL_BYTES, Window};
use crate::limits;

/// What ends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// This byte.
    At(u8),
    /// Only the end of the source.
    Whole,
}

/// Why an input cannot be taken as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// A message is too large.
    TooLarge(TooLarge),
    /// A line is no envelope, or what it says cannot be.
    Envelope {
        /// Which line of its source, counted from 1.
        line: u64,
        /// What is wrong.
        what: EnvelopeError,
    },
    /// A large message cannot be delayed.
    DelayedLarge {
        /// Which message of the input it is, counted from 1.
        message: u64,
    },
    /// It is not the input that its producer has sent before.
    Rerun(Mismatch),
}

impl From<TooLarge> for Misfit {
    fn from(what: TooLarge) -> Misfit {
        Misfit::TooLarge(what)
    }
}

impl From<Mismatch> for Misfit {
    fn from(what: Mismatch) -> Misfit {
        Misfit::Rerun(what)
    }
}

/// A message that is larger than [`limits::MESSAGE_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Which message of the input it is, counted from 1.
    pub message: u64,
    /// Where it begins in its source, in bytes.
    pub begins: u64,
}

/// See the module's page.
#[derive(Debug)]
pub struct Cutter {
    cut: Cut,
    buffer: Vec<u8>,
    /// Where the next byte goes in the buffer.
    filled: usize,
    /// Full parts of the message that is being read, when it is a large one.
    parts: Vec<Vec<u8>>,
    /// Bytes of this source so far.
    position: u64,
}

impl Cutter {
    /// Cuts messages as `cut` says.
    #[must_use]
    pub fn new(cut: Cut) -> Cutter {
        Cutter {
            cut,
            // Made when something is read: with a text at hand, nothing ever is.
            buffer: Vec::new(),
            filled: BODY_AT,
            parts: Vec::new(),
            position: 0,
        }
    }

    /// Where to read into: at most a batch's worth, never nothing.
    pub fn space(&mut self) -> &mut [u8] {
        self.prepare();
        // The last byte stays free for a delimiter that the input lacks.
        if self.filled + 1 == self.buffer.len() {
            if self.buffer.len() < PART_BUFFER_BYTES {
                self.buffer.resize(PART_BUFFER_BYTES, 0);
            } else {
                self.parts.push(std::mem::replace(&mut self.buffer, vec![0; PART_BUFFER_BYTES]));
                self.filled = BODY_AT;
            }
        }
        let end = (self.buffer.len() - 1).min(self.filled + limits::SEND_BATCH_BYTES);
        &mut self.buffer[self.filled..end]
    }

    fn prepare(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER_BYTES];
        }
    }

    /// `bytes` were read into [`Cutter::space`]: puts what is complete into the window.
    ///
    /// # Errors
    /// A message that is too large; everything before it is in the window.
    pub fn advance(&mut self, bytes: usize, window: &mut Window) -> Result<(), TooLarge> {
        let new = self.filled;
        self.filled += bytes;
        self.position += bytes as u64;
        if let Cut::At(delimiter) = self.cut {
            if self.parts.is_empty() {
                self.cut_lines(new, delimiter, window);
            } else if let Some(at) = memchr::memchr(delimiter, &self.buffer[new..self.filled]) {
                self.finish_large(new + at, new + at + 1, window)?;
                self.cut_lines(BODY_AT, delimiter, window);
            }
        }
        self.check_size(self.filled, window)
    }

    /// Cuts behind the last delimiter at or behind `new`; before it there is none.
    fn cut_lines(&mut self, new: usize, delimiter: u8, window: &mut Window) {
        let fresh = &self.buffer[new..self.filled];
        let Some(last) = memchr::memrchr(delimiter, fresh) else { return };
        let count = memchr::memchr_iter(delimiter, &fresh[..=last]).count() as u32;
        self.cut_at(new + last + 1, count, delimiter, window);
    }

    fn cut_at(&mut self, end: usize, count: u32, delimiter: u8, window: &mut Window) {
        let filled = std::mem::replace(&mut self.filled, BODY_AT);
        let buffer = std::mem::take(&mut self.buffer);
        let tail = filled - end;
        if tail == 0 {
            let unused = window.push(buffer, end, count, delimiter);
            self.buffer = unused.unwrap_or_else(|| window.take_buffer());
            return;
        }
        let mut next = window.take_buffer();
        next[BODY_AT..BODY_AT + tail].copy_from_slice(&buffer[end..filled]);
        self.buffer = next;
        self.filled += tail;
        if let Some(unused) = window.push(buffer, end, count, delimiter) {
            window.put_buffer(unused);
        }
    }

    fn check_size(&self, end: usize, window: &Window) -> Result<(), TooLarge> {
        let bytes = self.parts.len() * PART_BYTES + (end - BODY_AT);
        if bytes <= limits::MESSAGE_BYTES_MAX {
            return Ok(());
        }
        let behind = (self.filled - end) as u64;
        Err(TooLarge {
            message: window.sequence().0 + 1,
            begins: self.position - behind - bytes as u64,
        })
    }

    /// The message in `parts` and the buffer ends at `end`; what stands from `rest` on is next.
    fn finish_large(
        &mut self,
        end: usize,
        rest: usize,
        window: &mut Window,
    ) -> Result<(), TooLarge> {
        self.check_size(end, window)?;
        let mut next = window.take_buffer();
        let tail = self.filled - rest;
        next[BODY_AT..BODY_AT + tail].copy_from_slice(&self.buffer[rest..self.filled]);
        let buffer = std::mem::replace(&mut self.buffer, next);
        self.filled = BODY_AT + tail;
        let full = BODY_AT + PART_BYTES;
        let mut parts: Vec<_> = self.parts.drain(..).map(|part| (part, full)).collect();
        if parts.is_empty() || end > BODY_AT {
            parts.push((buffer, end));
        }
        window.push_record(parts);
        Ok(())
    }

    /// The source has ended, and with it its last message.
    ///
    /// # Errors
    /// A message that is too large.
    pub fn end_source(&mut self, window: &mut Window) -> Result<(), TooLarge> {
        self.prepare();
        match self.cut {
            Cut::At(delimiter) if self.parts.is_empty() => {
                if self.filled > BODY_AT {
                    self.buffer[self.filled] = delimiter;
                    self.filled += 1;
                    self.cut_at(self.filled, 1, delimiter, window);
                }
            }
            _ => self.finish_large(self.filled, self.filled, window)?,
        }
        self.position = 0;
        Ok(())
    }

    /// Forgets the message that has begun and not ended. Returns whether there was one.
    pub fn drop_unfinished(&mut self) -> bool {
        let begun = self.filled > BODY_AT || !self.parts.is_empty();
        self.filled = BODY_AT;
        self.parts.clear();
        begun
    }
}

/// Adds one message that is at hand: delimited when its body allows that, else as a record.
///
/// # Errors
/// A message that is too large.
pub fn push_message(body: &[u8], cut: Cut, window: &mut Window) -> Result<(), TooLarge> {
    let delimiter = match cut {
        Cut::At(delimiter) => Some(delimiter),
        Cut::Whole => None,
    };
    if BODY_AT + body.len() < SMALL_BYTES {
        push_small(body, delimiter, window);
        return Ok(());
    }
    let mut cutter = Cutter::new(Cut::Whole);
    if delimiter.is_some_and(|delimiter| memchr::memchr(delimiter, body).is_none()) {
        cutter.cut = cut;
    }
    let mut rest = body;
    while !rest.is_empty() {
        let space = cutter.space();
        let bytes = space.len().min(rest.len());
        space[..bytes].copy_from_slice(&rest[..bytes]);
        cutter.advance(bytes, window)?;
        rest = &rest[bytes..];
    }
    cutter.end_source(window)
}

/// One small message in a buffer of its own size. For a process that sends nothing else the
/// ordinary buffer would be dear, and so would memchr, which asks the processor for its features
/// first: a virtual machine traps that (7 µs each time, seven times).
fn push_small(body: &[u8], delimiter: Option<u8>, window: &mut Window) {
    let end = BODY_AT + body.len();
    let mut buffer = vec![0; end + 1];
    buffer[BODY_AT..end].copy_from_slice(body);
    match delimiter.filter(|delimiter| !body.contains(delimiter)) {
        Some(delimiter) => {
            buffer[end] = delimiter;
            let unused = window.push(buffer, end + 1, 1, delimiter);
            assert!(unused.is_none(), "a buffer of its own size is not too large");
        }
        None => window.push_record(vec![(buffer, end)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{self, Framing};
    use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, Request};

    /// Everything in the window, read back as a server does: the messages, each checked.
    fn messages(window: &mut Window) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut large = Vec::new();
        while !window.unwritten().is_empty() {
            let frame = window.unwritten().to_vec();
            let head = frame.first_chunk::<FRAME_HEADER_BYTES>().expect("a header");
            let header = FrameHeader::decode(head).expect("valid");
            assert_eq!(header.length as usize + FRAME_HEADER_BYTES, frame.len());
            let request =
                Request::decode(&header, &frame[FRAME_HEADER_BYTES..]).expect("a request");
            let Request::Publish(head, payload) = request else { panic!("a PUBLISH") };
            if head.framing == Framing::Records {
                large.extend_from_slice(payload);
            }
            let whole = if large.is_empty() { payload } else { &large };
            if !head.more {
                batch::check_messages(head.framing, whole, head.count).expect("as announced");
                found.extend(batch::bodies(head.framing, whole).map(<[u8]>::to_vec));
                assert_eq!(head.sequence.0, found.len() as u64);
                large.clear();
            }
            window.wrote(frame.len());
        }
        found
    }

    fn feed(cutter: &mut Cutter, window: &mut Window, mut input: &[u8], step: usize) {
        while !input.is_empty() {
            let space = cutter.space();
            let bytes = space.len().min(input.len()).min(step);
            space[..bytes].copy_from_slice(&input[..bytes]);
            cutter.advance(bytes, window).expect("not too large");
            input = &input[bytes..];
        }
    }

    fn cut_all(cut: Cut, input: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut window = Window::default();
        let mut cutter = Cutter::new(cut);
        feed(&mut cutter, &mut window, input, step);
        cutter.end_source(&mut window).expect("not too large");
        messages(&mut window)
    }

    #[test]
    fn every_byte_comes_through_whatever_a_read_returns() {
        let input = b"one\n\ntwo\0\xff\r\n\nlast without its end";
        let expected: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        for step in 1..input.len() + 1 {
            assert_eq!(cut_all(Cut::At(b'\n'), input, step), expected, "step {step}");
        }
        assert_eq!(cut_all(Cut::Whole, input, 5), [input]);
    }

    #[test]
    fn empty_input_is_no_line_and_one_whole_message() {
        assert!(cut_all(Cut::At(b'\n'), b"", 1).is_empty());
        assert_eq!(cut_all(Cut::Whole, b"", 1), [b""]);
    }

    #[test]
    fn lines_of_all_sizes_come_through() {
        let sizes = [
            0,
            1,
            limits::SEND_BATCH_BYTES - 1,
            limits::SEND_BATCH_BYTES,
            limits::SEND_BATCH_BYTES + 1,
            PART_BYTES - 1,
            PART_BYTES,
            PART_BYTES + 1,
            2 * PART_BYTES,
            3 * PART_BYTES + 17,
        ];
        let mut input = Vec::new();
        for (n, size) in sizes.iter().enumerate() {
            input.extend(std::iter::repeat_n(b'a' + n as u8, *size));
            input.extend_from_slice(b"\nx\n");
        }
        let mut expected: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        expected.pop();
        for step in [usize::MAX, 65_536, 100_003] {
            assert!(cut_all(Cut::At(b'\n'), &input, step) == expected, "step {step}");
            let without_end = &input[..input.len() - 1];
            assert!(cut_all(Cut::At(b'\n'), without_end, step) == expected, "step {step}");
        }
        for size in sizes {
            assert!(cut_all(Cut::Whole, &input[..size], usize::MAX) == [&input[..size]]);
        }
    }

    #[test]
    fn too_large_message_is_named_and_what_is_before_it_is_kept() {
        let mut window = Window::default();
        let mut cutter = Cutter::new(Cut::At(b'\n'));
        feed(&mut cutter, &mut window, b"one\ntwo\n", 100);
        let mut left = limits::MESSAGE_BYTES_MAX + 1;
        let error = loop {
            let space = cutter.space();
            let bytes = space.len().min(left);
            space[..bytes].fill(b'x');
            left -= bytes;
            if let Err(error) = cutter.advance(bytes, &mut window) {
                break error;
            }
        };
        assert_eq!(error, TooLarge { message: 3, begins: 8 });
        assert_eq!(left, 0);
        assert_eq!(messages(&mut window), [b"one", b"two"]);
    }

    #[test]
    fn largest_message_comes_through_with_its_delimiter() {
        let mut input = vec![b'x'; limits::MESSAGE_BYTES_MAX];
        input.extend_from_slice(b"\nnext\n");
        let found = cut_all(Cut::At(b'\n'), &input, usize::MAX);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].len(), limits::MESSAGE_BYTES_MAX);
    }

    #[test]
    fn message_at_hand_is_delimited_when_it_can_be() {
        let mut window = Window::default();
        let line = Cut::At(b'\n');
        for body in [b"".as_slice(), b"plain", b"two\nlines", b"\n"] {
            push_message(body, line, &mut window).expect("not too large");
        }
        push_message(b"", Cut::Whole, &mut window).expect("not too large");
        let expected: [&[u8]; 5] = [b"", b"plain", b"two\nlines", b"\n", b""];
        assert_eq!(messages(&mut window), expected);
    }

    #[test]
    fn unfinished_message_can_be_dropped() {
        let mut window = Window::default();
        let mut cutter = Cutter::new(Cut::At(b'\n'));
        feed(&mut cutter, &mut window, b"one\ntw", 100);
        assert!(cutter.drop_unfinished());
        assert!(!cutter.drop_unfinished());
        cutter.end_source(&mut window).expect("nothing left");
        assert_eq!(messages(&mut window), [b"one"]);
    }
}
