//! Consumes a topic as a member of a group, or looks at it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance, StreamConsumer,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;

use super::failure::{Ears, Says};
use super::partitions::{Arrival, Partitions};
use super::{blocking, records};
use crate::remote::engine::{ConsumeWish, Consumer, Received, Settlement};
use crate::remote::failure::Failure;
use crate::remote::message::{Facts, Incoming};

/// What became of partitions.
enum Change {
    Assigned(Vec<i32>),
    Revoked(Vec<i32>),
}

/// Hears of partitions that come and go.
pub(super) struct Member {
    ears: Ears,
    changes: Arc<Mutex<Vec<Change>>>,
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.ears.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.ears.error(error, reason);
    }
}

fn partitions_in(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(|element| element.partition()).collect()
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // Before any message of theirs can come.
        let change = match rebalance {
            Rebalance::Assign(list) => Change::Assigned(partitions_in(list)),
            Rebalance::Revoke(list) => Change::Revoked(partitions_in(list)),
            Rebalance::Error(_) => return,
        };
        self.changes.lock().expect("not poisoned").push(change);
    }
}

/// A message whose body is still a part of the buffer of all that came together.
struct Taken {
    body: Range<usize>,
    facts: Facts,
    again: bool,
}

/// Receives from one topic.
pub struct KafkaConsumer {
    consumer: Arc<StreamConsumer<Member>>,
    says: Says,
    topic: String,
    changes: Arc<Mutex<Vec<Change>>>,
    lost: watch::Receiver<Option<Failure>>,
    partitions: Partitions,
    prefetch: u64,
    until_end: bool,
    /// How many were given back where the end is waited for: they stay as they are.
    held: u64,
    peek: bool,
    no_ack: bool,
    /// Came while nothing else was here.
    first: Option<Taken>,
    bodies: BytesMut,
}

impl KafkaConsumer {
    /// `ends`: where each partition ends, if that is to be the end. `from`: where a look begins.
    pub(super) fn new(
        config: &ClientConfig,
        says: Says,
        wish: &ConsumeWish,
        ends: Option<HashMap<i32, i64>>,
        from: Option<&TopicPartitionList>,
    ) -> Result<KafkaConsumer, Failure> {
        let mut config = config.clone();
        config
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", if wish.peek { "false" } else { "true" })
            .set("auto.commit.interval.ms", "500")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", if ends.is_some() { "true" } else { "false" })
            .set("fetch.wait.max.ms", "100")
            .set("fetch.message.max.bytes", super::MESSAGE_MAX_BYTES)
            .set("queued.max.messages.kbytes", "16384")
            // What is held here for long is worked on: the heartbeats say that this process lives.
            .set("max.poll.interval.ms", "86400000")
            .set("session.timeout.ms", "10000");
        let ears = Ears::new(says.clone());
        let (changes, lost) = (Arc::default(), ears.lost());
        let member = Member { ears, changes: Arc::clone(&changes) };
        let failed = |error| says.failed(&format!("receive from topic {}", wish.queue), &error);
        let consumer: StreamConsumer<Member> =
            StreamConsumer::from_config_and_context(&config, member).map_err(failed)?;
        let mut partitions = Partitions::new(ends);
        match from {
            Some(from) => {
                consumer.assign(from).map_err(failed)?;
                partitions.assign(&partitions_in(from));
            }
            None => consumer.subscribe(&[&wish.queue]).map_err(failed)?,
        }
        Ok(KafkaConsumer {
            consumer: Arc::new(consumer),
            topic: wish.queue.clone(),
            changes,
            lost,
            partitions,
            prefetch: u64::from(wish.prefetch.max(1)),
            until_end: wish.until_end,
            held: 0,
            peek: wish.peek,
            no_ack: wish.no_ack,
            first: None,
            bodies: BytesMut::new(),
            says,
        })
    }

    fn failed(&self, error: &KafkaError) -> Failure {
        self.says.failed(&format!("receive from topic {}", self.topic), error)
    }

    fn apply_changes(&mut self) {
        let changes = std::mem::take(&mut *self.changes.lock().expect("not poisoned"));
        for change in changes {
            match change {
                Change::Assigned(partitions) => self.partitions.assign(&partitions),
                Change::Revoked(partitions) => self.partitions.revoke(&partitions),
            }
        }
    }

    /// The next message that is here; `None`: there is none, or it is not to be handed out.
    fn take_in(
        &mut self,
        came: Result<rdkafka::message::BorrowedMessage<'_>, KafkaError>,
    ) -> Result<Option<Taken>, Failure> {
        self.apply_changes();
        let record = match came {
            Ok(record) => record,
            Err(KafkaError::PartitionEOF(partition)) => {
                self.partitions.at_end(partition);
                return Ok(None);
            }
            Err(error) => {
                let failure = self.failed(&error);
                return if is_passing_by(&error) { Ok(None) } else { Err(failure) };
            }
        };
        let arrival = self.partitions.arrive(record.partition(), record.offset());
        if arrival == Arrival::Passed {
            return Ok(None);
        }
        let from = self.bodies.len();
        self.bodies.extend_from_slice(record.payload().unwrap_or_default());
        let facts = records::facts_of(&record);
        let body = from..self.bodies.len();
        Ok(Some(Taken { body, facts, again: arrival == Arrival::Again }))
    }

