//! What a queue knows of the ids and keys of its messages, so that an id is stored once and a key
//! is pending once.
//!
//! Two bounded tables in memory, kept only where the queue's settings ask for them. They are
//! exact over a restart: a snapshot at each roll, and the batches behind it. Does no I/O. Called
//! by the log as batches are appended, and by the server, which asks before it appends.
//!
//! Ids and keys are kept as 128-bit digests, keyed with the queue's id: no one who does not know
//! it can make two that collide, and by chance none do.

use std::collections::{BTreeSet, HashSet, VecDeque};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::batch::{BatchHeader, Framing, Record, tags};
use crate::limits;
use crate::settings::{IdWindow, Settings};
use crate::units::{Offset, QueueId, WallTime};

/// An id or a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub(super) [u64; 2]);

/// The ids of the last messages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ids {
    window: IdWindow,
    known: HashSet<Digest>,
    /// The oldest first.
    order: VecDeque<(Digest, WallTime)>,
}

impl Ids {
    fn new(window: IdWindow) -> Ids {
        Ids { window, known: HashSet::new(), order: VecDeque::new() }
    }

    fn note(&mut self, id: Digest, stored: WallTime) {
        self.forget(stored);
        if self.known.insert(id) {
            self.order.push_back((id, stored));
        }
        self.forget(stored);
    }

    /// Forgets what has left the window.
    fn forget(&mut self, now: WallTime) {
        let most = match self.window {
            IdWindow::Count(count) => count.min(limits::UNIQUE_IDS_MAX),
            IdWindow::Time(_) => limits::UNIQUE_IDS_MAX,
        };
        while let Some(&(oldest, stored)) = self.order.front() {
            let is_old = match self.window {
                IdWindow::Count(_) => false,
                IdWindow::Time(time) => stored.0.saturating_add(time.0) <= now.0,
            };
            if !is_old && self.order.len() as u64 <= most {
                break;
            }
            self.order.pop_front();
            self.known.remove(&oldest);
        }
    }
}

/// The keys of messages that may be pending.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Keys {
    /// Different keys at most.
    most: u64,
    pending: BTreeSet<(Digest, Offset)>,
    different: u64,
    /// What the caller said of settling when the table was last swept in vain.
    swept: Option<u64>,
}

impl Keys {
    fn new(most: u64) -> Keys {
        Keys { most, pending: BTreeSet::new(), different: 0, swept: None }
    }

    fn has(&self, key: Digest) -> bool {
        self.pending.range((key, Offset(0))..=(key, Offset(u64::MAX))).next().is_some()
    }

    fn note(&mut self, key: Digest, offset: Offset) {
        self.different += u64::from(!self.has(key));
        self.pending.insert((key, offset));
    }

    fn retain(&mut self, keep: impl Fn(Offset) -> bool) {
        self.pending.retain(|(_, offset)| keep(*offset));
        let mut last = None;
        self.different = 0;
        for (key, _) in &self.pending {
            self.different += u64::from(last.replace(*key) != Some(*key));
        }
    }
}

/// The ids and keys of one queue.
#[derive(Clone, Debug)]
pub struct Unique {
    queue: QueueId,
    ids: Option<Ids>,
    keys: Option<Keys>,
}

impl Unique {
    /// Empty tables, as the settings ask for them.
    pub(super) fn new(queue: QueueId, settings: &Settings) -> Unique {
        let mut unique = Unique { queue, ids: None, keys: None };
        unique.configure(settings);
        unique
    }

    /// Keeps the tables that the settings ask for, and forgets the others.
    pub(super) fn configure(&mut self, settings: &Settings) {
        self.widen(settings);
        if settings.unique_ids.is_none() {
            self.ids = None;
        }
        if settings.unique_keys.is_none() {
            self.keys = None;
        }
        if let (Some(ids), Some(window)) = (&mut self.ids, settings.unique_ids) {
            ids.window = window;
        }
        if let (Some(keys), Some(most)) = (&mut self.keys, settings.unique_keys) {
            keys.most = most;
        }
    }

    /// Begins tables that the settings ask for, and forgets none.
    pub(super) fn widen(&mut self, settings: &Settings) {
        if let Some(window) = settings.unique_ids {
            self.ids.get_or_insert_with(|| Ids::new(window));
        }
        if let Some(most) = settings.unique_keys {
            self.keys.get_or_insert_with(|| Keys::new(most));
        }
    }

