//! Groups that are made, set to another place, and removed.

use super::*;

impl Model {
    pub(super) fn add_group(&mut self, name: &'static str, state: Option<GroupState>) {
        let made = self.group_of_state(state.as_ref());
        let added = self.broker.add_group(self.q, &Name::new(name).unwrap(), state);
        if let Some((&g, _)) = self.names.iter().find(|(_, known)| **known == name) {
            assert_eq!(self.broker.find_group(self.q, &Name::new(name).unwrap()), Some(g));
            assert!(matches!(added, Err(Refusal::GroupExists { .. })));
            return;
        }
        let g = added.unwrap();
        self.groups.insert(g, self.not_counted(g, made));
        self.names.insert(g, name);
    }

    pub(super) fn reset_group(&mut self, g: GroupKey, state: GroupState) {
        let made = self.group_of_state(Some(&state));
        let foreseen = self.broker.group_after_reset(g, state.clone());
        let reset = self.broker.reset_group(g, state);
        let takes = |c: &ModelConsumer| c.group == Some(g) && c.kind.mode == Mode::Take;
        if self.consumers.values().any(takes) {
            assert!(matches!(reset, Err(Refusal::HasReceivers { .. })));
            assert_eq!(foreseen.map(drop), reset);
            return;
        }
        assert_eq!(reset, Ok(()));
        let unsettled = self.broker.counts(g).unsettled();
        assert_eq!(foreseen, Ok((self.broker.group_state(g), unsettled)));
        let old = &self.groups[&g];
        let epoch = ((made.epoch.max(old.epoch) >> 32) + 1) << 32;
        // Nobody is told again of what died before.
        let kept = ModelGroup {
            epoch,
            dying_pending: old.dying_pending,
            dying_before: old.dying_before,
            ..made
        };
        self.groups.insert(g, self.not_counted(g, kept));
    }

    fn group_of_state(&self, state: Option<&GroupState>) -> ModelGroup {
        let no_message = |n: &u64| *n < self.start || self.gaps.contains(n);
        let mut group = ModelGroup::default();
        let settled: BTreeSet<u64> = match (state, self.retention) {
            (Some(state), _) => {
                spread(&state.settled).into_iter().chain(self.gone.clone()).collect()
            }
            (None, Retention::Log) => self.gone.clone(),
            (None, Retention::Acked) => (0..self.end).filter(|n| self.is_gone(*n)).collect(),
        };
        for n in (0..self.end).filter(|n| !no_message(n)) {
            let state = if settled.contains(&n) { State::Settled } else { State::Ready };
            group.messages.insert(n, state);
        }
        let floor = (0..=self.end).find(|n| !settled.contains(n)).unwrap_or(0);
        let Some(state) = state else { return ModelGroup { handed: floor, ..group } };
        group.epoch = state.epoch;
        group.handed = state.handed.0.min(self.end);
        for Lease { range, number, deadline } in &state.leases {
            for n in spread(&[*range]) {
                if group.is(n, State::Ready) {
                    group.messages.insert(n, State::Leased(number.0, deadline.0));
                    group.handed = group.handed.max(n + 1);
                }
            }
        }
        for Tried { range, attempts, ready_at } in &state.tried {
            for n in spread(&[*range]) {
                if group.messages.get(&n).is_some_and(|state| *state != State::Settled) {
                    group.attempts.insert(n, attempts.0);
                    group.handed = group.handed.max(n + 1);
                }
                if let Some(until) = ready_at
                    && group.is(n, State::Ready)
                {
                    group.messages.insert(n, State::Resting(until.0));
                }
            }
        }
        for (n, state) in &mut group.messages {
            if matches!(state, State::Leased(..)) {
                group.attempts.entry(*n).or_insert(1);
            }
            let attempts = group.attempts.get(n);
            let exhausted = attempts.is_some_and(|a| Attempts(*a).are_spent(self.limit));
            if *state == State::Ready && *n < self.kept_from {
                *state = State::Settled;
                group.attempts.remove(n);
            } else if *state == State::Ready && exhausted {
                *state = State::Dying;
            }
        }
        group
    }

    pub(super) fn remove_group(&mut self, g: GroupKey) {
        for n in self.groups[&g].those(|state| matches!(state, State::Held(_))) {
            self.give_back(g, n);
        }
        if self.retention == Retention::Acked {
            self.gone = (0..self.end).filter(|n| self.is_gone(*n)).collect();
        }
        let of_group: Vec<ConsumerKey> = self.broker.remove_group(g);
        let expected = self.consumers.iter().filter(|(_, consumer)| consumer.group == Some(g));
        assert!(expected.map(|(c, _)| *c).eq(of_group.iter().copied().collect::<BTreeSet<_>>()));
        self.consumers.retain(|c, _| !of_group.contains(c));
        self.groups.remove(&g);
        self.names.remove(&g);
    }
}
