//! The format: what a message looks like on stdout.
//!
//! As the sender's bytes, wherever the batch is delimited as the output is: then nothing is
//! looked at or copied. Else message by message, into a buffer of its own. Other formats
//! (`-J`, `-F`) belong here. The [delivery](super::delivery) calls it.

use super::delivery::{Batch, Origin};
use super::piece::{Ends, Piece, Slice};
use crate::batch::{self, BatchError, BatchHeader, Framing, Record, flags};
use crate::units::Offset;

/// What goes between messages.
#[derive(Debug)]
pub struct Format {
    /// The byte behind each message; `None`: nothing at all.
    delimiter: Option<u8>,
    /// Whether a body held the delimiter, so that a reader cannot tell where it ends; and whether
    /// that was told.
    is_ambiguous: bool,
    is_told: bool,
}

impl Format {
    /// Each message followed by `delimiter`, or by nothing.
    #[must_use]
    pub fn new(delimiter: Option<u8>) -> Format {
        Format { delimiter, is_ambiguous: false, is_told: false }
    }

    /// Whether a body with the delimiter inside has come; told once.
    pub fn take_ambiguous(&mut self) -> bool {
        let is_news = self.is_ambiguous && !self.is_told;
        self.is_told |= is_news;
        is_news
    }

    /// The messages of a verified batch.
    ///
    /// # Errors
    /// [`BatchError::Messages`] when they do not come out as the header says.
    pub fn piece(&mut self, _origin: &Origin<'_>, batch: Batch) -> Result<Piece, BatchError> {
        let Batch { header, payload, .. } = batch;
        let count = u64::from(header.count);
        match (header.framing, self.delimiter) {
            (Framing::Delimited(theirs), Some(ours)) if theirs == ours => {
                Ok(Piece::new(payload, header.offset, count, Ends::Delimited(ours)))
            }
            (Framing::Records, _) if header.has(flags::CHAIN) => {
                self.large(header.offset, payload.into_vec())
            }
            (framing, _) => self.rewrite(&header, framing, payload.bytes()),
        }
    }

    fn rewrite(
        &mut self,
        header: &BatchHeader,
        framing: Framing,
        payload: &[u8],
    ) -> Result<Piece, BatchError> {
        let mut bytes = Vec::with_capacity(payload.len() + 1);
        let mut ends = Vec::with_capacity(header.count as usize);
        for body in batch::bodies(framing, payload) {
            bytes.extend_from_slice(body);
            self.end_message(body, framing);
            bytes.extend(self.delimiter);
            ends.push(bytes.len() as u32);
        }
        if ends.len() != header.count as usize {
            return Err(BatchError::Messages("the count differs"));
        }
        let count = ends.len() as u64;
        Ok(Piece::new(Slice::whole(bytes), header.offset, count, Ends::At(ends)))
    }

    fn end_message(&mut self, body: &[u8], framing: Framing) {
        if let Some(ours) = self.delimiter
            && framing != Framing::Delimited(ours)
            && !self.is_ambiguous
        {
            self.is_ambiguous = memchr::memchr(ours, body).is_some();
        }
    }

    /// One large message: its record, which becomes the piece's buffer.
    fn large(&mut self, offset: Offset, mut joined: Vec<u8>) -> Result<Piece, BatchError> {
        let (record, behind) = Record::decode(&joined)?;
        if !behind.is_empty() {
            return Err(BatchError::Messages("a chain is more than one record"));
        }
        let start = joined.len() - record.body.len();
        self.end_message(record.body, Framing::Records);
        joined.extend(self.delimiter);
        let range = start..joined.len();
        let ends = Ends::At(vec![range.len() as u32]);
        Ok(Piece::new(Slice::new(std::rc::Rc::new(joined), range), offset, 1, ends))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Place;
    use crate::units::{
        Attempts, Epoch, LeaseNumber, Name, ProducerId, QueueId, Sequence, WallTime,
    };

    fn header(framing: Framing, count: u32) -> BatchHeader {
        BatchHeader {
            payload_bytes: 0,
            framing,
            flags: 0,
            offset: Offset(5),
            count,
            payload_crc: 0,
            mark: Offset(0),
            time: WallTime(0),
            producer: ProducerId(0),
            sequence: Sequence(0),
            epoch: Epoch(0),
        }
    }

    fn made(
        format: &mut Format,
        header: BatchHeader,
        payload: Vec<u8>,
    ) -> Result<Piece, BatchError> {
        let name = Name::default();
        let (queue_id, attempt, lease) = (QueueId::default(), Attempts(1), LeaseNumber(0));
        let origin = Origin { queue: &name, queue_id, group: &name, attempt, lease };
        let place = Place::cut(queue_id);
        format.piece(&origin, Batch { header, payload: Slice::whole(payload), place })
    }

    fn records(bodies: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for body in bodies {
            Record { attribute_bytes: b"", body }.encode(&mut out);
        }
        out
    }

    #[test]
    fn another_delimiter_is_put_in_place_of_the_senders() {
        let lines = header(Framing::Delimited(b'\n'), 3);
        for (delimiter, bytes) in
            [(Some(b'\n'), b"a\n\nb\n".as_slice()), (Some(0), b"a\0\0b\0"), (None, b"ab")]
        {
            let mut format = Format::new(delimiter);
            let piece = made(&mut format, lines, b"a\n\nb\n".to_vec()).expect("valid");
            assert_eq!(piece.bytes(), bytes);
            assert_eq!(piece.count(), 3);
            assert!(!format.take_ambiguous());
        }
    }

    #[test]
    fn a_body_with_the_delimiter_is_written_as_it_is_and_said() {
        let payload = records(&[b"a\nb", b"c"]);
        let mut format = Format::new(Some(b'\n'));
        let piece = made(&mut format, header(Framing::Records, 2), payload.clone());
        assert_eq!(piece.expect("valid").bytes(), b"a\nb\nc\n");
        assert!(format.take_ambiguous());
        assert!(!format.take_ambiguous(), "told once");
        let mut raw = Format::new(None);
        let piece = made(&mut raw, header(Framing::Records, 2), payload.clone());
        assert_eq!(piece.expect("valid").bytes(), b"a\nbc");
        assert!(!raw.take_ambiguous());
        assert!(made(&mut raw, header(Framing::Records, 3), payload).is_err());
    }

    #[test]
    fn a_large_message_is_its_body() {
        let mut format = Format::new(Some(b'\n'));
        let chain = BatchHeader { flags: flags::CHAIN, ..header(Framing::Records, 1) };
        let piece = made(&mut format, chain, records(&[b"body"])).expect("valid");
        assert_eq!((piece.bytes(), piece.count()), (b"body\n".as_slice(), 1));
        assert!(made(&mut format, chain, records(&[b"a", b"b"])).is_err());
        assert!(made(&mut format, chain, b"xx".to_vec()).is_err());
    }
}
