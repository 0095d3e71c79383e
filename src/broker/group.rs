//! Groups: reader positions on a queue. What is settled, ready, leased, resting and dying for each.
//!
//! Who of the consumers holds which message is their own knowledge; a group only counts them. The
//! set of ready messages is kept, not computed, so that the lowest is found without a walk; it has
//! about as many ranges as there are holes. Attempts, pauses and leases with receipts are looked
//! at only where there are any: a group whose messages are only piped pays nothing for them.

use std::collections::BTreeSet;

use crate::limits;
use crate::settings::Retention;
use crate::units::{Attempts, Count, Ending, Monotonic, Name, Offset, OffsetRange, Tally};

use super::exclusive::Exclusives;
use super::horizon::Watch;
use super::leases::Leased;
use super::line::{Line, Ticket};
use super::range_map::RangeMap;
use super::resting::Rest;
use super::timed::Timed;
use super::{
    Broker, ConsumerKey, Counts, GroupKey, GroupState, Lease, QueueKey, RangeSet, Refusal, Tried,
};

/// One group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) queue: QueueKey,
    name: Name,
    /// Contains the queue's gaps and what is gone from it.
    pub(super) settled: RangeSet,
    /// Behind the highest message that is settled: what lies below may be a hole although this
    /// group never had it. Gaps do not count here: what lies below a gap may well be new.
    settled_to: Offset,
    /// How messages came to be settled.
    pub(super) tally: Tally,
    pub(super) handed: Offset,
    pub(super) ready: RangeSet,
    /// How many messages its consumers hold, or are under a lease with a receipt.
    pub(super) leased: u64,
    /// How often messages were handed over that are not settled; never 0.
    pub(super) attempts: RangeMap<Attempts>,
    /// Messages that failed and wait for their next attempt. All of them have attempts.
    pub(super) resting: Timed<Rest>,
    /// Messages under a lease with a receipt.
    pub(super) leases: Timed<Leased>,
    /// Messages that wait to be moved away, and will not be offered again.
    pub(super) dying: RangeSet,
    /// How many messages were dying when that was last looked at.
    pub(super) dying_told: u64,
    /// Attempts after which a message is dying.
    pub(super) delivery_limit: Option<u32>,
    /// What lies below is not kept for its own sake: given back, it is settled.
    pub(super) kept_from: Offset,
    pub(super) exclusives: Exclusives,
    /// When the first pause or lease is over, as the broker's timers know it.
    pub(super) timer: Option<Monotonic>,
    /// How many consumers take.
    pub(super) consumers: usize,
    /// How many of them were called and have not had their turn yet.
    pub(super) called: usize,
    /// The consumers that wait for their turn.
    pub(super) line: Line<ConsumerKey>,
    /// The consumers that have credit, and for which nothing was when it was their turn although
    /// something is ready for others.
    pub(super) parked: Line<ConsumerKey>,
    /// The consumers with an `until`, each under the message it waits for.
    pub(super) watch: Watch,
    /// What was given back after its time, and so settled without anybody's asking; drained by
    /// [`Broker::group_changed`].
    pub(super) lost: Vec<OffsetRange>,
    /// Its place in the line of outputs, while somebody waits and something can be offered.
    pub(super) work: Option<Ticket>,
    /// Its place there while it has to be told that messages are dying.
    pub(super) dying_work: Option<Ticket>,
    /// Whether the queue counts it as busy.
    busy: bool,
    bounds: Bounds,
}

/// How much a group may keep; smaller in tests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// [`limits::SETTLED_RANGES_PER_GROUP_MAX`].
    pub(super) settled_ranges: usize,
    /// [`limits::TRIED_RANGES_PER_GROUP_MAX`].
    pub(super) tried_ranges: usize,
    /// [`limits::LEASES_PER_GROUP_MAX`].
    pub(super) leases: usize,
}

