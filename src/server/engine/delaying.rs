//! Delayed messages: from a PUBLISH that must wait into the queue, when its time has come.
//!
//! The log keeps them ([`Delays`]); here is what it cannot know: the clock, the queue that they go
//! into, and who is confirmed. What is due goes into the queue's own log in the name of a producer
//! of its own, with the account of what was taken as the annex, one commit at a time.
//!
//! A sender counts its messages through both logs. So a PUBLISH of the other kind than the one
//! before waits until nothing of the sender is unconfirmed; then each log knows what the other
//! holds, and confirmations come in order.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::batch::{Framing, NotBefore, Record, Traits, check_messages, flags, messages_part};
use crate::limits;
use crate::log::storage::Storage;
use crate::log::{
    AppendError, Boot, CheckBound, Committed, Delays, Done, InternalBatch, Judgement, Log,
    LogError, Options, Progress, Taking,
};
use crate::settings::Settings;
use crate::units::{
    Bytes, Count, Epoch, Micros, Moment, Monotonic, Name, Offset, OffsetRange, ProducerId, QueueId,
    Sequence, WallTime,
};

use super::hosting::{Awaiting, Hosted};
use super::sending::Source;
use super::session::{Channel, Sender};
use super::{ConnectionId, Engine, QueueNumber, Trouble, Work, fault_with, protocol};
use crate::wire::{ErrorCode, Fault, PublishHead};

/// A clock may be set while a message waits: it is looked at this often at least.
const LOOK_AT_CLOCK: Micros = Micros::from_secs(10);

/// The place of a queue's delayed messages.
pub(super) enum Delay<S: Storage> {
    /// There never were any.
    None,
    /// A helper thread makes it.
    Making,
    /// It is open.
    Open(Box<Waiting<S>>),
}

/// The delayed messages of a queue that is served.
pub(super) struct Waiting<S: Storage> {
    pub delays: Delays<S>,
    /// Who is confirmed what in the hidden log, in the order of its offsets.
    pub awaiting: VecDeque<Awaiting>,
    /// What was appended last is durable in the queue once so many bytes are.
    mark: Option<Bytes>,
    /// Where the messages stand that were appended last.
    entering: OffsetRange,
    /// There is no room: not tried again before this.
    rests: Option<Monotonic>,
    /// A job reads ahead, or the queue's log waits for one: until then nothing can be taken.
    waits: bool,
    /// The producer that puts them into the queue was opened in this life.
    opened: bool,
}

impl<S: Storage> Waiting<S> {
    pub fn new(delays: Delays<S>) -> Waiting<S> {
        Waiting {
            delays,
            awaiting: VecDeque::new(),
            mark: None,
            entering: OffsetRange::new(Offset(0), Offset(0)),
            rests: None,
            waits: false,
            opened: false,
        }
    }

    /// When something is to be done at the latest. What is due sets no deadline while nothing may
    /// be taken: it would be over in every turn.
    fn deadline(&self, moment: Moment, may_take: bool) -> Option<Monotonic> {
        let takes = may_take && self.mark.is_none() && !self.waits;
        let due = self.delays.next_due().filter(|_| takes);
        let due = due.map(|due| {
            let wait = Micros(due.0.saturating_sub(moment.wall.0)).min(LOOK_AT_CLOCK);
            moment.now.plus(wait).max(self.rests.unwrap_or_default())
        });
        due.into_iter().chain(self.delays.next_deadline()).min()
    }
}

impl<S: Storage> Delay<S> {
    pub fn open(&self) -> Option<&Waiting<S>> {
        match self {
            Delay::Open(waiting) => Some(waiting),
            Delay::None | Delay::Making => None,
        }
    }

    pub fn open_mut(&mut self) -> Option<&mut Waiting<S>> {
        match self {
            Delay::Open(waiting) => Some(waiting),
            Delay::None | Delay::Making => None,
        }
    }
}

impl<S: Storage> Hosted<S> {
    /// Messages that wait for their time.
    pub fn delayed(&self) -> Count {
        self.delay.open().map_or(Count(0), |waiting| waiting.delays.len())
    }

    /// Bytes of the messages that wait for their time, their attributes included.
    pub fn delayed_bytes(&self) -> Bytes {
        self.delay.open().map_or(Bytes(0), |waiting| waiting.delays.waiting_bytes())
    }

    /// Delayed messages that were purged before their time, ever.
    pub fn delayed_purged(&self) -> Count {
        self.delay.open().map_or(Count(0), |waiting| waiting.delays.purged())
    }

