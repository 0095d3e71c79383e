//! The pipe: from a queue through a filter into a queue, exactly once.
//!
//! A batch of messages is the filter's standard input; when it ends well, its whole output and the
//! position behind the batch are one atomic append to the destination, the *commit*. Only when that
//! is durable does the source let go of the input. So after any end the newest commit says where to
//! go on, and what was not committed never was. With an end at an engine it is at least once. `mq-pipe` uses
//! it.
//!
//! ```text
//!  SRC ──▶ source (thread) ──▶ run: batch ─▶ trial ─▶ filter ─▶ output ──▶ committer (thread) ──▶ DST
//!            ▲  reads ahead         (the next batch's filter runs meanwhile)      │
//!            └──────────────── settle, once it is durable ◀───────────────────────┘
//! ```
//!
//! A session lasts as long as its two connections. When one is lost, everything in memory is
//! forgotten, and the next session begins as the first one of a process does: the destination's
//! producer is opened, which fences off older instances, and its mark says where to go on.
//!
//! # Map
//!
//! `order` what to do · `run` the loop over sessions and batches, `dealing` with one, `waiting` for what,
//! `trying` the filter · `opening` what a session begins with, and what does not fit · `source` (with its
//! `reader`), `committer` the two threads, `lane` between them, `held` what is not settled, `stdin` the other
//! source · `load` the messages of a batch, `pace` how many · `trial` retries, halving, dead letters: pure ·
//! `filter`, `stay` processes, `feed` what they read, `refill` when · `output` cut into batches · `mark` what a
//! commit says · `file` a file as a destination, `lock` that one process has it
//!
//! `elsewhere` ends at engines, which is at least once: `allowance` how much is taken from one,
//! `publication` what is sent to one
//!
//! `window` which messages belong together, and when no more of them will come: pure · `windowed` the
//! loop over windows, `closing` those that are closed, `spool` the bytes of open ones, `late` where
//! messages go whose windows are closed · `key`, `time` what `--key` and `--time` make of a message,
//! `place` a field or a JSON value of its body · `state` what a filter keeps from run to run: private
//! copies, named by commits

mod allowance;
mod closing;
pub mod committer;
mod dealing;
mod elsewhere;
pub mod feed;
pub mod file;
pub mod filter;
mod held;
pub mod key;
pub mod lane;
mod late;
pub mod load;
mod lock;
pub mod mark;
mod opening;
mod order;
pub mod output;
mod pace;
pub mod place;
mod publication;
mod reader;
mod refill;
mod report;
mod run;
pub mod source;
pub mod spool;
pub mod state;
pub mod stay;
mod stdin;
pub mod time;
pub mod trial;
mod trying;
mod waiting;
pub mod window;
mod windowed;

pub use order::{Destination, GROUP_PREFIX, Order, Origin, Refusal, default_name};
pub use report::{End, Host, Misfit, Note, PipeError};
pub use run::Pipe;
pub use windowed::Windowed;
