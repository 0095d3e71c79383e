//! The wire side of `mq-remote`: one client on one socket, one engine behind it.
//!
//! ```text
//! frames ──▶ session ──▶ sending ──▶ payload: messages of a frame ──▶ Publisher
//!                   ├──▶ receiving ◀─ delivery: batches of messages ◀─ Consumer
//!                   │      held, retrying, burial, letter
//!                   └──▶ admin ──▶ figures, purge, remove
//!            link: the connection to the engine, made anew as long as the client's -w says
//! ```
//!
//! A session serves one thing at a time: a channel for sending, one for receiving, or requests, as each
//! connection of a client is for one of these. It runs on one task; what an engine's client does beside
//! it is the engine's. It never prints but by way of [`link::Link::tell`], and never ends the process.

mod admin;
mod burial;
mod delivery;
mod frames;
mod held;
mod letter;
pub mod link;
mod payload;
mod receiving;
mod refusals;
mod retrying;
mod sending;

use std::time::Duration;

use tokio::net::UnixStream;

use crate::limits;
use crate::units::{Micros, QueueId};
use crate::url::Url;
use crate::wire::{self, ErrorCode, Fault, Reply, Request, ServerInfo, WireError};

use super::address::Address;
use super::engine::{Ability, Engine};
use super::failure::{Failure, Kind};
use frames::{Broken, Frame, Frames, Outbox};
use link::{Link, unless};

/// What a session is told beside the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The queue's URL, as the user wrote it.
    pub url: Url,
    /// How long an engine that does not answer is tried; `None`: for ever.
    pub wait: Option<Duration>,
    /// Nothing is said on stderr.
    pub is_quiet: bool,
}

/// What the session itself takes from the URL; the rest is the engine's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    /// `dead-letter=engine`, or the queue where dead letters go.
    dead_letter: Option<String>,
    /// `delivery-limit=N`; 0 is none.
    delivery_limit: Option<u32>,
}

impl Options {
    fn take(address: &mut Address) -> Result<Options, Failure> {
        let limit = match address.take_option("delivery-limit") {
            None => limits::DELIVERY_LIMIT_DEFAULT,
            Some(text) => text.parse().map_err(|_| {
                let message = format!("delivery-limit={text} is no number of attempts; 0 is none");
                Failure::unsupported(message)
            })?,
        };
        let dead_letter = address.take_option("dead-letter").filter(|to| !to.is_empty());
        Ok(Options { dead_letter, delivery_limit: Some(limit).filter(|limit| *limit > 0) })
    }
}

/// Why a session ends.
#[derive(Debug)]
enum Stop {
    /// The client is gone, as it goes when it has all that it wanted.
    Gone,
    /// The channel failed: the client is told.
    Failed(u16, Failure),
    /// The client breaks the protocol, or the socket failed.
    Broken(String),
}

impl Stop {
    fn protocol(what: &str) -> Stop {
        Stop::Broken(what.to_owned())
    }
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Stop {
        match broken {
            Broken::Gone => Stop::Gone,
            broken => Stop::Broken(broken.to_string()),
        }
    }
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Stop {
        Stop::Broken(error.to_string())
    }
}

/// Sixteen random bytes.
fn random() -> [u8; 16] {
    let mut bytes = [0u8; 16];
    // So few come whole, and the pool is seeded before any user's program runs.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the system gives no random numbers");
    bytes
}

/// An incarnation for the client: offsets mean nothing beyond the session.
fn random_queue() -> QueueId {
    QueueId(uuid::Builder::from_random_bytes(random()).into_uuid())
}

/// A sender that nobody else is.
fn random_sender() -> u64 {
    u64::from_le_bytes(*random().first_chunk().expect("eight of sixteen")).max(1)
}

/// One client and its engine.
struct Session<E> {
    frames: Frames,
    out: Outbox,
    link: Link<E>,
    url: Url,
    options: Options,
    /// The user was told that messages may be lost.
    is_told: bool,
}

/// Serves a client until it hangs up.
///
/// # Errors
/// A client that breaks the protocol, or a socket that fails, in words.
pub async fn serve<E: Engine>(stream: UnixStream, opening: Opening) -> Result<(), String> {
    let parsed = Address::parse(opening.url.reveal()).and_then(|mut address| {
        let options = Options::take(&mut address)?;
        Ok((address, options))
    });
    let (address, options) = match parsed {
        Ok(parsed) => parsed,
        Err(failure) => return refuse(stream, &failure).await,
    };
    let (frames, out) = frames::split(stream);
    let link = Link::new(address, opening.wait, opening.is_quiet);
    let url = opening.url;
    let mut session = Session::<E> { frames, out, link, url, options, is_told: false };
    let stopped = session.run().await;
    tell(&mut session.out, stopped).await
}

