//! The template of `-F`: compiled once, then filled in for each message. A body is data here,
//! never a directive.

use std::str::FromStr;

use crate::client::envelope::{Message, TimeText, Writer, push_number};

/// Every directive, as a user who mistyped one is shown them.
const KNOWN: &str = "\
%s body, %S its length, %k key, %T time in ms since 1970, %I time as RFC 3339, %o offset, \
%h headers, %q queue, %a attempt, %j envelope, %x body in hex, %%; \\n \\t \\r \\0 \\\\ \\xHH";

/// Bytes of a template: what one message makes of it stays in proportion.
const TEMPLATE_BYTES_MAX: usize = 1024;

/// Directives that show the whole body; the largest message, six times as long when it is
/// escaped, must come to less than 4 GiB.
const BODIES_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Body,
    Length,
    Key,
    Millis,
    Time,
    Offset,
    Headers,
    Queue,
    Attempt,
    Envelope,
    Hex,
}

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Template, String> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(format!("a format has at most {TEMPLATE_BYTES_MAX} bytes"));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let behind = &rest[first.len_utf8()..];
            rest = match first {
                '%' => directive(behind, &mut parts)?,
                '\\' => escape(behind, &mut parts)?,
                _ => {
                    let end = behind.find(['%', '\\']).unwrap_or(behind.len());
                    let literal = &rest[..first.len_utf8() + end];
                    push_literal(literal.as_bytes(), &mut parts);
                    &behind[end..]
                }
            };
        }
        let bodies = parts.iter().filter(|part| matches!(part, Part::Body | Part::Hex)).count()
            + parts.iter().filter(|part| **part == Part::Envelope).count();
        if bodies > BODIES_MAX {
            return Err(format!("a format shows the body at most {BODIES_MAX} times"));
        }
        Ok(Template { parts })
    }
}

/// Reads what stands behind a `%`; returns what is behind that.
fn directive<'a>(rest: &'a str, parts: &mut Vec<Part>) -> Result<&'a str, String> {
    let letter = rest.chars().next();
    let part = match letter {
        Some('s') => Part::Body,
        Some('S') => Part::Length,
        Some('k') => Part::Key,
        Some('T') => Part::Millis,
        Some('I') => Part::Time,
        Some('o') => Part::Offset,
        Some('h') => Part::Headers,
        Some('q') => Part::Queue,
        Some('a') => Part::Attempt,
        Some('j') => Part::Envelope,
        Some('x') => Part::Hex,
        Some('%') => {
            push_literal(b"%", parts);
            return Ok(&rest[1..]);
        }
        other => return Err(unknown('%', other)),
    };
    parts.push(part);
    Ok(&rest[1..])
}

/// Reads what stands behind a `\`; returns what is behind that.
fn escape<'a>(rest: &'a str, parts: &mut Vec<Part>) -> Result<&'a str, String> {
    let letter = rest.chars().next();
    let (byte, length) = match letter {
        Some('n') => (b'\n', 1),
        Some('t') => (b'\t', 1),
        Some('r') => (b'\r', 1),
        Some('0') => (0, 1),
        Some('\\') => (b'\\', 1),
        Some('x') => {
            let digits = rest.get(1..3).filter(|text| !text.starts_with('+'));
            match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(byte) => (byte, 3),
                None => return Err(unknown('\\', letter)),
            }
        }
        other => return Err(unknown('\\', other)),
    };
    push_literal(&[byte], parts);
    Ok(&rest[length..])
}

fn unknown(lead: char, letter: Option<char>) -> String {
    let letter = letter.map_or(String::new(), String::from);
    format!("a format knows no {lead}{letter}; it knows {KNOWN}")
}

fn push_literal(bytes: &[u8], parts: &mut Vec<Part>) {
    match parts.last_mut() {
        Some(Part::Literal(literal)) => literal.extend_from_slice(bytes),
        _ => parts.push(Part::Literal(bytes.to_vec())),
    }
}

