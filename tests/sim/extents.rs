//! The history of a reader of extents: a sender of large and small batches, and a receiver that is
//! told where they are and reads them from the segments itself, as the source of a pipe does. What
//! says where is the production server; what takes an extent apart and verifies it is the production
//! client (`client::extent`). Whatever becomes of the segments meanwhile, no byte comes through that
//! was not sent so (G11), and in a sound store nothing is missing (G1, G8, G9), and nothing is found
//! damaged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use mq::batch::{self, Framing, Record};
use mq::client::delivery::{Batch, DeliveryError};
use mq::client::extent::{self, Found};
use mq::server::engine::ConnectionId;
use mq::settings::{Retention, Wanted};
use mq::units::{Monotonic, Name, Offset, OffsetRange, ProducerId, QueueId, Sequence, SyncPolicy};
use mq::wire::{
    Admin, ExtentHead, Kind, OpenReceive, OpenSend, PublishHead, ReceiveMode, Reply, Request,
};

use crate::disk::{ENDLESS, Fault};
use crate::plan::{Plan, STEPS};
use crate::rng::{Chance, Random};
use crate::runner::Happened;
use crate::wide::{any_policy, name, plan_falls};
use crate::wire::{CHANNEL, Frames, hello, messages_of, ranges, take_frames};
use crate::world::{Fall, World};

const KIB: u64 = 1024;

/// More messages than there are.
const CREDIT: u64 = 1 << 20;

/// What is to happen often.
const LIVELY: [&str; 7] = [
    "extents",
    "descriptors",
    "batches left in files",
    "batches read at once",
    "batches held over the end of a server",
    "damages",
    "complaints",
];

/// What a message says, which its number tells.
fn line(number: u64) -> Vec<u8> {
    let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let length = [20, 200, 2 * KIB, 9 * KIB][random.below(4) as usize] + random.below(100);
    let mut line = format!("{number} ").into_bytes();
    while (line.len() as u64) < length {
        line.extend_from_slice(format!("{:x}", random.next()).repeat(8).as_bytes());
    }
    line
}

/// Sends batches, each once: what is not confirmed when its connection goes it forgets.
#[derive(Default)]
struct Sender {
    connection: Option<ConnectionId>,
    open: bool,
    refused: bool,
    inbound: Vec<u8>,
    sequence: u64,
    /// The number of the next message.
    next: u64,
    unconfirmed: VecDeque<(Sequence, Vec<u64>)>,
}

/// See the module's page.
#[derive(Default)]
struct Reader {
    connection: Option<ConnectionId>,
    refused: bool,
    inbound: Vec<u8>,
    queue: QueueId,
    file: Option<Arc<File>>,
    /// Extents that came, and those that it said to be done with.
    extents: (u64, u64),
    /// What it has not looked at yet.
    found: VecDeque<Found>,
    /// What it is done with and has not acked.
    done: Vec<Offset>,
    /// The offset behind the newest of its session.
    end: Offset,
}

#[derive(Default)]
struct Seen {
    /// The message of each offset that ever came.
    at: BTreeMap<Offset, u64>,
    /// Confirmed, and not come yet.
    owed: BTreeSet<u64>,
    /// Messages below are owed to nobody.
    let_go: u64,
}

impl Seen {
    /// A message came, verified.
    fn came(&mut self, offset: Offset, body: &[u8]) {
        let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&body[..digits]).ok().and_then(|text| text.parse().ok());
        let Some(number) = number else { panic!("G11: no message of ours at {offset}") };
        assert!(body == line(number), "G11: message {number} at {offset} is not as it was sent");
        let before = self.at.range(..offset).next_back();
        let behind = self.at.range(offset..).find(|(at, _)| **at > offset);
        assert!(before.is_none_or(|(_, there)| *there < number), "G4: {number} at {offset}");
        assert!(behind.is_none_or(|(_, there)| *there > number), "G4: {number} at {offset}");
        let there = self.at.insert(offset, number);
        assert!(there.is_none_or(|there| there == number), "G9: {offset} was another message");
        self.owed.remove(&number);
    }

    fn batch(&mut self, batch: &Batch, done: &mut Vec<Offset>) {
        for (n, body) in batch::bodies(batch.header.framing, batch.payload.bytes()).enumerate() {
            let offset = Offset(batch.header.offset.0 + n as u64);
            self.came(offset, body);
            done.push(offset);
        }
    }

    /// These are confirmed: what has not come yet must come.
    fn owe(&mut self, numbers: impl Iterator<Item = u64>) {
        let come: BTreeSet<u64> = self.at.values().copied().collect();
        let owed = numbers.filter(|number| *number >= self.let_go && !come.contains(number));
        self.owed.extend(owed.collect::<Vec<_>>());
    }

    /// What was sent so far may be gone.
    fn forget(&mut self, sender: &Sender) {
        self.owed.clear();
        self.let_go = sender.next;
    }
}

