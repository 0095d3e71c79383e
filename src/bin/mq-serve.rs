//! mq-serve: hosts the queues of one store directory on one Unix socket.

use std::process::ExitCode;

use clap::Parser;
use mq::cli::{self, Failure, Outcome, Shared, Status, duration};
use mq::server::report::Level;
use mq::server::{Options, ServeError, serve};
use mq::store::StoreError;
use mq::units::Micros;

/// Host the queues of one store on one Unix socket, in the foreground.
///
/// There is seldom a need to run it: mq-send and mq-recv start one by themselves, which ends
/// after 15 idle minutes. Run it under a supervisor to have it always.
#[derive(Parser)]
#[command(
    name = "mq-serve",
    version,
    max_term_width = 80,
    after_help = "See mq-serve(1) for supervisors, signals and files."
)]
struct Args {
    /// How much to tell on stderr: error, info, debug [env: MQ_LOG] [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<Level>,
    /// End after this long without connections, such as 15m [default: never]
    #[arg(long, value_name = "DUR", value_parser = duration)]
    idle_exit: Option<Micros>,
    /// Say `ready` on stdout and leave the session: how a client starts a server
    #[arg(long, hide = true)]
    ready_on_stdout: bool,
    #[command(flatten)]
    shared: Shared,
}

fn main() -> ExitCode {
    let args = match cli::parse::<Args>() {
        Ok(args) => args,
        Err(code) => return code,
    };
    cli::finish("mq-serve", run(&args))
}

fn run(args: &Args) -> Outcome {
    let options = Options {
        dir: args.shared.store()?,
        idle_exit: args.idle_exit,
        started_by_client: args.ready_on_stdout,
        level: level(args)?,
    };
    match serve(&options) {
        Ok(()) => Ok(Status::Done),
        // Another server has it: whoever wanted one running has one.
        Err(ServeError::Store(error @ StoreError::Locked { .. })) => {
            Err(Failure { status: Status::TryAgain, ..Failure::from(error) })
        }
        Err(ServeError::Store(error)) => Err(error.into()),
        Err(error) => Err(Failure::new(Status::Failure, error.to_string())),
    }
}

fn level(args: &Args) -> Result<Level, Failure> {
    if args.shared.quiet {
        return Ok(Level::Error);
    }
    if let Some(level) = args.log_level {
        return Ok(level);
    }
    // A flag goes before the environment.
    if args.shared.verbose {
        return Ok(Level::Debug);
    }
    match std::env::var("MQ_LOG") {
        Ok(text) if !text.is_empty() => text.parse().map_err(|why: String| {
            Failure::new(Status::Usage, format!("the environment variable MQ_LOG: {why}"))
        }),
        _ => Ok(Level::Info),
    }
}
