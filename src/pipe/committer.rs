//! The committer: outputs and marks into the destination, in order, on a thread of its own.
//!
//! Each commit is there wholly or not at all, and durable when it is told to be done; only then is
//! the source told to let go of what it came from. What it never does: run a filter, or decide
//! anything. Four destinations: a queue ([`Committer::queue`]), a file beside which a journal
//! stands ([`file`](super::file)), standard output, which promises what any pipe does, and a queue at an
//! engine (`publication`), which may have a commit in parts, and again.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};

use super::file::Journalled;
use super::lane::Lane;
use super::mark::{Mark, MarkError};
use super::output::{self, Cut, OutputError, Part};
use super::publication::Publication;
use super::source::Word;
use crate::batch::{Framing, flags, push_annex};
use crate::client::connection::unexpected;
use crate::client::wait;
use crate::client::{ClientError, Connection, Filled};
use crate::limits;
use crate::units::{Count, Offset, Sequence};
use crate::wire::{CommitHead, Fault, Reply};

/// The channel of a committer's connection.
pub const CHANNEL: u16 = 1;

/// What is committed as one.
#[derive(Debug)]
pub struct Commit {
    /// The outputs of the filters, in the order in which they are to stand.
    pub outputs: Vec<Vec<u8>>,
    /// What goes with them; how many messages were written is added here.
    pub mark: Mark,
    /// Once it is durable, the source lets go of all messages below.
    pub settles: Offset,
}

impl Commit {
    /// After which the source holds what the mark says.
    #[must_use]
    pub fn new(outputs: Vec<Vec<u8>>, mark: Mark) -> Commit {
        let settles = mark.floor;
        Commit { outputs, mark, settles }
    }
}

/// What a committer says.
#[derive(Debug)]
pub enum Done {
    /// The oldest commit is durable.
    Committed(Box<Mark>),
    /// It waits for room in the destination.
    Held(Fault),
    /// Nothing more is committed, and why.
    Failed(CommitError),
}

/// Why nothing more is committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The connection or the server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An output cannot be committed.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The position cannot.
    #[error("the position cannot be stored: {0}")]
    Mark(#[from] MarkError),
    /// A file or standard output cannot be written.
    #[error("cannot write {what}: {source}")]
    File {
        /// What.
        what: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Its thread is gone.
    #[error("the thread that commits has panicked: that is a fault in mq-pipe itself")]
    Panicked,
}

/// The last that its thread says, also of a panic: nobody is to wait for a thread that is gone.
struct LastWord {
    done: Lane<Done>,
    ended: Lane<()>,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.done.push(Done::Failed(CommitError::Panicked), 0);
        }
        self.ended.push((), 0);
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Committer {
    commits: Lane<Option<Commit>>,
    done: Lane<Done>,
    ended: Lane<()>,
    under_way: usize,
    /// Only of one that nobody can hold up.
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// Into a queue, over a connection on whose [`CHANNEL`] the producer has been opened; `last`
    /// is its last sequence, `written` how many messages it has written before.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn queue(
        connection: Connection,
        last: Sequence,
        written: u64,
        cut: Cut,
        source: Option<Lane<Word>>,
    ) -> std::io::Result<Committer> {
        // It may hang on a server that does not answer; its epoch is over when another is opened.
        let mut committer = Committer::start(move |commits, done| {
            let mut queue = Queue {
                connection,
                last,
                written,
                cut,
                waiting: VecDeque::new(),
                source,
                done: done.clone(),
            };
            if let Err(error) = queue.run(&commits) {
                done.push(Done::Failed(error), 0);
            }
        })?;
        committer.thread = None;
        Ok(committer)
    }

    /// Into a file with its journal.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn file(
        mut file: Journalled,
        cut: Cut,
        source: Option<Lane<Word>>,
    ) -> std::io::Result<Committer> {
        let written = file.mark().map_or(0, |mark| mark.figures.written);
        Committer::start(move |commits, done| {
            let what = format!("file {}", file.path().display());
            let write = |bytes: &[Vec<u8>], mark: &Mark| file.commit(bytes, mark);
            serve(&commits, &done, source.as_ref(), (cut, written), &what, write);
        })
    }

    /// To standard output.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn stdout(cut: Cut, source: Option<Lane<Word>>) -> std::io::Result<Committer> {
        // Its reader may let it wait without end, and what is not written is not promised to anyone.
        let mut committer = Committer::start(move |commits, done| {
            let write = |bytes: &[Vec<u8>], _: &Mark| {
                use std::io::Write;
                let mut stdout = std::io::stdout().lock();
                bytes.iter().try_for_each(|bytes| stdout.write_all(bytes))?;
                stdout.flush()
            };
            serve(&commits, &done, source.as_ref(), (cut, 0), "standard output", write);
        })?;
        committer.thread = None;
        Ok(committer)
    }

    /// Into a queue at an engine, over a connection to its helper on whose [`CHANNEL`] a sender has been
    /// opened.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn engine(
        connection: Connection,
        written: u64,
        cut: Cut,
        source: Option<Lane<Word>>,
    ) -> std::io::Result<Committer> {
        Committer::start(move |commits, done| {
            let mut publication =
                Publication::new(connection, written, cut, source, commits, done.clone());
            if let Err(error) = publication.run() {
                done.push(Done::Failed(error), 0);
            }
        })
    }

    fn start(
        run: impl FnOnce(Lane<Option<Commit>>, Lane<Done>) + Send + 'static,
    ) -> std::io::Result<Committer> {
        let (commits, done) = (Lane::new()?, Lane::new()?);
        let ended = Lane::new()?;
        let (taken, told) = (commits.clone(), done.clone());
        let last_word = LastWord { done: done.clone(), ended: ended.clone() };
        let thread = std::thread::Builder::new().name("committer".to_owned());
        let thread = thread.spawn(move || {
            let _last_word = last_word;
            run(taken, told);
        });
        Ok(Committer { commits, done, ended, under_way: 0, thread: Some(thread?) })
    }

    /// Readable once nothing more is committed, and [`Done::Failed`] was said.
    #[must_use]
    pub fn ended(&self) -> Lane<()> {
        self.ended.clone()
    }

    /// Whether another commit may be handed over.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.under_way < limits::PIPE_COMMITS_AHEAD
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.under_way == 0
    }

    /// Hands over a commit.
    pub fn push(&mut self, commit: Commit) {
        self.under_way += 1;
        self.commits.push(Some(commit), 0);
    }

    /// The next thing that it says.
    pub fn take(&mut self) -> Option<Done> {
        let done = self.done.pop();
        if matches!(done, Some(Done::Committed(_))) {
            self.under_way -= 1;
        }
        done
    }
}

