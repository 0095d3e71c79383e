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

/// Where a pipe reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A queue.
    Queue(Name),
    /// Standard input; nothing is kept of it, and nothing is tried again beyond this process.
    Stdin,
}

/// Where a pipe writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A queue.
    Queue(Name),
    /// A file, with a journal beside it.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Queue(name) => write!(f, "queue {name}"),
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
}

impl Order {
    /// Whether the filter gets the messages as they come, without a look at any.
    #[must_use]
    pub fn hands_on(&self) -> bool {
        let looks = self.stay || self.key.is_some() || self.windows.is_some();
        !looks && self.batch.is_none()
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
