//! The course of a server: take the store, recover it, listen, serve, leave in order.
//!
//! Called by `mq-serve` alone. It never ends the process; it says how it ended.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::clock::Clock;
use super::engine::{Engine, Setup};
use super::event_loop::{Ended, EventLoop, Parts};
use super::report::{Level, Report};
use super::socket::OwnSocket;
use super::tenure::Tenure;
use crate::limits;
use crate::log::storage::Disk;
use crate::log::{self, LogError};
use crate::store::{StoreDir, StoreError};
use crate::units::{Micros, QueueId};
use crate::wire::ServerInfo;

/// How a server is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store directory.
    pub dir: PathBuf,
    /// To end after this long without connections.
    pub idle_exit: Option<Micros>,
    /// Started by a client: say on stdout that it is ready, or why not, then leave the client's
    /// session, directory and descriptors.
    pub started_by_client: bool,
    /// How much to tell on stderr.
    pub level: Level,
}

/// Why a server could not run, or stopped out of order.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something of the system failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The store's queues cannot be read.
    #[error("cannot read the queues of the store: {0}")]
    Queues(#[source] LogError),
    /// The disk failed while serving: nothing was confirmed after that.
    #[error("the disk failed, so nothing more was confirmed: {0}")]
    Disk(String),
}

fn io_error(doing: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::Io { doing, source }
}

/// Runs a server until it is asked to end.
///
/// # Errors
/// Why it could not start, or that it stopped because of a failing disk. When a client started
/// it, the client has been told as well.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    let started = start(options);
    let started = match started {
        Ok(started) => started,
        Err(error) => {
            if options.started_by_client {
                // The client prints it; if the client is gone nobody is left to be told.
                let _ = writeln!(io::stdout(), "{}", describe(&error));
            }
            return Err(error);
        }
    };
    started.run()
}

/// A server's error with its remedy, for the client that started it.
fn describe(error: &ServeError) -> String {
    match error {
        ServeError::Store(store) => match store.remedy() {
            Some(remedy) => format!("{error}\n{remedy}"),
            None => error.to_string(),
        },
        _ => error.to_string(),
    }
}

/// A server that is ready.
struct Started {
    event_loop: EventLoop<Disk>,
    tenure: Tenure,
    report_level: Level,
    /// Held as long as the server runs.
    _lock: crate::store::ServerLock,
}

fn start(options: &Options) -> Result<Started, ServeError> {
    if options.started_by_client {
        close_inherited().map_err(io_error("close the client's descriptors"))?;
    }
    let signals = watch_signals()?;
    let store = StoreDir::open(&options.dir, true)?;
    let shown = std::fs::canonicalize(store.path()).map_err(io_error("find the store"))?;
    if options.started_by_client {
        leave_client()?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    raise_limits();
    let lock = store.lock_server()?;
    // All that it does in the store goes by way of the directory that it has locked, so that it stays the
    // same when the path is renamed and leads to another. The lock is held until the end of it all.
    let root = lock.root(&shown);
    let report = Report::new(options.level);
    let tenure = Tenure::begin(&root).map_err(io_error("record the start in the store"))?;
    if !tenure.before().clean {
        store.settle_names()?;
    }
    let clock = Clock::start();
    let engine = recover(&root, &shown, &tenure, &report, clock)?;
    if !engine.has_damaged() {
        tenure.recovered().map_err(io_error("record the recovery in the store"))?;
    }
    let (listener, socket) = listen(store)?;
    let event_loop = EventLoop::new(Parts {
        engine,
        listener,
        socket,
        signals,
        idle_exit: options.idle_exit,
        report,
        owner: rustix::process::geteuid().as_raw(),
        clock,
    })
    .map_err(io_error("set up the event loop"))?;
    say_ready(options)?;
    Ok(Started { event_loop, tenure, report_level: options.level, _lock: lock })
}

/// Closes whatever the client had open besides stdin, stdout and stderr, so that nobody waits for
/// a lock or a pipe that only this server still holds.
fn close_inherited() -> io::Result<()> {
    let descriptors: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in descriptors {
        // The one of the directory listing is closed already, and to close a number that is not
        // open is an error that a debug build takes seriously.
        if std::fs::symlink_metadata(format!("/proc/self/fd/{descriptor}")).is_err() {
            continue;
        }
        #[allow(unsafe_code)]
        // SAFETY: this is the first thing that the process does, with one thread, so no object
        // of it owns any descriptor above 2. That of the directory listing is closed already, so
        // each number is asked for first.
        unsafe {
            if rustix::io::fcntl_getfd(BorrowedFd::borrow_raw(descriptor)).is_ok() {
                rustix::io::close(descriptor);
            }
        }
    }
    Ok(())
}

/// A byte comes out of the stream for each signal that asks for an end.
fn watch_signals() -> Result<UnixStream, ServeError> {
    let doing = io_error("watch signals");
    let (out, into) = UnixStream::pair().map_err(&doing)?;
    for signal in
        [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP]
    {
        let into = into.try_clone().map_err(&doing)?;
        signal_hook::low_level::pipe::register(signal, into).map_err(&doing)?;
    }
    // A limit on the size of files is an answer to a write, not a reason to die.
    let ignored = Arc::new(std::sync::atomic::AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, ignored).map_err(&doing)?;
    Ok(out)
}

/// Out of the session, the directory and the descriptors of the client that started this server,
/// so that whatever waits for those (`x=$(mq-send ...)`, `ssh`, `umount`) need not wait for it.
fn leave_client() -> Result<(), ServeError> {
    // Already a leader when started by a shell's job control: then it is on its own as it is.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").map_err(|e| io_error("change to /")(e.into()))
}

/// Each connection takes a descriptor and each queue some, and the ordinary limit of 1024 is a
/// courtesy to programs that use select(2). How large files get is for who owns the store to say, not for
/// the shell of the client that came first.
fn raise_limits() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    for resource in [Resource::Nofile, Resource::Fsize] {
        let mut limit = getrlimit(resource);
        limit.current = limit.maximum;
        // What the system grants is enough.
        let _ = setrlimit(resource, limit);
    }
}

