//! The log of one queue, open: its state, what it says about itself, its groups and settings.
//!
//! Owned by one thread. Its methods write to the page cache and read what is warm; whatever may
//! wait for the disk is handed out as a [`Job`]. Called by the server's event loop.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use super::cut::CutCache;
use super::dropped::Dropped;
use super::error::{AppendError, Damage};
use super::files;
use super::gathered::CommitMemory;
use super::jobs::{Handles, Prepared};
use super::journal::Journal;
use super::locate::Reading;
use super::meta::Meta;
use super::producers::Producers;
use super::schedule::Chores;
use super::segment::{HEADER_BYTES, Index, Summary};
use super::snapshot::{Counters, Covered};
use super::storage::Storage;
use super::syncs::Syncs;
use super::unique::Unique;
use crate::limits;
use crate::settings::Settings;
use crate::units::{
    Bytes, Count, Monotonic, Name, Offset, OffsetRange, QueueId, SegmentNumber, SyncPolicy,
    WallTime,
};

/// What holds for all logs of a store. Clones share the cache of cut batches.
#[derive(Clone, Debug)]
pub struct Options {
    /// Free space that sending leaves alone; by default the smaller of
    /// [`limits::DISK_RESERVE_BYTES`] and 5 % of the file system.
    pub reserve: Option<Bytes>,
    /// A segment is sealed at this size ([`limits::SEGMENT_BYTES`]; smaller in tests).
    pub segment_bytes: u64,
    /// Messages in a segment ([`limits::SEGMENT_MESSAGES_MAX`]; smaller in tests). Must not
    /// change over the life of a store: it decides where offsets go on after a power loss.
    pub segment_messages: u64,
    /// Distance of entries in the sparse index ([`limits::INDEX_EVERY_BYTES`]).
    pub index_every: u64,
    /// What gathers before a second sync starts ([`limits::SYNC_GATHER_BYTES`]).
    pub sync_gather: u64,
    /// Delayed messages in memory ([`limits::DELAY_INDEX_MAX`]; smaller in tests).
    pub delay_index: usize,
    /// Runs of delayed messages after which some are merged ([`limits::DELAY_MERGE_RUNS`]; fewer
    /// in tests).
    pub delay_runs: usize,
    /// Batches that messages are being cut from, in all logs that share it.
    pub cuts: CutCache,
    /// Memory for commits on their way in, in all logs that share it.
    pub commits: CommitMemory,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            reserve: None,
            segment_bytes: limits::SEGMENT_BYTES,
            segment_messages: limits::SEGMENT_MESSAGES_MAX,
            index_every: limits::INDEX_EVERY_BYTES,
            sync_gather: limits::SYNC_GATHER_BYTES,
            delay_index: limits::DELAY_INDEX_MAX,
            delay_runs: limits::DELAY_MERGE_RUNS,
            cuts: CutCache::default(),
            commits: CommitMemory::default(),
        }
    }
}

/// How the store was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Every log was closed in order, down to its last mark.
    pub clean: bool,
    /// The machine was not started anew since every log of the store was last opened to the
    /// end: what was written is in the page cache, and no start broke off since a reboot. So a
    /// store must note the boot that it runs in only after all its logs are open.
    pub same_boot: bool,
}

/// The key of a group's journal within its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupFile(pub(super) u32);

/// A sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sealed {
    pub number: SegmentNumber,
    pub summary: Summary,
    /// Where its batches end.
    pub position: u64,
    /// Bytes of the file.
    pub length: u64,
}

/// A segment that is not sealed: the active one, or one that waits for its seal.
pub(super) struct Segment<S: Storage> {
    pub number: SegmentNumber,
    pub files: Handles<S>,
    pub base: Offset,
    pub end: Offset,
    /// Where the next batch goes.
    pub position: u64,
    pub allocated: u64,
    pub step: u64,
    pub count: Count,
    pub time_first: WallTime,
    pub time_last: WallTime,
    pub index: Index,
    /// The log's count of written bytes at the segment's end, once it is no longer active.
    pub written: u64,
}

