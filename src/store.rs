//! The store directory: which one it is, whether it may be used, and the names inside it.
//!
//! It never looks into a queue and never talks to a server. The client uses it to find the
//! socket, the server to hold the lock.
//!
//! ```text
//! DIR/            mode 0700, ours
//! ├── lock        the server's process id; its lock is on DIR itself
//! ├── sock        where the server listens
//! ├── server.log  what a server says that was started by a client
//! ├── running     the server's record of the boot and of whether it ended in order
//! ├── version     the format of this directory: a number in text
//! └── queues/     one directory for each queue
//! ```
//!
//! A last path component that is a symbolic link is followed only when the link belongs to us or
//! to root: another user's link must not choose where our messages go.

mod error;
mod file_system;
mod making;
pub mod passwd;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use crate::limits;

use making::{for_its_owner, make};

pub use error::StoreError;

/// The format of the store directory that this build reads and writes.
pub const STORE_VERSION: u32 = 1;

/// The longest path that fits `sun_path` with its closing NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What stands in a store, and what a file system puts into each of its own.
const NAMES: [&str; 9] = [
    "lock",
    "sock",
    "server.log",
    "server.log.old",
    "running",
    "version",
    "version.new",
    "queues",
    "lost+found",
];

/// How long [`StoreDir::lock_server`] waits: a server that was just killed holds its lock until
/// the kernel has ended its last system call.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// So much of the end of `server.log` is looked at for the last line.
const LAST_WORDS_BYTES_MAX: usize = 2048;

/// The version file is a number; whatever is longer is none.
const VERSION_BYTES_MAX: usize = 64;