impl Bounds {
    pub(super) const REAL: Bounds = Bounds {
        settled_ranges: limits::SETTLED_RANGES_PER_GROUP_MAX,
        tried_ranges: limits::TRIED_RANGES_PER_GROUP_MAX,
        leases: limits::LEASES_PER_GROUP_MAX,
    };
}

impl Group {
    /// Everything below is settled.
    fn floor(&self) -> Offset {
        self.settled.first().filter(|first| first.start == Offset(0)).map_or(Offset(0), |r| r.end)
    }

    fn settled_ranges_above_floor(&self) -> usize {
        self.settled.len() - usize::from(self.floor() > Offset(0))
    }

    /// Whether one more settled range would be too many.
    pub(super) fn has_all_settled_ranges(&self) -> bool {
        self.settled_ranges_above_floor() >= self.bounds.settled_ranges
    }

    fn is_stuck(&self) -> bool {
        self.settled_ranges_above_floor() > self.bounds.settled_ranges
            || self.tried_ranges() > self.bounds.tried_ranges
    }

    /// Ranges of what was tried, as a journal has to keep them, and perhaps a few more.
    fn tried_ranges(&self) -> usize {
        self.attempts.len() + self.resting.ranges().len()
    }

    /// Whether no further lease with a receipt can be given.
    pub(super) fn has_all_leases(&self) -> bool {
        self.leases.ranges().len() >= self.bounds.leases
    }

    /// What lies from here on is not offered: the end of time, unless the group is stuck. Then it
    /// is what nobody has had yet, because that could only make more holes (or more that was tried
    /// and is not settled); what lies below closes some. So the ranges of a stuck group are
    /// bounded by the limit and by the messages that were leased when it got stuck.
    pub(super) fn fence(&self) -> Offset {
        if self.is_stuck() { self.handed.max(self.settled_to) } else { Offset(u64::MAX) }
    }

    /// The lowest range that may be offered below `until`.
    pub(super) fn lowest(&self, until: Option<Offset>) -> Option<OffsetRange> {
        let limit = until.unwrap_or(Offset(u64::MAX)).min(self.fence());
        let first = self.ready.first()?;
        first.intersection(&OffsetRange::new(Offset(0), limit))
    }

    /// The visible end moved over a gap to `range`.
    pub(super) fn extend(&mut self, gap: OffsetRange, range: OffsetRange) {
        self.settled.cover(gap);
        self.ready.cover(range);
    }

    /// `range` of the ready messages is leased.
    pub(super) fn lease(&mut self, range: OffsetRange) {
        let leased = self.ready.uncover(range);
        assert!(leased == range.span(), "not all of {range} was ready");
        self.leased += leased;
        self.handed = self.handed.max(range.end);
    }

    /// `range` of the leased messages is settled.
    pub(super) fn settle(&mut self, range: OffsetRange, ending: Ending) {
        self.leased -= range.span();
        self.cover_settled(range, ending);
    }

    /// `range` is settled, wherever it was.
    pub(super) fn cover_settled(&mut self, range: OffsetRange, ending: Ending) {
        let settled = self.settled.cover(range);
        self.tally.add(ending, settled);
        self.settled_to = self.settled_to.max(range.end);
        if !self.attempts.is_empty() {
            self.attempts.unset(range);
        }
    }

    /// `range` of the leased messages is ready again, in its old place; unless it has had all its
    /// attempts, or is not kept any more.
    pub(super) fn put_back(&mut self, range: OffsetRange) {
        self.leased -= range.span();
        self.make_ready(range);
    }

    /// `range`, which was in no set, is ready, or dying after all its attempts.
    pub(super) fn make_ready(&mut self, range: OffsetRange) {
        let (lost, range) = split_at(range, self.kept_from);
        self.lose(lost);
        if self.attempts.is_empty() {
            self.ready.cover(range);
            return;
        }
        self.ready.cover(range);
        for piece in self.exhausted_in(range) {
            self.ready.uncover(piece);
            self.dying.cover(piece);
        }
    }

