//! The segment file: its header, its footer, and the sparse index in between.
//!
//! Knows bytes only; it opens and writes nothing. Called by the log, by recovery and by `check`.
//!
//! # Layout
//!
//! All numbers are little-endian. A segment is a header, batches back to back
//! (see [`batch`](crate::batch)), and, once sealed, a footer.
//!
//! ```text
//! header, 64 bytes
//!  0          8         12         16             32       40      48        56    60     64
//! ┌──────────┬─────────┬──────────┬──────────────┬────────┬───────┬─────────┬─────┬──────┐
//! │ "mq-segm"│ version │ 0        │ queue id     │ number │ bound │ created │ 0   │ CRC  │
//! │ and NUL  │ u32     │ u32      │ 16 bytes     │ u64    │ u64   │ u64, µs │ u32 │ u32  │
//! └──────────┴─────────┴──────────┴──────────────┴────────┴───────┴─────────┴─────┴──────┘
//!
//! footer: head, 64 bytes
//!  0          8      16     24      32           40          48        52        56       60
//! ┌──────────┬──────┬──────┬───────┬────────────┬───────────┬─────────┬─────────┬────────┬─────┐
//! │ "mq-foot"│ base │ end  │ count │ time of the│ time of   │ entries │ CRC of  │ version│ CRC │
//! │ and NUL  │ u64  │ u64  │ u64   │ first, µs  │ the last  │ u32     │ entries │ u32    │ u32 │
//! └──────────┴──────┴──────┴───────┴────────────┴───────────┴─────────┴─────────┴────────┴─────┘
//! entries, 16 bytes each: offset u64, position u64
//! trailer, 32 bytes, at the very end of the file
//!  0                   8          16        24        28
//! ┌───────────────────┬──────────┬─────────┬─────────┬──────┐
//! │ position of the   │ number   │ 0       │ "sEaL"  │ CRC  │
//! │ head u64          │ u64      │ u64     │         │ u32  │
//! └───────────────────┴──────────┴─────────┴─────────┴──────┘
//! ```
//!
//! * `bound`: the base offset of the segment is at most this. It is known when the segment is
//!   prepared, which is before its base is: the base of the segment before it plus all the
//!   messages that a segment may hold.
//! * The CRCs cover the queue id, the segment's number, their own position in the file, and the
//!   bytes in front of them.
//! * The footer is written after all batches are synced, and is synced itself; so a valid one
//!   says that the segment is complete and durable.
//! * The head stands where the next batch would. So a footer that was written in part is never
//!   taken for a damaged batch.
//!
//! # Changing the format
//!
//! Zero fields are free for facts that old readers may ignore. For anything else raise
//! [`FORMAT_VERSION`] and keep the decoder of the version before.

use super::files::{put_u32, put_u64, seeded_crc, u32_at, u64_at};
use crate::units::{Count, Offset, QueueId, SegmentNumber, WallTime};

/// The format of segment files that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 2;

/// Bytes in front of the first batch.
pub(super) const HEADER_BYTES: u64 = 64;
/// Bytes of the footer's head.
pub(super) const FOOTER_HEAD_BYTES: u64 = 64;
/// Bytes of the footer's trailer.
pub(super) const TRAILER_BYTES: u64 = 32;
/// Bytes of one entry of the index.
pub(super) const ENTRY_BYTES: u64 = 16;

const HEADER_MAGIC: &[u8; 8] = b"mq-segm\0";
const FOOTER_MAGIC: &[u8; 8] = b"mq-foot\0";
const TRAILER_MAGIC: &[u8; 4] = b"sEaL";

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub bound: Offset,
    pub created: WallTime,
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Fewer bytes than a header has.
    Short,
    /// Not a segment header, or not this segment's.
    Damaged,
    /// Written by a newer mq.
    Newer(u32),
}

impl SegmentHeader {
    /// The header's bytes.
    pub fn encode(&self, queue: QueueId, number: SegmentNumber) -> [u8; HEADER_BYTES as usize] {
        let mut out = [0u8; HEADER_BYTES as usize];
        out[..8].copy_from_slice(HEADER_MAGIC);
        put_u32(&mut out, 8, FORMAT_VERSION);
        out[16..32].copy_from_slice(queue.as_bytes());
        put_u64(&mut out, 32, number.0);
        put_u64(&mut out, 40, self.bound.0);
        put_u64(&mut out, 48, self.created.0);
        let crc = seeded_crc(queue, number.0, 0, &out[..60]);
        put_u32(&mut out, 60, crc);
        out
    }

