//! Receives by a durable pull consumer.
//!
//! Messages are asked for by requests of so many, never more than the prefetch leaves room for; they come
//! to one inbox. What is held here is reported as being worked on, all of it, again and again, also what
//! nobody has taken yet, so the server gives none of it to another while this process lives, and soon when it
//! does not.
//!
//! A request is bounded in bytes too: the server hands out what is asked for as fast as it can, and cuts off
//! whoever has not read the last 64 MB of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::{Client, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinHandle;

use super::failure::Says;
use super::{ANSWER, Lost, headers};
use crate::remote::engine::{ConsumeWish, Received, Settlement};
use crate::remote::failure::{Failure, Kind};
use crate::remote::message::{Facts, Incoming};
use crate::remote::outstanding::Outstanding;
use crate::remote::until;
use crate::units::WallTime;

/// How long a request stays with the server.
const REQUEST: Duration = Duration::from_secs(30);
/// The same where the end is waited for: when so long nothing has come, nothing was ready.
const REQUEST_AT_END: Duration = Duration::from_millis(250);

/// How long the server may take to say that a request has ended.
const REQUEST_SPARE: Duration = Duration::from_secs(5);

/// The pause before another request where the server has refused one.
const REFUSED: Duration = Duration::from_secs(1);

/// Bytes of messages that are asked for and have not come, by the size of those that came before.
const ASKED_BYTES: usize = 8 << 20;

/// Bytes that one request may bring, whatever they are like; more where a single message may have more.
const REQUEST_BYTES: usize = 2 * ASKED_BYTES;

const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");

/// The messages that are here and not settled, for the task that reports them.
#[derive(Default)]
struct Open {
    outstanding: Outstanding,
    /// Where to settle each, from the floor on.
    replies: VecDeque<Subject>,
    /// The same of what came and is not to be given out: it goes back.
    beyond: Vec<Subject>,
}

impl Open {
    fn reply(&self, number: u64) -> Subject {
        let place = usize::try_from(number - self.outstanding.floor()).expect("a place in memory");
        self.replies[place].clone()
    }

    fn settle(&mut self, range: &Range<u64>) {
        let floor = self.outstanding.floor();
        self.outstanding.settle(range);
        for _ in floor..self.outstanding.floor() {
            self.replies.pop_front();
        }
    }

    fn all(&self) -> Vec<Subject> {
        (self.outstanding.floor()..self.outstanding.next())
            .filter(|number| self.outstanding.is_open(*number))
            .map(|number| self.reply(number))
            .chain(self.beyond.iter().cloned())
            .collect()
    }
}

/// What comes to the inbox.
struct Arriving {
    inbox: Subscriber,
    /// Came, and is not looked at yet.
    waiting: VecDeque<Message>,
    /// Bytes of it.
    bytes: usize,
}

impl Arriving {
    fn push(&mut self, message: Message) {
        self.bytes += message.length;
        self.waiting.push_back(message);
    }

    fn pop(&mut self) -> Option<Message> {
        let message = self.waiting.pop_front()?;
        self.bytes -= message.length;
        Some(message)
    }

    /// Takes in all that is here by now.
    fn fill(&mut self) {
        while let Some(Some(message)) = self.inbox.next().now_or_never() {
            self.push(message);
        }
    }

    /// Where to settle the messages that wait.
    fn replies(&self) -> impl Iterator<Item = Subject> + '_ {
        let replies = self.waiting.iter().filter_map(|message| message.reply.as_ref());
        replies.filter(|reply| Place::parse(reply).is_some()).cloned()
    }
}

/// Reports what is held; ends with its consumer.
struct Reporting(JoinHandle<()>);

impl Drop for Reporting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn report(
    client: Client,
    open: Arc<Mutex<Open>>,
    arriving: Arc<AsyncMutex<Arriving>>,
    every: Duration,
) {
    loop {
        tokio::time::sleep(every).await;
        let mut all = open.lock().expect("not poisoned").all();
        // While somebody takes what comes, nothing waits.
        if let Ok(mut arriving) = arriving.try_lock() {
            arriving.fill();
            all.extend(arriving.replies());
        }
        for reply in all {
            // A client that is closed says so where messages are received.
            let _ = client.publish(reply, IN_PROGRESS).await;
        }
    }
}

