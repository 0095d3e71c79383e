//! Kafka: librdkafka's own mock cluster, in this process, and the broker tansu, which is a program.
//!
//! The mock cluster keeps nothing of what a transaction commits for a group, and tansu nothing of the
//! metadata beside an offset. Of tansu 0.6 there are two:
//!
//! | | keeps in a file (SQLite) | keeps in memory |
//! |---|---|---|
//! | where a topic ends | right | one behind where its last batch *begins*: no end can be waited for |
//! | from the middle of a batch on | read | not read: what was committed there is passed over |
//! | the end of a transaction | not known to it, as it is published | right, as it is tagged |
//!
//! So transactions are tried on the second, and all else on the first.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

use mq::remote::address::Address;
use mq::remote::engine::{
    Abilities, ConsumeWish, Consumer as _, Engine, Progress, PublishWish, Publisher as _,
    QueueFigures, Received, Settlement,
};
use mq::remote::failure::{Failure, Kind};
use mq::remote::kafka::Kafka;
use mq::remote::message::{Facts, Outgoing};
use mq::settings::Start;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::contract::{
    self, Tried, connect, new_queue, number, numbered, run, to_receive, to_send,
};
use super::servers;

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

/// The same engine on tansu.
pub struct OnTansu(Kafka);

impl Engine for OnTansu {
    const ABILITIES: Abilities = Kafka::ABILITIES;
    type Publisher = <Kafka as Engine>::Publisher;
    type Consumer = <Kafka as Engine>::Consumer;

    async fn connect(address: &Address, patience: Duration) -> Result<OnTansu, Failure> {
        Kafka::connect(address, patience).await.map(OnTansu)
    }

    async fn publisher(&self, wish: &PublishWish) -> Result<Self::Publisher, Failure> {
        self.0.publisher(wish).await
    }

    async fn consumer(&self, wish: &ConsumeWish) -> Result<Self::Consumer, Failure> {
        self.0.consumer(wish).await
    }

    async fn figures(&self, queue: &str) -> Result<Option<QueueFigures>, Failure> {
        self.0.figures(queue).await
    }

    async fn purge(&self, queue: &str) -> Result<Option<u64>, Failure> {
        self.0.purge(queue).await
    }

    async fn remove(&self, queue: &str) -> Result<(), Failure> {
        self.0.remove(queue).await
    }
}

impl Tried for OnTansu {
    const ACKS_ONE_BY_ONE: bool = false;

    fn shared() -> Option<u16> {
        static SERVER: servers::Shared = servers::Shared::new();
        servers::shared(&SERVER, servers::tansu).map(|server| server.port)
    }

    fn url(port: u16, queue: &str) -> String {
        Kafka::url(port, queue)
    }

    fn url_with_wrong_password(_: u16, _: &str) -> Option<String> {
        None
    }
}

/// The tansu that can end transactions.
pub fn with_transactions() -> Option<u16> {
    static SERVER: servers::Shared = servers::Shared::new();
    servers::shared(&SERVER, servers::tansu_with_transactions).map(|server| server.port)
}

macro_rules! contracts_of {
    ($place:ident, $engine:ident) => {
        mod $place {
            use super::$engine;

            crate::contracts! {
                $engine:
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
        }
    };
}

contracts_of!(mock, Kafka);
contracts_of!(tansu, OnTansu);

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

fn named(queue: &str, sender: u64) -> PublishWish {
    PublishWish { queue: queue.to_owned(), sender, named: true }
}

/// Sends messages of these numbers under a name; how far it had come.
async fn send_named<E: Engine>(
    engine: &E,
    wish: &PublishWish,
    numbers: Range<u64>,
) -> Option<Progress> {
    let mut publisher = engine.publisher(wish).await.expect("a publisher");
    let progress = publisher.progress();
    publisher.note(b"said with it");
    let confirmation = publisher.publish(numbered(numbers)).await.expect("sent");
    confirmation.await.expect("committed");
    publisher.finish().await.expect("an end");
    progress
}

async fn all_of<E: Engine>(engine: &E, queue: &str) -> Vec<u64> {
    let wish = ConsumeWish { until_end: true, peek: true, ..to_receive(queue) };
    let mut consumer = engine.consumer(&wish).await.expect("a consumer");
    let mut all = Vec::new();
    while let Received::Messages(some) = consumer.receive(500).await.expect("received") {
        all.extend(some.iter().map(number));
    }
    all.sort_unstable();
    all
}

/// What is committed is there, in several transactions, and what a mark of one takes is no message.
async fn transactions_come_through<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    let mut publisher = engine.publisher(&named(queue, 5)).await.expect("a publisher");
    let mut waiting = Vec::new();
    for first in (1..1000).step_by(100) {
        waiting.push(publisher.publish(numbered(first..first + 100)).await.expect("sent"));
    }
    for confirmation in waiting {
        confirmation.await.expect("committed");
    }
    publisher.finish().await.expect("an end");
    assert!(all_of(&engine, queue).await.into_iter().eq(1..1001));
}

