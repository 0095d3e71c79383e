//! Receive buffers, to be used again once nobody looks at them any more.
//!
//! Whoever takes large frames for keeps ([`Connection::take_frame`]) gives the connection another
//! buffer in exchange; the ones that were lent come back by themselves. Does no I/O. The receiver
//! and the source of a pipe use it.
//!
//! [`Connection::take_frame`]: super::Connection::take_frame

use std::sync::Arc;

use super::connection::INPUT_BYTES;

/// See the module's page.
#[derive(Debug)]
pub struct Buffers {
    lent: Vec<Arc<Vec<u8>>>,
    /// How many are kept at most; more are made as needed, and forgotten.
    most: usize,
}

impl Buffers {
    /// Keeps at most so many.
    #[must_use]
    pub fn new(most: usize) -> Buffers {
        Buffers { lent: Vec::new(), most }
    }

    /// One that nobody looks at.
    #[must_use]
    pub fn spare(&mut self) -> Vec<u8> {
        // The one that was lent last is the likeliest to be in a cache.
        let free = self.lent.iter().rposition(|buffer| Arc::strong_count(buffer) == 1);
        free.and_then(|index| Arc::try_unwrap(self.lent.remove(index)).ok())
            .unwrap_or_else(|| vec![0; INPUT_BYTES])
    }

    /// Lets others look at a buffer.
    pub fn lend(&mut self, buffer: Vec<u8>) -> Arc<Vec<u8>> {
        let buffer = Arc::new(buffer);
        if buffer.len() == INPUT_BYTES && self.lent.len() < self.most {
            self.lent.push(Arc::clone(&buffer));
        }
        buffer
    }
}
