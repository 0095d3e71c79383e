//! An engine in memory. It may be killed and come back, hold confirmations back, refuse; and it remembers
//! all that was ever done to it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use mq::remote::address::Address;
use mq::remote::engine::{
    Abilities, Ability, Confirmation, ConsumeWish, Consumer, Engine, Holding, Progress,
    PublishWish, Publisher, QueueFigures, Received, Settlement, Unconfirmed,
};
use mq::remote::failure::{Failure, Kind};
use mq::remote::message::{Facts, Incoming, Outgoing};
use tokio::sync::{Notify, watch};

/// A message as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    pub body: Vec<u8>,
    pub facts: Option<Box<Facts>>,
    pub attempt: u32,
}

/// A queue.
#[derive(Debug, Default)]
pub struct Queue {
    pub ready: VecDeque<Stored>,
    /// With consumers, by the life of the consumer and the number there.
    unacked: BTreeMap<(u64, u64), Stored>,
    /// Bodies, in the order in which they were acked.
    pub acked: Vec<Vec<u8>>,
    /// Messages that came again under a number that was stored already.
    pub repeated: u64,
    seen: HashSet<(u64, u64)>,
    /// How far senders with a name have come.
    pub progress: HashMap<u64, Progress>,
    /// The most messages that were unsettled at once.
    pub unsettled_max: usize,
    /// Acks are taken and never heard of, as those on a wire that breaks.
    pub loses_acks: bool,
}

/// What the engine does, and what it has.
#[derive(Debug, Default)]
pub struct State {
    pub queues: HashMap<String, Queue>,
    /// Grows with each kill: whoever was connected before is not any more.
    life: u64,
    consumers: u64,
    /// Nobody can connect.
    pub is_down: bool,
    /// Connecting fails so.
    pub refuses: Option<Failure>,
    /// What is published fails so.
    pub fails: Option<Failure>,
    /// Nobody can publish, and this is why.
    pub refuses_publishers: Option<Failure>,
    /// The next batch is not stored, and its confirmation says so.
    pub spoils: Option<Failure>,
    /// Takes only so many messages of the next batch, and says so.
    pub takes_part: Option<usize>,
    /// Takes nothing while there is a reason.
    pub holds: watch::Sender<Option<Failure>>,
    /// Dies after so many more batches, the last of which is stored and not confirmed.
    pub dies_after: Option<usize>,
    /// Takes nothing more after so many batches.
    pub holds_after: Option<usize>,
    /// After so many more batches, hears nothing more of this connection, and does not say so.
    pub hangs_after: Option<usize>,
    /// It does so now.
    pub is_hung: bool,
    /// Dies after so many more messages were handed out.
    pub dies_after_deliveries: Option<usize>,
    /// What is published is stored, and not confirmed before this is over.
    pub is_silent: bool,
    /// Settlements that are [`Settlement::Progress`].
    pub progress: u64,
    pub connections: u64,
}

/// An engine by its host's name, which is that of the test.
#[derive(Clone, Default)]
pub struct Broker {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

static BROKERS: LazyLock<Mutex<HashMap<String, Broker>>> = LazyLock::new(Mutex::default);

impl Broker {
    pub fn named(name: &str) -> Broker {
        BROKERS.lock().expect("not poisoned").entry(name.to_owned()).or_default().clone()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Dies, and is there again at once: connections are lost, and what was unsettled is ready again.
    pub fn kill(&self) {
        let mut state = self.state();
        state.die();
        drop(state);
        self.changed.notify_waiters();
    }

    fn sees(&self, look: impl FnOnce(&State) -> bool) -> bool {
        look(&self.state())
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let looked = look(&mut self.state());
        self.changed.notify_waiters();
        looked
    }

    /// The bodies of a queue that are ready.
    pub fn ready(&self, queue: &str) -> Vec<Vec<u8>> {
        self.with(|state| {
            let queue = state.queues.entry(queue.to_owned()).or_default();
            queue.ready.iter().map(|stored| stored.body.clone()).collect()
        })
    }
}

impl State {
    fn hangs(&mut self) -> bool {
        let left = self.hangs_after;
        self.hangs_after = left.map(|left| left.saturating_sub(1));
        self.is_hung = left == Some(0);
        self.is_hung
    }

    fn die(&mut self) {
        self.life += 1;
        for queue in self.queues.values_mut() {
            for (_, mut stored) in std::mem::take(&mut queue.unacked).into_iter().rev() {
                stored.attempt += 1;
                queue.ready.push_front(stored);
            }
        }
    }
}

pub struct Memory {
    broker: Broker,
    life: u64,
}

fn lost() -> Failure {
    Failure::new(Kind::Unreachable, "the connection to Memory was lost")
}

impl Engine for Memory {
    const ABILITIES: Abilities = Abilities {
        name: "Memory",
        schemes: &["mem"],
        confirmed: "it is in memory",
        ordered: Ability::Yes,
        once: Ability::Yes,
        keys: Ability::Yes,
        headers: Ability::Yes,
        ids: Ability::Yes,
        ttl: Ability::Yes,
        delay: Ability::No("it forgets what it was told to wait for; use a queue of the store"),
        producers: Ability::Yes,
        groups: Ability::No("it has one group; use a queue for each"),
        from: Ability::No("it has no positions"),
        end: Ability::Yes,
        peek: Ability::No("it shows nothing twice"),
        acks: Ability::Yes,
        delays_retries: false,
        purge: Ability::Yes,
        remove: Ability::Yes,
        figures: Ability::Yes,
    };
    type Publisher = MemoryPublisher;
    type Consumer = MemoryConsumer;

