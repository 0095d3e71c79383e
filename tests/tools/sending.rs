//! G1 to G3: what a confirmation means, what becomes of the unconfirmed, what exit 0 says; and
//! that every byte comes through.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Random, Running, Store, eventually, process};
use crate::{numbers, seq, size};

/// G1
#[test]
fn what_was_confirmed_is_there_after_the_server_was_killed() {
    for policy in ["always", "interval=1s", "never"] {
        let store = Store::new();
        store.run("mq-admin", &["declare", "--sync", policy, "q"], b"").ok();
        store.send("q", &seq(1, 50_000));
        store.kill_server();
        assert_eq!(store.receive("q"), seq(1, 50_000), "sync={policy}");
    }
}

/// G2
#[test]
fn a_killed_sender_leaves_whole_messages_of_its_beginning() {
    let store = Store::new();
    let mut sender = Running::start(store.shell("exec mq-send q"));
    let mut stdin = sender.take_stdin();
    let feeder = std::thread::spawn(move || {
        for number in 1u64.. {
            if writeln!(stdin, "{number:020}").is_err() {
                return;
            }
        }
    });
    eventually("some is stored", || {
        store.show("q").filter(|info| info["ready"].as_u64() > Some(1000))
    });
    sender.signal(Signal::KILL);
    sender.await_end();
    feeder.join().expect("the feeder ends with its reader");
    let out = String::from_utf8(store.receive("q")).expect("whole numbers");
    for (number, line) in (1u64..).zip(out.lines()) {
        assert_eq!(line, format!("{number:020}"));
    }
}

/// G3
#[test]
fn a_failed_send_says_how_much_is_safe() {
    let store = Store::new();
    let mut command = store.command("mq-send", &["-w", "0", "q"]);
    command.env("MQ_NO_AUTOSTART", "1");
    let _server = store.serve();
    let mut sender = Running::start(command);
    sender.write(&seq(1, 100));
    store.await_number("q", "ready", 100);
    store.kill_server();
    // Without a server and without the right to start one, the rest cannot be stored; the
    // sender may have ended before it is offered.
    let _ = sender.stdin().write_all(&seq(101, 200));
    let done = sender.finish().exits(69);
    assert!(numbers(&done.stderr).contains(&100), "not the count: {}", done.stderr);
    assert_eq!(store.receive("q"), seq(1, 100));
}

#[test]
fn a_send_without_a_server_and_without_the_right_to_start_one_ends_with_69() {
    let store = Store::new();
    let mut command = store.command("mq-send", &["-w", "0", "q", "-m", "x"]);
    command.env("MQ_NO_AUTOSTART", "1");
    process::run(command, b"").exits(69);
    assert!(store.server().is_none());
}

#[test]
fn an_empty_input_makes_an_empty_queue() {
    let store = Store::new();
    store.run("mq-send", &["q"], b"").ok().quietly();
    assert_eq!(store.number("q", "ready"), 0);
}

#[test]
fn lines_are_what_lies_between_newlines() {
    let store = Store::new();
    store.send("q", b"a\n\n\r\n\xff\xfe\nlast without an end");
    assert_eq!(store.number("q", "ready"), 5, "empty lines and the unfinished last one count");
    assert_eq!(store.receive("q"), b"a\n\n\r\n\xff\xfe\nlast without an end\n");
}

#[test]
fn delimiters_are_exchanged_on_the_way() {
    let store = Store::new();
    store.run("mq-send", &["-0", "q"], b"one\0two\nlines\0three").ok();
    assert_eq!(
        store.run("mq-recv", &["--peek", "-0", "q"], b"").ok().stdout,
        b"one\0two\nlines\0three\0"
    );
    assert_eq!(
        store.run("mq-recv", &["--peek", "-d", ";", "q"], b"").ok().stdout,
        b"one;two\nlines;three;"
    );
    assert_eq!(
        store.run("mq-recv", &["--peek", "--raw", "q"], b"").ok().stdout,
        b"onetwo\nlinesthree"
    );
    // With newlines, a body that holds one is ambiguous: it is written, with one warning.
    let done = store.run("mq-recv", &["-e", "q"], b"").ok().says("-0");
    assert_eq!(done.stdout, b"one\ntwo\nlines\nthree\n");
    store.run("mq-send", &["-d", ",", "q"], b"x,y,z").ok();
    assert_eq!(store.receive("q"), b"x\ny\nz\n");
}

