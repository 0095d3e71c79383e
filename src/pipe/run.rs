//! The loop of a pipe: sessions, and in each of them batch after batch.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::committer::Committer;
use super::lane::Lane;
use super::load::{Division, Load, Loader};
use super::mark::{Mark, Turn};
use super::opening::Ends;
use super::order::{GROUP_PREFIX, Order, Origin};
use super::pace::Pace;
use super::report::{End, Host, Note, PipeError};
use super::source::{Input, Source, SourceError, split};
use super::state::StateDir;
use super::stay::Staying;
use super::windowed::Windowing;
use crate::batch::{BatchError, Place};
use crate::client::Dialer;
use crate::client::command::{Program, StartError};
use crate::client::delivery::DeliveryError;
use crate::client::extent::Found;
use crate::limits;
use crate::units::{Name, Offset, OffsetRange, QueueId};
use crate::wire::{ErrorCode, PipeFigures};

/// How long the commits under way are waited for when a signal ends the pipe.
pub(super) const END_PATIENCE: Duration = Duration::from_secs(10);

/// The pause before a new session while servers end again and again, at most.
const SESSION_PAUSE: Duration = Duration::from_secs(1);

/// See the module's page.
pub struct Pipe<'h, H: Host> {
    pub(super) order: Order,
    pub(super) dialer: Dialer,
    pub(super) host: &'h mut H,
    pub(super) program: Program,
    /// The reset that was asked for has yet to be made.
    pub(super) resets: bool,
    /// A connection was lost before; whether somebody wanted the server stopped.
    pub(super) lost: Option<bool>,
    pub(super) staying: Option<Staying>,
    /// Commits so far, by which it is seen whether sessions get anywhere.
    pub(super) commits: u64,
    pub(super) complaints: u32,
    /// The last failure of the filter.
    pub(super) failure: Failure,
    pub(super) pace: Pace,
    /// The source, as the user calls it.
    pub(super) src: String,
    /// What was done so far, where no commit keeps that.
    pub(super) figures: PipeFigures,
    /// It was said that each message is there at least once.
    pub(super) is_promise_told: bool,
    /// What is read from the source comes again unless it is acknowledged.
    pub(super) has_acks: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Failure {
    pub reason: String,
    pub stderr: Vec<u8>,
}

/// What a session's batches go by.
pub(super) struct Session {
    pub source: Source,
    pub(super) committer: Committer,
    pub mark: Mark,
    pub id: Option<QueueId>,
    pub(super) turn: Option<Turn>,
    pub(super) loader: Loader,
    pub ended: bool,
    pub windowing: Option<Windowing>,
    pub state: Option<StateDir>,
    /// Failures of a message alone after which it is given up, as the source says.
    pub limit: Option<u32>,
    /// A commit waits for room in the destination.
    pub is_held: bool,
    /// Whether messages that are missing were told of.
    told_gone: bool,
}

impl Session {
    /// Readable once nothing more is committed: what a filter is at then is of no use. Why is
    /// heard of the committer.
    pub(super) fn ended(&self) -> Lane<()> {
        self.committer.ended()
    }
}

impl<'h, H: Host> Pipe<'h, H> {
    /// Prepares a pipe on the store of `dialer`.
    ///
    /// # Errors
    /// The filter is not there, or cannot be run.
    pub fn new(order: Order, dialer: Dialer, host: &'h mut H) -> Result<Pipe<'h, H>, StartError> {
        crate::client::command::expect_children()?;
        let program = Program::new(&order.filter)?;
        let resets = order.reset;
        let src = match &order.source {
            Origin::Queue(name) => name.to_string(),
            Origin::Engine(url) => url.to_string(),
            Origin::Stdin => "-".to_owned(),
        };
        let has_acks = order.source != Origin::Stdin;
        let pipe = Pipe {
            order,
            dialer,
            host,
            program,
            resets,
            lost: None,
            staying: None,
            commits: 0,
            complaints: 0,
            failure: Failure::default(),
            pace: Pace::default(),
            src,
            figures: PipeFigures::default(),
            is_promise_told: false,
            has_acks,
        };
        pipe.check_filter()?;
        Ok(pipe)
    }

    /// The group of the pipe in its source.
    pub(super) fn group(&self) -> Name {
        let name = format!("{GROUP_PREFIX}{}", self.order.name);
        Name::new(&name).expect("the name was checked to leave room")
    }

    /// How long a server or an engine that is away is waited for.
    pub(super) fn server_wait(&self) -> Duration {
        self.order.wait.unwrap_or(limits::SERVER_WAIT).to_duration()
    }

    /// Runs until the end that was asked for, or a signal.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub fn run(&mut self) -> Result<End, PipeError> {
        let mut losing: Option<(Instant, u64, u32)> = None;
        loop {
            let error = match self.session() {
                Ok(end) => return Ok(end),
                Err(error) => error,
            };
            self.staying = None;
            if error.is_interrupt() {
                match self.host.take_signal() {
                    Some(signal) => return Ok(End::Signal(signal)),
                    None => continue,
                }
            }
            let orderly = self.judge(error)?;
            let (since, commits, tries) = *losing.get_or_insert((Instant::now(), self.commits, 0));
            let moved = commits != self.commits;
            let (since, tries) = if moved { (Instant::now(), 0) } else { (since, tries) };
            losing = Some((since, self.commits, tries + 1));
            if tries == 0 {
                self.host.note(Note::Lost { orderly });
            } else if since.elapsed() >= self.server_wait() {
                return Err(self.dialer.why_dying().into());
            }
            self.lost = Some(orderly);
            let pause = Duration::from_millis(1 << tries.min(10)).min(SESSION_PAUSE);
            if self.pause(pause, None)?
                && let Some(signal) = self.host.take_signal()
            {
                return Ok(End::Signal(signal));
            }
        }
    }