    /// Delayed messages that stand in the queue's log and do not wait any more, and are not visible
    /// there yet.
    pub fn entering(&self, visible: Offset) -> Count {
        let Some(waiting) = self.delay.open() else { return Count(0) };
        Count(waiting.entering.end.0.saturating_sub(visible.max(waiting.entering.start).0))
    }

    /// The log that a sender sends to.
    pub fn log_of(&mut self, delayed: bool) -> &mut Log<S> {
        match &mut self.delay {
            Delay::Open(waiting) if delayed => waiting.delays.log(),
            _ => &mut self.log,
        }
    }

    /// Who waits for the visibility of what is in that log.
    pub fn awaiting_of(&mut self, delayed: bool) -> &mut VecDeque<Awaiting> {
        match &mut self.delay {
            Delay::Open(waiting) if delayed => &mut waiting.awaiting,
            _ => &mut self.awaiting,
        }
    }

    /// What becomes of a sender's next batch: its own log says, once the queue's has not fenced
    /// it off.
    pub fn judge(
        &mut self,
        sender: (ProducerId, Epoch),
        delayed: bool,
        expected: Sequence,
        next: Sequence,
    ) -> Judgement {
        let (producer, epoch) = sender;
        match self.log.producers().last(producer) {
            Some((newest, _)) if newest > epoch => Judgement::Fenced { epoch: newest },
            _ => self.log_of(delayed).producers().judge(producer, epoch, expected, next),
        }
    }

    /// What a producer stored last among the delayed messages.
    pub fn last_delayed(&self, producer: ProducerId) -> Option<(Epoch, Sequence)> {
        self.delay.open()?.delays.log_ref().producers_known().last(producer)
    }

    /// A sender is gone.
    pub fn disconnected(&mut self, sender: &Sender<S>, wall: WallTime) {
        self.log.producers().disconnected(sender.producer, wall);
        if sender.known_to_delay {
            self.log_of(true).producers().disconnected(sender.producer, wall);
        }
    }

    /// Takes the next of those who can be told that what they sent is stored, as everything below
    /// `visible` is.
    pub fn next_confirmed(&mut self, visible: Offset) -> Option<Awaiting> {
        let bytes = self.log.visible_bytes();
        if self.awaiting.front().is_some_and(|first| first.end <= visible && first.mark <= bytes) {
            return self.awaiting.pop_front();
        }
        let waiting = self.delay.open_mut()?;
        let log = waiting.delays.log_ref();
        let (hidden, bytes) = (log.visible_end(), log.visible_bytes());
        waiting.awaiting.front().filter(|first| first.end <= hidden && first.mark <= bytes)?;
        // Their messages have no offsets yet: they will come behind this one.
        waiting.awaiting.pop_front().map(|first| Awaiting { end: visible, ..first })
    }

    /// Whether everyone was told.
    pub fn is_drained(&self) -> bool {
        self.awaiting.is_empty()
            && self.delay.open().is_none_or(|waiting| waiting.awaiting.is_empty())
    }

