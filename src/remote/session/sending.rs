//! From OPEN_SEND over PUBLISH to CONFIRM.
//!
//! ```text
//! PUBLISH ─▶ kept (until confirmed) ─▶ publisher ─▶ pending confirmations ─▶ CONFIRM
//!                 └───────◀── a new connection ◀─────────┘ failed
//! ```
//!
//! All per batch. What is not confirmed is kept as the frame that it came in, and handed over again, in
//! order and under the same numbers, when the connection to the engine was lost. Where the engine knows
//! how far a sender with a name has come, what it has is confirmed without it.

use std::collections::VecDeque;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use super::payload::{Parts, Published};
use super::{Broken, Frame, Frames, Session, Stop, or_gone, refusals};
use crate::limits;
use crate::remote::engine::{
    Abilities, Confirmation, Engine, Holding, Progress, PublishWish, Publisher, Unconfirmed,
};
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::Outgoing;
use crate::units::{Count, Epoch, Offset, Sequence, WallTime};
use crate::wire::{OpenSend, Reply, Request, Sending};

/// A sender's channel.
pub struct Sender<P> {
    channel: u16,
    wish: PublishWish,
    publisher: Option<P>,
    /// Where the engine says that it takes nothing for now.
    holding: Option<Holding>,
    /// What is not confirmed, in order.
    kept: VecDeque<Published>,
    kept_bytes: usize,
    /// Batches at its front that the publisher was given, each with its confirmation.
    handed: usize,
    pending: FuturesOrdered<Confirmation>,
    parts: Parts,
    /// The sequence of the last message that came, and of the last that is confirmed.
    last: u64,
    confirmed: u64,
    /// Up to there the engine has all, as it said when the publisher was made.
    stored: u64,
    is_closing: bool,
}

impl<E: Engine> Session<E> {
    /// Serves a channel for sending until its end.
    ///
    /// # Errors
    /// Why the connection ends; the client is told, if that is of any use.
    pub(super) async fn send(&mut self, channel: u16, open: OpenSend) -> Result<(), Stop> {
        refusals::check_send(&E::ABILITIES, &open)
            .map_err(|failure| Stop::Failed(channel, failure))?;
        let queue = self.queue().map_err(|failure| Stop::Failed(channel, failure))?;
        let last = open.resume.as_ref().map_or(0, |resume| resume.confirmed.0);
        let mut sender = Sender {
            channel,
            wish: PublishWish { queue, sender: open.producer.0, named: open.named },
            publisher: None,
            holding: None,
            kept: VecDeque::new(),
            kept_bytes: 0,
            handed: 0,
            pending: FuturesOrdered::new(),
            parts: Parts::default(),
            last,
            confirmed: last,
            stored: last,
            is_closing: false,
        };
        let progress = self.make_publisher(&mut sender).await?;
        sender.last = sender.stored;
        if open.resume.is_none() {
            // The client counts what an earlier run has stored without being told again.
            sender.confirmed = sender.stored;
        }
        let sending = Sending {
            queue_id: super::random_queue(),
            last: Sequence(sender.last),
            epoch: Epoch(1),
            opened: WallTime(0),
            annex: progress.annex,
        };
        self.out.push(channel, &Reply::Sending(sending));
        self.at_most_once();
        let ended = self.run_sender(&mut sender).await;
        // An engine that takes nothing does not take a goodbye either.
        let is_vain = sender.is_held() && matches!(ended, Err(Stop::Gone));
        if let Some(publisher) = sender.publisher.take().filter(|_| !is_vain) {
            let finished =
                tokio::time::timeout(limits::DRAIN.to_duration(), publisher.finish()).await;
            if let Ok(Err(failure)) = finished
                && ended.is_ok()
            {
                self.link.tell(&failure.to_string());
            }
        }
        ended
    }

