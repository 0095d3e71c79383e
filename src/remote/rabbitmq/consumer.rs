//! Receives from a queue.
//!
//! The broker sends as many messages as the prefetch says, beyond what is settled. Where that does
//! not leave room for more, because a look ([`ConsumeWish::peek`]) settles nothing or because what is
//! released is held back until the end, the consumer is given up for one with a larger prefetch on the
//! same channel: what is unsettled stays ours.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer as Deliveries};

use super::failure::Says;
use super::properties;
use crate::remote::engine::{ConsumeWish, Consumer, Received, Settlement};
use crate::remote::failure::Failure;
use crate::remote::message::Incoming;
use crate::remote::outstanding::Outstanding;

/// How long the end is waited for before the queue is asked whether it has come: others may have taken
/// what was there at the start.
const END_CHECK: Duration = Duration::from_millis(200);

/// The largest prefetch that AMQP has.
const PREFETCH_MAX: u32 = 65_535;

/// What is to be given back at the end of a session that stops at the end: at once, it would come
/// again in the place of what is still to come.
#[derive(Default)]
struct Held(Vec<Range<u64>>);

/// The end of what was there at the start.
struct End {
    /// How many messages were ready then.
    ready: u64,
}

/// Receives from one queue.
pub struct RabbitConsumer {
    channel: Channel,
    says: Says,
    queue: ShortString,
    deliveries: Deliveries,
    /// A larger prefetch is on its way.
    widening: Option<BoxFuture<'static, lapin::Result<Deliveries>>>,
    /// Came to a consumer that was given up.
    left: VecDeque<Delivery>,
    outstanding: Outstanding,
    /// How many messages may be unsettled.
    prefetch: u32,
    /// How many the present consumer may have, and from which number on they are its own.
    consumes_with: u32,
    prefetch_from: u64,
    end: Option<End>,
    held: Held,
    peek: bool,
    no_ack: bool,
    /// Ended the deliveries; told once what came before it is.
    broken: Option<Failure>,
}

async fn consume(
    channel: &Channel,
    queue: &ShortString,
    prefetch: u32,
) -> lapin::Result<Deliveries> {
    let prefetch = u16::try_from(prefetch.clamp(1, PREFETCH_MAX)).expect("clamped");
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    channel
        .basic_consume(queue.clone(), ShortString::default(), options, FieldTable::default())
        .await
}

/// How many messages are ready in the queue: asked on the channel itself, so all that was settled before
/// is counted.
async fn ready(channel: &Channel, queue: &ShortString) -> lapin::Result<u64> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(queue.clone(), options, FieldTable::default()).await?;
    Ok(queue.message_count().into())
}

/// Whether nothing is ready any more: then others have what we wait for.
async fn is_over(channel: &Channel, queue: &ShortString) -> lapin::Result<bool> {
    if ready(channel, queue).await? > 0 {
        return Ok(false);
    }
    // What the queue had handed to the channel before it said so is sent by the channel before it
    // answers again.
    ready(channel, queue).await?;
    Ok(true)
}

impl RabbitConsumer {
    pub(super) async fn new(
        channel: Channel,
        says: Says,
        queue: ShortString,
        wish: &ConsumeWish,
    ) -> Result<RabbitConsumer, Failure> {
        let failed = |error| says.failed(&format!("receive from queue {queue}"), &error);
        let end = if wish.until_end || wish.peek {
            Some(End { ready: ready(&channel, &queue).await.map_err(failed)? })
        } else {
            None
        };
        let deliveries = consume(&channel, &queue, wish.prefetch).await.map_err(failed)?;
        Ok(RabbitConsumer {
            channel,
            deliveries,
            widening: None,
            left: VecDeque::new(),
            outstanding: Outstanding::default(),
            prefetch: wish.prefetch.clamp(1, PREFETCH_MAX),
            consumes_with: wish.prefetch.clamp(1, PREFETCH_MAX),
            prefetch_from: 0,
            end,
            held: Held::default(),
            peek: wish.peek,
            no_ack: wish.no_ack,
            broken: None,
            says,
            queue,
        })
    }

