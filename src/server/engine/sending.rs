//! From OPEN_SEND over PUBLISH to CONFIRM.

use crate::batch::{self, Framing, Record, Traits, flags};
use crate::log::storage::Storage;
use crate::log::{AppendError, Forgotten, Judgement, NewBatch};
use crate::settings::Settings;
use crate::units::{Count, Epoch, Moment, Monotonic, Name, Offset, Sequence};
use crate::wire::{ErrorCode, Fault, OpenSend, PublishHead, Reply, Sending};

use super::counting::Origin;
use super::delaying::{Delay, delayed_large, must_wait};
use super::figures::Share;
use super::hosting::{Awaiting, Place, Say, being_removed, damaged};
use super::portion::{Portion, Rest};
use super::session::{Channel, Sender};
use super::uniqueness::{self, Doorkeeper};
use super::{ConnectionId, Engine, QueueNumber, Trouble, fault, fault_with, protocol};

/// From this version of the protocol on PUBLISH tells when messages were read.
const READ_AT_VERSION: u16 = 3;

/// Where a PUBLISH comes from, and which queue it goes to.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub connection: ConnectionId,
    pub channel: u16,
    pub number: QueueNumber,
}

/// A PUBLISH that comes next.
#[derive(Clone, Copy)]
struct Batch<'a> {
    head: &'a PublishHead,
    payload: &'a [u8],
    traits: Traits,
    /// Messages at its beginning that were stored before.
    skip: u32,
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
        if let Some(elsewhere) = self.lives_elsewhere(number) {
            return Err(elsewhere.into());
        }
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let id = hosted.log.id();
        if open.resume.as_ref().is_some_and(|resume| resume.queue_id != id) {
            return Err(sent_to_another(&open.queue).into());
        }
        if open.unless_pending && !hosted.log.unique().has_keys() {
            return Err(fault_with(
                ErrorCode::Usage,
                format!("queue {} does not know which keys are pending", hosted.name),
                format!("declare it so: `mq-admin declare {} --unique-keys N`", hosted.name),
            )
            .into());
        }
        if open.named {
            return self.attach_named(connection, channel, number, open, moment);
        }
        let delayed = hosted.last_delayed(open.producer);
        let hidden = hosted.delay.open().map(|waiting| waiting.delays.log_ref().producers_known());
        // Later than any that either log has forgotten.
        let now = hidden.map_or(moment.wall, |hidden| hidden.opening_time(moment.wall));
        let producers = hosted.log.producers_known();
        let opened = match &open.resume {
            // Not later than now, whatever the peer says.
            Some(resume) if delayed.is_none() => resume.opened.min(moment.wall),
            _ => producers.opening_time(now),
        };
        // One that has only delayed messages is known to that log alone, or was.
        let is_unknown = delayed.is_none() && producers.last(open.producer).is_none();
        let forgotten = hidden.filter(|hidden| is_unknown && hidden.may_have_forgotten(opened));
        if forgotten.is_some() {
            return Err(away_too_long(&hosted.name, Forgotten).into());
        }
        let producers = hosted.log.producers();
        let known = producers.last(open.producer).into_iter().chain(delayed);
        let (epoch, last) = known.fold((Epoch(0), Sequence(0)), |(epoch, last), known| {
            (epoch.max(known.0), last.max(known.1))
        });
        let epoch = Epoch(epoch.0 + 1);
        if let Err(forgotten) = producers.connected(open.producer, epoch, opened) {
            return Err(away_too_long(&hosted.name, forgotten).into());
        }
        self.start_sending(connection, channel, number, open, epoch);
        let sending = Sending { queue_id: id, last, epoch, opened, annex: None };
        // What it stored may not be durable yet, and it would take `last` for a confirmation.
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let delayed = delayed.is_some_and(|(_, sequence)| sequence == last && last.0 > 0);
        let log = hosted.log_of(delayed);
        let (end, mark) = (log.written_end(), log.written_bytes());
        let say = Say::Sending(sending);
        hosted.awaiting_of(delayed).push_back(Awaiting { connection, channel, end, mark, say });
        self.sender(Source { connection, channel, number }).expect("it sends").delayed = delayed;
        self.touch(number);
        Ok(())
    }

    /// The channel sends from now on.
    pub(super) fn start_sending(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        number: QueueNumber,
        open: &OpenSend,
        epoch: Epoch,
    ) {
        self.hosted.get_mut(&number).expect("a live queue").senders += 1;
        let sender = Sender {
            queue: number,
            producer: open.producer,
            epoch,
            named: open.named,
            unless_pending: open.unless_pending,
            delayed: false,
            known_to_delay: false,
            switching: None,
            large: None,
            commit: None,
            unconfirmed: 0,
            there: Count(0),
            held: false,
            refused: None,
            closing: false,
            share: Share::since(self.clock.wall),
            read: Monotonic(0),
        };
        self.changed(number);
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.channels.insert(channel, Channel::Sending(sender));
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
        if sender.refused.is_some() {
            let (number, messages) = (sender.queue, u64::from(head.count));
            self.count_refused(number, if head.more { 0 } else { messages });
            return Ok(());
        }
        sender.read = if session.version >= READ_AT_VERSION { head.read } else { Monotonic(0) };
        if head.more || sender.large.is_some() {
            return self.publish_part(connection, channel, head, payload, moment);
        }
        if head.batch_flags & flags::ANNEX != 0 && !sender.named {
            return Err(protocol("an annex from a producer without a name"));
        }
        let traits = check_payload(head, payload)?;
        let (number, epoch, producer) = (sender.queue, sender.epoch, sender.producer);
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        if hosted.chain.is_some() {
            // Whether this follows can be told once the large message before it is stored.
            self.park(connection, number);
            return Ok(());
        }
        let source = Source { connection, channel, number };
        let delayed = must_wait(&traits, head.count, moment.wall)?;
        if delayed && let Some(fault) = delayed_large(&hosted.name, head, payload) {
            self.refuse(connection, channel, fault);
            self.count_refused(number, u64::from(head.count));
            return Ok(());
        }
        if !self.turn_to(source, delayed, moment)? {
            return Ok(());
        }
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        let expected = Sequence(head.sequence.0 - u64::from(head.count));
        let sender = (producer, epoch);
        let skip = match hosted.judge(sender, delayed, expected, head.sequence) {
            Judgement::Store => 0,
            Judgement::Rest { sequence } => (sequence.0 - expected.0) as u32,
            Judgement::Duplicate { .. } => {
                let end = hosted.log_of(delayed).written_end();
                self.await_confirm(source, head.sequence, end, 0);
                return Ok(());
            }
            refused => return Err(refusal(&hosted.name, refused)),
        };
        self.store(source, Batch { head, payload, traits, skip }, moment)
    }

    /// Stores of a batch what the queue wants and has room for, and sees to the rest.
    fn store(&mut self, source: Source, batch: Batch<'_>, moment: Moment) -> Result<(), Trouble> {
        let Source { connection, channel, number } = source;
        let head = batch.head;
        let portion = self.portion(source, &batch, moment)?;
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let Some(Channel::Sending(sender)) = session.channels.get_mut(&channel) else {
            unreachable!("the caller has looked");
        };
        if portion.done > batch.skip {
            let sequence = Sequence(head.sequence.0 - u64::from(head.count - portion.done));
            let selective = if batch.traits.is_selective() { flags::SELECTIVE } else { 0 };
            let empty = if portion.count == 0 { flags::EMPTY } else { 0 };
            let new = NewBatch {
                framing: head.framing,
                flags: head.batch_flags | selective | empty,
                count: portion.count,
                payload: &portion.payload,
                producer: sender.producer,
                sequence,
                epoch: sender.epoch,
            };
            let appended = match &mut hosted.delay {
                Delay::Open(waiting) if sender.delayed => {
                    waiting.delays.append(moment.now, moment.wall, &new)
                }
                _ => hosted.log.append(moment.now, moment.wall, &new),
            };
            match appended {
                Ok(range) => {
                    sender.there.0 += portion.there;
                    sender.share.add(u64::from(portion.count), portion.payload.len() as u64);
                    hosted.log.counters().there.0 += portion.there;
                    self.await_confirm(source, sequence, range.end, portion.count);
                }
                Err(AppendError::NotYet) => {
                    self.park(connection, number);
                    return Ok(());
                }
                Err(error) => {
                    self.count_refused(number, u64::from(head.count - batch.skip));
                    return Err(self.append_failed(number, &error).into());
                }
            }
        }
        match portion.rest {
            Rest::Nothing => self.let_go(connection, channel),
            Rest::NoRoom(needed) => self.no_room(source, needed),
            Rest::Refused(fault) => self.refuse(connection, channel, fault),
        }
        if self.sender(source).is_some_and(|sender| sender.refused.is_some()) {
            self.count_refused(number, u64::from(head.count - portion.done));
        }
        Ok(())
    }

    /// What of a batch is stored now.
    fn portion<'a>(
        &mut self,
        source: Source,
        batch: &Batch<'a>,
        moment: Moment,
    ) -> Result<Portion<'a>, Trouble> {
        let Batch { head, payload, traits, skip } = *batch;
        let count = head.count - skip;
        let room = self.room(source.number, u64::from(count), payload.len());
        let unless_pending = self.sender(source).is_some_and(|sender| sender.unless_pending);
        let hosted = self.hosted.get_mut(&source.number).expect("a sender's queue");
        let asks = uniqueness::asks(&mut hosted.log, &traits, unless_pending);
        if !asks && skip == 0 && room.fits(u64::from(count), payload.len()) {
            return Ok(Portion::whole(head, payload));
        }
        let malformed = |wrong| protocol(format!("malformed Publish frame: {wrong}"));
        if !asks {
            return Portion::of(head, payload, skip, room, None).map_err(malformed);
        }
        if head.framing != Framing::Records {
            return Err(uniqueness::keyless(&hosted.name).into());
        }
        let mut doorkeeper = Doorkeeper::new(hosted, &self.broker, unless_pending, moment.wall);
        let mut verdict = |record: &Record<'_>| doorkeeper.verdict(record);
        Portion::of(head, payload, skip, room, Some(&mut verdict)).map_err(malformed)
    }

    /// The sender of a channel.
    pub(super) fn sender(&mut self, source: Source) -> Option<&mut Sender<S>> {
        let session = self.sessions.get_mut(&source.connection)?;
        match session.channels.get_mut(&source.channel) {
            Some(Channel::Sending(sender)) => Some(sender),
            _ => None,
        }
    }

    /// The frame waits for the log: it comes again.
    pub(super) fn park(&mut self, connection: ConnectionId, number: QueueNumber) {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        session.parked = true;
        hosted.parked.push(connection);
        // What it waits for may be a job that the log has yet to be asked for.
        self.touch(number);
    }

    /// CONFIRM is to be said once everything below `end` is visible; `messages` were stored.
    pub(super) fn await_confirm(
        &mut self,
        source: Source,
        sequence: Sequence,
        end: Offset,
        messages: u32,
    ) {
        let Source { connection, channel, number } = source;
        let mut origin = Origin { messages, ..Origin::default() };
        let there = self.sender(source).map_or(Count(0), |sender| {
            sender.unconfirmed += 1;
            (origin.read, origin.delayed) = (sender.read, sender.delayed);
            sender.there
        });
        let delayed = origin.delayed;
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        let say = Say::Confirm(sequence, there, origin);
        let mark = hosted.log_of(delayed).written_bytes();
        hosted.awaiting_of(delayed).push_back(Awaiting { connection, channel, end, mark, say });
        self.touch(number);
    }

    /// Nothing more is taken from the channel: it fails once all before is confirmed, so that
    /// the client knows how far it came.
    pub(super) fn refuse(&mut self, connection: ConnectionId, channel: u16, fault: Fault) {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        if let Some(Channel::Sending(sender)) = session.channels.get_mut(&channel) {
            sender.refused = Some(fault);
            if sender.unconfirmed == 0 {
                self.settle_sender(connection, channel);
            }
        }
    }

    /// Everything that the channel published is confirmed: it fails if it was refused, and is
    /// closed if that was asked for.
    pub(super) fn settle_sender(&mut self, connection: ConnectionId, channel: u16) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let Some(Channel::Sending(sender)) = session.channels.get_mut(&channel) else { return };
        let closing = sender.closing;
        if let Some(fault) = sender.refused.take() {
            if !closing {
                return self.fail_channel(connection, channel, fault);
            }
            self.reply(connection, channel, &Reply::Error(fault));
        }
        if closing {
            self.close_sender(connection, channel);
        }
    }

    /// What was parked on a queue whose log has moved on may come again.
    pub(super) fn unpark(&mut self, number: QueueNumber) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        for connection in std::mem::take(&mut hosted.parked) {
            if let Some(session) = self.sessions.get_mut(&connection) {
                session.unpark();
                self.dirty.push(connection);
            }
        }
    }

    pub(super) fn append_failed(&mut self, number: QueueNumber, error: &AppendError) -> Fault {
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
            hosted.disconnected(&sender, self.clock.wall);
        }
        self.changed(sender.queue);
        self.reply(connection, channel, &Reply::Closed);
    }
}

