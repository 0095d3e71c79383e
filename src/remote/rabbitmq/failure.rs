//! What lapin and RabbitMQ say when something fails, in words for users.

use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind};

use crate::remote::failure::{Failure, Kind};
use crate::remote::place::{Place, of_io};

/// Where a connection goes and as whom: what its failures name.
#[derive(Clone, Debug)]
pub(super) struct Says {
    pub(super) place: Place,
    pub(super) user: String,
    pub(super) vhost: String,
    pub(super) tls: bool,
}

/// Whether the broker said that there is no such queue or exchange.
pub(super) fn is_not_found(error: &Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}

impl Says {
    /// Why a connection did not come about.
    pub(super) fn connecting(&self, error: &Error) -> Failure {
        match error.kind() {
            ErrorKind::IOError(error) => of_io(&self.place, error, self.tls),
            ErrorKind::ProtocolError(error) => self.refused_connection(error),
            ErrorKind::InvalidProtocolVersion(version) => {
                self.place.other("speak AMQP 0-9-1", format!("it offers {version}"))
            }
            ErrorKind::ParsingError(_) if !self.tls => self
                .place
                .tls("it does not answer in AMQP")
                .with_remedy("does it expect TLS there? then the URL is amqps://..."),
            _ => self.place.unreachable(error),
        }
    }

    fn refused_connection(&self, error: &AMQPError) -> Failure {
        let text = error.get_message().to_string();
        match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                self.place.denied(Some(&self.user), "user or password is wrong")
            }
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.contains("not found") => {
                let message = format!("{} has no virtual host {}", self.place, self.vhost);
                Failure::new(Kind::Missing, message)
                    .with_remedy("the URL is amqp://HOST/VHOST/QUEUE, and the usual one, /, is %2f")
            }
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                let why = format!("it may not use virtual host {} ({text})", self.vhost);
                self.place.denied(Some(&self.user), why).with_remedy("ask its administrator for it")
            }
            _ => self.answered("connect", error),
        }
    }

    /// Why something failed on a connection that was there.
    pub(super) fn failed(&self, doing: &str, error: &Error) -> Failure {
        match error.kind() {
            ErrorKind::ProtocolError(error) => self.answered(doing, error),
            ErrorKind::ChannelsLimitReached => {
                let why = format!("{} gives no more channels", self.place);
                Failure::new(Kind::Busy, why)
            }
            ErrorKind::IOError(error) => self.place.lost(error),
            _ => self.place.lost(error),
        }
    }

    fn answered(&self, doing: &str, error: &AMQPError) -> Failure {
        let text = error.get_message().to_string();
        let kind = match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Kind::Denied,
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Kind::Missing,
            AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => Kind::Busy,
            AMQPErrorKind::Soft(AMQPSoftError::CONTENTTOOLARGE) => Kind::BadInput,
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
                if text.contains("message size") =>
            {
                Kind::BadInput
            }
            // What was held for longer than the broker has patience: it comes again.
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
                if text.contains("timed out") =>
            {
                Kind::Unreachable
            }
            AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED | AMQPHardError::INTERNALERROR) => {
                Kind::Unreachable
            }
            AMQPErrorKind::Hard(AMQPHardError::RESOURCEERROR) => Kind::Busy,
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Kind::Denied,
            AMQPErrorKind::Hard(AMQPHardError::NOTIMPLEMENTED) => Kind::Unsupported,
            _ => Kind::Other,
        };
        Failure::new(kind, format!("cannot {doing} with {}: {text}", self.place))
    }
}
