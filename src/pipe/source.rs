//! The source: a queue read in order by one pipe at a time, on a thread of its own.
//!
//! An exclusive receiver of the pipe's group gets every message at or above the group's floor, in
//! order, once; what it holds comes again to the next one when it goes. It is told to settle all
//! below an offset when that is durable elsewhere, or to give up one message. It reads ahead of the
//! filter up to a bound and never decides anything. Made for each session by `run`;
//! standard input, which keeps nothing, is the other source.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::held::{Held, alone};
use super::lane::Lane;
use super::load::DELIMITER;
use super::mark::Turn;
use super::stdin;
use crate::batch::{self, BatchError, BatchHeader};
use crate::client::buffers::Buffers;
use crate::client::connection::unexpected;
use crate::client::delivery::{Batch, DeliveryError, Unpacker};
use crate::client::extent::{self, Found};
use crate::client::piece::Slice;
use crate::client::wait::{self, Patience};
use crate::client::{ClientError, Connection, Filled};
use crate::limits;
use crate::units::{Attempts, Count, Name, Offset, OffsetRange, Position, QueueId, SegmentNumber};
use crate::wire::{
    Admin, ClockInfo, DELIVER_HEAD_BYTES, DeliverHead, ExtentHead, Kind, Nack, OpenReceive, Reply,
    Request, WireError,
};

/// Its channel; the one below has served for requests before.
const CHANNEL: u16 = 2;

/// The channel of questions for the time; one is asked at a time.
const CLOCK_CHANNEL: u16 = 3;

/// How long a server that is told of an end has to answer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// More messages than anyone sends: what is read ahead is bounded in bytes.
const CREDIT: u64 = u64::MAX >> 1;

/// Said again after so many messages, as no more than [`limits::CREDIT_MAX`] beyond what was
/// delivered counts.
const CREDIT_EVERY: u64 = limits::CREDIT_MAX / 4;

