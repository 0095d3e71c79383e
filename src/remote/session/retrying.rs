//! Messages that failed: what becomes of them, and when they are tried again where the engine cannot
//! make them wait. Pure: the time comes in as an argument.
//!
//! What rests here is unsettled at the engine, so that it comes again by itself if we are gone. When it does so
//! because a connection was lost, and the engine does not count, its attempts are known by what it is.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::limits;
use crate::remote::message::Incoming;
use crate::settings::Backoff;
use crate::units::{Offset, WallTime};

/// How long a message that was lost with its connection is known: it comes again soon, or to another receiver.
const KNOWN_FOR: Duration = Duration::from_secs(60 * 60);

/// A message that a command is run for, from its delivery until it is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The message.
    pub message: Incoming,
    /// Which attempt is under way, or was the last.
    pub attempt: u32,
    /// When it failed first here, if it did.
    pub failed_first: Option<WallTime>,
    /// That attempt has begun: it counts, whatever becomes of it.
    pub begun: bool,
}

/// What becomes of a message that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is a dead letter.
    Dead,
    /// It is tried again after this pause.
    Again(Duration),
}

/// See the module's page.
#[derive(Debug)]
pub struct Retrying {
    backoff: Backoff,
    /// Attempts after which a message is a dead letter.
    limit: Option<u32>,
    /// With the client, or resting, by their offsets.
    tried: HashMap<u64, Tried>,
    /// Resting until then.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Bytes of the bodies in `tried`.
    bytes: usize,
    /// The attempts of messages that were here as connections were lost, by their fingerprints; equal messages
    /// have them together.
    lost: HashMap<u64, VecDeque<(u32, Instant)>>,
}

impl Retrying {
    /// With this back-off, and the attempts after which a message is dead.
    #[must_use]
    pub fn new(backoff: Backoff, limit: Option<u32>) -> Retrying {
        let (tried, due, lost) = (HashMap::new(), BinaryHeap::new(), HashMap::new());
        Retrying { backoff, limit, tried, due, bytes: 0, lost }
    }

    /// A message came from the engine: says which attempt comes now, as the engine counts, or as far as it can
    /// be known.
    pub fn recall(&mut self, message: &mut Incoming, now: Instant) {
        let counted = first_attempt(message);
        let known =
            if message.attempt == 0 && message.redelivered { self.known(message, now) } else { 0 };
        message.attempt = counted.max(known.saturating_add(1));
    }

    /// The attempt of a message that was here as a connection was lost; 0: it was not.
    fn known(&mut self, message: &Incoming, now: Instant) -> u32 {
        let Entry::Occupied(mut entry) = self.lost.entry(fingerprint(message)) else { return 0 };
        let lost = entry.get_mut();
        // One that has not come again for long went to another, and this is one that is equal to it.
        while lost.front().is_some_and(|(_, since)| now.duration_since(*since) > KNOWN_FOR) {
            lost.pop_front();
        }
        let known = lost.pop_front();
        if lost.is_empty() {
            entry.remove();
        }
        known.map_or(0, |(attempt, _)| attempt)
    }

    /// A message is handed out, with the attempt that [`Retrying::recall`] said.
    pub fn delivered(&mut self, offset: u64, message: Incoming) {
        self.bytes += message.body.len();
        let attempt = message.attempt;
        let tried = Tried { message, attempt, failed_first: None, begun: false };
        self.tried.insert(offset, tried);
    }

    /// A command is started on it.
    pub fn begin(&mut self, offset: u64) {
        if let Some(tried) = self.tried.get_mut(&offset) {
            tried.begun = true;
        }
    }

    /// These are settled for good, or are not ours any more.
    pub fn forget(&mut self, ranges: &[Range<u64>]) {
        for offset in ranges.iter().flat_map(Range::clone) {
            if let Some(tried) = self.tried.remove(&offset) {
                self.bytes -= tried.message.body.len();
            }
        }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, offset: u64) -> Option<&Tried> {
        self.tried.get(&offset)
    }

