//! The characters that pictures are made of, with a set of plain ASCII for terminals that have
//! nothing else; sparklines and bars.
//!
//! Pure, but for [`Glyphs::of_environment`], which looks at the locale.

/// A set of characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glyphs {
    /// Whether texts may have characters beyond ASCII.
    pub is_utf8: bool,
    /// The levels of a sparkline, the lowest is nothing.
    levels: [char; 9],
    /// A bar: whole cells, and its end in eighths of a cell.
    bar: char,
    bar_ends: [char; 8],
    /// A line across.
    pub rule: char,
    /// Where a text was cut.
    pub cut: char,
    /// Between facts.
    pub dot: char,
    /// What grows, what shrinks.
    pub up: char,
    /// See `up`.
    pub down: char,
    /// The line that is selected.
    pub cursor: char,
}

impl Glyphs {
    /// For terminals that know Unicode.
    pub const UTF8: Glyphs = Glyphs {
        is_utf8: true,
        levels: [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
        bar: '█',
        bar_ends: [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'],
        rule: '─',
        cut: '…',
        dot: '·',
        up: '▲',
        down: '▼',
        cursor: '▶',
    };

    /// For all others.
    pub const ASCII: Glyphs = Glyphs {
        is_utf8: false,
        levels: [' ', '.', '.', ':', '-', '=', '+', '*', '#'],
        bar: '#',
        bar_ends: [' ', ' ', ' ', ' ', '-', '-', '-', '-'],
        rule: '-',
        cut: '~',
        dot: '|',
        up: '^',
        down: 'v',
        cursor: '>',
    };

    /// Those that the locale allows: by the first of `LC_ALL`, `LC_CTYPE` and `LANG` that is set.
    #[must_use]
    pub fn of_environment() -> Glyphs {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .filter_map(std::env::var_os)
            .find(|value| !value.is_empty());
        Glyphs::of_locale(&locale.unwrap_or_default().to_string_lossy())
    }

    /// Those that a locale of this name allows.
    #[must_use]
    pub fn of_locale(locale: &str) -> Glyphs {
        let locale = locale.to_ascii_lowercase();
        let is_utf8 = locale.contains("utf-8") || locale.contains("utf8");
        if is_utf8 { Glyphs::UTF8 } else { Glyphs::ASCII }
    }

    /// A sparkline of exactly `width` characters: the newest values at the right, as high as
    /// they are beside the largest of those shown. Nothing is a space; what is more than nothing
    /// is seen.
    #[must_use]
    pub fn sparkline(&self, values: impl DoubleEndedIterator<Item = f64>, width: usize) -> String {
        let mut shown: Vec<f64> = values.rev().take(width).collect();
        shown.reverse();
        let largest = shown.iter().copied().fold(0.0, f64::max);
        let blank = std::iter::repeat_n(' ', width - shown.len());
        blank.chain(shown.iter().map(|value| self.level(*value, largest))).collect()
    }

    /// A sparkline of exactly `width` characters of the newest `span` values: where there are more
    /// than columns, each column is the mean of several.
    #[must_use]
    pub fn condensed(&self, values: &[f64], span: usize, width: usize) -> String {
        let together = span.div_ceil(width.max(1)).max(1);
        let mut means: Vec<f64> = values
            .rchunks(together)
            .take(width)
            .map(|chunk| chunk.iter().sum::<f64>() / chunk.len() as f64)
            .collect();
        means.reverse();
        self.sparkline(means.into_iter(), width)
    }

    fn level(&self, value: f64, largest: f64) -> char {
        if value.is_nan() || value <= 0.0 || largest <= 0.0 {
            return self.levels[0];
        }
        let top = self.levels.len() - 1;
        self.levels[((value / largest * top as f64).ceil() as usize).clamp(1, top)]
    }

    /// A bar of exactly `width` characters, filled to `part` of it.
    #[must_use]
    pub fn bar(&self, part: f64, width: usize) -> String {
        let part = if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
        let mut eighths = (part * width as f64 * 8.0).round() as usize;
        if part > 0.0 {
            // What is more than nothing is seen.
            eighths = eighths.max(if self.is_utf8 { 1 } else { 4 });
        }
        let (whole, rest) = (eighths / 8, eighths % 8);
        let mut bar: String = std::iter::repeat_n(self.bar, whole.min(width)).collect();
        if whole < width {
            bar.push(self.bar_ends[rest]);
            bar.extend(std::iter::repeat_n(' ', width - whole - 1));
        }
        bar
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_decide() {
        for utf8 in ["en_US.UTF-8", "C.utf8", "de_DE.UTF-8@euro"] {
            assert_eq!(Glyphs::of_locale(utf8), Glyphs::UTF8, "{utf8}");
        }
        for other in ["", "C", "POSIX", "en_US", "de_DE.ISO-8859-1"] {
            assert_eq!(Glyphs::of_locale(other), Glyphs::ASCII, "{other}");
        }
    }

    #[test]
    fn sparklines_show_the_newest_at_the_right() {
        let line = |values: &[f64], width| Glyphs::UTF8.sparkline(values.iter().copied(), width);
        assert_eq!(line(&[], 3), "   ");
        assert_eq!(line(&[0.0, 1.0, 8.0], 5), "   ▁█");
        assert_eq!(line(&[9.0, 1.0, 2.0, 4.0], 3), "▂▄█");
        assert_eq!(line(&[0.001, 1000.0], 2), "▁█");
        assert_eq!(Glyphs::ASCII.sparkline([1.0, 4.0, 8.0].into_iter(), 3), ".-#");
        assert!(Glyphs::ASCII.sparkline([1.0, f64::NAN].into_iter(), 4).is_ascii());
    }

    #[test]
    fn long_pasts_fit_short_lines() {
        let past: Vec<f64> = (1..=60).map(f64::from).collect();
        assert_eq!(Glyphs::UTF8.condensed(&past, 60, 6), "▁▃▄▆▇█");
        assert_eq!(Glyphs::UTF8.condensed(&past[..10], 60, 6), "     █");
        assert_eq!(Glyphs::UTF8.condensed(&[1.0, 8.0], 60, 60).trim_start(), "▁█");
        assert_eq!(Glyphs::UTF8.condensed(&[], 60, 0), "");
    }

    #[test]
    fn bars_fill_their_part() {
        assert_eq!(Glyphs::UTF8.bar(0.5, 4), "██  ");
        assert_eq!(Glyphs::UTF8.bar(1.0, 4), "████");
        assert_eq!(Glyphs::UTF8.bar(7.0, 4), "████");
        assert_eq!(Glyphs::UTF8.bar(0.0, 4), "    ");
        assert_eq!(Glyphs::UTF8.bar(0.0001, 4), "▏   ");
        assert_eq!(Glyphs::ASCII.bar(0.0001, 4), "-   ");
        assert_eq!(Glyphs::ASCII.bar(0.75, 4), "### ");
    }
}
