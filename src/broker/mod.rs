//! The broker: which message goes to whom, and what becomes of it. A pure state machine.
//!
//! It knows queues, groups, consumers and ranges of offsets. It has no clock, no files, no
//! sockets, no randomness, and never sees a byte of a message; so a step of it can be repeated,
//! simulated and checked against a model. The server's event loop calls it and does what it says.
//!
//! # A message in a group
//!
//! Below a queue's visible end, each offset that is not a gap is, for each group, exactly one of
//!
//! ```text
//!              offer, take                 ack
//!   ┌───────┐ ───────────────► ┌────────┐ ──────► ┌─────────┐
//!   │ ready │                  │ leased │         │ settled │
//!   └───────┘ ◄─────────────── └────────┘         └─────────┘
//!     ▲ │ │    release, hang-up    │ │                 ▲ ▲
//!     │ │ └────────────────────────┼─┼─────────────────┘ │ moved
//!     │ │     purge, expire, drop  │ │  at the limit  ┌───────┐
//!     │ └──────────────────────────┼─┴──────────────► │ dying │
//!     │       kill                 │ nack             └───────┘
//!     │   its time has come        ▼
//!     │                       ┌─────────┐
//!     └────────────────────── │ resting │
//!                             └─────────┘
//! ```
//!
//! *Leased* is either to a consumer, which holds it as long as it is there, or under a number and
//! a deadline, beyond the consumer: then it is settled by its receipt. A message that was handed
//! over so often as the queue's delivery limit says does not become ready again: it is *dying*,
//! and waits for the server to move it to where dead letters go.
//!
//! Gaps (offsets that never were given to a message, as they skip after a reboot) count as
//! settled in every group: so floors move across them, segments that end in one can go, and a
//! ready or leased range never has a gap inside: its span is its number of messages.
//!
//! # How the event loop uses it
//!
//! New messages are told with [`Broker::extend`] once they are visible, credit with
//! [`Broker::credit`]. [`Broker::next_output`] then says who may be served. For a consumer that is
//! [`Output::Ready`], as soon as its connection can be written to: [`Broker::offer`] → find the
//! head of that range in the log → [`Broker::take`] what was really sent; and again, until there
//! is no offer. After that the consumer is told anew when there is something for it.
//!
//! # Fairness
//!
//! Consumers of a group that have credit wait in a line. A [`Output::Ready`] calls the first, its
//! [`Broker::take`] ends its turn, and it joins at the back if it still has credit; only a
//! consumer that is alone keeps its turn. A consumer that was called and cannot be written to
//! holds up nobody: the others are called as well, as long as anything is ready.
//!
//! # Map
//!
//! - [`ranges`]: [`RangeSet`], what everything here is kept in
//! - `queue`: queues, what is gone from them, purge, quiet
//! - `group`: groups, their settled and ready messages, the bound on holes
//! - `consumer`: consumers, their credit and leases
//! - `delivery`: offer, take, ack, release
//! - `attempts`: begin, nack; `resting`: the pause after it, timers; `dying`: what comes after the
//!   last attempt, and what expires
//! - `leases`: leases with receipts
//! - `exclusive`: receivers of which only one at a time gets anything
//! - `retention`: what is dropped to make room, or for its age
//! - `turn`: whose turn it is, the outputs
//! - `horizon`: when a consumer with an `until` has come to its end
//! - `slots`, `line`: a table with keys that go stale, a line that can be left
//! - `range_map`, `timed`: what is known of ranges, and when it runs out
//!
//! # Cost
//!
//! One producer and one consumer in order: a few ordered-map operations on one or two entries per
//! step; what was never tried is not looked up anywhere. In general O(log n) in holes, consumers and groups, times the ranges of the call itself.
//! [`Broker::extend`] looks at each group of its queue, as every group gets the message.
//! Whatever walks more says so.
//!
//! # Programmer errors
//!
//! A stale key, a range that runs backwards, or a take of what was not offered is an error in the
//! caller, and panics with a sentence. What peers say (ranges to ack, to release, that they hold)
//! never does: what is not theirs is ignored.

mod attempts;
mod consumer;
mod delivery;
mod dying;
mod exclusive;
mod group;
mod horizon;
mod leases;
mod line;
mod queue;
mod range_map;
pub mod ranges;
mod resting;
mod retention;
mod slots;
mod timed;
mod turn;

#[cfg(test)]
mod claims;
#[cfg(test)]
mod model;

use std::collections::BTreeSet;

use crate::limits;
use crate::units::{Attempts, Count, LeaseNumber, Monotonic, Name, Offset, OffsetRange, Tally};

pub use attempts::Pause;
use consumer::Consumer;
pub use consumer::Kind;
use group::{Bounds, Group};
use line::Line;
use queue::Queue;
pub use ranges::RangeSet;
pub use retention::Dropped;
use slots::{Key, Slots};
use turn::Work;

/// A queue in the broker. Goes stale when the queue is removed, and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct QueueKey(Key);

/// A group of a queue. Goes stale with the group or its queue, and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct GroupKey(Key);

/// A consumer. Goes stale with the consumer, its group or its queue, and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ConsumerKey(Key);

/// What a journal keeps of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupState {
    /// What is settled, the floor as its first range; gaps are part of it.
    pub settled: Vec<OffsetRange>,
    /// Messages below may have been delivered before.
    pub handed: Offset,
    /// What was handed over and is not settled.
    pub tried: Vec<Tried>,
    /// What is leased beyond a consumer.
    pub leases: Vec<Lease>,
    /// How often an exclusive consumer has got its turn.
    pub epoch: u64,
    /// How what is settled came to be so, as far as that was counted.
    pub tally: Tally,
}

