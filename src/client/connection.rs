//! One connection to a server: a stream socket that never blocks, with buffers for both ways.
//!
//! It turns requests into bytes and bytes into frames; it never waits except in
//! [`Connection::handshake`] and [`Connection::answer`], and never reconnects. The sender, the
//! receiver and the administrative calls use it.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::ClientError;
use super::helper::Helper;
use super::wait::Patience;
use crate::limits;
use crate::store::StoreDir;
use crate::units::Micros;
use crate::url::Url;
use crate::wire::{
    self, ClientInfo, FRAME_HEADER_BYTES, FrameHeader, Reply, Request, ServerInfo, WireError,
};

/// Bytes of the receive buffer, once there is much to receive: one frame of any size, and the
/// header of the next.
pub const INPUT_BYTES: usize = limits::FRAME_BODY_BYTES_MAX + 2 * FRAME_HEADER_BYTES;

/// Bytes of the receive buffer at first. Most connections hear a few words only, and a process
/// that sends one message should not map, fault in and unmap a large buffer for that.
const FIRST_INPUT_BYTES: usize = 16 << 10;

// A small buffer is never handed out in place of one of [`INPUT_BYTES`].
const _: () = assert!(FIRST_INPUT_BYTES <= limits::RECEIVE_COPY_BYTES_MAX);

/// How much is asked for while the length of the next frame is not known.
const BLIND_BYTES: usize = 256 << 10;

/// How long a server that accepts connections has to answer at least.
pub(super) const ANSWER_LEAST: Duration = Duration::from_secs(1);

/// So much later than it should have given up, a helper is not waited for any more.
const HELPER_GRACE: Duration = Duration::from_secs(10);

/// What is asked for as the socket's send buffer.
const SEND_BUFFER_BYTES: usize = 2 * limits::SEND_BATCH_BYTES;

/// What [`Connection::fill`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// This many new bytes; there may be a frame.
    Data(usize),
    /// Nothing now.
    WouldBlock,
    /// The server has closed the connection, or is gone.
    Closed,
}

/// A frame that its reader keeps.
#[derive(Debug)]
pub struct TakenFrame {
    /// The frame's header.
    pub header: FrameHeader,
    /// The buffer that the body lies in.
    pub buffer: Vec<u8>,
    /// Where.
    pub body: std::ops::Range<usize>,
}

/// A connection. Everything it does but the handshake returns at once.
#[derive(Debug)]
pub struct Connection {
    stream: OwnedFd,
    store: std::path::PathBuf,
    /// Who is behind the socket, if it is no server. Dropped behind it, as it ends with it.
    helper: Option<(Url, Helper)>,
    input: Vec<u8>,
    start: usize,
    end: usize,
    output: Vec<u8>,
    written: usize,
    server: ServerInfo,
    /// Descriptors that came and were not taken; none where none are expected.
    descriptors: Option<VecDeque<OwnedFd>>,
}

