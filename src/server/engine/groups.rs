//! Groups: finding and making them, what their journals are told, and what comes back from there.
//!
//! The broker knows the running clock, a journal the wall clock; here the one becomes the other.
//! Whatever a group's journal must know is written before anything that follows from it is sent.

use std::collections::BTreeMap;

use crate::broker::{Broker, ConsumerKey, GroupKey, GroupState, Lease, Refusal, Tried};
use crate::limits;
use crate::log::storage::Storage;
use crate::log::{
    AccountStart, GroupAccount, GroupFact, GroupFile, GroupPosition, LeasedRange, Log, TriedRange,
};
use crate::planted::{self, Bug};
use crate::settings::Retention;
use crate::units::{
    Count, DEFAULT_GROUP, Ending, Micros, Moment, Monotonic, Name, Offset, OffsetRange, Tally,
    WallTime,
};
use crate::wire::{ErrorCode, Fault, Receiving};

use super::hosting::log_fault;
use super::turns::Turn;
use super::{ConnectionId, Engine, QueueNumber, fault, fault_with};

/// What the engine keeps of the groups of one queue beside the broker.
#[derive(Default)]
pub(super) struct GroupBooks {
    /// The highest counter in a lease number so far.
    pub lease_counters: BTreeMap<GroupKey, u32>,
    /// Where the account of each begins, and what was counted before.
    pub ledgers: BTreeMap<GroupKey, Ledger>,
    /// Channels that wait for a place in the queue to be found.
    pub seekers: Vec<(ConnectionId, u16)>,
    /// Requests that are answered when this group stands durably where they want it.
    pub made: Vec<(GroupFile, GroupKey, (ConnectionId, u16))>,
    /// Messages that no group gets, as the first one was made to begin behind them, until somebody is
    /// told.
    pub passed: BTreeMap<GroupKey, Count>,
    /// Requests that are answered when the group of this name is gone.
    pub removals: Vec<(Name, (ConnectionId, u16))>,
    /// Exclusive receivers that wait for their turn, and what is said again then.
    pub awaiting_turn: BTreeMap<ConsumerKey, Receiving>,
    /// Turns whose epochs are not durable yet.
    pub turns: Vec<Turn>,
}

/// Of the account of a group, what the broker does not know.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ledger {
    pub start: AccountStart,
    /// How messages ended before it began.
    pub before: Tally,
}

impl GroupBooks {
    /// A channel that waited does not any more.
    pub fn forget_waiter(&mut self, gone: (ConnectionId, u16)) {
        self.seekers.retain(|one| *one != gone);
        self.made.retain(|(_, _, one)| *one != gone);
        self.removals.retain(|(_, one)| *one != gone);
    }

    /// Every channel that waits, as the queue goes.
    pub fn take_waiters(&mut self) -> impl Iterator<Item = (ConnectionId, u16)> + use<> {
        let made = std::mem::take(&mut self.made).into_iter().map(|(_, _, one)| one);
        let removals = std::mem::take(&mut self.removals).into_iter().map(|(_, one)| one);
        std::mem::take(&mut self.seekers).into_iter().chain(made).chain(removals)
    }
}

/// A stored time on the running clock. `newest` is the newest time that the queue has stored: a
/// clock that was set back since must not make anybody wait for that long again. Nobody waits
/// longer than `most` in any case.
fn running(at: WallTime, clock: Moment, newest: WallTime, most: Micros) -> Monotonic {
    let wall = clock.wall.max(newest);
    clock.now.plus(Micros(at.0.saturating_sub(wall.0)).min(most))
}

/// A time on the running clock as it is stored.
pub(super) fn stored(at: Monotonic, clock: Moment) -> WallTime {
    WallTime(clock.wall.0.saturating_add(at.since(clock.now).0))
}

/// The clock by which a queue's journals store what is due: not behind the queue's newest time, as
/// [`running`] reads it. Else what was leased after the clock was set back would be over at once
/// after a restart.
pub(super) fn journal_clock<S: Storage>(clock: Moment, log: &Log<S>) -> Moment {
    Moment { wall: clock.wall.max(log.newest_time()), ..clock }
}

