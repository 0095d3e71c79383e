//! How it ends: from running over finishing (what is begun comes to its end) to closing (the
//! server hears of it).

use super::{Caller, Dial, End, Phase, ReceiveError, Receiver, Sink, Taking, Why};
use crate::client::ClientError;
use crate::limits;
use crate::units::Monotonic;

impl<D: Dial, S: Sink> Receiver<D, S> {
    /// It cannot go on; the first reason counts.
    pub(super) fn fail(&mut self, error: ReceiveError) {
        if !matches!(self.phase, Phase::Finishing(Why::Failed(_)) | Phase::Closing(..)) {
            self.sink.stop(&mut self.members);
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
                    self.sink.stop(&mut self.members);
                    self.finish(Why::End(End::Signal(signal)));
                }
                // Asked twice: nothing is waited for any more, nor is the server.
                Phase::Finishing(why) => {
                    self.sink.hurry(self.now());
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
        self.sink.hasten(self.now(), true);
    }

    /// From phase to phase; returns why it ends once all is done.
    pub(super) fn go_on(&mut self) -> Option<Why> {
        if matches!(self.phase, Phase::Running) {
            if self.sink.is_gone() {
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
        let is_new = self.link.as_ref().is_some_and(|link| link.is_to_engine && !link.is_announced);
        if is_new || self.waits_for_engine {
            return None;
        }
        self.sink.is_empty().then(|| self.waiting_since.plus(wait))
    }

    /// Whether it is finishing and what was begun has come to its end.
    pub(super) fn is_through(&self) -> bool {
        let is_done = match &self.phase {
            Phase::Finishing(Why::Failed(_)) => !self.sink.is_begun(),
            Phase::Finishing(Why::End(End::ReaderGone)) => true,
            Phase::Finishing(Why::End(_)) => self.sink.is_empty(),
            Phase::Running | Phase::Closing(..) => return false,
        };
        is_done || self.sink.is_gone()
    }

    fn go_on_finishing(&mut self, why: Why) -> Option<Why> {
        self.phase = Phase::Finishing(why);
        if !self.is_through() {
            return None;
        }
        // The last look: one that is gone takes no more.
        self.sink.look_last();
        self.settle();
        let Phase::Finishing(why) = std::mem::replace(&mut self.phase, Phase::Running) else {
            unreachable!("a last look begins nothing");
        };
        let why = match why {
            Why::End(End::Done) if !self.sink.is_empty() => Why::End(End::ReaderGone),
            why => why,
        };
        for number in self.members.numbers() {
            for range in self.sink.held(number) {
                self.members.release(number, range);
            }
        }
        let deadline = self.now().plus(limits::DRAIN);
        self.begin_closing();
        self.go_on_closing(why, deadline)
    }

    /// Tells the server the last.
    pub(super) fn begin_closing(&mut self) {
        self.is_closed = false;
        // Without a link it is kept for the next.
        let Some(link) = &mut self.link else { return };
        // A new server has yet to say what of the old one's is still ours, and to hear that this
        // is settled too: CLOSE would give it back. Its RECEIVING leads here again.
        if self.members.has_queues() && !link.is_announced {
            return;
        }
        self.members.report(link, self.options.taking);
        link.close();
    }

    fn go_on_closing(&mut self, why: Why, deadline: Monotonic) -> Option<Why> {
        // What the next server must hear is only that everything was done.
        let is_acked = self.options.taking == Taking::Acked;
        let matters = matches!(why, Why::End(End::Done)) && is_acked;
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
