//! From OPEN_RECEIVE over DELIVER to ACK, NACK and RELEASE.
//!
//! ```text
//! engine ─▶ consumer ─▶ numbers + base = offsets ─▶ DELIVER ─▶ the client holds them
//!             ▲  ▲                                               │ ACK, RELEASE    │ NACK
//!             │  └────────────── settle ─────────────────────────┘                 ▼
//!             └────────── again from the engine, or dead ◀──────────── resting, for the back-off
//! ```
//!
//! A consumer is thrown away when its connection is lost. What the client holds then is none of the new
//! one's: its acks are dropped, and the messages come again, as redelivered, under new offsets.

use std::ops::Range;
use std::time::Instant;

use super::admin::now;
use super::burial::{self, Letters};
use super::delivery::Delivery;
use super::held::Held;
use super::retrying::{Fate, Retrying};
use super::{Broken, Frames, Session, Stop, or_gone, refusals, unless};
use crate::limits;
use crate::remote::engine::{
    Ability, ConsumeWish, Consumer, Engine, Publisher, Received, Settlement,
};
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::Incoming;
use crate::remote::until;
use crate::units::{OffsetRange, QueueId};
use crate::wire::{ErrorCode, Fault, Nack, OpenReceive, ReceiveMode, Receiving, Reply, Request};

/// Messages that are asked for at once, at most.
const RECEIVE_MAX: u64 = 16 * 1024;

/// What is unsettled at an engine where nothing is settled: it may send as it likes.
const PREFETCH_UNACKED: u64 = 4096;

/// A receiver's channel.
pub struct Receiver<C, P> {
    channel: u16,
    queue_id: QueueId,
    pub(super) wish: ConsumeWish,
    consumer: Option<C>,
    /// The offset of the consumer's message 0, and of the next message.
    base: u64,
    next: u64,
    /// Messages that may have been delivered in all, and were.
    credit: u64,
    delivered: u64,
    held: Held,
    pub(super) retrying: Retrying,
    /// A try is announced, and a failed one comes back here.
    has_tries: bool,
    has_ended: bool,
    /// When the consumer was made.
    made: Instant,
    /// How the last one was lost, if messages had come of it and there is none since.
    lost: Option<Failure>,
    /// What it was told as it opened; again when a new consumer is there.
    receiving: Receiving,
    is_lost: bool,
    /// The client asked for the end while a consumer was being made.
    pub(super) is_closing: bool,
    /// Since when letters wait although the client wants to end.
    pub(super) closing_since: Option<Instant>,
    pub(super) letters: Letters<P>,
}

enum Next {
    Frame(super::Frame),
    Received(Result<Received, Failure>),
    Due,
    /// No more can be kept of what failed, and none of it is tried again in this run.
    Full,
    Progress,
}

impl<E: Engine> Session<E> {
    /// Serves a channel for receiving until it is closed.
    ///
    /// # Errors
    /// Why the connection ends; the client is told, if that is of any use.
    pub(super) async fn receive(&mut self, channel: u16, open: OpenReceive) -> Result<(), Stop> {
        let failed = |failure| Stop::Failed(channel, failure);
        refusals::check_receive(&E::ABILITIES, &open).map_err(failed)?;
        let queue = self.queue().map_err(failed)?;
        let has_tries = open.tries;
        let limit = self.options.delivery_limit.filter(|_| has_tries);
        let group = open.group.to_string();
        let is_peek = open.mode == ReceiveMode::Peek;
        let mut receiver = Receiver {
            channel,
            queue_id: super::random_queue(),
            consumer: None,
            base: 0,
            next: 0,
            credit: 0,
            delivered: 0,
            held: Held::default(),
            retrying: Retrying::new(open.backoff.unwrap_or_default(), limit),
            has_tries,
            has_ended: false,
            made: Instant::now(),
            lost: None,
            is_closing: false,
            closing_since: None,
            receiving: Receiving::default(),
            is_lost: false,
            letters: Letters::new(self.options.dead_letter.clone(), &queue, &group),
            wish: ConsumeWish {
                queue,
                group,
                from: open.from,
                until_end: open.until_end || is_peek,
                peek: is_peek,
                no_ack: open.no_ack,
                prefetch: 0,
            },
        };
        // That the engine is there, and knows us.
        let reached = self.link.attempt(async |_| Ok(()));
        or_gone(reached, &self.frames).await?.map_err(failed)?;
        receiver.receiving.queue_id = Some(receiver.queue_id);
        receiver.receiving.delivery_limit = limit;
        self.out.push(channel, &Reply::Receiving(receiver.receiving.clone()));
        // Until the consumer is there nothing can come: no time is counted in which nothing comes.
        let opening = Fault::new(ErrorCode::Busy, "the queue is being opened");
        self.out.push(channel, &Reply::Held(opening));
        receiver.is_lost = true;
        self.at_most_once();
        let ended = self.run_receiver(&mut receiver).await;
        let settled = self.finish_receiver(&mut receiver).await;
        if ended.is_ok() {
            if let Err(failure) = settled {
                self.link.tell(&format!("{failure}; what was done last may come again"));
            }
            self.out.push(channel, &Reply::Closed);
        }
        ended
    }

