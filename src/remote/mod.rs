//! Queues that live at an engine of a cluster: what `mq-remote` is made of.
//!
//! A client that meets a URL starts `mq-remote` on a socket pair and speaks the ordinary wire
//! protocol with it. So the tools know nothing of engines, and an engine knows nothing of frames:
//!
//! ```text
//! client ── wire frames ──▶ session ── batches of Outgoing ──▶ Publisher ──▶ engine
//!                              │  resends, retries, dead letters
//!        ◀── DELIVER, CONFIRM ─┘ ◀── batches of Incoming ───── Consumer  ◀── engine
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`address`] | the URL: engine, hosts, who we are, queue, options |
//! | [`engine`] | what an engine does for a session: the seam |
//! | [`message`] | a message as engines have it, on its way there or from there |
//! | [`session`] | the wire side: one client, one engine behind it |
//! | [`registry`] | the engines that are built in, and the table of what they can do |
//! | [`failure`] | why an engine did not do it, and what follows from that |
//! | [`place`] | what failures name, how hosts are found, which options are known |
//! | [`tls`] | which certificates are believed, and what is wrong with one |
//! | [`outstanding`] | which of what was delivered is settled |
//! | `rabbitmq`, `nats`, `kafka`, `stomp`, `zeromq` | the engines, each behind its Cargo feature |
//!
//! tokio lives here only. An engine is thrown away when its connection is lost, and made anew:
//! the session keeps what is not confirmed and sends it again.

pub mod address;
pub mod engine;
pub mod failure;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod message;
#[cfg(feature = "nats")]
pub mod nats;
pub mod outstanding;
pub mod place;
#[cfg(feature = "amqp")]
pub mod rabbitmq;
pub mod registry;
pub mod session;
#[cfg(feature = "stomp")]
pub mod stomp;
pub mod tls;
#[cfg(feature = "zeromq")]
pub mod zeromq;

/// Waits for a moment, or for ever where there is none.
async fn until(moment: Option<std::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
