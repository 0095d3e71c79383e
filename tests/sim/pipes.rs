//! Simulated pipes: what mq-pipe says on the wire, with a filter that passes most messages on,
//! drops some, and fails on those that are poison.
//!
//! As the tool does, a session forgets everything when one of its connections is lost, and the
//! next one goes on from the annex of the destination's last commit. At the end the destination
//! must hold exactly what the filter makes of the source, in its order, once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mq::batch::{self, BatchHeader, Framing, HEADER_BYTES, Place, flags, push_annex};
use mq::server::engine::ConnectionId;
use mq::settings::Start;
use mq::units::{Count, Name, Offset, OffsetRange, ProducerId, QueueId, Sequence};
use mq::wire::{
    ClientInfo, CommitHead, Nack, OpenReceive, OpenSend, ReceiveMode, Reply, Request, VERSION,
};

use crate::clients::{Frames, ranges, take_frames};
use crate::model::Message;
use crate::rng::{Chance, Random};

const CHANNEL: u16 = 1;

/// What a commit says of itself.
#[derive(Clone, Debug, Default)]
struct Mark {
    next: u64,
    /// Dead letters below.
    dead: Vec<u64>,
}

impl Mark {
    fn encode(&self) -> Vec<u8> {
        let numbers = std::iter::once(&self.next).chain(&self.dead);
        numbers.flat_map(|number| number.to_le_bytes()).collect()
    }

    fn decode(annex: &[u8]) -> Mark {
        let mut numbers =
            annex.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight")));
        Mark { next: numbers.next().expect("a mark"), dead: numbers.collect() }
    }
}

/// Told with `MQ_SIM_TRACE`.
fn trace(what: impl Fn() -> String) {
    if std::env::var_os("MQ_SIM_TRACE").is_some() {
        eprintln!("pipe: {}", what());
    }
}

/// Whether the filter drops a message.
fn is_dropped(message: Message) -> bool {
    message.number % 7 == 3
}

/// One mq-pipe.
#[derive(Debug)]
pub struct Pipe {
    pub source: Name,
    pub destination: Name,
    /// To the destination, and to the source.
    pub connections: Option<[ConnectionId; 2]>,
    pub inbound: [Vec<u8>; 2],
    producer: ProducerId,
    /// The destination has answered; it is the last sequence of ours.
    last: Option<u64>,
    mark: Mark,
    /// Where this session began: what lies below was committed.
    floor: u64,
    source_id: Option<QueueId>,
    /// Read and not committed.
    input: VecDeque<(Offset, Message)>,
    /// Delivered and not settled.
    held: BTreeSet<Offset>,
    /// Commits that are not confirmed: their sequences, and where they end.
    waiting: VecDeque<(u64, u64)>,
    /// Frames of a commit that have yet to be said.
    saying: VecDeque<Frames>,
    /// All that was ever read, where.
    pub read: BTreeMap<Offset, Message>,
    /// Commits that were confirmed, in all sessions.
    pub confirmed: usize,
    pub in_parts: usize,
    pub buried: usize,
}

impl Pipe {
    pub fn new(source: Name, destination: Name, rng: &mut Random) -> Pipe {
        Pipe {
            source,
            destination,
            connections: None,
            inbound: [Vec::new(), Vec::new()],
            producer: ProducerId(rng.next() | 1),
            last: None,
            mark: Mark::default(),
            floor: 0,
            source_id: None,
            input: VecDeque::new(),
            held: BTreeSet::new(),
            waiting: VecDeque::new(),
            saying: VecDeque::new(),
            read: BTreeMap::new(),
            confirmed: 0,
            in_parts: 0,
            buried: 0,
        }
    }

