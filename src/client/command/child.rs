//! One running command: its input, its end, its time limits.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::report::{Reports, Tail};
use super::stopped::{FIRST_LOOK, is_stopped_by_terminal};
use super::{Finished, Outcome};
use crate::client::piece::Slice;
use crate::limits;
use crate::units::{Micros, Monotonic};

/// So much fits into any pipe that was just made, so that writing it does not block.
const PIPE_BYTES_SURE: usize = 4096;

/// A pipe has so many bytes unless more is asked for.
const PIPE_BYTES_USUAL: usize = 64 << 10;

/// How often a group that was told to end is looked at once its leader is gone: nothing tells
/// when the last of the others goes.
const LOOK_EVERY: Micros = Micros::from_millis(20);

/// The part of a command's input that its pipe had no room for yet.
#[derive(Debug)]
pub(super) struct Feed {
    pipe: OwnedFd,
    chunks: VecDeque<Slice>,
}

impl Feed {
    /// Puts the input into a pipe before anyone reads it: its reading end, and what did not fit.
    pub(super) fn begin(input: Vec<Slice>) -> Result<(OwnedFd, Option<Feed>), Errno> {
        let (stdin, pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let bytes: usize = input.iter().map(|chunk| chunk.bytes().len()).sum();
        if bytes > PIPE_BYTES_SURE {
            rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK)?;
        }
        if bytes > PIPE_BYTES_USUAL {
            // A smaller pipe does as well, with more turns.
            let size = bytes.min(limits::PIPE_BYTES);
            let _: Result<usize, Errno> = rustix::pipe::fcntl_setpipe_size(&pipe, size);
        }
        let chunks = input.into_iter().filter(|chunk| !chunk.bytes().is_empty()).collect();
        let mut feed = Feed { pipe, chunks };
        Ok(if feed.write()? { (stdin, None) } else { (stdin, Some(feed)) })
    }

