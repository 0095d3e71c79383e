//! The ack journal of one group: which messages it settled, and up to where messages were
//! handed out.
//!
//! Records are facts: each stays true, in any order and however often it is read. So one that a
//! power loss took back means a redelivery, and nothing else. A record below the journal's own
//! synced mark that is bad is corruption. Syncs are jobs; appending a record is a plain write.
//! Called by the log; read by recovery and `check`.
//!
//! The bytes are drawn in `record`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Doing, LogError};
use super::files;
use super::record::{Fact, HEADER_BYTES, RECORD_BYTES, Replay, encode_state, push_record};
use super::storage::{Storage, StorageFile};
use crate::limits;
use crate::units::{Bytes, Monotonic, Name, Offset, OffsetRange, Position, QueueId};

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
    /// A write failed, and what it left behind the last record could not be cut off.
    cut: bool,
    /// It was cut off since the last sync began.
    unsynced_cut: bool,
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
            self.cut = true;
            self.cut_off();
            return Err(error);
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Cuts off what a failed write left. Where that fails too, it is tried again before each
    /// sync; until then the next record overwrites it.
    fn cut_off(&mut self) {
        if self.cut && self.file.truncate(Bytes(self.position)).is_ok() {
            self.cut = false;
            self.unsynced_cut = true;
        }
        self.allocated = self.position;
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
            cut: false,
            unsynced_cut: false,
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
                cut: false,
                unsynced_cut: false,
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
        }
        if facts.is_empty() {
            return Ok(());
        }
        self.dirty = true;
        self.write(&facts)?;
        self.handed = self.handed.max(handed);
        Ok(())
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

    /// Whether every byte is durable, hints too: what an orderly stop leaves.
    pub fn is_durable(&self) -> bool {
        let sheet = &self.sheet;
        let clean = !sheet.cut && !sheet.unsynced_cut && sheet.synced == sheet.records();
        self.installed && self.next.is_none() && clean
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
        for sheet in std::iter::once(&mut self.sheet).chain(&mut self.next) {
            if sheet.cut {
                sheet.cut_off();
            }
            sheet.unsynced_cut = false;
        }
        self.sync_point()
    }

    fn sync_point(&self) -> SyncPoint {
        SyncPoint {
            records: self.sheet.records(),
            next_records: self.next.as_ref().map(Sheet::records),
        }
    }

    /// The sync is done. When nothing came in meanwhile, a record says so, if that is wanted:
    /// after a kill nothing of an idle journal then needs to be written anew.
    pub fn synced(&mut self, point: SyncPoint, say_so: bool) {
        self.sheet.synced = self.sheet.synced.max(point.records);
        if let (Some(next), Some(records)) = (&mut self.next, point.next_records) {
            next.synced = next.synced.max(records);
        }
        if say_so && self.sheet.records() == point.records && self.next.is_none() {
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
        cut: false,
        unsynced_cut: false,
    })
}
