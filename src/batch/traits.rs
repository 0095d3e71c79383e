//! What a payload's messages ask of whoever stores and delivers them: found while they are
//! counted, so that it costs nothing where nothing is asked.
//!
//! Checks bytes that a peer announced, before anything is stored. Called by the server for each
//! PUBLISH.

use super::{BatchError, Framing, RECORD_HEADER_BYTES, Record, tags};
use crate::units::{Name, WallTime};

/// What the messages of a batch ask for. Delimited ones ask for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Some expire.
    pub expires: bool,
    /// Some are for one group only.
    pub only_group: bool,
    /// Some have an id.
    pub ids: bool,
    /// Some have a key.
    pub keys: bool,
    /// Some must not be delivered before a time.
    pub not_before: Option<NotBefore>,
}

/// Of messages that must wait: how many there are, and how long they wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotBefore {
    /// How many of the batch's messages have a time at all.
    pub count: u32,
    /// The earliest time of any.
    pub earliest: WallTime,
    /// The latest.
    pub latest: WallTime,
}

impl Traits {
    /// Whether whoever delivers must look at each message: then the batch is stored with
    /// [`flags::SELECTIVE`](super::flags::SELECTIVE).
    #[must_use]
    pub fn is_selective(&self) -> bool {
        self.expires || self.only_group
    }

    /// Takes in the attributes of one more record.
    ///
    /// # Errors
    /// [`BatchError::Messages`] for bytes that are no attributes, or a value that is none.
    pub fn note(&mut self, record: &Record<'_>) -> Result<(), BatchError> {
        for attribute in record.attributes() {
            let (tag, value) = attribute?;
            match tag {
                tags::KEY => self.keys = text(value).map(|_| true)?,
                tags::ID => self.ids = text(value).map(|_| true)?,
                tags::EVENT_TIME => drop(time(value)?),
                tags::EXPIRES => self.expires = time(value).map(|_| true)?,
                tags::ONLY_GROUP => {
                    let name = text(value)?;
                    let bad = BatchError::Messages("the name of a group is none");
                    self.only_group = Name::new(name).map(|_| true).map_err(|_| bad)?;
                }
                tags::NOT_BEFORE => self.note_time(time(value)?),
                _ => {}
            }
        }
        Ok(())
    }

    fn note_time(&mut self, time: WallTime) {
        let before = self.not_before;
        let seen = before.unwrap_or(NotBefore { count: 0, earliest: time, latest: time });
        self.not_before = Some(NotBefore {
            count: seen.count + 1,
            earliest: seen.earliest.min(time),
            latest: seen.latest.max(time),
        });
    }
}

fn time(value: &[u8]) -> Result<WallTime, BatchError> {
    let bytes = value.try_into().map_err(|_| BatchError::Messages("a time of the wrong size"))?;
    Ok(WallTime(u64::from_le_bytes(bytes)))
}

fn text(value: &[u8]) -> Result<&str, BatchError> {
    std::str::from_utf8(value).map_err(|_| BatchError::Messages("a text that is not UTF-8"))
}

impl<'a> Record<'a> {
    /// The attributes of the record that `bytes` begins with, though its body may be cut short;
    /// it is left out.
    #[must_use]
    pub fn beginning(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (attributes, _) = Record::lengths(bytes)?;
        let rest = &bytes[RECORD_HEADER_BYTES..];
        Some(Record { attribute_bytes: rest.get(..attributes as usize)?, body: &[] })
    }

    /// The value of the first attribute with this tag; bytes that are no attributes have none.
    #[must_use]
    pub fn attribute(&self, tag: u8) -> Option<&'a [u8]> {
        let mut sound = self.attributes().map_while(Result::ok);
        sound.find_map(|(found, value)| (found == tag).then_some(value))
    }

    /// When the message expires, if ever.
    #[must_use]
    pub fn expires(&self) -> Option<WallTime> {
        self.attribute(tags::EXPIRES).and_then(|value| time(value).ok())
    }

    /// From when on it may be delivered, if that was said.
    #[must_use]
    pub fn not_before(&self) -> Option<WallTime> {
        self.attribute(tags::NOT_BEFORE).and_then(|value| time(value).ok())
    }

    /// The only group that it is for, if there is one.
    #[must_use]
    pub fn only_group(&self) -> Option<&'a str> {
        self.attribute(tags::ONLY_GROUP).and_then(|value| text(value).ok())
    }
}

