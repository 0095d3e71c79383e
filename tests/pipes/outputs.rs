//! How the output becomes messages, and that a commit is there wholly.

use crate::harness::Store;
use crate::{pipe, seq};

#[test]
fn the_output_is_cut_as_told() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", b"x,y\n");
    let run = |to: &str, out: &[&str], script: &str| {
        let mut args = vec!["-e"];
        args.extend(out);
        args.extend(["a", to, "--", "sh", "-c", script]);
        pipe(&store, &args).ok();
        let json = store.run("mq-recv", &["-e", "-J", to], b"").ok();
        let text = String::from_utf8(json.stdout).expect("text");
        let data = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            value["data"].as_str().expect("data").to_owned()
        };
        text.lines().map(data).collect::<Vec<String>>()
    };
    assert_eq!(run("b", &[], "printf 'a\\n\\nb'"), ["a", "", "b"]);
    assert_eq!(run("c", &["--out", "-0"], "printf 'a\\nb\\0c\\0'"), ["a\nb", "c"]);
    assert_eq!(run("d", &["--out", "-d,"], "cat"), ["x", "y\n"]);
    assert_eq!(run("e", &["--out", "whole"], "printf 'a\\nb\\n'"), ["a\nb\n"]);
    assert!(run("f", &["--out", "whole"], "true").is_empty());
}

/// Many batches, and messages larger than one, are one commit.
#[test]
fn large_outputs_come_whole() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", b"x\n");
    let filter =
        "cat >/dev/null; seq 1000000; head -c 3000000 /dev/zero | tr '\\0' y; echo; echo z";
    pipe(&store, &["-e", "a", "b", "--", "sh", "-c", filter]).ok();
    let mut expected = seq(1, 1_000_000);
    expected.extend(vec![b'y'; 3_000_000]);
    expected.extend(b"\nz\n");
    assert!(store.receive("b") == expected);
    store.run("mq-admin", &["check"], b"").ok();
    store.kill_server();
    store.run("mq-admin", &["check", "--offline"], b"").ok();
    pipe(&store, &["-e", "--out", "whole", "a", "c", "--", "sh", "-c", filter]).ok();
    let done = store.run("mq-recv", &["-e", "--raw", "c"], b"").ok();
    assert!(done.stdout == expected);
}

/// A destination with limits takes a commit wholly or not at all.
#[test]
fn a_full_destination_is_waited_for() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--max-messages", "10", "b"], b"").ok();
    store.send("a", &seq(1, 16));
    let mut running = store.spawn("mq-pipe", &["-e", "--batch", "8", "a", "b", "--", "cat"]);
    running.await_stderr("is full");
    assert_eq!(store.number("b", "end"), 8);
    assert_eq!(store.receive("b"), seq(1, 8));
    assert_eq!(running.await_end(), 0);
    assert_eq!(store.receive("b"), seq(9, 16));
}

/// Once, a signal was heeded only after ten seconds there.
#[test]
fn a_pipe_that_waits_for_room_ends_by_a_signal() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--max-messages", "10", "b"], b"").ok();
    store.send("a", &seq(1, 16));
    let mut running =
        store.spawn("mq-pipe", &["--name", "p", "--batch", "8", "a", "b", "--", "cat"]);
    running.await_stderr("is full");
    let told = std::time::Instant::now();
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.await_end(), 143);
    assert!(told.elapsed() < std::time::Duration::from_secs(8), "{:?}", told.elapsed());
    assert_eq!(store.receive("b"), seq(1, 8));
    pipe(&store, &["-e", "--name", "p", "a", "b", "--", "cat"]).ok();
    assert_eq!(store.receive("b"), seq(9, 16));
}

/// A commit that no emptying makes room for is refused with what to do.
#[test]
fn a_commit_that_can_never_fit_is_refused() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--max-messages", "10", "b"], b"").ok();
    store.send("a", &seq(1, 16));
    let args = ["--name", "p", "a", "b", "--", "cat"];
    let all = [&["-e"][..], &args].concat();
    pipe(&store, &all).exits(65).says("does not fit queue b").says("--batch");
    assert_eq!(store.number("b", "end"), 0);
    store.send("b", b"x\n");
    store.receive("b");
    pipe(
        &store,
        &[&["-e", "--batch", "10"][..], &args[..2], &["a", "b", "--", "head", "-2"]].concat(),
    )
    .ok();
    assert_eq!(store.receive("b"), b"1\n2\n11\n12\n");
}

/// Once, a pipe to standard output did not notice that its reader was gone before it had something to
/// write.
#[test]
fn a_reader_that_goes_ends_a_pipe_that_waits() {
    let store = Store::new();
    store.send("a", &seq(1, 3));
    let script = r#"{ mq-pipe a - -- cat; echo "status $?" >&2; } | head -1"#;
    assert_eq!(store.sh(script).ok().says("status 141").stdout, b"1\n");
}

/// Whatever the destination's policy, the source lets go only of what is durable: the pipe under
/// `never` works, and what it wrote is there after a kill.
#[test]
fn a_lazy_destination_is_synced_for_a_commit() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--sync", "never", "b"], b"").ok();
    store.send("a", &seq(1, 1000));
    pipe(&store, &["-e", "a", "b", "--", "cat"]).ok();
    store.kill_server();
    assert_eq!(store.receive("b"), seq(1, 1000));
}
