//! The password database: what a user is called, and where its home is.
//!
//! Its file is read first. Where users are kept elsewhere, `getent` is asked: the C library's own
//! calls must not be used, as a program that is linked statically ends by a segmentation fault
//! in them where the libraries that they load do not fit it. Nothing here looks at the
//! environment. The [store](super) uses it, and whoever shows users.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the user is called.
    pub name: String,
    /// The home directory, as it is written there.
    pub home: PathBuf,
}

/// The entry of the user `uid`; `None` when no database knows one.
#[must_use]
pub fn entry(uid: u32) -> Option<Entry> {
    let file = std::fs::read("/etc/passwd").unwrap_or_default();
    find(&file, uid).or_else(|| {
        let mut getent = Command::new("getent");
        getent.args(["passwd", &uid.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
        find(&getent.output().ok()?.stdout, uid)
    })
}

/// The line whose third field is `uid`.
fn find(file: &[u8], uid: u32) -> Option<Entry> {
    let uid = uid.to_string();
    file.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let is_theirs = fields.len() == 7 && fields[2] == uid.as_bytes();
        is_theirs.then(|| Entry {
            name: String::from_utf8_lossy(fields[0]).into_owned(),
            home: PathBuf::from(OsStr::from_bytes(fields[5])),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_number() {
        let file =
            b"root:x:0:0:root:/root:/bin/sh\n# a comment\nann:x:1000:1000::/home/ann:/bin/sh\n";
        let ann = Entry { name: "ann".to_owned(), home: PathBuf::from("/home/ann") };
        assert_eq!(find(file, 1000), Some(ann));
        assert_eq!(find(file, 100), None);
    }

    #[test]
    fn a_user_that_no_database_knows_is_none() {
        assert_eq!(entry(54_321_987), None);
    }
}
