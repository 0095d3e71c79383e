//! mq-format(5) is enough to write a client: one in Python, written after the page, speaks with
//! the server and reads its files.

use crate::harness::{Store, process, skip};
use crate::seq;

fn foreign(store: &Store, verb: &str, input: &[u8]) -> process::Done {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/foreign_client.py");
    let mut command = store.shell("exec python3 \"$0\" \"$MQ_DIR\" \"$1\" q");
    command.args([script, verb]);
    process::run(command, input)
}

#[test]
fn a_client_written_after_the_format_page_works() {
    let store = Store::new();
    if store.sh("command -v python3").code != 0 {
        return skip("a_client_written_after_the_format_page_works", "python3 is missing");
    }
    let _server = store.serve();
    foreign(&store, "send", &seq(1, 12_345)).ok();
    assert_eq!(store.number("q", "ready"), 12_345);
    let done = store.run("mq-recv", &["-n", "5", "q"], b"").ok();
    assert_eq!(done.stdout, seq(1, 5));
    let done = foreign(&store, "receive", b"").ok();
    assert!(done.stdout == seq(6, 12_345));
    assert_eq!(store.number("q", "ready"), 0);
    assert_eq!(store.number("q", "unacked"), 0);
    // Records and a chain, as mq-send writes them.
    let large = vec![b'x'; 3 << 20];
    store.run("mq-send", &["--whole", "q"], &large).ok();
    store.run("mq-send", &["q", "-m", "two\nlines"], b"").ok();
    let done = foreign(&store, "receive", b"").ok();
    assert!(done.stdout == [large, b"\ntwo\nlines\n".to_vec()].concat());
}

#[test]
fn the_files_are_as_the_format_page_says() {
    let store = Store::new();
    if store.sh("command -v python3").code != 0 {
        return skip("the_files_are_as_the_format_page_says", "python3 is missing");
    }
    // More than one segment, so that a sealed one is among them.
    store.sh("{ yes $(printf '%099d' 7) | head -n 800000; true; } | mq-send q").ok();
    store.run("mq-send", &["--whole", "q"], &vec![b'y'; 2 << 20]).ok();
    store.run("mq-admin", &["stop"], b"").ok();
    let stored = foreign(&store, "dump", b"").ok().stdout;
    let received = store.receive("q");
    assert_eq!(stored.len(), received.len());
    assert!(stored == received);
}
