//! What a user can set on a queue, and where a group can begin to read.
//!
//! Plain values: how they are written, their defaults, their bounds. The log keeps them in
//! `queue.json`, the wire carries them, the broker and the engine obey them. Does nothing itself.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::units::{Count, Micros, Name, Offset, SyncPolicy, WallTime, parse_duration};
use crate::url::Url;

/// What becomes of messages that every group has settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retention {
    /// They are gone.
    #[default]
    Acked,
    /// They are kept, for replay, until the queue's age, bytes or count bring them to an end.
    Log,
}

/// What happens to a message that finds its queue at its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// It waits for room: back-pressure up to the producer's own pipe.
    #[default]
    Block,
    /// It is refused.
    Reject,
    /// The oldest ones make room for it.
    DropOldest,
}

/// How long a queue remembers the ids of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdWindow {
    /// The last so many.
    Count(u64),
    /// Those of the last so long.
    Time(Micros),
}

/// The settings of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// When the queue is synced.
    #[serde(default)]
    pub sync: SyncPolicy,
    /// What becomes of settled messages.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retain: Retention,
    /// With [`Retention::Log`]: how old messages get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Micros>,
    /// Bytes of messages that the queue holds. With [`Retention::Log`] the oldest go; else
    /// `overflow` decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Messages that the queue holds; as `max_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_messages: Option<u64>,
    /// What happens at those limits.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overflow: Overflow,
    /// Attempts after which a message is a dead letter; absent: the default. 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_limit: Option<u32>,
    /// Where dead letters go; absent: to `NAME.dead` (or `NAME.GROUP.dead`), and messages that
    /// expired or were dropped go nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Name>,
    /// A message whose id is remembered is not stored again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_ids: Option<IdWindow>,
    /// Keys of which the queue knows whether a message is pending: at most so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_keys: Option<u64>,
    /// The queue lives elsewhere, at an engine: clients are sent there. Shown without its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Url>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Settings {
    /// The same for those who only look: without a password.
    #[must_use]
    pub fn shown(&self) -> Settings {
        Settings { at: self.at.as_ref().map(Url::without_password), ..self.clone() }
    }

    /// The attempts after which a message is a dead letter, if there is such a number.
    #[must_use]
    pub fn delivery_limit(&self) -> Option<u32> {
        match self.delivery_limit {
            None => Some(limits::DELIVERY_LIMIT_DEFAULT),
            Some(0) => None,
            Some(limit) => Some(limit),
        }
    }
}

/// What a declaration asks for; what is absent stays as it is, or is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<SyncPolicy>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<Retention>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Micros>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_messages: Option<u64>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflow: Option<Overflow>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_limit: Option<u32>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Name>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_ids: Option<IdWindow>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_keys: Option<u64>,
    /// See [`Settings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Url>,
}

impl Wanted {
    /// `settings` with what is asked for. A limit of 0 is none.
    #[must_use]
    pub fn applied_to(&self, settings: &Settings) -> Settings {
        let Wanted { dead_letter, at, .. } = self.clone();
        Settings {
            sync: self.sync.unwrap_or(settings.sync),
            retain: self.retain.unwrap_or(settings.retain),
            max_age: self.max_age.or(settings.max_age).filter(|most| most.0 > 0),
            max_bytes: self.max_bytes.or(settings.max_bytes).filter(|most| *most > 0),
            max_messages: self.max_messages.or(settings.max_messages).filter(|most| *most > 0),
            overflow: self.overflow.unwrap_or(settings.overflow),
            delivery_limit: self.delivery_limit.or(settings.delivery_limit),
            dead_letter: dead_letter.or_else(|| settings.dead_letter.clone()),
            unique_ids: self.unique_ids.or(settings.unique_ids),
            unique_keys: self.unique_keys.or(settings.unique_keys).filter(|most| *most > 0),
            at: at.or_else(|| settings.at.clone()),
        }
    }
}

/// Where a new group begins to read, or an old one is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// At the oldest message that is there.
    Oldest,
    /// Behind the newest.
    Newest,
    /// At this offset.
    Offset(Offset),
    /// At the first message that was stored at this time or later.
    Time(WallTime),
    /// So many messages before the end.
    Last(Count),
}

/// The back-off of a receiver's failed messages: the first pause, doubled with each attempt up to
/// the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// After the first attempt.
    pub first: Micros,
    /// At most.
    pub max: Micros,
}

impl Backoff {
    /// The pause after so many attempts: the first one, doubled with each up to the longest.
    #[must_use]
    pub fn after(&self, attempts: u32) -> Micros {
        let doubled = self.first.0.saturating_mul(1 << attempts.saturating_sub(1).min(40));
        Micros(doubled.min(self.max.0))
    }

