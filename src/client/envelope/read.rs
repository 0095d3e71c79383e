//! Envelopes in: a line of JSON to a body and attributes. serde_json does the parsing; texts
//! without escapes are borrowed from the line, headers go straight to where records have them.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Attributes, TimeReader};
use crate::batch::{self, push_attribute, tags};
use crate::limits;
use crate::units::WallTime;

/// Some leave the padding away.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Up to so many headers are compared with each other one by one; more are sorted first.
const FEW_HEADERS: usize = 16;

/// Why a line is no envelope, in words that go on from "line 7 of stdin".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EnvelopeError(pub String);

/// A text of a line, borrowed where it has no escapes.
pub type Text<'a> = Cow<'a, str>;

/// What an envelope says of a message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The body.
    pub body: Cow<'a, [u8]>,
    /// The key.
    pub key: Option<Text<'a>>,
    /// The id.
    pub id: Option<Text<'a>>,
    /// The headers, as attributes of a record.
    pub headers: Cow<'a, [u8]>,
    /// `event_time`, else `time`.
    pub event_time: Option<WallTime>,
    /// Not to be delivered after this.
    pub expires: Option<WallTime>,
    /// Not to be delivered before this.
    pub not_before: Option<WallTime>,
}

impl Envelope<'_> {
    /// Appends the attributes of a record.
    pub fn push_attributes(&self, out: &mut Vec<u8>) {
        if let Some(key) = &self.key {
            push_attribute(out, tags::KEY, key.as_bytes());
        }
        if let Some(id) = &self.id {
            push_attribute(out, tags::ID, id.as_bytes());
        }
        out.extend_from_slice(&self.headers);
        let times = [
            (tags::EVENT_TIME, self.event_time),
            (tags::EXPIRES, self.expires),
            (tags::NOT_BEFORE, self.not_before),
        ];
        for (tag, time) in times {
            if let Some(time) = time {
                push_attribute(out, tag, &time.0.to_le_bytes());
            }
        }
    }
}

/// Appends a header as an attribute of a record.
///
/// # Errors
/// A name that is too long for one.
pub fn push_header(name: &str, value: &str, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
    batch::push_header(out, name, value)
        .map_err(|_| EnvelopeError("has a header with a name over 65535 bytes".to_owned()))
}

/// Reads envelopes.
#[derive(Debug, Default)]
pub struct Reader {
    event_time: TimeReader,
    expires: TimeReader,
    not_before: TimeReader,
    /// Of the line that is being read: its headers as attributes, and its body if that was
    /// base64.
    headers: Vec<u8>,
    decoded: Vec<u8>,
}

impl Reader {
    /// Reads one line. Fields that are unknown, and those that say where the message was before,
    /// are passed over; `null` is the same as absent.
    ///
    /// # Errors
    /// Why it is no envelope.
    pub fn read<'a>(&'a mut self, line: &'a [u8]) -> Result<Envelope<'a>, EnvelopeError> {
        self.headers.clear();
        let mut json = serde_json::Deserializer::from_slice(line);
        let fields = json
            .deserialize_map(Fields { headers: &mut self.headers })
            .and_then(|fields| json.end().map(|()| fields))
            .map_err(|error| EnvelopeError(no_envelope(&error)))?;
        check_headers(&self.headers)?;
        let (event_time, field) = match (fields.event_time, fields.time) {
            (Some(text), _) => (Some(text), "event_time"),
            (None, text) => (text, "time"),
        };
        let event_time = read_time(&mut self.event_time, event_time, field)?;
        let expires = read_time(&mut self.expires, fields.expires, "expires")?;
        let not_before = read_time(&mut self.not_before, fields.not_before, "not_before")?;
        let body = match (fields.data, fields.data_base64) {
            (Some(Cow::Borrowed(text)), None) => Cow::Borrowed(text.as_bytes()),
            (Some(Cow::Owned(text)), None) => Cow::Owned(text.into_bytes()),
            (None, Some(text)) => {
                self.decoded.clear();
                BASE64.decode_vec(text.as_bytes(), &mut self.decoded).map_err(|error| {
                    EnvelopeError(format!("has a data_base64 that is not base64: {error}"))
                })?;
                Cow::Borrowed(self.decoded.as_slice())
            }
            (Some(_), Some(_)) => {
                return Err(EnvelopeError("has both data and data_base64".to_owned()));
            }
            (None, None) => {
                return Err(EnvelopeError("has neither data nor data_base64".to_owned()));
            }
        };
        Ok(Envelope {
            body,
            key: fields.key,
            // An empty one would make all messages that have it the same.
            id: fields.id.filter(|id| !id.is_empty()),
            headers: Cow::Borrowed(&self.headers),
            event_time,
            expires,
            not_before,
        })
    }
}

