//! `mq-admin group`: the groups of a queue.

use clap::Subcommand;
use mq::cli::{self, Outcome, Status};
use mq::settings::Start;
use mq::units::Name;
use mq::wire::{Admin, GroupInfo, QueueInfo};

use crate::{Flags, ask, say};

/// What is done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the groups of a queue
    Ls {
        /// The queue
        #[arg(value_parser = cli::queue_name)]
        queue: Name,
    },
    /// Make a group, which sees every message from some place on
    Add {
        /// The queue
        #[arg(value_parser = cli::queue_name)]
        queue: Name,
        /// The group
        #[arg(value_parser = cli::group_name)]
        group: Name,
        /// Where it begins: oldest, newest, an offset, a time, or -N for the last N
        #[arg(
            long,
            value_name = "WHERE",
            value_parser = cli::start,
            default_value = "oldest",
            allow_hyphen_values = true
        )]
        from: Start,
    },
    /// Remove a group: nothing is kept for it any more
    Rm {
        /// The queue
        #[arg(value_parser = cli::queue_name)]
        queue: Name,
        /// The group
        #[arg(value_parser = cli::group_name)]
        group: Name,
    },
    /// Set a group without receivers to another place, such as back to the oldest
    Seek {
        /// The queue
        #[arg(value_parser = cli::queue_name)]
        queue: Name,
        /// The group
        #[arg(value_parser = cli::group_name)]
        group: Name,
        /// Where to: oldest, newest, an offset, a time, or -N for the last N
        #[arg(long, value_name = "WHERE", value_parser = cli::start, allow_hyphen_values = true)]
        to: Start,
    },
}

/// Does it.
pub fn run(verb: Verb, flags: &Flags) -> Outcome {
    match verb {
        Verb::Ls { queue } => list(queue, flags),
        Verb::Add { queue, group, from } => {
            let doing = format!("adding the group {group} to {queue}");
            let done = format!("group {group} of {queue} is there");
            place(
                Admin::AddGroup { queue: queue.clone(), group, from },
                &queue,
                &doing,
                &done,
                flags,
            )
        }
        Verb::Rm { queue, group } => {
            let doing = format!("removing the group {group} from {queue}");
            let done = format!("group {group} of {queue} is removed");
            let () = ask(Admin::RemoveGroup { queue, group }, flags.patience(), flags, &doing)?;
            if flags.shared.verbose {
                say(flags, &done);
            }
            Ok(Status::Done)
        }
        Verb::Seek { queue, group, to } => {
            let doing = format!("seeking the group {group} of {queue}");
            let done = format!("group {group} of {queue} is set");
            place(
                Admin::SeekGroup { queue: queue.clone(), group, to },
                &queue,
                &doing,
                &done,
                flags,
            )
        }
    }
}

fn list(queue: Name, flags: &Flags) -> Outcome {
    let doing = format!("listing the groups of {queue}");
    let info: QueueInfo = ask(Admin::Show { queue }, flags.patience(), flags, &doing)?;
    if flags.json {
        cli::print(&info.groups.iter().flat_map(cli::json_line).collect::<Vec<u8>>())?;
    } else if !info.groups.is_empty() {
        cli::print(cli::group_table(&info.groups, flags.shared.color.for_stdout()).as_bytes())?;
    } else if flags.shared.verbose {
        say(flags, &format!("queue {} has no group", info.queue));
    }
    Ok(Status::Done)
}

/// A request that sets a group to a place.
fn place(request: Admin, queue: &Name, doing: &str, done: &str, flags: &Flags) -> Outcome {
    let info: GroupInfo = ask(request, flags.patience(), flags, doing)?;
    if info.passed.0 > 0 {
        say(flags, &cli::passed_over(queue, info.passed));
    }
    if flags.json {
        cli::print_json(&info)?;
    } else if flags.shared.verbose {
        say(flags, &format!("{done}, with {} messages ready", info.ready));
    }
    Ok(Status::Done)
}
