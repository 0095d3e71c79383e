//! Receivers of several queues: each queue is a member with a channel of its own, credit counts
//! for all of them together.
//!
//! To the broker a member has all the credit that there is; how much of it is used is kept here.
//! A member that the broker calls waits here for its turn, which comes when there is credit and
//! room: in the order of the patterns if that is asked for, else one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::broker::Mode;
use crate::limits;
use crate::log::storage::Storage;
use crate::units::Name;
use crate::wire::{ErrorCode, Fault, OpenReceive, QueuePattern, ReceiveMode, Receiving, Reply};

use super::attaching::{Attached, Resume};
use super::hosting::{Place, being_removed, damaged};
use super::session::{Channel, Receiver};
use super::{ConnectionId, Engine, QueueNumber, Trouble, fault};

/// Which member comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// When it joined the line; 0 for all where the order is strict.
    turn: u64,
    /// The first pattern that it matches, where the order is strict.
    pattern: usize,
    name: Name,
}

/// A receiver of several queues.
pub(super) struct Several {
    open: Arc<OpenReceive>,
    /// The channel of each member.
    members: BTreeMap<QueueNumber, u16>,
    /// Queues that are to become members as soon as their group stands.
    joining: BTreeSet<QueueNumber>,
    /// How many messages may be delivered in all, and how many have been.
    credit: u64,
    delivered: u64,
    /// Members with something to deliver.
    ready: BTreeSet<(Rank, u16)>,
    next_turn: u64,
    /// It stands in the session's list of channels to deliver to.
    pub queued: bool,
    /// Members that have come to their end.
    ended: BTreeSet<u16>,
    /// All that were there at the start have been announced.
    is_announced: bool,
    is_end_told: bool,
}

impl Several {
    fn new(open: OpenReceive) -> Several {
        Several {
            open: Arc::new(open),
            members: BTreeMap::new(),
            joining: BTreeSet::new(),
            credit: 0,
            delivered: 0,
            ready: BTreeSet::new(),
            next_turn: 1,
            queued: false,
            ended: BTreeSet::new(),
            is_announced: false,
            is_end_told: false,
        }
    }

    /// The first pattern that a queue matches.
    fn pattern_of(&self, name: &Name) -> Option<usize> {
        self.open.patterns.iter().position(|pattern| pattern.matches(name))
    }

    /// Whether a queue is meant by its own name.
    fn names(&self, name: &Name) -> bool {
        let is_it = |pattern: &QueuePattern| pattern.as_name().as_ref() == Some(name);
        self.open.patterns.iter().any(is_it)
    }

    /// Whether queues that appear later become members.
    fn takes_new(&self) -> bool {
        !self.open.until_end && self.open.mode == ReceiveMode::Take
    }

    /// How many more messages may be delivered.
    pub fn remaining(&self) -> u64 {
        self.credit.saturating_sub(self.delivered)
    }

    /// Whether a member's turn can come.
    pub fn can_deliver(&self) -> bool {
        self.remaining() > 0 && !self.ready.is_empty()
    }

    /// A member has something.
    pub fn waits(&mut self, member: u16, name: &Name) {
        let rank = if self.open.strict {
            let pattern = self.pattern_of(name).unwrap_or(usize::MAX);
            Rank { turn: 0, pattern, name: name.clone() }
        } else {
            self.next_turn += 1;
            Rank { turn: self.next_turn, ..Rank::default() }
        };
        self.ready.insert((rank, member));
    }

    /// The member whose turn it is.
    pub fn next(&mut self) -> Option<u16> {
        self.ready.pop_first().map(|(_, member)| member)
    }

    fn is_over(&self) -> bool {
        !self.takes_new()
            && self.is_announced
            && self.joining.is_empty()
            && self.ended.len() == self.members.len()
    }
}

