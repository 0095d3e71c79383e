//! What is done with bytes of others: everything that reads them is called, and what it says it
//! understood must hold. An error is fine, a panic never is (G11, G17).
//!
//! What stands in files has checksums that chance does not hit; so these targets put the right ones
//! behind whatever bytes they are given, or take the bytes for what is to be changed in a sound
//! file. Called by libFuzzer's targets beside this, and by `tests/mutations.rs`.

use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use mq::batch::{self, BatchHeader, Framing, HEADER_BYTES, Place, Record};
use mq::client::envelope::{Attributes, Reader};
use mq::client::format::Template;
use mq::log::storage::{Storage, StorageFile};
use mq::log::{
    Boot, CheckBound, Delays, Found, GroupFact, GroupPosition, InternalBatch, LeasedRange, Log,
    LogError, Options, Select, TriedRange, check, create_delays,
};
use mq::settings::{Backoff, IdWindow, Settings};
use mq::units::{
    Attempts, Ending, Epoch, LeaseNumber, Name, Offset, OffsetRange, Position, ProducerId, QueueId,
    SegmentNumber, Sequence, SyncPolicy, WallTime,
};
use mq::wire::{FrameHeader, Receipt, Reply, Request};

use crate::session::{ACTS, Case, goes_on, verify};
use crate::sim::bench::{Bench, CLEAN, KILLED, REBOOTED, create_with, name, small};
use crate::sim::disk::{Fault, SimDisk};

const BOOTS: [Boot; 3] = [CLEAN, KILLED, REBOOTED];

/// The queue that [`create_with`] makes.
fn queue_id() -> QueueId {
    QueueId::from_bytes(*b"an identity of q")
}

/// What is a request is the same request when it is written and read again.
pub fn frames(bytes: &[u8]) {
    let Some(head) = bytes.first_chunk::<8>() else { return };
    let Ok(header) = FrameHeader::decode(head) else { return };
    let _ = Reply::decode(&header, &bytes[8..]);
    if let Ok(request) = Request::decode(&header, &bytes[8..]) {
        let mut again = Vec::new();
        request.encode(header.channel, &mut again);
        let head = again.first_chunk::<8>().expect("a whole frame");
        let header = FrameHeader::decode(head).expect("our own frame");
        let read = Request::decode(&header, &again[8..]).expect("our own frame");
        assert_eq!(read, request);
    }
}

/// Messages that were checked are there when they are taken apart, as many as were announced.
pub fn batches(bytes: &[u8]) {
    for framing in [Framing::Records, Framing::Delimited(b'\n')] {
        for count in [1, 2, 3] {
            if batch::check_messages(framing, bytes, count).is_ok() {
                assert_eq!(batch::bodies(framing, bytes).count(), count as usize);
            }
        }
    }
    let mut rest = bytes;
    while let Ok((record, behind)) = Record::decode(rest) {
        let _ = record.attributes().filter(Result::is_ok).count();
        let attributes = Attributes::parse(record.attribute_bytes);
        attributes.headers().for_each(drop);
        rest = behind;
    }
    let place = Place { queue: queue_id(), segment: SegmentNumber(1), position: Position(64) };
    if let Ok(header) = BatchHeader::decode(bytes, &place) {
        panic!("G11: a header of nobody's verifies: {header:?}");
    }
}

/// What is written in words: formats, receipts, names, settings. What reads is written as it reads.
pub fn words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = Template::from_str(&text);
    let _ = Backoff::from_str(&text);
    let _ = SyncPolicy::from_str(&text);
    if let Ok(receipt) = Receipt::from_str(&text) {
        assert_eq!(Receipt::from_str(&receipt.to_string()), Ok(receipt));
    }
    if let Ok(window) = IdWindow::from_str(&text) {
        assert_eq!(IdWindow::from_str(&window.to_string()), Ok(window));
    }
    if let Ok(name) = Name::new(&text) {
        assert_eq!(name.as_str(), text);
    }
}

/// A line is an envelope or a mistake that is explained.
pub fn envelopes(bytes: &[u8]) {
    let mut reader = Reader::default();
    match reader.read(bytes) {
        Ok(envelope) => {
            let mut out = Vec::new();
            envelope.push_attributes(&mut out);
            Attributes::parse(&out).headers().for_each(drop);
        }
        Err(wrong) => assert!(!wrong.0.is_empty()),
    }
}

