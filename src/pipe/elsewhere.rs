//! Ends elsewhere: a source or a destination at an engine, by its address or because the store says that it
//! lives there.
//!
//! An engine knows no position of a pipe and takes no mark, so with one at either end there is none: what the
//! destination has confirmed is acknowledged at the source, and what is not acknowledged comes again. That is
//! at least once. A source in the store is read by the pipe's group all the same, which then says where to
//! go on by what it has settled. Called by `opening` and `run`.

use super::lane::Lane;
use super::mark::Mark;
use super::opening::{Ends, Opened};
use super::order::{Destination, Origin};
use super::report::{Host, Note, PipeError};
use super::run::{Pipe, Session};
use super::source::{Reading, Source};
use crate::client::connection::unexpected;
use crate::client::place::Peer;
use crate::client::send::random_producer;
use crate::client::wait::Patience;
use crate::client::{ClientError, Connection, Dialer};
use crate::settings::Start;
use crate::units::Name;
use crate::url::Url;
use crate::wire::{
    Admin, CANNOT_ACK, ErrorCode, OpenReceive, OpenSend, QueueInfo, ReceiveMode, Reply, Request,
};
use std::os::fd::AsFd;
use std::time::Instant;

/// The channel of a question that the server has to refuse.
const CHANNEL: u16 = 2;

