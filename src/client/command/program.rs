//! The program: where it is, and how a process of it begins.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::Access;
use rustix::io::Errno;
use signal_hook::consts::SIGCHLD;

use super::StartError;
use crate::client::dispositions;

/// Where commands are looked for without a PATH, as the C library does.
const PATH_USUAL: &str = "/bin:/usr/bin";

/// What runs a script that does not say what runs it.
const SHELL: &str = "/bin/sh";

/// Facts about a message in the environment. Those of an mq-recv that this process runs under
/// are about another message, so they are not passed on.
const FACTS: [&str; 14] = [
    "MQ_QUEUE",
    "MQ_GROUP",
    "MQ_OFFSET",
    "MQ_ATTEMPT",
    "MQ_KEY",
    "MQ_ID",
    "MQ_TIME",
    "MQ_EPOCH",
    "MQ_COUNT",
    "MQ_PIPE",
    "MQ_PART",
    "MQ_STATE",
    "MQ_WINDOW_START",
    "MQ_WINDOW_END",
];
/// See [`FACTS`].
const FACTS_PREFIX: &[u8] = b"MQ_HEADER_";

/// Finds a command as a shell does.
///
/// # Errors
/// [`StartError::NotFound`], [`StartError::NotRunnable`].
pub(super) fn find(command: &OsStr) -> Result<PathBuf, StartError> {
    let shown = || command.to_string_lossy().into_owned();
    let mut refused = None;
    let mut look = |path: PathBuf| match runnable(&path) {
        Ok(()) => Some(path),
        Err(Errno::NOENT | Errno::NOTDIR) => None,
        Err(errno) => {
            refused.get_or_insert(errno);
            None
        }
    };
    let found = if command.as_bytes().contains(&b'/') {
        look(PathBuf::from(command))
    } else if command.is_empty() {
        None
    } else {
        let path = std::env::var_os("PATH").unwrap_or_else(|| PATH_USUAL.into());
        // An empty entry is the current directory. With a `/` in it, nothing searches again.
        std::env::split_paths(&path)
            .map(|dir| if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir })
            .find_map(|dir| look(dir.join(command)))
    };
    match (found, refused) {
        (Some(path), _) => Ok(path),
        (None, Some(errno)) => {
            Err(StartError::NotRunnable { command: shown(), error: errno.into() })
        }
        (None, None) => Err(StartError::NotFound(shown())),
    }
}

fn runnable(path: &Path) -> Result<(), Errno> {
    let is_file = rustix::fs::stat(path)
        .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())?;
    if is_file { rustix::fs::access(path, Access::EXEC_OK) } else { Err(Errno::ACCESS) }
}

/// Sees to it that the exits of children are told. Whoever started this process may have had
/// SIGCHLD ignored, which is inherited, and with which the kernel throws away all statuses.
pub(super) fn expect_children() -> io::Result<()> {
    if dispositions::is_ignored(SIGCHLD) {
        let seen = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGCHLD, seen)?;
    }
    Ok(())
}

/// Whether it can stand in an environment.
fn is_fit((name, value): &(OsString, OsString)) -> bool {
    let name = name.as_bytes();
    !name.is_empty()
        && !name.contains(&b'=')
        && !name.contains(&0)
        && !value.as_bytes().contains(&0)
}

/// A command that is to be run many times.
#[derive(Debug)]
pub struct Program {
    argv: Vec<OsString>,
    path: PathBuf,
    command: Command,
    /// The environment of every job.
    base: BTreeMap<OsString, OsString>,
    /// What the last job had in its own.
    own: Vec<OsString>,
    /// Whether it has run once.
    is_proven: bool,
}

/// What holds for every run.
fn prepare(command: &mut Command, base: &BTreeMap<OsString, OsString>) {
    command.env_clear().envs(base).process_group(0);
    command.stdin(Stdio::null()).stderr(Stdio::null());
}

/// The ends of pipes that a process gets.
#[derive(Debug)]
pub struct Ends {
    /// Where it reads.
    pub stdin: OwnedFd,
    /// Where it writes; absent: where we do.
    pub stdout: Option<OwnedFd>,
    /// Where it complains.
    pub stderr: OwnedFd,
}

