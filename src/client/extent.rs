//! An extent: batches that were not sent but told of, as a range of a segment's file with a
//! descriptor of it, which is open for reading only.
//!
//! Headers are read and verified one after the other; a batch that its taker would hand on as it
//! stands is left where it is, as a [`Stored`], and every other is read and verified at once. The
//! segment may be dropped meanwhile: its file is there as long as somebody holds it open. The
//! source of a pipe takes extents, and its filter's feed what is stored.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::delivery::{Batch, DeliveryError, messages_of, verify};
use super::piece::Slice;
use crate::batch::{BatchError, BatchHeader, Checksum, HEADER_BYTES, Place, flags};
use crate::limits;
use crate::units::{OffsetRange, QueueId};
use crate::wire::ExtentHead;

/// What is read at once where batches are small; not much, as a large one may follow any of them.
const WINDOW_BYTES: usize = 2 * limits::STORED_BYTES_MIN;

/// A batch in its file, of which the header alone was read and verified. Its bytes are to be
/// verified by whoever takes them.
#[derive(Clone, Debug)]
pub struct Stored {
    file: Arc<File>,
    header: BatchHeader,
    place: Place,
}

impl Stored {
    /// What the batch says of its messages.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The messages.
    #[must_use]
    pub fn range(&self) -> OffsetRange {
        OffsetRange::new(self.header.offset, self.header.end())
    }

    /// Bytes of the messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.header.payload_bytes as usize
    }

    /// Whether it has none, which it never does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file, and where the messages begin in it.
    #[must_use]
    pub fn bytes_at(&self) -> (&File, u64) {
        (&self.file, self.place.position.0 + HEADER_BYTES as u64)
    }

    /// Verifies its messages, which are read into the buffer a part at a time: one that stays in a
    /// core's cache costs less than one that holds all of them. Panics when it is empty.
    ///
    /// # Errors
    /// They are damaged, or cannot be read: the server must look at them.
    pub fn verify(&self, buffer: &mut [u8]) -> Result<(), DeliveryError> {
        assert!(!buffer.is_empty(), "room for a part");
        let (file, mut at) = self.bytes_at();
        let mut left = self.len();
        let mut checksum = Checksum::default();
        let mut read_all = || {
            while left > 0 {
                let part = buffer.len().min(left);
                let part = &mut buffer[..part];
                read(file, part, at)?;
                checksum.add(part);
                (at, left) = (at + part.len() as u64, left - part.len());
            }
            self.header.verify_checksum(&checksum)
        };
        read_all().map_err(|source| DeliveryError::of(&self.place, source))
    }

    /// The batch in memory.
    ///
    /// # Errors
    /// See [`Stored::verify`].
    pub fn read(&self) -> Result<Batch, DeliveryError> {
        let mut payload = vec![0; self.len()];
        self.verify(&mut payload)?;
        Ok(Batch { header: self.header, payload: Slice::whole(payload), place: self.place })
    }
}

/// A batch of an extent.
#[derive(Debug)]
pub enum Found {
    /// In memory, and verified.
    Here(Batch),
    /// Where it was.
    Stored(Stored),
}

impl Found {
    /// The messages.
    #[must_use]
    pub fn range(&self) -> OffsetRange {
        match self {
            Found::Here(batch) => OffsetRange::new(batch.header.offset, batch.header.end()),
            Found::Stored(stored) => stored.range(),
        }
    }
}

/// All of a buffer. A file that is shorter than was said, and one that cannot be read, are for the
/// server to look at: a short batch.
fn read(file: &File, buffer: &mut [u8], at: u64) -> Result<(), BatchError> {
    file.read_exact_at(buffer, at).map_err(|_| BatchError::Short)
}

/// A part of the file in memory.
struct Window {
    bytes: Slice,
    start: u64,
}

impl Window {
    /// From `at` on, if so many bytes are in it.
    fn from(&self, at: u64, bytes: u64) -> Option<usize> {
        let end = self.start + self.bytes.bytes().len() as u64;
        (self.start <= at && at + bytes <= end).then(|| (at - self.start) as usize)
    }
}