impl AsFd for Committer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.commits.push(None, 0);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes commits one after the other where a write says that it is done.
fn serve(
    commits: &Lane<Option<Commit>>,
    done: &Lane<Done>,
    source: Option<&Lane<Word>>,
    (cut, mut written): (Cut, u64),
    what: &str,
    mut write: impl FnMut(&[Vec<u8>], &Mark) -> std::io::Result<()>,
) {
    loop {
        let Some(commit) = commits.pop() else {
            let mut fds = [PollFd::new(commits, PollFlags::IN)];
            if wait::poll(&mut fds, None).is_err() {
                return;
            }
            continue;
        };
        let Some(Commit { mut outputs, mut mark, settles }) = commit else { return };
        for output in &mut outputs {
            match output::parts(cut, output, limits::SEND_BATCH_BYTES) {
                Ok(parts) => {
                    written += parts.iter().map(|part| u64::from(part.count)).sum::<u64>();
                }
                Err(error) => return done.push(Done::Failed(error.into()), 0),
            }
        }
        mark.figures.written = written;
        if let Err(source) = write(&outputs, &mark) {
            let what = what.to_owned();
            return done.push(Done::Failed(CommitError::File { what, source }), 0);
        }
        if let Some(source) = source {
            source.push(Word::Settle(settles), 0);
        }
        done.push(Done::Committed(Box::new(mark)), 0);
    }
}

/// The thread's own, for a queue.
struct Queue {
    connection: Connection,
    /// The sequence of the newest commit that was sent.
    last: Sequence,
    written: u64,
    cut: Cut,
    /// Commits that are sent and not confirmed.
    waiting: VecDeque<(Sequence, Offset, Mark)>,
    source: Option<Lane<Word>>,
    done: Lane<Done>,
}

impl Queue {
    fn run(&mut self, commits: &Lane<Option<Commit>>) -> Result<(), CommitError> {
        loop {
            match commits.pop() {
                Some(None) => return Ok(()),
                Some(Some(commit)) => self.send(commit)?,
                None => self.wait(PollFlags::IN, Some(commits.as_fd()))?,
            }
            self.hear()?;
        }
    }

