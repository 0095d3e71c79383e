//! The printer: messages as bytes to an outlet, and what of them its reader has taken.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;
use rustix::event::epoll::EventFlags;

use super::members::{MemberNumber, Members};
use super::sink::{Alarm, Sink, Turn};
use super::{Note, ReceiveError, Taking, Tally};
use crate::batch::BatchError;
use crate::client::credit::Credit;
use crate::client::delivery::{Batch, Origin};
use crate::client::format::Format;
use crate::client::ledger::Ledger;
use crate::client::outlet::{self, Outlet, OutletError, Wrote};
use crate::limits;
use crate::units::{Micros, Monotonic, OffsetRange};

/// When to look at the reader's progress.
#[derive(Debug)]
struct Pace {
    interval: Micros,
    next: Monotonic,
}

/// See the module's page.
pub struct Printer {
    outlet: Outlet,
    format: Format,
    ledger: Ledger,
    pace: Pace,
    /// Whether the outlet took nothing when last asked, and whether its reader is gone.
    is_outlet_full: bool,
    is_reader_gone: bool,
    /// Messages that counted as taken when they were written.
    passed: u64,
    /// The file that is appended to ends within a message, which is to be told.
    is_behind_unfinished: bool,
}

impl Printer {
    /// Writes messages in this format to this outlet.
    #[must_use]
    pub fn new(mut outlet: Outlet, format: Format) -> Printer {
        let is_behind_unfinished =
            format.delimiter().is_some_and(|delimiter| outlet.begin_anew_behind(delimiter));
        Printer {
            outlet,
            format,
            ledger: Ledger::default(),
            pace: Pace { interval: limits::PROGRESS_MIN, next: Monotonic(0) },
            is_outlet_full: false,
            is_reader_gone: false,
            passed: 0,
            is_behind_unfinished,
        }
    }

    /// A reader that is fast gets a larger pipe, which saves it and us system calls. A slow one
    /// would only be handed more than it can use.
    fn enlarge(&mut self, credit: &Credit) {
        let Some(capacity) = self.outlet.can_enlarge_from() else { return };
        let each = self.outlet.written() / self.ledger.messages_written().max(1) + 1;
        if credit.window().saturating_mul(each) >= 4 * capacity as u64 {
            self.outlet.enlarge();
        }
    }

