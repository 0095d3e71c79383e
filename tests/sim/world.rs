//! The world around the engine: a simulated disk, clock, helper threads and sockets, all driven by
//! one seed. The engine, broker and log in it are the production ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mq::log::storage::StorageFile;
use mq::log::{Boot, Options};
use mq::server::engine::{ConnectionId, Engine, Outcome, Peer, Setup, Work};
use mq::server::outbox::Front;
use mq::server::workers::Job;
use mq::settings::Wanted;
use mq::units::{Bytes, Micros, Moment, Monotonic, Name, Position, QueueId, WallTime};
use mq::wire::{Admin, FrameHeader, Request, ServerInfo, StoreInfo};

use crate::disk::{ENDLESS, Fault, SimDisk, is_tracing};
use crate::plan::{Kind, Plan};
use crate::rng::{Chance, Random};
use crate::wire::{WALL_START, hello, take_frames};

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

/// Told with `MQ_SIM_TRACE`.
pub fn trace(what: impl Fn() -> String) {
    if is_tracing() {
        eprintln!("{}", what());
    }
}

/// A client was refused.
pub fn trace_fault(fault: &mq::wire::Fault) -> &mq::wire::Fault {
    trace(|| format!("  refused: {fault:?}"));
    fault
}

pub struct World {
    /// What the step that is under way draws from.
    pub rng: Random,
    pub disk: Arc<SimDisk>,
    engine: Option<Engine<SimDisk>>,
    jobs: Vec<Work<SimDisk>>,
    outcomes: Vec<Outcome<SimDisk>>,
    /// What came back from helper threads and is told just before something else that comes.
    late: Vec<Outcome<SimDisk>>,
    now: Monotonic,
    pub wall: WallTime,
    /// The latest that the wall clock has ever said.
    pub wall_max: WallTime,
    /// Microseconds since the history began.
    pub age: u64,
    next_connection: u64,
    /// What clients have sent and the server has not read.
    sockets: BTreeMap<ConnectionId, VecDeque<Vec<u8>>>,
    /// Descriptors that came with what was received.
    descriptors: BTreeMap<ConnectionId, VecDeque<OwnedFd>>,
    /// Connections that were ended in the middle of a frame that could not be read.
    cut: BTreeSet<ConnectionId>,
    boot: Boot,
    /// Every log was opened to its end since the machine was started.
    opened: bool,
    /// The server is gone and its successor has not started: why.
    pub down: Option<String>,
    /// A fault was planted in this life that lets a server end by itself.
    pub may_fail: bool,
    /// Jobs are not done before this age of the history: the disk is slow.
    pub slow_until: u64,
    /// There was no room on the disk for some time of this life.
    pub was_tight: bool,
    /// Queues that may be found damaged.
    pub spoilt: BTreeSet<Name>,
    /// Queues that were found so.
    pub damaged: BTreeSet<Name>,
    /// Everything that happened, folded into one number: equal seeds must give equal traces.
    pub trace: u64,
    segment_bytes: u64,
}

impl World {
    pub fn new(plan: &Plan) -> World {
        let mut rng = plan.beginning();
        let disk = Arc::new(SimDisk::new(rng.next()));
        let segment_bytes = match plan.kind {
            // Several batches that are large enough for an extent.
            Kind::Extents => (256 + rng.below(4) * 128) * 1024,
            Kind::Wide | Kind::Pipe => 2048 + rng.below(4) * 1024,
        };
        let mut world = World {
            rng,
            disk,
            engine: None,
            jobs: Vec::new(),
            outcomes: Vec::new(),
            late: Vec::new(),
            now: Monotonic(0),
            wall: WALL_START,
            wall_max: WALL_START,
            age: 0,
            next_connection: 1,
            sockets: BTreeMap::new(),
            descriptors: BTreeMap::new(),
            cut: BTreeSet::new(),
            boot: Boot { clean: true, same_boot: true },
            opened: true,
            down: None,
            may_fail: false,
            slow_until: 0,
            was_tight: false,
            spoilt: BTreeSet::new(),
            damaged: BTreeSet::new(),
            trace: plan.seed,
            segment_bytes,
        };
        world.start();
        world
    }

