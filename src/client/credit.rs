//! Credit: how many messages a receiver lets the server deliver, so that a slow worker hoards
//! nothing and a fast reader is never kept waiting.
//!
//! The window is what the receiver may hold: delivered to it and not yet taken by its reader. It
//! starts at one message, doubles each time the reader has emptied everything while more was
//! waiting, and follows the reader down: never much more than the reader took within the last
//! [`limits::CREDIT_HORIZON`] of being busy. Time in which there was nothing to read does not
//! count, so a fast reader is still known as fast after an hour without messages.
//!
//! Pure: time comes in as an argument. It never sees a message or a socket; the receiver tells
//! it what happened and sends what [`Credit::grant`] says.

use crate::limits;
use crate::units::{Monotonic, OffsetRange};

/// The credit of one channel. All counts are messages since the channel was opened.
#[derive(Debug)]
pub struct Credit {
    /// How many messages the receiver may hold.
    window: u64,
    /// How many may ever be delivered on this channel.
    limit: u64,
    /// What the server was told.
    granted: u64,
    /// What the server delivered.
    delivered: u64,
    /// What of it the reader took.
    taken: u64,
    /// Since when the reader has had something to take, as far as that is accounted for.
    busy_since: Option<Monotonic>,
    /// Messages taken within the last horizon of busy time, older ones fading.
    recent: f64,
    /// Whether the server had more than the credit allowed, since the window last grew.
    pressed: bool,
    /// The window stays as it is.
    is_fixed: bool,
}

impl Credit {
    /// Credit for a reader of which nothing is known, with at most `limit` messages in all.
    #[must_use]
    pub fn new(limit: Option<u64>) -> Credit {
        Credit {
            window: 1,
            limit: limit.unwrap_or(u64::MAX),
            granted: 0,
            delivered: 0,
            taken: 0,
            busy_since: None,
            recent: 0.0,
            pressed: false,
            is_fixed: false,
        }
    }

    /// Credit for work that takes as long as it takes: what is held is never more than `window`,
    /// and never less while there is enough.
    #[must_use]
    pub fn fixed(window: u64, limit: Option<u64>) -> Credit {
        Credit { window, is_fixed: true, ..Credit::new(limit) }
    }

    /// Goes on with a new channel on which `limit` may be delivered in all, beside what is kept;
    /// what is known about the reader stays known.
    pub fn reopen(&mut self, limit: Option<u64>) {
        self.limit = limit.unwrap_or(u64::MAX);
        self.granted = 0;
        self.delivered = 0;
        self.taken = 0;
        self.pressed = false;
    }

    /// Messages of an older channel are held on this one: they count as delivered on it.
    pub fn kept(&mut self, messages: u64) {
        self.delivered += messages;
        self.limit = self.limit.saturating_add(messages);
    }

    /// Messages of an older channel went without being read; others may come for them.
    pub fn lost(&mut self, messages: u64) {
        self.limit = self.limit.saturating_add(messages);
    }

    /// Messages came; `behind` says that the server has more ready.
    pub fn delivered(&mut self, now: Monotonic, messages: u64, behind: bool) {
        self.busy_since.get_or_insert(now);
        self.delivered += messages;
        self.pressed |= behind || self.delivered >= self.granted;
    }

    /// The reader took messages; `emptied` when nothing is left that it could read.
    pub fn taken(&mut self, now: Monotonic, messages: u64, emptied: bool) {
        self.taken += messages;
        if let Some(since) = self.busy_since {
            let busy = now.since(since).0 as f64 / limits::CREDIT_HORIZON.0 as f64;
            self.recent = self.recent * (-busy).exp() + messages as f64;
            self.busy_since = if emptied { None } else { Some(now) };
        }
        if !self.is_fixed {
            self.resize(emptied);
        }
    }

    /// Messages of this channel went without being read: they were cut off or thrown away.
    pub fn dropped(&mut self, messages: u64) {
        self.taken += messages;
    }

    /// Messages came that count for nothing: they could not be used, or had been seen before.
    pub fn skipped(&mut self, messages: u64) {
        self.taken += messages;
        self.limit = self.limit.saturating_add(messages);
    }

    fn resize(&mut self, emptied: bool) {
        let bound = (self.recent.round() as u64).clamp(1, limits::CREDIT_MAX);
        if bound < self.window {
            // Halving rather than dropping: a reader may take its messages in bursts.
            self.window = bound.max(self.window / 2);
        } else if emptied && self.pressed {
            self.window = (self.window * 2).min(bound);
            self.pressed = false;
        }
    }

    /// The cumulative credit to tell the server now, if it is worth a frame: when the server has
    /// none left, or when the news is a good part of the window.
    pub fn grant(&mut self) -> Option<u64> {
        let target = self.taken.saturating_add(self.window).min(self.limit);
        let more = target.saturating_sub(self.granted.max(self.delivered));
        let dry = self.granted <= self.delivered;
        if more == 0 || (!dry && more < self.window / 8) {
            return None;
        }
        self.granted = target;
        Some(target)
    }

