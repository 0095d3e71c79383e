//! `mq-pipe --state`: whose it is, what becomes of it when the filter fails, and what is refused.

use std::fs;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use crate::harness::{Store, eventually};
use crate::{pipe, seq};

/// Adds up.
const SUM: &str = "s=$(cat $MQ_STATE/sum 2>/dev/null || echo 0); while read n; do s=$((s+n)); done; echo $s | tee $MQ_STATE/sum";

#[track_caller]
fn sum(store: &Store, flags: &[&str], script: &str) -> crate::harness::Done {
    let state = store.beside("state");
    let state =
        ["-e", "--name", "p", "--backoff", "1ms", "--state", state.to_str().expect("UTF-8")];
    pipe(store, &[&state[..], flags, &["a", "b", "--", "sh", "-c", script]].concat())
}

#[test]
fn a_filter_finds_what_it_left() {
    let store = Store::new();
    for (first, last, out) in [(1, 4, "10\n"), (5, 5, "15\n"), (6, 10, "55\n")] {
        store.send("a", &seq(first, last));
        sum(&store, &[], SUM).ok().quietly();
        assert_eq!(String::from_utf8(store.receive("b")).as_deref(), Ok(out));
        let current = store.beside("state").join("current").join("sum");
        assert_eq!(fs::read_to_string(current).expect("it is there"), out);
    }
    let states = fs::read_dir(store.beside("state")).expect("there").count();
    assert_eq!(states, 3, "the owner, the state and the link to it");
}

/// Once, a signal was heard only when the wait for the lock was over, up to ten seconds later.
#[test]
fn a_signal_ends_the_wait_for_a_state_or_a_file_that_another_has() {
    let store = Store::new();
    store.send("a", &seq(1, 3));
    let (state, file) = (store.beside("state"), store.beside("out"));
    fs::create_dir(&state).expect("made");
    let lock = fs::File::create(store.beside("out.mq-pipe.lock")).expect("made");
    let dir = fs::File::open(&state).expect("opened");
    for held in [&lock, &dir] {
        flock(held, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
    }
    let (state, file) = (state.to_str().expect("UTF-8"), format!("file:{}", file.display()));
    let pipes = [vec!["--state", state, "a", "b", "--", "cat"], vec!["a", &file, "--", "cat"]];
    for args in pipes {
        let started = Instant::now();
        let mut pipe = store.spawn("mq-pipe", &args);
        // It has it open, and so it waits, or is about to.
        let waits_at = |path: &str| {
            let fds = fs::read_dir(format!("/proc/{}/fd", pipe.pid().as_raw_nonzero())).ok()?;
            let mut fds = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
            fds.any(|fd| fd.to_string_lossy().ends_with(path)).then_some(())
        };
        let path = if args[0] == "--state" { "/state" } else { "/out.mq-pipe.lock" };
        eventually("it comes to the lock", || waits_at(path));
        pipe.signal(Signal::TERM);
        assert_eq!(pipe.await_end(), 143);
        let patience = if args[0] == "--state" { 9 } else { 1 };
        assert!(started.elapsed() < Duration::from_secs(patience), "{args:?}");
    }
}

#[test]
fn what_a_failing_filter_changed_never_was() {
    let store = Store::new();
    crate::impatient(&store, "a", "3");
    store.send("a", &seq(1, 8));
    // The line 5 fails, after the sum has been written.
    let script = format!("i=$(cat); echo \"$i\" | {{ {SUM}; }}; ! echo \"$i\" | grep -qx 5");
    sum(&store, &[], &script).ok();
    let out = String::from_utf8(store.receive("b")).expect("UTF-8");
    assert_eq!(out.lines().last(), Some("31"), "all but the 5: {out}");
    store.await_number("a.pipe.p.dead", "ready", 1);
    assert_eq!(store.receive("a.pipe.p.dead"), b"5\n");
}

#[test]
fn a_state_that_does_not_fit_is_refused_with_a_way_out() {
    let store = Store::new();
    store.send("a", &seq(1, 3));
    sum(&store, &[], SUM).ok();
    store.send("a", &seq(4, 4));
    sum(&store, &["-P2", "--key", "1"], SUM).exits(1).says("1 part").says("--reset");
    let args = ["-e", "--name", "p", "a", "b", "--", "cat"];
    pipe(&store, &args).exits(1).says("had a state").says("--state");
    let state = store.beside("state");
    let shown = state.to_str().expect("UTF-8");
    let other = ["-e", "--name", "q", "--state", shown, "a", "b", "--", "cat"];
    pipe(&store, &other).exits(1).says("the state of the pipe p");
    fs::rename(&state, store.beside("moved")).expect("moved");
    sum(&store, &[], SUM).exits(1).says("does not hold the state that the last commit names");
    fs::remove_dir_all(&state).expect("a fresh one was made");
    fs::rename(store.beside("moved"), &state).expect("moved back");
    sum(&store, &[], SUM).ok();
    assert_eq!(store.receive("b"), b"6\n10\n");
    sum(&store, &["--reset"], SUM).ok();
    let thesis = store.beside("thesis");
    fs::create_dir(&thesis).expect("made");
    fs::write(thesis.join("chapter"), "1").expect("written");
    let words = ["-e", "--name", "r", "--state", thesis.to_str().expect("UTF-8")];
    let refused = pipe(&store, &[&words[..], &["a", "b", "--", "cat"]].concat()).exits(1);
    refused.says("no state directory of mq-pipe");
    assert!(thesis.join("chapter").exists());
}