/// Messages that were handed over and are not settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tried {
    /// Which.
    pub range: OffsetRange,
    /// How often each of them was.
    pub attempts: Attempts,
    /// When they are ready again, if they failed and rest.
    pub ready_at: Option<Monotonic>,
}

/// Messages that are leased beyond the consumer that they were delivered to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Which.
    pub range: OffsetRange,
    /// The number that their receipts name.
    pub number: LeaseNumber,
    /// When they are ready again.
    pub deadline: Monotonic,
}

/// What a consumer does with the messages that it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Leases them, in competition with the other consumers of its group.
    Take,
    /// Only looks: each message that is ready when it comes to it, once, in order.
    Peek,
}

/// What the broker has to say to the event loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// It is this consumer's turn: [`Broker::offer`] probably has something for it.
    Ready {
        /// Who.
        consumer: ConsumerKey,
    },
    /// There is nothing ready below this consumer's `until`; it gets no more offers. Said once.
    End {
        /// Who.
        consumer: ConsumerKey,
    },
    /// Nothing of this queue is ready, leased, resting or dying any more; said anew after each
    /// time it was not so.
    Quiet {
        /// Which.
        queue: QueueKey,
    },
    /// There are messages in [`Broker::dying`] that were not there before.
    Dying {
        /// Of which group.
        group: GroupKey,
    },
    /// It is this exclusive consumer's turn to hold its group; it is offered nothing before
    /// [`Broker::begin_tenure`].
    Holder {
        /// Who.
        consumer: ConsumerKey,
        /// The group's new epoch.
        epoch: u64,
    },
}

/// What a consumer may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The messages: no gap is inside, so its span is their number.
    pub range: OffsetRange,
    /// Whether they may have been delivered to someone in this group before. All or none of them.
    pub redelivered: bool,
    /// How often each of them was handed over before, plus one.
    pub attempt: Attempts,
}

/// A group in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Messages that are ready, those that are held back while the group is stuck included.
    pub ready: Count,
    /// Messages that are leased.
    pub leased: Count,
    /// Messages that failed and rest.
    pub resting: Count,
    /// Messages that wait to be moved away.
    pub dying: Count,
    /// Settled ranges above the floor.
    pub settled_ranges: usize,
    /// Whether there are more of them than [`limits::SETTLED_RANGES_PER_GROUP_MAX`], or more
    /// ranges of what was tried than [`limits::TRIED_RANGES_PER_GROUP_MAX`], so that the group
    /// gets nothing new until some are settled.
    pub stuck: bool,
    /// The lowest message that is not settled.
    pub oldest: Option<Offset>,
    /// Consumers that take; not those that peek.
    pub consumers: usize,
    /// Everything below is settled.
    pub floor: Offset,
    /// Messages below may have been delivered before.
    pub handed: Offset,
}

impl Counts {
    /// Messages that are not settled.
    #[must_use]
    pub fn unsettled(&self) -> Count {
        Count(self.ready.0 + self.leased.0 + self.resting.0 + self.dying.0)
    }
}

/// What the broker does not do, for a reason that a user can understand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// [`limits::GROUPS_PER_QUEUE_MAX`] groups are there.
    #[error("the queue already has {} groups, the most it can have", limits::GROUPS_PER_QUEUE_MAX)]
    TooManyGroups,
    /// The queue has a group of this name.
    #[error("the queue already has a group {name}")]
    GroupExists {
        /// Which.
        name: Name,
    },
    /// Consumers take from the group.
    #[error("group {name} has receivers")]
    HasReceivers {
        /// Which.
        name: Name,
    },
    /// The message was settled, or has been delivered anew since, or its lease is over.
    #[error("the receipt is stale: the message was settled, or is not under this lease any more")]
    StaleReceipt,
    /// The consumer does not hold all of this.
    #[error("messages {range} are not held by this receiver")]
    NotHeld {
        /// The first part that it does not hold.
        range: OffsetRange,
    },
}

/// All queues with their groups and consumers.
#[derive(Clone, Debug)]
pub struct Broker {
    queues: Slots<Queue>,
    groups: Slots<Group>,
    consumers: Slots<Consumer>,
    /// What [`Broker::next_output`] has to look at. At most one entry for each group, consumer
    /// and queue; each knows its ticket, and leaves the line when it goes.
    work: Line<Work>,
    /// Each group in which a pause or a lease runs out, under the time when the first does.
    timers: BTreeSet<(Monotonic, GroupKey)>,
    /// See [`Broker::take_lost`].
    lost: Vec<(GroupKey, OffsetRange)>,
    bounds: Bounds,
}

impl Broker {
    /// A broker without queues.
    #[must_use]
    pub fn new() -> Broker {
        Broker::with_bounds(Bounds::REAL)
    }

    fn with_bounds(bounds: Bounds) -> Broker {
        Broker {
            queues: Slots::new("queue"),
            groups: Slots::new("group"),
            consumers: Slots::new("consumer"),
            work: Line::new(),
            timers: BTreeSet::new(),
            lost: Vec::new(),
            bounds,
        }
    }

    fn queue(&self, q: QueueKey) -> &Queue {
        self.queues.at(q.0)
    }

    fn queue_mut(&mut self, q: QueueKey) -> &mut Queue {
        self.queues.at_mut(q.0)
    }

    fn group(&self, g: GroupKey) -> &Group {
        self.groups.at(g.0)
    }

    fn group_mut(&mut self, g: GroupKey) -> &mut Group {
        self.groups.at_mut(g.0)
    }

    fn consumer(&self, c: ConsumerKey) -> &Consumer {
        self.consumers.at(c.0)
    }

    fn consumer_mut(&mut self, c: ConsumerKey) -> &mut Consumer {
        self.consumers.at_mut(c.0)
    }
}

impl Default for Broker {
    fn default() -> Broker {
        Broker::new()
    }
}
