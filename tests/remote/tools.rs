//! The real tools on the real servers, by way of `mq-remote`: what a user does.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::Signal;

use super::harness::{Running, Store, eventually, eventually_within, seq};
use super::servers::Server;

const LINES: u64 = 100_000;

/// How long a server may take for them, after a fall too: ActiveMQ handles some thousand a second where it has a
/// core, and a test has not.
const DEADLINE: Duration = Duration::from_secs(300);

fn numbers(text: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(text).expect("digits");
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

/// What stands in whole lines: the last one may be on its way.
fn numbers_there(text: &[u8]) -> BTreeSet<u64> {
    let whole = memchr::memrchr(b'\n', text).map_or(0, |end| end + 1);
    numbers(&text[..whole]).into_iter().collect()
}

fn all(last: u64) -> BTreeSet<u64> {
    (1..=last).collect()
}

/// The URL of the test's queue, with something behind its name.
type UrlOf<'a> = &'a dyn Fn(&str) -> String;

/// A hundred thousand lines go there and come back, in order where the engine has one.
fn lines_come_through(url: UrlOf<'_>, is_ordered: bool) {
    let (store, url) = (Store::new(), url(""));
    let url = url.as_str();
    let mut sender = store.spawn("mq-send", &[url]);
    sender.write(&seq(1, LINES));
    sender.finish_within(DEADLINE).ok();
    let receiver = store.spawn("mq-recv", &["-n", &LINES.to_string(), url]);
    let received = receiver.finish_within(DEADLINE).ok().stdout;
    let received = numbers(&received);
    assert_eq!(received.len() as u64, LINES);
    assert!(received.is_sorted() || !is_ordered, "they are not in order");
    assert_eq!(received.into_iter().collect::<BTreeSet<u64>>(), all(LINES));
    let left = store.run("mq-recv", &["-w", "2s", url], b"").exits(124).stdout;
    assert!(left.is_empty(), "{} bytes are left", left.len());
}

/// A pool of commands, some of which fail: each message is done or a dead letter, once.
fn a_pool_ends(url: UrlOf<'_>, _: bool) {
    let (store, dead) = (Store::new(), url(".dead"));
    let url = url("?delivery-limit=3");
    let (url, dead) = (url.as_str(), dead.as_str());
    store.run("mq-send", &[url], &seq(1, 100)).ok();
    // Each tenth fails for good, each third fails at first.
    let script = "read -r n; [ $((n % 10)) = 0 ] && exit 3; \
                  [ $((n % 3)) = 0 ] && [ $MQ_ATTEMPT = 1 ] && exit 4; echo $n";
    let args = ["-w", "5s", "-P4", "--backoff", "10ms..50ms", url, "--", "sh", "-c", script];
    let done = numbers(&store.run("mq-recv", &args, b"").exits(123).stdout);
    let good: BTreeSet<u64> = all(100).into_iter().filter(|n| n % 10 != 0).collect();
    assert_eq!(done.len(), good.len(), "each is done once");
    assert_eq!(done.into_iter().collect::<BTreeSet<u64>>(), good);
    let letters = store.run("mq-recv", &["-w", "5s", "-J", dead], b"").ok().stdout;
    let letters: Vec<serde_json::Value> = std::str::from_utf8(&letters)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("an envelope"))
        .collect();
    let bodies: BTreeSet<&str> =
        letters.iter().map(|letter| letter["data"].as_str().expect("data")).collect();
    assert_eq!((letters.len(), bodies.len()), (10, 10), "each is dead once: {letters:?}");
    let reasons = letters.iter().map(|letter| &letter["headers"]["mq-dead-reason"]);
    assert!(reasons.into_iter().all(|reason| reason == "exit status 3"), "{letters:?}");
}

