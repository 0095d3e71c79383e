//! Keys: what `--key` makes of a message.
//!
//! Messages of one key stay in order and share windows; those without one have that in common.
//! The run loop asks for each message; nothing here fails on a message.

use std::borrow::Cow;
use std::fmt;

use super::place::{Place, Separator};
use crate::client::envelope::Attributes;
use crate::limits;

/// Where the key of a message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// The message's own, as its sender gave it.
    Message,
    /// In its body.
    Body(Place, Separator),
}

impl Spec {
    /// Reads `key`, the number of a field, or a JSON pointer.
    ///
    /// # Errors
    /// How to write one.
    pub fn new(text: &str, separator: Separator) -> Result<Spec, String> {
        match text {
            "key" => Ok(Spec::Message),
            _ => text.parse().map(|place| Spec::Body(place, separator)).map_err(|error: String| {
                format!("{error}, or key for the key that the message was sent with")
            }),
        }
    }

    /// The key of a message. `None`: it has none, or one of more than
    /// [`limits::KEY_BYTES_MAX`] bytes.
    #[must_use]
    pub fn key_of<'a>(&self, attributes: &Attributes<'a>, body: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let key = match self {
            Spec::Message => attributes.key.map(Cow::Borrowed),
            Spec::Body(place, separator) => {
                place.find(*separator, body).map(|found| found.into_bytes())
            }
        };
        key.filter(|key| key.len() <= limits::KEY_BYTES_MAX)
    }
}

impl fmt::Display for Spec {
    /// The same for the same keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Message => f.write_str("key"),
            Spec::Body(place, separator) => write!(f, "{place}{separator}"),
        }
    }
}

impl fmt::Display for Separator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Separator::Blanks => Ok(()),
            Separator::Byte(byte) => write!(f, " -t {:?}", char::from(*byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{push_attribute, tags};

    #[test]
    fn keys_come_from_where_they_are_said_to_be() {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, tags::KEY, b"k");
        let (with, without) = (Attributes::parse(&bytes), Attributes::default());
        let key = |spec: &str, attributes, body: &'static str| {
            let spec = Spec::new(spec, Separator::Blanks).expect(spec);
            spec.key_of(&attributes, body.as_bytes()).map(Cow::into_owned)
        };
        assert_eq!(key("key", with, "a b"), Some(b"k".to_vec()));
        assert_eq!(key("key", without, "a b"), None);
        assert_eq!(key("2", with, "a b"), Some(b"b".to_vec()));
        assert_eq!(key("/id", without, r#"{"id":7}"#), Some(b"7".to_vec()));
        assert_eq!(key("/id", without, "id 7"), None);
        assert!(Spec::new("keys", Separator::Blanks).is_err());
    }

    #[test]
    fn a_key_that_is_too_long_is_none() {
        let spec = Spec::new("1", Separator::Blanks).expect("a field");
        let body = [b'x'; limits::KEY_BYTES_MAX + 1];
        assert_eq!(spec.key_of(&Attributes::default(), &body), None);
        assert!(spec.key_of(&Attributes::default(), &body[1..]).is_some());
    }
}
