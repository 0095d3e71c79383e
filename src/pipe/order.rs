//! The order: what a pipe is to do, as `mq-pipe` reads it from its command line.

use std::ffi::OsString;
use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_64;

use super::key::Spec;
use super::output::Cut;
use super::windowed::Windowed;
use crate::limits;
use crate::settings::{Backoff, Start};
use crate::units::{Micros, Name};
use crate::url::Url;

/// Where a pipe reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A queue.
    Queue(Name),
    /// A queue at an engine.
    Engine(Url),
    /// Standard input; nothing is kept of it, and nothing is tried again beyond this process.
    Stdin,
}

/// Where a pipe writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A queue.
    Queue(Name),
    /// A queue at an engine.
    Engine(Url),
    /// A file, with a journal beside it.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Queue(name) => write!(f, "queue {name}"),
            Destination::Engine(url) => url.fmt(f),
            Destination::File(path) => write!(f, "the journal of file {}", path.display()),
            Destination::Stdout => f.write_str("standard output"),
        }
    }
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// Where from.
    pub source: Origin,
    /// Where to.
    pub destination: Destination,
    /// The filter and its arguments.
    pub filter: Vec<OsString>,
    /// The pipe's name.
    pub name: Name,
    /// Messages in a batch at most.
    pub batch: Option<u64>,
    /// Whether to end at the end of what is ready at the start.
    pub until_end: bool,
    /// Exit statuses that mean success.
    pub ok: Vec<i32>,
    /// One filter that answers line by line, rather than one for each batch.
    pub stay: bool,
    /// Filters that run at once, each on a part of the batch.
    pub parallel: usize,
    /// The parts go by this key, rather than being pieces of the batch.
    pub key: Option<Spec>,
    /// How the output is cut into messages.
    pub cut: Cut,
    /// Where a new pipe begins.
    pub from: Option<Start>,
    /// Whether to forget the position of before.
    pub reset: bool,
    /// Whether a message that fails for good is given up, or the pipe ends.
    pub buries: bool,
    /// The pauses before the filter is run again.
    pub backoff: Backoff,
    /// How long one run may take.
    pub timeout: Option<Micros>,
    /// Messages are put into windows.
    pub windows: Option<Windowed>,
    /// Where the filter keeps what it needs from one run to the next.
    pub state: Option<PathBuf>,
    /// How long a server or an engine that is away is waited for, if the user said so.
    pub wait: Option<Micros>,
    /// Nothing is said but errors.
    pub quiet: bool,
}

/// What needs a position, which a queue at an engine does not give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} with {at}: {why}")]
pub struct Refusal {
    flag: &'static str,
    at: Url,
    why: &'static str,
    /// What to do instead.
    pub remedy: String,
}

impl Refusal {
    /// Of a queue for what comes late that is at an engine.
    pub(super) fn late(queue: &Name, at: Url) -> Refusal {
        Refusal {
            flag: "--late",
            remedy: format!(
                "another queue with --late, and from there: mq-recv -J --batch 1000 QUEUE -- mq-send -J {queue}"
            ),
            at,
            why: "each late message is stored once, as the queue knows how far SRC was read, and an \
                  engine keeps no such thing",
        }
    }
}

/// The way round: a queue of the store in between, which has positions.
fn way_round(source: Option<&Url>, destination: Option<&Url>) -> String {
    let into = source.map(|url| format!("mq-recv -J --batch 1000 {url} -- mq-send -J in"));
    let out = destination.map(|url| format!("mq-recv -J --batch 1000 out -- mq-send -J {url}"));
    let pipe = format!(
        "a pipe from {} to {}",
        if into.is_some() { "in" } else { "SRC" },
        if out.is_some() { "out" } else { "DST" }
    );
    let steps: Vec<String> = [into, Some(pipe), out].into_iter().flatten().collect();
    format!("a queue of the store between: {}", steps.join(", and "))
}

impl Order {
    /// Whether the filter gets the messages as they come, without a look at any.
    #[must_use]
    pub fn hands_on(&self) -> bool {
        let looks = self.stay || self.key.is_some() || self.windows.is_some();
        !looks && self.batch.is_none()
    }

    /// The address of the source, if it is at an engine, and that of the destination.
    #[must_use]
    pub fn engines(&self) -> (Option<&Url>, Option<&Url>) {
        let source = match &self.source {
            Origin::Engine(url) => Some(url),
            Origin::Queue(_) | Origin::Stdin => None,
        };
        let destination = match &self.destination {
            Destination::Engine(url) => Some(url),
            Destination::Queue(_) | Destination::File(_) | Destination::Stdout => None,
        };
        (source, destination)
    }

    /// Whether an end is at an engine: then no commit says where to go on, and each message is there at
    /// least once.
    #[must_use]
    pub fn is_at_engine(&self) -> bool {
        self.engines() != (None, None)
    }

    /// Whether all that is asked for can be had where the ends are.
    ///
    /// # Errors
    /// What needs a position, and has an engine at one end.
    pub fn check_engines(&self) -> Result<(), Refusal> {
        let (source, destination) = self.engines();
        let Some(at) = source.or(destination).cloned() else { return Ok(()) };
        let refuse = |flag, why, remedy| Err(Refusal { flag, at: at.clone(), why, remedy });
        let between = || way_round(source, destination);
        if self.windows.is_some() {
            let why = "which windows are open is known by positions in a queue of the store, and an engine \
                       keeps none";
            return refuse("--window", why, between());
        }
        if self.state.is_some() {
            let why =
                "a state belongs to a position in a queue of the store, and an engine keeps none";
            return refuse("--state", why, between());
        }
        // A file has its journal, which can be forgotten.
        if self.reset && !matches!(self.destination, Destination::File(_)) {
            let why =
                "no position is kept that could be forgotten: what is not acknowledged comes again";
            let remedy = match &self.source {
                Origin::Queue(name) => {
                    format!("mq-admin group rm {name} {GROUP_PREFIX}{}", self.name)
                }
                Origin::Engine(_) | Origin::Stdin => "the engine's own tools".to_owned(),
            };
            return refuse("--reset", why, remedy);
        }
        Ok(())
    }

    /// Whether it would go round for ever.
    #[must_use]
    pub fn is_circle(&self) -> bool {
        match (&self.source, &self.destination) {
            (Origin::Queue(from), Destination::Queue(to)) => from == to,
            (Origin::Engine(from), Destination::Engine(to)) => from.is_same_queue(to),
            _ => false,
        }
    }
}

/// A name for a pipe that was not given one: from what it does. `shown` stands for the destination
/// where that is no name.
#[must_use]
pub fn default_name(source: &str, destination: &str, shown: &str, filter: &[OsString]) -> Name {
    use std::os::unix::ffi::OsStrExt;
    let mut text = format!("{source}\0{destination}").into_bytes();
    for word in filter {
        text.push(0);
        text.extend_from_slice(word.as_bytes());
    }
    let hash = format!("{:012x}", xxh3_64(&text) >> 16);
    let readable = format!("{source}.{shown}.{hash}");
    let fits = readable.len() + GROUP_PREFIX.len() <= limits::NAME_BYTES_MAX;
    Name::new(&readable)
        .ok()
        .filter(|_| fits)
        .unwrap_or_else(|| Name::new(&format!("pipe-{hash}")).expect("letters and digits"))
}

/// In front of a pipe's name in that of its group.
pub const GROUP_PREFIX: &str = limits::PIPE_GROUP_PREFIX;
