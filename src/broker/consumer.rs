//! Consumers: who receives, with which credit, and what each holds.
//!
//! A consumer is one channel of one connection; the broker does not know which. When the
//! connection ends, what its consumers hold is ready again at once.

use crate::limits;
use crate::units::{Offset, OffsetRange};

use super::line::Ticket;
use super::turn::Turn;
use super::{Broker, ConsumerKey, GroupKey, Mode, QueueKey, RangeSet, Refusal};

/// One consumer.
#[derive(Clone, Debug)]
pub(super) struct Consumer {
    pub(super) queue: QueueKey,
    /// Always there for one that takes.
    pub(super) group: Option<GroupKey>,
    pub(super) mode: Mode,
    /// It is offered only messages below.
    pub(super) until: Option<Offset>,
    /// The next offset that a peek looks at; stays 0 for one that takes.
    pub(super) cursor: Offset,
    /// What it holds.
    pub(super) leased: RangeSet,
    /// How many messages may have been delivered to it since it was made.
    pub(super) credit: u64,
    /// How many have been.
    pub(super) delivered: u64,
    pub(super) turn: Turn,
    /// The message because of which it has not come to its end; see `horizon`.
    pub(super) watched: Option<Offset>,
    /// Whether it has come to its end.
    pub(super) ended: bool,
    /// Its place in the line of outputs, while it has to be told of its end.
    pub(super) end_work: Option<Ticket>,
}

impl Consumer {
    /// How many more messages may be delivered to it.
    pub(super) fn remaining(&self) -> u64 {
        self.credit.saturating_sub(self.delivered)
    }

    /// The offsets that it can be offered.
    pub(super) fn scope(&self) -> OffsetRange {
        OffsetRange::new(self.cursor, self.until.unwrap_or(Offset(u64::MAX)).max(self.cursor))
    }
}

impl Broker {
    /// Adds a consumer, without credit yet. One that takes needs a group; one that peeks needs an
    /// `until`, and without a group it sees everything that is not gone.
    ///
    /// `holding` is what the receiver held before the server was started again. It keeps what of
    /// it is ready: that is leased to it, counts as delivered, and is returned (sorted, merged).
    /// The rest has been settled or has gone to another. One that peeks keeps nothing.
    pub fn add_consumer(
        &mut self,
        q: QueueKey,
        g: Option<GroupKey>,
        mode: Mode,
        until: Option<Offset>,
        holding: &[OffsetRange],
    ) -> (ConsumerKey, Vec<OffsetRange>) {
        match mode {
            Mode::Take => assert!(g.is_some(), "a consumer that takes needs a group"),
            Mode::Peek => assert!(until.is_some(), "a consumer that peeks needs an end"),
        }
        let queue_of_group = g.map_or(q, |g| self.group(g).queue);
        assert!(queue_of_group == q, "the group is not one of the queue");
        self.queue(q);
        let c = ConsumerKey(self.consumers.insert(Consumer {
            queue: q,
            group: g,
            mode,
            until,
            cursor: Offset(0),
            leased: RangeSet::new(),
            credit: 0,
            delivered: 0,
            turn: Turn::Idle,
            watched: None,
            ended: false,
            end_work: None,
        }));
        let kept = match (mode, g) {
            (Mode::Take, Some(g)) => {
                self.group_mut(g).consumers += 1;
                self.resume(c, g, holding)
            }
            _ => Vec::new(),
        };
        if until.is_some() {
            self.watch(c);
        }
        (c, kept)
    }

    /// Leases to `c` what of `holding` is ready.
    fn resume(&mut self, c: ConsumerKey, g: GroupKey, holding: &[OffsetRange]) -> Vec<OffsetRange> {
        let group = self.groups.at_mut(g.0);
        let mut kept = RangeSet::new();
        for held in holding {
            for part in group.ready.pieces_in(*held).collect::<Vec<_>>() {
                group.lease(part);
                kept.cover(part);
            }
        }
        let ranges: Vec<OffsetRange> = kept.iter().collect();
        let consumer = self.consumer_mut(c);
        consumer.delivered = kept.span();
        consumer.leased = kept;
        for &range in &ranges {
            self.recheck_group(g, range);
        }
        self.group_changed(g);
        ranges
    }

