//! The batch: the unit of work everywhere. Its byte layout, encoding, verification, slicing.
//!
//! A batch never knows where it came from; it does no I/O. The client builds payloads, the
//! server gives them offsets and a place in a segment, the log stores them as they stand here,
//! and the receiver verifies them as they stand here.
//!
//! # Layout
//!
//! All numbers are little-endian.
//!
//! ```text
//!  0        4    5    6      8                16      20          24
//! ┌────────┬────┬────┬──────┬────────────────┬───────┬───────────┬─────────────────┐
//! │ length │fra-│deli│flags │ offset of the  │ count │ CRC of the│ durable mark    │
//! │ u32    │ming│mit.│ u16  │ first message  │ u32   │ payload   │ u64             │
//! └────────┴────┴────┴──────┴────────────────┴───────┴───────────┴─────────────────┘
//! 32               40               48               56      60            64
//! ┌────────────────┬────────────────┬────────────────┬───────┬─────────────┬────────
//! │ wall time, µs  │ producer       │ its sequence   │ epoch │ CRC of the  │ payload
//! │ u64            │ u64, 0: none   │ at the end u64 │ u32   │ header      │ ...
//! └────────────────┴────────────────┴────────────────┴───────┴─────────────┴────────
//! ```
//!
//! * `length` is that of the whole batch, header included.
//! * `durable mark`: everything below this offset was durable when the batch was written.
//! * The CRCs are CRC-32 (ISO-HDLC, as in zlib). The header's covers the batch's [`Place`]
//!   (queue id, segment number, file position) and then bytes 0..60, among them the payload's
//!   CRC: a batch that is misplaced, stale or planted fails.
//! * With [`flags::ANNEX`] the payload begins with a u32 length and that many bytes for tools
//!   (the commit of a pipe); messages follow behind.
//!
//! A **delimited** payload is the sender's bytes as they came: each message ends with the
//! delimiter byte. A **records** payload is a sequence of
//!
//! ```text
//! ┌──────────────────┬──────────────┬────────────────────────┬──────┐
//! │ attributes: u32  │ body: u32    │ attributes             │ body │
//! │ (length)         │ (length)     │ (tag u8, len u32, ..)* │      │
//! └──────────────────┴──────────────┴────────────────────────┴──────┘
//! ```
//!
//! A message that does not fit one batch is a **chain**: consecutive batches of one segment with
//! [`flags::CHAIN`], all with the message's offset, whose payloads joined are one record; the
//! last alone has count 1 (the others 0) and [`flags::CHAIN_END`], and may have an annex.
//!
//! A **commit** that does not fit one batch is a run of batches of one producer, one behind the
//! other in one segment, all with [`flags::COMMIT`] and the same sequence, the last with
//! [`flags::COMMIT_END`] and the annex. They are visible together, and a start that finds no end
//! finds none of them. Inside it each is like any other, chains included.
//!
//! # Changing the format
//!
//! New per-message facts: a new attribute tag (unknown tags are passed on). New per-batch facts:
//! the annex. A new flag bit that old readers must not ignore, or a change to the header: raise
//! `FORMAT_VERSION` of the log and keep the decoder of the version before.

pub mod dead;
mod traits;

use crate::limits;
use crate::planted::{self, Bug};
use crate::units::{
    Count, Epoch, Offset, Position, ProducerId, QueueId, SegmentNumber, Sequence, WallTime,
};

pub use traits::{NotBefore, Traits, check_messages};

/// Bytes of a batch header.
pub const HEADER_BYTES: usize = 64;

/// Bits of [`BatchHeader::flags`].
pub mod flags {
    /// Part of a chain (see the module's page).
    pub const CHAIN: u16 = 1 << 0;
    /// The last part of a chain.
    pub const CHAIN_END: u16 = 1 << 1;
    /// Holds no message: written only to carry a durable mark or a producer's epoch.
    pub const MARK: u16 = 1 << 2;
    /// The payload begins with an annex.
    pub const ANNEX: u16 = 1 << 3;
    /// Some message inside expires, or is for one group only: whoever delivers must look at each.
    pub const SELECTIVE: u16 = 1 << 4;
    /// Holds no message: written only to carry a producer's sequence or annex.
    pub const EMPTY: u16 = 1 << 5;
    /// Part of a commit of several batches (see the module's page).
    pub const COMMIT: u16 = 1 << 6;
    /// The last batch of such a commit.
    pub const COMMIT_END: u16 = 1 << 7;
    /// All bits that this version knows.
    pub const KNOWN: u16 =
        CHAIN | CHAIN_END | MARK | ANNEX | SELECTIVE | EMPTY | COMMIT | COMMIT_END;
}

