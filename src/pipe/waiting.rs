//! Waiting in a session: for input, for commits, for the end of a pause; a signal ends all of it.
//!
//! Nothing here decides anything. Called by `run` and [`windowed`](super::windowed).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::committer::{CommitError, Done};
use super::order::Destination;
use super::report::{Host, Note, PipeError};
use super::run::{Pipe, Session};
use crate::client::wait;

impl<H: Host> Pipe<'_, H> {
    /// Takes what the committer says.
    pub(super) fn hear(&mut self, session: &mut Session) -> Result<(), PipeError> {
        while let Some(done) = session.committer.take() {
            match done {
                Done::Committed(mark) => {
                    self.commits += 1;
                    // It may have been the one in front of the one that is held.
                    session.is_held &= !session.committer.is_idle();
                    self.complaints = 0;
                    if let (Some(state), Some(named)) = (&mut session.state, &mark.state) {
                        state.committed(named)?;
                    }
                    self.figures = mark.figures;
                    self.host.progress(&mark.figures);
                }
                Done::Held(fault) => {
                    session.is_held = true;
                    self.host.note(Note::Held(&fault));
                }
                Done::Failed(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until everything that was handed over is committed.
    pub(super) fn drain(
        &mut self,
        session: &mut Session,
        until: Option<Instant>,
    ) -> Result<(), PipeError> {
        loop {
            self.hear(session)?;
            if session.committer.is_idle() || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(());
            }
            self.wait_committer(session, until)?;
        }
    }

    pub(super) fn wait(&self, session: &Session, until: Option<Instant>) -> Result<(), PipeError> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.host.as_fd(), PollFlags::IN),
            PollFd::new(&session.source, PollFlags::IN),
            PollFd::new(&session.committer, PollFlags::IN),
        ];
        let stdout = rustix::stdio::stdout();
        // What is being written finds by itself that its reader has gone.
        if matches!(self.order.destination, Destination::Stdout) && session.committer.is_idle() {
            fds.push(PollFd::from_borrowed_fd(stdout, PollFlags::empty()));
        }
        wait::poll(&mut fds, until)?;
        if !fds[0].revents().is_empty() {
            return Err(PipeError::Interrupted);
        }
        // Nothing is waited for there, so it is an end if anything: an error, a hang-up, no file at all.
        if fds.get(3).is_some_and(|fd| !fd.revents().is_empty()) {
            let (what, source) = ("standard output".to_owned(), Errno::PIPE.into());
            return Err(CommitError::File { what, source }.into());
        }
        Ok(())
    }

    pub(super) fn wait_committer(
        &self,
        session: &Session,
        until: Option<Instant>,
    ) -> Result<(), PipeError> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.host.as_fd(), PollFlags::IN),
            PollFd::new(&session.committer, PollFlags::IN),
        ];
        wait::poll(&mut fds, until)?;
        if fds[0].revents().is_empty() { Ok(()) } else { Err(PipeError::Interrupted) }
    }

    /// Nothing for so long; true when a signal came.
    pub(super) fn pause(
        &mut self,
        pause: Duration,
        mut session: Option<&mut Session>,
    ) -> Result<bool, PipeError> {
        let until = Instant::now() + pause;
        loop {
            if let Some(session) = session.as_deref_mut() {
                self.hear(session)?;
            }
            let mut fds = vec![PollFd::from_borrowed_fd(self.host.as_fd(), PollFlags::IN)];
            fds.extend(
                session.as_deref().map(|session| PollFd::new(&session.committer, PollFlags::IN)),
            );
            wait::poll(&mut fds, Some(until))?;
            if !fds[0].revents().is_empty() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }
}
