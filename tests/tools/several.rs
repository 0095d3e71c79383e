//! Several queues in one receiver: names, patterns, order, and what happens when queues come and
//! go.

use rustix::process::Signal;

use crate::harness::{Store, eventually};
use crate::seq;

fn sorted(bytes: &[u8]) -> Vec<&str> {
    let mut lines: Vec<&str> = std::str::from_utf8(bytes).expect("text").lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn all_that_is_in_several_queues_is_received_and_gone() {
    let store = Store::new();
    store.send("a", b"a1\na2\n");
    store.send("b", b"b1\nb2\n");
    let done = store.run("mq-recv", &["-e", "a", "b", "none"], b"").ok().quietly();
    assert_eq!(sorted(&done.stdout), ["a1", "a2", "b1", "b2"]);
    for queue in ["a", "b"] {
        assert_eq!(store.number(queue, "ready") + store.number(queue, "unacked"), 0);
    }
    assert!(store.show("none").is_none(), "looking makes no queue");
}

#[test]
fn strict_takes_the_first_that_has_any() {
    let store = Store::new();
    store.send("normal", &seq(1, 3));
    store.send("urgent", &seq(101, 103));
    let done = store.run("mq-recv", &["-e", "--strict", "urgent", "normal"], b"").ok();
    assert_eq!(done.stdout, [seq(101, 103), seq(1, 3)].concat());
}

#[test]
fn without_strict_none_waits_for_another_to_be_empty() {
    let store = Store::new();
    store.send("a", &seq(1, 1000));
    store.send("b", &seq(5001, 5001));
    let mut receiver = store.spawn("mq-recv", &["a", "b"]);
    let lines = receiver.lines(500);
    assert!(lines.iter().any(|line| line == "5001"), "b had its turn among the first 500");
    receiver.signal(Signal::TERM);
    drop(receiver.take_stdout());
    receiver.await_end();
}

#[test]
fn a_pattern_includes_queues_that_appear_later_and_no_dead_letters() {
    let store = Store::new();
    store.send("logs.a", b"a\n");
    store.send("logs.a.dead", b"dead\n");
    store.send("other", b"other\n");
    let mut receiver = store.spawn("mq-recv", &["logs.*"]);
    assert_eq!(receiver.line().as_deref(), Some("a"));
    store.send("logs.b", b"b\n");
    assert_eq!(receiver.line().as_deref(), Some("b"));
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.await_end(), 143);
    assert_eq!(store.number("logs.a.dead", "ready"), 1);
    assert_eq!(store.number("other", "ready"), 1);
    let done = store.run("mq-recv", &["-e", "*.dead"], b"").ok();
    assert_eq!(done.stdout, b"dead\n");
}

#[test]
fn a_count_and_a_look_are_over_all_queues_together() {
    let store = Store::new();
    store.send("a", &seq(1, 5));
    store.send("b", &seq(1, 5));
    let done = store.run("mq-recv", &["--peek", "a", "b"], b"").ok();
    assert_eq!(sorted(&done.stdout).len(), 10);
    let done = store.run("mq-recv", &["-n7", "a", "b"], b"").ok();
    assert_eq!(sorted(&done.stdout).len(), 7);
    let left = store.number("a", "ready") + store.number("b", "ready");
    assert_eq!((left, store.number("a", "unacked"), store.number("b", "unacked")), (3, 0, 0));
    store.run("mq-recv", &["-e", "-n1", "none", "x*"], b"").exits(124);
}

#[test]
fn queues_that_are_all_missing_are_waited_for() {
    let store = Store::new();
    let mut receiver = store.spawn("mq-recv", &["-n1", "later", "never.*"]);
    receiver.await_stderr("later");
    store.send("never.mind", b"now\n");
    assert_eq!(receiver.line().as_deref(), Some("now"));
    let done = receiver.finish().ok();
    assert_eq!(done.stderr.matches("later").count(), 1, "said once: {}", done.stderr);
}

#[test]
fn after_a_restart_of_the_server_nothing_comes_twice() {
    let store = Store::new();
    store.send("a", &seq(1, 200));
    store.send("b", &seq(1001, 1200));
    let mut receiver = store.spawn("mq-recv", &["-n400", "a", "b"]);
    let mut lines = receiver.lines(100);
    store.kill_server();
    lines.extend(receiver.lines(300));
    assert_eq!(receiver.finish().ok().stdout, b"");
    let mut numbers: Vec<u64> = lines.iter().map(|line| line.parse().expect("a number")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=200).chain(1001..=1200).collect::<Vec<u64>>());
    for queue in ["a", "b"] {
        assert_eq!(store.number(queue, "ready") + store.number(queue, "unacked"), 0);
    }
}

#[test]
fn a_removed_queue_leaves_the_others_alone() {
    let store = Store::new();
    store.send("a", b"");
    store.send("b", b"");
    let mut receiver = store.spawn("mq-recv", &["a", "b"]);
    eventually("it receives", || (store.number("b", "receivers") == 1).then_some(()));
    store.run("mq-admin", &["rm", "a"], b"").ok();
    receiver.await_stderr("a was removed");
    store.send("b", b"b\n");
    assert_eq!(receiver.line().as_deref(), Some("b"));
    store.send("a", b"new\n");
    assert_eq!(receiver.line().as_deref(), Some("new"), "one of its name is received from again");
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.await_end(), 143);
}

#[test]
fn a_command_knows_which_queue_its_message_is_of() {
    let store = Store::new();
    store.send("a", &seq(1, 3));
    store.send("b", &seq(1, 3));
    let args = [
        "-e",
        "--batch",
        "10",
        "a",
        "b",
        "--",
        "sh",
        "-c",
        "while read n; do echo $MQ_QUEUE$n; done",
    ];
    let done = store.run("mq-recv", &args, b"").ok();
    assert_eq!(sorted(&done.stdout), ["a1", "a2", "a3", "b1", "b2", "b3"]);
}
