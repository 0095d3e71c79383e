//! Resting: messages that failed wait for their next attempt; and the timers of the broker.
//!
//! A group stands among the timers under the time at which its first pause or lease with a receipt
//! is over. The clock is the caller's: it asks for [`Broker::next_deadline`], and tells the time
//! with [`Broker::wake`].

use crate::units::{Monotonic, OffsetRange};

use super::group::Group;
use super::timed::Due;
use super::{Broker, GroupKey, QueueKey};

/// Until when a message rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest(pub(super) Monotonic);

impl Due for Rest {
    fn due(&self) -> Monotonic {
        self.0
    }
}

impl Group {
    /// Leases what of `range` rests although it has had its last attempt; returns what that was.
    pub(super) fn unrest_exhausted(&mut self, range: OffsetRange) -> Vec<OffsetRange> {
        if self.resting.is_empty() {
            return Vec::new();
        }
        let mut taken = Vec::new();
        for exhausted in self.exhausted_in(range) {
            let resting = self.resting.ranges().pieces_in(exhausted);
            taken.extend(resting.map(|(piece, _)| piece));
        }
        for piece in &taken {
            self.leased += self.resting.unset(*piece);
        }
        taken
    }

    fn next_due(&self) -> Option<Monotonic> {
        self.resting.next_due().into_iter().chain(self.leases.next_due()).min()
    }
}

impl Broker {
    /// When [`Broker::wake`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// It is `now`: pauses and leases that are over end. What was resting or leased is ready, or
    /// dying after its last attempt. Returns the queues in which anything was.
    pub fn wake(&mut self, now: Monotonic) -> Vec<QueueKey> {
        let mut woken = Vec::new();
        while let Some(&(due, g)) = self.timers.first()
            && due <= now
        {
            let group = self.groups.at_mut(g.0);
            for (range, _) in group.resting.take_due(now) {
                group.make_ready(range);
            }
            for (range, _) in group.leases.take_due(now) {
                group.put_back(range);
            }
            woken.push(group.queue);
            self.retime(g);
            self.group_changed(g);
        }
        woken
    }

    /// Puts the group in its place among the timers. To be called after each change of what rests
    /// or is leased with receipts.
    pub(super) fn retime(&mut self, g: GroupKey) {
        let group = self.groups.at_mut(g.0);
        let due = group.next_due();
        if due == group.timer {
            return;
        }
        if let Some(old) = std::mem::replace(&mut group.timer, due) {
            self.timers.remove(&(old, g));
        }
        if let Some(new) = due {
            self.timers.insert((new, g));
        }
    }
}