fn recover(
    root: &Path,
    shown: &Path,
    tenure: &Tenure,
    report: &Report,
    clock: Clock,
) -> Result<Engine<Disk>, ServeError> {
    let storage = Arc::new(Disk::new(root));
    let begun = std::time::Instant::now();
    let mut queues = 0;
    let setup = Setup {
        storage,
        log_options: log::Options::default(),
        boot: tenure.before(),
        info: ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            producer_retry: limits::PRODUCER_RETRY,
            cannot: Vec::new(),
        },
        new_queue_id: Box::new(|| QueueId(random_uuid())),
        new_lease_secret: Box::new(|| random_uuid().as_fields().0),
        moment: clock.moment(),
        clock_zero: clock.zero(),
    };
    let engine = Engine::open(setup, &mut |name, error| {
        queues += 1;
        if let Some(error) = error {
            report.error(&format!("queue {name} stands still: {error}"));
        }
    })
    .map_err(ServeError::Queues)?;
    report.info(&format!(
        "mq-serve {} on {}: {queues} queues recovered in {} ms",
        env!("CARGO_PKG_VERSION"),
        shown.display(),
        begun.elapsed().as_millis()
    ));
    Ok(engine)
}

fn random_uuid() -> uuid::Uuid {
    let mut bytes = [0u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        // Blocks only before the kernel's pool is first seeded; cannot fail for 16 bytes.
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the system gives no random numbers: {error}"),
        }
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// A socket that a supervisor passed, which is never unlinked; else our own.
fn listen(store: StoreDir) -> Result<(UnixListener, Option<OwnSocket>), ServeError> {
    let passed = listenfd::ListenFd::from_env().take_unix_listener(0);
    if let Some(listener) = passed.map_err(io_error("use the socket that was passed"))? {
        return Ok((listener, None));
    }
    let (socket, listener) = OwnSocket::bind(store).map_err(io_error("listen on the socket"))?;
    Ok((listener, Some(socket)))
}

fn say_ready(options: &Options) -> Result<(), ServeError> {
    if options.started_by_client {
        // The client may have gone; the server is ready all the same.
        let _ = io::stdout().write_all(b"ready\n");
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(io_error("open /dev/null"))?;
        rustix::stdio::dup2_stdout(&null)
            .map_err(|e| io_error("leave the client's pipe")(e.into()))?;
    }
    // Without a supervisor there is nobody to notify.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    Ok(())
}

impl Started {
    fn run(self) -> Result<(), ServeError> {
        let (ended, engine) = self.event_loop.run().map_err(io_error("wait for events"))?;
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
        let report = Report::new(self.report_level);

        match ended {
            Ended::Orderly(reason, now) => match engine.close(now) {
                Ok(true) => {
                    report.info(&format!("stopped: {reason}"));
                    self.tenure.end().map_err(io_error("record the end in the store"))
                }
                Ok(false) => {
                    report.info(&format!("stopped before everything was synced: {reason}"));
                    Ok(())
                }
                Err(why) => Err(ServeError::Disk(why)),
            },
            Ended::Hurried => {
                report.info("stopped at once: a second signal came");
                Ok(())
            }
            Ended::Failed(why) => {
                report.error(&format!("stopped: {why}"));
                Err(ServeError::Disk(why))
            }
        }
    }
}
