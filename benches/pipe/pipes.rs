//! Pipes: a backlog through a filter into a queue, beside the filter between two files; and one
//! message alone.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::rig::{Rig, seconds};
use crate::table::{Goal, Table, median, micros, rate};

/// Of `cat FILE | cat > FILE2`, or of `dd` with a sync where that is slower.
const CAT_GOAL: f64 = 0.5;
/// See [`CAT_GOAL`].
const DD_GOAL: f64 = 0.8;

/// Of `grep 77 FILE > FILE2`.
const GREP_GOAL: f64 = 0.8;

/// What a second filter at once must bring on two cores.
const PARALLEL_GOAL: f64 = 1.7;

/// One message alone beyond the start of its filter, and through one that stays.
const ALONE_GOAL: Duration = Duration::from_millis(1);

/// Messages that go alone.
const ALONE: usize = 200;

/// `cat`, `grep`, `gzip -P2`, and single messages.
pub fn through_filters(rig: &mut Rig, table: &mut Table) {
    table.heading("pipes: a backlog through a filter, into a queue");
    let lines = rig.lines;
    let input = rig.input.clone();
    let output = rig.beside("output");
    let shell = |script: &str| {
        let status = Command::new("sh").args(["-c", script]).status();
        assert!(status.expect("there is a shell").success(), "{script}");
    };
    let (from, to) = (input.display(), output.display());
    let yardsticks = [
        format!("cat {from} | cat > {to}"),
        format!("dd if={from} of={to} bs=1M conv=fdatasync 2>/dev/null"),
        format!("grep 77 {from} > {to}"),
    ];
    let mut samples: [Vec<f64>; 7] = Default::default();
    let [mut cats, mut dds, mut greps, mut parallel]: [Vec<f64>; 4] = Default::default();
    for _ in 0..rig.pairs {
        let mut round = [0.0; 7];
        for (n, script) in yardsticks.iter().enumerate() {
            rig.settle_disk();
            round[n] = seconds(|| shell(script));
            std::fs::remove_file(&output).expect("the output");
        }
        let pipes: [(&[&str], &[&str]); 4] = [
            (&[], &["cat"]),
            (&["--ok", "0,1"], &["grep", "77"]),
            (&["--out", "whole"], &["gzip", "-c"]),
            (&["-P2", "--out", "whole"], &["gzip", "-c"]),
        ];
        for (n, (flags, filter)) in pipes.into_iter().enumerate() {
            // A tenth for what takes ten times as long.
            let part = if filter[0] == "gzip" { lines / 10 } else { lines };
            round[3 + n] = once(rig, &input, part, flags, filter);
        }
        cats.push(round[0] / round[3]);
        dds.push(round[1] / round[3]);
        greps.push(round[2] / round[4]);
        parallel.push(round[5] / round[6]);
        for (samples, sample) in samples.iter_mut().zip(round) {
            samples.push(sample);
        }
    }
    let figures: Vec<String> = samples
        .iter_mut()
        .enumerate()
        .map(|(n, samples)| rate(if n > 4 { lines / 10 } else { lines }, median(samples)))
        .collect();
    for (n, what) in ["cat FILE | cat > FILE2", "dd conv=fdatasync", "grep 77 FILE > FILE2"]
        .into_iter()
        .enumerate()
    {
        table.row(what, &figures[n], "", Goal::None);
    }
    let (cat, dd) = (median(&mut cats), median(&mut dds));
    let goal = Goal::Is(
        cat >= CAT_GOAL || dd >= DD_GOAL,
        format!("at least {CAT_GOAL} of cat, or {DD_GOAL} of dd"),
    );
    table.row(
        "mq-pipe -e a b -- cat",
        &figures[3],
        &format!("{cat:.2} of cat, {dd:.2} of dd"),
        goal,
    );
    let grep = median(&mut greps);
    let goal = Goal::Is(grep >= GREP_GOAL, format!("at least {GREP_GOAL}"));
    table.row("mq-pipe --ok 0,1 ... grep 77", &figures[4], &format!("{grep:.2} of grep"), goal);
    table.row("mq-pipe --out whole ... gzip -c", &figures[5], "", Goal::None);
    let gain = median(&mut parallel);
    let goal = Goal::Is(gain >= PARALLEL_GOAL, format!("at least {PARALLEL_GOAL}"));
    table.row("mq-pipe -P2 --out whole ... gzip", &figures[6], &format!("{gain:.2} of -P1"), goal);
    alone(rig, table);
}

