//! Reading the batches of a segment in order and verifying each wholly.
//!
//! Judges nothing: it says how far the bytes are good and what stands behind. Called by
//! recovery (segments that are not sealed) and by `check` (all).

use std::io;

use super::files::{u32_at, u64_at};
use super::segment::{FOOTER_HEAD_BYTES, FooterHead, HEADER_BYTES, Index, Summary};
use super::storage::StorageFile;
use crate::batch::{self, BatchHeader, Place, flags};
use crate::limits;
use crate::units::{Count, Offset, Position, ProducerId, QueueId, SegmentNumber, WallTime};

/// What stands behind the last good batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nothing: the file ends there.
    End,
    /// The beginning of a batch whose rest is behind the end of the file, or of a chain, or of a
    /// commit.
    Short,
    /// The head of a footer.
    Footer(FooterHead),
    /// Something that is no batch; what is wrong.
    Bad(String),
}

/// How far a segment is good.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    /// The offset of the first batch, if there is one.
    pub base: Option<Offset>,
    /// The offset behind the last good batch, if there is one.
    pub end: Option<Offset>,
    /// Where the last good batch ends.
    pub position: u64,
    /// Messages.
    pub count: Count,
    /// Good batches.
    pub batches: u64,
    pub time_first: WallTime,
    pub time_last: WallTime,
    pub index: Index,
    /// The greatest durable mark found.
    pub mark: Offset,
    /// Whether the last good batch says that all in front of it was durable, those batches
    /// included that hold no message but carry something.
    pub ends_marked: bool,
    /// Whether a batch behind the bad bytes says so.
    pub marked_behind: bool,
    pub stop: Stop,
}

impl Scan {
    /// The scan as the summary of a segment that begins at `base` when it holds no batch.
    pub fn summary(&self, base: Offset) -> Summary {
        let base = self.base.unwrap_or(base);
        Summary {
            base,
            end: self.end.unwrap_or(base),
            count: self.count,
            time_first: self.time_first,
            time_last: self.time_last,
        }
    }
}

/// Bytes that are read at once: a whole batch always fits.
const WINDOW_BYTES: u64 =
    (2 * limits::BATCH_PAYLOAD_BYTES_MAX + 2 * batch::HEADER_BYTES).next_power_of_two() as u64;

/// A part of a file in memory that moves forward.
struct Window<'a, F> {
    file: &'a F,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
    filled: usize,
}

impl<'a, F: StorageFile> Window<'a, F> {
    fn new(file: &'a F, from: u64, length: u64) -> Window<'a, F> {
        let bytes = vec![0; WINDOW_BYTES.min(length.saturating_sub(from)) as usize];
        Window { file, length, start: from, bytes, filled: 0 }
    }

    /// Up to `wanted` bytes at `position`; fewer only at the end.
    fn at(&mut self, position: u64, wanted: u64) -> io::Result<&[u8]> {
        let wanted = wanted.min(self.length.saturating_sub(position));
        let held = self.start <= position && position + wanted <= self.start + self.filled as u64;
        if !held {
            self.start = position;
            let most = (self.bytes.len() as u64).min(self.length.saturating_sub(position));
            self.filled =
                self.file.read_at(&mut self.bytes[..most as usize], Position(position))?;
        }
        let from = (position - self.start) as usize;
        let to = (from + wanted as usize).min(self.filled);
        Ok(&self.bytes[from.min(to)..to])
    }
}

/// A chain that has begun and not ended.
struct Chain {
    position: u64,
    offset: Offset,
}

/// A commit that has begun and not ended.
struct Commit {
    /// The first of its batches.
    first: BatchHeader,
    /// What was found in front of it, the index apart.
    before: Scan,
    /// Its batches so far, each with its position, to be seen once the last is there.
    held: Vec<(BatchHeader, u64)>,
}

/// The scan of one segment under way.
struct Scanner<'a, F, V> {
    queue: QueueId,
    number: SegmentNumber,
    window: Window<'a, F>,
    index_every: u64,
    expected: Option<Offset>,
    chain: Option<Chain>,
    commit: Option<Commit>,
    scan: Scan,
    visit: V,
}

/// Reads the batches of a segment file of `length` bytes, from the first on or from
/// `from` on, verifying each wholly. `expected` is the offset that the first must have, if that
/// is known. `visit` sees each good batch with its position; of a chain, only when it is
/// complete, the last part; those of a commit, when that is complete.
pub(super) fn scan<F: StorageFile>(
    file: &F,
    queue: QueueId,
    number: SegmentNumber,
    length: u64,
    expected: Option<Offset>,
    index_every: u64,
    visit: impl FnMut(&BatchHeader, u64),
) -> io::Result<Scan> {
    let scan = Scan {
        base: None,
        end: None,
        position: HEADER_BYTES,
        count: Count(0),
        batches: 0,
        time_first: WallTime(0),
        time_last: WallTime(0),
        index: Index::default(),
        mark: Offset(0),
        ends_marked: false,
        marked_behind: false,
        stop: Stop::End,
    };
    let window = Window::new(file, HEADER_BYTES, length);
    let (chain, commit) = (None, None);
    let mut scanner =
        Scanner { queue, number, window, index_every, expected, chain, commit, scan, visit };
    scanner.run()?;
    scanner.leave_out_unfinished();
    Ok(scanner.scan)
}

