//! G14: windows of stored time, which the server's clock closes, under kill -9. What is in each is what
//! was stored in its time, as the queue itself says.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Random, Running, Store, eventually};
use crate::{pipe, size};

const WINDOW_MICROS: i64 = 20_000;

/// Each window's lines, and behind them where it began.
const FILTER: [&str; 3] = ["sh", "-c", "cat; echo \"= $MQ_WINDOW_START\""];

/// What is in each window of a log, by the stored times of its messages.
fn expected(store: &Store) -> String {
    let done = store.run("mq-recv", &["--peek", "-e", "-J", "a"], b"").ok();
    let mut windows: BTreeMap<i64, String> = BTreeMap::new();
    for line in done.text().lines() {
        let message: Value = serde_json::from_str(line).expect("an envelope");
        let time: jiff::Timestamp =
            message["time"].as_str().expect("a time").parse().expect("RFC 3339");
        let start = time.as_microsecond().div_euclid(WINDOW_MICROS) * WINDOW_MICROS;
        let data = message["data"].as_str().expect("text");
        windows.entry(start).or_default().push_str(&format!("{data}\n"));
    }
    let start = |micros| jiff::Timestamp::from_microsecond(micros).expect("a time");
    let tell = |(at, lines)| format!("{lines}= {:.6}\n", start(at));
    windows.into_iter().map(tell).collect()
}

/// The clock that had stood behind messages which a lost server took along closed windows without them.
#[test]
fn windows_of_stored_time_are_exact_over_kills_of_server_and_pipe() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    let mut random = Random(11);
    let args = [&["--name", "p", "--window", "20ms", "a", "file:out", "--"], &FILTER[..]].concat();
    let mut sender = store.spawn("mq-send", &["a"]);
    let mut running: Option<Running> = None;
    let mut sent = 0;
    let written = || std::fs::read_to_string(store.beside("out")).unwrap_or_default();
    for _ in 0..size("MQ_ROUNDS", 20) {
        let pipe = running.get_or_insert_with(|| store.spawn("mq-pipe", &args));
        let windows = written().matches('=').count() as u64;
        let least = windows + random.below(4);
        // Lines come all the time, so that windows close by the clock and by what comes.
        eventually("it gets on", || {
            assert!(!pipe.has_ended(), "the pipe ended: {}", pipe.stderr());
            for _ in 0..random.below(20) {
                sent += 1;
                sender.write(format!("{sent}\n").as_bytes());
            }
            (written().matches('=').count() as u64 >= least).then_some(())
        });
        if random.below(3) == 0 {
            let mut pipe = running.take().expect("it runs");
            pipe.signal(rustix::process::Signal::KILL);
            pipe.await_end();
        } else {
            store.kill_server();
        }
    }
    drop(sender.take_stdin());
    assert_eq!(sender.await_end(), 0, "{}", sender.stderr());
    if let Some(mut pipe) = running {
        pipe.signal(rustix::process::Signal::TERM);
        pipe.await_end();
    }
    pipe(&store, &[&["-e", "--flush"], &args[..]].concat()).ok();
    let (found, expected) = (written(), expected(&store));
    let at = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    assert!(found == expected, "{sent} sent, line {at:?} differs");
}
