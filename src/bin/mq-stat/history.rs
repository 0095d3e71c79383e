//! What happened before anybody looked: the server's own history.

use jiff::tz::TimeZone;
use mq::cli::{self, Failure, Outcome, Status};
use mq::client::figures::figures;
use mq::limits;
use mq::units::{Micros, Name};
use mq::view::{check, json, lines};
use mq::wire::stat::{FiguresWanted, QueueFigures, ServerFigures, Slice};

use crate::args::Args;
use crate::{failed, patience, reach};

const SECOND: Micros = Micros::from_secs(1);
const MINUTE: Micros = Micros::from_secs(60);

/// Prints the slices of the last `long`, by seconds as far as the server keeps them, else by
/// minutes.
pub fn run(args: &Args, long: Micros) -> Outcome {
    let mut connection = reach(args, patience())?;
    let seconds = long.0.div_ceil(SECOND.0);
    let is_fine = seconds <= u64::from(limits::HISTORY_SECONDS);
    let minutes = u32::try_from(long.0.div_ceil(MINUTE.0)).unwrap_or(u32::MAX);
    let wanted = FiguresWanted {
        queues: args.patterns(),
        seconds: if is_fine { u32::try_from(seconds).unwrap_or(u32::MAX) } else { 0 },
        minutes: if is_fine { 0 } else { minutes.saturating_add(1).min(limits::HISTORY_MINUTES) },
        ..FiguresWanted::default()
    };
    let (server, queues) = figures(&mut connection, &wanted, patience()).map_err(failed)?;
    let missing = check::missing(queues.iter().map(|figures| &figures.queue), &args.patterns());
    if !missing.is_empty() {
        let remedy = "list the queues with `mq-admin ls`";
        let message = format!("there is no queue {missing}, and so no history of it");
        return Err(Failure::new(Status::Failure, message).with_remedy(remedy));
    }
    let slices = chosen(&queues, &server, long, is_fine);
    let unit = if is_fine { SECOND } else { MINUTE };
    let mut text = String::new();
    let zone = TimeZone::system();
    for (at, (queue, slice)) in slices.into_iter().enumerate() {
        // The last one is not over yet.
        let length = Micros(unit.0.min(server.now.0.saturating_sub(slice.at.0)).max(1));
        if args.json {
            let line = cli::json_line(&json::slice(queue, slice, length));
            text.push_str(std::str::from_utf8(&line).expect("JSON is UTF-8"));
            continue;
        }
        if at % lines::HEAD_EVERY == 0 {
            text.push_str(&lines::head());
        }
        text.push_str(&lines::slice(&lines::clock(slice.at, &zone), queue, slice, length));
    }
    cli::print(text.as_bytes())?;
    Ok(Status::Done)
}

/// The slices that reach into the last `long`, by time, then by name.
fn chosen<'a>(
    queues: &'a [QueueFigures],
    server: &ServerFigures,
    long: Micros,
    is_fine: bool,
) -> Vec<(&'a Name, &'a Slice)> {
    let since = server.now.0.saturating_sub(long.0);
    let unit = if is_fine { SECOND } else { MINUTE };
    let mut slices: Vec<(&Name, &Slice)> = queues
        .iter()
        .flat_map(|figures| {
            let slices = if is_fine { &figures.seconds } else { &figures.minutes };
            slices.iter().map(|slice| (&figures.queue, slice))
        })
        .filter(|(_, slice)| slice.at.0 + unit.0 > since)
        .collect();
    slices.sort_by_key(|(queue, slice)| (slice.at, *queue));
    slices
}
