//! A place in a message's body: a field of a line, or a value in JSON; what `--key` and `--time`
//! can name.
//!
//! Looks at bytes of anybody, and so finds nothing rather than fails: a line with too few fields,
//! a body that is not JSON, and a pointer to nowhere all have nothing at that place. Bodies are
//! read once and not taken apart: what a pointer does not lead to is skipped.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What parts the fields of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Separator {
    /// Any number of spaces and tabs; those at the beginning of a line count for nothing.
    #[default]
    Blanks,
    /// This byte, each time.
    Byte(u8),
}

impl FromStr for Separator {
    type Err = String;

    fn from_str(text: &str) -> Result<Separator, String> {
        match text.as_bytes() {
            [byte] => Ok(Separator::Byte(*byte)),
            b"\\t" => Ok(Separator::Byte(b'\t')),
            _ => Err(format!("{text:?} is not one byte; write -t, or -t '\\t' for a tab")),
        }
    }
}

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The field with this number, from 1.
    Field(usize),
    /// Where a JSON pointer (RFC 6901) leads; its names, unescaped.
    Pointer(Vec<String>),
}

/// What stands at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A field, or a string.
    Text(Cow<'a, [u8]>),
    /// A number, `true`, `false`, an array or an object, as JSON.
    Json(String),
}

impl<'a> Found<'a> {
    /// Its bytes.
    #[must_use]
    pub fn into_bytes(self) -> Cow<'a, [u8]> {
        match self {
            Found::Text(text) => text,
            Found::Json(json) => Cow::Owned(json.into_bytes()),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        if let Some(path) = text.strip_prefix('/') {
            return path.split('/').map(unescape).collect::<Option<_>>().map(Place::Pointer).ok_or(
                format!("{text:?} is no JSON pointer: write ~0 for a ~ in a name, ~1 for a /"),
            );
        }
        match text.parse() {
            Ok(0) => Err("fields are counted from 1: write 1 for the first".to_owned()),
            Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Place::Field(number))
            }
            _ => Err(format!(
                "{text:?} names no place; write 2 for a field, or /user/id for a value in JSON"
            )),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Field(number) => write!(f, "{number}"),
            Place::Pointer(names) => names
                .iter()
                .try_for_each(|name| write!(f, "/{}", name.replace('~', "~0").replace('/', "~1"))),
        }
    }
}

fn unescape(name: &str) -> Option<String> {
    let mut out = String::with_capacity(name.len());
    let mut rest = name.chars();
    while let Some(c) = rest.next() {
        out.push(match c {
            '~' => match rest.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

impl Place {
    /// What stands there in this body. `null` is nothing.
    #[must_use]
    pub fn find<'a>(&self, separator: Separator, body: &'a [u8]) -> Option<Found<'a>> {
        match self {
            Place::Field(number) => {
                field(body, *number, separator).map(|field| Found::Text(Cow::Borrowed(field)))
            }
            Place::Pointer(names) => {
                let mut json = serde_json::Deserializer::from_slice(body);
                let found = At(names).deserialize(&mut json).ok()?;
                json.end().ok()?;
                found
            }
        }
    }
}

fn field(line: &[u8], number: usize, separator: Separator) -> Option<&[u8]> {
    match separator {
        Separator::Byte(byte) => line.split(|b| *b == byte).nth(number - 1),
        Separator::Blanks => line
            .split(|byte| matches!(byte, b' ' | b'\t'))
            .filter(|field| !field.is_empty())
            .nth(number - 1),
    }
}

/// What is left of a pointer, before a value.
#[derive(Clone, Copy)]
struct At<'p>(&'p [String]);

impl<'a> DeserializeSeed<'a> for At<'_> {
    type Value = Option<Found<'a>>;

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl At<'_> {
    /// A value that has nothing in it: that of the pointer, if it ends here.
    fn scalar<'a>(self, found: Option<Found<'a>>) -> Option<Found<'a>> {
        if self.0.is_empty() { found } else { None }
    }

    fn json<'a>(self, value: impl Into<serde_json::Value>) -> Option<Found<'a>> {
        self.scalar(Some(Found::Json(value.into().to_string())))
    }
}

impl<'a> Visitor<'a> for At<'_> {
    type Value = Option<Found<'a>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.json(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.json(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.json(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.json(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(self.scalar(Some(Found::Text(Cow::Borrowed(text.as_bytes())))))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.scalar(Some(Found::Text(Cow::Owned(text.as_bytes().to_owned())))))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let Some((name, rest)) = self.0.split_first() else {
            let value = serde::de::value::SeqAccessDeserializer::new(seq);
            let value: serde_json::Value = serde::Deserialize::deserialize(value)?;
            return Ok(self.json(value));
        };
        // As RFC 6901 has it, an index has no leading zeros.
        let is_index = name == "0" || !name.starts_with(['0', '+']);
        let index = name.parse::<usize>().ok().filter(|_| is_index);
        let mut found = None;
        let mut at = 0;
        loop {
            if Some(at) == index {
                let Some(value) = seq.next_element_seed(At(rest))? else { return Ok(None) };
                found = value;
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            at += 1;
        }
    }

    /// Of a name that comes twice the last counts, as with other tools.
    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some((wanted, rest)) = self.0.split_first() else {
            let value = serde::de::value::MapAccessDeserializer::new(map);
            let value: serde_json::Value = serde::Deserialize::deserialize(value)?;
            return Ok(self.json(value));
        };
        let mut found = None;
        while let Some(is_wanted) = map.next_key_seed(Is(wanted))? {
            if is_wanted {
                found = map.next_value_seed(At(rest))?;
            } else {
                let _: IgnoredAny = map.next_value()?;
            }
        }
        Ok(found)
    }
}