    /// The queue's settings were changed.
    pub fn settings_of_delay_changed(&mut self) {
        let settings = settings_of_delay(self.log.settings());
        if let Some(waiting) = self.delay.open_mut()
            && *waiting.delays.log_ref().settings() != settings
        {
            waiting.delays.log().change_settings(&settings);
        }
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> Bytes {
        let delayed = self.delay.open().map_or(Bytes(0), |waiting| waiting.delays.bytes());
        Bytes(self.log.bytes().0 + delayed.0)
    }

    /// Gives up what waits for its time.
    pub fn purge_delayed(&mut self) -> Count {
        self.delay.open_mut().map_or(Count(0), |waiting| waiting.delays.purge())
    }

    /// How far a check may read while the queue is open.
    pub fn check_bound(&self) -> CheckBound {
        let delayed = self.delay.open().map(|waiting| waiting.delays.log_ref().check_bound());
        self.log.check_bound().with_delayed(delayed)
    }

    /// What wants to be done for the delayed messages at the latest, and for the queue.
    pub fn next_deadline(&self, moment: Moment, stopping: bool) -> Option<Monotonic> {
        let may_take = self.trouble.is_none() && !stopping;
        let delay = self.delay.open().and_then(|waiting| waiting.deadline(moment, may_take));
        self.log.next_deadline().into_iter().chain(delay).min()
    }

    /// Takes in what came of a job of the queue's log, or of that of its delayed messages.
    pub fn complete(&mut self, now: Monotonic, done: Done<S>) -> Progress {
        match self.delay.open_mut() {
            Some(waiting) if waiting.delays.log_ref().id() == done.queue() => {
                let progress = waiting.delays.complete(now, done);
                waiting.waits = false;
                // Of the hidden log nothing but this concerns anyone.
                Progress {
                    failed: progress.log.failed,
                    retry: progress.retry,
                    visible_end: self.log.visible_end(),
                    durable_end: self.log.durable_end(),
                    ..Progress::default()
                }
            }
            waiting => {
                if let Some(waiting) = waiting {
                    waiting.waits = false;
                }
                self.log.complete(now, done)
            }
        }
    }
}

/// Opens the delayed messages of a queue whose log was opened.
pub(super) fn open_delay<S: Storage>(
    storage: &Arc<S>,
    log: &mut Log<S>,
    boot: Boot,
    options: &Options,
) -> Result<Delay<S>, LogError> {
    let (id, name) = (log.id(), log.name().clone());
    let annex = log.producers().annex(delay_producer(id)).map(<[u8]>::to_vec);
    let opened = Delays::open(Arc::clone(storage), &name, id, boot, options, annex.as_deref())?;
    let Some(mut delays) = opened else { return Ok(Delay::None) };
    let settings = settings_of_delay(log.settings());
    if *delays.log_ref().settings() != settings {
        delays.log().change_settings(&settings);
    }
    Ok(Delay::Open(Box::new(Waiting::new(delays))))
}

/// What of a queue's settings holds for the log of its delayed messages.
pub(super) fn settings_of_delay(settings: &Settings) -> Settings {
    Settings { sync: settings.sync, unique_ids: settings.unique_ids, ..Settings::default() }
}

/// The number of the producer that puts a queue's delayed messages into it.
fn delay_producer(queue: QueueId) -> ProducerId {
    let mut text = b"mq-delay ".to_vec();
    text.extend_from_slice(queue.as_bytes());
    ProducerId(xxhash_rust::xxh3::xxh3_64(&text).max(1))
}

/// What is said of a message that is too large to wait.
pub(super) fn too_large_to_wait() -> Fault {
    fault_with(
        ErrorCode::BadInput,
        "a message of more than 1 MiB cannot be delayed",
        "send it without a delay, or keep it in a file and send the file's name",
    )
}

/// Whether a batch is to wait: all of its messages name a time, and some a time to come.
///
/// # Errors
/// A batch of which only some name one.
pub(super) fn must_wait(traits: &Traits, count: u32, wall: WallTime) -> Result<bool, Trouble> {
    match traits.not_before {
        Some(NotBefore { latest, .. }) if latest <= wall => Ok(false),
        Some(NotBefore { count: timed, .. }) if timed < count => {
            Err(protocol("a batch of which only some messages are delayed"))
        }
        Some(_) => Ok(true),
        None => Ok(false),
    }
}

/// The refusal of a batch that is to wait and has a message too large for that: when it is due,
/// it could not be appended beside the account of what was taken. `payload` was checked.
pub(super) fn delayed_large(name: &Name, head: &PublishHead, payload: &[u8]) -> Option<Fault> {
    let max = limits::DELAYED_RECORD_BYTES_MAX;
    if payload.len() <= max {
        return None;
    }
    let mut rest = messages_part(head.batch_flags, payload).ok()?;
    while let Ok((_, behind)) = Record::decode(rest) {
        if rest.len() - behind.len() > max {
            return Some(fault_with(
                ErrorCode::BadInput,
                format!(
                    "a delayed message for {name} is, with its attributes, larger than {} KiB",
                    max >> 10
                ),
                "send it without a delay, or its parts",
            ));
        }
        rest = behind;
    }
    None
}

impl<S: Storage> Engine<S> {
    /// A sender goes on with a PUBLISH that waits for its time, or with one that does not. False
    /// when it cannot yet: then the frame comes again.
    ///
    /// # Errors
    /// The sender was fenced off; there is no room.
    pub(super) fn turn_to(
        &mut self,
        source: Source,
        delayed: bool,
        moment: Moment,
    ) -> Result<bool, Trouble> {
        let Source { connection, number, .. } = source;
        let sender = self.sender(source).expect("it sends");
        if sender.delayed == delayed {
            // It may have been about to switch, and the time of what it waited with came: what
            // goes to this log now has to be durable as well before it can switch.
            sender.switching = None;
            if !delayed || sender.known_to_delay {
                return Ok(true);
            }
        }
        if delayed && self.make_delay(number, moment) {
            self.park(connection, number);
            return Ok(false);
        }
        if !self.may_switch(source, delayed) {
            return Ok(false);
        }
        let sender = self.sender(source).expect("it sends");
        let (producer, epoch) = (sender.producer, sender.epoch);
        let (named, known) = (sender.named, sender.known_to_delay);
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        let other = hosted.log_of(!delayed);
        let last = other.producers().last(producer).unwrap_or_default().1;
        let annex = other.producers().annex(producer).map(<[u8]>::to_vec);
        let log = hosted.log_of(delayed);
        let here = log.producers().last(producer).unwrap_or_default().1;
        // What one with a name said last must be known here after a restart, also when what
        // comes next says nothing.
        if named && (last > here || (delayed && !known)) {
            let said = if last > here { annex.as_deref() } else { None };
            let kept = (epoch, last.max(here));
            match log.keep_producer(moment.now, moment.wall, producer, kept, said) {
                Ok(()) => {}
                Err(AppendError::NotYet) => {
                    self.park(connection, number);
                    return Ok(false);
                }
                Err(error) => return Err(self.append_failed(number, &error).into()),
            }
        }
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        let producers = hosted.log_of(delayed).producers();
        if delayed && !known {
            let opened = producers.opening_time(moment.wall);
            let connected = producers.connected(producer, epoch, opened);
            assert!(connected.is_ok(), "what is opened now was not forgotten before");
        }
        producers.stored_elsewhere(producer, last);
        let sender = self.sender(source).expect("it sends");
        sender.delayed = delayed;
        sender.known_to_delay |= delayed;
        Ok(true)
    }

