//! Numbers and texts for narrow columns: never wider than they say, the same at every place.
//!
//! Pure. Used by everything in [`view`](super) that writes for people.

use crate::units::Micros;

/// The widest that [`count`], [`rate`], [`latency`] and [`age`] get, in characters.
pub const NUMBER_WIDTH: usize = 5;

/// A count in at most five characters: `0`, `9999`, `12.3k`, `1.50M`.
#[must_use]
pub fn count(count: u64) -> String {
    scaled(count as f64, 10_000.0, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// A count in at most four characters: `0`, `9999`, `12k`, `1.5M`.
#[must_use]
pub fn short_count(count: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if count < 10_000 {
        return count.to_string();
    }
    let mut value = count as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.5 {
        value /= 1e3;
        unit += 1;
    }
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$}{}", UNITS[unit])
}

/// Messages in a second, in at most five characters: `0`, `0.25`, `7.5`, `812`, `12.3k`.
#[must_use]
pub fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate.is_nan() || rate < 0.005 => "0".to_owned(),
        rate if rate < 0.995 => format!("{rate:.2}"),
        rate if rate < 9.95 => format!("{rate:.1}"),
        rate => scaled(rate, 10_000.0, 1000.0, &["", "k", "M", "G", "T", "P", "E"]),
    }
}

/// Bytes in at most five characters: `0`, `812`, `1.50K`, `64.0M`.
#[must_use]
pub fn bytes(bytes: f64) -> String {
    scaled(bytes, 1000.0, 1024.0, &["", "K", "M", "G", "T", "P", "E"])
}

/// Three digits that count, and a unit, once the number is at `whole_below` or more.
fn scaled(number: f64, whole_below: f64, step: f64, units: &[&str]) -> String {
    let number = if number.is_finite() && number > 0.0 { number } else { 0.0 };
    if number.round() < whole_below {
        return format!("{number:.0}");
    }
    let mut value = number / step;
    let mut unit = 1;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let unit = units[unit];
    match value {
        value if value < 9.995 => format!("{value:.2}{unit}"),
        value if value < 99.95 => format!("{value:.1}{unit}"),
        value => format!("{value:.0}{unit}"),
    }
}

/// A latency in at most five characters: `850us`, `1.2ms`, `45ms`, `1.3s`, `2m05s`, `3h`.
#[must_use]
pub fn latency(latency: Micros) -> String {
    let micros = latency.0 as f64;
    match latency.0 {
        0..1_000 => format!("{micros:.0}us"),
        1_000..9_950 => format!("{:.1}ms", micros / 1e3),
        9_950..999_500 => format!("{:.0}ms", micros / 1e3),
        999_500..9_950_000 => format!("{:.1}s", micros / 1e6),
        9_950_000..60_000_000 => format!("{:.0}s", micros / 1e6),
        _ => age(latency),
    }
}

/// An age in at most five characters: `0s`, `59s`, `9m59s`, `12m`, `3h20m`, `47h`, `12d`.
#[must_use]
pub fn age(age: Micros) -> String {
    let seconds = age.0 / 1_000_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        600..3_600 => format!("{}m", seconds / 60),
        3_600..36_000 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        36_000..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", (seconds / 86_400).min(9_999)),
    }
}

/// A number with its thousands apart: `12,345,678`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A part of a whole in percent, which is 100 only when nothing is missing: `100 %`, `99.99 %`,
/// `0 %`.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    if part >= whole {
        return "100 %".to_owned();
    }
    // Cut, not rounded.
    let hundredths = u128::from(part) * 10_000 / u128::from(whole);
    match (hundredths / 100, hundredths % 100) {
        (percent, 0) if percent < 99 => format!("{percent} %"),
        (percent, rest) => format!("{percent}.{rest:02} %"),
    }
}

/// A text from elsewhere as it can stand on a terminal: each character takes one column, and
/// none is an instruction to the terminal. Beyond ASCII only what is surely one column wide, and
/// only with `utf8`.
#[must_use]
pub fn printable(text: &str, utf8: bool) -> String {
    use unicode_width::UnicodeWidthChar;
    let shown = |c: char| {
        let is_plain = c.is_ascii_graphic() || c == ' ';
        let is_narrow = utf8 && !c.is_control() && c.width() == Some(1) && !is_invisible(c);
        if is_plain || is_narrow { c } else { '?' }
    };
    text.chars().map(shown).collect()
}

/// Characters that direct the writing of others.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A text in at most so many columns; where it is cut, the mark says so.
#[must_use]
pub fn cut(text: &str, width: usize, mark: char) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain((width > 0).then_some(mark)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_leave_their_columns() {
        let mut number = 1u64;
        while let Some(next) = number.checked_mul(3) {
            for near in [number - 1, number, number + 1] {
                let time = Micros(near);
                assert!(short_count(near).len() <= 4, "{near}: {}", short_count(near));
                for text in
                    [count(near), rate(near as f64 / 1e3), bytes(near as f64), latency(time)]
                {
                    assert!(text.len() <= NUMBER_WIDTH, "{near}: {text}");
                }
                assert!(age(time).len() <= NUMBER_WIDTH, "{near}: {}", age(time));
            }
            number = next;
        }
        for edge in [9_999, 10_000, 99_949, 99_950, 999_499, 999_500, 999_999, 9_995_000] {
            assert!(count(edge).len() <= NUMBER_WIDTH, "{edge}: {}", count(edge));
        }
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!([0, 9_999, 12_345, 1_500_000].map(count), ["0", "9999", "12.3k", "1.50M"]);
        assert_eq!(
            [0.0, 0.004, 0.25, 7.5, 812.4, 12_345.0].map(rate),
            ["0", "0", "0.25", "7.5", "812", "12.3k"]
        );
        assert_eq!(rate(f64::NAN), "0");
        assert_eq!([0.0, 812.0, 1536.0, 67_108_864.0].map(bytes), ["0", "812", "1.50K", "64.0M"]);
        let latencies = [850, 1_234, 45_000, 1_300_000, 125_000_000, 10_800_000_000];
        assert_eq!(
            latencies.map(|micros| latency(Micros(micros))),
            ["850us", "1.2ms", "45ms", "1.3s", "2m05s", "3h00m"]
        );
        let ages = [0, 59, 599, 600, 12_000, 100_000, 2_000_000];
        assert_eq!(
            ages.map(|seconds| age(Micros::from_secs(seconds))),
            ["0s", "59s", "9m59s", "10m", "3h20m", "27h", "23d"]
        );
        assert_eq!(grouped(12_345_678), "12,345,678");
        assert_eq!(grouped(812), "812");
    }

    #[test]
    fn a_hundred_percent_is_all_and_nothing_less() {
        assert_eq!(percent(0, 0), "100 %");
        assert_eq!(percent(5, 5), "100 %");
        assert_eq!(percent(99_999_999, 100_000_000), "99.99 %");
        assert_eq!(percent(1, 2), "50 %");
        assert_eq!(percent(0, 7), "0 %");
    }

    #[test]
    fn texts_cannot_instruct_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\n\u{9b}2J\u{202e}x", true), "a?[2Jb???2J?x");
        assert_eq!(printable("grün", true), "grün");
        assert_eq!(printable("grün", false), "gr?n");
        assert_eq!(printable("日本", true), "??");
        assert_eq!(cut("orders.eu", 6, '~'), "order~");
        assert_eq!(cut("orders", 6, '~'), "orders");
        assert_eq!(cut("orders", 0, '~'), "");
    }
}
