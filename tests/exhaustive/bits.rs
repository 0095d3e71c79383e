//! Every bit and every truncation of a small store that has everything: sealed segments and an
//! open one, a dropped one, two ack journals with tries and leases, a snapshot with producers, ids
//! and keys (G2, G9, G11).
//!
//! What may come of it: an error, and then not a byte of the store has changed; or the whole of it.
//! `tests/log` looks at a bit of each byte and at what `check` says; this looks at all.

use std::collections::BTreeMap;
use std::path::Path;

use mq::batch::{Framing, Record, push_attribute, tags};
use mq::log::{
    AppendError, Boot, GroupFact, GroupPosition, InternalBatch, LeasedRange, LogError, NewBatch,
    TriedRange,
};
use mq::settings::{IdWindow, Settings};
use mq::units::{
    Attempts, Ending, Epoch, LeaseNumber, Micros, Name, Offset, OffsetRange, ProducerId, Sequence,
    SyncPolicy, WallTime,
};

use crate::contents;
use crate::sim::bench::{Bench, CLEAN, KILLED, REBOOTED, create_with, small};
use crate::sim::disk::SimDisk;

const NAMED: ProducerId = ProducerId(9);

fn range(start: u64, end: u64) -> OffsetRange {
    OffsetRange::new(Offset(start), Offset(end))
}

/// What a sound store says of itself.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    messages: Vec<(u64, String)>,
    groups: BTreeMap<Name, GroupPosition>,
    annex: Option<Vec<u8>>,
    /// Whether the first and the last id are known.
    ids: [bool; 2],
    stored: u64,
}

/// A store, closed in order, with what is in it.
fn store() -> (SimDisk, Said) {
    let disk = SimDisk::new(1);
    let settings = Settings {
        sync: SyncPolicy::Always,
        unique_ids: Some(IdWindow::Count(50)),
        ..Settings::default()
    };
    create_with(&disk, &settings).unwrap();
    let mut bench = Bench::open(disk.clone(), CLEAN, &small()).unwrap().0;
    for n in 0..14 {
        append(&mut bench, n);
    }
    let [first, second] = ["g", "h"].map(|name| {
        let file = bench.log.add_group(&Name::new(name).unwrap()).unwrap();
        bench.settle();
        file
    });
    let (sealed, extent) = bench.log.segment_extents(&[range(0, 1)])[0];
    for file in [first, second] {
        let whole = || unreachable!("journals are small");
        bench.log.settled(file, &[extent], Ending::Acked, Offset(8), whole).unwrap();
    }
    bench.wait(Micros::from_secs(2));
    bench.log.drop_segment(sealed);
    for n in 14..40 {
        append(&mut bench, n);
    }
    commit(&mut bench);
    let tried = TriedRange {
        range: range(extent.end.0, extent.end.0 + 2),
        attempts: Attempts(3),
        ready_at: Some(WallTime(77)),
    };
    let leased = LeasedRange {
        range: range(extent.end.0 + 3, extent.end.0 + 4),
        number: LeaseNumber(5 << 32 | 17),
        deadline: WallTime(99),
    };
    let facts = [GroupFact::Tried(tried), GroupFact::Leased(leased), GroupFact::Epoch(4)];
    bench.log.note_group(first, &facts, || unreachable!("journals are small")).unwrap();
    bench.wait(Micros::from_secs(2));
    bench.close();
    assert!(bench.log.segments() >= 3);
    drop(bench);
    let said = say(disk.fork(), CLEAN).expect("it is sound");
    assert!(said.annex.is_some() && said.groups.len() == 2 && said.messages.len() > 8);
    (disk, said)
}

fn append(bench: &mut Bench, n: u64) {
    let mut attributes = Vec::new();
    push_attribute(&mut attributes, tags::ID, format!("id {n}").as_bytes());
    push_attribute(&mut attributes, tags::KEY, format!("key {n}").as_bytes());
    let body = format!("{n} {}", "z".repeat(n as usize * 37 % 200));
    let mut payload = Vec::new();
    Record { attribute_bytes: &attributes, body: body.as_bytes() }.encode(&mut payload);
    let batch = NewBatch {
        framing: Framing::Records,
        flags: 0,
        count: 1,
        payload: &payload,
        producer: ProducerId(3),
        sequence: Sequence(n + 1),
        epoch: Epoch(0),
    };
    while bench.log.append(bench.now, WallTime(n), &batch) == Err(AppendError::NotYet) {
        bench.settle();
    }
    bench.settle();
}

