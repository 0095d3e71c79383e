//! `mq-send`: stdin, files or a text into a queue; exit status 0 means stored.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgAction, Parser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mq::cli::{self, Failure, Outcome, Shared, Signals, Status};
use mq::client::Dialer;
use mq::client::cut::{Cut, Misfit};
use mq::client::given::{Delay, Given};
use mq::client::inherited::{stdin_was_open, stdout_was_open};
use mq::client::intake::Intake;
use mq::client::packer::Packing;
use mq::client::place::Place;
use mq::client::rerun::Rerun;
use mq::client::send::{Host, Notice, Order, SendError, Sender};
use mq::client::source::Source;
use mq::client::tee::Tee;
use mq::units::Micros;

const TOOL: &str = "mq-send";

/// A send of a file of this size shows its progress on a terminal without being asked.
const LONG_BYTES: u64 = 256 << 20;

/// A progress line is written this often when stderr is no terminal.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  seq 1 5 | mq-send jobs          one message a line
  mq-send jobs -m 'one message'   without reading stdin
";

const EXAMPLES_LONG: &str = "\
Examples:
  seq 1 5 | mq-send jobs          one message a line
  tail -f log | mq-send lines     each as it comes
  mq-send jobs -m 'one message'   without reading stdin
  find . -print0 | mq-send -0 q   messages ended by NUL
  mq-send --whole images *.png    one message for each file
  mq-send --delay 10m jobs -m x   not to be had before 10 minutes are over
  mq-recv -J a | mq-send -J b     from queue to queue, with all attributes
  mq-send --producer nightly-$(date +%F) jobs < dump
                                  again after a failure: no message twice
  make 2>&1 | mq-send -T builds   also on stdout, once it is stored
  mq-send -w 1h jobs < dump       wait up to an hour for a server or for room

The queue is made when it is not there. Exit status 0 means that every message
is stored as the queue's sync policy says (see mq-admin declare); otherwise
stderr says how many leading messages of the input are.
";

const MORE_ATTRIBUTES: &str = "More attributes (see also --delay and -J)";
const ONCE: &str = "Each message once";

/// Send lines, files or a text to a queue.
#[derive(Debug, Default, Parser)]
#[command(
    name = TOOL,
    version,
    about = "Send stdin, files or a text to a queue",
    before_help = EXAMPLES,
    before_long_help = EXAMPLES_LONG,
    max_term_width = 80,
    disable_version_flag = true,
    help_template = "{about}\n\n{usage-heading} {usage}\n\n{before-help}{all-args}{after-help}"
)]
struct Args {
    /// Where to: a name of letters, digits and . _ -, or a URL
    #[arg(value_name = "QUEUE", value_parser = cli::place)]
    queue: Place,
    /// What to send instead of stdin; - is stdin
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Send this one message and read nothing
    #[arg(short, long, value_name = "TEXT", conflicts_with = "files", allow_hyphen_values = true)]
    message: Option<OsString>,
    /// Messages end with a NUL, not with a newline
    #[arg(short = '0', long, conflicts_with_all = ["delimiter", "whole"])]
    null: bool,
    /// Messages end with this byte, such as , or \t or \x1e
    #[arg(
        short,
        long,
        value_name = "C",
        value_parser = cli::delimiter,
        conflicts_with = "whole",
        hide_short_help = true
    )]
    delimiter: Option<u8>,
    /// All of stdin is one message, or each FILE
    #[arg(long)]
    whole: bool,
    /// Each line is an envelope, as mq-recv -J prints
    #[arg(short = 'J', long, conflicts_with_all = ["null", "delimiter", "whole"])]
    json: bool,
    /// Deliver them so much later, or not before then
    #[arg(long, value_name = "DUR|TIME", value_parser = delay)]
    delay: Option<Delay>,
    /// Copy what is stored to stdout
    #[arg(short = 'T', long)]
    tee: bool,
    /// Wait no longer for a server (30s), or for room
    #[arg(short, long, value_name = "DUR", value_parser = cli::duration)]
    wait: Option<Micros>,
    /// Show the progress on stderr
    #[arg(short, long, hide_short_help = true)]
    progress: bool,
    /// The key of the messages
    #[arg(
        short,
        long,
        value_name = "KEY",
        value_parser = cli::something,
        hide_short_help = true,
        help_heading = MORE_ATTRIBUTES
    )]
    key: Option<String>,
    /// A header of the messages; may be given several times
    #[arg(
        short = 'H',
        long,
        value_name = "NAME=VALUE",
        value_parser = header,
        hide_short_help = true,
        help_heading = MORE_ATTRIBUTES
    )]
    header: Vec<(String, String)>,
    /// The id of the one message; a queue with --unique-ids stores it once
    #[arg(long, value_name = "ID", value_parser = cli::something, hide_short_help = true, help_heading = MORE_ATTRIBUTES)]
    id: Option<String>,
    /// Deliver them within this time or never
    #[arg(
        long,
        value_name = "DUR",
        value_parser = cli::lifetime,
        hide_short_help = true,
        help_heading = MORE_ATTRIBUTES
    )]
    ttl: Option<Micros>,
    /// Store each message once, however often the same input is sent under this name
    #[arg(long, value_name = "NAME", value_parser = cli::something, hide_short_help = true, help_heading = ONCE)]
    producer: Option<String>,
    /// Store a message only if none of its key is waiting or being worked on
    #[arg(long, hide_short_help = true, help_heading = ONCE)]
    unless_pending: bool,
    #[command(flatten)]
    shared: Shared,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, hide_short_help = true, display_order = 999)]
    version: Option<bool>,
}