/// Checks that `payload` holds exactly `count` messages in this framing, as a server must before
/// it stores what a peer announced, and says what they ask for.
///
/// # Errors
/// [`BatchError::Messages`] with what is wrong.
pub fn check_messages(framing: Framing, payload: &[u8], count: u32) -> Result<Traits, BatchError> {
    let mut traits = Traits::default();
    match framing {
        Framing::Delimited(delimiter) => {
            if payload.last() != Some(&delimiter) {
                return Err(BatchError::Messages("the last delimiter is missing"));
            }
            if memchr::memchr_iter(delimiter, payload).count() != count as usize {
                return Err(BatchError::Messages("the count of delimiters differs"));
            }
        }
        Framing::Records => {
            let mut found = 0u32;
            let mut rest = payload;
            while !rest.is_empty() {
                let (record, behind) = Record::decode(rest)?;
                traits.note(&record)?;
                rest = behind;
                found += 1;
            }
            if found != count || found == 0 {
                return Err(BatchError::Messages("the count of records differs"));
            }
        }
    }
    Ok(traits)
}

#[cfg(test)]
mod tests {
    use super::super::push_attribute;
    use super::*;

    fn record(attributes: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (tag, value) in attributes {
            push_attribute(&mut bytes, *tag, value);
        }
        let mut out = Vec::new();
        Record { attribute_bytes: &bytes, body: b"x" }.encode(&mut out);
        out
    }

    fn traits(attributes: &[(u8, &[u8])]) -> Result<Traits, BatchError> {
        check_messages(Framing::Records, &record(attributes), 1)
    }

    #[test]
    fn announced_messages_are_counted() {
        let lines = Framing::Delimited(b'\n');
        assert_eq!(check_messages(lines, b"a\n\nb\n", 3), Ok(Traits::default()));
        assert!(check_messages(lines, b"a\nb", 2).is_err());
        assert!(check_messages(lines, b"a\nb\n", 3).is_err());
        assert!(check_messages(lines, b"", 0).is_err());
        let mut records = record(&[(tags::HEADER, b"\x01\0hv")]);
        records.extend(record(&[]));
        assert_eq!(check_messages(Framing::Records, &records, 2), Ok(Traits::default()));
        assert!(check_messages(Framing::Records, &records, 1).is_err());
        assert!(check_messages(Framing::Records, &records[..records.len() - 1], 2).is_err());
    }

    #[test]
    fn what_messages_ask_for_is_seen() {
        let at = |n: u64| n.to_le_bytes();
        assert!(traits(&[(tags::ID, b"a")]).unwrap().ids);
        assert!(traits(&[(tags::KEY, b"a")]).unwrap().keys);
        assert!(traits(&[(tags::EXPIRES, &at(5))]).unwrap().is_selective());
        assert!(traits(&[(tags::ONLY_GROUP, b"g")]).unwrap().is_selective());
        assert!(!traits(&[(tags::KEY, b"a"), (tags::ID, b"b")]).unwrap().is_selective());
        let mut two = record(&[(tags::NOT_BEFORE, &at(7))]);
        two.extend(record(&[(tags::NOT_BEFORE, &at(5))]));
        two.extend(record(&[]));
        let found = check_messages(Framing::Records, &two, 3).unwrap().not_before;
        let (earliest, latest) = (WallTime(5), WallTime(7));
        assert_eq!(found, Some(NotBefore { count: 2, earliest, latest }));
        let bytes = record(&[(tags::EXPIRES, &at(5)), (tags::ONLY_GROUP, b"g")]);
        let one = Record::decode(&bytes).unwrap().0;
        assert_eq!((one.expires(), one.only_group()), (Some(WallTime(5)), Some("g")));
    }

    #[test]
    fn values_that_are_none_are_refused() {
        for bad in [
            (tags::EXPIRES, b"1234567".as_slice()),
            (tags::NOT_BEFORE, b""),
            (tags::EVENT_TIME, b"123456789"),
            (tags::KEY, b"\xff"),
            (tags::ID, b"\xff"),
            (tags::ONLY_GROUP, b"a/b"),
        ] {
            assert!(traits(&[bad]).is_err(), "{bad:?}");
        }
        assert!(traits(&[(200, b"\xff")]).is_ok(), "unknown tags are passed on");
    }
}
