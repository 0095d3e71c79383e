//! Mending a log that was judged good enough: the second half of opening it.
//!
//! The order can be broken off anywhere and begun again. The torn tail is copied aside and cut;
//! what stands above the mark is written anew and synced (a sync that failed in the last life
//! may have left pages that only look clean); after a reboot under a weak sync policy, everything
//! is sealed, and a new segment begins where no offset was ever given. Called by
//! [`recovery`](super::recovery) only; serves nothing.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::append::bound;
use super::error::{Doing, LogError, corrupt};
use super::files;
use super::jobs::{Handles, Prepared, prepare, seal};
use super::locate::Reading;
use super::log::{GroupFile, Log, Preparing, Sealed, Segment};
use super::position::{self, GroupPosition};
use super::recall::Recalled;
use super::recovery::{End, Part, Recovered, Recovery, TornTail};
use super::scan::{Scan, Stop};
use super::schedule::Chores;
use super::segment::{HEADER_BYTES, SegmentHeader, Summary, encode_footer};
use super::snapshot::{self, Covered, Leaving, Snapshot};
use super::spare::{self, Spare};
use super::storage::{Storage, StorageFile};
use super::syncs::Syncs;
use crate::batch::{BatchHeader, Framing, Place, flags};
use crate::planted::{self, Bug};
use crate::units::{
    Bytes, Count, Ending, Epoch, Monotonic, Name, Offset, OffsetRange, Position, ProducerId,
    SegmentNumber, Sequence, SyncPolicy, WallTime,
};

impl<S: Storage> Recovery<S> {
    /// Mends what has to be mended and opens the log.
    pub(super) fn mend(
        mut self,
        end: End,
        snapshot: Snapshot,
    ) -> Result<(Log<S>, Recovered), LogError> {
        // The last reading that can find damage; from here on things change.
        let time = self.newest_time(&end);
        let knows_stored = snapshot.knows_stored;
        let mut recalled = self.recall(&end, snapshot, time)?;
        self.settle_leaving(&mut recalled);
        if !self.boot.clean {
            // The last life may have ended between a rename or the making of a file and the
            // sync of its directory; from here on they are relied on.
            for dir in [&self.dir, &self.dir.join(files::GROUPS)] {
                self.storage.sync_dir(dir).syncing(dir)?;
            }
        }
        self.clear_litter()?;
        if !self.boot.clean && self.spare == Spare::Ready {
            spare::renew(&*self.storage, &spare::path(&self.dir));
        }
        let torn = self.cut_tail(&end)?;
        if !self.boot.clean {
            self.rewrite_tail(&end)?;
            self.rewrite_frames()?;
            for (journal, (replay, bytes)) in self.journals.iter_mut().zip(&self.replays) {
                journal.mend(&*self.storage, replay, bytes)?;
            }
        }
        let weak = self.meta.settings.sync != SyncPolicy::Always;
        let skip = !self.is_strict() && weak && !planted::is(Bug::OffsetReused);
        if !knows_stored {
            recalled.counters.stored = self.messages();
            recalled.counters.stored_bytes = self.message_bytes();
        }
        if skip {
            self.count_lost(&end, &mut recalled)?;
        }
        let mut state = if skip { self.seal_all_and_skip(&end, time)? } else { self.resume(&end)? };
        state.time = state.time.max(time);
        self.finish(state, recalled, torn)
    }

