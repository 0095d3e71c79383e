//! NATS where a stream is not a queue: one that holds several subjects, consumers that somebody else made, and
//! what a stream takes for the same message.

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy, Stream};
use mq::remote::engine::{Consumer as _, Engine as _, Received, Settlement};
use mq::remote::failure::Kind;
use mq::remote::nats::Nats;
use mq::settings::Start;

use super::contract::{self, Tried, connect, new_queue, numbered, run, to_receive};
use super::harness::{Store, eventually};
use super::servers;

/// A stream of its own that holds all below a name, which it returns.
fn shared_stream(port: u16, test: &str, retention: RetentionPolicy) -> String {
    let name = new_queue(test);
    let subjects = vec![format!("{name}.>")];
    run(make_stream(port, Config { name: name.clone(), subjects, retention, ..Config::default() }));
    name
}

async fn make_stream(port: u16, config: Config) -> Stream {
    let client = async_nats::connect(format!("127.0.0.1:{port}")).await.expect("connected");
    async_nats::jetstream::new(client).create_stream(config).await.expect("a stream")
}

async fn stream(port: u16, name: &str) -> Stream {
    let client = async_nats::connect(format!("127.0.0.1:{port}")).await.expect("connected");
    async_nats::jetstream::new(client).get_stream(name).await.expect("the stream")
}

/// What is there, without taking it.
fn looked_at(store: &Store, url: &str) -> String {
    store.run("mq-recv", &["--peek", url], b"").ok().text().to_owned()
}

/// What is there, taken.
fn taken(store: &Store, url: &str) -> String {
    store.run("mq-recv", &["-e", url], b"").ok().text().to_owned()
}

fn envelopes(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("an envelope")).collect()
}

/// Its messages were named by their places alone, so another input was taken for a resend, and lost with exit 0.
#[test]
fn another_input_of_a_producer_is_stored() {
    let Some(port) = Nats::shared() else { return };
    let (store, url) = (Store::new(), Nats::url(port, &new_queue("producer")));
    let send = |input: &[u8]| drop(store.run("mq-send", &["--producer", "p", &url], input).ok());
    send(b"first\n");
    send(b"second\n");
    assert_eq!(looked_at(&store, &url), "first\nsecond\n");
    // What is the same is stored once, and what has grown by what is new.
    send(b"second\n");
    send(b"second\nthird\n");
    assert_eq!(looked_at(&store, &url), "first\nsecond\nthird\n");
    // The same line, for another queue of the same stream, or with a key, is another message.
    let name = shared_stream(port, "producers", RetentionPolicy::Limits);
    let urls = ["a", "b"].map(|end| Nats::url(port, &format!("{name}.{end}")));
    for url in &urls {
        store.run("mq-send", &["--producer", "p", url], b"x\n").ok();
        store.run("mq-send", &["--producer", "p", "-k", "k", url], b"x\n").ok();
        assert_eq!(looked_at(&store, url), "x\nx\n");
    }
}

/// The stream took a letter that had its message's id for that message, and dropped it; so it did with what was
/// brought back within its window.
#[test]
fn a_letter_is_no_resend_of_its_message() {
    let Some(port) = Nats::shared() else { return };
    let store = Store::new();
    let name = shared_stream(port, "letters", RetentionPolicy::Limits);
    for queue in [format!("{name}.x"), new_queue("letter")] {
        let (url, dead) = (Nats::url(port, &queue), Nats::url(port, &format!("{queue}.dead")));
        store.run("mq-send", &["--id", "A", "-m", "precious", &url], b"").ok();
        for _ in 0..2 {
            let fails = [&format!("{url}?delivery-limit=1"), "-e", "--", "false"];
            store.run("mq-recv", &fails, b"").exits(123);
            let letters = store.run("mq-recv", &["--peek", "-J", &dead], b"").ok();
            let letter = envelopes(letters.text()).pop().expect("a letter");
            assert_eq!((&letter["data"], &letter["id"]), (&"precious".into(), &"A".into()));
            // As mq-engines(7) has it.
            let back = format!("mq-recv -e -J --batch 100 '{dead}' -- mq-send -J '{url}'");
            store.sh(&back).ok();
            let came = store.run("mq-recv", &["--peek", "-J", &url], b"").ok();
            let came = envelopes(came.text()).pop().expect("it is back");
            assert_eq!((&came["data"], &came["id"]), (&"precious".into(), &"A".into()));
        }
    }
}

