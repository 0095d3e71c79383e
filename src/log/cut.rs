//! Cutting messages out of a batch, for a receiver that takes only some of it, or to whom not all
//! of it may be given.
//!
//! The only place where the log reads payloads to deliver them, so here they are verified. Called
//! by `locate`.

use std::sync::{Arc, Mutex};

use super::error::LogError;
use super::locate::Target;
use super::log::Log;
use super::storage::{Storage, StorageFile};
use crate::batch::{self, BatchHeader, Framing, HEADER_BYTES, Place, Record, flags};
use crate::limits;
use crate::units::{Name, Offset, Position, WallTime};

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

/// What a receiver may be given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Select<'a> {
    /// The time now: what has expired is left out. None: nothing expires.
    pub wall: Option<WallTime>,
    /// The receiver's group: what is for another only is left out. None: nothing is.
    pub group: Option<&'a Name>,
}

impl Select<'_> {
    /// Whether anything is left out at all.
    pub(super) fn is_everything(&self) -> bool {
        self.wall.is_none() && self.group.is_none()
    }

    /// What becomes of this message.
    pub(super) fn fate(&self, record: &Record<'_>) -> Fate {
        let of_another =
            |group: &Name| record.only_group().is_some_and(|only| only != group.as_str());
        if self.group.is_some_and(of_another) {
            return Fate::NotOurs;
        }
        let expires = self.wall.and_then(|now| record.expires().map(|at| at <= now));
        if expires == Some(true) { Fate::Expired } else { Fate::Ours }
    }
}

/// See [`Select::fate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Ours,
    Expired,
    NotOurs,
}

/// A run of messages of one fate.
pub(super) struct CutRun {
    pub fate: Fate,
    /// With a header of their own, if they are to be delivered.
    pub bytes: Vec<u8>,
    /// The offset behind the last.
    pub end: Offset,
}

/// What is wanted of a batch.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub from: Offset,
    pub limit: Offset,
    pub max_bytes: usize,
    pub select: &'a Select<'a>,
}

impl<S: Storage> Log<S> {
    /// Cuts messages out of a batch: a run of those that may be delivered, with a header of their
    /// own, or says how far those go that may not.
    pub(super) fn cut(
        &mut self,
        target: &Target<S>,
        position: u64,
        header: BatchHeader,
        wanted: Wanted<'_>,
    ) -> Result<CutRun, LogError> {
        let Wanted { from, limit, max_bytes, select } = wanted;
        let place = self.place(target.number, position);
        let mut entry = match self.options.cuts.take(&place, from) {
            Some(entry) => entry,
            None => self.cut_entry(target, place, header)?,
        };
        let bad = |what: batch::BatchError| what.to_string();
        let short = || "the batch holds fewer messages than it says".to_owned();
        let picky = header.has(flags::SELECTIVE) && !select.is_everything();
        let found = (|| {
            let messages = entry.header.messages_part(&entry.payload).map_err(bad)?;
            let skip = from.0 - entry.offset.0;
            let skipped = batch::bytes_of_messages(header.framing, &messages[entry.at..], skip)
                .ok_or_else(short)?;
            let start = entry.at + skipped;
            let most = header.end().min(limit).0 - from.0;
            let rest = &messages[start..];
            let (fate, count, bytes) = if picky {
                measure_run(rest, most, max_bytes, select)
            } else {
                let (count, bytes) = measure(header.framing, rest, most, max_bytes);
                (Fate::Ours, count, bytes)
            };
            if count == 0 {
                return Err(short());
            }
            let part = if fate == Fate::Ours { rest[..bytes].to_vec() } else { Vec::new() };
            (entry.offset, entry.at) = (Offset(from.0 + count), start + bytes);
            Ok((fate, part, count))
        })();
        let (fate, part, count) = found
            .map_err(|what: String| self.damaged(target.number, position, Some(from), what))?;
        let end = entry.offset;
        if end < header.end() {
            self.options.cuts.keep(entry);
        }
        if fate != Fate::Ours {
            return Ok(CutRun { fate, bytes: part, end });
        }
        let cut = BatchHeader {
            payload_bytes: part.len() as u32,
            flags: header.flags & !(flags::ANNEX | flags::SELECTIVE),
            offset: from,
            count: count as u32,
            payload_crc: batch::checksum(&part),
            ..header
        };
        let mut bytes = cut.encode(&Place::cut(self.id())).to_vec();
        bytes.extend_from_slice(&part);
        Ok(CutRun { fate, bytes, end })
    }

