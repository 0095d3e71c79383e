//! Programs that are not ours, on the other side of an engine: a few lines of Python with pika, stomp.py
//! and pyzmq, and amqp-tools. What they send comes out of mq-recv, and what mq-send sends comes to them,
//! bodies and headers intact.

use std::process::{Command, Output, Stdio};

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

fn has_python(module: &str) -> bool {
    let tried = Command::new(PYTHON).arg("-c").arg(format!("import {module}")).output();
    let has = tried.is_ok_and(|tried| tried.status.success());
    if !has {
        skipped(&format!("{PYTHON} has no module {module}"));
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
            use std::io::Write as _;
            ours.stdin.take().expect("piped").write_all(wanted.as_bytes()).expect("written");
            assert!(ours.wait().expect("its end").success());
            let theirs = theirs.wait_with_output().expect("its end");
            assert_eq!(String::from_utf8_lossy(&theirs.stdout), wanted);
        }
    }
}
