//! The specification of windows as a user writes it: `1m`, `1m,every=10s,late=30s`,
//! `session=30s`, `100`.
//!
//! Only text and numbers; the parser of the command line calls it. What it shows of itself is
//! always the same for the same windows, and stands in each commit, so that a pipe never goes on
//! with windows of another kind.

use std::fmt;
use std::str::FromStr;

use crate::limits;
use crate::units::{Micros, parse_duration};

/// How messages are put into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Windows of one size that begin at multiples of `every` since 1970 in UTC. Where both are
    /// the same they do not overlap (tumbling), else they do (sliding).
    Aligned {
        /// From start to end.
        size: Micros,
        /// From start to start; at most the size.
        every: Micros,
    },
    /// A window goes on for as long as each next message comes within the gap.
    Session {
        /// The silence that ends it.
        gap: Micros,
    },
    /// So many messages, whenever they come.
    Count(u64),
}

/// Windows, and how long they wait for messages that come late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Which windows.
    pub kind: Kind,
    /// By how much the watermark stays behind the greatest time that was read.
    pub late: Micros,
}

impl Spec {
    /// Whether windows depend on times at all.
    #[must_use]
    pub fn has_times(&self) -> bool {
        !matches!(self.kind, Kind::Count(_))
    }

    fn check(self) -> Result<Spec, String> {
        let shortest = limits::WINDOW_MIN;
        let is_long_enough = match self.kind {
            Kind::Aligned { size, every } => size >= shortest && every >= shortest,
            Kind::Session { gap } => gap >= shortest,
            Kind::Count(_) => true,
        };
        if !is_long_enough {
            return Err("a window is at least 1ms long".to_owned());
        }
        match self.kind {
            Kind::Count(0) => Err("a window of 0 messages never ends; write 1 or more".to_owned()),
            Kind::Count(count) if count > limits::WINDOW_COUNT_MAX => Err(format!(
                "a window has at most {} messages; take a window of time",
                limits::WINDOW_COUNT_MAX
            )),
            Kind::Count(_) if self.late != Micros(0) => {
                Err("late= is for windows of time; nothing comes late to a count".to_owned())
            }
            Kind::Aligned { size, every } if every > size => {
                Err("every= must not be longer than the window, or messages between two windows \
                 would be in none"
                    .to_owned())
            }
            Kind::Aligned { size, every } if size.0.div_ceil(every.0) > PER_MESSAGE_MAX => {
                Err(format!(
                    "each message would be in {} windows, {PER_MESSAGE_MAX} are the most; make \
                     every= longer",
                    size.0.div_ceil(every.0)
                ))
            }
            _ => Ok(self),
        }
    }
}

const PER_MESSAGE_MAX: u64 = limits::WINDOWS_PER_MESSAGE_MAX;

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Spec, String> {
        let mut parts = text.split(',').map(str::trim);
        let first = parts.next().unwrap_or_default();
        let mut kind = if let Some(gap) = first.strip_prefix("session=") {
            Kind::Session { gap: parse_duration(gap)? }
        } else if !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit()) {
            Kind::Count(first.parse().map_err(|_| format!("{first} messages are too many"))?)
        } else if first.starts_with(|c: char| c.is_ascii_digit()) {
            let size = parse_duration(first)?;
            Kind::Aligned { size, every: size }
        } else {
            return Err(format!(
                "{first:?} is no window; write 1m, 1m,every=10s, session=30s, or 100 for as many \
                 messages"
            ));
        };
        let mut late = None;
        let mut is_sliding = false;
        for part in parts {
            match (part.split_once('='), &mut kind) {
                (Some(("every", text)), Kind::Aligned { every, .. }) if !is_sliding => {
                    is_sliding = true;
                    *every = parse_duration(text)?;
                }
                (Some(("late", text)), _) if late.is_none() => late = Some(parse_duration(text)?),
                (Some(("every" | "late", _)), Kind::Aligned { .. }) | (Some(("late", _)), _) => {
                    return Err(format!("{part:?} comes twice"));
                }
                (Some(("every", _)), _) => {
                    return Err("every= is for windows of one length, such as 1m,every=10s".into());
                }
                _ => return Err(format!("{part:?} is not known; write every=10s or late=30s")),
            }
        }
        Spec { kind, late: late.unwrap_or_default() }.check()
    }
}

impl fmt::Display for Spec {
    /// The same for the same windows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Aligned { size, every } if size == every => write!(f, "{}", Exactly(size))?,
            Kind::Aligned { size, every } => {
                write!(f, "{},every={}", Exactly(size), Exactly(every))?;
            }
            Kind::Session { gap } => write!(f, "session={}", Exactly(gap))?,
            Kind::Count(count) => write!(f, "{count}")?,
        }
        if self.late == Micros(0) { Ok(()) } else { write!(f, ",late={}", Exactly(self.late)) }
    }
}

/// A length of time in the largest unit of which it is a whole number.
struct Exactly(Micros);

impl fmt::Display for Exactly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 5] = [
            (86_400_000_000, "d"),
            (3_600_000_000, "h"),
            (60_000_000, "m"),
            (1_000_000, "s"),
            (1_000, "ms"),
        ];
        let micros = self.0.0;
        let fits = UNITS.iter().find(|(unit, _)| micros >= *unit && micros.is_multiple_of(*unit));
        let (unit, name) = fits.copied().unwrap_or((1, "us"));
        write!(f, "{}{name}", micros / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Micros = Micros::from_secs(60);
    const SECOND: Micros = Micros::from_secs(1);

    #[test]
    fn windows_read_as_written() {
        let spec = |kind, late| Ok(Spec { kind, late });
        let none = Micros(0);
        for (text, expected) in [
            ("1m", spec(Kind::Aligned { size: MINUTE, every: MINUTE }, none)),
            ("60s,late=1s", spec(Kind::Aligned { size: MINUTE, every: MINUTE }, SECOND)),
            ("1m,every=1s", spec(Kind::Aligned { size: MINUTE, every: SECOND }, none)),
            ("1m,late=1s,every=1s", spec(Kind::Aligned { size: MINUTE, every: SECOND }, SECOND)),
            ("session=1m", spec(Kind::Session { gap: MINUTE }, none)),
            ("session=1m,late=1s", spec(Kind::Session { gap: MINUTE }, SECOND)),
            ("100", spec(Kind::Count(100), none)),
        ] {
            let read = text.parse::<Spec>();
            assert_eq!(read, expected, "{text}");
            let shown = read.expect("a window").to_string();
            assert_eq!(shown.parse::<Spec>(), expected, "{text} is shown as {shown}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (text, said) in [
            ("", "is no window"),
            ("minute", "is no window"),
            ("session", "is no window"),
            ("-1m", "is no window"),
            ("1x", "is no duration"),
            ("session=", "is no duration"),
            ("0", "never ends"),
            ("0s", "at least 1ms"),
            ("1us", "at least 1ms"),
            ("session=0", "at least 1ms"),
            ("1m,every=0", "at least 1ms"),
            ("1m,every=2m", "must not be longer"),
            ("1d,every=1s", "would be in 86400 windows"),
            ("1m,every=1s,every=2s", "comes twice"),
            ("1m,late=1s,late=1s", "comes twice"),
            ("session=1m,every=1s", "every= is for"),
            ("100,every=10", "every= is for"),
            ("100,late=1s", "late= is for"),
            ("1m,slow", "is not known"),
            ("1m,", "is not known"),
            ("99999999999999999999", "too many"),
            ("9999999999999", "at most"),
        ] {
            let error = text.parse::<Spec>().expect_err(text);
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }
}
