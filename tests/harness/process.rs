//! A tool under test as a process: its pipes, its signals, its end.
//!
//! Nothing here waits without a deadline, and nothing reads a byte of stdout that the test did
//! not ask for: a byte taken out of the pipe is a byte acknowledged.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT};

use super::DEADLINE;

/// A process that has ended.
#[derive(Debug)]
pub struct Done {
    /// The command line, for messages.
    pub what: String,
    /// The exit status as a shell tells it: 128 plus the signal if it died by one.
    pub code: i32,
    /// All of its stdout that the test had not read before.
    pub stdout: Vec<u8>,
    /// All of its stderr.
    pub stderr: String,
}

impl Done {
    /// It must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Done {
        self.exits(0)
    }

    /// It must have ended with this status.
    #[track_caller]
    pub fn exits(self, code: i32) -> Done {
        let shown = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2000)]);
        assert_eq!(
            self.code, code,
            "{} ended with {} instead of {code}\n--- stderr\n{}--- stdout\n{shown}",
            self.what, self.code, self.stderr
        );
        self
    }

    /// Its stderr must hold this text.
    #[track_caller]
    pub fn says(self, part: &str) -> Done {
        assert!(
            self.stderr.contains(part),
            "{} does not say {part:?} on stderr, but\n{}",
            self.what,
            self.stderr
        );
        self
    }

    /// Its stderr must be empty.
    #[track_caller]
    pub fn quietly(self) -> Done {
        assert_eq!(self.stderr, "", "{} says something on stderr", self.what);
        self
    }

    /// Its stdout as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("UTF-8 on stdout")
    }
}

/// What is started heeds SIGINT and SIGHUP even if the tests themselves are run with them ignored,
/// as a shell without job control runs what is in its background, and as `nohup` does: a signal that
/// is caught here is at its default there.
pub fn heed_interrupts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [SIGINT, SIGHUP] {
            if mq::client::dispositions::is_ignored(signal) {
                let caught = Arc::new(AtomicBool::new(false));
                signal_hook::flag::register(signal, caught).expect("it can be caught");
            }
        }
    });
}

