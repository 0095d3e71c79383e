//! Dead letters: stored and confirmed at their engine before the messages are settled.
//!
//! That may take long where the engine takes nothing. Meanwhile the client's end is heard, and nothing else of
//! what it says.

use std::cell::Cell;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::admin::now;
use super::letter::{self, letter};
use super::receiving::{Receiver, asks_for_end, keeps_nothing};
use super::sending::held;
use super::{Session, Stop, refusals, unless};
use crate::remote::engine::{Engine, Holding, PublishWish, Publisher, Settlement};
use crate::remote::failure::Failure;
use crate::remote::message::Outgoing;
use crate::wire::Nack;

/// How long letters are waited for when the client wants to end, and the engine takes nothing.
pub const GRACE: Duration = Duration::from_secs(1);

/// How long they are waited for otherwise: the client itself waits for [`limits::DRAIN`] in all.
const PATIENCE: Duration = Duration::from_secs(4);

/// How often it is looked whether the engine takes nothing.
const LOOK: Duration = Duration::from_millis(50);

/// Where dead letters go.
pub struct Letters<P> {
    /// The engine does it.
    by_engine: bool,
    wish: PublishWish,
    pub(super) publisher: Option<P>,
    /// Where the engine says that it takes nothing for now.
    holding: Option<Holding>,
    sent: u64,
}

impl<P: Publisher> Letters<P> {
    /// Those of a group of a queue, or to where the URL has it.
    pub(super) fn new(to: Option<String>, queue: &str, group: &str) -> Letters<P> {
        let by_engine = to.as_deref() == Some("engine");
        let queue = match to {
            Some(to) if !by_engine => to,
            _ => letter::queue_of(queue, group),
        };
        let wish = PublishWish { queue, sender: super::random_sender(), named: false };
        Letters { by_engine, wish, publisher: None, holding: None, sent: 0 }
    }

    /// Whether the engine says that it takes nothing.
    pub(super) fn is_held(&self) -> bool {
        let holding = self.holding.as_ref().filter(|_| self.publisher.is_some());
        holding.is_some_and(|holding| holding.borrow().is_some())
    }

    /// Stores letters; says why that takes long, where it does.
    async fn store(
        &mut self,
        batch: Vec<Outgoing>,
        mut tell: impl FnMut(&str),
    ) -> Result<(), Failure> {
        let publisher = self.publisher.as_mut().expect("it was made");
        let storing = async {
            let confirmation = publisher.publish(batch).await?;
            confirmation.await.map_err(|part| part.failure)
        };
        let mut storing = std::pin::pin!(storing);
        loop {
            tokio::select! {
                biased;
                stored = &mut storing => return stored,
                why = held(&mut self.holding) => tell(&format!("{why}; a dead letter waits for room")),
            }
        }
    }
}

impl<E: Engine> Session<E> {
    /// These are dead letters: stored as such, and then settled. If the client wants to end before that, they
    /// stay unsettled, and come again.
    pub(super) async fn bury(
        &mut self,
        receiver: &mut Receiver<E::Consumer, E::Publisher>,
        dead: &[u64],
        nack: &Nack,
    ) -> Result<Result<(), Failure>, Stop> {
        let ranges: Vec<Range<u64>> = dead.iter().map(|offset| *offset..offset + 1).collect();
        if keeps_nothing::<E>() {
            let (count, name) = (dead.len(), E::ABILITIES.name);
            let why = if nack.reason.is_empty() { "delivery limit" } else { &nack.reason };
            let text = format!("{name} keeps no dead letters: lost {count}, by {why}");
            self.link.tell(&text);
        }
        if keeps_nothing::<E>() || receiver.letters.by_engine {
            receiver.retrying.forget(&ranges);
            let settlement = if keeps_nothing::<E>() { Settlement::Ack } else { Settlement::Dead };
            return Ok(receiver.settle(&ranges, settlement).await);
        }
        let tell_late = |link: &super::Link<E>| {
            link.tell(&format!("{} dead letters are not stored; they come again", dead.len()));
        };
        // The end was asked for while others were buried.
        if receiver.closing_since.is_some_and(|since| since.elapsed() >= PATIENCE) {
            tell_late(&self.link);
            receiver.is_closing = true;
            return Ok(Ok(()));
        }
        let batch = letters_for::<E>(receiver, dead, nack);
        let Session { link, frames, .. } = self;
        let Receiver { letters, closing_since, .. } = &mut *receiver;
        let is_held = Cell::new(letters.is_held());
        let storing = async {
            if letters.publisher.is_none() {
                let wish = &letters.wish;
                let made = link
                    .attempt(async |engine| Ok((engine.publisher(wish).await?, engine.holding())));
                let (publisher, mut holding) = made.await?;
                // What it says already is to be heard too.
                holding.iter_mut().for_each(Holding::mark_changed);
                (letters.publisher, letters.holding) = (Some(publisher), holding);
            }
            let tell = |text: &str| {
                is_held.set(true);
                link.tell(text);
            };
            letters.store(batch, tell).await
        };
        let end = async {
            let end = asks_for_end(frames).await;
            // A letter that is about to be confirmed would be there twice.
            let since = *closing_since.get_or_insert_with(Instant::now);
            while since.elapsed() < if is_held.get() { GRACE } else { PATIENCE } {
                tokio::time::sleep(LOOK).await;
            }
            end
        };
        match unless(storing, end).await {
            Ok(Ok(())) => {
                receiver.retrying.forget(&ranges);
                Ok(receiver.settle(&ranges, Settlement::Ack).await)
            }
            Ok(Err(failure)) => Ok(Err(failure)),
            Err(None) => {
                tell_late(&self.link);
                receiver.is_closing = true;
                Ok(Ok(()))
            }
            Err(Some(error)) => {
                receiver.is_closing = true;
                Err(error.into())
            }
        }
    }
}

fn letters_for<E: Engine>(
    receiver: &mut Receiver<E::Consumer, E::Publisher>,
    dead: &[u64],
    nack: &Nack,
) -> Vec<Outgoing> {
    let mut batch = Vec::with_capacity(dead.len());
    let (queue, group) = (&receiver.wish.queue, &receiver.wish.group);
    for offset in dead {
        let tried = receiver.retrying.get(*offset).expect("what is held is kept");
        receiver.letters.sent += 1;
        let number = receiver.letters.sent;
        batch.push(letter(tried, queue, group, *offset, nack, now(), number));
    }
    refusals::without_what_is_missing(&E::ABILITIES, &mut batch);
    batch
}