    /// Writes what there is room for; `true` when there is no more to do.
    fn write(&mut self) -> Result<bool, Errno> {
        while !self.chunks.is_empty() {
            let slices: Vec<IoSlice<'_>> = self
                .chunks
                .iter()
                .take(limits::SLICES_PER_WRITE_MAX)
                .map(|chunk| IoSlice::new(chunk.bytes()))
                .collect();
            match rustix::io::writev(&self.pipe, &slices) {
                Ok(written) => self.advance(written),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                // It does not read its input: that is its own affair.
                Err(Errno::PIPE) => return Ok(true),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let first = self.chunks.pop_front().expect("no more is written than is there");
            let length = first.bytes().len();
            if length > written {
                self.chunks.push_front(first.part(written..length));
                return;
            }
            written -= length;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until then, if it has a time limit.
    Running(Option<Monotonic>),
    /// Its group was told to end; `kill_at` it is killed. With the leader gone the rest is looked
    /// for at `look_at`.
    Ending { kill_at: Monotonic, look_at: Monotonic },
    /// Its group was killed; nothing of it is waited for but its leader.
    Killed,
}

/// A started command. When it is dropped before its end was seen, its group is killed: a pool
/// leaves nothing behind.
#[derive(Debug)]
pub(super) struct Child {
    id: u64,
    process: std::process::Child,
    /// The process group, whose number is its leader's.
    group: Pid,
    /// Readable once it has exited; closed when that was seen.
    exit: Option<OwnedFd>,
    feed: Option<Feed>,
    /// The reading end of its stderr, until all is passed on that is waited for.
    pub(super) report: Option<OwnedFd>,
    pub(super) tail: Tail,
    status: Option<ExitStatus>,
    /// Bytes that were in its stderr when it exited and are to be passed on.
    pub(super) rest: usize,
    phase: Phase,
    is_timed_out: bool,
    /// When it was started, and when it is looked at next whether it is stopped.
    looks: (Monotonic, Monotonic),
}

impl Child {
    pub(super) fn new(
        id: u64,
        process: std::process::Child,
        feed: Option<Feed>,
        report: OwnedFd,
        until: Option<Monotonic>,
        now: Monotonic,
    ) -> Child {
        Child {
            id,
            group: Pid::from_child(&process),
            process,
            exit: None,
            feed,
            report: Some(report),
            tail: Tail::default(),
            status: None,
            rest: 0,
            phase: Phase::Running(until),
            is_timed_out: false,
            looks: (now, now.plus(FIRST_LOOK)),
        }
    }

    /// Opens what is readable once it has exited.
    pub(super) fn watch_exit(&mut self) -> Result<BorrowedFd<'_>, Errno> {
        let exit = rustix::process::pidfd_open(self.group, PidfdFlags::empty())?;
        let exit: &OwnedFd = self.exit.insert(exit);
        Ok(exit.as_fd())
    }

    /// What is writable when there is room for more input; nothing once all is in.
    pub(super) fn feed(&self) -> Option<BorrowedFd<'_>> {
        self.feed.as_ref().map(|feed| feed.pipe.as_fd())
    }

    /// Writes more of the input.
    pub(super) fn feed_on(&mut self) {
        match self.feed.as_mut().map(Feed::write) {
            None | Some(Ok(false)) => return,
            Some(Ok(true)) => {}
            // It must not take what it got for all there is, and succeed.
            Some(Err(_)) => self.kill(),
        }
        self.feed = None;
    }

    /// Takes its status, if it has exited.
    pub(super) fn reap(&mut self) -> bool {
        self.status = match self.process.try_wait() {
            Ok(None) => return false,
            Ok(status) => status,
            // Somebody else took its status. What is not known is no success.
            Err(_) => Some(ExitStatus::from_raw(1 << 8)),
        };
        self.exit = None;
        self.feed = None;
        true
    }

    /// Whether it has exited.
    pub(super) fn has_exited(&self) -> bool {
        self.status.is_some()
    }

    /// Does what its time limits ask for.
    pub(super) fn keep_time(&mut self, now: Monotonic) {
        match self.phase {
            Phase::Running(Some(until)) if until <= now && !self.has_exited() => {
                self.is_timed_out = true;
                self.terminate(now);
            }
            Phase::Ending { kill_at, .. } if kill_at <= now => self.kill(),
            Phase::Ending { kill_at, look_at } if look_at <= now && self.has_exited() => {
                self.phase = if self.is_group_gone() {
                    Phase::Killed
                } else {
                    Phase::Ending { kill_at, look_at: now.plus(LOOK_EVERY) }
                };
            }
            _ => {}
        }
    }

    /// Whether nothing is left of its group; only the leader's end makes that worth asking. The
    /// number cannot belong to others while one member lives, and in the short time between two
    /// looks it is not given anew.
    fn is_group_gone(&self) -> bool {
        rustix::process::test_kill_process_group(self.group).is_err()
    }

    /// Its process number.
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it is stopped because it asked the terminal, if it is time to look.
    pub(super) fn is_found_stopped(&mut self, now: Monotonic) -> bool {
        let (began, next) = self.looks;
        if now < next || self.has_exited() {
            return false;
        }
        self.looks.1 = now.plus(now.since(began));
        is_stopped_by_terminal(self.group)
    }

    /// When that is to be asked again.
    pub(super) fn next_look(&self) -> Option<Monotonic> {
        let is_running = matches!(self.phase, Phase::Running(_)) && !self.has_exited();
        is_running.then_some(self.looks.1)
    }

    /// Asks the group to end.
    pub(super) fn terminate(&mut self, now: Monotonic) {
        if matches!(self.phase, Phase::Running(_)) && !self.has_exited() {
            self.signal(Signal::TERM);
            // A group that is stopped does not see the signal until it goes on.
            self.signal(Signal::CONT);
            let kill_at = now.plus(limits::COMMAND_GRACE);
            self.phase = Phase::Ending { kill_at, look_at: now };
        }
    }

    /// Ends the group.
    pub(super) fn kill(&mut self) {
        // With the leader reaped, the number is sure only while the group is known to be there.
        if !self.has_exited() || matches!(self.phase, Phase::Ending { .. }) {
            self.signal(Signal::KILL);
        }
        self.phase = Phase::Killed;
    }

    fn signal(&self, signal: Signal) {
        // It fails when nobody is left.
        let _: Result<(), Errno> = rustix::process::kill_process_group(self.group, signal);
    }

    /// Whether nothing of it is waited for any more.
    pub(super) fn is_over(&self) -> bool {
        match self.phase {
            _ if !self.has_exited() => false,
            Phase::Running(_) => self.rest == 0,
            Phase::Ending { .. } => false,
            // Who is killed does not wait until somebody reads our stderr.
            Phase::Killed => true,
        }
    }

    /// When it asks for a turn even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Monotonic> {
        match self.phase {
            Phase::Running(until) if !self.has_exited() => until,
            Phase::Ending { kill_at, look_at } if self.has_exited() => Some(kill_at.min(look_at)),
            Phase::Ending { kill_at, .. } => Some(kill_at),
            Phase::Killed if self.has_exited() => Some(Monotonic(0)),
            Phase::Running(_) | Phase::Killed => None,
        }
    }

    /// How it ended. A stderr that others still hold is left to `reports`.
    pub(super) fn finish(mut self, reports: &mut Reports) -> Finished {
        let status = self.status.expect("it is over");
        if let Some(report) = self.report.take() {
            reports.linger(report);
        }
        let outcome = if self.is_timed_out {
            Outcome::TimedOut
        } else if let Some(signal) = status.signal() {
            Outcome::Signal(signal)
        } else {
            Outcome::Exit(status.code().unwrap_or(1))
        };
        Finished { id: self.id, outcome, stderr_tail: std::mem::take(&mut self.tail).into_bytes() }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.has_exited() {
            self.signal(Signal::KILL);
            let _: std::io::Result<ExitStatus> = self.process.wait();
        }
    }
}
