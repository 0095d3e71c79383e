//! What a pipe tells whoever runs it: along the way, and how it ends.

use std::os::fd::AsFd;
use std::time::Duration;

use super::committer::CommitError;
use super::file::FileError;
use super::filter::Broken;
use super::mark::MarkError;
use super::order::Refusal;
use super::source::SourceError;
use super::spool::SpoolError;
use super::state::StateError;
use super::window::Full;
use crate::client::ClientError;
use crate::client::command::StartError;
use crate::units::{Count, Offset, OffsetRange};
use crate::url::Url;
use crate::wire::{Fault, PipeFigures};

/// Who runs a pipe: the signals, and where notes go. Readable when a signal has come.
pub trait Host: AsFd {
    /// The signal that came, if one did.
    fn take_signal(&mut self) -> Option<i32>;
    /// Something to be told.
    fn note(&mut self, note: Note<'_>);
    /// How far it is.
    fn progress(&mut self, figures: &PipeFigures);
}

/// Something to be told along the way.
#[derive(Debug)]
pub enum Note<'a> {
    /// The source does not exist; it is waited for.
    NoQueue,
    /// Another instance has the pipe's group; its end is waited for.
    Waiting,
    /// So many messages of the source no group gets: the pipe's is its first, and begins behind them.
    Passed(Count),
    /// The connection was lost, or the server was stopped by somebody.
    Lost {
        /// Somebody wants it stopped.
        orderly: bool,
    },
    /// There is no room in the destination.
    Held(&'a Fault),
    /// An end is at an engine, so each message is there at least once.
    AtLeastOnce(&'a Url),
    /// The filter failed on these messages, and is run again after the pause.
    Failed {
        /// Which, and how many they are.
        messages: OffsetRange,
        /// How many.
        count: u64,
        /// Why.
        reason: &'a str,
        /// When it is run again.
        pause: Duration,
    },
    /// A message became a dead letter.
    Dead {
        /// Which.
        offset: Offset,
        /// Why.
        reason: &'a str,
    },
    /// The filter failed on some windows, and is run again after the pause.
    WindowsFailed {
        /// The messages of the first of them, and what is between.
        first: OffsetRange,
        /// How many.
        count: u64,
        /// Why.
        reason: &'a str,
        /// When it is run again.
        pause: Duration,
    },
    /// The messages of a window became dead letters.
    DeadWindow {
        /// Which, and what is between.
        messages: OffsetRange,
        /// How many.
        count: u64,
        /// Why.
        reason: &'a str,
    },
    /// These offsets are not in the source any more, and were not read.
    Gone(OffsetRange),
    /// A message with a newline inside was given to the filter.
    Ambiguous,
}

/// How a pipe ends that has not failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It came to the end.
    Done,
    /// A signal came.
    Signal(i32),
}

/// A position that does not fit what is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The pipe of this name reads another queue.
    #[error("pipe {name} reads from {src}: its destination's position is not one in this queue")]
    OtherSource {
        /// The pipe's name.
        name: String,
        /// What it reads.
        src: String,
    },
    /// The journal of the file is that of another pipe.
    #[error("{destination} was written by pipe {had}, and this is pipe {name}")]
    OtherPipe {
        /// The file.
        destination: String,
        /// Which pipe the position is of.
        had: String,
        /// This one.
        name: String,
    },
    /// The source was removed.
    #[error("queue {0} was removed since pipe {1} read from it")]
    SourceGone(String, String),
    /// The source was made anew.
    #[error(
        "queue {0} was removed and made anew since pipe {1} read from it: the position is one in the old queue"
    )]
    SourceReplaced(String, String),
    /// The pipe's group in the source was removed, or made anew.
    #[error(
        "group {0} of queue {1}, by which the pipe reads, was removed since: what became of the \
         messages that it had not read is not known"
    )]
    GroupGone(String, String),
    /// The pipe's group was set to another place.
    #[error(
        "group {0} of queue {1}, by which the pipe reads, was set to another place since: the \
         messages there do not follow on those that were read"
    )]
    Sought(String, String),
    /// The windows are not those of before.
    #[error(
        "pipe {name} has windows of another kind open: it was run with {had}, and now with {wanted}"
    )]
    OtherWindows {
        /// The pipe's name.
        name: String,
        /// What the last commit says.
        had: String,
        /// What is wanted.
        wanted: String,
    },
    /// What a mark says of windows makes no sense.
    #[error(
        "the open windows of pipe {0} cannot be used: the numbers in its last commit are wrong"
    )]
    BadWindows(String),
    /// The filter had a state.
    #[error("the filter of pipe {0} had a state, and now there is no --state")]
    NoState(String),
    /// The destination does not know the pipe, but the source does.
    #[error(
        "pipe {1} has read from its source before, but {0} does not know of it: it was removed, or made anew"
    )]
    DestinationGone(String, String),
}

