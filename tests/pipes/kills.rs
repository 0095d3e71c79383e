//! G14 under kill -9: of the server, the pipe, the filter, at random moments. What is in the
//! destination in the end is what one undisturbed run would have left.

use rustix::process::Signal;

use crate::harness::{Random, Running, Store, eventually};
use crate::{seq, size};

const LINES: u64 = 2000;

/// What is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Server,
    Pipe,
    Filter,
}

/// Feeds the source and kills until all rounds are over; then the destination is compared.
fn rounds(seed: u64, extra: &[&str], expected: impl Fn(u64) -> Vec<u8>, sorted: bool) {
    let store = Store::new();
    let rounds = size("MQ_ROUNDS", 6);
    let mut random = Random(seed);
    // Filters leave their number where the killer finds it.
    let pids = store.beside("pids");
    let script = format!("echo $$ > {}; exec sed 's/^/> /'", pids.display());
    let mut args = vec!["--name", "p", "--batch", "100", "--backoff", "1ms"];
    args.extend(extra);
    args.extend(["a", "b", "--", "sh", "-c", &script]);
    let mut running: Option<Running> = None;
    let mut sent = 0;
    for _ in 0..rounds {
        store.send("a", &seq(sent + 1, sent + LINES));
        sent += LINES;
        let pipe = running.get_or_insert_with(|| store.spawn("mq-pipe", &args));
        assert!(!pipe.has_ended(), "the pipe ended: {}", pipe.stderr());
        let before = store.show("b").map_or(0, |info| info["end"].as_u64().unwrap_or(0));
        let least = before + random.below(sent - before + 1).min(LINES - 200);
        eventually("it gets on", || (store.show("b")?["end"].as_u64()? >= least).then_some(()));
        let victim = [Victim::Server, Victim::Pipe, Victim::Filter][random.below(3) as usize];
        std::thread::sleep(std::time::Duration::from_micros(random.below(3000)));
        match victim {
            Victim::Server => store.kill_server(),
            Victim::Pipe => {
                pipe.signal(Signal::KILL);
                pipe.await_end();
                running = None;
            }
            Victim::Filter => {
                let text = std::fs::read_to_string(&pids).unwrap_or_default();
                let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
                if let Some(pid) = pid.filter(|pid| is_filter(*pid)) {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
        }
    }
    drop(running);
    let mut last = vec!["-e"];
    last.extend(args);
    store.run("mq-pipe", &last, b"").ok();
    let mut out = store.receive("b");
    let mut expected = expected(sent);
    if sorted {
        let sort = |bytes: &[u8]| {
            let mut lines: Vec<Vec<u8>> =
                bytes.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            lines.sort();
            lines.concat()
        };
        (out, expected) = (sort(&out), sort(&expected));
    }
    assert!(out == expected, "{} bytes instead of {}", out.len(), expected.len());
    assert!(store.show("a.pipe.p.dead").is_none(), "a kill makes no dead letter");
}

/// The number may have been given anew.
fn is_filter(pid: rustix::process::Pid) -> bool {
    let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    std::fs::read(path).is_ok_and(|line| line.starts_with(b"sed\0") || line.starts_with(b"sh\0"))
}

fn marked(sent: u64) -> Vec<u8> {
    (1..=sent).flat_map(|n| format!("> {n}\n").into_bytes()).collect()
}

#[test]
fn every_line_is_there_once_and_in_order() {
    rounds(1, &[], marked, false);
}

#[test]
fn every_line_is_there_once_with_several_filters() {
    rounds(2, &["-P2", "--key", "1"], marked, true);
}