    /// A try of this one failed.
    pub fn failed(&mut self, offset: u64, dead: bool, now: WallTime) -> Fate {
        let Some(tried) = self.tried.get_mut(&offset) else { return Fate::Dead };
        tried.begun = true;
        tried.failed_first.get_or_insert(now);
        if dead || self.limit.is_some_and(|limit| tried.attempt >= limit) {
            return Fate::Dead;
        }
        Fate::Again(self.backoff.rest(Offset(offset), tried.attempt).to_duration())
    }

    /// It rests until then.
    pub fn rest(&mut self, offset: u64, until: Instant) {
        self.due.push(Reverse((until, offset)));
    }

    /// How many rest.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.due.len()
    }

    /// All that rest.
    pub fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        self.due.iter().map(|Reverse((_, offset))| *offset)
    }

    /// Whether more may be received: so many may rest, and so many bytes be kept.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.due.len() < limits::REMOTE_RESTING_MAX && self.bytes < limits::REMOTE_KEPT_BYTES
    }

    /// When the next one has rested.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// The next one that has rested, with the attempt that comes now.
    pub fn take_due(&mut self, now: Instant) -> Option<(u64, &Tried)> {
        let Reverse((due, offset)) = *self.due.peek()?;
        if due > now {
            return None;
        }
        self.due.pop();
        let tried = self.tried.get_mut(&offset).expect("what rests is kept");
        tried.attempt = tried.attempt.saturating_add(1);
        tried.begun = false;
        Some((offset, tried))
    }

    /// All that rest, each with how much longer.
    pub fn take_resting(&mut self, now: Instant) -> Vec<(u64, Duration)> {
        let resting = std::mem::take(&mut self.due).into_iter();
        resting.map(|Reverse((due, offset))| (offset, due.saturating_duration_since(now))).collect()
    }

    /// The connection to the engine is lost: all of it comes again from there, or goes to another receiver.
    pub fn lose(&mut self, now: Instant) {
        // What is here may be more than what is known from before, and that may never come.
        if self.lost.values().map(VecDeque::len).sum::<usize>() >= limits::REMOTE_KNOWN_MAX {
            self.lost.clear();
        }
        let of_each =
            self.tried.values().map(|tried| (tried, tried.attempt - u32::from(!tried.begun)));
        // Of all others it is known enough that they come again.
        let known = of_each.filter(|(_, attempts)| *attempts > 1).take(limits::REMOTE_KNOWN_MAX);
        for (tried, attempts) in known {
            self.lost.entry(fingerprint(&tried.message)).or_default().push_back((attempts, now));
        }
        self.tried.clear();
        self.due.clear();
        self.bytes = 0;
    }
}

/// What a message is known by when it comes again.
fn fingerprint(message: &Incoming) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    message.body.hash(&mut hasher);
    if let Some(facts) = &message.facts {
        (&facts.key, &facts.id, facts.event_time.map(|time| time.0)).hash(&mut hasher);
        // Their order is not always kept.
        let mut headers: Vec<_> = facts.headers.iter().collect();
        headers.sort_unstable();
        headers.hash(&mut hasher);
    }
    hasher.finish()
}

