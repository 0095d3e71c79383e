//! Several queues in one receiver, and the other ways of taking.

use super::*;
use crate::wire::{MEMBER_CHANNELS, OpenReceive, QueuePattern};

const A: u16 = MEMBER_CHANNELS + 3;
const B: u16 = MEMBER_CHANNELS + 1;

fn several() -> Options {
    let patterns = vec![QueuePattern("a".to_owned()), QueuePattern("b*".to_owned())];
    Options::new(Queues::Several { patterns, strict: true })
}

fn announce(server: &mut Server, channel: u16, queue: &str, kept: Vec<OffsetRange>) {
    let receiving =
        Receiving { queue_id: Some(QUEUE), queue: Some(name(queue)), kept, ..Receiving::default() };
    server.say_on(channel, &Reply::Receiving(receiving));
}

/// Answers the opening of a receiver that holds nothing: two queues are there.
fn open(server: &mut Server) -> OpenReceive {
    let Some(Said::Open(open)) = server.hear() else { panic!("no OPEN_RECEIVE") };
    announce(server, A, "a", vec![]);
    announce(server, B, "b1", vec![]);
    server.say(&Reply::Receiving(Receiving::default()));
    open
}

#[test]
fn each_queue_is_acknowledged_on_its_channel_and_credit_is_for_all() {
    let (mut reader, writer) = pipe();
    let play = start(Options { limit: Some(3), ..several() }, writer);
    let mut server = play.serve();
    let asked = open(&mut server);
    assert_eq!(asked.patterns.len(), 2);
    assert!(asked.strict);
    server.hear_credit(1);
    assert_eq!(server.channel, 1);
    server.deliver_on(A, 7, b"one\n", 0);
    read(&mut reader, 4);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(7, 8)])));
    assert_eq!(server.channel, A);
    server.hear_credit(2);
    // The same offsets, and no mixing up.
    server.deliver_on(B, 7, b"two\nthree\n", 0);
    assert_eq!(read(&mut reader, 10), b"two\nthree\n");
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(7, 9)])));
    assert_eq!(server.channel, B);
    server.closed();
    assert_eq!(server.channel, 1);
    assert_eq!(play.ended().1.messages, 3);
}

#[test]
fn after_a_restart_each_queue_keeps_its_own() {
    let (mut reader, writer) = pipe();
    let play = start(several(), writer);
    let mut server = play.serve();
    open(&mut server);
    server.hear_credit(1);
    let mut line = vec![b'x'; (1 << 16) - 1];
    line.push(b'\n');
    server.deliver_on(A, 1, &line, 0);
    server.deliver_on(B, 5, b"kept\n", 0);
    server.deliver_on(A, 2, b"gone\n", 0);
    drop(server);
    let mut server = play.serve();
    let Some(Said::Open(asked)) = server.hear() else { panic!("no OPEN_RECEIVE") };
    let held: Vec<_> =
        asked.holdings.iter().map(|held| (held.queue.as_str(), held.ranges.clone())).collect();
    assert_eq!(held, [("a", vec![range(1, 3)]), ("b1", vec![range(5, 6)])]);
    announce(&mut server, B, "a", vec![range(1, 2)]);
    announce(&mut server, A, "b1", vec![range(5, 6)]);
    server.say(&Reply::Receiving(Receiving::default()));
    assert_eq!(read(&mut reader, line.len() + 5)[line.len()..], *b"kept\n");
    let mut acked = Vec::new();
    while acked.len() < 2 {
        let Some(Said::Ack(ranges)) = server.hear_news() else { panic!("no ack") };
        acked.push((server.channel, ranges));
    }
    acked.sort_unstable();
    assert_eq!(acked, [(B, vec![range(1, 2)]), (A, vec![range(5, 6)])]);
    drop(reader);
    while server.hear_news() != Some(Said::Close) {}
    server.say(&Reply::Closed);
    let _ = play.ended();
}

/// CLOSE before the server has heard that they are settled would give them back.
#[test]
fn a_new_server_hears_of_every_queue_before_the_end() {
    let (mut reader, writer) = pipe();
    let play = start(Options { limit: Some(1), ..several() }, writer);
    let mut server = play.serve();
    open(&mut server);
    server.hear_credit(1);
    server.deliver_on(B, 5, b"a\n", 0);
    read(&mut reader, 2);
    drop(server);
    let mut server = play.serve();
    assert!(matches!(server.hear(), Some(Said::Open(open)) if open.holdings.len() == 1));
    announce(&mut server, B, "a", vec![]);
    announce(&mut server, A, "b1", vec![range(5, 6)]);
    server.say(&Reply::Receiving(Receiving::default()));
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(5, 6)])));
    assert_eq!(server.channel, A);
    server.closed();
    assert!(matches!(play.ended().0, Ok(End::Done)));
}