    /// How many messages the receiver may hold at the moment.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window
    }

    /// How many messages came on this channel.
    #[must_use]
    pub fn delivered_count(&self) -> u64 {
        self.delivered
    }

    /// Whether the server may still deliver something without new credit.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.granted > self.delivered
    }

    /// Whether all that may ever be delivered has been.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.delivered >= self.limit
    }
}

/// How many messages lie in ranges without gaps, as a server says what a receiver keeps.
#[must_use]
pub fn messages_in(ranges: &[OffsetRange]) -> u64 {
    ranges.iter().map(OffsetRange::span).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Micros;

    /// A server with endless messages and a reader that needs `each` for one, looked at every
    /// millisecond; returns how many it took in `millis` and the credit afterwards.
    fn run(credit: &mut Credit, each: Micros, millis: u64) -> (u64, u64) {
        let (mut now, mut held, mut granted, mut read) = (Monotonic(0), 0, 0, 0);
        let mut work_left = 0u64;
        let mut held_max = 0;
        for _ in 0..millis {
            if let Some(total) = credit.grant() {
                granted = total;
            }
            let came = granted - credit.delivered_count();
            if came > 0 {
                credit.delivered(now, came, true);
                held += came;
            }
            held_max = held_max.max(held);
            now = now.plus(Micros(1000));
            // A reader takes a message first and works on it then.
            let mut time = 1000u64;
            let mut took = 0;
            loop {
                let work = work_left.min(time);
                work_left -= work;
                time -= work;
                if work_left > 0 || held == took {
                    break;
                }
                took += 1;
                work_left = each.0;
                if each.0 == 0 && took == held {
                    break;
                }
            }
            held -= took;
            read += took;
            if took > 0 {
                credit.taken(now, took, held == 0);
            }
        }
        (read, held_max)
    }

    #[test]
    fn a_fast_reader_has_a_large_window_within_milliseconds() {
        let mut credit = Credit::new(None);
        run(&mut credit, Micros(0), 25);
        assert!(credit.window() > 1 << 20, "{}", credit.window());
        assert!(credit.window() <= limits::CREDIT_MAX);
    }

    #[test]
    fn a_slow_worker_holds_what_it_takes_in_a_tenth_of_a_second() {
        let mut credit = Credit::new(None);
        let (read, held_max) = run(&mut credit, Micros::from_millis(10), 3000);
        assert!((290..=301).contains(&read), "{read}");
        assert!(held_max <= 14, "{held_max}");
    }

    #[test]
    fn a_worker_of_a_second_holds_one() {
        let mut credit = Credit::new(None);
        let (read, held_max) = run(&mut credit, Micros::from_secs(1), 10_000);
        assert!((9..=11).contains(&read), "{read}");
        assert!(held_max <= 2, "{held_max}");
    }

    #[test]
    fn the_window_shrinks_when_the_reader_slows_down() {
        let mut credit = Credit::new(None);
        run(&mut credit, Micros(1), 200);
        assert!(credit.window() > 500, "{}", credit.window());
        // What was granted stays granted; it has to be read first.
        run(&mut credit, Micros::from_millis(1), 30_000);
        assert!(credit.window() <= 130, "{}", credit.window());
    }

    #[test]
    fn idle_time_does_not_make_a_reader_slow() {
        let mut credit = Credit::new(None);
        run(&mut credit, Micros(0), 12);
        let before = credit.window();
        let later = Monotonic(3_600_000_000);
        credit.delivered(later, 1, false);
        credit.taken(later.plus(Micros(1000)), 1, true);
        assert!(credit.window() * 100 >= before * 95, "{} {before}", credit.window());
    }

    #[test]
    fn never_more_than_the_limit() {
        let mut credit = Credit::new(Some(3));
        let (read, _) = run(&mut credit, Micros(0), 100);
        assert_eq!(read, 3);
        assert!(credit.is_spent());
        assert_eq!(credit.grant(), None);
    }

    #[test]
    fn kept_messages_count_as_delivered_on_the_new_channel() {
        let mut credit = Credit::new(Some(10));
        credit.grant();
        credit.delivered(Monotonic(0), 1, true);
        credit.reopen(Some(9));
        credit.kept(1);
        assert_eq!(credit.grant(), None, "the window is full with what was kept");
        credit.taken(Monotonic(5), 1, true);
        assert_eq!(credit.grant(), Some(2));
    }

    #[test]
    fn a_fixed_window_is_always_full_and_never_more() {
        let mut credit = Credit::fixed(8, None);
        assert_eq!(credit.grant(), Some(8));
        credit.delivered(Monotonic(0), 8, true);
        assert_eq!(credit.grant(), None);
        credit.taken(Monotonic(1), 1, false);
        assert_eq!(credit.grant(), Some(9));
        credit.taken(Monotonic(1 << 40), 7, true);
        assert_eq!(credit.grant(), Some(16));
    }

    #[test]
    fn a_single_message_is_granted_at_once_when_the_server_has_none_left() {
        let mut credit = Credit::new(None);
        assert_eq!(credit.grant(), Some(1));
        assert_eq!(credit.grant(), None);
        credit.delivered(Monotonic(0), 1, false);
        credit.taken(Monotonic(1), 1, true);
        assert!(credit.grant().is_some());
    }
}
