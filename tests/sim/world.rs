//! The world around the engine: a simulated disk, clock, helper threads and clients, all driven
//! by one seed. The engine, broker and log in it are the production ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use mq::log::storage::StorageFile;
use mq::log::{Boot, Options};
use mq::server::engine::{ConnectionId, Engine, Outcome, Peer, Setup, Work};
use mq::server::outbox::Front;
use mq::server::workers::Job;
use mq::settings::Start;
use mq::units::{
    Bytes, Micros, Moment, Monotonic, Name, Offset, Position, QueueId, SyncPolicy, WallTime,
};
use mq::wire::stat::{Figures, FiguresWanted};
use mq::wire::{Admin, ClientInfo, FrameHeader, Request, ServerInfo, VERSION};

use crate::clients::{Receiver, Sender, WALL_START};
use crate::disk::{Fault, SimDisk};
use crate::model::QueueModel;
use crate::pipes::Pipe;
use crate::rng::{Chance, Random};

/// How a server's life ends in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fall {
    /// In order.
    Stop,
    /// kill -9: what was written is still in the page cache.
    Kill,
    /// The machine loses power.
    Power,
}

/// Where the dead letters of a queue go.
pub fn dead_letters_of(name: &Name) -> Name {
    Name::new(&format!("{name}.dead")).expect("a name")
}

/// A queue that is purged, and of which a group comes, goes and is set elsewhere: of its messages
/// only the accounts are checked.
pub fn aside() -> Name {
    Name::new("aside").expect("a name")
}

/// The counters of a queue by name.
type Counters = serde_json::Map<String, serde_json::Value>;

/// Those that a fall may take something back of.
const INEXACT: [&str; 7] = [
    "announced",
    "there_already",
    "refused",
    "delivered",
    "delivered_bytes",
    "redelivered",
    "retried",
];

/// How messages ended in the groups of a queue.
const ENDED: [&str; 5] = ["acked", "dead", "expired", "dropped", "purged"];

