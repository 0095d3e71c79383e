//! Lines a second: both tools at once beside `cat | cat` and `dd`, and each tool alone.

use std::process::Command;

use crate::rig::{Pipeline, Rig, cat, seconds};
use crate::table::{Goal, Table, median, rate};

/// `cat FILE | mq-send q` while `mq-recv -n N q | cat`, under both policies, each measured
/// alternately with its yardsticks, so that a slow minute of the machine hits all alike.
pub fn together(rig: &mut Rig, table: &mut Table) {
    rig.declare("never", "never");
    rig.declare("always", "always");
    let mut samples = [const { Vec::new() }; 4];
    for _ in 0..rig.pairs {
        rig.settle_disk();
        samples[0].push(cat_cat(rig));
        samples[1].push(disk_copy(rig));
        for (at, queue) in [(2, "never"), (3, "always")] {
            rig.settle_disk();
            samples[at].push(both_at_once(rig, queue));
            rig.assert_settled(queue);
        }
    }
    report_together(rig, table, &samples);
    rig.remove("never");
    rig.remove("always");
}

fn report_together(rig: &Rig, table: &mut Table, samples: &[Vec<f64>; 4]) {
    let ratio = |at: usize| {
        let pairs = samples[0].iter().zip(&samples[at]);
        median(&mut pairs.map(|(cat, own)| cat / own).collect::<Vec<_>>())
    };
    let middle = |at: usize| median(&mut samples[at].clone());
    let line = |at: usize| (rate(rig.lines, middle(at)), format!("{:.2} of cat | cat", ratio(at)));
    table.heading("throughput, both ends at once, queue empty and settled afterwards");
    for (at, what) in [(0, "cat FILE | cat"), (1, "dd conv=fdatasync")] {
        let (figure, relation) = line(at);
        table.row(what, &figure, &relation, Goal::None);
    }
    let (figure, relation) = line(2);
    let goal = Goal::Is(ratio(2) >= 0.8, "at least 0.80".to_owned());
    table.row("mq-send and mq-recv, never", &figure, &relation, goal);
    // A disk that is slower than the pipe sets its own goal.
    let bar = (0.8 * ratio(1)).min(0.6);
    let (figure, relation) = line(3);
    let goal = Goal::Is(ratio(3) >= bar, format!("at least {bar:.2}"));
    table.row("mq-send and mq-recv, always", &figure, &relation, goal);
}

fn cat_cat(rig: &Rig) -> f64 {
    seconds(|| Pipeline::start([cat(Some(&rig.input)), cat(None)]).wait())
}

fn disk_copy(rig: &Rig) -> f64 {
    let copy = rig.beside("copy");
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", rig.input.display())).arg(format!("of={}", copy.display()));
    dd.args(["bs=1M", "conv=fdatasync", "status=none"]);
    let taken = seconds(|| Pipeline::start([dd]).wait());
    std::fs::remove_file(copy).expect("dd made it");
    taken
}

fn both_at_once(rig: &Rig, queue: &str) -> f64 {
    seconds(|| {
        let receive = receiver(rig, queue, rig.lines);
        let send = Pipeline::start([cat(Some(&rig.input)), rig.tool("mq-send", &[queue])]);
        send.wait();
        receive.wait();
    })
}

/// `mq-recv -n N q | cat >/dev/null`, started.
pub fn receiver(rig: &Rig, queue: &str, lines: u64) -> Pipeline {
    Pipeline::start([rig.tool("mq-recv", &["-n", &lines.to_string(), queue]), cat(None)])
}

/// Filling a queue that nobody reads, then draining it with nobody writing.
pub fn alone(rig: &mut Rig, table: &mut Table) {
    table.heading("throughput, one end at a time");
    for policy in ["never", "always"] {
        rig.declare("alone", policy);
        let (mut cats, mut sends, mut drains) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rig.pairs {
            rig.settle_disk();
            cats.push(cat_cat(rig));
            sends.push(seconds(|| {
                Pipeline::start([cat(Some(&rig.input)), rig.tool("mq-send", &["alone"])]).wait();
            }));
            rig.settle_disk();
            drains.push(seconds(|| receiver(rig, "alone", rig.lines).wait()));
            rig.assert_settled("alone");
        }
        let base = median(&mut cats);
        for (what, samples) in [("send alone", &mut sends), ("drain alone", &mut drains)] {
            let middle = median(samples);
            let relation = format!("{:.2} of cat | cat", base / middle);
            let what = format!("{what}, {policy}");
            table.row(&what, &rate(rig.lines, middle), &relation, Goal::None);
        }
        rig.remove("alone");
    }
}
