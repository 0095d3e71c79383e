//! Pipes with an end at an engine: at least once, whatever ends in between.

use std::collections::BTreeSet;

use mq::remote::failure::{Failure, Kind};
use rustix::process::Signal;

use crate::desk::Desk;
use crate::harness::{Done, eventually, seq};

const SED: [&str; 3] = ["--", "sed", "s/^/x/"];

/// Runs a pipe with a filter that marks each line.
#[track_caller]
fn pipe(desk: &Desk, args: &[&str]) -> Done {
    let done = desk.bench.run("mq-pipe", &[args, &SED].concat());
    assert!(!done.stderr.contains("secret"), "{}", done.stderr);
    done
}

fn marked(first: u64, last: u64) -> Vec<u8> {
    (first..=last).flat_map(|n| format!("x{n}\n").into_bytes()).collect()
}

/// Fills a queue of the engine.
fn fill(desk: &Desk, queue: &str, first: u64, last: u64) {
    desk.bench.feed("mq-send", &[&desk.url(queue)], &seq(first, last)).ok();
}

/// The lines that a queue of the engine has ready.
fn there(desk: &Desk, queue: &str) -> Vec<u8> {
    desk.broker.ready(queue).into_iter().flat_map(|body| [body, b"\n".to_vec()].concat()).collect()
}

fn acked(desk: &Desk, queue: &str) -> usize {
    desk.broker.with(|state| state.queues.get(queue).map_or(0, |queue| queue.acked.len()))
}

/// The lines of a queue of the store, which are taken.
fn here(desk: &Desk, queue: &str) -> Vec<u8> {
    desk.bench.run("mq-recv", &["-e", queue]).ok().stdout
}

