//! The receiver: one queue into one outlet.
//!
//! A single thread and one loop over the server's socket, the outlet, the caller's signals and
//! the time. One turn of it:
//!
//! ```text
//! connect (if need be) → read → write → settle → end? → send → wait
//!                         │       │        │               │
//!                      pieces   outlet   what the       ACK, CREDIT
//!                    into the            reader took
//!                     ledger
//! ```
//!
//! It acknowledges nothing that its reader has not taken (promise G7), holds no more than its
//! [credit](super::credit) and two frames, and comes back to a new server with what it holds. It
//! prints nothing, touches no signal handlers and never ends the process; `mq-recv` calls it.

mod ending;
mod intake;
mod link;
mod ranges;
mod settle;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, epoll};

use super::credit::Credit;
use super::delivery::DeliveryError;
use super::format::{Format, Shape};
use super::ledger::{Ledger, Settled};
use super::outlet::{self, Outlet, OutletError};
use super::wait::{self, Patience};
use super::{ClientError, Connection, Dialer};
use crate::limits;
use crate::units::{Micros, Monotonic, Name, Offset, OffsetRange, QueueId};
use crate::wire::{OpenReceive, ReceiveMode};
use link::{Buffers, Link};
use ranges::Acked;

/// A connection that lasts so long ends for a reason of its own.
const LASTING: Micros = Micros::from_secs(1);

/// What to receive, and when to stop.
#[derive(Clone, Debug)]
pub struct Options {
    /// The queue.
    pub queue: Name,
    /// The group.
    pub group: Name,
    /// Only look: acknowledge nothing.
    pub peek: bool,
    /// Stop at the end of what was ready at the start.
    pub until_end: bool,
    /// Stop after so many messages in all.
    pub limit: Option<u64>,
    /// Stop when nothing has come for so long.
    pub wait: Option<Micros>,
    /// How messages are written.
    pub shape: Shape,
}

/// How it ended, if nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There is no more to do; everything delivered was taken and is acknowledged.
    Done,
    /// A signal asked for it.
    Signal(i32),
    /// The reader went away before it had taken everything.
    ReaderGone,
}

/// Why it could not go on. What the reader had taken is acknowledged as far as possible, the
/// rest is given back.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The server, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The outlet.
    #[error("{error}{}", cut_text(*cut))]
    Outlet {
        /// What failed.
        #[source]
        error: OutletError,
        /// For a regular file: whether it now ends with a whole message.
        cut: Option<bool>,
    },
    /// Deliveries come damaged, and the server finds nothing wrong with what is stored.
    #[error("what the server delivers arrives damaged: {0}")]
    Garbled(#[source] DeliveryError),
}

fn cut_text(cut: Option<bool>) -> &'static str {
    match cut {
        Some(true) => "; the file was cut back to its last whole message, the rest stays queued",
        Some(false) => "; the file ends with a part of a message, which stays queued",
        None => "; what was not written stays queued",
    }
}

/// What a caller may want to tell its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The queue does not exist; it is waited for.
    NoQueue,
    /// A message holds the output's delimiter.
    Ambiguous,
    /// These messages may have been delivered before.
    Redelivered(OffsetRange),
    /// The server is gone; `true` when somebody stopped it, so that none is started.
    ServerGone(bool),
    /// The queue was removed and made anew.
    QueueReplaced,
}

/// What has been received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages written.
    pub messages: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Messages delivered that may have been delivered before.
    pub redelivered: u64,
}

/// Who runs a receiver: gives it signals and hears what goes on.
pub trait Caller: AsFd {
    /// A signal that asks to end, each once. The descriptor is readable when there is one.
    fn take_signal(&mut self) -> Option<i32>;
    /// Something worth telling.
    fn note(&mut self, note: Note);
    /// How far it is; called often.
    fn progress(&mut self, tally: &Tally);
}

/// Reaches servers.
pub trait Dial {
    /// Connects, for the first time or after a server was `lost`: then `Some(true)` says that it
    /// was stopped on purpose.
    ///
    /// # Errors
    /// See [`Dialer::dial`].
    fn dial(
        &mut self,
        lost: Option<bool>,
        patience: Patience<'_>,
    ) -> Result<Connection, ClientError>;
}

impl Dial for Dialer {
    fn dial(
        &mut self,
        lost: Option<bool>,
        patience: Patience<'_>,
    ) -> Result<Connection, ClientError> {
        match lost {
            None => Dialer::dial(self, patience),
            Some(orderly) => self.redial(orderly, patience),
        }
    }
}

/// Why the receiver comes to its end.
#[derive(Debug)]
enum Why {
    End(End),
    Failed(ReceiveError),
}

#[derive(Debug)]
enum Phase {
    /// Messages come.
    Running,
    /// None are taken any more; the reader is to take those that it was given.
    Finishing(Why),
    /// The server is to know of all, until then at the latest.
    Closing(Why, Monotonic),
}

/// When to look at the reader's progress.
#[derive(Debug)]
struct Pace {
    interval: Micros,
    next: Monotonic,
}

