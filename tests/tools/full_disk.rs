//! G10: a full disk is an answer. Needs root, for a small file system in memory.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use mq::units::{Name, Offset, OffsetRange};
use mq::wire::{Kind, OpenReceive, ReceiveMode, Request};

use crate::harness::small_disk::SmallDisk;
use crate::harness::{eventually, peer::Peer, skip};
use crate::{numbers, seq};

fn reported(stderr: &str, ready: u64) {
    assert!(numbers(stderr).contains(&ready), "{ready} are stored, but it says: {stderr}");
}

#[test]
fn a_full_disk_refuses_a_send_and_serves_everything_else() {
    let Some(disk) = SmallDisk::mount(24) else {
        return skip("a_full_disk_refuses_a_send...", "needs root and the right to mount");
    };
    let store = &disk.store;
    // 48 MB of lines do not fit.
    let done =
        store.sh("{ yes 0123456789012345678901234567890 | head -n 1500000; true; } | mq-send q");
    let done = done.exits(75);
    let stored = store.number("q", "ready");
    assert!(stored > 0);
    reported(&done.stderr, stored);
    assert!(disk.free() >= (24 << 20) / 20 / 2, "the reserve is kept");
    // One more is refused as well; receiving and acknowledging go on.
    let lines = seq(1, 1).repeat(1 << 20);
    store.run("mq-send", &["q"], &lines).exits(75);
    let stored = store.number("q", "ready");
    let out = store.receive("q");
    assert_eq!(out.iter().filter(|b| **b == b'\n').count() as u64, stored);
    assert_eq!(store.number("q", "unacked"), 0);
    // What was taken makes room again, without a restart.
    let server = store.server();
    eventually("sending works again", || {
        (store.run("mq-send", &["q"], &seq(1, 10)).code == 0).then_some(())
    });
    assert_eq!(store.server(), server, "the same server");
    assert_eq!(store.receive("q"), seq(1, 10));
    store.run("mq-admin", &["check"], b"").ok();
}

#[test]
fn a_disk_filled_by_others_is_survived_and_works_again() {
    let Some(disk) = SmallDisk::mount(16) else {
        return skip("a_disk_filled_by_others...", "needs root and the right to mount");
    };
    let store = &disk.store;
    store.send("q", &seq(0, 1000));
    store.run("mq-recv", &["-n1", "q"], b"").ok();
    let filler = disk.fill();
    let done = store.run("mq-send", &["q"], &seq(1, 200_000)).exits(75);
    let stored = store.number("q", "ready");
    reported(&done.stderr, stored - 1000);
    let waiting = store.spawn("mq-send", &["-w", "30s", "q", "-m", "patient"]);
    let done = store.run("mq-recv", &["-n", "1000", "q"], b"").ok();
    assert_eq!(done.stdout, seq(1, 1000), "receiving needs no room");
    std::fs::remove_file(filler).expect("ours");
    waiting.finish().ok();
    let out = store.receive("q");
    assert!(out.ends_with(b"patient\n"));
    store.run("mq-admin", &["check"], b"").ok();
}

/// The first receiver of a queue makes its group, whose journal needs room. It got status 75 from
/// a disk that others had filled; now each queue keeps room for one.
#[test]
fn the_first_receiver_on_a_full_disk_is_served() {
    let Some(disk) = SmallDisk::mount(16) else {
        return skip("the_first_receiver_on_a_full_disk...", "needs root and the right to mount");
    };
    let store = &disk.store;
    store.send("q", &seq(1, 1000));
    store.send("r", &seq(1, 1000));
    let filler = disk.fill();
    assert_eq!(store.receive("q"), seq(1, 1000));
    // The journal in that room is one like any other.
    store.kill_server();
    assert_eq!(store.receive("q"), b"");
    assert_eq!(store.receive("r"), seq(1, 1000), "what was kept is still there");
    store.run("mq-admin", &["check"], b"").ok();
    std::fs::remove_file(filler).expect("ours");
    // Where there is room, it is kept again.
    let spare = store.path().join("queues/q/groups/spare");
    store.kill_server();
    store.send("q", b"x\n");
    eventually("room is kept again", || spare.exists().then_some(()));
    assert_eq!(store.receive("q"), b"x\n");
}