    /// `range`, which was in no set, is not kept any more.
    pub(super) fn lose(&mut self, range: OffsetRange) {
        if !range.is_empty() {
            self.cover_settled(range, Ending::Dropped);
            self.lost.push(range);
        }
    }

    /// What of `range` has had all its attempts.
    pub(super) fn exhausted_in(&self, range: OffsetRange) -> Vec<OffsetRange> {
        let pieces = self.attempts.pieces_in(range);
        let spent = pieces.filter(|(_, attempts)| attempts.are_spent(self.delivery_limit));
        spent.map(|(piece, _)| piece).collect()
    }

    /// What of `range` is ready or resting is neither from now on; returns what it was.
    pub(super) fn withdraw(&mut self, range: OffsetRange) -> RangeSet {
        let mut withdrawn: RangeSet = self.ready.pieces_in(range).collect();
        self.ready.uncover(range);
        if !self.resting.is_empty() {
            withdrawn.extend(self.resting.ranges().pieces_in(range).map(|(piece, _)| piece));
            self.resting.unset(range);
        }
        withdrawn
    }

    /// What of `range` is neither settled nor can be withdrawn: leased or dying.
    pub(super) fn in_hands_in(&self, range: OffsetRange) -> RangeSet {
        let mut held: RangeSet = self.settled.gaps_in(range).collect();
        for piece in self.ready.pieces_in(range) {
            held.uncover(piece);
        }
        for (piece, _) in self.resting.ranges().pieces_in(range) {
            held.uncover(piece);
        }
        held
    }

    /// What was tried of `range`, as a journal keeps it.
    pub(super) fn tried_in(&self, range: OffsetRange) -> Vec<Tried> {
        let mut tried = Vec::new();
        for (piece, attempts) in self.attempts.pieces_in(range) {
            let mut at = piece.start;
            for (rest, until) in self.resting.ranges().pieces_in(piece) {
                let before = OffsetRange::new(at, rest.start);
                tried.push(Tried { range: before, attempts, ready_at: None });
                tried.push(Tried { range: rest, attempts, ready_at: Some(until.0) });
                at = rest.end;
            }
            let behind = OffsetRange::new(at, piece.end);
            tried.push(Tried { range: behind, attempts, ready_at: None });
        }
        tried.retain(|tried| !tried.range.is_empty());
        tried
    }

    /// Whether anything is neither settled nor waits for a first consumer.
    fn is_busy(&self) -> bool {
        self.leased > 0
            || !self.ready.is_empty()
            || !self.resting.is_empty()
            || !self.dying.is_empty()
    }
}

/// What of `range` lies below `at`, and what from there on.
fn split_at(range: OffsetRange, at: Offset) -> (OffsetRange, OffsetRange) {
    let middle = at.clamp(range.start, range.end);
    (OffsetRange::new(range.start, middle), OffsetRange::new(middle, range.end))
}

/// What of `range` lies within `extent`; an empty range if nothing does.
fn part_in(range: OffsetRange, extent: OffsetRange) -> OffsetRange {
    range.intersection(&extent).unwrap_or_default()
}

/// Behind the highest offset of `settled` that is no gap.
fn top_message(settled: &RangeSet, gaps: &RangeSet) -> Offset {
    let ends = settled.iter().rev().filter_map(|range| gaps.last_gap_in(range));
    ends.map(|part| part.end).next().unwrap_or(Offset(0))
}

impl Broker {
    /// Adds a group: with what a journal kept of it, or a new one, for which everything that is
    /// not gone is ready.
    ///
    /// # Errors
    /// [`Refusal::TooManyGroups`], [`Refusal::GroupExists`].
    pub fn add_group(
        &mut self,
        q: QueueKey,
        name: &Name,
        state: Option<GroupState>,
    ) -> Result<GroupKey, Refusal> {
        if self.find_group(q, name).is_none()
            && self.queue(q).groups.len() >= limits::GROUPS_PER_QUEUE_MAX
        {
            return Err(Refusal::TooManyGroups);
        }
        self.insert_group(q, name, state)
    }

