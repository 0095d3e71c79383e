//! A file as a destination: appended to so that each commit is there once.
//!
//! Beside the file stands its journal, `NAME.mq-pipe`: the newest mark, and how long the file was
//! with it. A commit writes the outputs behind that length and syncs them, and then replaces the
//! journal; so whatever an end left behind the length in the journal is cut off by the next
//! session. The journal is locked while a pipe writes. A file that somebody else moves, replaces,
//! cuts or edits is not written any more: before each commit its name must still lead to it, and
//! then as at a start its last bytes must be those that were written. Used by the [`committer`](super::committer).

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::lock::{self, Locked};
use super::mark::{Mark, MarkError};
use crate::client::wait::Patience;
use crate::limits;

/// Bytes of a journal; a longer one is none.
const JOURNAL_BYTES_MAX: u64 = 1 << 20;

/// Bytes at the end of the file that a journal knows again.
const TAIL_BYTES: u64 = 4096;

/// Why a file cannot be a destination.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// What the system says.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A device, a FIFO, a directory.
    #[error("{} is no regular file, which alone can be appended to exactly once", .0.display())]
    Irregular(PathBuf),
    /// A signal came while another pipe was waited for.
    #[error("interrupted")]
    Interrupted,
    /// Another pipe writes it.
    #[error("another mq-pipe writes to {}", .0.display())]
    Busy(PathBuf),
    /// The journal is not one.
    #[error("{} is no journal of a pipe: {source}", path.display())]
    Journal {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: MarkError,
    },
    /// Its end is not what the last commit wrote.
    #[error("{} was replaced or edited: it does not end as the last commit left it", .0.display())]
    Edited(PathBuf),
    /// The file is not as the last commit left it.
    #[error("{} was cut or removed: it has {found} bytes, and the last commit left {expected}", path.display())]
    Cut {
        /// Which.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// What it was.
        expected: u64,
    },
}

fn doing<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io { doing, path: path.to_owned(), source }
}

#[derive(Serialize, Deserialize)]
struct Journal {
    length: u64,
    /// XXH3 of the last bytes of so much. Absent from a journal that is older than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tail: Option<u64>,
    mark: serde_json::Value,
}