impl<F: StorageFile, V: FnMut(&BatchHeader, u64)> Scanner<'_, F, V> {
    fn run(&mut self) -> io::Result<()> {
        let mut position = HEADER_BYTES;
        loop {
            match self.batch_at(position)? {
                Ok(header) => {
                    if let Err(what) = self.take(&header, position) {
                        self.scan.stop = Stop::Bad(what);
                        break;
                    }
                    position += header.length();
                }
                Err(stop) => {
                    self.scan.stop = match stop {
                        Stop::End | Stop::Footer(_)
                            if self.chain.is_some() || self.commit.is_some() =>
                        {
                            Stop::Short
                        }
                        stop => stop,
                    };
                    break;
                }
            }
        }
        Ok(())
    }

    /// A commit without its end is as if it had not begun.
    fn leave_out_unfinished(&mut self) {
        let Some(commit) = self.commit.take() else { return };
        let (mark, stop) = (self.scan.mark, self.scan.stop.clone());
        let mut index = std::mem::take(&mut self.scan.index);
        index.cut(commit.before.position);
        self.scan = Scan { index, mark, stop, ..commit.before };
    }

    /// Whether the batch may stand here: commits are not mixed with anything.
    fn begin_or_continue_commit(&mut self, header: &BatchHeader) -> Result<(), String> {
        match (&self.commit, header.has(flags::COMMIT)) {
            (None, false) => Ok(()),
            (Some(_), false) => Err("a commit without its end".to_owned()),
            (Some(commit), true) => {
                let whose = |header: &BatchHeader| (header.producer, header.epoch, header.sequence);
                if whose(&commit.first) == whose(header) {
                    Ok(())
                } else {
                    Err("two commits in one another".to_owned())
                }
            }
            (None, true) => {
                let index = std::mem::take(&mut self.scan.index);
                let before = self.scan.clone();
                self.scan.index = index;
                self.commit = Some(Commit { first: *header, before, held: Vec::new() });
                Ok(())
            }
        }
    }

    /// A batch is good, and so are all in front of it: it is seen, if it does not wait for the end
    /// of its commit.
    fn see(&mut self, header: &BatchHeader, start: u64) {
        let Some(commit) = &mut self.commit else { return (self.visit)(header, start) };
        commit.held.push((*header, start));
        if header.has(flags::COMMIT_END) {
            for (header, start) in self.commit.take().expect("it is there").held {
                (self.visit)(&header, start);
            }
        }
    }

    /// Reads and verifies the batch at `position`, or says what stands there instead.
    fn batch_at(&mut self, position: u64) -> io::Result<Result<BatchHeader, Stop>> {
        let length = self.window.length;
        let head = self.window.at(position, FOOTER_HEAD_BYTES)?;
        if position >= length || head.is_empty() {
            return Ok(Err(Stop::End));
        }
        if head.len() < batch::HEADER_BYTES {
            return Ok(Err(Stop::Short));
        }
        let place = Place { queue: self.queue, segment: self.number, position: Position(position) };
        let header = match BatchHeader::decode(head, &place) {
            Ok(header) => header,
            Err(error) => {
                let footer = FooterHead::decode(head, self.queue, self.number, position);
                let stop = footer.map_or_else(|| Stop::Bad(error.to_string()), Stop::Footer);
                return Ok(Err(stop));
            }
        };
        self.scan.mark = self.scan.mark.max(header.mark);
        let whole = self.window.at(position, header.length())?;
        if (whole.len() as u64) < header.length() {
            return Ok(Err(Stop::Short));
        }
        match header.verify(&whole[batch::HEADER_BYTES..]) {
            Ok(()) => Ok(Ok(header)),
            Err(error) => Ok(Err(Stop::Bad(error.to_string()))),
        }
    }

    /// Checks that the batch continues what came before, and counts it.
    fn take(&mut self, header: &BatchHeader, position: u64) -> Result<(), String> {
        if let Some(expected) = self.scan.end.or(self.expected)
            && header.offset != expected
        {
            return Err(format!("a batch of offset {} instead of {expected}", header.offset));
        }
        if header.time < self.scan.time_last {
            return Err("a batch that was stored before the one in front of it".to_owned());
        }
        self.begin_or_continue_commit(header)?;
        let in_chain = header.has(flags::CHAIN);
        let last_of_chain = in_chain && header.has(flags::CHAIN_END);
        if self.chain.is_some() && !in_chain {
            return Err("a chain without its end".to_owned());
        }
        if in_chain && u64::from(header.count) != u64::from(last_of_chain) {
            return Err("a part of a chain with an impossible count".to_owned());
        }
        if in_chain && !last_of_chain {
            self.chain.get_or_insert(Chain { position, offset: header.offset });
            return Ok(());
        }
        let begun = self.chain.take();
        let start = begun.as_ref().map_or(position, |chain| chain.position);
        let offset = begun.as_ref().map_or(header.offset, |chain| chain.offset);
        self.scan.index.note(offset, start, self.index_every);
        if self.scan.base.is_none() {
            self.scan.base = Some(offset);
        }
        if self.scan.count.0 == 0 {
            self.scan.time_first = header.time;
        }
        self.scan.ends_marked = is_full_mark(header);
        self.scan.time_last = header.time;
        self.scan.end = Some(header.end());
        self.scan.count.0 += u64::from(header.count);
        self.scan.batches += 1;
        self.scan.position = position + header.length();
        self.see(header, start);
        Ok(())
    }
}