impl<S: Storage> Engine<S> {
    pub(super) fn open_several(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        open: OpenReceive,
    ) -> Result<(), Trouble> {
        if open.patterns.len() > limits::MEMBERS_PER_CHANNEL_MAX {
            return Err(too_many().into());
        }
        if let Some(bad) = open.patterns.iter().find(|pattern| !pattern.is_valid()) {
            let what = format!("{:?} is neither a queue's name nor a pattern of names", bad.0);
            return Err(fault(ErrorCode::Usage, what).into());
        }
        let several = Several::new(open);
        let mut found: Vec<(Option<usize>, Name)> = Vec::new();
        for (name, place) in &self.places {
            let Some(pattern) = several.pattern_of(name) else { continue };
            match place {
                Place::Live(number) => {
                    if let (true, Some(fault)) =
                        (several.names(name), self.lives_elsewhere(*number))
                    {
                        return Err(fault.into());
                    }
                    found.push((Some(pattern), name.clone()));
                }
                Place::Damaged(why) if several.names(name) => return Err(damaged(name, why).into()),
                Place::Removing if several.names(name) => return Err(being_removed(name).into()),
                Place::Making(_) | Place::Damaged(_) | Place::Removing => {}
            }
        }
        if found.len() > limits::MEMBERS_PER_CHANNEL_MAX {
            return Err(too_many().into());
        }
        found.sort();
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.channels.insert(channel, Channel::Several(Box::new(several)));
        self.several.insert((connection, channel));
        let mut refused = None;
        for (_, name) in &found {
            if let Err(fault) = self.join(connection, channel, name)
                && refused.is_none()
            {
                refused = Some(fault);
            }
        }
        let several = self.several_at(connection, channel).expect("it was just made");
        // A group that no queue has is a mistyped name.
        if let Some(fault) = refused
            && several.members.is_empty()
            && several.joining.is_empty()
        {
            return Err(fault.into());
        }
        self.answer_holdings(connection, channel);
        self.several_announced(connection, channel);
        Ok(())
    }

    fn several_at(&mut self, connection: ConnectionId, channel: u16) -> Option<&mut Several> {
        match self.sessions.get_mut(&connection)?.channels.get_mut(&channel)? {
            Channel::Several(several) => Some(several),
            _ => None,
        }
    }

    /// A queue becomes a member, now or once its group stands. A queue that only a pattern means
    /// and that does not have the group is none; its refusal is returned all the same.
    fn join(&mut self, connection: ConnectionId, channel: u16, name: &Name) -> Result<(), Fault> {
        let Some(Place::Live(number)) = self.places.get(name) else { return Ok(()) };
        let number = *number;
        let Some(several) = self.several_at(connection, channel) else { return Ok(()) };
        if several.members.contains_key(&number) {
            return Ok(());
        }
        several.joining.remove(&number);
        if several.members.len() + several.joining.len() >= limits::MEMBERS_PER_CHANNEL_MAX {
            return Err(too_many());
        }
        let open = Arc::clone(&several.open);
        let resume = match open.holdings.iter().find(|holding| holding.queue == *name) {
            Some(held) => Resume {
                queue_id: Some(held.queue_id),
                holding: &held.ranges,
                begun: &held.begun,
                until: held.until,
            },
            None => Resume { queue_id: None, holding: &[], begun: &[], until: None },
        };
        match self.attach((connection, channel), true, number, &open, resume)? {
            Attached::Waits => {
                let several = self.several_at(connection, channel).expect("it is there");
                several.joining.insert(number);
            }
            Attached::At { channel: member, kept } => {
                let several = self.several_at(connection, channel).expect("it is there");
                several.members.insert(number, member);
                several.delivered += kept;
                self.feed_member(connection, member);
            }
        }
        Ok(())
    }

    /// To the broker a member has all the credit that there is.
    fn feed_member(&mut self, connection: ConnectionId, member: u16) {
        let session = self.sessions.get(&connection).expect("a connected client");
        let Some(Channel::Receiving(receiver)) = session.channels.get(&member) else { return };
        let receiver = *receiver;
        if !self.withholds(receiver, u64::MAX) {
            self.broker.credit(receiver.consumer, u64::MAX);
        }
    }

