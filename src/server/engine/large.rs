//! Large messages: from their parts over a staging file to a chain of batches in the log.
//!
//! Called by `sending` for parts of a message that does not fit one frame, and when the job that
//! copies one is done.

use crate::batch::{self, Framing, RECORD_HEADER_BYTES, Record, Traits, flags, push_annex};
use crate::limits;
use crate::log::storage::Storage;
use crate::log::{AppendError, Judgement, NewBatch, NewChain};
use crate::units::{Count, Moment, Monotonic, OffsetRange, Sequence};
use crate::wire::{ErrorCode, PublishHead};

use super::counting::Origin;
use super::delaying::too_large_to_wait;
use super::hosting::{Awaiting, ChainOwner, Say};
use super::portion::{Room, Verdict, batch_bytes};
use super::sending::{Source, append_fault, refusal};
use super::session::{Channel, Large};
use super::uniqueness::{self, Doorkeeper};
use super::{ConnectionId, Engine, QueueNumber, Trouble, fault_with, protocol};

impl<S: Storage> Engine<S> {
    /// A part of a large message, or its end.
    pub(super) fn publish_part(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        head: &PublishHead,
        payload: &[u8],
        moment: Moment,
    ) -> Result<(), Trouble> {
        if head.count != 1 || head.framing != Framing::Records {
            return Err(protocol("a part of a large message that is no record"));
        }
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let Some(Channel::Sending(sender)) = session.channels.get_mut(&channel) else {
            unreachable!("the caller has looked");
        };
        let named = sender.named;
        let hosted = self.hosted.get_mut(&sender.queue).expect("a sender's queue");
        let full = |error: AppendError| {
            let doing = format!("cannot take in a large message for {}", hosted.name);
            Trouble::from(append_fault(&doing, &error))
        };
        let mut large = match sender.large.take() {
            Some(large) if large.sequence == head.sequence => large,
            Some(_) => return Err(protocol("parts of two large messages in one another")),
            None => Large {
                sequence: head.sequence,
                record_bytes: record_bytes(payload)?,
                staging: hosted.log.stage_begin().map_err(full)?,
                ended: false,
            },
        };
        // An end that was parked comes again, when its bytes are staged already.
        if !large.ended {
            let (annex, payload) = annex_of(head, payload, named, large.record_bytes)?;
            if let Some(annex) = annex {
                large.staging.set_annex(annex);
            }
            if large.staging.bytes() + payload.len() as u64 > large.record_bytes {
                return Err(protocol("a large message that is longer than its header says"));
            }
            large.staging.push(payload).map_err(full)?;
        } else if head.more {
            return Err(protocol("a part behind the end of a large message"));
        }
        if !head.more {
            if large.staging.bytes() != large.record_bytes {
                return Err(protocol("a large message that is shorter than its header says"));
            }
            large.ended = true;
            return self.publish_staged(connection, channel, head, large, moment);
        }
        sender.large = Some(large);
        Ok(())
    }

    /// The message is whole: a job copies it into the log.
    fn publish_staged(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        head: &PublishHead,
        large: Large<S>,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let Some(Channel::Sending(sender)) = session.channels.get_mut(&channel) else {
            unreachable!("the caller has looked");
        };
        let (number, producer, epoch) = (sender.queue, sender.producer, sender.epoch);
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        if hosted.chain.is_some() {
            sender.large = Some(large);
            self.park(connection, number);
            return Ok(());
        }
        let source = Source { connection, channel, number };
        if sender.delayed {
            sender.large = Some(large);
            if !self.turn_to(source, false, moment)? {
                return Ok(());
            }
            let back = self.sender(source).and_then(|sender| sender.large.take());
            return self.publish_staged(connection, channel, head, back.expect("it"), moment);
        }
        let expected = Sequence(head.sequence.0 - 1);
        match hosted.log.producers().judge(producer, epoch, expected, head.sequence) {
            Judgement::Store => {}
            Judgement::Duplicate { .. } => {
                let end = hosted.log.written_end();
                self.await_confirm(source, head.sequence, end, 0);
                return Ok(());
            }
            refused => return Err(refusal(&hosted.name, refused)),
        }
        let bytes = large.record_bytes as usize;
        match self.large_verdict(source, &large, moment)? {
            Verdict::There => self.leave_out(source, head.sequence, large, moment),
            Verdict::Refuse(fault) => {
                self.refuse(connection, channel, fault);
                Ok(())
            }
            Verdict::Store if !self.room(number, 1, bytes).fits(1, bytes) => {
                let needed = Room { messages: 1, bytes: batch_bytes(bytes) };
                self.sender(source).expect("it sends").large = Some(large);
                self.no_room(source, needed);
                Ok(())
            }
            Verdict::Store => self.copy_in(source, head.sequence, large, moment),
        }
    }