    /// How long a message rests after so many attempts: that pause, at most
    /// [`limits::BACKOFF_LONGEST`], and up to a quarter more, so that what failed together does not
    /// come again together. The quarter depends on the message and the attempt only.
    #[must_use]
    pub fn rest(&self, offset: Offset, attempts: u32) -> Micros {
        let whole = self.after(attempts).min(limits::BACKOFF_LONGEST).0;
        // splitmix64: every bit of the input reaches every bit of the outcome.
        let mut mixed = offset.0 ^ (u64::from(attempts) << 48);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = (mixed ^ (mixed >> 31)) >> 32;
        Micros(whole + ((u128::from(whole / 4) * u128::from(share)) >> 32) as u64)
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { first: limits::BACKOFF_FIRST, max: limits::BACKOFF_MAX }
    }
}

impl FromStr for Backoff {
    type Err = String;

    /// Reads `1s..5m`, or one duration for a pause that does not grow.
    fn from_str(text: &str) -> Result<Backoff, String> {
        let (first, max) = text.split_once("..").unwrap_or((text, text));
        let (first, max) = (parse_duration(first)?, parse_duration(max)?);
        if first > max {
            return Err(format!("{text:?} runs backwards; write it as 1s..5m"));
        }
        Ok(Backoff { first, max })
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Retention::Acked => "acked",
            Retention::Log => "log",
        })
    }
}

impl FromStr for Retention {
    type Err = String;

    fn from_str(text: &str) -> Result<Retention, String> {
        match text {
            "acked" => Ok(Retention::Acked),
            "log" => Ok(Retention::Log),
            _ => Err("what is retained is acked or log".to_owned()),
        }
    }
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Overflow::Block => "block",
            Overflow::Reject => "reject",
            Overflow::DropOldest => "drop-oldest",
        })
    }
}

impl FromStr for Overflow {
    type Err = String;

    fn from_str(text: &str) -> Result<Overflow, String> {
        match text {
            "block" => Ok(Overflow::Block),
            "reject" => Ok(Overflow::Reject),
            "drop-oldest" => Ok(Overflow::DropOldest),
            _ => Err("an overflow is block, reject or drop-oldest".to_owned()),
        }
    }
}

impl fmt::Display for IdWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdWindow::Count(count) => write!(f, "{count}"),
            IdWindow::Time(Micros(micros)) if micros.is_multiple_of(1_000_000) => {
                write!(f, "{}s", micros / 1_000_000)
            }
            IdWindow::Time(Micros(micros)) => write!(f, "{micros}us"),
        }
    }
}

impl FromStr for IdWindow {
    type Err = String;

    /// Reads a number of ids, or a duration.
    fn from_str(text: &str) -> Result<IdWindow, String> {
        let window = match text.parse() {
            Ok(count) => IdWindow::Count(count),
            Err(_) => IdWindow::Time(parse_duration(text).map_err(|_| {
                format!("{text:?} is neither a number of ids nor a duration such as 1h")
            })?),
        };
        match window {
            IdWindow::Count(0) | IdWindow::Time(Micros(0)) => {
                Err("a window for ids must not be empty".to_owned())
            }
            IdWindow::Count(count) if count > limits::UNIQUE_IDS_MAX => {
                Err(format!("a queue remembers at most {} ids", limits::UNIQUE_IDS_MAX))
            }
            window => Ok(window),
        }
    }
}

impl Serialize for IdWindow {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdWindow {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<IdWindow, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_backoffs_read_as_written() {
        for text in ["1000", "60s", "1500us"] {
            assert_eq!(text.parse::<IdWindow>().map(|w| w.to_string()), Ok(text.to_owned()));
        }
        for bad in ["0", "0s", "x", "99999999999"] {
            assert!(bad.parse::<IdWindow>().is_err(), "{bad}");
        }
        assert_eq!("1s..5m".parse(), Ok(Backoff::default()));
        assert!("5m..1s".parse::<Backoff>().is_err());
    }

    #[test]
    fn settings_that_are_not_given_are_left_out_and_read_as_defaults() {
        let plain = serde_json::to_string(&Settings::default()).unwrap();
        assert_eq!(plain, r#"{"sync":"always"}"#);
        assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), Settings::default());
        let wanted = Wanted { max_messages: Some(7), ..Wanted::default() };
        let limited = wanted.applied_to(&Settings::default());
        assert_eq!(limited.max_messages, Some(7));
        let without = Wanted { max_messages: Some(0), ..Wanted::default() };
        assert_eq!(without.applied_to(&limited), Settings::default());
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_by_a_quarter() {
        let backoff = Backoff { first: Micros(1_000), max: Micros(6_000) };
        for (attempts, whole) in [(1, 1_000), (2, 2_000), (3, 4_000), (4, 6_000), (200, 6_000)] {
            let pauses: Vec<u64> =
                (0..1_000).map(|n| backoff.rest(Offset(n), attempts).0).collect();
            assert!(pauses.iter().all(|pause| (whole..=whole + whole / 4).contains(pause)));
            let (low, high) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
            assert!(high - low > whole / 5, "{low} to {high} after {attempts}");
        }
        let endless = Backoff { first: Micros(u64::MAX), max: Micros(u64::MAX) };
        let longest = limits::BACKOFF_LONGEST.0;
        assert!(endless.rest(Offset(1), 9).0 <= longest + longest / 4);
    }
}
