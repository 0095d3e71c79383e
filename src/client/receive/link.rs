//! The link: the receiver's channels on one connection to a server. A new connection is a new
//! link; the receiver alone knows what goes on beyond one.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use crate::client::ClientError;
use crate::client::buffers::Buffers;
use crate::client::connection::{Connection, Filled, unexpected};
use crate::client::piece::Slice;
use crate::client::wait;
use crate::limits;
use crate::units::{OffsetRange, Position, SegmentNumber};
use crate::wire::{
    DELIVER_HEAD_BYTES, DeliverHead, Fault, Nack, OpenReceive, Receiving, ReleaseMode, Reply,
    Request,
};

/// The channel of a receiver's connection; those of a receiver of several queues have further
/// ones that the server opens.
pub(super) const CHANNEL: u16 = 1;

/// What the server says.
#[derive(Debug)]
pub(super) enum Event {
    Receiving(Receiving),
    Deliver(DeliverHead, Slice),
    End,
    Closed,
    /// What is delivered comes from an engine, which is away; RECEIVING says that it is back.
    Held,
    Fault(Fault),
    /// It ends; `true` when somebody wants it to.
    Goodbye(bool),
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Link {
    connection: Connection,
    /// The server has said which queues there are, and what of them is still ours.
    pub(super) is_announced: bool,
    /// An engine is behind it, and who speaks with that decides how long to try to.
    pub(super) is_to_engine: bool,
    /// Whether there is something to be written to the socket.
    owes: bool,
}

impl Link {
    pub(super) fn open(connection: Connection, open: OpenReceive) -> Link {
        let is_to_engine = connection.is_to_engine();
        let mut link = Link { connection, is_announced: false, is_to_engine, owes: false };
        link.push(CHANNEL, &Request::OpenReceive(open));
        link
    }

    fn push(&mut self, channel: u16, request: &Request<'_>) {
        self.connection.push(channel, request);
        self.owes = true;
    }

    /// The next thing that has come, if it is there, with the channel that it is about.
    pub(super) fn next(
        &mut self,
        buffers: &mut Buffers,
    ) -> Result<Option<(u16, Event)>, ClientError> {
        let Some(frame) = self.connection.take_frame(|| buffers.spare())? else { return Ok(None) };
        let channel = frame.header.channel;
        let body = &frame.buffer[frame.body.clone()];
        let event = match Reply::decode(&frame.header, body)? {
            Reply::Deliver(head, _) => {
                let batches = frame.body.start + DELIVER_HEAD_BYTES..frame.body.end;
                let batches = Slice::new(buffers.lend(frame.buffer), batches);
                return Ok(Some((channel, Event::Deliver(head, batches))));
            }
            Reply::Receiving(receiving) => Event::Receiving(receiving),
            Reply::End => Event::End,
            Reply::Closed => Event::Closed,
            Reply::Held(_) => Event::Held,
            Reply::Error(fault) => Event::Fault(fault),
            Reply::Goodbye(goodbye) => Event::Goodbye(goodbye.orderly),
            other => return Err(unexpected(&other)),
        };
        Ok(Some((channel, event)))
    }

    pub(super) fn fill(&mut self) -> Result<Filled, ClientError> {
        self.connection.fill().map_err(ClientError::io("read from the server"))
    }

    pub(super) fn credit(&mut self, total: u64) {
        self.push(CHANNEL, &Request::Credit(total));
    }

    /// Ranges in frames that are made by `request`, as many as it takes.
    pub(super) fn ranges(
        &mut self,
        channel: u16,
        ranges: &[OffsetRange],
        request: impl Fn(Vec<OffsetRange>) -> Request<'static>,
    ) {
        for ranges in ranges.chunks(limits::RANGES_PER_FRAME_MAX) {
            self.push(channel, &request(ranges.to_vec()));
        }
    }

    pub(super) fn release(&mut self, channel: u16, ranges: &[OffsetRange]) {
        self.ranges(channel, ranges, |ranges| Request::Release(ReleaseMode::Release, ranges));
    }

    pub(super) fn nack(&mut self, channel: u16, nack: Nack) {
        self.push(channel, &Request::Nack(nack));
    }

    pub(super) fn complain(&mut self, channel: u16, segment: SegmentNumber, position: Position) {
        self.push(channel, &Request::Complain(segment, position));
    }

    pub(super) fn close(&mut self) {
        self.push(CHANNEL, &Request::Close);
    }

    /// Whether something has come that is not read yet.
    pub(super) fn has_more(&self) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        matches!(wait::poll(&mut fds, Some(Instant::now())), Ok(1))
    }

    /// Whether the server has so much to read already that requests had better wait.
    pub(super) fn is_clogged(&self) -> bool {
        self.connection.unwritten() >= limits::REQUEST_BACKLOG_BYTES
    }

    /// Whether requests wait for room in the socket.
    pub(super) fn owes(&self) -> bool {
        self.owes
    }

    pub(super) fn flush(&mut self) -> Result<(), ClientError> {
        if self.owes {
            let flushed =
                self.connection.flush().map_err(ClientError::io("write to the server"))?;
            self.owes = !flushed;
        }
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
