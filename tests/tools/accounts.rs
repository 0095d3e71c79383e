//! Every message that was stored for a group has ended in one way, or is there: after every kind
//! of event, and after any end of the server. What was stored is counted from the log, what became of
//! it from the journals.

use mq::wire::stat::{Account, GroupFigures, QueueFigures};
use rustix::process::Signal;

use crate::figures::Watcher;
use crate::harness::{Store, eventually};
use crate::seq;

/// The figures of a queue, of which every account adds up, now and after the server was killed.
#[track_caller]
fn balanced(store: &Store, queue: &str) -> QueueFigures {
    let now = checked(store, queue);
    let accounts = |queue: &QueueFigures| -> Vec<(String, Account, u64)> {
        let each = |g: &GroupFigures| (g.group.to_string(), g.account, g.unsettled().0);
        queue.groups.iter().map(each).collect()
    };
    store.kill_server();
    // Anything that starts a server, and touches nothing.
    store.run("mq-send", &["elsewhere"], b"").ok();
    let then = checked(store, queue);
    assert_eq!(accounts(&now), accounts(&then), "after a kill -9");
    let exact = |queue: &QueueFigures| {
        let mut counted = queue.counted;
        // Those are recorded now and then.
        (counted.delivered, counted.delivered_bytes, counted.redelivered) = Default::default();
        (counted.retried, counted.refused, counted.there_already) = Default::default();
        (counted.announced, counted.stored_bytes) = (counted.stored, queue.counted.stored_bytes);
        counted
    };
    assert_eq!(exact(&now), exact(&then), "after a kill -9");
    now
}

#[track_caller]
fn checked(store: &Store, queue: &str) -> QueueFigures {
    let figures = Watcher::of(store).queue(queue);
    for group in &figures.groups {
        let (account, there) = (group.account, group.unsettled().0);
        assert_eq!(account.stored.0, account.settled().0 + there, "{queue}, {}", group.group);
    }
    figures
}

fn account(figures: &QueueFigures, group: &str) -> Account {
    let found = figures.groups.iter().find(|found| found.group.as_str() == group);
    found.unwrap_or_else(|| panic!("there is no group {group}")).account
}

#[test]
fn acked_purged_and_what_is_there_add_up() {
    let store = Store::new();
    store.send("q", &seq(1, 10));
    store.run("mq-recv", &["-n", "4", "q"], b"").ok();
    let default = account(&balanced(&store, "q"), "default");
    assert_eq!((default.stored.0, default.acked.0), (10, 4));
    store.run("mq-admin", &["group", "add", "q", "late"], b"").ok();
    let late = account(&balanced(&store, "q"), "late");
    assert_eq!((late.stored.0, late.acked.0), (6, 0), "its account begins with what is there");
    store.run("mq-admin", &["purge", "q"], b"").ok();
    store.send("q", &seq(1, 3));
    let queue = balanced(&store, "q");
    assert_eq!(account(&queue, "default").purged.0, 6);
    assert_eq!(account(&queue, "late").stored.0, 9);
    assert_eq!(
        (queue.counted.stored.0, queue.counted.purged.0, queue.counted.acked.0),
        (13, 12, 4)
    );
    // An orderly stop takes nothing back, of any counter.
    store.run("mq-recv", &["-e", "q"], b"").ok();
    let before = checked(&store, "q").counted;
    assert_eq!((before.delivered.0, before.acked.0), (3, 7));
    store.run("mq-admin", &["stop"], b"").ok();
    store.run("mq-send", &["elsewhere"], b"").ok();
    assert_eq!(balanced(&store, "q").counted, before);
}

#[test]
fn failed_tries_and_dead_letters_add_up() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "q", "--delivery-limit", "2"], b"").ok();
    store.send("q", b"good\nbad\npoison\n");
    let work = "read -r m; case $m in good) exit 0;; bad) exit 65;; *) exit 3;; esac";
    let args = ["--backoff", "10ms", "q", "--", "sh", "-c", work];
    let mut receiver = store.spawn("mq-recv", &args);
    eventually("two are dead", || {
        let queue = checked(&store, "q");
        queue.groups.first().filter(|group| group.account.dead.0 == 2).map(|_| ())
    });
    receiver.signal(Signal::TERM);
    receiver.await_end();
    let queue = balanced(&store, "q");
    let default = account(&queue, "default");
    assert_eq!((default.stored.0, default.acked.0, default.dead.0), (3, 1, 2));
    // Home again, for the group that failed them only.
    store.run("mq-admin", &["group", "add", "q", "other", "--from", "newest"], b"").ok();
    store.run("mq-admin", &["requeue", "q.dead"], b"").ok();
    let queue = balanced(&store, "q");
    let (default, other) = (account(&queue, "default"), account(&queue, "other"));
    assert_eq!((default.stored.0, default.dead.0, other.stored.0), (5, 2, 0));
    let letters = account(&balanced(&store, "q.dead"), "default");
    assert_eq!((letters.stored.0, letters.acked.0), (2, 2));
}

