//! Everything that reads bytes of others, given bytes that were changed (G11, G17): an error or a
//! value, never a panic, and what it says it understood holds.
//!
//! What is done with the bytes stands in `fuzz/src/targets.rs`, where libFuzzer runs the same
//! (`tests/README.md` has the commands). Here every input of the committed corpus is replayed, and a
//! small driver of its own goes on from there: it changes what is whole by a seed. The ordinary run
//! is short; `MQ_FUZZ_SECONDS=600 cargo test --release --test mutations` goes on for so long per
//! target. A failure prints the seed and the bytes; `MQ_FUZZ_SEED` begins there.

mod session;
mod sim;
#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use mq::batch::{Framing, Record, push_attribute, tags};
use mq::settings::Backoff;
use mq::units::{
    Attempts, LeaseNumber, Micros, Monotonic, Name, Offset, OffsetRange, Position, ProducerId,
    SegmentNumber, Sequence,
};
use mq::wire::{
    Admin, ClientInfo, Nack, OpenReceive, OpenSend, PublishHead, Receipt, ReceiveMode, Request,
    VERSION,
};

/// Inputs of one target in the ordinary run. Those that open stores take fifty times as long.
const ROUNDS: u64 = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
const STORES: u64 = ROUNDS / 50;

/// Bytes of an input at most.
const BYTES_MAX: usize = 4096;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Changes a few bytes: flips, numbers at their bounds, pieces left out, doubled, or of another.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    const EDGES: [u64; 8] =
        [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];
    for _ in 0..1 + random.below(5) {
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(8) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            3 if !bytes.is_empty() => {
                let edge = EDGES[random.below(8)].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at.min(end)..end)),
            6 => {
                let piece = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let from = random.below(other.len());
                let to = (from + 1 + random.below(24)).min(other.len());
                bytes.splice(at..at, other[from.min(to)..to].iter().copied());
            }
        }
    }
    bytes.truncate(BYTES_MAX);
}

/// The committed corpus of a target: what found something once, and what reaches far.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<_> =
        std::fs::read_dir(dir).expect("a corpus").map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "the corpus of {name} is empty");
    paths.into_iter().map(|path| std::fs::read(path).expect("readable")).collect()
}

/// Runs a target over its corpus and over changed samples.
fn drive(name: &str, rounds: u64, samples: &[Vec<u8>], target: fn(&[u8])) {
    let samples = &[samples, &corpus(name)].concat()[..];
    let number =
        |variable: &str| std::env::var(variable).ok().map(|n| n.parse().expect("a number"));
    let first: u64 = number("MQ_FUZZ_SEED").unwrap_or(0);
    let until = number("MQ_FUZZ_SECONDS").map(|n| Instant::now() + Duration::from_secs(n));
    samples.iter().for_each(|sample| target(sample));
    let mut pool = samples.to_vec();
    let mut seed = first;
    while until.map_or(seed < first + rounds, |until| Instant::now() < until) {
        let mut random = Random(seed);
        let mut bytes = pool[random.below(pool.len())].clone();
        let other = pool[random.below(pool.len())].clone();
        mutate(&mut bytes, &other, &mut random);
        if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
            panic!("{name}: MQ_FUZZ_SEED={seed}, the bytes {bytes:?}");
        }
        // Some changes are changed further: so the pool drifts away from what is whole.
        if seed.is_multiple_of(16) {
            let place = samples.len() + random.below(64);
            if place < pool.len() { pool[place] = bytes } else { pool.push(bytes) }
        }
        seed += 1;
    }
    println!("{name}: {} inputs", seed - first);
}

