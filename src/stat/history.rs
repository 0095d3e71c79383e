//! The newest seconds and minutes of a queue.
//!
//! A second is *open* while things are counted in it, and is closed by the first that is counted
//! in another, or by whoever asks; one in which nothing was counted takes no room. So does a minute.
//! Both are whole ones of the wall clock.

use std::collections::VecDeque;
use std::ops::{Add, AddAssign};

use super::latency::Latency;
use crate::limits;
use crate::units::{Micros, WallTime};

/// What was counted in a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Messages that became visible.
    pub stored: u64,
    /// Bytes of payload.
    pub stored_bytes: u64,
    /// Messages handed over.
    pub delivered: u64,
    /// Bytes of those.
    pub delivered_bytes: u64,
    /// Messages acked.
    pub acked: u64,
    /// Tries that failed.
    pub retried: u64,
    /// Messages that became dead letters.
    pub dead: u64,
}

impl Add for Flow {
    type Output = Flow;

    fn add(self, other: Flow) -> Flow {
        Flow {
            stored: self.stored + other.stored,
            stored_bytes: self.stored_bytes + other.stored_bytes,
            delivered: self.delivered + other.delivered,
            delivered_bytes: self.delivered_bytes + other.delivered_bytes,
            acked: self.acked + other.acked,
            retried: self.retried + other.retried,
            dead: self.dead + other.dead,
        }
    }
}

impl AddAssign for Flow {
    fn add_assign(&mut self, other: Flow) {
        *self = *self + other;
    }
}

/// One second or minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// When it began.
    pub at: WallTime,
    /// What was counted.
    pub flow: Flow,
    /// Messages that were ready at its end.
    pub ready: u64,
    /// The whole latency of what was acked: p50 and p99.
    pub whole: Option<(Micros, Micros)>,
}

/// Closed slices of one length, and the one that is open.
#[derive(Clone, Debug)]
struct Track {
    length: Micros,
    most: u32,
    closed: VecDeque<Slice>,
    open: Slice,
    /// The whole latency of what was acked in the open one.
    whole: Latency,
}

impl Track {
    fn new(length: Micros, most: u32) -> Track {
        Track {
            length,
            most,
            closed: VecDeque::new(),
            open: Slice::default(),
            whole: Latency::default(),
        }
    }

    fn begin_of(&self, wall: WallTime) -> WallTime {
        WallTime(wall.0 - wall.0 % self.length.0)
    }

    /// Whether `wall` lies in the open slice.
    fn is_open_at(&self, wall: WallTime) -> bool {
        self.open.at == self.begin_of(wall)
    }

    /// The slice of `wall` is open from now on. `latency` is what was measured in the one before.
    fn open_at(&mut self, wall: WallTime, ready: u64) {
        let closed = self.snapshot(ready);
        self.whole.clear();
        if closed.flow != Flow::default() {
            self.closed.push_back(closed);
        }
        self.open = Slice { at: self.begin_of(wall), ..Slice::default() };
        // A clock that was set back: what seems to lie ahead is not known to be older.
        while self.closed.back().is_some_and(|last| last.at >= self.open.at) {
            self.closed.pop_back();
        }
        self.forget_before(wall);
    }

    fn forget_before(&mut self, wall: WallTime) {
        let oldest = WallTime(
            self.begin_of(wall).0.saturating_sub(u64::from(self.most - 1) * self.length.0),
        );
        while self.closed.front().is_some_and(|first| first.at < oldest) {
            self.closed.pop_front();
        }
    }

    /// The open slice as it stands.
    fn snapshot(&self, ready: u64) -> Slice {
        let whole = self.whole.quantile(0.5).zip(self.whole.quantile(0.99));
        Slice { ready, whole, ..self.open }
    }

    fn newest(&self, wall: WallTime, most: u32, ready: u64) -> Vec<Slice> {
        let most = most.min(self.most);
        if most == 0 {
            return Vec::new();
        }
        let oldest =
            WallTime(self.begin_of(wall).0.saturating_sub(u64::from(most - 1) * self.length.0));
        let open = Some(self.snapshot(ready)).filter(|open| open.flow != Flow::default());
        let all = self.closed.iter().copied().chain(open);
        all.filter(|slice| slice.at >= oldest && slice.at <= wall).collect()
    }
}

/// See the module's page.
#[derive(Clone, Debug)]
pub struct History {
    seconds: Track,
    minutes: Track,
    /// Messages that are ready, as far as was told.
    ready: u64,
}

