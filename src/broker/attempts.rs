//! Attempts: how often a message was handed over, and what becomes of one that failed.
//!
//! Counted is a message that a consumer says it begins to try, or that goes out under a lease
//! with a receipt; never one that only waited with a consumer. What was counted is for the
//! group's journal: each call here returns it. The pause after a failure comes from the caller,
//! which has the clock and the dice.

use crate::units::{Attempts, Monotonic, Offset, OffsetRange};

use super::delivery::give_up;
use super::group::Group;
use super::resting::Rest;
use super::{Broker, ConsumerKey, GroupKey, QueueKey, Tried};

/// How long a message rests: told its offset and the attempts that it has had.
pub type Pause<'a> = &'a mut dyn FnMut(Offset, Attempts) -> Monotonic;

impl Group {
    /// The number of the attempt that comes next at the head of `range`, which is cut to those
    /// that share it.
    pub(super) fn next_attempt(&self, range: &mut OffsetRange) -> Attempts {
        if self.attempts.is_empty() {
            return Attempts(1);
        }
        match self.attempts.pieces_in(*range).next() {
            Some((piece, attempts)) if piece.start == range.start => {
                range.end = piece.end;
                Attempts(attempts.0.saturating_add(1))
            }
            Some((piece, _)) => {
                range.end = piece.start;
                Attempts(1)
            }
            None => Attempts(1),
        }
    }

    /// Counts an attempt on `range`, which is not settled; returns what it comes to.
    pub(super) fn count_attempt(&mut self, range: OffsetRange) -> Vec<Tried> {
        let mut counted = Vec::new();
        let mut left = range;
        while !left.is_empty() {
            let mut head = left;
            let attempts = self.next_attempt(&mut head);
            self.attempts.set(head, attempts);
            counted.push(Tried { range: head, attempts, ready_at: None });
            left.start = head.end;
        }
        counted
    }

    /// What of `range` had fewer attempts has had `attempts`; returns what that was.
    fn raise_attempts(&mut self, range: OffsetRange, attempts: Attempts) -> Vec<Tried> {
        let mut raised = Vec::new();
        let mut left = range;
        while !left.is_empty() {
            let mut head = left;
            if self.next_attempt(&mut head) <= attempts {
                self.attempts.set(head, attempts);
                raised.push(Tried { range: head, attempts, ready_at: None });
            }
            left.start = head.end;
        }
        raised
    }

    /// What of `range` is not known to have had an attempt has had one: a journal that lost its
    /// end may know of a lease alone.
    pub(super) fn know_tried(&mut self, range: OffsetRange) {
        let mut left = range;
        while !left.is_empty() {
            let mut head = left;
            if self.next_attempt(&mut head) == Attempts(1) {
                self.attempts.set(head, Attempts(1));
            }
            left.start = head.end;
        }
    }

    /// `range` of the leased messages, each of which has had an attempt, failed: it rests, or is
    /// dying after the last attempt. Returns what is to be known of it.
    pub(super) fn fail(&mut self, range: OffsetRange, pause: Pause<'_>) -> Vec<Tried> {
        self.leased -= range.span();
        let pieces: Vec<(OffsetRange, Attempts)> = self.attempts.pieces_in(range).collect();
        let mut failed = Vec::with_capacity(pieces.len());
        for (piece, attempts) in pieces {
            let exhausted = attempts.are_spent(self.delivery_limit);
            let ready_at = if exhausted {
                self.dying.cover(piece);
                None
            } else if piece.end <= self.kept_from {
                self.lose(piece);
                continue;
            } else {
                let until = pause(piece.start, attempts);
                self.resting.set(piece, Rest(until));
                Some(until)
            };
            failed.push(Tried { range: piece, attempts, ready_at });
        }
        failed
    }
}

impl Broker {
    /// How often a message may be handed over before it is dying; none: without end. What has had
    /// so many attempts already, and is in no one's hands, is dying at once. Walks what was tried.
    pub fn set_delivery_limit(&mut self, q: QueueKey, limit: Option<u32>) {
        if self.queue(q).delivery_limit == limit {
            return;
        }
        self.queue_mut(q).delivery_limit = limit;
        let extent = self.queue(q).extent();
        for g in self.queue(q).groups.clone() {
            let group = self.group_mut(g);
            group.delivery_limit = limit;
            let exhausted = group.exhausted_in(extent);
            self.kill(g, &exhausted);
        }
    }

