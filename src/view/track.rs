//! The past of one queue, as far as it is watched: a step for each time it was asked about, marks
//! from which windows are counted, and what all that says about where it is going.
//!
//! Pure and bounded: [`limits::VIEW_STEPS`] steps, a mark every five seconds within the last
//! minute, and only where something has changed.

use std::collections::VecDeque;
use std::rc::Rc;

use super::model::RECENT;
use crate::limits;
use crate::units::{Micros, QueueId, WallTime};
use crate::wire::stat::{Latencies, QueueFigures, Slice};

/// How far apart marks are.
const MARK_EVERY: Micros = Micros::from_secs(5);

/// How far back a trend looks.
const TREND: Micros = Micros::from_secs(10);

/// A backlog grows when it has become larger by this part, and by so many messages, within
/// [`TREND`].
const GROWTH_PART: f64 = 0.02;
/// See [`GROWTH_PART`].
const GROWTH_LEAST: f64 = 10.0;

/// The length of a slice of the server's history by seconds.
const SLICE: Micros = Micros::from_secs(1);

/// What goes through a queue in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Messages stored.
    pub stored: f64,
    /// Their bytes.
    pub stored_bytes: f64,
    /// Messages delivered.
    pub delivered: f64,
    /// Their bytes.
    pub delivered_bytes: f64,
    /// Messages acknowledged.
    pub acked: f64,
}

impl Rates {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Rates) -> Rates {
        Rates {
            stored: self.stored + other.stored,
            stored_bytes: self.stored_bytes + other.stored_bytes,
            delivered: self.delivered + other.delivered,
            delivered_bytes: self.delivered_bytes + other.delivered_bytes,
            acked: self.acked + other.acked,
        }
    }

    /// What was counted between two looks that are so far apart.
    #[must_use]
    pub fn between(then: &QueueFigures, now: &QueueFigures, apart: Micros) -> Rates {
        let seconds = apart.0 as f64 / 1e6;
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let (now, then) = (&now.counted, &then.counted);
        Rates {
            stored: per_second(now.stored.0, then.stored.0),
            stored_bytes: per_second(now.stored_bytes.0, then.stored_bytes.0),
            delivered: per_second(now.delivered.0, then.delivered.0),
            delivered_bytes: per_second(now.delivered_bytes.0, then.delivered_bytes.0),
            acked: per_second(now.acked.0, then.acked.0),
        }
    }

    fn of_slice(slice: &Slice, part: f64) -> Rates {
        Rates {
            stored: slice.stored.0 as f64 * part,
            stored_bytes: slice.stored_bytes.0 as f64 * part,
            delivered: slice.delivered.0 as f64 * part,
            delivered_bytes: slice.delivered_bytes.0 as f64 * part,
            acked: slice.acked.0 as f64 * part,
        }
    }
}

/// A moment of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// When.
    pub at: WallTime,
    /// What went through it in a second, until then.
    pub rates: Rates,
    /// The messages that were ready then.
    pub ready: f64,
}

/// Where a queue is going.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trend {
    /// Nowhere.
    #[default]
    Steady,
    /// Its backlog shrinks, and is gone in so long if it goes on so.
    Draining(Micros),
    /// Its backlog grows.
    Growing,
    /// Its oldest message is ready and nobody takes it.
    Ageing,
    /// It, or one of its groups, stands still.
    Stuck,
}

impl Trend {
    /// Whether somebody should look.
    #[must_use]
    pub fn is_warning(self) -> bool {
        self >= Trend::Growing
    }

    /// When its backlog is gone.
    #[must_use]
    pub fn eta(self) -> Option<Micros> {
        match self {
            Trend::Draining(eta) => Some(eta),
            _ => None,
        }
    }
}

/// The past of a queue.
#[derive(Debug)]
pub struct Track {
    now: Rc<QueueFigures>,
    /// As it was a step before.
    before: Rc<QueueFigures>,
    /// Whether something was said of it since.
    is_fresh: bool,
    steps: VecDeque<Step>,
    marks: VecDeque<(WallTime, Rc<QueueFigures>)>,
    base: Rc<QueueFigures>,
    /// Since when its oldest message is the oldest, as far as it was seen.
    oldest_since: WallTime,
}

