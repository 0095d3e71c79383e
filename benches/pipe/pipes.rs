//! Pipes: a backlog through a filter into a queue, beside the filter between two files; and one
//! message alone.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
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

/// `gzip`, which takes ten times as long, gets one line in so many.
const GZIP_PART: u64 = 10;

/// Messages that go alone.
const ALONE: usize = 200;

/// What each took in one round, in seconds.
struct Round {
    cat: f64,
    dd: f64,
    grep: f64,
    piped_grep: f64,
    gzip: f64,
    two_gzips: f64,
    through_cat: f64,
    through_grep: f64,
    through_gzip: f64,
    through_two_gzips: f64,
}

impl Round {
    fn measure(rig: &mut Rig, halves: &[PathBuf; 2]) -> Round {
        let (input, output) = (rig.input.clone(), rig.beside("output"));
        let (from, to) = (input.display(), output.display());
        let [first, second] = halves.each_ref().map(|half| half.display());
        let (lines, part) = (rig.lines, rig.lines / GZIP_PART);
        let shell = |script: &str| {
            rig.settle_disk();
            let took = seconds(|| {
                let status = Command::new("sh").args(["-c", script]).status();
                assert!(status.expect("there is a shell").success(), "{script}");
            });
            std::fs::remove_file(&output).expect("the output");
            took
        };
        Round {
            cat: shell(&format!("cat {from} | cat > {to}")),
            dd: shell(&format!("dd if={from} of={to} bs=1M conv=fdatasync 2>/dev/null")),
            grep: shell(&format!("grep 77 {from} > {to}")),
            piped_grep: shell(&format!("cat {from} | grep 77 > {to}")),
            gzip: shell(&format!("gzip -c {first} > {to}; gzip -c {second} >/dev/null")),
            two_gzips: shell(&format!(
                "gzip -c {first} > {to} & gzip -c {second} >/dev/null; wait"
            )),
            through_cat: once(rig, &input, lines, &[], &["cat"]),
            through_grep: once(rig, &input, lines, &["--ok", "0,1"], &["grep", "77"]),
            through_gzip: once(rig, &input, part, &["--out", "whole"], &["gzip", "-c"]),
            through_two_gzips: once(rig, &input, part, &["-P2", "--out", "whole"], &["gzip", "-c"]),
        }
    }
}

/// `cat`, `grep`, `gzip -P2`, and single messages.
pub fn through_filters(rig: &mut Rig, table: &mut Table) {
    table.heading("pipes: a backlog through a filter, into a queue");
    let (lines, part) = (rig.lines, rig.lines / GZIP_PART);
    let halves = ["first", "second"].map(|name| rig.file_of(name, part / 2));
    let rounds: Vec<Round> = (0..rig.pairs).map(|_| Round::measure(rig, &halves)).collect();
    for half in halves {
        std::fs::remove_file(half).expect("a half");
    }
    let of = |what: fn(&Round) -> f64| median(&mut rounds.iter().map(what).collect::<Vec<_>>());
    let all = |what: fn(&Round) -> f64| rate(lines, of(what));
    let tenth = |what: fn(&Round) -> f64| rate(part, of(what));

    table.row("cat FILE | cat > FILE2", &all(|round| round.cat), "", Goal::None);
    table.row("dd conv=fdatasync", &all(|round| round.dd), "", Goal::None);
    let (cat, dd) =
        (of(|round| round.cat / round.through_cat), of(|round| round.dd / round.through_cat));
    let goal = Goal::Is(
        cat >= CAT_GOAL || dd >= DD_GOAL,
        format!("at least {CAT_GOAL} of cat, or {DD_GOAL} of dd"),
    );
    let relation = format!("{cat:.2} of cat, {dd:.2} of dd");
    table.row("mq-pipe -e a b -- cat", &all(|round| round.through_cat), &relation, goal);

    table.row("grep 77 FILE > FILE2", &all(|round| round.grep), "", Goal::None);
    table.row("cat FILE | grep 77 > FILE2", &all(|round| round.piped_grep), "", Goal::None);
    let grep = of(|round| round.grep / round.through_grep);
    let piped = of(|round| round.piped_grep / round.through_grep);
    let goal = Goal::Is(grep >= GREP_GOAL, format!("at least {GREP_GOAL}"));
    let relation = format!("{grep:.2} of grep, {piped:.2} of cat | grep");
    table.row("mq-pipe --ok 0,1 ... grep 77", &all(|round| round.through_grep), &relation, goal);

    let ideal = of(|round| round.gzip / round.two_gzips);
    table.row("gzip, one half after the other", &tenth(|round| round.gzip), "", Goal::None);
    let relation = format!("{ideal:.2} of that");
    table.row("gzip, both at once", &tenth(|round| round.two_gzips), &relation, Goal::None);
    let one = tenth(|round| round.through_gzip);
    table.row("mq-pipe --out whole ... gzip -c", &one, "", Goal::None);
    let gain = of(|round| round.through_gzip / round.through_two_gzips);
    let goal = Goal::Is(gain >= PARALLEL_GOAL, format!("at least {PARALLEL_GOAL}"));
    let two = tenth(|round| round.through_two_gzips);
    let relation = format!("{gain:.2} of -P1");
    table.row("mq-pipe -P2 --out whole ... gzip", &two, &relation, goal);
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
