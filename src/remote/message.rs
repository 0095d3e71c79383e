//! A message as engines have it: a body, and what mq knows of it beside.

use bytes::Bytes;

use crate::units::WallTime;

/// What stands beside a body. Texts are UTF-8, as everywhere in mq.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The key: what orders and partitions.
    pub key: Option<String>,
    /// The id that its sender gave.
    pub id: Option<String>,
    /// Names and values, in the order in which they were given; a name may come twice.
    pub headers: Vec<(String, String)>,
    /// When it happened, by its sender; else when the engine stored it, if it says so.
    pub event_time: Option<WallTime>,
    /// Not delivered after this.
    pub expires: Option<WallTime>,
    /// Not delivered before this.
    pub not_before: Option<WallTime>,
}

impl Facts {
    /// Whether nothing stands there: then nothing has to be made of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Facts::default()
    }
}

/// A message on its way to an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The body, in general a part of the frame that it came in.
    pub body: Bytes,
    /// What stands beside it; absent for most.
    pub facts: Option<Box<Facts>>,
    /// The number of this message with its sender. Together with
    /// [`PublishWish::sender`](super::engine::PublishWish::sender) it names the message: a resend
    /// has the same, so an engine that can tell stores it once.
    pub number: u64,
}

/// A message that came from an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The body.
    pub body: Bytes,
    /// What stands beside it; absent for most. Where the message has no id of its own and the
    /// engine has a place for it that lasts (`topic:partition:offset`), that is its id here.
    pub facts: Option<Box<Facts>>,
    /// How often it was delivered before, plus one, as the engine counts; 0: it does not count.
    pub attempt: u32,
    /// It may have been delivered before.
    pub redelivered: bool,
}
