//! What a queue was declared to promise: limits, ids that are stored once, keys that are pending
//! once, what is kept for replay; and senders with a name. Spoken in bare frames, so that each
//! answer is seen as it comes.

use mq::batch::{Framing, Record, flags, push_annex, push_attribute, tags};
use mq::settings::{IdWindow, Overflow, Retention, Wanted};
use mq::units::{Count, Epoch, Micros, Monotonic, Name, ProducerId, Sequence, SyncPolicy};
use mq::wire::{
    Admin, ErrorCode, Fault, Kind, OpenReceive, OpenSend, PublishHead, QueueInfo, ReceiveMode,
    Reply, Request, Sending,
};

use crate::harness::{Running, Store, eventually, peer::Peer};

fn q() -> Name {
    Name::new("q").expect("a name")
}

/// A server, and a store around it.
struct Stage {
    _server: Running,
    store: Store,
}

impl Stage {
    fn new(wanted: &Wanted) -> Stage {
        let store = Store::new();
        let server = store.serve();
        let stage = Stage { _server: server, store };
        stage.declare(wanted, false).expect("a queue can be declared");
        stage
    }

    fn peer(&self) -> Peer {
        Peer::connect(&self.store).expect("the server answers")
    }

    fn declare(&self, wanted: &Wanted, change: bool) -> Result<QueueInfo, Fault> {
        let declare = Admin::Declare { queue: q(), wanted: wanted.clone(), change };
        let mut peer = self.peer();
        peer.say(1, &Request::Admin(declare)).expect("the server listens");
        match peer.frame().reply() {
            Reply::Reply(json) => Ok(serde_json::from_slice(json).expect("a queue")),
            Reply::Error(fault) => Err(fault),
            other => panic!("{other:?}"),
        }
    }

    fn info(&self) -> QueueInfo {
        self.declare(&Wanted::default(), false).expect("it is there")
    }

    /// kill -9, and the next server.
    fn killed(self) -> Stage {
        self.store.kill_server();
        let Stage { _server, store } = self;
        drop(_server);
        let server = store.serve();
        Stage { _server: server, store }
    }

    /// What is ready, taken.
    fn received(&self, count: usize) -> Vec<String> {
        let count = count.to_string();
        let done = self.store.run("mq-recv", &["-e", "-n", &count, "q"], b"");
        assert!(matches!(done.code, 0 | 124), "{}", done.stderr);
        done.text().lines().map(str::to_owned).collect()
    }
}

/// A channel that sends.
struct Publisher {
    peer: Peer,
    sequence: u64,
}

/// A record with one attribute.
fn record(out: &mut Vec<u8>, attribute: Option<(u8, &str)>, body: &str) {
    let mut attributes = Vec::new();
    if let Some((tag, value)) = attribute {
        push_attribute(&mut attributes, tag, value.as_bytes());
    }
    Record { attribute_bytes: &attributes, body: body.as_bytes() }.encode(out);
}

impl Publisher {
    fn open(
        stage: &Stage,
        change: impl FnOnce(&mut OpenSend),
    ) -> Result<(Publisher, Sending), Fault> {
        let mut open = OpenSend::new(q(), ProducerId(rand_id()));
        change(&mut open);
        let mut peer = stage.peer();
        peer.say(1, &Request::OpenSend(open)).expect("the server listens");
        match peer.frame().reply() {
            Reply::Sending(sending) => {
                let sequence = sending.last.0;
                Ok((Publisher { peer, sequence }, sending))
            }
            Reply::Error(fault) => Err(fault),
            other => panic!("{other:?}"),
        }
    }

    fn new(stage: &Stage) -> Publisher {
        Publisher::open(stage, |_| {}).expect("the queue takes senders").0
    }

    fn publish(&mut self, framing: Framing, batch_flags: u16, count: u32, payload: &[u8]) {
        self.sequence += u64::from(count);
        let (sequence, read) = (Sequence(self.sequence), Monotonic(0));
        let head = PublishHead { sequence, count, framing, batch_flags, read, more: false };
        self.peer.say(1, &Request::Publish(head, payload)).expect("the server listens");
    }

    fn lines(&mut self, lines: &[&str]) {
        let payload: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.publish(Framing::Delimited(b'\n'), 0, lines.len() as u32, payload.as_bytes());
    }

    /// Messages that each have this attribute with the body as its value.
    fn tagged(&mut self, tag: u8, values: &[&str]) {
        let mut payload = Vec::new();
        values.iter().for_each(|value| record(&mut payload, Some((tag, value)), value));
        self.publish(Framing::Records, 0, values.len() as u32, &payload);
    }

