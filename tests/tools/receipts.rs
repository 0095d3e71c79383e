//! Settlement beyond one process: leases that outlive their receiver and the server, and receipts
//! that settle them from anywhere.

use std::io::Write;

use serde_json::Value;

use crate::harness::{Store, eventually};
use crate::seq;

/// Leases what is ready, at most so many, and returns the receipts.
fn lease(store: &Store, count: u64, lease: &str) -> Vec<String> {
    let count = count.to_string();
    let done = store.run("mq-recv", &["-J", "-e", "-n", &count, "--lease", lease, "q"], b"");
    let receipt = |line: &str| {
        let envelope: Value = serde_json::from_str(line).expect("an envelope");
        envelope["receipt"].as_str().expect("a receipt").to_owned()
    };
    done.text().lines().map(receipt).collect()
}

#[test]
fn a_receipt_settles_its_message_after_receiver_and_server_have_gone() {
    let store = Store::new();
    store.send("q", b"one\ntwo\nthree\n");
    let receipts = lease(&store, 2, "1h");
    assert_eq!(store.number("q", "unacked"), 2);
    store.kill_server();
    store.run("mq-admin", &["declare", "q"], b"").ok();
    // Leased they are still, and nobody else's.
    assert_eq!(store.receive("q"), b"three\n");
    store.run("mq-admin", &["ack", &receipts[0]], b"").ok().quietly();
    store.run("mq-admin", &["nack", &receipts[1]], b"").ok();
    let done = store.run("mq-recv", &["-n", "1", "q"], b"").ok();
    assert_eq!(done.stdout, b"two\n");
    store.await_number("q", "unacked", 0);
    assert_eq!(store.number("q", "ready"), 0);
}

#[test]
fn a_stale_receipt_is_refused_and_the_others_are_taken() {
    let store = Store::new();
    store.send("q", &seq(1, 1));
    let first = lease(&store, 1, "50ms");
    let again = eventually("the lease is over", || {
        let receipts = lease(&store, 1, "1h");
        (!receipts.is_empty()).then_some(receipts)
    });
    let done = store.run("mq-admin", &["-J", "ack", &first[0], &again[0]], b"").exits(1);
    assert!(done.stderr.contains("1 of 2 receipts were refused"), "{}", done.stderr);
    assert!(done.stderr.contains(&first[0]) && done.stderr.contains("stale"), "{}", done.stderr);
    let said: Vec<Value> =
        done.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&said[0]["settled"], &said[1]["settled"]), (&false.into(), &true.into()));
    store.run("mq-admin", &["ack", &again[0]], b"").exits(1).says("stale");
}

#[test]
fn a_lease_that_is_extended_ends_later() {
    let store = Store::new();
    store.send("q", &seq(1, 1));
    let receipts = lease(&store, 1, "2s");
    store.run("mq-admin", &["extend", "--for", "1h", &receipts[0]], b"").ok();
    // A second message shows when the time of the first lease has passed.
    let mut receiver = store.spawn("mq-recv", &["q"]);
    store.run("mq-send", &["--delay", "2200ms", "q", "-m", "later"], b"").ok();
    assert_eq!(receiver.line().as_deref(), Some("later"));
    assert_eq!(store.number("q", "unacked"), 1, "the first, with its receipt");
    store.run("mq-admin", &["ack", &receipts[0]], b"").ok();
    store.await_number("q", "unacked", 0);
}

#[test]
fn receipts_are_read_from_stdin_as_they_come() {
    let store = Store::new();
    store.send("q", &seq(1, 1000));
    let receipts = lease(&store, 1000, "1h");
    let mut admin = store.spawn("mq-admin", &["ack", "-"]);
    writeln!(admin.stdin(), "{}", receipts[0]).expect("it reads");
    store.await_number("q", "unacked", 999);
    let rest: String = receipts[1..].iter().map(|receipt| format!("{receipt}\n")).collect();
    admin.write(rest.as_bytes());
    admin.finish().ok();
    assert_eq!(store.number("q", "unacked"), 0);
    store.send("q", &seq(1, 2));
    let input = format!("{}\nnonsense\n", lease(&store, 1, "1h")[0]);
    let done = store.run("mq-admin", &["ack", "-"], input.as_bytes()).exits(65);
    assert!(done.stderr.contains("\"nonsense\" is no receipt"), "{}", done.stderr);
    assert_eq!(store.number("q", "unacked"), 0);
    store.run("mq-admin", &["ack", "nonsense"], b"").exits(2);
}