/// What comes from a source.
#[derive(Debug)]
pub enum Input {
    /// There is no such queue yet.
    NoQueue,
    /// Another instance has the pipe's group.
    Waiting,
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
        Reading { open, floor: Offset(0), dead: Vec::new() }
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
        mut connection: Connection,
        reading: Reading,
        words: Lane<Word>,
    ) -> std::io::Result<Source> {
        let inputs = Lane::new()?;
        if reading.open.extents > 0 {
            connection.expect_descriptors();
        }
        let reader = Reader {
            connection,
            reading,
            unpacker: None,
            held: Held::default(),
            came: 0,
            file: None,
            extents: (0, 0),
            buffers: Buffers::new(limits::PIPE_BUFFERS),
            inputs: inputs.clone(),
            words: words.clone(),
            is_closing: false,
            quits: false,
        };
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
fn weight_of(extent: &[Found]) -> usize {
    let weight = |found: &Found| match found {
        Found::Here(batch) => batch.payload.bytes().len(),
        Found::Stored(stored) => stored.len() / limits::PIPE_STORED_WEIGHT,
    };
    extent.iter().map(weight).sum()
}

/// The thread's own.
struct Reader {
    connection: Connection,
    reading: Reading,
    unpacker: Option<Unpacker>,
    /// What was delivered and is not settled, in order.
    held: Held,
    /// Messages that came since the credit was said last.
    came: u64,
    /// Where the extent that came last lies.
    file: Option<Arc<File>>,
    /// Extents that came, and as many as were said to be done with.
    extents: (u64, u64),
    buffers: Buffers,
    inputs: Lane<Input>,
    words: Lane<Word>,
    is_closing: bool,
    quits: bool,
}

impl Reader {
    fn run(mut self) {
        let _last_word = LastWord(self.inputs.clone());
        self.connection.push(CHANNEL, &Request::OpenReceive(self.reading.open.clone()));
        self.connection.push(CHANNEL, &Request::Credit(CREDIT));
        if let Err(error) = self.go_on() {
            self.inputs.push(Input::Failed(error), 0);
        }
    }

    fn go_on(&mut self) -> Result<(), SourceError> {
        loop {
            while let Some(word) = self.words.pop() {
                self.hear(word)?;
            }
            if self.quits {
                return Ok(());
            }
            if self.is_closing {
                return self.close();
            }
            let has_room = self.inputs.weight() < limits::PIPE_AHEAD_BYTES;
            if has_room && self.take()? {
                continue;
            }
            let flushed =
                self.connection.flush().map_err(ClientError::io("write to the server"))?;
            let mut wanted = if flushed { PollFlags::empty() } else { PollFlags::OUT };
            if has_room {
                wanted |= PollFlags::IN;
            }
            let mut fds =
                [PollFd::new(&self.connection, wanted), PollFd::new(&self.words, PollFlags::IN)];
            wait::poll(&mut fds, None)?;
            let hung_up = fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
            if hung_up && !has_room {
                return Err(ClientError::Lost.into());
            }
        }
    }

    /// Takes what has come; false when there is nothing now.
    fn take(&mut self) -> Result<bool, SourceError> {
        // There is room for what comes next.
        if self.extents.0 != self.extents.1 {
            self.extents.1 = self.extents.0;
            self.connection.push(CHANNEL, &Request::Extents(self.extents.0));
        }
        let mut any = false;
        while let Some(frame) =
            self.connection.take_frame(|| self.buffers.spare()).map_err(ClientError::from)?
        {
            any = true;
            let body = &frame.buffer[frame.body.clone()];
            match Reply::decode(&frame.header, body).map_err(ClientError::from)? {
                Reply::Deliver(head, _) => {
                    let range = frame.body.start + DELIVER_HEAD_BYTES..frame.body.end;
                    let slice = Slice::new(self.buffers.lend(frame.buffer), range);
                    self.delivered(&head, &slice)?;
                }
                Reply::Extent(extent) => self.told(&extent)?,
                Reply::Receiving(receiving) => {
                    let input = match (receiving.queue_id, receiving.epoch) {
                        (None, _) => Input::NoQueue,
                        (Some(_), None) => Input::Waiting,
                        (Some(id), Some(epoch)) if self.unpacker.is_none() => {
                            self.unpacker = Some(Unpacker::new(id));
                            let turn = receiving.born.map(|born| Turn { born, epoch });
                            Input::Open(id, turn, receiving.delivery_limit)
                        }
                        // The delivery limit has changed.
                        (Some(_), Some(_)) => continue,
                    };
                    self.inputs.push(input, 0);
                }
                Reply::End => self.inputs.push(Input::End, 0),
                Reply::Reply(json) => {
                    let clock = serde_json::from_slice(json)
                        .map_err(|source| WireError::Json { kind: Kind::Reply, source })
                        .map_err(ClientError::from)?;
                    self.inputs.push(Input::Clock(clock), 0);
                }
                Reply::Error(fault) => return Err(ClientError::Refused(fault).into()),
                Reply::Goodbye(goodbye) => return Err(ClientError::gone(&goodbye).into()),
                other => return Err(unexpected(&other).into()),
            }
            if self.inputs.weight() >= limits::PIPE_AHEAD_BYTES {
                return Ok(true);
            }
        }
        match self.connection.fill().map_err(ClientError::io("read from the server"))? {
            Filled::Data(_) => Ok(true),
            Filled::WouldBlock => Ok(any),
            Filled::Closed => Err(ClientError::Lost.into()),
        }
    }

    fn delivered(&mut self, head: &DeliverHead, slice: &Slice) -> Result<(), SourceError> {
        let unexpected = ClientError::Unexpected("messages before it is our turn".to_owned());
        let mut unpacker = self.unpacker.take().ok_or(unexpected)?;
        let mut batches = Vec::new();
        let unpacked = unpacker.unpack(head, slice, |batch| batches.push(batch));
        self.unpacker = Some(unpacker);
        for batch in batches {
            self.came(batch)?;
        }
        self.check(unpacked)
    }

    /// Messages are where the extent says.
    fn told(&mut self, extent: &ExtentHead) -> Result<(), SourceError> {
        let unexpected = |what: &str| ClientError::Unexpected(what.to_owned());
        if extent.opens {
            let none = || unexpected("an extent without its descriptor");
            let file = self.connection.take_descriptor().ok_or_else(none)?;
            self.file = Some(Arc::new(File::from(file)));
        }
        let file = self.file.clone().ok_or_else(|| unexpected("an extent of no file"))?;
        let too_soon = || unexpected("messages before it is our turn");
        let queue = self.unpacker.as_ref().ok_or_else(too_soon)?.queue_id();
        self.extents.0 += 1;
        let keeps = |header: &BatchHeader| extent::is_worth_keeping(header, DELIMITER);
        let mut found = Vec::new();
        let walked = extent::walk(extent, queue, &file, keeps, |batch| found.push(batch));
        let floor = self.reading.floor;
        let known = found.partition_point(|found| found.range().start < floor);
        let new = found.split_off(known);
        for found in found {
            match found {
                Found::Here(batch) => self.came(batch)?,
                Found::Stored(stored) => match stored.read() {
                    Ok(batch) => self.came(batch)?,
                    Err(error) => return self.check(Err(error)),
                },
            }
        }
        if !new.is_empty() {
            new.iter().for_each(|found| self.hold(found.range()));
            let weight = weight_of(&new);
            self.inputs.push(Input::Extent(new), weight);
        }
        self.check(walked)
    }

    /// What is damaged the server looks at for itself.
    fn check(&mut self, result: Result<(), DeliveryError>) -> Result<(), SourceError> {
        if let Err(DeliveryError::Damaged { segment, position, .. }) = &result {
            self.complain(*segment, *position)?;
        }
        Ok(result?)
    }

    /// Lets the server look at a batch, and say what it found before we end.
    fn complain(&mut self, segment: SegmentNumber, position: Position) -> Result<(), SourceError> {
        self.connection.push(CHANNEL, &Request::Complain(segment, position));
        self.close()
    }

    /// A batch: what an earlier session dealt with is settled, the rest goes on.
    fn came(&mut self, batch: Batch) -> Result<(), SourceError> {
        let range = OffsetRange::new(batch.header.offset, batch.header.end());
        self.hold(range);
        let floor = self.reading.floor;
        if range.end <= floor {
            self.again(range);
            return Ok(());
        }
        let batch = if range.start < floor {
            self.again(OffsetRange::new(range.start, floor));
            let place = batch.place;
            let split = split(batch, floor.0 - range.start.0);
            split.map_err(|source| DeliveryError::of(&place, source))?.1
        } else {
            batch
        };
        let weight = batch.payload.bytes().len();
        self.inputs.push(Input::Batch(batch), weight);
        Ok(())
    }

    /// Messages are ours.
    fn hold(&mut self, range: OffsetRange) {
        self.held.push(range);
        self.came += range.span();
        if self.came >= CREDIT_EVERY {
            self.came = 0;
            self.connection.push(CHANNEL, &Request::Credit(CREDIT));
        }
    }

    /// What was dealt with before came again: the source did not know of it any more.
    fn again(&mut self, range: OffsetRange) {
        let mut dead: Vec<Offset> =
            self.reading.dead.iter().copied().filter(|offset| range.contains(*offset)).collect();
        dead.sort_unstable();
        if !dead.is_empty() {
            let messages = dead.into_iter().map(alone).collect();
            let reason = "the filter failed (told again after a crash)".to_owned();
            self.bury(&Letter { messages, attempts: 0, reason, stderr: String::new() });
        }
        self.settle_below(range.end);
    }

    fn hear(&mut self, word: Word) -> Result<(), SourceError> {
        match word {
            Word::Settle(floor) => self.settle_below(floor),
            Word::Bury(letter) => self.bury(&letter),
            Word::AskClock => {
                let OpenReceive { queue, group, .. } = &self.reading.open;
                let clock = Admin::Clock { queue: queue.clone(), group: group.clone() };
                self.connection.push(CLOCK_CHANNEL, &Request::Admin(clock));
            }
            Word::Complain(segment, position) => {
                self.quits = true;
                self.complain(segment, position)?;
            }
            Word::Close => self.is_closing = true,
            Word::Quit => self.quits = true,
        }
        Ok(())
    }

    fn settle_below(&mut self, floor: Offset) {
        for ranges in self.held.take_below(floor).chunks(limits::RANGES_PER_FRAME_MAX) {
            self.connection.push(CHANNEL, &Request::Ack(ranges.to_vec()));
        }
    }

    fn bury(&mut self, letter: &Letter) {
        let buried = self.held.take(&letter.messages);
        // Beside the ranges a frame has room for what is said of them.
        for ranges in buried.chunks(limits::RANGES_PER_FRAME_MAX / 2) {
            let nack = Nack {
                ranges: ranges.to_vec(),
                attempt: Attempts(letter.attempts),
                dead: true,
                reason: cut(&letter.reason, limits::REASON_BYTES_MAX),
                stderr: cut(&letter.stderr, limits::STDERR_TAIL_BYTES),
            };
            self.connection.push(CHANNEL, &Request::Nack(nack));
        }
    }

    fn close(&mut self) -> Result<(), SourceError> {
        self.connection.push(CHANNEL, &Request::Close);
        let patience = Patience::lasting(CLOSE_PATIENCE, None);
        self.connection.answer(patience, |_, reply| Ok((reply == Reply::Closed).then_some(())))?;
        Ok(())
    }
}

/// The end of a text, at most so many bytes.
fn cut(text: &str, most: usize) -> String {
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_cut_between_characters() {
        assert_eq!(cut("aäb", 2), "b");
        assert_eq!(cut("ab", 2), "ab");
    }
}
