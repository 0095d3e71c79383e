//! Peers that are no engines, for what a real one does only now and then: one that speaks STOMP as far as a test
//! wants, and one end of a ZeroMQ socket that goes away in the middle.

#[cfg(feature = "stomp")]
use std::io::BufRead as _;
#[cfg(feature = "zeromq")]
use std::io::Read as _;
use std::io::{BufReader, Write as _};
use std::net::TcpListener;
#[cfg(feature = "stomp")]
use std::net::TcpStream;
#[cfg(feature = "stomp")]
use std::time::Duration;

/// The next frame of a client that speaks STOMP: its command and headers; `None`: the client is gone. What it
/// sends has no NUL in it here.
#[cfg(feature = "stomp")]
fn frame(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<String>)> {
    let mut bytes = Vec::new();
    reader.read_until(0, &mut bytes).ok().filter(|read| *read > 0)?;
    let text = String::from_utf8(bytes).expect("a head");
    let mut lines = text.trim_start_matches('\n').lines().map(str::to_owned);
    let command = lines.next()?;
    Some((command, lines.take_while(|line| !line.is_empty()).collect()))
}

/// A client that has logged in.
#[cfg(feature = "stomp")]
pub struct StompClient {
    pub stream: TcpStream,
    reader: BufReader<TcpStream>,
}

#[cfg(feature = "stomp")]
impl StompClient {
    /// The next that connects, logged in.
    pub fn accept(listener: &TcpListener) -> StompClient {
        StompClient::log_in(listener.accept().expect("a client").0)
    }

    /// One that has connected.
    pub fn log_in(stream: TcpStream) -> StompClient {
        let reader = BufReader::new(stream.try_clone().expect("the same"));
        let mut client = StompClient { stream, reader };
        assert_eq!(client.next().expect("a frame").0, "CONNECT");
        client.say("CONNECTED\nversion:1.2\nheart-beat:10000,10000\n\n\0");
        client
    }

    /// Its next frame.
    pub fn next(&mut self) -> Option<(String, Vec<String>)> {
        frame(&mut self.reader)
    }

    /// Answers what it asks a receipt for, until it is gone or sends a frame with this command, which
    /// is answered too.
    pub fn until(&mut self, wanted: &str) {
        while let Some((command, headers)) = self.next() {
            let receipt = headers.iter().find_map(|line| line.strip_prefix("receipt:"));
            if let Some(receipt) = receipt {
                self.say(&format!("RECEIPT\nreceipt-id:{receipt}\n\n\0"));
            }
            if command == wanted {
                return;
            }
        }
    }

    pub fn say(&mut self, text: &str) {
        // A client that is gone hears nothing.
        let _ = self.stream.write_all(text.as_bytes());
    }

    /// Beats until the client is gone, and reads nothing of what it sends.
    pub fn beat_only(mut self) {
        while self.stream.write_all(b"\n").is_ok() {
            std::thread::park_timeout(Duration::from_millis(500));
        }
    }

    /// Takes a beat that is here.
    pub fn take_beat(&mut self) {
        let here = self.reader.buffer().len();
        self.reader.consume(here);
    }

    /// How long until it says anything.
    pub fn silence(&mut self) -> Duration {
        let began = std::time::Instant::now();
        assert!(!self.reader.fill_buf().expect("it says something").is_empty(), "it is gone");
        began.elapsed()
    }
}

/// The PULL end of a ZeroMQ connection, by hand: takes so many messages and is gone, with what came meanwhile
/// unread; their bodies. `None`: the peer only looked whether somebody is there.
#[cfg(feature = "zeromq")]
pub fn pull(listener: &TcpListener, count: usize) -> Option<Vec<Vec<u8>>> {
    let (mut stream, _) = listener.accept().expect("a peer");
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting).ok()?;
    stream.read_exact(&mut greeting).ok()?;
    let ready = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PULL";
    stream.write_all(ready).expect("its handshake");
    let mut reader = BufReader::new(stream);
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let mut head = [0; 2];
        reader.read_exact(&mut head).ok()?;
        let length = match head[0] & 2 {
            0 => u64::from(head[1]),
            _ => {
                let mut rest = [0; 7];
                reader.read_exact(&mut rest).ok()?;
                rest.iter().fold(u64::from(head[1]), |all, byte| all << 8 | u64::from(*byte))
            }
        };
        let mut body = vec![0; usize::try_from(length).expect("in memory")];
        reader.read_exact(&mut body).ok()?;
        if head[0] & 4 == 0 {
            bodies.push(body);
        }
    }
    Some(bodies)
}
