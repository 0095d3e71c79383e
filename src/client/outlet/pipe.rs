//! A pipe, or a device that is written to in the same manner: writes that never wait, and what
//! of them the reader has taken.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::{Wrote, is_gone};
use crate::limits;

/// Bytes that fit into a pipe whenever poll says that something fits.
const CHUNK_BYTES: usize = 4096;

/// How to write without waiting. The inherited description is shared with other processes, so
/// its `O_NONBLOCK` is not ours to set.
enum Way {
    /// A flag of each write.
    NoWait,
    /// A description of our own.
    Reopened(OwnedFd),
    /// Poll, then no more than what fits for sure.
    Chunks,
}

pub(super) struct Pipe {
    way: Way,
    /// Bytes taken when last looked.
    taken: u64,
    /// How much the pipe holds.
    capacity: usize,
    is_largest: bool,
}

impl Pipe {
    pub(super) fn new(fd: &OwnedFd) -> Pipe {
        let capacity = rustix::pipe::fcntl_getpipe_size(fd).unwrap_or(CHUNK_BYTES);
        Pipe { way: Way::NoWait, taken: 0, capacity, is_largest: capacity >= limits::PIPE_BYTES }
    }

    /// Writes as much as fits.
    pub(super) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        slices: &[IoSlice<'_>],
    ) -> Result<Wrote, Errno> {
        loop {
            let result = match &self.way {
                // Offset -1 is the descriptor's own position, the only one that a pipe has.
                Way::NoWait => rustix::io::pwritev2(fd, slices, u64::MAX, ReadWriteFlags::NOWAIT),
                Way::Reopened(own) => rustix::io::writev(own, slices),
                Way::Chunks => write_chunk(fd, slices),
            };
            return match result {
                Ok(bytes) => Ok(Wrote::Bytes(bytes)),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(Wrote::Full),
                Err(Errno::PIPE) => Ok(Wrote::Gone),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)
                    if matches!(self.way, Way::NoWait) =>
                {
                    self.way = match reopen(fd) {
                        Err(Errno::NXIO) => return Ok(Wrote::Gone),
                        Ok(own) => Way::Reopened(own),
                        Err(_) => Way::Chunks,
                    };
                    continue;
                }
                Err(errno) => Err(errno),
            };
        }
    }

    /// How much of `written` the reader has taken. What was in the pipe before our first byte
    /// lies in front of it, and others may write too: both make this too low, never too high,
    /// until the pipe is empty.
    pub(super) fn look_taken(&mut self, fd: BorrowedFd<'_>, written: u64) -> u64 {
        // Where the system cannot tell, written has to do.
        let unread = rustix::io::ioctl_fionread(fd).unwrap_or(0);
        self.taken = self.taken.max(written - unread.min(written));
        self.taken
    }

    pub(super) fn can_enlarge_from(&self) -> Option<usize> {
        (!self.is_largest).then_some(self.capacity)
    }

    pub(super) fn enlarge(&mut self, fd: BorrowedFd<'_>) {
        // Once only: a user over the system's limit for pipes is refused, and stays so.
        self.is_largest = true;
        if let Ok(capacity) = rustix::pipe::fcntl_setpipe_size(fd, limits::PIPE_BYTES) {
            self.capacity = capacity;
        }
    }
}

fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Fifo {
        // A device may do something at each open.
        return Err(Errno::OPNOTSUPP);
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

fn write_chunk(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let mut polled = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::OUT)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let events = polled[0].revents();
    if is_gone(events) {
        return Err(Errno::PIPE);
    }
    if !events.contains(PollFlags::OUT) {
        return Err(Errno::AGAIN);
    }
    let Some(first) = slices.iter().find(|slice| !slice.is_empty()) else {
        return Ok(0);
    };
    rustix::io::write(fd, &first[..first.len().min(CHUNK_BYTES)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outlet::Outlet;

    fn pipe() -> (OwnedFd, Outlet) {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        (reader, Outlet::new(writer).expect("an outlet"))
    }

    fn read(reader: &OwnedFd, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        let got = rustix::io::read(reader, &mut buffer).expect("a read");
        buffer.truncate(got);
        buffer
    }

    #[test]
    fn taken_is_what_the_reader_took_out() {
        let (reader, mut outlet) = pipe();
        assert_eq!(outlet.write(&[IoSlice::new(b"one\n"), IoSlice::new(b"two\n")]).ok(), {
            Some(Wrote::Bytes(8))
        });
        assert_eq!(outlet.look_taken(), 0);
        assert_eq!(read(&reader, 5), b"one\nt");
        assert_eq!(outlet.look_taken(), 5);
        drop(reader);
        assert_eq!(outlet.look_taken(), 5, "a reader that left took no more");
        assert!(matches!(outlet.write(&[IoSlice::new(b"x")]), Ok(Wrote::Gone)));
    }

    #[test]
    fn bytes_that_were_in_the_pipe_before_lie_in_front() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        rustix::io::write(&writer, b"header\n").expect("a write");
        let mut outlet = Outlet::new(writer).expect("an outlet");
        outlet.write(&[IoSlice::new(b"one\n")]).expect("a write");
        read(&reader, 7);
        assert_eq!(outlet.look_taken(), 0);
        read(&reader, 2);
        assert_eq!(outlet.look_taken(), 2);
    }

    #[test]
    fn a_full_pipe_is_not_waited_for_in_any_way() {
        for way in 0..3 {
            let (reader, mut outlet) = pipe();
            let own = match way {
                0 => Way::NoWait,
                1 => Way::Reopened(reopen(outlet.as_fd()).expect("reopened")),
                _ => Way::Chunks,
            };
            let super::super::Kind::Pipe(pipe) = &mut outlet.kind else { panic!("not a pipe") };
            pipe.way = own;
            let bytes = vec![b'x'; 1 << 17];
            let mut written = 0;
            while let Wrote::Bytes(n) =
                outlet.write(&[IoSlice::new(&bytes[..1 << 16])]).expect("a write")
            {
                written += n;
            }
            assert_eq!(written, 1 << 16, "way {way}");
            assert_eq!(read(&reader, 1 << 16).len(), 1 << 16);
            assert_eq!(outlet.look_taken(), 1 << 16);
            drop(reader);
            assert!(matches!(outlet.write(&[IoSlice::new(b"x")]), Ok(Wrote::Gone)), "way {way}");
        }
    }

    #[test]
    fn the_inherited_description_keeps_its_flags() {
        let (_reader, mut outlet) = pipe();
        let before = rustix::fs::fcntl_getfl(&outlet).expect("flags");
        outlet.write(&[IoSlice::new(b"x")]).expect("a write");
        assert_eq!(rustix::fs::fcntl_getfl(&outlet).expect("flags"), before);
    }

    #[test]
    fn a_pipe_is_enlarged_once() {
        let (_reader, mut outlet) = pipe();
        assert_eq!(outlet.can_enlarge_from(), Some(1 << 16));
        outlet.enlarge();
        assert_eq!(outlet.can_enlarge_from(), None);
        assert_eq!(rustix::pipe::fcntl_getpipe_size(&outlet), Ok(limits::PIPE_BYTES));
    }
}
