//! `check`: every checksum, every position, and that offsets go on, of one queue.
//!
//! Only reads; judges nothing a matter of course that recovery would mend, and mends nothing.
//! Called by `mq-admin check`, on a helper thread of the server for a queue that is open.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::delayed::check_runs;
use super::dropped::{DROPPED_BYTES_MAX, Dropped};
use super::error::{Damage, Doing, Failure, LogError};
use super::files;
use super::meta::Meta;
use super::record;
use super::scan::{Scan, Stop, scan};
use super::segment::{
    BadHeader, FOOTER_HEAD_BYTES, FooterHead, HEADER_BYTES, Index, SegmentHeader, TRAILER_BYTES,
    decode_trailer,
};
use super::snapshot::{self, SNAPSHOT_BYTES_MAX};
use super::storage::{Storage, StorageFile};
use crate::limits;
use crate::units::{Bytes, Count, Name, Offset, Position, QueueId, SegmentNumber};

/// How far a check reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckBound {
    /// Everything: no one has the log open.
    All,
    /// What is durable of a log that is open; see [`Log::check_bound`](super::Log::check_bound).
    Upto {
        /// The oldest segment that is not sealed; newer ones are left out.
        segment: SegmentNumber,
        /// Where in it the durable part ends.
        position: Position,
        /// The durable bytes of each group's journal.
        journals: Vec<(Name, u64)>,
        /// The same of the log of its delayed messages, if it has any.
        delayed: Option<Box<CheckBound>>,
    },
}

impl CheckBound {
    /// The same, with a bound for the log of the queue's delayed messages.
    #[must_use]
    pub fn with_delayed(mut self, bound: Option<CheckBound>) -> CheckBound {
        if let CheckBound::Upto { delayed, .. } = &mut self {
            *delayed = bound.map(Box::new);
        }
        self
    }

    /// How far the log of the delayed messages is read, if at all.
    fn of_delayed(&self) -> Option<CheckBound> {
        match self {
            CheckBound::All => Some(CheckBound::All),
            CheckBound::Upto { delayed, .. } => delayed.as_deref().cloned(),
        }
    }
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where and what.
    pub damage: Damage,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// All damage, in the order of files and positions.
    pub findings: Vec<Finding>,
    /// Segments read.
    pub segments: u64,
    /// Bytes verified.
    pub bytes: Bytes,
    /// Batches verified; a chain is one.
    pub batches: Count,
    /// Messages in them.
    pub messages: Count,
    /// Groups whose journals were read.
    pub groups: u64,
}

/// Checks a queue and reports all that is wrong. `progress` gets the bytes done so far.
///
/// # Errors
/// What the system says. Damage is no error: it is in the report.
pub fn check<S: Storage>(
    storage: &S,
    name: &Name,
    up_to: CheckBound,
    progress: &mut dyn FnMut(Bytes),
) -> Result<Report, LogError> {
    let dir = files::queue_dir(name);
    let names = match storage.list(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(LogError::NoQueue(name.clone()));
        }
        other => other.doing("listing", &dir)?,
    };
    let names: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
    let delayed = up_to.of_delayed().filter(|_| names.iter().any(|name| name == files::DELAYED));
    let report = Report::default();
    let mut check = Check { storage, dir: dir.clone(), names, up_to, id: None, report, progress };
    check.run()?;
    if let Some(up_to) = delayed {
        check.up_to = up_to;
        check.delayed(dir.join(files::DELAYED))?;
    }
    Ok(check.report)
}

struct Check<'a, S: Storage> {
    storage: &'a S,
    dir: PathBuf,
    names: Vec<String>,
    up_to: CheckBound,
    /// The log's id, once its metadata are read.
    id: Option<QueueId>,
    report: Report,
    progress: &'a mut dyn FnMut(Bytes),
}

