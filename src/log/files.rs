//! Where a queue's files are, how a small file is read whole and replaced, and how fields lie
//! in bytes.
//!
//! Knows names, not contents. Called by every part of the log.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{Doing, Failure, LogError, corrupt};
use super::segment::FORMAT_VERSION;
use super::storage::{Storage, StorageFile};
use crate::planted::{self, Bug};
use crate::units::{Name, Position, QueueId, SegmentNumber};

/// The directory of all queues.
pub(super) const QUEUES: &str = "queues";
/// The metadata of a queue.
pub(super) const META: &str = "queue.json";
/// Which segments were dropped.
pub(super) const DROPPED: &str = "dropped";
/// What is known beside the messages: producers, ids, keys.
pub(super) const SNAPSHOT: &str = "snapshot";
/// The directory of the ack journals.
pub(super) const GROUPS: &str = "groups";
/// The file kept in reserve for a journal, among the journals.
pub(super) const SPARE: &str = "spare";
/// What a file is called until it is complete.
pub(super) const TEMPORARY: &str = ".tmp";
/// What the file of a large message is called, between its creation and its unlinking.
pub(super) const STAGING: &str = "staging-";
/// The directory of a queue's delayed messages.
pub(super) const DELAYED: &str = "delayed";
/// The same, while it is being made.
pub(super) const NEW_DELAYED: &str = ".new-delayed";
/// What a cut tail is kept as.
pub(super) const TORN: &str = "torn-";
/// A directory of a queue that is being made.
pub(super) const NEW: &str = ".new-";
/// A directory of a queue that was removed.
pub(super) const REMOVED: &str = ".removed-";

const SEGMENT_SUFFIX: &str = ".seg";
const JOURNAL_SUFFIX: &str = ".acks";

/// The directory of a queue.
pub(super) fn queue_dir(name: &Name) -> PathBuf {
    Path::new(QUEUES).join(name.as_str())
}

/// The file of a segment.
pub(super) fn segment_path(dir: &Path, number: SegmentNumber) -> PathBuf {
    dir.join(format!("{:016}{SEGMENT_SUFFIX}", number.0))
}

/// The number in the name of a segment file.
pub(super) fn segment_number(name: &str) -> Option<SegmentNumber> {
    let digits = name.strip_suffix(SEGMENT_SUFFIX)?;
    let plain = digits.len() >= 16 && digits.bytes().all(|b| b.is_ascii_digit());
    let number = plain.then(|| digits.parse().ok()).flatten()?;
    (number > 0).then_some(SegmentNumber(number))
}

/// The file of a group's ack journal.
pub(super) fn journal_path(dir: &Path, group: &Name) -> PathBuf {
    dir.join(GROUPS).join(format!("{group}{JOURNAL_SUFFIX}"))
}

/// The group in the name of a journal file.
pub(super) fn journal_group(name: &str) -> Option<Name> {
    Name::new(name.strip_suffix(JOURNAL_SUFFIX)?).ok()
}

/// What the file at `path` is called until it is complete.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    PathBuf::from(name)
}

/// Reads a whole file of at most `bytes_max` bytes.
pub(super) fn read_whole<S: Storage>(
    storage: &S,
    path: &Path,
    bytes_max: u64,
) -> io::Result<Vec<u8>> {
    let file = storage.open(path)?;
    let length = file.len()?.0;
    if length > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too long"));
    }
    let mut bytes = vec![0; length as usize];
    let read = file.read_at(&mut bytes, Position(0))?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Creates the file at `path` anew, whatever stood there under this (temporary) name.
pub(super) fn create_anew<S: Storage>(storage: &S, path: &Path) -> io::Result<S::File> {
    match storage.create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            storage.remove_file(path)?;
            storage.create(path)
        }
        other => other,
    }
}

/// Replaces the file at `path` so that at any moment the old or the new one is there, whole:
/// write a temporary one, sync it, rename it, sync the directory.
pub(super) fn replace<S: Storage>(storage: &S, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let temporary = temporary(path);
    let file = create_anew(storage, &temporary).doing("creating", &temporary)?;
    let written = file.write_all_at(&[bytes], Position(0)).doing("writing", &temporary);
    if written.is_err() {
        // The name would be cleaned up at the next start; the space is wanted now.
        let _ = storage.remove_file(&temporary);
        return written;
    }
    if !planted::is(Bug::RenamedBeforeSync) {
        file.sync().syncing(&temporary)?;
    }
    storage.rename(&temporary, path).doing("renaming", &temporary)?;
    let dir = path.parent().unwrap_or(Path::new(""));
    storage.sync_dir(dir).syncing(dir)
}

/// A CRC-32 that is bound to a queue, a file's number and a position in it, so that misplaced,
/// stale or planted bytes fail.
pub(super) fn seeded_crc(queue: QueueId, number: u64, position: u64, bytes: &[u8]) -> u32 {
    let mut seed = [0u8; 32];
    seed[..16].copy_from_slice(queue.as_bytes());
    seed[16..24].copy_from_slice(&number.to_le_bytes());
    seed[24..].copy_from_slice(&position.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// How a file that is replaced whole is made: a header that begins with a magic, the format
/// version and the number of entries, entries of one size, and the seeded CRC-32 of all that.
pub(super) struct Table<'a> {
    pub magic: &'a [u8; 8],
    pub header_bytes: usize,
    pub entry_bytes: usize,
    /// What is said of bytes that do not even begin like one.
    pub is_none: &'a str,
}

impl Table<'_> {
    /// Checks the bytes; gives what stands in front of the checksum, and the entries.
    ///
    /// # Errors
    /// [`LogError::Corrupt`], [`LogError::Newer`].
    pub fn open<'b>(
        &self,
        bytes: &'b [u8],
        queue: QueueId,
        path: &Path,
    ) -> Result<(&'b [u8], std::slice::ChunksExact<'b, u8>), LogError> {
        let bad = |what: &str| corrupt(path, None, None, what);
        if bytes.len() < self.header_bytes + 4 || &bytes[..8] != self.magic {
            return Err(bad(self.is_none));
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if u32_at(crc, 0) != seeded_crc(queue, 0, 0, body) {
            return Err(bad("fails its checksum"));
        }
        let version = u32_at(body, 8);
        if version > FORMAT_VERSION {
            let path = path.to_owned();
            return Err(LogError::Newer { path, found: version, known: FORMAT_VERSION });
        }
        let entries = body[self.header_bytes..].chunks_exact(self.entry_bytes);
        if entries.len() != u32_at(body, 12) as usize || !entries.remainder().is_empty() {
            return Err(bad("has an impossible length"));
        }
        Ok((body, entries))
    }
}

/// Four bytes as a number; the caller has checked the length.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Eight bytes as a number; the caller has checked the length.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Puts a number at `at`.
pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Puts a number at `at`.
pub(super) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
