//! Appending: one header and one write for each batch, the roll to the next segment, and the
//! room that both need.
//!
//! Never waits for a sync. Called by the server for each batch of a sender.

use super::error::{AppendError, is_full};
use super::jobs::{ChainWork, Job, Work, chain_bytes};
use super::log::{Log, PendingSnapshot, Segment};
use super::snapshot;
use super::staging::{Staging, check_space};
use super::storage::{Storage, StorageFile};
use crate::batch::{self, BatchHeader, Framing, Place, Record, flags};
use crate::limits;
use crate::planted::{self, Bug};
use crate::units::{
    Bytes, Count, Epoch, Monotonic, Offset, OffsetRange, Position, ProducerId, Sequence,
    SyncPolicy, WallTime,
};

/// A batch to append. Its payload has been checked.
#[derive(Clone, Copy, Debug)]
pub struct NewBatch<'a> {
    /// How messages lie in the payload.
    pub framing: Framing,
    /// See [`batch::flags`]; no part of a chain.
    pub flags: u16,
    /// Messages inside, at most [`limits::BATCH_MESSAGES_MAX`].
    pub count: u32,
    /// The messages, at most [`limits::BATCH_PAYLOAD_BYTES_MAX`] bytes.
    pub payload: &'a [u8],
    /// Who sent it; 0 for nobody who counts.
    pub producer: ProducerId,
    /// The producer's sequence of the last message.
    pub sequence: Sequence,
    /// The producer's epoch.
    pub epoch: Epoch,
}

/// A large message to append. Its record has been checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewChain {
    /// [`flags::SELECTIVE`] or nothing.
    pub flags: u16,
    /// Who sent it; 0 for nobody who counts.
    pub producer: ProducerId,
    /// The producer's sequence of the message.
    pub sequence: Sequence,
    /// The producer's epoch.
    pub epoch: Epoch,
}

/// Room that is kept free behind the last batch, so that going idle and an orderly stop can
/// always write their mark.
const MARK_ROOM: u64 = batch::HEADER_BYTES as u64;

impl<S: Storage> Log<S> {
    /// Appends a batch and returns its messages' offsets. It is written when this returns, and
    /// visible and durable when [`visible_end`](Log::visible_end) and
    /// [`durable_end`](Log::durable_end) say so. The stored time is `wall`, or the newest
    /// stored one if that is later.
    ///
    /// # Errors
    /// See [`AppendError`]. Nothing of the batch is visible then.
    pub fn append(
        &mut self,
        now: Monotonic,
        wall: WallTime,
        batch: &NewBatch<'_>,
    ) -> Result<OffsetRange, AppendError> {
        assert!(batch.payload.len() <= limits::BATCH_PAYLOAD_BYTES_MAX, "the batch is too large");
        assert!(u64::from(batch.count) <= limits::BATCH_MESSAGES_MAX, "too many messages");
        let staged = flags::CHAIN | flags::COMMIT;
        assert!(batch.flags & staged == 0, "chains and commits are staged");
        self.admit()?;
        let bytes = (batch::HEADER_BYTES + batch.payload.len()) as u64;
        self.roll_if_full(bytes, u64::from(batch.count))?;
        self.make_room(bytes)?;
        let header = self.header(wall, batch);
        self.write(&header, batch.payload)?;
        self.wrote(now, &header, header.length(), batch.payload);
        // A batch without messages that names a producer must outlive a crash like any other.
        self.needs_mark = true;
        Ok(OffsetRange::new(header.offset, header.end()))
    }

