//! `mq-pipe` from outside: real queues, real filters, real kills (G14). Each test on a store of
//! its own.
//!
//! `MQ_ROUNDS=500 cargo test --release --test pipes -- kills kept files clock --nocapture` is the long run of kill
//! -9, with as many rounds for each kind of pipe; it says how many kills there were.

#[allow(dead_code)]
#[path = "../harness/mod.rs"]
mod harness;

mod clock;
mod examples;
mod failures;
mod files;
mod instances;
mod kept;
mod kills;
mod outputs;
mod plain;
mod state;
mod staying;
mod stored;
mod windows;

use harness::{Done, Random, Running, Store, seq, size};

/// Runs a pipe to its end.
#[track_caller]
fn pipe(store: &Store, args: &[&str]) -> Done {
    store.run("mq-pipe", args, b"")
}

/// Queues whose messages are given up after a few failures.
#[track_caller]
fn impatient(store: &Store, queue: &str, limit: &str) {
    store.run("mq-admin", &["declare", "--delivery-limit", limit, queue], b"").ok();
}

/// Kills of a run, by who was killed. A filter may have ended by itself when it was to be.
#[derive(Default)]
struct Kills {
    server: u64,
    pipe: u64,
    filter: u64,
}

impl Kills {
    /// Kills the server, the pipe or a filter.
    fn strike(
        &mut self,
        store: &Store,
        pipe: &mut Option<Running>,
        pids: &std::path::Path,
        random: &mut Random,
    ) {
        match random.below(3) {
            0 => {
                store.kill_server();
                self.server += 1;
            }
            1 => {
                let mut pipe = pipe.take().expect("it runs");
                pipe.signal(rustix::process::Signal::KILL);
                pipe.await_end();
                self.pipe += 1;
            }
            _ => self.filter += u64::from(kill_filter(pids)),
        }
    }

    /// Says so, for the record of a long run.
    fn tell(&self, kind: &str, rounds: u64) {
        let Kills { server, pipe, filter } = self;
        println!(
            "{kind}: {rounds} rounds: {server} kills of the server, {pipe} of the pipe, {filter} of filters"
        );
    }
}

/// How long a filter is looked for.
const FILTER_PATIENCE: std::time::Duration = std::time::Duration::from_millis(30);

/// Kills a filter, which leaves its number there; whether one was met while it ran.
fn kill_filter(pids: &std::path::Path) -> bool {
    let start = std::time::Instant::now();
    // Where the number has been given anew, something else runs under it.
    let is_filter = |pid: &rustix::process::Pid| {
        let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
        std::fs::read(path)
            .is_ok_and(|line| line.starts_with(b"sed\0") || line.starts_with(b"sh\0"))
    };
    while start.elapsed() < FILTER_PATIENCE {
        let text = std::fs::read_to_string(pids).unwrap_or_default();
        let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid.filter(is_filter)
            && rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok()
        {
            return true;
        }
    }
    false
}
