//! Sends persistent messages, and waits for receipts.
//!
//! A receipt of one SEND tells nothing certain of those before it. So a batch goes as transactions, and
//! the receipt of a COMMIT is waited for: all of it is stored, at the cost of one sync.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::frame::Encoder;
use super::headers;
use super::link::{Frames, Outlet};
use crate::remote::engine::{Confirmation, Publisher, Unconfirmed};
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::Outgoing;
use crate::remote::place::Place;

/// How many messages are in one transaction at most, which the broker holds in memory.
const TRANSACTION: usize = 1000;
/// How many bytes are put together for one write.
const WRITE: usize = 256 * 1024;
/// When a receipt is waited for, and for so long neither one came nor the socket took anything, the broker takes
/// nothing: while its memory or its disk is short it reads on no connection of a sender, and says nothing.
const STANDSTILL: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long the receipt of the end is waited for.
const RECEIPT: Duration = Duration::from_secs(60);

/// Who waits for which receipt; a failure ends all of them, and all that come later.
#[derive(Default)]
struct Receipts {
    waiting: HashMap<u64, oneshot::Sender<Result<(), Failure>>>,
    /// Since when nothing moves, if any is waited for, and what the socket had taken by then.
    standing: Option<(Instant, u64)>,
    failed: Option<Failure>,
}

/// The task that takes receipts in; ends with the last who waits for one.
struct Intake(JoinHandle<()>);

impl Drop for Intake {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends to one destination.
pub struct StompPublisher {
    place: Place,
    outlet: Outlet,
    destination: String,
    receipts: Arc<Mutex<Receipts>>,
    next: u64,
    intake: Arc<Intake>,
}

/// Says why a broker takes nothing for now, and that it does again.
struct Watch {
    place: Place,
    outlet: Outlet,
    holding: Arc<watch::Sender<Option<Failure>>>,
}

impl Watch {
    fn look(&self, receipts: &mut Receipts) {
        let written = self.outlet.written();
        let moves = receipts.waiting.is_empty()
            || receipts.standing.is_some_and(|(_, before)| before != written);
        if moves {
            receipts.standing = None;
            self.holding.send_if_modified(|why| why.take().is_some());
        }
        let (since, _) = receipts.standing.get_or_insert((Instant::now(), written));
        if !moves && since.elapsed() >= STANDSTILL {
            let why =
                format!("{} takes nothing for now: is its memory or its disk used up?", self.place);
            self.holding.send_if_modified(|told| {
                told.is_none() && told.replace(Failure::new(Kind::Busy, why)).is_none()
            });
        }
    }
}

async fn take_in(mut frames: Frames, receipts: Arc<Mutex<Receipts>>, watch: Watch) {
    let mut looks = tokio::time::interval(LOOK);
    loop {
        let came = {
            let mut next = std::pin::pin!(frames.next());
            loop {
                tokio::select! {
                    biased;
                    came = &mut next => break came,
                    _ = looks.tick() => watch.look(&mut receipts.lock().expect("not poisoned")),
                }
            }
        };
        let mut receipts = receipts.lock().expect("not poisoned");
        match came {
            Ok(frame) if frame.command == "RECEIPT" => {
                receipts.standing = None;
                watch.holding.send_if_modified(|why| why.take().is_some());
                let number = frame.header("receipt-id").and_then(|number| number.parse().ok());
                if let Some(waiting) = number.and_then(|number| receipts.waiting.remove(&number)) {
                    // Nobody waits for it any more: then nobody needs to know.
                    let _ = waiting.send(Ok(()));
                }
            }
            Ok(_) => (),
            Err(failure) => {
                for (_, waiting) in receipts.waiting.drain() {
                    let _ = waiting.send(Err(failure.clone()));
                }
                receipts.failed = Some(failure);
                return;
            }
        }
    }
}

impl StompPublisher {
    pub(super) fn new(
        place: Place,
        (frames, outlet): (Frames, Outlet),
        destination: String,
        holding: Arc<watch::Sender<Option<Failure>>>,
    ) -> StompPublisher {
        let receipts = Arc::new(Mutex::new(Receipts::default()));
        let watch = Watch { place: place.clone(), outlet: outlet.clone(), holding };
        let intake = tokio::spawn(take_in(frames, Arc::clone(&receipts), watch));
        let intake = Arc::new(Intake(intake));
        StompPublisher { place, outlet, destination, receipts, next: 0, intake }
    }

    /// A receipt that is asked for: its number, and where it comes.
    fn receipt(&mut self) -> Result<(u64, oneshot::Receiver<Result<(), Failure>>), Failure> {
        let (sender, receiver) = oneshot::channel();
        let mut receipts = self.receipts.lock().expect("not poisoned");
        if let Some(failure) = &receipts.failed {
            return Err(failure.clone());
        }
        let number = self.next;
        self.next += 1;
        receipts.waiting.insert(number, sender);
        Ok((number, receiver))
    }

    fn write_message(&self, out: &mut Encoder, message: &Outgoing, by: (&str, u64)) {
        out.begin("SEND")
            .header("destination", &self.destination)
            .plain_header("persistent", "true")
            .number(by.0, by.1);
        if let Some(facts) = &message.facts {
            headers::write(out, facts);
        }
        out.body(&message.body);
    }

    /// Sends some messages in one transaction, or one without.
    async fn send(
        &mut self,
        messages: &[Outgoing],
    ) -> Result<oneshot::Receiver<Result<(), Failure>>, Failure> {
        let (number, receipt) = self.receipt()?;
        let mut out = Encoder::default();
        if let [message] = messages {
            self.write_message(&mut out, message, ("receipt", number));
        } else {
            out.begin("BEGIN").number("transaction", number).end();
            for message in messages {
                self.write_message(&mut out, message, ("transaction", number));
                if out.waiting() > WRITE {
                    self.outlet.send(out.take()).await?;
                }
            }
            out.begin("COMMIT").number("transaction", number).number("receipt", number).end();
        }
        self.outlet.send(out.take()).await?;
        Ok(receipt)
    }
}

impl Publisher for StompPublisher {
    async fn publish(&mut self, batch: Vec<Outgoing>) -> Result<Confirmation, Failure> {
        batch
            .iter()
            .filter_map(|message| message.facts.as_ref())
            .try_for_each(|f| headers::check(f))?;
        let mut receipts = Vec::with_capacity(batch.len() / TRANSACTION + 1);
        for some in batch.chunks(TRANSACTION) {
            receipts.push(self.send(some).await?);
        }
        let (place, intake) = (self.place.clone(), Arc::clone(&self.intake));
        Ok(Box::pin(async move {
            let _intake = intake;
            for (part, receipt) in receipts.into_iter().enumerate() {
                // However long it takes: that the broker lives is known by its beats, and what is sent
                // again while it only takes nothing is stored twice.
                let said = receipt.await.unwrap_or_else(|_| Err(place.lost("it was closed")));
                // The transactions before it are stored, each as a whole.
                said.map_err(|failure| Unconfirmed { stored: part * TRANSACTION, failure })?;
            }
            Ok(())
        }))
    }

    async fn finish(mut self) -> Result<(), Failure> {
        let (number, receipt) = self.receipt()?;
        let mut out = Encoder::default();
        out.begin("DISCONNECT").number("receipt", number).end();
        self.outlet.send(out.take()).await?;
        // With its receipt, the broker has taken in all that came before.
        match tokio::time::timeout(RECEIPT, receipt).await {
            Err(_) => Err(self.place.silent("ending", RECEIPT)),
            Ok(Err(_)) => Err(self.place.lost("it was closed")),
            Ok(Ok(said)) => said,
        }
    }
}
