//! The attributes that the command line gives to the messages of a sender (`-k`, `-H`, `--id`,
//! `--delay`, `--ttl`). Where an envelope says something itself, that goes first.

use std::borrow::Cow;
use std::str::FromStr;

use super::envelope::{Attributes, Envelope, EnvelopeError, is_time, parse_time, push_header};
use crate::limits;
use crate::units::{Micros, WallTime, duration_micros, parse_duration};

/// When messages may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// So long after they were read.
    For(Micros),
    /// From this time on.
    Until(WallTime),
}

impl FromStr for Delay {
    type Err = String;

    /// Reads a duration, or an RFC 3339 time.
    fn from_str(text: &str) -> Result<Delay, String> {
        if duration_micros(text).is_some() {
            return parse_duration(text).map(Delay::For);
        }
        if is_time(text) {
            return parse_time(text).map(Delay::Until);
        }
        Err(format!("{text:?} is neither a duration (10m) nor a time (2026-01-31T12:00:00Z)"))
    }
}

/// See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    key: Option<String>,
    id: Option<String>,
    /// As attributes of a record.
    headers: Vec<u8>,
    delay: Option<Delay>,
    ttl: Option<Micros>,
}

impl Given {
    /// From the flags' values, as they were given.
    ///
    /// # Errors
    /// Attributes that no message can have.
    pub fn new(
        key: Option<String>,
        headers: &[(String, String)],
        id: Option<String>,
        delay: Option<Delay>,
        ttl: Option<Micros>,
    ) -> Result<Given, EnvelopeError> {
        let mut bytes = Vec::new();
        for (name, value) in headers {
            if holds_header(&bytes, name.as_bytes()) {
                return Err(EnvelopeError(format!("the header {name:?} is given twice")));
            }
            push_header(name, value, &mut bytes)
                .map_err(|error| EnvelopeError(format!("what -H gives {error}")))?;
        }
        let given = Given { key, id, headers: bytes, delay, ttl };
        let mut attributes = Vec::new();
        given.complete(nothing(), WallTime(0)).push_attributes(&mut attributes);
        if attributes.len() > limits::ATTRIBUTE_BYTES_MAX {
            let too_many = too_many(attributes.len());
            return Err(EnvelopeError(format!("each message {too_many}")));
        }
        Ok(given)
    }

    /// Whether it gives messages nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Given::default()
    }

    /// The attributes of a message that has no envelope, as they stand in a record; and until
    /// when it is delayed.
    pub fn push_attributes(&self, now: WallTime, out: &mut Vec<u8>) -> Option<WallTime> {
        let complete = self.complete(nothing(), now);
        complete.push_attributes(out);
        complete.not_before
    }

    /// `envelope` with what it does not say itself.
    #[must_use]
    pub fn complete<'a>(&'a self, mut envelope: Envelope<'a>, now: WallTime) -> Envelope<'a> {
        fn borrowed(text: Option<&String>) -> Option<Cow<'_, str>> {
            text.map(|text| Cow::Borrowed(text.as_str()))
        }
        envelope.key = envelope.key.or_else(|| borrowed(self.key.as_ref()));
        envelope.id = envelope.id.or_else(|| borrowed(self.id.as_ref()));
        if !self.headers.is_empty() {
            envelope.headers = self.more_headers(&envelope.headers);
        }
        envelope.not_before = envelope.not_before.or_else(|| match self.delay? {
            Delay::For(delay) => Some(WallTime(now.0.saturating_add(delay.0))),
            Delay::Until(time) => Some(time),
        });
        // A message lives from the moment on from which it can be had.
        let born = envelope.not_before.unwrap_or(now).max(now);
        let dies = || self.ttl.map(|ttl| WallTime(born.0.saturating_add(ttl.0)));
        envelope.expires = envelope.expires.or_else(dies);
        envelope
    }

    /// `theirs`, and those of ours whose names are not among them.
    fn more_headers(&self, theirs: &[u8]) -> Cow<'_, [u8]> {
        if theirs.is_empty() {
            return Cow::Borrowed(&self.headers);
        }
        let mut headers = theirs.to_vec();
        for (name, value) in Attributes::parse(&self.headers).headers() {
            if !holds_header(theirs, name) {
                let text = |bytes| std::str::from_utf8(bytes).expect("it was a text when it came");
                push_header(text(name), text(value), &mut headers).expect("it was pushed before");
            }
        }
        Cow::Owned(headers)
    }
}

fn nothing() -> Envelope<'static> {
    Envelope {
        body: Cow::Borrowed(b""),
        key: None,
        id: None,
        headers: Cow::Borrowed(b""),
        event_time: None,
        expires: None,
        not_before: None,
    }
}

fn holds_header(headers: &[u8], name: &[u8]) -> bool {
    Attributes::parse(headers).headers().any(|(other, _)| other == name)
}

/// What is said of attributes over the limit.
#[must_use]
pub fn too_many(bytes: usize) -> EnvelopeError {
    let most = limits::ATTRIBUTE_BYTES_MAX >> 10;
    EnvelopeError(format!("has {bytes} bytes of key, id and headers, of which {most} KiB fit"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::envelope::Reader;

    fn given() -> Given {
        let headers = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())];
        let delay = Some(Delay::For(Micros(10)));
        let id = Some("i".to_owned());
        Given::new(Some("k".to_owned()), &headers, id, delay, Some(Micros(5))).expect("fits")
    }

    #[test]
    fn an_envelope_goes_before_the_command_line() {
        let (given, mut reader) = (given(), Reader::default());
        let line = r#"{"data":"","key":"mine","headers":{"b":"3","c":"4"},
            "not_before":"1970-01-01T00:00:01Z"}"#;
        let envelope = reader.read(line.as_bytes()).expect("an envelope");
        let complete = given.complete(envelope, WallTime(100));
        assert_eq!((complete.key.as_deref(), complete.id.as_deref()), (Some("mine"), Some("i")));
        assert_eq!(complete.not_before, Some(WallTime(1_000_000)));
        assert_eq!(complete.expires, Some(WallTime(1_000_005)));
        let headers: Vec<_> = Attributes::parse(&complete.headers).headers().collect();
        let expected: [(&[u8], &[u8]); 3] = [(b"b", b"3"), (b"c", b"4"), (b"a", b"1")];
        assert_eq!(headers, expected);
    }

    #[test]
    fn lines_get_all_that_is_given() {
        let mut bytes = Vec::new();
        assert_eq!(given().push_attributes(WallTime(100), &mut bytes), Some(WallTime(110)));
        let attributes = Attributes::parse(&bytes);
        assert_eq!(attributes.key, Some(b"k".as_slice()));
        assert_eq!(attributes.expires, Some(WallTime(115)));
        assert_eq!(attributes.headers().count(), 2);
        assert!(Given::default().is_empty() && !given().is_empty());
    }

    #[test]
    fn what_no_message_can_have_is_refused() {
        let header = |name: &str| (name.to_owned(), String::new());
        assert!(Given::new(None, &[header("a"), header("a")], None, None, None).is_err());
        let key = Some("x".repeat(limits::ATTRIBUTE_BYTES_MAX));
        assert!(Given::new(key, &[], None, None, None).is_err());
    }

    #[test]
    fn delays_are_durations_or_times() {
        assert_eq!("10m".parse(), Ok(Delay::For(Micros::from_secs(600))));
        let time = "1970-01-01T00:00:01Z".parse();
        assert_eq!(time, Ok(Delay::Until(WallTime(1_000_000))));
        assert!("tomorrow".parse::<Delay>().is_err());
    }
}
