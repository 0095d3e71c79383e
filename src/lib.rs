//! mq: durable message queues for shell pipes.

pub mod batch;
pub mod broker;
pub mod limits;
pub mod log;
pub mod units;
pub mod wire;
