//! Operations: each does the same to the broker and to the model, and compares the answers.

use super::*;
use crate::units::Ending;

/// How long what had its last attempt rests after a restart, so that its holder can come back.
const GRACE: u64 = 5;

/// The pause that the model gives: it depends on what it is told.
fn pause(now: u64, n: u64, attempts: u32) -> u64 {
    now + 1 + (n + u64::from(attempts)) % 4
}

// Messages that come, and messages that are given up.
impl Model {
    pub(super) fn extend(&mut self, gap: u64, span: u64, only: Option<GroupKey>) {
        let start = self.end + gap;
        let new = range(start, start + span);
        let settled = match only {
            Some(g) => self.broker.extend_for(self.q, new, g),
            None => {
                self.broker.extend(self.q, new);
                Vec::new()
            }
        };
        self.gaps.extend(self.end..start);
        self.gone.extend(self.end..start);
        self.end = start + span;
        let mut expected = BTreeMap::new();
        for group in self.groups.values_mut() {
            group.messages.extend((start..start + span).map(|n| (n, State::Ready)));
        }
        for g in self.groups.keys().copied().collect::<Vec<_>>() {
            let full = self.settled_ranges(g) >= BOUNDS.settled_ranges;
            if only.is_some_and(|only| only != g) && !full {
                let group = self.groups.get_mut(&g).unwrap();
                (start..start + span).for_each(|n| group.settle(n));
                expected.insert(g, runs(start..start + span));
            }
        }
        assert_eq!(settled.into_iter().collect::<BTreeMap<_, _>>(), expected);
    }

    pub(super) fn purge(&mut self) {
        let expected = self.settle_free(|_| true);
        if self.groups.is_empty() || self.retention == Retention::Log {
            self.gone.extend(0..self.end);
        }
        let purged: BTreeMap<_, _> = self.broker.purge(self.q).into_iter().collect();
        assert_eq!(purged, expected);
    }

    /// Settles what is ready or rests, and `is`, in every group.
    fn settle_free(&mut self, is: impl Fn(u64) -> bool) -> BTreeMap<GroupKey, Vec<OffsetRange>> {
        let mut settled = BTreeMap::new();
        for (&g, group) in &mut self.groups {
            let free: Vec<u64> = group.messages.keys().copied().collect();
            let free: Vec<u64> = free.into_iter().filter(|n| is(*n) && group.is_free(*n)).collect();
            free.iter().for_each(|n| group.settle(*n));
            if !free.is_empty() {
                settled.insert(g, runs(free));
            }
        }
        settled
    }

    pub(super) fn drop_oldest(&mut self, count: u64) {
        let is_held = |n: u64| {
            let groups = self.groups.values();
            groups
                .into_iter()
                .any(|g| !g.is_free(n) && !g.messages.get(&n).is_none_or(|s| *s == State::Settled))
        };
        let present = (0..self.end).filter(|n| !self.is_gone(*n) && !is_held(*n));
        let chosen: BTreeSet<u64> = present.take(count as usize).collect();
        let dropped = self.broker.drop_oldest(self.q, Count(count));
        self.dropped(&chosen, &dropped);
    }

    pub(super) fn drop_before(&mut self, offset: u64) {
        let offset = offset.min(self.end);
        let chosen: BTreeSet<u64> = (0..offset).filter(|n| !self.is_gone(*n)).collect();
        self.kept_from = self.kept_from.max(offset);
        let dropped = self.broker.drop_before(self.q, Offset(offset));
        self.dropped(&chosen, &dropped);
    }

    fn dropped(&mut self, chosen: &BTreeSet<u64>, dropped: &Dropped) {
        let expected = self.settle_free(|n| chosen.contains(&n));
        let groups: BTreeMap<_, _> = dropped.groups.iter().cloned().collect();
        assert_eq!(groups, expected);
        if self.groups.is_empty() || self.retention == Retention::Log {
            self.gone.extend(chosen);
        }
    }

    pub(super) fn expire(&mut self, g: GroupKey, ranges: &[OffsetRange]) {
        let expired = self.broker.expire(g, ranges, Ending::Expired);
        let group = self.groups.get_mut(&g).unwrap();
        let free: BTreeSet<u64> =
            spread(ranges).into_iter().filter(|n| group.is_free(*n)).collect();
        free.iter().for_each(|n| group.settle(*n));
        assert_eq!(spread(&expired).into_iter().collect::<BTreeSet<_>>(), free);
    }