/// An id names a message of its queue, not of the stream that the queue happens to be in.
#[test]
fn an_id_is_compared_within_its_queue() {
    let Some(port) = Nats::shared() else { return };
    let store = Store::new();
    let name = shared_stream(port, "ids", RetentionPolicy::Limits);
    let urls = ["a", "b"].map(|end| Nats::url(port, &format!("{name}.{end}")));
    for url in urls.iter().chain(&urls) {
        store.run("mq-send", &["--id", "A", "-m", "x", url], b"").ok();
    }
    for url in &urls {
        let came = store.run("mq-recv", &["--peek", "-J", url], b"").ok();
        let came = envelopes(came.text());
        assert_eq!((came.len(), &came[0]["id"]), (1, &"A".into()), "{came:?}");
    }
    // What is moved within the stream arrives.
    let to = Nats::url(port, &format!("{name}.c"));
    store.sh(&format!("mq-recv -e -J '{}' -- mq-send -J '{to}'", urls[0])).ok();
    assert_eq!(looked_at(&store, &to), "x\n");
}

/// Groups were looked up by their names alone: a receiver was given the messages of another queue of the same
/// stream, and acked them.
#[test]
fn each_queue_of_a_stream_has_groups_of_its_own() {
    let Some(port) = Nats::shared() else { return };
    let store = Store::new();
    for retention in [RetentionPolicy::Limits, RetentionPolicy::WorkQueue] {
        let name = shared_stream(port, "groups", retention);
        let queues = ["a", "b", "a.dead", "a_dead", "a-b"].map(|end| format!("{name}.{end}"));
        for _ in 0..2 {
            for queue in &queues {
                store.run("mq-send", &["-m", queue, &Nats::url(port, queue)], b"").ok();
            }
            for queue in &queues {
                let shown = store.run("mq-admin", &["show", "-J", &Nats::url(port, queue)], b"");
                let shown: serde_json::Value =
                    serde_json::from_str(shown.ok().text()).expect("JSON");
                assert_eq!(shown["ready"], 1, "{shown}");
                let groups = shown["groups"].as_array().map_or(0, Vec::len);
                assert!(groups <= 1, "those of other queues are none of it: {shown}");
            }
            for queue in &queues {
                assert_eq!(taken(&store, &Nats::url(port, queue)), format!("{queue}\n"));
            }
        }
    }
}

/// What was made before groups were named after their queues too is found again, where it is that queue's.
#[test]
fn a_group_that_is_there_is_used_where_it_is_the_queues() {
    let Some(port) = Nats::shared() else { return };
    let store = Store::new();
    let name = shared_stream(port, "old", RetentionPolicy::WorkQueue);
    let subjects = ["a", "b"].map(|end| format!("{name}.{end}"));
    run(async {
        let config = pull::Config {
            durable_name: Some("default".into()),
            ack_policy: AckPolicy::Explicit,
            filter_subject: subjects[0].clone(),
            ..pull::Config::default()
        };
        stream(port, &name).await.create_consumer(config).await.expect("a consumer");
    });
    for subject in &subjects {
        let url = Nats::url(port, subject);
        store.run("mq-send", &["-m", subject, &url], b"").ok();
        assert_eq!(taken(&store, &url), format!("{subject}\n"));
    }
    let groups = run(async { stream(port, &name).await.get_info().await.expect("asked") });
    assert_eq!(groups.state.consumer_count, 2);
}

/// Two names that NATS would have alike are two groups, and two queues.
#[test]
fn names_that_look_alike_are_not_mixed_up() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("alike");
        let queues = [format!("{queue}.a_b"), format!("{queue}.a.b")];
        for queue in &queues {
            let engine: Nats = connect(port, queue).await;
            let mut wish = to_receive(queue);
            wish.from = Some(Start::Oldest);
            for group in ["x_y", "x.y"] {
                wish.group = group.into();
                let made = engine.consumer(&wish).await.expect("a consumer");
                made.finish().await.expect("an end");
            }
            contract::send(&engine, queue, numbered(0..3)).await;
            for group in ["x.y", "x_y"] {
                wish.group = group.into();
                wish.until_end = true;
                let consumer = engine.consumer(&wish).await.expect("a consumer");
                assert_eq!(contract::drain(consumer).await.len(), 3, "{group} of {queue}");
            }
        }
    });
}

