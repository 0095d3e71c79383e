//! What an engine does for a session: the seam between the wire protocol and the world.
//!
//! An engine has one implementation of [`Engine`], with its [`Publisher`] and [`Consumer`]. None of
//! them reconnects, resends or retries: they fail with a [`Failure`] that
//! [passes](Failure::passes), and the session throws them away and makes new ones. So what has to be
//! right about that is in one place, and is tried with each engine in the same way.
//!
//! Nothing here waits for ever on a peer that says nothing: an implementation has heartbeats or
//! deadlines.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::address::Address;
use super::failure::Failure;
use super::message::{Incoming, Outgoing};
use crate::settings::Start;

/// How a client wants to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishWish {
    /// The queue: as the URL has it, or that of its dead letters.
    pub queue: String,
    /// Names the sender: random, or made from the name that `--producer` gives. With a message's
    /// number it names the message.
    pub sender: u64,
    /// The sender has a name that it comes back under.
    pub named: bool,
}

/// How a client wants to receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumeWish {
    /// The queue, as the URL has it.
    pub queue: String,
    /// The group; `default` when none was given.
    pub group: String,
    /// Where a group begins that is not there yet.
    pub from: Option<Start>,
    /// Say [`Received::End`] at the end of what was there at the start.
    pub until_end: bool,
    /// Only look: nothing is settled, nothing is made.
    pub peek: bool,
    /// What is delivered is settled by that.
    pub no_ack: bool,
    /// How many messages may be unsettled at most: the engine's prefetch.
    pub prefetch: u32,
}

/// How far a sender with a name has come, as its engine knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number of its last message that is stored; 0: none is.
    pub last: u64,
    /// What it said with that message ([`Publisher::note`]), where the engine keeps such.
    pub annex: Option<Vec<u8>>,
}

/// A batch that is not confirmed as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// So many of its first messages are confirmed all the same, and need not be sent again. None, where the
    /// engine confirms batches, or knows a message again.
    pub stored: usize,
    /// Why the next one is not.
    pub failure: Failure,
}

impl From<Failure> for Unconfirmed {
    fn from(failure: Failure) -> Unconfirmed {
        Unconfirmed { stored: 0, failure }
    }
}

/// Resolves when the whole batch is confirmed as the engine's guarantee has it, or fails.
pub type Confirmation = BoxFuture<'static, Result<(), Unconfirmed>>;

/// Why the engine takes nothing for now, though the connection stands; `None` while it takes what is sent.
pub type Holding = watch::Receiver<Option<Failure>>;

/// Sends to one queue.
pub trait Publisher: Send + 'static {
    /// Hands a batch to the engine, in order, behind all batches before it; waits only where the
    /// engine's client holds back. The confirmation is awaited elsewhere, while more is sent.
    ///
    /// # Errors
    /// What [passes](Failure::passes) makes the session begin anew with what is unconfirmed.
    fn publish(
        &mut self,
        batch: Vec<Outgoing>,
    ) -> impl Future<Output = Result<Confirmation, Failure>> + Send;

    /// How far its sender had come before this publisher was made: what is numbered up to there is not
    /// handed over again. `None`: it has no name, or the engine does not know.
    fn progress(&self) -> Option<Progress> {
        None
    }

    /// What its sender says with the batch that is published next, to be kept with how far it has
    /// come: at most [`ANNEX_BYTES_MAX`](crate::limits::ANNEX_BYTES_MAX).
    fn note(&mut self, annex: &[u8]) {
        let _ = annex;
    }

    /// The end: all that was handed over is with the engine, or at least with the kernel; closes.
    ///
    /// # Errors
    /// What could not be done.
    fn finish(self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What [`Consumer::receive`] brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// At least one message. They are numbered by the consumer in the order in which they come,
    /// from 0, across all calls.
    Messages(Vec<Incoming>),
    /// With [`ConsumeWish::until_end`]: all that was there at the start has been received.
    End,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is done.
    Ack,
    /// It was not worked on: ready again, in its old place if the engine has such.
    Release,
    /// A try failed: ready again after so long. Only asked of an engine whose
    /// [`Abilities::delays_retries`](Abilities) says so; else the session keeps it, and tries again itself.
    Retry(Duration),
    /// It failed for good, and the engine is to dead-letter it. Only asked where the URL says so
    /// (`dead-letter=engine`); else the session sends it to `NAME.dead` and acks it.
    Dead,
    /// It is being worked on: not to be given to another because of the time that it takes.
    Progress,
}