fn set(lines: &[u8]) -> BTreeSet<String> {
    std::str::from_utf8(lines).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn lines_come_from_an_engine_and_go_to_one() {
    let desk = Desk::new("lines_come_from_an_engine");
    let (from, to) = (desk.url("q"), desk.url("r"));
    fill(&desk, "q", 1, 50_000);
    let done = pipe(&desk, &["-e", &from, "out"]).ok();
    done.says("mem://me:***@").says("at least once, not exactly once");
    assert_eq!((here(&desk, "out"), acked(&desk, "q")), (marked(1, 50_000), 50_000));
    // From the store.
    desk.bench.feed("mq-send", &["a"], &seq(1, 50_000)).ok();
    pipe(&desk, &["-e", "a", &to]).ok().says("at least once");
    assert_eq!(there(&desk, "r"), marked(1, 50_000));
    assert_eq!(desk.bench.store.number("a", "ready"), 0, "the group has settled all");
    pipe(&desk, &["-e", "-q", "a", &to]).ok().quietly();
    assert_eq!(desk.broker.ready("r").len(), 50_000, "nothing comes again");
    // From there, and to there.
    fill(&desk, "s", 1, 1000);
    pipe(&desk, &["-e", "-q", &desk.url("s"), &desk.url("t")]).ok().quietly();
    assert_eq!((there(&desk, "t"), acked(&desk, "s")), (marked(1, 1000), 1000));
}

#[test]
fn files_and_plain_pipes_are_ends_too() {
    let desk = Desk::new("files_and_plain_pipes_are_ends_too");
    let from = desk.url("q");
    for round in 0..2 {
        fill(&desk, "q", 1, 100);
        pipe(&desk, &["-e", &from, "file:out"]).ok();
        let file = std::fs::read(desk.bench.store.beside("out")).expect("a file");
        assert_eq!(file, marked(1, 100).repeat(round + 1));
    }
    fill(&desk, "q", 1, 100);
    assert_eq!(pipe(&desk, &["-e", &from, "-"]).ok().stdout, marked(1, 100));
    let to = desk.url("r");
    let args = [&["-", &to][..], &SED].concat();
    desk.bench.feed("mq-pipe", &args, &seq(1, 100)).ok().quietly();
    assert_eq!(there(&desk, "r"), marked(1, 100));
    assert!(!desk.bench.store.path().exists(), "the store has nothing to do with any of it");
}

/// What is asked of the filter and its output means the same.
#[test]
fn outputs_are_cut_and_divided_as_ever() {
    let desk = Desk::new("outputs_are_cut_and_divided");
    let (from, to) = (desk.url("q"), desk.url("r"));
    fill(&desk, "q", 1, 10);
    let whole = ["-e", "--out", "whole", &from, &to, "--", "cat"];
    desk.bench.run("mq-pipe", &whole).ok();
    assert_eq!(desk.broker.ready("r").concat(), seq(1, 10));
    // A message that does not fit one frame, and no output at all.
    let script = "read -r n; [ $n = 1 ] && head -c 3000000 /dev/zero | tr '\\0' x; :";
    fill(&desk, "q", 1, 2);
    let large = ["-e", "--batch", "1", &from, &desk.url("large"), "--", "sh", "-c", script];
    desk.bench.run("mq-pipe", &large).ok();
    let sizes: Vec<usize> = desk.broker.ready("large").iter().map(Vec::len).collect();
    assert_eq!((sizes, acked(&desk, "q")), (vec![3_000_000], 12));
    // By the key that the engine keeps.
    for n in 1..=40 {
        let (key, body) = (format!("k{}", n % 4), n.to_string());
        desk.bench.run("mq-send", &[&from, "-k", &key, "-m", &body]).ok();
    }
    let script = "sed \"s/^/$MQ_PART:/\"";
    let args = ["-e", "-P2", "--key", "key", &from, "parts", "--", "sh", "-c", script];
    desk.bench.run("mq-pipe", &args).ok();
    let out = here(&desk, "parts");
    let parts = set(&out);
    assert_eq!(parts.len(), 40);
    for n in 1..=36 {
        let part = |n: u64| parts.contains(&format!("0:{n}"));
        assert_eq!(part(n), part(n + 4), "one key has one filter");
    }
    fill(&desk, "q", 1, 100);
    desk.bench.run("mq-pipe", &["-e", "--stay", &from, "stay", "--", "sed", "-u", "s/^/x/"]).ok();
    assert_eq!(here(&desk, "stay"), marked(1, 100));
}

/// A kill after the destination has confirmed and before the source knows: it comes again, and nothing is
/// missing.
#[test]
fn what_was_not_acknowledged_comes_again_after_a_kill() {
    let desk = Desk::new("what_was_not_acknowledged_comes_again");
    let (from, to) = (desk.url("q"), desk.url("r"));
    fill(&desk, "q", 1, 1000);
    desk.broker.with(|state| state.queues.get_mut("q").expect("filled").loses_acks = true);
    let running = desk.bench.spawn("mq-pipe", &[&[&from, "out"][..], &SED].concat());
    eventually("all of it is there", || {
        (desk.bench.store.show("out")?["end"].as_u64()? == 1000).then_some(())
    });
    running.signal(Signal::KILL);
    running.finish();
    eventually("it is ready again", || (desk.broker.ready("q").len() == 1000).then_some(()));
    desk.broker.with(|state| state.queues.get_mut("q").expect("filled").loses_acks = false);
    pipe(&desk, &["-e", &from, "out"]).ok();
    assert_eq!(here(&desk, "out"), marked(1, 1000).repeat(2));
    assert_eq!(acked(&desk, "q"), 1000);
    // The other way: the engine has stored it, and its word is not heard.
    desk.bench.feed("mq-send", &["a"], &seq(1, 1000)).ok();
    desk.broker.with(|state| state.is_silent = true);
    let running = desk.bench.spawn("mq-pipe", &[&["a", &to][..], &SED].concat());
    eventually("all of it is there", || (desk.broker.ready("r").len() == 1000).then_some(()));
    running.signal(Signal::KILL);
    running.finish();
    desk.broker.with(|state| state.is_silent = false);
    pipe(&desk, &["-e", "a", &to]).ok();
    assert_eq!(there(&desk, "r"), marked(1, 1000).repeat(2));
    assert_eq!(desk.bench.store.number("a", "ready"), 0);
}

/// Kills at any moment: all of it arrives, in the end.
#[test]
fn nothing_is_missing_whenever_it_is_killed() {
    let desk = Desk::new("nothing_is_missing_whenever");
    let (from, to) = (desk.url("q"), desk.url("r"));
    fill(&desk, "q", 1, 20_000);
    let args = [&["--batch", "200", &from, &to][..], &SED].concat();
    for least in [1, 3_000, 6_000, 9_000, 12_000] {
        let running = desk.bench.spawn("mq-pipe", &args);
        eventually("it gets on", || (desk.broker.ready("r").len() >= least).then_some(()));
        running.signal(Signal::KILL);
        running.finish();
    }
    eventually("what it held is ready again", || {
        (desk.broker.ready("q").len() + acked(&desk, "q") == 20_000).then_some(())
    });
    pipe(&desk, &["-e", &from, &to]).ok();
    let out = there(&desk, "r");
    assert_eq!(set(&out), set(&marked(1, 20_000)));
    let twice = out.split(|b| *b == b'\n').count() - 1 - 20_000;
    assert!(twice < 5 * 800, "{twice} came twice: more than was under way at five kills");
}

#[test]
fn an_engine_that_dies_is_gone_on_with() {
    let desk = Desk::new("an_engine_that_dies_is_gone_on_with");
    let (from, to) = (desk.url("q"), desk.url("r"));
    for kill in [1, 2, 3] {
        desk.bench.feed("mq-send", &["a"], &seq(1, 20_000)).ok();
        desk.broker.with(|state| state.dies_after = Some(kill));
        pipe(&desk, &["-e", "--batch", "2000", "a", &to]).ok();
        assert!(desk.broker.with(|state| state.dies_after.is_none()), "it did not die");
        // A message that is sent again has the same number, by which this engine knows it.
        assert_eq!(there(&desk, "r"), marked(1, 20_000));
        desk.broker.with(|state| state.queues.remove("r"));
    }
    fill(&desk, "q", 1, 20_000);
    desk.broker.with(|state| state.dies_after_deliveries = Some(5_000));
    pipe(&desk, &["-e", "--batch", "500", &from, "out"]).ok();
    assert!(desk.broker.with(|state| state.dies_after_deliveries.is_none()), "it did not die");
    assert_eq!(set(&here(&desk, "out")), set(&marked(1, 20_000)));
    assert_eq!(acked(&desk, "q"), 20_000, "each is acknowledged once");
}

#[test]
fn an_engine_that_is_away_is_waited_for_as_long_as_was_said() {
    let desk = Desk::new("an_engine_that_is_away_is_waited_for");
    let (from, to) = (desk.url("q"), desk.url("r"));
    fill(&desk, "q", 1, 10);
    desk.bench.feed("mq-send", &["a"], &seq(1, 10)).ok();
    desk.broker.with(|state| state.is_down = true);
    for ends in [&[&from, "out"][..], &["a", &to], &[&from, &to]] {
        let done = pipe(&desk, &[&["-e", "-w", "300ms"][..], ends].concat()).exits(69);
        done.says("nobody answers at Memory").says("at least once");
        let mut running = desk.bench.spawn("mq-pipe", &[&["-e"][..], ends, &SED].concat());
        let before = desk.broker.with(|state| state.connections);
        eventually("it tries", || {
            desk.broker.with(|state| (state.connections > before + 1).then_some(()))
        });
        // An interrupt ends it soon, whatever it waits for.
        running.signal(Signal::INT);
        assert_eq!(running.await_end(), 130, "{}", running.stderr());
    }
    let mut running = desk.bench.spawn("mq-pipe", &[&["-e", &from, &to][..], &SED].concat());
    let before = desk.broker.with(|state| state.connections);
    eventually("it tries", || {
        desk.broker.with(|state| (state.connections > before + 1).then_some(()))
    });
    assert!(!running.has_ended());
    desk.broker.with(|state| state.is_down = false);
    assert_eq!(running.await_end(), 0, "{}", running.stderr());
    assert_eq!((there(&desk, "r"), acked(&desk, "q")), (marked(1, 10), 10));
}

#[test]
fn what_an_engine_does_not_take_stays_at_the_source() {
    let desk = Desk::new("what_an_engine_does_not_take");
    let (from, to) = (desk.url("q"), desk.url("r"));
    fill(&desk, "q", 1, 10);
    desk.bench.feed("mq-send", &["a"], &seq(1, 10)).ok();
    for (kind, status) in
        [(Kind::Busy, 75), (Kind::Denied, 1), (Kind::BadInput, 65), (Kind::Unreachable, 69)]
    {
        let failure = Failure::new(kind, "no such luck").with_remedy("some other day");
        desk.broker.with(|state| state.fails = Some(failure.clone()));
        for source in ["a", &from] {
            let done = pipe(&desk, &["-e", "-w", "300ms", source, &to]).exits(status);
            done.says("no such luck").says("try: some other day");
        }
        desk.broker.with(|state| state.fails = None);
        // Refused at the door.
        desk.broker.with(|state| state.refuses = Some(failure));
        for source in ["a", &from] {
            pipe(&desk, &["-e", "-w", "300ms", source, &to]).exits(status).says("no such luck");
        }
        desk.broker.with(|state| state.refuses = None);
    }
    eventually("nothing was taken", || (desk.broker.ready("q").len() == 10).then_some(()));
    assert_eq!((acked(&desk, "q"), there(&desk, "r")), (0, Vec::new()));
    pipe(&desk, &["-e", "a", &to]).ok();
    pipe(&desk, &["-e", &from, &to]).ok();
    assert_eq!(there(&desk, "r"), marked(1, 10).repeat(2));
}

#[test]
fn a_message_that_fails_for_good_is_a_dead_letter_at_its_engine() {
    let desk = Desk::new("a_message_that_fails_for_good");
    let from = desk.url("q?delivery-limit=3");
    fill(&desk, "q", 1, 200);
    let filter = "awk '/^77$/ { print \"cannot\" > \"/dev/stderr\"; exit 3 } { print \"x\" $0 }'";
    let args = ["-e", "--backoff", "1ms..2ms", &from, "out", "--", "sh", "-c", filter];
    let done = desk.bench.run("mq-pipe", &args).ok();
    done.says("message 76 of mem://me:***@").says("is a dead letter: exit status 3");
    assert_eq!(here(&desk, "out"), [marked(1, 76), marked(78, 200)].concat());
    assert_eq!(acked(&desk, "q"), 200, "the dead one is elsewhere");
    let dead = desk.broker.with(|state| state.queues["q.dead"].ready.clone());
    assert_eq!(dead.len(), 1);
    let facts = dead[0].facts.as_ref().expect("headers");
    let header = |name: &str| {
        let found = facts.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!(dead[0].body, b"77");
    assert_eq!(header("mq-dead-reason"), Some("exit status 3"));
    assert!(header("mq-dead-stderr").is_some_and(|said| said.contains("cannot")));
    // In the store, at the place of the source too.
    desk.bench.run("mq-admin", &["declare", "--delivery-limit", "3", "a"]).ok();
    desk.bench.feed("mq-send", &["a"], &seq(1, 100)).ok();
    let to = desk.url("r");
    let args = ["-e", "-q", "--name", "p", "--backoff", "1ms", "a", &to, "--", "sh", "-c", filter];
    desk.bench.run("mq-pipe", &args).ok();
    assert_eq!(there(&desk, "r"), [marked(1, 76), marked(78, 100)].concat());
    desk.bench.store.await_number("a.pipe.p.dead", "ready", 1);
}

/// A session that ends because of a failing filter acks what it has committed first: no mark says that it was.
#[test]
fn what_was_committed_before_a_failure_does_not_come_again() {
    let desk = Desk::new("what_was_committed_before_a_failure");
    let (from, to) = (desk.url("q?delivery-limit=2"), desk.url("r"));
    for round in 0..8 {
        fill(&desk, "q", 1, 8);
        let filter = "read -r n; [ $n = 5 ] && exit 3; echo x$n";
        let ends: [&str; 2] = if round % 2 == 0 { [&from, "out"] } else { [&from, &to] };
        let args = ["-e", "--batch", "1", "--on-fail", "stop", "--backoff", "1ms"];
        let args = [&args[..], &ends, &["--", "sh", "-c", filter]].concat();
        desk.bench.run("mq-pipe", &args).exits(123);
        let left = eventually("the rest is ready again", || {
            let ready = there(&desk, "q");
            (ready == seq(5, 8)).then_some(ready)
        });
        assert_eq!(left, seq(5, 8));
        // 126 and 127 stop, and take nothing.
        let args = [&["-e"][..], &ends, &["--", "sh", "-c", "no-such-filter"]].concat();
        desk.bench.run("mq-pipe", &args).exits(127);
        pipe(&desk, &[&["-e"][..], &ends].concat()).ok();
    }
    assert_eq!(here(&desk, "out"), marked(1, 8).repeat(4));
    assert_eq!(there(&desk, "r"), marked(1, 8).repeat(4));
}

#[test]
fn no_more_is_taken_than_batches_need() {
    let desk = Desk::new("no_more_is_taken_than_batches_need");
    fill(&desk, "q", 1, 300);
    pipe(&desk, &["-e", "--batch", "5", &desk.url("q"), "out"]).ok();
    let most = desk.broker.with(|state| state.queues["q"].unsettled_max);
    assert!((10..=20).contains(&most), "{most} messages were unsettled at once");
    // One that takes its time does not keep what others could have.
    fill(&desk, "r", 1, 300);
    let url = desk.url("r");
    let slow = ["--batch", "5", &url, "out", "--", "sh", "-c", "echo begun >&2; sleep 1000"];
    let mut first = desk.bench.spawn("mq-pipe", &slow);
    first.await_stderr("begun");
    let rest = desk.bench.run("mq-recv", &["-e", &url]).ok().stdout;
    assert!(set(&rest).len() >= 280, "{} lines", set(&rest).len());
    first.signal(Signal::INT);
    assert_eq!(first.await_end(), 130);
    eventually("what it held is ready again", || {
        (set(&there(&desk, "r")).len() + acked(&desk, "r") == 300).then_some(())
    });
}

/// Once, all that had been read ahead went through the filter and to the engine after the server was
/// gone, and came again with the next one.
#[test]
fn what_was_read_ahead_of_a_server_that_is_lost_is_not_there_twice() {
    let desk = Desk::new("what_was_read_ahead_is_not_there_twice");
    desk.bench.feed("mq-send", &["a"], &seq(1, 2000)).ok();
    desk.bench.sh("mkfifo gate").ok();
    let script = "test -e open || { echo begun >&2; read _ < gate; }; cat";
    let args = ["--batch", "10", "a", &desk.url("r"), "--", "sh", "-c", script];
    let mut running = desk.bench.spawn("mq-pipe", &args);
    running.await_stderr("begun");
    desk.bench.store.kill_server();
    desk.bench.sh("touch open; echo > gate").ok();
    desk.bench.store.await_number("a", "ready", 0);
    desk.bench.store.await_number("a", "unacked", 0);
    running.signal(Signal::TERM);
    assert_eq!(running.await_end(), 143, "{}", running.stderr());
    let lines = there(&desk, "r");
    assert_eq!(set(&lines), set(&seq(1, 2000)));
    let twice = desk.broker.ready("r").len() - 2000;
    assert!(twice <= 50, "{twice} messages of batches of 10 are there twice");
}

#[test]
fn what_needs_a_position_is_refused_with_the_way_round() {
    let desk = Desk::new("what_needs_a_position_is_refused");
    let (from, to) = (desk.url("q"), desk.url("r"));
    desk.bench.run("mq-admin", &["declare", "jobs", "--at", &from]).ok();
    for flag in [&["--window", "1m"][..], &["--state", "dir"], &["--reset"]] {
        for ends in [&[&from, "b"][..], &["a", &to], &[&from, &to], &["jobs", "b"], &["a", "jobs"]]
        {
            let done = pipe(&desk, &[flag, ends].concat()).exits(2);
            done.says(&format!("{} with mem://me:***@", flag[0])).says("try: ");
        }
    }
    let between = "try: a queue of the store between: ";
    let done = pipe(&desk, &["--window", "1m", &from, "b"]).exits(2);
    done.says(between).says("mq-recv -J --batch 1000 mem://me:***@").says("-- mq-send -J in");
    let done = pipe(&desk, &["--state", "dir", "a", &to]).exits(2);
    done.says(between).says("mq-recv -J --batch 1000 out -- mq-send -J mem://me:***@");
    pipe(&desk, &["--from", "oldest", &from, "b"]).exits(2).says("--from with Memory");
    assert!(!desk.bench.store.beside("dir").exists());
    desk.bench.feed("mq-send", &["a"], b"1\n").ok();
    let done = pipe(&desk, &["--window", "1m", "--late", "jobs", "a", "b"]).exits(2);
    done.says("--late with mem://me:***@").says("-- mq-send -J jobs");
    assert!(desk.bench.store.show("b").is_none_or(|info| info["end"] == 0), "nothing is done");
    // Once, a helper that had only to refuse did not answer who waited for its first word.
    for ends in [[&desk.url("q?delivery-limit=x")[..], "b"], ["-", &desk.url("q?delivery-limit=x")]]
    {
        pipe(&desk, &ends).exits(2).says("delivery-limit=x is no number of attempts");
    }
    // Round and round.
    for ends in [[&from[..], &from[..]], [&from, "jobs"], ["jobs", &from], ["jobs", "jobs"]] {
        pipe(&desk, &ends).exits(2).says("round for ever");
    }
    let other = format!("{from}?delivery-limit=3");
    pipe(&desk, &[&from, &other]).exits(2).says("round for ever");
}

/// A pipe of queues of the store runs unchanged when one of them is declared to live elsewhere.
#[test]
fn a_pipe_runs_unchanged_when_a_queue_of_it_moves() {
    let desk = Desk::new("a_pipe_runs_unchanged");
    let script =
        "seq 1 10 | mq-send raw && mq-pipe -e raw clean -- sed s/^/x/ && mq-recv -n10 clean";
    let before = desk.bench.sh(script).ok();
    desk.bench.run("mq-admin", &["declare", "clean", "--change", "--at", &desk.url("clean")]).ok();
    let one = desk.bench.sh(script).ok();
    desk.bench.run("mq-admin", &["group", "rm", "raw", "default"]);
    let declare = ["declare", "raw", "--change", "--at", &desk.url("raw")];
    desk.bench.run("mq-admin", &declare).ok();
    let both = desk.bench.sh(script).ok();
    assert_eq!((before.text(), one.text()), (both.text(), both.text()));
    assert_eq!(acked(&desk, "raw"), 10);
    assert_eq!(desk.bench.store.number("raw", "end"), 20, "the last ten went there");
    // One that is running goes along.
    let mut running = desk.bench.spawn("mq-pipe", &[&["a", "b"][..], &SED].concat());
    desk.bench.feed("mq-send", &["a"], b"1\n").ok();
    desk.bench.store.await_number("a", "ready", 0);
    desk.bench.store.await_number("a", "unacked", 0);
    desk.bench.run("mq-admin", &["declare", "a", "--change", "--at", &desk.url("a")]).ok();
    desk.bench.feed("mq-send", &["a"], b"2\n").ok();
    desk.bench.store.await_number("b", "end", 2);
    running.signal(Signal::TERM);
    assert_eq!(running.await_end(), 143, "{}", running.stderr());
    assert_eq!(here(&desk, "b"), marked(1, 2));
}

/// What a journal or a queue keeps of a pipe from an engine is no position: it would have been taken for one
/// in the queue of the store that had the name before, or has it afterwards.
#[test]
fn what_is_kept_of_a_pipe_from_an_engine_is_no_position() {
    let desk = Desk::new("what_is_kept_is_no_position");
    let file = ["-e", "jobs", "file:out"];
    desk.bench.feed("mq-send", &["jobs"], &seq(1, 50)).ok();
    pipe(&desk, &file).ok();
    desk.bench.run("mq-admin", &["rm", "jobs"]).ok();
    desk.bench.run("mq-admin", &["declare", "jobs", "--at", &desk.url("q")]).ok();
    fill(&desk, "q", 51, 100);
    pipe(&desk, &file).ok();
    desk.bench.run("mq-admin", &["rm", "jobs"]).ok();
    desk.bench.feed("mq-send", &["jobs"], &seq(101, 103)).ok();
    pipe(&desk, &file).ok();
    let out = std::fs::read(desk.bench.store.beside("out")).expect("a file");
    assert_eq!(out, marked(1, 103));
    // Into a queue: one pipe is known there, however often it ran.
    let from = desk.url("q");
    for n in 1..=3 {
        fill(&desk, "q", n, n);
        pipe(&desk, &["-e", &from, "b"]).ok();
        let pipes = desk.bench.store.show("b").expect("it is there")["pipes"].clone();
        assert_eq!(pipes.as_array().map(Vec::len), Some(1), "{pipes}");
        assert_eq!((&pipes[0]["figures"]["read"], &pipes[0]["next"]), (&n.into(), &0.into()));
    }
    assert_eq!(here(&desk, "b"), marked(1, 3));
    // The same name for another source does not fit worse.
    for (n, queue) in [(4, "q"), (5, "r"), (6, "q")] {
        fill(&desk, queue, n, n);
        pipe(&desk, &["-e", "--name", "p", &desk.url(queue), "b"]).ok();
    }
    assert_eq!(here(&desk, "b"), marked(4, 6));
    // One at a time.
    let args = [&[&from, "b"][..], &SED].concat();
    let first = desk.bench.spawn("mq-pipe", &args);
    fill(&desk, "q", 7, 7);
    desk.bench.store.await_number("b", "end", 7);
    let mut second = desk.bench.spawn("mq-pipe", &args);
    first.finish().exits(1).says("has taken over");
    fill(&desk, "q", 8, 8);
    desk.bench.store.await_number("b", "end", 8);
    second.signal(Signal::INT);
    assert_eq!(second.await_end(), 130);
    assert_eq!(here(&desk, "b"), marked(7, 8));
}

/// A server of the store that dies does not end a pipe to an engine, or from one.
#[test]
fn the_server_of_the_store_may_die() {
    let desk = Desk::new("the_server_of_the_store_may_die");
    let (from, to) = (desk.url("q"), desk.url("r"));
    let spawn =
        |ends: &[&str]| desk.bench.spawn("mq-pipe", &[&["--batch", "10"][..], ends, &SED].concat());
    let (mut first, mut second) = (spawn(&[&from, "b"]), spawn(&["b", &to]));
    for round in 1..=4 {
        fill(&desk, "q", (round - 1) * 500 + 1, round * 500);
        eventually("some have come", || {
            (set(&there(&desk, "r")).len() as u64 >= (round - 1) * 500 + 100).then_some(())
        });
        desk.bench.store.kill_server();
        assert!(!first.has_ended(), "{}", first.stderr());
        assert!(!second.has_ended(), "{}", second.stderr());
    }
    let all: BTreeSet<String> = (1..=2000).map(|n| format!("xx{n}")).collect();
    eventually("all have come", || (set(&there(&desk, "r")) == all).then_some(()));
    for running in [&mut first, &mut second] {
        running.signal(Signal::TERM);
        assert_eq!(running.await_end(), 143, "{}", running.stderr());
    }
}

/// Two instances of a pipe from the store take turns; the second waits.
#[test]
fn a_second_instance_waits_for_the_first() {
    let desk = Desk::new("a_second_instance_waits");
    let to = desk.url("r");
    let args = [&["a", &to][..], &SED].concat();
    desk.bench.feed("mq-send", &["a"], b"1\n").ok();
    let first = desk.bench.spawn("mq-pipe", &args);
    eventually("it works", || (desk.broker.ready("r").len() == 1).then_some(()));
    let mut second = desk.bench.spawn("mq-pipe", &args);
    second.await_stderr("still runs; waiting for its end");
    desk.bench.feed("mq-send", &["a"], b"2\n").ok();
    eventually("the first goes on", || (desk.broker.ready("r").len() == 2).then_some(()));
    desk.bench.store.await_number("a", "ready", 0);
    desk.bench.store.await_number("a", "unacked", 0);
    first.signal(Signal::KILL);
    first.finish();
    desk.bench.feed("mq-send", &["a"], b"3\n").ok();
    eventually("the second takes over", || (desk.broker.ready("r").len() == 3).then_some(()));
    second.signal(Signal::INT);
    assert_eq!(second.await_end(), 130);
    assert_eq!(there(&desk, "r"), marked(1, 3));
}

/// An interrupt lets what is under way come to its end, and gives back the rest.
#[test]
fn an_interrupt_loses_nothing_and_repeats_nothing() {
    let desk = Desk::new("an_interrupt_loses_nothing");
    fill(&desk, "q", 1, 1000);
    let args = ["--batch", "10", &desk.url("q"), &desk.url("r"), "--", "sed", "s/^/x/"];
    for least in [10, 200, 500] {
        let mut running = desk.bench.spawn("mq-pipe", &args);
        eventually("it gets on", || (desk.broker.ready("r").len() >= least).then_some(()));
        running.signal(Signal::INT);
        assert_eq!(running.await_end(), 130, "{}", running.stderr());
    }
    eventually("the rest is ready again", || {
        (desk.broker.ready("q").len() + acked(&desk, "q") == 1000).then_some(())
    });
    assert_eq!(desk.broker.ready("r").len(), acked(&desk, "q"), "what is there is acknowledged");
    pipe(&desk, &["-e", &desk.url("q"), &desk.url("r")]).ok();
    assert_eq!(set(&there(&desk, "r")), set(&marked(1, 1000)));
    assert_eq!(desk.broker.ready("r").len(), 1000, "none is there twice");
}
