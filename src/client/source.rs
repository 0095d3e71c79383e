//! Where a sender's input comes from: stdin or a file, opened before anything is sent.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::FileType;

/// What a pipe on our stdin is enlarged to, so that one read can return a whole batch.
const PIPE_BYTES: usize = 1 << 20;

#[derive(Debug)]
enum From {
    Stdin(io::Stdin),
    File(File),
}

/// One input.
#[derive(Debug)]
pub struct Source {
    name: String,
    from: From,
}

impl Source {
    /// Stdin. A pipe there is made larger if the system allows it.
    #[must_use]
    pub fn stdin() -> Source {
        let stdin = io::stdin();
        // Anything but a pipe refuses, and a smaller pipe is only slower.
        if rustix::pipe::fcntl_getpipe_size(&stdin).is_ok_and(|bytes| bytes < PIPE_BYTES) {
            let _ = rustix::pipe::fcntl_setpipe_size(&stdin, PIPE_BYTES);
        }
        Source { name: "stdin".to_owned(), from: From::Stdin(stdin) }
    }

    /// A file.
    ///
    /// # Errors
    /// What the system says; a directory is refused.
    pub fn open(path: &Path) -> io::Result<Source> {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(Source { name: path.display().to_string(), from: From::File(file) })
    }

    /// What to call it in a message.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes from here to its end, if that is known before it is read.
    #[must_use]
    pub fn bytes_left(&self) -> Option<u64> {
        let stat = rustix::fs::fstat(self).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let at = rustix::fs::tell(self).ok()?;
        Some((stat.st_size as u64).saturating_sub(at))
    }

    /// Whether it is a terminal.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        rustix::termios::isatty(self)
    }

    /// Reads once; 0 at the end. `None` when nothing came after all.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        use rustix::io::Errno;
        match rustix::io::read(self, into) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Errno::INTR | Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.from {
            From::Stdin(stdin) => stdin.as_fd(),
            From::File(file) => file.as_fd(),
        }
    }
}
