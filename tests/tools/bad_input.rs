//! What a user can get wrong on the command line: always a sentence, never a stored message.

use crate::harness::Store;

#[test]
fn names_that_are_none_are_usage_errors() {
    let store = Store::new();
    let long = "x".repeat(201);
    for name in ["", ".hidden", "a/b", "../up", "a b", "ä", "a\nb", &long] {
        // Behind a `--` of mq-recv stands a command.
        for (tool, args) in [("mq-send", vec!["--", name]), ("mq-recv", vec![name])] {
            let done = store.run(tool, &args, b"x\n").exits(2);
            assert!(done.stderr.contains("name"), "{tool} {name:?}: {}", done.stderr);
        }
        store.run("mq-admin", &["declare", "--", name], b"").exits(2);
    }
    store.run("mq-send", &["--", "-dash"], b"x\n").exits(2);
    assert!(!store.path().join("queues").exists(), "nothing was made");
}

#[test]
fn the_longest_name_works() {
    let store = Store::new();
    let name = "x".repeat(200);
    store.send(&name, b"a\n");
    assert_eq!(store.receive(&name), b"a\n");
}

#[test]
fn unknown_flags_and_contradictions_are_usage_errors() {
    let store = Store::new();
    for args in [
        &["mq-send"][..],
        &["mq-send", "--no-such-flag", "q"],
        &["mq-send", "-0", "-d", ",", "q"],
        &["mq-send", "-m", "x", "q", "file"],
        &["mq-send", "-w", "soon", "q", "-m", "x"],
        &["mq-recv"],
        &["mq-recv", "-n", "many", "q"],
        &["mq-recv", "-d", "ab", "q"],
        &["mq-recv", "-0", "--raw", "q"],
        &["mq-admin"],
        &["mq-admin", "no-such-verb"],
        &["mq-admin", "declare", "--sync", "sometimes", "q"],
        &["mq-serve", "--idle-exit", "never"],
    ] {
        let done = store.run(args[0], &args[1..], b"x\n").exits(2);
        assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "{args:?}");
    }
    assert!(store.server().is_none(), "a usage error starts nothing");
}

#[test]
fn help_and_version_need_nothing() {
    let store = Store::new();
    for tool in ["mq-send", "mq-recv", "mq-admin", "mq-serve"] {
        for flag in ["-h", "--help"] {
            let done = store.run(tool, &[flag], b"").ok().quietly();
            assert!(done.text().contains(tool), "{}", done.text());
        }
        let done = store.run(tool, &["--version"], b"").ok().quietly();
        assert!(done.text().contains(env!("CARGO_PKG_VERSION")));
    }
    assert!(!store.path().exists());
}

#[test]
fn errors_name_the_tool_and_hold_no_debug_output() {
    let store = Store::new();
    for args in [
        &["mq-send", "q", "not-a-file"][..],
        &["mq-admin", "show", "nothing-there"],
        &["mq-admin", "ls"],
    ] {
        let done = store.run(args[0], &args[1..], b"");
        assert_ne!(done.code, 0);
        assert!(done.stderr.starts_with(&format!("{}: ", args[0])), "{}", done.stderr);
        for mark in ["Error {", "Err(", "Os {", "panicked", "RUST_BACKTRACE", "Some("] {
            assert!(!done.stderr.contains(mark), "{}", done.stderr);
        }
    }
}

#[test]
fn quiet_keeps_hints_away() {
    let store = Store::new();
    store.run("mq-send", &["-q", "q"], b"a\0b\n").ok().quietly();
    store.run("mq-recv", &["-q", "-e", "q"], b"").ok().quietly();
}

#[test]
fn values_that_say_nothing_are_usage_errors() {
    let store = Store::new();
    for args in [
        &["mq-send", "--id", "", "q", "-m", "x"][..],
        &["mq-send", "--producer", "", "q", "-m", "x"],
        &["mq-send", "-k", "", "q", "-m", "x"],
        &["mq-send", "--ttl", "0s", "q", "-m", "x"],
        &["mq-recv", "-e", "["],
        &["mq-recv", "-e", "q[a"],
        &["mq-recv", "-e", "q[]"],
    ] {
        let done = store.run(args[0], &args[1..], b"").exits(2);
        assert!(!done.stderr.is_empty());
    }
    // An empty id in an envelope is none: both are stored.
    store.run("mq-admin", &["declare", "--unique-ids", "9", "u"], b"").ok();
    let twice = b"{\"data\":\"a\",\"id\":\"\"}\n{\"data\":\"b\",\"id\":\"\"}\n";
    store.run("mq-send", &["-J", "u"], twice).ok();
    assert_eq!(store.receive("u"), b"a\nb\n");
}
