//! Signals that ask a tool to end: INT, TERM, HUP. They are noticed in the tool's own loop, by a
//! descriptor that becomes readable, and the tool dies by the signal once it has tidied up.
//!
//! A signal that was ignored when the tool started (by `nohup`, or in the background of a shell
//! without job control) stays ignored.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Watches for INT, TERM and HUP.
#[derive(Debug)]
pub struct Signals {
    /// Each signal that is watched, with the descriptor on which it shows.
    watched: Vec<(i32, UnixStream)>,
    /// Shows all of them.
    any: OwnedFd,
}

impl Signals {
    /// Begins to watch; from now on these signals do not end the process by themselves.
    ///
    /// # Errors
    /// What the system says.
    pub fn watch() -> io::Result<Signals> {
        let ignored = ignored_signals();
        let any = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?;
        let mut watched = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if ignored & (1 << (signal - 1)) != 0 {
                continue;
            }
            let (ours, handlers) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal, handlers)?;
            rustix::event::epoll::add(
                &any,
                &ours,
                rustix::event::epoll::EventData::new_u64(0),
                rustix::event::epoll::EventFlags::IN,
            )?;
            watched.push((signal, ours));
        }
        Ok(Signals { watched, any })
    }

    /// Takes one signal that has come; call it again for a second one.
    pub fn take(&mut self) -> Option<i32> {
        for (signal, stream) in &mut self.watched {
            let mut byte = [0u8; 1];
            if matches!(io::Read::read(stream, &mut byte), Ok(1)) {
                return Some(*signal);
            }
        }
        None
    }
}

impl AsFd for Signals {
    /// Readable once a signal has come that was not taken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.any.as_fd()
    }
}

/// The signals that are ignored, as a mask, by what the kernel tells of this process.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