    fn has_room(&self) -> bool {
        self.peek || self.partitions.open() - self.held < self.prefetch
    }

    /// All that is here, at most so many.
    fn take(&mut self, limit: usize) -> Result<Vec<Incoming>, Failure> {
        let consumer = Arc::clone(&self.consumer);
        let mut taken: Vec<Taken> = self.first.take().into_iter().collect();
        while taken.len() < limit && self.has_room() {
            let Some(came) = consumer.recv().now_or_never() else { break };
            match self.take_in(came) {
                Ok(Some(message)) => taken.push(message),
                Ok(None) => (),
                Err(_) if !taken.is_empty() => break,
                Err(failure) => return Err(failure),
            }
        }
        self.apply_changes();
        let bodies = std::mem::take(&mut self.bodies).freeze();
        let messages = taken.into_iter().map(|message| Incoming {
            body: bodies.slice(message.body),
            facts: Some(Box::new(message.facts)),
            attempt: 0,
            redelivered: message.again,
        });
        Ok(messages.collect())
    }

    /// Hands what may be committed to librdkafka, which commits it within half a second, when partitions
    /// are given up, and at the end.
    fn store(&mut self) -> Result<(), Failure> {
        let places = self.partitions.take_commits();
        if places.is_empty() || self.peek {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(places.len());
        for (partition, offset) in places {
            let added = list.add_partition_offset(&self.topic, partition, Offset::Offset(offset));
            added.map_err(|error| self.failed(&error))?;
        }
        match self.consumer.store_offsets(&list) {
            Ok(()) => Ok(()),
            // A partition was given up a moment ago: another has what was acked.
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::State) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Reads partitions again from where something was released.
    fn read_again(&mut self, range: &Range<u64>) -> Result<(), Failure> {
        for (partition, offset) in self.partitions.release(range) {
            let sought =
                self.consumer.seek(&self.topic, partition, Offset::Offset(offset), Duration::ZERO);
            sought.map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn ack_all(&mut self) -> Result<(), Failure> {
        let all = self.partitions.numbers();
        if !all.is_empty() {
            self.partitions.ack(&all);
            self.store()?;
        }
        Ok(())
    }
}

/// Whether librdkafka goes on by itself.
fn is_passing_by(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code();
    matches!(code, Some(Code::BrokerTransportFailure | Code::OperationTimedOut))
}

impl Consumer for KafkaConsumer {
    async fn receive(&mut self, limit: usize) -> Result<Received, Failure> {
        if self.no_ack {
            self.ack_all()?;
        }
        let consumer = Arc::clone(&self.consumer);
        loop {
            let messages = self.take(limit)?;
            if !messages.is_empty() {
                return Ok(Received::Messages(messages));
            }
            if self.partitions.is_over() {
                return Ok(Received::End);
            }
            let has_room = self.has_room();
            let mut lost = self.lost.clone();
            tokio::select! {
                biased;
                came = consumer.recv(), if has_room => self.first = self.take_in(came)?,
                failure = lost.wait_for(Option::is_some) => {
                    let failure = failure.ok().and_then(|failure| failure.clone());
                    return Err(failure.unwrap_or_else(|| self.says.place.lost("it was closed")));
                }
            }
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
                Settlement::Ack | Settlement::Dead => self.partitions.ack(range),
                // At the end, what is not done is not committed: it comes to the next one.
                Settlement::Release | Settlement::Retry(_) if self.until_end => {
                    self.held += range.end - range.start;
                }
                Settlement::Release | Settlement::Retry(_) => self.read_again(range)?,
                Settlement::Progress => (),
            }
        }
        self.store()
    }

    async fn allow(&mut self, prefetch: u32) -> Result<(), Failure> {
        self.prefetch = u64::from(prefetch.max(1));
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if self.peek {
            return Ok(());
        }
        if self.no_ack {
            self.ack_all()?;
        }
        let consumer = Arc::clone(&self.consumer);
        let committed = blocking(move || consumer.commit_consumer_state(CommitMode::Sync)).await;
        match committed {
            Ok(()) => Ok(()),
            // There is nothing to commit.
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::NoOffset) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn finish(mut self) -> Result<(), Failure> {
        self.flush().await?;
        // It leaves the group, which takes a moment.
        let consumer = self.consumer;
        blocking(move || drop(consumer)).await;
        Ok(())
    }
}
