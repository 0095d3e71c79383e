//! mq-stat for programs: lines, JSON, Prometheus text, checks.

use std::os::unix::fs::PermissionsExt;

use openmetrics_parser::{PrometheusType, PrometheusValue, prometheus::parse_prometheus};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Running, Store, eventually};
use crate::seq;

/// A store with a queue in which something of every kind is known.
fn busy() -> (Store, Running) {
    let store = Store::new();
    store.send("jobs", &seq(1, 100));
    let receiver = store.spawn("mq-recv", &["jobs", "--", "sleep", "60"]);
    store.await_number("jobs", "unacked", 2);
    (store, receiver)
}

#[test]
fn json_is_an_object_for_each_queue_and_look() {
    let (store, _receiver) = busy();
    let done = store.run("mq-stat", &["-J", "-n", "2", "-i", "100ms"], b"").ok().quietly();
    let lines: Vec<Value> =
        done.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "a line for each queue and look");
    assert_eq!((&lines[1]["queue"], &lines[1]["ready"]), (&"jobs".into(), &98.into()));
    assert_eq!(lines[1]["groups"][0]["unacked"], 2);
    let interval = lines[1]["interval"].as_f64().expect("seconds");
    assert!((0.05..30.0).contains(&interval), "{interval}");
}

/// What a group's account holds must be what was stored for it.
#[test]
fn figures_add_up() {
    let (store, receiver) = busy();
    let look = || {
        let done = store.run("mq-stat", &["-J", "-n", "1", "jobs"], b"").ok();
        serde_json::from_str::<Value>(done.text()).expect("a line of JSON")
    };
    let adds_up = |line: &Value| {
        for group in line["groups"].as_array().expect("groups") {
            let number = |value: &Value| value.as_u64().expect("a number");
            let account = group["account"].as_object().expect("an account");
            let ended = account.iter().filter(|(name, _)| *name != "stored");
            let ended: u64 = ended.map(|(_, count)| number(count)).sum();
            let there: u64 = ["ready", "unacked", "resting", "dying"]
                .iter()
                .map(|name| number(&group[*name]))
                .sum();
            assert_eq!(number(&account["stored"]), ended + there, "{line}");
        }
    };
    let line = look();
    assert_eq!(line["counted"]["stored"], 100, "{line}");
    assert_eq!(line["counted"]["announced"], 100, "{line}");
    adds_up(&line);
    drop(receiver);
    store.await_number("jobs", "unacked", 0);
    assert_eq!(store.receive("jobs").len(), seq(1, 100).len());
    let line = look();
    assert_eq!(line["counted"]["acked"], 100, "{line}");
    assert_eq!(line["groups"][0]["account"]["acked"], 100, "{line}");
    assert_eq!(line["latency"]["whole"]["count"], 100, "{line}");
    adds_up(&line);
}

#[test]
fn history_tells_what_happened_before_anybody_looked() {
    let store = Store::new();
    store.send("jobs", &seq(1, 100));
    store.receive("jobs");
    store.send("other", b"x\n");
    let sum = |args: &[&str], field: &str| -> u64 {
        let done = store.run("mq-stat", args, b"").ok().quietly();
        let lines = done.text().lines();
        lines
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
            .filter(|line| line["queue"] == "jobs")
            .map(|line| line[field].as_u64().expect("a number"))
            .sum()
    };
    for since in ["2m", "1h"] {
        for field in ["stored", "delivered", "acked"] {
            assert_eq!(sum(&["--since", since, "-J"], field), 100, "{since} {field}");
        }
    }
    let done = store.run("mq-stat", &["--since", "1h", "jobs"], b"").ok().quietly();
    let lines: Vec<&str> = done.text().lines().collect();
    assert!(lines[0].starts_with("TIME") && lines[1].ends_with(" jobs"), "{}", done.text());
    assert!(!done.text().contains("other"), "{}", done.text());
    store.run("mq-stat", &["--since", "4h"], b"").exits(2).says("3h");
}