#[test]
fn files_end_their_own_last_message_and_are_opened_first() {
    let store = Store::new();
    std::fs::write(store.beside("a"), "1\n2").expect("room");
    std::fs::write(store.beside("b"), "3\n").expect("room");
    store.run("mq-send", &["q", "a", "-", "b"], b"in between").ok();
    assert_eq!(store.receive("q"), b"1\n2\nin between\n3\n");
    let done = store.run("mq-send", &["q", "a", "not-there"], b"");
    assert_ne!(done.code, 0);
    done.says("not-there");
    assert_eq!(store.number("q", "ready"), 0, "nothing was sent before all were open");
    store.run("mq-send", &["--whole", "q", "a", "b"], b"").ok();
    assert_eq!(store.run("mq-recv", &["-n1", "--raw", "q"], b"").ok().stdout, b"1\n2");
    assert_eq!(store.run("mq-recv", &["-n1", "--raw", "q"], b"").ok().stdout, b"3\n");
}

/// More than the usual limit of open files.
#[test]
fn very_many_files_are_sent_at_once() {
    let store = Store::new();
    let files = "mkdir many; for i in $(seq 1500); do echo $i > many/$i; done; \
                 ulimit -Sn 1024; mq-send q $(seq -f many/%g 1500)";
    store.sh(files).ok().quietly();
    assert!(store.receive("q") == seq(1, 1500));
    let done = store.sh("ulimit -n 64; mq-send r $(seq -f many/%g 1500)").exits(1);
    assert!(
        done.stderr.contains("confirmed: 0") && done.stderr.contains("xargs"),
        "{}",
        done.stderr
    );
    assert!(store.show("r").is_none(), "nothing is sent before all are open");
}

#[test]
fn a_text_is_one_message_and_stdin_is_not_touched() {
    let store = Store::new();
    let done = store.sh("printf 'rest\\n' | { mq-send q -m 'a text'; cat; }").ok();
    assert_eq!(done.text(), "rest\n");
    assert_eq!(store.receive("q"), b"a text\n");
    store.run("mq-send", &["q", "-m", "two\nlines"], b"").ok();
    assert_eq!(store.run("mq-recv", &["-n1", "--raw", "q"], b"").ok().stdout, b"two\nlines");
}

#[test]
fn tee_writes_what_is_confirmed_and_outlives_its_reader() {
    let store = Store::new();
    let done = store.run("mq-send", &["-T", "q"], &seq(1, 10_000)).ok();
    assert_eq!(done.stdout, seq(1, 10_000));
    store.sh("seq 1 100000 | mq-send -T q2 | head -n 1").ok();
    assert_eq!(store.number("q2", "ready"), 100_000);
}

#[test]
fn the_unfinished_last_line_is_dropped_at_a_signal() {
    let store = Store::new();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut sender = store.spawn("mq-send", &["q"]);
        sender.write(b"one\ntwo\nthr");
        eventually("two lines are stored", || store.show("q").filter(|info| info["ready"] == 2));
        sender.signal(signal);
        // Its input is still open: it must end all the same.
        assert_eq!(sender.await_end(), code);
        let done = sender.finish();
        assert!(numbers(&done.stderr).contains(&2), "not the count: {}", done.stderr);
        assert_eq!(store.receive("q"), b"one\ntwo\n");
    }
}

/// A sequence of lines is the same afterwards (done-when 2; `MQ_LINES=10000000` for all of it).
#[test]
fn millions_of_lines_come_out_as_they_went_in() {
    let store = Store::new();
    let lines = size("MQ_LINES", 1_000_000);
    let script = format!(
        "seq 1 {lines} | mq-send q & mq-recv -q -n {lines} q | cmp - <(seq 1 {lines}) && wait $!"
    );
    let done = store.sh(&script).ok().quietly();
    assert_eq!(done.text(), "");
    assert_eq!(store.number("q", "ready"), 0);
    assert_eq!(store.number("q", "unacked"), 0);
}

/// Random bytes with NUL as delimiter (done-when 3; `MQ_MIB=300` for all of it).
#[test]
fn random_bytes_come_out_as_they_went_in() {
    let store = Store::new();
    let mib = size("MQ_MIB", 30);
    let script = format!(
        "{{ head -c {mib}M /dev/urandom; printf '\\0'; }} > in && mq-send -0 q < in && \
         mq-recv -e -0 q | cmp - in"
    );
    store.sh(&script).ok().quietly();
}

