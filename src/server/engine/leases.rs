//! Leases with receipts: their numbers, and what is settled by them later, from anywhere.

use crate::broker::{GroupKey, Lease};
use crate::limits;
use crate::log::GroupFact;
use crate::log::storage::Storage;
use crate::units::{Ending, LeaseNumber, Micros, Offset, OffsetRange};
use crate::wire::{ErrorCode, Fault, Nack, Receipt, Settlement};

use super::groups::{leased_range, tried_facts};
use super::session::Receiver;
use super::trying::rests;
use super::{ConnectionId, Engine, QueueNumber, Trouble, fault, protocol};

impl<S: Storage> Engine<S> {
    /// `range`, the head of the consumer's offer, goes out under a lease; returns its number.
    pub(super) fn lease(
        &mut self,
        receiver: Receiver,
        group: GroupKey,
        range: OffsetRange,
        span: Micros,
    ) -> LeaseNumber {
        let number = self.next_lease(receiver.queue, group);
        let deadline = self.clock.now.plus(span);
        let tried = self.broker.take_lease(receiver.consumer, range, number, deadline);
        let mut facts = tried_facts(&tried, self.journal_clock(receiver.queue));
        let lease = Lease { range, number, deadline };
        let clock = self.journal_clock(receiver.queue);
        facts.push(GroupFact::Leased(leased_range(lease, clock)));
        self.note(receiver.queue, group, &facts);
        number
    }

    /// A number that the group has not had: a counter above the bits that nobody can guess.
    fn next_lease(&mut self, number: QueueNumber, group: GroupKey) -> LeaseNumber {
        let secret = (self.new_lease_secret)();
        let hosted = self.hosted.get_mut(&number).expect("a group's queue");
        let counter = hosted.books.lease_counters.entry(group).or_insert(0);
        *counter = counter.saturating_add(1);
        LeaseNumber(u64::from(*counter) << 32 | u64::from(secret))
    }

    /// Settles by receipts; each is answered for itself.
    pub(super) fn settle_receipts(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        receipts: &[Receipt],
        how: Settlement,
    ) -> Result<(), Trouble> {
        if receipts.len() > limits::RECEIPTS_PER_REQUEST_MAX {
            return Err(protocol("too many receipts in one request"));
        }
        let said: Vec<Option<Fault>> =
            receipts.iter().map(|receipt| self.settle_receipt(receipt, how).err()).collect();
        self.answer(connection, channel, &said);
        Ok(())
    }

    fn settle_receipt(&mut self, receipt: &Receipt, how: Settlement) -> Result<(), Fault> {
        let number = self.find(&receipt.queue)?;
        let hosted = &self.hosted[&number];
        if let Some(why) = &hosted.trouble {
            return Err(super::hosting::damaged(&hosted.name, why));
        }
        let stale =
            |why: &str| fault(ErrorCode::Gone, format!("receipt {receipt} is stale: {why}"));
        if hosted.log.id().0.as_fields().0 != receipt.incarnation {
            return Err(stale("the queue was removed and made again"));
        }
        let group = self.broker.find_group(hosted.key, &receipt.group);
        let group = group.ok_or_else(|| stale("the group was removed"))?;
        let (offset, lease) = (receipt.offset, receipt.number);
        let refused = |_| stale("the message was settled, or its lease is over");
        match how {
            Settlement::Ack => {
                let acked = self.broker.receipt_ack(group, offset, lease).map_err(refused)?;
                self.settle(number, group, &acked, Ending::Acked);
            }
            Settlement::Nack => {
                let mut rest = rests(None, self.clock);
                let tried = self.broker.receipt_nack(group, offset, lease, &mut rest);
                let tried = tried.map_err(refused)?;
                let nack = Nack { reason: "nacked by its receipt".to_owned(), ..Nack::default() };
                self.note_failure(group, &[one(offset)], &nack, self.clock);
                self.count_failed(number, group, &[one(offset)]);
                let mut facts = tried_facts(&tried, self.journal_clock(number));
                facts.push(GroupFact::Returned { range: one(offset), number: lease });
                self.note(number, group, &facts);
            }
            Settlement::Extend(span) => {
                let deadline = self.clock.now.plus(span.min(limits::LEASE_MAX));
                let extended = self.broker.receipt_extend(group, offset, lease, deadline);
                let deadline = extended.map_err(refused)?;
                let lease = Lease { range: one(offset), number: lease, deadline };
                let lease = leased_range(lease, self.journal_clock(number));
                self.note(number, group, &[GroupFact::Leased(lease)]);
            }
        }
        Ok(())
    }
}

fn one(offset: Offset) -> OffsetRange {
    OffsetRange::new(offset, Offset(offset.0.saturating_add(1)))
}
