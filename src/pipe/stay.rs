//! A filter that stays: one process that answers line by line, for those that flush.
//!
//! Each line that it is given it answers with one line, that depends on nothing else. Whether it
//! keeps to that is seen by counting, and by the time that it takes; what it answered when it does
//! not is dropped, and another process takes its place. Called by the `run` loop.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::feed::Feed;
use super::filter::{Broken, Tail, pipe};
use super::load::DELIMITER;
use crate::client::command::{Ends, Program};
use crate::client::piece::Slice;
use crate::client::wait;
use crate::limits;

/// What came of asking.
#[derive(Debug)]
pub enum Answer {
    /// As many lines as were asked.
    Lines(Vec<u8>),
    /// More than that: it does not keep to what a filter that stays has to.
    TooMuch,
    /// More than is committed at once. It is of no use any more, and may do well with fewer lines.
    TooLarge,
    /// None that can be used: why, and what it said last on stderr.
    Failed(String, Vec<u8>),
}

/// A process with its pipes. Dropped, its group is ended.
#[derive(Debug)]
pub struct Staying {
    process: Child,
    group: Pid,
    exit: OwnedFd,
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    tail: Tail,
}

/// What to do for a filter that does not answer at once.
pub const ADVICE: &str = "with --stay the filter must answer each line with one line, at once: \
    sed -u, grep --line-buffered and jq --unbuffered do, stdbuf -oL makes others do; else leave \
    --stay away";

fn system(doing: &'static str) -> impl FnOnce(Errno) -> Broken {
    move |errno| Broken::System { doing, source: errno.into() }
}

impl Staying {
    /// Starts it.
    ///
    /// # Errors
    /// See [`Broken`].
    pub fn start(program: &mut Program, env: Vec<(OsString, OsString)>) -> Result<Staying, Broken> {
        let (stdin, input) = pipe(false).map_err(system("make a pipe for a filter"))?;
        let (output, stdout) = pipe(true).map_err(system("make a pipe for a filter"))?;
        let (report, stderr) = pipe(true).map_err(system("make a pipe for a filter"))?;
        let process = program.spawn(env, Ends { stdin, stdout: Some(stdout), stderr })?;
        let group = Pid::from_child(&process);
        let exit = rustix::process::pidfd_open(group, PidfdFlags::empty());
        Ok(Staying {
            process,
            group,
            exit: exit.map_err(system("watch a filter"))?,
            stdin: Some(input),
            stdout: output,
            stderr: Some(report),
            tail: Tail::default(),
        })
    }

