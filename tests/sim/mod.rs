//! Simulated surroundings for the production code.

pub mod bench;
pub mod disk;
pub mod lives;