    /// What is held of queues that are no members is answered too.
    fn answer_holdings(&mut self, connection: ConnectionId, channel: u16) {
        let Some(several) = self.several_at(connection, channel) else { return };
        let held: Vec<Name> = several.open.holdings.iter().map(|h| h.queue.clone()).collect();
        for name in held {
            let number = match self.places.get(&name) {
                Some(Place::Live(number)) => Some(*number),
                _ => None,
            };
            let several = self.several_at(connection, channel).expect("it is there");
            let is_known = number.is_some_and(|number| {
                several.members.contains_key(&number) || several.joining.contains(&number)
            });
            if !is_known {
                let gone = Receiving { queue: Some(name), ..Receiving::default() };
                self.reply(connection, channel, &Reply::Receiving(gone));
            }
        }
    }

    /// Says that all that were there have been announced, once that is so, and the end of all.
    fn several_announced(&mut self, connection: ConnectionId, channel: u16) {
        let Some(several) = self.several_at(connection, channel) else { return };
        if !several.joining.is_empty() {
            return;
        }
        if !std::mem::replace(&mut several.is_announced, true) {
            self.reply(connection, channel, &Reply::Receiving(Receiving::default()));
        }
        self.tell_several_end(connection, channel);
    }

    fn tell_several_end(&mut self, connection: ConnectionId, channel: u16) {
        let Some(several) = self.several_at(connection, channel) else { return };
        if several.is_over() && !std::mem::replace(&mut several.is_end_told, true) {
            self.reply(connection, channel, &Reply::End);
        }
    }

    /// The group of a queue that is to become a member may stand now.
    pub(super) fn join_again(&mut self, connection: ConnectionId, channel: u16) {
        let Some(several) = self.several_at(connection, channel) else { return };
        let joining: Vec<QueueNumber> = several.joining.iter().copied().collect();
        for number in joining {
            let Some(name) = self.hosted.get(&number).map(|hosted| hosted.name.clone()) else {
                continue;
            };
            if let Err(fault) = self.join(connection, channel, &name) {
                self.join_refused(connection, channel, &name, fault);
            }
        }
        self.several_announced(connection, channel);
    }

    /// A queue, or a group of it, has appeared: whoever's pattern means it takes from it too.
    pub(super) fn invite(&mut self, number: QueueNumber) {
        let Some(hosted) = self.hosted.get(&number) else { return };
        let name = hosted.name.clone();
        for (connection, channel) in self.several.iter().copied().collect::<Vec<_>>() {
            let Some(several) = self.several_at(connection, channel) else { continue };
            if !several.takes_new()
                || several.members.contains_key(&number)
                || several.joining.contains(&number)
                || several.pattern_of(&name).is_none()
            {
                continue;
            }
            if let Err(fault) = self.join(connection, channel, &name) {
                self.join_refused(connection, channel, &name, fault);
            }
        }
    }

    /// A queue that was meant by its name must have what is asked for.
    fn join_refused(&mut self, connection: ConnectionId, channel: u16, name: &Name, why: Fault) {
        let Some(several) = self.several_at(connection, channel) else { return };
        if several.names(name) {
            self.fail_channel(connection, channel, why);
        }
    }

    /// A member has come to its end.
    pub(super) fn member_ended(&mut self, connection: ConnectionId, main: u16, member: u16) {
        let Some(several) = self.several_at(connection, main) else { return };
        several.ended.insert(member);
        self.tell_several_end(connection, main);
    }

