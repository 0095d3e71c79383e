//! The engine: what a server does with frames, without sockets, threads and clocks.
//!
//! It owns the broker, the log of every queue, and the protocol's state of every connection. Its
//! inputs are whole frames, hang-ups, outcomes of jobs and the time; its outputs are an outbox
//! for each connection and jobs for helper threads. The event loop drives it on real sockets,
//! the simulator on simulated ones; both follow the same turn:
//!
//! 1. [`Engine::frame`] for what has come in, [`Engine::outcome`] for jobs that are done;
//! 2. [`Engine::turn`]: messages that became visible reach the broker, confirmations and
//!    deliveries reach the outboxes, jobs are started;
//! 3. send from [`Engine::outbox`] of each connection in [`Engine::take_dirty`], and tell
//!    [`Engine::sent`] so that the next deliveries are put in;
//! 4. sleep until something happens or [`Engine::next_deadline`].
//!
//! ```text
//! sending.rs    OPEN_SEND, PUBLISH → log append → awaiting → CONFIRM
//! large.rs      messages that come in parts
//! named.rs      producers with a name
//! commit.rs     COMMIT: batches that are stored as one
//! portion.rs    what of a batch is stored: with uniqueness.rs and room.rs
//! uniqueness.rs ids that are known, keys that are pending
//! room.rs       limits: who waits, who is refused, what is dropped
//! retaining.rs  queues that keep messages for replay
//! declaring.rs  settings
//! keeping.rs    what groups settled while the disk was full
//! receiving.rs  OPEN_RECEIVE, CREDIT, ACK, RELEASE → broker
//! attaching.rs  a receiver gets its group and its consumer
//! members.rs    receivers of several queues
//! turns.rs      exclusive receivers
//! trying.rs     BEGIN, NACK, back-off
//! leases.rs     leases with receipts
//! groups.rs     groups and their journals, segments dropped
//! seeking.rs    groups made, removed and set to another place
//! delivery.rs   broker's offer → log's range → outbox
//! delaying.rs   messages that wait for their time
//! accounts.rs   how messages ended
//! confirming.rs what is visible → CONFIRM
//! counting.rs   latencies, and the flow of the last minutes
//! figures.rs    what watchers are told
//! grace.rs      receivers that come back after a restart
//! hosting.rs    queues coming and going, one turn of a queue
//! moving.rs     messages that go from one queue to another: dead letters, and back
//! admin.rs      the administrative requests
//! session.rs    what is known of one connection
//! work.rs       the jobs for helper threads
//! ```
//!
//! Invariants: a message is confirmed and offered only when its log calls it visible; what an
//! outbox holds has been taken in the broker; whatever a frame names, a session touches only its
//! own channels.

mod accounts;
mod admin;
mod attaching;
mod closing;
mod commit;
mod confirming;
mod counting;
mod declaring;
mod delaying;
mod delivery;
mod figures;
mod grace;
mod groups;
mod hosting;
mod keeping;
mod large;
mod leases;
mod members;
mod moving;
mod named;
mod portion;
mod receiving;
mod retaining;
mod room;
mod seeking;
mod sending;
mod session;
mod trying;
mod turns;
mod uniqueness;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::broker::{Broker, ConsumerKey, Output, QueueKey};
use crate::limits;
use crate::log::storage::Storage;
use crate::server::outbox::Outbox;
use crate::units::{Micros, Moment, Monotonic, Name, QueueId};
use crate::wire::{
    ErrorCode, Fault, FrameHeader, Goodbye, Kind, MEMBER_CHANNELS, Reply, Request, ServerInfo,
    VERSION, VERSION_OLDEST,
};

use counting::Meters;
use figures::Watch;
use hosting::{Hosted, Place};
use moving::Movers;
use session::{Channel, Receiver, Session};
pub use session::{ConnectionId, Peer};
pub use work::{Outcome, Work};

/// The number of a queue within one run of a server; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueNumber(pub u64);

/// What an engine is made with.
pub struct Setup<S: Storage> {
    /// The store's disk.
    pub storage: Arc<S>,
    /// Settings of all logs.
    pub log_options: crate::log::Options,
    /// How the server before ended.
    pub boot: crate::log::Boot,
    /// What clients are told.
    pub info: ServerInfo,
    /// Makes the ids of new queues: randomness is the caller's.
    pub new_queue_id: Box<dyn FnMut() -> QueueId + Send>,
    /// Makes the part of a lease's number that nobody can guess.
    pub new_lease_secret: Box<dyn FnMut() -> u32 + Send>,
    /// When it is made.
    pub moment: Moment,
    /// What CLOCK_MONOTONIC says when the running clock says 0.
    pub clock_zero: Micros,
}

