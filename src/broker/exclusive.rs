//! Exclusive consumers: of those of a group, one at a time holds it, and gets all.
//!
//! The others wait in a line; the next takes over when the holder goes. While there are any, a
//! consumer that is not exclusive gets nothing, and nobody becomes the holder before what others
//! hold has been settled or given back: so whoever has a newer epoch is alone. A new holder is
//! offered nothing before [`Broker::begin_tenure`], as its epoch has to be stored first.

use super::line::{Line, Ticket};
use super::turn::Work;
use super::{Broker, ConsumerKey, GroupKey, Output};

/// The exclusive consumers of one group.
#[derive(Clone, Debug)]
pub(super) struct Exclusives {
    /// How often there was a new holder.
    pub(super) epoch: u64,
    /// How many there are, the holder included.
    count: usize,
    waiting: Line<ConsumerKey>,
    holder: Option<Holder>,
}

/// Who holds the group.
#[derive(Clone, Copy, Debug)]
struct Holder {
    consumer: ConsumerKey,
    /// Whether it may be offered anything.
    in_tenure: bool,
    /// Its place in the line of outputs while it has to be told.
    work: Option<Ticket>,
}

impl Exclusives {
    pub(super) fn new() -> Exclusives {
        Exclusives { epoch: 0, count: 0, waiting: Line::new(), holder: None }
    }

    /// Whether there are any.
    pub(super) fn are_there(&self) -> bool {
        self.count > 0
    }

    /// Whether the consumer holds the group, or nobody does exclusively.
    pub(super) fn admits(&self, c: ConsumerKey) -> bool {
        self.count == 0 || self.holder.is_some_and(|holder| holder.consumer == c)
    }

    /// The only consumer of the group that may be offered anything, if there is one.
    pub(super) fn in_tenure(&self) -> Option<ConsumerKey> {
        self.holder.filter(|holder| holder.in_tenure).map(|holder| holder.consumer)
    }
}

impl Broker {
    /// A new exclusive consumer waits for its turn.
    pub(super) fn queue_up(&mut self, c: ConsumerKey, g: GroupKey) {
        let ticket = {
            let exclusives = &mut self.group_mut(g).exclusives;
            exclusives.count += 1;
            exclusives.waiting.join(c)
        };
        self.consumer_mut(c).waits = Some(ticket);
    }

    /// An exclusive consumer goes; its key is stale.
    pub(super) fn leave_exclusives(&mut self, c: ConsumerKey, g: GroupKey, waits: Option<Ticket>) {
        let exclusives = &mut self.group_mut(g).exclusives;
        exclusives.count -= 1;
        if let Some(ticket) = waits {
            exclusives.waiting.leave(ticket);
        }
        if let Some(holder) = exclusives.holder.take_if(|holder| holder.consumer == c) {
            self.cancel(holder.work);
        }
    }

    /// Makes the next in the line the holder, if there is none and nobody holds a message.
    pub(super) fn appoint(&mut self, g: GroupKey) {
        let group = self.groups.at_mut(g.0);
        if group.exclusives.waiting.is_empty()
            || group.exclusives.holder.is_some()
            || group.leased > group.leases.ranges().span()
        {
            return;
        }
        let c = group.exclusives.waiting.call().expect("somebody waits");
        group.exclusives.epoch += 1;
        let work = Some(self.work.join(Work::Holder(g)));
        group.exclusives.holder = Some(Holder { consumer: c, in_tenure: false, work });
        self.consumer_mut(c).waits = None;
    }

    /// Whether an exclusive consumer has to wait for others: they have its group, or hold messages
    /// of it.
    #[must_use]
    pub fn waits_for_others(&self, c: ConsumerKey) -> bool {
        self.consumer(c).waits.is_some()
    }

    /// Whether it is this consumer's turn.
    pub(super) fn is_in_tenure(&self, c: ConsumerKey) -> bool {
        self.consumer(c).group.is_some_and(|g| self.group(g).exclusives.in_tenure() == Some(c))
    }

    pub(super) fn holder_told(&mut self, g: GroupKey) -> Output {
        let exclusives = &mut self.group_mut(g).exclusives;
        let holder = exclusives.holder.as_mut().expect("its work goes with it");
        holder.work = None;
        Output::Holder { consumer: holder.consumer, epoch: exclusives.epoch }
    }

    /// The epoch of the holder is stored: it gets messages from now on. Nothing happens if it is
    /// not the holder (any more).
    ///
    /// With an `until`, it can come to its end from now on, and not before: what another holds
    /// until its own turn is over is not ready, and yet is for this one.
    pub fn begin_tenure(&mut self, c: ConsumerKey) {
        let Some(g) = self.consumer(c).group else { return };
        let holder = self.group_mut(g).exclusives.holder.as_mut();
        let Some(holder) = holder.filter(|holder| holder.consumer == c && !holder.in_tenure) else {
            return;
        };
        holder.in_tenure = true;
        if self.consumer(c).kind.until.is_some() {
            self.watch(c);
        }
        self.group_changed(g);
    }
}
