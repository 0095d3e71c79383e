//! What stands beside a body, in Kafka's places and back.
//!
//! | fact | there |
//! |---|---|
//! | key | the record's key |
//! | headers | headers, in their order |
//! | id, event time, expires | headers `mq-id`, `mq-time`, `mq-expires`; the time also as the record's |
//!
//! A record without an id of its own is known by its place, `topic:partition:offset`.

use rdkafka::message::BorrowedMessage;
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};

use crate::remote::message::{EXPIRES_HEADER, Facts, ID_HEADER, TIME_HEADER, time_text};
use crate::units::WallTime;

/// The headers of a message, if it has any.
pub(super) fn headers_of(facts: &Facts) -> Option<OwnedHeaders> {
    let (time, expires) = (facts.event_time.map(time_text), facts.expires.map(time_text));
    let of_ours = [(ID_HEADER, &facts.id), (TIME_HEADER, &time), (EXPIRES_HEADER, &expires)];
    let of_ours = of_ours.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
    let given = facts.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut headers = None;
    for (key, value) in given.chain(of_ours) {
        let all = headers.take().unwrap_or_else(OwnedHeaders::new);
        headers = Some(all.insert(Header { key, value: Some(value) }));
    }
    headers
}

/// The record's time, in milliseconds since 1970, for a message that has one.
pub(super) fn timestamp_of(facts: &Facts) -> Option<i64> {
    facts.event_time.and_then(|time| i64::try_from(time.0 / 1000).ok())
}

/// What a record says beside its body.
pub(super) fn facts_of(record: &BorrowedMessage<'_>) -> Facts {
    let mut facts = Facts {
        key: record.key().map(|key| String::from_utf8_lossy(key).into_owned()),
        ..Facts::default()
    };
    if let Some(headers) = record.headers() {
        for header in headers.iter() {
            let value = String::from_utf8_lossy(header.value.unwrap_or_default());
            if !facts.take_header(header.key, &value) {
                facts.headers.push((header.key.to_owned(), value.into_owned()));
            }
        }
    }
    if facts.event_time.is_none() {
        let millis = record.timestamp().to_millis().and_then(|ms| u64::try_from(ms).ok());
        facts.event_time = millis.map(|ms| WallTime(ms.saturating_mul(1000)));
    }
    if facts.id.is_none() {
        let mut digits = itoa::Buffer::new();
        let mut id = String::with_capacity(record.topic().len() + 16);
        id.push_str(record.topic());
        id.push(':');
        id.push_str(digits.format(record.partition()));
        id.push(':');
        id.push_str(digits.format(record.offset()));
        facts.id = Some(id);
    }
    facts
}
