//! The store of delayed messages of one queue: what comes in, and what is taken when it is due.
//!
//! Owned by the event loop's thread. Writes to the hidden log, reads what is warm; what would
//! wait for the disk is a job. Called by the server's engine.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::error::{AppendError, Damage, LogError};
use super::super::jobs::{Job, Work};
use super::super::log::Options;
use super::super::storage::{Storage, StorageFile};
use super::super::{Log, NewBatch};
use super::Due;
use super::index::{Frozen, Index, Spot, entries_of};
use super::jobs::{Hidden, Task};
use super::manifest::{Levels, Manifest, RunPoint};
use super::run::{Bad, Reader};
use super::upkeep::Upkeep;
use crate::batch::{BatchHeader, HEADER_BYTES, checksum};
use crate::limits;
use crate::units::{
    Bytes, Count, Monotonic, Offset, OffsetRange, Position, SegmentNumber, WallTime,
};

/// Messages that are appended to the hidden log and not durable there yet.
struct Pending {
    end: Offset,
    /// Bytes that must be durable first.
    needs: Bytes,
    entries: Vec<(Due, Spot)>,
    /// Of their records.
    bytes: u64,
}

/// A run that is taken from.
pub(super) struct Run<S: Storage> {
    pub number: u64,
    pub path: PathBuf,
    pub extent: super::run::Extent,
    pub reader: Reader<S::File>,
}

/// Due messages on their way into the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DueBatch {
    /// Records, one behind the other.
    pub payload: Vec<u8>,
    /// How many; none when only the annex is to be stored.
    pub count: u32,
}

/// What there is to append to the queue.
pub enum Taking<S: Storage> {
    /// Nothing now.
    Nothing,
    /// This: with [`Delays::annex`] as the batch's annex, durable whatever the policy.
    Batch(DueBatch),
    /// A job has to read ahead first; ask again when it is complete.
    Cold(Job<S>),
}

/// Where the next due message is taken from.
#[derive(Clone, Copy)]
enum Source {
    Index,
    Frozen,
    Run(usize),
}

/// The store of one queue's delayed messages; the module says how it works.
pub struct Delays<S: Storage> {
    pub(super) storage: Arc<S>,
    pub(super) dir: PathBuf,
    pub(super) options: Options,
    pub(super) log: Log<S>,
    pending: VecDeque<Pending>,
    pub(super) index: Index,
    /// Messages of the hidden log below are in the index, in a run, or were taken.
    pub(super) noted: Offset,
    pub(super) frozen: Option<Frozen>,
    /// What was noted when it was frozen.
    pub(super) frozen_end: Offset,
    pub(super) runs: Vec<Run<S>>,
    pub(super) floor: Offset,
    pub(super) levels: Levels,
    /// Messages that were purged before their time, ever.
    pub(super) purged: Count,
    /// What was taken and is not appended yet: the append could not be made.
    ready: Option<DueBatch>,
    /// The manifest has changed since it was last appended.
    pub(super) dirty: bool,
    /// A manifest is appended and not durable.
    in_flight: bool,
    pub(super) upkeep: Upkeep<S>,
}

impl<S: Storage> Delays<S> {
    pub(super) fn new(
        storage: Arc<S>,
        dir: PathBuf,
        options: Options,
        log: Log<S>,
        next_run: u64,
    ) -> Delays<S> {
        Delays {
            storage,
            dir,
            options,
            noted: log.written_end(),
            log,
            pending: VecDeque::new(),
            index: Index::default(),
            frozen: None,
            frozen_end: Offset(0),
            runs: Vec::new(),
            floor: Offset(0),
            levels: Levels::default(),
            purged: Count(0),
            ready: None,
            dirty: false,
            in_flight: false,
            upkeep: Upkeep::new(next_run),
        }
    }

    /// The hidden log: for its producers, its settings, and what it says of itself.
    pub fn log(&mut self) -> &mut Log<S> {
        &mut self.log
    }

    /// The hidden log, to look at.
    #[must_use]
    pub fn log_ref(&self) -> &Log<S> {
        &self.log
    }

