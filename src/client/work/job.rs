//! What a worker has in hand: messages in lots of one queue and attempt, jobs taken from them, and
//! what the end of a job's command means.

use std::collections::VecDeque;

use super::ranges_of;
use crate::client::command::Outcome;
use crate::client::ledger::Settled;
use crate::client::piece::Slice;
use crate::client::receive::{MemberNumber, Members, intersection};
use crate::limits;
use crate::units::{Attempts, Micros, Offset, OffsetRange, WallTime};

/// The exit status of a command that wants its message to be a dead letter at once: EX_DATAERR of
/// sysexits.h.
const DEAD: i32 = 65;

/// A message that waits for its command.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) offset: Offset,
    /// When it was stored.
    pub(super) time: WallTime,
    /// See [`crate::batch::Record`].
    pub(super) attributes: Box<[u8]>,
    /// What the command reads.
    pub(super) input: Slice,
}

/// Messages of one queue and one attempt number, in the order in which they came.
#[derive(Debug)]
pub(super) struct Lot {
    pub(super) member: MemberNumber,
    pub(super) attempt: Attempts,
    pub(super) messages: VecDeque<Message>,
}

impl Lot {
    /// The first messages, at most so many.
    pub(super) fn take(&mut self, batch: usize) -> Job {
        let messages: Vec<Message> =
            self.messages.drain(..batch.min(self.messages.len())).collect();
        let count = messages.len();
        let ranges = ranges_of(messages.iter().map(|message| message.offset));
        Job { member: self.member, attempt: self.attempt, ranges, messages, count }
    }

    pub(super) fn ranges(&self) -> Vec<OffsetRange> {
        ranges_of(self.messages.iter().map(|message| message.offset))
    }

    pub(super) fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.input.bytes().len()).sum()
    }

    /// Drops what is not among `kept`.
    pub(super) fn keep(&mut self, kept: &[OffsetRange], dropped: &mut Settled) {
        self.messages.retain(|message| {
            let is_kept = kept.iter().any(|range| range.contains(message.offset));
            if !is_kept {
                dropped.push(OffsetRange::new(message.offset, Offset(message.offset.0 + 1)));
            }
            is_kept
        });
    }

    pub(super) fn give_back(&self, members: &mut Members) {
        self.ranges().into_iter().for_each(|range| members.release(self.member, range));
    }
}

/// Messages for one command.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) member: MemberNumber,
    pub(super) attempt: Attempts,
    /// What of the messages is ours to settle.
    pub(super) ranges: Vec<OffsetRange>,
    /// The messages, until the command has them.
    pub(super) messages: Vec<Message>,
    /// How many there are, or were.
    pub(super) count: usize,
}

impl Job {
    pub(super) fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.input.bytes().len()).sum()
    }

    pub(super) fn take_input(&mut self) -> Vec<Slice> {
        std::mem::take(&mut self.messages).into_iter().map(|message| message.input).collect()
    }

    /// Another has the rest, which this command works on all the same.
    pub(super) fn keep(&mut self, kept: &[OffsetRange]) {
        self.ranges = intersection(&self.ranges, kept);
    }

    pub(super) fn give_back(&self, members: &mut Members) {
        self.ranges.iter().for_each(|range| members.release(self.member, *range));
    }
}

/// What the end of a command means for its messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They are done.
    Done,
    /// They failed, and are dead letters at once or tried again.
    Failed { reason: String, dead: bool },
    /// The command could not do anything: it, or what it runs, is not there.
    Unrunnable(u8),
}

/// | exit status | messages |
/// |---|---|
/// | 0 | are acknowledged |
/// | 65 | are dead letters |
/// | 126, 127 | are given back, and the receiver ends with that status |
/// | any other, a signal, a timeout | are tried again after a pause |
pub(super) fn verdict(outcome: Outcome, timeout: Option<Micros>) -> Verdict {
    match outcome {
        Outcome::Exit(0) => Verdict::Done,
        Outcome::Exit(status @ (126 | 127)) => Verdict::Unrunnable(status as u8),
        Outcome::Exit(status) => {
            Verdict::Failed { reason: format!("exit status {status}"), dead: status == DEAD }
        }
        Outcome::Signal(signal) => {
            Verdict::Failed { reason: format!("signal {signal}"), dead: false }
        }
        Outcome::TimedOut => {
            let seconds = timeout.unwrap_or_default().to_duration().as_secs_f64();
            Verdict::Failed { reason: format!("timeout after {seconds} s"), dead: false }
        }
    }
}

/// The end of what a command said, as far as it is text and fits a dead letter.
pub(super) fn text_tail(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    if let Some(excess) = text.len().checked_sub(limits::STDERR_TAIL_BYTES) {
        let cut = (excess..=text.len()).find(|at| text.is_char_boundary(*at));
        text.drain(..cut.unwrap_or(text.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_mean_what_the_manual_says() {
        let timeout = Some(Micros::from_millis(1500));
        let failed = |reason: &str, dead| Verdict::Failed { reason: reason.to_owned(), dead };
        for (outcome, expected) in [
            (Outcome::Exit(0), Verdict::Done),
            (Outcome::Exit(1), failed("exit status 1", false)),
            (Outcome::Exit(65), failed("exit status 65", true)),
            (Outcome::Exit(126), Verdict::Unrunnable(126)),
            (Outcome::Exit(127), Verdict::Unrunnable(127)),
            (Outcome::Signal(9), failed("signal 9", false)),
            (Outcome::TimedOut, failed("timeout after 1.5 s", false)),
        ] {
            assert_eq!(verdict(outcome, timeout), expected);
        }
    }

    #[test]
    fn the_tail_of_stderr_is_text_within_its_bound() {
        assert_eq!(text_tail(b"a\xffb"), "a\u{fffd}b");
        let long = text_tail(&[0xff; limits::STDERR_TAIL_BYTES]);
        assert!(long.len() <= limits::STDERR_TAIL_BYTES && !long.is_empty());
    }
}
