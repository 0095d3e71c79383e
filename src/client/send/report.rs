//! What a sender tells the tool around it: along the way, and when it ends early.

use std::os::fd::BorrowedFd;

use crate::client::ClientError;
use crate::client::cut::Misfit;
use crate::client::rerun::Mismatch;
use crate::limits;
use crate::wire::Fault;

/// The tool around a sender: it hears what happens, and it has the signals.
pub trait Host {
    /// A descriptor that is readable once a signal has come.
    fn signals(&self) -> Option<BorrowedFd<'_>>;
    /// Takes one signal that has come.
    fn take_signal(&mut self) -> Option<i32>;
    /// So many messages and bytes of the input are confirmed in all.
    fn confirmed(&mut self, messages: u64, bytes: u64);
    /// Something that the user may want to know.
    fn notice(&mut self, notice: Notice<'_>);
}

/// What a [`Host`] is told along the way.
#[derive(Debug)]
pub enum Notice<'a> {
    /// The input is cut at newlines and holds NUL bytes.
    NulBytes,
    /// The connection was lost; whether somebody stopped the server on purpose.
    Lost {
        /// See [`crate::wire::Goodbye::orderly`].
        orderly: bool,
    },
    /// A server is there again.
    Back,
    /// There is no room; it is tried again.
    Full(&'a Fault),
}

/// Why a sender ended before everything was confirmed.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The server, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server that was sent to is gone, and none has come in its place.
    #[error("the server went away while sending: {0}")]
    Away(#[source] ClientError),
    /// The input cannot be taken as it is.
    #[error("{}", misfit_text(name, what))]
    BadInput {
        /// The source.
        name: String,
        /// What is wrong with it.
        what: Misfit,
    },
    /// The input cannot be read.
    #[error("cannot read {name}: {source}")]
    Input {
        /// The source.
        name: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Everything is confirmed, but the copy is not complete.
    #[error("cannot copy the input to stdout: {0}")]
    Copy(#[source] std::io::Error),
    /// A signal.
    #[error("ended by a signal")]
    Signal(i32),
}

fn misfit_text(name: &str, what: &Misfit) -> String {
    match what {
        Misfit::TooLarge(what) => format!(
            "message {} of the input (from byte {} of {name} on) is larger than {} MiB",
            what.message,
            what.begins,
            limits::MESSAGE_BYTES_MAX >> 20
        ),
        Misfit::Envelope { line, what } => format!("line {line} of {name} {what}"),
        Misfit::DelayedLarge { message } => format!(
            "message {message} of the input is delayed and, with its attributes, larger than {} KiB",
            limits::DELAYED_RECORD_BYTES_MAX >> 10
        ),
        Misfit::Rerun(Mismatch::Differs(messages)) => format!(
            "this is not the input that was sent under this name before: \
             its first {messages} messages are not all the same"
        ),
        Misfit::Rerun(Mismatch::Shorter(messages, stored)) => format!(
            "this is not the input that was sent under this name before: \
             it has {messages} messages, and {stored} are stored"
        ),
    }
}
