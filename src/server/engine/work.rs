//! The jobs that an engine hands out, and their outcomes.

use std::sync::Arc;

use crate::log::storage::Storage;
use crate::log::{
    self, CheckBound, Delays, Done, Job, Log, LogError, Options, Progress, Recovered, Staging,
};
use crate::server::findings::add_to_report;
use crate::server::workers;
use crate::settings::Settings;
use crate::units::{Moment, Name, QueueId, WallTime};
use crate::wire::CheckReport;

use super::moving::{Copying, Lane, NotCopied};
use super::{ConnectionId, Engine, QueueNumber};

/// A job for a helper thread.
pub struct Work<S: Storage>(Task<S>);

enum Task<S: Storage> {
    Log(QueueNumber, Job<S>),
    /// A job of a log that reads ahead.
    Read(QueueNumber, Job<S>),
    /// A job of a log that reads where a time is looked for.
    Seek(QueueNumber, Job<S>),
    Make(Box<Make<S>>),
    Remove(Arc<S>, Name, QueueId, (ConnectionId, u16)),
    Check(Box<Check<S>>),
    /// The place for a queue's delayed messages is made.
    MakeDelay(Box<MakeDelay<S>>),
    /// A large message is copied for a mover.
    Copy(Lane, Box<Copying<S>>),
}

struct Make<S: Storage> {
    storage: Arc<S>,
    name: Name,
    id: QueueId,
    settings: Settings,
    options: Options,
    wall: WallTime,
}

struct MakeDelay<S: Storage> {
    storage: Arc<S>,
    queue: QueueNumber,
    name: Name,
    id: QueueId,
    settings: Settings,
    options: Options,
    wall: WallTime,
}

struct Check<S: Storage> {
    storage: Arc<S>,
    bounds: Vec<(Name, CheckBound)>,
    report: CheckReport,
    channel: (ConnectionId, u16),
}

/// What a job came to.
pub struct Outcome<S: Storage>(Answer<S>);

enum Answer<S: Storage> {
    Log(QueueNumber, Done<S>),
    Read(QueueNumber, Done<S>),
    Sought(QueueNumber, Done<S>),
    Made(Name, Result<Box<(Log<S>, Recovered)>, LogError>),
    Removed(Name, (ConnectionId, u16), Result<(), LogError>),
    Checked((ConnectionId, u16), CheckReport),
    DelayMade(QueueNumber, Result<Box<Delays<S>>, LogError>),
    Copied(Lane, Result<Staging<S>, NotCopied>),
}

impl<S: Storage> Work<S> {
    pub(super) fn log(queue: QueueNumber, job: Job<S>) -> Work<S> {
        Work(Task::Log(queue, job))
    }

    pub(super) fn read(queue: QueueNumber, job: Job<S>) -> Work<S> {
        Work(Task::Read(queue, job))
    }

    pub(super) fn make_delay(
        storage: Arc<S>,
        queue: QueueNumber,
        (name, id): (Name, QueueId),
        settings: Settings,
        options: Options,
        wall: WallTime,
    ) -> Work<S> {
        let make = MakeDelay { storage, queue, name, id, settings, options, wall };
        Work(Task::MakeDelay(Box::new(make)))
    }

    pub(super) fn copy(lane: Lane, copying: Copying<S>) -> Work<S> {
        Work(Task::Copy(lane, Box::new(copying)))
    }

    pub(super) fn seek(queue: QueueNumber, job: Job<S>) -> Work<S> {
        Work(Task::Seek(queue, job))
    }

    pub(super) fn make(
        storage: Arc<S>,
        name: Name,
        id: QueueId,
        settings: Settings,
        options: Options,
        wall: WallTime,
    ) -> Work<S> {
        Work(Task::Make(Box::new(Make { storage, name, id, settings, options, wall })))
    }

    pub(super) fn remove(
        storage: Arc<S>,
        name: Name,
        id: QueueId,
        channel: (ConnectionId, u16),
    ) -> Work<S> {
        Work(Task::Remove(storage, name, id, channel))
    }

    pub(super) fn check(
        storage: Arc<S>,
        bounds: Vec<(Name, CheckBound)>,
        report: CheckReport,
        channel: (ConnectionId, u16),
    ) -> Work<S> {
        Work(Task::Check(Box::new(Check { storage, bounds, report, channel })))
    }
}

impl<S: Storage> workers::Job for Work<S> {
    type Outcome = Outcome<S>;

