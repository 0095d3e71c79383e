//! This build beside another one: whether a change made the pipe slower.
//!
//! Pairs of runs, one of each build, in alternating order, each build with a server and a store
//! of its own; so a slow minute of the machine hits both. What counts is the interval in which
//! the mean of the ratios lies with 95 % confidence.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::rig::{Pipeline, Rig, cat, seconds};
use crate::table::{Goal, Table};

/// The interval lies above this when a change costs the pipe nothing that can be seen.
const LEAST: f64 = 0.97;

/// The tools of one build, with their server.
struct Build {
    tools: PathBuf,
    store: PathBuf,
    server: Child,
}

impl Build {
    fn start(tools: &Path, store: PathBuf) -> Build {
        let server = Build::command(tools, &store, "mq-serve").spawn().expect("mq-serve is there");
        let build = Build { tools: tools.to_owned(), store, server };
        for policy in ["never", "always"] {
            // It waits for the server, as it may not start another one.
            build.run("mq-admin", &["declare", policy, "--sync", policy]);
        }
        build
    }

    fn command(tools: &Path, store: &Path, tool: &str) -> Command {
        let mut command = Command::new(tools.join(tool));
        command
            .env("MQ_DIR", store)
            .env("MQ_NO_AUTOSTART", "1")
            .stderr(Stdio::null())
            .stdin(Stdio::null());
        command
    }

    fn tool(&self, tool: &str, args: &[&str]) -> Command {
        let mut command = Build::command(&self.tools, &self.store, tool);
        command.args(args);
        command
    }

    fn run(&self, tool: &str, args: &[&str]) {
        let status = self.tool(tool, args).stdout(Stdio::null()).status().expect("it runs");
        assert!(status.success(), "{tool} {args:?} of {} failed", self.tools.display());
    }

    fn both_at_once(&self, rig: &Rig, queue: &str) -> f64 {
        rig.settle_disk();
        seconds(|| {
            let count = rig.lines.to_string();
            let receive =
                Pipeline::start([self.tool("mq-recv", &["-n", &count, queue]), cat(None)]);
            Pipeline::start([cat(Some(&rig.input)), self.tool("mq-send", &[queue])]).wait();
            receive.wait();
        })
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Sends and receives at once with both builds, `--pairs` times (20 unless told otherwise).
pub fn beside_another_build(rig: &mut Rig, table: &mut Table) {
    let Some(before) = rig.before.clone() else { return };
    let tools = Path::new(env!("CARGO_BIN_EXE_mq-serve")).parent().expect("a directory");
    let old = Build::start(&before, rig.beside("before"));
    let new = Build::start(tools, rig.beside("after"));
    table.heading("this build beside the one before, both ends at once");
    for policy in ["never", "always"] {
        let mut ratios = Vec::new();
        for pair in 0..rig.pairs.max(20) {
            let (was, is) = if pair % 2 == 0 {
                let was = old.both_at_once(rig, policy);
                (was, new.both_at_once(rig, policy))
            } else {
                let is = new.both_at_once(rig, policy);
                (old.both_at_once(rig, policy), is)
            };
            ratios.push((was / is).ln());
        }
        let (low, middle, high) = interval(&ratios);
        let goal = Goal::Is(low > LEAST, format!("interval above {LEAST}"));
        let relation = format!("{low:.3} to {high:.3} (95 %)");
        let what = format!("speed against before, {policy}");
        table.row(&what, &format!("{middle:.3}"), &relation, goal);
    }
}

/// The mean of logarithms and its 95 % confidence interval, as ratios. For 20 samples or more,
/// for which Student's factor is 2.09 or less.
fn interval(logs: &[f64]) -> (f64, f64, f64) {
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let half = 2.093 * (variance / count).sqrt();
    ((mean - half).exp(), mean.exp(), (mean + half).exp())
}
