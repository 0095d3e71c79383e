//! What is known of one group of a queue: deliveries, acks, leases, turns.

use std::collections::{BTreeMap, BTreeSet};

use mq::units::{Offset, OffsetRange, WallTime};

use crate::model::Message;

/// A message as it came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delivery {
    pub offset: Offset,
    pub redelivered: bool,
    /// The latest that the wall clock has ever said.
    pub wall: WallTime,
    /// Since the history began.
    pub age: u64,
    /// Leased at least until then.
    pub leased_until: Option<u64>,
    /// The lease's number; those of a message grow.
    pub lease: u64,
    /// The server had room to note it.
    pub is_noted: bool,
    /// The wall clock is never set: a restart knows how long a lease still is.
    pub leases_hold: bool,
}

#[derive(Debug, Default)]
pub struct GroupModel {
    /// What was delivered, and in which era last.
    delivered: BTreeMap<Offset, u32>,
    /// Acks that were sent.
    pub acked: BTreeSet<Offset>,
    /// Acks that the server has taken in: they must hold until power is lost.
    pub settled: BTreeSet<Offset>,
    /// Of those, such as it had no room to write down.
    in_memory: BTreeSet<Offset>,
    /// Receivers fail what is poison.
    pub fails: bool,
    /// Leased for sure until then, of the age of the history.
    pub leases: BTreeMap<Offset, u64>,
    /// The number of each message's newest lease that was heard of.
    newest: BTreeMap<Offset, u64>,
    /// The highest epoch that an exclusive receiver was told.
    pub epoch: u64,
    /// Deliveries that may be forgotten with a server that had no room to note them.
    unnoted: BTreeSet<Offset>,
}

impl GroupModel {
    pub fn was_delivered(&self, offset: Offset) -> bool {
        self.delivered.contains_key(&offset)
    }

    /// G5, G6: what comes again is marked, was not settled, and is not under a lease.
    pub fn delivered(&mut self, message: Message, era: u32, delivery: &Delivery) {
        let Delivery { offset, redelivered, age, leased_until, lease, .. } = *delivery;
        let newest = self.newest.entry(offset).or_default();
        if leased_until.is_some() && lease < *newest {
            // It was on its way while another got the message.
            return;
        }
        *newest = lease;
        if let Some(before) = self.delivered.insert(offset, era) {
            assert!(
                redelivered || before < era || self.unnoted.contains(&offset),
                "G6: {message:?} at {offset} came again without the mark of a redelivery"
            );
            assert!(
                !self.settled.contains(&offset),
                "G6: {message:?} at {offset} came back after its ack"
            );
            if let Some(until) = self.leases.get(&offset) {
                assert!(
                    *until <= age,
                    "G5: {message:?} at {offset} is leased until {until} and came at {age}"
                );
            }
        }
        if !delivery.is_noted {
            self.unnoted.insert(offset);
        }
        match leased_until.filter(|_| delivery.is_noted && delivery.leases_hold) {
            Some(until) => self.leases.insert(offset, until),
            None => self.leases.remove(&offset),
        };
    }

    /// Acks that the server has taken in, and must have written down by now if it had room.
    pub fn settle(&mut self, ranges: &[OffsetRange], is_noted: bool) {
        for range in ranges {
            for offset in (range.start.0..range.end.0).map(Offset) {
                if self.settled.insert(offset) && !is_noted {
                    self.in_memory.insert(offset);
                }
                self.leases.remove(&offset);
            }
        }
    }

    /// What there was no room for goes with the server that knew it.
    pub fn lose_memory(&mut self) {
        for offset in std::mem::take(&mut self.in_memory) {
            self.settled.remove(&offset);
        }
    }

    /// An ack that was not synced may be lost with the power, and a lease: the message comes again.
    pub fn lose_power(&mut self) {
        self.settled.clear();
        self.leases.clear();
    }

    /// The turns of exclusive receivers have ever higher numbers.
    pub fn begin_turn(&mut self, epoch: u64) {
        assert!(epoch > self.epoch, "turn {epoch} begins behind turn {}", self.epoch);
        self.epoch = epoch;
    }
}
