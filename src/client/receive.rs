//! The receiver: from one queue or several into one sink.
//!
//! A single thread and one loop over the server's socket, the sink's descriptor, the caller's
//! signals and the time. One turn of it:
//!
//! ```text
//! connect (if need be) → read → push → settle → end? → begin → send → launch → wait
//!                         │       │       │              │       │        │
//!                      batches  bytes   what is       what is  BEGIN,  commands
//!                      into the  out     done         next     ACK,
//!                        sink                                  CREDIT
//! ```
//!
//! It verifies what comes, presents to a new server what it holds, and ends as it was asked to.
//! What becomes of the messages is the [sink](Sink)'s: the [`Printer`] acknowledges nothing that
//! its reader has not taken (promise G7). It holds no more than its [credit](super::credit) and
//! two frames. It prints nothing, touches no signal handlers and never ends the process;
//! `mq-recv` calls it.

mod ending;
mod intake;
mod link;
mod members;
mod printer;
mod ranges;
mod reach;
mod sink;
#[cfg(test)]
pub(in crate::client) mod stage;
#[cfg(test)]
mod tests;

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::buffers::Buffers;
use super::command::StartError;
use super::credit::Credit;
use super::delivery::DeliveryError;
use super::outlet::{self, OutletError};
use super::wait::{self, Patience};
use super::{ClientError, Connection, Dialer};
use crate::limits;
use crate::settings::{Backoff, Start};
use crate::units::{Count, Micros, Monotonic, Name, OffsetRange};
use crate::url::Url;
use crate::wire::{Fault, QueuePattern};
use link::Link;

pub use members::{Member, MemberNumber, Members};
pub use printer::Printer;
pub use ranges::intersection;
pub use sink::{Alarm, Sink, Turn};

/// Where messages are received from.
#[derive(Clone, Debug)]
pub enum Queues {
    /// One queue.
    One(Name),
    /// Several, by names and patterns.
    Several {
        /// The names and patterns.
        patterns: Vec<QueuePattern>,
        /// Always the first, in their order, that has any message; else in turn.
        strict: bool,
    },
}

/// How messages are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// Leased, and settled when they are done with.
    Acked,
    /// Only looked at, until the end.
    Looked,
    /// Settled by being delivered: at most once.
    Unacked,
    /// Leased for so long, to be settled by their receipts.
    Leased(Micros),
}

/// What to receive, and when to stop.
#[derive(Clone, Debug)]
pub struct Options {
    /// From where.
    pub queues: Queues,
    /// The group.
    pub group: Name,
    /// Makes the group, beginning there, where there is none of its name.
    pub from: Option<Start>,
    /// How.
    pub taking: Taking,
    /// Nothing while another such receiver of the group gets messages.
    pub exclusive: bool,
    /// The pauses before messages that failed are tried again.
    pub backoff: Option<Backoff>,
    /// Stop at the end of what was ready at the start.
    pub until_end: bool,
    /// Stop after so many messages in all.
    pub limit: Option<u64>,
    /// Stop when nothing has come for so long.
    pub wait: Option<Micros>,
}

impl Options {
    /// Everything ready in a queue and all that comes, for the default group.
    #[must_use]
    pub fn new(queues: Queues) -> Options {
        Options {
            queues,
            group: Name::default(),
            from: None,
            taking: Taking::Acked,
            exclusive: false,
            backoff: None,
            until_end: false,
            limit: None,
            wait: None,
        }
    }
}

/// How it ended, if nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There is no more to do; everything delivered is settled.
    Done,
    /// A signal asked for it.
    Signal(i32),
    /// The reader went away before it had taken everything.
    ReaderGone,
}

/// Why it could not go on. What was done is acknowledged as far as possible, the rest is given
/// back.
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
    /// The command cannot be run.
    #[error(transparent)]
    Command(#[from] StartError),
    /// The command says that it, or what it runs, cannot be run.
    #[error("{command} ended with status {status}: {}; its messages are given back",
        if *status == 127 { "a command was not found" } else { "a command cannot be run" })]
    Unrunnable {
        /// The command.
        command: String,
        /// How it ended.
        status: u8,
    },
    /// Nobody reads what the commands print.
    #[error("the reader of the commands' output is gone")]
    Deserted,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The queue does not exist, or none of several does; it is waited for.
    NoQueue(Option<Name>),
    /// So many messages of the queue no group gets: this one is its first, and begins behind them.
    Passed(Name, Count),
    /// A message holds the output's delimiter.
    Ambiguous,
    /// The file that is appended to ends within a message: a delimiter goes in front of ours.
    Unfinished,
    /// These messages may have been delivered before.
    Redelivered(Name, OffsetRange),
    /// The server is gone; `true` when somebody stopped it, so that none is started.
    ServerGone(bool),
    /// The queue was removed and made anew.
    QueueReplaced(Name),
    /// One of several queues was removed.
    QueueRemoved(Name),
    /// One of several queues cannot be received from; the others can.
    QueueFailed(Name, Fault),
    /// Others have the group, or messages of it, and this one wants it for itself: it waits.
    Waiting(Name),
    /// A command, this process, asked the terminal and was stopped for that.
    Stopped(u32),
}