    /// Messages that wait for their time, those included that are on their way.
    #[must_use]
    pub fn len(&self) -> Count {
        let pending: usize = self.pending.iter().map(|pending| pending.entries.len()).sum();
        let frozen = self.frozen.as_ref().map_or(0, Frozen::len);
        let runs: u64 = self.runs.iter().map(|run| run.reader.left()).sum();
        let ready = self.ready.as_ref().map_or(0, |batch| u64::from(batch.count));
        Count((pending + frozen + self.index.len()) as u64 + runs + ready)
    }

    /// Bytes of the records that wait, those included that are on their way.
    #[must_use]
    pub fn waiting_bytes(&self) -> Bytes {
        let pending: u64 = self.pending.iter().map(|pending| pending.bytes).sum();
        let frozen = self.frozen.as_ref().map_or(0, Frozen::bytes);
        let runs: u64 = self.runs.iter().map(|run| run.reader.record_bytes_left()).sum();
        let ready = self.ready.as_ref().map_or(0, |batch| batch.payload.len() as u64);
        Bytes(pending + frozen + self.index.bytes() + runs + ready)
    }

    /// Messages that were purged before their time, over the life of the queue. As exact as the
    /// purges themselves: both are told by the annex.
    #[must_use]
    pub fn purged(&self) -> Count {
        self.purged
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Count(0)
    }

