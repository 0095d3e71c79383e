//! `--batch`: messages that are settled together.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::process::Signal;

use crate::commands::await_quiet;
use crate::harness::{Running, Store};
use crate::size;

/// What a batch brings: the count that the command was told, and the lines.
fn noted(file: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| line.parse().unwrap_or_else(|_| panic!("a torn line: {line}")))
        .collect()
}

fn sequence(messages: u64) -> Vec<u8> {
    (1..=messages).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

fn receivers(store: &Store, script: &str) -> Vec<Running> {
    let args = ["-P4", "--batch", "100", "--backoff", "10ms..50ms", "q", "--", "sh", "-c", script];
    (0..2).map(|_| store.spawn("mq-recv", &args)).collect()
}

fn end(receivers: Vec<Running>) {
    for mut receiver in receivers {
        receiver.signal(Signal::TERM);
        assert_eq!(receiver.await_end(), 143, "{}", receiver.stderr());
    }
}

#[test]
fn batch_that_fails_comes_again_until_it_succeeds() {
    let messages = size("MQ_MESSAGES", 20_000);
    let store = Store::new();
    let done = store.beside("done");
    // Each process is of another mind about its batch, so that no batch fails for ever; what it
    // notes is one write.
    let script = format!(
        "batch=$(cat); case $(($$ % 4)) in
         0) exit 1 ;;
         1) kill -9 $$ ;;
         esac
         test \"$(printf '%s\\n' \"$batch\" | wc -l)\" -eq \"$MQ_COUNT\" || exit 65
         printf '%s\\n' \"$batch\" >> '{}'",
        done.display()
    );
    store.run("mq-admin", &["declare", "q", "--delivery-limit", "0"], b"").ok();
    store.send("q", &sequence(messages));
    let receivers = receivers(&store, &script);
    await_quiet(&store, "q");
    end(receivers);
    let mut noted = noted(&done);
    noted.sort_unstable();
    assert!(noted == (1..=messages).collect::<Vec<u64>>(), "each once: {} notes", noted.len());
    assert!(store.show("q.dead").is_none(), "nothing is dead");
}

#[test]
fn batch_that_always_fails_is_dead_message_by_message() {
    let messages = size("MQ_MESSAGES", 5_000);
    let store = Store::new();
    store.run("mq-admin", &["declare", "q", "--delivery-limit", "2"], b"").ok();
    store.send("q", &sequence(messages));
    let receivers = receivers(&store, "echo no >&2; exit 1");
    await_quiet(&store, "q");
    end(receivers);
    let dead = store.run("mq-recv", &["-e", "-J", "q.dead"], b"").ok();
    let mut numbers = BTreeSet::new();
    for line in dead.text().lines() {
        let envelope: serde_json::Value = serde_json::from_str(line).expect("JSON lines");
        let n: u64 = envelope["data"].as_str().expect("a body").parse().expect("a number");
        assert!(numbers.insert(n), "{n} is dead twice");
        assert_eq!(envelope["headers"]["mq-dead-attempts"], "2", "{line}");
        assert_eq!(envelope["headers"]["mq-dead-stderr"], "no\n", "{line}");
    }
    assert_eq!(numbers.len() as u64, messages);
}
