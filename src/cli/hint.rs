//! Hints: one line on stderr for what is legal and yet seldom meant.

use std::os::fd::AsFd;

use super::human_count;
use crate::units::Count;

/// Whether this is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    rustix::termios::isatty(fd)
}

/// What to say when the first group of a queue was made behind messages, which nobody gets then.
#[must_use]
pub fn passed_over(queue: &dyn std::fmt::Display, passed: Count) -> String {
    format!(
        "no group gets {} messages of {queue}: this is its first, and begins behind them\n  \
         next time: `mq-admin group add {queue} GROUP` before, for those who are to have them",
        human_count(passed.0)
    )
}

/// What to say when stdin is about to be read and is a terminal.
#[must_use]
pub fn terminal_hint(tool: &str) -> String {
    format!("{tool}: reading messages from the terminal, one a line; end with Ctrl-D\n")
}

/// What to say when the input holds NUL bytes and is taken line by line.
#[must_use]
pub fn binary_hint(tool: &str) -> String {
    format!(
        "{tool}: the input holds NUL bytes and is sent line by line all the same\n  \
         try: --whole for one message, or -0 when NULs end the messages\n"
    )
}
