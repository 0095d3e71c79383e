//! What stands beside a body, in NATS's headers and back.
//!
//! | fact | there |
//! |---|---|
//! | id | `Nats-Msg-Id`, by which the stream knows a message again |
//! | key, event time, expires | headers `mq-key`, `mq-time`, `mq-expires` |
//! | headers | headers; a name that comes twice has both values |
//! | headers of dead letters | the same, with `\n`, `\r` and `\\` for what one line cannot have |
//!
//! What a stream knows again, it drops, whatever queue of the stream it is for. So where it is not the id that
//! says whether two messages are the same one, `Nats-Msg-Id` is another, and the id is in the header `mq-id`:
//!
//! | message | `Nats-Msg-Id` |
//! |---|---|
//! | with an id, in a stream that holds other queues too | `SUBJECT:ID` |
//! | a dead letter, or one that was brought back: its message was there before, and is another | as without an id |
//! | without an id | `mq-SENDER-NUMBER` |
//! | the same, of a sender with a name, who may come back with another input | `mq-SENDER-NUMBER-CONTENT` |

use async_nats::header::{HeaderMap, HeaderName, HeaderValue, NATS_MESSAGE_ID};
use xxhash_rust::xxh3::Xxh3;

use crate::batch::dead;
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::{
    EXPIRES_HEADER, Facts, ID_HEADER, KEY_HEADER, Outgoing, TIME_HEADER, time_text,
};

/// Ids that name a message to the stream and are nobody's own begin so.
const OURS: &str = "mq-";

fn name_of(name: &str) -> Result<HeaderName, Failure> {
    name.parse().map_err(|_| {
        let why = format!(
            "NATS cannot have a header of the name {name:?}: no colons, spaces or controls"
        );
        Failure::new(Kind::BadInput, why)
    })
}

fn value_of(name: &str, value: &str) -> Result<HeaderValue, Failure> {
    value.parse().map_err(|_| {
        let why = format!("NATS has values of headers on one line, and that of {name} has more");
        Failure::new(Kind::BadInput, why)
    })
}

/// A value of a header of dead letters on one line.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('\n', r"\n").replace('\r', r"\r")
}

/// The value that [`escaped`] was made of; what is none of ours stays as it is.
fn unescaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((front, behind)) = rest.split_once('\\') {
        out.push_str(front);
        let (meant, taken) = match behind.bytes().next() {
            Some(b'n') => ('\n', 1),
            Some(b'r') => ('\r', 1),
            Some(b'\\') => ('\\', 1),
            _ => ('\\', 0),
        };
        out.push(meant);
        rest = &behind[taken..];
    }
    out + rest
}

/// What names messages to their stream.
#[derive(Clone, Debug)]
pub(super) struct Naming {
    pub(super) sender: u64,
    /// The sender has a name that it comes back under.
    pub(super) is_named: bool,
    pub(super) subject: String,
    /// The stream holds no other subject.
    pub(super) is_alone: bool,
}

impl Naming {
    /// The headers of a message, which has at most so many bytes with them.
    ///
    /// # Errors
    /// What does not fit into a header.
    pub(super) fn headers(&self, message: &Outgoing, most: usize) -> Result<HeaderMap, Failure> {
        let mut map = HeaderMap::new();
        let Some(facts) = &message.facts else {
            map.insert(NATS_MESSAGE_ID, self.our_id(message));
            return Ok(map);
        };
        let mut is_letter = false;
        for (name, value) in &facts.headers {
            let is_dead = name.starts_with(dead::PREFIX);
            is_letter |= is_dead;
            let value = if is_dead { &escaped(value) } else { value };
            map.append(name_of(name)?, value_of(name, value)?);
        }
        let (time, expires) = (facts.event_time.map(time_text), facts.expires.map(time_text));
        for (name, value) in
            [(KEY_HEADER, &facts.key), (TIME_HEADER, &time), (EXPIRES_HEADER, &expires)]
        {
            if let Some(value) = value {
                map.insert(name_of(name)?, value_of(name, value)?);
            }
        }
        let id = match &facts.id {
            Some(id) if self.is_alone && !is_letter => value_of("the id", id)?,
            Some(id) => {
                map.insert(name_of(ID_HEADER)?, value_of("the id", id)?);
                match is_letter {
                    true => self.our_id(message),
                    false => value_of("the id", &format!("{}:{id}", self.subject))?,
                }
            }
            None => self.our_id(message),
        };
        map.insert(NATS_MESSAGE_ID, id);
        if is_letter {
            make_fit(&mut map, most.saturating_sub(message.body.len()));
        }
        Ok(map)
    }

