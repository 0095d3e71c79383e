//! The publication: outputs into a queue at an engine, in order, over a connection to its helper.
//!
//! A commit is done when the engine has confirmed all of its messages, and all in front of it. Nothing is
//! stored of the position: a commit that was broken off may be there in part, and comes again as a whole. It is
//! the helper that sends again what a lost connection to the engine had under way. Run by the
//! [`committer`](super::committer) on its thread.

use std::collections::VecDeque;

use rustix::event::{PollFd, PollFlags};

use super::committer::{CHANNEL, Commit, CommitError, Done};
use super::lane::Lane;
use super::mark::Mark;
use super::output::{self, Cut, Part};
use super::source::Word;
use crate::batch::flags;
use crate::client::connection::unexpected;
use crate::client::wait;
use crate::client::{ClientError, Connection, Filled};
use crate::limits;
use crate::units::{Monotonic, Offset, Sequence};
use crate::wire::{PublishHead, Reply};

/// What was sent and is not confirmed.
struct Sent {
    /// The sequence of the last message, of this commit or of those in front of it.
    last: Sequence,
    settles: Offset,
    mark: Mark,
}

/// See the module's page.
pub(super) struct Publication {
    connection: Connection,
    written: u64,
    cut: Cut,
    source: Option<Lane<Word>>,
    commits: Lane<Option<Commit>>,
    done: Lane<Done>,
    /// Handed over, and not sent.
    handed: VecDeque<Commit>,
    sent: VecDeque<Sent>,
    /// The sequences of the last message that was sent, and of the last that is confirmed.
    last: Sequence,
    confirmed: Sequence,
    /// Nobody waits for anything any more.
    is_over: bool,
}

impl Publication {
    /// Over a connection on whose [`CHANNEL`] a sender is open that has sent nothing; `written` messages were
    /// written before.
    pub fn new(
        connection: Connection,
        written: u64,
        cut: Cut,
        source: Option<Lane<Word>>,
        commits: Lane<Option<Commit>>,
        done: Lane<Done>,
    ) -> Publication {
        Publication {
            connection,
            written,
            cut,
            source,
            commits,
            done,
            handed: VecDeque::new(),
            sent: VecDeque::new(),
            last: Sequence(0),
            confirmed: Sequence(0),
            is_over: false,
        }
    }

    /// Until it is told to end.
    ///
    /// # Errors
    /// Why nothing more is committed.
    pub fn run(&mut self) -> Result<(), CommitError> {
        loop {
            self.take();
            if self.is_over {
                return Ok(());
            }
            match self.handed.pop_front() {
                Some(commit) => self.send(commit)?,
                None => self.wait(PollFlags::IN)?,
            }
            self.hear()?;
        }
    }

    /// Takes what is handed over; so the end is heard of also while the helper takes nothing.
    fn take(&mut self) {
        while let Some(commit) = self.commits.pop() {
            match commit {
                Some(commit) => self.handed.push_back(commit),
                None => self.is_over = true,
            }
        }
    }

    fn send(&mut self, commit: Commit) -> Result<(), CommitError> {
        let Commit { mut outputs, mut mark, settles } = commit;
        for output in &mut outputs {
            for part in output::parts(self.cut, output, limits::SEND_BATCH_BYTES)? {
                self.send_part(&part, output)?;
            }
        }
        mark.figures.written = self.written;
        self.sent.push_back(Sent { last: self.last, settles, mark });
        self.settle();
        Ok(())
    }

    fn send_part(&mut self, part: &Part, output: &[u8]) -> Result<(), CommitError> {
        let is_chained = part.flags & flags::CHAIN != 0;
        let more = is_chained && part.flags & flags::CHAIN_END == 0;
        // All parts of a large message have its number.
        let count = if is_chained { 1 } else { part.count };
        let sequence = Sequence(self.last.0 + u64::from(count));
        let head = PublishHead {
            sequence,
            count,
            framing: part.framing,
            batch_flags: 0,
            read: Monotonic(0),
            more,
        };
        let mut front = head.encode(CHANNEL, part.len()).to_vec();
        front.extend(part.prefix.iter().flatten());
        self.write(&front)?;
        self.write(&output[part.bytes.clone()])?;
        if !more {
            self.last = sequence;
            self.written += u64::from(count);
        }
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), CommitError> {
        while !bytes.is_empty() && !self.is_over {
            let written = self
                .connection
                .write_through(bytes)
                .map_err(ClientError::io("write to mq-remote"))?;
            bytes = &bytes[written..];
            if written == 0 {
                self.wait(PollFlags::IN | PollFlags::OUT)?;
                self.take();
                self.hear()?;
            }
        }
        Ok(())
    }

    fn wait(&self, wanted: PollFlags) -> Result<(), CommitError> {
        let mut fds =
            [PollFd::new(&self.connection, wanted), PollFd::new(&self.commits, PollFlags::IN)];
        wait::poll(&mut fds, None)?;
        Ok(())
    }

    /// Takes what the helper says.
    fn hear(&mut self) -> Result<(), CommitError> {
        loop {
            while let Some((header, body)) =
                self.connection.next_frame().map_err(ClientError::from)?
            {
                match Reply::decode(&header, body).map_err(ClientError::from)? {
                    Reply::Confirm(sequence, ..) => self.confirmed = self.confirmed.max(sequence),
                    Reply::Held(fault) => self.done.push(Done::Held(fault), 0),
                    Reply::Error(fault) => {
                        self.settle();
                        return Err(ClientError::Refused(fault).into());
                    }
                    Reply::Goodbye(goodbye) => return Err(ClientError::gone(&goodbye).into()),
                    other => return Err(unexpected(&other).into()),
                }
            }
            self.settle();
            match self.connection.fill().map_err(ClientError::io("read from mq-remote"))? {
                Filled::Data(_) => {}
                Filled::WouldBlock => return Ok(()),
                Filled::Closed => return Err(self.connection.lost().into()),
            }
        }
    }

    /// Commits whose messages are all confirmed are done.
    fn settle(&mut self) {
        while self.sent.front().is_some_and(|sent| sent.last <= self.confirmed) {
            let Sent { settles, mark, .. } = self.sent.pop_front().expect("there is a first");
            if let Some(source) = &self.source {
                source.push(Word::Settle(settles), 0);
            }
            self.done.push(Done::Committed(Box::new(mark)), 0);
        }
    }
}