    /// What becomes of a large message, of which `first` is the first part.
    pub(super) fn chain_fate(
        &mut self,
        target: &Target<S>,
        position: u64,
        first: BatchHeader,
        select: &Select<'_>,
    ) -> Result<Fate, LogError> {
        if !first.has(flags::SELECTIVE) || select.is_everything() {
            return Ok(Fate::Ours);
        }
        let place = self.place(target.number, position);
        let entry = self.cut_entry(target, place, first)?;
        // The first part of a chain holds all attributes.
        match Record::beginning(&entry.payload) {
            Some(record) => Ok(select.fate(&record)),
            None => {
                let what = "a large message without its attributes".to_owned();
                Err(self.damaged(target.number, position, Some(first.offset), what))
            }
        }
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

/// How many messages from the first on share its fate, and their bytes; of those that are to be
/// delivered, as [`measure`].
fn measure_run(
    messages: &[u8],
    wanted: u64,
    max_bytes: usize,
    select: &Select<'_>,
) -> (Fate, u64, usize) {
    let (mut fate, mut count, mut rest) = (Fate::Ours, 0, messages);
    while count < wanted {
        let Ok((record, behind)) = Record::decode(rest) else { break };
        let its = select.fate(&record);
        let full = fate == Fate::Ours && messages.len() - behind.len() > max_bytes;
        if count > 0 && (its != fate || full) {
            break;
        }
        (fate, count, rest) = (its, count + 1, behind);
    }
    (fate, count, messages.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::tags;

    #[test]
    fn measure_takes_at_least_one_message() {
        let lines = Framing::Delimited(b'\n');
        assert_eq!(measure(lines, b"aaaa\nb\nc\n", 3, 1), (1, 5));
        assert_eq!(measure(lines, b"aaaa\nb\nc\n", 3, 8), (2, 7));
        assert_eq!(measure(lines, b"aaaa\nb\nc\n", 2, 100), (2, 7));
    }

    #[test]
    fn runs_end_where_the_fate_changes() {
        let mut bytes = Vec::new();
        let group = Name::new("g").unwrap();
        let mut push = |tag: u8, value: &[u8]| {
            let mut attributes = Vec::new();
            batch::push_attribute(&mut attributes, tag, value);
            Record { attribute_bytes: &attributes, body: b"x" }.encode(&mut bytes);
        };
        let at = |n: u64| n.to_le_bytes();
        push(tags::EXPIRES, &at(5));
        push(tags::EXPIRES, &at(9));
        push(tags::EXPIRES, &at(10));
        push(tags::KEY, b"k");
        push(tags::ONLY_GROUP, b"h");
        push(tags::ONLY_GROUP, b"g");
        let select = Select { wall: Some(WallTime(9)), group: Some(&group) };
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let (fate, count, length) = measure_run(rest, 10, 1000, &select);
            found.push((fate, count));
            rest = &rest[length..];
        }
        use Fate::{Expired, NotOurs, Ours};
        assert_eq!(found, [(Expired, 2), (Ours, 2), (NotOurs, 1), (Ours, 1)]);
        assert_eq!(measure_run(&bytes, 1, 0, &select).1, 1);
        let (fate, count, length) = measure_run(&bytes, 10, 1000, &Select::default());
        assert_eq!((fate, count, length), (Ours, 6, bytes.len()));
    }
}
