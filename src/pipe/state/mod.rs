//! The state directory: what a filter keeps from one run to the next, exactly once.
//!
//! A filter never works on the state itself, but on a private copy. When it has succeeded, the
//! copy is synced, and the commit that carries the filter's output names it; from then on it is
//! the state, and the one before it goes. So whatever dies whenever, the state is the one that
//! belongs to the last commit.
//!
//! ```text
//! begin   copy the newest ─▶ 0.7.13     the filter runs in it ($MQ_STATE)
//! keep    0.7.13 is the newest          abandon: it goes, the one before is the newest still
//! seal    sync it; its name goes into the commit
//!         ── the commit is durable ──
//! committed   0.7.12 goes; `current` leads to 0.7.13
//! ```
//!
//! A name is part, epoch of the instance, and a number of that instance; none is ever used twice,
//! so that a process that a killed instance left behind cannot reach what a later one works on.
//! What no commit names is removed at the next start. The directory is locked while in use, and
//! belongs to one pipe: its file `owner` says to which, and the commit carries the id in it.
//!
//! It knows files and nothing of queues or filters. The run loop calls it, and blocks meanwhile.

mod files;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::units::{Epoch, QueueId};

pub use super::lock::Locked;
pub use files::{Files, Kind, System};

const OWNER: &str = "owner";
const OWNER_NEW: &str = "owner.new";
const CURRENT: &str = "current";

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system says no.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// Something else is in it.
    #[error("{} is not empty, and no state directory of mq-pipe", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to another pipe.
    #[error("{} holds the state of the pipe {pipe}{}", path.display(), other_queue(*is_same_pipe))]
    Other {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        pipe: String,
        /// Whether only the destination is another.
        is_same_pipe: bool,
    },
    /// A signal came while another process was waited for.
    #[error("interrupted")]
    Interrupted,
    /// Another process has it.
    #[error("another mq-pipe works on the state in {}", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// It was made for another number of parts.
    #[error(
        "the state in {} has {had} part(s), one for each filter of -P {had}; with -P {wanted} the \
         keys would not be in the parts that know them", path.display()
    )]
    Parts {
        /// The directory.
        path: PathBuf,
        /// How many it has.
        had: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// What the last commit names is not there.
    #[error("{} does not hold the state that the last commit names ({name})", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
        /// What is named.
        name: String,
    },
    /// The filter has put something else in its place.
    #[error("the filter removed {}, its state, or put something else there", path.display())]
    NoDirectory {
        /// Where it was.
        path: PathBuf,
    },
    /// Too much to be copied for each run.
    #[error(
        "{} holds more than {} files, all of which are copied for each run of the filter",
        path.display(), limits::STATE_ENTRIES_MAX
    )]
    TooMany {
        /// The state.
        path: PathBuf,
    },
    /// The same for directories in directories.
    #[error("directories lie too deep in each other: {}", path.display())]
    TooDeep {
        /// The one that is too deep.
        path: PathBuf,
    },
}

fn other_queue(is_same_pipe: bool) -> &'static str {
    if is_same_pipe { " into another queue of the same name, or one that was removed" } else { "" }
}

impl StateError {
    /// What to do, if there is anything that is right as a rule.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            StateError::Foreign { .. } => Some("--state with a directory of its own".to_owned()),
            StateError::Other { is_same_pipe: true, .. } => {
                Some("another directory, or --reset to throw that state away".to_owned())
            }
            StateError::Other { .. } => Some("another directory".to_owned()),
            StateError::Parts { had, .. } => {
                Some(format!("-P {had}, or --reset to begin anew without state"))
            }
            StateError::Missing { .. } => Some(
                "--state with the directory that has it, or --reset to begin anew without state"
                    .to_owned(),
            ),
            StateError::TooMany { .. } => Some("one file, such as an sqlite3 database".to_owned()),
            StateError::NoDirectory { .. } => Some(
                "a filter that changes what is in $MQ_STATE, not the directory itself".to_owned(),
            ),
            StateError::Io { .. }
            | StateError::Busy { .. }
            | StateError::Interrupted
            | StateError::TooDeep { .. } => None,
        }
    }

    fn io<'a>(
        doing: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> StateError + use<'a> {
        move |error| StateError::Io { doing, path: path.to_owned(), error }
    }
}

