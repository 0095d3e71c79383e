//! The bytes of an ack journal: its header and its records.
//!
//! Encodes and decodes; opens nothing, and judges no bad record. Called by `journal`, recovery
//! and `check`.
//!
//! # Layout
//!
//! Little-endian. A header of 512 bytes, then records of 32 bytes, which never cross a sector.
//!
//! ```text
//! header
//!  0          8         12           16            32           40                   508   512
//! ┌──────────┬─────────┬────────────┬─────────────┬────────────┬──────────┬─────────┬─────┐
//! │ "mq-acks"│ version │ length of  │ queue id    │ generation │ group    │ 0 ...   │ CRC │
//! │ and NUL  │ u32     │ group u32  │ 16 bytes    │ u64        │          │         │ u32 │
//! └──────────┴─────────┴────────────┴─────────────┴────────────┴──────────┴─────────┴─────┘
//!
//! record
//!  0      1     4         8         16        24    28    32
//! ┌──────┬─────┬─────────┬─────────┬─────────┬─────┬─────┐
//! │ kind │ 0   │ synced  │ start   │ end     │ 0   │ CRC │
//! │ u8   │     │ u32     │ u64     │ u64     │ u32 │ u32 │
//! └──────┴─────┴─────────┴─────────┴─────────┴─────┴─────┘
//! ```
//!
//! * Kinds: 1 settled `start..end`; 2 handed out up to `start`; 3 nothing but the mark.
//! * `synced`: so many records of this file were durable when this one was written.
//! * The CRCs cover queue id, generation and position, then the bytes in front of them. The
//!   generation grows with each compaction, so that stale bytes of an older file fail.
//!
//! # Changing the format
//!
//! A new kind of fact is a new number and raises [`FORMAT_VERSION`]; 24..28 and, for most
//! kinds, both numbers are free for it.

use std::path::Path;

use super::error::{LogError, corrupt};
use super::files::{put_u32, put_u64, seeded_crc, u32_at, u64_at};
use super::journal::GroupPosition;
use super::segment::FORMAT_VERSION;
use crate::units::{Name, Offset, OffsetRange, QueueId};

const MAGIC: &[u8; 8] = b"mq-acks\0";
/// Bytes in front of the first record.
pub(super) const HEADER_BYTES: u64 = 512;
/// Bytes of a record.
pub(super) const RECORD_BYTES: u64 = 32;

const SETTLED: u8 = 1;
const HANDED: u8 = 2;
const MARK: u8 = 3;

fn encode_header(queue: QueueId, generation: u64, group: &Name) -> Vec<u8> {
    let mut out = vec![0u8; HEADER_BYTES as usize];
    out[..8].copy_from_slice(MAGIC);
    put_u32(&mut out, 8, FORMAT_VERSION);
    put_u32(&mut out, 12, group.as_str().len() as u32);
    out[16..32].copy_from_slice(queue.as_bytes());
    put_u64(&mut out, 32, generation);
    out[40..40 + group.as_str().len()].copy_from_slice(group.as_str().as_bytes());
    let crc = seeded_crc(queue, 0, 0, &out[..508]);
    put_u32(&mut out, 508, crc);
    out
}

/// A fact as it stands in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Settled(OffsetRange),
    Handed(Offset),
    Mark,
}

pub(super) fn push_record(
    out: &mut Vec<u8>,
    queue: QueueId,
    generation: u64,
    position: u64,
    synced: u32,
    fact: Fact,
) {
    let mut record = [0u8; RECORD_BYTES as usize];
    let (kind, start, end) = match fact {
        Fact::Settled(range) => (SETTLED, range.start.0, range.end.0),
        Fact::Handed(up_to) => (HANDED, up_to.0, 0),
        Fact::Mark => (MARK, 0, 0),
    };
    record[0] = kind;
    put_u32(&mut record, 4, synced);
    put_u64(&mut record, 8, start);
    put_u64(&mut record, 16, end);
    let crc = seeded_crc(queue, generation, position, &record[..28]);
    put_u32(&mut record, 28, crc);
    out.extend_from_slice(&record);
}

/// The bytes of a journal that says exactly `state`, and how many records that are.
pub(super) fn encode_state(
    queue: QueueId,
    group: &Name,
    generation: u64,
    state: &GroupPosition,
) -> (Vec<u8>, u64) {
    let mut bytes = encode_header(queue, generation, group);
    let handed = std::iter::once(Fact::Handed(state.handed));
    let facts = state.settled.iter().map(|range| Fact::Settled(*range)).chain(handed);
    let mut records = 0;
    for fact in facts {
        let position = bytes.len() as u64;
        push_record(&mut bytes, queue, generation, position, 0, fact);
        records += 1;
    }
    (bytes, records)
}

