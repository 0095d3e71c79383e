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

use harness::{seq, size};
