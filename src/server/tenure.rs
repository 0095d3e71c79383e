//! The record of who served the store last: on which boot, and whether it ended in order. From
//! it recovery knows what may have happened to the files.
//!
//! Reads and writes one small file, `running`, in the store; it knows nothing of queues. Called
//! when a server starts and when it ends. The simulator keeps this record itself.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::log::Boot;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Bytes of the record: less than any disk's sector.
const RECORD_BYTES: usize = 256;

#[derive(Debug, Serialize, Deserialize)]
struct Running {
    boot: String,
    pid: u32,
    clean: bool,
}

/// The time in which this server holds the store.
#[derive(Debug)]
pub struct Tenure {
    root: PathBuf,
    boot: String,
    before: Boot,
}

impl Tenure {
    /// Reads how the last server ended, and records durably that the store is in use. The store
    /// must be locked. The boot stays that of the last server until [`Tenure::recovered`]: a
    /// start that does not get through recovery must not make the next one believe that what is
    /// in the files was written on this boot.
    ///
    /// # Errors
    /// The file cannot be written or synced.
    pub fn begin(root: &Path) -> io::Result<Tenure> {
        // Without a boot id every start counts as one after a reboot: the careful way.
        let boot =
            std::fs::read_to_string(BOOT_ID).map(|s| s.trim().to_owned()).unwrap_or_default();
        let last = match std::fs::read(root.join("running")) {
            // Unreadable after a crash while it was made: assume the worst.
            Ok(bytes) => serde_json::from_slice::<Running>(&bytes).ok(),
            // A store without the file has never been served, or was put there by hand.
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let last = last.unwrap_or(Running { boot: String::new(), pid: 0, clean: false });
        let same_boot = !boot.is_empty() && last.boot == boot;
        let before = Boot { clean: last.clean, same_boot };
        let tenure = Tenure { root: root.to_owned(), boot, before };
        tenure.record(&last.boot, false)?;
        Ok(tenure)
    }

    /// Every log has been opened: from here on all that is written belongs to this boot.
    ///
    /// # Errors
    /// The file cannot be written or synced.
    pub fn recovered(&self) -> io::Result<()> {
        self.record(&self.boot, false)
    }

    /// How the server before ended.
    #[must_use]
    pub fn before(&self) -> Boot {
        self.before
    }

    /// Records durably that everything was synced and closed in order.
    ///
    /// # Errors
    /// The file cannot be written or synced; the next start then takes it for a crash.
    pub fn end(self) -> io::Result<()> {
        self.record(&self.boot, true)
    }

    fn record(&self, boot: &str, clean: bool) -> io::Result<()> {
        let running = Running { boot: boot.to_owned(), pid: std::process::id(), clean };
        let mut bytes = serde_json::to_vec(&running)?;
        assert!(bytes.len() < RECORD_BYTES, "the record of the store fits its place");
        bytes.resize(RECORD_BYTES - 1, b' ');
        bytes.push(b'\n');
        // Over the old one in its place: within one sector, so whole or not at all; and it needs
        // no room, so that a server can start on a full disk.
        let path = self.root.join("running");
        let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        File::open(&self.root)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_orderly_end_counts_as_clean() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Tenure::begin(dir.path()).expect("begins");
        assert!(!first.before().clean && !first.before().same_boot);
        drop(first);
        let unrecovered = Tenure::begin(dir.path()).expect("begins");
        assert!(!unrecovered.before().same_boot, "the first did not get through recovery");
        unrecovered.recovered().expect("records");
        drop(unrecovered);
        let second = Tenure::begin(dir.path()).expect("begins");
        assert!(!second.before().clean && second.before().same_boot);
        second.end().expect("ends");
        let third = Tenure::begin(dir.path()).expect("begins");
        assert!(third.before().clean && third.before().same_boot);
    }

    #[test]
    fn garbage_counts_as_the_worst() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("running"), b"{").expect("writes");
        let tenure = Tenure::begin(dir.path()).expect("begins");
        assert!(!tenure.before().clean && !tenure.before().same_boot);
    }
}
