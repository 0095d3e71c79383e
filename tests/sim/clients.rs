//! Simulated clients: what mq-send and mq-recv say on the wire, driven step by step.

use std::collections::{BTreeMap, VecDeque};

use mq::batch::{self, BatchHeader, Framing, HEADER_BYTES, Place, Record, push_attribute, tags};
use mq::server::engine::ConnectionId;
use mq::settings::Backoff;
use mq::units::{
    Micros, Monotonic, Name, Offset, OffsetRange, ProducerId, QueueId, Sequence, WallTime,
};
use mq::wire::{
    ClientInfo, DeliverHead, FrameHeader, Nack, OpenReceive, OpenSend, PublishHead, ReceiveMode,
    Reply, Request, Resume, VERSION,
};

use crate::model::{Message, QueueModel};
use crate::rng::{Chance, Random};

const CHANNEL: u16 = 1;

/// What a client does when it wants to say something: whole frames.
pub type Frames = Vec<u8>;

fn hello(out: &mut Frames) {
    let client = Some(ClientInfo::default());
    Request::Hello { oldest: VERSION, newest: VERSION, client }.encode(0, out);
}

/// Takes the whole frames off `bytes`.
pub fn take_frames(bytes: &mut Vec<u8>) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes[at..].first_chunk::<8>() {
        let header = FrameHeader::decode(head).expect("the server sends frames");
        let end = at + 8 + header.length as usize;
        if bytes.len() < end {
            break;
        }
        frames.push((header, bytes[at + 8..end].to_vec()));
        at = end;
    }
    bytes.drain(..at);
    frames
}

/// A batch that has been sent and not confirmed.
#[derive(Clone, Debug)]
struct Unconfirmed {
    head: PublishHead,
    payload: Vec<u8>,
    messages: Vec<Message>,
}

/// One mq-send.
#[derive(Debug)]
pub struct Sender {
    pub id: u64,
    pub queue: Name,
    pub connection: Option<ConnectionId>,
    pub inbound: Vec<u8>,
    producer: ProducerId,
    resume: Option<Resume>,
    open: bool,
    sequence: u64,
    unconfirmed: VecDeque<Unconfirmed>,
    /// All that it ever sent, if it is one with a name: each time it connects it sends from its
    /// beginning what is not stored, as `mq-send --producer` does with the same input.
    again: Option<Vec<Unconfirmed>>,
    /// The server refused it for good (a fault that a tool would end with).
    pub ended: bool,
}

impl Sender {
    pub fn new(id: u64, queue: Name, rng: &mut Random) -> Sender {
        Sender {
            id,
            queue,
            connection: None,
            inbound: Vec::new(),
            producer: ProducerId(rng.next() | 1),
            resume: None,
            open: false,
            sequence: 0,
            unconfirmed: VecDeque::new(),
            again: None,
            ended: false,
        }
    }

    /// One with a name, that is run again with the same input.
    pub fn named(id: u64, queue: Name, rng: &mut Random) -> Sender {
        Sender { again: Some(Vec::new()), ..Sender::new(id, queue, rng) }
    }

    pub fn connect(&mut self, connection: ConnectionId) -> Frames {
        self.connection = Some(connection);
        self.inbound.clear();
        self.open = false;
        let mut out = Frames::new();
        hello(&mut out);
        let open = OpenSend {
            resume: self.resume.clone().filter(|_| self.again.is_none()),
            named: self.again.is_some(),
            ..OpenSend::new(self.queue.clone(), self.producer)
        };
        Request::OpenSend(open).encode(CHANNEL, &mut out);
        out
    }

    pub fn lost(&mut self) {
        self.connection = None;
        self.open = false;
    }