impl<S: Storage> Segment<S> {
    /// A prepared segment that begins at `base` now.
    pub fn begin(prepared: Prepared<S>, base: Offset, time: WallTime) -> Segment<S> {
        Segment {
            number: prepared.number,
            files: prepared.files,
            base,
            end: base,
            position: HEADER_BYTES,
            allocated: prepared.allocated,
            step: limits::ALLOCATE_STEP_BYTES_MIN,
            count: Count(0),
            time_first: time,
            time_last: time,
            index: Index::default(),
            written: 0,
        }
    }

    /// Whether it holds no batch.
    pub fn is_empty(&self) -> bool {
        self.position == HEADER_BYTES
    }

    pub fn summary(&self) -> Summary {
        Summary {
            base: self.base,
            end: self.end,
            count: self.count,
            time_first: self.time_first,
            time_last: self.time_last,
        }
    }
}

/// The segment that is made ahead of need.
#[derive(Debug, Default)]
pub(super) struct Preparing {
    /// Needed at once, whatever the active segment's size.
    pub wanted: bool,
    pub running: bool,
    /// The last try failed for want of space.
    pub refused: Option<String>,
    /// Roll as soon as it is there, so that a segment that is wholly gone can be dropped.
    pub then_roll: bool,
}

/// The snapshot that waits until the log is durable as far as it covers.
pub(super) struct PendingSnapshot {
    pub bytes: Vec<u8>,
    pub covered: Covered,
    /// Written bytes that must be durable first.
    pub needs: u64,
    /// So many of the groups that are being removed stand in it, the first ones.
    pub leaving: usize,
}

/// The durable log of one queue. See the [module](super).
pub struct Log<S: Storage> {
    pub(super) storage: Arc<S>,
    pub(super) name: Name,
    pub(super) dir: PathBuf,
    pub(super) meta: Meta,
    pub(super) options: Options,
    /// In force; a weaker one only once it is recorded, a stronger one at once.
    pub(super) policy: SyncPolicy,
    pub(super) sealed: Vec<Sealed>,
    pub(super) unsealed: VecDeque<Segment<S>>,
    pub(super) active: Segment<S>,
    pub(super) prepared: VecDeque<Prepared<S>>,
    pub(super) preparing: Preparing,
    pub(super) dropped: Dropped,
    pub(super) visible_end: Offset,
    /// The newest stored time.
    pub(super) time: WallTime,
    pub(super) syncs: Syncs,
    pub(super) producers: Producers,
    pub(super) unique: Unique,
    pub(super) counters: Counters,
    /// The counters as they stand in the snapshot on disk, or in the one under way; none when that
    /// could not be written.
    pub(super) counters_kept: Option<Counters>,
    /// The log end that the snapshot on disk covers.
    pub(super) covered: Covered,
    pub(super) pending_snapshot: Option<PendingSnapshot>,
    pub(super) journals: BTreeMap<GroupFile, Journal<S>>,
    /// The key of the next group; none is used twice, as jobs under way name them.
    pub(super) next_group: u32,
    pub(super) chain_running: bool,
    /// The attributes of the large message that is being copied.
    pub(super) chain_attributes: Vec<u8>,
    /// Its annex, with the length in front; or nothing.
    pub(super) chain_annex: Vec<u8>,
    pub(super) chores: Chores<S>,
    pub(super) last_write: Monotonic,
    /// Whether messages were appended behind the last mark.
    pub(super) needs_mark: bool,
    pub(super) closing: bool,
    pub(super) failed: Option<String>,
    pub(super) damage: Option<Damage>,
    pub(super) reading: Reading<S>,
}

impl<S: Storage> Log<S> {
    /// The queue's incarnation.
    #[must_use]
    pub fn id(&self) -> QueueId {
        self.meta.id
    }

