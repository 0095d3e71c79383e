//! The run: a file of delayed messages in the order in which they come due.
//!
//! It is written once, whole, by a job, and then only read. Knows bytes; decides nothing. Called
//! by the jobs that write and merge runs, by the store that takes messages from their heads, and
//! by `check`.
//!
//! # Layout
//!
//! Little-endian. A header, entries back to back, a footer.
//!
//! ```text
//! header, 64 bytes
//!  0          8         12    16            32       40                         60    64
//! ┌──────────┬─────────┬─────┬─────────────┬────────┬──────────────────────────┬─────┐
//! │ "mq-late"│ version │ 0   │ queue id    │ number │ 0 ...                    │ CRC │
//! │ and NUL  │ u32     │ u32 │ 16 bytes    │ u64    │                          │ u32 │
//! └──────────┴─────────┴─────┴─────────────┴────────┴──────────────────────────┴─────┘
//!
//! entry: 32 bytes and the record
//!  0          8        16       20             24    28    32
//! ┌──────────┬────────┬────────┬──────────────┬─────┬─────┬─────────────────────────┐
//! │ due      │ offset │ length │ CRC of the   │ 0   │ CRC │ record, as in a batch   │
//! │ u64, µs  │ u64    │ u32    │ record u32   │ u32 │ u32 │                         │
//! └──────────┴────────┴────────┴──────────────┴─────┴─────┴─────────────────────────┘
//!
//! footer, 64 bytes
//!  0          8         16         24        32          40           60    64
//! ┌──────────┬─────────┬──────────┬─────────┬───────────┬────────────┬─────┐
//! │ "mq-lend"│ entries │ position │ due of  │ due of    │ 0 ...      │ CRC │
//! │ and NUL  │ u64     │ u64      │ first   │ last, µs  │            │ u32 │
//! └──────────┴─────────┴──────────┴─────────┴───────────┴────────────┴─────┘
//! ```
//!
//! * Entries ascend by due time, then by the offset that they had in the hidden log.
//! * The CRCs of header, entry and footer cover queue id, run number and position, then the bytes
//!   in front of them; that of a record covers the record.
//! * `position` is the footer's own. A file without a footer was not finished: it has its final
//!   name only when it is.
//!
//! To change the format, raise the version and keep the reader of the one before.

use std::path::Path;
use std::sync::Arc;

use super::super::error::{LogError, corrupt};
use super::super::files::{put_u32, put_u64, seeded_crc, u32_at, u64_at};
use super::super::segment::FORMAT_VERSION;
use super::super::storage::StorageFile;
use super::Due;
use crate::batch::{RECORD_HEADER_BYTES, checksum};
use crate::limits;
use crate::units::{Bytes, Offset, Position, QueueId, WallTime};

const MAGIC: &[u8; 8] = b"mq-late\0";
const FOOTER_MAGIC: &[u8; 8] = b"mq-lend\0";
/// Bytes in front of the first entry.
pub(super) const HEADER_BYTES: u64 = 64;
const FOOTER_BYTES: u64 = 64;
/// Bytes of an entry in front of its record.
pub(super) const ENTRY_BYTES: u64 = 32;

/// What a reader holds of a run: enough for many small entries in one read.
const WINDOW_BYTES: usize = 16 << 10;

/// What a run's header and footer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::log) struct Extent {
    /// Entries inside.
    pub entries: u64,
    /// Where the last one ends.
    pub end: u64,
}

pub(super) fn encode_header(queue: QueueId, number: u64) -> [u8; HEADER_BYTES as usize] {
    let mut out = [0u8; HEADER_BYTES as usize];
    out[..8].copy_from_slice(MAGIC);
    put_u32(&mut out, 8, FORMAT_VERSION);
    out[16..32].copy_from_slice(queue.as_bytes());
    put_u64(&mut out, 32, number);
    let crc = seeded_crc(queue, number, 0, &out[..60]);
    put_u32(&mut out, 60, crc);
    out
}

pub(super) fn encode_footer(
    queue: QueueId,
    number: u64,
    extent: Extent,
    first: WallTime,
    last: WallTime,
) -> [u8; FOOTER_BYTES as usize] {
    let mut out = [0u8; FOOTER_BYTES as usize];
    out[..8].copy_from_slice(FOOTER_MAGIC);
    put_u64(&mut out, 8, extent.entries);
    put_u64(&mut out, 16, extent.end);
    put_u64(&mut out, 24, first.0);
    put_u64(&mut out, 32, last.0);
    let crc = seeded_crc(queue, number, extent.end, &out[..60]);
    put_u32(&mut out, 60, crc);
    out
}