impl<S: Storage> Check<'_, S> {
    fn find(
        &mut self,
        file: &Path,
        position: Option<u64>,
        offset: Option<Offset>,
        what: impl Into<String>,
    ) {
        let position = position.map(Position);
        let damage = Damage { file: file.to_owned(), position, offset, what: what.into() };
        self.report.findings.push(Finding { damage });
    }

    /// Turns an error about the bytes of a small file into a finding.
    fn judged<T>(&mut self, path: &Path, result: Result<T, LogError>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(LogError::Corrupt(damage)) => self.report.findings.push(Finding { damage }),
            Err(error) => self.find(path, None, None, error.to_string()),
        }
        None
    }

    fn small_file(&mut self, name: &str, bytes_max: u64) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.dir.join(name);
        match files::read_whole(self.storage, &path, bytes_max) {
            Ok(bytes) => {
                self.count(bytes.len() as u64);
                Some((path, bytes))
            }
            Err(error) => {
                self.find(&path, None, None, format!("cannot be read: {error}"));
                None
            }
        }
    }

    fn count(&mut self, bytes: u64) {
        self.report.bytes.0 += bytes;
        (self.progress)(self.report.bytes);
    }

    fn run(&mut self) -> Result<(), LogError> {
        let Some((path, bytes)) = self.small_file(files::META, limits::QUEUE_META_BYTES_MAX) else {
            return Ok(());
        };
        // Without the queue's id no other checksum can be computed.
        let Some(meta) = self.judged(&path, Meta::decode(&bytes, &path)) else { return Ok(()) };
        self.id = Some(meta.id);
        let dropped = self
            .small_file(files::DROPPED, DROPPED_BYTES_MAX)
            .and_then(|(path, bytes)| self.judged(&path, Dropped::decode(&bytes, meta.id, &path)));
        if let Some((path, bytes)) = self.small_file(files::SNAPSHOT, SNAPSHOT_BYTES_MAX) {
            self.judged(&path, snapshot::decode(&bytes, meta.id, &path));
        }
        self.segments(meta.id, dropped.as_ref())?;
        self.journals(meta.id)
    }

    fn segments(&mut self, queue: QueueId, dropped: Option<&Dropped>) -> Result<(), LogError> {
        let mut present: BTreeSet<SegmentNumber> =
            self.names.iter().filter_map(|name| files::segment_number(name)).collect();
        if let CheckBound::Upto { segment, .. } = self.up_to {
            present.retain(|number| *number <= segment);
        }
        let mut next = 1;
        let mut expected = Offset(0);
        for number in present {
            self.missing(dropped, next, number.0);
            next = number.0.saturating_add(1);
            let path = files::segment_path(&self.dir, number);
            if dropped.is_some_and(|dropped| dropped.contains(number)) {
                continue;
            }
            match self.storage.open(&path) {
                Ok(file) => {
                    let end = self.segment(queue, number, &path, &file, expected)?;
                    expected = expected.max(end.unwrap_or(expected));
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    // It may have been dropped since the check began.
                    let now = files::read_whole(
                        self.storage,
                        &self.dir.join(files::DROPPED),
                        DROPPED_BYTES_MAX,
                    );
                    let path_of = self.dir.join(files::DROPPED);
                    let gone = now
                        .ok()
                        .and_then(|bytes| Dropped::decode(&bytes, queue, &path_of).ok())
                        .is_some_and(|dropped| dropped.contains(number));
                    if !gone {
                        self.find(&path, None, None, "the segment vanished");
                    }
                }
                Err(error) => self.find(&path, None, None, format!("cannot be read: {error}")),
            }
        }
        if self.up_to == CheckBound::All {
            // The one that is written to is never dropped.
            let last = dropped.and_then(Dropped::last).map_or(0, |run| run.last.0);
            self.missing(dropped, next, last.saturating_add(2));
        }
        Ok(())
    }

    /// Finds the segments from `first` up to and without `end` missing that were not dropped:
    /// however many they are, in a few lines.
    fn missing(&mut self, dropped: Option<&Dropped>, first: u64, end: u64) {
        for (first, last) in dropped.map_or(Vec::new(), |dropped| dropped.gaps(first, end)) {
            let path = files::segment_path(&self.dir, first);
            let what = if first == last {
                "the segment is missing and was not dropped".to_owned()
            } else {
                let count = last.0 - first.0 + 1;
                let last = files::segment_path(Path::new(""), last);
                let last = last.display();
                format!("{count} segments, up to {last}, are missing and were not dropped")
            };
            self.find(&path, None, None, what);
        }
    }

    /// Checks one segment; returns the offset behind it.
    fn segment(
        &mut self,
        queue: QueueId,
        number: SegmentNumber,
        path: &Path,
        file: &S::File,
        expected: Offset,
    ) -> Result<Option<Offset>, Failure> {
        let mut length = file.len().doing("reading", path)?.0;
        let open = match &self.up_to {
            CheckBound::Upto { segment, position, .. } if *segment == number => {
                length = length.min(position.0);
                true
            }
            _ => false,
        };
        let mut header = [0u8; HEADER_BYTES as usize];
        let read = file.read_at(&mut header, Position(0)).doing("reading", path)?;
        match SegmentHeader::decode(&header[..read], queue, number) {
            Ok(_) => {}
            Err(BadHeader::Newer(found)) => {
                self.find(path, Some(0), None, format!("the segment has format {found}"));
                return Ok(None);
            }
            Err(_) => self.find(path, Some(0), None, "the segment's header fails its checksum"),
        }
        let found = scan(file, queue, number, length, None, limits::INDEX_EVERY_BYTES, |_, _| {})
            .doing("reading", path)?;
        self.report.segments += 1;
        self.report.batches.0 += found.batches;
        self.report.messages.0 += found.count.0;
        self.count(found.position);
        if let Some(base) = found.base.filter(|base| *base < expected) {
            let what = format!("the segment begins below offset {expected}, where the last ended");
            self.find(path, Some(HEADER_BYTES), Some(base), what);
        }
        match &found.stop {
            Stop::End => {}
            Stop::Short => {
                self.find(path, Some(found.position), found.end, "a batch that is cut short");
            }
            Stop::Bad(what) => {
                let what = what.clone();
                self.find(path, Some(found.position), found.end.or(Some(expected)), what);
            }
            Stop::Footer(head) if !open => {
                self.footer(queue, number, path, file, length, &found, head)?;
            }
            Stop::Footer(_) => {}
        }
        Ok(found.end)
    }

    #[expect(clippy::too_many_arguments, reason = "all of one segment's facts, used once")]
    fn footer(
        &mut self,
        queue: QueueId,
        number: SegmentNumber,
        path: &Path,
        file: &S::File,
        length: u64,
        found: &Scan,
        head: &FooterHead,
    ) -> Result<(), Failure> {
        let position = found.position;
        let mut bytes = vec![0u8; (length - position).min(limits::SEGMENT_BYTES_MAX) as usize];
        let read = file.read_at(&mut bytes, Position(position)).doing("reading", path)?;
        bytes.truncate(read);
        self.count(read as u64);
        let trailer = bytes
            .len()
            .checked_sub(TRAILER_BYTES as usize)
            .and_then(|at| decode_trailer(&bytes[at..], queue, number, length));
        if trailer != Some(position) || position + head.footer_bytes() != length {
            self.find(path, Some(position), None, "the segment's footer is not complete");
            return Ok(());
        }
        let entries = &bytes[FOOTER_HEAD_BYTES as usize..bytes.len() - TRAILER_BYTES as usize];
        match Index::decode(entries, head, queue, number, position) {
            None => self.find(path, Some(position), None, "the index fails its checksum"),
            Some(index) => {
                let known: BTreeSet<(u64, u64)> =
                    index.entries.iter().map(|e| (e.position, e.offset.0)).collect();
                let mut seen = BTreeSet::new();
                scan(file, queue, number, position, None, u64::MAX, |header, at| {
                    seen.insert((at, header.offset.0));
                })
                .doing("reading", path)?;
                if !known.is_subset(&seen) {
                    self.find(path, Some(position), None, "the index points beside a batch");
                }
            }
        }
        let summary = found.summary(head.summary.base);
        if summary.base != head.summary.base
            || summary.end != head.summary.end
            || summary.count != head.summary.count
        {
            let what = "the footer does not say what the segment holds";
            self.find(path, Some(position), None, what);
        }
        Ok(())
    }

    /// The delayed messages: a log of their own, and runs.
    fn delayed(&mut self, dir: PathBuf) -> Result<(), LogError> {
        let names = self.storage.list(&dir).doing("listing", &dir)?;
        self.names = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        (self.dir, self.id) = (dir, None);
        self.run()?;
        let Some(id) = self.id else { return Ok(()) };
        let (report, progress) = (&mut self.report, &mut *self.progress);
        let mut damages = Vec::new();
        let find = &mut |damage| damages.push(damage);
        let count = &mut |bytes, messages| {
            report.bytes.0 += bytes;
            report.messages.0 += messages;
            progress(report.bytes);
        };
        check_runs(self.storage, &self.dir, &self.names, id, find, count);
        self.report.findings.extend(damages.into_iter().map(|damage| Finding { damage }));
        Ok(())
    }

    fn journals(&mut self, queue: QueueId) -> Result<(), LogError> {
        let dir = self.dir.join(files::GROUPS);
        let names = self.storage.list(&dir).doing("listing", &dir)?;
        let mut names: Vec<String> =
            names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.sort_unstable();
        for name in names {
            let Some(group) = files::journal_group(&name) else { continue };
            let bound = match &self.up_to {
                CheckBound::All => Some(u64::MAX),
                CheckBound::Upto { journals, .. } => {
                    journals.iter().find(|(name, _)| *name == group).map(|(_, bytes)| *bytes)
                }
            };
            if let Some(bound) = bound {
                self.journal(queue, &group, &dir.join(&name), bound);
            }
        }
        Ok(())
    }

    fn journal(&mut self, queue: QueueId, group: &Name, path: &Path, bound: u64) {
        let mut bytes = match files::read_whole(self.storage, path, limits::JOURNAL_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) => {
                return self.find(path, None, None, format!("cannot be read: {error}"));
            }
        };
        bytes.truncate(usize::try_from(bound).unwrap_or(usize::MAX));
        self.count(bytes.len() as u64);
        self.report.groups += 1;
        let replayed = record::replay(&bytes, queue, group, path);
        let Some(replay) = self.judged(path, replayed) else { return };
        for number in &replay.bad {
            let at = record::HEADER_BYTES + u64::from(*number) * record::RECORD_BYTES;
            self.find(path, Some(at), None, "an ack record fails its checksum");
        }
        if replay.surplus > 0 {
            self.find(path, Some(replay.position), None, "the last ack record is cut short");
        }
    }
}
