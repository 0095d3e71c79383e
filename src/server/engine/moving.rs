//! The movers: the only way in which messages go from one queue to another inside the server.
//!
//! A mover takes what is to be moved from one group of its source, appends it to the destination
//! with a [`Waybill`] as the batch's annex, waits until that is durable there, whatever the
//! policy, settles it in the source, waits until that is durable too, and goes on. One commit is
//! under way at a time. So a message is moved once: whatever breaks off in between, the server
//! asks the destination for the last waybill when it starts, and settles in the source what that
//! names.
//!
//! ```text
//! Looking ──▶ Committed ──durable──▶ Settled ──durable──▶ Looking ...
//!    │  ▲         ▲
//!    │  └Resting  └── Chaining ◀── Staged ◀── Copying      (a large message)
//!    └─ no room, no destination: tried again; what is to be moved stays where it is
//! ```
//!
//! Never touches a socket or a file by itself; what waits for the disk is a job. Called by the
//! engine in each turn in which a mover has been woken.
//!
//! `burying.rs` what dies in a group · `requeue.rs` letters back home · `shipping.rs` what is sent:
//! `parcel.rs`, `large.rs` · `letter.rs` its headers · `waybill.rs`, `waybills.rs` after a start ·
//! `failures.rs` why messages failed

mod burying;
mod failures;
mod large;
mod letter;
mod parcel;
mod requeue;
mod shipping;
mod waybill;
mod waybills;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::batch::Record;
use crate::broker::{ConsumerKey, GroupKey};
use crate::limits;
use crate::log::storage::Storage;
use crate::log::{GroupMark, Job, LogError, Select, Staging};
use crate::planted::{self, Bug};
use crate::units::{Bytes, Ending, Moment, Monotonic, Name, Offset, OffsetRange, ProducerId};

use super::{ConnectionId, Engine, QueueNumber, Work};

use failures::Failures;
use large::Change;
pub(super) use large::{Copying, NotCopied};
use parcel::{Parcel, Unreadable};
use requeue::Requeue;
use waybill::{Mover, Purpose};

/// Bytes that are read of the source at once.
const READ_BYTES: usize = 256 << 10;

/// Which mover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Of what dies in this group.
    Dead(QueueNumber, GroupKey),
    /// Of letters that go back from this queue.
    Requeue(QueueNumber),
}

impl Lane {
    fn source(self) -> QueueNumber {
        match self {
            Lane::Dead(number, _) | Lane::Requeue(number) => number,
        }
    }
}

/// What a mover is at.
enum Phase<S: Storage> {
    /// Looks for what is to be moved; if it was woken and is still here, it waits for a job, for
    /// a queue that is being made, or for its turn.
    Looking,
    /// Something stands in the way; looks again at this time.
    Resting(Monotonic),
    /// A job copies a large message.
    Copying(Large),
    /// The copy is to be appended.
    Staged(Large, Staging<S>),
    /// A job appends it.
    Chaining(Large),
    /// It stands in the destination, and is durable there once so many bytes are.
    Committed { dest: QueueNumber, mark: Bytes, ranges: Vec<OffsetRange> },
    /// It is settled in the source, and durably once the group's journal is.
    Settled(GroupMark),
}

/// A large message on its way.
#[derive(Clone)]
struct Large {
    dest: QueueNumber,
    range: OffsetRange,
    /// For this group only.
    only: Option<Name>,
}

/// A large message that was found.
enum Cargo<S: Storage> {
    /// A chain of the source.
    Chain(Box<FoundChain<S>>, Box<Change>),
    /// One that became large by what it got along, as a record.
    Record(Vec<u8>),
}

/// One mover.
struct State<S: Storage> {
    phase: Phase<S>,
    /// For letters that go back: on whose behalf.
    request: Option<Requeue<S>>,
}