    async fn run_sender(&mut self, sender: &mut Sender<E::Publisher>) -> Result<(), Stop> {
        loop {
            self.hand_over(sender).await?;
            if sender.is_closing && sender.kept.is_empty() {
                self.out.push(sender.channel, &Reply::Closed);
                return Ok(());
            }
            let has_room = sender.kept_bytes < limits::UNCONFIRMED_BYTES_MAX
                && sender.kept.len() < limits::REMOTE_UNCONFIRMED_MAX
                && !sender.is_closing;
            tokio::select! {
                biased;
                written = self.out.write(), if !self.out.is_empty() => written?,
                Some(confirmed) = sender.pending.next(), if !sender.pending.is_empty() => {
                    self.settle(sender, confirmed).await?;
                }
                why = held(&mut sender.holding), if !sender.kept.is_empty() => {
                    self.say_held(sender.channel, &why);
                }
                frame = incoming(&mut self.frames, has_room) => {
                    let frame = match frame {
                        Err(Broken::Gone) => return self.outlive(sender).await,
                        frame => frame?,
                    };
                    if sender.kept.is_empty() {
                        // Nothing waited: whatever was the matter with the engine is over, or begins now.
                        self.link.went_well();
                    }
                    take(sender, &frame)?;
                }
            }
        }
    }

    /// The client is gone; what it sent goes its way all the same, within a bounded time, unless the engine
    /// takes nothing anyway: the client waits for our end.
    async fn outlive(&mut self, sender: &mut Sender<E::Publisher>) -> Result<(), Stop> {
        if sender.is_held() {
            return Err(Stop::Gone);
        }
        let rest = async {
            while sender.publisher.is_some()
                && let Some(Ok(())) = sender.pending.next().await
            {}
        };
        let _ = tokio::time::timeout(limits::DRAIN.to_duration(), rest).await;
        Err(Stop::Gone)
    }

    /// Makes a publisher; how far the engine says that the sender has come.
    async fn make_publisher(
        &mut self,
        sender: &mut Sender<E::Publisher>,
    ) -> Result<Progress, Stop> {
        let wish = &sender.wish;
        let made = self.link.attempt(async |engine| {
            let publisher = engine.publisher(wish).await?;
            Ok((publisher, engine.holding()))
        });
        let made = or_gone(made, &self.frames).await?;
        let (publisher, holding) = made.map_err(|failure| Stop::Failed(sender.channel, failure))?;
        let progress = publisher.progress();
        sender.publisher = Some(publisher);
        sender.holding = holding;
        // What it says already is to be heard too.
        sender.holding.iter_mut().for_each(Holding::mark_changed);
        let Some(progress) = progress else { return Ok(Progress::default()) };
        if progress.last < sender.confirmed {
            return Err(Stop::Failed(sender.channel, forgotten(&E::ABILITIES, &progress, sender)));
        }
        sender.stored = progress.last;
        Ok(progress)
    }

    /// Gives the publisher what it was not given yet.
    async fn hand_over(&mut self, sender: &mut Sender<E::Publisher>) -> Result<(), Stop> {
        while sender.handed < sender.kept.len() {
            if sender.publisher.is_none() {
                self.make_publisher(sender).await?;
            }
            let published = &sender.kept[sender.handed];
            if published.last() <= sender.stored {
                sender.pending.push_back(Box::pin(std::future::ready(Ok(()))));
                sender.handed += 1;
                continue;
            }
            let messages = published.messages();
            let checked = messages.and_then(|messages| {
                refusals::check_messages(&E::ABILITIES, &messages).map(|()| messages)
            });
            let messages = match checked {
                Ok(messages) => messages,
                Err(failure) => return self.give_up(sender, failure).await,
            };
            let mut publisher = sender.publisher.take().expect("just made");
            if let Some(annex) = sender.kept[sender.handed].annex() {
                publisher.note(annex);
            }
            let published = self.publish(sender, &mut publisher, messages).await;
            sender.publisher = Some(publisher);
            let failed = match published? {
                Ok(confirmation) => {
                    sender.pending.push_back(confirmation);
                    sender.handed += 1;
                    None
                }
                Err(failure) => Some(failure),
            };
            // What is confirmed by now need not be sent again, if handing over failed.
            if let Some(failure) = self.hear_all(sender, Vec::new()).or(failed) {
                self.begin_anew(sender, failure).await?;
            }
        }
        Ok(())
    }

