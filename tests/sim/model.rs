//! What must hold: the promises as checks over everything that senders and receivers saw.
//!
//! It knows nothing of how the server works. A message's body names its sender and its number,
//! so a body stands for one message.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mq::units::{Offset, OffsetRange, QueueId, SyncPolicy, WallTime};

/// A message: who sent it, and its number there, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    pub sender: u64,
    pub number: u64,
}

impl Message {
    pub fn body(self) -> String {
        // Lengths differ, so that messages and batches do not all lie at even places.
        let pad = "x".repeat(((self.sender * 31 + self.number * 17) % 97) as usize);
        format!("{}:{}:{pad}", self.sender, self.number)
    }

    /// Whether whoever gets it fails.
    pub fn is_poison(self) -> bool {
        (self.number * 5 + self.sender) % 9 == 4
    }

    pub fn parse(body: &[u8]) -> Option<Message> {
        let text = std::str::from_utf8(body).ok()?;
        let mut parts = text.split(':');
        let message =
            Message { sender: parts.next()?.parse().ok()?, number: parts.next()?.parse().ok()? };
        (message.body() == text).then_some(message)
    }
}

/// What is known of one queue.
#[derive(Debug)]
pub struct QueueModel {
    pub policy: SyncPolicy,
    pub id: Option<QueueId>,
    /// What was confirmed to senders.
    pub confirmed: BTreeSet<Message>,
    /// What was announced to the server at all.
    pub announced: BTreeSet<Message>,
    /// What was delivered, where.
    pub seen: BTreeMap<Offset, Message>,
    /// Messages that were to wait, and until when.
    pub delayed: HashMap<Message, WallTime>,
    at: HashMap<Message, Offset>,
    /// Dead letters may come back, each at another offset.
    pub requeued: bool,
    came_back: BTreeSet<Message>,
    /// Acks that were sent.
    pub acked: BTreeSet<Offset>,
    /// Acks that the server has answered for (by CLOSED), or that were sent before something was
    /// answered on the same connection: they must hold until power is lost.
    pub settled: BTreeSet<Offset>,
    /// Receivers fail what is poison.
    pub fails: bool,
    /// The power failed since: weak policies may have lost messages, acks may have been lost.
    pub power_lost: bool,
    /// Confirmed under a weak policy before power was lost: may be missing, as a suffix.
    pub at_risk: BTreeSet<Message>,
}

impl QueueModel {
    pub fn new(policy: SyncPolicy) -> QueueModel {
        QueueModel {
            policy,
            id: None,
            confirmed: BTreeSet::new(),
            announced: BTreeSet::new(),
            seen: BTreeMap::new(),
            delayed: HashMap::new(),
            at: HashMap::new(),
            requeued: false,
            came_back: BTreeSet::new(),
            acked: BTreeSet::new(),
            settled: BTreeSet::new(),
            fails: true,
            power_lost: false,
            at_risk: BTreeSet::new(),
        }
    }

    /// G1, G2, G4, G6: a delivery shows a message that was sent, whole, at one place, in the
    /// order of its sender; one that was settled does not come back while the power stays.
    /// One that was to wait does not come before its time.
    pub fn delivered(&mut self, offset: Offset, body: &[u8], redelivered: bool, wall: WallTime) {
        let Some(message) = Message::parse(body) else {
            panic!(
                "G2: offset {offset} holds what nobody sent: {:?}",
                String::from_utf8_lossy(body)
            );
        };
        assert!(self.announced.contains(&message), "G2: {message:?} was never sent");
        if let Some(due) = self.delayed.get(&message) {
            assert!(*due <= wall, "{message:?} comes at {wall}, before its time, {due}");
        }
        if let Some(before) = self.seen.insert(offset, message) {
            assert_eq!(before, message, "G9: offset {offset} was given to two messages");
            assert!(
                redelivered || self.power_lost,
                "G6: {message:?} at {offset} came again without the mark of a redelivery"
            );
            assert!(
                !self.settled.contains(&offset),
                "G6: {message:?} at {offset} came back after its ack"
            );
        }
        if let Some(other) = self.at.insert(message, offset) {
            // A weak policy may take back with the power what was delivered; unconfirmed, it is
            // then sent again.
            if other != offset && self.requeued {
                self.came_back.insert(message);
            }
            assert!(
                other == offset || self.may_forget() || self.requeued,
                "G2: {message:?} is stored at {other} and at {offset}"
            );
        }
    }

