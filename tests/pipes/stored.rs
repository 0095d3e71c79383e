//! Backlogs of large batches, which a pipe reads from the segments themselves.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::harness::Store;
use crate::{pipe, seq};

/// Lines enough for more than a segment (64 MiB) and several batches of a filter.
const LINES: u64 = 9_000_000;

/// All that is there goes through, across segments, whatever filter, and once.
#[test]
fn a_backlog_over_several_segments_goes_through_whole() {
    let store = Store::new();
    let lines = seq(1, LINES);
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", &lines);
    pipe(&store, &["-e", "a", "b", "--", "cat"]).ok();
    assert!(store.receive("b") == lines);
    pipe(&store, &["-e", "-P", "2", "a", "c", "--", "grep", "-v", "77"]).ok();
    let kept: Vec<u8> = lines
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !line.windows(2).any(|pair| pair == b"77"))
        .flatten()
        .copied()
        .collect();
    assert!(store.receive("c") == kept);
    // One that does not read its input, and one that ends before it has read all of it.
    let done = pipe(&store, &["-e", "a", "d", "--", "true"]).ok();
    assert!(done.stderr.is_empty() && store.receive("d").is_empty());
    pipe(&store, &["-e", "a", "e", "--", "head", "-n", "1"]).ok();
    assert!(store.receive("e").starts_with(b"1\n"));
}

/// What the pipe reads of a batch that is damaged never gets to the filter, and the server stops the
/// queue by its own finding.
#[test]
fn no_byte_of_a_damaged_batch_gets_to_the_filter() {
    let store = Store::new();
    let lines = seq(1, 600_000);
    store.send("a", &lines);
    store.run("mq-admin", &["stop"], b"").ok();
    let segment = std::fs::read_dir(store.path().join("queues/a"))
        .expect("a queue is a directory")
        .map(|entry| entry.expect("ours").path())
        .find(|path| path.extension().is_some_and(|e| e == "seg"))
        .expect("a segment");
    let bytes = std::fs::read(&segment).expect("ours");
    let at = bytes.windows(8).position(|w| w == b"\n450000\n").expect("the line is there");
    let file = File::options().write(true).open(&segment).expect("ours");
    file.write_all_at(b"x", at as u64 + 1).expect("room");
    let done = pipe(&store, &["-e", "a", "b", "--", "sh", "-c", "tee -a seen"]);
    assert_ne!(done.code, 0, "damage is not the end of a queue");
    assert!(done.stderr.contains("checksum"), "{}", done.stderr);
    let seen = std::fs::read(store.beside("seen")).unwrap_or_default();
    assert!(lines.starts_with(&seen), "only what was sent, in order");
    assert!(!seen.windows(8).any(|w| w == b"\nx50000\n"), "nothing of the damaged batch");
    assert!(store.receive("b").is_empty(), "its batch was not committed");
    store.run("mq-admin", &["check"], b"").exits(1);
}

/// A filter that fails on a part of what is in files is given halves of it, as ever.
#[test]
fn what_fails_is_cut_out_of_what_is_stored() {
    let store = Store::new();
    let lines = seq(1, 200_000);
    store.run("mq-admin", &["declare", "--delivery-limit", "1", "a"], b"").ok();
    store.send("a", &lines);
    let filter = "cat > part; if grep -qx 123456 part; then exit 65; fi; cat part";
    let args = ["-e", "--name", "p", "--on-fail", "dead", "a", "b", "--", "sh", "-c", filter];
    pipe(&store, &args).ok();
    let mut expected = seq(1, 123_455);
    expected.extend(seq(123_457, 200_000));
    assert!(store.receive("b") == expected);
    assert_eq!(store.receive("a.pipe.p.dead"), b"123456\n");
}