/// Hands the batches of an extent to `take`; those that `keeps` says yes to as they are stored.
///
/// # Errors
/// The first batch that cannot be used; the ones before it were handed over, none behind it.
pub fn walk(
    extent: &ExtentHead,
    queue: QueueId,
    file: &Arc<File>,
    keeps: impl Fn(&BatchHeader) -> bool,
    mut take: impl FnMut(Found),
) -> Result<(), DeliveryError> {
    let ExtentHead { head, bytes, .. } = *extent;
    let mut place = Place { queue, segment: head.segment, position: head.position };
    let behind = place.position.0 + bytes;
    let mut window = Window { bytes: Slice::whole(Vec::new()), start: 0 };
    // A small batch is seldom alone, but the first of them may be.
    let mut was_small = false;
    let mut end = None;
    while place.position.0 < behind {
        let at = place.position.0;
        let of_place = |source| DeliveryError::of(&place, source);
        let header = match window.from(at, HEADER_BYTES as u64) {
            Some(from) => BatchHeader::decode(&window.bytes.bytes()[from..], &place),
            None => {
                let mut header = [0; HEADER_BYTES];
                read(file, &mut header, at).and_then(|()| BatchHeader::decode(&header, &place))
            }
        };
        let header = header.map_err(of_place)?;
        if at + header.length() > behind || header.has(flags::CHAIN) {
            return Err(DeliveryError::Broken("an extent that ends inside a batch"));
        }
        if header.count > 0 && keeps(&header) {
            take(Found::Stored(Stored { file: Arc::clone(file), header, place }));
        } else if header.count > 0 {
            let from = match window.from(at, header.length()) {
                Some(from) => from,
                None => {
                    let wanted = if was_small { WINDOW_BYTES as u64 } else { 0 };
                    let most = (behind - at).min(wanted).max(header.length());
                    let mut bytes = vec![0; most as usize];
                    read(file, &mut bytes, at).map_err(of_place)?;
                    window = Window { bytes: Slice::whole(bytes), start: at };
                    0
                }
            };
            verify(&window.bytes.bytes()[from..], &place).map_err(of_place)?;
            let payload = messages_of(&header, &window.bytes, from).map_err(of_place)?;
            take(Found::Here(Batch { header, payload, place }));
        }
        if header.count > 0 {
            end = Some(header.end());
            was_small = header.length() < limits::STORED_BYTES_MIN as u64;
        }
        place = place.advanced(header.length());
    }
    if end != Some(head.end) {
        return Err(DeliveryError::Broken("an extent does not hold what it announced"));
    }
    Ok(())
}

