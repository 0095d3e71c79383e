//! RabbitMQ, by lapin: publishes are put in line together, confirms are awaited a window later, and one
//! ack stands for many deliveries.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::beside::Beside;
use crate::servers::{self, Server};

/// Messages that are put in line together; twice as many may be unconfirmed.
const WINDOW: usize = 1000;
/// Deliveries that one ack stands for, and how many may be unacked.
const ACKED: u64 = 500;
const PREFETCH: u16 = 2000;

pub struct Lapin(Server);

impl Lapin {
    async fn channel(&self) -> (Connection, Channel) {
        let uri = format!("amqp://127.0.0.1:{}/%2f", self.0.port);
        let connection = Connection::connect(&uri, ConnectionProperties::default());
        let connection = connection.await.expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    }
}

impl Beside for Lapin {
    const ENGINE: &'static str = "RabbitMQ";
    const CLIENT: &'static str = "lapin";

    fn start() -> Result<Lapin, String> {
        servers::rabbitmq().map(Lapin)
    }

    async fn new_queue(&self, number: u64) -> String {
        let queue = format!("bench-{number}");
        let (_connection, channel) = self.channel().await;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let made = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
        made.await.expect("a queue");
        queue
    }

    fn url(&self, queue: &str) -> String {
        format!("amqp://127.0.0.1:{}/%2f/{queue}", self.0.port)
    }

    async fn send(&self, queue: &str, messages: &[Bytes]) {
        let (connection, channel) = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let mut waiting = VecDeque::new();
        for window in messages.chunks(WINDOW) {
            let publishes = window.iter().map(|message| {
                let properties = persistent.clone();
                channel.basic_publish("".into(), queue.into(), options, message, properties)
            });
            waiting.push_back(join_all(publishes).await);
            if waiting.len() > 1 {
                confirmed(waiting.pop_front().expect("one")).await;
            }
        }
        for window in waiting {
            confirmed(window).await;
        }
        connection.close(200, "done".into()).await.expect("closed");
    }

    async fn receive(&self, queue: &str, count: u64) {
        let (connection, channel) = self.channel().await;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.expect("a prefetch");
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let mut consumer = consumer.await.expect("a consumer");
        for number in 1..=count {
            let delivery = consumer.next().await.expect("a delivery").expect("a delivery");
            if number % ACKED == 0 || number == count {
                delivery.ack(BasicAckOptions { multiple: true }).await.expect("acked");
            }
        }
        connection.close(200, "done".into()).await.expect("closed");
    }
}

async fn confirmed(window: Vec<lapin::Result<lapin::PublisherConfirm>>) {
    for confirm in window {
        let confirmation = confirm.expect("sent").await.expect("confirmed");
        assert!(confirmation.is_ack() && confirmation.take_message().is_none());
    }
}
