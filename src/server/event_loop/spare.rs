//! Descriptors that clients must leave: some for the files of the queues, and one that makes room
//! for a client that is told that no other is left.
//!
//! Without the one such a client could not even be accepted, and would wait for nothing; without
//! the others many clients could keep a log from its files. Used by admission alone.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::limits;

/// See the module's page.
#[derive(Debug)]
pub(super) struct Spare {
    held: Option<File>,
    /// A client was refused since one was last taken in.
    refused: bool,
    /// The number from which on descriptors are not for connections.
    first_kept: u64,
}

impl Spare {
    /// Keeps one back.
    ///
    /// # Errors
    /// There is none left already.
    pub fn open() -> io::Result<Spare> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let first_kept =
            limit.map_or(u64::MAX, |limit| limit - limits::DESCRIPTORS_FOR_FILES.min(limit / 8));
        Ok(Spare { held: Some(null()?), refused: false, first_kept })
    }

    /// Gives it up for a client. False when it is gone: a helper thread may have been faster.
    pub fn spend(&mut self) -> bool {
        self.held.take().is_some()
    }

    /// Whether the client that is being refused is the first since one was last taken in.
    pub fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.refused, true)
    }

    /// Takes one back, if there is one.
    pub fn renew(&mut self) {
        if self.held.is_none() {
            // Without one, accepting is tried again after a while.
            self.held = null().ok();
        }
    }

    /// A client has been taken in: there are descriptors again.
    pub fn taken_in(&mut self) {
        self.refused = false;
    }

    /// Whether a connection has one of the last descriptors, which are for the files of queues.
    /// The system gives the lowest number that is free, so the number tells.
    pub fn is_short(&self, socket: &impl AsRawFd) -> bool {
        u64::from(socket.as_raw_fd().unsigned_abs()) >= self.first_kept
    }
}

fn null() -> io::Result<File> {
    File::open("/dev/null")
}
