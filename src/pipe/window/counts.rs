//! Windows of so many messages of one key.
//!
//! Where a window begins depends on all before it. So that a pipe that reads again from the oldest
//! open window need not count from the beginning of the queue, each key remembers the last
//! message of its last closed window, as long as that might be read again.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::firsts::Firsts;
use super::members::Members;
use super::{Closed, Extent, Key, Message};
use crate::limits;
use crate::units::{Offset, WallTime};

/// See the module's page.
#[derive(Debug)]
pub struct Counts {
    count: u64,
    open: HashMap<Key, Members>,
    full: VecDeque<Closed>,
    firsts: Firsts,
    runs: usize,
    /// The last message of the last closed window of each key, by key and by message. Forgotten
    /// once all that is open is newer.
    lasts: BTreeMap<Offset, Key>,
    last_of: HashMap<Key, Offset>,
    /// While reading again: the last messages of closed windows that are still to come.
    closed_before: Vec<Offset>,
    is_rereading: bool,
}

impl Counts {
    /// For windows of so many messages.
    pub fn new(count: u64) -> Counts {
        Counts {
            count,
            open: HashMap::new(),
            full: VecDeque::new(),
            firsts: Firsts::default(),
            runs: 0,
            lasts: BTreeMap::new(),
            last_of: HashMap::new(),
            closed_before: Vec::new(),
            is_rereading: false,
        }
    }

    /// What is read from now on was read before, and these were the last of their windows.
    pub fn reread(&mut self, lasts: &[Offset]) {
        self.is_rereading = true;
        self.closed_before = lasts.to_vec();
        self.closed_before.sort_unstable();
    }

    /// From now on, everything is new.
    pub fn caught_up(&mut self) {
        self.is_rereading = false;
        self.closed_before = Vec::new();
    }

    /// Whether a message of this key can be taken: the window that it closes must be remembered.
    pub fn has_room(&self, key: &Key) -> bool {
        self.lasts.len() < limits::COUNTED_KEYS_MAX
            || self.last_of.contains_key(key)
            || self.open.get(key).map_or(0, Members::count) + 1 < self.count
    }

    /// Takes a message.
    pub fn insert(&mut self, message: Message) {
        let Message { offset, key, place, .. } = message;
        let members = self.open.entry(key.clone()).or_default();
        let runs = members.runs().len();
        if runs == 0 {
            self.firsts.insert(offset, WallTime(0));
        }
        members.push(offset, place);
        self.runs += members.runs().len() - runs;
        if self.is_rereading {
            if self.closed_before.binary_search(&offset).is_ok() {
                self.close(&key);
            }
        } else if members.count() >= self.count {
            let members = self.close(&key);
            self.full.push_back(closed(key, members));
        }
    }

    /// Takes the open window of a key away.
    fn close(&mut self, key: &Key) -> Members {
        let members = self.open.remove(key).expect("a window of that key is open");
        self.firsts.remove(members.first());
        self.runs -= members.runs().len();
        let last = members.last();
        if let Some(old) = self.last_of.insert(key.clone(), last) {
            self.lasts.remove(&old);
        }
        self.lasts.insert(last, key.clone());
        members
    }

    /// Nothing before `floor` will be read again.
    pub fn forget_below(&mut self, floor: Offset) {
        while let Some(entry) = self.lasts.first_entry()
            && *entry.key() < floor
        {
            self.last_of.remove(&entry.remove());
        }
    }

    /// The last messages of closed windows that might be read again, in order.
    pub fn lasts(&self) -> Vec<Offset> {
        self.lasts.keys().copied().collect()
    }

    /// Closes all windows as they are.
    pub fn flush(&mut self) {
        let keys: Vec<Key> = self.open.keys().cloned().collect();
        let mut all: Vec<Closed> = keys
            .into_iter()
            .map(|key| {
                let members = self.close(&key);
                closed(key, members)
            })
            .collect();
        all.sort_unstable_by_key(|closed| closed.members.last());
        self.full.extend(all);
    }

    /// The next window that is full.
    pub fn next_closed(&mut self) -> Option<Closed> {
        self.full.pop_front()
    }

    pub fn firsts(&self) -> &Firsts {
        &self.firsts
    }

    pub fn groups(&self) -> usize {
        self.open.len()
    }

    pub fn runs(&self) -> usize {
        self.runs
    }
}

fn closed(key: Key, members: Members) -> Closed {
    let extent = Extent::Offsets { first: members.first(), last: members.last() };
    Closed { extent, key, members }
}
