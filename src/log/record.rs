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
//!  0      1       4         8       16      24    28    32
//! ┌──────┬───────┬─────────┬───────┬───────┬─────┬─────┐
//! │ kind │ count │ synced  │ start │ value │ n   │ CRC │
//! │ u8   │ u24   │ u32     │ u64   │ u64   │ u32 │ u32 │
//! └──────┴───────┴─────────┴───────┴───────┴─────┴─────┘
//! ```
//!
//! | kind | says | |
//! |---|---|---|
//! | 1 | settled | from `start` to before `value`; `n` says how they ended, 0: counted by a record 10 |
//! | 2 | handed out | up to `start` |
//! | 3 | nothing but the mark | |
//! | 4 | tried | `count` offsets from `start`, `n` times, ready again at `value` (µs, 0: at once) |
//! | 5 | leased | `count` offsets from `start`, under the number `value` |
//! | 6 | leased until | `count` offsets from `start`, to the time `value`, the lease whose number has the upper half `n` |
//! | 7 | lease over | `count` offsets from `start`, of the number `value` |
//! | 8 | numbers | the epoch has reached `start`, the upper half of lease numbers `n` |
//! | 9 | account | the group was made at `value` (µs); of the messages stored then, `start` are not its |
//! | 10 | tally | `start` messages ended in the way `n` before what else is said, `value` before the account |
//!
//! * The ways of ending are 1 acked, 2 dead letter, 3 expired, 4 dropped, 5 purged, 6 lost, 7 for
//!   another group only. What version 1 of the format settled has none.
//! * What is not named is 0. A lease is said by two records, 5 and 6, in any order; one without
//!   the other is a lease that is over. More than 2^24 - 1 offsets take several records.
//! * `synced`: so many records of this file were durable when this one was written.
//! * The CRCs cover queue id, generation and position, then the bytes in front of them. The
//!   generation grows with each compaction, so that stale bytes of an older file fail.
//!
//! # Changing the format
//!
//! A new kind of fact is a new number and raises [`FORMAT_VERSION`].

use std::path::Path;

use super::error::{LogError, corrupt};
use super::files::{put_u32, put_u64, seeded_crc, u32_at, u64_at};
use super::position::{
    AccountStart, Gathering, GroupFact, GroupPosition, LeasedRange, TriedRange, counter,
};
use super::segment::FORMAT_VERSION;
use crate::planted::{self, Bug};
use crate::units::{
    Attempts, Count, Ending, LeaseNumber, Name, Offset, OffsetRange, QueueId, WallTime,
};

const MAGIC: &[u8; 8] = b"mq-acks\0";
/// Bytes in front of the first record.
pub(super) const HEADER_BYTES: u64 = 512;
/// Bytes of a record.
pub(super) const RECORD_BYTES: u64 = 32;

const SETTLED: u8 = 1;
const HANDED: u8 = 2;
const MARK: u8 = 3;
const TRIED: u8 = 4;
const LEASED: u8 = 5;
const LEASED_UNTIL: u8 = 6;
const RETURNED: u8 = 7;
const NUMBERS: u8 = 8;
const ACCOUNT: u8 = 9;
const TALLY: u8 = 10;

/// Offsets that one record of a kind with a `count` can name.
const COUNT_MAX: u64 = (1 << 24) - 1;

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
    Settled(OffsetRange, Option<Ending>),
    Handed(Offset),
    Mark,
    Tried(TriedRange),
    Leased(OffsetRange, LeaseNumber),
    LeasedUntil(OffsetRange, u32, WallTime),
    Returned(OffsetRange, LeaseNumber),
    Numbers { epoch: u64, lease_counter: u32 },
    Account(AccountStart),
    Tally { ending: Ending, count: u64, before: u64 },
}