    /// G4: the messages of one sender lie in their order, each where it was seen last; those that
    /// were to wait lie where their time came.
    pub fn check_order(&self) {
        let places: BTreeMap<Offset, Message> = self
            .at
            .iter()
            .filter(|(message, _)| {
                !self.delayed.contains_key(message) && !self.came_back.contains(message)
            })
            .map(|(message, offset)| (*offset, *message))
            .collect();
        let mut last: HashMap<u64, u64> = HashMap::new();
        for (offset, message) in places {
            if let Some(before) = last.insert(message.sender, message.number) {
                assert!(
                    before < message.number,
                    "G4: {message:?} at {offset} lies behind {before}"
                );
            }
        }
    }

    /// Acks that the server must have written down by now.
    pub fn settle(&mut self, ranges: &[OffsetRange]) {
        for range in ranges {
            for offset in range.start.0..range.end.0 {
                self.settled.insert(Offset(offset));
            }
        }
    }

    /// Whether what was confirmed may be gone: power was lost under a weak policy.
    pub fn may_forget(&self) -> bool {
        self.power_lost && self.policy != SyncPolicy::Always
    }

    pub fn lose_power(&mut self) {
        self.power_lost = true;
        // An ack that was not synced may be lost with the power: the message comes again.
        self.settled.clear();
        if self.policy != SyncPolicy::Always {
            self.at_risk.extend(self.confirmed.iter().copied());
        }
    }

    /// G13, at the end, when everything that is left has been delivered, acked or buried: what
    /// failed is in the dead-letter queue, once, and nothing is both there and acked.
    pub fn check_dead(&self, dead: &QueueModel) {
        let buried: BTreeSet<Message> = dead.seen.values().copied().collect();
        for (message, offset) in &self.at {
            if buried.contains(message) {
                assert!(
                    !self.settled.contains(offset),
                    "G13: {message:?} at {offset} was acked, and is dead as well"
                );
                continue;
            }
            if self.may_forget() {
                // It may have gone with the power.
                continue;
            }
            assert!(!message.is_poison(), "G13: {message:?} at {offset} failed, and is not dead");
            assert!(self.acked.contains(offset), "{message:?} at {offset} was left behind");
        }
        for message in buried {
            assert!(self.announced.contains(&message), "{message:?} is dead and was never sent");
        }
    }

    /// How many messages waited for their time and came, and how many were dead and came back.
    pub fn figures(&self) -> [usize; 2] {
        let waited = self.seen.values().filter(|message| self.delayed.contains_key(message));
        [waited.count(), self.came_back.len()]
    }

    /// What was seen where, as a number: equal for equal histories.
    pub fn hash(&self) -> u64 {
        self.seen.iter().fold(self.confirmed.len() as u64, |hash, (offset, message)| {
            (hash ^ offset.0 ^ (message.sender << 32) ^ message.number)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(17)
        })
    }

    /// G1, G8, G9, at the end, when everything that is left has been delivered: nothing that was
    /// confirmed is missing, but for a suffix under a weak policy after a loss of power.
    pub fn check_nothing_lost(&self) {
        let there: BTreeSet<Message> = self.seen.values().copied().collect();
        for message in &self.confirmed {
            if !there.contains(message) {
                assert!(
                    self.at_risk.contains(message),
                    "G1: {message:?} (to wait until {:?}) was confirmed under {} and is gone",
                    self.delayed.get(message),
                    self.policy
                );
            }
        }
    }
}
