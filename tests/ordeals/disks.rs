//! Disks that are full or fail, under the real server (G1, G10, G12).
//!
//! `tests/tools` has a full disk and a failing sync, told by the tools' words; here they come at
//! many moments, and what is asked is what is kept.

use crate::harness::small_disk::SmallDisk;
use crate::harness::{Running, Store, eventually, peer::Peer, process, skip};
use crate::seq;

/// Takes all but so much of the room.
fn leave(disk: &SmallDisk, bytes: u64) -> std::path::PathBuf {
    let path = disk.fill();
    let length = std::fs::metadata(&path).expect("ours").len();
    let file = std::fs::File::options().write(true).open(&path).expect("ours");
    file.set_len(length.saturating_sub(bytes)).expect("ours");
    path
}

/// G10: a disk with any amount of room left. What was refused is not there, what was confirmed is,
/// receiving goes on; and with room again, sending does, in the same server.
#[test]
fn at_any_level_a_full_disk_refuses_exactly_and_recovers() {
    const NAME: &str = "at_any_level_a_full_disk_refuses_exactly_and_recovers";
    let Some(disk) = SmallDisk::mount(20) else {
        return skip(NAME, "needs root and the right to mount");
    };
    let store = &disk.store;
    store.run("mq-admin", &["declare", "q"], b"").ok();
    let server = store.server();
    let (mut next, mut refused) = (0, 0);
    // From nothing to several segments' steps, in steps that are not those of the server.
    for level in (0..24).map(|n| n * n * 12_347) {
        let filler = leave(&disk, level);
        let lines = seq(1_000_000 + next, 1_000_000 + next + 39_999);
        let done = store.run("mq-send", &["-w0", "q"], &lines);
        let stored = store.number("q", "ready");
        if done.code == 0 {
            assert_eq!(stored, 40_000, "{level} bytes left");
        } else {
            refused += 1;
            let said = done.exits(75).stderr;
            let numbers = said.split(|c: char| !c.is_ascii_digit());
            let says = numbers.filter_map(|n| n.parse().ok()).any(|n: u64| n == stored);
            assert!(says, "{level} bytes left: {stored} are stored, and it says: {said}");
        }
        let out = store.receive("q");
        assert!(lines.starts_with(&out), "{level} bytes left: another beginning");
        assert_eq!(out.iter().filter(|b| **b == b'\n').count() as u64, stored);
        std::fs::remove_file(filler).expect("ours");
        eventually("sending works again", || {
            (store.run("mq-send", &["-w0", "q", "-m", "again"], b"").code == 0).then_some(())
        });
        assert_eq!(store.receive("q"), b"again\n");
        next += 40_000;
    }
    assert_eq!(store.server(), server, "the same server all the time");
    assert!(refused > 3, "only {refused} of the levels were too low");
    store.run("mq-admin", &["check"], b"").ok();
}

/// A server of which the n-th call of this kind fails, once; `None` where strace cannot.
fn serve_with_fault(store: &Store, call: &str, error: &str, n: u32) -> Option<Running> {
    if store.sh("strace -o /dev/null true").code != 0 {
        return None;
    }
    let script = format!(
        "exec strace -f -qq -o /dev/null -e trace={call} \
         -e inject={call}:error={error}:when={n} mq-serve"
    );
    let mut server = Running::start(store.shell(&script));
    eventually("the server answers, or could not begin", || {
        (server.has_ended() || Peer::connect(store).is_ok()).then_some(())
    });
    Some(server)
}

/// Sends lines, one command each, until one fails; how many succeeded.
fn send_until_it_fails(store: &Store, from: u64) -> u64 {
    for n in 0..40 {
        let line = (from + n).to_string();
        let mut command = store.command("mq-send", &["-w0", "q", "-m", &line]);
        command.env("MQ_NO_AUTOSTART", "1");
        if process::run(command, b"").code != 0 {
            return n;
        }
    }
    panic!("nothing failed");
}

/// What is stored after a fault: all that was confirmed, in order, and at most one more.
fn check_kept(store: &Store, what: &str, confirmed: u64) -> u64 {
    let out = store.run("mq-recv", &["--peek", "-e", "q"], b"").ok().stdout;
    let stored = out.iter().filter(|b| **b == b'\n').count() as u64;
    assert!(out == seq(1, stored), "{what}: not what was sent");
    assert!((confirmed..=confirmed + 1).contains(&stored), "{what}: {confirmed}, {stored} kept");
    store.run("mq-admin", &["check"], b"").ok();
    stored
}

/// G1, G12: the n-th sync, and the n-th write, of a real server fails. It confirms nothing more
/// and ends with an error; the next one has all that was confirmed.
#[test]
fn a_server_whose_disk_fails_confirms_nothing_and_ends() {
    let store = Store::new();
    store.send("q", b"1\n");
    let mut stored = 1;
    for (call, n) in
        [("fdatasync", 1), ("fdatasync", 2), ("fdatasync", 5), ("pwritev", 2), ("pwritev", 5)]
    {
        store.run("mq-admin", &["stop"], b"").ok();
        let what = format!("EIO of {call} number {n}");
        let Some(mut server) = serve_with_fault(&store, call, "EIO", n) else {
            return skip("a_server_whose_disk_fails_confirms_nothing_and_ends", "needs strace");
        };
        let confirmed = stored + send_until_it_fails(&store, stored + 1);
        assert_ne!(server.await_end(), 0, "G12: {what}: it ends with an error");
        let said = server.last_words();
        assert!(said.contains("sync") || said.contains("writ"), "{what}: it says {said:?}");
        stored = check_kept(&store, &what, confirmed);
        store.run("mq-admin", &["stop"], b"").ok();
    }
}

/// G10: the n-th write of a real server finds no room. That send is refused, and the next is not.
#[test]
fn a_write_that_finds_no_room_is_refused_and_leaves_nothing() {
    let store = Store::new();
    store.send("q", b"1\n");
    let mut stored = 1;
    for n in [1, 2, 4, 7] {
        store.run("mq-admin", &["stop"], b"").ok();
        let Some(server) = serve_with_fault(&store, "pwritev", "ENOSPC", n) else {
            let name = "a_write_that_finds_no_room_is_refused_and_leaves_nothing";
            return skip(name, "needs strace");
        };
        let confirmed = stored + send_until_it_fails(&store, stored + 1);
        assert_eq!(store.number("q", "ready"), confirmed, "write {n}: nothing of it is visible");
        // The same server goes on.
        let line = format!("{}\n", confirmed + 1);
        eventually("sending works again", || {
            (store.run("mq-send", &["-w0", "q"], line.as_bytes()).code == 0).then_some(())
        });
        store.run("mq-admin", &["stop"], b"").ok();
        server.finish().ok();
        stored = check_kept(&store, &format!("write {n}"), confirmed + 1);
    }
}