/// Tells a client, whatever it asks for, that there is nothing to be had.
///
/// # Errors
/// See [`serve`].
pub async fn refuse(stream: UnixStream, failure: &Failure) -> Result<(), String> {
    let (mut frames, mut out) = frames::split(stream);
    let served = async {
        welcome(&mut frames, &mut out, Vec::new()).await?;
        // A client may wait for that before it says what it wants.
        out.flush().await?;
        let frame = frames.next().await?;
        Err(Stop::Failed(frame.header.channel, failure.clone()))
    };
    let stopped: Result<(), Stop> = served.await;
    tell(&mut out, stopped).await
}

/// The handshake.
async fn welcome(frames: &mut Frames, out: &mut Outbox, cannot: Vec<String>) -> Result<(), Stop> {
    let frame = frames.next().await?;
    let Request::Hello { oldest, newest, .. } = Request::decode(&frame.header, &frame.body)? else {
        return Err(Stop::protocol("the first frame is no HELLO"));
    };
    if oldest > wire::VERSION || newest < wire::VERSION_OLDEST {
        let message = format!(
            "mq-remote {} speaks protocol versions {} to {}, and the client {oldest} to {newest}",
            env!("CARGO_PKG_VERSION"),
            wire::VERSION_OLDEST,
            wire::VERSION
        );
        out.push(0, &Reply::Error(Fault::new(ErrorCode::Version, message)));
        return Err(Stop::Gone);
    }
    let info = ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        producer_retry: Micros(0),
        cannot,
    };
    out.push(0, &Reply::Welcome(newest.min(wire::VERSION), info));
    Ok(())
}

/// What comes of `work`, unless the client is gone before.
async fn or_gone<T>(work: impl Future<Output = T>, frames: &Frames) -> Result<T, Stop> {
    unless(work, frames.hung_up()).await.map_err(|()| Stop::Gone)
}

/// The last words.
async fn tell(out: &mut Outbox, stopped: Result<(), Stop>) -> Result<(), String> {
    let ended = match stopped {
        Ok(()) | Err(Stop::Gone) => Ok(()),
        Err(Stop::Failed(channel, failure)) => {
            out.push(channel, &Reply::Error(fault(&failure)));
            Ok(())
        }
        Err(Stop::Broken(what)) => {
            out.push(0, &Reply::Error(Fault::new(ErrorCode::Protocol, what.clone())));
            Err(what)
        }
    };
    // A client that does not listen any more has nothing to be told.
    let _ = tokio::time::timeout(limits::DRAIN.to_duration(), out.flush()).await;
    ended
}

/// A failure as the client hears it: its exit status follows from the code.
fn fault(failure: &Failure) -> Fault {
    let code = match failure.kind {
        Kind::Unreachable => ErrorCode::Unreachable,
        Kind::Busy => ErrorCode::Busy,
        Kind::Denied | Kind::Tls => ErrorCode::Access,
        Kind::Missing => ErrorCode::NotFound,
        Kind::Unsupported => ErrorCode::Usage,
        Kind::BadInput => ErrorCode::BadInput,
        Kind::Fenced => ErrorCode::Fenced,
        Kind::Other => ErrorCode::Unknown,
    };
    Fault { remedy: failure.remedy.clone(), ..Fault::new(code, failure.message.clone()) }
}

impl<E: Engine> Session<E> {
    async fn run(&mut self) -> Result<(), Stop> {
        let cannot = refusals::cannot(&E::ABILITIES);
        welcome(&mut self.frames, &mut self.out, cannot).await?;
        loop {
            let frame = tokio::select! {
                biased;
                written = self.out.write(), if !self.out.is_empty() => {
                    written?;
                    continue;
                }
                frame = self.frames.next() => frame?,
            };
            let channel = frame.header.channel;
            match Request::decode(&frame.header, &frame.body)? {
                Request::OpenSend(open) => self.send(channel, open).await?,
                Request::OpenReceive(open) => self.receive(channel, open).await?,
                Request::Admin(request) => self.administer(channel, request).await?,
                _ => return Err(Stop::protocol("a frame on a channel that is not open")),
            }
        }
    }

    /// The queue that the URL names.
    fn queue(&self) -> Result<String, Failure> {
        let queue = self.link.address().queue().map(str::to_owned);
        queue
            .or_else(|| E::ABILITIES.is_nameless().then(String::new))
            .ok_or_else(|| sending::nameless(&self.url.to_string()))
    }

    /// Says once that an engine without acks may lose messages.
    fn at_most_once(&mut self) {
        if let (Ability::No(why), false) = (E::ABILITIES.acks, self.is_told) {
            self.is_told = true;
            self.link.tell(why);
        }
    }
}