/// How messages lie in a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// Each message ends with this byte.
    Delimited(u8),
    /// Length-prefixed, with attributes.
    Records,
}

/// Where a batch stands; part of what its checksum covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The incarnation of the queue.
    pub queue: QueueId,
    /// The segment; `u64::MAX` for a batch that was cut for a delivery.
    pub segment: SegmentNumber,
    /// The position of the header in the segment file; `u64::MAX` when cut for a delivery.
    pub position: Position,
}

impl Place {
    /// The place of a batch that was cut for a delivery and stands in no file.
    #[must_use]
    pub fn cut(queue: QueueId) -> Place {
        Place { queue, segment: SegmentNumber(u64::MAX), position: Position(u64::MAX) }
    }

    /// The place `bytes` further on in the same file; a cut batch stays where it is: nowhere.
    #[must_use]
    pub fn advanced(self, bytes: u64) -> Place {
        if self.position.0 == u64::MAX {
            return self;
        }
        Place { position: Position(self.position.0 + bytes), ..self }
    }
}

/// What is wrong with the bytes of a batch. Never a panic: they come from a peer or a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The header's checksum does not fit its bytes at this place.
    #[error("the batch header fails its checksum at this place")]
    HeaderChecksum,
    /// The payload's checksum does not fit.
    #[error("the batch payload fails its checksum")]
    PayloadChecksum,
    /// A field has a value that no version of mq writes.
    #[error("the batch header has an impossible {0}")]
    Field(&'static str),
    /// Fewer bytes than the header announces.
    #[error("the batch is cut short")]
    Short,
    /// A payload whose messages do not come out as announced.
    #[error("the payload does not hold the announced messages: {0}")]
    Messages(&'static str),
}

/// A batch header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// How messages lie in the payload.
    pub framing: Framing,
    /// See [`flags`].
    pub flags: u16,
    /// The offset of the first message. A mark carries the offset of the next message.
    pub offset: Offset,
    /// Messages inside.
    pub count: u32,
    /// CRC-32 of the payload.
    pub payload_crc: u32,
    /// Everything below was durable when this was written.
    pub mark: Offset,
    /// When it was appended; never decreases within a queue.
    pub time: WallTime,
    /// Who sent it.
    pub producer: ProducerId,
    /// The producer's sequence of the last message inside.
    pub sequence: Sequence,
    /// The producer's epoch.
    pub epoch: Epoch,
}

/// CRC-32 of `bytes` as it stands in headers.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The checksum of bytes that come in parts.
#[derive(Debug, Default)]
pub struct Checksum {
    hasher: crc32fast::Hasher,
    bytes: u64,
}

