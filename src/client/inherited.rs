//! Whether the process was given a stdin and a stdout.
//!
//! Rust's runtime opens `/dev/null` in the place of a standard descriptor that is closed, before
//! `main` begins, so that no other file gets its number. For a tool that takes messages out of a
//! queue, or prints what it was asked for, this would mean to throw them away without a word, and
//! for a sender to take nothing for its whole input; so it is looked at before that.

use std::sync::atomic::{AtomicBool, Ordering};

static STDIN_WAS_OPEN: AtomicBool = AtomicBool::new(true);
static STDOUT_WAS_OPEN: AtomicBool = AtomicBool::new(true);

extern "C" fn look() {
    let stdin = rustix::io::fcntl_getfd(rustix::stdio::stdin()).is_ok();
    let stdout = rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_ok();
    STDIN_WAS_OPEN.store(stdin, Ordering::Relaxed);
    STDOUT_WAS_OPEN.store(stdout, Ordering::Relaxed);
}

// SAFETY: `.init_array` holds pointers to functions of the C calling convention, which the C
// runtime calls once each before `main`; `look` is one, ignores the arguments it is given, and
// uses nothing that needs Rust's runtime: two system calls and two atomic stores.
#[allow(unsafe_code)]
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Whether stdin was open when the process began.
#[must_use]
pub fn stdin_was_open() -> bool {
    STDIN_WAS_OPEN.load(Ordering::Relaxed)
}

/// Whether stdout was open when the process began.
#[must_use]
pub fn stdout_was_open() -> bool {
    STDOUT_WAS_OPEN.load(Ordering::Relaxed)
}
