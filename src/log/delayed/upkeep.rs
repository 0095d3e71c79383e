//! Which job is due for the delayed messages, and what follows when one is done.
//!
//! At most one run is written, one merge is made and one removal goes on at a time. Decides;
//! jobs do the work. Called by the engine in each turn of the queue.

use std::path::PathBuf;

use super::super::error::{Failure, LogError};
use super::super::jobs::{Done, Job, Outcome};
use super::super::schedule::Progress;
use super::super::storage::Storage;
use super::jobs::{Finished, Input, Made, Stopped, Target, Task, run_path};
use super::run::Reader;
use super::store::{Delays, Run};
use crate::limits;
use crate::units::{Monotonic, Offset, Position};

/// What changed when a job was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DelaysProgress {
    /// What the hidden log says.
    pub log: Progress,
    /// An append that was answered [`NotYet`](super::super::AppendError::NotYet), or a
    /// [`take`](Delays::take) that was cold, is worth trying again.
    pub retry: bool,
}

/// A run that is being written from the index.
struct Flush {
    /// Everything of the hidden log below is in it, in another, or was taken.
    covers: Offset,
    /// A purge has taken away what it was for.
    void: bool,
}

/// A merge under way.
struct Merge {
    /// The runs, and how far each was taken when it began.
    inputs: Vec<(u64, u64)>,
    void: bool,
}

/// The state of the upkeep; see the module's page.
pub(super) struct Upkeep<S: Storage> {
    next_run: u64,
    flush: Option<Flush>,
    merge: Option<Merge>,
    removing: bool,
    /// Files that nothing needs, once the manifest of this number is durable.
    garbage: Vec<(u64, PathBuf)>,
    /// Manifests that were appended, and how many of them are durable.
    appended: u64,
    durable: u64,
    /// Of the last appended manifest.
    floor_appended: Offset,
    /// Of the last one that is durable.
    pub floor_committed: Offset,
    /// Not before this, because there was no room; and why.
    retry_at: Option<Monotonic>,
    pub refused: Option<String>,
    /// What was read ahead last: not asked about again.
    pub warmed: Option<(u64, Position)>,
    of: std::marker::PhantomData<S>,
}

impl<S: Storage> Upkeep<S> {
    pub fn new(next_run: u64) -> Upkeep<S> {
        Upkeep {
            next_run,
            flush: None,
            merge: None,
            removing: false,
            garbage: Vec::new(),
            appended: 0,
            durable: 0,
            floor_appended: Offset(0),
            floor_committed: Offset(0),
            retry_at: None,
            refused: None,
            warmed: None,
            of: std::marker::PhantomData,
        }
    }

    /// A file that the next manifest does not name.
    pub fn discard(&mut self, path: PathBuf) {
        self.garbage.push((self.appended + 1, path));
    }

    pub fn appended(&mut self, floor: Offset) {
        self.appended += 1;
        self.floor_appended = floor;
    }

    pub fn committed(&mut self) {
        self.durable = self.appended;
        self.floor_committed = self.floor_appended;
    }

    pub fn is_merging(&self, number: u64) -> bool {
        self.merge.as_ref().is_some_and(|merge| merge.inputs.iter().any(|(n, _)| *n == number))
    }

    /// What is being written is not wanted any more.
    pub fn forget_making(&mut self) {
        if let Some(flush) = &mut self.flush {
            flush.void = true;
        }
        if let Some(merge) = &mut self.merge {
            merge.void = true;
        }
    }

    fn take_number(&mut self) -> u64 {
        self.next_run += 1;
        self.next_run - 1
    }
}

impl<S: Storage> Delays<S> {
    /// The next job to hand to a helper thread, if one is due. Ask until there is none.
    ///
    /// # Errors
    /// A file of the hidden log cannot be opened.
    pub fn next_job(&mut self, now: Monotonic) -> Option<Job<S>> {
        if let Some(job) = self.log.next_job(now) {
            return Some(job);
        }
        self.note_durable();
        if self.log.failed().is_some() || self.log.damage().is_some() {
            return None;
        }
        if self.upkeep.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        self.upkeep.retry_at = None;
        let task = self.flush_task().or_else(|| self.merge_task()).or_else(|| self.remove_task());
        task.map(|task| self.job(task))
    }