/// Why a frame could not be served.
enum Trouble {
    /// The channel fails; others of the connection go on.
    Channel(Fault),
    /// The peer breaks the protocol: the connection ends.
    Connection(Fault),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        Trouble::Channel(fault)
    }
}

fn fault(code: ErrorCode, message: impl Into<String>) -> Fault {
    Fault::new(code, message)
}

fn fault_with(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Fault { remedy: Some(remedy.into()), ..Fault::new(code, message) }
}

fn protocol(message: impl Into<String>) -> Trouble {
    Trouble::Connection(fault(ErrorCode::Protocol, message))
}

/// See the module's page.
pub struct Engine<S: Storage> {
    storage: Arc<S>,
    log_options: crate::log::Options,
    info: ServerInfo,
    new_queue_id: Box<dyn FnMut() -> QueueId + Send>,
    new_lease_secret: Box<dyn FnMut() -> u32 + Send>,
    /// The time of what is being served.
    clock: Moment,
    clock_zero: Micros,
    broker: Broker,
    places: BTreeMap<Name, Place>,
    hosted: BTreeMap<QueueNumber, Hosted<S>>,
    by_key: BTreeMap<QueueKey, QueueNumber>,
    next_queue: u64,
    /// Receivers of queues that do not exist yet.
    awaited: BTreeMap<Name, Vec<(ConnectionId, u16)>>,
    sessions: BTreeMap<ConnectionId, Session<S>>,
    consumers: BTreeMap<ConsumerKey, (ConnectionId, u16)>,
    /// Receivers of several queues.
    several: BTreeSet<(ConnectionId, u16)>,
    /// Connections that have not said HELLO, in the order of their deadlines.
    ungreeted: VecDeque<(Monotonic, ConnectionId)>,
    /// Queues whose turn it is, each once.
    touched: Vec<QueueNumber>,
    deadlines: BTreeSet<(Monotonic, QueueNumber)>,
    /// Connections with something ready for them, each once.
    hungry: VecDeque<ConnectionId>,
    /// Queues whose groups have been handed messages that their journals do not know of yet.
    handing: Vec<QueueNumber>,
    /// Connections whose outboxes or state want the event loop's attention.
    dirty: Vec<ConnectionId>,
    jobs: Vec<Work<S>>,
    movers: Movers<S>,
    /// Checks that wait for the one that is under way.
    checks: VecDeque<Work<S>>,
    check_under_way: bool,
    watch: Watch,
    meters: Meters,
    jobs_under_way: usize,
    stop_asked: Option<String>,
    stopping: bool,
    failed: Option<String>,
}

impl<S: Storage> Engine<S> {
    /// Opens every queue of the store. `report` is told of each, with what is wrong with it.
    ///
    /// # Errors
    /// The store's directory of queues cannot be read. A queue that is damaged is no error: it
    /// stands still and says so, the others go on.
    pub fn open(
        setup: Setup<S>,
        report: &mut dyn FnMut(&Name, Option<&crate::log::LogError>),
    ) -> Result<Engine<S>, crate::log::LogError> {
        let mut new_lease_secret = setup.new_lease_secret;
        let instance = u64::from(new_lease_secret()) << 32 | u64::from(new_lease_secret());
        let started = setup.moment.wall;
        let mut engine = Engine {
            storage: setup.storage,
            log_options: setup.log_options,
            info: setup.info,
            new_queue_id: setup.new_queue_id,
            new_lease_secret,
            clock: setup.moment,
            clock_zero: setup.clock_zero,
            broker: Broker::new(),
            places: BTreeMap::new(),
            hosted: BTreeMap::new(),
            by_key: BTreeMap::new(),
            next_queue: 1,
            awaited: BTreeMap::new(),
            sessions: BTreeMap::new(),
            consumers: BTreeMap::new(),
            several: BTreeSet::new(),
            ungreeted: VecDeque::new(),
            touched: Vec::new(),
            deadlines: BTreeSet::new(),
            hungry: VecDeque::new(),
            handing: Vec::new(),
            dirty: Vec::new(),
            jobs: Vec::new(),
            movers: Movers::default(),
            checks: VecDeque::new(),
            check_under_way: false,
            watch: Watch { instance, started, tick: 1, set: 1 },
            meters: Meters::default(),
            jobs_under_way: 0,
            stop_asked: None,
            stopping: false,
            failed: None,
        };
        engine.host_all(setup.boot, report)?;
        engine.settle_waybills();
        Ok(engine)
    }

