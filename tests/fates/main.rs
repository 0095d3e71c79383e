//! Commands and what becomes of their messages: the fate of a message is a function of its body,
//! so the sets of acknowledged and of dead messages can be computed beforehand, and must come
//! out just so, also when servers and receivers are killed all the while.
//!
//! The ordinary run is small. `MQ_MESSAGES=100000` for the whole, `MQ_ROUNDS=50` for the rounds of
//! kill -9.

#[allow(dead_code)]
#[path = "../harness/mod.rs"]
mod harness;

mod batches;
mod commands;
mod fate;
mod rounds;
mod things_kept;

use harness::size;
