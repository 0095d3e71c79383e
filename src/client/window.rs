//! The window of a sender: what it has cut and the server has not confirmed, kept for a resend.
//!
//! Pure bookkeeping: it reads and writes nothing. The cutter fills it, the sender writes out of
//! it. A batch keeps its boundaries when it is sent again, so that the server can tell what it has
//! stored already.
//!
//! # Buffers
//!
//! The frame's head is written into room that was left in front of the payload, so that a batch
//! is read, framed and written in one place and never copied:
//!
//! ```text
//!  0        8                 32      40
//! ┌────────┬─────────────────────────┬──────────────────────────────┐
//! │ unused │ frame header and head   │ delimited payload            │
//! ├────────┴────────────────┬────────┼──────────────────────────────┤
//! │ frame header and head   │ record │ body (its first part)        │
//! ├────────┬────────────────┴────────┼──────────────────────────────┤
//! │ unused │ frame header and head   │ body (a further part)        │
//! └────────┴─────────────────────────┴──────────────────────────────┘
//! ```

use std::collections::VecDeque;

use crate::batch::{Framing, RECORD_HEADER_BYTES};
use crate::limits;
use crate::units::{Micros, Sequence};
use crate::wire::{FRAME_HEADER_BYTES, PUBLISH_HEAD_BYTES, PublishHead};

const HEAD_BYTES: usize = FRAME_HEADER_BYTES + PUBLISH_HEAD_BYTES;

/// Where a payload or body begins in its buffer.
pub const BODY_AT: usize = HEAD_BYTES + RECORD_HEADER_BYTES;

/// Bytes of an ordinary buffer; the last one is for a delimiter that the input lacks.
pub const BUFFER_BYTES: usize = BODY_AT + limits::SEND_BATCH_BYTES + 1;

/// Body bytes in one part of a large message.
pub const PART_BYTES: usize = 1 << 20;

/// Bytes of a buffer that can hold one part of a large message.
pub const PART_BUFFER_BYTES: usize = BODY_AT + PART_BYTES + 1;

/// A smaller batch gets a buffer of its own size: a trickle of lines must not hold a large buffer
/// each while it waits for its confirmation.
const SMALL_BYTES: usize = 16 << 10;

/// What a batch costs besides its bytes, so that many tiny ones are bounded too.
const PIECE_COST: usize = 256;

/// The only channel of a sender's connection.
pub const CHANNEL: u16 = 1;

const _: () = {
    assert!(PART_BYTES + RECORD_HEADER_BYTES <= limits::BATCH_PAYLOAD_BYTES_MAX);
    assert!(PART_BYTES * limits::CHAIN_BATCHES_MAX >= limits::MESSAGE_BYTES_MAX);
    assert!(PART_BYTES + limits::SEND_BATCH_BYTES <= 2 * PART_BYTES);
};

/// One PUBLISH frame: a batch, or a part of a large message.
#[derive(Debug)]
pub struct Piece {
    buffer: Vec<u8>,
    /// Where the frame begins in the buffer.
    from: usize,
    /// Where it ends.
    to: usize,
    /// The sequence of its last message.
    last: Sequence,
    /// Whether more parts of the same message follow.
    more: bool,
}

impl Piece {
    /// The messages as they came, delimiters included.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.buffer[BODY_AT..self.to]
    }

    fn frame(&self) -> &[u8] {
        &self.buffer[self.from..self.to]
    }

    /// Ends a message that came without a delimiter, as a record does, for a copy of the input.
    pub fn end_with(&mut self, delimiter: u8) {
        let is_record = self.buffer[self.from + FRAME_HEADER_BYTES + 12] == 1;
        if is_record && !self.more {
            self.buffer.truncate(self.to);
            self.buffer.push(delimiter);
            self.to += 1;
        }
    }

    /// What it costs to keep.
    #[must_use]
    pub fn cost(&self) -> usize {
        // Half of the buffer at least, however little is in it: so the memory of a full window
        // is at most twice its bound, and reads of half a batch still fill it well.
        self.to.max(self.buffer.len() / 2) + PIECE_COST
    }
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Window {
    pieces: VecDeque<Piece>,
    /// The first piece that is not wholly written.
    next: usize,
    /// Bytes of it that are written.
    part: usize,
    /// What all pieces cost together.
    cost: usize,
    /// The sequence of the last message that was cut.
    sequence: Sequence,
    confirmed: Sequence,
    /// Ordinary buffers to use again. The last one put here is most likely in the core's cache.
    spare: Vec<Vec<u8>>,
}

