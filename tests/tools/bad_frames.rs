//! G15 and G17: a peer that talks nonsense, or not at all, ends its own connection and nothing
//! else.

use std::time::{Duration, Instant};

use mq::batch::{Framing, Record, push_attribute, tags};
use mq::units::{Monotonic, Offset, OffsetRange, ProducerId, Sequence};
use mq::wire::{
    ErrorCode, FRAME_HEADER_BYTES, FrameHeader, Kind, OpenReceive, OpenSend, PublishHead,
    ReceiveMode, Reply, Request,
};

use crate::harness::peer::{Frame, Peer};
use crate::harness::{Random, Running, Store};
use crate::seq;

/// A server with a sender and a receiver at work, who must not notice anything.
struct Witness {
    // In the order in which they end: a client that outlived its server would start another.
    sender: Running,
    receiver: Running,
    count: u64,
    _server: Running,
    store: Store,
}

impl Witness {
    fn new() -> Witness {
        let store = Store::new();
        let server = store.serve();
        let sender = store.spawn("mq-send", &["witness"]);
        let receiver = store.spawn("mq-recv", &["witness"]);
        let mut witness = Witness { sender, receiver, count: 0, _server: server, store };
        witness.notices_nothing();
        witness
    }

    /// A line through both connections that were there before.
    #[track_caller]
    fn notices_nothing(&mut self) {
        self.count += 1;
        self.sender.write(&seq(self.count, self.count));
        assert_eq!(self.receiver.line(), Some(self.count.to_string()));
    }

    fn open_sender(&self, channel: u16) -> Peer {
        let mut peer = Peer::connect(&self.store).expect("the server answers");
        let open = OpenSend::new("q".parse().expect("a name"), ProducerId(77));
        peer.say(channel, &Request::OpenSend(open)).expect("the server listens");
        peer.frame_of(Kind::Sending);
        peer
    }
}

