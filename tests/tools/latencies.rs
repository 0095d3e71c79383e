//! The three latencies agree with what is measured from outside, within a tenth.

use std::time::{Duration, Instant};

use mq::units::Micros;
use mq::wire::stat::{Histogram, QueueFigures};
use rustix::process::Signal;

use crate::figures::Watcher;
use crate::harness::{Store, eventually};
use crate::seq;

/// Whether two lengths of time are within a tenth of each other.
#[track_caller]
fn agree(what: &str, counted: Option<Micros>, measured: Duration) {
    let counted = counted.expect("something was measured").0 as f64 / 1e6;
    let measured = measured.as_secs_f64();
    let off = (counted / measured - 1.0).abs();
    assert!(off < 0.1, "{what}: the server says {counted:.3} s, the test {measured:.3} s");
}

/// The parts of the way take as long together as the whole.
#[track_caller]
fn adds_up(queue: &QueueFigures) {
    let latency = &queue.latency;
    let sum = |part: &Option<Histogram>| part.as_ref().map_or(0, |part| part.sum.0);
    let parts = sum(&latency.produce) + sum(&latency.queue) + sum(&latency.consume);
    let whole = sum(&latency.whole);
    let off = parts.abs_diff(whole) as f64 / whole as f64;
    assert!(off < 0.02, "the parts take {parts} us together, the whole {whole} us");
}

/// As long as the server is stopped, what was read waits in the socket.
#[test]
fn produce_counts_from_the_reading_while_the_server_is_stopped() {
    let store = Store::new();
    let mut sender = store.spawn("mq-send", &["q"]);
    sender.write(b"first\n");
    store.await_number("q", "ready", 1);
    let earlier = Watcher::of(&store).queue("q").latency.produce.expect("one was measured");
    store.signal_server(Signal::STOP);
    let begun = Instant::now();
    sender.write(&seq(1, 1_000));
    std::thread::sleep(Duration::from_secs(1));
    store.signal_server(Signal::CONT);
    let measured = begun.elapsed();
    store.await_number("q", "ready", 1_001);
    let produce = Watcher::of(&store).queue("q").latency.produce.expect("measured");
    let window = produce.since(&earlier);
    assert_eq!((earlier.count, window.count), (1, 1_000));
    assert!(earlier.max < Micros::from_millis(900), "{:?}", earlier.max);
    agree("produce", window.quantile(0.5), measured);
    agree("produce, at most", Some(window.max), measured);
    sender.finish().ok();
}

#[test]
fn queue_counts_from_being_stored_to_being_handed_over() {
    let store = Store::new();
    store.send("q", &seq(1, 5_000));
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    store.receive("q");
    let measured = begun.elapsed();
    let queue = Watcher::of(&store).queue("q");
    let waited = queue.latency.queue.as_ref().expect("measured");
    assert_eq!(waited.count, 5_000);
    agree("queue", waited.quantile(0.5), measured);
    adds_up(&queue);
    // Of a backlog that a server found at its start the stored time tells as much.
    store.send("old", b"x\n");
    let begun = Instant::now();
    store.kill_server();
    std::thread::sleep(Duration::from_secs(2));
    store.receive("old");
    let measured = begun.elapsed();
    let latency = Watcher::of(&store).queue("old").latency;
    agree("queue, over a restart", latency.queue.and_then(|h| h.quantile(0.5)), measured);
    agree("whole, over a restart", latency.whole.and_then(|h| h.quantile(0.5)), measured);
}

#[test]
fn consume_counts_the_run_of_a_command() {
    let store = Store::new();
    store.send("q", &seq(1, 40));
    let begun = Instant::now();
    store.run("mq-recv", &["-e", "q", "--", "sleep", "0.05"], b"").ok();
    let measured = begun.elapsed() / 40;
    let queue = Watcher::of(&store).queue("q");
    let consume = queue.latency.consume.as_ref().expect("measured");
    assert_eq!(consume.count, 40);
    agree("consume", consume.mean(), measured);
    assert!(consume.quantile(0.5) >= Some(Micros::from_millis(48)), "{consume:?}");
    adds_up(&queue);
    let counted = queue.seconds.iter().map(|second| second.acked.0).sum::<u64>();
    let minutes = queue.minutes.iter().map(|minute| minute.acked.0).sum::<u64>();
    assert_eq!((counted, minutes), (40, 40));
    assert!(queue.seconds.iter().all(|second| second.whole.is_some() || second.acked.0 == 0));
}

#[test]
fn history_tells_when_what_was_moved() {
    let store = Store::new();
    store.send("q", &seq(1, 100));
    let stored = eventually("a slice is there", || {
        let queue = Watcher::of(&store).queue("q");
        Some(queue).filter(|queue| !queue.seconds.is_empty())
    });
    assert_eq!(stored.seconds.iter().map(|s| s.stored.0).sum::<u64>(), 100);
    assert_eq!(stored.seconds.last().expect("one").ready.0, 100);
    store.receive("q");
    let queue = Watcher::of(&store).queue("q");
    let sum = |part: fn(&mq::wire::stat::Slice) -> u64| queue.minutes.iter().map(part).sum::<u64>();
    assert_eq!((sum(|m| m.stored.0), sum(|m| m.delivered.0), sum(|m| m.acked.0)), (100, 100, 100));
    assert!(sum(|m| m.delivered_bytes.0) > 292);
    assert_eq!(queue.minutes.last().expect("one").ready.0, 0);
}
