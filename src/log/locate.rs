//! Finding messages for delivery: whole batches by their place in a segment file, or a part of
//! one, cut out and verified.
//!
//! Reads headers through a small window, and payloads only to cut them; changes no file. What
//! would wait for the disk is handed out as a job. Called by the server for each delivery.

use std::sync::Arc;

use super::cut::{CutRun, Fate, Select, Wanted};
use super::error::{Damage, LogError, corrupt};
use super::jobs::{Job, Work};
use super::log::Log;
use super::segment::{
    ENTRY_BYTES, FOOTER_HEAD_BYTES, FooterHead, HEADER_BYTES as SEGMENT_HEADER_BYTES, Index,
};
use super::storage::{Storage, StorageFile};
use crate::batch::{BatchHeader, HEADER_BYTES, Place, flags};
use crate::limits;
use crate::units::{Bytes, Offset, Position, QueueId, SegmentNumber, WallTime};

/// Where messages are, or what has to happen first.
pub enum Found<S: Storage> {
    /// Whole batches, one behind the other, with at most batches without messages in between.
    Whole {
        /// The segment's file.
        file: Arc<S::File>,
        /// Where the first header stands.
        place: Place,
        /// Bytes of all of them.
        bytes: u64,
        /// The offset behind the last message.
        end: Offset,
        /// When the first of them was stored.
        time: WallTime,
    },
    /// A part of a batch, verified, with a header of its own at [`Place::cut`].
    Cut {
        /// Header and messages.
        bytes: Vec<u8>,
        /// The offset behind the last message.
        end: Offset,
        /// When the first of them was stored.
        time: WallTime,
    },
    /// One large message: a chain of batches.
    Chain {
        /// The segment's file.
        file: Arc<S::File>,
        /// The place and the bytes of each batch.
        parts: Vec<(Place, u64)>,
        /// The offset behind the message.
        end: Offset,
        /// When the first of them was stored.
        time: WallTime,
    },
    /// The messages from the first that was asked for on have expired.
    Expired {
        /// The offset behind the last of them.
        end: Offset,
    },
    /// The messages from the first that was asked for on are for another group only.
    NotOurs {
        /// The offset behind the last of them.
        end: Offset,
    },
    /// Reading would wait for the disk: run the job, complete it, then ask again.
    Cold {
        /// Reads what is asked for into the page cache.
        read: Job<S>,
    },
}

/// Where a sequential reader goes on: the batch of `offset` stands at or behind `position`.
#[derive(Clone, Copy, Debug)]
struct Hint {
    offset: Offset,
    segment: SegmentNumber,
    position: u64,
}

/// A sealed segment that was read from lately.
struct Opened<F> {
    number: SegmentNumber,
    file: Arc<F>,
    index: Arc<Index>,
}

/// What a log remembers to read cheaply; all of it can be thrown away at any time.
pub(super) struct Reading<S: Storage> {
    /// The newest first.
    hints: Vec<Hint>,
    opened: Vec<Opened<S::File>>,
    /// What was read ahead lately: not asked about again at once.
    warmed: Vec<(SegmentNumber, u64)>,
}

impl<S: Storage> Default for Reading<S> {
    fn default() -> Self {
        Reading { hints: Vec::new(), opened: Vec::new(), warmed: Vec::new() }
    }
}

/// Small enough for the stack: thousands of logs must not keep one each.
const WINDOW_BYTES: usize = 16 << 10;
const SMALL_WINDOW_BYTES: usize = 4 << 10;

impl<S: Storage> Reading<S> {
    pub fn keep_open(&mut self, number: SegmentNumber, file: Arc<S::File>, index: Arc<Index>) {
        self.opened.insert(0, Opened { number, file, index });
        self.opened.truncate(limits::OPEN_SEGMENTS_PER_QUEUE_MAX);
    }

    /// Forgets segments that are dropped; gives their open files, because closing the last handle
    /// of a file that was unlinked frees its pages, which is work for a helper thread.
    pub fn forget(&mut self, segments: &[SegmentNumber]) -> Vec<Arc<S::File>> {
        self.hints.retain(|hint| !segments.contains(&hint.segment));
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.opened)
            .into_iter()
            .partition(|opened| segments.contains(&opened.number));
        self.opened = kept;
        gone.into_iter().map(|opened| opened.file).collect()
    }

    fn hint(&mut self, offset: Offset, segment: SegmentNumber, position: u64) {
        self.hints.retain(|hint| hint.offset != offset);
        self.hints.insert(0, Hint { offset, segment, position });
        self.hints.truncate(limits::LOCATE_HINTS);
    }
}

