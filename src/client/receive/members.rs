//! The members: the queues that a receiver takes from, each with its channel on the present
//! connection, and what the server is to be told of its messages.
//!
//! A receiver of one queue has one member, on the receiver's own channel. One of several has one
//! for each queue that the server has announced; a place whose queue is gone is used again.

use std::collections::HashMap;

use super::Taking;
use super::link::{CHANNEL, Link};
use super::ranges::{Acked, intersection};
use crate::client::delivery::Unpacker;
use crate::client::ledger::Settled;
use crate::units::{Name, Offset, OffsetRange, QueueId};
use crate::wire::{Begun, Holding, Nack, Request};

/// A member's place among the members of a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberNumber(pub usize);

/// What the server is to be told.
#[derive(Debug, Default)]
struct Reports {
    begun: Settled,
    settled: Settled,
    failed: Vec<Nack>,
    released: Settled,
}

/// A queue that is received from.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: Name,
    /// Its incarnation, once it is known.
    pub queue_id: Option<QueueId>,
    /// The fencing number of an exclusive receiver's turn.
    pub epoch: Option<u64>,
    /// The attempts after which a message that fails is a dead letter.
    pub delivery_limit: Option<u32>,
    /// With `until_end`: where the end is.
    pub(super) until: Option<Offset>,
    /// The first offset that was never delivered here.
    pub(super) highest: Offset,
    /// Its channel on the present connection, once it is announced there.
    channel: Option<u16>,
    /// Takes deliveries apart; there once it is open on the present connection.
    pub(super) unpacker: Option<Unpacker>,
    acked: Acked,
    reports: Reports,
    is_dirty: bool,
}

impl Member {
    fn new(name: Name) -> Member {
        Member {
            name,
            queue_id: None,
            epoch: None,
            delivery_limit: None,
            until: None,
            highest: Offset(0),
            channel: None,
            unpacker: None,
            acked: Acked::default(),
            reports: Reports::default(),
            is_dirty: false,
        }
    }

