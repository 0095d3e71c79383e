//! What of a PUBLISH is stored: what comes behind its part that was stored before, without the
//! messages that the queue does not want twice, and no more than there is room for.
//!
//! Computes only. Called by `sending` where a queue's settings or a retry ask for it; a batch that
//! nothing is asked of never comes here.

use std::borrow::Cow;

use crate::batch::{self, BatchError, Framing, Record};
use crate::wire::{Fault, PublishHead};

/// Messages and bytes that a queue still takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub messages: u64,
    pub bytes: u64,
}

impl Room {
    /// No limit.
    pub const ANY: Room = Room { messages: u64::MAX, bytes: u64::MAX };

    /// Whether so many messages in so many bytes of payload fit.
    pub fn fits(&self, messages: u64, payload_bytes: usize) -> bool {
        messages <= self.messages && batch_bytes(payload_bytes) <= self.bytes
    }
}

/// What a batch with this payload takes in a segment.
pub(super) fn batch_bytes(payload_bytes: usize) -> u64 {
    (batch::HEADER_BYTES + payload_bytes) as u64
}

/// What becomes of one message.
pub(super) enum Verdict {
    /// It is stored, if there is room.
    Store,
    /// It is there already, and is not stored again.
    There,
    /// It is refused, with all behind it.
    Refuse(Fault),
}

/// Why not all of a PUBLISH was dealt with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// All was.
    Nothing,
    /// There is no room for the next message, which takes so much of it.
    NoRoom(Room),
    /// The next one is refused.
    Refused(Fault),
}

/// What is stored of a PUBLISH now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Portion<'a> {
    /// With the annex, if there is one.
    pub payload: Cow<'a, [u8]>,
    /// Messages in it.
    pub count: u32,
    /// Messages of the PUBLISH that are dealt with so far, from its first on.
    pub done: u32,
    /// Of those, messages that are there already and were not counted before.
    pub there: u64,
    pub rest: Rest,
}

impl<'a> Portion<'a> {
    /// All of it.
    pub fn whole(head: &PublishHead, payload: &'a [u8]) -> Portion<'a> {
        let payload = Cow::Borrowed(payload);
        Portion { payload, count: head.count, done: head.count, there: 0, rest: Rest::Nothing }
    }

    /// What of the messages behind the first `skip` is stored now. A batch with an annex is
    /// stored wholly or not at all.
    pub fn of(
        head: &PublishHead,
        payload: &'a [u8],
        skip: u32,
        room: Room,
        verdict: Option<&mut dyn FnMut(&Record<'_>) -> Verdict>,
    ) -> Result<Portion<'a>, BatchError> {
        let messages = batch::messages_part(head.batch_flags, payload)?;
        let annex = &payload[..payload.len() - messages.len()];
        if skip > 0 && !annex.is_empty() {
            return Err(BatchError::Messages("a part of a batch with an annex"));
        }
        let short = BatchError::Messages("fewer than announced");
        let start = batch::bytes_of_messages(head.framing, messages, u64::from(skip));
        let rest = &messages[start.ok_or(short)?..];
        let count = head.count - skip;
        let mut portion = match verdict {
            Some(verdict) => picked(rest, count, room, annex.len(), verdict)?,
            None => first(head.framing, rest, count, room, annex.len())?,
        };
        portion.done += skip;
        if portion.rest == Rest::Nothing {
            if !annex.is_empty() {
                portion.payload = Cow::Owned([annex, &portion.payload].concat());
            }
        } else if !annex.is_empty() {
            portion =
                Portion { payload: Cow::Borrowed(&[]), count: 0, done: 0, there: 0, ..portion };
            if let Rest::NoRoom(needed) = &mut portion.rest {
                let bytes = batch_bytes(payload.len());
                *needed = Room { messages: u64::from(head.count), bytes };
            }
        }
        Ok(portion)
    }
}

/// As many of the first messages as there is room for.
fn first(
    framing: Framing,
    messages: &[u8],
    count: u32,
    room: Room,
    annex_bytes: usize,
) -> Result<Portion<'_>, BatchError> {
    let (mut fitting, mut bytes) = (count, messages.len());
    let mut rest = Rest::Nothing;
    if !room.fits(u64::from(count), annex_bytes + messages.len()) {
        (fitting, bytes) = (0, 0);
        while fitting < count {
            let one = batch::bytes_of_messages(framing, &messages[bytes..], 1);
            let one = one.ok_or(BatchError::Messages("fewer than announced"))?;
            if !room.fits(u64::from(fitting) + 1, annex_bytes + bytes + one) {
                rest = Rest::NoRoom(Room { messages: 1, bytes: batch_bytes(annex_bytes + one) });
                break;
            }
            (fitting, bytes) = (fitting + 1, bytes + one);
        }
    }
    let payload = Cow::Borrowed(&messages[..bytes]);
    Ok(Portion { payload, count: fitting, done: fitting, there: 0, rest })
}