#[test]
fn what_came_from_a_removed_queue_is_dropped_and_the_others_go_on() {
    let (mut reader, writer) = pipe();
    let play = start(Options { until_end: true, ..several() }, writer);
    let mut server = play.serve();
    open(&mut server);
    server.hear_credit(1);
    let mut line = vec![b'x'; (1 << 16) - 1];
    line.push(b'\n');
    server.deliver_on(A, 1, &line, 0);
    server.deliver_on(B, 1, b"never\n", 0);
    server.deliver_on(A, 2, b"last\n", 0);
    server.say_on(B, &Reply::Closed);
    server.say(&Reply::End);
    let mut out = vec![0; line.len() + 5];
    std::thread::scope(|threads| {
        threads.spawn(|| reader.read_exact(&mut out).expect("bytes"));
        let mut acked = 0;
        while acked < 2 {
            let Some(Said::Ack(ranges)) = server.hear_news() else { panic!("no ack") };
            assert_eq!(server.channel, A);
            acked += ranges.iter().map(OffsetRange::span).sum::<u64>();
        }
        server.closed();
    });
    assert_eq!(out[line.len()..], *b"last\n");
    let (end, tally, notes) = play.ended();
    assert!(matches!(end, Ok(End::Done)), "{end:?}");
    assert_eq!(
        (tally.messages, notes.as_slice()),
        (2, [Note::QueueRemoved(name("b1"))].as_slice())
    );
}

#[test]
fn a_damaged_queue_is_told_and_the_others_go_on() {
    let (mut reader, writer) = pipe();
    let play = start(Options { until_end: true, ..several() }, writer);
    let mut server = play.serve();
    open(&mut server);
    let fault = Fault::new(ErrorCode::Corrupt, "bad disk");
    server.say_on(A, &Reply::Error(fault.clone()));
    server.hear_credit(1);
    server.deliver_on(B, 1, b"good\n", 0);
    read(&mut reader, 5);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(1, 2)])));
    server.say(&Reply::End);
    server.closed();
    let (end, _, notes) = play.ended();
    assert!(matches!(end, Err(ReceiveError::Client(ClientError::Refused(told))) if told == fault));
    assert_eq!(notes, [Note::QueueFailed(name("a"), fault)]);
}

#[test]
fn queues_that_are_all_missing_are_waited_for_and_that_is_said_once() {
    let (_reader, writer) = pipe();
    let wait = Some(Micros::from_millis(30));
    let play = start(Options { wait, ..several() }, writer);
    let mut server = play.serve();
    assert!(matches!(server.hear(), Some(Said::Open(_))));
    server.say(&Reply::Receiving(Receiving::default()));
    server.closed();
    assert_eq!(play.ended().2, [Note::NoQueue(None)]);
}

#[test]
fn an_exclusive_receiver_holds_nothing_before_its_turn() {
    let (mut reader, writer) = pipe();
    let play = start(Options { exclusive: true, limit: Some(1), ..options() }, writer);
    let mut server = play.serve();
    let Some(Said::Open(open)) = server.hear() else { panic!("no OPEN_RECEIVE") };
    assert!(open.exclusive);
    let waiting = Receiving { queue_id: Some(QUEUE), held: true, ..Receiving::default() };
    server.say(&Reply::Receiving(waiting.clone()));
    server.say(&Reply::Receiving(Receiving { epoch: Some(4), held: false, ..waiting }));
    server.hear_credit(1);
    server.deliver(1, b"a\n");
    read(&mut reader, 2);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(1, 2)])));
    server.closed();
    assert_eq!(play.ended().2, [Note::Waiting(name("q"))]);
}

/// A receipt that was not printed is of no use to anyone until its lease is over.
#[test]
fn under_a_lease_no_message_is_taken_before_the_last_one_was_read() {
    let (mut reader, writer) = pipe();
    let lease = Micros::from_secs(60);
    let play =
        start(Options { taking: Taking::Leased(lease), limit: Some(3), ..options() }, writer);
    let mut server = play.serve();
    assert_eq!(server.open(vec![]).lease, Some(lease));
    for offset in 0..3 {
        assert_eq!(server.hear_credit(offset + 1), offset + 1);
        server.deliver(offset, b"x\n");
        read(&mut reader, 2);
    }
    server.closed();
    assert_eq!(play.ended().1.messages, 3);
}

#[test]
fn what_is_settled_by_being_delivered_is_not_acknowledged_and_goes_on_after_a_restart() {
    let (mut reader, writer) = pipe();
    let options = Options { taking: Taking::Unacked, until_end: true, ..options() };
    let play = start(options, writer);
    let mut server = play.serve();
    assert!(server.open(vec![]).no_ack);
    server.hear_credit(1);
    let filled = fill(&mut server);
    server.deliver(2, b"two\n");
    drop(server);
    let mut server = play.serve();
    assert!(server.open(vec![]).holding.is_empty());
    server.hear_credit(1);
    server.deliver(3, b"three\n");
    assert_eq!(read(&mut reader, filled + 10)[filled..], *b"two\nthree\n");
    server.say(&Reply::End);
    server.closed();
    assert_eq!(play.ended().1.messages, 3);
}
