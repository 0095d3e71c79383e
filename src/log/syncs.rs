//! Which syncs of a log are due and under way, and what they have made durable.
//!
//! A pure account: starts nothing, and knows no file. Kept by `schedule`.

use std::collections::VecDeque;

use crate::limits;
use crate::planted::{self, Bug};
use crate::units::{Monotonic, Offset, SyncPolicy};

/// A sync under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub serial: u64,
    /// The handle that it uses.
    pub handle: usize,
    /// Written bytes and offset that are durable when it and all before it are done.
    bytes: u64,
    end: Offset,
    done: bool,
}

/// What is written, what is being synced, what is durable. Bytes count from the open of the log.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    pub written: u64,
    issued: u64,
    pub durable: u64,
    pub durable_end: Offset,
    /// Must become durable whatever the policy.
    wanted: u64,
    flights: VecDeque<Flight>,
    serial: u64,
    unsynced_since: Option<Monotonic>,
    /// What gathers before a second sync starts.
    gather: u64,
}

impl Syncs {
    /// A log whose every byte up to `end` is durable.
    pub fn all_durable(end: Offset, gather: u64) -> Syncs {
        Syncs { durable_end: end, gather, ..Syncs::default() }
    }

    pub fn wrote(&mut self, now: Monotonic, bytes: u64) {
        self.written += bytes;
        self.unsynced_since.get_or_insert(now);
    }

    pub fn want_all(&mut self) {
        self.wanted = self.written;
    }

    /// Whether no sync is under way.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether everything written is durable.
    pub fn is_durable(&self) -> bool {
        self.durable == self.written
    }

    fn pending(&self) -> u64 {
        self.written - self.issued
    }

    /// A second sync only starts for much, so that small batches gather behind the first.
    fn has_slot(&self) -> bool {
        match self.flights.len() {
            0 => true,
            n => n < limits::SYNCS_PER_QUEUE_MAX && self.pending() >= self.gather,
        }
    }

    pub fn is_due(&self, now: Monotonic, policy: SyncPolicy) -> bool {
        if self.pending() == 0 || !self.has_slot() {
            return false;
        }
        let asked = self.wanted > self.issued || self.pending() >= limits::BACKGROUND_SYNC_BYTES;
        match policy {
            SyncPolicy::Always => true,
            SyncPolicy::Never => asked,
            SyncPolicy::Interval(_) => asked || self.deadline(policy).is_some_and(|at| at <= now),
        }
    }

    pub fn deadline(&self, policy: SyncPolicy) -> Option<Monotonic> {
        match policy {
            SyncPolicy::Interval(every) if self.pending() > 0 && self.has_slot() => {
                self.unsynced_since.map(|since| since.plus(every))
            }
            _ => None,
        }
    }

    pub fn begin(&mut self, end: Offset) -> Flight {
        let used = |handle| self.flights.iter().any(|flight| flight.handle == handle);
        let shared = planted::is(Bug::SharedDescriptor);
        let handle = (0..limits::SYNCS_PER_QUEUE_MAX).find(|handle| shared || !used(*handle));
        self.serial += 1;
        let flight = Flight {
            serial: self.serial,
            handle: handle.expect("has_slot was asked"),
            bytes: self.written,
            end,
            done: false,
        };
        self.flights.push_back(flight);
        self.issued = self.written;
        self.unsynced_since = None;
        flight
    }

    /// A sync is done. It counts once those before it are done too: an error of an earlier one
    /// concerns what a later one seemed to cover.
    pub fn land(&mut self, serial: u64) {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.serial == serial) {
            flight.done = true;
        }
        while let Some(flight) = self.flights.front().copied().filter(|flight| flight.done) {
            self.flights.pop_front();
            self.durable = flight.bytes;
            self.durable_end = flight.end;
        }
    }
}
