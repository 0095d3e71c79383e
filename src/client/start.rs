//! Reach the server of a store, or start it, race-free.
//!
//! Connect; on failure take the start lock; connect again; only then start `mq-serve`, which
//! itself replaces a stale socket once it holds the server's lock: a client never unlinks one, so
//! it cannot unlink that of a server which is just coming up. Readiness is told over a pipe: the
//! child's stdout, on which it writes `ready` and a newline, or why it cannot run.
//!
//! Where a queue lives at an engine elsewhere, it is a [`helper`] that is started, on a
//! socket pair, and nothing is connected to.
//!
//! Called by every tool that talks to a server. It never ends a server.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::pipe::PipeFlags;

use super::connection::PAUSES;
use super::helper::{self, Ended, find_program};
use super::place::Peer;
use super::wait::Patience;
use super::{ClientError, Connection};
use crate::limits;
use crate::store::{StoreDir, StoreError};
use crate::url::Url;
use crate::wire::Request;

/// What a started server writes when it can be reached.
pub const READY: &str = "ready\n";

/// Bytes of a failed server's own words that are shown.
const SAID_BYTES_MAX: u64 = 4096;

/// After so many servers in a row that were killed while they started, no more is started.
const KILLED_MAX: u32 = 20;

/// How often it is looked whether a server that has closed its pipe has ended.
const REAP_TRIES: usize = 100;

/// Reaches the server of one store, again and again if need be; or starts a helper, once.
#[derive(Debug)]
pub struct Dialer {
    store: PathBuf,
    /// Where the queue lives, if not in the store.
    url: Option<Url>,
    /// How the helper ended that was started for it.
    ended: Option<Ended>,
    is_quiet: bool,
    tool: &'static str,
    /// The program that it runs on messages, if it does.
    command: String,
    may_start: bool,
    /// What is said behind the first word of every connection.
    opening: Vec<u8>,
    /// The server's program, when it is not the one that would be found.
    program: Option<PathBuf>,
    /// Servers that were started from here, to be reaped when they have ended.
    children: Vec<Child>,
    /// Servers in a row that were killed while they started.
    killed: u32,
    /// Servers that were started and got ready since one was last reached.
    started: u32,
}

/// What one attempt to connect led to.
enum Reached {
    Connection(Box<Connection>),
    /// Nobody listens.
    Nobody,
    /// Somebody listens and has no time for us yet, or is just going.
    Later,
}

impl Dialer {
    /// For the store at `store` (see [`crate::store::resolve`]), on behalf of `tool`. With
    /// `may_start`, a server that is not there is started, unless `MQ_NO_AUTOSTART` is set to
    /// something other than `0`.
    #[must_use]
    pub fn new(store: PathBuf, tool: &'static str, may_start: bool) -> Dialer {
        let forbidden = std::env::var_os("MQ_NO_AUTOSTART")
            .is_some_and(|value| !value.is_empty() && value != "0");
        let may_start = may_start && !forbidden;
        Dialer {
            store,
            url: None,
            ended: None,
            is_quiet: false,
            tool,
            command: String::new(),
            may_start,
            opening: Vec::new(),
            program: None,
            children: Vec::new(),
            killed: 0,
            started: 0,
        }
    }

    /// For whomever a queue is to be had from; with `may_start`, see [`Dialer::new`].
    #[must_use]
    pub fn to(peer: Peer, tool: &'static str, may_start: bool) -> Dialer {
        match peer {
            Peer::Store(store) => Dialer::new(store, tool, may_start),
            Peer::Engine(url) => {
                Dialer { url: Some(url), ..Dialer::new(PathBuf::new(), tool, false) }
            }
        }
    }

    /// From now on the queue is to be had at an engine.
    pub fn go_to(&mut self, url: Url) {
        (self.url, self.ended) = (Some(url), None);
    }

    /// Whether the queue is to be had at an engine.
    #[must_use]
    pub fn is_to_engine(&self) -> bool {
        self.url.is_some()
    }

    /// A helper is to say nothing on stderr but errors.
    #[must_use]
    pub fn quiet(self, is_quiet: bool) -> Dialer {
        Dialer { is_quiet, ..self }
    }

    /// The tool runs this program on messages: told to the server, for those who watch.
    #[must_use]
    pub fn running(self, program: &OsStr) -> Dialer {
        let name = Path::new(program).file_name().unwrap_or(program);
        Dialer { command: name.to_string_lossy().into_owned(), ..self }
    }

