//! Groups: reader positions on a queue. What is settled, ready and leased for each.
//!
//! Who holds which lease is the consumers' own knowledge; a group only counts them. The set of
//! ready messages is kept, not computed, so that the lowest is found without a walk; it has about
//! as many ranges as there are holes.

use std::collections::BTreeSet;

use crate::limits;
use crate::units::{Count, Name, Offset, OffsetRange};

use super::horizon::Watch;
use super::line::{Line, Ticket};
use super::{Broker, ConsumerKey, Counts, GroupKey, GroupState, QueueKey, RangeSet, Refusal};

/// One group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) queue: QueueKey,
    name: Name,
    /// Contains the queue's gaps and what is gone from it.
    pub(super) settled: RangeSet,
    /// Behind the highest message that was settled when the group was made: what lies below may
    /// be a hole although this group never had it. Gaps do not count here: what lies below a gap
    /// may well be new. What is settled later was handed out, or all below it was settled as well.
    inherited: Offset,
    pub(super) handed: Offset,
    pub(super) ready: RangeSet,
    /// How many messages its consumers hold.
    pub(super) leased: u64,
    /// How many consumers take.
    pub(super) consumers: usize,
    /// How many of them were called and have not had their turn yet.
    pub(super) called: usize,
    /// The consumers that wait for their turn.
    pub(super) line: Line<ConsumerKey>,
    /// The consumers with an `until`, each under the message it waits for.
    pub(super) watch: Watch,
    /// Its place in the line of outputs, while somebody waits and something can be offered.
    pub(super) work: Option<Ticket>,
    /// Whether the queue counts it as busy.
    busy: bool,
    settled_ranges_max: usize,
}

impl Group {
    /// Everything below is settled.
    fn floor(&self) -> Offset {
        self.settled.first().filter(|first| first.start == Offset(0)).map_or(Offset(0), |r| r.end)
    }

    fn settled_ranges_above_floor(&self) -> usize {
        self.settled.len() - usize::from(self.floor() > Offset(0))
    }

    fn is_stuck(&self) -> bool {
        self.settled_ranges_above_floor() > self.settled_ranges_max
    }

    /// What lies from here on is not offered: the end of time, unless the group is stuck. Then it
    /// is what nobody has had yet, because that could only make more holes; what lies below
    /// closes some. So the ranges of a stuck group are bounded by the limit and by the messages
    /// that were leased when it got stuck.
    pub(super) fn fence(&self) -> Offset {
        if self.is_stuck() { self.handed.max(self.inherited) } else { Offset(u64::MAX) }
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
    pub(super) fn settle(&mut self, range: OffsetRange) {
        self.leased -= range.span();
        self.settled.cover(range);
    }

    /// `range` of the leased messages is ready again, in its old place.
    pub(super) fn put_back(&mut self, range: OffsetRange) {
        self.leased -= range.span();
        self.ready.cover(range);
    }

    /// Everything ready is settled; returns what it was.
    pub(super) fn settle_ready(&mut self) -> Vec<OffsetRange> {
        let ready = std::mem::take(&mut self.ready);
        self.settled.extend(&ready);
        ready.iter().collect()
    }
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
        let queue = self.queue(q);
        let place = match queue.groups.binary_search_by(|&g| self.group(g).name.cmp(name)) {
            Ok(_) => return Err(Refusal::GroupExists { name: name.clone() }),
            Err(_) if queue.groups.len() >= limits::GROUPS_PER_QUEUE_MAX => {
                return Err(Refusal::TooManyGroups);
            }
            Err(place) => place,
        };
        let group = self.group_of_state(q, name, state);
        let g = GroupKey(self.groups.insert(group));
        let queue = self.queue_mut(q);
        queue.groups.insert(place, g);
        let extent = queue.extent();
        self.group_changed(g);
        // A first group that comes with settled messages makes them gone.
        self.recheck_queue(q, extent);
        self.queue_changed(q);
        Ok(g)
    }

    fn group_of_state(&self, q: QueueKey, name: &Name, state: Option<GroupState>) -> Group {
        let queue = self.queue(q);
        let extent = queue.extent();
        let (settled, handed) = match state {
            None => (self.gone(q), None),
            Some(state) => {
                // What a power loss took from the log's end may still stand in the journal.
                let within = state.settled.iter().filter_map(|range| range.intersection(&extent));
                let mut settled: RangeSet = within.collect();
                settled.extend(&queue.gone);
                (settled, Some(state.handed.min(queue.end)))
            }
        };
        let mut group = Group {
            queue: q,
            name: name.clone(),
            inherited: top_message(&settled, &queue.gaps),
            ready: settled.gaps_in(extent).collect(),
            settled,
            handed: Offset(0),
            leased: 0,
            consumers: 0,
            called: 0,
            line: Line::new(),
            watch: BTreeSet::new(),
            work: None,
            busy: false,
            settled_ranges_max: self.settled_ranges_max,
        };
        group.handed = handed.unwrap_or_else(|| group.floor());
        group
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
        let group = self.groups.remove(g.0);
        self.cancel(group.work);
        let queue = self.queue_mut(q);
        queue.gone = gone;
        queue.groups.retain(|other| *other != g);
        queue.busy_groups -= usize::from(group.busy);
        let extent = queue.extent();
        self.recheck_queue(q, extent);
        self.queue_changed(q);
        of_group
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
        let group = self.group(g);
        GroupState { settled: group.settled.iter().collect(), handed: group.handed }
    }

    /// A group in numbers. O(1) but for the search of the first range.
    #[must_use]
    pub fn counts(&self, g: GroupKey) -> Counts {
        let group = self.group(g);
        let floor = group.floor();
        Counts {
            ready: Count(group.ready.span()),
            leased: Count(group.leased),
            settled_ranges: group.settled_ranges_above_floor(),
            stuck: group.is_stuck(),
            // Gaps are settled, so what stands at the floor is a message.
            oldest: (floor < self.queue(group.queue).end).then_some(floor),
            consumers: group.consumers,
            floor,
            handed: group.handed,
        }
    }

    /// Calls the next consumer if there is reason to, and keeps the queue's count of busy groups.
    /// To be called after each change of a group.
    pub(super) fn group_changed(&mut self, g: GroupKey) {
        self.stir(g);
        let group = self.groups.at_mut(g.0);
        let busy = group.leased > 0 || !group.ready.is_empty();
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
