//! Queues that hold only so much, by way of the tools: back-pressure, refusals, and exact counts.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;

use crate::harness::{Store, eventually};
use crate::seq;

fn limited(args: &[&str]) -> Store {
    let store = Store::new();
    store.run("mq-admin", &[&["declare", "q"], args].concat(), b"").ok();
    store
}

#[test]
fn a_full_queue_holds_up_whatever_writes_to_its_sender() {
    let store = limited(&["--max-messages", "1000"]);
    let mut sender = store.spawn("mq-send", &["q"]);
    let mut stdin = sender.take_stdin();
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let feeder = std::thread::spawn(move || {
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        while count.load(Ordering::SeqCst) < 256 << 20 && stdin.write_all(&line).is_ok() {
            count.fetch_add(line.len() as u64, Ordering::SeqCst);
        }
    });
    sender.await_stderr("waiting for room");
    assert_eq!(store.number("q", "ready"), 1000);
    let taken = store.run("mq-recv", &["-n", "2500", "-F", "x", "q"], b"").ok();
    assert_eq!(taken.stdout.len(), 2500);
    store.await_number("q", "ready", 1000);
    // What the sender may have unconfirmed, and the pipes.
    assert!(written.load(Ordering::SeqCst) < 64 << 20);
    sender.signal(Signal::KILL);
    sender.await_end();
    feeder.join().expect("the feeder ends with its reader");
}

#[test]
fn a_sender_waits_for_room_as_long_as_it_was_told_and_counts_exactly() {
    let store = limited(&["--max-messages", "10"]);
    let done = store.run("mq-send", &["-w", "200ms", "q"], &seq(1, 25)).exits(75);
    assert!(done.stderr.contains("confirmed: 10 leading messages"), "{}", done.stderr);
    // It once left behind what its connection held: the eleventh message was stored when there
    // was room again, after its sender had said that it was not.
    assert_eq!(store.run("mq-recv", &["-n", "5", "q"], b"").ok().stdout, seq(1, 5));
    store.run("mq-send", &["q"], &seq(11, 15)).ok();
    assert_eq!(store.receive("q"), seq(6, 15));
}

#[test]
fn a_queue_that_refuses_ends_its_sender_with_an_exact_count() {
    let store = limited(&["--max-messages", "10", "--overflow", "reject"]);
    let done = store.run("mq-send", &["q"], &seq(1, 25)).exits(75);
    assert!(done.stderr.contains("confirmed: 10 leading messages"), "{}", done.stderr);
    let done = store.run("mq-send", &["-k", "k", "q"], &seq(11, 25)).exits(75);
    assert!(done.stderr.contains("confirmed: 0 leading messages"), "{}", done.stderr);
    assert_eq!(store.receive("q"), seq(1, 10));
}

#[test]
fn what_is_too_much_is_dropped_at_once_and_counted() {
    for limit in [["--max-messages", "10"], ["--max-bytes", "1KiB"]] {
        let store = limited(&[&limit[..], &["--overflow", "drop-oldest"]].concat());
        // In one batch, of which nothing is to be seen before all of it is stored.
        store.run("mq-send", &["q"], &seq(1, 10_000)).ok();
        eventually("the oldest are dropped", || {
            let ready = store.number("q", "ready");
            (ready + store.number("q", "dropped") == 10_000 && ready <= 250).then_some(())
        });
        let left = store.number("q", "ready");
        assert!(left >= 10);
        assert_eq!(store.receive("q"), seq(10_001 - left, 10_000));
    }
}

#[test]
fn limits_are_set_shown_and_taken_away() {
    let store = limited(&["--max-bytes", "64KiB", "--overflow", "reject"]);
    store.run("mq-send", &["q"], &seq(1, 100_000)).exits(75);
    let done = store.run("mq-admin", &["show", "q"], b"").ok();
    assert!(done.text().contains("max-bytes      65536\noverflow       reject\n"));
    store.run("mq-admin", &["declare", "q", "--max-bytes", "1MiB"], b"").exits(1);
    store.run("mq-admin", &["declare", "q", "--change", "--max-bytes", "0"], b"").ok();
    store.run("mq-send", &["q"], &seq(1, 100_000)).ok();
    assert!(!store.run("mq-admin", &["show", "q"], b"").ok().text().contains("max-bytes"));
}

/// Only the number of messages that wait for their time was counted, not their bytes.
#[test]
fn messages_that_wait_for_their_time_count_against_a_limit_of_bytes() {
    let store = limited(&["--max-bytes", "10KiB", "--overflow", "reject"]);
    let body = [b"x".repeat(1000), b"\n".to_vec()].concat();
    let done = store.run("mq-send", &["--delay", "1h", "q"], &body.repeat(20)).exits(75);
    let delayed = store.number("q", "delayed");
    assert!((8..=10).contains(&delayed), "{delayed} are delayed: {}", done.stderr);
    assert!(done.stderr.contains(&format!("confirmed: {delayed} leading")), "{}", done.stderr);
    store.run("mq-send", &["q"], &body.repeat(3)).exits(75);
    // Also in another life of the server.
    store.kill_server();
    store.run("mq-send", &["q"], &body.repeat(3)).exits(75);
    let there = store.number("q", "ready") + store.number("q", "delayed");
    store.run("mq-admin", &["purge", "q"], b"").ok();
    store.run("mq-send", &["q"], &body.repeat(8)).ok();
    assert!((8..=10).contains(&there), "{there} were there");
}
