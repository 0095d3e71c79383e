//! Each message once: inputs that are sent again under the name of a producer, ids that a queue
//! remembers, work that is asked for while it is pending.

use std::io::Write;

use rustix::process::Signal;

use crate::harness::{Running, Store, eventually};
use crate::{numbers, seq};

/// Sends under the name `n` what a file holds.
fn named(store: &Store, input: &[u8]) -> crate::harness::Done {
    store.run("mq-send", &["-v", "--producer", "n", "q"], input)
}

#[test]
fn an_input_is_stored_once_however_often_its_sending_is_cut_off() {
    let store = Store::new();
    let _server = store.serve();
    let input = seq(1, 200_000);
    // A killed sender, in the midst of it.
    let mut sender = Running::start(store.shell("exec mq-send --producer n q"));
    let mut stdin = sender.take_stdin();
    let part = input[..input.len() / 2].to_vec();
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&part);
        stdin
    });
    eventually("some is stored", || {
        store.show("q").filter(|info| info["ready"].as_u64() > Some(10_000))
    });
    sender.signal(Signal::KILL);
    sender.await_end();
    drop(feeder.join().expect("the feeder ends with its reader"));
    // A killed server, and another producer in between.
    store.kill_server();
    let _server = store.serve();
    store.send("other", &seq(1, 10));
    let done = named(&store, &input[..input.len() - 7]).ok();
    assert!(done.stderr.contains("that an earlier run had stored"), "{}", done.stderr);
    store.kill_server();
    let _server = store.serve();
    // Whole now: the input has grown by what was held back.
    let done = named(&store, &input[..input.len() - 7]).ok();
    assert!(done.stderr.contains("mq-send: 0 messages"), "{}", done.stderr);
    named(&store, &input).ok();
    assert!(store.receive("q") == input);
    // What was taken and is gone still counts as stored.
    named(&store, &input).ok();
    assert_eq!(store.number("q", "ready"), 0);
}

#[test]
fn another_input_under_the_same_name_stores_nothing_and_says_what_to_do() {
    let store = Store::new();
    named(&store, b"one\ntwo\nthree\n").ok();
    for (input, said) in [
        (&b"one\nTWO\nthree\nfour\n"[..], "not all the same"),
        (b"one\ntwo\n", "it has 2 messages, and 3 are stored"),
        (b"", "it has 0 messages, and 3 are stored"),
    ] {
        let done = named(&store, input).exits(65).says(said);
        assert!(done.stderr.contains("confirmed: 0 leading messages"), "{}", done.stderr);
        assert!(done.stderr.contains("another name with --producer"), "{}", done.stderr);
    }
    assert_eq!(store.receive("q"), b"one\ntwo\nthree\n");
    // Another name is another input; another queue too.
    store.run("mq-send", &["--producer", "m", "q"], b"one\nTWO\n").ok();
    store.run("mq-send", &["--producer", "n", "r"], b"one\n").ok();
    assert_eq!(store.receive("q"), b"one\nTWO\n");
}

#[test]
fn texts_envelopes_and_large_messages_can_be_sent_again_too() {
    let store = Store::new();
    let envelopes = b"{\"data\":\"a\",\"key\":\"k\"}\n{\"data_base64\":\"/w==\"}\n";
    let mut large = vec![b'x'; 3 << 20];
    large.extend_from_slice(b"\nsmall\n");
    for _ in 0..2 {
        store.run("mq-send", &["--producer", "a", "q", "-m", "text"], b"").ok();
        store.run("mq-send", &["--producer", "b", "-J", "q"], envelopes).ok();
        store.run("mq-send", &["--producer", "c", "-k", "k", "q"], &large).ok();
    }
    let done = store.run("mq-recv", &["-e", "-F", "%S ", "q"], b"").ok();
    assert_eq!(done.text(), format!("4 1 1 {} 5 ", 3 << 20));
    store.run("mq-send", &["--producer", "a", "q", "-m", "another"], b"").exits(65);
    // Of large messages alone too, also after a crash.
    for (server_dies, message) in [(false, b'a'), (true, b'a'), (false, b'b')] {
        let whole = vec![message; 2 << 20];
        let done = store.run("mq-send", &["--producer", "w", "--whole", "r"], &whole);
        done.exits(if message == b'a' { 0 } else { 65 });
        if server_dies {
            store.kill_server();
        }
    }
    let done = store.run("mq-recv", &["-e", "--raw", "r"], b"").ok();
    assert!(done.stdout == vec![b'a'; 2 << 20]);
}

