//! Produces under a name: a transaction holds messages and, with them, how far their sender has come.
//!
//! ```text
//! publish ─▶ waiting ─▶ all that waits: one transaction ─▶ committed ─▶ confirmed
//!                        │ messages                           │
//!                        └ progress                           └ meanwhile the next batches wait
//! ```
//!
//! The progress is an offset that is committed for a group of the sender's own, in the topic's first
//! partition: the number of its last message, with what the sender said in the metadata. Both are there or
//! neither; so a rerun learns what is stored, as from a store, and need not send it again. A sender that
//! is made under the same name fences off those before it, and what they had begun is aborted.
//!
//! There is not one transaction for the whole input: a client holds what is not confirmed in memory, an
//! input may never end, and brokers abort what takes longer than some minutes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::publisher::{DELIVERY, Producing};
use super::{ANSWER, Asking, blocking};
use crate::limits;
use crate::remote::engine::{Confirmation, Progress, Unconfirmed};
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::Outgoing;

/// How long brokers leave a transaction open before they abort it: longer than a message may take
/// ([`DELIVERY`]), and short, because whoever receives waits for it.
pub(super) const OPEN: Duration = Duration::from_secs(60);

/// How long an abort may take: it is a courtesy to receivers, who would wait for [`OPEN`].
const ABORT: Duration = Duration::from_secs(5);

/// The partition whose offset, in the sender's group, is its progress: every topic has it.
const PARTITION: i32 = 0;

/// What the cluster calls the sender of this number: its transactions and its group.
pub(super) fn id_of(topic: &str, sender: u64) -> String {
    format!("mq-{topic}-producer-{sender:016x}")
}

/// A batch that is to be committed.
struct Part {
    messages: Vec<Outgoing>,
    /// Where its sender is with it.
    progress: Progress,
    done: oneshot::Sender<Result<(), Failure>>,
}

/// Sends to one topic, under a name.
pub(super) struct Transactions {
    progress: Progress,
    annex: Option<Vec<u8>>,
    waiting: mpsc::UnboundedSender<Part>,
    committing: JoinHandle<()>,
    ended: Ended,
}

/// Why nothing more is committed, once that is so: what is published then fails by that, and by nothing
/// that would pass.
type Ended = Arc<OnceLock<Failure>>;

impl Transactions {
    /// Fences off older instances, and learns how far they had come. `asking` is in the group that
    /// [`id_of`] names, as the producer's configuration does.
    pub(super) async fn open(producing: Producing, asking: Asking) -> Result<Self, Failure> {
        let producer = producing.producer.clone();
        let ready = blocking(move || producer.init_transactions(ANSWER)).await;
        ready.map_err(|error| producing.says.failed("begin under this name", &error))?;
        let progress = ask(&producing, &asking).await?;
        // The session bounds what is not confirmed.
        let (waiting, parts) = mpsc::unbounded_channel();
        let ended = Ended::default();
        let committing = tokio::spawn(commit_all(producing, asking, parts, Arc::clone(&ended)));
        Ok(Transactions { progress, annex: None, waiting, committing, ended })
    }

    /// How far the sender had come before.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    pub(super) fn note(&mut self, annex: &[u8]) {
        self.annex = Some(annex.to_vec());
    }

    pub(super) fn publish(&mut self, messages: Vec<Outgoing>) -> Result<Confirmation, Failure> {
        let last = messages.last().expect("a batch holds messages").number;
        let progress = Progress { last, annex: self.annex.take() };
        let (done, committed) = oneshot::channel();
        let ended = Arc::clone(&self.ended);
        let why = move || ended.get().cloned().expect("it is said before anything is dropped");
        if self.waiting.send(Part { messages, progress, done }).is_err() {
            return Err(why());
        }
        Ok(Box::pin(async move {
            let committed = committed.await.unwrap_or_else(|_| Err(why()));
            committed.map_err(Unconfirmed::from)
        }))
    }

    pub(super) async fn finish(self) -> Result<(), Failure> {
        drop(self.waiting);
        // What failed was told to those who wait for it.
        let _ = self.committing.await;
        Ok(())
    }
}