    /// A client has connected.
    pub fn connected(&mut self, connection: ConnectionId, peer: Peer, moment: Moment) {
        let before = self.sessions.insert(connection, Session::new(peer));
        assert!(before.is_none(), "a connection id used twice");
        self.ungreeted.push_back((moment.now.plus(limits::HANDSHAKE), connection));
    }

    /// A client has gone, or is to go. What it held is ready again.
    pub fn hung_up(&mut self, connection: ConnectionId) {
        let Some(mut session) = self.sessions.remove(&connection) else { return };
        for (id, channel) in std::mem::take(&mut session.channels) {
            self.drop_channel(connection, id, channel);
        }
    }

    /// A whole frame has come in. Not to be called while [`Engine::is_paused`]. False when it
    /// must come again, once the connection is not paused any more.
    pub fn frame(
        &mut self,
        connection: ConnectionId,
        header: &FrameHeader,
        body: &[u8],
        moment: Moment,
    ) -> bool {
        self.clock = moment;
        self.settle_lost();
        if self.stopping {
            return true;
        }
        let served = match Request::decode(header, body) {
            Ok(request) => self.serve(connection, header, request, moment),
            Err(wrong) => Err(protocol(wrong.to_string())),
        };
        match served {
            Ok(()) => {}
            Err(Trouble::Channel(fault)) => self.fail_channel(connection, header.channel, fault),
            Err(Trouble::Connection(fault)) => self.end_connection(connection, fault),
        }
        self.sessions.get(&connection).is_none_or(|session| !session.parked)
    }

    /// The bytes that come from this connection are no frames: it ends with a word why.
    pub fn malformed(&mut self, connection: ConnectionId, why: &str) {
        if self.sessions.contains_key(&connection) {
            self.end_connection(connection, fault(ErrorCode::Protocol, why));
        }
    }

    fn serve(
        &mut self,
        connection: ConnectionId,
        header: &FrameHeader,
        request: Request<'_>,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        let channel = header.channel;
        if !session.greeted && !matches!(header.kind, Kind::Hello | Kind::Stop) {
            return Err(protocol("the first frame must be HELLO"));
        }
        match request {
            Request::Hello { oldest, newest, client } => {
                if session.greeted {
                    return Err(protocol("a second HELLO"));
                }
                if newest < VERSION_OLDEST || oldest > VERSION {
                    return Err(Trouble::Connection(version_fault(oldest, newest, &self.info)));
                }
                session.greeted = true;
                session.client = client.unwrap_or_default().shortened();
                let version = newest.min(VERSION);
                session.version = version;
                self.reply(connection, 0, &Reply::Welcome(version, self.info.clone()));
                Ok(())
            }
            Request::Stop => {
                self.stop_asked = Some("stopped by mq-admin stop".to_owned());
                Ok(())
            }
            Request::Admin(admin) => self.admin(connection, channel, admin, moment),
            Request::OpenSend(open) => self.open_send(connection, channel, open, moment),
            Request::Publish(head, payload) => {
                self.publish(connection, channel, &head, payload, moment)
            }
            Request::Commit(head, payload) => {
                self.commit(connection, channel, &head, payload, moment)
            }
            Request::OpenReceive(open) => self.open_receive(connection, channel, open),
            Request::Credit(total) => self.credit(connection, channel, total),
            Request::Extents(done) => self.extents_done(connection, channel, done),
            Request::Ack(ranges) => self.ack(connection, channel, &ranges),
            Request::Release(_, ranges) => self.release(connection, channel, &ranges),
            Request::Complain(segment, position) => {
                self.complaint(connection, channel, segment, position)
            }
            Request::Begin(ranges) => self.begin(connection, channel, &ranges),
            Request::Nack(nack) => self.nack(connection, channel, &nack),
            Request::Close => self.close_channel(connection, channel),
        }
    }

    /// One turn; see the module's page.
    pub fn turn(&mut self, moment: Moment) {
        self.clock = moment;
        self.end_ungreeted(moment);
        for queue in self.broker.wake(moment.now) {
            if let Some(&number) = self.by_key.get(&queue) {
                self.changed(number);
            }
        }
        while let Some(&(due, queue)) = self.deadlines.first() {
            if due > moment.now {
                break;
            }
            self.deadlines.pop_first();
            self.touch(queue);
        }
        self.settle_lost();
        self.run_movers(moment);
        self.turn_touched(moment);
        self.take_outputs();
        let hungry = std::mem::take(&mut self.hungry);
        for connection in hungry {
            self.feed(connection);
        }
        self.take_outputs();
        self.settle_lost();
        // What has begun to die, or was settled, goes on at once.
        self.run_movers(moment);
        self.turn_touched(moment);
        self.journal_handed();
    }

