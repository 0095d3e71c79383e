//! Short histories around what is promised to senders and to who holds a lease, each of which went
//! wrong once: wide histories of the simulator had found it. They are told step by step, so that
//! they stay what they are when the simulator changes.

use mq::batch::{Framing, Record, flags, push_annex, push_attribute, tags};
use mq::server::engine::ConnectionId;
use mq::settings::{IdWindow, Overflow, Start, Wanted};
use mq::units::{Count, Micros, Monotonic, Name, ProducerId, Sequence, SyncPolicy, WallTime};
use mq::wire::{
    Admin, ClockInfo, OpenReceive, OpenSend, PublishHead, QueueInfo, ReceiveMode, Reply, Request,
    Sending,
};

use crate::plan::{Kind, Plan};
use crate::wide::name;
use crate::wire::{CHANNEL, hello, take_frames};
use crate::world::{Fall, World};

/// A message and what goes with it.
#[derive(Clone, Copy, Default)]
struct Sent<'a> {
    id: Option<&'a str>,
    due: Option<WallTime>,
    annex: Option<&'a [u8]>,
}

/// A sender that does what it is told, one message in a batch.
struct Teller {
    connection: ConnectionId,
    sent: u64,
    /// What the server said when it opened.
    sending: Option<Sending>,
    confirmed: Sequence,
}

impl Teller {
    fn open(world: &mut World, open: OpenSend) -> Teller {
        let connection = world.connect();
        let mut frames = Vec::new();
        hello(&mut frames);
        Request::OpenSend(open).encode(CHANNEL, &mut frames);
        world.say(connection, &frames);
        world.settle();
        let mut teller = Teller { connection, sent: 0, sending: None, confirmed: Sequence(0) };
        teller.hear(world);
        teller.sent = teller.sending.as_ref().expect("it is opened").last.0;
        teller
    }

    fn say(&mut self, world: &mut World, sent: Sent<'_>) {
        self.sent += 1;
        let mut attributes = Vec::new();
        if let Some(id) = sent.id {
            push_attribute(&mut attributes, tags::ID, id.as_bytes());
        }
        if let Some(due) = sent.due {
            push_attribute(&mut attributes, tags::NOT_BEFORE, &due.0.to_le_bytes());
        }
        let (mut payload, mut batch_flags) = (Vec::new(), 0);
        if let Some(annex) = sent.annex {
            push_annex(&mut payload, annex);
            batch_flags = flags::ANNEX;
        }
        let body = format!("message {}", self.sent);
        Record { attribute_bytes: &attributes, body: body.as_bytes() }.encode(&mut payload);
        let head = PublishHead {
            sequence: Sequence(self.sent),
            count: 1,
            framing: Framing::Records,
            batch_flags,
            read: Monotonic(0),
            more: false,
        };
        let mut frames = Vec::new();
        Request::Publish(head, &payload).encode(CHANNEL, &mut frames);
        world.say(self.connection, &frames);
    }

    fn hear(&mut self, world: &mut World) {
        let mut bytes = world.receive(self.connection, u64::MAX);
        for (header, body) in take_frames(&mut bytes) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Sending(sending) => self.sending = Some(sending),
                Reply::Confirm(sequence, ..) => self.confirmed = sequence,
                _ => {}
            }
        }
    }

    /// Sends it, and hears of it.
    fn send(&mut self, world: &mut World, sent: Sent<'_>) {
        self.say(world, sent);
        world.settle();
        self.hear(world);
    }
}

fn world(seed: u64, wanted: Wanted) -> (World, Name) {
    let mut world = World::new(&Plan::whole(Kind::Wide, seed));
    let queue = name("q");
    world.declare(&queue, wanted);
    (world, queue)
}

fn shown(world: &mut World) -> QueueInfo {
    world.list().queues.into_iter().next().expect("it is there")
}