    /// On whose behalf it is.
    #[must_use]
    pub fn tool(&self) -> &'static str {
        self.tool
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// From now on every connection that is made says this as soon as it is there.
    pub fn open_with(&mut self, channel: u16, request: &Request<'_>) {
        self.opening.clear();
        request.encode(channel, &mut self.opening);
    }

    /// Reaches the server that is there, at once; starts none and waits for none.
    ///
    /// # Errors
    /// [`ClientError::NoServer`], [`ClientError::NoHelper`]; what [`Connection::handshake`] returns.
    pub fn reach(&self, patience: Patience<'_>) -> Result<Connection, ClientError> {
        if let Some(url) = &self.url {
            return self.help(url, Ended::default(), patience);
        }
        let store = match StoreDir::open(&self.store, false) {
            Ok(store) => store,
            Err(StoreError::Missing { .. }) => return Err(self.no_server(Instant::now())),
            Err(error) => return Err(error.into()),
        };
        let began = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            match self.try_reach(&store, patience)? {
                Reached::Connection(connection) => return Ok(*connection),
                Reached::Nobody => return Err(self.no_server(began)),
                Reached::Later if patience.is_over() => return Err(self.no_server(began)),
                Reached::Later => patience.sleep(pause)?,
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Reaches the server, starting it when there is none and that is allowed, and waiting for
    /// one otherwise.
    ///
    /// # Errors
    /// [`ClientError::NoServer`] when the patience is over; [`ClientError::StartFailed`] with
    /// the server's own words; what [`Connection::handshake`] returns; [`ClientError::Store`].
    pub fn dial(&mut self, patience: Patience<'_>) -> Result<Connection, ClientError> {
        self.dial_as(self.may_start, patience)
    }

    /// Reaches a server after the connection to one was lost: like [`Dialer::dial`], but after
    /// an `orderly` goodbye somebody wants it stopped, so a new one is only waited for.
    ///
    /// # Errors
    /// See [`Dialer::dial`].
    pub fn redial(
        &mut self,
        orderly: bool,
        patience: Patience<'_>,
    ) -> Result<Connection, ClientError> {
        self.reap();
        self.dial_as(self.may_start && !orderly, patience)
    }

    /// Why servers end again and again, as far as it can be known.
    #[must_use]
    pub fn why_dying(&self) -> ClientError {
        let store = StoreDir::open(&self.store, false).ok();
        ClientError::Dying { said: store.and_then(|store| store.last_words()) }
    }

    fn dial_as(
        &mut self,
        may_start: bool,
        patience: Patience<'_>,
    ) -> Result<Connection, ClientError> {
        if let Some(url) = self.url.clone() {
            return self.help_once(&url, patience);
        }
        let began = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            match StoreDir::open(&self.store, may_start) {
                Ok(store) => {
                    if let Some(connection) = self.attempt(&store, may_start, patience)? {
                        self.started = 0;
                        return Ok(connection);
                    }
                }
                // It may yet be made by whoever starts the server.
                Err(StoreError::Missing { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if patience.is_over() {
                return Err(self.gives_up(began));
            }
            patience.sleep(pause)?;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Starts a helper; one that was started before is not replaced, as it does all that can be done
    /// to reach the engine again.
    fn help_once(&mut self, url: &Url, patience: Patience<'_>) -> Result<Connection, ClientError> {
        if let Some(ended) = &self.ended {
            let how = ended.get().cloned().unwrap_or_else(|| "it hung up".to_owned());
            return Err(ClientError::HelperGone { url: url.clone(), how });
        }
        let ended = self.ended.insert(Ended::default()).clone();
        self.help(url, ended, patience)
    }

    fn help(
        &self,
        url: &Url,
        ended: Ended,
        patience: Patience<'_>,
    ) -> Result<Connection, ClientError> {
        let (stream, helper) = helper::start(url, patience.until, self.is_quiet, ended.clone())?;
        let mut connection = Connection::to_helper(stream, url.clone(), helper)
            .map_err(ClientError::io("use a socket pair"))?;
        match connection.handshake(self.tool, &self.command, &self.opening, patience) {
            Ok(()) => Ok(connection),
            Err(error) if error.is_lost() => {
                drop(connection);
                let how = ended.get().cloned().unwrap_or_default();
                Err(ClientError::HelperGone { url: url.clone(), how })
            }
            Err(error) => Err(error),
        }
    }

    /// One round: connect, and start a server if that is what is missing.
    fn attempt(
        &mut self,
        store: &StoreDir,
        may_start: bool,
        patience: Patience<'_>,
    ) -> Result<Option<Connection>, ClientError> {
        match self.try_reach(store, patience)? {
            Reached::Connection(connection) => return Ok(Some(*connection)),
            Reached::Later => return Ok(None),
            Reached::Nobody if !may_start => return Ok(None),
            Reached::Nobody => {}
        }
        // Somebody else is starting one: wait for that.
        let Some(lock) = store.try_lock_start()? else { return Ok(None) };
        match self.try_reach(store, patience)? {
            Reached::Connection(connection) => return Ok(Some(*connection)),
            Reached::Later => return Ok(None),
            Reached::Nobody => {}
        }
        // One that a person started is coming up, or one is just going down.
        if store.has_server()? {
            return Ok(None);
        }
        let started = self.start(store, patience);
        drop(lock);
        match started {
            Ok(()) => (self.killed, self.started) = (0, self.started + 1),
            // It may have found that another one had been started by hand meanwhile.
            Err(ClientError::StartFailed { .. }) if store.has_server()? => return Ok(None),
            // Somebody ended it before it could be reached: that says nothing about the next.
            Err(ClientError::StartFailed { .. }) if (1..KILLED_MAX).contains(&self.killed) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        match self.try_reach(store, patience)? {
            Reached::Connection(connection) => Ok(Some(*connection)),
            Reached::Nobody | Reached::Later => Ok(None),
        }
    }

    fn try_reach(&self, store: &StoreDir, patience: Patience<'_>) -> Result<Reached, ClientError> {
        let mut connection = match Connection::connect(store) {
            Ok(connection) => connection,
            Err(error) => {
                return match error.kind() {
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                        Ok(Reached::Nobody)
                    }
                    std::io::ErrorKind::WouldBlock => Ok(Reached::Later),
                    _ => Err(ClientError::io("connect to the server's socket")(error)),
                };
            }
        };
        match connection.handshake(self.tool, &self.command, &self.opening, patience) {
            Ok(()) => Ok(Reached::Connection(Box::new(connection))),
            // It was just going: an idle exit, a stop, a kill.
            Err(error) if error.is_lost() => Ok(Reached::Later),
            Err(error) => Err(error),
        }
    }

    /// The patience is over.
    fn gives_up(&self, began: Instant) -> ClientError {
        if self.started + self.killed > 1 {
            return self.why_dying();
        }
        let store = StoreDir::open(&self.store, false).ok();
        match store.map(|store| store.locked_by_stranger()) {
            Some(Ok(Some(error))) => error.into(),
            _ => self.no_server(began),
        }
    }

    fn no_server(&self, began: Instant) -> ClientError {
        ClientError::NoServer {
            store: self.store.clone(),
            waited: began.elapsed(),
            may_start: self.may_start,
        }
    }

    /// Starts `mq-serve` and waits until it can be reached.
    fn start(&mut self, store: &StoreDir, patience: Patience<'_>) -> Result<(), ClientError> {
        let (ready, told) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|errno| ClientError::io("make a pipe")(errno.into()))?;
        let (program, beside) = self.server_program();
        let idle = format!("{}s", limits::IDLE_EXIT.0 / 1_000_000);
        let log = store.open_server_log()?;
        let log_end = rustix::fs::fstat(&log).map_or(u64::MAX, |stat| stat.st_size.unsigned_abs());
        let spawned = Command::new(&program)
            .arg("--dir")
            .arg(store.path())
            .args(["--idle-exit", &idle, "--ready-on-stdout"])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(told)
            .stderr(log)
            .spawn();
        match spawned {
            Ok(child) => self.children.push(child),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ClientError::NoProgram { beside });
            }
            Err(error) => return Err(ClientError::io("start mq-serve")(error)),
        }
        let said = listen(ready, patience)?.ok_or_else(|| self.gives_up(Instant::now()))?;
        if said == READY {
            return Ok(());
        }
        let said = match (said.trim_end(), self.how_ended()) {
            ("", Some(status)) if status.signal().is_some() => {
                self.killed += 1;
                format!("it was killed as it started ({status})")
            }
            // What went wrong before it could tell us, or as it told us, is in its log.
            ("", _) => {
                store.said_behind(log_end).unwrap_or_else(|| "it ended without a word".to_owned())
            }
            (words, _) => words.to_owned(),
        };
        Err(ClientError::StartFailed { store: self.store.clone(), said })
    }

    /// The server's program, with the directory looked at.
    fn server_program(&self) -> (PathBuf, PathBuf) {
        match &self.program {
            Some(program) => (program.clone(), PathBuf::new()),
            None => find_program("mq-serve"),
        }
    }

    /// How the server that was started last has ended, if it does so soon.
    fn how_ended(&mut self) -> Option<ExitStatus> {
        let child = self.children.last_mut()?;
        for _ in 0..REAP_TRIES {
            if let Some(status) = child.try_wait().ok()? {
                self.children.pop();
                return Some(status);
            }
            std::thread::sleep(PAUSES.0);
        }
        None
    }

    fn reap(&mut self) {
        self.children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
    }
}

/// What the child says: one line `ready`, or all that it says until it ends. `None` when the
/// patience is over before.
fn listen(ready: OwnedFd, patience: Patience<'_>) -> Result<Option<String>, ClientError> {
    let mut said = Vec::new();
    let mut ready = std::fs::File::from(ready);
    let mut bytes = [0u8; 512];
    loop {
        if patience.wait_for(ready.as_fd(), PollFlags::IN)?.is_empty() {
            return Ok(None);
        }
        let length = ready.read(&mut bytes).map_err(ClientError::io("hear from mq-serve"))?;
        said.extend_from_slice(&bytes[..length]);
        let done = length == 0 || said == READY.as_bytes();
        if done || said.len() as u64 > SAID_BYTES_MAX {
            return Ok(Some(String::from_utf8_lossy(&said).into_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A dialer whose server is a shell script.
    fn dialer_with(script: &str) -> (Dialer, tempfile::TempDir) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let program = temp.path().join("mq-serve");
        // Written by another process: one that a test beside us starts might inherit our open
        // file, and then the script would be "busy".
        let written = Command::new("sh")
            .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$1" >"$2" && chmod 700 "$2""#, "sh", script])
            .arg(&program)
            .status();
        assert!(written.expect("sh").success());
        let mut dialer = Dialer::new(temp.path().join("store"), "test", false);
        dialer.may_start = true;
        dialer.program = Some(program);
        (dialer, temp)
    }

    fn dial(script: &str, patience: Duration) -> (ClientError, String) {
        let (mut dialer, temp) = dialer_with(script);
        let error = dialer.dial(Patience::lasting(patience, None)).expect_err("no server");
        let log = std::fs::read_to_string(temp.path().join("store/server.log"));
        (error, log.unwrap_or_default())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn failed_start_shows_the_servers_own_words() {
        let (error, log) = dial("echo the disk is on fire; echo more >&2; exit 1", LONG);
        let ClientError::StartFailed { said, .. } = error else { panic!("{error:?}") };
        assert_eq!(said, "the disk is on fire");
        assert_eq!(log, "more\n");
    }

    #[test]
    fn server_that_ends_without_a_word_is_an_error() {
        let (error, _) = dial("exit 0", LONG);
        assert!(error.to_string().contains("without a word"), "{error}");
    }

    #[test]
    fn server_that_is_killed_as_it_starts_is_tried_again() {
        let (error, log) = dial("echo tried >&2; kill -9 $$", LONG);
        assert!(error.to_string().contains("killed as it started"), "{error}");
        assert_eq!(log.lines().count(), KILLED_MAX as usize);
    }

    #[test]
    fn server_that_does_not_get_ready_is_waited_for_no_longer_than_asked() {
        let (error, _) = dial("exec sleep 2", Duration::from_millis(100));
        assert!(matches!(error, ClientError::NoServer { .. }), "{error:?}");
    }

    #[test]
    fn server_is_told_where_and_how() {
        let (error, log) = dial("echo \"$@ in $PWD\" >&2; exit 3", LONG);
        assert!(matches!(error, ClientError::StartFailed { .. }), "{error:?}");
        assert!(log.starts_with("--dir /"), "{log}");
        assert!(log.ends_with("/store --idle-exit 900s --ready-on-stdout in /\n"), "{log}");
    }

    #[test]
    fn program_that_is_nowhere_is_named() {
        let (mut dialer, _temp) = dialer_with("");
        dialer.program = Some(PathBuf::from("/nowhere/mq-serve"));
        let error = dialer.dial(Patience::lasting(LONG, None)).expect_err("no server");
        assert!(matches!(error, ClientError::NoProgram { .. }), "{error:?}");
    }
}
