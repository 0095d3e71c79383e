//! Filters that fail: what is tried again, what is given up, and what is not.

use crate::harness::Store;
use crate::{impatient, pipe, seq};

const FAST: [&str; 3] = ["-e", "--backoff", "1ms"];

fn args<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    FAST.iter().copied().chain(rest.iter().copied()).collect()
}

/// G13: one message that no filter can take becomes a dead letter, once; all else goes through, in
/// order.
#[test]
fn a_poisonous_message_alone_is_given_up() {
    let store = Store::new();
    impatient(&store, "a", "3");
    store.send("a", &seq(1, 1000));
    let filter = "awk '/^577$/ { print \"cannot\" > \"/dev/stderr\"; exit 3 } { print }'";
    let done = pipe(&store, &args(&["--name", "p", "a", "b", "--", "sh", "-c", filter])).ok();
    let done = done.says("message 576 of a is a dead letter: exit status 3");
    done.says("cannot");
    let expected: Vec<u8> = [seq(1, 576), seq(578, 1000)].concat();
    assert_eq!(store.receive("b"), expected);
    // It is on its way when the pipe ends.
    store.await_number("a.pipe.p.dead", "ready", 1);
    let letters = store.run("mq-recv", &["-e", "-J", "a.pipe.p.dead"], b"").ok();
    let letter: serde_json::Value =
        serde_json::from_slice(&letters.stdout).expect("one letter, as JSON");
    assert_eq!(letter["data"], "577");
    let text = letter["headers"].to_string();
    assert!(text.contains("exit status 3") && text.contains("cannot"), "{text}");
}

/// Once, a batch with many poisonous messages was taken for a filter that always fails, before it
/// came down to single messages: 123, and the pipe could not go on.
#[test]
fn many_poisonous_messages_are_given_up_each_alone() {
    let store = Store::new();
    impatient(&store, "a", "1");
    store.send("a", &seq(1, 300));
    let filter = "awk '$1 % 9 == 0 { exit 3 } { print }'";
    let done = pipe(&store, &args(&["-q", "--name", "p", "a", "b", "--", "sh", "-c", filter]));
    done.ok();
    let well = (1..=300).filter(|n| n % 9 != 0).map(|n| format!("{n}\n"));
    assert_eq!(store.receive("b"), well.collect::<String>().into_bytes());
    store.await_number("a.pipe.p.dead", "ready", 300 / 9);
}

/// Before a message is given up, one that was well is run again, to see whether the filter works:
/// what that run does to the state is not kept.
#[test]
fn what_is_run_to_see_whether_the_filter_works_leaves_no_trace() {
    let store = Store::new();
    impatient(&store, "a", "2");
    store.send("a", &seq(1, 8));
    let filter = "awk 'BEGIN { f = ENVIRON[\"MQ_STATE\"] \"/n\"; getline n < f; close(f) }
        /^8$/ { bad = 1; exit 3 } { print; n++ } END { if (!bad) print n > f }'
        status=$?; echo run >> \"$0\"; exit $status";
    let (state, runs) = (store.beside("state"), store.beside("runs"));
    let (state, runs) = (state.to_str().expect("UTF-8"), runs.to_str().expect("UTF-8"));
    pipe(&store, &args(&["--state", state, "a", "b", "--", "sh", "-c", filter, runs])).ok();
    assert_eq!(store.receive("b"), seq(1, 7));
    let count = std::fs::read_to_string(format!("{state}/current/n")).expect("a state");
    assert_eq!(count.trim(), "7");
    // Whole, whole, 4 ✓, 5-8 ✗, 5-6 ✓, 7-8 ✗, 7 ✓, 8 ✗, 8 ✗, and the control.
    let runs = std::fs::read_to_string(runs).expect("what the filter wrote");
    assert_eq!(runs.lines().count(), 10);
}

/// A status of 65 gives a message up at once.
#[test]
fn what_can_never_succeed_is_given_up_at_once() {
    let store = Store::new();
    store.send("a", &seq(1, 20));
    let filter = "awk '/^7$/ { exit 65 } { print }'";
    pipe(&store, &["-e", "--backoff", "1h", "a", "b", "--", "sh", "-c", filter]).ok();
    assert_eq!(store.receive("b"), [seq(1, 6), seq(8, 20)].concat());
    let figures = || store.show("b").expect("it is there")["pipes"][0]["figures"].clone();
    assert_eq!((&figures()["read"], &figures()["dead"]), (&20.into(), &1.into()));
    // Once, dead letters at the end of a batch were in no commit, nor was the position behind them.
    store.send("a", b"7\n7\n");
    pipe(&store, &["-e", "--backoff", "1h", "a", "b", "--", "sh", "-c", filter]).ok();
    assert_eq!((&figures()["read"], &figures()["dead"]), (&22.into(), &3.into()));
    assert_eq!(store.show("b").expect("it is there")["pipes"][0]["next"], 22);
}

