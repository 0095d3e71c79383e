//! What this process does with signals, as whoever started it left it. Asks the kernel, changes
//! nothing; for the tools' signal handling and for the [commands](super::command).

use std::io::Read;

/// What the kernel tells of a process fits this.
const STATUS_BYTES: usize = 4096;

/// The signals that are ignored: a mask with bit `n - 1` for signal `n`, by what the kernel tells
/// of this process.
#[must_use]
pub fn ignored_signals() -> u64 {
    let mut bytes = [0u8; STATUS_BYTES];
    let length =
        std::fs::File::open("/proc/self/status").and_then(|mut file| file.read(&mut bytes));
    String::from_utf8_lossy(&bytes[..length.unwrap_or(0)])
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
