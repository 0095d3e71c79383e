//! Messages of an engine as DELIVER frames that a client takes: batches that were cut for a delivery,
//! with their checksums. Pure.
//!
//! What is no more than a body is delivered in lines; a body that holds a newline, or a message with
//! facts, makes records of the batch that it is in.

use bytes::Bytes;

use crate::batch::{
    BatchHeader, Framing, HEADER_BYTES, Place, RECORD_HEADER_BYTES, Record, checksum, flags,
    push_attribute, push_header, tags,
};
use crate::limits;
use crate::remote::message::{Facts, Incoming};
use crate::units::{
    Epoch, LeaseNumber, Offset, Position, ProducerId, QueueId, SegmentNumber, Sequence, WallTime,
};
use crate::wire::{DELIVER_HEAD_BYTES, DeliverHead, FRAME_HEADER_BYTES};

const HEAD_BYTES: usize = FRAME_HEADER_BYTES + DELIVER_HEAD_BYTES;

/// Bytes of a large message in one frame.
const PART_BYTES: usize = limits::CHAIN_PART_BYTES as usize;

/// What a delivery says beside its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The channel.
    pub channel: u16,
    /// The incarnation that the receiver was told.
    pub queue: QueueId,
    /// The time.
    pub now: WallTime,
    /// Which attempt it is; 0: not counted.
    pub attempt: u32,
    /// The messages may have been delivered before.
    pub redelivered: bool,
}

/// A message with its attributes, as they stand in a record.
struct Written<'a> {
    attributes: Vec<u8>,
    body: &'a [u8],
}

impl Written<'_> {
    fn bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.attributes.len() + self.body.len()
    }

    fn is_line(&self) -> bool {
        self.attributes.is_empty() && memchr::memchr(b'\n', self.body).is_none()
    }

    fn push(&self, framing: Framing, out: &mut Vec<u8>) {
        if let Framing::Delimited(delimiter) = framing {
            out.extend_from_slice(self.body);
            out.push(delimiter);
            return;
        }
        Record { attribute_bytes: &self.attributes, body: self.body }.encode(out);
    }
}

fn attributes(facts: &Facts) -> Vec<u8> {
    let mut out = Vec::new();
    let texts = [(tags::KEY, &facts.key), (tags::ID, &facts.id)];
    for (tag, text) in texts {
        text.iter().for_each(|text| push_attribute(&mut out, tag, text.as_bytes()));
    }
    for (name, value) in &facts.headers {
        // A name that is too long is none of mq's, and left out.
        let _ = push_header(&mut out, name, value);
    }
    let times = [
        (tags::EVENT_TIME, facts.event_time),
        (tags::EXPIRES, facts.expires),
        (tags::NOT_BEFORE, facts.not_before),
    ];
    for (tag, time) in times {
        time.iter().for_each(|time| push_attribute(&mut out, tag, &time.0.to_le_bytes()));
    }
    out
}

