//! A server that stores in memory and misbehaves as it is told, for tests of the client. It
//! speaks the real protocol over a real socket in a temporary store.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use mq::batch::{self, Framing, flags};
use mq::store::StoreDir;
use mq::units::{Count, Epoch, Micros, Offset, ProducerId, QueueId, Sequence, WallTime};
use mq::wire::{
    self, ErrorCode, FRAME_HEADER_BYTES, Fault, FrameHeader, Goodbye, PublishHead, Reply, Request,
    Sending, ServerInfo,
};

/// What a connection is in for; the default is a server that behaves.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Answers HELLO with this version.
    pub version: Option<u16>,
    /// Closes when it is asked to open a channel.
    pub close_at_open: bool,
    /// Reads and answers nothing.
    pub silent: bool,
    /// Sends these bytes instead of a WELCOME.
    pub garbage: Option<&'static [u8]>,
    /// Closes after this many PUBLISH frames, the last of which is not stored.
    pub close_before: Option<usize>,
    /// Closes after this many PUBLISH frames, the last of which is stored and not confirmed.
    pub close_after: Option<usize>,
    /// Stops in an orderly way after this many PUBLISH frames, all confirmed.
    pub goodbye_after: Option<usize>,
    /// Says that the disk is full instead of storing this PUBLISH frame and all later ones.
    pub full_at: Option<usize>,
    /// Confirms nothing until [`FakeServer::confirm`].
    pub hold: bool,
    /// Has room for so many messages in all, until [`FakeServer::confirm`]: what goes beyond is
    /// parked, and that is said.
    pub room: Option<usize>,
    /// Says so with its answer to OPEN_SEND, in one write, and not again.
    pub held_at_once: bool,
    /// Closes once something is parked.
    pub close_when_held: bool,
    /// Answers OPEN_SEND with this fault.
    pub refuse: Option<ErrorCode>,
}

/// What the server has stored.
#[derive(Debug, Default)]
pub struct Stored {
    /// The messages in order.
    pub messages: Vec<Vec<u8>>,
    /// The producer's last sequence.
    pub last: Sequence,
    /// What came last as an annex, and under which producer.
    pub annex: Option<Vec<u8>>,
    /// See above.
    pub producer: Option<ProducerId>,
    /// PUBLISH frames that came, repeated ones too.
    pub frames: usize,
    /// Bytes of payload that came.
    pub bytes: usize,
    /// Connections that came.
    pub connections: usize,
    /// Held confirmations may go.
    released: bool,
    large: Vec<u8>,
}

type Shared = Arc<(Mutex<Stored>, Condvar)>;

pub struct FakeServer {
    pub store: PathBuf,
    stored: Shared,
    thread: Option<JoinHandle<()>>,
    temp: Option<tempfile::TempDir>,
}

impl FakeServer {
    /// Serves one connection after another, as the scripts say, then behaves.
    pub fn start(scripts: impl IntoIterator<Item = Script>) -> FakeServer {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let path = temp.path().join("store");
        let mut server = FakeServer::start_in(&path, scripts);
        server.temp = Some(temp);
        server
    }

    pub fn start_in(path: &Path, scripts: impl IntoIterator<Item = Script>) -> FakeServer {
        let store = StoreDir::open(path, true).expect("a store");
        let listener = UnixListener::bind(store.socket_address()).expect("bound");
        let stored = Shared::default();
        let mut scripts: VecDeque<Script> = scripts.into_iter().collect();
        let shared = stored.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("accepted");
                let script = scripts.pop_front().unwrap_or_default();
                shared.0.lock().expect("not poisoned").connections += 1;
                let connection =
                    Connection { stream, script, shared: shared.clone(), parked: Vec::new() };
                if connection.serve() {
                    return;
                }
            }
        });
        FakeServer { store: path.to_path_buf(), stored, thread: Some(thread), temp: None }
    }

    /// Waits until what is stored is as wanted, at most ten seconds.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Stored) -> bool) {
        let guard = self.stored.0.lock().expect("not poisoned");
        let patience = Duration::from_secs(10);
        let (guard, timeout) = self
            .stored
            .1
            .wait_timeout_while(guard, patience, |stored| !wanted(stored))
            .expect("ok");
        assert!(
            !timeout.timed_out(),
            "{what} did not come: {} messages, {} frames",
            guard.messages.len(),
            guard.frames
        );
    }

    pub fn with<T>(&self, look: impl FnOnce(&Stored) -> T) -> T {
        look(&self.stored.0.lock().expect("not poisoned"))
    }

    /// Lets held confirmations go.
    pub fn confirm(&self) {
        self.stored.0.lock().expect("not poisoned").released = true;
        self.stored.1.notify_all();
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.confirm();
        // A connection that says STOP ends the thread.
        let store = StoreDir::open(&self.store, false).expect("the store");
        let Ok(mut stream) = UnixStream::connect(store.socket_address()) else { return };
        let mut stop = Vec::new();
        Request::Stop.encode(0, &mut stop);
        let _ = stream.write_all(&stop);
        let result = self.thread.take().expect("running").join();
        assert!(std::thread::panicking() || result.is_ok(), "the fake server panicked");
    }
}

