//! Prometheus text, on stdout or in the place of a file.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use mq::cli::{self, Failure, Outcome, Status};
use mq::client::figures::figures;
use mq::view::prometheus;
use mq::wire::stat::FiguresWanted;

use crate::args::Args;
use crate::{failed, patience, reach};

/// Writes it once, or with an interval again and again. When no server answers, that is what is
/// written, and with an interval the next one is waited for.
pub fn run(args: &Args) -> Outcome {
    let mut looks = 0;
    loop {
        let began = Instant::now();
        let asked = ask(args);
        let text = asked.as_ref().map_or_else(|_| prometheus::text_without_server(), String::clone);
        write(args, &text)?;
        looks += 1;
        let is_last = args.interval.is_none() || args.count.is_some_and(|count| looks >= count);
        match asked {
            Err(failure) if is_last || failure.status != Status::NoServer => return Err(failure),
            _ if is_last => return Ok(Status::Done),
            _ => {}
        }
        std::thread::sleep(args.step().to_duration().saturating_sub(began.elapsed()));
    }
}

fn ask(args: &Args) -> Result<String, Failure> {
    let mut connection = reach(args, patience())?;
    let wanted =
        FiguresWanted { queues: args.patterns(), detail: true, ..FiguresWanted::default() };
    let (server, queues) = figures(&mut connection, &wanted, patience()).map_err(failed)?;
    Ok(prometheus::text(&server, &queues))
}

fn write(args: &Args, text: &str) -> Result<(), Failure> {
    let Some(path) = &args.output else { return cli::print(text.as_bytes()) };
    replace(path, text.as_bytes()).map_err(|error| {
        let message = format!("cannot put the figures in the place of {}: {error}", path.display());
        Failure { message, ..cli::not_written(&error) }
    })
}

/// Whoever reads the file sees the old text or the new one, never a part. It may be read by
/// others, as the umask says. A link stays, and what it leads to is replaced; what is no file, such
/// as a pipe or a device, is written to.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let beside = beside(path);
    // What stands there is of a process of our number that was killed, or somebody's link.
    let _ = fs::remove_file(&beside);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&beside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // It is not there if it could not be made.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// A name in the same directory that collectors of `*.prom` do not look at.
fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}
