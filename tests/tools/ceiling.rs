//! G15: the server under its ceiling of memory, with a thousand connections, a large backlog, and
//! the worst pattern of acknowledged holes. `MQ_BACKLOG=10000000` for the full size.

use mq::limits;
use mq::units::{Name, Offset, OffsetRange};
use mq::wire::{Kind, OpenReceive, ReceiveMode, Reply, Request};

use crate::harness::{Store, eventually, peer::Peer};
use crate::{seq, size};

const CONNECTIONS: usize = 1000;

/// Of these, receivers that never read.
const DEAF: usize = 100;

/// Groups that are driven to the bound of holes.
const GROUPS: usize = 4;

/// The most memory that the server ever had in use.
fn peak(pid: rustix::process::Pid) -> u64 {
    let status = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = std::fs::read_to_string(status).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Takes all that a group is given, acks every second message and keeps the others, until it is
/// given nothing more: each is a hole of its own. Returns the peer, which holds them.
fn make_holes(store: &Store, queue: &str, group: &str) -> Peer {
    let mut peer = Peer::connect(store).expect("the server answers");
    let open = OpenReceive::new(
        queue.parse().expect("a name"),
        group.parse().expect("a name"),
        ReceiveMode::Take,
    );
    peer.say(1, &Request::OpenReceive(open)).expect("the server listens");
    peer.frame_of(Kind::Receiving);
    let wanted = 4 * limits::SETTLED_RANGES_PER_GROUP_MAX as u64;
    peer.say(1, &Request::Credit(wanted)).expect("the server listens");
    let (mut acked, mut seen) = (0u64, 0);
    // The bound of holes is where it ends; every message up to there comes in some frame.
    while acked < limits::SETTLED_RANGES_PER_GROUP_MAX as u64 {
        let frame = peer.frame_of(Kind::Deliver);
        let Reply::Deliver(head, _) = frame.reply() else { panic!("a delivery") };
        let (start, end) = (seen, head.end.0);
        seen = end;
        let odd: Vec<OffsetRange> = (start..end)
            .filter(|offset| offset % 2 == 1)
            .map(|offset| OffsetRange::new(Offset(offset), Offset(offset + 1)))
            .collect();
        acked += odd.len() as u64;
        for ranges in odd.chunks(limits::RANGES_PER_FRAME_MAX) {
            peer.say(1, &Request::Ack(ranges.to_vec())).expect("the server listens");
        }
    }
    peer
}

#[test]
fn the_server_stays_under_its_ceiling_of_memory() {
    let backlog = size("MQ_BACKLOG", 1_000_000);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("up to the most");
    let store = Store::new();
    let server = store.serve();
    store.sh("mq-admin declare q && mq-admin declare idle").ok();
    let groups: Vec<String> = (0..GROUPS).map(|n| format!("g{n}")).collect();
    for group in &groups {
        store.run("mq-admin", &["group", "add", "--from", "oldest", "q", group], b"").ok();
    }
    let script = format!("seq 1 {backlog} | mq-send q");
    store.sh(&script).ok();
    assert_eq!(store.number("q", "end"), backlog);
    let after_backlog = peak(server.pid());
    // A thousand connections: those that hold, those that never read, those that only are there.
    let holders: Vec<Peer> = groups.iter().map(|group| make_holes(&store, "q", group)).collect();
    let after_holes = peak(server.pid());
    let mut crowd = Vec::new();
    for n in 0..CONNECTIONS - GROUPS {
        let mut peer = Peer::connect(&store).expect("the server answers");
        let (mode, queue) =
            if n < DEAF { (ReceiveMode::Peek, "q") } else { (ReceiveMode::Take, "idle") };
        let open = OpenReceive::new(queue.parse().expect("a name"), Name::default(), mode);
        peer.say(1, &Request::OpenReceive(open)).expect("the server listens");
        peer.frame_of(Kind::Receiving);
        peer.say(1, &Request::Credit(limits::CREDIT_MAX)).expect("the server listens");
        crowd.push(peer);
    }
    eventually("all are there", || {
        let idle = (CONNECTIONS - GROUPS - DEAF) as u64;
        (store.number("idle", "receivers") == idle).then_some(())
    });
    // All goes on as ever beside that.
    store.send("other", &seq(1, 200_000));
    assert_eq!(store.receive("other"), seq(1, 200_000));
    let full = peak(server.pid());
    let ceiling = limits::MEMORY_BYTES
        + CONNECTIONS as u64 * limits::MEMORY_PER_CONNECTION_BYTES
        + DEAF as u64 * limits::MEMORY_PER_DEAF_BYTES
        + GROUPS as u64 * limits::MEMORY_PER_GROUP_BYTES;
    println!(
        "peak: {after_backlog} with {backlog} messages, {after_holes} with holes, {full} with all; \
         ceiling {ceiling}"
    );
    assert!(full <= ceiling, "{full} bytes of memory; the ceiling is {ceiling}");
    drop((holders, crowd));
    store.run("mq-admin", &["check", "q"], b"").ok();
}
