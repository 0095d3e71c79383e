//! Groups and the other ways of taking: where a group begins, turns, leases with receipts, at most
//! once.

use mq::settings::Start;
use mq::wire::{Kind, OpenReceive, ReceiveMode, Request};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::peer::Peer;
use crate::harness::{Store, eventually};
use crate::seq;

/// What a group receives until the end.
#[track_caller]
fn receive(store: &Store, group: &str, args: &[&str]) -> Vec<u8> {
    store.run("mq-recv", &[&["-e", "-g", group], args, &["q"]].concat(), b"").ok().stdout
}

#[test]
fn each_group_sees_everything() {
    let store = Store::new();
    store.send("q", b"");
    for group in ["one", "two", "default"] {
        assert_eq!(receive(&store, group, &["--from", "newest"]), b"");
    }
    store.send("q", &seq(1, 10));
    assert_eq!(receive(&store, "one", &[]), seq(1, 10));
    assert_eq!(receive(&store, "two", &[]), seq(1, 10));
    assert_eq!(store.receive("q"), seq(1, 10));
    store.send("q", &seq(11, 12));
    assert_eq!(receive(&store, "one", &[]), seq(11, 12));
    assert_eq!(receive(&store, "two", &["--from", "oldest"]), seq(11, 12), "it stays where it is");
}

/// The first group of a queue, made behind what is there: nobody gets that, which used to happen without a
/// word.
#[test]
fn who_makes_the_first_group_behind_messages_is_told_that_nobody_gets_them() {
    let store = Store::new();
    let told = |args: &[&str]| {
        let done = store.run(args[0], &args[1..], b"").ok();
        done.stderr.contains("no group gets 7 messages of q").then_some(done.stdout)
    };
    let ways: [&[&str]; 4] = [
        &["mq-recv", "-e", "--from", "-3", "q"],
        &["mq-recv", "-e", "--exclusive", "-g", "audit", "--from", "7", "q"],
        &["mq-admin", "group", "add", "--from", "7", "q", "audit"],
        &["mq-pipe", "-e", "--from", "7", "q", "out", "--", "cat"],
    ];
    for way in ways {
        store.send("q", &seq(1, 10));
        let out = told(way).unwrap_or_else(|| panic!("{way:?} said nothing"));
        assert!(out.is_empty() || out == seq(8, 10), "{way:?}");
        // A second group is behind nothing that the first one has not.
        assert!(told(&["mq-admin", "group", "add", "q", "second"]).is_none());
        store.run("mq-admin", &["rm", "q"], b"").ok();
    }
    // What a log keeps is there for groups to come.
    store.run("mq-admin", &["declare", "--retain", "log", "q"], b"").ok();
    store.send("q", &seq(1, 10));
    assert!(told(ways[0]).is_none());
}

#[test]
fn a_group_that_nobody_made_is_an_error_and_no_leak() {
    let store = Store::new();
    store.send("q", b"a\n");
    let done = store.run("mq-recv", &["-g", "typo", "-e", "q"], b"").exits(1);
    assert!(done.stderr.contains("typo") && done.stderr.contains("--from"), "{}", done.stderr);
    let info = store.show("q").expect("q");
    assert!(!info["groups"].to_string().contains("typo"));
}

/// What every group has settled is gone, and a new group does not see it.
#[test]
fn a_new_group_begins_with_what_is_not_gone() {
    let store = Store::new();
    store.send("q", &seq(1, 5));
    store.run("mq-recv", &["-n2", "q"], b"").ok();
    assert_eq!(receive(&store, "late", &["--from", "oldest"]), seq(3, 5));
    assert_eq!(store.receive("q"), seq(3, 5));
}