/// Whether lines that end with `delimiter` can be handed on from the file as they stand: nothing
/// stands in front of them, and there are enough that it is worth a few system calls.
#[must_use]
pub fn is_worth_keeping(header: &BatchHeader, delimiter: u8) -> bool {
    let kept = limits::STORED_BYTES_MIN..=limits::STORED_BYTES_MAX;
    header.framing == crate::batch::Framing::Delimited(delimiter)
        && header.flags & !flags::COMMIT == 0
        && kept.contains(&(header.payload_bytes as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Framing, checksum};
    use crate::units::{
        Epoch, LeaseNumber, Offset, Position, ProducerId, SegmentNumber, Sequence, WallTime,
    };
    use crate::wire::DeliverHead;

    const START: u64 = 4096;

    /// A segment with these batches of lines from offset 1 on, and the extent of all of them.
    fn segment(payloads: &[Vec<u8>]) -> (Arc<File>, ExtentHead, QueueId) {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let segment = SegmentNumber(2);
        let file = tempfile::tempfile().expect("a file");
        let (mut at, mut offset) = (START, Offset(1));
        for payload in payloads {
            let count = memchr::memchr_iter(b'\n', payload).count() as u32;
            let header = BatchHeader {
                payload_bytes: payload.len() as u32,
                framing: Framing::Delimited(b'\n'),
                flags: if count == 0 { flags::MARK } else { 0 },
                offset,
                count,
                payload_crc: checksum(payload),
                mark: Offset(0),
                time: WallTime(1),
                producer: ProducerId(1),
                sequence: Sequence(1),
                epoch: Epoch(1),
            };
            let place = Place { queue, segment, position: Position(at) };
            file.write_all_at(&header.encode(&place), at).expect("room");
            file.write_all_at(payload, at + HEADER_BYTES as u64).expect("room");
            (at, offset) = (at + header.length(), header.end());
        }
        let head = DeliverHead {
            segment,
            position: Position(START),
            end: offset,
            attempt: 0,
            lease: LeaseNumber(0),
            more: false,
            redelivered: false,
            behind: false,
        };
        (Arc::new(file), ExtentHead { head, bytes: at - START, opens: true }, queue)
    }

    fn lines(bytes: usize) -> Vec<u8> {
        b"0123456789abcde\n".repeat(bytes / 16)
    }

    /// What comes out, and how many batches of it were left in the file.
    fn read_all(payloads: &[Vec<u8>], keeps: bool) -> (Vec<u8>, usize) {
        let (file, extent, queue) = segment(payloads);
        let (mut out, mut stored) = (Vec::new(), 0);
        let keeps = |header: &BatchHeader| keeps && is_worth_keeping(header, b'\n');
        walk(&extent, queue, &file, keeps, |found| match found {
            Found::Here(batch) => out.extend_from_slice(batch.payload.bytes()),
            Found::Stored(batch) => {
                stored += 1;
                out.extend_from_slice(batch.read().expect("sound").payload.bytes());
            }
        })
        .expect("sound");
        (out, stored)
    }

    #[test]
    fn batches_come_out_in_order_wherever_they_are_kept() {
        let small = limits::STORED_BYTES_MIN / 2;
        let (min, max) = (limits::STORED_BYTES_MIN, limits::STORED_BYTES_MAX);
        let sizes = [16, small, min, max, 0, 16, max + 16, min, small];
        let payloads: Vec<Vec<u8>> = sizes.iter().map(|size| lines(*size)).collect();
        let whole = payloads.concat();
        assert!(read_all(&payloads, true) == (whole.clone(), 3));
        assert!(read_all(&payloads, false) == (whole, 0));
    }

    #[test]
    fn no_byte_of_a_damaged_batch_is_used() {
        let payloads = [lines(64), lines(limits::STORED_BYTES_MIN), lines(64)];
        let places = [0, 64 + 64, 2 * 64 + 64 + limits::STORED_BYTES_MIN as u64];
        for (bad, place) in places.into_iter().enumerate() {
            for inside in [3, 20, HEADER_BYTES as u64 + 5] {
                let (file, extent, queue) = segment(&payloads);
                let at = START + place + inside;
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).expect("readable");
                file.write_all_at(&[byte[0] ^ 1], at).expect("room");
                let mut out = Vec::new();
                let keeps = |header: &BatchHeader| is_worth_keeping(header, b'\n');
                let mut failed = None;
                let walked = walk(&extent, queue, &file, keeps, |found| match found {
                    Found::Here(batch) => out.push(batch.payload.bytes().to_vec()),
                    Found::Stored(stored) => match stored.read() {
                        Ok(batch) => out.push(batch.payload.bytes().to_vec()),
                        Err(error) => failed = failed.take().or(Some(error)),
                    },
                });
                let error = failed.or(walked.err());
                let Some(DeliveryError::Damaged { segment, position, .. }) = error else {
                    panic!("batch {bad}, byte {inside}: {error:?}")
                };
                assert_eq!((segment.0, position.0), (2, START + place));
                assert!(out.iter().all(|payload| payloads.contains(payload)));
            }
        }
    }

    #[test]
    fn an_extent_ends_where_it_says() {
        let (file, extent, queue) = segment(&[lines(64), lines(64)]);
        let walk = |extent: &ExtentHead| walk(extent, queue, &file, |_| false, |_| {});
        assert_eq!(walk(&extent), Ok(()));
        let short = ExtentHead { bytes: extent.bytes - 1, ..extent };
        assert!(matches!(walk(&short), Err(DeliveryError::Broken(_))));
        let long = ExtentHead { bytes: extent.bytes + 1, ..extent };
        assert!(matches!(walk(&long), Err(DeliveryError::Damaged { .. })));
        let head = DeliverHead { end: Offset(77), ..extent.head };
        assert!(matches!(walk(&ExtentHead { head, ..extent }), Err(DeliveryError::Broken(_))));
    }
}
