//! Cutting messages out of a batch, for a receiver that takes only some of it.
//!
//! The only place where the log reads payloads to deliver them, so here they are verified. Called
//! by `locate`.

use std::sync::{Arc, Mutex};

use super::error::LogError;
use super::locate::Target;
use super::log::Log;
use super::storage::{Storage, StorageFile};
use crate::batch::{self, BatchHeader, Framing, HEADER_BYTES, Place, flags};
use crate::limits;
use crate::units::{Offset, Position};

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
/// one message at a time must not cost a read and a checksum of the whole batch for each. At
/// most [`limits::CUT_CACHE_BYTES`].
#[derive(Clone, Debug, Default)]
pub struct CutCache(Arc<Mutex<Vec<CutEntry>>>);

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

impl<S: Storage> Log<S> {
    /// Cuts messages out of a batch, with a header of their own.
    pub(super) fn cut(
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