/// Whether a name is this one.
struct Is<'p>(&'p str);

impl<'a> DeserializeSeed<'a> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(place: &str, separator: Separator, body: &str) -> Option<String> {
        let place: Place = place.parse().expect(place);
        assert_eq!(place.to_string().parse(), Ok(place.clone()));
        let bytes = place.find(separator, body.as_bytes())?.into_bytes().into_owned();
        Some(String::from_utf8(bytes).expect("UTF-8"))
    }

    #[test]
    fn fields_are_found() {
        let (blanks, comma) = (Separator::Blanks, Separator::Byte(b','));
        for (place, separator, body, found) in [
            ("1", blanks, "a b", Some("a")),
            ("2", blanks, "  a \t b ", Some("b")),
            ("3", blanks, "a b ", None),
            ("1", blanks, "", None),
            ("2", comma, "a,b c,d", Some("b c")),
            ("2", comma, "a,,d", Some("")),
            ("1", comma, "", Some("")),
            ("9", comma, "a,b", None),
        ] {
            assert_eq!(find(place, separator, body).as_deref(), found, "{place} of {body:?}");
        }
    }

    #[test]
    fn pointers_lead_to_values() {
        let body = r#"{"a":{"b":["x",{"c":"\u00e4"}],"n":1.5},"":"empty","a/b":"slash",
            "m~n":true,"o":{"z":1,"y":[2]},"null":null,"big":18446744073709551615,
            "twice":"1","twice":"2","s":"text"}"#;
        for (place, found) in [
            ("/a/b/0", Some("x")),
            ("/a/b/1/c", Some("ä")),
            ("/a/b/01", None),
            ("/a/b/2", None),
            ("/a/b/-", None),
            ("/a/n", Some("1.5")),
            ("/", Some("empty")),
            ("/a~1b", Some("slash")),
            ("/m~0n", Some("true")),
            ("/o", Some(r#"{"y":[2],"z":1}"#)),
            ("/a/b", Some(r#"["x",{"c":"ä"}]"#)),
            ("/null", None),
            ("/null/x", None),
            ("/s/x", None),
            ("/missing", None),
            ("/big", Some("18446744073709551615")),
            ("/twice", Some("2")),
        ] {
            assert_eq!(find(place, Separator::Blanks, body).as_deref(), found, "{place}");
        }
    }

    #[test]
    fn what_is_not_json_has_nothing() {
        for body in
            ["", "x", "{", r#"{"a":1"#, r#"{"a":1} x"#, r#"{"a":1}{"#, "[1]", "{\"a\":\"\u{1}\"}"]
        {
            assert_eq!(find("/a", Separator::Blanks, body), None, "{body}");
        }
        assert_eq!(find("/a", Separator::Blanks, " {\"a\":1}\n ").as_deref(), Some("1"));
    }

    #[test]
    fn places_are_read_with_care() {
        for (text, said) in [
            ("0", "counted from 1"),
            ("", "names no place"),
            ("+1", "names no place"),
            ("-1", "names no place"),
            ("user", "names no place"),
            ("/a~2", "no JSON pointer"),
            ("/a~", "no JSON pointer"),
        ] {
            let error = text.parse::<Place>().expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!("ab".parse::<Separator>().is_err());
        assert_eq!("\\t".parse(), Ok(Separator::Byte(b'\t')));
    }

    proptest! {
        /// The same as serde_json's own pointers on whole documents.
        #[test]
        fn pointers_lead_where_others_do(
            body in "[\\[{]?(\"[ab]\":|\\[|[0-9]|,|\\{|\\}|\\]|\"[ab]\"|null| ){0,12}[\\]}]?",
            place in "(/[ab01]){1,3}",
        ) {
            let theirs = serde_json::from_str::<serde_json::Value>(&body).ok();
            let theirs = theirs.as_ref().and_then(|value| value.pointer(&place)).and_then(|value| {
                match value {
                    serde_json::Value::Null => None,
                    serde_json::Value::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                }
            });
            prop_assert_eq!(find(&place, Separator::Blanks, &body), theirs);
        }

        #[test]
        fn no_body_does_harm(body in proptest::collection::vec(any::<u8>(), 0..64), n in 1usize..9) {
            let _ = Place::Field(n).find(Separator::Blanks, &body);
            let _ = Place::Field(n).find(Separator::Byte(b','), &body);
            let _ = Place::Pointer(vec!["a".to_owned()]).find(Separator::Blanks, &body);
        }
    }
}