impl Default for History {
    fn default() -> History {
        History {
            seconds: Track::new(Micros::from_secs(1), limits::HISTORY_SECONDS),
            minutes: Track::new(Micros::from_secs(60), limits::HISTORY_MINUTES),
            ready: 0,
        }
    }
}

impl History {
    /// Something happened.
    pub fn note(&mut self, wall: WallTime, flow: Flow) {
        self.turn_to(wall);
        self.seconds.open.flow += flow;
        self.minutes.open.flow += flow;
    }

    /// So many messages were acked, with this latency from their reading on.
    pub fn note_whole(&mut self, wall: WallTime, latency: Micros, messages: u64) {
        self.turn_to(wall);
        self.seconds.whole.note(latency, messages);
        self.minutes.whole.note(latency, messages);
    }

    /// So many messages are ready now.
    pub fn set_ready(&mut self, wall: WallTime, ready: u64) {
        if ready != self.ready {
            self.turn_to(wall);
            self.ready = ready;
        }
    }

    /// The slices of `wall` are open from now on.
    fn turn_to(&mut self, wall: WallTime) {
        if self.seconds.is_open_at(wall) {
            return;
        }
        self.seconds.open_at(wall, self.ready);
        if !self.minutes.is_open_at(wall) {
            self.minutes.open_at(wall, self.ready);
        }
    }

    /// So many of the newest seconds, the oldest first; those in which nothing was counted apart.
    #[must_use]
    pub fn seconds(&self, wall: WallTime, most: u32) -> Vec<Slice> {
        self.seconds.newest(wall, most, self.ready)
    }

    /// As [`seconds`](History::seconds), minutes.
    #[must_use]
    pub fn minutes(&self, wall: WallTime, most: u32) -> Vec<Slice> {
        self.minutes.newest(wall, most, self.ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: u64 = 1_800_000_000_000_000;

    fn at(millis: u64) -> WallTime {
        WallTime(T0 + millis * 1_000)
    }

    fn acked(acked: u64) -> Flow {
        Flow { acked, ..Flow::default() }
    }

    fn counts(slices: &[Slice]) -> Vec<(u64, u64)> {
        slices.iter().map(|slice| ((slice.at.0 - T0) / 1_000_000, slice.flow.acked)).collect()
    }

    #[test]
    fn seconds_and_minutes_hold_what_was_counted_in_them() {
        let mut history = History::default();
        for (millis, n) in [(100, 1), (900, 2), (1_000, 4), (59_999, 8), (61_000, 16)] {
            history.note(at(millis), acked(n));
        }
        let seconds = history.seconds(at(61_500), 100);
        assert_eq!(counts(&seconds), [(0, 3), (1, 4), (59, 8), (61, 16)]);
        assert_eq!(counts(&history.seconds(at(61_500), 3)), [(59, 8), (61, 16)]);
        assert_eq!(counts(&history.seconds(at(62_000), 1)), []);
        assert_eq!(counts(&history.minutes(at(61_500), 9)), [(0, 15), (60, 16)]);
        assert_eq!(history.minutes(at(61_500), 0), []);
    }

    #[test]
    fn slices_tell_latencies_and_what_was_ready_at_their_end() {
        let mut history = History::default();
        history.note(at(0), acked(2));
        history.note_whole(at(0), Micros(1_000), 2);
        history.set_ready(at(10), 7);
        history.note(at(1_000), acked(1));
        history.set_ready(at(1_000), 6);
        let seconds = history.seconds(at(1_000), 9);
        assert_eq!([seconds[0].ready, seconds[1].ready], [7, 6]);
        let (p50, p99) = seconds[0].whole.expect("measured");
        assert!((970..=1_030).contains(&p50.0) && p50 == p99, "{p50} {p99}");
        assert_eq!(seconds[1].whole, None);
    }

    #[test]
    fn history_is_bounded_and_survives_a_clock_that_is_set_back() {
        let mut history = History::default();
        for second in 0..u64::from(limits::HISTORY_SECONDS) * 3 {
            history.note(at(second * 1_000), acked(1));
        }
        let now = at(u64::from(limits::HISTORY_SECONDS) * 3_000 - 1);
        assert_eq!(history.seconds(now, u32::MAX).len(), limits::HISTORY_SECONDS as usize);
        assert!(history.seconds.closed.len() < limits::HISTORY_SECONDS as usize + 1);
        let back = at(u64::from(limits::HISTORY_SECONDS) * 2_500);
        history.note(back, acked(5));
        let seconds = history.seconds(back, u32::MAX);
        assert_eq!(seconds.last().map(|slice| slice.flow.acked), Some(5));
        assert!(seconds.is_sorted_by_key(|slice| slice.at));
    }
}
