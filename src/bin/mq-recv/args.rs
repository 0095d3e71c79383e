//! The command line of `mq-recv`: its flags, what of them does not go together, and what they
//! come to.

use std::ffi::OsString;

use clap::{ArgAction, Parser};
use mq::cli::{self, Failure, Shared, Status};
use mq::client::command::Spec;
use mq::client::format::{Shape, Template};
use mq::client::place::{Peer, Places};
use mq::client::receive::{Options, Queues, Taking};
use mq::client::work::Work;
use mq::limits;
use mq::settings::{Backoff, Start};
use mq::units::{Micros, Name};
use mq::wire::QueuePattern;

use crate::TOOL;

const EXAMPLES: &str = "\
Examples:
  mq-recv jobs | while read -r x; do work \"$x\"; done   (more: --help)
  mq-recv -e jobs > file       all that is there
  mq-recv -P4 jobs -- ./work   a command for each message, which is its stdin
";

const EXAMPLES_LONG: &str = "\
Examples:
  mq-recv jobs | while read -r x; do work \"$x\"; done

      A message is acknowledged, and so gone, once the reader has taken its last
      byte out of the pipe. read takes single lines. Block readers (head, sed,
      awk, jq, ssh) take a whole buffer full of messages at once, and what they
      took and had not finished when they died is lost: -n N never hands out
      more than N, and a command (below) or --lease settles each message when it
      is done. What nobody took stays queued. Two of these share evenly.

  mq-recv -P4 jobs -- ./work

      Four at a time. The message is on the command's stdin, facts about it are
      in its environment (MQ_KEY, MQ_ATTEMPT, ...). Exit status 0: done. 65: a
      dead letter at once. 126, 127: stop, the message goes back. Any other: it
      is tried again after a pause, and is a dead letter after the queue's
      delivery limit.

  */5 * * * * mq-recv -e -P4 jobs -- ./work
                                    from cron: until none is left that is ready
  mq-recv jobs -- sh -c 'IFS= read -r x; work \"$x\"'
                                    the message as an argument
  mq-recv -J --batch 1000 jobs -- ssh host mq-send -J jobs
                                    to another machine, nothing lost on the way
  mq-recv -n1 -w 10s jobs           one message, waiting for it 10 seconds
  while x=$(mq-recv -e -n1 jobs); do work \"$x\"; done
                                    one after another, until none is left
  mq-recv -e jobs > file            all that is there; synced, then gone
  mq-recv -e -0 files | xargs -0 ls messages ended by NUL
  mq-recv -n1 --raw images > x.png  one message and not a byte more
  mq-recv -J jobs | jq -r .data     envelopes: all that is known of a message
  mq-recv -F '%I %k %s\\n' jobs      time, key and body
  mq-recv --peek jobs               look, take nothing
  mq-recv -g audit --from oldest jobs
                                    a group of its own, which sees everything
  mq-recv --strict urgent normal    urgent first, always
  mq-recv 'logs.*'                  all queues so named, also later ones
  mq-recv -J -n1 --lease 1h jobs    to be settled later: mq-admin ack RECEIPT

Exit status: 0 done; 123 if a message became a dead letter, with -e if any
command failed; 124 with -n or -w if not one message came; 126, 127 if the
command cannot be run or found; 141 if the reader went away; 69 no server;
75 no room for the output; 1 other failures.
";

const OUTPUT: &str = "More on the output";
const TAKING: &str = "More on taking";
const COMMANDS: &str = "More on commands";

