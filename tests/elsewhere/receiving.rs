//! Receiving from an engine: credit, acks, tries, back-off, dead letters, lost connections.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use mq::remote::failure::{Failure, Kind};
use mq::remote::message::Facts;
use rustix::process::Signal;

use crate::desk::Desk;
use crate::harness::eventually;
use crate::harness::seq;
use crate::memory::Stored;
use crate::stand::Stand;

fn fill(stand: &Stand, first: u64, last: u64) {
    stand.store.run("mq-send", &["q"], &seq(first, last)).ok();
}

/// What was acked in a queue, sorted.
fn acked(stand: &Stand, queue: &str) -> Vec<u64> {
    let bodies = stand
        .broker
        .with(|state| state.queues.get(queue).map_or_else(Vec::new, |queue| queue.acked.clone()));
    let mut numbers: Vec<u64> = bodies
        .iter()
        .map(|body| std::str::from_utf8(body).expect("digits").parse().expect("a number"))
        .collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn every_message_is_a_line_here() {
    let stand = Stand::new("every_message_is_a_line_here");
    fill(&stand, 1, 100_000);
    let received = stand.store.run("mq-recv", &["-n100000", "q"], b"").ok().quietly();
    assert_eq!(received.stdout, seq(1, 100_000));
    assert_eq!(acked(&stand, "q"), (1..=100_000).collect::<Vec<u64>>());
    assert!(stand.broker.ready("q").is_empty());
}

#[test]
fn the_end_is_that_of_what_was_there() {
    let stand = Stand::new("the_end_is_that_of_what_was_there");
    stand.store.run("mq-recv", &["-e", "q"], b"").ok();
    fill(&stand, 1, 1000);
    assert_eq!(stand.store.receive("q"), seq(1, 1000));
    stand.store.run("mq-recv", &["-e", "-n1", "q"], b"").exits(124);
}

#[test]
fn bodies_and_attributes_come_as_they_are() {
    let stand = Stand::new("bodies_and_attributes_come_as_they_are");
    let large = vec![b'x'; 3_000_000];
    stand.store.run("mq-send", &["--whole", "q"], &large).ok();
    let args = ["q", "-m", "a\nb", "-k", "key", "-H", "n=v"];
    stand.store.run("mq-send", &args, b"").ok();
    stand.store.run("mq-send", &["q", "-m", "plain"], b"").ok();
    let one = stand.store.run("mq-recv", &["-n1", "--raw", "q"], b"").ok();
    assert_eq!(one.stdout, large);
    let line = stand.store.run("mq-recv", &["-n1", "-J", "q"], b"").ok();
    let envelope: serde_json::Value = serde_json::from_slice(&line.stdout).expect("an envelope");
    assert_eq!((&envelope["data"], &envelope["key"]), (&"a\nb".into(), &"key".into()));
    assert_eq!(envelope["headers"]["n"], "v");
    assert_eq!(stand.store.receive("q"), b"plain\n");
}

#[test]
fn a_slow_reader_holds_no_more_than_it_reads() {
    let stand = Stand::new("a_slow_reader_holds_no_more");
    fill(&stand, 1, 1000);
    let script = "mq-recv -n 5 q | while read -r x; do echo $x; done";
    assert_eq!(stand.store.sh(script).ok().stdout, seq(1, 5));
    assert_eq!(stand.broker.ready("q").len(), 995);
    // A reader that takes none of its second.
    let mut receiver = stand.store.spawn("mq-recv", &["q"]);
    assert_eq!(receiver.line(), Some("6".to_owned()));
    receiver.signal(Signal::KILL);
    receiver.finish();
    eventually("what it held is ready again", || {
        (stand.broker.ready("q").len() >= 994).then_some(())
    });
    let most = stand.broker.with(|state| state.queues["q"].unsettled_max);
    assert!(most < 100, "{most} messages were unsettled at once");
}

#[test]
fn no_more_is_taken_than_was_asked_for() {
    let stand = Stand::new("no_more_is_taken_than_was_asked_for");
    fill(&stand, 1, 10);
    assert_eq!(stand.store.run("mq-recv", &["-n3", "q"], b"").ok().stdout, seq(1, 3));
    let ready: Vec<Stored> =
        stand.broker.with(|state| state.queues["q"].ready.iter().cloned().collect());
    assert_eq!(ready.len(), 7);
    assert!(ready.iter().all(|stored| stored.attempt == 1), "one was taken and given back");
}

#[test]
fn failed_messages_come_again_and_end_as_dead_letters_once() {
    let stand =
        Stand::with("failed_messages_end_once", "?delivery-limit=3", Duration::from_secs(30));
    fill(&stand, 1, 200);
    // Each tenth fails for good, each other third fails once.
    let script = "read -r n; echo $n >> tries; \
                  if [ $((n % 10)) = 0 ]; then echo bad $n >&2; exit 3; fi; \
                  if [ $((n % 3)) = 0 ] && [ $MQ_ATTEMPT = 1 ]; then exit 4; fi";
    let args = ["-n", "300", "-P4", "--backoff", "1ms..5ms", "q", "--", "sh", "-c", script];
    stand.store.run("mq-recv", &args, b"").exits(123);
    assert!(stand.broker.ready("q").is_empty());
    // The dead ones are acked too: they are elsewhere.
    assert_eq!(acked(&stand, "q"), (1..=200).collect::<Vec<u64>>());
    let dead: Vec<Stored> =
        stand.broker.with(|state| state.queues["q.dead"].ready.iter().cloned().collect());
    let bodies: BTreeSet<u64> = dead
        .iter()
        .map(|stored| std::str::from_utf8(&stored.body).expect("digits").parse().expect("a number"))
        .collect();
    assert_eq!(dead.len(), 20, "each is dead once");
    assert_eq!(bodies, (1..=20).map(|n| n * 10).collect());
    let facts: &Facts = dead[0].facts.as_ref().expect("headers");
    let header = |name: &str| {
        let found = facts.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!(header("mq-dead-queue"), Some("q"));
    assert_eq!(header("mq-dead-attempts"), Some("3"));
    assert_eq!(header("mq-dead-reason"), Some("exit status 3"));
    assert!(header("mq-dead-stderr").is_some_and(|said| said.starts_with("bad ")));
    let tries = std::fs::read_to_string(stand.store.beside("tries")).expect("tries");
    assert_eq!(tries.lines().count(), 200 + 20 * 2 + 60);
}

#[test]
fn a_run_from_cron_tries_each_message_once() {
    let stand = Stand::new("a_run_from_cron_tries_each_once");
    fill(&stand, 1, 9);
    let script = "read -r n; echo $n >> tries; test $((n % 3)) != 0";
    let args = ["-e", "-P2", "--backoff", "1ms", "q", "--", "sh", "-c", script];
    stand.store.run("mq-recv", &args, b"").exits(123);
    let tries = std::fs::read_to_string(stand.store.beside("tries")).expect("tries");
    assert_eq!(tries.lines().count(), 9);
    eventually("what failed is ready again", || (stand.broker.ready("q").len() == 3).then_some(()));
    // 65: dead at once.
    stand.store.run("mq-recv", &["-e", "q", "--", "sh", "-c", "exit 65"], b"").exits(123);
    assert_eq!(stand.broker.ready("q.dead").len(), 3);
    assert!(stand.broker.ready("q").is_empty());
}

#[test]
fn what_an_engine_lost_comes_again_and_nothing_is_missing() {
    let stand = Stand::new("what_an_engine_lost_comes_again");
    let all: BTreeSet<u64> = (1..=50_000).collect();
    fill(&stand, 1, 50_000);
    let mut seen = BTreeSet::new();
    for kill in [1, 700, 20_000] {
        stand.broker.with(|state| state.dies_after_deliveries = Some(kill));
        let received = stand.store.run("mq-recv", &["-n", "10000", "q"], b"").ok().stdout;
        seen.extend(
            String::from_utf8(received).expect("text").lines().map(|n| n.parse::<u64>().unwrap()),
        );
        stand.broker.with(|state| state.dies_after_deliveries = None);
    }
    let rest = stand.store.receive("q");
    seen.extend(String::from_utf8(rest).expect("text").lines().map(|n| n.parse::<u64>().unwrap()));
    assert_eq!(seen, all);
    assert_eq!(acked(&stand, "q"), all.into_iter().collect::<Vec<u64>>(), "each is acked once");
}

/// `-w` is about messages: while the engine was away, its time ran on, and the receiver ended as if the
/// queue had been empty.
#[test]
fn an_engine_that_is_away_is_no_empty_queue() {
    let stand = Stand::new("an_engine_that_is_away");
    fill(&stand, 1, 1);
    let mut receiver = stand.store.spawn("mq-recv", &["-w", "1s", "q"]);
    assert_eq!(receiver.line(), Some("1".to_owned()));
    eventually("it is acked", || (acked(&stand, "q") == [1]).then_some(()));
    stand.broker.with(|state| state.is_down = true);
    stand.broker.kill();
    let began = std::time::Instant::now();
    eventually("it is away for longer than that", || {
        (began.elapsed() > Duration::from_secs(3)).then_some(())
    });
    assert!(!receiver.has_ended(), "it took the engine's absence for an empty queue");
    stand.broker.with(|state| state.is_down = false);
    fill(&stand, 2, 2);
    assert_eq!(receiver.line(), Some("2".to_owned()));
    receiver.finish().ok();
}

#[test]
fn a_pool_outlives_its_engine() {
    let stand = Stand::new("a_pool_outlives_its_engine");
    fill(&stand, 1, 300);
    let args = ["-w", "2s", "-P4", "q", "--", "sh", "-c", "cat >> out"];
    let pool = stand.store.spawn("mq-recv", &args);
    for least in [50, 150, 250] {
        eventually("some are done", || (acked(&stand, "q").len() >= least).then_some(()));
        stand.broker.kill();
    }
    pool.finish().ok();
    let acked: BTreeSet<u64> = acked(&stand, "q").into_iter().collect();
    assert_eq!(acked, (1..=300).collect());
}

#[test]
fn what_a_receiver_cannot_have_is_refused_in_words() {
    let stand = Stand::new("what_a_receiver_cannot_have");
    for (args, part) in [
        (&["-g", "audit", "q"][..], "-g with Memory: it has one group"),
        (&["--from", "oldest", "q"], "--from with Memory: it has no positions"),
        (&["--peek", "q"], "--peek with Memory: it shows nothing twice"),
        (&["-J", "--lease", "1m", "q"], "--lease with Memory"),
        (&["--exclusive", "q"], "--exclusive with Memory"),
        (&["q", "r"], "several queues with Memory"),
    ] {
        stand.store.run("mq-recv", args, b"").exits(2).says(part);
    }
}

#[test]
fn a_receiver_that_is_interrupted_gives_back_what_it_has_not_begun() {
    let stand = Stand::new("a_receiver_that_is_interrupted");
    fill(&stand, 1, 100);
    let gate = stand.store.beside("gate");
    stand.store.sh("mkfifo gate").ok();
    let args = ["-P2", "q", "--", "sh", "-c", "echo begun >&2; cat gate"];
    let mut receiver = stand.store.spawn("mq-recv", &args);
    receiver.await_stderr("begun\nbegun\n");
    receiver.signal(Signal::INT);
    eventually("the rest is ready again", || (stand.broker.ready("q").len() == 98).then_some(()));
    std::fs::write(&gate, "go\n").expect("a command waits");
    // The other may have come to its end with the first.
    while !receiver.has_ended() {
        if let Ok(mut gate) =
            std::fs::OpenOptions::new().write(true).custom_flags(0o4000).open(&gate)
        {
            let _ = gate.write_all(b"go\n");
        }
        std::thread::yield_now();
    }
    assert_eq!(receiver.await_end(), 130);
    assert_eq!(acked(&stand, "q"), [1, 2]);
}

/// What rests after it failed is unsettled at the engine: once there was as much of it as the engine had been
/// allowed, nothing came any more, and a run to the end never ended.
#[test]
fn what_rests_leaves_room_for_the_others() {
    let stand = Stand::new("what_rests_leaves_room");
    fill(&stand, 1, 40);
    for workers in ["-P1", "-P4"] {
        let args = ["-e", workers, "q", "--", "sh", "-c", "exit 3"];
        let receiver = stand.store.spawn("mq-recv", &args);
        receiver.finish_within(Duration::from_secs(30)).exits(123);
        eventually("all are back", || (stand.broker.ready("q").len() == 40).then_some(()));
    }
    // The last of them is done while the others rest.
    let script = "read -r n; test $n = 40";
    let args = ["-P1", "--backoff", "1h..1h", "q", "--", "sh", "-c", script];
    let mut receiver = stand.store.spawn("mq-recv", &args);
    eventually("the last one is done", || (acked(&stand, "q") == [40]).then_some(()));
    receiver.signal(Signal::INT);
    assert_eq!(receiver.await_end(), 130);
    eventually("the others are back", || (stand.broker.ready("q").len() == 39).then_some(()));
}

/// The time that an engine had been away in the first outage was never forgotten where no message came, so
/// the second, however short, was the end (69).
#[test]
fn a_receiver_without_messages_outlives_each_outage() {
    let wait = Duration::from_secs(1);
    let stand = Stand::with("a_receiver_without_messages", "", wait);
    let mut receiver = stand.store.spawn("mq-recv", &["q"]);
    let connections = || stand.broker.with(|state| state.connections);
    eventually("it is there", || (connections() > 0).then_some(()));
    for outage in 1..=2 {
        let before = connections();
        stand.broker.kill();
        eventually("it is back", || (connections() > before).then_some(()));
        let began = std::time::Instant::now();
        eventually("nothing comes for longer than it waits", || {
            (began.elapsed() > wait * 5 / 2).then_some(())
        });
        assert!(!receiver.has_ended(), "at outage {outage}: {}", receiver.stderr());
    }
    fill(&stand, 1, 1);
    assert_eq!(receiver.line(), Some("1".to_owned()));
}

/// While a dead letter was not confirmed, as of a broker without room, nothing that the client said was heard.
#[test]
fn a_receiver_ends_though_its_dead_letter_is_not_confirmed() {
    for held in [false, true] {
        let name = format!("its_dead_letter_is_not_confirmed_{held}");
        let stand = Stand::new(&name);
        fill(&stand, 1, 1);
        let full = Failure::new(Kind::Busy, "Memory is low on disk");
        stand.broker.with(|state| match held {
            true => drop(state.holds.send_replace(Some(full))),
            false => state.is_silent = true,
        });
        let args = ["-v", "q", "--", "sh", "-c", "echo tried >&2; exit 65"];
        let mut receiver = stand.store.spawn("mq-recv", &args);
        receiver.await_stderr("tried");
        if !held {
            eventually("the letter is there", || {
                (stand.broker.ready("q.dead").len() == 1).then_some(())
            });
        }
        let began = std::time::Instant::now();
        receiver.signal(Signal::TERM);
        assert_eq!(receiver.await_end(), 143, "{}", receiver.stderr());
        assert!(began.elapsed() < mq::limits::DRAIN.to_duration(), "{:?}", began.elapsed());
        // It is not settled: it comes again.
        eventually("it is back", || (stand.broker.ready("q").len() == 1).then_some(()));
    }
}

/// The last dead letter of a run comes with the client's wish to end, and had a second from then on.
#[test]
fn a_dead_letter_has_as_long_as_the_client_waits() {
    let stand = Stand::new("as_long_as_the_client_waits");
    fill(&stand, 1, 1);
    stand.broker.with(|state| state.is_silent = true);
    let mut receiver = stand.store.spawn("mq-recv", &["-e", "q", "--", "sh", "-c", "exit 65"]);
    eventually("the letter is there", || (stand.broker.ready("q.dead").len() == 1).then_some(()));
    let began = std::time::Instant::now();
    eventually("a slow engine confirms it", || (began.elapsed().as_millis() > 1700).then_some(()));
    stand.broker.with(|state| state.is_silent = false);
    assert_eq!(receiver.await_end(), 123, "{}", receiver.stderr());
    assert_eq!(acked(&stand, "q"), [1]);
}

/// A connection that had lasted took away the patience that a letter had just used up, and all began again.
#[test]
fn a_receiver_whose_dead_letters_go_nowhere_comes_to_an_end() {
    let stand = Stand::with("letters_go_nowhere", "", Duration::from_secs(3));
    fill(&stand, 1, 1);
    let refusal = Failure::new(Kind::Unreachable, "Memory has no more connections");
    stand.broker.with(|state| state.refuses_publishers = Some(refusal));
    let mut receiver = stand.store.spawn("mq-recv", &["q", "--", "sh", "-c", "exit 65"]);
    assert_eq!(receiver.await_end(), 69, "{}", receiver.stderr());
    assert_eq!(stand.broker.ready("q").len(), 1, "it is not settled");
}

/// With nothing more to come, no new connection is made, and the ack of what was done last goes nowhere: that
/// was not said.
#[test]
fn an_ack_that_the_engine_did_not_hear_is_told() {
    const INNER: &str = "MQ_TEST_ACK_UNHEARD";
    if std::env::var_os(INNER).is_some() {
        let desk = Desk::new("an_ack_that_the_engine_did_not_hear");
        let url = desk.url("q");
        desk.bench.feed("mq-send", &[&url], b"a\n").ok();
        let gate = desk.bench.file("gate");
        let script = format!("mkfifo {0}; echo begun >&2; cat {0}", gate.display());
        let mut receiver = desk.bench.spawn("mq-recv", &["-n1", &url, "--", "sh", "-c", &script]);
        receiver.await_stderr("begun");
        desk.broker.kill();
        std::fs::write(&gate, "go\n").expect("the command waits");
        receiver.finish().ok();
        assert_eq!(desk.broker.ready("q"), [b"a".to_vec()]);
        return;
    }
    // What the session says goes to the stderr of the process that it is in.
    let name = "receiving::an_ack_that_the_engine_did_not_hear_is_told";
    let own = std::env::current_exe().expect("our own path");
    let mut inner = std::process::Command::new(own);
    let said = inner.args(["--exact", name, "--nocapture"]).env(INNER, "1").output();
    let said = said.expect("it runs");
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{text}");
    assert!(text.contains("what was done last may come again"), "{text}");
}
