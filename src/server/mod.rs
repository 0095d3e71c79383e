//! The server: connections, broker and logs brought together.
//!
//! ```text
//!            sockets                                   helper threads
//!   ┌──────────┴──────────┐                          ┌───────┴───────┐
//!   │ event_loop          │  frames   ┌────────┐ jobs│ workers       │
//!   │  inbox: bytes→frames├──────────▶│ engine ├────▶│  sync, unlink,│
//!   │  outbox: →sendfile  │◀──────────┤        │◀────┤  cold reads   │
//!   └─────────────────────┘  outboxes └─┬────┬─┘ done└───────────────┘
//!                                 offsets│    │bytes
//!                                   ┌────▼─┐ ┌▼────┐
//!                                   │broker│ │ log │ one for each queue
//!                                   └──────┘ └─────┘
//! ```
//!
//! The [`engine`] is everything but sockets, threads and clocks, so the simulator runs it as it
//! is. The event loop is the only place with system calls on sockets.

pub mod clock;
pub mod engine;
pub mod event_loop;
pub mod findings;
pub mod inbox;
pub mod outbox;
pub mod report;
mod socket;
pub mod tenure;
pub mod workers;

mod serve;

pub use serve::{Options, ServeError, serve};
