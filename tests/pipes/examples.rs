//! The worked examples of the man page and the README.

use crate::harness::Store;

#[test]
fn selecting_lines_of_json() {
    let store = Store::new();
    store.send("raw", b"{\"ok\":true,\"n\":1}\n{\"ok\":false}\n{\"ok\":true,\"n\":2}\n");
    store.sh("mq-pipe -e --ok 0,1 raw clean -- grep '\"ok\":true'").ok();
    assert_eq!(store.receive("clean"), b"{\"ok\":true,\"n\":1}\n{\"ok\":true,\"n\":2}\n");
}

#[test]
fn errors_of_a_log_into_a_file() {
    let store = Store::new();
    store.send("log", b"INFO a\nERROR b\nINFO c\nERROR d\n");
    store.sh("mq-pipe -e --ok 0,1 log file:errors.txt -- grep ERROR").ok();
    let file = std::fs::read(store.beside("errors.txt")).expect("reads");
    assert_eq!(file, b"ERROR b\nERROR d\n");
}

#[test]
fn a_chain_of_pipes() {
    let store = Store::new();
    store.send("a", b"b\na\nc\n");
    store.sh("mq-pipe -e a upper -- tr a-z A-Z && mq-pipe -e upper marked -- sed 's/^/- /'").ok();
    assert_eq!(store.receive("marked"), b"- B\n- A\n- C\n");
}