impl Checksum {
    /// Goes on with these.
    pub fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

/// The checksum of several slices, one behind the other.
#[must_use]
pub fn checksum_of(slices: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    slices.iter().for_each(|slice| hasher.update(slice));
    hasher.finalize()
}

fn header_checksum(place: &Place, header: &[u8]) -> u32 {
    let mut seeded = [0u8; 32 + HEADER_BYTES - 4];
    seeded[..16].copy_from_slice(place.queue.as_bytes());
    seeded[16..24].copy_from_slice(&place.segment.0.to_le_bytes());
    if !planted::is(Bug::ChecksumWithoutPosition) {
        seeded[24..32].copy_from_slice(&place.position.0.to_le_bytes());
    }
    seeded[32..].copy_from_slice(&header[..HEADER_BYTES - 4]);
    crc32fast::hash(&seeded)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl BatchHeader {
    /// Bytes of the whole batch.
    #[must_use]
    pub fn length(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }

    /// The first offset behind the batch. Inside a chain only the last batch moves it.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.offset.plus(Count(u64::from(self.count)))
    }

    /// Whether `bit` of [`flags`] is set.
    #[must_use]
    pub fn has(&self, bit: u16) -> bool {
        self.flags & bit != 0
    }

    /// The header's bytes for this place.
    #[must_use]
    pub fn encode(&self, place: &Place) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        let (framing, delimiter) = match self.framing {
            Framing::Delimited(byte) => (0, byte),
            Framing::Records => (1, 0),
        };
        out[0..4].copy_from_slice(&(HEADER_BYTES as u32 + self.payload_bytes).to_le_bytes());
        out[4] = framing;
        out[5] = delimiter;
        out[6..8].copy_from_slice(&self.flags.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.0.to_le_bytes());
        out[16..20].copy_from_slice(&self.count.to_le_bytes());
        out[20..24].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[24..32].copy_from_slice(&self.mark.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.time.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.producer.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.sequence.0.to_le_bytes());
        out[56..60].copy_from_slice(&self.epoch.0.to_le_bytes());
        let crc = header_checksum(place, &out);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of a batch that stands at `place`. `bytes` may be longer.
    ///
    /// # Errors
    /// [`BatchError::Short`] when there are fewer than [`HEADER_BYTES`]; a checksum or a field
    /// that is wrong.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<BatchHeader, BatchError> {
        if bytes.len() < HEADER_BYTES {
            return Err(BatchError::Short);
        }
        if u32_at(bytes, 60) != header_checksum(place, bytes) {
            return Err(BatchError::HeaderChecksum);
        }
        let length = u32_at(bytes, 0) as usize;
        if length < HEADER_BYTES || length - HEADER_BYTES > limits::BATCH_PAYLOAD_BYTES_MAX {
            return Err(BatchError::Field("length"));
        }
        let framing = match (bytes[4], bytes[5]) {
            (0, delimiter) => Framing::Delimited(delimiter),
            (1, 0) => Framing::Records,
            _ => return Err(BatchError::Field("framing")),
        };
        let flags = u16_at(bytes, 6);
        if flags & !flags::KNOWN != 0 {
            return Err(BatchError::Field("flag"));
        }
        let count = u32_at(bytes, 16);
        if u64::from(count) > limits::BATCH_MESSAGES_MAX {
            return Err(BatchError::Field("count"));
        }
        let offset = u64_at(bytes, 8);
        if offset.checked_add(u64::from(count)).is_none() {
            return Err(BatchError::Field("offset"));
        }
        Ok(BatchHeader {
            payload_bytes: (length - HEADER_BYTES) as u32,
            framing,
            flags,
            offset: Offset(offset),
            count,
            payload_crc: u32_at(bytes, 20),
            mark: Offset(u64_at(bytes, 24)),
            time: WallTime(u64_at(bytes, 32)),
            producer: ProducerId(u64_at(bytes, 40)),
            sequence: Sequence(u64_at(bytes, 48)),
            epoch: Epoch(u32_at(bytes, 56)),
        })
    }

    /// Checks the payload against the header.
    ///
    /// # Errors
    /// [`BatchError::Short`], [`BatchError::PayloadChecksum`].
    pub fn verify(&self, payload: &[u8]) -> Result<(), BatchError> {
        let mut checksum = Checksum::default();
        checksum.add(payload);
        self.verify_checksum(&checksum)
    }

    /// Checks the checksum of a payload that was read in parts against the header.
    ///
    /// # Errors
    /// As for [`BatchHeader::verify`].
    pub fn verify_checksum(&self, payload: &Checksum) -> Result<(), BatchError> {
        if payload.bytes != u64::from(self.payload_bytes) {
            return Err(BatchError::Short);
        }
        let crc = payload.hasher.clone().finalize();
        if crc != self.payload_crc && !planted::is(Bug::PayloadNotVerified) {
            return Err(BatchError::PayloadChecksum);
        }
        Ok(())
    }

    /// The part of the payload that holds messages, behind the annex if there is one.
    ///
    /// # Errors
    /// [`BatchError::Messages`] when the annex does not fit.
    pub fn messages_part<'a>(&self, payload: &'a [u8]) -> Result<&'a [u8], BatchError> {
        messages_part(self.flags, payload)
    }

    /// The annex that the payload begins with, if there is one and it fits.
    #[must_use]
    pub fn annex<'a>(&self, payload: &'a [u8]) -> Option<&'a [u8]> {
        annex(self.flags, payload)
    }
}

