//! The ack journal of one group: which messages it settled, and up to where messages were
//! handed out.
//!
//! Records are facts: each stays true, in any order and however often it is read. So one that a
//! power loss took back means a redelivery, and nothing else. A record below the journal's own
//! synced mark that is bad is corruption. Syncs are jobs; appending a record is a plain write.
//! Called by the log; read by recovery and `check`.
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

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Doing, LogError, corrupt};
use super::files::{self, put_u32, put_u64, seeded_crc, u32_at, u64_at};
use super::segment::FORMAT_VERSION;
use super::storage::{Storage, StorageFile};
use crate::limits;
use crate::units::{Bytes, Monotonic, Name, Offset, OffsetRange, Position, QueueId};

const MAGIC: &[u8; 8] = b"mq-acks\0";
/// Bytes in front of the first record.
pub(super) const HEADER_BYTES: u64 = 512;
/// Bytes of a record.
pub(super) const RECORD_BYTES: u64 = 32;

const SETTLED: u8 = 1;
const HANDED: u8 = 2;
const MARK: u8 = 3;

/// What a group's journal keeps: everything that outlives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPosition {
    /// The settled offsets: disjoint ranges, in order.
    pub settled: Vec<OffsetRange>,
    /// Below this, messages may have been handed out before.
    pub handed: Offset,
}

impl GroupPosition {
    /// The offset behind the last one that the group has seen.
    pub(super) fn seen(&self) -> Offset {
        self.settled.last().map_or(self.handed, |range| range.end.max(self.handed))
    }
}

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
enum Fact {
    Settled(OffsetRange),
    Handed(Offset),
    Mark,
}