    pub fn is_idle(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// Sends a batch of a few messages, now and then one of messages that have to wait.
    pub fn publish(&mut self, model: &mut QueueModel, rng: &mut Random, wall: WallTime) -> Frames {
        let mut out = Frames::new();
        if !self.open || self.unconfirmed.len() > 20 {
            return out;
        }
        let count = 1 + rng.below(6);
        let delayed = rng.chance(20);
        let mut payload = Vec::new();
        let mut messages = Vec::new();
        for _ in 0..count {
            self.sequence += 1;
            let message = Message { sender: self.id, number: self.sequence };
            model.announced.insert(message);
            messages.push(message);
            let body = message.body();
            if delayed {
                let due = WallTime(wall.0 + 1 + rng.below(400_000));
                model.delayed.insert(message, due);
                let mut attributes = Vec::new();
                push_attribute(&mut attributes, tags::NOT_BEFORE, &due.0.to_le_bytes());
                let record = Record { attribute_bytes: &attributes, body: body.as_bytes() };
                record.encode(&mut payload);
            } else {
                payload.extend_from_slice(body.as_bytes());
                payload.push(b'\n');
            }
        }
        let head = PublishHead {
            sequence: Sequence(self.sequence),
            count: count as u32,
            framing: if delayed { Framing::Records } else { Framing::Delimited(b'\n') },
            batch_flags: 0,
            read: Monotonic(0),
            more: false,
        };
        Request::Publish(head, &payload).encode(CHANNEL, &mut out);
        let batch = Unconfirmed { head, payload, messages };
        if let Some(again) = &mut self.again {
            again.push(batch.clone());
        }
        self.unconfirmed.push_back(batch);
        out
    }

    /// Reads what the server said; answers with what it says then.
    pub fn hear(&mut self, model: &mut QueueModel) -> Frames {
        let mut out = Frames::new();
        for (header, body) in take_frames(&mut self.inbound) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Sending(sending) if self.again.is_some() => {
                    self.open = true;
                    self.send_again(sending.last, model, &mut out);
                }
                Reply::Sending(sending) => {
                    let confirmed = self.resume.as_ref().map_or(Sequence(0), |r| r.confirmed);
                    assert!(
                        sending.last >= confirmed || model.may_forget(),
                        "G1: sequence {confirmed} was confirmed to sender {}, the server has {}",
                        self.id,
                        sending.last
                    );
                    self.open = true;
                    self.resume = Some(Resume {
                        queue_id: sending.queue_id,
                        opened: sending.opened,
                        confirmed,
                    });
                    self.resend(sending.last, model, &mut out);
                }
                Reply::Confirm(sequence, _, _) => self.confirmed(sequence, model),
                Reply::Error(fault) => {
                    self.ended = true;
                    assert!(
                        !matches!(fault.code, mq::wire::ErrorCode::Protocol),
                        "a proper sender was refused: {fault:?}"
                    );
                }
                _ => {}
            }
        }
        out
    }

    fn resend(&mut self, last: Sequence, model: &mut QueueModel, out: &mut Frames) {
        while self.unconfirmed.front().is_some_and(|first| first.head.sequence <= last) {
            // SENDING comes when all that the producer stored is visible: as good as a CONFIRM.
            let batch = self.unconfirmed.pop_front().expect("there is a first");
            model.confirmed.extend(batch.messages);
        }
        if last.0 < self.sequence && self.unconfirmed.is_empty() {
            // Lost with the power under a weak policy: what was confirmed is not kept here.
            self.ended = true;
            return;
        }
        if let Some(first) = self.unconfirmed.front() {
            let expected = first.head.sequence.0 - u64::from(first.head.count);
            if expected != last.0 {
                assert!(
                    model.may_forget(),
                    "G1: sender {} stands at {expected}, the server at {last}, confirmed {:?}",
                    self.id,
                    self.resume
                );
                self.ended = true;
                return;
            }
        }
        for batch in &self.unconfirmed {
            Request::Publish(batch.head, &batch.payload).encode(CHANNEL, out);
        }
    }

    /// What the server does not have is sent, whatever it has confirmed.
    fn send_again(&mut self, last: Sequence, model: &mut QueueModel, out: &mut Frames) {
        let all = self.again.as_ref().expect("it has a name");
        let is_there = |batch: &&Unconfirmed| batch.head.sequence <= last;
        let there = all.iter().filter(is_there).flat_map(|batch| batch.messages.clone());
        model.confirmed.extend(there);
        self.unconfirmed = all.iter().filter(|batch| !is_there(batch)).cloned().collect();
        if let Some(first) = self.unconfirmed.front() {
            let before = first.head.sequence.0 - u64::from(first.head.count);
            assert_eq!(before, last.0, "G2: sender {} has a part of a batch there", self.id);
        }
        for batch in &self.unconfirmed {
            Request::Publish(batch.head, &batch.payload).encode(CHANNEL, out);
        }
    }

    fn confirmed(&mut self, sequence: Sequence, model: &mut QueueModel) {
        while self.unconfirmed.front().is_some_and(|first| first.head.sequence <= sequence) {
            let batch = self.unconfirmed.pop_front().expect("there is a first");
            model.confirmed.extend(batch.messages);
        }
        if let Some(resume) = &mut self.resume {
            resume.confirmed = resume.confirmed.max(sequence);
        }
    }
}

