//! Units and identities: one newtype for each quantity, so that a count is never taken for an
//! offset, nor wall time for the running clock.
//!
//! Never an alias, never arithmetic between different units without a named conversion. Used by
//! every other module; uses none.

use std::fmt;
use std::sync::Arc;

use crate::limits;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

unit! {
    /// The place of a message in its queue: strictly increasing, never given twice, may skip.
    Offset(u64)
}
unit! {
    /// A number of messages.
    Count(u64)
}
unit! {
    /// A number of bytes.
    Bytes(u64)
}
unit! {
    /// A byte position within one segment file.
    Position(u64)
}
unit! {
    /// The number of a segment file within its queue: 1, 2, 3, ... never used twice.
    SegmentNumber(u64)
}
unit! {
    /// The identity of a producer: a random number that the producer chose; 0 is "none".
    ProducerId(u64)
}
unit! {
    /// The number of a producer's last message, counted by the producer from 1; 0 is "nothing yet".
    Sequence(u64)
}
unit! {
    /// The instance of a producer; an older epoch is fenced off by a newer one.
    Epoch(u32)
}
unit! {
    /// The number of one delivery under a lease: drawn by the server, never 0 for a real one.
    LeaseNumber(u64)
}
unit! {
    /// How often a message was handed over; the first attempt is 1.
    Attempts(u32)
}
unit! {
    /// A time on the monotonic clock of the running process, in microseconds.
    Monotonic(u64)
}
unit! {
    /// A time on the wall clock, in microseconds since 1970-01-01T00:00:00Z.
    WallTime(u64)
}
unit! {
    /// A length of time in microseconds.
    Micros(u64)
}

impl Attempts {
    /// Far above every number of attempts.
    const BURIED: u32 = 1 << 31;

    /// Of a message that is not to be tried again, whatever the limit: more than any that is.
    #[must_use]
    pub fn buried(self) -> Attempts {
        Attempts(self.0 | Self::BURIED)
    }

    /// Whether the message is not to be tried again.
    #[must_use]
    pub fn is_buried(self) -> bool {
        self.0 >= Self::BURIED
    }

    /// How many there were, buried or not.
    #[must_use]
    pub fn made(self) -> Attempts {
        Attempts(self.0 & !Self::BURIED)
    }

    /// Whether no further one is to follow.
    #[must_use]
    pub fn are_spent(self, limit: Option<u32>) -> bool {
        self.is_buried() || limit.is_some_and(|limit| self.0 >= limit)
    }
}

impl Offset {
    /// The offset `count` places further on.
    #[must_use]
    pub fn plus(self, count: Count) -> Offset {
        Offset(self.0 + count.0)
    }
}

impl Monotonic {
    /// The moment `wait` later; saturates at the end of time.
    #[must_use]
    pub fn plus(self, wait: Micros) -> Monotonic {
        Monotonic(self.0.saturating_add(wait.0))
    }

    /// The time from `earlier` to here; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Monotonic) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }
}

impl Micros {
    /// `n` milliseconds.
    #[must_use]
    pub const fn from_millis(n: u64) -> Micros {
        Micros(n * 1_000)
    }

    /// `n` seconds.
    #[must_use]
    pub const fn from_secs(n: u64) -> Micros {
        Micros(n * 1_000_000)
    }

    /// The same length for the standard library.
    #[must_use]
    pub const fn to_duration(self) -> std::time::Duration {
        std::time::Duration::from_micros(self.0)
    }
}

/// How a message came to be settled in a group. Its number stands in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Ending {
    /// A receiver acked it.
    Acked = 1,
    /// It is a dead letter now.
    Dead = 2,
    /// Its time was over.
    Expired = 3,
    /// It went to make room, or for its age.
    Dropped = 4,
    /// It was purged.
    Purged = 5,
    /// A power loss took it.
    Lost = 6,
    /// It is for another group only.
    Others = 7,
}

impl Ending {
    /// All there are, in the order of their numbers, which begin with 1.
    pub const ALL: [Ending; 7] = [
        Ending::Acked,
        Ending::Dead,
        Ending::Expired,
        Ending::Dropped,
        Ending::Purged,
        Ending::Lost,
        Ending::Others,
    ];

    /// The one with this number.
    #[must_use]
    pub fn of_number(number: u32) -> Option<Ending> {
        Ending::ALL.into_iter().find(|ending| *ending as u32 == number)
    }
}

/// How many messages ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u64; Ending::ALL.len()]);

