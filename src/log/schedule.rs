//! What a log has to do next: which job is due, when the next one will be, and what follows
//! when one is done.
//!
//! Decides, and writes nothing but marks; jobs do the work. At most
//! [`limits::SYNCS_PER_QUEUE_MAX`] syncs, one preparation of a segment, one chain and one chore
//! (everything else) run at once, so that no two jobs touch the same file. Called by the server
//! after each turn of its loop.

use std::sync::Arc;

use super::error::{AppendError, Failure};
use super::files;
use super::jobs::{Done, DropWork, Job, Outcome, Work};
use super::journal::{Journal, SyncPoint};
use super::log::{GroupFile, Log, Sealed};
use super::segment::{SegmentHeader, encode_footer};
use super::snapshot::{Covered, Leaving};
use super::spare::{self, Spare};
use super::storage::Storage;
use crate::limits;
use crate::planted::{self, Bug};
use crate::settings::Settings;
use crate::units::{Monotonic, Name, Offset, OffsetRange, Position, SegmentNumber, SyncPolicy};

/// Everything else that wants to be done.
pub(super) struct Chores<S: Storage> {
    running: bool,
    /// The chain to copy; not a chore, but waits here for the next turn.
    pub chain: Option<Job<S>>,
    pub drops: Vec<SegmentNumber>,
    /// New settings that are not recorded yet.
    pub settings: Option<Settings>,
    /// How often settings were changed, and up to which change that is recorded.
    pub changes: u64,
    pub recorded_change: u64,
    /// Groups that are being removed.
    pub leaving: Vec<Leaving>,
    /// So many of them, the first ones, stand in the snapshot on disk, and in the one under way.
    recorded: usize,
    recording: usize,
    /// Not before this, because there was no room.
    retry_at: Option<Monotonic>,
    /// No journal is installed before this, because there was no room for one: the other chores go on.
    install_at: Option<Monotonic>,
    /// What is kept in reserve for a journal.
    pub spare: Spare,
    staging: u64,
    /// The last mark could not be written: not tried again before the next batch, or a stop.
    pub mark_failed: bool,
}

impl<S: Storage> Default for Chores<S> {
    fn default() -> Self {
        Chores {
            running: false,
            chain: None,
            drops: Vec::new(),
            settings: None,
            changes: 0,
            recorded_change: 0,
            leaving: Vec::new(),
            recorded: 0,
            recording: 0,
            retry_at: None,
            install_at: None,
            spare: Spare::Missing,
            staging: 0,
            mark_failed: false,
        }
    }
}

impl<S: Storage> Chores<S> {
    pub fn change(&mut self, settings: &Settings) -> u64 {
        self.settings = Some(settings.clone());
        self.changes += 1;
        self.changes
    }

    /// Groups stand in the snapshot that is on disk now.
    fn record(&mut self, recorded: bool) {
        let recording = std::mem::take(&mut self.recording);
        if recorded {
            self.recorded = self.recorded.max(recording.min(self.leaving.len()));
        }
    }

    pub fn next_staging(&mut self) -> u64 {
        self.staging += 1;
        self.staging
    }
}

/// What changed when a job was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every message below may be delivered.
    pub visible_end: Offset,
    /// Every message below is durable.
    pub durable_end: Offset,
    /// The log accepts no writes any more and confirms nothing; why.
    pub failed: Option<String>,
    /// An append that was answered [`AppendError::NotYet`] is worth trying again.
    pub retry: bool,
    /// What came of the large message that was being appended.
    pub chain: Option<Result<OffsetRange, AppendError>>,
    /// Groups of which no journal waits any more: it stands durably where the group was made, or set with
    /// [`Log::reset_group`], or is written anew, or could not be. Each may be set elsewhere now.
    pub groups: Vec<GroupFile>,
    /// Groups of which more is durable than before; see
    /// [`Log::group_durable`].
    pub groups_durable: Vec<GroupFile>,
    /// Groups that are gone for good now.
    pub removed_groups: Vec<Name>,
    /// A segment was sealed now: what it holds, which may all be gone already.
    pub sealed: Option<OffsetRange>,
    /// Segments that are gone now.
    pub dropped: Vec<SegmentNumber>,
    /// New settings are recorded and in force.
    pub settings: bool,
}

