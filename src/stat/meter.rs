//! The meter of one queue: how long its messages take on each part of their way.
//!
//! ```text
//!   read       visible         handed over       acked
//!    │ produce    │     queue       │    consume    │
//!    ├────────────┼─────────────────┼───────────────┤
//! ```
//!
//! What became visible lately is remembered as *marks*, one for each append; what is handed over,
//! as *hands*. Both are bounded: of a message whose mark is forgotten the time at which it was
//! stored is taken, one whose hand is forgotten is not measured. So the queue's memory does not
//! depend on its backlog.

use std::collections::{BTreeMap, VecDeque};

use super::history::{Flow, History};
use super::latency::Latency;
use crate::limits;
use crate::units::{Micros, Moment, Monotonic, Offset, OffsetRange, WallTime};

/// Messages that became visible at once.
#[derive(Clone, Copy, Debug)]
struct Mark {
    range: OffsetRange,
    at: Monotonic,
    /// From being read to being visible; zero if that is not known.
    produce: Micros,
}

/// Messages in someone's hands.
#[derive(Clone, Copy, Debug)]
struct Hand {
    end: Offset,
    /// Since when, or since when they wait for their try.
    since: Monotonic,
    /// From being read to that.
    before: Micros,
    /// From being visible to that, if it is to be counted and the try has not begun.
    waited: Option<Micros>,
    /// They are tried, or need not be.
    begun: bool,
}

/// How messages are handed over.
#[derive(Clone, Copy, Debug)]
pub struct Handing {
    /// They may have been handed over before: their time in the queue was counted then.
    pub redelivered: bool,
    /// They wait for their try to begin.
    pub tries: bool,
    /// When the first of them was stored, for those of which nothing more is known.
    pub stored: WallTime,
}

/// See the module's page. `G` names a group.
#[derive(Clone, Debug)]
pub struct Meter<G> {
    /// From being read by a sender to being visible.
    pub produce: Latency,
    /// From there to being handed over.
    pub queue: Latency,
    /// From there to being acked.
    pub consume: Latency,
    /// From being read to being acked.
    pub whole: Latency,
    /// The newest seconds and minutes.
    pub history: History,
    /// When something was last counted.
    pub used: Monotonic,
    marks: VecDeque<Mark>,
    hands: BTreeMap<(G, Offset), Hand>,
}

impl<G> Default for Meter<G> {
    fn default() -> Meter<G> {
        Meter {
            produce: Latency::default(),
            queue: Latency::default(),
            consume: Latency::default(),
            whole: Latency::default(),
            history: History::default(),
            used: Monotonic(0),
            marks: VecDeque::new(),
            hands: BTreeMap::new(),
        }
    }
}

impl<G: Ord + Copy> Meter<G> {
    /// Something was counted.
    pub fn note(&mut self, moment: Moment, flow: Flow) {
        self.used = moment.now;
        self.history.note(moment.wall, flow);
    }

    /// `range`, which lies behind what was visible before, is visible; `produce` after it was
    /// read, if that is known.
    pub fn visible(&mut self, now: Monotonic, range: OffsetRange, produce: Option<Micros>) {
        if range.is_empty() {
            return;
        }
        if let Some(produce) = produce {
            self.produce.note(produce, range.span());
        }
        if self.marks.len() == limits::METER_MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back(Mark { range, at: now, produce: produce.unwrap_or_default() });
    }

    /// `range` is handed over to a receiver of a group.
    pub fn handed(&mut self, moment: Moment, group: G, range: OffsetRange, how: Handing) {
        // What was in other hands came back without a word, as its receiver went.
        self.take(group, range);
        let from = self.marks.partition_point(|mark| mark.range.end <= range.start);
        let mut at = range.start;
        let mut index = from;
        while at < range.end {
            let mark = self.marks.get(index).copied();
            index += 1;
            let known = mark.and_then(|mark| Some((mark, mark.range.intersection(&range)?)));
            let Some((mark, part)) = known else {
                self.hand_over(moment, group, OffsetRange::new(at, range.end), None, how);
                break;
            };
            if at < part.start {
                self.hand_over(moment, group, OffsetRange::new(at, part.start), None, how);
            }
            self.hand_over(moment, group, part, Some(mark), how);
            at = part.end;
        }
    }

