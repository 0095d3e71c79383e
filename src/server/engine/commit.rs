//! Commits: several batches of a producer that are stored as one, durably, before they are
//! confirmed, whatever the queue's policy. What they say in their annex is kept if it has a name.
//!
//! A commit of one frame is one append. The frames of a larger one are gathered apart, in memory
//! or, if that is much, in a staging file, so that a client that is slow or dies in its midst holds
//! up nobody; then a job copies them into the log. Called for COMMIT, and in each turn of a queue.

use crate::batch::{self, Framing, flags};
use crate::limits;
use crate::log::storage::Storage;
use crate::log::{
    AppendError, CommitPart, Gathered, InternalBatch, Judgement, NewCommit, commit_bytes,
};
use crate::planted::{self, Bug};
use crate::units::{Bytes, Count, Moment, Offset, OffsetRange, Sequence};
use crate::wire::{CommitHead, ErrorCode, Reply};

use super::hosting::ChainOwner;
use super::portion::{Room, batch_bytes};
use super::sending::{Source, append_fault, refusal};
use super::session::Channel;
use super::{ConnectionId, Engine, QueueNumber, Trouble, fault_with, protocol};

/// A commit of which frames have come.
pub(super) struct Gathering<S: Storage> {
    sequence: Sequence,
    gathered: Gathered<S>,
    parts: Vec<CommitPart>,
    count: u64,
    /// A chain has begun and not ended.
    in_chain: bool,
    /// What the last frame said, once it has come: it waits for the log, and comes again.
    annex: Option<Vec<u8>>,
}

/// A commit that is stored and not durable yet, with who waits for it.
pub(super) struct Committing {
    connection: ConnectionId,
    channel: u16,
    sequence: Sequence,
    /// When the log is durable so far.
    mark: Bytes,
    end: Offset,
}

/// A frame taken apart.
struct Frame<'a> {
    annex: Option<&'a [u8]>,
    messages: &'a [u8],
}

impl<S: Storage> Engine<S> {
    pub(super) fn commit(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        head: &CommitHead,
        payload: &[u8],
        moment: Moment,
    ) -> Result<(), Trouble> {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let sender = match session.channels.get_mut(&channel) {
            Some(Channel::Sending(sender)) if !sender.closing => sender,
            // Sent before the client could know that the channel failed.
            Some(Channel::Failed) => return Ok(()),
            _ => return Err(protocol("COMMIT on a channel that does not send")),
        };
        if sender.refused.is_some() {
            return Ok(());
        }
        let source = Source { connection, channel, number: sender.queue };
        let frame = take_apart(head, payload)?;
        match sender.commit.take() {
            None if !head.more && head.batch_flags & flags::CHAIN == 0 => {
                self.commit_one(source, head, &frame, moment)
            }
            gathering => self.gather(source, gathering, head, &frame, moment),
        }
    }

    /// A commit that is one batch.
    fn commit_one(
        &mut self,
        source: Source,
        head: &CommitHead,
        frame: &Frame<'_>,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let count = u64::from(head.count);
        let needed = Room { messages: count, bytes: batch_bytes(frame.messages.len()) };
        if !self.may_commit(source, head.sequence, needed)? {
            return Ok(());
        }
        let sender = self.sender(source).expect("it sends");
        let new = InternalBatch {
            producer: sender.producer,
            epoch: sender.epoch,
            sequence: head.sequence,
            annex: frame.annex.unwrap_or_default(),
            framing: head.framing,
            flags: 0,
            count: head.count,
            messages: frame.messages,
        };
        let hosted = self.hosted.get_mut(&source.number).expect("a sender's queue");
        match hosted.log.append_internal(moment.now, moment.wall, &new) {
            Ok(committed) => {
                let sender = self.sender(source).expect("it sends");
                sender.share.add(count, frame.messages.len() as u64);
                self.await_commit(source, head.sequence, committed.mark, committed.range.end);
                self.let_go(source.connection, source.channel);
                Ok(())
            }
            Err(AppendError::NotYet) => {
                self.park(source.connection, source.number);
                Ok(())
            }
            Err(error) => Err(self.append_failed(source.number, &error).into()),
        }
    }

