//! Times as RFC 3339 text in UTC, with microseconds, both ways.
//!
//! Consecutive messages are stored within the same second more often than not, so the text of a
//! second is kept and only the fraction is worked out anew.

use crate::units::WallTime;

const MICROS_PER_SECOND: u64 = 1_000_000;

/// Bytes of a text up to its whole second: `2026-01-31T12:00:00`.
const SECOND_BYTES: usize = 19;

/// Times to text.
#[derive(Debug, Default)]
pub struct TimeText {
    /// The second of `text`, and one more, so that 0 is none.
    second_plus_one: u64,
    text: [u8; SECOND_BYTES],
}

impl TimeText {
    /// Appends `time` as `2026-01-31T12:00:00.000000Z`. Times behind the year 9999 are shown as
    /// its end.
    pub fn push(&mut self, time: WallTime, out: &mut Vec<u8>) {
        let last = jiff::Timestamp::MAX.as_second().unsigned_abs();
        let second = (time.0 / MICROS_PER_SECOND).min(last);
        if self.second_plus_one != second + 1 {
            self.second_plus_one = second + 1;
            let shown = jiff::Timestamp::from_second(second.cast_signed())
                .expect("seconds up to the last are shown")
                .to_string();
            self.text.copy_from_slice(&shown.as_bytes()[..SECOND_BYTES]);
        }
        out.extend_from_slice(&self.text);
        let mut fraction = *b".000000Z";
        let mut rest = time.0 % MICROS_PER_SECOND;
        for digit in fraction[1..7].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&fraction);
    }
}

/// Text to times.
#[derive(Debug, Default)]
pub struct TimeReader {
    text: [u8; SECOND_BYTES],
    second: u64,
}

impl TimeReader {
    /// Reads an RFC 3339 time. Digits behind the microsecond are dropped.
    ///
    /// # Errors
    /// What is wrong with it, for users.
    pub fn read(&mut self, text: &str) -> Result<WallTime, String> {
        let bytes = text.as_bytes();
        let Some((second, behind)) = bytes.split_first_chunk::<SECOND_BYTES>() else {
            return parse_time(text);
        };
        let fraction = match behind {
            [b'.', fraction @ .., b'Z'] => micros(fraction),
            b"Z" => Some(0),
            _ => None,
        };
        let Some(fraction) = fraction else { return parse_time(text) };
        if *second == self.text {
            return Ok(WallTime(self.second * MICROS_PER_SECOND + fraction));
        }
        let time = parse_time(text)?;
        // A leap second is read as the one before it; its text is not kept for that one's.
        if &second[17..] != b"60" {
            self.text = *second;
            self.second = time.0 / MICROS_PER_SECOND;
        }
        Ok(time)
    }
}

/// The microseconds of 1 to 9 digits behind the point.
fn micros(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |n: usize| digits.get(n).map_or(0, |digit| u64::from(digit - b'0'));
    Some((0..6).fold(0, |micros, n| micros * 10 + digit(n)))
}

/// Reads one RFC 3339 time; its offset may be any.
///
/// # Errors
/// What is wrong with it, for users.
pub fn parse_time(text: &str) -> Result<WallTime, String> {
    let bad = || format!("{text:?} is no time; write it as 2026-01-31T12:00:00Z (RFC 3339)");
    let time: jiff::Timestamp = text.parse().map_err(|_| match is_time(text) {
        true => {
            let (first, last) = (jiff::Timestamp::UNIX_EPOCH, jiff::Timestamp::MAX);
            format!("{text:?} is out of range; times go from {first} to {last:.0}")
        }
        false => bad(),
    })?;
    let micros = time.as_microsecond();
    let micros = u64::try_from(micros)
        .map_err(|_| format!("{text:?} lies before 1970, which no message can say"))?;
    Ok(WallTime(micros))
}

/// Whether a text is written as a time, be it one that can be stored or not.
pub(crate) fn is_time(text: &str) -> bool {
    let pieces = jiff::fmt::temporal::Pieces::parse(text);
    pieces.is_ok_and(|pieces| pieces.time().is_some() && pieces.offset().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &mut TimeText, time: u64) -> String {
        let mut out = Vec::new();
        text.push(WallTime(time), &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn times_round_trip_to_the_microsecond() {
        let (mut text, mut reader) = (TimeText::default(), TimeReader::default());
        for time in [0, 1, 999_999, 1_000_000, 1_769_860_800_123_456, 1_769_860_800_123_457] {
            let shown = shown(&mut text, time);
            assert_eq!(reader.read(&shown), Ok(WallTime(time)), "{shown}");
            assert_eq!(parse_time(&shown), Ok(WallTime(time)), "{shown}");
        }
        assert_eq!(shown(&mut text, 1_769_860_800_123_456), "2026-01-31T12:00:00.123456Z");
    }

    #[test]
    fn what_others_write_is_read() {
        let mut reader = TimeReader::default();
        for (written, time) in [
            ("2026-01-31T12:00:00Z", 1_769_860_800_000_000),
            ("2026-01-31T12:00:00.5Z", 1_769_860_800_500_000),
            ("2026-01-31T12:00:00.123456789Z", 1_769_860_800_123_456),
            ("2026-01-31T13:00:00.25+01:00", 1_769_860_800_250_000),
            ("2026-01-31 12:00:00z", 1_769_860_800_000_000),
            ("2016-12-31T23:59:60Z", 1_483_228_799_000_000),
            ("2016-12-31T23:59:60.5Z", 1_483_228_799_000_000),
        ] {
            let read = reader.read(written).map(|time| time.0 / 1_000_000);
            assert_eq!(read, Ok(time / 1_000_000), "{written}");
        }
        for bad in ["", "now", "1769860800", "2026-13-01T00:00:00Z", "1960-01-01T00:00:00Z"] {
            assert!(reader.read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_out_of_any_calendar_are_shown_as_its_end() {
        let end = shown(&mut TimeText::default(), u64::MAX);
        assert!(end.starts_with("9999-12-30T"), "{end}");
        assert!(parse_time(&end).is_ok());
    }
}