    /// A member's queue is gone, or stands still: its channel ends, the others go on.
    pub(super) fn member_failed(&mut self, connection: ConnectionId, member: u16, why: Fault) {
        let gone = why.code == ErrorCode::Gone;
        let said = if gone { Reply::Closed } else { Reply::Error(why) };
        self.reply(connection, member, &said);
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let Some(Channel::Receiving(receiver)) = session.channels.remove(&member) else { return };
        self.drop_channel(connection, member, Channel::Receiving(receiver));
        let Some(main) = receiver.main else { return };
        let Some(several) = self.several_at(connection, main) else { return };
        several.members.remove(&receiver.queue);
        several.ended.remove(&member);
        several.ready.retain(|(_, other)| *other != member);
        self.tell_several_end(connection, main);
    }

    /// A queue that was to become a member is gone.
    pub(super) fn forget_joining(&mut self, number: QueueNumber) {
        for (connection, channel) in self.several.iter().copied().collect::<Vec<_>>() {
            let Some(several) = self.several_at(connection, channel) else { continue };
            if several.joining.remove(&number) {
                self.several_announced(connection, channel);
            }
        }
    }

    /// The channel of a receiver of several is closed: so are those of its members.
    pub(super) fn drop_several(&mut self, connection: ConnectionId, id: u16, several: &Several) {
        self.several.remove(&(connection, id));
        for &member in several.members.values() {
            let session = self.sessions.get_mut(&connection);
            if let Some(channel) = session.and_then(|session| session.channels.remove(&member)) {
                self.drop_channel(connection, member, channel);
            }
        }
    }

    /// How many messages may have been delivered in all. False if it is no receiver of several.
    pub(super) fn credit_several(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        total: u64,
    ) -> bool {
        let Some(several) = self.several_at(connection, channel) else { return false };
        several.credit = total.min(several.delivered.saturating_add(limits::CREDIT_MAX));
        self.several_ready(connection, channel);
        true
    }

    /// The broker says that this member can be offered something.
    pub(super) fn member_ready(
        &mut self,
        connection: ConnectionId,
        main: u16,
        member: u16,
        queue: QueueNumber,
    ) {
        let Some(name) = self.hosted.get(&queue).map(|hosted| hosted.name.clone()) else { return };
        let Some(several) = self.several_at(connection, main) else { return };
        several.waits(member, &name);
        self.several_ready(connection, main);
    }

    /// Lets the members of a receiver deliver, if any has something and may.
    pub(super) fn several_ready(&mut self, connection: ConnectionId, main: u16) {
        let Some(several) = self.several_at(connection, main) else { return };
        if several.can_deliver() && !std::mem::replace(&mut several.queued, true) {
            let session = self.sessions.get_mut(&connection).expect("it has the channel");
            session.ready.push_back(main);
            if session.wants_food() {
                self.make_hungry(connection);
            }
        }
    }

    /// A member was delivered `span` messages. Whether more is ready than the credit admits.
    pub(super) fn member_took(&mut self, receiver: Receiver, main: u16, span: u64) -> bool {
        // All that there is, again: the broker bounds how much of it counts.
        self.broker.credit(receiver.consumer, u64::MAX);
        let Some(&(connection, _)) = self.consumers.get(&receiver.consumer) else { return false };
        let Some(several) = self.several_at(connection, main) else { return false };
        several.delivered += span;
        let left = several.remaining();
        let others: Vec<u16> = several.ready.iter().map(|(_, member)| *member).collect();
        let mut ready = self.ready_of(receiver);
        for member in others {
            if ready > left {
                break;
            }
            let session = self.sessions.get(&connection).expect("it has the channel");
            if let Some(Channel::Receiving(other)) = session.channels.get(&member) {
                ready += self.ready_of(*other);
            }
        }
        ready > left
    }

    fn ready_of(&self, receiver: Receiver) -> u64 {
        match (receiver.mode, receiver.group) {
            (Mode::Take, Some(group)) => self.broker.counts(group).ready.0,
            _ => u64::from(self.broker.is_behind(receiver.consumer)),
        }
    }
}

fn too_many() -> Fault {
    let most = limits::MEMBERS_PER_CHANNEL_MAX;
    fault(ErrorCode::Busy, format!("a receiver takes from at most {most} queues"))
}
