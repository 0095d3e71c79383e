//! What a log knows beside its messages, when it is opened: the snapshot, and the batches behind
//! what that covers.
//!
//! Reads, and changes nothing. Called by [`mend`](super::mend) once the end of the log is known.

use super::error::{Doing, LogError, corrupt};
use super::producers::Producers;
use super::recovery::{End, Part, Recovery};
use super::scan::walk_batches;
use super::segment::HEADER_BYTES;
use super::snapshot::{Counters, Covered, Leaving, Snapshot};
use super::storage::Storage;
use super::unique::Unique;
use crate::batch::{BatchHeader, Record, flags};
use crate::planted::{self, Bug};
use crate::units::{OffsetRange, WallTime};

/// See the module's page.
pub(super) struct Recalled {
    pub producers: Producers,
    pub unique: Unique,
    pub counters: Counters,
    /// Groups that were being removed.
    pub leaving: Vec<Leaving>,
    /// Whether batches are to be counted that are read here.
    counts: bool,
    /// What the snapshot on disk covers.
    pub covered: Covered,
    /// The attributes of the chain that the walk is in.
    chain: Option<Vec<u8>>,
}

impl Recalled {
    fn note(&mut self, header: &BatchHeader, payload: &[u8]) {
        if self.counts {
            self.counters.note(header, header.length());
        }
        self.producers.note(header, header.annex(payload));
        if !header.has(flags::CHAIN) {
            let messages = header.messages_part(payload).unwrap_or_default();
            return self.unique.note(header, messages);
        }
        // The first part of a chain holds all attributes; its offset is that of the last.
        self.chain.get_or_insert_with(|| {
            Record::beginning(payload).map_or(&[][..], |record| record.attribute_bytes).to_vec()
        });
        if header.has(flags::CHAIN_END) {
            let attributes = self.chain.take().unwrap_or_default();
            let record = Record { attribute_bytes: &attributes, body: &[] };
            self.unique.note_record(&record, header.offset, header.time);
        }
    }
}

impl<S: Storage> Recovery<S> {
    /// What the log that ends at `end` knows.
    pub(super) fn recall(
        &self,
        end: &End,
        snapshot: Snapshot,
        newest: WallTime,
    ) -> Result<Recalled, LogError> {
        let mut recalled = Recalled {
            producers: Producers::default(),
            unique: Unique::new(self.id(), &self.meta.settings),
            counters: snapshot.counters,
            leaving: snapshot.leaving,
            counts: snapshot.knows_stored,
            covered: Covered::default(),
            chain: None,
        };
        let (tail, covered) = (&self.parts[end.at], snapshot.covered);
        let beyond = covered.offset > end.offset
            || (covered.segment == tail.number && covered.position > end.position);
        if beyond && !planted::is(Bug::SnapshotAheadOfLog) {
            recalled.producers.forget_all(newest);
            // What was counted up to there is more than what is left.
            recalled.counts = false;
        } else {
            recalled.unique.restore(&snapshot.ids, &snapshot.keys);
            recalled.producers = snapshot.producers;
            recalled.covered = covered;
        }
        for part in &self.parts[..=end.at] {
            self.recall_part(part, &mut recalled)?;
        }
        let gone = self.gone();
        recalled.unique.sweep_keys(|offset| {
            let behind = gone.partition_point(|range| range.end <= offset);
            gone.get(behind).is_some_and(|range| range.contains(offset))
        });
        Ok(recalled)
    }

    fn recall_part(&self, part: &Part<S>, recalled: &mut Recalled) -> Result<(), LogError> {
        let from = match part.number.cmp(&recalled.covered.segment) {
            std::cmp::Ordering::Less => return Ok(()),
            std::cmp::Ordering::Equal => recalled.covered.position.max(HEADER_BYTES),
            std::cmp::Ordering::Greater => HEADER_BYTES,
        };
        let to = match (&part.sealed, &part.scan) {
            (Some((position, _)), _) => *position,
            (None, Some(scan)) => scan.position,
            (None, None) => return Ok(()),
        };
        let tables = recalled.unique.has_ids() || recalled.unique.has_keys();
        let wants = |header: &BatchHeader| {
            let has_messages = header.count > 0 || header.has(flags::CHAIN);
            header.has(flags::ANNEX) || (tables && has_messages)
        };
        let note = |header: &BatchHeader, payload: &[u8]| recalled.note(header, payload);
        let walked = walk_batches(&part.file, self.id(), part.number, from, to, wants, note);
        match walked.doing("reading", &part.path)? {
            Ok(()) => Ok(()),
            Err((position, error)) => {
                Err(corrupt(&part.path, Some(position), None, error.to_string()))
            }
        }
    }

    /// What every group has settled, and what went with dropped segments.
    fn gone(&self) -> Vec<OffsetRange> {
        let dropped: Vec<OffsetRange> = self.dropped.extents().collect();
        let mut groups = self.groups.iter().map(|(_, position)| position.settled.clone());
        let Some(first) = groups.next() else { return dropped };
        let settled = groups.fold(first, |all, other| intersection(&all, &other));
        super::position::merge(dropped.into_iter().chain(settled).collect())
    }
}

/// What lies in both; each is in order and disjoint, and so is the outcome.
fn intersection(one: &[OffsetRange], other: &[OffsetRange]) -> Vec<OffsetRange> {
    let (mut at, mut both) = (0, Vec::new());
    for range in one {
        while at < other.len() && other[at].end <= range.start {
            at += 1;
        }
        let overlapping = other[at..].iter().take_while(|next| next.start < range.end);
        both.extend(overlapping.filter_map(|next| range.intersection(next)));
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Offset;

    #[test]
    fn gone_is_what_all_have_settled() {
        let range = |a, b| OffsetRange::new(Offset(a), Offset(b));
        let one = [range(0, 5), range(7, 20)];
        let other = [range(3, 8), range(9, 10), range(15, 30)];
        let both = [range(3, 5), range(7, 8), range(9, 10), range(15, 20)];
        assert_eq!(intersection(&one, &other), both);
        assert_eq!(intersection(&other, &one), both);
    }
}
