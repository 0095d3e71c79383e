//! The address of a queue at an engine: a URL.
//!
//! ```text
//! amqp://user:password@host:port/vhost/queue?option=value
//! kafka://host1,host2:9093/topic
//! nats://host/queue         stomp://host/queue         zmq+tcp://host:5555?bind
//! ```
//!
//! Parses and prints; never connects. Whatever prints an address leaves the password out.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use super::failure::{Failure, Kind};
pub use crate::url::without_password;

/// The environment variable that gives the password where the URL has none.
pub const PASSWORD_VARIABLE: &str = "MQ_REMOTE_PASSWORD";

/// A host of an engine, and its port if one was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The name or address; one of IPv6 without its brackets.
    pub name: String,
    /// The port.
    pub port: Option<u16>,
}

/// A password that no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The password, for the engine alone.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The first line of a file; `what` it is.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of_file(file: &str, what: &str) -> Result<Secret, Failure> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Failure::new(Kind::Other, format!("cannot read the {what} file {file}: {error}"))
        })?;
        Ok(Secret(text.lines().next().unwrap_or_default().to_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Secret(..)")
    }
}

/// The address of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The scheme: which engine, and how.
    pub scheme: String,
    /// The hosts; none for an address that is a path (`zmq+ipc:///run/x`).
    pub hosts: Vec<Host>,
    /// Who we are there.
    pub user: Option<String>,
    /// The password: from the URL, `?password-file=`, or `MQ_REMOTE_PASSWORD`, the first that is there.
    pub password: Option<Secret>,
    /// The path in its parts, decoded: the last one is the queue as a rule.
    pub path: Vec<String>,
    /// What stands behind the question mark, decoded; a word without `=` has an empty value.
    pub options: BTreeMap<String, String>,
}

fn bad(text: &str, why: &str) -> Failure {
    let message = format!("{} is no address of a queue: {why}", without_password(text));
    Failure::unsupported(message)
        .with_remedy("an address is SCHEME://[USER[:PASSWORD]@]HOST[:PORT]/QUEUE; see mq-remote(1)")
}

impl Address {
    /// Reads a URL. Where it has no password, that of `?password-file=` is read, or else that of the
    /// environment taken, if there is a user.
    ///
    /// # Errors
    /// What is wrong with it, as a usage error that does not show the password; a password file
    /// that cannot be read.
    pub fn parse(text: &str) -> Result<Address, Failure> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| bad(text, "it has no scheme"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.find('/') {
            Some(slash) => (&rest[..slash], &rest[slash + 1..]),
            None => (rest, ""),
        };
        let decode = |part: &str| {
            let decoded = percent_decode_str(part).decode_utf8();
            decoded.map(String::from).map_err(|_| bad(text, "a part of it is not UTF-8"))
        };
        let (who, hosts) = match authority.rsplit_once('@') {
            Some((who, hosts)) => (Some(who), hosts),
            None => (None, authority),
        };
        let (user, password) = match who.map(|who| who.split_once(':').unwrap_or((who, ""))) {
            Some((user, password)) => (Some(decode(user)?), Some(decode(password)?)),
            None => (None, None),
        };
        let hosts = hosts.split(',').filter(|host| !host.is_empty());
        let hosts = hosts.map(|host| host_of(text, host)).collect::<Result<_, _>>()?;
        if path.len() > 1 && path.ends_with('/') {
            return Err(bad(text, "it ends with a slash; one that is in a name is written %2f"));
        }
        let path = path.split('/').filter(|part| !part.is_empty()).map(decode);
        let path = path.collect::<Result<Vec<_>, _>>()?;
        let mut options = BTreeMap::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            options.insert(decode(name)?, decode(value)?);
        }
        let password = password.filter(|password| !password.is_empty()).map(Secret);
        let mut address =
            Address { scheme: scheme.to_ascii_lowercase(), hosts, user, password, path, options };
        address.find_password()?;
        Ok(address)
    }

    fn find_password(&mut self) -> Result<(), Failure> {
        if self.user.is_none() && self.options.contains_key("password-file") {
            let why = "?password-file= names the password of a user, and the address has none";
            return Err(Failure::unsupported(why).with_remedy("SCHEME://USER@HOST/..."));
        }
        if self.user.is_none() || self.password.is_some() {
            return Ok(());
        }
        if let Some(file) = self.options.remove("password-file") {
            self.password = Some(Secret::of_file(&file, "password")?);
        } else if let Ok(password) = std::env::var(PASSWORD_VARIABLE) {
            self.password = Some(Secret(password));
        }
        Ok(())
    }

    /// The queue: the last part of the path.
    #[must_use]
    pub fn queue(&self) -> Option<&str> {
        self.path.last().map(String::as_str)
    }

    /// Takes an option out; those that are left at the end are not known to the engine.
    pub fn take_option(&mut self, name: &str) -> Option<String> {
        self.options.remove(name)
    }

    /// The hosts as `HOST:PORT`, separated by commas, those without a port with this one.
    #[must_use]
    pub fn hosts_with(&self, port: u16) -> String {
        let each = self.hosts.iter().map(|host| {
            let port = host.port.unwrap_or(port);
            if host.name.contains(':') {
                format!("[{}]:{port}", host.name)
            } else {
                format!("{}:{port}", host.name)
            }
        });
        each.collect::<Vec<_>>().join(",")
    }
}

