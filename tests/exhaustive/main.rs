//! Small and exhaustive: not by chance but all of it, as far as it is small. On the simulated disk,
//! through the production log.
//!
//! `workloads` every workload of up to three operations, broken off at every call, with every
//! subset of what was not synced (bounded) · `bits` every bit and every truncation of a small store ·
//! `calls` every call of a start that fails.
//!
//! What is too much for an ordinary run has a bound that `MQ_DEPTH=N` multiplies.

mod bits;
mod calls;
mod choices;
#[path = "../session/mod.rs"]
mod session;
#[path = "../sim/mod.rs"]
mod sim;
mod workloads;

use std::collections::BTreeMap;
use std::path::PathBuf;

use mq::log::storage::{Storage, StorageFile};
use mq::units::Position;
use sim::disk::SimDisk;

/// How much deeper than an ordinary run this one looks.
fn depth() -> u64 {
    std::env::var("MQ_DEPTH").map_or(1, |n| n.parse().expect("MQ_DEPTH is a number"))
}

/// All that a store holds.
fn contents(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let read = |(path, length): (PathBuf, usize)| {
        let mut bytes = vec![0; length];
        let file = disk.open(&path).expect("it is there");
        assert_eq!(file.read_at(&mut bytes, Position(0)).expect("it is readable"), length);
        (path, bytes)
    };
    disk.undisturbed(|| disk.files().into_iter().map(read).collect())
}