/// One mq-recv.
#[derive(Debug)]
pub struct Receiver {
    pub queue: Name,
    pub connection: Option<ConnectionId>,
    pub inbound: Vec<u8>,
    queue_id: Option<QueueId>,
    /// RECEIVING has come: what it holds is what the server says that it keeps.
    open: bool,
    credit: u64,
    delivered: u64,
    /// Held: delivered, not acked.
    pub held: BTreeMap<Offset, ()>,
    /// Acked on this connection; known to be written down when a later answer has come.
    acked: Vec<OffsetRange>,
    pub ended: bool,
}

impl Receiver {
    pub fn new(queue: Name) -> Receiver {
        Receiver {
            queue,
            connection: None,
            inbound: Vec::new(),
            queue_id: None,
            open: false,
            credit: 0,
            delivered: 0,
            held: BTreeMap::new(),
            acked: Vec::new(),
            ended: false,
        }
    }

    /// Connects; with `keep`, presents what it holds.
    pub fn connect(&mut self, connection: ConnectionId, keep: bool) -> Frames {
        self.connection = Some(connection);
        self.inbound.clear();
        self.acked.clear();
        self.credit = 0;
        self.open = false;
        self.delivered = 0;
        if !keep {
            self.held.clear();
        }
        let mut out = Frames::new();
        hello(&mut out);
        let open = OpenReceive {
            queue_id: self.queue_id,
            holding: ranges(self.held.keys().copied()),
            tries: true,
            backoff: Some(Backoff { first: Micros(1_000), max: Micros(4_000) }),
            ..OpenReceive::new(self.queue.clone(), Name::default(), ReceiveMode::Take)
        };
        Request::OpenReceive(open).encode(CHANNEL, &mut out);
        out
    }

    pub fn lost(&mut self) {
        self.connection = None;
    }

    pub fn more_credit(&mut self, rng: &mut Random) -> Frames {
        let mut out = Frames::new();
        self.credit = self.credit.max(self.delivered + 1 + rng.below(30));
        Request::Credit(self.credit).encode(CHANNEL, &mut out);
        out
    }

    /// Begins to try some of what it holds: an attempt is counted, whatever becomes of it.
    pub fn begin(&mut self, rng: &mut Random) -> Frames {
        let mut out = Frames::new();
        let some: Vec<Offset> = self.held.keys().copied().filter(|_| rng.chance(20)).collect();
        if !some.is_empty() && self.open {
            Request::Begin(ranges(some.into_iter())).encode(CHANNEL, &mut out);
        }
        out
    }

    /// Acks some of what it holds: the oldest, or any; or gives it back. What is poison fails.
    pub fn ack(&mut self, model: &mut QueueModel, rng: &mut Random) -> Frames {
        let mut out = Frames::new();
        let in_order = rng.chance(70);
        let give_back = rng.chance(5);
        let count = 1 + rng.below(10) as usize;
        let some: Vec<Offset> = if in_order {
            self.held.keys().copied().take(count).collect()
        } else {
            self.held.keys().copied().filter(|_| rng.chance(40)).take(count).collect()
        };
        self.settle(some, give_back, model, &mut out);
        out
    }

    /// Acks all that it holds.
    pub fn ack_all(&mut self, model: &mut QueueModel) -> Frames {
        let mut out = Frames::new();
        let all = self.held.keys().copied().take(500).collect();
        self.settle(all, false, model, &mut out);
        out
    }