    fn hand_over(
        &mut self,
        moment: Moment,
        group: G,
        range: OffsetRange,
        mark: Option<Mark>,
        how: Handing,
    ) {
        let (waited, produce) = match mark {
            Some(mark) => (moment.now.since(mark.at), mark.produce),
            None => (Micros(moment.wall.0.saturating_sub(how.stored.0)), Micros(0)),
        };
        if !how.redelivered && !how.tries {
            self.queue.note(waited, range.span());
        }
        let counts = how.tries && !how.redelivered;
        let hand = Hand {
            end: range.end,
            since: moment.now,
            before: Micros(produce.0.saturating_add(waited.0)),
            waited: counts.then_some(waited),
            begun: !how.tries,
        };
        if self.hands.len() == limits::METER_HANDS_MAX {
            self.hands.pop_first();
        }
        self.hands.insert((group, range.start), hand);
    }

    /// A try of `ranges` begins.
    pub fn begun(&mut self, now: Monotonic, group: G, ranges: &[OffsetRange]) {
        for &range in ranges {
            for (part, hand) in self.take(group, range) {
                let waited = now.since(hand.since);
                if hand.begun {
                    self.hands.insert((group, part.start), hand);
                    continue;
                }
                if let Some(before) = hand.waited {
                    self.queue.note(Micros(before.0.saturating_add(waited.0)), part.span());
                }
                let before = Micros(hand.before.0.saturating_add(waited.0));
                let begun = Hand { since: now, before, waited: None, begun: true, ..hand };
                self.hands.insert((group, part.start), begun);
            }
        }
    }

    /// `ranges` are acked.
    pub fn acked(&mut self, moment: Moment, group: G, ranges: &[OffsetRange]) {
        for &range in ranges {
            for (part, hand) in self.take(group, range) {
                let took = moment.now.since(hand.since);
                let whole = Micros(hand.before.0.saturating_add(took.0));
                if let Some(before) = hand.waited {
                    // Acked before it was begun, as a receiver may: it waited, and took no time.
                    self.queue.note(Micros(before.0.saturating_add(took.0)), part.span());
                    self.consume.note(Micros(0), part.span());
                } else {
                    self.consume.note(took, part.span());
                }
                self.whole.note(whole, part.span());
                self.history.note_whole(moment.wall, whole, part.span());
            }
        }
    }

    /// `ranges` are in nobody's hands any more.
    pub fn returned(&mut self, group: G, ranges: &[OffsetRange]) {
        for range in ranges {
            self.take(group, *range);
        }
    }

    /// The group is gone, or stands elsewhere.
    pub fn forget_group(&mut self, group: G) {
        self.returned(group, &[OffsetRange::new(Offset(0), Offset(u64::MAX))]);
    }