    pub(super) fn kill(&mut self, g: GroupKey, ranges: &[OffsetRange]) {
        self.broker.kill(g, ranges);
        let group = self.groups.get_mut(&g).unwrap();
        for n in spread(ranges) {
            if group.is_free(n) {
                group.messages.insert(n, State::Dying);
            }
        }
    }

    pub(super) fn settle_dying(&mut self, g: GroupKey, ranges: &[OffsetRange]) {
        let group = self.groups.get_mut(&g).unwrap();
        let mut expected = Vec::new();
        for n in spread(ranges) {
            if group.is(n, State::Dying) {
                group.settle(n);
                expected.push(n);
            }
        }
        assert_eq!(spread(&self.broker.settle_dying(g, ranges)), expected);
    }
}

// Settings and groups.
impl Model {
    pub(super) fn set_limit(&mut self, limit: Option<u32>) {
        self.broker.set_delivery_limit(self.q, limit);
        if self.limit == limit {
            return;
        }
        self.limit = limit;
        for g in self.groups.keys().copied().collect::<Vec<_>>() {
            for n in 0..self.end {
                if self.groups[&g].is_free(n) && self.is_exhausted(g, n) {
                    self.groups.get_mut(&g).unwrap().messages.insert(n, State::Dying);
                }
            }
        }
    }

    pub(super) fn set_retention(&mut self, retention: Retention) {
        self.broker.set_retention(self.q, retention);
        if retention != self.retention {
            self.gone = (0..self.end).filter(|n| self.is_gone(*n)).collect();
            self.retention = retention;
        }
    }
}

// Consumers, and what they do.
impl Model {
    pub(super) fn add_consumer(
        &mut self,
        group: Option<GroupKey>,
        kind: Kind,
        holding: &[OffsetRange],
    ) {
        let (c, kept) = self.broker.add_consumer(self.q, group, kind, holding);
        let mut expected = BTreeSet::new();
        if let (Mode::Take, Some(g)) = (kind.mode, group) {
            if kind.exclusive {
                self.groups.get_mut(&g).unwrap().waiting.push(c);
                self.appoint(g);
            }
            let group = &self.groups[&g];
            let admitted =
                group.holder == Some(c) || (group.holder.is_none() && group.waiting.is_empty());
            for n in spread(holding) {
                let resting = matches!(group.messages.get(&n), Some(State::Resting(_)));
                let claimed = group.is(n, State::Ready) || resting && self.is_exhausted(g, n);
                if admitted && !kind.leases && claimed {
                    expected.insert(n);
                }
            }
            let group = self.groups.get_mut(&g).unwrap();
            for &n in &expected {
                group.messages.insert(n, State::Held(c));
                group.handed = group.handed.max(n + 1);
            }
        }
        assert_eq!(kept, runs(expected.iter().copied()));
        let consumer = ModelConsumer {
            group,
            kind,
            cursor: 0,
            credit: 0,
            delivered: expected.len() as u64,
            spent: BTreeSet::new(),
            begun: BTreeSet::new(),
            ended: false,
            end_told: false,
            told: false,
            turn_over: false,
        };
        self.consumers.insert(c, consumer);
    }

    pub(super) fn remove_consumer(&mut self, c: ConsumerKey) {
        self.broker.remove_consumer(c);
        let consumer = self.consumers.remove(&c).unwrap();
        let Some(g) = consumer.group else { return };
        for n in self.groups[&g].those(|state| state == State::Held(c)) {
            self.give_back(g, n);
        }
        let group = self.groups.get_mut(&g).unwrap();
        group.waiting.retain(|waiting| *waiting != c);
        if group.holder == Some(c) {
            (group.holder, group.holder_told, group.in_tenure) = (None, false, false);
        }
    }

    pub(super) fn give_back(&mut self, g: GroupKey, n: u64) {
        let state = self.given_back(g, n);
        let group = self.groups.get_mut(&g).unwrap();
        match state {
            State::Settled => group.settle(n),
            state => {
                group.messages.insert(n, state);
            }
        }
    }

    /// The next exclusive consumer holds the group, if none does and nobody holds a message.
    pub(super) fn appoint(&mut self, g: GroupKey) {
        let group = self.groups.get_mut(&g).unwrap();
        let held = group.count(|state| matches!(state, State::Held(_)));
        if group.holder.is_none() && held == 0 && !group.waiting.is_empty() {
            group.holder = Some(group.waiting.remove(0));
            (group.holder_told, group.in_tenure) = (false, false);
            group.epoch += 1;
        }
    }

