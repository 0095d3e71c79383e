//! The command line of `mq-pipe`: its flags, what of them does not go together, and what they
//! come to.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};
use mq::cli::{self, Failure, Shared, Status};
use mq::limits;
use mq::pipe::key::Spec;
use mq::pipe::output::Cut;
use mq::pipe::place::Separator;
use mq::pipe::{
    Destination, Order, Origin, PipeError, Refusal, Windowed, default_name, time, window,
};
use mq::settings::{Backoff, Start};
use mq::units::{Micros, Name};
use mq::url::{self, Url};

use crate::TOOL;

const EXAMPLES: &str = "\
Examples:
  mq-pipe raw clean -- jq -c 'select(.ok)'
  mq-pipe --ok 0,1 log errors -- grep ERROR   (1: it has found none)
";

const EXAMPLES_LONG: &str = "\
Examples:
  mq-pipe raw clean -- jq -c 'select(.ok)'

      Messages of raw are the filter's standard input, its output is messages of
      clean, each once, whatever ends in between: what a filter makes of a batch
      and the position in raw are stored together. For each batch, which is what
      is there, the filter is started anew and reads to its end. Batches are
      arbitrary cuts: a filter that looks at one line at a time does not see
      them; one that summarises (sort, uniq -c, wc) needs --window.

  mq-pipe --ok 0,1 log errors -- grep ERROR
                                    grep ends with 1 when it finds nothing
  mq-pipe -e --ok 0,1 log errors -- grep ERROR
                                    what is there now, and then it ends
  mq-pipe --stay in out -- sed -u 's/a/b/'
                                    one sed for all, which answers line by line
  mq-pipe -P4 --out whole raw packed -- gzip -c
                                    four at a time, each output one message
  mq-pipe log file:errors.txt --ok 0,1 -- grep ERROR
                                    into a file, exactly once too
  mq-pipe --window 1m log top -- sh -c 'sort | uniq -c | sort -rn | head -3'
                                    the most frequent lines of each minute
  mq-pipe --window session=30m --time event --key key clicks visits -- ./visit
                                    the clicks of each visitor, till a pause
  mq-pipe --state ./words text counts -- ./count
                                    a file of counts in $MQ_STATE, exactly once
  mq-pipe --name billing a b -- ./bill
                                    a pipe of this name, whatever its filter
  mq-pipe raw nats://host/clean -- jq -c .x
                                    at an engine: each message at least once

With a URL as SRC or DST, or a queue that is declared to live elsewhere, it is
at least once, not exactly once: after a kill, what was under way comes again.

When the filter fails, its output is dropped and it is run again after a pause;
then the batch is halved until what fails stands alone. Such a message is a dead
letter after the queue's delivery limit, if the rest of its batch went well. If
nothing does, the pipe ends with 123, and nothing is lost or skipped.

Exit status: 0 done; 123 the filter fails for good; 126, 127 it cannot be run or
found; 65 its output is too large; 69 no server; 75 no room; 1 other failures.
";

const FAILURES: &str = "When the filter fails";
const WINDOWS: &str = "Windows";
const IDENTITY: &str = "Which pipe it is";

/// What becomes of messages that the filter fails on for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnFail {
    /// They are dead letters, and the pipe goes on.
    Dead,
    /// The pipe ends with 123; nothing is given up.
    Stop,
}

