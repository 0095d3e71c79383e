//! The slow work of a log, as self-contained jobs for helper threads.
//!
//! A job owns what it needs (files are shared handles) and touches nothing of the log itself;
//! what came of it goes back through [`Log::complete`](super::Log::complete). A job never
//! retries a sync. Made by the log; run by the server's helper threads, by tests in place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit::{CommitWork, copy_commit};
use super::delayed;
use super::error::{Doing, Failure};
use super::files;
use super::journal::SyncPoint;
use super::log::GroupFile;
use super::snapshot::Covered;
use super::spare;
use super::storage::{Storage, StorageFile};
use crate::batch::{self, BatchHeader, Place, flags};
use crate::limits;
use crate::planted::{self, Bug};
use crate::settings::Settings;
use crate::units::{Bytes, Name, Position, QueueId, SegmentNumber};

/// Something to run on a helper thread.
pub struct Job<S: Storage> {
    pub(super) queue: QueueId,
    pub(super) storage: Arc<S>,
    pub(super) work: Work<S>,
}

/// What came of a [`Job`]; goes to [`Log::complete`](super::Log::complete) of the same log.
pub struct Done<S: Storage> {
    pub(super) queue: QueueId,
    pub(super) outcome: Outcome<S>,
}

/// Two handles of one file. Errors of a writeback are told to each handle once, so two syncs
/// that run at once must not share one: the second could be told that all is well.
pub(super) type Handles<S> = [Arc<<S as Storage>::File>; limits::SYNCS_PER_QUEUE_MAX];

/// A segment that was made ahead.
pub(super) struct Prepared<S: Storage> {
    pub number: SegmentNumber,
    pub files: Handles<S>,
    pub allocated: u64,
}

pub(super) struct ChainWork<S: Storage> {
    pub staging: Arc<S::File>,
    pub bytes: u64,
    /// What stands in front of the last part: the annex with its length, or nothing.
    pub annex: Vec<u8>,
    pub path: PathBuf,
    pub file: Arc<S::File>,
    pub place: Place,
    /// The header of the last part, but for what each part has of its own.
    pub header: BatchHeader,
}

pub(super) struct DropWork<S: Storage> {
    pub dir: PathBuf,
    pub journals: Vec<(PathBuf, Arc<S::File>)>,
    /// A snapshot, when the one on disk does not cover the segments.
    pub snapshot: Option<(Vec<u8>, Covered)>,
    pub dropped: Vec<u8>,
    pub segments: Vec<SegmentNumber>,
    /// What was open of them: closed with the job, on its thread, or later.
    pub files: Vec<Arc<S::File>>,
}

pub(super) enum Work<S: Storage> {
    Sync {
        flight: u64,
        files: Vec<(PathBuf, Arc<S::File>)>,
    },
    Prepare {
        dir: PathBuf,
        number: SegmentNumber,
        header: Vec<u8>,
    },
    Seal {
        path: PathBuf,
        number: SegmentNumber,
        file: Arc<S::File>,
        position: u64,
        footer: Vec<u8>,
    },
    Snapshot {
        path: PathBuf,
        bytes: Vec<u8>,
        covered: Covered,
    },
    Drop(DropWork<S>),
    Install {
        group: GroupFile,
        path: PathBuf,
        file: Arc<S::File>,
        point: SyncPoint,
    },
    SyncJournals {
        files: Vec<(PathBuf, Arc<S::File>)>,
        points: Vec<(GroupFile, SyncPoint)>,
    },
    RemoveGroup {
        path: PathBuf,
        name: Name,
    },
    Spare {
        path: PathBuf,
    },
    Settings {
        path: PathBuf,
        bytes: Vec<u8>,
        settings: Settings,
        change: u64,
    },
    Chain(ChainWork<S>),
    Commit(CommitWork<S>),
    Read {
        path: PathBuf,
        file: Arc<S::File>,
        number: SegmentNumber,
        position: u64,
        bytes: u64,
    },
    Sweep {
        dir: PathBuf,
    },
    Delayed(Box<delayed::Task<S>>),
}

