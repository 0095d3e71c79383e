//! Queues and groups as people read them: a table of all, a page about one.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::measures::{duration_text, human_age};
use super::output::human_bytes;
use crate::settings::{Overflow, Retention, Settings};
use crate::units::{Count, Micros, Name, WallTime};
use crate::wire::stat::Counted;
use crate::wire::{GroupInfo, PipeFigures, PipeInfo, QueueInfo};

/// A time as RFC 3339, in UTC, to the second.
#[must_use]
pub fn rfc3339(time: WallTime) -> String {
    i64::try_from(time.0 / 1_000_000)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| "?".to_owned(), |time| time.to_string())
}

/// A time as RFC 3339, in UTC, to the millisecond: as it stands in JSON.
#[must_use]
pub fn rfc3339_millis(time: WallTime) -> String {
    i64::try_from(time.0)
        .ok()
        .and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok())
        .map_or_else(|| "?".to_owned(), |time| format!("{time:.3}"))
}

/// One column: its head, and its cells from the top.
struct Column {
    head: &'static str,
    cells: Vec<String>,
}

/// Numbers first, aligned right, and the names last, so that long ones disturb no column.
fn table(columns: &[Column], last: &Column, bold_head: bool) -> String {
    let widths: Vec<usize> = columns
        .iter()
        .map(|c| c.cells.iter().map(String::len).chain([c.head.len()]).max().unwrap_or(0))
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| -> String {
        cells.zip(&widths).map(|(cell, width)| format!("{cell:>width$}  ")).collect()
    };
    let title = format!("{}{}", line(&mut columns.iter().map(|c| c.head)), last.head);
    let mut table =
        if bold_head { format!("\x1b[1m{title}\x1b[0m\n") } else { format!("{title}\n") };
    for (n, name) in last.cells.iter().enumerate() {
        table.push_str(&line(&mut columns.iter().map(|c| c.cells[n].as_str())));
        table.push_str(name);
        table.push('\n');
    }
    table
}

/// A column of counts that is left out when all are zero.
fn if_any<T>(
    head: &'static str,
    rows: &[T],
    count: impl Fn(&T) -> Count,
) -> impl Iterator<Item = Column> {
    let is_needed = rows.iter().any(|row| count(row).0 > 0);
    let cells = || rows.iter().map(|row| count(row).to_string()).collect();
    is_needed.then(|| Column { head, cells: cells() }).into_iter()
}

/// A value, or a dash if it is not known.
fn known(unknown: &[String], field: &str, value: String) -> String {
    if unknown.iter().any(|name| name == field) { "-".to_owned() } else { value }
}