/// The name of the state of one part, unique in its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Of the instance that made it.
    pub epoch: Epoch,
    /// Counted by that instance from 1.
    pub number: u64,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let name = text.split_once('.').and_then(|(epoch, number)| {
            Some(Name { epoch: Epoch(epoch.parse().ok()?), number: number.parse().ok()? })
        });
        name.filter(|name| name.to_string() == text).ok_or(format!("{text:?} names no state"))
    }
}

impl Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a commit says of the state. A part that no filter ran for yet has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMark {
    /// The directory's.
    pub id: uuid::Uuid,
    /// The state of each part.
    pub parts: Vec<Option<Name>>,
}

/// Whose a state directory is, in its file `owner`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    id: uuid::Uuid,
    pipe: String,
    destination: QueueId,
    parts: usize,
}

/// For whom a state directory is opened.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The name of the pipe.
    pub pipe: &'a str,
    /// The incarnation of its destination.
    pub destination: QueueId,
    /// How many filters run at once, each with its own part.
    pub parts: usize,
    /// Of this instance of the pipe.
    pub epoch: Epoch,
    /// What the last commit says, if there was one with state.
    pub mark: Option<&'a StateMark>,
    /// Whether to throw away what there is.
    pub is_reset: bool,
}

/// The states of one part.
#[derive(Debug, Default)]
struct Part {
    /// What the last commit names.
    committed: Option<Name>,
    /// Behind it: what later commits that are not durable yet name, the oldest first.
    sealed: Vec<Name>,
    /// Kept since the last seal.
    kept: Option<Name>,
    /// A filter works on it.
    working: Option<Name>,
}

impl Part {
    fn newest(&self) -> Option<Name> {
        self.kept.or(self.sealed.last().copied()).or(self.committed)
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct StateDir<F: Files = System> {
    files: F,
    dir: PathBuf,
    id: uuid::Uuid,
    epoch: Epoch,
    made: u64,
    parts: Vec<Part>,
    /// Held open for its lock.
    _lock: F::Lock,
}

impl StateDir {
    /// Opens the directory, or makes it, and clears away what no commit names. Another pipe that
    /// has it is waited for, until `interrupt` is readable.
    ///
    /// # Errors
    /// It is another's, not what the last commit says, or the system refuses.
    pub fn open(
        dir: &Path,
        claim: &Claim<'_>,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<StateDir, StateError> {
        StateDir::open_on(System, dir, claim, interrupt)
    }
}

impl<F: Files> StateDir<F> {
    /// The same on any file system.
    ///
    /// # Errors
    /// As for [`open`](StateDir::open).
    pub fn open_on(
        files: F,
        dir: &Path,
        claim: &Claim<'_>,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<StateDir<F>, StateError> {
        make_dir(&files, dir)?;
        let dir = files.canonical(dir).map_err(StateError::io("find", dir))?;
        let _lock = lock(&files, &dir, interrupt)?;
        let owner = own(&files, &dir, claim)?;
        let marked = claim.mark.filter(|_| !claim.is_reset).map(|mark| mark.parts.as_slice());
        let committed = |part| marked.and_then(|parts| parts.get(part).copied().flatten());
        let parts = (0..claim.parts)
            .map(|part| Part { committed: committed(part), ..Part::default() })
            .collect();
        let (id, epoch) = (owner.id, claim.epoch);
        let state = StateDir { files, dir, id, epoch, made: 0, parts, _lock };
        state.check_committed()?;
        state.clear()?;
        state.show_current();
        Ok(state)
    }

    fn path(&self, part: usize, name: Name) -> PathBuf {
        self.dir.join(format!("{part}.{name}"))
    }

    fn check_committed(&self) -> Result<(), StateError> {
        for (number, part) in self.parts.iter().enumerate() {
            let Some(name) = part.committed else { continue };
            let path = self.path(number, name);
            let kind = match self.files.kind(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                kind => Some(kind.map_err(StateError::io("look at", &path))?),
            };
            if kind != Some(Kind::Directory) {
                let name = format!("{number}.{name}");
                return Err(StateError::Missing { path: self.dir.clone(), name });
            }
        }
        Ok(())
    }

    /// Removes the states that no commit names. What is not a state is not touched.
    fn clear(&self) -> Result<(), StateError> {
        let there = self.files.list(&self.dir).map_err(StateError::io("read", &self.dir))?;
        for (entry, _) in there {
            let Some((part, name)) = entry.to_str().and_then(state_name) else { continue };
            if self.parts.get(part).and_then(|part| part.committed) != Some(name) {
                tree::remove(&self.files, &self.dir.join(entry))?;
            }
        }
        Ok(())
    }

    /// A private copy of the newest state of a part, for a filter to work on; at first an empty
    /// directory.
    ///
    /// # Errors
    /// It cannot be copied; nothing is left of it.
    pub fn begin(&mut self, part: usize) -> Result<PathBuf, StateError> {
        assert!(self.parts[part].working.is_none(), "one filter at a time works on a part");
        self.made += 1;
        let name = Name { epoch: self.epoch, number: self.made };
        let path = self.path(part, name);
        let made = match self.parts[part].newest() {
            Some(newest) => tree::copy(&self.files, &self.path(part, newest), &path),
            None => self.files.make_dir(&path, false).map_err(StateError::io("make", &path)),
        };
        if let Err(error) = made {
            let _ = tree::remove(&self.files, &path);
            return Err(error);
        }
        self.parts[part].working = Some(name);
        Ok(path)
    }

    /// The filter has succeeded: its copy is the newest state of the part.
    ///
    /// # Errors
    /// It is no directory any more; a state that is not needed any more cannot be removed.
    pub fn keep(&mut self, part: usize) -> Result<(), StateError> {
        let state = &mut self.parts[part];
        let working = state.working.take().expect("a filter has worked on the part");
        let path = self.path(part, working);
        if self.files.kind(&path).ok() != Some(Kind::Directory) {
            return Err(StateError::NoDirectory { path });
        }
        let state = &mut self.parts[part];
        match state.kept.replace(working) {
            Some(old) => tree::remove(&self.files, &self.path(part, old)),
            None => Ok(()),
        }
    }

    /// The filter has failed: its copy goes.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn abandon(&mut self, part: usize) -> Result<(), StateError> {
        match self.parts[part].working.take() {
            Some(name) => tree::remove(&self.files, &self.path(part, name)),
            None => Ok(()),
        }
    }

    /// All that was kept since the last seal goes, as what it belongs to is done again.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn abandon_kept(&mut self) -> Result<(), StateError> {
        for part in 0..self.parts.len() {
            self.abandon(part)?;
            if let Some(name) = self.parts[part].kept.take() {
                tree::remove(&self.files, &self.path(part, name))?;
            }
        }
        Ok(())
    }