    /// What is unsettled goes back, and what is settled is with the engine.
    async fn finish_receiver(
        &mut self,
        receiver: &mut Receiver<E::Consumer, E::Publisher>,
    ) -> Result<(), Failure> {
        // An engine that takes nothing may not take in either what is settled.
        let is_held = receiver.letters.is_held();
        let patience = if is_held { burial::GRACE } else { limits::DRAIN.to_duration() };
        let finish = async {
            // All its letters are confirmed, or it has one of which nothing is heard.
            if is_held || receiver.is_closing {
                receiver.letters.publisher = None;
            }
            if let Some(publisher) = receiver.letters.publisher.take() {
                publisher.finish().await?;
            }
            let resting = receiver.retrying.take_resting(Instant::now());
            match receiver.consumer.take() {
                Some(mut consumer) if E::ABILITIES.delays_retries => {
                    for (offset, pause) in resting {
                        let number = offset - receiver.base;
                        let range = number..number + 1;
                        let retry = Settlement::Retry(pause);
                        consumer.settle(std::slice::from_ref(&range), retry).await?;
                    }
                    consumer.finish().await
                }
                Some(consumer) => consumer.finish().await,
                None => receiver.lost.take().map_or(Ok(()), Err),
            }
        };
        match tokio::time::timeout(patience, finish).await {
            Ok(finished) => finished,
            Err(_) => {
                let message = format!("{} does not answer", E::ABILITIES.name);
                Err(Failure::new(Kind::Unreachable, message))
            }
        }
    }

