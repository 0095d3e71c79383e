//! The directory of a pipe's state on the simulated disk: below it are the production's own steps.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mq::log::storage::{Storage, StorageFile};
use mq::pipe::state::{Files, Kind, Locked};
use mq::units::{Bytes, Position};

use crate::disk::SimDisk;

/// Where it is.
pub const STATE_DIR: &str = "state";

#[derive(Clone, Debug)]
pub struct SimFiles(pub Arc<SimDisk>);

impl SimFiles {
    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        self.0.is_dir(path)
    }
}

impl Files for SimFiles {
    type Lock = ();

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.is_dir(path).map(|_| path.to_owned())
    }

    fn make_dir(&self, path: &Path, _private: bool) -> io::Result<()> {
        self.0.create_dir(path)
    }

    /// The instance before it has ended.
    fn lock(
        &self,
        _dir: &Path,
        _patience: Duration,
        _interrupt: Option<BorrowedFd<'_>>,
    ) -> io::Result<Locked<()>> {
        Ok(Locked::Taken(()))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(OsString, Kind)>> {
        let entry = |name: OsString| Ok((name.clone(), self.kind(&dir.join(name))?));
        self.0.list(dir)?.into_iter().map(entry).collect()
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        Ok(if self.is_dir(path)? { Kind::Directory } else { Kind::File })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.0.open(path)?;
        let mut bytes = vec![0; file.len()?.0 as usize];
        let read = file.read_at(&mut bytes, Position(0))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = match self.0.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.0.create(path)?,
            other => other?,
        };
        file.truncate(Bytes(0))?;
        file.write_all_at(&[bytes], Position(0))
    }

    fn copy_file(&self, from: &Path, to: &Path) -> io::Result<()> {
        let bytes = self.read(from)?;
        self.0.create(to)?.write_all_at(&[&bytes], Position(0))
    }

    fn copy_link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn copy_mode(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        if path == Path::new("") || path == Path::new(".") {
            return self.0.sync_dir(Path::new(""));
        }
        if self.is_dir(path)? { self.0.sync_dir(path) } else { self.0.open(path)?.sync() }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }

    fn remove_all(&self, path: &Path) -> io::Result<()> {
        for (name, kind) in self.list(path)? {
            match kind {
                Kind::Directory => self.remove_all(&path.join(name))?,
                _ => self.0.remove_file(&path.join(name))?,
            }
        }
        self.0.remove_dir(path)
    }

    fn open_up(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Links are for people.
    fn link(&self, _target: &str, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0.draw().to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use mq::pipe::state::{Claim, StateDir, StateError, StateMark};
    use mq::units::{Epoch, QueueId};

    use super::*;
    use crate::disk::Fault;

    /// A pipe with state, and what its destination has in its last commit.
    struct Bench {
        files: SimFiles,
        epoch: u32,
        mark: Option<StateMark>,
        content: String,
    }

    impl Bench {
        /// One instance of the pipe begins.
        fn open(&mut self) -> Result<StateDir<SimFiles>, StateError> {
            self.epoch += 1;
            let claim = Claim {
                pipe: "p",
                destination: QueueId::default(),
                parts: 1,
                epoch: Epoch(self.epoch),
                mark: self.mark.as_ref(),
                is_reset: false,
            };
            StateDir::open_on(self.files.clone(), Path::new(STATE_DIR), &claim, None)
        }

        /// An instance that commits before a filter has run.
        fn commit_without_a_run(&mut self) -> Result<(), StateError> {
            let mark = self.open()?.seal()?;
            self.mark = Some(mark);
            Ok(())
        }

        /// One instance: its filter adds a letter, and a commit says so.
        fn live(&mut self) -> Result<(), StateError> {
            let mut dir = self.open()?;
            let path = dir.begin(0)?.join("letters");
            let failed = |error| StateError::Io { doing: "work on", path: path.clone(), error };
            let before = match self.files.read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                read => String::from_utf8(read.map_err(failed)?).expect("text"),
            };
            assert_eq!(before, self.content, "G14: the state of the last commit");
            let after = format!("{before}{}", self.epoch % 10);
            self.files.write(&path, after.as_bytes()).map_err(failed)?;
            dir.keep(0)?;
            let mark = dir.seal()?;
            (self.mark, self.content) = (Some(mark.clone()), after);
            dir.committed(&mark)
        }
    }

    /// G14: whatever call fails, or is the last one before a kill, and whatever a loss of power takes
    /// then or after the next instance, the state is that of the last commit. A directory that an
    /// instance had made and not synced was lost with all later states; and so was the file that says
    /// whose it is, where the next instance found it and committed before any filter had run.
    #[test]
    fn state_of_the_last_commit_is_there_after_any_end() {
        for (fault, first, power) in [
            (Fault::Kill, 0, false),
            (Fault::Kill, 0, true),
            (Fault::Kill, 2, false),
            (Fault::Kill, 2, true),
            (Fault::Eio, 0, false),
            (Fault::Eio, 2, true),
        ] {
            for call in 1.. {
                let disk = Arc::new(SimDisk::new(call));
                let (mark, content) = (None, String::new());
                let mut bench = Bench { files: SimFiles(disk.clone()), epoch: 0, mark, content };
                (0..first).for_each(|_| bench.live().expect("nothing is in its way"));
                disk.fail_in(call, fault);
                let lived = bench.live();
                let happened = disk.faulted().is_some();
                assert!(happened || lived.is_ok(), "{lived:?}");
                disk.revive();
                if power {
                    disk.crash();
                }
                if first == 0 {
                    bench.commit_without_a_run().expect("nothing is in its way");
                    disk.crash_choosing(&mut |n| n - 1);
                }
                for n in 0..3 {
                    bench.live().unwrap_or_else(|error| panic!("{fault:?} {call}, {n}: {error}"));
                    // Whatever is not synced is not there.
                    disk.crash_choosing(&mut |n| n - 1);
                }
                if !happened {
                    break;
                }
            }
        }
    }
}
