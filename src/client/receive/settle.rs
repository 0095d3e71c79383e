//! What goes out: bytes to the outlet, and to the server what of them is settled.

use rustix::event::{PollFd, PollFlags};

use super::{Dial, Phase, ReceiveError, Receiver, Why};
use crate::client::outlet::{OutletError, Wrote};
use crate::client::wait;
use crate::limits;
use crate::units::{Micros, Monotonic, OffsetRange};

impl<D: Dial> Receiver<D> {
    /// Writes what the outlet takes.
    pub(super) fn write(&mut self) {
        if self.is_outlet_full || self.is_reader_gone || self.is_adrift() {
            return;
        }
        while self.ledger.unwritten() > 0 {
            match self.outlet.write(&self.ledger.slices(limits::SLICES_PER_WRITE_MAX)) {
                Ok(Wrote::Bytes(bytes)) => self.ledger.written(bytes),
                Ok(Wrote::Gone) => {
                    self.is_reader_gone = true;
                    return;
                }
                Ok(Wrote::Full) => {
                    self.is_outlet_full = true;
                    return self.enlarge();
                }
                Err(error) => return self.fail_outlet(error),
            }
        }
    }

    /// A reader that is fast gets a larger pipe, which saves it and us system calls. A slow one
    /// would only be handed more than it can use.
    fn enlarge(&mut self) {
        let Some(capacity) = self.outlet.can_enlarge_from() else { return };
        let tally = self.tally();
        let each = tally.bytes / tally.messages.max(1) + 1;
        if self.credit.window().saturating_mul(each) >= 4 * capacity as u64 {
            self.outlet.enlarge();
        }
    }

    /// Nothing more can be written. A file is left with whole messages.
    fn fail_outlet(&mut self, error: OutletError) {
        let mut cut = None;
        if self.outlet.is_file() {
            let partial = self.ledger.partly_written() as u64;
            cut = Some(self.outlet.cut_back(self.outlet.written() - partial));
            self.ledger.forget_partly_written();
        }
        let dropped = self.ledger.cut_unwritten();
        dropped.into_iter().for_each(|range| self.released.push(range));
        let error = self.sync_last(error, &mut cut);
        self.phase = Phase::Finishing(Why::Failed(ReceiveError::Outlet { error, cut }));
    }

    /// What was written before a failed write counts once it is synced; if that fails too, the
    /// file is taken back to where it was synced before.
    fn sync_last(&mut self, error: OutletError, cut: &mut Option<bool>) -> OutletError {
        match self.outlet.sync() {
            Ok(()) => error,
            Err(_) if matches!(error, OutletError::Sync(_)) => error,
            Err(sync) => {
                let synced = self.outlet.written() - self.outlet.unsynced();
                *cut = Some(self.outlet.cut_back(synced));
                sync
            }
        }
    }

    /// Looks what the reader has taken, and settles it.
    pub(super) fn settle(&mut self) {
        let now = self.now();
        if self.outlet.is_file() {
            self.settle_file(now);
        }
        if self.ledger.is_empty() {
            return;
        }
        self.waiting_since = now;
        if self.outlet.is_pipe() && now < self.pace.next && !self.is_reader_gone {
            return;
        }
        let position = self.outlet.look_taken();
        let is_empty = position == self.outlet.written();
        let taken = self.ledger.taken(position, &mut self.settled);
        if self.outlet.is_file() {
            return;
        }
        if taken.messages > 0 {
            self.credit.taken(now, taken.credited, is_empty && self.ledger.unwritten() == 0);
            let is_running = matches!(self.phase, Phase::Running);
            self.pace.interval =
                if is_running { limits::PROGRESS_MIN } else { limits::PROGRESS_LAST };
        }
        self.pace.next = now.plus(self.pace.interval);
        self.pace.interval = Micros((self.pace.interval.0 * 2).min(limits::PROGRESS_MAX.0));
    }

    /// A file is its own reader: what is written counts for the credit at once, and is settled
    /// when it is synced, which is done for many messages together.
    fn settle_file(&mut self, now: Monotonic) {
        let written = self.ledger.messages_written();
        if written > self.passed {
            self.credit.taken(now, written - self.passed, self.ledger.unwritten() == 0);
            self.passed = written;
        }
        let unsynced = self.outlet.unsynced();
        let is_idle = self.ledger.unwritten() == 0;
        if (is_idle && unsynced > 0) || unsynced >= limits::FILE_SYNC_BYTES {
            self.sync_file(unsynced);
        }
    }

    fn sync_file(&mut self, unsynced: u64) {
        // More may be ready at once: then one sync does for both.
        if unsynced < limits::FILE_SYNC_BYTES && self.is_input_ready() {
            return;
        }
        if let Err(error) = self.outlet.sync() {
            let synced = self.outlet.written() - self.outlet.unsynced();
            let cut = Some(self.outlet.cut_back(synced));
            self.ledger.forget_partly_written();
            let dropped = self.ledger.cut_unwritten();
            dropped.into_iter().for_each(|range| self.released.push(range));
            self.phase = Phase::Finishing(Why::Failed(ReceiveError::Outlet { error, cut }));
        }
    }

    fn is_input_ready(&self) -> bool {
        let Some(link) = &self.link else { return false };
        let mut fds = [PollFd::new(link, PollFlags::IN)];
        matches!(wait::poll(&mut fds, Some(self.began)), Ok(1))
    }

    /// Makes the next look at the reader's progress come soon.
    pub(super) fn hasten(&mut self, now: Monotonic, interval: Micros) {
        self.pace.interval = interval;
        self.pace.next = self.pace.next.min(now.plus(interval));
    }

    /// Tells the server what is settled and how much may come.
    pub(super) fn send(&mut self) -> Result<(), ReceiveError> {
        let is_running = matches!(self.phase, Phase::Running);
        let Some(link) = &mut self.link else { return Ok(()) };
        if link.unpacker.is_some() && !link.is_clogged() {
            if is_running && let Some(total) = self.credit.grant() {
                link.credit(total);
            }
            if self.options.peek {
                let _: Vec<OffsetRange> = self.settled.take();
                let _: Vec<OffsetRange> = self.released.take();
            }
            if !self.settled.is_empty() {
                let settled = self.settled.take();
                link.ack(&settled);
                settled.into_iter().for_each(|range| self.acked.push(range));
            }
            if !self.released.is_empty() {
                link.release(&self.released.take());
            }
        }
        Ok(link.flush()?)
    }
}