/// Receives from one queue.
pub trait Consumer: Send + 'static {
    /// Waits for messages: all that are here, at most `limit` of them. Safe to be cancelled:
    /// nothing that was not returned counts as delivered.
    ///
    /// # Errors
    /// What [passes](Failure::passes) makes the session begin anew; what was unsettled comes again.
    fn receive(&mut self, limit: usize) -> impl Future<Output = Result<Received, Failure>> + Send;

    /// Settles messages by their numbers: ranges, ascending, not empty, each message once (but
    /// for [`Settlement::Progress`]). Need not wait until the engine has heard of it.
    ///
    /// # Errors
    /// As above.
    fn settle(
        &mut self,
        numbers: &[std::ops::Range<u64>],
        settlement: Settlement,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// From now on so many messages may be unsettled at most, as in [`ConsumeWish::prefetch`]: the
    /// client's credit has grown or shrunk. Where the engine has a prefetch, that follows.
    ///
    /// # Errors
    /// As above.
    fn allow(&mut self, prefetch: u32) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = prefetch;
        async { Ok(()) }
    }

    /// Waits until the engine has taken in all settlements.
    ///
    /// # Errors
    /// As above: it is then not known which of them it has.
    fn flush(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The end: flushes, gives back what is unsettled, closes.
    ///
    /// # Errors
    /// As above.
    fn finish(self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What an engine can tell of a queue; absent is shown as `-`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueFigures {
    /// Messages that a receiver of the group (or of the queue) can be given.
    pub ready: Option<u64>,
    /// Messages that receivers hold.
    pub unacked: Option<u64>,
    /// Receivers.
    pub receivers: Option<u64>,
    /// Bytes.
    pub bytes: Option<u64>,
    /// Where the next message goes, if the engine numbers them.
    pub end: Option<u64>,
    /// Groups that it knows of: name and messages ready, if known.
    pub groups: Vec<(String, Option<u64>)>,
}

/// What an engine can do: the table in mq-remote(1) is made of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// How users call it: `RabbitMQ`.
    pub name: &'static str,
    /// The schemes of its URLs, the usual one first.
    pub schemes: &'static [&'static str],
    /// When a message counts as sent, in a few words.
    pub confirmed: &'static str,
    /// It keeps messages in the order in which one sender sent them, for one receiver.
    pub ordered: Ability,
    /// A message that is sent again after a fault is stored once.
    pub once: Ability,
    /// `-k`.
    pub keys: Ability,
    /// `-H`.
    pub headers: Ability,
    /// `--id`.
    pub ids: Ability,
    /// `--ttl`.
    pub ttl: Ability,
    /// `--delay`.
    pub delay: Ability,
    /// `--producer`.
    pub producers: Ability,
    /// `-g`.
    pub groups: Ability,
    /// `--from`.
    pub from: Ability,
    /// `-e`: the end is known.
    pub end: Ability,
    /// `--peek`.
    pub peek: Ability,
    /// Acks at all: a message that was not acked comes again.
    pub acks: Ability,
    /// It can make a failed message wait before it comes again; else the session does that.
    pub delays_retries: bool,
    /// `mq-admin purge`.
    pub purge: Ability,
    /// `mq-admin rm`.
    pub remove: Ability,
    /// `mq-admin show`, `mq-stat`.
    pub figures: Ability,
}

impl Abilities {
    /// Its addresses need not name a queue: a socket is one by itself.
    #[must_use]
    pub fn is_nameless(&self) -> bool {
        self.schemes.iter().any(|scheme| scheme.starts_with("zmq"))
    }
}

/// Whether an engine can do a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// It can.
    Yes,
    /// It can, with a restriction that the table names.
    Partly(&'static str),
    /// It cannot: why, and what to use instead, as a sentence. The flag is refused with it.
    No(&'static str),
}

/// An engine: a connection to it, or what makes connections.
pub trait Engine: Sized + Send + Sync + 'static {
    /// What it can do.
    const ABILITIES: Abilities;
    /// Sends.
    type Publisher: Publisher;
    /// Receives.
    type Consumer: Consumer;

    /// Connects, within `patience`, and learns that user, password and TLS are right.
    ///
    /// # Errors
    /// Each cause by its own kind and words.
    fn connect(
        address: &Address,
        patience: Duration,
    ) -> impl Future<Output = Result<Self, Failure>> + Send;

    /// Makes the queue if it is not there and the engine wants it made, and opens it for sending.
    ///
    /// # Errors
    /// As [`Engine::connect`].
    fn publisher(
        &self,
        wish: &PublishWish,
    ) -> impl Future<Output = Result<Self::Publisher, Failure>> + Send;

    /// Where it is told that the engine takes nothing for now; `None`: it would fail instead.
    fn holding(&self) -> Option<Holding> {
        None
    }

    /// Makes queue and group if they are not there, unless it is only to look, and opens them.
    ///
    /// # Errors
    /// As [`Engine::connect`].
    fn consumer(
        &self,
        wish: &ConsumeWish,
    ) -> impl Future<Output = Result<Self::Consumer, Failure>> + Send;

    /// What can be told of a queue; `None` when it is known not to be there.
    ///
    /// # Errors
    /// As [`Engine::connect`].
    fn figures(
        &self,
        queue: &str,
    ) -> impl Future<Output = Result<Option<QueueFigures>, Failure>> + Send;

    /// Removes all messages that are ready: how many, if the engine tells.
    ///
    /// # Errors
    /// As [`Engine::connect`]; [`Kind::Unsupported`](super::failure::Kind::Unsupported).
    fn purge(&self, queue: &str) -> impl Future<Output = Result<Option<u64>, Failure>> + Send;

    /// Removes the queue.
    ///
    /// # Errors
    /// As [`Engine::purge`].
    fn remove(&self, queue: &str) -> impl Future<Output = Result<(), Failure>> + Send;
}
