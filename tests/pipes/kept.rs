//! What a pipe keeps, under kill -9 of server, pipe and filter (G14): open windows and the state of
//! the filter. What is in the destination in the end is what one undisturbed run over the same input
//! leaves, to the byte.

use rustix::process::Signal;

use crate::harness::{Random, Running, Store, eventually};
use crate::{Kills, size};

/// Lines that are sent before each kill.
const LINES: u64 = 300;

/// `TIME KEY NUMBER`, a line in about 100 ms; times are up to 2 s out of order. Every now and then
/// nothing happens for a while, so that sessions end.
fn lines(random: &mut Random, from: u64, count: u64) -> String {
    let line = |n: u64| {
        let pauses = n / 100 * 30_000;
        let millis = 1_769_860_800_000 + n * 100 + pauses + random.below(2000);
        format!("{millis} k{} {n}\n", random.below(5))
    };
    (from..from + count).map(line).collect()
}

/// Sends and kills until all rounds are over; then compares with a store where nothing is killed.
fn rounds(seed: u64, flags: &[&str], last: &[&str], script: &str, is_sorted: bool) {
    let (store, calm) = (Store::new(), Store::new());
    let mut random = Random(seed);
    let pids = store.beside("pids");
    let args = |store: &Store, first: &[&str]| -> Vec<String> {
        let script = format!("echo $$ > {}; {script}", store.beside("pids").display());
        let state = store.beside("state");
        let words = first.iter().chain(&["--name", "p", "--backoff", "1ms..10ms"]).chain(flags);
        let words = words.map(|word| word.replace("STATE", state.to_str().expect("UTF-8")));
        words.chain(["a", "b", "--", "sh", "-c", &script].map(str::to_owned)).collect()
    };
    let next = |store: &Store| store.show("b")?["pipes"][0]["next"].as_u64();
    // It runs along, so that what is left in the end is little.
    let mut undisturbed = calm.spawn("mq-pipe", &args(&calm, &[]));
    let mut running: Option<Running> = None;
    let mut sent = 0;
    let mut kills = Kills::default();
    for _ in 0..size("MQ_ROUNDS", 8) {
        let text = lines(&mut random, sent, LINES);
        sent += LINES;
        for store in [&store, &calm] {
            store.send("a", text.as_bytes());
        }
        let pipe = running.get_or_insert_with(|| store.spawn("mq-pipe", &args(&store, &[])));
        let least = sent - LINES + random.below(LINES * 2 / 3);
        eventually("it gets on", || {
            assert!(!pipe.has_ended(), "the pipe ended: {}", pipe.stderr());
            (next(&store)? >= least).then_some(())
        });
        std::thread::sleep(std::time::Duration::from_micros(random.below(5000)));
        kills.strike(&store, &mut running, &pids, &mut random);
        eventually("the other keeps up", || (next(&calm)? + LINES >= sent).then_some(()));
    }
    undisturbed.signal(Signal::TERM);
    assert_eq!(undisturbed.await_end(), 143, "{}", undisturbed.stderr());
    kills.tell(&flags.join(" "), size("MQ_ROUNDS", 8));
    drop(running);
    let mut outputs = [&store, &calm].map(|store| {
        store.run("mq-pipe", &args(store, &[&["-e"], last].concat()), b"").ok();
        let out = String::from_utf8(store.receive("b")).expect("UTF-8");
        out.lines().map(str::to_owned).collect::<Vec<String>>()
    });
    if is_sorted {
        outputs.iter_mut().for_each(|lines| lines.sort());
    }
    let [disturbed, undisturbed] = outputs;
    assert!(undisturbed.len() > 20, "{undisturbed:?}");
    let differs = disturbed.iter().zip(&undisturbed).find(|(one, other)| one != other);
    assert_eq!((disturbed.len(), differs), (undisturbed.len(), None));
    assert!(store.show("a.pipe.p.dead").is_none(), "a kill makes no dead letter");
}

/// One line for a window: its key, its place, how many messages, and a checksum of them in order.
const SUMMARY: &str = "c=$(cksum); echo $MQ_KEY $MQ_WINDOW_START $MQ_WINDOW_END $MQ_COUNT $c";

/// For each line, how often its key came so far; the counts are in a file.
const COUNTS: &str = r#"awk -v f="$MQ_STATE/counts" '
    BEGIN { while ((getline line < f) > 0) { split(line, p, " "); n[p[1]] = p[2] } close(f) }
    { print $2, ++n[$2], $3 }
    END { printf "" > f; for (k in n) print k, n[k] > f; close(f) }'"#;

#[test]
fn windows_of_event_time_by_key_survive_kills() {
    let flags = ["--window", "5s,late=2s", "--time", "1", "--key", "2", "-P2"];
    rounds(11, &flags, &["--flush"], SUMMARY, false);
}

#[test]
fn windows_that_overlap_survive_kills() {
    let flags = ["--window", "10s,every=4s,late=1s", "--time", "1", "--late", "late"];
    rounds(12, &flags, &["--flush"], SUMMARY, false);
}

#[test]
fn sessions_survive_kills() {
    let flags = ["--window", "session=5s,late=2s", "--time", "1", "--key", "2"];
    rounds(13, &flags, &["--flush"], SUMMARY, false);
}

#[test]
fn windows_of_messages_by_key_survive_kills() {
    rounds(14, &["--window", "7", "--key", "2"], &["--flush"], SUMMARY, false);
}

#[test]
fn state_survives_kills() {
    rounds(15, &["--state", "STATE", "--batch", "50"], &[], COUNTS, false);
}

#[test]
fn the_states_of_several_filters_survive_kills() {
    let flags = ["--state", "STATE", "--batch", "50", "-P2", "--key", "2"];
    rounds(16, &flags, &[], COUNTS, true);
}

#[test]
fn state_with_windows_survives_kills() {
    let flags = ["--state", "STATE", "--window", "5s,late=2s", "--time", "1"];
    rounds(17, &flags, &["--flush"], COUNTS, false);
}
