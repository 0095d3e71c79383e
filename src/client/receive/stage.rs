//! The stage for tests of a receiver: a server and a caller that are played by the test.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::link::CHANNEL;
use super::*;
use crate::batch::{BatchHeader, Framing, Place, checksum};
use crate::units::{
    Epoch, LeaseNumber, Offset, Position, ProducerId, QueueId, SegmentNumber, Sequence, WallTime,
};
use crate::wire::{
    DeliverHead, FRAME_HEADER_BYTES, FrameHeader, Nack, OpenReceive, Receiving, Reply, Request,
};

pub(in crate::client) const QUEUE: QueueId = QueueId(uuid::Uuid::from_u128(7));

pub(in crate::client) fn range(start: u64, end: u64) -> OffsetRange {
    OffsetRange::new(Offset(start), Offset(end))
}

/// What a receiver said to the server.
#[derive(Debug, PartialEq)]
pub(in crate::client) enum Said {
    Open(OpenReceive),
    Credit(u64),
    Ack(Vec<OffsetRange>),
    Release(Vec<OffsetRange>),
    Complain(SegmentNumber, Position),
    Begin(Vec<OffsetRange>),
    Nack(Nack),
    Close,
}

/// The server's end of one connection.
pub(in crate::client) struct Server {
    stream: UnixStream,
    position: u64,
    /// The last credit that was heard.
    credit: u64,
    /// The channel of what was heard last.
    pub(in crate::client) channel: u16,
}

impl Server {
    pub(in crate::client) fn hear(&mut self) -> Option<Said> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.stream.read_exact(&mut header).ok()?;
        let header = FrameHeader::decode(&header).expect("a frame");
        self.channel = header.channel;
        let mut body = vec![0; header.length as usize];
        self.stream.read_exact(&mut body).expect("a body");
        Some(match Request::decode(&header, &body).expect("a request") {
            Request::OpenReceive(open) => Said::Open(open),
            Request::Credit(total) => {
                self.credit = total;
                Said::Credit(total)
            }
            Request::Ack(ranges) => Said::Ack(ranges),
            Request::Release(_, ranges) => Said::Release(ranges),
            Request::Complain(segment, position) => Said::Complain(segment, position),
            Request::Begin(ranges) => Said::Begin(ranges),
            Request::Nack(nack) => Said::Nack(nack),
            Request::Close => Said::Close,
            other => panic!("a receiver does not say {other:?}"),
        })
    }

    /// Whether something is said within this time; for what must not happen.
    pub(in crate::client) fn has_news(&self, patience: Micros) -> bool {
        let until = Instant::now() + patience.to_duration();
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        wait::poll(&mut fds, Some(until)).expect("a socket") > 0
    }

    /// The next thing said that is not credit.
    pub(in crate::client) fn hear_news(&mut self) -> Option<Said> {
        loop {
            match self.hear() {
                Some(Said::Credit(_)) => {}
                said => return said,
            }
        }
    }

    pub(in crate::client) fn hear_credit(&mut self, least: u64) -> u64 {
        while self.credit < least {
            assert!(self.hear().is_some(), "hung up before it gave credit");
        }
        self.credit
    }

    pub(in crate::client) fn say(&mut self, reply: &Reply<'_>) {
        self.say_on(CHANNEL, reply);
    }

    pub(in crate::client) fn write(&mut self, frames: &[u8]) {
        self.stream.write_all(frames).expect("a receiver");
    }

    pub(in crate::client) fn say_on(&mut self, channel: u16, reply: &Reply<'_>) {
        let mut bytes = Vec::new();
        reply.encode(channel, &mut bytes);
        self.stream.write_all(&bytes).expect("a receiver");
    }

    pub(in crate::client) fn open(&mut self, kept: Vec<OffsetRange>) -> OpenReceive {
        let Some(Said::Open(open)) = self.hear() else { panic!("no OPEN_RECEIVE") };
        self.say(&Reply::Receiving(Receiving {
            queue_id: Some(QUEUE),
            kept,
            ..Receiving::default()
        }));
        open
    }

    pub(in crate::client) fn batch(&mut self, first: u64, lines: &[u8]) -> (DeliverHead, Vec<u8>) {
        let count = memchr::memchr_iter(b'\n', lines).count() as u32;
        let header = BatchHeader {
            payload_bytes: lines.len() as u32,
            framing: Framing::Delimited(b'\n'),
            flags: 0,
            offset: Offset(first),
            count,
            payload_crc: checksum(lines),
            mark: Offset(0),
            time: WallTime(1),
            producer: ProducerId(1),
            sequence: Sequence(1),
            epoch: Epoch(1),
        };
        let (segment, position) = (SegmentNumber(1), Position(self.position));
        let mut bytes = header.encode(&Place { queue: QUEUE, segment, position }).to_vec();
        bytes.extend_from_slice(lines);
        self.position += bytes.len() as u64;
        let end = header.end();
        let (attempt, more, redelivered, behind) = (0, false, false, true);
        let lease = LeaseNumber(0);
        (DeliverHead { segment, position, end, attempt, lease, more, redelivered, behind }, bytes)
    }

    pub(in crate::client) fn deliver(&mut self, first: u64, lines: &[u8]) {
        self.deliver_on(CHANNEL, first, lines, 0);
    }

    pub(in crate::client) fn deliver_on(
        &mut self,
        channel: u16,
        first: u64,
        lines: &[u8],
        attempt: u32,
    ) {
        let (head, bytes) = self.batch(first, lines);
        self.say_on(channel, &Reply::Deliver(DeliverHead { attempt, ..head }, &bytes));
    }

    /// Serves the end: expects nothing but credit and CLOSE.
    pub(in crate::client) fn closed(&mut self) {
        assert_eq!(self.hear_news(), Some(Said::Close));
        self.say(&Reply::Closed);
    }
}