/// A consumer that acks all below what it acks, or that has no bodies, would lose what is not done.
#[test]
fn a_group_that_would_lose_messages_is_refused() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("foreign");
        let engine: Nats = connect(port, &queue).await;
        let (name, subjects) = (queue.clone(), vec![queue.clone()]);
        let stream = make_stream(port, Config { name, subjects, ..Config::default() }).await;
        let others = [
            ("all", "acks all", pull::Config { ack_policy: AckPolicy::All, ..<_>::default() }),
            (
                "none",
                "acks nothing",
                pull::Config { ack_policy: AckPolicy::None, ..<_>::default() },
            ),
            ("heads", "no bodies", pull::Config { headers_only: true, ..<_>::default() }),
        ];
        for (group, why, config) in others {
            let config = pull::Config { durable_name: Some(group.into()), ..config };
            stream.create_consumer(config).await.expect("a consumer");
            let mut wish = to_receive(&queue);
            wish.group = group.into();
            let failure = engine.consumer(&wish).await.err().expect("refused");
            assert_eq!(failure.kind, Kind::Unsupported, "{failure}");
            assert!(failure.message.contains(why), "{failure}");
        }
        // One of all subjects is one of a queue only while the stream has no other.
        let config = pull::Config {
            durable_name: Some("whole".into()),
            ack_policy: AckPolicy::Explicit,
            ..pull::Config::default()
        };
        stream.create_consumer(config).await.expect("a consumer");
        let mut wish = to_receive(&queue);
        wish.group = "whole".into();
        contract::send(&engine, &queue, numbered(0..1)).await;
        let mut consumer = engine.consumer(&wish).await.expect("a consumer");
        contract::receive(&mut consumer, 1).await;
        consumer.settle(&[0..1], Settlement::Ack).await.expect("acked");
        let name = queue.clone();
        let subjects = vec![queue.clone(), format!("{queue}.other")];
        let client = async_nats::connect(format!("127.0.0.1:{port}")).await.expect("connected");
        let config = Config { name, subjects, ..Config::default() };
        async_nats::jetstream::new(client).update_stream(config).await.expect("more subjects");
        contract::send(&engine, &format!("{queue}.other"), numbered(7..8)).await;
        let failure = consumer.receive(1).await.expect_err("none of its queue");
        assert_eq!(failure.kind, Kind::Unsupported, "{failure}");
        drop(consumer);
        let failure = engine.consumer(&wish).await.err().expect("refused");
        assert!(failure.message.contains("consumer whole of stream"), "{failure}");
        assert_eq!(failure.kind, Kind::Missing, "{failure}");
    });
}

/// Requests beyond the bounds that somebody else's consumer has were refused, and no other was made.
#[test]
fn a_group_with_bounds_of_its_own_is_received_from() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("bounds");
        let engine: Nats = connect(port, &queue).await;
        contract::send(&engine, &queue, numbered(0..20)).await;
        let config = pull::Config {
            durable_name: Some("default".into()),
            ack_policy: AckPolicy::Explicit,
            max_batch: 3,
            max_bytes: 100_000,
            max_expires: std::time::Duration::from_secs(1),
            ..pull::Config::default()
        };
        stream(port, &queue).await.create_consumer(config).await.expect("a consumer");
        let mut consumer = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        contract::receive(&mut consumer, 20).await;
        consumer.settle(&[0..20], Settlement::Ack).await.expect("acked");
        consumer.finish().await.expect("an end");
    });
}

/// A command that says something on stderr made a header of several lines, which NATS has not: no letter was
/// stored, and every run ended at this message.
#[test]
fn a_letter_has_the_lines_that_its_command_said() {
    let Some(port) = Nats::shared() else { return };
    let (store, queue) = (Store::new(), new_queue("stderr"));
    let (url, dead) = (Nats::url(port, &queue), Nats::url(port, &format!("{queue}.dead")));
    store.run("mq-send", &["-m", "x", &url], b"").ok();
    let script = r"printf 'one line\n%s\r\n' 'a\n\d' >&2; exit 3";
    let limited = format!("{url}?delivery-limit=1");
    store.run("mq-recv", &["-e", &limited, "--", "sh", "-c", script], b"").exits(123);
    let letter = store.run("mq-recv", &["--peek", "-J", &dead], b"").ok();
    let letter = envelopes(letter.text()).pop().expect("a letter");
    assert_eq!(letter["headers"]["mq-dead-stderr"], "one line\na\\n\\d\r\n", "{letter}");
    // It can be brought back with that.
    store.sh(&format!("mq-recv -e -J '{dead}' -- mq-send -J '{url}'")).ok();
    assert_eq!(taken(&store, &url), "x\n");
}