/// The annex that a payload with [`flags::ANNEX`] begins with, and the messages behind it; none when it
/// does not fit.
fn split_annex(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = payload.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// The annex that the payload of a batch with these flags begins with, if there is one and it fits.
#[must_use]
pub fn annex(batch_flags: u16, payload: &[u8]) -> Option<&[u8]> {
    let has_one = batch_flags & flags::ANNEX != 0;
    has_one.then(|| split_annex(payload))?.map(|(annex, _)| annex)
}

/// The part of the payload of a batch with these flags that holds messages.
///
/// # Errors
/// [`BatchError::Messages`] when the annex does not fit.
pub fn messages_part(batch_flags: u16, payload: &[u8]) -> Result<&[u8], BatchError> {
    if batch_flags & flags::ANNEX == 0 {
        return Ok(payload);
    }
    let split = split_annex(payload).ok_or(BatchError::Messages("the annex does not fit"));
    split.map(|(_, messages)| messages)
}

/// Appends an annex, as a payload with [`flags::ANNEX`] begins with it.
pub fn push_annex(out: &mut Vec<u8>, annex: &[u8]) {
    out.extend_from_slice(&(annex.len() as u32).to_le_bytes());
    out.extend_from_slice(annex);
}

/// Bytes in front of a record's attributes.
pub const RECORD_HEADER_BYTES: usize = 8;

/// Tags of record attributes.
pub mod tags {
    /// The message's key, UTF-8.
    pub const KEY: u8 = 1;
    /// The message's id, UTF-8.
    pub const ID: u8 = 2;
    /// A header: u16 length of the name, the name, the value; both UTF-8.
    pub const HEADER: u8 = 3;
    /// Event time, u64 microseconds since the epoch.
    pub const EVENT_TIME: u8 = 4;
    /// Not delivered after this wall time, u64 microseconds.
    pub const EXPIRES: u8 = 5;
    /// Not delivered before this wall time, u64 microseconds.
    pub const NOT_BEFORE: u8 = 6;
    /// Only for the group of this name: a message that was requeued for those that failed it.
    pub const ONLY_GROUP: u8 = 7;
}

/// One message of a records payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The attributes as they stand; see [`Record::attributes`].
    pub attribute_bytes: &'a [u8],
    /// The message's body.
    pub body: &'a [u8],
}

impl<'a> Record<'a> {
    /// Takes the first record off `bytes`; returns it and what is behind it.
    ///
    /// # Errors
    /// [`BatchError::Messages`] when the lengths do not fit.
    pub fn decode(bytes: &'a [u8]) -> Result<(Record<'a>, &'a [u8]), BatchError> {
        let bad = BatchError::Messages("a record runs over the end");
        if bytes.len() < RECORD_HEADER_BYTES {
            return Err(bad);
        }
        let attributes = u32_at(bytes, 0) as usize;
        let body = u32_at(bytes, 4) as usize;
        let rest = &bytes[RECORD_HEADER_BYTES..];
        if attributes > rest.len() || body > rest.len() - attributes {
            return Err(bad);
        }
        let (attribute_bytes, rest) = rest.split_at(attributes);
        let (body, behind) = rest.split_at(body);
        Ok((Record { attribute_bytes, body }, behind))
    }

    /// The lengths of attributes and body by the header of the record that `bytes` begins with;
    /// none when that is not whole.
    #[must_use]
    pub fn lengths(bytes: &[u8]) -> Option<(u32, u32)> {
        (bytes.len() >= RECORD_HEADER_BYTES).then(|| (u32_at(bytes, 0), u32_at(bytes, 4)))
    }

    /// Appends the record's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.attribute_bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        out.extend_from_slice(self.attribute_bytes);
        out.extend_from_slice(self.body);
    }

    /// The attributes, each as tag and value.
    pub fn attributes(&self) -> impl Iterator<Item = Result<(u8, &'a [u8]), BatchError>> + use<'a> {
        let mut rest = self.attribute_bytes;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let bad = Some(Err(BatchError::Messages("an attribute runs over the end")));
            if rest.len() < 5 {
                rest = &[];
                return bad;
            }
            let (tag, length) = (rest[0], u32_at(rest, 1) as usize);
            let Some(value) = rest[5..].get(..length) else {
                rest = &[];
                return bad;
            };
            rest = &rest[5 + length..];
            Some(Ok((tag, value)))
        })
    }
}