/// A database that is down makes no dead letters: 123, and nothing has moved.
#[test]
fn when_everything_fails_nothing_moves() {
    let store = Store::new();
    impatient(&store, "a", "4");
    store.send("a", &seq(1, 100));
    let failing = args(&["--name", "p", "a", "b", "--", "sh", "-c", "cat; exit 1"]);
    let done = pipe(&store, &failing).exits(123);
    done.says("again in 1 ms").says("nothing of them was given up");
    assert_eq!(store.receive("b"), b"");
    assert!(store.show("a.pipe.p.dead").is_none(), "there are no dead letters");
    pipe(&store, &args(&["--name", "p", "a", "b", "--", "cat"])).ok();
    assert_eq!(store.receive("b"), seq(1, 100));
}

/// Once, a pipe from standard input tried a filter that always fails for ever.
#[test]
fn when_everything_fails_on_standard_input_it_ends() {
    let store = Store::new();
    for flags in ["", "--window 2 --flush -e"] {
        let script = format!("seq 4 | mq-pipe -q --backoff 1ms..1ms {flags} - b -- false");
        store.sh(&script).exits(123).says("exit status 1");
    }
    assert_eq!(store.receive("b"), b"");
}

/// A grep that finds nothing is told what is missing.
#[test]
fn a_grep_without_ok_is_told_so() {
    let store = Store::new();
    impatient(&store, "a", "2");
    store.send("a", b"x\ny\n");
    pipe(&store, &args(&["a", "b", "--", "grep", "z"])).exits(123).says("--ok 0,1");
}

/// With `--on-fail stop` the pipe ends at the message, which stays.
#[test]
fn it_stops_at_a_poisonous_message_if_told_to() {
    let store = Store::new();
    impatient(&store, "a", "2");
    store.send("a", &seq(1, 8));
    let filter = "awk '/^5$/ { exit 1 } { print }'";
    let stop = args(&["--on-fail", "stop", "--name", "p", "a", "b", "--", "sh", "-c", filter]);
    pipe(&store, &stop).exits(123);
    assert_eq!(store.receive("b"), seq(1, 4));
    pipe(&store, &args(&["--name", "p", "a", "b", "--", "cat"])).ok();
    assert_eq!(store.receive("b"), seq(5, 8));
}

/// 126 and 127 stop, and burn no attempt.
#[test]
fn a_filter_that_is_not_there_stops_the_pipe() {
    let store = Store::new();
    store.send("a", b"x\n");
    pipe(&store, &["-e", "a", "b", "--", "no-such-filter"]).exits(127).says("not found");
    pipe(&store, &["-e", "a", "b", "--", "/etc/passwd"]).exits(126);
    pipe(&store, &["-e", "--name", "p", "a", "b", "--", "sh", "-c", "no-such-filter"]).exits(127);
    pipe(&store, &["-e", "--name", "p", "a", "b", "--", "cat"]).ok();
    assert_eq!(store.receive("b"), b"x\n");
}

/// What fails for a while goes through once it works.
#[test]
fn a_filter_that_comes_back_goes_on() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    let tries = store.beside("tries");
    let filter = format!(
        "echo x >> {0}; if [ $(wc -l < {0}) -lt 6 ]; then exit 1; fi; cat",
        tries.display()
    );
    pipe(&store, &args(&["a", "b", "--", "sh", "-c", &filter])).ok();
    assert_eq!(store.receive("b"), seq(1, 10));
}

/// One that takes too long is ended, with all that it started.
#[test]
fn a_filter_that_hangs_is_ended() {
    let store = Store::new();
    impatient(&store, "a", "2");
    store.send("a", &seq(1, 4));
    let filter = "x=$(cat); case $x in *3*) sleep 1000;; esac; printf '%s\\n' \"$x\"";
    let hang = args(&["--timeout", "300ms", "a", "b", "--", "sh", "-c", filter]);
    pipe(&store, &hang).ok().says("took too long");
    assert_eq!(store.receive("b"), b"1\n2\n4\n");
}

/// An output that is too large at once is made in smaller batches; of one message it is an error.
#[test]
fn an_output_that_is_too_large_is_made_in_parts() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", &seq(1, 4));
    let filter = "while read -r n; do head -c 20000000 /dev/zero | tr '\\0' x; echo; done";
    pipe(&store, &["-e", "a", "b", "--", "sh", "-c", filter]).ok();
    assert_eq!(store.number("b", "end"), 4);
    let filter = "cat >/dev/null; head -c 70000000 /dev/zero";
    pipe(&store, &["-e", "a", "c", "--", "sh", "-c", filter]).exits(65).says("64 MiB");
    assert_eq!(store.number("c", "end"), 0, "nothing of it is there");
}