impl<S: Storage> Log<S> {
    /// The next job to hand to a helper thread, if one is due. Ask until there is none.
    pub fn next_job(&mut self, now: Monotonic) -> Option<Job<S>> {
        if self.failed.is_some() {
            return None;
        }
        if let Some(chain) = self.chores.chain.take() {
            return Some(chain);
        }
        self.mark_when_idle(now);
        if self.syncs.is_due(now, self.policy) {
            return Some(self.sync_job());
        }
        if let Some(job) = self.prepare_job() {
            return Some(job);
        }
        self.notice_dirty_journals(now);
        let rests = self.chores.retry_at.is_some_and(|at| now < at) && !self.closing;
        if self.chores.running || rests {
            return None;
        }
        self.chores.retry_at = None;
        let work = self.chore(now)?;
        self.chores.running = true;
        Some(self.job(work))
    }

    /// Like [`next_job`](Log::next_job), for an orderly stop: everything is synced, marked and
    /// sealed. Ask and run until [`is_closed`](Log::is_closed). Where there is no room for the
    /// last footer or ack that never comes; the caller gives up after a while, and the stop was
    /// not a clean one.
    pub fn close_jobs(&mut self, now: Monotonic) -> Option<Job<S>> {
        self.closing = true;
        self.next_job(now)
    }

