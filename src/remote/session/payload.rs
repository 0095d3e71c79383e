//! What a PUBLISH carries, as messages for an engine: parts of the frame, which is not copied. Pure.

use bytes::{Bytes, BytesMut};

use crate::batch::{self, Framing, Record, tags};
use crate::limits;
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::{Facts, Outgoing};
use crate::units::{Sequence, WallTime};
use crate::wire::PublishHead;

/// Bytes that the parts of a large message may have together.
const LARGE_BYTES_MAX: usize = limits::MESSAGE_BYTES_MAX + limits::BATCH_PAYLOAD_BYTES_MAX;

/// A batch as it came, kept until it is confirmed: it may have to be sent again.
#[derive(Clone, Debug)]
pub struct Published {
    head: PublishHead,
    payload: Bytes,
    /// What stood in front of the last part of a large message.
    annex_of_parts: Option<Bytes>,
    /// So many of its first messages are confirmed.
    confirmed: u32,
}

fn malformed(what: &str) -> Failure {
    Failure::new(Kind::Other, format!("the client sent a PUBLISH that makes no sense: {what}"))
}

impl Published {
    /// A batch, or a large message whose parts are joined.
    #[must_use]
    pub fn new(head: PublishHead, payload: Bytes) -> Published {
        Published { head, payload, annex_of_parts: None, confirmed: 0 }
    }

    /// The same in parts of at most so many messages, in order: each can be confirmed by itself. What has an
    /// annex stays whole, as that stands for all of it.
    #[must_use]
    pub fn split(self, most: u32) -> Vec<Published> {
        let mut parts = Vec::new();
        let mut rest = self;
        while rest.head.count > most
            && rest.head.batch_flags & batch::flags::ANNEX == 0
            && let Some(bytes) =
                batch::bytes_of_messages(rest.head.framing, &rest.payload, u64::from(most))
        {
            let behind = rest.head.count - most;
            let sequence = Sequence(rest.head.sequence.0 - u64::from(behind));
            let head = PublishHead { sequence, count: most, ..rest.head };
            parts.push(Published::new(head, rest.payload.split_to(bytes)));
            rest.head.count = behind;
        }
        parts.push(rest);
        parts
    }

    /// So many of the messages that it still has, the first ones, are confirmed: they are not sent again.
    ///
    /// # Panics
    /// If that is not less than there are: then it is done with.
    pub fn confirm(&mut self, count: u32) {
        self.confirmed += count;
        assert!(self.confirmed < self.head.count, "a part of the batch");
    }

    /// The sequence of the last message that is confirmed, or that was before its first.
    #[must_use]
    pub fn confirmed(&self) -> u64 {
        self.head.sequence.0 - u64::from(self.head.count - self.confirmed)
    }

    /// The sequence of the last message.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.head.sequence.0
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// What its sender said with it.
    #[must_use]
    pub fn annex(&self) -> Option<&[u8]> {
        self.annex_of_parts
            .as_deref()
            .or_else(|| batch::annex(self.head.batch_flags, &self.payload))
    }

    /// Its messages that are not confirmed. Each is numbered with its sequence.
    ///
    /// # Errors
    /// A payload that does not hold what its head announces.
    pub fn messages(&self) -> Result<Vec<Outgoing>, Failure> {
        let payload = messages_part(self.head.batch_flags, &self.payload)?;
        let count = self.head.count as usize;
        let mut messages = Vec::with_capacity(count);
        let first = self.head.sequence.0 + 1 - u64::from(self.head.count);
        let mut number = first..;
        let mut next = || number.next().expect("sequences do not end");
        match self.head.framing {
            Framing::Delimited(delimiter) => {
                let mut start = 0;
                for end in memchr::memchr_iter(delimiter, &payload) {
                    let body = payload.slice(start..end);
                    messages.push(Outgoing { body, facts: None, number: next() });
                    start = end + 1;
                }
                if start != payload.len() {
                    return Err(malformed("the last delimiter is missing"));
                }
            }
            Framing::Records => {
                let mut rest: &[u8] = &payload;
                while !rest.is_empty() {
                    let (record, behind) =
                        Record::decode(rest).map_err(|error| malformed(&error.to_string()))?;
                    let facts = facts_of(&record)?;
                    let body = payload.slice_ref(record.body);
                    messages.push(Outgoing { body, facts: facts.map(Box::new), number: next() });
                    rest = behind;
                }
            }
        }
        if messages.len() != count || count == 0 {
            return Err(malformed("the count of messages differs"));
        }
        messages.drain(..self.confirmed as usize);
        Ok(messages)
    }
}

