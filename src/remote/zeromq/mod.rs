//! ZeroMQ, by the zeromq crate, which speaks its protocol without a C library.
//!
//! ```text
//! zmq+tcp://host:5555          PUSH to it, or PULL from it
//! zmq+tcp://*:5555?bind        the same with our side as the one that is connected to
//! zmq+ipc:///run/x             by a socket file
//! ...?topic=T                  PUB with T as the first frame, or SUB to all that begins with T
//! ```
//!
//! Nothing is stored and nothing is acked: a message is sent when the kernel has it, and what is under
//! way when a process or a connection ends is gone. Whoever uses mq with it is told so.

mod frames;

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use zeromq::{
    PubSocket, PullSocket, PushSocket, Socket, SocketEvent, SocketRecv as _, SocketSend as _,
    SubSocket, ZmqError, ZmqMessage,
};

use super::address::Address;
use super::engine::{
    Abilities, Ability, Confirmation, ConsumeWish, Consumer, Engine, PublishWish, Publisher,
    QueueFigures, Received, Settlement, Unconfirmed,
};
use super::failure::{Failure, Kind};
use super::message::{Incoming, Outgoing};
use super::place::{Place, look_up, of_io};
use crate::units::DEFAULT_GROUP;

/// Where events of a socket come.
type Events = Box<dyn futures_util::Stream<Item = SocketEvent> + Send + Unpin>;

/// How long a socket without a peer is left alone before it is tried again, if no event says that one
/// came.
const NO_PEER: Duration = Duration::from_millis(100);

/// How many messages are sent before others on this thread have their turn.
const TURN: usize = 256;

/// A ZeroMQ endpoint; sockets are made by publishers and consumers.
#[derive(Clone, Debug)]
pub struct ZeroMq {
    place: Place,
    endpoint: String,
    bind: bool,
    topic: Option<String>,
    patience: Duration,
}

impl ZeroMq {
    fn failed(&self, doing: &str, error: &ZmqError) -> Failure {
        match error {
            ZmqError::Network(error) => of_io(&self.place, error, false),
            ZmqError::Codec(error) => self.place.lost(error),
            _ => self.place.unreachable(format!("cannot {doing}: {error}")),
        }
    }

    /// Binds or connects a socket; what happens to it from then on.
    async fn open<S: Socket>(&self, socket: &mut S) -> Result<Events, Failure> {
        let events = socket.monitor();
        if self.bind {
            let bound = socket.bind(&self.endpoint).await;
            bound.map_err(|error| {
                let why = format!("cannot listen at {}: {error}", self.endpoint);
                Failure::new(Kind::Unreachable, why)
                    .with_remedy("is the address one of this machine, and free?")
            })?;
        } else {
            let connected = tokio::time::timeout(self.patience, socket.connect(&self.endpoint));
            let connected = connected.await;
            let connected =
                connected.map_err(|_| self.place.silent("connecting", self.patience))?;
            connected.map_err(|error| self.failed("connect", &error))?;
        }
        Ok(Box::new(events))
    }
}

/// Sends on one socket.
pub struct ZmqPublisher {
    engine: ZeroMq,
    socket: Sending,
    events: Events,
}

enum Sending {
    Push(PushSocket),
    Publish(PubSocket),
}

impl Sending {
    async fn send(&mut self, message: ZmqMessage) -> Result<(), ZmqError> {
        match self {
            Sending::Push(socket) => socket.send(message).await,
            Sending::Publish(socket) => socket.send(message).await,
        }
    }
}

impl ZmqPublisher {
    /// Sends one message; where no peer is connected, waits for one if it is we who are connected to.
    async fn send(&mut self, mut message: ZmqMessage) -> Result<(), Failure> {
        loop {
            let error = match self.socket.send(message).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            message = match error {
                ZmqError::ReturnToSender { message, .. } if self.engine.bind => message,
                ZmqError::ReturnToSender { .. } => {
                    return Err(self.engine.place.lost("its peer is gone"));
                }
                error => return Err(self.engine.failed("send", &error)),
            };
            // An event says that somebody came; to try again now and then is only for safety.
            let _ = tokio::time::timeout(NO_PEER, self.events.next()).await;
        }
    }
}

