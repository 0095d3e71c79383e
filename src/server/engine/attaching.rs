//! A receiver and a queue come together: its group is found or made, the broker gets a consumer.

use crate::broker::{GroupKey, Kind, Mode};
use crate::limits;
use crate::log::storage::Storage;
use crate::units::{Count, Offset, OffsetRange, QueueId};
use crate::wire::{Begun, Fault, OpenReceive, ReceiveMode, Receiving, Reply};

use super::figures::Share;
use super::hosting::damaged;
use super::session::{Channel, Extents, How, Receiver};
use super::{ConnectionId, Engine, QueueNumber};

/// What a receiver has from before its connection broke.
#[derive(Clone, Copy)]
pub(super) struct Resume<'a> {
    /// Of this incarnation.
    pub queue_id: Option<QueueId>,
    pub holding: &'a [OffsetRange],
    /// What of it was begun.
    pub begun: &'a [Begun],
    pub until: Option<Offset>,
}

/// What became of it.
pub(super) enum Attached {
    /// The group is not ready: the channel is called on again.
    Waits,
    /// It is there.
    At {
        /// On this channel.
        channel: u16,
        /// So many messages from before.
        kept: u64,
    },
}

/// The group of a receiver.
enum Found {
    Waits,
    Group {
        group: Option<GroupKey>,
        /// Where one that only looks begins.
        start: Offset,
    },
}

impl<S: Storage> Engine<S> {
    /// Attaches a receiver to a queue: on its channel, or as a member of the receiver of several
    /// on that channel.
    pub(super) fn attach(
        &mut self,
        (connection, channel): (ConnectionId, u16),
        is_member: bool,
        number: QueueNumber,
        open: &OpenReceive,
        resume: Resume<'_>,
    ) -> Result<Attached, Fault> {
        let hosted = &self.hosted[&number];
        if let Some(why) = &hosted.trouble {
            return Err(damaged(&hosted.name, why));
        }
        if let Some(elsewhere) = self.lives_elsewhere(number) {
            return Err(elsewhere);
        }
        let (id, key) = (hosted.log.id(), hosted.key);
        let resumed = resume.queue_id == Some(id);
        let found = self.group_of_receiver(number, open, (connection, channel))?;
        let Found::Group { group, start } = found else { return Ok(Attached::Waits) };
        let looks = open.mode == ReceiveMode::Peek;
        let until = (open.until_end || looks).then(|| {
            let end = self.broker.visible_end(key);
            resume.until.filter(|_| resumed).map_or(end, |until| until.min(end))
        });
        let mode = if looks { Mode::Peek } else { Mode::Take };
        let kind = Kind { mode, until, leases: open.lease.is_some(), exclusive: open.exclusive };
        let holding: &[OffsetRange] = if resumed { resume.holding } else { &[] };
        let (consumer, mut kept) = self.broker.add_consumer(key, group, kind, holding);
        if kept.len() > limits::RANGES_PER_FRAME_MAX {
            // More pieces than a frame can name are given back.
            let rest = kept.split_off(limits::RANGES_PER_FRAME_MAX);
            self.broker.release(consumer, &rest);
        }
        if looks {
            self.broker.pass(consumer, start);
        }
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let (seat, main) = match is_member {
            true => (session.next_member(), Some(channel)),
            false => (channel, None),
        };
        self.consumers.insert(consumer, (connection, seat));
        let how = How::of(open);
        if let Some(group) = group.filter(|_| resumed && how.tries) {
            self.has_begun((number, group), consumer, resume.begun);
        }
        let share = Share::since(self.clock.wall);
        let receiver = Receiver {
            queue: number,
            consumer,
            group,
            mode,
            how,
            main,
            epoch: None,
            ready: false,
            share,
            extents: Extents::of(open),
        };
        self.changed(number);
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.channels.insert(seat, Channel::Receiving(receiver));
        let messages = kept.iter().map(OffsetRange::span).sum();
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let books = &mut hosted.books;
        let passed = group.and_then(|group| books.passed.remove(&group)).unwrap_or_default();
        let ledger = group.filter(|_| open.exclusive).and_then(|group| books.ledgers.get(&group));
        let receiving = Receiving {
            passed,
            queue_id: Some(id),
            kept,
            until,
            queue: is_member.then(|| hosted.name.clone()),
            born: ledger.map(|ledger| ledger.start.born),
            held: self.broker.waits_for_others(consumer),
            delivery_limit: self.delivery_limit_for(receiver),
            ..Receiving::default()
        };
        self.reply(connection, seat, &Reply::Receiving(receiving.clone()));
        if open.exclusive && mode == Mode::Take {
            self.await_turn(receiver, Receiving { passed: Count(0), ..receiving });
        }
        Ok(Attached::At { channel: seat, kept: messages })
    }

    /// Finds the receiver's group; makes it if that is asked for.
    fn group_of_receiver(
        &mut self,
        number: QueueNumber,
        open: &OpenReceive,
        waiter: (ConnectionId, u16),
    ) -> Result<Found, Fault> {
        let known = self.broker.find_group(self.hosted[&number].key, &open.group);
        let start = match open.from {
            Some(from) if known.is_none() || open.mode == ReceiveMode::Peek => {
                match self.beginning(number, from, waiter)? {
                    Some(start) => Some(start),
                    None => return Ok(Found::Waits),
                }
            }
            _ => None,
        };
        if open.mode == ReceiveMode::Peek {
            return Ok(Found::Group { group: known, start: start.unwrap_or_default() });
        }
        let group = match (known, start) {
            (Some(group), _) => group,
            (None, Some(start)) => {
                let state = self.state_from(number, start);
                self.make_group(number, &open.group, Some(state))?
            }
            (None, None) => self.group_to_take_from(number, &open.group)?,
        };
        if self.waits_for_group(number, group, waiter) {
            return Ok(Found::Waits);
        }
        Ok(Found::Group { group: Some(group), start: Offset(0) })
    }
}