    fn send(&mut self, commit: Commit) -> Result<(), CommitError> {
        let Commit { mut outputs, mut mark, settles } = commit;
        let mut parts: Vec<(usize, Part)> = Vec::new();
        for (n, output) in outputs.iter_mut().enumerate() {
            // What fits one batch with its annex goes as one: it is stored without a detour.
            let one = limits::BATCH_PAYLOAD_BYTES_MAX - limits::ANNEX_BYTES_MAX - 64;
            let size = if output.len() < one { one } else { limits::SEND_BATCH_BYTES };
            parts.extend(output::parts(self.cut, output, size)?.into_iter().map(|part| (n, part)));
        }
        self.written += parts.iter().map(|(_, part)| u64::from(part.count)).sum::<u64>();
        mark.figures.written = self.written;
        self.last = Sequence(self.last.0 + 1);
        let mut annex = Vec::new();
        push_annex(&mut annex, &mark.encode()?);
        let last = match parts.pop() {
            Some((n, part))
                if parts.is_empty()
                    && part.flags == 0
                    && part.len() + annex.len() <= limits::BATCH_PAYLOAD_BYTES_MAX =>
            {
                Some((n, part))
            }
            other => {
                parts.extend(other);
                None
            }
        };
        for (n, part) in &parts {
            self.send_part(part, &outputs[*n], None)?;
        }
        match last {
            Some((n, part)) => self.send_part(&part, &outputs[n], Some(&annex))?,
            None => {
                let nothing = Part {
                    framing: Framing::Records,
                    flags: 0,
                    count: 0,
                    prefix: None,
                    bytes: 0..0,
                };
                self.send_part(&nothing, &[], Some(&annex))?;
            }
        }
        self.waiting.push_back((self.last, settles, mark));
        Ok(())
    }

    fn send_part(
        &mut self,
        part: &Part,
        output: &[u8],
        annex: Option<&[u8]>,
    ) -> Result<(), CommitError> {
        let annex_flag = if annex.is_some() { flags::ANNEX } else { 0 };
        let head = CommitHead {
            sequence: self.last,
            count: part.count,
            framing: part.framing,
            batch_flags: part.flags | annex_flag,
            more: annex.is_none(),
        };
        let annex = annex.unwrap_or_default();
        let mut front = head.encode(CHANNEL, annex.len() + part.len()).to_vec();
        front.extend_from_slice(annex);
        front.extend(part.prefix.iter().flatten());
        self.write(&front)?;
        self.write(&output[part.bytes.clone()])
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), CommitError> {
        while !bytes.is_empty() {
            let written = self
                .connection
                .write_through(bytes)
                .map_err(ClientError::io("write to the server"))?;
            bytes = &bytes[written..];
            if written == 0 {
                self.wait(PollFlags::IN | PollFlags::OUT, None)?;
                self.hear()?;
            }
        }
        Ok(())
    }

    fn wait(&self, wanted: PollFlags, other: Option<BorrowedFd<'_>>) -> Result<(), CommitError> {
        let mut fds = vec![PollFd::new(&self.connection, wanted)];
        fds.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        wait::poll(&mut fds, None)?;
        Ok(())
    }

    /// Takes what the server says.
    fn hear(&mut self) -> Result<(), CommitError> {
        loop {
            while let Some((header, body)) =
                self.connection.next_frame().map_err(ClientError::from)?
            {
                match Reply::decode(&header, body).map_err(ClientError::from)? {
                    Reply::Confirm(sequence, Offset(_), Count(_)) => self.confirmed(sequence),
                    Reply::Held(fault) => self.done.push(Done::Held(fault), 0),
                    Reply::Error(fault) => return Err(ClientError::Refused(fault).into()),
                    Reply::Goodbye(goodbye) => return Err(ClientError::gone(&goodbye).into()),
                    other => return Err(unexpected(&other).into()),
                }
            }
            match self.connection.fill().map_err(ClientError::io("read from the server"))? {
                Filled::Data(_) => {}
                Filled::WouldBlock => return Ok(()),
                Filled::Closed => return Err(ClientError::Lost.into()),
            }
        }
    }

    fn confirmed(&mut self, sequence: Sequence) {
        while self.waiting.front().is_some_and(|(waiting, ..)| *waiting <= sequence) {
            let (_, settles, mark) = self.waiting.pop_front().expect("there is a first");
            if let Some(source) = &self.source {
                source.push(Word::Settle(settles), 0);
            }
            self.done.push(Done::Committed(Box::new(mark)), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once, a committer whose thread panicked was waited for without end, deaf to signals.
    #[test]
    fn a_panic_is_told() {
        let mut committer = Committer::start(|_, _| panic!("as a test wants it")).expect("starts");
        let ended = committer.ended();
        let mut fds = [PollFd::new(&committer, PollFlags::IN)];
        wait::poll(&mut fds, None).expect("polls");
        assert!(matches!(committer.take(), Some(Done::Failed(CommitError::Panicked))));
        let mut fds = [PollFd::new(&ended, PollFlags::IN)];
        wait::poll(&mut fds, None).expect("polls");
    }
}