/// Which directory is the store: `flag` (`--dir`), else `MQ_DIR` if it is not empty, else
/// `~/.local/state/mq`, with the home from `HOME`, or from the password database when that is
/// unset or empty. Nothing else in the environment decides it: cron, ssh and a login shell must
/// reach the same server. The path returned is absolute.
///
/// # Errors
/// [`StoreError::NoHome`]; [`StoreError::Io`] when a relative path cannot be made absolute.
pub fn resolve(flag: Option<&Path>) -> Result<PathBuf, StoreError> {
    let named = flag.map(Path::to_path_buf).or_else(|| non_empty("MQ_DIR"));
    let path = match named {
        Some(path) => path,
        None => home()?.join(".local/state/mq"),
    };
    std::path::absolute(&path).map_err(|source| StoreError::Io {
        doing: "make absolute the path of the store",
        path,
        source,
    })
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn home() -> Result<PathBuf, StoreError> {
    let uid = rustix::process::geteuid();
    // A relative one would make the store depend on where the command is run.
    non_empty("HOME")
        .filter(|home| home.is_absolute())
        .or_else(|| {
            passwd::entry(uid.as_raw()).map(|user| user.home).filter(|home| home.is_absolute())
        })
        .ok_or(StoreError::NoHome { uid: uid.as_raw() })
}

/// An open store directory that has passed every check. What is done in it goes through the open
/// directory, so that it stays the same one even if the path is renamed meanwhile.
#[derive(Debug)]
pub struct StoreDir {
    path: PathBuf,
    dir: OwnedFd,
}

/// The server's lock on a store, held until dropped.
#[derive(Debug)]
pub struct ServerLock {
    held: OwnedFd,
}

impl ServerLock {
    /// A path to the directory that is locked, wherever it is now; good in this process, as long as the
    /// lock is held. Without `/proc` there is none: then the store's `path` has to do.
    #[must_use]
    pub fn root(&self, path: &Path) -> PathBuf {
        let own = descriptor_path(&self.held);
        if is_place_of(&own, &self.held) { own } else { path.to_path_buf() }
    }
}

/// By this path the process reaches what it has open there.
fn descriptor_path(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

fn is_place_of(path: &Path, dir: &OwnedFd) -> bool {
    let place = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let named = rustix::fs::stat(path).map(place);
    named.is_ok() && named == rustix::fs::fstat(dir).map(place)
}

/// The lock under which a client starts a server, held until dropped.
#[derive(Debug)]
pub struct StartLock {
    _file: OwnedFd,
}

impl StoreDir {
    /// Opens the store at `path`; with `create` makes it and its parents first: itself with mode 0700,
    /// its parents as the umask says, but never closed to their owner.
    ///
    /// # Errors
    /// Whatever forbids its use: it is not a directory, not ours, open to others, not writable,
    /// on a network file system, of a newer version, or holds other things than a store. Nothing
    /// is changed then.
    pub fn open(path: &Path, create: bool) -> Result<StoreDir, StoreError> {
        if let Err(source) = path.metadata()
            && path.is_symlink()
        {
            return Err(StoreError::DeadLink { path: path.to_path_buf(), source });
        }
        if create {
            make(path)?;
        }
        check_link(path)?;
        let store = StoreDir::open_unchecked(path)?;
        store.check_owner()?;
        store.check_file_system()?;
        store.check_writable()?;
        store.check_version()?;
        Ok(store)
    }

    /// Opens a store of which files are only read: a backup, perhaps, which may lie where nothing
    /// can be written, belong to somebody else, and be open to others.
    ///
    /// # Errors
    /// It is not there, not a directory, of a newer version, or holds other things than a store.
    pub fn open_to_read(path: &Path) -> Result<StoreDir, StoreError> {
        let store = StoreDir::open_unchecked(path)?;
        store.check_version()?;
        Ok(store)
    }

    fn open_unchecked(path: &Path) -> Result<StoreDir, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            rustix::io::Errno::NOENT => StoreError::Missing { path: path.to_path_buf() },
            rustix::io::Errno::NOTDIR => making::what_is_in_the_way(path)
                .unwrap_or_else(|| StoreError::NotADirectory { path: path.to_path_buf() }),
            _ => why_not_open(path, errno.into()),
        })?;
        Ok(StoreDir { path: path.to_path_buf(), dir })
    }

    /// The path as it was given to [`StoreDir::open`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The path of `name` inside the store, by the path that the user knows.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The path at which to bind or reach the socket. It fits a socket address however long the
    /// store's own path is: a long one is reached through the open directory, so the result is
    /// good only in this process and as long as `self` lives.
    #[must_use]
    pub fn socket_address(&self) -> PathBuf {
        let direct = self.join("sock");
        if direct.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return direct;
        }
        self.own_path().join("sock")
    }

    /// A path to the open directory, wherever it is now; good only in this process and as long as `self`
    /// lives.
    #[must_use]
    pub fn own_path(&self) -> PathBuf {
        descriptor_path(&self.dir)
    }

    /// Whether the store's path leads to the open directory; it may have been renamed.
    #[must_use]
    pub fn is_at_its_path(&self) -> bool {
        is_place_of(&self.path, &self.dir)
    }

    /// Takes the server's lock, which says that at most one server uses the store, and writes
    /// our process id into it. Waits up to two seconds for a server that is just ending.
    ///
    /// On a new store this also writes the version file, and syncs the directory and its entry
    /// in the parent, so that no confirmed message is lost with them.
    ///
    /// # Errors
    /// [`StoreError::Locked`] with the holder; [`StoreError::Io`].
    pub fn lock_server(&self) -> Result<ServerLock, StoreError> {
        let io = |doing| move |errno: rustix::io::Errno| self.io_error(doing, "lock", errno.into());
        let held = self.open_own()?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        while !try_lock(&held).map_err(io("lock"))? {
            if Instant::now() >= deadline {
                return Err(self.locked());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = format!("{}\n", std::process::id());
        let file = self.open_lock()?;
        // Over the old one, and only then cut: so it needs no room on a full disk.
        rustix::io::pwrite(&file, pid.as_bytes(), 0).map_err(io("write the process id into"))?;
        rustix::fs::ftruncate(&file, pid.len() as u64).map_err(io("write the process id into"))?;
        self.check_version()?;
        self.write_version()?;
        Ok(ServerLock { held })
    }

    /// After an end that was not clean, or none: the names that lead to the store become durable. Who
    /// made it may have been killed before that, and all that is confirmed hangs on them.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn settle_names(&self) -> Result<(), StoreError> {
        let real = std::fs::canonicalize(&self.path)
            .map_err(|source| self.io_error("find the store", "", source))?;
        // Where one file system lies on another, the name of the place was there before the store.
        let same = |path: &&Path| {
            let device = |path: &Path| path.metadata().map(|found| found.dev()).ok();
            path.parent().is_some_and(|parent| device(path) == device(parent))
        };
        real.ancestors().take_while(same).try_for_each(sync_entry)
    }

    /// The error to tell where somebody holds the server's lock. What a server wrote that has ended
    /// since says nothing of who that is.
    #[must_use]
    pub fn locked(&self) -> StoreError {
        let pid = self.server_pid().filter(|pid| is_running(*pid));
        StoreError::Locked { path: self.path.clone(), pid }
    }

    /// The error to tell when something holds the server's lock that is no server.
    ///
    /// # Errors
    /// What the system says.
    pub fn locked_by_stranger(&self) -> Result<Option<StoreError>, StoreError> {
        let error = self.has_server()?.then(|| self.locked());
        Ok(error.filter(|error| matches!(error, StoreError::Locked { pid: None, .. })))
    }

    /// Keeps servers away from the store as long as the result lives, for work on its files;
    /// `None` when a server runs. Writes nothing.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn keep_servers_away(&self) -> Result<Option<ServerLock>, StoreError> {
        let held = self.open_own()?;
        let free = try_lock(&held).map_err(|errno| self.io_error("lock", "", errno.into()))?;
        Ok(free.then_some(ServerLock { held }))
    }

    /// The directory itself, opened anew: the server's lock is on it, so that nobody can remove
    /// the lock and leave the server without one.
    fn open_own(&self) -> Result<OwnedFd, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, ".", flags, Mode::empty())
            .map_err(|errno| self.io_error("open", "", errno.into()))
    }

    fn open_lock(&self) -> Result<OwnedFd, StoreError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.dir, "lock", flags, Mode::RUSR | Mode::WUSR)
            .and_then(for_its_owner)
            .map_err(|errno| self.io_error("open the lock file", "lock", errno.into()))
    }

    /// The process id that the last server wrote into its lock, whether it still runs or not.
    #[must_use]
    pub fn server_pid(&self) -> Option<u32> {
        self.read_small("lock").ok()?.trim().parse().ok()
    }

    /// Whether a server holds the lock at this moment.
    ///
    /// # Errors
    /// What the system says.
    pub fn has_server(&self) -> Result<bool, StoreError> {
        let held = self.open_own()?;
        // Taken for a moment only; a server that starts just now tries again (LOCK_PATIENCE).
        try_lock(&held).map(|free| !free).map_err(|errno| self.io_error("lock", "", errno.into()))
    }

    /// Takes the lock under which a client starts a server, if nobody else has it.
    ///
    /// It is a lock on the file `lock`: that two clients start a server at once does no harm, as
    /// the server's own lock is on the directory.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn try_lock_start(&self) -> Result<Option<StartLock>, StoreError> {
        let file = self.open_lock()?;
        let free = try_lock(&file).map_err(|errno| self.io_error("lock", "lock", errno.into()))?;
        Ok(free.then_some(StartLock { _file: file }))
    }

    /// Opens `server.log` for appending. One that has reached its bound is put aside as
    /// `server.log.old`, in place of the one that was put aside before.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open_server_log(&self) -> Result<OwnedFd, StoreError> {
        const LOG: &str = "server.log";
        let io = |doing| move |errno: rustix::io::Errno| self.io_error(doing, LOG, errno.into());
        let open = || {
            let flags = OFlags::WRONLY
                | OFlags::APPEND
                | OFlags::CREATE
                | OFlags::CLOEXEC
                | OFlags::NOFOLLOW;
            rustix::fs::openat(&self.dir, LOG, flags, Mode::RUSR | Mode::WUSR)
                .and_then(for_its_owner)
                .map_err(io("open the log of the server"))
        };
        let file = open()?;
        let stat = rustix::fs::fstat(&file).map_err(io("look at"))?;
        if (stat.st_size as u64) < limits::SERVER_LOG_BYTES_MAX {
            return Ok(file);
        }
        rustix::fs::renameat(&self.dir, LOG, &self.dir, "server.log.old").map_err(io("rename"))?;
        open()
    }

    /// The last line of `server.log` without its time: why a server that a client started ended,
    /// if it had a word to say.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.dir, "server.log", flags, Mode::empty()).ok()?;
        let length = rustix::fs::fstat(&file).ok()?.st_size.unsigned_abs();
        let mut bytes = [0u8; LAST_WORDS_BYTES_MAX];
        let from = length.saturating_sub(bytes.len() as u64);
        let read = rustix::io::pread(&file, &mut bytes, from).ok()?;
        let text = String::from_utf8_lossy(&bytes[..read]);
        let line = text.lines().last()?;
        Some(line.split_once("]: ").map_or(line, |(_, said)| said).to_owned())
    }

    /// What has come to `server.log` behind its first `end` bytes; nothing, if that is nothing. At most
    /// 2 KiB of it.
    #[must_use]
    pub fn said_behind(&self, end: u64) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.dir, "server.log", flags, Mode::empty()).ok()?;
        let mut bytes = [0u8; LAST_WORDS_BYTES_MAX];
        let read = rustix::io::pread(&file, &mut bytes, end).ok()?;
        let text = String::from_utf8_lossy(&bytes[..read]);
        let said = text.trim().trim_start_matches("mq-serve: ");
        (!said.is_empty()).then(|| said.to_owned())
    }

    fn io_error(&self, doing: &'static str, name: &str, source: io::Error) -> StoreError {
        StoreError::Io { doing, path: self.path.join(name), source }
    }

    fn read_small(&self, name: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::empty())?;
        let mut bytes = [0u8; VERSION_BYTES_MAX];
        let length = rustix::io::read(&file, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    fn check_owner(&self) -> Result<(), StoreError> {
        let stat = rustix::fs::fstat(&self.dir)
            .map_err(|errno| self.io_error("look at the store", "", errno.into()))?;
        let uid = rustix::process::geteuid().as_raw();
        if stat.st_uid != uid {
            return Err(StoreError::NotOurs { path: self.path.clone(), owner: stat.st_uid, uid });
        }
        let mode = stat.st_mode & 0o7777;
        if mode & 0o077 != 0 {
            return Err(StoreError::OpenToOthers { path: self.path.clone(), mode });
        }
        Ok(())
    }

    fn check_file_system(&self) -> Result<(), StoreError> {
        let kind = file_system::network_kind(&self.dir)
            .map_err(|errno| self.io_error("look at the file system of", "", errno.into()))?;
        match kind {
            Some(kind) => Err(StoreError::NetworkFileSystem { path: self.path.clone(), kind }),
            None => Ok(()),
        }
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        use rustix::fs::Access;
        let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(&self.dir, ".", wanted, AtFlags::EACCESS).map_err(|errno| {
            StoreError::NotWritable { path: self.path.clone(), source: errno.into() }
        })
    }

    fn check_version(&self) -> Result<(), StoreError> {
        let found = match self.read_small("version") {
            Ok(found) => found,
            // A store that no server has used yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.check_names(),
            Err(error) => return Err(self.io_error("read", "version", error)),
        };
        let found = found.trim();
        match found.parse::<u32>() {
            Ok(version) if version <= STORE_VERSION => Ok(()),
            _ => Err(StoreError::NewerVersion { path: self.path.clone(), found: found.to_owned() }),
        }
    }

    /// A directory that nobody has made a store of yet must not hold anything else: it was named
    /// by mistake.
    fn check_names(&self) -> Result<(), StoreError> {
        let error = |errno: rustix::io::Errno| self.io_error("list the store", "", errno.into());
        for entry in rustix::fs::Dir::read_from(&self.dir).map_err(error)? {
            let entry = entry.map_err(error)?;
            let name = entry.file_name().to_string_lossy();
            if !matches!(&*name, "." | "..") && !NAMES.contains(&&*name) {
                let found = name.into_owned();
                return Err(StoreError::NotAStore { path: self.path.clone(), found });
            }
        }
        Ok(())
    }

    fn write_version(&self) -> Result<(), StoreError> {
        match rustix::fs::statat(&self.dir, "version", AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(self.io_error("look at", "version", errno.into())),
        }
        let doing = "write the version file";
        self.write_version_durably()
            .map_err(|errno| self.io_error(doing, "version", errno.into()))?;
        sync_entry(&self.path)
    }

    fn write_version_durably(&self) -> rustix::io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let text = format!("{STORE_VERSION}\n");
        let temp = "version.new";
        let file = rustix::fs::openat(&self.dir, temp, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::io::write(&file, text.as_bytes())?;
        rustix::fs::fsync(&file)?;
        rustix::fs::renameat(&self.dir, temp, &self.dir, "version")?;
        rustix::fs::fsync(&self.dir)
    }
}

