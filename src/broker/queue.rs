//! Queues: where they begin and end, what is gone from them, and when they are quiet.
//!
//! A message is gone once every group has settled it, and then stays gone: a group that is made
//! later starts without it, whatever bytes remain on disk. This module never decides what is
//! deleted; the server asks it what may be.

use std::collections::BTreeSet;

use crate::settings::Retention;
use crate::units::{Count, Ending, Offset, OffsetRange};

use super::horizon::Watch;
use super::line::Ticket;
use super::turn::Work;
use super::{Broker, ConsumerKey, GroupKey, QueueKey, RangeSet};

/// One queue.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) retention: Retention,
    /// Attempts after which a message is dying.
    pub(super) delivery_limit: Option<u32>,
    /// Below, what is not leased or dying was dropped. Only with [`Retention::Log`].
    pub(super) kept_from: Offset,
    /// The first offset behind the visible messages.
    pub(super) end: Offset,
    /// Offsets below `end` that never were messages. Few: one for each reboot at most.
    pub(super) gaps: RangeSet,
    /// What was gone, whatever the groups say now; what lies before the queue's start and the
    /// gaps are in it. Every group's settled messages contain it.
    pub(super) gone: RangeSet,
    /// In the order of their names.
    pub(super) groups: Vec<GroupKey>,
    /// How many of the groups have anything ready or leased.
    pub(super) busy_groups: usize,
    /// The consumers that peek without a group, each under the message it waits for.
    pub(super) watch: Watch,
    /// What was last known of [`Broker::is_quiet`]; a change to "yes" is told.
    quiet: bool,
    /// Its place in the line of outputs, while it has to be told that it is quiet.
    pub(super) work: Option<Ticket>,
}

impl Queue {
    /// Everything below the visible end.
    pub(super) fn extent(&self) -> OffsetRange {
        OffsetRange::new(Offset(0), self.end)
    }
}

impl Broker {
    /// Adds a queue as it stands on disk: its first offset, its visible end, the offsets between
    /// them that never were messages, and what was gone before ([`Broker::gone`] as it was
    /// stored). Then come its groups, each with its state; what is gone, and whether the queue is
    /// quiet, is only meaningful after that.
    pub fn add_queue(
        &mut self,
        start: Offset,
        end: Offset,
        gaps: &[OffsetRange],
        gone: &[OffsetRange],
    ) -> QueueKey {
        assert!(start <= end, "a queue must not end ({end}) before it starts ({start})");
        let extent = OffsetRange::new(Offset(0), end);
        let within = |ranges: &[OffsetRange]| -> RangeSet {
            ranges.iter().filter_map(|range| range.intersection(&extent)).collect()
        };
        let gaps = within(gaps);
        let mut gone = within(gone);
        gone.extend(&gaps);
        gone.cover(OffsetRange::new(Offset(0), start));
        let quiet = gone.covers(extent);
        QueueKey(self.queues.insert(Queue {
            retention: Retention::Acked,
            delivery_limit: None,
            kept_from: Offset(0),
            end,
            gaps,
            gone,
            groups: Vec::new(),
            busy_groups: 0,
            watch: BTreeSet::new(),
            quiet,
            work: None,
        }))
    }

    /// Forgets a queue with its groups and consumers. Returns the consumers, whose keys are stale
    /// now, so that the caller can tell them. Walks all consumers.
    pub fn remove_queue(&mut self, q: QueueKey) -> Vec<ConsumerKey> {
        let of_queue = self.consumers_where(|consumer| consumer.queue == q);
        for &c in &of_queue {
            self.remove_consumer(c);
        }
        let queue = self.queues.remove(q.0);
        for g in queue.groups {
            self.forget_group(g);
        }
        self.cancel(queue.work);
        of_queue
    }

    /// New visible messages. `range` begins at the visible end or behind it; what lies between
    /// is a gap. An empty range makes a gap only. Looks at each group of the queue.
    pub fn extend(&mut self, q: QueueKey, range: OffsetRange) {
        let queue = self.queues.at_mut(q.0);
        assert!(range.start >= queue.end, "messages {range} lie before the end {}", queue.end);
        let gap = OffsetRange::new(queue.end, range.start);
        queue.end = range.end;
        queue.gaps.cover(gap);
        queue.gone.cover(gap);
        for i in 0..queue.groups.len() {
            let g = self.queue(q).groups[i];
            self.group_mut(g).extend(gap, range);
            self.group_changed(g);
        }
        self.queue_changed(q);
    }

    /// The first offset behind the visible messages.
    #[must_use]
    pub fn visible_end(&self, q: QueueKey) -> Offset {
        self.queue(q).end
    }

    /// Settles everything that is ready or rests in any group, up to the visible end; what is
    /// leased stays leased, what is dying is moved. Returns for each group in which anything
    /// changed what became settled. Without a group, or with [`Retention::Log`], everything else
    /// in the queue is gone after it. Walks all holes.
    pub fn purge(&mut self, q: QueueKey) -> Vec<(GroupKey, Vec<OffsetRange>)> {
        let queue = self.queue_mut(q);
        let extent = queue.extent();
        if queue.groups.is_empty() || queue.retention == Retention::Log {
            queue.gone.cover(extent);
        }
        self.settle_everywhere(q, extent, Ending::Purged)
    }