    /// Makes what was kept durable, and says what the commit is to say.
    ///
    /// # Errors
    /// It cannot be synced; then the commit must not be made.
    pub fn seal(&mut self) -> Result<StateMark, StateError> {
        let mut is_new = false;
        for part in 0..self.parts.len() {
            if let Some(name) = self.parts[part].kept.take() {
                tree::sync(&self.files, &self.path(part, name))?;
                self.parts[part].sealed.push(name);
                is_new = true;
            }
        }
        if is_new {
            tree::sync_one(&self.files, &self.dir)?;
        }
        Ok(StateMark { id: self.id, parts: self.parts.iter().map(Part::newest).collect() })
    }

    /// The commit that says this is durable: what came before goes.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn committed(&mut self, mark: &StateMark) -> Result<(), StateError> {
        for number in 0..self.parts.len() {
            let Some(name) = mark.parts[number] else { continue };
            let part = &mut self.parts[number];
            let Some(at) = part.sealed.iter().position(|sealed| *sealed == name) else { continue };
            let gone: Vec<Name> =
                part.committed.replace(name).into_iter().chain(part.sealed.drain(..=at)).collect();
            for old in gone.into_iter().filter(|old| *old != name) {
                tree::remove(&self.files, &self.path(number, old))?;
            }
        }
        self.show_current();
        Ok(())
    }

    /// Links that lead people to the committed states: `current`, or `current.0` and so on. They
    /// are a convenience: nothing reads them, and what goes wrong with them is nobody's concern.
    fn show_current(&self) {
        for (number, part) in self.parts.iter().enumerate() {
            let Some(name) = part.committed else { continue };
            let link = match self.parts.len() {
                1 => CURRENT.to_owned(),
                _ => format!("{CURRENT}.{number}"),
            };
            let new = self.dir.join(format!("{link}.new"));
            let _ = self.files.remove_file(&new);
            let _ = self
                .files
                .link(&format!("{number}.{name}"), &new)
                .and_then(|()| self.files.rename(&new, &self.dir.join(link)));
        }
    }
}

