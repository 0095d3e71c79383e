//! A tool on a real pseudo-terminal, with an emulator that says what a person would see.

use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::harness::DEADLINE;
use crate::harness::process::wait_readable;

/// A terminal with a tool on it.
pub struct Terminal {
    what: String,
    master: OwnedFd,
    /// Kept open, so that the settings can be asked for when the tool has ended.
    slave: OwnedFd,
    before: Termios,
    child: Child,
    emulator: vt100::Parser,
    /// Every byte that came.
    pub bytes: Vec<u8>,
}

/// Settings as far as programs change them.
fn modes(settings: &Termios) -> String {
    format!(
        "{:?} {:?} {:?} {:?}",
        settings.input_modes, settings.output_modes, settings.control_modes, settings.local_modes
    )
}

impl Terminal {
    /// Starts a command on a terminal of its own, in a session of its own.
    pub fn start(command: &Command, columns: u16, lines: u16) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a pseudo-terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let slave: OwnedFd = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(name.to_str().expect("a plain name"))
            .expect("the other end")
            .into();
        tcsetwinsize(&master, winsize(columns, lines)).expect("a size");
        let before = tcgetattr(&slave).expect("settings");
        let what = format!("{:?} {:?}", command.get_program(), command.get_args());
        // The terminal is the session's own, so that its signals reach the tool and no other.
        let mut session = Command::new("setsid");
        session.arg("-c").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            session.current_dir(dir);
        }
        let end = || Stdio::from(slave.try_clone().expect("another descriptor"));
        crate::harness::process::heed_interrupts();
        let child = session.stdin(end()).stdout(end()).stderr(end()).spawn();
        Terminal {
            what,
            child: child.expect("setsid of util-linux"),
            emulator: vt100::Parser::new(some(lines), some(columns), 0),
            bytes: Vec::new(),
            master,
            slave,
            before,
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("own child, not yet waited for");
    }

    /// Types.
    pub fn keys(&self, keys: &str) {
        let written = rustix::io::write(&self.master, keys.as_bytes()).expect("keys are taken");
        assert_eq!(written, keys.len());
    }

    /// Changes its size.
    pub fn resize(&mut self, columns: u16, lines: u16) {
        self.emulator.screen_mut().set_size(some(lines), some(columns));
        tcsetwinsize(&self.master, winsize(columns, lines)).expect("a size");
    }

    /// What it shows.
    pub fn text(&self) -> String {
        self.emulator.screen().contents()
    }

    /// Whether the alternate screen is shown, and whether the cursor is hidden.
    pub fn is_taken(&self) -> (bool, bool) {
        (self.emulator.screen().alternate_screen(), self.emulator.screen().hide_cursor())
    }

    /// Whether its settings are those from before the tool.
    pub fn is_as_found(&self) -> bool {
        modes(&tcgetattr(&self.slave).expect("settings")) == modes(&self.before)
    }

    /// Takes what has come within so long; false when nothing has.
    pub fn pump(&mut self, patience: Duration) -> bool {
        if !wait_readable(self.master.as_fd(), patience) {
            return false;
        }
        let mut buffer = [0u8; 1 << 16];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(length) if length > 0 => {
                self.emulator.process(&buffer[..length]);
                self.bytes.extend_from_slice(&buffer[..length]);
                true
            }
            _ => false,
        }
    }

    /// Waits until it shows what is wanted.
    #[track_caller]
    pub fn await_text(&mut self, what: &str, mut is_there: impl FnMut(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let text = self.text();
            if is_there(&text) {
                return text;
            }
            assert!(start.elapsed() < DEADLINE, "{} does not show {what}, but\n{text}", self.what);
            if !self.pump(Duration::from_millis(200))
                && let Ok(Some(status)) = self.child.try_wait()
            {
                while self.pump(Duration::ZERO) {}
                panic!("{} ended ({status}) and shows\n{}", self.what, self.text());
            }
        }
    }

    /// Waits until it shows a text.
    #[track_caller]
    pub fn await_words(&mut self, words: &str) -> String {
        self.await_text(words, |text| text.contains(words))
    }

    /// Waits until its process is in a state, by the letter of proc(5).
    #[track_caller]
    pub fn await_state(&mut self, letter: char) {
        let path = format!("/proc/{}/stat", self.pid().as_raw_nonzero());
        crate::harness::eventually(&format!("{} is in state {letter}", self.what), || {
            self.pump(Duration::ZERO);
            let stat = std::fs::read_to_string(&path).ok()?;
            stat.rsplit_once(") ")?.1.starts_with(letter).then_some(())
        });
    }

    /// Waits for its end; its exit status, as a shell tells it.
    #[track_caller]
    pub fn await_end(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let what = self.what.clone();
        let status = crate::harness::eventually(&format!("{what} ends"), || {
            self.pump(Duration::ZERO);
            self.child.try_wait().expect("own child")
        });
        while self.pump(Duration::ZERO) {}
        status.code().unwrap_or_else(|| 128 + status.signal().expect("neither"))
    }

    /// It has ended, and the terminal is as it was.
    #[track_caller]
    pub fn is_given_back(&mut self, code: i32) {
        let ended = self.await_end();
        assert_eq!(ended, code, "{} shows\n{}", self.what, self.text());
        assert!(self.is_as_found(), "{} leaves the terminal in another mode", self.what);
        assert_eq!(self.is_taken(), (false, false), "{} leaves its screen", self.what);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn some(size: u16) -> NonZero<u16> {
    NonZero::new(size).expect("a terminal has a size")
}

fn winsize(columns: u16, lines: u16) -> Winsize {
    Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
