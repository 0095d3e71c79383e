//! From the broker's offer over the log's range to the outbox.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::batch::Place;
use crate::broker::{ConsumerKey, GroupKey, Mode};
use crate::limits;
use crate::log::storage::{Storage, StorageFile};
use crate::log::{Found, Select};
use crate::planted::{self, Bug};
use crate::units::{Ending, LeaseNumber, Offset, OffsetRange, Position, WallTime};
use crate::wire::{DeliverHead, ExtentHead};

use super::session::{Channel, Receiver};
use super::{ConnectionId, Engine, QueueNumber, Work};

/// Up to here bytes are copied into the outbox and sent with their head in one call; from here
/// on sending them from the page cache costs less.
const COPY_BYTES: u64 = 16 * 1024;

/// Deliveries put into one connection's outbox in one turn, so that many small ones to one
/// reader do not hold up the others.
const DELIVERIES_PER_TURN: usize = 64;

/// What became of an attempt to deliver.
enum Delivered {
    /// There may be more for this consumer.
    Some,
    /// Not now; the broker or a job will say when.
    None,
}

/// Why messages are not delivered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unwanted {
    /// Their time is over.
    Expired,
    /// They are for another group only.
    NotOurs,
}

/// How a range of batches goes out.
enum Way {
    Bytes,
    /// As an EXTENT, with the descriptor if it does not have that yet.
    Extent(Option<OwnedFd>),
    /// Neither: it is to be located anew.
    Anew,
}

/// A range of batches on its way into an outbox.
struct Shipment<F> {
    queue: QueueNumber,
    file: Arc<F>,
    place: Place,
    bytes: u64,
}

impl<S: Storage> Engine<S> {
    /// The broker says that this consumer can be offered something.
    pub(super) fn ready(&mut self, consumer: ConsumerKey) {
        let Some(&(connection, channel)) = self.consumers.get(&consumer) else { return };
        self.channel_ready(connection, channel);
        self.feed(connection);
    }

