//! The names of users, as the system's databases know them.

use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    /// Names that were looked up: a view asks again and again.
    static NAMES: RefCell<HashMap<u32, String>> = RefCell::new(HashMap::new());
}

/// The name of a user; the number, where no name is known.
#[must_use]
pub fn user_name(uid: u32) -> String {
    NAMES.with_borrow_mut(|names| names.entry(uid).or_insert_with(|| look_up(uid)).clone())
}

fn look_up(uid: u32) -> String {
    let file = std::fs::read("/etc/passwd").unwrap_or_default();
    name_in_passwd(&String::from_utf8_lossy(&file), uid).unwrap_or_else(|| {
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
        user.ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
    })
}

fn name_in_passwd(file: &str, uid: u32) -> Option<String> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_before_their_numbers() {
        let file = "root:x:0:0:root:/root:/bin/sh\nbad line\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name_in_passwd(file, 1000).as_deref(), Some("ann"));
        assert_eq!(name_in_passwd(file, 0).as_deref(), Some("root"));
        assert_eq!(name_in_passwd(file, 7), None);
        assert_eq!(user_name(4_294_000_000), "4294000000");
    }
}
