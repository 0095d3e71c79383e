//! The load: the messages of one batch, as the filter reads them, and where each stands.
//!
//! Cut without copying where batches are delimited as the filter wants them. What is stored in a
//! file stays there as long as the load is not cut finer than that ([`Load::read_in`]). Computes
//! only, but for that.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::key::Spec;
use crate::batch::BatchError;
use crate::client::delivery::{Batch, DeliveryError, Origin};
use crate::client::envelope;
use crate::client::extent::Stored;
use crate::client::format::{Format, Shape};
use crate::client::piece::{Ends, Piece, Slice};
use crate::units::{Attempts, LeaseNumber, Name, Offset, OffsetRange, QueueId};

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
        self.format.pieces(&origin, batch, |piece| to.push(Portion::Here(piece)))
    }

    /// Whether a message with a delimiter inside has come; told once.
    pub fn take_ambiguous(&mut self) -> bool {
        self.format.take_ambiguous()
    }
}

/// Messages that follow each other.
#[derive(Clone, Debug)]
pub enum Portion {
    /// Verified, and in memory.
    Here(Piece),
    /// In a file, as the filter reads them.
    Stored(Stored),
}

impl Portion {
    fn range(&self) -> OffsetRange {
        match self {
            Portion::Here(piece) => piece.range(),
            Portion::Stored(stored) => stored.range(),
        }
    }

    fn count(&self) -> u64 {
        self.range().span()
    }

    fn len(&self) -> usize {
        match self {
            Portion::Here(piece) => piece.len(),
            Portion::Stored(stored) => stored.len(),
        }
    }

    /// The messages in memory. Panics when they are not: the load was to be [read
    /// in](Load::read_in).
    fn piece(&self) -> &Piece {
        match self {
            Portion::Here(piece) => piece,
            Portion::Stored(_) => panic!("a batch in a file is cut"),
        }
    }
}

/// See the module's page.
#[derive(Clone, Debug, Default)]
pub struct Load {
    portions: Vec<Portion>,
    /// Which filter gets each message, if that goes by key.
    divided: Vec<u16>,
    count: u64,
    bytes: usize,
    /// Of these, in memory.
    bytes_here: usize,
}

impl Load {
    fn push(&mut self, portion: Portion) {
        self.count += portion.count();
        self.bytes += portion.len();
        if let Portion::Here(piece) = &portion {
            self.bytes_here += piece.len();
        }
        self.portions.push(portion);
    }

    /// Adds messages that are divided by no key, and end with [`DELIMITER`].
    pub fn add_stored(&mut self, stored: Stored) {
        assert!(self.divided.is_empty(), "a key is looked for in messages that are here");
        self.push(Portion::Stored(stored));
    }

    /// Reads everything into memory, and verifies it, so that it can be cut anywhere.
    ///
    /// # Errors
    /// What is stored is damaged.
    pub fn read_in(&mut self) -> Result<(), DeliveryError> {
        for portion in &mut self.portions {
            let Portion::Stored(stored) = portion else { continue };
            let batch = stored.read()?;
            let (first, count) = (batch.header.offset, u64::from(batch.header.count));
            self.bytes_here += batch.payload.bytes().len();
            let piece = Piece::new(batch.payload, first, count, Ends::Delimited(DELIMITER));
            *portion = Portion::Here(piece);
        }
        Ok(())
    }

    /// Bytes of it that are in memory.
    #[must_use]
    pub fn bytes_here(&self) -> usize {
        self.bytes_here
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
        self.portions.first().map(|portion| portion.range().start)
    }

    /// The first offset behind its last message.
    #[must_use]
    pub fn end(&self) -> Option<Offset> {
        self.portions.last().map(|portion| portion.range().end)
    }

    /// Some of its messages, counted from its first. Panics when that cuts a batch in a file.
    #[must_use]
    pub fn part(&self, range: Range<u64>) -> Load {
        assert!(range.start <= range.end && range.end <= self.count, "messages of the load");
        let mut part = Load::default();
        let mut at = 0;
        for portion in &self.portions {
            let (from, to) = (range.start.max(at), range.end.min(at + portion.count()));
            if from == at && to == at + portion.count() {
                part.push(portion.clone());
            } else if from < to {
                part.push(Portion::Here(portion.piece().messages(from - at..to - at)));
            }
            at += portion.count();
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
        for portion in &self.portions {
            let (piece, mut from) = (portion.piece(), 0);
            for end in piece.ends() {
                let part = whose.next().expect("each message has its part");
                inputs[usize::from(*part)].extend_from_slice(&piece.bytes()[from..end]);
                from = end;
            }
        }
        inputs.into_iter().map(Slice::whole).collect()
    }

    /// The same in `parts` parts of about as many bytes, in order; fewer if there are not so many
    /// messages. Batches in a file are not cut for that.
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
        for portion in &self.portions {
            if portion.len() > left {
                return count
                    + match portion {
                        Portion::Here(piece) => piece.count_ended(0, 0, left),
                        Portion::Stored(stored) if left > stored.len() / 2 => portion.count(),
                        Portion::Stored(_) => 0,
                    };
            }
            left -= portion.len();
            count += portion.count();
        }
        count
    }

    /// What the filter reads, in order.
    pub fn into_portions(self) -> impl Iterator<Item = Portion> {
        self.portions.into_iter()
    }

    /// What the filter reads, all of it in memory.
    #[must_use]
    pub fn slices(&self) -> Vec<Slice> {
        self.portions.iter().map(|portion| portion.piece().clone().into_slice()).collect()
    }

    /// How many lines that is; more than messages when some hold a delimiter.
    #[must_use]
    pub fn lines(&self) -> u64 {
        let lines = |piece: &Piece| memchr::memchr_iter(DELIMITER, piece.bytes()).count() as u64;
        self.portions.iter().map(|portion| lines(portion.piece())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        let mut load = Load::default();
        for (first, bytes, count) in [(5, &b"a\nbb\n"[..], 2), (9, b"c\n\ndd\n", 3)] {
            let slice = Slice::whole(bytes.to_vec());
            let piece = Piece::new(slice, Offset(first), count, Ends::Delimited(b'\n'));
            load.push(Portion::Here(piece));
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