/// Why a pipe fails.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// The store, the server, or a request.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Another instance has taken over.
    #[error("another instance of pipe {0} has taken over")]
    Fenced(String),
    /// The position does not fit.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// It asks for what an end at an engine cannot give.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Both ends are the same queue.
    #[error("a pipe from a queue into itself would go round for ever")]
    Circle,
    /// A mark that cannot be used.
    #[error("the position of pipe {name} cannot be used: {source}")]
    Mark {
        /// The pipe's name.
        name: String,
        /// What is wrong with it.
        source: MarkError,
    },
    /// The filter cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The filter says that it cannot be run, or that something of it was not found.
    #[error(
        "the filter ended with status {0}, which says that a command cannot be run or was not found"
    )]
    Unrunnable(i32),
    /// The filter fails for good.
    #[error("the filter failed on messages {messages}: {reason}; nothing of them was given up")]
    GaveUp {
        /// The batch.
        messages: OffsetRange,
        /// Why, the last time.
        reason: String,
    },
    /// The filter that stays said more than it was asked for.
    #[error(
        "the filter said more than one line for a line; what it said before may be wrong ({})",
        super::stay::ADVICE
    )]
    OutOfStep,
    /// One message makes more than can be committed.
    #[error(
        "the filter's output for message {0} is over 64 MiB, the most that is committed at once"
    )]
    TooMuch(Offset),
    /// The filter fails for good on a window.
    #[error(
        "the filter failed on the window of messages {messages}: {reason}; nothing was given up"
    )]
    WindowGaveUp {
        /// Its messages, and what is between.
        messages: OffsetRange,
        /// Why, the last time.
        reason: String,
    },
    /// The windows that closed at once make more than can be committed.
    #[error(
        "the filter's output for the windows that closed at once is over 64 MiB, the most that is \
         committed at once"
    )]
    WindowsTooMuch,
    /// More is open than there may be.
    #[error(transparent)]
    Windows(#[from] Full),
    /// The bytes of open windows.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The destination.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A file as the destination.
    #[error(transparent)]
    File(#[from] FileError),
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A system call.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// A signal came; [`End::Signal`] once it has been seen to.
    #[error("interrupted")]
    Interrupted,
}

impl PipeError {
    /// The server's or the client's own error, if it is one.
    #[must_use]
    pub fn client(&self) -> Option<&ClientError> {
        match self {
            PipeError::Client(error)
            | PipeError::Commit(CommitError::Client(error))
            | PipeError::Source(SourceError::Client(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether it is a signal that ended what was being done.
    #[must_use]
    pub fn is_interrupt(&self) -> bool {
        match self {
            PipeError::Interrupted
            | PipeError::File(FileError::Interrupted)
            | PipeError::State(StateError::Interrupted) => true,
            _ => matches!(self.client(), Some(ClientError::Interrupted)),
        }
    }

    /// Wraps what the system says.
    pub(super) fn system(doing: &'static str) -> impl FnOnce(std::io::Error) -> PipeError {
        move |source| PipeError::System { doing, source }
    }
}

impl From<Broken> for PipeError {
    fn from(broken: Broken) -> PipeError {
        match broken {
            Broken::Interrupted => PipeError::Interrupted,
            Broken::Start(error) => PipeError::Start(error),
            Broken::System { doing, source } => PipeError::System { doing, source },
            Broken::Damaged(error) => SourceError::Garbled(error).into(),
        }
    }
}
