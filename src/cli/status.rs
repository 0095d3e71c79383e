//! The exit statuses, the same for every tool.

use std::process::ExitCode;

/// How a tool ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 0: done.
    Done,
    /// 1: a failure that none of the others names.
    Failure,
    /// 2: the command line makes no sense.
    Usage,
    /// 65: the input cannot be taken as it is.
    BadInput,
    /// 69: no server.
    NoServer,
    /// 75: full or busy; the same command may work later.
    TryAgain,
    /// 123: a command failed for good.
    CommandFailed,
    /// 124: waited in vain.
    WaitedInVain,
    /// 126: a command cannot be run.
    NotRunnable,
    /// 127: a command was not found.
    NotFound,
    /// 128 and the number: ended by a signal.
    Signal(i32),
}

impl Status {
    /// The number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Status::Done => 0,
            Status::Failure => 1,
            Status::Usage => 2,
            Status::BadInput => 65,
            Status::NoServer => 69,
            Status::TryAgain => 75,
            Status::CommandFailed => 123,
            Status::WaitedInVain => 124,
            Status::NotRunnable => 126,
            Status::NotFound => 127,
            Status::Signal(signal) => 128u8.wrapping_add(signal as u8),
        }
    }

    /// What `main` returns.
    #[must_use]
    pub fn code(self) -> ExitCode {
        ExitCode::from(self.number())
    }
}
