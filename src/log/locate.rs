//! Finding messages for delivery: whole batches by their place in a segment file, or a part of
//! one, cut out and verified.
//!
//! Reads headers through a small window, and payloads only to cut them; changes no file. What
//! would wait for the disk is handed out as a job. Called by the server for each delivery.

use std::sync::{Arc, Mutex};

use super::error::{Damage, Failure, LogError, corrupt};
use super::jobs::{Job, Work};
use super::log::Log;
use super::schedule::Progress;
use super::segment::{
    ENTRY_BYTES, FOOTER_HEAD_BYTES, FooterHead, HEADER_BYTES as SEGMENT_HEADER_BYTES, Index,
};
use super::storage::{Storage, StorageFile};
use crate::batch::{self, BatchHeader, Framing, HEADER_BYTES, Place, flags};
use crate::limits;
use crate::units::{Bytes, Offset, Position, QueueId, SegmentNumber};

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
    },
    /// A part of a batch, verified, with a header of its own at [`Place::cut`].
    Cut {
        /// Header and messages.
        bytes: Vec<u8>,
        /// The offset behind the last message.
        end: Offset,
    },
    /// One large message: a chain of batches.
    Chain {
        /// The segment's file.
        file: Arc<S::File>,
        /// The place and the bytes of each batch.
        parts: Vec<(Place, u64)>,
        /// The offset behind the message.
        end: Offset,
    },
    /// Reading would wait for the disk: run the job, complete it, then ask again.
    Cold {
        /// Reads what is asked for into the page cache.
        read: Job<S>,
    },
}

/// A batch that messages are being cut from, and how far.
#[derive(Debug)]
struct CutEntry {
    place: Place,
    header: BatchHeader,
    payload: Arc<Vec<u8>>,
    /// A message and where it begins in the payload.
    offset: Offset,
    at: usize,
}

/// The batches that messages were cut from last, in all logs of a store: a receiver that takes
/// one message at a time must not cost a read and a checksum of the whole batch for each.
#[derive(Clone, Debug, Default)]
pub(super) struct CutCache(Arc<Mutex<Vec<CutEntry>>>);

impl CutCache {
    fn take(&self, place: &Place, offset: Offset) -> Option<CutEntry> {
        let mut entries = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let fits = |entry: &CutEntry| entry.place == *place && entry.offset <= offset;
        let at = entries.iter().position(fits)?;
        Some(entries.remove(at))
    }

    fn keep(&self, entry: CutEntry) {
        let mut entries = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut bytes = entry.payload.len();
        entries.insert(0, entry);
        let mut kept = 1;
        while kept < entries.len() && bytes + entries[kept].payload.len() <= limits::CUT_CACHE_BYTES
        {
            bytes += entries[kept].payload.len();
            kept += 1;
        }
        entries.truncate(kept.min(limits::LOCATE_HINTS));
    }
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
    window: Vec<u8>,
}

impl<S: Storage> Default for Reading<S> {
    fn default() -> Self {
        Reading {
            hints: Vec::new(),
            opened: Vec::new(),
            warmed: Vec::new(),
            window: vec![0; WINDOW_BYTES],
        }
    }
}

const WINDOW_BYTES: usize = 16 << 10;
const SMALL_WINDOW_BYTES: usize = 4 << 10;

impl<S: Storage> Reading<S> {
    pub fn keep_open(&mut self, number: SegmentNumber, file: Arc<S::File>, index: Arc<Index>) {
        self.opened.insert(0, Opened { number, file, index });
        self.opened.truncate(limits::OPEN_SEGMENTS_PER_QUEUE_MAX);
    }

    pub fn forget(&mut self, segments: &[SegmentNumber]) {
        self.hints.retain(|hint| !segments.contains(&hint.segment));
        self.opened.retain(|opened| !segments.contains(&opened.number));
    }

    fn hint(&mut self, offset: Offset, segment: SegmentNumber, position: u64) {
        self.hints.retain(|hint| hint.offset != offset);
        self.hints.insert(0, Hint { offset, segment, position });
        self.hints.truncate(limits::LOCATE_HINTS);
    }
}

/// The segment that an offset is in.
struct Target<S: Storage> {
    number: SegmentNumber,
    file: Arc<S::File>,
    /// Where the walk begins.
    start: u64,
    /// Where the batches end.
    end: u64,
    sealed: bool,
}

/// Headers of one segment, read through a window.
struct Walk<'a, F> {
    queue: QueueId,
    number: SegmentNumber,
    file: &'a F,
    end: u64,
    window: &'a mut Vec<u8>,
    start: u64,
    filled: usize,
    last_bytes: u64,
}

impl<F: StorageFile> Walk<'_, F> {
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
    Whole { position: u64, bytes: u64, end: Offset },
    Inside { position: u64, header: BatchHeader },
    Chain { parts: Vec<(Place, u64)>, end: Offset },
}