    /// Whether ids are remembered.
    #[must_use]
    pub fn has_ids(&self) -> bool {
        self.ids.is_some()
    }

    /// Whether keys are.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// The digest of an id or a key of this queue.
    #[must_use]
    pub fn digest(&self, text: &[u8]) -> Digest {
        use std::hash::Hasher;
        let mut hasher = SipHasher13::new_with_key(self.queue.as_bytes());
        hasher.write(text);
        let hash = hasher.finish128();
        Digest([hash.h1, hash.h2])
    }

    /// Whether a message of this id was stored, within the window.
    pub fn knows_id(&mut self, id: Digest, now: WallTime) -> bool {
        let Some(ids) = &mut self.ids else { return false };
        ids.forget(now);
        ids.known.contains(&id)
    }

    /// Whether a message of this key is not gone, by what `is_gone` says of its offset.
    pub fn is_pending(&mut self, key: Digest, is_gone: impl Fn(Offset) -> bool) -> bool {
        let Some(keys) = &mut self.keys else { return false };
        loop {
            let mut of_key = keys.pending.range((key, Offset(0))..=(key, Offset(u64::MAX)));
            let Some(&(_, first)) = of_key.next() else { return false };
            if !is_gone(first) {
                return true;
            }
            keys.pending.remove(&(key, first));
            keys.different -= u64::from(!keys.has(key));
        }
    }