    pub(super) fn begin_tenure(&mut self, c: ConsumerKey) {
        self.broker.begin_tenure(c);
        let Some(g) = self.consumers[&c].group else { return };
        let group = self.groups.get_mut(&g).unwrap();
        group.in_tenure |= group.holder == Some(c);
    }

    pub(super) fn credit(&mut self, c: ConsumerKey, total: u64) {
        self.broker.credit(c, total);
        self.consumers.get_mut(&c).unwrap().credit = total;
    }

    /// Offers to `c`, and takes at most `part` of the offer.
    pub(super) fn serve(&mut self, c: ConsumerKey, max: u64, part: u64) {
        let expected = self.expected_offer(c, max);
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
            self.take(c, taken, offer.attempt);
        }
    }

    fn take(&mut self, c: ConsumerKey, taken: OffsetRange, attempt: Attempts) {
        let rival = self.has_rival(c);
        let kind = self.consumers[&c].kind;
        let mut state = State::Held(c);
        if kind.leases {
            let (number, deadline) = (self.next_number, self.now + 1 + self.next_number % 5);
            self.next_number += 1;
            let (lease, until) = (LeaseNumber(number), Monotonic(deadline));
            let counted = self.broker.take_lease(c, taken, lease, until);
            assert_eq!(counted, [Tried { range: taken, attempts: attempt, ready_at: None }]);
            state = State::Leased(number, deadline);
        } else {
            self.broker.take(c, taken);
        }
        let consumer = self.consumers.get_mut(&c).unwrap();
        consumer.delivered += taken.span();
        assert!(consumer.delivered <= consumer.credit);
        consumer.turn_over |= rival;
        let (Mode::Take, Some(g)) = (kind.mode, consumer.group) else {
            consumer.cursor = taken.end.0;
            return;
        };
        if kind.leases && kind.until.is_some() {
            consumer.spent.extend(spread(&[taken]));
        }
        let group = self.groups.get_mut(&g).unwrap();
        for n in spread(&[taken]) {
            assert_eq!(group.messages.insert(n, state), Some(State::Ready));
            if kind.leases {
                *group.attempts.entry(n).or_default() += 1;
            }
        }
        group.handed = group.handed.max(taken.end.0);
    }

    pub(super) fn pass(&mut self, c: ConsumerKey, to: u64) {
        let consumer = self.consumers.get_mut(&c).unwrap();
        if consumer.kind.mode == Mode::Peek && consumer.cursor <= to {
            consumer.cursor = to;
            self.broker.pass(c, Offset(to));
        }
    }

    /// What `c` holds of `ranges`, in their order, each once.
    fn held_of(&self, c: ConsumerKey, ranges: &[OffsetRange]) -> Vec<u64> {
        let Some(g) = self.consumers[&c].group else { return Vec::new() };
        let mut seen = BTreeSet::new();
        let held = |n: &u64| self.groups[&g].is(*n, State::Held(c));
        spread(ranges).into_iter().filter(|n| held(n) && seen.insert(*n)).collect()
    }

    pub(super) fn ack(&mut self, c: ConsumerKey, ranges: &[OffsetRange]) {
        let held = self.held_of(c, ranges);
        assert_eq!(spread(&self.broker.ack(c, ranges)), held);
        self.give_up(c, &held, |model, g, n| model.groups.get_mut(&g).unwrap().settle(n));
    }

    pub(super) fn release(&mut self, c: ConsumerKey, ranges: &[OffsetRange]) {
        let held = self.held_of(c, ranges);
        self.broker.release(c, ranges);
        self.give_up(c, &held, Model::give_back);
    }

    fn give_up(
        &mut self,
        c: ConsumerKey,
        held: &[u64],
        mut each: impl FnMut(&mut Model, GroupKey, u64),
    ) {
        let Some(g) = self.consumers[&c].group else { return };
        for &n in held {
            self.consumers.get_mut(&c).unwrap().begun.remove(&n);
            each(self, g, n);
        }
    }

    /// Counts attempts in the model; what was new.
    fn count(&mut self, c: ConsumerKey, held: &[u64]) -> Vec<u64> {
        let consumer = self.consumers.get_mut(&c).unwrap();
        let Some(g) = consumer.group else { return Vec::new() };
        let group = self.groups.get_mut(&g).unwrap();
        let new: Vec<u64> = held.iter().filter(|n| consumer.begun.insert(**n)).copied().collect();
        for &n in &new {
            *group.attempts.entry(n).or_default() += 1;
            if consumer.kind.until.is_some() {
                consumer.spent.insert(n);
            }
        }
        new
    }

    pub(super) fn begin(&mut self, c: ConsumerKey, ranges: &[OffsetRange]) {
        let held = self.held_of(c, ranges);
        let counted = self.broker.begin(c, ranges);
        let new = self.count(c, &held);
        let told: Vec<u64> = counted.iter().flat_map(|tried| spread(&[tried.range])).collect();
        assert_eq!(told, new);
        for tried in counted {
            assert!(spread(&[tried.range]).iter().all(|n| {
                let g = self.consumers[&c].group.unwrap();
                self.groups[&g].attempts[n] == tried.attempts.0 && tried.ready_at.is_none()
            }));
        }
    }

    pub(super) fn has_begun(&mut self, c: ConsumerKey, ranges: &[OffsetRange], attempt: u32) {
        let held = self.held_of(c, ranges);
        let raised = self.broker.has_begun(c, ranges, Attempts(attempt));
        let told: Vec<u64> = raised.iter().flat_map(|tried| spread(&[tried.range])).collect();
        assert!(raised.iter().all(|tried| tried.attempts.0 == attempt && tried.ready_at.is_none()));
        let consumer = self.consumers.get_mut(&c).unwrap();
        let Some(g) = consumer.group else { return assert!(told.is_empty()) };
        let group = self.groups.get_mut(&g).unwrap();
        let mut expected = Vec::new();
        for n in held.into_iter().filter(|n| consumer.begun.insert(*n)) {
            if consumer.kind.until.is_some() {
                consumer.spent.insert(n);
            }
            let attempts = group.attempts.entry(n).or_default();
            if *attempts < attempt {
                *attempts = attempt;
                expected.push(n);
            }
        }
        assert_eq!(told, expected);
    }

    pub(super) fn nack(&mut self, c: ConsumerKey, ranges: &[OffsetRange]) {
        let held = self.held_of(c, ranges);
        self.count(c, &held);
        let now = self.now;
        let mut rest = |n: Offset, attempts: Attempts| Monotonic(pause(now, n.0, attempts.0));
        let failed = self.broker.nack(c, ranges, &mut rest);
        let Some(g) = self.consumers[&c].group else { return };
        self.consumers.get_mut(&c).unwrap().begun.retain(|n| !held.contains(n));
        self.failed(g, &held, &failed);
    }

    /// Each of `held` had its attempt and failed; `failed` is what the broker makes of it.
    fn failed(&mut self, g: GroupKey, held: &[u64], failed: &[Tried]) {
        let mut told = BTreeMap::new();
        for tried in failed {
            for n in spread(&[tried.range]) {
                told.insert(n, (tried.range.start.0, *tried));
            }
        }
        for &n in held {
            let group = self.groups.get_mut(&g).unwrap();
            let attempts = group.attempts[&n];
            let lost = n < self.kept_from;
            let Some((start, tried)) = told.remove(&n) else {
                assert!(lost, "{n} failed without a word");
                group.settle(n);
                continue;
            };
            assert_eq!(tried.attempts.0, attempts);
            let dying = Attempts(attempts).are_spent(self.limit);
            let until = (!dying).then(|| pause(self.now, start, attempts));
            assert_eq!(tried.ready_at, until.map(Monotonic));
            let state = until.map_or(State::Dying, State::Resting);
            group.messages.insert(n, state);
        }
        assert!(told.is_empty(), "{told:?}");
    }

    pub(super) fn bury(&mut self, c: ConsumerKey, ranges: &[OffsetRange]) {
        let held = self.held_of(c, ranges);
        self.count(c, &held);
        let buried = self.broker.bury(c, ranges);
        let told: Vec<u64> = buried.iter().flat_map(|tried| spread(&[tried.range])).collect();
        assert_eq!(told, held);
        self.give_up(c, &held, |model, g, n| {
            let group = model.groups.get_mut(&g).unwrap();
            let attempts = group.attempts.get_mut(&n).unwrap();
            *attempts = Attempts(*attempts).buried().0;
            group.messages.insert(n, State::Dying);
        });
    }
}

