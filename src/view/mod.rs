//! What `mq-stat` shows: the figures of a server as a live view, as lines, as JSON, as Prometheus
//! text, as a check for monitoring.
//!
//! ```text
//! wire::stat figures ──▶ Model (Tracks: steps, marks) ──▶ Rows, Totals
//!                                                           │
//!          live::Screen ──▶ Canvas ──▶ Painter ──▶ bytes  ◀─┼─▶ lines, json, prometheus, check
//! ```
//!
//! Pure: no clock, no terminal, no socket; whoever calls it has asked the server
//! ([`client::figures`](crate::client::figures)) and writes what comes out. Used by `mq-stat` alone.

pub mod canvas;
pub mod check;
pub mod columns;
pub mod filter;
pub mod format;
pub mod glyphs;
pub mod interval;
pub mod json;
pub mod latency;
pub mod lines;
pub mod live;
pub mod model;
pub mod prometheus;
pub mod track;

pub use filter::Filter;
