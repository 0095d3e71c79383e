//! What the black-box tests and the bench stand on: a store of its own, the real tools run
//! against it, and waiting for events with a deadline.
//!
//! Never looks into the tools: only arguments, pipes, signals, exit statuses, files and the
//! socket. Whatever happens, a store's server is stopped and its files are removed when the
//! [`Store`] is dropped. Used by `tests/tools` and `benches/pipe`.

#[allow(dead_code, reason = "each test uses a part of it")]
pub mod bench;
pub mod peer;
pub mod process;
pub mod small_disk;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

pub use process::{Done, Running};

/// How long a test waits for anything before it fails: long enough for a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The binary of a tool, as this run has built it.
pub fn tool(name: &str) -> &'static Path {
    Path::new(match name {
        "mq-serve" => env!("CARGO_BIN_EXE_mq-serve"),
        "mq-send" => env!("CARGO_BIN_EXE_mq-send"),
        "mq-recv" => env!("CARGO_BIN_EXE_mq-recv"),
        "mq-admin" => env!("CARGO_BIN_EXE_mq-admin"),
        "mq-stat" => env!("CARGO_BIN_EXE_mq-stat"),
        "mq-pipe" => env!("CARGO_BIN_EXE_mq-pipe"),
        _ => panic!("no tool is called {name}"),
    })
}

/// A store directory of its own, which no other test knows.
pub struct Store {
    /// Holds the store, and whatever a test wants beside it.
    root: tempfile::TempDir,
    dir: PathBuf,
}

impl Store {
    /// A store that does not exist yet: the first tool makes it.
    pub fn new() -> Store {
        Store::below(&std::env::temp_dir())
    }

    /// The same on the file system of `parent`.
    pub fn below(parent: &Path) -> Store {
        let root = tempfile::Builder::new()
            .prefix("mq-test-")
            .tempdir_in(parent)
            .unwrap_or_else(|e| panic!("cannot make a directory in {}: {e}", parent.display()));
        let dir = root.path().join("store");
        Store { root, dir }
    }

    /// The same store under another name below the same root.
    pub fn named(mut self, name: impl AsRef<Path>) -> Store {
        self.dir = self.root.path().join(name);
        self
    }

    /// The store directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A path beside the store, for a test's own files.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A tool with its arguments, to be run against this store.
    pub fn command<A: AsRef<OsStr>>(&self, name: &str, args: &[A]) -> Command {
        let mut command = Command::new(tool(name));
        command.args(args);
        self.environment(&mut command);
        command
    }

