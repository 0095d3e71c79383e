//! Rounds in which something is killed with SIGKILL or stopped with SIGSTOP: the server, one of
//! eight senders, of four receivers, the receiver that runs commands, a command, a pipe, its
//! filter; at random moments, all of it under way (G1, G2, G4, G6, G8, G13, G14).
//!
//! Lines carry sender and number. A sender's copy of what was confirmed (`-T`) is read all the time;
//! one that was killed is followed by another that goes on with the next number, so a line is sent
//! once. In the end a second group shows what is stored: every confirmed line, none twice, each
//! sender's in order. Every stored line was read from some receiver; one that was read twice had a
//! kill in between. Each job was done, none is dead; and the pipe's destination holds each stored
//! line once, in order. `MQ_ROUNDS=5000` for the long run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::ChildStdin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Random, Running, Store, eventually};
use crate::size;

const SENDERS: u64 = 8;
const RECEIVERS: u64 = 4;

/// An acknowledgement is under way at most so long after its line was read, on a loaded machine.
const ACK_DELAY_MAX: Duration = Duration::from_secs(5);

/// A line: who sent it, and its number there, from 1 on.
type Line = (u64, u64);

fn parse(line: &[u8]) -> Line {
    let text = std::str::from_utf8(line).expect("UTF-8").trim_end();
    let mut words = text.split(' ').map(str::parse);
    match (words.next(), words.next(), words.next()) {
        (Some(Ok(sender)), Some(Ok(number)), None) => (sender, number),
        _ => panic!("G2: a line that nobody sent: {text:?}"),
    }
}

/// The whole lines that come from a process, one after the other.
fn whole_lines(out: impl std::io::Read) -> impl Iterator<Item = Vec<u8>> {
    let mut out = BufReader::new(out);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        // What was killed may have left a piece of a line.
        out.read_until(b'\n', &mut line).ok().filter(|_| line.ends_with(b"\n")).map(|_| line)
    })
}

/// A process that is started anew whenever it ends, until it is told not to.
#[derive(Clone)]
struct Post {
    running: Arc<Mutex<Running>>,
    over: Arc<AtomicBool>,
}

impl Post {
    fn new(running: Running) -> Post {
        Post { running: Arc::new(Mutex::new(running)), over: Arc::new(AtomicBool::new(false)) }
    }

