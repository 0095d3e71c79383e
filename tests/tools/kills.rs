//! G8, and what G5 and G6 say about kills: kill -9 and SIGSTOP of each process.

use std::io::{BufRead, BufReader, Write};

use rustix::process::Signal;

use mq::units::{Name, Offset, OffsetRange};
use mq::wire::{Kind, OpenReceive, ReceiveMode, Reply, Request};

use crate::harness::peer::Peer;
use crate::harness::{Random, Running, Store, eventually};
use crate::{numbers, seq};

/// Feeds numbered lines to a process until it is told to stop or the process is gone; the last
/// number is the thread's result.
fn feed_numbers(mut stdin: impl Write + Send + 'static) -> Feeder {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let mut last = 0;
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            if writeln!(stdin, "{}", last + 1).is_err() {
                break;
            }
            last += 1;
        }
        last
    });
    Feeder { stop, thread }
}

struct Feeder {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Feeder {
    fn stop(self) -> u64 {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.thread.join().expect("the feeder does not panic")
    }
}

/// G2, G3, G8: the sender goes on with the next server and every line is stored once.
#[test]
fn a_send_survives_kills_of_the_server_and_stores_each_line_once() {
    for policy in ["always", "never"] {
        let store = Store::new();
        store.run("mq-admin", &["declare", "--sync", policy, "q"], b"").ok();
        let mut sender = store.spawn("mq-send", &["q"]);
        let feeder = feed_numbers(sender.take_stdin());
        let mut random = Random(11);
        for _ in 0..5 {
            let before = stored(&store);
            let more = before + 1000 + random.below(50_000);
            eventually("more is stored", || (stored(&store) > more).then_some(()));
            store.kill_server();
            eventually("the sender has started another server", || {
                assert!(!sender.has_ended(), "the sender ended: {}", sender.stderr());
                store.server()
            });
        }
        let last = feeder.stop();
        sender.finish().ok();
        assert!(store.receive("q") == seq(1, last), "lines differ under sync={policy}");
        assert_eq!(store.number("q", "end"), last, "each is stored once");
    }
}

fn stored(store: &Store) -> u64 {
    store.show("q").and_then(|info| info["end"].as_u64()).unwrap_or(0)
}

/// G5, G6, G8: a receiver whose server dies keeps what it held, and writes nothing twice by
/// itself.
#[test]
fn a_sole_receiver_survives_kills_of_the_server_without_a_duplicate() {
    let store = Store::new();
    let lines = 400_000;
    store.send("q", &seq(1, lines));
    let mut receiver = store.spawn("mq-recv", &["-n", &lines.to_string(), "q"]);
    let mut stdout = BufReader::new(receiver.take_stdout());
    let mut random = Random(5);
    let mut kill_at = 1000;
    let mut line = String::new();
    for number in 1..=lines {
        line.clear();
        stdout.read_line(&mut line).expect("UTF-8");
        assert_eq!(line.trim_end().parse(), Ok(number));
        if number == kill_at {
            assert!(!receiver.has_ended(), "the receiver ended: {}", receiver.stderr());
            store.kill_server();
            kill_at += 1 + random.below(100_000);
        }
    }
    assert_eq!(receiver.await_end(), 0);
    assert_eq!(store.number("q", "ready"), 0);
    assert_eq!(store.number("q", "unacked"), 0);
}

/// G5, G6: each receiver gets back what it held. The first one to come back used to be given what
/// the others held, some thousands of repeats for each kill.
#[test]
fn receivers_that_come_back_get_nothing_that_another_held() {
    let store = Store::new();
    for round in 1..=3 {
        store.send("q", &seq(1, 6000));
        let mut receivers: Vec<Running> =
            (0..3).map(|_| store.spawn("mq-recv", &["-v", "q"])).collect();
        // Some are read, so that they get more; then all are left with full hands.
        for receiver in &mut receivers {
            receiver.lines(50);
        }
        for receiver in &receivers {
            assert!(receiver.has_output(crate::harness::DEADLINE));
        }
        store.kill_server();
        store.await_number("q", "receivers", 3);
        let mut outs: Vec<BufReader<_>> =
            receivers.iter_mut().map(|r| BufReader::new(r.take_stdout())).collect();
        let readers: Vec<_> = outs
            .drain(..)
            .map(|out| std::thread::spawn(move || out.lines().map_while(Result::ok).count()))
            .collect();
        store.run("mq-admin", &["wait", "q"], b"").ok();
        let mut read = 150;
        for (mut receiver, reader) in receivers.into_iter().zip(readers) {
            receiver.signal(rustix::process::Signal::TERM);
            receiver.await_end();
            read += reader.join().expect("a reader");
        }
        assert_eq!(read, 6000, "round {round}: each line came once");
    }
}

/// Nobody waits for those who will not come back for longer than a moment.
#[test]
fn what_a_dead_receiver_held_goes_to_another_after_a_restart() {
    let store = Store::new();
    store.send("q", &seq(1, 100));
    let mut receiver = store.spawn("mq-recv", &["q"]);
    receiver.line();
    store.kill_server();
    receiver.signal(rustix::process::Signal::KILL);
    receiver.await_end();
    let done = store.run("mq-recv", &["-e", "q"], b"").ok();
    let lines = done.text().lines().count();
    assert!(done.text().ends_with("100\n") && (98..=100).contains(&lines), "{lines} lines");
}

/// G8: both at once, all in order, and nothing waits for ever.
#[test]
fn a_stream_survives_a_kill_of_the_server_at_each_moment() {
    let store = Store::new();
    let lines = 300_000;
    let input = seq(1, lines);
    let mut receiver = store.spawn("mq-recv", &["-n", &lines.to_string(), "q"]);
    let mut sender = store.spawn("mq-send", &["q"]);
    let mut stdin = sender.take_stdin();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let mut stdout = BufReader::new(receiver.take_stdout());
    let mut line = String::new();
    for number in 1..=lines {
        line.clear();
        stdout.read_line(&mut line).expect("UTF-8");
        assert_eq!(line.trim_end().parse(), Ok(number));
        if number % 50_000 == 0 {
            store.kill_server();
        }
    }
    feeder.join().expect("a feeder").expect("the sender reads on");
    sender.finish().ok();
    assert_eq!(receiver.await_end(), 0);
}

/// G8: what `mq-send -T` has written was confirmed.
#[test]
fn what_a_killed_sender_had_confirmed_is_there() {
    let store = Store::new();
    for round in 0..5 {
        let queue = format!("q{round}");
        let mut sender = store.spawn("mq-send", &["-T", &queue]);
        let feeder = feed_numbers(sender.take_stdin());
        let mut confirmed = BufReader::new(sender.take_stdout()).lines();
        let mut last = 0;
        for _ in 0..1000 * (round + 1) {
            last = confirmed.next().expect("a line").expect("UTF-8").parse().expect("a number");
        }
        sender.signal(Signal::KILL);
        sender.await_end();
        feeder.stop();
        // What was still in the pipe behind it was confirmed as well.
        for line in confirmed.map_while(Result::ok) {
            last = line.parse().unwrap_or(last);
        }
        let stored = store.receive(&queue).iter().filter(|b| **b == b'\n').count() as u64;
        assert!(stored >= last, "{last} were confirmed and {stored} are stored");
    }
}

/// G8: nothing that a killed receiver had not written out is lost.
#[test]
fn killed_receivers_lose_nothing() {
    let store = Store::new();
    let lines = 200_000;
    store.send("q", &seq(1, lines));
    let mut seen = vec![false; lines as usize + 1];
    let mut random = Random(3);
    for _ in 0..10 {
        let mut receiver = store.spawn("mq-recv", &["q"]);
        let mut out = BufReader::new(receiver.take_stdout()).lines();
        for _ in 0..random.below(10_000) {
            let line = out.next().expect("more lines").expect("UTF-8");
            seen[line.parse::<usize>().expect("a number")] = true;
        }
        receiver.signal(Signal::KILL);
        receiver.await_end();
        // Complete lines that are still in the pipe have been written and count.
        for line in out.map_while(Result::ok) {
            if let Some(slot) = line.parse::<usize>().ok().and_then(|n| seen.get_mut(n)) {
                *slot = true;
            }
        }
    }
    store.await_number("q", "unacked", 0);
    for number in numbers(std::str::from_utf8(&store.receive("q")).expect("numbers")) {
        seen[number as usize] = true;
    }
    assert_eq!(seen.iter().skip(1).position(|s| !s), None, "a line is lost");
}

/// A client that stands still does not hold up others.
#[test]
fn stopped_clients_do_not_stop_others() {
    let store = Store::new();
    store.send("q", &seq(1, 1000));
    let mut stopped = store.spawn("mq-recv", &["q"]);
    assert_eq!(stopped.line().as_deref(), Some("1"));
    stopped.signal(Signal::STOP);
    let mut sender = store.spawn("mq-send", &["q"]);
    sender.write(b"unfinished");
    sender.signal(Signal::STOP);
    store.send("q", b"more\n");
    let done = store.run("mq-recv", &["-e", "q"], b"").ok();
    assert!(done.stdout.ends_with(b"\nmore\n"));
    let held = store.number("q", "unacked");
    assert!((1..100).contains(&held), "the stopped receiver holds {held}");
    stopped.signal(Signal::CONT);
    sender.signal(Signal::CONT);
    sender.finish().ok();
    drop(stopped);
    let rest = store.receive("q");
    assert!(rest.ends_with(b"unfinished\n"), "{}", String::from_utf8_lossy(&rest));
}

/// A server that stands still and goes on is no failure.
#[test]
fn clients_wait_for_a_stopped_server() {
    let store = Store::new();
    let server = store.serve();
    let mut receiver = store.spawn("mq-recv", &["q"]);
    let mut sender = store.spawn("mq-send", &["q"]);
    sender.write(b"1\n");
    assert_eq!(receiver.line().as_deref(), Some("1"));
    server.signal(Signal::STOP);
    sender.write(b"2\n");
    let late = Running::start(store.command("mq-send", &["q", "-m", "3"]));
    assert!(!receiver.has_output(std::time::Duration::from_millis(300)));
    server.signal(Signal::CONT);
    late.finish().ok();
    sender.finish().ok();
    let mut lines = receiver.lines(2);
    lines.sort();
    assert_eq!(lines, ["2", "3"]);
}

/// An orderly end of the server is survived as well as a kill.
#[test]
fn a_server_that_is_terminated_in_mid_stream_loses_nothing() {
    let store = Store::new();
    let mut sender = store.spawn("mq-send", &["q"]);
    let feeder = feed_numbers(sender.take_stdin());
    for _ in 0..3 {
        let before = stored(&store);
        eventually("more is stored", || (stored(&store) > before + 10_000).then_some(()));
        store.signal_server(Signal::TERM);
        // Someone stopped it on purpose: the sender waits until someone else starts another.
        store.run("mq-send", &["other", "-m", "x"], b"").ok();
    }
    let last = feeder.stop();
    sender.finish().ok();
    assert!(store.receive("q") == seq(1, last));
}

/// G6: the server had something to send to a receiver that was killed, saw that nobody was there,
/// and threw away what the receiver had said before: an ack, or that an attempt had begun.
#[test]
fn what_a_killed_receiver_said_is_heard_although_it_takes_nothing_any_more() {
    let store = Store::new();
    let lines = 100_000;
    let line = [b'x'; 63].iter().chain(b"\n").copied().collect::<Vec<u8>>();
    store.send("q", &line.repeat(lines));
    let mut peer = Peer::connect(&store).expect("the server answers");
    let queue = "q".parse().expect("a name");
    let open = OpenReceive::new(queue, Name::default(), ReceiveMode::Take);
    peer.say(1, &Request::OpenReceive(open)).expect("it listens");
    peer.frame_of(Kind::Receiving);
    peer.say(1, &Request::Credit(lines as u64)).expect("it listens");
    let frame = peer.frame_of(Kind::Deliver);
    let Reply::Deliver(head, _) = frame.reply() else { panic!("a delivery") };
    // More than the socket holds is on its way, so the server has something left to send.
    eventually("the server waits for its peer", || {
        let unacked = store.number("q", "unacked");
        let then = store.number("q", "unacked");
        (unacked == then && unacked > head.end.0).then_some(())
    });
    store.signal_server(Signal::STOP);
    let acked = OffsetRange::new(Offset(0), head.end);
    peer.say(1, &Request::Ack(vec![acked])).expect("its socket has room");
    drop(peer);
    store.signal_server(Signal::CONT);
    store.await_number("q", "unacked", 0);
    assert_eq!(store.number("q", "ready"), lines as u64 - head.end.0);
}