    fn our_id(&self, message: &Outgoing) -> HeaderValue {
        let mut id = format!("{OURS}{:016x}-{}", self.sender, message.number);
        if self.is_named {
            id += &format!("-{:032x}", self.content(message));
        }
        id.parse().expect("letters and digits")
    }

    /// A checksum of all that a message is.
    fn content(&self, message: &Outgoing) -> u128 {
        let mut sum = Xxh3::new();
        let mut add = |text: &[u8]| {
            sum.update(&(text.len() as u64).to_le_bytes());
            sum.update(text);
        };
        add(self.subject.as_bytes());
        add(&message.body);
        if let Some(facts) = &message.facts {
            let times = [facts.event_time, facts.expires].map(|time| time.map(time_text));
            for text in [&facts.key, &facts.id, &times[0], &times[1]] {
                add(&[u8::from(text.is_some())]);
                add(text.as_deref().unwrap_or_default().as_bytes());
            }
            for (name, value) in &facts.headers {
                add(name.as_bytes());
                add(value.as_bytes());
            }
        }
        sum.digest128()
    }
}

/// Leaves out what a letter says of itself, as far as it would not be stored with that: first what its command
/// said, then the longest.
fn make_fit(map: &mut HeaderMap, most: usize) {
    let bytes = |name: &HeaderName, values: &Vec<HeaderValue>| -> usize {
        let name: &str = name.as_ref();
        values.iter().map(|value| name.len() + value.as_str().len() + 4).sum()
    };
    while "NATS/1.0\r\n\r\n".len() + map.iter().map(|(n, v)| bytes(n, v)).sum::<usize>() > most {
        let of_letter = map.iter().filter(|(name, _)| name.to_string().starts_with(dead::PREFIX));
        let longest = of_letter.max_by_key(|(name, values)| {
            let name: &str = name.as_ref();
            (name == dead::STDERR, values.iter().map(|value| value.as_str().len()).sum::<usize>())
        });
        let Some(longest) = longest.map(|(name, _)| name.clone()) else { return };
        let left = map.iter().filter(|(name, _)| **name != longest);
        let left: Vec<_> = left.map(|(name, values)| (name.clone(), values.clone())).collect();
        *map = HeaderMap::new();
        for (name, values) in left {
            values.into_iter().for_each(|value| map.append(name.clone(), value));
        }
    }
}

fn is_ours(id: &str) -> bool {
    let mut parts = id.strip_prefix(OURS).into_iter().flat_map(|rest| rest.split('-'));
    let is_hex =
        |part: &str, len| part.len() == len && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    parts.next().is_some_and(|sender| is_hex(sender, 16))
        && parts.next().is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        && parts.next().is_none_or(|content| is_hex(content, 32))
        && parts.next().is_none()
}