    /// How often a message may be handed over before it is dying.
    #[must_use]
    pub fn delivery_limit(&self, q: QueueKey) -> Option<u32> {
        self.queue(q).delivery_limit
    }

    /// The consumer begins to try what it holds of `ranges`: an attempt is counted on it, once
    /// for each time that it holds it. Returns what to journal.
    pub fn begin(&mut self, c: ConsumerKey, ranges: &[OffsetRange]) -> Vec<Tried> {
        let consumer = self.consumers.at_mut(c.0);
        let Some(g) = consumer.group else { return Vec::new() };
        let group = self.groups.at_mut(g.0);
        let mut counted = Vec::new();
        for held in ranges.iter().flat_map(|range| consumer.leased.pieces_in(*range)) {
            for new in consumer.begun.insert(held) {
                counted.extend(group.count_attempt(new));
            }
        }
        for tried in &counted {
            consumer.spend(tried.range, group);
        }
        if !counted.is_empty() {
            self.group_changed(g);
        }
        counted
    }

    /// The consumer has begun to try what it holds of `ranges`, as attempt number `attempt`, of
    /// which we may have been told or not: perhaps that was another server. Returns what to
    /// journal.
    pub fn has_begun(
        &mut self,
        c: ConsumerKey,
        ranges: &[OffsetRange],
        attempt: Attempts,
    ) -> Vec<Tried> {
        let consumer = self.consumers.at_mut(c.0);
        let Some(g) = consumer.group else { return Vec::new() };
        let group = self.groups.at_mut(g.0);
        let (mut raised, mut begun) = (Vec::new(), Vec::new());
        for held in ranges.iter().flat_map(|range| consumer.leased.pieces_in(*range)) {
            begun.extend(consumer.begun.insert(held));
        }
        for new in begun {
            raised.extend(group.raise_attempts(new, attempt));
            consumer.spend(new, group);
        }
        if !raised.is_empty() {
            self.group_changed(g);
        }
        raised
    }

    /// What the consumer holds of `ranges` failed: it rests until the time that `pause` gives for
    /// it (asked once for neighbours with equally many attempts), or is dying if that was its last
    /// attempt. What was not begun is counted now. Returns what to journal.
    pub fn nack(&mut self, c: ConsumerKey, ranges: &[OffsetRange], pause: Pause<'_>) -> Vec<Tried> {
        self.begin(c, ranges);
        let consumer = self.consumers.at_mut(c.0);
        let Some(g) = consumer.group else { return Vec::new() };
        let group = self.groups.at_mut(g.0);
        let mut failed = Vec::new();
        for range in give_up(consumer, ranges) {
            failed.extend(group.fail(range, pause));
        }
        self.retime(g);
        self.group_changed(g);
        failed
    }

    /// What the consumer holds of `ranges` is dying at once, and after a restart as well; returns
    /// what to journal. What was not begun is counted now.
    pub fn bury(&mut self, c: ConsumerKey, ranges: &[OffsetRange]) -> Vec<Tried> {
        self.begin(c, ranges);
        let consumer = self.consumers.at_mut(c.0);
        let Some(g) = consumer.group else { return Vec::new() };
        let group = self.groups.at_mut(g.0);
        let mut buried = Vec::new();
        for range in give_up(consumer, ranges) {
            group.leased -= range.span();
            group.dying.cover(range);
            for (piece, attempts) in group.attempts.pieces_in(range).collect::<Vec<_>>() {
                let attempts = attempts.buried();
                group.attempts.set(piece, attempts);
                buried.push(Tried { range: piece, attempts, ready_at: None });
            }
        }
        self.group_changed(g);
        buried
    }

    /// How often a message of the group was handed over, if it is not settled.
    #[must_use]
    pub fn attempts(&self, g: GroupKey, offset: Offset) -> Attempts {
        self.group(g).attempts.at(offset).unwrap_or_default().made()
    }
}