    /// Whether a commit that is complete is to be stored now: not if it was before, or has to wait.
    fn may_commit(
        &mut self,
        source: Source,
        sequence: Sequence,
        needed: Room,
    ) -> Result<bool, Trouble> {
        let Source { connection, channel, number } = source;
        let sender = self.sender(source).expect("it sends");
        let (producer, epoch) = (sender.producer, sender.epoch);
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        if hosted.chain.is_some() {
            self.park(connection, number);
            return Ok(false);
        }
        let expected = Sequence(sequence.0 - 1);
        match hosted.log.producers().judge(producer, epoch, expected, sequence) {
            Judgement::Store => {}
            Judgement::Duplicate { .. } => {
                hosted.log.want_durable();
                let (mark, end) = (hosted.log.written_bytes(), hosted.log.written_end());
                self.await_commit(source, sequence, mark, end);
                return Ok(false);
            }
            refused => return Err(refusal(&hosted.name, refused)),
        }
        if needed.messages == 0 {
            return Ok(true);
        }
        let room = self.room(number, needed.messages, needed.bytes as usize);
        let fits = needed.messages <= room.messages && needed.bytes <= room.bytes;
        if !fits {
            self.no_room(Source { connection, channel, number }, needed);
        }
        Ok(fits)
    }

    /// A frame of a commit of several.
    fn gather(
        &mut self,
        source: Source,
        gathering: Option<Box<Gathering<S>>>,
        head: &CommitHead,
        frame: &Frame<'_>,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let hosted = self.hosted.get_mut(&source.number).expect("a sender's queue");
        let full = |error: AppendError| {
            let doing = format!("cannot take in a commit for {}", hosted.name);
            Trouble::from(append_fault(&doing, &error))
        };
        let mut gathering = match gathering {
            Some(gathering) if gathering.sequence == head.sequence => gathering,
            Some(_) => return Err(protocol("frames of two commits in one another")),
            None => Box::new(Gathering {
                sequence: head.sequence,
                gathered: hosted.log.gather_begin(),
                parts: Vec::new(),
                count: 0,
                in_chain: false,
                annex: None,
            }),
        };
        // A last frame that was parked comes again, when its batch is there already.
        if gathering.annex.is_none() {
            if !frame.messages.is_empty() {
                gathering.check(head, frame.messages.len())?;
                hosted.log.gather(&mut gathering.gathered, frame.messages).map_err(full)?;
                gathering.note(head, frame.messages.len());
            }
            gathering.annex = frame.annex.map(<[u8]>::to_vec);
        } else if head.more {
            return Err(protocol("a frame behind the end of a commit"));
        }
        if gathering.annex.is_none() {
            self.sender(source).expect("it sends").commit = Some(gathering);
            return Ok(());
        }
        if gathering.in_chain {
            return Err(protocol("a commit that ends inside a large message"));
        }
        self.commit_gathered(source, gathering, moment)
    }

    /// All frames are there: a job copies them into the log.
    fn commit_gathered(
        &mut self,
        source: Source,
        gathering: Box<Gathering<S>>,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let Source { connection, channel, number } = source;
        let (sequence, annex) = (gathering.sequence, gathering.annex.clone().unwrap_or_default());
        let bytes = commit_bytes(&gathering.parts, annex.len()).0;
        let needed = Room { messages: gathering.count, bytes };
        // It is kept for the frame that comes again, if it has to.
        self.sender(source).expect("it sends").commit = Some(gathering);
        let stored = self.may_commit(source, sequence, needed)?;
        let parked = self.sessions.get(&connection).is_some_and(|session| session.parked);
        if !stored {
            if !parked && let Some(sender) = self.sender(source) {
                sender.commit = None;
            }
            return Ok(());
        }
        let sender = self.sender(source).expect("it sends");
        let gathering = sender.commit.take().expect("it was just kept");
        let commit = NewCommit {
            producer: sender.producer,
            epoch: sender.epoch,
            sequence,
            parts: &gathering.parts,
            annex: &annex,
        };
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        match hosted.log.append_commit(moment.wall, &gathering.gathered, &commit) {
            Ok(()) => {
                hosted.chain = Some(ChainOwner::Commit(connection, channel, sequence));
                let sender = self.sender(source).expect("it sends");
                sender.share.add(gathering.count, gathering.gathered.bytes());
                self.let_go(connection, channel);
                self.touch(number);
                Ok(())
            }
            Err(AppendError::NotYet) => {
                self.sender(source).expect("it sends").commit = Some(gathering);
                self.park(connection, number);
                Ok(())
            }
            Err(error) => Err(self.append_failed(number, &error).into()),
        }
    }

    /// What came of copying a commit into the log.
    pub(super) fn commit_appended(
        &mut self,
        source: Source,
        sequence: Sequence,
        result: Result<OffsetRange, AppendError>,
    ) {
        match result {
            Ok(range) => {
                let hosted = self.hosted.get_mut(&source.number).expect("a queue with a job");
                let mark = hosted.log.written_bytes();
                self.await_commit(source, sequence, mark, range.end);
            }
            Err(error) => {
                let fault = self.append_failed(source.number, &error);
                if self.is_sending(source.connection, source.channel) {
                    self.fail_channel(source.connection, source.channel, fault);
                }
            }
        }
    }

