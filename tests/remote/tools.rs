//! The real tools on the real servers, by way of `mq-remote`: what a user does.

use std::collections::BTreeSet;

#[cfg(feature = "nats")]
use super::harness::{Running, eventually};
use super::harness::{Store, seq};
#[cfg(feature = "nats")]
use super::servers::Server;

const LINES: u64 = 100_000;

fn numbers(text: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(text).expect("digits");
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

fn all(last: u64) -> BTreeSet<u64> {
    (1..=last).collect()
}

/// The URL of the test's queue, with something behind its name.
type UrlOf<'a> = &'a dyn Fn(&str) -> String;

/// A hundred thousand lines go there and come back in order.
fn lines_come_through(url: UrlOf<'_>) {
    let (store, url) = (Store::new(), url(""));
    let url = url.as_str();
    store.run("mq-send", &[url], &seq(1, LINES)).ok();
    let received = store.run("mq-recv", &["-n", &LINES.to_string(), url], b"").ok().stdout;
    let received = numbers(&received);
    assert_eq!(received.len() as u64, LINES);
    assert!(received.is_sorted(), "they are not in order");
    assert_eq!(received.into_iter().collect::<BTreeSet<u64>>(), all(LINES));
    let left = store.run("mq-recv", &["-w", "2s", url], b"").exits(124).stdout;
    assert!(left.is_empty(), "{} bytes are left", left.len());
}

/// A pool of commands, some of which fail: each message is done or a dead letter, once.
fn a_pool_ends(url: UrlOf<'_>) {
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

/// The server is killed in mid-stream and comes back: nothing that was confirmed is lost.
#[cfg(feature = "nats")]
fn a_kill_loses_nothing(server: &Server, url: &str) {
    let store = Store::new();
    let mut sender = store.spawn("mq-send", &["-w", "100s", url]);
    sender.write(&seq(1, LINES / 2));
    server.kill();
    sender.write(&seq(LINES / 2 + 1, LINES));
    server.start_again();
    sender.finish().ok();
    let out = store.beside("out");
    let mut receiver =
        Running::start(store.shell(&format!("mq-recv -w 30s '{url}' >> '{}'", out.display())));
    let taken = || std::fs::read(&out).unwrap_or_default();
    eventually("some have come", || (taken().len() > 5_000).then_some(()));
    server.kill();
    server.start_again();
    assert_eq!(receiver.await_end(), 0, "{}", receiver.stderr());
    assert_eq!(numbers(&taken()).into_iter().collect::<BTreeSet<u64>>(), all(LINES));
}

/// A script that names a queue of the store runs unchanged before and after the queue is declared to live
/// at the engine.
fn a_script_runs_unchanged(url: UrlOf<'_>) {
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

/// What a user does, at an engine with a server: a test for each.
macro_rules! through_the_tools {
    ($name:ident, $feature:literal, $engine:ty: $($test:ident),*) => {
        #[cfg(feature = $feature)]
        mod $name {
            use crate::contract::{Tried, new_queue};

            $(#[test]
            fn $test() {
                type Engine = $engine;
                let Some(port) = Engine::shared() else { return };
                let queue = new_queue(concat!("tools-", stringify!($test)));
                super::$test(&|end| Engine::url(port, &format!("{queue}{end}")));
            })*
        }
    };
}

through_the_tools!(rabbitmq, "amqp", mq::remote::rabbitmq::RabbitMq:
    lines_come_through, a_pool_ends, a_script_runs_unchanged);
through_the_tools!(nats, "nats", mq::remote::nats::Nats:
    lines_come_through, a_pool_ends, a_script_runs_unchanged);
through_the_tools!(activemq, "stomp", mq::remote::stomp::Stomp:
    a_pool_ends, a_script_runs_unchanged);

#[cfg(feature = "nats")]
#[test]
fn a_kill_of_nats_loses_nothing() {
    use super::contract::Tried;
    match super::servers::nats() {
        Err(why) => super::servers::skipped(&why),
        Ok(server) => {
            let url = mq::remote::nats::Nats::url(server.port, "tools-kill");
            a_kill_loses_nothing(&server, &url);
        }
    }
}