    /// Whether a new session may help, and if so, whether somebody wants the server stopped.
    fn judge(&mut self, error: PipeError) -> Result<bool, PipeError> {
        if let PipeError::Source(SourceError::Garbled(DeliveryError::Damaged { .. })) = &error {
            self.complaints += 1;
            return if self.complaints < limits::COMPLAINTS_MAX { Ok(false) } else { Err(error) };
        }
        let Some(client) = error.client() else { return Err(error) };
        if matches!(error, PipeError::Source(_))
            && matches!(self.order.source, Origin::Queue(_))
            && client.code() == Some(ErrorCode::NotFound)
        {
            return Err(self.group_gone().into());
        }
        let has_moved = matches!(error, PipeError::Source(_) | PipeError::Commit(_))
            && client.elsewhere().is_some();
        // What was read from standard input cannot be read again.
        let again = self.order.source != Origin::Stdin;
        match client.code() {
            Some(ErrorCode::Fenced) => Err(PipeError::Fenced(self.order.name.to_string())),
            // Where it lives now is found out by the next session.
            _ if has_moved && again => Ok(false),
            _ if client.is_lost() && again => Ok(client.code() == Some(ErrorCode::Stopping)),
            _ => Err(error),
        }
    }

    fn session(&mut self) -> Result<End, PipeError> {
        let Ends { source, committer, mark, late, state } = self.open()?;
        let queue = match &self.order.source {
            Origin::Queue(name) => name.clone(),
            Origin::Engine(url) => url.name(),
            Origin::Stdin => Name::default(),
        };
        let parts = self.order.parallel;
        let division = self.order.key.clone().map(|key| Division { key, parts });
        let loader = Loader::new(queue, division);
        self.host.progress(&mark.figures);
        let windows = self.order.windows.as_ref();
        let windowing = windows
            .map(|wanted| Windowing::new(wanted, self.order.key.as_ref(), &mark, late))
            .transpose()?;
        let mut session = Session {
            source,
            committer,
            mark,
            id: None,
            turn: None,
            loader,
            ended: false,
            windowing,
            state,
            limit: None,
            is_held: false,
            told_gone: false,
        };
        let ended = match session.windowing {
            Some(_) => self.windows(&mut session),
            None => self.batches(&mut session),
        };
        let ended = ended.map(|()| None);
        let signal = match ended.or_else(|error| self.why_ended(&mut session, error).map(Some)) {
            Ok(signal) => signal,
            Err(error) => {
                if self.order.is_at_engine() {
                    self.give_back(session, &error);
                }
                return Err(error);
            }
        };
        match self.wind_up(session, signal) {
            // A second one: nothing more is waited for.
            Err(PipeError::Interrupted) => {
                Ok(End::Signal(self.host.take_signal().or(signal).unwrap_or_default()))
            }
            other => other,
        }
    }

    /// The signal that ended a session's work, or else the error.
    fn why_ended(&mut self, session: &mut Session, error: PipeError) -> Result<i32, PipeError> {
        if !matches!(error, PipeError::Interrupted) {
            return Err(error);
        }
        if let Some(signal) = self.host.take_signal() {
            return Ok(signal);
        }
        // It was not a signal: nothing more is committed.
        self.hear(session)?;
        Err(PipeError::Interrupted)
    }

    /// Ends a session in order. After a signal what was handed over is waited for, for a while.
    fn wind_up(&mut self, mut session: Session, signal: Option<i32>) -> Result<End, PipeError> {
        // Room may be long in coming.
        if signal.is_some() && !session.is_held {
            let until = Some(Instant::now() + END_PATIENCE);
            if let Err(error) = self.drain(&mut session, until) {
                if self.order.is_at_engine() && !error.is_interrupt() {
                    session.source.close();
                }
                return Err(error);
            }
        }
        let host = [self.host.as_fd()];
        let in_step = self.staying.take().map_or(Ok(true), |staying| staying.end(&host))?;
        session.source.close();
        match signal {
            Some(signal) => Ok(End::Signal(signal)),
            None if !in_step => Err(PipeError::OutOfStep),
            None => Ok(End::Done),
        }
    }

