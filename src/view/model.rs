//! What is known of a store over time: the newest figures of each queue, and enough of the older
//! ones for rates, sparklines, windows and trends.
//!
//! Pure: figures of the wire go in with [`Model::update`], [`Row`]s come out. Time is the server's
//! wall clock, as it stands in the figures. The live view, the plain lines and the JSON lines all
//! stand on it.

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use super::latency::{self, Percentiles};
use super::track::{Rates, Track, Trend};
use crate::units::{Bytes, Count, Micros, Name, WallTime};
use crate::wire::stat::{Counted, Histogram, QueueFigures, ServerFigures};

/// How far back the window "recently" goes.
pub const RECENT: Micros = Micros::from_secs(60);

/// Which part of the past counters and latencies are shown of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Span {
    /// The last minute, as far as it was watched.
    #[default]
    Recent,
    /// Since the window was reset, or else since the watching began.
    Reset,
    /// Counters since the queue was made, latencies since the server started.
    All,
}

impl Span {
    /// The next one, in a circle.
    #[must_use]
    pub fn next(self) -> Span {
        match self {
            Span::Recent => Span::Reset,
            Span::Reset => Span::All,
            Span::All => Span::Recent,
        }
    }
}

/// A queue as it is shown.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its newest figures.
    pub now: Rc<QueueFigures>,
    /// What went through it in a second, over the last step.
    pub rates: Rates,
    /// The age of its oldest message.
    pub age: Option<Micros>,
    /// What was counted within the window.
    pub counted: Counted,
    /// The whole latency within the window.
    pub latency: Option<Percentiles>,
    /// Where it is going.
    pub trend: Trend,
}

impl Row {
    /// The queue's name.
    #[must_use]
    pub fn queue(&self) -> &Name {
        &self.now.queue
    }
}

/// All queues together.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// How many there are.
    pub queues: usize,
    /// Messages ready.
    pub ready: u64,
    /// Bytes of all messages that are not gone.
    pub present_bytes: u64,
    /// Messages that receivers hold.
    pub unacked: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// What goes through them in a second.
    pub rates: Rates,
    /// The age of the oldest message of all.
    pub age: Option<Micros>,
    /// What was counted since they were made.
    pub ever: Counted,
    /// What was counted within the window.
    pub counted: Counted,
    /// The whole latency within the window.
    pub latency: Option<Percentiles>,
    /// How many of them are marked.
    pub marked: usize,
}

/// What is known of a store.
#[derive(Debug, Default)]
pub struct Model {
    server: Option<ServerFigures>,
    tracks: BTreeMap<Name, Track>,
    span: Span,
    /// Since when it is watched.
    since: WallTime,
    /// When the window was last reset.
    reset: WallTime,
    step: Micros,
    /// When the last step was over.
    stepped: WallTime,
    /// Between the last two steps.
    elapsed: Option<Micros>,
    rows: Vec<Row>,
    totals: Totals,
}

impl Model {
    /// Of a store that is asked about every `step`.
    #[must_use]
    pub fn new(step: Micros) -> Model {
        Model { step: Micros(step.0.max(1)), ..Model::default() }
    }

    /// The server, once it has said something.
    #[must_use]
    pub fn server(&self) -> Option<&ServerFigures> {
        self.server.as_ref()
    }

    /// The server's wall clock when it was last heard.
    #[must_use]
    pub fn now(&self) -> WallTime {
        self.server.as_ref().map_or(WallTime(0), |server| server.now)
    }

    /// When the server was started.
    #[must_use]
    pub fn started(&self) -> WallTime {
        self.server.as_ref().map_or(WallTime(0), |server| server.started)
    }

    /// How far the last step and the one before are apart, if there were two.
    #[must_use]
    pub fn elapsed(&self) -> Option<Micros> {
        self.elapsed
    }

    /// Whether there was one look only.
    #[must_use]
    pub fn is_first_look(&self) -> bool {
        self.elapsed.is_none()
    }

    /// The queues, by name.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// One queue.
    #[must_use]
    pub fn row(&self, queue: &Name) -> Option<&Row> {
        let at = self.rows.binary_search_by(|row| row.queue().cmp(queue)).ok()?;
        self.rows.get(at)
    }

    /// All queues together.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The past of a queue.
    #[must_use]
    pub fn track(&self, queue: &Name) -> Option<&Track> {
        self.tracks.get(queue)
    }

    /// The pasts of all queues.
    pub fn tracks(&self) -> impl Iterator<Item = &Track> {
        self.tracks.values()
    }

    /// The window that is shown.
    #[must_use]
    pub fn span(&self) -> Span {
        self.span
    }

    /// How long the window is; `None`: from the beginning.
    #[must_use]
    pub fn window(&self) -> Option<Micros> {
        let long = |since: WallTime| Micros(self.now().0.saturating_sub(since.0));
        match self.span {
            Span::Recent => Some(long(self.since).min(RECENT)),
            Span::Reset => Some(long(self.reset)),
            Span::All => None,
        }
    }

    /// Shows another window.
    pub fn look_at(&mut self, span: Span) {
        self.span = span;
        self.refresh();
    }

    /// The window begins now, and is the one that is shown.
    pub fn reset(&mut self) {
        self.reset = self.now();
        for track in self.tracks.values_mut() {
            track.reset();
        }
        self.look_at(Span::Reset);
    }

    /// Takes what the server has said: the queues that changed, or with `is_whole` all that there
    /// are. Returns the process of the server before, when this is another one.
    pub fn update(
        &mut self,
        server: ServerFigures,
        queues: Vec<QueueFigures>,
        is_whole: bool,
    ) -> Option<u32> {
        self.hear(server, queues, is_whole, true)
    }

