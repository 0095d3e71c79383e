//! Small histories that once failed, told as they are.

use mq::settings::Wanted;
use mq::units::{Name, Offset, OffsetRange};
use mq::wire::{Nack, OpenReceive, ReceiveMode, Request};

use crate::disk::ENDLESS;
use crate::model::QueueModel;
use crate::plan::{Kind, Plan};
use crate::sender::{Manner, Sender};
use crate::wide::name;
use crate::wire::{CHANNEL, hello};
use crate::world::World;

/// A queue with some messages that a receiver holds; its connection.
fn held(world: &mut World, queue: &Name) -> mq::server::engine::ConnectionId {
    world.declare(queue, Wanted::default());
    let mut model = QueueModel::new(mq::units::SyncPolicy::Always);
    let mut rng = crate::rng::Random(1);
    let mut sender = Sender::new(1, queue.clone(), Manner::default(), false, &mut rng);
    let connection = world.connect();
    let frames = sender.connect(connection);
    world.say(connection, &frames);
    for _ in 0..4 {
        world.settle();
        sender.inbound.extend(world.receive(connection, u64::MAX));
        let mut frames = sender.hear(&mut model);
        frames.extend(sender.publish(&mut model, &mut rng, world.wall, false));
        world.say(connection, &frames);
    }
    world.settle();
    let receiver = world.connect();
    let mut frames = Vec::new();
    hello(&mut frames);
    let open = OpenReceive::new(queue.clone(), Name::default(), ReceiveMode::Take);
    Request::OpenReceive(open).encode(CHANNEL, &mut frames);
    world.say(receiver, &frames);
    world.settle();
    let mut credit = Vec::new();
    Request::Credit(100).encode(CHANNEL, &mut credit);
    world.say(receiver, &credit);
    world.settle();
    world.receive(receiver, u64::MAX);
    receiver
}

/// Dead letters found no room for a queue of their own on a full disk, and the server tried to make
/// it again and again, without a pause.
#[test]
fn dead_letters_without_room_for_their_queue_rest_before_they_try_again() {
    let mut world = World::new(&Plan::whole(Kind::Wide, 1));
    let queue = name("q");
    let receiver = held(&mut world, &queue);
    world.disk.set_capacity(world.disk.used());
    let ranges = vec![OffsetRange::new(Offset(0), Offset(2))];
    let mut frames = Vec::new();
    Request::Nack(Nack { ranges, dead: true, ..Nack::default() }).encode(CHANNEL, &mut frames);
    world.say(receiver, &frames);
    world.settle();
    assert!(world.list().queues.iter().all(|info| info.queue == queue), "there was no room");
    world.disk.set_capacity(ENDLESS);
    for _ in 0..30 {
        world.pass_time(1_000_000);
        world.settle();
    }
    let list = world.list().queues;
    let dead = list.iter().find(|info| info.queue == name("q.dead")).expect("it is made at last");
    assert_eq!(dead.ready.0, 2, "they arrive when there is room again");
}