fn main() -> ExitCode {
    let given: Vec<OsString> = std::env::args_os().collect();
    let args = match Args::plain(given.get(1..).unwrap_or_default()) {
        Some(args) => Ok(args),
        None => cli::parse_from::<Args>(given),
    };
    match args {
        Ok(args) => cli::finish(TOOL, run(&args)),
        Err(code) => code,
    }
}

impl Args {
    /// Reads the plainest of command lines, `QUEUE -m TEXT`, as the parser would: scripts run that
    /// once for each message, and setting the parser up for two dozen flags takes a fifth of such
    /// a process's time. `None` for whatever is not clearly that.
    fn plain(given: &[OsString]) -> Option<Args> {
        let (queue, text) = match given {
            [queue, flag, text] if flag == "-m" => (queue, text),
            [flag, text, queue] if flag == "-m" => (queue, text),
            _ => return None,
        };
        let has_hyphen = |text: &OsString| text.as_encoded_bytes().starts_with(b"-");
        if has_hyphen(queue) || has_hyphen(text) {
            return None;
        }
        let queue = cli::place(queue.to_str()?).ok()?;
        Some(Args { queue, message: Some(text.clone()), ..Args::default() })
    }
}

fn run(args: &Args) -> Outcome {
    let sources = open_sources(args)?;
    let signals = Signals::watch()
        .map_err(|error| Failure::new(Status::Failure, format!("cannot watch signals: {error}")))?;
    let cut = match args.delimiter {
        _ if args.whole => Cut::Whole,
        _ if args.null => Cut::At(0),
        Some(delimiter) => Cut::At(delimiter),
        None => Cut::At(b'\n'),
    };
    let mut host = Terminal::new(signals, args, &sources);
    let peer = args.queue.peer(|| args.shared.store())?;
    let dialer = Dialer::to(peer, TOOL, true).quiet(args.shared.quiet);
    let order = Order {
        queue: args.queue.name(),
        intake: intake(args, cut)?,
        text: args.message.clone().map(OsString::into_vec),
        sources,
        wait: args.wait,
        tee: if args.tee { Some(open_tee(cut)?) } else { None },
        producer: args.producer.clone(),
        unless_pending: args.unless_pending,
    };
    let began = Instant::now();
    let mut sender =
        Sender::new(dialer, order, &mut host).map_err(|error| failure(error, args, 0))?;
    let sent = sender.run();
    let (messages, bytes) = (sender.confirmed(), sender.bytes());
    let (there, skipped) = (sender.there_already(), sender.skipped());
    host.end();
    sent.map_err(|error| failure(error, args, messages))?;
    if args.shared.verbose {
        let mut text = format!(
            "{TOOL}: {} messages ({bytes} bytes) stored in {} in {:.3} s",
            messages - skipped.min(messages),
            args.queue,
            began.elapsed().as_secs_f64()
        );
        if there > 0 {
            text.push_str(&format!(", {there} of them were there already"));
        }
        if skipped > 0 {
            text.push_str(&format!(", after {skipped} that an earlier run had stored"));
        }
        say(&format!("{text}\n"));
    }
    Ok(Status::Done)
}

