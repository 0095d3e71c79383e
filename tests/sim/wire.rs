//! What simulated clients have in common: frames in and out, and verifying what was delivered.

use mq::batch::{self, BatchHeader, HEADER_BYTES, Place};
use mq::units::{Offset, OffsetRange, QueueId, WallTime};
use mq::wire::{ClientInfo, DeliverHead, FrameHeader, Request, VERSION};

/// What a client says: whole frames.
pub type Frames = Vec<u8>;

/// The channel that clients use.
pub const CHANNEL: u16 = 1;

/// The wall clock of the simulation begins here.
pub const WALL_START: WallTime = WallTime(1_700_000_000_000_000);

pub fn hello(out: &mut Frames) {
    let client = Some(ClientInfo::default());
    Request::Hello { oldest: VERSION, newest: VERSION, client }.encode(0, out);
}

/// Takes the whole frames off `bytes`.
pub fn take_frames(bytes: &mut Vec<u8>) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes[at..].first_chunk::<8>() {
        let header = FrameHeader::decode(head).expect("the server sends frames");
        let end = at + 8 + header.length as usize;
        if bytes.len() < end {
            break;
        }
        frames.push((header, bytes[at + 8..end].to_vec()));
        at = end;
    }
    bytes.drain(..at);
    frames
}

/// The messages of a DELIVER. At a batch that does not verify it ends with the place of that.
pub fn messages_of(
    queue: QueueId,
    head: &DeliverHead,
    mut rest: &[u8],
) -> (Vec<(Offset, Vec<u8>)>, Option<Place>) {
    let mut place = Place { queue, segment: head.segment, position: head.position };
    let mut found = Vec::new();
    while !rest.is_empty() {
        let Ok(header) = BatchHeader::decode(rest, &place) else { return (found, Some(place)) };
        let length = header.length() as usize;
        let Some(payload) = rest.get(HEADER_BYTES..length) else { return (found, Some(place)) };
        if header.verify(payload).is_err() {
            return (found, Some(place));
        }
        if header.count > 0 {
            let messages = header.messages_part(payload).expect("G11: an annex that fits");
            let bodies: Vec<&[u8]> = batch::bodies(header.framing, messages).collect();
            assert_eq!(bodies.len(), header.count as usize, "G2: messages as announced");
            let numbered = bodies.into_iter().enumerate();
            found.extend(
                numbered.map(|(n, body)| (Offset(header.offset.0 + n as u64), body.to_vec())),
            );
        }
        place = place.advanced(length as u64);
        rest = &rest[length..];
    }
    (found, None)
}

/// The headers of the batches in a DELIVER, up to one that is none.
pub fn headers_of(queue: QueueId, head: &DeliverHead, mut rest: &[u8]) -> Vec<BatchHeader> {
    let mut place = Place { queue, segment: head.segment, position: head.position };
    let mut found = Vec::new();
    while let Ok(header) = BatchHeader::decode(rest, &place) {
        let length = header.length();
        place = place.advanced(length);
        rest = rest.get(length as usize..).unwrap_or_default();
        found.push(header);
    }
    found
}

/// Joins offsets to ranges.
pub fn ranges(offsets: impl Iterator<Item = Offset>) -> Vec<OffsetRange> {
    let mut out: Vec<OffsetRange> = Vec::new();
    for offset in offsets {
        match out.last_mut() {
            Some(last) if last.end == offset => last.end = Offset(offset.0 + 1),
            _ => out.push(OffsetRange::new(offset, Offset(offset.0 + 1))),
        }
    }
    out
}