    /// Bytes on the disk.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        let runs: u64 = self.runs.iter().map(|run| run.extent.end).sum();
        Bytes(self.log.bytes().0 + runs)
    }

    /// Appends a batch of records of which each says when it is due. See [`Log::append`].
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn append(
        &mut self,
        now: Monotonic,
        wall: WallTime,
        batch: &NewBatch<'_>,
    ) -> Result<OffsetRange, AppendError> {
        self.admit()?;
        let range = self.log.append(now, wall, batch)?;
        let position = self.log.active.position - batch.payload.len() as u64;
        let header = BatchHeader {
            payload_bytes: batch.payload.len() as u32,
            framing: batch.framing,
            flags: batch.flags,
            offset: range.start,
            count: batch.count,
            payload_crc: 0,
            mark: Offset(0),
            time: wall,
            producer: batch.producer,
            sequence: batch.sequence,
            epoch: batch.epoch,
        };
        let entries = entries_of(&header, batch.payload, self.log.active.number, position);
        let entries: Vec<(Due, Spot)> = entries.collect();
        assert!(entries.len() == batch.count as usize, "the payload was checked");
        let needs = self.log.written_bytes();
        let bytes = entries.iter().map(|(_, spot)| u64::from(spot.bytes)).sum();
        self.pending.push_back(Pending { end: range.end, needs, entries, bytes });
        // Nothing is taken before it is durable, whatever the policy.
        self.log.want_durable();
        Ok(range)
    }

    /// Whether the index has room, or soon will.
    fn admit(&mut self) -> Result<(), AppendError> {
        let pending: usize = self.pending.iter().map(|pending| pending.entries.len()).sum();
        // It is frozen in the next turn, unless one is being written, or there are as many as can
        // be and a merge has to make room.
        let stuck = self.frozen.is_some() || self.runs.len() >= limits::DELAY_RUNS_MAX;
        if self.index.len() + pending < self.options.delay_index || !stuck {
            return Ok(());
        }
        match self.upkeep.refused.clone() {
            None => Err(AppendError::NotYet),
            Some(reason) => {
                let (available, reserve) =
                    super::super::staging::space(&*self.storage, &self.options);
                Err(AppendError::Full { available, reserve, reason })
            }
        }
    }

    /// What became durable in the hidden log can be taken from now on.
    pub(super) fn note_durable(&mut self) {
        let durable = self.log.durable_bytes();
        while self.pending.front().is_some_and(|first| first.needs <= durable) {
            let pending = self.pending.pop_front().expect("there is a first");
            for (due, spot) in pending.entries {
                self.index.insert(due, spot);
            }
            self.noted = pending.end;
        }
    }

    /// When the next message comes due; the beginning of time when that is not known without
    /// reading, or when a manifest wants to be stored.
    #[must_use]
    pub fn next_due(&self) -> Option<WallTime> {
        if self.in_flight || self.log.damage().is_some() {
            return None;
        }
        if self.ready.is_some() || self.dirty {
            return Some(WallTime(0));
        }
        if self.levels.is_full() {
            return None;
        }
        let frozen = self.frozen.as_ref().and_then(Frozen::first).map(|(due, _)| due);
        let heads = self.index.first().into_iter().chain(frozen);
        let runs = self.runs.iter().filter(|run| run.reader.left() > 0);
        let runs = runs.map(|run| run.reader.known().map_or_else(Due::default, |head| head.due));
        heads.chain(runs).min().map(|due| due.at)
    }

    /// Takes what is due at `wall`: as much as goes into one batch. What is taken must be
    /// [`appended`](Delays::appended), or [`kept`](Delays::keep) for the next time.
    ///
    /// # Errors
    /// [`LogError::Corrupt`]: from then on nothing is taken any more. What the system says.
    pub fn take(&mut self, wall: WallTime) -> Result<Taking<S>, LogError> {
        if let Some(damage) = self.log.damage() {
            return Err(LogError::Corrupt(damage.clone()));
        }
        if self.in_flight {
            return Ok(Taking::Nothing);
        }
        if let Some(batch) = self.ready.take() {
            return Ok(Taking::Batch(batch));
        }
        self.note_durable();
        let mut batch = DueBatch::default();
        let cold = self.gather(wall, &mut batch)?;
        if batch.count == 0 {
            if let Some(read) = cold {
                return Ok(Taking::Cold(read));
            }
            if !self.dirty {
                return Ok(Taking::Nothing);
            }
        }
        Ok(Taking::Batch(batch))
    }

    /// The annex for the batch that was taken last.
    #[must_use]
    pub fn annex(&self) -> Vec<u8> {
        self.manifest().encode()
    }

    fn manifest(&self) -> Manifest {
        let runs = self.runs.iter().map(|run| RunPoint {
            number: run.number,
            taken: run.reader.taken,
            position: run.reader.position,
        });
        Manifest {
            floor: self.floor,
            purged: self.purged,
            levels: self.levels.clone(),
            runs: runs.collect(),
        }
    }

    /// The batch could not be appended: it comes again.
    pub fn keep(&mut self, batch: DueBatch) {
        self.ready = Some(batch);
    }

    /// The batch stands in the queue's log, with the annex. Nothing is taken until it is durable.
    pub fn appended(&mut self) {
        assert!(!self.in_flight, "one after the other");
        self.dirty = false;
        self.in_flight = true;
        self.upkeep.appended(self.floor);
    }

    /// What was appended last is durable: what it does not need any more can go.
    pub fn committed(&mut self) {
        assert!(self.in_flight, "something was appended");
        self.in_flight = false;
        self.upkeep.committed();
        let below = OffsetRange::new(Offset(0), self.upkeep.floor_committed);
        for (number, extent) in self.log.segment_extents(&[below]) {
            if extent.end <= below.end {
                self.log.drop_segment(number);
            }
        }
        if below.end == self.log.written_end() {
            self.log.roll_if_gone();
        }
    }

    /// Whether a batch is appended and not known to be durable.
    #[must_use]
    pub fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// Gives up everything that waits; returns how many messages. What was appended and is not
    /// durable yet comes after this.
    pub fn purge(&mut self) -> Count {
        self.note_durable();
        let pending: usize = self.pending.iter().map(|pending| pending.entries.len()).sum();
        let purged = Count(self.len().0 - pending as u64);
        self.ready = None;
        self.index = Index::default();
        self.frozen = None;
        for run in std::mem::take(&mut self.runs) {
            self.upkeep.discard(run.path);
        }
        self.upkeep.forget_making();
        self.floor = self.noted;
        self.levels = Levels::default();
        self.dirty = true;
        self.purged.0 += purged.0;
        purged
    }

    /// Moves due records into the batch. A job, when something has to be read first.
    fn gather(&mut self, wall: WallTime, batch: &mut DueBatch) -> Result<Option<Job<S>>, LogError> {
        if self.levels.is_full() {
            // The clock was set back many times; what was taken can be said in few words again
            // when the next run stands, which is begun at once.
            return Ok(None);
        }
        let mut last = None;
        let mut cold;
        loop {
            cold = self.read_heads()?;
            if cold.is_some() {
                break;
            }
            let Some((due, bytes, source)) = self.least() else { break };
            let full = batch.payload.len() + bytes as usize > limits::DELIVER_BYTES;
            if due.at > wall || (full && batch.count > 0) {
                break;
            }
            if bytes as usize > limits::DELAYED_RECORD_BYTES_MAX {
                if batch.count > 0 {
                    break;
                }
                return Err(self.too_large(due, bytes, source));
            }
            cold = self.take_record(source, &mut batch.payload)?;
            if cold.is_some() {
                break;
            }
            batch.count += 1;
            last = Some(due);
        }
        if let Some(due) = last {
            self.levels.took(self.noted, due);
            self.settle();
        }
        Ok(cold)
    }

    /// What was emptied goes.
    pub(super) fn settle(&mut self) {
        self.dirty = true;
        let is_done = |run: &Run<S>| run.reader.left() == 0 && !self.upkeep.is_merging(run.number);
        let (done, rest) =
            std::mem::take(&mut self.runs).into_iter().partition::<Vec<_>, _>(is_done);
        self.runs = rest;
        done.into_iter().for_each(|run| self.upkeep.discard(run.path));
        if self.index.len() == 0 && self.frozen.is_none() {
            self.floor = self.noted;
            self.levels = Levels::default();
        }
    }

    /// Makes sure that the next entry of each run is known.
    fn read_heads(&mut self) -> Result<Option<Job<S>>, LogError> {
        for at in 0..self.runs.len() {
            let run = &mut self.runs[at];
            let warmed = self.upkeep.warmed;
            if let Some((position, bytes)) = run.reader.wants()
                && warmed != Some((run.number, position))
                && run.reader.file.is_cold(position, bytes)
            {
                let (number, file) = (run.number, run.reader.file.clone());
                return Ok(Some(self.read_ahead((number, position), file, bytes)));
            }
            if let Err(bad) = run.reader.head() {
                let path = run.path.clone();
                return Err(self.bad_run(&path, bad));
            }
        }
        Ok(None)
    }

    /// The message that comes due first, the bytes of its record, and where it is.
    fn least(&self) -> Option<(Due, u32, Source)> {
        let index = self.index.first_spot().map(|(due, spot)| (due, spot.bytes, Source::Index));
        let frozen = self.frozen.as_ref().and_then(Frozen::first);
        let frozen = frozen.map(|(due, spot)| (due, spot.bytes, Source::Frozen));
        let runs = self.runs.iter().enumerate().filter_map(|(at, run)| {
            let head = run.reader.known()?;
            Some((head.due, head.bytes, Source::Run(at)))
        });
        index.into_iter().chain(frozen).chain(runs).min_by_key(|(due, _, _)| *due)
    }

    /// What is stored and could not be appended beside the annex: nobody accepts such a message.
    fn too_large(&mut self, due: Due, bytes: u32, source: Source) -> LogError {
        let spot = match source {
            Source::Index => self.index.first_spot(),
            Source::Frozen => self.frozen.as_ref().and_then(Frozen::first),
            Source::Run(at) => {
                let run = &self.runs[at];
                let (path, position) = (run.path.clone(), run.reader.position);
                let what = "a delayed message is too large";
                return self.bad_run(&path, Bad::Damage { position, what });
            }
        };
        let (_, spot) = spot.expect("the caller has seen it");
        let what = format!("a delayed message is too large: {bytes} bytes");
        self.log.damaged(spot.segment, spot.position, Some(due.offset), what)
    }

    /// Appends a record to `out` and goes on behind it; or a job reads it first.
    fn take_record(
        &mut self,
        source: Source,
        out: &mut Vec<u8>,
    ) -> Result<Option<Job<S>>, LogError> {
        let spot = match source {
            Source::Run(at) => {
                return match self.runs[at].reader.take(out) {
                    Ok(()) => Ok(None),
                    Err(bad) => {
                        let path = self.runs[at].path.clone();
                        Err(self.bad_run(&path, bad))
                    }
                };
            }
            Source::Index => self.index.first_spot(),
            Source::Frozen => self.frozen.as_ref().and_then(Frozen::first),
        };
        let (due, spot) = spot.expect("the caller has seen it");
        if let Some(read) = self.read_spot(due, &spot, out)? {
            return Ok(Some(read));
        }
        match source {
            Source::Frozen => self.frozen.as_mut().expect("it is there").advance(),
            _ => drop(self.index.pop()),
        }
        Ok(None)
    }

    fn read_spot(
        &mut self,
        due: Due,
        spot: &Spot,
        out: &mut Vec<u8>,
    ) -> Result<Option<Job<S>>, LogError> {
        let (file, _) = self.log.segment_file(spot.segment)?;
        let position = Position(spot.position);
        let bytes = Bytes(u64::from(spot.bytes));
        let sealed = self.log.sealed.last().is_some_and(|sealed| sealed.number >= spot.segment);
        let key = (spot.segment.0, position);
        if sealed && self.upkeep.warmed != Some(key) && file.is_cold(position, bytes) {
            return Ok(Some(self.read_ahead(key, file, bytes)));
        }
        let before = out.len();
        out.resize(before + spot.bytes as usize, 0);
        let read = file.read_at(&mut out[before..], position);
        let whole = matches!(read, Ok(n) if n == spot.bytes as usize);
        if whole && checksum(&out[before..]) == spot.crc {
            return Ok(None);
        }
        out.truncate(before);
        let path = self.log.segment_path(spot.segment);
        read.map_err(|source| LogError::Io { doing: "reading", path, source })?;
        let what = "a delayed message fails its checksum".to_owned();
        Err(self.log.damaged(spot.segment, spot.position, Some(due.offset), what))
    }

    fn read_ahead(&self, key: (u64, Position), file: Arc<S::File>, bytes: Bytes) -> Job<S> {
        let position = key.1;
        self.job(Task::ReadAhead { key, file, position, bytes })
    }

    pub(super) fn job(&self, task: Task<S>) -> Job<S> {
        Job {
            queue: self.log.id(),
            storage: self.storage.clone(),
            work: Work::Delayed(Box::new(task)),
        }
    }

    /// Notes what is wrong with a run: from here on nothing is taken.
    pub(super) fn bad_run(&mut self, path: &Path, bad: Bad) -> LogError {
        let path = path.to_owned();
        match bad {
            Bad::Io(source) => LogError::Io { doing: "reading", path, source },
            Bad::Damage { position, what } => {
                let damage = Damage {
                    file: path,
                    position: Some(Position(position)),
                    offset: None,
                    what: what.to_owned(),
                };
                self.log.damage.get_or_insert_with(|| damage.clone());
                LogError::Corrupt(damage)
            }
        }
    }

    /// The files that entries of the index stand in.
    pub(super) fn files_of(&mut self, entries: &[(Due, Spot)]) -> Result<Vec<Hidden<S>>, LogError> {
        let mut numbers: Vec<SegmentNumber> = entries.iter().map(|(_, s)| s.segment).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut files = Vec::new();
        for number in numbers {
            let (file, _) = self.log.segment_file(number)?;
            files.push(Hidden { number, path: self.log.segment_path(number), file });
        }
        Ok(files)
    }
}

const _: () = {
    // A record, and the annex in front of it, fit one batch.
    let annex = 4 + 24 + 24 * (limits::DELAY_LEVELS_MAX + limits::DELAY_RUNS_MAX);
    assert!(annex <= limits::ANNEX_BYTES_MAX);
    assert!(limits::DELAYED_RECORD_BYTES_MAX + annex <= limits::BATCH_PAYLOAD_BYTES_MAX);
    assert!(limits::DELIVER_BYTES + annex + HEADER_BYTES <= limits::BATCH_PAYLOAD_BYTES_MAX);
};
