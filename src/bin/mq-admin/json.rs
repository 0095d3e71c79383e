//! Queues as JSON: what the server says, and beside its times, which count microseconds, the same as
//! RFC 3339, as times stand in all other JSON of the tools.

use mq::cli::{self, Failure};
use mq::units::WallTime;
use mq::wire::QueueInfo;
use serde::Serialize;

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    info: &'a QueueInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_at: Option<String>,
}

/// Prints queues, each on a line.
pub fn print_queues<'a>(queues: impl IntoIterator<Item = &'a QueueInfo>) -> Result<(), Failure> {
    let lines: Vec<u8> = queues
        .into_iter()
        .flat_map(|info| {
            // Not every engine says when a queue was made.
            let created = Some(info.created).filter(|created| *created > WallTime(0));
            cli::json_line(&Shown {
                info,
                created_at: created.map(cli::rfc3339_millis),
                oldest_at: info.oldest_time.map(cli::rfc3339_millis),
            })
        })
        .collect();
    cli::print(&lines)
}
