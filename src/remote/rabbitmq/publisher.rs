//! Sends to an exchange or a queue, and waits for the broker's confirms.

use std::sync::Arc;

use futures_util::FutureExt as _;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation as Confirmed, PublisherConfirm};

use tokio::sync::Semaphore;

use super::failure::Says;
use super::properties;
use crate::remote::engine::{Confirmation, Publisher, Unconfirmed};
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::Outgoing;

/// How many messages are given to the client before it is asked whether they went out. It writes to
/// the socket what it was given together.
const TOGETHER: usize = 512;

/// How many messages may be unconfirmed. The broker confirms many by one word, for which the client looks
/// through all that are.
const UNCONFIRMED: usize = 16 * TOGETHER;

/// Sends to one exchange with one routing key.
pub struct RabbitPublisher {
    channel: Channel,
    says: Says,
    exchange: ShortString,
    key: ShortString,
    /// Of a message that has nothing beside its body.
    plain: BasicProperties,
    room: Arc<Semaphore>,
}

impl RabbitPublisher {
    pub(super) async fn new(
        channel: Channel,
        says: Says,
        exchange: ShortString,
        key: ShortString,
    ) -> Result<RabbitPublisher, Failure> {
        let confirming = channel.confirm_select(ConfirmSelectOptions::default()).await;
        confirming.map_err(|error| says.failed("have messages confirmed", &error))?;
        let (plain, room) = (properties::plain(), Arc::new(Semaphore::new(UNCONFIRMED)));
        Ok(RabbitPublisher { channel, says, exchange, key, plain, room })
    }

    /// Gives some messages to the client, which holds back when its socket does; the confirms to come, and why
    /// they are not one for each.
    async fn send(&self, messages: &[Outgoing]) -> (Vec<PublisherConfirm>, Option<Failure>) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (mut sends, mut failed) = (Vec::with_capacity(messages.len()), None);
        for message in messages {
            let properties = match &message.facts {
                None => self.plain.clone(),
                Some(facts) => match properties::of_facts(facts) {
                    Ok(properties) => properties,
                    Err(failure) => {
                        failed = Some(failure);
                        break;
                    }
                },
            };
            let (exchange, key) = (self.exchange.clone(), self.key.clone());
            let send =
                self.channel.basic_publish(exchange, key, options, &message.body, properties);
            let mut send = Box::pin(send);
            // To be polled once puts it in line, in this order; it is done when it has been
            // written, which is not waited for message by message.
            let done = (&mut send).now_or_never();
            sends.push((send, done));
        }
        let mut confirms = Vec::with_capacity(sends.len());
        for (send, done) in sends {
            let confirm = match done {
                Some(done) => done,
                None => send.await,
            };
            match confirm {
                Ok(confirm) => confirms.push(confirm),
                Err(error) => return (confirms, Some(self.says.failed("send", &error))),
            }
        }
        (confirms, failed)
    }
}

/// Waits for the confirms of a part of a batch, and then for the reason why there are not more: how many of
/// them there were.
async fn all_stored(
    says: Says,
    confirms: Vec<PublisherConfirm>,
    failed: Option<Failure>,
) -> Result<usize, Unconfirmed> {
    let count = confirms.len();
    for (stored, confirm) in confirms.into_iter().enumerate() {
        let said = self::stored(&says, confirm.await);
        said.map_err(|failure| Unconfirmed { stored, failure })?;
    }
    match failed {
        None => Ok(count),
        Some(failure) => Err(Unconfirmed { stored: count, failure }),
    }
}

impl Publisher for RabbitPublisher {
    async fn publish(&mut self, batch: Vec<Outgoing>) -> Result<Confirmation, Failure> {
        let mut parts = Vec::with_capacity(batch.len().div_ceil(TOGETHER));
        for some in batch.chunks(TOGETHER) {
            let count = u32::try_from(some.len()).expect("a few");
            let room = Arc::clone(&self.room).acquire_many_owned(count).await;
            let room = room.expect("never closed");
            let (confirms, failed) = self.send(some).await;
            let is_last = failed.is_some();
            let stored = all_stored(self.says.clone(), confirms, failed);
            // By itself, as the room that it takes is waited for here.
            parts.push(tokio::spawn(async move {
                let stored = stored.await;
                drop(room);
                stored
            }));
            if is_last {
                break;
            }
        }
        let says = self.says.clone();
        Ok(Box::pin(async move {
            let mut all = 0;
            for part in parts {
                let stored =
                    part.await.unwrap_or_else(|_| Err(says.place.lost("it was given up").into()));
                all += stored.map_err(|part| Unconfirmed { stored: all + part.stored, ..part })?;
            }
            Ok(())
        }))
    }

    async fn finish(self) -> Result<(), Failure> {
        let closed = self.channel.close(200, "done".into()).await;
        closed.map_err(|error| self.says.failed("end sending", &error))
    }
}

/// Whether the broker has stored a message.
fn stored(says: &Says, confirmed: lapin::Result<Confirmed>) -> Result<(), Failure> {
    match confirmed.map_err(|error| says.failed("send", &error))? {
        Confirmed::Ack(None) => Ok(()),
        Confirmed::Ack(Some(returned)) | Confirmed::Nack(Some(returned)) => {
            let message = format!(
                "{} returned a message ({}): no queue takes what is sent to {}",
                says.place, returned.reply_text, returned.routing_key
            );
            Err(Failure::new(Kind::Missing, message))
        }
        Confirmed::Nack(None) => {
            let message =
                format!("{} did not take a message: its queue is full, or failed", says.place);
            Err(Failure::new(Kind::Busy, message))
        }
        Confirmed::NotRequested => unreachable!("confirms were asked for"),
    }
}
