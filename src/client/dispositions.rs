//! What this process does with signals, as whoever started it left it. Asks the kernel, changes
//! nothing; for the tools' signal handling and for the [commands](super::command).

use nix::libc;

/// Whether this process ignores a signal.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    let mut found = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    #[allow(unsafe_code)]
    // SAFETY: without a new action the call changes nothing; it fills `found`, which is large
    // enough, or fails and is not looked at. No crate of ours asks without setting.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), found.as_mut_ptr()) == 0
            && found.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
