//! `snapshot`: what a queue knows beside its messages (producers, ids, keys), up to an end of the
//! log. What stands behind that end is read from the batches.
//!
//! Encodes and decodes; the log writes it, at each roll and before segments are dropped. Called
//! by the log, recovery and `check`.
//!
//! # Layout
//!
//! Little-endian; replaced whole.
//!
//! ```text
//!  0          8         12          16            32       40        48         56          64
//! ┌──────────┬─────────┬───────────┬─────────────┬────────┬─────────┬──────────┬───────────┐
//! │ "mq-snap"│ version │ producers │ queue id    │ covers │ covers: │ covers:  │ forgotten │
//! │ and NUL  │ u32     │ u32       │ 16 bytes    │ offset │ segment │ position │ u64, µs   │
//! └──────────┴─────────┴───────────┴─────────────┴────────┴─────────┴──────────┴───────────┘
//! producers, 32 bytes each
//!  0          8        12      16         24
//! ┌──────────┬────────┬───────┬──────────┬─────────────┐
//! │ producer │ epoch  │ kind  │ sequence │ last active │   kind: 0 without a name, 1 named,
//! │ u64      │ u32    │ u32   │ u64      │ u64, µs     │   2 named and with an annex
//! └──────────┴────────┴───────┴──────────┴─────────────┘
//! then for each of kind 2, in the same order: u32 bytes of annex, the annex
//! then u64 messages dropped ever, u64 messages expired ever
//! then, from version 2 on, u64 each, over the queue's life: messages stored, bytes of their batches,
//!   the offset up to which lost ones are counted in these, messages there already, refused,
//!   delivered, bytes of those, redelivered, tries that failed, messages lost
//!   and how messages ended in groups that are gone: u64 for each of the seven ways
//!   then u32 groups that are being removed, and for each: u32 bytes of its name, u64 when it was
//!   made (µs), u64 for each of the seven ways, the name
//! then u64 ids, and for each, the oldest first: 16 bytes digest, u64 time stored, µs
//! then u64 keys, and for each: 16 bytes digest, u64 offset
//! then the CRC-32, seeded with the queue's id, of everything in front of it
//! ```
//!
//! A digest is SipHash-1-3 with 128 bits, keyed with the queue's id, of the id or key.
//!
//! To change the format, raise the version and keep the decoder of the one before.

use std::path::Path;

use super::error::{LogError, corrupt};
use super::files::{put_u32, put_u64, seeded_crc, u32_at, u64_at};
use super::producers::{Producers, StoredProducer};
use super::segment::FORMAT_VERSION;
use super::unique::{Digest, Unique};
use crate::batch::{BatchHeader, flags};
use crate::limits;
use crate::units::{
    Bytes, Count, Ending, Epoch, Name, Offset, ProducerId, QueueId, SegmentNumber, Sequence, Tally,
    WallTime,
};

const MAGIC: &[u8; 8] = b"mq-snap\0";
const HEADER_BYTES: usize = 64;
const PRODUCER_BYTES: usize = 32;
const DIGEST_BYTES: usize = 24;

/// A longer snapshot is damaged: it holds at most the annexes of all named producers, the ids and
/// the keys.
pub(super) const SNAPSHOT_BYTES_MAX: u64 = 256 << 20;

/// From this version of the format on a snapshot knows what was stored.
const COUNTERS_VERSION: u32 = 2;

const PLAIN: u32 = 0;
const NAMED: u32 = 1;
const ANNEXED: u32 = 2;

/// The log end that a snapshot covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Covered {
    pub offset: Offset,
    pub segment: SegmentNumber,
    pub position: u64,
}

/// What is counted over the life of a queue. The first five follow from the batches behind what a
/// snapshot covers and from the journals, so they are exact after any end; the others are as they
/// were when the last snapshot was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that were stored, lost ones included as far as a journal knew of them.
    pub stored: Count,
    /// Bytes of their batches.
    pub stored_bytes: Bytes,
    /// Lost messages below this are counted in `stored`.
    pub lost_to: Offset,
    /// Messages that power losses took before every group had settled them, each once.
    pub lost: Count,
    /// How messages ended in groups that are gone.
    pub ended: Tally,
    /// Messages that were not stored because they were there already.
    pub there: Count,
    /// Messages that were turned away.
    pub refused: Count,
    /// Messages handed over, each time.
    pub delivered: Count,
    /// Bytes of those.
    pub delivered_bytes: Bytes,
    /// Of those, messages that may have been handed over before.
    pub redelivered: Count,
    /// Tries that failed.
    pub retried: Count,
    /// Messages that were dropped to make room.
    pub dropped: Count,
    /// Messages that expired.
    pub expired: Count,
}

