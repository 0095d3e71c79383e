//! The batch that is being packed, until it goes into the window.

use crate::batch::{Framing, RECORD_HEADER_BYTES, flags};
use crate::client::rerun::{ANNEX_BYTES, Rerun};
use crate::client::window::{BUFFER_BYTES, Input, PACKED_AT, PART_BYTES, Window};
use crate::limits;

/// Bytes of an annex with its length.
const ANNEX_PART_BYTES: usize = 4 + ANNEX_BYTES;

/// The annex with its length, as it stands in front of messages.
fn annex_part(rerun: &Rerun) -> [u8; ANNEX_PART_BYTES] {
    let mut part = [0; ANNEX_PART_BYTES];
    part[..4].copy_from_slice(&(ANNEX_BYTES as u32).to_le_bytes());
    part[4..].copy_from_slice(&rerun.annex());
    part
}

/// One message, as it is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// As they stand in a record.
    pub attributes: &'a [u8],
    /// The body.
    pub body: &'a [u8],
    /// Whether it is not to be delivered yet.
    pub is_delayed: bool,
}

impl Message<'_> {
    /// The shape of a batch of records that it can be in.
    pub fn shape(&self) -> Shape {
        Shape { delimiter: None, is_delayed: self.is_delayed }
    }

    fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.attributes.len() + self.body.len()
    }

    fn record_header(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut header = [0; RECORD_HEADER_BYTES];
        header[..4].copy_from_slice(&(self.attributes.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&(self.body.len() as u32).to_le_bytes());
        header
    }
}

/// What all messages of a batch have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// What each ends with; `None`: they are records.
    pub delimiter: Option<u8>,
    /// Whether they are not to be delivered yet.
    pub is_delayed: bool,
}

/// What a message was in the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Original<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// What stood behind them.
    pub delimiter: Option<u8>,
}

/// A message that is too large to be delayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DelayedLarge;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Draft {
    copies: bool,
    has_annex: bool,
    /// An ordinary buffer of the window's, or a larger one for a single message; none before the
    /// first message.
    buffer: Vec<u8>,
    end: usize,
    count: u32,
    shape: Shape,
    input_bytes: u64,
    copy: Vec<u8>,
    delimiter: Option<u8>,
}

impl Draft {
    /// An empty one; whether copies of the input are kept, and each batch has an annex.
    pub fn new(copies: bool, has_annex: bool) -> Draft {
        Draft { copies, has_annex, ..Draft::default() }
    }

    /// Messages inside.
    pub fn count(&self) -> u64 {
        u64::from(self.count)
    }

    fn messages_at(&self) -> usize {
        PACKED_AT + if self.has_annex { ANNEX_PART_BYTES } else { 0 }
    }

    fn bytes_of(message: &Message<'_>, shape: Shape) -> usize {
        match shape.delimiter {
            Some(_) => message.body.len() + 1,
            None => message.record_bytes(),
        }
    }

    /// Whether the message can go into this batch; if not, it must be flushed first.
    pub fn has_room_for(&self, message: &Message<'_>, shape: Shape) -> bool {
        // A copy is divided among messages by its delimiters, if that is ever needed.
        let is_alone = self.copies && self.delimiter.is_none();
        self.count == 0
            || (self.shape == shape
                && !is_alone
                && self.end + Draft::bytes_of(message, shape) <= BUFFER_BYTES)
    }

    /// Adds a message for which there is room.
    ///
    /// # Errors
    /// [`DelayedLarge`].
    pub fn add(
        &mut self,
        message: &Message<'_>,
        shape: Shape,
        original: Original<'_>,
        rerun: Option<&Rerun>,
        window: &mut Window,
    ) -> Result<(), DelayedLarge> {
        let bytes = Draft::bytes_of(message, shape);
        if message.is_delayed && bytes > limits::DELAYED_RECORD_BYTES_MAX {
            return Err(DelayedLarge);
        }
        let at = self.messages_at();
        if at - PACKED_AT + bytes > limits::BATCH_PAYLOAD_BYTES_MAX {
            self.add_large(message, original, rerun, window);
            return Ok(());
        }
        if self.count == 0 {
            self.buffer = window.take_buffer();
            self.end = at;
            self.shape = shape;
        }
        if self.buffer.len() < self.end + bytes {
            self.buffer.resize(self.end + bytes, 0);
        }
        match shape.delimiter {
            Some(delimiter) => {
                self.push(message.body);
                self.push(&[delimiter]);
            }
            None => {
                self.push(&message.record_header());
                self.push(message.attributes);
                self.push(message.body);
            }
        }
        self.count += 1;
        self.note(original);
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) {
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    fn note(&mut self, original: Original<'_>) {
        self.input_bytes += original.bytes.len() as u64 + u64::from(original.delimiter.is_some());
        self.delimiter = original.delimiter;
        if self.copies {
            self.copy.extend_from_slice(original.bytes);
            self.copy.extend(original.delimiter);
        }
    }

    fn take_input(&mut self) -> Input {
        Input::Other {
            bytes: std::mem::take(&mut self.input_bytes),
            copy: self.copies.then(|| std::mem::take(&mut self.copy)),
            delimiter: self.delimiter,
        }
    }

    /// A message that does not fit one batch goes at once, in parts whose payloads joined are its
    /// record.
    fn add_large(
        &mut self,
        message: &Message<'_>,
        original: Original<'_>,
        rerun: Option<&Rerun>,
        window: &mut Window,
    ) {
        assert_eq!(self.count, 0, "there is no room for it beside others");
        assert!(!message.is_delayed, "what is delayed fits one batch");
        let header = message.record_header();
        let first_bytes = PART_BYTES - header.len() - message.attributes.len();
        let (first, rest) = message.body.split_at(first_bytes.min(message.body.len()));
        let part = |pieces: &[&[u8]]| [&[&[0; PACKED_AT][..]], pieces].concat().concat();
        let mut parts = vec![part(&[&header, message.attributes, first])];
        parts.extend(rest.chunks(PART_BYTES).map(|chunk| part(&[chunk])));
        let mut last_flags = 0;
        if let (Some(rerun), Some(last)) = (rerun, parts.last_mut()) {
            let annex = annex_part(rerun);
            last.splice(PACKED_AT..PACKED_AT, annex);
            last_flags = flags::ANNEX;
        }
        self.note(original);
        let input = self.take_input();
        window.push_packed_parts(parts, last_flags, input);
    }

    /// Puts the batch into the window, if there is anything in it.
    pub fn flush(&mut self, rerun: Option<&Rerun>, window: &mut Window) {
        if self.count == 0 {
            return;
        }
        let mut batch_flags = 0;
        if let (true, Some(rerun)) = (self.has_annex, rerun) {
            let annex = &mut self.buffer[PACKED_AT..PACKED_AT + ANNEX_PART_BYTES];
            annex.copy_from_slice(&annex_part(rerun));
            batch_flags = flags::ANNEX;
        }
        let framing = self.shape.delimiter.map_or(Framing::Records, Framing::Delimited);
        let buffer = std::mem::take(&mut self.buffer);
        let input = self.take_input();
        let count = std::mem::take(&mut self.count);
        let unused = window.push_packed(buffer, self.end, count, framing, batch_flags, input);
        if let Some(unused) = unused {
            window.put_buffer(unused);
        }
    }
}
