//! Dead letters and their way back home, by way of the tools.

use serde_json::Value;

use crate::harness::Store;

/// A queue of which every message is tried once.
fn store_of(messages: &[u8]) -> Store {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--delivery-limit", "1", "q"], b"").ok();
    store.send("q", messages);
    store
}

/// Runs a command on all messages, which fails for some.
fn work(store: &Store, queue: &str, script: &str) {
    store.run("mq-recv", &["-e", queue, "--", "sh", "-c", script], b"").exits(123);
}

fn headers(store: &Store, queue: &str) -> Vec<Value> {
    let done = store.run("mq-recv", &["--peek", "-J", queue], b"").ok();
    let headers = |line: &str| {
        let envelope: Value = serde_json::from_str(line).expect("an envelope");
        envelope["headers"].clone()
    };
    done.text().lines().map(headers).collect()
}

#[test]
fn a_dead_letter_says_why_and_comes_back_for_another_try() {
    let store = store_of(b"");
    store.run("mq-send", &["-k", "k", "-H", "a=1", "q", "-m", "bad"], b"").ok();
    work(&store, "q", "echo oh no >&2; exit 3");
    assert_eq!(store.number("q", "ready"), 0);
    store.await_number("q.dead", "ready", 1);
    let found = headers(&store, "q.dead");
    for (name, value) in [
        ("a", "1"),
        ("mq-dead-queue", "q"),
        ("mq-dead-group", "default"),
        ("mq-dead-attempts", "1"),
        ("mq-dead-stderr", "oh no\n"),
    ] {
        assert_eq!(found[0][name], value, "{name}");
    }
    assert!(found[0]["mq-dead-reason"].as_str().is_some_and(|reason| reason.contains('3')));
    store.run("mq-admin", &["-v", "requeue", "q.dead"], b"").ok().says("1 messages");
    assert_eq!(store.number("q.dead", "ready"), 0);
    let done = store.run("mq-recv", &["-e", "-F", "%k %h %s", "q"], b"").ok();
    assert_eq!(done.text(), "k a=1 bad");
}

#[test]
fn dead_letters_are_requeued_by_number_by_reason_and_elsewhere() {
    let store = store_of(b"3\n4\n3\n3\n");
    work(&store, "q", "read x; exit $x");
    store.await_number("q.dead", "ready", 4);
    let requeue = |args: &[&str]| {
        let done = store.run("mq-admin", &[&["-J", "requeue", "q.dead"], args].concat(), b"").ok();
        let said: Value = serde_json::from_slice(&done.stdout).expect("JSON");
        said["requeued"].as_u64().expect("a number")
    };
    assert_eq!(requeue(&["--reason", "status 4"]), 1);
    assert_eq!(store.receive("q"), b"4\n");
    assert_eq!(requeue(&["-n", "2", "--to", "other"]), 2);
    assert_eq!(store.receive("other"), b"3\n3\n");
    assert_eq!(requeue(&["--reason", "nothing like it"]), 0);
    assert_eq!(requeue(&[]), 1);
    assert_eq!(requeue(&[]), 0);
    store.run("mq-admin", &["requeue", "nowhere.dead"], b"").exits(1).says("nowhere.dead");
}
