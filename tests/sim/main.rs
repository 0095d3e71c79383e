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
mod rng;
mod world;

use mq::units::{Micros, Name, SyncPolicy};

use clients::{Receiver, Sender};
use rng::Random;
use world::{Fall, World, dead_letters_of};

/// Steps of one history.
const STEPS: usize = 300;

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
    let falls = plan_falls(&mut world.rng);
    for step in 0..STEPS {
        if let Some((_, how)) = falls.iter().find(|(at, _)| *at == step) {
            world.fall(*how);
        }
        random_step(&mut world);
    }
    drain(&mut world);
    world.exhume();
    drain(&mut world);
    let models = std::mem::take(&mut world.queues);
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
        70..85 => {
            world.run_job();
        }
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

fn run(seed: u64) -> (u64, Figures) {
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
