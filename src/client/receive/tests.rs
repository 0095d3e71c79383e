//! The receiver against a server played by the test, and a reader played by the test.

mod several;

use std::io::Read;
use std::os::fd::OwnedFd;

use super::stage::*;
use super::*;
use crate::client::format::{Format, Shape};
use crate::client::outlet::Outlet;
use crate::units::{Position, SegmentNumber};
use crate::wire::{DeliverHead, ErrorCode, Fault, Goodbye, ReceiveMode, Receiving, Reply};

/// A receiver that prints to `outlet`.
fn start(options: Options, outlet: OwnedFd) -> Play {
    Play::start(options, || {
        let outlet = Outlet::new(outlet).expect("an outlet");
        Printer::new(outlet, Format::new(Shape::Body(Some(b'\n'))))
    })
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
    let play = start(Options { until_end: true, ..options() }, writer);
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
    let play = start(options(), writer);
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
    let play = start(options(), writer);
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
    let play = start(Options { limit: Some(9), ..options() }, writer);
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
    let play = start(Options { limit: Some(1), ..options() }, writer);
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
    let play = start(options(), writer);
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
    let play = start(Options { limit: Some(1), ..options() }, writer);
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
    let play = start(Options { limit: Some(1), ..options() }, writer);
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
    let play = start(options(), writer);
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
    let fault = Fault::new(ErrorCode::Corrupt, "bad disk");
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
    let mut play = start(options(), writer);
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
    let play = start(Options { taking: Taking::Looked, until_end: true, ..options() }, writer);
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
    let play = start(Options { wait, ..options() }, writer);
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
    let play = start(options, file.reopen().expect("a file").into());
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
    let play = start(options(), full.into());
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