    /// As [`Broker::add_group`] for a group that a journal kept, above the limit as well: after a
    /// kill there may be a journal more, of a group that was being removed.
    ///
    /// # Errors
    /// [`Refusal::GroupExists`].
    pub fn restore_group(
        &mut self,
        q: QueueKey,
        name: &Name,
        state: GroupState,
    ) -> Result<GroupKey, Refusal> {
        self.insert_group(q, name, Some(state))
    }

    fn insert_group(
        &mut self,
        q: QueueKey,
        name: &Name,
        state: Option<GroupState>,
    ) -> Result<GroupKey, Refusal> {
        let found = self.queue(q).groups.binary_search_by(|&g| self.group(g).name.cmp(name));
        let Err(place) = found else {
            return Err(Refusal::GroupExists { name: name.clone() });
        };
        let group = self.group_of_state(q, name, state);
        let g = GroupKey(self.groups.insert(group));
        let queue = self.queue_mut(q);
        queue.groups.insert(place, g);
        let extent = queue.extent();
        self.retime(g);
        self.group_changed(g);
        // A first group that comes with settled messages makes them gone.
        self.recheck_queue(q, extent);
        self.queue_changed(q);
        Ok(g)
    }

    fn group_of_state(&self, q: QueueKey, name: &Name, state: Option<GroupState>) -> Group {
        let queue = self.queue(q);
        let mut group = Group {
            queue: q,
            name: name.clone(),
            settled_to: Offset(0),
            tally: Tally::default(),
            ready: RangeSet::new(),
            settled: RangeSet::new(),
            handed: Offset(0),
            leased: 0,
            attempts: RangeMap::new(),
            resting: Timed::new(),
            leases: Timed::new(),
            dying: RangeSet::new(),
            dying_told: 0,
            delivery_limit: queue.delivery_limit,
            kept_from: queue.kept_from,
            exclusives: Exclusives::new(),
            timer: None,
            consumers: 0,
            called: 0,
            line: Line::new(),
            parked: Line::new(),
            watch: BTreeSet::new(),
            lost: Vec::new(),
            work: None,
            dying_work: None,
            busy: false,
            bounds: self.bounds,
        };
        match state {
            None => {
                let settled = match queue.retention {
                    Retention::Acked => self.gone(q),
                    Retention::Log => queue.gone.clone(),
                };
                self.fill(&mut group, settled);
                group.handed = group.floor();
            }
            Some(state) => self.load(&mut group, state),
        }
        group
    }

    /// Nothing of a group is leased, resting or dying: what is not settled is ready.
    fn fill(&self, group: &mut Group, settled: RangeSet) {
        let queue = self.queue(group.queue);
        group.settled_to = top_message(&settled, &queue.gaps);
        group.ready = settled.gaps_in(queue.extent()).collect();
        group.settled = settled;
    }

    /// Makes a group what `state` says.
    pub(super) fn load(&self, group: &mut Group, state: GroupState) {
        let queue = self.queue(group.queue);
        let extent = queue.extent();
        // What a power loss took from the log's end may still stand in the journal.
        let within = state.settled.iter().filter_map(|range| range.intersection(&extent));
        let mut settled: RangeSet = within.collect();
        group.tally = state.tally;
        settled.extend(&queue.gone);
        self.fill(group, settled);
        group.handed = state.handed.min(queue.end);
        group.exclusives.epoch = state.epoch;
        for Lease { range, number, deadline } in state.leases {
            for part in group.ready.remove(range) {
                group.leases.set(part, Leased { number, deadline });
                group.leased += part.span();
                group.handed = group.handed.max(part.end);
            }
        }
        for Tried { range, attempts, ready_at } in state.tried {
            for part in group.settled.gaps_in(part_in(range, extent)).collect::<Vec<_>>() {
                group.attempts.set(part, attempts);
                group.handed = group.handed.max(part.end);
            }
            let Some(until) = ready_at else { continue };
            for part in group.ready.remove(range) {
                group.resting.set(part, Rest(until));
            }
        }
        for range in group.leases.ranges().iter().map(|(range, _)| range).collect::<Vec<_>>() {
            group.know_tried(range);
        }
        for part in group.ready.iter().collect::<Vec<_>>() {
            group.ready.uncover(part);
            group.make_ready(part);
        }
    }

