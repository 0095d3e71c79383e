//! The index: which messages of the hidden log come due when, and where each stands.
//!
//! In memory, of those that are in no run yet: at most
//! [`DELAY_INDEX_MAX`](crate::limits::DELAY_INDEX_MAX) and one batch more. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Due;
use crate::batch::{BatchHeader, Record, checksum, tags};
use crate::units::{Offset, SegmentNumber, WallTime};

/// Where a record stands in the hidden log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::log) struct Spot {
    pub segment: SegmentNumber,
    pub position: u64,
    pub bytes: u32,
    /// The record's checksum, of when it was seen whole.
    pub crc: u32,
}

/// The messages that came in since the last run was begun.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<Due, Spot>,
    /// Of their records.
    bytes: u64,
}

impl Index {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the records.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn insert(&mut self, due: Due, spot: Spot) {
        let before = self.entries.insert(due, spot);
        self.bytes += u64::from(spot.bytes);
        self.bytes -= before.map_or(0, |spot| u64::from(spot.bytes));
    }

    pub fn first(&self) -> Option<Due> {
        self.entries.first_key_value().map(|(due, _)| *due)
    }

    pub fn first_spot(&self) -> Option<(Due, Spot)> {
        self.entries.first_key_value().map(|(due, spot)| (*due, *spot))
    }

    pub fn pop(&mut self) -> Option<(Due, Spot)> {
        let first = self.entries.pop_first();
        self.bytes -= first.map_or(0, |(_, spot)| u64::from(spot.bytes));
        first
    }

    /// Gives all entries to a run.
    pub fn freeze(&mut self) -> Frozen {
        let Index { entries, bytes } = std::mem::take(self);
        Frozen { entries: Arc::new(entries.into_iter().collect()), taken: 0, bytes }
    }
}

/// Messages that are being written into a run, and are taken from here until it stands.
#[derive(Debug)]
pub(super) struct Frozen {
    /// In the order in which they come due.
    pub entries: Arc<Vec<(Due, Spot)>>,
    /// So many were taken since.
    taken: usize,
    /// Of the records of those that are left.
    bytes: u64,
}

impl Frozen {
    pub fn len(&self) -> usize {
        self.entries.len() - self.taken
    }

    /// Bytes of the records that are left.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many were taken since.
    pub fn taken(&self) -> u64 {
        self.taken as u64
    }

    pub fn first(&self) -> Option<(Due, Spot)> {
        self.entries.get(self.taken).copied()
    }

    /// The first was taken.
    pub fn advance(&mut self) {
        self.bytes -= self.first().map_or(0, |(_, spot)| u64::from(spot.bytes));
        self.taken += 1;
    }
}

/// Each record of a batch: when it is due, and where it stands, if the batch's payload stands at
/// `position`. `payload` is whole and checked; what is no record ends the list.
pub(super) fn entries_of<'a>(
    header: &BatchHeader,
    payload: &'a [u8],
    segment: SegmentNumber,
    position: u64,
) -> impl Iterator<Item = (Due, Spot)> + use<'a> {
    let messages = header.messages_part(payload).unwrap_or_default();
    let position = position + (payload.len() - messages.len()) as u64;
    let mut rest = messages;
    let mut offset = header.offset;
    std::iter::from_fn(move || {
        let (record, behind) = Record::decode(rest).ok()?;
        let bytes = rest.len() - behind.len();
        let at = messages.len() - rest.len();
        let spot = Spot {
            segment,
            position: position + at as u64,
            bytes: bytes as u32,
            crc: checksum(&rest[..bytes]),
        };
        let due = Due { at: due_time(&record), offset };
        rest = behind;
        offset = Offset(offset.0 + 1);
        Some((due, spot))
    })
}

/// When a record may be delivered; at once, if it does not say.
pub(super) fn due_time(record: &Record<'_>) -> WallTime {
    let times = record.attributes().filter_map(Result::ok).filter_map(|(tag, value)| {
        let bytes: [u8; 8] = value.try_into().ok()?;
        (tag == tags::NOT_BEFORE).then(|| WallTime(u64::from_le_bytes(bytes)))
    });
    times.max().unwrap_or_default()
}
