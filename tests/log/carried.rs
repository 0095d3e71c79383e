//! Batches that hold no message and carry something: what they say is as safe as a message.

use std::path::Path;

use mq::batch::Framing;
use mq::log::{InternalBatch, LogError};
use mq::units::{Micros, Offset, OffsetRange, ProducerId, SyncPolicy, WallTime};

use crate::sim::bench::{Bench, KILLED, REBOOTED, small};

/// Opens a named producer and appends an annex without messages.
fn append_annex(bench: &mut Bench, annex: &[u8]) {
    let producer = ProducerId(77);
    let opened = bench.log.open_producer(bench.now, WallTime(1), producer).unwrap();
    let batch = InternalBatch {
        producer,
        epoch: opened.epoch,
        sequence: opened.sequence,
        annex,
        framing: Framing::Records,
        flags: 0,
        count: 0,
        messages: &[],
    };
    bench.log.append_internal(bench.now, WallTime(1), &batch).unwrap();
}

fn annex_of(bench: &mut Bench) -> Option<Vec<u8>> {
    bench.log.producers().annex(ProducerId(77)).map(<[u8]>::to_vec)
}

#[test]
fn an_annex_without_messages_that_was_durable_is_damage_when_it_is_flipped() {
    // G11. Marks are offsets, and such a batch has none: only the mark of going idle covers it.
    let mut bench = Bench::new(SyncPolicy::Always);
    bench.append(&["a"]);
    append_annex(&mut bench, b"an annex");
    bench.settle();
    bench.wait(Micros::from_secs(5));
    let (path, length) = bench.disk.files().into_iter().find(|(p, _)| is_segment(p)).unwrap();
    let disk = bench.disk.fork();
    drop(bench);
    let mut found = 0;
    for byte in 64..length {
        let bad = disk.fork();
        bad.tamper(&path, |bytes| bytes[byte] ^= 1);
        bad.crash();
        match Bench::open(bad, REBOOTED, &small()) {
            Err(LogError::Corrupt(_)) => found += 1,
            Err(other) => panic!("byte {byte}: {other}"),
            // The last mark itself stands behind all that it covers.
            Ok((mut bench, _)) => {
                assert_eq!(annex_of(&mut bench).as_deref(), Some(&b"an annex"[..]), "byte {byte}");
            }
        }
    }
    assert!(found >= length - 64 - 64, "{found} of {length}");
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "seg") && !path.to_string_lossy().contains("002.seg")
}

#[test]
fn an_annex_that_a_start_has_shown_survives_a_power_loss_right_after_it() {
    // The batch was written and not synced when the server was killed; the start that found it
    // is believed, so it must have made it durable.
    for seed in 0..40 {
        let mut bench = Bench::new(SyncPolicy::Always);
        bench.append(&["a"]);
        bench.settle();
        bench.disk.reseed(seed);
        append_annex(&mut bench, b"an annex");
        let disk = bench.disk.clone();
        drop(bench);
        let (mut bench, _) = Bench::open(disk.clone(), KILLED, &small()).unwrap();
        assert_eq!(annex_of(&mut bench).as_deref(), Some(&b"an annex"[..]));
        drop(bench);
        disk.crash();
        let (mut bench, _) = Bench::open(disk, REBOOTED, &small()).unwrap();
        assert_eq!(annex_of(&mut bench).as_deref(), Some(&b"an annex"[..]), "seed {seed}");
    }
}

#[test]
fn a_log_of_which_all_was_dropped_opens_after_power_losses() {
    // Under a weak policy a start after a power loss seals what is there and goes on behind it. A
    // segment that held nothing was sealed as if nothing had ever been in front of it, and the
    // next start took that for damage.
    let mut bench = Bench::new(SyncPolicy::Never);
    bench.append(&["a".repeat(1_500).as_str()]);
    bench.log.want_durable();
    bench.settle();
    bench.log.roll_if_gone();
    bench.settle();
    let everything = OffsetRange::new(Offset(0), bench.log.written_end());
    for (number, _) in bench.log.segment_extents(&[everything]) {
        bench.log.drop_segment(number);
    }
    bench.settle();
    assert_eq!(bench.log.start(), Offset(1), "only an empty segment is left");
    let disk = bench.disk.clone();
    drop(bench);
    for round in 0..3 {
        disk.crash();
        let opened = Bench::open(disk.clone(), REBOOTED, &small());
        drop(opened.unwrap_or_else(|error| panic!("round {round}: {error}")));
    }
}