/// Receive the messages of a queue.
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    about = "Receive messages: on stdout, or by running a command for each",
    before_help = EXAMPLES,
    before_long_help = EXAMPLES_LONG,
    max_term_width = 80,
    disable_version_flag = true,
    override_usage = "mq-recv [OPTIONS] QUEUE... [-- CMD ARG...]",
    help_template = "{about}\n\n{usage-heading} {usage}\n\n{before-help}{all-args}{after-help}"
)]
pub struct Args {
    /// Where from: names, patterns such as 'logs.*', or a URL; waited for if not
    /// there
    #[arg(value_name = "QUEUE", required = true, value_parser = cli::places, hide_short_help = true)]
    pub queues: Vec<Places>,
    /// What to run for each message
    #[arg(value_name = "CMD", last = true, hide_short_help = true)]
    pub command: Vec<OsString>,
    /// Stop after N messages; never take more
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Stop at the end of what is ready now
    #[arg(short, long)]
    pub end: bool,
    /// Stop when nothing has come for so long
    #[arg(short, long, value_name = "DUR", value_parser = cli::duration)]
    pub wait: Option<Micros>,
    /// Messages end with a NUL, not with a newline
    #[arg(short = '0', long, conflicts_with_all = ["delimiter", "raw", "json", "format"])]
    pub null: bool,
    /// Envelopes: a line of JSON with all that is known
    #[arg(short = 'J', long, conflicts_with_all = ["delimiter", "raw", "format"])]
    pub json: bool,
    /// Write each message so: %s body, %k key, %h headers, ...
    #[arg(short = 'F', long, value_name = "FORMAT", conflicts_with_all = ["delimiter", "raw"])]
    pub format: Option<Template>,
    /// For this group [default: default]
    #[arg(short, long, value_name = "GROUP", value_parser = cli::group_name)]
    pub group: Option<Name>,
    /// Make the group: oldest, newest, OFFSET, TIME or -N
    #[arg(long, value_name = "WHERE", value_parser = cli::start, allow_hyphen_values = true, conflicts_with = "peek")]
    pub from: Option<Start>,
    /// Only look, until the end; take nothing
    #[arg(long, conflicts_with_all = ["no_ack", "lease", "exclusive", "command"])]
    pub peek: bool,
    /// Run so many commands at once
    #[arg(short = 'P', long, value_name = "N", value_parser = parallel, requires = "command")]
    pub parallel: Option<usize>,
    /// Messages end with this byte, such as , or \t or \x1e
    #[arg(short, long, value_name = "C", value_parser = cli::delimiter, conflicts_with = "raw", hide_short_help = true, help_heading = OUTPUT)]
    pub delimiter: Option<u8>,
    /// Messages end with nothing
    #[arg(long, hide_short_help = true, help_heading = OUTPUT)]
    pub raw: bool,
    /// Show the progress on stderr
    #[arg(short, long, hide_short_help = true, help_heading = OUTPUT)]
    pub progress: bool,
    /// Always the first queue that has any message, in the order given
    #[arg(long, hide_short_help = true, help_heading = TAKING)]
    pub strict: bool,
    /// At most once: settled by being delivered, and lost if this ends
    #[arg(long, conflicts_with = "lease", hide_short_help = true, help_heading = TAKING)]
    pub no_ack: bool,
    /// Lease messages for so long; with -J their receipts are printed, and
    /// mq-admin ack, nack or extend settles them
    #[arg(long, value_name = "DUR", value_parser = lease, hide_short_help = true, help_heading = TAKING)]
    pub lease: Option<Micros>,
    /// Take turns: nothing while another one with this flag has the group
    #[arg(long, hide_short_help = true, help_heading = TAKING)]
    pub exclusive: bool,
    /// Give a command up to N messages, which are settled together
    #[arg(long, value_name = "N", value_parser = batch, requires = "command", hide_short_help = true, help_heading = COMMANDS)]
    pub batch: Option<usize>,
    /// End a command that takes longer, with all that it has started
    #[arg(long, value_name = "DUR", value_parser = timeout, requires = "command", hide_short_help = true, help_heading = COMMANDS)]
    pub timeout: Option<Micros>,
    /// Pause so long before a failed message is tried again: the first time and
    /// at most, doubled in between [default: 1s..5m]
    #[arg(long, value_name = "DUR..DUR", requires = "command", hide_short_help = true, help_heading = COMMANDS)]
    pub backoff: Option<Backoff>,
    #[command(flatten)]
    pub shared: Shared,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, hide_short_help = true, display_order = 999)]
    version: Option<bool>,
}

fn number(text: &str, max: usize, what: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(format!("{what} is a number from 1 to {max}")),
    }
}

fn parallel(text: &str) -> Result<usize, String> {
    number(text, limits::COMMANDS_MAX, "how many commands run at once")
}

fn batch(text: &str) -> Result<usize, String> {
    number(text, limits::WORK_BATCH_MAX, "what a command is given at most")
}

fn timeout(text: &str) -> Result<Micros, String> {
    match cli::duration(text)? {
        Micros(0) => Err("a command that may take no time cannot do anything".to_owned()),
        timeout => Ok(timeout),
    }
}

fn lease(text: &str) -> Result<Micros, String> {
    let lease = cli::duration(text)?;
    if (limits::LEASE_MIN..=limits::LEASE_MAX).contains(&lease) {
        Ok(lease)
    } else {
        Err("a lease lasts from 10ms to 30d".to_owned())
    }
}

