//! Kafka: librdkafka's own mock cluster, in this process.

use std::sync::OnceLock;

use mq::remote::engine::{ConsumeWish, Consumer as _, Engine as _, Received, Settlement};
use mq::remote::kafka::Kafka;
use mq::remote::message::{Facts, Outgoing};
use mq::settings::Start;

use super::contract::{self, Tried, connect, new_queue, number, numbered, run, to_receive};

impl Tried for Kafka {
    const ACKS_ONE_BY_ONE: bool = false;

    fn shared() -> Option<u16> {
        static PORT: OnceLock<u16> = OnceLock::new();
        Some(*PORT.get_or_init(|| {
            let (sender, receiver) = std::sync::mpsc::channel();
            // The cluster lives as long as this process: its thread holds it.
            std::thread::spawn(move || {
                let cluster = rdkafka::mocking::MockCluster::new(1).expect("a mock cluster");
                sender.send(cluster.bootstrap_servers()).expect("it is waited for");
                loop {
                    std::thread::park();
                }
            });
            let at = receiver.recv().expect("a mock cluster");
            at.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
        }))
    }

    fn url(port: u16, queue: &str) -> String {
        format!("kafka://127.0.0.1:{port}/{queue}")
    }

    fn url_with_wrong_password(_: u16, _: &str) -> Option<String> {
        None
    }
}

crate::contracts! {
    Kafka:
    many_messages_come_through,
    what_was_not_acked_comes_again,
    what_is_released_comes_again,
    the_end_is_where_it_was_at_the_start,
    bodies_and_facts_stay_as_they_are,
    each_group_sees_everything,
    a_look_takes_nothing,
    more_is_handed_out_once_it_is_allowed,
    without_acks_each_comes_once,
    each_mistake_has_its_own_words,
}

/// What is committed never passes what is not acked, across all partitions.
#[test]
fn a_hole_is_never_committed_over() {
    let port = Kafka::shared().expect("in this process");
    run(async {
        let queue = new_queue("hole");
        let engine: Kafka = connect(port, &queue).await;
        let keyed = |number: u64| Outgoing {
            body: number.to_string().into(),
            facts: Some(Box::new(Facts { key: Some(number.to_string()), ..Facts::default() })),
            number,
        };
        contract::send(&engine, &queue, (0..200).map(keyed).collect()).await;
        let mut consumer = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        let got = contract::receive(&mut consumer, 200).await;
        let partition = |at: usize| {
            let facts = got[at].facts.as_ref().expect("a place");
            let id = facts.id.as_ref().expect("a place");
            id.rsplit(':').nth(1).expect("a partition").to_owned()
        };
        let partitions: std::collections::BTreeSet<_> = (0..200).map(partition).collect();
        assert!(partitions.len() > 1, "of one partition alone it would say little");
        consumer.settle(&[0..100, 101..200], Settlement::Ack).await.expect("acked");
        consumer.finish().await.expect("an end");
        let wish = ConsumeWish { until_end: true, ..to_receive(&queue) };
        let mut consumer = engine.consumer(&wish).await.expect("a consumer");
        let mut again = Vec::new();
        while let Received::Messages(some) = consumer.receive(500).await.expect("received") {
            again.extend(some.iter().map(number));
        }
        let same_partition = (100..200).filter(|at| partition(*at) == partition(100));
        assert!(again.iter().copied().eq(same_partition.map(|at| number(&got[at]))), "{again:?}");
    });
}

/// Figures are those of the group without a name.
#[test]
fn what_is_ready_is_what_is_not_committed() {
    let port = Kafka::shared().expect("in this process");
    run(async {
        let queue = new_queue("figures");
        let engine: Kafka = connect(port, &queue).await;
        contract::send(&engine, &queue, numbered(0..25)).await;
        let ready =
            async || engine.figures(&queue).await.expect("asked").expect("it is there").ready;
        assert_eq!(ready().await, Some(25));
        let mut consumer = engine.consumer(&to_receive(&queue)).await.expect("a consumer");
        contract::receive(&mut consumer, 25).await;
        consumer.settle(&[0..25], Settlement::Ack).await.expect("acked");
        consumer.finish().await.expect("an end");
        assert_eq!(ready().await, Some(0));
    });
}

#[test]
fn a_group_begins_where_it_is_told() {
    let port = Kafka::shared().expect("in this process");
    run(async {
        let queue = new_queue("from");
        let engine: Kafka = connect(port, &queue).await;
        // One key is one partition: so the place in it is the number.
        let keyed = |number: u64| Outgoing {
            body: number.to_string().into(),
            facts: Some(Box::new(Facts { key: Some("k".into()), ..Facts::default() })),
            number,
        };
        contract::send(&engine, &queue, (0..10).map(keyed).collect()).await;
        let starts = [
            (Start::Oldest, 0..10),
            (Start::Newest, 10..10),
            (Start::Offset(mq::units::Offset(4)), 4..10),
            (Start::Last(mq::units::Count(2)), 8..10),
        ];
        for (place, (from, wanted)) in starts.into_iter().enumerate() {
            let wish = ConsumeWish {
                group: format!("{queue}-{place}"),
                from: Some(from),
                until_end: true,
                ..to_receive(&queue)
            };
            let mut consumer = engine.consumer(&wish).await.expect("a consumer");
            let mut got = Vec::new();
            while let Received::Messages(some) = consumer.receive(100).await.expect("received") {
                got.extend(some.iter().map(number));
            }
            assert!(got.iter().copied().eq(wanted), "from {from:?}: {got:?}");
        }
    });
}
