//! Delayed messages: not before their time, soon after it, across restarts, and without a cost
//! that depends on how many wait.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mq::batch::{Framing, Record, push_attribute, tags};
use mq::units::{Monotonic, Name, ProducerId, Sequence, WallTime};
use mq::wire::{ErrorCode, Kind, OpenSend, PublishHead, Reply, Request};
use rustix::process::Signal;

use crate::harness::peer::Peer;
use crate::harness::{Random, Store, eventually};
use crate::{seq, size};

/// Milliseconds since the epoch.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock behind 1970");
    now.as_millis() as u64
}

#[test]
fn a_delayed_message_comes_when_it_is_due_and_holds_nothing_up() {
    let store = Store::new();
    store.send("q", b"at once\n");
    let mut receiver = store.spawn("mq-recv", &["q"]);
    assert_eq!(receiver.line().as_deref(), Some("at once"));
    for delay in [5900u64, 5300, 5600] {
        let due = now_ms() + delay;
        let delay = format!("{delay}ms");
        store.run("mq-send", &["--delay", &delay, "q", "-m", &due.to_string()], b"").ok();
    }
    store.send("q", b"before them\n");
    assert_eq!(receiver.line().as_deref(), Some("before them"));
    let mut last = 0;
    for _ in 0..3 {
        let due: u64 = receiver.line().expect("a line").parse().expect("a time");
        let now = now_ms();
        assert!(due > last, "in the order of their times");
        // What the tool took to start counts from the moment that it reads the clock.
        assert!(now + 1 >= due, "{} ms early", due - now);
        assert!(now < due + 2_000, "{} ms late on a loaded machine", now - due);
        last = due;
    }
    drop(receiver);
    store.run("mq-admin", &["check"], b"").ok();
}

#[test]
fn a_time_in_the_past_is_no_delay() {
    let store = Store::new();
    store.run("mq-send", &["--delay", "2001-01-01T00:00:00Z", "q", "-m", "x"], b"").ok();
    assert_eq!(store.receive("q"), b"x\n");
    assert!(!store.path().join("queues/q/delayed").exists());
}

#[test]
fn delays_survive_kills_and_stops_and_each_message_comes_once() {
    let store = Store::new();
    let count = size("MQ_DELAYED", 3_000);
    let mut random = Random(5);
    let mut sent = Vec::new();
    for part in 0..6 {
        let lines = seq(part * count / 6 + 1, (part + 1) * count / 6);
        let delay = format!("{}ms", 200 + random.below(3_000));
        store.run("mq-send", &["--delay", &delay, "q"], &lines).ok();
        sent.extend(lines);
        store.send("q", format!("plain {part}\n").as_bytes());
        sent.extend(format!("plain {part}\n").into_bytes());
        if part % 2 == 0 {
            store.kill_server();
        } else {
            store.run("mq-admin", &["stop"], b"").ok();
        }
    }
    let expected = String::from_utf8(sent).expect("text").lines().count();
    let wanted = expected.to_string();
    let mut receiver = store.spawn("mq-recv", &["-n", &wanted, "q"]);
    let mut lines = receiver.lines(10);
    // It dies once more while they come due.
    store.kill_server();
    lines.extend(receiver.lines(expected - 10));
    assert_eq!(receiver.await_end(), 0);
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), expected, "each came once");
    assert_eq!(store.number("q", "delayed"), 0);
    assert_eq!(store.receive("q"), b"", "and none again");
    store.run("mq-admin", &["check"], b"").ok();
}

