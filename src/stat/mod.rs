//! What is measured of queues: latencies, and what happened in the last seconds and minutes.
//!
//! Pure: no clock, no files, no sockets; time comes in as an argument. Everything is counted for a
//! batch or a range at once, never for a message, and nothing runs when nothing happens: a second is
//! closed by the first thing that is counted after it, or by whoever asks. The server's engine
//! keeps one [`Meter`] for each queue that moves messages, and drops those that have been idle for
//! longest when there are too many.
//!
//! - [`latency`]: how often which latency was measured
//! - [`history`]: the newest seconds and minutes
//! - [`meter`]: one queue, and how its latencies come about

pub mod history;
pub mod latency;
pub mod meter;

pub use history::{Flow, History, Slice};
pub use latency::Latency;
pub use meter::{Handing, Meter};
