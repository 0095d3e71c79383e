//! The load: the messages of one batch, as the filter reads them, and where each stands.
//!
//! Cut without copying where batches are delimited as the filter wants them. Computes only.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::key::Spec;
use crate::batch::BatchError;
use crate::client::delivery::{Batch, Origin};
use crate::client::envelope;
use crate::client::format::{Format, Shape};
use crate::client::piece::{Piece, Slice};
use crate::units::{Attempts, LeaseNumber, Name, Offset, QueueId};

/// What a filter's messages end with.
pub const DELIMITER: u8 = b'\n';

/// How messages are divided among filters that run at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    /// Each filter gets the messages of some keys.
    pub key: Spec,
    /// Among so many.
    pub parts: usize,
}

/// Makes loads.
#[derive(Debug)]
pub struct Loader {
    queue: Name,
    format: Format,
    division: Option<Division>,
}

impl Loader {
    /// For messages of this queue.
    #[must_use]
    pub fn new(queue: Name, division: Option<Division>) -> Loader {
        Loader { queue, format: Format::new(Shape::Body(Some(DELIMITER))), division }
    }

    /// Adds a batch to a load.
    ///
    /// # Errors
    /// Its messages do not come out as it says.
    pub fn add(&mut self, batch: Batch, to: &mut Load) -> Result<(), BatchError> {
        let origin = Origin {
            queue: &self.queue,
            queue_id: QueueId::default(),
            group: &self.queue,
            attempt: Attempts(0),
            lease: LeaseNumber(0),
        };
        if let Some(Division { key, parts }) = &self.division {
            let messages = envelope::messages(origin, &batch.header, batch.payload.bytes());
            to.divided.extend(messages.map(|message| {
                // Those without a key have that in common.
                let key = key.key_of(&message.attributes, message.body);
                (xxh3_64(&key.unwrap_or_default()) % *parts as u64) as u16
            }));
        }
        self.format.pieces(&origin, batch, |piece| to.push(piece))
    }

    /// Whether a message with a delimiter inside has come; told once.
    pub fn take_ambiguous(&mut self) -> bool {
        self.format.take_ambiguous()
    }
}

/// See the module's page.
#[derive(Clone, Debug, Default)]
pub struct Load {
    pieces: Vec<Piece>,
    /// Which filter gets each message, if that goes by key.
    divided: Vec<u16>,
    count: u64,
    bytes: usize,
}

impl Load {
    fn push(&mut self, piece: Piece) {
        self.count += piece.count();
        self.bytes += piece.len();
        self.pieces.push(piece);
    }

    /// Messages.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The offset of its first message; of an empty one there is none.
    #[must_use]
    pub fn first(&self) -> Option<Offset> {
        self.pieces.first().map(|piece| piece.range().start)
    }

    /// The first offset behind its last message.
    #[must_use]
    pub fn end(&self) -> Option<Offset> {
        self.pieces.last().map(|piece| piece.range().end)
    }

    /// Some of its messages, counted from its first.
    #[must_use]
    pub fn part(&self, range: Range<u64>) -> Load {
        assert!(range.start <= range.end && range.end <= self.count, "messages of the load");
        let mut part = Load::default();
        let mut at = 0;
        for piece in &self.pieces {
            let (from, to) = (range.start.max(at), range.end.min(at + piece.count()));
            if from == at && to == at + piece.count() {
                part.push(piece.clone());
            } else if from < to {
                part.push(piece.messages(from - at..to - at));
            }
            at += piece.count();
        }
        if !self.divided.is_empty() {
            part.divided = self.divided[range.start as usize..range.end as usize].to_vec();
        }
        part
    }

    /// What each of `parts` filters reads of it, by key; each key's messages in order.
    #[must_use]
    pub fn divide(&self, parts: usize) -> Vec<Slice> {
        assert_eq!(self.divided.len() as u64, self.count, "each message has its part");
        let mut inputs = vec![Vec::new(); parts];
        let mut whose = self.divided.iter();
        for piece in &self.pieces {
            let mut from = 0;
            for end in piece.ends() {
                let part = whose.next().expect("each message has its part");
                inputs[usize::from(*part)].extend_from_slice(&piece.bytes()[from..end]);
                from = end;
            }
        }
        inputs.into_iter().map(Slice::whole).collect()
    }

    /// The same in `parts` parts of about as many bytes, in order; fewer if there are not so many
    /// messages.
    #[must_use]
    pub fn split(&self, parts: usize) -> Vec<Load> {
        let mut loads = Vec::with_capacity(parts);
        let mut from = 0;
        for n in 1..=parts as u64 {
            let wanted = (self.bytes as u64 * n).div_ceil(parts as u64);
            let to = if n == parts as u64 { self.count } else { self.messages_in(wanted) };
            if to > from {
                loads.push(self.part(from..to));
                from = to;
            }
        }
        loads
    }

    /// How many messages end within the first `bytes` bytes.
    fn messages_in(&self, bytes: u64) -> u64 {
        let (mut left, mut count) = (bytes as usize, 0);
        for piece in &self.pieces {
            if piece.len() > left {
                return count + piece.count_ended(0, 0, left);
            }
            left -= piece.len();
            count += piece.count();
        }
        count
    }

    /// What the filter reads.
    #[must_use]
    pub fn slices(&self) -> Vec<Slice> {
        self.pieces.iter().map(|piece| piece.clone().into_slice()).collect()
    }

    /// How many lines that is; more than messages when some hold a delimiter.
    #[must_use]
    pub fn lines(&self) -> u64 {
        let lines = |piece: &Piece| memchr::memchr_iter(DELIMITER, piece.bytes()).count() as u64;
        self.pieces.iter().map(lines).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::piece::Ends;

    fn load() -> Load {
        let mut load = Load::default();
        for (first, bytes, count) in [(5, &b"a\nbb\n"[..], 2), (9, b"c\n\ndd\n", 3)] {
            let slice = Slice::whole(bytes.to_vec());
            load.push(Piece::new(slice, Offset(first), count, Ends::Delimited(b'\n')));
        }
        load
    }

    fn text(load: &Load) -> Vec<u8> {
        load.slices().iter().flat_map(|slice| slice.bytes().to_vec()).collect()
    }

    #[test]
    fn parts_are_cut_across_batches() {
        let load = load();
        assert_eq!((load.count(), load.lines(), load.bytes()), (5, 5, 11));
        let part = load.part(1..4);
        assert_eq!(
            (text(&part), part.first(), part.end()),
            (b"bb\nc\n\n".to_vec(), Some(Offset(6)), Some(Offset(11)))
        );
        assert_eq!(load.part(2..2).first(), None);
    }

    #[test]
    fn a_division_keeps_each_part_in_order() {
        let load = Load { divided: vec![1, 0, 1, 1, 2], ..load() };
        let parts = |load: &Load| -> Vec<Vec<u8>> {
            load.divide(4).iter().map(|slice| slice.bytes().to_vec()).collect()
        };
        assert_eq!(parts(&load), [&b"bb\n"[..], b"a\nc\n\n", b"dd\n", b""]);
        assert_eq!(parts(&load.part(1..3)), [&b"bb\n"[..], b"c\n", b"", b""]);
    }

    #[test]
    fn a_split_keeps_everything_in_order() {
        for parts in 1..8 {
            let loads = load().split(parts);
            assert!(loads.len() <= parts && loads.iter().all(|load| load.count() > 0));
            let joined: Vec<u8> = loads.iter().flat_map(text).collect();
            assert_eq!(joined, text(&load()), "{parts} parts");
        }
        assert_eq!(load().split(2).len(), 2);
    }
}
