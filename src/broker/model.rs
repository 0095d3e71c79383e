//! The broker against a naive model: one entry for each message and group, random operations,
//! and after each of them everything that can be asked.
//!
//! Here is what the model knows; `operations` do the same to both sides and compare the answers,
//! `groups` are made and removed, `checks` ask everything, `steps` makes operations out of random numbers.

mod checks;
mod groups;
mod operations;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::settings::Retention;

/// Small enough that random holes, failures and leases reach them.
const BOUNDS: Bounds = Bounds { settled_ranges: 3, tried_ranges: 5, leases: 3 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// Leased to a consumer.
    Held(ConsumerKey),
    /// Leased beyond one: number and deadline.
    Leased(u64, u64),
    /// Until when.
    Resting(u64),
    Dying,
    Settled,
}

#[derive(Debug, Default)]
struct ModelGroup {
    /// Messages that were settled when it was made, and not counted.
    uncounted: u64,
    /// Each message of the queue; gaps are in none.
    messages: BTreeMap<u64, State>,
    /// Of those that are not settled, if not 0.
    attempts: BTreeMap<u64, u32>,
    handed: u64,
    epoch: u64,
    /// Exclusive consumers that wait for their turn.
    waiting: Vec<ConsumerKey>,
    holder: Option<ConsumerKey>,
    holder_told: bool,
    in_tenure: bool,
    dying_pending: bool,
    /// How many were dying after the last operation.
    dying_before: u64,
}

#[derive(Clone, Debug)]
struct ModelConsumer {
    group: Option<GroupKey>,
    kind: Kind,
    cursor: u64,
    credit: u64,
    delivered: u64,
    begun: BTreeSet<u64>,
    /// With an `until`: what it has tried.
    spent: BTreeSet<u64>,
    /// Nothing was ready for it once.
    ended: bool,
    end_told: bool,
    /// Told to be ready, and no offer has failed since.
    told: bool,
    /// Has taken since it was told, while another wanted something too.
    turn_over: bool,
}

#[derive(Debug)]
struct Model {
    broker: Broker,
    q: QueueKey,
    now: u64,
    start: u64,
    end: u64,
    gaps: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    retention: Retention,
    kept_from: u64,
    limit: Option<u32>,
    groups: BTreeMap<GroupKey, ModelGroup>,
    names: BTreeMap<GroupKey, &'static str>,
    consumers: BTreeMap<ConsumerKey, ModelConsumer>,
    next_number: u64,
    quiet: bool,
    quiet_pending: bool,
}

fn range(start: u64, end: u64) -> OffsetRange {
    OffsetRange::new(Offset(start), Offset(end))
}

fn runs(offsets: impl IntoIterator<Item = u64>) -> Vec<OffsetRange> {
    runs_of(offsets.into_iter().map(|n| (n, ()))).into_iter().map(|(run, ())| run).collect()
}

/// Neighbours of equal value.
fn runs_of<V: PartialEq>(offsets: impl IntoIterator<Item = (u64, V)>) -> Vec<(OffsetRange, V)> {
    let mut runs: Vec<(OffsetRange, V)> = Vec::new();
    for (n, value) in offsets {
        match runs.last_mut() {
            Some((run, of)) if run.end == Offset(n) && *of == value => run.end = Offset(n + 1),
            _ => runs.push((range(n, n + 1), value)),
        }
    }
    runs
}

fn spread(ranges: &[OffsetRange]) -> Vec<u64> {
    ranges.iter().flat_map(|r| r.start.0..r.end.0).collect()
}

impl ModelGroup {
    fn is(&self, n: u64, state: State) -> bool {
        self.messages.get(&n) == Some(&state)
    }

    fn count(&self, is: impl Fn(&State) -> bool) -> u64 {
        self.messages.values().filter(|state| is(state)).count() as u64
    }

    fn those(&self, is: impl Fn(State) -> bool) -> Vec<u64> {
        self.messages.iter().filter(|(_, state)| is(**state)).map(|(n, _)| *n).collect()
    }