/// The queues as a table.
#[must_use]
pub fn queue_table(queues: &[QueueInfo], long: bool, bold_head: bool) -> String {
    let column = |head, cell: &dyn Fn(&QueueInfo) -> String| Column {
        head,
        cells: queues.iter().map(cell).collect(),
    };
    let of_queue =
        |info: &QueueInfo, field: &str, value: String| known(&info.unknown, field, value);
    let of_groups = |info: &QueueInfo, count: fn(&GroupInfo) -> Count| {
        Count(info.groups.iter().map(|group| count(group).0).sum())
    };
    let mut columns = vec![
        column("READY", &|info| of_queue(info, "ready", info.ready.to_string())),
        column("UNACKED", &|info| of_queue(info, "unacked", info.unacked.to_string())),
    ];
    columns.extend(if_any("DELAYED", queues, |info| info.delayed));
    columns.extend(if_any("RESTING", queues, |info| of_groups(info, |group| group.resting)));
    columns.extend(if_any("DEAD", queues, |info| of_groups(info, |group| group.dead)));
    columns.extend(if_any("DROPPED", queues, |info| info.dropped));
    columns.extend(if_any("EXPIRED", queues, |info| info.expired));
    columns.push(column("SIZE", &|info| of_queue(info, "bytes", human_bytes(info.bytes))));
    let now = wall_now();
    let held_by_another =
        queues.iter().filter_map(|info| info.oldest_group.as_ref()).any(|g| *g != Name::default());
    if long || held_by_another {
        let dash = || "-".to_owned();
        columns.push(column("OLDEST", &|info| {
            info.oldest_time.map_or_else(dash, |time| human_age(age(time, now)))
        }));
        columns.push(column("HELD-BY", &|info| {
            info.oldest_group.as_ref().map_or_else(dash, ToString::to_string)
        }));
    }
    if long {
        columns
            .push(column("RECV", &|info| of_queue(info, "receivers", info.receivers.to_string())));
        columns.push(column("SEND", &|info| of_queue(info, "senders", info.senders.to_string())));
        columns.push(column("GROUPS", &|info| info.groups.len().to_string()));
        columns
            .push(column("SYNC", &|info| of_queue(info, "sync", info.settings.sync.to_string())));
        columns.push(column("AGE", &|info| {
            of_queue(info, "created", human_age(age(info.created, now)))
        }));
    }
    let names = column("QUEUE", &|info| {
        let what = if info.trouble.is_some() {
            "  stands still, see show".to_owned()
        } else if info.groups.iter().any(|group| group.stuck) {
            "  a group is stuck, see show".to_owned()
        } else {
            info.settings.at.as_ref().map_or_else(String::new, |url| format!("  at {url}"))
        };
        format!("{}{what}", info.queue)
    });
    table(&columns, &names, bold_head)
}

/// The groups of a queue as a table.
#[must_use]
pub fn group_table(groups: &[GroupInfo], bold_head: bool) -> String {
    let column = |head, cell: &dyn Fn(&GroupInfo) -> String| Column {
        head,
        cells: groups.iter().map(cell).collect(),
    };
    let mut columns = vec![
        column("READY", &|group| group.ready.to_string()),
        column("UNACKED", &|group| group.unacked.to_string()),
    ];
    columns.extend(if_any("RESTING", groups, |group| group.resting));
    columns.extend(if_any("DEAD", groups, |group| group.dead));
    columns.push(column("RECV", &|group| group.receivers.to_string()));
    columns.push(column("OLDEST", &|group| {
        group.oldest.map_or_else(|| "-".to_owned(), |offset| offset.to_string())
    }));
    let names = column("GROUP", &|group| {
        format!("{}{}", group.group, if group.stuck { "  stuck, see show" } else { "" })
    });
    table(&columns, &names, bold_head)
}

fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(since.as_micros() as u64)
}

fn age(time: WallTime, now: WallTime) -> Micros {
    Micros(now.0.saturating_sub(time.0))
}

/// The settings of a queue as names and values, those of `declare`; all but the sync policy only
/// where they are not the default.
fn settings_pairs(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut pairs = vec![("sync", settings.sync.to_string())];
    if settings.retain != Retention::default() {
        pairs.push(("retain", settings.retain.to_string()));
    }
    if let Some(age) = settings.max_age {
        pairs.push(("max-age", duration_text(age)));
    }
    if let Some(bytes) = settings.max_bytes {
        pairs.push(("max-bytes", bytes.to_string()));
    }
    if let Some(messages) = settings.max_messages {
        pairs.push(("max-messages", messages.to_string()));
    }
    if settings.overflow != Overflow::default() {
        pairs.push(("overflow", settings.overflow.to_string()));
    }
    if let Some(limit) = settings.delivery_limit {
        pairs.push(("delivery-limit", limit.to_string()));
    }
    if let Some(queue) = &settings.dead_letter {
        pairs.push(("dead-letter", queue.to_string()));
    }
    if let Some(window) = settings.unique_ids {
        pairs.push(("unique-ids", window.to_string()));
    }
    if let Some(keys) = settings.unique_keys {
        pairs.push(("unique-keys", keys.to_string()));
    }
    if let Some(url) = &settings.at {
        pairs.push(("at", url.to_string()));
    }
    pairs
}

