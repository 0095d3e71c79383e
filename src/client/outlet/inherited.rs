//! Whether the process was given a stdout.
//!
//! Rust's runtime opens `/dev/null` in the place of a standard descriptor that is closed, before
//! `main` begins, so that no other file gets its number. For a tool that takes messages out of a
//! queue this would mean to throw them away without a word; so it is looked at before that.

use std::sync::atomic::{AtomicBool, Ordering};

static WAS_OPEN: AtomicBool = AtomicBool::new(true);

extern "C" fn look() {
    let open = rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_ok();
    WAS_OPEN.store(open, Ordering::Relaxed);
}

// SAFETY: `.init_array` holds pointers to functions of the C calling convention, which the C
// runtime calls once each before `main`; `look` is one, ignores the arguments it is given, and
// uses nothing that needs Rust's runtime: one system call and one atomic store.
#[allow(unsafe_code)]
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Whether stdout was open when the process began.
#[must_use]
pub fn stdout_was_open() -> bool {
    WAS_OPEN.load(Ordering::Relaxed)
}