/// The records that say a group's fact.
pub(super) fn push_facts(out: &mut Vec<Fact>, fact: GroupFact) {
    match fact {
        GroupFact::Tried(tried) => {
            out.extend(pieces(tried.range).map(|range| Fact::Tried(TriedRange { range, ..tried })));
        }
        GroupFact::Leased(LeasedRange { range, number, deadline }) => {
            for range in pieces(range) {
                out.push(Fact::Leased(range, number));
                out.push(Fact::LeasedUntil(range, counter(number), deadline));
            }
        }
        GroupFact::Returned { range, number } => {
            out.extend(pieces(range).map(|range| Fact::Returned(range, number)));
        }
        GroupFact::Epoch(epoch) => out.push(Fact::Numbers { epoch, lease_counter: 0 }),
        GroupFact::Account(start) => out.push(Fact::Account(start)),
    }
}

/// The range in parts that a record can name.
fn pieces(range: OffsetRange) -> impl Iterator<Item = OffsetRange> {
    let starts = (range.start.0..range.end.0).step_by(COUNT_MAX as usize);
    starts.map(move |start| {
        OffsetRange::new(Offset(start), Offset(range.end.0.min(start + COUNT_MAX)))
    })
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
    let of = |range: OffsetRange| (range.span(), range.start.0);
    let (kind, (count, start), value, n) = match fact {
        Fact::Settled(range, ending) => {
            (SETTLED, (0, range.start.0), range.end.0, ending.map_or(0, |ending| ending as u32))
        }
        Fact::Handed(up_to) => (HANDED, (0, up_to.0), 0, 0),
        Fact::Mark => (MARK, (0, 0), 0, 0),
        Fact::Tried(TriedRange { range, attempts, ready_at }) => {
            (TRIED, of(range), ready_at.unwrap_or_default().0, attempts.0)
        }
        Fact::Leased(range, number) => (LEASED, of(range), number.0, 0),
        Fact::LeasedUntil(range, n, deadline) => (LEASED_UNTIL, of(range), deadline.0, n),
        Fact::Returned(range, number) => (RETURNED, of(range), number.0, 0),
        Fact::Numbers { epoch, lease_counter } => (NUMBERS, (0, epoch), 0, lease_counter),
        Fact::Account(AccountStart { born, base }) => (ACCOUNT, (0, base.0), born.0, 0),
        Fact::Tally { ending, count, before } => (TALLY, (0, count), before, ending as u32),
    };
    assert!(count <= COUNT_MAX, "a record names at most {COUNT_MAX} offsets");
    put_u32(&mut record, 0, u32::from(kind) | (count as u32) << 8);
    put_u32(&mut record, 4, synced);
    put_u64(&mut record, 8, start);
    put_u64(&mut record, 16, value);
    put_u32(&mut record, 24, n);
    let crc = seeded_crc(queue, generation, position, &record[..28]);
    put_u32(&mut record, 28, crc);
    out.extend_from_slice(&record);
}

/// The records that say exactly `state`.
fn facts_of(state: &GroupPosition) -> Vec<Fact> {
    let settled = state.settled.iter().map(|range| Fact::Settled(*range, None));
    let mut facts: Vec<Fact> = settled.collect();
    facts.push(Fact::Handed(state.handed));
    for tried in &state.tried {
        push_facts(&mut facts, GroupFact::Tried(*tried));
    }
    for lease in &state.leases {
        push_facts(&mut facts, GroupFact::Leased(*lease));
    }
    let (epoch, lease_counter) = (state.epoch, state.lease_counter);
    if (epoch, lease_counter) != (0, 0) {
        facts.push(Fact::Numbers { epoch, lease_counter });
    }
    facts.extend(state.account.start.map(Fact::Account));
    for ending in Ending::ALL {
        let (count, before) = (state.account.tally.of(ending), state.account.before.of(ending));
        if (count.0, before.0) != (0, 0) {
            facts.push(Fact::Tally { ending, count: count.0, before: before.0 });
        }
    }
    facts
}

/// The bytes of a journal that says exactly `state`, and how many records that are.
pub(super) fn encode_state(
    queue: QueueId,
    group: &Name,
    generation: u64,
    state: &GroupPosition,
) -> (Vec<u8>, u64) {
    let mut bytes = encode_header(queue, generation, group);
    let mut facts = facts_of(state);
    if planted::is(Bug::CompactionForgetsTries) {
        facts.retain(|fact| !matches!(fact, Fact::Tried(_)));
    }
    for fact in &facts {
        let position = bytes.len() as u64;
        push_record(&mut bytes, queue, generation, position, 0, *fact);
    }
    (bytes, facts.len() as u64)
}

