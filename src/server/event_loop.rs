//! The event loop: sockets, signals, helper threads and clocks around the engine.
//!
//! One thread. It is the only place with system calls on sockets, and it decides nothing about
//! queues. It sleeps exactly until something happens or the engine's next deadline. Called by
//! [`serve`](super::serve).
//!
//! ```text
//! admission.rs  sockets accepted or refused, our own socket restored
//! intake.rs     sockets → inboxes, within their budget → frames for the engine
//! output.rs     outboxes → sockets
//! phases.rs     serving, draining, leaving
//! ```

mod admission;
mod intake;
mod output;
mod phases;
mod spare;

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::clock::Clock;
use super::engine::{ConnectionId, Engine, Work};
use super::inbox::{Budget, Inbox};
use super::report::Report;
use super::socket::OwnSocket;
use super::workers::Workers;
use crate::limits;
use crate::log::storage::Storage;
use crate::units::{Micros, Moment, Monotonic};

pub use phases::Ended;
use phases::Phase;
use spare::Spare;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const SIGNALS: Token = Token(2);
const SOCKET: Token = Token(3);
const FIRST_CONNECTION: usize = 4;

/// One connection's socket and what has come in on it.
struct Link {
    socket: UnixStream,
    inbox: Inbox,
    readable: bool,
    writable: bool,
    /// The peer is gone, though what it sent may still be there.
    hung: bool,
    /// The peer takes nothing any more; what it said before it went is still read.
    deaf: bool,
    /// It stands in the list of links to read from.
    active: bool,
    moved: Monotonic,
    /// When the frame that is being received began.
    frame_since: Monotonic,
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
    /// What the engine was made by.
    pub clock: Clock,
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
    clock: Clock,
    idle_exit: Option<Micros>,
    idle_since: Monotonic,
    /// Kept back for telling a client that no descriptor is left for it.
    spare: Spare,
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
            clock: parts.clock,
            idle_exit: parts.idle_exit,
            idle_since: Monotonic(0),
            spare: Spare::open()?,
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
        self.clock.moment()
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
        [
            self.engine.next_deadline(),
            idle,
            self.phase.deadline(),
            self.starved_deadline(now),
            self.accept_again,
        ]
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
                if event.is_write_closed() {
                    link.hung = true;
                    if self.engine.is_held(connection) {
                        // Nobody is there any more for whom its last frame could be kept.
                        return self.hang_up(connection);
                    }
                }
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

    fn take_signals(&mut self) {
        let mut bytes = [0u8; 16];
        while let Ok(n) = self.signals.read(&mut bytes) {
            if n == 0 {
                return;
            }
            self.signals_seen += n;
        }
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
}
