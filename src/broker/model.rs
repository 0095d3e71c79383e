//! The broker against a naive model: one entry for each message and group, random operations,
//! and after each of them everything that can be asked.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Small enough that random holes reach it.
const SETTLED_RANGES_MAX: usize = 3;
const BOUNDS: Bounds = Bounds { settled_ranges: SETTLED_RANGES_MAX, ..Bounds::REAL };
const GROUP_NAMES: [&str; 3] = ["default", "audit", "zoo"];
const CONSUMERS_MAX: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Leased(ConsumerKey),
    Settled,
}

#[derive(Debug)]
struct ModelGroup {
    /// Each message of the queue; gaps are in none.
    messages: BTreeMap<u64, State>,
    handed: u64,
}

#[derive(Clone, Debug)]
struct ModelConsumer {
    group: Option<GroupKey>,
    mode: Mode,
    until: Option<u64>,
    cursor: u64,
    credit: u64,
    delivered: u64,
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
    start: u64,
    end: u64,
    gaps: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    groups: BTreeMap<GroupKey, ModelGroup>,
    names: BTreeMap<GroupKey, &'static str>,
    consumers: BTreeMap<ConsumerKey, ModelConsumer>,
    quiet: bool,
    quiet_pending: bool,
}

fn range(start: u64, end: u64) -> OffsetRange {
    OffsetRange::new(Offset(start), Offset(end))
}

fn runs(offsets: impl IntoIterator<Item = u64>) -> Vec<OffsetRange> {
    let mut runs: Vec<OffsetRange> = Vec::new();
    for n in offsets {
        match runs.last_mut() {
            Some(run) if run.end == Offset(n) => run.end = Offset(n + 1),
            _ => runs.push(range(n, n + 1)),
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
}

// What the model knows.
impl Model {
    fn new(start: u64, gap: u64, span: u64) -> Model {
        let (messages, end) = (start + gap, start + gap + span);
        let mut broker = Broker::with_bounds(BOUNDS);
        let gaps = if gap > 0 { vec![range(start, messages)] } else { Vec::new() };
        let q = broker.add_queue(Offset(start), Offset(end), &gaps, &[]);
        Model {
            broker,
            q,
            start,
            end,
            gaps: spread(&gaps).into_iter().collect(),
            gone: (0..messages).collect(),
            groups: BTreeMap::new(),
            names: BTreeMap::new(),
            consumers: BTreeMap::new(),
            quiet: span == 0,
            quiet_pending: false,
        }
    }

    fn is_gone(&self, n: u64) -> bool {
        let settled = |g: &ModelGroup| g.is(n, State::Settled);
        self.gone.contains(&n)
            || (n < self.end && !self.groups.is_empty() && self.groups.values().all(settled))
    }

    fn settled_of(&self, g: GroupKey) -> Vec<OffsetRange> {
        let group = &self.groups[&g];
        let no_message = |n: &u64| !group.messages.contains_key(n);
        runs((0..self.end).filter(|n| no_message(n) || group.is(*n, State::Settled)))
    }

    fn settled_ranges(&self, g: GroupKey) -> usize {
        self.settled_of(g).iter().filter(|run| run.start > Offset(0)).count()
    }

    /// Where a stuck group ends.
    fn fence(&self, g: GroupKey) -> u64 {
        if self.settled_ranges(g) <= SETTLED_RANGES_MAX {
            return u64::MAX;
        }
        let group = &self.groups[&g];
        let settled = group.messages.iter().filter(|(_, state)| **state == State::Settled);
        group.handed.max(settled.map(|(n, _)| n + 1).max().unwrap_or(0))
    }

    /// All messages that this consumer could be given, were there credit.
    fn ready_for(&self, consumer: &ModelConsumer) -> Vec<u64> {
        let until = consumer.until.unwrap_or(u64::MAX);
        let fence = match (consumer.mode, consumer.group) {
            (Mode::Take, Some(g)) => self.fence(g),
            _ => u64::MAX,
        };
        let ready = |n: &u64| match consumer.group {
            Some(g) => self.groups[&g].is(*n, State::Ready),
            None => !self.is_gone(*n),
        };
        (consumer.cursor..self.end.min(until).min(fence)).filter(ready).collect()
    }

    /// Whether nothing below its `until` is ready, held back or not.
    fn at_end(&self, consumer: &ModelConsumer) -> bool {
        let unfenced = ModelConsumer { mode: Mode::Peek, ..consumer.clone() };
        consumer.until.is_some() && self.ready_for(&unfenced).is_empty()
    }

    fn expected_offer(&self, consumer: &ModelConsumer, max: u64) -> Option<Offer> {
        let room = consumer.credit.saturating_sub(consumer.delivered).min(max);
        if consumer.ended || room == 0 {
            return None;
        }
        let handed = consumer.group.map_or(0, |g| self.groups[&g].handed);
        let first = *runs(self.ready_for(consumer)).first()?;
        let redelivered = first.start.0 < handed;
        let mut end = first.end.0.min(first.start.0 + room);
        if redelivered {
            end = end.min(handed);
        }
        Some(Offer { range: range(first.start.0, end), redelivered, attempt: Attempts(1) })
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
                && consumer.mode == Mode::Take
                && consumer.group == group
                && !consumer.ended
                && consumer.credit > consumer.delivered
        })
    }
}

