//! From OPEN_RECEIVE over CREDIT to ACK and RELEASE, and the end of any channel.

use crate::batch::Place;
use crate::limits;
use crate::log::LogError;
use crate::log::storage::Storage;
use crate::units::{Ending, Name, OffsetRange, Position, SegmentNumber};
use crate::wire::{ErrorCode, Fault, MEMBER_CHANNELS, OpenReceive, ReceiveMode, Receiving, Reply};

use super::attaching::{Attached, Resume};
use super::hosting::{Place as Standing, being_removed, damaged};
use super::session::{Channel, Opening, Receiver};
use super::{ConnectionId, Engine, QueueNumber, Trouble, fault, protocol};

/// What is asked for must make sense.
fn check_how(open: &OpenReceive) -> Result<(), Fault> {
    let span = limits::LEASE_MIN..=limits::LEASE_MAX;
    let wrong = match open {
        OpenReceive { lease: Some(lease), .. } if !span.contains(lease) => {
            "a lease lasts from 10ms to 30 days"
        }
        OpenReceive { lease: Some(_), no_ack: true, .. } => {
            "a lease without an ack settles nothing"
        }
        OpenReceive { lease: Some(_), tries: true, .. } => "a lease is a try by itself",
        OpenReceive { backoff: Some(backoff), .. } if backoff.max > limits::BACKOFF_LONGEST => {
            "a back-off is at most one day"
        }
        _ => return Ok(()),
    };
    Err(fault(ErrorCode::Usage, wrong))
}