    pub(super) fn channel_ready(&mut self, connection: ConnectionId, id: u16) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        if let Some(Channel::Receiving(receiver)) = session.channels.get_mut(&id)
            && !receiver.ready
        {
            receiver.ready = true;
            match receiver.main {
                None => session.ready.push_back(id),
                Some(main) => {
                    let queue = receiver.queue;
                    self.member_ready(connection, main, id, queue);
                    return;
                }
            }
        }
        if session.wants_food() {
            self.make_hungry(connection);
        }
    }

    /// Puts deliveries into the outbox of a connection, round robin over its channels, until it
    /// is full enough.
    pub(super) fn feed(&mut self, connection: ConnectionId) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        session.hungry = false;
        for _ in 0..DELIVERIES_PER_TURN {
            let Some(session) = self.sessions.get_mut(&connection) else { return };
            if !session.wants_food() || session.ending {
                return;
            }
            let id = session.ready.pop_front().expect("it wants food");
            match session.channels.get_mut(&id) {
                Some(Channel::Receiving(receiver)) => {
                    receiver.ready = false;
                    let receiver = *receiver;
                    if let Delivered::Some = self.deliver(connection, id, receiver, u64::MAX) {
                        self.channel_ready(connection, id);
                    }
                }
                Some(Channel::Several(several)) => {
                    several.queued = false;
                    self.deliver_member(connection, id);
                }
                _ => {}
            }
        }
        self.sent(connection);
    }

    /// Delivers from the member of a receiver of several queues whose turn it is.
    fn deliver_member(&mut self, connection: ConnectionId, main: u16) {
        let session = self.sessions.get_mut(&connection).expect("it is fed");
        let Some(Channel::Several(several)) = session.channels.get_mut(&main) else { return };
        let most = several.remaining();
        if most > 0
            && let Some(member) = several.next()
            && let Some(Channel::Receiving(receiver)) = session.channels.get_mut(&member)
        {
            receiver.ready = false;
            let receiver = *receiver;
            if let Delivered::Some = self.deliver(connection, member, receiver, most) {
                self.channel_ready(connection, member);
            }
        }
        self.several_ready(connection, main);
    }

    fn deliver(
        &mut self,
        connection: ConnectionId,
        id: u16,
        receiver: Receiver,
        most: u64,
    ) -> Delivered {
        if receiver.extents.is_behind() {
            return Delivered::None;
        }
        let Some(offer) = self.broker.offer(receiver.consumer, most) else {
            return Delivered::None;
        };
        let (from, mut limit) = (offer.range.start, offer.range.end);
        if receiver.how.durable {
            let durable = self.durable_end_for((connection, id), receiver.queue, limit);
            if durable <= from {
                return Delivered::None;
            }
            limit = limit.min(durable);
        }
        let hosted = self.hosted.get_mut(&receiver.queue).expect("a receiver's queue");
        let group = receiver.group.map(|group| self.broker.group_name(group));
        let select = Select { wall: Some(self.clock.wall), group };
        let reads = receiver.extents.most > 0;
        let bytes_max = if reads { limits::EXTENT_BYTES } else { limits::DELIVER_BYTES };
        let found = match hosted.log.locate(from, limit, bytes_max, &select) {
            Ok(found) => found,
            Err(error) => {
                self.stand_still(receiver.queue, error.to_string());
                return Delivered::None;
            }
        };
        let attempt = if receiver.mode == Mode::Take { offer.attempt.0 } else { 0 };
        let head = DeliverHead {
            segment: crate::units::SegmentNumber(u64::MAX),
            position: Position(u64::MAX),
            end: limit,
            attempt,
            lease: LeaseNumber(0),
            more: false,
            redelivered: offer.redelivered,
            behind: false,
        };
        let (bytes, end) = match found {
            Found::Cold { read } => {
                hosted.cold_waiters.push((connection, id));
                if !hosted.cold_read_under_way {
                    hosted.cold_read_under_way = true;
                    hosted.jobs_under_way += 1;
                    self.jobs.push(Work::read(receiver.queue, read));
                }
                return Delivered::None;
            }
            Found::Expired { end } => {
                self.pass_over(receiver, OffsetRange::new(from, end), Unwanted::Expired);
                return Delivered::Some;
            }
            Found::NotOurs { end } => {
                self.pass_over(receiver, OffsetRange::new(from, end), Unwanted::NotOurs);
                return Delivered::Some;
            }
            Found::Cut { bytes, end, time } => {
                let head = self.taken(receiver, from, time, DeliverHead { end, ..head });
                let session = self.sessions.get_mut(&connection).expect("a connected client");
                session.outbox.push_bytes(&head.encode(id, bytes.len()));
                session.outbox.push_bytes(&bytes);
                (bytes.len() as u64, end)
            }
            Found::Whole { file, place, bytes, end, time } => {
                let shipment = Shipment { queue: receiver.queue, file, place, bytes };
                let way = self.way_of(connection, id, &shipment);
                if matches!(way, Way::Anew) {
                    return Delivered::Some;
                }
                let head = self.taken(receiver, from, time, DeliverHead { end, ..head });
                match way {
                    Way::Extent(descriptor) => {
                        self.ship_extent(connection, id, head, &shipment, descriptor);
                    }
                    _ => self.ship(connection, id, head, shipment),
                }
                (bytes, end)
            }
            Found::Chain { file, parts, end, time } => {
                let head = self.taken(receiver, from, time, DeliverHead { end, ..head });
                let last = parts.len() - 1;
                let bytes = parts.iter().map(|(_, bytes)| bytes).sum();
                for (n, (place, bytes)) in parts.into_iter().enumerate() {
                    let more = n < last;
                    let head = DeliverHead { end: if more { from } else { end }, more, ..head };
                    let file = Arc::clone(&file);
                    self.ship(
                        connection,
                        id,
                        head,
                        Shipment { queue: receiver.queue, file, place, bytes },
                    );
                }
                (bytes, end)
            }
        };
        let range = OffsetRange::new(from, end);
        if receiver.mode == Mode::Take {
            self.count_shipped(receiver.queue, range, bytes, offer.redelivered);
        }
        self.shipped(connection, id, range, bytes);
        Delivered::Some
    }

    /// Where what is durable of a queue ends. If that is before `end`, all that was written is synced,
    /// whatever the queue's policy, and the channel is called on again.
    fn durable_end_for(
        &mut self,
        channel: (ConnectionId, u16),
        number: QueueNumber,
        end: Offset,
    ) -> Offset {
        let hosted = self.hosted.get_mut(&number).expect("a receiver's queue");
        let durable = hosted.log.durable_end();
        if durable < end {
            hosted.log.want_durable();
            if !hosted.durable_waiters.contains(&channel) {
                hosted.durable_waiters.push(channel);
            }
            self.touch(number);
        }
        durable
    }

    /// More of a queue is durable than before.
    pub(super) fn became_durable(&mut self, number: QueueNumber) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        for (connection, channel) in std::mem::take(&mut hosted.durable_waiters) {
            self.channel_ready(connection, channel);
        }
    }

    /// Messages lie in the outbox.
    fn shipped(&mut self, connection: ConnectionId, id: u16, range: OffsetRange, bytes: u64) {
        self.dirty.push(connection);
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        if let Some(Channel::Receiving(receiver)) = session.channels.get_mut(&id) {
            receiver.share.add(range.span(), bytes);
        }
    }

    /// Messages that this receiver is not to have: it passes over them if it only looks, else
    /// they are settled for its group, or die if the queue keeps what expired.
    fn pass_over(&mut self, receiver: Receiver, range: OffsetRange, why: Unwanted) {
        let Receiver { queue, consumer, group, mode, .. } = receiver;
        let (Mode::Take, Some(group)) = (mode, group) else {
            self.broker.pass(consumer, range.end);
            return;
        };
        let has_expired = why == Unwanted::Expired;
        let hosted = self.hosted.get_mut(&queue).expect("a receiver's queue");
        let mut gone = range.span();
        if has_expired && hosted.log.settings().dead_letter.is_some() {
            self.condemn(group, &[range], "expired", self.clock);
        } else {
            let ending = if has_expired { Ending::Expired } else { Ending::Others };
            let settled = self.broker.expire(group, &[range], ending);
            gone = settled.iter().map(OffsetRange::span).sum();
            self.settle(queue, group, &settled, ending);
        }
        if has_expired && let Some(hosted) = self.hosted.get_mut(&queue) {
            // For each group that had them still to come.
            hosted.log.counters().expired.0 += gone;
        }
    }

    /// What was located is taken in the broker, and the group's journal is to be told. Completes
    /// the head of what is delivered.
    fn taken(
        &mut self,
        receiver: Receiver,
        from: Offset,
        stored: WallTime,
        head: DeliverHead,
    ) -> DeliverHead {
        let range = OffsetRange::new(from, head.end);
        let lease = match (receiver.mode, receiver.group) {
            (Mode::Take, Some(group)) => {
                self.count_handed(receiver, group, range, head.redelivered, stored);
                self.hand_over(receiver, group, range)
            }
            _ => {
                self.broker.take(receiver.consumer, range);
                LeaseNumber(0)
            }
        };
        let behind = match receiver.main {
            Some(main) => self.member_took(receiver, main, range.span()),
            None => self.broker.is_behind(receiver.consumer),
        };
        DeliverHead { lease, behind, ..head }
    }

    fn hand_over(
        &mut self,
        receiver: Receiver,
        group: GroupKey,
        range: OffsetRange,
    ) -> LeaseNumber {
        let mut lease = LeaseNumber(0);
        match receiver.how.lease {
            Some(span) => lease = self.lease(receiver, group, range, span),
            None => self.broker.take(receiver.consumer, range),
        }
        let hosted = self.hosted.get_mut(&receiver.queue).expect("a receiver's queue");
        hosted.changed = self.watch.tick;
        if hosted.handed.is_empty() {
            self.handing.push(receiver.queue);
        }
        let handed = hosted.handed.entry(group).or_default();
        if !planted::is(Bug::HandedNotNoted) {
            *handed = (*handed).max(range.end);
        }
        if receiver.how.no_ack {
            let settled = self.broker.ack(receiver.consumer, &[range]);
            self.settle(receiver.queue, group, &settled, Ending::Acked);
        }
        lease
    }

    /// Whether batches go as bytes, or as the range of a file to a receiver that asked for that.
    fn way_of(&mut self, connection: ConnectionId, id: u16, range: &Shipment<S::File>) -> Way {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let Some(Channel::Receiving(receiver)) = session.channels.get_mut(&id) else {
            unreachable!("a channel that is delivered to")
        };
        let extents = &mut receiver.extents;
        if extents.most == 0 || range.bytes < limits::EXTENT_BYTES_MIN {
            return Way::Bytes;
        }
        if extents.segment == range.place.segment {
            return Way::Extent(None);
        }
        match range.file.reader() {
            Some(reader) => Way::Extent(Some(reader)),
            None => {
                // Without descriptors or without /proc it gets bytes, and not so many at once.
                extents.most = 0;
                Way::Anew
            }
        }
    }

    /// Says where the batches are.
    fn ship_extent(
        &mut self,
        connection: ConnectionId,
        id: u16,
        head: DeliverHead,
        range: &Shipment<S::File>,
        descriptor: Option<OwnedFd>,
    ) {
        let Place { segment, position, .. } = range.place;
        let head = DeliverHead { segment, position, ..head };
        let extent = ExtentHead { head, bytes: range.bytes, opens: descriptor.is_some() };
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        match descriptor {
            None => session.outbox.push_bytes(&extent.encode(id)),
            Some(descriptor) => session.outbox.push_descriptor(&extent.encode(id), descriptor),
        }
        if let Some(Channel::Receiving(receiver)) = session.channels.get_mut(&id) {
            receiver.extents.segment = segment;
            receiver.extents.sent += 1;
        }
    }

    fn ship(
        &mut self,
        connection: ConnectionId,
        id: u16,
        head: DeliverHead,
        range: Shipment<S::File>,
    ) {
        let head =
            DeliverHead { segment: range.place.segment, position: range.place.position, ..head };
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.outbox.push_bytes(&head.encode(id, range.bytes as usize));
        if range.bytes > COPY_BYTES {
            session.outbox.push_file(range.queue, range.file, range.place.position.0, range.bytes);
            return;
        }
        let mut bytes = vec![0; range.bytes as usize];
        match range.file.read_at(&mut bytes, range.place.position) {
            Ok(n) if n == bytes.len() => session.outbox.push_bytes(&bytes),
            // The file range shows the same failure where it can be dealt with: at sending.
            _ => session.outbox.push_file(
                range.queue,
                range.file,
                range.place.position.0,
                range.bytes,
            ),
        }
    }
}
