//! `mq-admin declare`: makes a queue, or changes its settings.

use clap::Args;
use mq::cli::{self, Failure, Outcome, Status};
use mq::client::{Dialer, admin};
use mq::settings::{IdWindow, Overflow, Retention, Wanted};
use mq::units::{Micros, Name, SyncPolicy};
use mq::url::Url;
use mq::wire::{Admin, QueueInfo};

use crate::{Flags, TOOL, json, say};

const SYNC_LONG: &str = "When to sync: always (the default), interval=DUR or never";
const RETAIN_LONG: &str = "What becomes of settled messages: acked (the default) lets them go, log \
                           keeps them for replay, within the limits";

const LIMITS: &str = "Limits (0: none)";
const KEEPING: &str = "What is kept";
const FAILURES: &str = "Messages that fail";
const ONCE: &str = "Each message once";
const ELSEWHERE: &str = "Elsewhere";

/// What `declare` is given. What is not given stays as it is, or is the default.
#[derive(Debug, Args)]
pub struct Declare {
    /// The queue
    #[arg(value_parser = cli::queue_name)]
    queue: Name,
    /// Change the settings of a queue that exists
    #[arg(long)]
    change: bool,
    /// When to sync: always, interval=DUR or never
    #[arg(long, long_help = SYNC_LONG, value_name = "WHEN", value_parser = cli::sync_policy, help_heading = KEEPING)]
    sync: Option<SyncPolicy>,
    /// With log: keep settled messages for replay
    #[arg(long, long_help = RETAIN_LONG, value_name = "acked|log", help_heading = KEEPING)]
    retain: Option<Retention>,
    /// With --retain log: how old messages get
    #[arg(long, value_name = "DUR", value_parser = cli::duration, hide_short_help = true, help_heading = LIMITS)]
    max_age: Option<Micros>,
    /// Bytes of messages that the queue holds, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = cli::size, help_heading = LIMITS)]
    max_bytes: Option<u64>,
    /// Messages that the queue holds
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    max_messages: Option<u64>,
    /// At a limit: senders wait (block, the default), are refused (reject), or
    /// the oldest messages go (drop-oldest)
    #[arg(long, value_name = "block|reject|drop-oldest", hide_short_help = true, help_heading = LIMITS)]
    overflow: Option<Overflow>,
    /// Attempts after which a message is a dead letter [default: 20]; 0: never
    #[arg(long, value_name = "N", hide_short_help = true, help_heading = FAILURES)]
    delivery_limit: Option<u32>,
    /// Where dead letters go [default: QUEUE.dead], and then also messages that
    /// expired or were dropped
    #[arg(long, value_name = "QUEUE", value_parser = cli::queue_name, hide_short_help = true, help_heading = FAILURES)]
    dead_letter: Option<Name>,
    /// Store one message of an id, among the last N or within a time
    #[arg(long, value_name = "N|DUR", hide_short_help = true, help_heading = ONCE)]
    unique_ids: Option<IdWindow>,
    /// Know of N keys whether one is pending: mq-send --unless-pending
    #[arg(long, value_name = "N", hide_short_help = true, help_heading = ONCE)]
    unique_keys: Option<u64>,
    /// The queue lives at this engine, and clients go there; only of one that
    /// is new, or empty (then with --change)
    #[arg(long, value_name = "URL", value_parser = crate::engine, hide_short_help = true, help_heading = ELSEWHERE)]
    at: Option<Url>,
}

impl Declare {
    /// Declares the queue; starts a server if there is none.
    pub fn run(self, flags: &Flags) -> Outcome {
        let Declare { queue, change, .. } = self;
        let doing = format!("declaring {queue}");
        let wanted = Wanted {
            sync: self.sync,
            retain: self.retain,
            max_age: self.max_age,
            max_bytes: self.max_bytes,
            max_messages: self.max_messages,
            overflow: self.overflow,
            delivery_limit: self.delivery_limit,
            dead_letter: self.dead_letter,
            unique_ids: self.unique_ids,
            unique_keys: self.unique_keys,
            at: self.at,
        };
        let fail = |error| Failure::from(error).while_doing(&doing);
        let mut dialer = Dialer::new(flags.shared.store()?, TOOL, true);
        let mut connection = dialer.dial(flags.patience()).map_err(fail)?;
        let request = Admin::Declare { queue, wanted, change };
        let info: QueueInfo =
            admin::call(&mut connection, request, flags.patience()).map_err(fail)?;
        if flags.json {
            json::print_queues([&info])?;
        } else if flags.shared.verbose {
            let flags_text = cli::settings_flags(&info.settings).join(" ");
            say(flags, &format!("queue {} is there, {flags_text}", info.queue));
        }
        Ok(Status::Done)
    }
}