    fn failed(&self, error: &lapin::Error) -> Failure {
        self.says.failed(&format!("receive from queue {}", self.queue), error)
    }

    /// The next delivery that is here.
    fn here(&mut self) -> Option<Delivery> {
        if let Some(delivery) = self.left.pop_front() {
            return Some(delivery);
        }
        if self.broken.is_some() {
            return None;
        }
        match self.deliveries.next().now_or_never()? {
            Some(Ok(delivery)) => Some(delivery),
            Some(Err(error)) => {
                self.broken = Some(self.failed(&error));
                None
            }
            // It ends too when it is given up for another one.
            None if self.widening.is_some() => None,
            None => {
                self.broken = Some(self.ended());
                None
            }
        }
    }

    fn ended(&self) -> Failure {
        self.says.place.lost(format!("queue {} was removed, or the broker stopped", self.queue))
    }

    /// All that is here, at most so many; numbers them.
    fn take(&mut self, limit: usize) -> Vec<Incoming> {
        let mut messages = Vec::new();
        while messages.len() < limit
            && !self.all_received(messages.len() as u64)
            && let Some(delivery) = self.here()
        {
            let number = self.outstanding.next() + messages.len() as u64;
            assert_eq!(delivery.delivery_tag, number + 1, "a channel has one consumer");
            messages.push(properties::incoming(delivery));
        }
        self.outstanding.delivered(messages.len() as u64);
        messages
    }

    /// Whether all that was there at the start has come, with so many that are not counted yet.
    fn all_received(&self, more: u64) -> bool {
        self.end.as_ref().is_some_and(|end| self.outstanding.next() + more >= end.ready)
    }

    /// Has a consumer with the prefetch that is wanted, and with one of its own once so much of the
    /// present one's is only held that little would come.
    fn widen(&mut self) {
        let of_this_one = self.outstanding.next() - self.prefetch_from;
        let open = self.outstanding.open().min(of_this_one);
        let holding = self.peek || !self.held.0.is_empty();
        let is_used_up = holding && open * 2 >= u64::from(self.prefetch);
        let is_other = self.prefetch != self.consumes_with;
        if self.widening.is_some() || !(is_used_up || is_other) {
            return;
        }
        self.consumes_with = self.prefetch;
        // What the consumer that is given up holds does not count against the new one's.
        let (channel, queue) = (self.channel.clone(), self.queue.clone());
        let (tag, prefetch) = (self.deliveries.tag(), self.prefetch);
        self.widening = Some(Box::pin(async move {
            channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
            consume(&channel, &queue, prefetch).await
        }));
    }

    /// The consumer with the larger prefetch is there.
    fn widened(&mut self, deliveries: lapin::Result<Deliveries>) -> Result<(), Failure> {
        self.widening = None;
        let deliveries = deliveries.map_err(|error| self.failed(&error))?;
        // All that came to the one before stands before what comes to the new one.
        while let Some(Some(delivery)) = self.deliveries.next().now_or_never() {
            self.left.push_back(delivery.map_err(|error| self.failed(&error))?);
        }
        self.deliveries = deliveries;
        self.prefetch_from = self.outstanding.next();
        Ok(())
    }

    /// Puts an ack in line; what becomes of it is seen at the next flush.
    fn ack(&self, tag: u64, multiple: bool) -> Result<(), Failure> {
        let sent = self.channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never();
        sent.unwrap_or(Ok(())).map_err(|error| self.failed(&error))
    }

    fn nack(&self, tag: u64, multiple: bool, requeue: bool) -> Result<(), Failure> {
        let options = BasicNackOptions { multiple, requeue };
        let sent = self.channel.basic_nack(tag, options).now_or_never();
        sent.unwrap_or(Ok(())).map_err(|error| self.failed(&error))
    }