    async fn connect(address: &Address, _: Duration) -> Result<Self, Failure> {
        let broker = Broker::named(&address.hosts[0].name);
        let mut state = broker.state();
        state.connections += 1;
        if let Some(failure) = &state.refuses {
            return Err(failure.clone());
        }
        if state.is_down {
            return Err(Failure::new(Kind::Unreachable, "nobody answers at Memory"));
        }
        let life = state.life;
        drop(state);
        Ok(Memory { broker, life })
    }

    async fn publisher(&self, wish: &PublishWish) -> Result<MemoryPublisher, Failure> {
        let (broker, life) = (self.broker.clone(), self.life);
        if let Some(failure) = &broker.state().refuses_publishers {
            return Err(failure.clone());
        }
        let progress = broker.with(|state| {
            let queue = state.queues.entry(wish.queue.clone()).or_default();
            wish.named.then(|| queue.progress.get(&wish.sender).cloned().unwrap_or_default())
        });
        Ok(MemoryPublisher { broker, life, wish: wish.clone(), progress, annex: None })
    }

    fn holding(&self) -> Option<Holding> {
        Some(self.broker.state().holds.subscribe())
    }

    async fn consumer(&self, wish: &ConsumeWish) -> Result<MemoryConsumer, Failure> {
        let (broker, life) = (self.broker.clone(), self.life);
        let (id, end) = broker.with(|state| {
            state.consumers += 1;
            let queue = state.queues.entry(wish.queue.clone()).or_default();
            (state.consumers, queue.ready.len())
        });
        let end = wish.until_end.then_some(end);
        Ok(MemoryConsumer { broker, life, id, wish: wish.clone(), next: 0, end })
    }

    async fn figures(&self, queue: &str) -> Result<Option<QueueFigures>, Failure> {
        Ok(self.broker.with(|state| {
            let queue = state.queues.get(queue)?;
            Some(QueueFigures {
                ready: Some(queue.ready.len() as u64),
                unacked: Some(queue.unacked.len() as u64),
                ..QueueFigures::default()
            })
        }))
    }

    async fn purge(&self, queue: &str) -> Result<Option<u64>, Failure> {
        Ok(self.broker.with(|state| {
            let queue = state.queues.get_mut(queue)?;
            Some(std::mem::take(&mut queue.ready).len() as u64)
        }))
    }

    async fn remove(&self, queue: &str) -> Result<(), Failure> {
        self.broker.with(|state| state.queues.remove(queue));
        Ok(())
    }
}

pub struct MemoryPublisher {
    broker: Broker,
    life: u64,
    wish: PublishWish,
    progress: Option<Progress>,
    annex: Option<Vec<u8>>,
}

impl Publisher for MemoryPublisher {
    fn progress(&self) -> Option<Progress> {
        self.progress.clone()
    }

    fn note(&mut self, annex: &[u8]) {
        self.annex = Some(annex.to_vec());
    }

    async fn publish(&mut self, mut batch: Vec<Outgoing>) -> Result<Confirmation, Failure> {
        let life = self.life;
        if self.broker.with(State::hangs) {
            return std::future::pending().await;
        }
        let mut held = self.broker.state().holds.subscribe();
        held.wait_for(Option::is_none).await.expect("the broker lives as long as the process");
        let spoilt = self.broker.state().spoils.take();
        let part = self.broker.state().takes_part.take().or(spoilt.as_ref().map(|_| 0));
        batch.truncate(part.unwrap_or(batch.len()));
        let stored = self.broker.with(|state| {
            if let Some(failure) = &state.fails {
                return Err(failure.clone());
            }
            if state.life != life {
                return Err(lost());
            }
            let queue = state.queues.get_mut(&self.wish.queue).expect("it was made");
            if let (true, Some(last)) = (self.wish.named, batch.last()) {
                let progress = Progress { last: last.number, annex: self.annex.take() };
                queue.progress.insert(self.wish.sender, progress);
            }
            for Outgoing { body, facts, number } in batch {
                if queue.seen.insert((self.wish.sender, number)) {
                    queue.ready.push_back(Stored { body: body.to_vec(), facts, attempt: 1 });
                } else {
                    queue.repeated += 1;
                }
            }
            let is_full = state.holds_after.as_mut().is_some_and(|left| {
                *left = left.saturating_sub(1);
                *left == 0
            });
            if is_full {
                state.holds_after = None;
                state.holds.send_replace(Some(Failure::new(Kind::Busy, "Memory is low on disk")));
            }
            let dies = state.dies_after.as_mut().is_some_and(|left| {
                *left = left.saturating_sub(1);
                *left == 0
            });
            if dies {
                state.dies_after = None;
                state.die();
            }
            Ok(())
        });
        stored?;
        let broker = self.broker.clone();
        Ok(Box::pin(async move {
            tokio::task::yield_now().await;
            let changed = broker.changed.clone();
            loop {
                let mut notified = std::pin::pin!(changed.notified());
                notified.as_mut().enable();
                if broker.sees(|state| !state.is_silent || state.life != life) {
                    break;
                }
                notified.await;
            }
            if broker.state().life != life {
                return Err(lost().into());
            }
            match part {
                None => Ok(()),
                Some(stored) => {
                    let full = Failure::new(Kind::Busy, "Memory is full");
                    let failure = spoilt.unwrap_or(full);
                    Err(Unconfirmed { stored, failure })
                }
            }
        }))
    }