    /// Whether the key is in the table, pending or not.
    #[must_use]
    pub fn knows_key(&self, key: Digest) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.has(key))
    }

    /// Whether a message of this key can be stored, `more` others of other keys with it. `settled`
    /// grows whenever something may have gone: the table is not swept twice for the same.
    pub fn admits_key(
        &mut self,
        key: Digest,
        more: u64,
        settled: u64,
        is_gone: impl Fn(Offset) -> bool,
    ) -> bool {
        let Some(keys) = &mut self.keys else { return true };
        let room = |keys: &Keys| {
            let different = keys.different + more + u64::from(!keys.has(key));
            different <= keys.most && (keys.pending.len() as u64 + more) < limits::UNIQUE_KEYS_MAX
        };
        if !room(keys) && keys.swept != Some(settled) {
            keys.retain(|offset| !is_gone(offset));
            keys.swept = Some(settled);
        }
        room(keys)
    }

    /// Notes the messages of a batch; `messages` is its payload without the annex.
    pub(super) fn note(&mut self, header: &BatchHeader, messages: &[u8]) {
        if (self.ids.is_none() && self.keys.is_none()) || header.framing != Framing::Records {
            return;
        }
        let mut rest = messages;
        for n in 0..u64::from(header.count) {
            let Ok((record, behind)) = Record::decode(rest) else { return };
            self.note_record(&record, Offset(header.offset.0 + n), header.time);
            rest = behind;
        }
    }

    /// Notes one message.
    pub(super) fn note_record(&mut self, record: &Record<'_>, offset: Offset, stored: WallTime) {
        if self.ids.is_some()
            && let Some(id) = record.attribute(tags::ID).map(|id| self.digest(id))
            && let Some(ids) = &mut self.ids
        {
            ids.note(id, stored);
        }
        if self.keys.is_some()
            && let Some(key) = record.attribute(tags::KEY).map(|key| self.digest(key))
            && let Some(keys) = &mut self.keys
        {
            keys.note(key, offset);
        }
    }

    /// Keeps only keys of messages that are not gone.
    pub(super) fn sweep_keys(&mut self, is_gone: impl Fn(Offset) -> bool) {
        if let Some(keys) = &mut self.keys {
            keys.retain(|offset| !is_gone(offset));
        }
    }

    /// What a snapshot keeps: the ids, the oldest first, and the keys.
    pub(super) fn stored(
        &self,
    ) -> (
        impl ExactSizeIterator<Item = (Digest, WallTime)>,
        impl ExactSizeIterator<Item = (Digest, Offset)>,
    ) {
        const NO_IDS: &VecDeque<(Digest, WallTime)> = &VecDeque::new();
        const NO_KEYS: &BTreeSet<(Digest, Offset)> = &BTreeSet::new();
        let ids = self.ids.as_ref().map_or(NO_IDS, |ids| &ids.order);
        let keys = self.keys.as_ref().map_or(NO_KEYS, |keys| &keys.pending);
        (ids.iter().copied(), keys.iter().copied())
    }

    /// Takes in what a snapshot kept.
    pub(super) fn restore(&mut self, ids: &[(Digest, WallTime)], keys: &[(Digest, Offset)]) {
        if let Some(table) = &mut self.ids {
            ids.iter().for_each(|(id, stored)| table.note(*id, *stored));
        }
        if let Some(table) = &mut self.keys {
            keys.iter().for_each(|(key, offset)| table.note(*key, *offset));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Micros;

    fn unique(ids: Option<IdWindow>, keys: Option<u64>) -> Unique {
        let settings = Settings { unique_ids: ids, unique_keys: keys, ..Settings::default() };
        Unique::new(QueueId::from_bytes(*b"0123456789abcdef"), &settings)
    }

    fn note(unique: &mut Unique, tag: u8, value: &[u8], offset: u64, time: u64) {
        let mut attributes = Vec::new();
        crate::batch::push_attribute(&mut attributes, tag, value);
        let record = Record { attribute_bytes: &attributes, body: b"" };
        unique.note_record(&record, Offset(offset), WallTime(time));
    }

    #[test]
    fn digests_do_not_change_between_versions() {
        let Digest(words) = unique(None, None).digest(b"a message");
        assert_eq!(words, [7_014_110_841_328_014_208, 1_792_642_459_783_725_409]);
    }

    #[test]
    fn ids_are_known_within_their_window() {
        let mut last_two = unique(Some(IdWindow::Count(2)), None);
        for (n, id) in [b"a", b"b", b"a", b"c"].into_iter().enumerate() {
            note(&mut last_two, tags::ID, id, n as u64, n as u64);
        }
        let knows = |unique: &mut Unique, id: &[u8], now| {
            let id = unique.digest(id);
            unique.knows_id(id, WallTime(now))
        };
        assert!(!knows(&mut last_two, b"a", 9) && knows(&mut last_two, b"b", 9));
        assert!(knows(&mut last_two, b"c", 9));
        let mut for_ten = unique(Some(IdWindow::Time(Micros(10))), None);
        note(&mut for_ten, tags::ID, b"a", 0, 100);
        assert!(knows(&mut for_ten, b"a", 109) && !knows(&mut for_ten, b"a", 110));
        note(&mut for_ten, tags::ID, b"a", 0, 111);
        assert!(knows(&mut for_ten, b"a", 120));
        assert!(!knows(&mut unique(None, None), b"a", 0));
    }

    #[test]
    fn key_is_pending_while_any_of_its_messages_is_not_gone() {
        let mut unique = unique(None, Some(2));
        note(&mut unique, tags::KEY, b"k", 3, 0);
        note(&mut unique, tags::KEY, b"k", 5, 0);
        let key = unique.digest(b"k");
        assert!(unique.is_pending(key, |offset| offset == Offset(5)));
        assert!(unique.is_pending(key, |offset| offset == Offset(3)));
        assert!(!unique.is_pending(key, |_| true));
        assert!(!unique.is_pending(key, |_| false), "what is gone stays gone");
    }

    #[test]
    fn keys_are_bounded_and_swept() {
        let mut unique = unique(None, Some(2));
        note(&mut unique, tags::KEY, b"a", 1, 0);
        note(&mut unique, tags::KEY, b"b", 2, 0);
        let c = unique.digest(b"c");
        let a = unique.digest(b"a");
        assert!(unique.admits_key(a, 0, 0, |_| false));
        assert!(!unique.admits_key(c, 0, 0, |_| false));
        assert!(!unique.admits_key(c, 0, 0, |offset| offset == Offset(2)), "not swept twice");
        assert!(unique.admits_key(c, 0, 1, |offset| offset == Offset(2)));
        assert!(!unique.admits_key(c, 1, 1, |_| false));
    }

    #[test]
    fn tables_come_and_go_with_the_settings() {
        let mut unique = unique(Some(IdWindow::Count(9)), None);
        note(&mut unique, tags::ID, b"a", 1, 0);
        unique.widen(&Settings { unique_keys: Some(3), ..Settings::default() });
        assert!(unique.has_ids() && unique.has_keys());
        unique.configure(&Settings { unique_keys: Some(3), ..Settings::default() });
        assert!(!unique.has_ids() && unique.has_keys());
    }
}