/// The bytes in front of a record that stands at `position`.
pub(super) fn encode_entry(
    queue: QueueId,
    number: u64,
    position: u64,
    head: &Head,
) -> [u8; ENTRY_BYTES as usize] {
    let mut out = [0u8; ENTRY_BYTES as usize];
    put_u64(&mut out, 0, head.due.at.0);
    put_u64(&mut out, 8, head.due.offset.0);
    put_u32(&mut out, 16, head.bytes);
    put_u32(&mut out, 20, head.crc);
    let crc = seeded_crc(queue, number, position, &out[..28]);
    put_u32(&mut out, 28, crc);
    out
}

/// Reads a run's header and footer.
///
/// # Errors
/// [`LogError::Corrupt`], [`LogError::Newer`]; what the system says.
pub(super) fn open<F: StorageFile>(
    file: &F,
    queue: QueueId,
    number: u64,
    path: &Path,
) -> Result<Extent, LogError> {
    let io = |source| LogError::Io { doing: "reading", path: path.to_owned(), source };
    let length = file.len().map_err(io)?.0;
    let mut head = [0u8; HEADER_BYTES as usize];
    let read = file.read_at(&mut head, Position(0)).map_err(io)?;
    let sound = read == head.len() && &head[..8] == MAGIC;
    if !sound || u32_at(&head, 60) != seeded_crc(queue, number, 0, &head[..60]) {
        return Err(corrupt(path, Some(0), None, "the run's header fails its checksum"));
    }
    let version = u32_at(&head, 8);
    if version > FORMAT_VERSION {
        let path = path.to_owned();
        return Err(LogError::Newer { path, found: version, known: FORMAT_VERSION });
    }
    let bad = || corrupt(path, None, None, "the run's footer is missing or fails its checksum");
    let end = length.checked_sub(FOOTER_BYTES).filter(|end| *end >= HEADER_BYTES);
    let end = end.ok_or_else(bad)?;
    let mut foot = [0u8; FOOTER_BYTES as usize];
    let read = file.read_at(&mut foot, Position(end)).map_err(io)?;
    let sound = read == foot.len() && &foot[..8] == FOOTER_MAGIC && u64_at(&foot, 16) == end;
    if !sound || u32_at(&foot, 60) != seeded_crc(queue, number, end, &foot[..60]) {
        return Err(bad());
    }
    Ok(Extent { entries: u64_at(&foot, 8), end })
}

/// The fixed part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub due: Due,
    /// Bytes of the record.
    pub bytes: u32,
    /// The record's checksum.
    pub crc: u32,
}

/// What stands in a run is not what was written there, or cannot be read.
#[derive(Debug)]
pub(super) enum Bad {
    Io(std::io::Error),
    Damage { position: u64, what: &'static str },
}

/// Reads the entries of a run in order.
pub(super) struct Reader<F> {
    pub file: Arc<F>,
    queue: QueueId,
    number: u64,
    /// Where the next entry stands.
    pub position: u64,
    /// Entries before it.
    pub taken: u64,
    extent: Extent,
    head: Option<Head>,
    window: Vec<u8>,
    window_start: u64,
}

impl<F: StorageFile> Reader<F> {
    /// Begins at `position`, in front of which `taken` entries stand.
    pub fn new(
        file: Arc<F>,
        queue: QueueId,
        number: u64,
        extent: Extent,
        (taken, position): (u64, u64),
    ) -> Reader<F> {
        let (window, window_start) = (Vec::new(), 0);
        Reader { file, queue, number, position, taken, extent, head: None, window, window_start }
    }

    /// Entries that are left.
    pub fn left(&self) -> u64 {
        self.extent.entries - self.taken
    }

    /// Bytes that are left.
    pub fn bytes_left(&self) -> u64 {
        self.extent.end.saturating_sub(self.position)
    }

    /// Of these, those of the records.
    pub fn record_bytes_left(&self) -> u64 {
        self.bytes_left().saturating_sub(self.left() * ENTRY_BYTES)
    }

    fn damage<T>(&self, what: &'static str) -> Result<T, Bad> {
        Err(Bad::Damage { position: self.position, what })
    }

    /// The next entry, if it was read already.
    pub fn known(&self) -> Option<Head> {
        self.head
    }

    /// What will be read next, if it is not in memory: to ask whether that would wait.
    pub fn wants(&self) -> Option<(Position, Bytes)> {
        let held = self.head.is_some() || self.holds(self.position, ENTRY_BYTES);
        let bytes = self.bytes_left().min(WINDOW_BYTES as u64);
        (!held && self.left() > 0).then_some((Position(self.position), Bytes(bytes)))
    }

