//! Commands that the system has stopped because they asked the terminal.
//!
//! A command runs in a process group of its own, which is not the one in the terminal's foreground. One
//! that reads from the terminal there, or sets it, is stopped; it would be waited for without a word,
//! for ever. No descriptor tells of it. So who runs commands looks: a second after the start, then
//! after twice the time, and so on.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::units::Micros;

/// How long a command has run when it is looked at first.
pub(super) const FIRST_LOOK: Micros = Micros::from_secs(1);

/// Whether this child of ours is stopped because its group has asked the terminal. Its end, if it has
/// ended, is left for others to see.
pub(super) fn is_stopped_by_terminal(child: Pid) -> bool {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let found = rustix::process::waitid(WaitId::Pid(child), options);
    let signal = found.ok().flatten().and_then(|status| status.stopping_signal());
    signal.is_some_and(|signal| [Signal::TTIN, Signal::TTOU].map(Signal::as_raw).contains(&signal))
}