pub struct World {
    pub rng: Random,
    pub disk: Arc<SimDisk>,
    engine: Option<Engine<SimDisk>>,
    jobs: Vec<Work<SimDisk>>,
    outcomes: Vec<Outcome<SimDisk>>,
    now: Monotonic,
    wall: WallTime,
    next_connection: u64,
    pub senders: Vec<Sender>,
    pub receivers: Vec<Receiver>,
    pub pipes: Vec<Pipe>,
    /// What connections were told while they waited to say something.
    unheard: BTreeMap<ConnectionId, Vec<u8>>,
    pub queues: BTreeMap<Name, QueueModel>,
    boot: Boot,
    /// Everything that happened, folded into one number: equal seeds must give equal traces.
    pub trace: u64,
    pub falls: usize,
    /// What each queue had counted when it was looked at last.
    watched: BTreeMap<Name, Counters>,
    /// In this life a group of the queue that is set aside was set to another place.
    sought: bool,
    /// Nothing new is sent; receivers ack all that they hold.
    pub draining: bool,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Random(seed);
        let disk = Arc::new(SimDisk::new(rng.next()));
        let mut world = World {
            rng,
            disk,
            engine: None,
            jobs: Vec::new(),
            outcomes: Vec::new(),
            now: Monotonic(0),
            wall: WALL_START,
            next_connection: 1,
            senders: Vec::new(),
            receivers: Vec::new(),
            pipes: Vec::new(),
            unheard: BTreeMap::new(),
            queues: BTreeMap::new(),
            boot: Boot { clean: true, same_boot: true },
            trace: seed,
            falls: 0,
            watched: BTreeMap::new(),
            sought: false,
            draining: false,
        };
        world.start();
        world
    }

    pub fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now, wall: self.wall }
    }

    fn start(&mut self) {
        let mut ids = Random(self.rng.next());
        let mut secrets = Random(self.rng.next());
        let segment_bytes = 2048 + self.rng.below(4) * 1024;
        let setup = Setup {
            storage: Arc::clone(&self.disk),
            log_options: Options { reserve: Some(Bytes(0)), segment_bytes, ..Options::default() },
            boot: self.boot,
            info: ServerInfo {
                version: "sim".to_owned(),
                pid: 1,
                producer_retry: Micros::from_secs(600),
                cannot: Vec::new(),
            },
            new_queue_id: Box::new(move || {
                let mut bytes = [0u8; 16];
                bytes[..8].copy_from_slice(&ids.next().to_le_bytes());
                bytes[8..].copy_from_slice(&ids.next().to_le_bytes());
                QueueId::from_bytes(bytes)
            }),
            new_lease_secret: Box::new(move || secrets.next() as u32),
            moment: self.moment(),
            clock_zero: Micros(0),
        };
        let engine = Engine::open(setup, &mut |name, error| {
            if let Some(error) = error {
                panic!("queue {name} does not open after a fall: {error}");
            }
        })
        .unwrap_or_else(|error| panic!("the store does not open: {error}"));
        self.engine = Some(engine);
        self.boot = Boot { clean: false, same_boot: true };
    }

    fn engine(&mut self) -> &mut Engine<SimDisk> {
        self.engine.as_mut().expect("a server runs")
    }

    /// Hands frames to the engine, as whole frames.
    fn say(&mut self, connection: ConnectionId, frames: &[u8]) {
        let moment = self.moment();
        let mut at = 0;
        while at < frames.len() {
            let head = frames[at..at + 8].try_into().expect("eight bytes");
            let header = FrameHeader::decode(head).expect("our own frames");
            let end = at + 8 + header.length as usize;
            // A paused connection's frames wait in its socket; here they wait for the job, and
            // one that could not be served comes again.
            while self.engine().is_paused(connection)
                || !self.engine().frame(connection, &header, &frames[at + 8..end], moment)
            {
                self.turn();
                if self.engine().is_paused(connection) && !self.run_job() {
                    // What it is told while it waits is heard later.
                    let bytes = self.receive(connection, u64::MAX);
                    self.unheard.entry(connection).or_default().extend(bytes);
                }
            }
            at = end;
        }
    }

    pub fn turn(&mut self) {
        let moment = self.moment();
        for outcome in std::mem::take(&mut self.outcomes) {
            self.engine().outcome(outcome, moment);
        }
        self.engine().turn(moment);
        let jobs = self.engine().take_jobs();
        self.jobs.extend(jobs);
        if let Err(wrong) = self.engine().check_accounts() {
            panic!("an account does not add up: {wrong}");
        }
        if let Some(why) = self.engine().failed() {
            panic!("the disk failed without a fault being planted: {why}");
        }
    }

    /// Runs one job, any of those that are under way. False when there is none.
    pub fn run_job(&mut self) -> bool {
        if self.jobs.is_empty() {
            return false;
        }
        let which = self.rng.below(self.jobs.len() as u64) as usize;
        let outcome = self.jobs.swap_remove(which).run();
        self.outcomes.push(outcome);
        self.turn();
        true
    }

    /// Takes up to `bytes` out of an outbox, as a socket would.
    fn receive(&mut self, connection: ConnectionId, mut bytes: u64) -> Vec<u8> {
        let mut received = self.unheard.remove(&connection).unwrap_or_default();
        let engine = self.engine.as_mut().expect("a server runs");
        if let Some(outbox) = engine.outbox(connection) {
            while bytes > 0 {
                let n = match outbox.front() {
                    None => break,
                    Some(Front::Bytes(piece, _)) => {
                        let n = (piece.len() as u64).min(bytes) as usize;
                        received.extend_from_slice(&piece[..n]);
                        n as u64
                    }
                    Some(Front::Descriptor(..)) => unreachable!("no descriptors here"),
                    Some(Front::File { file, position, bytes: length, .. }) => {
                        let n = length.min(bytes);
                        let before = received.len();
                        received.resize(before + n as usize, 0);
                        let read = file.read_at(&mut received[before..], Position(position));
                        assert_eq!(
                            read.expect("readable"),
                            n as usize,
                            "a range that is not there"
                        );
                        n
                    }
                };
                outbox.advance(n);
                bytes -= n;
            }
        }
        engine.sent(connection);
        engine.take_dirty();
        received
    }

    fn connect(&mut self) -> ConnectionId {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let moment = self.moment();
        self.engine().connected(connection, Peer::default(), moment);
        connection
    }

    /// Declares a queue, and waits until it stands.
    pub fn declare(&mut self, name: &Name, policy: SyncPolicy) {
        let connection = self.connect();
        let mut frames = Vec::new();
        let client = Some(ClientInfo::default());
        Request::Hello { oldest: VERSION, newest: VERSION, client }.encode(0, &mut frames);
        let declare = Admin::Declare {
            queue: name.clone(),
            wanted: mq::settings::Wanted {
                sync: Some(policy),
                delivery_limit: Some(3),
                ..Default::default()
            },
            change: false,
        };
        Request::Admin(declare).encode(1, &mut frames);
        self.say(connection, &frames);
        self.turn();
        while self.run_job() {}
        self.receive(connection, u64::MAX);
        self.engine().hung_up(connection);
        self.queues.insert(name.clone(), QueueModel::new(policy));
    }

    pub fn step_sender(&mut self, which: usize) {
        let Some(connection) = self.senders[which].connection else {
            if !self.senders[which].ended {
                let connection = self.connect();
                let frames = self.senders[which].connect(connection);
                self.say(connection, &frames);
            }
            return;
        };
        let limit = if self.rng.chance(20) { 1 + self.rng.below(60) } else { u64::MAX };
        let bytes = self.receive(connection, limit);
        let sender = &mut self.senders[which];
        let model = self.queues.get_mut(&sender.queue).expect("a queue's model");
        sender.inbound.extend(bytes);
        let mut frames = sender.hear(model);
        if !sender.ended && !self.draining {
            frames.extend(sender.publish(model, &mut self.rng, self.wall));
        }
        self.say(connection, &frames);
    }

    pub fn step_receiver(&mut self, which: usize) {
        let Some(connection) = self.receivers[which].connection else {
            let connection = self.connect();
            let keep = self.rng.chance(50);
            let frames = self.receivers[which].connect(connection, keep);
            self.say(connection, &frames);
            return;
        };
        let limit = if self.rng.chance(20) { 1 + self.rng.below(200) } else { u64::MAX };
        let bytes = self.receive(connection, limit);
        let receiver = &mut self.receivers[which];
        let model = self.queues.get_mut(&receiver.queue).expect("a queue's model");
        receiver.inbound.extend(bytes);
        receiver.hear(model, self.wall);
        let mut frames = Vec::new();
        if self.rng.chance(50) {
            frames.extend(receiver.more_credit(&mut self.rng));
        }
        if self.rng.chance(20) && !self.draining {
            frames.extend(receiver.begin(&mut self.rng));
        }
        if self.draining {
            frames.extend(receiver.ack_all(model));
        } else if self.rng.chance(50) {
            frames.extend(receiver.ack(model, &mut self.rng));
        }
        self.say(connection, &frames);
        let receiver = &mut self.receivers[which];
        receiver.served(self.queues.get_mut(&receiver.queue).expect("a queue's model"));
    }

    pub fn step_pipe(&mut self, which: usize) {
        let Some(connections) = self.pipes[which].connections else {
            let connections = [self.connect(), self.connect()];
            let frames = self.pipes[which].connect(connections);
            for (connection, frames) in connections.into_iter().zip(frames) {
                self.say(connection, &frames);
            }
            return;
        };
        for (n, connection) in connections.into_iter().enumerate() {
            let limit = if self.rng.chance(20) { 1 + self.rng.below(200) } else { u64::MAX };
            let bytes = self.receive(connection, limit);
            self.pipes[which].inbound[n].extend(bytes);
        }
        let frames = self.pipes[which].step(&mut self.rng, self.draining);
        for (connection, frames) in connections.into_iter().zip(frames) {
            self.say(connection, &frames);
        }
    }

    /// A pipe is killed, or an instance of it takes over while the old one is still there.
    pub fn replace_pipe(&mut self, which: usize) {
        let before = self.pipes[which].connections.take();
        let overlaps = self.rng.chance(50);
        let connections = before.into_iter().flatten();
        if overlaps {
            self.step_pipe(which);
            self.turn();
        }
        for connection in connections {
            self.engine().hung_up(connection);
        }
    }

    /// Whether the groups of a queue have had everything, what waits for its time included.
    pub fn is_delivered(&mut self, name: &Name) -> bool {
        // What is on its way into a queue is nowhere for a moment.
        self.settle();
        let list = self.list();
        let queue = list.queues.iter().find(|queue| queue.queue == *name).expect("the queue");
        let left = |group: &mq::wire::GroupInfo| group.ready.0 + group.unacked.0 + group.resting.0;
        queue.delayed.0 + queue.groups.iter().map(left).sum::<u64>() == 0
    }

    pub fn hang_up(&mut self, sender: bool, which: usize) {
        let connection = if sender {
            let connection = self.senders[which].connection;
            self.senders[which].lost();
            connection
        } else {
            let connection = self.receivers[which].connection;
            self.receivers[which].lost();
            // What it held is ready again for everyone: it must not present it on a server that
            // never went down.
            self.receivers[which].held.clear();
            connection
        };
        if let Some(connection) = connection {
            self.engine().hung_up(connection);
        }
    }

    pub fn pass_time(&mut self, micros: u64) {
        self.now = self.now.plus(Micros(micros));
        self.wall = WallTime(self.wall.0 + micros);
        self.turn();
    }

    /// Lets everything that is under way come to its end.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            self.turn();
            if !self.run_job() && self.outcomes.is_empty() {
                return;
            }
        }
        panic!("jobs without end");
    }

    /// Whether nothing is ready or leased anywhere.
    pub fn is_empty(&mut self) -> bool {
        // What is on its way into a queue is nowhere for a moment.
        self.settle();
        self.list().queues.iter().filter(|queue| self.queues.contains_key(&queue.queue)).all(
            |queue| {
                let waiting = queue.groups.iter().map(|group| group.resting.0).sum::<u64>();
                queue.ready.0 + queue.unacked.0 + queue.delayed.0 + waiting == 0
            },
        )
    }

    /// Asks that dead letters go back home, and does not wait for it.
    pub fn requeue(&mut self) {
        let which = self.rng.below(self.queues.len() as u64 - 1) as usize;
        let mut others = self.queues.iter_mut().filter(|(name, _)| **name != aside());
        let (name, model) = others.nth(which).expect("a queue");
        model.requeued = true;
        let queue = dead_letters_of(name);
        let count = self.rng.chance(50).then(|| mq::units::Count(1 + self.rng.below(4)));
        let reason = self.rng.chance(50).then(|| "oiso".to_owned());
        let connection = self.connect();
        let mut frames = Vec::new();
        let client = Some(ClientInfo::default());
        Request::Hello { oldest: VERSION, newest: VERSION, client }.encode(0, &mut frames);
        Request::Admin(Admin::Requeue { queue, count, to: None, reason }).encode(1, &mut frames);
        self.say(connection, &frames);
    }

    /// Begins to read the dead-letter queue of each queue.
    pub fn exhume(&mut self) {
        let names: Vec<Name> = self.queues.keys().cloned().collect();
        for name in names {
            let dead = dead_letters_of(&name);
            let mut model = QueueModel::new(SyncPolicy::Always);
            model.fails = false;
            model.announced.clone_from(&self.queues[&name].announced);
            self.receivers.push(Receiver::new(dead.clone()));
            self.queues.insert(dead, model);
        }
    }

    /// How things stand, for a failure.
    pub fn describe(&mut self) -> String {
        let mut text = String::new();
        for queue in self.list().queues {
            text += &format!("{queue:?}\n");
        }
        for sender in &self.senders {
            text += &format!("{sender:?}\n");
        }
        for receiver in &self.receivers {
            text += &format!("{receiver:?}\n");
        }
        text
    }

    fn list(&mut self) -> mq::wire::StoreInfo {
        let body = self.ask(Admin::List { after: None });
        serde_json::from_slice(&body).expect("a list of queues")
    }

    /// What the server has answered by now, the last frame of it.
    fn ask(&mut self, what: Admin) -> Vec<u8> {
        let connection = self.connect();
        let mut frames = Vec::new();
        let client = Some(ClientInfo::default());
        Request::Hello { oldest: VERSION, newest: VERSION, client }.encode(0, &mut frames);
        Request::Admin(what).encode(1, &mut frames);
        self.say(connection, &frames);
        let mut bytes = self.receive(connection, u64::MAX);
        self.engine().hung_up(connection);
        let replies = crate::clients::take_frames(&mut bytes);
        replies.last().expect("an answer").1.clone()
    }

    /// Makes the queue that is meddled with, with one who sends and one who receives.
    pub fn set_aside(&mut self, policy: SyncPolicy) {
        self.declare(&aside(), policy);
        let id = self.senders.len() as u64 + 1;
        let sender = Sender::new(id, aside(), &mut self.rng);
        self.senders.push(sender);
        self.receivers.push(Receiver::new(aside()));
    }

    /// Purges the queue that is set aside, or does something to a group of it.
    pub fn meddle(&mut self) {
        let (queue, group) = (aside(), Name::new("other").expect("a name"));
        let place = [Start::Oldest, Start::Newest, Start::Offset(Offset(self.rng.below(40)))]
            [self.rng.below(3) as usize];
        let what = match self.rng.below(6) {
            0 => Admin::Purge { queue },
            1 => Admin::RemoveGroup { queue, group },
            2 | 3 => Admin::AddGroup { queue, group, from: place },
            _ => Admin::SeekGroup { queue, group, to: place },
        };
        self.sought |= matches!(what, Admin::SeekGroup { .. });
        self.ask(what);
    }

    /// Nobody receives for that group: what it has would stay.
    pub fn stop_meddling(&mut self) {
        self.settle();
        let group = Name::new("other").expect("a name");
        self.ask(Admin::RemoveGroup { queue: aside(), group });
        self.settle();
    }

    /// No counter ever goes back while a server lives, and no more than was announced is stored,
    /// there or refused.
    pub fn watch(&mut self) {
        let body = self.ask(Admin::Figures(FiguresWanted::default()));
        let figures: Figures = serde_json::from_slice(&body).expect("figures");
        for queue in figures.queues {
            let of = queue.counted;
            let fates = of.stored.0 + of.there_already.0 + of.refused.0;
            assert!(fates <= of.announced.0 && of.lost <= of.stored, "{}: {of:?}", queue.queue);
            let Ok(serde_json::Value::Object(now)) = serde_json::to_value(of) else {
                panic!("counters are an object")
            };
            let before = self.watched.insert(queue.queue.clone(), now.clone()).unwrap_or_default();
            for (name, before) in &before {
                let count = |value: Option<&serde_json::Value>| {
                    value.and_then(serde_json::Value::as_u64).unwrap_or(0)
                };
                let (before, now) = (count(Some(before)), count(now.get(name)));
                assert!(before <= now, "{name} of {} goes from {before} to {now}", queue.queue);
            }
        }
    }

    /// What a fall may take back.
    fn forget_watched(&mut self, how: Fall) {
        match how {
            Fall::Stop => {}
            Fall::Kill => self.watched.values_mut().for_each(|counters| {
                counters.retain(|name, _| !INEXACT.contains(&name.as_str()));
            }),
            Fall::Power => self.watched.clear(),
        }
        // A seek that was under way is undone by a kill, and with it what was settled since: those
        // messages had ended before it, and are counted as they ended then.
        if std::mem::take(&mut self.sought)
            && let Some(counters) = self.watched.get_mut(&aside())
        {
            counters.retain(|name, _| !ENDED.contains(&name.as_str()));
        }
    }

    /// The server's life ends, and another begins.
    pub fn fall(&mut self, how: Fall) {
        self.falls += 1;
        if std::env::var_os("MQ_SIM_TRACE").is_some() {
            eprintln!("FILES before {:?}", self.disk.files());
            eprintln!(
                "before fall {how:?}:\n{}",
                self.list().queues.iter().map(|q| format!("  {q:?}\n")).collect::<String>()
            );
        }
        self.note(how as u64 + 1000);
        self.forget_watched(how);
        match how {
            Fall::Stop => {
                self.engine().begin_stop();
                self.settle();
                assert!(self.engine().is_drained(), "a stop that does not drain");
                let engine = self.engine.take().expect("a server runs");
                let clean = engine.close(self.now);
                assert_eq!(clean, Ok(true), "an orderly stop fails");
                self.boot = Boot { clean: true, same_boot: self.rng.chance(50) };
            }
            Fall::Kill => {
                self.run_some_jobs_halfway();
                self.engine = None;
                self.disk.revive();
                self.boot = Boot { clean: false, same_boot: true };
            }
            Fall::Power => {
                self.run_some_jobs_halfway();
                self.engine = None;
                self.disk.crash();
                self.boot = Boot { clean: false, same_boot: false };
                for model in self.queues.values_mut() {
                    model.lose_power();
                }
            }
        }
        self.jobs.clear();
        self.outcomes.clear();
        for sender in &mut self.senders {
            sender.lost();
        }
        for receiver in &mut self.receivers {
            receiver.lost();
        }
        for pipe in &mut self.pipes {
            pipe.lost();
        }
        self.now = Monotonic(0);
        if std::env::var_os("MQ_SIM_TRACE").is_some() {
            eprintln!("FILES {:?}", self.disk.files());
        }
        self.start();
        if std::env::var_os("MQ_SIM_TRACE").is_some() {
            eprintln!(
                "after it:\n{}",
                self.list().queues.iter().map(|q| format!("  {q:?}\n")).collect::<String>()
            );
        }
    }

    /// Jobs that were on helper threads when the server fell: each gets as far as its first few
    /// steps on the disk.
    fn run_some_jobs_halfway(&mut self) {
        for job in std::mem::take(&mut self.jobs) {
            let steps = self.rng.below(6);
            if steps == 0 {
                continue;
            }
            self.disk.fail_in(steps, Fault::Kill);
            drop(job.run());
            self.disk.revive();
        }
    }
}
