//! The helper: `mq-remote`, a process of our own that speaks with the engine at which a queue lives.
//!
//! It is started on one end of a socket pair, which is its stdin, and speaks the ordinary protocol
//! there; so whoever has the connection need not know what is behind it. The URL travels in its
//! environment, since everybody may read a command line; shown there is one without the password.
//!
//! It stands in a process group of its own: a Ctrl-C on the terminal is for us, who still have to hear
//! from it. It ends when our end of the socket is closed, and is reaped then. Called by the dialer.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};

use super::ClientError;
use super::wait::Patience;
use crate::limits;
use crate::url::Url;

/// The name of the program.
pub const PROGRAM: &str = "mq-remote";

/// The environment variable in which the helper finds the whole URL.
pub const URL_VARIABLE: &str = "MQ_REMOTE_URL";

/// How a helper ended, once it has.
pub type Ended = Arc<OnceLock<String>>;

/// A helper that runs. To drop it is to wait, for a bounded time, until it has ended, as it does when
/// the connection to it is closed.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    ended: Ended,
}

/// Starts a helper for the queue at `url`: our end of the socket pair, and the process. It tries to
/// reach the engine until `until`, or for ever. How it ends is told by way of `ended`.
///
/// # Errors
/// [`ClientError::NoHelper`]; [`ClientError::Io`].
pub fn start(
    url: &Url,
    until: Option<Instant>,
    is_quiet: bool,
    ended: Ended,
) -> Result<(OwnedFd, Helper), ClientError> {
    let kind = SocketType::STREAM;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .map_err(|errno| ClientError::io("make a socket pair")(errno.into()))?;
    let (program, beside) = find_program(PROGRAM);
    let mut command = Command::new(program);
    if let Some(until) = until {
        let wait = until.saturating_duration_since(Instant::now());
        command.arg("--wait").arg(format!("{}ms", wait.as_millis()));
    }
    if is_quiet {
        command.arg("--quiet");
    }
    let spawned = command
        .arg("--on-stdin")
        .arg(url.to_string())
        .env(URL_VARIABLE, url.reveal())
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .process_group(0)
        .spawn();
    match spawned {
        Ok(child) => Ok((ours, Helper { child, ended })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(ClientError::NoHelper { url: url.clone(), beside })
        }
        Err(error) => Err(ClientError::io("start mq-remote")(error)),
    }
}

/// A program of ours: beside the one that runs, else by way of PATH. With the directory looked at.
pub(super) fn find_program(name: &str) -> (PathBuf, PathBuf) {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).unwrap_or(Path::new("/")).to_path_buf();
    let program = beside.join(name);
    if program.is_file() { (program, beside) } else { (PathBuf::from(name), beside) }
}

impl Helper {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits as when it is dropped, and says how it has ended.
    #[must_use]
    pub fn end(self) -> String {
        let ended = Arc::clone(&self.ended);
        drop(self);
        ended.get().cloned().unwrap_or_default()
    }

    /// Waits until it has ended, but no longer than a bounded time.
    fn wait(&mut self) -> Option<ExitStatus> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)?;
        // Without such a descriptor it is reaped if it has ended, and else by whoever inherits it.
        if let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            let patience = Patience::lasting(limits::DRAIN.to_duration(), None);
            let _ = patience.wait_for(process.as_fd(), PollFlags::IN);
        }
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let status = self.wait();
        // The first word counts; nobody else has one.
        let _ = self.ended.set(how(status));
    }
}

fn how(status: Option<ExitStatus>) -> String {
    let Some(status) = status else { return "it hung up".to_owned() };
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            format!("it was ended by {name}")
        }
        (None, Some(0)) => "it ended".to_owned(),
        (None, code) => format!("it ended with status {}", code.unwrap_or(-1)),
    }
}