/// Plain input is cut; only what has attributes is looked at message by message.
fn intake(args: &Args, cut: Cut) -> Result<Intake, Failure> {
    let usage = |text: &str| Failure::new(Status::Usage, text);
    let is_single = args.message.is_some() || (args.whole && args.files.len() <= 1);
    if args.id.is_some() && !is_single {
        return Err(usage("--id is for one message: with -m, or with --whole and one input")
            .with_remedy("-J, where each envelope has an id of its own"));
    }
    if args.unless_pending && args.key.is_none() && !args.json {
        return Err(usage("--unless-pending looks for messages of the same key")
            .with_remedy(format!("{TOOL} --unless-pending -k KEY ...")));
    }
    let Args { key, header, id, delay, ttl, .. } = args;
    let given = Given::new(key.clone(), header, id.clone(), *delay, *ttl)
        .map_err(|error| usage(&error.to_string()))?;
    let rerun = args.producer.as_ref().map(|_| Rerun::new());
    if given.is_empty() && rerun.is_none() && !args.json {
        return Ok(Intake::cutting(cut));
    }
    Ok(Intake::packing(Packing { cut, envelopes: args.json, given, rerun, copies: args.tee }))
}

/// Reads a header, for clap.
fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a header is written as NAME=VALUE".to_owned()),
    }
}

/// Reads a delay, for clap.
fn delay(text: &str) -> Result<Delay, String> {
    text.parse()
}

/// Opens every input before anything is sent, so that a wrong name stores nothing.
fn open_sources(args: &Args) -> Result<Vec<Source>, Failure> {
    if args.message.is_some() {
        return Ok(Vec::new());
    }
    let sources = if args.files.is_empty() {
        vec![Source::stdin()]
    } else {
        raise_descriptor_limit();
        args.files.iter().map(|path| open_file(path, args)).collect::<Result<_, _>>()?
    };
    if sources.iter().any(|source| source.name() == "stdin") && !stdin_was_open() {
        let text = "cannot read stdin: it is closed\n  confirmed: 0 leading messages";
        return Err(Failure::new(Status::Failure, text));
    }
    let asks = |source: &Source| source.name() == "stdin" && source.is_terminal();
    if !args.shared.quiet && sources.iter().any(asks) {
        say(&cli::terminal_hint(TOOL));
    }
    Ok(sources)
}

/// All files are open at once, and the ordinary limit of 1024 is a courtesy to programs that use
/// select(2).
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What the system grants is enough, or there is an error that says what to do.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn open_file(path: &Path, args: &Args) -> Result<Source, Failure> {
    if path == Path::new("-") {
        return Ok(Source::stdin());
    }
    Source::open(path).map_err(|error| {
        let shown = path.display();
        if error.kind() != std::io::ErrorKind::NotFound {
            let text = format!("cannot read {shown}: {error}\n  confirmed: 0 leading messages");
            let failure = Failure::new(Status::Failure, text);
            return match error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
                true => {
                    failure.with_remedy(format!("fewer files at once: xargs {TOOL} {}", args.queue))
                }
                false => failure,
            };
        }
        let text = path.to_string_lossy();
        let quoted = if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/,:".contains(&b)) {
            text.into_owned()
        } else {
            format!("'{}'", text.replace('\'', "'\\''"))
        };
        let text =
            format!("there is no file {shown}\nto send text: {TOOL} {} -m {quoted}", args.queue);
        Failure::new(Status::Usage, text)
    })
}

fn open_tee(cut: Cut) -> Result<Tee, Failure> {
    if !stdout_was_open() {
        let text = "cannot copy to stdout: it is closed\n  confirmed: 0 leading messages";
        return Err(Failure::new(Status::Failure, text));
    }
    let out = std::io::stdout().as_fd().try_clone_to_owned().map_err(|error| {
        Failure::new(Status::Failure, format!("cannot write to stdout: {error}"))
    })?;
    let delimiter = match cut {
        Cut::At(delimiter) => Some(delimiter),
        Cut::Whole => None,
    };
    Ok(Tee::new(out, delimiter))
}

/// What the user is told, with how much of the input is safe.
fn failure(error: SendError, args: &Args, messages: u64) -> Failure {
    let doing = match &args.producer {
        Some(name) => format!("sending to {} as producer {name}", args.queue),
        None => format!("sending to {}", args.queue),
    };
    let failure = match error {
        SendError::Signal(signal) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            Failure::new(Status::Signal(signal), format!("ended by {name}"))
        }
        SendError::Client(error) => Failure::from(error).while_doing(&doing),
        SendError::Away(ref inner) => {
            let remedy = inner.remedy();
            let failure = Failure::new(Status::NoServer, error.to_string());
            Failure { remedy, ..failure }
        }
        SendError::BadInput { ref what, .. } => {
            let failure = Failure::new(Status::BadInput, error.to_string());
            match what {
                Misfit::Rerun(_) => failure
                    .while_doing(&doing)
                    .with_remedy("another name with --producer, to send it as an input of its own"),
                Misfit::Envelope { .. } => failure.with_remedy(
                    "leaving -J out, to send each line as it is; man mq-recv shows the envelope",
                ),
                Misfit::TooLarge(_) | Misfit::DelayedLarge { .. } => {
                    failure.with_remedy("keeping it in a file, and sending the file's name")
                }
            }
        }
        SendError::Copy(ref inner) => cli::not_written(inner),
        SendError::Input { .. } => Failure::new(Status::Failure, error.to_string()),
    };
    let message = format!("{}\n  confirmed: {messages} leading messages", failure.message);
    Failure { message, ..failure }
}

