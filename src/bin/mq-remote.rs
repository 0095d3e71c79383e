//! `mq-remote`: what the tools start for a queue that lives at an engine elsewhere. It speaks their protocol
//! on a socket, and the engine's on its other side.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use clap::{ArgAction, Parser};
use mq::cli::{self, Failure, Outcome, Status};
use mq::client::helper::URL_VARIABLE;
use mq::remote::registry;
use mq::remote::session::Opening;
use mq::units::Micros;
use mq::url::Url;

const TOOL: &str = "mq-remote";

/// Speak with the engine of a cluster, for a tool of mq that has a URL for a queue
///
/// There is no need to run it: mq-send, mq-recv, mq-pipe, mq-stat and mq-admin
/// start it by themselves. --table shows what each engine can do.
#[derive(Debug, Parser)]
#[command(name = TOOL, version, max_term_width = 80, disable_version_flag = true)]
struct Args {
    /// The queue; the whole of it, with a password, is taken from MQ_REMOTE_URL
    #[arg(value_name = "URL", required_unless_present = "table", value_parser = Url::new)]
    url: Option<Url>,
    /// Show which engines are built in, and what each can do
    #[arg(long, exclusive = true)]
    table: bool,
    /// Try no longer than this to reach the engine [default: for ever]
    #[arg(long, value_name = "DUR", value_parser = cli::duration)]
    wait: Option<Micros>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Serve one client on the socket that is stdin: how a tool starts it
    #[arg(long, hide = true)]
    on_stdin: bool,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
}

fn main() -> ExitCode {
    match cli::parse::<Args>() {
        Ok(args) => cli::finish(TOOL, run(args)),
        Err(code) => code,
    }
}

fn run(args: Args) -> Outcome {
    if args.table {
        cli::print(registry::table().as_bytes())?;
        return Ok(Status::Done);
    }
    if !args.on_stdin {
        let text = "it is started by mq-send, mq-recv, mq-pipe, mq-stat and mq-admin, where a queue is a URL";
        return Err(Failure::new(Status::Usage, text).with_remedy("mq-remote --table"));
    }
    let url = match std::env::var(URL_VARIABLE) {
        Ok(text) => Url::new(&text).map_err(|error| Failure::new(Status::Usage, error))?,
        Err(_) => args.url.expect("the parser wants one"),
    };
    let opening = Opening { url, wait: args.wait.map(Micros::to_duration), is_quiet: args.quiet };
    let failed = |doing: &str, error: std::io::Error| {
        Failure::new(Status::Failure, format!("cannot {doing}: {error}"))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| failed("start threads", error))?;
    let served = runtime.block_on(async {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
        let stream = UnixStream::from(stdin);
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        Ok(registry::serve(stream, opening).await)
    });
    // What an engine's client still does has no one to do it for.
    runtime.shutdown_background();
    match served {
        Ok(Ok(())) => Ok(Status::Done),
        Ok(Err(what)) => Err(Failure::new(Status::Failure, what)),
        Err(error) => Err(failed("speak with the client on stdin", error)),
    }
}