fn read_time(
    reader: &mut TimeReader,
    text: Option<Text<'_>>,
    field: &str,
) -> Result<Option<WallTime>, EnvelopeError> {
    text.map(|text| reader.read(&text).map_err(|what| bad_field(field, &what))).transpose()
}

fn bad_field(field: &str, what: &str) -> EnvelopeError {
    EnvelopeError(format!("has a {field} that cannot be read: {what}"))
}

/// What serde_json says, without the number of a line that is always the first.
fn no_envelope(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let said = text.rsplit_once(" at line ").map_or(text.as_str(), |(said, _)| said);
    match error.column() {
        0 => format!("is no envelope: {said}"),
        column => format!("is no envelope: {said}, at column {column}"),
    }
}

/// A name that comes twice would lose a value on its way through any other JSON tool.
fn check_headers(headers: &[u8]) -> Result<(), EnvelopeError> {
    let attributes = Attributes::parse(headers);
    let names = || attributes.headers().map(|(name, _)| name);
    let twice = match names().count() {
        0 | 1 => None,
        2..=FEW_HEADERS => {
            names().enumerate().find(|(n, name)| names().take(*n).any(|other| other == *name))
        }
        _ => {
            let mut sorted: Vec<&[u8]> = names().collect();
            sorted.sort_unstable();
            sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| (0, pair[0]))
        }
    };
    match twice {
        None => Ok(()),
        Some((_, name)) => {
            Err(EnvelopeError(format!("has the header {:?} twice", String::from_utf8_lossy(name))))
        }
    }
}

/// The fields as they stand in the line.
#[derive(Debug, Default)]
struct Found<'a> {
    data: Option<Text<'a>>,
    data_base64: Option<Text<'a>>,
    key: Option<Text<'a>>,
    id: Option<Text<'a>>,
    event_time: Option<Text<'a>>,
    time: Option<Text<'a>>,
    expires: Option<Text<'a>>,
    not_before: Option<Text<'a>>,
}

/// Reads the object.
struct Fields<'h> {
    headers: &'h mut Vec<u8>,
}

impl<'a> Visitor<'a> for Fields<'_> {
    type Value = Found<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with data or data_base64")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Found<'a>, A::Error> {
        let mut found = Found::default();
        let mut has_headers = false;
        while let Some(name) = map.next_key_seed(FieldName)? {
            let slot = match name {
                Field::Data => &mut found.data,
                Field::DataBase64 => &mut found.data_base64,
                Field::Key => &mut found.key,
                Field::Id => &mut found.id,
                Field::EventTime => &mut found.event_time,
                Field::Time => &mut found.time,
                Field::Expires => &mut found.expires,
                Field::NotBefore => &mut found.not_before,
                Field::Headers => {
                    if std::mem::replace(&mut has_headers, true) {
                        return Err(de::Error::custom("headers comes twice"));
                    }
                    map.next_value_seed(Headers(self.headers))?;
                    continue;
                }
                Field::Other => {
                    let _: IgnoredAny = map.next_value()?;
                    continue;
                }
            };
            let text = map.next_value_seed(OptionalText(name))?;
            if slot.is_some() {
                return Err(de::Error::custom(format_args!("{} comes twice", name.text())));
            }
            *slot = text;
        }
        Ok(found)
    }
}

/// A field of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Data,
    DataBase64,
    Key,
    Id,
    EventTime,
    Time,
    Expires,
    NotBefore,
    Headers,
    /// Not looked at.
    Other,
}