fn say(text: &str) {
    // A stderr that is closed changes nothing.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What the user sees along the way, and the signals.
struct Terminal {
    signals: Signals,
    quiet: bool,
    verbose: bool,
    bar: Option<ProgressBar>,
    /// Stderr is no terminal: a line at a time.
    lines: Option<Instant>,
    told: (u64, u64),
}

impl Terminal {
    fn new(signals: Signals, args: &Args, sources: &[Source]) -> Terminal {
        let total: Option<u64> = sources.iter().map(Source::bytes_left).sum();
        let long = total.is_some_and(|bytes| bytes >= LONG_BYTES);
        let on_terminal = cli::is_terminal(std::io::stderr());
        let wanted = !args.shared.quiet && (args.progress || (long && on_terminal));
        Terminal {
            signals,
            quiet: args.shared.quiet,
            verbose: args.shared.verbose,
            bar: (wanted && on_terminal).then(|| bar(total)),
            lines: (wanted && !on_terminal).then(Instant::now),
            told: (0, 0),
        }
    }

    fn line(&mut self) {
        let (messages, bytes) = self.told;
        let bytes = cli::human_bytes(bytes);
        say(&format!("{TOOL}: {messages} messages ({bytes} bytes) stored\n"));
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.lines.take().is_some() {
            self.line();
        }
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{bar:30} {binary_bytes}/{binary_total_bytes} {msg} {binary_bytes_per_sec} {eta}",
        ),
        None => (
            ProgressBar::no_length(),
            "{spinner} {binary_bytes} {msg} {binary_bytes_per_sec} {elapsed}",
        ),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
    bar.set_style(ProgressStyle::with_template(template).expect("a template of ours"));
    bar
}

impl Host for Terminal {
    fn signals(&self) -> Option<BorrowedFd<'_>> {
        Some(self.signals.as_fd())
    }

    fn take_signal(&mut self) -> Option<i32> {
        self.signals.take()
    }

    fn confirmed(&mut self, messages: u64, bytes: u64) {
        self.told = (messages, bytes);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{} messages", cli::human_count(messages)));
            bar.set_position(bytes);
        }
        if self.lines.is_some_and(|last| last.elapsed() >= PROGRESS_EVERY) {
            self.lines = Some(Instant::now());
            self.line();
        }
    }

    fn notice(&mut self, notice: Notice<'_>) {
        let text = match notice {
            _ if self.quiet => return,
            Notice::NulBytes => cli::binary_hint(TOOL),
            Notice::Lost { orderly: true } => {
                format!("{TOOL}: the server was stopped; waiting for a new one\n")
            }
            Notice::Lost { orderly: false } if self.verbose => {
                format!("{TOOL}: the connection to the server was lost; trying again\n")
            }
            Notice::Back if self.verbose => {
                format!("{TOOL}: connected again; sending what was not confirmed\n")
            }
            Notice::Full(fault) => format!("{TOOL}: {}; waiting for room\n", fault.message),
            Notice::Lost { .. } | Notice::Back => return,
        };
        match &self.bar {
            Some(bar) => bar.suspend(|| say(&text)),
            None => say(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_form_is_read_as_the_parser_reads_it() {
        for line in
            ["q -m x", "-m x q", "-m  q", "q -m -x", "-q -m x", "a/b -m x", "q -m", "q -m x y"]
        {
            let given: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let parsed = Args::try_parse_from(std::iter::once(TOOL.into()).chain(given.clone()));
            let is_plain = !line.contains(" -x") && !line.contains('/');
            match (Args::plain(&given), parsed) {
                (Some(plain), Ok(parsed)) => {
                    assert_eq!(format!("{plain:?}"), format!("{parsed:?}"))
                }
                (Some(_), Err(error)) => panic!("{line} is none: {error}"),
                (None, Ok(_)) => assert!(!is_plain, "{line} is plain"),
                (None, Err(_)) => {}
            }
        }
    }
}