    /// The same of a look between two steps, which was made because more was wanted at once. It is no step
    /// of its own: so short a time says nothing of a rate, and a server that counts in ticks may not have
    /// counted since.
    pub fn update_between_steps(
        &mut self,
        server: ServerFigures,
        queues: Vec<QueueFigures>,
        is_whole: bool,
    ) -> Option<u32> {
        self.hear(server, queues, is_whole, false)
    }

    fn hear(
        &mut self,
        server: ServerFigures,
        queues: Vec<QueueFigures>,
        is_whole: bool,
        is_step: bool,
    ) -> Option<u32> {
        let before = self.server.take();
        let other = before.as_ref().filter(|before| before.instance != server.instance);
        let replaced = other.map(|before| before.pid);
        if before.is_none() {
            (self.since, self.reset) = (server.now, server.now);
        }
        if replaced.is_some() {
            self.tracks.values_mut().for_each(Track::forget_latencies);
        }
        if is_whole {
            let there: HashSet<&Name> = queues.iter().map(|figures| &figures.queue).collect();
            self.tracks.retain(|queue, _| there.contains(queue));
        }
        let is_step = is_step || before.is_none();
        if is_step {
            let apart = Micros(server.now.0.saturating_sub(self.stepped.0));
            self.elapsed = before.is_some().then_some(apart);
            self.stepped = server.now;
        }
        // A queue that appears while the others are watched is new.
        let known_since = before.is_none().then_some(server.started);
        self.take(queues, server.now, known_since);
        if is_step {
            for track in self.tracks.values_mut() {
                track.advance(server.now, self.elapsed, self.step);
            }
        }
        self.server = Some(server);
        self.refresh();
        replaced
    }

    fn take(&mut self, queues: Vec<QueueFigures>, now: WallTime, known_since: Option<WallTime>) {
        for figures in queues {
            let known = self.tracks.get_mut(&figures.queue).filter(|track| track.is_of(figures.id));
            match known {
                Some(track) => track.take(figures, now, self.step),
                None => {
                    let track = Track::begin(figures, now, self.step, known_since);
                    self.tracks.insert(track.now().queue.clone(), track);
                }
            }
        }
    }

    /// Where the window begins in the past of a queue; `None`: at the beginning.
    #[must_use]
    pub fn base_of<'a>(&self, track: &'a Track, now: WallTime) -> Option<&'a QueueFigures> {
        match self.span {
            Span::Recent => Some(track.recent(now)),
            Span::Reset => Some(track.base()),
            Span::All => None,
        }
    }

    fn refresh(&mut self) {
        let now = self.now();
        let mut histograms = Vec::with_capacity(self.tracks.len());
        let mut rows = Vec::with_capacity(self.tracks.len());
        for track in self.tracks.values() {
            let base = self.base_of(track, now);
            let figures = track.now();
            let histogram = figures.latency.whole.as_ref().map(|whole| {
                latency::within(whole, base.and_then(|base| base.latency.whole.as_ref()))
            });
            rows.push(Row {
                now: Rc::clone(figures),
                rates: track.rates(),
                age: figures.oldest.map(|time| Micros(now.0.saturating_sub(time.0))),
                counted: base
                    .map_or(figures.counted, |base| difference(&figures.counted, &base.counted)),
                latency: histogram.as_ref().and_then(Percentiles::of),
                trend: track.trend(now),
            });
            histograms.extend(histogram);
        }
        self.totals = totals(&rows, &latency::sum(histograms.iter()));
        self.rows = rows;
    }
}

fn totals(rows: &[Row], latency: &Histogram) -> Totals {
    let mut totals =
        Totals { queues: rows.len(), latency: Percentiles::of(latency), ..Totals::default() };
    for row in rows {
        totals.ready += row.now.ready.0;
        totals.present_bytes += row.now.present_bytes.0;
        totals.unacked += row.now.unacked.0;
        totals.delayed += row.now.delayed.0;
        totals.rates = totals.rates.plus(row.rates);
        totals.age = totals.age.max(row.age);
        totals.ever = sum(&totals.ever, &row.now.counted);
        totals.counted = sum(&totals.counted, &row.counted);
        totals.marked += usize::from(row.trend.is_warning());
    }
    totals
}

/// Joins two sets of counters, field by field.
fn join(a: &Counted, b: &Counted, of: impl Fn(u64, u64) -> u64) -> Counted {
    let count = |a: Count, b: Count| Count(of(a.0, b.0));
    let bytes = |a: Bytes, b: Bytes| Bytes(of(a.0, b.0));
    Counted {
        announced: count(a.announced, b.announced),
        stored: count(a.stored, b.stored),
        stored_bytes: bytes(a.stored_bytes, b.stored_bytes),
        there_already: count(a.there_already, b.there_already),
        refused: count(a.refused, b.refused),
        delivered: count(a.delivered, b.delivered),
        delivered_bytes: bytes(a.delivered_bytes, b.delivered_bytes),
        redelivered: count(a.redelivered, b.redelivered),
        acked: count(a.acked, b.acked),
        retried: count(a.retried, b.retried),
        dead: count(a.dead, b.dead),
        expired: count(a.expired, b.expired),
        dropped: count(a.dropped, b.dropped),
        purged: count(a.purged, b.purged),
        lost: count(a.lost, b.lost),
    }
}

/// What was counted between two looks.
#[must_use]
pub fn difference(now: &Counted, then: &Counted) -> Counted {
    join(now, then, u64::saturating_sub)
}

/// What was counted in both.
#[must_use]
pub fn sum(a: &Counted, b: &Counted) -> Counted {
    join(a, b, u64::saturating_add)
}
