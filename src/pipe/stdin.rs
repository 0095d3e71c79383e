//! Standard input as a source: what is read of it are batches, which nothing keeps.
//!
//! It reads ahead of the filter up to the same bound as of a queue. Run by the
//! [`source`](super::source) on its thread.

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::lane::Lane;
use super::source::{Input, LastWord, SourceError, Word};
use crate::batch::{BatchHeader, Framing, Place};
use crate::client::delivery::Batch;
use crate::client::piece::Slice;
use crate::client::wait;
use crate::limits;
use crate::units::{
    Epoch, Offset, Position, ProducerId, QueueId, SegmentNumber, Sequence, WallTime,
};

/// Hands on what was read, as batches with offsets of their own and no time.
struct Batches<'a> {
    delimiter: u8,
    inputs: &'a Lane<Input>,
    next: Offset,
}

impl Batches<'_> {
    /// Whole messages.
    fn hand_over(&mut self, bytes: Vec<u8>) {
        let id = QueueId::default();
        let header = BatchHeader {
            payload_bytes: bytes.len() as u32,
            framing: Framing::Delimited(self.delimiter),
            flags: 0,
            offset: self.next,
            count: memchr::memchr_iter(self.delimiter, &bytes).count() as u32,
            payload_crc: 0,
            mark: Offset(0),
            time: WallTime(0),
            producer: ProducerId(0),
            sequence: Sequence(0),
            epoch: Epoch(0),
        };
        self.next = header.end();
        let place = Place { queue: id, segment: SegmentNumber(0), position: Position(0) };
        let weight = bytes.len();
        let batch = Batch { header, payload: Slice::whole(bytes), place };
        self.inputs.push(Input::Batch(batch), weight);
    }

    /// Takes the whole messages off `pending`, in which none ended before `known`.
    fn take(&mut self, pending: &mut Vec<u8>, known: usize) {
        if let Some(at) = memchr::memrchr(self.delimiter, &pending[known..]) {
            let rest = pending.split_off(known + at + 1);
            self.hand_over(std::mem::replace(pending, rest));
        }
    }
}

/// Reads standard input to its end.
pub(super) fn read(delimiter: u8, inputs: &Lane<Input>, words: &Lane<Word>) {
    let _last_word = LastWord(inputs.clone());
    // No queue says how often is too often.
    let limit = Some(limits::DELIVERY_LIMIT_DEFAULT);
    inputs.push(Input::Open(QueueId::default(), None, limit), 0);
    let mut batches = Batches { delimiter, inputs, next: Offset(0) };
    let mut pending: Vec<u8> = Vec::new();
    while await_room(inputs, words) {
        pending.reserve(limits::SEND_BATCH_BYTES);
        let known = pending.len();
        let room = rustix::buffer::spare_capacity(&mut pending);
        let failed = match rustix::io::read(rustix::stdio::stdin(), room) {
            Ok(0) => {
                if !pending.is_empty() {
                    pending.push(delimiter);
                    batches.hand_over(pending);
                }
                return inputs.push(Input::End, 0);
            }
            Ok(_) => {
                batches.take(&mut pending, known);
                let is_over = pending.len() > limits::MESSAGE_BYTES_MAX;
                is_over.then_some(SourceError::TooLarge)
            }
            Err(Errno::INTR) => None,
            Err(errno) => Some(SourceError::Stdin(errno.into())),
        };
        if let Some(error) = failed {
            return inputs.push(Input::Failed(error), 0);
        }
    }
}

/// Waits until not too much is read ahead; false when it is to end.
fn await_room(inputs: &Lane<Input>, words: &Lane<Word>) -> bool {
    while inputs.weight() >= limits::PIPE_AHEAD_BYTES {
        let mut fds = [PollFd::new(words, PollFlags::IN)];
        if wait::poll(&mut fds, None).is_err() {
            return false;
        }
        while let Some(word) = words.pop() {
            if matches!(word, Word::Close | Word::Quit) {
                return false;
            }
        }
    }
    true
}