    /// Takes out what of `range` is in hands; the rest of a hand that is touched stays.
    fn take(&mut self, group: G, range: OffsetRange) -> Vec<(OffsetRange, Hand)> {
        let mut taken = Vec::new();
        if self.hands.is_empty() {
            return taken;
        }
        let overlapping =
            |start: Offset, hand: &Hand| OffsetRange::new(start, hand.end).intersection(&range);
        let before = self.hands.range(..=(group, range.start)).next_back();
        let before = before.filter(|((of, _), _)| *of == group).map(|((_, start), _)| *start);
        let inside = self.hands.range((group, range.start)..(group, range.end));
        let mut starts: Vec<Offset> = before.into_iter().collect();
        starts.extend(inside.map(|((_, start), _)| *start).filter(|s| Some(*s) != before));
        for start in starts {
            let hand = self.hands[&(group, start)];
            let Some(part) = overlapping(start, &hand) else { continue };
            self.hands.remove(&(group, start));
            if start < part.start {
                self.hands.insert((group, start), Hand { end: part.start, ..hand });
            }
            if part.end < hand.end {
                self.hands.insert((group, part.end), hand);
            }
            taken.push((part, Hand { end: part.end, ..hand }));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    fn at(millis: u64) -> Moment {
        let wall = WallTime(1_800_000_000_000_000 + millis * 1_000);
        Moment { now: Monotonic(millis * 1_000), wall }
    }

    const PIPE: Handing = Handing { redelivered: false, tries: false, stored: WallTime(0) };

    fn p50(latency: &Latency) -> (u64, f64) {
        let middle = latency.quantile(0.5).unwrap_or_default().0 as f64 / 1_000.0;
        (latency.count(), (middle / 10.0).round() * 10.0)
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let mut meter = Meter::default();
        meter.visible(at(1_000).now, range(0, 10), Some(Micros::from_millis(500)));
        meter.visible(at(1_100).now, range(10, 30), None);
        meter.handed(at(2_000), 1, range(5, 20), PIPE);
        meter.acked(at(2_250), 1, &[range(5, 7), range(8, 20), range(40, 50)]);
        assert_eq!(p50(&meter.produce), (10, 500.0));
        assert_eq!((meter.queue.count(), meter.queue.sum().0), (15, 5 * 1_000_000 + 10 * 900_000));
        assert_eq!((meter.consume.count(), meter.consume.sum().0), (14, 14 * 250_000));
        assert_eq!(meter.whole.sum().0, 4 * 1_750_000 + 10 * 1_150_000);
        meter.acked(at(2_250), 1, &[range(5, 20)]);
        assert_eq!(meter.whole.count(), 15, "each once");
    }

    #[test]
    fn what_waits_for_its_try_waits_in_the_queue() {
        let mut meter = Meter::default();
        meter.visible(at(0).now, range(0, 2), None);
        meter.handed(at(10_000), 1, range(0, 2), Handing { tries: true, ..PIPE });
        assert_eq!(meter.queue.count(), 0);
        meter.begun(at(10_000).now, 1, &[range(0, 1)]);
        meter.acked(at(12_000), 1, &[range(0, 1)]);
        meter.begun(at(12_000).now, 1, &[range(1, 2)]);
        meter.begun(at(13_000).now, 1, &[range(1, 2)]);
        meter.acked(at(14_000), 1, &[range(1, 2)]);
        assert_eq!(meter.queue.sum(), Micros::from_secs(22));
        assert_eq!(meter.consume.sum(), Micros::from_secs(4));
        assert_eq!(meter.whole.sum(), Micros::from_secs(26));
    }

    #[test]
    fn what_comes_again_is_measured_by_its_last_try_and_by_the_whole() {
        let mut meter = Meter::default();
        meter.visible(at(0).now, range(0, 4), None);
        meter.handed(at(1_000), 1, range(0, 4), PIPE);
        meter.returned(1, &[range(0, 1)]);
        let again = Handing { redelivered: true, ..PIPE };
        meter.handed(at(5_000), 1, range(0, 2), again);
        meter.acked(at(6_000), 1, &[range(0, 2)]);
        assert_eq!((meter.queue.count(), meter.queue.sum()), (4, Micros::from_secs(4)));
        assert_eq!((meter.consume.count(), meter.consume.sum()), (2, Micros::from_secs(2)));
        assert_eq!(meter.whole.sum(), Micros::from_secs(12));
        meter.forget_group(1);
        meter.acked(at(7_000), 1, &[range(0, 4)]);
        assert_eq!(meter.whole.count(), 2);
    }

    #[test]
    fn groups_are_measured_apart() {
        let mut meter = Meter::default();
        meter.visible(at(0).now, range(0, 1), None);
        meter.handed(at(1_000), 1, range(0, 1), PIPE);
        meter.handed(at(3_000), 2, range(0, 1), PIPE);
        meter.acked(at(4_000), 1, &[range(0, 1)]);
        meter.acked(at(4_000), 2, &[range(0, 1)]);
        assert_eq!(meter.consume.sum(), Micros::from_secs(4));
    }

    #[test]
    fn of_a_backlog_the_stored_time_is_taken_and_nothing_grows() {
        let mut meter = Meter::default();
        let most = limits::METER_MARKS_MAX as u64;
        for n in 0..most + 10 {
            meter.visible(at(1_000).now, range(n, n + 1), Some(Micros(1)));
        }
        assert_eq!(meter.marks.len(), limits::METER_MARKS_MAX);
        let stored = at(500).wall;
        meter.handed(at(2_500), 1, range(0, most + 10), Handing { stored, ..PIPE });
        assert_eq!(meter.queue.sum().0, 10 * 2_000_000 + most * 1_500_000);
        for n in 0..limits::METER_HANDS_MAX as u64 {
            meter.handed(at(2_500), 1, range(100_000 + n, 100_001 + n), PIPE);
        }
        assert_eq!(meter.hands.len(), limits::METER_HANDS_MAX);
    }
}
