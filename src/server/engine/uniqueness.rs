//! Messages that a queue does not want twice: of an id that it remembers, or of a key that is
//! pending.
//!
//! Asks the log's tables and the broker, and changes nothing. Called by `sending` for batches in
//! which some message has an id or a key, of queues that remember them.

use std::collections::HashSet;

use crate::batch::{Record, Traits, tags};
use crate::broker::{Broker, QueueKey};
use crate::log::storage::Storage;
use crate::log::{Digest, Log};
use crate::units::{Name, Offset, OffsetRange, WallTime};
use crate::wire::{ErrorCode, Fault};

use super::hosting::Hosted;
use super::portion::Verdict;
use super::{fault, fault_with};

/// The ids and keys of one batch, against those that the queue knows.
pub(super) struct Doorkeeper<'a, S: Storage> {
    log: &'a mut Log<S>,
    /// The log of its delayed messages, which has ids of its own.
    delayed: Option<&'a mut Log<S>>,
    broker: &'a Broker,
    queue: QueueKey,
    /// Grows whenever something may have gone.
    settles: u64,
    unless_pending: bool,
    wall: WallTime,
    ids: HashSet<Digest>,
    keys: HashSet<Digest>,
    /// Keys of the batch that the queue does not know yet.
    new_keys: u64,
}

/// Whether messages that ask for this have to be looked at.
pub(super) fn asks<S: Storage>(log: &mut Log<S>, traits: &Traits, unless_pending: bool) -> bool {
    let unique = log.unique();
    unless_pending || (traits.ids && unique.has_ids()) || (traits.keys && unique.has_keys())
}

impl<'a, S: Storage> Doorkeeper<'a, S> {
    pub fn new(
        hosted: &'a mut Hosted<S>,
        broker: &'a Broker,
        unless_pending: bool,
        wall: WallTime,
    ) -> Doorkeeper<'a, S> {
        let (queue, settles) = (hosted.key, hosted.settles);
        let delayed = hosted.delay.open_mut().map(|waiting| waiting.delays.log());
        Doorkeeper {
            log: &mut hosted.log,
            delayed,
            broker,
            queue,
            settles,
            unless_pending,
            wall,
            ids: HashSet::new(),
            keys: HashSet::new(),
            new_keys: 0,
        }
    }

    /// Whether an id is known to the log of the delayed messages.
    fn is_delayed(&mut self, record: &Record<'_>) -> bool {
        let (Some(log), Some(text)) = (&mut self.delayed, record.attribute(tags::ID)) else {
            return false;
        };
        let unique = log.unique();
        let id = unique.digest(text);
        unique.has_ids() && unique.knows_id(id, self.wall)
    }

    /// What becomes of the next message of the batch.
    pub fn verdict(&mut self, record: &Record<'_>) -> Verdict {
        let unique = self.log.unique();
        let digest = |tag| record.attribute(tag).map(|text| unique.digest(text));
        let id = digest(tags::ID).filter(|_| unique.has_ids());
        let key = digest(tags::KEY).filter(|_| unique.has_keys());
        if id.is_some_and(|id| self.ids.contains(&id) || unique.knows_id(id, self.wall)) {
            return Verdict::There;
        }
        if id.is_some() && self.is_delayed(record) {
            return Verdict::There;
        }
        let unique = self.log.unique();
        let (broker, queue) = (self.broker, self.queue);
        let visible = broker.visible_end(queue);
        let is_gone = |offset: Offset| {
            let message = OffsetRange::new(offset, Offset(offset.0 + 1));
            offset < visible && broker.is_gone(queue, message)
        };
        match key {
            None if self.unless_pending => return Verdict::Refuse(keyless(self.log.name())),
            None => {}
            Some(key) if self.keys.contains(&key) && self.unless_pending => return Verdict::There,
            Some(key) if self.keys.contains(&key) => {}
            Some(key) => {
                if self.unless_pending && unique.is_pending(key, is_gone) {
                    return Verdict::There;
                }
                if !unique.admits_key(key, self.new_keys, self.settles, is_gone) {
                    return Verdict::Refuse(many_keys(self.log.name(), self.log));
                }
                self.new_keys += u64::from(!unique.knows_key(key));
            }
        }
        self.ids.extend(id);
        self.keys.extend(key);
        Verdict::Store
    }
}

pub(super) fn keyless(name: &Name) -> Fault {
    fault(
        ErrorCode::BadInput,
        format!("a message without a key was sent to {name} unless one of its key is pending"),
    )
}

fn many_keys<S: Storage>(name: &Name, log: &Log<S>) -> Fault {
    let most = log.settings().unique_keys.unwrap_or_default();
    fault_with(
        ErrorCode::Full,
        format!("queue {name} holds pending messages of its limit of {most} keys"),
        "send again when some of them have been dealt with",
    )
}