pub(super) enum Outcome<S: Storage> {
    Synced { flight: u64, result: Result<(), Failure> },
    Prepared(Result<Prepared<S>, Failure>),
    Sealed { number: SegmentNumber, length: u64, result: Result<(), Failure> },
    Snapshot { covered: Covered, result: Result<(), Failure> },
    Dropped { segments: Vec<SegmentNumber>, covered: Option<Covered>, result: Result<(), Failure> },
    Installed { group: GroupFile, point: SyncPoint, result: Result<(), Failure> },
    JournalsSynced { points: Vec<(GroupFile, SyncPoint)>, result: Result<(), Failure> },
    GroupRemoved { name: Name, result: Result<(), Failure> },
    Spare(Result<(), Failure>),
    Settings { settings: Settings, change: u64, result: Result<(), Failure> },
    Chain { bytes: u64, header: BatchHeader, result: Result<(), Failure> },
    Commit { headers: Vec<BatchHeader>, annex: Vec<u8>, result: Result<(), Failure> },
    Read { number: SegmentNumber, position: u64, result: Result<(), Failure> },
    Swept(Result<(), Failure>),
    Delayed(Box<delayed::Finished<S>>),
}

impl<S: Storage> Job<S> {
    /// The queue that the job is for.
    #[must_use]
    pub fn queue(&self) -> QueueId {
        self.queue
    }

    /// What the job does, for the server's log.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match &self.work {
            Work::Sync { .. } => "sync",
            Work::Prepare { .. } => "prepare a segment",
            Work::Seal { .. } => "seal a segment",
            Work::Snapshot { .. } => "write a snapshot",
            Work::Drop(_) => "drop segments",
            Work::Install { .. } => "install an ack journal",
            Work::SyncJournals { .. } => "sync the ack journals",
            Work::RemoveGroup { .. } => "remove a group",
            Work::Spare { .. } => "keep room for an ack journal",
            Work::Settings { .. } => "write the settings",
            Work::Chain(_) => "append a large message",
            Work::Commit(_) => "append a commit",
            Work::Read { .. } => "read ahead",
            Work::Sweep { .. } => "remove files",
            Work::Delayed(task) => task.what(),
        }
    }

    /// Does it. May wait for the disk as long as the disk takes.
    #[must_use = "the log waits for this"]
    pub fn run(self) -> Done<S> {
        let storage = &*self.storage;
        let outcome = match self.work {
            Work::Sync { flight, files } => {
                Outcome::Synced { flight, result: sync_all::<S>(&files) }
            }
            Work::Prepare { dir, number, header } => {
                Outcome::Prepared(prepare(storage, &dir, number, &header))
            }
            Work::Seal { path, number, file, position, footer } => {
                let length = position + footer.len() as u64;
                let result = seal(&*file, &path, position, &footer);
                Outcome::Sealed { number, length, result }
            }
            Work::Snapshot { path, bytes, covered } => {
                let result = files::replace(storage, &path, &bytes);
                Outcome::Snapshot { covered, result }
            }
            Work::Drop(work) => {
                let result = drop_segments(storage, &work);
                let covered = work.snapshot.map(|(_, covered)| covered);
                storage.let_go(work.files);
                Outcome::Dropped { segments: work.segments, covered, result }
            }
            Work::Install { group, path, file, point } => {
                let result = install(storage, &path, &*file);
                Outcome::Installed { group, point, result }
            }
            Work::SyncJournals { files, points } => {
                Outcome::JournalsSynced { points, result: sync_all::<S>(&files) }
            }
            Work::RemoveGroup { path, name } => {
                Outcome::GroupRemoved { name, result: remove_group(storage, &path) }
            }
            Work::Spare { path } => Outcome::Spare(spare::make(storage, &path)),
            Work::Settings { path, bytes, settings, change } => {
                let result = files::replace(storage, &path, &bytes);
                Outcome::Settings { settings, change, result }
            }
            Work::Chain(work) => {
                let result = copy_chain(&work);
                let bytes = chain_bytes(work.bytes) + work.annex.len() as u64;
                Outcome::Chain { bytes, header: work.header, result }
            }
            Work::Commit(mut work) => {
                let result = copy_commit(&mut work);
                Outcome::Commit { headers: work.headers, annex: work.annex, result }
            }
            Work::Read { path, file, number, position, bytes } => {
                let result = read_ahead(&*file, &path, position, bytes);
                Outcome::Read { number, position, result }
            }
            Work::Sweep { dir } => Outcome::Swept(sweep(storage, &dir)),
            Work::Delayed(task) => Outcome::Delayed(Box::new(task.run(storage))),
        };
        Done { queue: self.queue, outcome }
    }
}

