//! `mq-recv`: from queues to stdout, or to commands; what was taken or done is acknowledged, and
//! nothing else.

mod args;
mod terminal;

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mq::cli::{self, Failure, Outcome, Signals, Status};
use mq::client::command::StartError;
use mq::client::format::Format;
use mq::client::inherited::stdout_was_open;
use mq::client::outlet::{Outlet, OutletError};
use mq::client::place::Peer;
use mq::client::receive::{End, Printer, ReceiveError, Receiver, Sink, Tally};
use mq::client::wait::Patience;
use mq::client::work::{Work, Worker};
use mq::client::{Dialer, letters};
use mq::limits;
use mq::units::Name;
use signal_hook::consts::{SIGPIPE, SIGXFSZ};

use args::Args;
use terminal::Terminal;

const TOOL: &str = "mq-recv";

fn main() -> ExitCode {
    match cli::parse::<Args>() {
        Ok(args) => cli::finish(TOOL, run(&args)),
        Err(code) => code,
    }
}

fn run(args: &Args) -> Outcome {
    args.check()?;
    let format = Format::new(args.shape());
    match args.work() {
        Some(work) => {
            if !stdout_was_open() {
                return Err(closed(args, &OutletError::Closed));
            }
            let worker = make_worker(work, format).map_err(|error| unrunnable(&error))?;
            receive(args, worker)
        }
        None => {
            let outlet = Outlet::stdout().map_err(|error| closed(args, &error))?;
            receive(args, Printer::new(outlet, format))
        }
    }
}

/// Before any server is asked for anything.
fn make_worker(work: Work, format: Format) -> Result<Worker, StartError> {
    work.command.check()?;
    Worker::new(work, format)
}

fn receive(args: &Args, sink: impl Sink) -> Outcome {
    // A file at the limit of `ulimit -f` is an error to be told, not a reason to die.
    let watched = Signals::watch().and_then(|signals| {
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        Ok(signals)
    });
    let signals = watched
        .map_err(|error| Failure::new(Status::Failure, format!("cannot watch signals: {error}")))?;
    let mut dialer = Dialer::to(args.peer()?, TOOL, true).quiet(args.shared.quiet);
    if let Some(program) = args.command.first() {
        dialer = dialer.running(program);
    }
    let mut receiver = Receiver::new(args.options(), dialer, sink);
    let mut terminal = Terminal::new(signals, args);
    let ended = receiver.run(&mut terminal);
    let tally = receiver.tally();
    terminal.end(&tally);
    if tally.dead > 0 && !args.no_ack && matches!(ended, Ok(End::Done)) {
        await_letters(args, receiver.queues(), &terminal);
    }
    Ok(match ended.map_err(|error| failure(error, args))? {
        End::Signal(signal) => Status::Signal(signal),
        End::ReaderGone => Status::Signal(SIGPIPE),
        End::Done => status(args, &tally),
    })
}

/// Who is told that messages were given up finds them among the dead letters. What cannot be asked, as at an
/// engine, was told of already.
fn await_letters<'a>(args: &Args, queues: impl Iterator<Item = &'a Name>, terminal: &Terminal) {
    let Ok(peer @ Peer::Store(_)) = args.peer() else { return };
    let wait = limits::LETTERS_WAIT.to_duration();
    let patience = Patience::lasting(wait, Some(terminal.as_fd()));
    let Ok(mut connection) = Dialer::to(peer, TOOL, false).reach(patience) else { return };
    let group = args.options().group;
    for queue in queues {
        if let Ok(false) = letters::arrive(&mut connection, queue, &group, patience) {
            terminal.say_late_letters(queue);
        }
    }
}

/// How it ends when it has done all that it was to do.
fn status(args: &Args, tally: &Tally) -> Status {
    // With --no-ack, the server never hears of a failure.
    if (tally.dead > 0 && !args.no_ack) || (args.end && tally.failed > 0) {
        Status::CommandFailed
    } else if tally.messages == 0 && (args.count.is_some() || args.wait.is_some()) {
        Status::WaitedInVain
    } else {
        Status::Done
    }
}

fn closed(args: &Args, error: &OutletError) -> Failure {
    Failure::new(Status::Failure, format!("cannot receive from {}: {error}", args.shown()))
        .with_remedy("`> /dev/null` to throw messages away on purpose")
}

fn unrunnable(error: &StartError) -> Failure {
    let status = match error {
        StartError::NotFound(_) => Status::NotFound,
        StartError::NotRunnable { .. } => Status::NotRunnable,
        StartError::System { .. } => Status::TryAgain,
    };
    Failure::new(status, error.to_string())
}

/// What the user is told.
fn failure(error: ReceiveError, args: &Args) -> Failure {
    let doing = format!("receiving from {}", args.shown());
    let failure = match error {
        ReceiveError::Client(error) => Failure::from(error),
        ReceiveError::Outlet { error: ref inner, .. } if inner.is_full() => {
            Failure::new(Status::TryAgain, error.to_string())
                .with_remedy("the same again once there is room")
        }
        ReceiveError::Outlet { .. } => Failure::new(Status::Failure, error.to_string()),
        ReceiveError::Command(ref error) => return unrunnable(error),
        // As a program does that a signal ends: without a word.
        ReceiveError::Deserted => return Failure::new(Status::Signal(SIGPIPE), String::new()),
        ReceiveError::Unrunnable { status, .. } => {
            let status = if status == 127 { Status::NotFound } else { Status::NotRunnable };
            return Failure::new(status, error.to_string());
        }
        ReceiveError::Garbled(_) => Failure::new(Status::Failure, error.to_string()).with_remedy(
            format!("mq-admin check {}; then the memory of this machine", args.shown()),
        ),
    };
    failure.while_doing(&doing)
}