    /// Appends a large message that was staged: a job copies it into the log, as a chain of
    /// batches in one segment. Until then every append is answered [`AppendError::NotYet`];
    /// [`Progress::chain`](super::Progress::chain) says what came of it. `staging` must hold
    /// one record, as [`batch::Record`] encodes it, and can be dropped after that.
    ///
    /// # Errors
    /// See [`AppendError`]; after [`AppendError::NotYet`] the same staging can be tried again.
    pub fn append_chain(
        &mut self,
        wall: WallTime,
        staging: &Staging<S>,
        chain: &NewChain,
    ) -> Result<(), AppendError> {
        assert!(staging.bytes() > 0, "a record has a header");
        self.admit()?;
        let mut annex = Vec::new();
        if let Some(said) = staging.annex() {
            // A single part would begin with it, where readers look for the record.
            assert!(
                staging.bytes() > limits::CHAIN_PART_BYTES,
                "an annex with a message of one part"
            );
            batch::push_annex(&mut annex, said);
        }
        let bytes = chain_bytes(staging.bytes()) + annex.len() as u64;
        self.roll_if_full(bytes, 1)?;
        self.make_room(bytes)?;
        let NewChain { flags, producer, sequence, epoch } = *chain;
        assert!(flags & !batch::flags::SELECTIVE == 0, "the log makes the chain");
        let last = NewBatch { flags, producer, sequence, epoch, ..mark() };
        let header = BatchHeader { count: 1, ..self.header(wall, &last) };
        self.chain_running = true;
        self.chain_attributes = staging.attributes().to_vec();
        self.chain_annex.clone_from(&annex);
        self.chores.chain = Some(Job {
            queue: self.id(),
            storage: self.storage.clone(),
            work: Work::Chain(ChainWork {
                staging: staging.file(),
                bytes: staging.bytes(),
                annex,
                path: self.segment_path(self.active.number),
                file: self.active.files[0].clone(),
                place: self.end_place(),
                header,
            }),
        });
        Ok(())
    }

    /// Whether a chain would find its place now, behind a batch with this annex alone: what says
    /// where the chain comes from is not to be written again each time that there is no place.
    ///
    /// # Errors
    /// As for [`append_chain`](Log::append_chain).
    pub fn admit_chain(&mut self, staging: &Staging<S>, annex: &[u8]) -> Result<(), AppendError> {
        self.admit()?;
        let bytes = chain_bytes(staging.bytes()) + annex.len() as u64 + 2 * MARK_ROOM;
        if self.active.position + bytes > self.options.segment_bytes {
            return self.await_prepared();
        }
        self.make_room(bytes)
    }

    /// What came of the job that copies a chain.
    pub(super) fn chain_copied(
        &mut self,
        now: Monotonic,
        header: &BatchHeader,
        bytes: u64,
        result: Result<(), super::error::Failure>,
    ) -> Result<OffsetRange, AppendError> {
        self.chain_running = false;
        if let Err(failure) = result {
            let reason = failure.to_string();
            return Err(self.undo_write(reason, failure.is_full()));
        }
        let annex = std::mem::take(&mut self.chain_annex);
        let says = if annex.is_empty() { 0 } else { batch::flags::ANNEX };
        let header = &BatchHeader { flags: header.flags | says, ..*header };
        self.wrote(now, header, bytes, &annex);
        let record = Record { attribute_bytes: &self.chain_attributes, body: &[] };
        self.unique.note_record(&record, header.offset, header.time);
        self.needs_mark = true;
        Ok(OffsetRange::new(header.offset, header.end()))
    }

    /// Appends a batch without messages that carries the durable mark.
    pub(super) fn append_mark(&mut self, now: Monotonic) -> Result<(), AppendError> {
        self.admit()?;
        let header = self.header(self.time, &mark());
        self.write(&header, &[])?;
        self.wrote(now, &header, header.length(), &[]);
        self.needs_mark = false;
        self.syncs.want_all();
        Ok(())
    }

    pub(super) fn admit(&self) -> Result<(), AppendError> {
        match &self.failed {
            Some(why) => Err(AppendError::Failed(why.clone())),
            None if self.chain_running => Err(AppendError::NotYet),
            None => Ok(()),
        }
    }

    /// Where the next batch goes.
    pub(super) fn end_place(&self) -> Place {
        Place {
            queue: self.id(),
            segment: self.active.number,
            position: Position(self.active.position),
        }
    }

