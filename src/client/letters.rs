//! Dead letters: waiting until they have arrived, so that whoever is told that messages were given up
//! finds them where they went.
//!
//! It asks the server again and again, a few times at most as a rule. `mq-recv` calls it at its end.

use std::time::Duration;

use super::wait::Patience;
use super::{ClientError, Connection, admin};
use crate::units::Name;
use crate::wire::{Admin, ClockInfo};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(2);

/// Waits until none of the group's messages is on its way to the dead letters; false when one still is
/// and the patience is over.
///
/// # Errors
/// See [`admin::call`]; [`ClientError::Interrupted`].
pub fn arrive(
    connection: &mut Connection,
    queue: &Name,
    group: &Name,
    patience: Patience<'_>,
) -> Result<bool, ClientError> {
    loop {
        let clock = Admin::Clock { queue: queue.clone(), group: group.clone() };
        let clock: ClockInfo = admin::call(connection, clock, patience)?;
        if clock.dying.0 == 0 {
            return Ok(true);
        }
        if patience.is_over() {
            return Ok(false);
        }
        patience.sleep(PAUSE)?;
    }
}
