//! Positions and instances: what fits, what does not, and what is said then.

use crate::harness::{Store, eventually};
use crate::{pipe, seq};

const CAT: [&str; 6] = ["--name", "p", "a", "b", "--", "cat"];

fn once(store: &Store) -> crate::harness::Done {
    let mut args = vec!["-e"];
    args.extend(CAT);
    pipe(store, &args)
}

fn reset(store: &Store) -> crate::harness::Done {
    let mut args = vec!["-e", "--reset"];
    args.extend(CAT);
    pipe(store, &args)
}

/// G14: a second instance takes over; the first ends and says why.
#[test]
fn a_newer_instance_takes_over() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    let mut first = store.spawn("mq-pipe", &CAT);
    eventually("the first works", || (store.show("b")?["end"] == 10).then_some(()));
    let mut second = store.spawn("mq-pipe", &CAT);
    assert_eq!(first.await_end(), 1);
    assert!(
        first.last_words().contains("another instance of pipe p has taken over"),
        "{}",
        first.stderr()
    );
    store.send("a", &seq(11, 20));
    eventually("the second works", || (store.show("b")?["end"] == 20).then_some(()));
    assert!(!second.has_ended());
    assert_eq!(store.receive("b"), seq(1, 20));
}

#[test]
fn a_source_that_was_made_anew_is_refused_until_reset() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    once(&store).ok();
    store.run("mq-admin", &["rm", "a"], b"").ok();
    once(&store).exits(1).says("queue a was removed").says("--reset");
    store.send("a", &seq(1, 3));
    once(&store).exits(1).says("made anew").says("--reset");
    assert_eq!(store.receive("b"), seq(1, 10));
    reset(&store).ok();
    assert_eq!(store.receive("b"), seq(1, 3));
    once(&store).ok();
    assert_eq!(store.number("b", "end"), 13);
}

#[test]
fn a_destination_that_was_removed_is_refused_until_reset() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", &seq(1, 10));
    once(&store).ok();
    store.run("mq-admin", &["rm", "b"], b"").ok();
    once(&store).exits(1).says("does not know of it").says("--reset");
    reset(&store).ok();
    assert_eq!(store.receive("b"), seq(1, 10), "a log is read again");
}

/// A purge of the destination takes its messages, not the pipe's position.
#[test]
fn a_purged_destination_keeps_the_position() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    once(&store).ok();
    store.run("mq-admin", &["purge", "b"], b"").ok();
    store.send("a", &seq(11, 12));
    once(&store).ok();
    assert_eq!(store.receive("b"), seq(11, 12));
}

/// What retention took before the pipe came to it is told.
#[test]
fn what_the_source_gave_up_is_told() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    once(&store).ok();
    store.send("a", &seq(11, 20));
    store.run("mq-admin", &["purge", "a"], b"").ok();
    store.send("a", &seq(21, 30));
    once(&store).ok().says("are not there any more");
    assert_eq!(store.receive("b"), [seq(1, 10), seq(21, 30)].concat());
}

/// The same of a source that drops its oldest for want of room.
#[test]
fn what_retention_took_is_told() {
    let store = Store::new();
    let limits = ["declare", "--max-messages", "10", "--overflow", "drop-oldest", "a"];
    store.run("mq-admin", &limits, b"").ok();
    store.send("a", &seq(1, 10));
    once(&store).ok();
    store.send("a", &seq(11, 40));
    once(&store).ok().says("messages 10..30 of a are not there any more");
    assert_eq!(store.receive("b"), [seq(1, 10), seq(31, 40)].concat());
    store.run("mq-admin", &["declare", "--retain", "log", "--max-messages", "10", "l"], b"").ok();
    store.send("l", &seq(1, 10));
    let from_log = ["-e", "--name", "l", "l", "b", "--", "cat"];
    pipe(&store, &from_log).ok();
    store.send("l", &seq(11, 5000));
    pipe(&store, &from_log).ok();
    let got = String::from_utf8(store.receive("b")).expect("UTF-8");
    assert!(got.ends_with("\n4999\n5000\n"), "what is left of a log goes through");
}

/// A pipe that reads another queue has another position.
#[test]
fn a_name_belongs_to_one_source() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    store.send("c", &seq(1, 10));
    once(&store).ok();
    pipe(&store, &["-e", "--name", "p", "c", "b", "--", "cat"]).exits(1).says("reads from a");
    // Once, --reset was refused too, though that was what the refusal told to do.
    pipe(&store, &["-e", "--reset", "--name", "p", "c", "b", "--", "cat"]).ok();
    assert_eq!(store.receive("b"), [seq(1, 10), seq(1, 10)].concat());
    let groups = store.show("a").expect("it is there")["groups"].clone();
    assert_eq!(groups, serde_json::json!([]), "nothing waits for it in the queue of before");
}