impl Delivery {
    /// The frames for these messages, the first of which has the offset `first`.
    #[must_use]
    pub fn frames<'a>(
        &self,
        mut first: u64,
        messages: impl IntoIterator<Item = &'a Incoming>,
    ) -> Vec<Bytes> {
        let mut frames = Vec::new();
        let mut batch: Vec<Written<'_>> = Vec::new();
        let mut bytes = 0;
        for message in messages {
            let attributes =
                message.facts.as_ref().map_or_else(Vec::new, |facts| attributes(facts));
            let written = Written { attributes, body: &message.body };
            let more = written.bytes();
            let is_full = bytes + more > limits::DELIVER_BYTES
                || batch.len() as u64 >= limits::BATCH_MESSAGES_MAX;
            if is_full && !batch.is_empty() {
                frames.push(self.frame(first, &batch));
                first += batch.len() as u64;
                batch.clear();
                bytes = 0;
            }
            if more > limits::DELIVER_BYTES {
                self.large(first, &written, &mut frames);
                first += 1;
                continue;
            }
            bytes += more;
            batch.push(written);
        }
        if !batch.is_empty() {
            frames.push(self.frame(first, &batch));
        }
        frames
    }

    fn frame(&self, first: u64, batch: &[Written<'_>]) -> Bytes {
        let is_plain = batch.iter().all(Written::is_line);
        let framing = if is_plain { Framing::Delimited(b'\n') } else { Framing::Records };
        let bytes: usize = batch.iter().map(Written::bytes).sum();
        let mut out = self.room(bytes);
        batch.iter().for_each(|written| written.push(framing, &mut out));
        self.complete(out, framing, 0, first, batch.len() as u32, false)
    }

    /// A message that does not fit one batch.
    fn large(&self, offset: u64, written: &Written<'_>, frames: &mut Vec<Bytes>) {
        let mut record = Vec::with_capacity(written.bytes());
        written.push(Framing::Records, &mut record);
        let parts = record.len().div_ceil(PART_BYTES);
        for (n, part) in record.chunks(PART_BYTES).enumerate() {
            let is_last = n + 1 == parts;
            let flags = flags::CHAIN | if is_last { flags::CHAIN_END } else { 0 };
            let mut out = self.room(part.len());
            out.extend_from_slice(part);
            let count = u32::from(is_last);
            frames.push(self.complete(out, Framing::Records, flags, offset, count, !is_last));
        }
    }

    /// A frame with room for its heads, and for so many bytes behind them.
    fn room(&self, bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + HEADER_BYTES + bytes);
        out.resize(HEAD_BYTES + HEADER_BYTES, 0);
        out
    }

    fn complete(
        &self,
        mut out: Vec<u8>,
        framing: Framing,
        flags: u16,
        first: u64,
        count: u32,
        more: bool,
    ) -> Bytes {
        let payload = &out[HEAD_BYTES + HEADER_BYTES..];
        let header = BatchHeader {
            payload_bytes: payload.len() as u32,
            framing,
            flags,
            offset: Offset(first),
            count,
            payload_crc: checksum(payload),
            mark: Offset(first),
            time: self.now,
            producer: ProducerId(0),
            sequence: Sequence(0),
            epoch: Epoch(0),
        };
        let head = DeliverHead {
            segment: SegmentNumber(u64::MAX),
            position: Position(u64::MAX),
            end: Offset(first + u64::from(count)),
            attempt: self.attempt,
            lease: LeaseNumber(0),
            more,
            redelivered: self.redelivered,
            behind: false,
        };
        let batch_bytes = out.len() - HEAD_BYTES;
        out[..HEAD_BYTES].copy_from_slice(&head.encode(self.channel, batch_bytes));
        let place = Place::cut(self.queue);
        out[HEAD_BYTES..HEAD_BYTES + HEADER_BYTES].copy_from_slice(&header.encode(&place));
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::bodies;
    use crate::wire::{FrameHeader, Reply};

    const QUEUE: [u8; 16] = *b"0123456789abcdef";

    fn delivery() -> Delivery {
        Delivery {
            channel: 1,
            queue: QueueId::from_bytes(QUEUE),
            now: WallTime(5),
            attempt: 2,
            redelivered: true,
        }
    }

    fn message(body: &[u8]) -> Incoming {
        Incoming { body: Bytes::copy_from_slice(body), facts: None, attempt: 0, redelivered: false }
    }

    /// Reads a frame as a client does: head, batch header, payload.
    fn read(frame: &Bytes) -> (DeliverHead, BatchHeader, Vec<u8>) {
        let header = FrameHeader::decode(frame[..8].try_into().expect("a header")).expect("valid");
        let Ok(Reply::Deliver(head, batches)) = Reply::decode(&header, &frame[8..]) else {
            panic!("no DELIVER")
        };
        let place = Place::cut(QueueId::from_bytes(QUEUE));
        let batch = BatchHeader::decode(batches, &place).expect("its place");
        let payload = &batches[HEADER_BYTES..];
        batch.verify(payload).expect("its checksum");
        (head, batch, payload.to_vec())
    }

    #[test]
    fn bodies_are_lines_and_what_is_none_is_a_record() {
        let frames = delivery().frames(7, &[message(b"a"), message(b"")]);
        let (head, batch, payload) = read(&frames[0]);
        assert_eq!((frames.len(), payload.as_slice()), (1, b"a\n\n".as_slice()));
        assert_eq!((batch.offset, batch.count, head.end), (Offset(7), 2, Offset(9)));
        assert_eq!((head.attempt, head.redelivered), (2, true));
        let frames = delivery().frames(0, &[message(b"a"), message(b"b\nc")]);
        let (_, batch, payload) = read(&frames[0]);
        assert_eq!(batch.framing, Framing::Records);
        assert_eq!(bodies(Framing::Records, &payload).collect::<Vec<_>>(), [&b"a"[..], b"b\nc"]);
    }

    #[test]
    fn facts_are_attributes() {
        let facts = Facts {
            key: Some("k".to_owned()),
            headers: vec![("n".to_owned(), "v".to_owned())],
            event_time: Some(WallTime(3)),
            ..Facts::default()
        };
        let message = Incoming { facts: Some(Box::new(facts)), ..message(b"x") };
        let (_, _, payload) = read(&delivery().frames(0, &[message])[0]);
        let record = Record::decode(&payload).expect("a record").0;
        assert_eq!(record.attribute(tags::KEY), Some(&b"k"[..]));
        assert_eq!(record.attribute(tags::HEADER), Some(&b"\x01\0nv"[..]));
        assert_eq!(record.attribute(tags::EVENT_TIME), Some(&3u64.to_le_bytes()[..]));
    }

    #[test]
    fn much_comes_in_several_frames_and_a_large_one_in_parts() {
        let many: Vec<Incoming> = (0..3000).map(|_| message(&[b'x'; 500])).collect();
        let frames = delivery().frames(0, &many);
        let counts: Vec<u32> = frames.iter().map(|frame| read(frame).1.count).collect();
        assert!(frames.len() > 2 && counts.iter().sum::<u32>() == 3000, "{counts:?}");
        let large = [message(b"a"), message(&vec![b'y'; 3 << 20]), message(b"b")];
        let frames = delivery().frames(4, &large);
        let read: Vec<_> = frames.iter().map(read).collect();
        let ends: Vec<(u64, bool)> =
            read.iter().map(|(head, ..)| (head.end.0, head.more)).collect();
        assert_eq!(ends, [(5, false), (5, true), (5, true), (5, true), (6, false), (7, false)]);
        let joined: Vec<u8> = read[1..5].iter().flat_map(|(.., part)| part.clone()).collect();
        assert_eq!(Record::decode(&joined).expect("a record").0.body.len(), 3 << 20);
    }
}
