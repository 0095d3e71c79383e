//! The log of one queue: segments, append, recovery, retention.

pub mod storage;