/// Why a walk ended without finding anything.
enum Lost {
    Io(std::io::Error),
    Damage { position: u64, what: String },
}

impl<F: StorageFile> Walk<'_, F> {
    fn checked(&mut self, position: u64, at_least: Offset) -> Result<BatchHeader, Lost> {
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
    ) -> Result<Walked, Lost> {
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
        if header.offset < from || header.end() > limit {
            return Ok(Walked::Inside { position, header });
        }
        let (start, mut bytes, mut end) = (position, header.length(), header.end());
        let mut behind = position + bytes;
        while end < limit && behind < self.end && behind - start < max_bytes {
            let header = self.checked(behind, end)?;
            if header.offset != end {
                return Err(Lost::Damage { position: behind, what: format!("not offset {end}") });
            }
            behind += header.length();
            if header.count == 0 && !header.has(flags::CHAIN) {
                continue;
            }
            if header.has(flags::CHAIN) || header.end() > limit || behind - start > max_bytes {
                break;
            }
            (bytes, end) = (behind - start, header.end());
        }
        Ok(Walked::Whole { position: start, bytes, end })
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
                return Ok(Walked::Chain { parts, end: header.end() });
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
    /// `limit` (at most the visible end) and about `max_bytes`, but at least one message.
    ///
    /// # Errors
    /// [`LogError::Corrupt`]: from then on nothing is delivered any more. [`LogError::Gone`].
    /// What the system says.
    pub fn locate(
        &mut self,
        from: Offset,
        limit: Offset,
        max_bytes: usize,
    ) -> Result<Found<S>, LogError> {
        assert!(from < limit && limit <= self.visible_end, "only visible messages are located");
        if let Some(damage) = &self.damage {
            return Err(LogError::Corrupt(damage.clone()));
        }
        let target = self.target(from)?;
        if let Some(read) = self.cold(&target, target.start, SMALL_WINDOW_BYTES as u64) {
            return Ok(Found::Cold { read });
        }
        let walked = self.walk(&target, from, limit, max_bytes as u64)?;
        self.deliverable(&target, walked, from, limit, max_bytes)
    }

    fn walk(
        &mut self,
        target: &Target<S>,
        from: Offset,
        limit: Offset,
        max_bytes: u64,
    ) -> Result<Walked, LogError> {
        let mut walk = Walk {
            queue: self.meta.id,
            number: target.number,
            file: &*target.file,
            end: target.end,
            window: &mut self.reading.window,
            start: 0,
            filled: 0,
            last_bytes: 0,
        };
        match walk.run(target.start, from, limit, max_bytes) {
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
        from: Offset,
        limit: Offset,
        max_bytes: usize,
    ) -> Result<Found<S>, LogError> {
        let (file, number) = (target.file.clone(), target.number);
        match walked {
            Walked::Whole { position, bytes, end } => {
                if let Some(read) = self.cold(target, position, bytes) {
                    return Ok(Found::Cold { read });
                }
                self.reading.hint(end, number, position + bytes);
                let place = self.place(number, position);
                Ok(Found::Whole { file, place, bytes, end })
            }
            Walked::Chain { parts, end } => {
                let bytes: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
                let position = parts[0].0.position.0;
                if let Some(read) = self.cold(target, position, bytes) {
                    return Ok(Found::Cold { read });
                }
                self.reading.hint(end, number, position + bytes);
                Ok(Found::Chain { file, parts, end })
            }
            Walked::Inside { position, header } => {
                if let Some(read) = self.cold(target, position, header.length()) {
                    return Ok(Found::Cold { read });
                }
                let (bytes, end) = self.cut(target, position, header, from, limit, max_bytes)?;
                let done = end == header.end();
                let behind = if done { position + header.length() } else { position };
                self.reading.hint(end, number, behind);
                Ok(Found::Cut { bytes, end })
            }
        }
    }

    /// Cuts messages out of a batch, with a header of their own.
    fn cut(
        &mut self,
        target: &Target<S>,
        position: u64,
        header: BatchHeader,
        from: Offset,
        limit: Offset,
        max_bytes: usize,
    ) -> Result<(Vec<u8>, Offset), LogError> {
        let place = self.place(target.number, position);
        let mut entry = match self.options.cuts.take(&place, from) {
            Some(entry) => entry,
            None => self.cut_entry(target, place, header)?,
        };
        let bad = |what: batch::BatchError| what.to_string();
        let found = (|| {
            let messages = entry.header.messages_part(&entry.payload).map_err(bad)?;
            let skip = from.0 - entry.offset.0;
            let skipped = batch::bytes_of_messages(header.framing, &messages[entry.at..], skip)
                .ok_or_else(|| "the batch holds fewer messages than it says".to_owned())?;
            let start = entry.at + skipped;
            let wanted = header.end().min(limit).0 - from.0;
            let (count, bytes) = measure(header.framing, &messages[start..], wanted, max_bytes);
            if count == 0 {
                return Err("the batch holds fewer messages than it says".to_owned());
            }
            let part = messages[start..start + bytes].to_vec();
            (entry.offset, entry.at) = (Offset(from.0 + count), start + bytes);
            Ok((part, count))
        })();
        let (part, count) = found
            .map_err(|what: String| self.damaged(target.number, position, Some(from), what))?;
        let end = entry.offset;
        if end < header.end() {
            self.options.cuts.keep(entry);
        }
        let cut = BatchHeader {
            payload_bytes: part.len() as u32,
            flags: header.flags & !flags::ANNEX,
            offset: from,
            count: count as u32,
            payload_crc: batch::checksum(&part),
            ..header
        };
        let mut bytes = cut.encode(&Place::cut(self.id())).to_vec();
        bytes.extend_from_slice(&part);
        Ok((bytes, end))
    }

    /// Reads and verifies a batch to cut messages from.
    fn cut_entry(
        &mut self,
        target: &Target<S>,
        place: Place,
        header: BatchHeader,
    ) -> Result<CutEntry, LogError> {
        let position = place.position.0;
        let mut payload = vec![0u8; header.payload_bytes as usize];
        let read = target.file.read_at(&mut payload, Position(position + HEADER_BYTES as u64));
        let read = read.map_err(|source| LogError::Io {
            doing: "reading",
            path: self.segment_path(target.number),
            source,
        })?;
        if let Err(error) = header.verify(&payload[..read]) {
            let offset = Some(header.offset);
            return Err(self.damaged(target.number, position, offset, error.to_string()));
        }
        let payload = Arc::new(payload);
        Ok(CutEntry { place, header, payload, offset: header.offset, at: 0 })
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
        let found = BatchHeader::decode(&bytes[..read], &place)
            .map(|header| (header, vec![0u8; header.payload_bytes as usize]));
        let what = match found {
            Err(error) => Some((None, error)),
            Ok((header, mut payload)) => {
                let behind = Position(position + HEADER_BYTES as u64);
                let read = file.read_at(&mut payload, behind).map_err(io)?;
                header.verify(&payload[..read]).err().map(|error| (Some(header.offset), error))
            }
        };
        match what {
            None => Ok(()),
            Some((offset, error)) => {
                Err(self.damaged(place.segment, position, offset, error.to_string()))
            }
        }
    }

    fn place(&self, segment: SegmentNumber, position: u64) -> Place {
        Place { queue: self.id(), segment, position: Position(position) }
    }

    /// Notes damage: from here on nothing is delivered.
    fn damaged(
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
    fn target(&mut self, offset: Offset) -> Result<Target<S>, LogError> {
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
        let sealed = self.sealed.get(at).filter(|sealed| sealed.summary.base <= offset);
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

    fn segment_file(&mut self, number: SegmentNumber) -> Result<(Arc<S::File>, u64), LogError> {
        let mut unsealed = self.unsealed.iter().chain(std::iter::once(&self.active));
        if let Some(segment) = unsealed.find(|segment| segment.number == number) {
            return Ok((segment.files[0].clone(), segment.position));
        }
        let sealed = self.sealed.iter().find(|sealed| sealed.number == number);
        let end = sealed.ok_or(LogError::Gone(Offset(0)))?.position;
        Ok((self.open_sealed(number)?.0, end))
    }

    /// A sealed segment's file and index, kept open for the next time.
    fn open_sealed(
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
    fn cold(&mut self, target: &Target<S>, position: u64, bytes: u64) -> Option<Job<S>> {
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

    /// A cold range was read, or could not be.
    pub(super) fn read_ahead_done(
        &mut self,
        number: SegmentNumber,
        position: u64,
        result: Result<(), Failure>,
        progress: &mut Progress,
    ) {
        self.reading.warmed.insert(0, (number, position));
        self.reading.warmed.truncate(limits::LOCATE_HINTS);
        if let Err(failure) = result {
            self.damaged(number, position, None, failure.to_string());
            progress.damage = self.damage.clone();
        }
    }
}

/// How many messages, at most `wanted`, fit `max_bytes` (at least one), and their bytes.
fn measure(framing: Framing, messages: &[u8], wanted: u64, max_bytes: usize) -> (u64, usize) {
    let (mut count, mut bytes) = (0, 0);
    while count < wanted {
        let Some(next) = batch::bytes_of_messages(framing, &messages[bytes..], 1) else { break };
        if count > 0 && bytes + next > max_bytes {
            break;
        }
        count += 1;
        bytes += next;
    }
    (count, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measure_takes_at_least_one_message() {
        let lines = Framing::Delimited(b'\n');
        assert_eq!(measure(lines, b"aaaa\nb\nc\n", 3, 1), (1, 5));
        assert_eq!(measure(lines, b"aaaa\nb\nc\n", 3, 8), (2, 7));
        assert_eq!(measure(lines, b"aaaa\nb\nc\n", 2, 100), (2, 7));
    }
}