/// See the module's page.
pub struct Receiver<D> {
    options: Options,
    dialer: D,
    outlet: Outlet,
    ledger: Ledger,
    credit: Credit,
    format: Format,
    buffers: Buffers,
    began: Instant,
    link: Option<Link>,
    /// What the last link ended with: whether the server was stopped on purpose.
    lost: Option<bool>,
    /// When the link was made, when the last one was lost, and how long to pause before the next.
    linked: Monotonic,
    adrift_since: Monotonic,
    pause: Micros,
    /// Whether the link's end was seen while there was no room to read up to it.
    is_hung_up: bool,
    queue_id: Option<QueueId>,
    until: Option<Offset>,
    phase: Phase,
    pace: Pace,
    /// Whether there is a signal to be taken.
    is_signalled: bool,
    /// Whether the outlet took nothing when last asked, and whether its reader is gone.
    is_outlet_full: bool,
    is_reader_gone: bool,
    /// Whether the server has said that nothing is left, and that the channel is closed.
    has_ended: bool,
    is_closed: bool,
    /// To be acknowledged and to be given back with the next frames.
    settled: Settled,
    released: Settled,
    acked: Acked,
    /// Messages that came into the ledger, less the ones taken away again.
    accepted: u64,
    /// The first offset that was never delivered here.
    highest: Offset,
    complaints: u32,
    /// Messages that counted as taken when they were written.
    passed: u64,
    /// Since when nothing has come although something could have.
    waiting_since: Monotonic,
    is_queue_missed: bool,
    tally: Tally,
    redelivering: Option<OffsetRange>,
    watch: Option<OwnedFd>,
}

impl<D: Dial> Receiver<D> {
    /// A receiver that has not begun.
    pub fn new(options: Options, dialer: D, outlet: Outlet) -> Receiver<D> {
        Receiver {
            credit: Credit::new(options.limit),
            format: Format::new(options.shape.clone()),
            options,
            dialer,
            outlet,
            ledger: Ledger::default(),
            buffers: Buffers::default(),
            began: Instant::now(),
            link: None,
            lost: None,
            linked: Monotonic(0),
            adrift_since: Monotonic(0),
            pause: Micros(0),
            is_hung_up: false,
            queue_id: None,
            until: None,
            phase: Phase::Running,
            is_signalled: false,
            pace: Pace { interval: limits::PROGRESS_MIN, next: Monotonic(0) },
            is_outlet_full: false,
            is_reader_gone: false,
            has_ended: false,
            is_closed: false,
            settled: Settled::default(),
            released: Settled::default(),
            acked: Acked::default(),
            accepted: 0,
            highest: Offset(0),
            complaints: 0,
            passed: 0,
            waiting_since: Monotonic(0),
            is_queue_missed: false,
            tally: Tally::default(),
            redelivering: None,
            watch: None,
        }
    }