/// What a journal's bytes say.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    pub state: GroupPosition,
    /// Records that say the same.
    pub alive: u64,
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
    let (mut gathering, mut synced, mut bad) = (Gathering::default(), 0, Vec::new());
    let count = records.len() as u64;
    for (number, record) in records.enumerate() {
        let position = HEADER_BYTES + number as u64 * RECORD_BYTES;
        match decode_record(record, queue, generation, position) {
            Some((_, mark)) if mark > number as u32 => bad.push(number as u32),
            Some((fact, mark)) => {
                synced = synced.max(mark);
                match fact {
                    Ok(fact) => gather(&mut gathering, fact),
                    Err(UnknownKind) => return Err(newer(FORMAT_VERSION + 1)),
                }
            }
            None => bad.push(number as u32),
        }
    }
    let position = HEADER_BYTES + count * RECORD_BYTES;
    let state = gathering.position();
    let alive = facts_of(&state).len() as u64;
    Ok(Replay { state, alive, generation, position, synced, bad, surplus })
}

fn gather(gathering: &mut Gathering, fact: Fact) {
    match fact {
        Fact::Settled(range, ending) => gathering.settled(range, ending),
        Fact::Handed(up_to) => gathering.handed(up_to),
        Fact::Mark => {}
        Fact::Tried(tried) => gathering.tried(tried),
        Fact::Leased(range, number) => gathering.leased(range, number),
        Fact::LeasedUntil(range, n, deadline) => gathering.lease_until(range, n, deadline),
        Fact::Returned(range, number) => gathering.returned(range, number),
        Fact::Numbers { epoch, lease_counter } => gathering.numbers(epoch, lease_counter),
        Fact::Account(start) => gathering.account(start),
        Fact::Tally { ending, count, before } => gathering.tallied(ending, count, before),
    }
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
    let count = u64::from(u32_at(record, 0) >> 8);
    let (start, value, n) = (u64_at(record, 8), u64_at(record, 16), u32_at(record, 24));
    let named = OffsetRange::new(Offset(start), Offset(start.checked_add(count)?));
    let number = LeaseNumber(value);
    let fact = match record[0] {
        SETTLED if start > value => return None,
        SETTLED => {
            let range = OffsetRange::new(Offset(start), Offset(value));
            match (n, Ending::of_number(n)) {
                (1.., None) => Err(UnknownKind),
                (_, ending) => Ok(Fact::Settled(range, ending)),
            }
        }
        HANDED => Ok(Fact::Handed(Offset(start))),
        MARK => Ok(Fact::Mark),
        TRIED => {
            let ready_at = (value > 0).then_some(WallTime(value));
            Ok(Fact::Tried(TriedRange { range: named, attempts: Attempts(n), ready_at }))
        }
        LEASED => Ok(Fact::Leased(named, number)),
        LEASED_UNTIL => Ok(Fact::LeasedUntil(named, n, WallTime(value))),
        RETURNED => Ok(Fact::Returned(named, number)),
        NUMBERS => Ok(Fact::Numbers { epoch: start, lease_counter: n }),
        ACCOUNT => Ok(Fact::Account(AccountStart { born: WallTime(value), base: Count(start) })),
        TALLY => match Ending::of_number(n) {
            Some(ending) => Ok(Fact::Tally { ending, count: start, before: value }),
            None => Err(UnknownKind),
        },
        _ => Err(UnknownKind),
    };
    Some((fact, u32_at(record, 4)))
}