fn commit(bench: &mut Bench) {
    let opened = bench.log.open_producer(bench.now, WallTime(20), NAMED).unwrap();
    let internal = InternalBatch {
        producer: NAMED,
        epoch: opened.epoch,
        sequence: Sequence(1),
        annex: b"up to there",
        framing: Framing::Delimited(b'\n'),
        flags: 0,
        count: 1,
        messages: b"committed\n",
    };
    bench.log.append_internal(bench.now, WallTime(20), &internal).unwrap();
    bench.settle();
}

/// What a store says when it is opened and read; none when it is damaged, and says so.
fn say(disk: SimDisk, boot: Boot) -> Option<Said> {
    let before = contents(&disk);
    let (mut bench, recovered) = match Bench::open(disk.clone(), boot, &small()) {
        Ok(opened) => opened,
        Err(LogError::Io { source, .. }) => panic!("a disk that works: {source}"),
        Err(_) => {
            assert_eq!(contents(&disk), before, "G11: a store that is damaged is left alone");
            return None;
        }
    };
    let messages = match bench.read(Offset(0), 300) {
        Ok(messages) => messages,
        Err(LogError::Corrupt(_)) => {
            assert!(bench.log.damage().is_some(), "G11: the queue stands still");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let last = messages.iter().rev().find_map(|(_, text)| text.split(' ').next()?.parse().ok());
    let ids = [0u64, last.unwrap_or(0)].map(|n| {
        let id = bench.log.unique().digest(format!("id {n}").as_bytes());
        bench.log.unique().knows_id(id, WallTime(30))
    });
    let segments = |path: &Path| path.extension().is_some_and(|end| end == "seg");
    for (path, _) in before.iter().filter(|(path, _)| segments(path)) {
        assert!(contents(&disk).contains_key(path), "G11: {} was deleted", path.display());
    }
    Some(Said {
        messages,
        groups: recovered.groups.into_iter().collect(),
        annex: bench.log.producers().annex(NAMED).map(<[u8]>::to_vec),
        ids,
        stored: bench.log.counted().stored.0,
    })
}

/// How a file is changed.
#[derive(Clone, Copy, Debug)]
enum Change {
    Flip(usize),
    Cut(usize),
}

/// A store with a changed bit is an error, or says what it always said. Two things may be less:
/// after a power loss what the very last mark said, which no other vouches for, and with it the
/// snapshot that covers it; and of a file that was cut short its end, which must be acks of a group
/// or, where the store was not left in order, the newest messages.
fn changed(disk: &SimDisk, said: &Said, path: &Path, change: Change) {
    let bad = disk.fork();
    bad.tamper(path, |bytes| match change {
        Change::Flip(bit) => bytes[bit / 8] ^= 1 << (bit % 8),
        Change::Cut(short) => bytes.truncate(short),
    });
    for boot in [CLEAN, KILLED, REBOOTED] {
        let Some(found) = say(bad.fork(), boot) else { continue };
        let what = format!("{} {change:?}, {boot:?}", path.display());
        let is_whole = found.messages == said.messages;
        match change {
            Change::Flip(_) if boot == REBOOTED => {
                assert!(is_whole && found.groups == said.groups, "{what}: {found:?}");
            }
            Change::Flip(_) => assert!(found == *said, "{what}: {found:?}\ninstead of {said:?}"),
            Change::Cut(_) => {
                let is_prefix = said.messages.starts_with(&found.messages) && boot != CLEAN;
                assert!(is_whole || is_prefix, "{what}: {found:?}");
                for (name, position) in &found.groups {
                    let acked = &said.groups[name].settled;
                    let is_acked = |range: &OffsetRange| {
                        acked.iter().any(|a| a.intersection(range) == Some(*range))
                    };
                    assert!(position.settled.iter().all(is_acked), "{what}: {found:?}");
                }
            }
        }
    }
}

#[test]
fn every_bit_of_a_store_that_has_everything() {
    let (disk, said) = store();
    let mut bits = 0;
    for (path, length) in disk.files() {
        // In a debug build a bit of each byte.
        for bit in (0..length * 8).filter(|bit| !cfg!(debug_assertions) || bit % 8 == bit / 8 % 8) {
            changed(&disk, &said, &path, Change::Flip(bit));
            bits += 1;
        }
    }
    println!("{bits} bits of {} files", disk.files().len());
}

#[test]
fn every_truncation_of_a_store_that_has_everything() {
    let (disk, said) = store();
    for (path, length) in disk.files() {
        for short in 0..length {
            changed(&disk, &said, &path, Change::Cut(short));
        }
    }
}