/// Whether the batch is written only when everything in front of it is durable.
fn is_full_mark(header: &BatchHeader) -> bool {
    let bare = header.flags == flags::MARK && header.producer == ProducerId(0);
    bare && header.mark == header.offset
}

/// What batch headers behind damage say of what was durable when they were written.
pub(super) struct MarkBehind {
    /// The greatest offset.
    pub mark: Offset,
    /// Everything in front of one of them was.
    pub full: bool,
}

/// What any batch header behind `from` says, at whatever position, of marks above `above`.
pub(super) fn mark_behind<F: StorageFile>(
    file: &F,
    queue: QueueId,
    number: SegmentNumber,
    from: u64,
    length: u64,
    above: Offset,
) -> io::Result<MarkBehind> {
    let mut window = Window::new(file, from, length);
    let (mut best, mut full) = (above, false);
    let mut position = from;
    while position + batch::HEADER_BYTES as u64 <= length {
        let bytes = window.at(position, WINDOW_BYTES)?;
        if bytes.len() < batch::HEADER_BYTES {
            break;
        }
        let candidates = bytes.len() - batch::HEADER_BYTES + 1;
        for at in 0..candidates {
            let head = &bytes[at..at + batch::HEADER_BYTES];
            // The cheap questions first: the checksum is asked for almost never.
            let (offset, mark) = (u64_at(head, 8), u64_at(head, 24));
            let may_be_full = !full && mark == offset && head[6..8] == flags::MARK.to_le_bytes();
            if head[4] > 1 || mark > offset || (mark <= best.0 && !may_be_full) {
                continue;
            }
            if u32_at(head, 0) as usize > batch::HEADER_BYTES + limits::BATCH_PAYLOAD_BYTES_MAX {
                continue;
            }
            let place = Place { queue, segment: number, position: Position(position + at as u64) };
            if let Ok(header) = BatchHeader::decode(head, &place) {
                best = best.max(header.mark);
                full |= is_full_mark(&header);
            }
        }
        position += candidates as u64;
    }
    Ok(MarkBehind { mark: best, full })
}

/// The offset of the first batch of a segment, if a batch header stands there.
pub(super) fn first_offset<F: StorageFile>(
    file: &F,
    queue: QueueId,
    number: SegmentNumber,
) -> io::Result<Option<Offset>> {
    let mut head = [0u8; batch::HEADER_BYTES];
    let read = file.read_at(&mut head, Position(HEADER_BYTES))?;
    let place = Place { queue, segment: number, position: Position(HEADER_BYTES) };
    Ok(BatchHeader::decode(&head[..read], &place).ok().map(|header| header.offset))
}

/// Reads the batches from `from` to `end`, where batches are known to stand: their headers, and
/// the payloads of those that `wants` picks, verified. Of the others `visit` sees no payload.
pub(super) fn walk_batches<F: StorageFile>(
    file: &F,
    queue: QueueId,
    number: SegmentNumber,
    from: u64,
    end: u64,
    wants: impl Fn(&BatchHeader) -> bool,
    mut visit: impl FnMut(&BatchHeader, &[u8]),
) -> io::Result<Result<(), (u64, batch::BatchError)>> {
    let mut window = Window::new(file, from, end);
    let mut position = from;
    while position < end {
        let bytes = window.at(position, batch::HEADER_BYTES as u64)?;
        let place = Place { queue, segment: number, position: Position(position) };
        let header = match BatchHeader::decode(bytes, &place) {
            Ok(header) => header,
            Err(error) => return Ok(Err((position, error))),
        };
        if wants(&header) {
            let whole = window.at(position, header.length())?;
            let payload = whole.get(batch::HEADER_BYTES..).unwrap_or_default();
            if let Err(error) = header.verify(payload) {
                return Ok(Err((position, error)));
            }
            visit(&header, payload);
        } else {
            visit(&header, &[]);
        }
        position += header.length();
    }
    Ok(Ok(()))
}
