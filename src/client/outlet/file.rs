//! A regular file: taken means synced, and a failed write leaves whole messages only.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Wrote;

pub(super) struct RegularFile {
    /// Bytes of ours that are synced.
    synced: u64,
    /// Whether the name of the file may be as new as its content.
    is_new: bool,
}

pub(super) fn write(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<Wrote, Errno> {
    loop {
        match rustix::io::writev(fd, slices) {
            Err(Errno::INTR) => {}
            result => return result.map(Wrote::Bytes),
        }
    }
}

impl RegularFile {
    pub(super) fn new(is_new: bool) -> RegularFile {
        RegularFile { synced: 0, is_new }
    }

    /// Whether we append to a file that ends neither with `delimiter` nor with a newline: with half
    /// a message, most likely, whose writer was killed.
    pub(super) fn ends_unfinished(fd: BorrowedFd<'_>, delimiter: u8) -> bool {
        let appends = rustix::fs::fcntl_getfl(fd).is_ok_and(|mode| mode.contains(OFlags::APPEND));
        appends && last_byte(fd).is_some_and(|last| last != delimiter && last != b'\n')
    }

    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    pub(super) fn sync(&mut self, fd: BorrowedFd<'_>, written: u64) -> Result<(), Errno> {
        as_far_as_possible(rustix::fs::fdatasync(fd))?;
        if self.is_new {
            sync_directory_of(fd)?;
            self.is_new = false;
        }
        self.synced = written;
        Ok(())
    }

    /// Takes the last `excess` bytes off the file, if they are the last.
    pub(super) fn cut_back(&mut self, fd: BorrowedFd<'_>, excess: u64, position: u64) -> bool {
        assert!(self.synced <= position, "acknowledged bytes must not be cut off");
        if excess == 0 {
            return true;
        }
        let (Ok(at), Ok(stat)) = (rustix::fs::tell(fd), rustix::fs::fstat(fd)) else {
            return false;
        };
        // What others wrote behind our bytes is not ours to cut.
        if u64::try_from(stat.st_size) != Ok(at) || at < excess {
            return false;
        }
        rustix::fs::ftruncate(fd, at - excess).is_ok()
            && rustix::fs::seek(fd, SeekFrom::Start(at - excess)).is_ok()
    }
}

/// The last byte of a file that may be open for writing only; `None` when it is empty or cannot
/// be read.
fn last_byte(fd: BorrowedFd<'_>) -> Option<u8> {
    let length = u64::try_from(rustix::fs::fstat(fd).ok()?.st_size).ok()?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let own: OwnedFd =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut last = [0u8];
    let read = rustix::io::pread(&own, &mut last, length.checked_sub(1)?).ok()?;
    (read == 1).then_some(last[0])
}

/// A file system that has no syncing has nothing more to give; all else is an error.
fn as_far_as_possible(synced: Result<(), Errno>) -> Result<(), Errno> {
    match synced {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::ROFS) => Ok(()),
        result => result,
    }
}

/// A file that the shell has just made is durable only with its directory. A directory that
/// cannot be found or opened is passed over: the file may have been unlinked meanwhile, or lie
/// where we may write but not look.
fn sync_directory_of(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) else {
        return Ok(());
    };
    let Some(parent) = path.parent() else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(directory) => as_far_as_possible(rustix::fs::fsync(&directory)),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outlet::Outlet;
    use std::io::Write as _;
    use std::os::fd::AsFd;

    fn content(file: &tempfile::NamedTempFile) -> Vec<u8> {
        std::fs::read(file.path()).expect("the file")
    }

    #[test]
    fn a_file_has_taken_what_is_synced() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut outlet = Outlet::new(file.reopen().expect("a file").into()).expect("an outlet");
        outlet.write(&[IoSlice::new(b"one\n")]).expect("a write");
        assert_eq!((outlet.look_taken(), outlet.unsynced()), (0, 4));
        outlet.sync().expect("a sync");
        assert_eq!((outlet.look_taken(), outlet.unsynced()), (4, 0));
    }

    #[test]
    fn a_file_is_cut_back_to_a_whole_message() {
        for append in [false, true] {
            let mut file = tempfile::NamedTempFile::new().expect("a file");
            file.write_all(b"before\n").expect("a write");
            let mut shared = std::fs::OpenOptions::new()
                .append(append)
                .write(true)
                .open(file.path())
                .expect("a file");
            std::io::Seek::seek(&mut shared, std::io::SeekFrom::End(0)).expect("a seek");
            let own = shared.try_clone().expect("a clone");
            let mut outlet = Outlet::new(own.into()).expect("an outlet");
            outlet.write(&[IoSlice::new(b"one\ntw")]).expect("a write");
            assert!(outlet.cut_back(4));
            assert_eq!(content(&file), b"before\none\n");
            // The next command in the same shell goes on behind the whole message.
            shared.write_all(b"after\n").expect("a write");
            assert_eq!(content(&file), b"before\none\nafter\n");
        }
    }

    #[test]
    fn only_what_is_appended_to_can_be_found_unfinished() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let unfinished = |content: &str, append: bool| {
            std::fs::write(file.path(), content).expect("a write");
            let options = std::fs::OpenOptions::new().append(append).write(true).open(file.path());
            RegularFile::ends_unfinished(options.expect("a file").as_fd(), b'\n')
        };
        assert!(unfinished("one\ntw", true));
        assert!(!unfinished("one\n", true));
        assert!(!unfinished("", true));
        assert!(!unfinished("one\ntw", false));
    }

    #[test]
    fn bytes_of_others_are_not_cut() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut outlet = Outlet::new(file.reopen().expect("a file").into()).expect("an outlet");
        outlet.write(&[IoSlice::new(b"one\ntw")]).expect("a write");
        let mut other = std::fs::OpenOptions::new().append(true).open(file.path()).expect("a file");
        other.write_all(b"other\n").expect("a write");
        assert!(!outlet.cut_back(4));
        assert_eq!(content(&file), b"one\ntwother\n");
    }
}
