//! Running the filter: what it reads and what it writes, of one process or several at once.
//!
//! Each has its own process group; its input goes in while its output is taken, up to a bound; its
//! stderr is passed on to ours with the tail kept. A run is over when the process has exited and
//! its stdout is at its end. What this never does: know queues, or what a status means. Called by
//! the `run` loop.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::feed::{Chunk, Feed, FeedError};
use super::refill::Refill;
use crate::client::command::{Ends, Program, StartError};
use crate::client::delivery::DeliveryError;
use crate::client::wait;
use crate::limits;

/// Room that is made for output at least before it is read.
const READ_BYTES: usize = 64 << 10;

/// What is read of a stderr at once.
const STDERR_READ_BYTES: usize = 4 << 10;

/// How long output may wait while input is waited to be taken.
const HELD_OFF: Duration = Duration::from_millis(1);

/// Input up to this size is in the pipe before the filter starts.
const FED_FIRST_BYTES: usize = 64 << 10;

/// The bytes of the pipes to and from a filter, if the system grants it.
const FILTER_PIPE_BYTES: usize = 1 << 20;

/// What a filter reads.
#[derive(Debug)]
pub enum Stdin {
    /// These bytes, by a pipe.
    Fed(Vec<Chunk>),
    /// A file, from where it stands.
    File(OwnedFd),
}

/// One run.
#[derive(Debug)]
pub struct Job {
    /// What it finds on its stdin.
    pub input: Stdin,
    /// What it finds in its environment.
    pub env: Vec<(OsString, OsString)>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By itself, with this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It took too long.
    TimedOut,
    /// It ended in time, and something that it started did not let go of its output.
    LeftBehind,
    /// It wrote more than is committed at once.
    TooMuch,
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            How::Exit(status) => write!(f, "exit status {status}"),
            How::Signal(signal) => write!(f, "ended by signal {signal}"),
            How::TimedOut => f.write_str("it took too long"),
            How::LeftBehind => f.write_str(
                "it ended, but something that it left running still holds its standard output",
            ),
            How::TooMuch => write!(
                f,
                "it wrote over {} MiB, the most that is committed at once",
                limits::MESSAGE_BYTES_MAX >> 20
            ),
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub how: How,
    /// All of its output, if it ended by itself.
    pub output: Vec<u8>,
    /// The end of what it wrote to stderr.
    pub stderr: Vec<u8>,
}

/// Why runs were broken off.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The caller's descriptor became ready: something else has to be looked at.
    #[error("interrupted")]
    Interrupted,
    /// The filter could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// What it was to be given is damaged.
    #[error(transparent)]
    Damaged(#[from] DeliveryError),
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
}

impl From<FeedError> for Broken {
    fn from(error: FeedError) -> Broken {
        match error {
            FeedError::Damaged(error) => Broken::Damaged(error),
            FeedError::Write(errno) => system("write to a filter")(errno),
        }
    }
}

fn system(doing: &'static str) -> impl FnOnce(Errno) -> Broken {
    move |errno| Broken::System { doing, source: errno.into() }
}

/// A pipe: where to read and where to write; our end does not block.
pub(super) fn pipe(ours_reads: bool) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // A smaller one does as well, with more turns.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, FILTER_PIPE_BYTES);
    let ours = if ours_reads { &read } else { &write };
    rustix::fs::fcntl_setfl(ours, rustix::fs::OFlags::NONBLOCK)?;
    Ok((read, write))
}

/// Bytes that a pipe holds.
fn room_of(pipe: &OwnedFd) -> usize {
    rustix::pipe::fcntl_getpipe_size(pipe).unwrap_or(0)
}

/// The end of what came on a stderr.
#[derive(Debug, Default)]
pub(super) struct Tail(pub Vec<u8>);

