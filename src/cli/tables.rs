//! Queues as people read them: a table of all, a page about one.

use std::fmt::Write;

use super::output::human_bytes;
use crate::units::WallTime;
use crate::wire::QueueInfo;

/// A time as RFC 3339, in UTC, to the second.
#[must_use]
pub fn rfc3339(time: WallTime) -> String {
    i64::try_from(time.0 / 1_000_000)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| "?".to_owned(), |time| time.to_string())
}

/// The queues as a table: numbers first, so that long names disturb no column.
#[must_use]
pub fn queue_table(queues: &[QueueInfo], long: bool, bold_head: bool) -> String {
    let mut head = vec!["READY", "UNACKED", "SIZE"];
    if long {
        head.extend(["RECV", "SEND", "GROUPS", "SYNC", "CREATED"]);
    }
    let rows: Vec<Vec<String>> = queues.iter().map(|info| row(info, long)).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|n| rows.iter().map(|row| row[n].len()).chain([head[n].len()]).max().unwrap_or(0))
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| -> String {
        cells.zip(&widths).map(|(cell, width)| format!("{cell:>width$}  ")).collect()
    };
    let title = format!("{}QUEUE", line(&mut head.iter().copied()));
    let mut table =
        if bold_head { format!("\x1b[1m{title}\x1b[0m\n") } else { format!("{title}\n") };
    for (row, info) in rows.iter().zip(queues) {
        table.push_str(&line(&mut row.iter().map(String::as_str)));
        table.push_str(info.queue.as_str());
        if info.trouble.is_some() {
            table.push_str("  stands still, see show");
        } else if info.groups.iter().any(|group| group.stuck) {
            table.push_str("  a group is stuck, see show");
        }
        table.push('\n');
    }
    table
}

fn row(info: &QueueInfo, long: bool) -> Vec<String> {
    let mut row = vec![info.ready.to_string(), info.unacked.to_string(), human_bytes(info.bytes)];
    if long {
        row.extend([
            info.receivers.to_string(),
            info.senders.to_string(),
            info.groups.len().to_string(),
            info.settings.sync.to_string(),
            rfc3339(info.created),
        ]);
    }
    row
}

/// Everything about one queue.
#[must_use]
pub fn queue_page(info: &QueueInfo) -> String {
    let mut page = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        writeln!(page, "{name:<10} {value}").expect("a string takes all");
    };
    line("queue", &info.queue);
    if let Some(trouble) = &info.trouble {
        line("trouble", trouble);
    }
    line("id", &info.id);
    line("created", &rfc3339(info.created));
    line("sync", &info.settings.sync);
    line("ready", &info.ready);
    line("unacked", &info.unacked);
    line("end", &info.end);
    line("bytes", &info.bytes);
    line("segments", &info.segments);
    line("receivers", &info.receivers);
    line("senders", &info.senders);
    for group in &info.groups {
        let mut about = format!(
            "{}: {} ready, {} unacked, {} receivers, {} settled ranges",
            group.group, group.ready, group.unacked, group.receivers, group.settled_ranges
        );
        if let Some(oldest) = group.oldest {
            write!(about, ", oldest at {oldest}").expect("a string takes all");
        }
        if group.stuck {
            about.push_str(", STUCK: too many messages are settled out of order");
        }
        line("group", &about);
    }
    page
}