impl<S: Storage> Done<S> {
    /// The queue whose log waits for this.
    #[must_use]
    pub fn queue(&self) -> QueueId {
        self.queue
    }

    /// What failed, if anything. For the job of [`remove_queue`](super::remove_queue), which no
    /// log waits for.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        let failure = match &self.outcome {
            Outcome::Prepared(result) => result.as_ref().err(),
            Outcome::Delayed(finished) => return finished.error(),
            Outcome::Swept(result)
            | Outcome::Spare(result)
            | Outcome::Synced { result, .. }
            | Outcome::Sealed { result, .. }
            | Outcome::Snapshot { result, .. }
            | Outcome::Dropped { result, .. }
            | Outcome::Installed { result, .. }
            | Outcome::JournalsSynced { result, .. }
            | Outcome::GroupRemoved { result, .. }
            | Outcome::Settings { result, .. }
            | Outcome::Chain { result, .. }
            | Outcome::Commit { result, .. }
            | Outcome::Read { result, .. } => result.as_ref().err(),
        };
        failure.map(ToString::to_string)
    }
}

fn sync_all<S: Storage>(files: &[(PathBuf, Arc<S::File>)]) -> Result<(), Failure> {
    if planted::is(Bug::RetryAfterFailedSync) {
        files.iter().for_each(|(_, file)| drop(file.sync()));
    }
    files.iter().try_for_each(|(path, file)| file.sync().syncing(path))
}

/// Makes a segment file and its directory entry durable, before anything is in it.
pub(super) fn prepare<S: Storage>(
    storage: &S,
    dir: &Path,
    number: SegmentNumber,
    header: &[u8],
) -> Result<Prepared<S>, Failure> {
    let path = files::segment_path(dir, number);
    let file = storage.create(&path).doing("creating", &path)?;
    let allocated = limits::ALLOCATE_STEP_BYTES_MIN;
    let made = file
        .allocate(Position(0), Bytes(allocated))
        .and_then(|()| file.write_all_at(&[header], Position(0)))
        .doing("preparing", &path);
    if let Err(failure) = made {
        // Nothing is in it and nothing refers to it; the next try makes it anew. That it is gone has
        // to be durable: after an orderly stop and a loss of power it would be there again, and
        // everything that is there after an orderly stop is held to be what was written.
        storage.remove_file(&path).doing("removing", &path)?;
        storage.sync_dir(dir).syncing(dir)?;
        return Err(failure);
    }
    file.sync().syncing(&path)?;
    let second = storage.open(&path).doing("opening", &path)?;
    if !planted::is(Bug::NoDirectorySync) {
        storage.sync_dir(dir).syncing(dir)?;
    }
    Ok(Prepared { number, files: [Arc::new(file), Arc::new(second)], allocated })
}

/// Writes the footer of a segment whose batches are all durable, and gives back the space
/// reserved behind it.
pub(super) fn seal<F: StorageFile>(
    file: &F,
    path: &Path,
    position: u64,
    footer: &[u8],
) -> Result<(), Failure> {
    file.write_all_at(&[footer], Position(position)).doing("sealing", path)?;
    file.sync().syncing(path)?;
    file.truncate(Bytes(position + footer.len() as u64)).doing("cutting", path)
}

/// The order is the promise: what refers to the segments is durable, then the record that they
/// are dropped, and only then they go.
fn drop_segments<S: Storage>(storage: &S, work: &DropWork<S>) -> Result<(), Failure> {
    if !planted::is(Bug::UnlinkBeforeAcks) {
        sync_all::<S>(&work.journals)?;
    }
    if let Some((bytes, _)) = &work.snapshot {
        files::replace(storage, &work.dir.join(files::SNAPSHOT), bytes)?;
    }
    files::replace(storage, &work.dir.join(files::DROPPED), &work.dropped)?;
    for number in &work.segments {
        let path = files::segment_path(&work.dir, *number);
        match storage.remove_file(&path) {
            // An earlier try got this far.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other.doing("removing", &path)?,
        }
    }
    storage.sync_dir(&work.dir).syncing(&work.dir)
}

