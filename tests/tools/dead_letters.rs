//! Dead letters: what failed for good is in the dead-letter queue, once, says why, and comes back
//! when it is asked to.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Random, Store, eventually};
use crate::{seq, size};

/// The envelopes of all that is in a queue; nothing is taken.
fn peek(store: &Store, queue: &str) -> Vec<Value> {
    let done = store.run("mq-recv", &["--peek", "-J", queue], b"").ok();
    done.text().lines().map(|line| serde_json::from_str(line).expect("an envelope")).collect()
}

/// Waits until so many dead letters of the default group of `queue` are in its queue for them.
fn await_dead(store: &Store, queue: &str, count: u64) {
    let dead = format!("{queue}.dead");
    eventually(&format!("{count} dead letters of {queue}"), || {
        let info = store.show(&dead)?;
        (info["ready"].as_u64() == Some(count)).then_some(())
    });
}

/// Everything that is ready in `queue` fails once.
fn fail_all(store: &Store, queue: &str, said: &str) {
    let script = format!("echo '{said}' >&2; exit 7");
    let command = ["-e", "-P4", "--backoff", "1ms", queue, "--", "sh", "-c", &script];
    store.run("mq-recv", &command, b"").exits(123);
}

/// Once, `mq-recv -e q -- ... || mq-recv -e q.dead` found nothing most of the time.
#[test]
fn dead_letters_are_there_when_the_receiver_says_that_there_are_some() {
    let store = Store::new();
    for n in 0..20 {
        let queue = format!("q{n}");
        store.send(&queue, b"x\n");
        let receive = format!(
            "mq-recv -e {queue} -- sh -c 'exit 65'; [ $? = 123 ] && mq-recv --peek {queue}.dead"
        );
        assert_eq!(store.sh(&receive).ok().text(), "x\n", "round {n}");
    }
}

#[test]
fn a_dead_letter_says_where_it_is_from_and_why() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--delivery-limit", "2", "q"], b"").ok();
    store
        .run("mq-send", &["-k", "key", "-H", "colour=blue", "--id", "one", "q", "-m", "body"], b"")
        .ok();
    fail_all(&store, "q", "first");
    eventually("it is ready again", || (store.number("q", "ready") == 1).then_some(()));
    fail_all(&store, "q", "no such host");
    await_dead(&store, "q", 1);
    let letter = peek(&store, "q.dead").remove(0);
    let headers = &letter["headers"];
    for (name, value) in [
        ("mq-dead-queue", "q"),
        ("mq-dead-group", "default"),
        ("mq-dead-offset", "0"),
        ("mq-dead-attempts", "2"),
        ("mq-dead-reason", "exit status 7"),
        ("mq-dead-stderr", "no such host\n"),
        ("colour", "blue"),
    ] {
        assert_eq!(headers[name], value, "{letter}");
    }
    let (first, last) = (headers["mq-dead-first"].as_str(), headers["mq-dead-time"].as_str());
    assert!(first.is_some() && first < last, "{letter}");
    assert_eq!(
        (&letter["key"], &letter["id"], &letter["data"]),
        (&Value::from("key"), &Value::from("one"), &Value::from("body"),)
    );
    let info = store.show("q").expect("a queue");
    assert_eq!(info["groups"][0]["dead"], 1, "{info}");
    assert_eq!(store.show("q.dead").expect("a queue")["settings"]["delivery_limit"], 0);
    // It has no limit there: it fails as often as one likes.
    for _ in 0..25 {
        store.run("mq-recv", &["-n1", "--backoff", "0", "q.dead", "--", "false"], b"");
    }
    eventually("it is still there", || (store.number("q.dead", "ready") == 1).then_some(()));
}

/// The default limit, and the default name for a group that is not the default one.
#[test]
fn without_other_settings_a_message_dies_at_its_twentieth_attempt() {
    let store = Store::new();
    store.send("q", b"x\n");
    for (group, dead) in [("default", "q.dead"), ("other", "q.other.dead")] {
        store.run("mq-admin", &["group", "add", "q", "other"], b"");
        let work =
            ["--backoff", "1ms..1ms", "-g", group, "q", "--", "sh", "-c", "echo >> tries; exit 1"];
        let mut receiver = store.spawn("mq-recv", &work);
        eventually(&format!("it is in {dead}"), || store.show(dead));
        store.await_number(dead, "ready", 1);
        receiver.signal(rustix::process::Signal::TERM);
        receiver.await_end();
        let letter = peek(&store, dead).remove(0);
        assert_eq!(letter["headers"]["mq-dead-attempts"], "20", "{letter}");
        assert_eq!(letter["headers"]["mq-dead-group"], group);
    }
    let tries = std::fs::read_to_string(store.beside("tries")).expect("notes");
    assert_eq!(tries.lines().count(), 40);
}

