//! `mq-pipe`: from a queue through a filter into a queue, exactly once.

mod args;
mod terminal;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mq::cli::{self, Failure, Outcome, Signals, Status};
use mq::client::Dialer;
use mq::client::command::StartError;
use mq::client::inherited::{stdin_was_open, stdout_was_open};
use mq::pipe::committer::CommitError;
use mq::pipe::file::FileError;
use mq::pipe::output::Cut;
use mq::pipe::source::SourceError;
use mq::pipe::state::StateError;
use mq::pipe::{Destination, End, Misfit, Order, Origin, Pipe, PipeError};
use rustix::io::Errno;
use signal_hook::consts::{SIGPIPE, SIGXFSZ};

use args::Args;
use terminal::Terminal;

const TOOL: &str = "mq-pipe";

fn main() -> ExitCode {
    match cli::parse::<Args>() {
        Ok(args) => cli::finish(TOOL, run(&args)),
        Err(code) => code,
    }
}

fn run(args: &Args) -> Outcome {
    let order = args.order()?;
    check_descriptors(&order)?;
    // A file at the limit of `ulimit -f` is an error to be told, not a reason to die.
    let watched = Signals::watch().and_then(|signals| {
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        Ok(signals)
    });
    let signals = watched
        .map_err(|error| Failure::new(Status::Failure, format!("cannot watch signals: {error}")))?;
    // Where no queue of it is named, a store that cannot be found does not matter.
    let needs_store = matches!(order.source, Origin::Queue(_))
        || matches!(order.destination, Destination::Queue(_))
        || order.windows.as_ref().is_some_and(|windows| windows.late.is_some());
    let store = if needs_store { args.shared.store()? } else { PathBuf::new() };
    let dialer = Dialer::new(store, TOOL, true);
    let mut terminal = Terminal::new(signals, args, order.name.as_str());
    let mut pipe = Pipe::new(order, dialer, &mut terminal).map_err(|error| unstartable(&error))?;
    let ended = pipe.run();
    terminal.end();
    match ended {
        Ok(End::Done) => Ok(Status::Done),
        Ok(End::Signal(signal)) => Ok(Status::Signal(signal)),
        Err(error) => failure(error, args),
    }
}

/// Before anything is read: what was closed would look empty, or take everything.
fn check_descriptors(order: &Order) -> Result<(), Failure> {
    let closed = |doing| Failure::new(Status::Failure, format!("cannot {doing}: it is closed"));
    if order.source == Origin::Stdin && !stdin_was_open() {
        return Err(closed("read stdin"));
    }
    if order.destination == Destination::Stdout && !stdout_was_open() {
        return Err(closed("write to stdout"));
    }
    Ok(())
}

fn unstartable(error: &StartError) -> Failure {
    let status = match error {
        StartError::NotFound(_) => Status::NotFound,
        StartError::NotRunnable { .. } => Status::NotRunnable,
        StartError::System { .. } => Status::TryAgain,
    };
    Failure::new(status, error.to_string())
}

/// Whether what failed may succeed once somebody has made room, or let go of memory or
/// descriptors.
fn is_full(error: &std::io::Error) -> bool {
    let few = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(Errno::raw_os_error);
    if error.raw_os_error().is_some_and(|error| few.contains(&error)) {
        return true;
    }
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// What the user is told.
fn failure(error: PipeError, args: &Args) -> Outcome {
    let text = error.to_string();
    let (status, remedy) = match error {
        // The reader of our output is gone: as a program that a signal ends, without a word.
        PipeError::Commit(CommitError::File { source, .. })
            if source.kind() == ErrorKind::BrokenPipe =>
        {
            return Ok(Status::Signal(SIGPIPE));
        }
        PipeError::Client(client)
        | PipeError::Commit(CommitError::Client(client))
        | PipeError::Source(SourceError::Client(client)) => {
            let mut failure = Failure::from(client).while_doing(&args.doing());
            if failure.status == Status::BadInput && args.out == Some(Cut::Whole) {
                let remedy = || "a smaller --batch: its whole output is one message".to_owned();
                failure.remedy.get_or_insert_with(remedy);
            }
            return Err(failure);
        }
        PipeError::Start(error) => return Err(unstartable(&error)),
        PipeError::Refused(refusal) => (Status::Usage, Some(refusal.remedy)),
        PipeError::Circle => (Status::Usage, None),
        PipeError::Fenced(_) => (
            Status::Failure,
            Some("one instance at a time; --name gives a pipe of its own".to_owned()),
        ),
        PipeError::State(error) => {
            let passes = match &error {
                StateError::Busy { .. } => true,
                StateError::Io { error, .. } => is_full(error),
                _ => false,
            };
            (if passes { Status::TryAgain } else { Status::Failure }, error.remedy())
        }
        PipeError::Commit(CommitError::File { source, .. })
        | PipeError::File(FileError::Io { source, .. })
        | PipeError::System { source, .. }
            if is_full(&source) =>
        {
            (Status::TryAgain, None)
        }
        PipeError::File(FileError::Busy(_)) => (Status::TryAgain, None),
        PipeError::Misfit(Misfit::OtherWindows { .. }) => {
            let text = "the windows, time and key of before, another --name, or --reset";
            (Status::Failure, Some(text.to_owned()))
        }
        PipeError::Misfit(Misfit::NoState(_)) => {
            (Status::Failure, Some("--state as before, another --name, or --reset".to_owned()))
        }
        PipeError::Spool(_) => (
            Status::TryAgain,
            Some("TMPDIR=DIR in front of the command, with a directory that has room".to_owned()),
        ),
        PipeError::Misfit(Misfit::OtherPipe { had, .. }) => {
            let text = format!("another file, --name {had}, or --reset to begin anew behind it");
            (Status::Failure, Some(text))
        }
        PipeError::Misfit(Misfit::OtherSource { .. }) => {
            (Status::Failure, Some("another --name, or --reset to begin anew".to_owned()))
        }
        PipeError::Misfit(Misfit::Sought(..)) => {
            let text = "the same with --reset, and --from to say where it begins anew";
            (Status::Failure, Some(text.to_owned()))
        }
        PipeError::File(FileError::Cut { .. } | FileError::Edited(_)) => {
            let text = "putting it back as it was, or the same with --reset: it begins anew, at the oldest \
                        message or at --from";
            (Status::Failure, Some(text.to_owned()))
        }
        PipeError::Misfit(_) | PipeError::Mark { .. } => {
            let text = "the same with --reset: it begins anew, at the oldest message or at --from";
            (Status::Failure, Some(text.to_owned()))
        }
        PipeError::Unrunnable(127) => (Status::NotFound, None),
        PipeError::Unrunnable(_) => (Status::NotRunnable, None),
        PipeError::GaveUp { .. } | PipeError::WindowGaveUp { .. } => {
            (Status::CommandFailed, args.ok_hint())
        }
        PipeError::OutOfStep => (Status::CommandFailed, None),
        PipeError::TooMuch(_)
        | PipeError::WindowsTooMuch
        | PipeError::Source(SourceError::TooLarge)
        | PipeError::Commit(CommitError::Output(_)) => (Status::BadInput, None),
        _ => (Status::Failure, None),
    };
    Err(Failure { status, message: text, remedy }.while_doing(&args.doing()))
}
