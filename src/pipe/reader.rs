//! The reader: the thread of a source that is a queue. What the server delivers becomes inputs, and what the
//! pipe says of them becomes acks.
//!
//! It decides nothing. Started by the [`source`](super::source).

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::allowance::Allowance;
use super::held::{Held, alone};
use super::lane::Lane;
use super::load::DELIMITER;
use super::mark::Turn;
use super::source::{Input, LastWord, Letter, Reading, SourceError, Word, split, weight_of};
use crate::batch::BatchHeader;
use crate::client::buffers::Buffers;
use crate::client::connection::unexpected;
use crate::client::credit::messages_in;
use crate::client::delivery::{Batch, DeliveryError, Unpacker};
use crate::client::extent::{self, Found};
use crate::client::piece::Slice;
use crate::client::wait::{self, Patience};
use crate::client::{ClientError, Connection, Filled};
use crate::limits;
use crate::units::{Attempts, Offset, OffsetRange, Position, SegmentNumber};
use crate::wire::{
    Admin, DELIVER_HEAD_BYTES, DeliverHead, ExtentHead, Kind, Nack, OpenReceive, Receiving, Reply,
    Request, WireError,
};

/// Its channel; the one below has served for requests before.
const CHANNEL: u16 = 2;

/// The channel of questions for the time; one is asked at a time.
const CLOCK_CHANNEL: u16 = 3;

/// How long a server that is told of an end has to answer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// See the module's page.
pub(super) struct Reader {
    connection: Connection,
    reading: Reading,
    unpacker: Option<Unpacker>,
    /// What was delivered and is not settled, in order.
    held: Held,
    allowance: Allowance,
    /// Where the extent that came last lies.
    file: Option<Arc<File>>,
    /// Extents that came, and as many as were said to be done with.
    extents: (u64, u64),
    buffers: Buffers,
    inputs: Lane<Input>,
    words: Lane<Word>,
    /// Nothing is left of what was ready at the start.
    has_ended: bool,
    is_closing: bool,
    quits: bool,
}

impl Reader {
    /// Reads over this connection, once it [runs](Reader::run).
    pub(super) fn new(
        mut connection: Connection,
        reading: Reading,
        inputs: Lane<Input>,
        words: Lane<Word>,
    ) -> Reader {
        if reading.open.extents > 0 {
            connection.expect_descriptors();
        }
        let allowance = match reading.is_at_engine {
            true => Allowance::of_engine(reading.batch),
            false => Allowance::Endless(0),
        };
        Reader {
            connection,
            reading,
            allowance,
            unpacker: None,
            held: Held::default(),
            file: None,
            extents: (0, 0),
            buffers: Buffers::new(limits::PIPE_BUFFERS),
            inputs,
            words,
            has_ended: false,
            is_closing: false,
            quits: false,
        }
    }

    /// Reads until it is told to end.
    pub(super) fn run(mut self) {
        let _last_word = LastWord(self.inputs.clone());
        self.connection.push(CHANNEL, &Request::OpenReceive(self.reading.open.clone()));
        let first = self.allowance.first();
        self.allow(Some(first));
        if let Err(error) = self.go_on() {
            if let SourceError::Client(lost) = &error
                && lost.is_lost()
            {
                self.forget();
            }
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
                return Err(self.connection.lost().into());
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
                    if receiving.passed.0 > 0 {
                        self.inputs.push(Input::Passed(receiving.passed), 0);
                    }
                    if let Some(input) = self.announced(&receiving) {
                        self.inputs.push(input, 0);
                    }
                }
                Reply::Held(_) => self.lose(),
                Reply::End => {
                    self.has_ended = true;
                    self.inputs.push(Input::End, 0);
                }
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
            Filled::Closed => Err(self.connection.lost().into()),
        }
    }

    /// What is said of the queue, if it is news.
    fn announced(&mut self, receiving: &Receiving) -> Option<Input> {
        let limit = receiving.delivery_limit;
        match (receiving.queue_id, receiving.epoch) {
            (None, _) => Some(Input::NoQueue),
            (Some(_), None) if self.reading.open.exclusive => {
                receiving.held.then_some(Input::Waiting)
            }
            (Some(id), epoch) if self.unpacker.is_none() => {
                self.unpacker = Some(Unpacker::new(id));
                let turn = receiving.born.zip(epoch).map(|(born, epoch)| Turn { born, epoch });
                Some(Input::Open(id, turn, limit))
            }
            // The delivery limit has changed, or an engine is back.
            (Some(_), _) => None,
        }
    }

    /// What nobody has begun with comes again, and is forgotten here, unless nothing more comes in this
    /// run: where no position is kept, it would be there twice.
    fn forget(&self) {
        if self.has_ended {
            return;
        }
        forget_untaken(&self.inputs);
    }

    /// An engine is away, and what it had delivered is not ours any more: it comes again under other
    /// numbers.
    fn lose(&mut self) {
        self.held = Held::default();
        self.forget();
        let credit = self.allowance.lost();
        self.allow(credit);
    }

    fn allow(&mut self, credit: Option<u64>) {
        if let Some(credit) = credit {
            self.connection.push(CHANNEL, &Request::Credit(credit));
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
            let weight = weight_of(&new);
            new.iter().for_each(|found| self.hold(found.range(), 0));
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
        self.hold(range, batch.payload.bytes().len());
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

    /// Messages of so many bytes are ours; how many does not matter of those in a file.
    fn hold(&mut self, range: OffsetRange, bytes: usize) {
        self.held.push(range);
        let credit = self.allowance.came(range.span(), bytes);
        self.allow(credit);
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
        let settled = self.held.take_below(floor);
        for ranges in settled.chunks(limits::RANGES_PER_FRAME_MAX) {
            self.connection.push(CHANNEL, &Request::Ack(ranges.to_vec()));
        }
        self.settled(&settled);
    }

    fn settled(&mut self, ranges: &[OffsetRange]) {
        let credit = self.allowance.settled(messages_in(ranges));
        self.allow(credit);
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
        self.settled(&buried);
    }

    fn close(&mut self) -> Result<(), SourceError> {
        // Who speaks with an engine hears nothing until it has reached it, and there is nothing to settle.
        if self.reading.is_at_engine && self.unpacker.is_none() {
            return Ok(());
        }
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
/// Messages come again when their server is lost, and what time it was behind them is true only behind them.
fn forget_untaken(inputs: &Lane<Input>) {
    // At once: were they taken one by one, the pipe might get what is behind some that are gone, and a
    // commit would pass over these.
    let is_told_again =
        |input: &Input| matches!(input, Input::Batch(_) | Input::Extent(_) | Input::Clock(_));
    inputs.retain(|input| !is_told_again(input));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ClockInfo;

    /// Once, windows were closed without messages that had been forgotten, by the time behind them.
    #[test]
    fn the_time_behind_messages_is_forgotten_with_them() {
        let lane = Lane::new().expect("a lane");
        lane.push(Input::Extent(Vec::new()), 1);
        lane.push(Input::Clock(ClockInfo::default()), 0);
        lane.push(Input::End, 0);
        forget_untaken(&lane);
        assert!(matches!(lane.pop(), Some(Input::End)) && lane.pop().is_none());
    }

    #[test]
    fn the_end_of_a_text_is_cut_between_characters() {
        assert_eq!(cut("aäb", 2), "b");
        assert_eq!(cut("ab", 2), "ab");
    }
}
