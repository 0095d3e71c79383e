//! G4, G5 and G7: order, redelivery, and what an acknowledgement means for each kind of output.

use std::io::Read;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Running, Store, eventually, process, skip};
use crate::{numbers, seq};

/// G4
#[test]
fn a_sole_receiver_sees_each_senders_order() {
    let store = Store::new();
    let script = "for s in a b c; do seq -f $s:%.0f 1 20000 | mq-send q & done; wait";
    let mut receiver = store.spawn("mq-recv", &["-n", "60000", "q"]);
    let mut stdout = receiver.take_stdout();
    let reader = std::thread::spawn(move || {
        let mut out = String::new();
        stdout.read_to_string(&mut out).expect("UTF-8");
        out
    });
    store.sh(script).ok();
    let out = reader.join().expect("a reader");
    receiver.finish().ok();
    for sender in ["a:", "b:", "c:"] {
        let own: String =
            out.lines().filter_map(|l| l.strip_prefix(sender)).map(|l| format!("{l}\n")).collect();
        assert!(own.as_bytes() == seq(1, 20_000), "the lines of {sender} are out of order");
    }
}

/// G5
#[test]
fn what_a_killed_receiver_held_is_ready_again_in_its_place() {
    let store = Store::new();
    store.send("q", &seq(1, 10));
    let mut receiver = store.spawn("mq-recv", &["q"]);
    assert_eq!(receiver.lines(4), ["1", "2", "3", "4"]);
    await_unsettled(&store, 6);
    receiver.signal(Signal::KILL);
    receiver.await_end();
    drop(receiver);
    store.await_number("q", "unacked", 0);
    assert_eq!(store.receive("q"), seq(5, 10));
}

/// Waits until so many messages are neither acknowledged nor, for that matter, lost.
#[track_caller]
fn await_unsettled(store: &Store, count: u64) {
    eventually(&format!("{count} messages are left"), || {
        let left = store.number("q", "ready") + store.number("q", "unacked");
        (left == count).then_some(())
    });
}

/// G7: `mq-recv q | (read a; read b; read c)`
#[test]
fn exactly_the_lines_that_a_shell_read_are_gone() {
    let store = Store::new();
    store.send("q", &seq(1, 10));
    let done = store.sh("mq-recv q | (read a; read b; read c; echo $a $b $c)").exits(141);
    assert_eq!(done.text(), "1 2 3\n");
    assert_eq!(store.receive("q"), seq(4, 10));
}

/// G7: `mq-recv -n3 q`
#[test]
fn exactly_n_are_gone_whatever_the_reader() {
    let store = Store::new();
    store.send("q", &seq(1, 10));
    let done = store.sh("mq-recv -n3 q | cat").ok();
    assert_eq!(done.stdout, seq(1, 3));
    assert_eq!(store.number("q", "ready"), 7);
    assert_eq!(store.receive("q"), seq(4, 10));
}

/// G7: `mq-recv q | head -3`, held against what the kernel says that head has read.
#[test]
fn exactly_the_whole_messages_in_the_bytes_that_head_read_are_gone() {
    let store = Store::new();
    let trace = store.beside("trace");
    if !store.sh("command -v strace && strace -o /dev/null true").stderr.is_empty() {
        return skip("exactly_the_whole_messages...", "strace is missing or may not trace");
    }
    store.send("q", &seq(1, 100_000));
    let done = store.sh("mq-recv q | strace -e trace=read -o trace head -3");
    assert_eq!(done.stdout, seq(1, 3));
    let trace = std::fs::read_to_string(trace).expect("strace wrote it");
    let read: usize = trace
        .lines()
        .filter(|line| line.starts_with("read(0,"))
        .filter_map(|line| line.rsplit_once("= ")?.1.trim().parse::<usize>().ok())
        .sum();
    assert!(read > 0, "head read something:\n{trace}");
    let taken = seq(1, 100_000)[..read].iter().filter(|b| **b == b'\n').count() as u64;
    assert_eq!(store.number("q", "ready"), 100_000 - taken, "head read {read} bytes");
    assert_eq!(store.receive("q"), seq(taken + 1, 100_000));
}

/// G7: a cut in the middle of a message.
#[test]
fn a_message_that_was_read_in_part_comes_again() {
    let store = Store::new();
    store.send("q", b"aaaaaaaaa\nbbbbbbbbb\nccccccccc\nddddddddd\n");
    let mut receiver = store.spawn("mq-recv", &["q"]);
    let mut bytes = [0u8; 25];
    let mut stdout = receiver.take_stdout();
    stdout.read_exact(&mut bytes).expect("the messages come");
    assert_eq!(&bytes, b"aaaaaaaaa\nbbbbbbbbb\nccccc");
    drop(stdout);
    assert_eq!(receiver.await_end(), 141);
    assert_eq!(store.receive("q"), b"ccccccccc\nddddddddd\n");
}