/// What filling in needs to keep from message to message.
#[derive(Debug, Default)]
pub struct Filler {
    time: TimeText,
    envelopes: Writer,
}

impl Template {
    /// Appends what the template makes of `message`.
    pub fn fill(&self, message: &Message<'_>, filler: &mut Filler, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Body => out.extend_from_slice(message.body),
                Part::Length => push_number(message.body.len() as u64, out),
                Part::Key => out.extend_from_slice(message.attributes.key.unwrap_or_default()),
                Part::Millis => push_number(message.time.0 / 1000, out),
                Part::Time => filler.time.push(message.time, out),
                Part::Offset => push_number(message.offset.0, out),
                Part::Headers => push_headers(message, out),
                Part::Queue => {
                    out.extend_from_slice(message.origin.queue.as_str().as_bytes());
                }
                Part::Attempt => push_number(u64::from(message.origin.attempt.0), out),
                Part::Envelope => filler.envelopes.push(message, out),
                Part::Hex => push_hex(message.body, out),
            }
        }
    }
}

/// `name=value`, with commas between.
fn push_headers(message: &Message<'_>, out: &mut Vec<u8>) {
    for (n, (name, value)) in message.attributes.headers().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name);
        out.push(b'=');
        out.extend_from_slice(value);
    }
}

fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(
        bytes
            .iter()
            .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{push_attribute, tags};
    use crate::client::delivery::Origin;
    use crate::client::envelope::Attributes;
    use crate::units::{Attempts, LeaseNumber, Name, Offset, QueueId, WallTime};

    fn filled(format: &str, attributes: &[u8], body: &[u8]) -> Vec<u8> {
        let queue = Name::new("jobs").expect("a name");
        let message = Message {
            origin: Origin {
                queue: &queue,
                queue_id: QueueId::from_bytes([1; 16]),
                group: &queue,
                attempt: Attempts(3),
                lease: LeaseNumber(0),
            },
            offset: Offset(7),
            time: WallTime(1_769_860_800_123_456),
            attributes: Attributes::parse(attributes),
            body,
        };
        let template: Template = format.parse().expect("a format");
        let mut out = Vec::new();
        template.fill(&message, &mut Filler::default(), &mut out);
        out
    }

    #[test]
    fn every_directive_shows_its_fact() {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, tags::KEY, b"k");
        push_attribute(&mut attributes, tags::HEADER, b"\x01\0a1");
        push_attribute(&mut attributes, tags::HEADER, b"\x01\0b2");
        let out = filled("%q/%o %k %h %a %S|%s|%x %T %I%%\\n\\t\\0\\x41\\\\", &attributes, b"%s\n");
        let expected = b"jobs/7 k a=1,b=2 3 3|%s\n|25730a 1769860800123 \
            2026-01-31T12:00:00.123456Z%\n\t\0A\\";
        assert_eq!(out, expected);
        assert_eq!(filled("[%k%h]", b"", b""), b"[]");
        let line = filled("%j\\n", &attributes, b"x");
        assert!(line.starts_with(b"{\"queue\":\"jobs\",") && line.ends_with(b"\"data\":\"x\"}\n"));
    }

    #[test]
    fn unknown_directives_are_refused_with_a_list_of_the_known() {
        for (bad, named) in [
            ("%z", "%z"),
            ("100%", "%;"),
            ("%é", "%é"),
            ("\\q", "\\q"),
            ("a\\", "\\;"),
            ("\\x4", "\\x"),
            ("\\x+1", "\\x"),
        ] {
            let error = bad.parse::<Template>().expect_err(bad);
            assert!(error.contains(named) && error.contains("%I time as RFC 3339"), "{error}");
        }
        assert!("%s".repeat(9).parse::<Template>().is_err());
        assert!("x".repeat(1025).parse::<Template>().is_err());
    }
}