/// The part of a payload that holds messages.
fn messages_part(batch_flags: u16, payload: &Bytes) -> Result<Bytes, Failure> {
    let messages = batch::messages_part(batch_flags, payload);
    messages.map(|part| payload.slice_ref(part)).map_err(|error| malformed(&error.to_string()))
}

fn text(value: &[u8]) -> Result<String, Failure> {
    String::from_utf8(value.to_vec()).map_err(|_| malformed("a text that is not UTF-8"))
}

fn time(value: &[u8]) -> Result<WallTime, Failure> {
    let bytes = value.try_into().map_err(|_| malformed("a time of the wrong size"))?;
    Ok(WallTime(u64::from_le_bytes(bytes)))
}

/// What stands beside a body; `None` for most.
fn facts_of(record: &Record<'_>) -> Result<Option<Facts>, Failure> {
    if record.attribute_bytes.is_empty() {
        return Ok(None);
    }
    let mut facts = Facts::default();
    for attribute in record.attributes() {
        let (tag, value) = attribute.map_err(|error| malformed(&error.to_string()))?;
        match tag {
            tags::KEY => facts.key = Some(text(value)?),
            tags::ID => facts.id = Some(text(value)?),
            tags::HEADER => facts.headers.push(header(value)?),
            tags::EVENT_TIME => facts.event_time = Some(time(value)?),
            tags::EXPIRES => facts.expires = Some(time(value)?),
            tags::NOT_BEFORE => facts.not_before = Some(time(value)?),
            // Of a requeue within a store, which does not lead out of it.
            _ => {}
        }
    }
    Ok(Some(facts).filter(|facts| !facts.is_empty()))
}

fn header(value: &[u8]) -> Result<(String, String), Failure> {
    let split = batch::split_header(value);
    let (name, value) = split.ok_or_else(|| malformed("a header that does not fit"))?;
    Ok((text(name)?, text(value)?))
}

/// The parts of a large message, joined as they come.
#[derive(Debug, Default)]
pub struct Parts(BytesMut);

