//! An engine's client and the tools, measured alternately. Called by `main` for each engine.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;

use crate::harness::Store;
use crate::options::Options;
use crate::table::{Goal, Table, median, rate};

/// Bytes of a message.
const MESSAGE_BYTES: usize = 100;

/// The least part of a client's throughput that the tools are to have.
const GOAL: f64 = 0.8;

/// Which end of a queue is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Sending.
    Send,
    /// Receiving.
    Receive,
}

/// A server, and a program that uses its client as the client's documentation recommends.
pub trait Beside: Sized {
    /// The engine, as users call it.
    const ENGINE: &'static str;
    /// The client.
    const CLIENT: &'static str;

    /// Starts the server, or says why there is none.
    fn start() -> Result<Self, String>;

    /// The name of a queue that nobody else has; made here with settings that the tools find.
    async fn new_queue(&self, number: u64) -> String;

    /// Its URL.
    fn url(&self, queue: &str) -> String;

    /// Sends all of these; comes back when all are confirmed.
    async fn send(&self, queue: &str, messages: &[Bytes]);

    /// Receives so many, and acks them; comes back when the server was told so.
    async fn receive(&self, queue: &str, count: u64);

    /// What does the other side's work where the engine keeps nothing: a thread that ends when all has
    /// come.
    fn opposite(&self, side: Side, queue: &str, messages: &[Bytes]) -> Option<JoinHandle<()>> {
        let _ = (side, queue, messages);
        None
    }
}

/// Seconds of each sample.
#[derive(Default)]
struct Samples {
    client: Vec<f64>,
    tools: Vec<f64>,
}

/// The bench's surroundings.
pub struct Rig {
    store: Store,
    messages: Vec<Bytes>,
    input: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    /// Makes the messages, and a file of them.
    pub fn new(options: &Options) -> Rig {
        let store = Store::below(env!("CARGO_TARGET_TMPDIR").as_ref());
        let messages: Vec<Bytes> = (0..options.lines).map(message).collect();
        let input = store.beside("input");
        let mut file = BufWriter::new(File::create(&input).expect("room for input"));
        for message in &messages {
            file.write_all(message).and_then(|()| file.write_all(b"\n")).expect("room for input");
        }
        drop(file);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        Rig { store, messages, input, runtime }
    }

    /// Says on what the figures were measured.
    pub fn describe(&self) {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        println!(
            "mq {} · {cores} cores · {} messages of {MESSAGE_BYTES} bytes",
            env!("CARGO_PKG_VERSION"),
            self.messages.len()
        );
    }

    /// Measures an engine in both ways, unless it is not wanted or not installed.
    pub fn measure<B: Beside>(&self, options: &Options, table: &mut Table) {
        if !options.runs(B::ENGINE) {
            return;
        }
        table.heading(&format!("{}, beside {}", B::ENGINE, B::CLIENT));
        let engine = match B::start() {
            Ok(engine) => engine,
            Err(why) => return println!("  left out: {why}"),
        };
        let (mut send, mut receive) = (Samples::default(), Samples::default());
        for pair in 0..options.pairs as u64 {
            let queue = self.runtime.block_on(engine.new_queue(2 * pair));
            send.client.push(self.sample(&engine, Side::Send, &queue, false));
            receive.client.push(self.sample(&engine, Side::Receive, &queue, false));
            let queue = self.runtime.block_on(engine.new_queue(2 * pair + 1));
            send.tools.push(self.sample(&engine, Side::Send, &queue, true));
            receive.tools.push(self.sample(&engine, Side::Receive, &queue, true));
        }
        self.report("sent and confirmed", &send, table);
        self.report("received and acked", &receive, table);
    }

    fn report(&self, what: &str, samples: &Samples, table: &mut Table) {
        let count = self.messages.len() as u64;
        let per_second = |seconds: &[f64]| rate(count, median(&mut seconds.to_vec()));
        let pairs = samples.client.iter().zip(&samples.tools);
        let ratio = median(&mut pairs.map(|(client, tools)| client / tools).collect::<Vec<_>>());
        let goal = Goal::Is(ratio >= GOAL, format!("at least {GOAL:.2}"));
        let client = per_second(&samples.client);
        let relation = format!("{ratio:.2} of {client}");
        table.row(what, &per_second(&samples.tools), &relation, goal);
    }

    /// How many seconds one side takes, by the tools or by the client.
    fn sample<B: Beside>(&self, engine: &B, side: Side, queue: &str, by_tools: bool) -> f64 {
        rustix::fs::sync();
        let opposite = engine.opposite(side, queue, &self.messages);
        let start = Instant::now();
        match (side, by_tools) {
            (Side::Send, true) => self.run_send(&engine.url(queue)),
            (Side::Send, false) => self.runtime.block_on(engine.send(queue, &self.messages)),
            (Side::Receive, true) => self.run_receive(&engine.url(queue)),
            (Side::Receive, false) => {
                self.runtime.block_on(engine.receive(queue, self.messages.len() as u64));
            }
        }
        if let Some(opposite) = opposite {
            opposite.join().expect("the other side has all");
        }
        let taken = start.elapsed().as_secs_f64();
        if (side, by_tools) == (Side::Receive, true) {
            self.check_output();
        }
        taken
    }

    fn run_send(&self, url: &str) {
        let mut command = self.store.command("mq-send", &["-q", url]);
        command.stdin(File::open(&self.input).expect("the input"));
        run(command);
    }

    fn run_receive(&self, url: &str) {
        let count = self.messages.len().to_string();
        let mut command = self.store.command("mq-recv", &["-q", "-n", &count, url]);
        command.stdout(File::create(self.store.beside("output")).expect("room for output"));
        run(command);
    }

    /// What came is what was sent, in any order.
    fn check_output(&self) {
        let output = std::fs::read(self.store.beside("output")).expect("the output");
        let mut lines: Vec<&[u8]> = output.split_inclusive(|byte| *byte == b'\n').collect();
        lines.sort_unstable();
        let same = lines.len() == self.messages.len()
            && lines
                .iter()
                .zip(&self.messages)
                .all(|(line, message)| line[..MESSAGE_BYTES] == *message);
        assert!(same, "{} lines came that are not those that were sent", lines.len());
    }
}

/// Message `number`: its number, and dots. In the order of the numbers, they are sorted.
fn message(number: u64) -> Bytes {
    let mut text = format!("{number:012} ").into_bytes();
    text.resize(MESSAGE_BYTES, b'.');
    text.into()
}

fn run(mut command: Command) {
    let status = command.stderr(Stdio::inherit()).status();
    let status = status.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?} ended with {status}");
}
