//! Where a queue is: with the server of a store, or at an engine elsewhere.
//!
//! What a user writes for a queue: its name, a pattern for names, or a URL. Does nothing itself.

use std::fmt;
use std::path::PathBuf;

use crate::units::Name;
use crate::url::Url;
use crate::wire::QueuePattern;

/// One queue, as a user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A queue of the store.
    Here(Name),
    /// A queue at an engine.
    Elsewhere(Url),
}

impl Default for Place {
    fn default() -> Place {
        Place::Here(Name::default())
    }
}

impl Place {
    /// The name, or what stands for one.
    #[must_use]
    pub fn name(&self) -> Name {
        match self {
            Place::Here(name) => name.clone(),
            Place::Elsewhere(url) => url.name(),
        }
    }

    /// Whom to speak with about it; `store` tells where the store is.
    ///
    /// # Errors
    /// What `store` returns; it is only asked where it matters.
    pub fn peer<E>(&self, store: impl FnOnce() -> Result<PathBuf, E>) -> Result<Peer, E> {
        match self {
            Place::Here(_) => store().map(Peer::Store),
            Place::Elsewhere(url) => Ok(Peer::Engine(url.clone())),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Here(name) => name.fmt(out),
            Place::Elsewhere(url) => url.fmt(out),
        }
    }
}

/// One queue or several, as a user names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Places {
    /// A queue of the store, or all whose names fit.
    Here(QueuePattern),
    /// A queue at an engine.
    Elsewhere(Url),
}

impl Places {
    /// The name or the pattern; for a queue at an engine, what stands for its name.
    #[must_use]
    pub fn pattern(&self) -> QueuePattern {
        match self {
            Places::Here(pattern) => pattern.clone(),
            Places::Elsewhere(url) => QueuePattern(url.name().to_string()),
        }
    }
}

impl fmt::Display for Places {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Places::Here(QueuePattern(text)) if Name::new(text).is_ok() => out.write_str(text),
            Places::Here(QueuePattern(text)) => write!(out, "'{text}'"),
            Places::Elsewhere(url) => url.fmt(out),
        }
    }
}

/// Whom a client speaks with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The server of the store at this path.
    Store(PathBuf),
    /// The engine at which the queue lives, by way of a helper.
    Engine(Url),
}
