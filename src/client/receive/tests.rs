//! The receiver against a server played by the test, and a reader played by the test.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;
use crate::batch::{BatchHeader, Framing, Place, checksum};
use crate::client::format::{Format, Shape};
use crate::client::outlet::Outlet;
use crate::units::{
    Epoch, LeaseNumber, Offset, Position, ProducerId, QueueId, SegmentNumber, Sequence, WallTime,
};
use crate::wire::{
    DeliverHead, ErrorCode, FRAME_HEADER_BYTES, Fault, FrameHeader, Goodbye, Nack, OpenReceive,
    ReceiveMode, Receiving, Reply, Request,
};

const QUEUE: QueueId = QueueId(uuid::Uuid::from_u128(7));

fn range(start: u64, end: u64) -> OffsetRange {
    OffsetRange::new(Offset(start), Offset(end))
}

/// What a receiver said to the server.
#[derive(Debug, PartialEq)]
enum Said {
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
struct Server {
    stream: UnixStream,
    position: u64,
    /// The last credit that was heard.
    credit: u64,
}

impl Server {
    fn hear(&mut self) -> Option<Said> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.stream.read_exact(&mut header).ok()?;
        let header = FrameHeader::decode(&header).expect("a frame");
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

    /// The next thing said that is not credit.
    fn hear_news(&mut self) -> Option<Said> {
        loop {
            match self.hear() {
                Some(Said::Credit(_)) => {}
                said => return said,
            }
        }
    }

    fn hear_credit(&mut self, least: u64) -> u64 {
        while self.credit < least {
            assert!(self.hear().is_some(), "hung up before it gave credit");
        }
        self.credit
    }

    fn say(&mut self, reply: &Reply<'_>) {
        let mut bytes = Vec::new();
        reply.encode(1, &mut bytes);
        self.stream.write_all(&bytes).expect("a receiver");
    }

    fn open(&mut self, kept: Vec<OffsetRange>) -> OpenReceive {
        let Some(Said::Open(open)) = self.hear() else { panic!("no OPEN_RECEIVE") };
        self.say(&Reply::Receiving(Receiving {
            queue_id: Some(QUEUE),
            kept,
            ..Receiving::default()
        }));
        open
    }

    fn batch(&mut self, first: u64, lines: &[u8]) -> (DeliverHead, Vec<u8>) {
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

    fn deliver(&mut self, first: u64, lines: &[u8]) {
        let (head, bytes) = self.batch(first, lines);
        self.say(&Reply::Deliver(head, &bytes));
    }

    /// Serves the end: expects nothing but credit and CLOSE.
    fn closed(&mut self) {
        assert_eq!(self.hear_news(), Some(Said::Close));
        self.say(&Reply::Closed);
    }
}

struct Dials(mpsc::Receiver<OwnedFd>);

impl Dial for Dials {
    fn dial(&mut self, _: Option<bool>, _: Patience<'_>) -> Result<Connection, ClientError> {
        let socket = self.0.recv().map_err(|_| ClientError::Lost)?;
        Ok(Connection::from_stream(socket).expect("a connection"))
    }
}

struct Script {
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

type Ended = (Result<End, ReceiveError>, Tally, Vec<Note>);

/// A receiver in a thread of its own.
struct Play {
    servers: mpsc::Sender<OwnedFd>,
    signals: UnixStream,
    thread: JoinHandle<Ended>,
}

impl Play {
    fn start(options: Options, outlet: OwnedFd) -> Play {
        let (servers, dials) = mpsc::channel();
        let (signals, watched) = UnixStream::pair().expect("a pair");
        watched.set_nonblocking(true).expect("a socket");
        let thread = std::thread::spawn(move || {
            let mut script = Script { signals: watched, notes: Vec::new() };
            let outlet = Outlet::new(outlet).expect("an outlet");
            let printer = Printer::new(outlet, Format::new(Shape::Body(Some(b'\n'))));
            let mut receiver = Receiver::new(options, Dials(dials), printer);
            let end = receiver.run(&mut script);
            (end, receiver.tally(), script.notes)
        });
        Play { servers, signals, thread }
    }

