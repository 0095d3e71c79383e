//! The outlet: where delivered bytes go, and how far its reader has *taken* them, which is what
//! an acknowledgement rests on (promise G7).
//!
//! | stdout is      | taken means                                                        |
//! |----------------|--------------------------------------------------------------------|
//! | a pipe         | read out of it: written minus what FIONREAD says is still unread   |
//! | a regular file | written and synced                                                 |
//! | anything else  | written (a terminal, a device, a socket)                           |
//!
//! Counts bytes since the start and knows nothing of messages: the [ledger](super::ledger) maps
//! the one to the other. Never blocks on a slow reader, and never sets `O_NONBLOCK` on a
//! descriptor that other processes share. The receiver calls it.

mod file;
mod pipe;

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use file::RegularFile;
use pipe::Pipe;

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// So many bytes were written; more may fit.
    Bytes(usize),
    /// Nothing fits at the moment.
    Full,
    /// The reader is gone.
    Gone,
}

/// What can be wrong with an outlet. A reader that goes away is not an error and not here.
#[derive(Debug, thiserror::Error)]
pub enum OutletError {
    /// The process was started without a stdout.
    #[error("stdout is closed, so that messages have nowhere to go")]
    Closed,
    /// The descriptor is open for reading only, or cannot be looked at.
    #[error("stdout cannot be written to: {0}")]
    Unusable(Errno),
    /// A write failed.
    #[error("cannot write to stdout: {0}")]
    Write(Errno),
    /// A file could not be synced.
    #[error("cannot sync the file that stdout goes to: {0}")]
    Sync(Errno),
}

impl OutletError {
    /// Whether it may work later, once there is room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            OutletError::Write(errno) | OutletError::Sync(errno) => {
                matches!(*errno, Errno::NOSPC | Errno::DQUOT | Errno::FBIG)
            }
            OutletError::Closed | OutletError::Unusable(_) => false,
        }
    }
}

enum Kind {
    Pipe(Pipe),
    File(RegularFile),
    Socket,
    Device(Pipe),
}

/// Where delivered bytes go.
pub struct Outlet {
    fd: OwnedFd,
    kind: Kind,
    /// Bytes written since the start.
    written: u64,
    /// What is to be written before anything else, and is not counted.
    opening: Option<u8>,
}

