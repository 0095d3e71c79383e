//! The event loop: sockets, signals, helper threads and clocks around the engine.
//!
//! One thread. It is the only place with system calls on sockets, and it decides nothing about
//! queues. It sleeps exactly until something happens or the engine's next deadline. Called by
//! [`serve`](super::serve).

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::engine::{ConnectionId, Engine, Work};
use super::inbox::{Budget, Inbox};
use super::outbox::Front;
use super::report::Report;
use super::socket::OwnSocket;
use super::workers::Workers;
use crate::limits;
use crate::log::storage::{Storage, StorageFile};
use crate::units::{Micros, Moment, Monotonic, WallTime};
use crate::wire::{ErrorCode, Fault, Reply};

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const SIGNALS: Token = Token(2);
const SOCKET: Token = Token(3);
const FIRST_CONNECTION: usize = 4;

/// Bytes received from one connection before the others have their turn.
const READ_PER_TURN: usize = 1 << 20;

/// While the receive budget is used up, a connection in the middle of a frame that has not moved
/// for this long loses its place.
const STALLED: Micros = Micros::from_secs(1);

/// After descriptors ran out, accepting is tried again this often.
const ACCEPT_AGAIN: Micros = Micros::from_millis(200);

/// Why the loop ended.
#[derive(Debug)]
pub enum Ended {
    /// In order: everything was synced and answered.
    Orderly(String, Monotonic),
    /// A second signal came: at once.
    Hurried,
    /// The disk failed; nothing more was confirmed.
    Failed(String),
}

/// One connection's socket and what has come in on it.
struct Link {
    socket: UnixStream,
    inbox: Inbox,
    readable: bool,
    writable: bool,
    /// It stands in the list of links to read from.
    active: bool,
    moved: Monotonic,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// What was appended is synced and confirmed.
    Draining(Monotonic),
    /// The last frames are sent.
    Leaving(Monotonic),
}

/// What a loop is made with.
pub struct Parts<S: Storage> {
    /// Everything but I/O.
    pub engine: Engine<S>,
    /// Where clients come in.
    pub listener: std::os::unix::net::UnixListener,
    /// A byte comes out for each signal that asks for an end.
    pub signals: std::os::unix::net::UnixStream,
    /// Our own socket, to be listened on again when someone deletes it.
    pub socket: Option<OwnSocket>,
    /// To end after this long without connections.
    pub idle_exit: Option<Micros>,
    /// Where events are told.
    pub report: Report,
    /// The only users who may connect besides root.
    pub owner: u32,
}

/// See the module's page.
pub struct EventLoop<S: Storage> {
    poll: Poll,
    engine: Engine<S>,
    listener: UnixListener,
    socket: Option<OwnSocket>,
    signals: UnixStream,
    workers: Workers<Work<S>>,
    links: HashMap<ConnectionId, Link>,
    active: VecDeque<ConnectionId>,
    starved: Vec<ConnectionId>,
    budget: Budget,
    /// The one connection that may go beyond the budget.
    overdraft: Option<ConnectionId>,
    next_connection: u64,
    started: Instant,
    idle_exit: Option<Micros>,
    idle_since: Monotonic,
    accept_again: Option<Monotonic>,
    phase: Phase,
    reason: String,
    orderly: bool,
    signals_seen: usize,
    report: Report,
    owner: u32,
}