#[test]
fn a_sender_of_both_kinds_is_stored_once_whatever_dies() {
    let store = Store::new();
    let count = size("MQ_MIXED", 400);
    let soon = now_ms() + 3_000;
    let mut input = Vec::new();
    for n in 0..count {
        // Runs of one kind and of the other; times of the one lie in the past or to come.
        let wait = (n / 7) % 2 == 1;
        let time =
            if wait { format!(",\"not_before\":\"{}\"", rfc3339(soon)) } else { String::new() };
        input.extend(format!("{{\"data\":\"{n}\"{time}}}\n").into_bytes());
    }
    let mut sender = store.spawn("mq-send", &["-J", "q"]);
    for part in input.chunks(input.len() / 4 + 1) {
        sender.write(part);
        eventually("a server", || store.server());
        store.kill_server();
    }
    drop(sender.take_stdin());
    sender.finish().ok();
    let wanted = count.to_string();
    let done = store.run("mq-recv", &["-n", &wanted, "q"], b"").ok();
    let mut got: Vec<u64> = done.text().lines().map(|x| x.parse().expect("a number")).collect();
    let plain: Vec<u64> = got.iter().copied().filter(|n| (n / 7) % 2 == 0).collect();
    assert!(plain.is_sorted(), "what does not wait keeps its order");
    got.sort_unstable();
    assert_eq!(got, (0..count).collect::<Vec<_>>());
    assert_eq!(store.number("q", "delayed") + store.number("q", "ready"), 0);
}

fn rfc3339(ms: u64) -> String {
    jiff::Timestamp::from_millisecond(ms as i64).expect("a time").to_string()
}

#[test]
fn nobody_waits_for_delayed_messages_who_waits_for_the_queue() {
    let store = Store::new();
    store.run("mq-send", &["--delay", "1h", "q", "-m", "later"], b"").ok();
    store.run("mq-admin", &["wait", "q", "-w", "20s"], b"").ok();
    assert_eq!((store.number("q", "delayed"), store.number("q", "ready")), (1, 0));
    assert_eq!(store.receive("q"), b"");
    store.run("mq-admin", &["purge", "q"], b"").ok();
    assert_eq!(store.number("q", "delayed"), 0);
    store.kill_server();
    store.send("q", b"x\n");
    assert_eq!(store.number("q", "delayed"), 0, "purged is purged");
    // A removed queue takes them along.
    store.run("mq-send", &["--delay", "1s", "q", "-m", "later"], b"").ok();
    store.run("mq-admin", &["rm", "q"], b"").ok();
    assert!(!store.path().join("queues/q").exists());
    store.send("q", b"new\n");
    std::thread::sleep(Duration::from_millis(1_200)); // Past the time when it would have come.
    assert_eq!(store.receive("q"), b"new\n");
}

#[test]
fn a_large_message_cannot_be_delayed() {
    let store = Store::new();
    let body = vec![b'x'; 3 << 20];
    let done = store.run("mq-send", &["--whole", "--delay", "1m", "q"], &body).exits(65);
    done.says("is delayed and, with its attributes, larger than");
    // One of nearly a batch can.
    let body = vec![b'x'; (1 << 20) - 200];
    store.run("mq-send", &["--whole", "--delay", "10ms", "q"], &body).ok();
    let done = store.run("mq-recv", &["-n1", "--raw", "q"], b"").ok();
    assert!(done.stdout == body);
}

#[test]
fn an_id_is_stored_once_also_while_its_message_waits() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--unique-ids", "1000", "q"], b"").ok();
    let send = |delay: &str| {
        let done = store.run("mq-send", &["--id", "one", "--delay", delay, "q", "-m", "x"], b"");
        done.ok();
    };
    send("1s");
    send("500ms");
    store.kill_server();
    send("1s");
    store.run("mq-send", &["--id", "one", "q", "-m", "x"], b"").ok();
    assert_eq!(store.run("mq-recv", &["-n1", "q"], b"").ok().stdout, b"x\n");
    store.run("mq-send", &["--id", "one", "q", "-m", "x"], b"").ok();
    store.kill_server();
    send("1ms");
    assert_eq!(store.receive("q"), b"");
    assert_eq!((store.number("q", "delayed"), store.number("q", "ready")), (0, 0));
}