// Operations: each does the same to both, and checks the answer.
impl Model {
    fn extend(&mut self, gap: u64, span: u64) {
        let start = self.end + gap;
        self.broker.extend(self.q, range(start, start + span));
        self.gaps.extend(self.end..start);
        self.gone.extend(self.end..start);
        self.end = start + span;
        for group in self.groups.values_mut() {
            group.messages.extend((start..start + span).map(|n| (n, State::Ready)));
        }
    }

    fn add_group(&mut self, name: &'static str, state: Option<GroupState>) {
        let settled = match &state {
            None => (0..self.end).filter(|n| self.is_gone(*n)).collect(),
            Some(state) => {
                let mut settled: BTreeSet<u64> = spread(&state.settled).into_iter().collect();
                settled.extend(&self.gone);
                settled
            }
        };
        let no_floor = (0..=self.end).find(|n| !settled.contains(n)).unwrap_or(0);
        let handed = state.as_ref().map_or(no_floor, |state| state.handed.0).min(self.end);
        let added = self.broker.add_group(self.q, &Name::new(name).unwrap(), state);
        if let Some((&g, _)) = self.names.iter().find(|(_, known)| **known == name) {
            assert_eq!(self.broker.find_group(self.q, &Name::new(name).unwrap()), Some(g));
            assert!(matches!(added, Err(Refusal::GroupExists { .. })));
            return;
        }
        let g = added.unwrap();
        let state = |n| if settled.contains(&n) { State::Settled } else { State::Ready };
        let never = |n: &u64| *n < self.start || self.gaps.contains(n);
        let messages = (0..self.end).filter(|n| !never(n)).map(|n| (n, state(n))).collect();
        self.groups.insert(g, ModelGroup { messages, handed });
        self.names.insert(g, name);
    }

    fn remove_group(&mut self, g: GroupKey) {
        self.gone = (0..self.end).filter(|n| self.is_gone(*n)).collect();
        let of_group: Vec<ConsumerKey> = self.broker.remove_group(g);
        let expected = self.consumers.iter().filter(|(_, consumer)| consumer.group == Some(g));
        assert!(expected.map(|(c, _)| *c).eq(of_group.iter().copied().collect::<BTreeSet<_>>()));
        self.consumers.retain(|c, _| !of_group.contains(c));
        self.groups.remove(&g);
        self.names.remove(&g);
    }

    fn add_consumer(
        &mut self,
        group: Option<GroupKey>,
        mode: Mode,
        until: Option<u64>,
        holding: &[OffsetRange],
    ) {
        let (c, kept) = self.broker.add_consumer(
            self.q,
            group,
            Kind { mode, until: until.map(Offset), ..Kind::TAKE },
            holding,
        );
        let mut expected = BTreeSet::new();
        if let (Mode::Take, Some(g)) = (mode, group) {
            let group = self.groups.get_mut(&g).unwrap();
            for n in spread(holding) {
                if group.is(n, State::Ready) {
                    expected.insert(n);
                    group.messages.insert(n, State::Leased(c));
                    group.handed = group.handed.max(n + 1);
                }
            }
        }
        assert_eq!(kept, runs(expected.iter().copied()));
        let consumer = ModelConsumer {
            group,
            mode,
            until,
            cursor: 0,
            credit: 0,
            delivered: expected.len() as u64,
            ended: false,
            end_told: false,
            told: false,
            turn_over: false,
        };
        self.consumers.insert(c, consumer);
    }

    fn remove_consumer(&mut self, c: ConsumerKey) {
        self.broker.remove_consumer(c);
        self.consumers.remove(&c);
        for state in self.groups.values_mut().flat_map(|group| group.messages.values_mut()) {
            if *state == State::Leased(c) {
                *state = State::Ready;
            }
        }
    }

