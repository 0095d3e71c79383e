//! `mq-pipe --window`: which messages the filter sees together, late ones, failures, and what is
//! said of what does not fit.

use crate::harness::Store;
use crate::{pipe, seq};

/// One line for each window.
const TELL: &str =
    "echo $MQ_WINDOW_START $MQ_WINDOW_END ${MQ_KEY-none} $MQ_COUNT: $(cut -d' ' -f3)";

/// `SECONDS KEY WORD`, times since an hour.
fn line(second: u64, key: &str, word: &str) -> String {
    format!("{} {key} {word}\n", 1_769_860_800 + second)
}

#[track_caller]
fn send(store: &Store, lines: &[(u64, &str, &str)]) {
    let text: String = lines.iter().map(|(at, key, word)| line(*at, key, word)).collect();
    store.send("a", text.as_bytes());
}

/// What the pipe of these flags writes, the hour left out.
#[track_caller]
fn windows(store: &Store, flags: &[&str]) -> Vec<String> {
    let args = [&["-e", "--name", "p", "--time", "1"], flags, &["a", "b", "--", "sh", "-c", TELL]];
    pipe(store, &args.concat()).ok();
    let text = String::from_utf8(store.receive("b")).expect("UTF-8");
    text.replace("2026-01-31T12:", "").replace(".000000Z", "").lines().map(str::to_owned).collect()
}

#[test]
fn a_window_closes_when_its_time_is_over() {
    let store = Store::new();
    send(&store, &[(5, "x", "a"), (59, "y", "b"), (60, "x", "c"), (30, "x", "late")]);
    assert_eq!(windows(&store, &["--window", "1m"]), ["00:00 01:00 none 2: a b"]);
    send(&store, &[(130, "x", "d")]);
    assert_eq!(windows(&store, &["--window", "1m"]), ["01:00 02:00 none 1: c"]);
    assert_eq!(store.show("b").expect("it is there")["pipes"][0]["figures"]["late"], 1);
    assert_eq!(windows(&store, &["--window", "1m", "--flush"]), ["02:00 03:00 none 1: d"]);
    assert_eq!(store.number("a", "ready"), 0);
}

#[test]
fn windows_are_kept_apart_by_key_and_wait_for_late_messages() {
    let store = Store::new();
    let lines = [(5, "y", "a"), (70, "x", "b"), (50, "x", "c"), (95, "z", "d"), (20, "x", "e")];
    send(&store, &lines);
    let flags = ["--window", "1m,late=30s", "--key", "2", "--late", "late"];
    assert_eq!(windows(&store, &flags), ["00:00 01:00 x 1: c", "00:00 01:00 y 1: a"]);
    // Once, the queue for what is late was listed as a destination of its own.
    assert_eq!(store.show("late").expect("it is there")["pipes"], serde_json::Value::Null);
    let late = store.run("mq-recv", &["-e", "-J", "late"], b"").ok();
    let envelope: serde_json::Value = serde_json::from_slice(&late.stdout).expect("an envelope");
    assert_eq!(envelope["data"], line(20, "x", "e").trim_end());
    assert_eq!(envelope["headers"]["mq-late"], "late");
    assert_eq!(envelope["headers"]["mq-offset"], "4");
    let flags = [&flags[..], &["--flush"]].concat();
    assert_eq!(windows(&store, &flags), ["01:00 02:00 x 1: b", "01:00 02:00 z 1: d"]);
}

#[test]
fn windows_overlap_where_they_slide() {
    let store = Store::new();
    send(&store, &[(5, "x", "a"), (15, "x", "b"), (25, "x", "c")]);
    let flags = ["--window", "20s,every=10s", "--flush"];
    let expected = [
        "2026-01-31T11:59:50 00:10 none 1: a",
        "00:00 00:20 none 2: a b",
        "00:10 00:30 none 2: b c",
        "00:20 00:40 none 1: c",
    ];
    assert_eq!(windows(&store, &flags), expected);
}

#[test]
fn a_session_ends_with_a_pause() {
    let store = Store::new();
    send(&store, &[(0, "x", "a"), (8, "x", "b"), (9, "y", "c"), (30, "x", "d")]);
    let flags = ["--window", "session=10s", "--key", "2"];
    assert_eq!(windows(&store, &flags), ["00:00 00:18 x 2: a b", "00:09 00:19 y 1: c"]);
}

