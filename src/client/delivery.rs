//! A delivery: verifies what a DELIVER frame carries.
//!
//! Every batch is checked against its place, header and payload, before one byte of it is used;
//! large messages are put together from their chain. It does no I/O and does not look at single
//! messages; the receiver calls it.

use super::piece::Slice;
use crate::batch::{BatchError, BatchHeader, HEADER_BYTES, Place, flags};
use crate::limits;
use crate::units::{Attempts, LeaseNumber, Name, Offset, Position, QueueId, SegmentNumber};
use crate::wire::DeliverHead;

/// Bytes that the joined payloads of a chain may have: the largest message and its attributes.
const CHAIN_BYTES_MAX: usize = limits::MESSAGE_BYTES_MAX + limits::BATCH_PAYLOAD_BYTES_MAX;

/// Why a delivery, or the rest of it, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// A batch fails its checksum; the server must look at it again.
    #[error("the batch at position {position} of segment {segment}: {source}")]
    Damaged {
        /// In which segment.
        segment: SegmentNumber,
        /// Where in it.
        position: Position,
        /// What is wrong.
        source: BatchError,
    },
    /// Batches that no server sends in this order.
    #[error("{0}")]
    Broken(&'static str),
}

impl DeliveryError {
    /// A batch whose messages do not come out as its header says.
    #[must_use]
    pub fn of(batch: &Place, source: BatchError) -> DeliveryError {
        DeliveryError::Damaged { segment: batch.segment, position: batch.position, source }
    }
}

/// Where the messages of a batch come from, as far as the batch does not say so itself.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The queue.
    pub queue: &'a Name,
    /// Its incarnation.
    pub queue_id: QueueId,
    /// The group that it is received for.
    pub group: &'a Name,
    /// How often the messages were handed over before, plus one; 0: not counted.
    pub attempt: Attempts,
    /// The lease that the messages are under; 0: none.
    pub lease: LeaseNumber,
}

/// Verified messages.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the batch says of them. For a large message it is that of its last part, with
    /// [`flags::CHAIN`].
    pub header: BatchHeader,
    /// The messages, without an annex; for a large message, the whole of its record, in a buffer
    /// of its own with room for one more byte.
    pub payload: Slice,
    /// Where it stood.
    pub place: Place,
}

/// A large message of which not all parts have come.
#[derive(Debug)]
struct Chain {
    offset: Offset,
    joined: Vec<u8>,
}

/// Takes deliveries of one queue apart.
#[derive(Debug)]
pub struct Unpacker {
    queue: QueueId,
    chain: Option<Chain>,
    /// Whether the rest of a large message is passed over, because a part of it was damaged.
    is_skipping: bool,
}

impl Unpacker {
    /// For the queue with this incarnation.
    #[must_use]
    pub fn new(queue: QueueId) -> Unpacker {
        Unpacker { queue, chain: None, is_skipping: false }
    }

    /// The incarnation of the queue.
    #[must_use]
    pub fn queue_id(&self) -> QueueId {
        self.queue
    }

    /// Hands the batches of a delivery to `take`, each verified.
    ///
    /// # Errors
    /// The first batch that cannot be used; the ones before it were handed over, none behind it.
    pub fn unpack(
        &mut self,
        head: &DeliverHead,
        batches: &Slice,
        mut take: impl FnMut(Batch),
    ) -> Result<(), DeliveryError> {
        if self.is_skipping {
            self.is_skipping = head.more;
            return Ok(());
        }
        let mut place = if head.position.0 == u64::MAX {
            Place::cut(self.queue)
        } else {
            Place { queue: self.queue, segment: head.segment, position: head.position }
        };
        let mut at = 0;
        let mut end = None;
        while at < batches.bytes().len() {
            let unpacked = verify(&batches.bytes()[at..], &place).and_then(|header| {
                let payload = messages_of(&header, batches, at)?;
                Ok((header, payload))
            });
            let (header, payload) = unpacked.map_err(|source| {
                self.chain = None;
                self.is_skipping = head.more;
                DeliveryError::of(&place, source)
            })?;
            if header.has(flags::CHAIN) {
                if let Some(payload) = self.link(&header, payload.bytes())? {
                    take(Batch { header, payload, place });
                }
            } else if self.chain.is_some() {
                return Err(DeliveryError::Broken("a large message was not brought to its end"));
            } else if header.count > 0 {
                take(Batch { header, payload, place });
            }
            if header.count > 0 {
                end = Some(header.end());
            }
            at += header.length() as usize;
            place = place.advanced(header.length());
        }
        if !head.more && end != Some(head.end) {
            return Err(DeliveryError::Broken("a delivery does not hold what it announced"));
        }
        Ok(())
    }

    /// One batch of a chain; the message when it is the last.
    fn link(
        &mut self,
        header: &BatchHeader,
        payload: &[u8],
    ) -> Result<Option<Slice>, DeliveryError> {
        let chain = self.chain.get_or_insert_with(|| Chain {
            offset: header.offset,
            joined: Vec::with_capacity(announced_bytes(payload)),
        });
        if chain.offset != header.offset {
            return Err(DeliveryError::Broken("the parts of two large messages are mixed"));
        }
        if chain.joined.len() + payload.len() > CHAIN_BYTES_MAX {
            return Err(DeliveryError::Broken("a message is larger than any may be"));
        }
        chain.joined.extend_from_slice(payload);
        if !header.has(flags::CHAIN_END) {
            return Ok(None);
        }
        let chain = self.chain.take().expect("it was just there");
        Ok(Some(Slice::whole(chain.joined)))
    }
}

