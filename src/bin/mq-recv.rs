//! `mq-recv`: from a queue to stdout; what the reader took is acknowledged, and nothing else.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::{ArgAction, Parser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mq::cli::{self, Failure, Outcome, Shared, Signals, Status};
use mq::client::Dialer;
use mq::client::format::{Format, Shape};
use mq::client::outlet::{Outlet, OutletError};
use mq::client::receive::{
    Caller, End, Note, Options, Printer, Queues, ReceiveError, Receiver, Taking, Tally,
};
use mq::units::{Micros, Name};
use signal_hook::consts::{SIGPIPE, SIGXFSZ};

const TOOL: &str = "mq-recv";

/// A drain of so many messages shows its progress on a terminal without being asked.
const LONG_MESSAGES: u64 = 1_000_000;

/// How often the progress is shown on a terminal, and elsewhere.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// See [`DRAW_EVERY`].
const LINE_EVERY: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  mq-recv jobs | while read -r x; do work \"$x\"; done   (others: --help)
  mq-recv -n1 jobs            one message, waiting for it
  mq-recv -e jobs > file      all that is there
";

const EXAMPLES_LONG: &str = "\
Examples:
  mq-recv jobs | while read -r x; do work \"$x\"; done

      A message is acknowledged, and so gone, once the reader has taken its last
      byte out of the pipe. read takes single lines. Block readers (head, sed,
      awk, jq, ssh) take a whole buffer full of messages at once, and what they
      took and had not finished when they died is lost: -n N never hands out
      more than N. What nobody took stays queued. Two of these share evenly.

  mq-recv -n1 jobs                  one message, waiting for it
  mq-recv -n1 -w 10s jobs           not longer than 10 seconds
  while x=$(mq-recv -e -n1 jobs); do work \"$x\"; done
                                    one after another, until none is left
  mq-recv -e jobs > file            all that is there; synced, then gone
  mq-recv -e -0 files | xargs -0 ls messages ended by NUL
  mq-recv -n1 --raw images > x.png  one message and not a byte more
  mq-recv --peek jobs               look, take nothing

Exit status: 0 done; 124 with -n or -w if not one message came; 141 if the
reader went away; 69 no server; 75 no room for the output; 1 other failures.
";

/// Receive the messages of a queue.
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    about = "Receive messages from a queue, on stdout",
    before_help = EXAMPLES,
    before_long_help = EXAMPLES_LONG,
    max_term_width = 80,
    disable_version_flag = true,
    help_template = "{about}\n\n{usage-heading} {usage}\n\n{before-help}{all-args}{after-help}"
)]
struct Args {
    /// Where from; waited for if it is not there
    #[arg(value_name = "QUEUE", value_parser = cli::queue_name)]
    queue: Name,
    /// Stop after N messages; never take more
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop at the end of what is ready now
    #[arg(short, long)]
    end: bool,
    /// Stop when nothing has come for so long
    #[arg(short, long, value_name = "DUR", value_parser = cli::duration)]
    wait: Option<Micros>,
    /// Messages end with a NUL, not with a newline
    #[arg(short = '0', long, conflicts_with_all = ["delimiter", "raw"])]
    null: bool,
    /// Messages end with this byte, such as , or \t or \x1e
    #[arg(short, long, value_name = "C", value_parser = cli::delimiter, conflicts_with = "raw", hide_short_help = true)]
    delimiter: Option<u8>,
    /// Messages end with nothing
    #[arg(long)]
    raw: bool,
    /// Only look, until the end; take nothing
    #[arg(long)]
    peek: bool,
    /// Show the progress on stderr
    #[arg(short, long)]
    progress: bool,
    #[command(flatten)]
    shared: Shared,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, hide_short_help = true, display_order = 999)]
    version: Option<bool>,
}

fn main() -> ExitCode {
    match cli::parse::<Args>() {
        Ok(args) => cli::finish(TOOL, run(&args)),
        Err(code) => code,
    }
}

fn run(args: &Args) -> Outcome {
    let outlet = Outlet::stdout().map_err(|error| closed(args, &error))?;
    // A file at the limit of `ulimit -f` is an error to be told, not a reason to die.
    let watched = Signals::watch().and_then(|signals| {
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        Ok(signals)
    });
    let signals = watched
        .map_err(|error| Failure::new(Status::Failure, format!("cannot watch signals: {error}")))?;
    let dialer = Dialer::new(args.shared.store()?, TOOL, true);
    let mut receiver =
        Receiver::new(options(args), dialer, Printer::new(outlet, Format::new(shape(args))));
    let mut terminal = Terminal::new(signals, args);
    let ended = receiver.run(&mut terminal);
    let tally = receiver.tally();
    terminal.end(&tally);
    match ended.map_err(|error| failure(error, args))? {
        End::Signal(signal) => Ok(Status::Signal(signal)),
        End::ReaderGone => Ok(Status::Signal(SIGPIPE)),
        End::Done if tally.messages == 0 && (args.count.is_some() || args.wait.is_some()) => {
            Ok(Status::WaitedInVain)
        }
        End::Done => Ok(Status::Done),
    }
}

