//! The trial of a batch: what is run next, and what becomes of messages that fail.
//!
//! A batch that fails is tried once more after a pause, then halved, and its halves too, until what
//! fails stands alone. A message is given up only when it has failed alone up to the limit, and
//! another part of its batch has succeeded, or it was the whole batch: otherwise it is not the
//! message that is at fault (a database is down), and after as many rounds the trial ends with
//! nothing given up.
//!
//! Pure: it knows numbers of messages and outcomes, no bytes, processes or clocks. The
//! `run` loop asks it for the next step and tells it how a run ended.
//!
//! ```text
//! rounds: [0..8] ✗   pause   [0..8] ✗   pause   [0..4] ✗ [4..8] ✓   halves at once, as one part is well:
//!         [0..2] ✓ commit    [2..4] ✗           [2] ✗ [3] ✓         pause  [2] ✗ ... the limit: dead
//!         commit [3]         commit [4..8], which are run again for their output
//! ```

use std::collections::VecDeque;
use std::ops::Range;

use crate::settings::Backoff;
use crate::units::Micros;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Run the filter on these messages of the batch, and tell how it went by [`Trial::ran`].
    Run(Range<u64>),
    /// Commit the output of the run that was just told of.
    Commit(Range<u64>),
    /// Nothing before this time.
    Pause(Micros),
    /// These are dead letters, after so many attempts on them alone.
    Dead(Range<u64>, u32),
    /// The whole batch is dealt with.
    Done,
    /// The filter fails, whatever it is given: nothing of what is left is given up.
    GiveUp,
}

/// How a run of the filter ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It succeeded.
    Well,
    /// It failed.
    Failed,
    /// It said that what it was given can never succeed.
    Never,
    /// It was given too much at once.
    TooMuch,
}

/// What a trial goes by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Attempts on a message alone after which it is given up; none: never.
    pub limit: Option<u32>,
    /// Whether messages may be given up at all; else the trial ends when one would be.
    pub may_bury: bool,
    /// Whether the batch may be halved.
    pub may_halve: bool,
    /// The pauses.
    pub backoff: Backoff,
}

/// Runs of a whole batch before it is halved.
const WHOLE_RUNS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has failed so often.
    Failed(u32),
    /// It has succeeded, and has to wait for what is before it.
    Well,
    /// It is given up.
    Dead(u32),
}

#[derive(Clone, Debug)]
struct Part {
    messages: Range<u64>,
    standing: Standing,
    /// It has been run in this round.
    ran: bool,
}

impl Part {
    fn new(messages: Range<u64>) -> Part {
        Part { messages, standing: Standing::Failed(0), ran: false }
    }

