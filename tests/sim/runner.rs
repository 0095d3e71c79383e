//! Running many histories: on all cores, one in a hundred twice, and what is said of a failure.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::plan::{Kind, Plan};
use crate::shrink::shrink;

/// What a history tells of itself: a hash of all that happened, and what happened how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    pub trace: u64,
    pub figures: Vec<(&'static str, u64)>,
}

impl Happened {
    pub fn count(&mut self, what: &'static str, times: usize) {
        match self.figures.iter_mut().find(|(name, _)| *name == what) {
            Some((_, all)) => *all += times as u64,
            None => self.figures.push((what, times as u64)),
        }
    }
}

/// How many histories a shorter one is looked for in, and for how long: one that gets stuck takes
/// a while.
const TRIES: usize = 1_500;
const PATIENCE: Duration = Duration::from_secs(20);

thread_local! {
    /// What the last panic of this thread said, and where, while histories run.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
    static RUNS: RefCell<bool> = const { RefCell::new(false) };
}

/// Panics within histories are kept rather than printed: a failing one is run many times.
fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if RUNS.with(|runs| *runs.borrow()) {
                SAID.with(|said| *said.borrow_mut() = Some(panic.to_string()));
            } else {
                before(panic);
            }
        }));
    });
}

/// One history, or how it failed.
pub fn run(plan: &Plan) -> Result<Happened, String> {
    listen_to_panics();
    RUNS.with(|runs| *runs.borrow_mut() = true);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| crate::history(plan)));
    RUNS.with(|runs| *runs.borrow_mut() = false);
    result.map_err(|_| SAID.with(|said| said.borrow_mut().take()).unwrap_or_default())
}

/// Where it failed: the line of code, and what kind of word it is, without names and numbers.
fn kind_of(failure: &str) -> String {
    let lines: Vec<&str> = failure.lines().collect();
    let place = lines.first().copied().unwrap_or("");
    let word = lines.get(1).copied().unwrap_or("").chars().take_while(|c| !c.is_ascii_digit());
    format!("{place} {}", word.take(12).collect::<String>())
}

/// All that is to be said of a failure: what, how to see it again, and its shortest history.
fn report(plan: &Plan, failure: &str) -> String {
    let kind = kind_of(failure);
    let mut last = failure.to_owned();
    let until = Instant::now() + PATIENCE;
    let short = shrink(plan, TRIES, &mut |plan| {
        if Instant::now() >= until {
            return false;
        }
        match run(plan) {
            Err(failure) if kind_of(&failure) == kind => {
                last = failure;
                true
            }
            _ => false,
        }
    });
    let again = |plan: &Plan| format!("MQ_SIM_PLAN={plan} cargo test --test sim -- --nocapture");
    let mut text = format!("seed {} ({}) fails: {failure}\n", plan.seed, plan.kind.name());
    let _ = writeln!(text, "again with:\n  {}", again(plan));
    let _ =
        writeln!(text, "the shortest history that still fails has {} steps:", short.steps.len());
    let _ = writeln!(text, "  {}", again(&short));
    let _ = writeln!(text, "it says: {last}");
    text
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// Which seeds are run: `MQ_SIM_FROM` on, `MQ_SIM_SEEDS` of them; with `MQ_SIM_MINUTES` as many
/// as there is time for.
fn seeds(usual: u64) -> (Range<u64>, Option<Instant>) {
    let from = number("MQ_SIM_FROM").unwrap_or(0);
    let minutes = number("MQ_SIM_MINUTES").map(|n| Duration::from_secs(n * 60));
    let count =
        number("MQ_SIM_SEEDS").unwrap_or(if minutes.is_some() { u64::MAX / 2 } else { usual });
    (from..from.saturating_add(count), minutes.map(|time| Instant::now() + time))
}

/// Runs the histories of a kind; fails with a report of the first that fails. Returns how many
/// there were, and what happened in them.
pub fn run_all(kind: Kind, usual: u64) -> (u64, Happened) {
    if let Ok(text) = std::env::var("MQ_SIM_PLAN") {
        let plan: Plan = text.parse().unwrap_or_else(|wrong| panic!("{wrong}"));
        if plan.kind == kind {
            let happened = run(&plan).unwrap_or_else(|failure| panic!("{plan} fails: {failure}"));
            println!("{plan} passes: {happened:?}");
        }
        return (0, Happened::default());
    }
    let (seeds, until) = seeds(usual);
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || run_some(kind, &next, seeds.end, until);
    let results: Vec<(u64, Happened, Vec<String>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker ends")).collect()
    });
    let (mut runs, mut all) = (0, Happened::default());
    let mut failures = Vec::new();
    for (ran, happened, failure) in results {
        runs += ran;
        happened.figures.iter().for_each(|(name, n)| all.count(name, *n as usize));
        failures.extend(failure);
    }
    let name = kind.name();
    assert!(failures.is_empty(), "{runs} histories ({name}):\n{}", failures.join("\n"));
    println!("{runs} histories ({name}): {:?}", all.figures);
    (runs, all)
}

/// What one thread does of it. One failure is reported, as the others that are met then are mostly
/// the same; with `MQ_SIM_ALL` the first of each kind.
fn run_some(
    kind: Kind,
    next: &AtomicU64,
    end: u64,
    until: Option<Instant>,
) -> (u64, Happened, Vec<String>) {
    let (mut runs, mut all) = (0, Happened::default());
    let mut reports: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let goes_on = std::env::var_os("MQ_SIM_ALL").is_some();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || until.is_some_and(|until| Instant::now() >= until) {
            let times = |(kind, (n, report))| format!("{n} times {kind}\n{report}");
            return (runs, all, reports.into_iter().map(times).collect());
        }
        let plan = Plan::whole(kind, seed);
        runs += 1;
        let happened = run(&plan);
        let again = seed.is_multiple_of(100).then(|| run(&plan));
        let failure = match (happened, again) {
            (Ok(first), Some(Ok(second))) if first != second => {
                Some(format!("{plan} does not give the same history twice"))
            }
            (Ok(happened), _) => {
                happened.figures.iter().for_each(|(name, n)| all.count(name, *n as usize));
                None
            }
            (Err(failure), _) => Some(failure),
        };
        let Some(failure) = failure else { continue };
        if !goes_on {
            next.store(end, Ordering::Relaxed);
        }
        let known = reports.entry(kind_of(&failure));
        known.or_insert_with(|| (0, report(&plan, &failure))).0 += 1;
    }
}