/// From a queue through a filter into a queue, exactly once.
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    about = "From a queue through a filter into a queue, each message's effect exactly once",
    before_help = EXAMPLES,
    before_long_help = EXAMPLES_LONG,
    max_term_width = 80,
    disable_version_flag = true,
    override_usage = "mq-pipe [OPTIONS] SRC DST -- FILTER ARG...",
    help_template = "{about}\n\n{usage-heading} {usage}\n\n{before-help}{all-args}{after-help}"
)]
pub struct Args {
    /// Where from: a queue, which is waited for if it is not there; a URL; - is
    /// stdin
    #[arg(value_name = "SRC", hide_short_help = true)]
    pub source: String,
    /// Where to: a queue, which is made if it is not there; a URL; file:PATH; - is
    /// stdout
    #[arg(value_name = "DST", hide_short_help = true)]
    pub destination: OsString,
    /// What to run on each batch
    #[arg(value_name = "FILTER", last = true, required = true, hide_short_help = true)]
    pub filter: Vec<OsString>,
    /// Stop at the end of what is ready now
    #[arg(short, long)]
    pub end: bool,
    /// Exit statuses of the filter that mean success [default: 0]
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "0",
        hide_default_value = true
    )]
    pub ok: Vec<u8>,
    /// Give the filter at most N messages at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub batch: Option<u64>,
    /// One filter for all, which answers each line with one line at once
    #[arg(long, conflicts_with = "parallel")]
    pub stay: bool,
    /// Run N filters at once, each on a part of the batch; order is kept
    #[arg(short = 'P', long, value_name = "N", value_parser = parallel)]
    pub parallel: Option<usize>,
    /// With -P: all messages of a key to the same filter, in their order; with
    /// --window: a window for each key. The key is key (the message's own), a
    /// field's number, or a JSON pointer
    #[arg(long, value_name = "KEY", hide_short_help = true)]
    pub key: Option<String>,
    /// Fields of --key and --time are separated by this byte, not by blanks
    #[arg(short = 't', long, value_name = "C", hide_short_help = true)]
    pub separator: Option<Separator>,
    /// Run the filter on each window of messages rather than on batches: 1m;
    /// 1m,every=10s; session=30s; 100 (messages); behind it ,late=30s to wait for
    /// messages that come late
    #[arg(long, value_name = "WINDOW", conflicts_with_all = ["batch", "stay"], hide_short_help = true, help_heading = WINDOWS)]
    pub window: Option<window::Spec>,
    /// What time a message has: stored, event (its sender's), a field's number,
    /// or a JSON pointer [default: stored]
    #[arg(long, value_name = "TIME", requires = "window", hide_short_help = true, help_heading = WINDOWS)]
    pub time: Option<String>,
    /// Messages whose windows are closed when they come go to this queue, rather
    /// than only be counted
    #[arg(long, value_name = "QUEUE", requires = "window", hide_short_help = true, help_heading = WINDOWS)]
    pub late: Option<Name>,
    /// Close all windows at the end of -e, as if all their time were over
    #[arg(long, requires = "window", requires = "end", hide_short_help = true, help_heading = WINDOWS)]
    pub flush: bool,
    /// The filter finds in $MQ_STATE, a directory, what it left there at the last
    /// commit; what it changes counts if its output does
    #[arg(long, value_name = "DIR", conflicts_with = "stay", hide_short_help = true)]
    pub state: Option<PathBuf>,
    /// Messages of the output: all of it one (whole), or ended by NUL (-0) or by
    /// the byte C (-dC), not by a newline
    #[arg(long, value_name = "whole|-0|-dC", value_parser = cut, allow_hyphen_values = true, hide_short_help = true)]
    pub out: Option<Cut>,
    /// Wait no longer for a server, or for an engine, that is away [default: 30s]
    #[arg(short, long, value_name = "DUR", value_parser = cli::duration, hide_short_help = true)]
    pub wait: Option<Micros>,
    /// Show the progress on stderr
    #[arg(short, long, hide_short_help = true)]
    pub progress: bool,
    /// The pipe's name, under which it goes on [default: from the command line]
    #[arg(long, value_name = "NAME", value_parser = pipe_name, hide_short_help = true, help_heading = IDENTITY)]
    pub name: Option<Name>,
    /// A new pipe begins there: oldest, newest, OFFSET, TIME or -N
    #[arg(long, value_name = "WHERE", value_parser = cli::start, allow_hyphen_values = true, hide_short_help = true, help_heading = IDENTITY)]
    pub from: Option<Start>,
    /// Forget the position, and begin as a new pipe
    #[arg(long, hide_short_help = true, help_heading = IDENTITY)]
    pub reset: bool,
    /// A message that fails for good: dead (a dead letter), or stop (end with
    /// 123) [default: dead; with --window stop]
    #[arg(long, value_name = "WHAT", value_enum, hide_possible_values = true, hide_short_help = true, help_heading = FAILURES)]
    pub on_fail: Option<OnFail>,
    /// End a filter that takes longer, with all that it has started; with --stay:
    /// that is silent for longer [default: none; with --stay 10s]
    #[arg(long, value_name = "DUR", value_parser = timeout, hide_short_help = true, help_heading = FAILURES)]
    pub timeout: Option<Micros>,
    /// Pause so long before the filter is run again: the first time and at most,
    /// doubled in between [default: 1s..5m]
    #[arg(long, value_name = "DUR..DUR", hide_short_help = true, help_heading = FAILURES)]
    pub backoff: Option<Backoff>,
    #[command(flatten)]
    pub shared: Shared,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, hide_short_help = true, display_order = 999)]
    version: Option<bool>,
}

