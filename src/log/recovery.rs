//! Opening a log: what is there is read and judged first, then mended; nothing is changed when
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
//! Mending, in an order that can be broken off anywhere and begun again: the torn tail is
//! copied aside and cut; what stands above the mark is written anew and synced (a sync that
//! failed in the last life may have left pages that only look clean); after a reboot under a
//! weak sync policy, everything is sealed, and a new segment begins where no offset was ever
//! given. Called by [`Log::open`]; serves nothing itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::append::bound;
use super::dropped::{DROPPED_BYTES_MAX, Dropped};
use super::error::{Doing, LogError, corrupt};
use super::files;
use super::jobs::{Handles, Prepared, prepare, seal};
use super::journal::{self, GroupPosition, Journal, Replay};
use super::locate::Reading;
use super::log::{Boot, Log, Options, Preparing, Sealed, Segment};
use super::meta::Meta;
use super::producers::{Covered, PRODUCERS_BYTES_MAX, Producers};
use super::scan::{Scan, Stop, mark_behind, scan, walk_headers};
use super::schedule::{Chores, Syncs};
use super::segment::{
    BadHeader, FOOTER_HEAD_BYTES, FooterHead, HEADER_BYTES, SegmentHeader, Summary, TRAILER_BYTES,
    decode_trailer, encode_footer,
};
use super::storage::{Storage, StorageFile};
use crate::batch::{BatchHeader, Framing, Place, flags};
use crate::limits;
use crate::units::{
    Bytes, Count, Epoch, Monotonic, Name, Offset, OffsetRange, Position, ProducerId, QueueId,
    SegmentNumber, Sequence, SyncPolicy, WallTime,
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
struct Part<S: Storage> {
    number: SegmentNumber,
    path: PathBuf,
    file: S::File,
    length: u64,
    header: SegmentHeader,
    sealed: Option<(u64, FooterHead)>,
    /// Of a segment that is not sealed.
    scan: Option<Scan>,
    /// The last batch of each producer, of a segment that is not sealed.
    producers: HashMap<ProducerId, BatchHeader>,
}

impl<S: Storage> Part<S> {
    fn base(&self) -> Option<Offset> {
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
struct End {
    /// The part that holds the last good byte.
    at: usize,
    position: u64,
    offset: Offset,
    /// What is wrong behind it, if anything is to be cut.
    torn: Option<String>,
}

struct Recovery<S: Storage> {
    storage: Arc<S>,
    name: Name,
    dir: PathBuf,
    boot: Boot,
    options: Options,
    meta: Meta,
    dropped: Dropped,
    /// Names in the queue's directory.
    names: Vec<String>,
    /// Segments that exist, in order.
    parts: Vec<Part<S>>,
    journals: Vec<Journal<S>>,
    /// What each journal says, and its bytes.
    replays: Vec<(Replay, Vec<u8>)>,
    groups: Vec<(Name, GroupPosition)>,
    mark: Offset,
    /// Files that nothing refers to.
    litter: Vec<PathBuf>,
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
        let mut recovery = Recovery::begin(storage, name, boot, options)?;
        recovery.find_segments()?;
        recovery.scan_segments()?;
        let (producers, covered) = recovery.read_snapshot()?;
        recovery.read_journals()?;
        let end = recovery.judge()?;
        recovery.mend(end, producers, covered)
    }
}

impl<S: Storage> Recovery<S> {
    fn begin(
        storage: Arc<S>,
        name: &Name,
        boot: Boot,
        options: &Options,
    ) -> Result<Recovery<S>, LogError> {
        let dir = files::queue_dir(name);
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
            litter: Vec::new(),
        })
    }

    fn id(&self) -> QueueId {
        self.meta.id
    }

    /// Whether only what a kill can do may be found.
    fn is_strict(&self) -> bool {
        self.boot.clean || self.boot.same_boot
    }

    /// Opens every segment that must be there, and reads its header and footer.
    fn find_segments(&mut self) -> Result<(), LogError> {
        let temporary =
            |name: &&String| name.ends_with(files::TEMPORARY) || name.starts_with(files::STAGING);
        self.litter = self.names.iter().filter(temporary).map(|n| self.dir.join(n)).collect();
        let present: BTreeMap<SegmentNumber, ()> =
            self.names.iter().filter_map(|n| files::segment_number(n)).map(|n| (n, ())).collect();
        let newest = present.keys().next_back().copied().unwrap_or_default();
        let last_dropped = self.dropped.last().map_or(0, |run| run.last.0);
        for number in 1..=newest.0.max(last_dropped + 1) {
            let number = SegmentNumber(number);
            let path = files::segment_path(&self.dir, number);
            let dropped = self.dropped.contains(number);
            match (present.contains_key(&number), dropped) {
                (true, true) => self.litter.push(path),
                (true, false) => {
                    if let Some(part) = self.find_segment(number, path, number == newest)? {
                        self.parts.push(part);
                    }
                }
                (false, true) => {}
                (false, false) => {
                    let what = "the segment is missing and was not dropped";
                    return Err(corrupt(&path, None, None, what));
                }
            }
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
        let (scan, producers) = (None, HashMap::new());
        Ok(Some(Part { number, path, file, length, header, sealed, scan, producers }))
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
            let producers = &mut part.producers;
            let visit = |header: &BatchHeader, _| {
                if header.producer != ProducerId(0) {
                    let named = producers.get(&header.producer).map_or(0, |h| h.flags);
                    let flags = header.flags | (named & flags::MARK);
                    producers.insert(header.producer, BatchHeader { flags, ..*header });
                }
            };
            let found = scan(&part.file, queue, part.number, part.length, None, every, visit)
                .doing("reading", &part.path)?;
            self.mark = self.mark.max(found.mark);
            if matches!(found.stop, Stop::Bad(_)) {
                let from = found.position;
                let behind =
                    mark_behind(&part.file, queue, part.number, from, part.length, self.mark);
                self.mark = self.mark.max(behind.doing("reading", &part.path)?);
            }
            part.scan = Some(found);
        }
        Ok(())
    }

    fn read_snapshot(&self) -> Result<(Producers, Covered), LogError> {
        let path = self.dir.join(files::PRODUCERS);
        let bytes = read_metadata(&*self.storage, &path, PRODUCERS_BYTES_MAX)?;
        Producers::decode(&bytes, self.id(), &path)
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
            }
        }
        Ok(())
    }

    fn read_journal(&mut self, group: Name, path: PathBuf) -> Result<(), LogError> {
        let bytes = files::read_whole(&*self.storage, &path, limits::JOURNAL_BYTES_MAX)
            .doing("reading", &path)?;
        let replay = journal::replay(&bytes, self.id(), &group, &path)?;
        let first_bad = replay.bad.first().copied();
        let below_mark = first_bad.is_some_and(|number| number < replay.synced);
        if let Some(number) = first_bad.filter(|_| below_mark || self.is_strict()) {
            let position = journal::HEADER_BYTES + u64::from(number) * journal::RECORD_BYTES;
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
                if at + 1 == self.parts.len() {
                    return self.ended(End {
                        at,
                        position: *position,
                        offset: expected,
                        torn: None,
                    });
                }
                if self.parts[at + 1..].iter().all(|part| !part.has_content()) {
                    return self.ended(End {
                        at,
                        position: *position,
                        offset: expected,
                        torn: None,
                    });
                }
                continue;
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
        if later.first().and_then(Part::base) == Some(offset) {
            // The next segment goes on here: what stands behind is a footer written in part.
            return Ok(None);
        }
        if later.iter().all(|part| !part.has_content()) {
            return ends(surplus.map(|(_, what)| what));
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
        let has_batches = self.parts.iter().any(Part::has_content);
        if self.boot.clean && has_batches && end.offset > self.mark {
            let what = "the mark of the orderly stop is missing";
            return Err(corrupt(&part.path, Some(end.position), Some(end.offset), what));
        }
        Ok(end)
    }

    /// Mends what has to be mended and opens the log.
    fn mend(
        mut self,
        end: End,
        producers: Producers,
        covered: Covered,
    ) -> Result<(Log<S>, Recovered), LogError> {
        for path in std::mem::take(&mut self.litter) {
            self.storage.remove_file(&path).doing("removing", &path)?;
        }
        let torn = self.cut_tail(&end)?;
        let (producers, covered) = self.recover_producers(&end, producers, covered)?;
        if !self.boot.clean {
            self.rewrite_tail(&end, torn.is_some())?;
            for (journal, (replay, bytes)) in self.journals.iter_mut().zip(&self.replays) {
                journal.mend(&*self.storage, replay, bytes)?;
            }
        }
        let skip = !self.is_strict() && self.meta.settings.sync != SyncPolicy::Always;
        let time = self.newest_time(&end);
        let mut state = if skip { self.seal_all_and_skip(&end, time)? } else { self.resume(&end)? };
        state.time = state.time.max(time);
        self.finish(state, producers, covered, torn)
    }

    fn newest_time(&self, end: &End) -> WallTime {
        let times = self.parts[..=end.at].iter().map(|part| match (&part.sealed, &part.scan) {
            (Some((_, head)), _) => head.summary.time_last,
            (None, Some(scan)) => scan.time_last,
            (None, None) => WallTime(0),
        });
        times.max().unwrap_or_default()
    }

    /// Keeps the torn tail aside and cuts it off.
    fn cut_tail(&mut self, end: &End) -> Result<Option<TornTail>, LogError> {
        let mut torn = end.torn.as_ref().map(|what| TornTail {
            segment: self.parts[end.at].number,
            position: Position(end.position),
            offset: end.offset,
            bytes: Bytes(0),
            kept: Vec::new(),
            what: what.clone(),
        });
        let keep = !self.boot.same_boot;
        for at in 0..self.parts.len() {
            let part = &self.parts[at];
            let good = match &part.scan {
                None => continue,
                Some(_) if at > end.at => HEADER_BYTES,
                Some(scan) => scan.position,
            };
            if good == part.length {
                continue;
            }
            if let Some(torn) = torn.as_mut().filter(|_| at >= end.at) {
                torn.bytes.0 += part.length - good;
                if keep && let Some(path) = self.keep_aside(part, good)? {
                    torn.kept.push(path);
                }
            }
            part.file.truncate(Bytes(good)).doing("cutting", &part.path)?;
            part.file.sync().syncing(&part.path)?;
            let part = &mut self.parts[at];
            part.length = good;
            if at > end.at {
                part.scan = None;
            }
        }
        Ok(torn)
    }

    /// Copies the bytes behind `from` into a side file, unless they are all zero.
    fn keep_aside(&self, part: &Part<S>, from: u64) -> Result<Option<PathBuf>, LogError> {
        let free = |n: &u32| {
            let name = format!("{}{:016}-{from}-{n}", files::TORN, part.number.0);
            !self.names.contains(&name)
        };
        let n = (1..u32::MAX).find(free).expect("there is a free number");
        let path = self.dir.join(format!("{}{:016}-{from}-{n}", files::TORN, part.number.0));
        let temporary = files::temporary(&path);
        let file = files::create_anew(&*self.storage, &temporary).doing("creating", &temporary)?;
        let mut buffer = vec![0u8; (part.length - from).min(1 << 20) as usize];
        let (mut done, mut blank) = (0, true);
        while from + done < part.length {
            let most = (part.length - from - done).min(buffer.len() as u64) as usize;
            let at = Position(from + done);
            let read = part.file.read_at(&mut buffer[..most], at).doing("reading", &part.path)?;
            if read == 0 {
                break;
            }
            blank &= buffer[..read].iter().all(|byte| *byte == 0);
            let written = file.write_all_at(&[&buffer[..read]], Position(done));
            written.doing("keeping a torn tail in", &temporary)?;
            done += read as u64;
        }
        if blank {
            self.storage.remove_file(&temporary).doing("removing", &temporary)?;
            return Ok(None);
        }
        file.sync().syncing(&temporary)?;
        self.storage.rename(&temporary, &path).doing("renaming", &temporary)?;
        self.storage.sync_dir(&self.dir).syncing(&self.dir)?;
        Ok(Some(path))
    }

    /// Writes what stands above the mark anew and syncs it.
    fn rewrite_tail(&mut self, end: &End, was_cut: bool) -> Result<(), LogError> {
        for part in &self.parts[..=end.at] {
            let Some(scan) = &part.scan else { continue };
            if scan.end.is_none_or(|part_end| part_end < self.mark) {
                continue;
            }
            let mut position = scan.index.before(self.mark);
            let mut buffer = vec![0u8; (scan.position - position).min(1 << 20) as usize];
            while position < scan.position {
                let most = (scan.position - position).min(buffer.len() as u64) as usize;
                let chunk = &mut buffer[..most];
                let read =
                    part.file.read_at(chunk, Position(position)).doing("reading", &part.path)?;
                if read < most {
                    return Err(corrupt(&part.path, Some(position), None, "the file got shorter"));
                }
                part.file
                    .write_all_at(&[chunk], Position(position))
                    .doing("writing", &part.path)?;
                position += most as u64;
            }
            // When no message stands above the mark, the next sync is soon enough.
            if end.offset > self.mark || was_cut {
                part.file.sync().syncing(&part.path)?;
            }
        }
        Ok(())
    }

    /// The producers of the snapshot, and of the batches behind what it covers.
    fn recover_producers(
        &self,
        end: &End,
        mut producers: Producers,
        mut covered: Covered,
    ) -> Result<(Producers, Covered), LogError> {
        let tail = &self.parts[end.at];
        let beyond = covered.offset > end.offset
            || (covered.segment, covered.position) > (tail.number, end.position)
                && self.parts.iter().any(|part| part.number == covered.segment);
        if beyond {
            producers.forget_all(self.newest_time(end));
            covered = Covered::default();
        }
        for part in &self.parts[..=end.at] {
            if let Some((position, _)) = part.sealed {
                let from = match part.number.cmp(&covered.segment) {
                    std::cmp::Ordering::Less => continue,
                    std::cmp::Ordering::Equal => covered.position.max(HEADER_BYTES),
                    std::cmp::Ordering::Greater => HEADER_BYTES,
                };
                let note = |header: &BatchHeader| producers.note(header);
                let walked = walk_headers(&part.file, self.id(), part.number, from, position, note);
                if let Err((position, error)) = walked.doing("reading", &part.path)? {
                    return Err(corrupt(&part.path, Some(position), None, error.to_string()));
                }
            }
            for header in part.producers.values() {
                producers.note(header);
            }
        }
        Ok((producers, covered))
    }
}

/// The segments of a log that goes on.
struct State<S: Storage> {
    sealed: Vec<Sealed>,
    unsealed: VecDeque<Segment<S>>,
    active: Segment<S>,
    prepared: VecDeque<Prepared<S>>,
    time: WallTime,
    /// Whether the log ends with a mark that covers all of it.
    marked: bool,
}

impl<S: Storage> Recovery<S> {
    fn handles(&self, part: Part<S>) -> Result<(Handles<S>, Rest), LogError> {
        let second = self.storage.open(&part.path).doing("opening", &part.path)?;
        let rest = Rest { number: part.number, length: part.length, scan: part.scan };
        Ok(([Arc::new(part.file), Arc::new(second)], rest))
    }

    /// Goes on where the log ends.
    fn resume(&mut self, end: &End) -> Result<State<S>, LogError> {
        let marked = end.offset == self.mark;
        let (mut sealed, mut unsealed) = (Vec::new(), VecDeque::new());
        let mut prepared = VecDeque::new();
        let mut active = None;
        let parts = std::mem::take(&mut self.parts);
        let last = parts.last().map(|part| part.number);
        let mut expected = Offset(0);
        for (at, part) in parts.into_iter().enumerate() {
            if let Some((position, head)) = part.sealed {
                sealed.push(sealed_part(&part, position, head.summary));
                expected = head.summary.end;
                continue;
            }
            let closed = part.scan.as_ref().is_some_and(|s| matches!(s.stop, Stop::Footer(_)));
            let (files, part) = self.handles(part)?;
            if at > end.at && active.is_some() {
                prepared.push_back(prepared_part(files, &part));
                continue;
            }
            let segment = segment_part(files, part, expected.max(end.offset.min(expected)));
            expected = segment.end;
            if at < end.at || (at == end.at && closed) {
                unsealed.push_back(segment);
            } else {
                active = Some(Segment {
                    base: if segment.is_empty() { end.offset } else { segment.base },
                    end: end.offset,
                    ..segment
                });
            }
        }
        let active = match active {
            Some(active) => active,
            None => {
                let number = SegmentNumber(last.expect("there is a part").0 + 1);
                Segment::begin(self.make_segment(number, end.offset)?, end.offset, WallTime(0))
            }
        };
        Ok(State { sealed, unsealed, active, prepared, time: WallTime(0), marked })
    }

    fn make_segment(&self, number: SegmentNumber, bound: Offset) -> Result<Prepared<S>, LogError> {
        let header = SegmentHeader { bound, created: self.meta.created };
        let header = header.encode(self.id(), number);
        Ok(prepare(&*self.storage, &self.dir, number, &header)?)
    }

    /// After a reboot under a weak sync policy: offsets that someone has seen may be lost. Seals
    /// what is left and goes on in a new segment, behind every offset that can have been given.
    fn seal_all_and_skip(&mut self, end: &End, time: WallTime) -> Result<State<S>, LogError> {
        let newest = self.parts.last().expect("there is a part");
        let number = SegmentNumber(newest.number.0 + 1);
        let next = bound(newest.header.bound, 1, self.options.segment_messages).max(end.offset);
        let mut sealed = Vec::new();
        let mut expected = Offset(0);
        for part in &self.parts {
            let (position, summary, length) = match (&part.sealed, &part.scan) {
                (Some((position, head)), _) => (*position, head.summary, part.length),
                (None, scan) => {
                    let empty = Summary {
                        base: expected,
                        end: expected,
                        count: Count(0),
                        time_first: time,
                        time_last: time,
                    };
                    let summary = scan.as_ref().map_or(empty, |scan| scan.summary(expected));
                    let position = scan.as_ref().map_or(HEADER_BYTES, |scan| scan.position);
                    let index = scan.as_ref().map(|scan| scan.index.clone()).unwrap_or_default();
                    let footer = encode_footer(self.id(), part.number, position, summary, &index);
                    seal(&part.file, &part.path, position, &footer)?;
                    (position, summary, position + footer.len() as u64)
                }
            };
            expected = summary.end;
            sealed.push(Sealed { number: part.number, summary, position, length });
        }
        let prepared = self.make_segment(number, next)?;
        let mut active = Segment::begin(prepared, next, time);
        self.write_skip_mark(&mut active, next, time)?;
        Ok(State {
            sealed,
            unsealed: VecDeque::new(),
            active,
            prepared: VecDeque::new(),
            time,
            marked: true,
        })
    }

    /// The first batch of the new segment says where offsets go on.
    fn write_skip_mark(
        &self,
        active: &mut Segment<S>,
        next: Offset,
        time: WallTime,
    ) -> Result<(), LogError> {
        let header = BatchHeader {
            payload_bytes: 0,
            framing: Framing::Records,
            flags: flags::MARK,
            offset: next,
            count: 0,
            payload_crc: crate::batch::checksum(&[]),
            mark: next,
            time,
            producer: ProducerId(0),
            sequence: Sequence(0),
            epoch: Epoch(0),
        };
        let place =
            Place { queue: self.id(), segment: active.number, position: Position(HEADER_BYTES) };
        let path = files::segment_path(&self.dir, active.number);
        let file = &active.files[0];
        file.write_all_at(&[&header.encode(&place)], place.position).doing("writing", &path)?;
        file.sync().syncing(&path)?;
        active.index.note(next, HEADER_BYTES, self.options.index_every);
        active.position += header.length();
        Ok(())
    }

    fn finish(
        self,
        state: State<S>,
        producers: Producers,
        covered: Covered,
        torn: Option<TornTail>,
    ) -> Result<(Log<S>, Recovered), LogError> {
        let end = state.active.end;
        let mut chores = Chores::default();
        // A segment without messages serves no one.
        let empty = state.sealed.iter().filter(|sealed| sealed.range().is_empty());
        chores.drops.extend(empty.map(|sealed| sealed.number));
        let extents: Vec<OffsetRange> = state
            .sealed
            .iter()
            .map(Sealed::range)
            .chain(
                state
                    .unsealed
                    .iter()
                    .chain([&state.active])
                    .map(|segment| OffsetRange::new(segment.base, segment.end)),
            )
            .chain(self.dropped.extents())
            .collect();
        let covered_offsets = journal::merge(extents);
        let start = state.sealed.iter().find(|sealed| !sealed.range().is_empty());
        let start = start.map_or_else(
            || state.unsealed.front().unwrap_or(&state.active).base,
            |sealed| sealed.summary.base,
        );
        let recovered = Recovered {
            groups: self.groups,
            start,
            end,
            gaps: gaps(&covered_offsets, end),
            gone: self.dropped.extents().collect(),
            torn,
        };
        let log = Log {
            storage: self.storage,
            name: self.name,
            dir: self.dir,
            policy: self.meta.settings.sync,
            meta: self.meta,
            options: self.options,
            sealed: state.sealed,
            unsealed: state.unsealed,
            active: state.active,
            prepared: state.prepared,
            preparing: Preparing::default(),
            dropped: self.dropped,
            visible_end: end,
            time: state.time,
            syncs: Syncs::all_durable(end),
            producers,
            covered,
            pending_snapshot: None,
            journals: self.journals.into_iter().map(Some).collect(),
            chain_running: false,
            chores,
            last_write: Monotonic(0),
            needs_mark: !state.marked,
            closing: false,
            failed: None,
            damage: None,
            reading: Reading::default(),
        };
        Ok((log, recovered))
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

/// What is left of a part once its file is shared.
struct Rest {
    number: SegmentNumber,
    length: u64,
    scan: Option<Scan>,
}

fn sealed_part<S: Storage>(part: &Part<S>, position: u64, summary: Summary) -> Sealed {
    Sealed { number: part.number, summary, position, length: part.length }
}

fn prepared_part<S: Storage>(files: Handles<S>, part: &Rest) -> Prepared<S> {
    Prepared { number: part.number, files, allocated: part.length }
}

/// A segment that is not sealed, as a scan found it; `base` is for one that holds nothing.
fn segment_part<S: Storage>(files: Handles<S>, part: Rest, base: Offset) -> Segment<S> {
    let prepared = prepared_part(files, &part);
    let mut segment = Segment::begin(prepared, base, WallTime(0));
    if let Some(scan) = part.scan {
        let summary = scan.summary(base);
        segment.base = summary.base;
        segment.end = summary.end;
        segment.count = summary.count;
        segment.time_first = summary.time_first;
        segment.time_last = summary.time_last;
        segment.position = scan.position;
        segment.allocated = scan.position;
        segment.index = scan.index;
    }
    segment
}

/// What lies between the ranges, up to `end`.
fn gaps(ranges: &[OffsetRange], end: Offset) -> Vec<OffsetRange> {
    let mut gaps = Vec::new();
    let mut at = Offset(0);
    for range in ranges {
        if range.start > at {
            gaps.push(OffsetRange::new(at, range.start));
        }
        at = at.max(range.end);
    }
    if at < end {
        gaps.push(OffsetRange::new(at, end));
    }
    gaps
}
