//! What a session begins with: the destination is opened, which fences off older instances and
//! tells the position; then the source, if that position fits it.
//!
//! Order is what makes it safe: the destination knows of the pipe, durably, before the source's
//! group is made. So a group that is there without a mark means that the destination was lost. Called
//! by `run`.

use rustix::event::PollFlags;

use super::committer::{CHANNEL, Commit, Committer, Done};
use super::file::Journalled;
use super::late::LateSink;
use super::mark::{Mark, Turn};
use super::order::{Destination, Origin, Refusal};
use super::output::Cut;
use super::report::{Host, Misfit, PipeError};
use super::run::Pipe;
use super::source::{Reading, Source};
use super::state::{Claim, StateDir};
use crate::client::command::StartError;
use crate::client::connection::unexpected;
use crate::client::rerun::producer_of;
use crate::client::send::random_producer;
use crate::client::wait::Patience;
use crate::client::{ClientError, Connection, admin};
use crate::limits;
use crate::settings::Start;
use crate::units::{Epoch, Name, Offset, QueueId};
use crate::wire::{Admin, ClockInfo, ErrorCode, OpenSend, QueueInfo, Reply, Request, Sending};
use std::os::fd::AsFd;

/// An opened destination, before anything is committed.
pub(super) enum Opened {
    Queue(Connection, Sending),
    Engine(Connection),
    File(Journalled),
    Stdout,
}

/// A session's two ends.
pub(super) struct Ends {
    pub source: Source,
    pub committer: Committer,
    pub mark: Mark,
    pub late: Option<LateSink>,
    pub state: Option<StateDir>,
}

/// The number of a pipe's producer: no sender has the same. A pipe has another one for what is
/// late.
fn producer(name: &Name, what: &str) -> crate::units::ProducerId {
    match what {
        "" => producer_of(&format!("mq-pipe\0{name}")),
        what => producer_of(&format!("mq-pipe\0{name}\0{what}")),
    }
}

fn of_mark(annex: &[u8], name: &Name) -> Result<Mark, PipeError> {
    Mark::decode(annex).map_err(|source| PipeError::Mark { name: name.to_string(), source })
}

