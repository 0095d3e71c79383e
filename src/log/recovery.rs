//! Opening a log: what is there is read and judged, before anything is changed; nothing is when
//! the judgement is that durable bytes are damaged.
//!
//! Judgement. The durable mark `m` is the greatest that any batch header carries; the end of a
//! sealed segment is one; under `always` so is every offset that a group has seen, as only
//! durable messages are visible. Let `e` be the offset at which the log stops being good.
//!
//! | left | what may stand behind the last good batch | if `e < m` |
//! |---|---|---|
//! | cleanly | nothing | damage |
//! | by a kill | a write cut short, at the very end | damage |
//! | by a reboot | anything: the torn tail, cut and kept aside | damage |
//!
//! What follows is in `mend`. Called by [`Log::open`]; changes nothing itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dropped::{DROPPED_BYTES_MAX, Dropped};
use super::error::{Doing, LogError, corrupt};
use super::files;
use super::journal::Journal;
use super::log::{Boot, Log, Options};
use super::meta::Meta;
use super::position::GroupPosition;
use super::record::{self, Replay};
use super::scan::{Scan, Stop, mark_behind, scan};
use super::segment::{
    BadHeader, FOOTER_HEAD_BYTES, FooterHead, HEADER_BYTES, SegmentHeader, TRAILER_BYTES,
    decode_trailer,
};
use super::snapshot::{self, Covered, SNAPSHOT_BYTES_MAX, Snapshot};
use super::spare::{self, Spare};
use super::storage::{Storage, StorageFile};
use crate::limits;
use crate::units::{
    Bytes, Name, Offset, OffsetRange, Position, QueueId, SegmentNumber, SyncPolicy,
};

/// What a start found in a log.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Each group and its position.
    pub groups: Vec<(Name, GroupPosition)>,
    /// The first offset in the log.
    pub start: Offset,
    /// The visible end: the offset that the next message gets.
    pub end: Offset,
    /// Offsets between `start` and `end` that never belonged to a message that survived.
    pub gaps: Vec<OffsetRange>,
    /// Offsets that went with dropped segments.
    pub gone: Vec<OffsetRange>,
    /// What was cut.
    pub torn: Option<TornTail>,
}

/// The tail of a log that was never confirmed under `always`, and that a crash tore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment where it began.
    pub segment: SegmentNumber,
    /// Where in it.
    pub position: Position,
    /// The offset that the first torn message had.
    pub offset: Offset,
    /// Bytes cut, in this segment and in those behind it.
    pub bytes: Bytes,
    /// The files where they are kept. None for what a mere kill cut short.
    pub kept: Vec<PathBuf>,
    /// What was wrong with the first torn byte, as part of a sentence.
    pub what: String,
}

/// A segment file as it was found.
pub(super) struct Part<S: Storage> {
    pub number: SegmentNumber,
    pub path: PathBuf,
    pub file: S::File,
    pub length: u64,
    pub header: SegmentHeader,
    pub sealed: Option<(u64, FooterHead)>,
    /// Of a segment that is not sealed.
    pub scan: Option<Scan>,
}

impl<S: Storage> Part<S> {
    pub fn base(&self) -> Option<Offset> {
        match &self.sealed {
            Some((_, head)) => Some(head.summary.base),
            None => self.scan.as_ref().and_then(|scan| scan.base),
        }
    }

    fn has_content(&self) -> bool {
        self.sealed.is_some() || self.length > HEADER_BYTES
    }
}

/// Where the log ends.
pub(super) struct End {
    /// The part that holds the last good byte.
    pub at: usize,
    pub position: u64,
    pub offset: Offset,
    /// What is wrong behind it, if anything is to be cut.
    pub torn: Option<String>,
}