    fn serve(&self) -> Server {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        self.servers.send(theirs.into()).expect("a receiver");
        Server { stream: ours, position: 64, credit: 0 }
    }

    fn signal(&mut self, signal: i32) {
        self.signals.write_all(&[signal as u8]).expect("a receiver");
    }

    fn ended(self) -> Ended {
        drop(self.servers);
        self.thread.join().expect("it does not panic")
    }
}

fn name(name: &str) -> Name {
    Name::new(name).expect("a name")
}

fn options() -> Options {
    Options::new(Queues::One(name("q")))
}

fn pipe() -> (std::fs::File, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    (reader.into(), writer)
}

fn read(reader: &mut std::fs::File, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    reader.read_exact(&mut buffer).expect("bytes");
    buffer
}

#[test]
fn what_the_reader_took_is_acknowledged_and_no_more() {
    let (mut reader, writer) = pipe();
    let play = Play::start(Options { until_end: true, ..options() }, writer);
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    server.deliver(10, b"one\ntwo\nthree\n");
    assert_eq!(read(&mut reader, 6), b"one\ntw");
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(10, 11)])));
    assert_eq!(read(&mut reader, 8), b"o\nthree\n");
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(11, 13)])));
    server.say(&Reply::End);
    server.closed();
    let (end, tally, notes) = play.ended();
    assert!(matches!(end, Ok(End::Done)), "{end:?}");
    assert_eq!((tally.messages, tally.bytes), (3, 14));
    assert!(notes.is_empty());
}

#[test]
fn a_reader_that_goes_leaves_what_it_did_not_take() {
    let (mut reader, writer) = pipe();
    let play = Play::start(options(), writer);
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    server.deliver(10, b"one\ntwo\nthree\n");
    read(&mut reader, 9);
    drop(reader);
    let mut acked = Vec::new();
    loop {
        match server.hear_news() {
            Some(Said::Ack(ranges)) => acked.extend(ranges),
            Some(Said::Release(ranges)) => {
                assert_eq!(ranges, [range(12, 13)]);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let acked: u64 = acked.iter().map(OffsetRange::span).sum();
    assert_eq!(acked, 2);
    server.closed();
    assert!(matches!(play.ended().0, Ok(End::ReaderGone)));
}

#[test]
fn an_idle_receiver_ends_when_its_reader_goes() {
    let (reader, writer) = pipe();
    let play = Play::start(options(), writer);
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    drop(reader);
    server.closed();
    assert!(matches!(play.ended().0, Ok(End::ReaderGone)));
}

#[test]
fn credit_never_goes_beyond_the_limit_and_grows_below_it() {
    let (mut reader, writer) = pipe();
    let play = Play::start(Options { limit: Some(9), ..options() }, writer);
    let mut server = play.serve();
    server.open(vec![]);
    let mut sent = 0;
    let mut credits = Vec::new();
    while sent < 9 {
        let total = server.hear_credit(sent + 1);
        credits.push(total);
        assert!(total <= 9, "{credits:?}");
        server.deliver(sent, "x\n".repeat((total - sent) as usize).as_bytes());
        read(&mut reader, 2 * (total - sent) as usize);
        sent = total;
    }
    assert_eq!(credits[0], 1);
    assert!(credits.len() < 8, "the window grew: {credits:?}");
    loop {
        match server.hear_news() {
            Some(Said::Ack(_)) => {}
            Some(Said::Close) => break,
            other => panic!("{other:?}"),
        }
    }
    server.say(&Reply::Closed);
    let (end, tally, _) = play.ended();
    assert!(matches!(end, Ok(End::Done)));
    assert_eq!(tally.messages, 9);
}

#[test]
fn messages_beyond_the_limit_are_given_back_even_if_a_server_sends_them() {
    let (mut reader, writer) = pipe();
    let play = Play::start(Options { limit: Some(1), ..options() }, writer);
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    server.deliver(1, b"a\nb\nc\n");
    assert_eq!(read(&mut reader, 2), b"a\n");
    let mut said = Vec::new();
    while said.last() != Some(&Said::Close) {
        said.extend(server.hear_news());
    }
    assert!(said.contains(&Said::Ack(vec![range(1, 2)])), "{said:?}");
    assert!(said.contains(&Said::Release(vec![range(2, 4)])), "{said:?}");
    server.say(&Reply::Closed);
    assert_eq!(play.ended().1.messages, 1);
}

/// Fills the reader's pipe with one line, so that what follows stays unwritten.
fn fill(server: &mut Server) -> usize {
    let mut line = vec![b'x'; (1 << 16) - 1];
    line.push(b'\n');
    server.deliver(1, &line);
    line.len()
}

#[test]
fn after_a_restart_what_is_kept_goes_on_and_nothing_is_written_twice() {
    let (mut reader, writer) = pipe();
    let play = Play::start(options(), writer);
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    server.deliver(0, b"first\n");
    read(&mut reader, 6);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(0, 1)])));
    let filled = fill(&mut server);
    server.deliver(2, b"kept\ngone\n");
    // It has read all that was sent before it sees the end.
    drop(server);
    let mut server = play.serve();
    let open = server.open(vec![range(0, 3)]);
    assert_eq!(open.queue_id, Some(QUEUE));
    assert_eq!(open.holding, [range(0, 4)], "also what the old server may not have heard of");
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(0, 1)])));
    read(&mut reader, filled);
    assert_eq!(read(&mut reader, 5), b"kept\n");
    let mut acked = Vec::new();
    while acked.iter().map(OffsetRange::span).sum::<u64>() < 2 {
        let Some(Said::Ack(ranges)) = server.hear_news() else { panic!("no ack") };
        acked.extend(ranges);
    }
    // Three were kept: the credit is beyond that.
    server.hear_credit(4);
    server.deliver(3, b"gone\n");
    assert_eq!(read(&mut reader, 5), b"gone\n");
    drop(reader);
    loop {
        if server.hear_news() == Some(Said::Close) {
            break;
        }
    }
    server.say(&Reply::Closed);
    let (_, tally, notes) = play.ended();
    assert_eq!(tally.messages, 4);
    assert_eq!(notes, [Note::ServerGone(false)]);
}

