//! The client: reach or start the server of a store, send to a queue, receive from one,
//! administrate.
//!
//! Blocking and single-threaded; it knows frames and the store directory, and nothing of what is
//! behind the socket. It never prints and never ends the process: the tools do, by way of
//! [`cli`](crate::cli).
//!
//! ```text
//! start::Dialer ──▶ connection::Connection ◀── admin::call
//!   │                      ▲
//!   └ helper: mq-remote    │
//!               send::Sender, receive::Receiver
//!
//! send:    input ─▶ intake (cut, or pack with attributes) ─▶ window ─▶ PUBLISH, till CONFIRM
//! receive: DELIVER ─▶ delivery (verify) ─▶ format ─▶ piece ─▶ ledger ─▶ outlet ─▶ the reader
//!          CREDIT ◀─ credit ◀──────────────────── ACK ◀────────┴─── taken ◀───────────┘
//!          or into work: messages ─▶ jobs ─BEGIN─▶ command (processes) ─▶ ACK, NACK
//! ```

pub mod admin;
pub mod buffers;
pub mod command;
pub mod connection;
pub mod credit;
pub mod cut;
pub mod delivery;
pub mod dispositions;
pub mod envelope;
pub mod error;
pub mod extent;
pub mod figures;
pub mod format;
pub mod given;
pub mod helper;
pub mod inherited;
pub mod intake;
pub mod ledger;
pub mod letters;
pub mod outlet;
pub mod packer;
pub mod piece;
pub mod place;
pub mod receive;
pub mod rerun;
pub mod send;
pub mod source;
pub mod start;
pub mod tee;
pub mod users;
pub mod wait;
pub mod window;
pub mod work;

pub use connection::{Connection, Filled};
pub use error::ClientError;
pub use start::Dialer;