impl Track {
    /// A queue that is seen for the first time. `known_since` is when the server began to keep its
    /// history; without it the queue has appeared while others are watched, and all that was
    /// counted in it belongs to every window.
    pub(super) fn begin(
        figures: QueueFigures,
        now: WallTime,
        step: Micros,
        known_since: Option<WallTime>,
    ) -> Track {
        let steps = match known_since {
            Some(since) => steps_of(&figures, since, now, step),
            None => VecDeque::new(),
        };
        let figures = Rc::new(figures);
        let base = match known_since {
            Some(_) => Rc::clone(&figures),
            None => Rc::new(QueueFigures { id: figures.id, ..QueueFigures::default() }),
        };
        Track {
            before: Rc::clone(&base),
            is_fresh: true,
            steps,
            marks: VecDeque::from([(now, Rc::clone(&base))]),
            base,
            oldest_since: now,
            now: figures,
        }
    }

    /// Its newest figures.
    #[must_use]
    pub fn now(&self) -> &Rc<QueueFigures> {
        &self.now
    }

    /// As it was a step before; as it is now, when it was not watched then.
    #[must_use]
    pub fn before(&self) -> &QueueFigures {
        &self.before
    }

    pub(super) fn is_of(&self, id: QueueId) -> bool {
        self.now.id == id
    }

    pub(super) fn take(&mut self, figures: QueueFigures, now: WallTime, step: Micros) {
        if figures.oldest != self.now.oldest {
            self.oldest_since = now;
        }
        if !figures.seconds.is_empty() {
            self.steps = steps_of(&figures, figures.seconds[0].at, now, step);
        }
        let before = std::mem::replace(&mut self.now, Rc::new(figures));
        // It may come twice within a step.
        if !std::mem::replace(&mut self.is_fresh, true) {
            self.before = before;
        }
    }

    /// A step is over, whether something was said about this queue or not; `elapsed` since the
    /// one before.
    pub(super) fn advance(&mut self, now: WallTime, elapsed: Option<Micros>, step: Micros) {
        if !std::mem::take(&mut self.is_fresh) {
            // What is not said anew has not changed.
            self.before = Rc::clone(&self.now);
        }
        let is_told = self.steps.back().is_some_and(|last| last.at >= now);
        if !is_told {
            let rates = match elapsed {
                Some(elapsed) if elapsed.0 > 0 => Rates::between(&self.before, &self.now, elapsed),
                _ => Rates::default(),
            };
            // For steps that were missed the line goes on as far as time did.
            let passed = elapsed.map_or(1, |elapsed| (elapsed.0 + step.0 / 2) / step.0);
            let ready = self.now.ready.0 as f64;
            for _ in 0..passed.clamp(1, limits::VIEW_STEPS as u64) {
                self.steps.push_back(Step { at: now, rates, ready });
            }
        }
        while self.steps.len() > limits::VIEW_STEPS {
            self.steps.pop_front();
        }
        self.mark(now);
    }

    fn mark(&mut self, now: WallTime) {
        let is_due = |(at, figures): &(WallTime, Rc<QueueFigures>)| {
            now.0.saturating_sub(at.0) >= MARK_EVERY.0 && !Rc::ptr_eq(figures, &self.now)
        };
        if self.marks.back().is_none_or(is_due) {
            self.marks.push_back((now, Rc::clone(&self.now)));
        }
        let begin = now.0.saturating_sub(RECENT.0);
        while self.marks.get(1).is_some_and(|(at, _)| at.0 <= begin) {
            self.marks.pop_front();
        }
    }

    pub(super) fn reset(&mut self) {
        self.base = Rc::clone(&self.now);
    }

