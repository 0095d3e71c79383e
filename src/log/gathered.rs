//! The batches of a commit on their way in: in memory as long as that is little, then in a staging
//! file.
//!
//! Memory is what all commits of a store share ([`CommitMemory`], at most
//! [`limits::COMMIT_MEMORY_BYTES`]); a commit for which there is none left goes into a file, as a
//! large message does, which costs writing it twice. Called by the server for the frames of a
//! commit, and by the job that copies it into the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::AppendError;
use super::log::Log;
use super::staging::Staging;
use super::storage::{Storage, StorageFile};
use crate::limits;
use crate::units::Position;

/// How much memory the commits of a store take that are on their way in. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct CommitMemory(Arc<AtomicUsize>);

impl CommitMemory {
    /// Takes so much, if it is there.
    fn take(&self, bytes: usize) -> bool {
        let more = |taken: usize| {
            let taken = taken.checked_add(bytes)?;
            (taken <= limits::COMMIT_MEMORY_BYTES).then_some(taken)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// Batches in memory; dropping the last clone gives it back.
#[derive(Debug)]
struct Held {
    memory: CommitMemory,
    bytes: usize,
    payloads: Vec<Vec<u8>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// See the module's page. Dropping it gives back its space.
pub struct Gathered<S: Storage> {
    bytes: u64,
    place: Place<S>,
}

enum Place<S: Storage> {
    Memory(Arc<Held>),
    File(Staging<S>),
}

/// Where the job that copies a commit reads its batches.
pub(super) enum Payloads<S: Storage> {
    Memory(PayloadsHeld),
    File { file: Arc<S::File>, done: u64, buffer: Vec<u8> },
}

/// Batches in memory, the next one first.
pub(super) struct PayloadsHeld {
    held: Arc<Held>,
    next: usize,
}

impl<S: Storage> Log<S> {
    /// Begins to gather a commit.
    #[must_use]
    pub fn gather_begin(&self) -> Gathered<S> {
        let memory = self.options.commits.clone();
        let held = Held { memory, bytes: 0, payloads: Vec::new() };
        Gathered { bytes: 0, place: Place::Memory(Arc::new(held)) }
    }

    /// Adds the payload of the next batch.
    ///
    /// # Errors
    /// As of [`Staging::push`]; the payload can be pushed again.
    pub fn gather(&mut self, to: &mut Gathered<S>, payload: &[u8]) -> Result<(), AppendError> {
        if let Place::Memory(held) = &mut to.place {
            let held = Arc::get_mut(held).expect("no job copies what is still gathered");
            if held.memory.take(payload.len()) {
                held.bytes += payload.len();
                held.payloads.push(payload.to_vec());
                to.bytes += payload.len() as u64;
                return Ok(());
            }
            let mut staging = self.stage_begin()?;
            held.payloads.iter().try_for_each(|payload| staging.push(payload))?;
            to.place = Place::File(staging);
        }
        let Place::File(staging) = &mut to.place else { unreachable!("it was just moved there") };
        staging.push(payload)?;
        to.bytes = staging.bytes();
        Ok(())
    }
}

impl<S: Storage> Gathered<S> {
    /// Bytes gathered so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn payloads(&self) -> Payloads<S> {
        match &self.place {
            Place::Memory(held) => {
                Payloads::Memory(PayloadsHeld { held: Arc::clone(held), next: 0 })
            }
            Place::File(staging) => {
                Payloads::File { file: staging.file(), done: 0, buffer: Vec::new() }
            }
        }
    }
}

impl<S: Storage> Payloads<S> {
    /// The payload of the next batch, which has so many bytes.
    pub(super) fn next(&mut self, bytes: usize) -> std::io::Result<&[u8]> {
        match self {
            Payloads::Memory(PayloadsHeld { held, next }) => {
                *next += 1;
                let payload = &held.payloads[*next - 1];
                assert!(payload.len() == bytes, "batches are copied as they came");
                Ok(payload)
            }
            Payloads::File { file, done, buffer } => {
                if buffer.len() < bytes {
                    buffer.resize(bytes, 0);
                }
                let payload = &mut buffer[..bytes];
                if file.read_at(payload, Position(*done))? < bytes {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                *done += bytes as u64;
                Ok(payload)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_given_back() {
        let memory = CommitMemory::default();
        let most = limits::COMMIT_MEMORY_BYTES;
        assert!(memory.take(most - 1) && !memory.take(2) && memory.take(1));
        let held = Held { memory: memory.clone(), bytes: most, payloads: Vec::new() };
        drop(held);
        assert!(memory.take(most));
    }
}