/// Which attempt a message that an engine delivers is: as the engine counts, or as far as it can be
/// known.
#[must_use]
fn first_attempt(message: &Incoming) -> u32 {
    match (message.attempt, message.redelivered) {
        (0, false) => 1,
        (0, true) => 2,
        (attempt, _) => attempt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Micros;
    use bytes::Bytes;

    fn message(attempt: u32, redelivered: bool) -> Incoming {
        Incoming { body: Bytes::from_static(b"body"), facts: None, attempt, redelivered }
    }

    /// Takes a message in; the attempt that it is.
    fn come(retrying: &mut Retrying, offset: u64, mut message: Incoming) -> u32 {
        retrying.recall(&mut message, Instant::now());
        let attempt = message.attempt;
        retrying.delivered(offset, message);
        attempt
    }

    fn retrying() -> Retrying {
        let backoff = Backoff { first: Micros::from_millis(100), max: Micros::from_millis(300) };
        Retrying::new(backoff, Some(3))
    }

    #[test]
    fn a_message_rests_longer_each_time_and_is_dead_at_the_limit() {
        let mut retrying = retrying();
        let now = Instant::now();
        assert_eq!(come(&mut retrying, 7, message(0, false)), 1);
        for (attempt, least) in [(1, 100), (2, 200)] {
            let Fate::Again(pause) = retrying.failed(7, false, WallTime(attempt)) else {
                panic!("dead too early")
            };
            let (least, most) =
                (Duration::from_millis(least), Duration::from_millis(least * 5 / 4));
            assert!((least..=most).contains(&pause), "{pause:?}");
            retrying.rest(7, now + pause);
            assert_eq!(retrying.next_due(), Some(now + pause));
            assert!(retrying.take_due(now).is_none());
            let (offset, tried) = retrying.take_due(now + pause).expect("it has rested");
            assert_eq!((offset, u64::from(tried.attempt)), (7, attempt + 1));
        }
        assert_eq!(retrying.failed(7, false, WallTime(9)), Fate::Dead);
        assert_eq!(retrying.get(7).expect("kept").failed_first, Some(WallTime(1)));
        retrying.forget(std::slice::from_ref(&(7..8)));
        assert!(retrying.get(7).is_none() && retrying.bytes == 0);
    }

    #[test]
    fn a_message_that_cannot_be_worked_on_is_dead_at_once() {
        let mut retrying = retrying();
        come(&mut retrying, 1, message(0, false));
        assert_eq!(retrying.failed(1, true, WallTime(1)), Fate::Dead);
    }

    #[test]
    fn what_the_engine_counted_counts() {
        let mut retrying = retrying();
        assert_eq!(come(&mut retrying, 1, message(0, true)), 2);
        assert_eq!(come(&mut retrying, 2, message(3, true)), 3);
        assert!(matches!(retrying.failed(1, false, WallTime(1)), Fate::Again(_)));
        assert_eq!(retrying.failed(2, false, WallTime(1)), Fate::Dead);
    }

    /// RabbitMQ takes everything back after half an hour, by default: at that, a message that always failed began
    /// again with its second attempt, and never was a dead letter.
    #[test]
    fn attempts_are_known_after_a_connection_was_lost() {
        let mut retrying = retrying();
        let other = |redelivered| Incoming {
            body: Bytes::from_static(b"other"),
            ..message(0, redelivered)
        };
        assert_eq!(come(&mut retrying, 1, message(0, false)), 1);
        assert_eq!(come(&mut retrying, 2, other(false)), 1);
        for attempt in 2..=3 {
            let now = Instant::now();
            assert!(matches!(retrying.failed(1, false, WallTime(1)), Fate::Again(_)));
            retrying.rest(1, now);
            if attempt == 3 {
                retrying.take_due(now).expect("it has rested");
                retrying.begin(1);
            }
            retrying.lose(now);
            assert_eq!(come(&mut retrying, 1, message(0, true)), if attempt == 2 { 2 } else { 4 });
        }
        assert_eq!(retrying.failed(1, false, WallTime(1)), Fate::Dead);
        // Who never failed is not counted for another, and one that is new is.
        assert_eq!(come(&mut retrying, 2, other(true)), 2);
        assert_eq!(come(&mut retrying, 3, message(0, false)), 1);
        // What the engine counts goes before.
        retrying.lose(Instant::now());
        assert_eq!(come(&mut retrying, 1, message(1, true)), 1);
    }

    /// What only waited as connections were lost, one after the other, had had so many attempts, and was a
    /// dead letter when it failed once.
    #[test]
    fn what_no_command_has_begun_is_no_attempt() {
        let mut retrying = retrying();
        assert_eq!(come(&mut retrying, 1, message(0, false)), 1);
        for _ in 0..5 {
            retrying.lose(Instant::now());
            assert_eq!(come(&mut retrying, 1, message(0, true)), 2);
        }
        retrying.begin(1);
        retrying.lose(Instant::now());
        assert_eq!(come(&mut retrying, 1, message(0, true)), 3);
    }

    #[test]
    fn attempts_are_not_those_of_an_equal_message_of_long_ago() {
        let mut retrying = retrying();
        come(&mut retrying, 1, message(0, true));
        retrying.begin(1);
        let now = Instant::now();
        retrying.lose(now);
        let mut equal = message(0, true);
        retrying.recall(&mut equal, now + KNOWN_FOR + Duration::from_secs(1));
        assert_eq!(equal.attempt, 2);
    }
}
