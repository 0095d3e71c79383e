//! Letters that go back: home, for the group that failed them only, or to another queue.
//!
//! A request is a consumer of the broker like any other: what it looks at is leased to it, what
//! it has moved is acked, and the rest it gives back at its end.

use std::ops::ControlFlow;

use crate::broker::{ConsumerKey, GroupKey, Kind};
use crate::log::storage::Storage;
use crate::settings::Settings;
use crate::units::{Count, Moment, Name, Offset, OffsetRange};
use crate::wire::{ErrorCode, Fault};

use super::large::Change;
use super::parcel::{Packed, Parcel, attributes_of_chain};
use super::{Cargo, Engine, Hitch, Lane, Large, Look, QueueNumber, letter, only_at, record_of};
use crate::server::engine::hosting::damaged;
use crate::server::engine::session::{Channel, RequeueWanted};
use crate::server::engine::{ConnectionId, Trouble, fault, fault_with};

/// A request under way.
pub(super) struct Requeue<S: Storage> {
    channel: (ConnectionId, u16),
    pub group: GroupKey,
    pub consumer: ConsumerKey,
    /// The end of what is looked at.
    until: Offset,
    wanted: RequeueWanted,
    /// How many more may be moved, and how many were.
    pub left: u64,
    pub moved: u64,
    /// Nothing more is ready of what was at the start.
    ended: bool,
    /// What was looked at and could not be appended yet.
    pub in_hand: Option<Look<S>>,
}

/// Where a letter goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    queue: Name,
    only: Option<Name>,
}

impl RequeueWanted {
    /// Where the letter with these attributes goes, if it is meant.
    fn address(&self, attributes: &[u8]) -> Option<Address> {
        if let Some(text) = &self.reason {
            let reason = letter::header(attributes, letter::REASON)?;
            if !reason.contains(text.as_str()) {
                return None;
            }
        }
        if let Some(to) = &self.to {
            return Some(Address { queue: to.clone(), only: None });
        }
        let name = |header| Name::new(letter::header(attributes, header)?).ok();
        Some(Address { queue: name(letter::QUEUE)?, only: Some(name(letter::GROUP)?) })
    }
}

impl<S: Storage> Engine<S> {
    /// Begins to move letters back; `connection` is answered when they are there.
    pub(in crate::server::engine) fn requeue(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        wanted: RequeueWanted,
    ) -> Result<(), Trouble> {
        let number = self.find_here(&wanted.queue)?;
        let hosted = &self.hosted[&number];
        if let Some(why) = &hosted.trouble {
            return Err(damaged(&hosted.name, why).into());
        }
        if wanted.to.as_ref() == Some(&wanted.queue) {
            let what = format!("letters cannot be moved from {} to itself", wanted.queue);
            return Err(fault(ErrorCode::Usage, what).into());
        }
        let lane = Lane::Requeue(number);
        if self.movers.lanes.contains_key(&lane) {
            let what = format!("letters of {} are being moved for someone else", wanted.queue);
            return Err(fault_with(ErrorCode::Busy, what, "try again in a moment").into());
        }
        let group = self.group_to_take_from(number, &Name::default())?;
        if self.waits_for_group(number, group, (connection, channel)) {
            self.hold(connection, channel, Channel::Requeuing(Box::new(wanted)));
            return Ok(());
        }
        let key = self.hosted[&number].key;
        let until = self.broker.visible_end(key);
        let kind = Kind { until: Some(until), ..Kind::TAKE };
        let (consumer, _) = self.broker.add_consumer(key, Some(group), kind, &[]);
        self.movers.consumers.insert(consumer, lane);
        let request = Requeue {
            channel: (connection, channel),
            group,
            consumer,
            until,
            left: wanted.count.map_or(u64::MAX, |count| count.0),
            moved: 0,
            wanted,
            ended: false,
            in_hand: None,
        };
        self.hold(connection, channel, Channel::Admin);
        self.start_mover(lane, group, Some(request));
        Ok(())
    }