fn options(args: &Args) -> Options {
    Options {
        taking: if args.peek { Taking::Looked } else { Taking::Acked },
        // To wait for nothing is to take what is there.
        until_end: args.end || args.peek || args.wait == Some(Micros(0)),
        limit: args.count,
        wait: args.wait,
        ..Options::new(Queues::One(args.queue.clone()))
    }
}

fn shape(args: &Args) -> Shape {
    Shape::Body(match args.delimiter {
        _ if args.raw => None,
        _ if args.null => Some(0),
        delimiter => Some(delimiter.unwrap_or(b'\n')),
    })
}

fn closed(args: &Args, error: &OutletError) -> Failure {
    Failure::new(Status::Failure, format!("cannot receive from {}: {error}", args.queue))
        .with_remedy("`> /dev/null` to throw messages away on purpose")
}

/// What the user is told.
fn failure(error: ReceiveError, args: &Args) -> Failure {
    let doing = format!("receiving from {}", args.queue);
    let failure = match error {
        ReceiveError::Client(error) => Failure::from(error),
        ReceiveError::Outlet { error: ref inner, .. } if inner.is_full() => {
            Failure::new(Status::TryAgain, error.to_string())
                .with_remedy("the same again once there is room")
        }
        ReceiveError::Outlet { .. } => Failure::new(Status::Failure, error.to_string()),
        ReceiveError::Garbled(_) => Failure::new(Status::Failure, error.to_string())
            .with_remedy(format!("mq-admin check {}; then the memory of this machine", args.queue)),
    };
    failure.while_doing(&doing)
}

fn say(text: &str) {
    // A stderr that is closed changes nothing.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What the user sees along the way, and the signals.
struct Terminal {
    signals: Signals,
    queue: Name,
    quiet: bool,
    verbose: bool,
    began: Instant,
    bar: Option<ProgressBar>,
    /// Stderr is no terminal: a line at a time.
    in_lines: bool,
    shown: Instant,
}

impl Terminal {
    fn new(signals: Signals, args: &Args) -> Terminal {
        let is_long = args.count.is_some_and(|count| count >= LONG_MESSAGES);
        let on_terminal = cli::is_terminal(std::io::stderr());
        // A bar between messages would spoil both.
        let can_show = on_terminal && !cli::is_terminal(std::io::stdout());
        let is_wanted = args.progress || (is_long && !args.shared.quiet && can_show);
        Terminal {
            signals,
            queue: args.queue.clone(),
            quiet: args.shared.quiet,
            verbose: args.shared.verbose,
            began: Instant::now(),
            bar: (is_wanted && on_terminal).then(|| bar(args.count)),
            in_lines: is_wanted && !on_terminal,
            shown: Instant::now(),
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    fn show(&self, tally: &Tally) {
        let bytes = cli::human_bytes(tally.bytes);
        if let Some(bar) = &self.bar {
            bar.set_message(bytes);
            bar.set_position(tally.messages);
        } else if self.in_lines {
            self.say(&format!("{TOOL}: {} messages ({bytes} bytes) received\n", tally.messages));
        }
    }

    fn end(&mut self, tally: &Tally) {
        self.show(tally);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.verbose {
            let Tally { messages, bytes, redelivered, .. } = tally;
            self.say(&format!(
                "{TOOL}: {messages} messages ({bytes} bytes) received from {} in {:.3} s, \
                 {redelivered} of them redelivered\n",
                self.queue,
                self.began.elapsed().as_secs_f64()
            ));
        }
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => {
            (ProgressBar::new(total), "{bar:30} {human_pos}/{human_len} {msg} {per_sec} {eta}")
        }
        None => (ProgressBar::no_length(), "{spinner} {human_pos} {msg} {per_sec} {elapsed}"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
    bar.set_style(ProgressStyle::with_template(template).expect("a template of ours"));
    bar
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl Caller for Terminal {
    fn take_signal(&mut self) -> Option<i32> {
        self.signals.take()
    }

    fn note(&mut self, note: Note) {
        let queue = &self.queue;
        let text = match note {
            _ if self.quiet => return,
            Note::NoQueue(_) => format!("{TOOL}: there is no queue {queue} yet; waiting for it\n"),
            Note::Ambiguous => format!(
                "{TOOL}: a message of {queue} holds the delimiter and is written as it is\n  \
                 try: -0\n"
            ),
            Note::QueueReplaced(_) => {
                format!("{TOOL}: {queue} was removed and made anew; receiving from the new one\n")
            }
            Note::ServerGone(true) => {
                format!("{TOOL}: the server was stopped; waiting for a new one\n")
            }
            Note::ServerGone(false) if self.verbose => {
                format!("{TOOL}: the connection to the server was lost; trying again\n")
            }
            Note::Redelivered(_, range) if self.verbose => {
                format!("{TOOL}: redelivered: {range}\n")
            }
            Note::ServerGone(false) | Note::Redelivered(..) => return,
            _ => return,
        };
        self.say(&text);
    }

    fn progress(&mut self, tally: &Tally) {
        let every = if self.bar.is_some() { DRAW_EVERY } else { LINE_EVERY };
        if (self.bar.is_some() || self.in_lines) && self.shown.elapsed() >= every {
            self.shown = Instant::now();
            self.show(tally);
        }
    }
}
