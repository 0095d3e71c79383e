//! Windows that are closed: each through a filter of its own, and what comes of all of them into one
//! commit.
//!
//! A window is tried as a whole, again and again after pauses; in the end the pipe stops, or gives up
//! all its messages. Called by `windowed`, which has the open ones.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::time::Instant;

use xxhash_rust::xxh3::xxh3_64;

use super::filter::{self, Finished, Job, Stdin};
use super::mark::WindowMark;
use super::order::Origin;
use super::report::{Host, Note, PipeError};
use super::run::{Failure, Pipe, Session};
use super::source::{Letter, Word};
use super::trial::Ran;
use super::window::{Closed, Extent};
use super::windowed::CLOCK_PAUSE;
use crate::client::envelope::TimeText;
use crate::limits;
use crate::units::{Micros, Offset, OffsetRange, WallTime};

/// A window on its way through its filter.
struct Run {
    closed: Closed,
    part: usize,
    output: Option<Vec<u8>>,
}

impl<H: Host> Pipe<'_, H> {
    /// Runs the filter on each window that is closed, and commits what comes of all of them.
    pub(super) fn run_closed(&mut self, session: &mut Session) -> Result<(), PipeError> {
        let mut outputs = Vec::new();
        let mut bytes = 0;
        let mut waiting = None;
        let mut any = false;
        loop {
            let wave = self.next_wave(session, &mut waiting);
            if wave.is_empty() {
                break;
            }
            any = true;
            for output in self.run_wave(session, wave)? {
                bytes += output.len();
                outputs.push(output);
            }
            if bytes > limits::PIPE_OUTPUT_BYTES_MAX {
                return Err(PipeError::WindowsTooMuch);
            }
        }
        if any { self.commit_windows(session, outputs) } else { Ok(()) }
    }

    /// The next windows that may be worked on at once, in order: as many as there are filters, and
    /// with state only one for each part.
    fn next_wave(&self, session: &mut Session, waiting: &mut Option<Closed>) -> Vec<Run> {
        let has_state = session.state.is_some();
        let parallel = self.order.parallel;
        let mut wave: Vec<Run> = Vec::new();
        while wave.len() < parallel {
            let next = waiting.take().or_else(|| session.windowing().windows.next_closed());
            let Some(closed) = next else { break };
            let hash = xxh3_64(closed.key.bytes().unwrap_or_default());
            let part = if has_state { (hash % parallel as u64) as usize } else { wave.len() };
            if wave.iter().any(|run| run.part == part) {
                *waiting = Some(closed);
                break;
            }
            wave.push(Run { closed, part, output: None });
        }
        wave
    }

    /// The outputs of some windows, however often they have to be tried.
    fn run_wave(
        &mut self,
        session: &mut Session,
        mut wave: Vec<Run>,
    ) -> Result<Vec<Vec<u8>>, PipeError> {
        let mut attempts = 0;
        loop {
            let failed = self.try_wave(session, &mut wave)?;
            let Some(first) = failed.first().map(|(n, _)| range_of(&wave[*n].closed)) else {
                break;
            };
            attempts += 1;
            let is_over = session.limit.is_some_and(|limit| attempts >= limit);
            for (n, ran) in &failed {
                if !is_over && *ran != Ran::Never {
                    continue;
                }
                if !self.order.buries || self.order.source == Origin::Stdin {
                    let reason = self.failure.reason.clone();
                    self.drain(session, None)?;
                    let messages = range_of(&wave[*n].closed);
                    return Err(PipeError::WindowGaveUp { messages, reason });
                }
                let run = &mut wave[*n];
                run.output = Some(Vec::new());
                self.bury_window(session, &run.closed, attempts)?;
            }
            if wave.iter().all(|run| run.output.is_some()) {
                break;
            }
            let pause = self.order.backoff.after(attempts).to_duration();
            let count = wave.iter().filter(|run| run.output.is_none()).count() as u64;
            let reason = self.failure.reason.as_str();
            self.host.note(Note::WindowsFailed { first, count, reason, pause });
            if self.pause(pause, Some(session))? {
                return Err(PipeError::Interrupted);
            }
        }
        Ok(wave.into_iter().map(|run| run.output.expect("it is over")).collect())
    }

    /// Runs the filters of those that have no output yet. Which failed, and how.
    fn try_wave(
        &mut self,
        session: &mut Session,
        wave: &mut [Run],
    ) -> Result<Vec<(usize, Ran)>, PipeError> {
        let began = Instant::now();
        let mut jobs = Vec::new();
        let mut numbers = Vec::new();
        for (n, run) in wave.iter().enumerate().filter(|(_, run)| run.output.is_none()) {
            let stdin = session.windowing().spool.gather(&run.closed.members)?;
            let mut env = self.window_facts(run);
            if let Some(state) = &mut session.state {
                env.push(("MQ_STATE".into(), state.begin(run.part)?.into()));
            }
            jobs.push(Job { input: Stdin::File(stdin), env });
            numbers.push(n);
        }
        let timeout = self.order.timeout.map(Micros::to_duration);
        let over = session.ended();
        let others = [self.host.as_fd(), over.as_fd()];
        let finished = filter::run(&mut self.program, jobs, timeout, &others)?;
        let mut failed = Vec::new();
        for (n, Finished { how, output, stderr }) in numbers.into_iter().zip(finished) {
            let ran = self.verdict(how)?;
            let run = &mut wave[n];
            match (ran, &mut session.state) {
                (Ran::Well, Some(state)) => state.keep(run.part)?,
                (_, Some(state)) => state.abandon(run.part)?,
                (_, None) => {}
            }
            match ran {
                Ran::Well => run.output = Some(output),
                Ran::TooMuch => return Err(PipeError::WindowsTooMuch),
                Ran::Failed | Ran::Never => {
                    self.failure = Failure { reason: how.to_string(), stderr };
                    failed.push((n, ran));
                }
            }
        }
        let figures = &mut session.mark.figures;
        figures.filter_us.0 += u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        figures.retries += failed.len() as u64;
        Ok(failed)
    }

    fn window_facts(&self, run: &Run) -> Vec<(OsString, OsString)> {
        let Run { closed, part, .. } = run;
        let mut env = self.facts(None, *part);
        let number = |number: u64| OsString::from(number.to_string());
        let (start, end) = match closed.extent {
            Extent::Times { start, end } => (time_text(start), time_text(end)),
            Extent::Offsets { first, last } => (number(first.0), number(last.0)),
        };
        env.push(("MQ_WINDOW_START".into(), start));
        env.push(("MQ_WINDOW_END".into(), end));
        if let Some(key) = closed.key.bytes() {
            env.push(("MQ_KEY".into(), OsString::from_vec(key.to_vec())));
        }
        env.push(("MQ_OFFSET".into(), number(closed.members.first().0)));
        env.push(("MQ_COUNT".into(), number(closed.members.count())));
        env
    }

    /// All messages of a window become dead letters. They are on their way before the commit that
    /// passes over them, and have arrived; so none is lost between the two.
    fn bury_window(
        &mut self,
        session: &mut Session,
        closed: &Closed,
        attempts: u32,
    ) -> Result<(), PipeError> {
        let Failure { reason, stderr } = self.failure.clone();
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let count = closed.members.count();
        self.host.note(Note::DeadWindow { messages: range_of(closed), count, reason: &reason });
        let messages = closed.members.runs().iter().map(|run| run.offsets).collect();
        let letter = Letter { messages, attempts, reason, stderr };
        session.source.words().push(Word::Bury(letter), 0);
        session.mark.figures.dead += count;
        let mut clock = self.ask_clock(session)?;
        if clock.dying.0 == 0 {
            return Ok(());
        }
        let mut connection = self.dial()?;
        while clock.dying.0 > 0 {
            if self.pause(CLOCK_PAUSE, Some(session))? {
                return Err(PipeError::Interrupted);
            }
            clock = self.clock(&mut connection)?;
        }
        Ok(())
    }

    pub(super) fn commit_windows(
        &mut self,
        session: &mut Session,
        outputs: Vec<Vec<u8>>,
    ) -> Result<(), PipeError> {
        let next = session.mark.next;
        let windowing = session.windowing();
        let checkpoint = windowing.windows.checkpoint(next);
        let floor = checkpoint.floor;
        let open = windowing.windows.figures().windows as u64;
        let mark = WindowMark { spec: windowing.text.clone(), at: checkpoint };
        let read = std::mem::take(&mut windowing.unsaved);
        windowing.floor = floor;
        windowing.give_back(floor);
        session.mark.window = Some(mark);
        session.mark.figures.open_windows = open;
        if let Some(late) = &mut session.windowing().late {
            late.commit(next, &[self.host.as_fd()])?;
        }
        self.commit_at(session, (next, floor), read, outputs)
    }
}

fn range_of(closed: &Closed) -> OffsetRange {
    OffsetRange::new(closed.members.first(), Offset(closed.members.last().0 + 1))
}

/// A time for people and programs, RFC 3339 in UTC.
fn time_text(micros: i64) -> OsString {
    if let Ok(micros) = u64::try_from(micros) {
        let mut text = Vec::new();
        TimeText::default().push(WallTime(micros), &mut text);
        return OsString::from_vec(text);
    }
    let time = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MIN);
    format!("{time:.6}").into()
}
