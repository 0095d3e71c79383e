//! The tools from outside: real processes, real pipes, real kills, each test on a store of its
//! own. A test is named after the promise that it holds (see mq(7), GUARANTEES).
//!
//! Sizes that the ordinary run keeps small can be raised: `MQ_ROUNDS=100` for the rounds of
//! kill -9, `MQ_LINES=10000000` and `MQ_MIB=300` for the long inputs.

#[path = "../harness/mod.rs"]
mod harness;

mod accounts;
mod admin;
mod attributes;
mod bad_frames;
mod bad_input;
mod ceiling;
mod commands;
mod dead_letters;
mod declared;
mod delayed;
mod delays;
mod descriptors;
mod elsewhere;
mod failing_disk;
mod figures;
mod first_hour;
mod flags;
mod foreign;
mod full_disk;
mod groups;
mod kills;
mod latencies;
mod limits;
mod once;
mod outputs;
mod receipts;
mod receiving;
mod requeue;
mod rounds;
mod security;
mod sending;
mod several;
mod starting;
mod stat;
mod stores;
mod terminal;
mod watching;

use harness::{seq, size};

/// The whole numbers in a text, wherever they stand.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}
