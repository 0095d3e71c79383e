//! `mq-pipe` from outside: real queues, real filters, real kills (G14). Each test on a store of
//! its own.
//!
//! `MQ_ROUNDS=500` makes as many rounds of kill -9 as the long run has.

#[allow(dead_code)]
#[path = "../harness/mod.rs"]
mod harness;

mod examples;
mod failures;
mod files;
mod instances;
mod kept;
mod kills;
mod outputs;
mod plain;
mod state;
mod staying;
mod windows;

use harness::{Done, Store};

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

/// Runs a pipe to its end.
#[track_caller]
fn pipe(store: &Store, args: &[&str]) -> Done {
    store.run("mq-pipe", args, b"")
}

/// Queues whose messages are given up after a few failures.
#[track_caller]
fn impatient(store: &Store, queue: &str, limit: &str) {
    store.run("mq-admin", &["declare", "--delivery-limit", limit, queue], b"").ok();
}
