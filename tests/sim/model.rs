//! What must hold: the promises as checks over everything that senders and receivers saw.
//!
//! It knows nothing of how the server works. A message's body names its sender and its number,
//! so a body stands for one message. An *era* is the time between two losses of power.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mq::units::{Name, Offset, QueueId, SyncPolicy, WallTime};

use crate::group::{Delivery, GroupModel};

/// A message: who sent it, and its number there, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    pub sender: u64,
    pub number: u64,
}

impl Message {
    pub fn body(self) -> String {
        // Lengths differ, so that messages and batches do not all lie at even places.
        let large = if self.is_large() { 2_000 + self.number * 377 % 6_000 } else { 0 };
        let pad = "x".repeat(((self.sender * 31 + self.number * 17) % 97 + large) as usize);
        format!("{}:{}:{pad}", self.sender, self.number)
    }

    /// Whether it is larger than what a segment is meant to hold.
    pub fn is_large(self) -> bool {
        self.sender.is_multiple_of(3) && self.number % 11 == 5
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

/// A message that was seen somewhere.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub message: Message,
    /// The last era in which it was seen there.
    pub era: u32,
}

/// What is known of one queue.
#[derive(Debug)]
pub struct QueueModel {
    pub policy: SyncPolicy,
    pub id: Option<QueueId>,
    /// What was confirmed to senders, and in which era last.
    pub confirmed: BTreeMap<Message, u32>,
    /// Of that, what is durable for sure.
    pub safe: BTreeSet<Message>,
    /// What was announced to the server at all.
    pub announced: BTreeSet<Message>,
    /// What was delivered to anyone, where.
    pub seen: BTreeMap<Offset, Seen>,
    /// Messages that were to wait, and until when.
    pub delayed: HashMap<Message, WallTime>,
    /// Where each message was seen.
    at: HashMap<Message, BTreeSet<Offset>>,
    /// Places from which a loss of power took what was seen there: it lies elsewhere now.
    taken_back: BTreeSet<Offset>,
    /// Dead letters may come back, each at another offset.
    pub requeued: bool,
    came_back: BTreeSet<Message>,
    pub groups: BTreeMap<Name, GroupModel>,
    pub era: u32,
    /// The queue gives up messages by itself: those that are not there prove nothing.
    pub gives_up: bool,
    /// Something was changed on the disk: it may stand still.
    pub spoilt: bool,
    /// Its messages come from a queue of which something was changed, and may be there twice.
    pub from_spoilt: bool,
}

impl QueueModel {
    pub fn new(policy: SyncPolicy) -> QueueModel {
        QueueModel {
            policy,
            id: None,
            confirmed: BTreeMap::new(),
            safe: BTreeSet::new(),
            announced: BTreeSet::new(),
            seen: BTreeMap::new(),
            delayed: HashMap::new(),
            at: HashMap::new(),
            taken_back: BTreeSet::new(),
            requeued: false,
            came_back: BTreeSet::new(),
            groups: BTreeMap::new(),
            era: 0,
            gives_up: false,
            spoilt: false,
            from_spoilt: false,
        }
    }

    pub fn group(&mut self, name: &Name) -> &mut GroupModel {
        self.groups.entry(name.clone()).or_default()
    }

    pub fn confirm(&mut self, messages: impl IntoIterator<Item = Message>) {
        let era = self.era;
        self.confirmed.extend(messages.into_iter().map(|message| (message, era)));
    }

    /// G1, G2, G4, G6: a delivery shows a message that was sent, whole, at one place, in the
    /// order of its sender; one that was settled does not come back while the power stays.
    /// One that was to wait does not come before its time.
    pub fn delivered(&mut self, group: &Name, delivery: &Delivery, body: &[u8]) {
        let offset = delivery.offset;
        let Some(message) = Message::parse(body) else {
            panic!(
                "G2: offset {offset} holds what nobody sent: {:?}",
                String::from_utf8_lossy(body)
            );
        };
        assert!(self.announced.contains(&message), "G2: {message:?} was never sent");
        if let Some(due) = self.delayed.get(&message) {
            let wall = delivery.wall;
            assert!(*due <= wall, "{message:?} comes at {wall}, before its time, {due}");
        }
        self.stands_at(message, offset);
        let era = self.era;
        self.group(group).delivered(message, era, delivery);
    }

    /// A message was seen there: one place, one message; one message, one place.
    fn stands_at(&mut self, message: Message, offset: Offset) {
        let era = self.era;
        if self.spoilt && era > 0 {
            // What changed by itself above the durable mark is a torn end after a loss of power.
            self.seen.insert(offset, Seen { message, era });
            self.at.entry(message).or_default().insert(offset);
            return;
        }
        if let Some(before) = self.seen.insert(offset, Seen { message, era }) {
            let before = before.message;
            assert_eq!(before, message, "G9: offset {offset} was given to two messages");
        }
        assert!(
            !self.taken_back.contains(&offset),
            "G2: {message:?} is stored at {offset}, and somewhere else as well"
        );
        let places = self.at.entry(message).or_default();
        if !places.insert(offset) || places.len() == 1 || self.from_spoilt {
            return;
        }
        if self.requeued {
            self.came_back.insert(message);
            return;
        }
        for other in places.iter().filter(|other| **other != offset) {
            // A weak policy may take back with the power what was delivered; it is sent again.
            let lost = self.policy != SyncPolicy::Always && self.seen[other].era < era;
            assert!(lost, "G2: {message:?} is stored at {other} and at {offset}");
            self.taken_back.insert(*other);
        }
    }

