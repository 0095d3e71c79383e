//! The parcel: the messages that a mover puts into another queue with one append. And taking
//! messages out of what the log has found, verified.
//!
//! Called by the movers; reads only what the caller knows not to wait for the disk.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::batch::{
    BatchError, BatchHeader, Framing, HEADER_BYTES, Place, RECORD_HEADER_BYTES, Record, bodies,
};
use crate::limits;
use crate::log::storage::StorageFile;
use crate::units::{Offset, OffsetRange};

use super::waybill;

/// Bytes of records in one parcel: with the waybill they fit a batch.
const BYTES_MAX: usize = limits::BATCH_PAYLOAD_BYTES_MAX - limits::ANNEX_BYTES_MAX - 4;

/// Messages on their way.
#[derive(Debug, Default)]
pub struct Parcel {
    /// Records, one behind the other.
    pub payload: Vec<u8>,
    /// How many.
    pub count: u32,
    /// Which messages of the source.
    pub ranges: Vec<OffsetRange>,
}

/// What became of a message that was to go into a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    /// It is in.
    In,
    /// It goes with the next one.
    Full,
    /// It goes by itself, as a large message.
    TooLarge,
}

impl Parcel {
    /// Puts a message in, if there is room.
    pub fn push(&mut self, offset: Offset, attributes: &[u8], body: &[u8]) -> Packed {
        let bytes = RECORD_HEADER_BYTES + attributes.len() + body.len();
        if bytes > BYTES_MAX {
            return if self.count == 0 { Packed::TooLarge } else { Packed::Full };
        }
        let follows = self.ranges.last().is_some_and(|last| last.end == offset);
        let room = self.count == 0 || self.payload.len() + bytes <= limits::DELIVER_BYTES;
        if !room || (!follows && self.ranges.len() >= waybill::RANGES_MAX) {
            return Packed::Full;
        }
        Record { attribute_bytes: attributes, body }.encode(&mut self.payload);
        self.count += 1;
        let end = Offset(offset.0 + 1);
        match self.ranges.last_mut() {
            Some(last) if follows => last.end = end,
            _ => self.ranges.push(OffsetRange::new(offset, end)),
        }
        Packed::In
    }
}

/// Why messages could not be taken out of what was found.
#[derive(Debug)]
pub enum Unreadable {
    /// What the system says.
    Io(std::io::Error),
    /// The batch at this place is not what was written.
    Damaged(Place, BatchError),
}

/// A message in hand: where it stands, its attributes, its body.
pub type Visit<'a> = &'a mut dyn FnMut(Offset, &[u8], &[u8]) -> ControlFlow<()>;

/// Reads `bytes` at `place` and visits each message in them.
///
/// # Errors
/// See [`Unreadable`].
pub fn visit_file<F: StorageFile>(
    file: &Arc<F>,
    place: Place,
    bytes: u64,
    visit: Visit<'_>,
) -> Result<(), Unreadable> {
    let mut buffer = vec![0u8; bytes as usize];
    let read = file.read_at(&mut buffer, place.position).map_err(Unreadable::Io)?;
    visit_batches(&buffer[..read], place, visit)
}

/// Visits each message of the batches in `bytes`, which stand at `place`.
///
/// # Errors
/// [`Unreadable::Damaged`].
pub fn visit_batches(bytes: &[u8], place: Place, visit: Visit<'_>) -> Result<(), Unreadable> {
    let mut place = place;
    let mut rest = bytes;
    while !rest.is_empty() {
        let damaged = |error| Unreadable::Damaged(place, error);
        let (header, payload, behind) = batch_at(rest, &place).map_err(damaged)?;
        let messages = header.messages_part(payload).map_err(damaged)?;
        if visit_messages(&header, messages, visit).is_break() {
            return Ok(());
        }
        place = place.advanced(header.length());
        rest = behind;
    }
    Ok(())
}

/// Takes a verified batch off `bytes`: its header, its payload, and what is behind it.
fn batch_at<'a>(
    bytes: &'a [u8],
    place: &Place,
) -> Result<(BatchHeader, &'a [u8], &'a [u8]), BatchError> {
    let header = BatchHeader::decode(bytes, place)?;
    let rest = &bytes[HEADER_BYTES..];
    let (payload, behind) =
        rest.split_at_checked(header.payload_bytes as usize).ok_or(BatchError::Short)?;
    header.verify(payload)?;
    Ok((header, payload, behind))
}

fn visit_messages(header: &BatchHeader, messages: &[u8], visit: Visit<'_>) -> ControlFlow<()> {
    let mut offset = header.offset;
    if header.framing == Framing::Records {
        let mut rest = messages;
        while let Ok((record, behind)) = Record::decode(rest) {
            visit(offset, record.attribute_bytes, record.body)?;
            (rest, offset) = (behind, Offset(offset.0 + 1));
        }
        return ControlFlow::Continue(());
    }
    for body in bodies(header.framing, messages) {
        visit(offset, &[], body)?;
        offset = Offset(offset.0 + 1);
    }
    ControlFlow::Continue(())
}

/// The attributes of a large message, by its first part.
///
/// # Errors
/// See [`Unreadable`].
pub fn attributes_of_chain<F: StorageFile>(
    file: &Arc<F>,
    (place, bytes): (Place, u64),
) -> Result<Vec<u8>, Unreadable> {
    let mut buffer = vec![0u8; bytes as usize];
    let read = file.read_at(&mut buffer, place.position).map_err(Unreadable::Io)?;
    let damaged = |error| Unreadable::Damaged(place, error);
    let (_, payload, _) = batch_at(&buffer[..read], &place).map_err(damaged)?;
    let short = || damaged(BatchError::Messages("a record runs over the end"));
    let record = Record::beginning(payload).ok_or_else(short)?;
    Ok(record.attribute_bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parcel_holds_what_fits_a_batch_and_names_it_in_ranges() {
        let mut parcel = Parcel::default();
        assert_eq!(parcel.push(Offset(3), b"", b"a"), Packed::In);
        assert_eq!(parcel.push(Offset(4), b"", b"b"), Packed::In);
        assert_eq!(parcel.push(Offset(9), b"", b"c"), Packed::In);
        let large = vec![0u8; BYTES_MAX];
        assert_eq!(parcel.push(Offset(10), b"", &large), Packed::Full);
        let range = |start, end| OffsetRange::new(Offset(start), Offset(end));
        assert_eq!(parcel.ranges, [range(3, 5), range(9, 10)]);
        assert_eq!(Parcel::default().push(Offset(10), b"", &large), Packed::TooLarge);
        let fits = &large[..BYTES_MAX - RECORD_HEADER_BYTES];
        assert_eq!(Parcel::default().push(Offset(10), b"", fits), Packed::In);
        let mut scattered = Parcel::default();
        for n in 0..waybill::RANGES_MAX as u64 {
            assert_eq!(scattered.push(Offset(2 * n), b"", b""), Packed::In);
        }
        let end = 2 * waybill::RANGES_MAX as u64;
        assert_eq!(scattered.push(Offset(end), b"", b""), Packed::Full);
        assert_eq!(scattered.push(Offset(end - 1), b"", b""), Packed::In);
    }
}
