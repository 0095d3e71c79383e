//! Leases with receipts: messages that are leased beyond the consumer that they went to.
//!
//! Such a lease belongs to the group. It has a number, which its receipts name, and a deadline; it
//! ends by a receipt or by its deadline, never by a hang-up. A number that is not the one under
//! which a message is leased now is stale, and changes nothing.

use crate::units::{Ending, LeaseNumber, Monotonic, Offset, OffsetRange};

use super::attempts::Pause;
use super::timed::Due;
use super::{Broker, ConsumerKey, GroupKey, Lease, Refusal, Tried};

/// Under what a message is leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leased {
    pub(super) number: LeaseNumber,
    pub(super) deadline: Monotonic,
}

impl Leased {
    pub(super) fn of(self, range: OffsetRange) -> Lease {
        Lease { range, number: self.number, deadline: self.deadline }
    }
}

impl Due for Leased {
    fn due(&self) -> Monotonic {
        self.deadline
    }
}

impl Broker {
    /// As [`Broker::take`] for a consumer that leases: `range` is leased under `number` until
    /// `deadline`, whatever becomes of the consumer, and an attempt is counted on it. Returns what
    /// to journal besides the lease.
    pub fn take_lease(
        &mut self,
        c: ConsumerKey,
        range: OffsetRange,
        number: LeaseNumber,
        deadline: Monotonic,
    ) -> Vec<Tried> {
        self.check_take(c, range);
        let consumer = self.consumers.at_mut(c.0);
        assert!(consumer.kind.leases, "a lease for a consumer that does not lease");
        let g = consumer.group.expect("who leases takes, and who takes has a group");
        let group = self.groups.at_mut(g.0);
        consumer.delivered += range.span();
        group.lease(range);
        group.leases.set(range, Leased { number, deadline });
        let counted = group.count_attempt(range);
        consumer.spend(range, group);
        self.retime(g);
        self.taken(c, g, range);
        counted
    }

    /// The message is done. Returns what became settled, for the journal.
    ///
    /// # Errors
    /// [`Refusal::StaleReceipt`].
    pub fn receipt_ack(
        &mut self,
        g: GroupKey,
        offset: Offset,
        number: LeaseNumber,
    ) -> Result<Vec<OffsetRange>, Refusal> {
        let range = self.end_lease(g, offset, number)?;
        self.group_mut(g).settle(range, Ending::Acked);
        self.settled_in_group(g, &[range]);
        Ok(vec![range])
    }

    /// The message failed, as with [`Broker::nack`]. Returns what to journal besides the end of
    /// the lease.
    ///
    /// # Errors
    /// [`Refusal::StaleReceipt`].
    pub fn receipt_nack(
        &mut self,
        g: GroupKey,
        offset: Offset,
        number: LeaseNumber,
        pause: Pause<'_>,
    ) -> Result<Vec<Tried>, Refusal> {
        let range = self.end_lease(g, offset, number)?;
        let failed = self.group_mut(g).fail(range, pause);
        self.retime(g);
        self.group_changed(g);
        Ok(failed)
    }

    /// The lease of the message ends at `deadline`, unless it ends later anyway. Returns when it
    /// ends.
    ///
    /// # Errors
    /// [`Refusal::StaleReceipt`].
    pub fn receipt_extend(
        &mut self,
        g: GroupKey,
        offset: Offset,
        number: LeaseNumber,
        deadline: Monotonic,
    ) -> Result<Monotonic, Refusal> {
        let (range, leased) = self.find_lease(g, offset, number)?;
        let deadline = leased.deadline.max(deadline);
        self.group_mut(g).leases.set(range, Leased { deadline, ..leased });
        self.retime(g);
        Ok(deadline)
    }

    /// Until when a message is leased under this number.
    ///
    /// # Errors
    /// [`Refusal::StaleReceipt`].
    fn find_lease(
        &self,
        g: GroupKey,
        offset: Offset,
        number: LeaseNumber,
    ) -> Result<(OffsetRange, Leased), Refusal> {
        let leased = self.group(g).leases.ranges().at(offset);
        let leased = leased.filter(|leased| leased.number == number);
        let end = Offset(offset.0.saturating_add(1));
        leased.map(|leased| (OffsetRange::new(offset, end), leased)).ok_or(Refusal::StaleReceipt)
    }

    fn end_lease(
        &mut self,
        g: GroupKey,
        offset: Offset,
        number: LeaseNumber,
    ) -> Result<OffsetRange, Refusal> {
        let (range, _) = self.find_lease(g, offset, number)?;
        self.group_mut(g).leases.unset(range);
        self.retime(g);
        Ok(range)
    }
}