/// What a journal kept, for the broker. What has had its last attempt rests for a moment: its
/// holder may come back.
pub(super) fn state_of(
    position: GroupPosition,
    clock: Moment,
    newest: WallTime,
    delivery_limit: Option<u32>,
) -> GroupState {
    let tried = position.tried.into_iter().map(|TriedRange { range, attempts, ready_at }| {
        let rests = ready_at.map(|at| running(at, clock, newest, limits::BACKOFF_LONGEST));
        let exhausted = attempts.are_spent(delivery_limit);
        let grace = exhausted.then(|| clock.now.plus(limits::HOLDER_GRACE));
        Tried { range, attempts, ready_at: rests.or(grace) }
    });
    let kept = position.leases.into_iter().filter(|_| !planted::is(Bug::LeaseLostAtRestart));
    let leases = kept.map(|LeasedRange { range, number, deadline }| Lease {
        range,
        number,
        deadline: running(deadline, clock, newest, limits::LEASE_MAX),
    });
    GroupState {
        settled: position.settled,
        handed: position.handed,
        tried: tried.collect(),
        leases: leases.collect(),
        epoch: position.epoch,
        tally: position.account.tally,
    }
}

/// What a journal has to keep of a group.
pub(super) fn position_of(
    state: GroupState,
    lease_counter: u32,
    ledger: Ledger,
    clock: Moment,
) -> GroupPosition {
    let leases = state.leases.into_iter().map(|lease| leased_range(lease, clock));
    GroupPosition {
        settled: state.settled,
        handed: state.handed,
        tried: state.tried.into_iter().map(|tried| tried_range(tried, clock)).collect(),
        leases: leases.collect(),
        epoch: state.epoch,
        lease_counter,
        account: GroupAccount {
            start: Some(ledger.start),
            tally: state.tally,
            before: ledger.before,
        },
    }
}

fn tried_range(Tried { range, attempts, ready_at }: Tried, clock: Moment) -> TriedRange {
    TriedRange { range, attempts, ready_at: ready_at.map(|at| stored(at, clock)) }
}

pub(super) fn leased_range(lease: Lease, clock: Moment) -> LeasedRange {
    let Lease { range, number, deadline } = lease;
    LeasedRange { range, number, deadline: stored(deadline, clock) }
}

/// What was tried, for a journal.
pub(super) fn tried_facts(tried: &[Tried], clock: Moment) -> Vec<GroupFact> {
    tried.iter().map(|tried| GroupFact::Tried(tried_range(*tried, clock))).collect()
}

/// The whole state of a group, for its journal.
pub(super) fn whole(
    broker: &Broker,
    books: &GroupBooks,
    group: GroupKey,
    clock: Moment,
) -> GroupPosition {
    let counter = books.lease_counters.get(&group).copied().unwrap_or(0);
    let ledger = books.ledgers.get(&group).copied().unwrap_or_default();
    position_of(broker.group_state(group), counter, ledger, clock)
}

impl<S: Storage> Engine<S> {
    /// Finds a group, or makes it: at `from`, or if it is the one that is made by being used.
    pub(super) fn group_to_take_from(
        &mut self,
        number: QueueNumber,
        name: &Name,
    ) -> Result<GroupKey, Fault> {
        let hosted = &self.hosted[&number];
        if let Some(group) = self.broker.find_group(hosted.key, name) {
            return Ok(group);
        }
        if name.as_str() != DEFAULT_GROUP {
            return Err(fault_with(
                ErrorCode::NotFound,
                format!("queue {} has no group {name}", hosted.name),
                format!(
                    "make it with --from oldest, or with `mq-admin group add {} {name}`",
                    hosted.name
                ),
            ));
        }
        self.make_group(number, name, None)
    }

