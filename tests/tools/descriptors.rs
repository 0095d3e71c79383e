//! A server that is allowed few open files: it says so to those for whom there is none.

use std::io;

use mq::wire::{Admin, Kind, Reply, Request};

use crate::harness::{Running, Store, eventually, peer::Peer};
use crate::seq;

/// A server that may have so many files open.
fn serve_with(store: &Store, descriptors: u32) -> Running {
    // Others that a shell was given may not count against the server.
    let script = format!("ulimit -n {descriptors}; exec 250>&- 251>&- mq-serve");
    let mut server = Running::start(store.shell(&script));
    eventually("the server answers", || {
        assert!(!server.has_ended(), "{}", server.stderr());
        Peer::connect(store).ok()
    });
    server
}

/// A client is accepted, told why it is not served, and hung up on.
#[track_caller]
fn refused(store: &Store) {
    let mut peer = Peer::silent(store).expect("a connection");
    let said = peer.await_hang_up().expect("a word why");
    assert!(said.contains("limit of open files"), "{said}");
}

/// Connections were not accepted then: their clients waited for nothing until the handshake's
/// deadline, while the server tried again five times a second.
#[test]
fn whoever_finds_no_descriptor_is_told_and_the_others_go_on() {
    let store = Store::new();
    let server = serve_with(&store, 24);
    store.send("q", &seq(1, 3));
    let mut peers = Vec::new();
    while let Ok(peer) = Peer::connect(&store) {
        peers.push(peer);
        assert!(peers.len() < 24, "more connections than descriptors");
    }
    refused(&store);
    store.run("mq-send", &["-w0", "q", "-m", "x"], b"").exits(75).says("limit of open files");
    for peer in &mut peers {
        peer.say(1, &Request::Admin(Admin::List { after: None })).expect("the server listens");
        assert_eq!(peer.frame().header.kind, Kind::Reply, "who is connected goes on");
    }
    drop(peers);
    let peer: io::Result<Peer> =
        eventually("there is room again", || Some(Peer::connect(&store)).filter(io::Result::is_ok));
    drop(peer);
    assert_eq!(store.receive("q"), seq(1, 3));
    assert!(!server.stderr().contains("cannot accept"), "{}", server.stderr());
}

/// Files of queues take what connections leave, so that the very last descriptor may be gone.
#[test]
fn the_descriptor_kept_back_is_for_telling_so() {
    let store = Store::new();
    let mut server = serve_with(&store, 24);
    let mut peer = Peer::connect(&store).expect("the server answers");
    // Queues until one cannot be made.
    for n in 1u16.. {
        assert!(n < 24, "more queues than descriptors");
        let queue = format!("q{n}").parse().expect("a name");
        let declare = Admin::Declare { queue, wanted: Default::default(), change: false };
        peer.say(n, &Request::Admin(declare)).expect("the server listens");
        let answer = peer.frame();
        if let Reply::Error(fault) = answer.reply() {
            assert!(fault.message.contains("Too many open files"), "{}", fault.message);
            // "syncing : Too many open files" it said once.
            assert!(!fault.message.contains(" :"), "something without a name: {}", fault.message);
            break;
        }
    }
    for _ in 0..3 {
        refused(&store);
    }
    server.await_stderr("connections are refused");
    assert_eq!(server.stderr().matches("connections are refused").count(), 1);
}
