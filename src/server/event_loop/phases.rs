//! The loop's own course: serving, draining, leaving, and why it ends.

use super::EventLoop;
use crate::limits;
use crate::log::storage::Storage;
use crate::units::{Moment, Monotonic};

/// Why the loop ended.
#[derive(Debug)]
pub enum Ended {
    /// In order: everything was synced and answered.
    Orderly(String, Monotonic),
    /// A second signal came: at once.
    Hurried,
    /// The disk failed; nothing more was confirmed.
    Failed(String),
}

/// What the loop is at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// What was appended is synced and confirmed.
    Draining(Monotonic),
    /// The last frames are sent.
    Leaving(Monotonic),
}

impl Phase {
    /// When it ends at the latest.
    pub(super) fn deadline(self) -> Option<Monotonic> {
        match self {
            Phase::Serving => None,
            Phase::Draining(due) | Phase::Leaving(due) => Some(due),
        }
    }
}

impl<S: Storage> EventLoop<S> {
    /// The loop's own course: failures, signals, stopping.
    pub(super) fn step(&mut self, moment: Moment) -> Option<Ended> {
        if let Some(why) = self.engine.failed() {
            let why = why.to_owned();
            // One try: whoever does not read now finds the connection closed.
            self.engine.say_failed(&why);
            self.send_dirty();
            return Some(Ended::Failed(why));
        }
        if self.signals_seen > 1 {
            return Some(Ended::Hurried);
        }
        if self.accept_again.is_some_and(|due| due <= moment.now) {
            self.accept(moment);
        }
        match self.phase {
            Phase::Serving => {
                if let Some((reason, orderly)) = self.reason_to_stop(moment) {
                    self.report.info(&format!("stopping: {reason}"));
                    self.reason = reason;
                    self.orderly = orderly;
                    self.engine.begin_stop();
                    self.phase = Phase::Draining(moment.now.plus(limits::DRAIN));
                    return self.step(moment);
                }
            }
            Phase::Draining(due) => {
                if self.engine.is_drained() || due <= moment.now {
                    self.engine.say_goodbye(&self.reason, self.orderly);
                    self.phase = Phase::Leaving(due);
                    self.send_dirty();
                    return self.step(moment);
                }
            }
            Phase::Leaving(due) => {
                if self.links.is_empty() || due <= moment.now {
                    for connection in self.links.keys().copied().collect::<Vec<_>>() {
                        self.hang_up(connection);
                    }
                    if self.engine.jobs_under_way() == 0 || due <= moment.now {
                        let reason = std::mem::take(&mut self.reason);
                        return Some(Ended::Orderly(reason, moment.now));
                    }
                }
            }
        }
        None
    }

    fn reason_to_stop(&self, moment: Moment) -> Option<(String, bool)> {
        if self.signals_seen > 0 {
            return Some(("a signal asked for it".to_owned(), true));
        }
        if let Some(reason) = self.engine.stop_asked() {
            return Some((reason.to_owned(), true));
        }
        let patience = self.idle_exit?;
        let idle = self.links.is_empty() && moment.now.since(self.idle_since) >= patience;
        idle.then(|| ("nothing to do".to_owned(), false))
    }
}