/// A queue that was left by a kill: a sealed segment, an open one, a group, a named producer.
pub fn store() -> &'static SimDisk {
    static STORE: OnceLock<SimDisk> = OnceLock::new();
    STORE.get_or_init(|| {
        let disk = SimDisk::new(1);
        let unique_ids = Some(IdWindow::Count(20));
        create_with(&disk, &Settings { unique_ids, ..Settings::default() }).expect("a new disk");
        let mut bench = Bench::open(disk.clone(), CLEAN, &small()).expect("a new queue").0;
        for n in 0..6 {
            bench.append(&[&format!("{n} {}", "z".repeat(400)), "and another"]);
            bench.settle();
        }
        let group = bench.log.add_group(&Name::new("g").expect("a name")).expect("room");
        bench.settle();
        let acked = [OffsetRange::new(Offset(0), Offset(3))];
        let whole = GroupPosition::default;
        bench.log.settled(group, &acked, Ending::Acked, Offset(5), whole).expect("room");
        let range = OffsetRange::new(Offset(4), Offset(5));
        let (attempts, ready_at) = (Attempts(2), Some(WallTime(9)));
        let lease = LeasedRange { range, number: LeaseNumber(1 << 32 | 3), deadline: WallTime(50) };
        let facts = [
            GroupFact::Tried(TriedRange { range, attempts, ready_at }),
            GroupFact::Leased(lease),
            GroupFact::Epoch(2),
        ];
        bench.log.note_group(group, &facts, whole).expect("room");
        let producer = ProducerId(9);
        let opened = bench.log.open_producer(bench.now, WallTime(2), producer).expect("room");
        let internal = InternalBatch {
            producer,
            epoch: opened.epoch,
            sequence: Sequence(1),
            annex: b"an annex",
            framing: Framing::Delimited(b'\n'),
            flags: 0,
            count: 1,
            messages: b"committed\n",
        };
        bench.log.append_internal(bench.now, WallTime(2), &internal).expect("room");
        bench.settle();
        disk
    })
}

/// The bytes of a file of [`store`].
pub fn file(path: &Path) -> Vec<u8> {
    let file = store().open(path).expect("it is there");
    let mut bytes = vec![0; file.len().expect("a length").0 as usize];
    file.read_at(&mut bytes, Position(0)).expect("it is readable");
    bytes
}