/// The segment that an offset is in.
pub(super) struct Target<S: Storage> {
    pub number: SegmentNumber,
    pub file: Arc<S::File>,
    /// Where the walk begins.
    pub start: u64,
    /// Where the batches end.
    pub end: u64,
    pub sealed: bool,
}

/// Headers of one segment, read through a window.
pub(super) struct Walk<'a, F> {
    queue: QueueId,
    number: SegmentNumber,
    file: &'a F,
    end: u64,
    window: [u8; WINDOW_BYTES],
    start: u64,
    filled: usize,
    last_bytes: u64,
}

impl<'a, F: StorageFile> Walk<'a, F> {
    pub fn new<S: Storage<File = F>>(queue: QueueId, target: &'a Target<S>) -> Walk<'a, F> {
        Walk {
            queue,
            number: target.number,
            file: &*target.file,
            end: target.end,
            window: [0; WINDOW_BYTES],
            start: 0,
            filled: 0,
            last_bytes: 0,
        }
    }

    fn place(&self, position: u64) -> Place {
        Place { queue: self.queue, segment: self.number, position: Position(position) }
    }

    /// The header at `position`, or what is wrong with it.
    fn header(&mut self, position: u64) -> std::io::Result<Result<BatchHeader, String>> {
        let place = self.place(position);
        let held = self.start <= position
            && position + HEADER_BYTES as u64 <= self.start + self.filled as u64;
        if !held {
            // Behind a large batch the next one is likely large too, and out of any window.
            let small = self.last_bytes >= SMALL_WINDOW_BYTES as u64;
            let most = if small { SMALL_WINDOW_BYTES } else { WINDOW_BYTES };
            let most = (most as u64).min(self.end.saturating_sub(position)) as usize;
            self.filled = self.file.read_at(&mut self.window[..most], Position(position))?;
            self.start = position;
        }
        let from = (position - self.start) as usize;
        let header = match BatchHeader::decode(&self.window[from..self.filled], &place) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error.to_string())),
        };
        if position + header.length() > self.end {
            return Ok(Err("the batch runs over the end of its segment".to_owned()));
        }
        self.last_bytes = header.length();
        Ok(Ok(header))
    }
}

/// What a walk found.
enum Walked {
    Whole { position: u64, bytes: u64, end: Offset, time: WallTime },
    Inside { position: u64, header: BatchHeader },
    Chain { parts: Vec<(Place, u64)>, first: BatchHeader, end: Offset },
}

/// Why a walk ended without finding anything.
pub(super) enum Lost {
    Io(std::io::Error),
    Damage { position: u64, what: String },
}