/// What the subject to settle a message at says of it.
struct Place<'a> {
    stream: &'a str,
    delivered: u32,
    sequence: u64,
    published_us: u64,
    pending: u64,
}

impl Place<'_> {
    /// `$JS.ACK.[DOMAIN.ACCOUNT.]STREAM.CONSUMER.DELIVERED.SEQUENCE.CONSUMER_SEQUENCE.NANOS.PENDING[.TOKEN]`
    fn parse(reply: &str) -> Option<Place<'_>> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let mut parts = [""; 10];
        let mut count = 0;
        for part in rest.split('.').take(parts.len()) {
            parts[count] = part;
            count += 1;
        }
        let parts = match count {
            7 => &parts[..7],
            9.. => &parts[2..9],
            _ => return None,
        };
        let number = |place: usize| parts[place].parse::<u64>().ok();
        Some(Place {
            stream: parts[0],
            delivered: u32::try_from(number(2)?).unwrap_or(u32::MAX),
            sequence: number(3)?,
            published_us: number(5)? / 1000,
            pending: number(6)?,
        })
    }
}

/// A message as the session sees it; `at` names its place.
pub(super) fn incoming(
    body: Bytes,
    mut facts: Facts,
    published_us: Option<u64>,
    at: String,
    attempt: u32,
) -> Incoming {
    facts.event_time = facts.event_time.or(published_us.map(WallTime));
    facts.id.get_or_insert(at);
    Incoming { body, facts: Some(Box::new(facts)), attempt, redelivered: attempt > 1 }
}

/// The end of what was there at the start.
struct End {
    /// The stream's last message then.
    last: u64,
    /// It is reached.
    reached: bool,
    /// What is to be given back once we end: at once, it would come again.
    held: Vec<(Range<u64>, Settlement)>,
}

/// Receives for one group.
pub struct NatsConsumer {
    client: Client,
    group: PullConsumer,
    says: Says,
    lost: Lost,
    queue: String,
    inbox: Subject,
    arriving: Arc<AsyncMutex<Arriving>>,
    open: Arc<Mutex<Open>>,
    prefetch: u64,
    /// How many were asked for and have not come.
    asked: u64,
    /// Nothing of that comes any more after this.
    asked_until: Instant,
    /// No more is asked for before this: a request was refused.
    ask_after: Option<Instant>,
    /// Something has come since it was asked for.
    has_come: bool,
    /// Bytes that a request may bring.
    request_bytes: usize,
    /// Bytes of a message, as a rule.
    mean_bytes: usize,
    /// What is wrong, and is said once what came before is given out.
    failed: Option<Failure>,
    end: Option<End>,
    /// Where something was settled last: what is said there now is heard after it.
    settled: Option<Subject>,
    no_ack: bool,
    _reporting: Reporting,
}

impl NatsConsumer {
    pub(super) async fn new(
        client: Client,
        group: PullConsumer,
        says: Says,
        lost: Lost,
        wish: &ConsumeWish,
        last: u64,
    ) -> Result<NatsConsumer, Failure> {
        let inbox = Subject::from(client.new_inbox());
        let arriving = client.subscribe(inbox.clone()).await;
        let arriving = arriving.map_err(|error| says.failed("receive", &error))?;
        let arriving = Arriving { inbox: arriving, waiting: VecDeque::new(), bytes: 0 };
        let arriving = Arc::new(AsyncMutex::new(arriving));
        let request_bytes = REQUEST_BYTES.max(client.max_payload().saturating_mul(2));
        let open = Arc::new(Mutex::new(Open::default()));
        let every = group.cached_info().config.ack_wait.max(Duration::from_millis(300)) / 3;
        let reporting = report(client.clone(), Arc::clone(&open), Arc::clone(&arriving), every);
        let reporting = tokio::spawn(reporting);
        Ok(NatsConsumer {
            client,
            group,
            says,
            lost,
            queue: wish.queue.clone(),
            inbox,
            arriving,
            open,
            prefetch: u64::from(wish.prefetch.max(1)),
            asked: 0,
            asked_until: Instant::now(),
            ask_after: None,
            has_come: false,
            request_bytes,
            mean_bytes: 1,
            failed: None,
            end: wish.until_end.then(|| End { last, reached: false, held: Vec::new() }),
            settled: None,
            no_ack: wish.no_ack,
            _reporting: Reporting(reporting),
        })
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().expect("not poisoned")
    }