    fn is_held_by(&self, c: ConsumerKey) -> bool {
        self.holder == Some(c) && self.in_tenure
    }

    fn leases(&self) -> Vec<(OffsetRange, (u64, u64))> {
        runs_of(self.messages.iter().filter_map(|(n, state)| match state {
            State::Leased(number, deadline) => Some((*n, (*number, *deadline))),
            _ => None,
        }))
    }

    fn resting(&self) -> Vec<(OffsetRange, u64)> {
        runs_of(self.messages.iter().filter_map(|(n, state)| match state {
            State::Resting(until) => Some((*n, *until)),
            _ => None,
        }))
    }

    fn tried(&self) -> Vec<Tried> {
        let each = self.attempts.iter().map(|(n, attempts)| match self.messages[n] {
            State::Resting(until) => (*n, (*attempts, Some(Monotonic(until)))),
            _ => (*n, (*attempts, None)),
        });
        let tried =
            |(range, (attempts, ready_at))| Tried { range, attempts: Attempts(attempts), ready_at };
        runs_of(each).into_iter().map(tried).collect()
    }

    fn tried_ranges(&self) -> usize {
        runs_of(self.attempts.iter().map(|(n, attempts)| (*n, *attempts))).len()
            + self.resting().len()
    }

    fn is_free(&self, n: u64) -> bool {
        matches!(self.messages.get(&n), Some(State::Ready | State::Resting(_)))
    }

    fn settle(&mut self, n: u64) {
        self.messages.insert(n, State::Settled);
        self.attempts.remove(&n);
    }
}

impl Model {
    fn new(start: u64, gap: u64, span: u64) -> Model {
        let (messages, end) = (start + gap, start + gap + span);
        let mut broker = Broker::with_bounds(BOUNDS);
        let gaps = if gap > 0 { vec![range(start, messages)] } else { Vec::new() };
        let q = broker.add_queue(Offset(start), Offset(end), &gaps, &[]);
        Model {
            broker,
            q,
            now: 0,
            start,
            end,
            gaps: spread(&gaps).into_iter().collect(),
            gone: (0..messages).collect(),
            retention: Retention::Acked,
            kept_from: 0,
            limit: None,
            groups: BTreeMap::new(),
            names: BTreeMap::new(),
            consumers: BTreeMap::new(),
            next_number: 1,
            quiet: span == 0,
            quiet_pending: false,
        }
    }

    fn is_gone(&self, n: u64) -> bool {
        let settled = |g: &ModelGroup| g.messages.get(&n).is_none_or(|s| *s == State::Settled);
        let by_groups = n < self.end && self.groups.values().all(settled);
        match (self.retention, self.groups.is_empty()) {
            (_, true) => self.gone.contains(&n),
            (Retention::Acked, _) => by_groups,
            (Retention::Log, _) => self.gone.contains(&n) && by_groups,
        }
    }

    fn is_exhausted(&self, g: GroupKey, n: u64) -> bool {
        let attempts = self.groups[&g].attempts.get(&n);
        attempts.is_some_and(|attempts| Attempts(*attempts).are_spent(self.limit))
    }

    /// What becomes of a message that is given back.
    fn given_back(&self, g: GroupKey, n: u64) -> State {
        match n {
            _ if n < self.kept_from => State::Settled,
            _ if self.is_exhausted(g, n) => State::Dying,
            _ => State::Ready,
        }
    }

    fn settled_of(&self, g: GroupKey) -> Vec<OffsetRange> {
        let group = &self.groups[&g];
        let no_message = |n: &u64| !group.messages.contains_key(n);
        runs((0..self.end).filter(|n| no_message(n) || group.is(*n, State::Settled)))
    }

    fn settled_ranges(&self, g: GroupKey) -> usize {
        self.settled_of(g).iter().filter(|run| run.start > Offset(0)).count()
    }

