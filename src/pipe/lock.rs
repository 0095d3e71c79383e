//! A lock on a file or a directory, by which one `mq-pipe` at a time works on it.
//!
//! Whoever had it may only just have been ended, or be about to end because it was fenced off: so it
//! is waited for, for a while. Used by [`file`](super::file) and [`state`](super::state).

use std::fs::File;
use std::io;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::client::wait::Patience;

/// How often a lock that another has is tried: nothing tells when it is free.
const PAUSE: Duration = Duration::from_millis(10);

/// What came of locking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked<L> {
    /// It lasts as long as this lives.
    Taken(L),
    /// Another still has it.
    Busy,
    /// A signal came.
    Interrupted,
}

/// Takes the lock, as soon as nobody else has it.
///
/// # Errors
/// What the system says.
pub fn take(file: File, patience: Patience<'_>) -> io::Result<Locked<File>> {
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Locked::Taken(file)),
            Err(Errno::WOULDBLOCK) if patience.is_over() => return Ok(Locked::Busy),
            Err(Errno::WOULDBLOCK) => {
                if patience.sleep(PAUSE).is_err() {
                    return Ok(Locked::Interrupted);
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
