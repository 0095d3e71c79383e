//! Which queues a user wants to see, while typing.

use crate::units::Name;
use crate::wire::QueuePattern;

/// Bytes of a filter: as many as a name has.
const BYTES_MAX: usize = crate::limits::NAME_BYTES_MAX;

/// A part of names, or with `*`, `?` or `[` in it a pattern for whole ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(String);

impl Filter {
    /// What was typed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// One more character; those that cannot be in a name or pattern are not taken.
    pub fn push(&mut self, c: char) {
        let is_fit = c.is_ascii_alphanumeric() || "._-*?[]!^".contains(c);
        if is_fit && self.0.len() < BYTES_MAX {
            self.0.push(c);
        }
    }

    /// Takes the last character back.
    pub fn pop(&mut self) {
        self.0.pop();
    }

    /// Everything is wanted.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether a queue is wanted.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        if self.0.contains(['*', '?', '[']) {
            return QueuePattern(self.0.clone()).matches(name);
        }
        let (text, part) = (name.as_str().as_bytes(), self.0.as_bytes());
        part.is_empty() || text.windows(part.len()).any(|at| at.eq_ignore_ascii_case(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_part_or_a_pattern() {
        let name = |text| Name::new(text).expect("a name");
        let filter = |text: &str| {
            let mut filter = Filter::default();
            text.chars().for_each(|c| filter.push(c));
            filter
        };
        assert!(filter("").matches(&name("jobs")));
        assert!(filter("OB").matches(&name("jobs")));
        assert!(!filter("job*").matches(&name("my.jobs")));
        assert!(filter("job*").matches(&name("jobs")));
        assert_eq!(filter("a\x1b b/ü").text(), "ab");
    }
}
