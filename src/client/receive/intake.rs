//! What comes in: frames to events, events to pieces in the ledger.

use super::link::Event;
use super::ranges::Acked;
use super::ranges::{gaps, without};
use super::{Caller, Dial, End, Note, Phase, ReceiveError, Receiver, Why};
use crate::client::credit::messages_in;
use crate::client::delivery::{DeliveryError, Origin, Unpacker};
use crate::client::piece::{Piece, Slice};
use crate::client::{ClientError, Filled};
use crate::limits;
use crate::units::{Attempts, Count, Offset, OffsetRange};
use crate::wire::{DeliverHead, ErrorCode, Receiving};

/// Reads from the socket in one turn; then acks and credit are due.
const FILLS_PER_TURN: usize = 8;

impl<D: Dial> Receiver<D> {
    /// Takes what has come, as long as there is room for it.
    pub(super) fn read(&mut self, caller: &mut dyn Caller) -> Result<(), ReceiveError> {
        // Frames that are there are always dealt with before this returns: nothing would wake it
        // for them.
        self.take_events(caller)?;
        for _ in 0..FILLS_PER_TURN {
            if !self.wants_input() {
                return Ok(());
            }
            let Some(link) = &mut self.link else { return Ok(()) };
            match link.fill()? {
                Filled::Data(_) => self.take_events(caller)?,
                Filled::WouldBlock => return Ok(()),
                Filled::Closed => {
                    self.lose(false, caller);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn take_events(&mut self, caller: &mut dyn Caller) -> Result<(), ReceiveError> {
        while let Some(link) = &mut self.link {
            let Some(event) = link.next(&mut self.buffers)? else { break };
            self.handle(event, caller)?;
        }
        // At once, while the bytes are still in the core's cache.
        self.write();
        Ok(())
    }

    pub(super) fn wants_input(&self) -> bool {
        let is_running = matches!(self.phase, Phase::Running);
        self.is_hung_up || !is_running || self.ledger.unwritten() < limits::RECEIVE_AHEAD_BYTES
    }

    fn handle(&mut self, event: Event, caller: &mut dyn Caller) -> Result<(), ReceiveError> {
        match event {
            Event::Deliver(head, batches) => return self.deliver(&head, &batches, caller),
            Event::Receiving(receiving) => self.receiving(receiving, caller),
            Event::End => self.has_ended = true,
            Event::Closed => self.is_closed = true,
            Event::Fault(fault) if fault.code == ErrorCode::Stopping => self.lose(true, caller),
            Event::Fault(fault) => {
                // What it held is not ours any more; a message that is begun is brought to its
                // end, so that the reader is not left with half of it.
                let _: Vec<OffsetRange> = self.ledger.cut_unwritten();
                self.fail(ClientError::Refused(fault).into());
            }
            Event::Goodbye(orderly) => self.lose(orderly, caller),
        }
        Ok(())
    }

    fn receiving(&mut self, receiving: Receiving, caller: &mut dyn Caller) {
        let Some(id) = receiving.queue_id else {
            if !std::mem::replace(&mut self.is_queue_missed, true) && !self.options.until_end {
                caller.note(Note::NoQueue);
            }
            // A queue that is gone has nothing left to be settled.
            self.is_closed = true;
            return;
        };
        if self.queue_id.is_some_and(|before| before != id) {
            caller.note(Note::QueueReplaced);
            self.acked = Acked::default();
            let _: Vec<OffsetRange> = self.settled.take();
            self.highest = Offset(0);
        }
        let is_resumed = self.queue_id.replace(id) == Some(id);
        let kept = if is_resumed { receiving.kept } else { Vec::new() };
        if !self.options.peek || !is_resumed {
            self.accepted -= messages_in(&self.ledger.keep(&kept));
        }
        let kept_count = messages_in(&kept);
        let limit = self.options.limit.map(|limit| kept_count + limit - self.accepted);
        self.credit.resume(kept_count, limit);
        // The server before did not hear that these are settled.
        let again = without(&kept, &self.ledger.held());
        self.credit.dropped(messages_in(&again));
        again.into_iter().for_each(|range| self.settled.push(range));
        self.until = receiving.until;
        self.waiting_since = self.now();
        if let Some(link) = &mut self.link {
            link.unpacker = Some(Unpacker::new(id));
        }
        match &self.phase {
            // What was dropped may have to come again.
            Phase::Finishing(Why::End(End::Done)) => self.phase = Phase::Running,
            Phase::Closing(..) => self.begin_closing(),
            _ => {}
        }
    }

    pub(super) fn deliver(
        &mut self,
        head: &DeliverHead,
        batches: &Slice,
        caller: &mut dyn Caller,
    ) -> Result<(), ReceiveError> {
        if !matches!(self.phase, Phase::Running) {
            // It crossed our decision to end; the server takes it back when the channel closes.
            return Ok(());
        }
        let Some(unpacker) = self.link.as_mut().and_then(|link| link.unpacker.as_mut()) else {
            let what = "a DELIVER frame before the queue was named".to_owned();
            return Err(ClientError::Unexpected(what).into());
        };
        let queue_id = unpacker.queue_id();
        let mut verified = Vec::new();
        let unpacked = unpacker.unpack(head, batches, |batch| verified.push(batch));
        let origin = Origin {
            queue: &self.options.queue,
            queue_id,
            group: &self.options.group,
            attempt: Attempts(head.attempt),
            lease: head.lease,
        };
        let mut pieces = Vec::new();
        let unpacked = verified
            .into_iter()
            .try_for_each(|batch| {
                let place = batch.place;
                self.format
                    .pieces(&origin, batch, |piece| pieces.push(piece))
                    .map_err(|source| DeliveryError::of(&place, source))
            })
            .and(unpacked);
        let now = self.now();
        let is_peek = self.options.peek;
        self.waiting_since = now;
        let messages = pieces.iter().map(Piece::count).sum();
        if messages > 0 {
            self.credit.delivered(now, messages, head.behind);
            self.complaints = 0;
            self.hasten(now, limits::PROGRESS_MIN);
        }
        for piece in pieces {
            self.accept(piece, head.redelivered && !is_peek, caller);
        }
        if self.format.take_ambiguous() {
            caller.note(Note::Ambiguous);
        }
        match unpacked {
            Ok(()) => Ok(()),
            Err(error) => self.complain(head, error),
        }
    }

    fn accept(&mut self, piece: Piece, redelivered: bool, caller: &mut dyn Caller) {
        let Some(piece) = self.not_yet_seen(piece) else { return };
        // The credit sees to it that no more come, but for a server that counts otherwise.
        let room = self.options.limit.map_or(u64::MAX, |limit| limit - self.accepted);
        if piece.count() > room {
            self.released.push(piece.messages(room..piece.count()).range());
            if room == 0 {
                return;
            }
        }
        let count = piece.count().min(room);
        let piece = if count < piece.count() { piece.messages(0..count) } else { piece };
        self.accepted += count;
        self.highest = self.highest.max(piece.range().end);
        if redelivered {
            self.tally.redelivered += count;
            self.tell_redelivered(caller, Some(piece.range()));
        }
        self.ledger.push(piece);
    }

    /// A new server shows one who only looks everything again from the start.
    fn not_yet_seen(&mut self, piece: Piece) -> Option<Piece> {
        let range = piece.range();
        if !self.options.peek || range.start >= self.highest {
            return Some(piece);
        }
        let seen = (self.highest.0 - range.start.0).min(piece.count());
        self.credit.skipped(seen);
        (seen < piece.count()).then(|| piece.messages(seen..piece.count()))
    }

    /// Tells ranges of redelivered messages, joined as far as they follow one another.
    pub(super) fn tell_redelivered(&mut self, caller: &mut dyn Caller, next: Option<OffsetRange>) {
        match (self.redelivering, next) {
            (Some(before), Some(next)) if before.end == next.start => {
                self.redelivering = Some(OffsetRange::new(before.start, next.end));
            }
            (before, next) => {
                if let Some(range) = before {
                    caller.note(Note::Redelivered(range));
                }
                self.redelivering = next;
            }
        }
    }

    /// A delivery cannot be used. The server looks whether what it has stored is damaged; if it
    /// is not, the messages that are given back here come again.
    fn complain(&mut self, head: &DeliverHead, error: DeliveryError) -> Result<(), ReceiveError> {
        self.complaints += 1;
        let DeliveryError::Damaged { segment, position, .. } = error else {
            return Err(ClientError::Unexpected(error.to_string()).into());
        };
        if self.complaints > limits::COMPLAINTS_MAX {
            self.fail(ReceiveError::Garbled(error));
            return Ok(());
        }
        // A part of a large message names the message itself, all others the end.
        let end = if head.more { head.end.plus(Count(1)) } else { head.end };
        let start = if head.redelivered { Offset(0) } else { self.highest };
        let lost = gaps(OffsetRange::new(start.min(end), end), &self.ledger.held());
        self.credit.delivered(self.now(), messages_in(&lost), true);
        self.credit.skipped(messages_in(&lost));
        if let Some(link) = &mut self.link {
            link.complain(segment, position);
        }
        lost.into_iter().for_each(|range| self.released.push(range));
        Ok(())
    }
}
