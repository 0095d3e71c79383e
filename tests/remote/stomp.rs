//! ActiveMQ, by STOMP.

use std::net::TcpListener;
use std::time::Duration;

use mq::remote::engine::Consumer as _;
use mq::remote::engine::{ConsumeWish, Engine as _, Settlement};
use mq::remote::failure::Kind;
use mq::remote::message::Facts;
use mq::remote::stomp::Stomp;

use super::contract::{self, Tried, connect, new_queue, number, numbered, run, to_receive};
use super::harness::Store;
use super::peers::StompClient;
use super::servers::{self, Secured, Server, Shared};

/// The server that all tests of this process share.
fn server() -> Option<&'static Server> {
    static SERVER: Shared = Shared::new();
    servers::shared(&SERVER, servers::activemq)
}

/// Where it listens with TLS.
pub fn secured() -> Option<Secured> {
    server()?.secured()
}

impl Tried for Stomp {
    fn shared() -> Option<u16> {
        server().map(|server| server.port)
    }

    fn url(port: u16, queue: &str) -> String {
        format!("stomp://127.0.0.1:{port}/{queue}")
    }

    fn url_with_wrong_password(port: u16, queue: &str) -> Option<String> {
        Some(format!("stomp://mq:s3cret@127.0.0.1:{port}/{queue}"))
    }
}

crate::contracts! {
    Stomp:
    many_messages_come_through,
    what_was_not_acked_comes_again,
    what_is_released_comes_again,
    the_end_is_where_it_was_at_the_start,
    bodies_and_facts_stay_as_they_are,
    the_prefetch_is_a_bound,
    a_look_takes_nothing,
    more_is_handed_out_once_it_is_allowed,
    without_acks_each_comes_once,
    each_mistake_has_its_own_words,
}

crate::survives_kills!(Stomp, servers::activemq);

/// Each group of a virtual topic has a queue of its own.
#[test]
fn each_group_of_a_virtual_topic_sees_everything() {
    let Some(port) = Stomp::shared() else { return };
    run(async {
        let queue = format!("VirtualTopic.{}", new_queue("groups"));
        let engine: Stomp = connect(port, &queue).await;
        let group = |name: &str| ConsumeWish { group: name.into(), ..to_receive(&queue) };
        let mut audit = engine.consumer(&group("audit")).await.expect("a consumer");
        let mut billing = engine.consumer(&group("billing")).await.expect("a consumer");
        contract::send(&engine, &queue, numbered(0..100)).await;
        for consumer in [&mut audit, &mut billing] {
            let got = contract::receive(consumer, 100).await;
            assert!(got.iter().map(number).eq(0..100));
            consumer.settle(&[0..100], Settlement::Ack).await.expect("acked");
        }
        let plain = ConsumeWish { group: "audit".into(), ..to_receive("plain") };
        let failure = engine.consumer(&plain).await.err().expect("refused");
        assert_eq!(failure.kind, Kind::Unsupported, "{failure}");
        assert!(failure.remedy.expect("a remedy").contains("VirtualTopic.plain"));
    });
}

/// With `dead-letter=engine`, the broker has a queue for it.
#[test]
fn a_dead_letter_goes_to_the_brokers_own_queue() {
    let Some(port) = Stomp::shared() else { return };
    run(async {
        let queue = new_queue("dead");
        let engine: Stomp = connect(port, &queue).await;
        contract::send(&engine, &queue, numbered(0..1)).await;
        let mut consumer = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        contract::receive(&mut consumer, 1).await;
        consumer.settle(&[0..1], Settlement::Dead).await.expect("told");
        consumer.finish().await.expect("an end");
        let mut dead = engine.consumer(&to_receive("ActiveMQ.DLQ")).await.expect("a consumer");
        let got = contract::receive(&mut dead, 1).await;
        assert_eq!(number(&got[0]), 0);
        dead.settle(&[0..1], Settlement::Ack).await.expect("acked");
    });
}

