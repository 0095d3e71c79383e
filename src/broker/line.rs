//! A line in which things wait for their turn, first come first served, and which they may leave
//! from any place.
//!
//! Leaving matters: a consumer that goes away must not leave a trace, or a busy door (clients that
//! come and go while nothing is delivered) would grow the line without a bound. Used by the
//! broker only, for consumers of a group and for outputs.

use std::collections::BTreeMap;

/// A place in a [`Line`]; never given twice by the same line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// The line. Each operation takes O(log n).
#[derive(Clone, Debug)]
pub(super) struct Line<T> {
    waiting: BTreeMap<Ticket, T>,
    next: Ticket,
}

impl<T> Line<T> {
    pub(super) fn new() -> Line<T> {
        Line { waiting: BTreeMap::new(), next: Ticket(0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Joins at the back.
    pub(super) fn join(&mut self, thing: T) -> Ticket {
        let ticket = self.next;
        self.next = Ticket(ticket.0 + 1);
        self.waiting.insert(ticket, thing);
        ticket
    }

    /// Whose turn it is; leaves the line.
    pub(super) fn call(&mut self) -> Option<T> {
        self.waiting.pop_first().map(|(_, thing)| thing)
    }

    /// Leaves from wherever it is.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        let was = self.waiting.remove(&ticket);
        assert!(was.is_some(), "place {} in the line is empty", ticket.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_come_is_first_served_and_who_leaves_is_forgotten() {
        let mut line = Line::new();
        let tickets: Vec<Ticket> = ["a", "b", "c"].map(|name| line.join(name)).into();
        line.leave(tickets[1]);
        assert_eq!(line.call(), Some("a"));
        line.join("a");
        assert_eq!((line.call(), line.call(), line.call()), (Some("c"), Some("a"), None));
        assert!(line.is_empty());
    }
}
