//! G12 on the real binary: a disk that fails to sync. strace makes the system calls fail.

use crate::harness::{Running, Store, eventually, peer::Peer, process, skip};
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

#[test]
fn a_disk_that_says_it_is_full_is_answered_and_tried_again() {
    let store = Store::new();
    store.send("q", &seq(0, 100));
    // Someone has received from it before: a first receiver's group needs room of its own.
    store.run("mq-recv", &["-n1", "q"], b"").ok();
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
    assert!(crate::numbers(&done.stderr).contains(&(stored - 100)), "{}", done.stderr);
    assert!(store.receive("q").starts_with(&seq(1, 100)), "receiving goes on");
}