fn are_in_order(ranges: &[OffsetRange]) -> bool {
    ranges.iter().all(|range| range.start < range.end)
        && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

impl<S: Storage> Engine<S> {
    pub(super) fn open_receive(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        open: OpenReceive,
    ) -> Result<(), Trouble> {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.open(channel).map_err(protocol)?;
        check_how(&open)?;
        let begun = open.begun.iter().map(|begun| &begun.ranges);
        let of_members = open.holdings.iter().flat_map(|held| {
            std::iter::once(&held.ranges).chain(held.begun.iter().map(|begun| &begun.ranges))
        });
        let mut all = std::iter::once(&open.holding).chain(begun).chain(of_members);
        if !all.all(|ranges| are_in_order(ranges)) {
            return Err(protocol("held ranges that are empty or out of order"));
        }
        if !open.patterns.is_empty() {
            return self.open_several(connection, channel, open);
        }
        match self.places.get_mut(&open.queue) {
            Some(Standing::Live(number)) => {
                let number = *number;
                self.attach_receiver(connection, channel, number, open)
            }
            Some(Standing::Damaged(why)) => Err(damaged(&open.queue, why).into()),
            Some(Standing::Removing) => Err(being_removed(&open.queue).into()),
            // With `until_end`, a queue that is only being made has nothing ready.
            _ if open.until_end || open.mode == ReceiveMode::Peek => {
                session.channels.insert(channel, Channel::Admin);
                self.reply(connection, channel, &Reply::Receiving(Receiving::default()));
                self.reply(connection, channel, &Reply::End);
                Ok(())
            }
            Some(Standing::Making(_)) | None => {
                self.awaited.entry(open.queue.clone()).or_default().push((connection, channel));
                let opening = Opening { open, credit: None };
                session.channels.insert(channel, Channel::OpeningReceive(opening));
                self.reply(connection, channel, &Reply::Receiving(Receiving::default()));
                Ok(())
            }
        }
    }

    fn attach_receiver(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        number: QueueNumber,
        open: OpenReceive,
    ) -> Result<(), Trouble> {
        let OpenReceive { queue_id, until, .. } = open;
        let resume = Resume { queue_id, holding: &open.holding, begun: &open.begun, until };
        if let Attached::Waits = self.attach((connection, channel), false, number, &open, resume)? {
            let opening = Opening { open, credit: None };
            self.hold(connection, channel, Channel::OpeningReceive(opening));
        }
        Ok(())
    }

    /// What a channel that is to receive waited for may be there.
    pub(super) fn open_receive_again(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        opening: Opening,
    ) -> Result<(), Trouble> {
        let Opening { open, credit } = opening;
        self.open_receive(connection, channel, open)?;
        credit.map_or(Ok(()), |total| self.credit(connection, channel, total))
    }

    /// The receiver of a channel; none when the channel failed and the client may not know yet.
    pub(super) fn receiver(
        &mut self,
        connection: ConnectionId,
        channel: u16,
    ) -> Result<Option<Receiver>, Trouble> {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        match session.channels.get(&channel) {
            Some(Channel::Receiving(receiver)) => Ok(Some(*receiver)),
            Some(Channel::Failed | Channel::OpeningReceive(_) | Channel::Admin) => Ok(None),
            // A member's channel ends when its queue goes, and the client may not know yet.
            None if channel >= MEMBER_CHANNELS => Ok(None),
            _ => Err(protocol("a receiver's frame on a channel that does not receive")),
        }
    }

    /// What a receiver that tries is told of the delivery limit.
    pub(super) fn delivery_limit_for(&self, receiver: Receiver) -> Option<u32> {
        let settings = self.hosted[&receiver.queue].log.settings();
        settings.delivery_limit().filter(|_| receiver.how.tries)
    }

    pub(super) fn credit(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        total: u64,
    ) -> Result<(), Trouble> {
        if self.credit_several(connection, channel, total) {
            return Ok(());
        }
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        if let Some(Channel::OpeningReceive(opening)) = session.channels.get_mut(&channel) {
            opening.credit = Some(total);
            return Ok(());
        }
        let Some(receiver) = self.receiver(connection, channel)? else { return Ok(()) };
        if receiver.main.is_some() {
            return Err(protocol("CREDIT on a channel of one of several queues"));
        }
        if !self.withholds(receiver, total) {
            self.broker.credit(receiver.consumer, total);
        }
        Ok(())
    }

    /// The receiver is done with so many extents: as many more may be sent.
    pub(super) fn extents_done(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        done: u64,
    ) -> Result<(), Trouble> {
        if self.receiver(connection, channel)?.is_none() {
            return Ok(());
        }
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let Some(Channel::Receiving(receiver)) = session.channels.get_mut(&channel) else {
            unreachable!("it was just there")
        };
        let extents = &mut receiver.extents;
        if !(extents.done..=extents.sent).contains(&done) {
            return Err(protocol("EXTENTS that were not sent, or fewer than before"));
        }
        extents.done = done;
        self.channel_ready(connection, channel);
        Ok(())
    }

    pub(super) fn ack(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        ranges: &[OffsetRange],
    ) -> Result<(), Trouble> {
        let Some(receiver) = self.receiver(connection, channel)? else { return Ok(()) };
        let Some(group) = receiver.group else {
            return Err(protocol("an ACK from a receiver that only looks"));
        };
        let settled = self.broker.ack(receiver.consumer, ranges);
        self.settle(receiver.queue, group, &settled, Ending::Acked);
        Ok(())
    }

    pub(super) fn release(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        ranges: &[OffsetRange],
    ) -> Result<(), Trouble> {
        if let Some(receiver) = self.receiver(connection, channel)? {
            self.broker.release(receiver.consumer, ranges);
            self.count_returned(receiver.queue, receiver.group, ranges);
            self.changed(receiver.queue);
        }
        Ok(())
    }

    /// A client says that a batch fails its checksum. The server reads it again and decides by
    /// what it finds: a damaged queue stands still; otherwise the client's copy was bad, and
    /// what it released comes again.
    pub(super) fn complaint(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        segment: SegmentNumber,
        position: Position,
    ) -> Result<(), Trouble> {
        let Some(receiver) = self.receiver(connection, channel)? else { return Ok(()) };
        let hosted = self.hosted.get_mut(&receiver.queue).expect("a receiver's queue");
        let place = Place { queue: hosted.log.id(), segment, position };
        match hosted.log.complaint(place) {
            // A batch that is not there any more, or never was, says nothing about the queue.
            Ok(()) | Err(LogError::Gone(_)) => Ok(()),
            Err(error) => {
                let why = error.to_string();
                self.stand_still(receiver.queue, why);
                Ok(())
            }
        }
    }

    pub(super) fn close_channel(
        &mut self,
        connection: ConnectionId,
        channel: u16,
    ) -> Result<(), Trouble> {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        match session.channels.get_mut(&channel) {
            None => Err(protocol("CLOSE of a channel that is not open")),
            Some(Channel::Receiving(Receiver { main: Some(_), .. })) => {
                Err(protocol("CLOSE of a channel of one of several queues"))
            }
            Some(Channel::Sending(sender)) => {
                sender.closing = true;
                if sender.unconfirmed == 0 {
                    self.settle_sender(connection, channel);
                }
                Ok(())
            }
            Some(_) => {
                let closed = session.channels.remove(&channel).expect("it is there");
                self.drop_channel(connection, channel, closed);
                self.reply(connection, channel, &Reply::Closed);
                Ok(())
            }
        }
    }

    /// What a channel held is given back; it is not in its session any more.
    pub(super) fn drop_channel(&mut self, connection: ConnectionId, id: u16, channel: Channel<S>) {
        match channel {
            Channel::Sending(sender) => {
                if let Some(hosted) = self.hosted.get_mut(&sender.queue) {
                    hosted.senders -= 1;
                    hosted.disconnected(&sender, self.clock.wall);
                }
                if sender.switching.is_some()
                    && let Some(session) = self.sessions.get_mut(&connection)
                {
                    // Nobody but the channel that is gone would have let the connection go on.
                    session.unpark();
                    self.dirty.push(connection);
                }
                // Another may wait for the room that it would have taken.
                self.touch(sender.queue);
            }
            Channel::Receiving(receiver) => {
                if let Some(hosted) = self.hosted.get_mut(&receiver.queue) {
                    hosted.books.awaiting_turn.remove(&receiver.consumer);
                }
                if self.consumers.remove(&receiver.consumer).is_some() {
                    self.broker.remove_consumer(receiver.consumer);
                }
                self.changed(receiver.queue);
            }
            Channel::Several(several) => {
                self.drop_several(connection, id, &several);
                self.forget_waiter(None, (connection, id));
            }
            Channel::OpeningReceive(Opening { open, .. }) => {
                self.forget_waiter(Some(&open.queue), (connection, id));
                if let Some(waiting) = self.awaited.get_mut(&open.queue) {
                    waiting.retain(|one| *one != (connection, id));
                    if waiting.is_empty() {
                        self.awaited.remove(&open.queue);
                    }
                }
            }
            Channel::OpeningSend(open) => {
                self.forget_waiter(Some(&open.queue), (connection, id));
            }
            Channel::Declaring(_)
            | Channel::Purging(_)
            | Channel::Requeuing(_)
            | Channel::AskingGroup(_)
            | Channel::Admin => {
                self.forget_waiter(None, (connection, id));
            }
            Channel::Failed => {}
        }
    }

    /// Takes a channel out of every list of those that wait, of one queue or, seldom, of all.
    fn forget_waiter(&mut self, name: Option<&Name>, gone: (ConnectionId, u16)) {
        self.forget_seeker(gone);
        for (place, standing) in &mut self.places {
            if name.is_some_and(|name| name != place) {
                continue;
            }
            match standing {
                Standing::Making(waiting) => waiting.retain(|one| *one != gone),
                Standing::Live(number) => {
                    let hosted = self.hosted.get_mut(number).expect("a live queue");
                    hosted.quiet_waiters.retain(|one| *one != gone);
                    hosted.group_waiters.retain(|one| *one != gone);
                    hosted.settings_waiters.retain(|one| (one.connection, one.channel) != gone);
                    hosted.openers.retain(|one| *one != gone);
                    hosted.books.forget_waiter(gone);
                }
                Standing::Removing | Standing::Damaged(_) => {}
            }
        }
    }
}