/// See the module's page.
#[derive(Debug)]
pub struct Journalled {
    path: PathBuf,
    journal: PathBuf,
    file: File,
    length: u64,
    /// XXH3 of its last bytes.
    tail: u64,
    mark: Option<Mark>,
    /// Held as long as this is there.
    _lock: File,
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

impl Journalled {
    /// Opens a file, which is made if it is not there. With `reset` what its journal says is
    /// forgotten, and the outputs go behind what the file holds now. Another pipe that has it is
    /// waited for, until `interrupt` is readable.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn open(
        path: &Path,
        reset: bool,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<Journalled, FileError> {
        let journal = beside(path, ".mq-pipe");
        let lock_path = beside(path, ".mq-pipe.lock");
        let open = |path: &Path, makes: bool| {
            let mut options = File::options();
            options.read(true).write(true).create(makes).truncate(false).mode(0o666).open(path)
        };
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(FileError::Irregular(path.to_owned()));
        }
        let held = open(&lock_path, true).map_err(doing("open", &lock_path))?;
        let patience = Patience::lasting(limits::FILE_LOCK_WAIT.to_duration(), interrupt);
        let lock = match lock::take(held, patience).map_err(doing("lock", &lock_path))? {
            Locked::Taken(lock) => lock,
            Locked::Busy => return Err(FileError::Busy(path.to_owned())),
            Locked::Interrupted => return Err(FileError::Interrupted),
        };
        let known = if reset { None } else { read_journal(&journal)? };
        let expected = known.as_ref().map_or(0, |known| known.length);
        let was_there = path.exists();
        let file = match open(path, expected == 0) {
            // An empty one would be in the way of whoever puts it back.
            Err(error) if expected > 0 && error.kind() == io::ErrorKind::NotFound => {
                return Err(FileError::Cut { path: path.to_owned(), found: 0, expected });
            }
            file => file.map_err(doing("open", path))?,
        };
        let found = file.metadata().map_err(doing("look at", path))?.len();
        let (length, mark) = match known {
            None => (found, None),
            Some(_) if found < expected => {
                return Err(FileError::Cut { path: path.to_owned(), found, expected });
            }
            Some(Known { length, tail, mark }) => {
                let ends = tail_of(&file, length).map_err(doing("read", path))?;
                if tail.is_some_and(|tail| tail != ends) {
                    return Err(FileError::Edited(path.to_owned()));
                }
                // What a commit that was broken off has left.
                if found > length {
                    let cut = file.set_len(length).and_then(|()| file.sync_data());
                    cut.map_err(doing("cut", path))?;
                }
                (length, Some(mark))
            }
        };
        // The journal lies beside the name, whatever that is.
        sync_dir(path).map_err(doing("sync the directory of", path))?;
        if path.is_symlink() {
            // The file was just made where the link leads, or it was there before: then we may not be allowed
            // to look there.
            let place = std::fs::canonicalize(path).map_err(doing("find", path))?;
            match sync_dir(&place) {
                Err(error) if was_there && error.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced.map_err(doing("sync the directory of", path))?,
            }
        }
        let tail = tail_of(&file, length).map_err(doing("read", path))?;
        Ok(Journalled { path: path.to_owned(), journal, file, length, tail, mark, _lock: lock })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest mark.
    #[must_use]
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// Appends outputs, and makes `mark` the newest.
    ///
    /// # Errors
    /// What the system says, or that the file is not the one of that name any more; it is then as the
    /// journal says, at the latest once it is opened again.
    pub fn commit(&mut self, outputs: &[Vec<u8>], mark: &Mark) -> io::Result<()> {
        self.check_place()?;
        if tail_of(&self.file, self.length)? != self.tail {
            return Err(io::Error::other("it was edited while the pipe ran"));
        }
        let (length, tail) = self.append(outputs, mark).inspect_err(|_| {
            // On a full disk others need the room. What stays is cut off by the next session.
            let _ = self.file.set_len(self.length);
        })?;
        // From here on nobody knows which journal the next session finds: what it says must be there.
        std::fs::rename(self.new_journal(), &self.journal)?;
        sync_dir(&self.journal)?;
        (self.length, self.tail, self.mark) = (length, tail, Some(mark.clone()));
        Ok(())
    }

    fn new_journal(&self) -> PathBuf {
        beside(&self.journal, ".tmp")
    }

    /// Whether the name still leads to the file, with all that was written.
    fn check_place(&self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        let is_ours = |named: &Metadata| (named.dev(), named.ino()) == (ours.dev(), ours.ino());
        let what = match std::fs::metadata(&self.path) {
            Ok(named) if !is_ours(&named) => "it was replaced while the pipe ran",
            Ok(_) if ours.len() < self.length => "it was cut while the pipe ran",
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "it was moved or removed while the pipe ran"
            }
            Err(error) => return Err(error),
        };
        Err(io::Error::other(what))
    }

    /// Writes the outputs, and then the journal that names them beside the one in force. Both are durable.
    /// How long the file is then, and how it ends.
    fn append(&self, outputs: &[Vec<u8>], mark: &Mark) -> io::Result<(u64, u64)> {
        let mut at = self.length;
        for output in outputs {
            self.file.write_all_at(output, at)?;
            at += output.len() as u64;
        }
        if at > self.length {
            self.file.sync_data()?;
        }
        self.check_place()?;
        let value = serde_json::to_value(mark).map_err(io::Error::other)?;
        let tail = tail_of(&self.file, at)?;
        let bytes = serde_json::to_vec(&Journal { length: at, tail: Some(tail), mark: value })?;
        let mut file = File::create(self.new_journal())?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        Ok((at, tail))
    }
}

