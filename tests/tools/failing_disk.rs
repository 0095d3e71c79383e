//! G12 on the real binary: a disk that fails to sync. strace makes the system calls fail.

use mq::wire::{Kind, OpenReceive, ReceiveMode, Request};

use crate::harness::{Running, Store, eventually, peer::Peer, process, skip, tool};
use crate::seq;

/// A server whose `call` fails with `error` from its n-th time on; `None` where strace cannot.
fn serve_with_fault(store: &Store, call: &str, error: &str, from: u32) -> Option<Running> {
    if store.sh("strace -o /dev/null true").code != 0 {
        return None;
    }
    let script = format!(
        "exec strace -f -qq -o /dev/null -e trace={call} \
         -e inject={call}:error={error}:when={from}+ mq-serve"
    );
    let mut server = Running::start(store.shell(&script));
    eventually("the server answers", || {
        assert!(!server.has_ended(), "{}", server.stderr());
        Peer::connect(store).ok()
    });
    Some(server)
}

fn send_alone(store: &Store, text: &str) -> process::Done {
    let mut command = store.command("mq-send", &["-w", "1s", "q", "-m", text]);
    command.env("MQ_NO_AUTOSTART", "1");
    process::run(command, b"")
}

#[test]
fn a_failed_sync_confirms_nothing_and_ends_the_server() {
    let store = Store::new();
    store.send("q", &seq(1, 100));
    store.run("mq-admin", &["stop"], b"").ok();
    let Some(mut server) = serve_with_fault(&store, "fdatasync", "EIO", 1) else {
        return skip("a_failed_sync_confirms_nothing_and_ends_the_server", "needs strace");
    };
    let done = send_alone(&store, "unsafe");
    assert_ne!(done.code, 0, "it was not synced");
    assert!(!done.stderr.is_empty());
    assert_ne!(server.await_end(), 0, "the server ends with an error");
    assert!(server.stderr().contains("sync"), "and says why: {}", server.stderr());
    let out = store.receive("q");
    assert!(out == seq(1, 100) || out == [seq(1, 100), b"unsafe\n".to_vec()].concat());
}

/// Servers that end one after the other used to be "the connection was lost", without a reason.
#[test]
fn a_sender_says_what_ends_one_server_after_the_other() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    store.run("mq-admin", &["stop"], b"").ok();
    if store.sh("strace -o /dev/null true").code != 0 {
        return skip("a_sender_says_what_ends_one_server_after_the_other", "needs strace");
    }
    // A client starts the server that lies beside it. It asks three sockets whether they are some
    // (for signals), says WELCOME, and dies over what comes next.
    std::fs::create_dir(store.beside("bin")).expect("room");
    std::fs::copy(tool("mq-send"), store.beside("bin/mq-send")).expect("room");
    let script = format!(
        "#!/bin/sh\nexec strace -f -qq -o /dev/null -e trace=sendto \\\n  \
         -e inject=sendto:signal=KILL:when=5 {} \"$@\"\n",
        tool("mq-serve").display()
    );
    // By a shell: a file that another test's child still has open for writing cannot be run.
    let mut write = store.shell("cat > bin/mq-serve && chmod 700 bin/mq-serve");
    write.current_dir(store.beside(""));
    process::run(write, script.as_bytes()).ok();
    let done = store.sh("bin/mq-send -w 1s q -m x").exits(69);
    done.says("one server after the other ends").says("server.log").says("queues recovered");
}

#[test]
fn a_disk_that_says_it_is_full_is_answered_and_tried_again() {
    let store = Store::new();
    store.send("q", &seq(0, 100));
    store.run("mq-admin", &["stop"], b"").ok();
    // Reserving space fails as on a full disk; everything else works.
    let Some(_server) = serve_with_fault(&store, "fallocate", "ENOSPC", 1) else {
        return skip("a_disk_that_says_it_is_full...", "needs strace");
    };
    // More than was reserved before the stop.
    let mut command = store.command("mq-send", &["q"]);
    command.env("MQ_NO_AUTOSTART", "1");
    let done = process::run(command, &seq(1_000_000, 1_500_000)).exits(75);
    let stored = store.number("q", "ready");
    assert!(crate::numbers(&done.stderr).contains(&(stored - 101)), "{}", done.stderr);
    assert!(store.receive("q").starts_with(&seq(0, 100)), "receiving goes on");
}

fn receive_on(peer: &mut Peer, channel: u16, queue: &str) {
    let open = OpenReceive::new(
        queue.parse().expect("a name"),
        "default".parse().expect("a name"),
        ReceiveMode::Take,
    );
    peer.say(channel, &Request::OpenReceive(open)).expect("the server listens");
    peer.frame_of(Kind::Receiving);
}

/// Every queue that the connection received from used to stand still, the sound ones as well.
#[test]
fn a_segment_that_cannot_be_read_stops_its_own_queue_only() {
    let store = Store::new();
    let _server = store.serve();
    for queue in ["sound", "cut"] {
        store.send(queue, &seq(1_000_000, 1_020_000));
    }
    let mut peer = Peer::connect(&store).expect("the server answers");
    receive_on(&mut peer, 1, "sound");
    receive_on(&mut peer, 2, "cut");
    let segment = std::fs::read_dir(store.path().join("queues/cut"))
        .expect("the queue is there")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.extension().is_some_and(|end| end == "seg"))
        .expect("a segment");
    let file = std::fs::File::options().write(true).open(segment).expect("ours");
    file.set_len(64 << 10).expect("shorter");
    peer.say(2, &Request::Credit(1_000_000)).expect("the server listens");
    // Once, the connection stayed, and whoever had a part of a frame waited for its rest without end.
    let last = std::iter::repeat_with(|| peer.hear()).find(|heard| !matches!(heard, Ok(Some(_))));
    let ends = |error: &std::io::Error| error.kind() == std::io::ErrorKind::UnexpectedEof;
    let ended = last.is_some_and(|last| last.map_or_else(|error| ends(&error), |_| true));
    assert!(ended, "the connection ends in the midst of a frame");
    store.run("mq-recv", &["-e", "cut"], b"").exits(1).says("the file is shorter than it was");
    assert_eq!(store.receive("sound"), seq(1_000_000, 1_020_000));
}
