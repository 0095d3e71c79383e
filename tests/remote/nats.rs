//! NATS with JetStream.

use mq::remote::address::Address;
use mq::remote::engine::{Consumer as _, Engine as _, Publisher as _, Received, Settlement};
use mq::remote::failure::Kind;
use mq::remote::message::{Facts, Outgoing};
use mq::remote::nats::Nats;
use mq::settings::Start;
use mq::units::{Count, Offset};

use super::contract::{
    self, Tried, connect, new_queue, number, numbered, plain, run, to_receive, to_send,
};
use super::servers::{self, Server, Shared};

/// The server that all tests of this process share.
fn server() -> Option<&'static Server> {
    static SERVER: Shared = Shared::new();
    servers::shared(&SERVER, servers::nats)
}

impl Tried for Nats {
    const ANY_HEADERS: bool = false;

    fn shared() -> Option<u16> {
        server().map(|server| server.port)
    }

    fn url(port: u16, queue: &str) -> String {
        format!("nats://127.0.0.1:{port}/{queue}")
    }

    fn url_with_wrong_password(port: u16, queue: &str) -> Option<String> {
        Some(format!("nats://mq:s3cret@127.0.0.1:{port}/{queue}"))
    }
}

crate::contracts! {
    Nats:
    many_messages_come_through,
    what_was_not_acked_comes_again,
    what_is_released_comes_again,
    the_end_is_where_it_was_at_the_start,
    bodies_and_facts_stay_as_they_are,
    the_prefetch_is_a_bound,
    each_group_sees_everything,
    a_look_takes_nothing,
    more_is_handed_out_once_it_is_allowed,
    without_acks_each_comes_once,
    figures_and_purge_are_the_engines_own,
    each_mistake_has_its_own_words,
}

crate::survives_kills!(Nats, servers::nats);

/// A sender that does not know whether it was stored sends again: once is enough.
#[test]
fn what_is_sent_again_is_stored_once() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("again");
        let engine: Nats = connect(port, &queue).await;
        for range in [0..100, 50..150] {
            contract::send(&engine, &queue, numbered(range)).await;
        }
        let figures = engine.figures(&queue).await.expect("asked").expect("there");
        assert_eq!(figures.ready, Some(150));
        let facts = Facts { id: Some("mine".into()), ..Facts::default() };
        for number in [1000, 1001] {
            let facts = Some(Box::new(facts.clone()));
            let message = Outgoing { body: "x".into(), facts, number };
            contract::send(&engine, &queue, vec![message]).await;
        }
        let figures = engine.figures(&queue).await.expect("asked").expect("there");
        assert_eq!(figures.ready, Some(151));
    });
}

/// A queue that a sender made goes to one group; the second is told why, and what to do.
#[test]
fn a_work_queue_has_one_group() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("work");
        let engine: Nats = connect(port, &queue).await;
        contract::send(&engine, &queue, numbered(0..1)).await;
        let mut first = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        contract::receive(&mut first, 1).await;
        let mut wish = to_receive(&queue);
        wish.group = "audit".into();
        wish.from = Some(Start::Oldest);
        let failure = engine.consumer(&wish).await.err().expect("refused");
        assert_eq!(failure.kind, Kind::Unsupported, "{failure}");
        assert!(failure.remedy.expect("a remedy").contains("?retention=limits"));
    });
}

/// A stream that keeps what it has is read from anywhere.
#[test]
fn a_group_begins_where_it_is_told() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("from");
        let engine: Nats = connect(port, &queue).await;
        let group = |name: &str, from| {
            let mut wish = to_receive(&queue);
            wish.group = name.into();
            wish.from = Some(from);
            wish.until_end = true;
            wish
        };
        let made = engine.consumer(&group("first", Start::Oldest)).await.expect("a consumer");
        made.finish().await.expect("an end");
        contract::send(&engine, &queue, numbered(0..10)).await;
        let starts = [
            (Start::Oldest, 0..10),
            (Start::Newest, 10..10),
            (Start::Offset(Offset(4)), 3..10),
            (Start::Last(Count(2)), 8..10),
            (Start::Time(mq::units::WallTime(0)), 0..10),
        ];
        for (place, (from, wanted)) in starts.into_iter().enumerate() {
            let wish = group(&format!("group{place}"), from);
            let mut consumer = engine.consumer(&wish).await.expect("a consumer");
            let mut got = Vec::new();
            while let Received::Messages(some) = consumer.receive(100).await.expect("received") {
                got.extend(some.iter().map(number));
            }
            assert!(got.iter().copied().eq(wanted), "from {from:?}: {got:?}");
        }
    });
}

