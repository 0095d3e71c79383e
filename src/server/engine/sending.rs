//! From OPEN_SEND over PUBLISH to CONFIRM.

use crate::batch::{self, BatchHeader, Framing, RECORD_HEADER_BYTES, Record, Traits, flags};
use crate::limits;
use crate::log::storage::Storage;
use crate::log::{AppendError, Judgement, NewBatch, NewChain};
use crate::settings::Settings;
use crate::units::{Epoch, Moment, Name, OffsetRange, Sequence};
use crate::wire::{ErrorCode, Fault, OpenSend, PublishHead, Reply, Sending};

use super::hosting::{Awaiting, ChainOwner, Place, Say, being_removed, damaged};
use super::session::{Channel, Large, Sender};
use super::{ConnectionId, Engine, QueueNumber, Trouble, fault, fault_with, protocol};

/// What became of an append.
enum Appended {
    /// Stored at these offsets.
    Stored(OffsetRange),
    /// It was stored before.
    Before,
    /// The log is not ready: try again after its next job.
    NotYet,
}

impl<S: Storage> Engine<S> {
    pub(super) fn open_send(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        open: OpenSend,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.open(channel).map_err(protocol)?;
        if open.producer.0 == 0 {
            return Err(protocol("producer 0 is no producer"));
        }
        match self.places.get_mut(&open.queue) {
            Some(Place::Live(number)) => {
                let number = *number;
                self.attach_sender(connection, channel, number, &open, moment)
            }
            Some(Place::Making(waiting)) => {
                waiting.push((connection, channel));
                session.channels.insert(channel, Channel::OpeningSend(open));
                Ok(())
            }
            Some(Place::Damaged(why)) => Err(damaged(&open.queue, why).into()),
            Some(Place::Removing) => Err(being_removed(&open.queue).into()),
            None if open.resume.is_some() => Err(sent_to_another(&open.queue).into()),
            None => {
                let name = open.queue.clone();
                session.channels.insert(channel, Channel::OpeningSend(open));
                self.make(&name, Settings::default(), (connection, channel), moment)
            }
        }
    }

    fn attach_sender(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        number: QueueNumber,
        open: &OpenSend,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        if let Some(why) = &hosted.trouble {
            return Err(damaged(&hosted.name, why).into());
        }
        let id = hosted.log.id();
        if open.resume.as_ref().is_some_and(|resume| resume.queue_id != id) {
            return Err(sent_to_another(&open.queue).into());
        }
        let producers = hosted.log.producers();
        let opened = match &open.resume {
            // Not later than now, whatever the peer says.
            Some(resume) => resume.opened.min(moment.wall),
            None => producers.opening_time(moment.wall),
        };
        let (epoch, last) = match producers.last(open.producer) {
            Some((epoch, last)) => (Epoch(epoch.0 + 1), last),
            None => (Epoch(1), Sequence(0)),
        };
        if let Err(forgotten) = producers.connected(open.producer, epoch, opened) {
            return Err(fault_with(
                ErrorCode::Fenced,
                format!("cannot go on sending to {}: {forgotten}", hosted.name),
                "what was confirmed is stored; send the rest anew",
            )
            .into());
        }
        hosted.senders += 1;
        let sender = Sender {
            queue: number,
            producer: open.producer,
            epoch,
            large: None,
            unconfirmed: 0,
            closing: false,
        };
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.channels.insert(channel, Channel::Sending(sender));
        let sending = Sending { queue_id: id, last, epoch, opened, annex: None };
        // What it stored may not be durable yet, and it would take `last` for a confirmation.
        let end = hosted.log.written_end();
        let say = Say::Sending(sending);
        hosted.awaiting.push_back(Awaiting { connection, channel, end, say });
        self.touch(number);
        Ok(())
    }

