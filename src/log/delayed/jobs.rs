//! What helper threads do for delayed messages: write a run, merge runs, remove them, read ahead.
//!
//! A job owns what it needs and touches nothing of the store. A run gets its name only when it is
//! whole and synced; one that could not be finished is removed. Made by the store; run through
//! the log's [`Job`](super::super::Job).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::error::{Damage, Doing, Failure};
use super::super::files;
use super::super::log::Options;
use super::super::staging::check_space;
use super::super::storage::{Storage, StorageFile};
use super::Due;
use super::index::Spot;
use super::run::{
    Bad, Extent, HEADER_BYTES, Head, Reader, encode_entry, encode_footer, encode_header,
};
use crate::batch::checksum;
use crate::units::{Bytes, Position, QueueId, SegmentNumber, WallTime};

/// A run that is to be written.
pub(in crate::log) struct Target {
    pub dir: PathBuf,
    pub queue: QueueId,
    pub number: u64,
    pub options: Options,
}

/// A segment of the hidden log.
pub(in crate::log) struct Hidden<S: Storage> {
    pub number: SegmentNumber,
    pub path: PathBuf,
    pub file: Arc<S::File>,
}

/// A run that is merged, from where it is taken when the merge begins.
pub(in crate::log) struct Input<S: Storage> {
    pub number: u64,
    pub path: PathBuf,
    pub file: Arc<S::File>,
    pub extent: Extent,
    /// Entries taken, and where the next one stands.
    pub from: (u64, u64),
}

/// See the module's page.
pub(in crate::log) enum Task<S: Storage> {
    Flush { target: Target, entries: Arc<Vec<(Due, Spot)>>, files: Vec<Hidden<S>> },
    Merge { target: Target, inputs: Vec<Input<S>> },
    Remove { dir: PathBuf, paths: Vec<PathBuf> },
    ReadAhead { key: (u64, Position), file: Arc<S::File>, position: Position, bytes: Bytes },
}

/// A run that stands, durably.
pub(in crate::log) struct Made<S: Storage> {
    pub number: u64,
    pub path: PathBuf,
    pub file: Arc<S::File>,
    pub extent: Extent,
    /// Here and there, how many entries stand in front of a position: for whoever begins in the
    /// middle.
    pub waypoints: Vec<(u64, u64)>,
}

/// Why a run could not be written.
pub(in crate::log) enum Stopped {
    Failed(Failure),
    Damaged(Damage),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Stopped {
        Stopped::Failed(failure)
    }
}

/// What came of a task.
pub(in crate::log) enum Finished<S: Storage> {
    Flushed(Result<Made<S>, Stopped>),
    Merged(Result<Made<S>, Stopped>),
    Removed { paths: Vec<PathBuf>, result: Result<(), Failure> },
    Read { key: (u64, Position) },
}

impl<S: Storage> Task<S> {
    pub fn what(&self) -> &'static str {
        match self {
            Task::Flush { .. } => "write a run of delayed messages",
            Task::Merge { .. } => "merge runs of delayed messages",
            Task::Remove { .. } => "remove runs of delayed messages",
            Task::ReadAhead { .. } => "read delayed messages ahead",
        }
    }

    pub fn run(self, storage: &S) -> Finished<S> {
        match self {
            Task::Flush { target, entries, files } => {
                Finished::Flushed(made(storage, &target, |writer| {
                    flush::<S>(writer, &entries, &files)
                }))
            }
            Task::Merge { target, inputs } => {
                Finished::Merged(made(storage, &target, |writer| merge(writer, inputs)))
            }
            Task::Remove { dir, paths } => {
                let result = remove(storage, &dir, &paths);
                Finished::Removed { paths, result }
            }
            Task::ReadAhead { key, file, position, bytes } => {
                // What cannot be read now shows the same error to whoever takes from it.
                let mut buffer = vec![0u8; bytes.0 as usize];
                let _ = file.read_at(&mut buffer, position);
                Finished::Read { key }
            }
        }
    }
}

impl<S: Storage> Finished<S> {
    pub fn error(&self) -> Option<String> {
        match self {
            Finished::Flushed(Err(stopped)) | Finished::Merged(Err(stopped)) => {
                Some(match stopped {
                    Stopped::Failed(failure) => failure.to_string(),
                    Stopped::Damaged(damage) => damage.to_string(),
                })
            }
            Finished::Removed { result, .. } => result.as_ref().err().map(ToString::to_string),
            _ => None,
        }
    }
}

/// The file of a run.
pub(super) fn run_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{RUN}{number:016}"))
}

/// The number in the name of a run's file.
pub(super) fn run_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(RUN)?;
    let plain = digits.len() >= 16 && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

const RUN: &str = "run-";
/// Bytes that are written at once.
const WRITE_BYTES: usize = 256 << 10;
/// Distance between two waypoints.
const WAYPOINT_BYTES: u64 = 256 << 10;

/// A run that is being written.
struct Writer<'a, S: Storage> {
    storage: &'a S,
    target: &'a Target,
    path: PathBuf,
    file: S::File,
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    start: u64,
    entries: u64,
    first: Option<WallTime>,
    last: Due,
    waypoints: Vec<(u64, u64)>,
}