/// The part and the name in the file name of a state.
fn state_name(text: &str) -> Option<(usize, Name)> {
    let (part, name) = text.split_once('.')?;
    let number: usize = part.parse().ok()?;
    Some((number, name.parse().ok()?)).filter(|_| number.to_string() == part)
}

/// Makes the directory, for its owner alone, if it is not there.
fn make_dir<F: Files>(files: &F, dir: &Path) -> Result<(), StateError> {
    let is_new = match files.make_dir(dir, true) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(StateError::Io { doing: "make", path: dir.to_owned(), error }),
    };
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    match tree::sync_one(files, parent.unwrap_or(Path::new("."))) {
        // Whoever made it may have ended before that was durable; somebody else did, where this one may
        // not look.
        Err(StateError::Io { error, .. })
            if !is_new && error.kind() == io::ErrorKind::PermissionDenied =>
        {
            Ok(())
        }
        synced => synced,
    }
}

/// Locks the directory. An older instance of the same pipe may have been fenced off only just
/// now, so it has a while to end.
fn lock<F: Files>(
    files: &F,
    dir: &Path,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<F::Lock, StateError> {
    let patience = limits::STATE_LOCK_WAIT.to_duration();
    match files.lock(dir, patience, interrupt).map_err(StateError::io("lock", dir))? {
        Locked::Taken(lock) => Ok(lock),
        Locked::Busy => Err(StateError::Busy { path: dir.to_owned() }),
        Locked::Interrupted => Err(StateError::Interrupted),
    }
}

/// Sees to it that the directory is the pipe's own.
fn own<F: Files>(files: &F, dir: &Path, claim: &Claim<'_>) -> Result<Owner, StateError> {
    let path = dir.join(OWNER);
    let text = match files.read(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(StateError::io("read", &path)(error)),
    };
    let Some(text) = text else {
        check_fresh(files, dir, claim)?;
        return write_owner(files, dir, claim);
    };
    let owner: Owner = serde_json::from_slice(&text)
        .map_err(|error| StateError::io("understand", &path)(error.into()))?;
    let is_same_pipe = owner.pipe == claim.pipe;
    if claim.is_reset && is_same_pipe {
        return write_owner(files, dir, claim);
    }
    if !is_same_pipe || owner.destination != claim.destination {
        let (path, pipe) = (dir.to_owned(), owner.pipe);
        return Err(StateError::Other { path, pipe, is_same_pipe });
    }
    if let Some(mark) = claim.mark.filter(|mark| mark.id != owner.id) {
        return Err(StateError::Missing { path: dir.to_owned(), name: mark.id.to_string() });
    }
    if owner.parts != claim.parts {
        let (had, wanted) = (owner.parts, claim.parts);
        return Err(StateError::Parts { path: dir.to_owned(), had, wanted });
    }
    // Whoever wrote it may have been killed before its place was durable, and commits will count on it.
    tree::sync_one(files, dir)?;
    Ok(owner)
}

/// Nothing may be in a directory that is to be a state directory, and no commit may count on it.
fn check_fresh<F: Files>(files: &F, dir: &Path, claim: &Claim<'_>) -> Result<(), StateError> {
    for (entry, _) in files.list(dir).map_err(StateError::io("read", dir))? {
        if entry != OWNER_NEW {
            return Err(StateError::Foreign { path: dir.to_owned() });
        }
    }
    match claim.mark.filter(|_| !claim.is_reset) {
        Some(mark) => Err(StateError::Missing { path: dir.to_owned(), name: mark.id.to_string() }),
        None => Ok(()),
    }
}

fn write_owner<F: Files>(files: &F, dir: &Path, claim: &Claim<'_>) -> Result<Owner, StateError> {
    let owner = Owner {
        id: uuid::Builder::from_random_bytes(files.random()).into_uuid(),
        pipe: claim.pipe.to_owned(),
        destination: claim.destination,
        parts: claim.parts,
    };
    let (new, path) = (dir.join(OWNER_NEW), dir.join(OWNER));
    let text = serde_json::to_vec(&owner).expect("an owner can be written");
    let write = || {
        files.write(&new, &text)?;
        files.sync(&new)?;
        files.rename(&new, &path)
    };
    write().map_err(StateError::io("write", &path))?;
    tree::sync_one(files, dir)?;
    Ok(owner)
}
