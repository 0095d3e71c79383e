//! The wire protocol: frames between a client and a server on one stream socket.
//!
//! ```text
//! client                                     server
//!   HELLO  ─────────────────────────────────▶        versions, who I am
//!          ◀───────────────────────────────── WELCOME
//!   OPEN_SEND (channel 1) ──────────────────▶
//!          ◀───────────────────────────────── SENDING      last sequence of my producer
//!   PUBLISH, PUBLISH, ... ──────────────────▶ append
//!          ◀───────────────────────────────── CONFIRM      up to this sequence
//!   COMMIT, COMMIT, ... ────────────────────▶ several batches, appended as one
//!          ◀───────────────────────────────── CONFIRM      once they are durable
//!   OPEN_RECEIVE (channel 2), CREDIT ───────▶
//!          ◀───────────────────────────────── RECEIVING
//!          ◀───────────────────────────────── DELIVER      whole batches as they are stored
//!          ◀───────────────────────────────── EXTENT       or where they are, and a descriptor
//!   ACK ranges, CREDIT ─────────────────────▶ journal
//!   CLOSE  ─────────────────────────────────▶
//!          ◀───────────────────────────────── CLOSED       all that came before is done
//!   BEGIN ranges, NACK ─────────────────────▶ attempts, back-off, dead letters
//!   EXTENTS ────────────────────────────────▶ so many are read
//!   ADMIN (one at a time a channel) ────────▶
//!          ◀───────────────────────────────── REPLY | ERROR
//! ```
//!
//! Turns bytes into [`Request`]s and [`Reply`]s and back; it never reads or writes a socket and
//! keeps no state. Bytes from a peer never panic. Everything that is not on the hot path has a
//! JSON body, so that fields can be added without a new version.
//!
//! Frozen for all versions, so that any client can talk to any server: the frame header, the
//! first 12 bytes of HELLO, the whole of STOP, ERROR and GOODBYE.

mod fault;
mod frame;
mod json;
mod pattern;
mod receipt;
mod reply;
mod request;
pub mod stat;

pub use fault::{ErrorCode, Fault, Goodbye};
pub use frame::{FRAME_HEADER_BYTES, FrameHeader, Kind, WireError, frame_flags};
pub use json::{
    Admin, Begun, CANNOT_ACK, CheckReport, ClientInfo, ClockInfo, Finding, GroupInfo, Holding,
    Nack, OpenReceive, OpenSend, PipeFigures, PipeInfo, QueueInfo, QueuePattern, ReceiveMode,
    Receiving, Resume, Sending, ServerInfo, Settlement, StoreInfo,
};
pub use receipt::Receipt;
pub use reply::{DELIVER_HEAD_BYTES, DeliverHead, EXTENT_BYTES, ExtentHead, Reply};
pub use request::{
    CommitHead, PUBLISH_HEAD_BYTES, PublishHead, ReleaseMode, Request, encode_ranges,
};

/// Channels from here on are the server's: one for each queue of a receiver that takes from
/// several. Clients number theirs below.
pub const MEMBER_CHANNELS: u16 = 0x8000;

/// The protocol version that this build speaks. From 3 on PUBLISH tells when messages were read.
pub const VERSION: u16 = 3;

/// The oldest protocol version that this build still speaks.
pub const VERSION_OLDEST: u16 = 2;

/// The first bytes of HELLO and WELCOME.
pub const MAGIC: [u8; 8] = *b"mq wire\n";