#[test]
fn letters_go_where_the_queue_says() {
    let store = Store::new();
    let declare = ["declare", "--delivery-limit", "1", "--dead-letter", "graveyard", "q"];
    store.run("mq-admin", &declare, b"").ok();
    store.send("q", &seq(1, 20));
    fail_all(&store, "q", "");
    eventually("all are there", || {
        (store.show("graveyard")?["ready"].as_u64() == Some(20)).then_some(())
    });
    assert!(store.show("q.dead").is_none());
    store.run("mq-admin", &["requeue", "graveyard"], b"").ok();
    let back = store.receive("q");
    let mut back: Vec<&str> = std::str::from_utf8(&back).expect("numbers").lines().collect();
    back.sort_by_key(|x| x.parse::<u64>().ok());
    assert_eq!(back.join("\n") + "\n", String::from_utf8_lossy(&seq(1, 20)), "home again");
}

#[test]
fn some_letters_come_back_by_number_reason_or_to_another_queue() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--delivery-limit", "1", "q"], b"").ok();
    store.send("q", &seq(1, 10));
    let script = "read -r x; exit $((x % 2 + 3))";
    store.run("mq-recv", &["-e", "q", "--", "sh", "-c", script], b"").exits(123);
    await_dead(&store, "q", 10);
    store.run("mq-admin", &["requeue", "q.dead", "-n", "2"], b"").ok();
    assert_eq!(store.receive("q"), b"1\n2\n");
    store.run("mq-admin", &["requeue", "q.dead", "--reason", "status 4"], b"").ok();
    assert_eq!(store.receive("q"), b"3\n5\n7\n9\n");
    store.run("mq-admin", &["requeue", "q.dead", "--to", "other", "-n", "1"], b"").ok();
    assert_eq!(store.receive("other"), b"4\n");
    assert_eq!(store.number("q.dead", "ready"), 3, "the rest is where it was");
    store.run("mq-admin", &["requeue", "nowhere"], b"").exits(1).says("nowhere");
    store.run("mq-admin", &["requeue", "q.dead", "--to", "q.dead"], b"").exits(2);
    store.run("mq-admin", &["rm", "q"], b"").ok();
    let done = store.run("mq-admin", &["requeue", "q.dead"], b"").exits(1);
    done.says("--to");
    assert_eq!(store.number("q.dead", "ready"), 3);
}

#[test]
fn a_large_message_dies_and_comes_back_whole() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--delivery-limit", "1", "q"], b"").ok();
    let body = Random(7).bytes(3 << 20);
    store.run("mq-send", &["--whole", "-H", "a=b", "q"], &body).ok();
    // One that is large only with what goes along with it.
    let tight = Random(8).bytes((1 << 20) - 100);
    store.run("mq-send", &["--whole", "q"], &tight).ok();
    fail_all(&store, "q", "too much");
    await_dead(&store, "q", 2);
    let letters = peek(&store, "q.dead");
    assert_eq!(letters[0]["headers"]["mq-dead-stderr"], "too much\n");
    assert_eq!(letters[1]["headers"]["mq-dead-reason"], "exit status 7");
    store.run("mq-admin", &["requeue", "q.dead"], b"").ok();
    for expected in [&body, &tight] {
        let done = store.run("mq-recv", &["-n1", "--raw", "q"], b"").ok();
        assert!(done.stdout == *expected, "{} bytes came back", done.stdout.len());
    }
    assert_eq!(store.number("q.dead", "ready"), 0);
}

#[test]
fn what_expires_is_a_dead_letter_where_the_queue_says_so() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--dead-letter", "late", "kept"], b"").ok();
    for queue in ["kept", "plain"] {
        store.run("mq-send", &["--ttl", "1ms", queue], &seq(1, 3)).ok();
        store.send(queue, b"fresh\n");
        eventually("only what is fresh comes", || {
            (store.run("mq-recv", &["--peek", queue], b"").ok().stdout == b"fresh\n").then_some(())
        });
        assert_eq!(store.receive(queue), b"fresh\n");
    }
    eventually("the expired ones are there", || {
        (store.show("late")?["ready"].as_u64() == Some(3)).then_some(())
    });
    let letters = peek(&store, "late");
    assert!(letters.iter().all(|letter| letter["headers"]["mq-dead-reason"] == "expired"));
    assert!(letters.iter().all(|letter| letter["headers"]["mq-dead-expires"].is_string()));
    assert!(letters.iter().all(|letter| letter.get("expires").is_none()), "they stay");
    assert!(store.show("plain.dead").is_none());
}