#[test]
fn a_group_begins_where_it_is_told() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "q"], b"").ok();
    store.send("q", &seq(0, 9));
    for (index, (from, expected)) in [
        ("oldest", seq(0, 9)),
        ("newest", Vec::new()),
        ("6", seq(6, 9)),
        ("-3", seq(7, 9)),
        ("-99", seq(0, 9)),
        ("1970-01-01T00:00:00Z", seq(0, 9)),
        ("2999-01-01T00:00:00Z", Vec::new()),
    ]
    .into_iter()
    .enumerate()
    {
        let got = receive(&store, &format!("g{index}"), &["--from", from]);
        assert_eq!(got, expected, "from {from}");
    }
    store.run("mq-recv", &["--from", "yesterday", "q"], b"").exits(2).says("oldest");
}

#[test]
fn an_exclusive_receiver_is_followed_by_the_next_with_a_higher_number() {
    let store = Store::new();
    store.send("q", &seq(1, 2));
    let begin = |script: &str| {
        store.spawn("mq-recv", &["--exclusive", "-n2", "q", "--", "sh", "-c", script])
    };
    let mut first =
        begin("read n; echo $n $MQ_EPOCH; [ $n = 1 ] || { echo $$ > pid; exec sleep 600; }");
    let lines = first.lines(2);
    let mut second = begin("read n; echo $n $MQ_EPOCH");
    second.await_stderr("another receiver");
    store.send("q", &seq(3, 3));
    first.signal(Signal::KILL);
    first.await_end();
    // Nobody is left who could end it.
    store.sh("kill -9 $(cat pid)").ok();
    let next = second.lines(2);
    assert_eq!(second.finish().code, 0);
    let numbers = |line: &String| -> (u64, u64) {
        let (message, epoch) = line.split_once(' ').expect("two words");
        (message.parse().expect("a number"), epoch.parse().expect("a number"))
    };
    let (before, after) = (lines.iter().map(numbers), next.iter().map(numbers));
    let (before, after): (Vec<_>, Vec<_>) = (before.collect(), after.collect());
    assert_eq!((before[0].0, before[1].0, after[0].0, after[1].0), (1, 2, 2, 3));
    assert!(before[0].1 == before[1].1 && after[0].1 == after[1].1);
    assert!(after[0].1 > before[0].1, "{lines:?} {next:?}");
}

/// It once told everyone of another receiver first, also who was alone.
#[test]
fn an_exclusive_receiver_is_told_of_others_only_when_there_are_any() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    let alone = store.run("mq-recv", &["-e", "--exclusive", "q"], b"").ok().quietly();
    assert_eq!(alone.stdout, seq(1, 3));
    // One that takes nothing for itself is another too, as long as it holds something.
    store.send("q", &seq(4, 4));
    store.sh("mkfifo gate").ok();
    let mut holder =
        store.spawn("mq-recv", &["-n1", "q", "--", "sh", "-c", "echo begun; read x; cat gate"]);
    drop(holder.take_stdin());
    assert_eq!(holder.line().as_deref(), Some("begun"));
    let mut next = store.spawn("mq-recv", &["-e", "--exclusive", "q"]);
    next.await_stderr("another receiver has q, or messages of it");
    store.sh("echo done > gate").ok();
    assert_eq!(holder.finish().ok().text(), "done\n");
    assert_eq!(next.finish().ok().stdout, b"");
}

#[test]
fn at_most_once_is_gone_when_it_is_delivered() {
    let store = Store::new();
    store.send("q", &seq(1, 10));
    let mut receiver = store.spawn("mq-recv", &["--no-ack", "-n4", "q"]);
    assert_eq!(receiver.line().as_deref(), Some("1"));
    eventually("four are gone", || {
        let left = store.number("q", "ready") + store.number("q", "unacked");
        (left < 10).then_some(())
    });
    receiver.signal(Signal::KILL);
    receiver.await_end();
    let rest = store.receive("q");
    assert!(seq(1, 10).ends_with(&rest) && rest.len() < seq(1, 10).len(), "none came twice");
    store.send("q", &seq(1, 3));
    assert_eq!(store.run("mq-recv", &["--no-ack", "-e", "q"], b"").ok().stdout, seq(1, 3));
    assert_eq!(store.number("q", "ready"), 0);
}

#[track_caller]
fn leased(store: &Store, lease: &str) -> Value {
    let done = store.run("mq-recv", &["-J", "-n1", "--lease", lease, "q"], b"").ok();
    serde_json::from_str(done.text()).expect("an envelope")
}

