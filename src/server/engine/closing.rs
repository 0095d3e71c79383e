//! The end of an orderly stop: each log is brought to where the next start need not mend anything.

use crate::log::Log;
use crate::log::storage::Storage;
use crate::units::{Moment, Monotonic};

use super::Engine;
use super::delaying::Delay;

impl<S: Storage> Engine<S> {
    /// The last steps of an orderly stop, without helper threads: everything is synced, marked
    /// and sealed. True when the next start may take all of it for closed in order.
    ///
    /// # Errors
    /// A disk that fails; the next start then recovers as after a crash.
    pub fn close(mut self, now: Monotonic) -> Result<bool, String> {
        // A queue that could not be opened was not closed in order either, nor one that is just being made
        // or removed.
        let mut clean = !self.has_damaged() && self.jobs_under_way() == 0;
        let idle = self.hosted.iter().filter(|(_, hosted)| hosted.jobs_under_way == 0);
        for number in idle.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.keep_groups(number, Moment { now, ..self.clock });
        }
        for (_, mut hosted) in std::mem::take(&mut self.hosted) {
            if hosted.jobs_under_way > 0 {
                // A job that did not come back in time: nothing can be said of its log.
                clean = false;
                continue;
            }
            clean &= close_log(&mut hosted.log, now)
                .and_then(|clean| match &mut hosted.delay {
                    Delay::Open(waiting) => Ok(close_log(waiting.delays.log(), now)? && clean),
                    Delay::None | Delay::Making => Ok(clean),
                })
                .map_err(|why| format!("queue {}: {why}", hosted.name))?;
        }
        Ok(clean)
    }
}

/// The last steps of one log; whether they led to its end.
fn close_log<S: Storage>(log: &mut Log<S>, now: Monotonic) -> Result<bool, String> {
    while let Some(job) = log.close_jobs(now) {
        let done = job.run();
        // What finds no room now would find none again and again.
        let gives_up = done.error().is_some();
        if let Some(why) = log.complete(now, done).failed {
            return Err(why);
        }
        if gives_up {
            break;
        }
    }
    match log.failed() {
        Some(why) => Err(why.to_owned()),
        None => Ok(log.is_closed_cleanly()),
    }
}