/// What headers say.
pub(super) fn facts(map: Option<&HeaderMap>) -> Facts {
    let mut facts = Facts::default();
    let mut named = None;
    for (name, values) in map.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        for value in values {
            let value = value.as_str();
            if name == "Nats-Msg-Id" {
                named = Some(value).filter(|id| !is_ours(id));
            } else if name.starts_with(dead::PREFIX) {
                facts.headers.push((name.to_owned(), unescaped(value)));
            } else if !facts.take_header(name, value) {
                facts.headers.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    facts.id = facts.id.or(named.map(str::to_owned));
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::WallTime;

    const MOST: usize = 1 << 20;

    fn outgoing(facts: Option<Facts>) -> Outgoing {
        Outgoing { body: "x".into(), facts: facts.map(Box::new), number: 3 }
    }

    fn naming() -> Naming {
        Naming { sender: 7, is_named: false, subject: "a.b".into(), is_alone: true }
    }

    fn id_of(naming: &Naming, message: &Outgoing) -> String {
        let map = naming.headers(message, MOST).expect("they fit");
        map.get("Nats-Msg-Id").expect("one").as_str().to_owned()
    }

    #[test]
    fn facts_come_back_as_they_were() {
        let wanted = Facts {
            key: Some("k".into()),
            id: Some("i".into()),
            headers: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
            event_time: Some(WallTime(1_700_000_000_123_456)),
            ..Facts::default()
        };
        let shared = Naming { is_alone: false, ..naming() };
        for (naming, id) in [(naming(), "i"), (shared, "a.b:i")] {
            let message = outgoing(Some(wanted.clone()));
            let map = naming.headers(&message, MOST).expect("they fit");
            assert_eq!((facts(Some(&map)), id_of(&naming, &message)), (wanted.clone(), id.into()));
            let map = naming.headers(&outgoing(None), MOST).expect("it fits");
            assert_eq!(id_of(&naming, &outgoing(None)), "mq-0000000000000007-3");
            assert_eq!(facts(Some(&map)), Facts::default());
        }
    }

    #[test]
    fn what_a_named_sender_sends_is_known_by_its_content_too() {
        let named = Naming { is_named: true, ..naming() };
        let with_key =
            |key: &str| outgoing(Some(Facts { key: Some(key.to_owned()), ..Facts::default() }));
        let elsewhere = Naming { subject: "a.c".into(), ..named.clone() };
        let ids = [
            id_of(&named, &outgoing(None)),
            id_of(&named, &Outgoing { body: "y".into(), ..outgoing(None) }),
            id_of(&named, &with_key("k")),
            id_of(&named, &with_key("l")),
            id_of(&elsewhere, &outgoing(None)),
        ];
        let each: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert_eq!(each.len(), ids.len(), "{ids:?}");
        assert!(ids.iter().all(|id| is_ours(id)), "{ids:?}");
        // A rerun by another version is the same.
        assert_eq!(ids[0], "mq-0000000000000007-3-b0466caa7258629d0b8d5940092e033b");
    }

    #[test]
    fn a_letter_is_another_message_than_the_one_that_died() {
        let headers = vec![
            (dead::STDERR.to_owned(), "one\r\n\\n\\\\two\n".to_owned()),
            (dead::REASON.to_owned(), r"a\d".to_owned()),
        ];
        let wanted = Facts { id: Some("i".into()), headers, ..Facts::default() };
        let letter = outgoing(Some(wanted.clone()));
        assert_eq!(id_of(&naming(), &letter), "mq-0000000000000007-3");
        let mut found = facts(Some(&naming().headers(&letter, MOST).expect("it fits")));
        found.headers.sort_by(|a, b| b.cmp(a));
        assert_eq!(found, wanted);
        let small = naming().headers(&letter, 110).expect("it fits");
        assert!(small.get(dead::STDERR).is_none() && small.get(dead::REASON).is_some());
        let none = naming().headers(&letter, 0).expect("it has what it needs");
        assert!(none.get(dead::REASON).is_none() && none.get("Nats-Msg-Id").is_some());
    }

    #[test]
    fn what_others_wrote_is_not_unescaped() {
        for text in [r"\", r"a\d", "", r"\é", "ä"] {
            assert_eq!(unescaped(text), text);
            assert_eq!(unescaped(&escaped(text)), text);
        }
    }

    #[test]
    fn what_does_not_fit_is_bad_input() {
        for (name, value) in [("a:b", "1"), ("a", "1\n2")] {
            let headers = vec![(name.to_owned(), value.to_owned())];
            let message = outgoing(Some(Facts { headers, ..Facts::default() }));
            assert_eq!(naming().headers(&message, MOST).expect_err("refused").kind, Kind::BadInput);
        }
    }
}
