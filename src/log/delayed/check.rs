//! Verifying the runs of a queue's delayed messages, for `mq-admin check`.
//!
//! Reads every entry and every record; changes nothing. Called by the check of the queue.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::error::{Damage, LogError};
use super::super::storage::Storage;
use super::jobs::run_number;
use super::run::{self, Bad, HEADER_BYTES, Reader};
use crate::units::{Position, QueueId};

/// Checks each run in `dir`. `find` is told what is wrong, `count` of bytes and messages read.
pub(in crate::log) fn check_runs<S: Storage>(
    storage: &S,
    dir: &Path,
    names: &[String],
    queue: QueueId,
    find: &mut dyn FnMut(Damage),
    count: &mut dyn FnMut(u64, u64),
) {
    let mut numbers: Vec<(u64, PathBuf)> =
        names.iter().filter_map(|name| Some((run_number(name)?, dir.join(name)))).collect();
    numbers.sort_unstable();
    for (number, path) in numbers {
        let file = match storage.open(&path) {
            Ok(file) => Arc::new(file),
            // It was merged or used up since the check began; a run that is missed is found
            // missing when the queue is opened.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                find(damage(&path, None, &format!("cannot be read: {error}")));
                continue;
            }
        };
        let extent = match run::open(&*file, queue, number, &path) {
            Ok(extent) => extent,
            Err(LogError::Corrupt(damage)) => {
                find(damage);
                continue;
            }
            Err(error) => {
                find(damage(&path, None, &error.to_string()));
                continue;
            }
        };
        let from = (0, HEADER_BYTES);
        let mut reader = Reader::new(file, queue, number, extent, from);
        let mut record = Vec::new();
        let mut last = None;
        loop {
            record.clear();
            let head = match reader.head() {
                Ok(None) => break,
                Ok(Some(head)) => head,
                Err(bad) => {
                    find(bad_damage(&path, &bad));
                    break;
                }
            };
            if last.is_some_and(|last| last >= head.due) {
                find(damage(&path, Some(reader.position), "an entry is out of order"));
            }
            last = Some(head.due);
            if let Err(bad) = reader.take(&mut record) {
                find(bad_damage(&path, &bad));
                break;
            }
            count(record.len() as u64, 1);
        }
    }
}

fn bad_damage(path: &Path, bad: &Bad) -> Damage {
    match bad {
        Bad::Io(error) => damage(path, None, &format!("cannot be read: {error}")),
        Bad::Damage { position, what } => damage(path, Some(*position), what),
    }
}

fn damage(path: &Path, position: Option<u64>, what: &str) -> Damage {
    let position = position.map(Position);
    Damage { file: path.to_owned(), position, offset: None, what: what.to_owned() }
}
