//! How it ends: from running over finishing (the reader takes the last) to closing (the server
//! hears of it).

use super::{Caller, Dial, End, Phase, ReceiveError, Receiver, Why};
use crate::client::ClientError;
use crate::limits;
use crate::units::Monotonic;

impl<D: Dial> Receiver<D> {
    /// It cannot go on; the first reason counts.
    pub(super) fn fail(&mut self, error: ReceiveError) {
        if !matches!(self.phase, Phase::Finishing(Why::Failed(_)) | Phase::Closing(..)) {
            self.phase = Phase::Finishing(Why::Failed(error));
        }
    }

    /// Takes the signals that have come: the first ends the receiving, the next the waiting.
    /// Returns whether there was one.
    pub(super) fn take_signals(&mut self, caller: &mut dyn Caller) -> bool {
        let mut any = false;
        while let Some(signal) = caller.take_signal() {
            any = true;
            match std::mem::replace(&mut self.phase, Phase::Running) {
                Phase::Running | Phase::Finishing(Why::End(End::Done)) => {
                    // A message that is begun is brought to its end, as the reader could not
                    // tell that it is cut; nothing else is written.
                    let dropped = self.ledger.cut_unwritten();
                    dropped.into_iter().for_each(|range| self.released.push(range));
                    self.finish(Why::End(End::Signal(signal)));
                }
                // Asked twice: the reader is not waited for any more, nor is the server.
                Phase::Finishing(why) => {
                    self.is_reader_gone = true;
                    self.phase = Phase::Finishing(why);
                }
                Phase::Closing(Why::Failed(error), _) => {
                    self.phase = Phase::Closing(Why::Failed(error), self.now());
                }
                Phase::Closing(..) => {
                    self.phase = Phase::Closing(Why::End(End::Signal(signal)), self.now());
                }
            }
        }
        any
    }

    fn finish(&mut self, why: Why) {
        self.phase = Phase::Finishing(why);
        let now = self.now();
        self.hasten(now, limits::PROGRESS_LAST);
    }

    /// From phase to phase; returns why it ends once all is done.
    pub(super) fn go_on(&mut self) -> Option<Why> {
        if matches!(self.phase, Phase::Running) {
            if self.is_reader_gone {
                self.finish(Why::End(End::ReaderGone));
            } else if self.is_complete() {
                self.finish(Why::End(End::Done));
            }
        }
        match std::mem::replace(&mut self.phase, Phase::Running) {
            Phase::Running => None,
            Phase::Finishing(why) => self.go_on_finishing(why),
            Phase::Closing(why, deadline) => self.go_on_closing(why, deadline),
        }
    }

    /// Whether nothing more is to be received.
    fn is_complete(&self) -> bool {
        let is_full = self.options.limit.is_some_and(|limit| self.accepted >= limit);
        is_full || self.has_ended || self.wait_deadline().is_some_and(|at| self.now() >= at)
    }

    pub(super) fn wait_deadline(&self) -> Option<Monotonic> {
        let wait = self.options.wait?;
        self.ledger.is_empty().then(|| self.waiting_since.plus(wait))
    }

    fn go_on_finishing(&mut self, why: Why) -> Option<Why> {
        let is_through = match &why {
            Why::Failed(_) => self.ledger.unwritten() == 0,
            Why::End(End::ReaderGone) => true,
            Why::End(_) => self.ledger.is_empty(),
        };
        if !is_through && !self.is_reader_gone {
            self.phase = Phase::Finishing(why);
            return None;
        }
        // The last look: a reader that is gone takes no more.
        self.pace.next = Monotonic(0);
        self.settle();
        let why = match why {
            Why::End(End::Done) if !self.ledger.is_empty() => Why::End(End::ReaderGone),
            why => why,
        };
        self.ledger.held().into_iter().for_each(|range| self.released.push(range));
        let deadline = self.now().plus(limits::DRAIN);
        self.begin_closing();
        self.go_on_closing(why, deadline)
    }

    /// Tells the server the last.
    pub(super) fn begin_closing(&mut self) {
        self.is_closed = false;
        // Without a link they are kept for the next.
        let Some(link) = &mut self.link else { return };
        // A new server has yet to say what of the old one's is still ours, and to hear that this
        // is settled too: CLOSE would give it back. Its RECEIVING leads here again.
        if self.queue_id.is_some() && link.unpacker.is_none() {
            return;
        }
        let settled = self.settled.take();
        let released = self.released.take();
        if !self.options.peek {
            link.ack(&settled);
            settled.into_iter().for_each(|range| self.acked.push(range));
            link.release(&released);
        }
        link.close();
    }

    fn go_on_closing(&mut self, why: Why, deadline: Monotonic) -> Option<Why> {
        // What the next server must hear is only that everything was taken.
        let matters = matches!(why, Why::End(End::Done)) && !self.options.peek;
        if self.is_closed || (self.link.is_none() && !matters) {
            return Some(why);
        }
        if self.now() >= deadline {
            return Some(if matters { Why::Failed(ClientError::Lost.into()) } else { why });
        }
        self.phase = Phase::Closing(why, deadline);
        None
    }
}