impl<F: StorageFile> Walk<'_, F> {
    pub fn checked(&mut self, position: u64, at_least: Offset) -> Result<BatchHeader, Lost> {
        if position >= self.end {
            let what = "the segment ends in front of the message".to_owned();
            return Err(Lost::Damage { position, what });
        }
        match self.header(position).map_err(Lost::Io)? {
            Err(what) => Err(Lost::Damage { position, what }),
            Ok(header) if header.offset < at_least => {
                let what = format!("offset {} comes twice", header.offset);
                Err(Lost::Damage { position, what })
            }
            Ok(header) => Ok(header),
        }
    }

    /// Walks from `position` to the batch that holds `from`, and over whole batches from there.
    fn run(
        &mut self,
        mut position: u64,
        from: Offset,
        limit: Offset,
        max_bytes: u64,
        picky: bool,
    ) -> Result<Walked, Lost> {
        let selective = |header: &BatchHeader| picky && header.has(flags::SELECTIVE);
        let mut expected = Offset(0);
        let header = loop {
            let header = self.checked(position, expected)?;
            if header.offset > from {
                let what = format!("offset {from} is missing");
                return Err(Lost::Damage { position, what });
            }
            if header.end() > from || (header.has(flags::CHAIN) && header.offset == from) {
                break header;
            }
            expected = header.end();
            position += header.length();
        };
        if header.has(flags::CHAIN) {
            return self.chain(position, header);
        }
        if header.offset < from || header.end() > limit || selective(&header) {
            return Ok(Walked::Inside { position, header });
        }
        let time = header.time;
        let (start, mut bytes, mut end) = (position, header.length(), header.end());
        let mut behind = position + bytes;
        for _ in 1..limits::BATCHES_PER_DELIVERY_MAX {
            if end >= limit || behind >= self.end || behind - start >= max_bytes {
                break;
            }
            let header = self.checked(behind, end)?;
            if header.offset != end {
                return Err(Lost::Damage { position: behind, what: format!("not offset {end}") });
            }
            behind += header.length();
            if header.count == 0 && !header.has(flags::CHAIN) {
                continue;
            }
            let more = header.end() <= limit && behind - start <= max_bytes;
            if header.has(flags::CHAIN) || !more || selective(&header) {
                break;
            }
            (bytes, end) = (behind - start, header.end());
        }
        Ok(Walked::Whole { position: start, bytes, end, time })
    }

    fn chain(&mut self, mut position: u64, first: BatchHeader) -> Result<Walked, Lost> {
        let mut parts = Vec::new();
        let mut header = first;
        loop {
            if !header.has(flags::CHAIN) || header.offset != first.offset {
                let what = "a chain without its end".to_owned();
                return Err(Lost::Damage { position, what });
            }
            parts.push((self.place(position), header.length()));
            position += header.length();
            if header.has(flags::CHAIN_END) {
                return Ok(Walked::Chain { parts, first, end: header.end() });
            }
            if parts.len() >= limits::CHAIN_BATCHES_MAX {
                let what = "a chain longer than any message".to_owned();
                return Err(Lost::Damage { position, what });
            }
            header = self.checked(position, first.offset)?;
        }
    }
}

impl<S: Storage> Log<S> {
    /// Finds the message at `from`, which is visible and in the log, and what follows it, up to
    /// `limit` (at most the visible end) and about `max_bytes`, but at least one message. What
    /// `select` leaves out is never among what is found; it is said how far it goes.
    ///
    /// # Errors
    /// [`LogError::Corrupt`]: from then on nothing is delivered any more. [`LogError::Gone`].
    /// What the system says.
    pub fn locate(
        &mut self,
        from: Offset,
        limit: Offset,
        max_bytes: usize,
        select: &Select<'_>,
    ) -> Result<Found<S>, LogError> {
        assert!(from < limit && limit <= self.visible_end, "only visible messages are located");
        if let Some(damage) = &self.damage {
            return Err(LogError::Corrupt(damage.clone()));
        }
        let target = self.target(from)?;
        if let Some(read) = self.cold(&target, target.start, SMALL_WINDOW_BYTES as u64) {
            return Ok(Found::Cold { read });
        }
        let wanted = Wanted { from, limit, max_bytes, select };
        let walked = self.walk(&target, &wanted)?;
        self.deliverable(&target, walked, wanted)
    }

    fn walk(&mut self, target: &Target<S>, wanted: &Wanted<'_>) -> Result<Walked, LogError> {
        let Wanted { from, limit, max_bytes, select } = *wanted;
        let picky = !select.is_everything();
        let mut walk = Walk::new(self.meta.id, target);
        match walk.run(target.start, from, limit, max_bytes as u64, picky) {
            Ok(walked) => Ok(walked),
            Err(Lost::Io(source)) => {
                let path = self.segment_path(target.number);
                Err(LogError::Io { doing: "reading", path, source })
            }
            Err(Lost::Damage { position, what }) => {
                Err(self.damaged(target.number, position, Some(from), what))
            }
        }
    }