/// A batch whose messages were all there already moves no offset, and was confirmed before its
/// sequence was durable (G1).
#[test]
fn what_was_there_already_is_confirmed_when_that_is_durable() {
    let unique_ids = Some(IdWindow::Count(10));
    let (mut world, queue) = world(1, Wanted { unique_ids, ..Wanted::default() });
    let sent = Sent { id: Some("an id"), ..Sent::default() };
    let mut one = Teller::open(&mut world, OpenSend::new(queue.clone(), ProducerId(1)));
    one.send(&mut world, sent);
    assert_eq!(one.confirmed, Sequence(1));
    let mut two = Teller::open(&mut world, OpenSend::new(queue, ProducerId(2)));
    two.say(&mut world, sent);
    world.turn();
    two.hear(&mut world);
    assert_eq!(two.confirmed, Sequence(0), "nothing was synced yet");
    world.settle();
    two.hear(&mut world);
    assert_eq!(two.confirmed, Sequence(1));
    assert_eq!(shown(&mut world).ready.0, 1);
}

/// The time that a reader is told is older than nothing that comes to it later: what is stored waits,
/// though the broker may not know of it yet, in the middle of a round of the event loop.
#[test]
fn what_is_stored_waits_until_it_is_handed_out() {
    let (mut world, queue) = world(1, Wanted::default());
    let group = name("g");
    world.ask(Admin::AddGroup { queue: queue.clone(), group: group.clone(), from: Start::Oldest });
    let mut sender = Teller::open(&mut world, OpenSend::new(queue.clone(), ProducerId(1)));
    sender.say(&mut world, Sent::default());
    for _ in 0..20 {
        let clock = Admin::Clock { queue: queue.clone(), group: group.clone() };
        let clock = world.ask(clock).expect("a server runs");
        let clock: ClockInfo = serde_json::from_slice(&clock).expect("what the time is");
        assert_eq!(clock.waiting, Count(1));
        world.turn();
        world.run_late_job();
    }
    sender.hear(&mut world);
    assert_eq!(sender.confirmed, Sequence(1), "it came to its end");
}

/// The same of a large message, while it is copied into the log under the time that it has already.
#[test]
fn what_is_being_copied_waits_too() {
    let (mut world, queue) = world(1, Wanted::default());
    let group = name("g");
    world.ask(Admin::AddGroup { queue: queue.clone(), group: group.clone(), from: Start::Oldest });
    world.settle();
    let mut sender = Teller::open(&mut world, OpenSend::new(queue.clone(), ProducerId(1)));
    let mut record = Vec::new();
    Record { attribute_bytes: &[], body: &vec![b'x'; 3000] }.encode(&mut record);
    let mut parts = record.chunks(1000).peekable();
    let mut frames = Vec::new();
    while let Some(part) = parts.next() {
        let head = PublishHead {
            sequence: Sequence(1),
            count: 1,
            framing: Framing::Records,
            batch_flags: 0,
            read: Monotonic(0),
            more: parts.peek().is_some(),
        };
        Request::Publish(head, part).encode(CHANNEL, &mut frames);
    }
    world.say(sender.connection, &frames);
    let (mut asked, mut waited) = (0, 0);
    while sender.confirmed < Sequence(1) {
        world.turn();
        let clock = Admin::Clock { queue: queue.clone(), group: group.clone() };
        let clock = world.ask(clock).expect("a server runs");
        let clock: ClockInfo = serde_json::from_slice(&clock).expect("what the time is");
        (asked, waited) = (asked + 1, waited + u64::from(clock.waiting > Count(0)));
        world.run_late_job();
        sender.hear(&mut world);
        assert!(asked < 100, "it comes to its end");
    }
    assert!(waited > 1 && waited == asked, "{waited} of {asked} answers said that something waits");
}

/// A named producer goes on among the delayed messages: what it had said with its last message stayed
/// behind, and a restart that took the newer sequence from there knew nothing of it.
#[test]
fn annex_goes_along_when_its_producer_goes_on_among_the_delayed() {
    for fall in [Fall::Stop, Fall::Kill, Fall::Power] {
        let (mut world, queue) = world(1, Wanted::default());
        let open = OpenSend { named: true, ..OpenSend::new(queue, ProducerId(7)) };
        let mut sender = Teller::open(&mut world, open.clone());
        sender.send(&mut world, Sent { annex: Some(b"so far"), ..Sent::default() });
        let due = Some(WallTime(world.wall.0 + 3_600_000_000));
        sender.send(&mut world, Sent { due, ..Sent::default() });
        assert_eq!(sender.confirmed, Sequence(2));
        world.end(fall);
        world.begin();
        let sending = Teller::open(&mut world, open).sending.expect("it is opened");
        assert_eq!(sending.last, Sequence(2), "{fall:?}");
        assert_eq!(sending.annex.as_deref(), Some(&b"so far"[..]), "{fall:?}");
    }
}

