//! What the server tells its operator: lines with a time on stderr.
//!
//! When stderr is a file (`server.log` of a server that a client started), it is cut before it
//! grows over its bound. Never used for data; never fails.

use std::cell::Cell;
use std::io::Write;

use crate::limits;

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Only what is wrong.
    Error,
    /// Also starting, stopping, recovery.
    #[default]
    Info,
    /// Also each connection.
    Debug,
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Level, String> {
        match text {
            "error" => Ok(Level::Error),
            "info" => Ok(Level::Info),
            "debug" => Ok(Level::Debug),
            _ => Err(format!("{text:?} is no log level; it is error, info or debug")),
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Report {
    level: Level,
    written: Cell<u64>,
    is_file: bool,
}

impl Report {
    /// Tells what `level` asks for.
    #[must_use]
    pub fn new(level: Level) -> Report {
        let stat = rustix::fs::fstat(std::io::stderr()).ok();
        let is_file = stat.is_some_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
        });
        let written = stat.filter(|_| is_file).map_or(0, |stat| stat.st_size.unsigned_abs());
        Report { level, written: Cell::new(written), is_file }
    }

    /// Something is wrong.
    pub fn error(&self, text: &str) {
        self.line(text);
    }

    /// Something that an operator wants to know.
    pub fn info(&self, text: &str) {
        if self.level >= Level::Info {
            self.line(text);
        }
    }

    /// Something that is wanted when looking for a fault.
    pub fn debug(&self, text: &str) {
        if self.level >= Level::Debug {
            self.line(text);
        }
    }

    fn line(&self, text: &str) {
        let line =
            format!("{:.3} mq-serve[{}]: {text}\n", jiff::Timestamp::now(), std::process::id());
        if self.is_file && self.written.get() + line.len() as u64 > limits::SERVER_LOG_BYTES_MAX {
            // The newest lines are the ones that someone will look for.
            if rustix::fs::ftruncate(std::io::stderr(), 0).is_ok() {
                self.written.set(0);
            }
        }
        self.written.set(self.written.get() + line.len() as u64);
        // Nobody is left to be told when stderr is gone.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
