//! What stands beside a body, in NATS's headers and back.
//!
//! | fact | there |
//! |---|---|
//! | id | `Nats-Msg-Id`, by which the stream knows a message again; without one: `mq-SENDER-NUMBER` |
//! | key, event time, expires | headers `mq-key`, `mq-time`, `mq-expires` |
//! | headers | headers; a name that comes twice has both values |

use async_nats::header::{HeaderMap, HeaderName, HeaderValue, NATS_MESSAGE_ID};

use crate::remote::failure::{Failure, Kind};
use crate::remote::message::{EXPIRES_HEADER, Facts, KEY_HEADER, Outgoing, TIME_HEADER, time_text};

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

/// The headers of a message.
pub(super) fn of(message: &Outgoing, sender: u64) -> Result<HeaderMap, Failure> {
    let mut map = HeaderMap::new();
    let Some(facts) = &message.facts else {
        map.insert(NATS_MESSAGE_ID, our_id(sender, message.number));
        return Ok(map);
    };
    for (name, value) in &facts.headers {
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
        Some(id) => value_of("the id", id)?,
        None => our_id(sender, message.number),
    };
    map.insert(NATS_MESSAGE_ID, id);
    Ok(map)
}

fn our_id(sender: u64, number: u64) -> HeaderValue {
    format!("{OURS}{sender:016x}-{number}").parse().expect("letters and digits")
}

fn is_ours(id: &str) -> bool {
    let parts = id.strip_prefix(OURS).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(sender, number)| {
        sender.len() == 16
            && sender.bytes().all(|byte| byte.is_ascii_hexdigit())
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// What headers say.
pub(super) fn facts(map: Option<&HeaderMap>) -> Facts {
    let mut facts = Facts::default();
    for (name, values) in map.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        for value in values {
            let value = value.as_str();
            if name == "Nats-Msg-Id" {
                if !is_ours(value) {
                    facts.id = Some(value.to_owned());
                }
            } else if !facts.take_header(name, value) {
                facts.headers.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::WallTime;

    fn outgoing(facts: Option<Facts>) -> Outgoing {
        Outgoing { body: "x".into(), facts: facts.map(Box::new), number: 3 }
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
        let map = of(&outgoing(Some(wanted.clone())), 7).expect("they fit");
        assert_eq!(facts(Some(&map)), wanted);
        let map = of(&outgoing(None), 7).expect("it fits");
        assert_eq!(map.get("Nats-Msg-Id").expect("one").as_str(), "mq-0000000000000007-3");
        assert_eq!(facts(Some(&map)), Facts::default());
    }

    #[test]
    fn what_does_not_fit_is_bad_input() {
        for (name, value) in [("a:b", "1"), ("a", "1\n2")] {
            let headers = vec![(name.to_owned(), value.to_owned())];
            let message = outgoing(Some(Facts { headers, ..Facts::default() }));
            assert_eq!(of(&message, 7).expect_err("refused").kind, Kind::BadInput);
        }
    }
}