fn push_record(
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

/// One file of a journal: the one in force, or the one that replaces it.
struct Sheet<F> {
    file: Arc<F>,
    generation: u64,
    /// Where the next record goes.
    position: u64,
    allocated: u64,
    step: u64,
    /// Records that are known to be durable.
    synced: u32,
}

impl<F> Sheet<F> {
    fn records(&self) -> u32 {
        ((self.position - HEADER_BYTES) / RECORD_BYTES) as u32
    }
}

impl<F: StorageFile> Sheet<F> {
    /// Writes facts behind the last record. After an error nothing of them counts.
    fn write(&mut self, queue: QueueId, facts: &[Fact]) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(facts.len() * RECORD_BYTES as usize);
        for fact in facts {
            let position = self.position + bytes.len() as u64;
            push_record(&mut bytes, queue, self.generation, position, self.synced, *fact);
        }
        self.reserve(bytes.len() as u64);
        if let Err(error) = self.file.write_all_at(&[&bytes], Position(self.position)) {
            // What was written in part is overwritten later, or ends as a short record.
            let _ = self.file.truncate(Bytes(self.position));
            self.allocated = self.position;
            return Err(error);
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Keeps half a step in reserve, so that acking goes on for a while on a full disk.
    fn reserve(&mut self, bytes: u64) {
        while self.position + bytes + self.step / 2 > self.allocated {
            let from = Position(self.allocated);
            if self.file.allocate(from, Bytes(self.step)).is_err() {
                // No room is no reason to refuse an ack: what is reserved is used up first,
                // and the write itself says when that is gone.
                return;
            }
            self.allocated += self.step;
            self.step = (self.step * 2).min(limits::JOURNAL_ALLOCATE_BYTES_MAX);
        }
    }
}

/// The journal of a group, open for appending.
pub(super) struct Journal<S: Storage> {
    pub name: Name,
    pub path: PathBuf,
    queue: QueueId,
    sheet: Sheet<S::File>,
    /// A sheet that gets every record too and takes over once it is installed.
    next: Option<Sheet<S::File>>,
    /// Whether the file stands under its name, durably.
    pub installed: bool,
    /// Whether the job that installs `next` (or the first sheet) is under way.
    pub installing: bool,
    handed: Offset,
    /// Bytes of the state when it was last written whole.
    alive: u64,
    /// A compaction failed for want of space: not tried again below this size.
    compact_at: u64,
    /// Facts were lost to a full disk: the state has to be written whole.
    incomplete: bool,
    /// Whether a record was written since the last sync was asked for.
    dirty: bool,
    /// Since when that is so, as the log first noticed.
    pub dirty_since: Option<Monotonic>,
}

/// What a sync of a journal will have made durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct SyncPoint {
    records: u32,
    next_records: Option<u32>,
}

impl<S: Storage> Journal<S> {
    /// Makes the journal of a new group under its temporary name; a job installs it.
    pub fn create(
        storage: &S,
        dir: &Path,
        queue: QueueId,
        name: &Name,
        state: &GroupPosition,
    ) -> Result<Journal<S>, LogError> {
        let path = files::journal_path(dir, name);
        let sheet = write_sheet(storage, &path, queue, name, 1, state)?;
        let alive = sheet.position;
        Ok(Journal {
            name: name.clone(),
            path,
            queue,
            sheet,
            next: None,
            installed: false,
            installing: false,
            handed: state.handed,
            alive,
            compact_at: limits::JOURNAL_COMPACT_BYTES,
            incomplete: false,
            dirty: false,
            dirty_since: None,
        })
    }

    /// The journal as it was found at a start.
    pub fn reopen(
        path: PathBuf,
        queue: QueueId,
        name: Name,
        file: S::File,
        replay: Replay,
    ) -> Journal<S> {
        let sheet = Sheet {
            file: Arc::new(file),
            generation: replay.generation,
            position: replay.position,
            allocated: replay.position,
            step: limits::JOURNAL_ALLOCATE_BYTES_MIN,
            synced: replay.synced,
        };
        Journal {
            name,
            path,
            queue,
            sheet,
            next: None,
            installed: true,
            installing: false,
            handed: replay.state.handed,
            alive: HEADER_BYTES + (replay.state.settled.len() as u64 + 1) * RECORD_BYTES,
            compact_at: limits::JOURNAL_COMPACT_BYTES,
            incomplete: false,
            dirty: false,
            dirty_since: None,
        }
    }

    /// After an unclean stop. What is above the mark is written anew, as pages that a failed
    /// sync left may only look clean; behind torn records the whole state is.
    pub fn mend(&mut self, storage: &S, replay: &Replay, bytes: &[u8]) -> Result<(), LogError> {
        if !replay.bad.is_empty() {
            let generation = replay.generation + 1;
            let state = &replay.state;
            let (bytes, records) = encode_state(self.queue, &self.name, generation, state);
            files::replace(storage, &self.path, &bytes)?;
            self.sheet = Sheet {
                file: Arc::new(storage.open(&self.path).doing("opening", &self.path)?),
                generation,
                position: bytes.len() as u64,
                allocated: bytes.len() as u64,
                step: limits::JOURNAL_ALLOCATE_BYTES_MIN,
                synced: records as u32,
            };
            return Ok(());
        }
        let position = self.sheet.position;
        let from = self.durable_bytes().min(position);
        if replay.surplus > 0 {
            self.sheet.file.truncate(Bytes(position)).doing("cutting", &self.path)?;
        }
        if from < position {
            let tail = &bytes[from as usize..position as usize];
            let written = self.sheet.file.write_all_at(&[tail], Position(from));
            written.doing("writing", &self.path)?;
            self.dirty = true;
        }
        Ok(())
    }

    /// Writes that `ranges` are settled and that messages below `handed` were handed out.
    ///
    /// # Errors
    /// What the system says. Where the disk is full that is no error: the facts are kept with
    /// the state, which is written whole as soon as there is room.
    pub fn note(&mut self, ranges: &[OffsetRange], handed: Offset) -> Result<(), LogError> {
        let mut facts: Vec<Fact> = ranges
            .iter()
            .filter(|range| !range.is_empty())
            .map(|range| Fact::Settled(*range))
            .collect();
        if handed > self.handed {
            facts.push(Fact::Handed(handed));
            self.handed = handed;
        }
        if facts.is_empty() {
            return Ok(());
        }
        self.dirty = true;
        self.write(&facts)
    }

    fn write(&mut self, facts: &[Fact]) -> Result<(), LogError> {
        let mut result = self.sheet.write(self.queue, facts);
        if let Some(next) = &mut self.next {
            result = result.and(next.write(self.queue, facts));
        }
        match result {
            Err(error) if super::error::is_full(&error) => {
                self.incomplete = true;
                Ok(())
            }
            Err(source) => {
                Err(LogError::Io { doing: "writing acks to", path: self.path.clone(), source })
            }
            Ok(()) => Ok(()),
        }
    }

    /// Whether the whole state should be written anew.
    pub fn wants_compaction(&self) -> bool {
        let large = self.sheet.position > self.compact_at.max(2 * self.alive);
        (large || self.incomplete) && self.installed && self.next.is_none()
    }

    /// Writes the whole state to a new sheet; a job installs it.
    pub fn compact(&mut self, storage: &S, state: &GroupPosition) -> Result<(), LogError> {
        let generation = self.sheet.generation + 1;
        match write_sheet(storage, &self.path, self.queue, &self.name, generation, state) {
            Ok(sheet) => {
                self.next = Some(sheet);
                self.incomplete = false;
                Ok(())
            }
            Err(LogError::Io { source, .. }) if super::error::is_full(&source) => {
                // The old journal is still good; it may grow until there is room.
                self.compact_at = self.sheet.position + limits::JOURNAL_COMPACT_BYTES;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The file that waits for its installation, with what will be durable in it then.
    pub fn to_install(&self) -> Option<(Arc<S::File>, SyncPoint)> {
        if self.installing || (self.installed && self.next.is_none()) {
            return None;
        }
        let sheet = self.next.as_ref().unwrap_or(&self.sheet);
        Some((sheet.file.clone(), self.sync_point()))
    }

    /// The new sheet stands under the journal's name, durably.
    pub fn installed(&mut self, point: SyncPoint) {
        self.installing = false;
        self.installed = true;
        match self.next.take() {
            Some(mut next) => {
                next.synced = point.next_records.unwrap_or(0);
                self.alive = next.position;
                self.compact_at = limits::JOURNAL_COMPACT_BYTES;
                self.sheet = next;
            }
            None => self.sheet.synced = point.records,
        }
    }

    /// The installation failed for want of space.
    pub fn install_failed(&mut self) {
        self.installing = false;
        if self.next.take().is_some() {
            self.compact_at = self.sheet.position + limits::JOURNAL_COMPACT_BYTES;
        }
    }

    /// Whether every fact is written, though perhaps not synced.
    pub fn is_complete(&self) -> bool {
        !self.incomplete
    }

    /// Whether anything waits for a sync.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The files to sync so that every record so far is durable, whichever of them is in force
    /// after a crash.
    pub fn files(&self) -> impl Iterator<Item = Arc<S::File>> {
        let next = self.next.as_ref().map(|next| next.file.clone());
        std::iter::once(self.sheet.file.clone()).chain(next)
    }

    /// What a sync that starts now makes durable. From here on the journal is clean.
    pub fn begin_sync(&mut self) -> SyncPoint {
        self.dirty = false;
        self.dirty_since = None;
        self.sync_point()
    }

    fn sync_point(&self) -> SyncPoint {
        SyncPoint {
            records: self.sheet.records(),
            next_records: self.next.as_ref().map(Sheet::records),
        }
    }

    /// The sync is done. When nothing came in meanwhile, a record says so: after a kill nothing
    /// of an idle journal then needs to be written anew.
    pub fn synced(&mut self, point: SyncPoint) {
        self.sheet.synced = self.sheet.synced.max(point.records);
        if let (Some(next), Some(records)) = (&mut self.next, point.next_records) {
            next.synced = next.synced.max(records);
        }
        if self.sheet.records() == point.records && self.next.is_none() {
            // Only a hint: without it more is written anew at the next start.
            let _ = self.sheet.write(self.queue, &[Fact::Mark]);
        }
    }

    /// Bytes of the journal's file.
    pub fn bytes(&self) -> u64 {
        self.sheet.position
    }

    /// Bytes of the journal that are durable.
    pub fn durable_bytes(&self) -> u64 {
        HEADER_BYTES + u64::from(self.sheet.synced) * RECORD_BYTES
    }
}

/// Writes a whole state to the temporary file beside `path`.
fn write_sheet<S: Storage>(
    storage: &S,
    path: &Path,
    queue: QueueId,
    group: &Name,
    generation: u64,
    state: &GroupPosition,
) -> Result<Sheet<S::File>, LogError> {
    let temporary = files::temporary(path);
    let (bytes, records) = encode_state(queue, group, generation, state);
    let make = || {
        let file = files::create_anew(storage, &temporary)?;
        let step = limits::JOURNAL_ALLOCATE_BYTES_MIN;
        let allocated = (bytes.len() as u64).next_multiple_of(step) + step;
        let written = file
            .allocate(Position(0), Bytes(allocated))
            .and_then(|()| file.write_all_at(&[&bytes], Position(0)));
        if let Err(error) = written {
            let _ = storage.remove_file(&temporary);
            return Err(error);
        }
        Ok((file, allocated))
    };
    let (file, allocated) = make().map_err(|source| LogError::Io {
        doing: "writing the acks of a group to",
        path: temporary.clone(),
        source,
    })?;
    Ok(Sheet {
        file: Arc::new(file),
        generation,
        position: HEADER_BYTES + records * RECORD_BYTES,
        allocated,
        step: limits::JOURNAL_ALLOCATE_BYTES_MIN,
        synced: 0,
    })
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