impl Tally {
    /// So many more ended so. What a file says may be any number; so nothing here overflows.
    pub fn add(&mut self, ending: Ending, messages: u64) {
        let count = &mut self.0[ending as usize - 1];
        *count = count.saturating_add(messages);
    }

    /// How many ended so.
    #[must_use]
    pub fn of(&self, ending: Ending) -> Count {
        Count(self.0[ending as usize - 1])
    }

    /// How many ended in any way.
    #[must_use]
    pub fn total(&self) -> Count {
        Count(self.0.iter().fold(0, |all, count| all.saturating_add(*count)))
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_add(theirs);
        }
    }
}

/// One moment on both clocks, as the event loop hands it to the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// On the running clock: for deadlines.
    pub now: Monotonic,
    /// On the wall clock: for what is stored.
    pub wall: WallTime,
}

/// A half-open range of offsets, `start <= end`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct OffsetRange {
    /// The first offset inside.
    pub start: Offset,
    /// The first offset behind.
    pub end: Offset,
}

impl OffsetRange {
    /// The range `start..end`. Panics when `end` lies before `start`.
    #[must_use]
    pub fn new(start: Offset, end: Offset) -> OffsetRange {
        assert!(start <= end, "offset range runs backwards: {start}..{end}");
        OffsetRange { start, end }
    }

    /// Whether no offset lies inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// How many offsets lie inside (an upper bound on messages, as offsets may skip).
    #[must_use]
    pub fn span(&self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether `offset` lies inside.
    #[must_use]
    pub fn contains(&self, offset: Offset) -> bool {
        self.start <= offset && offset < self.end
    }

    /// What both ranges share, if anything.
    #[must_use]
    pub fn intersection(&self, other: &OffsetRange) -> Option<OffsetRange> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(OffsetRange { start, end })
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// The incarnation of a queue: a random UUID, so that a queue that was removed and made again is
/// never taken for the old one.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct QueueId(pub uuid::Uuid);

impl QueueId {
    /// The 16 bytes as they stand in files and frames.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From 16 bytes as they stand in files and frames.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> QueueId {
        QueueId(uuid::Uuid::from_bytes(bytes))
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why a text is no name for a queue or a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than [`limits::NAME_BYTES_MAX`].
    #[error("a name has at most 200 bytes, this one has {0}")]
    TooLong(usize),
    /// A character that is not in `[A-Za-z0-9._-]`.
    #[error("a name consists of A-Z a-z 0-9 . _ - and must not contain {0:?}")]
    BadCharacter(char),
    /// Begins with `.` or `-`.
    #[error("a name must not begin with {0:?}")]
    BadStart(char),
}

/// The name of a queue or of a group: `[A-Za-z0-9._-]`, at most 200 bytes, not starting with
/// `.` or `-`; so it is always a safe file name. Cloning shares the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks `text` and makes it a name.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence for users.
    pub fn new(text: &str) -> Result<Name, NameError> {
        let Some(first) = text.chars().next() else {
            return Err(NameError::Empty);
        };
        if let Some(bad) =
            text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'))
        {
            return Err(NameError::BadCharacter(bad));
        }
        if matches!(first, '.' | '-') {
            return Err(NameError::BadStart(first));
        }
        if text.len() > limits::NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        Ok(Name(Arc::from(text)))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The group of receivers that name none: the one that is made by being used.
pub const DEFAULT_GROUP: &str = "default";

impl Default for Name {
    /// The name of the group that is made by being used.
    fn default() -> Name {
        Name(Arc::from(DEFAULT_GROUP))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::new(text)
    }
}

impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Name::new(&text).map_err(serde::de::Error::custom)
    }
}

/// When the log of a queue is synced, and so when its messages are confirmed and visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SyncPolicy {
    /// fdatasync before every confirmation; concurrent sends share one (group commit).
    #[default]
    Always,
    /// Confirmed when written; synced at least this often while anything is unsynced.
    Interval(Micros),
    /// Confirmed when written; the kernel decides when it reaches the disk.
    Never,
}

impl fmt::Display for SyncPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SyncPolicy::Always => f.write_str("always"),
            SyncPolicy::Never => f.write_str("never"),
            SyncPolicy::Interval(every) if every.0.is_multiple_of(1_000_000) => {
                write!(f, "interval={}s", every.0 / 1_000_000)
            }
            SyncPolicy::Interval(every) if every.0.is_multiple_of(1_000) => {
                write!(f, "interval={}ms", every.0 / 1_000)
            }
            SyncPolicy::Interval(every) => write!(f, "interval={}us", every.0),
        }
    }
}

