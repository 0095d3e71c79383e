//! Commands: what it costs to run one for each message, beside `xargs -n1`.

use std::fs::File;
use std::process::{Command, Stdio};

use mq::client::command::{Job, Outcome, Pool, Spec};
use mq::client::piece::Slice;
use mq::units::Monotonic;
use rustix::event::{PollFd, PollFlags};

use crate::rig::{Rig, seconds};
use crate::table::{Goal, Table, median, rate};

/// Messages of a sample, each a line of its own: a few seconds of processes.
const MESSAGES: u64 = 2000;

/// A queue of which every message is a command must not be slower than the shell's own means.
const XARGS_GOAL: f64 = 1.0;

/// What a second command at once must bring on two cores.
const PARALLEL_GOAL: f64 = 1.7;

/// `xargs -n1 true`, the pool alone, `mq-recv -- true`, `mq-recv -P2 -- true`.
pub fn one_each(rig: &mut Rig, table: &mut Table) {
    table.heading("commands: `true` for each message");
    let input = rig.file_of("numbers", MESSAGES);
    rig.declare("commands", "always");
    let mut samples: [Vec<f64>; 4] = Default::default();
    let [mut pool_ratios, mut ratios, mut parallel_ratios]: [Vec<f64>; 3] = Default::default();
    for _ in 0..rig.pairs {
        let mut round = [0.0; 4];
        round[0] = seconds(|| {
            let input = File::open(&input).expect("the input");
            let status = Command::new("xargs").args(["-n1", "true"]).stdin(input).status();
            assert!(status.expect("there is xargs").success());
        });
        round[1] = seconds(pool_alone);
        for (at, parallel) in [(2, "1"), (3, "2")] {
            let sent = rig.tool("mq-send", &["-q", "commands"]).stdin(open(&input)).status();
            assert!(sent.expect("there is mq-send").success());
            rig.settle_disk();
            let mut receiver =
                rig.tool("mq-recv", &["-e", "-P", parallel, "commands", "--", "true"]);
            round[at] = seconds(|| {
                let status = receiver.stdin(Stdio::null()).status().expect("there is mq-recv");
                assert!(status.success(), "mq-recv ended with {status}");
            });
            rig.assert_settled("commands");
        }
        for (samples, sample) in samples.iter_mut().zip(round) {
            samples.push(sample);
        }
        pool_ratios.push(round[0] / round[1]);
        ratios.push(round[0] / round[2]);
        parallel_ratios.push(round[2] / round[3]);
    }
    let figures = samples.each_mut().map(|samples| rate(MESSAGES, median(samples)));
    let row = |table: &mut Table, what, figure: &str, ratio: f64, of: &str, goal: Option<f64>| {
        let goal =
            goal.map_or(Goal::None, |goal| Goal::Is(ratio >= goal, format!("at least {goal:.1}")));
        table.row(what, figure, &format!("{ratio:.2} of {of}"), goal);
    };
    table.row("seq N | xargs -n1 true", &figures[0], "", Goal::None);
    let ratio = median(&mut pool_ratios);
    row(table, "the process pool alone", &figures[1], ratio, "xargs", None);
    let ratio = median(&mut ratios);
    row(table, "mq-recv -e q -- true", &figures[2], ratio, "xargs", Some(XARGS_GOAL));
    let ratio = median(&mut parallel_ratios);
    row(table, "mq-recv -e -P2 q -- true", &figures[3], ratio, "-P1", Some(PARALLEL_GOAL));
    rig.remove("commands");
}

fn open(path: &std::path::Path) -> File {
    File::open(path).expect("the input")
}

/// The pool without a queue: what of a message's time is the process.
fn pool_alone() {
    let spec = Spec { argv: vec!["true".into()], parallel: 1, timeout: None };
    let mut pool = Pool::new(spec).expect("there is true");
    let env = [("MQ_QUEUE", "commands"), ("MQ_GROUP", "default"), ("MQ_OFFSET", "1234567")];
    for id in 0..MESSAGES {
        let input = vec![Slice::whole(b"a line\n".to_vec())];
        let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        pool.start(Job { id, input, env }, Monotonic(0)).expect("it starts");
        while pool.running() > 0 {
            rustix::event::poll(&mut [PollFd::new(&pool, PollFlags::IN)], None).ok();
            for finished in pool.turn(Monotonic(0)) {
                assert_eq!(finished.outcome, Outcome::Exit(0));
            }
        }
    }
}