    /// What becomes of a large message, by its attributes.
    fn large_verdict(
        &mut self,
        source: Source,
        large: &Large<S>,
        moment: Moment,
    ) -> Result<Verdict, Trouble> {
        let record = Record { attribute_bytes: large.staging.attributes(), body: &[] };
        let traits = traits_of(&record)?;
        let unless_pending = self.sender(source).is_some_and(|sender| sender.unless_pending);
        let hosted = self.hosted.get_mut(&source.number).expect("a sender's queue");
        if record.not_before().is_some_and(|time| time > moment.wall) {
            return Err(too_large_to_wait().into());
        }
        if !uniqueness::asks(&mut hosted.log, &traits, unless_pending) {
            return Ok(Verdict::Store);
        }
        let mut doorkeeper = Doorkeeper::new(hosted, &self.broker, unless_pending, moment.wall);
        Ok(doorkeeper.verdict(&record))
    }

    /// A large message that is there already: only its sequence is stored.
    fn leave_out(
        &mut self,
        source: Source,
        sequence: Sequence,
        large: Large<S>,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let sender = self.sender(source).expect("it sends");
        let (producer, epoch) = (sender.producer, sender.epoch);
        let (mut says, mut payload) = (0, Vec::new());
        if let Some(annex) = large.staging.annex() {
            says = flags::ANNEX;
            push_annex(&mut payload, annex);
        }
        let new = NewBatch {
            framing: Framing::Records,
            flags: flags::EMPTY | says,
            count: 0,
            payload: &payload,
            producer,
            sequence,
            epoch,
        };
        let hosted = self.hosted.get_mut(&source.number).expect("a sender's queue");
        match hosted.log.append(moment.now, moment.wall, &new) {
            Ok(range) => {
                hosted.log.counters().there.0 += 1;
                self.sender(source).expect("it sends").there.0 += 1;
                self.await_confirm(source, sequence, range.end, 0);
                Ok(())
            }
            Err(AppendError::NotYet) => {
                self.sender(source).expect("it sends").large = Some(large);
                self.park(source.connection, source.number);
                Ok(())
            }
            Err(error) => Err(self.append_failed(source.number, &error).into()),
        }
    }

    fn copy_in(
        &mut self,
        source: Source,
        sequence: Sequence,
        large: Large<S>,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let record = Record { attribute_bytes: large.staging.attributes(), body: &[] };
        let selective = traits_of(&record)?.is_selective();
        let sender = self.sender(source).expect("it sends");
        let chain = NewChain {
            flags: if selective { flags::SELECTIVE } else { 0 },
            producer: sender.producer,
            sequence,
            epoch: sender.epoch,
        };
        let hosted = self.hosted.get_mut(&source.number).expect("a sender's queue");
        match hosted.log.append_chain(moment.wall, &large.staging, &chain) {
            Ok(()) => {
                let Source { connection, channel, .. } = source;
                hosted.chain = Some(ChainOwner::Channel(connection, channel, sequence));
                self.sender(source).expect("it sends").unconfirmed += 1;
                self.let_go(source.connection, source.channel);
                self.touch(source.number);
                Ok(())
            }
            Err(AppendError::NotYet) => {
                self.sender(source).expect("it sends").large = Some(large);
                self.park(source.connection, source.number);
                Ok(())
            }
            Err(error) => Err(self.append_failed(source.number, &error).into()),
        }
    }

