//! The log of one queue: segments, append, recovery, retention, ack journals, producers.
//!
//! It owns the queue's files and nothing else: it knows offsets and bytes, not connections,
//! leases or credit. Everything it asks of the disk goes through [`storage::Storage`]. What may
//! wait for the disk is a [`Job`] for a helper thread; the rest is a plain write to, or a warm
//! read from, the page cache, made by the one thread that owns the [`Log`].
//!
//! # The files of a queue
//!
//! In `queues/NAME/` below the store:
//!
//! | file | holds |
//! |---|---|
//! | `queue.json` | id and settings (`meta`) |
//! | `0000000000000001.seg` ... | segments of batches (`segment`) |
//! | `groups/NAME.acks` | the ack journal of a group (`record`) |
//! | `groups/spare` | room kept for an ack journal (`spare`) |
//! | `dropped` | which segments were dropped (`dropped`) |
//! | `snapshot` | producers, ids and keys (`snapshot`) |
//! | `delayed/` | messages that wait for their time: a log and its runs (`delayed`) |
//! | `torn-...` | tails that a power loss tore, kept for people |
//! | `*.tmp`, `staging-*` | unfinished; removed at the next start |
//!
//! # Invariants
//!
//! 1. A batch is visible only if its segment's directory entry is durable: segments are
//!    prepared ahead, by a job.
//! 2. A segment is sealed only when all of it is durable, and in order; so behind a sealed
//!    segment there is no unsealed one that is older.
//! 3. The file of an unsealed segment ends with its last batch: what a failed write left is cut
//!    off before anything else is written.
//! 4. The durable end grows only with syncs that succeeded, in the order in which they began;
//!    after the first that failed, never again.
//! 5. Offsets only grow, over crashes too. Gaps lie between segments only.
//! 6. A file that others need is unlinked only after the record that it is dropped is durable.
//!
//! # Map
//!
//! `log` the state and small questions · `append` · `named` producers · `staging` large messages · `gathered` commits ·
//! `locate` and `cut` reading · `seek` times and counts · `retention` what is kept for replay · `schedule` which job when, `syncs` of
//! them the syncs · `jobs` what they do, `closer` what can wait · `recovery`, `recall` and `mend` opening · `scan`
//! verifying · `check` · `queues` making and removing · `groups`, `position`, `journal` what groups
//! have settled, tried and leased, `spare` room for that · `producers`, `unique` what is known beside the messages ·
//! `delayed` messages that wait for their time · `segment`, `record`, `dropped`, `snapshot`, `meta` the formats.

mod append;
mod check;
mod closer;
mod commit;
mod cut;
mod delayed;
mod dropped;
mod error;
mod files;
mod gathered;
mod groups;
mod jobs;
mod journal;
mod locate;
#[expect(clippy::module_inception, reason = "a file is named after its noun")]
mod log;
mod mend;
mod meta;
mod named;
mod position;
mod producers;
mod queues;
mod recall;
mod record;
mod recovery;
mod retention;
mod scan;
mod schedule;
mod seek;
mod segment;
mod snapshot;
mod spare;
mod staging;
pub mod storage;
mod syncs;
mod unique;

pub use append::{NewBatch, NewChain};
pub use check::{CheckBound, Finding, Report, check};
pub use commit::{CommitPart, NewCommit, commit_bytes};
pub use cut::{CutCache, Select};
pub use delayed::{Delays, DelaysProgress, DueBatch, Taking, create_delays};
pub use error::{AppendError, Damage, LogError};
pub use gathered::{CommitMemory, Gathered};
pub use jobs::{Done, Job};
pub use journal::GroupMark;
pub use locate::Found;
pub use log::{Boot, GroupFile, Log, Options};
pub use named::{Committed, InternalBatch, OpenedProducer};
pub use position::{AccountStart, GroupAccount, GroupFact, GroupPosition, LeasedRange, TriedRange};
pub use producers::{Forgotten, Judgement, Producers};
pub use queues::{create_queue, list_queues, remove_queue, settle_queues, sweep_removed};
pub use recovery::{Recovered, TornTail};
pub use schedule::Progress;
pub use seek::{Extent, Sought};
pub use segment::FORMAT_VERSION;
pub use snapshot::Counters;
pub use staging::Staging;
pub use unique::{Digest, Unique};