/// All movers.
pub(super) struct Movers<S: Storage> {
    lanes: BTreeMap<Lane, State<S>>,
    /// Those that may be able to go on.
    woken: BTreeSet<Lane>,
    /// Those that wait for a job of a queue.
    waiting: BTreeMap<QueueNumber, BTreeSet<Lane>>,
    /// Those that wait for a queue to be made.
    making: BTreeMap<Name, BTreeSet<Lane>>,
    resting: BTreeSet<(Monotonic, Lane)>,
    /// Consumers of the broker that belong to a mover.
    consumers: BTreeMap<ConsumerKey, Lane>,
    /// Producers that were opened in this life, by the queue that they append to.
    opened: BTreeSet<(QueueNumber, ProducerId)>,
    /// What stands in the way of the movers of a source.
    troubles: BTreeMap<QueueNumber, String>,
    /// Why messages failed.
    failures: Failures,
    /// Channels that want to set a group elsewhere, or to remove it, and wait for what is under way.
    seekers: Vec<(Lane, (ConnectionId, u16))>,
}

impl<S: Storage> Default for Movers<S> {
    fn default() -> Self {
        Movers {
            lanes: BTreeMap::new(),
            woken: BTreeSet::new(),
            waiting: BTreeMap::new(),
            making: BTreeMap::new(),
            resting: BTreeSet::new(),
            consumers: BTreeMap::new(),
            opened: BTreeSet::new(),
            troubles: BTreeMap::new(),
            failures: Failures::default(),
            seekers: Vec::new(),
        }
    }
}

impl<S: Storage> Phase<S> {
    /// Whether something is on its way that is not settled for good in the source.
    fn is_under_way(&self) -> bool {
        !matches!(self, Phase::Looking | Phase::Resting(_))
    }
}

/// What a look at the source found.
enum Look<S: Storage> {
    /// Nothing is to be moved any more.
    End,
    /// These, to this queue, for this group only if there is one.
    Parcel(Parcel, QueueNumber, Option<Name>),
    /// A large message.
    Large(Large, Cargo<S>),
}

/// Why a mover cannot go on now.
enum Hitch<S: Storage> {
    /// It is woken when it can.
    Wait,
    /// A job of this queue has to end first.
    WaitFor(QueueNumber),
    /// Reading the source would wait for the disk.
    Cold(Box<Job<S>>),
    /// Something is in the way: why. Tried again.
    Rest(String),
    /// The source is damaged, or the disk failed.
    Over,
}

impl<S: Storage> Engine<S> {
    /// Messages of this group are dying.
    pub(super) fn dying(&mut self, group: GroupKey) {
        let key = self.broker.queue_of_group(group);
        let Some(&number) = self.by_key.get(&key) else { return };
        self.start_mover(Lane::Dead(number, group), group, None);
    }

    /// Begins a mover, or wakes it. What was settled before must be durable first: the mover's
    /// next waybill replaces the one that names it.
    fn start_mover(&mut self, lane: Lane, group: GroupKey, request: Option<Requeue<S>>) {
        let hosted = self.hosted.get_mut(&lane.source()).expect("a mover's source");
        if let Entry::Vacant(place) = self.movers.lanes.entry(lane) {
            let mark = hosted.log.want_group_durable(hosted.groups[&group]);
            place.insert(State { phase: Phase::Settled(mark), request });
            self.touch(lane.source());
        }
        self.movers.woken.insert(lane);
    }

    /// A job of this queue is done: whoever waits for it may go on.
    pub(super) fn wake_movers(&mut self, number: QueueNumber) {
        if let Some(waiting) = self.movers.waiting.remove(&number) {
            self.movers.woken.extend(waiting);
        }
    }

    /// A queue was made.
    pub(super) fn wake_movers_to(&mut self, name: &Name) {
        if let Some(waiting) = self.movers.making.remove(name) {
            self.movers.woken.extend(waiting);
        }
    }

    /// A queue could not be made: whoever has something for it rests before it tries again.
    pub(super) fn rest_movers_to(&mut self, name: &Name, why: &str, moment: Moment) {
        for lane in self.movers.making.remove(name).unwrap_or_default() {
            if self.movers.lanes.contains_key(&lane) {
                self.hold_mover(lane, Hitch::Rest(why.to_owned()), moment);
            }
        }
    }

    /// When the movers want to be called at the latest.
    pub(super) fn movers_deadline(&self) -> Option<Monotonic> {
        if !self.movers.woken.is_empty() && !self.stopping {
            return Some(Monotonic(0));
        }
        self.movers.resting.first().map(|(due, _)| *due)
    }