    /// Settles a range by as few frames as it takes: a tag is the number and one, and one frame settles
    /// all up to a tag where nothing below is to stay.
    fn settle_range(&mut self, range: &Range<u64>, settlement: Settlement) -> Result<(), Failure> {
        let (tags, multiple) = if range.start == self.outstanding.floor() {
            (range.end..=range.end, true)
        } else {
            (range.start + 1..=range.end, false)
        };
        self.outstanding.settle(range);
        for tag in tags {
            match settlement {
                Settlement::Ack => self.ack(tag, multiple)?,
                Settlement::Release | Settlement::Retry(_) => self.nack(tag, multiple, true)?,
                Settlement::Dead => self.nack(tag, multiple, false)?,
                Settlement::Progress => (),
            }
        }
        Ok(())
    }

    fn give_back_held(&mut self) -> Result<(), Failure> {
        for range in std::mem::take(&mut self.held.0) {
            self.settle_range(&range, Settlement::Release)?;
        }
        Ok(())
    }
}

impl Consumer for RabbitConsumer {
    async fn receive(&mut self, limit: usize) -> Result<Received, Failure> {
        if self.no_ack && self.outstanding.open() > 0 {
            let all = self.outstanding.floor()..self.outstanding.next();
            self.settle_range(&all, Settlement::Ack)?;
        }
        loop {
            self.widen();
            let messages = self.take(limit);
            if !messages.is_empty() {
                return Ok(Received::Messages(messages));
            }
            if self.all_received(0) {
                return Ok(Received::End);
            }
            if let Some(failure) = self.broken.take() {
                return Err(failure);
            }
            if let Some(widening) = &mut self.widening {
                let deliveries = widening.await;
                self.widened(deliveries)?;
                continue;
            }
            let waiting_for_end = self.end.is_some();
            let next = self.deliveries.next();
            let next = if waiting_for_end {
                let Ok(next) = tokio::time::timeout(END_CHECK, next).await else {
                    let over = is_over(&self.channel, &self.queue).await;
                    if over.map_err(|error| self.failed(&error))? {
                        let messages = self.take(limit);
                        let over = messages.is_empty();
                        return Ok(if over { Received::End } else { Received::Messages(messages) });
                    }
                    continue;
                };
                next
            } else {
                next.await
            };
            match next {
                Some(Ok(delivery)) => self.left.push_back(delivery),
                Some(Err(error)) => return Err(self.failed(&error)),
                None => return Err(self.ended()),
            }
        }
    }

    async fn settle(
        &mut self,
        numbers: &[Range<u64>],
        settlement: Settlement,
    ) -> Result<(), Failure> {
        if self.peek || self.no_ack || settlement == Settlement::Progress {
            return Ok(());
        }
        for range in numbers {
            if self.end.is_some() && settlement == Settlement::Release {
                self.held.0.push(range.clone());
            } else {
                self.settle_range(range, settlement)?;
            }
        }
        Ok(())
    }

    /// Followed in large steps: each new consumer has its prefetch beside all that is unsettled already, which is
    /// room enough until the next.
    async fn allow(&mut self, prefetch: u32) -> Result<(), Failure> {
        let (before, prefetch) = (self.prefetch, prefetch.clamp(1, PREFETCH_MAX));
        if prefetch > before + before / 4 || prefetch < before / 4 {
            self.prefetch = prefetch;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if self.no_ack && self.outstanding.open() > 0 {
            let all = self.outstanding.floor()..self.outstanding.next();
            self.settle_range(&all, Settlement::Ack)?;
        }
        ready(&self.channel, &self.queue).await.map(|_| ()).map_err(|error| self.failed(&error))
    }

    async fn finish(mut self) -> Result<(), Failure> {
        self.give_back_held()?;
        self.flush().await?;
        // What is unsettled goes back to the queue with the channel.
        let closed = self.channel.close(200, "done".into()).await;
        closed.map_err(|error| self.failed(&error))
    }
}