    /// When [`next_job`](Delays::next_job) may have something at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.log.next_deadline().into_iter().chain(self.upkeep.retry_at).min()
    }

    /// An orderly stop, as [`Log::close_jobs`](super::super::Log::close_jobs).
    pub fn close_jobs(&mut self, now: Monotonic) -> Option<Job<S>> {
        self.log.close_jobs(now)
    }

    fn target(&mut self) -> Target {
        Target {
            dir: self.dir.clone(),
            queue: self.log.id(),
            number: self.upkeep.take_number(),
            options: self.options.clone(),
        }
    }

    /// Writes the index into a run when it is full, or when it holds up a segment of the hidden
    /// log that could go otherwise.
    fn flush_task(&mut self) -> Option<Task<S>> {
        if self.upkeep.flush.is_some() {
            return None;
        }
        if self.frozen.is_none() {
            let holds_up = self.log.sealed.last().is_some_and(|s| s.summary.end > self.floor);
            let wanted =
                self.index.len() >= self.options.delay_index || holds_up || self.levels.is_full();
            if !wanted || self.index.len() == 0 || self.runs.len() >= limits::DELAY_RUNS_MAX {
                return None;
            }
            self.frozen = Some(self.index.freeze());
            self.frozen_end = self.noted;
        }
        let entries = self.frozen.as_ref().expect("it was frozen").entries.clone();
        let files = match self.files_of(&entries) {
            Ok(files) => files,
            Err(error) => {
                drop(self.log.fail(error.to_string()));
                return None;
            }
        };
        self.upkeep.flush = Some(Flush { covers: self.frozen_end, void: false });
        Some(Task::Flush { target: self.target(), entries, files })
    }

    /// Merges the smaller half of the runs when there are many.
    fn merge_task(&mut self) -> Option<Task<S>> {
        if self.upkeep.merge.is_some() || self.runs.len() <= self.options.delay_runs {
            return None;
        }
        let mut smallest: Vec<&Run<S>> = self.runs.iter().collect();
        smallest.sort_by_key(|run| run.reader.bytes_left());
        smallest.truncate(self.runs.len() / 2 + 1);
        let inputs: Vec<Input<S>> = smallest
            .into_iter()
            .map(|run| Input {
                number: run.number,
                path: run.path.clone(),
                file: run.reader.file.clone(),
                extent: run.extent,
                from: (run.reader.taken, run.reader.position),
            })
            .collect();
        let began = inputs.iter().map(|input| (input.number, input.from.0)).collect();
        self.upkeep.merge = Some(Merge { inputs: began, void: false });
        Some(Task::Merge { target: self.target(), inputs })
    }

    fn remove_task(&mut self) -> Option<Task<S>> {
        let durable = self.upkeep.durable;
        if self.upkeep.removing || !self.upkeep.garbage.iter().any(|(n, _)| *n <= durable) {
            return None;
        }
        let ready = self.upkeep.garbage.iter().filter(|(needs, _)| *needs <= durable);
        let paths = ready.map(|(_, path)| path.clone()).collect();
        self.upkeep.removing = true;
        Some(Task::Remove { dir: self.dir.clone(), paths })
    }

    /// Takes in what came of a job.
    pub fn complete(&mut self, now: Monotonic, done: Done<S>) -> DelaysProgress {
        assert!(done.queue == self.log.id(), "a job of another queue");
        let mut progress = DelaysProgress::default();
        let finished = match done.outcome {
            Outcome::Delayed(finished) => finished,
            outcome => {
                let done = Done { queue: done.queue, outcome };
                progress.log = self.log.complete(now, done);
                progress.retry = progress.log.retry;
                self.note_durable();
                return progress;
            }
        };
        progress.retry = true;
        match *finished {
            Finished::Flushed(result) => {
                let flush = self.upkeep.flush.take().expect("a run was being written");
                match result {
                    Ok(made) if flush.void => self.upkeep.discard(made.path),
                    Ok(made) => self.flushed(made, flush.covers),
                    Err(_) if flush.void => {}
                    Err(stopped) => self.stopped(now, stopped),
                }
            }
            Finished::Merged(result) => {
                let merge = self.upkeep.merge.take().expect("a merge was being made");
                match result {
                    Ok(made) if merge.void => self.upkeep.discard(made.path),
                    Ok(made) => self.merged(made, &merge),
                    Err(_) if merge.void => {}
                    Err(stopped) => self.stopped(now, stopped),
                }
            }
            Finished::Removed { paths, result } => {
                self.upkeep.removing = false;
                match result {
                    Ok(()) => self.upkeep.garbage.retain(|(_, path)| !paths.contains(path)),
                    Err(failure) => self.failed(now, &failure),
                }
            }
            Finished::Read { key } => self.upkeep.warmed = Some(key),
        }
        progress.log.failed = self.log.failed().map(str::to_owned);
        progress
    }

    fn stopped(&mut self, now: Monotonic, stopped: Stopped) {
        match stopped {
            Stopped::Failed(failure) => self.failed(now, &failure),
            Stopped::Damaged(damage) => {
                self.log.damage.get_or_insert(damage);
            }
        }
    }

    fn failed(&mut self, now: Monotonic, failure: &Failure) {
        if failure.is_full() {
            self.upkeep.retry_at = Some(now.plus(limits::CHORE_RETRY));
            self.upkeep.refused = Some(failure.to_string());
        } else {
            drop(self.log.fail(failure.to_string()));
        }
    }

    /// The index that was frozen is in a run now.
    fn flushed(&mut self, made: Made<S>, covers: Offset) {
        let frozen = self.frozen.take().expect("it was being written");
        self.upkeep.refused = None;
        if frozen.len() == 0 {
            self.upkeep.discard(made.path);
        } else if self.install(made, frozen.taken()).is_err() {
            // What it holds is where it was: nothing says that it is in a run.
            self.frozen = Some(frozen);
            return;
        }
        self.floor = covers;
        self.levels.forget_below(covers);
        self.settle();
    }

    /// Several runs are one now. What was taken from them meanwhile is its beginning.
    fn merged(&mut self, made: Made<S>, merge: &Merge) {
        let is_input = |number: u64| merge.inputs.iter().find(|(n, _)| *n == number);
        let taken: u64 = self
            .runs
            .iter()
            .filter_map(|run| is_input(run.number).map(|(_, began)| run.reader.taken - began))
            .sum();
        let (old, rest) = std::mem::take(&mut self.runs)
            .into_iter()
            .partition::<Vec<_>, _>(|run| is_input(run.number).is_some());
        self.upkeep.refused = None;
        self.runs = rest;
        old.into_iter().for_each(|run| self.upkeep.discard(run.path));
        if taken == made.extent.entries {
            self.upkeep.discard(made.path);
        } else if self.install(made, taken).is_err() {
            // The next start finds the runs that it was made of.
            return;
        }
        self.settle();
    }

    /// Takes a run into use, of which the first `taken` entries are taken. What was just written and
    /// cannot be read ends the log.
    fn install(&mut self, made: Made<S>, taken: u64) -> Result<(), LogError> {
        let near = made.waypoints.iter().rev().find(|(entries, _)| *entries <= taken);
        let from = near.copied().unwrap_or((0, super::run::HEADER_BYTES));
        let mut reader = Reader::new(made.file, self.log.id(), made.number, made.extent, from);
        while reader.taken < taken {
            if let Err(bad) = reader.skip() {
                let error = self.bad_run(&made.path, bad);
                drop(self.log.fail(error.to_string()));
                return Err(error);
            }
        }
        let (number, path, extent) = (made.number, made.path, made.extent);
        self.runs.push(Run { number, path, extent, reader });
        Ok(())
    }

    /// A run that was found at the start and is not named by the manifest.
    pub(super) fn discard_run(&mut self, number: u64) {
        let path = run_path(&self.dir, number);
        self.upkeep.discard(path);
        self.dirty = true;
    }
}