    /// The queue's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The settings as they are recorded.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.meta.settings
    }

    /// When the queue was made.
    #[must_use]
    pub fn created(&self) -> WallTime {
        self.meta.created
    }

    /// The newest stored time; the wall clock may have been set back since.
    #[must_use]
    pub fn newest_time(&self) -> WallTime {
        self.time
    }

    /// From now on nothing is stored at an earlier time than this. The newest stored time, or
    /// `wall` if that is later.
    pub fn reach_time(&mut self, wall: WallTime) -> WallTime {
        self.time = self.time.max(wall);
        self.time
    }

    /// Whether messages are on their way into the log that have their stored time and no offset yet.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        self.chain_running
    }

    /// The offset that the next message gets.
    #[must_use]
    pub fn written_end(&self) -> Offset {
        self.active.end
    }

    /// Every message below is durable.
    #[must_use]
    pub fn durable_end(&self) -> Offset {
        self.syncs.durable_end
    }

    /// Every message below may be delivered.
    #[must_use]
    pub fn visible_end(&self) -> Offset {
        self.visible_end
    }

    /// The sync policy in force.
    #[must_use]
    pub fn policy(&self) -> SyncPolicy {
        self.policy
    }

    /// Why the log accepts no writes any more, if so.
    #[must_use]
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Why the log delivers nothing any more, if so.
    #[must_use]
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// The producer table.
    pub fn producers(&mut self) -> &mut Producers {
        &mut self.producers
    }

    /// The producer table, to look at.
    #[must_use]
    pub fn producers_known(&self) -> &Producers {
        &self.producers
    }

    /// The ids and keys that the queue knows.
    pub fn unique(&mut self) -> &mut Unique {
        &mut self.unique
    }

    /// Bytes in segments and ack journals, space that is reserved ahead apart.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        let sealed: u64 = self.sealed.iter().map(|sealed| sealed.length).sum();
        let unsealed: u64 = self.unsealed.iter().map(|segment| segment.position).sum();
        let journals: u64 = self.journals.values().map(Journal::bytes).sum();
        Bytes(sealed + unsealed + self.active.position + journals)
    }

    /// Messages in the segments that exist, settled ones included.
    #[must_use]
    pub fn messages(&self) -> Count {
        let sealed: u64 = self.sealed.iter().map(|sealed| sealed.summary.count.0).sum();
        let unsealed: u64 = self.unsealed.iter().map(|segment| segment.count.0).sum();
        Count(sealed + unsealed + self.active.count.0)
    }

    /// Segments that exist, prepared ones apart.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.sealed.len() + self.unsealed.len() + 1
    }

    /// The offset of the first message that exists, or the end.
    #[must_use]
    pub fn start(&self) -> Offset {
        let sealed = self.sealed.iter().find(|sealed| !sealed.range().is_empty());
        sealed.map_or_else(
            || self.unsealed.front().unwrap_or(&self.active).base,
            |sealed| sealed.summary.base,
        )
    }

    /// Changes the settings; returns the number of this change. What is stricter holds at once;
    /// the rest when [`recorded_change`](Log::recorded_change) has reached it, which
    /// [`Progress::settings`](super::Progress::settings) tells.
    pub fn change_settings(&mut self, settings: &Settings) -> u64 {
        if settings.sync == SyncPolicy::Always {
            self.policy = SyncPolicy::Always;
            self.syncs.want_all();
        }
        self.unique.widen(settings);
        self.chores.change(settings)
    }

    /// The settings as they are recorded, or will be when what was asked for is.
    #[must_use]
    pub fn wanted_settings(&self) -> &Settings {
        self.chores.settings.as_ref().unwrap_or(&self.meta.settings)
    }

    /// The number of the newest change of settings, if it is not recorded yet.
    #[must_use]
    pub fn pending_change(&self) -> Option<u64> {
        self.chores.settings.as_ref().map(|_| self.chores.changes)
    }

    /// The number of the newest change of settings that is recorded.
    #[must_use]
    pub fn recorded_change(&self) -> u64 {
        self.chores.recorded_change
    }

    /// What is counted over the life of the queue; see [`Counters`] for what of it a crash may take
    /// back.
    pub fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// The same, to look at.
    #[must_use]
    pub fn counted(&self) -> &Counters {
        &self.counters
    }

    /// Messages that were stored over the life of the queue and lie below `end`, which nothing but
    /// messages lies behind: the visible end, as anyone knew it in this life.
    #[must_use]
    pub fn stored_below(&self, end: Offset) -> Count {
        Count(self.counters.stored.0 - (self.active.end.0 - end.0))
    }

    /// The sealed segments that overlap any of `touching`, with all that they hold: each that
    /// is wholly gone can be dropped.
    #[must_use]
    pub fn segment_extents(&self, touching: &[OffsetRange]) -> Vec<(SegmentNumber, OffsetRange)> {
        let mut found = Vec::new();
        for range in touching {
            let from = self.sealed.partition_point(|sealed| sealed.summary.end <= range.start);
            for sealed in &self.sealed[from..] {
                if sealed.summary.base >= range.end {
                    break;
                }
                let waits = self.chores.drops.contains(&sealed.number);
                let listed = found.last().is_some_and(|(number, _)| *number >= sealed.number);
                if sealed.range().intersection(range).is_some() && !waits && !listed {
                    found.push((sealed.number, sealed.range()));
                }
            }
        }
        found
    }

    /// The segments that hold anything at or above `offset`, in order, each with the position
    /// behind its batches.
    pub(super) fn segments_above(&self, offset: Offset) -> Vec<(SegmentNumber, u64)> {
        let sealed = self.sealed.iter().filter(|sealed| sealed.summary.end > offset);
        let sealed = sealed.map(|sealed| (sealed.number, sealed.position));
        let open = self.unsealed.iter().chain(std::iter::once(&self.active));
        let open = open.filter(|segment| segment.end > offset);
        sealed.chain(open.map(|segment| (segment.number, segment.position))).collect()
    }

    /// Drops a sealed segment; nothing in it is asked for any more. Several wait for each other
    /// and go together.
    pub fn drop_segment(&mut self, number: SegmentNumber) {
        let known = self.sealed.iter().any(|sealed| sealed.number == number);
        if known && !self.chores.drops.contains(&number) {
            self.chores.drops.push(number);
        }
    }

    /// Everything in the log is gone: rolls the active segment if it is large, so that it can
    /// be sealed and dropped.
    pub fn roll_if_gone(&mut self) {
        if self.active.position > limits::ROLL_GONE_BYTES.min(self.options.segment_bytes / 2) {
            self.preparing.then_roll = true;
            self.preparing.wanted = true;
            self.roll_when_prepared();
        }
    }

    /// Asks that everything written so far becomes durable, whatever the sync policy: something
    /// else will be given up because of it. [`durable_bytes`](Log::durable_bytes) tells when.
    pub fn want_durable(&mut self) {
        self.syncs.want_all();
    }

    /// Bytes appended since the log was opened. Unlike offsets this moves with every batch,
    /// those without messages too: take it after an append, and compare it with
    /// [`durable_bytes`](Log::durable_bytes).
    #[must_use]
    pub fn written_bytes(&self) -> Bytes {
        Bytes(self.syncs.written)
    }

    /// Of the [`written_bytes`](Log::written_bytes), those that are durable.
    #[must_use]
    pub fn durable_bytes(&self) -> Bytes {
        Bytes(self.syncs.durable)
    }

    /// Of the [`written_bytes`](Log::written_bytes), those that are as the sync policy wants them
    /// before anyone is told of them.
    #[must_use]
    pub fn visible_bytes(&self) -> Bytes {
        match self.policy {
            SyncPolicy::Always => self.durable_bytes(),
            SyncPolicy::Interval(_) | SyncPolicy::Never => self.written_bytes(),
        }
    }

    /// Stops accepting writes for good.
    pub(super) fn fail(&mut self, why: String) -> AppendError {
        let why = self.failed.get_or_insert(why);
        AppendError::Failed(why.clone())
    }

    /// The active segment's end as a snapshot names it.
    pub(super) fn end_covered(&self) -> Covered {
        Covered {
            offset: self.active.end,
            segment: self.active.number,
            position: self.active.position,
        }
    }

    /// The path of a segment of this queue.
    pub(super) fn segment_path(&self, number: SegmentNumber) -> PathBuf {
        files::segment_path(&self.dir, number)
    }
}

impl Sealed {
    /// The offsets inside.
    pub fn range(&self) -> OffsetRange {
        OffsetRange::new(self.summary.base, self.summary.end)
    }
}