impl Publisher for ZmqPublisher {
    async fn publish(&mut self, batch: Vec<Outgoing>) -> Result<Confirmation, Failure> {
        for (place, message) in batch.into_iter().enumerate() {
            let frames = frames::of(message, self.engine.topic.as_deref());
            if let Err(failure) = self.send(frames).await {
                // What the kernel has is sent, and not again: at most once.
                let unsent = Unconfirmed { stored: place, failure };
                return Ok(Box::pin(std::future::ready(Err(unsent))));
            }
            if place % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        Ok(Box::pin(std::future::ready(Ok(()))))
    }

    async fn finish(self) -> Result<(), Failure> {
        // Each send has written to its socket; the kernel delivers what it has after a close.
        match self.socket {
            Sending::Push(socket) => drop(socket.close().await),
            Sending::Publish(socket) => drop(socket.close().await),
        }
        Ok(())
    }
}

/// Receives on one socket.
pub struct ZmqConsumer {
    engine: ZeroMq,
    socket: Receiving,
    events: Events,
    arrived: VecDeque<ZmqMessage>,
}

enum Receiving {
    Pull(PullSocket),
    Subscribe(SubSocket),
}

impl Receiving {
    /// The next message. tokio holds back a socket of a task that has read much in one turn, and the crate
    /// asks that socket again until it has something, without giving up the turn: so it must not be held back.
    async fn recv(&mut self) -> Result<ZmqMessage, ZmqError> {
        match self {
            Receiving::Pull(socket) => tokio::task::unconstrained(socket.recv()).await,
            Receiving::Subscribe(socket) => tokio::task::unconstrained(socket.recv()).await,
        }
    }
}

impl ZmqConsumer {
    fn take(&mut self, limit: usize) -> Result<Vec<Incoming>, Failure> {
        let mut messages = Vec::new();
        let with_topic = self.engine.topic.is_some();
        while messages.len() < limit {
            let next = match self.arrived.pop_front() {
                Some(next) => next,
                None => match self.socket.recv().now_or_never() {
                    None => break,
                    Some(Ok(next)) => next,
                    Some(Err(_)) if !messages.is_empty() => break,
                    Some(Err(error)) => {
                        self.check(&error)?;
                        continue;
                    }
                },
            };
            messages.push(frames::incoming(next, with_topic));
        }
        Ok(messages)
    }

    /// A peer that goes is its own affair where peers connect to us; else it is the end.
    fn check(&self, error: &ZmqError) -> Result<(), Failure> {
        if self.engine.bind { Ok(()) } else { Err(self.engine.failed("receive", error)) }
    }
}

impl Consumer for ZmqConsumer {
    async fn receive(&mut self, limit: usize) -> Result<Received, Failure> {
        loop {
            let messages = self.take(limit)?;
            if !messages.is_empty() {
                return Ok(Received::Messages(messages));
            }
            tokio::select! {
                biased;
                next = self.socket.recv() => match next {
                    Ok(next) => self.arrived.push_back(next),
                    Err(error) => self.check(&error)?,
                },
                event = self.events.next() => {
                    if !self.engine.bind
                        && matches!(event, Some(SocketEvent::Disconnected(_)) | None)
                    {
                        return Err(self.engine.place.lost("its peer is gone"));
                    }
                }
            }
        }
    }

    async fn settle(&mut self, _: &[Range<u64>], _: Settlement) -> Result<(), Failure> {
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn finish(self) -> Result<(), Failure> {
        match self.socket {
            Receiving::Pull(socket) => drop(socket.close().await),
            Receiving::Subscribe(socket) => drop(socket.close().await),
        }
        Ok(())
    }
}

const NOTHING_KEPT: &str = "ZeroMQ keeps nothing; use a queue of mq itself, or forward from one: mq-recv QUEUE | mq-send URL";

impl Engine for ZeroMq {
    const ABILITIES: Abilities = Abilities {
        name: "ZeroMQ",
        schemes: &["zmq+tcp", "zmq+ipc"],
        confirmed: "it was handed to the socket: at most once, nothing is stored",
        ordered: Ability::Partly("from one peer to one peer"),
        once: Ability::Yes,
        keys: Ability::Partly("in a frame before the body"),
        headers: Ability::Partly("in a frame before the body, as JSON; unordered"),
        ids: Ability::Partly("kept in the frame of headers; nobody compares them"),
        ttl: Ability::No(NOTHING_KEPT),
        delay: Ability::No(NOTHING_KEPT),
        producers: Ability::No(NOTHING_KEPT),
        groups: Ability::No("ZeroMQ has no groups; ?topic= gives every receiver everything"),
        from: Ability::No("ZeroMQ keeps nothing to begin from"),
        end: Ability::No("ZeroMQ cannot tell an end; use -n or -w"),
        peek: Ability::No("ZeroMQ keeps nothing to look at"),
        acks: Ability::No("ZeroMQ has no acks: what was received and not worked on is lost"),
        delays_retries: false,
        purge: Ability::No("ZeroMQ keeps nothing to purge"),
        remove: Ability::No("ZeroMQ has no queues to remove"),
        figures: Ability::No("ZeroMQ keeps nothing to count"),
    };
    type Publisher = ZmqPublisher;
    type Consumer = ZmqConsumer;

