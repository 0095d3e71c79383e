//! The producer table of one queue: who sent up to where, so that a retry is stored once.
//!
//! Bounded: a producer that is connected or named is kept; of the others, those that were
//! active last. One that was forgotten is refused, never stored twice. Does no I/O; `snapshot` has
//! its bytes. Called by the log as batches are appended and by the server, which
//! asks before it appends.

use std::collections::{BTreeSet, HashMap};

use crate::batch::{BatchHeader, flags};
use crate::limits;
use crate::planted::{self, Bug};
use crate::units::{Epoch, ProducerId, Sequence, WallTime};

/// What to do with an append that names a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It comes next: store it.
    Store,
    /// It was stored before; nothing is stored.
    Duplicate {
        /// The producer's last stored sequence.
        sequence: Sequence,
    },
    /// The first of its messages were stored before, up to this sequence: store the rest.
    Rest {
        /// The producer's last stored sequence.
        sequence: Sequence,
    },
    /// It does not follow on what is stored; nothing is stored.
    Gap {
        /// The producer's last stored sequence.
        sequence: Sequence,
    },
    /// A newer instance of the producer took over; nothing is stored.
    Fenced {
        /// The newest epoch.
        epoch: Epoch,
    },
}

/// The producer was known once and is not any more: whether its batch was stored cannot be
/// told, so it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this sender was away too long; whether its last messages were stored is not known")]
pub struct Forgotten;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    epoch: Epoch,
    sequence: Sequence,
    active: WallTime,
    named: bool,
    connections: u32,
}

impl Entry {
    fn is_idle(&self) -> bool {
        !self.named && self.connections == 0
    }
}

/// A producer as a snapshot keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredProducer<'a> {
    pub producer: ProducerId,
    pub epoch: Epoch,
    pub named: bool,
    pub sequence: Sequence,
    pub active: WallTime,
    pub annex: Option<&'a [u8]>,
}

/// The producers of one queue.
#[derive(Clone, Debug, Default)]
pub struct Producers {
    table: HashMap<ProducerId, Entry>,
    /// Those that may be forgotten, the one longest inactive first.
    idle: BTreeSet<(WallTime, ProducerId)>,
    /// The last activity of the newest one that was forgotten.
    forgotten: WallTime,
    /// What named producers said with their last batches.
    annexes: HashMap<ProducerId, Vec<u8>>,
    /// How many have a name.
    named: usize,
    /// When it was first asked who is idle for too long.
    looked_since: Option<WallTime>,
}

impl Producers {
    /// The newest epoch of a producer and the sequence of its last stored message.
    #[must_use]
    pub fn last(&self, producer: ProducerId) -> Option<(Epoch, Sequence)> {
        self.table.get(&producer).map(|entry| (entry.epoch, entry.sequence))
    }

    /// What a named producer said last in an annex.
    #[must_use]
    pub fn annex(&self, producer: ProducerId) -> Option<&[u8]> {
        self.annexes.get(&producer).map(Vec::as_slice)
    }

    /// What each named producer said last in an annex.
    pub fn annexes(&self) -> impl Iterator<Item = (ProducerId, &[u8])> {
        self.annexes.iter().map(|(producer, annex)| (*producer, annex.as_slice()))
    }

    /// Whether another producer can get a name: those that have one are never forgotten.
    pub(super) fn has_room_for(&self, producer: ProducerId) -> bool {
        let is_named = self.table.get(&producer).is_some_and(|entry| entry.named);
        is_named || self.named < limits::NAMED_PRODUCERS_PER_QUEUE_MAX
    }

    /// What to do with messages `expected + 1 ..= next` of a producer: they are stored only as
    /// they follow on its last sequence, and when `epoch` is its newest. A producer that is not known has
    /// stored nothing yet; ask [`connected`](Producers::connected) first whether that is so.
    #[must_use]
    pub fn judge(
        &self,
        producer: ProducerId,
        epoch: Epoch,
        expected: Sequence,
        next: Sequence,
    ) -> Judgement {
        let (newest, sequence) = self.last(producer).unwrap_or((epoch, Sequence(0)));
        if epoch < newest && !planted::is(Bug::EpochNotChecked) {
            Judgement::Fenced { epoch: newest }
        } else if expected == sequence && next > expected {
            Judgement::Store
        } else if next <= sequence {
            Judgement::Duplicate { sequence }
        } else if expected < sequence {
            Judgement::Rest { sequence }
        } else {
            Judgement::Gap { sequence }
        }
    }

