//! The feed: input on its way into a process's pipe, from memory or from files.
//!
//! What is in a file gets there without being copied: its pages are put into a pipe of our own, the
//! *stage*; they are verified, which the pages in the stage cannot escape, as nothing takes them
//! out of the page cache meanwhile; then the stage is emptied into the process's pipe. So not a byte
//! comes to a filter that was not verified, as with what is in memory. Called for each run of a
//! filter, and for what one that stays is asked.
//!
//! ```text
//! segment file ──splice──▶ stage ──splice──▶ pipe ──▶ the filter
//!       └────read, verify────┘ only then
//! ```

use std::io::IoSlice;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::load::Portion;
use crate::client::delivery::DeliveryError;
use crate::client::extent::Stored;
use crate::client::piece::Slice;
use crate::limits;

/// A page of memory, or less: a pipe holds so many bytes for each that it has room for.
const PAGE_BYTES: u64 = 4096;

/// The bytes of the stage, if the system grants it: the largest batch, which need not begin where a
/// page does.
const STAGE_BYTES: usize = 2 * limits::STORED_BYTES_MAX;

/// A part of the input.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// In memory, and verified.
    Bytes(Slice),
    /// In a file.
    Stored(Stored),
}

impl Chunk {
    fn len(&self) -> usize {
        match self {
            Chunk::Bytes(slice) => slice.bytes().len(),
            Chunk::Stored(stored) => stored.len(),
        }
    }
}

impl From<Slice> for Chunk {
    fn from(slice: Slice) -> Chunk {
        Chunk::Bytes(slice)
    }
}

impl From<Portion> for Chunk {
    fn from(portion: Portion) -> Chunk {
        match portion {
            Portion::Here(piece) => Chunk::Bytes(piece.into_slice()),
            Portion::Stored(stored) => Chunk::Stored(stored),
        }
    }
}

/// Why input does not get to a process that reads it.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// What is in a file is damaged; nothing of that batch was written.
    #[error(transparent)]
    Damaged(#[from] DeliveryError),
    /// The system does not take it.
    #[error("cannot write to a filter: {0}")]
    Write(Errno),
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Feed {
    chunks: Vec<Chunk>,
    /// The first that is not wholly written, and how much of it is.
    at: (usize, usize),
    left: usize,
    stage: Option<Stage>,
}

impl Feed {
    pub fn new(chunks: impl IntoIterator<Item = impl Into<Chunk>>) -> Feed {
        let chunks: Vec<Chunk> = chunks.into_iter().map(Into::into).collect();
        let left = chunks.iter().map(Chunk::len).sum();
        Feed { chunks, at: (0, 0), left, stage: None }
    }

    /// Bytes that are not written yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Writes what there is room for; true when nothing is left to do.
    ///
    /// # Errors
    /// See [`FeedError`]. Whoever reads must not take what it got for all there is.
    pub fn write(&mut self, to: &OwnedFd) -> Result<bool, FeedError> {
        loop {
            let wrote = match self.chunks.get(self.at.0) {
                None => return Ok(true),
                Some(chunk) if chunk.len() == self.at.1 => {
                    self.at = (self.at.0 + 1, 0);
                    continue;
                }
                Some(Chunk::Bytes(_)) => self.write_bytes(to),
                Some(Chunk::Stored(stored)) => {
                    let stored = stored.clone();
                    if self.at.1 == 0 && !self.put_on_stage(&stored)? {
                        let batch = stored.read()?;
                        self.chunks[self.at.0] = Chunk::Bytes(batch.payload);
                        continue;
                    }
                    let stage = self.stage.as_mut().expect("it is on the stage");
                    stage.empty_into(to)
                }
            };
            match wrote {
                Ok(written) => self.advance(written),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                // It does not read its input: that is its own affair.
                Err(Errno::PIPE) => return Ok(true),
                Err(errno) => return Err(FeedError::Write(errno)),
            }
        }
    }

    fn write_bytes(&self, to: &OwnedFd) -> Result<usize, Errno> {
        let rest = &self.chunks[self.at.0..];
        let slices: Vec<IoSlice<'_>> = rest
            .iter()
            .map_while(|chunk| match chunk {
                Chunk::Bytes(slice) => Some(slice.bytes()),
                Chunk::Stored(_) => None,
            })
            .take(limits::SLICES_PER_WRITE_MAX)
            .enumerate()
            .map(|(n, bytes)| IoSlice::new(&bytes[if n == 0 { self.at.1 } else { 0 }..]))
            .collect();
        rustix::io::writev(to, &slices)
    }

    /// Puts all of a batch on the stage, unless it is there, and verifies it. False when the system
    /// does not have it so.
    fn put_on_stage(&mut self, stored: &Stored) -> Result<bool, DeliveryError> {
        if self.stage.as_ref().is_some_and(|stage| stage.filled > 0) {
            return Ok(true);
        }
        if self.stage.is_none() {
            self.stage = Stage::new().ok();
        }
        let Some(stage) = &mut self.stage else { return Ok(false) };
        if stage.fill(stored).is_err() {
            // With whatever is in it.
            self.stage = None;
            return Ok(false);
        }
        stored.verify(&mut stage.buffer)?;
        Ok(true)
    }

    fn advance(&mut self, mut written: usize) {
        self.left -= written;
        while written > 0 {
            let left = self.chunks[self.at.0].len() - self.at.1;
            if written < left {
                self.at.1 += written;
                return;
            }
            written -= left;
            self.at = (self.at.0 + 1, 0);
        }
    }
}

/// A pipe of our own that holds pages of a file.
#[derive(Debug)]
struct Stage {
    read: OwnedFd,
    write: OwnedFd,
    room: u64,
    /// Bytes in it.
    filled: usize,
    /// What it holds is verified here, a part at a time.
    buffer: Vec<u8>,
}

impl Stage {
    fn new() -> Result<Stage, Errno> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let _ = rustix::pipe::fcntl_setpipe_size(&write, STAGE_BYTES);
        let room = rustix::pipe::fcntl_getpipe_size(&write)? as u64;
        Ok(Stage { read, write, room, filled: 0, buffer: vec![0; limits::VERIFY_BYTES] })
    }

    /// Fills it with all of a batch.
    fn fill(&mut self, stored: &Stored) -> Result<(), Errno> {
        assert!(self.filled == 0, "one batch at a time");
        let (file, mut at) = stored.bytes_at();
        let pages = (at % PAGE_BYTES + stored.len() as u64).div_ceil(PAGE_BYTES);
        if pages * PAGE_BYTES > self.room {
            return Err(Errno::NOSPC);
        }
        while self.filled < stored.len() {
            let left = stored.len() - self.filled;
            let to = (&self.write, None);
            match rustix::pipe::splice(file, Some(&mut at), to.0, to.1, left, SpliceFlags::NONBLOCK)
            {
                Ok(0) => return Err(Errno::IO),
                Ok(moved) => self.filled += moved,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Moves what there is room for; how much.
    fn empty_into(&mut self, to: &OwnedFd) -> Result<usize, Errno> {
        let moved =
            rustix::pipe::splice(&self.read, None, to, None, self.filled, SpliceFlags::NONBLOCK)?;
        self.filled -= moved;
        Ok(moved)
    }
}