impl Args {
    /// Refuses what clap cannot see to make no sense.
    pub fn check(&self) -> Result<(), Failure> {
        let usage = |text: &str| Failure::new(Status::Usage, text);
        if self.queues.len() > limits::PATTERNS_PER_RECEIVER_MAX {
            let max = limits::PATTERNS_PER_RECEIVER_MAX;
            return Err(usage(&format!("more than {max} queues")).with_remedy("a pattern"));
        }
        let is_elsewhere = |queue: &&Places| matches!(queue, Places::Elsewhere(_));
        if let (Some(url), true) = (self.queues.iter().find(is_elsewhere), self.queues.len() > 1) {
            return Err(usage(&format!(
                "{url} lives at an engine, from which one queue is received"
            ))
            .with_remedy("a receiver for each of the queues"));
        }
        if let Some(lease) = self.lease {
            if !self.command.is_empty() {
                return Err(usage(
                    "--lease is for who settles a message later by its receipt; a \
                                  command's messages are leased for as long as it runs",
                ));
            }
            if !self.json {
                let seconds = lease.to_duration().as_secs_f64();
                return Err(usage("a lease is settled by its receipt, which only -J prints")
                    .with_remedy(format!("{TOOL} -J --lease {seconds}s {}", self.shown())));
            }
        }
        // What a variable that is not set leaves of a command.
        if self.command.is_empty() && std::env::args_os().next_back().is_some_and(|arg| arg == "--")
        {
            return Err(usage("there is no command behind --"));
        }
        if self.command.iter().any(|arg| arg == "{}") {
            return Err(usage("{} is not replaced: the message is on the command's stdin")
                .with_remedy(self.as_argument()));
        }
        Ok(())
    }

    /// How to write a command that has its message as an argument.
    fn as_argument(&self) -> String {
        let words: Vec<String> = self
            .command
            .iter()
            .map(|arg| match arg.to_string_lossy() {
                text if text == "{}" => "\"$x\"".to_owned(),
                text => text.into_owned(),
            })
            .collect();
        format!("{TOOL} {} -- sh -c 'IFS= read -r x; {}'", self.shown(), words.join(" "))
    }

    /// The queues, for messages.
    pub fn shown(&self) -> String {
        self.queues.iter().map(Places::to_string).collect::<Vec<_>>().join(" ")
    }

    /// Whom to speak with.
    pub fn peer(&self) -> Result<Peer, Failure> {
        match self.queues.first() {
            Some(Places::Elsewhere(url)) => Ok(Peer::Engine(url.clone())),
            _ => self.shared.store().map(Peer::Store),
        }
    }

    /// What to receive.
    pub fn options(&self) -> Options {
        let queues = match self.queues.as_slice() {
            [Places::Elsewhere(url)] => Queues::One(url.name()),
            [Places::Here(QueuePattern(text))] if Name::new(text).is_ok() => {
                Queues::One(Name::new(text).expect("just looked at"))
            }
            several => Queues::Several {
                patterns: several.iter().map(Places::pattern).collect(),
                strict: self.strict,
            },
        };
        Options {
            group: self.group(),
            from: self.from,
            taking: match self.lease {
                Some(lease) => Taking::Leased(lease),
                None if self.peek => Taking::Looked,
                None if self.no_ack => Taking::Unacked,
                None => Taking::Acked,
            },
            exclusive: self.exclusive,
            backoff: self.backoff,
            // To wait for nothing is to take what is there.
            until_end: self.end || self.peek || self.wait == Some(Micros(0)),
            limit: self.count,
            wait: self.wait,
            ..Options::new(queues)
        }
    }

    fn group(&self) -> Name {
        self.group.clone().unwrap_or_default()
    }

    /// How messages are written.
    pub fn shape(&self) -> Shape {
        match (&self.format, self.delimiter) {
            _ if self.json => Shape::Envelope,
            (Some(template), _) => Shape::Template(template.clone()),
            _ if self.raw => Shape::Body(None),
            _ if self.null => Shape::Body(Some(0)),
            (None, delimiter) => Shape::Body(Some(delimiter.unwrap_or(b'\n'))),
        }
    }

    /// What to run, if anything.
    pub fn work(&self) -> Option<Work> {
        let parallel = self.parallel.unwrap_or(1);
        let (argv, timeout) = (self.command.clone(), self.timeout);
        (!argv.is_empty()).then(|| Work {
            command: Spec { argv, parallel, timeout },
            batch: self.batch,
            group: self.group(),
        })
    }
}