struct Extents {
    world: World,
    queue: Name,
    policy: SyncPolicy,
    sender: Sender,
    reader: Reader,
    seen: Seen,
    /// A purge that was asked for and is not answered: it takes what is there when it is carried out.
    purge: Option<ConnectionId>,
    /// Errors of the disk are planted.
    errors: bool,
    /// Segments are damaged.
    rots: bool,
    /// One has lost its end in this life of the server.
    cut: bool,
    happened: Happened,
}

/// Runs the history of a plan.
pub fn history(plan: &Plan) -> Happened {
    let (mut extents, falls) = Extents::new(plan);
    for &number in &plan.steps {
        extents.world.begin_step(plan.draws(number));
        if let Some(how) = falls.get(&number) {
            extents.fall(*how);
        }
        extents.step();
    }
    extents.world.begin_step(plan.draws(STEPS + 1));
    extents.world.disk.forget_faults();
    extents.world.disk.set_capacity(ENDLESS);
    extents.rise();
    if extents.errors {
        extents.fall(Fall::Stop);
    }
    extents.end()
}

impl Extents {
    fn new(plan: &Plan) -> (Extents, BTreeMap<u32, Fall>) {
        let mut world = World::new(plan);
        world.begin_step(plan.draws(STEPS));
        world.disk.hand_out(Some(4 + world.rng.below(20)));
        let queue = name("src");
        let policy = any_policy(&mut world.rng);
        let retain = world.rng.chance(30).then_some(Retention::Log);
        let wanted = Wanted { sync: Some(policy), retain, ..Wanted::default() };
        world.declare(&queue, wanted);
        if world.rng.chance(30) {
            world.disk.disturb(Some(2 + world.rng.below(8)));
        }
        if world.rng.chance(30) {
            world.disk.tear_sectors();
        }
        let (errors, rots) = (world.rng.chance(30), world.rng.chance(40));
        let falls = plan_falls(&mut world.rng);
        let mut happened = Happened::default();
        LIVELY.iter().for_each(|what| happened.count(what, 0));
        let extents = Extents {
            world,
            queue,
            policy,
            sender: Sender { next: 1, ..Sender::default() },
            reader: Reader::default(),
            seen: Seen::default(),
            purge: None,
            errors,
            rots,
            cut: false,
            happened,
        };
        (extents, falls)
    }

    fn step(&mut self) {
        let what = self.world.rng.below(100);
        self.world.note(what);
        match what {
            0..25 => self.step_sender(),
            25..65 => self.step_reader(),
            65..81 => self.world.run_job(),
            81..84 => self.world.run_late_job(),
            84..90 => {
                let micros = 1 << self.world.rng.below(22);
                self.world.pass_time(micros);
            }
            90 => self.leave(),
            91 | 92 if self.rots => self.damage(),
            93 if self.purge.is_none() => {
                let purge = Admin::Purge { queue: self.queue.clone() };
                self.purge = Some(self.world.ask_for_later(purge));
            }
            94 | 95 if self.errors => {
                let far = 1 + self.world.rng.below(60);
                let fault = [Fault::Kill, Fault::Eio][self.world.rng.below(2) as usize];
                self.world.may_fail |= fault == Fault::Eio;
                self.world.plant(far, fault);
            }
            _ => {}
        }
        self.world.turn();
        self.follow_purge();
        self.world.check_accounts();
        self.rise();
    }