    /// Makes a group: with this state, or as one for which everything that is not gone is ready.
    pub(super) fn make_group(
        &mut self,
        number: QueueNumber,
        name: &Name,
        state: Option<GroupState>,
    ) -> Result<GroupKey, Fault> {
        let passed = state.as_ref().map(|state| self.passed_by_first(number, state));
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let queue = &hosted.name;
        let added = self.broker.add_group(hosted.key, name, state);
        let group = added.map_err(|refusal| match refusal {
            Refusal::TooManyGroups => {
                fault(ErrorCode::Busy, format!("queue {queue} has its limit of groups"))
            }
            Refusal::GroupExists { .. } => {
                fault(ErrorCode::Different, format!("queue {queue} has a group {name} already"))
            }
            other => fault(ErrorCode::Usage, other.to_string()),
        })?;
        let start = hosted.account_start(&self.broker, group, self.clock.wall);
        hosted.books.ledgers.insert(group, Ledger { start, before: Tally::default() });
        let clock = journal_clock(self.clock, &hosted.log);
        let position = whole(&self.broker, &hosted.books, group, clock);
        match hosted.log.add_group_at(name, &position) {
            Ok(file) => {
                hosted.groups.insert(group, file);
                hosted.new_groups.push(file);
                hosted.books.passed.extend(passed.map(|passed| (group, passed)));
                self.touch(number);
                Ok(group)
            }
            Err(error) => {
                let doing = format!("cannot make group {name} of {queue}");
                hosted.books.ledgers.remove(&group);
                self.broker.remove_group(group);
                Err(log_fault(&doing, &error))
            }
        }
    }

    /// Messages that a group would pass over as the first of its queue: no other keeps them.
    fn passed_by_first(&self, number: QueueNumber, state: &GroupState) -> Count {
        let hosted = &self.hosted[&number];
        let keeps = hosted.log.settings().retain == Retention::Log;
        if keeps || self.broker.groups(hosted.key).next().is_some() {
            return Count(0);
        }
        let gone = self.broker.gone(hosted.key);
        let of = |ranges: &mut dyn Iterator<Item = OffsetRange>| ranges.map(|r| r.span()).sum();
        let (settled, gone): (u64, u64) =
            (of(&mut state.settled.iter().copied()), of(&mut gone.iter()));
        Count(settled.saturating_sub(gone))
    }

    /// Whether the channel must wait for the group's journal; then it is called on later.
    pub(super) fn waits_for_group(
        &mut self,
        number: QueueNumber,
        group: GroupKey,
        channel: (ConnectionId, u16),
    ) -> bool {
        let hosted = &self.hosted[&number];
        let waits = hosted.new_groups.contains(&hosted.groups[&group]);
        self.wait_for_journal(number, channel, waits)
    }

    /// Whether the channel must wait for the group's journal to be installed: it cannot be set
    /// elsewhere before. Then it is called on later.
    pub(super) fn waits_to_reset(
        &mut self,
        number: QueueNumber,
        group: GroupKey,
        channel: (ConnectionId, u16),
    ) -> bool {
        let hosted = &self.hosted[&number];
        let waits = !hosted.log.may_reset(hosted.groups[&group]);
        self.wait_for_journal(number, channel, waits)
    }

    /// The channel is called on when a journal is installed, if it waits for one; whether it does.
    fn wait_for_journal(
        &mut self,
        number: QueueNumber,
        channel: (ConnectionId, u16),
        waits: bool,
    ) -> bool {
        if waits {
            let hosted = self.hosted.get_mut(&number).expect("a live queue");
            hosted.group_waiters.push(channel);
        }
        waits
    }

