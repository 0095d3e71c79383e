//! Sizes as users write them, durations as they read them.

use crate::units::Micros;

/// Reads a size, for clap: a number of bytes, or one with a unit (`64MiB`, `1.5GiB`, `500kB`).
///
/// # Errors
/// How to write one.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size; write it as 4096, 500kB, 64MiB or 1.5GiB");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return Err(bad()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(bad);
    }
    let bytes = number.parse::<f64>().map_err(|_| bad())? * factor as f64;
    // Beyond this a float does not know single bytes any more, and no disk has so many.
    if factor > 1 && bytes < (1u64 << 53) as f64 { Ok(bytes.round() as u64) } else { Err(bad()) }
}

/// A duration as a user would write it, exactly: `1h30m`, `250ms`, `0s`.
#[must_use]
pub fn duration_text(duration: Micros) -> String {
    const UNITS: [(&str, u64); 6] = [
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1_000),
        ("us", 1),
    ];
    let mut rest = duration.0;
    let mut text = String::new();
    for (unit, micros) in UNITS {
        if rest >= micros {
            text.push_str(&format!("{}{unit}", rest / micros));
            rest %= micros;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// An age for people, to two units at most: `3d4h`, `12m5s`, `0s`.
#[must_use]
pub fn human_age(age: Micros) -> String {
    let seconds = age.0 / 1_000_000;
    let (high, low) = match seconds {
        0..60 => return format!("{seconds}s"),
        60..3_600 => ((seconds / 60, "m"), (seconds % 60, "s")),
        3_600..86_400 => ((seconds / 3_600, "h"), (seconds % 3_600 / 60, "m")),
        _ => ((seconds / 86_400, "d"), (seconds % 86_400 / 3_600, "h")),
    };
    match low {
        (0, _) => format!("{}{}", high.0, high.1),
        (number, unit) => format!("{}{}{number}{unit}", high.0, high.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::parse_duration;

    #[test]
    fn sizes_read_as_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("500kB", 500_000),
            ("64MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("2T", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "1.5", "-1", "1 MiB", "1mib", "99999999999999999999", "1..5G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_read_back_as_they_are_shown() {
        for (text, shown) in [("90m", "1h30m"), ("1500us", "1ms500us"), ("0", "0s"), ("8d", "8d")] {
            let duration = parse_duration(text).expect("a duration");
            assert_eq!(duration_text(duration), shown);
            assert_eq!(parse_duration(shown), Ok(duration));
        }
    }

    #[test]
    fn ages_are_short() {
        for (text, shown) in [("0", "0s"), ("59.9s", "59s"), ("61s", "1m1s"), ("2h", "2h")] {
            assert_eq!(human_age(parse_duration(text).expect("a duration")), shown);
        }
        assert_eq!(human_age(parse_duration("76h30m").expect("a duration")), "3d4h");
    }
}