    fn turn_touched(&mut self, moment: Moment) {
        for queue in std::mem::take(&mut self.touched) {
            self.turn_queue(queue, moment);
        }
    }

    /// What the broker has to say. Each output is served before the next is asked for: so one
    /// message wakes one consumer.
    fn take_outputs(&mut self) {
        while let Some(output) = self.broker.next_output() {
            match output {
                Output::Ready { consumer } => {
                    self.ready(consumer);
                    self.mover_called(consumer, false);
                }
                Output::End { consumer } => self.ended(consumer),
                Output::Quiet { queue } => self.quiet(queue),
                Output::Dying { group } => self.dying(group),
                Output::Holder { consumer, epoch } => self.holder(consumer, epoch),
            }
        }
    }

    /// A consumer has come to its end.
    fn ended(&mut self, consumer: ConsumerKey) {
        if let Some(&(connection, channel)) = self.consumers.get(&consumer) {
            let session = self.sessions.get(&connection);
            let state = session.and_then(|session| session.channels.get(&channel));
            match state {
                Some(Channel::Receiving(Receiver { main: Some(main), .. })) => {
                    let main = *main;
                    self.member_ended(connection, main, channel);
                }
                _ => self.reply(connection, channel, &Reply::End),
            }
        }
        self.mover_called(consumer, true);
    }

