//! The names of users, as the system's databases know them.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::store::passwd;

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
    let known = passwd::entry(uid).map(|user| user.name).filter(|name| !name.is_empty());
    known.unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_no_name_is_a_number() {
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(4_294_000_000), "4294000000");
    }
}
