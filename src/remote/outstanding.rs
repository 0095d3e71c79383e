//! Which of the messages that were delivered are settled: a bit for each, from the oldest unsettled
//! one on. Its memory is bounded by the prefetch, as no more are delivered than may be unsettled.
//!
//! Each engine's consumer keeps one: it says when one ack may cover all below a message (AMQP), and
//! up to where a position may be committed without a hole (Kafka).

use std::collections::VecDeque;
use std::ops::Range;

/// What was delivered and is not settled.
#[derive(Debug, Default)]
pub struct Outstanding {
    /// The lowest number that is not settled; the next to be delivered when all are.
    floor: u64,
    /// For each number from the floor on that was delivered: whether it is settled. The first is not.
    settled: VecDeque<bool>,
    /// How many of them are not.
    open: u64,
}

impl Outstanding {
    /// So many more were delivered.
    pub fn delivered(&mut self, count: u64) {
        let len = self.settled.len() + usize::try_from(count).expect("of a batch in memory");
        self.settled.resize(len, false);
        self.open += count;
    }

    /// The lowest number that is not settled; all below it are.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The number that the next message gets.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.floor + self.settled.len() as u64
    }

    /// How many messages are not settled.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open
    }

    /// Whether a message is here and unsettled.
    #[must_use]
    pub fn is_open(&self, number: u64) -> bool {
        let place = number.checked_sub(self.floor).and_then(|place| usize::try_from(place).ok());
        place.and_then(|place| self.settled.get(place)).is_some_and(|settled| !settled)
    }

    /// Settles a range.
    ///
    /// # Panics
    /// When one of them was not delivered, or is settled already: the session's mistake.
    pub fn settle(&mut self, range: &Range<u64>) {
        assert!(range.start >= self.floor && range.end <= self.next(), "settled but not delivered");
        let from = usize::try_from(range.start - self.floor).expect("a place in memory");
        let to = usize::try_from(range.end - self.floor).expect("a place in memory");
        for settled in self.settled.range_mut(from..to) {
            assert!(!std::mem::replace(settled, true), "settled twice");
        }
        self.open -= range.end - range.start;
        while self.settled.front() == Some(&true) {
            self.settled.pop_front();
            self.floor += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_stays_below_a_hole() {
        let mut outstanding = Outstanding::default();
        outstanding.delivered(5);
        outstanding.settle(&(2..4));
        assert_eq!((outstanding.floor(), outstanding.next(), outstanding.open()), (0, 5, 3));
        outstanding.settle(&(0..2));
        assert_eq!((outstanding.floor(), outstanding.next(), outstanding.open()), (4, 5, 1));
        assert!(outstanding.is_open(4) && !outstanding.is_open(3) && !outstanding.is_open(5));
        outstanding.settle(&(4..5));
        outstanding.delivered(1);
        assert_eq!((outstanding.floor(), outstanding.next(), outstanding.open()), (5, 6, 1));
    }

    #[test]
    #[should_panic(expected = "settled twice")]
    fn what_is_settled_twice_is_a_mistake() {
        let mut outstanding = Outstanding::default();
        outstanding.delivered(3);
        outstanding.settle(&(1..2));
        outstanding.settle(&(1..2));
    }
}