#[cfg(test)]
mod tests {
    use super::super::position::GroupAccount;
    use super::*;
    use crate::units::Tally;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    fn state() -> GroupPosition {
        let tried = |range, n, ready_at| TriedRange { range, attempts: Attempts(n), ready_at };
        let lease = |range, number, at| LeasedRange {
            range,
            number: LeaseNumber(number),
            deadline: WallTime(at),
        };
        GroupPosition {
            settled: vec![range(0, 5), range(7, 9)],
            handed: Offset(8),
            tried: vec![
                tried(range(5, 6), 3, Some(WallTime(99))),
                tried(range(6, 7), 1, None),
                tried(range(10, 11 + (1 << 25)), 1, None),
            ],
            leases: vec![lease(range(9, 12), (5 << 32) | 77, 1 << 50)],
            epoch: 4,
            lease_counter: 9,
            account: GroupAccount {
                start: Some(AccountStart { born: WallTime(77), base: Count(3) }),
                tally: tally(Ending::Acked, 5),
                before: tally(Ending::Lost, 1 << 40),
            },
        }
    }

    fn tally(ending: Ending, count: u64) -> Tally {
        let mut tally = Tally::default();
        tally.add(ending, count);
        tally
    }

    #[test]
    fn journal_of_the_first_version_is_read_and_has_no_account() {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let group = Name::new("g").unwrap();
        let mut bytes = encode_header(queue, 1, &group);
        put_u32(&mut bytes, 8, 1);
        let crc = seeded_crc(queue, 0, 0, &bytes[..508]);
        put_u32(&mut bytes, 508, crc);
        for settled in [range(0, 3), range(3, 5)] {
            let position = bytes.len() as u64;
            push_record(&mut bytes, queue, 1, position, 0, Fact::Settled(settled, None));
        }
        let state = replay(&bytes, queue, &group, Path::new("g.acks")).unwrap().state;
        assert_eq!(state.settled, [range(0, 5)]);
        assert_eq!(state.account, GroupAccount::default());
    }

    #[test]
    fn each_message_is_counted_as_it_ended_and_once() {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let group = Name::new("g").unwrap();
        let path = Path::new("g.acks");
        let (mut bytes, _) = encode_state(queue, &group, 1, &state());
        let settled = [
            (range(0, 10), Ending::Acked),
            (range(20, 30), Ending::Dead),
            (range(25, 40), Ending::Expired),
            (range(20, 40), Ending::Acked),
        ];
        for (range, ending) in settled {
            let position = bytes.len() as u64;
            push_record(&mut bytes, queue, 1, position, 0, Fact::Settled(range, Some(ending)));
        }
        let account = replay(&bytes, queue, &group, path).unwrap().state.account;
        let counts = Ending::ALL.map(|ending| account.tally.of(ending).0);
        assert_eq!(counts, [5 + 3, 10, 10, 0, 0, 0, 0]);
        assert_eq!(account.before.of(Ending::Lost), Count(1 << 40));
    }

    #[test]
    fn state_round_trips_and_every_flipped_bit_is_found() {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let group = Name::new("g").unwrap();
        let path = Path::new("g.acks");
        let (bytes, records) = encode_state(queue, &group, 3, &state());
        assert_eq!(records, 2 + 1 + 2 + 3 + 2 + 1 + 3);
        let read = replay(&bytes, queue, &group, path).unwrap();
        assert_eq!((&read.state, read.generation, read.bad.len()), (&state(), 3, 0));
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
    fn lease_of_which_a_record_is_lost_is_over() {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let group = Name::new("g").unwrap();
        let lease = LeasedRange {
            range: range(3, 4),
            number: LeaseNumber((2 << 32) | 5),
            deadline: WallTime(70),
        };
        let mut facts = Vec::new();
        push_facts(&mut facts, GroupFact::Leased(lease));
        for (kept, deadline) in [(0, Some(WallTime(0))), (1, None)] {
            let mut bytes = encode_header(queue, 1, &group);
            push_record(&mut bytes, queue, 1, HEADER_BYTES, 0, facts[kept]);
            let state = replay(&bytes, queue, &group, Path::new("g.acks")).unwrap().state;
            assert_eq!(state.leases.first().map(|lease| lease.deadline), deadline);
            assert_eq!(state.lease_counter, 2, "the number is not drawn again");
        }
    }
}
