//! The facts: what a command finds in its environment about its message, or about the first of
//! its batch.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::job::Job;
use crate::client::envelope::{Attributes, TimeText};
use crate::client::receive::Member;
use crate::units::Name;

/// Makes environments.
#[derive(Debug)]
pub(super) struct Facts {
    group: Name,
    /// Whether the number of messages is told.
    has_count: bool,
    times: TimeText,
}

impl Facts {
    pub(super) fn new(group: Name, has_count: bool) -> Facts {
        Facts { group, has_count, times: TimeText::default() }
    }

    /// The environment for a job on messages of this queue. Facts that there are not are absent.
    pub(super) fn of(&mut self, job: &Job, member: &Member) -> Vec<(OsString, OsString)> {
        let Some(message) = job.messages.first() else { return Vec::new() };
        let mut time = Vec::new();
        self.times.push(message.time, &mut time);
        let attributes = Attributes::parse(&message.attributes);
        let bytes = |value: &[u8]| OsStr::from_bytes(value).to_owned();
        let number = |number: u64| OsString::from(number.to_string());
        let mut env = vec![
            ("MQ_QUEUE".into(), member.name.as_str().into()),
            ("MQ_GROUP".into(), self.group.as_str().into()),
            ("MQ_OFFSET".into(), number(message.offset.0)),
            ("MQ_TIME".into(), OsString::from_vec(time)),
        ];
        let attempt = (job.attempt.0 > 0).then(|| number(job.attempt.0.into()));
        let count = self.has_count.then(|| number(job.count as u64));
        let optional = [
            ("MQ_ATTEMPT", attempt),
            ("MQ_KEY", attributes.key.map(bytes)),
            ("MQ_ID", attributes.id.map(bytes)),
            ("MQ_EPOCH", member.epoch.map(number)),
            ("MQ_COUNT", count),
        ];
        env.extend(optional.into_iter().filter_map(|(name, value)| Some((name.into(), value?))));
        env.extend(attributes.headers().map(|(name, value)| (header_name(name), bytes(value))));
        env
    }
}

/// `MQ_HEADER_` and the header's name in capitals, with `_` for all that is not of A-Z 0-9 _.
fn header_name(name: &[u8]) -> OsString {
    let mut variable = b"MQ_HEADER_".to_vec();
    variable.extend(name.iter().map(|byte| match byte.to_ascii_uppercase() {
        byte @ (b'A'..=b'Z' | b'0'..=b'9' | b'_') => byte,
        _ => b'_',
    }));
    OsString::from_vec(variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_headers_become_names_of_variables() {
        assert_eq!(header_name(b"content-type"), "MQ_HEADER_CONTENT_TYPE");
        assert_eq!(header_name("ä=1".as_bytes()), "MQ_HEADER____1");
    }
}
