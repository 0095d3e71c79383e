//! `mq-admin`: what is done to queues and groups besides sending and receiving.

mod check;
mod declare;
mod groups;
mod json;
mod settle;

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand};
use mq::cli::{self, Failure, Outcome, Shared, Signals, Slow, Status};
use mq::client::admin::{self, Stopped};
use mq::client::place::{Peer, Place};
use mq::client::wait::Patience;
use mq::client::{ClientError, Connection, Dialer};
use mq::limits;
use mq::store::StoreDir;
use mq::units::{Count, Micros, Name};
use mq::url::Url;
use mq::wire::{Admin, ErrorCode, QueueInfo, Settlement};

const TOOL: &str = "mq-admin";

/// A queue that does not exist yet is asked for this often.
const WAIT_STEP: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "
Examples:
  mq-admin ls                              the queues and what is in them
  mq-admin wait jobs -w 1h && echo done    until nothing is ready or leased
  mq-admin declare --max-messages 1000 jobs
                                           senders wait while it is full
  mq-admin requeue jobs.dead               try what has failed again
  mq-admin ack RECEIPT                     settle what mq-recv --lease printed
  mq-admin group add jobs audit            one more reader, which sees all
";

/// Look after the queues of a store.
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    about = "Look after queues, their groups and their dead letters",
    before_long_help = EXAMPLES,
    max_term_width = 80,
    disable_version_flag = true,
    disable_help_subcommand = true,
    help_template = "{about}\n{usage-heading} {usage}\n{before-help}{all-args}{after-help}"
)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    flags: Flags,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, hide_short_help = true, display_order = 999)]
    version: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a queue; fine if it exists with the same settings
    Declare(declare::Declare),
    /// List the queues
    Ls {
        /// A queue that lives at an engine, rather than those of the store
        #[arg(value_name = "URL", value_parser = listed)]
        url: Option<Url>,
        /// Also receivers, senders, groups, sync policy, age
        #[arg(short, long)]
        long: bool,
    },
    /// Show everything about a queue
    Show {
        /// The queue, or its URL
        #[arg(value_parser = cli::place)]
        queue: Place,
    },
    /// Settle all messages that are ready, in every group
    Purge {
        /// The queue, or its URL
        #[arg(value_parser = cli::place)]
        queue: Place,
    },
    /// Remove a queue with all that is in it
    Rm {
        /// The queue, or its URL
        #[arg(value_parser = cli::place)]
        queue: Place,
    },
    /// Move dead letters back home, for the group that failed them
    Requeue {
        /// The queue of dead letters, such as jobs.dead
        #[arg(value_parser = cli::queue_name)]
        queue: Name,
        /// At most so many, the oldest [default: all that are ready]
        #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// To this queue and all its groups, rather than home
        #[arg(long, value_name = "QUEUE", value_parser = cli::queue_name)]
        to: Option<Name>,
        /// Only those whose reason holds this text
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Settle leased messages: they are done
    Ack(settle::Receipts),
    /// Settle leased messages: they failed; ready again after a pause
    Nack(settle::Receipts),
    /// Have leased messages end their leases later
    Extend {
        /// So long from now, unless they end later anyway
        #[arg(long = "for", value_name = "DUR", value_parser = settle::lease)]
        until: Micros,
        #[command(flatten)]
        receipts: settle::Receipts,
    },
    /// The groups of a queue: ls, add, rm, seek
    #[command(subcommand)]
    Group(groups::Verb),
    /// Verify every checksum and position; 1 if something is wrong
    Check {
        /// Only this queue
        #[arg(value_parser = cli::queue_name)]
        queue: Option<Name>,
        /// Read the files without a server, which must not run
        #[arg(long)]
        offline: bool,
    },
    /// Wait until nothing is ready or leased in a queue
    Wait {
        /// The queue; waited for when it is not there
        #[arg(value_parser = cli::queue_name)]
        queue: Name,
    },
    /// Stop the server in order, and wait until it has ended
    Stop,
}