impl Field {
    fn of(name: &str) -> Field {
        match name {
            "data" => Field::Data,
            "data_base64" => Field::DataBase64,
            "key" => Field::Key,
            "id" => Field::Id,
            "event_time" => Field::EventTime,
            "time" => Field::Time,
            "expires" => Field::Expires,
            "not_before" => Field::NotBefore,
            "headers" => Field::Headers,
            _ => Field::Other,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Field::Data => "data",
            Field::DataBase64 => "data_base64",
            Field::Key => "key",
            Field::Id => "id",
            Field::EventTime => "event_time",
            Field::Time => "time",
            Field::Expires => "expires",
            Field::NotBefore => "not_before",
            Field::Headers => "headers",
            Field::Other => "a field",
        }
    }
}

struct FieldName;

impl<'a> DeserializeSeed<'a> for FieldName {
    type Value = Field;

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<Field, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Field, E> {
        Ok(Field::of(name))
    }
}

/// A text, or `null`.
struct OptionalText(Field);

impl<'a> DeserializeSeed<'a> for OptionalText {
    type Value = Option<Text<'a>>;

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<Option<Text<'a>>, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for OptionalText {
    type Value = Option<Text<'a>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string as {}", self.0.text())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<Text<'a>>, E> {
        Ok(None)
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'a str) -> Result<Option<Text<'a>>, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<Text<'a>>, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }
}

/// An object of texts, or `null`.
struct Headers<'h>(&'h mut Vec<u8>);