/// Resident memory of the server, in KiB.
fn memory(store: &Store) -> u64 {
    let pid = store.server().expect("a server").as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[test]
fn very_many_delayed_messages_cost_no_memory() {
    let store = Store::new();
    let count = size("MQ_MANY", 200_000);
    let due = now_ms() + 3_600_000;
    // One of each kind first, so that what a queue takes anyway is there.
    store.run("mq-send", &["--delay", "1h", "q", "-m", "x"], b"").ok();
    store.send("q", &seq(1, 1_000));
    store.receive("q");
    let before = memory(&store);
    let mut random = Random(1);
    let mut sender = store.spawn("mq-send", &["-J", "q"]);
    let mut chunk = Vec::new();
    let filler = "x".repeat(60);
    for n in 0..count {
        // In no order, so that every run overlaps with every other.
        let due = rfc3339(due + random.below(3_600_000));
        let line = format!("{{\"data\":\"{n} {filler}\",\"not_before\":\"{due}\"}}\n");
        chunk.extend(line.into_bytes());
        if chunk.len() > 1 << 16 {
            sender.write(&chunk);
            chunk.clear();
        }
    }
    sender.write(&chunk);
    drop(sender.take_stdin());
    sender.finish().ok();
    assert_eq!(store.number("q", "delayed"), count + 1);
    let grown = memory(&store).saturating_sub(before);
    println!("{grown} KiB more for {count} delayed messages");
    assert!(grown < 24 << 10, "{grown} KiB more for {count} delayed messages");
    // Nothing is held up, and a start does not read them all.
    store.send("q", b"quick\n");
    assert_eq!(store.receive("q"), b"quick\n");
    store.kill_server();
    let start = Instant::now();
    store.send("q", b"again\n");
    assert!(start.elapsed() < Duration::from_secs(20), "a start takes {:?}", start.elapsed());
    assert_eq!(store.number("q", "delayed"), count + 1);
    let after = memory(&store);
    assert!(after < before + (24 << 10), "{after} KiB after a start, {before} before");
    store.run("mq-admin", &["check", "q"], b"").ok();
    store.signal_server(Signal::TERM);
}

#[test]
fn what_no_tool_sends_is_refused_with_a_word() {
    let store = Store::new();
    store.send("q", b"x\n");
    let due = WallTime((now_ms() + 60_000) * 1_000);
    let record = |out: &mut Vec<u8>, due: Option<WallTime>, bytes: usize| {
        let mut attributes = Vec::new();
        if let Some(due) = due {
            push_attribute(&mut attributes, tags::NOT_BEFORE, &due.0.to_le_bytes());
        }
        Record { attribute_bytes: &attributes, body: &vec![b'x'; bytes] }.encode(out);
    };
    let mut large = Vec::new();
    record(&mut large, Some(due), (1 << 20) + 100);
    let mut mixed = Vec::new();
    record(&mut mixed, Some(due), 3);
    record(&mut mixed, None, 3);
    for (payload, count, code) in
        [(&large, 1, ErrorCode::BadInput), (&mixed, 2, ErrorCode::Protocol)]
    {
        let mut peer = Peer::connect(&store).expect("a server");
        let open = OpenSend::new(Name::new("q").expect("a name"), ProducerId(now_ms()));
        peer.say(1, &Request::OpenSend(open)).expect("the server listens");
        peer.frame_of(Kind::Sending);
        let head = PublishHead {
            sequence: Sequence(count),
            count: count as u32,
            framing: Framing::Records,
            batch_flags: 0,
            read: Monotonic(0),
            more: false,
        };
        peer.say(1, &Request::Publish(head, payload)).expect("the server listens");
        let frame = peer.frame_of(Kind::Error);
        let Reply::Error(fault) = frame.reply() else { panic!("{frame:?}") };
        assert_eq!(fault.code, code, "{fault:?}");
    }
    assert_eq!(store.number("q", "delayed"), 0);
}
