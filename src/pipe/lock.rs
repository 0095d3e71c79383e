//! A lock on a file or a directory, by which one `mq-pipe` at a time works on it.
//!
//! Whoever had it may only just have been ended, or be about to end because it was fenced off: so it
//! is waited for, for a while. Used by [`file`](super::file) and [`state`](super::state).

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How often a lock that another has is tried: nothing tells when it is free.
const PAUSE: Duration = Duration::from_millis(10);

/// Takes the lock, which lasts as long as the file is open; false if another still has it after
/// `patience`.
///
/// # Errors
/// What the system says.
pub fn take(file: &File, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