/// The records that are wanted, up to the first that is refused or has no room.
fn picked<'a>(
    messages: &[u8],
    count: u32,
    room: Room,
    annex_bytes: usize,
    verdict: &mut dyn FnMut(&Record<'_>) -> Verdict,
) -> Result<Portion<'a>, BatchError> {
    let mut kept = Vec::with_capacity(messages.len());
    let mut portion =
        Portion { payload: Cow::default(), count: 0, done: 0, there: 0, rest: Rest::Nothing };
    let mut left = messages;
    while portion.done < count {
        let (record, behind) = Record::decode(left)?;
        let bytes = &left[..left.len() - behind.len()];
        match verdict(&record) {
            Verdict::There => portion.there += 1,
            Verdict::Refuse(fault) => {
                portion.rest = Rest::Refused(fault);
                break;
            }
            Verdict::Store
                if !room
                    .fits(u64::from(portion.count) + 1, annex_bytes + kept.len() + bytes.len()) =>
            {
                let bytes = batch_bytes(annex_bytes + bytes.len());
                portion.rest = Rest::NoRoom(Room { messages: 1, bytes });
                break;
            }
            Verdict::Store => {
                kept.extend_from_slice(bytes);
                portion.count += 1;
            }
        }
        portion.done += 1;
        left = behind;
    }
    portion.payload = Cow::Owned(kept);
    Ok(portion)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::flags;
    use crate::units::{Monotonic, Sequence};
    use crate::wire::ErrorCode;

    fn head(framing: Framing, count: u32, batch_flags: u16) -> PublishHead {
        let (sequence, read) = (Sequence(100), Monotonic(0));
        PublishHead { sequence, count, framing, batch_flags, read, more: false }
    }

    fn room(messages: u64, payload_bytes: usize) -> Room {
        Room { messages, bytes: batch_bytes(payload_bytes) }
    }

    fn records(bodies: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        bodies.iter().for_each(|body| Record { attribute_bytes: &[], body }.encode(&mut out));
        out
    }

    #[test]
    fn first_messages_go_in_as_far_as_there_is_room() {
        let lines = head(Framing::Delimited(b'\n'), 4, 0);
        let payload = b"a\nbb\nccc\ndddd\n";
        let of = |skip, room| Portion::of(&lines, payload, skip, room, None).unwrap();
        assert_eq!(of(0, Room::ANY).payload, &payload[..]);
        let two = of(0, room(2, 99));
        assert_eq!((&*two.payload, two.count, two.done), (&b"a\nbb\n"[..], 2, 2));
        assert_eq!(two.rest, Rest::NoRoom(room(1, 4)));
        let behind = of(2, room(9, 4));
        assert_eq!((&*behind.payload, behind.count, behind.done), (&b"ccc\n"[..], 1, 3));
        assert_eq!(behind.rest, Rest::NoRoom(room(1, 5)));
        let none = of(1, room(0, 99));
        assert_eq!((none.count, none.done), (0, 1));
        assert!(Portion::of(&lines, b"a\n", 2, Room::ANY, None).is_err());
    }

    #[test]
    fn picked_messages_leave_out_what_is_there() {
        let payload = records(&[b"a", b"b", b"a", b"c", b"x", b"d"]);
        let head = head(Framing::Records, 6, 0);
        let fault = Fault::new(ErrorCode::Full, "no");
        let mut verdict = |record: &Record<'_>| match record.body {
            b"a" => Verdict::There,
            b"x" => Verdict::Refuse(fault.clone()),
            _ => Verdict::Store,
        };
        let portion = Portion::of(&head, &payload, 0, Room::ANY, Some(&mut verdict)).unwrap();
        assert_eq!(portion.payload, records(&[b"b", b"c"]));
        assert_eq!((portion.count, portion.done, portion.there), (2, 4, 2));
        assert_eq!(portion.rest, Rest::Refused(fault.clone()));
        let portion = Portion::of(&head, &payload, 1, room(1, 999), Some(&mut verdict)).unwrap();
        assert_eq!(portion.payload, records(&[b"b"]));
        assert_eq!((portion.count, portion.done, portion.there), (1, 3, 1));
        assert_eq!(portion.rest, Rest::NoRoom(room(1, 9)));
    }

    #[test]
    fn batch_with_an_annex_goes_wholly_or_not_at_all() {
        let mut payload = Vec::new();
        batch::push_annex(&mut payload, b"here");
        payload.extend_from_slice(&records(&[b"a", b"b"]));
        let head = head(Framing::Records, 2, flags::ANNEX);
        let mut first_is_there = |record: &Record<'_>| match record.body {
            b"a" => Verdict::There,
            _ => Verdict::Store,
        };
        let portion =
            Portion::of(&head, &payload, 0, Room::ANY, Some(&mut first_is_there)).unwrap();
        let mut expected = Vec::new();
        batch::push_annex(&mut expected, b"here");
        expected.extend_from_slice(&records(&[b"b"]));
        assert_eq!((&*portion.payload, portion.count, portion.done), (&expected[..], 1, 2));
        let portion = Portion::of(&head, &payload, 0, room(1, 999), None).unwrap();
        assert_eq!((portion.count, portion.done), (0, 0));
        assert_eq!(portion.rest, Rest::NoRoom(room(2, payload.len())));
        assert!(Portion::of(&head, &payload, 1, Room::ANY, None).is_err());
    }
}
