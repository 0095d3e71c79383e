//! mq: durable message queues for shell pipes.
//!
//! One store directory, one `mq-serve`, one Unix socket. Small tools move lines (or any bytes)
//! through it at the speed of a plain pipe, and nothing that was confirmed is lost. The unit of
//! work everywhere is the [batch], not the message: that is where the speed comes from.
//!
//! # The way of a message
//!
//! ```text
//! stdin → client::send → wire → server::engine → log ──visible──▶ CONFIRM
//!                                   │    ▲
//!                                 broker │ offers, acks
//!                                   ▼    │
//! stdout ← client::outlet ← client::receive ← wire (DELIVER, by sendfile)
//! ```
//!
//! # Map
//!
//! | module | what it is |
//! |---|---|
//! | [`units`] | newtypes for units and identities |
//! | [`limits`] | every bound, with its reason |
//! | [`settings`] | what a user can set on a queue |
//! | [`batch`] | the batch: layout, checksums, slicing |
//! | [`wire`] | the protocol: bytes ⇄ requests and replies |
//! | [`log`] | the log of one queue: segments, append, recovery, retention |
//! | [`broker`] | queues, groups, consumers, leases, credit: a pure state machine |
//! | [`stat`] | what is measured of queues: latencies, the last seconds and minutes |
//! | [`store`] | the store directory: finding it, checking it, its locks |
//! | [`server`] | the engine (all but I/O), the event loop, helper threads |
//! | [`client`] | connect or start the server; sender; receiver |
//! | [`pipe`] | the stream processor: a queue through a filter into a queue |
//! | `remote` | queues that live at an engine of a cluster (feature `remote`) |
//! | [`view`] | what `mq-stat` shows: live view, lines, JSON, Prometheus text, checks |
//! | [`cli`] | shared flags, exit statuses, printing of errors |
//! | [`planted`] | bugs that test the tests; nothing in an ordinary build |
//!
//! # Invariants
//!
//! What is confirmed is stored as the queue's sync policy says. An offset that anyone has seen is
//! never given to another message. Whoever takes a batch verifies it. Nothing grows without a
//! bound that is named in [`limits`]. A failed sync is never retried. Errors never delete data.
//! `ARCHITECTURE.md` says more.
//!
//! # Glossary
//!
//! **queue**: a named, append-only log. **message**: some bytes, a line as a rule. **batch**: the
//! messages that one read returned, moved and stored as one. **frame**: what travels on the
//! socket. **segment**: a file of batches. **offset**: the place of a message in its queue.
//! **group**: a reader's position on a queue; receivers of one group share its messages.
//! **lease**: a message is with a receiver. **ack**: it is settled. **credit**: how many messages
//! a receiver may have. **sync**: making durable. **mark**: up to where a log was durable when a
//! batch was written.

pub mod batch;
pub mod broker;
pub mod cli;
pub mod client;
pub mod limits;
pub mod log;
pub mod pipe;
pub mod planted;
#[cfg(feature = "remote-core")]
pub mod remote;
pub mod server;
pub mod settings;
pub mod stat;
pub mod store;
pub mod units;
pub mod url;
pub mod view;
pub mod wire;