    /// Forgets a group. What is gone stays gone; what only this group had not settled is gone
    /// with it, unless it was the last: without a group nothing more goes. Returns its consumers,
    /// whose keys are stale now, so that the caller can tell them. Walks all consumers and holes.
    pub fn remove_group(&mut self, g: GroupKey) -> Vec<ConsumerKey> {
        let of_group = self.consumers_where(|consumer| consumer.group == Some(g));
        for &c in &of_group {
            self.remove_consumer(c);
        }
        let q = self.group(g).queue;
        let gone = self.gone(q);
        let group = self.forget_group(g);
        let queue = self.queue_mut(q);
        if queue.retention == Retention::Acked {
            queue.gone = gone;
        }
        queue.groups.retain(|other| *other != g);
        queue.busy_groups -= usize::from(group.busy);
        let extent = queue.extent();
        self.recheck_queue(q, extent);
        self.queue_changed(q);
        of_group
    }

    /// Takes a group out of the table, and its work and timer with it.
    pub(super) fn forget_group(&mut self, g: GroupKey) -> Group {
        self.lost.retain(|(of, _)| *of != g);
        let group = self.groups.remove(g.0);
        self.cancel(group.work);
        self.cancel(group.dying_work);
        if let Some(due) = group.timer {
            self.timers.remove(&(due, g));
        }
        group
    }

    /// Sets a group to another place: it is as one that was just loaded. Its leases with receipts
    /// end, what was dying is not any more. Its epoch is above all before, and tells that this has
    /// happened: see [`limits::TURNS_PER_PLACE_MAX`].
    ///
    /// # Errors
    /// [`Refusal::HasReceivers`] while consumers take from it.
    pub fn reset_group(&mut self, g: GroupKey, state: GroupState) -> Result<(), Refusal> {
        let group = self.reset(g, state)?;
        let q = group.queue;
        self.lost.retain(|(of, _)| *of != g);
        *self.group_mut(g) = group;
        let extent = self.queue(q).extent();
        self.rewatch_group(g);
        self.recheck_queue(q, extent);
        self.retime(g);
        self.group_changed(g);
        self.queue_changed(q);
        Ok(())
    }

    /// What [`reset_group`](Broker::reset_group) would make of a group: what its journal has to
    /// keep then, and how many messages would be unsettled. Nothing changes, so that the journal
    /// can be written first.
    ///
    /// # Errors
    /// As for [`reset_group`](Broker::reset_group).
    pub fn group_after_reset(
        &self,
        g: GroupKey,
        state: GroupState,
    ) -> Result<(GroupState, Count), Refusal> {
        let group = self.reset(g, state)?;
        Ok((self.state_of(&group), self.counts_of(&group).unsettled()))
    }

    fn reset(&self, g: GroupKey, state: GroupState) -> Result<Group, Refusal> {
        let group = self.group(g);
        if group.consumers > 0 {
            return Err(Refusal::HasReceivers { name: group.name.clone() });
        }
        let mut group = group.clone();
        let epoch = group.exclusives.epoch.max(state.epoch);
        let place = epoch / limits::TURNS_PER_PLACE_MAX + 1;
        let epoch = place.saturating_mul(limits::TURNS_PER_PLACE_MAX);
        group.leased = 0;
        group.attempts = RangeMap::new();
        group.resting = Timed::new();
        group.leases = Timed::new();
        group.dying = RangeSet::new();
        self.load(&mut group, GroupState { epoch, ..state });
        Ok(group)
    }