    /// Gives it `lines` lines and takes as many; it may be `patience` without answering any.
    ///
    /// # Errors
    /// See [`Broken`]. After that, and after [`Answer::Failed`], it is of no use any more.
    pub fn ask(
        &mut self,
        input: Vec<Slice>,
        lines: u64,
        patience: Duration,
        others: &[BorrowedFd<'_>],
    ) -> Result<Answer, Broken> {
        let mut feed = Feed::new(input);
        let (mut output, mut answered) = (Vec::new(), 0);
        let mut fed = false;
        let mut until = Instant::now() + patience;
        loop {
            let stdin = self.stdin.as_ref().expect("it is open until the end");
            fed = fed || feed.write(stdin)?;
            let before = output.len();
            let ended = !self.take(&mut output)?;
            let came = &output[before..];
            answered += memchr::memchr_iter(DELIMITER, came).count() as u64;
            if !came.is_empty() {
                until = Instant::now() + patience;
            }
            self.hear();
            if answered > lines || (answered == lines && output.last() != Some(&DELIMITER)) {
                return Ok(Answer::TooMuch);
            }
            if output.len() > limits::PIPE_OUTPUT_BYTES_MAX {
                return Ok(Answer::TooLarge);
            }
            if answered == lines && fed {
                return Ok(Answer::Lines(output));
            }
            if ended {
                let how = self.await_end(others)?;
                return Ok(self.failed(format!("{how} after {answered} of {lines} lines")));
            }
            if Instant::now() >= until {
                let seconds = patience.as_secs_f64();
                return Ok(self.failed(format!(
                    "it answered {answered} of {lines} lines, and then nothing for {seconds} s"
                )));
            }
            let mut fds = vec![PollFd::new(&self.stdout, PollFlags::IN)];
            fds.extend(self.stderr.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            let stdin = self.stdin.as_ref().expect("it is open until the end");
            if !fed {
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
            await_any(fds, others, until)?;
        }
    }

    /// It has closed its output: how it ends, if it does.
    fn await_end(&mut self, others: &[BorrowedFd<'_>]) -> Result<String, Broken> {
        self.stdin = None;
        let until = Instant::now() + limits::COMMAND_GRACE.to_duration();
        while !self.has_ended() {
            if Instant::now() >= until {
                return Ok("it closed its output".to_owned());
            }
            await_any(vec![PollFd::new(&self.exit, PollFlags::IN)], others, until)?;
        }
        Ok(match self.process.wait() {
            Ok(status) => format!("it ended ({status})"),
            Err(error) => format!("it ended ({error})"),
        })
    }

    /// Passes on what it said on stderr.
    fn hear(&mut self) {
        if let Some(stderr) = &self.stderr
            && !self.tail.take(stderr)
        {
            self.stderr = None;
        }
    }

    /// Takes what is there; false at its end.
    fn take(&self, output: &mut Vec<u8>) -> Result<bool, Broken> {
        loop {
            output.reserve(64 << 10);
            match rustix::io::read(&self.stdout, rustix::buffer::spare_capacity(output)) {
                Ok(0) => return Ok(false),
                Ok(_) if output.len() > limits::PIPE_OUTPUT_BYTES_MAX => return Ok(true),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(errno) => return Err(system("read from a filter")(errno)),
            }
        }
    }

    /// Whether it has said something that nobody asked for.
    #[must_use]
    pub fn is_out_of_step(&mut self) -> bool {
        let mut rest = Vec::new();
        let _ = self.take(&mut rest);
        !rest.is_empty()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.exit.as_fd(), PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    fn failed(&mut self, why: String) -> Answer {
        self.hear();
        Answer::Failed(why, std::mem::take(&mut self.tail.0))
    }

    /// Lets it end by itself: its input ends, and it has a moment. False when it still said
    /// something that nobody had asked for.
    ///
    /// # Errors
    /// [`Broken::Interrupted`] when one of `others` is readable.
    pub fn end(mut self, others: &[BorrowedFd<'_>]) -> Result<bool, Broken> {
        self.await_end(others)?;
        self.hear();
        let mut rest = Vec::new();
        let _ = self.take(&mut rest);
        Ok(rest.is_empty())
    }
}

/// Waits for one of these, or for the time; one of `others` interrupts.
fn await_any<'a>(
    mut fds: Vec<PollFd<'a>>,
    others: &[BorrowedFd<'a>],
    until: Instant,
) -> Result<(), Broken> {
    let own = fds.len();
    fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
    wait::poll(&mut fds, Some(until)).map_err(|error| Broken::System {
        doing: "wait for a filter",
        source: std::io::Error::other(error.to_string()),
    })?;
    match fds[own..].iter().any(|fd| !fd.revents().is_empty()) {
        true => Err(Broken::Interrupted),
        false => Ok(()),
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            let _ = rustix::process::kill_process_group(self.group, Signal::KILL);
            let _ = self.process.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staying(words: &[&str]) -> Staying {
        let argv: Vec<OsString> = words.iter().map(OsString::from).collect();
        let mut program = Program::new(&argv).expect("it is there");
        Staying::start(&mut program, Vec::new()).expect("starts")
    }

    fn ask(staying: &mut Staying, text: &str, millis: u64) -> Answer {
        let lines = text.lines().count() as u64;
        let input = vec![Slice::whole(text.as_bytes().to_vec())];
        staying.ask(input, lines, Duration::from_millis(millis), &[]).expect("asks")
    }

    #[test]
    fn each_line_has_its_answer() {
        let mut sed = staying(&["sed", "-u", "s/^/> /"]);
        for _ in 0..3 {
            match ask(&mut sed, "a\nb\n", 10_000) {
                Answer::Lines(output) => assert_eq!(output, b"> a\n> b\n"),
                other => panic!("{other:?}"),
            }
            assert!(!sed.is_out_of_step());
        }
        assert!(sed.end(&[]).expect("waits"));
    }

    #[test]
    fn filters_that_do_not_keep_step_are_found_out() {
        let reason = |mut staying: Staying| match ask(&mut staying, "a\nb\n", 100) {
            Answer::Failed(why, _) => why,
            other => panic!("{other:?}"),
        };
        assert!(reason(staying(&["sort"])).contains("0 of 2 lines"), "it waits for the end");
        let mut double = staying(&["sed", "-u", "p"]);
        let answer = ask(&mut double, "a\nb\n", 10_000);
        assert!(
            matches!(answer, Answer::TooMuch)
                || double.is_out_of_step()
                || !double.end(&[]).expect("waits")
        );
        assert!(reason(staying(&["head", "-c0"])).contains("it ended"));
    }

    /// Once, a filter that closed its output and lived on was waited for without end, deaf to
    /// signals, while it waited for the end of its input.
    #[test]
    fn one_that_closes_its_output_is_not_waited_for() {
        for (script, how) in [
            ("exec >&-; exec cat >/dev/null", "it ended"),
            ("exec >&-; exec sleep 1000", "it closed its output"),
        ] {
            let mut filter = staying(&["sh", "-c", script]);
            match ask(&mut filter, "a\nb\n", 60_000) {
                Answer::Failed(why, _) => assert!(why.contains(how), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