#[test]
fn what_is_dropped_is_a_dead_letter_where_the_queue_says_so() {
    let store = Store::new();
    let declare =
        ["declare", "--max-messages", "10", "--overflow", "drop-oldest", "--dead-letter", "old"];
    store.run("mq-admin", &[&declare[..], &["q"]].concat(), b"").ok();
    store.send("q", &seq(1, 25));
    eventually("the oldest are there", || {
        (store.show("old")?["ready"].as_u64() == Some(15)).then_some(())
    });
    assert_eq!(store.receive("old"), seq(1, 15));
    assert_eq!(store.number("q", "dropped"), 15);
    assert_eq!(store.receive("q"), seq(16, 25));
}

#[test]
fn letters_wait_when_they_have_nowhere_to_go() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--delivery-limit", "1", "q"], b"").ok();
    store.send("q.dead", b"there before\n");
    store.run("mq-admin", &["stop"], b"").ok();
    let meta = store.path().join("queues/q.dead/queue.json");
    std::fs::write(&meta, b"not what was written").expect("a file");
    store.send("q", &seq(1, 5));
    fail_all(&store, "q", "");
    let trouble = eventually("show says what is in the way", || {
        store.show("q")?["trouble"].as_str().map(str::to_owned)
    });
    assert!(trouble.contains("q.dead"), "{trouble}");
    // The queue itself goes on.
    store.send("q", b"good\n");
    assert_eq!(store.run("mq-recv", &["-n1", "q"], b"").ok().stdout, b"good\n");
    store.run("mq-admin", &["stop"], b"").ok();
    store.send("q", b"more\n");
    store.run("mq-admin", &["rm", "q.dead"], b"").ok();
    await_dead(&store, "q", 5);
    assert_eq!(store.receive("q.dead"), seq(1, 5));
    assert!(store.show("q").expect("a queue").get("trouble").is_none());
}

#[test]
fn a_dead_letter_queue_that_is_removed_is_made_again() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--delivery-limit", "1", "q"], b"").ok();
    for round in 1..=3 {
        store.send("q", &seq(1, round));
        fail_all(&store, "q", "");
        await_dead(&store, "q", round);
        store.run("mq-admin", &["rm", "q.dead"], b"").ok();
    }
}

#[test]
fn every_letter_is_there_once_whatever_dies() {
    // Fates by the body: even numbers are done, odd ones fail, each at most three times. The
    // server is killed while they are tried, buried and brought back.
    let store = Store::new();
    let most = size("MQ_LETTERS", 600);
    store.run("mq-admin", &["declare", "--delivery-limit", "3", "q"], b"").ok();
    store.send("q", &seq(1, most));
    let done = store.beside("done");
    let script = format!(
        "read -r x; if [ $((x % 2)) = 0 ]; then echo $x >> {}; else exit 1; fi",
        done.display()
    );
    let command = ["-P4", "--backoff", "1ms", "q", "--", "sh", "-c", &script];
    let mut workers: Vec<_> = (0..2).map(|_| store.spawn("mq-recv", &command)).collect();
    let mut random = Random(most);
    let dead =
        |store: &Store| store.show("q.dead").map_or(0, |info| info["ready"].as_u64().unwrap_or(0));
    for round in 0..6 {
        let so_far = dead(&store);
        eventually("some more die", || {
            let now = dead(&store);
            (now >= (so_far + 1 + random.below(30)).min(most / 2)).then_some(())
        });
        if round == 3 {
            // What comes back dies again.
            let mut requeue = store.spawn("mq-admin", &["requeue", "q.dead", "-n", "20"]);
            store.kill_server();
            requeue.await_end();
        } else {
            store.kill_server();
        }
    }
    await_dead(&store, "q", most / 2);
    for worker in &mut workers {
        worker.signal(rustix::process::Signal::TERM);
        worker.await_end();
    }
    assert_eq!(store.number("q", "ready"), 0);
    let letters = store.receive("q.dead");
    let letters: Vec<u64> =
        String::from_utf8_lossy(&letters).lines().map(|x| x.parse().expect("a number")).collect();
    let odd: BTreeSet<u64> = (1..=most).filter(|x| x % 2 == 1).collect();
    assert_eq!(letters.len(), odd.len(), "each once");
    assert_eq!(letters.into_iter().collect::<BTreeSet<_>>(), odd);
    let done = std::fs::read_to_string(done).expect("some were done");
    let done: BTreeSet<u64> = done.lines().map(|x| x.parse().expect("a number")).collect();
    assert_eq!(done, (1..=most).filter(|x| x % 2 == 0).collect());
    store.run("mq-admin", &["check"], b"").ok();
}
