//! Moving a large message: a job copies its parts into a staging file of the destination, with
//! other attributes in front.
//!
//! Owns what it needs and touches no queue. Run by a helper thread.

use std::sync::Arc;

use crate::batch::{BatchError, BatchHeader, HEADER_BYTES, Place, RECORD_HEADER_BYTES, Record};
use crate::log::storage::{Storage, StorageFile};
use crate::log::{AppendError, Staging};
use crate::units::Name;

use super::letter::{Death, attributes_back, attributes_of_letter};
use super::parcel::Unreadable;

/// What becomes of the attributes.
pub enum Change {
    /// It becomes a dead letter.
    Bury(Death),
    /// It goes back, for this group only if there is one.
    Return(Option<Name>),
}

impl Change {
    /// The attributes as they go on.
    #[must_use]
    pub fn apply(&self, attributes: &[u8]) -> Vec<u8> {
        match self {
            Change::Bury(death) => attributes_of_letter(attributes, death),
            Change::Return(group) => attributes_back(attributes, group.as_ref()),
        }
    }
}

/// See the module's page.
pub struct Copying<S: Storage> {
    /// The segment of the message.
    pub file: Arc<S::File>,
    /// The place and the bytes of each part.
    pub parts: Vec<(Place, u64)>,
    /// What becomes of it.
    pub change: Box<Change>,
    /// Where it goes.
    pub staging: Staging<S>,
}

/// Why a large message could not be copied.
pub enum NotCopied {
    /// The source cannot be read, or is damaged.
    Source(Unreadable),
    /// There is no room, or the disk failed.
    Staging(AppendError),
}

impl<S: Storage> Copying<S> {
    /// Copies; returns the staging with the whole record.
    ///
    /// # Errors
    /// See [`NotCopied`].
    pub fn run(mut self) -> Result<Staging<S>, NotCopied> {
        let mut first = true;
        for (place, bytes) in &self.parts {
            let mut buffer = vec![0u8; *bytes as usize];
            let read = self.file.read_at(&mut buffer, place.position);
            let read = read.map_err(|error| NotCopied::Source(Unreadable::Io(error)))?;
            let damaged = |error| NotCopied::Source(Unreadable::Damaged(*place, error));
            let header = BatchHeader::decode(&buffer[..read], place).map_err(damaged)?;
            let payload = &buffer[HEADER_BYTES..read];
            header.verify(payload).map_err(damaged)?;
            // What another producer said with it does not go with it.
            let payload = header.messages_part(payload).map_err(damaged)?;
            let mut rest = payload;
            if std::mem::take(&mut first) {
                let bad = || damaged(BatchError::Messages("a record runs over the end"));
                let record = Record::beginning(payload).ok_or_else(bad)?;
                let (old, body) = Record::lengths(payload).ok_or_else(bad)?;
                let attributes = self.change.apply(record.attribute_bytes);
                let mut head = (attributes.len() as u32).to_le_bytes().to_vec();
                head.extend_from_slice(&body.to_le_bytes());
                head.extend_from_slice(&attributes);
                self.staging.push(&head).map_err(NotCopied::Staging)?;
                rest = &payload[RECORD_HEADER_BYTES + old as usize..];
            }
            self.staging.push(rest).map_err(NotCopied::Staging)?;
        }
        Ok(self.staging)
    }
}
