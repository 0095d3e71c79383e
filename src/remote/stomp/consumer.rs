//! Subscribes to a destination.
//!
//! ActiveMQ sends as many messages as the prefetch says beyond what is acked, and gives what was not
//! acked to others when a subscription ends. It has no way to give back one message: a NACK is its word
//! for a dead letter. So what is released waits until nothing else is unsettled; then the subscription
//! is ended and made anew. Where the end is waited for, what is released stays ours until then, and another
//! subscription beside makes up for the prefetch that it takes.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use super::frame::{Encoder, Frame};
use super::headers;
use super::link::{Frames, Outlet};
use crate::remote::engine::{ConsumeWish, Consumer, Received, Settlement};
use crate::remote::failure::Failure;
use crate::remote::message::Incoming;
use crate::remote::outstanding::Outstanding;
use crate::remote::place::Place;

/// When nothing has come for so long, there was nothing more: the broker tells no end.
const QUIET: Duration = Duration::from_secs(1);
/// How many messages a look asks for: the broker shows fewer.
const LOOK: u32 = 10_000;
/// How long a receipt is waited for.
const RECEIPT: Duration = Duration::from_secs(60);

/// Receives from one destination.
pub struct StompConsumer {
    place: Place,
    frames: Frames,
    outlet: Outlet,
    destination: String,
    prefetch: u32,
    /// The subscriptions that there are; frames of those before come to nothing.
    subscriptions: Range<u64>,
    /// How many were released since the last of them was made.
    held_back: u64,
    next_receipt: u64,
    /// Came, and is not looked at yet.
    arrived: VecDeque<Frame>,
    outstanding: Outstanding,
    /// How to ack each message, from the lowest number that is not settled on.
    acks: VecDeque<String>,
    /// What is to be given back once nothing else is unsettled.
    released: Vec<Range<u64>>,
    until_end: bool,
    over: bool,
    peek: bool,
    no_ack: bool,
}

impl StompConsumer {
    pub(super) async fn new(
        place: Place,
        (frames, outlet): (Frames, Outlet),
        destination: String,
        wish: &ConsumeWish,
    ) -> Result<StompConsumer, Failure> {
        let mut consumer = StompConsumer {
            place,
            frames,
            outlet,
            destination,
            prefetch: wish.prefetch.max(1),
            subscriptions: 0..1,
            held_back: 0,
            next_receipt: 0,
            arrived: VecDeque::new(),
            outstanding: Outstanding::default(),
            acks: VecDeque::new(),
            released: Vec::new(),
            until_end: wish.until_end || wish.peek,
            over: false,
            peek: wish.peek,
            no_ack: wish.no_ack,
        };
        let mut out = Encoder::default();
        let prefetch = if wish.peek { LOOK } else { consumer.prefetch };
        consumer.write_subscribe(&mut out, 0, prefetch);
        consumer.with_receipt(out).await?;
        Ok(consumer)
    }

    fn write_subscribe(&self, out: &mut Encoder, id: u64, prefetch: u32) {
        out.begin("SUBSCRIBE")
            .number("id", id)
            .header("destination", &self.destination)
            .plain_header("ack", "client-individual")
            .number("activemq.prefetchSize", prefetch.into());
        if self.peek {
            out.plain_header("browser", "true");
        }
    }

    /// Sends a frame whose head is written, and waits until the broker has taken it in.
    async fn with_receipt(&mut self, mut out: Encoder) -> Result<(), Failure> {
        let number = self.next_receipt;
        self.next_receipt += 1;
        out.number("receipt", number).end();
        self.outlet.send(out.take()).await?;
        let waiting = async {
            loop {
                let frame = self.frames.next().await?;
                if frame.command != "RECEIPT" {
                    self.arrived.push_back(frame);
                } else if frame.header("receipt-id").and_then(|id| id.parse().ok()) == Some(number)
                {
                    return Ok(());
                }
            }
        };
        match tokio::time::timeout(RECEIPT, waiting).await {
            Ok(done) => done,
            Err(_) => Err(self.place.silent("waiting for a receipt", RECEIPT)),
        }
    }

    /// A frame that came: a message, or nothing for the session.
    fn take_in(&mut self, mut frame: Frame) -> Option<Incoming> {
        if frame.command != "MESSAGE" {
            return None;
        }
        let subscription = frame.header("subscription").and_then(|id| id.parse().ok());
        if !subscription.is_some_and(|id| self.subscriptions.contains(&id)) {
            return None;
        }
        if frame.header("browser") == Some("end") {
            self.over = true;
            return None;
        }
        let place = frame.headers.iter().position(|(name, _)| name == "ack");
        let ack = place.map(|place| frame.headers.swap_remove(place).1).unwrap_or_default();
        self.acks.push_back(ack);
        self.outstanding.delivered(1);
        Some(headers::incoming(frame))
    }

    fn take(&mut self, limit: usize) -> Result<Vec<Incoming>, Failure> {
        let mut messages = Vec::new();
        while messages.len() < limit && !self.over {
            let next = match self.arrived.pop_front() {
                Some(frame) => Some(frame),
                None => match self.frames.here() {
                    Err(_) if !messages.is_empty() => break,
                    here => here?,
                },
            };
            let Some(frame) = next else { break };
            messages.extend(self.take_in(frame));
        }
        Ok(messages)
    }

