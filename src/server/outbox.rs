//! What waits to be sent to one client: bytes, and ranges of segment files.
//!
//! It does no I/O: the engine pushes, the event loop (or the simulator) sends and says how much
//! went. Bounded by who pushes: replies by `limits::OUTBOX_MEMORY_BYTES_MAX`, deliveries by the
//! engine, which adds one only when the outbox is nearly empty.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::engine::QueueNumber;
use crate::wire::Reply;

/// A part of what waits.
#[derive(Debug)]
pub enum Piece<F> {
    /// Bytes from memory.
    Bytes(Vec<u8>),
    /// Bytes with a descriptor that the peer gets with the first of them.
    Descriptor(Vec<u8>, OwnedFd),
    /// A range of a file, sent from the page cache.
    File {
        /// The segment file.
        file: Arc<F>,
        /// The queue that it belongs to.
        queue: QueueNumber,
        /// Where the rest of the range begins.
        position: u64,
        /// How much of it is left; never 0.
        bytes: u64,
    },
}

/// See the module's page.
#[derive(Debug)]
pub struct Outbox<F> {
    pieces: VecDeque<Piece<F>>,
    /// How much of the first piece, if it is bytes, has been sent.
    sent: usize,
    /// All bytes that wait.
    queued: u64,
    /// Bytes of the pieces that are in memory.
    memory: usize,
}

/// Bytes pieces up to this size are gathered into one.
const GATHER_BYTES: usize = 64 * 1024;

impl<F> Outbox<F> {
    /// Nothing waits.
    #[must_use]
    pub fn new() -> Outbox<F> {
        Outbox { pieces: VecDeque::new(), sent: 0, queued: 0, memory: 0 }
    }

    /// How many bytes wait.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// How many bytes of memory it holds.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a frame.
    pub fn push_reply(&mut self, channel: u16, reply: &Reply<'_>) {
        self.gather(|out| reply.encode(channel, out));
    }

    /// Adds bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.gather(|out| out.extend_from_slice(bytes));
    }

    /// Adds a frame that a descriptor goes with.
    pub fn push_descriptor(&mut self, bytes: &[u8], descriptor: OwnedFd) {
        self.queued += bytes.len() as u64;
        self.memory += bytes.len();
        self.pieces.push_back(Piece::Descriptor(bytes.to_vec(), descriptor));
    }

    /// Adds a range of a file of this queue.
    pub fn push_file(&mut self, queue: QueueNumber, file: Arc<F>, position: u64, bytes: u64) {
        assert!(bytes > 0, "an empty range of a file");
        self.queued += bytes;
        self.pieces.push_back(Piece::File { file, queue, position, bytes });
    }

    fn gather(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let fits =
            matches!(self.pieces.back(), Some(Piece::Bytes(last)) if last.len() < GATHER_BYTES);
        if !fits {
            self.pieces.push_back(Piece::Bytes(Vec::new()));
        }
        let Some(Piece::Bytes(last)) = self.pieces.back_mut() else {
            unreachable!("the last piece is bytes");
        };
        let before = last.len();
        write(last);
        self.queued += (last.len() - before) as u64;
        self.memory += last.len() - before;
    }

    /// What to send first: bytes as they stand, or a range of a file.
    #[must_use]
    pub fn front(&self) -> Option<Front<'_, F>> {
        match self.pieces.front()? {
            Piece::Bytes(bytes) => {
                let more = self.pieces.len() > 1;
                Some(Front::Bytes(&bytes[self.sent..], more))
            }
            Piece::Descriptor(bytes, descriptor) => {
                Some(Front::Descriptor(bytes, descriptor.as_fd()))
            }
            Piece::File { file, queue, position, bytes } => {
                Some(Front::File { file, queue: *queue, position: *position, bytes: *bytes })
            }
        }
    }

    /// So much of the first piece has been sent.
    pub fn advance(&mut self, sent: u64) {
        self.queued -= sent;
        if let Some(Piece::Descriptor(bytes, _)) =
            self.pieces.front_mut().filter(|piece| matches!(piece, Piece::Descriptor(..)))
        {
            // It went with the first byte; what is left are bytes like others.
            let bytes = std::mem::take(bytes);
            self.pieces[0] = Piece::Bytes(bytes);
        }
        let done = match self.pieces.front_mut().expect("something was sent") {
            Piece::Bytes(bytes) => {
                self.sent += sent as usize;
                assert!(self.sent <= bytes.len(), "more sent than there was");
                self.sent == bytes.len()
            }
            Piece::Descriptor(..) => unreachable!("it was just taken off"),
            Piece::File { position, bytes, .. } => {
                *position += sent;
                *bytes -= sent;
                *bytes == 0
            }
        };
        if done {
            if let Some(Piece::Bytes(bytes)) = self.pieces.pop_front() {
                self.memory -= bytes.len();
            }
            self.sent = 0;
        }
    }
}

impl<F> Default for Outbox<F> {
    fn default() -> Outbox<F> {
        Outbox::new()
    }
}

/// The first thing to send.
#[derive(Debug)]
pub enum Front<'a, F> {
    /// These bytes; whether something follows at once.
    Bytes(&'a [u8], bool),
    /// These bytes, and this descriptor with the first of them.
    Descriptor(&'a [u8], BorrowedFd<'a>),
    /// A range of a file.
    File {
        /// The segment file.
        file: &'a Arc<F>,
        /// The queue that is not to be read any further if the range cannot be.
        queue: QueueNumber,
        /// Where the range begins.
        position: u64,
        /// How long it is.
        bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_out_in_order_and_add_up() {
        let mut outbox: Outbox<&str> = Outbox::new();
        outbox.push_bytes(b"abc");
        outbox.push_bytes(b"de");
        outbox.push_file(QueueNumber(1), Arc::new("file"), 100, 10);
        outbox.push_reply(1, &Reply::Closed);
        assert_eq!(outbox.queued(), 5 + 10 + 8);
        assert!(matches!(outbox.front(), Some(Front::Bytes(b"abcde", true))));
        outbox.advance(4);
        assert!(matches!(outbox.front(), Some(Front::Bytes(b"e", true))));
        outbox.advance(1);
        assert!(matches!(outbox.front(), Some(Front::File { position: 100, bytes: 10, .. })));
        outbox.advance(3);
        assert!(matches!(outbox.front(), Some(Front::File { position: 103, bytes: 7, .. })));
        outbox.advance(7);
        assert!(matches!(outbox.front(), Some(Front::Bytes(_, false))));
        outbox.advance(8);
        assert!(outbox.is_empty() && outbox.queued() == 0 && outbox.memory() == 0);
    }

    #[test]
    fn a_descriptor_goes_once_with_the_first_byte() {
        let mut outbox: Outbox<&str> = Outbox::new();
        outbox.push_bytes(b"a");
        let (_, given) = rustix::pipe::pipe().expect("a pipe");
        outbox.push_descriptor(b"bcd", given);
        outbox.push_bytes(b"e");
        outbox.advance(1);
        assert!(matches!(outbox.front(), Some(Front::Descriptor(b"bcd", _))));
        outbox.advance(2);
        assert!(matches!(outbox.front(), Some(Front::Bytes(b"d", true))));
        outbox.advance(1);
        assert!(matches!(outbox.front(), Some(Front::Bytes(b"e", false))));
        outbox.advance(1);
        assert!(outbox.is_empty() && outbox.queued() == 0 && outbox.memory() == 0);
    }
}
