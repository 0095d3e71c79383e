//! The fuzz targets' bodies, for libFuzzer; `tests/mutations.rs` runs the same ones.

#[path = "../../tests/session/mod.rs"]
pub mod session;
#[path = "../../tests/sim/mod.rs"]
pub mod sim;
pub mod targets;