    /// The group's name.
    #[must_use]
    pub fn group_name(&self, g: GroupKey) -> &Name {
        &self.group(g).name
    }

    /// The group's queue.
    #[must_use]
    pub fn queue_of_group(&self, g: GroupKey) -> QueueKey {
        self.group(g).queue
    }

    /// The group of this name.
    #[must_use]
    pub fn find_group(&self, q: QueueKey, name: &Name) -> Option<GroupKey> {
        let groups = &self.queue(q).groups;
        let place = groups.binary_search_by(|&g| self.group(g).name.cmp(name));
        place.ok().map(|place| groups[place])
    }

    /// All groups of a queue, in the order of their names.
    pub fn groups(&self, q: QueueKey) -> impl Iterator<Item = (GroupKey, &Name)> {
        self.queue(q).groups.iter().map(|&g| (g, &self.group(g).name))
    }

    /// What a journal has to keep of a group. Walks its holes.
    #[must_use]
    pub fn group_state(&self, g: GroupKey) -> GroupState {
        self.state_of(self.group(g))
    }

    fn state_of(&self, group: &Group) -> GroupState {
        let leases = group.leases.ranges().iter();
        GroupState {
            settled: group.settled.iter().collect(),
            handed: group.handed,
            tried: group.tried_in(self.queue(group.queue).extent()),
            leases: leases.map(|(range, leased)| leased.of(range)).collect(),
            epoch: group.exclusives.epoch,
            tally: group.tally,
        }
    }

    /// How what is settled in the group came to be so, as far as that was counted.
    #[must_use]
    pub fn tally(&self, g: GroupKey) -> Tally {
        self.group(g).tally
    }

    /// A group in numbers. O(1) but for the search of the first range.
    #[must_use]
    pub fn counts(&self, g: GroupKey) -> Counts {
        self.counts_of(self.group(g))
    }

    fn counts_of(&self, group: &Group) -> Counts {
        let floor = group.floor();
        Counts {
            ready: Count(group.ready.span()),
            leased: Count(group.leased),
            resting: Count(group.resting.ranges().span()),
            dying: Count(group.dying.span()),
            settled_ranges: group.settled_ranges_above_floor(),
            stuck: group.is_stuck(),
            // Gaps are settled, so what stands at the floor is a message.
            oldest: (floor < self.queue(group.queue).end).then_some(floor),
            consumers: group.consumers,
            floor,
            handed: group.handed,
        }
    }

    /// Whether anything is ready that may have been delivered before.
    #[must_use]
    pub fn has_handed_ready(&self, g: GroupKey) -> bool {
        let group = self.group(g);
        group.ready.first().is_some_and(|first| first.start < group.handed)
    }

    /// Calls the next consumer if there is reason to, tells of dying messages, and keeps the
    /// queue's count of busy groups. To be called after each change of a group.
    pub(super) fn group_changed(&mut self, g: GroupKey) {
        if !self.group(g).lost.is_empty() {
            let q = self.group(g).queue;
            for range in std::mem::take(&mut self.group_mut(g).lost) {
                self.recheck_queue(q, range);
                self.lost.push((g, range));
            }
        }
        self.appoint(g);
        self.unpark(g);
        self.stir(g);
        self.tell_dying(g);
        let group = self.groups.at_mut(g.0);
        let busy = group.is_busy();
        if busy != group.busy {
            group.busy = busy;
            let q = group.queue;
            let queue = self.queue_mut(q);
            match busy {
                true => queue.busy_groups += 1,
                false => queue.busy_groups -= 1,
            }
            self.queue_changed(q);
        }
    }
}
