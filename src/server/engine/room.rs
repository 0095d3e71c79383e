//! Limits: how much a queue may hold, and what happens at that limit.
//!
//! What counts is what is not gone, and what waits for its time; bytes by the share of a segment's
//! messages that are not gone, and by the records of those that wait. A sender that finds no room waits (`block`), with the word HELD, or
//! is refused (`reject`); or the oldest messages go (`drop-oldest`), those in no one's hands. Called
//! by `sending`, and in each turn of a queue with limits.

use crate::broker::{Broker, GroupKey, QueueKey};
use crate::log::Log;
use crate::log::storage::Storage;
use crate::settings::{Overflow, Retention};
use crate::units::{Bytes, Count, Name, Offset, OffsetRange};
use crate::wire::{ErrorCode, Fault, Reply};

use super::hosting::Hosted;
use super::portion::Room;
use super::sending::Source;
use super::{ConnectionId, Engine, QueueNumber, fault_with};

/// A connection whose last PUBLISH waits for room.
pub(super) struct Waiting {
    pub connection: ConnectionId,
    /// What the next message takes.
    pub needed: Room,
}

/// At most so much was in the queue at that end of its log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Occupied {
    messages: u64,
    bytes: u64,
    /// Where the log ended then: what came behind is added.
    end: Offset,
    written: u64,
    /// Messages that waited for their time then: those that came since are added as well.
    delayed: u64,
    /// The same in bytes of their records, where bytes are limited.
    delayed_bytes: u64,
    /// Up to where messages were visible: for a queue that drops the oldest only those count.
    visible: Offset,
}

impl<S: Storage> Hosted<S> {
    /// Whether it has limits that senders can meet.
    fn is_limited(&self) -> bool {
        let settings = self.log.settings();
        let limited = settings.max_messages.is_some() || settings.max_bytes.is_some();
        limited && settings.retain == Retention::Acked
    }

    /// Its limits; what is not limited has room without end.
    fn limits(&self) -> Room {
        let settings = self.log.settings();
        Room {
            messages: settings.max_messages.unwrap_or(u64::MAX),
            bytes: settings.max_bytes.unwrap_or(u64::MAX),
        }
    }

    /// What is in it: exactly.
    fn occupied(&self, broker: &Broker) -> Occupied {
        let (end, written) = (self.log.written_end(), self.log.written_bytes().0);
        // What is not visible yet takes no room from what is, where that would have to go.
        let drops = self.log.settings().overflow == Overflow::DropOldest;
        let hidden = if drops { 0 } else { end.0 - broker.visible_end(self.key).0 };
        let delayed = self.delayed().0;
        let messages = broker.counts_without_group(self.key).0 + hidden + delayed;
        let (present, delayed_bytes) = match self.log.settings().max_bytes {
            Some(_) => (present_bytes(&self.log, broker, self.key, !drops), self.delayed_bytes().0),
            None => (0, 0),
        };
        let bytes = present + delayed_bytes;
        let visible = broker.visible_end(self.key);
        Occupied { messages, bytes, end, written, delayed, delayed_bytes, visible }
    }

    /// About how many bytes the messages have that are not gone.
    pub fn present_bytes(&self, broker: &Broker) -> Bytes {
        Bytes(present_bytes(&self.log, broker, self.key, false))
    }

    /// What it takes beside what is in it.
    fn room(&self, occupied: &Occupied) -> Room {
        let limits = self.limits();
        let waiting = self.delayed().0.saturating_sub(occupied.delayed);
        let messages = occupied.messages + (self.log.written_end().0 - occupied.end.0) + waiting;
        let waiting_bytes = match limits.bytes {
            u64::MAX => 0,
            _ => self.delayed_bytes().0.saturating_sub(occupied.delayed_bytes),
        };
        let written = self.log.written_bytes().0 - occupied.written;
        let bytes = occupied.bytes + written + waiting_bytes;
        Room {
            messages: limits.messages.saturating_sub(messages),
            bytes: limits.bytes.saturating_sub(bytes),
        }
    }
}

/// Bytes of the messages that are not gone.
fn present_bytes<S: Storage>(log: &Log<S>, broker: &Broker, queue: QueueKey, hidden: bool) -> u64 {
    let visible = broker.visible_end(queue);
    let present = |range: OffsetRange| {
        let behind = range.end.0.saturating_sub(range.start.max(visible).0);
        let behind = if hidden { behind } else { 0 };
        let below = range.intersection(&OffsetRange::new(Offset(0), visible));
        behind + below.map_or(0, |range| broker.present_in(queue, range).0)
    };
    log.bytes_of(present).0
}

impl<S: Storage> Engine<S> {
    /// The room that a queue has for so many messages in so many bytes of payload. At least what
    /// there is, if that is enough; else exactly.
    pub(super) fn room(&mut self, number: QueueNumber, messages: u64, bytes: usize) -> Room {
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        let overflow = hosted.log.settings().overflow;
        if !hosted.is_limited() || overflow == Overflow::DropOldest {
            return Room::ANY;
        }
        if let Some(occupied) = &hosted.occupied {
            let room = hosted.room(occupied);
            if room.fits(messages, bytes) {
                return room;
            }
        }
        let occupied = hosted.occupied(&self.broker);
        hosted.occupied = Some(occupied);
        hosted.room(&occupied)
    }