impl<H: Host> Pipe<'_, H> {
    pub(super) fn open(&mut self) -> Result<Ends, PipeError> {
        let connection = self.reach_source()?;
        let (opened, mark) = self.open_destination()?;
        if self.order.is_at_engine() {
            return self.open_at_engine(connection, opened, mark);
        }
        let known = mark.is_some();
        let keeps = !matches!(opened, Opened::Stdout);
        let mark = mark.unwrap_or_else(|| Mark::new(self.order.name.as_str(), &self.src));
        self.check_kept(&mark)?;
        let (Origin::Queue(queue), Some(mut connection)) = (self.order.source.clone(), connection)
        else {
            let source = Source::stdin(super::load::DELIMITER)
                .map_err(PipeError::system("read standard input"))?;
            let state = self.open_state(&opened, &mark, false)?;
            let late = self.open_late(&mark, false)?;
            let committer = self.committer(opened, &mark, None)?;
            return Ok(Ends { source, committer, mark, late, state });
        };
        let resets = self.resets || mark.reset;
        if !resets {
            self.check_position(&mut connection, &queue, known.then_some(&mark), keeps)?;
        }
        let state = self.open_state(&opened, &mark, resets)?;
        let late = self.open_late(&mark, resets)?;
        let (words, mut mark) = (super::lane::Lane::new(), mark);
        let words = words.map_err(PipeError::system("make a channel between threads"))?;
        let mut committer = self.committer(opened, &mark, Some(words.clone()))?;
        if resets {
            mark = self.reset(&mut connection, &mut committer, (&mark, &queue))?;
        } else if !known {
            self.commit_now(&mut committer, mark.clone())?;
        }
        // A group that was read from is never made again: what became of its messages?
        let from = self.order.from.unwrap_or(Start::Oldest);
        let mut reading = Reading::new(queue, self.group(), mark.turn.is_none().then_some(from));
        reading.open.until_end = self.order.until_end;
        reading.floor = mark.floor;
        reading.dead.clone_from(&mark.dead);
        if self.order.hands_on() {
            reading.keep_stored();
        }
        let source = Source::start(connection, reading, words)
            .map_err(PipeError::system("start a thread"))?;
        Ok(Ends { source, committer, mark, late, state })
    }

    /// Begins as a new pipe, which knows nothing of what the last commit said. From the first step on
    /// whatever ends in between is noticed by the next session, and made again.
    fn reset(
        &mut self,
        connection: &mut Connection,
        committer: &mut Committer,
        (old, queue): (&Mark, &Name),
    ) -> Result<Mark, PipeError> {
        if let Some(before) = Name::new(&old.src).ok().filter(|before| before != queue) {
            // Nobody would take away what waits there for it.
            self.remove_group(connection, &before)?;
        }
        let mark = Mark::new(self.order.name.as_str(), &self.src);
        self.commit_now(committer, Mark { reset: true, ..mark.clone() })?;
        self.remove_group(connection, queue)?;
        self.resets = false;
        self.commit_now(committer, mark.clone())?;
        Ok(mark)
    }

    /// What the last commit has, this order must have too.
    pub(super) fn check_kept(&self, mark: &Mark) -> Result<(), Misfit> {
        let name = || mark.name.clone();
        match (&mark.window, &mark.state) {
            _ if self.resets => Ok(()),
            _ if mark.name != self.order.name.as_str() => {
                let (destination, had) = (self.order.destination.to_string(), name());
                Err(Misfit::OtherPipe { destination, had, name: self.order.name.to_string() })
            }
            _ if mark.src != self.src => {
                Err(Misfit::OtherSource { name: name(), src: mark.src.clone() })
            }
            _ if mark.reset => Ok(()),
            (Some(window), _) if self.order.windows.is_none() => {
                let (had, wanted) = (window.spec.clone(), "none".to_owned());
                Err(Misfit::OtherWindows { name: name(), had, wanted })
            }
            (_, Some(_)) if self.order.state.is_none() => Err(Misfit::NoState(name())),
            _ => Ok(()),
        }
    }

    /// The state directory, which the last commit must fit.
    fn open_state(
        &self,
        opened: &Opened,
        mark: &Mark,
        is_reset: bool,
    ) -> Result<Option<StateDir>, PipeError> {
        let Some(dir) = &self.order.state else { return Ok(None) };
        let (destination, epoch) = match opened {
            Opened::Queue(_, sending) => (sending.queue_id, sending.epoch),
            Opened::File(file) => {
                let path = file.path().as_os_str().as_encoded_bytes();
                let id = uuid::Uuid::from_u128(xxhash_rust::xxh3::xxh3_128(path));
                // No two instances have the same, as far as chance can see to it.
                (QueueId(id), Epoch(random_producer().0 as u32))
            }
            Opened::Engine(_) | Opened::Stdout => (QueueId::default(), Epoch(0)),
        };
        let claim = Claim {
            pipe: self.order.name.as_str(),
            destination,
            parts: self.order.parallel,
            epoch,
            mark: mark.state.as_ref(),
            is_reset,
        };
        Ok(Some(StateDir::open(dir, &claim, Some(self.host.as_fd()))?))
    }

    /// The queue for what comes late, with what is stored there already.
    fn open_late(&mut self, mark: &Mark, is_reset: bool) -> Result<Option<LateSink>, PipeError> {
        let late = self.order.windows.as_ref().and_then(|windows| windows.late.clone());
        let Some(queue) = late else { return Ok(None) };
        let opened = self.open_producer(queue.clone(), "late");
        let (connection, mut sending) =
            opened.map_err(|error| match error.client().and_then(ClientError::elsewhere) {
                Some(url) => Refusal::late(&queue, url.clone()).into(),
                None => error,
            })?;
        let fresh = Mark { late: true, ..Mark::new(&mark.name, &mark.src) };
        let known = match sending.annex.take().filter(|_| !is_reset) {
            Some(annex) => Mark { late: true, ..of_mark(&annex, &self.order.name)? },
            None => fresh.clone(),
        };
        let (last, written) = (sending.last, known.figures.written);
        let committer = Committer::queue(connection, last, written, Cut::Records, None);
        let mut committer = committer.map_err(PipeError::system("start a thread"))?;
        if is_reset {
            self.commit_now(&mut committer, fresh)?;
        }
        Ok(Some(LateSink::new(committer, known)))
    }

    fn open_producer(
        &mut self,
        queue: Name,
        what: &str,
    ) -> Result<(Connection, Sending), PipeError> {
        let mut connection = self.dial()?;
        // What is read from standard input is never gone on with.
        let named = self.order.source != Origin::Stdin;
        let producer = if named { producer(&self.order.name, what) } else { random_producer() };
        let open = OpenSend { named, ..OpenSend::new(queue, producer) };
        let sending = self.open_sender(&mut connection, open)?;
        Ok((connection, sending))
    }

    pub(super) fn open_sender(
        &self,
        connection: &mut Connection,
        open: OpenSend,
    ) -> Result<Sending, PipeError> {
        connection.push(CHANNEL, &Request::OpenSend(open));
        let patience = Patience { until: None, interrupt: Some(self.host.as_fd()) };
        let answer = connection.answer(patience, |_, reply| match reply {
            Reply::Sending(sending) => Ok(Some(sending)),
            Reply::Goodbye(goodbye) => Err(ClientError::gone(&goodbye)),
            other => Err(unexpected(&other)),
        });
        Ok(answer?)
    }

    pub(super) fn open_destination(&mut self) -> Result<(Opened, Option<Mark>), PipeError> {
        match self.order.destination.clone() {
            Destination::Stdout => Ok((Opened::Stdout, None)),
            Destination::File(path) => {
                let file = Journalled::open(&path, self.resets, Some(self.host.as_fd()))?;
                let mark = file.mark().cloned();
                Ok((Opened::File(file), mark))
            }
            Destination::Engine(url) => Ok((Opened::Engine(self.open_engine(&url)?), None)),
            Destination::Queue(queue) => {
                let (connection, mut sending) = match self.open_producer(queue, "") {
                    Err(error) => return self.follow_destination(error),
                    Ok(opened) => opened,
                };
                let mark = match sending.annex.take() {
                    // Whatever stands there, it is to be forgotten, or is no position.
                    Some(annex) if self.resets || self.order.is_at_engine() => {
                        of_mark(&annex, &self.order.name).ok()
                    }
                    Some(annex) => Some(of_mark(&annex, &self.order.name)?),
                    None => None,
                };
                Ok((Opened::Queue(connection, sending), mark))
            }
        }
    }

    pub(super) fn committer(
        &self,
        opened: Opened,
        mark: &Mark,
        words: Option<super::lane::Lane<super::source::Word>>,
    ) -> Result<Committer, PipeError> {
        let cut = self.order.cut;
        let written = if self.resets { 0 } else { mark.figures.written };
        let started = match opened {
            Opened::Queue(connection, sending) => {
                Committer::queue(connection, sending.last, written, cut, words)
            }
            Opened::Engine(connection) => Committer::engine(connection, written, cut, words),
            Opened::File(file) => Committer::file(file, cut, words),
            Opened::Stdout => Committer::stdout(cut, words),
        };
        started.map_err(PipeError::system("start a thread"))
    }

    /// A commit without outputs, that is durable when this returns.
    pub(super) fn commit_now(
        &mut self,
        committer: &mut Committer,
        mark: Mark,
    ) -> Result<(), PipeError> {
        committer.push(Commit::new(Vec::new(), mark));
        loop {
            match committer.take() {
                Some(Done::Committed(_)) => return Ok(()),
                Some(Done::Failed(error)) => return Err(error.into()),
                Some(Done::Held(_)) => {}
                None => {
                    let patience = Patience { until: None, interrupt: Some(self.host.as_fd()) };
                    patience.wait_for(committer.as_fd(), PollFlags::IN)?;
                }
            }
        }
    }

    /// Reaches the server; after a loss a new one is started only if nobody wanted it stopped.
    pub(super) fn dial(&mut self) -> Result<Connection, PipeError> {
        let patience = Patience::lasting(self.server_wait(), Some(self.host.as_fd()));
        Ok(match self.lost {
            None => self.dialer.dial(patience)?,
            Some(orderly) => self.dialer.redial(orderly, patience)?,
        })
    }

    /// Looks at the source before anything is made there: whether it fits the position, or, without
    /// one, knows the pipe already.
    fn check_position(
        &self,
        connection: &mut Connection,
        queue: &Name,
        mark: Option<&Mark>,
        keeps: bool,
    ) -> Result<(), PipeError> {
        let group = self.group();
        let shown: Result<QueueInfo, ClientError> =
            self.request(connection, Admin::Show { queue: queue.clone() });
        let info = match shown {
            Ok(info) => info,
            // That is found out, or waited for, when it is opened.
            Err(error) if error.code() == Some(ErrorCode::NotFound) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let has_group = info.groups.iter().any(|known| known.group == group);
        match mark {
            None if keeps && has_group => {
                let name = self.order.name.to_string();
                Err(Misfit::DestinationGone(self.order.destination.to_string(), name).into())
            }
            None => Ok(()),
            Some(mark) => {
                self.check_source(mark, Some(info.id))?;
                match mark.turn {
                    Some(_) if !has_group => Err(self.group_gone().into()),
                    _ => Ok(()),
                }
            }
        }
    }

    /// What time it is for the pipe, over a connection of its own.
    pub(super) fn clock(&self, connection: &mut Connection) -> Result<ClockInfo, ClientError> {
        let Origin::Queue(queue) = self.order.source.clone() else {
            return Ok(ClockInfo::default());
        };
        self.request(connection, Admin::Clock { queue, group: self.group() })
    }

    fn remove_group(&self, connection: &mut Connection, queue: &Name) -> Result<(), PipeError> {
        let remove = Admin::RemoveGroup { queue: queue.clone(), group: self.group() };
        match self.request::<()>(connection, remove) {
            Err(error) if error.code() != Some(ErrorCode::NotFound) => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn request<T: serde::de::DeserializeOwned>(
        &self,
        connection: &mut Connection,
        request: Admin,
    ) -> Result<T, ClientError> {
        let wait = limits::SERVER_WAIT.to_duration();
        admin::call(connection, request, Patience::lasting(wait, Some(self.host.as_fd())))
    }

    /// What of the source's incarnation fits the mark.
    pub(super) fn check_source(
        &self,
        mark: &Mark,
        id: Option<crate::units::QueueId>,
    ) -> Result<(), Misfit> {
        let (src, name) = (mark.src.clone(), mark.name.clone());
        match (mark.src_id, id) {
            (Some(_), None) => Err(Misfit::SourceGone(src, name)),
            (Some(known), Some(id)) if known != id => Err(Misfit::SourceReplaced(src, name)),
            _ => Ok(()),
        }
    }

    /// Whether the group of the source is the one of before, and stands where it was left.
    pub(super) fn check_turn(&self, mark: &Mark, turn: Option<Turn>) -> Result<(), Misfit> {
        let (Some(known), Some(turn)) = (mark.turn, turn) else { return Ok(()) };
        if turn.born != known.born {
            return Err(self.group_gone());
        }
        if !turn.follows(known) {
            return Err(Misfit::Sought(self.group().to_string(), self.src.clone()));
        }
        Ok(())
    }

    pub(super) fn group_gone(&self) -> Misfit {
        Misfit::GroupGone(self.group().to_string(), self.src.clone())
    }

    /// Whether a start error is the filter's own: told before anything is opened.
    pub(super) fn check_filter(&self) -> Result<(), StartError> {
        self.program.check()
    }

    /// The first offset that was not read yet.
    pub(super) fn expected(mark: &Mark) -> Option<Offset> {
        mark.src_id.map(|_| mark.next)
    }
}
