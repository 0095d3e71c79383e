//! Envelopes out: hand-written, into the caller's buffer, because this is done for every message
//! of a `-J`; the rules of escaping are checked against serde_json's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Message, TimeText};
use crate::units::QueueId;

/// Bytes that are looked at together for whether one needs an escape.
const STRIDE: usize = 32;

/// Writes envelopes.
#[derive(Debug, Default)]
pub struct Writer {
    time: TimeText,
    event_time: TimeText,
    expires: TimeText,
    not_before: TimeText,
    /// The text of the incarnation that was shown last.
    incarnation: (QueueId, String),
}

impl Writer {
    /// Appends the envelope of `message`, without a newline.
    pub fn push(&mut self, message: &Message<'_>, out: &mut Vec<u8>) {
        let origin = &message.origin;
        let attributes = &message.attributes;
        out.extend_from_slice(b"{\"queue\":\"");
        out.extend_from_slice(origin.queue.as_str().as_bytes());
        out.extend_from_slice(b"\",\"offset\":");
        push_number(message.offset.0, out);
        out.extend_from_slice(b",\"time\":\"");
        self.time.push(message.time, out);
        out.push(b'"');
        if let Some(time) = attributes.event_time {
            out.extend_from_slice(b",\"event_time\":\"");
            self.event_time.push(time, out);
            out.push(b'"');
        }
        if origin.attempt.0 > 0 {
            out.extend_from_slice(b",\"attempt\":");
            push_number(u64::from(origin.attempt.0), out);
        }
        if let Some(key) = attributes.key {
            out.extend_from_slice(b",\"key\":");
            push_lossy(key, out);
        }
        out.extend_from_slice(b",\"id\":");
        match attributes.id {
            Some(id) => push_lossy(id, out),
            None => self.push_own_id(message, out),
        }
        push_headers(message, out);
        if let Some(time) = attributes.expires {
            out.extend_from_slice(b",\"expires\":\"");
            self.expires.push(time, out);
            out.push(b'"');
        }
        if let Some(time) = attributes.not_before {
            out.extend_from_slice(b",\"not_before\":\"");
            self.not_before.push(time, out);
            out.push(b'"');
        }
        if let Some(receipt) = message.receipt() {
            out.extend_from_slice(b",\"receipt\":");
            push_text(&receipt.to_string(), out);
        }
        push_body(message.body, out);
        out.push(b'}');
    }

    /// A message without an id is named by its place, which no other message ever has.
    fn push_own_id(&mut self, message: &Message<'_>, out: &mut Vec<u8>) {
        let incarnation = message.origin.queue_id;
        if self.incarnation.0 != incarnation || self.incarnation.1.is_empty() {
            self.incarnation = (incarnation, incarnation.to_string());
        }
        out.push(b'"');
        out.extend_from_slice(self.incarnation.1.as_bytes());
        out.push(b':');
        push_number(message.offset.0, out);
        out.push(b'"');
    }
}

fn push_headers(message: &Message<'_>, out: &mut Vec<u8>) {
    let mut before: &[u8] = b",\"headers\":{";
    for (name, value) in message.attributes.headers() {
        out.extend_from_slice(before);
        push_lossy(name, out);
        out.push(b':');
        push_lossy(value, out);
        before = b",";
    }
    if before == b"," {
        out.push(b'}');
    }
}

fn push_body(body: &[u8], out: &mut Vec<u8>) {
    match std::str::from_utf8(body) {
        Ok(text) => {
            out.extend_from_slice(b",\"data\":");
            push_text(text, out);
        }
        Err(_) => {
            out.extend_from_slice(b",\"data_base64\":\"");
            let start = out.len();
            // Four characters for each three bytes or a part of them.
            out.resize(start + body.len().div_ceil(3) * 4, 0);
            let written = STANDARD.encode_slice(body, &mut out[start..]);
            assert_eq!(written, Ok(out.len() - start), "base64 has a length that is known");
            out.push(b'"');
        }
    }
}

/// Appends a number.
pub fn push_number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn push_lossy(bytes: &[u8], out: &mut Vec<u8>) {
    push_text(&String::from_utf8_lossy(bytes), out);
}

