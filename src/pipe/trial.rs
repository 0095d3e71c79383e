//! The trial of a batch: what is run next, and what becomes of messages that fail.
//!
//! A batch that fails is tried once more after a pause, then halved, and its halves too, until what
//! fails stands alone. A message is given up only when it has failed alone up to the limit, and
//! another part of its batch has succeeded at the last of these times, or it was the whole batch:
//! otherwise it is not the message that is at fault (a database is down).
//!
//! While nothing has succeeded, it is a *search* for anything that does. Its first goal is a message
//! alone, however large the batch: the largest part is halved down to its first message, and what is
//! left behind on the way is tried too. So one message that is well among few comes to light in a
//! round, while a filter that always fails is not run over and over: it is given up after as many
//! rounds, and nothing with it.
//!
//! Pure: it knows numbers of messages and outcomes, no bytes, processes or clocks. The
//! `run` loop asks it for the next step and tells it how a run ended.
//!
//! ```text
//! rounds: [0..8] ✗   pause   [0..8] ✗   the search:   [0..4] ✗ [0..2] ✗ [0] ✓   which ends it
//!         commit [0]   then all that is left:         [1] ✓ commit   [2..4] ✗   [4..8] ✓
//!         halves at once, as some are well:           [2] ✗ [3] ✓   pause   [2] ✗ ... the limit
//!         a control, if nothing else is run:          [3] ✓   so [2] is dead
//!         commit [3]   commit [4..8], which are run again for their output
//! ```

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ops::Range;

use crate::settings::Backoff;
use crate::units::Micros;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Run the filter on these messages of the batch, and tell how it went by [`Trial::ran`]. They
    /// may have been committed before: then it is a control.
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

/// Runs of a round while nothing succeeds; the way down to a message, once begun, is gone to its
/// end. A filter that waits for a database may take long to fail.
const SEARCH_RUNS: usize = 32;

/// Parts that must have failed, or each message alone, before a filter is said to fail always.
const SEARCH_PARTS: usize = 64;

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
    /// It is not to be run in this round, or has been.
    ran: bool,
    /// A search goes down into it: if it fails, its first half is next.
    descends: bool,
}

impl Part {
    fn new(messages: Range<u64>) -> Part {
        Part { messages, standing: Standing::Failed(0), ran: false, descends: false }
    }

    fn count(&self) -> u64 {
        self.messages.end - self.messages.start
    }

    fn is_alone(&self) -> bool {
        self.count() == 1
    }

    fn failures(&self) -> Option<u32> {
        match self.standing {
            Standing::Failed(failures) => Some(failures),
            Standing::Well | Standing::Dead(_) => None,
        }
    }
}

/// What is being run.
#[derive(Clone, Copy, Debug)]
enum Running {
    Part(usize),
    /// Something that was well before, to see whether the filter works at all.
    Control,
}

