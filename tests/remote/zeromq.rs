//! ZeroMQ: our own sides with each other. Nothing is kept, so there is no server.

use mq::remote::address::Address;
use mq::remote::engine::{Engine as _, Publisher as _};
use mq::remote::failure::Kind;
use mq::remote::message::{Facts, Outgoing};
use mq::remote::zeromq::ZeroMq;

use super::contract::{PATIENCE, number, numbered, plain, receive, run, to_receive, to_send};
use super::harness::{Store, seq};
use super::servers::free_port;

async fn engine(url: &str) -> ZeroMq {
    let address = Address::parse(url).expect("a URL");
    ZeroMq::connect(&address, PATIENCE).await.unwrap_or_else(|failure| panic!("{failure}"))
}

async fn through(bound: &str, connected: &str, receiver_binds: bool) {
    const COUNT: u64 = 100_000;
    let (to_bind, to_connect) = (engine(bound).await, connected.to_owned());
    let send = async |engine: ZeroMq| {
        let mut publisher = engine.publisher(&to_send("")).await.expect("a publisher");
        for first in (0..COUNT).step_by(1000) {
            let sent = publisher.publish(numbered(first..first + 1000)).await.expect("sent");
            sent.await.expect("handed over");
        }
        publisher.finish().await.expect("an end");
    };
    if receiver_binds {
        let mut consumer = to_bind.consumer(&to_receive("")).await.expect("a consumer");
        let sending = send(engine(&to_connect).await);
        let (got, ()) = tokio::join!(receive(&mut consumer, COUNT as usize), sending);
        assert!(got.iter().map(number).eq(0..COUNT));
    } else {
        let mut publisher = to_bind.publisher(&to_send("")).await.expect("a publisher");
        let engine = engine(&to_connect).await;
        let mut consumer = engine.consumer(&to_receive("")).await.expect("a consumer");
        let sending = async {
            for first in (0..COUNT).step_by(1000) {
                let sent = publisher.publish(numbered(first..first + 1000)).await.expect("sent");
                sent.await.expect("handed over");
            }
        };
        let (got, ()) = tokio::join!(receive(&mut consumer, COUNT as usize), sending);
        assert!(got.iter().map(number).eq(0..COUNT));
    }
}

#[test]
fn many_messages_come_through_by_tcp_whoever_binds() {
    run(async {
        for receiver_binds in [true, false] {
            let port = free_port();
            let (bound, connected) =
                (format!("zmq+tcp://*:{port}?bind"), format!("zmq+tcp://127.0.0.1:{port}"));
            through(&bound, &connected, receiver_binds).await;
        }
    });
}

#[test]
fn many_messages_come_through_by_a_socket_file() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let url = format!("zmq+ipc://{}", path.display());
        through(&format!("{url}?bind"), &url, true).await;
    });
}

/// The crate's receiving end went round for ever once tokio held back its socket, as it does to whoever reads
/// on and on in one turn: so it was with a sender that was always ahead.
#[test]
fn a_sender_that_is_always_ahead_does_not_stop_a_receiver() {
    const COUNT: u64 = 30_000;
    let port = free_port();
    let (url, ready) = (format!("zmq+tcp://127.0.0.1:{port}"), std::sync::Barrier::new(2));
    let (done, end) = std::sync::mpsc::channel();
    let (bound, ready) = (format!("{url}?bind"), std::sync::Arc::new(ready));
    let sender_ready = std::sync::Arc::clone(&ready);
    std::thread::spawn(move || {
        run(async {
            let mut publisher =
                engine(&bound).await.publisher(&to_send("")).await.expect("a publisher");
            sender_ready.wait();
            let body = bytes::Bytes::from(vec![b'.'; 4096]);
            for first in (0..COUNT).step_by(1000) {
                let batch = (first..first + 1000).map(|number| plain(number, body.clone()));
                let sent = publisher.publish(batch.collect()).await.expect("sent");
                sent.await.expect("handed over");
            }
        });
    });
    // Who goes round for ever is not waited for.
    std::thread::spawn(move || {
        run(async {
            ready.wait();
            let engine = engine(&url).await;
            let mut consumer = engine.consumer(&to_receive("")).await.expect("a consumer");
            let mut all = 0;
            while all < COUNT {
                let got = receive(&mut consumer, 10).await;
                // Slower than the sender.
                let bytes = got.iter().flat_map(|message| &message.body);
                assert!(bytes.fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte)) > 0);
                all += got.len() as u64;
            }
            done.send(()).expect("it is waited for");
        });
    });
    end.recv_timeout(std::time::Duration::from_secs(60)).expect("all comes");
}

