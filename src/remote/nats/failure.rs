//! What async-nats and JetStream say when something fails, in words for users.

use async_nats::{ConnectError, ConnectErrorKind, Message};

use crate::remote::failure::{Failure, Kind};
use crate::remote::place::Place;

/// Whom a server is told that we are. A token is a secret, and not kept for that.
#[derive(Clone, Debug)]
pub(super) enum Who {
    Nobody,
    User(String),
    Token,
}

/// Where a connection goes and as whom: what its failures name.
#[derive(Clone, Debug)]
pub(super) struct Says {
    pub(super) place: Place,
    pub(super) who: Who,
}

/// JetStream's own number of an error, which is a part of its text.
fn number_in(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("error code ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Numbers of JetStream's errors.
const STREAM_NOT_FOUND: u64 = 10_059;
const CONSUMER_NOT_FOUND: u64 = 10_014;
const NOT_ENABLED: [u64; 2] = [10_039, 10_076];
const NO_ROOM: [u64; 5] = [10_023, 10_028, 10_047, 10_077, 10_002];
const NOT_NOW: [u64; 4] = [10_004, 10_008, 10_009, 10_024];

/// Whether there is no such stream.
pub(super) fn is_missing(error: &impl std::fmt::Display) -> bool {
    number_in(&error.to_string()) == Some(STREAM_NOT_FOUND)
}

/// Whether there is no such consumer.
pub(super) fn is_no_consumer(text: &str) -> bool {
    number_in(text) == Some(CONSUMER_NOT_FOUND) || text.contains("consumer not found")
}

/// Whether a work queue has a consumer already of what another one was to take.
pub(super) fn is_second_of_work_queue(text: &str) -> bool {
    matches!(number_in(text), Some(10_099 | 10_100))
}

/// Whether an answer of JetStream's says that something went wrong.
pub(super) fn answered(says: &Says, doing: &str, answer: &Message) -> Result<(), Failure> {
    if memchr::memmem::find(&answer.payload, b"\"error\"").is_none() {
        return Ok(());
    }
    #[derive(serde::Deserialize)]
    struct Answer {
        error: Refused,
    }
    #[derive(serde::Deserialize)]
    struct Refused {
        #[serde(default)]
        err_code: u64,
        #[serde(default)]
        description: String,
    }
    let text = match serde_json::from_slice::<Answer>(&answer.payload) {
        Ok(Answer { error }) => format!("{} (error code {})", error.description, error.err_code),
        Err(_) => String::from_utf8_lossy(&answer.payload).into_owned(),
    };
    Err(says.refused(doing, &text))
}

/// Tells connections that the server refused from those that nobody took.
fn io_says<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

impl Says {
    /// Why a connection did not come about.
    pub(super) fn connecting(&self, error: &ConnectError) -> Failure {
        let text = error.to_string();
        let authorization = || self.denied("user or password is wrong, or is needed");
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation => authorization(),
            ConnectErrorKind::Authentication => {
                self.denied("the credentials cannot be used for it")
            }
            _ if text.to_ascii_lowercase().contains("authorization violation") => authorization(),
            ConnectErrorKind::Tls => self.place.tls(text),
            _ => match io_says(error) {
                Some(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
                    self.place.unreachable("connection refused")
                }
                Some(io) if is_about_tls(io) => self.place.tls(io),
                _ => self.place.unreachable(text),
            },
        }
    }

    /// It does not take us for whom we are.
    fn denied(&self, why: &str) -> Failure {
        match &self.who {
            Who::Nobody => self.place.denied(None, why),
            Who::User(user) => self.place.denied(Some(user), why),
            Who::Token => {
                let refused = format!("{} refused the token", self.place);
                Failure::new(Kind::Denied, refused).with_remedy(
                    "give the right one by ?token-file=; or, if a user is meant, a password too, by \
                     ?password-file= or in MQ_REMOTE_PASSWORD",
                )
            }
        }
    }

    /// Why something failed on a connection that was there.
    pub(super) fn failed(&self, doing: &str, error: &(impl std::fmt::Display + ?Sized)) -> Failure {
        self.refused(doing, &error.to_string())
    }

    /// The same from JetStream's own text.
    pub(super) fn refused(&self, doing: &str, text: &str) -> Failure {
        let failure =
            |kind| Failure::new(kind, format!("cannot {doing} with {}: {text}", self.place));
        match number_in(text) {
            Some(STREAM_NOT_FOUND | CONSUMER_NOT_FOUND) => failure(Kind::Missing),
            Some(number) if NOT_ENABLED.contains(&number) => failure(Kind::Missing)
                .with_remedy("start nats-server with JetStream: nats-server -js"),
            Some(number) if NO_ROOM.contains(&number) || NOT_NOW.contains(&number) => {
                failure(Kind::Busy)
            }
            Some(10_054) => failure(Kind::BadInput),
            Some(_) => failure(Kind::Other),
            None if text.contains("max payload") => failure(Kind::BadInput),
            None if text.contains("no responders") => failure(Kind::Busy)
                .with_remedy("is JetStream on there (nats-server -js), and does the stream exist?"),
            None if text.contains("timed out") => failure(Kind::Unreachable),
            None => self.place.lost(text),
        }
    }

    /// The connection is lost.
    pub(super) fn lost(&self) -> Failure {
        self.place.lost("it was closed")
    }
}

fn is_about_tls(error: &std::io::Error) -> bool {
    let text = error.to_string().to_ascii_lowercase();
    text.contains("certificate") || text.contains("tls") || text.contains("handshake")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_error_is_found_in_its_text() {
        let text = "jetstream error: stream not found (code 404, error code 10059)";
        assert_eq!(number_in(text), Some(STREAM_NOT_FOUND));
        assert_eq!(number_in("timed out"), None);
    }
}