    fn deliverable(
        &mut self,
        target: &Target<S>,
        walked: Walked,
        wanted: Wanted<'_>,
    ) -> Result<Found<S>, LogError> {
        let (file, number) = (target.file.clone(), target.number);
        match walked {
            Walked::Whole { position, bytes, end, time } => {
                if let Some(read) = self.cold(target, position, bytes) {
                    return Ok(Found::Cold { read });
                }
                self.reading.hint(end, number, position + bytes);
                let place = self.place(number, position);
                Ok(Found::Whole { file, place, bytes, end, time })
            }
            Walked::Chain { parts, first, end } => {
                let time = first.time;
                let bytes: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
                let position = parts[0].0.position.0;
                if let Some(read) = self.cold(target, position, bytes) {
                    return Ok(Found::Cold { read });
                }
                let fate = self.chain_fate(target, position, first, wanted.select)?;
                self.reading.hint(end, number, position + bytes);
                Ok(match fate {
                    Fate::Ours => Found::Chain { file, parts, end, time },
                    Fate::Expired => Found::Expired { end },
                    Fate::NotOurs => Found::NotOurs { end },
                })
            }
            Walked::Inside { position, header } => {
                if let Some(read) = self.cold(target, position, header.length()) {
                    return Ok(Found::Cold { read });
                }
                let time = header.time;
                let CutRun { fate, bytes, end } = self.cut(target, position, header, wanted)?;
                let done = end == header.end();
                let behind = if done { position + header.length() } else { position };
                self.reading.hint(end, number, behind);
                Ok(match fate {
                    Fate::Ours => Found::Cut { bytes, end, time },
                    Fate::Expired => Found::Expired { end },
                    Fate::NotOurs => Found::NotOurs { end },
                })
            }
        }
    }

    /// A receiver says that the batch at `place` failed its checks: reads it again and decides
    /// by its own finding.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when the batch is bad here too: from then on nothing is delivered
    /// any more. [`LogError::Gone`] when there is no such batch. What the system says.
    pub fn complaint(&mut self, place: Place) -> Result<(), LogError> {
        let position = place.position.0;
        let (file, end) = self.segment_file(place.segment)?;
        if place.queue != self.id() || position < SEGMENT_HEADER_BYTES || position >= end {
            return Err(LogError::Gone(Offset(0)));
        }
        let io = |source| LogError::Io {
            doing: "reading",
            path: self.segment_path(place.segment),
            source,
        };
        let mut bytes = vec![0u8; HEADER_BYTES];
        let read = file.read_at(&mut bytes, place.position).map_err(io)?;
        // No header at this place: perhaps none ever stood there, whatever the receiver says. One
        // that did and is damaged is found by the log itself when it walks there.
        let Ok(header) = BatchHeader::decode(&bytes[..read], &place) else {
            return Err(LogError::Gone(Offset(0)));
        };
        let mut payload = vec![0u8; header.payload_bytes as usize];
        let behind = Position(position + HEADER_BYTES as u64);
        let read = file.read_at(&mut payload, behind).map_err(io)?;
        match header.verify(&payload[..read]) {
            Ok(()) => Ok(()),
            Err(error) => {
                let (offset, what) = (Some(header.offset), error.to_string());
                Err(self.damaged(place.segment, position, offset, what))
            }
        }
    }

    pub(super) fn place(&self, segment: SegmentNumber, position: u64) -> Place {
        Place { queue: self.id(), segment, position: Position(position) }
    }

    /// Notes damage: from here on nothing is delivered.
    pub(super) fn damaged(
        &mut self,
        segment: SegmentNumber,
        position: u64,
        offset: Option<Offset>,
        what: String,
    ) -> LogError {
        let error = corrupt(&self.segment_path(segment), Some(position), offset, what);
        if let LogError::Corrupt(damage) = &error {
            self.damage.get_or_insert_with(|| Damage::clone(damage));
        }
        error
    }

    /// The segment that holds `offset`, and where to begin the walk.
    pub(super) fn target(&mut self, offset: Offset) -> Result<Target<S>, LogError> {
        let hint = self.reading.hints.iter().find(|hint| hint.offset == offset).copied();
        let unsealed = self.unsealed.iter().chain(std::iter::once(&self.active));
        for segment in unsealed {
            if segment.base <= offset && offset < segment.end {
                let hint = hint.filter(|hint| hint.segment == segment.number);
                let start = segment.index.start(offset).map(|entry| entry.position);
                return Ok(Target {
                    number: segment.number,
                    file: segment.files[0].clone(),
                    start: hint.map(|h| h.position).or(start).unwrap_or(SEGMENT_HEADER_BYTES),
                    end: segment.position,
                    sealed: false,
                });
            }
        }
        let at = self.sealed.partition_point(|sealed| sealed.summary.end <= offset);
        let sealed = self.sealed.get(at).filter(|sealed| {
            sealed.summary.base <= offset && !self.chores.drops.contains(&sealed.number)
        });
        let sealed = *sealed.ok_or(LogError::Gone(offset))?;
        let (file, index) = self.open_sealed(sealed.number)?;
        let hint = hint.filter(|hint| hint.segment == sealed.number);
        let start = index.start(offset).map(|entry| entry.position);
        Ok(Target {
            number: sealed.number,
            file,
            start: hint.map(|h| h.position).or(start).unwrap_or(SEGMENT_HEADER_BYTES),
            end: sealed.position,
            sealed: true,
        })
    }