#[test]
fn lines_are_for_people_and_for_awk() {
    let store = Store::new();
    let _server = store.serve();
    let done = store.run("mq-stat", &["-n", "1"], b"").ok().quietly();
    assert_eq!(done.text().lines().count(), 2, "a head and a sum of nothing: {}", done.text());
    store.send("a", &seq(1, 3));
    store.send("b", &seq(1, 5));
    let done = store.run("mq-stat", &["-n", "10", "-i", "100ms"], b"").ok().quietly();
    let heads = done.text().lines().filter(|line| line.starts_with("TIME")).count();
    assert_eq!(heads, 2, "the head comes again: {}", done.text());
    assert!(done.text().lines().all(|line| line.len() <= 80), "{}", done.text());
    let third = done.text().lines().nth(3).expect("lines");
    let words: Vec<&str> = third.split_whitespace().collect();
    assert_eq!((words.len(), words[1], words[10]), (11, "8", "(total)"), "{third}");
    // One queue alone needs no sum; the fullest can come first.
    let done = store.run("mq-stat", &["-n", "1", "a"], b"").ok();
    assert_eq!(done.text().lines().count(), 2, "{}", done.text());
    let done = store.run("mq-stat", &["-n", "1", "--sort", "ready"], b"").ok();
    assert!(done.text().lines().nth(1).expect("a line").ends_with(" b"), "{}", done.text());
    // A reader that has enough ends it.
    let done = store.sh("mq-stat -b -i 100ms | head -n 3; exit ${PIPESTATUS[0]}");
    assert_eq!(done.code, 141, "{}", done.stderr);
}