    pub(super) fn publish(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        head: &PublishHead,
        payload: &[u8],
        moment: Moment,
    ) -> Result<(), Trouble> {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let sender = match session.channels.get_mut(&channel) {
            Some(Channel::Sending(sender)) if !sender.closing => sender,
            // Sent before the client could know that the channel failed.
            Some(Channel::Failed) => return Ok(()),
            _ => return Err(protocol("PUBLISH on a channel that does not send")),
        };
        if head.more || sender.large.is_some() {
            return self.publish_part(connection, channel, head, payload, moment);
        }
        let traits = check_payload(head, payload)?;
        let (number, epoch, producer) = (sender.queue, sender.epoch, sender.producer);
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        if hosted.chain.is_some() {
            // Whether this follows can be told once the large message before it is stored.
            self.appended(connection, channel, number, head, Appended::NotYet);
            return Ok(());
        }
        let selective = if traits.is_selective() { flags::SELECTIVE } else { 0 };
        let batch_flags = head.batch_flags | selective;
        let expected = Sequence(head.sequence.0 - u64::from(head.count));
        let verdict = hosted.log.producers().judge(producer, epoch, expected, head.sequence);
        let appended = match verdict {
            Judgement::Duplicate { .. } => Appended::Before,
            Judgement::Store => {
                let new = NewBatch {
                    framing: head.framing,
                    flags: batch_flags,
                    count: head.count,
                    payload,
                    producer,
                    sequence: head.sequence,
                    epoch,
                };
                match hosted.log.append(moment.now, moment.wall, &new) {
                    Ok(range) => Appended::Stored(range),
                    Err(AppendError::NotYet) => Appended::NotYet,
                    Err(error) => return Err(self.append_failed(number, &error).into()),
                }
            }
            refused => return Err(refusal(&hosted.name, refused)),
        };
        self.appended(connection, channel, number, head, appended);
        Ok(())
    }

    /// A part of a large message, or its end.
    fn publish_part(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        head: &PublishHead,
        payload: &[u8],
        moment: Moment,
    ) -> Result<(), Trouble> {
        if head.count != 1 || head.framing != Framing::Records || head.batch_flags != 0 {
            return Err(protocol("a part of a large message that is no record"));
        }
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let Some(Channel::Sending(sender)) = session.channels.get_mut(&channel) else {
            unreachable!("the caller has looked");
        };
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
            },
        };
        // An end that was parked comes again, when its bytes are staged already.
        if large.staging.bytes() < large.record_bytes {
            if large.staging.bytes() + payload.len() as u64 > large.record_bytes {
                return Err(protocol("a large message that is longer than its header says"));
            }
            large.staging.push(payload).map_err(full)?;
        }
        if !head.more {
            if large.staging.bytes() != large.record_bytes {
                return Err(protocol("a large message that is shorter than its header says"));
            }
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
            self.appended(connection, channel, number, head, Appended::NotYet);
            return Ok(());
        }
        let expected = Sequence(head.sequence.0 - 1);
        let appended = match hosted.log.producers().judge(producer, epoch, expected, head.sequence)
        {
            Judgement::Duplicate { .. } => Appended::Before,
            Judgement::Store => {
                let chain = NewChain { flags: 0, producer, sequence: head.sequence, epoch };
                match hosted.log.append_chain(moment.wall, &large.staging, &chain) {
                    Ok(()) => {
                        sender.unconfirmed += 1;
                        let owner = ChainOwner::Channel(connection, channel, head.sequence);
                        hosted.chain = Some(owner);
                        self.touch(number);
                        return Ok(());
                    }
                    Err(AppendError::NotYet) => {
                        sender.large = Some(large);
                        Appended::NotYet
                    }
                    Err(error) => return Err(self.append_failed(number, &error).into()),
                }
            }
            refused => return Err(refusal(&hosted.name, refused)),
        };
        self.appended(connection, channel, number, head, appended);
        Ok(())
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
            Some(ChainOwner::Mover(lane)) => return self.large_moved(lane, number, result),
            None => return,
        };
        match result {
            Ok(range) => {
                let say = Say::Confirm(sequence);
                let awaiting = Awaiting { connection, channel, end: range.end, say };
                hosted.awaiting.push_back(awaiting);
            }
            Err(error) => {
                let fault = self.append_failed(number, &error);
                self.fail_channel(connection, channel, fault);
            }
        }
    }

    fn appended(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        number: QueueNumber,
        head: &PublishHead,
        appended: Appended,
    ) {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        let end = match appended {
            Appended::Stored(range) => range.end,
            Appended::Before => hosted.log.written_end(),
            Appended::NotYet => {
                session.parked = true;
                hosted.parked.push(connection);
                // What it waits for may be a job that the log has yet to be asked for.
                self.touch(number);
                return;
            }
        };
        if let Some(Channel::Sending(sender)) = session.channels.get_mut(&channel) {
            sender.unconfirmed += 1;
        }
        let say = Say::Confirm(head.sequence);
        hosted.awaiting.push_back(Awaiting { connection, channel, end, say });
        self.touch(number);
    }

    /// What was parked on a queue whose log has moved on may come again.
    pub(super) fn unpark(&mut self, number: QueueNumber) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        for connection in std::mem::take(&mut hosted.parked) {
            if let Some(session) = self.sessions.get_mut(&connection) {
                session.parked = false;
                self.dirty.push(connection);
            }
        }
    }

    fn append_failed(&mut self, number: QueueNumber, error: &AppendError) -> Fault {
        let doing = format!("cannot store messages in {}", self.hosted[&number].name);
        if let AppendError::Failed(why) = error {
            self.failed.get_or_insert_with(|| format!("{doing}: {why}"));
        }
        append_fault(&doing, error)
    }

    /// CLOSED to a sender, when nothing of it is unconfirmed.
    pub(super) fn close_sender(&mut self, connection: ConnectionId, channel: u16) {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let Some(Channel::Sending(sender)) = session.channels.remove(&channel) else {
            unreachable!("only a sender is closed so");
        };
        if let Some(hosted) = self.hosted.get_mut(&sender.queue) {
            hosted.senders -= 1;
            hosted.log.producers().disconnected(sender.producer);
        }
        self.reply(connection, channel, &Reply::Closed);
    }
}