    /// Asks for as many as the prefetch leaves room for, once that is a good part of it, and no more than may
    /// be under way.
    async fn ask(&mut self, arriving: &Arriving) -> Result<(), Failure> {
        let is_at_end = self.end.as_ref().is_some_and(|end| end.reached);
        let now = Instant::now();
        self.ask_after = self.ask_after.filter(|after| now < *after);
        if is_at_end || arriving.bytes >= ASKED_BYTES || self.ask_after.is_some() {
            return Ok(());
        }
        if now > self.asked_until {
            // A request whose bytes came out even ends without a word.
            self.asked = 0;
        }
        let held: u64 = match &self.end {
            Some(end) => end.held.iter().map(|(range, _)| range.end - range.start).sum(),
            None => 0,
        };
        let here = self.open().outstanding.open() - held + arriving.waiting.len() as u64;
        let most = self.prefetch.min((ASKED_BYTES / self.mean_bytes).max(1) as u64);
        let room = self.prefetch.saturating_sub(here + self.asked);
        let room = room.min(most.saturating_sub(self.asked));
        if room == 0 || (self.asked > 0 && room < most.div_ceil(4)) {
            return Ok(());
        }
        // A consumer that somebody else made may have bounds of its own; 0 is none.
        let bounds = &self.group.cached_info().config;
        let bounded = |wanted: u64, most: i64| match u64::try_from(most) {
            Ok(most) if most > 0 => wanted.min(most),
            _ => wanted,
        };
        let room = bounded(room, bounds.max_batch);
        let bytes = bounded(self.request_bytes as u64, bounds.max_bytes);
        let expires = if self.end.is_some() { REQUEST_AT_END } else { REQUEST };
        let expires = match bounds.max_expires {
            Duration::ZERO => expires,
            most => expires.min(most),
        };
        let request = pull::BatchConfig {
            batch: usize::try_from(room).expect("a prefetch"),
            max_bytes: usize::try_from(bytes).expect("of memory"),
            expires: Some(expires),
            ..pull::BatchConfig::default()
        };
        let sent = self.group.request_batch(request, self.inbox.clone()).await;
        sent.map_err(|error| self.says.failed("ask for messages", &error))?;
        self.asked += room;
        self.asked_until = now + expires + REQUEST_SPARE;
        self.has_come = false;
        Ok(())
    }