    /// Lets every mover go on that was woken.
    pub(super) fn run_movers(&mut self, moment: Moment) {
        while let Some(&(due, lane)) = self.movers.resting.first() {
            if due > moment.now {
                break;
            }
            self.movers.resting.pop_first();
            self.movers.woken.insert(lane);
        }
        for lane in std::mem::take(&mut self.movers.woken) {
            self.run_mover(lane, moment);
        }
    }

    fn group_of(&self, lane: Lane) -> Option<GroupKey> {
        let hosted = self.hosted.get(&lane.source())?;
        let group = match lane {
            Lane::Dead(_, group) => group,
            Lane::Requeue(_) => self.movers.lanes.get(&lane)?.request.as_ref()?.group,
        };
        (hosted.groups.contains_key(&group) && hosted.removing.is_none()).then_some(group)
    }

    /// Whether the channel must wait for what a mover has under way from this group: it is settled
    /// where the group is now, or, if the server ends before that, at the next start. Then the channel
    /// is called on later.
    pub(super) fn waits_for_movers(
        &mut self,
        number: QueueNumber,
        group: GroupKey,
        channel: (ConnectionId, u16),
    ) -> bool {
        let lanes = [Lane::Dead(number, group), Lane::Requeue(number)];
        let is_under_way = |lane: &Lane| {
            let state = self.movers.lanes.get(lane);
            state.is_some_and(|state| state.phase.is_under_way())
                && self.group_of(*lane) == Some(group)
        };
        let Some(lane) = lanes.into_iter().find(is_under_way) else { return false };
        self.movers.seekers.push((lane, channel));
        true
    }

    /// Calls on those that waited for a mover, unless it still has something under way.
    fn let_seekers_on(&mut self, lane: Lane, moment: Moment) {
        let state = self.movers.lanes.get(&lane);
        if state.is_some_and(|state| state.phase.is_under_way()) {
            return;
        }
        let waited: Vec<_> = self.movers.seekers.extract_if(.., |(of, _)| *of == lane).collect();
        for (_, (connection, channel)) in waited {
            self.reopen(connection, channel, moment);
        }
    }

    /// A channel is gone.
    pub(super) fn forget_seeker(&mut self, gone: (ConnectionId, u16)) {
        self.movers.seekers.retain(|(_, channel)| *channel != gone);
    }

    fn run_mover(&mut self, lane: Lane, moment: Moment) {
        loop {
            self.let_seekers_on(lane, moment);
            let Some(group) = self.group_of(lane) else {
                self.end_mover(lane);
                return;
            };
            // It may have ended since it was woken.
            let Some(state) = self.movers.lanes.get_mut(&lane) else { return };
            let phase = std::mem::replace(&mut state.phase, Phase::Looking);
            match self.step_mover(lane, group, phase, moment) {
                Ok(Some(phase)) => {
                    let state = self.movers.lanes.get_mut(&lane).expect("it is there");
                    state.phase = phase;
                }
                Ok(None) => return self.end_mover(lane),
                Err(hitch) => return self.hold_mover(lane, hitch, moment),
            }
            if self.failed.is_some() {
                return;
            }
        }
    }

