//! What all tools share on the command line: flags, exit statuses, how an error is told, signals,
//! the terminal, JSON lines.
//!
//! Nothing here knows what a tool does, and nothing ends the process but [`finish`], which a
//! `main` calls as its last act and which dies by the signal when a signal was the reason.

mod failure;
mod flags;
mod full_screen;
mod hint;
mod measures;
mod output;
mod signals;
mod slow;
mod status;
mod tables;

pub use failure::Failure;
pub use flags::{
    ColorWhen, Shared, delimiter, duration, group_name, lifetime, place, places, queue_name,
    queue_pattern, something, start, sync_policy,
};
pub use full_screen::FullScreen;
pub use hint::{binary_hint, is_terminal, passed_over, terminal_hint};
pub use measures::{duration_text, human_age, size};
pub use output::{human_bytes, human_count, json_line, not_written, print, print_json};
pub use signals::Signals;
pub use slow::Slow;
pub use status::Status;
pub use tables::{group_table, queue_page, queue_table, rfc3339, rfc3339_millis, settings_flags};

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::url;

/// What a tool's run comes to: a status, or a failure to be told on stderr.
pub type Outcome = Result<Status, Failure>;

/// Reads the command line. Help and version go to stdout, a usage error to stderr, by clap; what
/// is returned then is how the process is to end.
///
/// # Errors
/// The exit status, when there is nothing left to do.
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    parse_from(std::env::args_os())
}

/// The same for given arguments, the first of which is the program's name.
///
/// # Errors
/// See [`parse`].
pub fn parse_from<T: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<T, ExitCode> {
    let args: Vec<OsString> = args.into_iter().collect();
    // Whether clap's own words are coloured is said among what it is to read.
    let mut command = T::command().color(flags::colour_choice(&args));
    let parsed = command
        .try_get_matches_from_mut(&args)
        .and_then(|mut matches| T::from_arg_matches_mut(&mut matches));
    parsed.map_err(|error| {
        let error = match (error.kind(), args.iter().skip(1).find(|arg| arg.to_str().is_none())) {
            (ErrorKind::InvalidUtf8, Some(arg)) => {
                let what = format!("the argument {arg:?} is not UTF-8");
                command.error(ErrorKind::InvalidUtf8, what)
            }
            _ => error.format(&mut command),
        };
        let text = error.to_string();
        let harmless = url::without_passwords(&text);
        // What was wrong is shown, and a password in it is not.
        let failed_to_print = if harmless == text {
            error.print().is_err()
        } else {
            std::io::stderr().write_all(harmless.as_bytes()).is_err()
        };
        if error.use_stderr() {
            Status::Usage.code()
        } else if failed_to_print {
            Status::Failure.code()
        } else {
            Status::Done.code()
        }
    })
}

/// Ends a tool: tells a failure, dies by the signal if that is the status, and else gives `main`
/// what to return.
#[must_use]
pub fn finish(tool: &str, outcome: Outcome) -> ExitCode {
    let status = match outcome {
        Ok(status) => status,
        Err(failure) => {
            failure.tell(tool);
            failure.status
        }
    };
    if let Status::Signal(signal) = status {
        // The shell must see that we were ended by it: a loop around us ends too, then.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    status.code()
}
