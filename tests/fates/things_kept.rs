//! What a store knows beside its messages, and must know again after a kill -9: delays, attempts,
//! groups, leases, ids, producers, keys, limits, epochs.
//!
//! Each round does a little with every one of them, with a kill of the server at a random moment
//! among it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Done, Random, Running, Store, eventually};
use crate::size;

/// What a round does with one thing, and what must be true of it at the end.
trait Thing {
    /// Before the first kill.
    fn begin(&mut self, store: &Store);
    /// Something that a kill may fall into.
    fn disturbed(&mut self, store: &Store, round: u64) -> Vec<Running>;
    /// In peace, after the kill.
    fn check(&mut self, store: &Store, round: u64);
    /// After the last round.
    fn end(&mut self, store: &Store);
}

#[test]
fn what_a_store_knows_is_the_same_after_every_kill() {
    let rounds = size("MQ_ROUNDS", 6);
    let store = Store::new();
    let mut random = Random(23);
    let mut things: [Box<dyn Thing>; 9] = [
        Box::new(Ids),
        Box::new(Producer),
        Box::new(Leases::default()),
        Box::new(Delays::new(rounds)),
        Box::new(Groups::default()),
        Box::new(Limits),
        Box::new(Keys),
        Box::new(Attempts),
        Box::new(Epochs::default()),
    ];
    for thing in &mut things {
        thing.begin(&store);
    }
    let queues = ["ids", "named", "leased", "late", "fan", "full", "keys", "tried", "one"];
    let settings = || queues.map(|queue| store.show(queue).expect("a queue")["settings"].clone());
    let before = settings();
    for round in 1..=rounds {
        let mut at_work: Vec<Running> = Vec::new();
        for thing in &mut things {
            at_work.extend(thing.disturbed(&store, round));
        }
        // A random moment is what is wanted here, not an event.
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        crash(&store);
        for running in at_work {
            running.finish().ok();
        }
        for thing in &mut things {
            thing.check(&store, round);
        }
        crash(&store);
        assert_eq!(settings(), before);
    }
    for thing in &mut things {
        thing.end(&store);
    }
}

fn admin(store: &Store, args: &[&str]) -> Done {
    store.run("mq-admin", args, b"")
}

/// The server is killed, and there is another.
fn crash(store: &Store) {
    store.kill_server();
    admin(store, &["declare", "ids"]).ok();
}

fn numbers(from: u64, to: u64) -> String {
    (from..=to).map(|n| format!("{n}\n")).collect()
}

/// A sender that has its whole input and works on it.
fn sender(store: &Store, args: &[&str], input: &str) -> Running {
    let mut sender = store.spawn("mq-send", args);
    sender.write(input.as_bytes());
    drop(sender.take_stdin());
    sender
}

/// A message of one id is stored once.
struct Ids;

impl Ids {
    fn envelopes(to: u64) -> String {
        (1..=to).map(|n| format!("{{\"id\":\"id-{n}\",\"data\":\"{n}\"}}\n")).collect()
    }
}

impl Thing for Ids {
    fn begin(&mut self, store: &Store) {
        admin(store, &["declare", "ids", "--unique-ids", "100000"]).ok();
    }
    fn disturbed(&mut self, store: &Store, round: u64) -> Vec<Running> {
        vec![sender(store, &["-J", "ids"], &Ids::envelopes(50 * round))]
    }
    fn check(&mut self, store: &Store, round: u64) {
        assert_eq!(store.number("ids", "ready"), 50 * round, "each id once");
    }
    fn end(&mut self, store: &Store) {
        let text = store.receive("ids");
        let lines = String::from_utf8(text).expect("numbers");
        let unique: BTreeSet<&str> = lines.lines().collect();
        assert_eq!(lines.lines().count(), unique.len());
    }
}

/// A rerun of an input that has grown stores what is new.
struct Producer;

impl Thing for Producer {
    fn begin(&mut self, store: &Store) {
        admin(store, &["declare", "named"]).ok();
    }
    fn disturbed(&mut self, store: &Store, round: u64) -> Vec<Running> {
        let args = ["--producer", "feed", "named"];
        vec![sender(store, &args, &numbers(1, 1000 * round))]
    }
    fn check(&mut self, store: &Store, round: u64) {
        assert_eq!(store.number("named", "ready"), 1000 * round, "each line once");
        // One whose beginning is another is refused.
        let args = ["--producer", "feed", "named"];
        store.run("mq-send", &args, b"another beginning\n").exits(65);
        assert_eq!(store.number("named", "ready"), 1000 * round);
    }
    fn end(&mut self, store: &Store) {
        let text = String::from_utf8(store.receive("named")).expect("numbers");
        let last = text.lines().count() as u64;
        assert!(text == numbers(1, last), "in order");
    }
}

/// Leases outlive servers, and receipts settle what they were given for.
#[derive(Default)]
struct Leases {
    receipts: Vec<String>,
}