impl Outlet {
    /// The process's stdout.
    ///
    /// # Errors
    /// [`OutletError::Closed`] when there was none at the start, [`OutletError::Unusable`].
    pub fn stdout() -> Result<Outlet, OutletError> {
        if !super::inherited::stdout_was_open() {
            return Err(OutletError::Closed);
        }
        let fd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)
            .map_err(OutletError::Unusable)?;
        Outlet::new(fd)
    }

    /// An outlet into `fd`.
    ///
    /// # Errors
    /// [`OutletError::Unusable`] when it is not open for writing.
    pub fn new(fd: OwnedFd) -> Result<Outlet, OutletError> {
        let mode = rustix::fs::fcntl_getfl(&fd).map_err(OutletError::Unusable)?;
        if !mode.intersects(OFlags::WRONLY | OFlags::RDWR) {
            return Err(OutletError::Unusable(Errno::BADF));
        }
        let stat = rustix::fs::fstat(&fd).map_err(OutletError::Unusable)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Fifo => Kind::Pipe(Pipe::new(&fd)),
            FileType::RegularFile => Kind::File(RegularFile::new(stat.st_size == 0)),
            FileType::Socket => Kind::Socket,
            _ => Kind::Device(Pipe::new(&fd)),
        };
        Ok(Outlet { fd, kind, written: 0, opening: None })
    }

    /// Where a file that is appended to does not end with the delimiter of our messages, the first
    /// of them would become one with what stands there: then a delimiter goes in front of it.
    /// Returns whether that is so.
    pub fn begin_anew_behind(&mut self, delimiter: u8) -> bool {
        let is_unfinished = match self.kind {
            Kind::File(_) => RegularFile::ends_unfinished(self.fd.as_fd(), delimiter),
            _ => false,
        };
        self.opening = is_unfinished.then_some(delimiter);
        is_unfinished
    }

    /// Writes as much of `slices` as fits without waiting.
    ///
    /// # Errors
    /// [`OutletError::Write`]; what was written before it stays written.
    pub fn write(&mut self, slices: &[IoSlice<'_>]) -> Result<Wrote, OutletError> {
        if let (Some(byte), Kind::File(_)) = (self.opening, &self.kind) {
            file::write(self.fd.as_fd(), &[IoSlice::new(&[byte])]).map_err(OutletError::Write)?;
            self.opening = None;
        }
        let wrote = match &mut self.kind {
            Kind::Pipe(pipe) | Kind::Device(pipe) => pipe.write(self.fd.as_fd(), slices),
            Kind::File(_) => file::write(self.fd.as_fd(), slices),
            Kind::Socket => write_socket(self.fd.as_fd(), slices),
        }
        .map_err(OutletError::Write)?;
        if let Wrote::Bytes(bytes) = wrote {
            self.written += bytes as u64;
        }
        Ok(wrote)
    }

    /// Bytes written since the start.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Looks how many of the bytes written have been taken, in the meaning of the table above.
    /// Never less than the time before.
    pub fn look_taken(&mut self) -> u64 {
        match &mut self.kind {
            Kind::Pipe(pipe) => pipe.look_taken(self.fd.as_fd(), self.written),
            Kind::File(file) => file.synced(),
            Kind::Socket | Kind::Device(_) => self.written,
        }
    }

    /// Whether taking goes on by itself, so that it is worth a look from time to time.
    #[must_use]
    pub fn is_pipe(&self) -> bool {
        matches!(self.kind, Kind::Pipe(_))
    }

    /// Whether there is no reader but the write itself, for which a receiver need not wait.
    #[must_use]
    pub fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File(_))
    }

    /// Bytes that are written and wait for [`Outlet::sync`].
    #[must_use]
    pub fn unsynced(&self) -> u64 {
        match &self.kind {
            Kind::File(file) => self.written - file.synced(),
            _ => 0,
        }
    }

    /// Syncs a regular file: all that is written is then taken. Nothing to do for the others.
    ///
    /// # Errors
    /// [`OutletError::Sync`]; it must not be tried again, as the kernel may have dropped the
    /// pages that it could not write.
    pub fn sync(&mut self) -> Result<(), OutletError> {
        match &mut self.kind {
            Kind::File(file) if file.synced() < self.written => {
                file.sync(self.fd.as_fd(), self.written).map_err(OutletError::Sync)
            }
            _ => Ok(()),
        }
    }

    /// After a failure: takes a regular file back to where `position` bytes were written, the
    /// end of a whole message. Returns whether the file now ends there.
    pub fn cut_back(&mut self, position: u64) -> bool {
        assert!(position <= self.written, "cut back to a place that was never reached");
        let excess = self.written - position;
        self.written = position;
        match &mut self.kind {
            Kind::File(file) => file.cut_back(self.fd.as_fd(), excess, position),
            _ => excess == 0,
        }
    }

    /// Gives the reader a larger pipe, because it has shown that it is fast.
    pub fn enlarge(&mut self) {
        if let Kind::Pipe(pipe) = &mut self.kind {
            pipe.enlarge(self.fd.as_fd());
        }
    }

    /// How many bytes a pipe holds; `None` for all others and for a pipe at its largest.
    #[must_use]
    pub fn can_enlarge_from(&self) -> Option<usize> {
        match &self.kind {
            Kind::Pipe(pipe) => pipe.can_enlarge_from(),
            _ => None,
        }
    }

    /// What to poll the descriptor for; `None` when it is always ready and has nothing to tell.
    #[must_use]
    pub fn interest(&self, has_bytes: bool) -> Option<PollFlags> {
        match &self.kind {
            Kind::File(_) => None,
            _ if has_bytes => Some(PollFlags::OUT),
            // A reader that goes is told without being asked for.
            _ => Some(PollFlags::empty()),
        }
    }
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether poll says that nobody will read any more.
#[must_use]
pub fn is_gone(events: PollFlags) -> bool {
    events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
}

/// Whether stdout is a pipe or a socket that nobody reads any more.
#[must_use]
pub fn is_stdout_deserted() -> bool {
    let stdout = rustix::stdio::stdout();
    let mut fds = [rustix::event::PollFd::new(&stdout, PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
        && is_gone(fds[0].revents())
}

fn write_socket(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<Wrote, Errno> {
    use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        return match sendmsg(fd, slices, &mut SendAncillaryBuffer::default(), flags) {
            Ok(bytes) => Ok(Wrote::Bytes(bytes)),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Ok(Wrote::Full),
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(Wrote::Gone),
            Err(errno) => Err(errno),
        };
    }
}