impl<S: Storage> EventLoop<S> {
    /// Sets everything up.
    ///
    /// # Errors
    /// The system has no descriptor or thread left.
    pub fn new(parts: Parts<S>) -> io::Result<EventLoop<S>> {
        let poll = Poll::new()?;
        parts.listener.set_nonblocking(true)?;
        parts.signals.set_nonblocking(true)?;
        let mut listener = UnixListener::from_std(parts.listener);
        let mut signals = UnixStream::from_std(parts.signals);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
        if let Some(socket) = &parts.socket {
            let watch = socket.watch().as_raw_fd();
            poll.registry().register(&mut SourceFd(&watch), SOCKET, Interest::READABLE)?;
        }
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let wake = move || {
            // A full eventfd has been signalled already; nothing else can fail here.
            let _ = waker.wake();
        };
        Ok(EventLoop {
            poll,
            engine: parts.engine,
            listener,
            socket: parts.socket,
            signals,
            workers: Workers::start(limits::HELPER_THREADS, wake)?,
            links: HashMap::new(),
            active: VecDeque::new(),
            starved: Vec::new(),
            budget: Budget::default(),
            overdraft: None,
            next_connection: 0,
            started: Instant::now(),
            idle_exit: parts.idle_exit,
            idle_since: Monotonic(0),
            accept_again: None,
            phase: Phase::Serving,
            reason: String::new(),
            orderly: true,
            signals_seen: 0,
            report: parts.report,
            owner: parts.owner,
        })
    }

    fn moment(&self) -> Moment {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment {
            now: Monotonic(self.started.elapsed().as_micros() as u64),
            wall: WallTime(wall.as_micros() as u64),
        }
    }

    /// Serves until the end. Gives the engine back for the last orderly steps.
    ///
    /// # Errors
    /// The system's polling fails.
    pub fn run(mut self) -> io::Result<(Ended, Engine<S>)> {
        let mut events = Events::with_capacity(256);
        loop {
            let timeout = self.timeout();
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != ErrorKind::Interrupted
            {
                return Err(error);
            }
            let moment = self.moment();
            for event in &events {
                self.event(event, moment);
            }
            for outcome in self.workers.outcomes() {
                self.engine.outcome(outcome, moment);
            }
            self.read_active(moment);
            self.engine.turn(moment);
            for job in self.engine.take_jobs() {
                self.workers.submit(job);
            }
            // What a journal could not be told of must not be sent.
            if self.engine.failed().is_none() {
                self.send_dirty();
            }
            if let Some(ended) = self.step(moment) {
                if let Some(socket) = self.socket.take() {
                    socket.remove();
                }
                return Ok((ended, self.engine));
            }
        }
    }

    fn timeout(&self) -> Option<std::time::Duration> {
        if !self.active.is_empty() {
            return Some(std::time::Duration::ZERO);
        }
        let now = self.moment().now;
        let idle = self
            .idle_exit
            .filter(|_| self.links.is_empty() && self.phase == Phase::Serving)
            .map(|patience| self.idle_since.plus(patience));
        let phase = match self.phase {
            Phase::Serving => None,
            Phase::Draining(due) | Phase::Leaving(due) => Some(due),
        };
        let starved = (!self.starved.is_empty()).then(|| now.plus(Micros(STALLED.0 / 4)));
        [self.engine.next_deadline(), idle, phase, starved, self.accept_again]
            .into_iter()
            .flatten()
            .min()
            // A microsecond more, because the system's timers are coarser than our clock.
            .map(|due| due.since(now).to_duration())
    }

