//! Commits of several batches: [gathered](super::gathered) while they come in, then copied into
//! the log as one.
//!
//! The batches of a commit stand one behind the other in one segment and become visible together;
//! a start that does not find the last of them finds none (see [`scan`](super::scan)). A commit
//! that fits one batch needs none of this: it is [`Log::append_internal`]. Called by the server for
//! the commits of pipes.

use super::append::NewBatch;
use super::error::{AppendError, Doing, Failure};
use super::gathered::{Gathered, Payloads};
use super::jobs::{Job, Work};
use super::log::Log;
use super::storage::{Storage, StorageFile};
use crate::batch::{self, BatchHeader, Framing, Place, flags};
use crate::limits;
use crate::units::{Bytes, Count, Epoch, Monotonic, OffsetRange, ProducerId, Sequence, WallTime};
use std::path::PathBuf;
use std::sync::Arc;

/// One batch of a commit that is gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitPart {
    /// How messages lie in the payload.
    pub framing: Framing,
    /// [`flags::CHAIN`], [`flags::CHAIN_END`], or nothing.
    pub flags: u16,
    /// Messages inside; in a chain all parts but the last have none.
    pub count: u32,
    /// Bytes of the payload.
    pub bytes: u32,
}

/// A commit whose batches are gathered, and have been checked.
#[derive(Clone, Copy, Debug)]
pub struct NewCommit<'a> {
    /// In whose name; it was opened with [`Log::open_producer`].
    pub producer: ProducerId,
    /// The producer's epoch.
    pub epoch: Epoch,
    /// The producer's sequence of the commit.
    pub sequence: Sequence,
    /// The batches.
    pub parts: &'a [CommitPart],
    /// What to keep with the sequence, at most [`limits::ANNEX_BYTES_MAX`]; it goes into a batch
    /// of its own, the last one.
    pub annex: &'a [u8],
}

pub(super) struct CommitWork<S: Storage> {
    pub payloads: Payloads<S>,
    /// Of each batch; the last is the one with the annex.
    pub headers: Vec<BatchHeader>,
    /// The annex with its length.
    pub annex: Vec<u8>,
    pub path: PathBuf,
    pub file: Arc<S::File>,
    pub place: Place,
}

impl<S: Storage> Log<S> {
    /// Appends a commit that was gathered: a job copies it into the log. Until then every append is
    /// answered [`AppendError::NotYet`]; [`Progress::chain`](super::Progress::chain) says what came
    /// of it. A sync is asked for then, whatever the policy. `gathered` can be dropped after that.
    ///
    /// # Errors
    /// See [`AppendError`]; after [`AppendError::NotYet`] the same can be tried again.
    pub fn append_commit(
        &mut self,
        wall: WallTime,
        gathered: &Gathered<S>,
        commit: &NewCommit<'_>,
    ) -> Result<(), AppendError> {
        let announced: u64 = commit.parts.iter().map(|part| u64::from(part.bytes)).sum();
        assert!(announced == gathered.bytes(), "what was gathered is what is to be appended");
        assert!(commit.annex.len() <= limits::ANNEX_BYTES_MAX, "the annex is too large");
        self.admit()?;
        let mut annex = Vec::with_capacity(4 + commit.annex.len());
        batch::push_annex(&mut annex, commit.annex);
        let batches = commit.parts.len() as u64 + 1;
        let bytes = announced + annex.len() as u64 + batches * batch::HEADER_BYTES as u64;
        let count = commit.parts.iter().map(|part| u64::from(part.count)).sum();
        self.roll_if_full(bytes, count)?;
        self.make_room(bytes)?;
        let headers = self.headers(wall, commit, annex.len());
        self.chain_running = true;
        self.chores.chain = Some(Job {
            queue: self.id(),
            storage: self.storage.clone(),
            work: Work::Commit(CommitWork {
                payloads: gathered.payloads(),
                headers,
                annex,
                path: self.segment_path(self.active.number),
                file: self.active.files[0].clone(),
                place: self.end_place(),
            }),
        });
        Ok(())
    }

    fn headers(
        &mut self,
        wall: WallTime,
        commit: &NewCommit<'_>,
        annex_bytes: usize,
    ) -> Vec<BatchHeader> {
        let NewCommit { producer, epoch, sequence, parts, .. } = *commit;
        let end = CommitPart {
            framing: Framing::Records,
            flags: flags::EMPTY | flags::ANNEX | flags::COMMIT_END,
            count: 0,
            bytes: annex_bytes as u32,
        };
        let mut offset = self.active.end;
        let parts = parts.iter().copied().chain([end]);
        let headers = parts.map(|part| {
            let CommitPart { framing, flags, count, bytes } = part;
            let new = NewBatch {
                framing,
                flags: flags | batch::flags::COMMIT,
                count,
                payload: &[],
                producer,
                sequence,
                epoch,
            };
            let header = self.header(wall, &new);
            let header = BatchHeader { offset, payload_bytes: bytes, ..header };
            offset = offset.plus(Count(u64::from(count)));
            header
        });
        headers.collect()
    }

    /// What came of the job that copies a commit.
    pub(super) fn commit_copied(
        &mut self,
        now: Monotonic,
        headers: &[BatchHeader],
        annex: &[u8],
        result: Result<(), Failure>,
    ) -> Result<OffsetRange, AppendError> {
        self.chain_running = false;
        if let Err(failure) = result {
            let reason = failure.to_string();
            return Err(self.undo_write(reason, failure.is_full()));
        }
        let start = self.active.end;
        // The parts of a chain are noted as one, with the last.
        let mut bytes = 0;
        for header in headers {
            bytes += header.length();
            if header.has(flags::CHAIN) && !header.has(flags::CHAIN_END) {
                continue;
            }
            let said: &[u8] = if header.has(flags::ANNEX) { annex } else { &[] };
            self.wrote(now, header, bytes, said);
            bytes = 0;
        }
        self.needs_mark = true;
        self.want_durable();
        Ok(OffsetRange::new(start, self.active.end))
    }
}

/// Copies a gathered commit into its segment.
pub(super) fn copy_commit<S: Storage>(work: &mut CommitWork<S>) -> Result<(), Failure> {
    let mut place = work.place;
    for header in &work.headers {
        let part = if header.has(flags::ANNEX) {
            &work.annex[..]
        } else {
            let bytes = header.payload_bytes as usize;
            work.payloads.next(bytes).doing("reading what was gathered for", &work.path)?
        };
        let header = BatchHeader { payload_crc: batch::checksum(part), ..*header };
        let slices = [&header.encode(&place)[..], part];
        work.file.write_all_at(&slices, place.position).doing("writing", &work.path)?;
        place = place.advanced(header.length());
    }
    Ok(())
}

/// Bytes that a commit takes in a segment.
#[must_use]
pub fn commit_bytes(parts: &[CommitPart], annex_bytes: usize) -> Bytes {
    let payloads: u64 = parts.iter().map(|part| u64::from(part.bytes)).sum();
    let headers = (parts.len() as u64 + 1) * batch::HEADER_BYTES as u64;
    Bytes(payloads + headers + 4 + annex_bytes as u64)
}