/// G7: what was written into the pipe and not taken out of it is not acknowledged.
#[test]
fn bytes_that_lie_in_the_pipe_are_not_acknowledged() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    let receiver = store.spawn("mq-recv", &["q"]);
    assert!(receiver.has_output(Duration::from_secs(10)));
    let (ready, unacked) = (store.number("q", "ready"), store.number("q", "unacked"));
    assert_eq!(ready + unacked, 3, "all are still there: {ready} ready, {unacked} leased");
    assert!(unacked >= 1);
}

/// G7: a regular file.
#[test]
fn a_file_on_a_full_disk_ends_with_a_whole_message() {
    let store = Store::new();
    let lines = seq(100_000, 120_000);
    store.send("q", &lines);
    // A limit on the size of files stands in for a full disk; the signal is ignored as the error
    // is what is looked for.
    let done = store.sh("trap '' XFSZ; ulimit -f 20; mq-recv -e q > file");
    assert_ne!(done.code, 0, "{}", done.stderr);
    let written = std::fs::read(store.beside("file")).expect("the file");
    assert!(written.is_empty() || written.ends_with(b"\n"), "cut within a message");
    assert!(lines.starts_with(&written));
    let rest = store.receive("q");
    assert!([written, rest].concat() == lines, "what is not in the file is in the queue");
}

#[test]
fn a_device_that_is_full_gives_everything_back() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    let done = store.sh("mq-recv -e q > /dev/full");
    assert_ne!(done.code, 0);
    assert!(!done.stderr.is_empty());
    assert_eq!(store.receive("q"), seq(1, 3));
}

/// G7: a terminal takes what is written to it.
#[test]
fn what_a_terminal_shows_is_gone() {
    let store = Store::new();
    if store.sh("command -v script").code != 0 {
        return skip("what_a_terminal_shows_is_gone", "needs script to make a terminal");
    }
    store.send("q", b"one\ntwo\n");
    let done = store.sh("script -qec 'mq-recv -e q' /dev/null < /dev/null").ok();
    assert_eq!(done.text().replace('\r', ""), "one\ntwo\n");
    assert_eq!(store.number("q", "ready"), 0);
}

#[test]
fn a_closed_stdout_is_an_error_and_takes_nothing() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    let done = store.sh("mq-recv -e q >&-");
    assert_ne!(done.code, 0);
    assert!(!done.stderr.is_empty());
    assert_eq!(store.number("q", "ready"), 3);
}

#[test]
fn peek_takes_and_makes_nothing() {
    let store = Store::new();
    store.send("q", &seq(1, 5));
    assert_eq!(store.run("mq-recv", &["--peek", "q"], b"").ok().stdout, seq(1, 5));
    assert_eq!(store.run("mq-recv", &["--peek", "-n2", "q"], b"").ok().stdout, seq(1, 2));
    assert_eq!(store.number("q", "ready"), 5);
    store.run("mq-recv", &["--peek", "elsewhere"], b"").ok();
    assert!(store.show("elsewhere").is_none());
}

#[test]
fn the_end_is_what_was_ready_at_the_start() {
    let store = Store::new();
    store.run("mq-recv", &["-e", "q"], b"").ok();
    assert!(store.show("q").is_none(), "looking makes no queue");
    store.run("mq-recv", &["-e", "-n1", "q"], b"").exits(124);
    store.send("q", b"");
    store.run("mq-recv", &["-e", "q"], b"").ok();
    store.run("mq-recv", &["-e", "-n1", "q"], b"").exits(124);
    store.run("mq-recv", &["-e", "-w", "1s", "q"], b"").exits(124);
    store.send("q", &seq(1, 3));
    assert_eq!(store.run("mq-recv", &["-e", "-n5", "q"], b"").ok().stdout, seq(1, 3));
}

#[test]
fn waiting_has_an_end_anew_after_each_message() {
    let store = Store::new();
    store.send("q", b"");
    store.run("mq-recv", &["-w", "100ms", "q"], b"").exits(124);
    store.send("q", b"a\n");
    assert_eq!(store.run("mq-recv", &["-w", "100ms", "q"], b"").ok().stdout, b"a\n");
}

