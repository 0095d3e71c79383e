//! What stands beside a body, in STOMP's headers and back.
//!
//! | fact | there |
//! |---|---|
//! | key, id, event time, expires | headers `mq-key`, `mq-id`, `mq-time`, `mq-expires` |
//! | expires | also `expires`, in milliseconds since 1970, which the broker heeds |
//! | headers | headers; ActiveMQ gives `priority`, `type`, `correlation-id`, `reply-to` a meaning |
//!
//! A message without an id of its own is known by the broker's `message-id`.

use super::frame::{Encoder, Frame};
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::{
    EXPIRES_HEADER, Facts, ID_HEADER, Incoming, KEY_HEADER, TIME_HEADER, time_text,
};
use crate::units::WallTime;

/// Headers that say how a frame is to be taken: nobody else's.
const OF_FRAMES: [&str; 12] = [
    "ack",
    "browser",
    "content-length",
    "destination",
    "expires",
    "message-id",
    "persistent",
    "receipt",
    "redelivered",
    "subscription",
    "timestamp",
    "transaction",
];

/// The priority of a message to which nobody gave one.
const PRIORITY: &str = "4";

/// Checks that facts can be had there.
pub(super) fn check(facts: &Facts) -> Result<(), Failure> {
    let bad = |why: String| Err(Failure::new(Kind::BadInput, why));
    for (place, (name, _)) in facts.headers.iter().enumerate() {
        if OF_FRAMES.contains(&name.as_str()) || name.is_empty() {
            return bad(format!("STOMP has its own use for a header of the name {name:?}"));
        }
        if facts.headers[..place].iter().any(|(other, _)| other == name) {
            return bad(format!("STOMP has one value for a header, and {name} has several"));
        }
    }
    Ok(())
}

/// Writes facts that were checked.
pub(super) fn write(out: &mut Encoder, facts: &Facts) {
    for (name, value) in &facts.headers {
        out.header(name, value);
    }
    let (time, expires) = (facts.event_time.map(time_text), facts.expires.map(time_text));
    let of_ours = [
        (KEY_HEADER, &facts.key),
        (ID_HEADER, &facts.id),
        (TIME_HEADER, &time),
        (EXPIRES_HEADER, &expires),
    ];
    for (name, value) in of_ours {
        if let Some(value) = value {
            out.header(name, value);
        }
    }
    if let Some(expires) = facts.expires {
        out.number("expires", expires.0.div_ceil(1000));
    }
}

/// The message of a frame.
pub(super) fn incoming(frame: Frame) -> Incoming {
    let mut facts = Facts::default();
    let (mut message_id, mut stored, mut redelivered) = (None, None, false);
    for (name, value) in frame.headers {
        match name.as_str() {
            "message-id" => message_id = Some(value),
            "timestamp" => stored = value.parse::<u64>().ok().filter(|ms| *ms > 0),
            "redelivered" => redelivered = value == "true",
            "expires" => {
                let ms = value.parse::<u64>().ok().filter(|ms| *ms > 0);
                let time = ms.map(|ms| WallTime(ms.saturating_mul(1000)));
                facts.expires = facts.expires.or(time);
            }
            "priority" if value == PRIORITY => (),
            name if OF_FRAMES.contains(&name) => (),
            _ => {
                if !facts.take_header(&name, &value) {
                    facts.headers.push((name, value));
                }
            }
        }
    }
    facts.id = facts.id.or(message_id);
    facts.event_time = facts.event_time.or(stored.map(|ms| WallTime(ms.saturating_mul(1000))));
    Incoming { body: frame.body, facts: Some(Box::new(facts)), attempt: 0, redelivered }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::remote::stomp::frame::decode;

    #[test]
    fn facts_come_back_as_they_were() {
        let wanted = Facts {
            key: Some("k:\\".into()),
            id: Some("i".into()),
            headers: vec![("a:b".into(), "1\n2".into()), ("type".into(), "t".into())],
            event_time: Some(WallTime(1_700_000_000_123_456)),
            expires: Some(WallTime(4_000_000_000_000_000)),
            not_before: None,
        };
        check(&wanted).expect("they fit");
        let mut out = Encoder::default();
        out.begin("MESSAGE").header("message-id", "ID:1").header("redelivered", "true");
        write(&mut out, &wanted);
        out.body(b"\0body");
        let mut bytes = BytesMut::from(&out.take()[..]);
        let got = incoming(decode(&mut bytes).expect("a frame").expect("whole"));
        assert_eq!(got.facts.as_deref(), Some(&wanted));
        assert!(got.redelivered && got.body == "\0body");
    }

    #[test]
    fn what_does_not_fit_is_bad_input() {
        let twice = vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        let ours = vec![("receipt".to_owned(), "1".to_owned())];
        for headers in [twice, ours] {
            let facts = Facts { headers, ..Facts::default() };
            assert_eq!(check(&facts).expect_err("refused").kind, Kind::BadInput);
        }
    }
}
