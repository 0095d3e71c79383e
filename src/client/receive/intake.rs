//! What comes in: frames to events, events to messages in the sink.

use super::link::{CHANNEL, Event};
use super::ranges::{gaps, without};
use super::{
    Caller, Dial, End, MemberNumber, Note, Phase, Queues, ReceiveError, Receiver, Sink, Taking, Why,
};
use crate::client::credit::messages_in;
use crate::client::delivery::{Batch, DeliveryError, Origin, Unpacker};
use crate::client::ledger::Settled;
use crate::client::piece::Slice;
use crate::client::{ClientError, Filled};
use crate::limits;
use crate::units::{Attempts, Count, Name, Offset, OffsetRange, QueueId};
use crate::wire::{DeliverHead, ErrorCode, Fault, Receiving};

/// Reads from the socket in one turn; then acks and credit are due.
const FILLS_PER_TURN: usize = 8;

impl<D: Dial, S: Sink> Receiver<D, S> {
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
            let Some((channel, event)) = link.next(&mut self.buffers)? else { break };
            self.handle(channel, event, caller)?;
        }
        // At once, while the bytes are still in the core's cache.
        self.push();
        Ok(())
    }

    pub(super) fn wants_input(&self) -> bool {
        let is_running = matches!(self.phase, Phase::Running);
        self.is_hung_up || !is_running || self.sink.wants_more()
    }

    fn handle(
        &mut self,
        channel: u16,
        event: Event,
        caller: &mut dyn Caller,
    ) -> Result<(), ReceiveError> {
        match event {
            Event::Deliver(head, batches) => {
                return self.deliver(channel, &head, &batches, caller);
            }
            Event::Receiving(receiving) => return self.receiving(channel, receiving, caller),
            Event::End => self.has_ended = true,
            // Nothing can come, so no time is counted in which nothing comes.
            Event::Held => self.waits_for_engine = true,
            Event::Closed if channel == CHANNEL => self.is_closed = true,
            Event::Closed => {
                if let Some(member) = self.members.by_channel(channel) {
                    caller.note(Note::QueueRemoved(self.members.at(member).name.clone()));
                    self.part_from(member);
                }
            }
            Event::Fault(fault) if fault.code == ErrorCode::Stopping => self.lose(true, caller),
            Event::Fault(fault) => self.fault(channel, fault, caller),
            Event::Goodbye(orderly) => self.lose(orderly, caller),
        }
        Ok(())
    }

    fn fault(&mut self, channel: u16, fault: Fault, caller: &mut dyn Caller) {
        // What it held is not ours any more; what is begun is brought to its end, so that a
        // reader is not left with half a message.
        match self.members.by_channel(channel).filter(|_| channel != CHANNEL) {
            Some(member) => {
                let name = self.members.at(member).name.clone();
                caller.note(Note::QueueFailed(name, fault.clone()));
                self.failed_member.get_or_insert(fault);
                self.part_from(member);
            }
            None => match (fault.code, &fault.url) {
                (ErrorCode::Elsewhere, Some(url))
                    if matches!(self.options.queues, Queues::One(_))
                        && self.dialer.go_to(url.clone()) =>
                {
                    self.move_on()
                }
                _ => self.fail(ClientError::Refused(fault).into()),
            },
        }
    }

    /// The queue lives elsewhere: what was had of it here is settled or void.
    fn move_on(&mut self) {
        self.link = None;
        self.lost = None;
        self.waits_for_engine = false;
        self.adrift_since = self.now();
        self.has_ended = false;
        self.members.lost();
        for number in self.members.numbers() {
            self.part_from(number);
        }
        self.sink.lost();
    }

    /// One of several queues is gone; the others go on.
    fn part_from(&mut self, member: MemberNumber) {
        let held = messages_in(&self.sink.held(member));
        let dropped = messages_in(&self.sink.keep(member, &[]));
        self.accepted -= dropped;
        self.credit.skipped(dropped);
        self.credit.dropped(held - dropped);
        self.members.close(member);
    }

    fn receiving(
        &mut self,
        channel: u16,
        receiving: Receiving,
        caller: &mut dyn Caller,
    ) -> Result<(), ReceiveError> {
        match (&self.options.queues, receiving.queue.clone(), receiving.queue_id) {
            (Queues::One(name), _, None) => {
                let name = name.clone();
                self.miss_queue(Some(name), caller);
                // A queue that is gone has nothing left to be settled.
                self.is_closed = true;
            }
            (Queues::One(_), _, Some(id)) => {
                self.announced(MemberNumber(0), channel, id, receiving, caller);
                self.all_announced();
            }
            (Queues::Several { .. }, Some(name), Some(id)) => {
                let member = self.member(name)?;
                self.announced(member, channel, id, receiving, caller);
            }
            (Queues::Several { .. }, Some(name), None) => {
                if let Some(member) = self.members.by_name(&name) {
                    self.part_from(member);
                }
            }
            (Queues::Several { .. }, None, _) => {
                if !self.members.has_queues() {
                    self.miss_queue(None, caller);
                }
                self.all_announced();
            }
        }
        Ok(())
    }

    fn miss_queue(&mut self, name: Option<Name>, caller: &mut dyn Caller) {
        let ends = self.options.until_end;
        if !std::mem::replace(&mut self.is_queue_missed, true) && !ends {
            caller.note(Note::NoQueue(name));
        }
    }

    /// The member of this name, which the server has announced.
    fn member(&mut self, name: Name) -> Result<MemberNumber, ReceiveError> {
        if let Some(member) = self.members.by_name(&name) {
            return Ok(member);
        }
        let sink = &self.sink;
        let member = self.members.add(name, |member| !sink.held(member).is_empty());
        if self.members.count() > 2 * limits::MEMBERS_PER_CHANNEL_MAX {
            let what = "more queues than a receiver takes from".to_owned();
            return Err(ClientError::Unexpected(what).into());
        }
        Ok(member)
    }

    /// A queue can be received from, now or, if only one receiver may, in its turn.
    fn announced(
        &mut self,
        number: MemberNumber,
        channel: u16,
        id: QueueId,
        receiving: Receiving,
        caller: &mut dyn Caller,
    ) {
        self.waiting_since = self.now();
        self.waits_for_engine = false;
        self.members.announce(number, channel);
        let member = self.members.at_mut(number);
        if receiving.passed.0 > 0 {
            caller.note(Note::Passed(member.name.clone(), receiving.passed));
        }
        member.epoch = receiving.epoch;
        member.delivery_limit = receiving.delivery_limit;
        if self.options.exclusive && receiving.epoch.is_none() {
            if receiving.held && !std::mem::replace(&mut self.is_turn_awaited, true) {
                caller.note(Note::Waiting(member.name.clone()));
            }
            return;
        }
        // Only the settings have changed.
        if member.unpacker.as_ref().is_some_and(|unpacker| unpacker.queue_id() == id) {
            return;
        }
        if member.queue_id.is_some_and(|before| before != id) {
            caller.note(Note::QueueReplaced(member.name.clone()));
            member.replaced();
        }
        let is_resumed = member.queue_id.replace(id) == Some(id);
        member.until = receiving.until;
        member.unpacker = Some(Unpacker::new(id));
        let kept = if is_resumed { receiving.kept } else { Vec::new() };
        self.keep(number, is_resumed, &kept);
    }

    /// The server says what of a member is still ours.
    fn keep(&mut self, number: MemberNumber, is_resumed: bool, kept: &[OffsetRange]) {
        // What is not held until it is settled is not lost with a connection either.
        if self.options.taking == Taking::Acked || !is_resumed {
            let dropped = messages_in(&self.sink.keep(number, kept));
            self.accepted -= dropped;
            self.credit.lost(dropped);
        }
        self.credit.kept(messages_in(kept));
        let member = self.members.at_mut(number);
        member.keep(kept);
        // The server before did not hear that these are settled.
        let mut known = Settled::default();
        self.sink.held(number).into_iter().chain(member.failed()).for_each(|r| known.push(r));
        let again = without(kept, &known.take());
        self.credit.dropped(messages_in(&again) + messages_in(&member.failed()));
        again.into_iter().for_each(|range| self.members.settle(number, range));
    }

    /// The server has said of every queue what is still ours: an end that had begun goes on.
    fn all_announced(&mut self) {
        let Some(link) = &mut self.link else { return };
        if std::mem::replace(&mut link.is_announced, true) {
            return;
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
        channel: u16,
        head: &DeliverHead,
        batches: &Slice,
        caller: &mut dyn Caller,
    ) -> Result<(), ReceiveError> {
        if !matches!(self.phase, Phase::Running) {
            // It crossed our decision to end; the server takes it back when the channel closes.
            return Ok(());
        }
        let number = self.members.by_channel(channel);
        let unpacker = number.and_then(|number| self.members.at_mut(number).unpacker.as_mut());
        let (Some(number), Some(unpacker)) = (number, unpacker) else {
            let what = "a DELIVER frame before the queue was named".to_owned();
            return Err(ClientError::Unexpected(what).into());
        };
        let mut verified = Vec::new();
        let unpacked = unpacker.unpack(head, batches, |batch| verified.push(batch));
        self.waiting_since = self.now();
        let mut messages = 0;
        let taken = verified.into_iter().try_for_each(|batch| {
            let count = u64::from(batch.header.count);
            self.accept(number, head, batch, caller)?;
            messages += count;
            Ok(())
        });
        if messages > 0 {
            let now = self.now();
            self.credit.delivered(now, messages, head.behind);
            self.complaints = 0;
            self.sink.hasten(now, false);
        }
        self.tell_notes(caller);
        match taken.and(unpacked) {
            Ok(()) => Ok(()),
            Err(error) => self.complain(number, channel, head, error),
        }
    }

    /// Gives a batch to the sink, as far as it is news and wanted.
    fn accept(
        &mut self,
        number: MemberNumber,
        head: &DeliverHead,
        batch: Batch,
        caller: &mut dyn Caller,
    ) -> Result<(), DeliveryError> {
        let (start, count) = (batch.header.offset, u64::from(batch.header.count));
        let member = self.members.at_mut(number);
        // A new server shows one who only looks everything again from the start.
        let is_peek = self.options.taking == Taking::Looked;
        let seen = if is_peek { member.highest.0.saturating_sub(start.0).min(count) } else { 0 };
        self.credit.skipped(seen);
        // The credit sees to it that no more come, but for a server that counts otherwise.
        let room = self.options.limit.map_or(u64::MAX, |limit| limit - self.accepted);
        let end = seen + room.min(count - seen);
        let part = |from, to| OffsetRange::new(start.plus(Count(from)), start.plus(Count(to)));
        if end < count {
            self.members.release(number, part(end, count));
        }
        if seen == end {
            return Ok(());
        }
        let member = self.members.at_mut(number);
        let origin = Origin {
            queue: &member.name,
            queue_id: member.queue_id.expect("its messages come"),
            group: &self.options.group,
            attempt: Attempts(head.attempt),
            lease: head.lease,
        };
        let place = batch.place;
        self.sink
            .accept(number, &origin, batch, seen..end)
            .map_err(|source| DeliveryError::of(&place, source))?;
        let range = part(seen, end);
        member.highest = member.highest.max(range.end);
        self.accepted += range.span();
        if head.redelivered && !is_peek {
            self.redelivered += range.span();
            self.tell_redelivered(caller, Some((number, range)));
        }
        Ok(())
    }

    /// Tells ranges of redelivered messages, joined as far as they follow one another.
    pub(super) fn tell_redelivered(
        &mut self,
        caller: &mut dyn Caller,
        next: Option<(MemberNumber, OffsetRange)>,
    ) {
        match (self.redelivering, next) {
            (Some((member, before)), Some((same, next)))
                if member == same && before.end == next.start =>
            {
                self.redelivering = Some((member, OffsetRange::new(before.start, next.end)));
            }
            (before, next) => {
                if let Some((member, range)) = before {
                    caller.note(Note::Redelivered(self.members.at(member).name.clone(), range));
                }
                self.redelivering = next;
            }
        }
    }

    /// A delivery cannot be used. The server looks whether what it has stored is damaged; if it
    /// is not, the messages that are given back here come again.
    fn complain(
        &mut self,
        number: MemberNumber,
        channel: u16,
        head: &DeliverHead,
        error: DeliveryError,
    ) -> Result<(), ReceiveError> {
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
        let start = if head.redelivered { Offset(0) } else { self.members.at(number).highest };
        let lost = gaps(OffsetRange::new(start.min(end), end), &self.sink.held(number));
        self.credit.delivered(self.now(), messages_in(&lost), true);
        self.credit.skipped(messages_in(&lost));
        if let Some(link) = &mut self.link {
            link.complain(channel, segment, position);
        }
        lost.into_iter().for_each(|range| self.members.release(number, range));
        Ok(())
    }
}
