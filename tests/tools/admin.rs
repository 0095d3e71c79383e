//! What mq-admin promises.

use crate::harness::{Running, Store};
use crate::seq;

#[test]
fn declaring_twice_is_fine_and_other_settings_are_not() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--sync", "interval=200ms", "q"], b"").ok();
    store.run("mq-admin", &["declare", "--sync", "interval=200ms", "q"], b"").ok();
    store.run("mq-admin", &["declare", "q"], b"").ok();
    let done = store.run("mq-admin", &["declare", "--sync", "never", "q"], b"").exits(1);
    done.says("--change");
    assert_eq!(store.show("q").expect("a queue")["settings"]["sync"], "interval=200ms");
    store.run("mq-admin", &["declare", "--sync", "never", "--change", "q"], b"").ok();
    assert_eq!(store.show("q").expect("a queue")["settings"]["sync"], "never");
    store.run("mq-admin", &["stop"], b"").ok();
    store.send("q", b"x\n");
    assert_eq!(
        store.show("q").expect("a queue")["settings"]["sync"],
        "never",
        "a setting outlives a stop"
    );
}

#[test]
fn listing_names_every_queue() {
    let store = Store::new();
    for queue in ["one", "two", "three"] {
        store.send(queue, b"x\n");
    }
    for args in [&["ls"][..], &["ls", "-l"]] {
        let done = store.run("mq-admin", args, b"").ok().quietly();
        for queue in ["one", "two", "three"] {
            assert!(done.text().contains(queue), "{}", done.text());
        }
        assert!(done.text().lines().all(|l| l.chars().count() <= 80), "{}", done.text());
    }
    let done = store.run("mq-admin", &["ls", "-J"], b"").ok();
    let names: Vec<String> = done
        .text()
        .lines()
        .map(|line| {
            let info: serde_json::Value = serde_json::from_str(line).expect("JSON lines");
            info["queue"].as_str().expect("a name").to_owned()
        })
        .collect();
    assert_eq!(names, ["one", "three", "two"]);
}

/// Times were in microseconds alone, unlike those of all other JSON.
#[test]
fn times_are_told_as_other_tools_tell_them_too() {
    let store = Store::new();
    store.send("q", b"x\n");
    let info = store.show("q").expect("a queue");
    let envelope = store.run("mq-recv", &["-J", "-e", "q"], b"").ok();
    let envelope: serde_json::Value = serde_json::from_str(envelope.text()).expect("JSON");
    let stored = envelope["time"].as_str().expect("a time");
    let oldest = info["oldest_at"].as_str().expect("a time").trim_end_matches('Z');
    assert!(stored.starts_with(oldest), "{info} beside {envelope}");
    assert!(info["created"].is_u64() && info["created_at"].is_string(), "{info}");
    assert!(store.show("q").expect("a queue")["oldest_at"].is_null());
}

#[test]
fn purge_settles_what_is_ready_and_leaves_what_is_held() {
    let store = Store::new();
    store.send("q", &seq(1, 1000));
    let mut receiver = store.spawn("mq-recv", &["q"]);
    assert_eq!(receiver.line().as_deref(), Some("1"));
    store.run("mq-admin", &["purge", "q"], b"").ok();
    assert_eq!(store.number("q", "ready"), 0);
    drop(receiver);
    store.await_number("q", "unacked", 0);
    assert!(store.number("q", "ready") < 100, "what was held came back");
    // A queue that nobody has received from yet can be purged too.
    store.send("fresh", &seq(1, 10));
    store.run("mq-admin", &["purge", "fresh"], b"").ok();
    assert_eq!(store.number("fresh", "ready"), 0);
    assert_eq!(store.receive("fresh"), b"");
}

#[test]
fn a_removed_queue_is_gone_and_a_new_one_is_another() {
    let store = Store::new();
    store.send("q", &seq(1, 10));
    let id = store.show("q").expect("a queue")["id"].clone();
    store.run("mq-admin", &["rm", "q"], b"").ok();
    assert!(store.show("q").is_none());
    assert!(!store.path().join("queues/q").exists());
    store.send("q", b"new\n");
    assert_ne!(store.show("q").expect("a queue")["id"], id);
    assert_eq!(store.receive("q"), b"new\n");
    store.run("mq-admin", &["rm", "not-there"], b"").exits(1);
}

