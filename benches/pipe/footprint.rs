//! What the server needs: memory through the life of a large backlog, and time to come back.

use crate::rig::{Pipeline, Rig, cat};
use crate::table::{Goal, Table, mebibytes};
use crate::throughput::receiver;

const MEMORY_GOAL: u64 = 32 << 20;
const CONNECTIONS: usize = 1000;
const CONNECTIONS_MEMORY_GOAL: u64 = 64 << 20;
const READY_GOAL_MILLIS: f64 = 300.0;

/// Fill, kill -9, restart, drain; then idle connections.
pub fn memory_and_restart(rig: &mut Rig, table: &mut Table) {
    table.heading("the server: memory (VmHWM) and return after kill -9");
    rig.restart_server();
    rig.declare("backlog", "always");
    Pipeline::start([cat(Some(&rig.input)), rig.tool("mq-send", &["backlog"])]).wait();
    let filled = rig.server_memory_peak();
    rig.kill_server();
    let ready = rig.start_server_for(Some("backlog")) * 1e3;
    assert_eq!(rig.show("backlog").ready.0, rig.lines, "the whole backlog came back");
    receiver(rig, "backlog", rig.lines).wait();
    rig.assert_settled("backlog");
    let drained = rig.server_memory_peak();
    for (what, peak) in [("after the fill", filled), ("after restart and drain", drained)] {
        let goal = Goal::Is(peak <= MEMORY_GOAL, format!("at most {}", mebibytes(MEMORY_GOAL)));
        table.row(&format!("memory {what}"), &mebibytes(peak), "", goal);
    }
    let goal = Goal::Is(ready <= READY_GOAL_MILLIS, format!("at most {READY_GOAL_MILLIS:.0} ms"));
    table.row("ready again after kill -9, same boot", &format!("{ready:.0} ms"), "", goal);
    let peers: Vec<_> = (0..CONNECTIONS).map(|_| rig.connect()).collect();
    let peak = rig.server_memory_peak();
    drop(peers);
    let goal = Goal::Is(
        peak <= CONNECTIONS_MEMORY_GOAL,
        format!("at most {}", mebibytes(CONNECTIONS_MEMORY_GOAL)),
    );
    let what = format!("memory with {CONNECTIONS} idle connections");
    table.row(&what, &mebibytes(peak), "", goal);
    rig.remove("backlog");
}