/// Appends a header as an attribute of a record.
///
/// # Errors
/// [`BatchError::Messages`] when its name is too long for one.
pub fn push_header(out: &mut Vec<u8>, name: &str, value: &str) -> Result<(), BatchError> {
    let long = BatchError::Messages("a header with a name over 65535 bytes");
    let name_bytes = u16::try_from(name.len()).map_err(|_| long)?;
    out.push(tags::HEADER);
    out.extend_from_slice(&((2 + name.len() + value.len()) as u32).to_le_bytes());
    out.extend_from_slice(&name_bytes.to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(value.as_bytes());
    Ok(())
}

/// Name and value of an attribute with [`tags::HEADER`]; none when the name does not fit.
#[must_use]
pub fn split_header(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = value.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

/// Appends an attribute to a record's attribute bytes.
pub fn push_attribute(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
}

/// Where the first `count` messages of `payload` end, in bytes. `None` when there are fewer.
#[must_use]
pub fn bytes_of_messages(framing: Framing, payload: &[u8], count: u64) -> Option<usize> {
    if count == 0 {
        return Some(0);
    }
    match framing {
        Framing::Delimited(delimiter) => {
            let nth = usize::try_from(count - 1).ok()?;
            memchr::memchr_iter(delimiter, payload).nth(nth).map(|at| at + 1)
        }
        Framing::Records => {
            let mut rest = payload;
            for _ in 0..count {
                rest = Record::decode(rest).ok()?.1;
            }
            Some(payload.len() - rest.len())
        }
    }
}

/// The bodies of a payload's messages, in order, without delimiters.
///
/// Only for a payload that was checked ([`check_messages`] or a verified batch); it ends early
/// on bytes that are not what they should be.
pub fn bodies(framing: Framing, payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match framing {
            Framing::Delimited(delimiter) => {
                let at = memchr::memchr(delimiter, rest)?;
                let body = &rest[..at];
                rest = &rest[at + 1..];
                Some(body)
            }
            Framing::Records => {
                let (record, behind) = Record::decode(rest).ok()?;
                rest = behind;
                Some(record.body)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            queue: QueueId::from_bytes(*b"0123456789abcdef"),
            segment: SegmentNumber(3),
            position: Position(4096),
        }
    }

    fn header(payload: &[u8]) -> BatchHeader {
        BatchHeader {
            payload_bytes: payload.len() as u32,
            framing: Framing::Delimited(b'\n'),
            flags: 0,
            offset: Offset(7),
            count: 2,
            payload_crc: checksum(payload),
            mark: Offset(5),
            time: WallTime(1_700_000_000_000_000),
            producer: ProducerId(9),
            sequence: Sequence(11),
            epoch: Epoch(1),
        }
    }

    #[test]
    fn header_round_trips_at_its_place_only() {
        let payload = b"one\ntwo\n";
        let header = header(payload);
        let bytes = header.encode(&place());
        assert_eq!(BatchHeader::decode(&bytes, &place()), Ok(header));
        assert_eq!(header.verify(payload), Ok(()));
        for wrong in [
            Place { segment: SegmentNumber(4), ..place() },
            Place { position: Position(4097), ..place() },
            Place { queue: QueueId::from_bytes(*b"0123456789abcdeF"), ..place() },
            Place::cut(place().queue),
        ] {
            assert_eq!(BatchHeader::decode(&bytes, &wrong), Err(BatchError::HeaderChecksum));
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let payload = b"one\ntwo\n";
        let header = header(payload);
        let bytes = header.encode(&place());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(BatchHeader::decode(&bad, &place()).is_err(), "bit {bit}");
        }
        for bit in 0..payload.len() * 8 {
            let mut bad = *payload;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(header.verify(&bad), Err(BatchError::PayloadChecksum), "bit {bit}");
        }
    }

    #[test]
    fn bodies_are_found_in_order() {
        let mut records = Vec::new();
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, tags::KEY, b"k");
        Record { attribute_bytes: &attributes, body: b"a\nb" }.encode(&mut records);
        Record { attribute_bytes: &[], body: b"" }.encode(&mut records);
        let bodies: Vec<&[u8]> = bodies(Framing::Records, &records).collect();
        assert_eq!(bodies, [b"a\nb".as_slice(), b""]);
    }

    #[test]
    fn messages_are_found_by_count() {
        let lines = Framing::Delimited(b'\n');
        assert_eq!(bytes_of_messages(lines, b"a\nbb\nc\n", 2), Some(5));
        assert_eq!(bytes_of_messages(lines, b"a\nbb\nc\n", 0), Some(0));
        assert_eq!(bytes_of_messages(lines, b"a\nbb\nc\n", 4), None);
    }
}