/// What has been received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages written, or tried.
    pub messages: u64,
    /// Bytes written, or given to commands.
    pub bytes: u64,
    /// Messages delivered that may have been delivered before.
    pub redelivered: u64,
    /// Messages whose try failed.
    pub failed: u64,
    /// Messages that are dead letters now.
    pub dead: u64,
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

    /// From now on the queue is to be had at an engine. False if there is no going there.
    fn go_to(&mut self, url: Url) -> bool;
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

    fn go_to(&mut self, url: Url) -> bool {
        let is_new = !self.is_to_engine();
        if is_new {
            Dialer::go_to(self, url);
        }
        is_new
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
    /// None are taken any more; what the sink has begun is to come to its end.
    Finishing(Why),
    /// The server is to know of all, until then at the latest.
    Closing(Why, Monotonic),
}

/// See the module's page.
pub struct Receiver<D, S> {
    options: Options,
    dialer: D,
    sink: S,
    members: Members,
    credit: Credit,
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
    /// The engine behind the link is away.
    waits_for_engine: bool,
    phase: Phase,
    /// Whether there is a signal to be taken.
    is_signalled: bool,
    /// Whether the server has said that nothing is left, and that the channel is closed.
    has_ended: bool,
    is_closed: bool,
    /// Messages that the sink was given, less the ones taken away again.
    accepted: u64,
    complaints: u32,
    /// Since when nothing has come although something could have.
    waiting_since: Monotonic,
    /// What the user was told to wait for, or that it failed; once is enough.
    is_queue_missed: bool,
    is_turn_awaited: bool,
    failed_member: Option<Fault>,
    redelivered: u64,
    redelivering: Option<(MemberNumber, OffsetRange)>,
}

/// What a sink is given to work with; a macro, as it borrows but a part of the receiver.
macro_rules! turn {
    ($receiver:ident) => {
        &mut Turn {
            now: Monotonic($receiver.began.elapsed().as_micros() as u64),
            is_running: matches!($receiver.phase, Phase::Running),
            has_more: &|| $receiver.link.as_ref().is_some_and(Link::has_more),
            credit: &mut $receiver.credit,
            members: &mut $receiver.members,
        }
    };
}

impl<D: Dial, S: Sink> Receiver<D, S> {
    /// A receiver that has not begun.
    pub fn new(options: Options, dialer: D, sink: S) -> Receiver<D, S> {
        let only = match &options.queues {
            Queues::One(name) => Some(name.clone()),
            Queues::Several { .. } => None,
        };
        Receiver {
            credit: sink.credit(options.limit, options.taking),
            members: Members::new(only),
            options,
            dialer,
            sink,
            buffers: Buffers::new(limits::RECEIVE_BUFFERS),
            began: Instant::now(),
            link: None,
            lost: None,
            linked: Monotonic(0),
            adrift_since: Monotonic(0),
            pause: Micros(0),
            is_hung_up: false,
            waits_for_engine: false,
            phase: Phase::Running,
            is_signalled: false,
            has_ended: false,
            is_closed: false,
            accepted: 0,
            complaints: 0,
            waiting_since: Monotonic(0),
            is_queue_missed: false,
            is_turn_awaited: false,
            failed_member: None,
            redelivered: 0,
            redelivering: None,
        }
    }

    /// The queues that it has received from.
    pub fn queues(&self) -> impl Iterator<Item = &Name> {
        self.members.numbers().map(|number| &self.members.at(number).name)
    }

