//! A bare connection to a server: says what it is told, right or wrong, and hears the answers.
//!
//! Speaks only the byte layouts of `mq::wire`; it shares no code with the tools' own client.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use mq::wire::{ClientInfo, FRAME_HEADER_BYTES, FrameHeader, Kind, Reply, Request, VERSION};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{DEADLINE, Store, process};

/// A frame as it came.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Its body.
    pub body: Vec<u8>,
}

impl Frame {
    /// What it says.
    #[track_caller]
    pub fn reply(&self) -> Reply<'_> {
        Reply::decode(&self.header, &self.body).expect("the server sends valid frames")
    }
}

/// A connection.
pub struct Peer {
    stream: UnixStream,
}

impl Peer {
    /// Connects without a word.
    pub fn silent(store: &Store) -> io::Result<Peer> {
        // By way of the open directory, as a path may be longer than a socket address holds.
        let directory = std::fs::File::open(store.path())?;
        let address = format!("/proc/self/fd/{}/sock", directory.as_raw_fd());
        let stream = UnixStream::connect(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Peer { stream })
    }

    /// Connects and shakes hands.
    pub fn connect(store: &Store) -> io::Result<Peer> {
        let mut peer = Peer::silent(store)?;
        let client = ClientInfo {
            tool: "test".to_owned(),
            version: "0".to_owned(),
            ..ClientInfo::default()
        };
        peer.say(0, &Request::Hello { oldest: VERSION, newest: VERSION, client: Some(client) })?;
        match peer.hear()? {
            Some(frame) if frame.header.kind == Kind::Welcome => Ok(peer),
            other => {
                let said = other.as_ref().map(Frame::reply);
                Err(io::Error::other(format!("no welcome but {said:?}")))
            }
        }
    }

    /// Sends a request.
    pub fn say(&mut self, channel: u16, request: &Request<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        request.encode(channel, &mut bytes);
        self.raw(&bytes)
    }

    /// Sends any bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends bytes and passes descriptors of ours along.
    pub fn raw_with_descriptors(
        &mut self,
        bytes: &[u8],
        passed: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut space = vec![std::mem::MaybeUninit::uninit(); 64 + 4 * passed.len()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(passed)), "there is space");
        let bytes = [io::IoSlice::new(bytes)];
        sendmsg(&self.stream, &bytes, &mut control, SendFlags::empty())?;
        Ok(())
    }

    /// The next frame; `None` when the server has hung up.
    pub fn hear(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0u8; FRAME_HEADER_BYTES];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
        let header = FrameHeader::decode(&head).map_err(io::Error::other)?;
        let mut body = vec![0u8; header.length as usize];
        self.stream.read_exact(&mut body)?;
        Ok(Some(Frame { header, body }))
    }

    /// The next frame, which must come.
    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        self.hear().expect("the server answers").expect("the server has not hung up")
    }

    /// The next frame of this kind; what comes before it is passed over.
    #[track_caller]
    pub fn frame_of(&mut self, kind: Kind) -> Frame {
        loop {
            let frame = self.frame();
            if frame.header.kind == kind {
                return frame;
            }
            assert_ne!(frame.header.kind, Kind::Error, "{:?}", frame.reply());
        }
    }

    /// Ends this side's part, as a client that is cut off does.
    pub fn shut(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Waits until the server has hung up; returns the text of its ERROR, if it sent one.
    #[track_caller]
    pub fn await_hang_up(&mut self) -> Option<String> {
        let mut said = None;
        while let Some(frame) = self.hear().expect("the server hangs up in time") {
            if let Reply::Error(fault) = frame.reply() {
                said = Some(fault.message);
            }
        }
        said
    }

    /// Whether something is there to be heard at once.
    pub fn has_news(&self) -> bool {
        process::wait_readable(&self.stream, std::time::Duration::ZERO)
    }
}