fn requests() -> Vec<Vec<u8>> {
    let name = Name::new("q").expect("a name");
    let ranges =
        vec![OffsetRange::new(Offset(1), Offset(3)), OffsetRange::new(Offset(5), Offset(6))];
    let head = PublishHead {
        sequence: Sequence(9),
        count: 2,
        framing: Framing::Delimited(b'\n'),
        batch_flags: 0,
        read: Monotonic(17),
        more: false,
    };
    let receipt = Receipt {
        queue: name.clone(),
        group: Name::default(),
        incarnation: 7,
        offset: Offset(3),
        number: LeaseNumber(1 << 32 | 5),
    };
    let how = mq::wire::Settlement::Extend(Micros(5));
    let all = [
        Request::Hello { oldest: VERSION, newest: VERSION, client: Some(ClientInfo::default()) },
        Request::Admin(Admin::Settle { receipts: vec![receipt], how }),
        Request::Admin(Admin::Check { queue: None }),
        Request::OpenSend(OpenSend::new(name.clone(), ProducerId(5))),
        Request::Publish(head, b"a\nb\n"),
        Request::OpenReceive(OpenReceive {
            holding: ranges.clone(),
            lease: Some(Micros(20_000)),
            backoff: Some(Backoff::default()),
            extents: 2,
            ..OpenReceive::new(name, Name::default(), ReceiveMode::Take)
        }),
        Request::Nack(Nack { ranges: ranges.clone(), attempt: Attempts(2), ..Nack::default() }),
        Request::Begin(ranges.clone()),
        Request::Ack(ranges),
        Request::Credit(77),
        Request::Extents(3),
        Request::Complain(SegmentNumber(1), Position(2)),
    ];
    let encode = |request: &Request<'_>| {
        let mut bytes = Vec::new();
        request.encode(7, &mut bytes);
        bytes
    };
    all.iter().map(encode).collect()
}

fn records() -> Vec<Vec<u8>> {
    let mut attributes = Vec::new();
    push_attribute(&mut attributes, tags::KEY, b"key");
    push_attribute(&mut attributes, tags::ID, b"id");
    push_attribute(&mut attributes, tags::EXPIRES, &7u64.to_le_bytes());
    push_attribute(&mut attributes, tags::ONLY_GROUP, b"g");
    let mut two = Vec::new();
    Record { attribute_bytes: &attributes, body: b"one" }.encode(&mut two);
    Record { attribute_bytes: &[], body: b"two" }.encode(&mut two);
    vec![two, b"a\nb\n".to_vec()]
}

fn texts(samples: &[&str]) -> Vec<Vec<u8>> {
    samples.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn frames() {
    drive("frames", ROUNDS, &requests(), targets::frames);
}

#[test]
fn batches() {
    drive("batches", ROUNDS, &records(), targets::batches);
}

#[test]
fn words() {
    let samples =
        ["%s\\n%k %o%%", "q/default/0000002a/7/0000000100000005", "1s..5m", "interval=5ms"];
    drive("words", ROUNDS, &texts(&samples), targets::words);
}

#[test]
fn envelopes() {
    let samples = [
        r#"{"data":"a","key":"k","id":"i","headers":{"a":"b"},"event_time":"2026-01-02T03:04:05Z"}"#,
        r#"{"data_base64":"AAEC","expires":"2026-01-02T03:04:05Z","attempt":3,"offset":7}"#,
    ];
    drive("envelopes", ROUNDS, &texts(&samples), targets::envelopes);
}

/// Recovery of segments.
#[test]
fn segments() {
    drive("segments", STORES, &[], targets::segments);
}

#[test]
fn journals() {
    drive("journals", STORES, &[], targets::journals);
}

#[test]
fn snapshots() {
    drive("snapshots", STORES, &[], targets::snapshots);
}

/// Those of delayed messages.
#[test]
fn manifests() {
    drive("manifests", STORES, &[], targets::manifests);
}

/// What `queue.json` says.
#[test]
fn metadata() {
    drive("metadata", STORES, &[], targets::metadata);
}

/// Operations and falls, against the model.
#[test]
fn sessions() {
    drive("sessions", STORES, &[], targets::sessions);
}