    /// Whether the sender can go on in the other log. What it sent before must be confirmed, so
    /// that confirmations come in order; and durable whatever the policy: else a power loss could
    /// take that and leave what came behind it.
    fn may_switch(&mut self, source: Source, delayed: bool) -> bool {
        let Source { connection, number, .. } = source;
        let sender = self.sender(source).expect("it sends");
        let (from, unconfirmed, mark) = (sender.delayed, sender.unconfirmed, sender.switching);
        if from == delayed {
            return true;
        }
        let hosted = self.hosted.get_mut(&number).expect("a sender's queue");
        let log = hosted.log_of(from);
        let mark = mark.unwrap_or_else(|| log.written_bytes());
        if unconfirmed == 0 && log.durable_bytes() >= mark {
            self.sender(source).expect("it sends").switching = None;
            return true;
        }
        log.want_durable();
        hosted.switching.push(source);
        self.sender(source).expect("it sends").switching = Some(mark);
        self.sessions.get_mut(&connection).expect("a connected client").parked = true;
        self.touch(number);
        false
    }

    /// Senders that wait to go on in the other log may try again.
    pub(super) fn switch_senders(&mut self, number: QueueNumber) {
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        for source in std::mem::take(&mut hosted.switching) {
            let Some(sender) = self.sender(source) else { continue };
            let (from, unconfirmed, mark) = (sender.delayed, sender.unconfirmed, sender.switching);
            let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
            if unconfirmed > 0 || mark.is_some_and(|m| hosted.log_of(from).durable_bytes() < m) {
                hosted.switching.push(source);
            } else if let Some(session) = self.sessions.get_mut(&source.connection) {
                session.unpark();
                self.dirty.push(source.connection);
            }
        }
    }

    /// Starts to make the place for a queue's delayed messages. False when it stands.
    pub(super) fn make_delay(&mut self, number: QueueNumber, moment: Moment) -> bool {
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        match hosted.delay {
            Delay::Open(_) => return false,
            Delay::Making => return true,
            Delay::None => hosted.delay = Delay::Making,
        }
        hosted.jobs_under_way += 1;
        self.jobs.push(Work::make_delay(
            Arc::clone(&self.storage),
            number,
            (hosted.name.clone(), hosted.log.id()),
            settings_of_delay(hosted.log.settings()),
            self.log_options.clone(),
            moment.wall,
        ));
        true
    }