// Leases with receipts, and what time does.
impl Model {
    /// A receipt comes: for a lease that is there, or with a wrong number.
    pub(super) fn receipt(&mut self, g: GroupKey, which: u64, how: u64, wrong: bool) {
        let leases = self.groups[&g].leases();
        let Some((range, (number, deadline))) = leases.get(which as usize % leases.len().max(1))
        else {
            return;
        };
        let n = range.start.0 + which % range.span();
        let number = LeaseNumber(if wrong { number + 1000 } else { *number });
        let stale = Err(Refusal::StaleReceipt);
        let now = self.now;
        match how % 3 {
            0 => {
                let acked = self.broker.receipt_ack(g, Offset(n), number);
                let expected = if wrong { stale } else { Ok(vec![super::range(n, n + 1)]) };
                assert_eq!(acked, expected);
                if !wrong {
                    self.groups.get_mut(&g).unwrap().settle(n);
                }
            }
            1 => {
                let mut rest = |n: Offset, a: Attempts| Monotonic(pause(now, n.0, a.0));
                match self.broker.receipt_nack(g, Offset(n), number, &mut rest) {
                    Ok(failed) => self.failed(g, &[n], &failed),
                    refused => assert!(wrong, "{refused:?}"),
                }
            }
            _ => {
                let until = now + which % 9;
                match self.broker.receipt_extend(g, Offset(n), number, Monotonic(until)) {
                    Ok(end) => {
                        let later = until.max(*deadline);
                        assert_eq!(end, Monotonic(later));
                        let state = State::Leased(number.0, later);
                        self.groups.get_mut(&g).unwrap().messages.insert(n, state);
                    }
                    refused => assert!(wrong, "{refused:?}"),
                }
            }
        }
    }