    /// Whether an orderly stop is complete.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let idle = !self.chores.running && !self.preparing.running && !self.chain_running;
        let synced = self.syncs.is_durable() && self.syncs.is_idle();
        let marked = !self.needs_mark || self.chores.mark_failed;
        let journals = self.journals.values().all(Journal::is_durable);
        let rest = self.unsealed.is_empty()
            && self.pending_snapshot.is_none()
            && (self.is_covered() || self.chores.mark_failed);
        self.failed.is_none()
            && self.closing
            && idle
            && synced
            && marked
            && journals
            && rest
            && self.chores.drops.is_empty()
            && self.chores.leaving.is_empty()
            && self.chores.settings.is_none()
    }

    /// Whether the log may be taken for cleanly closed at the next start.
    #[must_use]
    pub fn is_closed_cleanly(&self) -> bool {
        self.is_closed() && !self.chores.mark_failed
    }

    /// When [`next_job`](Log::next_job) is to be asked though nothing happened. `None` when
    /// only an event can make a job due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        if self.failed.is_some() {
            return None;
        }
        let idle = self.may_mark() && !self.chores.mark_failed;
        let idle = idle.then(|| self.last_write.plus(limits::IDLE_MARK));
        let chores = if self.chores.running {
            None
        } else {
            let since = self.journals.values().filter_map(|journal| journal.dirty_since);
            let journals = since.min().map(|since| since.plus(limits::JOURNAL_SYNC));
            match self.chores.retry_at {
                Some(at) => Some(at),
                None => journals.into_iter().chain(self.chores.install_at).min(),
            }
        };
        [idle, chores, self.syncs.deadline(self.policy)].into_iter().flatten().min()
    }

    fn job(&self, work: Work<S>) -> Job<S> {
        Job { queue: self.id(), storage: self.storage.clone(), work }
    }

    /// Whether the snapshot on disk covers the whole log: an orderly stop leaves it so, and a
    /// start after it can tell that nothing is missing at the end.
    fn is_covered(&self) -> bool {
        self.covered == self.end_covered() && self.counters_kept == Some(self.counters)
    }

    fn may_mark(&self) -> bool {
        self.needs_mark && !self.chain_running && self.syncs.is_idle()
    }

    /// Going idle: what was written is synced, and then a mark says so.
    fn mark_when_idle(&mut self, now: Monotonic) {
        let idle = self.closing || self.last_write.plus(limits::IDLE_MARK) <= now;
        if !idle || !self.may_mark() || self.chores.mark_failed && !self.closing {
            return;
        }
        if !self.syncs.is_durable() {
            self.syncs.want_all();
        } else if let Err(AppendError::Full { .. }) = self.append_mark(now) {
            self.chores.mark_failed = true;
        } else {
            self.chores.mark_failed = false;
        }
    }

    fn sync_job(&mut self) -> Job<S> {
        let flight = self.syncs.begin(self.active.end);
        let durable = self.syncs.durable;
        let unsealed = self.unsealed.iter().filter(|segment| segment.written > durable);
        let files = unsealed
            .chain(std::iter::once(&self.active))
            .map(|segment| {
                (self.segment_path(segment.number), segment.files[flight.handle].clone())
            })
            .collect();
        self.job(Work::Sync { flight: flight.serial, files })
    }

    fn prepare_job(&mut self) -> Option<Job<S>> {
        let active = &self.active;
        let half = active.position >= self.options.segment_bytes / 2
            || active.end.0 - active.base.0 >= self.options.segment_messages / 2;
        let waits = self.preparing.running || self.preparing.refused.is_some() || self.closing;
        if waits || !self.prepared.is_empty() || !(half || self.preparing.wanted) {
            return None;
        }
        let number = SegmentNumber(active.number.0 + 1);
        let bound = super::append::bound(active.base, 1, self.options.segment_messages);
        let header = SegmentHeader { bound, created: self.time }.encode(self.id(), number);
        self.preparing.running = true;
        Some(self.job(Work::Prepare { dir: self.dir.clone(), number, header: header.to_vec() }))
    }

    fn notice_dirty_journals(&mut self, now: Monotonic) {
        for journal in self.journals.values_mut() {
            if journal.is_dirty() {
                journal.dirty_since.get_or_insert(now);
            }
        }
    }

    /// The most urgent of the chores.
    fn chore(&mut self, now: Monotonic) -> Option<Work<S>> {
        self.install_work(now)
            .or_else(|| self.remove_group_work())
            .or_else(|| self.seal_work())
            .or_else(|| self.settings_work())
            .or_else(|| self.drop_work())
            .or_else(|| self.snapshot_work())
            .or_else(|| self.journals_work(now))
            .or_else(|| self.spare_work())
    }

    fn install_work(&mut self, now: Monotonic) -> Option<Work<S>> {
        if self.chores.install_at.is_some_and(|at| now < at) && !self.closing {
            return None;
        }
        self.chores.install_at = None;
        for (group, journal) in &mut self.journals {
            if let Some((file, point)) = journal.to_install() {
                journal.installing = true;
                let (group, path) = (*group, journal.path.clone());
                return Some(Work::Install { group, path, file, point });
            }
        }
        None
    }

    /// How the messages of a group ended is kept by a snapshot before its journal goes.
    fn remove_group_work(&mut self) -> Option<Work<S>> {
        let name = self.chores.leaving.first()?.name.clone();
        if self.chores.recorded == 0 {
            if self.pending_snapshot.as_ref().is_none_or(|pending| pending.leaving == 0) {
                self.take_snapshot();
                self.syncs.want_all();
            }
            return None;
        }
        Some(Work::RemoveGroup { path: files::journal_path(&self.dir, &name), name })
    }

    /// The next start makes what an orderly stop does not.
    fn spare_work(&mut self) -> Option<Work<S>> {
        if self.closing || self.chores.spare != Spare::Missing {
            return None;
        }
        self.chores.spare = Spare::Making;
        Some(Work::Spare { path: spare::path(&self.dir) })
    }

    fn seal_work(&mut self) -> Option<Work<S>> {
        let oldest = self.unsealed.front().filter(|old| old.written <= self.syncs.durable)?;
        let footer = encode_footer(
            self.id(),
            oldest.number,
            oldest.position,
            oldest.summary(),
            &oldest.index,
        );
        Some(Work::Seal {
            path: self.segment_path(oldest.number),
            number: oldest.number,
            file: oldest.files[0].clone(),
            position: oldest.position,
            footer,
        })
    }

    /// `always` is recorded only once all that is visible is durable: from then on a start takes
    /// what is not durable for what no one has seen.
    fn settings_work(&mut self) -> Option<Work<S>> {
        let settings = self.chores.settings.as_ref()?;
        if settings.sync == SyncPolicy::Always && self.syncs.durable_end < self.visible_end {
            return None;
        }
        let meta = self.meta.with_settings(settings.clone());
        let path = self.dir.join(files::META);
        let (settings, change) = (settings.clone(), self.chores.changes);
        Some(Work::Settings { path, bytes: meta.encode(), settings, change })
    }

    /// Drops all segments that wait for it. Everything that refers to them must be durable
    /// first: the acks by a sync in the job, producers and ids by a snapshot that covers them.
    fn drop_work(&mut self) -> Option<Work<S>> {
        let last = *self.chores.drops.iter().max()?;
        // A group that is being removed may be there again after a fall; one that is being set elsewhere
        // may be where it was, and needs what is there.
        let leaves = !self.chores.leaving.is_empty();
        let moves = |journal: &Journal<S>| !journal.is_complete() || journal.is_resetting();
        if leaves || self.journals.values().any(moves) {
            return None;
        }
        let behind = Covered { segment: SegmentNumber(last.0 + 1), offset: Offset(0), position: 0 };
        let is_behind = |covered: &Covered| {
            (covered.segment, covered.position) >= (behind.segment, behind.position)
        };
        let mut snapshot = None;
        if !is_behind(&self.covered) {
            if !self.pending_snapshot.as_ref().is_some_and(|wait| is_behind(&wait.covered)) {
                self.take_snapshot();
                self.syncs.want_all();
            }
            let ready = self.pending_snapshot.take_if(|wait| wait.needs <= self.syncs.durable)?;
            self.chores.recording = ready.leaving;
            snapshot = Some((ready.bytes, ready.covered));
        }
        let segments = self.chores.drops.clone();
        let mut dropped = self.dropped.clone();
        for sealed in self.sealed.iter().filter(|sealed| segments.contains(&sealed.number)) {
            dropped.add(sealed.number, sealed.range());
        }
        let journals = self.journals.values();
        let journals =
            journals.flat_map(|j| j.files().map(|file| (j.path.clone(), file))).collect();
        let dropped = dropped.encode(self.id());
        let dir = self.dir.clone();
        let files = self.reading.forget(&segments);
        Some(Work::Drop(DropWork { dir, journals, snapshot, dropped, segments, files }))
    }

    fn snapshot_work(&mut self) -> Option<Work<S>> {
        let settled = self.syncs.is_durable() && !self.needs_mark;
        if self.closing && settled && self.pending_snapshot.is_none() && !self.is_covered() {
            self.take_snapshot();
        }
        let ahead = planted::is(Bug::SnapshotAheadOfLog);
        let durable = self.syncs.durable;
        let ready = self.pending_snapshot.take_if(|wait| ahead || wait.needs <= durable)?;
        self.chores.recording = ready.leaving;
        let path = self.dir.join(files::SNAPSHOT);
        Some(Work::Snapshot { path, bytes: ready.bytes, covered: ready.covered })
    }

    /// Syncs the journals whose oldest unsynced record is old enough, and the others with them.
    fn journals_work(&mut self, now: Monotonic) -> Option<Work<S>> {
        let closing = self.closing;
        let old = |since: Monotonic| since.plus(limits::JOURNAL_SYNC) <= now;
        let is_due = |journal: &Journal<S>| match closing {
            true => journal.wants_last_sync(),
            false => journal.wants_sync() || journal.dirty_since.is_some_and(old),
        };
        if !self.journals.values().any(is_due) {
            return None;
        }
        let (mut files, mut points) = (Vec::new(), Vec::<(GroupFile, SyncPoint)>::new());
        for (group, journal) in &mut self.journals {
            if journal.is_dirty() || (closing && journal.wants_last_sync()) {
                files.extend(journal.files().map(|file| (journal.path.clone(), file)));
                points.push((*group, journal.begin_sync()));
            }
        }
        Some(Work::SyncJournals { files, points })
    }

    /// Takes in what came of a job. A failed sync ends the log: nothing is confirmed any more,
    /// and no sync is tried again.
    pub fn complete(&mut self, now: Monotonic, done: Done<S>) -> Progress {
        assert!(done.queue == self.id(), "a job of another queue");
        let mut progress = Progress::default();
        match done.outcome {
            Outcome::Synced { flight, result } => match result {
                // After a failure nothing becomes durable any more, whatever a later sync says.
                Ok(()) if self.failed.is_none() => self.syncs.land(flight),
                Ok(()) => {}
                Err(failure) => drop(self.fail(failure.to_string())),
            },
            Outcome::Prepared(result) => self.prepared(result, &mut progress),
            Outcome::Chain { bytes, header, result } => {
                progress.chain = Some(self.chain_copied(now, &header, bytes, result));
                progress.retry = true;
                self.roll_when_prepared();
            }
            Outcome::Commit { headers, annex, result } => {
                progress.chain = Some(self.commit_copied(now, &headers, &annex, result));
                progress.retry = true;
                self.roll_when_prepared();
            }
            Outcome::Read { number, position, result: _ } => {
                self.read_ahead_done(number, position);
            }
            Outcome::Swept(_) => {}
            chore => {
                self.chores.running = false;
                if let Err(failure) = self.chore_done(now, chore, &mut progress) {
                    self.chore_failed(now, &failure);
                }
            }
        }
        if planted::is(Bug::AckBeyondDurable) && self.syncs.durable_end > Offset(0) {
            self.syncs.durable_end = self.active.end;
        }
        if self.policy == SyncPolicy::Always {
            self.visible_end = self.visible_end.max(self.syncs.durable_end);
        }
        progress.visible_end = self.visible_end;
        progress.durable_end = self.syncs.durable_end;
        progress.failed = self.failed.clone();
        progress
    }

    fn prepared(
        &mut self,
        result: Result<super::jobs::Prepared<S>, Failure>,
        progress: &mut Progress,
    ) {
        self.preparing.running = false;
        progress.retry = true;
        match result {
            Ok(prepared) => {
                self.chores.spare.try_again();
                self.prepared.push_back(prepared);
                self.roll_when_prepared();
            }
            Err(failure) if failure.is_full() => {
                // Told to the next append that needs it; then it is tried anew.
                self.preparing.refused = Some(failure.to_string());
            }
            Err(failure) => drop(self.fail(failure.to_string())),
        }
    }

    fn chore_failed(&mut self, now: Monotonic, failure: &Failure) {
        if failure.is_full() {
            self.chores.retry_at = Some(now.plus(limits::CHORE_RETRY));
        } else {
            self.fail(failure.to_string());
        }
    }

    fn chore_done(
        &mut self,
        now: Monotonic,
        done: Outcome<S>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        match done {
            Outcome::Sealed { number, length, result } => {
                result?;
                progress.sealed = Some(self.sealed(number, length));
            }
            Outcome::Snapshot { covered, result } => {
                // A group may go to make room where there is none for a word about it.
                let recorded = result.is_ok() || result.as_ref().is_err_and(Failure::is_full);
                self.chores.record(recorded);
                self.kept(&result);
                result?;
                self.covered = covered;
            }
            Outcome::Dropped { segments, covered, result } => {
                self.kept(&result);
                result?;
                self.chores.drops.retain(|number| !segments.contains(number));
                self.chores.record(covered.is_some());
                self.covered = covered.unwrap_or(self.covered);
                self.segments_dropped(&segments);
                self.chores.spare.try_again();
                progress.dropped = segments;
            }
            Outcome::Installed { group, point, result } => {
                // A group that was removed meanwhile has nothing to install.
                if let Some(journal) = self.journals.get_mut(&group) {
                    if let Err(failure) = result {
                        if !failure.is_full() {
                            return Err(failure);
                        }
                        journal.install_failed();
                        if journal.may_rewrite() {
                            // Its old sheet stands, and may be replaced again.
                            progress.groups.push(group);
                        }
                        self.chores.install_at = Some(now.plus(limits::CHORE_RETRY));
                        return Ok(());
                    }
                    journal.installed(point);
                    self.chores.spare.try_again();
                    progress.groups.push(group);
                    progress.groups_durable.push(group);
                }
            }
            Outcome::JournalsSynced { points, result } => {
                result?;
                for (group, point) in points {
                    if let Some(journal) = self.journals.get_mut(&group) {
                        journal.synced(point, !self.closing);
                        progress.groups_durable.push(group);
                    }
                }
            }
            Outcome::GroupRemoved { name, result } => {
                result?;
                let at = self.chores.leaving.iter().position(|leaving| leaving.name == name);
                let gone = self.chores.leaving.remove(at.expect("it was being removed"));
                self.chores.recorded -= 1;
                self.counters.ended += gone.tally;
                progress.removed_groups.push(name);
            }
            Outcome::Spare(result) => {
                let full = result.as_ref().is_err_and(Failure::is_full);
                self.chores.spare = if full { Spare::Refused } else { Spare::Ready };
                return if full { Ok(()) } else { result };
            }
            Outcome::Settings { settings, change, result } => {
                result?;
                self.chores.recorded_change = change;
                self.settings_recorded(settings);
                progress.settings = true;
            }
            _ => unreachable!("not a chore"),
        }
        Ok(())
    }

    /// An orderly stop writes anew what could not be written.
    fn kept(&mut self, result: &Result<(), Failure>) {
        if result.is_err() {
            self.counters_kept = None;
        }
    }

    /// The messages of the segment.
    fn sealed(&mut self, number: SegmentNumber, length: u64) -> OffsetRange {
        let old = self.unsealed.pop_front().expect("the oldest was being sealed");
        assert!(old.number == number, "segments are sealed in order");
        let sealed = Sealed { number, summary: old.summary(), position: old.position, length };
        assert!(self.sealed.last().is_none_or(|last| last.number < number), "sealed in order");
        self.sealed.push(sealed);
        self.reading.keep_open(number, old.files[0].clone(), Arc::new(old.index));
        sealed.range()
    }

    fn segments_dropped(&mut self, segments: &[SegmentNumber]) {
        for sealed in self.sealed.iter().filter(|sealed| segments.contains(&sealed.number)) {
            self.dropped.add(sealed.number, sealed.range());
        }
        self.sealed.retain(|sealed| !segments.contains(&sealed.number));
        drop(self.reading.forget(segments));
    }

    fn settings_recorded(&mut self, settings: Settings) {
        self.meta.settings = settings;
        self.unique.configure(&self.meta.settings);
        // A newer request may have come in while this one was written.
        self.chores.settings.take_if(|newer| *newer == self.meta.settings);
        if let Some(newer) = &self.chores.settings {
            self.unique.widen(newer);
        }
        let stricter = self.chores.settings.as_ref().map(|newer| newer.sync);
        if stricter != Some(SyncPolicy::Always) {
            self.policy = self.meta.settings.sync;
        }
        if self.policy != SyncPolicy::Always {
            self.visible_end = self.active.end;
        }
    }

    /// How far the bytes of the log are durable: what a check may read while the log is open.
    #[must_use]
    pub fn check_bound(&self) -> super::CheckBound {
        let segments = self.unsealed.front().unwrap_or(&self.active);
        let journals = self.journals.values();
        super::CheckBound::Upto {
            segment: segments.number,
            position: Position(if self.syncs.is_durable() {
                segments.position
            } else {
                super::segment::HEADER_BYTES
            }),
            journals: journals.map(|j| (j.name.clone(), j.durable_bytes())).collect(),
            delayed: None,
        }
    }
}
