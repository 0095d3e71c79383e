//! Queues that live at an engine: how the helper is started, what of its end is told, and queues that are
//! declared to live elsewhere. (What the helper does stands in `tests/elsewhere` and `tests/remote`.)

use std::path::Path;

use crate::harness::bench::Bench;
use crate::harness::{eventually, process};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

const URL: &str = "amqp://me:secret@rabbit.example/%2f/jobs";

#[test]
fn without_the_helper_it_is_said_how_to_get_it() {
    let bench = Bench::new(None);
    for (name, args) in [
        ("mq-send", &[URL, "-m", "x"][..]),
        ("mq-recv", &["-e", URL]),
        ("mq-admin", &["show", URL]),
        ("mq-stat", &["-n1", URL]),
        ("mq-pipe", &[URL, "out", "--", "cat"]),
        ("mq-pipe", &["-", URL, "--", "cat"]),
    ] {
        let done = bench.run(name, args).exits(69);
        let done = done.says("amqp://me:***@rabbit.example/%2f/jobs").says("mq-remote");
        let done = done.says("try: cargo install mq --features remote");
        assert!(!done.stderr.contains("secret"), "{}", done.stderr);
    }
    bench.run("mq-send", &[URL, "-m", "x"]).exits(69).says("confirmed: 0 leading messages");
    assert!(!bench.store.path().exists(), "the store has nothing to do with it");
}

#[test]
fn the_helper_is_told_the_url_in_its_environment_and_only_there() {
    let script = r#"d=$(dirname "$0"); echo "$@" > "$d/args"; echo "$MQ_REMOTE_URL" > "$d/url"
                    tr '\0' ' ' < /proc/$$/cmdline >> "$d/args"; cut -d" " -f1,5 /proc/$$/stat > "$d/group"; exit 3"#;
    let bench = Bench::new(Some(script));
    let done = bench.run("mq-send", &["-w", "7s", URL, "-m", "x"]).exits(69);
    done.says("mq-remote, which speaks with amqp://me:***@").says("it ended with status 3");
    let args = read(&bench.file("args"));
    assert!(args.contains("amqp://me:***@rabbit.example/%2f/jobs"), "{args}");
    assert!(!args.contains("secret"), "{args}");
    let wait = args.split_whitespace().skip_while(|word| *word != "--wait").nth(1).expect("a wait");
    let wait: u64 = wait.strip_suffix("ms").expect("ms").parse().expect("a number");
    assert!((5_000..=7_000).contains(&wait), "{wait}");
    assert_eq!(read(&bench.file("url")).trim_end(), URL);
    // A Ctrl-C on the terminal is not for it: it leads a group of its own.
    let group = read(&bench.file("group"));
    let (pid, group) = group.trim_end().split_once(' ').expect("two numbers");
    assert_eq!(pid, group);
}

#[test]
fn the_death_of_the_helper_is_told() {
    let bench = Bench::new(Some("kill -9 $$"));
    let done = bench.run("mq-send", &[URL, "-m", "x"]).exits(69);
    done.says("it was ended by SIGKILL").says("confirmed: 0 leading messages");
    bench.run("mq-recv", &[URL]).exits(69).says("it was ended by SIGKILL");
}

#[test]
fn what_does_not_lead_elsewhere_is_refused_without_a_password() {
    let bench = Bench::new(None);
    bench.run("mq-recv", &[URL, "q"]).exits(2).says("one queue is received");
    for (name, args) in [
        ("mq-send", &["amqp://me:secret@a b/q", "-m", "x"][..]),
        ("mq-recv", &["am qp://me:secret@a/q"]),
        ("mq-admin", &["wait", URL]),
        ("mq-admin", &["group", "ls", URL]),
        ("mq-pipe", &["amqp://me:secret@a b/q", "q", "--", "cat"]),
        ("mq-pipe", &["q", "amqp://me:secret@a b/q", "--", "cat"]),
        ("mq-pipe", &["--window", "1m", "q", URL, "--", "cat"]),
        ("mq-pipe", &["--state", "dir", URL, "q", "--", "cat"]),
        ("mq-pipe", &["--reset", URL, "q", "--", "cat"]),
    ] {
        let done = bench.run(name, args).exits(2).says("://me:***@");
        assert!(!done.stderr.contains("secret"), "{}", done.stderr);
    }
}

