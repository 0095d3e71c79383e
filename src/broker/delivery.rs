//! Delivery: a range is offered, taken, and then acked or released.
//!
//! An offer takes nothing, since only the caller knows how much of it the connection accepts.
//! Everything that changes where a message stands in its group happens here or in a purge.

use crate::planted::{self, Bug};
use crate::units::{Attempts, Ending, Offset, OffsetRange};

use super::consumer::Consumer;
use super::group::Group;
use super::{Broker, ConsumerKey, GroupKey, Mode, Offer, RangeSet};

impl Broker {
    /// The lowest range that is ready for the consumer: at most `max` messages, at most its
    /// remaining credit, without a gap inside, all or none of it redelivered, and all of it handed
    /// over equally often before. Takes nothing.
    ///
    /// None if there is nothing, or no credit, or its turn is over because others wanted theirs
    /// when it last took. In each case an [`Output::Ready`](super::Output::Ready) follows when
    /// that has changed, unless the consumer has come to its end.
    pub fn offer(&mut self, c: ConsumerKey, max: u64) -> Option<Offer> {
        assert!(max > 0, "an offer of no messages");
        let consumer = self.consumer(c);
        let turn_is_over = consumer.turn.is_over();
        let offer = self.find_offer(c, max).filter(|_| !turn_is_over);
        if offer.is_none() {
            self.miss_turn(c);
        }
        offer
    }

    fn find_offer(&self, c: ConsumerKey, max: u64) -> Option<Offer> {
        let consumer = self.consumer(c);
        let room = consumer.remaining().min(max);
        if consumer.ended || room == 0 {
            return None;
        }
        let group = consumer.group.map(|g| self.group(g));
        let found = match (consumer.kind.mode, group) {
            (Mode::Take, Some(group)) => self.first_for(c, consumer, group)?,
            _ => self.next_for_peek(consumer, consumer.scope())?,
        };
        let handed = group.map_or(Offset(0), |group| group.handed);
        let redelivered = found.start < handed;
        let mut end = Offset(found.end.0.min(found.start.0.saturating_add(room)));
        if redelivered {
            end = end.min(handed);
        }
        let mut range = OffsetRange::new(found.start, end);
        let attempt = group.map_or(Attempts(1), |group| group.next_attempt(&mut range));
        Some(Offer { range, redelivered, attempt })
    }

    /// The lowest range that a consumer of a group can take, whatever its credit.
    pub(super) fn first_for(
        &self,
        c: ConsumerKey,
        consumer: &Consumer,
        group: &Group,
    ) -> Option<OffsetRange> {
        if group.exclusives.are_there() && group.exclusives.in_tenure() != Some(c)
            || consumer.kind.leases && group.has_all_leases()
        {
            return None;
        }
        let lowest = group.lowest(consumer.kind.until)?;
        if consumer.spent.is_empty() {
            return Some(lowest);
        }
        let limit = consumer.scope().end.min(group.fence());
        first_without(&group.ready, &consumer.spent, OffsetRange::new(lowest.start, limit))
    }

    /// The lowest range in `scope` that a peek can see.
    pub(super) fn next_for_peek(
        &self,
        consumer: &Consumer,
        scope: OffsetRange,
    ) -> Option<OffsetRange> {
        match consumer.group {
            Some(g) => self.group(g).ready.first_in(scope),
            None => self.first_present_in(consumer.queue, scope),
        }
    }

    /// `range`, the head of the consumer's offer, was really sent: it is leased to it. For a peek
    /// the cursor moves behind it. Ends the consumer's turn if others wait. Not for a consumer
    /// that leases: see [`Broker::take_lease`].
    pub fn take(&mut self, c: ConsumerKey, range: OffsetRange) {
        self.check_take(c, range);
        let consumer = self.consumer_mut(c);
        assert!(!consumer.kind.leases, "a take without a lease");
        let (mode, group) = (consumer.kind.mode, consumer.group);
        consumer.delivered += range.span();
        match (mode, group) {
            (Mode::Take, Some(g)) => {
                consumer.leased.cover(range);
                self.group_mut(g).lease(range);
                if planted::is(Bug::PrefetchCounted) {
                    self.group_mut(g).count_attempt(range);
                }
                self.taken(c, g, range);
            }
            _ => self.pass(c, range.end),
        }
    }

    pub(super) fn check_take(&self, c: ConsumerKey, range: OffsetRange) {
        assert!(!range.is_empty(), "nothing was taken");
        let offer = self.find_offer(c, range.span()).map(|offer| offer.range);
        assert!(offer == Some(range), "{range} was taken, but the offer is {offer:?}");
    }

    pub(super) fn taken(&mut self, c: ConsumerKey, g: GroupKey, range: OffsetRange) {
        self.end_turn(c);
        self.recheck_group(g, range);
        self.group_changed(g);
    }

    /// A peek goes on at `to`: what lies before has been shown, or is nothing for it.
    pub fn pass(&mut self, c: ConsumerKey, to: Offset) {
        let consumer = self.consumer_mut(c);
        assert!(consumer.kind.mode == Mode::Peek && consumer.cursor <= to, "only a peek passes on");
        consumer.cursor = to;
        if consumer.watched.is_some_and(|watched| watched < to) {
            self.rewatch(c);
        }
        if self.consumer(c).remaining() == 0 {
            self.leave_turn(c);
        }
    }

    /// Settles what of `ranges` is leased to the consumer. The rest is ignored: a restart of the
    /// server gave it to another, or it was settled before. Returns what became settled, in the
    /// order of `ranges`, neighbours merged, for the journal.
    pub fn ack(&mut self, c: ConsumerKey, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
        let consumer = self.consumer_mut(c);
        let (q, g) = (consumer.queue, consumer.group);
        let settled = give_up(consumer, ranges);
        if let Some(g) = g
            && !settled.is_empty()
        {
            let group = self.group_mut(g);
            settled.iter().for_each(|range| group.settle(*range, Ending::Acked));
            self.group_changed(g);
            for range in &settled {
                self.recheck_queue(q, *range);
            }
        }
        settled
    }

    /// Makes what of `ranges` is leased to the consumer ready again, at once, in its old place;
    /// what has had its last attempt is dying. The rest is ignored.
    pub fn release(&mut self, c: ConsumerKey, ranges: &[OffsetRange]) {
        let consumer = self.consumer_mut(c);
        let g = consumer.group;
        let released = give_up(consumer, ranges);
        if let Some(g) = g
            && !released.is_empty()
        {
            let group = self.group_mut(g);
            released.iter().for_each(|range| group.put_back(*range));
            self.group_changed(g);
        }
    }
}

/// Ends the consumer's leases on `ranges`; returns what it had of them.
pub(super) fn give_up(consumer: &mut Consumer, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
    let mut parts = Vec::new();
    for &range in ranges {
        consumer.leased.remove_into(range, &mut parts);
        if !consumer.begun.is_empty() {
            consumer.begun.uncover(range);
        }
    }
    parts
}

/// The lowest part of `scope` that is in `set` and not in `without`.
fn first_without(set: &RangeSet, without: &RangeSet, scope: OffsetRange) -> Option<OffsetRange> {
    let mut start = scope.start;
    loop {
        let part = set.first_in(OffsetRange::new(start, scope.end.max(start)))?;
        if let Some(gap) = without.first_gap_in(part) {
            return Some(gap);
        }
        // All of it is in one range of the other set: go on behind that.
        start = without.first_in(OffsetRange::new(part.start, Offset(u64::MAX)))?.end;
    }
}
