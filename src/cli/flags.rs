//! The flags that every tool has, and how values are read.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Failure;
use crate::client::envelope::{is_time, parse_time};
use crate::client::place::{Place, Places};
use crate::limits;
use crate::settings::Start;
use crate::store;
use crate::units::{Count, Micros, Name, Offset, SyncPolicy, parse_duration};
use crate::url::Url;
use crate::wire::QueuePattern;

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`.
    #[default]
    Auto,
    /// Even into a pipe.
    Always,
    /// Not at all.
    Never,
}

impl ColorWhen {
    /// Whether to colour what goes to stdout.
    #[must_use]
    pub fn for_stdout(self) -> bool {
        match self {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => {
                let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
                let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
                !set("NO_COLOR") && !dumb && super::is_terminal(rustix::stdio::stdout())
            }
        }
    }
}

/// Whether clap is to colour what it says, as `--color` says among arguments that are yet to be read.
/// `NO_COLOR`, `TERM` and what is no terminal it heeds by itself.
pub(super) fn colour_choice(args: &[OsString]) -> clap::ColorChoice {
    let mut args =
        args.iter().skip(1).take_while(|arg| *arg != "--").filter_map(|arg| arg.to_str());
    let mut choice = clap::ColorChoice::Auto;
    while let Some(arg) = args.next() {
        let when = match arg.strip_prefix("--color") {
            Some("") => args.next(),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        choice = match when {
            Some("always") => clap::ColorChoice::Always,
            Some("never") => clap::ColorChoice::Never,
            Some("auto") => clap::ColorChoice::Auto,
            _ => choice,
        };
    }
    choice
}

/// The flags that every tool has; flatten it into a tool's own.
#[derive(Args, Clone, Debug, Default)]
pub struct Shared {
    /// The store [env: MQ_DIR] [default: ~/.local/state/mq]
    #[arg(long, value_name = "DIR", global = true, display_order = 900)]
    pub dir: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long, global = true, display_order = 901)]
    pub quiet: bool,
    /// Say more: a summary at the end
    #[arg(short, long, global = true, display_order = 902)]
    pub verbose: bool,
    /// Use colour: auto, always or never
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value = "auto",
        hide_short_help = true,
        hide_possible_values = true,
        global = true,
        display_order = 903
    )]
    pub color: ColorWhen,
}

impl Shared {
    /// The path of the store that these flags and the environment name.
    ///
    /// # Errors
    /// See [`store::resolve`].
    pub fn store(&self) -> Result<PathBuf, Failure> {
        Ok(store::resolve(self.dir.as_deref())?)
    }
}

/// Reads a queue's name, for clap.
///
/// # Errors
/// What is wrong with it.
pub fn queue_name(text: &str) -> Result<Name, String> {
    if Url::is_one(text) {
        return Err("this is done to queues of a store, not to one at an engine".to_owned());
    }
    Name::new(text).map_err(|error| error.to_string())
}

/// Reads a queue's name or its URL, for clap.
///
/// # Errors
/// What is wrong with it.
pub fn place(text: &str) -> Result<Place, String> {
    if Url::is_one(text) {
        Url::new(text).map(Place::Elsewhere)
    } else {
        queue_name(text).map(Place::Here)
    }
}

/// Reads a queue's name, a pattern for names, or a URL, for clap.
///
/// # Errors
/// What is wrong with it.
pub fn places(text: &str) -> Result<Places, String> {
    if Url::is_one(text) {
        Url::new(text).map(Places::Elsewhere)
    } else {
        queue_pattern(text).map(Places::Here)
    }
}

/// Reads a group's name, for clap.
///
/// # Errors
/// What is wrong with it.
pub fn group_name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

/// Whether a set of characters in a pattern does not end.
fn has_open_bracket(pattern: &str) -> bool {
    let mut rest = pattern;
    while let Some((_, inside)) = rest.split_once('[') {
        // The first character of a set is one of it, also when it is a bracket.
        let mut set = inside.char_indices().skip(1);
        let Some((end, _)) = set.find(|(_, c)| *c == ']') else { return true };
        rest = &inside[end + 1..];
    }
    false
}

/// Reads a text that must say something.
///
/// # Errors
/// For users.
pub fn something(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an empty one is none; leave the flag away".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads how long messages live.
///
/// # Errors
/// For users.
pub fn lifetime(text: &str) -> Result<Micros, String> {
    match duration(text)? {
        Micros(0) => Err("a message that lives for no time could never be received".to_owned()),
        lifetime => Ok(lifetime),
    }
}

/// Reads a queue's name or a pattern for names, for clap.
///
/// # Errors
/// What is wrong with it.
pub fn queue_pattern(text: &str) -> Result<QueuePattern, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.contains(['*', '?', '[']) {
        if let Some(bad) = text.chars().find(|c| !is_plain(*c) && !"*?[]!^".contains(*c)) {
            return Err(format!("a pattern for names of queues must not contain {bad:?}"));
        }
        if has_open_bracket(text) {
            return Err("a [ in a pattern needs its ], with something between them".to_owned());
        }
        if text.len() > limits::NAME_BYTES_MAX {
            return Err("a pattern has at most as many bytes as a name".to_owned());
        }
    } else if text.contains('/') {
        return Err("no queue has a / in its name; a command to run stands behind --".to_owned());
    } else {
        Name::new(text).map_err(|error| error.to_string())?;
    }
    Ok(QueuePattern(text.to_owned()))
}

/// Reads where a group begins, for clap: `oldest`, `newest`, an offset, a time, or `-N` for the
/// last N messages.
///
/// # Errors
/// How to write it.
pub fn start(text: &str) -> Result<Start, String> {
    let bad = || {
        format!(
            "{text:?} is no place to begin at; write oldest, newest, an offset such as 1200, a \
             time such as 2026-01-31T12:00:00Z, or -N for the last N messages"
        )
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    Ok(match (text, text.strip_prefix('-')) {
        ("oldest", _) => Start::Oldest,
        ("newest", _) => Start::Newest,
        (_, Some(count)) if is_number(count) => {
            Start::Last(Count(count.parse().map_err(|_| bad())?))
        }
        (offset, None) if is_number(offset) => {
            Start::Offset(Offset(offset.parse().map_err(|_| bad())?))
        }
        (time, _) if is_time(time) => Start::Time(parse_time(time)?),
        _ => return Err(bad()),
    })
}

/// Reads a duration, for clap.
///
/// # Errors
/// How to write one.
pub fn duration(text: &str) -> Result<Micros, String> {
    parse_duration(text)
}

/// Reads a sync policy, for clap.
///
/// # Errors
/// How to write one.
pub fn sync_policy(text: &str) -> Result<SyncPolicy, String> {
    text.parse()
}

/// Reads a delimiter, for clap: one character of one byte, or `\n`, `\t`, `\r`, `\0`, `\\`, or
/// `\xHH`.
///
/// # Errors
/// How to write one.
pub fn delimiter(text: &str) -> Result<u8, String> {
    let byte = match text.as_bytes() {
        [byte] => Some(*byte),
        b"\\n" => Some(b'\n'),
        b"\\t" => Some(b'\t'),
        b"\\r" => Some(b'\r'),
        b"\\0" => Some(0),
        b"\\\\" => Some(b'\\'),
        [b'\\', b'x', high, low] => std::str::from_utf8(&[*high, *low])
            .ok()
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
        _ => None,
    };
    byte.ok_or_else(|| {
        "a delimiter is one byte: a character such as , or one of \\n \\t \\r \\0 \\\\ \\xHH"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_begin_at_read_as_written() {
        assert_eq!(start("oldest"), Ok(Start::Oldest));
        assert_eq!(start("17"), Ok(Start::Offset(Offset(17))));
        assert_eq!(start("-17"), Ok(Start::Last(Count(17))));
        assert!(matches!(start("2026-01-31T12:00:00+01:00"), Ok(Start::Time(_))));
        for bad in ["", "-", "old", "1.5", "--1", "2026-01-31", "99999999999999999999"] {
            assert!(start(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn patterns_are_made_of_what_names_are_made_of() {
        for good in ["jobs", "*", "logs.*", "log[0-9]?"] {
            assert_eq!(queue_pattern(good), Ok(QueuePattern(good.to_owned())));
        }
        for bad in ["", "./work", "a b", "a b*", ".x", "-x"] {
            assert!(queue_pattern(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn delimiters_read_as_written() {
        for (text, byte) in
            [(",", b','), ("\\n", b'\n'), ("\\0", 0), ("\\x1e", 0x1e), ("\\", b'\\'), ("\n", b'\n')]
        {
            assert_eq!(delimiter(text), Ok(byte), "{text:?}");
        }
        for bad in ["", "ab", "ä", "\\q", "\\x1", "\\xzz", "\\x+1"] {
            assert!(delimiter(bad).is_err(), "{bad:?}");
        }
    }
}
