//! Where in the log a time or a count from the end is, for groups that begin or are set there.
//!
//! Reads a few headers and changes nothing; what would wait for the disk is handed out as a job.
//! Called by the server.

use super::error::LogError;
use super::jobs::Job;
use super::locate::{Lost, Target, Walk};
use super::log::Log;
use super::segment::{HEADER_BYTES, Index};
use super::storage::Storage;
use crate::batch;
use crate::limits;
use crate::units::{Bytes, Count, Offset, OffsetRange, WallTime};

/// An offset, or what has to happen first.
pub enum Sought<S: Storage> {
    /// There.
    At(Offset),
    /// Reading would wait for the disk: run the job, complete it, then ask again.
    Cold {
        /// Reads what is asked for into the page cache.
        read: Box<Job<S>>,
    },
}

/// What a segment holds, in bytes and messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its offsets; inside there are no gaps.
    pub range: OffsetRange,
    /// Bytes of its batches.
    pub bytes: Bytes,
    /// When its first message was stored.
    pub first: WallTime,
    /// When its last message was stored.
    pub last: WallTime,
    /// Whether it is complete, so that it can be dropped.
    pub sealed: bool,
}

impl<S: Storage> Log<S> {
    /// All segments with messages, the oldest first; those that are being dropped apart.
    pub fn extents(&self) -> impl DoubleEndedIterator<Item = Extent> {
        let sealed =
            self.sealed.iter().filter(|sealed| !self.chores.drops.contains(&sealed.number));
        let sealed = sealed.map(|sealed| Extent {
            range: sealed.range(),
            bytes: Bytes(sealed.position - HEADER_BYTES),
            first: sealed.summary.time_first,
            last: sealed.summary.time_last,
            sealed: true,
        });
        let open = self.unsealed.iter().chain(std::iter::once(&self.active));
        let open = open.map(|segment| Extent {
            range: OffsetRange::new(segment.base, segment.end),
            bytes: Bytes(segment.position - HEADER_BYTES),
            first: segment.time_first,
            last: segment.time_last,
            sealed: false,
        });
        sealed.chain(open).filter(|extent| !extent.range.is_empty())
    }

    /// The offset of the message that has so many visible ones behind it, itself counted; the
    /// first when there are fewer.
    #[must_use]
    pub fn offset_before_end(&self, count: Count) -> Offset {
        let mut left = count.0;
        for extent in self.extents().rev() {
            let end = extent.range.end.min(self.visible_end);
            let there = end.0.saturating_sub(extent.range.start.0);
            if left <= there {
                return Offset(end.0 - left);
            }
            left -= there;
        }
        self.start()
    }

    /// The offset of the first visible message that was stored at `wall` or later; the visible
    /// end when there is none. Messages that were stored as one batch share their time.
    ///
    /// # Errors
    /// [`LogError::Corrupt`]; what the system says.
    pub fn offset_at_time(&mut self, wall: WallTime) -> Result<Sought<S>, LogError> {
        let reaching = self.extents().find(|extent| extent.last >= wall);
        let Some(extent) = reaching else { return Ok(Sought::At(self.visible_end)) };
        let at = |offset: Offset, log: &Self| Ok(Sought::At(offset.min(log.visible_end)));
        if extent.first >= wall {
            return at(extent.range.start, self);
        }
        let target = self.target(extent.range.start)?;
        let index = self.index_of(&target)?;
        // The last entry in front of the time; it is found by asking for a few headers.
        let (mut low, mut high) = (0, index.entries.len());
        while low < high {
            let middle = low.midpoint(high);
            let position = index.entries[middle].position;
            if let Some(read) = self.cold(&target, position, batch::HEADER_BYTES as u64) {
                return Ok(Sought::Cold { read: Box::new(read) });
            }
            let header = self.header_at(&target, position)?;
            if header.time < wall { low = middle + 1 } else { high = middle }
        }
        let mut position = low.checked_sub(1).map_or(HEADER_BYTES, |at| index.entries[at].position);
        let end = index.entries.get(low).map_or(target.end, |entry| entry.position);
        if let Some(read) = self.cold(&target, position, end - position) {
            return Ok(Sought::Cold { read: Box::new(read) });
        }
        while position < target.end {
            let header = self.header_at(&target, position)?;
            if header.time >= wall {
                return at(header.offset, self);
            }
            position += header.length();
        }
        at(extent.range.end, self)
    }

    /// When the message at `offset` was stored; when its segment was begun, if more cannot be told
    /// without waiting for the disk. None when it is not in the log.
    pub fn time_of(&mut self, offset: Offset) -> Option<WallTime> {
        let extent = self.extents().find(|extent| extent.range.contains(offset))?;
        let target = self.target(offset).ok()?;
        let (mut position, bytes) = (target.start, limits::INDEX_EVERY_BYTES);
        if self.cold(&target, position, bytes).is_some() {
            return Some(extent.first);
        }
        let mut walk = Walk::new(self.id(), &target);
        while let Ok(header) = walk.checked(position, Offset(0)) {
            let is_chain = header.has(batch::flags::CHAIN) && header.offset >= offset;
            if is_chain || header.end() > offset {
                return Some(header.time);
            }
            position += header.length();
        }
        // What is damaged there is found when it is delivered.
        Some(extent.first)
    }

    fn index_of(&mut self, target: &Target<S>) -> Result<Index, LogError> {
        let mut open = self.unsealed.iter().chain(std::iter::once(&self.active));
        match open.find(|segment| segment.number == target.number) {
            Some(segment) => Ok(segment.index.clone()),
            None => Ok(Index::clone(&*self.open_sealed(target.number)?.1)),
        }
    }

    fn header_at(
        &mut self,
        target: &Target<S>,
        position: u64,
    ) -> Result<batch::BatchHeader, LogError> {
        let mut walk = Walk::new(self.id(), target);
        match walk.checked(position, Offset(0)) {
            Ok(header) => Ok(header),
            Err(Lost::Io(source)) => {
                let path = self.segment_path(target.number);
                Err(LogError::Io { doing: "reading", path, source })
            }
            Err(Lost::Damage { position, what }) => {
                Err(self.damaged(target.number, position, None, what))
            }
        }
    }
}