pub(super) struct Recovery<S: Storage> {
    pub storage: Arc<S>,
    pub name: Name,
    pub dir: PathBuf,
    pub boot: Boot,
    pub options: Options,
    pub meta: Meta,
    pub dropped: Dropped,
    /// Names in the queue's directory.
    pub names: Vec<String>,
    /// Segments that exist, in order.
    pub parts: Vec<Part<S>>,
    pub journals: Vec<Journal<S>>,
    /// What each journal says, and its bytes.
    pub replays: Vec<(Replay, Vec<u8>)>,
    pub groups: Vec<(Name, GroupPosition)>,
    pub mark: Offset,
    pub spare: Spare,
    /// Files that nothing refers to.
    pub litter: Vec<PathBuf>,
}

impl<S: Storage> Log<S> {
    /// Opens the log of a queue, which no one else has open, and recovers it. May wait for the
    /// disk.
    ///
    /// # Errors
    /// [`LogError::NoQueue`], [`LogError::Metadata`], [`LogError::Corrupt`],
    /// [`LogError::Newer`]: nothing was changed. What the system says.
    pub fn open(
        storage: Arc<S>,
        name: &Name,
        boot: Boot,
        options: &Options,
    ) -> Result<(Log<S>, Recovered), LogError> {
        Log::open_at(storage, &files::queue_dir(name), name, boot, options)
    }

    /// Opens a log that lives in `dir`.
    pub(super) fn open_at(
        storage: Arc<S>,
        dir: &Path,
        name: &Name,
        boot: Boot,
        options: &Options,
    ) -> Result<(Log<S>, Recovered), LogError> {
        let mut recovery = Recovery::begin(storage, dir, name, boot, options)?;
        recovery.find_segments()?;
        recovery.scan_segments()?;
        let snapshot = recovery.read_snapshot()?;
        // A snapshot is written when what it covers is durable.
        recovery.mark = recovery.mark.max(snapshot.covered.offset);
        recovery.read_journals()?;
        let end = recovery.judge()?;
        recovery.judge_covered(&end, snapshot.covered)?;
        recovery.judge_clean(&end, snapshot.covered)?;
        recovery.mend(end, snapshot)
    }
}

