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
//! ├────────┴────────────────┬────────┴──────────────────────────────┤
//! │ frame header and head   │ packed payload                        │
//! └─────────────────────────┴───────────────────────────────────────┘
//! ```
//!
//! A packed payload (see [`packer`](super::packer)) is made of the input rather than being it:
//! records, or messages with an annex in front.

mod piece;

use std::collections::VecDeque;

pub use piece::{Input, Piece};

use crate::batch::{Framing, RECORD_HEADER_BYTES};
use crate::limits;
use crate::units::{Monotonic, Sequence};
use crate::wire::{FRAME_HEADER_BYTES, PUBLISH_HEAD_BYTES, PublishHead};

const HEAD_BYTES: usize = FRAME_HEADER_BYTES + PUBLISH_HEAD_BYTES;

/// Where a packed payload begins in its buffer.
pub const PACKED_AT: usize = HEAD_BYTES;

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
pub(super) const SMALL_BYTES: usize = 16 << 10;

/// What a batch costs besides its bytes, so that many tiny ones are bounded too.
const PIECE_COST: usize = 256;

/// The only channel of a sender's connection.
pub const CHANNEL: u16 = 1;

const _: () = {
    assert!(PART_BYTES + RECORD_HEADER_BYTES <= limits::BATCH_PAYLOAD_BYTES_MAX);
    assert!(PART_BYTES * limits::CHAIN_BATCHES_MAX >= limits::MESSAGE_BYTES_MAX);
    assert!(PART_BYTES + limits::SEND_BATCH_BYTES <= 2 * PART_BYTES);
};

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
    /// When what is added now was read.
    read: Monotonic,
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

    /// What is added from now on was read at this time, on the clock that all processes share.
    pub fn read_at(&mut self, time: Monotonic) {
        self.read = time;
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
            read: self.read,
            more: false,
        };
        let from = BODY_AT - HEAD_BYTES;
        buffer[from..BODY_AT].copy_from_slice(&head.encode(CHANNEL, end - BODY_AT));
        self.add(buffer, from, end, count, false, Input::Same)
    }

    /// Adds a batch of `count` messages whose payload stands in `buffer[PACKED_AT..end]`. Gives a
    /// buffer back that the batch does not need.
    pub fn push_packed(
        &mut self,
        mut buffer: Vec<u8>,
        end: usize,
        count: u32,
        framing: Framing,
        batch_flags: u16,
        input: Input,
    ) -> Option<Vec<u8>> {
        self.sequence.0 += u64::from(count);
        let head = PublishHead {
            sequence: self.sequence,
            count,
            framing,
            batch_flags,
            read: self.read,
            more: false,
        };
        buffer[..PACKED_AT].copy_from_slice(&head.encode(CHANNEL, end - PACKED_AT));
        self.add(buffer, 0, end, count, false, input)
    }

    /// Adds one large message whose record stands in `parts`, each from [`PACKED_AT`] to its
    /// end. Only the last may have flags: in front of it stands an annex then.
    pub fn push_packed_parts(&mut self, parts: Vec<Vec<u8>>, last_flags: u16, input: Input) {
        self.sequence.0 += 1;
        let last_part = parts.len() - 1;
        let mut input = Some(input);
        for (n, mut buffer) in parts.into_iter().enumerate() {
            let head = PublishHead {
                sequence: self.sequence,
                count: 1,
                framing: Framing::Records,
                batch_flags: if n < last_part { 0 } else { last_flags },
                read: self.read,
                more: n < last_part,
            };
            let end = buffer.len();
            buffer[..PACKED_AT].copy_from_slice(&head.encode(CHANNEL, end - PACKED_AT));
            // All of the input goes with the first part; the others stand for nothing more.
            let nothing = || Input::Other { bytes: 0, copy: None, delimiter: None };
            let input = input.take().unwrap_or_else(nothing);
            if let Some(unused) = self.add(buffer, 0, end, 1, n < last_part, input) {
                self.put_buffer(unused);
            }
        }
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
                read: self.read,
                more: n < last_part,
            };
            let from = payload_at - HEAD_BYTES;
            buffer[from..payload_at].copy_from_slice(&head.encode(CHANNEL, end - payload_at));
            if let Some(unused) = self.add(buffer, from, end, 1, n < last_part, Input::Same) {
                self.put_buffer(unused);
            }
        }
    }

    fn add(
        &mut self,
        buffer: Vec<u8>,
        from: usize,
        to: usize,
        count: u32,
        more: bool,
        input: Input,
    ) -> Option<Vec<u8>> {
        let small = to < SMALL_BYTES && buffer.len() > SMALL_BYTES;
        let (buffer, unused) =
            if small { (buffer[..to].to_vec(), Some(buffer)) } else { (buffer, None) };
        let (first, last) = (Sequence(self.sequence.0 + 1 - u64::from(count)), self.sequence);
        let piece = Piece { buffer, from, to, first, last, more, input };
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

    /// Everything up to `sequence` is confirmed: [`Window::take_confirmed`] gives its pieces. It
    /// may lie within a batch, of which there was no room for the rest yet.
    ///
    /// # Errors
    /// When the server cannot have said that.
    pub fn confirm(&mut self, sequence: Sequence) -> Result<(), &'static str> {
        if sequence > self.sequence {
            return Err("it confirms more than was sent");
        }
        if self.pieces.get(self.next).is_some_and(|piece| piece.first <= sequence) {
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
    /// when all before it is as safe as the queue's policy wants. A batch of which only the
    /// beginning is stored becomes two.
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
        self.split_behind(last);
        // A large message is sent again with all its parts.
        let confirmed = self.confirmed;
        self.next = self.pieces.partition_point(|p| p.last < last || p.last <= confirmed);
        self.part = 0;
        Ok(())
    }

    /// Makes `last` the end of a piece.
    fn split_behind(&mut self, last: Sequence) {
        let stored = self.pieces.partition_point(|piece| piece.last <= last);
        if self.pieces.get(stored).is_some_and(|piece| piece.first <= last) {
            let piece = self.pieces.remove(stored).expect("it was just there");
            self.cost -= piece.cost();
            let (front, rest) = piece.split(last);
            self.cost += front.cost() + rest.cost();
            self.pieces.insert(stored, rest);
            self.pieces.insert(stored, front);
        }
    }

    /// The input's messages up to `last` were stored by an earlier run: they are counted, and not
    /// sent. Only for a window that is empty yet.
    pub fn skip_to(&mut self, last: Sequence) {
        assert!(self.pieces.is_empty(), "only a beginning can be skipped");
        (self.sequence, self.confirmed) = (last, last);
    }

    /// Forgets everything behind `last`: it will not be sent any more.
    pub fn truncate(&mut self, last: Sequence) {
        let kept = self.pieces.partition_point(|piece| piece.last <= last);
        let is_between = self.pieces.get(kept).is_none_or(|piece| piece.first > last);
        assert!(is_between, "only what lies behind a batch can be forgotten");
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
mod tests;