/// Whatever is said when a newer producer of the name has fenced this one off, that is why.
fn or_fenced(producing: &Producing, failure: Failure) -> Failure {
    let fatal = producing.producer.client().fatal_error();
    let doing = format!("send to topic {}", producing.topic);
    fatal
        .map(|(code, _)| producing.says.refused(&doing, code))
        .filter(|failure| failure.kind == Kind::Fenced)
        .unwrap_or(failure)
}

/// How far the sender has come by what is committed: what is about to be is waited for.
async fn ask(producing: &Producing, asking: &Asking) -> Result<Progress, Failure> {
    let (asking, topic) = (Arc::clone(asking), producing.topic.clone());
    let found = blocking(move || {
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, PARTITION);
        asking.committed_offsets(list, ANSWER)
    });
    let doing = "ask how far a producer has come";
    let found = found.await.map_err(|error| producing.says.failed(doing, &error))?;
    let found = found.elements().pop().expect("the partition that was asked for");
    found.error().map_err(|error| producing.says.failed(doing, &error))?;
    let Offset::Offset(last) = found.offset() else { return Ok(Progress::default()) };
    let annex = Some(found.metadata()).filter(|text| !text.is_empty());
    let annex = annex.map(|text| BASE64_STANDARD.decode(text)).transpose();
    let annex = annex.map_err(|_| {
        let message = "its metadata is not what mq-send stores";
        producing.says.place.other(doing, message)
    })?;
    Ok(Progress { last: u64::try_from(last).unwrap_or(0), annex })
}

/// Commits what is published until there is nothing more, or something fails.
async fn commit_all(
    producing: Producing,
    asking: Asking,
    mut parts: mpsc::UnboundedReceiver<Part>,
    ended: Ended,
) {
    let mut waiting = Vec::new();
    while parts.recv_many(&mut waiting, limits::REMOTE_UNCONFIRMED_MAX).await > 0 {
        let committed = commit(&producing, &asking, &waiting).await;
        let committed = committed.map_err(|failure| or_fenced(&producing, failure));
        let failed = committed.as_ref().err().cloned();
        for part in waiting.drain(..) {
            // Nobody waits for it any more: then nobody needs to know.
            let _ = part.done.send(committed.clone());
        }
        if let Some(failure) = failed {
            ended.set(failure).expect("it ends once");
            drop(parts);
            // If it does not go, the brokers do it after a while.
            let _ = blocking(move || producing.producer.abort_transaction(ABORT)).await;
            return;
        }
    }
}

/// One transaction.
async fn commit(producing: &Producing, asking: &Asking, parts: &[Part]) -> Result<(), Failure> {
    let begun = producing.producer.begin_transaction();
    begun.map_err(|error| producing.says.failed("begin a transaction", &error))?;
    let mut sent = Vec::with_capacity(parts.len());
    for part in parts {
        sent.push(producing.send(&part.messages).await?);
    }
    for reported in sent {
        reported.await.map_err(|part| part.failure)?;
    }
    let progress = &parts.last().expect("something waits").progress;
    let list = offset_of(&producing.topic, progress);
    let list = list.map_err(|error| producing.says.failed("name a place", &error))?;
    let (producer, asking) = (producing.producer.clone(), Arc::clone(asking));
    let committed = blocking(move || {
        let group = asking.group_metadata().expect("it is in a group");
        producer.send_offsets_to_transaction(&list, &group, ANSWER)?;
        producer.commit_transaction(DELIVERY)
    });
    committed.await.map_err(|error| producing.says.failed("commit a transaction", &error))
}

/// A progress as an offset.
fn offset_of(topic: &str, progress: &Progress) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    let last = i64::try_from(progress.last).expect("nobody sends so many messages");
    let mut place = list.add_partition(topic, PARTITION);
    place.set_offset(Offset::Offset(last))?;
    if let Some(annex) = &progress.annex {
        place.set_metadata(BASE64_STANDARD.encode(annex));
    }
    Ok(list)
}