    pub(super) fn segment_file(
        &mut self,
        number: SegmentNumber,
    ) -> Result<(Arc<S::File>, u64), LogError> {
        let mut unsealed = self.unsealed.iter().chain(std::iter::once(&self.active));
        if let Some(segment) = unsealed.find(|segment| segment.number == number) {
            return Ok((segment.files[0].clone(), segment.position));
        }
        let sealed = self.sealed.iter().find(|sealed| sealed.number == number);
        let end = sealed.ok_or(LogError::Gone(Offset(0)))?.position;
        Ok((self.open_sealed(number)?.0, end))
    }

    /// A sealed segment's file and index, kept open for the next time.
    pub(super) fn open_sealed(
        &mut self,
        number: SegmentNumber,
    ) -> Result<(Arc<S::File>, Arc<Index>), LogError> {
        let opened = &mut self.reading.opened;
        if let Some(at) = opened.iter().position(|opened| opened.number == number) {
            opened[..=at].rotate_right(1);
            return Ok((opened[0].file.clone(), opened[0].index.clone()));
        }
        let path = self.segment_path(number);
        let sealed = *self.sealed.iter().find(|sealed| sealed.number == number).expect("sealed");
        let read = || {
            let file = self.storage.open(&path)?;
            let mut footer = vec![0u8; (sealed.length - sealed.position) as usize];
            let read = file.read_at(&mut footer, Position(sealed.position))?;
            footer.truncate(read);
            Ok((file, footer))
        };
        let (file, footer) = read().map_err(|source| LogError::Io {
            doing: "reading",
            path: path.clone(),
            source,
        })?;
        let queue = self.id();
        let index = FooterHead::decode(&footer, queue, number, sealed.position).and_then(|head| {
            let entries = footer.get(FOOTER_HEAD_BYTES as usize..)?;
            let entries = entries.get(..head.entries as usize * ENTRY_BYTES as usize)?;
            Index::decode(entries, &head, queue, number, sealed.position)
        });
        let Some(index) = index else {
            let what = "the segment's index fails its checksum".to_owned();
            return Err(self.damaged(number, sealed.position, None, what));
        };
        let (file, index) = (Arc::new(file), Arc::new(index));
        self.reading.keep_open(number, file.clone(), index.clone());
        Ok((file, index))
    }

    /// A job that reads the range, if reading it would wait for the disk. What was written
    /// lately is in the page cache and is not asked about.
    pub(super) fn cold(&mut self, target: &Target<S>, position: u64, bytes: u64) -> Option<Job<S>> {
        let bytes = bytes.min(target.end.saturating_sub(position));
        let warmed = self.reading.warmed.contains(&(target.number, position));
        if !target.sealed || warmed || !target.file.is_cold(Position(position), Bytes(bytes)) {
            return None;
        }
        Some(Job {
            queue: self.id(),
            storage: self.storage.clone(),
            work: Work::Read {
                path: self.segment_path(target.number),
                file: target.file.clone(),
                number: target.number,
                position,
                bytes: bytes.max(limits::DELIVER_BYTES as u64).min(target.end - position),
            },
        })
    }

    /// A cold range was read. If it could not be, the next [`locate`](Log::locate) meets the
    /// same error itself, and says so to whoever asked.
    pub(super) fn read_ahead_done(&mut self, number: SegmentNumber, position: u64) {
        self.reading.warmed.insert(0, (number, position));
        self.reading.warmed.truncate(limits::LOCATE_HINTS);
    }
}