    /// Waits until everything up to the sequence is confirmed; how many were there already.
    #[track_caller]
    fn confirmed(&mut self, sequence: u64) -> u64 {
        loop {
            let frame = self.peer.frame();
            match frame.reply() {
                Reply::Confirm(Sequence(at), _, Count(there)) if at == sequence => return there,
                Reply::Confirm(at, ..) => assert!(at.0 < sequence, "{at} is confirmed too"),
                other => panic!("{other:?} instead of a confirmation of {sequence}"),
            }
        }
    }

    #[track_caller]
    fn held(&mut self) -> String {
        match self.peer.frame().reply() {
            Reply::Held(fault) => fault.message,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(&mut self) -> Fault {
        match self.peer.frame().reply() {
            Reply::Error(fault) => fault,
            other => panic!("{other:?}"),
        }
    }
}

fn rand_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[test]
fn full_queue_holds_its_senders_up_and_never_more_than_its_limit() {
    let stage = Stage::new(&Wanted { max_messages: Some(3), ..Wanted::default() });
    let mut first = Publisher::new(&stage);
    first.lines(&["1", "2", "3", "4", "5"]);
    let held = first.held();
    assert!(held.contains("3 messages"), "{held}");
    first.confirmed(3);
    let mut second = Publisher::new(&stage);
    second.lines(&["6"]);
    second.held();
    assert_eq!(stage.info().ready, Count(3));
    assert_eq!(stage.received(1), ["1"]);
    first.confirmed(4);
    assert_eq!(stage.info().ready, Count(3));
    assert_eq!(stage.received(2), ["2", "3"]);
    // Both have room now, each its turn.
    first.confirmed(5);
    second.confirmed(1);
    let mut all = stage.received(9);
    all.sort_unstable();
    assert_eq!(all, ["4", "5", "6"]);
    // Once more, by raising the limit.
    first.lines(&["a", "b", "c", "d"]);
    first.held();
    first.confirmed(8);
    stage.declare(&Wanted { max_messages: Some(4), ..Wanted::default() }, true).expect("changed");
    first.confirmed(9);
}

#[test]
fn sender_that_waits_for_room_can_go() {
    let stage = Stage::new(&Wanted { max_messages: Some(1), ..Wanted::default() });
    let mut first = Publisher::new(&stage);
    first.lines(&["1", "2"]);
    first.held();
    let mut second = Publisher::new(&stage);
    second.lines(&["3"]);
    second.held();
    drop(first);
    assert_eq!(stage.received(1), ["1"]);
    // What it sent before it went may still come in, once.
    let mut left = Vec::new();
    eventually("the other's turn comes", || {
        left.extend(stage.received(1));
        second.peer.has_news().then_some(())
    });
    second.confirmed(1);
    left.extend(stage.received(9));
    assert!(left == ["3"] || left == ["2", "3"], "{left:?}");
}

#[test]
fn rejecting_queue_stores_what_fits_and_says_so() {
    let wanted =
        Wanted { max_messages: Some(3), overflow: Some(Overflow::Reject), ..Wanted::default() };
    let stage = Stage::new(&wanted);
    let mut sender = Publisher::new(&stage);
    sender.lines(&["1", "2"]);
    sender.lines(&["3", "4", "5"]);
    sender.confirmed(3);
    let fault = sender.refused();
    assert_eq!(fault.code, ErrorCode::Full, "{fault:?}");
    assert_eq!(stage.received(9), ["1", "2", "3"]);
}

#[test]
fn oldest_make_room_and_are_counted() {
    let wanted =
        Wanted { max_messages: Some(3), overflow: Some(Overflow::DropOldest), ..Wanted::default() };
    let stage = Stage::new(&wanted);
    let mut sender = Publisher::new(&stage);
    sender.lines(&["1", "2"]);
    sender.confirmed(2);
    // What is in someone's hands stays.
    let mut holder = stage.peer();
    let open = OpenReceive::new(q(), Name::default(), ReceiveMode::Take);
    holder.say(1, &Request::OpenReceive(open)).expect("the server listens");
    holder.frame_of(Kind::Receiving);
    holder.say(1, &Request::Credit(1)).expect("the server listens");
    holder.frame_of(Kind::Deliver);
    for n in 3..=9 {
        sender.lines(&[&n.to_string()]);
        sender.confirmed(n);
    }
    assert_eq!(stage.info().dropped, Count(6));
    drop(holder);
    eventually("it is given back", || (stage.info().unacked == Count(0)).then_some(()));
    assert_eq!(stage.received(9), ["1", "8", "9"]);
}

#[test]
fn bytes_are_limited_too() {
    let wanted = Wanted { max_bytes: Some(10_000), ..Wanted::default() };
    let stage = Stage::new(&wanted);
    let mut sender = Publisher::new(&stage);
    let line = "x".repeat(999);
    let lines = vec![line.as_str(); 20];
    sender.lines(&lines);
    sender.held();
    sender.confirmed(9);
    assert_eq!(stage.received(4).len(), 4);
    // One by one there is less room, as each batch has a header.
    sender.confirmed(13);
    let mut other = Publisher::new(&stage);
    other.lines(&["y".repeat(20_000).as_str()]);
    let fault = other.refused();
    assert_eq!(fault.code, ErrorCode::BadInput, "{fault:?}");
}

#[test]
fn id_is_stored_once_also_after_kill() {
    let wanted = Wanted { unique_ids: Some(IdWindow::Count(3)), ..Wanted::default() };
    let mut stage = Stage::new(&wanted);
    let mut sender = Publisher::new(&stage);
    sender.tagged(tags::ID, &["a", "b", "a"]);
    assert_eq!(sender.confirmed(3), 1);
    sender.tagged(tags::ID, &["b", "a"]);
    assert_eq!(sender.confirmed(5), 3, "nothing is stored, and it is confirmed");
    stage = stage.killed();
    let mut other = Publisher::new(&stage);
    other.tagged(tags::ID, &["a", "c", "d"]);
    assert_eq!(other.confirmed(3), 1);
    // The window has moved on: a is forgotten, b, c and d are not.
    other.tagged(tags::ID, &["b", "a", "d"]);
    assert_eq!(other.confirmed(6), 3);
    assert_eq!(stage.received(9), ["a", "b", "c", "d", "a"]);
}

#[test]
fn key_is_pending_once() {
    let wanted = Wanted { unique_keys: Some(2), ..Wanted::default() };
    let mut stage = Stage::new(&wanted);
    let open = |stage: &Stage| Publisher::open(stage, |open| open.unless_pending = true).unwrap().0;
    let mut sender = open(&stage);
    sender.tagged(tags::KEY, &["a", "b", "a"]);
    assert_eq!(sender.confirmed(3), 1);
    stage = stage.killed();
    let mut sender = open(&stage);
    sender.tagged(tags::KEY, &["b", "a"]);
    assert_eq!(sender.confirmed(2), 2);
    sender.tagged(tags::KEY, &["a", "c"]);
    assert_eq!(sender.confirmed(3), 3);
    let fault = sender.refused();
    assert_eq!(fault.code, ErrorCode::Full, "{fault:?}");
    assert_eq!(stage.received(1), ["a"]);
    let mut sender = open(&stage);
    sender.tagged(tags::KEY, &["b", "a"]);
    assert_eq!(sender.confirmed(2), 1);
    assert_eq!(stage.received(9), ["b", "a"]);
    sender.lines(&["no key"]);
    assert_eq!(sender.refused().code, ErrorCode::BadInput);
}

#[test]
fn pending_keys_are_asked_of_queues_that_know_them_only() {
    let stage = Stage::new(&Wanted::default());
    let refused = Publisher::open(&stage, |open| open.unless_pending = true).err();
    assert_eq!(refused.map(|fault| fault.code), Some(ErrorCode::Usage));
    let mut sender = Publisher::new(&stage);
    sender.tagged(tags::KEY, &["a"]);
    sender.confirmed(1);
    let keys = Wanted { unique_keys: Some(9), ..Wanted::default() };
    let fault = stage.declare(&keys, true).expect_err("keys that are there are not known");
    assert_eq!(fault.code, ErrorCode::Usage, "{fault:?}");
    stage.received(9);
    stage.declare(&keys, true).expect("an empty queue learns");
}

#[test]
fn named_sender_goes_on_where_it_was_and_fences_off_the_one_before() {
    let mut stage = Stage::new(&Wanted { sync: Some(SyncPolicy::Never), ..Wanted::default() });
    let named = |open: &mut OpenSend| {
        open.producer = ProducerId(77);
        open.named = true;
    };
    let (mut first, sending) = Publisher::open(&stage, named).unwrap();
    assert_eq!((sending.last, sending.epoch, sending.annex), (Sequence(0), Epoch(1), None));
    let mut payload = Vec::new();
    push_annex(&mut payload, b"line 2");
    payload.extend_from_slice(b"1\n2\n");
    first.publish(Framing::Delimited(b'\n'), flags::ANNEX, 2, &payload);
    first.confirmed(2);
    let (mut second, sending) = Publisher::open(&stage, named).unwrap();
    assert_eq!((sending.last, sending.epoch), (Sequence(2), Epoch(2)));
    assert_eq!(sending.annex.as_deref(), Some(b"line 2".as_slice()));
    first.lines(&["3"]);
    assert_eq!(first.refused().code, ErrorCode::Fenced);
    // The whole input again: what is stored is stored once.
    second.sequence = 0;
    second.lines(&["1", "2", "3"]);
    second.confirmed(3);
    stage = stage.killed();
    let (_, sending) = Publisher::open(&stage, named).unwrap();
    assert_eq!((sending.last, sending.epoch), (Sequence(3), Epoch(3)));
    assert_eq!(stage.received(9), ["1", "2", "3"]);
    let mut plain = Publisher::new(&stage);
    plain.publish(Framing::Delimited(b'\n'), flags::ANNEX, 2, &payload);
    assert_eq!(plain.refused().code, ErrorCode::Protocol, "it has no name");
}

#[test]
fn settings_that_differ_are_named() {
    let stage = Stage::new(&Wanted { max_messages: Some(5), ..Wanted::default() });
    let other = Wanted {
        sync: Some(SyncPolicy::Never),
        max_messages: Some(6),
        dead_letter: Some(Name::new("morgue").expect("a name")),
        ..Wanted::default()
    };
    let fault = stage.declare(&other, false).expect_err("they differ");
    assert_eq!(fault.code, ErrorCode::Different);
    assert_eq!(
        fault.message,
        "queue q exists with --sync always, not never, and with --max-messages 5, not 6, \
         and without --dead-letter, not with morgue"
    );
    let info = stage.declare(&other, true).expect("they are changed");
    assert_eq!(info.settings.max_messages, Some(6));
    let none = Wanted { max_messages: Some(0), ..Wanted::default() };
    assert_eq!(stage.declare(&none, true).expect("no limit").settings.max_messages, None);
    let stage = stage.killed();
    assert_eq!(stage.info().settings.dead_letter, other.dead_letter);
    for bad in [
        Wanted { max_age: Some(Micros(1)), ..Wanted::default() },
        Wanted { dead_letter: Some(q()), ..Wanted::default() },
    ] {
        assert_eq!(stage.declare(&bad, true).expect_err("nonsense").code, ErrorCode::Usage);
    }
}

#[test]
fn changes_of_settings_do_not_take_each_other_back() {
    let stage = Stage::new(&Wanted::default());
    let mut peers: Vec<Peer> = (0..8).map(|_| stage.peer()).collect();
    for (n, peer) in peers.iter_mut().enumerate() {
        let wanted = match n % 2 {
            0 => Wanted { max_messages: Some(100 + n as u64), ..Wanted::default() },
            _ => Wanted { max_bytes: Some(100 + n as u64), ..Wanted::default() },
        };
        let declare = Admin::Declare { queue: q(), wanted, change: true };
        peer.say(1, &Request::Admin(declare)).expect("the server listens");
    }
    for peer in &mut peers {
        let frame = peer.frame_of(Kind::Reply);
        let Reply::Reply(json) = frame.reply() else { panic!("no reply") };
        let info: QueueInfo = serde_json::from_slice(json).expect("a queue");
        assert!(info.settings.max_messages.is_some() || info.settings.max_bytes.is_some());
    }
    let settings = stage.info().settings;
    assert!(settings.max_messages.is_some() && settings.max_bytes.is_some(), "{settings:?}");
}

#[test]
fn log_keeps_what_it_says_for_replay() {
    let wanted =
        Wanted { retain: Some(Retention::Log), max_bytes: Some(1 << 20), ..Wanted::default() };
    let stage = Stage::new(&wanted);
    let line = "l".repeat(999);
    for n in 0..40u64 {
        let lines: String = (0..100).map(|m| format!("{} {line}\n", n * 100 + m)).collect();
        stage.store.send("q", lines.as_bytes());
        if n == 0 {
            assert_eq!(stage.received(5).len(), 5);
        }
    }
    let kept = eventually("what is beyond the limit goes", || {
        let bytes = stage.info().bytes;
        (bytes < (1 << 20) + (1 << 18)).then_some(bytes)
    });
    assert!(kept >= 1 << 20, "{kept}");
    let received = stage.received(5000);
    let first: u64 = received[0].split(' ').next().unwrap().parse().unwrap();
    assert!(first > 2500, "the group moved on to {first}");
    assert_eq!(received.len() as u64, 4000 - first);
    assert_eq!(stage.info().dropped, Count(0), "retention is no accident");
}

#[test]
fn log_forgets_what_is_old_without_being_asked() {
    let wanted = Wanted {
        retain: Some(Retention::Log),
        max_age: Some(Micros::from_secs(1)),
        ..Wanted::default()
    };
    let stage = Stage::new(&wanted);
    stage.store.send("q", &"old\n".repeat(100_000).into_bytes());
    assert!(stage.info().bytes >= 400_000);
    eventually("the old messages go", || (stage.info().bytes < 100_000).then_some(()));
    stage.store.send("q", b"new\n");
    assert_eq!(stage.received(9), ["new"]);
}

#[test]
fn part_behind_the_end_of_a_large_message_is_an_error() {
    let stage = Stage::new(&Wanted::default());
    let mut sender = Publisher::new(&stage);
    let mut whole = Vec::new();
    record(&mut whole, None, "a body in two parts");
    let (head, tail) = whole.split_at(10);
    let publish = |sequence, more| PublishHead {
        sequence: Sequence(sequence),
        count: 1,
        framing: Framing::Records,
        batch_flags: 0,
        read: Monotonic(0),
        more,
    };
    for (payload, more) in [(head, true), (tail, true), (&b"surplus"[..], true)] {
        sender.peer.say(1, &Request::Publish(publish(1, more), payload)).expect("sent");
    }
    let said = sender.peer.await_hang_up().unwrap_or_default();
    assert!(said.contains("longer than its header says"), "{said}");
    assert_eq!(stage.info().end.0, 0);
}

#[test]
fn rest_of_a_batch_of_which_the_beginning_is_stored_is_stored() {
    let stage = Stage::new(&Wanted::default());
    let mut sender = Publisher::new(&stage);
    sender.lines(&["1", "2"]);
    sender.confirmed(2);
    sender.sequence = 0;
    sender.lines(&["1", "2", "3", "4"]);
    sender.confirmed(4);
    assert_eq!(stage.received(9), ["1", "2", "3", "4"]);
}

#[test]
fn oldest_message_is_named_with_its_group_and_its_time() {
    let stage = Stage::new(&Wanted::default());
    let mut sender = Publisher::new(&stage);
    assert_eq!(stage.info().oldest_time, None);
    sender.lines(&["1", "2"]);
    sender.confirmed(2);
    let first = stage.info();
    assert!(first.oldest_time.is_some_and(|time| time >= first.created), "{first:?}");
    assert_eq!(first.oldest_group, None, "nobody holds it up");
    sender.lines(&["3"]);
    sender.confirmed(3);
    assert_eq!(stage.received(1), ["1"]);
    let second = stage.info();
    assert_eq!(
        (second.oldest_time, second.oldest_group),
        (first.oldest_time, Some(Name::default()))
    );
    assert_eq!(stage.received(1), ["2"]);
    assert!(stage.info().oldest_time > first.oldest_time);
    assert_eq!(stage.received(1), ["3"]);
    assert_eq!((stage.info().oldest_time, stage.info().oldest_group), (None, None));
}

/// Senders that waited for room once kept the buffers that all connections share: some thirty of
/// them, and nothing was received any more, not even the acks that would have made room.
#[test]
fn senders_that_wait_for_room_hold_nobody_else_up() {
    let stage = Stage::new(&Wanted { max_messages: Some(1), ..Wanted::default() });
    let line = "w".repeat(255 << 10);
    let mut waiting: Vec<Publisher> = (0..60)
        .map(|_| {
            let mut sender = Publisher::new(&stage);
            sender.lines(&[&line]);
            sender
        })
        .collect();
    let told = waiting.iter_mut().filter_map(|sender| match sender.peer.frame().reply() {
        Reply::Held(_) => Some(()),
        Reply::Confirm(..) => None,
        other => panic!("{other:?}"),
    });
    assert_eq!(told.count(), 59);
    stage.store.send("another", line.as_bytes());
    assert_eq!(stage.received(1).len(), 1);
    assert_eq!(stage.info().senders, 60);
    // One that goes is not waited for, though its frame is never read to its end.
    waiting.truncate(30);
    eventually("the others are gone", || (stage.info().senders == 30).then_some(()));
    let mut taken = 1;
    while taken < 30 {
        taken += stage.received(1).len();
    }
}
