//! Groups and the other ways of taking: where a group begins, turns, leases with receipts, at most
//! once.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Store, eventually};
use crate::seq;

#[test]
fn a_group_that_nobody_made_is_an_error_and_no_leak() {
    let store = Store::new();
    store.send("q", b"a\n");
    let done = store.run("mq-recv", &["-g", "typo", "-e", "q"], b"").exits(1);
    assert!(done.stderr.contains("typo") && done.stderr.contains("--from"), "{}", done.stderr);
    let info = store.show("q").expect("q");
    assert!(!info["groups"].to_string().contains("typo"));
}

#[test]
fn at_most_once_is_gone_when_it_is_delivered() {
    let store = Store::new();
    store.send("q", &seq(1, 10));
    let mut receiver = store.spawn("mq-recv", &["--no-ack", "-n4", "q"]);
    assert_eq!(receiver.line().as_deref(), Some("1"));
    eventually("four are gone", || {
        let left = store.number("q", "ready") + store.number("q", "unacked");
        (left < 10).then_some(())
    });
    receiver.signal(Signal::KILL);
    receiver.await_end();
    let rest = store.receive("q");
    assert!(seq(1, 10).ends_with(&rest) && rest.len() < seq(1, 10).len(), "none came twice");
    store.send("q", &seq(1, 3));
    assert_eq!(store.run("mq-recv", &["--no-ack", "-e", "q"], b"").ok().stdout, seq(1, 3));
    assert_eq!(store.number("q", "ready"), 0);
}

#[track_caller]
fn leased(store: &Store, lease: &str) -> Value {
    let done = store.run("mq-recv", &["-J", "-n1", "--lease", lease, "q"], b"").ok();
    serde_json::from_str(done.text()).expect("an envelope")
}

#[test]
fn a_lease_outlives_its_receiver_and_the_server_and_is_settled_by_its_receipt() {
    let store = Store::new();
    store.send("q", b"a\nb\n");
    let envelope = leased(&store, "1h");
    assert_eq!((&envelope["data"], &envelope["attempt"]), (&"a".into(), &1.into()));
    let receipt = envelope["receipt"].as_str().expect("a receipt");
    assert_eq!(store.receive("q"), b"b\n", "only the other is to be had");
    store.kill_server();
    assert_eq!(store.receive("q"), b"");
    assert_eq!(store.number("q", "unacked"), 1);
    store.run("mq-admin", &["ack", receipt], b"").ok();
    assert_eq!(store.number("q", "unacked"), 0);
    assert_ne!(store.run("mq-admin", &["ack", receipt], b"").code, 0, "it is settled");
}

#[test]
fn a_lease_that_is_over_makes_its_receipt_stale() {
    let store = Store::new();
    store.send("q", b"a\n");
    let receipt = leased(&store, "50ms")["receipt"].as_str().expect("a receipt").to_owned();
    store.await_number("q", "ready", 1);
    let again = leased(&store, "1h");
    assert_eq!(again["attempt"], 2);
    assert_ne!(store.run("mq-admin", &["ack", &receipt], b"").code, 0, "stale");
    assert_eq!(store.number("q", "unacked"), 1, "it settles nothing of another's");
    let receipt = again["receipt"].as_str().expect("a receipt");
    store.run("mq-admin", &["nack", receipt], b"").ok();
    eventually("it is back", || (store.number("q", "unacked") == 0).then_some(()));
}

#[test]
fn a_lease_without_receipts_is_a_usage_error() {
    let store = Store::new();
    store.run("mq-recv", &["--lease", "1m", "q"], b"").exits(2).says("-J");
    store.run("mq-recv", &["-J", "--lease", "1ms", "q"], b"").exits(2).says("10ms");
    store.run("mq-recv", &["-J", "--lease", "1m", "--no-ack", "q"], b"").exits(2);
    store.run("mq-recv", &["-J", "--lease", "1m", "--peek", "q"], b"").exits(2);
    store.run("mq-recv", &["--from", "oldest", "--peek", "q"], b"").exits(2);
}
