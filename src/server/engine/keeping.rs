//! Groups of which something was noted that found no room on the disk: their whole state is
//! written as soon as there is.
//!
//! Until then what they settled stands in memory only, and whoever waits for it to be durable
//! waits. Called in each turn of a queue, and before an orderly stop.

use crate::limits;
use crate::log::storage::Storage;
use crate::units::{Moment, Monotonic};

use super::groups::{journal_clock, whole};
use super::{Engine, QueueNumber};

impl<S: Storage> Engine<S> {
    /// Writes what found no room, at most so often. Returns when to try again.
    pub(super) fn keep_groups(&mut self, number: QueueNumber, moment: Moment) -> Option<Monotonic> {
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        let incomplete = hosted.log.incomplete_groups();
        if incomplete.is_empty() {
            hosted.keep_at = None;
            return None;
        }
        if let Some(at) = hosted.keep_at.filter(|at| moment.now < *at) {
            return Some(at);
        }
        hosted.keep_at = Some(moment.now.plus(limits::CHORE_RETRY));
        let clock = journal_clock(moment, &hosted.log);
        for (&group, file) in &hosted.groups {
            if !incomplete.contains(file) {
                continue;
            }
            let position = whole(&self.broker, &hosted.books, group, clock);
            if let Err(error) = hosted.log.keep_group(*file, &position) {
                self.failed.get_or_insert_with(|| error.to_string());
            }
        }
        hosted.keep_at
    }
}
