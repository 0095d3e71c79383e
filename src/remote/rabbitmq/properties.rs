//! What stands beside a body, in AMQP's places and back.
//!
//! | fact | there |
//! |---|---|
//! | id | `message_id` |
//! | key | header `mq-key` |
//! | headers | headers; a name that comes twice has an array |
//! | event time | `timestamp` (whole seconds), and header `mq-time` |
//! | expires | `expiration` (milliseconds from sending on), and header `mq-expires` |
//! | headers `amqp.content-type`, `amqp.priority`, ... | the property of that name |

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::Value;

use super::short;
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::{EXPIRES_HEADER, Facts, Incoming, KEY_HEADER, TIME_HEADER, time_text};
use crate::units::WallTime;

/// Survives a restart of the broker.
const PERSISTENT: u8 = 2;
/// The header in which a quorum queue counts how often a message was delivered before.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// The broker has no expiration further on than this, in milliseconds: some 49 days.
const EXPIRATION_MAX_MS: u64 = u32::MAX as u64;
/// Headers that stand for properties begin so.
const PROPERTY: &str = "amqp.";

/// Of a message that has nothing beside its body.
pub(super) fn plain() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(PERSISTENT)
}

/// Of a message with facts.
pub(super) fn of_facts(facts: &Facts) -> Result<BasicProperties, Failure> {
    let mut properties = plain();
    if let Some(id) = &facts.id {
        properties = properties.with_message_id(short(id)?);
    }
    let mut texts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in &facts.headers {
        match name.strip_prefix(PROPERTY) {
            Some(property) => properties = set_property(properties, property, value)?,
            None => texts.entry(name).or_default().push(value),
        }
    }
    let (time, expires) = (facts.event_time.map(time_text), facts.expires.map(time_text));
    let of_ours = [(KEY_HEADER, &facts.key), (TIME_HEADER, &time), (EXPIRES_HEADER, &expires)];
    for (name, value) in of_ours {
        if let Some(value) = value {
            texts.insert(name, vec![value]);
        }
    }
    if let Some(time) = facts.event_time {
        properties = properties.with_timestamp(time.0 / 1_000_000);
    }
    if let Some(expires) = facts.expires {
        let now = jiff::Timestamp::now().as_microsecond().cast_unsigned();
        let left_ms = expires.0.saturating_sub(now).div_ceil(1000);
        if left_ms > EXPIRATION_MAX_MS {
            let why = "RabbitMQ lets messages expire within 49 days at most";
            return Err(Failure::new(Kind::BadInput, why));
        }
        properties = properties.with_expiration(left_ms.to_string().into());
    }
    if !texts.is_empty() {
        let mut table = FieldTable::default();
        for (name, values) in texts {
            let mut values = values.into_iter().map(|text| AMQPValue::LongString(text.into()));
            let value = match values.len() {
                1 => values.next().expect("one"),
                _ => AMQPValue::FieldArray(values.collect::<Vec<_>>().into()),
            };
            table.insert(short(name)?, value);
        }
        properties = properties.with_headers(table);
    }
    Ok(properties)
}

fn set_property(
    properties: BasicProperties,
    name: &str,
    value: &str,
) -> Result<BasicProperties, Failure> {
    let text = short(value)?;
    Ok(match name {
        "app-id" => properties.with_app_id(text),
        "content-encoding" => properties.with_content_encoding(text),
        "content-type" => properties.with_content_type(text),
        "correlation-id" => properties.with_correlation_id(text),
        "priority" => {
            let priority = value.parse().map_err(|_| {
                let why = format!("amqp.priority is a number from 0 to 255, not {value:?}");
                Failure::new(Kind::BadInput, why)
            })?;
            properties.with_priority(priority)
        }
        "reply-to" => properties.with_reply_to(text),
        "type" => properties.with_type(text),
        _ => {
            let why = format!("AMQP has no property {name}, which header amqp.{name} would set");
            return Err(Failure::new(Kind::BadInput, why));
        }
    })
}

/// A message as it came from the broker. Its body is taken, not copied.
pub(super) fn incoming(delivery: Delivery) -> Incoming {
    let properties = &delivery.properties;
    let mut attempt = 0;
    let mut facts = Facts::default();
    if let Some(table) = properties.headers() {
        for (name, value) in table.inner() {
            if name.as_str() == DELIVERY_COUNT {
                attempt = 1 + whole_number(value).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
            }
            take_header(&mut facts, name.as_str(), value);
        }
    }
    facts.id = properties.message_id().as_ref().map(|id| id.as_str().to_owned()).or(facts.id);
    if facts.event_time.is_none() {
        facts.event_time = properties.timestamp().map(|s| WallTime(s.saturating_mul(1_000_000)));
    }
    take_properties(&mut facts, properties);
    let facts = if facts.is_empty() { None } else { Some(Box::new(facts)) };
    let redelivered = delivery.redelivered;
    Incoming { body: delivery.data.into(), facts, attempt, redelivered }
}