#[test]
fn windows_of_messages_need_no_time() {
    let store = Store::new();
    send(&store, &[(9, "x", "a"), (8, "x", "b"), (7, "x", "c")]);
    assert_eq!(windows(&store, &["--window", "2"]), ["0 1 none 2: a b"]);
    assert_eq!(windows(&store, &["--window", "2", "--flush"]), ["2 2 none 1: c"]);
}

#[test]
fn the_clock_closes_windows_of_stored_time() {
    let store = Store::new();
    store.send("a", b"one\ntwo\n");
    let script = "tr '\\n' ' '; echo";
    let mut running =
        store.spawn("mq-pipe", &["--window", "100ms", "a", "b", "--", "sh", "-c", script]);
    store.await_number("b", "end", 1);
    store.send("a", b"three\n");
    store.await_number("b", "end", 2);
    running.signal(rustix::process::Signal::TERM);
    running.await_end();
    assert_eq!(store.receive("b"), b"one two \nthree \n");
    store.await_number("a", "ready", 0);
}

#[test]
fn a_failing_window_stops_the_pipe_or_is_given_up_whole() {
    let store = Store::new();
    crate::impatient(&store, "a", "2");
    send(&store, &[(0, "x", "a"), (1, "x", "bad"), (60, "x", "c"), (120, "x", "d")]);
    let script = "grep -q bad && exit 3; echo well";
    let flags = ["-e", "--name", "p", "--time", "1", "--window", "1m", "--backoff", "1ms"];
    let words = ["a", "b", "--", "sh", "-c", script];
    let stopped = pipe(&store, &[&flags[..], &words].concat()).exits(123);
    stopped.says("the window of messages 0..2").says("exit status 3");
    assert!(store.receive("b").is_empty());
    let dead = pipe(&store, &[&flags[..], &["--on-fail", "dead"], &words].concat()).ok();
    dead.says("the 2 messages of a window of a");
    assert_eq!(store.receive("b"), b"well\n");
    assert_eq!(store.receive("a.pipe.p.dead").split(|b| *b == b'\n').count(), 3);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let store = Store::new();
    for (flags, said) in [
        (&["--flush"][..], "--window"),
        (&["--window", "1m", "--batch", "7"], "cannot be used with"),
        (&["--window", "1m", "--flush"], "--end"),
        (&["--window", "1m,every=2m"], "must not be longer"),
        (&["--window", "1m", "--time", "when"], "--time"),
        (&["--window", "1m", "--late", "a"], "again and again"),
        (&["--window", "1m,every=1s", "--on-fail", "dead"], "overlap"),
        (&["--key", "1"], "-P"),
        (&["-t", ",", "--window", "1m"], "-t says"),
        (&["--state", "s", "-P2"], "--key"),
        (&["--state", "s", "--stay"], "cannot be used with"),
    ] {
        let words = [flags, &["a", "b", "--", "cat"]].concat();
        pipe(&store, &words).exits(2).says(said);
    }
    pipe(&store, &["--window", "1m", "-", "b", "--", "cat"]).exits(2).says("not stored");
    pipe(&store, &["--state", "s", "a", "-", "--", "cat"]).exits(2).says("--state");
}

#[test]
fn open_windows_of_another_kind_are_not_gone_on_with() {
    let store = Store::new();
    send(&store, &[(0, "x", "a"), (61, "x", "b")]);
    windows(&store, &["--window", "1m"]);
    let go = |flags: &[&str]| {
        pipe(&store, &[&["-e", "--name", "p"], flags, &["a", "b", "--", "cat"]].concat())
    };
    go(&["--window", "2m", "--time", "1"]).exits(1).says("--window 1m --time 1").says("--reset");
    go(&[]).exits(1).says("windows of another kind");
    go(&["--window", "2m", "--time", "1", "--reset"]).ok();
}