#[test]
fn a_second_sender_of_the_same_name_ends_the_first() {
    let store = Store::new();
    let mut first = store.spawn("mq-send", &["--producer", "n", "q"]);
    first.write(b"one\n");
    store.await_number("q", "ready", 1);
    named(&store, b"one\ntwo\n").ok();
    // It notices when it sends on.
    let _ = first.stdin().write_all(b"three\n");
    let done = first.finish().exits(1);
    assert!(done.stderr.contains("same producer"), "{}", done.stderr);
    assert_eq!(store.receive("q"), b"one\ntwo\n");
}

#[test]
fn what_comes_twice_over_a_hop_is_stored_once() {
    let store = Store::new();
    store.send("a", &seq(1, 10_000));
    store.run("mq-admin", &["declare", "--unique-ids", "20000", "b"], b"").ok();
    for there in [0, 10_000] {
        let done = store.sh("mq-recv --peek -J a | mq-send -v -J b").ok();
        let said = format!("{there} of them were there already");
        assert_eq!(done.stderr.contains(&said), there > 0, "{}", done.stderr);
        store.kill_server();
    }
    assert!(store.receive("b") == seq(1, 10_000));
}

#[test]
fn work_is_asked_for_once_while_it_is_pending() {
    let store = Store::new();
    let ask = |text: &str| {
        let args = ["--unless-pending", "-v", "-k", "site", "builds", "-m", text];
        store.run("mq-send", &args, b"")
    };
    store.send("builds", b"");
    let done = ask("x");
    assert_ne!(done.code, 0, "the queue does not know its keys");
    assert!(done.stderr.contains("unique-keys"), "{}", done.stderr);
    store.run("mq-admin", &["declare", "--change", "--unique-keys", "10", "builds"], b"").ok();
    assert!(!ask("one").ok().stderr.contains("already"));
    assert_eq!(numbers(&ask("two").ok().says("1 of them were there already").stderr)[0], 1);
    // It is pending as long as it is worked on, and not any more when that is done.
    store.sh("mkfifo gate").ok();
    let work = "exec mq-recv -n 1 builds -- sh -c 'cat; cat gate'";
    let mut receiver = Running::start(store.shell(work));
    assert_eq!(receiver.line().as_deref(), Some("one"));
    ask("three").ok().says("1 of them were there already");
    store.sh("echo done > gate").ok();
    receiver.finish().ok();
    assert!(!ask("four").ok().stderr.contains("already"));
    assert_eq!(store.receive("builds"), b"four\n");
}

/// `--unique-ids DUR`
#[test]
fn an_id_is_unique_within_its_time() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--unique-ids", "5s", "q"], b"").ok();
    let start = std::time::Instant::now();
    let stored = || {
        store.run("mq-send", &["--id", "i", "q", "-m", "x"], b"").ok();
        store.number("q", "ready")
    };
    stored();
    loop {
        let twice = stored() == 2;
        let elapsed = start.elapsed().as_secs_f64();
        assert!(!twice || elapsed >= 5.0, "stored again after {elapsed} s");
        assert!(elapsed < 60.0, "never stored again");
        if twice {
            return;
        }
        store.kill_server();
    }
}

/// `--unique-keys N`: at N keys that are pending another one is refused.
#[test]
fn more_keys_than_a_queue_can_know_are_refused_until_some_are_done() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--unique-keys", "2", "q"], b"").ok();
    let ask =
        |key: &str| store.run("mq-send", &["--unless-pending", "-k", key, "q", "-m", key], b"");
    ask("a").ok();
    ask("b").ok();
    ask("a").ok();
    ask("c").exits(75).says("confirmed: 0 leading messages");
    assert_eq!(store.run("mq-recv", &["-n1", "q"], b"").ok().text(), "a\n");
    ask("c").ok();
    assert_eq!(store.receive("q"), b"b\nc\n");
}
