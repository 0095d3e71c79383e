//! Checks: everything that can be asked, after each operation.

use super::*;

impl Model {
    /// What follows from an operation by itself.
    pub(super) fn settle_down(&mut self) {
        for g in self.groups.keys().copied().collect::<Vec<_>>() {
            self.appoint(g);
            let group = self.groups.get_mut(&g).unwrap();
            let dying = group.count(|state| *state == State::Dying);
            group.dying_pending |= dying > group.dying_before;
            group.dying_before = dying;
        }
        let ended: Vec<ConsumerKey> = self
            .consumers
            .iter()
            .filter(|(key, c)| self.at_end(**key, c))
            .map(|(key, _)| *key)
            .collect();
        for c in ended {
            self.consumers.get_mut(&c).unwrap().ended = true;
        }
    }

    pub(super) fn check(&mut self) {
        self.settle_down();
        let quiet = self.is_quiet();
        if quiet != self.quiet {
            (self.quiet, self.quiet_pending) = (quiet, quiet);
        }
        assert_eq!(self.broker.is_quiet(self.q), quiet);
        assert_eq!(self.broker.visible_end(self.q), Offset(self.end));
        self.check_gone();
        self.check_deadline();
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

    /// The broker may want to be woken in vain, never too late.
    fn check_deadline(&self) {
        let states = self.groups.values().flat_map(|group| group.messages.values());
        let due = states.filter_map(|state| match state {
            State::Resting(until) | State::Leased(_, until) => Some(Monotonic(*until)),
            _ => None,
        });
        match (self.broker.next_deadline(), due.min()) {
            (None, None) => {}
            (Some(deadline), Some(due)) => assert!(deadline <= due, "{deadline} {due}"),
            (deadline, due) => panic!("{deadline:?} {due:?}"),
        }
    }

    /// A group as it was made: what was settled before is not counted.
    pub(super) fn not_counted(&self, g: GroupKey, made: ModelGroup) -> ModelGroup {
        let settled = made.count(|state| *state == State::Settled);
        ModelGroup { uncounted: settled - self.broker.tally(g).total().0, ..made }
    }

    fn check_group(&self, g: GroupKey) {
        let group = &self.groups[&g];
        let settled = self.settled_of(g);
        let leases = group.leases().into_iter().map(|(range, (number, deadline))| Lease {
            range,
            number: LeaseNumber(number),
            deadline: Monotonic(deadline),
        });
        let state = GroupState {
            settled: settled.clone(),
            handed: Offset(group.handed),
            tried: group.tried(),
            leases: leases.collect(),
            epoch: group.epoch,
            tally: self.broker.tally(g),
        };
        let counted = group.count(|state| *state == State::Settled) - group.uncounted;
        assert_eq!(self.broker.tally(g).total(), Count(counted), "each ends in one way");
        let mut told = self.broker.group_state(g);
        // Neighbours of which one rests may be told apart or not.
        told.tried = merged(&told.tried);
        assert_eq!(told, state);
        assert!(self.broker.dying(g).iter().eq(runs(group.those(|s| s == State::Dying))));
        let oldest = group.messages.iter().find(|(_, state)| **state != State::Settled);
        let floor = settled.first().filter(|run| run.start == Offset(0)).map_or(0, |run| run.end.0);
        let takes = |c: &&ModelConsumer| c.group == Some(g) && c.kind.mode == Mode::Take;
        let leased = |state: &State| matches!(state, State::Held(_) | State::Leased(..));
        let expected = Counts {
            ready: Count(group.count(|state| *state == State::Ready)),
            leased: Count(group.count(leased)),
            resting: Count(group.count(|state| matches!(state, State::Resting(_)))),
            dying: Count(group.count(|state| *state == State::Dying)),
            settled_ranges: self.settled_ranges(g),
            stuck: self.is_stuck(g),
            oldest: oldest.map(|(n, _)| Offset(*n)),
            consumers: self.consumers.values().filter(takes).count(),
            floor: Offset(floor),
            handed: Offset(group.handed),
        };
        assert_eq!(self.broker.counts(g), expected);
    }

    fn check_consumer(&self, c: ConsumerKey) {
        let consumer = &self.consumers[&c];
        let held = consumer
            .group
            .map_or(Vec::new(), |g| runs(self.groups[&g].those(|state| state == State::Held(c))));
        assert!(self.broker.held(c).iter().eq(held));
        let room = consumer.credit.saturating_sub(consumer.delivered);
        let behind = !consumer.ended && self.ready_for(consumer).len() as u64 > room;
        assert_eq!(self.broker.is_behind(c), behind);
    }

    /// What the broker would say now: to each only once, and to all whom it concerns.
    fn check_pending(&self) {
        let mut broker = self.broker.clone();
        let (mut ready, mut ends, mut quiet) = (BTreeSet::new(), BTreeSet::new(), false);
        let (mut dying, mut holders) = (BTreeSet::new(), BTreeSet::new());
        while let Some(output) = broker.next_output() {
            let new = match output {
                Output::Ready { consumer } => ready.insert(consumer),
                Output::End { consumer } => ends.insert(consumer),
                Output::Quiet { .. } => !std::mem::replace(&mut quiet, true),
                Output::Dying { group } => dying.insert(group),
                Output::Holder { consumer, .. } => holders.insert(consumer),
            };
            assert!(new, "{output:?} is said twice");
        }
        assert_eq!(quiet, self.quiet_pending);
        for (g, group) in &self.groups {
            assert_eq!(dying.contains(g), group.dying_pending);
            if let Some(holder) = group.holder {
                assert_eq!(holders.contains(&holder), !group.holder_told);
            }
        }
        for (c, consumer) in &self.consumers {
            assert_eq!(ends.contains(c), consumer.ended && !consumer.end_told);
            if self.expected_offer(*c, u64::MAX).is_some() {
                let knows = consumer.told || ready.contains(c);
                assert!(knows, "{c:?} waits for ever: {consumer:?} {:?}", self.broker);
            } else if ready.contains(c) {
                panic!("{c:?} is called in vain");
            }
        }
    }
}

fn merged(tried: &[Tried]) -> Vec<Tried> {
    let mut merged: Vec<Tried> = Vec::new();
    for &next in tried {
        match merged.last_mut() {
            Some(last)
                if last.range.end == next.range.start
                    && (last.attempts, last.ready_at) == (next.attempts, next.ready_at) =>
            {
                last.range.end = next.range.end;
            }
            _ => merged.push(next),
        }
    }
    merged
}
