//! What the user of `mq-recv` sees along the way, and the signals.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mq::cli::{self, Signals};
use mq::client::receive::{Caller, Note, Tally};
use mq::units::Name;

use crate::TOOL;
use crate::args::Args;

/// A drain of so many messages shows its progress on a terminal without being asked.
const LONG_MESSAGES: u64 = 1_000_000;

/// How often the progress is shown on a terminal, and elsewhere.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// See [`DRAW_EVERY`].
const LINE_EVERY: Duration = Duration::from_secs(1);

fn say(text: &str) {
    // A stderr that is closed changes nothing.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What the user sees along the way, and the signals.
pub struct Terminal {
    signals: Signals,
    /// The queues, as they were given.
    queues: String,
    has_command: bool,
    quiet: bool,
    verbose: bool,
    began: Instant,
    bar: Option<ProgressBar>,
    /// Stderr is no terminal: a line at a time.
    in_lines: bool,
    shown: Instant,
}

impl Terminal {
    pub fn new(signals: Signals, args: &Args) -> Terminal {
        let is_long = args.count.is_some_and(|count| count >= LONG_MESSAGES);
        let on_terminal = cli::is_terminal(std::io::stderr());
        // A bar between messages would spoil both.
        let can_show = on_terminal && !cli::is_terminal(std::io::stdout());
        let is_wanted = !args.shared.quiet && (args.progress || (is_long && can_show));
        Terminal {
            signals,
            queues: args.shown(),
            has_command: !args.command.is_empty(),
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

    /// How a note is told, if it is.
    fn text(&self, note: Note) -> Option<String> {
        Some(match note {
            Note::NoQueue(Some(queue)) => format!("there is no queue {queue} yet; waiting for it"),
            Note::NoQueue(None) => format!("there is no queue {} yet; waiting", self.queues),
            Note::Passed(queue, passed) => cli::passed_over(&queue, passed),
            Note::Ambiguous => format!(
                "a message of {} holds the delimiter and is written as it is\n  \
                 try: -0, or -J",
                self.queues
            ),
            Note::Unfinished => {
                "the file ends within a message, whose writer may have been killed; \
                                 going on behind a delimiter"
                    .to_owned()
            }
            Note::QueueReplaced(queue) => {
                format!("{queue} was removed and made anew; receiving from the new one")
            }
            Note::QueueRemoved(queue) => format!("{queue} was removed"),
            Note::QueueFailed(queue, fault) => {
                format!("receiving from {queue}: {}; the others go on", fault.message)
            }
            Note::Waiting(queue) => {
                format!("another receiver has {queue}, or messages of it; waiting until it is free")
            }
            Note::Stopped(pid) => format!(
                "the command (process {pid}) asked the terminal, and was stopped for that: each runs in a \
                 process group of its own, in the background\n  \
                 try: its answers from a file, or {TOOL} {} | while read -r x; do ...; done",
                self.queues
            ),
            Note::ServerGone(true) => "the server was stopped; waiting for a new one".to_owned(),
            Note::ServerGone(false) if self.verbose => {
                "the connection to the server was lost; trying again".to_owned()
            }
            Note::Redelivered(queue, range) if self.verbose => {
                format!("redelivered: {range} of {queue}")
            }
            Note::ServerGone(false) | Note::Redelivered(..) => return None,
        })
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

    /// Dead letters have not arrived yet.
    pub fn say_late_letters(&self, queue: &Name) {
        self.say(&format!("{TOOL}: dead letters of {queue} are still on their way\n"));
    }

    pub fn end(&mut self, tally: &Tally) {
        self.show(tally);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.verbose {
            let Tally { messages, bytes, redelivered, failed, dead } = tally;
            let seconds = self.began.elapsed().as_secs_f64();
            let mut text = format!(
                "{TOOL}: {messages} messages ({bytes} bytes) received from {} in {seconds:.3} s, \
                 {redelivered} of them redelivered",
                self.queues,
            );
            if self.has_command {
                text.push_str(&format!(", {failed} failed, {dead} of these dead letters now"));
            }
            self.say(&format!("{text}\n"));
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
        if self.quiet && !matches!(note, Note::QueueFailed(..)) {
            return;
        }
        if let Some(text) = self.text(note) {
            self.say(&format!("{TOOL}: {text}\n"));
        }
    }

    fn progress(&mut self, tally: &Tally) {
        let every = if self.bar.is_some() { DRAW_EVERY } else { LINE_EVERY };
        if (self.bar.is_some() || self.in_lines) && self.shown.elapsed() >= every {
            self.shown = Instant::now();
            self.show(tally);
        }
    }
}