/// How long the first part of a chain says that the whole will be, within bounds; and one for a
/// delimiter behind it.
fn announced_bytes(payload: &[u8]) -> usize {
    let length = |at: usize| {
        let bytes = payload.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let total = length(0).unwrap_or(0) + length(4).unwrap_or(0) + 9;
    total.min(CHAIN_BYTES_MAX)
}

pub(super) fn verify(bytes: &[u8], place: &Place) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::decode(bytes, place)?;
    let payload = bytes.get(HEADER_BYTES..header.length() as usize).ok_or(BatchError::Short)?;
    header.verify(payload)?;
    Ok(header)
}

/// The messages' bytes of a verified batch that begins at `at`.
pub(super) fn messages_of(
    header: &BatchHeader,
    batches: &Slice,
    at: usize,
) -> Result<Slice, BatchError> {
    let end = at + header.length() as usize;
    let payload = &batches.bytes()[at + HEADER_BYTES..end];
    let messages = header.messages_part(payload)?.len();
    Ok(batches.part(end - messages..end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Framing, Record, checksum};
    use crate::units::{Epoch, ProducerId, Sequence, WallTime};

    const QUEUE: [u8; 16] = *b"0123456789abcdef";

    /// Appends a batch as it stands in segment 2.
    fn push_batch(out: &mut Vec<u8>, first: u64, count: u32, flags: u16, payload: &[u8]) {
        let is_record = flags & flags::CHAIN != 0;
        let header = BatchHeader {
            payload_bytes: payload.len() as u32,
            framing: if is_record { Framing::Records } else { Framing::Delimited(b'\n') },
            flags,
            offset: Offset(first),
            count,
            payload_crc: checksum(payload),
            mark: Offset(0),
            time: WallTime(1),
            producer: ProducerId(1),
            sequence: Sequence(1),
            epoch: Epoch(1),
        };
        let place = Place {
            queue: QueueId::from_bytes(QUEUE),
            segment: SegmentNumber(2),
            position: Position(100 + out.len() as u64),
        };
        out.extend_from_slice(&header.encode(&place));
        out.extend_from_slice(payload);
    }

    fn head(end: u64, more: bool) -> DeliverHead {
        DeliverHead {
            lease: LeaseNumber(0),
            segment: SegmentNumber(2),
            position: Position(100),
            end: Offset(end),
            attempt: 0,
            more,
            redelivered: false,
            behind: false,
        }
    }

    fn unpack(head: &DeliverHead, bytes: &[u8]) -> (Vec<Vec<u8>>, Result<(), DeliveryError>) {
        let mut pieces = Vec::new();
        let result = Unpacker::new(QueueId::from_bytes(QUEUE)).unpack(
            head,
            &Slice::whole(bytes.to_vec()),
            |batch| pieces.push(batch.payload.bytes().to_vec()),
        );
        (pieces, result)
    }

    #[test]
    fn batches_come_out_and_marks_are_passed_over() {
        let mut bytes = Vec::new();
        push_batch(&mut bytes, 1, 2, 0, b"a\nb\n");
        push_batch(&mut bytes, 3, 0, flags::MARK, b"");
        push_batch(&mut bytes, 3, 1, flags::ANNEX, b"\x02\0\0\0xxc\n");
        let (pieces, result) = unpack(&head(4, false), &bytes);
        assert_eq!(result, Ok(()));
        assert_eq!(pieces, [b"a\nb\n".to_vec(), b"c\n".to_vec()]);
        assert!(matches!(unpack(&head(5, false), &bytes).1, Err(DeliveryError::Broken(_))));
    }

    #[test]
    fn no_byte_of_a_damaged_batch_is_used() {
        let mut bytes = Vec::new();
        push_batch(&mut bytes, 1, 1, 0, b"a\n");
        let second = bytes.len();
        push_batch(&mut bytes, 2, 1, 0, b"b\n");
        for at in second..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let (pieces, result) = unpack(&head(3, false), &bad);
            assert_eq!(pieces, [b"a\n".to_vec()], "byte {at}");
            let Err(DeliveryError::Damaged { segment, position, .. }) = result else {
                panic!("byte {at}: {result:?}")
            };
            assert_eq!((segment.0, position.0), (2, 100 + second as u64));
        }
        for cut in second + 1..bytes.len() {
            assert!(unpack(&head(3, false), &bytes[..cut]).1.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_large_message_is_put_together_from_several_frames() {
        let mut record = Vec::new();
        Record { attribute_bytes: b"", body: b"0123456789" }.encode(&mut record);
        let mut unpacker = Unpacker::new(QueueId::from_bytes(QUEUE));
        let mut large = Vec::new();
        let parts: Vec<&[u8]> = record.chunks(7).collect();
        for (index, part) in parts.iter().enumerate() {
            let is_last = index + 1 == parts.len();
            let flags = flags::CHAIN | if is_last { flags::CHAIN_END } else { 0 };
            let mut bytes = Vec::new();
            push_batch(&mut bytes, 9, u32::from(is_last), flags, part);
            let head = head(if is_last { 10 } else { 9 }, !is_last);
            let slice = Slice::whole(bytes);
            unpacker.unpack(&head, &slice, |batch| large.push(batch)).expect("valid");
        }
        assert_eq!(large.len(), 1);
        assert_eq!((large[0].header.offset, large[0].header.count), (Offset(9), 1));
        assert_eq!(large.remove(0).payload.into_vec(), record);
    }

    #[test]
    fn a_chain_that_breaks_off_is_refused() {
        let mut bytes = Vec::new();
        push_batch(&mut bytes, 9, 0, flags::CHAIN, b"\0\0\0\0\x0a\0\0\0abc");
        push_batch(&mut bytes, 10, 1, 0, b"a\n");
        let (pieces, result) = unpack(&head(11, false), &bytes);
        assert!(pieces.is_empty());
        assert!(matches!(result, Err(DeliveryError::Broken(_))));
    }
}
