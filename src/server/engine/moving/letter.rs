//! The dead letter: a message as it goes into a dead-letter queue, and as it comes back.
//!
//! A letter is the message with headers that say where it is from and why it is dead. Pure.
//! Called by the movers; what the headers are called stands in `mq.7`.

use crate::batch::dead::{self, PREFIX, time_text};
pub use crate::batch::dead::{GROUP, QUEUE, REASON};
use crate::batch::{self, Record, push_attribute, split_header, tags};
use crate::limits;
use crate::units::{Attempts, Name, Offset, WallTime};

/// What is known of a message's death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// The queue.
    pub queue: Name,
    /// The group.
    pub group: Name,
    /// The message.
    pub offset: Offset,
    /// How often it was handed over.
    pub attempts: Attempts,
    /// Why it is dead, in a few words.
    pub reason: String,
    /// What its command said last on stderr.
    pub stderr: String,
    /// When it failed first, if that is known.
    pub first: Option<WallTime>,
    /// When it failed last, or was found dead.
    pub last: WallTime,
}

/// The attributes of the letter for a message with `attributes`.
///
/// Left out is what spoke of its life in the old queue: the group that it was for, when it
/// expires (a dead letter that vanished by itself would be of no use), and earlier deaths.
#[must_use]
pub fn attributes_of_letter(attributes: &[u8], death: &Death) -> Vec<u8> {
    let mut out = Vec::with_capacity(attributes.len() + 256 + death.stderr.len());
    let mut expires = None;
    for (tag, value) in sound(attributes) {
        match tag {
            tags::EXPIRES => expires = value.try_into().ok().map(u64::from_le_bytes),
            tags::ONLY_GROUP => {}
            tags::HEADER if is_dead_header(value) => {}
            _ => push_attribute(&mut out, tag, value),
        }
    }
    push_header(&mut out, QUEUE, death.queue.as_str());
    push_header(&mut out, GROUP, death.group.as_str());
    push_header(&mut out, dead::OFFSET, &death.offset.to_string());
    push_header(&mut out, dead::ATTEMPTS, &death.attempts.to_string());
    push_header(&mut out, REASON, &death.reason);
    if let Some(first) = death.first {
        push_header(&mut out, dead::FIRST, &time_text(first));
    }
    push_header(&mut out, dead::TIME, &time_text(death.last));
    if let Some(expires) = expires {
        push_header(&mut out, dead::EXPIRES, &time_text(WallTime(expires)));
    }
    // A message whose own attributes take all the room does without.
    let fits = out.len() + death.stderr.len() + 64 <= limits::ATTRIBUTE_BYTES_MAX;
    if !death.stderr.is_empty() && fits {
        push_header(&mut out, dead::STDERR, &death.stderr);
    }
    out
}

/// The attributes of a letter that goes back: without what made it one; for `group` only, if it
/// is given.
#[must_use]
pub fn attributes_back(attributes: &[u8], group: Option<&Name>) -> Vec<u8> {
    let mut out = Vec::with_capacity(attributes.len());
    for (tag, value) in sound(attributes) {
        let dead = tag == tags::HEADER && is_dead_header(value);
        if !dead && tag != tags::ONLY_GROUP {
            push_attribute(&mut out, tag, value);
        }
    }
    if let Some(group) = group {
        push_attribute(&mut out, tags::ONLY_GROUP, group.as_str().as_bytes());
    }
    out
}

/// The value of a header of a message with these attributes.
#[must_use]
pub fn header<'a>(attributes: &'a [u8], name: &str) -> Option<&'a str> {
    let of_name = |(tag, value): (u8, &'a [u8])| {
        let (found, value) = (tag == tags::HEADER).then(|| split_header(value))??;
        (found == name.as_bytes()).then(|| std::str::from_utf8(value).ok())?
    };
    sound(attributes).find_map(of_name)
}

fn sound(attributes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    Record { attribute_bytes: attributes, body: &[] }.attributes().map_while(Result::ok)
}

fn is_dead_header(value: &[u8]) -> bool {
    split_header(value).is_some_and(|(name, _)| name.starts_with(PREFIX.as_bytes()))
}

fn push_header(out: &mut Vec<u8>, name: &str, value: &str) {
    batch::push_header(out, name, value).expect("a short name");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death() -> Death {
        Death {
            queue: Name::new("jobs").expect("a name"),
            group: Name::default(),
            offset: Offset(7),
            attempts: Attempts(3),
            reason: "exit status 1".to_owned(),
            stderr: "no such host\n".to_owned(),
            first: Some(WallTime(1_700_000_000_000_000)),
            last: WallTime(1_700_000_001_500_000),
        }
    }

    #[test]
    fn a_letter_says_why_and_goes_back_as_it_came() {
        let mut own = Vec::new();
        push_attribute(&mut own, tags::KEY, b"k");
        push_header(&mut own, "colour", "blue");
        let letter = attributes_of_letter(&own, &death());
        assert_eq!(header(&letter, QUEUE), Some("jobs"));
        assert_eq!(header(&letter, GROUP), Some("default"));
        assert_eq!(header(&letter, REASON), Some("exit status 1"));
        assert_eq!(header(&letter, "mq-dead-attempts"), Some("3"));
        assert_eq!(header(&letter, "mq-dead-time"), Some("2023-11-14T22:13:21.500000Z"));
        assert_eq!(header(&letter, "mq-dead-stderr"), Some("no such host\n"));
        assert_eq!(header(&letter, "colour"), Some("blue"));
        assert_eq!(attributes_back(&letter, None), own);
        // Dead again, it says so once.
        let again = attributes_of_letter(&letter, &death());
        assert_eq!(again, letter);
        let back = attributes_back(&letter, Some(&Name::default()));
        let record = Record { attribute_bytes: &back, body: &[] };
        assert_eq!(record.only_group(), Some("default"));
        assert_eq!(attributes_back(&back, None), own);
    }

    #[test]
    fn a_letter_does_not_expire() {
        let mut own = Vec::new();
        push_attribute(&mut own, tags::EXPIRES, &1_700_000_000_000_000u64.to_le_bytes());
        let letter = attributes_of_letter(&own, &death());
        let record = Record { attribute_bytes: &letter, body: &[] };
        assert_eq!(record.expires(), None);
        assert_eq!(header(&letter, "mq-dead-expires"), Some("2023-11-14T22:13:20.000000Z"));
    }
}