#[test]
fn facts_and_topics_come_through() {
    run(async {
        let port = free_port();
        let publish = engine(&format!("zmq+tcp://127.0.0.1:{port}?bind&topic=news")).await;
        let mut publisher = publish.publisher(&to_send("")).await.expect("a publisher");
        let subscribe = engine(&format!("zmq+tcp://127.0.0.1:{port}?topic=news")).await;
        let mut consumer = subscribe.consumer(&to_receive("")).await.expect("a consumer");
        let facts = Facts {
            key: Some("k".into()),
            headers: vec![("a".into(), "1".into())],
            ..Facts::default()
        };
        let message =
            Outgoing { body: "\0body".into(), facts: Some(Box::new(facts.clone())), number: 0 };
        // A subscription arrives some time after it is made, and what was published before is nobody's.
        let first = loop {
            let sent = publisher.publish(vec![message.clone(), plain(1, "plain")]).await;
            sent.expect("sent").await.expect("handed over");
            let wait = std::time::Duration::from_millis(100);
            if let Ok(got) = tokio::time::timeout(wait, receive(&mut consumer, 2)).await {
                break got;
            }
        };
        let with_facts = first.iter().find(|got| got.body == "\0body").expect("it came");
        assert_eq!(with_facts.facts.as_deref(), Some(&facts));
        let plain = first.iter().find(|got| got.body == "plain").expect("it came");
        assert_eq!(plain.facts, None);
    });
}

#[test]
fn each_mistake_has_its_own_words() {
    run(async {
        let nobody = free_port();
        let each = [
            (format!("zmq+tcp://127.0.0.1:{nobody}"), Kind::Unreachable, "onnection refused"),
            ("zmq+tcp://no-such-host.invalid:5".into(), Kind::Unreachable, "no host no-such-host"),
            (format!("zmq+tcp://127.0.0.1:{nobody}?colour=red"), Kind::Unsupported, "?colour"),
            ("zmq+tcp://127.0.0.1".into(), Kind::Unsupported, "zmq+tcp://HOST:PORT"),
            ("zmq+ipc:///nowhere/at/all".into(), Kind::Unreachable, "/nowhere/at/all"),
        ];
        for (url, kind, words) in each {
            let address = Address::parse(&url).expect("a URL");
            let failure = ZeroMq::connect(&address, PATIENCE).await.expect_err("refused");
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.message.contains(words), "{failure}");
        }
    });
}

/// What needs that something is kept is refused, not promised.
#[test]
fn what_needs_a_store_is_refused() {
    run(async {
        let engine = engine(&format!("zmq+tcp://127.0.0.1:{}?bind", free_port())).await;
        let mut wish = to_receive("");
        wish.until_end = true;
        let failure = engine.consumer(&wish).await.err().expect("refused");
        assert_eq!(failure.kind, Kind::Unsupported, "{failure}");
    });
}

/// Once, `mq-remote` panicked when a command had failed on a message that cannot come again.
#[test]
fn what_a_command_fails_on_is_gone_and_the_others_come() {
    let (store, port) = (Store::new(), free_port());
    let bound = format!("zmq+tcp://127.0.0.1:{port}?bind");
    let script = "read -r n; [ $n != 2 ] && echo $n";
    let mut receiver = store.spawn("mq-recv", &["-n", "3", &bound, "--", "sh", "-c", script]);
    let to = format!("zmq+tcp://127.0.0.1:{port}");
    store.run("mq-send", &["-w", "10s", &to], &seq(1, 3)).ok();
    assert_eq!(receiver.lines(2), ["1", "3"]);
    receiver.finish().ok();
    // A pipe has no dead letters from there either: it ends.
    let args = ["--backoff", "1ms..1ms", &bound, "out", "--", "false"];
    let mut pipe = store.spawn("mq-pipe", &args);
    store.run("mq-send", &["-w", "10s", &to], &seq(1, 1)).ok();
    assert_eq!(pipe.await_end(), 123, "{}", pipe.stderr());
    assert!(!pipe.stderr().contains("at least once"), "{}", pipe.stderr());
}

/// A batch of which some had been sent as the connection was lost was sent again from its beginning: twice, of an
/// engine that promises at most once.
#[test]
fn what_was_sent_before_a_connection_was_lost_is_not_sent_again() {
    const COUNT: usize = 20_000;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    // Sockets that hold less than the batch.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 4096).expect("set");
    let url = format!("zmq+tcp://{}", listener.local_addr().expect("its address"));
    let peer = std::thread::spawn(move || {
        loop {
            if let Some(taken) = super::peers::pull(&listener, 300) {
                break taken.len();
            }
        }
    });
    run(async {
        let mut publisher = engine(&url).await.publisher(&to_send("")).await.expect("a publisher");
        let body = bytes::Bytes::from(vec![b'.'; 1000]);
        let batch = (0..COUNT as u64).map(|number| plain(number, body.clone()));
        let sent = publisher.publish(batch.collect()).await.expect("some is sent").await;
        let unsent = sent.expect_err("its peer is gone");
        let taken = peer.join().expect("it took some");
        assert!((taken..COUNT).contains(&unsent.stored), "{unsent:?}");
        assert!(unsent.failure.passes(), "{unsent:?}");
    });
}
