//! The link: the receiver's channel on one connection to a server. A new connection is a new
//! link; the receiver alone knows what goes on beyond one.

use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use crate::client::ClientError;
use crate::client::connection::{Connection, Filled, INPUT_BYTES, unexpected};
use crate::client::delivery::Unpacker;
use crate::client::piece::Slice;
use crate::limits;
use crate::units::OffsetRange;
use crate::wire::{
    DELIVER_HEAD_BYTES, DeliverHead, Fault, OpenReceive, Receiving, ReleaseMode, Reply, Request,
};

/// The only channel of a receiver's connection.
const CHANNEL: u16 = 1;

/// What the server says.
#[derive(Debug)]
pub(super) enum Event {
    Receiving(Receiving),
    Deliver(DeliverHead, Slice),
    End,
    Closed,
    Fault(Fault),
    /// It ends; `true` when somebody wants it to.
    Goodbye(bool),
}

/// Receive buffers, to be used again once nobody looks at them any more.
#[derive(Debug, Default)]
pub(super) struct Buffers(Vec<Rc<Vec<u8>>>);

impl Buffers {
    fn spare(&mut self) -> Vec<u8> {
        // The one that was lent last is the likeliest to be in a cache.
        let free = self.0.iter().rposition(|buffer| Rc::strong_count(buffer) == 1);
        free.and_then(|index| Rc::try_unwrap(self.0.remove(index)).ok())
            .unwrap_or_else(|| vec![0; INPUT_BYTES])
    }

    fn lend(&mut self, buffer: Vec<u8>) -> Rc<Vec<u8>> {
        let buffer = Rc::new(buffer);
        if buffer.len() == INPUT_BYTES && self.0.len() < limits::RECEIVE_BUFFERS {
            self.0.push(Rc::clone(&buffer));
        }
        buffer
    }
}

#[derive(Debug)]
pub(super) struct Link {
    connection: Connection,
    /// Takes deliveries apart; there once the queue is.
    pub(super) unpacker: Option<Unpacker>,
    /// Whether there is something to be written to the socket.
    owes: bool,
}

impl Link {
    pub(super) fn open(connection: Connection, open: OpenReceive) -> Link {
        let mut link = Link { connection, unpacker: None, owes: false };
        link.push(&Request::OpenReceive(open));
        link
    }

    fn push(&mut self, request: &Request<'_>) {
        self.connection.push(CHANNEL, request);
        self.owes = true;
    }

    /// The next thing that has come, if it is there.
    pub(super) fn next(&mut self, buffers: &mut Buffers) -> Result<Option<Event>, ClientError> {
        let Some(frame) = self.connection.take_frame(|| buffers.spare())? else { return Ok(None) };
        let body = &frame.buffer[frame.body.clone()];
        let event = match Reply::decode(&frame.header, body)? {
            Reply::Deliver(head, _) => {
                let batches = frame.body.start + DELIVER_HEAD_BYTES..frame.body.end;
                return Ok(Some(Event::Deliver(
                    head,
                    Slice::new(buffers.lend(frame.buffer), batches),
                )));
            }
            Reply::Receiving(receiving) => Event::Receiving(receiving),
            Reply::End => Event::End,
            Reply::Closed => Event::Closed,
            Reply::Error(fault) => Event::Fault(fault),
            Reply::Goodbye(goodbye) => Event::Goodbye(goodbye.orderly),
            other => return Err(unexpected(&other)),
        };
        Ok(Some(event))
    }

    pub(super) fn fill(&mut self) -> Result<Filled, ClientError> {
        self.connection.fill().map_err(ClientError::io("read from the server"))
    }

    pub(super) fn credit(&mut self, total: u64) {
        self.push(&Request::Credit(total));
    }

    pub(super) fn ack(&mut self, ranges: &[OffsetRange]) {
        for ranges in ranges.chunks(limits::RANGES_PER_FRAME_MAX) {
            self.push(&Request::Ack(ranges.to_vec()));
        }
    }

    pub(super) fn release(&mut self, ranges: &[OffsetRange]) {
        for ranges in ranges.chunks(limits::RANGES_PER_FRAME_MAX) {
            self.push(&Request::Release(ReleaseMode::Release, ranges.to_vec()));
        }
    }

    pub(super) fn complain(
        &mut self,
        segment: crate::units::SegmentNumber,
        position: crate::units::Position,
    ) {
        self.push(&Request::Complain(segment, position));
    }

    pub(super) fn close(&mut self) {
        self.push(&Request::Close);
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