#[derive(Clone, Debug, ClapArgs)]
struct Flags {
    /// Print JSON, one object a line
    #[arg(short = 'J', long, global = true)]
    json: bool,
    /// Wait no longer than this [default: 30s; wait: for ever]
    #[arg(short, long, value_name = "DUR", global = true, value_parser = cli::duration)]
    wait: Option<Micros>,
    #[command(flatten)]
    shared: Shared,
}

fn main() -> ExitCode {
    match cli::parse::<Args>() {
        Ok(args) => cli::finish(TOOL, run(args.verb, &args.flags)),
        Err(code) => code,
    }
}

fn run(verb: Verb, flags: &Flags) -> Outcome {
    match verb {
        Verb::Declare(declare) => declare.run(flags),
        Verb::Ls { url, long } => list(url, long, flags),
        Verb::Show { queue } => show(&queue, flags),
        Verb::Purge { queue } => purge(&queue, flags),
        Verb::Rm { queue } => remove(&queue, flags),
        Verb::Requeue { queue, count, to, reason } => {
            let count = count.map(Count);
            requeue(Admin::Requeue { queue: queue.clone(), count, to, reason }, queue, flags)
        }
        Verb::Ack(receipts) => receipts.settle(Settlement::Ack, flags),
        Verb::Nack(receipts) => receipts.settle(Settlement::Nack, flags),
        Verb::Extend { until, receipts } => receipts.settle(Settlement::Extend(until), flags),
        Verb::Group(verb) => groups::run(verb, flags),
        Verb::Check { queue, offline } => check::check(queue, offline, flags),
        Verb::Wait { queue } => wait_for_quiet(&queue, flags),
        Verb::Stop => stop(flags),
    }
}

impl Flags {
    /// As long as a server may take to answer.
    fn patience(&self) -> Patience<'static> {
        let wait = self.wait.unwrap_or(limits::SERVER_WAIT);
        Patience::lasting(wait.to_duration(), None)
    }

    /// The same for what may take however long it needs.
    fn long_patience(&self) -> Patience<'static> {
        match self.wait {
            Some(_) => self.patience(),
            None => Patience { until: None, interrupt: None },
        }
    }
}

/// Reads the URL of what is to be listed, for clap.
fn listed(text: &str) -> Result<Url, String> {
    if !Url::is_one(text) {
        let why = "ls lists all queues of the store, or with a URL what is at an engine";
        return Err(format!("{why}; of one queue, {TOOL} show QUEUE tells"));
    }
    engine(text)
}

/// Reads a URL, for clap.
fn engine(text: &str) -> Result<Url, String> {
    match cli::place(text)? {
        Place::Elsewhere(url) => Ok(url),
        Place::Here(_) => Err("it is no URL; mq-remote(1) shows what one looks like".to_owned()),
    }
}

/// Reaches the server that runs.
fn reach(flags: &Flags, doing: &str) -> Result<Connection, Failure> {
    reach_peer(Peer::Store(flags.shared.store()?), flags, doing)
}

/// Reaches the server that runs, or the engine.
fn reach_peer(peer: Peer, flags: &Flags, doing: &str) -> Result<Connection, Failure> {
    let is_store = matches!(peer, Peer::Store(_));
    let dialer = Dialer::to(peer, TOOL, false).quiet(flags.shared.quiet);
    let _slow = if is_store { Some(watch(flags)?) } else { None };
    dialer.reach(flags.patience()).map_err(|error| Failure::from(error).while_doing(doing))
}

/// A server that is stopped or stuck is waited for in silence no longer than a moment.
fn watch(flags: &Flags) -> Result<Slow, Failure> {
    let (path, flags) = (flags.shared.store()?, flags.clone());
    Ok(Slow::watch(move || {
        let pid = StoreDir::open(&path, false).ok().and_then(|store| store.server_pid());
        let process = pid.map_or(String::new(), |pid| format!(" (process {pid})"));
        say(&flags, &format!("the server{process} does not answer yet; waiting for it"));
    }))
}

