//! What befalls real processes: everything killed and stopped at any moment, disks that are full or
//! fail, crowds of bad clients, a clock that is set back.
//!
//! `rounds` kill -9 and SIGSTOP of everything · `disks` real ENOSPC and EIO · `crowds` silent and
//! never-reading clients, floods of connections · `clocks` set back and forth.
//!
//! `MQ_ROUNDS=5000` for the long run of `rounds`. What needs root, strace or another tool that is
//! missing says SKIPPED.

#[allow(dead_code)]
#[path = "../harness/mod.rs"]
mod harness;

mod clocks;
mod crowds;
mod disks;
mod rounds;

/// A size from the environment, or the one for the ordinary run.
fn size(variable: &str, ordinary: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => ordinary,
    }
}

/// The numbers from `first` to `last`, each on a line, as `seq` writes them.
fn seq(first: u64, last: u64) -> Vec<u8> {
    (first..=last).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}
