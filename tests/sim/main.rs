//! The simulator: the production server, broker and log on a simulated disk, clock and clients,
//! all driven by one seed, checked against a model of the promises.
//!
//! A failure prints its seed, a command that replays it, and the shortest history that still
//! fails. `tests/README.md` tells what it covers, and how it is run for longer.

mod disk;
mod ending;
mod episodes;
mod extents;
mod filter;
mod group;
mod junk;
mod model;
mod piped;
mod pipes;
mod plan;
mod receiver;
mod regressions;
mod rng;
mod runner;
mod sender;
mod several;
mod shrink;
mod state_files;
mod strikes;
mod watch;
mod wide;
mod wire;
mod world;

use plan::{Kind, Plan, STEPS};
use runner::{Happened, run_all};
use wide::Wide;

/// The history of a plan.
fn history(plan: &Plan) -> Happened {
    match plan.kind {
        Kind::Wide => wide_history(plan),
        Kind::Pipe => piped::history(plan),
        Kind::Extents => extents::history(plan),
    }
}

fn wide_history(plan: &Plan) -> Happened {
    let (mut wide, falls) = Wide::new(plan);
    for &number in &plan.steps {
        wide.world.begin_step(plan.draws(number));
        if let Some(how) = falls.get(&number) {
            wide.fall(*how);
        }
        wide.step(number);
    }
    wide.world.begin_step(plan.draws(STEPS + 1));
    wide.end()
}

/// How many histories the ordinary run has: a build that is not optimized takes ten times as long.
fn usual(count: u64) -> u64 {
    if cfg!(debug_assertions) { count / 20 } else { count }
}

/// Everything that may happen happened often.
fn assert_lively(runs: u64, happened: &Happened) {
    for (what, times) in &happened.figures {
        assert!(*times * 50 >= runs, "the histories are too calm: {times} {what} in {runs}");
    }
}

#[test]
fn promises_hold_in_simulated_histories() {
    let (runs, happened) = run_all(Kind::Wide, usual(10_000));
    assert_lively(runs, &happened);
}

#[test]
fn pipes_are_exact_in_simulated_histories() {
    let (runs, happened) = run_all(Kind::Pipe, usual(10_000));
    assert_lively(runs, &happened);
}

#[test]
fn extents_are_as_they_were_sent_in_simulated_histories() {
    let (runs, happened) = run_all(Kind::Extents, usual(2_000));
    assert_lively(runs, &happened);
}