    /// What has been received.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally {
            messages: self.ledger.messages_written(),
            bytes: self.outlet.written(),
            ..self.tally
        }
    }

    /// Receives until there is a reason to end.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn run(&mut self, caller: &mut dyn Caller) -> Result<End, ReceiveError> {
        self.watch = watch(caller, &self.outlet);
        let end = loop {
            if self.is_adrift() {
                self.connect(caller)?;
            }
            self.read(caller)?;
            self.write();
            self.settle();
            if std::mem::take(&mut self.is_signalled) {
                self.take_signals(caller);
            }
            if let Some(why) = self.go_on() {
                break why;
            }
            self.send()?;
            caller.progress(&self.tally());
            self.wait(caller)?;
        };
        self.tell_redelivered(caller, None);
        match end {
            Why::End(end) => Ok(end),
            Why::Failed(error) => Err(error),
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic(self.began.elapsed().as_micros() as u64)
    }

    fn instant(&self, moment: Monotonic) -> Option<Instant> {
        self.began.checked_add(Micros(moment.0).to_duration())
    }

    /// Whether there is still something to be had from a server, or to be told one.
    fn needs_server(&self) -> bool {
        matches!(
            &self.phase,
            Phase::Running
                | Phase::Finishing(Why::End(End::Done))
                | Phase::Closing(Why::End(End::Done), _)
        )
    }

    /// Whether a server is to be reached before anything else is done: what of the ledger may be
    /// written is for the new one to say.
    fn is_adrift(&self) -> bool {
        self.link.is_none() && self.needs_server()
    }

    fn connect(&mut self, caller: &mut dyn Caller) -> Result<(), ReceiveError> {
        let wait = match (self.options.wait, self.lost) {
            // Whoever stopped the server decides when there is one again.
            (None, Some(true)) if !self.options.until_end => None,
            (wait, _) => Some(wait.unwrap_or(limits::SERVER_WAIT)),
        };
        // A reader that is known to be gone must not interrupt again and again.
        let watch = self.watch.as_ref().filter(|_| !self.is_reader_gone);
        let patience = Patience {
            until: wait.and_then(|wait| Instant::now().checked_add(wait.to_duration())),
            interrupt: Some(watch.map_or(caller.as_fd(), AsFd::as_fd)),
        };
        let dialled = patience
            .sleep(self.pause.to_duration())
            .and_then(|()| self.dialer.dial(self.lost, patience));
        match dialled {
            Ok(connection) => {
                let open = self.open_request();
                self.link = Some(Link::open(connection, open));
                self.is_hung_up = false;
                self.linked = self.now();
                self.waiting_since = self.linked;
                if let Phase::Closing(_, deadline) = &mut self.phase {
                    *deadline = self.waiting_since.plus(limits::DRAIN);
                }
                Ok(())
            }
            Err(ClientError::Interrupted) => {
                // The watch shows a signal or a reader that is gone.
                self.is_reader_gone |= !self.take_signals(caller);
                Ok(())
            }
            // Whatever ended the server before may have ended this one while it came up.
            Err(ClientError::StartFailed { .. })
                if self.lost.is_some()
                    && self.now().since(self.adrift_since) < limits::SERVER_WAIT =>
            {
                self.pause_longer();
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn open_request(&mut self) -> OpenReceive {
        // The reader may have gone on taking since the last server was lost.
        self.settled.take().into_iter().for_each(|range| self.acked.push(range));
        let mut holding = self.ledger.held();
        holding.extend(self.acked.ranges());
        let mut merged = Settled::default();
        holding.into_iter().for_each(|range| merged.push(range));
        let mut holding = merged.take();
        holding.truncate(limits::RANGES_PER_FRAME_MAX);
        let mode = if self.options.peek { ReceiveMode::Peek } else { ReceiveMode::Take };
        OpenReceive {
            until_end: self.options.until_end,
            queue_id: self.queue_id,
            holding: if self.options.peek { Vec::new() } else { holding },
            until: self.until,
            ..OpenReceive::new(self.options.queue.clone(), self.options.group.clone(), mode)
        }
    }

    /// The connection is gone. What was not acknowledged for sure is presented to the next server.
    fn lose(&mut self, orderly: bool, caller: &mut dyn Caller) {
        self.link = None;
        self.lost = Some(orderly);
        self.adrift_since = self.now();
        self.pause_longer();
        if self.adrift_since.since(self.linked) >= LASTING {
            self.pause = Micros(0);
        }
        self.has_ended = false;
        let _: Vec<OffsetRange> = self.released.take();
        if self.needs_server() {
            caller.note(Note::ServerGone(orderly));
        }
    }

    /// A server that ends again and again is not started again and again without a pause.
    fn pause_longer(&mut self) {
        self.pause = Micros((self.pause.0 * 2).clamp(1_000, LASTING.0));
    }

    /// Sleeps until something happens.
    fn wait(&mut self, caller: &mut dyn Caller) -> Result<(), ReceiveError> {
        if self.is_adrift() {
            return Ok(());
        }
        let until = self.deadline().and_then(|moment| self.instant(moment));
        let mut fds = vec![PollFd::from_borrowed_fd(caller.as_fd(), PollFlags::IN)];
        let input = if self.wants_input() { PollFlags::IN } else { PollFlags::empty() };
        let link_index = self.link.as_ref().map(|link| {
            let output = if link.owes() { PollFlags::OUT } else { PollFlags::empty() };
            fds.push(PollFd::from_borrowed_fd(link.as_fd(), input | output));
            fds.len() - 1
        });
        let outlet_index = self.outlet_interest().map(|interest| {
            fds.push(PollFd::from_borrowed_fd(self.outlet.as_fd(), interest));
            fds.len() - 1
        });
        wait::poll(&mut fds, until)?;
        let events = outlet_index.map_or(PollFlags::empty(), |index| fds[index].revents());
        self.is_signalled = !fds[0].revents().is_empty();
        let hung = link_index.is_some_and(|index| outlet::is_gone(fds[index].revents()));
        self.is_reader_gone |= outlet::is_gone(events);
        self.is_outlet_full &= !events.contains(PollFlags::OUT);
        self.is_hung_up |= hung;
        Ok(())
    }

    fn outlet_interest(&self) -> Option<PollFlags> {
        match self.phase {
            Phase::Closing(..) => None,
            _ => self.outlet.interest(self.ledger.unwritten() > 0),
        }
    }

    /// When there is something to do even if nothing happens.
    fn deadline(&self) -> Option<Monotonic> {
        let look = (self.outlet.is_pipe() && !self.ledger.is_empty()).then_some(self.pace.next);
        match &self.phase {
            Phase::Running => look.into_iter().chain(self.wait_deadline()).min(),
            Phase::Finishing(_) => look,
            Phase::Closing(_, deadline) => Some(*deadline),
        }
    }
}

/// A descriptor that shows a signal, or that the reader is gone, while a server is waited for.
fn watch(caller: &dyn Caller, outlet: &Outlet) -> Option<OwnedFd> {
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
    let data = epoll::EventData::new_u64(0);
    epoll::add(&watch, caller, data, epoll::EventFlags::IN).ok()?;
    // A regular file cannot be watched, and has no reader that could go.
    let _: Result<(), rustix::io::Errno> =
        epoll::add(&watch, outlet, data, epoll::EventFlags::empty());
    Some(watch)
}