/// The same where a helper may be behind the connection, which tells by itself what it waits for.
fn watch_peer(connection: &Connection, flags: &Flags) -> Result<Option<Slow>, Failure> {
    (!connection.is_to_engine()).then(|| watch(flags)).transpose()
}

/// One request to the server that runs.
fn ask<T: serde::de::DeserializeOwned>(
    request: Admin,
    patience: Patience<'_>,
    flags: &Flags,
    doing: &str,
) -> Result<T, Failure> {
    let mut connection = reach(flags, doing)?;
    let _slow = watch(flags)?;
    admin::call(&mut connection, request, patience)
        .map_err(|error| Failure::from(error).while_doing(doing))
}

/// One request about a queue, wherever it lives.
fn ask_about<T: serde::de::DeserializeOwned>(
    place: &Place,
    request: Admin,
    flags: &Flags,
    doing: &str,
) -> Result<T, Failure> {
    let ask = |peer| {
        let mut connection = reach_peer(peer, flags, doing)?;
        let _slow = watch_peer(&connection, flags)?;
        let patience = connection.patience(flags.patience());
        Ok::<_, Failure>(admin::call(&mut connection, request.clone(), patience))
    };
    let mut asked = ask(place.peer(|| flags.shared.store())?)?;
    if let Some(url) = asked.as_ref().err().and_then(ClientError::elsewhere) {
        asked = ask(Peer::Engine(url.clone()))?;
    }
    asked.map_err(|error| Failure::from(error).while_doing(doing))
}

fn say(flags: &Flags, text: &str) {
    if !flags.shared.quiet {
        // A stderr that is closed changes nothing.
        let _ = std::io::stderr().write_all(format!("{TOOL}: {text}\n").as_bytes());
    }
}

fn list(url: Option<Url>, long: bool, flags: &Flags) -> Outcome {
    let doing = "listing queues";
    let mut connection = match url {
        Some(url) => reach_peer(Peer::Engine(url), flags, doing)?,
        None => reach(flags, doing)?,
    };
    let slow = watch_peer(&connection, flags)?;
    let patience = connection.patience(flags.patience());
    let queues = admin::list(&mut connection, patience)
        .map_err(|error| Failure::from(error).while_doing(doing))?;
    drop(slow);
    if flags.json {
        json::print_queues(&queues)?;
    } else if !queues.is_empty() {
        let bold = flags.shared.color.for_stdout();
        cli::print(cli::queue_table(&queues, long, bold).as_bytes())?;
    } else if flags.shared.verbose {
        say(flags, "there is no queue");
    }
    Ok(Status::Done)
}

fn show(place: &Place, flags: &Flags) -> Outcome {
    let doing = format!("showing {place}");
    let info: QueueInfo = ask_about(place, Admin::Show { queue: place.name() }, flags, &doing)?;
    if flags.json {
        json::print_queues([&info])?;
    } else {
        cli::print(cli::queue_page(&info).as_bytes())?;
    }
    Ok(Status::Done)
}

fn purge(place: &Place, flags: &Flags) -> Outcome {
    let doing = format!("purging {place}");
    // Not every engine says how many there were.
    let queue = place.name();
    let purged: Option<Count> =
        ask_about(place, Admin::Purge { queue: queue.clone() }, flags, &doing)?;
    if flags.json {
        cli::print_json(&serde_json::json!({ "queue": queue, "purged": purged }))?;
    } else if flags.shared.verbose {
        let count = purged.map_or_else(|| "all".to_owned(), |purged| purged.to_string());
        say(flags, &format!("{count} messages of {place} are gone"));
    }
    Ok(Status::Done)
}

fn remove(place: &Place, flags: &Flags) -> Outcome {
    let doing = format!("removing {place}");
    let () = ask_about(place, Admin::Remove { queue: place.name() }, flags, &doing)?;
    if flags.shared.verbose {
        say(flags, &format!("queue {place} is removed"));
    }
    Ok(Status::Done)
}