    /// What came of copying a large message into the log.
    pub(super) fn chain_appended(
        &mut self,
        number: QueueNumber,
        result: Result<OffsetRange, AppendError>,
    ) {
        let hosted = self.hosted.get_mut(&number).expect("a queue with a job");
        let (connection, channel, sequence) = match hosted.chain.take() {
            Some(ChainOwner::Channel(connection, channel, sequence)) => {
                (connection, channel, sequence)
            }
            Some(ChainOwner::Commit(connection, channel, sequence)) => {
                let source = Source { connection, channel, number };
                return self.commit_appended(source, sequence, result);
            }
            Some(ChainOwner::Mover(lane)) => return self.large_moved(lane, number, result),
            None => return,
        };
        match result {
            Ok(range) => {
                let source = Source { connection, channel, number };
                let (there, read) = self
                    .sender(source)
                    .map_or((Count(0), Monotonic(0)), |sender| (sender.there, sender.read));
                let origin = Origin { read, messages: 1, delayed: false };
                let hosted = self.hosted.get_mut(&number).expect("a queue with a job");
                let say = Say::Confirm(sequence, there, origin);
                let mark = hosted.log.written_bytes();
                let awaiting = Awaiting { connection, channel, end: range.end, mark, say };
                hosted.awaiting.push_back(awaiting);
            }
            Err(error) => {
                let fault = self.append_failed(number, &error);
                self.fail_channel(connection, channel, fault);
            }
        }
    }
}

/// What the producer says with the last part of a large message, and the part itself.
fn annex_of<'a>(
    head: &PublishHead,
    payload: &'a [u8],
    named: bool,
    record_bytes: u64,
) -> Result<(Option<&'a [u8]>, &'a [u8]), Trouble> {
    if head.batch_flags & flags::ANNEX == 0 {
        return Ok((None, payload));
    }
    if !named || head.more || record_bytes <= limits::CHAIN_PART_BYTES {
        return Err(protocol("an annex where a large message has none"));
    }
    let part = batch::messages_part(head.batch_flags, payload)
        .map_err(|wrong| protocol(format!("malformed Publish frame: {wrong}")))?;
    let annex = &payload[4..payload.len() - part.len()];
    if annex.len() > limits::LARGE_ANNEX_BYTES_MAX {
        return Err(protocol("an annex that is too large for one with a large message"));
    }
    Ok((Some(annex), part))
}

fn traits_of(record: &Record<'_>) -> Result<Traits, Trouble> {
    let mut traits = Traits::default();
    let noted = traits.note(record);
    noted.map_err(|wrong| protocol(format!("malformed Publish frame: {wrong}")))?;
    Ok(traits)
}

/// How long a record is, by the header and the attributes that its first part must hold.
fn record_bytes(first: &[u8]) -> Result<u64, Trouble> {
    let (attributes, body) = Record::lengths(first)
        .and_then(|(attributes, body)| {
            let held = first.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + attributes as usize)?;
            let record = Record { attribute_bytes: held, body: &[] };
            record.attributes().all(|one| one.is_ok()).then_some((attributes, body))
        })
        .ok_or_else(|| protocol("a large message whose first part does not hold its attributes"))?;
    if attributes as usize > limits::ATTRIBUTE_BYTES_MAX {
        return Err(protocol("a message with more attributes than there may be"));
    }
    if u64::from(body) > limits::MESSAGE_BYTES_MAX as u64 {
        return Err(fault_with(
            ErrorCode::BadInput,
            format!("a message has at most {} MiB", limits::MESSAGE_BYTES_MAX >> 20),
            "send it in parts, or keep it in a file and send the file's name",
        )
        .into());
    }
    Ok(RECORD_HEADER_BYTES as u64 + u64::from(attributes) + u64::from(body))
}
