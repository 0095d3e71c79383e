//! The command line of `mq-stat`.

use std::path::PathBuf;

use clap::{ArgAction, Parser};
use mq::cli::{self, Failure, Shared, Status};
use mq::client::place::{Peer, Places};
use mq::limits;
use mq::units::Micros;
use mq::view::check::{self, Levels, Limits};
use mq::view::columns::{Column, sort_column};
use mq::wire::QueuePattern;

use crate::TOOL;

const EXAMPLES: &str = "\
Examples:
  mq-stat                        watch all queues; ? in it shows the keys
  mq-stat -b -i 10s jobs         a line every ten seconds
  mq-stat -J -n 1 | jq .ready    figures for a program
";

const EXAMPLES_LONG: &str = "\
Examples:
  mq-stat                        watch all queues; ? in it shows the keys
  mq-stat 'logs.*'               only these
  mq-stat -b -i 10s jobs         a line every ten seconds, as vmstat does
  mq-stat -J -n 1 | jq .ready    figures for a program, once
  mq-stat --since 1h jobs        what happened, minute by minute
  mq-stat --prometheus -o /var/lib/node_exporter/mq.prom -i 15s
                                 for the textfile collector of node_exporter
  mq-stat --check --max-age 1m,10m --max-ready 1000,100000 jobs
                                 for monitoring: OK, WARNING, CRITICAL, UNKNOWN
  mq-stat --check --max-ready 0,100 '*.dead'
                                 a warning when there are dead letters

Exit status: 0 done; 69 no server (the live view waits for one); 2 usage; 1 other
failures. With --check: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, which is also
wrong usage and no server.
";

const CHECK: &str = "For monitoring";

/// Show how queues are doing.
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    about = "Show throughput, latency and reliability of queues, live or for programs",
    before_help = EXAMPLES,
    before_long_help = EXAMPLES_LONG,
    max_term_width = 80,
    disable_version_flag = true,
    override_usage = "mq-stat [OPTIONS] [QUEUE...]",
    help_template = "{about}\n\n{usage-heading} {usage}\n\n{before-help}{all-args}{after-help}"
)]
pub struct Args {
    /// Which: names, patterns such as 'logs.*', or a URL [default: all]
    #[arg(value_name = "QUEUE", value_parser = cli::places, hide_short_help = true)]
    pub queues: Vec<Places>,
    /// Lines rather than the live view; so also without a terminal
    #[arg(short = 'b', long)]
    pub lines: bool,
    /// How often to look [default: 1s]
    #[arg(short, long, value_name = "DUR", value_parser = interval)]
    pub interval: Option<Micros>,
    /// Look so often, in lines, then end
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// JSON, one object for each queue and look
    #[arg(short = 'J', long)]
    pub json: bool,
    /// Prometheus text, once, or with -i again and again
    #[arg(long, conflicts_with_all = ["json", "lines", "sort"])]
    pub prometheus: bool,
    /// Put the Prometheus text in the place of FILE, whole
    #[arg(short, long, value_name = "FILE", requires = "prometheus")]
    pub output: Option<PathBuf>,
    /// What happened so far back, from the server's history
    #[arg(long, value_name = "DUR", value_parser = history,
        conflicts_with_all = ["prometheus", "interval", "count", "sort"])]
    pub since: Option<Micros>,
    /// Sort by a column: ready, in, out, age, p99, dead, ...
    #[arg(long, value_name = "COL", value_parser = sort_column)]
    pub sort: Option<Column>,
    /// Judge, for monitoring: one line, status 0, 1, 2 or 3
    #[arg(long, conflicts_with_all = ["lines", "json", "prometheus", "interval", "count", "since", "sort"])]
    pub check: bool,
    /// The age of the oldest message must not be over this
    #[arg(long, value_name = "WARN,CRIT", value_parser = times, requires = "check", help_heading = CHECK,
        hide_short_help = true)]
    pub max_age: Option<Levels>,
    /// So many messages may be ready
    #[arg(long, value_name = "WARN,CRIT", value_parser = numbers, requires = "check", help_heading = CHECK,
        hide_short_help = true)]
    pub max_ready: Option<Levels>,
    /// So many messages may be with receivers
    #[arg(long, value_name = "WARN,CRIT", value_parser = numbers, requires = "check", help_heading = CHECK,
        hide_short_help = true)]
    pub max_unacked: Option<Levels>,
    /// The whole latency that 99 % of the last two minutes' messages did not exceed
    #[arg(long, value_name = "WARN,CRIT", value_parser = times, requires = "check", help_heading = CHECK,
        hide_short_help = true)]
    pub max_latency: Option<Levels>,
    /// So many dead letters within the last hour
    #[arg(long, value_name = "WARN,CRIT", value_parser = numbers, requires = "check", help_heading = CHECK,
        hide_short_help = true)]
    pub max_dead: Option<Levels>,
    /// So many receivers there must be; the warning is the larger number
    #[arg(long, value_name = "WARN,CRIT", value_parser = least, requires = "check", help_heading = CHECK,
        hide_short_help = true)]
    pub min_receivers: Option<Levels>,
    #[command(flatten)]
    pub shared: Shared,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, hide_short_help = true, display_order = 999)]
    version: Option<bool>,
}

impl Args {
    /// How often to look.
    pub fn step(&self) -> Micros {
        self.interval.unwrap_or(Micros::from_secs(1))
    }

    /// The names and patterns; for a queue at an engine, what stands for its name.
    pub fn patterns(&self) -> Vec<QueuePattern> {
        self.queues.iter().map(Places::pattern).collect()
    }

    /// Whom to ask.
    pub fn peer(&self) -> Result<Peer, Failure> {
        let is_elsewhere = |queue: &&Places| matches!(queue, Places::Elsewhere(_));
        match (self.queues.as_slice(), self.queues.iter().find(is_elsewhere)) {
            ([Places::Elsewhere(url)], _) => Ok(Peer::Engine(url.clone())),
            (_, Some(url)) => {
                let text = format!("{url} lives at an engine, and is shown by itself");
                Err(Failure::new(Status::Usage, text)
                    .with_remedy("one view for each of the queues"))
            }
            (_, None) => self.shared.store().map(Peer::Store),
        }
    }

    /// What is judged.
    pub fn limits(&self) -> Limits {
        Limits {
            age: self.max_age,
            ready: self.max_ready,
            unacked: self.max_unacked,
            latency: self.max_latency,
            dead: self.max_dead,
            receivers: self.min_receivers,
        }
    }
}

fn interval(text: &str) -> Result<Micros, String> {
    let interval = cli::duration(text)?;
    if interval < limits::LOOK_MIN || interval > limits::LOOK_MAX {
        return Err("an interval lies between 100ms and 1h".to_owned());
    }
    Ok(interval)
}

fn history(text: &str) -> Result<Micros, String> {
    let long = cli::duration(text)?;
    let most = u64::from(limits::HISTORY_MINUTES) * 60_000_000;
    if long.0 == 0 || long.0 > most {
        let most = cli::duration_text(Micros(most));
        return Err(format!("the server's history goes back {most} at most"));
    }
    Ok(long)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number of messages"))
}

fn time(text: &str) -> Result<u64, String> {
    cli::duration(text).map(|duration| duration.0)
}

fn numbers(text: &str) -> Result<Levels, String> {
    check::levels(text, number, false)
}

fn times(text: &str) -> Result<Levels, String> {
    check::levels(text, time, false)
}

fn least(text: &str) -> Result<Levels, String> {
    check::levels(text, number, true)
}