    /// The next message of a PUBLISH finds no room.
    pub(super) fn no_room(&mut self, source: Source, needed: Room) {
        let Source { connection, channel, number } = source;
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        let limits = hosted.limits();
        let never = needed.messages > limits.messages || needed.bytes > limits.bytes;
        let fault = full(hosted);
        if never {
            let what = format!("it does not fit queue {} even when that is empty", hosted.name);
            let remedy = "raise its limits with `mq-admin declare --change`, or send less at once \
                          (`mq-pipe --batch N`)";
            let fault = fault_with(ErrorCode::BadInput, what, remedy);
            return self.refuse(connection, channel, fault);
        }
        if hosted.log.settings().overflow == Overflow::Reject {
            return self.refuse(connection, channel, fault);
        }
        hosted.waiting.push_back(Waiting { connection, needed });
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.parked = true;
        session.held = true;
        if let Some(sender) = self.sender(source)
            && !std::mem::replace(&mut sender.held, true)
        {
            self.reply(connection, channel, &Reply::Held(fault));
        }
    }

    /// The channel's last PUBLISH found room.
    pub(super) fn let_go(&mut self, connection: ConnectionId, channel: u16) {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        if let Some(super::session::Channel::Sending(sender)) = session.channels.get_mut(&channel) {
            sender.held = false;
        }
    }

    /// In each turn of a queue: what is over its limits goes, or the first of those that wait for
    /// room may try again; when it has, it is the next one's turn.
    pub(super) fn keep_to_limits(&mut self, number: QueueNumber) {
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        if hosted.is_limited() && hosted.log.settings().overflow == Overflow::DropOldest {
            self.drop_surplus(number);
        }
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        let is_there = |waiting: &Waiting| self.sessions.contains_key(&waiting.connection);
        while hosted.waiting.front().is_some_and(|first| !is_there(first)) {
            hosted.waiting.pop_front();
        }
        let Some(first) = hosted.waiting.front() else { return };
        let room = if hosted.is_limited() {
            let occupied = hosted.occupied(&self.broker);
            hosted.occupied = Some(occupied);
            hosted.room(&occupied)
        } else {
            Room::ANY
        };
        if room.messages >= first.needed.messages && room.bytes >= first.needed.bytes {
            let first = hosted.waiting.pop_front().expect("there is a first");
            if let Some(session) = self.sessions.get_mut(&first.connection) {
                session.unpark();
                self.dirty.push(first.connection);
            }
        }
    }

    /// Drops the oldest messages until the queue is within its limits, or what is left is in
    /// someone's hands.
    fn drop_surplus(&mut self, number: QueueNumber) {
        loop {
            let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
            let visible = self.broker.visible_end(hosted.key);
            if let Some(occupied) = &hosted.occupied
                && occupied.visible == visible
                && hosted.room(occupied).fits_more()
            {
                return;
            }
            let occupied = hosted.occupied(&self.broker);
            // What is not visible yet is not counted; it has to be when it is.
            let is_all = self.broker.visible_end(hosted.key) == hosted.log.written_end();
            hosted.occupied = Some(occupied).filter(|_| is_all);
            let surplus = hosted.surplus(&occupied);
            if surplus == 0 {
                return;
            }
            if hosted.log.settings().dead_letter.is_some() {
                return self.bury_surplus(number, surplus);
            }
            let dropped = self.broker.drop_oldest(hosted.key, Count(surplus));
            if dropped.messages.is_empty() {
                return;
            }
            hosted.log.counters().dropped.0 += dropped.messages.span();
            self.settle_dropped(number, dropped);
        }
    }
}

impl<S: Storage> Engine<S> {
    /// As [`drop_surplus`](Engine::drop_surplus), for a queue that keeps what it drops as dead
    /// letters: each group that has not settled a message gets one. They are gone when they have
    /// been moved.
    fn bury_surplus(&mut self, number: QueueNumber, surplus: u64) {
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        let key = hosted.key;
        let groups: Vec<GroupKey> = self.broker.groups(key).map(|(group, _)| group).collect();
        if groups.is_empty() {
            // A letter is a group's; the one that is made by being used is made by this.
            if self.group_to_take_from(number, &Name::default()).is_ok() {
                self.touch(number);
            }
            return;
        }
        let dying = groups.iter().map(|group| self.broker.counts(*group).dying.0).max();
        let surplus = surplus.saturating_sub(dying.unwrap_or(0));
        let chosen = self.broker.oldest_free(key, Count(surplus));
        if surplus == 0 || chosen.is_empty() {
            return;
        }
        let ranges: Vec<OffsetRange> = chosen.iter().collect();
        for group in groups {
            self.condemn(group, &ranges, "dropped", self.clock);
        }
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        hosted.log.counters().dropped.0 += chosen.span();
    }
}

impl Room {
    /// Whether anything is left.
    fn fits_more(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }
}

impl<S: Storage> Hosted<S> {
    /// About how many messages are too many.
    fn surplus(&self, occupied: &Occupied) -> u64 {
        let limits = self.limits();
        let messages = occupied.messages.saturating_sub(limits.messages);
        let bytes = occupied.bytes.saturating_sub(limits.bytes);
        // By the average of what is there, rounded up so that not too many go; the caller asks
        // again until it is enough.
        let each = occupied.bytes.div_ceil(occupied.messages.max(1)).max(1);
        messages.max(bytes.div_ceil(each))
    }
}

fn full<S: Storage>(hosted: &Hosted<S>) -> Fault {
    let settings = hosted.log.settings();
    let limits = [
        settings.max_messages.map(|most| format!("{most} messages")),
        settings.max_bytes.map(|most| format!("{most} bytes")),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    fault_with(
        ErrorCode::Full,
        format!("queue {} is full: it holds its limit of {}", hosted.name, limits.join(" or ")),
        "it takes more when messages have been dealt with",
    )
}
