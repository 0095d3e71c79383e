//! Consumers: who receives, with which credit, and what each holds.
//!
//! A consumer is one channel of one connection; the broker does not know which. When the
//! connection ends, what its consumers hold is ready again at once.

use crate::limits;
use crate::units::{Offset, OffsetRange};

use super::group::Group;
use super::line::Ticket;
use super::turn::Turn;
use super::{Broker, ConsumerKey, GroupKey, Mode, QueueKey, RangeSet, Refusal};

/// What a consumer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// What it does with messages.
    pub mode: Mode,
    /// It is offered only messages below; one that takes is told when none is left. A message
    /// whose try it began is not offered to it again.
    pub until: Option<Offset>,
    /// Of such consumers of a group, one at a time gets anything, and no other while there are
    /// any.
    pub exclusive: bool,
    /// It takes by [`Broker::take_lease`].
    pub leases: bool,
}

impl Kind {
    /// One that takes whatever comes.
    pub const TAKE: Kind = Kind { mode: Mode::Take, until: None, exclusive: false, leases: false };

    /// One that looks at what lies below `until`.
    #[must_use]
    pub fn peek(until: Offset) -> Kind {
        Kind { mode: Mode::Peek, until: Some(until), ..Kind::TAKE }
    }
}

/// One consumer.
#[derive(Clone, Debug)]
pub(super) struct Consumer {
    pub(super) queue: QueueKey,
    /// Always there for one that takes.
    pub(super) group: Option<GroupKey>,
    pub(super) kind: Kind,
    /// The next offset that a peek looks at; stays 0 for one that takes.
    pub(super) cursor: Offset,
    /// What it holds.
    pub(super) leased: RangeSet,
    /// What of that it has begun to try, so that the attempt is counted.
    pub(super) begun: RangeSet,
    /// With an `until`: what it has tried, and is not offered again. What others settled since
    /// may still stand in it.
    pub(super) spent: RangeSet,
    /// Ranges in `spent` at which it is cleaned up next.
    pub(super) spent_ranges_max: usize,
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
    /// Its place in the line of the exclusive ones of its group, while another holds that.
    pub(super) waits: Option<Ticket>,
}

/// Ranges that a consumer remembers to have tried before what is settled is taken out.
const SPENT_RANGES: usize = 64;

impl Consumer {
    /// How many more messages may be delivered to it.
    pub(super) fn remaining(&self) -> u64 {
        self.credit.saturating_sub(self.delivered)
    }

    /// The offsets that it can be offered.
    pub(super) fn scope(&self) -> OffsetRange {
        OffsetRange::new(self.cursor, self.kind.until.unwrap_or(Offset(u64::MAX)).max(self.cursor))
    }
}

impl Consumer {
    /// It tries `range`: with an `until` it does so once.
    pub(super) fn spend(&mut self, range: OffsetRange, group: &Group) {
        if self.kind.until.is_none() {
            return;
        }
        self.spent.cover(range);
        if self.spent.len() > self.spent_ranges_max {
            // What is not settled was tried, so this is bounded as that is.
            let tried = group.attempts.iter();
            self.spent = tried.flat_map(|(range, _)| self.spent.pieces_in(range)).collect();
            self.spent_ranges_max = 2 * self.spent.len() + SPENT_RANGES;
        }
    }
}