    fn is_alone(&self) -> bool {
        self.messages.end - self.messages.start == 1
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Trial {
    rules: Rules,
    /// Messages of the whole batch.
    count: u64,
    /// What is left of it, in order.
    parts: VecDeque<Part>,
    /// The part that is being run.
    running: Option<usize>,
    /// The first part's output is at hand.
    at_hand: bool,
    /// Some part of the batch has succeeded.
    any_well: bool,
    /// Rounds in which nothing did.
    rounds: u32,
    /// In this round, a run said that only less at once makes sense.
    hurries: bool,
}

impl Trial {
    /// Of a batch of so many messages.
    #[must_use]
    pub fn new(count: u64, rules: Rules) -> Trial {
        assert!(count > 0, "a batch has messages");
        Trial {
            rules,
            count,
            parts: VecDeque::from([Part::new(0..count)]),
            running: None,
            at_hand: false,
            any_well: false,
            rounds: 0,
            hurries: false,
        }
    }

    /// A run ended so.
    pub fn ran(&mut self, how: Ran) {
        let at = self.running.take().expect("a run that was asked for");
        if how == Ran::TooMuch && self.rules.may_halve && !self.parts[at].is_alone() {
            return self.halve(at);
        }
        let part = &mut self.parts[at];
        part.ran = true;
        let failures = match part.standing {
            Standing::Failed(before) => before + 1,
            Standing::Well | Standing::Dead(_) => 1,
        };
        match how {
            Ran::Well => {
                part.standing = Standing::Well;
                self.any_well = true;
                self.at_hand = at == 0;
            }
            Ran::Failed => part.standing = Standing::Failed(failures),
            Ran::Never if part.is_alone() && self.rules.may_bury => {
                part.standing = Standing::Dead(failures);
            }
            // Not to be tried again as it is.
            Ran::Never | Ran::TooMuch => {
                part.standing = Standing::Failed(failures.max(WHOLE_RUNS));
                self.hurries |= !part.is_alone();
            }
        }
    }

    /// A part was too much at once. Its first half is next, not all of its size: so it takes few
    /// runs to come down to what is not too much, or to the message that is by itself.
    fn halve(&mut self, at: usize) {
        let Range { start, end } = self.parts[at].messages;
        let middle = start + (end - start) / 2;
        self.parts[at] = Part::new(start..middle);
        self.parts.insert(at + 1, Part::new(middle..end));
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        loop {
            assert!(self.running.is_none(), "a run has not been told of");
            let Some(first) = self.parts.front() else { return Step::Done };
            match first.standing {
                Standing::Dead(attempts) => {
                    let part = self.parts.pop_front().expect("the first");
                    return Step::Dead(part.messages, attempts);
                }
                Standing::Well if std::mem::take(&mut self.at_hand) => {
                    let part = self.parts.pop_front().expect("the first");
                    return Step::Commit(part.messages);
                }
                // Its output was let go, as it could not be committed then.
                Standing::Well => return self.run(0),
                Standing::Failed(_) => {}
            }
            let waits = |part: &Part| !part.ran && matches!(part.standing, Standing::Failed(_));
            if let Some(at) = self.parts.iter().position(waits) {
                return self.run(at);
            }
            if let Some(step) = self.end_round() {
                return step;
            }
        }
    }

    fn run(&mut self, at: usize) -> Step {
        self.running = Some(at);
        Step::Run(self.parts[at].messages.clone())
    }

    /// Every part has had its run: what failed is halved, given up, or tried again.
    fn end_round(&mut self) -> Option<Step> {
        let is_whole_batch = self.parts.len() == 1 && !self.any_well && self.rounds_of_whole();
        let hurries = std::mem::take(&mut self.hurries);
        self.rounds += u32::from(!self.any_well && !hurries);
        let limit = self.rules.limit.unwrap_or(u32::MAX);
        let may_bury = self.any_well || is_whole_batch;
        let mut halved = false;
        let mut longest = 0;
        let mut parts = VecDeque::with_capacity(self.parts.len() + 1);
        for mut part in std::mem::take(&mut self.parts) {
            part.ran = false;
            let Standing::Failed(failures) = part.standing else {
                parts.push_back(part);
                continue;
            };
            longest = longest.max(failures);
            let splits = self.rules.may_halve && !part.is_alone();
            if splits && (failures >= WHOLE_RUNS || self.is_halved(&part)) {
                let Range { start, end } = part.messages;
                let middle = start + (end - start) / 2;
                parts.extend([Part::new(start..middle), Part::new(middle..end)]);
                halved = true;
            } else {
                if failures >= limit && may_bury && (part.is_alone() || !splits) {
                    if !self.rules.may_bury {
                        return Some(Step::GiveUp);
                    }
                    part.standing = Standing::Dead(failures);
                }
                parts.push_back(part);
            }
        }
        self.parts = parts;
        if self.parts.iter().any(|part| matches!(part.standing, Standing::Dead(_))) {
            return None;
        }
        // Those of the whole batch do not count, if it can be halved: its parts may do well.
        let whole = if self.rules.may_halve && self.count > 1 { WHOLE_RUNS } else { 0 };
        if !self.any_well && self.rounds >= limit.saturating_add(whole) {
            return Some(Step::GiveUp);
        }
        if halved && (self.any_well || hurries || self.rounds == WHOLE_RUNS) {
            return None;
        }
        let failures = if self.any_well { longest } else { self.rounds };
        Some(Step::Pause(self.pause(failures)))
    }

    /// Whether the batch stands as it came, and may be given up so.
    fn rounds_of_whole(&self) -> bool {
        let first = &self.parts[0];
        first.is_alone() && first.messages.start == 0 || !self.rules.may_halve
    }

    /// Whether a part is not the batch as it came: that has been tried twice.
    fn is_halved(&self, part: &Part) -> bool {
        self.rounds > WHOLE_RUNS || self.any_well || part.messages.start > 0
    }

    fn pause(&self, failures: u32) -> Micros {
        pause_after(self.rules.backoff, failures)
    }
}

/// The pause after so many failures in a row.
#[must_use]
pub fn pause_after(backoff: Backoff, failures: u32) -> Micros {
    let doubled = backoff.first.0.saturating_mul(1 << failures.saturating_sub(1).min(40));
    Micros(doubled.min(backoff.max.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { first: Micros(10), max: Micros(100) };

    fn rules() -> Rules {
        Rules { limit: Some(3), may_bury: true, may_halve: true, backoff: BACKOFF }
    }

    /// Goes through a trial with a filter that fails as `fails` says; what was committed and
    /// given up, in order, the runs, and how it ended.
    fn go(
        count: u64,
        rules: Rules,
        mut fails: impl FnMut(&Range<u64>) -> Ran,
    ) -> (Vec<(bool, u64)>, usize, Step) {
        let mut trial = Trial::new(count, rules);
        let (mut done, mut runs) = (Vec::new(), 0);
        for _ in 0..100_000 {
            match trial.step() {
                Step::Run(range) => {
                    runs += 1;
                    trial.ran(fails(&range));
                }
                Step::Commit(range) => done.extend(range.map(|n| (true, n))),
                Step::Dead(range, _) => done.extend(range.map(|n| (false, n))),
                Step::Pause(pause) => assert!((10..=100).contains(&pause.0)),
                end => return (done, runs, end),
            }
        }
        panic!("it never ends");
    }

    #[test]
    fn what_succeeds_is_committed_at_once() {
        assert_eq!(go(5, rules(), |_| Ran::Well).1, 1);
    }

    #[test]
    fn each_poison_alone_is_given_up_and_all_else_committed_in_order() {
        for count in [1u64, 2, 3, 8, 100] {
            for bad in 0..count {
                let poison = |range: &Range<u64>| {
                    if range.contains(&bad) { Ran::Failed } else { Ran::Well }
                };
                let (done, _, end) = go(count, rules(), poison);
                assert_eq!(end, Step::Done);
                let expected: Vec<_> = (0..count).map(|n| (n != bad, n)).collect();
                assert_eq!(done, expected, "message {bad} of {count}");
            }
        }
    }

    #[test]
    fn several_poisons_are_found() {
        let many = Rules { limit: Some(30), ..rules() };
        let bad = [0u64, 1, 2, 7, 31, 32, 63];
        let (done, _, end) = go(64, many, |range| {
            if bad.iter().any(|n| range.contains(n)) { Ran::Failed } else { Ran::Well }
        });
        assert_eq!(end, Step::Done);
        assert_eq!(done, (0..64).map(|n| (!bad.contains(&n), n)).collect::<Vec<_>>());
    }

    #[test]
    fn when_everything_fails_nothing_is_given_up() {
        let (done, runs, end) = go(1000, rules(), |_| Ran::Failed);
        assert_eq!((done, end), (Vec::new(), Step::GiveUp));
        assert!(runs < 100, "{runs} runs");
        let endless = Rules { limit: None, ..rules() };
        let mut left = 5000;
        let (done, _, end) = go(16, endless, |_| {
            left -= 1;
            if left > 0 { Ran::Failed } else { Ran::Well }
        });
        assert_eq!((done.len(), end), (16, Step::Done), "it comes back in the end");
    }

    #[test]
    fn a_batch_that_may_not_be_halved_is_tried_whole() {
        let whole = Rules { may_halve: false, ..rules() };
        let (done, runs, end) = go(4, whole, |_| Ran::Failed);
        assert_eq!((runs, end), (3, Step::Done));
        assert_eq!(done, (0..4).map(|n| (false, n)).collect::<Vec<_>>());
        let stops = Rules { may_bury: false, ..whole };
        assert_eq!(go(4, stops, |_| Ran::Failed).2, Step::GiveUp);
        let stops = Rules { may_bury: false, ..rules() };
        let poison = |range: &Range<u64>| {
            if range.contains(&2) { Ran::Failed } else { Ran::Well }
        };
        let (done, _, end) = go(4, stops, poison);
        assert_eq!((done, end), (vec![(true, 0), (true, 1)], Step::GiveUp));
    }

    /// Once, all parts of a size were run before any of half of it: a thousand runs, each with 64
    /// MiB of output, before it was seen that one message alone makes more.
    #[test]
    fn what_is_too_much_is_soon_found() {
        let mut trial = Trial::new(1 << 16, rules());
        let mut runs = 0;
        while let Step::Run(range) = trial.step() {
            runs += 1;
            if range == (0..1) {
                break;
            }
            trial.ran(Ran::TooMuch);
        }
        assert_eq!(runs, 17);
        let fits = |range: &Range<u64>| {
            if range.end - range.start > 100 { Ran::TooMuch } else { Ran::Well }
        };
        let (done, runs, end) = go(1024, rules(), fits);
        assert_eq!((done, end), ((0..1024).map(|n| (true, n)).collect::<Vec<_>>(), Step::Done));
        assert_eq!(runs, 16 + 15, "each part is run once");
    }

    #[test]
    fn what_can_never_succeed_is_given_up_at_once() {
        let (done, runs, end) =
            go(8, rules(), |range| if range.contains(&5) { Ran::Never } else { Ran::Well });
        assert_eq!(end, Step::Done);
        assert_eq!(done, (0..8).map(|n| (n != 5, n)).collect::<Vec<_>>());
        assert!(runs < 12, "{runs} runs");
        let (done, _, end) =
            go(
                8,
                rules(),
                |range| {
                    if range.end - range.start > 2 { Ran::TooMuch } else { Ran::Well }
                },
            );
        assert_eq!((done.len(), end), (8, Step::Done), "smaller batches");
    }
}
