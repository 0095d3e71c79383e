//! The simulator: the production server, broker and log on a simulated disk, clock and clients,
//! all driven by one seed, checked against a model of the promises.
//!
//! A failure prints its seed. To run it again, alone:
//!
//! ```text
//! MQ_SIM_SEED=12345 cargo test --test sim -- --nocapture
//! ```
//!
//! `MQ_SIM_SEEDS=100000` runs so many instead of the usual number.

mod clients;
mod disk;
mod model;
mod pipes;
mod rng;
mod world;

use mq::units::{Micros, Name, SyncPolicy};

use clients::{Receiver, Sender};
use model::{Message, QueueModel};
use pipes::Pipe;
use rng::Random;
use world::{Fall, World, aside, dead_letters_of};

/// Steps of one history.
const STEPS: usize = 400;

/// What happened in histories: messages that waited for their time, dead letters that came back,
/// and those that stayed dead.
type Figures = [usize; 3];

/// One history. Returns the hash of its trace, and its figures.
fn history(seed: u64) -> (u64, Figures) {
    let mut world = World::new(seed);
    let policies =
        [SyncPolicy::Always, SyncPolicy::Interval(Micros::from_millis(20)), SyncPolicy::Never];
    let queues = 1 + world.rng.below(2);
    for n in 0..queues {
        let name = Name::new(&format!("q{n}")).expect("a name");
        let policy = policies[world.rng.below(3) as usize];
        world.declare(&name, policy);
        for _ in 0..1 + world.rng.below(3) {
            let id = world.senders.len() as u64 + 1;
            let sender = Sender::new(id, name.clone(), &mut world.rng);
            world.senders.push(sender);
        }
        for _ in 0..1 + world.rng.below(2) {
            world.receivers.push(Receiver::new(name.clone()));
        }
    }
    let policy = policies[world.rng.below(3) as usize];
    world.set_aside(policy);
    let falls = plan_falls(&mut world.rng);
    for step in 0..STEPS {
        if let Some((_, how)) = falls.iter().find(|(at, _)| *at == step) {
            world.fall(*how);
        }
        random_step(&mut world);
    }
    world.stop_meddling();
    drain(&mut world);
    world.exhume();
    drain(&mut world);
    let mut models = std::mem::take(&mut world.queues);
    models.remove(&aside());
    let mut figures = Figures::default();
    for (name, model) in &models {
        if let Some(dead) = models.get(&dead_letters_of(name)) {
            model.check_order();
            model.check_nothing_lost();
            model.check_dead(dead);
            let [waited, came_back] = model.figures();
            figures = [figures[0] + waited, figures[1] + came_back, figures[2] + dead.seen.len()];
        }
        world.trace = world.trace.rotate_left(7) ^ model.hash();
    }
    let disk = world.disk.trace();
    world.note(disk);
    (world.trace, figures)
}

/// When the server falls, and how: at least three times.
fn plan_falls(rng: &mut Random) -> Vec<(usize, Fall)> {
    let kinds = [Fall::Kill, Fall::Kill, Fall::Power, Fall::Power, Fall::Stop];
    (0..3 + rng.below(3))
        .map(|_| (rng.below(STEPS as u64) as usize, kinds[rng.below(5) as usize]))
        .collect()
}

fn random_step(world: &mut World) {
    let what = world.rng.below(100);
    world.note(what);
    let sender = world.rng.below(world.senders.len() as u64) as usize;
    let receiver = world.rng.below(world.receivers.len() as u64) as usize;
    match what {
        0..40 => world.step_sender(sender),
        40..70 => world.step_receiver(receiver),
        70..83 => {
            world.run_job();
        }
        83..85 => world.meddle(),
        85..92 => {
            let micros = 1 << world.rng.below(22);
            world.pass_time(micros);
        }
        92..94 => world.hang_up(true, sender),
        94..96 => world.hang_up(false, receiver),
        96..99 => world.requeue(),
        _ => {}
    }
    world.turn();
    world.watch();
}

/// No more falls: everything that is left is sent, confirmed, delivered and acked.
fn drain(world: &mut World) {
    world.draining = true;
    for round in 0..2_000u64 {
        for sender in 0..world.senders.len() {
            if world.senders[sender].connection.is_none() || !world.senders[sender].is_idle() {
                world.step_sender(sender);
            }
        }
        for receiver in 0..world.receivers.len() {
            world.step_receiver(receiver);
        }
        world.settle();
        // Some wait long: what had its last attempt when the server fell, for its holder.
        world.pass_time(if round < 60 { 5_000 } else { 100_000 });
        let quiet =
            world.senders.iter().all(|s| s.ended || (s.is_idle() && s.connection.is_some()));
        if quiet && round > 60 && world.is_empty() {
            return;
        }
    }
    panic!(
        "what is left does not come through: a delivery or a confirmation is stuck\n{}",
        world.describe()
    );
}

