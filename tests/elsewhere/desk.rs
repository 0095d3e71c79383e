//! The desk: the real tools with a real store, and the engine in memory behind every URL.
//!
//! What stands in for `mq-remote` is this very test program, started once more with one of its tests, `errand`:
//! that hands its stdin, the socket to the tool, to the session in the process of the test, and lives as
//! long as that does.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use mq::client::helper::URL_VARIABLE;
use mq::remote::session::Opening;
use mq::url::Url;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::harness::bench::Bench;
use crate::memory::Broker;
use crate::stand::serve;

/// Where the errand goes.
const DESK_VARIABLE: &str = "MQ_TEST_DESK";

/// Tools, a store, and an engine.
pub struct Desk {
    pub bench: Bench,
    pub broker: Broker,
    name: String,
}

impl Desk {
    /// For the test of this name.
    pub fn new(test: &str) -> Desk {
        let program = std::env::current_exe().expect("our own path");
        let script = format!(
            r#"export {DESK_VARIABLE}="$(dirname "$0")/desk" MQ_TEST_ARGS="$*"
exec '{}' --exact desk::errand --nocapture"#,
            program.display()
        );
        let bench = Bench::new(Some(&script));
        let listener = UnixListener::bind(bench.file("desk")).expect("bound");
        std::thread::spawn(move || {
            // Ends with the process.
            for stream in listener.incoming() {
                let stream = stream.expect("an errand");
                std::thread::spawn(move || attend(stream));
            }
        });
        Desk { bench, broker: Broker::named(test), name: test.to_owned() }
    }

    /// The address of a queue, or of one with options.
    pub fn url(&self, queue: &str) -> String {
        format!("mem://me:secret@{}/{queue}", self.name)
    }
}

/// Serves the tool that sent an errand.
fn attend(mut errand: UnixStream) {
    let socket = take_descriptor(&errand);
    let mut said = String::new();
    let mut length = [0];
    errand.read_exact(&mut length).expect("a length");
    (&errand).take(u64::from(length[0])).read_to_string(&mut said).expect("what it says");
    let (url, args) = said.split_once('\n').expect("two lines");
    let mut words = args.split_whitespace();
    let wait = words.find(|word| *word == "--wait").and_then(|_| words.next()).map(|wait| {
        let wait = wait.strip_suffix("ms").expect("ms");
        Duration::from_millis(wait.parse().expect("a number"))
    });
    let is_quiet = args.split_whitespace().any(|word| word == "--quiet");
    let url = Url::new(url).expect("a URL");
    serve(socket.into(), Opening { url, wait, is_quiet });
}

fn take_descriptor(errand: &UnixStream) -> OwnedFd {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    recvmsg(errand, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).expect("received");
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    rights.expect("a descriptor")
}

/// No test, but what a tool starts as `mq-remote`.
#[test]
fn errand() {
    let Some(desk) = std::env::var_os(DESK_VARIABLE) else { return };
    let mut errand = UnixStream::connect(desk).expect("the desk");
    let stdin = rustix::stdio::stdin();
    let descriptors = [stdin.as_fd()];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "one fits");
    sendmsg(&errand, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).expect("sent");
    let variable = |name| std::env::var(name).expect("it is told");
    let said = format!("{}\n{}", variable(URL_VARIABLE), variable("MQ_TEST_ARGS"));
    errand.write_all(&[said.len() as u8]).expect("sent");
    errand.write_all(said.as_bytes()).expect("sent");
    // Until the session has ended.
    let _ = errand.read(&mut [0]);
}