impl Ends {
    fn try_clone(&self) -> Result<Ends, StartError> {
        let clone = |end: &OwnedFd| end.try_clone().map_err(StartError::system("make a pipe"));
        let stdout = self.stdout.as_ref().map(clone).transpose()?;
        Ok(Ends { stdin: clone(&self.stdin)?, stdout, stderr: clone(&self.stderr)? })
    }
}

impl Program {
    /// Finds the command that `argv` begins with.
    ///
    /// # Errors
    /// It is not there, or cannot be run.
    pub fn new(argv: &[OsString]) -> Result<Program, StartError> {
        let path = find(&argv[0])?;
        let base: BTreeMap<OsString, OsString> = std::env::vars_os()
            .filter(|(name, _)| {
                !FACTS.iter().any(|fact| name == fact) && !name.as_bytes().starts_with(FACTS_PREFIX)
            })
            .collect();
        let mut command = Command::new(&path);
        command.arg0(&argv[0]).args(&argv[1..]);
        prepare(&mut command, &base);
        Ok(Program { argv: argv.to_vec(), path, command, base, own: Vec::new(), is_proven: false })
    }

    /// Whether it is still there.
    ///
    /// # Errors
    /// It is not, or cannot be run any more.
    pub fn check(&self) -> Result<(), StartError> {
        runnable(&self.path).map_err(|errno| self.explain(errno.into()))
    }

    /// Starts a process in a group of its own. The standard library gives it the default SIGPIPE
    /// and an empty signal mask; what we handle has its default again in a new program. Without an
    /// end for its stdout, that is ours.
    ///
    /// # Errors
    /// As for [`Program::new`]; the system has no room for another process.
    pub fn spawn(
        &mut self,
        env: Vec<(OsString, OsString)>,
        ends: Ends,
    ) -> Result<Child, StartError> {
        self.set_env(env);
        let spare = if self.is_proven { None } else { Some(ends.try_clone()?) };
        self.connect(ends);
        let mut spawned = self.command.spawn();
        if let (Err(error), Some(spare)) = (&spawned, spare)
            && error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error())
        {
            self.run_by_shell();
            self.connect(spare);
            spawned = self.command.spawn();
        }
        // The command must not keep the ends of the pipes.
        self.command.stdin(Stdio::null()).stdout(Stdio::inherit()).stderr(Stdio::null());
        self.is_proven |= spawned.is_ok();
        spawned.map_err(|error| self.explain(error))
    }

    fn connect(&mut self, ends: Ends) {
        self.command.stdin(ends.stdin).stderr(ends.stderr);
        self.command.stdout(ends.stdout.map_or_else(Stdio::inherit, Stdio::from));
    }

    /// From now on the shell runs it, as a shell would do with a script without a `#!` line.
    fn run_by_shell(&mut self) {
        let mut command = Command::new(SHELL);
        command.arg(&self.path).args(&self.argv[1..]);
        prepare(&mut command, &self.base);
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        self.command = command;
    }

    fn explain(&self, error: io::Error) -> StartError {
        let command = self.argv[0].to_string_lossy().into_owned();
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::NOTDIR) if !self.path.exists() => {
                StartError::NotFound(command)
            }
            Some(Errno::NOENT) => {
                let error = io::Error::other("what its first line names is not there");
                StartError::NotRunnable { command, error }
            }
            Some(
                Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::INTR | Errno::IO,
            ) => StartError::System { doing: "make a process", error },
            _ => StartError::NotRunnable { command, error },
        }
    }

    fn set_env(&mut self, env: Vec<(OsString, OsString)>) {
        for name in self.own.drain(..) {
            match self.base.get(&name) {
                Some(value) => self.command.env(&name, value),
                None => self.command.env_remove(&name),
            };
        }
        for (name, value) in env.into_iter().filter(is_fit) {
            self.command.env(&name, value);
            self.own.push(name);
        }
    }
}