impl Connection {
    /// Connects to the server of `store`, without a handshake.
    ///
    /// # Errors
    /// What the system says: `NotFound` or `ConnectionRefused` when no server is there,
    /// `WouldBlock` when it has too many callers waiting at this moment.
    pub fn connect(store: &StoreDir) -> io::Result<Connection> {
        let address = SocketAddrUnix::new(store.socket_address())?;
        let stream = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&stream, &address)?;
        Ok(Connection { store: store.path().to_path_buf(), ..Connection::over(stream) })
    }

    /// A connection over a socket that is connected already: a helper's, or a test's.
    ///
    /// # Errors
    /// What the system says when the socket cannot be made non-blocking.
    pub fn from_stream(stream: OwnedFd) -> io::Result<Connection> {
        rustix::io::ioctl_fionbio(&stream, true)?;
        Ok(Connection::over(stream))
    }

    /// A connection to a helper that was just started.
    ///
    /// # Errors
    /// See [`Connection::from_stream`].
    pub fn to_helper(stream: OwnedFd, url: Url, helper: Helper) -> io::Result<Connection> {
        Ok(Connection { helper: Some((url, helper)), ..Connection::from_stream(stream)? })
    }

    /// Whether a helper is behind it, for a queue that lives at an engine.
    #[must_use]
    pub fn is_to_engine(&self) -> bool {
        self.helper.is_some()
    }

    /// What it means that the peer has closed the connection: a server may come back, a helper does not.
    pub fn lost(&mut self) -> ClientError {
        match self.helper.take() {
            Some((url, helper)) => ClientError::HelperGone { url, how: helper.end() },
            None => ClientError::Lost,
        }
    }

    /// How long an answer may take where `patience` is what a user grants: a helper gives up by itself
    /// when that is over, and says why.
    #[must_use]
    pub fn patience<'p>(&self, patience: Patience<'p>) -> Patience<'p> {
        if self.is_to_engine() { patience.longer(HELPER_GRACE) } else { patience }
    }

    fn over(stream: OwnedFd) -> Connection {
        // As large as the system allows: a batch should fit. A smaller one is only slower.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
        Connection {
            stream,
            store: std::path::PathBuf::new(),
            helper: None,
            input: vec![0; FIRST_INPUT_BYTES],
            start: 0,
            end: 0,
            output: Vec::new(),
            written: 0,
            server: ServerInfo {
                version: String::new(),
                pid: 0,
                producer_retry: Micros(0),
                cannot: Vec::new(),
            },
            descriptors: None,
        }
    }

    /// From now on descriptors that come with frames are kept, to be taken when the frame is.
    pub fn expect_descriptors(&mut self) {
        self.descriptors.get_or_insert_default();
    }

    /// The descriptor that came first of those that were not taken.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.as_mut()?.pop_front()
    }

    /// The server, as it said in the handshake.
    #[must_use]
    pub fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// Says who we are and learns who the server is, after a look at the server's credentials:
    /// it must be ours or root's. Waits at most [`limits::HANDSHAKE`]. The frames in `opening` go
    /// right behind the first, whose answer they need not wait for: that saves a round trip. Every
    /// version of the protocol that is offered must understand them.
    ///
    /// # Errors
    /// [`ClientError::ForeignServer`], [`ClientError::Version`], [`ClientError::Silent`],
    /// [`ClientError::Lost`], [`ClientError::Refused`], [`ClientError::Interrupted`].
    pub fn handshake(
        &mut self,
        tool: &str,
        command: &str,
        opening: &[u8],
        patience: Patience<'_>,
    ) -> Result<(), ClientError> {
        self.check_peer()?;
        let client = ClientInfo {
            tool: tool.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: command.to_owned(),
        }
        .shortened();
        let hello = Request::Hello {
            oldest: wire::VERSION_OLDEST,
            newest: wire::VERSION,
            client: Some(client),
        };
        self.push(0, &hello);
        self.output.extend_from_slice(opening);
        // Whoever does not want to wait for a server (`-w 0`) still lets one that is there answer.
        let patience = patience.at_least(ANSWER_LEAST).at_most(limits::HANDSHAKE.to_duration());
        let (version, server) = self.answer(patience, |_, reply| match reply {
            Reply::Welcome(version, server) => Ok(Some((version, server))),
            Reply::Goodbye(_) => Err(ClientError::Lost),
            other => Err(unexpected(&other)),
        })?;
        if !(wire::VERSION_OLDEST..=wire::VERSION).contains(&version) {
            return Err(ClientError::Version { version, package: server.version });
        }
        self.server = server;
        Ok(())
    }

    fn check_peer(&self) -> Result<(), ClientError> {
        let peer =
            self.peer().map_err(|errno| ClientError::io("see whose server it is")(errno.into()))?;
        if peer.uid() == rustix::process::geteuid().as_raw() || peer.uid() == 0 {
            return Ok(());
        }
        Err(ClientError::ForeignServer { store: self.store.clone(), uid: peer.uid() })
    }

    /// Writes what is pushed and reads until `take` has found its answer. An ERROR frame is an
    /// error here whatever its channel, so this is for connections with one thing under way.
    ///
    /// # Errors
    /// [`ClientError::Silent`] when the patience is over, [`ClientError::Refused`],
    /// [`ClientError::Lost`], [`ClientError::Wire`], and what `take` returns.
    pub fn answer<T>(
        &mut self,
        patience: Patience<'_>,
        mut take: impl FnMut(u16, Reply<'_>) -> Result<Option<T>, ClientError>,
    ) -> Result<T, ClientError> {
        loop {
            while let Some((header, body)) = self.next_frame()? {
                match Reply::decode(&header, body)? {
                    Reply::Error(fault) => return Err(ClientError::Refused(fault)),
                    reply => {
                        if let Some(found) = take(header.channel, reply)? {
                            return Ok(found);
                        }
                    }
                }
            }
            let flushed = self.flush().map_err(ClientError::io("write to the server"))?;
            match self.fill().map_err(ClientError::io("read from the server"))? {
                Filled::Data(_) => continue,
                Filled::Closed => return Err(ClientError::Lost),
                Filled::WouldBlock => {}
            }
            let out = if flushed { PollFlags::empty() } else { PollFlags::OUT };
            if patience.wait_for(self.as_fd(), PollFlags::IN | out)?.is_empty() {
                return Err(self.silent());
            }
        }
    }

    fn peer(&self) -> nix::Result<nix::sys::socket::UnixCredentials> {
        nix::sys::socket::getsockopt(&self.stream, nix::sys::socket::sockopt::PeerCredentials)
    }

    fn silent(&self) -> ClientError {
        if let Some((url, helper)) = &self.helper {
            return ClientError::HelperSilent { url: url.clone(), pid: helper.pid() };
        }
        // A process of another namespace shows as 0.
        let pid = self.peer().ok().and_then(|peer| u32::try_from(peer.pid()).ok());
        let pid = pid.filter(|pid| *pid != 0);
        ClientError::Silent { store: self.store.clone(), pid }
    }

    /// Puts a request into the out buffer; [`Connection::flush`] writes it.
    pub fn push(&mut self, channel: u16, request: &Request<'_>) {
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
        request.encode(channel, &mut self.output);
    }

    /// Bytes that are pushed and not yet written, so that a caller can bound them.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.output.len() - self.written
    }

    /// Writes what is pushed, as far as the socket takes it; true when all is written.
    ///
    /// To a server that is gone everything counts as written: [`Connection::fill`] tells of that,
    /// after the last words that it may have left.
    ///
    /// # Errors
    /// What the system says.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.written < self.output.len() {
            match write_some(&self.stream, &self.output[self.written..])? {
                Some(bytes) => self.written += bytes,
                None => return Ok(false),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(true)
    }

    /// Writes whole encoded frames past the out buffer, behind what is pushed: how many bytes the
    /// socket took, maybe none. The caller owes the rest before anything else is written.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_through(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.flush()? {
            return Ok(0);
        }
        Ok(write_some(&self.stream, bytes)?.unwrap_or(0))
    }

    /// Reads once into the receive buffer.
    ///
    /// Asks for no more than the rest of the frame that has begun and the header behind it, when
    /// that frame is large: so frames that come in a row each begin at the front of the buffer,
    /// which stays hot, and nothing but a header is ever moved.
    ///
    /// # Errors
    /// What the system says.
    pub fn fill(&mut self) -> io::Result<Filled> {
        self.widen();
        let partial = self.end - self.start;
        let wanted = match self.frame_begun() {
            Some(total) if total > BLIND_BYTES => total - partial + FRAME_HEADER_BYTES,
            _ => BLIND_BYTES,
        };
        if partial == 0 || self.end + wanted > self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, partial);
        }
        let room = wanted.min(self.input.len() - self.end);
        assert!(room > 0, "the receive buffer is full of frames that were not taken");
        let space = &mut self.input[self.end..self.end + room];
        let received = match &mut self.descriptors {
            None => rustix::net::recv(&self.stream, space, RecvFlags::empty()).map(|(n, _)| n),
            Some(descriptors) => receive(&self.stream, space, descriptors),
        };
        match received {
            Ok(0) | Err(rustix::io::Errno::CONNRESET) => Ok(Filled::Closed),
            Ok(bytes) => {
                self.end += bytes;
                Ok(Filled::Data(bytes))
            }
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(Filled::WouldBlock),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A small buffer that was filled to its end, or cannot hold the frame that has begun, becomes
    /// one of [`INPUT_BYTES`].
    fn widen(&mut self) {
        let small = self.input.len() < INPUT_BYTES;
        let is_full = self.end == self.input.len()
            || self
                .frame_begun()
                .is_some_and(|total| total + FRAME_HEADER_BYTES > self.input.len());
        if small && is_full {
            let mut input = vec![0; INPUT_BYTES];
            let partial = self.end - self.start;
            input[..partial].copy_from_slice(&self.input[self.start..self.end]);
            (self.start, self.end) = (0, partial);
            self.input = input;
        }
    }

    fn header(&self) -> Option<Result<FrameHeader, WireError>> {
        let bytes = self.input[self.start..self.end].first_chunk::<FRAME_HEADER_BYTES>()?;
        Some(FrameHeader::decode(bytes))
    }

    /// Bytes of the frame that has begun, when its header is there.
    fn frame_begun(&self) -> Option<usize> {
        let header = self.header()?.ok()?;
        Some(FRAME_HEADER_BYTES + header.length as usize)
    }

    /// Forgets what was read and not taken, whatever it is.
    pub fn discard(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Takes the next frame out of the receive buffer, if it is complete.
    ///
    /// # Errors
    /// A header that makes no sense: the connection is then of no use.
    pub fn next_frame(&mut self) -> Result<Option<(FrameHeader, &[u8])>, WireError> {
        let Some(header) = self.header() else { return Ok(None) };
        let header = header?;
        let total = FRAME_HEADER_BYTES + header.length as usize;
        if self.end - self.start < total {
            return Ok(None);
        }
        let body = self.start + FRAME_HEADER_BYTES..self.start + total;
        self.start += total;
        Ok(Some((header, &self.input[body])))
    }

    /// Takes the next frame for keeps, with the part of the buffer that is its body: a small one
    /// as a copy, a large one with the receive buffer itself, in whose place `spare` puts one of
    /// [`INPUT_BYTES`]. As [`Connection::fill`] ends its reads where a large frame ends, next to
    /// nothing has to be moved.
    ///
    /// # Errors
    /// See [`Connection::next_frame`].
    pub fn take_frame(
        &mut self,
        spare: impl FnOnce() -> Vec<u8>,
    ) -> Result<Option<TakenFrame>, WireError> {
        let Some((header, body)) = self.next_frame()? else { return Ok(None) };
        let length = body.len();
        if length <= limits::RECEIVE_COPY_BYTES_MAX {
            let body = body.to_vec();
            return Ok(Some(TakenFrame { header, buffer: body, body: 0..length }));
        }
        let mut fresh = spare();
        assert_eq!(fresh.len(), INPUT_BYTES, "a receive buffer of the wrong size");
        let behind = self.end - self.start;
        fresh[..behind].copy_from_slice(&self.input[self.start..self.end]);
        let body = self.start - length..self.start;
        (self.start, self.end) = (0, behind);
        Ok(Some(TakenFrame { header, buffer: std::mem::replace(&mut self.input, fresh), body }))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Receives bytes, and the descriptors that are sent with them.
fn receive(
    stream: &OwnedFd,
    space: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> rustix::io::Result<usize> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, recvmsg};
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut parts = [io::IoSliceMut::new(space)];
    // More descriptors than one at a time are nothing that a server sends: the system closes them.
    let received = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    // Nor are so many that nobody waits for.
    let are_too_many = descriptors.len() as u64 > limits::EXTENTS_UNDER_WAY_MAX;
    if are_too_many { Err(rustix::io::Errno::PROTO) } else { Ok(received.bytes) }
}

/// How many bytes the socket took; `None` when it takes none now.
fn write_some(stream: &OwnedFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    use rustix::io::Errno;
    match rustix::net::send(stream, bytes, SendFlags::NOSIGNAL) {
        Ok(written) => Ok(Some(written)),
        Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Ok(Some(bytes.len())),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The error for a frame that does not belong where it came.
#[must_use]
pub fn unexpected(reply: &Reply<'_>) -> ClientError {
    let kind = match reply {
        Reply::Welcome(..) => "WELCOME",
        Reply::Error(_) => "ERROR",
        Reply::Goodbye(_) => "GOODBYE",
        Reply::Reply(_) => "REPLY",
        Reply::Sending(_) => "SENDING",
        Reply::Confirm(..) => "CONFIRM",
        Reply::Held(_) => "HELD",
        Reply::Receiving(_) => "RECEIVING",
        Reply::Deliver(..) => "DELIVER",
        Reply::Extent(_) => "EXTENT",
        Reply::End => "END",
        Reply::Closed => "CLOSED",
    };
    ClientError::Unexpected(format!("a {kind} frame that nobody asked for"))
}

/// The shortest and the longest pause between two tries to reach a server.
pub(super) const PAUSES: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_millis(50));
