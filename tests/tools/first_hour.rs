//! What a newcomer types in the first hour: each line must do what its writer meant.

use std::io::Write;

use rustix::process::{Signal, kill_process_group};

use crate::harness::{Running, Store, eventually, process};
use crate::{numbers, seq};

#[test]
fn five_lines_in_five_lines_out() {
    let store = Store::new();
    let done = store.sh("seq 1 5 | mq-send jobs && mq-recv -e jobs").ok().quietly();
    assert_eq!(done.text(), "1\n2\n3\n4\n5\n");
}

/// `tail -f log | mq-send q`
#[test]
fn lines_of_a_growing_log_arrive_as_they_are_written() {
    let store = Store::new();
    let path = store.beside("log");
    let mut log = std::fs::File::create(&path).expect("room for a file");
    log.write_all(b"first\n").expect("room for a line");
    let _pipe = Running::start(store.shell("tail -n +1 -f log | mq-send q"));
    let mut receiver = store.spawn("mq-recv", &["q"]);
    assert_eq!(receiver.line().as_deref(), Some("first"));
    for number in 0..3 {
        writeln!(log, "line {number}").expect("room for a line");
        assert_eq!(receiver.line(), Some(format!("line {number}")));
    }
}

/// `mq-recv q | while read -r x; do work "$x"; done`, twice
#[test]
fn two_workers_share_evenly() {
    let store = Store::new();
    store.send("q", &seq(1, 1000));
    let work = "mq-recv q | while read -r x; do echo \"$x\"; sleep 0.01; done > ";
    let workers = ["one", "two"].map(|out| Running::start(store.shell(&format!("{work}{out}"))));
    store.run("mq-admin", &["wait", "q"], b"").ok();
    let read = |name| std::fs::read_to_string(store.beside(name)).expect("a worker's output");
    let (one, two) = eventually("the last line read is worked on", || {
        let (one, two) = (read("one"), read("two"));
        (one.lines().count() + two.lines().count() == 1000).then_some((one, two))
    });
    drop(workers);
    let mut all: Vec<u64> = numbers(&one).into_iter().chain(numbers(&two)).collect();
    all.sort_unstable();
    assert_eq!(all, (1..=1000).collect::<Vec<_>>(), "each line was worked on once");
    let share = one.lines().count();
    assert!((400..=600).contains(&share), "one worker had {share} of 1000");
}

/// `mq-recv -n1 q`
#[test]
fn one_message_is_taken_and_no_more() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    let done = store.run("mq-recv", &["-n1", "q"], b"").ok().quietly();
    assert_eq!(done.text(), "1\n");
    assert_eq!(store.number("q", "ready"), 2);
    assert_eq!(store.number("q", "unacked"), 0);
}

/// `while x=$(mq-recv -e -n1 q); do work "$x"; done`
#[test]
fn a_loop_takes_one_at_a_time_and_ends() {
    let store = Store::new();
    store.send("q", &seq(1, 20));
    let done = store.sh("while x=$(mq-recv -e -n1 q); do echo \"<$x>\"; done; echo $?").ok();
    let expected: String = (1..=20).map(|n| format!("<{n}>\n")).collect();
    assert_eq!(done.text(), expected + "0\n");
    assert_eq!(store.number("q", "ready"), 0);
}

