//! The table that the bench prints: a row at a time, so that a long run shows where it is.

use std::fmt::Write as _;

/// What a row is held against.
pub enum Goal {
    /// A figure that is only shown.
    None,
    /// Reached or not, with the goal in words.
    Is(bool, String),
}

/// Prints rows and counts goals.
pub struct Table {
    ok: usize,
    missed: Vec<String>,
}

impl Table {
    /// An empty table.
    pub fn new() -> Table {
        Table { ok: 0, missed: Vec::new() }
    }

    /// A line above a group of rows.
    pub fn heading(&self, text: &str) {
        println!("\n{text}");
    }

    /// A row: what was measured, the figure, what it is in relation to something.
    pub fn row(&mut self, what: &str, figure: &str, relation: &str, goal: Goal) {
        let mut line = format!("  {what:<44} {figure:>18}  {relation:<24}");
        if let Goal::Is(reached, text) = goal {
            let verdict = if reached { "ok" } else { "MISSED" };
            let _ = write!(line, " {text:<26} {verdict}");
            if reached {
                self.ok += 1;
            } else {
                self.missed.push(what.to_owned());
            }
        }
        println!("{}", line.trim_end());
    }

    /// The last lines.
    pub fn summary(&self) {
        println!("\ngoals: {} ok, {} missed", self.ok, self.missed.len());
        for what in &self.missed {
            println!("  missed: {what}");
        }
    }
}

/// A rate as people read it.
pub fn rate(lines: u64, seconds: f64) -> String {
    let per_second = lines as f64 / seconds;
    if per_second >= 1e5 {
        format!("{:.2} M lines/s", per_second / 1e6)
    } else {
        format!("{per_second:.0} lines/s")
    }
}

/// Microseconds, in milliseconds when there are many.
pub fn micros(value: f64) -> String {
    if value >= 10_000.0 { format!("{:.1} ms", value / 1e3) } else { format!("{value:.0} µs") }
}

/// Bytes in MiB.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The middle of some samples, which are sorted by this.
pub fn median(samples: &mut [f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The sample below which this share of all lies. Panics without samples.
pub fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len() - 1;
    samples[(last as f64 * share).round() as usize]
}