impl Window {
    /// An ordinary buffer, its contents arbitrary.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| vec![0; BUFFER_BYTES])
    }

    /// Takes a buffer back. One that is not ordinary is freed.
    pub fn put_buffer(&mut self, buffer: Vec<u8>) {
        // All buffers in use count in `cost`, so this is bounded by it.
        if buffer.len() == BUFFER_BYTES {
            self.spare.push(buffer);
        }
    }

    /// Whether more may be read. One read's worth may go over the bound, or one large message.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.cost < limits::UNCONFIRMED_BYTES_MAX
    }

    /// Adds a batch of `count` messages that stand, each with its delimiter, in
    /// `buffer[BODY_AT..end]`. Gives a buffer back that the batch does not need.
    pub fn push(
        &mut self,
        mut buffer: Vec<u8>,
        end: usize,
        count: u32,
        delimiter: u8,
    ) -> Option<Vec<u8>> {
        self.sequence.0 += u64::from(count);
        let head = PublishHead {
            sequence: self.sequence,
            count,
            framing: Framing::Delimited(delimiter),
            batch_flags: 0,
            waited: Micros(0),
            more: false,
        };
        let from = BODY_AT - HEAD_BYTES;
        buffer[from..BODY_AT].copy_from_slice(&head.encode(CHANNEL, end - BODY_AT));
        self.add(buffer, from, end, false)
    }

    /// Adds one message whose body stands in `parts`, each from `BODY_AT` to the given end. All
    /// but the last hold [`PART_BYTES`].
    pub fn push_record(&mut self, parts: Vec<(Vec<u8>, usize)>) {
        let body_bytes: usize = parts.iter().map(|(_, end)| end - BODY_AT).sum();
        assert!(body_bytes <= limits::MESSAGE_BYTES_MAX, "the cutter lets no larger one through");
        self.sequence.0 += 1;
        let last_part = parts.len() - 1;
        for (n, (mut buffer, end)) in parts.into_iter().enumerate() {
            let first = n == 0;
            let record_bytes = if first { RECORD_HEADER_BYTES } else { 0 };
            let payload_at = BODY_AT - record_bytes;
            if first {
                // No attributes, then the length of the body.
                buffer[payload_at..payload_at + 4].fill(0);
                buffer[payload_at + 4..BODY_AT].copy_from_slice(&(body_bytes as u32).to_le_bytes());
            }
            let head = PublishHead {
                sequence: self.sequence,
                count: 1,
                framing: Framing::Records,
                batch_flags: 0,
                waited: Micros(0),
                more: n < last_part,
            };
            let from = payload_at - HEAD_BYTES;
            buffer[from..payload_at].copy_from_slice(&head.encode(CHANNEL, end - payload_at));
            if let Some(unused) = self.add(buffer, from, end, n < last_part) {
                self.put_buffer(unused);
            }
        }
    }

    fn add(&mut self, buffer: Vec<u8>, from: usize, to: usize, more: bool) -> Option<Vec<u8>> {
        let small = to < SMALL_BYTES && buffer.len() > SMALL_BYTES;
        let (buffer, unused) =
            if small { (buffer[..to].to_vec(), Some(buffer)) } else { (buffer, None) };
        let piece = Piece { buffer, from, to, last: self.sequence, more };
        self.cost += piece.cost();
        self.pieces.push_back(piece);
        unused
    }

    /// The bytes to write next; empty when all are written.
    #[must_use]
    pub fn unwritten(&self) -> &[u8] {
        self.pieces.get(self.next).map_or(&[], |piece| &piece.frame()[self.part..])
    }

    /// `bytes` of what [`Window::unwritten`] returned are written.
    pub fn wrote(&mut self, bytes: usize) {
        self.part += bytes;
        let whole =
            self.pieces.get(self.next).is_some_and(|piece| piece.frame().len() == self.part);
        if whole {
            self.next += 1;
            self.part = 0;
        }
    }

    /// Everything up to `sequence` is confirmed: [`Window::take_confirmed`] gives its pieces.
    ///
    /// # Errors
    /// When the server cannot have said that.
    pub fn confirm(&mut self, sequence: Sequence) -> Result<(), &'static str> {
        if sequence > self.sequence {
            return Err("it confirms more than was sent");
        }
        if self.pieces.get(self.next).is_some_and(|piece| piece.last <= sequence) {
            return Err("it confirms what was not wholly sent");
        }
        self.confirmed = self.confirmed.max(sequence);
        Ok(())
    }

    /// The next confirmed piece, in order; its taker gives it back with [`Window::recycle`].
    pub fn take_confirmed(&mut self) -> Option<Piece> {
        if self.pieces.front()?.last > self.confirmed {
            return None;
        }
        let piece = self.pieces.pop_front()?;
        self.next = self.next.saturating_sub(1);
        self.cost -= piece.cost();
        Some(piece)
    }

    /// Makes a confirmed piece's buffer one to use again.
    pub fn recycle(&mut self, piece: Piece) {
        self.put_buffer(piece.buffer);
    }

    /// The connection is lost: nothing counts as written.
    pub fn rewind(&mut self) {
        (self.next, self.part) = (0, 0);
    }

    /// A new connection is open and the server has stored everything up to `last`. Of that, only
    /// the last batch is sent again: nothing is stored twice by it, and its confirmation says
    /// when all before it is as safe as the queue's policy wants.
    ///
    /// # Errors
    /// When that does not fit what was sent.
    pub fn resume(&mut self, last: Sequence) -> Result<(), &'static str> {
        if last < self.confirmed {
            return Err("it has lost messages that it had confirmed");
        }
        if last > self.sequence {
            return Err("it has messages that were never sent");
        }
        let stored = self.pieces.partition_point(|piece| piece.last <= last);
        let behind = self.pieces.get(stored.wrapping_sub(1)).map_or(self.confirmed, |p| p.last);
        if behind != last {
            return Err("it has stored a part of a batch");
        }
        // A large message is sent again with all its parts.
        self.next = self.pieces.partition_point(|piece| piece.last < last);
        self.part = 0;
        Ok(())
    }

    /// Forgets everything behind `last`: it will not be sent any more.
    pub fn truncate(&mut self, last: Sequence) {
        let kept = self.pieces.partition_point(|piece| piece.last <= last);
        for piece in self.pieces.drain(kept..) {
            self.cost -= piece.cost();
        }
        assert!(self.next <= kept, "only what is not written can be forgotten");
        self.sequence = self.sequence.min(last);
    }

    /// Whether everything that was cut is confirmed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The sequence up to which all is confirmed.
    #[must_use]
    pub fn confirmed(&self) -> Sequence {
        self.confirmed
    }

    /// The sequence of the last message that was cut.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add_lines(window: &mut Window, lines: &[u8]) {
        let mut buffer = window.take_buffer();
        buffer[BODY_AT..BODY_AT + lines.len()].copy_from_slice(lines);
        let count = lines.iter().filter(|byte| **byte == b'\n').count() as u32;
        if let Some(unused) = window.push(buffer, BODY_AT + lines.len(), count, b'\n') {
            window.put_buffer(unused);
        }
    }

    fn write_all(window: &mut Window) -> usize {
        let mut frames = 0;
        while !window.unwritten().is_empty() {
            window.wrote(window.unwritten().len());
            frames += 1;
        }
        frames
    }

    fn confirm(window: &mut Window, sequence: u64) -> Vec<u8> {
        window.confirm(Sequence(sequence)).expect("fits");
        let mut bodies = Vec::new();
        while let Some(piece) = window.take_confirmed() {
            bodies.extend_from_slice(piece.body());
            window.recycle(piece);
        }
        bodies
    }

    fn three_batches() -> Window {
        let mut window = Window::default();
        for lines in [b"1\n2\n".as_slice(), b"3\n", b"4\n5\n"] {
            add_lines(&mut window, lines);
        }
        window
    }

    #[test]
    fn confirmed_pieces_come_back_in_order() {
        let mut window = three_batches();
        assert_eq!(write_all(&mut window), 3);
        assert_eq!(confirm(&mut window, 3), b"1\n2\n3\n");
        assert_eq!(window.confirmed(), Sequence(3));
        assert!(!window.is_empty());
        assert!(window.confirm(Sequence(6)).is_err());
        confirm(&mut window, 5);
        assert!(window.is_empty());
        assert_eq!(window.cost, 0);
    }

    #[test]
    fn resumed_window_sends_the_last_stored_batch_and_the_rest() {
        let mut window = three_batches();
        write_all(&mut window);
        confirm(&mut window, 2);
        window.rewind();
        window.resume(Sequence(2)).expect("fits");
        assert_eq!(write_all(&mut window), 2);
        window.rewind();
        window.resume(Sequence(3)).expect("fits");
        assert_eq!(write_all(&mut window), 2);
        window.rewind();
        window.resume(Sequence(5)).expect("fits");
        assert_eq!(write_all(&mut window), 1);
        for impossible in [1, 4, 6] {
            assert!(window.resume(Sequence(impossible)).is_err(), "{impossible}");
        }
    }

    #[test]
    fn parts_of_a_large_message_are_resent_together() {
        let mut window = three_batches();
        let part = || (vec![7u8; PART_BUFFER_BYTES], BODY_AT + PART_BYTES);
        window.push_record(vec![part(), part(), (vec![7u8; BUFFER_BYTES], BODY_AT + 1)]);
        assert_eq!(window.sequence(), Sequence(6));
        write_all(&mut window);
        window.rewind();
        window.resume(Sequence(6)).expect("fits");
        assert_eq!(write_all(&mut window), 3);
        window.rewind();
        window.resume(Sequence(5)).expect("fits");
        assert_eq!(write_all(&mut window), 4);
        confirm(&mut window, 6);
        assert!(window.is_empty());
    }

    #[test]
    fn what_the_server_has_not_got_can_be_forgotten() {
        let mut window = three_batches();
        write_all(&mut window);
        window.rewind();
        window.resume(Sequence(3)).expect("fits");
        window.truncate(Sequence(3));
        assert_eq!(write_all(&mut window), 1);
        assert_eq!(confirm(&mut window, 3), b"1\n2\n3\n");
        assert!(window.is_empty());
        assert_eq!(window.sequence(), Sequence(3));
    }

    #[test]
    fn tiny_batches_fill_the_window_too() {
        let mut window = Window::default();
        let mut batches = 0;
        while window.has_room() {
            add_lines(&mut window, b"\n");
            batches += 1;
        }
        assert!(batches < 100_000);
    }
}
