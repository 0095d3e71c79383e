//! The ack journal of one group: which messages it settled, up to where messages were handed out,
//! and what was tried or leased beyond a connection.
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
use super::position::{GroupFact, GroupPosition};
use super::record::{
    Fact, HEADER_BYTES, RECORD_BYTES, Replay, encode_state, push_facts, push_record,
};
use super::spare::{self, Spare};
use super::storage::{Storage, StorageFile};
use crate::limits;
use crate::units::{Bytes, Ending, Monotonic, Name, Offset, OffsetRange, Position, QueueId};

/// How much of what was noted to a group: grows with each note. What
/// [`want_group_durable`](super::Log::want_group_durable) gave is durable once
/// [`group_durable`](super::Log::group_durable) has reached it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupMark(u64);

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
    /// Everything noted up to here is written in it.
    noted: GroupMark,
    /// Facts were lost to a full disk: from there on it is not complete.
    incomplete: bool,
}

impl<F> Sheet<F> {
    /// A file that holds so many bytes of records.
    fn new(file: Arc<F>, generation: u64, position: u64) -> Sheet<F> {
        Sheet {
            file,
            generation,
            position,
            allocated: position,
            step: limits::JOURNAL_ALLOCATE_BYTES_MIN,
            synced: 0,
            cut: false,
            unsynced_cut: false,
            noted: GroupMark(0),
            incomplete: false,
        }
    }

    fn records(&self) -> u32 {
        ((self.position - HEADER_BYTES) / RECORD_BYTES) as u32
    }
}

impl<F: StorageFile> Sheet<F> {
    /// Writes facts behind the last record. After an error nothing of them counts.
    fn write(&mut self, queue: QueueId, facts: &[Fact], noted: GroupMark) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(facts.len() * RECORD_BYTES as usize);
        for fact in facts {
            let position = self.position + bytes.len() as u64;
            push_record(&mut bytes, queue, self.generation, position, self.synced, *fact);
        }
        self.reserve(bytes.len() as u64);
        if let Err(error) = self.file.write_all_at(&[&bytes], Position(self.position)) {
            self.cut = true;
            self.cut_off();
            self.incomplete = true;
            return Err(error);
        }
        self.position += bytes.len() as u64;
        if !self.incomplete {
            self.noted = noted;
        }
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
    /// Whether `next` is a seek rather than the same state written anew.
    resetting: bool,
    noted: GroupMark,
    durable: GroupMark,
    /// Must be durable soon.
    wanted: GroupMark,
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
    noted: GroupMark,
    next_noted: GroupMark,
}

impl<S: Storage> Journal<S> {
    /// Makes the journal of a new group under its temporary name; a job installs it. Takes the
    /// spare file if there is no other room, as whatever writes a whole state does.
    pub fn create(
        storage: &S,
        spare: &mut Spare,
        dir: &Path,
        queue: QueueId,
        name: &Name,
        state: &GroupPosition,
    ) -> Result<Journal<S>, LogError> {
        let path = files::journal_path(dir, name);
        let sheet = write_sheet(storage, spare, &path, queue, name, 1, state)?;
        Ok(Journal::with(path, queue, name.clone(), sheet, state.handed))
    }

