//! The bench's arguments. Called by `main` alone.

/// What is to be measured.
pub struct Options {
    /// Messages of 100 bytes in a sample.
    pub lines: u64,
    /// How often each is measured, interleaved with its yardstick.
    pub pairs: usize,
    only: Vec<String>,
}

/// The engines, as `--only` calls them.
const NAMES: [&str; 5] = ["rabbitmq", "nats", "activemq", "kafka", "zeromq"];

impl Options {
    /// Reads the arguments behind `--`. An error is a sentence for the user.
    pub fn from_args(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options { lines: 100_000, pairs: 5, only: Vec::new() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--lines" => options.lines = number(&value()?)?,
                "--pairs" => options.pairs = number(&value()?)? as usize,
                "--only" => options.only = engines(&value()?)?,
                // What cargo itself adds.
                "--bench" => {}
                _ => {
                    return Err(format!(
                        "unknown argument {arg}; there are --lines N, --pairs N and --only {}",
                        NAMES.join(",")
                    ));
                }
            }
        }
        if options.lines < 1000 || options.pairs == 0 {
            return Err("at least 1000 lines and one pair are needed".to_owned());
        }
        Ok(options)
    }

    /// Whether an engine is wanted.
    pub fn runs(&self, engine: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only.eq_ignore_ascii_case(engine))
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("{text} is no number"))
}

fn engines(text: &str) -> Result<Vec<String>, String> {
    let each = text.split(',').map(|wanted| {
        let known = NAMES.contains(&wanted);
        known
            .then(|| wanted.to_owned())
            .ok_or(format!("there is no engine {wanted}; there are {}", NAMES.join(", ")))
    });
    each.collect()
}