/// What a journal's bytes say.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    pub state: GroupPosition,
    pub generation: u64,
    /// Where the last whole record ends.
    pub position: u64,
    /// Records that were durable, as far as later ones say.
    pub synced: u32,
    /// Records that are bad: their numbers from 0.
    pub bad: Vec<u32>,
    /// Bytes behind the last whole record.
    pub surplus: u64,
}

/// Reads a journal. Bad records are listed, not judged.
///
/// # Errors
/// [`LogError::Corrupt`] for a bad header (a journal is installed only once it is synced);
/// [`LogError::Newer`].
pub(super) fn replay(
    bytes: &[u8],
    queue: QueueId,
    group: &Name,
    path: &Path,
) -> Result<Replay, LogError> {
    let newer = |found| LogError::Newer { path: path.to_owned(), found, known: FORMAT_VERSION };
    let Some(header) = bytes.get(..HEADER_BYTES as usize) else {
        return Err(corrupt(path, Some(0), None, "the journal's header is cut short"));
    };
    if &header[..8] != MAGIC || u32_at(header, 508) != seeded_crc(queue, 0, 0, &header[..508]) {
        return Err(corrupt(path, Some(0), None, "the journal's header fails its checksum"));
    }
    if u32_at(header, 8) > FORMAT_VERSION {
        return Err(newer(u32_at(header, 8)));
    }
    let name = &header[40..508.min(40 + u32_at(header, 12) as usize)];
    if name != group.as_str().as_bytes() {
        return Err(corrupt(path, Some(40), None, "the journal belongs to another group"));
    }
    let generation = u64_at(header, 32);
    let records = bytes[HEADER_BYTES as usize..].chunks_exact(RECORD_BYTES as usize);
    let surplus = records.remainder().len() as u64;
    let (mut settled, mut handed, mut synced, mut bad) = (Vec::new(), Offset(0), 0, Vec::new());
    let count = records.len() as u64;
    for (number, record) in records.enumerate() {
        let position = HEADER_BYTES + number as u64 * RECORD_BYTES;
        match decode_record(record, queue, generation, position) {
            Some((_, mark)) if mark > number as u32 => bad.push(number as u32),
            Some((fact, mark)) => {
                synced = synced.max(mark);
                match fact {
                    Ok(Fact::Settled(range)) => settled.push(range),
                    Ok(Fact::Handed(up_to)) => handed = handed.max(up_to),
                    Ok(Fact::Mark) => {}
                    Err(UnknownKind) => return Err(newer(FORMAT_VERSION + 1)),
                }
            }
            None => bad.push(number as u32),
        }
    }
    let state = GroupPosition { settled: merge(settled), handed };
    let position = HEADER_BYTES + count * RECORD_BYTES;
    Ok(Replay { state, generation, position, synced, bad, surplus })
}

/// A record of a kind that this program does not know.
struct UnknownKind;

fn decode_record(
    record: &[u8],
    queue: QueueId,
    generation: u64,
    position: u64,
) -> Option<(Result<Fact, UnknownKind>, u32)> {
    if u32_at(record, 28) != seeded_crc(queue, generation, position, &record[..28]) {
        return None;
    }
    let (start, end) = (Offset(u64_at(record, 8)), Offset(u64_at(record, 16)));
    let fact = match record[0] {
        SETTLED if start > end => return None,
        SETTLED => Ok(Fact::Settled(OffsetRange::new(start, end))),
        HANDED => Ok(Fact::Handed(start)),
        MARK => Ok(Fact::Mark),
        _ => Err(UnknownKind),
    };
    Some((fact, u32_at(record, 4)))
}

/// Ranges in any order as disjoint ones in order.
pub(super) fn merge(mut ranges: Vec<OffsetRange>) -> Vec<OffsetRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    let mut out: Vec<OffsetRange> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    #[test]
    fn state_round_trips_and_every_flipped_bit_is_found() {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let group = Name::new("g").unwrap();
        let path = Path::new("g.acks");
        let state = GroupPosition { settled: vec![range(0, 5), range(7, 9)], handed: Offset(8) };
        let (bytes, records) = encode_state(queue, &group, 3, &state);
        assert_eq!(records, 3);
        let read = replay(&bytes, queue, &group, path).unwrap();
        assert_eq!((&read.state, read.generation, read.bad.len()), (&state, 3, 0));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match replay(&bad, queue, &group, path) {
                Err(_) => assert!(bit < HEADER_BYTES as usize * 8),
                Ok(read) => assert_eq!(read.bad.len(), 1, "bit {bit}"),
            }
        }
    }

    #[test]
    fn facts_merge_in_any_order() {
        let ranges = vec![range(5, 7), range(0, 2), range(2, 3), range(6, 9), range(4, 4)];
        assert_eq!(merge(ranges), [range(0, 3), range(5, 9)]);
    }
}