    fn run(self) -> Outcome<S> {
        Outcome(match self.0 {
            Task::Log(queue, job) => Answer::Log(queue, job.run()),
            Task::Read(queue, job) => Answer::Read(queue, job.run()),
            Task::Seek(queue, job) => Answer::Sought(queue, job.run()),
            Task::Make(make) => make.run(),
            Task::Remove(storage, name, id, channel) => {
                let result = log::remove_queue(&storage, &name, id).map(|sweep| {
                    // The queue is gone; what is left of its files goes at the next start.
                    drop(sweep.run());
                });
                Answer::Removed(name, channel, result)
            }
            Task::Check(check) => check.run(),
            Task::MakeDelay(make) => make.run(),
            Task::Copy(lane, copying) => Answer::Copied(lane, copying.run()),
        })
    }
}

impl<S: Storage> Make<S> {
    fn run(self) -> Answer<S> {
        let made =
            log::create_queue(&*self.storage, &self.name, self.id, &self.settings, self.wall)
                .and_then(|()| {
                    // Just made by this server: nothing can have happened to it.
                    let boot = log::Boot { clean: true, same_boot: true };
                    let opened =
                        Log::open(Arc::clone(&self.storage), &self.name, boot, &self.options);
                    if opened.is_err() {
                        // A queue that nobody serves must not stand in the way of the next try.
                        if let Ok(sweep) = log::remove_queue(&self.storage, &self.name, self.id) {
                            drop(sweep.run());
                        }
                    }
                    opened
                });
        Answer::Made(self.name, made.map(Box::new))
    }
}

impl<S: Storage> MakeDelay<S> {
    fn run(self) -> Answer<S> {
        let Self { storage, queue, name, id, settings, options, wall } = self;
        let made = log::create_delays(&*storage, &name, id, &settings, wall).and_then(|()| {
            // Just made by this server: nothing can have happened to it.
            let boot = log::Boot { clean: true, same_boot: true };
            Delays::open(Arc::clone(&storage), &name, id, boot, &options, None)
        });
        let made = made.map(|made| Box::new(made.expect("it was just made")));
        Answer::DelayMade(queue, made)
    }
}

impl<S: Storage> Check<S> {
    fn run(mut self) -> Answer<S> {
        for (name, bound) in self.bounds {
            let checked = log::check(&*self.storage, &name, bound, &mut |_| {});
            add_to_report(&mut self.report, &name, checked);
        }
        Answer::Checked(self.channel, self.report)
    }
}

impl<S: Storage> Engine<S> {
    pub(super) fn finish(&mut self, outcome: Outcome<S>, moment: Moment) {
        match outcome.0 {
            Answer::Log(queue, done) => self.finish_log(queue, done, moment),
            Answer::Read(queue, done) => {
                self.finish_log(queue, done, moment);
                self.finish_read(queue);
            }
            Answer::Sought(queue, done) => {
                self.finish_log(queue, done, moment);
                self.sought(queue);
            }
            Answer::Made(name, result) => self.made(&name, result.map(|made| *made), moment),
            Answer::Removed(name, channel, result) => self.removed(&name, channel, result),
            Answer::Checked(channel, report) => self.checked(channel, report),
            Answer::DelayMade(queue, result) => self.delay_made(queue, result.map(|made| *made)),
            Answer::Copied(lane, result) => self.copied(lane, result, moment),
        }
    }

    fn finish_log(&mut self, queue: QueueNumber, done: Done<S>, moment: Moment) {
        let Some(hosted) = self.hosted.get_mut(&queue) else { return };
        hosted.jobs_under_way -= 1;
        let durable = hosted.log.durable_end();
        let progress = hosted.complete(moment.now, done);
        if let Some(why) = progress.failed {
            let name = &hosted.name;
            self.failed.get_or_insert_with(|| format!("queue {name}: {why}"));
            return;
        }
        self.touch(queue);
        self.wake_movers(queue);
        if progress.durable_end > durable {
            self.became_durable(queue);
        }
        self.progressed(queue, progress, moment);
    }

    /// What a job changed for those who wait.
    fn progressed(&mut self, queue: QueueNumber, progress: Progress, moment: Moment) {
        if let Some(result) = progress.chain {
            self.chain_appended(queue, result);
        }
        if progress.settings {
            self.settings_changed(queue);
        }
        if let Some(sealed) = progress.sealed {
            // All of it may have been settled before it was sealed.
            self.drop_gone_segments(queue, Some(&[sealed]));
        }
        if !progress.groups.is_empty() {
            self.groups_installed(queue, &progress.groups, moment);
        }
        if !progress.removed_groups.is_empty() {
            self.groups_removed(queue, &progress.removed_groups);
        }
        if !progress.groups_durable.is_empty() {
            self.begin_turns(queue);
        }
        if progress.retry {
            self.unpark(queue);
            self.open_again(queue, moment);
        }
    }

    fn finish_read(&mut self, queue: QueueNumber) {
        let Some(hosted) = self.hosted.get_mut(&queue) else { return };
        hosted.cold_read_under_way = false;
        for (connection, channel) in std::mem::take(&mut hosted.cold_waiters) {
            self.channel_ready(connection, channel);
        }
    }
}