    pub(super) fn pass_time(&mut self, span: u64) {
        self.now += span;
        self.broker.wake(Monotonic(self.now));
        for g in self.groups.keys().copied().collect::<Vec<_>>() {
            let over = self.groups[&g].those(|state| match state {
                State::Resting(until) | State::Leased(_, until) => until <= self.now,
                _ => false,
            });
            over.into_iter().for_each(|n| self.give_back(g, n));
        }
    }

    /// A new broker from what files keep; every receiver comes back with what it held.
    pub(super) fn restart(&mut self) {
        let broker = Broker::with_bounds(BOUNDS);
        let old = std::mem::replace(&mut self.broker, broker);
        let gone: Vec<OffsetRange> = old.gone(self.q).iter().collect();
        let gaps = runs(self.gaps.iter().copied());
        let q = self.broker.add_queue(Offset(self.start), Offset(self.end), &gaps, &gone);
        self.broker.set_delivery_limit(q, self.limit);
        self.broker.set_retention(q, self.retention);
        let old_q = std::mem::replace(&mut self.q, q);
        self.gone = spread(&gone).into_iter().collect();
        let kept_from = std::mem::take(&mut self.kept_from);
        let (names, consumers) =
            (std::mem::take(&mut self.names), std::mem::take(&mut self.consumers));
        self.groups.clear();
        let mut new_keys = BTreeMap::new();
        for (g, name) in old.groups(old_q) {
            let mut state = old.group_state(g);
            for tried in &mut state.tried {
                if tried.attempts.are_spent(self.limit) {
                    tried.ready_at.get_or_insert(Monotonic(self.now + GRACE));
                }
            }
            self.add_group(names[&g], Some(state));
            let new = self.broker.find_group(q, name).unwrap();
            new_keys.insert(g, new);
        }
        self.drop_before(kept_from);
        for (c, consumer) in consumers {
            let holding: Vec<OffsetRange> = old.held(c).iter().rev().collect();
            let group = consumer.group.map(|g| new_keys[&g]);
            self.add_consumer(group, consumer.kind, &holding);
        }
        // Whether a queue that is being loaded is told to be quiet does not matter.
        self.settle_down();
        self.quiet = self.is_quiet();
        self.quiet_pending = false;
        while let Some(output) = self.broker.next_output() {
            if !matches!(output, Output::Quiet { .. }) {
                self.told(output);
            }
        }
    }

    pub(super) fn drain(&mut self, steps: u64) {
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
            Output::Dying { group } => {
                let group = self.groups.get_mut(&group).unwrap();
                assert!(group.dying_pending);
                group.dying_pending = false;
            }
            Output::Holder { consumer, epoch } => {
                let g = self.consumers[&consumer].group.unwrap();
                let group = self.groups.get_mut(&g).unwrap();
                assert!(group.holder == Some(consumer) && !group.holder_told);
                assert_eq!(epoch, group.epoch);
                group.holder_told = true;
            }
        }
    }
}