impl serde::Serialize for SyncPolicy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::str::FromStr for SyncPolicy {
    type Err = String;

    /// Reads `always`, `never`, or `interval=` and a duration such as `200ms`, `1s`, `1m30s`.
    fn from_str(text: &str) -> Result<SyncPolicy, String> {
        match text {
            "always" => Ok(SyncPolicy::Always),
            "never" => Ok(SyncPolicy::Never),
            _ => {
                let every = text
                    .strip_prefix("interval=")
                    .ok_or("a sync policy is always, interval=DURATION or never")?;
                let every = parse_duration(every)?;
                if every < limits::SYNC_INTERVAL_MIN || every > limits::SYNC_INTERVAL_MAX {
                    return Err("a sync interval lies between 1ms and 1h".to_owned());
                }
                Ok(SyncPolicy::Interval(every))
            }
        }
    }
}

impl<'de> serde::Deserialize<'de> for SyncPolicy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<SyncPolicy, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads a duration as users write it: numbers with the units `us ms s m h d`, one after another
/// (`1h30m`, `250ms`, `1.5s`); a bare `0` needs no unit.
///
/// # Errors
/// A sentence that shows how to write it.
pub fn parse_duration(text: &str) -> Result<Micros, String> {
    let most = limits::DURATION_MAX;
    match duration_micros(text) {
        None => Err(format!("{text:?} is no duration; write it as 500ms, 30s, 1h30m or 2d")),
        Some(micros) if micros > most.0 as f64 => {
            let days = most.0 / Micros::from_secs(86_400).0;
            Err(format!("{text:?} is too long; {days}d is the longest duration"))
        }
        Some(micros) => Ok(Micros(micros.round() as u64)),
    }
}

/// How many microseconds a text says that is written as a duration, however long that is; `None` for any
/// other text.
pub(crate) fn duration_micros(text: &str) -> Option<f64> {
    if text == "0" {
        return Some(0.0);
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let micros = match &rest[..unit_len] {
            "us" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            "m" | "min" => 60e6,
            "h" => 3_600e6,
            "d" => 86_400e6,
            _ => return None,
        };
        total += number * micros;
        rest = &rest[unit_len..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_file_names() {
        assert!(Name::new("jobs.dead-1_x").is_ok());
        assert_eq!(Name::new(""), Err(NameError::Empty));
        assert_eq!(Name::new(".x"), Err(NameError::BadStart('.')));
        assert_eq!(Name::new("-x"), Err(NameError::BadStart('-')));
        assert_eq!(Name::new("a/b"), Err(NameError::BadCharacter('/')));
        assert_eq!(Name::new("ä"), Err(NameError::BadCharacter('ä')));
        assert!(Name::new(&"x".repeat(200)).is_ok());
        assert_eq!(Name::new(&"x".repeat(201)), Err(NameError::TooLong(201)));
    }

    /// libFuzzer, with overflow checks, found it in the committed corpus of journals: counts that a
    /// file says may be any, and a panic is no answer to them (G11).
    #[test]
    fn tallies_of_any_counts_add_up() {
        let mut tally = Tally::default();
        tally.add(Ending::Acked, u64::MAX);
        tally.add(Ending::Acked, 1);
        tally.add(Ending::Lost, 1);
        let same = tally;
        tally += same;
        assert_eq!((tally.of(Ending::Acked), tally.of(Ending::Lost)), (Count(u64::MAX), Count(2)));
        assert_eq!(tally.total(), Count(u64::MAX));
    }

    #[test]
    fn durations_read_as_written() {
        assert_eq!(parse_duration("1h30m"), Ok(Micros::from_secs(5400)));
        assert_eq!(parse_duration("250ms"), Ok(Micros(250_000)));
        assert_eq!(parse_duration("1.5s"), Ok(Micros(1_500_000)));
        assert_eq!(parse_duration("0"), Ok(Micros(0)));
        for bad in ["", "s", "5", "1x", "1..2s", "99999999999d", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sync_policies_round_trip() {
        for text in ["always", "never", "interval=200ms", "interval=2s", "interval=1500us"] {
            assert_eq!(text.parse::<SyncPolicy>().map(|p| p.to_string()), Ok(text.to_owned()));
        }
        assert!("interval=0".parse::<SyncPolicy>().is_err());
        assert!("sometimes".parse::<SyncPolicy>().is_err());
    }
}
