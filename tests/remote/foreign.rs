//! Programs that are not ours, on the other side of an engine: a few lines of Python with pika, stomp.py,
//! pyzmq and confluent-kafka, and amqp-tools. What they send comes out of mq-recv, and what mq-send sends
//! comes to them, bodies and headers intact.

#[cfg(any(feature = "kafka", feature = "zeromq"))]
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

#[cfg(feature = "kafka")]
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;

use super::contract::new_queue;
use super::servers::{free_port, program, skipped};

/// Debian's own: that is for which its packages are.
const PYTHON: &str = "/usr/bin/python3";

const PIKA: &str = r#"
import pika, sys
port, queue, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
connection = pika.BlockingConnection(pika.ConnectionParameters('127.0.0.1', port))
channel = connection.channel()
channel.queue_declare(queue=queue)
if what == 'send':
    for i in range(10):
        channel.basic_publish(exchange='', routing_key=queue, body='Hello, World! %d' % i,
            properties=pika.BasicProperties(headers={'n': i}, message_id='m%d' % i, priority=3))
else:
    count = 0
    for method, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=30):
        print(body.decode(), properties.headers['a'], properties.delivery_mode, flush=True)
        count += 1
        if count == 10:
            break
connection.close()
"#;

const STOMP: &str = r#"
import stomp, sys, threading
port, queue, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
left, done = [10], threading.Event()
class Listener(stomp.ConnectionListener):
    def on_message(self, frame):
        print(frame.body, frame.headers['a'], 2, flush=True)
        self.count_down()
    def on_receipt(self, frame):
        if what == 'send':
            self.count_down()
    def count_down(self):
        left[0] -= 1
        if left[0] == 0:
            done.set()
connection = stomp.Connection12([('127.0.0.1', port)])
connection.set_listener('', Listener())
connection.connect(wait=True)
if what == 'send':
    for i in range(10):
        connection.send('/queue/' + queue, 'Hello, World! %d' % i,
            headers={'n': str(i), 'persistent': 'true'}, receipt='r%d' % i)
else:
    connection.subscribe('/queue/' + queue, id=1, ack='auto')
assert done.wait(30)
connection.disconnect()
"#;

const ZMQ: &str = r#"
import zmq, sys
at, what = sys.argv[1], sys.argv[2]
context = zmq.Context()
if what == 'recv':
    socket = context.socket(zmq.PULL)
    socket.RCVTIMEO = 30000
    socket.connect(at)
    for i in range(10):
        print(socket.recv().decode(), flush=True)
else:
    socket = context.socket(zmq.PUSH)
    socket.connect(at)
    for i in range(10):
        socket.send_string('Hello, World! %d' % i)
socket.close()
context.term()
"#;

#[cfg(feature = "kafka")]
const CONFLUENT: &str = r#"
import base64, sys
from confluent_kafka import Consumer, Producer
at, topic, what = sys.argv[1], sys.argv[2], sys.argv[3]
bodies = [b'Hello, World! %d' % i for i in range(8)] + [b'', bytes(range(256))]
if what == 'send':
    producer = Producer({'bootstrap.servers': at})
    for i, body in enumerate(bodies):
        producer.produce(topic, body, key='k%d' % i, headers=[('n', str(i)), ('m', b'\xc3\xbc')])
    assert producer.flush(60) == 0
else:
    consumer = Consumer({'bootstrap.servers': at, 'group.id': 'confluent-' + topic,
        'auto.offset.reset': 'earliest'})
    consumer.subscribe([topic])
    left = 10
    while left:
        message = consumer.poll(60)
        assert message is not None and message.error() is None, message and message.error()
        headers = dict(message.headers())
        print(message.key().decode(), headers['a'].decode(),
            base64.b64encode(message.value()).decode(), flush=True)
        left -= 1
    consumer.close()
"#;

fn has_python(module: &str) -> bool {
    has_module(Path::new(PYTHON), module)
}

fn has_module(python: &Path, module: &str) -> bool {
    let tried = Command::new(python).arg("-c").arg(format!("import {module}")).output();
    let has = tried.is_ok_and(|tried| tried.status.success());
    if !has {
        skipped(&format!("{} has no module {module}", python.display()));
    }
    has
}

