//! Making the place for a queue's delayed messages, and opening it.
//!
//! Of the runs only headers and footers are read; of the hidden log, what is in no run. Changes
//! nothing but what opening the hidden log changes. Called by the server, making on a helper
//! thread.

use std::path::Path;
use std::sync::Arc;

use super::super::error::{Doing, Failure, LogError, corrupt};
use super::super::files;
use super::super::jobs::sweep;
use super::super::log::{Boot, Options};
use super::super::queues::fill;
use super::super::storage::{Storage, StorageFile};
use super::super::{Log, segment};
use super::index::entries_of;
use super::jobs::{run_number, run_path};
use super::manifest::Manifest;
use super::run::{self, HEADER_BYTES, Reader};
use super::store::{Delays, Run};
use crate::batch::{self, BatchHeader, Place};
use crate::planted::{self, Bug};
use crate::settings::Settings;
use crate::units::{Name, Offset, Position, QueueId, SegmentNumber, WallTime};

/// The identity of a queue's hidden log: another one, so that bytes of the one are never taken for
/// bytes of the other, and made from it, so that it cannot belong to another queue.
fn hidden_id(queue: QueueId) -> QueueId {
    let mut bytes = *queue.as_bytes();
    for (byte, mask) in bytes.iter_mut().zip(b"mq delayed queue") {
        *byte ^= mask;
    }
    QueueId::from_bytes(bytes)
}

/// Makes the place for the delayed messages of a queue; when this returns, it is durable.
///
/// # Errors
/// What the system says.
pub fn create_delays<S: Storage>(
    storage: &S,
    queue: &Name,
    id: QueueId,
    settings: &Settings,
    now: WallTime,
) -> Result<(), LogError> {
    let parent = files::queue_dir(queue);
    let temporary = parent.join(files::NEW_DELAYED);
    let made = (|| -> Result<(), Failure> {
        match storage.list(&temporary) {
            // An earlier try was broken off.
            Ok(_) => sweep(storage, &temporary)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => Err(e).doing("listing", &temporary)?,
        }
        fill(storage, &temporary, hidden_id(id), settings, now)
    })();
    if let Err(failure) = made {
        let _ = sweep(storage, &temporary);
        return Err(failure.into());
    }
    let dir = parent.join(files::DELAYED);
    storage.rename(&temporary, &dir).doing("renaming", &temporary)?;
    storage.sync_dir(&parent).syncing(&parent)?;
    Ok(())
}

impl<S: Storage> Delays<S> {
    /// Opens the delayed messages of a queue, if it has a place for them. `manifest` is the newest
    /// annex in the queue's log. May wait for the disk.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open(
        storage: Arc<S>,
        queue: &Name,
        id: QueueId,
        boot: Boot,
        options: &Options,
        manifest: Option<&[u8]>,
    ) -> Result<Option<Delays<S>>, LogError> {
        let dir = files::queue_dir(queue).join(files::DELAYED);
        let names = match storage.list(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && manifest.is_none() => {
                return Ok(None);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(corrupt(&dir, None, None, "the delayed messages are missing"));
            }
            other => other.doing("listing", &dir)?,
        };
        let manifest = match manifest.map(Manifest::decode).transpose() {
            Ok(manifest) => manifest.unwrap_or_default(),
            Err(what) => return Err(corrupt(&dir, None, None, what)),
        };
        let (log, _) = Log::open_at(storage.clone(), &dir, queue, boot, options)?;
        if log.id() != hidden_id(id) {
            return Err(corrupt(&dir, None, None, "the delayed messages are of another queue"));
        }
        if manifest.floor > log.written_end() {
            let what = format!("the delayed messages end below offset {}", manifest.floor);
            return Err(corrupt(&dir, None, Some(log.written_end()), what));
        }
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        let found: Vec<u64> = names.filter_map(|name| run_number(&name)).collect();
        let newest = found.iter().copied().chain(manifest.runs.iter().map(|run| run.number)).max();
        let Some(next_run) = newest.unwrap_or(0).checked_add(1) else {
            return Err(corrupt(&dir, None, None, "a run of delayed messages has the last number"));
        };
        let mut delays = Delays::new(storage, dir, options.clone(), log, next_run);
        delays.open_runs(&manifest)?;
        delays.floor = manifest.floor;
        delays.purged = manifest.purged;
        delays.levels = manifest.levels.clone();
        for number in found {
            if manifest.runs.iter().all(|run| run.number != number) {
                delays.discard_run(number);
            }
        }
        delays.read_hidden_log()?;
        // Segments that the manifest does not need go once it is known to be durable.
        let below = delays.log.sealed.first().is_some_and(|s| s.summary.end <= delays.floor);
        delays.dirty |= below;
        Ok(Some(delays))
    }

    fn open_runs(&mut self, manifest: &Manifest) -> Result<(), LogError> {
        for point in &manifest.runs {
            let path = run_path(&self.dir, point.number);
            let file = match self.storage.open(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(corrupt(&path, None, None, "a run of delayed messages is missing"));
                }
                other => Arc::new(other.doing("opening", &path)?),
            };
            let extent = run::open(&*file, self.log.id(), point.number, &path)?;
            let inside = point.taken <= extent.entries
                && (HEADER_BYTES..=extent.end).contains(&point.position);
            if !inside {
                let what = "more was taken of the run than it holds";
                return Err(corrupt(&path, None, None, what));
            }
            let from = (point.taken, point.position);
            let reader = Reader::new(file, self.log.id(), point.number, extent, from);
            self.runs.push(Run { number: point.number, path, extent, reader });
        }
        Ok(())
    }

    /// Notes what is in the hidden log alone and was not taken.
    fn read_hidden_log(&mut self) -> Result<(), LogError> {
        for (number, end) in self.log.segments_above(self.floor) {
            let (file, _) = self.log.segment_file(number)?;
            let path = self.log.segment_path(number);
            let queue = self.log.id();
            let (floor, levels) = (self.floor, &self.levels);
            let index = &mut self.index;
            walk(&*file, queue, number, end, &path, |header, payload, position| {
                if header.end() <= floor {
                    return;
                }
                for (due, spot) in entries_of(header, payload, number, position) {
                    let again = planted::is(Bug::DelayedTakenAgain);
                    if due.offset >= floor && (again || !levels.has_taken(due)) {
                        index.insert(due, spot);
                    }
                }
            })?;
        }
        Ok(())
    }
}

/// Reads the batches of a segment up to `end`, where they are known to stand.
fn walk<F: StorageFile>(
    file: &F,
    queue: QueueId,
    number: SegmentNumber,
    end: u64,
    path: &Path,
    mut visit: impl FnMut(&BatchHeader, &[u8], u64),
) -> Result<(), LogError> {
    let mut position = segment::HEADER_BYTES;
    let mut payload = Vec::new();
    while position < end {
        let place = Place { queue, segment: number, position: Position(position) };
        let mut head = [0u8; batch::HEADER_BYTES];
        let read = file.read_at(&mut head, place.position).doing("reading", path)?;
        let bad =
            |offset: Option<Offset>, what: String| corrupt(path, Some(position), offset, what);
        let header = BatchHeader::decode(&head[..read], &place)
            .map_err(|error| bad(None, error.to_string()))?;
        payload.resize(header.payload_bytes as usize, 0);
        let behind = position + batch::HEADER_BYTES as u64;
        let read = file.read_at(&mut payload, Position(behind)).doing("reading", path)?;
        header
            .verify(&payload[..read])
            .map_err(|error| bad(Some(header.offset), error.to_string()))?;
        visit(&header, &payload, behind);
        position += header.length();
    }
    Ok(())
}