/// Acks that found no room stood in memory until another ack of the same group came along.
#[test]
fn acks_that_found_no_room_are_written_when_there_is() {
    let Some(disk) = SmallDisk::mount(16) else {
        return skip("acks_that_found_no_room...", "needs root and the right to mount");
    };
    let store = &disk.store;
    store.send("q", &seq(1, 9000));
    let mut peer = Peer::connect(store).expect("the server answers");
    let open = OpenReceive::new("q".parse().expect("a name"), Name::default(), ReceiveMode::Take);
    peer.say(1, &Request::OpenReceive(open)).expect("the server listens");
    peer.frame_of(Kind::Receiving);
    let filler = disk.fill();
    peer.say(1, &Request::Credit(9000)).expect("the server listens");
    // Each second message, so that no two acks are one: more than the journal has in reserve.
    let odd: Vec<OffsetRange> =
        (0..4096).map(|n| OffsetRange::new(Offset(2 * n), Offset(2 * n + 1))).collect();
    store.await_number("q", "unacked", 9000);
    for ranges in odd.chunks(2048) {
        peer.say(1, &Request::Ack(ranges.to_vec())).expect("the server listens");
    }
    store.await_number("q", "unacked", 9000 - 4096);
    std::fs::remove_file(filler).expect("ours");
    let journal = store.path().join("queues/q/groups/default.acks");
    eventually("they are written", || {
        (std::fs::metadata(&journal).ok()?.len() > 4096 * 32).then_some(())
    });
    store.kill_server();
    let _server = store.serve();
    assert_eq!(store.number("q", "ready"), 9000 - 4096);
}

/// A server comes up on a full disk, so that what is there can be taken.
#[test]
fn a_full_disk_does_not_keep_a_server_from_starting() {
    let Some(disk) = SmallDisk::mount(16) else {
        return skip("a_full_disk_does_not_keep...", "needs root and the right to mount");
    };
    let store = &disk.store;
    store.send("q", &seq(1, 1000));
    store.kill_server();
    let filler = disk.fill();
    let taken = store.receive("q");
    std::fs::remove_file(filler).expect("ours");
    assert_eq!(taken, seq(1, 1000));
}

/// The server told the broker before the journal could refuse, and had to end itself then.
#[test]
fn a_group_that_cannot_be_set_back_on_a_full_disk_stays_where_it_is() {
    let Some(disk) = SmallDisk::mount(16) else {
        return skip("a_group_that_cannot_be_set_back...", "needs root and the right to mount");
    };
    let store = &disk.store;
    store.run("mq-admin", &["declare", "q", "--retain", "log"], b"").ok();
    store.send("q", &seq(1, 100));
    assert_eq!(store.run("mq-recv", &["-n", "100", "q"], b"").ok().stdout, seq(1, 100));
    let server = store.server();
    let seek =
        |to: &str| store.run("mq-admin", &["group", "seek", "q", "default", "--to", to], b"");
    // What the queue keeps for a journal serves for the first one, and each leaves room behind for
    // another: someone else has to take that before the server does.
    let filler = disk.fill();
    let over = AtomicBool::new(false);
    let refused = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = std::fs::File::options().append(true).open(&filler).expect("ours");
            while !over.load(Ordering::Relaxed) {
                let _ = file.write(&[0; 4096]);
            }
        });
        let refused = (0..200).map(|n| seek(&(n % 50).to_string())).find(|done| done.code != 0);
        over.store(true, Ordering::Relaxed);
        refused.expect("the disk is full")
    });
    assert_eq!(refused.code, 75, "{}", refused.stderr);
    assert!(refused.stderr.contains("cannot set group default of queue q"), "{}", refused.stderr);
    let taken = store.run("mq-recv", &["-e", "q"], b"").ok().stdout;
    assert!(seq(1, 100).ends_with(&taken), "what is behind where it was set last");
    std::fs::remove_file(filler).expect("ours");
    seek("oldest").ok();
    assert_eq!(store.receive("q"), seq(1, 100));
    assert_eq!(store.server(), server, "the same server");
    store.run("mq-admin", &["check"], b"").ok();
}
