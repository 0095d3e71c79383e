//! `mq-stat`: throughput, latency and reliability, live or for programs.

mod args;
mod asker;
mod history;
mod live;
mod printed;
mod scrape;

use std::process::ExitCode;
use std::time::Duration;

use mq::cli::{self, Failure, Outcome, Status};
use mq::client::figures::figures;
use mq::client::wait::Patience;
use mq::client::{Connection, Dialer};
use mq::limits;
use mq::view::check::{self, Severity, Verdict};
use mq::wire::stat::FiguresWanted;

use args::Args;

const TOOL: &str = "mq-stat";

/// Monitoring gives a plug-in ten seconds as a rule.
const CHECK_PATIENCE: Duration = Duration::from_secs(8);

fn main() -> ExitCode {
    let is_check = std::env::args_os().any(|arg| arg == "--check");
    match cli::parse::<Args>() {
        Ok(args) if args.check => check(&args),
        Ok(args) => cli::finish(TOOL, run(&args)),
        // Help and version are what they always are.
        Err(code) if is_check && code == Status::Usage.code() => {
            tell(&check::unknown("wrong usage, see mq-stat --help"))
        }
        Err(code) => code,
    }
}

fn run(args: &Args) -> Outcome {
    if args.prometheus {
        scrape::run(args)
    } else if let Some(long) = args.since {
        history::run(args, long)
    } else if args.json || args.lines || args.count.is_some() || !has_screen() {
        printed::run(args)
    } else {
        live::run(args)
    }
}

/// Whether there is a terminal on which more than lines can be shown.
fn has_screen() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    cli::is_terminal(rustix::stdio::stdout()) && !is_dumb
}

/// As long as a server may take to answer.
fn patience() -> Patience<'static> {
    Patience::lasting(limits::SERVER_WAIT.to_duration(), None)
}

/// Reaches the server that runs.
fn reach(args: &Args, patience: Patience<'_>) -> Result<Connection, Failure> {
    let dialer = Dialer::to(args.peer()?, TOOL, false).quiet(args.shared.quiet);
    dialer.reach(patience).map_err(failed)
}

fn failed(error: mq::client::ClientError) -> Failure {
    Failure::from(error).while_doing("asking for figures")
}

/// Judges once. Everything that goes wrong is a verdict too.
fn check(args: &Args) -> ExitCode {
    let verdict = judge(args).unwrap_or_else(|failure| {
        let try_this = failure.remedy.map_or_else(String::new, |remedy| format!("; try: {remedy}"));
        check::unknown(&format!("{}{try_this}", failure.message))
    });
    tell(&verdict)
}

fn judge(args: &Args) -> Result<Verdict, Failure> {
    let patience = Patience::lasting(CHECK_PATIENCE, None);
    let mut connection = reach(args, patience)?;
    let wanted = FiguresWanted {
        queues: args.patterns(),
        detail: true,
        minutes: check::HISTORY_MINUTES,
        ..FiguresWanted::default()
    };
    let (server, queues) = figures(&mut connection, &wanted, patience).map_err(failed)?;
    Ok(check::judge(&queues, server.now, &args.patterns(), &args.limits()))
}

fn tell(verdict: &Verdict) -> ExitCode {
    match cli::print(format!("{}\n", verdict.line).as_bytes()) {
        Ok(()) => ExitCode::from(verdict.severity as u8),
        Err(_) => ExitCode::from(Severity::Unknown as u8),
    }
}
