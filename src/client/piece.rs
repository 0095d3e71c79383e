//! A piece: messages with consecutive offsets as the bytes that go to the outlet, and where each
//! of them ends. The same bytes as they came from the server wherever that is possible.
//!
//! Made by the [delivery](super::delivery), kept by the [ledger](super::ledger) until its bytes
//! are taken. Never looks at single messages unless asked where one ends.

use std::ops::Range;
use std::sync::Arc;

use crate::units::{Count, Offset, OffsetRange};

/// Bytes in a buffer that others may look at too.
#[derive(Clone, Debug)]
pub struct Slice {
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Slice {
    /// A part of a buffer. Panics when it does not lie inside.
    #[must_use]
    pub fn new(buffer: Arc<Vec<u8>>, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= buffer.len(), "a slice out of its buffer");
        Slice { buffer, range }
    }

    /// All of a buffer of its own.
    #[must_use]
    pub fn whole(bytes: Vec<u8>) -> Slice {
        let range = 0..bytes.len();
        Slice { buffer: Arc::new(bytes), range }
    }

    /// A part of this one.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Slice {
        let start = self.range.start + range.start;
        Slice::new(Arc::clone(&self.buffer), start..self.range.start + range.end)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }

    /// The buffer itself, if this is all of it and nobody else looks at it; else a copy.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        if self.range != (0..self.buffer.len()) {
            return self.bytes().to_vec();
        }
        Arc::try_unwrap(self.buffer).unwrap_or_else(|buffer| buffer.to_vec())
    }
}

/// Where the messages of a piece end.
#[derive(Clone, Debug)]
pub enum Ends {
    /// Each behind its delimiter.
    Delimited(u8),
    /// At these places, counted from the start of the piece.
    At(Vec<u32>),
}

/// Messages on their way to the outlet.
#[derive(Clone, Debug)]
pub struct Piece {
    slice: Slice,
    first: Offset,
    count: u64,
    ends: Ends,
}

impl Piece {
    /// `count` messages from the offset `first` on.
    #[must_use]
    pub fn new(slice: Slice, first: Offset, count: u64, ends: Ends) -> Piece {
        if let Ends::At(ends) = &ends {
            assert_eq!(ends.len() as u64, count, "each message of a piece has its end");
        }
        Piece { slice, first, count, ends }
    }

    /// The bytes for the outlet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.slice.bytes()
    }

    /// The same bytes, for keeps.
    #[must_use]
    pub fn into_slice(self) -> Slice {
        self.slice
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slice.range.len()
    }

    /// Whether it has no bytes; it may have messages all the same, empty ones.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The messages.
    #[must_use]
    pub fn range(&self) -> OffsetRange {
        OffsetRange::new(self.first, self.first.plus(Count(self.count)))
    }

    /// How many messages.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Where each message ends, in order.
    pub fn ends(&self) -> impl Iterator<Item = usize> + '_ {
        let (delimiter, at): (Option<u8>, &[u32]) = match &self.ends {
            Ends::Delimited(byte) => (Some(*byte), &[]),
            Ends::At(ends) => (None, ends),
        };
        let found = delimiter.into_iter().flat_map(|byte| memchr::memchr_iter(byte, self.bytes()));
        let found = found.map(|at| at + 1).chain(at.iter().map(|end| *end as usize));
        found.take(self.count as usize)
    }

    /// How many messages end in the bytes `from..to`, where `before` messages end at or before
    /// `from`.
    #[must_use]
    pub fn count_ended(&self, before: u64, from: usize, to: usize) -> u64 {
        match &self.ends {
            Ends::Delimited(byte) => {
                memchr::memchr_iter(*byte, &self.bytes()[from..to]).count() as u64
            }
            Ends::At(ends) => {
                let ended = ends.partition_point(|end| *end as usize <= to) as u64;
                ended.saturating_sub(before)
            }
        }
    }

    /// The place where the first `count` messages end.
    #[must_use]
    pub fn end_of(&self, count: u64) -> usize {
        assert!(count <= self.count, "a message beyond the piece");
        if count == 0 || count == self.count {
            return if count == 0 { 0 } else { self.len() };
        }
        let last = (count - 1) as usize;
        match &self.ends {
            // A verified batch has as many delimiters as messages; if a sender lied, the rest of
            // the piece belongs to its last message.
            Ends::Delimited(byte) => {
                memchr::memchr_iter(*byte, self.bytes()).nth(last).map_or(self.len(), |at| at + 1)
            }
            Ends::At(ends) => ends[last] as usize,
        }
    }

    /// The messages `range` of the piece, counted from its first.
    #[must_use]
    pub fn messages(&self, range: Range<u64>) -> Piece {
        let bytes = self.end_of(range.start)..self.end_of(range.end);
        let ends = match &self.ends {
            Ends::Delimited(byte) => Ends::Delimited(*byte),
            Ends::At(ends) => Ends::At(
                ends[range.start as usize..range.end as usize]
                    .iter()
                    .map(|end| end - bytes.start as u32)
                    .collect(),
            ),
        };
        Piece {
            slice: self.slice.part(bytes),
            first: self.first.plus(Count(range.start)),
            count: range.end - range.start,
            ends,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Piece {
        let slice = Slice::whole(b"a\nbb\n\nccc\n".to_vec());
        Piece::new(slice, Offset(10), 4, Ends::Delimited(b'\n'))
    }

    fn raw() -> Piece {
        Piece::new(Slice::whole(b"abbccc".to_vec()), Offset(10), 4, Ends::At(vec![1, 3, 3, 6]))
    }

    #[test]
    fn messages_are_cut_out_with_their_offsets() {
        for (piece, bytes) in [(lines(), b"bb\n\n".as_slice()), (raw(), b"bb")] {
            let part = piece.messages(1..3);
            assert_eq!(part.bytes(), bytes);
            assert_eq!(part.range(), OffsetRange::new(Offset(11), Offset(13)));
            assert_eq!(part.messages(1..2).range().start, Offset(12));
            assert_eq!(piece.ends().count(), 4);
            assert_eq!(piece.ends().last(), Some(piece.len()));
            assert_eq!(part.end_of(1), bytes.len().min(3));
        }
    }

    #[test]
    fn whole_messages_in_a_part_of_the_bytes_are_counted() {
        let piece = lines();
        assert_eq!(piece.count_ended(0, 0, 1), 0);
        assert_eq!(piece.count_ended(0, 0, 2), 1);
        assert_eq!(piece.count_ended(1, 2, 9), 2);
        assert_eq!(piece.count_ended(1, 2, 10), 3);
        let piece = raw();
        assert_eq!(piece.count_ended(0, 0, 0), 0);
        assert_eq!(piece.count_ended(0, 0, 1), 1);
        assert_eq!(piece.count_ended(1, 1, 3), 2);
        assert_eq!(piece.count_ended(3, 3, 6), 1);
    }
}
