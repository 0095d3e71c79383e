//! The address of a queue that lives elsewhere, at an engine of a cluster: a URL.
//!
//! Everything but `mq-remote` only passes it on: what stands in it is the business of `remote`. So
//! here is no more than what keeps its password out of sight. Whatever shows one shows no password.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::units::Name;

/// A URL. Shown, it has no password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Url(String);

impl Url {
    /// Whether a text is meant to be one.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        text.contains("://")
    }

    /// Takes a text for one, without a look at what only an engine understands.
    ///
    /// # Errors
    /// What is wrong with it, without its password.
    pub fn new(text: &str) -> Result<Url, String> {
        let bad = |why: &str| Err(format!("{}: {why}", without_password(text)));
        let Some((scheme, rest)) = text.split_once("://") else {
            return bad("an address is SCHEME://HOST/QUEUE, see mq-remote(1)");
        };
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+') {
            return bad("what stands in front of :// names no engine");
        }
        if rest.is_empty() {
            return bad("there is nothing behind ://");
        }
        if text.bytes().any(|b| b.is_ascii_control() || b == b' ') {
            return bad("it has a space or a control character in it; write it as %20");
        }
        if text.len() > limits::URL_BYTES_MAX {
            return bad("it is too long");
        }
        Ok(Url(text.to_owned()))
    }

    /// All of it, for `mq-remote` alone.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The same without the password, for keeps.
    #[must_use]
    pub fn without_password(&self) -> Url {
        Url(without_password(&self.0))
    }

    /// Whether another address leads to the same queue, as far as can be told without a look there: whoever
    /// asks for it, and with whatever options.
    #[must_use]
    pub fn is_same_queue(&self, other: &Url) -> bool {
        self.place() == other.place()
    }

    /// The address without user, password and options.
    fn place(&self) -> (&str, &str) {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        let plain = rest.split('?').next().unwrap_or_default();
        let end = plain.find('/').unwrap_or(plain.len());
        let hosts = plain[..end].rfind('@').map_or(0, |at| at + 1);
        (scheme, plain[hosts..].trim_end_matches('/'))
    }

    /// What the queue is called where only a name fits: the last part of the path, or else of the
    /// address, with `_` for what no name has in it.
    #[must_use]
    pub fn name(&self) -> Name {
        let shown = without_password(&self.0);
        let plain = shown.split('?').next().unwrap_or_default().trim_end_matches('/');
        let last = plain.rsplit(['/', '@']).next().unwrap_or_default();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let text: String = last.chars().map(|c| if fits(c) { c } else { '_' }).collect();
        let text = text.trim_start_matches(['.', '-']);
        let end = text.len().min(limits::NAME_BYTES_MAX);
        Name::new(&text[..end]).unwrap_or_default()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&without_password(&self.0))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Url({self})")
    }
}

/// The same text with a password in it replaced by stars: for messages, and for `ps`.
#[must_use]
pub fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    if let Some(end) = token_in(scheme, rest) {
        return format!("{scheme}://***{}", &rest[end..]);
    }
    let Some(password) = password_in(rest, |rest| rest.len()) else { return text.to_owned() };
    format!("{scheme}://{}***{}", &rest[..password.start], &rest[password.end..])
}

/// Where a token ends that an address begins with, behind its `://`, if it is one: with NATS, who has no password.
/// One whose password is in a file is a user.
fn token_in(before: &str, rest: &str) -> Option<usize> {
    let scheme = before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '+').next()?;
    let is_nats = ["nats", "nats+tls", "tls"].iter().any(|nats| scheme.eq_ignore_ascii_case(nats));
    let address = rest.split(char::is_whitespace).next().filter(|_| is_nats)?;
    let at = address.split(['/', '?']).next()?.rfind('@')?;
    let is_user = address[..at].contains(':') || address.contains("password-file=");
    (!is_user).then_some(at)
}

/// A text in which addresses may stand, with the passwords in them replaced by stars.
#[must_use]
pub fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (front, behind) = rest.split_at(at + 3);
        out.push_str(front);
        if let Some(end) = token_in(&front[..at], behind) {
            out.push_str("***");
            rest = &behind[end..];
            continue;
        }
        rest = behind;
        // Spaces and quotes may stand in a password that was not written as it must be; another address not.
        let end = behind.find('\n').unwrap_or(behind.len());
        let end = behind[..end].find("://").unwrap_or(end);
        let word = |line: &str| line.find(char::is_whitespace).unwrap_or(line.len());
        if let Some(password) = password_in(&behind[..end], word) {
            out.push_str(&behind[..password.start]);
            out.push_str("***");
            rest = &behind[password.end..];
        }
    }
    out.push_str(rest);
    out
}

/// Where a password stands in an address, behind its `://`. In one that is written as it must be, there is no
/// slash and no question mark in it, and what ends there is `USER:PASSWORD@HOST`. Where that is neither this nor
/// a list of hosts, it is taken for the beginning of a password that was not written so, and goes up to the last
/// `@`. What looks like a port may be such a beginning too, if the `@` is neither in the name of the queue nor in
/// options, before what `word` says is the end.
fn password_in(rest: &str, word: impl Fn(&str) -> usize) -> Option<Range<usize>> {
    let authority = &rest[..rest.find(['/', '?', '\n']).unwrap_or(rest.len())];
    if let Some(at) = authority.rfind('@') {
        let colon = authority[..at].find(':')?;
        return Some(colon + 1..at);
    }
    let colon = authority.find(':')?;
    let whole = if has_ports(authority) { &rest[..word(rest)] } else { rest };
    let at = whole.rfind('@')?;
    let (before, behind) = whole.split_at(at);
    let is_option = before.split_once('?').is_some_and(|(_, options)| options.contains('='));
    if has_ports(authority) && (is_option || !behind.contains('/')) {
        return None;
    }
    Some(colon + 1..at)
}