impl<S: Storage> Writer<'_, S> {
    fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Adds an entry; `record` appends its bytes to the buffer.
    fn push(
        &mut self,
        head: &Head,
        record: impl FnOnce(&mut Vec<u8>) -> Result<(), Stopped>,
    ) -> Result<(), Stopped> {
        let position = self.position();
        let behind = self.waypoints.last().map_or(HEADER_BYTES, |(_, at)| *at);
        if position - behind >= WAYPOINT_BYTES {
            self.waypoints.push((self.entries, position));
        }
        let entry = encode_entry(self.target.queue, self.target.number, position, head);
        self.buffer.extend_from_slice(&entry);
        record(&mut self.buffer)?;
        self.entries += 1;
        self.first.get_or_insert(head.due.at);
        self.last = head.due;
        if self.buffer.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), Stopped> {
        if let Err(full) = check_space(self.storage, &self.target.options, WRITE_BYTES as u64) {
            let error = std::io::Error::new(std::io::ErrorKind::StorageFull, full.to_string());
            return Err(Err::<(), _>(error).doing("writing", &self.path).unwrap_err().into());
        }
        let written = self.file.write_all_at(&[&self.buffer], Position(self.start));
        written.doing("writing", &self.path)?;
        self.start = self.position();
        self.buffer.clear();
        Ok(())
    }

    fn finish(&mut self) -> Result<Extent, Stopped> {
        let extent = Extent { entries: self.entries, end: self.position() };
        let (first, last) = (self.first.unwrap_or_default(), self.last.at);
        let footer = encode_footer(self.target.queue, self.target.number, extent, first, last);
        self.buffer.extend_from_slice(&footer);
        self.write()?;
        self.file.sync().syncing(&self.path)?;
        Ok(extent)
    }
}

/// Writes a run: temporary name, sync, final name, sync of the directory.
fn made<S: Storage>(
    storage: &S,
    target: &Target,
    fill: impl FnOnce(&mut Writer<'_, S>) -> Result<(), Stopped>,
) -> Result<Made<S>, Stopped> {
    let path = run_path(&target.dir, target.number);
    let temporary = files::temporary(&path);
    let file = files::create_anew(storage, &temporary).doing("creating", &temporary)?;
    let mut writer = Writer {
        storage,
        target,
        path: temporary.clone(),
        file,
        buffer: encode_header(target.queue, target.number).to_vec(),
        start: 0,
        entries: 0,
        first: None,
        last: Due::default(),
        waypoints: Vec::new(),
    };
    let filled = fill(&mut writer).and_then(|()| writer.finish());
    let extent = match filled {
        Ok(extent) => extent,
        Err(stopped) => {
            // The name would be cleaned up at the next start; the space is wanted now.
            let _ = storage.remove_file(&temporary);
            return Err(stopped);
        }
    };
    storage.rename(&temporary, &path).doing("renaming", &temporary)?;
    storage.sync_dir(&target.dir).syncing(&target.dir)?;
    let (file, waypoints) = (Arc::new(writer.file), writer.waypoints);
    Ok(Made { number: target.number, path, file, extent, waypoints })
}

/// Writes records of the hidden log in the order in which they come due.
fn flush<S: Storage>(
    writer: &mut Writer<'_, S>,
    entries: &[(Due, Spot)],
    files: &[Hidden<S>],
) -> Result<(), Stopped> {
    for (due, spot) in entries {
        let at = files.binary_search_by_key(&spot.segment, |segment| segment.number);
        let Hidden { path, file, .. } = &files[at.expect("the store gave each file")];
        let head = Head { due: *due, bytes: spot.bytes, crc: spot.crc };
        writer.push(&head, |out| {
            let before = out.len();
            out.resize(before + spot.bytes as usize, 0);
            let read = file.read_at(&mut out[before..], Position(spot.position));
            let read = read.doing("reading", path)?;
            if read == spot.bytes as usize && checksum(&out[before..]) == spot.crc {
                return Ok(());
            }
            Err(Stopped::Damaged(Damage {
                file: path.clone(),
                position: Some(Position(spot.position)),
                offset: Some(due.offset),
                what: "a delayed message fails its checksum".to_owned(),
            }))
        })?;
    }
    Ok(())
}

/// Writes what is left of several runs as one.
fn merge<S: Storage>(writer: &mut Writer<'_, S>, inputs: Vec<Input<S>>) -> Result<(), Stopped> {
    let queue = writer.target.queue;
    let mut readers: Vec<(PathBuf, Reader<S::File>)> = inputs
        .into_iter()
        .map(|i| (i.path, Reader::new(i.file, queue, i.number, i.extent, i.from)))
        .collect();
    loop {
        let mut least: Option<(Head, usize)> = None;
        for (at, (path, reader)) in readers.iter_mut().enumerate() {
            let Some(head) = reader.head().map_err(|bad| stopped(path, bad))? else { continue };
            if least.is_none_or(|(best, _)| head.due < best.due) {
                least = Some((head, at));
            }
        }
        let Some((head, at)) = least else { return Ok(()) };
        let (path, reader) = &mut readers[at];
        writer.push(&head, |out| reader.take(out).map_err(|bad| stopped(path, bad)))?;
    }
}

fn stopped(path: &Path, bad: Bad) -> Stopped {
    match bad {
        Bad::Io(error) => Err::<(), _>(error).doing("reading", path).unwrap_err().into(),
        Bad::Damage { position, what } => Stopped::Damaged(Damage {
            file: path.to_owned(),
            position: Some(Position(position)),
            offset: None,
            what: what.to_owned(),
        }),
    }
}

fn remove<S: Storage>(storage: &S, dir: &Path, paths: &[PathBuf]) -> Result<(), Failure> {
    for path in paths {
        match storage.remove_file(path) {
            // An earlier try got this far.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other.doing("removing", path)?,
        }
    }
    storage.sync_dir(dir).syncing(dir)
}