impl Broker {
    /// Adds a consumer, without credit yet. One that takes needs a group; one that peeks needs an
    /// `until`, and without a group it sees everything that is not gone.
    ///
    /// `holding` is what the receiver held before the server was started again. It keeps what of
    /// it is ready, or rests after its last attempt only so that its holder can come back: that is
    /// leased to it, counts as delivered, and as begun if it was ever tried, and is returned
    /// (sorted, merged). The rest has been settled or has gone to another. One that peeks, leases
    /// or has to wait for its turn keeps nothing.
    pub fn add_consumer(
        &mut self,
        q: QueueKey,
        g: Option<GroupKey>,
        kind: Kind,
        holding: &[OffsetRange],
    ) -> (ConsumerKey, Vec<OffsetRange>) {
        match kind.mode {
            Mode::Take => assert!(g.is_some(), "a consumer that takes needs a group"),
            Mode::Peek => assert!(kind.until.is_some(), "a consumer that peeks needs an end"),
        }
        let queue_of_group = g.map_or(q, |g| self.group(g).queue);
        assert!(queue_of_group == q, "the group is not one of the queue");
        self.queue(q);
        let c = ConsumerKey(self.consumers.insert(Consumer {
            queue: q,
            group: g,
            kind,
            cursor: Offset(0),
            leased: RangeSet::new(),
            begun: RangeSet::new(),
            spent: RangeSet::new(),
            spent_ranges_max: SPENT_RANGES,
            credit: 0,
            delivered: 0,
            turn: Turn::Idle,
            watched: None,
            ended: false,
            end_work: None,
            waits: None,
        }));
        let mut kept = Vec::new();
        if let (Mode::Take, Some(g)) = (kind.mode, g) {
            self.group_mut(g).consumers += 1;
            if kind.exclusive {
                self.queue_up(c, g);
                self.appoint(g);
            }
            if !kind.leases && self.group(g).exclusives.admits(c) {
                kept = self.resume(c, g, holding);
            }
            self.group_changed(g);
        }
        if kind.until.is_some() {
            self.watch(c);
        }
        (c, kept)
    }

    /// Leases to `c` what of `holding` is still to be had.
    fn resume(&mut self, c: ConsumerKey, g: GroupKey, holding: &[OffsetRange]) -> Vec<OffsetRange> {
        let group = self.groups.at_mut(g.0);
        let mut kept = RangeSet::new();
        for &held in holding {
            for part in group.ready.pieces_in(held).collect::<Vec<_>>() {
                group.lease(part);
                kept.cover(part);
            }
            for part in group.unrest_exhausted(held) {
                kept.cover(part);
            }
        }
        let ranges: Vec<OffsetRange> = kept.iter().collect();
        let consumer = self.consumers.at_mut(c.0);
        consumer.delivered = kept.span();
        consumer.leased = kept;
        for &range in &ranges {
            self.recheck_group(g, range);
        }
        self.retime(g);
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
        if let (Mode::Take, Some(g)) = (consumer.kind.mode, consumer.group) {
            let group = self.group_mut(g);
            group.consumers -= 1;
            consumer.leased.iter().for_each(|range| group.put_back(range));
            if consumer.kind.exclusive {
                self.leave_exclusives(c, g, consumer.waits);
            }
            self.group_changed(g);
        }
    }

    /// The consumer's group; none for one that peeks without.
    #[must_use]
    pub fn group_of(&self, c: ConsumerKey) -> Option<GroupKey> {
        self.consumer(c).group
    }

    /// Whether the consumer is there; it may have gone with its queue or its group.
    #[must_use]
    pub fn has_consumer(&self, c: ConsumerKey) -> bool {
        self.consumers.contains(c.0)
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
    /// with an `until` it walks the ready ranges above it. For a peek it walks those that its
    /// credit admits, at most [`limits::PEEK_RANGES_MAX`]: behind so many holes everything counts
    /// as waiting. What it has spent counts as waiting.
    #[must_use]
    pub fn is_behind(&self, c: ConsumerKey) -> bool {
        let consumer = self.consumer(c);
        if consumer.ended {
            return false;
        }
        match (consumer.kind.mode, consumer.group) {
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
        let end = end.min(self.queue(consumer.queue).end);
        let mut room = consumer.remaining();
        for _ in 0..limits::PEEK_RANGES_MAX {
            let rest = OffsetRange::new(start, end);
            if rest.span() <= room {
                return false;
            }
            let Some(next) = self.next_for_peek(consumer, rest) else { return false };
            if next.span() > room {
                return true;
            }
            room -= next.span();
            start = next.end;
        }
        true
    }

    pub(super) fn consumers_where(&self, is: impl Fn(&Consumer) -> bool) -> Vec<ConsumerKey> {
        self.consumers.iter().filter(|(_, c)| is(c)).map(|(key, _)| ConsumerKey(key)).collect()
    }
}
