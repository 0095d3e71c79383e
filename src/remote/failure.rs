//! Why an engine did not do what it was asked for, and what follows from that.

/// What kind of failure it was: it decides whether to try again, and the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody answers at the address, or the connection ended: tried again with back-off for as
    /// long as the client's `-w` says, then 69.
    Unreachable,
    /// The engine is there and cannot take it now (a bound, a leader election): tried again, then 75.
    Busy,
    /// Wrong user or password, or the user may not do this. Never tried again: 1.
    Denied,
    /// There is no such virtual host, account, stream or queue, and it is not ours to make it: 1.
    Missing,
    /// TLS was refused, or the certificate does not convince: 1.
    Tls,
    /// The engine (or mq on it) cannot do what a flag asks for: 2.
    Unsupported,
    /// The message cannot be stored there as it is (too large, a header that does not fit): 65.
    BadInput,
    /// A newer sender of the same name has taken over: 1.
    Fenced,
    /// Anything else: 1.
    Other,
}

/// A failure, in words for users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// What was being done, at which engine and address, and why it failed. Never a password.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Failure {
    /// A failure without a remedy.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), remedy: None }
    }

    /// The engine, or mq on it, cannot do what is asked for: why.
    #[must_use]
    pub fn unsupported(why: impl Into<String>) -> Failure {
        Failure::new(Kind::Unsupported, why)
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn with_remedy(self, remedy: impl Into<String>) -> Failure {
        Failure { remedy: Some(remedy.into()), ..self }
    }

    /// Whether the same may go well a moment later, on a new connection.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::Busy)
    }
}