    /// One step; the phase that follows, or none when there is nothing left to do.
    fn step_mover(
        &mut self,
        lane: Lane,
        group: GroupKey,
        phase: Phase<S>,
        moment: Moment,
    ) -> Result<Option<Phase<S>>, Hitch<S>> {
        match phase {
            Phase::Resting(until) if moment.now < until => {
                let state = self.movers.lanes.get_mut(&lane).expect("it is there");
                state.phase = phase;
                Err(Hitch::Wait)
            }
            Phase::Looking | Phase::Resting(_) => {
                if self.stopping {
                    return Err(Hitch::Wait);
                }
                let looked = match lane {
                    Lane::Dead(number, group) => self.look_for_dead(lane, number, group, moment),
                    Lane::Requeue(number) => self.look_for_letters(lane, number, moment),
                };
                match looked? {
                    Look::End => Ok(None),
                    Look::Parcel(parcel, dest, only) => {
                        let sent = self.send_parcel(lane, group, parcel, dest, only, moment);
                        sent.map(Some)
                    }
                    Look::Large(large, cargo) => self.copy_large(lane, large, cargo).map(Some),
                }
            }
            Phase::Staged(large, staging) => self.append_large(lane, group, large, staging, moment),
            Phase::Copying(_) | Phase::Chaining(_) => {
                self.movers.lanes.get_mut(&lane).expect("it is there").phase = phase;
                Err(Hitch::Wait)
            }
            Phase::Committed { dest, mark, ranges } => {
                let Some(hosted) = self.hosted.get(&dest) else {
                    // The destination was removed, with what had come into it.
                    return Ok(Some(Phase::Looking));
                };
                if hosted.log.durable_bytes() < mark && !planted::is(Bug::MovedBeforeDurable) {
                    let state = self.movers.lanes.get_mut(&lane).expect("it is there");
                    state.phase = Phase::Committed { dest, mark, ranges };
                    return Err(Hitch::WaitFor(dest));
                }
                Ok(Some(self.settle_moved(lane, group, &ranges)))
            }
            Phase::Settled(mark) => {
                let hosted = &self.hosted[&lane.source()];
                if hosted.log.group_durable(hosted.groups[&group]) < mark {
                    let state = self.movers.lanes.get_mut(&lane).expect("it is there");
                    state.phase = Phase::Settled(mark);
                    return Err(Hitch::WaitFor(lane.source()));
                }
                Ok(Some(Phase::Looking))
            }
        }
    }

    fn hold_mover(&mut self, lane: Lane, hitch: Hitch<S>, moment: Moment) {
        let source = lane.source();
        let queue = match hitch {
            Hitch::Wait | Hitch::Over => return,
            Hitch::WaitFor(queue) => queue,
            Hitch::Cold(read) => {
                self.hosted.get_mut(&source).expect("its source").jobs_under_way += 1;
                self.jobs.push(Work::log(source, *read));
                source
            }
            Hitch::Rest(why) => {
                self.movers.troubles.insert(source, why);
                let until = moment.now.plus(limits::CHORE_RETRY);
                let state = self.movers.lanes.get_mut(&lane).expect("it is there");
                state.phase = Phase::Resting(until);
                self.movers.resting.insert((until, lane));
                return;
            }
        };
        self.movers.waiting.entry(queue).or_default().insert(lane);
        self.touch(queue);
    }

    /// Nothing is left to do, or its source is gone.
    fn end_mover(&mut self, lane: Lane) {
        let Some(state) = self.movers.lanes.remove(&lane) else { return };
        self.movers.troubles.remove(&lane.source());
        if let Some(request) = state.request {
            self.end_requeue(request, Ok(()));
        }
        self.let_seekers_on(lane, self.clock);
    }

    /// A queue is gone, with its groups.
    pub(super) fn forget_movers(&mut self, number: QueueNumber, groups: &[GroupKey]) {
        let of_queue: Vec<Lane> =
            self.movers.lanes.keys().filter(|lane| lane.source() == number).copied().collect();
        of_queue.into_iter().for_each(|lane| self.end_mover(lane));
        groups.iter().for_each(|group| self.movers.failures.forget_group(*group));
        self.turn_back(number);
        self.movers.opened.retain(|(queue, _)| *queue != number);
        self.movers.troubles.remove(&number);
        self.wake_movers(number);
    }

    /// A destination goes: what was on its way there is looked for again.
    fn turn_back(&mut self, number: QueueNumber) {
        let mut turned = Vec::new();
        for (lane, state) in &mut self.movers.lanes {
            let dest = match &state.phase {
                Phase::Staged(large, _) | Phase::Chaining(large) => large.dest,
                Phase::Committed { dest, .. } => *dest,
                _ => continue,
            };
            if dest == number {
                state.phase = Phase::Looking;
                turned.push(*lane);
            }
        }
        for lane in turned {
            self.drop_in_hand(lane);
            self.movers.woken.insert(lane);
        }
    }

    /// What stands in the way of moving messages out of this queue.
    pub(super) fn movers_trouble(&self, number: QueueNumber) -> Option<&str> {
        self.movers.troubles.get(&number).map(String::as_str)
    }