    pub(super) fn header(&mut self, wall: WallTime, batch: &NewBatch<'_>) -> BatchHeader {
        let unmarked = planted::is(Bug::MarkNeverAdvanced);
        BatchHeader {
            payload_bytes: batch.payload.len() as u32,
            framing: batch.framing,
            flags: batch.flags,
            offset: self.active.end,
            count: batch.count,
            payload_crc: batch::checksum(batch.payload),
            mark: if unmarked { Offset(0) } else { self.syncs.durable_end },
            time: self.time.max(wall),
            producer: batch.producer,
            sequence: batch.sequence,
            epoch: batch.epoch,
        }
    }

    fn write(&mut self, header: &BatchHeader, payload: &[u8]) -> Result<(), AppendError> {
        let place = self.end_place();
        let bytes = header.encode(&place);
        match self.active.files[0].write_all_at(&[&bytes, payload], place.position) {
            Ok(()) => Ok(()),
            Err(error) => {
                let path = self.segment_path(self.active.number);
                let reason = format!("writing {}: {error}", path.display());
                Err(self.undo_write(reason, is_full(&error)))
            }
        }
    }

    /// Cuts off what a failed write may have left, so that the file ends with the last batch.
    pub(super) fn undo_write(&mut self, reason: String, is_full: bool) -> AppendError {
        let position = self.active.position;
        if !planted::is(Bug::FailedWriteStays)
            && let Err(error) = self.active.files[0].truncate(Bytes(position))
        {
            return self.fail(format!("{reason}; cutting it off again: {error}"));
        }
        self.active.allocated = position;
        // The cut has to be synced like a write: the mark of going idle sees to it.
        self.needs_mark = true;
        if !is_full {
            return self.fail(reason);
        }
        let space = super::staging::space(&*self.storage, &self.options);
        AppendError::Full { available: space.0, reserve: space.1, reason }
    }

    /// A batch (or a whole chain) of `bytes` stands behind the others.
    pub(super) fn wrote(
        &mut self,
        now: Monotonic,
        header: &BatchHeader,
        bytes: u64,
        payload: &[u8],
    ) {
        let active = &mut self.active;
        if active.count.0 == 0 {
            // A mark may stand in front of the first message.
            active.time_first = header.time;
        }
        active.index.note(header.offset, active.position, self.options.index_every);
        active.position += bytes;
        active.count.0 += u64::from(header.count);
        active.end = header.end();
        active.time_last = header.time;
        // What took its time to be copied may be older than what was said of the time since.
        self.time = self.time.max(header.time);
        self.last_write = now;
        self.chores.mark_failed = false;
        self.syncs.wrote(now, bytes);
        self.counters.note(header, bytes);
        self.producers.note(header, header.annex(payload));
        self.unique.note(header, header.messages_part(payload).unwrap_or_default());
        if self.policy != SyncPolicy::Always || planted::is(Bug::ConfirmBeforeSync) {
            self.visible_end = header.end();
        }
    }

    /// Goes on in the next segment when the batch would not fit this one.
    pub(super) fn roll_if_full(&mut self, bytes: u64, count: u64) -> Result<(), AppendError> {
        let active = &self.active;
        let messages = active.end.0 - active.base.0 + count;
        let fits = active.position + bytes <= self.options.segment_bytes
            && messages <= self.options.segment_messages;
        if active.is_empty() || fits {
            return Ok(());
        }
        self.await_prepared()?;
        self.roll();
        Ok(())
    }

    /// There must be a segment to go on in.
    fn await_prepared(&mut self) -> Result<(), AppendError> {
        if self.prepared.is_empty() {
            // A refusal from before anyone needed the segment is not the answer: try anew.
            let needed = std::mem::replace(&mut self.preparing.wanted, true);
            return match self.preparing.refused.take() {
                Some(reason) if needed => {
                    self.preparing.wanted = false;
                    let space = super::staging::space(&*self.storage, &self.options);
                    Err(AppendError::Full { available: space.0, reserve: space.1, reason })
                }
                _ => Err(AppendError::NotYet),
            };
        }
        Ok(())
    }