#[test]
fn clients_of_a_removed_queue_are_told() {
    let store = Store::new();
    let mut sender = store.spawn("mq-send", &["q"]);
    sender.write(b"1\n");
    store.await_number("q", "ready", 1);
    store.run("mq-admin", &["rm", "q"], b"").ok();
    // It may have ended before it is offered more.
    let _ = std::io::Write::write_all(sender.stdin(), b"2\n");
    let done = sender.finish();
    assert_ne!(done.code, 0, "its confirmed message is gone");
    done.says("removed");
}

#[test]
fn waiting_ends_when_all_is_settled() {
    let store = Store::new();
    store.send("q", b"");
    store.run("mq-admin", &["wait", "q"], b"").ok();
    store.send("q", &seq(1, 3));
    store.run("mq-admin", &["wait", "-w", "100ms", "q"], b"").exits(124);
    let waiter = store.spawn("mq-admin", &["wait", "q"]);
    let mut receiver = store.spawn("mq-recv", &["q"]);
    assert_eq!(receiver.lines(3), ["1", "2", "3"]);
    waiter.finish().ok();
    // One that is not there yet may come: `seq 100 | mq-send q & mq-admin wait q`.
    store.run("mq-admin", &["wait", "-w", "100ms", "not-there"], b"").exits(124);
}

#[test]
fn check_reads_everything_with_and_without_a_server() {
    let store = Store::new();
    store.send("q", &seq(1, 100_000));
    let holder = Running::start(store.command("mq-recv", &["q"]));
    store.run("mq-admin", &["check"], b"").ok();
    store.run("mq-admin", &["check", "q"], b"").ok();
    let done = store.run("mq-admin", &["check", "-J"], b"").ok();
    let report: serde_json::Value =
        serde_json::from_str(done.text().lines().last().expect("a line")).expect("JSON");
    assert_eq!(report["messages"], 100_000);
    let done = store.run("mq-admin", &["check", "--offline"], b"");
    assert_ne!(done.code, 0, "a server is running");
    drop(holder);
    store.run("mq-admin", &["stop"], b"").ok();
    store.run("mq-admin", &["check", "--offline"], b"").ok();
    assert!(store.server().is_none());
}

/// It told of a queue that was missing, and nothing of a server.
#[test]
fn waiting_without_a_server_says_so_and_goes_on_when_there_is_one() {
    let store = Store::new();
    let mut waiter = store.spawn("mq-admin", &["wait", "q"]);
    waiter.await_stderr("no mq-serve runs on the store");
    store.send("q", b"x\n");
    assert_eq!(store.receive("q"), b"x\n");
    let done = waiter.finish().ok();
    assert_eq!(done.stderr.matches("no mq-serve").count(), 1, "{}", done.stderr);
    store.run("mq-admin", &["stop"], b"").ok();
    let done = store.run("mq-admin", &["wait", "-w", "100ms", "q"], b"").exits(69);
    done.says("yet; waiting for one");
    store.run("mq-admin", &["wait", "-q", "-w", "100ms", "q"], b"").exits(69);
}

/// `mq-admin ls` of a server that stands still waited for half a minute without a word.
#[test]
fn a_server_that_stands_still_is_named_while_it_is_waited_for() {
    use rustix::process::Signal;
    let store = Store::new();
    store.send("q", b"x\n");
    let pid = store.server().expect("a server").as_raw_nonzero();
    for verb in ["ls", "stop"] {
        store.signal_server(Signal::STOP);
        let mut admin = store.spawn("mq-admin", &[verb]);
        admin.await_stderr(&format!("the server (process {pid}) does not answer yet"));
        store.signal_server(Signal::CONT);
        admin.finish().ok();
    }
    // It once advised a longer -w, which most verbs did not know.
    store.send("q", b"y\n");
    store.signal_server(Signal::STOP);
    let start = std::time::Instant::now();
    for verb in [&["ls"][..], &["show", "q"], &["group", "ls", "q"], &["purge", "q"]] {
        let done = store.run("mq-admin", &[verb, &["-w", "50ms"]].concat(), b"").exits(69);
        done.says("does not answer").says("the same again later, or kill ");
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "-w is how long it waits");
    store.signal_server(Signal::CONT);
    store.run("mq-admin", &["-w", "1m", "ls"], b"").ok();
}