/// Appends a JSON string.
pub fn push_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let clean = clean_bytes(rest);
        let (copied, behind) = rest.split_at(clean);
        out.extend_from_slice(copied);
        let Some((byte, behind)) = behind.split_first() else { break };
        push_escape(*byte, out);
        rest = behind;
    }
    out.push(b'"');
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// How many bytes stand in front of the first that needs an escape.
fn clean_bytes(bytes: &[u8]) -> usize {
    let mut clean = 0;
    for stride in bytes.chunks_exact(STRIDE) {
        // Without a way out of the loop, so that the compiler compares many bytes at once.
        if stride.iter().fold(false, |any, byte| any | needs_escape(*byte)) {
            break;
        }
        clean += STRIDE;
    }
    let rest = &bytes[clean..];
    clean + rest.iter().position(|byte| needs_escape(*byte)).unwrap_or(rest.len())
}

fn push_escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Attributes;
    use super::*;
    use crate::batch::{push_attribute, tags};
    use crate::client::delivery::Origin;
    use crate::units::{Attempts, LeaseNumber, Name, Offset, WallTime};

    fn line(attribute_bytes: &[u8], body: &[u8], attempt: u32, lease: u64) -> String {
        let queue = Name::new("jobs").expect("a name");
        let message = Message {
            origin: Origin {
                queue: &queue,
                queue_id: QueueId::from_bytes(*b"0123456789abcdef"),
                group: &Name::default(),
                attempt: Attempts(attempt),
                lease: LeaseNumber(lease),
            },
            offset: Offset(7),
            time: WallTime(1_769_860_800_000_001),
            attributes: Attributes::parse(attribute_bytes),
            body,
        };
        let mut out = Vec::new();
        Writer::default().push(&message, &mut out);
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn absent_fields_are_left_out() {
        assert_eq!(
            line(b"", b"a \"body\"\n", 0, 0),
            "{\"queue\":\"jobs\",\"offset\":7,\"time\":\"2026-01-31T12:00:00.000001Z\",\
             \"id\":\"30313233-3435-3637-3839-616263646566:7\",\"data\":\"a \\\"body\\\"\\n\"}"
        );
    }

    #[test]
    fn every_field_is_there_when_the_message_has_it() {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, tags::KEY, "ключ".as_bytes());
        push_attribute(&mut attributes, tags::ID, b"id-1");
        push_attribute(&mut attributes, tags::HEADER, b"\x01\0a1");
        push_attribute(&mut attributes, tags::HEADER, b"\x02\0bb");
        for (tag, micros) in [(tags::EVENT_TIME, 5u64), (tags::EXPIRES, 6), (tags::NOT_BEFORE, 7)] {
            push_attribute(&mut attributes, tag, &micros.to_le_bytes());
        }
        let value: serde_json::Value =
            serde_json::from_str(&line(&attributes, b"\xff\0", 3, 0xab)).expect("JSON");
        let expected = serde_json::json!({
            "queue": "jobs", "offset": 7, "time": "2026-01-31T12:00:00.000001Z",
            "event_time": "1970-01-01T00:00:00.000005Z", "attempt": 3, "key": "ключ",
            "id": "id-1", "headers": { "a": "1", "bb": "" },
            "expires": "1970-01-01T00:00:00.000006Z",
            "not_before": "1970-01-01T00:00:00.000007Z",
            "receipt": "jobs/default/30313233/7/00000000000000ab",
            "data_base64": "/wA=",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn texts_of_a_peer_that_are_no_utf8_still_make_json() {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, tags::KEY, b"\xffk");
        push_attribute(&mut attributes, tags::HEADER, b"\xff\xffcut short");
        push_attribute(&mut attributes, tags::EXPIRES, b"short");
        let value: serde_json::Value =
            serde_json::from_str(&line(&attributes, b"", 0, 0)).expect("JSON");
        assert_eq!(value["key"], "\u{fffd}k");
        assert!(value.get("headers").is_none() && value.get("expires").is_none());
    }

    proptest! {
        #[test]
        fn texts_are_escaped_as_serde_json_does(text in "\\PC*|[\\x00-\\x7f]*|(?s).{0,100}") {
            let mut ours = Vec::new();
            push_text(&text, &mut ours);
            prop_assert_eq!(ours, serde_json::to_vec(&text).expect("a text"));
        }
    }
}
