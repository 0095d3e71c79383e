//! A piece of a window: one PUBLISH frame with what it stands for in the input.

use super::{BODY_AT, CHANNEL, PIECE_COST};
use crate::batch::{self, Framing};
use crate::units::Sequence;
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, PublishHead, Request};

/// What the messages of a piece were in the input.
#[derive(Debug)]
pub enum Input {
    /// The bytes behind [`BODY_AT`].
    Same,
    /// Other bytes than those that are sent.
    Other {
        /// How many.
        bytes: u64,
        /// The bytes, if somebody wants a copy of them.
        copy: Option<Vec<u8>>,
        /// What each message ends with in the copy.
        delimiter: Option<u8>,
    },
}

/// One PUBLISH frame: a batch, or a part of a large message.
#[derive(Debug)]
pub struct Piece {
    pub(super) buffer: Vec<u8>,
    /// Where the frame begins in the buffer.
    pub(super) from: usize,
    /// Where it ends.
    pub(super) to: usize,
    /// The sequence of its first message.
    pub(super) first: Sequence,
    /// The sequence of its last message.
    pub(super) last: Sequence,
    /// Whether more parts of the same message follow.
    pub(super) more: bool,
    pub(super) input: Input,
}

impl Piece {
    /// The messages as they came, delimiters included; nothing when nobody wanted a copy.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        match &self.input {
            Input::Same => &self.buffer[BODY_AT..self.to],
            Input::Other { copy, .. } => copy.as_deref().unwrap_or_default(),
        }
    }

    /// Bytes of the input that it stands for.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        match self.input {
            Input::Same => (self.to - BODY_AT) as u64,
            Input::Other { bytes, .. } => bytes,
        }
    }

    pub(super) fn frame(&self) -> &[u8] {
        &self.buffer[self.from..self.to]
    }

    /// Ends a message that came without a delimiter, as a record does, for a copy of the input.
    pub fn end_with(&mut self, delimiter: u8) {
        let is_record = self.buffer[self.from + FRAME_HEADER_BYTES + 12] == 1;
        if is_record && !self.more && matches!(self.input, Input::Same) {
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
        let copied = match &self.input {
            Input::Other { copy: Some(copy), .. } => copy.len(),
            _ => 0,
        };
        self.to.max(self.buffer.len() / 2) + copied + PIECE_COST
    }

    /// The same messages in two batches, of which the first ends with the message `last`.
    pub(super) fn split(self, last: Sequence) -> (Piece, Piece) {
        let kept = last.0 - self.first.0 + 1;
        let (head, payload) = self.decode();
        let messages = batch::messages_part(head.batch_flags, payload).expect("an annex of ours");
        let annex = &payload[..payload.len() - messages.len()];
        let at = batch::bytes_of_messages(head.framing, messages, kept)
            .expect("a batch of ours holds its messages");
        let (front, rest) = messages.split_at(at);
        let (front_input, rest_input) = match self.input {
            Input::Same => (copied(front, head.framing), copied(rest, head.framing)),
            Input::Other { bytes, ref copy, delimiter } => {
                split_input(bytes, copy.as_deref(), delimiter, kept)
            }
        };
        let make = |first: Sequence, last: Sequence, messages: &[u8], input| {
            let count = (last.0 - first.0 + 1) as u32;
            let head = PublishHead { sequence: last, count, ..head };
            let mut buffer = head.encode(CHANNEL, annex.len() + messages.len()).to_vec();
            buffer.extend_from_slice(annex);
            buffer.extend_from_slice(messages);
            let to = buffer.len();
            Piece { buffer, from: 0, to, first, last, more: false, input }
        };
        (
            make(self.first, last, front, front_input),
            make(Sequence(last.0 + 1), self.last, rest, rest_input),
        )
    }

    pub(super) fn decode(&self) -> (PublishHead, &[u8]) {
        let (header, body) = self.frame().split_at(FRAME_HEADER_BYTES);
        let header = header.first_chunk().expect("a frame has a header");
        let header = FrameHeader::decode(header).expect("a frame of ours");
        match Request::decode(&header, body) {
            Ok(Request::Publish(head, payload)) => (head, payload),
            _ => unreachable!("a piece is a PUBLISH"),
        }
    }
}

/// Messages that were in the input as they are sent.
fn copied(messages: &[u8], framing: Framing) -> Input {
    let bytes = messages.len() as u64;
    let delimiter = match framing {
        Framing::Delimited(delimiter) => Some(delimiter),
        Framing::Records => None,
    };
    Input::Other { bytes, copy: Some(messages.to_vec()), delimiter }
}

/// What the first `kept` messages of a piece were in the input, and what the others.
fn split_input(
    bytes: u64,
    copy: Option<&[u8]>,
    delimiter: Option<u8>,
    kept: u64,
) -> (Input, Input) {
    // Without a copy nobody needs to know to the byte.
    let at = copy.zip(delimiter).and_then(|(copy, delimiter)| {
        batch::bytes_of_messages(Framing::Delimited(delimiter), copy, kept)
    });
    let at = at.unwrap_or(0);
    let part = |bytes, copy: Option<&[u8]>| Input::Other {
        bytes,
        copy: copy.map(<[u8]>::to_vec),
        delimiter,
    };
    let (front, rest) = copy.map(|copy| copy.split_at(at)).unzip();
    (part(at as u64, front), part(bytes - at as u64, rest))
}