    /// Reads the header of segment `number` of `queue`.
    pub fn decode(
        bytes: &[u8],
        queue: QueueId,
        number: SegmentNumber,
    ) -> Result<SegmentHeader, BadHeader> {
        if bytes.len() < HEADER_BYTES as usize {
            return Err(BadHeader::Short);
        }
        let crc = seeded_crc(queue, number.0, 0, &bytes[..60]);
        if &bytes[..8] != HEADER_MAGIC || u32_at(bytes, 60) != crc {
            return Err(BadHeader::Damaged);
        }
        let version = u32_at(bytes, 8);
        if version > FORMAT_VERSION {
            return Err(BadHeader::Newer(version));
        }
        Ok(SegmentHeader { bound: Offset(u64_at(bytes, 40)), created: WallTime(u64_at(bytes, 48)) })
    }
}

/// What a sealed segment holds in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// The offset of its first message.
    pub base: Offset,
    /// The offset behind its last.
    pub end: Offset,
    /// Messages inside, which may be fewer than `end - base`.
    pub count: Count,
    /// When its first batch was stored.
    pub time_first: WallTime,
    /// When its last batch was stored.
    pub time_last: WallTime,
}

/// The head of a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FooterHead {
    pub summary: Summary,
    pub entries: u32,
    pub entries_crc: u32,
}

impl FooterHead {
    fn encode(
        &self,
        queue: QueueId,
        number: SegmentNumber,
        position: u64,
    ) -> [u8; FOOTER_HEAD_BYTES as usize] {
        let mut out = [0u8; FOOTER_HEAD_BYTES as usize];
        out[..8].copy_from_slice(FOOTER_MAGIC);
        put_u64(&mut out, 8, self.summary.base.0);
        put_u64(&mut out, 16, self.summary.end.0);
        put_u64(&mut out, 24, self.summary.count.0);
        put_u64(&mut out, 32, self.summary.time_first.0);
        put_u64(&mut out, 40, self.summary.time_last.0);
        put_u32(&mut out, 48, self.entries);
        put_u32(&mut out, 52, self.entries_crc);
        put_u32(&mut out, 56, FORMAT_VERSION);
        let crc = seeded_crc(queue, number.0, position, &out[..60]);
        put_u32(&mut out, 60, crc);
        out
    }

    /// Reads the head that stands at `position`, if one does.
    pub fn decode(
        bytes: &[u8],
        queue: QueueId,
        number: SegmentNumber,
        position: u64,
    ) -> Option<FooterHead> {
        if bytes.len() < FOOTER_HEAD_BYTES as usize || &bytes[..8] != FOOTER_MAGIC {
            return None;
        }
        if u32_at(bytes, 60) != seeded_crc(queue, number.0, position, &bytes[..60]) {
            return None;
        }
        let summary = Summary {
            base: Offset(u64_at(bytes, 8)),
            end: Offset(u64_at(bytes, 16)),
            count: Count(u64_at(bytes, 24)),
            time_first: WallTime(u64_at(bytes, 32)),
            time_last: WallTime(u64_at(bytes, 40)),
        };
        let (entries, entries_crc) = (u32_at(bytes, 48), u32_at(bytes, 52));
        (summary.base <= summary.end).then_some(FooterHead { summary, entries, entries_crc })
    }

    /// Bytes of the whole footer.
    pub fn footer_bytes(&self) -> u64 {
        FOOTER_HEAD_BYTES + u64::from(self.entries) * ENTRY_BYTES + TRAILER_BYTES
    }
}

/// The bytes of a whole footer that stands at `position`.
pub(super) fn encode_footer(
    queue: QueueId,
    number: SegmentNumber,
    position: u64,
    summary: Summary,
    index: &Index,
) -> Vec<u8> {
    let mut entries = Vec::with_capacity(index.entries.len() * ENTRY_BYTES as usize);
    for entry in &index.entries {
        entries.extend_from_slice(&entry.offset.0.to_le_bytes());
        entries.extend_from_slice(&entry.position.to_le_bytes());
    }
    let entries_crc = seeded_crc(queue, number.0, position + FOOTER_HEAD_BYTES, &entries);
    let head = FooterHead { summary, entries: index.entries.len() as u32, entries_crc };
    let mut out = head.encode(queue, number, position).to_vec();
    out.extend_from_slice(&entries);
    let mut trailer = [0u8; TRAILER_BYTES as usize];
    put_u64(&mut trailer, 0, position);
    put_u64(&mut trailer, 8, number.0);
    trailer[24..28].copy_from_slice(TRAILER_MAGIC);
    let crc = seeded_crc(queue, number.0, position + out.len() as u64, &trailer[..28]);
    put_u32(&mut trailer, 28, crc);
    out.extend_from_slice(&trailer);
    out
}

/// Where the footer's head stands, as the trailer that ends a file of `length` bytes says.
pub(super) fn decode_trailer(
    bytes: &[u8],
    queue: QueueId,
    number: SegmentNumber,
    length: u64,
) -> Option<u64> {
    if bytes.len() != TRAILER_BYTES as usize || &bytes[24..28] != TRAILER_MAGIC {
        return None;
    }
    let crc = seeded_crc(queue, number.0, length - TRAILER_BYTES, &bytes[..28]);
    let position = u64_at(bytes, 0);
    let fits = HEADER_BYTES <= position && position < length;
    (u32_at(bytes, 28) == crc && fits).then_some(position)
}