impl<H: Host> Pipe<'_, H> {
    /// Reaches who has the source: the server, or the helper for its engine; nobody for standard input. A
    /// queue that is declared to live elsewhere is an engine's from now on.
    pub(super) fn reach_source(&mut self) -> Result<Option<Connection>, PipeError> {
        if let Origin::Queue(queue) = self.order.source.clone() {
            let mut connection = self.dial()?;
            let Some(url) = self.source_elsewhere(&mut connection, &queue)? else {
                return Ok(Some(connection));
            };
            self.order.source = Origin::Engine(url);
            self.check_ends()?;
        }
        let Origin::Engine(url) = self.order.source.clone() else { return Ok(None) };
        let connection = self.dial_engine(&url)?;
        self.has_acks = has_acks(&connection);
        Ok(Some(connection))
    }

    /// Where the source lives, if not with this server. Nothing is made there by asking.
    fn source_elsewhere(
        &mut self,
        connection: &mut Connection,
        queue: &Name,
    ) -> Result<Option<Url>, PipeError> {
        let shown: Result<QueueInfo, ClientError> =
            self.request(connection, Admin::Show { queue: queue.clone() });
        match shown {
            Ok(info) if info.settings.at.is_some() => {}
            Ok(_) => return Ok(None),
            // A channel that was refused something is of no use any more.
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {
                *connection = self.dial()?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        // The whole address, with what is never shown, is told to whoever wants the messages.
        let open = OpenReceive::new(queue.clone(), Name::default(), ReceiveMode::Peek);
        connection.push(CHANNEL, &Request::OpenReceive(open));
        let patience = Patience::lasting(self.server_wait(), Some(self.host.as_fd()));
        let answer: Result<(), ClientError> = connection.answer(patience, |_, reply| match reply {
            Reply::Receiving(_) => Ok(Some(())),
            Reply::Goodbye(goodbye) => Err(ClientError::gone(&goodbye)),
            other => Err(unexpected(&other)),
        });
        match answer {
            Err(error) => match error.elsewhere() {
                Some(url) => Ok(Some(url.clone())),
                None => Err(error.into()),
            },
            // It came back meanwhile. This channel looks at messages now.
            Ok(()) => {
                *connection = self.dial()?;
                Ok(None)
            }
        }
    }

    /// A destination that lives elsewhere, as this error says, is opened there.
    pub(super) fn follow_destination(
        &mut self,
        error: PipeError,
    ) -> Result<(Opened, Option<Mark>), PipeError> {
        let Some(url) = error.client().and_then(ClientError::elsewhere).cloned() else {
            return Err(error);
        };
        self.order.destination = Destination::Engine(url);
        self.check_ends()?;
        self.open_destination()
    }

    /// What was asked for must fit where the ends are, now that it is known.
    fn check_ends(&self) -> Result<(), PipeError> {
        self.order.check_engines()?;
        if self.order.is_circle() { Err(PipeError::Circle) } else { Ok(()) }
    }

    fn dial_engine(&self, url: &Url) -> Result<Connection, PipeError> {
        let patience = Patience::lasting(self.server_wait(), Some(self.host.as_fd()));
        let dialer = Dialer::to(Peer::Engine(url.clone()), self.dialer.tool(), false);
        Ok(dialer.quiet(self.order.quiet).dial(patience)?)
    }

    /// Opens a destination at an engine. Nobody knows this sender again.
    pub(super) fn open_engine(&mut self, url: &Url) -> Result<Connection, PipeError> {
        let mut connection = self.dial_engine(url)?;
        // The engine may be long in coming: it is said before.
        self.tell_promise(has_acks(&connection));
        self.open_sender(&mut connection, OpenSend::new(url.name(), random_producer()))?;
        Ok(connection)
    }

    /// Says once that it is at least once; not where messages may be lost, which the helper says.
    fn tell_promise(&mut self, is_kept: bool) {
        let was_told = std::mem::replace(&mut self.is_promise_told, true);
        if was_told || !is_kept || !self.has_acks {
            return;
        }
        if let (Some(url), _) | (None, Some(url)) = self.order.engines() {
            self.host.note(Note::AtLeastOnce(url));
        }
    }

    /// A session's ends, of which at least one is at an engine.
    pub(super) fn open_at_engine(
        &mut self,
        connection: Option<Connection>,
        opened: Opened,
        kept: Option<Mark>,
    ) -> Result<Ends, PipeError> {
        self.tell_promise(true);
        // In a file the journal also says how much of it is the pipe's.
        if let (Opened::File(_), Some(mark)) = (&opened, &kept) {
            self.check_kept(mark)?;
        }
        let figures = kept.map_or(self.figures, |mark| mark.figures);
        let mark = Mark { figures, ..Mark::new(self.order.name.as_str(), &self.src) };
        let failed = PipeError::system("start a thread");
        let (source, words) = match connection {
            Some(connection) => {
                let words =
                    Lane::new().map_err(PipeError::system("make a channel between threads"))?;
                let source = Source::start(connection, self.reading(), words.clone());
                (source, Some(words))
            }
            None => (Source::stdin(super::load::DELIMITER), None),
        };
        let source = source.map_err(failed)?;
        let mut committer = self.committer(opened, &mark, words)?;
        if self.resets {
            self.commit_now(&mut committer, mark.clone())?;
            self.resets = false;
        }
        Ok(Ends { source, committer, mark, late: None, state: None })
    }

    /// How the source is read where no commit has a position.
    fn reading(&self) -> Reading {
        let from = self.order.from;
        let mut reading = match &self.order.source {
            Origin::Queue(queue) => {
                let from = from.unwrap_or(Start::Oldest);
                Reading::new(queue.clone(), self.group(), Some(from))
            }
            Origin::Engine(url) => Reading::at_engine(url.name(), from),
            Origin::Stdin => unreachable!("it is not opened by a request"),
        };
        if self.order.hands_on() && !reading.is_at_engine {
            reading.keep_stored();
        }
        reading.open.until_end = self.order.until_end;
        reading.batch = self.order.batch;
        reading
    }

    /// Ends a session that failed. What is committed is acknowledged in order, as no mark says that it is
    /// done; what the filter failed on is given back.
    pub(super) fn give_back(&mut self, mut session: Session, why: &PipeError) {
        let is_committing = !matches!(why, PipeError::Commit(_)) && why.client().is_none();
        if is_committing {
            let _ = self.drain(&mut session, Some(Instant::now() + super::run::END_PATIENCE));
        }
        session.source.close();
    }
}

/// Whether what a peer delivers is acknowledged, and what is sent to it is kept until then.
fn has_acks(connection: &Connection) -> bool {
    !connection.server().cannot.iter().any(|flag| flag == CANNOT_ACK)
}