/// What of a message is the broker's own is not shown as its headers.
#[test]
fn the_brokers_own_headers_are_not_the_messages() {
    let Some(port) = Stomp::shared() else { return };
    run(async {
        let queue = new_queue("plain");
        let engine: Stomp = connect(port, &queue).await;
        contract::send(&engine, &queue, numbered(0..1)).await;
        let mut consumer = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        let got = contract::receive(&mut consumer, 1).await;
        let facts = got[0].facts.as_deref().expect("an id");
        assert!(facts.id.is_some() && facts.event_time.is_some());
        let plain =
            Facts { id: facts.id.clone(), event_time: facts.event_time, ..Facts::default() };
        assert_eq!(facts, &plain);
    });
}

#[test]
fn names_of_several_queues_are_refused() {
    let Some(port) = Stomp::shared() else { return };
    run(contract::names_of_none_are_refused::<Stomp>(
        port,
        &["a,b", ">", "a.*", "a?consumer.priority=9"],
    ));
}

/// The dead letters of a group of a virtual topic went to a topic that nobody was subscribed to: the broker
/// confirmed them, and they were gone.
#[test]
fn dead_letters_of_a_virtual_topic_are_kept() {
    let Some(port) = Stomp::shared() else { return };
    let topic = format!("VirtualTopic.{}", new_queue("dead"));
    let url = |queue: &str| Stomp::url(port, queue);
    let (store, to) = (Store::new(), url(&format!("{topic}?delivery-limit=1")));
    let receive = |url: &str, args: &[&str], command: &[&str]| {
        let args: Vec<&str> = [args, &["-e", url], command].concat();
        store.run("mq-recv", &args, b"")
    };
    receive(&to, &["-g", "G"], &[]).ok();
    receive(&to, &[], &[]).ok();
    store.run("mq-send", &[&to], b"precious\n").ok();
    receive(&to, &["-g", "G"], &["--", "false"]).exits(123);
    receive(&to, &[], &["--", "false"]).exits(123);
    for dead in [format!("{topic}.G.dead"), format!("{topic}.dead")] {
        assert_eq!(receive(&url(&dead), &[], &[]).ok().text(), "precious\n", "{dead}");
    }
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    (listener, format!("stomp://127.0.0.1:{port}/q"))
}

/// ActiveMQ looks at the end of each interval whether something came in it: beats that came a little later than
/// was promised made it cut a connection on which all was well.
#[test]
fn beats_come_well_before_they_are_due() {
    let (listener, url) = listener();
    let mut receiver = Store::new().spawn("mq-recv", &[&url]);
    let mut client = StompClient::accept(&listener);
    client.until("SUBSCRIBE");
    for _ in 0..2 {
        let silence = client.silence();
        assert!(silence < Duration::from_secs(8), "{silence:?}");
        client.say("\n");
        client.take_beat();
    }
    receiver.signal(rustix::process::Signal::KILL);
    receiver.await_end();
}

/// A broker whose memory is full reads nothing more, and its beats go on: the sender waited for ever, or ended
/// as if nobody had answered.
#[test]
fn a_broker_that_takes_nothing_is_waited_for_as_long_as_was_said() {
    for lines in [1, 400_000] {
        let (listener, url) = listener();
        std::thread::spawn(move || {
            // Ends with the process.
            for stream in listener.incoming() {
                let stream = stream.expect("a client");
                std::thread::spawn(move || StompClient::log_in(stream).beat_only());
            }
        });
        let store = Store::new();
        let mut sender = store.spawn("mq-send", &["-w", "2s", &url]);
        let mut input = sender.take_stdin();
        let filling = std::thread::spawn(move || {
            use std::io::Write as _;
            let line = [&[b'x'; 99][..], b"\n"].concat();
            // It ends before it has taken all.
            let _ = (0..lines).try_for_each(|_| input.write_all(&line));
        });
        let done = sender.finish_within(Duration::from_secs(40)).exits(75);
        done.says("takes nothing for now").says("confirmed: 0 leading");
        filling.join().expect("it ended");
    }
}