pub(super) fn append_fault(doing: &str, error: &AppendError) -> Fault {
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

fn check_payload(head: &PublishHead, payload: &[u8]) -> Result<Traits, Trouble> {
    batch::messages_part(head.batch_flags, payload)
        .and_then(|messages| batch::check_messages(head.framing, messages, head.count))
        .map_err(|wrong| protocol(format!("malformed Publish frame: {wrong}")))
}

pub(super) fn refusal(name: &Name, judgement: Judgement) -> Trouble {
    match judgement {
        Judgement::Fenced { .. } => fault(
            ErrorCode::Fenced,
            format!("a newer connection of the same producer sends to {name} now"),
        )
        .into(),
        Judgement::Gap { sequence } => protocol(format!(
            "a PUBLISH that does not follow: the producer's last stored sequence is {sequence}"
        )),
        Judgement::Store | Judgement::Rest { .. } | Judgement::Duplicate { .. } => {
            unreachable!("no refusal")
        }
    }
}

fn away_too_long(name: &Name, forgotten: Forgotten) -> Fault {
    fault_with(
        ErrorCode::Fenced,
        format!("cannot go on sending to {name}: {forgotten}"),
        "what was confirmed is stored; send the rest anew",
    )
}

pub(super) fn sent_to_another(name: &Name) -> Fault {
    fault_with(
        ErrorCode::Gone,
        format!("queue {name} was removed while messages were being sent to it"),
        "what was confirmed went with it; send again to make a new queue",
    )
}
