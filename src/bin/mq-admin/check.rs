//! `mq-admin check`: by the server, or by reading the files while no server holds them.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use mq::cli::{self, Failure, Outcome, Status};
use mq::client::{ClientError, Dialer, admin};
use mq::log::storage::Disk;
use mq::log::{self, CheckBound};
use mq::server::findings;
use mq::store::{StoreDir, StoreError};
use mq::units::{Bytes, Name};
use mq::wire::{Admin, CheckReport};

use crate::{Flags, TOOL, say};

/// Asks the server to check; without one the files are read here.
pub fn check(queue: Option<Name>, offline: bool, flags: &Flags) -> Outcome {
    let doing = match &queue {
        Some(queue) => format!("checking {queue}"),
        None => "checking the store".to_owned(),
    };
    let path = flags.shared.store()?;
    let dialer = Dialer::new(path.clone(), TOOL, false);
    let report = if offline {
        check_offline(&path, queue, flags)?
    } else {
        match dialer.reach(flags.patience()) {
            Ok(mut connection) => {
                // However long it takes: a large store takes minutes.
                let request = Admin::Check { queue };
                admin::call(&mut connection, request, flags.long_patience())
                    .map_err(|error| Failure::from(error).while_doing(&doing))?
            }
            Err(ClientError::NoServer { .. }) => check_offline(&path, queue, flags)?,
            Err(ClientError::Store(
                error @ (StoreError::NotWritable { .. } | StoreError::NotOurs { .. }),
            )) => {
                // No server of ours runs on it, but it can be read all the same: a backup, say.
                let remedy = format!("mq-admin --dir {} check --offline", path.display());
                return Err(Failure::from(error).while_doing(&doing).with_remedy(remedy));
            }
            Err(error) => return Err(Failure::from(error).while_doing(&doing)),
        }
    };
    tell_report(&report, flags)
}

/// Reads the files, while servers are kept away.
fn check_offline(path: &Path, queue: Option<Name>, flags: &Flags) -> Result<CheckReport, Failure> {
    let store = StoreDir::open_to_read(path)?;
    let Some(_lock) = store.keep_servers_away()? else {
        let failure = Failure::from(store.locked());
        return Err(failure.with_remedy("mq-admin check, which asks the server"));
    };
    let storage = Disk::to_read(path);
    let failed = |error: log::LogError| {
        Failure::new(Status::Failure, format!("checking {}: {error}", path.display()))
    };
    let mut names = log::list_queues(&storage).map_err(failed)?;
    if let Some(queue) = queue {
        if !names.contains(&queue) {
            let text = format!("checking {queue}: there is no such queue in {}", path.display());
            return Err(Failure::new(Status::Failure, text));
        }
        names = vec![queue];
    }
    let bar = progress(flags);
    let mut report = CheckReport::default();
    for name in names {
        let before = report.bytes;
        let mut on_bytes = |bytes: Bytes| bar.set_position(before + bytes.0);
        let checked = log::check(&storage, &name, CheckBound::All, &mut on_bytes);
        findings::add_to_report(&mut report, &name, checked);
    }
    bar.finish_and_clear();
    Ok(report)
}

/// Shows on a terminal how much has been read; hidden elsewhere.
fn progress(flags: &Flags) -> ProgressBar {
    if flags.shared.quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length();
    let template = "{spinner} {binary_bytes} checked, {binary_bytes_per_sec} {elapsed}";
    bar.set_style(ProgressStyle::with_template(template).expect("a template of ours"));
    bar
}

fn tell_report(report: &CheckReport, flags: &Flags) -> Outcome {
    if flags.json {
        cli::print_json(report)?;
    } else {
        let mut lines = String::new();
        for finding in &report.findings {
            let position = finding.position.map_or(String::new(), |at| format!(" at byte {at}"));
            let offset = finding.offset.map_or(String::new(), |at| format!(" (message {at})"));
            lines.push_str(&format!("{}{position}{offset}: {}\n", finding.file, finding.what));
        }
        cli::print(lines.as_bytes())?;
    }
    let CheckReport { queues, batches, messages, bytes, findings } = report;
    let read = format!("{queues} queues, {batches} batches, {messages} messages, {bytes} bytes");
    if findings.is_empty() {
        say(flags, &format!("all is well: {read}"));
        return Ok(Status::Done);
    }
    let text = format!("{} findings in {read}; nothing was changed", findings.len());
    Err(Failure::new(Status::Failure, text))
}
