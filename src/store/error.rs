//! Why a store cannot be used, in words for users.

use std::io;
use std::path::PathBuf;

use super::STORE_VERSION;

/// What is being done where the store is made.
pub(super) const MAKING: &str = "make the store";

/// Why a store cannot be used. The text says what, on which directory and why;
/// [`StoreError::remedy`] what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Neither `--dir` nor `MQ_DIR` nor a home directory.
    #[error("cannot find the store: no --dir, no MQ_DIR, and user {uid} has no home directory")]
    NoHome {
        /// The effective user.
        uid: u32,
    },
    /// The directory is not there.
    #[error("there is no store at {}", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// Something else stands there.
    #[error("cannot use {} as the store: it is not a directory", path.display())]
    NotADirectory {
        /// What stands there.
        path: PathBuf,
    },
    /// A symbolic link that leads nowhere, or in a circle.
    #[error("cannot use {} as the store: it is a symbolic link that leads to no directory ({source})", path.display())]
    DeadLink {
        /// The link.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something else stands where a directory above it would have to be.
    #[error("there can be no store at {}: {} is not a directory", path.display(), above.display())]
    InTheWay {
        /// The store.
        path: PathBuf,
        /// What stands there.
        above: PathBuf,
    },
    /// A directory in which somebody keeps other things.
    #[error("cannot use {} as the store: it is not empty, and not a store (it holds {found:?})", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// A symbolic link that another user made.
    #[error("cannot use {} as the store: it is a symbolic link made by user {owner}", path.display())]
    ForeignLink {
        /// The link.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The directory belongs to someone else.
    #[error("cannot use the store {}: it belongs to user {owner}, not to us (user {uid})", path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The effective user.
        uid: u32,
    },
    /// Group or others may do something in it.
    #[error("cannot use the store {}: it is open to other users (mode {mode:04o})", path.display())]
    OpenToOthers {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// We may not write into it.
    #[error("cannot write into the store {}: {source}", path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file system that is shared between machines.
    #[error("cannot use the store {}: it lies on a network file system ({kind}), where locks and syncs cannot be relied on", path.display())]
    NetworkFileSystem {
        /// The directory.
        path: PathBuf,
        /// The kind of file system.
        kind: &'static str,
    },
    /// Written by a newer version of mq.
    #[error("cannot use the store {}: its format is {found:?}, and this mq {package} knows formats up to {known}",
        path.display(), package = env!("CARGO_PKG_VERSION"), known = STORE_VERSION)]
    NewerVersion {
        /// The directory.
        path: PathBuf,
        /// What its version file says.
        found: String,
    },
    /// Another server runs on it.
    #[error("the store {} is {}", path.display(), holder(*pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The server's process; none where something that is no server has locked the directory.
        pid: Option<u32>,
    },
    /// Anything else that the system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Whether the process, or the system, has as many files open as it may.
fn has_few_descriptors(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    errno.is_some_and(|errno| [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].contains(&errno))
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("in use by another mq-serve (process {pid})"),
        None => "locked by a process that is no mq-serve".to_owned(),
    }
}

impl StoreError {
    /// What to do about it, as a command or half a sentence behind "try:".
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let elsewhere = "another directory, with --dir DIR or MQ_DIR";
        Some(match self {
            StoreError::NoHome { .. } => "naming the store with --dir DIR or MQ_DIR".to_owned(),
            StoreError::Missing { .. } => {
                "sending something first, or another store with --dir DIR or MQ_DIR".to_owned()
            }
            StoreError::NotADirectory { .. }
            | StoreError::ForeignLink { .. }
            | StoreError::DeadLink { .. }
            | StoreError::InTheWay { .. }
            | StoreError::Io { doing: MAKING, .. } => elsewhere.to_owned(),
            StoreError::NotAStore { path, .. } => {
                format!("a directory of its own, such as {}", path.join("mq").display())
            }
            StoreError::NotOurs { owner, .. } => {
                format!("running as user {owner}, or {elsewhere}")
            }
            StoreError::OpenToOthers { path, .. } => {
                format!("chmod 700 {}", path.display())
            }
            StoreError::NotWritable { source, .. } if has_few_descriptors(source) => {
                "a higher limit of open files, as with `ulimit -n 1024`".to_owned()
            }
            StoreError::NotWritable { path, .. } => {
                format!("chmod u+rwx {}, or {elsewhere}", path.display())
            }
            StoreError::NetworkFileSystem { .. } => {
                "a directory on a local disk, with --dir DIR or MQ_DIR".to_owned()
            }
            StoreError::NewerVersion { .. } => {
                format!("the newer mq that wrote it, or {elsewhere}")
            }
            StoreError::Locked { path, pid: Some(_) } => {
                format!("mq-admin --dir {} stop", path.display())
            }
            StoreError::Locked { path, pid: None } => {
                format!("again when that has ended; `fuser {}` names it", path.display())
            }
            StoreError::Io { .. } => return None,
        })
    }
}