/// A backlog of the first `lines` lines through a pipe: how long that takes.
fn once(rig: &mut Rig, input: &Path, lines: u64, flags: &[&str], filter: &[&str]) -> f64 {
    rig.declare("from", "always");
    rig.declare("to", "always");
    let mut head = Command::new("head");
    head.arg("-n").arg(lines.to_string()).arg(input).stdout(Stdio::piped());
    let mut head = head.spawn().expect("there is head");
    let sent =
        rig.tool("mq-send", &["-q", "from"]).stdin(head.stdout.take().expect("piped")).status();
    assert!(sent.expect("there is mq-send").success() && head.wait().expect("it ends").success());
    rig.settle_disk();
    let mut args = vec!["-q", "-e"];
    args.extend(flags);
    args.extend(["from", "to", "--"]);
    args.extend(filter);
    let mut pipe = rig.tool("mq-pipe", &args);
    let took = seconds(|| {
        let status = pipe.stdin(Stdio::null()).status().expect("there is mq-pipe");
        assert!(status.success(), "mq-pipe ended with {status}");
    });
    rig.remove("from");
    rig.remove("to");
    took
}

/// One message after the other, each alone.
fn alone(rig: &mut Rig, table: &mut Table) {
    let mut starts = Vec::with_capacity(ALONE);
    for _ in 0..ALONE {
        starts.push(seconds(|| {
            let status = Command::new("cat").stdin(Stdio::null()).status();
            assert!(status.expect("there is cat").success());
        }));
    }
    let start = median(&mut starts);
    table.row("the start of cat", &micros(start * 1e6), "", Goal::None);
    let fresh = median(&mut each_alone(rig, &[], &["cat"]));
    let beyond = fresh - start;
    let goal = Goal::Is(beyond < ALONE_GOAL.as_secs_f64(), "start + 1 ms at most".to_owned());
    let relation = format!("start + {}", micros(beyond * 1e6));
    table.row("one message through cat", &micros(fresh * 1e6), &relation, goal);
    let stay = median(&mut each_alone(rig, &["--stay"], &["sed", "-u", "s/a/b/"]));
    let goal = Goal::Is(stay < ALONE_GOAL.as_secs_f64(), "under 1 ms".to_owned());
    table.row("one message, --stay", &micros(stay * 1e6), "", goal);
}

fn each_alone(rig: &mut Rig, flags: &[&str], filter: &[&str]) -> Vec<f64> {
    rig.declare("from", "always");
    rig.declare("to", "always");
    let mut args = vec!["-q"];
    args.extend(flags);
    args.extend(["from", "to", "--"]);
    args.extend(filter);
    let mut pipe = rig.tool("mq-pipe", &args).stdin(Stdio::null()).spawn().expect("mq-pipe");
    let mut sender = rig
        .tool("mq-send", &["from"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("mq-send");
    let mut receiver =
        rig.tool("mq-recv", &["to"]).stdout(Stdio::piped()).spawn().expect("mq-recv");
    let mut stdin = sender.stdin.take().expect("piped");
    let mut lines = BufReader::new(receiver.stdout.take().expect("piped")).lines();
    let mut samples = Vec::with_capacity(ALONE);
    for n in 0..=ALONE {
        let began = Instant::now();
        stdin.write_all(b"a line that goes alone\n").expect("mq-send takes it");
        lines.next().expect("a line").expect("readable");
        // The first one finds everything still starting.
        if n > 0 {
            samples.push(began.elapsed().as_secs_f64());
        }
    }
    drop(stdin);
    for child in [&mut pipe, &mut receiver] {
        child.kill().expect("it runs");
    }
    for mut child in [pipe, sender, receiver] {
        child.wait().expect("it ends");
    }
    rig.remove("from");
    rig.remove("to");
    samples
}
