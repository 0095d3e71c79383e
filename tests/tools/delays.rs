//! Messages that come later, and messages that come in time or not at all.

use std::time::{Duration, SystemTime};

use crate::harness::Store;
use crate::seq;

#[test]
fn delayed_messages_hold_nothing_up_and_come_in_the_order_in_which_they_are_due() {
    let store = Store::new();
    for (delay, text) in [("7s", "c"), ("5s", "a"), ("6s", "b")] {
        store.run("mq-send", &["--delay", delay, "q", "-m", text], b"").ok();
    }
    store.send("q", b"now\n");
    let began = SystemTime::now();
    assert_eq!(store.number("q", "delayed"), 3);
    let done = store.run("mq-recv", &["-n", "4", "q"], b"").ok();
    assert_eq!(done.stdout, b"now\na\nb\nc\n");
    assert!(began.elapsed().expect("time goes on") >= Duration::from_secs(1));
    assert_eq!(store.number("q", "delayed"), 0);
}

#[test]
fn a_delayed_message_comes_also_after_a_crash_of_the_server() {
    let store = Store::new();
    store.run("mq-send", &["--delay", "700ms", "-k", "k", "q"], &seq(1, 1000)).ok();
    store.kill_server();
    let done = store.run("mq-recv", &["-n", "1000", "-F", "%k:%s\\n", "q"], b"").ok();
    let expected: String = (1..=1000).map(|n| format!("k:{n}\n")).collect();
    assert!(done.text() == expected);
}

#[test]
fn a_time_in_the_past_is_no_delay() {
    let store = Store::new();
    store.run("mq-send", &["--delay", "2020-01-01T00:00:00Z", "q", "-m", "x"], b"").ok();
    assert_eq!(store.receive("q"), b"x\n");
}

#[test]
fn delayed_and_other_messages_may_come_mixed_in_envelopes() {
    let store = Store::new();
    let mut input = String::new();
    for n in 0..200 {
        let later = if n % 3 == 0 { ",\"not_before\":\"2999-01-01T00:00:00Z\"" } else { "" };
        input.push_str(&format!("{{\"data\":\"{n}\"{later}}}\n"));
    }
    store.run("mq-send", &["-J", "q"], input.as_bytes()).ok();
    assert_eq!((store.number("q", "ready"), store.number("q", "delayed")), (133, 67));
    let expected: String = (0..200).filter(|n| n % 3 != 0).map(|n| format!("{n}\n")).collect();
    assert_eq!(store.receive("q"), expected.as_bytes());
}

#[test]
fn a_large_message_cannot_be_delayed_and_that_is_said() {
    let store = Store::new();
    let large = vec![b'x'; 2 << 20];
    let done = store.run("mq-send", &["--delay", "1h", "--whole", "q"], &large).exits(65);
    assert!(done.stderr.contains("delayed"), "{}", done.stderr);
    assert!(done.stderr.contains("confirmed: 0 leading messages"), "{}", done.stderr);
}

#[test]
fn an_expired_message_is_never_delivered() {
    let store = Store::new();
    store.run("mq-send", &["--ttl", "1ms", "q"], &seq(1, 10)).ok();
    store.run("mq-send", &["--ttl", "1h", "q", "-m", "in time"], b"").ok();
    assert_eq!(store.receive("q"), b"in time\n");
    store.await_number("q", "expired", 10);
    assert_eq!(store.number("q", "unacked"), 0);
}

#[test]
fn an_expired_message_is_a_dead_letter_where_the_queue_says_so() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--dead-letter", "late", "q"], b"").ok();
    store.run("mq-send", &["--ttl", "1ms", "q", "-m", "x"], b"").ok();
    assert_eq!(store.receive("q"), b"");
    crate::harness::eventually("the queue of dead letters is there", || store.show("late"));
    store.await_number("late", "ready", 1);
    let done = store.run("mq-recv", &["--peek", "-F", "%h %s", "late"], b"").ok();
    assert!(done.text().contains("mq-dead-reason=expired") && done.text().ends_with(" x"));
}
