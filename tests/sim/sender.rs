//! Simulated senders: what mq-send says on the wire, with and without a name, driven step by step.

use std::collections::VecDeque;

use mq::batch::{Framing, Record, flags, push_annex, push_attribute, tags};
use mq::server::engine::ConnectionId;
use mq::units::{Monotonic, Name, ProducerId, Sequence, WallTime};
use mq::wire::{ErrorCode, OpenSend, PublishHead, Reply, Request, Resume, Sending};

use crate::model::{Message, QueueModel};
use crate::rng::{Chance, Random};
use crate::wire::{CHANNEL, Frames, WALL_START, hello, take_frames};
use crate::world::trace_fault;

/// How the messages of a queue are sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// With ids, so that another sender may send them again.
    pub ids: bool,
    /// Some have to wait for their time.
    pub delays: bool,
    /// A batch may be stored in part.
    pub in_parts: bool,
}

/// A batch that has been sent and not confirmed.
#[derive(Debug)]
struct Unconfirmed {
    /// The first message's number.
    first: u64,
    messages: Vec<Message>,
    framing: Framing,
    payload: Vec<u8>,
    /// Said in several frames.
    is_large: bool,
}

/// One mq-send.
#[derive(Debug)]
pub struct Sender {
    pub id: u64,
    pub queue: Name,
    pub connection: Option<ConnectionId>,
    pub inbound: Vec<u8>,
    manner: Manner,
    /// It has a name: it is run again from its beginning, and the server says how far it came.
    named: bool,
    producer: ProducerId,
    resume: Option<Resume>,
    open: bool,
    /// Numbers below belong to producers before this one.
    base: u64,
    /// The number of the message sent last.
    number: u64,
    /// The highest number that any process of this sender has sent.
    highest: u64,
    unconfirmed: VecDeque<Unconfirmed>,
    /// It ended: the server refused it for good.
    pub ended: bool,
    /// The server refused it for now: it hangs up and comes again.
    pub refused: bool,
    /// Messages that it was told were there already.
    pub there: u64,
    /// It does nothing before this age of the history.
    pub stalled_until: u64,
}

impl Sender {
    pub fn new(id: u64, queue: Name, manner: Manner, named: bool, rng: &mut Random) -> Sender {
        Sender {
            id,
            queue,
            connection: None,
            inbound: Vec::new(),
            manner,
            named,
            producer: ProducerId(rng.next() | 1),
            resume: None,
            open: false,
            base: 0,
            number: 0,
            highest: 0,
            unconfirmed: VecDeque::new(),
            ended: false,
            refused: false,
            there: 0,
            stalled_until: 0,
        }
    }

    pub fn connect(&mut self, connection: ConnectionId) -> Frames {
        self.connection = Some(connection);
        self.inbound.clear();
        (self.open, self.refused) = (false, false);
        if self.named {
            // A new process: it knows only its input.
            (self.resume, self.number) = (None, 0);
            self.unconfirmed.clear();
        }
        let mut out = Frames::new();
        hello(&mut out);
        let open = OpenSend {
            resume: self.resume.clone(),
            named: self.named,
            ..OpenSend::new(self.queue.clone(), self.producer)
        };
        Request::OpenSend(open).encode(CHANNEL, &mut out);
        out
    }

    pub fn lost(&mut self) {
        self.connection = None;
        self.open = false;
    }

    /// Whether all that it ever had to send is confirmed.
    pub fn is_idle(&self) -> bool {
        self.unconfirmed.is_empty() && self.open && self.number >= self.highest
    }

    /// Another process takes over with what is not confirmed, under another producer: the ids tell
    /// what is there already.
    pub fn hand_over(&mut self, rng: &mut Random) {
        if !self.manner.ids || self.named {
            return;
        }
        self.base = self.unconfirmed.front().map_or(self.number, |batch| batch.first - 1);
        self.producer = ProducerId(rng.next() | 1);
        self.resume = None;
    }

    fn sequence(&self, number: u64) -> Sequence {
        Sequence(number - self.base)
    }