/// See the module's page.
#[derive(Debug)]
pub struct Trial {
    rules: Rules,
    /// Messages of the whole batch.
    count: u64,
    /// What is left of it, in order.
    parts: VecDeque<Part>,
    /// No part before this one waits for its run.
    next: usize,
    running: Option<Running>,
    /// The first part's output is at hand.
    at_hand: bool,
    /// The smallest part of the batch that has succeeded.
    witness: Option<Range<u64>>,
    /// Something has succeeded in this round.
    well_now: bool,
    /// The last run has succeeded.
    well_last: bool,
    /// There was a control in this round.
    controlled: bool,
    /// Rounds in a row in which nothing did, and nothing is known to be at fault.
    rounds: u32,
    /// Runs in this round.
    runs: usize,
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
            next: 0,
            running: None,
            at_hand: false,
            witness: None,
            well_now: false,
            well_last: false,
            controlled: false,
            rounds: 0,
            runs: 0,
            hurries: false,
        }
    }

    /// A run ended so.
    pub fn ran(&mut self, how: Ran) {
        let at = match self.running.take().expect("a run that was asked for") {
            Running::Part(at) => at,
            Running::Control => return self.controlled(how),
        };
        self.runs += 1;
        self.well_last = how == Ran::Well;
        let part = &mut self.parts[at];
        let goes_down = how == Ran::TooMuch || how != Ran::Well && part.descends;
        if goes_down && self.rules.may_halve && !part.is_alone() {
            return self.halve(at);
        }
        part.ran = true;
        let failures = part.failures().unwrap_or(0) + 1;
        match how {
            Ran::Well => {
                part.standing = Standing::Well;
                self.at_hand = at == 0;
                let messages = part.messages.clone();
                self.went_well(messages);
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

    /// The filter works: what failed before the first success was perhaps not at fault.
    fn went_well(&mut self, messages: Range<u64>) {
        self.well_now = true;
        if self.witness.is_none() {
            self.forget_failures(Part::is_alone);
        }
        let size = |range: &Range<u64>| range.end - range.start;
        if self.witness.as_ref().is_none_or(|witness| size(&messages) < size(witness)) {
            self.witness = Some(messages);
        }
    }

    /// What was well before was run again.
    fn controlled(&mut self, how: Ran) {
        self.controlled = true;
        self.well_now = how == Ran::Well;
        if !self.well_now {
            self.forget_failures(|_| true);
        }
    }

    fn forget_failures(&mut self, of: fn(&Part) -> bool) {
        for part in self.parts.iter_mut().filter(|part| of(part)) {
            if part.failures().is_some() {
                part.standing = Standing::Failed(0);
            }
        }
    }

    /// The first half of a part is next, not all parts of its size: so it takes few runs to come
    /// down to what is not too much, or to the message that is by itself.
    fn halve(&mut self, at: usize) {
        let Part { messages: Range { start, end }, descends, .. } = self.parts[at].clone();
        let middle = start + (end - start) / 2;
        self.parts[at] = Part { descends, ..Part::new(start..middle) };
        self.parts.insert(at + 1, Part::new(middle..end));
        self.next = self.next.min(at);
    }

    /// What failed last, as far as that is known: the first part that fails while others do not, or else
    /// all that is left.
    #[must_use]
    pub fn at_fault(&self) -> Range<u64> {
        let has_failed = |part: &&Part| part.failures().is_some_and(|failures| failures > 0);
        let parts = || self.parts.iter().filter(has_failed);
        let part = match &self.witness {
            Some(_) => parts().find(|part| self.is_due(part)).or_else(|| parts().next()),
            None => None,
        };
        let left = || {
            let start = self.parts.front().map_or(self.count, |part| part.messages.start);
            start..self.parts.back().map_or(self.count, |part| part.messages.end)
        };
        part.map_or_else(left, |part| part.messages.clone())
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        loop {
            assert!(self.running.is_none(), "a run has not been told of");
            let Some(first) = self.parts.front() else { return Step::Done };
            match first.standing {
                Standing::Dead(attempts) => return Step::Dead(self.take_first(), attempts),
                Standing::Well if std::mem::take(&mut self.at_hand) => {
                    return Step::Commit(self.take_first());
                }
                // Its output was let go, as it could not be committed then.
                Standing::Well => return self.run(0),
                Standing::Failed(_) => {}
            }
            let waits = |part: &Part| !part.ran && part.failures().is_some();
            if let Some(ahead) = self.parts.range(self.next..).position(waits) {
                self.next += ahead;
                return self.run(self.next);
            }
            if self.descend() {
                continue;
            }
            if let Some(step) = self.end_round() {
                return step;
            }
        }
    }

    fn take_first(&mut self) -> Range<u64> {
        self.next = self.next.saturating_sub(1);
        self.parts.pop_front().expect("the first").messages
    }

    fn run(&mut self, at: usize) -> Step {
        self.running = Some(Running::Part(at));
        Step::Run(self.parts[at].messages.clone())
    }

    // ---- the search ----

    fn is_searching(&self) -> bool {
        let splits = self.rules.may_halve && self.count > 1;
        splits && self.witness.is_none() && self.rounds >= WHOLE_RUNS
    }

    fn is_all_alone(&self) -> bool {
        self.parts.iter().all(Part::is_alone)
    }

    /// Goes down into the largest part, which has failed as a whole; where each message stands
    /// alone, those that have failed least are tried again. Whether there is anything to run.
    fn descend(&mut self) -> bool {
        if !self.is_searching() || self.runs >= SEARCH_RUNS {
            return false;
        }
        let size = |at: &usize| (self.parts[*at].count(), Reverse(*at));
        let largest = (0..self.parts.len()).max_by_key(size).expect("something is left");
        if !self.parts[largest].is_alone() {
            self.parts[largest].descends = true;
            self.halve(largest);
            return true;
        }
        let mut failed: Vec<usize> =
            (0..self.parts.len()).filter(|at| self.parts[*at].failures().is_some()).collect();
        failed.sort_by_key(|at| self.parts[*at].failures());
        failed.truncate(if self.runs == 0 { SEARCH_RUNS } else { 0 });
        failed.iter().for_each(|at| self.parts[*at].ran = false);
        self.next = 0;
        !failed.is_empty()
    }

    // ---- the end of a round ----

    /// Every part has had its run: what failed is halved, given up, or tried again.
    fn end_round(&mut self) -> Option<Step> {
        let controlled = std::mem::take(&mut self.controlled);
        if !controlled
            && self.is_to_be_seen()
            && let Some(witness) = self.witness.clone()
        {
            self.running = Some(Running::Control);
            return Some(Step::Run(witness));
        }
        let hurries = std::mem::take(&mut self.hurries);
        let comes_back = self.well_now && self.is_in_doubt();
        if std::mem::take(&mut self.well_now) {
            self.rounds = 0;
        } else if self.witness.is_none() || controlled {
            self.rounds += u32::from(!hurries);
        }
        let due = self.parts.iter().any(|part| self.is_due(part));
        (self.runs, self.next) = (0, 0);
        if due && !self.rules.may_bury {
            return Some(Step::GiveUp);
        }
        let halved = self.sort_out();
        if self.is_given_up() {
            return Some(Step::GiveUp);
        }
        let is_dead = self.parts.front().is_some_and(|part| part.failures().is_none());
        let search_begins = self.is_searching() && self.rounds == WHOLE_RUNS;
        let gets_on = halved && (self.witness.is_some() || hurries);
        if is_dead || search_begins || comes_back || gets_on {
            return None;
        }
        let longest = self.parts.iter().filter_map(Part::failures).max().unwrap_or(0);
        let failures = if self.rounds > 0 { self.rounds } else { longest };
        Some(Step::Pause(self.rules.backoff.after(failures)))
    }

    /// Halves parts, and gives up those that are due. Whether any was halved.
    fn sort_out(&mut self) -> bool {
        // Then it is said elsewhere what is run.
        let rests = self.is_searching() || self.is_in_doubt();
        let mut halved = false;
        let mut parts = VecDeque::with_capacity(self.parts.len() + 1);
        for mut part in std::mem::take(&mut self.parts) {
            (part.ran, part.descends) = (rests, false);
            let Some(failures) = part.failures() else {
                parts.push_back(part);
                continue;
            };
            if self.is_ripe(&part) && !rests {
                let Range { start, end } = part.messages;
                let middle = start + (end - start) / 2;
                parts.extend([Part::new(start..middle), Part::new(middle..end)]);
                halved = true;
                continue;
            }
            if self.is_due(&part) {
                part.standing = Standing::Dead(failures);
            }
            parts.push_back(part);
        }
        self.parts = parts;
        halved
    }

    /// Whether it is to be seen first that the filter works: before anything is halved something
    /// must have succeeded in this round, and before anything is given up, since it failed.
    fn is_to_be_seen(&self) -> bool {
        let any = |has_failed: fn(&Trial, &Part) -> bool| {
            self.parts.iter().any(|part| has_failed(self, part))
        };
        let in_vain = !self.well_now && (self.is_in_doubt() || any(Trial::is_ripe));
        in_vain || !self.well_last && any(Trial::is_due)
    }

    /// Whether what was well is not any more: until it is, nothing else is run.
    fn is_in_doubt(&self) -> bool {
        self.witness.is_some() && self.rounds > 0
    }

    fn splits(&self, part: &Part) -> bool {
        self.rules.may_halve && !part.is_alone()
    }

    /// Whether a part is to be given up, if the filter works.
    fn is_due(&self, part: &Part) -> bool {
        let is_blamed = self.witness.is_some() || self.count == 1 || !self.rules.may_halve;
        let limit = self.rules.limit.unwrap_or(u32::MAX);
        is_blamed && !self.splits(part) && part.failures().is_some_and(|n| n >= limit)
    }

    /// Whether so much has failed so often that it is the filter.
    fn is_given_up(&self) -> bool {
        let Some(limit) = self.rules.limit else { return false };
        if self.witness.is_some() {
            return self.rounds >= limit;
        }
        let enough = self.parts.len() >= SEARCH_PARTS || self.is_all_alone();
        self.is_searching() && enough && self.rounds >= limit.saturating_add(WHOLE_RUNS)
    }

    /// Whether a part is to be halved. The batch as it came is tried twice.
    fn is_ripe(&self, part: &Part) -> bool {
        let is_whole = self.witness.is_none() && part.messages.start == 0;
        let least = if is_whole { WHOLE_RUNS } else { 1 };
        self.splits(part) && part.failures().is_some_and(|failures| failures >= least)
    }
}
