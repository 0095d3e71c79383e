//! What can go wrong in a log, said so that a user can act on it.
//!
//! Nothing here decides what to do about it. Made by every part of the log; read by the server
//! and by `mq-admin`.

use std::io;
use std::path::{Path, PathBuf};

use crate::units::{Bytes, Name, Offset, Position};

/// Bytes on the disk that are not what was written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, relative to the store.
    pub file: PathBuf,
    /// Where in the file, if that can be said.
    pub position: Option<Position>,
    /// The message concerned, if that can be said.
    pub offset: Option<Offset>,
    /// What is wrong, as part of a sentence.
    pub what: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(position) = self.position {
            write!(f, " at byte {position}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " (offset {offset})")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Why a log cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The system refused something.
    #[error("{doing} {}: {source}", shown(path))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// On which file, relative to the store.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes that were durable are not what was written. Nothing was deleted.
    #[error("the queue is damaged: {0}; nothing was deleted, see mq-admin check")]
    Corrupt(Damage),
    /// The queue's metadata is missing or damaged. Nothing was deleted.
    #[error(
        "the queue's metadata {} {what}; nothing was deleted, restore the file from a copy",
        path.display()
    )]
    Metadata {
        /// The file, relative to the store.
        path: PathBuf,
        /// What is wrong with it, as part of a sentence.
        what: String,
    },
    /// A newer mq wrote this.
    #[error("{} has format {found}, this mq reads up to {known}; use a newer mq", path.display())]
    Newer {
        /// The file, relative to the store.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest that this program reads.
        known: u32,
    },
    /// A queue of this name is there already.
    #[error("queue {0} exists already")]
    Exists(Name),
    /// No such queue.
    #[error("there is no queue {0}")]
    NoQueue(Name),
    /// The message's segment was dropped, or the offset was never given to a message.
    #[error("offset {0} is not in the log any more")]
    Gone(Offset),
}

/// What is being done when a sync fails.
const SYNCING: &str = "syncing";

impl LogError {
    /// Whether a sync failed, after which nothing may be trusted. A directory that could not even be
    /// opened to be synced is no such thing.
    #[must_use]
    pub fn is_of_sync(&self) -> bool {
        matches!(self, LogError::Io { doing: SYNCING, .. }) && !self.is_for_want_of_descriptors()
    }

    /// Whether this process, or the system, had too many open files.
    #[must_use]
    pub fn is_for_want_of_descriptors(&self) -> bool {
        let LogError::Io { source, .. } = self else { return false };
        let short = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
        rustix::io::Errno::from_io_error(source).is_some_and(|errno| short.contains(&errno))
    }
}

/// Why nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// A job has to end first; try again after the next [`complete`](super::Log::complete).
    #[error("the log is not ready for this append yet")]
    NotYet,
    /// No room. Nothing of the batch is visible; the next append tries anew.
    #[error("no room: {available} bytes are free and {reserve} are kept in reserve ({reason})")]
    Full {
        /// Free bytes as last seen.
        available: Bytes,
        /// Bytes that mq leaves free.
        reserve: Bytes,
        /// What the system said, or that the reserve would be touched.
        reason: String,
    },
    /// The queue remembers as many named producers as it can, and forgets none.
    #[error(
        "the queue knows its limit of {} named producers",
        crate::limits::NAMED_PRODUCERS_PER_QUEUE_MAX
    )]
    TooManyProducers,
    /// The log stopped accepting writes for good, because of this.
    #[error("the log stopped accepting writes: {0}")]
    Failed(String),
}

/// Whether the error says that there is no room: an answer, not an accident.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// What failed on the disk, and whether it was a sync, after which nothing may be trusted.
#[derive(Debug)]
pub(super) struct Failure {
    pub doing: &'static str,
    pub path: PathBuf,
    pub error: io::Error,
    pub sync: bool,
}

impl Failure {
    /// Whether trying again later makes sense.
    pub fn is_full(&self) -> bool {
        !self.sync && is_full(&self.error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.doing, shown(&self.path), self.error)
    }
}

/// A path as users are told of it: relative to the store, which itself has an empty one.
fn shown(path: &Path) -> std::path::Display<'_> {
    if path.as_os_str().is_empty() { Path::new("the store").display() } else { path.display() }
}

impl From<Failure> for LogError {
    fn from(failure: Failure) -> LogError {
        LogError::Io { doing: failure.doing, path: failure.path, source: failure.error }
    }
}

/// Says what was being done when the system refused.
pub(super) trait Doing<T> {
    /// For anything but a sync.
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, Failure>;
    /// For a sync of a file or directory.
    fn syncing(self, path: &Path) -> Result<T, Failure>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, Failure> {
        self.map_err(|error| Failure { doing, path: path.to_owned(), error, sync: false })
    }

    fn syncing(self, path: &Path) -> Result<T, Failure> {
        self.map_err(|error| Failure { doing: SYNCING, path: path.to_owned(), error, sync: true })
    }
}

/// A [`LogError::Corrupt`].
pub(super) fn corrupt(
    file: &Path,
    position: Option<u64>,
    offset: Option<Offset>,
    what: impl Into<String>,
) -> LogError {
    LogError::Corrupt(Damage {
        file: file.to_owned(),
        position: position.map(Position),
        offset,
        what: what.into(),
    })
}