#[test]
fn transactions_come_through_the_mock_cluster() {
    let port = Kafka::shared().expect("in this process");
    run(transactions_come_through::<Kafka>(port, &new_queue("transactions")));
}

#[test]
fn transactions_come_through_tansu() {
    let Some(port) = with_transactions() else { return };
    run(transactions_come_through::<OnTansu>(port, &new_queue("transactions")));
}

/// A sender that comes back under its name learns what is stored of it, for each topic and name by itself.
#[test]
fn a_sender_with_a_name_learns_how_far_it_had_come() {
    let Some(port) = with_transactions() else { return };
    run(async {
        let (queue, other) = (new_queue("names"), new_queue("names"));
        let engine: OnTansu = connect(port, &queue).await;
        let last = |progress: Option<Progress>| progress.expect("it is known").last;
        assert_eq!(last(send_named(&engine, &named(&queue, 5), 1..101).await), 0);
        assert_eq!(last(send_named(&engine, &named(&queue, 5), 101..151).await), 100);
        assert_eq!(last(send_named(&engine, &named(&queue, 6), 151..161).await), 0);
        assert_eq!(last(send_named(&engine, &named(&other, 5), 1..2).await), 0);
        assert!(all_of(&engine, &queue).await.into_iter().eq(1..161));
        let publisher = engine.publisher(&named(&queue, 5)).await.expect("a publisher");
        assert_eq!(last(publisher.progress()), 150);
        let nameless = engine.publisher(&to_send(&queue)).await.expect("a publisher");
        assert_eq!(nameless.progress(), None);
    });
}

/// What a sender said with its progress comes back in the metadata of the offset that stands for it.
#[test]
fn what_a_sender_said_comes_back() {
    let port = Kafka::shared().expect("in this process");
    run(async {
        let queue = new_queue("said");
        let engine: Kafka = connect(port, &queue).await;
        contract::send(&engine, &queue, numbered(0..1)).await;
        // The mock cluster takes from a transaction no offsets, but from anybody else.
        let group = format!("mq-{queue}-producer-0000000000000005");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", format!("127.0.0.1:{port}")).set("group.id", &group);
        let committing: BaseConsumer = config.create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        let mut place = list.add_partition(&queue, 0);
        place.set_offset(Offset::Offset(77)).expect("a place");
        place.set_metadata("c2FpZCB3aXRoIGl0");
        committing.commit(&list, CommitMode::Sync).expect("committed");
        let publisher = engine.publisher(&named(&queue, 5)).await.expect("a publisher");
        let said = Some(b"said with it".to_vec());
        assert_eq!(publisher.progress(), Some(Progress { last: 77, annex: said }));
    });
}

/// A newer sender under the same name ends an older one: what that had not committed is not there.
#[test]
fn a_newer_sender_of_the_name_fences_off_the_older() {
    let Some(port) = with_transactions() else { return };
    run(async {
        let queue = new_queue("fenced");
        let engine: OnTansu = connect(port, &queue).await;
        let mut older = engine.publisher(&named(&queue, 5)).await.expect("a publisher");
        older.publish(numbered(1..11)).await.expect("sent").await.expect("committed");
        let progress = send_named(&engine, &named(&queue, 5), 11..21).await;
        assert_eq!(progress.expect("it is known").last, 10);
        let late = older.publish(numbered(11..16)).await.expect("handed over").await;
        let failure = late.expect_err("it is fenced off");
        assert_eq!(failure.failure.kind, Kind::Fenced, "{failure:?}");
        assert!(all_of(&engine, &queue).await.into_iter().eq(1..21));
    });
}
