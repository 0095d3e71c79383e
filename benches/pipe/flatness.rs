//! Whether a message costs the same whatever else there is: messages waiting, other queues,
//! idle connections.

use std::path::Path;

use crate::rig::{Pipeline, Rig, cat, seconds};
use crate::table::{Goal, Table, median, rate};
use crate::throughput::receiver;

const REPEATS: usize = 3;

/// How much dearer the dearest of a group may be than the cheapest and still count as flat on a
/// machine with other things to do.
const FLAT_FACTOR: f64 = 1.5;

/// All three groups.
pub fn cost_per_message(rig: &mut Rig, table: &mut Table) {
    let lines = (rig.lines / 10).max(1000);
    let part = rig.file_of("part", lines);
    table.heading(&format!(
        "cost of a message (never): {lines} lines sent and received at once, beside ..."
    ));
    rig.restart_server();
    waiting(rig, table, &part, lines);
    queues(rig, table, &part, lines);
    connections(rig, table, &part, lines);
}

fn waiting(rig: &Rig, table: &mut Table, part: &Path, lines: u64) {
    rig.declare("flat", "never");
    let mut filled = 0;
    let mut costs = Vec::new();
    for backlog in [1000, 10_000, 100_000, 1_000_000, 10_000_000] {
        if backlog > rig.lines {
            break;
        }
        let missing = rig.file_of("missing", backlog - filled);
        Pipeline::start([cat(Some(&missing)), rig.tool("mq-send", &["flat"])]).wait();
        filled = backlog;
        costs.push(measure(rig, table, &format!("{backlog} waiting"), "flat", part, lines));
        assert_eq!(rig.show("flat").ready.0, backlog, "the backlog stays as it was");
    }
    rig.remove("flat");
    verdict(table, "messages waiting", &costs);
}

fn queues(rig: &Rig, table: &mut Table, part: &Path, lines: u64) {
    rig.declare("busy", "never");
    let mut costs = Vec::new();
    let mut others = 0;
    for total in [1, 10, 100, 1000] {
        for number in others..total - 1 {
            rig.declare(&format!("other-{number}"), "never");
        }
        others = total - 1;
        costs.push(measure(rig, table, &format!("{total} queues"), "busy", part, lines));
    }
    verdict(table, "queues", &costs);
    (0..others).for_each(|number| rig.remove(&format!("other-{number}")));
    rig.remove("busy");
}

fn connections(rig: &Rig, table: &mut Table, part: &Path, lines: u64) {
    rig.declare("busy", "never");
    let mut costs = Vec::new();
    let mut idle = Vec::new();
    for total in [0, 10, 100, 1000] {
        idle.resize_with(total, || rig.connect());
        let what = format!("{total} idle connections");
        costs.push(measure(rig, table, &what, "busy", part, lines));
    }
    verdict(table, "idle connections", &costs);
    rig.remove("busy");
}

/// Sends and receives `lines` at once; returns the nanoseconds that a message took, and prints
/// them with those that the server worked on it.
fn measure(rig: &Rig, table: &mut Table, what: &str, queue: &str, part: &Path, lines: u64) -> f64 {
    let mut samples = Vec::new();
    rig.settle_disk();
    let before = rig.server_cpu_nanos();
    for _ in 0..REPEATS {
        samples.push(seconds(|| {
            let receive = receiver(rig, queue, lines);
            Pipeline::start([cat(Some(part)), rig.tool("mq-send", &[queue])]).wait();
            receive.wait();
        }));
    }
    let server = (rig.server_cpu_nanos() - before) as f64 / (lines * REPEATS as u64) as f64;
    let middle = median(&mut samples);
    let nanos = middle * 1e9 / lines as f64;
    let relation = format!("{nanos:.0} ns, server {server:.0} ns");
    table.row(&format!("... {what}"), &rate(lines, middle), &relation, Goal::None);
    nanos
}

fn verdict(table: &mut Table, what: &str, costs: &[f64]) {
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let most = costs.iter().copied().fold(0.0, f64::max);
    let goal = Goal::Is(most <= least * FLAT_FACTOR, format!("at most {FLAT_FACTOR:.2}"));
    let what = format!("dearest beside cheapest: {what}");
    table.row(&what, &format!("{:.2}", most / least), "", goal);
}