#[test]
fn what_expires_is_dropped_or_has_waited_adds_up() {
    let store = Store::new();
    store
        .run("mq-admin", &["declare", "q", "--max-messages", "5", "--overflow", "drop-oldest"], b"")
        .ok();
    store.run("mq-admin", &["group", "add", "q", "default"], b"").ok();
    store.send("q", &seq(1, 9));
    let queue = balanced(&store, "q");
    assert_eq!(account(&queue, "default").dropped.0, 4);
    assert_eq!(queue.counted.dropped.0, 4);
    store.run("mq-send", &["--ttl", "1ms", "short", "-m", "over"], b"").ok();
    store.send("short", b"stays\n");
    store.sh("sleep 0.01; mq-recv -e short").ok();
    let short = account(&balanced(&store, "short"), "default");
    assert_eq!((short.stored.0, short.expired.0, short.acked.0), (2, 1, 1));
    store.run("mq-send", &["--delay", "1h", "later", "-m", "x"], b"").ok();
    store.run("mq-send", &["--delay", "100ms", "later", "-m", "y"], b"").ok();
    store.run("mq-recv", &["-n", "1", "later"], b"").ok();
    let queue = balanced(&store, "later");
    assert_eq!((queue.counted.stored.0, queue.delayed.0), (2, 1));
    assert_eq!(account(&queue, "default").acked.0, 1);
    store.run("mq-admin", &["purge", "later"], b"").ok();
    // What was purged is told by the queue's log, with the purge itself.
    eventually("the purge is recorded", || {
        let queue = balanced(&store, "later");
        (queue.delayed.0 == 0).then_some(())
    });
    let queue = balanced(&store, "later");
    assert_eq!((queue.counted.stored.0, queue.counted.purged.0, queue.delayed.0), (2, 1, 0));
}

#[test]
fn a_group_that_is_set_elsewhere_begins_anew_and_one_that_goes_is_remembered() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "q", "--retain", "log"], b"").ok();
    store.send("q", &seq(1, 8));
    store.run("mq-recv", &["-e", "q"], b"").ok();
    store.run("mq-admin", &["group", "seek", "q", "default", "--to", "-3"], b"").ok();
    let queue = balanced(&store, "q");
    let default = account(&queue, "default");
    assert_eq!((default.stored.0, default.acked.0, queue.counted.acked.0), (3, 0, 8));
    store.run("mq-recv", &["-n", "2", "q"], b"").ok();
    let queue = balanced(&store, "q");
    assert_eq!((account(&queue, "default").acked.0, queue.counted.acked.0), (2, 10));
    store.run("mq-admin", &["group", "rm", "q", "default"], b"").ok();
    let queue = balanced(&store, "q");
    assert_eq!((queue.groups.len(), queue.counted.acked.0), (0, 10));
    store.run("mq-recv", &["-e", "q"], b"").ok();
    let queue = balanced(&store, "q");
    assert_eq!((account(&queue, "default").stored.0, queue.counted.acked.0), (8, 18));
    store.run("mq-admin", &["rm", "q"], b"").ok();
    store.send("q", b"x\n");
    assert_eq!(balanced(&store, "q").counted.stored.0, 1, "another queue of the same name");
}

#[test]
fn what_is_announced_is_stored_or_there_or_refused() {
    let store = Store::new();
    let declare =
        ["declare", "q", "--max-messages", "3", "--overflow", "reject", "--unique-ids", "9"];
    store.run("mq-admin", &declare, b"").ok();
    for id in ["a", "b", "a"] {
        store.run("mq-send", &["--id", id, "q", "-m", "x"], b"").ok();
    }
    store.run("mq-send", &["-w", "0", "q"], b"1\n2\n3\n").exits(75);
    let counted = balanced(&store, "q").counted;
    assert_eq!((counted.stored.0, counted.there_already.0), (3, 1));
    assert_eq!((counted.refused.0, counted.announced.0), (2, 6));
}