    /// What has been received.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally { redelivered: self.redelivered, ..self.sink.tally() }
    }

    /// Receives until there is a reason to end.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn run(&mut self, caller: &mut dyn Caller) -> Result<End, ReceiveError> {
        let end = loop {
            if self.is_adrift() {
                self.connect(caller)?;
            }
            self.read(caller).or_else(|error| self.broken(error))?;
            self.push();
            self.settle();
            self.tell_notes(caller);
            if std::mem::take(&mut self.is_signalled) {
                self.take_signals(caller);
            }
            if let Some(why) = self.go_on() {
                break why;
            }
            self.send().or_else(|error| self.broken(error))?;
            caller.progress(&self.tally());
            self.wait(caller)?;
        };
        self.tell_redelivered(caller, None);
        match end {
            Why::End(End::Done) => match self.failed_member.take() {
                Some(fault) => Err(ClientError::Refused(fault).into()),
                None => Ok(End::Done),
            },
            Why::End(end) => Ok(end),
            Why::Failed(error) => Err(error),
        }
    }

    /// Tells what the sink has to tell.
    fn tell_notes(&mut self, caller: &mut dyn Caller) {
        while let Some(note) = self.sink.take_note() {
            caller.note(note);
        }
    }

    /// The way to the server is of no use any more. What the sink has begun comes to its end
    /// all the same.
    fn broken(&mut self, error: ReceiveError) -> Result<(), ReceiveError> {
        if !self.sink.is_busy() {
            return Err(error);
        }
        self.link = None;
        self.fail(error);
        Ok(())
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

    /// Whether a server is to be reached before anything else is done: what of the messages may
    /// be used is for the new one to say.
    fn is_adrift(&self) -> bool {
        self.link.is_none() && self.needs_server()
    }

    /// Lets the sink move on what it has.
    fn push(&mut self) {
        if self.is_adrift() {
            return;
        }
        let pushed = self.sink.push(turn!(self));
        self.check_sink(pushed);
    }

    /// Looks what the sink has done.
    fn settle(&mut self) {
        if !self.sink.is_empty() {
            self.waiting_since = self.now();
        }
        let settled = self.sink.settle(turn!(self));
        self.check_sink(settled);
    }

    /// A sink that cannot go on brings what it has begun to its end, and that is it.
    fn check_sink(&mut self, done: Result<(), ReceiveError>) {
        if let Err(error) = done {
            self.sink.stop(&mut self.members);
            if !matches!(self.phase, Phase::Closing(..)) {
                self.phase = Phase::Finishing(Why::Failed(error));
            }
        }
    }

    /// Tells the server what is settled, what begins and how much may come; what begins does so
    /// once the word of it is out.
    fn send(&mut self) -> Result<(), ReceiveError> {
        let is_running = matches!(self.phase, Phase::Running);
        let can_tell = |link: &Link| link.is_announced && !link.is_clogged();
        let is_heard = self.link.as_ref().is_some_and(can_tell);
        // What begins is told below, or it must not be launched.
        if S::TRIES && is_heard && !matches!(self.phase, Phase::Closing(..)) {
            let begun = self.sink.begin(turn!(self));
            self.check_sink(begun);
        }
        let Some(link) = &mut self.link else { return Ok(()) };
        if is_heard {
            if is_running && let Some(total) = self.credit.grant() {
                link.credit(total);
            }
            self.members.report(link, self.options.taking);
        }
        link.flush()?;
        if S::TRIES && !link.owes() {
            let launched = self.sink.launch(turn!(self));
            self.check_sink(launched);
        }
        Ok(())
    }

    /// Sleeps until something happens.
    fn wait(&mut self, caller: &mut dyn Caller) -> Result<(), ReceiveError> {
        if self.is_adrift() || self.is_through() {
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
        let is_closing = matches!(self.phase, Phase::Closing(..));
        let sink_index = self.sink.interest().filter(|_| !is_closing).map(|(fd, interest)| {
            fds.push(PollFd::from_borrowed_fd(fd, interest));
            fds.len() - 1
        });
        wait::poll(&mut fds, until)?;
        let events = sink_index.map_or(PollFlags::empty(), |index| fds[index].revents());
        self.is_signalled = !fds[0].revents().is_empty();
        self.is_hung_up |= link_index.is_some_and(|index| outlet::is_gone(fds[index].revents()));
        drop(fds);
        self.sink.polled(events);
        Ok(())
    }

    /// When there is something to do even if nothing happens.
    fn deadline(&self) -> Option<Monotonic> {
        let sink = self.sink.deadline();
        match &self.phase {
            Phase::Running => sink.into_iter().chain(self.wait_deadline()).min(),
            Phase::Finishing(_) => sink,
            Phase::Closing(_, deadline) => Some(*deadline),
        }
    }
}