    async fn run_receiver(
        &mut self,
        receiver: &mut Receiver<E::Consumer, E::Publisher>,
    ) -> Result<(), Stop> {
        let mut progress = tokio::time::interval(limits::REMOTE_PROGRESS.to_duration());
        progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if receiver.wants_consumer() {
                self.make_consumer(receiver).await?;
            }
            let next = self.next(receiver, &mut progress).await?;
            let done = match next {
                Next::Frame(frame) => match self.take(receiver, &frame).await? {
                    Taken::Closed => return Ok(()),
                    Taken::Done(done) => done,
                },
                Next::Received(Ok(Received::Messages(messages))) => {
                    self.link.went_well();
                    self.deliver(receiver, messages);
                    Ok(())
                }
                Next::Received(Ok(Received::End)) => {
                    receiver.has_ended = true;
                    self.out.push(receiver.channel, &Reply::End);
                    Ok(())
                }
                Next::Full => {
                    let text = "so many messages failed that the rest is left for the next run";
                    self.link.tell(text);
                    receiver.has_ended = true;
                    self.out.push(receiver.channel, &Reply::End);
                    Ok(())
                }
                Next::Received(Err(failure)) => Err(failure),
                Next::Due => {
                    self.deliver_due(receiver);
                    Ok(())
                }
                Next::Progress => receiver.progress().await,
            };
            if let Err(failure) = done {
                self.lose(receiver, failure).await?;
            }
        }
    }

    /// Waits for something to do.
    async fn next(
        &mut self,
        receiver: &mut Receiver<E::Consumer, E::Publisher>,
        progress: &mut tokio::time::Interval,
    ) -> Result<Next, Stop> {
        loop {
            let limit = receiver.credit.saturating_sub(receiver.delivered).min(RECEIVE_MAX);
            let can_deliver = limit > 0 && self.out.has_room();
            let can_receive = can_deliver && receiver.retrying.has_room() && !receiver.has_ended;
            let due =
                receiver.retrying.next_due().filter(|_| can_deliver && !receiver.wish.until_end);
            if receiver.is_full() {
                return Ok(Next::Full);
            }
            let is_working = receiver.held.count() > 0 || receiver.retrying.resting() > 0;
            let Receiver { consumer, .. } = receiver;
            let receive = async {
                match consumer {
                    Some(consumer) => consumer.receive(limit as usize).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                written = self.out.write(), if !self.out.is_empty() => written?,
                frame = self.frames.next() => return Ok(Next::Frame(frame?)),
                () = until(due), if due.is_some() => return Ok(Next::Due),
                received = receive, if can_receive => return Ok(Next::Received(received)),
                _ = progress.tick(), if is_working && !receiver.wish.no_ack => return Ok(Next::Progress),
            }
        }
    }

    /// Makes a consumer, unless the client asks for the end before it is there.
    async fn make_consumer(
        &mut self,
        receiver: &mut Receiver<E::Consumer, E::Publisher>,
    ) -> Result<(), Stop> {
        let channel = receiver.channel;
        receiver.wish.prefetch = receiver.prefetch();
        let wish = receiver.wish.clone();
        let make = self.link.attempt(async |engine| engine.consumer(&wish).await);
        let end = asks_for_end(&mut self.frames);
        match unless(make, end).await {
            Ok(made) => {
                receiver.consumer = Some(made.map_err(|failure| Stop::Failed(channel, failure))?);
                receiver.base = receiver.next;
                receiver.made = Instant::now();
                receiver.lost = None;
                if std::mem::take(&mut receiver.is_lost) {
                    let again = Reply::Receiving(receiver.receiving.clone());
                    self.out.push(channel, &again);
                }
                Ok(())
            }
            Err(None) => {
                receiver.is_closing = true;
                Ok(())
            }
            Err(Some(error)) => Err(error.into()),
        }
    }

    /// The consumer is gone, and with it what the client holds of it.
    async fn lose(
        &mut self,
        receiver: &mut Receiver<E::Consumer, E::Publisher>,
        failure: Failure,
    ) -> Result<(), Stop> {
        if !std::mem::replace(&mut receiver.is_lost, true) {
            let held = Reply::Held(super::fault(&failure));
            self.out.push(receiver.channel, &held);
            // Before anything is waited for: what the client makes of it depends on it.
            self.out.flush().await?;
        }
        if receiver.consumer.take().is_some() {
            self.link.lasted(receiver.made);
            let is_settled = receiver.wish.no_ack || receiver.wish.peek || keeps_nothing::<E>();
            let may_come_again = receiver.next > receiver.base && !is_settled;
            receiver.lost = may_come_again.then(|| failure.clone());
        }
        receiver.letters.publisher = None;
        receiver.held = Held::default();
        receiver.retrying.lose(Instant::now());
        let waited = or_gone(self.link.failed(failure), &self.frames).await?;
        waited.map_err(|failure| Stop::Failed(receiver.channel, failure))
    }

    /// Hands messages that came to the client, in runs of the same attempt.
    fn deliver(
        &mut self,
        receiver: &mut Receiver<E::Consumer, E::Publisher>,
        mut messages: Vec<Incoming>,
    ) {
        let first = receiver.next;
        receiver.next += messages.len() as u64;
        receiver.delivered += messages.len() as u64;
        let is_settled = receiver.wish.no_ack || receiver.wish.peek;
        if !is_settled {
            receiver.held.add(first..receiver.next);
        }
        let has_tries = receiver.has_tries && !is_settled;
        let mut offset = first;
        if has_tries {
            // As far as it can be known: the engine counts, or we did.
            let clock = Instant::now();
            messages.iter_mut().for_each(|message| receiver.retrying.recall(message, clock));
        }
        let alike =
            |a: &Incoming, b: &Incoming| a.attempt == b.attempt && a.redelivered == b.redelivered;
        for run in messages.chunk_by(alike) {
            let delivery = Delivery {
                channel: receiver.channel,
                queue: receiver.queue_id,
                now: now(),
                attempt: run[0].attempt,
                redelivered: run[0].redelivered,
            };
            delivery.frames(offset, run).into_iter().for_each(|frame| self.out.push_bytes(frame));
            offset += run.len() as u64;
        }
        if has_tries {
            for (offset, message) in (first..).zip(messages) {
                receiver.retrying.delivered(offset, message);
            }
        }
    }

    /// Hands out again what has rested, as far as the credit goes.
    fn deliver_due(&mut self, receiver: &mut Receiver<E::Consumer, E::Publisher>) {
        let clock = Instant::now();
        while receiver.delivered < receiver.credit
            && let Some((offset, tried)) = receiver.retrying.take_due(clock)
        {
            let delivery = Delivery {
                channel: receiver.channel,
                queue: receiver.queue_id,
                now: now(),
                attempt: tried.attempt,
                redelivered: true,
            };
            let frames = delivery.frames(offset, [&tried.message]);
            frames.into_iter().for_each(|frame| self.out.push_bytes(frame));
            receiver.held.add(offset..offset + 1);
            receiver.delivered += 1;
        }
    }

    /// Does what a frame asks for.
    async fn take(
        &mut self,
        receiver: &mut Receiver<E::Consumer, E::Publisher>,
        frame: &super::Frame,
    ) -> Result<Taken, Stop> {
        if frame.header.channel != receiver.channel {
            return Err(Stop::protocol("a frame on a channel that is not open"));
        }
        let done = match Request::decode(&frame.header, &frame.body)? {
            Request::Close => return Ok(Taken::Closed),
            Request::Credit(total) => {
                receiver.credit = receiver.credit.max(total);
                receiver.allow().await
            }
            Request::Ack(ranges) => {
                let settled = receiver.take(&ranges);
                receiver.retrying.forget(&settled);
                receiver.settle(&settled, Settlement::Ack).await
            }
            Request::Release(_, ranges) => {
                let settled = receiver.take(&ranges);
                receiver.retrying.forget(&settled);
                receiver.settle(&settled, Settlement::Release).await
            }
            Request::Nack(nack) => self.fail(receiver, &nack).await?,
            Request::Begin(ranges) => {
                let begun = ranges.iter().flat_map(|range| range.start.0..range.end.0);
                begun.for_each(|offset| receiver.retrying.begin(offset));
                Ok(())
            }
            Request::Complain(..) => {
                let message = "what was delivered arrives damaged at the client".to_owned();
                return Err(Stop::Failed(receiver.channel, Failure::new(Kind::Other, message)));
            }
            _ => return Err(Stop::protocol("a frame that is none of a receiver's")),
        };
        Ok(Taken::Done(done))
    }

    /// A try of these failed.
    async fn fail(
        &mut self,
        receiver: &mut Receiver<E::Consumer, E::Publisher>,
        nack: &Nack,
    ) -> Result<Result<(), Failure>, Stop> {
        let failed = receiver.take(&nack.ranges);
        let dead = match receiver.sort_out(failed, nack, E::ABILITIES.delays_retries).await {
            Ok(dead) => dead,
            Err(failure) => return Ok(Err(failure)),
        };
        if !dead.is_empty()
            && let Err(failure) = self.bury(receiver, &dead, nack).await?
        {
            return Ok(Err(failure));
        }
        Ok(receiver.allow().await)
    }
}

