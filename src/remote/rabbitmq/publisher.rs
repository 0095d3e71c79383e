//! Sends to an exchange or a queue, and waits for the broker's confirms.

use futures_util::FutureExt as _;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation as Confirmed, PublisherConfirm};

use super::failure::Says;
use super::properties;
use crate::remote::engine::{Confirmation, Publisher};
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::Outgoing;

/// How many messages are given to the client before it is asked whether they went out. It writes to
/// the socket what it was given together.
const TOGETHER: usize = 512;

/// Sends to one exchange with one routing key.
pub struct RabbitPublisher {
    channel: Channel,
    says: Says,
    exchange: ShortString,
    key: ShortString,
    /// Of a message that has nothing beside its body.
    plain: BasicProperties,
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
        Ok(RabbitPublisher { channel, says, exchange, key, plain: properties::plain() })
    }

    /// Gives some messages to the client, which holds back when its socket does.
    async fn send(
        &self,
        messages: &[Outgoing],
        confirms: &mut Vec<PublisherConfirm>,
    ) -> Result<(), Failure> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut sends = Vec::with_capacity(messages.len());
        for message in messages {
            let properties = match &message.facts {
                Some(facts) => properties::of_facts(facts)?,
                None => self.plain.clone(),
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
        for (send, done) in sends {
            let confirm = match done {
                Some(done) => done,
                None => send.await,
            };
            confirms.push(confirm.map_err(|error| self.says.failed("send", &error))?);
        }
        Ok(())
    }
}

impl Publisher for RabbitPublisher {
    async fn publish(&mut self, batch: Vec<Outgoing>) -> Result<Confirmation, Failure> {
        let mut confirms = Vec::with_capacity(batch.len());
        for some in batch.chunks(TOGETHER) {
            self.send(some, &mut confirms).await?;
        }
        let says = self.says.clone();
        Ok(Box::pin(async move {
            for confirm in confirms {
                stored(&says, confirm.await)?;
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
