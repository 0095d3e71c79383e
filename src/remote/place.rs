//! Where an engine is: what its failures name, how its hosts are found, and what the options of its URL
//! may be. Shared by all engines, so that the same mistake reads the same everywhere.

use std::net::SocketAddr;
use std::time::Duration;

use super::address::{Address, Host};
use super::failure::{Failure, Kind};
use crate::settings::Start;

/// Options that are the session's or were taken as the address was read, with every engine.
const OF_THE_SESSION: [&str; 3] = ["dead-letter", "delivery-limit", "password-file"];

/// An engine at an address, as messages call it: `RabbitMQ at rabbit.example:5672`.
#[derive(Clone, Debug)]
pub struct Place {
    /// How users call the engine.
    pub engine: &'static str,
    /// `HOST:PORT`, or several.
    pub at: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} at {}", self.engine, self.at)
    }
}

impl Place {
    /// The place of all hosts of an address, or of those given.
    #[must_use]
    pub fn new(engine: &'static str, at: impl Into<String>) -> Place {
        Place { engine, at: at.into() }
    }

    /// Refuses what is left of the options once an engine has taken its own.
    ///
    /// # Errors
    /// The first that is not known, by name, and those that are.
    pub fn refuse_other_options(&self, address: &Address, known: &[&str]) -> Result<(), Failure> {
        let mut left = address.options.keys().filter(|name| !OF_THE_SESSION.contains(&&***name));
        let Some(name) = left.next() else { return Ok(()) };
        let message = format!("{} has no option ?{name}", self.engine);
        let mut known: Vec<_> =
            known.iter().chain(&OF_THE_SESSION).map(|n| format!("?{n}")).collect();
        known.sort();
        Err(Failure::unsupported(message)
            .with_remedy(format!("it knows {}; see mq-remote(1)", known.join(", "))))
    }

    /// Refuses to begin elsewhere than at the newest message: for an engine in which what was taken is
    /// gone.
    ///
    /// # Errors
    /// Another start.
    pub fn only_newest(&self, from: Option<Start>) -> Result<(), Failure> {
        match from {
            None | Some(Start::Newest) => Ok(()),
            Some(_) => {
                let why = format!(
                    "{} keeps nothing that was taken, so --from can only be newest",
                    self.engine
                );
                Err(Failure::unsupported(why).with_remedy(
                    "to read from elsewhere, use Kafka or NATS, or a queue of mq itself",
                ))
            }
        }
    }

    /// Nobody answers, or the connection ended.
    #[must_use]
    pub fn unreachable(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(Kind::Unreachable, format!("cannot reach {self}: {why}"))
            .with_remedy("is it running, and are host and port right?")
    }

    /// The connection ended while it was used.
    #[must_use]
    pub fn lost(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(Kind::Unreachable, format!("the connection to {self} ended: {why}"))
    }

    /// Nothing came in time.
    #[must_use]
    pub fn silent(&self, doing: &str, wait: Duration) -> Failure {
        let message = format!("{self} did not answer within {wait:?} ({doing})");
        Failure::new(Kind::Unreachable, message)
    }

    /// User or password are wrong, or the user may not do this.
    #[must_use]
    pub fn denied(&self, user: Option<&str>, why: impl std::fmt::Display) -> Failure {
        let who =
            user.map_or_else(|| "us without a user".to_owned(), |user| format!("user {user}"));
        Failure::new(Kind::Denied, format!("{self} refused {who}: {why}")).with_remedy(
            "give user and password in the URL, by ?password-file= or in MQ_REMOTE_PASSWORD",
        )
    }

    /// TLS did not come about.
    #[must_use]
    pub fn tls(&self, why: impl std::fmt::Display) -> Failure {
        let why = why.to_string();
        let (why, remedy) = super::tls::about_certificate(&why)
            .unwrap_or((why, "is this its TLS port, and does it speak TLS 1.2 or 1.3 there?"));
        Failure::new(Kind::Tls, format!("no TLS with {self}: {why}")).with_remedy(remedy)
    }

    /// Something did not go well that no other attempt would mend.
    #[must_use]
    pub fn other(&self, doing: &str, why: impl std::fmt::Display) -> Failure {
        Failure::new(Kind::Other, format!("cannot {doing} with {self}: {why}"))
    }
}

/// What opening a socket or a TLS session there said.
#[must_use]
pub fn of_io(place: &Place, error: &std::io::Error, tls: bool) -> Failure {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => place.unreachable("connection refused"),
        // rustls tells what it does not like in such an error.
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::Other if tls => {
            place.tls(error)
        }
        ErrorKind::UnexpectedEof if tls => {
            place.tls("it ended the connection during the handshake")
        }
        _ => place.unreachable(error),
    }
}

/// The addresses of a host. So an unknown name has one sentence of its own with all engines, whatever
/// their clients make of it.
///
/// # Errors
/// [`Kind::Unreachable`]: a name that is not known now may be in a moment.
pub async fn look_up(
    place: &Place,
    host: &Host,
    port: u16,
    wait: Duration,
) -> Result<Vec<SocketAddr>, Failure> {
    let port = host.port.unwrap_or(port);
    let unknown = |why: &str| {
        let message = format!("cannot reach {place}: no host {} is known ({why})", host.name);
        Failure::new(Kind::Unreachable, message)
            .with_remedy("is the name right, and does `getent hosts` know it?")
    };
    let found = tokio::time::timeout(wait, tokio::net::lookup_host((host.name.as_str(), port)));
    match found.await {
        Err(_) => Err(unknown("the name service did not answer")),
        Ok(Err(error)) => {
            let why = error.to_string();
            Err(unknown(why.rsplit(": ").next().unwrap_or(&why)))
        }
        Ok(Ok(addresses)) => {
            let addresses: Vec<_> = addresses.collect();
            if addresses.is_empty() { Err(unknown("no address")) } else { Ok(addresses) }
        }
    }
}