fn install<S: Storage>(storage: &S, path: &Path, file: &S::File) -> Result<(), Failure> {
    let temporary = files::temporary(path);
    file.sync().syncing(&temporary)?;
    storage.rename(&temporary, path).doing("renaming", &temporary)?;
    let dir = path.parent().unwrap_or(Path::new(""));
    storage.sync_dir(dir).syncing(dir)
}

fn remove_group<S: Storage>(storage: &S, path: &Path) -> Result<(), Failure> {
    for path in [path, &files::temporary(path)] {
        match storage.remove_file(path) {
            // Never installed, or an earlier try got this far.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other.doing("removing", path)?,
        }
    }
    let dir = path.parent().unwrap_or(Path::new(""));
    storage.sync_dir(dir).syncing(dir)
}

/// Bytes that a chain for a record of so many bytes takes in a segment.
pub(super) fn chain_bytes(record_bytes: u64) -> u64 {
    record_bytes + record_bytes.div_ceil(limits::CHAIN_PART_BYTES) * batch::HEADER_BYTES as u64
}

/// Copies a staged record into its segment as a chain of batches.
fn copy_chain<S: Storage>(work: &ChainWork<S>) -> Result<(), Failure> {
    let mut payload = vec![0u8; limits::CHAIN_PART_BYTES.min(work.bytes) as usize];
    let mut place = work.place;
    let mut done = 0;
    while done < work.bytes {
        let length = (work.bytes - done).min(limits::CHAIN_PART_BYTES) as usize;
        let part = &mut payload[..length];
        let read = work.staging.read_at(part, Position(done)).doing("reading", &work.path)?;
        if read < length {
            let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(short).doing("reading what was staged for", &work.path);
        }
        done += length as u64;
        let last = done == work.bytes;
        let annex: &[u8] = if last { &work.annex } else { &[] };
        let ends = if last { flags::CHAIN_END } else { 0 };
        let says = if annex.is_empty() { 0 } else { flags::ANNEX };
        let header = BatchHeader {
            payload_bytes: (annex.len() + length) as u32,
            flags: work.header.flags | flags::CHAIN | ends | says,
            count: u32::from(last),
            payload_crc: batch::checksum_of(&[annex, part]),
            ..work.header
        };
        let slices = [&header.encode(&place)[..], annex, part];
        let written = work.file.write_all_at(&slices, place.position);
        written.doing("writing", &work.path)?;
        place = place.advanced(header.length());
    }
    Ok(())
}

fn read_ahead<F: StorageFile>(
    file: &F,
    path: &Path,
    position: u64,
    bytes: u64,
) -> Result<(), Failure> {
    let mut buffer = vec![0u8; bytes.min(256 << 10) as usize];
    let mut done = 0;
    while done < bytes {
        let part = &mut buffer[..(bytes - done).min(256 << 10) as usize];
        let read = file.read_at(part, Position(position + done)).doing("reading", path)?;
        if read < part.len() {
            break;
        }
        done += read as u64;
    }
    Ok(())
}

/// Removes a directory of a queue: files, the directory of its groups, and the place of its delayed
/// messages, which is made the same way.
pub(super) fn sweep<S: Storage>(storage: &S, dir: &Path) -> Result<(), Failure> {
    for name in storage.list(dir).doing("listing", dir)? {
        let path = dir.join(&name);
        if name == files::GROUPS {
            for name in storage.list(&path).doing("listing", &path)? {
                let path = path.join(&name);
                storage.remove_file(&path).doing("removing", &path)?;
            }
            storage.remove_dir(&path).doing("removing", &path)?;
        } else if name == files::DELAYED || name == files::NEW_DELAYED {
            sweep(storage, &path)?;
        } else {
            storage.remove_file(&path).doing("removing", &path)?;
        }
    }
    storage.remove_dir(dir).doing("removing", dir)?;
    let parent = dir.parent().unwrap_or(Path::new(""));
    storage.sync_dir(parent).syncing(parent)
}