/// Opens a store of which one file holds these bytes, in every way, and uses what opens.
fn open_with(path: &Path, bytes: &[u8]) {
    for boot in BOOTS {
        let disk = store().fork();
        disk.tamper(path, |old| *old = bytes.to_vec());
        let _ = check(&disk, &name(), CheckBound::All, &mut |_| {});
        match Log::open(Arc::new(disk), &name(), boot, &small()) {
            Ok((mut log, recovered)) => {
                assert!(recovered.end >= recovered.start, "{recovered:?}");
                read(&mut log, recovered.start);
            }
            Err(LogError::Io { source, .. }) => panic!("a disk that works: {source}"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Reads as a receiver does, until something is wrong: no batch is taken without its checksum.
fn read(log: &mut Log<SimDisk>, from: Offset) {
    let mut at = from;
    for _ in 0..64 {
        let end = log.visible_end();
        if at >= end {
            return;
        }
        let next = match log.locate(at, end, 700, &Select::default()) {
            Ok(Found::Whole { file, place, bytes, end, .. }) => {
                let mut buffer = vec![0; bytes as usize];
                file.read_at(&mut buffer, place.position).expect("it is readable");
                take_apart(log, place, &buffer);
                end
            }
            Ok(Found::Cut { end, .. } | Found::Chain { end, .. }) => end,
            Ok(Found::Expired { end } | Found::NotOurs { end }) => end,
            Ok(Found::Cold { .. }) => unreachable!("everything is warm"),
            Err(LogError::Gone(_)) => Offset(at.0 + 1),
            Err(_) => return,
        };
        assert!(next > at, "reading gets on");
        at = next;
    }
}

/// The batches of one delivery, as the client verifies them.
fn take_apart(log: &mut Log<SimDisk>, mut place: Place, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let Ok(header) = BatchHeader::decode(bytes, &place) else {
            let _ = log.complaint(place);
            return;
        };
        let Some(payload) = bytes.get(HEADER_BYTES..header.length() as usize) else { return };
        if header.verify(payload).is_err() {
            let _ = log.complaint(place);
            return;
        }
        if let Ok(messages) = header.messages_part(payload) {
            let _ = batch::bodies(header.framing, messages).count();
        }
        bytes = &bytes[header.length() as usize..];
        place = place.advanced(header.length());
    }
}

/// Takes the bytes for what is to be changed in a sound file: places and values.
fn edited(mut file: Vec<u8>, edits: &[u8]) -> Vec<u8> {
    for edit in edits.chunks_exact(3) {
        let at = u16::from_le_bytes([edit[0], edit[1]]) as usize;
        if at >= file.len() {
            file.truncate(at % file.len().max(1));
        } else {
            file[at] ^= edit[2];
        }
    }
    file
}

fn seeded_crc(number: u64, position: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(queue_id().as_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(&position.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Numbers out of the bytes that are given.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes().map(|[byte]| byte)
    }

    /// Small as a rule, and now and then at a bound.
    fn number(&mut self) -> Option<u64> {
        Some(match self.byte()? {
            small @ 0..=199 => u64::from(small),
            200..=209 => u64::MAX,
            210..=219 => u64::MAX / 2,
            220..=229 => u64::from(u32::MAX),
            _ => u64::from_le_bytes(self.bytes()?),
        })
    }
}

/// The segment that is open in [`store`].
pub fn segment_path() -> std::path::PathBuf {
    let files = store().files().into_iter().map(|(path, _)| path);
    let segments = files.filter(|path| path.extension().is_some_and(|end| end == "seg"));
    segments.max().expect("it has segments")
}

/// Recovery of a segment: a sound one that is changed, or batches of any kind with the right
/// checksums.
pub fn segments(bytes: &[u8]) {
    let path = segment_path();
    let sound = file(&path);
    let Some((mode, rest)) = bytes.split_first() else { return };
    if mode % 2 == 0 {
        return open_with(&path, &edited(sound, rest));
    }
    let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
    let segment = SegmentNumber(name.parse().expect("a number"));
    let mut made = sound[..64.min(sound.len())].to_vec();
    // Behind the batches that are there, or in their place.
    if mode & 2 != 0 {
        made = sound;
    }
    let mut source = Source(rest);
    while let Some(batch) = push_batch(&mut source, segment, made.len() as u64) {
        made.extend(batch);
    }
    made.extend_from_slice(source.0);
    open_with(&path, &made);
}

/// A batch whose fields are anything, with the checksums of its place.
fn push_batch(source: &mut Source<'_>, segment: SegmentNumber, position: u64) -> Option<Vec<u8>> {
    let flags = u16::from(source.byte()?);
    let framing = match source.byte()? % 3 {
        0 => Framing::Records,
        1 => Framing::Delimited(b'\n'),
        _ => Framing::Delimited(0),
    };
    let length = usize::from(source.byte()?).min(source.0.len());
    let (payload, rest) = source.0.split_at(length);
    source.0 = rest;
    let header = BatchHeader {
        payload_bytes: payload.len() as u32,
        framing,
        flags,
        offset: Offset(source.number()?),
        count: source.number()? as u32,
        payload_crc: batch::checksum(payload),
        mark: Offset(source.number()?),
        time: WallTime(source.number()?),
        producer: ProducerId(source.number()?),
        sequence: Sequence(source.number()?),
        epoch: Epoch(source.number()? as u32),
    };
    let place = Place { queue: queue_id(), segment, position: Position(position) };
    Some([&header.encode(&place)[..], payload].concat())
}

/// An ack journal: a sound one that is changed, or records of any kind with the right checksums.
pub fn journals(bytes: &[u8]) {
    let path = Path::new("queues/q/groups/g.acks");
    let mut made = file(path);
    let Some((mode, rest)) = bytes.split_first() else { return };
    if mode % 2 == 0 {
        return open_with(path, &edited(made, rest));
    }
    if mode & 2 != 0 {
        made.truncate(512);
    }
    let generation = u64::from_le_bytes(made[32..40].try_into().expect("eight bytes"));
    let mut source = Source(rest);
    while let Some(kind) = source.byte() {
        let mut record = || {
            let mut record = [0u8; 28];
            record[0] = kind % 12;
            record[1..4].copy_from_slice(&source.bytes::<3>()?);
            record[4] = source.byte()?;
            record[8..16].copy_from_slice(&source.number()?.to_le_bytes());
            record[16..24].copy_from_slice(&source.number()?.to_le_bytes());
            record[24..28].copy_from_slice(&(source.number()? as u32).to_le_bytes());
            Some(record)
        };
        let Some(record) = record() else { break };
        let crc = seeded_crc(generation, made.len() as u64, &record);
        made.extend_from_slice(&record);
        made.extend_from_slice(&crc.to_le_bytes());
    }
    open_with(path, &made);
}

/// A snapshot, or the record of dropped segments: a changed one, with the right checksum.
pub fn snapshots(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let name = if mode & 2 == 0 { "queues/q/snapshot" } else { "queues/q/dropped" };
    let mut made = file(Path::new(name));
    made.truncate(made.len() - 4);
    if mode % 2 == 0 {
        made = edited(made, rest);
    } else {
        made.truncate(if mode & 2 == 0 { 64 } else { 32 });
        let at = rest.len().min(8);
        // The counts in the header too.
        made[8..8 + at].copy_from_slice(&rest[..at]);
        made.extend_from_slice(&rest[at..]);
    }
    let crc = seeded_crc(0, 0, &made);
    made.extend_from_slice(&crc.to_le_bytes());
    open_with(Path::new(name), &made);
}

/// `queue.json` with the right checksum.
pub fn metadata(bytes: &[u8]) {
    let mut made = bytes.to_vec();
    let crc = batch::checksum(&made);
    made.extend_from_slice(format!("\ncrc32 {crc:08x}\n").as_bytes());
    open_with(Path::new("queues/q/queue.json"), &made);
}

/// The manifest of delayed messages, beside messages that wait.
pub fn manifests(bytes: &[u8]) {
    static DELAYED: OnceLock<SimDisk> = OnceLock::new();
    let options = Options { delay_index: 4, delay_runs: 3, ..small() };
    let delayed = DELAYED.get_or_init(|| {
        let disk = SimDisk::new(2);
        let settings = Settings::default();
        create_with(&disk, &settings).expect("a new disk");
        create_delays(&disk, &name(), queue_id(), &settings, WallTime(1)).expect("room");
        disk
    });
    for boot in BOOTS {
        let disk = Arc::new(delayed.fork());
        match Delays::open(disk, &name(), queue_id(), boot, &options, Some(bytes)) {
            Ok(Some(mut delays)) => {
                let _ = delays.take(WallTime(1 << 40));
                let _ = delays.annex();
            }
            Ok(None) => panic!("there is a place for them"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// A session of operations on a log, falls of both kinds and faults, against the model.
pub fn sessions(bytes: &[u8]) {
    let Some((policy, acts)) = bytes.split_first() else { return };
    let policies = [
        SyncPolicy::Always,
        SyncPolicy::Never,
        SyncPolicy::Interval(mq::units::Micros::from_millis(500)),
    ];
    let mut case = Case::with_past(policies[usize::from(*policy) % 3]);
    let mut acts = acts.iter().take(64);
    while let Some(act) = acts.next() {
        if let Some(act) = ACTS.get(usize::from(*act)) {
            case.act(*act);
            continue;
        }
        // The machine, or the server alone, falls in the midst of the next one.
        let (Some(calls), Some(next)) = (acts.next(), acts.next()) else { break };
        case.bench.disk.fail_in(1 + u64::from(calls % 64), Fault::Kill);
        case.act(ACTS[usize::from(*next) % ACTS.len()]);
        case.bench.disk.revive();
        let disk = case.bench.disk.fork();
        let boot = if calls & 0x80 == 0 { KILLED } else { REBOOTED };
        if boot == REBOOTED {
            disk.crash_choosing(&mut |n| u64::from(*next) % n);
        }
        return goes_on(verify(&disk, boot, &case, "a session"), "a session");
    }
    goes_on(verify(&case.bench.disk.fork(), KILLED, &case, "a session"), "a session");
}