#[test]
fn acks_are_repeated_to_the_next_server_before_it_ends_well() {
    let (mut reader, writer) = pipe();
    let play = Play::start(Options { limit: Some(1), ..options() }, writer);
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    server.deliver(5, b"a\n");
    read(&mut reader, 2);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(5, 6)])));
    server.say(&Reply::Goodbye(Goodbye { reason: "stopped".to_owned(), orderly: true }));
    let mut server = play.serve();
    assert_eq!(server.open(vec![range(5, 6)]).holding, [range(5, 6)]);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(5, 6)])));
    server.closed();
    assert!(matches!(play.ended().0, Ok(End::Done)));
}

/// What was taken in the very turn in which a server was lost used to be presented to the next
/// one neither as held nor as acknowledged, and so came again.
#[test]
fn what_is_taken_while_there_is_no_server_is_not_received_again() {
    let (mut reader, writer) = pipe();
    let play = Play::start(Options { limit: Some(1), ..options() }, writer);
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    server.deliver(5, b"a\n");
    read(&mut reader, 2);
    drop(server);
    let mut server = play.serve();
    assert_eq!(server.open(vec![range(5, 6)]).holding, [range(5, 6)]);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(5, 6)])));
    server.closed();
    assert!(matches!(play.ended().0, Ok(End::Done)));
}

#[test]
fn a_damaged_delivery_is_complained_about_and_not_used() {
    let (mut reader, writer) = pipe();
    let play = Play::start(options(), writer);
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    let (head, mut bytes) = server.batch(0, b"good\n");
    let good = bytes.clone();
    bytes[66] ^= 1;
    server.say(&Reply::Deliver(head, &bytes));
    assert_eq!(server.hear_news(), Some(Said::Complain(SegmentNumber(1), Position(64))));
    assert_eq!(server.hear_news(), Some(Said::Release(vec![range(0, 1)])));
    server.hear_credit(2);
    server.say(&Reply::Deliver(DeliverHead { redelivered: true, ..head }, &good));
    assert_eq!(read(&mut reader, 5), b"good\n");
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(0, 1)])));
    let fault = Fault { code: ErrorCode::Corrupt, message: "bad disk".to_owned(), remedy: None };
    server.say(&Reply::Error(fault.clone()));
    server.closed();
    let (end, tally, notes) = play.ended();
    assert!(matches!(end, Err(ReceiveError::Client(ClientError::Refused(told))) if told == fault));
    assert_eq!(tally.redelivered, 1);
    assert_eq!(notes, [Note::Redelivered(name("q"), range(0, 1))]);
}