    /// Begins a session: the destination is opened; the source when that has answered.
    pub fn connect(&mut self, connections: [ConnectionId; 2]) -> [Frames; 2] {
        self.connections = Some(connections);
        self.inbound = [Vec::new(), Vec::new()];
        (self.last, self.source_id) = (None, None);
        self.input.clear();
        self.held.clear();
        self.waiting.clear();
        self.saying.clear();
        let mut frames = [Frames::new(), Frames::new()];
        for frames in &mut frames {
            let client = Some(ClientInfo::default());
            Request::Hello { oldest: VERSION, newest: VERSION, client }.encode(0, frames);
        }
        let open =
            OpenSend { named: true, ..OpenSend::new(self.destination.clone(), self.producer) };
        Request::OpenSend(open).encode(CHANNEL, &mut frames[0]);
        frames
    }

    pub fn lost(&mut self) {
        self.connections = None;
    }

    /// Whether all that it has read is in the destination.
    pub fn is_done(&self) -> bool {
        self.connections.is_some()
            && self.last.is_some()
            && self.waiting.is_empty()
            && self.saying.is_empty()
            && self.input.is_empty()
            && self.held.is_empty()
    }

    /// What it says after it has heard what came: to the destination, and to the source.
    pub fn step(&mut self, rng: &mut Random, hurries: bool) -> [Frames; 2] {
        let mut out = [Frames::new(), Frames::new()];
        self.hear_destination(&mut out[1]);
        self.hear_source(&mut out[1]);
        if self.saying.is_empty() && self.last.is_some() && self.waiting.len() < 3 {
            self.commit(rng, hurries, &mut out[1]);
        }
        // A commit of several frames may take many steps.
        while let Some(frame) = self.saying.pop_front() {
            out[0].extend(frame);
            if !hurries && rng.chance(40) {
                break;
            }
        }
        out
    }