/// XXH3 of the last bytes in front of `end`.
fn tail_of(file: &File, end: u64) -> io::Result<u64> {
    let start = end.saturating_sub(TAIL_BYTES);
    let mut bytes = vec![0; (end - start) as usize];
    file.read_exact_at(&mut bytes, start)?;
    Ok(xxh3_64(&bytes))
}

/// What a journal says.
struct Known {
    length: u64,
    tail: Option<u64>,
    mark: Mark,
}

fn read_journal(path: &Path) -> Result<Option<Known>, FileError> {
    let length = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(doing("look at", path))?.len(),
    };
    let none = |source| FileError::Journal { path: path.to_owned(), source };
    if length > JOURNAL_BYTES_MAX {
        return Err(none(MarkError::Foreign));
    }
    let bytes = std::fs::read(path).map_err(doing("read", path))?;
    let journal: Journal = serde_json::from_slice(&bytes).map_err(|_| none(MarkError::Foreign))?;
    let mark = Mark::decode(journal.mark.to_string().as_bytes()).map_err(none)?;
    Ok(Some(Known { length: journal.length, tail: journal.tail, mark }))
}

fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_committed_is_cut_off() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out");
        let mark = Mark::new("p", "q");
        let mut file = Journalled::open(&path, false, None).expect("opens");
        assert_eq!(file.mark(), None);
        file.commit(&[b"a\n".to_vec(), b"b\n".to_vec()], &mark).expect("commits");
        assert!(matches!(Journalled::open(&path, false, None), Err(FileError::Busy(_))));
        drop(file);
        std::fs::write(&path, b"a\nb\nhalf a comm").expect("writes");
        let file = Journalled::open(&path, false, None).expect("opens");
        assert_eq!(file.mark(), Some(&mark));
        assert_eq!(std::fs::read(&path).expect("reads"), b"a\nb\n");
        drop(file);
        std::fs::write(&path, b"a\n").expect("writes");
        let cut = Journalled::open(&path, false, None).expect_err("it was cut");
        assert!(matches!(cut, FileError::Cut { found: 2, expected: 4, .. }));
        let file = Journalled::open(&path, true, None).expect("opens");
        assert_eq!((file.length, file.mark()), (2, None));
    }

    /// Once, a pipe went on writing into a file that had no name any more, and let go of what it came
    /// from.
    #[test]
    fn a_file_that_others_change_is_not_written_any_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out");
        let (mark, output) = (Mark::new("p", "q"), [b"a\n".to_vec()]);
        let opened = || {
            let mut file = Journalled::open(&path, true, None).expect("opens");
            file.commit(&output, &mark).expect("commits");
            file
        };
        let rename = || std::fs::rename(&path, dir.path().join("other")).expect("renames");
        let replace = || {
            rename();
            std::fs::write(&path, b"aa\naa\naa\naa\n").expect("writes");
        };
        let cut = || std::fs::write(&path, b"").expect("writes");
        let edit = || std::fs::write(&path, vec![b'x'; 10_000]).expect("writes");
        let changes: [(&dyn Fn(), &str); 4] = [
            (&rename, "moved or removed"),
            (&replace, "replaced"),
            (&cut, "was cut"),
            (&edit, "was edited"),
        ];
        for (change, said) in changes {
            let mut file = opened();
            change();
            let error = file.commit(&output, &mark).expect_err("not there").to_string();
            assert!(error.contains(said), "{error}");
        }
        drop(opened());
        rename();
        let gone = Journalled::open(&path, false, None).expect_err("it is not there");
        assert!(matches!(gone, FileError::Cut { found: 0, .. }) && !path.exists(), "{gone}");
        drop(opened());
        let mut bytes = std::fs::read(&path).expect("reads");
        bytes.insert(0, b'x');
        std::fs::write(&path, &bytes).expect("writes");
        let edited = Journalled::open(&path, false, None).expect_err("it was edited");
        assert!(matches!(edited, FileError::Edited(_)), "{edited}");
        std::fs::write(&path, &bytes[1..]).expect("writes");
        Journalled::open(&path, false, None).expect("as it was");
    }
}