    /// How a number is acked.
    fn ack_of(&self, number: u64) -> &str {
        let place = usize::try_from(number - self.outstanding.floor()).expect("a place in memory");
        &self.acks[place]
    }

    fn forget(&mut self, range: &Range<u64>) {
        let floor = self.outstanding.floor();
        self.outstanding.settle(range);
        let gone = usize::try_from(self.outstanding.floor() - floor).expect("a place in memory");
        self.acks.drain(..gone);
    }

    async fn say(&mut self, command: &str, range: &Range<u64>) -> Result<(), Failure> {
        let mut out = Encoder::default();
        for number in range.clone() {
            out.begin(command).header("id", self.ack_of(number)).end();
        }
        self.forget(range);
        self.outlet.send(out.take()).await
    }

    /// Ends all subscriptions: what is unsettled is ready again.
    async fn unsubscribe(&mut self) -> Result<(), Failure> {
        for id in self.subscriptions.clone() {
            let mut out = Encoder::default();
            out.begin("UNSUBSCRIBE").number("id", id);
            self.with_receipt(out).await?;
        }
        self.subscriptions.start = self.subscriptions.end;
        Ok(())
    }

    /// One more subscription, with a prefetch of its own.
    async fn subscribe(&mut self, prefetch: u32) -> Result<(), Failure> {
        let id = self.subscriptions.end;
        self.subscriptions.end += 1;
        self.held_back = 0;
        let mut out = Encoder::default();
        self.write_subscribe(&mut out, id, prefetch);
        self.with_receipt(out).await
    }

    /// Gives back all that is released, as nothing else is unsettled.
    async fn subscribe_anew(&mut self) -> Result<(), Failure> {
        for range in std::mem::take(&mut self.released) {
            self.forget(&range);
        }
        self.unsubscribe().await?;
        self.subscribe(self.prefetch).await
    }

    /// Makes up for what is held back until the end.
    async fn widen(&mut self) -> Result<(), Failure> {
        if self.held_back * 2 < u64::from(self.prefetch) {
            return Ok(());
        }
        self.subscribe(self.prefetch).await
    }

    fn released_count(&self) -> u64 {
        self.released.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether all that the prefetch allows is here and worked on.
    fn is_full(&self) -> bool {
        !self.peek && self.outstanding.open() - self.released_count() >= u64::from(self.prefetch)
    }

    async fn ack_all(&mut self) -> Result<(), Failure> {
        let all = self.outstanding.floor()..self.outstanding.next();
        if all.is_empty() { Ok(()) } else { self.say("ACK", &all).await }
    }
}

impl Consumer for StompConsumer {
    async fn receive(&mut self, limit: usize) -> Result<Received, Failure> {
        if self.no_ack {
            self.ack_all().await?;
        }
        loop {
            let messages = self.take(limit)?;
            if !messages.is_empty() {
                return Ok(Received::Messages(messages));
            }
            if self.over {
                return Ok(Received::End);
            }
            let next = self.frames.next();
            let next = if self.until_end {
                match tokio::time::timeout(QUIET, next).await {
                    Ok(next) => next,
                    // It is no end while it is we who hold up the broker.
                    Err(_) if self.is_full() => continue,
                    Err(_) => return Ok(Received::End),
                }
            } else {
                next.await
            };
            self.arrived.push_back(next?);
        }
    }

    async fn settle(
        &mut self,
        numbers: &[Range<u64>],
        settlement: Settlement,
    ) -> Result<(), Failure> {
        if self.peek || self.no_ack {
            return Ok(());
        }
        for range in numbers {
            match settlement {
                Settlement::Ack => self.say("ACK", range).await?,
                Settlement::Dead => self.say("NACK", range).await?,
                Settlement::Release | Settlement::Retry(_) => {
                    self.held_back += range.end - range.start;
                    self.released.push(range.clone());
                }
                Settlement::Progress => (),
            }
        }
        // At the end, what is released goes back with the connection: at once, it would come again.
        let alone = self.outstanding.open() == self.released_count();
        match (self.until_end, self.released.is_empty(), alone) {
            (true, false, _) => self.widen().await,
            (false, false, true) => self.subscribe_anew().await,
            _ => Ok(()),
        }
    }

    /// What is more is given to one more subscription; less cannot be had.
    async fn allow(&mut self, prefetch: u32) -> Result<(), Failure> {
        if self.peek || prefetch <= self.prefetch {
            return Ok(());
        }
        // In large steps: each is a subscription, to be ended one by one.
        let more = (prefetch - self.prefetch).max(self.prefetch / 4);
        self.prefetch += more;
        self.subscribe(more).await
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if self.no_ack {
            self.ack_all().await?;
        }
        // A receipt of anything comes when all before it was taken in: here of a transaction of nothing.
        let mut out = Encoder::default();
        let number = self.next_receipt;
        out.begin("BEGIN").number("transaction", number).end();
        out.begin("ABORT").number("transaction", number);
        self.with_receipt(out).await
    }

    async fn finish(mut self) -> Result<(), Failure> {
        if self.no_ack {
            self.ack_all().await?;
        }
        // All that is unsettled is ready for others when the subscription has ended.
        self.unsubscribe().await?;
        let mut out = Encoder::default();
        out.begin("DISCONNECT");
        self.with_receipt(out).await
    }
}