    fn hear_destination(&mut self, to_source: &mut Frames) {
        for (header, body) in take_frames(&mut self.inbound[0]) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Sending(sending) => {
                    trace(|| format!("SENDING {} {:?}", sending.last, sending.annex));
                    self.last = Some(sending.last.0);
                    self.mark = sending.annex.map_or_else(Mark::default, |a| Mark::decode(&a));
                    self.floor = self.mark.next;
                    let group = Name::new("pipe").expect("a name");
                    let open = OpenReceive {
                        from: Some(Start::Oldest),
                        exclusive: true,
                        durable: true,
                        tries: true,
                        ..OpenReceive::new(self.source.clone(), group, ReceiveMode::Take)
                    };
                    Request::OpenReceive(open).encode(CHANNEL, to_source);
                    Request::Credit(u64::MAX >> 1).encode(CHANNEL, to_source);
                }
                Reply::Confirm(sequence, _, Count(there)) => {
                    trace(|| format!("CONFIRM {sequence}"));
                    assert_eq!(there, 0, "a commit is never there already");
                    while self.waiting.front().is_some_and(|(waiting, _)| *waiting <= sequence.0) {
                        let (_, next) = self.waiting.pop_front().expect("there is a first");
                        self.confirmed += 1;
                        self.settle_below(next, to_source);
                    }
                }
                Reply::Error(fault) => panic!("a proper pipe was refused: {fault:?}"),
                _ => {}
            }
        }
    }

    fn settle_below(&mut self, next: u64, to_source: &mut Frames) {
        let above = self.held.split_off(&Offset(next));
        let below = std::mem::replace(&mut self.held, above);
        if !below.is_empty() {
            Request::Ack(ranges(below.into_iter())).encode(CHANNEL, to_source);
        }
    }

    fn hear_source(&mut self, to_source: &mut Frames) {
        for (header, body) in take_frames(&mut self.inbound[1]) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Receiving(receiving) if receiving.epoch.is_some() => {
                    self.source_id = receiving.queue_id;
                }
                Reply::Deliver(head, batches) => {
                    let queue = self.source_id.expect("delivered before its turn");
                    let place = Place { queue, segment: head.segment, position: head.position };
                    self.take_in(place, batches, to_source);
                }
                Reply::Error(fault) => panic!("a proper pipe was refused: {fault:?}"),
                _ => {}
            }
        }
    }

    fn take_in(&mut self, mut place: Place, mut rest: &[u8], to_source: &mut Frames) {
        while !rest.is_empty() {
            let header = BatchHeader::decode(rest, &place).expect("G11: a header that verifies");
            let length = header.length() as usize;
            let payload = &rest[HEADER_BYTES..length];
            header.verify(payload).expect("G11: a payload that verifies");
            let messages = header.messages_part(payload).expect("G11: an annex that fits");
            let bodies = batch::bodies(header.framing, messages).take(header.count as usize);
            for (n, body) in bodies.enumerate() {
                let offset = Offset(header.offset.0 + n as u64);
                let message = Message::parse(body).expect("G2: what somebody sent");
                let before = self.read.insert(offset, message);
                assert!(before.is_none_or(|before| before == message), "{offset} has two messages");
                self.held.insert(offset);
                if offset.0 >= self.mark.next {
                    let last = self.input.back().map(|(last, _)| *last);
                    assert!(last < Some(offset), "G4: {offset} behind {last:?}");
                    self.input.push_back((offset, message));
                } else if self.mark.dead.contains(&offset.0) {
                    self.bury(offset, to_source);
                }
            }
            place = place.advanced(length as u64);
            rest = &rest[length..];
        }
        self.settle_below(self.floor, to_source);
    }

    fn bury(&mut self, offset: Offset, to_source: &mut Frames) {
        self.held.remove(&offset);
        let one = OffsetRange::new(offset, offset.plus(Count(1)));
        let nack = Nack { ranges: vec![one], dead: true, ..Nack::default() };
        Request::Nack(nack).encode(CHANNEL, to_source);
    }

    /// Makes a commit of some of what was read.
    fn commit(&mut self, rng: &mut Random, hurries: bool, to_source: &mut Frames) {
        let most = if hurries { 100 } else { rng.below(8) as usize };
        let some: Vec<(Offset, Message)> = self.input.drain(..most.min(self.input.len())).collect();
        let Some((last, _)) = some.last() else { return };
        self.mark.next = last.0 + 1;
        let mut outputs = Vec::new();
        for (offset, message) in some {
            if message.is_poison() {
                self.mark.dead.push(offset.0);
                self.buried += 1;
                self.bury(offset, to_source);
            } else if !is_dropped(message) {
                outputs.push(format!("{}\n", message.body()));
            }
        }
        let sequence = self.last.expect("the destination has answered") + 1;
        self.last = Some(sequence);
        self.waiting.push_back((sequence, self.mark.next));
        trace(|| format!("commit {sequence} to {}: {outputs:?}", self.mark.next));
        let mut annex = Vec::new();
        push_annex(&mut annex, &self.mark.encode());
        let head = |count: u32, more: bool| CommitHead {
            sequence: Sequence(sequence),
            count,
            framing: Framing::Delimited(b'\n'),
            batch_flags: if more { 0 } else { flags::ANNEX },
            more,
        };
        let mut say = |head: CommitHead, payload: &[u8]| {
            let mut frame = Frames::new();
            Request::Commit(head, payload).encode(CHANNEL, &mut frame);
            self.saying.push_back(frame);
        };
        if outputs.len() < 2 || rng.chance(50) {
            let payload = [annex, outputs.concat().into_bytes()].concat();
            return say(head(outputs.len() as u32, false), &payload);
        }
        for output in &outputs {
            say(head(1, true), output.as_bytes());
        }
        say(head(0, false), &annex);
        self.in_parts += 1;
    }

    /// What the destination must hold, in order.
    pub fn expected(&self) -> Vec<Message> {
        let passes = |message: &Message| !message.is_poison() && !is_dropped(*message);
        self.read.values().copied().filter(passes).collect()
    }

    /// What must be among the dead letters.
    pub fn expected_dead(&self) -> BTreeSet<Message> {
        self.read.values().copied().filter(|message| message.is_poison()).collect()
    }
}
