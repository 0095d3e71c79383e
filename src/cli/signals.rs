//! Signals that ask a tool to end: INT, TERM, HUP. They are noticed in the tool's own loop, by a
//! descriptor that becomes readable, and the tool dies by the signal once it has tidied up.
//!
//! A signal that was ignored when the tool started (by `nohup`, or in the background of a shell
//! without job control) stays ignored.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::client::dispositions;

/// Watches for INT, TERM and HUP.
#[derive(Debug)]
pub struct Signals {
    /// A byte for each signal that came.
    came: UnixStream,
    /// Kept, so that the stream does not end when nothing is watched.
    _handlers: UnixStream,
    /// The last one.
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Begins to watch; from now on these signals do not end the process by themselves.
    ///
    /// # Errors
    /// What the system says.
    pub fn watch() -> io::Result<Signals> {
        let last = Arc::new(AtomicUsize::new(0));
        let (came, handlers) = UnixStream::pair()?;
        came.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if !dispositions::is_ignored(signal) {
                // In this order, so that which one it was is known when the byte is there.
                signal_hook::flag::register_usize(signal, last.clone(), signal as usize)?;
                signal_hook::low_level::pipe::register(signal, handlers.try_clone()?)?;
            }
        }
        Ok(Signals { came, _handlers: handlers, last })
    }

    /// Takes one signal that has come; call it again for a second one. Of two that came before
    /// the first was taken, the second's number counts for both.
    pub fn take(&mut self) -> Option<i32> {
        let mut byte = [0u8; 1];
        match self.came.read(&mut byte) {
            Ok(1) => i32::try_from(self.last.load(Ordering::SeqCst)).ok(),
            _ => None,
        }
    }
}

impl AsFd for Signals {
    /// Readable once a signal has come that was not taken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.came.as_fd()
    }
}
