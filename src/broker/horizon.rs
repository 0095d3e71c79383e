//! Horizons: when a consumer with an `until` has come to its end.
//!
//! Such a consumer is at its end when nothing in its scope is ready. To know that without asking
//! each of them after each delivery, each stands in an ordered set under one message that keeps
//! it going: the highest ready one in its scope. As delivery takes the lowest first, that one
//! lasts long; only when it stops being ready is another looked for.

use std::collections::BTreeSet;

use crate::units::{Offset, OffsetRange};

use super::slots::Key;
use super::turn::Work;
use super::{Broker, ConsumerKey, GroupKey, QueueKey, RangeSet};

/// Consumers under the messages that keep them going.
pub(super) type Watch = BTreeSet<(Offset, ConsumerKey)>;

/// One consumer whose message is in `range`.
fn first_watched_in(watch: &Watch, range: OffsetRange) -> Option<ConsumerKey> {
    let lowest = ConsumerKey(Key::LOWEST);
    watch.range((range.start, lowest)..(range.end, lowest)).next().map(|(_, c)| *c)
}

/// The highest offset in `scope` that is in `set` and not in `without`.
fn last_without(set: &RangeSet, without: &RangeSet, scope: OffsetRange) -> Option<Offset> {
    let mut end = scope.end;
    loop {
        let part = set.last_in(OffsetRange::new(scope.start, end.max(scope.start)))?;
        match without.last_gap_in(part) {
            Some(gap) => return Some(Offset(gap.end.0 - 1)),
            // All of it is in one range of the other set: go on below that.
            None => end = without.last_in(OffsetRange::new(Offset(0), part.end))?.start,
        }
    }
}

impl Broker {
    /// Finds the message that keeps the consumer going; if there is none, it is at its end. An
    /// exclusive one comes to that in its turn only: see [`Broker::begin_tenure`].
    pub(super) fn watch(&mut self, c: ConsumerKey) {
        let consumer = self.consumer(c);
        if consumer.kind.exclusive && !self.is_in_tenure(c) {
            return;
        }
        let (q, g, scope) = (consumer.queue, consumer.group, consumer.scope());
        let last = match g {
            Some(g) => last_without(&self.group(g).ready, &consumer.spent, scope),
            None => self.last_present_in(q, scope),
        };
        match last {
            Some(message) => {
                self.consumer_mut(c).watched = Some(message);
                self.watch_of(q, g).insert((message, c));
            }
            None => self.end(c),
        }
    }

    pub(super) fn unwatch(&mut self, c: ConsumerKey) {
        let consumer = self.consumer_mut(c);
        let (q, g) = (consumer.queue, consumer.group);
        if let Some(message) = consumer.watched.take() {
            self.watch_of(q, g).remove(&(message, c));
        }
    }

    pub(super) fn rewatch(&mut self, c: ConsumerKey) {
        self.unwatch(c);
        self.watch(c);
    }

    fn watch_of(&mut self, q: QueueKey, g: Option<GroupKey>) -> &mut Watch {
        match g {
            Some(g) => &mut self.group_mut(g).watch,
            None => &mut self.queue_mut(q).watch,
        }
    }

    fn end(&mut self, c: ConsumerKey) {
        self.leave_turn(c);
        let ticket = self.work.join(Work::End(c));
        let consumer = self.consumer_mut(c);
        consumer.ended = true;
        consumer.end_work = Some(ticket);
    }

    /// Anything in the group may not be ready any more, or be so now. Walks its watchers.
    pub(super) fn rewatch_group(&mut self, g: GroupKey) {
        let watchers: Vec<ConsumerKey> = self.group(g).watch.iter().map(|(_, c)| *c).collect();
        for c in watchers {
            self.rewatch(c);
        }
    }

    /// `range` of the group is no longer ready. Each consumer that is found leaves `range`: its
    /// next message is a ready one.
    pub(super) fn recheck_group(&mut self, g: GroupKey, range: OffsetRange) {
        while let Some(c) = first_watched_in(&self.group(g).watch, range) {
            self.rewatch(c);
        }
    }

    /// `range` of the queue may be gone. Those whose message is not stay where they are.
    pub(super) fn recheck_queue(&mut self, q: QueueKey, range: OffsetRange) {
        let lowest = ConsumerKey(Key::LOWEST);
        let span = (range.start, lowest)..(range.end, lowest);
        if self.queue(q).watch.is_empty() {
            return;
        }
        let found: Vec<ConsumerKey> = self.queue(q).watch.range(span).map(|(_, c)| *c).collect();
        for c in found {
            self.rewatch(c);
        }
    }
}