fn host_of(text: &str, host: &str) -> Result<Host, Failure> {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (name, behind) =
            rest.split_once(']').ok_or_else(|| bad(text, "a bracket is not closed"))?;
        (name, behind.strip_prefix(':'))
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        }
    };
    let port = match port {
        Some(port) => {
            let number = port.parse().ok().filter(|port| *port != 0);
            Some(number.ok_or_else(|| bad(text, "a port is a number from 1 to 65535"))?)
        }
        None => None,
    };
    Ok(Host { name: name.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, port: Option<u16>) -> Host {
        Host { name: name.to_owned(), port }
    }

    #[test]
    fn urls_are_read() {
        let address =
            Address::parse("amqp://me:s%40t@rabbit.example/%2f/jobs?a=b&bind").expect("one");
        assert_eq!(address.scheme, "amqp");
        assert_eq!(address.hosts, [host("rabbit.example", None)]);
        assert_eq!(address.user.as_deref(), Some("me"));
        assert_eq!(address.password.as_ref().map(Secret::reveal), Some("s@t"));
        assert_eq!(address.path, ["/", "jobs"]);
        assert_eq!(address.queue(), Some("jobs"));
        assert_eq!(address.options["a"], "b");
        assert_eq!(address.options["bind"], "");
        let address = Address::parse("kafka://b1,b2:93,[::1]:94/jobs").expect("one");
        assert_eq!(address.hosts_with(92), "b1:92,b2:93,[::1]:94");
        let address = Address::parse("zmq+ipc:///run/x").expect("one");
        assert!(address.hosts.is_empty());
        assert_eq!(address.path, ["run", "x"]);
    }

    #[test]
    fn bad_ones_are_usage_errors_without_the_password() {
        for text in [
            "amqp://u:secret@h:x/q",
            "amqp://u:secret@[::1/q",
            "amqp://u:secret@h:0/q",
            "amqp://u:secret@h/%ff",
            "amqp://u:secret@h/%2f/",
        ] {
            let failure = Address::parse(text).expect_err("bad");
            assert_eq!(failure.kind, Kind::Unsupported);
            assert!(!failure.message.contains("secret"), "{failure}");
            assert!(failure.message.contains("amqp://u:***@"), "{failure}");
        }
        let address = Address::parse("amqp://u:secret@h/q").expect("one");
        assert!(!format!("{address:?}").contains("secret"));
    }

    #[test]
    fn a_password_file_gives_its_first_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("password");
        std::fs::write(&file, "two words\nmore\n").expect("written");
        let text = format!("nats://u@h/q?password-file={}", file.display());
        let address = Address::parse(&text).expect("one");
        assert_eq!(address.password.as_ref().map(Secret::reveal), Some("two words"));
        let failure = Address::parse("nats://u@h/q?password-file=/nowhere/x").expect_err("none");
        assert!(failure.message.contains("/nowhere/x"), "{failure}");
        // Without a user it was not even read.
        let text = format!("nats://h/q?password-file={}", file.display());
        let failure = Address::parse(&text).expect_err("of nobody");
        assert_eq!(failure.kind, Kind::Unsupported);
        assert!(failure.message.contains("?password-file="), "{failure}");
    }
}
