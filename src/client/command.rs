//! The process pool: runs commands for jobs, some at a time, and says how each ended.
//!
//! Each command has its own process group, its input on a pipe, its stderr passed on with the
//! tail kept, and a time limit. What this module never does: know queues, read exit statuses for
//! their meaning, wait. It has one descriptor that is readable when [`Pool::turn`] has something
//! to do, and one deadline. `mq-recv -- CMD` calls it.
//!
//! ```text
//!            start: input into a pipe, spawn, watch its exit by a pidfd
//!   Job ───▶ Running ──exit──▶ ┌──────────────┐
//!               │ timeout,     │ its stderr is│ passed on ──▶ Finished
//!               ▼ terminate    └──────────────┘
//!            Ending (TERM to the group) ──all of it gone──▶
//!               │ grace over
//!               ▼
//!            Killed (KILL to the group)
//! ```

mod child;
mod program;
mod report;
mod stopped;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::piece::Slice;
use crate::limits;
use crate::units::{Micros, Monotonic};
use child::{Child, Feed};
pub use program::{Ends, Program};
use report::Reports;

/// Events that one turn takes from the kernel.
const EVENTS: usize = 64;

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The command and its arguments; not empty.
    pub argv: Vec<OsString>,
    /// How many run at once, at most [`limits::COMMANDS_MAX`].
    pub parallel: usize,
    /// How long one may take.
    pub timeout: Option<Micros>,
}

impl Spec {
    /// Whether the command is there and may be run, so that nothing need be taken for one that is
    /// not.
    ///
    /// # Errors
    /// As [`Pool::start`].
    pub fn check(&self) -> Result<(), StartError> {
        program::find(&self.argv[0]).map(|_| ())
    }
}

/// One run of the command.
#[derive(Clone, Debug)]
pub struct Job {
    /// Comes back in [`Finished`].
    pub id: u64,
    /// What the command finds on its stdin.
    pub input: Vec<Slice>,
    /// What it finds in its environment beside mq's own. A name or a value that cannot stand in
    /// an environment (one with a NUL) is left out.
    pub env: Vec<(OsString, OsString)>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By itself, with this status.
    Exit(i32),
    /// By this signal, not one of a timeout.
    Signal(i32),
    /// It took too long and was ended.
    TimedOut,
}

/// A job that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The job's.
    pub id: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The end of what it wrote to stderr, at most [`limits::STDERR_TAIL_BYTES`].
    pub stderr_tail: Vec<u8>,
}

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such command.
    #[error("{0}: command not found")]
    NotFound(String),
    /// It is there and cannot be run.
    #[error("{command}: cannot be run: {error}")]
    NotRunnable {
        /// What was to be run.
        command: String,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// The system has no room for another process, or the like.
    #[error("cannot {doing} for a command: {error}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        #[source]
        error: io::Error,
    },
}

impl StartError {
    /// The exit status that shells give for it.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            StartError::NotFound(_) => 127,
            StartError::NotRunnable { .. } => 126,
            StartError::System { .. } => 1,
        }
    }

    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> StartError {
        move |error| StartError::System { doing, error: error.into() }
    }
}

/// Sees to it that the exits of children are told, whatever this process was started with.
///
/// # Errors
/// [`StartError::System`].
pub fn expect_children() -> Result<(), StartError> {
    program::expect_children().map_err(StartError::system("watch exits"))
}

/// What an event of the pool's descriptor is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// The child in this slot has exited.
    Exit(usize),
    /// The input of the child in this slot has room.
    Input(usize),
    /// Something came on the stderr of some child.
    Reports,
    /// Our stderr has room again.
    Sink,
}

