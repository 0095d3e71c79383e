//! Clients that do not speak the protocol (G17): the connection ends with a word why, and nobody
//! else notices.

use mq::batch::Framing;
use mq::units::{Monotonic, Name, ProducerId, Sequence};
use mq::wire::{ErrorCode, OpenSend, PublishHead, Reply, Request};

use crate::rng::Random;
use crate::wire::{CHANNEL, Frames, hello, take_frames};
use crate::world::World;

/// A frame with any body.
fn frame(kind: u8, body: &[u8]) -> Frames {
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(&[kind, 0]);
    frame.extend_from_slice(&CHANNEL.to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

/// A PUBLISH whose payload is not what its head says.
fn lying_publish(rng: &mut Random) -> Frames {
    let head = PublishHead {
        sequence: Sequence(9),
        count: 9,
        framing: if rng.one_in(2) { Framing::Records } else { Framing::Delimited(b'\n') },
        batch_flags: 0,
        read: Monotonic(0),
        more: false,
    };
    let mut out = Frames::new();
    Request::Publish(head, b"one\ntwo").encode(CHANNEL, &mut out);
    out
}

/// Something that no client may say.
fn anything_wrong(queue: &Name, rng: &mut Random) -> Frames {
    let noise: Vec<u8> = (0..rng.below(40)).map(|_| rng.next() as u8).collect();
    let mut out = Frames::new();
    hello(&mut out);
    match rng.below(8) {
        // Before any HELLO.
        0 => return frame(0x31, &8u64.to_le_bytes()),
        1 => hello(&mut out),
        // JSON that is none.
        2 => out.extend(frame(0x10, &noise)),
        3 => out.extend(frame(0x20, b"{\"queue\":")),
        // Bodies of the wrong size, and ranges that run backwards.
        4 => out.extend(frame(0x31, &noise[..noise.len().min(7)])),
        5 => out.extend(frame(0x32, &[9, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])),
        // What only a server says.
        6 => out.extend(frame(0xa1, &noise)),
        _ => {
            let open = OpenSend::new(queue.clone(), ProducerId(rng.next() | 1));
            Request::OpenSend(open).encode(CHANNEL, &mut out);
            out.extend(lying_publish(rng));
        }
    }
    out
}

/// One such client comes, says its word, and is told off.
pub fn visit(world: &mut World, queue: &Name) {
    let connection = world.connect();
    let mut rng = Random(world.rng.next());
    let frames = anything_wrong(queue, &mut rng);
    world.say(connection, &frames);
    world.turn();
    if !world.is_up() {
        return;
    }
    let mut bytes = world.receive(connection, u64::MAX);
    let mut said = take_frames(&mut bytes).into_iter();
    let error = said.find_map(|(header, body)| {
        match Reply::decode(&header, &body).expect("the server speaks the protocol") {
            Reply::Error(fault) => Some(fault),
            _ => None,
        }
    });
    // A frame behind one that waits for the queue is not looked at yet.
    if world.is_up() && world.is_heard(connection) {
        let error = error.unwrap_or_else(|| panic!("G17: nobody is told off for {frames:?}"));
        // A channel that could not be opened says why, and drops what comes behind.
        let is_wrong = error.code == ErrorCode::Protocol;
        assert_eq!(world.is_ending(connection), is_wrong, "G17: {error:?} for {frames:?}");
    }
    world.hung_up(connection);
}
