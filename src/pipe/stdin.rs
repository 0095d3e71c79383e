//! Standard input as a source: what is read of it are batches, which nothing keeps.
//!
//! It reads ahead of the filter up to the same bound as of a queue. Run by the
//! [`source`](super::source) on its thread.

use rustix::event::{PollFd, PollFlags};

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

/// Reads standard input to its end. Its messages have offsets of their own, and no time.
pub(super) fn read(delimiter: u8, inputs: &Lane<Input>, words: &Lane<Word>) {
    let _last_word = LastWord(inputs.clone());
    let id = QueueId::default();
    inputs.push(Input::Open(id, None, None), 0);
    let mut next = Offset(0);
    let mut hand_over = |bytes: Vec<u8>| {
        let count = memchr::memchr_iter(delimiter, &bytes).count() as u32;
        let header = BatchHeader {
            payload_bytes: bytes.len() as u32,
            framing: Framing::Delimited(delimiter),
            flags: 0,
            offset: next,
            count,
            payload_crc: 0,
            mark: Offset(0),
            time: WallTime(0),
            producer: ProducerId(0),
            sequence: Sequence(0),
            epoch: Epoch(0),
        };
        next = header.end();
        let place = Place { queue: id, segment: SegmentNumber(0), position: Position(0) };
        let weight = bytes.len();
        inputs.push(Input::Batch(Batch { header, payload: Slice::whole(bytes), place }), weight);
    };
    let mut pending: Vec<u8> = Vec::new();
    loop {
        while inputs.weight() >= limits::PIPE_AHEAD_BYTES {
            let mut fds = [PollFd::new(words, PollFlags::IN)];
            if wait::poll(&mut fds, None).is_err() {
                return;
            }
            while let Some(word) = words.pop() {
                if matches!(word, Word::Close | Word::Quit) {
                    return;
                }
            }
        }
        pending.reserve(limits::SEND_BATCH_BYTES);
        let known = pending.len();
        let room = rustix::buffer::spare_capacity(&mut pending);
        match rustix::io::read(rustix::stdio::stdin(), room) {
            Ok(0) => break,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => {
                inputs.push(Input::Failed(SourceError::Stdin(errno.into())), 0);
                return;
            }
        }
        // What was there before holds none.
        if let Some(at) = memchr::memrchr(delimiter, &pending[known..]) {
            let rest = pending.split_off(known + at + 1);
            hand_over(std::mem::replace(&mut pending, rest));
        } else if pending.len() > limits::MESSAGE_BYTES_MAX {
            let why = std::io::Error::other("a message is over 64 MiB");
            inputs.push(Input::Failed(SourceError::Stdin(why)), 0);
            return;
        }
    }
    if !pending.is_empty() {
        pending.push(delimiter);
        hand_over(pending);
    }
    inputs.push(Input::End, 0);
}