    /// Settles what of `range` is ready or rests in any group. Returns what changed where.
    pub(super) fn settle_everywhere(
        &mut self,
        q: QueueKey,
        range: OffsetRange,
        ending: Ending,
    ) -> Vec<(GroupKey, Vec<OffsetRange>)> {
        let mut settled = Vec::new();
        for g in self.queue(q).groups.clone() {
            let ranges = self.settle_idle(g, range, ending);
            if !ranges.is_empty() {
                settled.push((g, ranges));
            }
        }
        self.recheck_queue(q, range);
        self.queue_changed(q);
        settled
    }

    /// What is gone: settled by every group, or gone before; with [`Retention::Log`], what was
    /// dropped and is in no one's hands. Gaps and what lies before the queue's start are part of
    /// it. This is what the queue's metadata keep and
    /// [`Broker::add_queue`] takes. Walks the holes of all groups; to ask about a segment, use
    /// [`Broker::is_gone`].
    #[must_use]
    pub fn gone(&self, q: QueueKey) -> RangeSet {
        let queue = self.queue(q);
        let mut groups = queue.groups.iter().map(|&g| &self.group(g).settled);
        let first = match queue.retention {
            Retention::Log => Some(&queue.gone),
            Retention::Acked => groups.next(),
        };
        let Some(first) = first else {
            return queue.gone.clone();
        };
        groups.fold(first.clone(), |gone, settled| gone.intersection(settled))
    }

    /// Whether all of `range` (a segment's extent, say) is gone. O(groups · log n).
    #[must_use]
    pub fn is_gone(&self, q: QueueKey, range: OffsetRange) -> bool {
        let queue = self.queue(q);
        match queue.groups.as_slice() {
            [] => queue.gone.covers(range),
            groups => {
                (queue.retention == Retention::Acked || queue.gone.covers(range))
                    && groups.iter().all(|&g| self.group(g).settled.covers(range))
            }
        }
    }

    /// The lowest message in `range` that is not gone. O(groups · log n).
    #[must_use]
    pub fn oldest_in(&self, q: QueueKey, range: OffsetRange) -> Option<Offset> {
        self.first_present_in(q, range).map(|part| part.start)
    }

    /// How many messages in `range` are not gone. Walks the holes in it.
    #[must_use]
    pub fn present_in(&self, q: QueueKey, range: OffsetRange) -> Count {
        let (mut at, mut present) = (range.start, 0);
        while at < range.end
            && let Some(part) = self.first_present_in(q, OffsetRange::new(at, range.end))
        {
            present += part.span();
            at = part.end;
        }
        Count(present)
    }

    /// How many messages are not gone: what a new group would have to do. O(1) with at most one
    /// group and [`Retention::Acked`], else it walks the holes of all.
    #[must_use]
    pub fn counts_without_group(&self, q: QueueKey) -> Count {
        let queue = self.queue(q);
        let gone = match queue.groups.as_slice() {
            [] => queue.gone.span(),
            [only] if queue.retention == Retention::Acked => self.group(*only).settled.span(),
            _ => self.gone(q).span(),
        };
        Count(queue.end.0 - gone)
    }

    /// Whether nothing is ready, leased, resting or dying in any group. Without a group, whether everything is
    /// gone: what is not waits for the first group.
    #[must_use]
    pub fn is_quiet(&self, q: QueueKey) -> bool {
        let queue = self.queue(q);
        match queue.groups.as_slice() {
            [] => queue.gone.covers(queue.extent()),
            _ => queue.busy_groups == 0,
        }
    }

    /// Tells that the queue became quiet, or takes that back if nobody has heard it yet. To be
    /// called after each change that can matter to it.
    pub(super) fn queue_changed(&mut self, q: QueueKey) {
        let quiet = self.is_quiet(q);
        let queue = self.queues.at_mut(q.0);
        if quiet != queue.quiet {
            queue.quiet = quiet;
            match queue.work.take() {
                Some(ticket) => self.work.leave(ticket),
                None if quiet => queue.work = Some(self.work.join(Work::Quiet(q))),
                None => {}
            }
        }
    }

    /// The lowest messages in `range` that are not gone. They may go on behind the returned
    /// range. O(groups · log n).
    pub(super) fn first_present_in(&self, q: QueueKey, range: OffsetRange) -> Option<OffsetRange> {
        let range = range.intersection(&self.queue(q).extent())?;
        let gaps = self.present_sets(q).filter_map(|set| set.first_gap_in(range));
        gaps.min_by_key(|gap| (gap.start, std::cmp::Reverse(gap.end)))
    }

    /// The highest message in `range` that is not gone. O(groups · log n).
    pub(super) fn last_present_in(&self, q: QueueKey, range: OffsetRange) -> Option<Offset> {
        let range = range.intersection(&self.queue(q).extent())?;
        let gaps = self.present_sets(q).filter_map(|set| set.last_gap_in(range));
        gaps.max_by_key(|gap| gap.end).map(|gap| Offset(gap.end.0 - 1))
    }

    /// The sets of which a message is gone when it is in all.
    fn present_sets(&self, q: QueueKey) -> impl Iterator<Item = &RangeSet> {
        let queue = self.queue(q);
        let own = queue.groups.is_empty() || queue.retention == Retention::Log;
        let groups = queue.groups.iter().map(|&g| &self.group(g).settled);
        own.then_some(&queue.gone).into_iter().chain(groups)
    }
}