    /// Another server counts latencies from nothing.
    pub(super) fn forget_latencies(&mut self) {
        let without = |figures: &Rc<QueueFigures>| {
            let mut figures = QueueFigures::clone(figures);
            figures.latency = Latencies::default();
            Rc::new(figures)
        };
        self.base = without(&self.base);
        for (_, figures) in &mut self.marks {
            *figures = without(figures);
        }
    }

    /// Where the window "recently" begins.
    pub(super) fn recent(&self, now: WallTime) -> &QueueFigures {
        let begin = now.0.saturating_sub(RECENT.0);
        let mark = self.marks.iter().rev().find(|(at, _)| at.0 <= begin);
        mark.or(self.marks.front()).map_or(&*self.base, |(_, figures)| figures)
    }

    /// Where the window that a user began begins.
    pub(super) fn base(&self) -> &QueueFigures {
        &self.base
    }

    /// Its steps, the oldest first.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Step> + ExactSizeIterator {
        self.steps.iter()
    }

    /// What went through it in the last step.
    #[must_use]
    pub fn rates(&self) -> Rates {
        self.steps.back().map_or(Rates::default(), |step| step.rates)
    }

    /// Where it is going.
    #[must_use]
    pub fn trend(&self, now: WallTime) -> Trend {
        if self.now.trouble.is_some() || self.now.stuck {
            return Trend::Stuck;
        }
        let ready = self.now.ready.0 as f64;
        let begin = WallTime(now.0.saturating_sub(TREND.0));
        let Some(then) = self.steps.iter().rev().find(|step| step.at <= begin) else {
            return Trend::Steady;
        };
        let seconds = now.0.saturating_sub(then.at.0) as f64 / 1e6;
        let grown = ready - then.ready;
        if grown >= GROWTH_LEAST && grown >= then.ready * GROWTH_PART {
            return Trend::Growing;
        }
        if ready > 0.0 && grown < 0.0 && -grown >= ready * 0.001 {
            let eta = ready / (-grown / seconds);
            return Trend::Draining(Micros((eta * 1e6).min(limits::DURATION_MAX.0 as f64) as u64));
        }
        let is_waiting =
            self.oldest_since <= begin && self.now.oldest.is_some_and(|oldest| oldest <= begin);
        if ready > 0.0 && is_waiting { Trend::Ageing } else { Trend::Steady }
    }
}

/// The steps that the server's history by seconds, which it has kept `since`, tells of, up to now.
fn steps_of(
    figures: &QueueFigures,
    since: WallTime,
    now: WallTime,
    step: Micros,
) -> VecDeque<Step> {
    let since = since.max(figures.created);
    let steps = now.0.saturating_sub(since.0) / step.0;
    let step_to = |to: u64| {
        let from = to.saturating_sub(step.0);
        let mut rates = Rates::default();
        for slice in &figures.seconds {
            // The last one may not be over yet.
            let end = now.0.min(slice.at.0 + SLICE.0);
            let overlap = to.min(end).saturating_sub(from.max(slice.at.0));
            if overlap > 0 {
                let part = overlap as f64 / (end - slice.at.0) as f64;
                rates = rates.plus(Rates::of_slice(slice, part / (step.0 as f64 / 1e6)));
            }
        }
        Step { at: WallTime(to), rates, ready: ready_at(figures, to) }
    };
    let steps = steps.min(limits::VIEW_STEPS as u64);
    (0..steps).rev().map(|back| step_to(now.0 - back * step.0)).collect()
}

/// How many messages were ready at a time of which the history may tell.
fn ready_at(figures: &QueueFigures, time: u64) -> f64 {
    let over = figures.seconds.iter().take_while(|slice| slice.at.0 + SLICE.0 <= time).last();
    let ready = match (over, figures.seconds.first()) {
        (Some(slice), _) => slice.ready.0,
        // Before the first slice nothing happened.
        (None, Some(first)) => (first.ready.0 + first.acked.0).saturating_sub(first.stored.0),
        (None, None) => figures.ready.0,
    };
    ready as f64
}
