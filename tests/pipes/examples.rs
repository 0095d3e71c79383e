//! The worked examples of the man page and the README.

use std::path::Path;

use crate::harness::{Store, skip};

/// The example of mq-pipe(1) that follows this text.
fn example(text: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/mq-pipe.1");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let behind = page.split_once(text).unwrap_or_else(|| panic!("{text:?} is not on the page")).1;
    let block = behind.split_once(".Bd -literal -offset indent\n").expect("an example").1;
    block.split_once(".Ed\n").expect("its end").0.replace("\\&", "")
}

/// Runs it on what is there now.
#[track_caller]
fn run_example(store: &Store, script: &str) {
    let script = script.replace("mq-pipe ", "mq-pipe -e ").replace(" &\n", "\n");
    store.sh(&script).ok();
}

#[test]
fn selecting_lines_of_json() {
    let store = Store::new();
    if store.sh("command -v jq").code != 0 {
        return skip("selecting_lines_of_json", "there is no jq");
    }
    store.send("raw", b"{\"ok\":true,\"n\":1}\n{\"ok\":false}\n{\"ok\":true,\"n\":2}\n");
    run_example(&store, &example("What is wanted of some lines of JSON"));
    assert_eq!(store.receive("clean"), b"{\"ok\":true,\"n\":1}\n{\"ok\":true,\"n\":2}\n");
}

#[test]
fn errors_of_a_log() {
    let store = Store::new();
    store.send("log", b"INFO a\nERROR b\nINFO c\nERROR d\n");
    run_example(&store, &example("The errors of a log; without"));
    assert_eq!(store.receive("errors"), b"ERROR b\nERROR d\n");
}

#[test]
fn errors_of_a_log_into_a_file() {
    let store = Store::new();
    store.send("log", b"INFO a\nERROR b\nINFO c\nERROR d\n");
    store.sh(&example("From cron: what is there now")).ok();
    let file = std::fs::read(store.beside("errors.txt")).expect("reads");
    assert_eq!(file, b"ERROR b\nERROR d\n");
}

#[test]
fn one_filter_for_all() {
    let store = Store::new();
    store.send("in", b"user=ada password=x\nnothing\n");
    run_example(&store, &example(".Xr sed 1\nfor all"));
    assert_eq!(store.receive("out"), b"user=ada password=*\nnothing\n");
}

#[test]
fn what_costs_time_on_four_processors() {
    let store = Store::new();
    store.send("raw", &crate::seq(1, 100_000));
    run_example(&store, &example("What costs time, on four processors"));
    let done = store.sh("mq-recv -e --raw packed | gzip -dc").ok();
    assert!(done.stdout == crate::seq(1, 100_000));
}

#[test]
fn a_chain_of_pipes() {
    let store = Store::new();
    store.send("a", b"b\na\nc\n");
    run_example(&store, &example("One after the other"));
    assert_eq!(store.receive("marked"), b"- B\n- A\n- C\n");
}

/// The README shows the examples of the page, to the letter.
#[test]
fn the_readme_shows_the_same() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.expect("it is there");
    for text in [
        "The errors of each minute",
        "Of lines with the same first field",
        "How often each word came",
        "Two queues joined",
        ".Pa join.sh\nis",
        "The errors of a log; without",
        "What is wanted of some lines of JSON",
    ] {
        assert!(readme.contains(&example(text)), "the README shows another example: {text}");
    }
}

#[test]
fn errors_of_each_minute() {
    let store = Store::new();
    for (time, line) in [("12:00:01", "ERROR a"), ("12:00:59", "INFO b"), ("12:01:03", "ERROR c")] {
        store.send("log", format!("2026-01-31T{time}Z {line}\n").as_bytes());
    }
    // One comes late, but not too late.
    store.send("log", b"2026-01-31T12:00:58Z ERROR d\n2026-01-31T12:02:30Z INFO e\n");
    run_example(&store, &example("The errors of each minute"));
    let expected = "2026-01-31T12:00:00.000000Z 2\n2026-01-31T12:01:00.000000Z 1\n";
    assert_eq!(String::from_utf8(store.receive("per-minute")).as_deref(), Ok(expected));
}

#[test]
fn how_often_each_word_came() {
    let store = Store::new();
    let script = example("How often each word came");
    store.send("text", b"a rose is\na rose\n");
    run_example(&store, &script);
    assert_eq!(store.receive("counts"), b"a 1\nrose 1\nis 1\na 2\nrose 2\n");
    store.send("text", b"is a rose\n");
    run_example(&store, &script);
    assert_eq!(store.receive("counts"), b"is 2\na 3\nrose 3\n");
}

#[test]
fn the_first_of_each_key() {
    let store = Store::new();
    let script = example("Of lines with the same first field");
    for (lines, first) in [("1 a\n2 b\n1 c\n", "1 a\n2 b\n"), ("2 d\n3 e\n3 f\n", "3 e\n")] {
        store.send("in", lines.as_bytes());
        run_example(&store, &script);
        assert_eq!(String::from_utf8(store.receive("once")).as_deref(), Ok(first));
    }
}

#[test]
fn two_queues_joined() {
    let store = Store::new();
    if !store.sh("command -v sqlite3").code.eq(&0) {
        return skip("two_queues_joined", "there is no sqlite3");
    }
    std::fs::write(store.beside("join.sh"), example(".Pa join.sh\nis")).expect("written");
    let script = example("Two queues joined");
    for (users, orders, joined) in [
        ("7,Ann\n8,Bob\n", "7,book\n9,pen\n", "Ann,book\n"),
        ("9,Cy\n", "8,ink\n7,mug\n", "Ann,mug\nBob,ink\nCy,pen\n"),
        ("7,Anna\n", "7,cup\n", "Anna,cup\n"),
    ] {
        store.send("users", users.as_bytes());
        store.send("orders", orders.as_bytes());
        run_example(&store, &script);
        let out = String::from_utf8(store.receive("joined")).expect("UTF-8");
        let mut lines: Vec<&str> = out.split_inclusive('\n').collect();
        lines.sort_unstable();
        assert_eq!(lines.concat(), joined);
    }
}