    fn credit(&mut self, c: ConsumerKey, total: u64) {
        self.broker.credit(c, total);
        self.consumers.get_mut(&c).unwrap().credit = total;
    }

    /// Offers to `c`, and takes at most `part` of the offer.
    fn serve(&mut self, c: ConsumerKey, max: u64, part: u64) {
        let expected = self.expected_offer(&self.consumers[&c], max);
        let offer = self.broker.offer(c, max);
        let consumer = self.consumers.get_mut(&c).unwrap();
        let Some(offer) = offer else {
            assert!(expected.is_none() || consumer.turn_over, "{c:?} is denied {expected:?}");
            consumer.told = false;
            return;
        };
        let expected = expected.expect("nothing should be offered");
        match consumer.group {
            Some(_) => assert_eq!(offer, expected),
            None => assert_eq!(offer.range.intersection(&expected.range), Some(offer.range)),
        }
        assert_eq!(
            (offer.range.start, offer.redelivered),
            (expected.range.start, expected.redelivered)
        );
        let taken = range(offer.range.start.0, offer.range.start.0 + part.min(offer.range.span()));
        if !taken.is_empty() {
            self.take(c, taken);
        }
    }

    fn take(&mut self, c: ConsumerKey, taken: OffsetRange) {
        let rival = self.has_rival(c);
        self.broker.take(c, taken);
        let consumer = self.consumers.get_mut(&c).unwrap();
        consumer.delivered += taken.span();
        assert!(consumer.delivered <= consumer.credit);
        consumer.turn_over |= rival;
        match (consumer.mode, consumer.group) {
            (Mode::Take, Some(g)) => {
                let group = self.groups.get_mut(&g).unwrap();
                for n in spread(&[taken]) {
                    assert_eq!(group.messages.insert(n, State::Leased(c)), Some(State::Ready));
                }
                group.handed = group.handed.max(taken.end.0);
            }
            _ => consumer.cursor = taken.end.0,
        }
    }

    /// Acks or releases whatever `c` holds of `ranges`.
    fn give_up(&mut self, c: ConsumerKey, ranges: &[OffsetRange], to: State) {
        let mut changed = Vec::new();
        if let Some(group) = self.consumers[&c].group.and_then(|g| self.groups.get_mut(&g)) {
            for n in spread(ranges) {
                if group.is(n, State::Leased(c)) {
                    group.messages.insert(n, to);
                    changed.push(n);
                }
            }
        }
        match to {
            State::Settled => assert_eq!(spread(&self.broker.ack(c, ranges)), changed),
            _ => self.broker.release(c, ranges),
        }
    }

    fn purge(&mut self) {
        let mut expected = BTreeMap::new();
        for (&g, group) in &mut self.groups {
            let ready = group.messages.iter_mut().filter(|(_, state)| **state == State::Ready);
            let settled = ready.map(|(n, state)| {
                *state = State::Settled;
                *n
            });
            let settled = runs(settled);
            if !settled.is_empty() {
                expected.insert(g, settled);
            }
        }
        if self.groups.is_empty() {
            self.gone.extend(0..self.end);
        }
        let purged: BTreeMap<_, _> = self.broker.purge(self.q).into_iter().collect();
        assert_eq!(purged, expected);
    }

    /// A new broker from what files keep; every receiver comes back with what it held.
    fn restart(&mut self) {
        let broker = Broker::with_bounds(BOUNDS);
        let old = std::mem::replace(&mut self.broker, broker);
        let gone: Vec<OffsetRange> = old.gone(self.q).iter().collect();
        let gaps = runs(self.gaps.iter().copied());
        let q = self.broker.add_queue(Offset(self.start), Offset(self.end), &gaps, &gone);
        let old_q = std::mem::replace(&mut self.q, q);
        self.gone = spread(&gone).into_iter().collect();
        let (names, consumers) =
            (std::mem::take(&mut self.names), std::mem::take(&mut self.consumers));
        self.groups.clear();
        let mut new_keys = BTreeMap::new();
        for (g, name) in old.groups(old_q) {
            self.add_group(names[&g], Some(old.group_state(g)));
            let new = self.broker.find_group(q, name).unwrap();
            new_keys.insert(g, new);
        }
        for (c, consumer) in consumers {
            let holding: Vec<OffsetRange> = old.held(c).iter().rev().collect();
            let group = consumer.group.map(|g| new_keys[&g]);
            self.add_consumer(group, consumer.mode, consumer.until, &holding);
        }
        // Whether a queue that is being loaded is told to be quiet does not matter.
        self.quiet = self.is_quiet();
        self.quiet_pending = false;
        self.drain_after_restart();
    }