    /// A line of shell with the tools in its path; a failure anywhere in a pipe is one of all.
    pub fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", script]);
        self.environment(&mut command);
        command
    }

    /// Nothing of the surrounding environment may decide which store is meant.
    fn environment(&self, command: &mut Command) {
        let bin = tool("mq-send").parent().expect("a binary lies in a directory");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            std::iter::once(bin.to_owned()).chain(std::env::split_paths(&path)),
        );
        for (key, _) in std::env::vars_os() {
            // But for a planted bug, which is to be in the tools too.
            if key.to_string_lossy().starts_with("MQ_") && key != "MQ_PLANTED" {
                command.env_remove(key);
            }
        }
        command
            .env("MQ_DIR", &self.dir)
            .env("HOME", self.root.path())
            .env("PATH", path.expect("no directory in PATH holds a colon"))
            .env("LC_ALL", "C")
            .current_dir(self.root.path());
    }

    /// Runs a tool to its end with `input` on its stdin.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, name: &str, args: &[A], input: &[u8]) -> Done {
        process::run(self.command(name, args), input)
    }

    /// Runs a line of shell to its end, with nothing on its stdin.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Done {
        process::run(self.shell(script), b"")
    }

    /// Starts a tool with pipes on all three of its descriptors.
    #[track_caller]
    pub fn spawn<A: AsRef<OsStr>>(&self, name: &str, args: &[A]) -> Running {
        Running::start(self.command(name, args))
    }

    /// Sends lines; the test fails if that does.
    #[track_caller]
    pub fn send(&self, queue: &str, input: &[u8]) {
        self.run("mq-send", &[queue], input).ok();
    }

    /// Receives what is ready.
    #[track_caller]
    pub fn receive(&self, queue: &str) -> Vec<u8> {
        self.run("mq-recv", &["-e", queue], b"").ok().stdout
    }

    /// Starts the server in the foreground, as a supervisor would, and waits until it answers.
    #[track_caller]
    pub fn serve(&self) -> Running {
        self.serve_with(&[])
    }

    /// The same with further arguments.
    #[track_caller]
    pub fn serve_with(&self, args: &[&str]) -> Running {
        let mut server = self.spawn("mq-serve", args);
        eventually("the server answers", || {
            assert!(!server.has_ended(), "mq-serve ended: {}", server.stderr());
            peer::Peer::connect(self).ok()
        });
        server
    }

    /// The process that serves this store, if there is one.
    pub fn server(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.dir.join("lock")).ok()?;
        let digits: String = text.trim_start().chars().take_while(|c| c.is_ascii_digit()).collect();
        let pid = Pid::from_raw(digits.parse().ok()?)?;
        // The file outlives a killed server, whose number may belong to another process by now.
        self.is_our_server(pid).then_some(pid)
    }

    /// Whether a process is a server that was started for this store.
    fn is_our_server(&self, pid: Pid) -> bool {
        let proc_dir = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let read = |name| std::fs::read(proc_dir.join(name)).unwrap_or_default();
        let command = read("cmdline");
        if !command.split(|b| *b == 0).next().is_some_and(|name| name.ends_with(b"mq-serve")) {
            return false;
        }
        let ours = self.dir.as_os_str().as_encoded_bytes();
        let names_ours = |bytes: &[u8]| bytes.windows(ours.len()).any(|window| window == ours);
        names_ours(&command) || names_ours(&read("environ"))
    }

    /// Every server that was started for this store, ready or not.
    pub fn servers(&self) -> Vec<Pid> {
        std::fs::read_dir("/proc")
            .expect("/proc is there")
            .filter_map(|entry| {
                let pid = Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?)?;
                self.is_our_server(pid).then_some(pid)
            })
            .collect()
    }

    /// Sends the server a signal, once there is one; waits until it is gone if that is what the
    /// signal does.
    #[track_caller]
    pub fn signal_server(&self, signal: Signal) {
        let pid = eventually("a server is running", || self.server());
        let ends = ![Signal::STOP, Signal::CONT].contains(&signal);
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        let _ = pidfd_send_signal(&handle, signal);
        if ends {
            assert!(process::wait_readable(&handle, DEADLINE), "the server outlives {signal:?}");
        }
    }

    /// The server dies as in a crash of its process.
    #[track_caller]
    pub fn kill_server(&self) {
        self.signal_server(Signal::KILL);
    }

    /// Ends every server of this store, also one that is only just starting.
    pub fn end_servers(&self) {
        loop {
            let servers = self.servers();
            if servers.is_empty() {
                return;
            }
            for pid in servers {
                let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
                let _ = pidfd_send_signal(&handle, Signal::KILL);
                process::wait_readable(&handle, Duration::from_secs(5));
            }
        }
    }

    /// What `mq-admin show -J` says about a queue; `None` when there is no such queue.
    #[track_caller]
    pub fn show(&self, queue: &str) -> Option<Value> {
        let done = self.run("mq-admin", &["show", "-J", queue], b"");
        if done.code != 0 {
            return None;
        }
        Some(serde_json::from_slice(&done.stdout).unwrap_or_else(|e| {
            panic!(
                "mq-admin show -J prints no JSON: {e}\n{}",
                String::from_utf8_lossy(&done.stdout)
            )
        }))
    }

    /// One of the numbers of `show`.
    #[track_caller]
    pub fn number(&self, queue: &str, field: &str) -> u64 {
        let info = self.show(queue).unwrap_or_else(|| panic!("there is no queue {queue}"));
        info[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {info}"))
    }

    /// Waits until a number of `show` is as expected.
    #[track_caller]
    pub fn await_number(&self, queue: &str, field: &str, expected: u64) {
        eventually(&format!("{field} of {queue} is {expected}"), || {
            let info = self.show(queue)?;
            (info[field].as_u64() == Some(expected)).then_some(())
        });
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.end_servers();
    }
}

/// Asks until the answer is there; the one place of the tests that looks again after a while,
/// for what no descriptor can be waited on.
#[track_caller]
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    eventually_within(DEADLINE, what, ask)
}

/// The same with another deadline: for what waits on servers that are not ours.
#[track_caller]
pub fn eventually_within<T>(
    deadline: Duration,
    what: &str,
    mut ask: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < deadline, "after {deadline:?} still not: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A size from the environment, or the one for the ordinary run.
pub fn size(variable: &str, ordinary: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => ordinary,
    }
}

/// The numbers from `first` to `last`, each on a line, as `seq` writes them.
pub fn seq(first: u64, last: u64) -> Vec<u8> {
    (first..=last).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

/// Whether the test runs as root, which some faults need to be made.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that a test did not happen, in a way that is seen in the output of a run.
pub fn skip(test: &str, why: &str) {
    use std::io::Write;
    // Written past the capture of the test runner, which shows nothing of a test that passes.
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED {test}: {why}");
}

/// Deterministic pseudo-random numbers (SplitMix64), so that a run can be repeated.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Random bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count + 8);
        while out.len() < count {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(count);
        out
    }
}