fn leased(store: &Store, lease: &str, count: &str) -> Vec<String> {
    let args = ["--lease", lease, "-J", "-n", count, "leased"];
    let done = store.run("mq-recv", &args, b"").ok();
    let receipt = |line: &str| {
        let envelope: serde_json::Value = serde_json::from_str(line).expect("JSON lines");
        envelope["receipt"].as_str().expect("a receipt").to_owned()
    };
    done.text().lines().map(receipt).collect()
}

impl Leases {
    fn counts(store: &Store) -> (u64, u64) {
        (store.number("leased", "ready"), store.number("leased", "unacked"))
    }
}

impl Thing for Leases {
    fn begin(&mut self, store: &Store) {
        // Each lease that ends is a failed attempt.
        admin(store, &["declare", "leased", "--delivery-limit", "0"]).ok();
        store.send("leased", numbers(1, 6).as_bytes());
        self.receipts = leased(store, "1h", "4");
    }
    fn disturbed(&mut self, _: &Store, _: u64) -> Vec<Running> {
        Vec::new()
    }
    fn check(&mut self, store: &Store, _: u64) {
        assert_eq!(Leases::counts(store), (2, 4));
        // One more for a short while, which ends whether or not the server does.
        let short = leased(store, "200ms", "1");
        crash(store);
        eventually("the short lease is over", || (Leases::counts(store) == (2, 4)).then_some(()));
        let refused = admin(store, &["ack", &short[0]]);
        assert_ne!(refused.code, 0, "a stale receipt settles nothing");
        assert_eq!(Leases::counts(store), (2, 4));
    }
    fn end(&mut self, store: &Store) {
        admin(store, &["ack", &self.receipts[0]]).ok();
        assert_eq!(Leases::counts(store), (2, 3));
        crash(store);
        assert_eq!(Leases::counts(store), (2, 3));
        admin(store, &["nack", &self.receipts[1]]).ok();
        admin(store, &["extend", "--for", "2h", &self.receipts[2]]).ok();
        crash(store);
        eventually("the message is ready again", || {
            (Leases::counts(store) == (3, 2)).then_some(())
        });
        for receipt in &self.receipts[..2] {
            assert_ne!(admin(store, &["ack", receipt]).code, 0, "{receipt} is over");
        }
        assert_eq!(Leases::counts(store), (3, 2));
    }
}

/// A delayed message comes when it is due, and once.
struct Delays {
    rounds: u64,
    receiver: Option<Running>,
    arrivals: Option<mpsc::Receiver<(String, u128)>>,
    sent: BTreeSet<String>,
}

fn wall_millis() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_millis()
}

impl Delays {
    fn new(rounds: u64) -> Delays {
        Delays { rounds, receiver: None, arrivals: None, sent: BTreeSet::new() }
    }

    fn send(&mut self, store: &Store, number: u64, delay_millis: u64) -> Running {
        let due = wall_millis() + u128::from(delay_millis);
        let body = format!("{number} {due}");
        let delay = format!("{delay_millis}ms");
        self.sent.insert(body.clone());
        store.spawn("mq-send", &["--delay", &delay, "-m", &body, "late"])
    }
}

impl Thing for Delays {
    fn begin(&mut self, store: &Store) {
        let mut receiver = store.spawn("mq-recv", &["late"]);
        let stdout = receiver.take_stdout();
        let (tell, arrivals) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let _ = tell.send((line.expect("text"), wall_millis()));
            }
        });
        (self.receiver, self.arrivals) = (Some(receiver), Some(arrivals));
        for number in 0..10 {
            self.send(store, number, 100 * number * self.rounds).finish().ok();
        }
    }
    fn disturbed(&mut self, store: &Store, round: u64) -> Vec<Running> {
        vec![self.send(store, 100 * round, 500), self.send(store, 100 * round + 1, 2000)]
    }
    fn check(&mut self, _: &Store, _: u64) {}
    fn end(&mut self, store: &Store) {
        let arrivals = self.arrivals.take().expect("begun");
        let mut came = BTreeMap::new();
        while came.len() < self.sent.len() {
            let (body, at) =
                arrivals.recv_timeout(crate::harness::DEADLINE).expect("all of them come");
            let due: u128 = body.split(' ').nth(1).and_then(|due| due.parse().ok()).expect("due");
            assert!(at >= due, "{body} came {} ms early", due - at);
            *came.entry(body).or_insert(0) += 1;
        }
        assert!(came.keys().all(|body| self.sent.contains(body)));
        eventually("all is settled", || (store.number("late", "unacked") == 0).then_some(()));
        assert_eq!(store.number("late", "delayed"), 0);
        let mut receiver = self.receiver.take().expect("begun");
        receiver.signal(Signal::TERM);
        receiver.await_end();
    }
}

/// Each group has a place of its own.
#[derive(Default)]
struct Groups {
    taken: BTreeMap<&'static str, String>,
}

