//! Data on stdout as JSON lines, and numbers for people.

use std::io::Write;

use serde::Serialize;

use super::{Failure, Status};
use crate::client::inherited::stdout_was_open;

/// One value as a line of JSON, with its newline.
///
/// # Panics
/// When a type of our own cannot be serialized.
pub fn json_line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("our own types serialize");
    line.push(b'\n');
    line
}

/// Prints one value as a line of JSON on stdout.
///
/// # Errors
/// A stdout that does not take it; a reader that has gone is the signal SIGPIPE.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    print(&json_line(value))
}

/// Prints on stdout.
///
/// # Errors
/// See [`print_json`].
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    if !stdout_was_open() {
        return Err(Failure::new(Status::Failure, "cannot write to stdout: it is closed"));
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => {
            Failure::new(Status::Signal(signal_hook::consts::SIGPIPE), "")
        }
        _ => not_written(&error),
    })
}

/// Something does not take what is written to stdout. A disk that is full is one for now.
#[must_use]
pub fn not_written(error: &std::io::Error) -> Failure {
    use std::io::ErrorKind;
    let is_full = matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    );
    let status = if is_full { Status::TryAgain } else { Status::Failure };
    Failure::new(status, format!("cannot write to stdout: {error}"))
}

/// Bytes for people, in at most six characters: `0`, `812`, `1.5K`, `64M`, `1.2G`.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["", "K", "M", "G", "T", "P", "E"])
}

/// A count for people, in at most six characters: `0`, `9999`, `12k`, `1.5M`.
#[must_use]
pub fn human_count(count: u64) -> String {
    if count < 10_000 {
        return count.to_string();
    }
    scaled(count, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

fn scaled(number: u64, step: f64, units: &[&str]) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    if unit == 0 {
        number.to_string()
    } else if value < 10.0 {
        format!("{value:.1}{}", units[unit])
    } else {
        format!("{value:.0}{}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people_are_short() {
        assert_eq!(human_bytes(0), "0");
        assert_eq!(human_bytes(812), "812");
        assert_eq!(human_bytes(1536), "1.5K");
        assert_eq!(human_bytes(64 << 20), "64M");
        assert_eq!(human_count(9999), "9999");
        assert_eq!(human_count(12_300), "12k");
        assert_eq!(human_count(10_000_000), "10M");
        assert!(human_count(u64::MAX).len() <= 6);
    }
}
