//! Queues at an engine, through the real tools: the session of `mq-remote` with an engine in memory behind
//! it, which does as the test wants. It listens where a store's server would, so that the tools need not
//! know; or, where a store is needed too, it stands in for `mq-remote` (`desk`). What starts `mq-remote`
//! itself is tried in `tests/tools/elsewhere.rs`.

#[path = "../harness/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod harness;

mod desk;
mod memory;
mod pipes;
mod receiving;
mod sending;
mod stand;