    fn with(
        path: PathBuf,
        queue: QueueId,
        name: Name,
        sheet: Sheet<S::File>,
        handed: Offset,
    ) -> Journal<S> {
        Journal {
            name,
            path,
            queue,
            alive: sheet.position,
            sheet,
            next: None,
            installed: false,
            installing: false,
            handed,
            compact_at: limits::JOURNAL_COMPACT_BYTES,
            resetting: false,
            noted: GroupMark(0),
            durable: GroupMark(0),
            wanted: GroupMark(0),
            dirty: false,
            dirty_since: None,
        }
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
            synced: replay.synced,
            ..Sheet::new(Arc::new(file), replay.generation, replay.position)
        };
        let mut journal = Journal::with(path, queue, name, sheet, replay.state.handed);
        journal.installed = true;
        journal.alive = HEADER_BYTES + replay.alive * RECORD_BYTES;
        journal
    }

    /// After an unclean stop. What is above the mark is written anew, as pages that a failed
    /// sync left may only look clean; behind torn records the whole state is.
    pub fn mend(&mut self, storage: &S, replay: &Replay, bytes: &[u8]) -> Result<(), LogError> {
        if !replay.bad.is_empty() {
            let generation = replay.generation + 1;
            let state = &replay.state;
            let (bytes, records) = encode_state(self.queue, &self.name, generation, state);
            files::replace(storage, &self.path, &bytes)?;
            let file = storage.open(&self.path).doing("opening", &self.path)?;
            self.sheet = Sheet {
                synced: records as u32,
                ..Sheet::new(Arc::new(file), generation, bytes.len() as u64)
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
            // Facts that nobody has synced yet: whoever asks for what was noted before to be
            // durable has to wait for them too.
            self.noted.0 += 1;
            self.sheet.noted = self.noted;
            self.dirty = true;
        }
        Ok(())
    }

    /// Writes that `ranges` are settled, in this way, and that messages below `handed` were handed out.
    ///
    /// # Errors
    /// What the system says. Where the disk is full that is no error: the facts are kept with
    /// the state, which is written whole as soon as there is room.
    pub fn note(
        &mut self,
        ranges: &[OffsetRange],
        ending: Ending,
        handed: Offset,
    ) -> Result<(), LogError> {
        let mut facts: Vec<Fact> = ranges
            .iter()
            .filter(|range| !range.is_empty())
            .map(|range| Fact::Settled(*range, Some(ending)))
            .collect();
        if handed > self.handed {
            facts.push(Fact::Handed(handed));
        }
        self.write(&facts)?;
        self.handed = self.handed.max(handed);
        Ok(())
    }

    /// Writes what became true of the group.
    ///
    /// # Errors
    /// As for [`note`](Journal::note).
    pub fn note_facts(&mut self, facts: &[GroupFact]) -> Result<(), LogError> {
        let mut records = Vec::with_capacity(facts.len());
        facts.iter().for_each(|fact| push_facts(&mut records, *fact));
        self.write(&records)
    }

    fn write(&mut self, facts: &[Fact]) -> Result<(), LogError> {
        if facts.is_empty() {
            return Ok(());
        }
        self.dirty = true;
        self.noted.0 += 1;
        let mut result = match self.resetting {
            false => self.sheet.write(self.queue, facts, self.noted),
            true => self.write_before_reset(facts),
        };
        if let Some(next) = &mut self.next {
            result = result.and(next.write(self.queue, facts, self.noted));
        }
        match result {
            Err(error) if super::error::is_full(&error) => Ok(()),
            Err(source) => {
                Err(LogError::Io { doing: "writing acks to", path: self.path.clone(), source })
            }
            Ok(()) => Ok(()),
        }
    }

    /// Into the sheet that is in force while a reset waits for its installation. It does not hold the
    /// reset, so nothing noted since is durable with it; and a turn that began where the group was set
    /// must not be found where it stood before.
    fn write_before_reset(&mut self, facts: &[Fact]) -> std::io::Result<()> {
        let is_of_both = |fact: &&Fact| !matches!(fact, Fact::Numbers { .. });
        let facts: Vec<Fact> = facts.iter().filter(is_of_both).copied().collect();
        let noted = self.sheet.noted;
        self.sheet.write(self.queue, &facts, noted)
    }

    /// Whether the whole state should be written anew.
    pub fn wants_compaction(&self) -> bool {
        let large = self.sheet.position > self.compact_at.max(2 * self.alive);
        (large || self.sheet.incomplete) && self.may_rewrite()
    }

    /// Whether the whole state can be written anew: no sheet waits for its installation.
    pub fn may_rewrite(&self) -> bool {
        self.installed && self.next.is_none()
    }

    /// Writes the whole state to a new sheet; a job installs it.
    pub fn compact(
        &mut self,
        storage: &S,
        spare: &mut Spare,
        state: &GroupPosition,
    ) -> Result<(), LogError> {
        match self.begin_next(storage, spare, state) {
            Err(LogError::Io { source, .. }) if super::error::is_full(&source) => {
                // The old journal is still good; it may grow until there is room.
                self.compact_at = self.sheet.position + limits::JOURNAL_COMPACT_BYTES;
                Ok(())
            }
            other => other,
        }
    }

    fn begin_next(
        &mut self,
        storage: &S,
        spare: &mut Spare,
        state: &GroupPosition,
    ) -> Result<(), LogError> {
        let generation = self.sheet.generation + 1;
        let mut next =
            write_sheet(storage, spare, &self.path, self.queue, &self.name, generation, state)?;
        next.noted = self.noted;
        self.next = Some(next);
        Ok(())
    }

    /// From now on the group is where `state` says, whatever was noted before; a job installs
    /// that. For a journal that [may be rewritten](Journal::may_rewrite).
    ///
    /// # Errors
    /// What the system says; then nothing has changed.
    pub fn reset(
        &mut self,
        storage: &S,
        spare: &mut Spare,
        state: &GroupPosition,
    ) -> Result<(), LogError> {
        assert!(self.may_rewrite(), "two sheets wait for their installation");
        self.noted.0 += 1;
        if let Err(error) = self.begin_next(storage, spare, state) {
            self.noted.0 -= 1;
            return Err(error);
        }
        self.handed = state.handed;
        self.resetting = true;
        Ok(())
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
                self.durable = self.durable.max(point.next_noted);
            }
            None => {
                self.sheet.synced = point.records;
                self.durable = self.durable.max(point.noted);
            }
        }
        self.resetting = false;
    }

    /// The installation failed for want of space. A reset is tried again.
    pub fn install_failed(&mut self) {
        self.installing = false;
        if !self.resetting && self.next.take().is_some() {
            self.compact_at = self.sheet.position + limits::JOURNAL_COMPACT_BYTES;
            // What found no room in the one that goes kept all of it from counting as durable.
            self.dirty = true;
        }
    }

    /// Whether a place where the group was set is not durable yet.
    pub fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// Whether every fact is written, though perhaps not synced.
    pub fn is_complete(&self) -> bool {
        !self.sheet.incomplete
    }

    /// Everything noted so far must become durable soon.
    pub fn want_durable(&mut self) -> GroupMark {
        self.wanted = self.noted;
        self.wanted
    }

    /// Up to where what was noted is durable.
    pub fn durable(&self) -> GroupMark {
        self.durable
    }

    /// Whether someone waits for a sync.
    pub fn wants_sync(&self) -> bool {
        self.wanted > self.durable && self.dirty
    }

    /// Whether anything waits for a sync.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether every byte is durable, hints too: what an orderly stop leaves.
    pub fn is_durable(&self) -> bool {
        let sheet = &self.sheet;
        let whole = !sheet.cut && !sheet.unsynced_cut && !sheet.incomplete;
        let clean = whole && sheet.synced == sheet.records();
        self.may_rewrite() && clean
    }

    /// Whether a sync brings the journal closer to [`is_durable`](Journal::is_durable): one that
    /// lost facts to a full disk has no use for any number of them.
    pub fn wants_last_sync(&self) -> bool {
        let sheet = &self.sheet;
        self.dirty || sheet.unsynced_cut || sheet.synced != sheet.records()
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
            noted: self.sheet.noted,
            next_noted: self.next.as_ref().map_or(self.sheet.noted, |next| next.noted),
        }
    }

    /// The sync is done. When nothing came in meanwhile, a record says so, if that is wanted:
    /// after a kill nothing of an idle journal then needs to be written anew.
    pub fn synced(&mut self, point: SyncPoint, say_so: bool) {
        self.sheet.synced = self.sheet.synced.max(point.records);
        if let (Some(next), Some(records)) = (&mut self.next, point.next_records) {
            next.synced = next.synced.max(records);
        }
        // Either file may be the one in force after a crash.
        self.durable = self.durable.max(point.noted.min(point.next_noted));
        if say_so && self.sheet.records() == point.records && self.next.is_none() {
            // Only a hint: without it more is written anew at the next start.
            let _ = self.sheet.write(self.queue, &[Fact::Mark], self.noted);
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
    spare: &mut Spare,
    path: &Path,
    queue: QueueId,
    group: &Name,
    generation: u64,
    state: &GroupPosition,
) -> Result<Sheet<S::File>, LogError> {
    let temporary = files::temporary(path);
    let (bytes, records) = encode_state(queue, group, generation, state);
    let mut written = write_new(storage, &temporary, &bytes);
    if *spare == Spare::Ready && written.as_ref().is_err_and(super::error::is_full) {
        // Whatever comes of it, it is not a spare file any more.
        *spare = Spare::Missing;
        written = write_spare(storage, &temporary, &bytes);
    }
    let (file, allocated) = written.map_err(|source| LogError::Io {
        doing: "writing the acks of a group to",
        path: temporary.clone(),
        source,
    })?;
    Ok(Sheet {
        allocated,
        ..Sheet::new(Arc::new(file), generation, HEADER_BYTES + records * RECORD_BYTES)
    })
}

/// Into a new file; gives it with the room in it.
fn write_new<S: Storage>(
    storage: &S,
    temporary: &Path,
    bytes: &[u8],
) -> std::io::Result<(S::File, u64)> {
    let file = files::create_anew(storage, temporary)?;
    let step = limits::JOURNAL_ALLOCATE_BYTES_MIN;
    let allocated = (bytes.len() as u64).next_multiple_of(step) + step;
    let written = file
        .allocate(Position(0), Bytes(allocated))
        .and_then(|()| file.write_all_at(&[bytes], Position(0)));
    if written.is_err() {
        let _ = storage.remove_file(temporary);
    }
    written.map(|()| (file, allocated))
}

/// Into the spare file.
fn write_spare<S: Storage>(
    storage: &S,
    temporary: &Path,
    bytes: &[u8],
) -> std::io::Result<(S::File, u64)> {
    let written = spare::take(storage, temporary, bytes.len() as u64).and_then(|taken| {
        taken.0.write_all_at(&[bytes], Position(0))?;
        Ok(taken)
    });
    if written.is_err() {
        let _ = storage.remove_file(temporary);
    }
    written
}
