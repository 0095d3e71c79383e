//! The refill: when the pipe to a filter, once it was full, is written to again.
//!
//! The system says that there is room as soon as the filter has read a little. Who writes then is
//! woken for each of its reads, and has the next one find the pipe full again: for a filter that is
//! quick, waking costs more than the bytes. So a full pipe is let alone until about half of it
//! should have been read, as the times before tell. What is left in it is the filter's meanwhile: one
//! that goes on as before does not wait, and any other no longer than [`MOST`]. Computes only; a run
//! of a filter asks it.

use std::time::{Duration, Instant};

/// Where it begins.
const FIRST: Duration = Duration::from_micros(100);

/// Less is not worth a call, and not kept by the system, which may be 50 µs late.
const LEAST: Duration = Duration::from_micros(20);

/// A filter that has read everything waits no longer than this.
const MOST: Duration = Duration::from_millis(1);

/// In a smaller pipe half of it is gone too soon.
const ROOM_BYTES_MIN: usize = 256 << 10;

/// See the module's page.
#[derive(Debug)]
pub(super) struct Refill {
    /// Bytes that the pipe holds.
    room: usize,
    /// How long it is let alone.
    span: Duration,
    until: Option<Instant>,
}

impl Refill {
    /// Of a pipe that holds `room` bytes.
    pub fn new(room: usize) -> Refill {
        Refill { room, span: FIRST, until: None }
    }

    /// The pipe is full, after `wrote` bytes for which there was room. When nothing was read, the
    /// system is to say when there is room.
    pub fn filled(&mut self, now: Instant, wrote: usize) {
        if wrote == 0 || self.room < ROOM_BYTES_MIN {
            self.until = None;
            return;
        }
        if wrote > self.room / 8 * 5 {
            self.span = (self.span / 2).max(LEAST);
        } else if wrote < self.room / 8 * 3 {
            self.span = (self.span * 2).min(MOST);
        }
        self.until = now.checked_add(self.span);
    }

    /// When it is to be written to again; absent: when there is room.
    pub fn at(&self) -> Option<Instant> {
        self.until
    }

    /// Whether that is now; said once.
    pub fn is_due(&mut self, now: Instant) -> bool {
        self.until.take_if(|until| *until <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 1 << 20;

    /// A filter that reads so many bytes in a microsecond: how often the pipe is written to, and for
    /// how long the filter finds it empty, until it has read `bytes`.
    fn read_through(pace: u32, bytes: usize) -> (u32, Duration) {
        let (mut refill, mut now) = (Refill::new(ROOM), Instant::now());
        let (mut filled, mut read, mut writes, mut idle) = (ROOM, 0, 1, Duration::ZERO);
        refill.filled(now, ROOM);
        while read < bytes {
            let due = refill.at().unwrap_or(now + Duration::from_micros(1));
            let takes = Duration::from_micros(filled as u64 / u64::from(pace));
            let gone = filled.min(((due - now).as_micros() as usize) * pace as usize);
            idle += (due - now).saturating_sub(takes);
            (filled, read, now) = (filled - gone, read + gone, due);
            assert!(refill.at().is_none() || refill.is_due(now));
            writes += 1;
            refill.filled(now, ROOM - filled);
            filled = ROOM;
        }
        (writes, idle)
    }

    #[test]
    fn a_steady_filter_is_written_to_seldom_and_never_waits() {
        // From 200 MB to 4 GB in a second.
        for pace in [200, 500, 1000, 2000, 4000] {
            let (writes, idle) = read_through(pace, 64 * ROOM);
            assert_eq!(idle, Duration::ZERO, "{pace} bytes in a microsecond");
            assert!(writes < 64 * 8, "{writes} writes at {pace} bytes in a microsecond");
        }
    }

    #[test]
    fn one_that_reads_nothing_is_not_looked_at() {
        let (mut refill, now) = (Refill::new(ROOM), Instant::now());
        refill.filled(now, ROOM);
        let at = refill.at().expect("let alone");
        assert!(!refill.is_due(now) && refill.is_due(at) && !refill.is_due(at));
        refill.filled(at, 0);
        assert_eq!(refill.at(), None);
        for _ in 0..10 {
            refill.filled(at, 1);
        }
        assert_eq!(refill.at(), Some(at + MOST));
    }

    #[test]
    fn a_small_pipe_is_written_to_at_once() {
        let mut refill = Refill::new(64 << 10);
        refill.filled(Instant::now(), 64 << 10);
        assert_eq!(refill.at(), None);
    }
}