#[test]
fn a_signal_stops_the_writing_and_waits_for_the_reader() {
    let (mut reader, writer) = pipe();
    let mut play = Play::start(options(), writer);
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    let filled = fill(&mut server);
    server.deliver(2, b"never\n");
    // The pipe is full, so the second message is read and not written.
    while rustix::io::ioctl_fionread(&reader).expect("a pipe") < filled as u64 {
        std::thread::yield_now();
    }
    play.signal(15);
    let mut said = server.hear_news();
    if said == Some(Said::Release(vec![range(2, 3)])) {
        read(&mut reader, filled);
        said = server.hear_news();
    }
    assert_eq!(said, Some(Said::Ack(vec![range(1, 2)])));
    server.closed();
    let mut rest = Vec::new();
    let (end, tally, _) = play.ended();
    reader.read_to_end(&mut rest).expect("the end");
    assert!(rest.is_empty());
    assert!(matches!(end, Ok(End::Signal(15))));
    assert_eq!(tally.messages, 1);
}

#[test]
fn who_only_looks_acknowledges_nothing_and_sees_nothing_twice() {
    let (mut reader, writer) = pipe();
    let play =
        Play::start(Options { taking: Taking::Looked, until_end: true, ..options() }, writer);
    let mut server = play.serve();
    assert_eq!(server.open(vec![]).mode, ReceiveMode::Peek);
    server.hear_credit(1);
    server.deliver(1, b"a\nb\n");
    assert_eq!(read(&mut reader, 4), b"a\nb\n");
    drop(server);
    let mut server = play.serve();
    assert!(server.open(vec![]).holding.is_empty());
    server.hear_credit(1);
    server.deliver(1, b"a\nb\nc\n");
    assert_eq!(read(&mut reader, 2), b"c\n");
    server.say(&Reply::End);
    server.closed();
    assert!(matches!(play.ended().0, Ok(End::Done)));
}

#[test]
fn a_queue_that_is_not_there_is_waited_for_and_that_is_said_once() {
    let (_reader, writer) = pipe();
    let wait = Some(Micros::from_millis(30));
    let play = Play::start(Options { wait, ..options() }, writer);
    let mut server = play.serve();
    assert!(matches!(server.hear(), Some(Said::Open(_))));
    server.say(&Reply::Receiving(Receiving::default()));
    server.closed();
    let (end, tally, notes) = play.ended();
    assert!(matches!(end, Ok(End::Done)));
    assert_eq!(
        (tally.messages, notes.as_slice()),
        (0, [Note::NoQueue(Some(name("q")))].as_slice())
    );
}

#[test]
fn a_file_is_acknowledged_once_it_is_synced() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let options = Options { limit: Some(3), ..options() };
    let play = Play::start(options, file.reopen().expect("a file").into());
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    server.deliver(1, b"a\nb\nc\n");
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(1, 4)])));
    server.closed();
    assert!(matches!(play.ended().0, Ok(End::Done)));
    assert_eq!(std::fs::read(file.path()).expect("the file"), b"a\nb\nc\n");
}

#[test]
fn a_device_that_is_full_leaves_everything_queued() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
    let play = Play::start(options(), full.into());
    let mut server = play.serve();
    server.open(vec![]);
    server.hear_credit(1);
    server.deliver(1, b"a\nb\n");
    assert_eq!(server.hear_news(), Some(Said::Release(vec![range(1, 3)])));
    server.closed();
    let (end, _, _) = play.ended();
    let Err(ReceiveError::Outlet { error, cut: None }) = end else { panic!("{end:?}") };
    assert!(error.is_full());
}