    /// Whether messages can come, and the server can be told of them.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.unpacker.is_some()
    }

    /// What is or may be ours but is not in the sink: told to the server that is gone, or not
    /// told to any yet.
    fn owed(&self) -> impl Iterator<Item = OffsetRange> {
        self.acked.ranges().chain(self.reports.failed.iter().flat_map(|nack| nack.ranges.clone()))
    }

    /// What to present to a new server, with what the sink holds; nothing, if what is delivered
    /// is not to be acknowledged.
    pub(super) fn holding(&mut self, held: Option<Vec<OffsetRange>>) -> Vec<OffsetRange> {
        let Some(held) = held else { return Vec::new() };
        // The sink may have gone on since the last server was lost.
        self.reports.settled.take().into_iter().for_each(|range| self.acked.push(range));
        let mut holding = Settled::default();
        held.into_iter().chain(self.owed()).for_each(|range| holding.push(range));
        holding.take()
    }

    /// The queue is another one than before: nothing of the old one matters any more.
    pub(super) fn replaced(&mut self) {
        self.acked = Acked::default();
        self.reports = Reports::default();
        self.highest = Offset(0);
    }

    /// The server says what is ours: failures of anything else are not told.
    pub(super) fn keep(&mut self, kept: &[OffsetRange]) {
        for nack in &mut self.reports.failed {
            nack.ranges = intersection(&nack.ranges, kept);
        }
        self.reports.failed.retain(|nack| !nack.ranges.is_empty());
    }

    /// What failed and is yet to be told; ascending.
    pub(super) fn failed(&self) -> Vec<OffsetRange> {
        let mut failed = Settled::default();
        let ranges = self.reports.failed.iter().flat_map(|nack| nack.ranges.iter());
        ranges.for_each(|range| failed.push(*range));
        failed.take()
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Members {
    list: Vec<Member>,
    /// There is one, on the receiver's own channel.
    is_single: bool,
    /// Of a receiver of several: by the channels of the present connection.
    channels: HashMap<u16, MemberNumber>,
    /// Those that have something to tell.
    dirty: Vec<MemberNumber>,
}

impl Members {
    /// The one queue of a receiver of one, or none yet.
    pub(super) fn new(only: Option<Name>) -> Members {
        let is_single = only.is_some();
        let list = only.into_iter().map(Member::new).collect();
        Members { list, is_single, channels: HashMap::new(), dirty: Vec::new() }
    }

    /// One of them.
    #[must_use]
    pub fn at(&self, number: MemberNumber) -> &Member {
        &self.list[number.0]
    }

    pub(super) fn at_mut(&mut self, number: MemberNumber) -> &mut Member {
        &mut self.list[number.0]
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = MemberNumber> + use<> {
        (0..self.list.len()).map(MemberNumber)
    }

    pub(super) fn by_channel(&self, channel: u16) -> Option<MemberNumber> {
        if self.is_single {
            return (channel == CHANNEL).then_some(MemberNumber(0));
        }
        self.channels.get(&channel).copied()
    }

    pub(super) fn by_name(&self, name: &Name) -> Option<MemberNumber> {
        self.list.iter().position(|member| member.name == *name).map(MemberNumber)
    }

    /// Makes a member; in the place of one that is not `in_use`, if there is one.
    pub(super) fn add(
        &mut self,
        name: Name,
        in_use: impl Fn(MemberNumber) -> bool,
    ) -> MemberNumber {
        let free =
            self.numbers().find(|number| self.at(*number).queue_id.is_none() && !in_use(*number));
        let number = free.unwrap_or(MemberNumber(self.list.len()));
        match self.list.get_mut(number.0) {
            Some(member) => *member = Member::new(name),
            None => self.list.push(Member::new(name)),
        }
        number
    }

    /// Whether any of them is there.
    pub(super) fn has_queues(&self) -> bool {
        self.list.iter().any(|member| member.queue_id.is_some())
    }

    /// How many there are, gone ones too.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// Its messages travel on this channel of the present connection.
    pub(super) fn announce(&mut self, number: MemberNumber, channel: u16) {
        if !self.is_single {
            self.channels.insert(channel, number);
        }
        self.list[number.0].channel = Some(channel);
    }

    /// Its queue is gone, and its channel closed.
    pub(super) fn close(&mut self, number: MemberNumber) {
        let member = &mut self.list[number.0];
        if let Some(channel) = member.channel.take() {
            self.channels.remove(&channel);
        }
        member.unpacker = None;
        member.queue_id = None;
        member.replaced();
    }

    /// The connection is gone, and with it what was to be told to nobody but its server.
    pub(super) fn lost(&mut self) {
        self.channels.clear();
        for member in &mut self.list {
            member.channel = None;
            member.unpacker = None;
            let _: Vec<OffsetRange> = member.reports.released.take();
            let _: Vec<OffsetRange> = member.reports.begun.take();
        }
    }

    fn touch(&mut self, number: MemberNumber) -> &mut Reports {
        let member = &mut self.list[number.0];
        if !std::mem::replace(&mut member.is_dirty, true) {
            self.dirty.push(number);
        }
        &mut member.reports
    }

    /// A try of these begins.
    pub fn begin(&mut self, number: MemberNumber, ranges: &[OffsetRange]) {
        let reports = self.touch(number);
        ranges.iter().for_each(|range| reports.begun.push(*range));
    }

    /// These are done.
    pub fn settle(&mut self, number: MemberNumber, range: OffsetRange) {
        self.touch(number).settled.push(range);
    }

    /// A try of these failed.
    pub fn fail(&mut self, number: MemberNumber, nack: Nack) {
        if !nack.ranges.is_empty() {
            self.touch(number).failed.push(nack);
        }
    }

    /// These are given back.
    pub fn release(&mut self, number: MemberNumber, range: OffsetRange) {
        self.touch(number).released.push(range);
    }

    /// Puts all that is to be told into frames for the present connection; what does not matter
    /// to the server, as the messages are taken in another way, is forgotten.
    pub(super) fn report(&mut self, link: &mut Link, taking: Taking) {
        let Members { list, dirty, .. } = self;
        dirty.retain(|number| {
            let member = &mut list[number.0];
            let Some(channel) = member.channel.filter(|_| member.unpacker.is_some()) else {
                return true;
            };
            member.is_dirty = false;
            let mut reports = std::mem::take(&mut member.reports);
            match taking {
                Taking::Acked => tell(link, channel, reports, &mut member.acked),
                Taking::Leased(_) => link.release(channel, &reports.released.take()),
                Taking::Looked | Taking::Unacked => {}
            }
            false
        });
    }

    /// What to present to a new server of several queues.
    pub(super) fn holdings(
        &mut self,
        held: impl Fn(MemberNumber) -> Option<Vec<OffsetRange>>,
        begun: impl Fn(MemberNumber) -> Vec<Begun>,
    ) -> Vec<Holding> {
        let mut holdings = Vec::new();
        for number in self.numbers() {
            let member = self.at_mut(number);
            let ranges = member.holding(held(number));
            let (queue, until) = (member.name.clone(), member.until);
            if let Some(queue_id) = member.queue_id
                && (!ranges.is_empty() || until.is_some())
            {
                let begun = begun(number);
                holdings.push(Holding { queue, queue_id, ranges, begun, until });
            }
        }
        holdings
    }
}

/// What is over comes before what begins: what was to begin and is given back instead was not
/// tried.
fn tell(link: &mut Link, channel: u16, mut reports: Reports, acked: &mut Acked) {
    let settled = reports.settled.take();
    link.ranges(channel, &settled, Request::Ack);
    settled.into_iter().for_each(|range| acked.push(range));
    for nack in reports.failed {
        link.nack(channel, nack);
    }
    link.release(channel, &reports.released.take());
    link.ranges(channel, &reports.begun.take(), Request::Begin);
}