    /// Nothing more can be written. A file is left with whole messages.
    fn failed(&mut self, error: OutletError) -> ReceiveError {
        let mut cut = None;
        if self.outlet.is_file() {
            let partial = self.ledger.partly_written() as u64;
            cut = Some(self.outlet.cut_back(self.outlet.written() - partial));
            self.ledger.forget_partly_written();
        }
        let error = self.sync_last(error, &mut cut);
        ReceiveError::Outlet { error, cut }
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

    /// A file is its own reader: what is written counts for the credit at once, and is settled
    /// when it is synced, which is done for many messages together.
    fn settle_file(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError> {
        let written = self.ledger.messages_written();
        if written > self.passed {
            let is_idle = self.ledger.unwritten() == 0;
            turn.credit.taken(turn.now, written - self.passed, is_idle);
            self.passed = written;
        }
        let unsynced = self.outlet.unsynced();
        let is_idle = self.ledger.unwritten() == 0;
        if (is_idle && unsynced > 0) || unsynced >= limits::FILE_SYNC_BYTES {
            return self.sync_file(turn, unsynced);
        }
        Ok(())
    }

    fn sync_file(&mut self, turn: &Turn<'_>, unsynced: u64) -> Result<(), ReceiveError> {
        // More may be ready at once: then one sync does for both.
        if unsynced < limits::FILE_SYNC_BYTES && (turn.has_more)() {
            return Ok(());
        }
        self.outlet.sync().map_err(|error| {
            let synced = self.outlet.written() - self.outlet.unsynced();
            let cut = Some(self.outlet.cut_back(synced));
            self.ledger.forget_partly_written();
            ReceiveError::Outlet { error, cut }
        })
    }
}

impl Sink for Printer {
    const TRIES: bool = false;

    fn credit(&self, limit: Option<u64>, taking: Taking) -> Credit {
        match taking {
            // A receipt that nobody has seen settles nothing, so its message would wait for the
            // end of its lease: there is never more than one.
            Taking::Leased(_) => Credit::fixed(1, limit),
            Taking::Acked | Taking::Looked | Taking::Unacked => Credit::new(limit),
        }
    }

    fn accept(
        &mut self,
        member: MemberNumber,
        origin: &Origin<'_>,
        batch: Batch,
        which: Range<u64>,
    ) -> Result<(), BatchError> {
        let (ledger, mut at) = (&mut self.ledger, 0);
        self.format.pieces(origin, batch, |piece| {
            let count = piece.count();
            let wanted =
                which.start.clamp(at, at + count) - at..which.end.clamp(at, at + count) - at;
            at += count;
            if wanted == (0..count) {
                ledger.push(member, piece);
            } else if !wanted.is_empty() {
                ledger.push(member, piece.messages(wanted));
            }
        })
    }

    fn take_note(&mut self) -> Option<Note> {
        if self.is_behind_unfinished && !self.ledger.is_empty() {
            self.is_behind_unfinished = false;
            return Some(Note::Unfinished);
        }
        self.format.take_ambiguous().then_some(Note::Ambiguous)
    }

    fn wants_more(&self) -> bool {
        self.ledger.unwritten() < limits::RECEIVE_AHEAD_BYTES
    }

    /// Writes what the outlet takes.
    fn push(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError> {
        if self.is_outlet_full || self.is_reader_gone {
            return Ok(());
        }
        while self.ledger.unwritten() > 0 {
            match self.outlet.write(&self.ledger.slices(limits::SLICES_PER_WRITE_MAX)) {
                Ok(Wrote::Bytes(bytes)) => self.ledger.written(bytes),
                Ok(Wrote::Gone) => {
                    self.is_reader_gone = true;
                    break;
                }
                Ok(Wrote::Full) => {
                    self.is_outlet_full = true;
                    self.enlarge(turn.credit);
                    break;
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Looks what the reader has taken, and settles it.
    fn settle(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError> {
        let filed = if self.outlet.is_file() { self.settle_file(turn) } else { Ok(()) };
        if self.ledger.is_empty() {
            return filed;
        }
        if self.outlet.is_pipe() && turn.now < self.pace.next && !self.is_reader_gone {
            return filed;
        }
        let position = self.outlet.look_taken();
        let is_empty = position == self.outlet.written();
        let Turn { members, credit, now, .. } = turn;
        let taken = self.ledger.taken(position, &mut |member, range| members.settle(member, range));
        if self.outlet.is_file() {
            return filed;
        }
        if taken.messages > 0 {
            credit.taken(*now, taken.credited, is_empty && self.ledger.unwritten() == 0);
            self.pace.interval =
                if turn.is_running { limits::PROGRESS_MIN } else { limits::PROGRESS_LAST };
        }
        self.pace.next = turn.now.plus(self.pace.interval);
        self.pace.interval = Micros((self.pace.interval.0 * 2).min(limits::PROGRESS_MAX.0));
        filed
    }

    fn begin(&mut self, _: &mut Turn<'_>) -> Result<(), ReceiveError> {
        Ok(())
    }

    fn launch(&mut self, _: &mut Turn<'_>) -> Result<(), ReceiveError> {
        Ok(())
    }

    /// A message that is begun is brought to its end, as the reader could not tell that it is
    /// cut; nothing else is written.
    fn stop(&mut self, members: &mut Members) {
        for (member, range) in self.ledger.cut_unwritten() {
            members.release(member, range);
        }
    }

    /// The reader is not waited for any more.
    fn hurry(&mut self, _: Monotonic) {
        self.is_reader_gone = true;
    }

    fn hasten(&mut self, now: Monotonic, is_last: bool) {
        let interval = if is_last { limits::PROGRESS_LAST } else { limits::PROGRESS_MIN };
        self.pace.interval = interval;
        self.pace.next = self.pace.next.min(now.plus(interval));
    }

    fn look_last(&mut self) {
        self.pace.next = Monotonic(0);
    }

    fn is_gone(&self) -> bool {
        self.is_reader_gone
    }

    fn is_busy(&self) -> bool {
        false
    }

    fn is_begun(&self) -> bool {
        self.ledger.unwritten() > 0
    }

    fn is_empty(&self) -> bool {
        self.ledger.is_empty()
    }

    fn held(&self, member: MemberNumber) -> Vec<OffsetRange> {
        self.ledger.held(member)
    }

    fn keep(&mut self, member: MemberNumber, kept: &[OffsetRange]) -> Vec<OffsetRange> {
        self.ledger.keep(member, kept)
    }

    fn lost(&mut self) {}

    fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let interest = self.outlet.interest(self.ledger.unwritten() > 0)?;
        Some((self.outlet.as_fd(), interest))
    }

    fn polled(&mut self, events: PollFlags) {
        self.is_reader_gone |= outlet::is_gone(events);
        self.is_outlet_full &= !events.contains(PollFlags::OUT);
    }

    /// A reader that is known to be gone must not interrupt again and again.
    fn alarm(&self) -> Option<Alarm<'_>> {
        let fd = (!self.is_reader_gone).then(|| self.outlet.as_fd())?;
        Some(Alarm { fd, events: EventFlags::empty(), at: None })
    }

    fn alarmed(&mut self) {
        self.is_reader_gone = true;
    }

    fn deadline(&self) -> Option<Monotonic> {
        (self.outlet.is_pipe() && !self.ledger.is_empty()).then_some(self.pace.next)
    }

    fn tally(&self) -> Tally {
        let (messages, bytes) = (self.ledger.messages_written(), self.outlet.written());
        Tally { messages, bytes, ..Tally::default() }
    }
}