#[test]
fn a_lease_outlives_its_receiver_and_the_server_and_is_settled_by_its_receipt() {
    let store = Store::new();
    store.send("q", b"a\nb\n");
    let envelope = leased(&store, "1h");
    assert_eq!((&envelope["data"], &envelope["attempt"]), (&"a".into(), &1.into()));
    let receipt = envelope["receipt"].as_str().expect("a receipt");
    assert_eq!(store.receive("q"), b"b\n", "only the other is to be had");
    store.kill_server();
    assert_eq!(store.receive("q"), b"");
    assert_eq!(store.number("q", "unacked"), 1);
    store.run("mq-admin", &["ack", receipt], b"").ok();
    assert_eq!(store.number("q", "unacked"), 0);
    assert_ne!(store.run("mq-admin", &["ack", receipt], b"").code, 0, "it is settled");
}

#[test]
fn a_lease_that_is_over_makes_its_receipt_stale() {
    let store = Store::new();
    store.send("q", b"a\n");
    let receipt = leased(&store, "50ms")["receipt"].as_str().expect("a receipt").to_owned();
    store.await_number("q", "ready", 1);
    let again = leased(&store, "1h");
    assert_eq!(again["attempt"], 2);
    assert_ne!(store.run("mq-admin", &["ack", &receipt], b"").code, 0, "stale");
    assert_eq!(store.number("q", "unacked"), 1, "it settles nothing of another's");
    let receipt = again["receipt"].as_str().expect("a receipt");
    store.run("mq-admin", &["nack", receipt], b"").ok();
    eventually("it is back", || (store.number("q", "unacked") == 0).then_some(()));
}

#[test]
fn a_lease_without_receipts_is_a_usage_error() {
    let store = Store::new();
    store.run("mq-recv", &["--lease", "1m", "q"], b"").exits(2).says("-J");
    store.run("mq-recv", &["-J", "--lease", "1ms", "q"], b"").exits(2).says("10ms");
    store.run("mq-recv", &["-J", "--lease", "1m", "--no-ack", "q"], b"").exits(2);
    store.run("mq-recv", &["-J", "--lease", "1m", "--peek", "q"], b"").exits(2);
    store.run("mq-recv", &["--from", "oldest", "--peek", "q"], b"").exits(2);
}

/// `mq-admin group ls|add|rm|seek`
#[test]
fn groups_are_made_moved_and_removed_by_hand() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "q"], b"").ok();
    store.send("q", &seq(1, 10));
    let group = |args: &[&str]| store.run("mq-admin", &[&["group"], args].concat(), b"");
    group(&["add", "q", "audit"]).ok();
    group(&["add", "--from", "-3", "q", "last"]).ok();
    let listed = group(&["ls", "-J", "q"]).ok();
    let names: Vec<String> = listed
        .text()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON lines"))
        .map(|info| format!("{} {}", info["group"].as_str().expect("a name"), info["ready"]))
        .collect();
    assert_eq!(names, ["audit 10", "last 3"]);
    assert_eq!(receive(&store, "audit", &[]), seq(1, 10));
    assert_eq!(receive(&store, "last", &[]), seq(8, 10));
    // The first message has the offset 0.
    for (place, again) in [("5", seq(6, 10)), ("oldest", seq(1, 10)), ("-2", seq(9, 10))] {
        group(&["seek", "--to", place, "q", "audit"]).ok();
        assert_eq!(receive(&store, "audit", &[]), again, "from {place}");
    }
    group(&["seek", "--to", "oldest", "q", "last"]).ok();
    group(&["seek", "--to", "newest", "q", "last"]).ok();
    assert_eq!(receive(&store, "last", &[]), b"");
    let mut receiver = store.spawn("mq-recv", &["-g", "last", "q"]);
    store.await_number("q", "receivers", 1);
    group(&["seek", "--to", "oldest", "q", "last"]).exits(75).says("receivers");
    receiver.signal(Signal::TERM);
    receiver.await_end();
    group(&["rm", "q", "audit"]).ok();
    store.run("mq-recv", &["-e", "-g", "audit", "q"], b"").exits(1).says("no group audit");
    group(&["rm", "q", "audit"]).exits(1).says("no group audit");
}