/// What is held for longer than the server waits is not given to another.
#[test]
fn what_is_held_is_not_given_away() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("held");
        let engine: Nats = connect(port, &queue).await;
        contract::send(&engine, &queue, numbered(0..10)).await;
        let mut first = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        // The others have come too, and nobody takes them: once they were given to another meanwhile.
        contract::receive(&mut first, 1).await;
        let mut second = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        let longer = std::time::Duration::from_secs(18);
        let other = tokio::time::timeout(longer, second.receive(1)).await;
        assert!(other.is_err(), "{other:?}");
        contract::receive(&mut first, 9).await;
        first.settle(&[0..10], Settlement::Ack).await.expect("acked");
        first.flush().await.expect("flushed");
        let figures = engine.figures(&queue).await.expect("asked").expect("there");
        assert_eq!((figures.ready, figures.unacked), (Some(0), Some(0)));
    });
}

/// When a request had ended with nothing, none was made until somebody woke the receiver.
#[test]
fn what_comes_after_a_while_is_received() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("idle");
        let engine: Nats = connect(port, &queue).await;
        let mut consumer = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        let mut received = tokio::spawn(async move { contract::receive(&mut consumer, 1).await });
        let longer = std::time::Duration::from_secs(32);
        let none = tokio::time::timeout(longer, &mut received).await;
        assert!(none.is_err(), "{none:?}");
        contract::send(&engine, &queue, numbered(0..1)).await;
        let within = std::time::Duration::from_secs(10);
        let received = tokio::time::timeout(within, received).await.expect("in time");
        assert_eq!(received.expect("received").len(), 1);
    });
}

/// What is asked for is bounded in bytes: all that a prefetch of large messages is came at once, which the server
/// took for a client that is too slow.
#[test]
fn what_comes_at_once_is_bounded_in_bytes() {
    const BYTES: usize = 900_000;
    const COUNT: u64 = 100;
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("large");
        let engine: Nats = connect(port, &queue).await;
        let body = |number: u64| format!("{}{number:010}", "0".repeat(BYTES - 10));
        let batch = (0..COUNT).map(|number| plain(number, body(number)));
        contract::send(&engine, &queue, batch.collect()).await;
        let mut consumer = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        let (mut all, mut most) = (Vec::new(), 0);
        while (all.len() as u64) < COUNT {
            let from = all.len() as u64;
            let came = contract::receive(&mut consumer, 1).await;
            all.extend(came.iter().map(number));
            let figures = engine.figures(&queue).await.expect("asked").expect("there");
            most = most.max(figures.unacked.expect("known"));
            consumer.settle(&[from..from + 1], Settlement::Ack).await.expect("acked");
        }
        consumer.finish().await.expect("an end");
        assert!(all.iter().copied().eq(0..COUNT), "each once, in order: {all:?}");
        assert!(most * BYTES as u64 <= 40 << 20, "{most} messages were here at once");
    });
}

/// A header that NATS cannot have is bad input.
#[test]
fn a_header_that_does_not_fit_is_refused() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let queue = new_queue("header");
        let engine: Nats = connect(port, &queue).await;
        let mut publisher = engine.publisher(&to_send(&queue)).await.expect("a publisher");
        let headers = vec![("a".to_owned(), "two\nlines".to_owned())];
        let facts = Some(Box::new(Facts { headers, ..Facts::default() }));
        let message = Outgoing { body: "x".into(), facts, number: 0 };
        let failure = publisher.publish(vec![message]).await.err().expect("refused");
        assert_eq!(failure.kind, Kind::BadInput, "{failure}");
    });
}

/// The hosts of a cluster are tried until one answers.
#[test]
fn a_host_that_is_down_is_passed_over() {
    let Some(port) = Nats::shared() else { return };
    run(async {
        let nobody = servers::free_port();
        let url = format!("nats://127.0.0.1:{nobody},127.0.0.1:{port}/{}", new_queue("hosts"));
        let address = Address::parse(&url).expect("a URL");
        // They are tried in an order of chance.
        for _ in 0..10 {
            let connected = Nats::connect(&address, contract::PATIENCE).await;
            assert!(connected.is_ok(), "{:?}", connected.err());
        }
    });
}

#[test]
fn names_of_several_queues_are_refused() {
    let Some(port) = Nats::shared() else { return };
    run(contract::names_of_none_are_refused::<Nats>(port, &["a.*", ">", "a..b", ".a", "a."]));
}
