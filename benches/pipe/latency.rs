//! How long one line takes: through both tools, and as a process of its own; beside one
//! fdatasync of an idle disk, which is part of each durable line.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::rig::{LINE_BYTES, Rig};
use crate::table::{Goal, Table, median, micros, quantile};

const LINES: usize = 3000;
const LINES_PACED: usize = 300;
const RUNS: usize = 300;
const WARM_UP_RUNS: usize = 20;

/// The goal for a line through both tools, without a sync.
const LINE_GOAL_MICROS: f64 = 100.0;
/// The goals for a whole `mq-send -m`, without the sync.
const ONE_SHOT_GOAL_MICROS: f64 = 2000.0;
const ONE_SHOT_CPU_GOAL_MICROS: f64 = 1000.0;

/// One line in, the same line out, then the next: both policies.
pub fn line_by_line(rig: &mut Rig, table: &mut Table) {
    table.heading("one line at a time, into mq-send's stdin and out of mq-recv's stdout");
    let sync = idle_sync_micros(rig);
    for (policy, goal) in [("never", LINE_GOAL_MICROS), ("always", LINE_GOAL_MICROS + sync)] {
        rig.declare("line", policy);
        rig.settle_disk();
        let mut samples = lines_through(rig, "line", LINES, Duration::ZERO);
        let (p50, p99) = (median(&mut samples), quantile(&mut samples, 0.99));
        let verdict = Goal::Is(p50 <= goal, format!("p50 at most {}", micros(goal)));
        let tail = |p99: f64| format!("p99 {}", micros(p99));
        table.row(&format!("back to back, {policy}: p50"), &micros(p50), &tail(p99), verdict);
        let mut paced = lines_through(rig, "line", LINES_PACED, Duration::from_millis(5));
        let (p50, p99) = (median(&mut paced), quantile(&mut paced, 0.99));
        let what = format!("one every 5 ms, {policy}: p50");
        table.row(&what, &micros(p50), &tail(p99), Goal::None);
        rig.remove("line");
    }
    table.row("one fdatasync when idle: p50", &micros(sync), "", Goal::None);
}

/// Sends `count` lines one by one, each `pause` after the one before has arrived; returns how
/// many microseconds each was under way. The first hundred are not counted.
fn lines_through(rig: &Rig, queue: &str, count: usize, pause: Duration) -> Vec<f64> {
    let mut receiver = rig.spawn("mq-recv", &[queue]);
    let mut sender = rig.spawn("mq-send", &[queue]);
    let mut stdin = sender.take_stdin();
    let mut stdout = receiver.take_stdout();
    let mut line = [b'x'; LINE_BYTES as usize];
    line[LINE_BYTES as usize - 1] = b'\n';
    let warm_up = if pause.is_zero() { 100 } else { 10 };
    let mut samples = Vec::with_capacity(count);
    for number in 0..count + warm_up {
        std::thread::sleep(pause);
        let start = Instant::now();
        stdin.write_all(&line).expect("mq-send reads");
        let mut back = [0u8; LINE_BYTES as usize];
        stdout.read_exact(&mut back).expect("mq-recv writes");
        if number >= warm_up {
            samples.push(start.elapsed().as_secs_f64() * 1e6);
        }
        assert_eq!(back, line);
    }
    drop(stdin);
    sender.finish().ok();
    // A receiver waits for ever; a signal ends it in an orderly way.
    receiver.signal(rustix::process::Signal::TERM);
    drop(stdout);
    receiver.await_end();
    rig.assert_settled(queue);
    samples
}

/// The median time of one small write and its fdatasync on a disk that does nothing else, in
/// microseconds: in space reserved ahead, as the log does it.
pub fn idle_sync_micros(rig: &Rig) -> f64 {
    use rustix::fs::{FallocateFlags, fallocate};
    use std::os::unix::fs::FileExt;
    let path = rig.beside("sync");
    let file = File::create(&path).expect("room for a file");
    let _ = fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20);
    rig.settle_disk();
    let mut samples = Vec::new();
    for number in 0..200u64 {
        std::thread::sleep(Duration::from_millis(2));
        let start = Instant::now();
        file.write_all_at(&[b'x'; 164], number * 164).expect("room for a file");
        file.sync_data().expect("the disk syncs");
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    std::fs::remove_file(path).expect("own file");
    median(&mut samples)
}

/// `mq-send q -m x` as a whole process with the server running, durable.
pub fn one_shot(rig: &mut Rig, table: &mut Table) {
    table.heading("mq-send q -m x as a whole process, server running, always");
    let sync = idle_sync_micros(rig);
    rig.declare("shot", "always");
    let (mut nothing, nothing_cpu) = processes(|| Command::new("true"));
    let (mut wall, cpu) = processes(|| rig.tool("mq-send", &["shot", "-m", "x"]));
    let (p50, p99) = (median(&mut wall), quantile(&mut wall, 0.99));
    let goal = ONE_SHOT_GOAL_MICROS + sync;
    let verdict = Goal::Is(p50 <= goal, format!("at most {}", micros(goal)));
    table.row("wall time: p50", &micros(p50), &format!("p99 {}", micros(p99)), verdict);
    let verdict = Goal::Is(
        cpu <= ONE_SHOT_CPU_GOAL_MICROS,
        format!("at most {}", micros(ONE_SHOT_CPU_GOAL_MICROS)),
    );
    table.row("processor time: mean", &micros(cpu), "", verdict);
    let relation = format!("processor {}", micros(nothing_cpu));
    table.row("beside it, true: p50", &micros(median(&mut nothing)), &relation, Goal::None);
    table.row("beside it, one fdatasync when idle: p50", &micros(sync), "", Goal::None);
    assert_eq!(
        rig.show("shot").ready.0,
        (RUNS + WARM_UP_RUNS) as u64,
        "each run stored one message"
    );
    rig.remove("shot");
}

/// Wall times of single runs and the mean processor time, in microseconds.
fn processes(command: impl Fn() -> Command) -> (Vec<f64>, f64) {
    let run = || {
        let start = Instant::now();
        let status = command().stdin(Stdio::null()).stdout(Stdio::null()).status();
        assert!(status.expect("it can be run").success());
        start.elapsed().as_secs_f64() * 1e6
    };
    (0..WARM_UP_RUNS).for_each(|_| {
        run();
    });
    let before = children_cpu_micros();
    let wall = (0..RUNS).map(|_| run()).collect();
    (wall, (children_cpu_micros() - before) / RUNS as f64)
}

/// The processor time of all children that were waited for. The kernel keeps it exactly and
/// tells it in ticks, so it is only good for the sum over many.
fn children_cpu_micros() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("own process");
    let (_, behind_name) = stat.rsplit_once(") ").expect("a name in parentheses");
    // Fields 16 and 17 of the line; the name was the second.
    let ticks: f64 = behind_name
        .split(' ')
        .skip(13)
        .take(2)
        .map(|field| field.parse::<f64>().expect("a number"))
        .sum();
    ticks * 1e6 / rustix::param::clock_ticks_per_second() as f64
}