    /// Sends a batch of a few messages, now and then one of messages that have to wait; `again`:
    /// only such as it has sent before.
    pub fn publish(
        &mut self,
        model: &mut QueueModel,
        rng: &mut Random,
        wall: WallTime,
        again: bool,
    ) -> Frames {
        let mut out = Frames::new();
        let is_able = self.open && !self.ended && !self.refused && self.unconfirmed.len() <= 20;
        let most = if again { self.highest.saturating_sub(self.number) } else { u64::MAX };
        let count = (1 + rng.below(6)).min(most);
        if !is_able || count == 0 {
            return out;
        }
        let count = if self.named { self.alike(count) } else { count };
        let waits = self.manner.delays && rng.chance(20);
        let due = WallTime(wall.0 + 1 + rng.below(400_000));
        let first = self.number + 1;
        let in_frames = !waits && !self.named;
        let is_large = |number: u64| Message { sender: self.id, number }.is_large();
        let small = (first..first + count).take_while(|number| !is_large(*number)).count() as u64;
        // A large message is sent alone, in several frames.
        let count = if in_frames { small.max(1) } else { count };
        let is_large = in_frames && small == 0;
        let mut payload = Vec::new();
        let mut messages = Vec::new();
        let records = waits || self.manner.ids || self.named || is_large;
        for number in first..first + count {
            let message = Message { sender: self.id, number };
            messages.push(message);
            // A process that is run again says the same of each message.
            let due = if self.named { self.named_due(number) } else { waits.then_some(due) };
            self.write(message, due, records, model, &mut payload);
        }
        self.number += count;
        self.highest = self.highest.max(self.number);
        let framing = if records { Framing::Records } else { Framing::Delimited(b'\n') };
        let batch = Unconfirmed { first, messages, framing, payload, is_large };
        self.say(&batch, &mut out);
        self.unconfirmed.push_back(batch);
        out
    }

    /// How many of the next messages all have to wait, or all do not: others are another batch.
    fn alike(&self, count: u64) -> u64 {
        let waits = |number: u64| self.named_due(number).is_some();
        let first = self.number + 1;
        (first..first + count).take_while(|n| waits(*n) == waits(first)).count() as u64
    }

    fn named_due(&self, number: u64) -> Option<WallTime> {
        let waits = self.manner.delays && number / 3 % 5 == 1;
        waits.then_some(WallTime(WALL_START.0 + number * 20_000))
    }

    fn write(
        &self,
        message: Message,
        due: Option<WallTime>,
        records: bool,
        model: &mut QueueModel,
        payload: &mut Vec<u8>,
    ) {
        model.announced.insert(message);
        let body = message.body();
        if !records {
            payload.extend_from_slice(body.as_bytes());
            payload.push(b'\n');
            return;
        }
        let mut attributes = Vec::new();
        if self.manner.ids {
            let id = format!("{}-{}", message.sender, message.number);
            push_attribute(&mut attributes, tags::ID, id.as_bytes());
        }
        if let Some(due) = due {
            model.delayed.insert(message, due);
            push_attribute(&mut attributes, tags::NOT_BEFORE, &due.0.to_le_bytes());
        }
        Record { attribute_bytes: &attributes, body: body.as_bytes() }.encode(payload);
    }

    fn say(&self, batch: &Unconfirmed, out: &mut Frames) {
        let last = batch.first + batch.messages.len() as u64 - 1;
        let mut payload = Vec::new();
        if self.named {
            push_annex(&mut payload, &last.to_le_bytes());
        }
        payload.extend_from_slice(&batch.payload);
        let head = PublishHead {
            sequence: self.sequence(last),
            count: batch.messages.len() as u32,
            framing: batch.framing,
            batch_flags: if self.named { flags::ANNEX } else { 0 },
            read: Monotonic(0),
            more: false,
        };
        if !batch.is_large {
            return Request::Publish(head, &payload).encode(CHANNEL, out);
        }
        let mut parts = payload.chunks(1_000).peekable();
        while let Some(part) = parts.next() {
            let head = PublishHead { more: parts.peek().is_some(), ..head };
            Request::Publish(head, part).encode(CHANNEL, out);
        }
    }

