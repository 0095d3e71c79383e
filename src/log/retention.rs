//! What a queue that keeps its messages for replay keeps: by age, by bytes, by number.
//!
//! Whole segments go, and only such that what is kept without them is still as much as the
//! settings ask for; so no message goes that they cover, and at most about an eighth is kept
//! beyond them, or [`limits::RETENTION_ROLL_BYTES`] if that is more. Decides; the server moves
//! the groups and has the segments dropped. Called by it in each turn of such a queue.

use super::log::Log;
use super::storage::Storage;
use crate::limits;
use crate::settings::Retention;
use crate::units::{Bytes, Micros, Offset, OffsetRange, WallTime};

impl<S: Storage> Log<S> {
    /// The offset below which the queue keeps nothing any more at this time: where the newest
    /// segment ends that is beyond all of its settings. None: it keeps everything.
    #[must_use]
    pub fn overdue(&self, wall: WallTime) -> Option<Offset> {
        let settings = &self.meta.settings;
        if settings.retain != Retention::Log {
            return None;
        }
        let (mut messages, mut bytes) = self.extents().fold((0, 0), |(messages, bytes), extent| {
            (messages + extent.range.span(), bytes + extent.bytes.0)
        });
        let mut overdue = None;
        for extent in self.extents().take_while(|extent| extent.sealed) {
            messages -= extent.range.span();
            bytes -= extent.bytes.0;
            let old = |age: Micros| extent.last.0.saturating_add(age.0) <= wall.0;
            let beyond = settings.max_messages.is_some_and(|most| messages >= most)
                || settings.max_bytes.is_some_and(|most| bytes >= most)
                || settings.max_age.is_some_and(old);
            if !beyond {
                break;
            }
            overdue = Some(extent.range.end);
        }
        overdue
    }

    /// Goes on in another segment when enough is in the active one that it should be able to go
    /// by itself.
    pub fn roll_for_retention(&mut self, wall: WallTime) {
        let settings = &self.meta.settings;
        let active = &self.active;
        if settings.retain != Retention::Log || active.count.0 == 0 || self.preparing.then_roll {
            return;
        }
        let large = |least: u64| active.position >= least.max(limits::RETENTION_ROLL_BYTES);
        let full = settings.max_messages.is_some_and(|most| active.count.0 >= most / 8 && large(0))
            || settings.max_bytes.is_some_and(|most| large(most / 8));
        let old = self.active_due().is_some_and(|due| due <= wall);
        if full || old {
            self.preparing.then_roll = true;
            self.preparing.wanted = true;
            self.roll_when_prepared();
        }
    }

    /// When the active segment is to be rolled for its age.
    fn active_due(&self) -> Option<WallTime> {
        let age = self.meta.settings.max_age.filter(|_| self.active.count.0 > 0)?;
        let share = (age.0 / 8).max(limits::RETENTION_ROLL_AGE.0);
        Some(WallTime(self.active.time_first.0.saturating_add(share)))
    }

    /// When [`overdue`](Log::overdue) and [`roll_for_retention`](Log::roll_for_retention) are to
    /// be asked again though nothing happened: a time behind `wall`. What ends at `kept_from` or
    /// before is given up already.
    #[must_use]
    pub fn retention_due(&self, wall: WallTime, kept_from: Offset) -> Option<WallTime> {
        let age = self.meta.settings.max_age?;
        if self.meta.settings.retain != Retention::Log {
            return None;
        }
        let oldest = self.extents().find(|extent| extent.range.end > kept_from);
        let oldest = oldest.map(|extent| WallTime(extent.last.0.saturating_add(age.0)));
        let due = [oldest, self.active_due()].into_iter().flatten();
        due.filter(|due| *due > wall).min()
    }

    /// Bytes of the messages that `present` counts in a range: those of each segment by the
    /// share of its messages that are.
    #[must_use]
    pub fn bytes_of(&self, present: impl Fn(OffsetRange) -> u64) -> Bytes {
        let shares = self.extents().map(|extent| {
            let (here, all) = (present(extent.range), extent.range.span());
            (u128::from(extent.bytes.0) * u128::from(here)).div_ceil(u128::from(all)) as u64
        });
        Bytes(shares.sum())
    }
}
