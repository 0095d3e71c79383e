//! A lane: what one thread hands to another, in order, with a descriptor that is readable while
//! there is something, so that it can be waited for beside other things.
//!
//! It never blocks; who fills it looks at [`Lane::weight`] and stops in time. The threads of a pipe
//! use it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::event::EventfdFlags;

#[derive(Debug)]
struct Things<T> {
    waiting: VecDeque<(T, usize)>,
    weight: usize,
}

#[derive(Debug)]
struct Inner<T> {
    things: Mutex<Things<T>>,
    bell: OwnedFd,
}

/// See the module's page. Clones are ends of the same lane.
#[derive(Debug)]
pub struct Lane<T>(Arc<Inner<T>>);

impl<T> Clone for Lane<T> {
    fn clone(&self) -> Lane<T> {
        Lane(Arc::clone(&self.0))
    }
}

impl<T> Lane<T> {
    /// An empty one.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> std::io::Result<Lane<T>> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let things = Things { waiting: VecDeque::new(), weight: 0 };
        Ok(Lane(Arc::new(Inner { things: Mutex::new(things), bell })))
    }

    fn things(&self) -> MutexGuard<'_, Things<T>> {
        self.0.things.lock().expect("no thread panics with it in its hands")
    }

    /// Hands something over, with what it weighs.
    pub fn push(&self, thing: T, weight: usize) {
        let mut things = self.things();
        things.waiting.push_back((thing, weight));
        things.weight += weight;
        // Who is woken takes the lock first thing. It may have taken the thing before: then the bell
        // rings once for nothing.
        drop(things);
        self.ring();
    }

    /// Makes the descriptor readable once, with nothing new.
    pub fn ring(&self) {
        // It fails only when it is readable already, and has been for 2^64 times.
        let _ = rustix::io::write(&self.0.bell, &1u64.to_ne_bytes());
    }

    /// Takes the next thing; none when the lane is empty, and then the descriptor is quiet.
    #[must_use]
    pub fn pop(&self) -> Option<T> {
        let mut things = self.things();
        match things.waiting.pop_front() {
            Some((thing, weight)) => {
                things.weight -= weight;
                Some(thing)
            }
            None => {
                let _ = rustix::io::read(&self.0.bell, &mut [0u8; 8]);
                None
            }
        }
    }

    /// Lets go of what is not to be kept, all at once: what somebody takes meanwhile was in front of all
    /// that goes.
    pub fn retain(&self, keeps: impl Fn(&T) -> bool) {
        let mut things = self.things();
        things.waiting.retain(|(thing, _)| keeps(thing));
        things.weight = things.waiting.iter().map(|(_, weight)| weight).sum();
    }

    /// Whether there is nothing; then the descriptor is quiet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let things = self.things();
        let is_empty = things.waiting.is_empty();
        if is_empty {
            let _ = rustix::io::read(&self.0.bell, &mut [0u8; 8]);
        }
        is_empty
    }

    /// Gives back what was taken last; it is the next one again.
    pub fn put_back(&self, thing: T, weight: usize) {
        let mut things = self.things();
        things.waiting.push_front((thing, weight));
        things.weight += weight;
        self.ring();
    }

    /// What waits weighs so much.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.things().weight
    }
}

impl<T> AsFd for Lane<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_ringing(lane: &Lane<u32>) -> bool {
        let mut fds = [PollFd::new(lane, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("polls") > 0
    }

    #[test]
    fn what_is_not_kept_is_gone_with_its_weight() {
        let lane = Lane::new().expect("a lane");
        (1..=4).for_each(|n| lane.push(n, 10 * n as usize));
        lane.retain(|n| n % 2 == 1);
        assert_eq!(lane.weight(), 40);
        assert_eq!((lane.pop(), lane.pop(), lane.pop()), (Some(1), Some(3), None));
    }

    /// Once, things were let go of one by one, and who took meanwhile got some that lay behind.
    #[test]
    fn who_takes_while_things_go_gets_what_was_in_front_of_them() {
        for _ in 0..20 {
            let lane = Lane::new().expect("a lane");
            (0..10_000u32).for_each(|n| lane.push(n, 1));
            let others = lane.clone();
            let taker = std::thread::spawn(move || -> Vec<u32> {
                std::iter::from_fn(|| others.pop()).collect()
            });
            while lane.weight() == 10_000 {
                std::thread::yield_now();
            }
            lane.retain(|_| false);
            let taken = taker.join().expect("takes");
            assert!(taken.iter().copied().eq(0..taken.len() as u32), "there is a hole");
        }
    }

    #[test]
    fn the_bell_rings_while_there_is_something() {
        let lane = Lane::new().expect("a lane");
        assert!(!is_ringing(&lane));
        lane.push(1, 10);
        lane.push(2, 20);
        assert_eq!((lane.pop(), lane.weight()), (Some(1), 20));
        assert!(is_ringing(&lane));
        assert!(!lane.is_empty() && is_ringing(&lane));
        assert_eq!(lane.pop(), Some(2));
        assert!(is_ringing(&lane) && lane.is_empty() && !is_ringing(&lane));
        assert_eq!(lane.pop(), None);
        assert!(!is_ringing(&lane));
        lane.put_back(2, 20);
        assert!(is_ringing(&lane));
        assert_eq!((lane.pop(), lane.weight()), (Some(2), 0));
    }
}
