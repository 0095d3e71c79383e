//! Two receivers with four commands each over messages of all fates.

use std::collections::BTreeSet;

use rustix::process::Signal;

use crate::fate::{Fate, Script, TIMEOUT, assert_same, computed_acked, computed_dead, letters};
use crate::harness::{Running, Store, eventually};
use crate::size;

const LIMIT: u32 = 3;

/// Sends the messages 1 to `messages`; returns the offset of the first.
pub fn send_all(store: &Store, queue: &str, messages: u64) -> u64 {
    let first = store.number(queue, "end");
    let lines: String = (1..=messages).map(Fate::line).collect();
    store.send(queue, lines.as_bytes());
    first
}

/// Waits until nothing of the queue is ready, leased, resting or dying.
pub fn await_quiet(store: &Store, queue: &str) {
    let (mut waits, mut before) = (0, None);
    while store.run("mq-admin", &["wait", "-w", "20s", queue], b"").code == 124 {
        let info = store.show(queue);
        waits = if info == before { waits + 1 } else { 0 };
        assert!(waits < 3, "nothing goes on in {queue}: {info:?}");
        before = info;
    }
}

#[test]
fn each_message_meets_its_fate_and_no_other() {
    let messages = size("MQ_MESSAGES", 1500);
    let store = Store::new();
    store.run("mq-admin", &["declare", "work", "--delivery-limit", "3"], b"").ok();
    let first = send_all(&store, "work", messages);
    let script = Script::new(&store, "work");
    let receivers: Vec<Running> = (0..2)
        .map(|_| {
            let text = script.text();
            let args = ["-P4", "--timeout", TIMEOUT, "--backoff", "10ms..100ms", "work"];
            store.spawn("mq-recv", &[&args[..], &["--", "sh", "-c", &text]].concat())
        })
        .collect();
    await_quiet(&store, "work");
    for mut receiver in receivers {
        receiver.signal(Signal::TERM);
        assert_eq!(receiver.await_end(), 143, "{}", receiver.stderr());
    }

    let done = script.done();
    for (n, attempts) in &done {
        assert_eq!(attempts.len(), 1, "message {n} succeeded at {attempts:?}");
    }
    assert_same("acked", &done.into_keys().collect(), &computed_acked(messages, LIMIT));
    let tried = script.tried();
    for n in 1..=messages {
        let expected: Vec<u32> = (1..=Fate::of(n).attempts(LIMIT)).collect();
        assert_eq!(tried.get(&n), Some(&expected), "attempts of {n}, {:?}", Fate::of(n));
    }

    let letters = letters(&store, "work.dead");
    let dead: BTreeSet<u64> = letters.keys().copied().collect();
    assert_same("dead", &dead, &computed_dead(messages, LIMIT));
    for letter in letters.values() {
        letter.check("work", first + letter.n - 1);
        letter.check_last_words();
        assert_eq!(Some(letter.attempts()), Fate::of(letter.n).dies_after(LIMIT));
        let mut times = ["mq-dead-first", "mq-dead-time"].map(|name| letter.header(name));
        assert!(times.iter_mut().all(|time| time.is_some()), "when {} failed", letter.n);
    }
    assert_eq!(store.number("work.dead", "ready"), 0);
}

#[test]
fn requeued_dead_letters_come_home_with_fresh_attempts() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "work", "--delivery-limit", "1"], b"").ok();
    let script = Script::new(&store, "work");
    let text = script.text();
    let receive = |fate: &str| {
        let args = ["-e", "--backoff", "10ms..10ms", "work", "--", "sh", "-c", &text];
        store.run("mq-recv", &args, fate.as_bytes())
    };
    store.send("work", b"1 fail 0\n2 fail 1\n3 poison 0\n");
    receive("").exits(123);
    await_quiet(&store, "work");
    assert_eq!(store.number("work.dead", "ready"), 2);
    store.run("mq-admin", &["requeue", "work.dead"], b"").ok();
    assert_eq!(store.number("work.dead", "ready"), 0);
    receive("").exits(123);
    await_quiet(&store, "work");
    let tried = script.tried();
    assert_eq!([&tried[&1][..], &tried[&2], &tried[&3]], [&[1][..], &[1, 1], &[1, 1]]);
    // It died again, once, and without the marks of its first death.
    eventually("both are dead again", || (store.number("work.dead", "ready") == 2).then_some(()));
    let done = store.run("mq-recv", &["-e", "-J", "work.dead"], b"").ok();
    for line in done.text().lines() {
        assert_eq!(line.matches("mq-dead-attempts").count(), 1, "{line}");
    }
}
