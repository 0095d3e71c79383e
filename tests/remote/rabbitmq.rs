//! RabbitMQ.

use mq::remote::address::Address;
use mq::remote::engine::{Consumer as _, Engine as _, Settlement};
use mq::remote::failure::Kind;
use mq::remote::rabbitmq::RabbitMq;

use super::contract::{self, PATIENCE, Tried, connect, new_queue, run};
use super::servers::{self, Secured, Server, Shared};

/// The server that all tests of this process share.
fn server() -> Option<&'static Server> {
    static SERVER: Shared = Shared::new();
    servers::shared(&SERVER, servers::rabbitmq)
}

/// Where it listens with TLS.
pub fn secured() -> Option<Secured> {
    server()?.secured()
}

impl Tried for RabbitMq {
    const GROUPS_BEGIN_AT_THE_END: bool = true;

    fn shared() -> Option<u16> {
        server().map(|server| server.port)
    }

    fn url(port: u16, queue: &str) -> String {
        format!("amqp://127.0.0.1:{port}/%2f/{queue}")
    }

    fn url_with_wrong_password(port: u16, queue: &str) -> Option<String> {
        Some(format!("amqp://guest:s3cret@127.0.0.1:{port}/%2f/{queue}"))
    }
}

crate::contracts! {
    RabbitMq:
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

crate::survives_kills!(RabbitMq, servers::rabbitmq);

async fn failure(url: &str) -> mq::remote::failure::Failure {
    let address = Address::parse(url).expect("a URL");
    RabbitMq::connect(&address, PATIENCE).await.err().expect("it is refused")
}

#[test]
fn a_virtual_host_that_is_not_there_is_named() {
    let Some(port) = RabbitMq::shared() else { return };
    run(async {
        let failure = failure(&format!("amqp://127.0.0.1:{}/nowhere/q", port)).await;
        assert_eq!(failure.kind, Kind::Missing, "{failure}");
        assert!(failure.message.contains("no virtual host nowhere"), "{failure}");
    });
}

#[test]
fn tls_that_is_refused_is_told_apart() {
    let Some(port) = RabbitMq::shared() else { return };
    run(async {
        let failure = failure(&format!("amqps://127.0.0.1:{}/%2f/q", port)).await;
        assert_eq!(failure.kind, Kind::Tls, "{failure}");
    });
}

/// A quorum queue counts deliveries; the count is what a command is told as its attempt.
#[test]
fn a_quorum_queue_counts_attempts() {
    let Some(port) = RabbitMq::shared() else { return };
    run(async {
        let queue = new_queue("quorum");
        let url = format!("amqp://127.0.0.1:{}/%2f/{queue}?type=quorum", port);
        let address = Address::parse(&url).expect("a URL");
        let engine = RabbitMq::connect(&address, PATIENCE).await.expect("connected");
        contract::send(&engine, &queue, contract::numbered(0..1)).await;
        let wish = contract::to_receive(&queue);
        let mut consumer = engine.consumer(&wish).await.expect("a consumer");
        for attempt in 0..3 {
            let got = contract::receive(&mut consumer, 1).await;
            assert_eq!(got[0].attempt, if attempt == 0 { 0 } else { attempt + 1 }, "{got:?}");
            let number = u64::from(attempt);
            consumer.settle(&[number..number + 1], Settlement::Release).await.expect("released");
        }
    });
}

/// Once there are groups, the queue's own receivers still see everything.
#[test]
fn the_first_group_takes_nothing_from_the_queue() {
    let Some(port) = RabbitMq::shared() else { return };
    run(async {
        let queue = new_queue("grouped");
        let engine: RabbitMq = connect(port, &queue).await;
        contract::send(&engine, &queue, contract::numbered(0..5)).await;
        let wish = mq::remote::engine::ConsumeWish {
            group: "audit".into(),
            from: Some(mq::settings::Start::Newest),
            ..contract::to_receive(&queue)
        };
        let mut audit = engine.consumer(&wish).await.expect("a consumer");
        contract::send(&engine, &queue, contract::numbered(5..10)).await;
        let mut own = engine.consumer(&contract::to_receive(&queue)).await.expect("a consumer");
        let got = contract::receive(&mut own, 10).await;
        assert!(got.iter().map(contract::number).eq(0..10));
        let got = contract::receive(&mut audit, 5).await;
        assert!(got.iter().map(contract::number).eq(5..10));
    });
}