fn parallel(text: &str) -> Result<usize, String> {
    let max = limits::COMMANDS_MAX;
    match text.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(format!("how many filters run at once is a number from 1 to {max}")),
    }
}

fn cut(text: &str) -> Result<Cut, String> {
    match (text, text.strip_prefix("-d")) {
        ("whole", _) => Ok(Cut::Whole),
        ("-0", _) => Ok(Cut::Delimited(0)),
        (_, Some(byte)) => cli::delimiter(byte).map(Cut::Delimited),
        _ => Err("write whole, -0, or -d and a byte, such as -d, or -d\\t".to_owned()),
    }
}

fn timeout(text: &str) -> Result<Micros, String> {
    match cli::duration(text)? {
        Micros(0) => Err("a filter that may take no time cannot do anything".to_owned()),
        timeout => Ok(timeout),
    }
}

/// A name that leaves room for that of the group.
fn pipe_name(text: &str) -> Result<Name, String> {
    let (most, bytes) = (limits::NAME_BYTES_MAX - mq::pipe::GROUP_PREFIX.len(), text.len());
    if bytes > most {
        return Err(format!("a pipe's name has at most {most} bytes, this one has {bytes}"));
    }
    Name::new(text).map_err(|error| error.to_string())
}

fn queue(text: &str, what: &str) -> Result<Name, Failure> {
    Name::new(text).map_err(|error| {
        let remedy = format!("file:{text} for a file");
        let failure =
            Failure::new(Status::Usage, format!("{text:?} is no name for a queue: {error}"));
        if what == "DST" && text.contains('/') { failure.with_remedy(remedy) } else { failure }
    })
}

fn url(text: &str) -> Result<Url, Failure> {
    Url::new(text).map_err(|error| Failure::new(Status::Usage, error))
}

impl Args {
    /// What to do.
    pub fn order(&self) -> Result<Order, Failure> {
        let usage = |text: &str| Failure::new(Status::Usage, text);
        let source = match self.source.as_str() {
            "-" => Origin::Stdin,
            text if Url::is_one(text) => Origin::Engine(url(text)?),
            name => Origin::Queue(queue(name, "SRC")?),
        };
        let destination = self.destination()?;
        if self.filter.iter().any(|arg| arg == "{}") {
            return Err(usage("{} is not replaced: messages are on the filter's stdin"));
        }
        self.check_state(&source, &destination)?;
        let windows = self.windows(&source)?;
        let parallel = self.parallel.unwrap_or(1);
        let key = self.key()?;
        if key.is_some() && windows.is_none() && parallel == 1 {
            return Err(usage("--key divides messages among filters (-P) or windows (--window)"));
        }
        if self.separator.is_some() && self.key.is_none() && self.time.is_none() {
            return Err(usage("-t says what separates the fields of --key and --time"));
        }
        let default_on_fail = if windows.is_some() { OnFail::Stop } else { OnFail::Dead };
        let name = match (&self.name, &source) {
            (Some(name), _) => name.clone(),
            // What is read from stdin is never the same again.
            (None, Origin::Stdin) => Name::new("stdin").expect("a name"),
            (None, Origin::Queue(_) | Origin::Engine(_)) => {
                let to = match &destination {
                    Destination::File(_) => "file".to_owned(),
                    Destination::Stdout => "stdout".to_owned(),
                    Destination::Queue(name) => name.to_string(),
                    Destination::Engine(url) => url.name().to_string(),
                };
                let (from, into) = self.shown();
                default_name(&from, &into, &to, &self.filter)
            }
        };
        let order = Order {
            source,
            destination,
            filter: self.filter.clone(),
            name,
            batch: self.batch,
            until_end: self.end,
            ok: self.ok.iter().map(|status| i32::from(*status)).collect(),
            stay: self.stay,
            parallel,
            key,
            cut: self.out.unwrap_or(Cut::Delimited(b'\n')),
            from: self.from,
            reset: self.reset,
            buries: self.on_fail.unwrap_or(default_on_fail) == OnFail::Dead,
            backoff: self.backoff.unwrap_or_default(),
            timeout: self.timeout,
            windows,
            state: self.state.clone(),
            wait: self.wait,
            quiet: self.shared.quiet,
        };
        if order.is_circle() {
            return Err(usage(&PipeError::Circle.to_string()));
        }
        let refused = |refusal: Refusal| usage(&refusal.to_string()).with_remedy(refusal.remedy);
        order.check_engines().map_err(refused)?;
        Ok(order)
    }