    async fn finish(self) -> Result<(), Failure> {
        let mut held = self.broker.state().holds.subscribe();
        held.wait_for(Option::is_none).await.expect("the broker stays");
        Ok(())
    }
}

pub struct MemoryConsumer {
    broker: Broker,
    life: u64,
    id: u64,
    wish: ConsumeWish,
    next: u64,
    /// How many more there were at the start.
    end: Option<usize>,
}

impl MemoryConsumer {
    fn take(&mut self, limit: usize) -> Result<Option<Received>, Failure> {
        let mut state = self.broker.state();
        if state.life != self.life {
            return Err(lost());
        }
        if self.end == Some(0) {
            self.end = None;
            return Ok(Some(Received::End));
        }
        let queue = state.queues.entry(self.wish.queue.clone()).or_default();
        let ours = queue.unacked.range((self.id, 0)..(self.id + 1, 0)).count();
        let room = (self.wish.prefetch as usize).saturating_sub(ours);
        let count = queue.ready.len().min(limit).min(room).min(self.end.unwrap_or(usize::MAX));
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            let stored = queue.ready.pop_front().expect("counted");
            messages.push(Incoming {
                body: stored.body.clone().into(),
                facts: stored.facts.clone(),
                attempt: 0,
                redelivered: stored.attempt > 1,
            });
            if !self.wish.no_ack {
                queue.unacked.insert((self.id, self.next), stored);
            }
            self.next += 1;
        }
        queue.unsettled_max = queue.unsettled_max.max(ours + count);
        if let Some(end) = &mut self.end {
            *end -= count;
        }
        let dies = state.dies_after_deliveries.as_mut().is_some_and(|left| {
            *left = left.saturating_sub(count);
            *left == 0
        });
        if dies {
            state.dies_after_deliveries = None;
            state.die();
        }
        Ok((count > 0).then_some(Received::Messages(messages)))
    }
}

impl Consumer for MemoryConsumer {
    async fn receive(&mut self, limit: usize) -> Result<Received, Failure> {
        let changed = self.broker.changed.clone();
        loop {
            let mut notified = std::pin::pin!(changed.notified());
            notified.as_mut().enable();
            if let Some(received) = self.take(limit)? {
                return Ok(received);
            }
            notified.await;
        }
    }

    async fn settle(
        &mut self,
        numbers: &[Range<u64>],
        settlement: Settlement,
    ) -> Result<(), Failure> {
        self.broker.with(|state| {
            if state.life != self.life {
                return Err(lost());
            }
            if settlement == Settlement::Progress {
                state.progress += 1;
                return Ok(());
            }
            let queue = state.queues.entry(self.wish.queue.clone()).or_default();
            if settlement == Settlement::Ack && queue.loses_acks {
                return Ok(());
            }
            for number in numbers.iter().flat_map(Range::clone) {
                let mut stored = queue.unacked.remove(&(self.id, number)).expect("settled once");
                match settlement {
                    Settlement::Ack => queue.acked.push(stored.body),
                    Settlement::Release => {
                        stored.attempt += 1;
                        queue.ready.push_front(stored);
                    }
                    other => panic!("{other:?} was not promised"),
                }
            }
            Ok(())
        })
    }

    async fn allow(&mut self, prefetch: u32) -> Result<(), Failure> {
        self.wish.prefetch = prefetch;
        self.broker.changed.notify_waiters();
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn finish(self) -> Result<(), Failure> {
        Ok(())
    }
}

impl Drop for MemoryConsumer {
    /// What is unsettled is ready again.
    fn drop(&mut self) {
        let (id, life) = (self.id, self.life);
        self.broker.with(|state| {
            if state.life != life {
                return;
            }
            for queue in state.queues.values_mut() {
                let ours: Vec<(u64, u64)> =
                    queue.unacked.range((id, 0)..(id + 1, 0)).map(|(key, _)| *key).collect();
                for key in ours.into_iter().rev() {
                    let mut stored = queue.unacked.remove(&key).expect("just seen");
                    stored.attempt += 1;
                    queue.ready.push_front(stored);
                }
            }
        });
    }
}
