//! The tests of the tests: each bug of `mq::planted` makes an ordinary test fail.
//!
//! ```text
//! cargo test --release --features planted --test planted -- --nocapture
//! ```
//!
//! builds all tests once with the bugs in them, runs those that are named below without any bug,
//! which they must pass, and then once with each bug, which they must not. It prints a table, and
//! fails when a bug is not caught. `MQ_PLANTED=NAME` in its environment looks at that one alone.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mq::planted::Bug;

/// Which ordinary test catches a bug: in which test binary (`lib` for those beside the code), and
/// what its name contains.
const CATCHERS: &[(Bug, &str, &str)] = &[
    (Bug::ConfirmBeforeSync, "log", "what_was_confirmed_survives_any_life"),
    (Bug::NoDirectorySync, "log", "what_was_confirmed_survives_any_life"),
    (Bug::RetryAfterFailedSync, "log", "any_call_may_fail"),
    (Bug::ChecksumWithoutPosition, "lib", "header_round_trips_at_its_place_only"),
    (Bug::MarkNeverAdvanced, "log", "every_flipped_bit_is_found"),
    (Bug::AckBeyondDurable, "log", "what_was_confirmed_survives_any_life"),
    (Bug::SnapshotAheadOfLog, "log", "what_was_confirmed_survives_any_life"),
    (Bug::UnlinkBeforeAcks, "log", "what_was_confirmed_survives_any_life"),
    (Bug::OffsetReused, "log", "offsets_go_on_behind_what_a_power_loss_took"),
    (Bug::CommitNotSynced, "sim", "pipes_are_exact_in_simulated_histories"),
    (Bug::WindowClosedTwice, "lib", "pipe::window::model"),
    (Bug::EpochNotChecked, "lib", "an_older_connection_stores_nothing"),
    (Bug::PrefetchCounted, "lib", "broker::model"),
    (Bug::WaybillIgnored, "sim", "promises_hold_in_simulated_histories"),
    (Bug::MovedBeforeDurable, "sim", "promises_hold_in_simulated_histories"),
    (Bug::LeaseLostAtRestart, "fates", "what_a_store_knows_is_the_same_after_every_kill"),
    (Bug::TornTailThrownAway, "log", "a_torn_tail_is_cut_and_kept_aside"),
    (Bug::CompactionForgetsTries, "log", "what_a_group_was_told_comes_back"),
    (Bug::TailNotRewritten, "log", "failed_sync_confirms_nothing_ever_after"),
    (Bug::FailedWriteStays, "log", "refused_write_leaves_nothing_behind"),
    (Bug::HandedNotNoted, "sim", "promises_hold_in_simulated_histories"),
    (Bug::SharedDescriptor, "log", "failed_sync_does_not_let_the_other_one_confirm"),
    (Bug::RenamedBeforeSync, "log", "what_was_confirmed_survives_any_life"),
    (Bug::DelayedTakenAgain, "delayed", "histories_with_kills_and_power_losses"),
    (Bug::PayloadNotVerified, "log", "every_flipped_bit_is_found"),
];

/// A test that hangs with a bug has found it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Builds all tests with the bugs in them; the binary of each.
fn build() -> BTreeMap<String, PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--no-run", "--features", "planted", "--message-format", "json"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output();
    let built = built.expect("cargo runs");
    assert!(built.status.success(), "the tests do not build");
    let said = String::from_utf8(built.stdout).expect("JSON");
    let messages = said.lines().map(serde_json::from_str::<serde_json::Value>);
    let mut found = BTreeMap::new();
    for message in messages {
        let message = message.expect("JSON");
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let name = message["target"]["name"].as_str().unwrap_or_default();
        let is_test = message["profile"]["test"].as_bool() == Some(true);
        if let (Some(path), true) = (message["executable"].as_str(), is_test)
            && matches!(kind, "lib" | "test")
        {
            let name = if kind == "lib" { "lib" } else { name };
            found.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    found
}

/// How a test ended.
enum End {
    Passed(usize),
    /// What it said first.
    Failed(String),
    Hung,
}

fn run(binary: &PathBuf, filter: &str, bug: Option<Bug>) -> End {
    let mut test = Command::new(binary);
    test.arg(filter).current_dir(env!("CARGO_MANIFEST_DIR")).process_group(0);
    test.env("MQ_PLANTED", bug.map_or("", Bug::name));
    test.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = test.spawn().expect("the test starts");
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
        })
    };
    let out = read(Box::new(child.stdout.take().expect("piped")));
    let err = read(Box::new(child.stderr.take().expect("piped")));
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            break status;
        }
        if Instant::now() > until {
            let group = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
                .expect("a group of ours");
            child.wait().expect("a child of ours");
            return End::Hung;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = out.join().expect("a reader").expect("readable");
    let text = text + &err.join().expect("a reader").expect("readable");
    if status.success() {
        let passed = text.lines().filter(|line| line.ends_with(" ... ok")).count();
        return End::Passed(passed);
    }
    let mut lines = text.lines().skip_while(|line| !line.contains("panicked at"));
    let place = lines.next().unwrap_or("it failed without a word");
    let why = lines.find(|line| !line.trim().is_empty()).unwrap_or(place);
    End::Failed(why.trim().chars().take(90).collect())
}

#[test]
fn each_planted_bug_is_caught_by_an_ordinary_test() {
    let only = std::env::var("MQ_PLANTED").ok().filter(|name| !name.is_empty());
    let wanted = |bug: &Bug| only.as_ref().is_none_or(|only| bug.name() == only);
    for bug in Bug::ALL {
        let catchers = CATCHERS.iter().filter(|(caught, ..)| caught == bug).count();
        assert!(catchers == 1, "{} tests are named for {}", catchers, bug.name());
    }
    let binaries = build();
    let (mut sound, mut missed) = (BTreeMap::new(), Vec::new());
    println!("{:<26} {:<9} {:<52} {:>7}  what it said", "bug", "binary", "test", "seconds");
    for (bug, binary, filter) in CATCHERS.iter().filter(|(bug, ..)| wanted(bug)) {
        let path = &binaries[*binary];
        let is_sound = *sound
            .entry((binary, filter))
            .or_insert_with(|| matches!(run(path, filter, None), End::Passed(n) if n > 0));
        assert!(is_sound, "{binary} {filter} finds nothing or fails without any bug");
        let begun = Instant::now();
        let end = run(path, filter, Some(*bug));
        let said = match end {
            End::Passed(_) => {
                missed.push(bug.name());
                "NOT CAUGHT".to_owned()
            }
            End::Failed(why) => why,
            End::Hung => "it hung".to_owned(),
        };
        let seconds = begun.elapsed().as_secs_f64();
        println!("{:<26} {binary:<9} {filter:<52} {seconds:>7.1}  {said}", bug.name());
    }
    assert!(missed.is_empty(), "bugs that no test noticed: {missed:?}");
}
