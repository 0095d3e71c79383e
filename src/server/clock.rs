//! The two clocks of a server, read together.
//!
//! The running clock counts from the start of the server: so what was recovered and what is served
//! later live on the same one. Read by the start and by the event loop; everything else is told.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::units::{Moment, Monotonic, WallTime};

/// See the module's page.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// A running clock that begins now.
    #[must_use]
    pub fn start() -> Clock {
        Clock { started: Instant::now() }
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