fn take_header(facts: &mut Facts, name: &str, value: &AMQPValue) {
    match value {
        AMQPValue::FieldArray(values) if values.as_slice().iter().all(is_text) => {
            for value in values.as_slice() {
                facts.headers.push((name.to_owned(), text(value)));
            }
        }
        value => {
            let value = text(value);
            if !facts.take_header(name, &value) {
                facts.headers.push((name.to_owned(), value));
            }
        }
    }
}

fn take_properties(facts: &mut Facts, properties: &BasicProperties) {
    let texts: [(&str, &Option<ShortString>); 6] = [
        ("app-id", properties.app_id()),
        ("content-encoding", properties.content_encoding()),
        ("content-type", properties.content_type()),
        ("correlation-id", properties.correlation_id()),
        ("reply-to", properties.reply_to()),
        ("type", properties.kind()),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            facts.headers.push((format!("{PROPERTY}{name}"), value.as_str().to_owned()));
        }
    }
    if let Some(priority) = properties.priority() {
        facts.headers.push((format!("{PROPERTY}priority"), priority.to_string()));
    }
}

fn is_text(value: &AMQPValue) -> bool {
    matches!(value, AMQPValue::LongString(_) | AMQPValue::ShortString(_))
}

/// A value of a header as text: texts as they are, all else as JSON.
fn text(value: &AMQPValue) -> String {
    match json(value) {
        Value::String(text) => text,
        value => value.to_string(),
    }
}

fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => Value::from(*value),
        AMQPValue::Float(value) => Value::from(*value),
        AMQPValue::Double(value) => Value::from(*value),
        AMQPValue::DecimalValue(value) => {
            Value::from(f64::from(value.value) / 10f64.powi(i32::from(value.scale)))
        }
        AMQPValue::ShortString(value) => Value::from(value.as_str()),
        AMQPValue::LongString(value) => Value::from(String::from_utf8_lossy(value.as_bytes())),
        AMQPValue::ByteArray(value) => Value::from(String::from_utf8_lossy(value.as_slice())),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => {
            let each = table.inner().iter().map(|(name, value)| (name.to_string(), json(value)));
            Value::Object(each.collect())
        }
        AMQPValue::Timestamp(value) => Value::from(*value),
        AMQPValue::Void => Value::Null,
        number => whole_number(number).map_or(Value::Null, Value::from),
    }
}

fn whole_number(value: &AMQPValue) -> Option<i64> {
    Some(match value {
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => *value,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In an hour, to the microsecond.
    fn soon() -> WallTime {
        let now = jiff::Timestamp::now().as_microsecond().cast_unsigned();
        WallTime(now + 3_600_000_123)
    }

    #[test]
    fn facts_come_back_as_they_were() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let facts = Facts {
            key: Some("k".into()),
            id: Some("i".into()),
            headers: vec![
                pair("a", "1"),
                pair("a", "2"),
                pair("b", "ü"),
                pair("amqp.content-type", "text/plain"),
                pair("amqp.priority", "5"),
            ],
            event_time: Some(WallTime(1_700_000_000_123_456)),
            expires: Some(soon()),
            not_before: None,
        };
        let properties = of_facts(&facts).expect("they fit");
        assert_eq!(properties.priority(), &Some(5));
        assert_eq!(properties.timestamp(), &Some(1_700_000_000));
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, b"body".to_vec());
        delivery.properties = properties;
        let incoming = incoming(delivery);
        assert_eq!(incoming.facts.as_deref(), Some(&facts));
        assert_eq!(&incoming.body[..], b"body");
    }

    #[test]
    fn what_does_not_fit_is_bad_input() {
        let of = |name: &str, value: &str| Facts {
            headers: vec![(name.to_owned(), value.to_owned())],
            ..Facts::default()
        };
        let long = Facts { id: Some("x".repeat(256)), ..Facts::default() };
        let late = Facts { expires: Some(WallTime(soon().0 * 2)), ..Facts::default() };
        for facts in [of("amqp.priority", "high"), of("amqp.color", "red"), long, late] {
            assert_eq!(of_facts(&facts).expect_err("refused").kind, Kind::BadInput);
        }
    }
}