fn python(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(PYTHON);
    command.arg("-c").arg(script).args(arguments);
    command
}

/// A tool of ours, with a store that is not there and stays so.
fn tool(path: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(path);
    command.args(arguments).env("MQ_DIR", "/nowhere/at/all").env("MQ_NO_AUTOSTART", "1");
    command
}

fn recv(arguments: &[&str]) -> Command {
    tool(env!("CARGO_BIN_EXE_mq-recv"), arguments)
}

fn send(arguments: &[&str]) -> Command {
    tool(env!("CARGO_BIN_EXE_mq-send"), arguments)
}

fn done(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{stderr}");
    String::from_utf8(stdout).expect("UTF-8")
}

fn lines(from: impl Fn(u64) -> String) -> String {
    (0..10).map(|number| from(number) + "\n").collect()
}

/// Both ways through a queue: what the script sends, and what it receives.
fn both_ways(script: &str, port: u16, queue: &str, url: &str) {
    let port = port.to_string();
    done(python(script, &[&port, queue, "send"]));
    let got = done(recv(&["-J", "-n10", "-w60s", url]));
    for (number, line) in got.lines().enumerate() {
        let envelope: Value = serde_json::from_str(line).expect("an envelope");
        assert_eq!(envelope["data"], format!("Hello, World! {number}"));
        assert_eq!(envelope["headers"]["n"], number.to_string());
        assert!(envelope["id"].is_string());
    }
    assert_eq!(got.lines().count(), 10);
    for number in 0..10 {
        done(send(&["-H", "a=b", "-m", &format!("Hello, World! {number}"), url]));
    }
    let got = done(python(script, &[&port, queue, "recv"]));
    assert_eq!(got, lines(|number| format!("Hello, World! {number} b 2")));
}

#[cfg(feature = "amqp")]
#[test]
fn pika_is_a_partner() {
    use super::contract::Tried as _;
    let Some(port) = mq::remote::rabbitmq::RabbitMq::shared().filter(|_| has_python("pika")) else {
        return;
    };
    // The queue is pika's, and not durable: it is taken as it is.
    let queue = new_queue("pika");
    both_ways(PIKA, port, &queue, &format!("amqp://localhost:{port}/%2f/{queue}"));
}

#[cfg(feature = "amqp")]
#[test]
fn amqp_tools_are_partners() {
    use super::contract::Tried as _;
    let Some(port) = mq::remote::rabbitmq::RabbitMq::shared() else { return };
    let (Some(publish), Some(get)) = (program("amqp-publish"), program("amqp-get")) else {
        return skipped("amqp-tools is not installed");
    };
    let queue = new_queue("tools");
    let (vhost, url) =
        (format!("amqp://localhost:{port}/%2f"), format!("amqp://localhost:{port}/%2f/{queue}"));
    done(send(&["-m", "there", &url]));
    let mut command = Command::new(get);
    command.args(["-u", &vhost, "-q", &queue]);
    assert_eq!(done(command), "there");
    let mut command = Command::new(publish);
    command.args(["-u", &vhost, "-r", &queue, "-b", "and back"]);
    done(command);
    assert_eq!(done(recv(&["-n1", "-w60s", &url])), "and back\n");
}

#[cfg(feature = "stomp")]
#[test]
fn stomp_py_is_a_partner() {
    use super::contract::Tried as _;
    let Some(port) = mq::remote::stomp::Stomp::shared().filter(|_| has_python("stomp")) else {
        return;
    };
    let queue = new_queue("py");
    both_ways(STOMP, port, &queue, &format!("stomp://localhost:{port}/{queue}"));
}