    /// A word of the server about a request, in place of a message.
    fn heed(&mut self, message: &Message) -> Result<(), Failure> {
        let text = message.description.as_deref().unwrap_or_default();
        let pending = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get("Nats-Pending-Messages"))
            .and_then(|count| count.as_str().parse::<u64>().ok());
        let ended = match message.status {
            Some(StatusCode::IDLE_HEARTBEAT) | None => return Ok(()),
            Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => true,
            Some(StatusCode::REQUEST_TERMINATED) if text.contains("MaxAckPending") => false,
            Some(StatusCode::REQUEST_TERMINATED) if text.contains("Deleted") => {
                let why = format!("the group was removed at {}", self.says.place);
                return Err(Failure::new(Kind::Missing, why));
            }
            Some(StatusCode::NO_RESPONDERS) => {
                let why = format!("the group is gone at {}, or has no leader", self.says.place);
                return Err(Failure::new(Kind::Busy, why));
            }
            Some(_) => false,
        };
        if !ended && !self.has_come {
            // Where one message is larger than what is sent there now may be, more is asked for; whatever else
            // it is, the same at once would be refused again.
            match text.contains("Message Size") {
                true => self.request_bytes = self.request_bytes.saturating_mul(2),
                false => self.ask_after = Some(Instant::now() + REFUSED),
            }
        }
        self.asked = self.asked.saturating_sub(pending.unwrap_or(self.asked));
        if let Some(end) = &mut self.end {
            end.reached |= ended;
        }
        Ok(())
    }

    /// A message, or what the server has to say.
    fn take_in(&mut self, message: Message) -> Result<Option<Incoming>, Failure> {
        let reply = message.reply.clone();
        let place = reply.as_ref().and_then(|reply| Place::parse(reply));
        let Some((reply, place)) = reply.as_ref().zip(place) else {
            self.heed(&message)?;
            return Ok(None);
        };
        self.asked = self.asked.saturating_sub(1);
        self.has_come = true;
        self.mean_bytes = ((7 * self.mean_bytes + message.length) / 8).max(1);
        if *message.subject != *self.queue {
            self.open().beyond.push(reply.clone());
            let why = format!(
                "stream {} at {} has more than {} by now, and the group takes {} too",
                place.stream, self.says.place, self.queue, message.subject
            );
            return Err(Failure::unsupported(why).with_remedy("another group, with -g and --from"));
        }
        if let Some(end) = &mut self.end {
            if place.sequence > end.last || end.reached {
                end.reached = true;
                self.open().beyond.push(reply.clone());
                return Ok(None);
            }
            // Messages that come again are sent before new ones, so behind the last new one is nothing.
            end.reached =
                place.delivered == 1 && (place.pending == 0 || place.sequence == end.last);
        }
        let mut open = self.open.lock().expect("not poisoned");
        open.outstanding.delivered(1);
        open.replies.push_back(reply.clone());
        drop(open);
        let facts = headers::facts(message.headers.as_ref());
        let at = format!("{}:{}", place.stream, place.sequence);
        let published_us = Some(place.published_us);
        Ok(Some(incoming(message.payload, facts, published_us, at, place.delivered)))
    }

    /// All that is here, at most so many.
    fn take(&mut self, arriving: &mut Arriving, limit: usize) -> Result<Vec<Incoming>, Failure> {
        let mut messages = Vec::new();
        while self.failed.is_none()
            && messages.len() < limit
            && let Some(next) = arriving.pop()
        {
            match self.take_in(next) {
                Ok(message) => messages.extend(message),
                Err(failure) => self.failed = Some(failure),
            }
        }
        match self.failed.take_if(|_| messages.is_empty()) {
            Some(failure) => Err(failure),
            None => Ok(messages),
        }
    }

    pub(super) async fn receive(&mut self, limit: usize) -> Result<Received, Failure> {
        if self.no_ack {
            self.ack_all().await?;
        }
        let arriving = Arc::clone(&self.arriving);
        let mut arriving = arriving.lock().await;
        loop {
            arriving.fill();
            self.ask(&arriving).await?;
            let has_heard = !arriving.waiting.is_empty();
            let messages = self.take(&mut arriving, limit)?;
            if !messages.is_empty() {
                return Ok(Received::Messages(messages));
            }
            if self.end.as_ref().is_some_and(|end| end.reached) {
                return Ok(Received::End);
            }
            if has_heard {
                // The server may have said that a request has ended: there may be room for another.
                continue;
            }
            let wake = self.ask_after.or((self.asked > 0).then_some(self.asked_until));
            tokio::select! {
                biased;
                next = arriving.inbox.next() => match next {
                    Some(next) => arriving.push(next),
                    None => return Err(self.says.lost()),
                },
                _ = self.lost.wait_for(|lost| *lost) => return Err(self.says.lost()),
                () = until(wake), if wake.is_some() => (),
            }
        }
    }

    async fn ack_all(&mut self) -> Result<(), Failure> {
        let all = {
            let open = self.open();
            open.outstanding.floor()..open.outstanding.next()
        };
        if !all.is_empty() {
            self.settle_range(&all, Settlement::Ack).await?;
        }
        Ok(())
    }

    async fn say(&self, reply: Subject, word: Bytes) -> Result<(), Failure> {
        let said = self.client.publish(reply, word).await;
        said.map_err(|error| self.says.failed("settle messages", &error))
    }

    async fn settle_range(
        &mut self,
        range: &Range<u64>,
        settlement: Settlement,
    ) -> Result<(), Failure> {
        let word = match settlement {
            Settlement::Ack => Bytes::from_static(b"+ACK"),
            Settlement::Release => Bytes::from_static(b"-NAK"),
            Settlement::Retry(wait) => {
                Bytes::from(format!("-NAK {{\"delay\":{}}}", wait.as_nanos()))
            }
            Settlement::Dead => Bytes::from_static(b"+TERM"),
            Settlement::Progress => IN_PROGRESS,
        };
        let replies: Vec<Subject> = {
            let mut open = self.open();
            let replies = range.clone().map(|number| open.reply(number)).collect();
            if settlement != Settlement::Progress {
                open.settle(range);
            }
            replies
        };
        self.settled = replies.last().cloned();
        for reply in replies {
            self.say(reply, word.clone()).await?;
        }
        Ok(())
    }

    pub(super) async fn settle(
        &mut self,
        numbers: &[Range<u64>],
        settlement: Settlement,
    ) -> Result<(), Failure> {
        if self.no_ack {
            return Ok(());
        }
        for range in numbers {
            match (&mut self.end, settlement) {
                (Some(end), Settlement::Release | Settlement::Retry(_)) => {
                    end.held.push((range.clone(), settlement));
                }
                _ => self.settle_range(range, settlement).await?,
            }
        }
        Ok(())
    }

    pub(super) fn allow(&mut self, prefetch: u32) {
        self.prefetch = u64::from(prefetch.max(1));
    }

    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        if self.no_ack {
            self.ack_all().await?;
        }
        // The server hears settlements of a consumer in order, and answers this one.
        let Some(settled) = self.settled.take() else { return Ok(()) };
        let mut lost = self.lost.clone();
        tokio::select! {
            answer = tokio::time::timeout(ANSWER, self.client.request(settled, IN_PROGRESS)) => {
                let answer = answer.map_err(|_| self.says.place.silent("settling", ANSWER))?;
                answer.map(|_| ()).map_err(|error| self.says.failed("settle messages", &error))
            }
            _ = lost.wait_for(|lost| *lost) => Err(self.says.lost()),
        }
    }

    pub(super) async fn finish(mut self) -> Result<(), Failure> {
        if self.no_ack {
            self.ack_all().await?;
        }
        // Without the inbox, requests that are still with the server come to nothing.
        let arriving = Arc::clone(&self.arriving);
        let mut arriving = arriving.lock().await;
        let ended = arriving.inbox.unsubscribe().await;
        ended.map_err(|error| self.says.failed("end receiving", &error))?;
        let flushed = tokio::time::timeout(ANSWER, self.client.flush()).await;
        let flushed = flushed.map_err(|_| self.says.place.silent("ending", ANSWER))?;
        flushed.map_err(|error| self.says.failed("end receiving", &error))?;
        while let Some(message) = arriving.inbox.next().await {
            arriving.push(message);
        }
        for (range, settlement) in self.end.take().map(|end| end.held).unwrap_or_default() {
            self.settle_range(&range, settlement).await?;
        }
        let all: Vec<Subject> = self.open().all().into_iter().chain(arriving.replies()).collect();
        self.settled = all.last().cloned().or(self.settled.take());
        for reply in all {
            self.say(reply, Bytes::from_static(b"-NAK")).await?;
        }
        self.no_ack = false;
        self.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_old_and_new_servers_are_read() {
        for reply in [
            "$JS.ACK.jobs.default.2.17.20.1700000000123456789.3",
            "$JS.ACK._.hash.jobs.default.2.17.20.1700000000123456789.3.token",
            "$JS.ACK._.hash.jobs.default.2.17.20.1700000000123456789.3",
        ] {
            let place = Place::parse(reply).expect("a place");
            assert_eq!((place.stream, place.delivered, place.sequence), ("jobs", 2, 17));
            assert_eq!((place.published_us, place.pending), (1_700_000_000_123_456, 3));
        }
        assert!(Place::parse("_INBOX.x").is_none() && Place::parse("$JS.ACK.a.b").is_none());
    }
}