    fn drain_after_restart(&mut self) {
        self.note_ends();
        while let Some(output) = self.broker.next_output() {
            if !matches!(output, Output::Quiet { .. }) {
                self.told(output);
            }
        }
    }

    fn drain(&mut self, steps: u64) {
        for _ in 0..steps {
            let Some(output) = self.broker.next_output() else { return };
            self.told(output);
        }
    }

    fn told(&mut self, output: Output) {
        match output {
            Output::Ready { consumer } => {
                let consumer = self.consumers.get_mut(&consumer).unwrap();
                assert!(!consumer.ended && consumer.credit > consumer.delivered);
                (consumer.told, consumer.turn_over) = (true, false);
            }
            Output::End { consumer } => {
                let consumer = self.consumers.get_mut(&consumer).unwrap();
                assert!(consumer.ended && !consumer.end_told);
                consumer.end_told = true;
            }
            Output::Quiet { .. } => {
                assert!(self.quiet_pending);
                self.quiet_pending = false;
            }
            Output::Dying { .. } | Output::Holder { .. } => panic!("{output:?}"),
        }
    }
}

// Checks after each operation.
impl Model {
    fn note_ends(&mut self) {
        let ended: Vec<ConsumerKey> =
            self.consumers.iter().filter(|(_, c)| self.at_end(c)).map(|(key, _)| *key).collect();
        for c in ended {
            self.consumers.get_mut(&c).unwrap().ended = true;
        }
    }

    fn check(&mut self) {
        self.note_ends();
        let quiet = self.is_quiet();
        if quiet != self.quiet {
            (self.quiet, self.quiet_pending) = (quiet, quiet);
        }
        assert_eq!(self.broker.is_quiet(self.q), quiet);
        assert_eq!(self.broker.visible_end(self.q), Offset(self.end));
        self.check_gone();
        self.groups.keys().for_each(|g| self.check_group(*g));
        self.consumers.keys().for_each(|c| self.check_consumer(*c));
        self.check_pending();
    }

    fn check_gone(&self) {
        let gone = runs((0..self.end).filter(|n| self.is_gone(*n)));
        assert!(self.broker.gone(self.q).iter().eq(gone.iter().copied()));
        let left = self.end - spread(&gone).len() as u64;
        assert_eq!(self.broker.counts_without_group(self.q), Count(left));
        for start in 0..self.end {
            for end in [start + 1, start + 4] {
                let all = (start..end).all(|n| self.is_gone(n));
                assert_eq!(self.broker.is_gone(self.q, range(start, end)), all);
            }
        }
    }

    fn check_group(&self, g: GroupKey) {
        let group = &self.groups[&g];
        let settled = self.settled_of(g);
        let state = GroupState {
            settled: settled.clone(),
            handed: Offset(group.handed),
            ..GroupState::default()
        };
        assert_eq!(self.broker.group_state(g), state);
        let oldest = group.messages.iter().find(|(_, state)| **state != State::Settled);
        let floor = settled.first().filter(|run| run.start == Offset(0)).map_or(0, |run| run.end.0);
        let ranges = self.settled_ranges(g);
        let takes = |c: &&ModelConsumer| c.group == Some(g) && c.mode == Mode::Take;
        let expected = Counts {
            ready: Count(group.count(|state| *state == State::Ready)),
            leased: Count(group.count(|state| matches!(state, State::Leased(_)))),
            resting: Count(0),
            dying: Count(0),
            settled_ranges: ranges,
            stuck: ranges > SETTLED_RANGES_MAX,
            oldest: oldest.map(|(n, _)| Offset(*n)),
            consumers: self.consumers.values().filter(takes).count(),
            floor: Offset(floor),
            handed: Offset(group.handed),
        };
        assert_eq!(self.broker.counts(g), expected);
    }

    fn check_consumer(&self, c: ConsumerKey) {
        let consumer = &self.consumers[&c];
        let held = consumer.group.map_or(Vec::new(), |g| {
            let mine = self.groups[&g].messages.iter().filter(|(_, s)| **s == State::Leased(c));
            runs(mine.map(|(n, _)| *n))
        });
        assert!(self.broker.held(c).iter().eq(held));
        let room = consumer.credit.saturating_sub(consumer.delivered);
        let behind = !consumer.ended && self.ready_for(consumer).len() as u64 > room;
        assert_eq!(self.broker.is_behind(c), behind);
    }

