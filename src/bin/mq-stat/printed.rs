//! Lines and JSON, a look at a time.

use std::io::Write as _;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use mq::cli::{self, Outcome, Status};
use mq::client::figures::{Follower, News};
use mq::limits;
use mq::view::check;
use mq::view::columns::Column;
use mq::view::interval::{Interval, Together};
use mq::view::model::{Model, Row, Span};
use mq::view::{json, lines};

use crate::args::Args;
use crate::{TOOL, failed, patience, reach};

/// Prints look after look, until there were enough.
pub fn run(args: &Args) -> Outcome {
    let mut connection = reach(args, patience())?;
    // Of what the server remembers, as much as the first look's rates need.
    let seconds = args.step().0.div_ceil(1_000_000) + 1;
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).min(limits::HISTORY_SECONDS);
    let mut follower = Follower::new(args.patterns(), args.json, seconds);
    let mut printer = Printer::new(args);
    let began = Instant::now();
    for look in 1u32.. {
        let news = follower.ask(&mut connection, patience()).map_err(failed)?;
        if look == 1 {
            tell_missing(args, &news);
        }
        cli::print(printer.look(news).as_bytes())?;
        if args.count.is_some_and(|count| u64::from(look) >= count) {
            break;
        }
        wait_for(began, args.step().to_duration(), look);
    }
    Ok(Status::Done)
}

/// Says once that a queue of this name is not there: a mistyped name shows nothing for ever.
fn tell_missing(args: &Args, first: &News) {
    let missing =
        check::missing(first.queues.iter().map(|figures| &figures.queue), &args.patterns());
    if !missing.is_empty() && !args.shared.quiet {
        // A stderr that is closed changes nothing.
        let text = format!("{TOOL}: there is no queue {missing} yet; it is shown when there is\n");
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// Until the moment of a look; at once when it has passed.
fn wait_for(began: Instant, step: Duration, look: u32) {
    let moment = began + step.saturating_mul(look);
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}

struct Printer<'a> {
    args: &'a Args,
    model: Model,
    zone: TimeZone,
    /// Lines since the head.
    printed: Option<usize>,
}

impl<'a> Printer<'a> {
    fn new(args: &'a Args) -> Printer<'a> {
        let mut model = Model::new(args.step());
        model.look_at(Span::All);
        Printer { args, model, zone: TimeZone::system(), printed: None }
    }

    /// All lines of a look, so that they are written at once.
    fn look(&mut self, news: News) -> String {
        self.model.update(news.server, news.queues, news.is_whole);
        let sort = self.args.sort.unwrap_or(Column::Queue);
        let mut rows: Vec<&Row> = self.model.rows().iter().collect();
        rows.sort_by(|a, b| sort.order(a, b));
        let tracks = rows.iter().filter_map(|row| self.model.track(row.queue()));
        let intervals: Vec<Interval<'_>> =
            tracks.map(|track| Interval::of(track, &self.model)).collect();
        let mut text = String::new();
        if self.args.json {
            for interval in &intervals {
                let line = cli::json_line(&json::line(interval, &self.model));
                text.push_str(std::str::from_utf8(&line).expect("JSON is UTF-8"));
            }
            return text;
        }
        let time = lines::clock(self.model.now(), &self.zone);
        let mut shown: Vec<String> =
            intervals.iter().map(|interval| lines::line(&time, interval)).collect();
        if shown.len() != 1 {
            shown.push(lines::total(&time, &Together::of(&intervals)));
        }
        if self.printed.is_none_or(|printed| printed + shown.len() > lines::HEAD_EVERY) {
            text.push_str(&lines::head());
            self.printed = Some(0);
        }
        self.printed = self.printed.map(|printed| printed + shown.len());
        text.push_str(&shown.concat());
        text
    }
}