/// Comes back when the client asks for the end, and with an error when there is no client any more. What else it
/// says can wait.
pub(super) async fn asks_for_end(frames: &mut Frames) -> Option<Broken> {
    if frames.keeps(crate::wire::Kind::Close) {
        return None;
    }
    while frames.kept() < limits::REMOTE_REQUESTS_AHEAD {
        let frame = match frames.read().await {
            Ok(frame) => frame,
            Err(error) => return Some(error),
        };
        let is_close = frame.header.kind == crate::wire::Kind::Close;
        frames.keep(frame);
        if is_close {
            return None;
        }
    }
    frames.hung_up().await;
    Some(Broken::Gone)
}

/// Whether what was received is settled by that.
pub(super) fn keeps_nothing<E: Engine>() -> bool {
    matches!(E::ABILITIES.acks, Ability::No(_))
}

enum Taken {
    Closed,
    Done(Result<(), Failure>),
}

impl<C: Consumer, P: Publisher> Receiver<C, P> {
    fn wants_consumer(&self) -> bool {
        let may_come = self.credit > self.delivered && !self.has_ended && !self.is_closing;
        self.consumer.is_none() && may_come
    }

    /// Whether a run to the end has to end here.
    fn is_full(&self) -> bool {
        let is_stuck = self.held.count() == 0 && !self.retrying.has_room();
        self.wish.until_end && !self.has_ended && is_stuck
    }