    /// What a step draws, the disk's part included, depends on nothing before it.
    pub fn begin_step(&mut self, mut draws: Random) {
        self.disk.reseed(draws.next());
        self.rng = draws;
    }

    pub fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now, wall: self.wall }
    }

    fn setup(&mut self) -> Setup<SimDisk> {
        let mut ids = Random(self.rng.next());
        let mut secrets = Random(self.rng.next());
        let segment_bytes = self.segment_bytes;
        Setup {
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
        }
    }

    /// Starts a server; again, if a planted fault keeps it from opening everything.
    fn start(&mut self) {
        for _ in 0..20 {
            if self.try_to_start() {
                return;
            }
            // As an operator does who has replaced a cable, or made room.
            self.disk.revive();
            self.disk.set_capacity(ENDLESS);
            self.boot = Boot { clean: false, same_boot: self.opened };
        }
        panic!("the store does not open");
    }

    /// False when a planted fault was in the way.
    fn try_to_start(&mut self) -> bool {
        let setup = self.setup();
        let mut damaged = BTreeMap::new();
        let opened = Engine::open(setup, &mut |name, error| {
            if let Some(error) = error {
                damaged.insert(name.clone(), error.to_string());
            }
        });
        let excused = self.is_tight();
        let engine = match opened {
            Ok(engine) if !self.disk.is_killed() => engine,
            Ok(_) => return false,
            Err(error) => {
                assert!(excused, "the store does not open: {error}");
                return false;
            }
        };
        for (name, why) in &damaged {
            if excused {
                return false;
            }
            assert!(self.spoilt.contains(name), "queue {name} does not open after a fall: {why}");
        }
        self.damaged = damaged.into_keys().collect();
        self.engine = Some(engine);
        self.opened |= self.damaged.is_empty();
        self.boot = Boot { clean: false, same_boot: self.opened };
        true
    }

    /// Whether there may be no room on the disk.
    pub fn is_tight(&self) -> bool {
        self.was_tight || self.disk.capacity() != ENDLESS || self.disk.faulted().is_some()
    }

    pub fn engine(&mut self) -> &mut Engine<SimDisk> {
        self.engine.as_mut().expect("a server runs")
    }

    pub fn is_up(&self) -> bool {
        self.engine.is_some() && self.down.is_none()
    }

    /// Looks whether the server has ended by what was done last: killed in a call to the disk, or
    /// by itself because of an error.
    fn look(&mut self) {
        if self.down.is_some() {
            return;
        }
        if self.disk.is_killed() {
            self.down = Some("killed".to_owned());
        } else if let Some(why) = self.engine().failed() {
            let why = why.to_owned();
            assert!(self.may_fail, "the server ended, and the disk had given no error: {why}");
            self.down = Some(why);
        }
    }

    /// Puts frames into the socket of a connection; the server reads what it can.
    pub fn say(&mut self, connection: ConnectionId, frames: &[u8]) {
        // In one round of the event loop outcomes are heard before frames, and the engine turns after both.
        let late = std::mem::take(&mut self.late);
        self.hear(late);
        let socket = self.sockets.entry(connection).or_default();
        let mut at = 0;
        while at < frames.len() {
            let head = frames[at..at + 8].try_into().expect("eight bytes");
            let header = FrameHeader::decode(head).expect("our own frames");
            let end = at + 8 + header.length as usize;
            socket.push_back(frames[at..end].to_vec());
            at = end;
        }
        self.pump(connection);
    }

    /// Whether the server has read all that was said.
    pub fn is_heard(&self, connection: ConnectionId) -> bool {
        self.down.is_none() && self.sockets.get(&connection).is_none_or(VecDeque::is_empty)
    }

    fn pump(&mut self, connection: ConnectionId) {
        let moment = self.moment();
        while self.is_up() && !self.engine().is_paused(connection) {
            let Some(frame) = self.sockets.get_mut(&connection).and_then(VecDeque::pop_front)
            else {
                return;
            };
            if self.engine().is_ending(connection) {
                continue;
            }
            let header = FrameHeader::decode(frame[..8].try_into().expect("eight")).expect("ours");
            if !self.engine().frame(connection, &header, &frame[8..], moment) {
                // It could not be served yet: it comes again.
                self.sockets.entry(connection).or_default().push_front(frame);
            }
            self.look();
        }
    }

    fn hear(&mut self, outcomes: Vec<Outcome<SimDisk>>) {
        let moment = self.moment();
        for outcome in outcomes {
            if self.is_up() {
                self.engine().outcome(outcome, moment);
                self.look();
            }
        }
    }

    pub fn turn(&mut self) {
        let outcomes = std::mem::take(&mut self.outcomes);
        self.hear(outcomes);
        if !self.is_up() {
            return;
        }
        let moment = self.moment();
        self.engine().turn(moment);
        let jobs = self.engine().take_jobs();
        self.jobs.extend(jobs);
        self.look();
        let waiting = self.sockets.iter().filter(|(_, frames)| !frames.is_empty());
        for connection in waiting.map(|(connection, _)| *connection).collect::<Vec<_>>() {
            self.pump(connection);
        }
    }

    /// Runs one job, any of those that are under way, unless the disk is slow.
    pub fn run_job(&mut self) {
        if self.age >= self.slow_until {
            self.run_any_job();
        }
    }

    /// Runs one job; what came of it is heard just before the next frames, or later.
    pub fn run_late_job(&mut self) {
        if self.age < self.slow_until {
            return;
        }
        if let Some(outcome) = self.done_job() {
            self.late.push(outcome);
        }
    }

    fn done_job(&mut self) -> Option<Outcome<SimDisk>> {
        if self.jobs.is_empty() || !self.is_up() {
            return None;
        }
        let which = self.rng.below(self.jobs.len() as u64) as usize;
        let outcome = self.jobs.swap_remove(which).run();
        self.look();
        Some(outcome)
    }

    /// Runs one job, however long it takes. False when there is none.
    fn run_any_job(&mut self) -> bool {
        let Some(outcome) = self.done_job() else { return false };
        self.outcomes.append(&mut self.late);
        self.outcomes.push(outcome);
        self.turn();
        true
    }

    /// Takes up to `bytes` out of an outbox, as a socket would.
    pub fn receive(&mut self, connection: ConnectionId, mut bytes: u64) -> Vec<u8> {
        let mut received = Vec::new();
        if !self.is_up() {
            return received;
        }
        let mut unreadable = None;
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
                    Some(Front::Descriptor(piece, descriptor)) => {
                        // It goes with the first byte.
                        let n = (piece.len() as u64).min(bytes) as usize;
                        received.extend_from_slice(&piece[..n]);
                        let descriptor = descriptor.try_clone_to_owned();
                        let came = self.descriptors.entry(connection).or_default();
                        came.push_back(descriptor.expect("the test has descriptors"));
                        n as u64
                    }
                    Some(Front::File { file, position, bytes: length, queue }) => {
                        let n = length.min(bytes);
                        let before = received.len();
                        received.resize(before + n as usize, 0);
                        match file.read_at(&mut received[before..], Position(position)) {
                            Ok(read) if read < n as usize => {
                                received.truncate(before);
                                unreadable = Some((queue, "it is shorter than it was".to_owned()));
                                break;
                            }
                            Ok(_) => {}
                            Err(error) => {
                                received.truncate(before);
                                unreadable = Some((queue, error.to_string()));
                                break;
                            }
                        }
                        n
                    }
                };
                outbox.advance(n);
                bytes -= n;
            }
        }
        engine.sent(connection);
        engine.take_dirty();
        self.look();
        if let Some((queue, why)) = unreadable.filter(|_| self.is_up()) {
            let excused = self.disk.faulted().is_some() || !self.spoilt.is_empty();
            assert!(excused, "a segment cannot be read: {why}");
            // As the event loop does: the rest of that frame can never come.
            self.engine().unreadable(queue, &why);
            // What came with the bytes in front of that is there already.
            let came = self.descriptors.remove(&connection).unwrap_or_default();
            self.hung_up(connection);
            self.descriptors.insert(connection, came);
            self.cut.insert(connection);
        }
        received
    }

    /// The next descriptor that came.
    pub fn take_descriptor(&mut self, connection: ConnectionId) -> Option<OwnedFd> {
        self.descriptors.get_mut(&connection)?.pop_front()
    }

    /// Whether nothing more comes on this connection, said or not.
    pub fn is_gone(&mut self, connection: ConnectionId) -> bool {
        !self.is_up() || self.engine().is_ending(connection) || self.cut.contains(&connection)
    }

    /// Whether the server will end this connection, or has.
    pub fn is_ending(&mut self, connection: ConnectionId) -> bool {
        self.is_up() && self.engine().is_ending(connection)
    }

    pub fn connect(&mut self) -> ConnectionId {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let moment = self.moment();
        if self.is_up() {
            self.engine().connected(connection, Peer::default(), moment);
        }
        connection
    }

    pub fn hung_up(&mut self, connection: ConnectionId) {
        self.sockets.remove(&connection);
        if self.is_up() {
            self.engine().hung_up(connection);
        }
    }

    /// Makes a queue, and waits until it stands.
    pub fn declare(&mut self, name: &Name, wanted: Wanted) {
        let connection = self.connect();
        let mut frames = Vec::new();
        hello(&mut frames);
        let declare = Admin::Declare { queue: name.clone(), wanted, change: false };
        Request::Admin(declare).encode(1, &mut frames);
        self.say(connection, &frames);
        self.turn();
        while self.run_any_job() {}
        self.receive(connection, u64::MAX);
        self.hung_up(connection);
    }

    pub fn pass_time(&mut self, micros: u64) {
        self.now = self.now.plus(Micros(micros));
        self.age += micros;
        self.set_wall(WallTime(self.wall.0 + micros));
        self.turn();
    }

    /// The wall clock says something else from now on.
    pub fn set_wall(&mut self, wall: WallTime) {
        self.wall = wall;
        self.wall_max = self.wall_max.max(wall);
    }

    /// Lets everything that is under way come to its end.
    pub fn settle(&mut self) {
        self.outcomes.append(&mut self.late);
        for _ in 0..10_000 {
            self.turn();
            if !self.run_any_job() && self.outcomes.is_empty() {
                return;
            }
        }
        panic!("jobs without end");
    }

    /// The accounts of all groups add up.
    pub fn check_accounts(&mut self) {
        if self.is_up()
            && self.spoilt.is_empty()
            && let Err(wrong) = self.engine().check_accounts()
        {
            panic!("an account does not add up: {wrong}");
        }
    }

    /// Tells how each group's messages ended. It asks nothing over a connection: a history that is
    /// told is the same history.
    pub fn trace_accounts(&mut self) {
        if !is_tracing() || !self.is_up() {
            return;
        }
        for (queue, group, account, there) in self.engine().accounts() {
            eprintln!("  account of {queue}/{group}: {account:?}, there {}", there.0);
        }
    }

    pub fn list(&mut self) -> StoreInfo {
        let body = self.ask(Admin::List { after: None }).expect("a server runs");
        serde_json::from_slice(&body).expect("a list of queues")
    }

    /// What the server has answered by now, the last frame of it.
    pub fn ask(&mut self, what: Admin) -> Option<Vec<u8>> {
        let connection = self.connect();
        let mut frames = Vec::new();
        hello(&mut frames);
        Request::Admin(what).encode(1, &mut frames);
        self.say(connection, &frames);
        let mut bytes = self.receive(connection, u64::MAX);
        self.hung_up(connection);
        Some(take_frames(&mut bytes).pop()?.1)
    }

    /// Asks for something that takes its time, and does not wait for it. The answer comes there.
    pub fn ask_for_later(&mut self, what: Admin) -> ConnectionId {
        let connection = self.connect();
        let mut frames = Vec::new();
        hello(&mut frames);
        Request::Admin(what).encode(1, &mut frames);
        self.say(connection, &frames);
        connection
    }

    /// The server's life ends; whether it was in order, to the end.
    pub fn end(&mut self, how: Fall) -> bool {
        let mut in_order = false;
        self.note(how as u64 + 1000);
        trace(|| format!("falls: {how:?}, down {:?}, files {:?}", self.down, self.disk.files()));
        match how {
            Fall::Stop => in_order = self.stop(),
            Fall::Kill => {
                self.run_some_jobs_halfway();
                self.engine = None;
                self.disk.revive();
                self.boot = Boot { clean: false, same_boot: self.opened };
            }
            Fall::Power => {
                self.run_some_jobs_halfway();
                self.engine = None;
                self.disk.crash();
                self.opened = false;
                self.boot = Boot { clean: false, same_boot: false };
            }
        }
        self.jobs.clear();
        self.outcomes.clear();
        self.late.clear();
        self.sockets.clear();
        self.descriptors.clear();
        self.down = None;
        in_order
    }

    /// An orderly stop; whether it was one to its end.
    fn stop(&mut self) -> bool {
        if self.is_up() {
            self.engine().begin_stop();
            self.settle();
        }
        let mut clean = false;
        if self.is_up() {
            assert!(self.engine().is_drained(), "a stop that does not drain");
            let excused = self.may_fail || !self.damaged.is_empty();
            let engine = self.engine.take().expect("a server runs");
            let closed = engine.close(self.now);
            let excused = excused || self.is_tight() || self.disk.is_killed();
            assert!(closed == Ok(true) || excused, "an orderly stop fails: {closed:?}");
            clean = closed == Ok(true) && !self.disk.is_killed();
        }
        self.engine = None;
        self.disk.revive();
        let reboots = clean && self.rng.chance(50);
        if reboots {
            // An orderly stop leaves nothing that is not on the disk.
            self.disk.crash();
        }
        self.opened &= !reboots;
        self.boot = Boot { clean, same_boot: self.opened };
        clean
    }

    /// A server ends at once, without waiting for its jobs; whether it says that it ended in order.
    pub fn stop_at_once(&mut self) -> Result<bool, String> {
        let engine = self.engine.take().expect("a server runs");
        engine.close(self.now)
    }

    /// A server starts, and after so many calls of the system the power is lost.
    pub fn begin_in_vain(&mut self, calls: u64) {
        self.disk.fail_in(calls, Fault::Kill);
        let _ = self.try_to_start();
        self.end(Fall::Power);
    }

    /// The next server starts.
    pub fn begin(&mut self) {
        self.now = Monotonic(0);
        (self.may_fail, self.was_tight) = (false, false);
        self.start();
        trace(|| format!("starts: files {:?}", self.disk.files()));
    }

    /// Jobs that were on helper threads when the server fell: each gets as far as its first few
    /// steps on the disk.
    fn run_some_jobs_halfway(&mut self) {
        for job in std::mem::take(&mut self.jobs) {
            let steps = self.rng.below(6);
            if steps == 0 {
                continue;
            }
            self.disk.revive();
            self.disk.fail_in(steps, Fault::Kill);
            drop(job.run());
            self.disk.revive();
        }
    }
}
