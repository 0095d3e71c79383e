//! What a check of the log found, as it is told to a client: shared by the server's own check
//! and by `mq-admin check --offline`.

use crate::log::{LogError, Report};
use crate::units::Name;
use crate::wire::{CheckReport, Finding};

/// Adds what was found in one queue. A queue that cannot be read at all is a finding too.
pub fn add_to_report(report: &mut CheckReport, queue: &Name, checked: Result<Report, LogError>) {
    report.queues += 1;
    match checked {
        Ok(found) => {
            report.batches += found.batches.0;
            report.messages += found.messages.0;
            report.bytes += found.bytes.0;
            report.findings.extend(found.findings.into_iter().map(|finding| Finding {
                queue: queue.to_string(),
                file: finding.damage.file.display().to_string(),
                position: finding.damage.position.map(|position| position.0),
                offset: finding.damage.offset,
                what: finding.damage.what,
            }));
        }
        Err(error) => report.findings.push(unreadable(queue, &error.to_string())),
    }
}

/// A queue that stands still as a whole.
#[must_use]
pub fn unreadable(queue: &Name, why: &str) -> Finding {
    Finding {
        queue: queue.to_string(),
        file: format!("queues/{queue}"),
        position: None,
        offset: None,
        what: why.to_owned(),
    }
}