/// The server is killed in mid-stream and comes back: nothing that was confirmed is lost. `lines`: so many that
/// the server is in the midst of them.
fn a_kill_loses_nothing(server: &Server, url: &str, lines: u64) {
    let store = Store::new();
    let mut sender = store.spawn("mq-send", &["-w", "300s", url]);
    sender.write(&seq(1, lines / 2));
    server.kill();
    sender.write(&seq(lines / 2 + 1, lines));
    server.start_again();
    sender.finish_within(DEADLINE).ok();
    let out = store.beside("out");
    let script = format!("exec mq-recv -w 300s '{url}' >> '{}'", out.display());
    let mut receiver = Running::start(store.shell(&script));
    let taken = || std::fs::read(&out).unwrap_or_default();
    eventually_within(DEADLINE, "some have come", || (taken().len() > 5_000).then_some(()));
    server.kill();
    assert!(numbers_there(&taken()) != all(lines), "all had come before it was killed");
    server.start_again();
    eventually_within(DEADLINE, "all have come", || {
        (numbers_there(&taken()) == all(lines)).then_some(())
    });
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.await_end(), 143, "{}", receiver.stderr());
}

/// A message that is larger than what brokers hand out at once, and than librdkafka's mock cluster keeps.
#[cfg(feature = "kafka")]
#[test]
fn a_large_message_comes_through_kafka() {
    use super::contract::{Tried as _, new_queue};
    let Some(port) = super::kafka::with_transactions() else { return };
    let (store, url) = (Store::new(), super::kafka::OnTansu::url(port, &new_queue("tools-large")));
    let large: Vec<u8> =
        (0..30 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    store.run("mq-send", &["--whole", &url], &large).ok();
    let came = store.run("mq-recv", &["-n1", "-w60s", "--raw", &url], b"").ok().stdout;
    assert!(came == large, "{} bytes came of {}", came.len(), large.len());
}

/// `--producer`: whatever falls, a rerun of the same input stores what is missing, and that once.
#[cfg(feature = "kafka")]
#[test]
fn a_rerun_at_kafka_stores_nothing_twice() {
    use super::contract::{Tried as _, new_queue};
    let Some(port) = super::kafka::with_transactions() else { return };
    let (store, url) = (Store::new(), super::kafka::OnTansu::url(port, &new_queue("tools-rerun")));
    let url = url.as_str();
    let send = ["-v", "--producer", "nightly", url];
    let stored = || store.run("mq-recv", &["--peek", url], b"").ok().stdout;
    // The sender is killed when some of it is there.
    let mut sender = store.spawn("mq-send", &send);
    sender.write(&seq(1, LINES / 2));
    eventually("some of it is there", || (!stored().is_empty()).then_some(()));
    sender.signal(Signal::KILL);
    sender.await_end();
    store.run("mq-send", &send, &seq(1, LINES)).ok().says("that an earlier run had stored");
    let mut found = numbers(&stored());
    found.sort_unstable();
    assert!(found.into_iter().eq(1..=LINES), "each line once");
    // Nothing is left to do; then the input has grown.
    store.run("mq-send", &send, &seq(1, LINES)).ok().says("mq-send: 0 messages");
    store.run("mq-send", &send, &seq(1, LINES + 10)).ok().says("mq-send: 10 messages");
    let mut found = numbers(&stored());
    found.sort_unstable();
    assert!(found.into_iter().eq(1..=LINES + 10), "each line once");
    // A second sender of the name ends the first.
    let mut first = store.spawn("mq-send", &["--producer", "two", url]);
    first.write(b"x\n");
    eventually("it is there", || (count(&stored()) > LINES + 10).then_some(()));
    store.run("mq-send", &["--producer", "two", url], b"x\ny\n").ok();
    first.write(b"z\n");
    first
        .finish()
        .exits(1)
        .says("a newer sender of the same name is there")
        .says("confirmed: 1 leading");
    assert_eq!(count(&stored()), LINES + 12);
}

#[cfg(feature = "kafka")]
fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// A script that names a queue of the store runs unchanged before and after the queue is declared to live
/// at the engine.
fn a_script_runs_unchanged(url: UrlOf<'_>, _: bool) {
    let (store, url) = (Store::new(), url(""));
    let script = "seq 1 1000 | mq-send jobs && mq-recv -n 1000 jobs | sort -n | cksum && \
                  seq 1 10 | mq-send jobs && mq-recv -n 10 -P2 jobs -- sh -c 'cat >> done'";
    let before = store.sh(script).ok();
    store.run("mq-admin", &["declare", "jobs", "--change", "--at", &url], b"").ok();
    let after = store.sh(script).ok();
    assert_eq!((before.text(), before.stderr.as_str()), (after.text(), after.stderr.as_str()));
    let done = std::fs::read(store.beside("done")).expect("a file");
    assert_eq!(numbers(&done).len(), 20);
    assert_eq!(store.number("jobs", "end"), 1010, "nothing more came into the store");
}

/// Lines in the pipes that are killed.
const PIPED: u64 = 10_000;

/// Runs a pipe until `has_begun` says that it is in the midst of its work, and kills it.
fn kill_a_pipe(store: &Store, from: &str, to: &str, has_begun: &dyn Fn() -> bool) {
    let args = ["--batch", "200", from, to, "--", "sed", "s/^/x/"];
    let mut running = store.spawn("mq-pipe", &args);
    eventually("it gets on", || {
        assert!(!running.has_ended(), "{}", running.stderr());
        has_begun().then_some(())
    });
    running.signal(Signal::KILL);
    running.await_end();
}

/// Runs pipes to the end of what is there until all lines are where they lead: what the one that was killed
/// held is ready again when its helper has seen to that.
fn pipe_the_rest(store: &Store, from: &str, to: &str, all: &BTreeSet<String>) {
    let mut seen = BTreeSet::new();
    eventually("all lines are there", || {
        store.run("mq-pipe", &["-e", "-q", from, to, "--", "sed", "s/^/x/"], b"").ok();
        let came = store.run("mq-recv", &["-e", to], b"").ok().stdout;
        seen.extend(String::from_utf8(came).expect("text").lines().map(str::to_owned));
        (seen == *all).then_some(())
    });
}

/// What the engine says is ready.
#[cfg(all(feature = "amqp", feature = "nats"))]
fn ready(store: &Store, url: &str) -> u64 {
    let shown = store.run("mq-admin", &["show", "-J", url], b"");
    let shown: Option<serde_json::Value> = serde_json::from_slice(&shown.stdout).ok();
    shown.and_then(|shown| shown["ready"].as_u64()).unwrap_or(0)
}

fn piped(mark: &str) -> BTreeSet<String> {
    (1..=PIPED).map(|n| format!("{mark}{n}")).collect()
}

/// Lines go through pipes into the engine and out of it, and each pipe is killed in the midst: nothing is
/// missing.
fn a_killed_pipe_loses_nothing(url: UrlOf<'_>, _: bool) {
    let store = Store::new();
    let (into, from) = (url("-into"), url("-from"));
    store.send("a", &seq(1, PIPED));
    let left = || store.number("a", "ready") + store.number("a", "unacked");
    kill_a_pipe(&store, "a", &into, &|| left() < PIPED * 2 / 3);
    pipe_the_rest(&store, "a", &into, &piped("x"));
    store.run("mq-send", &[from.as_str()], &seq(1, PIPED)).ok();
    let end = || store.show("b").map_or(0, |shown| shown["end"].as_u64().expect("an end"));
    kill_a_pipe(&store, &from, "b", &|| end() > PIPED / 3);
    pipe_the_rest(&store, &from, "b", &piped("x"));
    let left = store.run("mq-recv", &["-w", "2s", &from], b"").exits(124).stdout;
    assert!(left.is_empty(), "{} bytes are left", left.len());
}

#[cfg(all(feature = "amqp", feature = "nats"))]
#[test]
fn a_killed_pipe_from_rabbitmq_to_nats_loses_nothing() {
    use super::contract::{Tried, new_queue};
    type From = mq::remote::rabbitmq::RabbitMq;
    type To = mq::remote::nats::Nats;
    let (Some(from), Some(to)) = (From::shared(), To::shared()) else { return };
    let store = Store::new();
    let from = From::url(from, &new_queue("tools-pipe-from"));
    let to = To::url(to, &new_queue("tools-pipe-to"));
    store.run("mq-send", &[&from], &seq(1, PIPED)).ok();
    kill_a_pipe(&store, &from, &to, &|| ready(&store, &to) > PIPED / 3);
    pipe_the_rest(&store, &from, &to, &piped("x"));
}

/// What a user does, at an engine with a server: a test for each.
/// A run to the end tries each message once, though none of them is done, and all are there again.
fn a_run_to_the_end_ends(url: UrlOf<'_>, _: bool) {
    let (store, url) = (Store::new(), url(""));
    store.run("mq-send", &[&url], &seq(1, 40)).ok();
    let args = ["-e", "-P1", &url, "--", "sh", "-c", "cat; exit 3"];
    let tried = store.spawn("mq-recv", &args).finish_within(DEADLINE).exits(123).stdout;
    assert_eq!((numbers(&tried).len(), numbers_there(&tried)), (40, all(40)));
    let left = store.run("mq-recv", &["-e", &url], b"").ok().stdout;
    assert_eq!(numbers_there(&left), all(40));
}

macro_rules! through_the_tools {
    ($name:ident, $feature:literal, $engine:ty: $($test:ident),*) => {
        #[cfg(feature = $feature)]
        mod $name {
            use mq::remote::engine::{Ability, Engine as _};

            use crate::contract::{Tried, new_queue};

            $(#[test]
            fn $test() {
                type Engine = $engine;
                let Some(port) = Engine::shared() else { return };
                let queue = new_queue(concat!("tools-", stringify!($test)));
                let is_ordered = matches!(Engine::ABILITIES.ordered, Ability::Yes);
                super::$test(&|end| Engine::url(port, &format!("{queue}{end}")), is_ordered);
            })*
        }
    };
}

through_the_tools!(rabbitmq, "amqp", mq::remote::rabbitmq::RabbitMq:
    lines_come_through, a_pool_ends, a_run_to_the_end_ends, a_script_runs_unchanged,
    a_killed_pipe_loses_nothing);
through_the_tools!(kafka, "kafka", crate::kafka::OnTansu:
    lines_come_through, a_pool_ends, a_script_runs_unchanged, a_killed_pipe_loses_nothing);
through_the_tools!(nats, "nats", mq::remote::nats::Nats:
    lines_come_through, a_pool_ends, a_script_runs_unchanged, a_killed_pipe_loses_nothing);
through_the_tools!(activemq, "stomp", mq::remote::stomp::Stomp:
    lines_come_through, a_pool_ends, a_run_to_the_end_ends, a_script_runs_unchanged,
    a_killed_pipe_loses_nothing);

/// A server of its own, which is killed.
fn kill_one<E: super::contract::Tried>(start: impl FnOnce() -> Result<Server, String>, lines: u64) {
    match start() {
        Err(why) => super::servers::skipped(&why),
        Ok(server) => a_kill_loses_nothing(&server, &E::url(server.port, "tools-kill"), lines),
    }
}

#[cfg(feature = "amqp")]
#[test]
fn a_kill_of_rabbitmq_loses_nothing() {
    kill_one::<mq::remote::rabbitmq::RabbitMq>(super::servers::rabbitmq, 20_000);
}

#[cfg(feature = "nats")]
#[test]
fn a_kill_of_nats_loses_nothing() {
    kill_one::<mq::remote::nats::Nats>(super::servers::nats, LINES);
}

#[cfg(feature = "stomp")]
#[test]
fn a_kill_of_activemq_loses_nothing() {
    kill_one::<mq::remote::stomp::Stomp>(super::servers::activemq, 20_000);
}

/// The broker keeps what it has in a file, and is killed.
#[cfg(feature = "kafka")]
#[test]
fn a_kill_of_tansu_loses_nothing() {
    kill_one::<super::kafka::OnTansu>(super::servers::tansu, LINES);
}

/// It was said that the connection was tried again, and then that it was not.
#[cfg(feature = "nats")]
#[test]
fn a_helper_that_is_killed_is_the_end_and_told_once() {
    use super::contract::{Tried, new_queue};
    type Engine = mq::remote::nats::Nats;
    let Some(port) = Engine::shared() else { return };
    let (store, url) = (Store::new(), Engine::url(port, &new_queue("tools-helper")));
    let mut sender = store.spawn("mq-send", &[&url]);
    sender.write(b"a\n");
    let stored = || store.run("mq-recv", &["--peek", &url], b"").stdout;
    eventually("it is there", || (stored() == b"a\n").then_some(()));
    let parent = sender.pid().as_raw_nonzero().to_string();
    let killed = std::process::Command::new("pkill").args(["-KILL", "-P", &parent]).status();
    assert!(killed.expect("pkill").success(), "it has a helper");
    // It may have ended by then.
    let _ = std::io::Write::write_all(sender.stdin(), b"b\n");
    let done = sender.finish().exits(69).says("ended by SIGKILL").says("confirmed: 1 leading");
    assert!(!done.stderr.contains("trying again"), "{}", done.stderr);
}

/// What ZeroMQ says of itself, once: nothing is stored.
#[cfg(feature = "zeromq")]
const AT_MOST_ONCE: &str = "ZeroMQ has no acks: what was received and not worked on is lost";

/// A port of ZeroMQ's, as the side that is connected to and the one that connects have it.
#[cfg(feature = "zeromq")]
fn sides(options: &str) -> (String, String) {
    let at = format!("zmq+tcp://127.0.0.1:{}", super::servers::free_port());
    (format!("{at}?bind{options}"), format!("{at}?{}", options.trim_start_matches('&')))
}

/// PUSH and PULL: with both up, all arrive, in order, whoever is connected to.
#[cfg(feature = "zeromq")]
#[test]
fn lines_come_through_zeromq_whoever_binds() {
    let store = Store::new();
    for receiver_binds in [true, false] {
        let (bound, connected) = sides("");
        let (to, from) = if receiver_binds { (connected, bound) } else { (bound, connected) };
        let receiver = store.spawn("mq-recv", &["-n", &LINES.to_string(), &from]);
        store.run("mq-send", &[&to], &seq(1, LINES)).ok().says(AT_MOST_ONCE);
        let received = receiver.finish().ok().says(AT_MOST_ONCE);
        assert!(numbers(&received.stdout).into_iter().eq(1..=LINES), "bind: {receiver_binds}");
    }
}

/// PUB and SUB: each who has subscribed to what a topic begins with gets all of it from then on, and
/// nobody else anything.
#[cfg(feature = "zeromq")]
#[test]
fn everybody_gets_what_zeromq_publishes_on_a_topic() {
    let store = Store::new();
    let (bound, connected) = sides("&topic=news.local");
    let mut sender = store.spawn("mq-send", &[&bound]);
    let topics = [("news.local", "60s"), ("news", "60s"), ("sport", "5s")];
    let subscribed = |topic| connected.replace("news.local", topic);
    let receivers =
        topics.map(|(topic, wait)| store.spawn("mq-recv", &["-w", wait, &subscribed(topic)]));
    // Who subscribes later has missed what went before.
    let mut last = 0;
    for receiver in &receivers[..2] {
        eventually("the subscription is heard of", || {
            last += 1;
            sender.write(format!("{last}\n").as_bytes());
            receiver.has_output(std::time::Duration::from_millis(50)).then_some(())
        });
    }
    sender.write(&seq(last + 1, last + 1000));
    let [local, all, sport] = receivers;
    for mut receiver in [local, all] {
        let first = receiver.line().expect("a line").parse::<u64>().expect("a number");
        let rest = receiver.lines((last + 1000 - first) as usize);
        let rest = rest.iter().map(|line| line.parse::<u64>().expect("a number"));
        assert!(rest.eq(first + 1..=last + 1000), "something is missing behind {first}");
    }
    assert!(sport.finish().exits(124).stdout.is_empty());
    sender.finish().ok().says(AT_MOST_ONCE);
}

/// Envelopes travel in several frames, and come out as they went in.
#[cfg(feature = "zeromq")]
#[test]
fn envelopes_come_through_zeromq() {
    let store = Store::new();
    let (bound, connected) = sides("");
    let receiver = store.spawn("mq-recv", &["-J", "-n", "3", &bound]);
    let envelopes = [
        r#"{"key":"k","id":"i","headers":{"a":"1","b":"x=y"},"data":"one"}"#,
        r#"{"headers":{"only":""},"data_base64":"AP8K"}"#,
        r#"{"data":""}"#,
    ];
    store.run("mq-send", &["-J", &connected], envelopes.join("\n").as_bytes()).ok();
    let received = receiver.finish().ok();
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("an envelope");
    for (came, sent) in received.text().lines().map(parsed).zip(envelopes.map(parsed)) {
        for field in ["key", "headers", "data", "data_base64"] {
            assert_eq!(came.get(field), sent.get(field), "{came}");
        }
        assert!(sent.get("id").is_none_or(|id| came["id"] == *id), "{came}");
    }
    assert_eq!(received.text().lines().count(), 3);
}

/// What fails is tried again; what fails for good has no place to go to, which is said.
#[cfg(feature = "zeromq")]
#[test]
fn a_pool_at_zeromq_tries_again_and_says_what_is_lost() {
    let store = Store::new();
    let (bound, connected) = sides("&delivery-limit=2");
    let script = "read -r n; [ $n = 3 ] && exit 3; \
                  [ $((n % 2)) = 0 ] && [ $MQ_ATTEMPT = 1 ] && exit 4; echo $n";
    let pool = ["-w", "9s", "-P2", "--backoff", "10ms..50ms", &bound, "--", "sh", "-c", script];
    let pool = store.spawn("mq-recv", &pool);
    store.run("mq-send", &[&connected], &seq(1, 10)).ok();
    let done =
        pool.finish().exits(123).says("ZeroMQ keeps no dead letters: lost 1, by exit status 3");
    let mut done = numbers(&done.stdout);
    done.sort_unstable();
    assert_eq!(done, [1, 2, 4, 5, 6, 7, 8, 9, 10]);
}

/// An address that another listens at is the reason that is given, not that nothing came.
#[cfg(feature = "zeromq")]
#[test]
fn an_address_of_zeromq_that_is_taken_is_said() {
    let store = Store::new();
    let ((bound, _), (_, nobodys)) = (sides(""), sides(""));
    let taken = std::net::TcpListener::bind(
        bound.trim_start_matches("zmq+tcp://").split('?').next().expect("host and port"),
    );
    let _taken = taken.expect("it is free");
    let at = bound.trim_start_matches("zmq+").trim_end_matches("?bind");
    for (tool, doing) in [("mq-recv", "receiving from"), ("mq-send", "sending to")] {
        let why = format!("{tool}: {doing} {bound}: cannot listen at {at}");
        store.run(tool, &["-w", "3s", &bound], b"x\n").exits(69).says(&why);
    }
    // What can be told of nothing needs no connection.
    store.run("mq-admin", &["show", &nobodys], b"").exits(2).says("keeps nothing to count");
}
