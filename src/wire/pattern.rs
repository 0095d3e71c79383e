//! Patterns of queue names, as a shell writes them.

use std::cmp::Ordering;

use super::QueuePattern;
use crate::units::Name;

/// How the names of queues of dead letters end.
const DEAD: &str = ".dead";

impl QueuePattern {
    /// The name that is meant, if it is one: nothing in it stands for other characters.
    #[must_use]
    pub fn as_name(&self) -> Option<Name> {
        if self.0.contains(['*', '?', '[']) { None } else { Name::new(&self.0).ok() }
    }

    /// Whether it is a name, or can match one.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.as_name().is_some()
            || self.0.len() <= 2 * crate::limits::NAME_BYTES_MAX && self.0.contains(['*', '?', '['])
    }

    /// Whether a queue of this name is meant. Those of dead letters are only if the pattern ends
    /// as they do.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        let name = name.as_str();
        if self.as_name().is_some() {
            return self.0 == name;
        }
        (!name.ends_with(DEAD) || self.0.ends_with(DEAD))
            && matches(self.0.as_bytes(), name.as_bytes())
    }
}

/// Whether a pattern matches all of a text. A star that was met is tried again one byte further on
/// whenever what follows does not fit: never worse than the product of both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at + 1, seen));
            at += 1;
        } else if let Some(length) = matches_one(&pattern[at..], text[seen]) {
            at += length;
            seen += 1;
        } else if let Some((behind, from)) = &mut star {
            *from += 1;
            (at, seen) = (*behind, *from);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// How long the beginning of a pattern is that matches this one byte.
fn matches_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let Some(set) = pattern[1..].iter().skip(1).position(|b| *b == b']') else {
                // Not closed: it stands for itself.
                return (byte == b'[').then_some(1);
            };
            let set = &pattern[1..set + 2];
            is_in_set(set, byte).then_some(set.len() + 2)
        }
        other => (*other == byte).then_some(1),
    }
}

/// Whether the inside of a pair of brackets has this byte: `a-z`, `!a-z`, `abc`.
fn is_in_set(set: &[u8], byte: u8) -> bool {
    let (negated, mut set) = match set {
        [b'!' | b'^', rest @ ..] if !rest.is_empty() => (true, rest),
        all => (false, all),
    };
    let mut found = false;
    while let Some((&first, rest)) = set.split_first() {
        if let [b'-', last, behind @ ..] = rest {
            found |= first.cmp(&byte) != Ordering::Greater && byte <= *last;
            set = behind;
        } else {
            found |= first == byte;
            set = rest;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        let name = |text: &str| Name::new(text).expect("a name");
        for (pattern, yes, no) in [
            ("logs", vec!["logs"], vec!["logs.a", "log"]),
            ("logs.*", vec!["logs.a", "logs.a.b"], vec!["logs", "logs.a.dead"]),
            ("*.dead", vec!["logs.dead", "a.b.dead"], vec!["dead", "logs"]),
            ("*", vec!["a", "logs.b"], vec!["a.dead"]),
            ("a?c", vec!["abc", "a.c"], vec!["ac", "abbc"]),
            ("job[0-3x]", vec!["job0", "job3", "jobx"], vec!["job4", "job"]),
            ("job[!0-3]", vec!["job4"], vec!["job0"]),
            ("*a*b*c", vec!["xaybzc", "abc", "aabbcc"], vec!["acb", "abcd"]),
        ] {
            let pattern = QueuePattern(pattern.to_owned());
            assert!(pattern.is_valid());
            assert!(yes.iter().all(|text| pattern.matches(&name(text))), "{pattern:?} {yes:?}");
            assert!(!no.iter().any(|text| pattern.matches(&name(text))), "{pattern:?} {no:?}");
        }
        assert!(!QueuePattern(".x".to_owned()).is_valid());
        assert!(!QueuePattern(String::new()).is_valid());
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_time() {
        let pattern = QueuePattern("*a".repeat(100) + "b");
        assert!(!pattern.matches(&Name::new(&"a".repeat(200)).expect("a name")));
    }
}
