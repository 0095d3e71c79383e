//! The socket of a session: frames in, as parts of the buffer that they were read into, and frames out.
//!
//! Both ways may be awaited beside other things: nothing is lost when such a wait is given up. It
//! knows nothing of what the frames mean.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::limits;
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, Kind, Reply, WireError};

/// How much room is made for a read: what a sender writes at once.
const READ_BYTES: usize = limits::SEND_BATCH_BYTES;

/// How often it is looked whether the peer is gone, while nothing of it is read.
const LOOK: Duration = Duration::from_millis(250);

/// A frame as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Its body: a part of the buffer that it was read into.
    pub body: Bytes,
}

/// Why there are no more frames.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The peer has closed the connection, or is gone.
    #[error("the client is gone")]
    Gone,
    /// What came is no frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The socket failed.
    #[error("the connection to the client failed: {0}")]
    Io(#[from] io::Error),
}

/// Frames from the client.
#[derive(Debug)]
pub struct Frames {
    socket: OwnedReadHalf,
    buffer: BytesMut,
    /// Frames that were read ahead of their turn.
    ahead: VecDeque<Frame>,
}

/// Both ways of a connection.
#[must_use]
pub fn split(stream: UnixStream) -> (Frames, Outbox) {
    let (read, write) = stream.into_split();
    let frames = Frames { socket: read, buffer: BytesMut::new(), ahead: VecDeque::new() };
    (frames, Outbox { socket: write, waiting: VecDeque::new(), bytes: 0 })
}

impl Frames {
    /// The next frame. May be given up while it waits.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn next(&mut self) -> Result<Frame, Broken> {
        match self.ahead.pop_front() {
            Some(frame) => Ok(frame),
            None => self.read().await,
        }
    }

    /// Keeps a frame that cannot be dealt with yet: it comes again, behind those that were kept before.
    pub fn keep(&mut self, frame: Frame) {
        self.ahead.push_back(frame);
    }

    /// Whether one of this kind is kept.
    #[must_use]
    pub fn keeps(&self, kind: Kind) -> bool {
        self.ahead.iter().any(|frame| frame.header.kind == kind)
    }

    /// How many frames are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.ahead.len()
    }

    /// The next frame behind those that are kept. May be given up while it waits.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn read(&mut self) -> Result<Frame, Broken> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            let wanted = self.missing()?.max(READ_BYTES);
            self.buffer.reserve(wanted);
            match self.socket.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(Broken::Gone),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(Broken::Gone);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn header(&self) -> Result<Option<FrameHeader>, WireError> {
        let bytes = self.buffer.first_chunk::<FRAME_HEADER_BYTES>();
        bytes.map(FrameHeader::decode).transpose()
    }

    /// Bytes that the frame that has begun still needs.
    fn missing(&self) -> Result<usize, WireError> {
        let total = self.header()?.map_or(0, |header| FRAME_HEADER_BYTES + header.length as usize);
        Ok(total.saturating_sub(self.buffer.len()))
    }

    fn take(&mut self) -> Result<Option<Frame>, WireError> {
        let Some(header) = self.header()? else { return Ok(None) };
        let total = FRAME_HEADER_BYTES + header.length as usize;
        if self.buffer.len() < total {
            return Ok(None);
        }
        let mut body = self.buffer.split_to(total).freeze();
        body.advance(FRAME_HEADER_BYTES);
        Ok(Some(Frame { header, body }))
    }

    /// Comes back once the peer is gone; for when its frames are not read.
    pub async fn hung_up(&self) {
        loop {
            let mut fds =
                [PollFd::from_borrowed_fd(self.socket.as_ref().as_fd(), PollFlags::empty())];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if matches!(poll(&mut fds, Some(&now)), Ok(1)) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Frames to the client, as far as the socket has not taken them.
#[derive(Debug)]
pub struct Outbox {
    socket: OwnedWriteHalf,
    waiting: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// Puts a frame behind the others.
    pub fn push(&mut self, channel: u16, reply: &Reply<'_>) {
        let mut bytes = Vec::new();
        reply.encode(channel, &mut bytes);
        self.push_bytes(bytes.into());
    }

    /// Puts an encoded frame behind the others.
    pub fn push_bytes(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.waiting.push_back(bytes);
    }

    /// Whether all is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether more may be delivered: the client reads what is there.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes < limits::REMOTE_AHEAD_BYTES
    }

    /// Writes some of what waits. May be given up while it waits.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn write(&mut self) -> Result<(), Broken> {
        let Some(front) = self.waiting.front_mut() else { return Ok(()) };
        match self.socket.write_buf(front).await {
            Ok(written) => self.bytes -= written,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                return Err(Broken::Gone);
            }
            Err(error) => return Err(error.into()),
        }
        if !front.has_remaining() {
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Writes all that waits.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn flush(&mut self) -> Result<(), Broken> {
        while !self.is_empty() {
            self.write().await?;
        }
        Ok(())
    }
}
