//! The source: a queue read in order by one pipe at a time, on a thread of its own.
//!
//! An exclusive receiver of the pipe's group gets every message at or above the group's floor, in
//! order, once; what it holds comes again to the next one when it goes. A queue at an engine has neither
//! turns nor floors: what is not settled comes again, and that is all. A source is told to settle all
//! below an offset when that is durable elsewhere, or to give up one message. It reads ahead of the
//! filter up to a bound and never decides anything. Made for each session by `run`; its thread is
//! the `reader`. Standard input, which keeps nothing, is the other source.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;

use super::lane::Lane;
use super::mark::Turn;
use super::reader::Reader;
use super::stdin;
use crate::batch::{self, BatchError, BatchHeader};
use crate::client::delivery::{Batch, DeliveryError};
use crate::client::extent::Found;
use crate::client::{ClientError, Connection};
use crate::limits;
use crate::units::{Count, Name, Offset, OffsetRange, Position, QueueId, SegmentNumber};
use crate::wire::{ClockInfo, OpenReceive};

/// What comes from a source.
#[derive(Debug)]
pub enum Input {
    /// There is no such queue yet.
    NoQueue,
    /// Another instance has the pipe's group.
    Waiting,
    /// So many messages no group of the queue gets: the pipe's is its first, and begins behind them.
    Passed(Count),
    /// It is our turn, on this incarnation of the queue; and the attempts after which a message is
    /// given up there, if ever. Standard input has no turns.
    Open(QueueId, Option<Turn>, Option<u32>),
    /// Messages.
    Batch(Batch),
    /// Messages of which some lie in a file, to be verified when they are read.
    Extent(Vec<Found>),
    /// What time it is, as was asked.
    Clock(ClockInfo),
    /// Nothing is left of what was ready at the start.
    End,
    /// Nothing more comes, and why.
    Failed(SourceError),
}

/// Why a source ends.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The connection or the server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What came is damaged.
    #[error(transparent)]
    Garbled(#[from] DeliveryError),
    /// Standard input cannot be read.
    #[error("cannot read standard input: {0}")]
    Stdin(std::io::Error),
    /// A message on standard input is too large.
    #[error("a message on standard input is over 64 MiB, the most that one has")]
    TooLarge,
    /// Its thread is gone.
    #[error("the thread that reads has panicked: that is a fault in mq-pipe itself")]
    Panicked,
}

/// What is said of a panic: nobody is to wait for a thread that is gone.
pub(super) struct LastWord(pub Lane<Input>);

impl Drop for LastWord {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.push(Input::Failed(SourceError::Panicked), 0);
        }
    }
}

/// What a source is told.
#[derive(Debug)]
pub enum Word {
    /// Everything below is settled.
    Settle(Offset),
    /// These are dead letters.
    Bury(Letter),
    /// What time it is there, once all that was said has been heard.
    AskClock,
    /// The batch at this place, which was told of, is damaged; it ends once the server has looked.
    Complain(SegmentNumber, Position),
    /// It ends, once all that was said is done.
    Close,
    /// The same at once.
    Quit,
}

/// Messages that are given up.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Which, in order.
    pub messages: Vec<OffsetRange>,
    /// How often the filter failed on them alone.
    pub attempts: u32,
    /// Why, in a few words.
    pub reason: String,
    /// The end of what the filter said.
    pub stderr: String,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The request that opens it.
    pub open: OpenReceive,
    /// Messages below were dealt with by an earlier session.
    pub floor: Offset,
    /// Those of them that are dead letters.
    pub dead: Vec<Offset>,
    /// The queue lives at an engine.
    pub is_at_engine: bool,
    /// Messages in a batch at most, if that is bounded.
    pub batch: Option<u64>,
}

impl Reading {
    /// What can be is left in its file: [`Input::Extent`] may come.
    pub fn keep_stored(&mut self) {
        self.open.extents = limits::PIPE_EXTENTS;
    }

    /// Of a queue, for a group that is made at `from`, if that is said, when it is not there.
    #[must_use]
    pub fn new(queue: Name, group: Name, from: Option<crate::settings::Start>) -> Reading {
        let open = OpenReceive {
            from,
            exclusive: true,
            durable: true,
            tries: true,
            ..OpenReceive::new(queue, group, crate::wire::ReceiveMode::Take)
        };
        Reading { open, floor: Offset(0), dead: Vec::new(), is_at_engine: false, batch: None }
    }

