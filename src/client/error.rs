//! What can go wrong between a client and its server, in words for users.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::store::StoreError;
use crate::units::NameError;
use crate::url::Url;
use crate::wire::{self, ErrorCode, Fault, Goodbye, WireError};

/// Why a client cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A name that is none.
    #[error("{0:?} is no name for a queue: {1}")]
    Name(String, #[source] NameError),
    /// Nobody listens, and none was or could be started in time.
    #[error("no mq-serve runs on the store {}{}", store.display(), waited_text(*waited))]
    NoServer {
        /// The store.
        store: PathBuf,
        /// How long was waited for one.
        waited: Duration,
        /// Whether starting one was allowed.
        may_start: bool,
    },
    /// The server was started and said why it cannot run, or ended without a word.
    #[error("cannot start mq-serve on the store {}: {said}", store.display())]
    StartFailed {
        /// The store.
        store: PathBuf,
        /// What it said.
        said: String,
    },
    /// The program is not there.
    #[error("cannot start mq-serve: it is neither in {} nor in the PATH", beside.display())]
    NoProgram {
        /// Where it was looked for first.
        beside: PathBuf,
    },
    /// The helper for queues that live at an engine is not there.
    #[error("{url} lives at an engine, and mq-remote, which speaks with engines, is neither in {} nor in the PATH",
        beside.display())]
    NoHelper {
        /// The queue.
        url: Url,
        /// Where it was looked for first.
        beside: PathBuf,
    },
    /// The helper ended.
    #[error("mq-remote, which speaks with {url}, is gone: {how}")]
    HelperGone {
        /// The queue.
        url: Url,
        /// How it ended.
        how: String,
    },
    /// The helper does not answer.
    #[error("mq-remote, which speaks with {url}, does not answer")]
    HelperSilent {
        /// The queue.
        url: Url,
        /// Its process.
        pid: u32,
    },
    /// Somebody listens and does not answer.
    #[error("the server on the store {} does not answer", store.display())]
    Silent {
        /// The store.
        store: PathBuf,
        /// Its process, if known.
        pid: Option<u32>,
    },
    /// The socket belongs to another user's process.
    #[error("the server on the store {} runs as user {uid}, not as us", store.display())]
    ForeignServer {
        /// The store.
        store: PathBuf,
        /// Its user.
        uid: u32,
    },
    /// Server and client speak different versions.
    #[error("this mq {} speaks protocol versions {} to {}, and the server (mq {package}) answered with {version}",
        env!("CARGO_PKG_VERSION"), wire::VERSION_OLDEST, wire::VERSION)]
    Version {
        /// What the server answered.
        version: u16,
        /// The server's package version.
        package: String,
    },
    /// The server refused something.
    #[error("{}", .0.message)]
    Refused(Fault),
    /// The server sent bytes that make no sense.
    #[error("the server's answer makes no sense: {0}")]
    Wire(#[from] WireError),
    /// The server sent a frame that does not belong here.
    #[error("the server's answer makes no sense: {0}")]
    Unexpected(String),
    /// The connection ended.
    #[error("the connection to the server was lost")]
    Lost,
    /// Servers end again and again, before they have done anything.
    #[error("one server after the other ends{}", said_text(said.as_deref()))]
    Dying {
        /// The last line of the log of those that clients start.
        said: Option<String>,
    },
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A signal came while waiting.
    #[error("interrupted")]
    Interrupted,
}

fn said_text(said: Option<&str>) -> String {
    said.map_or(String::new(), |said| format!("; the last line in server.log is: {said}"))
}

fn waited_text(waited: Duration) -> String {
    if waited < Duration::from_millis(500) {
        String::new()
    } else {
        format!(" (waited {} s)", waited.as_secs_f64().round())
    }
}

impl ClientError {
    /// Wraps what the system says.
    pub fn io(doing: &'static str) -> impl FnOnce(io::Error) -> ClientError {
        move |source| ClientError::Io { doing, source }
    }

    /// What a server's last word comes to: that somebody wants it stopped, or that it is lost.
    #[must_use]
    pub fn gone(goodbye: &Goodbye) -> ClientError {
        if !goodbye.orderly {
            return ClientError::Lost;
        }
        let message = format!("the server ends: {}", goodbye.reason);
        ClientError::Refused(Fault::new(ErrorCode::Stopping, message))
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            ClientError::Store(error) => return error.remedy(),
            ClientError::NoServer { store, may_start: true, .. } => {
                format!("mq-serve --dir {}", store.display())
            }
            ClientError::NoServer { store, may_start: false, .. } => format!(
                "mq-serve --dir {} (mq-send and mq-recv start it by themselves unless \
                 MQ_NO_AUTOSTART is set)",
                store.display()
            ),
            ClientError::StartFailed { store, .. } => {
                format!("less {}", store.join("server.log").display())
            }
            ClientError::NoProgram { .. } => {
                "installing mq-serve beside this program, or adding its directory to PATH"
                    .to_owned()
            }
            ClientError::NoHelper { .. } => "cargo install mq --features remote".to_owned(),
            ClientError::HelperSilent { pid, .. } => {
                format!("waiting longer with -w, or kill {pid}")
            }
            ClientError::Silent { pid: Some(pid), .. } => {
                format!("the same again later, or kill {pid}: another server is started then")
            }
            ClientError::Silent { pid: None, .. } => "the same again later".to_owned(),
            ClientError::Version { .. } => {
                "mq-admin stop, then again: the server of this version is started then".to_owned()
            }
            ClientError::Refused(fault) => return fault.remedy.clone(),
            _ => return None,
        })
    }

    /// Where the queue lives, if the server says that it is not with it.
    #[must_use]
    pub fn elsewhere(&self) -> Option<&Url> {
        match self {
            ClientError::Refused(fault) if fault.code == ErrorCode::Elsewhere => fault.url.as_ref(),
            _ => None,
        }
    }

    /// The server's code, if it was the server that refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused(fault) => Some(fault.code),
            _ => None,
        }
    }

    /// Whether a new connection may help: the server ended, or is ending.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, ClientError::Lost) || self.code() == Some(ErrorCode::Stopping)
    }
}