/// A helper that says where it was sent, and goes.
const WITNESS: &str = r#"echo "$MQ_REMOTE_URL" >> "$(dirname "$0")/sent"; exit 4"#;

#[test]
fn a_queue_may_be_declared_to_live_elsewhere() {
    let bench = Bench::new(Some(WITNESS));
    bench.run("mq-admin", &["declare", "jobs", "--at", URL]).ok();
    let shown = "at             amqp://me:***@rabbit.example/%2f/jobs";
    let sent = || read(&bench.file("sent")).lines().count();
    for _ in 0..2 {
        let before = sent();
        let done = bench.run("mq-admin", &["show", "jobs"]).ok();
        assert!(done.text().contains(shown), "{}", done.text());
        let done = bench.run("mq-admin", &["ls"]).ok();
        assert!(done.text().contains("jobs  at amqp://me:***@rabbit"), "{}", done.text());
        for args in
            [&["-J", "show", "jobs"][..], &["-J", "ls"], &["-J", "declare", "jobs", "--at", URL]]
        {
            let done = bench.run("mq-admin", args).ok();
            assert!(!done.text().contains("secret"), "{}", done.text());
        }
        assert_eq!(sent(), before, "nobody connects to show that");
        bench.run("mq-send", &["jobs", "-m", "x"]).exits(69).says("sending to jobs: mq-remote");
        bench.run("mq-recv", &["jobs"]).exits(69).says("receiving from jobs: mq-remote");
        bench.run("mq-recv", &["-e", "jobs"]).exits(69);
        bench.run("mq-admin", &["purge", "jobs"]).exits(69);
        let done = bench.run("mq-pipe", &["jobs", "out", "--", "cat"]).exits(69);
        done.says("from jobs to out: mq-remote, which speaks with amqp://me:***@");
        bench.run("mq-pipe", &["other", "jobs", "--", "cat"]).exits(69).says("from other to jobs");
        assert_eq!(sent(), before + 6);
        // For good.
        bench.store.kill_server();
        bench.run("mq-send", &["other", "-m", "x"]).ok();
    }
    assert!(read(&bench.file("sent")).lines().all(|line| line == URL));
    // What cannot follow says so.
    let done = bench.run("mq-admin", &["requeue", "jobs"]).exits(1);
    done.says("queue jobs lives at amqp://me:***@");
    bench.run("mq-recv", &["-e", "jobs", "other"]).exits(1).says("queue jobs lives at");
    assert!(bench.store.show("out").is_none(), "nobody came as far as to make it");
    assert_eq!(bench.run("mq-recv", &["-e", "*"]).ok().stdout, b"x\nx\n");
    // And back.
    bench.run("mq-admin", &["rm", "jobs"]).ok();
    bench.run("mq-send", &["jobs", "-m", "here"]).ok();
    assert_eq!(bench.run("mq-recv", &["-e", "jobs"]).ok().stdout, b"here\n");
}

#[test]
fn a_queue_that_holds_messages_stays() {
    let bench = Bench::new(Some(WITNESS));
    bench.run("mq-send", &["jobs", "-m", "x"]).ok();
    let declare = ["declare", "jobs", "--change", "--at", URL];
    bench.run("mq-admin", &declare).exits(2).says("queue jobs holds messages");
    bench.run("mq-admin", &["declare", "jobs", "--at", URL]).exits(1).says("without --at");
    assert_eq!(bench.run("mq-recv", &["-e", "jobs"]).ok().stdout, b"x\n");
    bench.run("mq-send", &["--delay", "1h", "jobs", "-m", "x"]).ok();
    bench.run("mq-admin", &declare).exits(2).says("queue jobs holds messages");
    bench.run("mq-admin", &["purge", "jobs"]).ok();
    // Whoever uses it at the moment goes along.
    let mut receiver = process::Running::start(bench.command("mq-recv", &["jobs"]));
    let mut sender = process::Running::start(bench.command("mq-send", &["jobs"]));
    sender.write(b"one\n");
    assert_eq!(receiver.line(), Some("one".to_owned()));
    eventually("it is settled", || {
        let ready = bench.store.number("jobs", "ready") + bench.store.number("jobs", "unacked");
        (ready == 0).then_some(())
    });
    bench.run("mq-admin", &declare).ok();
    assert_eq!(receiver.await_end(), 69);
    sender.write(b"two\n");
    assert_eq!(sender.await_end(), 69);
    sender.finish().says("confirmed: 1 leading messages");
}