    fn settle(
        &mut self,
        some: Vec<Offset>,
        give_back: bool,
        model: &mut QueueModel,
        out: &mut Frames,
    ) {
        if some.is_empty() || !self.open {
            return;
        }
        for offset in &some {
            self.held.remove(offset);
        }
        if give_back {
            let ranges = ranges(some.into_iter());
            Request::Release(mq::wire::ReleaseMode::Release, ranges).encode(CHANNEL, out);
            return;
        }
        let is_poison = |offset: &Offset| model.fails && model.seen[offset].is_poison();
        let (poison, fine): (Vec<Offset>, Vec<Offset>) = some.into_iter().partition(is_poison);
        if !poison.is_empty() {
            let ranges = ranges(poison.into_iter());
            let reason = "poison".to_owned();
            Request::Nack(Nack { ranges, reason, ..Nack::default() }).encode(CHANNEL, out);
        }
        if !fine.is_empty() {
            let ranges = ranges(fine.iter().copied());
            Request::Ack(ranges.clone()).encode(CHANNEL, out);
            model.acked.extend(fine);
            self.acked.extend(ranges);
        }
    }

    /// Acks that the server has taken in: frames are served in their order.
    pub fn served(&mut self, model: &mut QueueModel) {
        model.settle(&std::mem::take(&mut self.acked));
    }

    pub fn hear(&mut self, model: &mut QueueModel, wall: WallTime) {
        for (header, body) in take_frames(&mut self.inbound) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Receiving(receiving) => {
                    if let Some(id) = receiving.queue_id {
                        assert!(model.id.is_none_or(|known| known == id), "another incarnation");
                        model.id = Some(id);
                        self.queue_id = Some(id);
                        self.open = true;
                        let kept: Vec<OffsetRange> = receiving.kept;
                        self.held
                            .retain(|offset, ()| kept.iter().any(|range| range.contains(*offset)));
                        self.delivered = self.held.len() as u64;
                    }
                }
                Reply::Deliver(head, batches) => self.take_in(&head, batches, model, wall),
                Reply::Error(fault) => {
                    self.ended = true;
                    panic!("a proper receiver was refused: {fault:?}");
                }
                _ => {}
            }
        }
    }

    fn take_in(
        &mut self,
        head: &DeliverHead,
        mut rest: &[u8],
        model: &mut QueueModel,
        wall: WallTime,
    ) {
        let queue = self.queue_id.expect("delivered before RECEIVING");
        let mut place = Place { queue, segment: head.segment, position: head.position };
        while !rest.is_empty() {
            let header = BatchHeader::decode(rest, &place).expect("G11: a header that verifies");
            let length = header.length() as usize;
            let payload = &rest[HEADER_BYTES..length];
            header.verify(payload).expect("G11: a payload that verifies");
            if header.count > 0 {
                let messages = header.messages_part(payload).expect("G11: an annex that fits");
                let bodies: Vec<&[u8]> = batch::bodies(header.framing, messages).collect();
                assert_eq!(bodies.len(), header.count as usize, "G2: messages as announced");
                for (n, body) in bodies.into_iter().enumerate() {
                    let offset = Offset(header.offset.0 + n as u64);
                    model.delivered(offset, body, head.redelivered, wall);
                    self.held.insert(offset, ());
                    self.delivered += 1;
                }
            }
            place = place.advanced(length as u64);
            rest = &rest[length..];
        }
        assert!(self.delivered <= self.credit, "more delivered than there was credit for");
    }
}

/// Joins offsets to ranges.
pub fn ranges(offsets: impl Iterator<Item = Offset>) -> Vec<OffsetRange> {
    let mut out: Vec<OffsetRange> = Vec::new();
    for offset in offsets {
        match out.last_mut() {
            Some(last) if last.end == offset => last.end = Offset(offset.0 + 1),
            _ => out.push(OffsetRange::new(offset, Offset(offset.0 + 1))),
        }
    }
    out
}

/// The wall clock of the simulation begins here.
pub const WALL_START: WallTime = WallTime(1_700_000_000_000_000);