    /// The broker has something for a consumer that is a mover's, or its end.
    pub(in crate::server::engine) fn mover_called(&mut self, consumer: ConsumerKey, ended: bool) {
        let Some(&lane) = self.movers.consumers.get(&consumer) else { return };
        let state = self.movers.lanes.get_mut(&lane);
        if let Some(request) = state.and_then(|state| state.request.as_mut()) {
            request.ended |= ended;
            self.movers.woken.insert(lane);
        }
    }

    /// Looks at letters until there is a parcel of them for one address.
    pub(super) fn look_for_letters(
        &mut self,
        lane: Lane,
        number: QueueNumber,
        moment: Moment,
    ) -> Result<Look<S>, Hitch<S>> {
        loop {
            let state = self.movers.lanes.get_mut(&lane).expect("it is being run");
            let request = state.request.as_mut().expect("a requeue has a request");
            if let Some(look) = request.in_hand.take() {
                return self.look_in_hand(lane, look);
            }
            let (consumer, left, until) = (request.consumer, request.left, request.until);
            let waited_for = self.is_waited_for(lane);
            if let Some(why) = &self.hosted[&number].trouble {
                let fault = damaged(&self.hosted[&number].name, why);
                return Err(self.give_up(lane, fault));
            }
            if left == 0 || !waited_for {
                return Ok(Look::End);
            }
            let log = &mut self.hosted.get_mut(&number).expect("its source").log;
            if until > log.durable_end() {
                // Else a power loss could take a letter from here that is at home again.
                log.want_durable();
                return Err(Hitch::WaitFor(number));
            }
            self.broker.credit(consumer, u64::MAX);
            let Some(offer) = self.broker.offer(consumer, u64::MAX) else {
                let state = self.movers.lanes.get(&lane).expect("it is being run");
                let ended = state.request.as_ref().is_some_and(|request| request.ended);
                return if ended { Ok(Look::End) } else { Err(Hitch::Wait) };
            };
            let log = &mut self.hosted.get_mut(&number).expect("its source").log;
            if offer.range.end > log.durable_end() {
                // As with what dies: nothing moves on before it is safe where it is.
                log.want_durable();
                return Err(Hitch::WaitFor(number));
            }
            if let Some(look) = self.pack_letters(lane, number, offer.range, left, moment)? {
                return Ok(look);
            }
        }
    }

    /// What is in hand goes on, if its destination is still there.
    fn look_in_hand(&mut self, lane: Lane, look: Look<S>) -> Result<Look<S>, Hitch<S>> {
        let dest = match &look {
            Look::End => return Ok(look),
            Look::Parcel(_, dest, _) => *dest,
            Look::Large(large, _) => large.dest,
        };
        if self.hosted.get(&dest).is_some_and(|hosted| hosted.removing.is_none()) {
            return Ok(look);
        }
        self.drop_in_hand(lane);
        Err(self.give_up(lane, fault(ErrorCode::Gone, "the queue that letters go to was removed")))
    }

    fn is_waited_for(&self, lane: Lane) -> bool {
        let state = &self.movers.lanes[&lane];
        let Some(request) = &state.request else { return false };
        let (connection, channel) = request.channel;
        let session = self.sessions.get(&connection);
        let channel = session.and_then(|session| session.channels.get(&channel));
        matches!(channel, Some(Channel::Admin))
    }