struct Dials(mpsc::Receiver<OwnedFd>);

impl Dial for Dials {
    fn dial(&mut self, _: Option<bool>, patience: Patience<'_>) -> Result<Connection, ClientError> {
        loop {
            match self.0.try_recv() {
                Ok(socket) => return Ok(Connection::from_stream(socket).expect("a connection")),
                Err(mpsc::TryRecvError::Disconnected) => return Err(ClientError::Lost),
                Err(mpsc::TryRecvError::Empty) if patience.is_over() => {
                    let (store, waited) = (std::path::PathBuf::new(), Duration::ZERO);
                    return Err(ClientError::NoServer { store, waited, may_start: false });
                }
                Err(mpsc::TryRecvError::Empty) => patience.sleep(Duration::from_millis(1))?,
            }
        }
    }

    fn go_to(&mut self, _: Url) -> bool {
        false
    }
}

pub(in crate::client) struct Script {
    signals: UnixStream,
    notes: Vec<Note>,
}

impl AsFd for Script {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl Caller for Script {
    fn take_signal(&mut self) -> Option<i32> {
        let mut byte = [0];
        matches!(self.signals.read(&mut byte), Ok(1)).then(|| i32::from(byte[0]))
    }
    fn note(&mut self, note: Note) {
        self.notes.push(note);
    }
    fn progress(&mut self, _: &Tally) {}
}

pub(in crate::client) type Ended = (Result<End, ReceiveError>, Tally, Vec<Note>);

/// A receiver in a thread of its own.
pub(in crate::client) struct Play {
    servers: mpsc::Sender<OwnedFd>,
    signals: UnixStream,
    thread: JoinHandle<Ended>,
}

impl Play {
    /// With a sink that is made there.
    pub(in crate::client) fn start<S: Sink>(
        options: Options,
        sink: impl FnOnce() -> S + Send + 'static,
    ) -> Play {
        let (servers, dials) = mpsc::channel();
        let (signals, watched) = UnixStream::pair().expect("a pair");
        watched.set_nonblocking(true).expect("a socket");
        let thread = std::thread::spawn(move || {
            let mut script = Script { signals: watched, notes: Vec::new() };
            let mut receiver = Receiver::new(options, Dials(dials), sink());
            let end = receiver.run(&mut script);
            (end, receiver.tally(), script.notes)
        });
        Play { servers, signals, thread }
    }

    pub(in crate::client) fn serve(&self) -> Server {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        self.servers.send(theirs.into()).expect("a receiver");
        Server { stream: ours, position: 64, credit: 0, channel: 0 }
    }

    pub(in crate::client) fn signal(&mut self, signal: i32) {
        self.signals.write_all(&[signal as u8]).expect("a receiver");
    }

    pub(in crate::client) fn ended(self) -> Ended {
        drop(self.servers);
        self.thread.join().expect("it does not panic")
    }
}

pub(in crate::client) fn name(name: &str) -> Name {
    Name::new(name).expect("a name")
}

pub(in crate::client) fn options() -> Options {
    Options::new(Queues::One(name("q")))
}