/// Whether each colon in a list of hosts stands before a port, or in brackets.
fn has_ports(hosts: &str) -> bool {
    hosts.split(',').all(|host| {
        let behind = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
        let port = behind.split_once(':').map_or("0", |(_, port)| port);
        port.parse::<u16>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let url = Url::new("amqp://me:secret@host:5672/%2f/jobs?x=1").expect("one");
        assert_eq!(url.to_string(), "amqp://me:***@host:5672/%2f/jobs?x=1");
        assert!(!format!("{url:?}").contains("secret"));
        assert_eq!(url.reveal(), "amqp://me:secret@host:5672/%2f/jobs?x=1");
        let error = Url::new("amqp://me:secret@host/a b").expect_err("bad");
        assert!(!error.contains("secret"), "{error}");
    }

    /// One that was not written as it must be was shown as a whole: it was taken for the path.
    #[test]
    fn a_password_with_a_slash_is_not_shown() {
        for (text, shown) in [
            ("amqp://u:sec/RET@h/q", "amqp://u:***@h/q"),
            ("amqp://u:sec?RET@h/q", "amqp://u:***@h/q"),
            ("amqp://u:/s@e@h:1/q", "amqp://u:***@h:1/q"),
            ("amqp://u:12/34@h/q", "amqp://u:***@h/q"),
            ("amqp://u:12?34@h/q", "amqp://u:***@h/q"),
            // These have none.
            ("kafka://h:1,[::1]:2/q", "kafka://h:1,[::1]:2/q"),
            ("nats://h:4222/q?creds=/a@b", "nats://h:4222/q?creds=/a@b"),
            ("amqp://h/%2f/q@x:y@z", "amqp://h/%2f/q@x:y@z"),
            ("amqp://h:5672/%2f/q@x", "amqp://h:5672/%2f/q@x"),
        ] {
            assert_eq!(without_password(text), shown);
            assert_eq!(without_passwords(text), shown);
        }
    }

    #[test]
    fn passwords_in_a_text_are_not_shown() {
        for (text, shown) in [
            ("no url", "no url"),
            ("'amqp://me:s3@h/q' is bad", "'amqp://me:***@h/q' is bad"),
            ("a://u:p@h b://h c://u:p@h", "a://u:***@h b://h c://u:***@h"),
            ("a://u:p@a b/q: no", "a://u:***@a b/q: no"),
            ("a://h/x:y@z", "a://h/x:y@z"),
            ("'a://u:it's a \"p@h/q' is bad", "'a://u:***@h/q' is bad"),
            ("'a://u:it/s a p@h/q' is bad", "'a://u:***@h/q' is bad"),
            ("no a://h:5672/q, b://u:p/w@h/q", "no a://h:5672/q, b://u:***@h/q"),
            ("no a://h:5672/q: ask root@h", "no a://h:5672/q: ask root@h"),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        for (text, shown) in [
            ("nats://s3cret@h/q", "nats://***@h/q"),
            ("TLS://s3cret@h,i:4222/q?x=y@z", "TLS://***@h,i:4222/q?x=y@z"),
            ("nats+tls://s3cret@h/q", "nats+tls://***@h/q"),
            ("nats://me@h/q?password-file=/pw", "nats://me@h/q?password-file=/pw"),
            ("nats://me:s3cret@h/q", "nats://me:***@h/q"),
            ("nats://h/q@x", "nats://h/q@x"),
            ("amqp://me@h/q", "amqp://me@h/q"),
        ] {
            assert_eq!(Url::new(text).expect("one").to_string(), shown);
            let (text, shown) =
                (format!("'{text}' or {text} is bad"), format!("'{shown}' or {shown} is bad"));
            assert_eq!(without_passwords(&text), shown);
        }
    }

    #[test]
    fn an_address_has_a_name() {
        for (text, name) in [
            ("amqp://me:secret@host/%2f/jobs", "jobs"),
            ("kafka://b1,b2:9093/jobs?x=/y", "jobs"),
            ("zmq+tcp://me:secret@host:5555", "host_5555"),
            ("zmq+ipc:///run/.x", "x"),
            ("nats://host/a*b", "a_b"),
            ("nats://host/-", "default"),
        ] {
            assert_eq!(Url::new(text).expect("one").name().as_str(), name, "{text}");
        }
    }

    #[test]
    fn addresses_of_the_same_queue_are_known() {
        let url = |text: &str| Url::new(text).expect("one");
        for (one, other, same) in [
            ("nats://h/q", "nats://me:p@h/q?delivery-limit=3", true),
            ("nats://h/q", "nats://h/r", false),
            ("nats://h/q", "nats://i/q", false),
            ("amqp://a@h/%2f/q", "amqp://b@h/%2f/q/", true),
            ("amqp://h/%2f/q@x", "amqp://h/%2f/q@y", false),
            ("kafka://h/q", "nats://h/q", false),
        ] {
            assert_eq!(url(one).is_same_queue(&url(other)), same, "{one} {other}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["jobs", "://x", "a b://x", "amqp://", "amqp://h/\u{1b}"] {
            assert!(Url::new(text).is_err(), "{text:?}");
        }
    }
}