    /// Reads what the server said; answers with what it says then.
    pub fn hear(&mut self, model: &mut QueueModel) -> Frames {
        let mut out = Frames::new();
        for (header, body) in take_frames(&mut self.inbound) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Sending(sending) if self.named => self.opened_by_name(&sending, model),
                Reply::Sending(sending) => self.opened(&sending, model, &mut out),
                Reply::Confirm(sequence, _, there) => {
                    self.there += there.0;
                    self.confirmed(sequence, model);
                }
                Reply::Error(fault) => {
                    let proper = !matches!(fault.code, ErrorCode::Protocol | ErrorCode::Usage);
                    assert!(proper, "a proper sender was refused: {fault:?}");
                    match trace_fault(&fault).code {
                        ErrorCode::Full | ErrorCode::Busy | ErrorCode::Disk => self.refused = true,
                        ErrorCode::Corrupt if !model.spoilt => self.refused = true,
                        _ => self.ended = true,
                    }
                }
                _ => {}
            }
        }
        out
    }

    fn opened(&mut self, sending: &Sending, model: &mut QueueModel, out: &mut Frames) {
        let confirmed = self.resume.as_ref().map_or(Sequence(0), |r| r.confirmed);
        assert!(
            sending.last >= confirmed || model.may_forget() || model.spoilt,
            "G1: sequence {confirmed} was confirmed to sender {}, the server has {}",
            self.id,
            sending.last
        );
        self.open = true;
        let Sending { queue_id, opened, .. } = *sending;
        self.resume = Some(Resume { queue_id, opened, confirmed });
        self.resend(sending.last, model, out);
    }

    /// A producer with a name goes on behind what the queue has of its input.
    fn opened_by_name(&mut self, sending: &Sending, model: &mut QueueModel) {
        let last = sending.last.0;
        let confirmed = |message: &&Message| message.sender == self.id;
        let confirmed = model.confirmed.keys().filter(confirmed).map(|m| m.number).max();
        assert!(
            confirmed <= Some(last) || model.may_forget() || model.spoilt,
            "G1: {confirmed:?} was confirmed to producer {}, the server has {last}",
            self.id
        );
        let annex = sending.annex.as_ref().map(|annex| {
            u64::from_le_bytes(annex.as_slice().try_into().expect("an annex of ours"))
        });
        if !self.manner.in_parts {
            assert_eq!(annex.unwrap_or(0), last, "the annex of producer {} at {last}", self.id);
        }
        model.confirm((1..=last).map(|number| Message { sender: self.id, number }));
        self.number = last;
        self.open = true;
    }

    fn resend(&mut self, last: Sequence, model: &mut QueueModel, out: &mut Frames) {
        // SENDING comes when all that the producer stored is visible: as good as a CONFIRM.
        self.take_off(last, model);
        let sent = self.sequence(self.number);
        if last < sent && self.unconfirmed.is_empty() {
            // Lost with the power under a weak policy: what was confirmed is not kept here.
            self.ended = true;
            return;
        }
        if let Some(first) = self.unconfirmed.front() {
            let expected = self.sequence(first.first - 1);
            // A batch may be stored in part.
            if expected > last {
                assert!(
                    model.may_forget() || model.spoilt,
                    "G1: sender {} stands at {expected}, the server at {last}, confirmed {:?}",
                    self.id,
                    self.resume
                );
                self.ended = true;
                return;
            }
        }
        for batch in &self.unconfirmed {
            self.say(batch, out);
        }
    }

    fn take_off(&mut self, sequence: Sequence, model: &mut QueueModel) {
        while let Some(first) = self.unconfirmed.front() {
            let last = first.first + first.messages.len() as u64 - 1;
            if self.sequence(last) > sequence {
                return;
            }
            let batch = self.unconfirmed.pop_front().expect("there is a first");
            model.confirm(batch.messages);
        }
    }

    fn confirmed(&mut self, sequence: Sequence, model: &mut QueueModel) {
        self.take_off(sequence, model);
        if let Some(resume) = &mut self.resume {
            resume.confirmed = resume.confirmed.max(sequence);
        }
    }
}
