//! The copy of the input that `--tee` writes to stdout: what is confirmed, in order.
//!
//! It never blocks on a pipe, so that a slow reader cannot keep confirmations from being taken,
//! and it never touches the flags of the open file, which others share. A reader that goes away
//! ends the copy and nothing else.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::{Errno, ReadWriteFlags};

use super::window::{Piece, Window};
use crate::limits;

/// What a pipe that is ready takes without blocking, if it is asked in the old way.
const PIPE_BUF: usize = 4096;

/// How to write so that it does not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Ask the kernel not to block.
    NoWait,
    /// Little at a time, and only when it is ready.
    Little,
    /// A regular file: as it comes.
    Plain,
}

/// See the module's page.
#[derive(Debug)]
pub struct Tee {
    out: OwnedFd,
    manner: Manner,
    /// What ends a message that came without a delimiter.
    delimiter: Option<u8>,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written.
    part: usize,
    /// What all pieces cost together.
    cost: usize,
    /// Nothing is written any more.
    ended: bool,
    error: Option<io::Error>,
}

impl Tee {
    /// A copy to `out`.
    #[must_use]
    pub fn new(out: OwnedFd, delimiter: Option<u8>) -> Tee {
        let kind = rustix::fs::fstat(&out).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let manner = match kind {
            Ok(FileType::Fifo) => Manner::NoWait,
            Ok(FileType::RegularFile) => Manner::Plain,
            _ => Manner::Little,
        };
        Tee {
            out,
            manner,
            delimiter,
            pieces: VecDeque::new(),
            part: 0,
            cost: 0,
            ended: false,
            error: None,
        }
    }

    /// Takes a confirmed piece.
    pub fn push(&mut self, mut piece: Piece, window: &mut Window) {
        if self.ended {
            window.recycle(piece);
            return;
        }
        if let Some(delimiter) = self.delimiter {
            piece.end_with(delimiter);
        }
        self.cost += piece.cost();
        self.pieces.push_back(piece);
    }

    /// Whether more may be confirmed: the copy is not too far behind.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.cost < limits::UNCONFIRMED_BYTES_MAX
    }

    /// Whether nothing waits to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Writes what the reader takes now. Call it when the output is ready.
    pub fn write(&mut self, window: &mut Window) {
        while let Some(piece) = self.pieces.front() {
            let rest = &piece.body()[self.part..];
            match self.write_some(rest) {
                Ok(bytes) => self.part += bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                // An old kernel, or a kind of file that cannot be asked so.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)
                    if self.manner == Manner::NoWait =>
                {
                    self.manner = Manner::Little;
                }
                Err(errno) => return self.end(errno, window),
            }
            if self.part == self.pieces[0].body().len() {
                self.part = 0;
                let piece = self.pieces.pop_front().expect("there is a first");
                self.cost -= piece.cost();
                window.recycle(piece);
            }
            if self.manner == Manner::Little {
                return;
            }
        }
    }

    fn write_some(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        match self.manner {
            Manner::Plain => rustix::io::write(&self.out, bytes),
            Manner::Little => rustix::io::write(&self.out, &bytes[..bytes.len().min(PIPE_BUF)]),
            Manner::NoWait => {
                // Offset -1: where the file stands, as write(2) does.
                let slices = [IoSlice::new(bytes)];
                rustix::io::pwritev2(&self.out, &slices, u64::MAX, ReadWriteFlags::NOWAIT)
            }
        }
    }

    fn end(&mut self, errno: Errno, window: &mut Window) {
        self.ended = true;
        self.cost = 0;
        self.part = 0;
        self.pieces.drain(..).for_each(|piece| window.recycle(piece));
        if errno != Errno::PIPE {
            self.error = Some(errno.into());
        }
    }

    /// Why the copy is not complete, if it is not that its reader went away.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }
}

impl AsFd for Tee {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }
}