    /// A connection uses this producer, which its client opened at `opened`. It is kept until
    /// [`disconnected`](Producers::disconnected) as often.
    ///
    /// # Errors
    /// [`Forgotten`] when it is unknown and may be one that was forgotten.
    pub fn connected(
        &mut self,
        producer: ProducerId,
        epoch: Epoch,
        opened: WallTime,
    ) -> Result<(), Forgotten> {
        let may_be_forgotten = self.may_have_forgotten(opened);
        match self.table.get_mut(&producer) {
            Some(entry) => {
                if entry.is_idle() {
                    self.idle.remove(&(entry.active, producer));
                }
                // Whatever an older connection of the same producer still has under way is not
                // stored any more: the newer one was told what is.
                entry.epoch = entry.epoch.max(epoch);
                entry.connections += 1;
            }
            None if may_be_forgotten => return Err(Forgotten),
            None => {
                let entry = Entry {
                    epoch,
                    sequence: Sequence(0),
                    active: opened,
                    named: false,
                    connections: 1,
                };
                self.table.insert(producer, entry);
            }
        }
        Ok(())
    }

    /// A producer that is connected stored messages up to `sequence` in another log, which goes on
    /// in this one.
    pub fn stored_elsewhere(&mut self, producer: ProducerId, sequence: Sequence) {
        let entry = self.table.get_mut(&producer).expect("a producer that is connected");
        entry.sequence = entry.sequence.max(sequence);
    }

    /// The time at which a producer that is new counts as opened: later than any that was
    /// forgotten, also when the clock was set back.
    #[must_use]
    pub fn opening_time(&self, wall: WallTime) -> WallTime {
        WallTime(wall.0.max(self.forgotten.0.saturating_add(1)))
    }

    /// Whether one that was opened then and is not known may be one that was forgotten.
    #[must_use]
    pub fn may_have_forgotten(&self, opened: WallTime) -> bool {
        opened <= self.forgotten
    }

    /// A connection that used this producer is gone. The producer is remembered for
    /// [`limits::PRODUCER_RETRY`] from `wall` on, unless too many others are.
    pub fn disconnected(&mut self, producer: ProducerId, wall: WallTime) {
        let Some(entry) = self.table.get_mut(&producer) else { return };
        entry.connections = entry.connections.saturating_sub(1);
        entry.active = entry.active.max(wall);
        if !entry.is_idle() {
            return;
        }
        if entry.sequence == Sequence(0) {
            // It stored nothing, so nothing of it can be stored twice.
            self.table.remove(&producer);
            return;
        }
        self.idle.insert((entry.active, producer));
        self.forget_old(wall);
    }

    /// Forgets those that were idle for longer than a sender has to come back. Those that were
    /// idle when the log was opened have that time from the first such look on: the server may
    /// have been away.
    pub(super) fn forget_old(&mut self, wall: WallTime) {
        let since = *self.looked_since.get_or_insert(wall);
        let retry = limits::PRODUCER_RETRY.0;
        while let Some(&(active, producer)) = self.idle.first()
            && active.max(since).0.saturating_add(retry) <= wall.0
        {
            self.idle.pop_first();
            self.table.remove(&producer);
            self.forgotten = self.forgotten.max(active);
        }
        self.forget();
    }