    /// How many messages may have been delivered to the consumer since it was made, in all, what
    /// it kept from before a restart included. The newest word counts, also when it is less. No
    /// more than [`limits::CREDIT_MAX`] beyond what was delivered counts: what one consumer holds,
    /// and with it the pieces that its acks can make, is bounded.
    pub fn credit(&mut self, c: ConsumerKey, total: u64) {
        let consumer = self.consumer_mut(c);
        consumer.credit = total.min(consumer.delivered.saturating_add(limits::CREDIT_MAX));
        if consumer.remaining() == 0 {
            self.leave_turn(c);
        } else {
            self.join_line(c);
        }
    }

    /// Removes a consumer; what it holds is ready again at once.
    pub fn remove_consumer(&mut self, c: ConsumerKey) {
        self.leave_turn(c);
        self.unwatch(c);
        let consumer = self.consumers.remove(c.0);
        self.cancel(consumer.end_work);
        if let (Mode::Take, Some(g)) = (consumer.mode, consumer.group) {
            let group = self.group_mut(g);
            group.consumers -= 1;
            consumer.leased.iter().for_each(|range| group.put_back(range));
            self.group_changed(g);
        }
    }

    /// The consumer's group; none for one that peeks without.
    #[must_use]
    pub fn group_of(&self, c: ConsumerKey) -> Option<GroupKey> {
        self.consumer(c).group
    }

    /// The consumer's queue.
    #[must_use]
    pub fn queue_of(&self, c: ConsumerKey) -> QueueKey {
        self.consumer(c).queue
    }

    /// What the consumer holds, lowest first.
    #[must_use]
    pub fn held(&self, c: ConsumerKey) -> &RangeSet {
        &self.consumer(c).leased
    }

    /// Whether the consumer holds all of `ranges`; for callers that must say so before they do
    /// something that [`Broker::ack`] or [`Broker::release`] would ignore.
    ///
    /// # Errors
    /// [`Refusal::NotHeld`] with the first part that it does not hold.
    pub fn check_held(&self, c: ConsumerKey, ranges: &[OffsetRange]) -> Result<(), Refusal> {
        let leased = &self.consumer(c).leased;
        match ranges.iter().find_map(|range| leased.first_gap_in(*range)) {
            Some(range) => Err(Refusal::NotHeld { range }),
            None => Ok(()),
        }
    }

    /// Whether more is ready for the consumer than its remaining credit admits: "more is
    /// waiting", by which a receiver decides to give more credit. O(1) for one that takes all;
    /// with an `until` it walks the ready ranges above it, for a peek those that its credit
    /// admits.
    #[must_use]
    pub fn is_behind(&self, c: ConsumerKey) -> bool {
        let consumer = self.consumer(c);
        if consumer.ended {
            return false;
        }
        match (consumer.mode, consumer.group) {
            (Mode::Take, Some(g)) => {
                let group = self.group(g);
                let limit = consumer.scope().end.min(group.fence());
                let beyond = OffsetRange::new(limit, Offset(u64::MAX));
                let ready = group.ready.span() - group.ready.span_in(beyond);
                ready > consumer.remaining()
            }
            _ => self.peek_is_behind(consumer),
        }
    }

    fn peek_is_behind(&self, consumer: &Consumer) -> bool {
        let OffsetRange { mut start, end } = consumer.scope();
        let mut room = consumer.remaining();
        while let Some(next) = self.next_for_peek(consumer, OffsetRange::new(start, end)) {
            if next.span() > room {
                return true;
            }
            room -= next.span();
            start = next.end;
        }
        false
    }

    pub(super) fn consumers_where(&self, is: impl Fn(&Consumer) -> bool) -> Vec<ConsumerKey> {
        self.consumers.iter().filter(|(_, c)| is(c)).map(|(key, _)| ConsumerKey(key)).collect()
    }
}
