//! Times: when a message happened, by what `--time` names.
//!
//! ```text
//! stored      when the queue stored it; the only time that the server's clock goes on with
//! event       the event time that its sender gave
//! 1, /when    in its body: RFC 3339, or a number since 1970
//! ```
//!
//! A number is taken by its size for seconds, milliseconds, microseconds or nanoseconds: each is
//! good for the years from 1973 to 5138, and seconds from 1970 on. The run loop asks for each
//! message; nothing here fails on a message.

use std::fmt;

use super::place::{Found, Place, Separator};
use crate::client::envelope::{Attributes, parse_time};
use crate::limits;
use crate::units::WallTime;

/// Numbers below these are seconds, milliseconds, microseconds; all others nanoseconds.
const SECONDS_END: u64 = 100_000_000_000;
const MILLIS_END: u64 = SECONDS_END * 1_000;
const MICROS_END: u64 = MILLIS_END * 1_000;

/// Digits behind the point that count: those of a microsecond in seconds.
const FRACTION_DIGITS: usize = 6;

/// Where the time of a message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// When it was stored.
    Stored,
    /// The event time in its envelope.
    Event,
    /// In its body.
    Body(Place, Separator),
}

impl Spec {
    /// Reads `stored`, `event`, the number of a field, or a JSON pointer.
    ///
    /// # Errors
    /// How to write one.
    pub fn new(text: &str, separator: Separator) -> Result<Spec, String> {
        match text {
            "stored" => Ok(Spec::Stored),
            "event" => Ok(Spec::Event),
            _ => text.parse().map(|place| Spec::Body(place, separator)).map_err(|error: String| {
                format!("{error}, event for the time its sender gave, or stored")
            }),
        }
    }

    /// Whether the server's clock says when no more messages of a time will come.
    #[must_use]
    pub fn goes_with_the_clock(&self) -> bool {
        *self == Spec::Stored
    }

    /// The time of a message, if it has one that can be read.
    #[must_use]
    pub fn time_of(
        &self,
        stored: WallTime,
        attributes: &Attributes<'_>,
        body: &[u8],
    ) -> Option<WallTime> {
        let time = match self {
            Spec::Stored => Some(stored),
            Spec::Event => attributes.event_time,
            Spec::Body(place, separator) => read(&place.find(*separator, body)?),
        };
        time.filter(|time| *time <= limits::EVENT_TIME_MAX)
    }
}

impl fmt::Display for Spec {
    /// The same for the same times.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Stored => f.write_str("stored"),
            Spec::Event => f.write_str("event"),
            Spec::Body(place, separator) => write!(f, "{place}{separator}"),
        }
    }
}

fn read(found: &Found<'_>) -> Option<WallTime> {
    let text = match found {
        Found::Text(text) => std::str::from_utf8(text).ok()?,
        Found::Json(text) => text,
    };
    // Logs like to put their times between these.
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || "[]()<>\",;".contains(c));
    since_1970(text).or_else(|| parse_time(text).ok())
}

/// A number of seconds or smaller units since 1970, with or without digits behind a point.
fn since_1970(text: &str) -> Option<WallTime> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let number: u64 = whole.parse().ok()?;
    // Micros in one, and how many digits of the fraction are whole ones.
    let (factor, digits) = match number {
        0..SECONDS_END => (1_000_000, FRACTION_DIGITS),
        SECONDS_END..MILLIS_END => (1_000, FRACTION_DIGITS - 3),
        MILLIS_END..MICROS_END => (1, 0),
        _ => return Some(WallTime(number / 1_000)),
    };
    let digit = |n: usize| fraction.as_bytes().get(n).map_or(0, |digit| u64::from(digit - b'0'));
    let part = (0..digits).fold(0, |part, n| part * 10 + digit(n));
    Some(WallTime(number * factor + part))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{push_attribute, tags};

    fn of(spec: &str, body: &str) -> Option<u64> {
        let spec = Spec::new(spec, Separator::Blanks).expect(spec);
        let time = spec.time_of(WallTime(7), &Attributes::default(), body.as_bytes());
        time.map(|time| time.0)
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let noon = 1_769_860_800_000_000;
        for (text, time) in [
            ("2026-01-31T12:00:00Z", Some(noon)),
            ("2026-01-31T13:00:00.25+01:00", Some(noon + 250_000)),
            ("2026-01-31T13:00:00+0100", Some(noon)),
            ("[2026-01-31T12:00:00Z]", Some(noon)),
            ("\"2026-01-31T12:00:00Z\",", Some(noon)),
            ("1769860800", Some(noon)),
            ("1769860800.5", Some(noon + 500_000)),
            ("1769860800.1234567", Some(noon + 123_456)),
            ("1769860800123", Some(noon + 123_000)),
            ("1769860800123.25", Some(noon + 123_250)),
            ("1769860800123456", Some(noon + 123_456)),
            ("1769860800123456789", Some(noon + 123_456)),
            ("0", Some(0)),
            ("5", Some(5_000_000)),
            ("-5", None),
            ("1e9", None),
            (".5", None),
            ("noon", None),
            ("2026-01-31T12:00:00", None),
            ("2026-13-31T12:00:00Z", None),
            ("1960-01-01T00:00:00Z", None),
            ("18446744073709551615", Some(18_446_744_073_709_551)),
            ("18446744073709551616", None),
        ] {
            assert_eq!(of("1", text), time, "{text}");
        }
        assert_eq!(of("/t", r#"{"t":1769860800.123456}"#), Some(noon + 123_456));
        assert_eq!(of("/t", r#"{"t":"2026-01-31T12:00:00Z"}"#), Some(noon));
        assert_eq!(of("/t", r#"{"t":1769860800123}"#), Some(noon + 123_000));
        assert_eq!(of("/t", r#"{"t":null}"#), None);
        assert_eq!(of("2", "only"), None);
        assert_eq!(of("stored", "x"), Some(7));
        assert_eq!(of("event", "x"), None);
    }

    #[test]
    fn an_event_time_beyond_every_calendar_is_none() {
        let event = |time: u64| {
            let mut bytes = Vec::new();
            push_attribute(&mut bytes, tags::EVENT_TIME, &time.to_le_bytes());
            Spec::Event.time_of(WallTime(7), &Attributes::parse(&bytes), b"")
        };
        assert_eq!(event(42), Some(WallTime(42)));
        assert_eq!(event(limits::EVENT_TIME_MAX.0), Some(limits::EVENT_TIME_MAX));
        assert_eq!(event(limits::EVENT_TIME_MAX.0 + 1), None);
        assert_eq!(event(u64::MAX), None);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "when", "0", "-1"] {
            assert!(Spec::new(text, Separator::Blanks).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_field_does_harm(body in ".{0,40}") {
            let _ = of("1", &body);
        }

        #[test]
        fn numbers_of_one_time_are_the_same(micros in 100_000_000_000_000u64..1 << 52) {
            for text in [
                format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000),
                format!("{}.{:03}", micros / 1_000, micros % 1_000),
                format!("{micros}"),
                format!("{micros}999"),
            ] {
                prop_assert_eq!(of("1", &text), Some(micros), "{}", text);
            }
        }
    }
}
