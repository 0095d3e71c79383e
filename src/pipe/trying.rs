//! Trying the filter on some messages: what it reads, how it ended, and what that means.
//!
//! Whether it is tried again is not decided here. Called by `run`, and by `closing` for what an end
//! means.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::filter::{self, Finished, How, Job, Stdin};
use super::lane::Lane;
use super::load::Load;
use super::report::{Host, PipeError};
use super::run::{Failure, Pipe, Session};
use super::stay::{ADVICE, Answer, Staying};
use super::trial::Ran;
use crate::client::piece::Slice;
use crate::limits;
use crate::units::Micros;

/// How long a filter that stays may be silent, unless the user says otherwise.
const STAY_PATIENCE: Duration = Duration::from_secs(10);

/// The statuses by which a shell says that a command cannot be run, or is not there.
const UNRUNNABLE: [i32; 2] = [126, 127];

/// The status by which a filter says that its input can never succeed.
const NEVER: i32 = 65;

impl<H: Host> Pipe<'_, H> {
    /// Runs the filter on some messages.
    pub(super) fn try_on(
        &mut self,
        session: &mut Session,
        part: &Load,
        outputs: &mut Vec<Vec<u8>>,
    ) -> Result<Ran, PipeError> {
        outputs.clear();
        let began = Instant::now();
        let bytes = part.bytes();
        let ran = if self.order.stay {
            self.ask(&session.ended(), part, outputs)?
        } else {
            self.run_filters(session, part, outputs)?
        };
        let figures = &mut session.mark.figures;
        figures.filter_us.0 += u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        figures.retries += u64::from(ran != Ran::Well);
        let written = outputs.iter().map(Vec::len).sum();
        self.pace.ran(ran, bytes, written, began.elapsed());
        Ok(ran)
    }

    fn run_filters(
        &mut self,
        session: &mut Session,
        part: &Load,
        outputs: &mut Vec<Vec<u8>>,
    ) -> Result<Ran, PipeError> {
        let over = session.ended();
        let state = &mut session.state;
        let (parts, mut jobs): (Vec<usize>, Vec<Job>) = self.jobs(part).into_iter().unzip();
        if let Some(state) = state {
            // Of a run whose output was let go.
            state.abandon_kept()?;
            for (part, job) in parts.iter().zip(&mut jobs) {
                job.env.push(("MQ_STATE".into(), state.begin(*part)?.into()));
            }
        }
        let timeout = self.order.timeout.map(Micros::to_duration);
        let others = [self.host.as_fd(), over.as_fd()];
        let finished = filter::run(&mut self.program, jobs, timeout, &others)?;
        let mut worst = Ran::Well;
        for Finished { how, output, stderr } in finished {
            let ran = self.verdict(how)?;
            if ran == Ran::Well {
                outputs.push(output);
                continue;
            }
            self.failure = Failure { reason: how.to_string(), stderr };
            if worst != Ran::TooMuch {
                worst = ran;
            }
        }
        let bytes: usize = outputs.iter().map(Vec::len).sum();
        if worst == Ran::Well && bytes > limits::PIPE_OUTPUT_BYTES_MAX {
            self.failure = Failure { reason: How::TooMuch.to_string(), stderr: Vec::new() };
            worst = Ran::TooMuch;
        }
        if let Some(state) = state {
            match worst {
                Ran::Well => parts.iter().try_for_each(|part| state.keep(*part))?,
                _ => state.abandon_kept()?,
            }
        }
        Ok(worst)
    }

    /// What each filter gets of some messages.
    fn jobs(&self, part: &Load) -> Vec<(usize, Job)> {
        let parallel = self.order.parallel;
        if self.order.key.is_some() {
            let inputs = part.divide(parallel).into_iter().enumerate();
            let inputs = inputs.filter(|(_, input)| !input.bytes().is_empty());
            let job = |(n, input): (usize, Slice)| {
                let input = Stdin::Fed(vec![input.into()]);
                (n, Job { input, env: self.facts(Some(part), n) })
            };
            return inputs.map(job).collect();
        }
        let loads = if parallel == 1 { vec![part.clone()] } else { part.split(parallel) };
        let loads = loads.into_iter().enumerate();
        let job = |(n, load): (usize, Load)| {
            let env = self.facts(Some(&load), n);
            let input = Stdin::Fed(load.into_portions().map(Into::into).collect());
            (n, Job { input, env })
        };
        loads.map(job).collect()
    }

    pub(super) fn verdict(&self, how: How) -> Result<Ran, PipeError> {
        Ok(match how {
            How::Exit(status) if self.order.ok.contains(&status) => Ran::Well,
            How::Exit(status) if UNRUNNABLE.contains(&status) => {
                return Err(PipeError::Unrunnable(status));
            }
            How::Exit(NEVER) => Ran::Never,
            How::TooMuch => Ran::TooMuch,
            How::Exit(_) | How::Signal(_) | How::TimedOut | How::LeftBehind => Ran::Failed,
        })
    }

    /// Asks the filter that stays.
    fn ask(
        &mut self,
        over: &Lane<()>,
        part: &Load,
        outputs: &mut Vec<Vec<u8>>,
    ) -> Result<Ran, PipeError> {
        if part.lines() != part.count() {
            let reason = "a message holds a newline, so that its answer cannot be told apart";
            self.failure = Failure { reason: reason.to_owned(), stderr: Vec::new() };
            // No number of tries changes that.
            return Ok(Ran::Never);
        }
        if let Some(staying) = &mut self.staying {
            if staying.is_out_of_step() {
                return Err(PipeError::OutOfStep);
            }
            // It may end between two lines, if it likes.
            self.staying.take_if(|staying| staying.has_ended());
        }
        if self.staying.is_none() {
            let env = self.facts(None, 0);
            self.staying = Some(Staying::start(&mut self.program, env)?);
        }
        let patience = self.order.timeout.map_or(STAY_PATIENCE, Micros::to_duration);
        let staying = self.staying.as_mut().expect("it was just started");
        let others = [self.host.as_fd(), over.as_fd()];
        match staying.ask(part.slices(), part.count(), patience, &others)? {
            Answer::Lines(output) => {
                outputs.push(output);
                Ok(Ran::Well)
            }
            Answer::TooMuch => Err(PipeError::OutOfStep),
            Answer::TooLarge => {
                self.staying = None;
                self.failure = Failure { reason: How::TooMuch.to_string(), stderr: Vec::new() };
                Ok(Ran::TooMuch)
            }
            Answer::Failed(why, stderr) => {
                self.staying = None;
                self.failure = Failure { reason: format!("{why} ({ADVICE})"), stderr };
                Ok(Ran::Failed)
            }
        }
    }

    /// What the filter finds in its environment.
    pub(super) fn facts(&self, load: Option<&Load>, part: usize) -> Vec<(OsString, OsString)> {
        let number = |number: u64| OsString::from(number.to_string());
        let mut env = vec![
            ("MQ_PIPE".into(), self.order.name.as_str().into()),
            ("MQ_QUEUE".into(), self.src.as_str().into()),
            ("MQ_PART".into(), number(part as u64)),
        ];
        if let Some((load, first)) = load.and_then(|load| Some((load, load.first()?))) {
            env.push(("MQ_OFFSET".into(), number(first.0)));
            env.push(("MQ_COUNT".into(), number(load.count())));
        }
        env
    }
}
