//! `dropped`: which segments of a queue were dropped, and which offsets they held.
//!
//! A segment file that is missing and not recorded here is corruption; so the record is durable
//! before the first file goes. Called by the log (drops), recovery and `check`.
//!
//! # Layout
//!
//! Little-endian. The file is only ever replaced whole.
//!
//! ```text
//!  0          8         12        16            32
//! ┌──────────┬─────────┬─────────┬─────────────┬─────────────────────────────┬──────┐
//! │ "mq-drop"│ version │ entries │ queue id    │ entries, 32 bytes each:     │ CRC  │
//! │ and NUL  │ u32     │ u32     │ 16 bytes    │ first and last segment,     │ u32  │
//! │          │         │         │             │ start and end offset (u64s) │      │
//! └──────────┴─────────┴─────────┴─────────────┴─────────────────────────────┴──────┘
//! ```
//!
//! The CRC covers everything in front of it. To change the format, raise the version and keep
//! the decoder of the one before.

use std::path::Path;

use super::error::{LogError, corrupt};
use super::files::{Table, put_u32, seeded_crc, u64_at};
use super::segment::FORMAT_VERSION;
use crate::units::{Offset, OffsetRange, QueueId, SegmentNumber};

const MAGIC: &[u8; 8] = b"mq-drop\0";
const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 32;

/// A longer file is damaged: an entry stands for a hole between two segments that exist.
pub(super) const DROPPED_BYTES_MAX: u64 = 64 << 20;

/// A run of dropped segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub first: SegmentNumber,
    pub last: SegmentNumber,
    pub extent: OffsetRange,
}

/// All dropped segments, in order, neighbours joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    runs: Vec<Run>,
}

impl Dropped {
    /// Whether segment `number` was dropped.
    pub fn contains(&self, number: SegmentNumber) -> bool {
        self.run_of(number).is_some()
    }

    /// The run of dropped segments to which segment `number` belongs.
    pub fn run_of(&self, number: SegmentNumber) -> Option<Run> {
        let behind = self.runs.partition_point(|run| run.first <= number);
        self.runs[..behind].last().copied().filter(|run| number <= run.last)
    }

    /// Adds a segment.
    pub fn add(&mut self, number: SegmentNumber, extent: OffsetRange) {
        if self.contains(number) {
            return;
        }
        let at = self.runs.partition_point(|run| run.first < number);
        self.runs.insert(at, Run { first: number, last: number, extent });
        // Offsets between neighbours never existed, so one extent may span them.
        for left in [at, at.wrapping_sub(1)] {
            if left < self.runs.len() && left + 1 < self.runs.len() {
                let right = self.runs[left + 1];
                let run = &mut self.runs[left];
                if run.last.0 + 1 == right.first.0 {
                    run.last = right.last;
                    run.extent = OffsetRange::new(run.extent.start, right.extent.end);
                    self.runs.remove(left + 1);
                }
            }
        }
    }

    /// The offsets that went with the segments.
    pub fn extents(&self) -> impl Iterator<Item = OffsetRange> {
        self.runs.iter().map(|run| run.extent).filter(|extent| !extent.is_empty())
    }

    /// The offset behind all that was dropped in front of segment `number`.
    pub fn end_before(&self, number: SegmentNumber) -> Offset {
        let behind = self.runs.partition_point(|run| run.first < number);
        behind.checked_sub(1).map_or(Offset(0), |at| self.runs[at].extent.end)
    }

    /// The numbers from `first` up to and without `end` that were not dropped, as runs of a first
    /// and a last.
    pub fn gaps(&self, first: u64, end: u64) -> Vec<(SegmentNumber, SegmentNumber)> {
        let begin = self.runs.partition_point(|run| run.last.0 < first);
        let runs = self.runs[begin..].iter().take_while(|run| run.first.0 < end);
        let (mut next, mut gaps) = (first, Vec::new());
        for run in runs {
            if next < run.first.0 {
                gaps.push((SegmentNumber(next), SegmentNumber(run.first.0 - 1)));
            }
            next = run.last.0.saturating_add(1);
        }
        if next < end {
            gaps.push((SegmentNumber(next), SegmentNumber(end - 1)));
        }
        gaps
    }

    /// The newest dropped segment.
    pub fn last(&self) -> Option<Run> {
        self.runs.last().copied()
    }

    /// The file's bytes.
    pub fn encode(&self, queue: QueueId) -> Vec<u8> {
        let mut out = vec![0u8; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        put_u32(&mut out, 8, FORMAT_VERSION);
        put_u32(&mut out, 12, self.runs.len() as u32);
        out[16..32].copy_from_slice(queue.as_bytes());
        for run in &self.runs {
            for number in [run.first.0, run.last.0, run.extent.start.0, run.extent.end.0] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        let crc = seeded_crc(queue, 0, 0, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`LogError::Corrupt`], [`LogError::Newer`].
    pub fn decode(bytes: &[u8], queue: QueueId, path: &Path) -> Result<Dropped, LogError> {
        let bad = |what: &str| corrupt(path, None, None, what);
        let table = Table {
            magic: MAGIC,
            header_bytes: HEADER_BYTES,
            entry_bytes: ENTRY_BYTES,
            is_none: "is no record of dropped segments",
        };
        let (_, entries) = table.open(bytes, queue, path)?;
        let mut runs: Vec<Run> = Vec::with_capacity(entries.len());
        for entry in entries {
            let number = |at: usize| u64_at(entry, at * 8);
            let in_order = number(0) <= number(1)
                && number(2) <= number(3)
                && runs.last().is_none_or(|run| run.last.0 < number(0));
            if !in_order {
                return Err(bad("has entries out of order"));
            }
            runs.push(Run {
                first: SegmentNumber(number(0)),
                last: SegmentNumber(number(1)),
                extent: OffsetRange::new(Offset(number(2)), Offset(number(3))),
            });
        }
        Ok(Dropped { runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    #[test]
    fn neighbours_are_joined_and_the_record_round_trips() {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let mut dropped = Dropped::default();
        dropped.add(SegmentNumber(1), range(0, 10));
        dropped.add(SegmentNumber(3), range(20, 30));
        assert_eq!(dropped.extents().collect::<Vec<_>>(), [range(0, 10), range(20, 30)]);
        assert!(!dropped.contains(SegmentNumber(2)));
        dropped.add(SegmentNumber(2), range(10, 20));
        assert_eq!(dropped.extents().collect::<Vec<_>>(), [range(0, 30)]);
        for number in 1..=3 {
            assert!(dropped.contains(SegmentNumber(number)));
        }
        assert!(!dropped.contains(SegmentNumber(4)));
        dropped.add(SegmentNumber(7), range(50, 50));
        let gaps = |first, end| {
            let gaps = dropped.gaps(first, end).into_iter();
            gaps.map(|(first, last)| (first.0, last.0)).collect::<Vec<_>>()
        };
        assert_eq!(gaps(1, u64::MAX), [(4, 6), (8, u64::MAX - 1)]);
        assert_eq!(gaps(2, 5), [(4, 4)]);
        assert_eq!(gaps(5, 6), [(5, 5)]);
        assert_eq!((gaps(4, 4), gaps(1, 4), gaps(7, 8)), (vec![], vec![], vec![]));
        let bytes = dropped.encode(queue);
        assert_eq!(Dropped::decode(&bytes, queue, Path::new("dropped")).unwrap(), dropped);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Dropped::decode(&bad, queue, Path::new("dropped")).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(Dropped::decode(&bytes[..length], queue, Path::new("dropped")).is_err());
        }
    }
}