fn requeue(request: Admin, queue: Name, flags: &Flags) -> Outcome {
    let doing = format!("requeueing from {queue}");
    // However long it takes: each message is stored before it is gone here.
    let patience = flags.long_patience();
    let requeued: Count = ask(request, patience, flags, &doing)?;
    if flags.json {
        cli::print_json(&serde_json::json!({ "queue": queue, "requeued": requeued }))?;
    } else if flags.shared.verbose {
        say(flags, &format!("{requeued} messages of {queue} are requeued"));
    }
    Ok(Status::Done)
}

/// Waits until the queue is quiet. A server and a queue that are not there yet are waited for: a
/// sender that was started at the same moment may be about to make them.
fn wait_for_quiet(queue: &Name, flags: &Flags) -> Outcome {
    let doing = format!("waiting for {queue}");
    let began = Instant::now();
    let until = flags.wait.and_then(|wait| began.checked_add(wait.to_duration()));
    let patience = Patience { until, interrupt: None };
    let mut dialer = Dialer::new(flags.shared.store()?, TOOL, false);
    let (mut told, mut told_of_server) = (false, false);
    loop {
        let for_server = if until.is_some() { patience } else { flags.patience() };
        let reached = match dialer.reach(for_server) {
            Err(ClientError::NoServer { .. }) => {
                if !std::mem::replace(&mut told_of_server, true) {
                    let store = dialer.store().display();
                    let text =
                        format!("no mq-serve runs on the store {store} yet; waiting for one");
                    say(flags, &text);
                }
                dialer.redial(true, for_server)
            }
            reached => reached,
        };
        let mut connection = reached.map_err(|error| Failure::from(error).while_doing(&doing))?;
        let request = Admin::Wait { queue: queue.clone() };
        match admin::call::<()>(&mut connection, request, patience) {
            Ok(()) => return Ok(Status::Done),
            Err(ClientError::Silent { .. }) if patience.is_over() => {}
            Err(error) if error.is_lost() => {}
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {
                if !told {
                    say(flags, &format!("there is no queue {queue} yet; waiting for it"));
                }
                told = true;
                patience
                    .sleep(WAIT_STEP)
                    .map_err(|error| Failure::from(error).while_doing(&doing))?;
            }
            Err(error) => return Err(Failure::from(error).while_doing(&doing)),
        }
        if patience.is_over() {
            return Ok(Status::WaitedInVain);
        }
    }
}

fn stop(flags: &Flags) -> Outcome {
    let path = flags.shared.store()?;
    let signals = Signals::watch().ok();
    let wait = flags.wait.unwrap_or(limits::SERVER_WAIT).to_duration();
    let patience = Patience::lasting(wait, signals.as_ref().map(AsFd::as_fd));
    let shown = path.display();
    let _slow = watch(flags)?;
    match admin::stop(&path, patience) {
        Ok(Stopped::Ended) => {}
        Ok(Stopped::NoServer) => say(flags, &format!("no mq-serve runs on the store {shown}")),
        Ok(Stopped::Deaf(pid)) => {
            let text = format!("an mq-serve holds the store {shown} and does not listen there");
            return Err(with_kill(Failure::new(Status::NoServer, text), pid));
        }
        Ok(Stopped::Still(pid)) => {
            let text = format!("the mq-serve on the store {shown} has not ended yet");
            return Err(with_kill(Failure::new(Status::WaitedInVain, text), pid));
        }
        Err(ClientError::Interrupted) => {
            let signal = signals.and_then(|mut signals| signals.take());
            return Ok(signal.map_or(Status::Failure, Status::Signal));
        }
        Err(error) => return Err(Failure::from(error).while_doing("stopping the server")),
    }
    Ok(Status::Done)
}

fn with_kill(failure: Failure, pid: Option<u32>) -> Failure {
    match pid {
        Some(pid) => failure.with_remedy(format!("kill {pid}")),
        None => failure,
    }
}