fn frame(kind: u8, channel: u16, length: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[kind, 0]);
    bytes.extend_from_slice(&channel.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn whole(kind: u8, channel: u16, body: &[u8]) -> Vec<u8> {
    frame(kind, channel, body.len() as u32, body)
}

#[test]
fn strangers_are_hung_up_on() {
    let mut witness = Witness::new();
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        vec![0; 64],
        vec![0xff; 64],
        whole(0x01, 0, b"not the magic word"),
        whole(0x01, 0, b"short"),
        frame(0x01, 0, u32::MAX, b""),
        frame(0x01, 0, 2_000_000, b""),
        // Anything but HELLO or STOP before HELLO.
        whole(0x10, 1, br#"{"verb":"list"}"#),
        whole(0x31, 1, &[0; 8]),
    ] {
        let mut peer = Peer::silent(&witness.store).expect("a connection");
        let _ = peer.raw(&bytes);
        peer.await_hang_up();
        witness.notices_nothing();
    }
}

#[test]
fn malformed_frames_end_their_connection_with_a_reason() {
    let mut witness = Witness::new();
    for bytes in [
        whole(0x77, 1, b""),
        frame(0x21, 1, 8_000_000, b""),
        // Frames that only a server sends.
        whole(0x81, 0, b"mq wire\n\x01\0{}"),
        whole(0xa1, 1, &[0; 16]),
        whole(0xb1, 1, &[0; 32]),
        // JSON that is none, or not what it should be.
        whole(0x10, 1, b"{"),
        whole(0x10, 1, br#"{"verb":"no-such-verb"}"#),
        whole(0x10, 1, br#"{"verb":"show","queue":"../etc"}"#),
        whole(0x20, 2, br#"{"queue":"q"}"#),
        // Bodies of the wrong size or with impossible values.
        whole(0x31, 1, &[0; 7]),
        whole(0x32, 1, &[1; 17]),
        whole(0x33, 1, &[9; 16]),
        whole(0x34, 1, &[0; 3]),
        whole(0x3f, 1, b"x"),
        whole(0x21, 1, b"short"),
    ] {
        let mut peer = witness.open_sender(1);
        let _ = peer.raw(&bytes);
        let said = peer.await_hang_up();
        assert!(said.is_some_and(|text| !text.is_empty()), "no reason for {bytes:02x?}");
        witness.notices_nothing();
    }
}

#[test]
fn a_payload_that_is_not_what_it_says_is_not_stored() {
    let mut witness = Witness::new();
    let head = PublishHead {
        sequence: Sequence(2),
        count: 2,
        framing: Framing::Delimited(b'\n'),
        batch_flags: 0,
        read: Monotonic(0),
        more: false,
    };
    for (head, payload) in [
        (head, &b"one\n"[..]),
        (head, b"one\ntwo\nthree\n"),
        (head, b"one\ntwo"),
        (head, b""),
        (PublishHead { framing: Framing::Records, ..head }, b"no records at all"),
        (PublishHead { framing: Framing::Records, ..head }, &[0xff; 64]),
        // A gap: the first message of a producer has the sequence 1.
        (PublishHead { sequence: Sequence(9), ..head }, b"one\ntwo\n"),
    ] {
        let mut peer = witness.open_sender(1);
        peer.say(1, &Request::Publish(head, payload)).expect("the server listens");
        let frame = peer.frame();
        assert_eq!(frame.header.kind, Kind::Error, "{head:?} {payload:?}");
        witness.notices_nothing();
    }
    assert_eq!(witness.store.number("q", "ready"), 0);
    // The same, right, is stored.
    let mut peer = witness.open_sender(1);
    peer.say(1, &Request::Publish(head, b"one\ntwo\n")).expect("the server listens");
    peer.frame_of(Kind::Confirm);
    assert_eq!(witness.store.receive("q"), b"one\ntwo\n");
}

#[test]
fn a_delayed_message_too_large_for_its_later_batch_is_refused_at_once() {
    let mut witness = Witness::new();
    let mut attributes = Vec::new();
    push_attribute(&mut attributes, tags::NOT_BEFORE, &u64::MAX.to_le_bytes());
    let mut payload = Vec::new();
    let body = vec![b'x'; 1_052_630];
    Record { attribute_bytes: &attributes, body: &body }.encode(&mut payload);
    let head = PublishHead {
        sequence: Sequence(1),
        count: 1,
        framing: Framing::Records,
        batch_flags: 0,
        read: Monotonic(0),
        more: false,
    };
    let mut peer = witness.open_sender(1);
    peer.say(1, &Request::Publish(head, &payload)).expect("the server listens");
    let frame = peer.frame();
    let Reply::Error(fault) = frame.reply() else { panic!("{:?}", frame.reply()) };
    assert_eq!(fault.code, ErrorCode::BadInput);
    assert!(fault.message.contains("larger than 1024 KiB"), "{}", fault.message);
    witness.notices_nothing();
    assert_eq!(witness.store.number("q", "delayed"), 0);
}

#[test]
fn a_frame_that_never_comes_whole_is_not_stored() {
    let mut witness = Witness::new();
    let mut bytes = Vec::new();
    let head = PublishHead {
        sequence: Sequence(1),
        count: 1,
        framing: Framing::Delimited(b'\n'),
        batch_flags: 0,
        read: Monotonic(0),
        more: false,
    };
    Request::Publish(head, b"one\n").encode(1, &mut bytes);
    for cut in 1..bytes.len() {
        let mut peer = witness.open_sender(1);
        peer.raw(&bytes[..cut]).expect("the server listens");
        peer.shut();
        peer.await_hang_up();
    }
    witness.notices_nothing();
    assert_eq!(witness.store.number("q", "ready"), 0);
}

#[test]
fn a_large_message_that_is_cut_short_is_not_stored() {
    let mut witness = Witness::new();
    // No attributes, and a body of 4 MiB, of which only a part comes.
    let mut record = vec![0, 0, 0, 0, 0, 0, 0x40, 0];
    record.resize(1 << 20, b'x');
    let head = PublishHead {
        sequence: Sequence(1),
        count: 1,
        framing: Framing::Records,
        batch_flags: 0,
        read: Monotonic(0),
        more: true,
    };
    let mut peer = witness.open_sender(1);
    peer.say(1, &Request::Publish(head, &record)).expect("the server listens");
    peer.say(1, &Request::Publish(head, &record[8..])).expect("the server listens");
    peer.shut();
    peer.await_hang_up();
    witness.notices_nothing();
    assert_eq!(witness.store.number("q", "ready"), 0);
}

#[test]
fn words_about_what_is_not_ours_settle_nothing() {
    let mut witness = Witness::new();
    witness.store.send("q", &seq(1, 10));
    let mut peer = Peer::connect(&witness.store).expect("the server answers");
    let open = OpenReceive::new(
        "q".parse().expect("a name"),
        "default".parse().expect("a name"),
        ReceiveMode::Take,
    );
    peer.say(1, &Request::OpenReceive(open)).expect("the server listens");
    peer.frame_of(Kind::Receiving);
    peer.say(1, &Request::Credit(1)).expect("the server listens");
    peer.frame_of(Kind::Deliver);
    // It holds one message, and claims all and many more.
    let all = vec![OffsetRange::new(Offset(0), Offset(u64::MAX))];
    peer.say(1, &Request::Ack(all)).expect("the server listens");
    peer.say(1, &Request::Close).expect("the server listens");
    peer.frame_of(Kind::Closed);
    drop(peer);
    witness.notices_nothing();
    assert_eq!(witness.store.receive("q"), seq(2, 10));
}

#[test]
fn nothing_is_delivered_without_credit() {
    let witness = Witness::new();
    witness.store.send("q", &seq(1, 10));
    let mut peer = Peer::connect(&witness.store).expect("the server answers");
    let open = OpenReceive::new(
        "q".parse().expect("a name"),
        "default".parse().expect("a name"),
        ReceiveMode::Take,
    );
    peer.say(1, &Request::OpenReceive(open)).expect("the server listens");
    peer.frame_of(Kind::Receiving);
    // Another request on the same connection is answered later than a delivery would be.
    peer.say(2, &Request::Admin(mq::wire::Admin::List { after: None }))
        .expect("the server listens");
    assert_eq!(peer.frame().header.kind, Kind::Reply);
    assert!(!peer.has_news());
}

/// What costs a receiver nothing to take, as its bytes stay where they are, is bounded all the same.
#[test]
fn no_more_goes_by_descriptor_than_is_asked_for() {
    let mut witness = Witness::new();
    witness.store.send("q", &seq(1, 3_000_000));
    let mut peer = Peer::connect(&witness.store).expect("the server answers");
    let name = |name: &str| name.parse().expect("a name");
    let open = OpenReceive {
        extents: 1,
        ..OpenReceive::new(name("q"), name("default"), ReceiveMode::Take)
    };
    peer.say(1, &Request::OpenReceive(open)).expect("the server listens");
    peer.frame_of(Kind::Receiving);
    peer.say(1, &Request::Credit(1 << 21)).expect("the server listens");
    let extent = |frame: &Frame| match frame.reply() {
        Reply::Extent(extent) => extent,
        other => panic!("not where messages are: {other:?}"),
    };
    let first = extent(&peer.frame());
    assert!(first.opens && first.bytes > 1 << 20);
    // Another request on the same connection is answered later than a delivery would be.
    peer.say(2, &Request::Admin(mq::wire::Admin::List { after: None }))
        .expect("the server listens");
    assert_eq!(peer.frame().header.kind, Kind::Reply);
    assert!(!peer.has_news());
    peer.say(1, &Request::Extents(1)).expect("the server listens");
    let second = extent(&peer.frame());
    assert!(!second.opens, "the descriptor is there");
    assert_eq!(second.head.position.0, first.head.position.0 + first.bytes);
    peer.say(1, &Request::Extents(3)).expect("the server listens");
    let said = peer.await_hang_up().expect("a word why");
    assert!(said.contains("EXTENTS"), "{said}");
    witness.notices_nothing();
    assert_eq!(witness.store.number("q", "ready"), 3_000_000);
}

/// It takes ten seconds, as long as the handshake may.
#[test]
fn a_silent_peer_is_hung_up_on_after_its_time() {
    let mut witness = Witness::new();
    let mut silent = Peer::silent(&witness.store).expect("a connection");
    let mut slow = Peer::silent(&witness.store).expect("a connection");
    slow.raw(&[0x29, 0, 0]).expect("the server listens");
    let start = Instant::now();
    silent.await_hang_up();
    slow.await_hang_up();
    let waited = start.elapsed();
    assert!((8..20).contains(&waited.as_secs()), "hung up after {waited:?}");
    witness.notices_nothing();
}

/// A peer that sends requests and reads no answers is not read from any more; others go on.
#[test]
fn a_peer_that_never_reads_stops_only_itself() {
    let mut witness = Witness::new();
    let mut peer = Peer::connect(&witness.store).expect("the server answers");
    let store = &witness.store;
    let mut request = Vec::new();
    Request::Admin(mq::wire::Admin::List { after: None }).encode(1, &mut request);
    let many = request.repeat(2000);
    let flooder = std::thread::spawn(move || {
        // Ends with an error when the server hangs up, or with the peer's own deadline.
        for _ in 0..50 {
            if peer.raw(&many).is_err() {
                break;
            }
        }
    });
    let start = Instant::now();
    for _ in 0..200 {
        witness.count += 1;
        witness.sender.write(&seq(witness.count, witness.count));
        assert_eq!(witness.receiver.line(), Some(witness.count.to_string()));
    }
    assert!(start.elapsed() < Duration::from_secs(10), "200 lines took {:?}", start.elapsed());
    let server = store.server().expect("it runs").as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{server}/status")).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    assert!(crate::numbers(peak)[0] < 64 << 10, "the server held {peak}");
    store.end_servers();
    flooder.join().expect("the flood ends with the server");
}

/// A version that nobody speaks yet: both are named, and the old server can still be stopped.
#[test]
fn versions_that_do_not_meet_are_named() {
    let mut witness = Witness::new();
    let mut peer = Peer::silent(&witness.store).expect("a connection");
    let hello = Request::Hello { oldest: 700, newest: 800, client: None };
    peer.say(0, &hello).expect("the server listens");
    let said = peer.await_hang_up().expect("a reason");
    let named = crate::numbers(&said);
    assert!(named.contains(&1) && (named.contains(&700) || named.contains(&800)), "{said}");
    witness.notices_nothing();
    let mut peer = Peer::silent(&witness.store).expect("a connection");
    peer.say(0, &Request::Stop).expect("the server listens");
    assert_eq!(peer.frame().header.kind, Kind::Goodbye);
    peer.await_hang_up();
}

/// More channels, or connections, than there may be are refused with a reason.
#[test]
fn channels_have_a_bound() {
    let mut witness = Witness::new();
    let mut peer = Peer::connect(&witness.store).expect("the server answers");
    let mut refused = None;
    for channel in 1..=100u16 {
        let open = OpenSend::new("q".parse().expect("a name"), ProducerId(u64::from(channel)));
        peer.say(channel, &Request::OpenSend(open)).expect("the server listens");
        if peer.frame().header.kind == Kind::Error {
            refused = Some(channel);
            break;
        }
    }
    assert_eq!(refused.map(usize::from), Some(mq::limits::CHANNELS_PER_CONNECTION_MAX + 1));
    witness.notices_nothing();
}

/// Random changes to valid conversations.
#[test]
fn random_bytes_hurt_nobody() {
    let mut witness = Witness::new();
    let mut random = Random(99);
    for _ in 0..150 {
        let mut bytes = Vec::new();
        for _ in 0..1 + random.below(4) {
            let kinds = Kind::ALL;
            let kind = kinds[random.below(kinds.len() as u64) as usize];
            let length = random.below(80) as usize;
            let header = FrameHeader {
                length: length as u32,
                kind,
                flags: random.below(256) as u8,
                channel: random.below(4) as u16,
            };
            let encoded: [u8; FRAME_HEADER_BYTES] = header.encode();
            bytes.extend_from_slice(&encoded);
            bytes.extend(random.bytes(length));
        }
        // STOP would be obeyed, and is not what is tested here.
        if bytes.contains(&(Kind::Stop as u8)) {
            continue;
        }
        let mut peer = witness.open_sender(1);
        let _ = peer.raw(&bytes);
        peer.shut();
        peer.await_hang_up();
    }
    witness.notices_nothing();
    witness.store.run("mq-admin", &["check"], b"").ok();
}