    /// Of a queue at an engine, as any receiver without a group of its own reads it.
    #[must_use]
    pub fn at_engine(queue: Name, from: Option<crate::settings::Start>) -> Reading {
        let reading = Reading::new(queue, Name::default(), from);
        let open = OpenReceive { exclusive: false, durable: false, ..reading.open };
        Reading { open, is_at_engine: true, ..reading }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Source {
    inputs: Lane<Input>,
    words: Lane<Word>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Begins to read a queue over a connection of its own; `words` come from there.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn start(
        connection: Connection,
        reading: Reading,
        words: Lane<Word>,
    ) -> std::io::Result<Source> {
        let inputs = Lane::new()?;
        let reader = Reader::new(connection, reading, inputs.clone(), words.clone());
        let thread = std::thread::Builder::new().name("source".to_owned());
        let thread = Some(thread.spawn(move || reader.run())?);
        Ok(Source { inputs, words, thread })
    }

    /// Begins to read standard input, whose messages end with `delimiter`.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn stdin(delimiter: u8) -> std::io::Result<Source> {
        let (inputs, words) = (Lane::new()?, Lane::new()?);
        let (into, told) = (inputs.clone(), words.clone());
        let thread = std::thread::Builder::new().name("source".to_owned());
        // It may sit in a read for ever: nobody waits for it.
        thread.spawn(move || stdin::read(delimiter, &into, &told))?;
        Ok(Source { inputs, words, thread: None })
    }

    /// The next thing that has come.
    #[must_use]
    pub fn next(&self) -> Option<Input> {
        let was_full = self.inputs.weight() >= limits::PIPE_AHEAD_BYTES;
        let input = self.inputs.pop();
        if was_full {
            self.words.ring();
        }
        input
    }

    /// Whether nothing has come that was not taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.inputs.is_empty()
    }

    /// What was taken last comes again, or the rest of it.
    pub fn put_back(&self, batch: Batch) {
        let weight = batch.payload.bytes().len();
        self.inputs.put_back(Input::Batch(batch), weight);
    }

    /// The same of an extent.
    pub fn put_back_rest(&self, rest: Vec<Found>) {
        let weight = weight_of(&rest);
        self.inputs.put_back(Input::Extent(rest), weight);
    }

    /// A batch that it told of is damaged: the server is made to look for itself, which is waited
    /// for. The source has ended then.
    pub fn complain(&mut self, segment: SegmentNumber, position: Position) {
        self.words.push(Word::Complain(segment, position), 0);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Where words to it go.
    #[must_use]
    pub fn words(&self) -> Lane<Word> {
        self.words.clone()
    }

    /// Ends it, once the server knows of all that was said; it is not waited for long.
    pub fn close(mut self) {
        self.words.push(Word::Close, 0);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inputs.as_fd()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.words.push(Word::Quit, 0);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What counts of messages of which some are in files.
pub(super) fn weight_of(extent: &[Found]) -> usize {
    let weight = |found: &Found| match found {
        Found::Here(batch) => batch.payload.bytes().len(),
        Found::Stored(stored) => stored.len() / limits::PIPE_STORED_WEIGHT,
    };
    extent.iter().map(weight).sum()
}

/// The first `count` messages of a batch, and the rest.
///
/// # Errors
/// The payload does not hold so many.
pub fn split(batch: Batch, count: u64) -> Result<(Batch, Batch), BatchError> {
    let Batch { header, payload, place } = batch;
    let short = BatchError::Messages("fewer than announced");
    let at = batch::bytes_of_messages(header.framing, payload.bytes(), count).ok_or(short)?;
    let rest = payload.part(at..payload.bytes().len());
    let first = Batch {
        header: BatchHeader { count: count as u32, ..header },
        payload: payload.part(0..at),
        place,
    };
    let header = BatchHeader {
        count: header.count - count as u32,
        offset: header.offset.plus(Count(count)),
        ..header
    };
    Ok((first, Batch { header, payload: rest, place }))
}
