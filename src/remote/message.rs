//! A message as engines have it: a body, and what mq knows of it beside.

use bytes::Bytes;

use crate::units::WallTime;

/// What stands beside a body. Texts are UTF-8, as everywhere in mq.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The key: what orders and partitions.
    pub key: Option<String>,
    /// The id that its sender gave.
    pub id: Option<String>,
    /// Names and values, in the order in which they were given; a name may come twice.
    pub headers: Vec<(String, String)>,
    /// When it happened, by its sender; else when the engine stored it, if it says so.
    pub event_time: Option<WallTime>,
    /// Not delivered after this.
    pub expires: Option<WallTime>,
    /// Not delivered before this.
    pub not_before: Option<WallTime>,
}

impl Facts {
    /// Whether nothing stands there: then nothing has to be made of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Facts::default()
    }
}

/// A message on its way to an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The body, in general a part of the frame that it came in.
    pub body: Bytes,
    /// What stands beside it; absent for most.
    pub facts: Option<Box<Facts>>,
    /// The number of this message with its sender. Together with
    /// [`PublishWish::sender`](super::engine::PublishWish::sender) it names the message: a resend
    /// has the same, so an engine that can tell stores it once.
    pub number: u64,
}

/// A message that came from an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The body.
    pub body: Bytes,
    /// What stands beside it; absent for most. Where the message has no id of its own and the
    /// engine has a place for it that lasts (`topic:partition:offset`), that is its id here.
    pub facts: Option<Box<Facts>>,
    /// How often it was delivered before, plus one, as the engine counts; 0: it does not count.
    pub attempt: u32,
    /// It may have been delivered before.
    pub redelivered: bool,
}

/// The header in which a key travels where the engine has no place for it.
pub const KEY_HEADER: &str = "mq-key";
/// The same of an id.
pub const ID_HEADER: &str = "mq-id";
/// The same of an event time, as RFC 3339.
pub const TIME_HEADER: &str = "mq-time";
/// The same of the time after which a message is not to be delivered, as RFC 3339.
pub const EXPIRES_HEADER: &str = "mq-expires";

/// A time as it stands in a header.
#[must_use]
pub fn time_text(time: WallTime) -> String {
    let micros = i64::try_from(time.0).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX);
    time.to_string()
}

/// The time that stands in a header, if it is one.
#[must_use]
pub fn time_of_text(text: &str) -> Option<WallTime> {
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(WallTime(u64::try_from(time.as_microsecond()).ok()?))
}

impl Facts {
    /// Takes a header that says one of mq's own facts in its place; false: it is another header.
    pub fn take_header(&mut self, name: &str, value: &str) -> bool {
        let of = || Some(value.to_owned());
        match name {
            KEY_HEADER => self.key = of(),
            ID_HEADER => self.id = of(),
            TIME_HEADER => self.event_time = time_of_text(value),
            EXPIRES_HEADER => self.expires = time_of_text(value),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_headers_are_exact() {
        for micros in [0, 1, 1_700_000_000_123_456] {
            let time = WallTime(micros);
            assert_eq!(time_of_text(&time_text(time)), Some(time));
        }
        assert_eq!(time_of_text("yesterday"), None);
    }

    #[test]
    fn facts_that_travel_in_headers_go_back_to_their_places() {
        let mut facts = Facts::default();
        assert!(facts.take_header(KEY_HEADER, "k") && facts.take_header(ID_HEADER, "i"));
        assert!(facts.take_header(TIME_HEADER, "2026-01-01T00:00:00Z"));
        assert!(!facts.take_header("other", "x"));
        assert_eq!((facts.key.as_deref(), facts.id.as_deref()), (Some("k"), Some("i")));
        assert!(facts.event_time.is_some() && facts.headers.is_empty());
    }
}
