//! The two clocks of a server, read together.
//!
//! The running clock counts from the start of the server: so what was recovered and what is served
//! later live on the same one. Read by the start and by the event loop; everything else is told.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::units::{Micros, Moment, Monotonic, WallTime};

/// See the module's page.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    zero: Micros,
}

impl Clock {
    /// A running clock that begins now.
    #[must_use]
    pub fn start() -> Clock {
        let zero = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let zero = Micros(zero.tv_sec as u64 * 1_000_000 + zero.tv_nsec as u64 / 1_000);
        Clock { started: Instant::now(), zero }
    }

    /// What CLOCK_MONOTONIC said when the running clock began: clients know that one.
    #[must_use]
    pub fn zero(&self) -> Micros {
        self.zero
    }

    /// What both clocks say.
    #[must_use]
    pub fn moment(&self) -> Moment {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment {
            now: Monotonic(self.started.elapsed().as_micros() as u64),
            wall: WallTime(wall.as_micros() as u64),
        }
    }
}