/// One entry of the sparse index: a batch that begins a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub offset: Offset,
    pub position: u64,
}

/// The sparse index of a segment: about one entry per
/// [`INDEX_EVERY_BYTES`](crate::limits::INDEX_EVERY_BYTES).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub entries: Vec<Entry>,
}

impl Index {
    /// Notes a batch, if the last entry lies far enough behind.
    pub fn note(&mut self, offset: Offset, position: u64, every: u64) {
        if self.entries.last().is_none_or(|last| position >= last.position.saturating_add(every)) {
            self.entries.push(Entry { offset, position });
        }
    }

    /// Forgets the entries from `position` on.
    pub fn cut(&mut self, position: u64) {
        let kept = self.entries.partition_point(|entry| entry.position < position);
        self.entries.truncate(kept);
    }

    /// Where to begin the walk to `offset`.
    pub fn start(&self, offset: Offset) -> Option<Entry> {
        // Batches without messages share the offset of the batch behind them, so the entry in
        // front of an equal one is as good and never too late.
        let behind = self.entries.partition_point(|entry| entry.offset <= offset);
        behind.checked_sub(1).map(|at| self.entries[at])
    }

    /// The last entry that is certainly not behind the first batch at or above `offset`.
    pub fn before(&self, offset: Offset) -> u64 {
        let behind = self.entries.partition_point(|entry| entry.offset < offset);
        behind.checked_sub(1).map_or(HEADER_BYTES, |at| self.entries[at].position)
    }

    /// Reads the entries of a footer.
    pub fn decode(
        bytes: &[u8],
        head: &FooterHead,
        queue: QueueId,
        number: SegmentNumber,
        head_position: u64,
    ) -> Option<Index> {
        let crc = seeded_crc(queue, number.0, head_position + FOOTER_HEAD_BYTES, bytes);
        if crc != head.entries_crc || bytes.len() as u64 != u64::from(head.entries) * ENTRY_BYTES {
            return None;
        }
        let entries = bytes
            .chunks_exact(ENTRY_BYTES as usize)
            .map(|entry| Entry { offset: Offset(u64_at(entry, 0)), position: u64_at(entry, 8) })
            .collect();
        Some(Index { entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: [u8; 16] = *b"0123456789abcdef";

    fn summary() -> Summary {
        Summary {
            base: Offset(5),
            end: Offset(9),
            count: Count(4),
            time_first: WallTime(1),
            time_last: WallTime(2),
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_found() {
        let queue = QueueId::from_bytes(QUEUE);
        let header = SegmentHeader { bound: Offset(7), created: WallTime(3) };
        let bytes = header.encode(queue, SegmentNumber(2));
        assert_eq!(SegmentHeader::decode(&bytes, queue, SegmentNumber(2)), Ok(header));
        assert!(SegmentHeader::decode(&bytes, queue, SegmentNumber(3)).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bad, queue, SegmentNumber(2)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn footer_is_found_from_the_end_and_every_flipped_bit_is_found() {
        let queue = QueueId::from_bytes(QUEUE);
        let number = SegmentNumber(2);
        let mut index = Index::default();
        index.note(Offset(5), 64, 100);
        index.note(Offset(6), 100, 100);
        index.note(Offset(8), 164, 100);
        let footer = encode_footer(queue, number, 300, summary(), &index);
        let read = |bytes: &[u8]| {
            let length = 300 + bytes.len() as u64;
            let trailer = &bytes[bytes.len() - TRAILER_BYTES as usize..];
            let position = decode_trailer(trailer, queue, number, length)?;
            let head = FooterHead::decode(bytes, queue, number, position)?;
            let entries = &bytes[FOOTER_HEAD_BYTES as usize..][..head.entries as usize * 16];
            let index = Index::decode(entries, &head, queue, number, position)?;
            Some((head.summary, index))
        };
        assert_eq!(read(&footer), Some((summary(), index)));
        for bit in 0..footer.len() * 8 {
            let mut bad = footer.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn index_finds_the_start_of_a_walk() {
        let mut index = Index::default();
        for (offset, position) in [(5, 64), (9, 200), (9, 400), (12, 600)] {
            index.note(Offset(offset), position, 100);
        }
        assert_eq!(index.start(Offset(4)), None);
        assert_eq!(index.start(Offset(8)).map(|e| e.position), Some(64));
        assert_eq!(index.start(Offset(12)).map(|e| e.position), Some(600));
        assert_eq!(index.before(Offset(9)), 64);
        assert_eq!(index.before(Offset(13)), 600);
        assert_eq!(index.before(Offset(5)), HEADER_BYTES);
    }
}
