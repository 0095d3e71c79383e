//! The bench's arguments. Called by `main` alone.

use std::path::PathBuf;

/// A part of the table that can be asked for by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// `cat | cat`, `dd`, and sending and receiving at once.
    Together,
    /// Sending alone, and draining a backlog alone.
    Alone,
    /// One line at a time through both tools.
    Line,
    /// `mq-send -m` as a whole process.
    OneShot,
    /// The server's memory, and its return after kill -9.
    Memory,
    /// Whether a message costs the same whatever else there is.
    Flat,
    /// This build beside another one.
    Before,
    /// A command for each message, beside `xargs`.
    Commands,
    /// A backlog through filters.
    Pipe,
    /// Envelopes in and out.
    Attributes,
    /// The live view, and the server that it asks.
    Watching,
}

const NAMES: [(&str, Section); 11] = [
    ("together", Section::Together),
    ("alone", Section::Alone),
    ("line", Section::Line),
    ("one-shot", Section::OneShot),
    ("memory", Section::Memory),
    ("flat", Section::Flat),
    ("before", Section::Before),
    ("commands", Section::Commands),
    ("pipe", Section::Pipe),
    ("attributes", Section::Attributes),
    ("watching", Section::Watching),
];

/// What is to be measured.
pub struct Options {
    /// Lines of 100 bytes in the input.
    pub lines: u64,
    /// How often each throughput is measured, interleaved with its yardstick.
    pub pairs: usize,
    /// Where the input and the store are made.
    pub dir: PathBuf,
    /// The directory of another build's tools.
    pub before: Option<PathBuf>,
    only: Vec<Section>,
}

impl Options {
    /// Reads the arguments behind `--`. An error is a sentence for the user.
    pub fn from_args(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            lines: 10_000_000,
            pairs: 5,
            dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
            before: None,
            only: Vec::new(),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--lines" => options.lines = number(&value()?)?,
                "--pairs" => options.pairs = number(&value()?)? as usize,
                "--dir" => options.dir = PathBuf::from(value()?),
                "--before" => options.before = Some(PathBuf::from(value()?)),
                "--only" => options.only = sections(&value()?)?,
                // What cargo itself adds.
                "--bench" => {}
                _ => {
                    return Err(format!(
                        "unknown argument {arg}; there are --lines N, --pairs N, --dir DIR, \
                         --before DIR and --only {}",
                        NAMES.map(|(name, _)| name).join(",")
                    ));
                }
            }
        }
        if options.lines < 1000 || options.pairs == 0 {
            return Err("at least 1000 lines and one pair are needed".to_owned());
        }
        Ok(options)
    }

    /// Whether a section is wanted.
    pub fn runs(&self, section: Section) -> bool {
        self.only.is_empty() || self.only.contains(&section)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("{text} is no number"))
}

fn sections(text: &str) -> Result<Vec<Section>, String> {
    text.split(',')
        .map(|wanted| {
            let found = NAMES.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, section)| *section).ok_or(format!(
                "there is no section {wanted}; there are {}",
                NAMES.map(|(name, _)| name).join(", ")
            ))
        })
        .collect()
}