    /// Looks at the letters in `range` and takes those that it has looked at. None when nothing of
    /// them is to be moved.
    fn pack_letters(
        &mut self,
        lane: Lane,
        number: QueueNumber,
        range: OffsetRange,
        left: u64,
        moment: Moment,
    ) -> Result<Option<Look<S>>, Hitch<S>> {
        let request = self.movers.lanes[&lane].request.as_ref().expect("it has a request");
        let (wanted, consumer) = (request.wanted.clone(), request.consumer);
        let mut parcel = Parcel::default();
        let mut to: Option<Address> = None;
        let mut at = range.start;
        let mut too_large = None;
        let chain = self.read_source(number, range, &mut |offset, attributes, body| {
            if let Some(address) = wanted.address(attributes) {
                if u64::from(parcel.count) >= left || to.as_ref().is_some_and(|to| *to != address) {
                    return ControlFlow::Break(());
                }
                let back = letter::attributes_back(attributes, address.only.as_ref());
                match parcel.push(offset, &back, body) {
                    Packed::In => to = Some(address),
                    Packed::Full => return ControlFlow::Break(()),
                    Packed::TooLarge => {
                        too_large = Some((address, record_of(&back, body)));
                        at = Offset(offset.0 + 1);
                        return ControlFlow::Break(());
                    }
                }
            }
            at = Offset(offset.0 + 1);
            ControlFlow::Continue(())
        })?;
        let mut found = None;
        if let Some(chain) = chain {
            at = chain.range.end;
            let attributes = match attributes_of_chain(&chain.file, chain.parts[0]) {
                Ok(attributes) => attributes,
                Err(unreadable) => return Err(self.source_damaged(number, unreadable)),
            };
            if let Some(address) = wanted.address(&attributes) {
                let change = Change::Return(address.only.clone());
                let range = chain.range;
                let cargo = Cargo::Chain(Box::new(chain), Box::new(change));
                found = Some((range, address, cargo));
            }
        } else if let Some((address, record)) = too_large {
            let offset = Offset(at.0 - 1);
            found = Some((only_at(offset), address, Cargo::Record(record)));
        }
        // The destination is asked for first: what waits for it is not taken yet.
        let address = found.as_ref().map(|(_, address, _)| address).or(to.as_ref());
        let dest = match address {
            Some(address) => Some(self.letters_to(lane, address, moment)?),
            None => None,
        };
        self.broker.take(consumer, OffsetRange::new(range.start, at));
        Ok(match (dest, found, to) {
            (Some(dest), Some((range, address, cargo)), _) => {
                Some(Look::Large(Large { dest, range, only: address.only }, cargo))
            }
            (Some(dest), None, Some(to)) => Some(Look::Parcel(parcel, dest, to.only)),
            _ => None,
        })
    }

    /// The queue that letters go to; a fault for whoever asked, when there is none.
    fn letters_to(
        &mut self,
        lane: Lane,
        address: &Address,
        moment: Moment,
    ) -> Result<QueueNumber, Hitch<S>> {
        let name = &address.queue;
        let made = address.only.is_none().then(Settings::default);
        if made.is_none() && !self.places.contains_key(name) {
            let what = format!("there is no queue {name} for its dead letters to go back to");
            let remedy = "move them to another queue with --to QUEUE";
            return Err(self.give_up(lane, fault_with(ErrorCode::NotFound, what, remedy)));
        }
        let dest = match self.destination(lane, name, made, moment) {
            Ok(dest) => dest,
            Err(Hitch::Rest(why)) => {
                let what = format!("letters cannot go to {name}: {why}");
                return Err(self.give_up(lane, fault(ErrorCode::Busy, what)));
            }
            Err(hitch) => return Err(hitch),
        };
        if let Some(group) = &address.only
            && self.broker.find_group(self.hosted[&dest].key, group).is_none()
        {
            let what = format!("queue {name} has no group {group} any more");
            let remedy = "move its letters to another queue with --to QUEUE";
            return Err(self.give_up(lane, fault_with(ErrorCode::NotFound, what, remedy)));
        }
        Ok(dest)
    }

    /// The request ends with this.
    fn give_up(&mut self, lane: Lane, fault: Fault) -> Hitch<S> {
        let state = self.movers.lanes.remove(&lane).expect("it is being run");
        self.end_requeue(state.request.expect("a requeue has a request"), Err(fault));
        Hitch::Over
    }

    /// What the request did not move is given back, and whoever asked is told.
    pub(super) fn end_requeue(&mut self, request: Requeue<S>, result: Result<(), Fault>) {
        if self.movers.consumers.remove(&request.consumer).is_some()
            && self.broker.has_consumer(request.consumer)
        {
            self.broker.remove_consumer(request.consumer);
        }
        let (connection, channel) = request.channel;
        match result {
            Ok(()) => {
                if self.answered(connection, channel) {
                    self.answer(connection, channel, &Count(request.moved));
                }
            }
            Err(mut fault) => {
                if request.moved > 0 {
                    fault.message += &format!(" ({} were moved before)", request.moved);
                }
                self.fail_channel(connection, channel, fault);
            }
        }
    }
}