impl Tail {
    /// Passes on what is there to our own stderr, at most as much as a pipe holds, so that one that
    /// never stops talking holds up nothing; false at the end.
    pub fn take(&mut self, from: &OwnedFd) -> bool {
        let mut buffer = [0u8; STDERR_READ_BYTES];
        for _ in 0..FILTER_PIPE_BYTES / STDERR_READ_BYTES {
            match rustix::io::read(from, &mut buffer) {
                Ok(0) => return false,
                Ok(read) => {
                    // A stderr that is closed changes nothing.
                    let _ = std::io::stderr().write_all(&buffer[..read]);
                    self.0.extend_from_slice(&buffer[..read]);
                    let over = self.0.len().saturating_sub(limits::STDERR_TAIL_BYTES);
                    self.0.drain(..over);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

/// Takes output that is there; false at the end.
fn take_output(from: &OwnedFd, into: &mut Vec<u8>) -> Result<bool, Errno> {
    while into.len() <= limits::PIPE_OUTPUT_BYTES_MAX {
        if into.capacity() - into.len() < READ_BYTES {
            into.reserve(READ_BYTES.max(into.capacity()));
        }
        match rustix::io::read(from, rustix::buffer::spare_capacity(into)) {
            Ok(0) => return Ok(false),
            // Seldom more than that: the next poll tells.
            Ok(read) if read < READ_BYTES / 2 => return Ok(true),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
    Ok(true)
}

/// A process with its pipes. Dropped before its end, its group is killed.
#[derive(Debug)]
struct Run {
    process: std::process::Child,
    group: Pid,
    exit: OwnedFd,
    status: Option<ExitStatus>,
    feed: Feed,
    stdin: Option<OwnedFd>,
    refill: Refill,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    output: Vec<u8>,
    tail: Tail,
    /// Why its group was told to end.
    ended_for: Option<How>,
    /// When it is killed then, if it has not ended.
    kill_at: Option<Instant>,
    ready: Ready,
    /// Its output is not waited for, but looked at soon.
    holds_off: bool,
}

/// What of a run is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    Stdin,
    Stdout,
    Stderr,
    Exit,
}

/// What may be done without waiting.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    exit: bool,
}

impl Run {
    fn start(program: &mut Program, job: Job) -> Result<Run, Broken> {
        let (output, stdout) = pipe(true).map_err(system("make a pipe for a filter"))?;
        let (report, stderr) = pipe(true).map_err(system("make a pipe for a filter"))?;
        let (stdin, input, feed) = match job.input {
            Stdin::File(file) => (file, None, Feed::new(Vec::<Chunk>::new())),
            Stdin::Fed(chunks) => {
                let (stdin, input) = pipe(false).map_err(system("make a pipe for a filter"))?;
                let mut feed = Feed::new(chunks);
                // A small batch goes in before it runs, and costs no turn; more than that goes in
                // while it starts.
                let all_in = feed.left() <= FED_FIRST_BYTES && feed.write(&input)?;
                (stdin, (!all_in).then_some(input), feed)
            }
        };
        let ends = Ends { stdin, stdout: Some(stdout), stderr };
        let process = program.spawn(job.env, ends)?;
        let group = Pid::from_child(&process);
        let exit = rustix::process::pidfd_open(group, PidfdFlags::empty());
        let mut run = Run {
            process,
            group,
            exit: exit.map_err(system("watch a filter"))?,
            status: None,
            feed,
            refill: Refill::new(input.as_ref().map_or(0, room_of)),
            stdin: input,
            stdout: Some(output),
            stderr: Some(report),
            output: Vec::new(),
            tail: Tail::default(),
            ended_for: None,
            kill_at: None,
            ready: Ready { stdin: true, stdout: true, stderr: true, exit: true },
            holds_off: false,
        };
        run.output.reserve(READ_BYTES);
        Ok(run)
    }

    fn is_over(&self) -> bool {
        self.status.is_some() && (self.stdout.is_none() || self.ended_for.is_some())
    }

    fn signal(&self, signal: Signal) {
        // It fails when nobody is left.
        let _ = rustix::process::kill_process_group(self.group, signal);
    }

    fn end(&mut self, why: How) {
        if self.ended_for.is_none() {
            self.ended_for = Some(why);
            self.kill_at = Instant::now().checked_add(limits::COMMAND_GRACE.to_duration());
            self.signal(Signal::TERM);
            self.signal(Signal::CONT);
        }
    }

    /// What took too long: the process, or what it left behind.
    fn too_long(&self) -> How {
        if self.status.is_some() { How::LeftBehind } else { How::TimedOut }
    }

    /// Nothing can become of what it writes.
    fn end_output(&mut self) {
        self.output = Vec::new();
        self.stdout = None;
        self.end(How::TooMuch);
    }

    /// Kills it when it was told to end long enough ago.
    fn insist(&mut self, now: Instant) {
        if self.status.is_none() && self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.signal(Signal::KILL);
        }
    }

    /// Does what there is to be done now.
    fn turn(&mut self, now: Instant) -> Result<(), Broken> {
        let Ready { mut stdin, mut stdout, stderr, exit } = std::mem::take(&mut self.ready);
        stdout |= std::mem::take(&mut self.holds_off);
        stdin |= self.refill.is_due(now);
        if let Some(stdin) = self.stdin.as_ref().filter(|_| stdin) {
            let before = self.feed.left();
            if self.feed.write(stdin)? {
                self.stdin = None;
            } else {
                self.refill.filled(now, before - self.feed.left());
            }
        }
        if let Some(stdout) = self.stdout.as_ref().filter(|_| stdout) {
            let before = self.output.len();
            if !take_output(stdout, &mut self.output).map_err(system("read from a filter"))? {
                self.stdout = None;
            }
            // It is fed, and writes a little each time: that can wait until it is to be fed again.
            let lets_alone = self.refill.at().is_some() || self.output.len() > before;
            self.holds_off = self.stdin.is_some() && self.stdout.is_some() && lets_alone;
        }
        if self.output.len() > limits::PIPE_OUTPUT_BYTES_MAX {
            self.end_output();
        }
        if let Some(stderr) = self.stderr.as_ref().filter(|_| stderr)
            && !self.tail.take(stderr)
        {
            self.stderr = None;
        }
        if self.status.is_none() && exit {
            self.status = match self.process.try_wait() {
                Ok(status) => status,
                // Somebody else took its status. What is not known is no success.
                Err(_) => Some(ExitStatus::from_raw(1 << 8)),
            };
            if self.status.is_some() {
                self.stdin = None;
                self.holds_off = false;
                if let Some(stderr) = &self.stderr {
                    self.tail.take(stderr);
                }
            }
        }
        Ok(())
    }

    /// What is waited for.
    fn watch(&self) -> impl Iterator<Item = (Watched, BorrowedFd<'_>)> {
        let runs = self.status.is_none();
        let stdin = self.stdin.as_ref().filter(|_| self.refill.at().is_none());
        let stdout = self.stdout.as_ref().filter(|_| !self.holds_off);
        let all = [
            (Watched::Stdin, stdin),
            (Watched::Stdout, stdout),
            (Watched::Stderr, self.stderr.as_ref().filter(|_| runs)),
            (Watched::Exit, Some(&self.exit).filter(|_| runs)),
        ];
        all.into_iter().filter_map(|(what, fd)| Some((what, fd?.as_fd())))
    }

    /// One of these is ready.
    fn polled(&mut self, what: Watched) {
        let ready = &mut self.ready;
        match what {
            Watched::Stdin => ready.stdin = true,
            Watched::Stdout => ready.stdout = true,
            Watched::Stderr => ready.stderr = true,
            Watched::Exit => ready.exit = true,
        }
    }

    fn finish(mut self) -> Finished {
        let status = self.status.expect("it is over");
        let how = match (self.ended_for, status.signal()) {
            (Some(why), _) => why,
            (None, Some(signal)) => How::Signal(signal),
            (None, None) => How::Exit(status.code().unwrap_or(1)),
        };
        Finished {
            how,
            output: std::mem::take(&mut self.output),
            stderr: std::mem::take(&mut self.tail.0),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.signal(Signal::KILL);
            let _ = self.process.wait();
        } else if self.ended_for.is_some() {
            self.signal(Signal::KILL);
        }
    }
}

/// A turn of each.
fn turn(runs: &mut [Run], now: Instant) -> Result<(), Broken> {
    let mut bytes: usize = runs.iter().map(|run| run.output.len()).sum();
    for run in runs {
        bytes -= run.output.len();
        run.turn(now)?;
        bytes += run.output.len();
        // All of it is to be committed at once, so that more is of no use to anyone; not of one
        // either that has just ended.
        if bytes > limits::PIPE_OUTPUT_BYTES_MAX && run.ended_for.is_none() {
            bytes -= run.output.len();
            run.end_output();
        }
    }
    Ok(())
}

/// Runs the filter for all jobs at once, each at most `timeout` long, until all are over.
///
/// # Errors
/// [`Broken`]; every process is gone then. [`Broken::Interrupted`] when one of `others` is readable.
pub fn run(
    program: &mut Program,
    jobs: Vec<Job>,
    timeout: Option<Duration>,
    others: &[BorrowedFd<'_>],
) -> Result<Vec<Finished>, Broken> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut runs = Vec::with_capacity(jobs.len());
    for job in jobs {
        runs.push(Run::start(program, job)?);
    }
    loop {
        turn(&mut runs, Instant::now())?;
        if runs.iter().all(Run::is_over) {
            return Ok(runs.into_iter().map(Run::finish).collect());
        }
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            runs.iter_mut().filter(|run| !run.is_over()).for_each(|run| run.end(run.too_long()));
            if runs.iter().all(Run::is_over) {
                continue;
            }
        }
        runs.iter_mut().for_each(|run| run.insist(now));
        let mut fds: Vec<PollFd<'_>> =
            others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let mut watched = Vec::with_capacity(4 * runs.len());
        for (n, run) in runs.iter().enumerate() {
            for (what, fd) in run.watch() {
                let writes = what == Watched::Stdin;
                let flags = if writes { PollFlags::OUT } else { PollFlags::IN };
                fds.push(PollFd::from_borrowed_fd(fd, flags));
                watched.push((n, what));
            }
        }
        let kills = runs.iter().filter(|run| run.status.is_none()).filter_map(|run| run.kill_at);
        let soon = runs.iter().any(|run| run.holds_off).then(|| now + HELD_OFF);
        let fed = runs.iter().filter(|run| run.stdin.is_some()).filter_map(|run| run.refill.at());
        let until = kills.chain(deadline.filter(|at| *at > now)).chain(soon).chain(fed).min();
        wait::poll(&mut fds, until).map_err(|error| Broken::System {
            doing: "wait for a filter",
            source: std::io::Error::other(error.to_string()),
        })?;
        let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let (others, of_runs) = events.split_at(others.len());
        if others.iter().any(|events| !events.is_empty()) {
            return Err(Broken::Interrupted);
        }
        for ((n, what), events) in watched.into_iter().zip(of_runs) {
            if !events.is_empty() {
                runs[n].polled(what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::piece::Slice;

    fn program(words: &[&str]) -> Program {
        let argv: Vec<OsString> = words.iter().map(OsString::from).collect();
        crate::client::command::expect_children().expect("children are told of");
        Program::new(&argv).expect("it is there")
    }

    fn job(input: &[u8]) -> Job {
        let input = Slice::whole(input.to_vec());
        Job { input: Stdin::Fed(vec![input.into()]), env: Vec::new() }
    }

    #[test]
    fn a_large_input_goes_through_whole() {
        let input: Vec<u8> = (0..3_000_000u32).map(|n| b'a' + (n % 26) as u8).collect();
        let jobs = vec![job(&input), job(b"x")];
        let done = run(&mut program(&["cat"]), jobs, None, &[]).expect("runs");
        assert_eq!((done[0].how, done[1].how), (How::Exit(0), How::Exit(0)));
        assert!(done[0].output == input && done[1].output == b"x");
    }

    #[test]
    fn a_filter_need_not_read() {
        let input = vec![b'x'; 4 << 20];
        let mut early = program(&["sh", "-c", "echo early; echo why >&2; exit 3"]);
        let done = run(&mut early, vec![job(&input)], None, &[]).expect("runs");
        assert_eq!((done[0].how, &done[0].output[..]), (How::Exit(3), &b"early\n"[..]));
        assert_eq!(done[0].stderr, b"why\n");
    }

    #[test]
    fn one_that_takes_too_long_is_ended_with_all_that_it_started() {
        let mut slow = program(&["sh", "-c", "sleep 100 & sleep 100"]);
        let timeout = Some(Duration::from_millis(50));
        let done = run(&mut slow, vec![job(b"")], timeout, &[]).expect("runs");
        assert_eq!(done[0].how, How::TimedOut);
    }

    /// Once, the output of a filter that had ended was waited for without end, time limit or not,
    /// when somebody in another session held it.
    #[test]
    fn an_output_that_is_held_open_is_waited_for_no_longer_than_allowed() {
        let mut leaves = program(&["sh", "-c", "setsid sleep 30 & echo early"]);
        let timeout = Some(Duration::from_millis(300));
        let done = run(&mut leaves, vec![job(b"")], timeout, &[]).expect("runs");
        assert_eq!(done[0].how, How::LeftBehind);
    }

    /// Once, one run that was ended for its output had the others go without a time limit, for
    /// ever.
    #[test]
    fn each_has_its_time_whatever_became_of_others() {
        let script = "read what; case $what in yes) exec yes;; *) trap '' TERM; sleep 1000;; esac";
        let mut filters = program(&["sh", "-c", script]);
        let jobs = vec![job(b"yes\n"), job(b"sleep\n")];
        let timeout = Some(Duration::from_secs(3));
        let done = run(&mut filters, jobs, timeout, &[]).expect("runs");
        assert!(matches!(done[0].how, How::TooMuch | How::TimedOut), "{:?}", done[0].how);
        assert_eq!(done[1].how, How::TimedOut);
    }

    /// Once, a filter that never stopped writing to stderr was listened to for ever: neither its
    /// time limit nor a signal came through.
    #[test]
    fn one_that_talks_without_end_is_ended() {
        let mut talks = program(&["sh", "-c", "while :; do echo talk >&2; done"]);
        let timeout = Some(Duration::from_millis(200));
        let done = run(&mut talks, vec![job(b"")], timeout, &[]).expect("runs");
        assert_eq!(done[0].how, How::TimedOut);
        let (from, to) = pipe(true).expect("a pipe");
        let full = vec![b'x'; FILTER_PIPE_BYTES];
        let filler = std::thread::spawn(move || {
            // Until the reading end is gone.
            while rustix::io::write(&to, &full).is_ok() {}
        });
        let mut tail = Tail::default();
        for _ in 0..3 {
            assert!(tail.take(&from), "it comes back, though more is there");
        }
        drop(from);
        filler.join().expect("it has ended");
    }

    /// Once, each of the filters of `-P` could write as much as is committed of all of them
    /// together, and all of it was held in memory.
    #[test]
    fn the_outputs_of_all_together_are_bounded() {
        let much = format!("exec head -c {} /dev/zero", limits::MESSAGE_BYTES_MAX / 2 + 1);
        let mut filters = program(&["sh", "-c", &much]);
        let jobs = vec![job(b""), job(b"")];
        let timeout = Some(Duration::from_secs(60));
        let done = run(&mut filters, jobs, timeout, &[]).expect("runs");
        assert!(done.iter().any(|done| done.how == How::TooMuch));
    }

    #[test]
    fn one_that_writes_without_end_is_ended() {
        let done = run(&mut program(&["yes"]), vec![job(b"")], None, &[]).expect("runs");
        assert_eq!(done[0].how, How::TooMuch);
    }
}
