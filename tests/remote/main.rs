//! Queues at engines, tried on the real servers. A server that is not installed makes its tests say
//! SKIPPED.

#![allow(clippy::single_range_in_vec_init, reason = "ranges of messages, and often one")]

#[path = "../harness/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod harness;

mod certificates;
mod contract;
mod foreign;
#[cfg(any(feature = "stomp", feature = "zeromq"))]
mod peers;
mod servers;
mod tls;
mod tools;

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "nats")]
mod nats_streams;
#[cfg(feature = "amqp")]
mod rabbitmq;
#[cfg(feature = "stomp")]
mod stomp;
#[cfg(feature = "zeromq")]
mod zeromq;
