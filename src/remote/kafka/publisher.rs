//! Produces to a topic, and waits for the reports of librdkafka's idempotent producer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::{Notify, oneshot};

use super::failure::{Ears, Says};
use super::transactions::Transactions;
use super::{blocking, records};
use crate::remote::engine::{Confirmation, Progress, Publisher, Unconfirmed};
use crate::remote::failure::Failure;
use crate::remote::message::Outgoing;

/// How long librdkafka tries to have a message stored before it gives up. Within this time it sends
/// again by itself, as the brokers know a record of such a producer again.
pub(super) const DELIVERY: Duration = Duration::from_secs(30);

/// How long a full queue is waited for before it is looked at again, if no report says that it is not.
const FULL: Duration = Duration::from_millis(50);

/// A batch that is not reported yet.
pub(super) struct Batch {
    left: AtomicUsize,
    done: Mutex<Option<oneshot::Sender<Result<(), Failure>>>>,
}

impl Batch {
    fn end(&self, said: Result<(), Failure>) {
        if let Some(done) = self.done.lock().expect("not poisoned").take() {
            // Nobody waits for it any more: then nobody needs to know.
            let _ = done.send(said);
        }
    }
}

/// Takes the reports of the producer.
pub(super) struct Reports {
    ears: Ears,
    says: Says,
    room: Arc<Notify>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.ears.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.ears.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Batch>;

    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<Batch>) {
        self.room.notify_one();
        if let Err((error, _)) = result {
            batch.end(Err(self.says.failed("send", error)));
        }
        if batch.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            batch.end(Ok(()));
        }
    }
}

/// An idempotent producer, and the topic that it produces to.
#[derive(Clone)]
pub(super) struct Producing {
    pub(super) producer: ThreadedProducer<Reports>,
    pub(super) says: Says,
    pub(super) topic: String,
    room: Arc<Notify>,
}

impl Producing {
    /// `config` is that of the connection, with what is special to this producer.
    pub(super) fn new(
        config: &ClientConfig,
        says: Says,
        topic: &str,
    ) -> Result<Producing, Failure> {
        let mut config = config.clone();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            // Messages without a key go to one partition for a moment, not each to another.
            .set("sticky.partitioning.linger.ms", "10")
            .set("message.max.bytes", super::MESSAGE_MAX_BYTES)
            .set("message.timeout.ms", DELIVERY.as_millis().to_string())
            .set("queue.buffering.max.kbytes", "131072");
        let room = Arc::new(Notify::new());
        let reports =
            Reports { ears: Ears::new(says.clone()), says: says.clone(), room: Arc::clone(&room) };
        let producer = ThreadedProducer::from_config_and_context(&config, reports);
        let producer = producer.map_err(|error| says.failed("make a producer", &error))?;
        Ok(Producing { producer, says, topic: topic.to_owned(), room })
    }

    /// Gives a message to librdkafka; false: its queue is full.
    fn try_send(&self, message: &Outgoing, batch: &Arc<Batch>) -> Result<bool, Failure> {
        let mut record: BaseRecord<'_, str, [u8], Arc<Batch>> =
            BaseRecord::with_opaque_to(&self.topic, Arc::clone(batch)).payload(&message.body[..]);
        if let Some(facts) = &message.facts {
            record.key = facts.key.as_deref();
            record.timestamp = records::timestamp_of(facts);
            record.headers = records::headers_of(facts);
        }
        match self.producer.send(record) {
            Ok(()) => Ok(true),
            Err((error, _)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => Ok(false),
                _ => Err(self.says.failed("send", &error)),
            },
        }
    }

    /// Gives messages to librdkafka; the confirmation comes when all are reported as stored.
    pub(super) async fn send(&self, messages: &[Outgoing]) -> Result<Confirmation, Failure> {
        let (done, confirmed) = oneshot::channel();
        let left = AtomicUsize::new(messages.len());
        let batch = Arc::new(Batch { left, done: Mutex::new(Some(done)) });
        for message in messages {
            while !self.try_send(message, &batch)? {
                // A report may have come between the two: then it is only a moment longer.
                let _ = tokio::time::timeout(FULL, self.room.notified()).await;
            }
        }
        let says = self.says.clone();
        Ok(Box::pin(async move {
            let closed = |_| Err(says.place.lost("the producer was closed"));
            confirmed.await.unwrap_or_else(closed).map_err(Unconfirmed::from)
        }))
    }

    async fn finish(self) -> Result<(), Failure> {
        let (says, producer) = (self.says, self.producer);
        let flushed = blocking(move || producer.flush(DELIVERY)).await;
        flushed.map_err(|error| says.failed("end sending", &error))
    }
}

/// Sends to one topic.
pub struct KafkaPublisher(By);

enum By {
    Producing(Producing),
    Transactions(Transactions),
}

impl KafkaPublisher {
    /// Sends as nobody in particular.
    pub(super) fn nameless(producing: Producing) -> KafkaPublisher {
        KafkaPublisher(By::Producing(producing))
    }

    /// Sends under a name.
    pub(super) fn named(transactions: Transactions) -> KafkaPublisher {
        KafkaPublisher(By::Transactions(transactions))
    }
}

impl Publisher for KafkaPublisher {
    async fn publish(&mut self, messages: Vec<Outgoing>) -> Result<Confirmation, Failure> {
        match &mut self.0 {
            By::Producing(producing) => producing.send(&messages).await,
            By::Transactions(transactions) => transactions.publish(messages),
        }
    }

    fn progress(&self) -> Option<Progress> {
        match &self.0 {
            By::Producing(_) => None,
            By::Transactions(transactions) => Some(transactions.progress().clone()),
        }
    }

    fn note(&mut self, annex: &[u8]) {
        if let By::Transactions(transactions) = &mut self.0 {
            transactions.note(annex);
        }
    }

    async fn finish(self) -> Result<(), Failure> {
        match self.0 {
            By::Producing(producing) => producing.finish().await,
            By::Transactions(transactions) => transactions.finish().await,
        }
    }
}
