//! The oldest messages of what is open: they say from where a pipe must read again after a
//! restart, and with which watermark.

use std::collections::BTreeMap;

use crate::units::{Offset, WallTime};

/// For each open group of members, its oldest message and the watermark just before that was read.
#[derive(Clone, Debug, Default)]
pub struct Firsts {
    before: BTreeMap<Offset, WallTime>,
}

impl Firsts {
    /// A group begins with this message.
    pub fn insert(&mut self, first: Offset, watermark: WallTime) {
        let old = self.before.insert(first, watermark);
        assert!(old.is_none(), "a message is the first of one group at most");
    }

    /// The group is closed, or has become a part of one with an older message.
    pub fn remove(&mut self, first: Offset) {
        let old = self.before.remove(&first);
        assert!(old.is_some(), "what is removed was there");
    }

    /// The oldest message of all that is open, and the watermark just before it.
    pub fn floor(&self) -> Option<(Offset, WallTime)> {
        self.before.first_key_value().map(|(first, watermark)| (*first, *watermark))
    }
}
