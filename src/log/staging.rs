//! Large messages on their way in: parts are collected in a file, not in memory, until the
//! message is complete. And the question whether there is room, which they and the log ask.
//!
//! The file has no name in the directory, so a crash leaves nothing. Called by the server for
//! messages over [`limits::BATCH_PAYLOAD_BYTES_MAX`].

use std::sync::Arc;

use super::error::{AppendError, is_full};
use super::files;
use super::log::{Log, Options};
use super::storage::{Storage, StorageFile};
use crate::batch::Record;
use crate::limits;
use crate::units::{Bytes, Position};

/// A large message that is not complete yet. Dropping it gives back its space.
pub struct Staging<S: Storage> {
    storage: Arc<S>,
    options: Options,
    file: Arc<S::File>,
    bytes: u64,
    allocated: u64,
    attributes: Vec<u8>,
    annex: Option<Vec<u8>>,
}

impl<S: Storage> Log<S> {
    /// Begins to stage a large message.
    ///
    /// # Errors
    /// [`AppendError::Full`], [`AppendError::Failed`] with what the system says (the log goes
    /// on).
    pub fn stage_begin(&mut self) -> Result<Staging<S>, AppendError> {
        let number = self.chores.next_staging();
        let path = self.dir.join(format!("{}{number}", files::STAGING));
        let made = files::create_anew(&*self.storage, &path).and_then(|file| {
            self.storage.remove_file(&path)?;
            Ok(file)
        });
        let file = made.map_err(|error| refused(&*self.storage, &self.options, &error))?;
        Ok(Staging {
            storage: self.storage.clone(),
            options: self.options.clone(),
            file: Arc::new(file),
            bytes: 0,
            allocated: 0,
            attributes: Vec::new(),
            annex: None,
        })
    }
}

impl<S: Storage> Staging<S> {
    /// Adds the next part. The first one holds all attributes.
    ///
    /// # Errors
    /// [`AppendError::Full`] (the part can be pushed again), [`AppendError::Failed`].
    pub fn push(&mut self, part: &[u8]) -> Result<(), AppendError> {
        let need = self.bytes + part.len() as u64;
        if need > self.allocated {
            let step = (need - self.allocated).next_multiple_of(limits::ALLOCATE_STEP_BYTES_MIN);
            check_space(&*self.storage, &self.options, step)?;
            self.file
                .allocate(Position(self.allocated), Bytes(step))
                .map_err(|error| refused(&*self.storage, &self.options, &error))?;
            self.allocated += step;
        }
        self.file
            .write_all_at(&[part], Position(self.bytes))
            .map_err(|error| refused(&*self.storage, &self.options, &error))?;
        if self.bytes == 0 {
            let record = Record::beginning(part);
            self.attributes = record.map_or(&[][..], |record| record.attribute_bytes).to_vec();
        }
        self.bytes = need;
        Ok(())
    }

    /// Bytes staged so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The message's attributes, once the first part is there.
    #[must_use]
    pub fn attributes(&self) -> &[u8] {
        &self.attributes
    }

    /// What its producer says with it, at most [`limits::LARGE_ANNEX_BYTES_MAX`]; only for a
    /// message that does not fit one batch.
    pub fn set_annex(&mut self, annex: &[u8]) {
        assert!(annex.len() <= limits::LARGE_ANNEX_BYTES_MAX, "the annex is too large");
        self.annex = Some(annex.to_vec());
    }

    /// What its producer says with it, if anything.
    #[must_use]
    pub fn annex(&self) -> Option<&[u8]> {
        self.annex.as_deref()
    }

    pub(super) fn file(&self) -> Arc<S::File> {
        self.file.clone()
    }
}

fn refused<S: Storage>(storage: &S, options: &Options, error: &std::io::Error) -> AppendError {
    let reason = format!("staging a large message: {error}");
    if is_full(error) {
        let (available, reserve) = space(storage, options);
        return AppendError::Full { available, reserve, reason };
    }
    AppendError::Failed(reason)
}

/// What is free, and what of it sending leaves alone.
pub(super) fn space<S: Storage>(storage: &S, options: &Options) -> (Bytes, Bytes) {
    match storage.space() {
        Ok(space) => {
            let share = (space.total.0 / 20).min(limits::DISK_RESERVE_BYTES);
            (space.available, options.reserve.unwrap_or(Bytes(share)))
        }
        // What cannot be told is left to the reservation itself, which fails when there is none.
        Err(_) => (Bytes(u64::MAX), Bytes(0)),
    }
}

/// Refuses a reservation of `bytes` that would touch the reserve.
pub(super) fn check_space<S: Storage>(
    storage: &S,
    options: &Options,
    bytes: u64,
) -> Result<(), AppendError> {
    let (available, reserve) = space(storage, options);
    if available.0.saturating_sub(bytes) < reserve.0 || available.0 < bytes {
        let reason = "the reserve of free space is kept for reading and acking".to_owned();
        return Err(AppendError::Full { available, reserve, reason });
    }
    Ok(())
}
