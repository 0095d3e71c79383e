//! Making, listing and removing the queues of a store.
//!
//! A queue is there wholly or not at all: it is made and removed by the rename of a directory.
//! Nothing here opens a log. Called by the server, at its start and for users' requests;
//! [`create_queue`] and the job of [`remove_queue`] may run on a helper thread.

use std::path::Path;
use std::sync::Arc;

use super::dropped::Dropped;
use super::error::{Doing, Failure, LogError};
use super::files;
use super::jobs::{Job, Work, sweep};
use super::meta::Meta;
use super::producers::Producers;
use super::segment::{HEADER_BYTES, SegmentHeader};
use super::snapshot::{self, Counters, Covered};
use super::spare;
use super::storage::{Storage, StorageFile};
use crate::settings::Settings;
use crate::units::{Name, Offset, Position, QueueId, SegmentNumber, WallTime};

/// Makes a queue; when this returns, it is durable.
///
/// # Errors
/// [`LogError::Exists`]; what the system says.
pub fn create_queue<S: Storage>(
    storage: &S,
    name: &Name,
    id: QueueId,
    settings: &Settings,
    now: WallTime,
) -> Result<(), LogError> {
    ensure_queues(storage)?;
    if list_queues(storage)?.contains(name) {
        return Err(LogError::Exists(name.clone()));
    }
    // Open before there is something to be synced: what is short then must not be in the way.
    let queues = Path::new(files::QUEUES);
    let named = storage.open_dir(queues).doing("opening", queues)?;
    let temporary = queues.join(format!("{}{id}", files::NEW));
    let made = fill(storage, &temporary, id, settings, now);
    if let Err(failure) = made {
        // What is left would be removed at the next start; the space may be wanted now.
        let _ = sweep(storage, &temporary);
        return Err(failure.into());
    }
    let dir = files::queue_dir(name);
    storage.rename(&temporary, &dir).doing("renaming", &temporary)?;
    named().syncing(queues).inspect_err(|_| {
        // It was not made, so it must not be found by the next that makes it. Which of its names the disk
        // has, nobody knows: its files stay until a start has made them durable.
        let _ = storage.rename(&dir, &temporary);
    })?;
    Ok(())
}

/// After an unclean stop: the names of the queues that are found become durable. The making of one may
/// have been cut off before that, and from now on messages in it are confirmed.
///
/// # Errors
/// What the system says.
pub fn settle_queues<S: Storage>(storage: &S) -> Result<(), LogError> {
    let queues = Path::new(files::QUEUES);
    match storage.sync_dir(queues) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => Ok(other.syncing(queues)?),
    }
}

/// The directory of all queues is made once, with the store's first queue.
fn ensure_queues<S: Storage>(storage: &S) -> Result<(), Failure> {
    let queues = Path::new(files::QUEUES);
    match storage.create_dir(queues) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.doing("creating", queues)?,
    }
    storage.sync_dir(Path::new("")).syncing(Path::new(""))
}

/// Makes the directory of a log with all that a new one has.
pub(super) fn fill<S: Storage>(
    storage: &S,
    dir: &Path,
    id: QueueId,
    settings: &Settings,
    now: WallTime,
) -> Result<(), Failure> {
    storage.create_dir(dir).doing("creating", dir)?;
    let groups = dir.join(files::GROUPS);
    storage.create_dir(&groups).doing("creating", &groups)?;
    let first = SegmentNumber(1);
    let header = SegmentHeader { bound: Offset(0), created: now };
    let covered = Covered { offset: Offset(0), segment: first, position: HEADER_BYTES };
    let contents = [
        (dir.join(files::META), Meta::new(id, now, settings.clone()).encode()),
        (dir.join(files::DROPPED), Dropped::default().encode(id)),
        (
            dir.join(files::SNAPSHOT),
            snapshot::encode(id, covered, (&Counters::default(), &[]), &Producers::default(), None),
        ),
        (files::segment_path(dir, first), header.encode(id, first).to_vec()),
    ];
    for (path, bytes) in contents {
        let file = storage.create(&path).doing("creating", &path)?;
        file.write_all_at(&[&bytes], Position(0)).doing("writing", &path)?;
        file.sync().syncing(&path)?;
    }
    spare::make(storage, &spare::path(dir))?;
    storage.sync_dir(&groups).syncing(&groups)?;
    storage.sync_dir(dir).syncing(dir)
}

fn entries<S: Storage>(storage: &S) -> Result<Vec<String>, Failure> {
    let queues = Path::new(files::QUEUES);
    match storage.list(queues) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => {
            let names = other.doing("listing", queues)?;
            Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
        }
    }
}

/// The queues of the store, in order of their names.
///
/// # Errors
/// What the system says.
pub fn list_queues<S: Storage>(storage: &S) -> Result<Vec<Name>, LogError> {
    let mut names: Vec<Name> =
        entries(storage)?.iter().filter_map(|name| Name::new(name).ok()).collect();
    names.sort_unstable();
    Ok(names)
}

/// Removes a queue; when this returns, it is gone for good. The job gives back its space.
///
/// # Errors
/// [`LogError::NoQueue`]; what the system says.
pub fn remove_queue<S: Storage>(
    storage: &Arc<S>,
    name: &Name,
    id: QueueId,
) -> Result<Job<S>, LogError> {
    let dir = files::queue_dir(name);
    let queues = Path::new(files::QUEUES);
    let removed = queues.join(format!("{}{id}", files::REMOVED));
    let named = storage.open_dir(queues).doing("opening", queues)?;
    match storage.rename(&dir, &removed) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(LogError::NoQueue(name.clone()));
        }
        other => other.doing("renaming", &dir)?,
    }
    named().syncing(queues)?;
    Ok(Job { queue: id, storage: storage.clone(), work: Work::Sweep { dir: removed } })
}

/// Removes what a crash left of queues that were being made or removed; called at a start,
/// before anything else.
///
/// # Errors
/// What the system says.
pub fn sweep_removed<S: Storage>(storage: &S) -> Result<(), LogError> {
    for name in entries(storage)? {
        if name.starts_with(files::NEW) || name.starts_with(files::REMOVED) {
            sweep(storage, &Path::new(files::QUEUES).join(name))?;
        }
    }
    Ok(())
}
