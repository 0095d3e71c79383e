//! The format: what a message looks like on stdout.
//!
//! As the sender's bytes, wherever the batch is delimited as the output is: then nothing is
//! looked at or copied. Else message by message, into buffers of its own: bodies with another
//! delimiter, envelopes (`-J`), or a template filled in (`-F`). The
//! [delivery](super::delivery) calls it.

mod template;

pub use template::Template;

use template::Filler;

use super::delivery::{Batch, Origin};
use super::envelope::{self, Attributes, Message, Writer};
use super::piece::{Ends, Piece, Slice};
use crate::batch::{self, BatchError, BatchHeader, Framing, Record, flags};
use crate::limits;
use crate::units::Offset;

/// Bytes of output after which a piece ends, so that what a batch of tiny messages becomes lies in
/// buffers of a handy size.
const PIECE_BYTES: usize = limits::PIPE_BYTES;

/// How messages are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The body, and this byte behind it; `None`: nothing behind it.
    Body(Option<u8>),
    /// The envelope, and a newline.
    Envelope,
    /// What the template makes of it.
    Template(Template),
}

/// See the module's page.
#[derive(Debug)]
pub struct Format {
    shape: Shape,
    envelopes: Writer,
    filler: Filler,
    /// Whether a body held the delimiter, so that a reader cannot tell where it ends; and whether
    /// that was told.
    is_ambiguous: bool,
    is_told: bool,
}

impl Format {
    /// Writes messages so.
    #[must_use]
    pub fn new(shape: Shape) -> Format {
        Format {
            shape,
            envelopes: Writer::default(),
            filler: Filler::default(),
            is_ambiguous: false,
            is_told: false,
        }
    }

    /// What every message ends with, if that is the same for all.
    #[must_use]
    pub fn delimiter(&self) -> Option<u8> {
        match self.shape {
            Shape::Body(delimiter) => delimiter,
            Shape::Envelope => Some(b'\n'),
            Shape::Template(_) => None,
        }
    }

    /// Whether a body with the delimiter inside has come; told once.
    pub fn take_ambiguous(&mut self) -> bool {
        let is_news = self.is_ambiguous && !self.is_told;
        self.is_told |= is_news;
        is_news
    }

    /// Hands the messages of a verified batch to `take`, in one piece or several.
    ///
    /// # Errors
    /// [`BatchError::Messages`] when they do not come out as the header says; then none was handed
    /// over.
    pub fn pieces(
        &mut self,
        origin: &Origin<'_>,
        batch: Batch,
        mut take: impl FnMut(Piece),
    ) -> Result<(), BatchError> {
        let Batch { header, payload, .. } = batch;
        match (header.framing, &self.shape) {
            (Framing::Delimited(theirs), Shape::Body(Some(ours))) if theirs == *ours => {
                let count = u64::from(header.count);
                take(Piece::new(payload, header.offset, count, Ends::Delimited(theirs)));
            }
            (Framing::Records, _) if header.has(flags::CHAIN) => {
                take(self.large(origin, &header, payload.into_vec())?);
            }
            _ => self.rewrite(origin, &header, payload.bytes(), take)?,
        }
        Ok(())
    }

    fn rewrite(
        &mut self,
        origin: &Origin<'_>,
        header: &BatchHeader,
        payload: &[u8],
        mut take: impl FnMut(Piece),
    ) -> Result<(), BatchError> {
        batch::check_messages(header.framing, payload, header.count)?;
        let mut first = header.offset;
        let mut bytes = Vec::with_capacity(payload.len() + 1);
        let mut ends = Vec::with_capacity(header.count as usize);
        for message in envelope::messages(*origin, header, payload) {
            // A delimiter that is the sender's own is in no body.
            if header.framing == Framing::Records || matches!(self.shape, Shape::Body(Some(_))) {
                self.look_for_delimiter(message.body);
            }
            self.push(&message, &mut bytes);
            ends.push(bytes.len() as u32);
            if bytes.len() >= PIECE_BYTES {
                let (bytes, ends) = (std::mem::take(&mut bytes), std::mem::take(&mut ends));
                let count = ends.len() as u64;
                take(Piece::new(Slice::whole(bytes), first, count, Ends::At(ends)));
                first = Offset(first.0 + count);
            }
        }
        if !ends.is_empty() {
            let count = ends.len() as u64;
            take(Piece::new(Slice::whole(bytes), first, count, Ends::At(ends)));
        }
        Ok(())
    }

    /// Appends one message as it is to be written.
    pub fn push(&mut self, message: &Message<'_>, out: &mut Vec<u8>) {
        match &self.shape {
            Shape::Body(delimiter) => {
                out.extend_from_slice(message.body);
                out.extend(*delimiter);
            }
            Shape::Envelope => {
                self.envelopes.push(message, out);
                out.push(b'\n');
            }
            Shape::Template(template) => template.fill(message, &mut self.filler, out),
        }
    }

    fn look_for_delimiter(&mut self, body: &[u8]) {
        if let Shape::Body(Some(ours)) = self.shape
            && !self.is_ambiguous
        {
            self.is_ambiguous = memchr::memchr(ours, body).is_some();
        }
    }

