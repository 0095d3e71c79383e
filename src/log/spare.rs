//! A file kept in reserve for an ack journal, so that the first receiver of a queue is served on
//! a disk that is completely full, and a journal that used up its own reserve can be written anew.
//!
//! It is empty and has room reserved. A journal that finds no other room is written into it, under
//! the journal's temporary name. Nothing refers to it and it is not synced: one that a crash took
//! is made anew, when there is room. One that is not empty is a journal whose old name a crash
//! brought back, and only that name is removed.
//!
//! Made with the queue, and by a job once it is missing; taken by the journal.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{Doing, Failure};
use super::files;
use super::storage::{Storage, StorageFile};
use crate::limits;
use crate::units::{Bytes, Position};

/// What is known of a queue's spare file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spare {
    /// A job may make it.
    Missing,
    /// A job makes it.
    Making,
    /// There was no room: not tried before some was given back.
    Refused,
    /// A journal may take it.
    Ready,
}

impl Spare {
    /// Some room may have been given back.
    pub fn try_again(&mut self) {
        if *self == Spare::Refused {
            *self = Spare::Missing;
        }
    }
}

/// Where the spare file of a queue is.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(files::GROUPS).join(files::SPARE)
}

/// Makes it. Where there is no room, nothing is left behind.
pub(super) fn make<S: Storage>(storage: &S, path: &Path) -> Result<(), Failure> {
    let file = files::create_anew(storage, path).doing("creating", path)?;
    let room = Bytes(limits::JOURNAL_ALLOCATE_BYTES_MIN);
    let reserved = file.allocate(Position(0), room).doing("reserving room for", path);
    if reserved.is_err() {
        storage.remove_file(path).doing("removing", path)?;
    }
    reserved
}

/// Whether the file at `path` is one: in a journal there is something.
pub(super) fn is_one<S: Storage>(storage: &S, path: &Path) -> io::Result<bool> {
    storage.open(path)?.is_empty()
}

/// Reserves room in one that may have lost it: the room was never synced.
pub(super) fn renew<S: Storage>(storage: &S, path: &Path) {
    let room = Bytes(limits::JOURNAL_ALLOCATE_BYTES_MIN);
    // Without it a full disk is an answer to whoever needs the room, as it was before.
    let _ = storage.open(path).and_then(|file| file.allocate(Position(0), room));
}

/// Takes the spare file of the journal's directory for a journal of so many bytes, under the
/// journal's temporary name; gives the file and the room in it.
pub(super) fn take<S: Storage>(
    storage: &S,
    temporary: &Path,
    bytes: u64,
) -> io::Result<(S::File, u64)> {
    let dir = temporary.parent().unwrap_or(Path::new(""));
    storage.rename(&dir.join(files::SPARE), temporary)?;
    let file = storage.open(temporary)?;
    let step = limits::JOURNAL_ALLOCATE_BYTES_MIN;
    let allocated = bytes.next_multiple_of(step);
    // Asks for nothing new unless the journal is larger than the spare file. If that is refused,
    // the write itself says whether there is room.
    let _ = file.allocate(Position(0), Bytes(allocated));
    Ok((file, allocated))
}