    /// Hands over a batch, and tells meanwhile what is confirmed of those before, as an engine may hold back
    /// for long. Once one of those is not, this one is not waited for: its connection may be of no use.
    async fn publish(
        &mut self,
        sender: &mut Sender<E::Publisher>,
        publisher: &mut E::Publisher,
        messages: Vec<Outgoing>,
    ) -> Result<Result<Confirmation, Failure>, Stop> {
        let mut publishing = std::pin::pin!(publisher.publish(messages));
        loop {
            tokio::select! {
                biased;
                handed = &mut publishing => return Ok(handed),
                Some(confirmed) = sender.pending.next(), if !sender.pending.is_empty() => {
                    if let Some(failure) = self.hear_all(sender, vec![confirmed]) {
                        return Ok(Err(failure));
                    }
                }
                why = held(&mut sender.holding) => self.say_held(sender.channel, &why),
                written = self.out.write(), if !self.out.is_empty() => written?,
                () = self.frames.hung_up() => return Err(Stop::Gone),
            }
        }
    }

    /// What was confirmed, in order, up to a failure.
    fn hear(
        &mut self,
        sender: &mut Sender<E::Publisher>,
        heard: Vec<Result<(), Unconfirmed>>,
    ) -> Option<Failure> {
        let before = sender.confirmed;
        let mut failed = None;
        for confirmed in heard {
            match confirmed {
                Ok(()) => sender.confirm(),
                Err(Unconfirmed { stored, failure }) => {
                    sender.confirm_part(stored);
                    // What is behind it is not counted in its place, and is sent again with it.
                    sender.pending = FuturesOrdered::new();
                    failed = Some(failure);
                }
            }
        }
        if sender.confirmed > before {
            self.link.went_well();
            self.say_confirmed(sender);
        }
        failed
    }

    /// A batch is confirmed, or it, and what is behind it, is not.
    async fn settle(
        &mut self,
        sender: &mut Sender<E::Publisher>,
        confirmed: Result<(), Unconfirmed>,
    ) -> Result<(), Stop> {
        match self.hear_all(sender, vec![confirmed]) {
            Some(failure) => self.begin_anew(sender, failure).await,
            None => Ok(()),
        }
    }

    /// The same as [`Session::hear`], with all that is known by now: it is one word.
    fn hear_all(
        &mut self,
        sender: &mut Sender<E::Publisher>,
        mut heard: Vec<Result<(), Unconfirmed>>,
    ) -> Option<Failure> {
        while heard.last().is_none_or(Result::is_ok)
            && let Some(Some(confirmed)) = sender.pending.next().now_or_never()
        {
            heard.push(confirmed);
        }
        self.hear(sender, heard)
    }

    fn say_confirmed(&mut self, sender: &Sender<E::Publisher>) {
        let sequence = Sequence(sender.confirmed);
        self.out.push(sender.channel, &Reply::Confirm(sequence, Offset(sequence.0), Count(0)));
    }

    /// The client is told that it has to wait, as by a server whose queue is full.
    fn say_held(&mut self, channel: u16, why: &Failure) {
        self.out.push(channel, &Reply::Held(super::fault(why)));
    }

    /// The publisher failed: all that is unconfirmed is handed to a new one, if there is hope.
    async fn begin_anew(
        &mut self,
        sender: &mut Sender<E::Publisher>,
        failure: Failure,
    ) -> Result<(), Stop> {
        if !failure.passes() {
            return self.give_up(sender, failure).await;
        }
        sender.publisher = None;
        sender.pending = FuturesOrdered::new();
        sender.handed = 0;
        let waited = or_gone(self.link.failed(failure), &self.frames).await?;
        waited.map_err(|failure| Stop::Failed(sender.channel, failure))
    }

