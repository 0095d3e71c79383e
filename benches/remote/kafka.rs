//! Kafka, by rdkafka, on the broker tansu: an idempotent producer whose reports are counted, and a consumer that
//! stores positions, which are committed every half second. The broker makes each fetch wait for as long as it
//! may, so that is set as in the tools.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};

use crate::beside::Beside;
use crate::servers::{self, Server};

pub struct RdKafka(Server);

/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts what was stored.
#[derive(Default)]
struct Stored(AtomicU64);

impl ClientContext for Stored {}

impl ProducerContext for Stored {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "a message was not stored");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl RdKafka {
    fn at(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.at());
        config
    }
}

impl Beside for RdKafka {
    const ENGINE: &'static str = "Kafka";
    const CLIENT: &'static str = "rdkafka";

    fn start() -> Result<RdKafka, String> {
        servers::tansu().map(RdKafka)
    }

    async fn new_queue(&self, number: u64) -> String {
        let queue = format!("bench-{number}");
        let admin: AdminClient<DefaultClientContext> = self.config().create().expect("a client");
        let topic = NewTopic::new(&queue, 4, TopicReplication::Fixed(1));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        queue
    }

    fn url(&self, queue: &str) -> String {
        format!("kafka://{}/{queue}", self.at())
    }

    async fn send(&self, queue: &str, messages: &[Bytes]) {
        let mut config = self.config();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("queue.buffering.max.kbytes", "131072");
        let producer = ThreadedProducer::from_config_and_context(&config, Stored::default());
        let producer: ThreadedProducer<Stored> = producer.expect("a producer");
        for message in messages {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(queue).payload(message);
            while let Err((error, back)) = producer.send(record) {
                assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull));
                tokio::time::sleep(Duration::from_millis(1)).await;
                record = back;
            }
        }
        producer.flush(Duration::from_secs(60)).expect("flushed");
        assert_eq!(producer.context().0.load(Ordering::Relaxed), messages.len() as u64);
    }

    async fn receive(&self, queue: &str, count: u64) {
        let mut config = self.config();
        config
            .set("group.id", format!("mq-{queue}"))
            .set("auto.offset.reset", "earliest")
            .set("auto.commit.interval.ms", "500")
            .set("fetch.wait.max.ms", "100")
            .set("enable.auto.offset.store", "false");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        consumer.subscribe(&[queue]).expect("subscribed");
        let (mut got, mut last) = (0, Instant::now());
        while got < count {
            match consumer.poll(Duration::from_secs(1)) {
                Some(Ok(message)) => {
                    (got, last) = (got + 1, Instant::now());
                    consumer.store_offset_from_message(&message).expect("stored");
                }
                Some(Err(KafkaError::MessageConsumption(code))) => {
                    assert_eq!(code, RDKafkaErrorCode::UnknownTopicOrPartition);
                }
                Some(Err(error)) => panic!("{error}"),
                // It comes back for whatever happens, too.
                None => assert!(last.elapsed() < PATIENCE, "{got} of {count} messages came"),
            }
        }
        consumer.commit_consumer_state(CommitMode::Sync).expect("committed");
    }
}