fn append_fault(doing: &str, error: &AppendError) -> Fault {
    match error {
        AppendError::Full { .. } => fault_with(
            ErrorCode::Full,
            format!("{doing}: {error}"),
            "free some space; sending works again at once",
        ),
        AppendError::TooManyProducers => {
            let remedy = "use the name of one that has done its work again";
            fault_with(ErrorCode::Full, format!("{doing}: {error}"), remedy)
        }
        AppendError::NotYet => unreachable!("it is tried again"),
        AppendError::Failed(why) => fault(ErrorCode::Disk, format!("{doing}: {why}")),
    }
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

fn check_payload(head: &PublishHead, payload: &[u8]) -> Result<Traits, Trouble> {
    let header = BatchHeader {
        payload_bytes: payload.len() as u32,
        framing: head.framing,
        flags: head.batch_flags,
        offset: crate::units::Offset(0),
        count: head.count,
        payload_crc: 0,
        mark: crate::units::Offset(0),
        time: crate::units::WallTime(0),
        producer: crate::units::ProducerId(0),
        sequence: head.sequence,
        epoch: crate::units::Epoch(0),
    };
    header
        .messages_part(payload)
        .and_then(|messages| batch::check_messages(head.framing, messages, head.count))
        .map_err(|wrong| protocol(format!("malformed Publish frame: {wrong}")))
}

fn refusal(name: &Name, judgement: Judgement) -> Trouble {
    match judgement {
        Judgement::Fenced { .. } => fault(
            ErrorCode::Fenced,
            format!("a newer connection of the same producer sends to {name} now"),
        )
        .into(),
        Judgement::Gap { sequence } => protocol(format!(
            "a PUBLISH that does not follow: the producer's last stored sequence is {sequence}"
        )),
        Judgement::Store | Judgement::Duplicate { .. } => unreachable!("no refusal"),
    }
}

fn sent_to_another(name: &Name) -> Fault {
    fault_with(
        ErrorCode::Gone,
        format!("queue {name} was removed while messages were being sent to it"),
        "what was confirmed went with it; send again to make a new queue",
    )
}
