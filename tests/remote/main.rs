//! Queues at engines, tried on the real servers. A server that is not installed makes its tests say
//! SKIPPED.

#![allow(clippy::single_range_in_vec_init, reason = "ranges of messages, and often one")]

mod contract;
mod foreign;
mod servers;

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "amqp")]
mod rabbitmq;
#[cfg(feature = "stomp")]
mod stomp;
#[cfg(feature = "zeromq")]
mod zeromq;