    /// Source and destination, without passwords.
    pub fn shown(&self) -> (String, String) {
        // Two paths that are not UTF-8 are told apart, also in a name that is made of this.
        let destination = match self.destination.to_str() {
            Some(text) => url::without_password(text),
            None => format!("{:?}", self.destination),
        };
        (url::without_password(&self.source), destination)
    }

    /// Where to. A path may be any.
    fn destination(&self) -> Result<Destination, Failure> {
        let usage = |text: &str| Failure::new(Status::Usage, text);
        match self.destination.as_bytes().strip_prefix(b"file:") {
            Some(b"") => return Err(usage("file: needs a path behind it")),
            Some(path) => {
                return Ok(Destination::File(PathBuf::from(OsStr::from_bytes(path))));
            }
            None => {}
        }
        Ok(match self.destination.to_str() {
            Some("-") => Destination::Stdout,
            Some(text) if Url::is_one(text) => Destination::Engine(url(text)?),
            Some(name) => Destination::Queue(queue(name, "DST")?),
            None => return Err(usage(&format!("{:?} is no name for a queue", self.destination))),
        })
    }

    fn windows(&self, source: &Origin) -> Result<Option<Windowed>, Failure> {
        let usage = |text: &str| Failure::new(Status::Usage, text);
        let Some(spec) = self.window else { return Ok(None) };
        let separator = self.separator.unwrap_or_default();
        let time = time::Spec::new(self.time.as_deref().unwrap_or("stored"), separator);
        let time = time.map_err(|error| usage(&format!("--time: {error}")))?;
        if *source == Origin::Stdin && spec.has_times() && time == time::Spec::Stored {
            return Err(usage("what comes from standard input is not stored: give it a --time"));
        }
        if self.late.as_ref().is_some_and(|late| *source == Origin::Queue(late.clone())) {
            return Err(usage("late messages would come again and again: --late is the source"));
        }
        if let window::Kind::Aligned { size, every } = spec.kind
            && size != every
            && self.on_fail == Some(OnFail::Dead)
        {
            return Err(usage(
                "with windows that overlap, a message of one that fails is in others too: it \
                 cannot become a dead letter",
            ));
        }
        Ok(Some(Windowed { spec, time, late: self.late.clone(), flush: self.flush }))
    }

    fn check_state(&self, source: &Origin, destination: &Destination) -> Result<(), Failure> {
        let usage = |text: &str| Err(Failure::new(Status::Usage, text));
        let parallel = self.parallel.unwrap_or(1);
        if self.state.is_none() {
            return Ok(());
        }
        if *source == Origin::Stdin || *destination == Destination::Stdout {
            return usage(
                "a state belongs to a position in a queue and to what was made of it: --state \
                 needs a queue as SRC, and a queue or file:PATH as DST",
            );
        }
        if parallel > limits::STATE_PARTS_MAX {
            return usage(&format!("with --state, -P is at most {}", limits::STATE_PARTS_MAX));
        }
        if parallel > 1 && self.key.is_none() {
            return usage(
                "each of several filters has a state of its own: --key says which messages it is \
                 about",
            );
        }
        Ok(())
    }

    fn key(&self) -> Result<Option<Spec>, Failure> {
        let separator = self.separator.unwrap_or_default();
        let key = self.key.as_deref().map(|key| Spec::new(key, separator)).transpose();
        key.map_err(|error| Failure::new(Status::Usage, format!("--key: {error}")))
    }

    /// For messages.
    pub fn doing(&self) -> String {
        let (from, to) = self.shown();
        format!("from {from} to {to}")
    }

    /// What may be wrong when a filter ends with 1.
    pub fn ok_hint(&self) -> Option<String> {
        let greps = self.filter.first().is_some_and(|word| {
            let word = word.to_string_lossy();
            word.rsplit('/').next().is_some_and(|name| name.ends_with("grep"))
        });
        (greps && !self.ok.contains(&1))
            .then(|| "--ok 0,1: grep ends with 1 when it finds nothing".to_owned())
    }
}