    /// How many messages may be unsettled: what the client holds and may still be given, and what rests.
    fn prefetch(&self) -> u32 {
        if self.wish.no_ack {
            return PREFETCH_UNACKED as u32;
        }
        let window = self.credit.saturating_sub(self.delivered) + self.held.count();
        let all = window + self.retrying.resting() as u64;
        u32::try_from(all).unwrap_or(u32::MAX).max(1)
    }

    /// Tells the consumer when it may have much more unsettled, or much less.
    async fn allow(&mut self) -> Result<(), Failure> {
        let wanted = self.prefetch();
        let told = self.wish.prefetch;
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        // What rests takes of what the engine was told: enough has to be left that something can come.
        let resting = u32::try_from(self.retrying.resting()).unwrap_or(u32::MAX);
        let window = wanted.saturating_sub(resting);
        let is_used_up = told < resting.saturating_add(window.div_ceil(2));
        if is_used_up || wanted > told + told / 4 || wanted < told / 4 {
            self.wish.prefetch = wanted;
            consumer.allow(wanted).await?;
        }
        Ok(())
    }

    /// Settles or keeps what failed; those of it that are dead.
    async fn sort_out(
        &mut self,
        failed: Vec<Range<u64>>,
        nack: &Nack,
        delays_retries: bool,
    ) -> Result<Vec<u64>, Failure> {
        let mut dead = Vec::new();
        let clock = Instant::now();
        if !self.has_tries {
            // Nothing is kept of what was delivered: it is gone, as was said at the start.
            self.settle(&failed, Settlement::Ack).await?;
            return Ok(dead);
        }
        for offset in failed.into_iter().flatten() {
            match self.retrying.failed(offset, nack.dead, now()) {
                Fate::Dead => dead.push(offset),
                // A run to the end tries each message once: it gives them back at its end.
                Fate::Again(pause) if delays_retries && !self.wish.until_end => {
                    let range = offset..offset + 1;
                    self.retrying.forget(std::slice::from_ref(&range));
                    self.settle(std::slice::from_ref(&range), Settlement::Retry(pause)).await?;
                }
                Fate::Again(pause) => self.retrying.rest(offset, clock + pause),
            }
        }
        Ok(dead)
    }

    /// Those of the ranges that the client holds.
    fn take(&mut self, ranges: &[OffsetRange]) -> Vec<Range<u64>> {
        ranges.iter().flat_map(|range| self.held.take(&(range.start.0..range.end.0))).collect()
    }

    pub(super) async fn settle(
        &mut self,
        ranges: &[Range<u64>],
        settlement: Settlement,
    ) -> Result<(), Failure> {
        let base = self.base;
        let numbers: Vec<Range<u64>> =
            ranges.iter().map(|range| range.start - base..range.end - base).collect();
        match &mut self.consumer {
            Some(consumer) if !numbers.is_empty() => consumer.settle(&numbers, settlement).await,
            _ => Ok(()),
        }
    }

    /// Tells the engine that what is here is being worked on.
    async fn progress(&mut self) -> Result<(), Failure> {
        let mut ranges: Vec<Range<u64>> = self.held.ranges().collect();
        ranges.extend(self.retrying.offsets().map(|offset| offset..offset + 1));
        ranges.sort_unstable_by_key(|range| range.start);
        self.settle(&ranges, Settlement::Progress).await
    }
}
