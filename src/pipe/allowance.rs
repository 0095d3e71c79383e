//! The allowance: how many messages a source lets its peer deliver. Pure.
//!
//! A server reads what it delivers out of its log, and nobody else waits for what an exclusive receiver has:
//! it may deliver without end, as the pipe bounds in bytes what it reads ahead. What an engine has delivered
//! lies in the memory of its client, and no other receiver of the queue gets it; so there the messages that are
//! not settled are bounded. That bound begins small and grows while there are more, up to what makes the
//! pipe's batches. The [`reader`](super::reader) asks it.

use crate::limits;

/// More messages than anyone sends.
const ENDLESS: u64 = u64::MAX >> 1;

/// An endless credit is said again after so many messages, as no more than [`limits::CREDIT_MAX`] beyond what
/// was delivered counts.
const ENDLESS_EVERY: u64 = limits::CREDIT_MAX / 4;

/// What may be unsettled at first: nothing is known of how large messages are.
const FIRST: u64 = 1;

/// How much more may be when all that might come has come.
const GROWTH: u64 = 4;

/// See the module's page.
#[derive(Debug)]
pub(super) enum Allowance {
    /// As much as comes; this came since it was said last.
    Endless(u64),
    /// A bounded number of messages that are not settled.
    Bounded(Window),
}

/// The messages of one channel, counted since it was opened.
#[derive(Debug)]
pub(super) struct Window {
    /// Messages that may be unsettled.
    size: u64,
    /// The most that this grows to.
    most: u64,
    granted: u64,
    delivered: u64,
    settled: u64,
    /// Bytes of a message, as they came lately.
    mean_bytes: u64,
}

impl Allowance {
    /// From an engine, for batches of at most so many messages.
    pub fn of_engine(batch: Option<u64>) -> Allowance {
        // One in the filter, and one that comes, beside those that are being committed.
        let batches = limits::PIPE_COMMITS_AHEAD as u64 + 2;
        let most = batch.unwrap_or(u64::MAX).saturating_mul(batches);
        Allowance::Bounded(Window {
            size: FIRST.min(most),
            most: most.min(limits::PIPE_UNSETTLED_MAX),
            granted: 0,
            delivered: 0,
            settled: 0,
            mean_bytes: 0,
        })
    }

    /// What is said when the channel is opened.
    pub fn first(&mut self) -> u64 {
        match self {
            Allowance::Endless(_) => ENDLESS,
            Allowance::Bounded(window) => window.grant().unwrap_or(window.granted),
        }
    }

    /// Messages came, of so many bytes. The credit to say now, if it is worth a frame.
    pub fn came(&mut self, messages: u64, bytes: usize) -> Option<u64> {
        match self {
            Allowance::Endless(came) => {
                *came += messages;
                if *came < ENDLESS_EVERY {
                    return None;
                }
                *came = 0;
                Some(ENDLESS)
            }
            Allowance::Bounded(window) => {
                window.came(messages, bytes as u64);
                window.grant()
            }
        }
    }

    /// Messages are settled.
    pub fn settled(&mut self, messages: u64) -> Option<u64> {
        let Allowance::Bounded(window) = self else { return None };
        window.settled += messages;
        window.grant()
    }

    /// Nothing of what came is ours any more.
    pub fn lost(&mut self) -> Option<u64> {
        let Allowance::Bounded(window) = self else { return None };
        window.settled = window.delivered;
        window.grant()
    }
}

impl Window {
    fn came(&mut self, messages: u64, bytes: u64) {
        self.delivered += messages;
        let mean = bytes / messages.max(1);
        // Large ones count at once, as they are what the bound is for.
        self.mean_bytes = mean.max((3 * self.mean_bytes + mean) / 4);
        let fit = limits::PIPE_UNSETTLED_BYTES as u64 / self.mean_bytes.max(1);
        let most = self.most.min(fit).max(1);
        let grown = if self.delivered >= self.granted { self.size * GROWTH } else { self.size };
        self.size = grown.min(most);
    }

    fn grant(&mut self) -> Option<u64> {
        let target = self.settled + self.size;
        let more = target.saturating_sub(self.granted);
        let is_dry = self.delivered >= self.granted;
        if more == 0 || !is_dry && more < self.size / 8 {
            return None;
        }
        self.granted = target;
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that has messages of so many bytes without end, and a pipe that settles nothing: how many
    /// are unsettled in the end.
    fn unsettled(allowance: &mut Allowance, bytes: usize) -> u64 {
        let (mut granted, mut delivered) = (allowance.first(), 0);
        while granted > delivered {
            let credit = allowance.came(1, bytes);
            delivered += 1;
            granted = credit.unwrap_or(granted);
        }
        delivered
    }

    #[test]
    fn what_is_unsettled_is_bounded_in_messages_and_in_bytes() {
        assert_eq!(unsettled(&mut Allowance::of_engine(None), 10), limits::PIPE_UNSETTLED_MAX);
        let large = unsettled(&mut Allowance::of_engine(None), 1 << 20);
        assert!((2..=32).contains(&large), "{large}");
        assert_eq!(unsettled(&mut Allowance::of_engine(None), 64 << 20), FIRST);
        assert_eq!(unsettled(&mut Allowance::of_engine(Some(1)), 10), 4);
        assert_eq!(unsettled(&mut Allowance::of_engine(Some(100)), 10), 400);
    }

    #[test]
    fn what_is_settled_makes_room_for_as_much() {
        let mut allowance = Allowance::of_engine(Some(10));
        let all = unsettled(&mut allowance, 10);
        assert_eq!((all, allowance.settled(1)), (40, Some(41)));
        assert_eq!(allowance.settled(4), None, "it is not worth a frame while more may come");
        assert_eq!(allowance.settled(35), Some(80));
        assert_eq!(allowance.came(40, 400), None, "all of it is unsettled");
        assert_eq!(allowance.lost(), Some(120));
    }

    #[test]
    fn messages_that_become_large_are_held_back() {
        let mut allowance = Allowance::of_engine(None);
        let small = unsettled(&mut allowance, 10);
        assert_eq!(allowance.settled(small), Some(2 * small));
        allowance.came(1, 16 << 20);
        assert_eq!(allowance.settled(1), None);
        assert_eq!(allowance.came(small - 1, (small as usize - 1) * (16 << 20)), None);
        assert_eq!(allowance.settled(small - 1), Some(2 * small + 2), "two of them are enough");
    }

    #[test]
    fn an_endless_one_is_said_again_in_time() {
        let mut allowance = Allowance::Endless(0);
        assert_eq!(allowance.first(), ENDLESS);
        assert_eq!(allowance.came(ENDLESS_EVERY - 1, 0), None);
        assert_eq!(allowance.came(1, 0), Some(ENDLESS));
        assert_eq!((allowance.settled(5), allowance.lost()), (None, None));
    }
}