    /// When [`Engine::turn`] must be called at the latest, if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        if !self.touched.is_empty() || !self.hungry.is_empty() {
            return Some(Monotonic(0));
        }
        let queue = self.deadlines.first().map(|(due, _)| *due);
        let greeting = self.ungreeted.front().map(|(due, _)| *due);
        let broker = self.broker.next_deadline();
        let movers = self.movers_deadline();
        [queue, greeting, broker, movers].into_iter().flatten().min()
    }

    /// Whether frames of this connection must wait: its last one could not be served yet.
    #[must_use]
    pub fn is_paused(&self, connection: ConnectionId) -> bool {
        self.sessions.get(&connection).is_some_and(|session| {
            session.parked
                || session.is_ahead()
                || session.outbox.memory() > limits::OUTBOX_MEMORY_BYTES_MAX
        })
    }

    /// Whether the connection's last frame waits for a log.
    #[must_use]
    pub fn is_parked(&self, connection: ConnectionId) -> bool {
        self.sessions.get(&connection).is_some_and(|session| session.parked)
    }

    /// Whether the connection's last frame waits for room in a queue.
    #[must_use]
    pub fn is_held(&self, connection: ConnectionId) -> bool {
        self.sessions.get(&connection).is_some_and(|session| session.parked && session.held)
    }

    /// There is no memory to let this connection's frame wait for room.
    pub fn turn_away(&mut self, connection: ConnectionId) {
        let many = "too many senders wait for room in full queues";
        self.end_connection(connection, fault_with(ErrorCode::Busy, many, "try again later"));
    }

    /// Whether the connection is to end once its outbox is empty.
    #[must_use]
    pub fn is_ending(&self, connection: ConnectionId) -> bool {
        self.sessions.get(&connection).is_none_or(|session| session.ending)
    }

    /// What waits for this connection.
    pub fn outbox(&mut self, connection: ConnectionId) -> Option<&mut Outbox<S::File>> {
        self.sessions.get_mut(&connection).map(|session| &mut session.outbox)
    }

    /// The outbox of a connection has been sent from: there may be room for more.
    pub fn sent(&mut self, connection: ConnectionId) {
        let Some(session) = self.sessions.get(&connection) else { return };
        if session.wants_food() {
            self.make_hungry(connection);
        }
    }

    /// Connections to send from or to end, each at least once.
    pub fn take_dirty(&mut self) -> Vec<ConnectionId> {
        std::mem::take(&mut self.dirty)
    }

    /// Jobs for helper threads.
    pub fn take_jobs(&mut self) -> Vec<Work<S>> {
        let jobs = std::mem::take(&mut self.jobs);
        self.jobs_under_way += jobs.len();
        jobs
    }

    /// A job is done.
    pub fn outcome(&mut self, outcome: Outcome<S>, moment: Moment) {
        self.clock = moment;
        self.jobs_under_way -= 1;
        self.finish(outcome, moment);
    }

    /// Jobs handed out whose outcome has not come.
    #[must_use]
    pub fn jobs_under_way(&self) -> usize {
        self.jobs_under_way + self.jobs.len()
    }

    /// Connections, greeted or not.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.sessions.len()
    }

    /// Why the disk failed, if it did: nothing is confirmed any more and the server must end
    /// with an error.
    #[must_use]
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Something outside makes it impossible to go on.
    pub fn fail(&mut self, why: &str) {
        self.failed.get_or_insert_with(|| why.to_owned());
    }

    /// Whether a client has asked for an orderly stop.
    #[must_use]
    pub fn stop_asked(&self) -> Option<&str> {
        self.stop_asked.as_deref()
    }

    /// From now on frames are not served; what was appended is still synced and confirmed.
    pub fn begin_stop(&mut self) {
        self.stopping = true;
    }

    /// Whether everything that was appended has been answered.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.jobs_under_way() == 0 && self.hosted.values().all(Hosted::is_drained)
    }

    /// Tells the clients to whom nothing else is owed that the server ends because it failed. The
    /// others find their connection closed: what was meant for them must not be sent any more.
    pub fn say_failed(&mut self, why: &str) {
        let owed: Vec<ConnectionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.outbox.is_empty())
            .map(|(connection, _)| *connection)
            .collect();
        for connection in owed {
            self.hung_up(connection);
        }
        self.say_goodbye(why, false);
    }

    /// Tells every client that the server ends.
    pub fn say_goodbye(&mut self, reason: &str, orderly: bool) {
        let connections: Vec<ConnectionId> = self.sessions.keys().copied().collect();
        let goodbye = Goodbye { reason: reason.to_owned(), orderly };
        for connection in connections {
            self.reply(connection, 0, &Reply::Goodbye(goodbye.clone()));
            if let Some(session) = self.sessions.get_mut(&connection) {
                session.ending = true;
            }
        }
    }

    /// A range of a segment of this queue cannot be read: it stands still.
    pub fn unreadable(&mut self, queue: QueueNumber, why: &str) {
        self.stand_still(queue, format!("its segment cannot be read: {why}"));
    }

    /// Puts a frame into a connection's outbox.
    fn reply(&mut self, connection: ConnectionId, channel: u16, reply: &Reply<'_>) {
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.outbox.push_reply(channel, reply);
            self.dirty.push(connection);
        }
    }

    /// A channel fails: the client is told, and what it still sends there is dropped until it
    /// closes the channel.
    fn fail_channel(&mut self, connection: ConnectionId, channel: u16, fault: Fault) {
        if channel >= MEMBER_CHANNELS {
            self.member_failed(connection, channel, fault);
            return;
        }
        self.reply(connection, channel, &Reply::Error(fault));
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        if let Some(failed) = session.channels.insert(channel, Channel::Failed) {
            self.drop_channel(connection, channel, failed);
        }
    }

    /// The connection ends with a word why.
    fn end_connection(&mut self, connection: ConnectionId, fault: Fault) {
        self.reply(connection, 0, &Reply::Error(fault));
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.ending = true;
        }
    }

    fn end_ungreeted(&mut self, moment: Moment) {
        while let Some(&(due, connection)) = self.ungreeted.front() {
            let waiting = self.sessions.get(&connection).is_some_and(|session| !session.greeted);
            if waiting && due > moment.now {
                break;
            }
            self.ungreeted.pop_front();
            if waiting {
                let late = fault(ErrorCode::Protocol, "no HELLO came within 10 seconds");
                self.end_connection(connection, late);
            }
        }
    }

    fn touch(&mut self, queue: QueueNumber) {
        if let Some(hosted) = self.hosted.get_mut(&queue) {
            hosted.changed = self.watch.tick;
            if !hosted.touched {
                hosted.touched = true;
                self.touched.push(queue);
            }
        }
    }

    fn make_hungry(&mut self, connection: ConnectionId) {
        if let Some(session) = self.sessions.get_mut(&connection)
            && !session.hungry
        {
            session.hungry = true;
            self.hungry.push_back(connection);
        }
    }
}

fn version_fault(oldest: u16, newest: u16, info: &ServerInfo) -> Fault {
    let speaks = |oldest: u16, newest: u16| {
        if oldest == newest { newest.to_string() } else { format!("{oldest} to {newest}") }
    };
    fault_with(
        ErrorCode::Version,
        format!(
            "this client speaks protocol version {}, the running server (mq {}) version {}",
            speaks(oldest, newest),
            info.version,
            speaks(VERSION_OLDEST, VERSION)
        ),
        "stop the server with `mq-admin stop`; the next command starts the one that is installed",
    )
}
