//! The plan of a history: its seed, its kind, and which of its steps are taken.
//!
//! What a step draws depends on the seed and the step's number alone. So a step can be left out,
//! and those behind it still do what they did, as far as the world lets them: a history that fails
//! is cut down to the steps that matter, and a plan, written as one line, replays it.

use std::fmt;
use std::str::FromStr;

use crate::rng::Random;

/// What kind of history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Senders, receivers, groups, faults of everything.
    Wide,
    /// A pipe from queue to queue, with windows and state or without.
    Pipe,
    /// A receiver that reads large batches from the segments itself.
    Extents,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Wide, Kind::Pipe, Kind::Extents];

    /// As it is written in a plan.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Wide => "wide",
            Kind::Pipe => "pipe",
            Kind::Extents => "extents",
        }
    }
}

/// See the module's page. Written as `wide:123`, or `wide:123:0-17,20` with some steps only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub kind: Kind,
    pub seed: u64,
    /// Ascending.
    pub steps: Vec<u32>,
}

/// Steps of a whole history.
pub const STEPS: u32 = 300;

impl Plan {
    pub fn whole(kind: Kind, seed: u64) -> Plan {
        Plan { kind, seed, steps: (0..STEPS).collect() }
    }

    /// What is drawn before the first step.
    pub fn beginning(&self) -> Random {
        Random(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// What a step draws.
    pub fn draws(&self, step: u32) -> Random {
        let mut mixed = Random(self.seed ^ (u64::from(step) + 1).wrapping_mul(0x0100_0000_01b3));
        Random(mixed.next() ^ self.seed.rotate_left(32))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.seed)?;
        if self.steps.len() == STEPS as usize {
            return Ok(());
        }
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for step in &self.steps {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *step => *last = *step,
                _ => runs.push((*step, *step)),
            }
        }
        let run = |(first, last): &(u32, u32)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        write!(f, ":{}", runs.iter().map(run).collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Plan, String> {
        let bad = || format!("{text:?} is no plan: write wide:123 or wide:123:0-17,20");
        let mut parts = text.split(':');
        let kind = parts.next().and_then(|name| Kind::ALL.into_iter().find(|k| k.name() == name));
        let (kind, seed) = (kind.ok_or_else(bad)?, parts.next().ok_or_else(bad)?);
        let mut plan = Plan::whole(kind, seed.parse().map_err(|_| bad())?);
        let Some(steps) = parts.next() else { return Ok(plan) };
        plan.steps.clear();
        for run in steps.split(',').filter(|run| !run.is_empty()) {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last) =
                (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
            plan.steps.extend::<std::ops::RangeInclusive<u32>>(first..=last);
        }
        Ok(plan)
    }
}

#[test]
fn plans_read_as_written() {
    for text in ["wide:7", "pipe:123:0-2,5,9-11", "pipe:1:4", "wide:1:"] {
        assert_eq!(text.parse::<Plan>().map(|plan| plan.to_string()), Ok(text.to_owned()));
    }
    assert!("narrow:1".parse::<Plan>().is_err() && "wide:x".parse::<Plan>().is_err());
}