    /// Rolls for the sake of dropping, as soon as there is a segment to go on in.
    pub(super) fn roll_when_prepared(&mut self) {
        let ready = !self.prepared.is_empty() && !self.chain_running && self.failed.is_none();
        if self.preparing.then_roll && ready {
            self.preparing.then_roll = false;
            if !self.active.is_empty() {
                self.roll();
            }
        }
    }

    /// Makes the prepared segment the active one. The old one is sealed by a job once it is
    /// durable; until then the durable end cannot pass it.
    fn roll(&mut self) {
        self.take_snapshot();
        let prepared = self.prepared.pop_front().expect("the caller has seen one");
        self.preparing.wanted = false;
        let end = self.active.end;
        let next = Segment::begin(prepared, end, self.time);
        assert!(next.number.0 == self.active.number.0 + 1, "segments follow on each other");
        let mut old = std::mem::replace(&mut self.active, next);
        old.written = self.syncs.written;
        self.unsealed.push_back(old);
        // A segment is sealed soon, under any policy: a recovery reads what is not sealed.
        self.syncs.want_all();
    }

    /// Keeps what is known beside the messages as it is now, for a snapshot that is written once the log is
    /// durable to here. One at each roll, so that sealed segments need not be read at a start.
    pub(super) fn take_snapshot(&mut self) {
        let covered = self.end_covered();
        self.producers.forget_old(self.time);
        self.counters_kept = Some(self.counters);
        let (producers, unique) = (&self.producers, Some(&self.unique));
        let counted = (&self.counters, self.chores.leaving.as_slice());
        let bytes = snapshot::encode(self.id(), covered, counted, producers, unique);
        let leaving = self.chores.leaving.len();
        let needs = self.syncs.written;
        self.pending_snapshot = Some(PendingSnapshot { bytes, covered, needs, leaving });
    }

    /// Reserves room for the batch, ahead in growing steps.
    pub(super) fn make_room(&mut self, bytes: u64) -> Result<(), AppendError> {
        let need = self.active.position + bytes + MARK_ROOM;
        let least = |log: &Self| {
            need.saturating_sub(log.active.allocated)
                .next_multiple_of(limits::ALLOCATE_STEP_BYTES_MIN)
        };
        if need <= self.active.allocated {
            return Ok(());
        }
        let step = self.active.step.max(least(self));
        match self.allocate(step) {
            Ok(()) => {
                self.active.step = (step * 2).min(limits::ALLOCATE_STEP_BYTES_MAX);
                Ok(())
            }
            // Near the end of the space, what is needed may fit where a step ahead does not.
            Err(AppendError::Full { .. }) => self.allocate(least(self)),
            Err(error) => Err(error),
        }
    }

    fn allocate(&mut self, step: u64) -> Result<(), AppendError> {
        check_space(&*self.storage, &self.options, step)?;
        let from = Position(self.active.allocated);
        match self.active.files[0].allocate(from, Bytes(step)) {
            Ok(()) => {
                self.active.allocated += step;
                Ok(())
            }
            Err(error) => {
                let path = self.segment_path(self.active.number);
                let reason = format!("reserving room in {}: {error}", path.display());
                Err(self.undo_write(reason, is_full(&error)))
            }
        }
    }
}

/// A batch without messages.
pub(super) fn mark() -> NewBatch<'static> {
    NewBatch {
        framing: Framing::Records,
        flags: flags::MARK,
        count: 0,
        payload: &[],
        producer: ProducerId(0),
        sequence: Sequence(0),
        epoch: Epoch(0),
    }
}

/// The most that the base of segment `number` can be, when that of `known` is at most `base`.
pub(super) fn bound(base: Offset, segments: u64, segment_messages: u64) -> Offset {
    base.plus(Count(segments.saturating_mul(segment_messages)))
}
