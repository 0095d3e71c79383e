//! The spool: the bytes of messages in open windows, until these close.
//!
//! A cache in an unnamed file: never synced, gone with the process. After a restart the same
//! messages are read from the source again. The file lies in `$TMPDIR`, else in /var/tmp, which is
//! on a disk as a rule. What is not needed any more is given back to the file system as a hole.
//!
//! A window's messages are put together in a file of their own, which is its filter's standard
//! input; so a window may be larger than memory, and nothing has to be fed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::window::Members;
use crate::limits;

/// Where the spool lies, unless `TMPDIR` says otherwise.
const PLACE: &str = "/var/tmp";

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} for the messages of open windows in {}: {error}", dir.display())]
pub struct SpoolError {
    doing: &'static str,
    dir: PathBuf,
    #[source]
    error: io::Error,
}

/// See the module's page.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    file: File,
    /// Where the next bytes go.
    end: u64,
    /// Not written yet; they belong in front of `end`.
    pending: Vec<u8>,
    /// Everything before this has been given back.
    given_back: u64,
}

impl Spool {
    /// An empty one.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn new() -> Result<Spool, SpoolError> {
        let dir = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
        Spool::below(&dir.map_or_else(|| PathBuf::from(PLACE), PathBuf::from))
    }

    fn below(dir: &Path) -> Result<Spool, SpoolError> {
        let failed = |error| SpoolError { doing: "make a file", dir: dir.to_owned(), error };
        let file = tempfile::tempfile_in(dir).map_err(failed)?;
        Ok(Spool { dir: dir.to_owned(), file, end: 0, pending: Vec::new(), given_back: 0 })
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> SpoolError {
        let dir = self.dir.clone();
        move |error| SpoolError { doing, dir, error }
    }

    /// Keeps some bytes, and says where.
    ///
    /// # Errors
    /// The disk is full, or the like.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Range<u64>, SpoolError> {
        if self.pending.len() + bytes.len() > limits::SPOOL_BUFFER_BYTES {
            self.flush()?;
        }
        let start = self.end;
        self.end += bytes.len() as u64;
        if bytes.len() > limits::SPOOL_BUFFER_BYTES {
            self.file.write_all_at(bytes, start).map_err(self.failed("write"))?;
        } else {
            self.pending.extend_from_slice(bytes);
        }
        Ok(start..self.end)
    }

    fn flush(&mut self) -> Result<(), SpoolError> {
        let at = self.end - self.pending.len() as u64;
        self.file.write_all_at(&self.pending, at).map_err(self.failed("write"))?;
        self.pending.clear();
        Ok(())
    }

    /// The bytes of a window's messages, one behind the other, as a file that is read from its
    /// beginning.
    ///
    /// # Errors
    /// The disk is full, or the like.
    pub fn gather(&mut self, members: &Members) -> Result<OwnedFd, SpoolError> {
        self.flush()?;
        let file = tempfile::tempfile_in(&self.dir).map_err(self.failed("make a file"))?;
        let mut buffer = Vec::new();
        let mut written = 0;
        for run in members.runs() {
            let mut place = run.place.clone();
            while place.start < place.end {
                let room = (limits::SPOOL_BUFFER_BYTES - buffer.len()) as u64;
                let taken = room.min(place.end - place.start);
                let at = buffer.len();
                buffer.resize(at + taken as usize, 0);
                self.file
                    .read_exact_at(&mut buffer[at..], place.start)
                    .map_err(self.failed("read"))?;
                place.start += taken;
                if buffer.len() == limits::SPOOL_BUFFER_BYTES {
                    file.write_all_at(&buffer, written).map_err(self.failed("write"))?;
                    written += buffer.len() as u64;
                    buffer.clear();
                }
            }
        }
        file.write_all_at(&buffer, written).map_err(self.failed("write"))?;
        Ok(file.into())
    }

    /// Nothing before this place will be asked for again.
    pub fn forget_below(&mut self, place: u64) {
        let upto = place.min(self.end - self.pending.len() as u64);
        if upto < self.given_back + limits::SPOOL_GIVE_BACK_BYTES {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let length = upto - self.given_back;
        // Where that cannot be done, the file stays as large as it became.
        let _ = rustix::fs::fallocate(&self.file, flags, self.given_back, length);
        self.given_back = upto;
    }

    /// Where the next bytes will be kept.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::units::Offset;

    fn read(file: OwnedFd) -> Vec<u8> {
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes).expect("read");
        bytes
    }

    #[test]
    fn a_window_gets_its_messages_in_order() {
        let mut spool = Spool::new().expect("a place");
        let large = vec![b'x'; 3 * limits::SPOOL_BUFFER_BYTES + 17];
        let texts: [&[u8]; 5] = [b"a\n", b"bb\n", &large, b"\n", b"ccc\n"];
        let places = texts.map(|text| spool.push(text).expect("kept"));
        for wanted in [&[0usize, 1, 2, 3, 4][..], &[1, 4], &[2], &[0, 2, 3], &[]] {
            let mut members = Members::default();
            for n in wanted {
                members.push(Offset(*n as u64), places[*n].clone());
            }
            let expected: Vec<u8> = wanted.iter().flat_map(|n| texts[*n]).copied().collect();
            assert!(read(spool.gather(&members).expect("gathered")) == expected, "{wanted:?}");
        }
    }

    #[test]
    fn what_is_forgotten_takes_no_room() {
        let mut spool = Spool::new().expect("a place");
        let text = vec![b'x'; limits::SPOOL_BUFFER_BYTES];
        let mut last = 0..0;
        for n in 0..64u64 {
            last = spool.push(&text).expect("kept");
            if n >= 4 {
                spool.forget_below(last.start - 4 * text.len() as u64);
            }
        }
        let blocks = spool.file.metadata().expect("there").blocks() * 512;
        let most = limits::SPOOL_GIVE_BACK_BYTES + 8 * text.len() as u64;
        assert!(blocks <= most, "{blocks} bytes of {}", spool.end());
        let mut members = Members::default();
        members.push(Offset(1), last);
        assert_eq!(read(spool.gather(&members).expect("gathered")), text);
    }

    #[test]
    fn a_place_that_is_none_is_named() {
        let error = Spool::below(Path::new("/nowhere")).expect_err("no such place").to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