fn is_running(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

fn try_lock(file: &OwnedFd) -> rustix::io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes the directory entry of `path` durable.
fn sync_entry(path: &Path) -> Result<(), StoreError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(parent, flags, Mode::empty());
    let synced = match dir.and_then(rustix::fs::fsync) {
        // A parent that we may pass but not read cannot be synced by us, and was not made by us. Nor was
        // one that nobody may write to.
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS) => Ok(()),
        other => other,
    };
    synced.map_err(|errno| StoreError::Io {
        doing: "sync the directory",
        path: parent.to_path_buf(),
        source: errno.into(),
    })
}

fn check_link(path: &Path) -> Result<(), StoreError> {
    let Ok(found) = path.symlink_metadata() else { return Ok(()) };
    let ours = found.uid() == rustix::process::geteuid().as_raw() || found.uid() == 0;
    if found.is_symlink() && !ours {
        return Err(StoreError::ForeignLink { path: path.to_path_buf(), owner: found.uid() });
    }
    Ok(())
}

/// A directory that cannot even be opened is most often another user's: say that then.
fn why_not_open(path: &Path, source: io::Error) -> StoreError {
    let path = path.to_path_buf();
    let uid = rustix::process::geteuid().as_raw();
    match path.metadata() {
        Ok(found) if !found.is_dir() => StoreError::NotADirectory { path },
        Ok(found) if found.uid() != uid => StoreError::NotOurs { path, owner: found.uid(), uid },
        Ok(_) => StoreError::NotWritable { path, source },
        Err(_) => StoreError::Io { doing: "open the store", path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn temp() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    fn open(path: &Path) -> Result<StoreDir, StoreError> {
        StoreDir::open(path, true)
    }

    #[test]
    fn store_is_made_with_its_parents_and_closed_to_others() {
        let temp = temp();
        let path = temp.path().join("a/b/store");
        assert!(matches!(StoreDir::open(&path, false), Err(StoreError::Missing { .. })));
        let store = open(&path).expect("made");
        let mode = path.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        assert_eq!(store.path(), path);
        open(&path).expect("opens again");
    }

    #[test]
    fn store_open_to_others_is_refused_with_the_remedy() {
        let temp = temp();
        let path = temp.path().join("store");
        open(&path).expect("made");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).expect("chmod");
        let error = open(&path).expect_err("refused");
        assert!(matches!(error, StoreError::OpenToOthers { mode: 0o750, .. }));
        assert_eq!(error.remedy(), Some(format!("chmod 700 {}", path.display())));
    }

    #[test]
    fn file_in_the_place_of_the_store_is_refused() {
        let temp = temp();
        let path = temp.path().join("store");
        std::fs::write(&path, "x").expect("written");
        assert!(matches!(open(&path), Err(StoreError::NotADirectory { .. })));
    }

    #[test]
    fn newer_store_is_refused_and_not_touched() {
        let temp = temp();
        let path = temp.path().join("store");
        open(&path).expect("made");
        for newer in ["2\n", "99", "banana", ""] {
            std::fs::write(path.join("version"), newer).expect("written");
            assert!(matches!(open(&path), Err(StoreError::NewerVersion { .. })), "{newer:?}");
        }
        assert_eq!(std::fs::read_dir(&path).expect("read").count(), 1);
    }

    #[test]
    fn second_server_is_told_who_holds_the_lock() {
        let temp = temp();
        let store = open(&temp.path().join("store")).expect("made");
        assert!(!store.has_server().expect("asked"));
        let lock = store.lock_server().expect("locked");
        assert!(store.has_server().expect("asked"));
        let Err(StoreError::Locked { pid, .. }) = store.lock_server() else {
            panic!("a second server got the lock");
        };
        assert_eq!(pid, Some(std::process::id()));
        drop(lock);
        store.lock_server().expect("free again");
        let version = std::fs::read_to_string(store.join("version")).expect("written");
        assert_eq!(version, format!("{STORE_VERSION}\n"));
    }

    #[test]
    fn start_lock_is_held_by_one() {
        let temp = temp();
        let store = open(&temp.path().join("store")).expect("made");
        let held = store.try_lock_start().expect("tried");
        assert!(held.is_some());
        assert!(store.try_lock_start().expect("tried").is_none());
        drop(held);
        assert!(store.try_lock_start().expect("tried").is_some());
    }

    #[test]
    fn socket_works_under_a_path_that_is_too_long_for_it() {
        let temp = temp();
        let path = temp.path().join("x".repeat(200)).join("store");
        let store = open(&path).expect("made");
        let listener =
            std::os::unix::net::UnixListener::bind(store.socket_address()).expect("bound");
        assert!(path.join("sock").symlink_metadata().is_ok());
        std::os::unix::net::UnixStream::connect(store.socket_address()).expect("connected");
        drop(listener);
    }

    #[test]
    fn full_server_log_is_put_aside() {
        let temp = temp();
        let store = open(&temp.path().join("store")).expect("made");
        let size = limits::SERVER_LOG_BYTES_MAX;
        std::fs::write(store.join("server.log"), vec![b'x'; size as usize]).expect("written");
        let log = store.open_server_log().expect("opened");
        rustix::io::write(&log, b"new\n").expect("written");
        assert_eq!(std::fs::read(store.join("server.log")).expect("read"), b"new\n");
        assert_eq!(store.join("server.log.old").metadata().expect("there").len(), size);
    }
}