    fn event(&mut self, event: &Event, moment: Moment) {
        match event.token() {
            LISTENER => self.accept(moment),
            WAKER => {}
            SIGNALS => self.take_signals(),
            SOCKET => self.restore_socket(moment),
            Token(n) => {
                let connection = ConnectionId((n - FIRST_CONNECTION) as u64);
                let Some(link) = self.links.get_mut(&connection) else { return };
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    link.readable = true;
                    self.activate(connection);
                }
                if event.is_writable() {
                    if let Some(link) = self.links.get_mut(&connection) {
                        link.writable = true;
                    }
                    self.send(connection);
                }
            }
        }
    }

    fn activate(&mut self, connection: ConnectionId) {
        if let Some(link) = self.links.get_mut(&connection)
            && !link.active
        {
            link.active = true;
            self.active.push_back(connection);
        }
    }

    fn take_signals(&mut self) {
        let mut bytes = [0u8; 16];
        while let Ok(n) = self.signals.read(&mut bytes) {
            if n == 0 {
                return;
            }
            self.signals_seen += n;
        }
    }

    /// Something was deleted in the store: if it was our socket, listen anew.
    fn restore_socket(&mut self, moment: Moment) {
        let Some(socket) = &self.socket else { return };
        let restored = socket.restore().and_then(|listener| {
            let Some(listener) = listener else { return Ok(false) };
            listener.set_nonblocking(true)?;
            let mut listener = UnixListener::from_std(listener);
            self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
            self.listener = listener;
            Ok(true)
        });
        match restored {
            Ok(true) => {
                self.report.info("the socket was deleted; listening on a new one");
                self.accept(moment);
            }
            Ok(false) => {}
            Err(error) => self.report.error(&format!("cannot restore the socket: {error}")),
        }
    }

    fn accept(&mut self, moment: Moment) {
        self.accept_again = None;
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => self.admit(socket, moment),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The client hung up before it was accepted.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    // Out of descriptors or memory: those that are connected go on.
                    self.report.error(&format!("cannot accept a connection: {error}"));
                    self.accept_again = Some(moment.now.plus(ACCEPT_AGAIN));
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut socket: UnixStream, moment: Moment) {
        // The process id of a peer in another namespace is 0, which nix can tell.
        let peer = match getsockopt(&socket, PeerCredentials) {
            Ok(credentials) => credentials,
            Err(error) => {
                self.report.error(&format!("cannot tell who connects: {error}"));
                return;
            }
        };
        let uid = peer.uid();
        let refusal = if uid != self.owner && uid != 0 {
            self.report.error(&format!("user {uid} was refused"));
            Some((ErrorCode::Access, "this store belongs to another user"))
        } else if self.links.len() >= limits::CONNECTIONS_MAX {
            Some((ErrorCode::Busy, "the server has its limit of connections"))
        } else if self.phase != Phase::Serving {
            Some((ErrorCode::Stopping, "the server is stopping"))
        } else {
            None
        };
        if let Some((code, why)) = refusal {
            let fault = Fault { code, message: why.to_owned(), remedy: None };
            let mut bytes = Vec::new();
            Reply::Error(fault).encode(0, &mut bytes);
            // One small write into an empty socket buffer; a peer that is gone needs no answer.
            let _ = socket.write(&bytes);
            return;
        }
        // What the system grants is enough.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, limits::SOCKET_BYTES);
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let token = Token(FIRST_CONNECTION + connection.0 as usize);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut socket, token, interest) {
            self.report.error(&format!("cannot watch a connection: {error}"));
            return;
        }
        self.report.debug(&format!("process {} connects", peer.pid()));
        self.engine.connected(connection, moment);
        self.links.insert(
            connection,
            Link {
                socket,
                inbox: Inbox::default(),
                readable: false,
                writable: true,
                active: false,
                moved: moment.now,
            },
        );
    }

    fn read_active(&mut self, moment: Moment) {
        if self.phase != Phase::Serving {
            self.active.clear();
            return;
        }
        if !self.starved.is_empty() {
            self.make_budget(moment);
        }
        for _ in 0..self.active.len() {
            let Some(connection) = self.active.pop_front() else { return };
            let Some(link) = self.links.get_mut(&connection) else { continue };
            link.active = false;
            if self.read(connection, moment) {
                self.activate(connection);
            }
        }
    }

    /// Reads from one connection. True when there may be more right now.
    fn read(&mut self, connection: ConnectionId, moment: Moment) -> bool {
        let mut done = 0;
        loop {
            if !self.take_frames(connection, moment) {
                return false;
            }
            let Some(link) = self.links.get_mut(&connection) else { return false };
            if !link.readable || self.engine.is_ending(connection) {
                link.inbox.rest(&mut self.budget);
                return false;
            }
            if done >= READ_PER_TURN {
                return true;
            }
            let beyond = self.overdraft == Some(connection);
            let space = match link.inbox.space(&mut self.budget, beyond) {
                Ok(Some(space)) => space,
                Ok(None) => {
                    self.starved.push(connection);
                    return false;
                }
                Err(wrong) => {
                    self.engine.malformed(connection, &wrong.to_string());
                    return false;
                }
            };
            match link.socket.read(space) {
                Ok(0) => {
                    self.hang_up(connection);
                    return false;
                }
                Ok(n) => {
                    link.inbox.received(n);
                    link.moved = moment.now;
                    done += n;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => link.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.hang_up(connection);
                    return false;
                }
            }
        }
    }

    /// Hands whole frames to the engine. False when the connection must wait or is gone.
    fn take_frames(&mut self, connection: ConnectionId, moment: Moment) -> bool {
        let Some(link) = self.links.get_mut(&connection) else { return false };
        loop {
            if self.engine.is_paused(connection) {
                return false;
            }
            match link.inbox.frame() {
                Ok(Some((header, body))) => {
                    if !self.engine.frame(connection, &header, body, moment) {
                        return false;
                    }
                    link.inbox.consume(&header);
                    if self.engine.is_ending(connection) {
                        return false;
                    }
                }
                Ok(None) => return true,
                Err(wrong) => {
                    self.engine.malformed(connection, &wrong.to_string());
                    return false;
                }
            }
        }
    }

    /// While the receive budget is used up: whoever sits in the middle of a frame, has nothing
    /// more to be received and does not move loses its place; and the first of those that wait
    /// may go beyond the budget by one frame, so that somebody always gets on.
    fn make_budget(&mut self, moment: Moment) {
        let stalled: Vec<ConnectionId> = self
            .links
            .iter()
            .filter(|(_, link)| link.inbox.is_partial())
            .filter(|(_, link)| moment.now.since(link.moved) >= STALLED)
            .filter(|(_, link)| rustix::io::ioctl_fionread(&link.socket).unwrap_or(0) == 0)
            .map(|(connection, _)| *connection)
            .collect();
        for connection in stalled {
            if self.engine.is_parked(connection) {
                continue;
            }
            self.engine.malformed(connection, "a frame that stands still while others wait");
            if let Some(link) = self.links.get_mut(&connection) {
                link.inbox.clear(&mut self.budget);
            }
        }
        let starved = std::mem::take(&mut self.starved);
        let held = self.overdraft.and_then(|connection| self.links.get(&connection));
        if held.is_none_or(|link| !link.inbox.is_partial()) {
            self.overdraft = starved.first().copied();
        }
        for connection in starved {
            self.activate(connection);
        }
    }

    fn send_dirty(&mut self) {
        for connection in self.engine.take_dirty() {
            self.send(connection);
        }
    }

    /// A connection that was not read from because it had to wait may be read from again.
    fn go_on_reading(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get(&connection) else { return };
        let waits = (link.readable || link.inbox.is_partial()) && !link.active;
        if waits && !self.engine.is_paused(connection) {
            self.activate(connection);
        }
    }

    /// Sends what the outbox holds, as far as the socket takes it.
    fn send(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        let Some(outbox) = self.engine.outbox(connection) else { return };
        let mut broken = false;
        let mut unreadable = None;
        while link.writable {
            let sent = match outbox.front() {
                None => break,
                Some(Front::Bytes(bytes, more)) => send_bytes(&link.socket, bytes, more),
                Some(Front::File(file, position, bytes)) => {
                    let sent = send_file(&link.socket, &**file, position, bytes);
                    unreadable = file_error(&sent);
                    sent
                }
            };
            match sent {
                Ok(0) => {
                    broken = true;
                    break;
                }
                Ok(n) => outbox.advance(n as u64),
                Err(error) if error.kind() == ErrorKind::WouldBlock => link.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        let finished = outbox.is_empty() && self.engine.is_ending(connection);
        if let Some(why) = unreadable {
            self.report.error(&format!("a segment cannot be read: {why}"));
            self.engine.unreadable(connection, &why);
        }
        if broken || finished {
            self.hang_up(connection);
            return;
        }
        self.engine.sent(connection);
        self.go_on_reading(connection);
    }

    fn hang_up(&mut self, connection: ConnectionId) {
        self.engine.hung_up(connection);
        let Some(mut link) = self.links.remove(&connection) else { return };
        link.inbox.clear(&mut self.budget);
        // Closing the socket takes it out of the poll anyway.
        let _ = self.poll.registry().deregister(&mut link.socket);
        if self.links.is_empty() {
            self.idle_since = self.moment().now;
        }
        if self.accept_again.is_some() {
            // A descriptor is free: accept at once.
            self.accept_again = Some(Monotonic(0));
        }
    }

    /// The loop's own course: failures, signals, stopping.
    fn step(&mut self, moment: Moment) -> Option<Ended> {
        if let Some(why) = self.engine.failed() {
            let why = why.to_owned();
            // One try: whoever does not read now finds the connection closed.
            self.engine.say_failed(&why);
            self.send_dirty();
            return Some(Ended::Failed(why));
        }
        if self.signals_seen > 1 {
            return Some(Ended::Hurried);
        }
        if self.accept_again.is_some_and(|due| due <= moment.now) {
            self.accept(moment);
        }
        match self.phase {
            Phase::Serving => {
                if let Some((reason, orderly)) = self.reason_to_stop(moment) {
                    self.report.info(&format!("stopping: {reason}"));
                    self.reason = reason;
                    self.orderly = orderly;
                    self.engine.begin_stop();
                    self.phase = Phase::Draining(moment.now.plus(limits::DRAIN));
                    return self.step(moment);
                }
            }
            Phase::Draining(due) => {
                if self.engine.is_drained() || due <= moment.now {
                    self.engine.say_goodbye(&self.reason, self.orderly);
                    self.phase = Phase::Leaving(due);
                    self.send_dirty();
                    return self.step(moment);
                }
            }
            Phase::Leaving(due) => {
                if self.links.is_empty() || due <= moment.now {
                    for connection in self.links.keys().copied().collect::<Vec<_>>() {
                        self.hang_up(connection);
                    }
                    if self.engine.jobs_under_way() == 0 || due <= moment.now {
                        let reason = std::mem::take(&mut self.reason);
                        return Some(Ended::Orderly(reason, moment.now));
                    }
                }
            }
        }
        None
    }

    fn reason_to_stop(&self, moment: Moment) -> Option<(String, bool)> {
        if self.signals_seen > 0 {
            return Some(("a signal asked for it".to_owned(), true));
        }
        if let Some(reason) = self.engine.stop_asked() {
            return Some((reason.to_owned(), true));
        }
        let patience = self.idle_exit?;
        let idle = self.links.is_empty() && moment.now.since(self.idle_since) >= patience;
        idle.then(|| ("nothing to do".to_owned(), false))
    }
}

/// Why a range of a file could not be sent, if it was the file's fault and not the socket's.
fn file_error(sent: &io::Result<usize>) -> Option<String> {
    match sent {
        Ok(0) => Some("the file is shorter than it was".to_owned()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            Some(error.to_string())
        }
        _ => None,
    }
}

fn send_bytes(socket: &UnixStream, bytes: &[u8], more: bool) -> io::Result<usize> {
    use rustix::net::SendFlags;
    let flags = SendFlags::NOSIGNAL | if more { SendFlags::MORE } else { SendFlags::empty() };
    Ok(rustix::net::send(socket.as_fd(), bytes, flags)?)
}

fn send_file<F: StorageFile>(
    socket: &UnixStream,
    file: &F,
    position: u64,
    bytes: u64,
) -> io::Result<usize> {
    let Some(descriptor) = file.descriptor() else {
        return Err(ErrorKind::Unsupported.into());
    };
    let mut position = position;
    let count = usize::try_from(bytes).unwrap_or(usize::MAX);
    Ok(rustix::fs::sendfile(socket.as_fd(), descriptor, Some(&mut position), count)?)
}