    /// Who moves in this lane.
    fn mover(&self, lane: Lane, group: GroupKey) -> Mover {
        let purpose = match lane {
            Lane::Dead(..) => Purpose::Dead,
            Lane::Requeue(_) => Purpose::Requeue,
        };
        let source = self.hosted[&lane.source()].log.id();
        Mover { source, group: self.broker.group_name(group).clone(), purpose }
    }

    /// What stands in the destination, durably, is settled in the source.
    fn settle_moved(&mut self, lane: Lane, group: GroupKey, ranges: &[OffsetRange]) -> Phase<S> {
        let source = lane.source();
        let request = &mut self.movers.lanes.get_mut(&lane).expect("it is there").request;
        let ending = if request.is_some() { Ending::Acked } else { Ending::Dead };
        let settled = match request {
            None => self.broker.settle_dying(group, ranges),
            Some(request) => {
                let count = ranges.iter().map(OffsetRange::span).sum::<u64>();
                request.moved += count;
                request.left = request.left.saturating_sub(count);
                self.broker.ack(request.consumer, ranges)
            }
        };
        self.movers.troubles.remove(&source);
        self.settle(source, group, &settled, ending);
        let hosted = self.hosted.get_mut(&source).expect("its source");
        let mark = hosted.log.want_group_durable(hosted.groups[&group]);
        self.touch(source);
        Phase::Settled(mark)
    }

    /// The source of a mover cannot be read: it stands still.
    fn source_unreadable(&mut self, number: QueueNumber, error: &LogError) -> Hitch<S> {
        self.stand_still(number, error.to_string());
        Hitch::Over
    }

    /// A batch of the source is not what was written: the log reads it again and says so.
    fn source_damaged(&mut self, number: QueueNumber, unreadable: Unreadable) -> Hitch<S> {
        let hosted = self.hosted.get_mut(&number).expect("a mover's source");
        let why = match unreadable {
            Unreadable::Io(error) => error.to_string(),
            Unreadable::Damaged(place, error) => match hosted.log.complaint(place) {
                Err(found) => found.to_string(),
                Ok(()) => format!("{error}, though it reads well now"),
            },
        };
        self.stand_still(number, why);
        Hitch::Over
    }

    /// Reads messages of the source from `from` on and shows them to `visit`; true when that was
    /// a large one: then it is returned rather than shown.
    fn read_source(
        &mut self,
        number: QueueNumber,
        range: OffsetRange,
        visit: parcel::Visit<'_>,
    ) -> Result<Option<FoundChain<S>>, Hitch<S>> {
        use crate::log::Found;
        let hosted = self.hosted.get_mut(&number).expect("a mover's source");
        let found = hosted.log.locate(range.start, range.end, READ_BYTES, &Select::default());
        let visited = match found {
            Err(error) => return Err(self.source_unreadable(number, &error)),
            Ok(Found::Cold { read }) => return Err(Hitch::Cold(Box::new(read))),
            Ok(Found::Whole { file, place, bytes, .. }) => {
                parcel::visit_file(&file, place, bytes, visit)
            }
            Ok(Found::Cut { bytes, .. }) => {
                let place = crate::batch::Place::cut(hosted.log.id());
                parcel::visit_batches(&bytes, place, visit)
            }
            Ok(Found::Chain { file, parts, end, .. }) => {
                let range = OffsetRange::new(range.start, end);
                return Ok(Some(FoundChain { file, parts, range }));
            }
            Ok(Found::Expired { .. } | Found::NotOurs { .. }) => {
                unreachable!("everything was asked for")
            }
        };
        match visited {
            Ok(()) => Ok(None),
            Err(unreadable) => Err(self.source_damaged(number, unreadable)),
        }
    }
}

/// A large message of a source.
struct FoundChain<S: Storage> {
    file: std::sync::Arc<S::File>,
    parts: Vec<(crate::batch::Place, u64)>,
    range: OffsetRange,
}

/// A record of its own.
fn record_of(attributes: &[u8], body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(attributes.len() + body.len() + 8);
    Record { attribute_bytes: attributes, body }.encode(&mut record);
    record
}

/// The message at `offset` alone.
fn only_at(offset: Offset) -> OffsetRange {
    OffsetRange::new(offset, Offset(offset.0 + 1))
}