/// `--from` is where a new pipe begins, and no more.
#[test]
fn from_is_for_a_new_pipe() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    let mut args = vec!["-e", "--from", "-3"];
    args.extend(CAT);
    pipe(&store, &args).ok();
    store.send("a", &seq(11, 15));
    pipe(&store, &args).ok();
    assert_eq!(store.receive("b"), seq(8, 15));
    // What a group that existed has settled is gone from a queue that keeps nothing.
    let mut args = vec!["-e", "--reset", "--from", "newest"];
    args.extend(CAT);
    pipe(&store, &args).ok();
    store.send("a", &seq(16, 17));
    once(&store).ok();
    assert_eq!(store.receive("b"), seq(16, 17));
}

/// Once, an instance whose filter hung kept its group until the filter ended, so that the newer one
/// that had taken over waited with it.
#[test]
fn an_instance_whose_filter_hangs_gives_way() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    let hangs = ["--name", "p", "a", "b", "--", "sh", "-c", "touch begun; exec sleep 1000"];
    let mut first = store.spawn("mq-pipe", &hangs);
    eventually("the filter runs", || store.beside("begun").exists().then_some(()));
    let mut second = store.spawn("mq-pipe", &CAT);
    assert_eq!(first.await_end(), 1);
    assert!(first.last_words().contains("has taken over"), "{}", first.stderr());
    eventually("the second works", || (store.show("b")?["end"] == 10).then_some(()));
    assert!(!second.has_ended());
}

/// Once, an instance with `-e` that took over from a running one, which held all that there was, was
/// at its end at once: it ended with 0 and had done nothing, and the older one was gone.
#[test]
fn an_instance_that_takes_over_with_an_end_does_the_work() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    let hangs = ["--name", "p", "a", "b", "--", "sh", "-c", "touch begun; exec sleep 1000"];
    let mut first = store.spawn("mq-pipe", &hangs);
    eventually("the filter runs", || store.beside("begun").exists().then_some(()));
    once(&store).ok();
    assert_eq!(first.await_end(), 1);
    assert_eq!(store.receive("b"), seq(1, 10));
}

/// Once, a pipe whose group had been set to another place went on: what lay between was passed over,
/// and called purged. One whose group had been removed made it again.
#[test]
fn a_group_that_was_sought_or_removed_is_refused_until_reset() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", &seq(1, 10));
    once(&store).ok();
    let admin = |args: &[&str]| store.run("mq-admin", args, b"");
    for (to, expected) in [("newest", seq(21, 30)), ("oldest", seq(1, 50)), ("2", seq(1, 70))] {
        store.send("a", &seq(store.number("a", "end") + 1, store.number("a", "end") + 10));
        admin(&["group", "seek", "--to", to, "a", "pipe.p"]).ok();
        once(&store).exits(1).says("set to another place").says("--reset");
        once(&store).exits(1).says("set to another place");
        store.receive("b");
        let mut args =
            vec!["-e", "--reset", "--from", if to == "newest" { "20" } else { "oldest" }];
        args.extend(CAT);
        store.send("a", &seq(store.number("a", "end") + 1, store.number("a", "end") + 10));
        pipe(&store, &args).ok();
        assert_eq!(store.receive("b"), expected, "after a seek to {to}");
        once(&store).ok().quietly();
    }
    let end = store.number("b", "end");
    admin(&["group", "rm", "a", "pipe.p"]).ok();
    for _ in 0..3 {
        once(&store).exits(1).says("was removed").says("--reset");
    }
    admin(&["group", "add", "a", "pipe.p"]).ok();
    for _ in 0..3 {
        once(&store).exits(1).says("was removed").says("--reset");
    }
    assert_eq!(store.number("b", "end"), end);
    reset(&store).ok();
}

/// While a pipe runs, its group stays where it is.
#[test]
fn the_group_of_a_pipe_that_runs_is_not_sought() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    let mut running = store.spawn("mq-pipe", &CAT);
    eventually("it works", || (store.show("b")?["end"] == 10).then_some(()));
    let seek = store.run("mq-admin", &["group", "seek", "--to", "oldest", "a", "pipe.p"], b"");
    seek.exits(75).says("has receivers");
    store.run("mq-admin", &["group", "rm", "a", "pipe.p"], b"").ok();
    assert_eq!(running.await_end(), 1);
    assert!(running.last_words().contains("was removed since"), "{}", running.stderr());
}

/// A pipe that is refused leaves nothing in the queue that it is refused for.
#[test]
fn a_pipe_that_is_refused_makes_nothing() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    once(&store).ok();
    store.run("mq-admin", &["rm", "a"], b"").ok();
    store.send("a", &seq(1, 3));
    once(&store).exits(1).says("made anew");
    let groups = store.show("a").expect("it is there")["groups"].clone();
    assert_eq!(groups, serde_json::json!([]), "the new queue has no group of the pipe");
    store.run("mq-admin", &["rm", "a"], b"").ok();
    store.run("mq-admin", &["declare", "a"], b"").ok();
    once(&store).exits(1).says("made anew");
}
