//! What the log asks of a disk: one small trait, so that the production log runs on a simulated
//! disk with faults. [`Disk`] is the real one.
//!
//! Paths are relative to the store directory. Calls that did a part of their work, or were
//! interrupted, go on above the seam, so that the simulated disk can do that too; nothing else is
//! retried, and nothing cached or interpreted: an error goes up as it came. Called by the log and by
//! the jobs that it hands to helper threads.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::closer::Closer;
use crate::limits;
use crate::units::{Bytes, Position};

/// Space on the file system of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What an ordinary user can still take.
    pub available: Bytes,
    /// The size of the whole file system.
    pub total: Bytes,
}

/// A directory tree on a disk.
pub trait Storage: Send + Sync + 'static {
    /// An open file.
    type File: StorageFile;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// What the system says; `NotFound` when there is none.
    fn open(&self, path: &Path) -> io::Result<Self::File>;

    /// Creates a file that must not exist yet, for reading and writing.
    ///
    /// # Errors
    /// What the system says; `AlreadyExists` when there is one.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// Renames a file or directory, replacing a file at `to`.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory (mode 0700) that must not exist yet.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What the system says.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// What the system says; never retried by anyone.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a directory, so that its entries can be made durable later, whatever is short then.
    ///
    /// # Errors
    /// What the system says.
    fn open_dir(&self, path: &Path) -> io::Result<OpenDir<'_>>;

    /// How much room there is.
    ///
    /// # Errors
    /// What the system says.
    fn space(&self) -> io::Result<Space>;

    /// Closes handles of files that were removed, maybe a little later: that may take long.
    fn let_go(&self, files: Vec<Arc<Self::File>>);
}

/// An open directory: what it does, once, is what [`Storage::sync_dir`] does.
pub type OpenDir<'a> = Box<dyn FnOnce() -> io::Result<()> + 'a>;

/// An open file of a [`Storage`]. Shared between the event loop and helper threads.
pub trait StorageFile: Send + Sync + 'static {
    /// The file's length.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self) -> io::Result<Bytes>;

    /// Whether nothing is in it.
    ///
    /// # Errors
    /// What the system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()?.0 == 0)
    }

    /// Reads some bytes at `position`, with one call; none only at the end of the file.
    ///
    /// # Errors
    /// What the system says; `Interrupted` if it is to be asked again.
    fn read_some_at(&self, buffer: &mut [u8], position: Position) -> io::Result<usize>;

    /// Writes some bytes of `parts`, one part behind the other, from `position` on, with one call.
    ///
    /// # Errors
    /// What the system says; `Interrupted` if it is to be asked again.
    fn write_some_at(&self, parts: &[IoSlice<'_>], position: Position) -> io::Result<usize>;

    /// Reads at `position`; fewer bytes than asked for only at the end of the file.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buffer: &mut [u8], position: Position) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_some_at(&mut buffer[done..], Position(position.0 + done as u64)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes all of `parts`, one behind the other, from `position` on.
    ///
    /// # Errors
    /// What the system says. Some of the bytes may have been written then.
    fn write_all_at(&self, parts: &[&[u8]], position: Position) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        let mut at = position;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match self.write_some_at(rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at.0 += n as u64;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reserves room for `bytes` from `position` on without changing the file's length.
    ///
    /// # Errors
    /// What the system says; a full disk is `StorageFull`.
    fn allocate(&self, position: Position, bytes: Bytes) -> io::Result<()>;

    /// Sets the file's length; room reserved behind it is given back.
    ///
    /// # Errors
    /// What the system says.
    fn truncate(&self, length: Bytes) -> io::Result<()>;

    /// Makes the file's bytes and length durable (fdatasync).
    ///
    /// # Errors
    /// What the system says; never retried by anyone.
    fn sync(&self) -> io::Result<()>;

    /// Whether reading this range would need the disk. "No" when it cannot be told.
    fn is_cold(&self, position: Position, bytes: Bytes) -> bool;

    /// The descriptor for `sendfile`; none on a simulated disk.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Another descriptor of the same file, through which it can only be read, to be given away;
    /// none where there are no such descriptors.
    fn reader(&self) -> Option<OwnedFd>;
}

/// The real disk below one store directory.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    may_write: bool,
    closer: Closer<DiskFile>,
}

impl Disk {
    /// The tree below `root`, which must exist.
    #[must_use]
    pub fn new(root: &Path) -> Disk {
        Disk { root: root.to_owned(), may_write: true, closer: Closer::default() }
    }

    /// The same, of which files are only read, so that it may lie where nothing can be written.
    #[must_use]
    pub fn to_read(root: &Path) -> Disk {
        Disk { root: root.to_owned(), may_write: false, closer: Closer::default() }
    }
}

impl Storage for Disk {
    type File = DiskFile;

    fn open(&self, path: &Path) -> io::Result<DiskFile> {
        let mut options = File::options();
        let file = options.read(true).write(self.may_write).open(self.root.join(path))?;
        Ok(DiskFile { file })
    }

    fn create(&self, path: &Path) -> io::Result<DiskFile> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.root.join(path))?;
        Ok(DiskFile { file })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(self.root.join(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().mode(0o700).create(self.root.join(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(self.root.join(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(self.root.join(path))?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(self.root.join(path))?.sync_all()
    }

    fn open_dir(&self, path: &Path) -> io::Result<OpenDir<'_>> {
        let dir = File::open(self.root.join(path))?;
        Ok(Box::new(move || dir.sync_all()))
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(Space {
            available: Bytes(stat.f_bavail * stat.f_frsize),
            total: Bytes(stat.f_blocks * stat.f_frsize),
        })
    }

    fn let_go(&self, files: Vec<Arc<DiskFile>>) {
        // Their room is free once they are closed. Who is short of it waits for that.
        let is_plenty = |space: Space| space.available.0 >= limits::CLOSE_LATER_SPACE_BYTES;
        if self.space().is_ok_and(is_plenty) {
            self.closer.close(files);
        }
    }
}

/// A file on the real disk.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
}

impl StorageFile for DiskFile {
    fn len(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.file.metadata()?.len()))
    }

    fn read_some_at(&self, buffer: &mut [u8], position: Position) -> io::Result<usize> {
        self.file.read_at(buffer, position.0)
    }

    fn write_some_at(&self, parts: &[IoSlice<'_>], position: Position) -> io::Result<usize> {
        Ok(rustix::io::pwritev(&self.file, parts, position.0)?)
    }

    fn allocate(&self, position: Position, bytes: Bytes) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, position.0, bytes.0) {
            // A file system that cannot reserve is not worse than one that could not be asked.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn truncate(&self, length: Bytes) -> io::Result<()> {
        self.file.set_len(length.0)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_cold(&self, position: Position, bytes: Bytes) -> bool {
        // Asking for the first and the last byte without waiting tells about the pages between
        // them well enough: readahead and writeback work in runs.
        let last = position.0 + bytes.0.saturating_sub(1);
        [position.0, last].into_iter().any(|at| {
            let mut byte = [0u8; 1];
            let mut parts = [io::IoSliceMut::new(&mut byte)];
            rustix::io::preadv2(&self.file, &mut parts, at, rustix::io::ReadWriteFlags::NOWAIT)
                == Err(rustix::io::Errno::AGAIN)
        })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn reader(&self) -> Option<OwnedFd> {
        use rustix::fs::{Mode, OFlags};
        // By way of /proc it is found wherever it lies, and also when it has no name any more. A
        // duplicate would be open for writing too.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }
}