/// `*/5 * * * * mq-recv -e -P4 jobs -- ./work`, in what cron gives to a job: a home, hardly a path,
/// no terminal.
#[test]
fn a_job_of_cron_works_off_what_is_ready_and_comes_back_to_what_failed() {
    let store = Store::new().named("home/.local/state/mq");
    let home = store.beside("home");
    std::fs::create_dir(&home).expect("room for a directory");
    let work =
        "#!/bin/sh\nread -r x; test \"$x $MQ_ATTEMPT\" != '7 1' || exit 1; echo $x >> done\n";
    std::fs::write(home.join("work"), work).expect("room for a script");
    store.sh("chmod +x home/work").ok();
    let tools = crate::harness::tool("mq-send").parent().expect("a directory");
    let cron = |line: &str| {
        store.sh(&format!(
            "cd home; env -i HOME=\"$PWD\" SHELL=/bin/sh LOGNAME=me PATH={}:/usr/bin:/bin \
             /bin/sh -c '{line}' < /dev/null",
            tools.display()
        ))
    };
    cron("seq 1 20 | mq-send jobs").ok().quietly();
    cron("mq-recv -e -P4 jobs -- ./work").exits(123);
    let done = || {
        let done = std::fs::read_to_string(home.join("done")).expect("notes");
        let mut numbers = numbers(&done);
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(done().len(), 19, "one has failed");
    eventually("what failed is done by a later run", || {
        cron("mq-recv -e -P4 jobs -- ./work").ok().quietly();
        (done() == (1..=20).collect::<Vec<_>>()).then_some(())
    });
    assert!(store.server().is_some(), "all of them reached the one store of that home");
}

/// `mq-recv -J q | jq -r .data`
#[test]
fn envelopes_are_lines_for_other_tools() {
    let store = Store::new();
    if store.sh("command -v jq").code != 0 {
        return crate::harness::skip("envelopes_are_lines_for_other_tools", "needs jq");
    }
    store.send("q", "plain\n\"quoted\" \\ and ümläuts\n\n".as_bytes());
    let done = store.sh("mq-recv -e -J q | jq -r .data").ok().quietly();
    assert_eq!(done.text(), "plain\n\"quoted\" \\ and ümläuts\n\n");
    store.send("q", b"again\n");
    let done = store.sh("mq-recv -n1 -J q | jq -r '.queue + \" \" + (.offset | tostring)'").ok();
    assert_eq!(done.text(), "q 3\n");
}

/// `mq-recv -e q > file`
#[test]
fn a_queue_becomes_a_file() {
    let store = Store::new();
    let input = seq(1, 100_000);
    store.send("q", &input);
    store.sh("mq-recv -e q > file").ok().quietly();
    assert_eq!(std::fs::read(store.beside("file")).expect("the file"), input);
    assert_eq!(store.number("q", "ready"), 0);
}

/// `yes | mq-send q`, then Ctrl-C
#[test]
fn an_interrupt_of_a_flood_tells_what_is_stored() {
    let store = Store::new();
    let flood = Running::start(store.shell("yes | mq-send q"));
    eventually("some of the flood is stored", || {
        store.show("q").filter(|info| info["ready"].as_u64() > Some(10_000))
    });
    kill_process_group(flood.pid(), Signal::INT).expect("own group");
    let done = flood.finish().exits(130);
    let stored = store.number("q", "ready");
    assert!(
        numbers(&done.stderr).contains(&stored),
        "{stored} messages are stored, but mq-send says: {}",
        done.stderr
    );
    let done = store.sh("mq-recv -e q | uniq -c").ok();
    assert_eq!(done.text().split_whitespace().collect::<Vec<_>>(), [&*stored.to_string(), "y"]);
}

/// `mq-send q < big.bin`
#[test]
fn binary_input_as_lines_is_hinted_at_once() {
    let store = Store::new();
    std::fs::write(store.beside("big.bin"), b"a\0b\nc\0d\n\0\0\n").expect("room for a file");
    let done = store.sh("mq-send q < big.bin").ok().says("--whole");
    assert_eq!(done.stderr.matches("--whole").count(), 1, "{}", done.stderr);
    assert_eq!(store.receive("q"), b"a\0b\nc\0d\n\0\0\n", "it is stored all the same");
}

/// `x=$(mq-send q -m a)` on a cold store
#[test]
fn a_substitution_that_starts_the_server_returns() {
    let store = Store::new();
    let done = store.sh("x=$(mq-send q -m a); echo \"<$x>\"").ok().quietly();
    assert_eq!(done.text(), "<>\n");
    assert!(store.server().is_some(), "the server stays");
    assert_eq!(store.receive("q"), b"a\n");
}

/// `flock` holds its lock as long as anyone holds the descriptor.
#[test]
fn a_lock_around_a_send_is_free_afterwards() {
    let store = Store::new();
    store.sh("flock lock.file mq-send q -m a && flock -n lock.file true").ok().quietly();
}

/// `mq-recv q | head -3` on a quiet queue
#[test]
fn a_receiver_ends_with_its_reader_also_while_nothing_comes() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    let done = store.sh("mq-recv q | head -3; echo ${PIPESTATUS[@]}").ok();
    assert_eq!(done.text(), "1\n2\n3\n141 0\n");
    assert_eq!(store.number("q", "ready"), 0);
}

/// `seq 100 | mq-send q & mq-admin wait q`
#[test]
fn waiting_beside_a_send_does_not_claim_more_than_it_knows() {
    let store = Store::new();
    let _worker = Running::start(store.shell("mq-recv q > taken"));
    let done = store.sh("seq 100 | mq-send q & mq-admin wait q; status=$?; wait; exit $status");
    assert!(done.code == 0 || !done.stderr.is_empty(), "{done:?}");
    store.run("mq-admin", &["wait", "q"], b"").ok();
    assert_eq!(std::fs::read(store.beside("taken")).expect("a file"), seq(1, 100));
}

/// The first mistake of many.
#[test]
fn text_instead_of_a_file_is_explained() {
    let store = Store::new();
    let done = process::run(store.command("mq-send", &["q", "hello"]), b"");
    assert_ne!(done.code, 0);
    done.says("mq-send q -m hello");
}