    fn batches(&mut self, session: &mut Session) -> Result<(), PipeError> {
        while let Some(load) = self.collect(session)? {
            self.deal_with(session, load).map_err(|error| Self::complain(session, error))?;
        }
        self.drain(session, None)
    }

    // ---- input ----

    /// The next batch: what is there, up to its bounds. None at the end.
    fn collect(&mut self, session: &mut Session) -> Result<Option<Load>, PipeError> {
        let mut load = Load::default();
        let most = self.order.batch.unwrap_or(u64::MAX);
        loop {
            self.hear(session)?;
            match session.source.next() {
                Some(Input::Batch(batch)) => {
                    let room = most - load.count();
                    let batch = if u64::from(batch.header.count) > room {
                        let place = batch.place;
                        let (first, rest) = split(batch, room).map_err(garbled(&place))?;
                        session.source.put_back(rest);
                        first
                    } else {
                        batch
                    };
                    self.add(session, Found::Here(batch), &mut load)?;
                }
                Some(Input::Extent(extent)) => {
                    let mut extent = VecDeque::from(extent);
                    while !self.pace.is_enough(&load) {
                        let Some(first) = extent.pop_front() else { break };
                        self.add(session, first, &mut load)?;
                    }
                    if !extent.is_empty() {
                        session.source.put_back_rest(extent.into());
                    }
                }
                Some(other) => self.take_news(session, other)?,
                None if load.count() > 0 => return Ok(Some(load)),
                None if session.ended => return Ok(None),
                None => self.wait(session, None)?,
            }
            if load.count() == most || self.pace.is_enough(&load) {
                return Ok(Some(load));
            }
        }
    }

    /// Messages are read.
    fn add(
        &mut self,
        session: &mut Session,
        found: Found,
        load: &mut Load,
    ) -> Result<(), PipeError> {
        let OffsetRange { start, end } = found.range();
        self.look_for_gap(session, start);
        session.mark.next = end;
        match found {
            Found::Here(batch) => {
                let place = batch.place;
                session.loader.add(batch, load).map_err(garbled(&place))?;
            }
            Found::Stored(stored) => load.add_stored(stored),
        }
        Ok(())
    }

    /// What a source says that is no message.
    pub(super) fn take_news(
        &mut self,
        session: &mut Session,
        news: Input,
    ) -> Result<(), PipeError> {
        match news {
            Input::End => session.ended = true,
            Input::NoQueue => {
                self.check_source(&session.mark, None)?;
                if !self.order.until_end {
                    self.host.note(Note::NoQueue);
                }
            }
            Input::Waiting => self.wait_for_turn(session)?,
            Input::Passed(passed) => self.host.note(Note::Passed(passed)),
            Input::Open(id, turn, limit) => {
                // Who keeps nothing has no dead letters either.
                let ends_at = Some(limits::DELIVERY_LIMIT_DEFAULT);
                session.limit = if self.has_acks { limit } else { ends_at };
                if matches!(self.order.source, Origin::Queue(_)) && !self.order.is_at_engine() {
                    self.check_source(&session.mark, Some(id))?;
                    self.check_turn(&session.mark, turn)?;
                    session.id = Some(id);
                    session.turn = turn;
                }
            }
            Input::Failed(error) => {
                // Who takes over may take the group away too: then that is the reason.
                self.hear(session)?;
                return Err(error.into());
            }
            Input::Batch(_) | Input::Extent(_) | Input::Clock(_) => unreachable!("no news"),
        }
        Ok(())
    }

    /// Another instance may hold the group: it has been told by now that it is over.
    fn wait_for_turn(&mut self, session: &mut Session) -> Result<(), PipeError> {
        let until = Instant::now() + Duration::from_secs(1);
        while session.source.is_idle() {
            self.hear(session)?;
            if Instant::now() >= until {
                self.host.note(Note::Waiting);
                return Ok(());
            }
            self.wait(session, Some(until))?;
        }
        Ok(())
    }

    /// Offsets that were passed over belong to messages that are gone.
    pub(super) fn look_for_gap(&mut self, session: &mut Session, start: Offset) {
        let Some(expected) = Self::expected(&session.mark) else { return };
        let is_known = |offset: u64| session.mark.dead.contains(&Offset(offset));
        if start > expected && !session.told_gone && !(expected.0..start.0).take(1000).all(is_known)
        {
            session.told_gone = true;
            self.host.note(Note::Gone(OffsetRange::new(expected, start)));
        }
    }
}

/// The messages of the batch at this place do not come out as it says.
fn garbled(place: &Place) -> impl FnOnce(BatchError) -> SourceError {
    move |error| SourceError::Garbled(DeliveryError::of(place, error))
}