    fn holds(&self, position: u64, bytes: u64) -> bool {
        self.window_start <= position
            && position + bytes <= self.window_start + self.window.len() as u64
    }

    /// `bytes` at `position`, by way of the window.
    fn bytes_at(&mut self, position: u64, bytes: u64) -> Result<&[u8], Bad> {
        if position + bytes > self.extent.end {
            return self.damage("an entry runs over the end of the run");
        }
        if !self.holds(position, bytes) {
            let most = (self.extent.end - position).min(WINDOW_BYTES as u64).max(bytes);
            self.window.resize(most as usize, 0);
            self.window_start = position;
            let read = self.file.read_at(&mut self.window, Position(position)).map_err(Bad::Io)?;
            self.window.truncate(read);
            if (read as u64) < bytes {
                return self.damage("the file is shorter than it was");
            }
        }
        let from = (position - self.window_start) as usize;
        Ok(&self.window[from..from + bytes as usize])
    }

    /// The next entry, without its record; none at the end.
    ///
    /// # Errors
    /// See [`Bad`].
    pub fn head(&mut self) -> Result<Option<Head>, Bad> {
        if let Some(head) = self.head {
            return Ok(Some(head));
        }
        if self.left() == 0 {
            return Ok(None);
        }
        let (queue, number, position) = (self.queue, self.number, self.position);
        let bytes = self.bytes_at(position, ENTRY_BYTES)?;
        let crc = seeded_crc(queue, number, position, &bytes[..28]);
        let head = Head {
            due: Due { at: WallTime(u64_at(bytes, 0)), offset: Offset(u64_at(bytes, 8)) },
            bytes: u32_at(bytes, 16),
            crc: u32_at(bytes, 20),
        };
        if u32_at(bytes, 28) != crc {
            return self.damage("an entry fails its checksum");
        }
        let bytes = head.bytes as usize;
        if !(RECORD_HEADER_BYTES..=limits::BATCH_PAYLOAD_BYTES_MAX).contains(&bytes) {
            return self.damage("an entry has an impossible length");
        }
        self.head = Some(head);
        Ok(Some(head))
    }

    /// Appends the record of the next entry to `out` and goes on behind it.
    ///
    /// # Errors
    /// See [`Bad`]; `out` and the place are as before then.
    pub fn take(&mut self, out: &mut Vec<u8>) -> Result<(), Bad> {
        let head = self.head()?.expect("the caller has seen an entry");
        let start = self.position + ENTRY_BYTES;
        let before = out.len();
        if head.bytes as usize <= WINDOW_BYTES {
            out.extend_from_slice(self.bytes_at(start, u64::from(head.bytes))?);
        } else {
            // A large record goes by the window, so that the windows of many runs stay small.
            out.resize(before + head.bytes as usize, 0);
            let read = self.file.read_at(&mut out[before..], Position(start));
            let read = read.map_err(Bad::Io);
            if !matches!(read, Ok(n) if n == head.bytes as usize) {
                out.truncate(before);
                read?;
                return self.damage("the file is shorter than it was");
            }
        }
        if checksum(&out[before..]) != head.crc {
            out.truncate(before);
            return self.damage("a record fails its checksum");
        }
        self.step(&head);
        Ok(())
    }

    /// Goes on behind the next entry without looking at its record.
    ///
    /// # Errors
    /// See [`Bad`].
    pub fn skip(&mut self) -> Result<(), Bad> {
        let head = self.head()?.expect("the caller has seen an entry");
        self.step(&head);
        Ok(())
    }

    fn step(&mut self, head: &Head) {
        self.position += ENTRY_BYTES + u64::from(head.bytes);
        self.taken += 1;
        self.head = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_an_entry_head_is_found() {
        let queue = QueueId::from_bytes(*b"0123456789abcdef");
        let head = Head { due: Due { at: WallTime(7), offset: Offset(3) }, bytes: 9, crc: 5 };
        let bytes = encode_entry(queue, 2, 64, &head);
        let crc = |bytes: &[u8], at| seeded_crc(queue, 2, at, &bytes[..28]);
        assert_eq!(u32_at(&bytes, 28), crc(&bytes, 64));
        assert_ne!(u32_at(&bytes, 28), crc(&bytes, 65), "at another place it fails");
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(u32_at(&bad, 28), crc(&bad, 64), "bit {bit}");
        }
    }
}