/// One history of senders, a pipe, and falls: what is in the destination at the end is what the
/// filter makes of the senders' input, once, whatever the policies of both queues (G14). Senders have
/// names: what a power loss took from the source is sent again. Once, a pipe read what the source
/// could still lose under a weak policy, and what was sent again was in the destination twice.
fn pipe_history(seed: u64) -> (u64, Figures) {
    let mut world = World::new(seed);
    let policies =
        [SyncPolicy::Always, SyncPolicy::Interval(Micros::from_millis(20)), SyncPolicy::Never];
    let [source, destination] = ["src", "dst"].map(|name| Name::new(name).expect("a name"));
    for queue in [&source, &destination] {
        let policy = policies[world.rng.below(3) as usize];
        world.declare(queue, policy);
    }
    for id in 1..=1 + world.rng.below(2) {
        let sender = Sender::named(id, source.clone(), &mut world.rng);
        world.senders.push(sender);
    }
    let pipe = Pipe::new(source.clone(), destination.clone(), &mut world.rng);
    world.pipes.push(pipe);
    let falls = plan_falls(&mut world.rng);
    for step in 0..STEPS {
        if let Some((_, how)) = falls.iter().find(|(at, _)| *at == step) {
            world.fall(*how);
        }
        let what = world.rng.below(100);
        world.note(what);
        let sender = world.rng.below(world.senders.len() as u64) as usize;
        match what {
            0..25 => world.step_sender(sender),
            25..65 => world.step_pipe(0),
            65..85 => {
                world.run_job();
            }
            85..92 => {
                let micros = 1 << world.rng.below(22);
                world.pass_time(micros);
            }
            92..94 => world.hang_up(true, sender),
            94..97 => world.replace_pipe(0),
            _ => {}
        }
        world.turn();
    }
    drain_pipe(&mut world, &source);
    let dead = Name::new("src.pipe.dead").expect("a name");
    let announced = world.queues[&source].announced.clone();
    for queue in [&destination, &dead] {
        let mut model = QueueModel::new(SyncPolicy::Always);
        (model.fails, model.announced) = (false, announced.clone());
        world.queues.insert(queue.clone(), model);
        world.receivers.push(Receiver::new(queue.clone()));
    }
    for _ in 0..500 {
        world.step_receiver(0);
        world.step_receiver(1);
        world.settle();
        world.pass_time(5_000);
    }
    let pipe = &world.pipes[0];
    let model = &world.queues[&source];
    let read: std::collections::BTreeSet<Message> = pipe.read.values().copied().collect();
    assert_eq!(read.len(), pipe.read.len(), "G14: the source gave a message twice");
    for message in &model.confirmed {
        assert!(read.contains(message), "G1: {message:?} was confirmed and not read");
    }
    let there: Vec<Message> = world.queues[&destination].seen.values().copied().collect();
    assert_eq!(there, pipe.expected(), "G14: the destination is not what the filter makes");
    let letters: Vec<Message> = world.queues[&dead].seen.values().copied().collect();
    let different: std::collections::BTreeSet<Message> = letters.iter().copied().collect();
    assert_eq!(letters.len(), different.len(), "G13: a dead letter is there twice");
    assert_eq!(different, pipe.expected_dead(), "G13: the dead letters");
    let figures = [pipe.confirmed, pipe.in_parts, pipe.buried];
    world.trace = world.trace.rotate_left(7) ^ there.len() as u64;
    let disk = world.disk.trace();
    world.note(disk);
    (world.trace, figures)
}

/// No more falls: everything that is in the source goes through the pipe.
fn drain_pipe(world: &mut World, source: &Name) {
    world.draining = true;
    for _ in 0..2_000 {
        for sender in 0..world.senders.len() {
            if world.senders[sender].connection.is_none() || !world.senders[sender].is_idle() {
                world.step_sender(sender);
            }
        }
        world.step_pipe(0);
        world.settle();
        world.pass_time(20_000);
        let quiet =
            world.senders.iter().all(|s| s.ended || (s.is_idle() && s.connection.is_some()));
        if quiet && world.pipes[0].is_done() && world.is_delivered(source) {
            return;
        }
    }
    panic!("what is left does not go through the pipe\n{}\n{:?}", world.describe(), world.pipes);
}

fn run(seed: u64) -> (u64, Figures) {
    run_one(seed, history)
}

fn run_one(seed: u64, history: fn(u64) -> (u64, Figures)) -> (u64, Figures) {
    let result = std::panic::catch_unwind(|| history(seed));
    match result {
        Ok(happened) => happened,
        Err(panic) => {
            eprintln!(
                "\nseed {seed} fails; again with:\n  MQ_SIM_SEED={seed} cargo test --test sim -- --nocapture\n"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn promises_hold_in_simulated_histories() {
    if let Ok(seed) = std::env::var("MQ_SIM_SEED") {
        run(seed.parse().expect("MQ_SIM_SEED is a number"));
        return;
    }
    let seeds = std::env::var("MQ_SIM_SEEDS").map_or(500, |n| n.parse().expect("a number"));
    let mut all = Figures::default();
    for seed in 0..seeds {
        let happened = run(seed);
        if seed % 100 == 0 {
            assert_eq!(run(seed), happened, "seed {seed} does not give the same history twice");
        }
        all.iter_mut().zip(happened.1).for_each(|(all, one)| *all += one);
    }
    println!("{} messages waited, {} dead letters came back, {} stayed", all[0], all[1], all[2]);
    assert!(all.iter().all(|figure| *figure as u64 > seeds), "the histories are too calm");
}

#[test]
fn pipes_are_exact_in_simulated_histories() {
    if let Ok(seed) = std::env::var("MQ_SIM_SEED") {
        run_one(seed.parse().expect("MQ_SIM_SEED is a number"), pipe_history);
        return;
    }
    let seeds = std::env::var("MQ_SIM_SEEDS").map_or(500, |n| n.parse().expect("a number"));
    let mut all = Figures::default();
    for seed in 0..seeds {
        let happened = run_one(seed, pipe_history);
        if seed % 100 == 0 {
            let again = run_one(seed, pipe_history);
            assert_eq!(again, happened, "seed {seed} does not give the same history twice");
        }
        all.iter_mut().zip(happened.1).for_each(|(all, one)| *all += one);
    }
    println!("{} commits, {} in several frames, {} messages buried", all[0], all[1], all[2]);
    assert!(all.iter().all(|figure| *figure as u64 > seeds), "the histories are too calm");
}
