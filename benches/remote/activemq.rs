//! ActiveMQ, by a plain program that speaks STOMP on a socket: the tools' own client is mq's. Transactions
//! of a thousand messages, of which two are unconfirmed; acks for each message, five hundred of them together.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use bytes::Bytes;

use crate::beside::Beside;
use crate::servers::{self, Server};

/// Messages of a transaction.
const TRANSACTION: usize = 1000;
/// Acks that are written at once, and how many messages may be unacked.
const ACKED: u64 = 500;
const PREFETCH: u64 = 2000;

pub struct Plain(Server);

/// A connection that is logged in.
struct Stomp {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Stomp {
    fn open(port: u16) -> Stomp {
        let writer = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        writer.set_nodelay(true).expect("a socket");
        let reader = BufReader::with_capacity(1 << 16, writer.try_clone().expect("a socket"));
        let mut stomp = Stomp { reader, writer };
        stomp.say("CONNECT\naccept-version:1.2\nhost:localhost\n\n\0".as_bytes());
        assert!(stomp.frame().starts_with("CONNECTED"));
        stomp
    }

    fn say(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).expect("written");
    }

    /// The head of the next frame, and its body taken off.
    fn frame(&mut self) -> String {
        let mut head = String::new();
        while head.trim().is_empty() || !head.ends_with("\n\n") {
            if head.trim().is_empty() {
                head.clear();
            }
            assert!(self.reader.read_line(&mut head).expect("UTF-8") > 0, "the broker is gone");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        match length.map(|length| length.parse::<usize>().expect("a length")) {
            Some(length) => self.reader.read_exact(&mut vec![0; length + 1]).expect("a body"),
            None => drop(self.reader.read_until(0, &mut Vec::new()).expect("a body")),
        }
        head
    }

    fn receipt(&mut self) {
        let frame = self.frame();
        assert!(frame.starts_with("RECEIPT"), "{frame}");
    }
}

fn transaction(queue: &str, number: usize, messages: &[Bytes]) -> Vec<u8> {
    let mut out = format!("BEGIN\ntransaction:{number}\n\n\0").into_bytes();
    for message in messages {
        let head = format!(
            "SEND\ndestination:/queue/{queue}\npersistent:true\ntransaction:{number}\n\
             content-length:{}\n\n",
            message.len()
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(message);
        out.push(0);
    }
    out.extend_from_slice(
        format!("COMMIT\ntransaction:{number}\nreceipt:{number}\n\n\0").as_bytes(),
    );
    out
}

impl Beside for Plain {
    const ENGINE: &'static str = "ActiveMQ";
    const CLIENT: &'static str = "a plain program";

    fn start() -> Result<Plain, String> {
        servers::activemq().map(Plain)
    }

    async fn new_queue(&self, number: u64) -> String {
        format!("bench-{number}")
    }

    fn url(&self, queue: &str) -> String {
        format!("stomp://127.0.0.1:{}/{queue}", self.0.port)
    }

    async fn send(&self, queue: &str, messages: &[Bytes]) {
        let mut stomp = Stomp::open(self.0.port);
        for (number, some) in messages.chunks(TRANSACTION).enumerate() {
            stomp.say(&transaction(queue, number, some));
            if number > 0 {
                stomp.receipt();
            }
        }
        stomp.receipt();
        stomp.say(b"DISCONNECT\nreceipt:end\n\n\0");
        stomp.receipt();
    }

    async fn receive(&self, queue: &str, count: u64) {
        let mut stomp = Stomp::open(self.0.port);
        let subscribe = format!(
            "SUBSCRIBE\nid:0\ndestination:/queue/{queue}\nack:client-individual\n\
             activemq.prefetchSize:{PREFETCH}\n\n\0"
        );
        stomp.say(subscribe.as_bytes());
        let mut acks = String::new();
        for number in 1..=count {
            let message = stomp.frame();
            assert!(message.starts_with("MESSAGE"), "{message}");
            let ack = message.lines().find_map(|line| line.strip_prefix("ack:"));
            acks.push_str(&format!("ACK\nid:{}\n\n\0", ack.expect("an ack")));
            if number % ACKED == 0 || number == count {
                stomp.say(std::mem::take(&mut acks).as_bytes());
            }
        }
        stomp.say(b"DISCONNECT\nreceipt:end\n\n\0");
        stomp.receipt();
    }
}
