//! G16 against those who try: links, groups, locks, descriptors, lengths and floods. What other
//! users are told is in `stores.rs`.

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};

use mq::limits;
use mq::wire::{Admin, Kind, Request};
use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Uid};
use rustix::process::Pid;

use crate::harness::{Store, eventually, is_root, peer::Peer, skip};
use crate::stores::{Nobody, set_mode};

fn entries(pid: Pid, what: &str) -> usize {
    let dir = format!("/proc/{}/{what}", pid.as_raw_nonzero());
    std::fs::read_dir(dir).expect("the server runs").count()
}

fn peak_kib(pid: Pid) -> u64 {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = std::fs::read_to_string(path).expect("the server runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux has it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Where messages go is decided by us, not by somebody's link in a directory that all can write.
#[test]
fn another_users_link_does_not_choose_the_store() {
    const NAME: &str = "another_users_link_does_not_choose_the_store";
    if !is_root() {
        return skip(NAME, "needs root to give a link away");
    }
    let store = Store::new();
    store.send("q", b"a\n");
    let link = store.beside("link");
    symlink(store.path(), &link).expect("room");
    let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
    rustix::fs::chownat(CWD, &link, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .expect("root may");
    for command in ["mq-send --dir link q -m b", "mq-recv --dir link -e q", "mq-serve --dir link"] {
        let done = store.sh(command);
        assert_ne!(done.code, 0, "{command}");
        done.says("link").says("65534");
    }
    assert_eq!(store.receive("q"), b"a\n", "nothing was touched");
    // One into nothing, where a store would be made.
    std::fs::remove_file(&link).expect("root may");
    symlink(store.beside("elsewhere"), &link).expect("room");
    rustix::fs::chownat(CWD, &link, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .expect("root may");
    assert_ne!(store.sh("mq-send --dir link q -m b").code, 0);
    assert!(!store.beside("elsewhere").exists());
}

/// With the most careless umask, and everything in the store that there can be.
#[test]
fn nothing_in_a_store_is_open_to_others_under_any_umask() {
    let store = Store::new();
    let script = "umask 000; mq-send q -m x; mq-send --delay 1h q -m late; mq-recv -n1 q >copy; \
        mq-admin group add q g; mq-admin declare --unique-ids 1000 u; \
        mq-pipe -e --state ./state g out -- true; mq-admin stop";
    store.sh(script).ok();
    let mut files = vec![store.path().to_owned()];
    while let Some(path) = files.pop() {
        let metadata = std::fs::symlink_metadata(&path).expect("it is there");
        assert_eq!(metadata.mode() & 0o077, 0, "{} is open", path.display());
        if metadata.is_dir() {
            files.extend(std::fs::read_dir(&path).expect("ours").map(|e| e.expect("ours").path()));
        }
    }
    assert!(store.path().join("queues/q/delayed").exists(), "there was something to look at");
}

/// The same group is nothing special: neither with the mode that a store has, nor with one that
/// lets the group in.
#[test]
fn a_user_of_the_same_group_is_kept_out() {
    const NAME: &str = "a_user_of_the_same_group_is_kept_out";
    let store = Store::new();
    let _server = store.serve();
    store.send("q", b"a\n");
    let nobody = Nobody::new(&store);
    if !is_root() || !nobody.can_run() {
        return skip(NAME, "needs root and setpriv to become another user");
    }
    let gid = std::fs::metadata(store.path()).expect("ours").gid();
    for mode in [0o700, 0o770] {
        set_mode(store.path(), mode).expect("ours");
        let user = format!("setpriv --reuid 65534 --regid {gid} --clear-groups");
        for tool in ["mq-send -w0 q -m b", "mq-recv -e -w0 q", "mq-admin -w0 ls"] {
            let done = store.sh(&format!("{user} bin/{tool}"));
            assert_ne!(done.code, 0, "{tool} with mode {mode:o}");
            assert!(done.stdout.is_empty() && !done.stderr.is_empty(), "{tool}: {}", done.stderr);
        }
    }
    set_mode(store.path(), 0o700).expect("ours");
    assert_eq!(store.receive("q"), b"a\n");
}

/// Links that stand where a store has its own files would make the server write elsewhere.
#[test]
fn a_link_in_the_place_of_a_file_of_the_store_is_not_followed() {
    for name in ["lock", "server.log", "version", "version.new"] {
        let store = Store::new();
        std::fs::create_dir(store.path()).expect("room");
        set_mode(store.path(), 0o700).expect("ours");
        let victim = store.beside("victim");
        std::fs::write(&victim, "precious").expect("room");
        symlink(&victim, store.path().join(name)).expect("room");
        let done = store.run("mq-send", &["-w", "3s", "q", "-m", "b"], b"");
        assert_ne!(done.code, 0, "{name}");
        done.says(name.trim_end_matches(".new"));
        assert_eq!(std::fs::read(&victim).expect("ours"), b"precious");
    }
}

/// A lock that no server of ours holds: said within the patience, and nothing is touched.
#[test]
fn a_lock_that_a_stranger_holds_is_said() {
    let store = Store::new();
    store.send("q", b"a\n");
    store.run("mq-admin", &["stop"], b"").ok();
    let held = std::fs::File::open(store.path()).expect("ours");
    rustix::fs::flock(&held, FlockOperation::LockExclusive).expect("nobody has it");
    let send = &["-w", "1s", "q", "-m", "b"];
    for (tool, args, status) in [("mq-serve", &[][..], 75), ("mq-send", send, 69)] {
        let done = store.run(tool, args, b"").exits(status);
        done.says("locked by a process that is no mq-serve");
    }
    drop(held);
    assert_eq!(store.receive("q"), b"a\n");
}

/// What is passed along with bytes would stay open in the server, as long as it runs.
#[test]
fn descriptors_that_a_client_passes_along_are_not_kept() {
    let store = Store::new();
    let _server = store.serve();
    let pid = store.server().expect("it runs");
    let mut peer = Peer::connect(&store).expect("the server answers");
    let before = entries(pid, "fd");
    let file = std::fs::File::open("/dev/null").expect("it is there");
    let passed = vec![file.as_fd(); 200];
    for channel in 1..=8 {
        let mut bytes = Vec::new();
        Request::Admin(Admin::List { after: None }).encode(channel, &mut bytes);
        peer.raw_with_descriptors(&bytes, &passed).expect("the server listens");
        assert_eq!(peer.frame().header.kind, Kind::Reply);
        assert!(entries(pid, "fd") <= before, "nothing more is open");
    }
}

/// Announced bytes cost nothing before they are there.
#[test]
fn huge_declared_lengths_take_no_memory() {
    let store = Store::new();
    let _server = store.serve();
    store.send("q", b"a\n");
    let pid = store.server().expect("it runs");
    let before = peak_kib(pid);
    let announce = |length: u32| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[Kind::Publish as u8, 0, 1, 0]);
        bytes
    };
    // The longest that is allowed, of which only the header comes.
    let mut patient = Vec::new();
    for _ in 0..200 {
        let mut peer = Peer::connect(&store).expect("the server answers");
        peer.raw(&announce(limits::FRAME_BODY_BYTES_MAX as u32)).expect("the server listens");
        patient.push(peer);
    }
    // One more byte, and as many as can be said, end the connection.
    for length in [limits::FRAME_BODY_BYTES_MAX as u32 + 1, u32::MAX] {
        let mut peer = Peer::connect(&store).expect("the server answers");
        peer.raw(&announce(length)).expect("the server listens");
        let said = peer.await_hang_up().expect("a word why");
        assert!(said.contains("longer than the limit"), "{said}");
    }
    assert_eq!(store.receive("q"), b"a\n", "others are served");
    let grown = peak_kib(pid) - before;
    assert!(grown < 16 << 10, "200 announced megabytes took {grown} KiB");
}

/// Those who are connected go on; who comes too many is told, and has room when others went.
#[test]
fn a_flood_of_connections_is_told_where_it_ends() {
    let store = Store::new();
    let _server = store.serve();
    store.send("q", b"a\n");
    let mut sender = store.spawn("mq-send", &["-T", "q"]);
    sender.write(b"b\n");
    assert_eq!(sender.line().as_deref(), Some("b"));
    let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if allowed.is_some_and(|n| n < limits::CONNECTIONS_MAX as u64 + 200) {
        return skip("a_flood_of_connections...", "needs more descriptors than ulimit -n allows");
    }
    let mut flood = Vec::new();
    // Whoever is refused may be hung up on before it has said its first word.
    while let Ok(peer) = Peer::connect(&store) {
        flood.push(peer);
        assert!(flood.len() <= limits::CONNECTIONS_MAX, "more connections than the limit");
    }
    let mut peer = Peer::silent(&store).expect("it is accepted, to be told");
    let refused = peer.await_hang_up().expect("a word why");
    assert!(refused.contains("connections"), "{refused}");
    sender.write(b"c\n");
    assert_eq!(sender.line().as_deref(), Some("c"), "who is connected goes on");
    drop(flood);
    sender.finish().ok();
    eventually("there is room again", || Peer::connect(&store).ok());
    assert_eq!(store.receive("q"), b"a\nb\nc\n");
}