    fn is_stuck(&self, g: GroupKey) -> bool {
        self.settled_ranges(g) > BOUNDS.settled_ranges
            || self.groups[&g].tried_ranges() > BOUNDS.tried_ranges
    }

    /// Where a stuck group ends.
    fn fence(&self, g: GroupKey) -> u64 {
        if !self.is_stuck(g) {
            return u64::MAX;
        }
        let group = &self.groups[&g];
        let settled = group.those(|state| state == State::Settled);
        group.handed.max(settled.last().map_or(0, |n| n + 1))
    }

    /// All messages that are ready for this consumer, were there credit.
    fn ready_for(&self, consumer: &ModelConsumer) -> Vec<u64> {
        let until = consumer.kind.until.map_or(u64::MAX, |until| until.0);
        let fence = match (consumer.kind.mode, consumer.group) {
            (Mode::Take, Some(g)) => self.fence(g),
            _ => u64::MAX,
        };
        let ready = |n: &u64| match consumer.group {
            Some(g) => self.groups[&g].is(*n, State::Ready),
            None => !self.is_gone(*n),
        };
        (consumer.cursor..self.end.min(until).min(fence)).filter(ready).collect()
    }

    /// Whether nothing below its `until` is ready, held back or not, and it is its turn.
    fn at_end(&self, c: ConsumerKey, consumer: &ModelConsumer) -> bool {
        let peek = Kind { mode: Mode::Peek, ..consumer.kind };
        let unfenced = ModelConsumer { kind: peek, ..consumer.clone() };
        let ready = self.ready_for(&unfenced);
        let waits = match (consumer.kind.mode, consumer.group) {
            (Mode::Take, Some(g)) => consumer.kind.exclusive && !self.groups[&g].is_held_by(c),
            _ => false,
        };
        consumer.kind.until.is_some() && !waits && ready.iter().all(|n| consumer.spent.contains(n))
    }

    fn is_admitted(&self, c: ConsumerKey) -> bool {
        let consumer = &self.consumers[&c];
        let (Mode::Take, Some(g)) = (consumer.kind.mode, consumer.group) else { return true };
        let group = &self.groups[&g];
        let exclusive = group.holder.is_some() || !group.waiting.is_empty();
        (!exclusive || (group.holder == Some(c) && group.in_tenure))
            && (!consumer.kind.leases || group.leases().len() < BOUNDS.leases)
    }

    fn expected_offer(&self, c: ConsumerKey, max: u64) -> Option<Offer> {
        let consumer = &self.consumers[&c];
        let room = consumer.credit.saturating_sub(consumer.delivered).min(max);
        if consumer.ended || room == 0 || !self.is_admitted(c) {
            return None;
        }
        let group = consumer.group.map(|g| &self.groups[&g]);
        let handed = group.map_or(0, |group| group.handed);
        let tried = |n| group.and_then(|group| group.attempts.get(&n)).copied().unwrap_or(0);
        let ready = self.ready_for(consumer);
        let ready = ready.into_iter().filter(|n| !consumer.spent.contains(n));
        let (first, attempts) = *runs_of(ready.map(|n| (n, tried(n)))).first()?;
        let redelivered = first.start.0 < handed;
        let mut end = first.end.0.min(first.start.0 + room);
        if redelivered {
            end = end.min(handed);
        }
        let attempt = Attempts(attempts + 1);
        Some(Offer { range: range(first.start.0, end), redelivered, attempt })
    }

    fn is_quiet(&self) -> bool {
        match self.groups.is_empty() {
            true => (0..self.end).all(|n| self.is_gone(n)),
            false => {
                self.groups.values().all(|group| group.count(|state| *state != State::Settled) == 0)
            }
        }
    }

    fn has_rival(&self, c: ConsumerKey) -> bool {
        let group = self.consumers[&c].group;
        self.consumers.iter().any(|(other, consumer)| {
            *other != c
                && consumer.kind.mode == Mode::Take
                && consumer.group == group
                && !consumer.ended
                && consumer.credit > consumer.delivered
        })
    }
}