    fn await_commit(&mut self, source: Source, sequence: Sequence, mark: Bytes, end: Offset) {
        let Source { connection, channel, number } = source;
        if let Some(sender) = self.sender(source) {
            sender.unconfirmed += 1;
        }
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        hosted.committing.push_back(Committing { connection, channel, sequence, mark, end });
        self.touch(number);
    }

    /// Confirms the commits that are durable, and visible.
    pub(super) fn say_committed(&mut self, number: QueueNumber) {
        loop {
            let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
            let (durable, visible) = (hosted.log.durable_bytes(), hosted.log.visible_end());
            let early = planted::is(Bug::CommitNotSynced);
            let ready =
                |first: &Committing| (early || first.mark <= durable) && first.end <= visible;
            if !hosted.committing.front().is_some_and(ready) {
                return;
            }
            let first = hosted.committing.pop_front().expect("there is a first");
            if self.is_sending(first.connection, first.channel) {
                let confirm = Reply::Confirm(first.sequence, first.end, Count(0));
                self.reply(first.connection, first.channel, &confirm);
                self.confirmed(first.connection, first.channel, 1);
            }
        }
    }
}

impl<S: Storage> Gathering<S> {
    /// Whether another batch may come.
    fn check(&self, head: &CommitHead, bytes: usize) -> Result<(), Trouble> {
        let chain = head.batch_flags & flags::CHAIN != 0;
        if self.in_chain && !chain {
            return Err(protocol("a large message in a commit that was not brought to its end"));
        }
        if self.parts.len() >= limits::COMMIT_BATCHES_MAX {
            return Err(protocol("a commit of too many batches"));
        }
        if self.gathered.bytes() + bytes as u64 > limits::COMMIT_BYTES_MAX as u64 {
            let text = format!("a commit has at most {} MiB", limits::COMMIT_BYTES_MAX >> 20);
            let remedy = "give the filter less at a time: `--batch N`";
            return Err(fault_with(ErrorCode::BadInput, text, remedy).into());
        }
        if self.count + u64::from(head.count) > limits::SEGMENT_MESSAGES_MAX {
            return Err(protocol("a commit of too many messages"));
        }
        Ok(())
    }

    /// Another batch is there.
    fn note(&mut self, head: &CommitHead, bytes: usize) {
        let of_chain = flags::CHAIN | flags::CHAIN_END;
        self.parts.push(CommitPart {
            framing: head.framing,
            flags: head.batch_flags & of_chain,
            count: head.count,
            bytes: bytes as u32,
        });
        self.count += u64::from(head.count);
        self.in_chain = head.batch_flags & of_chain == flags::CHAIN;
    }
}

/// Checks what a frame announces.
fn take_apart<'a>(head: &CommitHead, payload: &'a [u8]) -> Result<Frame<'a>, Trouble> {
    let malformed =
        |what: &dyn std::fmt::Display| protocol(format!("malformed Commit frame: {what}"));
    let messages =
        batch::messages_part(head.batch_flags, payload).map_err(|wrong| malformed(&wrong))?;
    let is_annexed = head.batch_flags & flags::ANNEX != 0;
    let annex = is_annexed.then(|| &payload[4..payload.len() - messages.len()]);
    if annex.is_some_and(|annex| annex.len() > limits::ANNEX_BYTES_MAX) {
        return Err(malformed(&"the annex is too large"));
    }
    let chain = head.batch_flags & (flags::CHAIN | flags::CHAIN_END);
    if chain == flags::CHAIN_END {
        return Err(malformed(&"the end of a chain that is none"));
    }
    if chain != 0 {
        let last = head.batch_flags & flags::CHAIN_END != 0;
        if head.framing != Framing::Records || head.count != u32::from(last) || messages.is_empty()
        {
            return Err(malformed(&"a part of a large message that is none"));
        }
        return Ok(Frame { annex, messages });
    }
    if head.count == 0 {
        // Only what the last frame says.
        if annex.is_none() || !messages.is_empty() {
            return Err(malformed(&"a batch without messages"));
        }
        return Ok(Frame { annex, messages });
    }
    let traits = batch::check_messages(head.framing, messages, head.count)
        .map_err(|wrong| malformed(&wrong))?;
    if traits.is_selective() || traits.ids || traits.keys || traits.not_before.is_some() {
        return Err(malformed(&"a message with an id, a key, or a time to go by"));
    }
    Ok(Frame { annex, messages })
}