#[test]
fn prometheus_text_is_what_a_parser_takes() {
    let (store, _receiver) = busy();
    store.send("other", b"x\n");
    let done = store.run("mq-stat", &["--prometheus"], b"").ok().quietly();
    let parsed = parse_prometheus(done.text())
        .unwrap_or_else(|error| panic!("{error:?} in\n{}", done.text()));
    let value = |family: &str, labels: &[(&str, &str)]| -> f64 {
        let family = parsed.families.get(family).unwrap_or_else(|| panic!("no family {family}"));
        let with = |name: &str| labels.iter().find(|(label, _)| *label == name).map(|(_, v)| *v);
        let names = family.get_label_names();
        let sample = family.iter_samples().find(|sample| {
            let values = sample.get_labelset().expect("labels");
            names.iter().all(|name| values.get_label_value(name) == with(name))
        });
        match &sample.unwrap_or_else(|| panic!("no sample with {labels:?}")).value {
            PrometheusValue::Gauge(number) => number.as_f64(),
            PrometheusValue::Counter(counter) => counter.value.as_f64(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(value("mq_queue_messages_ready", &[("queue", "jobs")]), 98.0);
    assert_eq!(value("mq_queue_messages_unacked", &[("queue", "jobs")]), 2.0);
    assert_eq!(value("mq_queue_messages_ready", &[("queue", "other")]), 1.0);
    assert_eq!(value("mq_queue_consumers", &[("queue", "jobs")]), 1.0);
    let group = [("queue", "jobs"), ("group", "default")];
    assert_eq!(value("mq_group_messages_unacked", &group), 2.0);
    assert!(value("mq_queue_oldest_message_age_seconds", &[("queue", "jobs")]) > 0.0);
    assert_eq!(value("mq_queue_messages_published_total", &[("queue", "jobs")]), 100.0);
    for (name, kind) in [
        ("mq_queue_ready_bytes", PrometheusType::Gauge),
        ("mq_queue_messages_published_total", PrometheusType::Counter),
        ("mq_queue_messages_acked_total", PrometheusType::Counter),
        ("mq_queue_messages_redelivered_total", PrometheusType::Counter),
        ("mq_queue_messages_dead_lettered_total", PrometheusType::Counter),
    ] {
        let family = parsed.families.get(name).unwrap_or_else(|| panic!("no family {name}"));
        assert_eq!(family.family_type, kind, "{name}");
    }
}

#[test]
fn a_file_of_prometheus_text_is_replaced_whole() {
    let (store, _receiver) = busy();
    let file = store.beside("mq.prom");
    std::fs::write(&file, "old\n").expect("written");
    let before = std::fs::File::open(&file).expect("opened");
    let path = file.to_str().expect("UTF-8");
    store.run("mq-stat", &["--prometheus", "-o", path], b"").ok().quietly();
    let text = std::fs::read_to_string(&file).expect("read");
    assert!(parse_prometheus(&text).is_ok() && text.contains("mq_up 1\n"), "{text}");
    let old = std::io::read_to_string(before).expect("read");
    assert_eq!(old, "old\n", "who reads the old file goes on reading it");
    let mode = std::fs::metadata(&file).expect("there").permissions().mode();
    assert_eq!(mode & 0o444, 0o444, "a collector of another user reads it");
    let leavings = std::fs::read_dir(file.parent().expect("a directory"))
        .expect("listed")
        .filter(|entry| {
            let name = entry.as_ref().expect("an entry").file_name();
            name.to_string_lossy().contains("mq.prom.")
        })
        .count();
    assert_eq!(leavings, 0);
    // Again and again, also when the server goes.
    let mut collector = store.spawn("mq-stat", &["--prometheus", "-o", path, "-i", "100ms"]);
    store.run("mq-admin", &["stop"], b"").ok();
    let down = || std::fs::read_to_string(&file).expect("read").contains("mq_up 0\n");
    eventually("the file says that no server answers", || down().then_some(()));
    store.send("jobs", b"x\n");
    eventually("the file tells of the new server", || (!down()).then_some(()));
    collector.signal(Signal::TERM);
    assert_eq!(collector.await_end(), 143);
    let bad = store.beside("not-there").join("mq.prom");
    let bad = ["--prometheus", "-o", bad.to_str().expect("UTF-8")];
    store.run("mq-stat", &bad, b"").exits(1).says("cannot put the figures in the place of");
}

#[test]
fn without_a_server_none_is_started_and_69_is_said() {
    let store = Store::new();
    for args in [&["-b"][..], &["-J"], &["--since", "1m"], &["--prometheus"], &["-n", "1"]] {
        store.run("mq-stat", args, b"").exits(69).says("no mq-serve runs");
    }
    let done = store.run("mq-stat", &["--prometheus"], b"").exits(69);
    assert!(done.text().ends_with("mq_up 0\n"), "{}", done.text());
    let done = store.run("mq-stat", &["--check"], b"").exits(3).quietly();
    assert!(done.text().starts_with("MQ UNKNOWN: "), "{}", done.text());
    assert_eq!(done.text().lines().count(), 1, "{}", done.text());
    assert!(store.servers().is_empty());
    let mut lines = {
        store.send("q", b"x\n");
        store.spawn("mq-stat", &["-b", "-i", "100ms"])
    };
    lines.lines(3);
    store.run("mq-admin", &["stop"], b"").ok();
    lines.finish().exits(69);
}

#[test]
fn checks_end_as_plug_ins_do() {
    let (store, receiver) = busy();
    for (args, code, word) in [
        (&["--check"][..], 0, "OK"),
        (&["--check", "--max-ready", "98,200", "jobs"], 0, "OK"),
        (&["--check", "--max-ready", "97,200", "jobs"], 1, "WARNING"),
        (&["--check", "--max-ready", "10,97"], 2, "CRITICAL"),
        (&["--check", "--max-unacked", "1,10"], 1, "WARNING"),
        (&["--check", "--max-age", "1us,1h", "jobs"], 1, "WARNING"),
        (&["--check", "--max-age", "1us,1us", "jobs"], 2, "CRITICAL"),
        (&["--check", "--min-receivers", "1,1", "jobs"], 0, "OK"),
        (&["--check", "--min-receivers", "2,1", "jobs"], 1, "WARNING"),
        (&["--check", "--max-latency", "1h,2h", "jobs"], 0, "OK"),
        (&["--check", "--max-dead", "0,10", "jobs"], 0, "OK"),
        (&["--check", "--max-ready", "0,0", "*.dead"], 0, "OK"),
        (&["--check", "jobz"], 3, "UNKNOWN"),
        (&["--check", "--max-ready", "10"], 3, "UNKNOWN"),
        (&["--check", "--nonsense"], 3, "UNKNOWN"),
    ] {
        let done = store.run("mq-stat", args, b"").exits(code);
        let line = done.text().strip_suffix('\n').expect("a line");
        assert!(line.starts_with(&format!("MQ {word}: ")), "{args:?}: {line}");
        assert!(!line.contains('\n') && line.matches('|').count() <= 1, "{args:?}: {line}");
    }
    drop(receiver);
    let done = store.run("mq-stat", &["--max-ready", "1,2"], b"").exits(2);
    assert!(done.stderr.contains("--check"), "{}", done.stderr);
}

/// Lines of zeros, and nothing else, were printed for a name that was mistyped.
#[test]
fn a_queue_that_is_not_there_is_named() {
    let store = Store::new();
    store.send("jobs", b"x\n");
    let done = store.run("mq-stat", &["-n", "1", "josb", "jobs"], b"").ok();
    assert_eq!(done.stderr, "mq-stat: there is no queue josb yet; it is shown when there is\n");
    assert!(done.text().contains(" jobs"), "the other is shown: {}", done.text());
    store.run("mq-stat", &["-q", "-J", "-n", "1", "josb"], b"").ok().quietly();
    store.run("mq-stat", &["-n", "1", "jo*"], b"").ok().quietly();
    let done = store.run("mq-stat", &["--since", "1h", "josb"], b"").exits(1);
    assert!(done.stderr.contains("there is no queue josb"), "{}", done.stderr);
    assert!(done.stdout.is_empty());
}
