//! NATS JetStream, by async-nats: acknowledgements of publishes are awaited a window later, and messages
//! are received by the client's own stream of a pull consumer. Each message has an id, by which the stream
//! knows it again, as the tools give it one.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::beside::Beside;
use crate::servers::{self, Server};

/// Publishes that may be unacknowledged.
const WINDOW: usize = 4096;
/// Messages that are asked for at once.
const BATCH: usize = 2000;

pub struct AsyncNats(Server);

impl AsyncNats {
    async fn jetstream(&self) -> (async_nats::Client, Context) {
        let client = async_nats::connect(format!("nats://127.0.0.1:{}", self.0.port));
        let client = client.await.expect("a connection");
        (client.clone(), jetstream::new(client))
    }
}

impl Beside for AsyncNats {
    const ENGINE: &'static str = "NATS";
    const CLIENT: &'static str = "async-nats";

    fn start() -> Result<AsyncNats, String> {
        servers::nats().map(AsyncNats)
    }

    async fn new_queue(&self, number: u64) -> String {
        let queue = format!("bench-{number}");
        let (_, jetstream) = self.jetstream().await;
        let config = Config {
            name: queue.clone(),
            subjects: vec![queue.clone()],
            retention: RetentionPolicy::WorkQueue,
            ..Config::default()
        };
        let stream = jetstream.create_stream(config).await.expect("a stream");
        let group = pull::Config {
            durable_name: Some("default".to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(15),
            max_ack_pending: -1,
            ..pull::Config::default()
        };
        stream.create_consumer(group).await.expect("a consumer");
        queue
    }

    fn url(&self, queue: &str) -> String {
        format!("nats://127.0.0.1:{}/{queue}", self.0.port)
    }

    async fn send(&self, queue: &str, messages: &[Bytes]) {
        let (_, jetstream) = self.jetstream().await;
        let mut waiting = VecDeque::new();
        for (number, message) in messages.iter().enumerate() {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_MESSAGE_ID, format!("client-{number}"));
            let sent =
                jetstream.publish_with_headers(queue.to_owned(), headers, message.clone()).await;
            waiting.push_back(sent.expect("sent").into_future());
            if waiting.len() >= WINDOW {
                waiting.pop_front().expect("one").await.expect("acknowledged");
            }
        }
        for ack in waiting {
            ack.await.expect("acknowledged");
        }
    }

    async fn receive(&self, queue: &str, count: u64) {
        let (client, jetstream) = self.jetstream().await;
        let stream = jetstream.get_stream(queue).await.expect("the stream");
        let consumer: PullConsumer = stream.get_consumer("default").await.expect("the consumer");
        let messages = consumer.stream().max_messages_per_batch(BATCH).messages();
        let mut messages = messages.await.expect("messages").take(count as usize);
        while let Some(message) = messages.next().await {
            message.expect("a message").ack().await.expect("acked");
        }
        client.flush().await.expect("flushed");
    }
}