/// A receiver has credit for some four million messages beyond what it was given.
#[test]
fn a_window_may_hold_more_messages_than_any_receiver_has_credit_for() {
    let store = Store::new();
    store.sh("head -c 5000000 /dev/zero | tr '\\0' '\\n' | mq-send a").ok();
    let words = ["--window", "5000000", "a", "b", "--", "sh", "-c", "echo $MQ_COUNT $(wc -l)"];
    pipe(&store, &[&["-e"][..], &words].concat()).ok();
    assert_eq!(store.receive("b"), b"5000000 5000000\n");
}

/// Once, a long pointer made the position of a pipe larger than there is room for: the thread that
/// commits panicked, and the pipe sat there, deaf to signals.
#[test]
fn a_long_pointer_does_no_harm() {
    let store = Store::new();
    store.send("a", &seq(1, 6));
    let pointer = format!("/{}", "x".repeat(20_000));
    let args =
        ["-e", "--name", "p", "--window", "3", "--key", &pointer, "a", "b", "--", "wc", "-l"];
    pipe(&store, &args).ok();
    assert_eq!(store.receive("b"), b"3\n3\n");
    let other = format!("/{}", "x".repeat(20_001));
    store.send("a", b"7\n");
    pipe(&store, &args).ok();
    let args = ["-e", "--name", "p", "--window", "3", "--key", &other, "a", "b", "--", "wc", "-l"];
    pipe(&store, &args).exits(1).says("windows of another kind");
}

/// What is late keeps what it came with, its key as a header.
#[test]
fn a_late_message_keeps_what_it_came_with() {
    let store = Store::new();
    send(&store, &[(70, "x", "a"), (130, "x", "b")]);
    let args = ["-k", "ada", "-H", "host=web-1", "a"];
    store.run("mq-send", &args, line(5, "x", "late").as_bytes()).ok();
    let flags = ["--window", "1m", "--key", "key", "--late", "late"];
    windows(&store, &flags);
    store.run("mq-send", &args, b"no time at all\n").ok();
    windows(&store, &flags);
    let late = store.run("mq-recv", &["-e", "-J", "late"], b"").ok();
    let text = late.text();
    let envelopes: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("an envelope")).collect();
    let headers: Vec<&serde_json::Value> = envelopes.iter().map(|one| &one["headers"]).collect();
    let headers_of = |why: &str, offset: &str| serde_json::json!({"mq-late": why, "mq-offset": offset, "mq-key": "ada", "host": "web-1"});
    assert_eq!(headers, [&headers_of("late", "2"), &headers_of("no time", "3")]);
}

/// Which messages make a window depends on the messages alone: a queue that keeps them gives the
/// same windows when it is read again, however it was read the first time.
#[test]
fn a_replay_gives_the_same_windows() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    let top = "echo $MQ_WINDOW_START $MQ_KEY; cut -d' ' -f3 | sort | uniq -c | sort -rn | head -3";
    for window in ["10s,late=5s", "10s,every=5s", "session=4s,late=2s", "13"] {
        let flags = ["-e", "--time", "1", "--key", "2", "--window", window];
        let run = |name: &str, to: &str| {
            let words = ["--name", name, "a", to, "--", "sh", "-c", top];
            pipe(&store, &[&flags[..], &words].concat()).ok();
        };
        let first = store.show("a").expect("it is there")["end"].as_u64().expect("a number");
        for part in 0..4u64 {
            let text: String = (0..50)
                .map(|n| {
                    let at = first + part * 50 + n;
                    let second = 6 + at / 2 + 20 * (at / 40) - (at * 7919) % 6;
                    line(second, ["x", "y", "z"][at as usize % 3], ["one", "two"][at as usize % 2])
                })
                .collect();
            store.send("a", text.as_bytes());
            run("first", "b");
        }
        run("again", "c");
        let [b, c] =
            ["b", "c"].map(|queue| String::from_utf8(store.receive(queue)).expect("UTF-8"));
        assert!(b.lines().count() > 20, "{b}");
        assert_eq!(b, c, "{window}");
        for (name, queue) in [("first", "b"), ("again", "c")] {
            let group = format!("pipe.{name}");
            store.run("mq-admin", &["group", "rm", "a", &group], b"").ok();
            store.run("mq-admin", &["rm", queue], b"").ok();
        }
    }
}