    fn signal(&self, signal: Signal) {
        self.running.lock().expect("nobody panicked").signal(signal);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The next one takes the place of one that was killed.
    fn replace(&self, next: Running) {
        let last = std::mem::replace(&mut *self.running.lock().expect("nobody panicked"), next);
        self.check_end(last);
    }

    /// The same, if it has ended. Nobody may signal it between the question and the next one: its
    /// number is free then.
    fn renew(&self, start: &impl Fn() -> Running) {
        let mut running = self.running.lock().expect("nobody panicked");
        if running.has_ended() {
            let last = std::mem::replace(&mut *running, start());
            drop(running);
            self.check_end(last);
        }
    }

    fn check_end(&self, mut last: Running) {
        let status = last.await_end();
        assert!(status == 137 || self.is_over(), "it ended with {status}: {}", last.stderr());
    }
}

/// What senders were told is stored.
type Confirmed = Arc<Mutex<BTreeSet<Line>>>;

fn read_confirmed(running: &mut Running, confirmed: &Confirmed) -> JoinHandle<()> {
    let (out, confirmed) = (running.take_stdout(), Arc::clone(confirmed));
    std::thread::spawn(move || {
        for line in whole_lines(out) {
            confirmed.lock().expect("nobody panicked").insert(parse(&line));
        }
    })
}

/// Feeds a sender, and the one that follows it when it is killed.
fn feed(store: &Arc<Store>, sender: u64, confirmed: &Confirmed) -> (Post, JoinHandle<u64>) {
    let start = {
        let (store, confirmed) = (Arc::clone(store), Arc::clone(confirmed));
        move || {
            let mut running = store.spawn("mq-send", &["-T", "q"]);
            let reader = read_confirmed(&mut running, &confirmed);
            (running.take_stdin(), reader, running)
        }
    };
    let (mut stdin, mut reader, running): (ChildStdin, JoinHandle<()>, Running) = start();
    let post = Post::new(running);
    let kept = post.clone();
    let feeder = std::thread::spawn(move || {
        let (mut last, mut random) = (0, Random(sender));
        while !post.is_over() {
            let mut lines = String::new();
            for _ in 0..1 + random.below(20) {
                last += 1;
                lines.push_str(&format!("{sender} {last}\n"));
            }
            if stdin.write_all(lines.as_bytes()).is_err() {
                let next = start();
                post.replace(next.2);
                reader.join().expect("a reader");
                (stdin, reader) = (next.0, next.1);
            }
            // Not so fast that the test is about throughput.
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(stdin);
        reader.join().expect("a reader");
        last
    });
    (kept, feeder)
}

/// What receivers have written: when each line was read, the first and every other time.
#[derive(Default)]
struct Read {
    first: BTreeMap<Line, Instant>,
    again: Vec<(Line, Instant, Instant)>,
}

fn receive(store: &Arc<Store>, read: &Arc<Mutex<Read>>) -> (Post, JoinHandle<()>) {
    let (store, read) = (Arc::clone(store), Arc::clone(read));
    let start = move || {
        let mut running = store.spawn("mq-recv", &["q"]);
        (running.take_stdout(), running)
    };
    let (mut stdout, running) = start();
    let post = Post::new(running);
    let kept = post.clone();
    let reader = std::thread::spawn(move || {
        loop {
            for line in whole_lines(stdout) {
                let (line, now) = (parse(&line), Instant::now());
                let mut read = read.lock().expect("nobody panicked");
                if let Some(before) = read.first.insert(line, now) {
                    read.again.push((line, before, now));
                }
            }
            if post.is_over() {
                return;
            }
            let next = start();
            stdout = next.0;
            post.replace(next.1);
        }
    });
    (kept, reader)
}

/// A process without output of interest, started anew when it was killed.
fn keep_running(start: impl Fn() -> Running + Send + 'static) -> (Post, JoinHandle<()>) {
    let post = Post::new(start());
    let kept = post.clone();
    let keeper = std::thread::spawn(move || {
        while !post.is_over() {
            post.renew(&start);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    (kept, keeper)
}

/// The processes that some shell started for this store, by what stands in their command line.
fn processes(part: &str) -> Vec<Pid> {
    let pid_of = |entry: std::io::Result<std::fs::DirEntry>| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let is_tool = line.split(|b| *b == 0).next()?.windows(3).any(|name| name == b"mq-");
        let found = line.windows(part.len()).any(|piece| piece == part.as_bytes());
        (found && !is_tool).then(|| Pid::from_raw(pid)).flatten()
    };
    std::fs::read_dir("/proc").expect("/proc").filter_map(pid_of).collect()
}

/// Kills it, or lets it stand for a moment.
fn strike(random: &mut Random, mut signal: impl FnMut(Signal)) {
    if random.below(3) > 0 {
        return signal(Signal::KILL);
    }
    signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(1 + random.below(30)));
    signal(Signal::CONT);
}

#[test]
fn everything_is_killed_and_stopped_at_any_moment() {
    let rounds = size("MQ_ROUNDS", 200);
    let store = Arc::new(Store::new());
    let group = ["group", "add", "--from", "oldest", "q", "all"];
    store.run("mq-admin", &["declare", "q"], b"").ok();
    store.run("mq-admin", &group, b"").ok();
    let done = store.beside("done");
    let work = store.beside("work.sh");
    std::fs::write(&work, format!("cat >> {}\nsleep 0.002\n", done.display())).expect("room");
    let filter = store.beside("filter.sh");
    std::fs::write(&filter, "exec sed 's/^/> /'\n").expect("room");
    let script = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let args = ["--name", "p", "--batch", "1000", "--backoff", "1ms", "q", "b", "--", "sh"];
    let at_once = || store.run("mq-pipe", &[&["-e"][..], &args, &[&script(&filter)]].concat(), b"");
    at_once().ok();
    let confirmed = Confirmed::default();
    let read = Arc::new(Mutex::new(Read::default()));
    let feeders: Vec<_> = (0..SENDERS).map(|n| feed(&store, n, &confirmed)).collect();
    let receivers: Vec<_> = (0..RECEIVERS).map(|_| receive(&store, &read)).collect();
    let commands = {
        let (store, work) = (Arc::clone(&store), script(&work));
        let limit = ["declare", "--delivery-limit", "1000000", "jobs"];
        store.run("mq-admin", &limit, b"").ok();
        keep_running(move || {
            let args = ["-P2", "--backoff", "1ms", "jobs", "--", "sh", &work];
            store.spawn("mq-recv", &args)
        })
    };
    let pipe = {
        let (store, filter) = (Arc::clone(&store), script(&filter));
        keep_running(move || store.spawn("mq-pipe", &[&args[..], &[&filter]].concat()))
    };
    let (mut random, mut kills, mut jobs) = (Random(41), Vec::new(), 0);
    for _ in 0..rounds {
        jobs += 1;
        store.send("jobs", format!("job {jobs}\n").as_bytes());
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let begun = Instant::now();
        match random.below(14) {
            0..3 => strike(&mut random, |signal| store.signal_server(signal)),
            3..6 => {
                let (post, _) = &feeders[random.below(SENDERS) as usize];
                strike(&mut random, |signal| post.signal(signal));
            }
            6..9 => {
                let (post, _) = &receivers[random.below(RECEIVERS) as usize];
                strike(&mut random, |signal| post.signal(signal));
            }
            9 => strike(&mut random, |signal| commands.0.signal(signal)),
            10 | 11 => strike(&mut random, |signal| pipe.0.signal(signal)),
            what => {
                let path = if what == 12 { &work } else { &filter };
                for pid in processes(&script(path)) {
                    strike(&mut random, |signal| {
                        // It may have ended meanwhile.
                        let _ = kill_process(pid, signal);
                    });
                }
            }
        }
        kills.push((begun, Instant::now()));
    }
    for (post, _) in &feeders {
        post.over.store(true, Ordering::Relaxed);
    }
    let sent: Vec<u64> = feeders
        .into_iter()
        .map(|(post, feeder)| {
            let last = feeder.join().expect("a feeder");
            let status = post.running.lock().expect("nobody panicked").await_end();
            assert!(status == 0 || status == 137, "a sender ended with {status}");
            last
        })
        .collect();
    store.run("mq-admin", &["wait", "jobs"], b"").ok();
    eventually("all is read", || {
        let groups = store.show("q")?["groups"].as_array()?.clone();
        let group = groups.iter().find(|group| group["group"] == "default")?;
        (group["ready"] == 0 && group["unacked"] == 0).then_some(())
    });
    end(pipe);
    end(commands);
    receivers.into_iter().for_each(end);
    at_once().ok();

    let stored = store.run("mq-recv", &["-e", "-g", "all", "q"], b"").ok().stdout;
    let lines: Vec<Line> = stored.split_inclusive(|b| *b == b'\n').map(parse).collect();
    check_stored(&lines, &confirmed.lock().expect("nobody panicked"), &sent);
    check_read(&lines, &read.lock().expect("nobody panicked"), &kills);
    let piped = store.receive("b");
    let expected: Vec<u8> = stored
        .split_inclusive(|b| *b == b'\n')
        .flat_map(|line| [&b"> "[..], line].concat())
        .collect();
    assert!(piped == expected, "G14: {} bytes, not {}", piped.len(), expected.len());
    let done = std::fs::read_to_string(done).expect("some are done");
    let done: BTreeSet<&str> = done.lines().collect();
    let missing = (1..=jobs).find(|n| !done.contains(format!("job {n}").as_str()));
    assert_eq!(missing, None, "G8: a job was never done");
    for queue in ["jobs.dead", "q.pipe.p.dead"] {
        assert!(store.show(queue).is_none(), "G13: a kill makes no dead letter");
    }
    store.run("mq-admin", &["check"], b"").ok();
    let again = read.lock().expect("nobody panicked").again.len();
    println!("{rounds} rounds, {} lines, {again} read again, {jobs} jobs", lines.len());
}

fn end((post, thread): (Post, JoinHandle<()>)) {
    post.over.store(true, Ordering::Relaxed);
    post.signal(Signal::TERM);
    post.running.lock().expect("nobody panicked").await_end();
    thread.join().expect("it does not panic");
}

/// G1, G2, G4: every confirmed line is there, none twice, each sender's in order.
fn check_stored(lines: &[Line], confirmed: &BTreeSet<Line>, sent: &[u64]) {
    let mut last = vec![0; sent.len()];
    for (sender, number) in lines {
        let before = std::mem::replace(&mut last[*sender as usize], *number);
        assert!(before < *number, "G2, G4: line {number} of sender {sender} behind {before}");
        assert!(*number <= sent[*sender as usize], "G2: it was never sent");
    }
    let stored: BTreeSet<&Line> = lines.iter().collect();
    let lost = confirmed.iter().find(|line| !stored.contains(line));
    assert_eq!(lost, None, "G1: confirmed and not there");
    assert!(confirmed.len() > 1000, "only {} lines were confirmed", confirmed.len());
}

/// G6, G8: what is stored was read, and what was read twice had a kill in between.
fn check_read(lines: &[Line], read: &Read, kills: &[(Instant, Instant)]) {
    let lost = lines.iter().find(|line| !read.first.contains_key(line));
    assert_eq!(lost, None, "G8: stored and acked, and nobody read it");
    for (line, before, again) in &read.again {
        let explained = kills.iter().any(|(begun, over)| {
            begun <= again
                && begun.saturating_duration_since(*before) < ACK_DELAY_MAX
                && *over + ACK_DELAY_MAX >= *before
        });
        assert!(explained, "G6: {line:?} came again after {:?} without a kill", *again - *before);
    }
}