impl Groups {
    fn take(&mut self, store: &Store, group: &'static str, count: u64) {
        let count = count.to_string();
        let done = store.run("mq-recv", &["-g", group, "-n", &count, "fan"], b"").ok();
        self.taken.entry(group).or_default().push_str(done.text());
    }
}

impl Thing for Groups {
    fn begin(&mut self, store: &Store) {
        admin(store, &["declare", "fan"]).ok();
        for group in ["slow", "fast"] {
            store.run("mq-recv", &["-g", group, "--from", "oldest", "-e", "fan"], b"").ok();
        }
    }
    fn disturbed(&mut self, store: &Store, round: u64) -> Vec<Running> {
        vec![sender(store, &["fan"], &numbers(20 * round - 19, 20 * round))]
    }
    fn check(&mut self, store: &Store, _: u64) {
        self.take(store, "slow", 7);
        self.take(store, "fast", 20);
    }
    fn end(&mut self, store: &Store) {
        for (group, taken) in &self.taken {
            let last = taken.lines().count() as u64;
            assert!(*taken == numbers(1, last), "group {group} took {taken}");
        }
        let listed = admin(store, &["group", "ls", "fan"]).ok();
        assert!(["slow", "fast"].iter().all(|group| listed.text().contains(group)));
    }
}

/// A queue that is full stays full.
struct Limits;

impl Thing for Limits {
    fn begin(&mut self, store: &Store) {
        admin(store, &["declare", "full", "--max-messages", "10", "--overflow", "reject"]).ok();
        store.send("full", numbers(1, 10).as_bytes());
    }
    fn disturbed(&mut self, _: &Store, _: u64) -> Vec<Running> {
        Vec::new()
    }
    fn check(&mut self, store: &Store, round: u64) {
        store.run("mq-send", &["full"], b"too much\n").exits(75);
        store.run("mq-recv", &["-n", "1", "full"], b"").ok();
        store.send("full", numbers(10 + round, 10 + round).as_bytes());
        store.run("mq-send", &["full"], b"too much\n").exits(75);
        assert_eq!(store.number("full", "ready"), 10);
    }
    fn end(&mut self, _: &Store) {}
}

/// A key that is pending keeps others of its name out.
struct Keys;

impl Keys {
    fn send(store: &Store, key: &str) {
        let args = ["-k", key, "--unless-pending", "-m", "job", "keys"];
        store.run("mq-send", &args, b"").ok();
    }
}

impl Thing for Keys {
    fn begin(&mut self, store: &Store) {
        admin(store, &["declare", "keys", "--unique-keys", "1000"]).ok();
        Keys::send(store, "always");
    }
    fn disturbed(&mut self, _: &Store, _: u64) -> Vec<Running> {
        Vec::new()
    }
    fn check(&mut self, store: &Store, round: u64) {
        Keys::send(store, "always");
        let key = format!("key {round}");
        Keys::send(store, &key);
        Keys::send(store, &key);
        assert_eq!(store.number("keys", "ready"), 1 + round);
    }
    fn end(&mut self, store: &Store) {
        store.receive("keys");
        crash(store);
        Keys::send(store, "always");
        assert_eq!(store.number("keys", "ready"), 1, "what is settled is not pending");
    }
}

/// Attempts are counted across servers.
struct Attempts;

impl Thing for Attempts {
    fn begin(&mut self, store: &Store) {
        admin(store, &["declare", "tried", "--delivery-limit", "0"]).ok();
        store.send("tried", b"a message\n");
    }
    fn disturbed(&mut self, _: &Store, _: u64) -> Vec<Running> {
        Vec::new()
    }
    fn check(&mut self, store: &Store, round: u64) {
        // It rests a little after it failed.
        let script = "echo $MQ_ATTEMPT; exit 1";
        let args = ["-n", "1", "--backoff", "10ms..10ms", "tried", "--", "sh", "-c", script];
        let done = store.run("mq-recv", &args, b"");
        assert_eq!(done.text(), format!("{round}\n"), "{}", done.stderr);
    }
    fn end(&mut self, _: &Store) {}
}

/// The fencing number of a queue's only receiver grows for ever.
#[derive(Default)]
struct Epochs {
    last: u64,
}

impl Thing for Epochs {
    fn begin(&mut self, store: &Store) {
        admin(store, &["declare", "one"]).ok();
    }
    fn disturbed(&mut self, store: &Store, _: u64) -> Vec<Running> {
        vec![sender(store, &["one"], "x\n")]
    }
    fn check(&mut self, store: &Store, _: u64) {
        let args = ["--exclusive", "-n", "1", "one", "--", "sh", "-c", "echo $MQ_EPOCH"];
        let done = store.run("mq-recv", &args, b"").ok();
        let epoch: u64 = done.text().trim().parse().expect("a number");
        assert!(epoch > self.last, "{epoch} after {}", self.last);
        self.last = epoch;
    }
    fn end(&mut self, _: &Store) {}
}