/// The settings of a queue as the flags of `declare` that make it so.
#[must_use]
pub fn settings_flags(settings: &Settings) -> Vec<String> {
    let pairs = settings_pairs(settings);
    pairs.into_iter().map(|(name, value)| format!("--{name} {value}")).collect()
}

/// Everything about one queue.
#[must_use]
pub fn queue_page(info: &QueueInfo) -> String {
    let mut page = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        writeln!(page, "{name:<14} {value}").expect("a string takes all");
    };
    line("queue", &info.queue);
    if let Some(trouble) = &info.trouble {
        line("trouble", trouble);
    }
    let mut fact = |name: &str, value: &dyn std::fmt::Display| {
        line(name, &known(&info.unknown, name, value.to_string()));
    };
    fact("id", &info.id);
    fact("created", &rfc3339(info.created));
    for (name, value) in settings_pairs(&info.settings) {
        fact(name, &value);
    }
    fact("ready", &info.ready);
    fact("unacked", &info.unacked);
    for (name, count) in
        [("delayed", info.delayed), ("dropped", info.dropped), ("expired", info.expired)]
    {
        if count.0 > 0 {
            line(name, &count);
        }
    }
    if let Some(time) = info.oldest_time {
        let mut oldest = format!("{} ({})", rfc3339(time), human_age(age(time, wall_now())));
        if let Some(group) = &info.oldest_group {
            write!(oldest, ", held by the group {group}").expect("a string takes all");
        }
        line("oldest", &oldest);
    }
    let mut fact = |name: &str, value: &dyn std::fmt::Display| {
        line(name, &known(&info.unknown, name, value.to_string()));
    };
    fact("end", &info.end);
    fact("bytes", &info.bytes);
    fact("segments", &info.segments);
    fact("receivers", &info.receivers);
    fact("senders", &info.senders);
    if !info.unknown.iter().any(|name| name == "counted") {
        line("saved", &about_saved(&info.counted));
    }
    for group in &info.groups {
        line("group", &about_group(group));
        if !group.unknown.iter().any(|name| name == "account") {
            line("account", &about_account(group));
        }
    }
    for pipe in &info.pipes {
        line("pipe", &about_pipe(pipe));
    }
    page
}

fn about_pipe(pipe: &PipeInfo) -> String {
    let PipeFigures { batches, read, written, retries, dead, filter_us, .. } = pipe.figures;
    let PipeFigures { open_windows, late, untimed, .. } = pipe.figures;
    let lag =
        pipe.lag.map_or_else(|| "its source is not there".to_owned(), |lag| format!("lag {lag}"));
    let mut about = format!(
        "{} from {}: {lag}, {batches} batches, {read} read, {written} written, {} s in the filter",
        pipe.name,
        pipe.src,
        (filter_us.to_duration().as_secs_f64() * 10.0).round() / 10.0,
    );
    for (count, what) in [
        (retries, "failures"),
        (dead, "dead"),
        (open_windows, "open windows"),
        (late, "late"),
        (untimed, "without a time"),
    ] {
        if count > 0 {
            write!(about, ", {count} {what}").expect("a string takes all");
        }
    }
    about
}

/// Of all messages that were announced, how many are stored, and what became of the others.
fn about_saved(counted: &Counted) -> String {
    let mut about = format!("{} of {} announced", counted.stored, counted.announced);
    let others = [(counted.there_already, "were there already"), (counted.refused, "were refused")];
    for (count, what) in others {
        if count.0 > 0 {
            write!(about, ", {count} {what}").expect("a string takes all");
        }
    }
    about
}