    /// How many producers are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no producer is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// A batch was appended (or is found in the log), with its annex if it has one. Finding it
    /// again in order changes nothing. A mark opens a named producer, and an annex is that of one.
    pub(super) fn note(&mut self, header: &BatchHeader, annex: Option<&[u8]>) {
        let producer = header.producer;
        if producer == ProducerId(0) {
            return;
        }
        let entry = self.table.entry(producer).or_insert(Entry {
            epoch: header.epoch,
            sequence: Sequence(0),
            active: WallTime(0),
            named: false,
            connections: 0,
        });
        if entry.is_idle() {
            self.idle.remove(&(entry.active, producer));
        }
        entry.epoch = entry.epoch.max(header.epoch);
        entry.sequence = entry.sequence.max(header.sequence);
        entry.active = entry.active.max(header.time);
        // Only one with a name has an annex. The mark that opened it may be lost though what came
        // behind it is there: a segment that ends in marks is not missed.
        if (header.has(flags::MARK) || annex.is_some()) && !entry.named {
            entry.named = true;
            self.named += 1;
        }
        if let Some(annex) = annex {
            self.annexes.insert(producer, annex.to_vec());
        }
        let (idle, active) = (entry.is_idle(), entry.active);
        if idle {
            self.idle.insert((active, producer));
            self.forget();
        }
    }

    fn forget(&mut self) {
        while self.idle.len() > limits::PRODUCERS_PER_QUEUE_MAX {
            let (active, producer) = self.idle.pop_first().expect("there are more than none");
            self.table.remove(&producer);
            self.forgotten = self.forgotten.max(active);
        }
    }

    /// Nothing that was opened up to now is known any more.
    pub(super) fn forget_all(&mut self, until: WallTime) {
        *self = Producers { forgotten: until, ..Producers::default() };
    }

    /// The last activity of the newest producer that was forgotten.
    pub(super) fn forgotten(&self) -> WallTime {
        self.forgotten
    }