/// One message of 50 MB (done-when 3).
#[test]
fn one_large_message_comes_out_as_it_went_in() {
    let store = Store::new();
    store
        .sh("head -c 50000000 /dev/urandom > in && mq-send --whole q < in && \
             mq-recv -n1 --raw q | cmp - in")
        .ok()
        .quietly();
    assert_eq!(store.number("q", "ready"), 0);
}

#[test]
fn lines_of_every_size_keep_their_order() {
    let store = Store::new();
    let mut random = Random(7);
    let mut input = Vec::new();
    for number in 0..300 {
        // From empty to some megabytes, the large ones rare.
        let scale = random.below(22);
        let length = random.below(1 << scale) as usize;
        let body = random.bytes(length);
        input.extend_from_slice(format!("{number}:").as_bytes());
        input.extend(body.into_iter().map(|b| if b == b'\n' { b' ' } else { b }));
        input.push(b'\n');
    }
    store.send("q", &input);
    assert_eq!(store.number("q", "ready"), 300);
    assert!(store.receive("q") == input, "the lines differ");
}

#[test]
fn a_message_over_the_limit_is_refused_with_its_place() {
    let store = Store::new();
    let mut input = seq(1, 3);
    input.resize(input.len() + (64 << 20) + 1, b'x');
    input.extend_from_slice(b"\nafter\n");
    let done = store.run("mq-send", &["q"], &input).exits(65);
    let said = numbers(&done.stderr);
    assert!(said.contains(&4) && said.contains(&3), "place and count missing: {}", done.stderr);
    assert_eq!(store.receive("q"), seq(1, 3), "what was before it is stored, nothing else");
}

#[test]
fn a_message_at_the_limit_is_stored() {
    let store = Store::new();
    store
        .sh("head -c $((64 << 20)) /dev/zero > in && mq-send --whole q in && \
             mq-recv -n1 --raw q | cmp - in")
        .ok();
}

/// It does not fit behind another, and waits for a segment that nobody has prepared yet: with the
/// queue at rest, its wish for one was once heard by nobody.
#[test]
fn a_message_at_the_limit_behind_another_gets_a_segment() {
    let store = Store::new();
    store.send("q", b"first\n");
    // An idle queue gets a last mark; then nothing more happens to it.
    let bytes = store.number("q", "bytes");
    eventually("the mark is written", || (store.number("q", "bytes") > bytes).then_some(()));
    let script = "head -c $((64 << 20)) /dev/zero > in && mq-send --whole q in && \
                  mq-recv -n1 q && mq-recv -n1 --raw q | cmp - in";
    assert_eq!(store.sh(script).ok().text(), "first\n");
}

/// What a sender is fed while its server stands still, a byte a message.
const FEED_BYTES: u64 = 100 << 20;

/// Back-pressure: a sender does not take more from its input than it can pass on.
#[test]
fn a_sender_waits_for_a_stopped_server_with_bounded_memory() {
    let store = Store::new();
    let server = store.serve();
    let mut sender = store.spawn("mq-send", &["q"]);
    sender.write(b"first\n");
    store.await_number("q", "ready", 1);
    server.signal(Signal::STOP);
    let status = format!("/proc/{}/status", sender.pid().as_raw_nonzero());
    let mut stdin = sender.take_stdin();
    let fed = Arc::new(AtomicU64::new(0));
    let feeder = {
        let fed = Arc::clone(&fed);
        let chunk = vec![b'\n'; 64 << 10];
        std::thread::spawn(move || {
            for _ in 0..FEED_BYTES / chunk.len() as u64 {
                stdin.write_all(&chunk).expect("the sender lives");
                fed.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            stdin
        })
    };
    let mut before = 0;
    eventually("the sender takes no more", || {
        let now = fed.load(Ordering::Relaxed);
        let stuck = now == std::mem::replace(&mut before, now) && now > 0;
        std::thread::sleep(Duration::from_millis(100));
        stuck.then_some(())
    });
    assert!(fed.load(Ordering::Relaxed) < FEED_BYTES, "nothing held it back");
    server.signal(Signal::CONT);
    let stdin = feeder.join().expect("all is taken in the end");
    let peak = memory_kib(&std::fs::read_to_string(&status).expect("its input is open"));
    drop(stdin);
    sender.finish().ok();
    assert!(peak < 64 << 10, "the sender held {peak} KiB");
    assert_eq!(store.number("q", "ready"), 1 + FEED_BYTES);
}

fn memory_kib(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.trim().strip_suffix(" kB"))
        .map_or(0, |kib| kib.trim().parse().expect("a number"))
}
