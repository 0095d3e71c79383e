//! One seed drives everything.

pub use crate::disk::Random;

/// A choice in percent, for steps of a history.
pub trait Chance {
    /// True in `percent` of 100 cases.
    fn chance(&mut self, percent: u64) -> bool;
}

impl Chance for Random {
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
