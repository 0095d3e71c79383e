//! Producers with a name, and what the server itself appends in the name of one.
//!
//! Plain appends with the care of [`append`](super::append); a sync is asked for, whatever the
//! policy. Called by the server.

use super::append::{NewBatch, mark};
use super::error::AppendError;
use super::log::Log;
use super::storage::Storage;
use crate::batch::{self, Framing, flags};
use crate::limits;
use crate::units::{Bytes, Epoch, Monotonic, OffsetRange, ProducerId, Sequence, WallTime};

/// A named producer that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedProducer {
    /// Its epoch from now on; older instances are fenced off.
    pub epoch: Epoch,
    /// Its last stored sequence.
    pub sequence: Sequence,
    /// What it said last in an annex.
    pub annex: Option<Vec<u8>>,
    /// All this holds for good once [`Log::durable_bytes`] has reached this.
    pub mark: Bytes,
}

/// What the server appends on its own behalf.
#[derive(Clone, Copy, Debug)]
pub struct InternalBatch<'a> {
    /// In whose name; it was opened with [`Log::open_producer`].
    pub producer: ProducerId,
    /// The producer's epoch.
    pub epoch: Epoch,
    /// The producer's sequence of the last message; for a batch without messages, of the last
    /// one that it has stored.
    pub sequence: Sequence,
    /// What to keep with the sequence, at most [`limits::ANNEX_BYTES_MAX`].
    pub annex: &'a [u8],
    /// How messages lie in the payload.
    pub framing: Framing,
    /// [`flags::SELECTIVE`] or nothing.
    pub flags: u16,
    /// Messages inside; may be 0.
    pub count: u32,
    /// The messages, with the annex at most [`limits::BATCH_PAYLOAD_BYTES_MAX`] bytes.
    pub messages: &'a [u8],
}

/// What was appended on the server's behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The messages' offsets.
    pub range: OffsetRange,
    /// It is durable once [`Log::durable_bytes`] has reached this.
    pub mark: Bytes,
}

impl<S: Storage> Log<S> {
    /// Opens a named producer: raises its epoch, which fences off older instances of it. A sync
    /// is asked for.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn open_producer(
        &mut self,
        now: Monotonic,
        wall: WallTime,
        producer: ProducerId,
    ) -> Result<OpenedProducer, AppendError> {
        assert!(producer != ProducerId(0), "nobody has no epoch");
        if !self.producers.has_room_for(producer) {
            return Err(AppendError::TooManyProducers);
        }
        let (epoch, sequence) = self.producers.last(producer).unwrap_or_default();
        let epoch = Epoch(epoch.0.saturating_add(1));
        let annex = self.producers.annex(producer).map(<[u8]>::to_vec);
        self.append_named_mark(now, wall, producer, (epoch, sequence), annex.as_deref())?;
        self.want_durable();
        Ok(OpenedProducer { epoch, sequence, annex, mark: self.written_bytes() })
    }

    /// Keeps a producer that has a name in another log, with its epoch, its last sequence there and
    /// what it said with that: this one never forgets it either.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn keep_producer(
        &mut self,
        now: Monotonic,
        wall: WallTime,
        producer: ProducerId,
        last: (Epoch, Sequence),
        annex: Option<&[u8]>,
    ) -> Result<(), AppendError> {
        if !self.producers.has_room_for(producer) {
            return Err(AppendError::TooManyProducers);
        }
        self.append_named_mark(now, wall, producer, last, annex)
    }

    /// A mark that names a producer. Its sequence may be one that is stored in another log; so what
    /// was said with that goes with it, else a restart would know the one without the other.
    fn append_named_mark(
        &mut self,
        now: Monotonic,
        wall: WallTime,
        producer: ProducerId,
        (epoch, sequence): (Epoch, Sequence),
        annex: Option<&[u8]>,
    ) -> Result<(), AppendError> {
        let (mut payload, mut says) = (Vec::new(), 0);
        if let Some(annex) = annex {
            batch::push_annex(&mut payload, annex);
            says = flags::ANNEX;
        }
        let plain = mark();
        let flags = plain.flags | says;
        let opening = NewBatch { producer, sequence, epoch, flags, payload: &payload, ..plain };
        self.append(now, wall, &opening).map(|_| ())
    }

    /// Appends on behalf of the server, in the name of a producer, with an annex that is kept
    /// until its next one. A sync is asked for, whatever the policy.
    ///
    /// # Errors
    /// See [`AppendError`]. Nothing of the batch is visible then, and the annex is as it was.
    pub fn append_internal(
        &mut self,
        now: Monotonic,
        wall: WallTime,
        internal: &InternalBatch<'_>,
    ) -> Result<Committed, AppendError> {
        assert!(internal.annex.len() <= limits::ANNEX_BYTES_MAX, "the annex is too large");
        let mut payload = Vec::with_capacity(4 + internal.annex.len() + internal.messages.len());
        batch::push_annex(&mut payload, internal.annex);
        payload.extend_from_slice(internal.messages);
        let empty = if internal.count == 0 { flags::EMPTY } else { 0 };
        let new = NewBatch {
            framing: internal.framing,
            flags: internal.flags | flags::ANNEX | empty,
            count: internal.count,
            payload: &payload,
            producer: internal.producer,
            sequence: internal.sequence,
            epoch: internal.epoch,
        };
        let range = self.append(now, wall, &new)?;
        self.want_durable();
        Ok(Committed { range, mark: self.written_bytes() })
    }
}
