//! Filters that stay.

use std::time::{Duration, Instant};

use crate::harness::Store;
use crate::{impatient, pipe, seq};

#[test]
fn one_filter_answers_everything() {
    let store = Store::new();
    store.send("a", &seq(1, 10_000));
    let filter = "echo start >&2; exec sed -u 's/^/> /'";
    let done =
        pipe(&store, &["-e", "--batch", "100", "--stay", "a", "b", "--", "sh", "-c", filter]);
    assert_eq!(done.ok().stderr.matches("start").count(), 1, "it is started once");
    let expected: String = (1..=10_000).map(|n| format!("> {n}\n")).collect();
    assert_eq!(store.receive("b"), expected.as_bytes());
}

/// A filter that does not answer at once is found out, and told what would.
#[test]
fn a_filter_that_buffers_is_told_so() {
    let store = Store::new();
    impatient(&store, "a", "2");
    store.send("a", b"x\ny\n");
    let args = ["-e", "--backoff", "1ms", "--timeout", "200ms", "--stay", "a", "b", "--", "sort"];
    pipe(&store, &args).exits(123).says("stdbuf -oL");
    assert_eq!(store.number("b", "end"), 0);
}

/// One that answers too much is, too.
#[test]
fn a_filter_that_says_too_much_is_told_so() {
    let store = Store::new();
    impatient(&store, "a", "2");
    store.send("a", b"x\ny\n");
    let args = ["-e", "--backoff", "1ms", "--stay", "a", "b", "--", "sed", "-u", "p"];
    // It is seen at once, or at the next line, or at the end, as it comes.
    pipe(&store, &args).exits(123).says("with --stay the filter must answer");
}

/// One message takes a moment only.
#[test]
fn one_message_is_quick() {
    let store = Store::new();
    let mut running = store.spawn("mq-pipe", &["--stay", "a", "b", "--", "sed", "-u", "s/x/y/"]);
    running.await_stderr("there is no queue a yet");
    let mut reader = store.spawn("mq-recv", &["b"]);
    let mut best = Duration::MAX;
    let mut sender = store.spawn("mq-send", &["a"]);
    for _ in 0..20 {
        let began = Instant::now();
        sender.write(b"x\n");
        assert_eq!(reader.line().as_deref(), Some("y"));
        best = best.min(began.elapsed());
    }
    assert!(best < Duration::from_millis(20), "the best of 20 took {best:?}");
}

/// Once, a message that no answer can be told of was tried up to the delivery limit, with pauses that
/// grew, and held up all behind it.
#[test]
fn a_message_with_a_newline_is_given_up_at_once() {
    let store = Store::new();
    store.run("mq-send", &["--whole", "a"], b"x\ny").ok();
    store.send("a", &seq(1, 3));
    let done = pipe(&store, &["-e", "--name", "p", "--stay", "a", "b", "--", "cat"]).ok();
    done.says("message 0 of a is a dead letter: a message holds a newline");
    assert_eq!(store.receive("b"), seq(1, 3));
    assert_eq!(store.number("a.pipe.p.dead", "ready"), 1);
}

/// Once, answers that were too much for one commit ended the pipe, though fewer lines would have done.
#[test]
fn answers_that_are_too_large_come_in_smaller_batches() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", &seq(1, 4));
    let grow = |bytes: u64| {
        format!("while read -r n; do head -c {bytes} /dev/zero | tr '\\0' x; echo; done")
    };
    let fits = grow(20_000_000);
    pipe(&store, &["-e", "--stay", "a", "b", "--", "sh", "-c", &fits]).ok();
    assert_eq!(store.number("b", "end"), 4);
    let never = grow(70_000_000);
    pipe(&store, &["-e", "--stay", "a", "c", "--", "sh", "-c", &never]).exits(65).says("64 MiB");
    assert_eq!(store.number("c", "end"), 0);
}