/// Both ways through a topic at this broker. `MQ_CONFLUENT` names a Python that has confluent-kafka, as no
/// package of Debian's has it.
#[cfg(feature = "kafka")]
fn confluent_kafka_both_ways(port: u16) {
    let python = std::env::var_os("MQ_CONFLUENT").unwrap_or_else(|| PYTHON.into());
    if !has_module(Path::new(&python), "confluent_kafka") {
        return;
    }
    let theirs = |topic: &str, what: &str| {
        let mut command = Command::new(&python);
        command.arg("-c").arg(CONFLUENT).args([&format!("127.0.0.1:{port}"), topic, what]);
        command
    };
    let url = |topic: &str| format!("kafka://127.0.0.1:{port}/{topic}");
    let mut bodies: Vec<Vec<u8>> =
        (0..8).map(|number| format!("Hello, World! {number}").into_bytes()).collect();
    bodies.extend([Vec::new(), (0..=255).collect()]);
    let topic = new_queue("confluent");
    done(send(&["-m", "first", &url(&topic)]));
    assert_eq!(done(recv(&["-n1", "-w60s", &url(&topic)])), "first\n");
    done(theirs(&topic, "send"));
    let got = done(recv(&["-J", "-n10", "-w60s", &url(&topic)]));
    let mut got: Vec<Value> =
        got.lines().map(|line| serde_json::from_str(line).expect("an envelope")).collect();
    got.sort_by_key(|envelope| envelope["key"].as_str().map(str::to_owned));
    for (number, (envelope, body)) in got.iter().zip(&bodies).enumerate() {
        assert_eq!(envelope["key"], format!("k{number}"));
        assert_eq!(envelope["headers"], serde_json::json!({"n": number.to_string(), "m": "ü"}));
        match std::str::from_utf8(body) {
            Ok(text) => assert_eq!(envelope["data"], text),
            Err(_) => assert_eq!(envelope["data_base64"], BASE64_STANDARD.encode(body)),
        }
    }
    assert_eq!(got.len(), 10);
    let topic = new_queue("confluent");
    let envelopes = bodies.iter().enumerate().map(|(number, body)| {
        let data = BASE64_STANDARD.encode(body);
        format!("{{\"key\":\"k{number}\",\"headers\":{{\"a\":\"b{number}\"}},\"data_base64\":\"{data}\"}}\n")
    });
    let mut ours = send(&["-J", &url(&topic)]);
    let mut ours = ours.stdin(Stdio::piped()).spawn().expect("mq-send");
    let text: String = envelopes.collect();
    ours.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    assert!(ours.wait().expect("its end").success());
    let got = done(theirs(&topic, "recv"));
    let mut got: Vec<&str> = got.lines().collect();
    got.sort_unstable();
    let wanted = bodies
        .iter()
        .enumerate()
        .map(|(number, body)| format!("k{number} b{number} {}", BASE64_STANDARD.encode(body)));
    assert_eq!(got, wanted.collect::<Vec<_>>());
}

#[cfg(feature = "kafka")]
#[test]
fn confluent_kafka_is_a_partner_on_the_mock_cluster() {
    use super::contract::Tried as _;
    confluent_kafka_both_ways(mq::remote::kafka::Kafka::shared().expect("in this process"));
}

#[cfg(feature = "kafka")]
#[test]
fn confluent_kafka_is_a_partner_on_tansu() {
    use super::contract::Tried as _;
    if let Some(port) = super::kafka::OnTansu::shared() {
        confluent_kafka_both_ways(port);
    }
}

#[cfg(feature = "zeromq")]
#[test]
fn pyzmq_is_a_partner() {
    if !has_python("zmq") {
        return;
    }
    for what in ["send", "recv"] {
        let port = free_port();
        let (at, url) =
            (format!("tcp://127.0.0.1:{port}"), format!("zmq+tcp://127.0.0.1:{port}?bind"));
        let mut theirs = python(ZMQ, &[&at, what]);
        let theirs = theirs.stdout(Stdio::piped()).spawn().expect("python");
        let wanted = lines(|number| format!("Hello, World! {number}"));
        if what == "send" {
            assert_eq!(done(recv(&["-n10", "-w60s", &url])), wanted);
            assert!(theirs.wait_with_output().expect("its end").status.success());
        } else {
            let mut ours = send(&[&url]);
            let mut ours = ours.stdin(Stdio::piped()).spawn().expect("mq-send");
            ours.stdin.take().expect("piped").write_all(wanted.as_bytes()).expect("written");
            assert!(ours.wait().expect("its end").success());
            let theirs = theirs.wait_with_output().expect("its end");
            assert_eq!(String::from_utf8_lossy(&theirs.stdout), wanted);
        }
    }
}
