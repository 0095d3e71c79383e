//! A message as frames.
//!
//! ```text
//! [topic] body                     a message with nothing beside its body
//! [topic] key headers body         one with facts: `headers` is a JSON object
//! ```
//!
//! The topic is there with PUB and SUB alone. Whatever else comes is taken as it is: the last frame is
//! the body, and those before it are headers `zmq.0`, `zmq.1` and so on.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeromq::ZmqMessage;

use crate::remote::message::{Facts, Incoming, Outgoing, time_of_text, time_text};

/// What stands in the frame of headers.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Beside {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    headers: Map<String, Value>,
}

/// The frames of a message.
pub(super) fn of(message: Outgoing, topic: Option<&str>) -> ZmqMessage {
    let mut frames = Vec::with_capacity(4);
    frames.extend(topic.map(|topic| Bytes::copy_from_slice(topic.as_bytes())));
    if let Some(facts) = message.facts.filter(|facts| !facts.is_empty()) {
        let mut beside = Beside {
            id: facts.id,
            event_time: facts.event_time.map(time_text),
            expires: facts.expires.map(time_text),
            headers: Map::new(),
        };
        for (name, value) in facts.headers {
            match beside.headers.get_mut(&name) {
                None => drop(beside.headers.insert(name, Value::String(value))),
                Some(Value::Array(all)) => all.push(Value::String(value)),
                Some(first) => *first = Value::Array(vec![first.take(), Value::String(value)]),
            }
        }
        frames.push(facts.key.unwrap_or_default().into());
        frames.push(serde_json::to_vec(&beside).expect("texts").into());
    }
    frames.push(message.body);
    ZmqMessage::try_from(frames).expect("at least the body")
}

fn facts_of(key: &Bytes, beside: &Bytes) -> Option<Facts> {
    let key = std::str::from_utf8(key).ok()?;
    let beside: Beside = serde_json::from_slice(beside).ok()?;
    let mut facts = Facts {
        key: Some(key.to_owned()).filter(|key| !key.is_empty()),
        id: beside.id,
        event_time: beside.event_time.as_deref().and_then(time_of_text),
        expires: beside.expires.as_deref().and_then(time_of_text),
        ..Facts::default()
    };
    let text = |value: Value| match value {
        Value::String(text) => text,
        value => value.to_string(),
    };
    for (name, value) in beside.headers {
        match value {
            Value::Array(all) => {
                facts.headers.extend(all.into_iter().map(|value| (name.clone(), text(value))));
            }
            value => facts.headers.push((name, text(value))),
        }
    }
    Some(facts)
}

/// The message that frames are.
pub(super) fn incoming(message: ZmqMessage, with_topic: bool) -> Incoming {
    let mut frames = message.into_vecdeque();
    if with_topic && frames.len() > 1 {
        frames.pop_front();
    }
    let body = frames.pop_back().unwrap_or_default();
    let ours = match (frames.front(), frames.get(1)) {
        (Some(key), Some(beside)) if frames.len() == 2 => facts_of(key, beside),
        _ => None,
    };
    let facts = ours.unwrap_or_else(|| {
        let each = frames.iter().enumerate();
        let each = each
            .map(|(n, frame)| (format!("zmq.{n}"), String::from_utf8_lossy(frame).into_owned()));
        Facts { headers: each.collect(), ..Facts::default() }
    });
    let facts = Some(facts).filter(|facts| !facts.is_empty()).map(Box::new);
    Incoming { body, facts, attempt: 0, redelivered: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::WallTime;

    #[test]
    fn facts_come_back_as_they_were() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let facts = Facts {
            key: Some("k".into()),
            id: Some("i".into()),
            headers: vec![pair("a", "1"), pair("a", "2"), pair("a", "3"), pair("b", "\n")],
            event_time: Some(WallTime(1_700_000_000_123_456)),
            ..Facts::default()
        };
        for topic in [None, Some("t")] {
            for facts in [None, Some(Box::new(facts.clone()))] {
                let body = Bytes::from_static(b"\0body");
                let message = Outgoing { body: body.clone(), facts: facts.clone(), number: 0 };
                let frames = of(message, topic);
                let count = if facts.is_some() { 3 } else { 1 } + usize::from(topic.is_some());
                assert_eq!(frames.len(), count);
                let got = incoming(frames, topic.is_some());
                assert_eq!((got.body, got.facts), (body, facts));
            }
        }
    }

    #[test]
    fn frames_of_others_are_kept() {
        let frames = ["a", "b", "c"].map(Bytes::from).to_vec();
        let got = incoming(ZmqMessage::try_from(frames).expect("frames"), false);
        assert_eq!(&got.body[..], b"c");
        let headers = got.facts.expect("headers").headers;
        assert_eq!(headers, [("zmq.0".into(), "a".into()), ("zmq.1".into(), "b".into())]);
    }
}