/// What became of the messages of a group, as a sum.
fn about_account(group: &GroupInfo) -> String {
    let account = &group.account;
    let here = Count(group.ready.0 + group.unacked.0 + group.resting.0);
    let mut about = format!("{}: {} stored = {} acked", group.group, account.stored, account.acked);
    let others = [
        (account.dead, "dead"),
        (account.expired, "expired"),
        (account.dropped, "dropped"),
        (account.purged, "purged"),
        (account.lost, "lost"),
    ];
    for (count, what) in others {
        if count.0 > 0 {
            write!(about, " + {count} {what}").expect("a string takes all");
        }
    }
    write!(about, " + {here} here").expect("a string takes all");
    about
}

fn about_group(group: &GroupInfo) -> String {
    let of_group = |field: &str, count: u64| known(&group.unknown, field, count.to_string());
    let mut about = format!(
        "{}: {} ready, {} unacked, {} receivers, {} settled ranges",
        group.group,
        of_group("ready", group.ready.0),
        of_group("unacked", group.unacked.0),
        of_group("receivers", group.receivers),
        of_group("settled_ranges", group.settled_ranges)
    );
    for (count, what) in [(group.resting, "resting"), (group.dead, "dead")] {
        if count.0 > 0 {
            write!(about, ", {count} {what}").expect("a string takes all");
        }
    }
    if let Some(oldest) = group.oldest {
        write!(about, ", oldest at {oldest}").expect("a string takes all");
    }
    if group.stuck {
        about.push_str(", STUCK: too many messages are settled out of order");
    }
    about
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stat::Account;

    fn queue(name: &str) -> QueueInfo {
        QueueInfo { queue: Name::new(name).expect("a name"), ..QueueInfo::default() }
    }

    #[test]
    fn columns_without_a_count_are_left_out() {
        let plain = queue_table(&[queue("a"), queue("b")], false, false);
        assert_eq!(plain.lines().next(), Some("READY  UNACKED  SIZE  QUEUE"));
        let group = GroupInfo { dead: Count(3), resting: Count(2), ..GroupInfo::default() };
        let audit = Name::new("audit").expect("a name");
        let info = QueueInfo {
            delayed: Count(7),
            oldest_time: Some(wall_now()),
            oldest_group: Some(audit),
            groups: vec![group],
            ..queue("a")
        };
        let full = queue_table(&[info, queue("b")], false, false);
        let lines: Vec<Vec<&str>> =
            full.lines().map(|line| line.split_whitespace().collect()).collect();
        let head = [
            "READY", "UNACKED", "DELAYED", "RESTING", "DEAD", "SIZE", "OLDEST", "HELD-BY", "QUEUE",
        ];
        assert_eq!(lines[0], head);
        assert_eq!(lines[1], ["0", "0", "7", "2", "3", "0", "0s", "audit", "a"]);
        assert_eq!(lines[2], ["0", "0", "0", "0", "0", "0", "-", "-", "b"]);
    }

    #[test]
    fn what_became_of_messages_is_shown_as_a_sum() {
        let n = Count;
        let account =
            Account { stored: n(9), acked: n(4), dead: n(1), lost: n(1), ..Account::default() };
        let group = GroupInfo { ready: n(1), resting: n(2), account, ..GroupInfo::default() };
        assert_eq!(about_account(&group), "default: 9 stored = 4 acked + 1 dead + 1 lost + 3 here");
        let counted =
            Counted { announced: n(12), stored: n(9), refused: n(3), ..Counted::default() };
        assert_eq!(about_saved(&counted), "9 of 12 announced, 3 were refused");
    }

    #[test]
    fn settings_are_shown_as_the_flags_that_make_them() {
        let settings = Settings {
            retain: Retention::Log,
            max_age: Some(Micros::from_secs(5_400)),
            overflow: Overflow::Reject,
            delivery_limit: Some(0),
            unique_ids: "1000".parse().ok(),
            ..Settings::default()
        };
        assert_eq!(
            settings_flags(&settings).join(" "),
            "--sync always --retain log --max-age 1h30m --overflow reject --delivery-limit 0 \
             --unique-ids 1000"
        );
        assert_eq!(settings_flags(&Settings::default()), ["--sync always"]);
    }
}