    /// Journals of groups that were made, or set elsewhere, survive a crash from now on.
    pub(super) fn groups_installed(
        &mut self,
        number: QueueNumber,
        installed: &[GroupFile],
        moment: Moment,
    ) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        hosted.new_groups.retain(|group| !installed.contains(group));
        self.groups_stand(number, installed);
        self.wake_group_waiters(number, moment);
        self.invite(number);
    }

    /// Calls on those that waited for a group's journal.
    pub(super) fn wake_group_waiters(&mut self, number: QueueNumber, moment: Moment) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        for (connection, channel) in std::mem::take(&mut hosted.group_waiters) {
            self.reopen(connection, channel, moment);
        }
    }

    /// Writes down what became settled, and drops segments that nobody needs any more.
    pub(super) fn settle(
        &mut self,
        number: QueueNumber,
        group: GroupKey,
        settled: &[OffsetRange],
        ending: Ending,
    ) {
        if settled.is_empty() {
            return;
        }
        self.count_settled(number, group, settled, ending);
        self.forget_failures(group, settled);
        let hosted = self.hosted.get_mut(&number).expect("a receiver's queue");
        hosted.settles += 1;
        let file = hosted.groups[&group];
        let clock = journal_clock(self.clock, &hosted.log);
        let (broker, books) = (&self.broker, &hosted.books);
        let handed = broker.counts(group).handed;
        let written = hosted
            .log
            .settled(file, settled, ending, handed, || whole(broker, books, group, clock));
        if let Err(error) = written {
            // Settled in memory, and not on disk: a crash would deliver them again, which is
            // allowed; a failing disk is not something to go on with.
            self.failed.get_or_insert_with(|| error.to_string());
        }
        self.drop_gone_segments(number, Some(settled));
        self.roll_if_gone(number);
        self.touch(number);
    }

    /// The group journals learn how far messages are handed out, before any byte of them is
    /// sent: so a restarted server knows what may have been seen.
    pub(super) fn journal_handed(&mut self) {
        for number in std::mem::take(&mut self.handing) {
            let Some(hosted) = self.hosted.get_mut(&number) else { continue };
            for (group, handed) in std::mem::take(&mut hosted.handed) {
                let Some(&file) = hosted.groups.get(&group) else { continue };
                if let Err(error) = hosted.log.handed(file, handed) {
                    self.failed = Some(error.to_string());
                }
            }
        }
    }

    /// See [`journal_clock`].
    pub(super) fn journal_clock(&self, number: QueueNumber) -> Moment {
        journal_clock(self.clock, &self.hosted[&number].log)
    }

    /// Writes down what became true of a group.
    pub(super) fn note(&mut self, number: QueueNumber, group: GroupKey, facts: &[GroupFact]) {
        if facts.is_empty() {
            return;
        }
        let hosted = self.hosted.get_mut(&number).expect("a group's queue");
        let file = hosted.groups[&group];
        let clock = journal_clock(self.clock, &hosted.log);
        let (broker, books) = (&self.broker, &hosted.books);
        let noted = hosted.log.note_group(file, facts, || whole(broker, books, group, clock));
        if let Err(error) = noted {
            // A crash would forget an attempt or a lease; see above.
            self.failed.get_or_insert_with(|| error.to_string());
        }
        self.touch(number);
    }

    /// Drops sealed segments of which every message is gone: those that `settled` touches, or
    /// all that there are.
    pub(super) fn drop_gone_segments(
        &mut self,
        number: QueueNumber,
        settled: Option<&[OffsetRange]>,
    ) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let everything = [OffsetRange::new(Offset(0), hosted.log.written_end())];
        let touched = settled.unwrap_or(&everything);
        let mut dropped = false;
        for (segment, extent) in hosted.log.segment_extents(touched) {
            if self.broker.is_gone(hosted.key, extent) {
                hosted.log.drop_segment(segment);
                dropped = true;
            }
        }
        if dropped {
            self.touch(number);
        }
    }

    /// When nothing that is stored is wanted any more, the active segment may go as well.
    pub(super) fn roll_if_gone(&mut self, number: QueueNumber) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let all = OffsetRange::new(hosted.log.start(), hosted.log.written_end());
        if !all.is_empty() && self.broker.is_gone(hosted.key, all) {
            hosted.log.roll_if_gone();
        }
    }
}