/// A sender waited until it could go on among the delayed messages, and the time of the message came
/// meanwhile, so that it did not have to. It kept what it had waited for: the next delayed message did
/// not wait until the one before it was durable, and a loss of power took a message from the middle
/// (G9).
#[test]
fn sender_that_did_not_have_to_wait_after_all_waits_anew() {
    for seed in 0..60 {
        let (mut world, queue) =
            world(seed, Wanted { sync: Some(SyncPolicy::Never), ..Wanted::default() });
        let mut sender = Teller::open(&mut world, OpenSend::new(queue, ProducerId(7)));
        let due = |world: &World, micros: u64| Some(WallTime(world.wall.0 + micros));
        // The log of the delayed messages is there.
        let soon = due(&world, 3_600_000_000);
        sender.send(&mut world, Sent { due: soon, ..Sent::default() });
        sender.send(&mut world, Sent::default());
        let soon = due(&world, 1_000);
        sender.say(&mut world, Sent { due: soon, ..Sent::default() });
        world.pass_time(2_000);
        world.settle();
        sender.hear(&mut world);
        assert_eq!(sender.confirmed, Sequence(3), "it was due, and went with the others");
        let later = due(&world, 3_600_000_000);
        sender.send(&mut world, Sent { due: later, ..Sent::default() });
        assert_eq!(sender.confirmed, Sequence(4));
        world.end(Fall::Power);
        world.begin();
        let info = shown(&mut world);
        let (delayed, others) = (info.delayed.0, info.ready.0);
        assert!(delayed < 2 || others == 2, "seed {seed}: {delayed} delayed, {others} before them");
    }
}

/// A lease that was taken after the clock was set back was over after a restart (G5).
#[test]
fn lease_that_was_taken_after_the_clock_was_set_back_holds_after_a_restart() {
    let (mut world, queue) = world(1, Wanted::default());
    let mut sender = Teller::open(&mut world, OpenSend::new(queue.clone(), ProducerId(7)));
    sender.send(&mut world, Sent::default());
    let hour = 3_600_000_000;
    world.set_wall(WallTime(world.wall.0 - hour));
    let receiver = world.connect();
    let mut frames = Vec::new();
    hello(&mut frames);
    let open = OpenReceive::new(queue, Name::default(), ReceiveMode::Take);
    let open = OpenReceive { lease: Some(Micros::from_secs(60)), ..open };
    Request::OpenReceive(open).encode(CHANNEL, &mut frames);
    Request::Credit(1).encode(CHANNEL, &mut frames);
    world.say(receiver, &frames);
    world.settle();
    world.receive(receiver, u64::MAX);
    world.settle();
    assert_eq!(shown(&mut world).ready.0, 0, "it is leased");
    world.end(Fall::Kill);
    world.begin();
    world.pass_time(1_000_000);
    world.settle();
    assert_eq!(shown(&mut world).ready.0, 0, "its time is not over");
    world.pass_time(60_000_000);
    world.settle();
    assert_eq!(shown(&mut world).ready.0, 1);
}

/// Delayed messages that came after a queue was counted did not count against its limit.
#[test]
fn delayed_messages_count_against_the_limit_of_a_queue_that_was_counted_before() {
    let (max_messages, overflow) = (Some(4), Some(Overflow::Reject));
    let (mut world, queue) = world(1, Wanted { max_messages, overflow, ..Wanted::default() });
    let mut sender = Teller::open(&mut world, OpenSend::new(queue, ProducerId(7)));
    sender.send(&mut world, Sent::default());
    for _ in 0..5 {
        let due = Some(WallTime(world.wall.0 + 3_600_000_000));
        sender.send(&mut world, Sent { due, ..Sent::default() });
    }
    let info = shown(&mut world);
    assert_eq!((info.ready.0, info.delayed.0), (1, 3));
    assert_eq!(sender.confirmed, Sequence(4));
}