struct Connection {
    stream: UnixStream,
    script: Script,
    shared: Shared,
    /// PUBLISH frames for which there was no room.
    parked: Vec<(PublishHead, Vec<u8>)>,
}

impl Connection {
    /// Serves until it ends; true when it said STOP.
    fn serve(mut self) -> bool {
        if self.script.silent {
            self.script.silent = false;
            let mut byte = [0u8; 4096];
            while self.stream.read(&mut byte).is_ok_and(|n| n > 0) {}
            return false;
        }
        let mut published = 0;
        while let Some((header, body)) = self.read_frame() {
            match Request::decode(&header, &body).expect("a client sends what it should") {
                Request::Hello { .. } => self.welcome(),
                Request::Stop => return true,
                Request::OpenSend(_) if self.script.close_at_open => return false,
                Request::OpenSend(open) => match self.script.refuse {
                    Some(code) => self.fault(header.channel, code),
                    None => {
                        let resumed = open.resume.map_or(Sequence(0), |resume| resume.confirmed);
                        let (last, annex) = {
                            let mut stored = self.shared.0.lock().expect("not poisoned");
                            // What was staged went with its connection.
                            stored.large.clear();
                            if open.named && stored.producer != Some(open.producer) {
                                assert_eq!(stored.producer, None, "another producer");
                                stored.producer = Some(open.producer);
                            }
                            (stored.last, stored.annex.clone().filter(|_| open.named))
                        };
                        assert!(resumed <= last);
                        let mut answer = Vec::new();
                        sending(last, annex).encode(header.channel, &mut answer);
                        if self.script.held_at_once {
                            no_room().encode(header.channel, &mut answer);
                        }
                        // The client may have gone.
                        let _ = self.stream.write_all(&answer);
                    }
                },
                Request::Publish(head, payload) => {
                    published += 1;
                    if !self.publish(header.channel, &head, payload, published) {
                        return false;
                    }
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        false
    }

    fn publish(&mut self, channel: u16, head: &PublishHead, payload: &[u8], nth: usize) -> bool {
        if self.script.close_before == Some(nth) {
            return false;
        }
        if self.script.full_at.is_some_and(|at| nth >= at) {
            // Later frames came before the sender could know.
            if self.script.full_at == Some(nth) {
                self.fault(channel, ErrorCode::Full);
            }
            return true;
        }
        if self.lacks_room_for(channel, head, payload) {
            return !self.script.close_when_held;
        }
        store(&self.shared, head, payload);
        if self.script.close_after == Some(nth) {
            return false;
        }
        if self.script.hold {
            let guard = self.shared.0.lock().expect("not poisoned");
            if !guard.released {
                return true;
            }
        }
        if !head.more {
            self.reply(channel, &Reply::Confirm(head.sequence, Offset(head.sequence.0), Count(0)));
        }
        if self.script.goodbye_after == Some(nth) {
            let goodbye = Goodbye { reason: "stopped".to_owned(), orderly: true };
            self.reply(0, &Reply::Goodbye(goodbye));
            return false;
        }
        true
    }

    /// Stores as much as there is room for, and parks the batch if that is not all.
    fn lacks_room_for(&mut self, channel: u16, head: &PublishHead, payload: &[u8]) -> bool {
        let Some(room) = self.script.room else { return false };
        let last = self.shared.0.lock().expect("not poisoned").last;
        if head.sequence <= last {
            return false;
        }
        let first = head.sequence.0 - u64::from(head.count) + 1;
        let fits = (room as u64).min(head.sequence.0);
        if fits == head.sequence.0 && self.parked.is_empty() {
            return false;
        }
        if fits >= first && self.parked.is_empty() {
            let count = fits - first + 1;
            let bytes = batch::bytes_of_messages(head.framing, payload, count).expect("announced");
            let part = PublishHead { sequence: Sequence(fits), count: count as u32, ..*head };
            store(&self.shared, &part, &payload[..bytes]);
            self.reply(channel, &Reply::Confirm(Sequence(fits), Offset(fits), Count(0)));
        }
        if self.parked.is_empty() && !self.script.held_at_once {
            self.reply(channel, &no_room());
        }
        self.parked.push((*head, payload.to_vec()));
        true
    }

    fn welcome(&mut self) {
        if let Some(garbage) = self.script.garbage {
            let _ = self.stream.write_all(garbage);
            return;
        }
        let server = ServerInfo {
            version: "0.0.0-fake".to_owned(),
            pid: std::process::id(),
            producer_retry: Micros::from_secs(600),
            cannot: Vec::new(),
        };
        let version = self.script.version.unwrap_or(wire::VERSION);
        self.reply(0, &Reply::Welcome(version, server));
    }

    fn fault(&mut self, channel: u16, code: ErrorCode) {
        let fault = Fault::new(code, format!("refused: {code:?}"));
        self.reply(channel, &Reply::Error(fault));
    }

    fn reply(&mut self, channel: u16, reply: &Reply<'_>) {
        let mut bytes = Vec::new();
        reply.encode(channel, &mut bytes);
        // The client may have gone.
        let _ = self.stream.write_all(&bytes);
    }

    /// Held confirmations are sent when they are let go, even if nothing more comes in.
    fn read_frame(&mut self) -> Option<(FrameHeader, Vec<u8>)> {
        if self.script.hold || self.script.room.is_some() {
            self.stream.set_read_timeout(Some(Duration::from_millis(10))).expect("set");
        }
        let mut header = [0u8; FRAME_HEADER_BYTES];
        self.read_exact(&mut header)?;
        let header = FrameHeader::decode(&header).expect("a client sends what it should");
        let mut body = vec![0; header.length as usize];
        self.read_exact(&mut body)?;
        Some((header, body))
    }

    fn read_exact(&mut self, mut into: &mut [u8]) -> Option<()> {
        while !into.is_empty() {
            match self.stream.read(into) {
                Ok(0) => return None,
                Ok(bytes) => into = &mut into[bytes..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.let_go(),
                Err(_) => return None,
            }
        }
        Some(())
    }

    fn let_go(&mut self) {
        if !std::mem::take(&mut self.shared.0.lock().expect("not poisoned").released) {
            return;
        }
        self.script.room = None;
        for (head, payload) in std::mem::take(&mut self.parked) {
            store(&self.shared, &head, &payload);
        }
        let last = self.shared.0.lock().expect("not poisoned").last;
        self.script.hold = false;
        self.reply(1, &Reply::Confirm(last, Offset(last.0), Count(0)));
    }
}

fn no_room() -> Reply<'static> {
    Reply::Held(Fault::new(ErrorCode::Full, "the queue is full".to_owned()))
}

fn sending(last: Sequence, annex: Option<Vec<u8>>) -> Reply<'static> {
    Reply::Sending(Sending {
        annex,
        queue_id: QueueId::from_bytes([7; 16]),
        last,
        epoch: Epoch(1),
        opened: WallTime(1),
    })
}

/// Stores what comes next, once, and checks it as a server must. A batch of which the beginning
/// was stored is stored from there on.
fn store(shared: &Shared, head: &PublishHead, payload: &[u8]) {
    let mut stored = shared.0.lock().expect("not poisoned");
    stored.frames += 1;
    stored.bytes += payload.len();
    let mut messages = payload;
    if head.batch_flags & flags::ANNEX != 0 {
        let (length, behind) = payload.split_first_chunk::<4>().expect("an annex");
        let (annex, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
        stored.annex = Some(annex.to_vec());
        messages = behind;
    }
    if head.sequence > stored.last {
        let first = head.sequence.0 + 1 - u64::from(head.count);
        assert!(first <= stored.last.0 + 1, "a gap");
        let mut whole = std::mem::take(&mut stored.large);
        whole.extend_from_slice(messages);
        if head.more {
            assert_eq!(head.framing, Framing::Records);
            stored.large = whole;
        } else {
            batch::check_messages(head.framing, &whole, head.count).expect("as announced");
            let there = (stored.last.0 + 1 - first) as usize;
            let bodies = batch::bodies(head.framing, &whole).skip(there).map(<[u8]>::to_vec);
            stored.messages.extend(bodies);
            stored.last = head.sequence;
        }
    }
    shared.1.notify_all();
}
