//! G15: crowds of clients that are silent or never read, while healthy ones are timed.

use std::time::{Duration, Instant};

use mq::units::Name;
use mq::wire::{Kind, OpenReceive, ReceiveMode, Request};

use crate::harness::{Running, Store, eventually, peer::Peer};
use crate::seq;

const SILENT: usize = 1000;
const NEVER_READING: usize = 200;

/// Round trips of one look.
const TRIPS: usize = 400;

/// Looks of each kind; the best of each counts, as others use the machine too.
const LOOKS: usize = 5;

/// A healthy sender and receiver.
struct Witness {
    sender: Running,
    receiver: Running,
    count: u64,
}

impl Witness {
    fn new(store: &Store) -> Witness {
        let (sender, receiver) = (store.spawn("mq-send", &["w"]), store.spawn("mq-recv", &["w"]));
        let mut witness = Witness { sender, receiver, count: 0 };
        witness.look();
        witness
    }

    /// How long it takes a line to come through: the 99th of a hundred.
    fn look(&mut self) -> Duration {
        let mut times: Vec<Duration> = (0..TRIPS)
            .map(|_| {
                self.count += 1;
                let begun = Instant::now();
                self.sender.write(&seq(self.count, self.count));
                assert_eq!(self.receiver.line(), Some(self.count.to_string()));
                begun.elapsed()
            })
            .collect();
        times.sort();
        times[TRIPS * 99 / 100]
    }

    fn best_look(&mut self) -> Duration {
        (0..LOOKS).map(|_| self.look()).min().expect("some looks")
    }
}

/// A thousand receivers that are there and say nothing.
fn silent(store: &Store) -> Vec<Peer> {
    let one = |_| {
        let mut peer = Peer::connect(store).expect("the server answers");
        let queue = "idle".parse().expect("a name");
        let open = OpenReceive::new(queue, Name::default(), ReceiveMode::Take);
        peer.say(1, &Request::OpenReceive(open)).expect("the server listens");
        peer.frame_of(Kind::Receiving);
        peer.say(1, &Request::Credit(1)).expect("the server listens");
        peer
    };
    (0..SILENT).map(one).collect()
}

/// Two hundred that ask for everything and take nothing.
fn never_reading(store: &Store) -> Vec<Peer> {
    let one = |_| {
        let mut peer = Peer::connect(store).expect("the server answers");
        let queue = "backlog".parse().expect("a name");
        let open = OpenReceive::new(queue, Name::default(), ReceiveMode::Peek);
        peer.say(1, &Request::OpenReceive(open)).expect("the server listens");
        peer.frame_of(Kind::Receiving);
        peer.say(1, &Request::Credit(1 << 20)).expect("the server listens");
        // And questions whose answers they do not hear.
        for _ in 0..50 {
            peer.say(2, &Request::Admin(mq::wire::Admin::List { after: None }))
                .expect("its socket has room");
        }
        peer
    };
    (0..NEVER_READING).map(one).collect()
}

#[test]
fn crowds_of_silent_and_never_reading_clients_slow_nobody_down() {
    // This process holds the other end of each connection.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("up to the most");
    let store = Store::new();
    let _server = store.serve();
    store.send("idle", b"");
    store.send("backlog", &seq(1_000_000, 1_400_000));
    let mut witness = Witness::new(&store);
    let normal = witness.best_look();
    let silent = silent(&store);
    let deaf = never_reading(&store);
    eventually("all are there", || {
        (store.number("idle", "receivers") == SILENT as u64).then_some(())
    });
    let crowded = witness.best_look();
    println!("p99 {normal:?} alone, {crowded:?} in the crowd");
    // A tenth of a millisecond is what a clock and a scheduler may differ by.
    let most = 2 * normal + Duration::from_micros(100);
    assert!(crowded <= most, "p99 {normal:?} alone, {crowded:?} in the crowd");
    drop((silent, deaf));
    eventually("all are gone", || (store.number("idle", "receivers") == 0).then_some(()));
    assert!(witness.look() < Duration::from_secs(1));
    assert_eq!(store.number("backlog", "ready"), 400_001, "a look takes nothing");
}

/// Connections that come and go as fast as they can, with and without a word. The server accepted
/// them as long as there were any, and for a minute and more nobody else had a turn.
#[test]
fn a_flood_of_connections_stops_nobody() {
    let store = Store::new();
    let _server = store.serve();
    let mut witness = Witness::new(&store);
    let over = std::sync::atomic::AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let flood = || {
            let mut made = 0u64;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                // One that finds no place is told so, or finds the queue of the socket full.
                if let Ok(mut peer) = Peer::silent(&store) {
                    if made.is_multiple_of(2) {
                        let _ = peer.raw(b"nonsense");
                    }
                    made += 1;
                }
            }
            made
        };
        let floods = [scope.spawn(flood), scope.spawn(flood)];
        let begun = Instant::now();
        for _ in 0..3 {
            witness.look();
        }
        let taken = begun.elapsed();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(taken < Duration::from_secs(20), "1200 lines took {taken:?}");
        floods.map(|flood| flood.join().expect("it does not panic")).iter().sum::<u64>()
    });
    assert!(made > 100, "only {made} connections came");
    println!("{made} connections came and went");
    store.run("mq-send", &["q", "-m", "x"], b"").ok();
    assert_eq!(store.receive("q"), b"x\n");
}