    /// Removes what nothing refers to, for good: after an orderly stop and a loss of power it would
    /// be there again, and all that is there after an orderly stop is held to be what was written.
    fn clear_litter(&mut self) -> Result<(), LogError> {
        let litter = std::mem::take(&mut self.litter);
        for path in &litter {
            self.storage.remove_file(path).doing("removing", path)?;
        }
        if litter.iter().any(|path| path.parent() == Some(&self.dir)) {
            self.storage.sync_dir(&self.dir).syncing(&self.dir)?;
        }
        Ok(())
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
        let keep = !self.boot.same_boot && !planted::is(Bug::TornTailThrownAway);
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

    /// Groups that were being removed, and whose journals are gone, are.
    fn settle_leaving(&self, recalled: &mut Recalled) {
        for Leaving { name, born, tally } in std::mem::take(&mut recalled.leaving) {
            let is_there = self.groups.iter().any(|(group, position)| {
                *group == name && position.account.start.is_some_and(|start| start.born == born)
            });
            if !is_there {
                recalled.counters.ended += tally;
            }
        }
    }

    /// Messages in the segments that are there: what was stored, as far as a store of the first
    /// version knows.
    fn messages(&self) -> Count {
        let counts = self.parts.iter().map(|part| match (&part.sealed, &part.scan) {
            (Some((_, head)), _) => head.summary.count.0,
            (None, Some(scan)) => scan.summary(Offset(0)).count.0,
            (None, None) => 0,
        });
        Count(counts.sum())
    }

    fn message_bytes(&self) -> Bytes {
        let bytes = self.parts.iter().map(|part| match (&part.sealed, &part.scan) {
            (Some((position, _)), _) => *position,
            (None, Some(scan)) => scan.position,
            (None, None) => 0,
        });
        Bytes(bytes.map(|position| position.saturating_sub(HEADER_BYTES)).sum())
    }

    /// After a reboot under a weak sync policy: messages that a journal knows of, and the log does
    /// not any more, were stored; for each group that had not settled them they are lost. A
    /// snapshot knows of that first, then the journals: a fall between the two finds the same
    /// again, and the snapshot says up to where it has counted.
    fn count_lost(&mut self, end: &End, recalled: &mut Recalled) -> Result<(), LogError> {
        let seen = self.groups.iter().map(|(_, position)| position.seen()).max();
        let Some(seen) = seen.filter(|seen| *seen > end.offset) else { return Ok(()) };
        let gone = OffsetRange::new(end.offset, seen);
        let lost = self.groups.iter().map(|(_, position)| position::holes(&position.settled, gone));
        let lost: Vec<Vec<OffsetRange>> = lost.collect();
        let counters = &mut recalled.counters;
        let new = OffsetRange::new(gone.start.max(counters.lost_to).min(seen), seen);
        counters.stored.0 += new.span();
        let by_any = position::merge(lost.concat());
        let new = by_any.iter().filter_map(|range| range.intersection(&new));
        counters.lost.0 += new.map(|range| range.span()).sum::<u64>();
        counters.lost_to = seen;
        self.record_lost(end, recalled)?;
        let positions = self.groups.iter_mut().map(|(_, position)| position);
        for ((journal, position), lost) in self.journals.iter_mut().zip(positions).zip(lost) {
            journal.note(&lost, Ending::Lost, Offset(0))?;
            for file in journal.files() {
                file.sync().syncing(&journal.path)?;
            }
            let messages = lost.iter().map(OffsetRange::span).sum();
            position.account.tally.add(Ending::Lost, messages);
            position.settled = position::merge([&position.settled[..], &lost].concat());
        }
        Ok(())
    }

    fn record_lost(&self, end: &End, recalled: &mut Recalled) -> Result<(), LogError> {
        let number = self.parts[end.at].number;
        let covered = Covered { offset: end.offset, segment: number, position: end.position };
        let counted = (&recalled.counters, recalled.leaving.as_slice());
        let (producers, unique) = (&recalled.producers, Some(&recalled.unique));
        let bytes = snapshot::encode(self.id(), covered, counted, producers, unique);
        match files::replace(&*self.storage, &self.dir.join(files::SNAPSHOT), &bytes) {
            // Without room the next snapshot says so; a fall before that forgets it.
            Err(failure) if failure.is_full() => {}
            other => {
                other?;
                recalled.covered = covered;
            }
        }
        Ok(())
    }

    /// Writes what stands above the mark anew and syncs it.
    fn rewrite_tail(&mut self, end: &End) -> Result<(), LogError> {
        for part in &self.parts[..=end.at] {
            if planted::is(Bug::TailNotRewritten) {
                break;
            }
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
            // Also when nothing stands above the mark: it may itself not be durable, and an orderly
            // stop that has nothing more to write says that the log ends behind it.
            part.file.sync().syncing(&part.path)?;
        }
        Ok(())
    }

    /// Writes anew what the last life may have failed to sync without anything in a batch to
    /// tell: the footer of the segment that was sealed last, and the header of a segment that
    /// holds nothing yet.
    fn rewrite_frames(&self) -> Result<(), LogError> {
        let last_sealed = self.parts.iter().rfind(|part| part.sealed.is_some());
        for part in &self.parts {
            let from = match &part.sealed {
                Some((position, _)) if last_sealed.is_some_and(|l| l.number == part.number) => {
                    *position
                }
                Some(_) => continue,
                None if part.base().is_some() => continue,
                None => 0,
            };
            let mut bytes = vec![0u8; (part.length - from) as usize];
            let read =
                part.file.read_at(&mut bytes, Position(from)).doing("reading", &part.path)?;
            let written = part.file.write_all_at(&[&bytes[..read]], Position(from));
            written.doing("writing", &part.path)?;
            part.file.sync().syncing(&part.path)?;
        }
        Ok(())
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

    /// Goes on where the log ends. What is sealed lies in front of what is not: one whose footer was
    /// damaged, and behind which others are sealed, is sealed at once. It was durable before they were.
    fn resume(&mut self, end: &End) -> Result<State<S>, LogError> {
        let sealed_last = self.parts.iter().rposition(|part| part.sealed.is_some()).unwrap_or(0);
        let last = self.parts[end.at].scan.as_ref();
        let marked = end.offset == self.mark && last.is_none_or(|scan| scan.ends_marked);
        let (mut sealed, mut unsealed) = (Vec::new(), VecDeque::new());
        let mut prepared = VecDeque::new();
        let mut active = None;
        let parts = std::mem::take(&mut self.parts);
        let last = parts.last().map(|part| part.number);
        let mut expected = Offset(0);
        for (at, part) in parts.into_iter().enumerate() {
            expected = expected.max(self.dropped.end_before(part.number));
            if let Some((position, head)) = part.sealed {
                sealed.push(sealed_part(&part, position, head.summary));
                expected = head.summary.end;
                continue;
            }
            if at < sealed_last {
                let anew = self.seal_now(&part, expected, WallTime(0))?;
                expected = anew.summary.end;
                sealed.push(anew);
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

    /// Seals a segment with what was found in it; `expected` and `time` are those of an empty one.
    fn seal_now(
        &self,
        part: &Part<S>,
        expected: Offset,
        time: WallTime,
    ) -> Result<Sealed, LogError> {
        let empty = Summary {
            base: expected,
            end: expected,
            count: Count(0),
            time_first: time,
            time_last: time,
        };
        let scan = part.scan.as_ref();
        let summary = scan.map_or(empty, |scan| scan.summary(expected));
        let position = scan.map_or(HEADER_BYTES, |scan| scan.position);
        let index = scan.map(|scan| scan.index.clone()).unwrap_or_default();
        let footer = encode_footer(self.id(), part.number, position, summary, &index);
        seal(&part.file, &part.path, position, &footer)?;
        let length = position + footer.len() as u64;
        Ok(Sealed { number: part.number, summary, position, length })
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
            // What was dropped in front of it is gone, and its offsets with it.
            expected = expected.max(self.dropped.end_before(part.number));
            let anew = match &part.sealed {
                Some((position, head)) => sealed_part(part, *position, head.summary),
                None => self.seal_now(part, expected, time)?,
            };
            expected = anew.summary.end;
            sealed.push(anew);
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
        mut self,
        state: State<S>,
        recalled: Recalled,
        torn: Option<TornTail>,
    ) -> Result<(Log<S>, Recovered), LogError> {
        let end = state.active.end;
        let mut chores = Chores::default();
        chores.spare = self.spare;
        // A segment without messages serves no one.
        let empty = state.sealed.iter().filter(|sealed| sealed.range().is_empty());
        chores.drops.extend(empty.map(|sealed| sealed.number));
        let gone = self.dropped.extents().collect();
        let recovered = state.recovered(std::mem::take(&mut self.groups), gone, torn);
        let log = Log {
            storage: self.storage,
            name: self.name,
            dir: self.dir,
            policy: self.meta.settings.sync,
            meta: self.meta,
            syncs: Syncs::all_durable(end, self.options.sync_gather),
            options: self.options,
            sealed: state.sealed,
            unsealed: state.unsealed,
            active: state.active,
            prepared: state.prepared,
            preparing: Preparing::default(),
            dropped: self.dropped,
            visible_end: end,
            time: state.time,
            producers: recalled.producers,
            unique: recalled.unique,
            counters: recalled.counters,
            counters_kept: Some(recalled.counters),
            covered: recalled.covered,
            pending_snapshot: None,
            next_group: self.journals.len() as u32,
            journals: (0..).map(GroupFile).zip(self.journals).collect(),
            chain_running: false,
            chain_attributes: Vec::new(),
            chain_annex: Vec::new(),
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

impl<S: Storage> State<S> {
    /// What the start found, for the server.
    fn recovered(
        &self,
        groups: Vec<(Name, GroupPosition)>,
        gone: Vec<OffsetRange>,
        torn: Option<TornTail>,
    ) -> Recovered {
        let open = self.unsealed.iter().chain([&self.active]);
        let open = open.map(|segment| OffsetRange::new(segment.base, segment.end));
        let sealed = self.sealed.iter().map(Sealed::range);
        let extents = sealed.chain(open).chain(gone.iter().copied()).collect();
        let first = self.sealed.iter().find(|sealed| !sealed.range().is_empty());
        let start = first.map_or_else(
            || self.unsealed.front().unwrap_or(&self.active).base,
            |sealed| sealed.summary.base,
        );
        let end = self.active.end;
        Recovered { groups, start, end, gaps: gaps(&position::merge(extents), end), gone, torn }
    }
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
