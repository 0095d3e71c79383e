//! Windows of one length, tumbling or sliding, at fixed places in time.
//!
//! Time is cut into panes, as long as the greatest length of which size and step are multiples;
//! a message is kept once, in its pane and under its key, and a window is the panes that it
//! spans. So a sliding window costs no more memory than a tumbling one.
//!
//! ```text
//! panes     |    |    | x  |    |  x |        a pane lives until its last window is closed
//! windows   [         )         [         )
//!                [         )
//! ```
//!
//! It holds no watermark: it is told up to where windows are closed, and closes them one by one
//! in the order of end and key (all of one end have one start).

use std::collections::{BTreeMap, VecDeque};

use super::firsts::Firsts;
use super::members::Members;
use super::{Closed, Extent, Key, Message};
use crate::units::{Micros, WallTime};

/// See the module's page. Times in it are signed, as a window may begin before 1970.
#[derive(Debug)]
pub struct Panes {
    size: i64,
    every: i64,
    pane: i64,
    /// By the start of the pane.
    panes: BTreeMap<i64, BTreeMap<Key, Members>>,
    firsts: Firsts,
    /// Of groups, and of the runs in them.
    groups: usize,
    runs: usize,
    /// All windows that end here or before are closed and told.
    told: i64,
    /// The window that is being told: its end, and the keys that are still to come.
    telling: Option<(i64, VecDeque<Key>)>,
}

fn micros(length: Micros) -> i64 {
    i64::try_from(length.0).expect("a duration fits")
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl Panes {
    /// For windows of this size, one beginning with every `every`.
    pub fn new(size: Micros, every: Micros) -> Panes {
        let (size, every) = (micros(size), micros(every));
        Panes {
            size,
            every,
            pane: greatest_common_divisor(size, every),
            panes: BTreeMap::new(),
            firsts: Firsts::default(),
            groups: 0,
            runs: 0,
            told: 0,
            telling: None,
        }
    }

    /// The end of the last window that a time or a pane's start is in.
    fn last_end(&self, at: i64) -> i64 {
        at.div_euclid(self.every) * self.every + self.size
    }

    /// The end of the first window that a pane is in and that is not told yet.
    fn next_end(&self, pane: i64) -> i64 {
        let round_up = |at: i64| -(-at).div_euclid(self.every) * self.every;
        let first_end = round_up(pane + self.pane - self.size) + self.size;
        let untold_end = ((self.told - self.size).div_euclid(self.every) + 1) * self.every;
        first_end.max(untold_end + self.size)
    }

    /// Whether all windows of a message are closed.
    pub fn is_late(&self, time: WallTime, watermark: WallTime) -> bool {
        self.last_end(time.0 as i64) <= watermark.0 as i64
    }

    /// Takes a message that is not late.
    pub fn insert(&mut self, message: Message, time: WallTime, watermark: WallTime) {
        let start = (time.0 as i64).div_euclid(self.pane) * self.pane;
        let members = self.panes.entry(start).or_default().entry(message.key).or_default();
        let runs = members.runs().len();
        if runs == 0 {
            self.firsts.insert(message.offset, watermark);
            self.groups += 1;
        }
        members.push(message.offset, message.place);
        self.runs += members.runs().len() - runs;
    }

    /// The end of the window that is the next to be closed.
    pub fn next_closing(&self) -> Option<WallTime> {
        let (pane, _) = self.panes.first_key_value()?;
        Some(WallTime(self.next_end(*pane) as u64))
    }

    /// The end of the last window that has messages.
    pub fn last_closing(&self) -> Option<WallTime> {
        let (pane, _) = self.panes.last_key_value()?;
        Some(WallTime(self.last_end(*pane) as u64))
    }

    /// The next window that is closed with this watermark.
    pub fn next_closed(&mut self, watermark: WallTime) -> Option<Closed> {
        loop {
            if let Some((end, keys)) = &mut self.telling {
                let end = *end;
                if let Some(key) = keys.pop_front() {
                    return Some(self.gather(end, key));
                }
                self.telling = None;
                self.finish(end);
            }
            let Some(end) = self.next_closing().filter(|end| *end <= watermark) else {
                // Those that had no messages are closed as well.
                self.told = self.told.max(watermark.0 as i64);
                return None;
            };
            let end = end.0 as i64;
            let mut keys: Vec<Key> = Vec::new();
            for groups in self.panes.range(end - self.size..end).map(|(_, groups)| groups) {
                keys.extend(groups.keys().cloned());
            }
            keys.sort_unstable();
            keys.dedup();
            self.telling = Some((end, keys.into()));
        }
    }

    /// One key's messages of the window with this end.
    fn gather(&self, end: i64, key: Key) -> Closed {
        let start = end - self.size;
        let mut members = Members::default();
        for groups in self.panes.range(start..end).map(|(_, groups)| groups) {
            if let Some(group) = groups.get(&key) {
                members.merge(group.clone());
            }
        }
        Closed { extent: Extent::Times { start, end }, key, members }
    }

    /// All windows with this end are told; panes without a later one go.
    fn finish(&mut self, end: i64) {
        self.told = end;
        while let Some(entry) = self.panes.first_entry() {
            if entry.key().div_euclid(self.every) * self.every + self.size > end {
                return;
            }
            for members in entry.remove().into_values() {
                self.firsts.remove(members.first());
                self.groups -= 1;
                self.runs -= members.runs().len();
            }
        }
    }

    pub fn firsts(&self) -> &Firsts {
        &self.firsts
    }

    pub fn groups(&self) -> usize {
        self.groups
    }

    pub fn runs(&self) -> usize {
        self.runs
    }
}