impl<S: Storage> Recovery<S> {
    fn begin(
        storage: Arc<S>,
        dir: &Path,
        name: &Name,
        boot: Boot,
        options: &Options,
    ) -> Result<Recovery<S>, LogError> {
        let dir = dir.to_owned();
        let names = match storage.list(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(LogError::NoQueue(name.clone()));
            }
            other => other.doing("listing", &dir)?,
        };
        let names = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        let path = dir.join(files::META);
        let bytes = read_metadata(&*storage, &path, limits::QUEUE_META_BYTES_MAX)?;
        let meta = Meta::decode(&bytes, &path)?;
        let path = dir.join(files::DROPPED);
        let bytes = read_metadata(&*storage, &path, DROPPED_BYTES_MAX)?;
        let dropped = Dropped::decode(&bytes, meta.id, &path)?;
        Ok(Recovery {
            storage,
            name: name.clone(),
            dir,
            boot,
            options: options.clone(),
            meta,
            dropped,
            names,
            parts: Vec::new(),
            journals: Vec::new(),
            replays: Vec::new(),
            groups: Vec::new(),
            mark: Offset(0),
            spare: Spare::Missing,
            litter: Vec::new(),
        })
    }

    pub fn id(&self) -> QueueId {
        self.meta.id
    }

    /// Whether only what a kill can do may be found.
    pub fn is_strict(&self) -> bool {
        self.boot.clean || self.boot.same_boot
    }

    /// Opens every segment that must be there, and reads its header and footer.
    fn find_segments(&mut self) -> Result<(), LogError> {
        let temporary =
            |name: &&String| name.ends_with(files::TEMPORARY) || name.starts_with(files::STAGING);
        self.litter = self.names.iter().filter(temporary).map(|n| self.dir.join(n)).collect();
        let present: BTreeSet<SegmentNumber> =
            self.names.iter().filter_map(|name| files::segment_number(name)).collect();
        let newest = present.last().copied().unwrap_or_default();
        let last_dropped = self.dropped.last().map_or(0, |run| run.last.0);
        let mut next = SegmentNumber(1);
        while next.0 <= newest.0.max(last_dropped.saturating_add(1)) {
            let number = next;
            // However many were dropped, this takes no longer for it.
            if let Some(run) = self.dropped.run_of(number) {
                let left = present.range(number..=run.last);
                self.litter.extend(left.map(|left| files::segment_path(&self.dir, *left)));
                next = SegmentNumber(run.last.0.saturating_add(1));
                if next == run.last {
                    break;
                }
                continue;
            }
            let path = files::segment_path(&self.dir, number);
            if !present.contains(&number) {
                let what = "the segment is missing and was not dropped";
                return Err(corrupt(&path, None, None, what));
            }
            if let Some(part) = self.find_segment(number, path, number == newest)? {
                self.parts.push(part);
            }
            next.0 += 1;
        }
        if self.parts.is_empty() {
            return Err(corrupt(&self.dir, None, None, "there is no segment"));
        }
        Ok(())
    }

    fn find_segment(
        &mut self,
        number: SegmentNumber,
        path: PathBuf,
        is_newest: bool,
    ) -> Result<Option<Part<S>>, LogError> {
        let file = self.storage.open(&path).doing("opening", &path)?;
        let length = file.len().doing("reading", &path)?.0;
        let mut bytes = [0u8; HEADER_BYTES as usize];
        let read = file.read_at(&mut bytes, Position(0)).doing("reading", &path)?;
        let header = match SegmentHeader::decode(&bytes[..read], self.id(), number) {
            Ok(header) => header,
            Err(BadHeader::Newer(found)) => {
                return Err(LogError::Newer { path, found, known: super::FORMAT_VERSION });
            }
            Err(bad) => {
                // Only the newest can have been broken off while it was made; it holds nothing
                // then. A header is synced before a batch goes behind it.
                let begun = super::scan::first_offset(&file, self.id(), number);
                let begun = begun.doing("reading", &path)?.is_some();
                let excused = !self.is_strict() || (bad == BadHeader::Short && !self.boot.clean);
                if is_newest && !begun && excused && !self.parts.is_empty() {
                    self.litter.push(path);
                    return Ok(None);
                }
                let what = "the segment's header fails its checksum";
                return Err(corrupt(&path, Some(0), None, what));
            }
        };
        let sealed = self.find_footer(&file, number, length).doing("reading", &path)?;
        Ok(Some(Part { number, path, file, length, header, sealed, scan: None }))
    }

    fn find_footer(
        &self,
        file: &S::File,
        number: SegmentNumber,
        length: u64,
    ) -> std::io::Result<Option<(u64, FooterHead)>> {
        if length < HEADER_BYTES + FOOTER_HEAD_BYTES + TRAILER_BYTES {
            return Ok(None);
        }
        let mut trailer = [0u8; TRAILER_BYTES as usize];
        let read = file.read_at(&mut trailer, Position(length - TRAILER_BYTES))?;
        let Some(position) = decode_trailer(&trailer[..read], self.id(), number, length) else {
            return Ok(None);
        };
        let mut head = [0u8; FOOTER_HEAD_BYTES as usize];
        let read = file.read_at(&mut head, Position(position))?;
        let head = FooterHead::decode(&head[..read], self.id(), number, position);
        Ok(head.filter(|head| position + head.footer_bytes() == length).map(|h| (position, h)))
    }

    /// Verifies every batch of every segment that is not sealed.
    fn scan_segments(&mut self) -> Result<(), LogError> {
        let (queue, every) = (self.id(), self.options.index_every);
        for part in &mut self.parts {
            if let Some((_, head)) = &part.sealed {
                self.mark = self.mark.max(head.summary.end);
                continue;
            }
            let mut found =
                scan(&part.file, queue, part.number, part.length, None, every, |_, _| {})
                    .doing("reading", &part.path)?;
            self.mark = self.mark.max(found.mark);
            if matches!(found.stop, Stop::Bad(_)) {
                let from = found.position;
                let behind =
                    mark_behind(&part.file, queue, part.number, from, part.length, self.mark);
                let behind = behind.doing("reading", &part.path)?;
                self.mark = self.mark.max(behind.mark);
                found.marked_behind = behind.full;
            }
            part.scan = Some(found);
        }
        Ok(())
    }

    fn read_snapshot(&self) -> Result<Snapshot, LogError> {
        let path = self.dir.join(files::SNAPSHOT);
        let bytes = read_metadata(&*self.storage, &path, SNAPSHOT_BYTES_MAX)?;
        snapshot::decode(&bytes, self.id(), &path)
    }

    fn read_journals(&mut self) -> Result<(), LogError> {
        let dir = self.dir.join(files::GROUPS);
        let mut names: Vec<String> = self
            .storage
            .list(&dir)
            .doing("listing", &dir)?
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect();
        names.sort_unstable();
        for name in names {
            let path = dir.join(&name);
            if name.ends_with(files::TEMPORARY) {
                self.litter.push(path);
            } else if let Some(group) = files::journal_group(&name) {
                self.read_journal(group, path)?;
            } else if name == files::SPARE {
                if spare::is_one(&*self.storage, &path).doing("opening", &path)? {
                    self.spare = Spare::Ready;
                } else {
                    self.litter.push(path);
                }
            }
        }
        Ok(())
    }

    fn read_journal(&mut self, group: Name, path: PathBuf) -> Result<(), LogError> {
        let bytes = files::read_whole(&*self.storage, &path, limits::JOURNAL_BYTES_MAX)
            .doing("reading", &path)?;
        let replay = record::replay(&bytes, self.id(), &group, &path)?;
        let first_bad = replay.bad.first().copied();
        let below_mark = first_bad.is_some_and(|number| number < replay.synced);
        if let Some(number) = first_bad.filter(|_| below_mark || self.is_strict()) {
            let position = record::HEADER_BYTES + u64::from(number) * record::RECORD_BYTES;
            return Err(corrupt(&path, Some(position), None, "an ack record fails its checksum"));
        }
        if replay.surplus > 0 && self.boot.clean {
            let what = "the last ack record is cut short";
            return Err(corrupt(&path, Some(replay.position), None, what));
        }
        if self.meta.settings.sync == SyncPolicy::Always {
            self.mark = self.mark.max(replay.state.seen());
        }
        let file = self.storage.open(&path).doing("opening", &path)?;
        let journal = Journal::reopen(path, self.id(), group.clone(), file, replay.clone());
        self.groups.push((group, replay.state.clone()));
        self.journals.push(journal);
        self.replays.push((replay, bytes));
        Ok(())
    }

    /// Finds where the log ends, or that it is damaged.
    fn judge(&self) -> Result<End, LogError> {
        let mut expected = Offset(0);
        let mut before = SegmentNumber(0);
        for (at, part) in self.parts.iter().enumerate() {
            if part.number.0 != before.0 + 1 {
                // All between were dropped; what they held is known.
                expected = expected.max(self.dropped.end_before(part.number));
            }
            before = part.number;
            if part.base().is_some_and(|base| base < expected) {
                let what = "the segment begins below the end of the one in front of it";
                return Err(corrupt(&part.path, Some(HEADER_BYTES), part.base(), what));
            }
            if let Some((position, head)) = &part.sealed {
                expected = head.summary.end;
                let later = &self.parts[at + 1..];
                if later.iter().any(Part::has_content) {
                    continue;
                }
                if let Some(last) = later.last() {
                    // What was dropped between may have had no message, at an offset far behind.
                    expected = expected.max(self.dropped.end_before(last.number));
                }
                let (position, offset) = (*position, expected);
                return self.ended(End { at, position, offset, torn: None });
            }
            let scan = part.scan.as_ref().expect("what is not sealed was scanned");
            expected = scan.end.unwrap_or(expected);
            if let Some(end) = self.judge_part(at, part, scan, expected)? {
                return self.ended(end);
            }
        }
        unreachable!("the last part ends the log");
    }

    /// Whether the log ends in this part, which is not sealed. `offset` is where it stops.
    fn judge_part(
        &self,
        at: usize,
        part: &Part<S>,
        scan: &Scan,
        offset: Offset,
    ) -> Result<Option<End>, LogError> {
        let damaged = |what: &str| corrupt(&part.path, Some(scan.position), Some(offset), what);
        let ends = |torn| Ok(Some(End { at, position: scan.position, offset, torn }));
        let surplus = match &scan.stop {
            Stop::End | Stop::Footer(_) => None,
            Stop::Short => Some((false, "a batch that is cut short".to_owned())),
            Stop::Bad(what) => Some((true, what.clone())),
        };
        if let Some((is_bad, what)) = &surplus
            && (self.boot.clean || (*is_bad && self.boot.same_boot))
        {
            return Err(damaged(what));
        }
        let later = &self.parts[at + 1..];
        if later.iter().find_map(Part::base) == Some(offset) {
            // The next segment that has any message goes on here: what stands behind is a footer written in
            // part.
            return Ok(None);
        }
        if later.iter().all(|part| !part.has_content()) {
            return ends(surplus.map(|(_, what)| what));
        }
        let is_bad = surplus.as_ref().is_some_and(|(is_bad, _)| *is_bad);
        if !is_bad && later.first().and_then(Part::base).is_none() {
            // The first batch of the next segment may be the one that was broken off.
            return Ok(None);
        }
        let what = surplus.map_or_else(
            || "the next segment does not go on where this one ends".to_owned(),
            |(_, what)| what,
        );
        if self.is_strict() { Err(damaged(&what)) } else { ends(Some(what)) }
    }

    /// The log must reach at least its durable mark.
    fn ended(&self, end: End) -> Result<End, LogError> {
        let part = &self.parts[end.at];
        if end.offset < self.mark {
            let what = end.torn.unwrap_or_else(|| "the log ends here".to_owned());
            let what = format!("{what}, but the log was durable up to offset {}", self.mark);
            return Err(corrupt(&part.path, Some(end.position), Some(end.offset), what));
        }
        if let Some(what) = &end.torn
            && part.scan.as_ref().is_some_and(|scan| scan.marked_behind)
        {
            let what = format!("{what}, but the log was durable to behind it");
            return Err(corrupt(&part.path, Some(end.position), Some(end.offset), what));
        }
        Ok(end)
    }

    /// The log must reach what the snapshot covers, which was durable when that was written: a mark
    /// has no messages, and so no offset tells that one is missing.
    fn judge_covered(&self, end: &End, covered: Covered) -> Result<(), LogError> {
        let part = &self.parts[end.at];
        let is_short = covered.segment == part.number && covered.position > end.position;
        if is_short {
            let what = end.torn.as_deref().unwrap_or("the log ends here");
            let what = format!("{what}, but the log was durable up to byte {}", covered.position);
            return Err(corrupt(&part.path, Some(end.position), Some(end.offset), what));
        }
        Ok(())
    }

    /// An orderly stop leaves a snapshot that covers exactly the log.
    fn judge_clean(&self, end: &End, covered: Covered) -> Result<(), LogError> {
        let part = &self.parts[end.at];
        let same_segment = covered.segment == part.number;
        let differs = covered.offset != end.offset
            || (same_segment && part.sealed.is_none() && covered.position != end.position);
        if self.boot.clean && differs {
            let what = format!(
                "the log ends here, but the orderly stop left it at offset {}, byte {} of segment {}",
                covered.offset, covered.position, covered.segment
            );
            return Err(corrupt(&part.path, Some(end.position), Some(end.offset), what));
        }
        Ok(())
    }
}

/// Reads a file that a queue cannot be without.
fn read_metadata<S: Storage>(
    storage: &S,
    path: &Path,
    bytes_max: u64,
) -> Result<Vec<u8>, LogError> {
    files::read_whole(storage, path, bytes_max).map_err(|error| LogError::Metadata {
        path: path.to_owned(),
        what: format!("cannot be read: {error}"),
    })
}