    /// What was sent before a purge was answered may be gone.
    fn follow_purge(&mut self) {
        let Some(connection) = self.purge else { return };
        self.seen.forget(&self.sender);
        let mut inbound = self.world.receive(connection, u64::MAX);
        let frames = take_frames(&mut inbound);
        let is_answered = frames.iter().any(|(header, _)| header.kind != Kind::Welcome);
        if is_answered || self.world.is_ending(connection) {
            self.world.hung_up(connection);
            self.purge = None;
        }
    }

    fn is_spoilt(&self) -> bool {
        !self.world.spoilt.is_empty()
    }

    // ---- sending ----

    fn step_sender(&mut self) {
        let sender = &mut self.sender;
        let Some(connection) = sender.connection.filter(|_| !sender.refused) else {
            if let Some(connection) = sender.connection {
                self.world.hung_up(connection);
            }
            let connection = self.world.connect();
            let next = sender.next;
            *sender = Sender { connection: Some(connection), next, ..Sender::default() };
            let producer = ProducerId(1 + self.world.rng.next() / 2);
            let mut frames = Frames::new();
            hello(&mut frames);
            Request::OpenSend(OpenSend::new(self.queue.clone(), producer))
                .encode(CHANNEL, &mut frames);
            return self.world.say(connection, &frames);
        };
        sender.inbound.extend(self.world.receive(connection, u64::MAX));
        for (header, body) in take_frames(&mut sender.inbound) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Sending(_) => sender.open = true,
                Reply::Confirm(sequence, ..) => {
                    let confirmed = sender.unconfirmed.partition_point(|one| one.0 <= sequence);
                    let waiting = sender.unconfirmed.split_off(confirmed);
                    let confirmed = std::mem::replace(&mut sender.unconfirmed, waiting);
                    self.seen.owe(confirmed.into_iter().flat_map(|(_, numbers)| numbers));
                }
                Reply::Error(_) => sender.refused = true,
                _ => {}
            }
        }
        if sender.open && !sender.refused && self.world.is_heard(connection) {
            let frames = self.publish();
            self.world.say(connection, &frames);
        }
        self.sender.refused |= self.world.is_ending(connection);
    }

    fn publish(&mut self) -> Frames {
        let (rng, sender) = (&mut self.world.rng, &mut self.sender);
        let wanted = if rng.chance(40) { 1 } else { (16 + rng.below(160)) * KIB };
        let framing = if rng.chance(20) { Framing::Records } else { Framing::Delimited(b'\n') };
        let (mut payload, mut numbers) = (Vec::new(), Vec::new());
        while (payload.len() as u64) < wanted {
            let body = line(sender.next);
            match framing {
                Framing::Records => {
                    Record { attribute_bytes: &[], body: &body }.encode(&mut payload);
                }
                Framing::Delimited(delimiter) => {
                    payload.extend_from_slice(&body);
                    payload.push(delimiter);
                }
            }
            numbers.push(sender.next);
            sender.next += 1;
        }
        sender.sequence += numbers.len() as u64;
        let sequence = Sequence(sender.sequence);
        let head = PublishHead {
            sequence,
            count: numbers.len() as u32,
            framing,
            batch_flags: 0,
            read: Monotonic(0),
            more: false,
        };
        sender.unconfirmed.push_back((sequence, numbers));
        let mut out = Frames::new();
        Request::Publish(head, &payload).encode(CHANNEL, &mut out);
        out
    }

    // ---- reading ----

    fn step_reader(&mut self) {
        let reader = &mut self.reader;
        let Some(connection) = reader.connection.filter(|_| !reader.refused) else {
            return self.attach();
        };
        let limit =
            if self.world.rng.chance(20) { 1 + self.world.rng.below(200) } else { u64::MAX };
        reader.inbound.extend(self.world.receive(connection, limit));
        for (header, body) in take_frames(&mut reader.inbound) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Receiving(receiving) => {
                    self.reader.queue = receiving.queue_id.unwrap_or_default();
                }
                Reply::Deliver(head, batches) => {
                    let (messages, bad) = messages_of(self.reader.queue, &head, batches);
                    self.look_at_all();
                    for (offset, body) in messages {
                        self.next_is(OffsetRange::new(offset, Offset(offset.0 + 1)));
                        self.seen.came(offset, &body);
                        self.reader.done.push(offset);
                    }
                    if let Some(place) = bad {
                        self.complain(&DeliveryError::of(&place, batch::BatchError::Short));
                    }
                }
                Reply::Extent(extent) => self.told(connection, &extent),
                Reply::Error(fault) => {
                    let excused = self.is_spoilt() || self.world.may_fail || self.errors;
                    assert!(excused, "a sound queue is refused: {fault:?}");
                    self.reader.refused = true;
                }
                _ => {}
            }
        }
        while self.world.rng.chance(60) && self.look_at_one() {}
        self.answer(connection);
        self.reader.refused |= self.world.is_ending(connection);
    }

    fn attach(&mut self) {
        self.leave();
        let connection = self.world.connect();
        self.reader = Reader { connection: Some(connection), ..Reader::default() };
        let open = OpenReceive {
            exclusive: true,
            durable: true,
            tries: true,
            extents: self.world.rng.below(5) as u32,
            ..OpenReceive::new(self.queue.clone(), name("default"), ReceiveMode::Take)
        };
        let mut frames = Frames::new();
        hello(&mut frames);
        Request::OpenReceive(open).encode(CHANNEL, &mut frames);
        Request::Credit(CREDIT).encode(CHANNEL, &mut frames);
        self.world.say(connection, &frames);
    }

    /// It goes, maybe in the midst of what it has.
    fn leave(&mut self) {
        if let Some(connection) = self.reader.connection.take() {
            self.world.hung_up(connection);
        }
        self.reader = Reader::default();
    }

    /// Batches come in order, none twice within a session.
    fn next_is(&mut self, range: OffsetRange) {
        assert!(self.reader.end <= range.start, "G4: {range} behind {}", self.reader.end);
        self.reader.end = range.end;
    }

    fn told(&mut self, connection: ConnectionId, extent: &ExtentHead) {
        if extent.opens {
            let file = self.world.take_descriptor(connection).expect("it comes with the frame");
            self.reader.file = Some(Arc::new(File::from(file)));
            self.happened.count("descriptors", 1);
        }
        self.reader.extents.0 += 1;
        self.happened.count("extents", 1);
        let file = self.reader.file.clone().expect("an extent of a file that is known");
        let keeps = |header: &batch::BatchHeader| extent::is_worth_keeping(header, b'\n');
        let mut found = Vec::new();
        let queue = self.reader.queue;
        let walked = extent::walk(extent, queue, &file, keeps, |one| found.push(one));
        for one in found {
            self.next_is(one.range());
            let stays = matches!(one, Found::Stored(_));
            let what = if stays { "batches left in files" } else { "batches read at once" };
            self.happened.count(what, 1);
            self.reader.found.push_back(one);
        }
        match walked {
            Ok(()) => assert_eq!(self.reader.end, extent.head.end, "all that was announced"),
            Err(error) => self.complain(&error),
        }
    }

    /// Takes the next batch, as a filter's feed does. False when there is none, or it is damaged.
    fn look_at_one(&mut self) -> bool {
        let (seen, done) = (&mut self.seen, &mut self.reader.done);
        match self.reader.found.pop_front() {
            None => return false,
            Some(Found::Here(batch)) => seen.batch(&batch, done),
            Some(Found::Stored(stored)) => match stored.read() {
                Ok(batch) => seen.batch(&batch, done),
                Err(error) => {
                    self.complain(&error);
                    return false;
                }
            },
        }
        true
    }

    fn look_at_all(&mut self) {
        while self.look_at_one() {}
    }

    fn complain(&mut self, error: &DeliveryError) {
        assert!(self.is_spoilt(), "a sound segment is found damaged: {error:?}");
        self.reader.found.clear();
        self.reader.refused = true;
        self.happened.count("complaints", 1);
        let DeliveryError::Damaged { segment, position, .. } = error else { return };
        if let Some(connection) = self.reader.connection {
            let mut frames = Frames::new();
            Request::Complain(*segment, *position).encode(CHANNEL, &mut frames);
            self.world.say(connection, &frames);
        }
    }

    fn answer(&mut self, connection: ConnectionId) {
        let mut frames = Frames::new();
        if self.reader.extents.0 != self.reader.extents.1 && self.world.rng.chance(60) {
            self.reader.extents.1 = self.reader.extents.0;
            Request::Extents(self.reader.extents.0).encode(CHANNEL, &mut frames);
        }
        if !self.reader.done.is_empty() && self.world.rng.chance(50) {
            let done = std::mem::take(&mut self.reader.done);
            Request::Ack(ranges(done.into_iter())).encode(CHANNEL, &mut frames);
        }
        if !frames.is_empty() {
            self.world.say(connection, &frames);
        }
    }

    // ---- what goes wrong ----

    /// A bit of a segment flips, a block of it is that of another place, or its end is gone.
    fn damage(&mut self) {
        let ours = |(path, length): &(PathBuf, usize)| {
            path.extension().is_some_and(|end| end == "seg") && *length > 64
        };
        let files: Vec<(PathBuf, usize)> =
            self.world.disk.files().into_iter().filter(ours).collect();
        if files.is_empty() {
            return;
        }
        let rng = &mut self.world.rng;
        let (path, length) = &files[rng.below(files.len() as u64) as usize];
        let at = rng.below(*length as u64) as usize;
        match rng.below(5) {
            0..3 => {
                let bit = 1u8 << rng.below(8);
                self.world.disk.spoil(path, at, &|bytes| bytes[0] ^= bit);
            }
            3 => {
                let from =
                    self.world.disk.contents(&files[rng.below(files.len() as u64) as usize].0);
                let block = 512 << rng.below(6);
                let (at, from_at) =
                    (at / 512 * 512, rng.below(from.len() as u64) as usize / 512 * 512);
                let other: Vec<u8> = from[from_at..].iter().copied().take(block).collect();
                self.world.disk.spoil(path, at, &|bytes| {
                    bytes.iter_mut().zip(&other).for_each(|(byte, other)| *byte = *other);
                });
            }
            _ => {
                self.world.disk.tamper(path, |bytes| bytes.truncate(at));
                self.cut = true;
            }
        }
        self.world.spoilt.insert(self.queue.clone());
        self.happened.count("damages", 1);
    }

    fn rise(&mut self) {
        if self.world.down.is_some() {
            let how = if self.world.rng.chance(50) { Fall::Kill } else { Fall::Power };
            self.fall(how);
        }
    }

    fn fall(&mut self, how: Fall) {
        self.world.end(how);
        if how == Fall::Power && self.policy != SyncPolicy::Always {
            self.seen.forget(&self.sender);
        }
        if self.purge.take().is_some() {
            self.seen.forget(&self.sender);
        }
        if std::mem::take(&mut self.cut) || (how == Fall::Power && self.is_spoilt()) {
            // What a file system took off the end of a file, a start cannot tell from what was never
            // written; nor, after a loss of power, what changed by itself above the durable mark from
            // a torn end. Offsets behind it are given anew.
            self.seen.at.clear();
        }
        self.sender.connection = None;
        let held = std::mem::take(&mut self.reader).found;
        self.world.begin();
        if how == Fall::Power {
            return;
        }
        // The reader outlives the server: what it was told of stays where it is, and is read.
        for one in held {
            let Found::Stored(stored) = one else { continue };
            self.happened.count("batches held over the end of a server", 1);
            match stored.read() {
                Ok(batch) => self.seen.batch(&batch, &mut Vec::new()),
                Err(error) => assert!(self.is_spoilt(), "a segment was changed: {error:?}"),
            }
        }
    }

    fn end(mut self) -> Happened {
        self.world.settle();
        self.follow_purge();
        for _ in 0..1000 {
            if self.is_spoilt() || self.seen.owed.is_empty() {
                break;
            }
            self.step_reader();
            self.world.settle();
            self.world.pass_time(20_000);
        }
        let owed = &self.seen.owed;
        assert!(self.is_spoilt() || owed.is_empty(), "G1: confirmed, and never came: {owed:?}");
        self.happened.count("messages", self.seen.at.len());
        let disk = self.world.disk.trace();
        self.world.note(disk ^ self.seen.at.len() as u64);
        self.happened.trace = self.world.trace;
        self.happened
    }
}