    /// What a snapshot keeps, in the order of their numbers.
    pub(super) fn stored(&self) -> Vec<StoredProducer<'_>> {
        let is_stored =
            |entry: &Entry| entry.named || entry.sequence > Sequence(0) || entry.epoch > Epoch(0);
        let table = self.table.iter().filter(|(_, entry)| is_stored(entry));
        let stored = table.map(|(&producer, entry)| StoredProducer {
            producer,
            epoch: entry.epoch,
            named: entry.named,
            sequence: entry.sequence,
            active: entry.active,
            annex: self.annex(producer),
        });
        let mut stored: Vec<StoredProducer<'_>> = stored.collect();
        stored.sort_unstable_by_key(|one| one.producer);
        stored
    }

    /// The table that a snapshot kept.
    pub(super) fn restore(stored: &[StoredProducer<'_>], forgotten: WallTime) -> Producers {
        let mut producers = Producers { forgotten, ..Producers::default() };
        for one in stored {
            let entry = Entry {
                epoch: one.epoch,
                named: one.named,
                sequence: one.sequence,
                active: one.active,
                connections: 0,
            };
            if entry.is_idle() {
                producers.idle.insert((entry.active, one.producer));
            }
            producers.named += usize::from(one.named);
            producers.table.insert(one.producer, entry);
            if let Some(annex) = one.annex {
                producers.annexes.insert(one.producer, annex.to_vec());
            }
        }
        producers.forget();
        producers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Framing;
    use crate::units::Offset;

    impl Producers {
        fn note_plain(&mut self, header: &BatchHeader) {
            self.note(header, None);
        }
    }

    fn header(producer: u64, sequence: u64, time: u64) -> BatchHeader {
        BatchHeader {
            payload_bytes: 0,
            framing: Framing::Records,
            flags: 0,
            offset: Offset(0),
            count: 1,
            payload_crc: 0,
            mark: Offset(0),
            time: WallTime(time),
            producer: ProducerId(producer),
            sequence: Sequence(sequence),
            epoch: Epoch(1),
        }
    }

    #[test]
    fn appends_are_stored_in_sequence_and_once() {
        let mut producers = Producers::default();
        let judge = |p: &Producers, epoch, expected, next| {
            p.judge(ProducerId(1), Epoch(epoch), Sequence(expected), Sequence(next))
        };
        assert_eq!(judge(&producers, 1, 0, 3), Judgement::Store);
        producers.note_plain(&header(1, 3, 10));
        let sequence = Sequence(3);
        assert_eq!(judge(&producers, 1, 0, 3), Judgement::Duplicate { sequence });
        assert_eq!(judge(&producers, 1, 3, 4), Judgement::Store);
        assert_eq!(judge(&producers, 1, 4, 5), Judgement::Gap { sequence });
        assert_eq!(judge(&producers, 1, 0, 4), Judgement::Rest { sequence });
        assert_eq!(judge(&producers, 0, 3, 4), Judgement::Fenced { epoch: Epoch(1) });
        assert_eq!(judge(&producers, 2, 3, 4), Judgement::Store);
    }

    #[test]
    fn an_older_connection_stores_nothing_once_a_newer_one_is_open() {
        let mut producers = Producers::default();
        let producer = ProducerId(1);
        for epoch in [1, 2] {
            producers.connected(producer, Epoch(epoch), WallTime(1)).expect("not forgotten");
        }
        let judge = |epoch| producers.judge(producer, Epoch(epoch), Sequence(0), Sequence(1));
        assert_eq!(judge(1), Judgement::Fenced { epoch: Epoch(2) });
        assert_eq!(judge(2), Judgement::Store);
    }

    #[test]
    fn forgotten_producers_are_refused_and_new_ones_are_not() {
        let mut producers = Producers::default();
        let most = limits::PRODUCERS_PER_QUEUE_MAX as u64;
        for n in 1..=most + 5 {
            producers.note_plain(&header(n, 1, n));
        }
        assert_eq!(producers.len() as u64, most);
        assert_eq!(producers.last(ProducerId(5)), None);
        let connect = |p: &mut Producers, n, at| p.connected(ProducerId(n), Epoch(0), WallTime(at));
        assert_eq!(connect(&mut producers, 5, 5), Err(Forgotten));
        assert_eq!(connect(&mut producers, 5, 4), Err(Forgotten));
        assert_eq!(connect(&mut producers, 6, 1), Ok(()));
        assert_eq!(connect(&mut producers, 999_999, 6), Ok(()));
    }

    #[test]
    fn idle_producers_are_remembered_for_the_retry_time() {
        let retry = limits::PRODUCER_RETRY.0;
        let mut producers = Producers::default();
        for n in 1..=3 {
            producers.connected(ProducerId(n), Epoch(1), WallTime(1)).unwrap();
            producers.note_plain(&header(n, 7, 1));
        }
        producers.disconnected(ProducerId(1), WallTime(1000));
        producers.disconnected(ProducerId(2), WallTime(2000));
        let known = |producers: &Producers| {
            (1..=3).filter(|n| producers.last(ProducerId(*n)).is_some()).count()
        };
        producers.forget_old(WallTime(999 + retry));
        assert_eq!(known(&producers), 3);
        producers.forget_old(WallTime(1000 + retry));
        assert_eq!(known(&producers), 2);
        let mut restored = Producers::restore(&producers.stored(), producers.forgotten());
        restored.forget_old(WallTime(5000 + 9 * retry));
        assert_eq!(known(&restored), 2, "the server was away");
        restored.forget_old(WallTime(5000 + 10 * retry));
        assert_eq!(known(&restored), 0);
        assert!(restored.connected(ProducerId(1), Epoch(1), WallTime(1)).is_err());
    }

    #[test]
    fn connected_and_named_producers_are_kept() {
        let mut producers = Producers::default();
        producers.connected(ProducerId(1), Epoch(1), WallTime(1)).unwrap();
        producers.note_plain(&header(1, 7, 1));
        producers.note_plain(&BatchHeader { flags: flags::MARK, count: 0, ..header(2, 9, 1) });
        for n in 3..=limits::PRODUCERS_PER_QUEUE_MAX as u64 + 50 {
            producers.note_plain(&header(n, 1, n));
        }
        assert_eq!(producers.last(ProducerId(1)), Some((Epoch(1), Sequence(7))));
        assert_eq!(producers.last(ProducerId(2)), Some((Epoch(1), Sequence(9))));
        producers.disconnected(ProducerId(1), WallTime(1));
        assert_eq!(producers.last(ProducerId(1)), None);
    }
}
