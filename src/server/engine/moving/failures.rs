//! Why messages failed: what their last receiver said, kept until they are settled.
//!
//! In memory, bounded; lost with the server, and then a dead letter says no more than that it
//! reached its delivery limit. Pure. Told by the engine of each failed try; asked by the mover.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::GroupKey;
use crate::limits;
use crate::units::{Offset, OffsetRange, WallTime};

/// What a failed try left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When the message failed first.
    pub first: WallTime,
    /// When it failed last.
    pub last: WallTime,
    /// What was said of the last try.
    pub why: Arc<Why>,
}

/// What was said of a failed try.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Why {
    /// In a few words.
    pub reason: String,
    /// The tail of the command's stderr.
    pub stderr: String,
}

impl Why {
    fn bytes(&self) -> usize {
        self.reason.len() + self.stderr.len()
    }
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Failures {
    of: BTreeMap<(GroupKey, Offset), Failure>,
    /// Bytes of all that was said, what several messages share once.
    bytes: usize,
}

impl Failures {
    /// A try of `ranges` failed. Beyond the bound on messages nothing is kept of those that failed
    /// for the first time, beyond that on bytes nothing of what was said.
    pub fn note(
        &mut self,
        group: GroupKey,
        ranges: &[OffsetRange],
        wall: WallTime,
        reason: &str,
        stderr: &str,
    ) {
        let mut why = Why { reason: cut(reason, limits::REASON_BYTES_MAX), ..Why::default() };
        if self.bytes + stderr.len() <= limits::FAILURE_BYTES_MAX / 2 {
            why.stderr = cut_front(stderr, limits::STDERR_TAIL_BYTES);
        }
        if self.bytes + why.bytes() > limits::FAILURE_BYTES_MAX {
            why = Why::default();
        }
        let why = Arc::new(why);
        let mut kept = false;
        for offset in ranges.iter().flat_map(|range| range.start.0..range.end.0) {
            let key = (group, Offset(offset));
            let before = self.of.remove(&key);
            if before.is_none() && self.of.len() >= limits::FAILURES_MAX {
                break;
            }
            let first = before.as_ref().map_or(wall, |failure| failure.first);
            before.into_iter().for_each(|failure| self.dropped(failure));
            self.of.insert(key, Failure { first, last: wall, why: Arc::clone(&why) });
            kept = true;
        }
        if kept {
            self.bytes += why.bytes();
        }
    }

    /// What is known of a message.
    pub fn of(&self, group: GroupKey, offset: Offset) -> Option<&Failure> {
        self.of.get(&(group, offset))
    }

    /// These are settled.
    pub fn forget(&mut self, group: GroupKey, ranges: &[OffsetRange]) {
        if self.of.is_empty() {
            return;
        }
        for range in ranges {
            let keys = (group, range.start)..(group, range.end);
            let gone: Vec<_> = self.of.range(keys).map(|(key, _)| *key).collect();
            for key in gone {
                let failure = self.of.remove(&key).expect("it was there");
                self.dropped(failure);
            }
        }
    }

    /// A group is gone.
    pub fn forget_group(&mut self, group: GroupKey) {
        self.forget(group, &[OffsetRange::new(Offset(0), Offset(u64::MAX))]);
    }

    fn dropped(&mut self, failure: Failure) {
        if let Some(last) = Arc::into_inner(failure.why) {
            self.bytes -= last.bytes();
        }
    }
}

/// At most `bytes` of the beginning of a text.
fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].to_owned()
}

/// At most `bytes` of the end of a text.
fn cut_front(text: &str, bytes: usize) -> String {
    let start = text.len().saturating_sub(bytes);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at));
    text[start.unwrap_or(text.len())..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Broker;
    use crate::units::Name;

    #[test]
    fn what_is_kept_of_failures_is_bounded_and_goes_with_them() {
        let mut broker = Broker::new();
        let queue = broker.add_queue(Offset(0), Offset(0), &[], &[]);
        let group = broker.add_group(queue, &Name::default(), None).expect("a group");
        let mut failures = Failures::default();
        let at = |n| OffsetRange::new(Offset(n), Offset(n + 1));
        let tail = "x".repeat(limits::STDERR_TAIL_BYTES);
        for n in 0..limits::FAILURES_MAX as u64 + 10 {
            failures.note(group, &[at(n)], WallTime(n), "exit status 1", &tail);
            assert!(failures.bytes <= limits::FAILURE_BYTES_MAX);
        }
        assert_eq!(failures.of.len(), limits::FAILURES_MAX);
        assert_eq!(failures.of(group, Offset(0)).map(|f| f.why.stderr.len()), Some(tail.len()));
        failures.note(group, &[at(5)], WallTime(9_000_000), "hung", "");
        let failure = failures.of(group, Offset(5)).expect("it is kept");
        assert_eq!((failure.first, failure.why.reason.as_str()), (WallTime(5), "hung"));
        failures.forget_group(group);
        assert_eq!((failures.of.len(), failures.bytes), (0, 0));
    }
}
