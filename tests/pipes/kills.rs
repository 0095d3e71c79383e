//! G14 under kill -9: of the server, the pipe, the filter, at random moments. What is in the
//! destination in the end is what one undisturbed run would have left.

use crate::harness::{Random, Running, Store, eventually};
use crate::{Kills, seq, size};

const LINES: u64 = 2000;

/// Enough of them that they lie in batches which a pipe reads from the segment itself.
const BACKLOG: u64 = 200_000;

/// Feeds the source and kills until all rounds are over; then the destination is compared.
fn rounds(seed: u64, extra: &[&str], sed: &str, expected: impl Fn(u64) -> Vec<u8>, sorted: bool) {
    let store = Store::new();
    let rounds = size("MQ_ROUNDS", 6);
    let mut kills = Kills::default();
    let mut random = Random(seed);
    // Filters leave their number where the killer finds it.
    let pids = store.beside("pids");
    let script = format!("echo $$ > {}; exec {sed} 's/^/> /'", pids.display());
    let mut args = vec!["--name", "p", "--batch", "100", "--backoff", "1ms"];
    args.extend(extra);
    args.extend(["a", "b", "--", "sh", "-c", &script]);
    let mut running: Option<Running> = None;
    let mut sent = 0;
    for _ in 0..rounds {
        store.send("a", &seq(sent + 1, sent + LINES));
        sent += LINES;
        let pipe = running.get_or_insert_with(|| store.spawn("mq-pipe", &args));
        let before = store.show("b").map_or(0, |info| info["end"].as_u64().unwrap_or(0));
        let least = before + random.below(sent - before + 1).min(LINES - 200);
        eventually("it gets on", || {
            assert!(!pipe.has_ended(), "the pipe ended: {}", pipe.stderr());
            (store.show("b")?["end"].as_u64()? >= least).then_some(())
        });
        std::thread::sleep(std::time::Duration::from_micros(random.below(3000)));
        kills.strike(&store, &mut running, &pids, &mut random);
    }
    kills.tell(&format!("{sed} {}", extra.join(" ")), rounds);
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

fn marked(sent: u64) -> Vec<u8> {
    (1..=sent).flat_map(|n| format!("> {n}\n").into_bytes()).collect()
}

#[test]
fn every_line_is_there_once_and_in_order() {
    rounds(1, &[], "sed", marked, false);
}

/// Nothing is waited for but a random time, so that the kills meet the filter as it is fed.
#[test]
fn every_line_of_a_backlog_in_files_is_there_once() {
    let store = Store::new();
    let rounds = size("MQ_ROUNDS", 6);
    let (mut kills, mut random) = (Kills::default(), Random(4));
    let pids = store.beside("pids");
    let script = format!("echo $$ > {}; exec sed 's/^/> /'", pids.display());
    let args = ["--name", "p", "--backoff", "1ms", "-P2", "a", "b", "--", "sh", "-c", &script];
    let mut running: Option<Running> = None;
    for round in 0..rounds {
        store.send("a", &seq(round * BACKLOG + 1, (round + 1) * BACKLOG));
        let pipe = running.get_or_insert_with(|| store.spawn("mq-pipe", &args));
        assert!(!pipe.has_ended(), "the pipe ended: {}", pipe.stderr());
        std::thread::sleep(std::time::Duration::from_micros(random.below(200_000)));
        kills.strike(&store, &mut running, &pids, &mut random);
    }
    kills.tell("sed, a backlog in files", rounds);
    drop(running);
    let mut last = vec!["-e"];
    last.extend(args);
    store.run("mq-pipe", &last, b"").ok();
    let (out, expected) = (store.receive("b"), marked(rounds * BACKLOG));
    assert!(out == expected, "{} bytes instead of {}", out.len(), expected.len());
    assert!(store.show("a.pipe.p.dead").is_none(), "a kill makes no dead letter");
}

#[test]
fn every_line_is_there_once_with_several_filters() {
    rounds(2, &["-P2", "--key", "1"], "sed", marked, true);
}

#[test]
fn every_line_is_there_once_with_a_filter_that_stays() {
    rounds(3, &["--stay"], "sed -u", marked, false);
}