    /// There is no going on. What can still be confirmed is, so that the count that the user is told
    /// is exact.
    async fn give_up(
        &mut self,
        sender: &mut Sender<E::Publisher>,
        failure: Failure,
    ) -> Result<(), Stop> {
        let before = sender.confirmed;
        let rest = async {
            while let Some(confirmed) = sender.pending.next().await {
                match confirmed {
                    Ok(()) => sender.confirm(),
                    Err(Unconfirmed { stored, .. }) => return sender.confirm_part(stored),
                }
            }
        };
        let _ = tokio::time::timeout(limits::CONFIRM_PATIENCE.to_duration(), rest).await;
        if sender.confirmed > before {
            self.say_confirmed(sender);
        }
        Err(Stop::Failed(sender.channel, failure))
    }
}

impl<P> Sender<P> {
    fn keep(&mut self, published: Published) {
        self.last = published.last();
        self.kept_bytes += published.bytes();
        self.kept.push_back(published);
    }

    /// Whether the engine says that it takes nothing.
    fn is_held(&self) -> bool {
        self.holding.as_ref().is_some_and(|holding| holding.borrow().is_some())
    }

    fn confirm(&mut self) {
        let published = self.kept.pop_front().expect("a confirmation for each batch");
        self.kept_bytes -= published.bytes();
        self.handed -= 1;
        self.confirmed = published.last();
    }

    /// Only so many of the messages that came first are confirmed, and the batch is not done.
    fn confirm_part(&mut self, count: usize) {
        let published = self.kept.front_mut().expect("a confirmation for each batch");
        published.confirm(u32::try_from(count).expect("of one batch"));
        self.confirmed = published.confirmed();
    }
}

/// Why the engine takes nothing, when it says so.
pub(super) async fn held(holding: &mut Option<Holding>) -> Failure {
    while let Some(told) = holding {
        // Nobody is left to tell: the connection is at its end, which is seen elsewhere.
        if told.changed().await.is_err() {
            break;
        }
        if let Some(why) = told.borrow_and_update().clone() {
            return why;
        }
    }
    std::future::pending().await
}

/// The next frame, if there is room for one; else only that the client is gone.
async fn incoming(frames: &mut Frames, has_room: bool) -> Result<Frame, Broken> {
    if has_room {
        return frames.next().await;
    }
    frames.hung_up().await;
    Err(Broken::Gone)
}

/// Takes in what a sender says.
fn take<P>(sender: &mut Sender<P>, frame: &Frame) -> Result<(), Stop> {
    let is_ours = frame.header.channel == sender.channel;
    match Request::decode(&frame.header, &frame.body)? {
        Request::Publish(head, payload) if is_ours => {
            let part = sender.parts.push(head, frame.body.slice_ref(payload));
            let whole = part.map_err(|failure| Stop::Failed(sender.channel, failure))?;
            let parts = whole.into_iter().flat_map(|whole| whole.split(limits::REMOTE_BATCH_MAX));
            parts.for_each(|published| sender.keep(published));
        }
        Request::Close if is_ours => sender.is_closing = true,
        _ => return Err(Stop::protocol("a frame that is none of a sender's")),
    }
    Ok(())
}

/// An engine knows less of a sender with a name than it had confirmed.
fn forgotten<P>(abilities: &Abilities, progress: &Progress, sender: &Sender<P>) -> Failure {
    let message = format!(
        "{} had confirmed {} messages of this producer to {}, and now knows of {}: was it removed?",
        abilities.name, sender.confirmed, sender.wish.queue, progress.last
    );
    Failure::new(Kind::Missing, message).with_remedy("another name with --producer, to send it all")
}

/// A queue that has no name.
pub(super) fn nameless(url: &str) -> Failure {
    Failure::unsupported(format!("{url} names no queue"))
        .with_remedy("an address is SCHEME://[USER[:PASSWORD]@]HOST[:PORT]/QUEUE; see mq-remote(1)")
}
