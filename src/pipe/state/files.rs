//! What a state directory asks of the file system: the seam under which the simulator puts a disk
//! that loses power, fills and fails.
//!
//! A change of a directory is durable when that directory was synced, what is in a file when the file
//! was. Everything above this seam, and with it the order of what is done, is the same on both sides.
//! Called by [`StateDir`](super::StateDir) and its trees.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, File, FileType, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{OFlags, ioctl_ficlone};
use rustix::io::Errno;

use crate::client::wait::Patience;
use crate::pipe::lock::{self, Locked};

/// The bits of a mode that are kept.
pub(super) const MODE: u32 = 0o7777;

/// What stands under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// What means nothing without its process: a socket, a FIFO, a device.
    Other,
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Kind {
        match kind {
            _ if kind.is_dir() => Kind::Directory,
            _ if kind.is_file() => Kind::File,
            _ if kind.is_symlink() => Kind::Link,
            _ => Kind::Other,
        }
    }
}

/// The file system. All errors are what the system says.
#[allow(clippy::missing_errors_doc)] // See above.
pub trait Files {
    /// What holds the lock of a directory, as long as it lives.
    type Lock: fmt::Debug;

    /// The path of what is there without links in it.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;
    /// Makes a directory, for its owner alone if it is `private`.
    fn make_dir(&self, path: &Path, private: bool) -> io::Result<()>;
    /// Locks a directory for this process; another that has it is waited for so long, or until
    /// `interrupt` is readable.
    fn lock(
        &self,
        dir: &Path,
        patience: Duration,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> io::Result<Locked<Self::Lock>>;
    /// What is in a directory, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<(OsString, Kind)>>;
    /// What stands there; links are not followed.
    fn kind(&self, path: &Path) -> io::Result<Kind>;
    /// All that is in a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Makes a file, or replaces what is in it.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Copies a regular file, with its mode and the time of its change, to where nothing is.
    fn copy_file(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Copies a link as it is.
    fn copy_link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a directory the mode of another.
    fn copy_mode(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes a file, or the entries of a directory, durable.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Renames within a directory; what was there before is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file or a link.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all that is in it.
    fn remove_all(&self, path: &Path) -> io::Result<()>;
    /// Lets the owner into a directory.
    fn open_up(&self, dir: &Path) -> io::Result<()>;
    /// Makes a symbolic link.
    fn link(&self, target: &str, path: &Path) -> io::Result<()>;
    /// Sixteen bytes that nobody can foretell.
    fn random(&self) -> [u8; 16];
}

/// The file system of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Files for System {
    type Lock = File;

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        path.canonicalize()
    }

    fn make_dir(&self, path: &Path, private: bool) -> io::Result<()> {
        DirBuilder::new().mode(if private { 0o700 } else { 0o777 }).create(path)
    }

    fn lock(
        &self,
        dir: &Path,
        patience: Duration,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> io::Result<Locked<File>> {
        lock::take(File::open(dir)?, Patience::lasting(patience, interrupt))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(OsString, Kind)>> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok((entry.file_name(), entry.file_type()?.into()))
        };
        fs::read_dir(dir)?.map(entry).collect()
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        Ok(fs::symlink_metadata(path)?.file_type().into())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        File::create(path)?.write_all(bytes)
    }

    fn copy_file(&self, from: &Path, to: &Path) -> io::Result<()> {
        let no_follow = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let source = OpenOptions::new().read(true).custom_flags(no_follow).open(from)?;
        let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        if ioctl_ficlone(&target, &source).is_err() {
            copy_data(&source, &target)?;
        }
        let metadata = source.metadata()?;
        if let Ok(changed) = metadata.modified() {
            target.set_modified(changed)?;
        }
        target.set_permissions(Permissions::from_mode(metadata.permissions().mode() & MODE))
    }

    fn copy_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)
    }

    fn copy_mode(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mode = fs::symlink_metadata(from)?.permissions().mode() & MODE;
        fs::set_permissions(to, Permissions::from_mode(mode))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn open_up(&self, dir: &Path) -> io::Result<()> {
        fs::set_permissions(dir, Permissions::from_mode(0o700))
    }

    fn link(&self, target: &str, path: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, path)
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // So few bytes always come in one piece, once the system has any.
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        assert_eq!(filled, Ok(bytes.len()), "the system gives random bytes");
        bytes
    }
}

/// Copies what is not a hole.
fn copy_data(mut source: &File, mut target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while at < length {
        let (start, end) = match next_data(source, at) {
            Ok(Some((start, end))) => (start, end.min(length)),
            Ok(None) => return Ok(()),
            // Of a file system that does not know holes.
            Err(_) => (at, length),
        };
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        let copied = io::copy(&mut source.take(end - start), &mut target)?;
        if copied < end - start {
            return Err(io::Error::other("it became shorter while it was copied"));
        }
        at = end;
    }
    Ok(())
}

/// The next data of a file at `at` or behind, if there is any.
fn next_data(file: &File, at: u64) -> Result<Option<(u64, u64)>, Errno> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(start) => {
            rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start)).map(|end| Some((start, end)))
        }
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn holes_stay_holes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).expect("made");
        let sparse = File::create(from.join("sparse")).expect("made");
        sparse.set_len(1 << 30).expect("set");
        sparse.write_all_at(b"middle", 1 << 29).expect("written");
        fs::create_dir(&to).expect("made");
        let copy = File::create(to.join("copy")).expect("made");
        copy_data(&File::open(from.join("sparse")).expect("there"), &copy).expect("copied");
        let metadata = copy.metadata().expect("there");
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() < 1 << 12, "{} blocks", metadata.blocks());
        let mut middle = [0; 6];
        File::open(to.join("copy")).expect("there").read_exact_at(&mut middle, 1 << 29).expect("6");
        assert_eq!(&middle, b"middle");
    }
}