#[test]
fn a_queue_that_is_not_there_is_waited_for() {
    let store = Store::new();
    let mut receiver = store.spawn("mq-recv", &["-n1", "later"]);
    receiver.await_stderr("later");
    store.send("later", b"now\n");
    assert_eq!(receiver.line().as_deref(), Some("now"));
    let done = receiver.finish().ok();
    assert_eq!(done.stderr.matches("later").count(), 1, "said once: {}", done.stderr);
}

#[test]
fn a_receiver_that_waits_gets_what_comes() {
    let store = Store::new();
    store.send("q", b"");
    let mut receiver = store.spawn("mq-recv", &["q"]);
    for number in 1..=20 {
        store.send("q", &seq(number, number));
        assert_eq!(receiver.line(), Some(number.to_string()));
    }
    store.await_number("q", "unacked", 0);
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.await_end(), 143);
}

#[test]
fn a_signalled_receiver_gives_back_what_was_not_taken() {
    let store = Store::new();
    store.send("q", &seq(1, 1000));
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut receiver = store.spawn("mq-recv", &["q"]);
        let first: u64 = receiver.line().expect("a line").parse().expect("a number");
        receiver.signal(signal);
        // What is in the pipe is still taken by a reader that goes on reading.
        let rest = {
            let mut out = Vec::new();
            receiver.take_stdout().read_to_end(&mut out).expect("a pipe can be read");
            out
        };
        assert_eq!(receiver.await_end(), code);
        let last = first + rest.iter().filter(|b| **b == b'\n').count() as u64;
        assert_eq!(rest, seq(first + 1, last));
        assert_eq!(store.number("q", "ready"), 1000 - last, "after {code}");
        assert_eq!(store.number("q", "unacked"), 0);
    }
}

/// A slow worker is not given what an idle one could do.
#[test]
fn a_slow_reader_does_not_hoard() {
    let store = Store::new();
    store.send("q", &seq(1, 10_000));
    let mut slow = store.spawn("mq-recv", &["q"]);
    assert_eq!(slow.line().as_deref(), Some("1"));
    // It reads nothing more; another takes what is left but for the few that the first holds.
    let done = store.run("mq-recv", &["-e", "q"], b"").ok();
    let taken = done.stdout.iter().filter(|b| **b == b'\n').count();
    assert!(taken >= 9_900, "only {taken} of 10000 were left");
}

/// G15 as it shows in receivers: what waits in the queue is not in the receiver's memory.
#[test]
fn a_stopped_reader_does_not_fill_the_receiver() {
    let store = Store::new();
    store
        .sh("{ yes 0123456789012345678901234567890123456789 | head -n 2000000; true; } | mq-send q")
        .ok();
    let mut receiver = store.spawn("mq-recv", &["q"]);
    // First a fast reader, so that the credit grows; then one that reads no more.
    let mut stdout = receiver.take_stdout();
    let mut read = vec![0u8; 20 << 20];
    stdout.read_exact(&mut read).expect("the messages come");
    store.await_number("q", "receivers", 1);
    let status = format!("/proc/{}/status", receiver.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(status).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    assert!(numbers(peak)[0] < 64 << 10, "the receiver held {peak}");
    drop(stdout);
    assert_eq!(receiver.await_end(), 141);
}

#[test]
fn verbose_names_what_came_again() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    let mut receiver = store.spawn("mq-recv", &["q"]);
    assert_eq!(receiver.line().as_deref(), Some("1"));
    // A second one is delivered and not taken.
    eventually("another is held", || (store.number("q", "unacked") > 0).then_some(()));
    await_unsettled(&store, 2);
    receiver.signal(Signal::KILL);
    receiver.await_end();
    store.await_number("q", "unacked", 0);
    let done = store.run("mq-recv", &["-e", "-v", "q"], b"").ok().says("redelivered");
    assert_eq!(done.stdout, seq(2, 3));
}

#[test]
fn several_receivers_take_each_message_once() {
    let store = Store::new();
    let receivers: Vec<Running> =
        (0..4).map(|n| Running::start(store.shell(&format!("exec mq-recv q > out{n}")))).collect();
    store.send("q", &seq(1, 200_000));
    store.run("mq-admin", &["wait", "q"], b"").ok();
    for mut receiver in receivers {
        receiver.signal(Signal::TERM);
        assert_eq!(receiver.await_end(), 143);
    }
    let done = process::run(store.shell("sort -n out0 out1 out2 out3"), b"").ok();
    assert!(done.stdout == seq(1, 200_000), "a message is missing or came twice");
}