    /// The place for delayed messages stands, or could not be made.
    pub(super) fn delay_made(&mut self, number: QueueNumber, result: Result<Delays<S>, LogError>) {
        if let Err(error) = &result {
            self.heed_sync(error);
        }
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        hosted.jobs_under_way -= 1;
        hosted.delay = match result {
            Ok(delays) => Delay::Open(Box::new(Waiting::new(delays))),
            Err(error) => {
                let what = format!("cannot make room for delayed messages of {}", hosted.name);
                let fault = super::hosting::log_fault(&what, &error);
                hosted.delay = Delay::None;
                let waiting = hosted.parked.clone();
                self.fail_senders(&waiting, number, &fault);
                self.unpark(number);
                return;
            }
        };
        self.touch(number);
        self.unpark(number);
    }

    /// The channels of these connections that send to this queue fail.
    fn fail_senders(&mut self, those: &[ConnectionId], number: QueueNumber, fault: &Fault) {
        for &connection in those {
            let Some(session) = self.sessions.get(&connection) else { continue };
            let sends =
                |channel: &Channel<S>| matches!(channel, Channel::Sending(s) if s.queue == number);
            let ids: Vec<u16> =
                session.channels.iter().filter(|(_, c)| sends(c)).map(|(id, _)| *id).collect();
            ids.into_iter().for_each(|id| self.fail_channel(connection, id, fault.clone()));
        }
    }

    /// What is due goes into the queue; what went in and is durable is done with.
    pub(super) fn take_due(&mut self, number: QueueNumber, moment: Moment) {
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        let Delay::Open(waiting) = &mut hosted.delay else { return };
        if let Some(mark) = waiting.mark {
            if hosted.log.durable_bytes() < mark {
                return;
            }
            waiting.mark = None;
            waiting.delays.committed();
        }
        let rests = waiting.rests.is_some_and(|until| moment.now < until);
        if let Some(damage) = waiting.delays.log_ref().damage().filter(|_| hosted.trouble.is_none())
        {
            let why = damage.to_string();
            return self.stand_still(number, why);
        }
        let is_due = waiting.delays.next_due().is_some_and(|due| due <= moment.wall);
        if rests || !is_due || waiting.waits || self.stopping || hosted.trouble.is_some() {
            return;
        }
        waiting.rests = None;
        match waiting.delays.take(moment.wall) {
            Ok(Taking::Nothing) => {}
            Ok(Taking::Cold(read)) => {
                waiting.waits = true;
                hosted.jobs_under_way += 1;
                self.jobs.push(Work::log(number, read));
            }
            Ok(Taking::Batch(batch)) => {
                let annex = waiting.delays.annex();
                let appended = append_due(
                    &mut hosted.log,
                    &mut waiting.opened,
                    &batch.payload,
                    batch.count,
                    &annex,
                    moment,
                );
                match appended {
                    Ok(Committed { range, mark }) => {
                        waiting.delays.appended();
                        (waiting.mark, waiting.entering) = (Some(mark), range);
                    }
                    Err(error) => {
                        waiting.delays.keep(batch);
                        self.due_not_appended(number, &error, moment);
                    }
                }
            }
            Err(error) => self.stand_still(number, error.to_string()),
        }
    }

    fn due_not_appended(&mut self, number: QueueNumber, error: &AppendError, moment: Moment) {
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        let Delay::Open(waiting) = &mut hosted.delay else { return };
        match error {
            AppendError::NotYet => waiting.waits = true,
            AppendError::Full { .. } | AppendError::TooManyProducers => {
                waiting.rests = Some(moment.now.plus(limits::CHORE_RETRY));
            }
            AppendError::Failed(why) => {
                let name = &hosted.name;
                self.failed.get_or_insert_with(|| format!("queue {name}: {why}"));
            }
        }
    }
}

/// Appends due messages with the account of what was taken.
fn append_due<S: Storage>(
    log: &mut Log<S>,
    opened: &mut bool,
    payload: &[u8],
    count: u32,
    annex: &[u8],
    moment: Moment,
) -> Result<Committed, AppendError> {
    let producer = delay_producer(log.id());
    if !*opened {
        log.open_producer(moment.now, moment.wall, producer)?;
        *opened = true;
    }
    let (epoch, last) = log.producers().last(producer).expect("it was opened");
    // Each record was checked when it came in, and has kept its checksum since.
    let traits = match count {
        0 => Traits::default(),
        count => check_messages(Framing::Records, payload, count).unwrap_or_default(),
    };
    let batch = InternalBatch {
        producer,
        epoch,
        sequence: Sequence(last.0 + u64::from(count)),
        annex,
        framing: Framing::Records,
        flags: if traits.is_selective() { flags::SELECTIVE } else { 0 },
        count,
        messages: payload,
    };
    log.append_internal(moment.now, moment.wall, &batch)
}