/// A running process with pipes on its three descriptors, in a process group of its own.
pub struct Running {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_reader: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts it. What the command already says about its descriptors is overruled.
    #[track_caller]
    pub fn start(mut command: Command) -> Running {
        heed_interrupts();
        let what = format!("{:?} {:?}", command.get_program(), command.get_args());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {what}: {e}"));
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let mut pipe = child.stderr.take().expect("stderr is piped");
        let sink = Arc::clone(&stderr);
        let stderr_reader = std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                sink.lock().expect("no panic while held").extend_from_slice(&buffer[..n]);
            }
        });
        Running {
            what,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            child,
            stderr,
            stderr_reader: Some(stderr_reader),
        }
    }

    /// Its process number.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().expect("no panic while held")).into_owned()
    }

    /// Whether it has ended already.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("own child").is_some()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("own child, not yet waited for");
    }

    /// Its stdin.
    #[track_caller]
    pub fn stdin(&mut self) -> &mut ChildStdin {
        self.stdin.as_mut().expect("stdin is still open")
    }

    /// Writes to its stdin.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.stdin().write_all(bytes).unwrap_or_else(|e| panic!("cannot write: {e}"));
    }

    /// Takes its stdin away, to be fed or closed elsewhere.
    #[track_caller]
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("stdin is still open")
    }

    /// Takes its stdout away.
    #[track_caller]
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.stdout.take().expect("stdout is still open")
    }

    /// Whether there is something to read, or the end, within `patience`.
    #[track_caller]
    pub fn has_output(&self, patience: Duration) -> bool {
        wait_readable(self.stdout.as_ref().expect("stdout is still open"), patience)
    }

    /// Takes exactly one line out of its stdout, without the newline; `None` at the end.
    #[track_caller]
    pub fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let stdout = self.stdout.as_mut().expect("stdout is still open");
        loop {
            assert!(
                wait_readable(&*stdout, DEADLINE),
                "{} prints no line; stderr: {}",
                self.what,
                String::from_utf8_lossy(&self.stderr.lock().expect("no panic while held"))
            );
            let mut byte = [0u8];
            match stdout.read(&mut byte).expect("a pipe can be read") {
                0 if line.is_empty() => return None,
                0 => panic!("{} ends within a line: {line:?}", self.what),
                _ if byte[0] == b'\n' => break,
                _ => line.push(byte[0]),
            }
        }
        Some(String::from_utf8(line).expect("a line of UTF-8"))
    }

    /// Takes `count` lines.
    #[track_caller]
    pub fn lines(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.line().expect("another line")).collect()
    }

    /// Waits until it has said `part` on stderr.
    #[track_caller]
    pub fn await_stderr(&mut self, part: &str) {
        super::eventually(&format!("{} says {part:?}", self.what), || {
            // Its end may be seen before its last words, which a thread reads.
            let is_over = self.stderr_reader.as_ref().is_none_or(JoinHandle::is_finished);
            let said = self.stderr();
            assert!(
                said.contains(part) || !is_over,
                "{} ended without saying {part:?}:\n{said}",
                self.what
            );
            said.contains(part).then_some(())
        });
    }

    /// Waits for its end without touching its stdout.
    #[track_caller]
    pub fn await_end(&mut self) -> i32 {
        self.await_end_within(DEADLINE)
    }

    #[track_caller]
    fn await_end_within(&mut self, deadline: Duration) -> i32 {
        if let Ok(handle) = pidfd_open(self.pid(), PidfdFlags::empty()) {
            assert!(
                wait_readable(&handle, deadline),
                "{} does not end; stderr: {}",
                self.what,
                self.stderr()
            );
        }
        shell_status(self.child.wait().expect("own child"))
    }

    /// Ends its input, reads what is left of its output, waits for its end.
    #[track_caller]
    pub fn finish(self) -> Done {
        self.finish_within(DEADLINE)
    }

    /// The same with another deadline: for what waits on servers that are not ours.
    #[track_caller]
    pub fn finish_within(mut self, deadline: Duration) -> Done {
        self.stdin = None;
        let mut rest = Vec::new();
        if let Some(mut stdout) = self.stdout.take() {
            let start = Instant::now();
            let mut buffer = vec![0u8; 1 << 16];
            loop {
                let left = deadline.saturating_sub(start.elapsed());
                assert!(
                    wait_readable(&stdout, left),
                    "{} does not end its output; stderr: {}",
                    self.what,
                    self.stderr()
                );
                match stdout.read(&mut buffer).expect("a pipe can be read") {
                    0 => break,
                    n => rest.extend_from_slice(&buffer[..n]),
                }
            }
        }
        let code = self.await_end_within(deadline);
        let stderr = self.last_words();
        Done { what: self.what.clone(), code, stdout: rest, stderr }
    }

    /// All that a process that has ended said on stderr.
    #[track_caller]
    pub fn last_words(&mut self) -> String {
        // The end of stderr comes with the end of the process, unless a child kept it open,
        // which is an error of its own.
        let reader = self.stderr_reader.take().expect("asked for only once");
        super::eventually(&format!("{} lets go of stderr", self.what), || {
            reader.is_finished().then_some(())
        });
        self.stderr()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // The whole group: a shell's children must not outlive a failed test.
            let _ = kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end with `input` on its stdin.
#[track_caller]
pub fn run(command: Command, input: &[u8]) -> Done {
    let mut running = Running::start(command);
    if input.is_empty() {
        return running.finish();
    }
    let mut stdin = running.take_stdin();
    std::thread::scope(|scope| {
        // A tool that does not read all of its input is not this thread's failure.
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        running.finish()
    })
}

fn shell_status(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().expect("neither status nor signal"))
}

/// Whether `fd` has something to read, or has come to its end, within `patience`.
pub fn wait_readable(fd: impl AsFd, patience: Duration) -> bool {
    let start = Instant::now();
    loop {
        let left = patience.saturating_sub(start.elapsed());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().expect("a deadline of minutes"),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(n) => return n > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}