impl Counters {
    /// A batch, or a chain, of `bytes` stands in the log.
    pub(super) fn note(&mut self, header: &BatchHeader, bytes: u64) {
        if header.count > 0 || header.has(flags::CHAIN) {
            self.stored.0 += u64::from(header.count);
            self.stored_bytes.0 += bytes;
        }
    }
}

/// A group that is being removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    pub name: Name,
    /// When it was made.
    pub born: WallTime,
    /// How its messages ended.
    pub tally: Tally,
}

/// A snapshot as it was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub covered: Covered,
    pub counters: Counters,
    /// Whether they know what was stored: not in version 1.
    pub knows_stored: bool,
    pub leaving: Vec<Leaving>,
    pub producers: Producers,
    pub ids: Vec<(Digest, WallTime)>,
    pub keys: Vec<(Digest, Offset)>,
}

/// The bytes of a snapshot.
pub(super) fn encode(
    queue: QueueId,
    covered: Covered,
    (counters, leaving): (&Counters, &[Leaving]),
    producers: &Producers,
    unique: Option<&Unique>,
) -> Vec<u8> {
    let stored = producers.stored();
    let mut out = vec![0u8; HEADER_BYTES];
    out[..8].copy_from_slice(MAGIC);
    put_u32(&mut out, 8, FORMAT_VERSION);
    put_u32(&mut out, 12, stored.len() as u32);
    out[16..32].copy_from_slice(queue.as_bytes());
    put_u64(&mut out, 32, covered.offset.0);
    put_u64(&mut out, 40, covered.segment.0);
    put_u64(&mut out, 48, covered.position);
    put_u64(&mut out, 56, producers.forgotten().0);
    for one in &stored {
        let kind = match (one.named, &one.annex) {
            (false, _) => PLAIN,
            (true, None) => NAMED,
            (true, Some(_)) => ANNEXED,
        };
        out.extend_from_slice(&one.producer.0.to_le_bytes());
        out.extend_from_slice(&one.epoch.0.to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&one.sequence.0.to_le_bytes());
        out.extend_from_slice(&one.active.0.to_le_bytes());
    }
    for annex in stored.iter().filter_map(|one| one.annex) {
        out.extend_from_slice(&(annex.len() as u32).to_le_bytes());
        out.extend_from_slice(annex);
    }
    push_counters(&mut out, counters, leaving);
    push_unique(&mut out, unique);
    let crc = seeded_crc(queue, 0, 0, &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn push_counters(out: &mut Vec<u8>, counters: &Counters, leaving: &[Leaving]) {
    let counts = [
        counters.dropped.0,
        counters.expired.0,
        counters.stored.0,
        counters.stored_bytes.0,
        counters.lost_to.0,
        counters.there.0,
        counters.refused.0,
        counters.delivered.0,
        counters.delivered_bytes.0,
        counters.redelivered.0,
        counters.retried.0,
        counters.lost.0,
    ];
    let mut push = |count: u64| out.extend_from_slice(&count.to_le_bytes());
    counts.into_iter().for_each(&mut push);
    Ending::ALL.iter().for_each(|ending| push(counters.ended.of(*ending).0));
    out.extend_from_slice(&(leaving.len() as u32).to_le_bytes());
    for Leaving { name, born, tally } in leaving {
        out.extend_from_slice(&(name.as_str().len() as u32).to_le_bytes());
        out.extend_from_slice(&born.0.to_le_bytes());
        for ending in Ending::ALL {
            out.extend_from_slice(&tally.of(ending).0.to_le_bytes());
        }
        out.extend_from_slice(name.as_str().as_bytes());
    }
}

fn read_counters(rest: &mut &[u8], version: u32) -> Option<(Counters, Vec<Leaving>)> {
    let mut next = || Some(u64_at(take(rest, 8)?, 0));
    let (dropped, expired) = (Count(next()?), Count(next()?));
    let mut counters = Counters { dropped, expired, ..Counters::default() };
    if version < COUNTERS_VERSION {
        return Some((counters, Vec::new()));
    }
    counters.stored = Count(next()?);
    counters.stored_bytes = Bytes(next()?);
    counters.lost_to = Offset(next()?);
    counters.there = Count(next()?);
    counters.refused = Count(next()?);
    counters.delivered = Count(next()?);
    counters.delivered_bytes = Bytes(next()?);
    counters.redelivered = Count(next()?);
    counters.retried = Count(next()?);
    counters.lost = Count(next()?);
    counters.ended = read_tally(rest)?;
    let mut leaving = Vec::new();
    for _ in 0..u32_at(take(rest, 4)?, 0) {
        let length = u32_at(take(rest, 4)?, 0) as usize;
        let born = WallTime(u64_at(take(rest, 8)?, 0));
        let tally = read_tally(rest)?;
        let name = Name::new(std::str::from_utf8(take(rest, length)?).ok()?).ok()?;
        leaving.push(Leaving { name, born, tally });
    }
    Some((counters, leaving))
}

fn read_tally(rest: &mut &[u8]) -> Option<Tally> {
    let mut tally = Tally::default();
    for ending in Ending::ALL {
        tally.add(ending, u64_at(take(rest, 8)?, 0));
    }
    Some(tally)
}

fn push_unique(out: &mut Vec<u8>, unique: Option<&Unique>) {
    let Some((ids, keys)) = unique.map(Unique::stored) else {
        return out.extend_from_slice(&[0; 16]);
    };
    let ids = (ids.len(), ids.map(|(id, stored)| (id, stored.0)));
    out.reserve((ids.0 + keys.len()) * DIGEST_BYTES + 16);
    out.extend_from_slice(&(ids.0 as u64).to_le_bytes());
    ids.1.for_each(|(id, stored)| push_digest(out, id, stored));
    out.extend_from_slice(&(keys.len() as u64).to_le_bytes());
    keys.for_each(|(key, offset)| push_digest(out, key, offset.0));
}

fn push_digest(out: &mut Vec<u8>, Digest(words): Digest, value: u64) {
    for word in [words[0], words[1], value] {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// Reads a snapshot.
///
/// # Errors
/// [`LogError::Corrupt`], [`LogError::Newer`].
pub(super) fn decode(bytes: &[u8], queue: QueueId, path: &Path) -> Result<Snapshot, LogError> {
    let bad = |what: &str| corrupt(path, None, None, what);
    if bytes.len() < HEADER_BYTES + 4 || &bytes[..8] != MAGIC {
        return Err(bad("is no snapshot"));
    }
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    if u32_at(crc, 0) != seeded_crc(queue, 0, 0, body) {
        return Err(bad("fails its checksum"));
    }
    let version = u32_at(body, 8);
    if version > FORMAT_VERSION {
        let path = path.to_owned();
        return Err(LogError::Newer { path, found: version, known: FORMAT_VERSION });
    }
    read(body).ok_or_else(|| bad("has an impossible length"))
}

fn read(body: &[u8]) -> Option<Snapshot> {
    let mut rest = &body[HEADER_BYTES..];
    let entries = take(&mut rest, (u32_at(body, 12) as usize).checked_mul(PRODUCER_BYTES)?)?;
    let mut stored = Vec::with_capacity(entries.len() / PRODUCER_BYTES);
    for entry in entries.chunks_exact(PRODUCER_BYTES) {
        let kind = u32_at(entry, 12);
        let annex = if kind == ANNEXED {
            let length = u32_at(take(&mut rest, 4)?, 0) as usize;
            Some(take(&mut rest, length)?).filter(|_| length <= limits::ANNEX_BYTES_MAX)
        } else {
            None
        };
        stored.push(StoredProducer {
            producer: ProducerId(u64_at(entry, 0)),
            epoch: Epoch(u32_at(entry, 8)),
            named: kind != PLAIN,
            sequence: Sequence(u64_at(entry, 16)),
            active: WallTime(u64_at(entry, 24)),
            annex,
        });
    }
    let producers = Producers::restore(&stored, WallTime(u64_at(body, 56)));
    let (counters, leaving) = read_counters(&mut rest, u32_at(body, 8))?;
    let knows_stored = u32_at(body, 8) >= COUNTERS_VERSION;
    let ids = digests(&mut rest)?.map(|(id, stored)| (id, WallTime(stored))).collect();
    let keys = digests(&mut rest)?.map(|(key, offset)| (key, Offset(offset))).collect();
    let covered = Covered {
        offset: Offset(u64_at(body, 32)),
        segment: SegmentNumber(u64_at(body, 40)),
        position: u64_at(body, 48),
    };
    let snapshot = Snapshot { covered, counters, knows_stored, leaving, producers, ids, keys };
    rest.is_empty().then_some(snapshot)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(taken)
}

fn digests<'a>(rest: &mut &'a [u8]) -> Option<impl Iterator<Item = (Digest, u64)> + use<'a>> {
    let count = usize::try_from(u64_at(take(rest, 8)?, 0)).ok()?;
    let entries = take(rest, count.checked_mul(DIGEST_BYTES)?)?;
    let entries = entries.chunks_exact(DIGEST_BYTES);
    Some(entries.map(|entry| (Digest([u64_at(entry, 0), u64_at(entry, 8)]), u64_at(entry, 16))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Framing, Record, push_attribute, tags};
    use crate::settings::{IdWindow, Settings};

    fn header(producer: u64, flags: u16, sequence: u64) -> BatchHeader {
        BatchHeader {
            payload_bytes: 0,
            framing: Framing::Records,
            flags,
            offset: Offset(0),
            count: 0,
            payload_crc: 0,
            mark: Offset(0),
            time: WallTime(3),
            producer: ProducerId(producer),
            sequence: Sequence(sequence),
            epoch: Epoch(1),
        }
    }

    #[test]
    fn snapshot_of_the_first_version_is_read() {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let mut bytes = vec![0u8; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        put_u32(&mut bytes, 8, 1);
        bytes[16..32].copy_from_slice(queue.as_bytes());
        put_u64(&mut bytes, 32, 9);
        // Dropped, expired, no ids, no keys.
        [3u64, 4, 0, 0].iter().for_each(|n| bytes.extend_from_slice(&n.to_le_bytes()));
        let crc = seeded_crc(queue, 0, 0, &bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let read = decode(&bytes, queue, Path::new("snapshot")).unwrap();
        let known = Counters { dropped: Count(3), expired: Count(4), ..Counters::default() };
        assert_eq!((read.counters, read.covered.offset), (known, Offset(9)));
        assert!(!read.knows_stored && read.leaving.is_empty());
    }

    #[test]
    fn snapshot_round_trips_and_every_flipped_bit_is_found() {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let path = Path::new("snapshot");
        let mut producers = Producers::default();
        producers.note(&header(1, 0, 7), None);
        producers.note(&header(2, flags::MARK, 9), None);
        producers.note(&header(3, flags::MARK, 1), None);
        producers.note(&header(3, flags::ANNEX, 2), Some(b"where I was"));
        let settings = Settings {
            unique_ids: Some(IdWindow::Count(5)),
            unique_keys: Some(5),
            ..Settings::default()
        };
        let mut unique = Unique::new(queue, &settings);
        for n in 0..3u8 {
            let mut attributes = Vec::new();
            push_attribute(&mut attributes, tags::ID, &[n]);
            push_attribute(&mut attributes, tags::KEY, &[n]);
            let record = Record { attribute_bytes: &attributes, body: b"" };
            unique.note_record(&record, Offset(n.into()), WallTime(10 + u64::from(n)));
        }
        let covered = Covered { offset: Offset(9), segment: SegmentNumber(2), position: 100 };
        let mut ended = Tally::default();
        ended.add(Ending::Purged, 9);
        let counters = Counters {
            dropped: Count(3),
            expired: Count(1 << 40),
            stored: Count(5),
            lost: Count(6),
            ended,
            ..Counters::default()
        };
        let name = Name::new("gone").unwrap();
        let leaving = [Leaving { name, born: WallTime(8), tally: ended }];
        let bytes = encode(queue, covered, (&counters, &leaving), &producers, Some(&unique));
        let read = decode(&bytes, queue, path).unwrap();
        assert_eq!((read.producers.stored(), read.covered), (producers.stored(), covered));
        assert_eq!((read.counters, read.leaving), (counters, leaving.to_vec()));
        assert_eq!(read.producers.annex(ProducerId(3)), Some(b"where I was".as_slice()));
        let (ids, keys) = unique.stored();
        assert_eq!((read.ids, read.keys), (ids.collect::<Vec<_>>(), keys.collect::<Vec<_>>()));
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], queue, path).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, queue, path).is_err(), "bit {bit}");
        }
    }
}