/// `--retain log`: what is settled is there for whoever comes later.
#[test]
fn a_log_is_replayed_by_several_groups_at_once() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "q"], b"").ok();
    let input = seq(1, 100_000);
    store.send("q", &input);
    assert!(store.receive("q") == input, "the first reader settles it all");
    let replay = "for g in a b c d; do mq-recv -g $g --from oldest -e q > $g & done; wait; \
                  cat a b c d | cksum; ls a b c d | wc -l";
    let expected = "mq-recv -g e --from oldest -e q > e; cat e e e e | cksum; echo 4";
    let (replayed, expected) = (store.sh(replay).ok(), store.sh(expected).ok());
    assert_eq!(replayed.text(), expected.text());
    assert!(std::fs::read(store.beside("a")).expect("a file") == input);
}

/// `--retain log --max-messages`, `--max-bytes`: at least that is kept, and not much more: files of
/// 64 KiB go as a whole.
#[test]
fn a_log_gives_up_what_is_over_its_limit() {
    for limit in [["--max-messages", "8000"], ["--max-bytes", "48000"]] {
        let store = Store::new();
        store
            .run("mq-admin", &[&["declare", "--retain", "log"], &limit[..], &["q"]].concat(), b"")
            .ok();
        for round in 0..40 {
            store.send("q", &seq(10_000 + round * 1000, 10_999 + round * 1000));
        }
        eventually(&format!("{limit:?} is kept"), || {
            let done = store.run("mq-recv", &["--peek", "q"], b"").ok();
            let lines = done.text().lines().count();
            assert!(lines >= 8000, "{lines} are left of at least 8000");
            assert!(done.text().ends_with("49999\n"), "the newest are kept");
            (lines <= 22_000).then_some(())
        });
    }
}

/// Once, a credit that came before the group was there was dropped: a receiver that said all that it
/// had to say at once got nothing, ever.
#[test]
fn a_credit_counts_from_before_the_group_or_the_queue_is_there() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    for queue in ["q", "later"] {
        let mut peer = Peer::connect(&store).expect("the server answers");
        let open = OpenReceive {
            from: Some(Start::Oldest),
            ..OpenReceive::new(
                queue.parse().expect("a name"),
                "new".parse().expect("a name"),
                ReceiveMode::Take,
            )
        };
        peer.say(1, &Request::OpenReceive(open)).expect("the server listens");
        peer.say(1, &Request::Credit(3)).expect("the server listens");
        assert_eq!(peer.frame().header.kind, Kind::Receiving);
        if queue == "later" {
            store.send("later", &seq(1, 3));
        }
        peer.frame_of(Kind::Deliver);
    }
}

/// What the last mover said was settled again at the next start, also in a group that had been set
/// back since: the message did not come again.
#[test]
fn a_dead_letter_comes_again_after_its_group_was_set_back_and_the_server_killed() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "q", "--retain", "log"], b"").ok();
    store.send("q", b"bad\n");
    store.sh("mq-recv -e q -- sh -c 'exit 65'").exits(123);
    store.await_number("q.dead", "ready", 1);
    store.run("mq-admin", &["group", "seek", "q", "default", "--to", "oldest"], b"").ok();
    store.kill_server();
    assert_eq!(store.receive("q"), b"bad\n");
    // The same for a group that was removed and made again.
    store
        .sh("mq-admin group add q g --from oldest && mq-recv -e -g g q -- sh -c 'exit 65'")
        .exits(123);
    store.await_number("q.g.dead", "ready", 1);
    store.sh("mq-admin group rm q g && mq-admin group add q g --from oldest").ok();
    store.kill_server();
    assert_eq!(store.run("mq-recv", &["-e", "-g", "g", "q"], b"").ok().stdout, b"bad\n");
}