    /// G4: the messages of one sender lie in their order, each where it was seen last; those that
    /// were to wait lie where their time came. What a loss of power may have taken back counts
    /// only where it was seen since: the witness has seen all that is there.
    pub fn check_order(&self) {
        let stands = |offset: &&Offset| !self.may_forget() || self.seen[offset].era == self.era;
        let in_order = |message: &Message| {
            !self.delayed.contains_key(message) && !self.came_back.contains(message)
        };
        let places: BTreeMap<Offset, Message> = self
            .at
            .iter()
            .filter(|(message, _)| in_order(message))
            .filter_map(|(message, offsets)| Some((*offsets.iter().rfind(stands)?, *message)))
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

    /// Whether what was confirmed may be gone: power was lost under a weak policy.
    pub fn may_forget(&self) -> bool {
        self.era > 0 && self.policy != SyncPolicy::Always
    }

    /// Whether this one may be gone.
    fn may_be_lost(&self, message: &Message) -> bool {
        let since = self.confirmed.get(message).is_none_or(|era| *era < self.era);
        self.policy != SyncPolicy::Always && since && !self.safe.contains(message)
    }

    pub fn lose_power(&mut self) {
        self.era += 1;
        self.groups.values_mut().for_each(GroupModel::lose_power);
    }

    /// All that was confirmed so far is on the disk.
    pub fn make_safe(&mut self) {
        let confirmed = self.confirmed.iter().filter(|(_, era)| **era == self.era);
        self.safe.extend(confirmed.map(|(message, _)| *message));
    }

    /// G13, at the end, when everything that is left has been delivered, acked or buried: what
    /// failed is in the dead-letter queue, once, and nothing is both there and acked.
    pub fn check_dead(&self, group: &Name, dead: &QueueModel) {
        let books = &self.groups[group];
        let buried: BTreeSet<Message> = dead.seen.values().map(|seen| seen.message).collect();
        for (offset, seen) in self.seen.iter().filter(|(at, _)| books.was_delivered(**at)) {
            let message = seen.message;
            if buried.contains(&message) {
                assert!(
                    !books.settled.contains(offset),
                    "G13: {message:?} at {offset} was acked, and is dead as well"
                );
                continue;
            }
            if self.may_forget() || self.gives_up {
                // It may have gone with the power, or to make room.
                continue;
            }
            let is_poison = message.is_poison() && books.fails;
            assert!(!is_poison, "G13: {message:?} at {offset} failed, and is not dead");
            // One that ran out of attempts in ends of the server may have come back from the dead since.
            let came_back = self.came_back.contains(&message)
                && self.at[&message].iter().any(|other| books.acked.contains(other));
            let acked = books.acked.contains(offset) || came_back;
            assert!(acked, "{message:?} at {offset} was left behind");
        }
        for message in buried {
            assert!(self.announced.contains(&message), "{message:?} is dead and was never sent");
        }
    }

    /// How many messages waited for their time and came, how many were dead and came back, and how
    /// many were large.
    pub fn figures(&self) -> [usize; 3] {
        let waited = self.seen.values().filter(|seen| self.delayed.contains_key(&seen.message));
        let large = self.seen.values().filter(|seen| seen.message.is_large());
        [waited.count(), self.came_back.len(), large.count()]
    }

    /// What was seen where, as a number: equal for equal histories.
    pub fn hash(&self) -> u64 {
        self.seen.iter().fold(self.confirmed.len() as u64, |hash, (offset, seen)| {
            (hash ^ offset.0 ^ (seen.message.sender << 32) ^ seen.message.number)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(17)
        })
    }

    /// G1, G8, G9, at the end, when everything that is left has been delivered, the dead letters
    /// too: nothing that was confirmed is missing, but for a suffix under a weak policy after a loss of power.
    pub fn check_nothing_lost(&self, dead: &BTreeSet<Message>) {
        if self.gives_up || self.spoilt {
            return;
        }
        // Of each sender and era the first that is gone.
        let mut gone: BTreeMap<(u64, u32), Message> = BTreeMap::new();
        for (message, era) in &self.confirmed {
            // What is dead in every group that there was is not there for those that come.
            if self.at.contains_key(message) || dead.contains(message) {
                continue;
            }
            assert!(
                self.may_be_lost(message),
                "G1: {message:?} (to wait until {:?}) was confirmed under {} and is gone",
                self.delayed.get(message),
                self.policy
            );
            if !self.delayed.contains_key(message) {
                gone.entry((message.sender, *era)).or_insert(*message);
            }
        }
        for (message, era) in &self.confirmed {
            if self.delayed.contains_key(message) || self.came_back.contains(message) {
                continue;
            }
            let Some(first) = gone.get(&(message.sender, *era)).filter(|gone| *gone < message)
            else {
                continue;
            };
            let places = self.at.get(message).into_iter().flatten();
            let stayed = places.into_iter().find(|offset| self.seen[offset].era > *era);
            assert!(
                stayed.is_none(),
                "G9: {message:?} is there and {first:?}, which was before it, is gone"
            );
        }
    }

    /// At the end, a group that took nothing before has everything that the queue holds: each
    /// message once (G2), and all that was confirmed and cannot be lost (G1).
    pub fn check_witness(&self, group: &Name) {
        let Some(books) = self.groups.get(group) else { return };
        let mut there: HashMap<Message, Offset> = HashMap::new();
        for offset in books.acked.iter() {
            let message = self.seen[offset].message;
            if let Some(other) = there.insert(message, *offset) {
                panic!("G2: {message:?} is stored at {other} and at {offset}");
            }
        }
        if self.gives_up || self.spoilt {
            return;
        }
        for message in self.confirmed.keys() {
            assert!(
                there.contains_key(message) || self.may_be_lost(message),
                "G1: {message:?} was confirmed and another group never gets it"
            );
        }
    }
}