    /// One large message: its record, and the header of its last part.
    fn large(
        &mut self,
        origin: &Origin<'_>,
        header: &BatchHeader,
        mut joined: Vec<u8>,
    ) -> Result<Piece, BatchError> {
        let (record, behind) = Record::decode(&joined)?;
        if !behind.is_empty() {
            return Err(BatchError::Messages("a chain is more than one record"));
        }
        let start = joined.len() - record.body.len();
        self.look_for_delimiter(record.body);
        let range = if let Shape::Body(delimiter) = self.shape {
            // Without a copy of the body.
            joined.extend(delimiter);
            start..joined.len()
        } else {
            let message = Message {
                origin: *origin,
                offset: header.offset,
                time: header.time,
                attributes: Attributes::parse(record.attribute_bytes),
                body: record.body,
            };
            let mut out = Vec::with_capacity(record.body.len() * 2);
            self.push(&message, &mut out);
            joined = out;
            0..joined.len()
        };
        let ends = Ends::At(vec![range.len() as u32]);
        Ok(Piece::new(Slice::new(std::sync::Arc::new(joined), range), header.offset, 1, ends))
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

    fn records(bodies: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for body in bodies {
            Record { attribute_bytes: b"", body }.encode(&mut out);
        }
        out
    }

    fn pieces(
        format: &mut Format,
        header: &BatchHeader,
        payload: &[u8],
    ) -> Result<Vec<Piece>, BatchError> {
        let name = Name::new("q").expect("a name");
        let (queue_id, attempt, lease) = (QueueId::default(), Attempts(1), LeaseNumber(0));
        let origin = Origin { queue: &name, queue_id, group: &name, attempt, lease };
        let place = Place::cut(queue_id);
        let batch = Batch { header: *header, payload: Slice::whole(payload.to_vec()), place };
        let mut pieces = Vec::new();
        format.pieces(&origin, batch, |piece| pieces.push(piece)).map(|()| pieces)
    }

    fn one(format: &mut Format, header: &BatchHeader, payload: &[u8]) -> Vec<u8> {
        let pieces = pieces(format, header, payload).expect("valid");
        assert_eq!(pieces.len(), 1);
        assert_eq!(pieces[0].count(), u64::from(header.count));
        pieces[0].bytes().to_vec()
    }

    #[test]
    fn another_delimiter_is_put_in_place_of_the_senders() {
        let lines = header(Framing::Delimited(b'\n'), 3);
        for (delimiter, bytes) in
            [(Some(b'\n'), b"a\n\nb\n".as_slice()), (Some(0), b"a\0\0b\0"), (None, b"ab")]
        {
            let mut format = Format::new(Shape::Body(delimiter));
            assert_eq!(one(&mut format, &lines, b"a\n\nb\n"), bytes);
            assert!(!format.take_ambiguous());
        }
    }

    #[test]
    fn a_body_with_the_delimiter_is_written_as_it_is_and_said() {
        let payload = records(&[b"a\nb", b"c"]);
        let two = header(Framing::Records, 2);
        let mut format = Format::new(Shape::Body(Some(b'\n')));
        assert_eq!(one(&mut format, &two, &payload), b"a\nb\nc\n");
        assert!(format.take_ambiguous());
        assert!(!format.take_ambiguous(), "told once");
        let mut raw = Format::new(Shape::Body(None));
        assert_eq!(one(&mut raw, &two, &payload), b"a\nbc");
        assert!(!raw.take_ambiguous());
        assert!(pieces(&mut raw, &header(Framing::Records, 3), &payload).is_err());
    }

    #[test]
    fn envelopes_and_templates_stand_in_pieces_of_a_handy_size() {
        let lines = vec![b'\n'; 20_000];
        let header = header(Framing::Delimited(b'\n'), 20_000);
        for (shape, line) in [
            (Shape::Envelope, "{\"queue\":\"q\",\"offset\":"),
            (Shape::Template("0123456789 %o 0123456789 %I\\n".parse().expect("a format")), "01234"),
        ] {
            let pieces = pieces(&mut Format::new(shape), &header, &lines).expect("valid");
            assert!(pieces.len() > 2);
            assert!(pieces.iter().all(|piece| piece.len() < PIECE_BYTES + 1000));
            let mut next = Offset(5);
            for piece in &pieces {
                assert_eq!(piece.range().start, next);
                next = piece.range().end;
                let second = piece.messages(1..2);
                assert!(second.bytes().starts_with(line.as_bytes()));
                assert!(second.bytes().ends_with(b"\n"));
            }
            assert_eq!(next, Offset(20_005));
        }
    }

    #[test]
    fn a_large_message_is_its_body_or_what_the_format_makes_of_it() {
        let chain = BatchHeader { flags: flags::CHAIN, ..header(Framing::Records, 1) };
        let mut format = Format::new(Shape::Body(Some(b'\n')));
        assert_eq!(one(&mut format, &chain, &records(&[b"body"])), b"body\n");
        assert!(pieces(&mut format, &chain, &records(&[b"a", b"b"])).is_err());
        assert!(pieces(&mut format, &chain, b"xx").is_err());
        let mut format = Format::new(Shape::Template("%S:%s.".parse().expect("a format")));
        assert_eq!(one(&mut format, &chain, &records(&[b"body"])), b"4:body.");
    }
}