    async fn connect(address: &Address, patience: Duration) -> Result<ZeroMq, Failure> {
        let mut address = address.clone();
        let bind = address.take_option("bind").is_some();
        let topic = address.take_option("topic");
        let place = Place::new(Self::ABILITIES.name, at_of(&address)?);
        place.refuse_other_options(&address, &["bind", "topic"])?;
        if address.user.is_some() {
            return Err(Failure::unsupported(
                "ZeroMQ has no users: its URL is zmq+tcp://HOST:PORT",
            ));
        }
        let endpoint = match address.hosts.first() {
            None => format!("ipc://{}", place.at),
            Some(_) => format!("tcp://{}", place.at.replace("*:", "0.0.0.0:")),
        };
        let engine = ZeroMq { place, endpoint, bind, topic, patience };
        if !bind {
            engine.reach(&address).await?;
        }
        Ok(engine)
    }

    async fn publisher(&self, _: &PublishWish) -> Result<ZmqPublisher, Failure> {
        let (socket, events) = match &self.topic {
            None => {
                let mut socket = PushSocket::new();
                let events = self.open(&mut socket).await?;
                (Sending::Push(socket), events)
            }
            Some(_) => {
                let mut socket = PubSocket::new();
                let events = self.open(&mut socket).await?;
                (Sending::Publish(socket), events)
            }
        };
        Ok(ZmqPublisher { engine: self.clone(), socket, events })
    }

    async fn consumer(&self, wish: &ConsumeWish) -> Result<ZmqConsumer, Failure> {
        let refused = [
            (wish.until_end, Self::ABILITIES.end),
            (wish.peek, Self::ABILITIES.peek),
            (wish.from.is_some(), Self::ABILITIES.from),
            (wish.group != DEFAULT_GROUP, Self::ABILITIES.groups),
        ];
        for (asked, ability) in refused {
            if let (true, Ability::No(why)) = (asked, ability) {
                return Err(Failure::unsupported(why));
            }
        }
        let (socket, events) = match &self.topic {
            None => {
                let mut socket = PullSocket::new();
                let events = self.open(&mut socket).await?;
                (Receiving::Pull(socket), events)
            }
            Some(topic) => {
                let mut socket = SubSocket::new();
                let events = self.open(&mut socket).await?;
                let subscribed = socket.subscribe(topic).await;
                subscribed.map_err(|error| self.failed("subscribe", &error))?;
                (Receiving::Subscribe(socket), events)
            }
        };
        Ok(ZmqConsumer { engine: self.clone(), socket, events, arrived: VecDeque::new() })
    }

    async fn figures(&self, _: &str) -> Result<Option<QueueFigures>, Failure> {
        Err(Failure::unsupported("ZeroMQ keeps nothing to count"))
    }

    async fn purge(&self, _: &str) -> Result<Option<u64>, Failure> {
        Err(Failure::unsupported("ZeroMQ keeps nothing to purge"))
    }

    async fn remove(&self, _: &str) -> Result<(), Failure> {
        Err(Failure::unsupported("ZeroMQ has no queues to remove"))
    }
}

/// Where the endpoint is: `HOST:PORT`, or the path of a socket.
fn at_of(address: &Address) -> Result<String, Failure> {
    match (&*address.scheme, &*address.hosts) {
        ("zmq+ipc", []) if !address.path.is_empty() => Ok(format!("/{}", address.path.join("/"))),
        ("zmq+ipc", _) => {
            Err(Failure::unsupported("an address of ZeroMQ by a file is zmq+ipc:///PATH"))
        }
        (_, [host]) if host.port.is_some() => Ok(address.hosts_with(0)),
        _ => Err(Failure::unsupported(
            "an address of ZeroMQ is zmq+tcp://HOST:PORT, or zmq+ipc:///PATH",
        )),
    }
}

impl ZeroMq {
    /// Finds out that somebody listens: the crate would try again and again in silence.
    async fn reach(&self, address: &Address) -> Result<(), Failure> {
        let Some(host) = address.hosts.first() else {
            let tried = tokio::net::UnixStream::connect(&self.place.at).await;
            return tried.map(|_| ()).map_err(|error| of_io(&self.place, &error, false));
        };
        let found = look_up(&self.place, host, 0, self.patience).await?;
        let connecting = tokio::net::TcpStream::connect(&found[..]);
        match tokio::time::timeout(self.patience, connecting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(of_io(&self.place, &error, false)),
            Err(_) => Err(self.place.silent("connecting", self.patience)),
        }
    }
}