/// A letter has more beside its body than its message had: what does not fit any more is left out.
#[test]
fn a_letter_of_the_largest_message_is_stored() {
    let Some(port) = Nats::shared() else { return };
    let (store, queue) = (Store::new(), new_queue("large-letter"));
    let (url, dead) = (Nats::url(port, &queue), Nats::url(port, &format!("{queue}.dead")));
    let body = vec![b'x'; (1 << 20) - 600];
    store.run("mq-send", &["--whole", &url], &body).ok();
    let script = "seq 1000 >&2; exit 3";
    let limited = format!("{url}?delivery-limit=1");
    store.run("mq-recv", &["-e", &limited, "--", "sh", "-c", script], b"").exits(123);
    let letter = store.run("mq-recv", &["--peek", "-J", &dead], b"").ok();
    let letter = envelopes(letter.text()).pop().expect("a letter");
    assert_eq!(letter["data"].as_str().expect("data").len(), body.len());
    assert_eq!(letter["headers"]["mq-dead-reason"], "exit status 3");
}

/// It said that no message was found, and tried again for half a minute.
#[test]
fn a_look_at_a_queue_without_messages_ends() {
    let Some(port) = Nats::shared() else { return };
    let name = shared_stream(port, "look", RetentionPolicy::Limits);
    run(async {
        let (full, empty) = (format!("{name}.full"), format!("{name}.empty"));
        let engine: Nats = connect(port, &full).await;
        contract::send(&engine, &full, numbered(0..3)).await;
        let mut wish = to_receive(&empty);
        (wish.peek, wish.until_end) = (true, true);
        let mut consumer = engine.consumer(&wish).await.expect("a consumer");
        assert_eq!(consumer.receive(10).await, Ok(Received::End));
    });
}

/// A token was taken for the name of a user, and shown by every message and to whoever runs ps.
#[test]
fn a_token_is_a_secret() {
    let server = match servers::nats_as("authorization { token: s3cret }") {
        Err(why) => return servers::skipped(&why),
        Ok(server) => server,
    };
    let (store, port) = (Store::new(), server.port);
    std::fs::write(store.beside("token"), "s3cret\n").expect("written");
    std::fs::write(store.beside("wrong"), "s3cret0\n").expect("written");
    let of_file = |name: &str| format!("nats://127.0.0.1:{port}/q?token-file={name}");
    let in_address = format!("nats://s3cret@127.0.0.1:{port}/q");
    for url in [of_file("token"), in_address.clone()] {
        store.run("mq-send", &["-m", "x", &url], b"").ok();
        assert_eq!(taken(&store, &url), "x\n");
    }
    let wrong = [of_file("wrong"), in_address.replace("s3cret", "s3cret0")];
    for url in &wrong {
        let failed =
            store.run("mq-send", &["-m", "x", url], b"").exits(1).says("refused the token");
        assert!(!failed.stderr.contains("s3cret"), "{}", failed.stderr);
    }
    store
        .run("mq-send", &["-m", "x", &of_file("nowhere")], b"")
        .exits(1)
        .says("the token file nowhere");
    let both = in_address.replace("/q", "/q?token-file=token");
    store.run("mq-send", &["-m", "x", &both], b"").exits(2).says("?token-file=");
    // The one who speaks with the server is no more talkative.
    let mut sender = store.spawn("mq-send", &[&in_address]);
    sender.write(b"y\n");
    eventually("it is there", || (looked_at(&store, &of_file("token")) == "y\n").then_some(()));
    let helpers = std::process::Command::new("pgrep")
        .args(["-a", "-P", &sender.pid().as_raw_nonzero().to_string()])
        .output();
    let helpers = String::from_utf8(helpers.expect("pgrep").stdout).expect("text");
    assert!(helpers.contains("mq-remote") && !helpers.contains("s3cret"), "{helpers}");
    sender.finish().ok();
}
