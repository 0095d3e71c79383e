//! Delivery: a range is offered, taken, and then acked or released.
//!
//! An offer takes nothing, since only the caller knows how much of it the connection accepts.
//! Everything that changes where a message stands in its group happens here or in a purge.

use crate::units::{Offset, OffsetRange};

use super::consumer::Consumer;
use super::{Broker, ConsumerKey, Mode, Offer};

impl Broker {
    /// The lowest range that is ready for the consumer: at most `max` messages, at most its
    /// remaining credit, without a gap inside, and all or none of it redelivered. Takes nothing.
    ///
    /// None if there is nothing, or no credit, or its turn is over because others wanted theirs
    /// when it last took. In each case an [`Output::Ready`](super::Output::Ready) follows when
    /// that has changed, unless the consumer has come to its end.
    pub fn offer(&mut self, c: ConsumerKey, max: u64) -> Option<Offer> {
        assert!(max > 0, "an offer of no messages");
        let consumer = self.consumer(c);
        let turn_is_over = consumer.turn.is_over();
        let offer = self.find_offer(consumer, max).filter(|_| !turn_is_over);
        if offer.is_none() {
            self.miss_turn(c);
        }
        offer
    }

    fn find_offer(&self, consumer: &Consumer, max: u64) -> Option<Offer> {
        let room = consumer.remaining().min(max);
        if consumer.ended || room == 0 {
            return None;
        }
        let (found, handed) = match (consumer.mode, consumer.group) {
            (Mode::Take, Some(g)) => {
                let group = self.group(g);
                (group.lowest(consumer.until)?, group.handed)
            }
            (_, g) => {
                let handed = g.map_or(Offset(0), |g| self.group(g).handed);
                (self.next_for_peek(consumer, consumer.scope())?, handed)
            }
        };
        let redelivered = found.start < handed;
        let mut end = Offset(found.end.0.min(found.start.0.saturating_add(room)));
        if redelivered {
            end = end.min(handed);
        }
        Some(Offer { range: OffsetRange::new(found.start, end), redelivered })
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
    /// the cursor moves behind it. Ends the consumer's turn if others wait.
    pub fn take(&mut self, c: ConsumerKey, range: OffsetRange) {
        assert!(!range.is_empty(), "nothing was taken");
        let consumer = self.consumer(c);
        let offer = self.find_offer(consumer, range.span()).map(|offer| offer.range);
        assert!(offer == Some(range), "{range} was taken, but the offer is {offer:?}");
        let (mode, group) = (consumer.mode, consumer.group);
        let consumer = self.consumer_mut(c);
        consumer.delivered += range.span();
        match (mode, group) {
            (Mode::Take, Some(g)) => {
                consumer.leased.cover(range);
                self.group_mut(g).lease(range);
                self.end_turn(c);
                self.recheck_group(g, range);
                self.group_changed(g);
            }
            _ => {
                consumer.cursor = range.end;
                let at_end = consumer.watched.is_some_and(|watched| watched < range.end);
                if at_end {
                    self.rewatch(c);
                }
                if self.consumer(c).remaining() == 0 {
                    self.leave_turn(c);
                }
            }
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
            settled.iter().for_each(|range| group.settle(*range));
            self.group_changed(g);
            for range in &settled {
                self.recheck_queue(q, *range);
            }
        }
        settled
    }

    /// Makes what of `ranges` is leased to the consumer ready again, at once, in its old place.
    /// The rest is ignored.
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
fn give_up(consumer: &mut Consumer, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
    let mut parts = Vec::new();
    for &range in ranges {
        consumer.leased.remove_into(range, &mut parts);
    }
    parts
}
