//! What the user of `mq-pipe` sees along the way, and the signals.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mq::cli::{self, Signals};
use mq::pipe::{Host, Note};
use mq::wire::PipeFigures;

use crate::TOOL;
use crate::args::Args;

/// How often the progress is told where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// What the user sees along the way, and the signals.
pub struct Terminal {
    signals: Signals,
    source: String,
    name: String,
    quiet: bool,
    verbose: bool,
    bar: Option<ProgressBar>,
    /// Stderr is no terminal: a line at a time.
    in_lines: bool,
    shown: Instant,
    began: Instant,
    /// What had been done before this run, and what is done now.
    figures: Option<(PipeFigures, PipeFigures)>,
}

impl Terminal {
    pub fn new(signals: Signals, args: &Args, name: &str) -> Terminal {
        let on_terminal = cli::is_terminal(std::io::stderr());
        let is_wanted = args.progress && !args.shared.quiet;
        Terminal {
            signals,
            source: args.shown().0,
            name: name.to_owned(),
            quiet: args.shared.quiet,
            verbose: args.shared.verbose,
            bar: (is_wanted && on_terminal).then(bar),
            in_lines: is_wanted && !on_terminal,
            shown: Instant::now(),
            began: Instant::now(),
            figures: None,
        }
    }

    fn say(&self, text: &str) {
        // A stderr that is closed changes nothing.
        let say = || drop(std::io::stderr().write_all(format!("{TOOL}: {text}\n").as_bytes()));
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    fn summary(&self) -> Option<String> {
        let (before, now) = self.figures?;
        let since =
            |of: fn(&PipeFigures) -> u64| cli::human_count(of(&now).saturating_sub(of(&before)));
        Some(format!(
            "{} messages read, {} written, in {} batches; {} failures, {} dead letters",
            since(|figures| figures.read),
            since(|figures| figures.written),
            since(|figures| figures.batches),
            since(|figures| figures.retries),
            since(|figures| figures.dead),
        ))
    }

    /// The last word.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.verbose || self.in_lines {
            let seconds = self.began.elapsed().as_secs_f64();
            let text = self.summary().unwrap_or_else(|| "nothing was committed".to_owned());
            self.say(&format!("pipe {}: {text}, in {seconds:.3} s", self.name));
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
    let template = "{spinner} {human_pos} {per_sec} {elapsed} {msg}";
    bar.set_style(ProgressStyle::with_template(template).expect("a template of ours"));
    bar
}

/// A pause, in milliseconds where it is short.
fn span(pause: Duration) -> String {
    match pause.as_millis() {
        0..1000 => format!("{} ms", pause.as_millis()),
        _ => format!("{} s", (pause.as_secs_f64() * 10.0).round() / 10.0),
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl Host for Terminal {
    fn take_signal(&mut self) -> Option<i32> {
        self.signals.take()
    }

    fn note(&mut self, note: Note<'_>) {
        if self.quiet
            && !matches!(note, Note::Dead { .. } | Note::DeadWindow { .. } | Note::Gone(_))
        {
            return;
        }
        let text = match note {
            Note::NoQueue => format!("there is no queue {} yet; waiting for it", self.source),
            Note::Waiting => {
                format!("another instance of pipe {} still runs; waiting for its end", self.name)
            }
            Note::Passed(passed) => cli::passed_over(&self.source, passed),
            Note::Lost { orderly: true } => "the server was stopped; waiting for a new one".into(),
            Note::Lost { orderly: false } if self.verbose => {
                "the connection to the server was lost; going on from the last commit".into()
            }
            Note::Lost { orderly: false } => return,
            Note::AtLeastOnce(url) => format!(
                "{url} is at an engine: each message is there at least once, not exactly once"
            ),
            Note::Held(fault) => format!("{}; waiting for room", fault.message),
            Note::Failed { messages, count, reason, pause } => format!(
                "the filter failed on {} messages of {} ({messages}): {reason}; again in {}",
                cli::human_count(count),
                self.source,
                span(pause)
            ),
            Note::Dead { offset, reason } => {
                format!("message {offset} of {} is a dead letter: {reason}", self.source)
            }
            Note::WindowsFailed { first, count, reason, pause } => format!(
                "the filter failed on {} of {} (messages {first}{}): {reason}; again in {}",
                if count == 1 { "a window".to_owned() } else { format!("{count} windows") },
                self.source,
                if count == 1 { "" } else { " and others" },
                span(pause)
            ),
            Note::DeadWindow { messages, count, reason } => format!(
                "the {} messages of a window of {} ({messages}) are dead letters: {reason}",
                cli::human_count(count),
                self.source
            ),
            Note::Gone(range) => format!(
                "messages {range} of {} are not there any more: purged, expired, or dropped by its \
                 limits; going on at {}",
                self.source, range.end
            ),
            Note::Ambiguous => format!(
                "a message of {} holds a newline, and is several lines to the filter",
                self.source
            ),
        };
        self.say(&text);
    }

    fn progress(&mut self, figures: &PipeFigures) {
        // First it is told what was done before.
        let before = self.figures.map_or(*figures, |(before, _)| before);
        self.figures = Some((before, *figures));
        if let Some(bar) = &self.bar {
            bar.set_position(figures.read);
            bar.set_message(format!("{} written", cli::human_count(figures.written)));
        } else if self.in_lines && self.shown.elapsed() >= LINE_EVERY {
            self.shown = Instant::now();
            if let Some(text) = self.summary() {
                self.say(&text);
            }
        }
    }
}
