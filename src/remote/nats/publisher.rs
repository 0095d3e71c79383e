//! Sends to a subject, and waits for the acknowledgements of the stream.
//!
//! All messages of a batch ask for their acknowledgement under one name, so a batch is confirmed when
//! as many have come as it has messages. One task takes them all in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, StatusCode, Subject, Subscriber};
use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use super::failure::Says;
use super::headers::Naming;
use super::{Lost, failure};
use crate::remote::engine::{Confirmation, Publisher, Unconfirmed};
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::Outgoing;

/// How long acknowledgements of a batch are waited for.
const CONFIRM: Duration = Duration::from_secs(30);

/// How many messages may be unconfirmed: a quarter of what a subscription may hold
/// ([`super::WAITING`]).
const UNCONFIRMED: u32 = 1 << 15;

/// A batch that is not confirmed yet.
struct Waiting {
    left: usize,
    done: oneshot::Sender<Result<(), Failure>>,
}

/// The batches that wait, by their numbers.
type Batches = Mutex<HashMap<u64, Waiting>>;

/// The task that takes acknowledgements in; ends with the last who waits for one.
struct Intake(JoinHandle<()>);

impl Drop for Intake {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends to one subject.
pub struct NatsPublisher {
    client: Client,
    says: Says,
    lost: Lost,
    subject: Subject,
    naming: Naming,
    /// Acknowledgements come to this name with the batch's number behind it.
    inbox: String,
    next_batch: u64,
    batches: Arc<Batches>,
    room: Arc<Semaphore>,
    intake: Arc<Intake>,
}

impl NatsPublisher {
    pub(super) async fn new(
        client: Client,
        says: Says,
        lost: Lost,
        naming: Naming,
    ) -> Result<NatsPublisher, Failure> {
        let inbox = client.new_inbox();
        let acks = client.subscribe(format!("{inbox}.*")).await;
        let acks = acks.map_err(|error| says.failed("have messages acknowledged", &error))?;
        let batches = Arc::new(Batches::default());
        let room = Arc::new(Semaphore::new(UNCONFIRMED as usize));
        let taking = take_in(acks, Arc::clone(&batches), Arc::clone(&room), says.clone());
        Ok(NatsPublisher {
            client,
            says,
            lost,
            subject: naming.subject.as_str().into(),
            naming,
            inbox,
            next_batch: 0,
            batches,
            room,
            intake: Arc::new(Intake(tokio::spawn(taking))),
        })
    }

    /// Waits until so many more may be unconfirmed.
    async fn have_room(&mut self, count: usize) -> Result<(), Failure> {
        let count = u32::try_from(count).expect("a chunk");
        tokio::select! {
            permits = self.room.acquire_many(count) => {
                permits.expect("never closed").forget();
                Ok(())
            }
            _ = self.lost.wait_for(|lost| *lost) => Err(self.says.lost()),
        }
    }
}

/// Counts acknowledgements.
async fn take_in(mut acks: Subscriber, batches: Arc<Batches>, room: Arc<Semaphore>, says: Says) {
    while let Some(ack) = acks.next().await {
        room.add_permits(1);
        let number = ack.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let Some(number): Option<u64> = number else { continue };
        let mut batches = batches.lock().expect("not poisoned");
        let Some(batch) = batches.get_mut(&number) else { continue };
        let said = stored(&ack, &says);
        batch.left -= 1;
        if batch.left == 0 || said.is_err() {
            let batch = batches.remove(&number).expect("it is there");
            // Nobody waits for it any more: then nobody needs to know.
            let _ = batch.done.send(said);
        }
    }
}

/// Whether the stream has stored a message.
fn stored(ack: &async_nats::Message, says: &Says) -> Result<(), Failure> {
    if ack.status == Some(StatusCode::NO_RESPONDERS) {
        let why =
            format!("no stream at {} takes what is sent: it is gone, or has no leader", says.place);
        return Err(Failure::new(Kind::Busy, why));
    }
    failure::answered(says, "send", ack)
}

impl Publisher for NatsPublisher {
    async fn publish(&mut self, batch: Vec<Outgoing>) -> Result<Confirmation, Failure> {
        let most = self.client.max_payload();
        let headers: Vec<_> = batch
            .iter()
            .map(|message| self.naming.headers(message, most))
            .collect::<Result<_, _>>()?;
        let number = self.next_batch;
        self.next_batch += 1;
        let (done, confirmed) = oneshot::channel();
        let waiting = Waiting { left: batch.len(), done };
        self.batches.lock().expect("not poisoned").insert(number, waiting);
        let reply = Subject::from(format!("{}.{number}", self.inbox));
        let mut messages = batch.into_iter().zip(headers);
        loop {
            let chunk: Vec<_> = messages.by_ref().take(UNCONFIRMED as usize / 8).collect();
            if chunk.is_empty() {
                break;
            }
            self.have_room(chunk.len()).await?;
            for (message, headers) in chunk {
                let (subject, reply) = (self.subject.clone(), reply.clone());
                let sent = self
                    .client
                    .publish_with_reply_and_headers(subject, reply, headers, message.body)
                    .await;
                sent.map_err(|error| self.says.failed("send", &error))?;
            }
        }
        let (mut lost, says, intake) =
            (self.lost.clone(), self.says.clone(), Arc::clone(&self.intake));
        Ok(Box::pin(async move {
            let _intake = intake;
            let confirmed = tokio::select! {
                biased;
                said = confirmed => said.unwrap_or_else(|_| Err(says.lost())),
                _ = lost.wait_for(|lost| *lost) => Err(says.lost()),
                () = tokio::time::sleep(CONFIRM) => Err(says.place.silent("sending", CONFIRM)),
            };
            confirmed.map_err(Unconfirmed::from)
        }))
    }

    async fn finish(self) -> Result<(), Failure> {
        let flushed = tokio::time::timeout(CONFIRM, self.client.flush()).await;
        let flushed = flushed.map_err(|_| self.says.place.silent("ending", CONFIRM))?;
        flushed.map_err(|error| self.says.failed("end sending", &error))
    }
}