impl Parts {
    /// Takes in a part: the whole of a PUBLISH, once it is there.
    ///
    /// # Errors
    /// More than a message may have.
    pub fn push(
        &mut self,
        head: PublishHead,
        payload: Bytes,
    ) -> Result<Option<Published>, Failure> {
        if !head.more && self.0.is_empty() {
            return Ok(Some(Published::new(head, payload)));
        }
        // The annex stands in front of the last part.
        let annex = batch::annex(head.batch_flags, &payload).map(|annex| payload.slice_ref(annex));
        let payload = messages_part(head.batch_flags, &payload)?;
        let head = PublishHead { batch_flags: 0, ..head };
        if self.0.len() + payload.len() > LARGE_BYTES_MAX {
            return Err(malformed("a message over the limit"));
        }
        self.0.extend_from_slice(&payload);
        if head.more {
            return Ok(None);
        }
        let payload = std::mem::take(&mut self.0).freeze();
        Ok(Some(Published { annex_of_parts: annex, ..Published::new(head, payload) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{flags, push_annex, push_attribute};
    use crate::units::Monotonic;

    fn head(sequence: u64, count: u32, framing: Framing) -> PublishHead {
        PublishHead {
            sequence: Sequence(sequence),
            count,
            framing,
            batch_flags: 0,
            read: Monotonic(0),
            more: false,
        }
    }

    #[test]
    fn lines_are_parts_of_the_frame() {
        let payload = Bytes::from_static(b"a\n\nbc\n");
        let published = Published::new(head(9, 3, Framing::Delimited(b'\n')), payload.clone());
        let messages = published.messages().expect("three");
        let bodies: Vec<&[u8]> = messages.iter().map(|message| &message.body[..]).collect();
        assert_eq!(bodies, [b"a".as_slice(), b"", b"bc"]);
        assert_eq!(messages.iter().map(|m| m.number).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(messages[2].body.as_ptr(), payload[3..].as_ptr(), "nothing is copied");
        for (count, text) in [(2, "a\n\nbc\n"), (3, "a\n\nbc"), (1, ""), (0, "")] {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            let wrong = Published::new(head(9, count, Framing::Delimited(b'\n')), bytes);
            assert!(wrong.messages().is_err(), "{text:?} is not {count}");
        }
    }

    #[test]
    fn parts_are_the_same_messages() {
        let lines = Bytes::from_static(b"a\n\nbc\nd\ne\n");
        let mut records = Vec::new();
        for body in [b"a".as_slice(), b"", b"bc", b"d", b"e"] {
            Record { body, attribute_bytes: &[] }.encode(&mut records);
        }
        let numbers = |published: &Published| {
            let messages = published.messages().expect("well made");
            messages.into_iter().map(|m| (m.number, m.body)).collect::<Vec<_>>()
        };
        for (framing, payload) in
            [(Framing::Delimited(b'\n'), lines), (Framing::Records, records.into())]
        {
            let whole = Published::new(head(9, 5, framing), payload);
            for most in 1..=6 {
                let parts = whole.clone().split(most);
                assert_eq!(parts.len(), 5usize.div_ceil(most as usize));
                let each: Vec<_> = parts.iter().flat_map(numbers).collect();
                assert_eq!(each, numbers(&whole));
                assert_eq!(parts.last().expect("one").last(), 9);
                assert_eq!(parts[0].confirmed(), 4);
            }
        }
        let wrong = Published::new(head(9, 5, Framing::Delimited(b'\n')), "a\nb".into());
        assert!(wrong.split(1).iter().any(|part| part.messages().is_err()));
        let mut annexed = Vec::new();
        push_annex(&mut annexed, b"annex");
        annexed.extend_from_slice(b"a\nb\n");
        let head =
            PublishHead { batch_flags: flags::ANNEX, ..head(9, 2, Framing::Delimited(b'\n')) };
        assert_eq!(Published::new(head, annexed.into()).split(1).len(), 1);
    }

    #[test]
    fn what_is_confirmed_of_a_batch_does_not_come_again() {
        let payload = Bytes::from_static(b"a\nb\nc\n");
        let mut published = Published::new(head(9, 3, Framing::Delimited(b'\n')), payload);
        assert_eq!(published.confirmed(), 6);
        published.confirm(1);
        published.confirm(1);
        let left = published.messages().expect("one");
        assert_eq!((published.confirmed(), left.len(), left[0].number), (8, 1, 9));
        assert_eq!(&left[0].body[..], b"c");
    }

    fn record(body: &[u8]) -> Vec<u8> {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, tags::KEY, b"k");
        push_attribute(&mut attributes, tags::HEADER, b"\x01\0nv");
        push_attribute(&mut attributes, tags::EXPIRES, &7u64.to_le_bytes());
        let mut out = Vec::new();
        Record { attribute_bytes: &attributes, body }.encode(&mut out);
        out
    }

    #[test]
    fn attributes_become_facts_and_an_annex_is_none() {
        let mut payload = Vec::new();
        push_annex(&mut payload, b"xyz");
        payload.extend(record(b"b\nb"));
        let head = PublishHead { batch_flags: flags::ANNEX, ..head(1, 1, Framing::Records) };
        let published = Published::new(head, payload.into());
        assert_eq!(published.annex(), Some(&b"xyz"[..]));
        let messages = published.messages().expect("one");
        assert_eq!(&messages[0].body[..], b"b\nb");
        let facts = messages[0].facts.as_ref().expect("facts");
        assert_eq!(facts.key.as_deref(), Some("k"));
        assert_eq!(facts.headers, [("n".to_owned(), "v".to_owned())]);
        assert_eq!(facts.expires, Some(WallTime(7)));
    }

    #[test]
    fn the_parts_of_a_large_message_are_joined() {
        let record = record(b"0123456789");
        let mut parts = Parts::default();
        let chunks: Vec<&[u8]> = record.chunks(7).collect();
        let mut whole = None;
        for (n, chunk) in chunks.iter().enumerate() {
            let mut part = Vec::new();
            let mut head =
                PublishHead { more: n + 1 < chunks.len(), ..head(5, 1, Framing::Records) };
            if !head.more {
                head.batch_flags = flags::ANNEX;
                push_annex(&mut part, b"xyz");
            }
            part.extend_from_slice(chunk);
            assert!(whole.is_none());
            whole = parts.push(head, part.into()).expect("a part");
        }
        let whole = whole.expect("whole");
        assert_eq!(whole.annex(), Some(&b"xyz"[..]));
        let messages = whole.messages().expect("one");
        assert_eq!((&messages[0].body[..], messages[0].number), (b"0123456789".as_slice(), 5));
    }
}