    /// What the broker would say now: to each only once, and to all whom it concerns.
    fn check_pending(&self) {
        let mut broker = self.broker.clone();
        let (mut ready, mut ends, mut quiet) = (BTreeSet::new(), BTreeSet::new(), false);
        while let Some(output) = broker.next_output() {
            let new = match output {
                Output::Ready { consumer } => ready.insert(consumer),
                Output::End { consumer } => ends.insert(consumer),
                Output::Quiet { .. } => !std::mem::replace(&mut quiet, true),
                Output::Dying { .. } | Output::Holder { .. } => panic!("{output:?}"),
            };
            assert!(new, "{output:?} is said twice");
        }
        assert_eq!(quiet, self.quiet_pending);
        for (c, consumer) in &self.consumers {
            assert_eq!(ends.contains(c), consumer.ended && !consumer.end_told);
            if self.expected_offer(consumer, u64::MAX).is_some() {
                let knows = consumer.told || ready.contains(c);
                assert!(knows, "{c:?} waits for ever: {consumer:?} {:?}", self.broker);
            } else if ready.contains(c) {
                panic!("{c:?} is called in vain");
            }
        }
    }
}

/// One operation as the test generates it: what to do, and three numbers to do it with.
type Step = (u8, u64, u64, u64);

fn nth<K: Copy>(mut keys: impl ExactSizeIterator<Item = K>, n: u64) -> Option<K> {
    let len = keys.len() as u64;
    (len > 0).then(|| keys.nth((n % len) as usize)).flatten()
}

fn some_ranges(end: u64, a: u64, b: u64) -> Vec<OffsetRange> {
    let (a, b) = (a % (end + 2), b % (end + 2));
    // A peer may name a range twice, in any order, and beyond what there is.
    match (a + b) % 3 {
        0 => vec![range(0, end + 3)],
        1 => vec![range(b, b + a % 4), range(a, a + b % 5)],
        _ => vec![range(a, a + 1), range(a / 2, a / 2 + 1), range(a, a + 2)],
    }
}

fn act(model: &mut Model, (what, a, b, c): Step) {
    let group = nth(model.groups.keys().copied(), a);
    let consumer = nth(model.consumers.keys().copied(), a);
    match (what, group, consumer) {
        (0..=11, _, _) => model.extend(if c % 8 == 0 { c / 8 % 3 } else { 0 }, b % 6),
        (12..=14, _, _) => {
            let settled = some_ranges(model.end, b, c);
            let state = GroupState { settled, handed: Offset(c % 20), ..GroupState::default() };
            let state = (b % 4 == 0).then_some(state);
            model.add_group(GROUP_NAMES[(a % 3) as usize], state);
        }
        (15..=24, Some(g), _) if model.consumers.len() < CONSUMERS_MAX => {
            let holding = if c % 4 == 0 { some_ranges(model.end, b, c) } else { Vec::new() };
            let until = (b % 3 == 0).then(|| (model.end + 1).saturating_sub(c % 4));
            model.add_consumer(Some(g), Mode::Take, until, &holding);
        }
        (25..=27, g, _) if model.consumers.len() < CONSUMERS_MAX => {
            let until = Some((model.end + 1).saturating_sub(c % 4));
            model.add_consumer(g.filter(|_| b % 3 > 0), Mode::Peek, until, &[]);
        }
        (28..=41, _, Some(consumer)) => {
            let more = model.consumers[&consumer].delivered + b % 8;
            model.credit(consumer, more.saturating_sub(c % 3));
        }
        (42..=64, _, Some(consumer)) => model.serve(consumer, 1 + b % 6, c % 5),
        (65..=76, _, Some(consumer)) => {
            model.give_up(consumer, &some_ranges(model.end, b, c), State::Settled);
        }
        (77..=83, _, Some(consumer)) => {
            model.give_up(consumer, &some_ranges(model.end, b, c), State::Ready);
        }
        (84..=86, _, Some(consumer)) => model.remove_consumer(consumer),
        (87, _, _) => model.purge(),
        (88, Some(g), _) => model.remove_group(g),
        (89, _, _) => model.restart(),
        _ => model.drain(if b % 2 == 0 { u64::MAX } else { 1 + c % 3 }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn broker_does_what_the_model_does(
        start in 0u64..3,
        gap in 0u64..2,
        span in 0u64..6,
        steps in prop::collection::vec((0u8..110, any::<u64>(), any::<u64>(), any::<u64>()), 1..150),
    ) {
        let mut model = Model::new(start, gap, span);
        model.check();
        for step in steps {
            act(&mut model, step);
            model.check();
        }
    }
}
