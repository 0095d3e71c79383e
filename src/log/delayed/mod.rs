//! Delayed messages: those that may not be delivered before a time that they name.
//!
//! They wait beside their queue, in the order in which they come due, and enter it when they are;
//! so they hold nothing up, and what they cost in memory does not depend on how many they are.
//! This module never delivers anything and knows no clock: the server tells the time, appends
//! what it is given, and says when that is durable.
//!
//! # The way of a delayed message
//!
//! ```text
//! PUBLISH ──▶ hidden log ──durable──▶ index ──when it is full──▶ run ──▶ merged runs
//!                                       │                         │          │
//!                                       └────────── due ──────────┴──────────┘
//!                                                    ▼
//!                          one batch of the queue's own log, with the manifest as its annex
//! ```
//!
//! * The **hidden log** is a log like any other, in `queues/NAME/delayed/`. It makes an append
//!   durable and keeps the producers' sequences.
//! * The **index** says of what is in the hidden log alone when it comes due. It is bounded: when
//!   it is full a job writes all of it into a **run**, a file in the order of due times, and the
//!   segments of the hidden log are dropped. Runs are merged when there are many.
//! * The **manifest** says how far each of them is taken, and which runs there are. It is the
//!   annex of the batch that carries what was taken, so both are stored by the same append.
//!
//! # Invariants
//!
//! 1. Only what is durable in the hidden log is taken or written into a run: else a power loss
//!    could take back an append whose message has gone on.
//! 2. A file goes only when a manifest that does not need it is durable; at a start, runs that
//!    the manifest does not name are litter, and those that it names must be there.
//! 3. Every record has a checksum from the moment it came in to the moment it leaves.
//!
//! # Map
//!
//! `store` the state and what is taken · `index` · `manifest` · `run` the file's format ·
//! `jobs` what helper threads do · `upkeep` which job when · `recovery` making and opening ·
//! `check`

mod check;
mod index;
mod jobs;
mod manifest;
mod recovery;
mod run;
mod store;
mod upkeep;

pub(super) use check::check_runs;
pub(super) use jobs::{Finished, Task};
pub use recovery::create_delays;
pub use store::{Delays, DueBatch, Taking};
pub use upkeep::DelaysProgress;

use crate::units::{Offset, WallTime};

/// The place of a message in the order in which they come due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::log) struct Due {
    /// Not before this.
    at: WallTime,
    /// The offset in the hidden log: what came in first goes first.
    offset: Offset,
}