impl<'a> DeserializeSeed<'a> for Headers<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Headers<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings as headers")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(OptionalText(Field::Headers))? {
            let name = name.unwrap_or_default();
            if let Some(value) = map.next_value_seed(OptionalText(Field::Headers))? {
                push_header(&name, &value, self.0).map_err(de::Error::custom)?;
            }
            // What would be refused anyway is not gathered first.
            if self.0.len() > limits::ATTRIBUTE_BYTES_MAX {
                return Err(de::Error::custom(format_args!(
                    "the headers are over {} KiB",
                    limits::ATTRIBUTE_BYTES_MAX >> 10
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Message, Writer};
    use super::*;
    use crate::client::delivery::Origin;
    use crate::units::{Attempts, LeaseNumber, Name, Offset, QueueId};

    fn error(line: &str) -> String {
        Reader::default().read(line.as_bytes()).expect_err("not an envelope").0
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, said) in [
            ("", "EOF while parsing"),
            ("x", "expected value"),
            ("5", "expected an object with data or data_base64"),
            ("[]", "expected an object with data or data_base64"),
            ("{}", "has neither data nor data_base64"),
            (r#"{"data":null}"#, "has neither data nor data_base64"),
            (r#"{"data":"a","data_base64":"YQ=="}"#, "has both"),
            (r#"{"data":5}"#, "expected a string as data"),
            (r#"{"data":{"a":1}}"#, "expected a string as data"),
            (r#"{"data":"a","key":7}"#, "expected a string as key"),
            (r#"{"data":"a","headers":[]}"#, "expected an object of strings as headers"),
            (r#"{"data":"a","headers":{"a":1}}"#, "expected a string as headers"),
            (r#"{"data":"a","headers":{"a":"1","a":"2"}}"#, "has the header \"a\" twice"),
            (r#"{"data":"a","data":"b"}"#, "data comes twice"),
            (r#"{"data":"a"} {}"#, "trailing characters"),
            (r#"{"data":"a","time":"noon"}"#, "has a time that cannot be read"),
            (r#"{"data":"a","expires":"1969-01-01T00:00:00Z"}"#, "lies before 1970"),
            (r#"{"data_base64":"*"}"#, "not base64"),
        ] {
            let error = error(line);
            assert!(error.contains(said), "{line}: {error}");
            assert!(!error.contains("line 1"), "{line}: {error}");
        }
    }

    #[test]
    fn many_headers_are_told_apart_too() {
        let headers = |last: &str| {
            let many: String = (0..40).map(|n| format!("\"h{n}\":\"\",")).collect();
            format!("{{\"data\":\"\",\"headers\":{{{many}\"{last}\":\"\"}}}}")
        };
        assert!(Reader::default().read(headers("other").as_bytes()).is_ok());
        assert!(error(&headers("h7")).contains("\"h7\" twice"));
        let long = format!(r#"{{"data":"","headers":{{"a":"{}"}}}}"#, "x".repeat(70_000));
        assert!(error(&long).contains("over 64 KiB"));
    }

    #[test]
    fn null_is_absent_and_the_past_of_a_message_is_passed_over() {
        let line = r#"{"queue":"x","offset":"?","attempt":[1],"receipt":{},"future":[{"a":null}],
            "key":null,"headers":{"a":null,"b":"c"},"time":"2026-01-31T12:00:00Z","data":"body"}"#;
        let mut reader = Reader::default();
        let envelope = reader.read(line.as_bytes()).expect("an envelope");
        assert_eq!(envelope.body.as_ref(), b"body");
        assert_eq!(envelope.key, None);
        assert_eq!(envelope.event_time, Some(WallTime(1_769_860_800_000_000)));
        let headers: Vec<_> = Attributes::parse(&envelope.headers).headers().collect();
        assert_eq!(headers, [(b"b".as_slice(), b"c".as_slice())]);
    }

    #[test]
    fn event_time_goes_before_time() {
        let line = r#"{"time":"nonsense","event_time":"2026-01-31T12:00:00.000009Z","data":""}"#;
        let mut reader = Reader::default();
        let envelope = reader.read(line.as_bytes()).expect("an envelope");
        assert_eq!(envelope.event_time, Some(WallTime(1_769_860_800_000_009)));
    }

    fn times() -> impl Strategy<Value = Option<u64>> {
        proptest::option::of(0..253_000_000_000_000_000u64)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            body in proptest::collection::vec(any::<u8>(), 0..80),
            text in proptest::option::of("(?s).{0,40}|\\PC*"),
            key in proptest::option::of("\\PC*|[\\x00-\\x7f]*"),
            id in proptest::option::of("\\PC+"),
            headers in proptest::collection::btree_map("\\PC*", "(?s).{0,9}", 0..4),
            (event_time, expires, not_before) in (times(), times(), times()),
        ) {
            let mut attributes = Vec::new();
            let mut push = |tag, value: &[u8]| push_attribute(&mut attributes, tag, value);
            key.iter().for_each(|key| push(tags::KEY, key.as_bytes()));
            id.iter().for_each(|id| push(tags::ID, id.as_bytes()));
            for (name, value) in &headers {
                push_header(name, value, &mut attributes).expect("short");
            }
            // A message that does not say when it happened happened when it was stored.
            let stored = WallTime(1_769_860_800_000_001);
            let times = [
                (tags::EVENT_TIME, Some(event_time.unwrap_or(stored.0))),
                (tags::EXPIRES, expires),
                (tags::NOT_BEFORE, not_before),
            ];
            let without_event_time = attributes.clone();
            for (tag, time) in times {
                time.iter().for_each(|t| push_attribute(&mut attributes, tag, &t.to_le_bytes()));
            }
            let mut shown = attributes.clone();
            if event_time.is_none() {
                shown = without_event_time;
                for (tag, time) in &times[1..] {
                    time.iter().for_each(|t| push_attribute(&mut shown, *tag, &t.to_le_bytes()));
                }
            }
            let body = text.map_or(body, String::into_bytes);
            let name = Name::new("q").expect("a name");
            let origin = Origin {
                queue: &name,
                queue_id: QueueId::from_bytes([7; 16]),
                group: &name,
                attempt: Attempts(1),
                lease: LeaseNumber(9),
            };
            let message = Message {
                origin,
                offset: Offset(4),
                time: stored,
                attributes: Attributes::parse(&shown),
                body: &body,
            };
            let mut line = Vec::new();
            Writer::default().push(&message, &mut line);
            let mut reader = Reader::default();
            let envelope = reader.read(&line).expect("what is written is an envelope");
            prop_assert_eq!(envelope.body.as_ref(), body.as_slice());
            let mut read = Vec::new();
            let own_id = format!("{}:4", origin.queue_id);
            if id.is_none() {
                prop_assert_eq!(envelope.id.as_deref(), Some(own_id.as_str()));
            }
            Envelope { id: id.map(Cow::Owned), ..envelope }.push_attributes(&mut read);
            prop_assert_eq!(read, attributes);
        }
    }
}
