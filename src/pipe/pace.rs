//! The pace: how many bytes the next batch may have.
//!
//! A batch as large as memory is meant for is enough for most filters. One that is quick and writes
//! little, on messages that need no memory, is given more at once, as long as it stays so: then what
//! it costs to start it counts. Computes only; the `run` loop asks it.

use std::time::Duration;

use super::load::Load;
use super::trial::Ran;
use crate::limits;

/// A filter that takes less is given more.
const QUICK: Duration = Duration::from_millis(100);

/// One that takes more is given less: what it does is done anew after a crash.
const SLOW: Duration = Duration::from_millis(400);

/// See the module's page.
#[derive(Debug)]
pub(super) struct Pace {
    bytes: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { bytes: limits::PIPE_BATCH_BYTES }
    }
}

impl Pace {
    /// Whether the load is to have no more.
    pub fn is_enough(&self, load: &Load) -> bool {
        load.bytes_here() >= limits::PIPE_BATCH_BYTES || load.bytes() >= self.bytes
    }

    /// The filter read and wrote so many bytes in this time.
    pub fn ran(&mut self, how: Ran, read: usize, written: usize, took: Duration) {
        if how != Ran::Well || took > SLOW || written > limits::PIPE_BATCH_BYTES {
            self.bytes = limits::PIPE_BATCH_BYTES;
        } else if read >= self.bytes && took < QUICK && written <= limits::PIPE_BATCH_BYTES / 2 {
            self.bytes = (2 * self.bytes).min(limits::PIPE_BATCH_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_filters_that_write_little_are_given_more() {
        let mut pace = Pace::default();
        let (least, most) = (limits::PIPE_BATCH_BYTES, limits::PIPE_BATCH_BYTES_MAX);
        pace.ran(Ran::Well, least - 1, 0, QUICK / 2);
        assert_eq!(pace.bytes, least, "it was not given all that it might have been");
        pace.ran(Ran::Well, least, least, QUICK / 2);
        assert_eq!(pace.bytes, least, "twice as much would be too much at once");
        for _ in 0..8 {
            pace.ran(Ran::Well, pace.bytes, least / 2, QUICK / 2);
        }
        assert_eq!(pace.bytes, most);
        pace.ran(Ran::Well, most, 0, (QUICK + SLOW) / 2);
        assert_eq!(pace.bytes, most);
        pace.ran(Ran::Well, most, 0, 2 * SLOW);
        assert_eq!(pace.bytes, least);
        pace.ran(Ran::Well, least, 0, QUICK / 2);
        pace.ran(Ran::Failed, 2 * least, 0, QUICK / 2);
        assert_eq!(pace.bytes, least);
    }
}