impl Token {
    fn encode(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Token::Reports => 0,
            Token::Sink => 1,
            Token::Exit(slot) => 2 + 2 * slot as u64,
            Token::Input(slot) => 3 + 2 * slot as u64,
        })
    }

    fn decode(data: epoll::EventData) -> Token {
        match data.u64() {
            0 => Token::Reports,
            1 => Token::Sink,
            data if data % 2 == 0 => Token::Exit((data as usize - 2) / 2),
            data => Token::Input((data as usize - 3) / 2),
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Pool {
    program: Program,
    timeout: Option<Micros>,
    epoll: OwnedFd,
    reports: Reports,
    slots: Vec<Option<Child>>,
    running: usize,
    finished: VecDeque<Finished>,
    /// Whether it is looked whether commands are stopped by the terminal: until one was.
    looks: bool,
    /// The process of that one, until it was told of.
    stopped: Option<u32>,
}

impl Pool {
    /// A pool that runs nothing yet, for a process whose stderr is where the commands' goes.
    ///
    /// # Errors
    /// As [`Pool::start`].
    pub fn new(spec: Spec) -> Result<Pool, StartError> {
        let sink = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)
            .map_err(StartError::system("open a way to stderr"))?;
        Pool::reporting_to(spec, sink)
    }

    /// The same, with the commands' stderr passed on to `sink`.
    fn reporting_to(spec: Spec, sink: OwnedFd) -> Result<Pool, StartError> {
        assert!((1..=limits::COMMANDS_MAX).contains(&spec.parallel), "a number of commands");
        expect_children()?;
        let doing = "make an epoll";
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(StartError::system(doing))?;
        let reports = Reports::new(sink).map_err(StartError::system(doing))?;
        reports.watch(&epoll).map_err(StartError::system(doing))?;
        Ok(Pool {
            program: Program::new(&spec.argv)?,
            timeout: spec.timeout,
            epoll,
            reports,
            slots: (0..spec.parallel).map(|_| None).collect(),
            running: 0,
            finished: VecDeque::new(),
            looks: true,
            stopped: None,
        })
    }

    /// Whether the command is still there and may be run: one or two system calls, so that it can be
    /// asked before each start.
    ///
    /// # Errors
    /// As [`Pool::start`].
    pub fn check(&self) -> Result<(), StartError> {
        self.program.check()
    }

    /// Whether one more can be started.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.running < self.slots.len()
    }

    /// How many jobs are started and not yet told as finished.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// Starts the command for `job`. Panics when there is [no room](Pool::has_room).
    ///
    /// # Errors
    /// The command is not there (any more), cannot be run, or the system cannot start it. Then
    /// nothing of it ran.
    pub fn start(&mut self, job: Job, now: Monotonic) -> Result<(), StartError> {
        let slot = self.slots.iter().position(Option::is_none).expect("room for a command");
        let (stdin, feed) = Feed::begin(job.input).map_err(StartError::system("make a pipe"))?;
        let (report, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(StartError::system("make a pipe"))?;
        let process = self.program.spawn(job.env, Ends { stdin, stdout: None, stderr })?;
        let until = self.timeout.map(|timeout| now.plus(timeout));
        let mut child = Child::new(job.id, process, feed, report, until, now);
        self.watch(slot, &mut child).map_err(StartError::system("watch a process"))?;
        self.slots[slot] = Some(child);
        self.running += 1;
        Ok(())
    }

    /// Puts a child's descriptors under watch. If that fails, the child is dropped by the caller,
    /// and so killed.
    fn watch(&self, slot: usize, child: &mut Child) -> Result<(), Errno> {
        let readable = epoll::EventFlags::IN;
        epoll::add(&self.epoll, child.watch_exit()?, Token::Exit(slot).encode(), readable)?;
        if let Some(feed) = child.feed() {
            let writable = epoll::EventFlags::OUT;
            epoll::add(&self.epoll, feed, Token::Input(slot).encode(), writable)?;
        }
        self.reports.add(slot, child.report.as_ref().expect("not read yet"))
    }

    /// Does what is to be done now and says which jobs are over.
    pub fn turn(&mut self, now: Monotonic) -> Vec<Finished> {
        let mut events = Vec::with_capacity(EVENTS);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&at_once)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => panic!("an epoll of our own cannot be asked: {errno}"),
        }
        for event in events {
            match Token::decode(event.data) {
                Token::Exit(slot) => self.exited(slot),
                Token::Input(slot) => {
                    if let Some(child) = &mut self.slots[slot] {
                        child.feed_on();
                    }
                }
                Token::Reports => self.reports.pass_on(&self.epoll, &mut self.slots),
                Token::Sink => {
                    self.reports.unblock(&self.epoll);
                    self.reports.pass_on(&self.epoll, &mut self.slots);
                }
            }
        }
        for slot in 0..self.slots.len() {
            self.look_after(slot, now);
        }
        self.finished.drain(..).collect()
    }

    fn exited(&mut self, slot: usize) {
        let Some(child) = &mut self.slots[slot] else { return };
        if child.reap() {
            self.reports.pass_on_rest(&self.epoll, child);
        }
    }

    /// Its time limits, and whether it is over.
    fn look_after(&mut self, slot: usize, now: Monotonic) {
        let Some(child) = &mut self.slots[slot] else { return };
        child.keep_time(now);
        if self.looks && child.is_found_stopped(now) {
            (self.looks, self.stopped) = (false, Some(child.pid()));
        }
        if !child.is_over() {
            return;
        }
        let child = self.slots[slot].take().expect("it was there");
        self.running -= 1;
        self.finished.push_back(child.finish(&mut self.reports));
    }

    /// When [`Pool::turn`] has something to do even if the descriptor is not readable.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let children = || self.slots.iter().flatten();
        let looks = children().filter(|_| self.looks).filter_map(Child::next_look);
        children().filter_map(Child::deadline).chain(looks).min()
    }

    /// The process of a command that asked the terminal and was stopped for that; the first one only,
    /// once.
    pub fn take_stopped(&mut self) -> Option<u32> {
        self.stopped.take()
    }

    /// Asks all commands to end: TERM to their groups, and KILL to those that are still there
    /// after [`limits::COMMAND_GRACE`]. How they end is told as ever.
    pub fn terminate(&mut self, now: Monotonic) {
        for child in self.slots.iter_mut().flatten() {
            child.terminate(now);
        }
    }

    /// Ends all commands and their groups at once. How they ended is told as ever.
    pub fn kill(&mut self) {
        for child in self.slots.iter_mut().flatten() {
            child.kill();
        }
    }
}

impl AsFd for Pool {
    /// Readable when [`Pool::turn`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
