//! The watermark: the time before which nothing more is expected.
//!
//! It rises with the times of messages, and with stored time also by the server's clock once the
//! log is read to its end, as whatever is stored later is stored at a later time. It never falls.
//! All that windows do depends on it and on the messages alone, so whoever reads the same
//! messages again comes to the same windows.
//!
//! Rises by the clock are not among the messages. As a rule that makes no difference: a message
//! behind such a rise is no older than it, and so finds the same open windows with it as without.
//! Only where the server's clock was set back is a later message older than the rise; then the
//! rise is remembered with its place, for whoever reads from before it again.

use crate::limits;
use crate::units::{Micros, Offset, WallTime};

/// A rise that no message shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rise {
    /// It came before the message with this offset was read.
    pub at: Offset,
    /// What the watermark became.
    pub to: WallTime,
}

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Watermark {
    late: Micros,
    at: WallTime,
    /// In order; all but the last have messages behind them that are older.
    rises: Vec<Rise>,
    /// Whether a message behind the last rise is older than it.
    is_last_needed: bool,
}

impl Watermark {
    /// One that stays `late` behind the messages' times, and begins at `at`.
    pub fn new(late: Micros, at: WallTime) -> Watermark {
        Watermark { late, at, rises: Vec::new(), is_last_needed: false }
    }

    /// Where it is.
    pub fn at(&self) -> WallTime {
        self.at
    }

    /// When the clock will have taken it to `end`.
    pub fn clock_at(&self, end: WallTime) -> WallTime {
        WallTime(end.0.saturating_add(self.late.0))
    }

    fn behind(&self, time: WallTime) -> WallTime {
        WallTime(time.0.saturating_sub(self.late.0))
    }

    /// A message is about to be looked at.
    pub fn note(&mut self, time: WallTime) {
        self.is_last_needed |= self.rises.last().is_some_and(|rise| time < rise.to);
    }

    /// A message with this time has been looked at.
    pub fn pass(&mut self, time: WallTime) {
        self.at = self.at.max(self.behind(time));
    }

    /// The log is read to its end, which is before the offset `at`, and the server's clock says
    /// `now`. Whether it rose.
    pub fn pass_clock(&mut self, at: Offset, now: WallTime) -> bool {
        self.rise(Rise { at, to: self.behind(now) })
    }

    /// Rises to `to` before the message at that offset is read.
    pub fn rise(&mut self, rise: Rise) -> bool {
        if rise.to <= self.at {
            return false;
        }
        if !self.is_last_needed {
            self.rises.pop();
        }
        self.is_last_needed = false;
        self.rises.push(rise);
        self.at = rise.to;
        true
    }

    /// What was read up to a checkpoint has been read again; this is where the watermark was.
    pub fn resume_at(&mut self, at: WallTime) {
        self.at = self.at.max(at);
    }

    /// Nothing before `floor` will be read again.
    pub fn forget_below(&mut self, floor: Offset) {
        self.rises.retain(|rise| rise.at > floor);
    }

    /// What must be known to read the same messages again.
    pub fn rises(&self) -> &[Rise] {
        &self.rises
    }

    /// Whether the clock was set back more often than can be remembered.
    pub fn is_full(&self) -> bool {
        self.rises.len() >= limits::WATERMARK_RISES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rise(at: u64, to: u64) -> Rise {
        Rise { at: Offset(at), to: WallTime(to) }
    }

    #[test]
    fn it_never_falls_and_stays_behind() {
        let mut watermark = Watermark::new(Micros(10), WallTime(0));
        for (time, at) in [(5, 0), (30, 20), (25, 20), (31, 21)] {
            watermark.pass(WallTime(time));
            assert_eq!(watermark.at(), WallTime(at));
        }
        assert!(!watermark.pass_clock(Offset(1), WallTime(31)));
        assert!(watermark.pass_clock(Offset(1), WallTime(32)));
        assert_eq!(watermark.at(), WallTime(22));
    }

    #[test]
    fn only_rises_that_matter_are_remembered() {
        let mut watermark = Watermark::new(Micros(0), WallTime(0));
        for (at, clock) in [(1, 10), (2, 20), (3, 30)] {
            watermark.note(WallTime(clock));
            watermark.pass_clock(Offset(at), WallTime(clock));
        }
        assert_eq!(watermark.rises(), [rise(3, 30)]);
        // The clock is set back.
        watermark.note(WallTime(25));
        watermark.pass_clock(Offset(4), WallTime(40));
        assert_eq!(watermark.rises(), [rise(3, 30), rise(4, 40)]);
        watermark.forget_below(Offset(3));
        assert_eq!(watermark.rises(), [rise(4, 40)]);
    }
}
