//! The dead letter: a message as it goes to the queue of dead letters at its engine, with the headers
//! that a store's own dead letters have (mq(7)). Pure.

use super::retrying::Tried;
use crate::batch::dead;
use crate::limits;
use crate::remote::message::Outgoing;
use crate::units::{DEFAULT_GROUP, WallTime};
use crate::wire::Nack;

/// Where the dead letters of a group go, unless the URL says it.
#[must_use]
pub fn queue_of(queue: &str, group: &str) -> String {
    match group {
        DEFAULT_GROUP => format!("{queue}.dead"),
        group => format!("{queue}.{group}.dead"),
    }
}

/// The letter for a message of `queue` that failed in `group`; `number` is its own with its sender.
#[must_use]
pub fn letter(
    tried: &Tried,
    queue: &str,
    group: &str,
    offset: u64,
    nack: &Nack,
    now: WallTime,
    number: u64,
) -> Outgoing {
    let mut facts = tried.message.facts.as_deref().cloned().unwrap_or_default();
    facts.headers.retain(|(name, _)| !name.starts_with(dead::PREFIX));
    facts.not_before = None;
    // A dead letter that vanished by itself would be of no use.
    let expires = facts.expires.take();
    let mut add = |name: &str, value: String| facts.headers.push((name.to_owned(), value));
    add(dead::QUEUE, queue.to_owned());
    add(dead::GROUP, group.to_owned());
    add(dead::OFFSET, offset.to_string());
    add(dead::ATTEMPTS, tried.attempt.to_string());
    let reason = if nack.reason.is_empty() { "delivery limit" } else { &nack.reason };
    add(dead::REASON, reason.to_owned());
    if let Some(first) = tried.failed_first {
        add(dead::FIRST, dead::time_text(first));
    }
    add(dead::TIME, dead::time_text(now));
    if let Some(expires) = expires {
        add(dead::EXPIRES, dead::time_text(expires));
    }
    let taken: usize = facts.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if !nack.stderr.is_empty() && taken + nack.stderr.len() + 64 <= limits::ATTRIBUTE_BYTES_MAX {
        facts.headers.push((dead::STDERR.to_owned(), nack.stderr.clone()));
    }
    Outgoing { body: tried.message.body.clone(), facts: Some(Box::new(facts)), number }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::message::{Facts, Incoming};
    use bytes::Bytes;

    #[test]
    fn a_letter_says_where_it_is_from_and_why() {
        let facts = Facts {
            key: Some("k".to_owned()),
            headers: vec![
                ("own".to_owned(), "x".to_owned()),
                (dead::QUEUE.to_owned(), "old".to_owned()),
            ],
            expires: Some(WallTime(1_700_000_000_000_000)),
            ..Facts::default()
        };
        let message = Incoming {
            body: Bytes::from_static(b"body"),
            facts: Some(Box::new(facts)),
            attempt: 0,
            redelivered: false,
        };
        let tried = Tried { message, attempt: 3, failed_first: Some(WallTime(1)), begun: true };
        let nack = Nack {
            reason: "exit status 1".to_owned(),
            stderr: "no such host\n".to_owned(),
            ..Nack::default()
        };
        let letter = letter(&tried, "jobs", "default", 7, &nack, WallTime(2), 5);
        let facts = letter.facts.expect("facts");
        let header = |name: &str| {
            let found: Vec<&str> =
                facts.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
            found.join("|")
        };
        assert_eq!((letter.number, facts.key.as_deref(), facts.expires), (5, Some("k"), None));
        assert_eq!((header("own"), header(dead::QUEUE)), ("x".to_owned(), "jobs".to_owned()));
        assert_eq!(
            (header(dead::ATTEMPTS), header(dead::OFFSET)),
            ("3".to_owned(), "7".to_owned())
        );
        assert_eq!(header(dead::REASON), "exit status 1");
        assert_eq!(header(dead::STDERR), "no such host\n");
        assert_eq!(header(dead::EXPIRES), "2023-11-14T22:13:20.000000Z");
    }
}
