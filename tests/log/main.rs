//! The log keeps its promises on a disk that does not (see GUARANTEES in the documentation:
//! G1, G2, G9 to G12 are named where they are held).
//!
//! Everything runs on the simulated disk; a failure prints its seed.

mod carried;
mod facts;
mod journals;
mod seals;
#[path = "../sim/mod.rs"]
mod sim;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mq::batch::{Framing, Record};
use mq::log::storage::Storage;
use mq::log::{
    AppendError, Boot, CheckBound, Found, GroupPosition, InternalBatch, Judgement, LogError,
    NewBatch, NewChain, Options, Select, check, list_queues, remove_queue, sweep_removed,
};
use mq::units::{
    Bytes, Ending, Epoch, Micros, Name, Offset, OffsetRange, ProducerId, SegmentNumber, Sequence,
    SyncPolicy, WallTime,
};
use sim::bench::{Bench, CLEAN, KILLED, REBOOTED, create, name, small};
use sim::disk::{Fault, SimDisk};
use sim::lives::{self, Figures};

/// The segments on the disk, the oldest first, with their lengths.
fn segments(disk: &SimDisk) -> Vec<(PathBuf, usize)> {
    let is_one = |path: &Path| path.extension().is_some_and(|end| end == "seg");
    disk.files().into_iter().filter(|(path, _)| is_one(path)).collect()
}

fn numbered(texts: &[&str]) -> Vec<(u64, String)> {
    texts.iter().enumerate().map(|(n, text)| (n as u64, (*text).to_owned())).collect()
}

#[test]
fn what_was_appended_is_read_back_in_order() {
    let mut bench = Bench::new(SyncPolicy::Always);
    assert_eq!(bench.append(&["a", "b"]), OffsetRange::new(Offset(0), Offset(2)));
    bench.append(&["c"]);
    bench.append(&["", "e"]);
    assert_eq!(bench.log.visible_end(), Offset(0));
    bench.settle();
    assert_eq!(bench.log.visible_end(), Offset(5));
    let all = numbered(&["a", "b", "c", "", "e"]);
    for max_bytes in [1, 60, 150, 1 << 20] {
        assert_eq!(bench.read(Offset(0), max_bytes).unwrap(), all);
        assert_eq!(bench.read(Offset(1), max_bytes).unwrap(), all[1..]);
    }
}

#[test]
fn log_goes_on_over_segments_and_restarts() {
    let mut bench = Bench::new(SyncPolicy::Always);
    let mut all = Vec::new();
    for round in 0..6 {
        for n in 0..20 {
            let text = format!("{round} {n} {}", "x".repeat(n * 7 % 90));
            let range = bench.append(&[&text]);
            all.push((range.start.0, text));
            if n % 3 == 0 {
                bench.settle();
            }
        }
        bench.settle();
        assert_eq!(bench.read(Offset(0), 700).unwrap(), all);
        let boot = match round % 3 {
            0 => KILLED,
            1 => REBOOTED,
            _ => CLEAN,
        };
        if boot == CLEAN {
            bench.close();
        }
        let disk = bench.disk.clone();
        drop(bench);
        if boot == REBOOTED {
            disk.crash();
        }
        let (next, recovered) = Bench::open(disk, boot, &small()).unwrap();
        bench = next;
        assert_eq!(recovered.end, Offset(all.len() as u64));
        assert_eq!(recovered.gaps, []);
        assert_eq!(bench.read(Offset(0), 700).unwrap(), all);
    }
    assert!(bench.log.segments() > 5);
    bench.wait(Micros::from_secs(2));
    bench.wait(Micros::from_secs(2));
    assert_eq!(bench.log.next_deadline(), None, "an idle log wakes nobody");
}

#[test]
fn acks_and_groups_come_back() {
    let mut bench = Bench::new(SyncPolicy::Always);
    for _ in 0..10 {
        bench.append(&["x", "y"]);
    }
    bench.settle();
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    bench.settle();
    let range = |a, b| OffsetRange::new(Offset(a), Offset(b));
    let nothing = GroupPosition::default;
    bench
        .log
        .settled(group, &[range(0, 2), range(4, 6)], Ending::Acked, Offset(8), nothing)
        .unwrap();
    bench.log.settled(group, &[range(2, 4)], Ending::Acked, Offset(8), nothing).unwrap();
    bench.log.handed(group, Offset(9)).unwrap();
    let disk = bench.disk.clone();
    drop(bench);
    let (bench, recovered) = Bench::open(disk, KILLED, &small()).unwrap();
    let position = GroupPosition {
        settled: vec![range(0, 6)],
        handed: Offset(9),
        account: journals::acked(6),
        ..GroupPosition::default()
    };
    assert_eq!(recovered.groups, [(Name::new("g").unwrap(), position)]);
    assert!(bench.log.find_group(&Name::new("g").unwrap()).is_some());
}

/// G1, G2, G9, G10, G12 and the safety of acks: power loss, kills and faults at random calls.
#[test]
fn what_was_confirmed_survives_any_life() {
    let seeds: u64 = std::env::var("MQ_SEEDS").map_or(1500, |n| n.parse().unwrap());
    let first: u64 = std::env::var("MQ_SEED").map_or(1, |n| n.parse().unwrap());
    let mut figures = Figures::default();
    let mut broken = Vec::new();
    for seed in first..first + seeds {
        let run = std::panic::AssertUnwindSafe(|| lives::run(seed, &mut figures));
        if std::panic::catch_unwind(run).is_err() {
            eprintln!("replay: MQ_SEED={seed} MQ_SEEDS=1 cargo test --test log any_life");
            broken.push(seed);
        } else if seed % 100 == 0 {
            let (mut a, mut b) = (Figures::default(), Figures::default());
            lives::run(seed, &mut a);
            lives::run(seed, &mut b);
            assert_eq!(a.trace, b.trace, "seed {seed} does not repeat itself");
        }
    }
    eprintln!("{figures:?}");
    assert_eq!(broken, [0; 0], "seeds that broke a promise");
}

/// Once, each of them was a finding of its own, and a file whose name is a large number kept the
/// check busy for ever.
#[test]
fn missing_segments_are_found_together() {
    use mq::log::storage::Storage;
    let (disk, _) = store(Left::Closed);
    let dir = Path::new("queues/q");
    let segments: Vec<_> = segments(&disk).into_iter().map(|(path, _)| path).collect();
    assert!(segments.len() >= 3);
    let found = |disk: &SimDisk| -> Vec<String> {
        let report = check(disk, &name(), CheckBound::All, &mut |_| {}).unwrap();
        report.findings.iter().map(|finding| finding.damage.to_string()).collect()
    };
    // All but the last; all; the last, beside one with a name that nobody could have come to.
    for segment in &segments[..segments.len() - 1] {
        disk.remove_file(segment).unwrap();
    }
    let text = found(&disk);
    assert!(text[0].contains("segments, up to") && text.len() <= 2, "{text:?}");
    disk.remove_file(&segments[segments.len() - 1]).unwrap();
    assert_eq!(found(&disk).len(), 1);
    disk.create(&dir.join(format!("{:016}.seg", u64::MAX))).unwrap();
    let text = found(&disk);
    assert!(text[0].contains("18446744073709551614 segments"), "{text:?}");
}

/// How a store was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// By an orderly stop.
    Closed,
    /// By a kill, between two batches: all but the last is below its mark.
    Killed,
}

/// A store of a few segments, with acks of a group, and what is in it.
fn store(left: Left) -> (SimDisk, Vec<(u64, String)>) {
    let mut bench = Bench::new(SyncPolicy::Always);
    let mut all = Vec::new();
    for n in 0..30 {
        let text = format!("{n} {}", "z".repeat(n * 37 % 200));
        all.push((bench.append(&[&text]).start.0, text));
        if left == Left::Killed {
            bench.settle();
        }
    }
    bench.settle();
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    bench.settle();
    let range = OffsetRange::new(Offset(0), Offset(7));
    bench.log.settled(group, &[range], Ending::Acked, Offset(9), GroupPosition::default).unwrap();
    match left {
        Left::Closed => bench.close(),
        Left::Killed => bench.settle(),
    }
    assert!(bench.log.segments() >= 3);
    let disk = bench.disk.clone();
    drop(bench);
    (disk, all)
}

/// What a store that was tampered with may say: an error, or a prefix of what was in it.
fn prefix_or_error(disk: SimDisk, boot: Boot, all: &[(u64, String)], what: &str) -> usize {
    let (mut bench, recovered) = match Bench::open(disk, boot, &small()) {
        Ok(opened) => opened,
        Err(LogError::Io { source, .. }) => panic!("{what}: {source}"),
        Err(_) => return usize::MAX,
    };
    for (_, position) in &recovered.groups {
        let acked = OffsetRange::new(Offset(0), Offset(7));
        assert!(position.settled.iter().all(|range| acked.intersection(range) == Some(*range)));
        assert!(position.handed <= Offset(9), "{what}: handed out what never was");
    }
    match bench.read(Offset(0), 300) {
        Ok(found) => {
            assert!(all.starts_with(&found), "{what}: cut, merged or invented");
            found.len()
        }
        Err(LogError::Corrupt(_)) => {
            assert!(bench.log.damage().is_some());
            usize::MAX
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// G11: below the durable mark a changed bit is found before delivery, by recovery or by the
/// reader; and `check` finds it always.
#[test]
fn every_flipped_bit_is_found() {
    flip_every_bit(Left::Closed, &[CLEAN, KILLED, REBOOTED]);
}

/// A planted bug, the mark that never advances, was not caught any more: what the last snapshot
/// covered had taken the place of the mark that stands in the batches, instead of adding to it. So
/// a changed bit behind that snapshot was cut off as a torn end after a loss of power, with all that
/// was confirmed behind it.
#[test]
fn every_flipped_bit_is_found_behind_the_last_snapshot() {
    flip_every_bit(Left::Killed, &[KILLED, REBOOTED]);
}

fn flip_every_bit(left: Left, boots: &[Boot]) {
    let (disk, all) = store(left);
    // The last batch says that those in front of it are durable, and nothing says it of this one.
    let least = if left == Left::Killed { all.len() - 1 } else { all.len() };
    let mut undetected = BTreeSet::new();
    for (path, length) in disk.files() {
        for byte in 0..length {
            let bit = byte % 8;
            let bad = disk.fork();
            bad.tamper(&path, |bytes| bytes[byte] ^= 1 << bit);
            let what = format!("{} byte {byte}", path.display());
            if left == Left::Closed {
                let report = check(&bad, &name(), CheckBound::All, &mut |_| {}).unwrap();
                assert!(!report.findings.is_empty(), "check misses {what}");
            }
            for &boot in boots {
                let kept = prefix_or_error(bad.fork(), boot, &all, &what);
                assert!(kept >= least, "{what}, {boot:?}: {kept} of {}", all.len());
                if kept == all.len() && boot == CLEAN {
                    undetected.insert(path.clone());
                }
            }
        }
    }
    // A clean store accepts no damage at all where it reads; what it does not read at a start
    // is found when it is read.
    let segment = |path: &Path| path.extension().is_some_and(|e| e == "seg");
    assert!(undetected.iter().all(|path| segment(path)), "{undetected:?}");
}

/// G2, G9, G11: cut short anywhere, a file is an error, or what is left is a prefix.
#[test]
fn every_truncation_is_an_error_or_a_prefix() {
    let (disk, all) = store(Left::Closed);
    for (path, length) in disk.files() {
        for short in 0..length {
            let bad = disk.fork();
            bad.tamper(&path, |bytes| bytes.truncate(short));
            let what = format!("{} cut to {short} of {length}", path.display());
            // A footer that is missing wholly can be made again from the batches.
            let kept = prefix_or_error(bad.fork(), CLEAN, &all, &what);
            assert!(kept >= all.len(), "{what}: {kept} of {}", all.len());
            prefix_or_error(bad.fork(), KILLED, &all, &what);
            prefix_or_error(bad, REBOOTED, &all, &what);
        }
    }
}

/// A fixed course through everything that the log does; returns what was confirmed.
fn course(bench: &mut Bench) -> Result<Vec<(u64, String)>, String> {
    let mut sent = Vec::new();
    for n in 0..14 {
        let text = format!("{n} {}", "w".repeat(150));
        loop {
            match bench.try_append(std::slice::from_ref(&text)) {
                Ok(range) => break sent.push((range.start.0, text)),
                Err(AppendError::NotYet) => {
                    bench.collect();
                    if bench.jobs.is_empty() {
                        return Err("nothing to wait for".to_owned());
                    }
                    bench.run(0);
                }
                Err(AppendError::Full { .. }) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        bench.settle();
        if n == 4 {
            let _ = bench.log.add_group(&Name::new("g").unwrap());
        }
        if let Some(group) = bench.log.find_group(&Name::new("g").unwrap()) {
            let range = OffsetRange::new(Offset(0), bench.log.visible_end());
            let state = || GroupPosition {
                settled: vec![range],
                handed: range.end,
                ..GroupPosition::default()
            };
            let _ = bench.log.settled(group, &[range], Ending::Acked, range.end, state);
            for (number, _) in bench.log.segment_extents(&[range]) {
                bench.log.drop_segment(number);
            }
        }
        bench.wait(Micros::from_millis(400));
    }
    match bench.log.failed() {
        Some(why) => Err(why.to_owned()),
        None => Ok(sent),
    }
}

/// G1, G10, G12: the n-th call fails, for every n and in every way; then the machine stops.
#[test]
fn any_call_may_fail() {
    for fault in [Fault::Eio, Fault::Enospc, Fault::Kill] {
        for n in 1.. {
            let disk = SimDisk::new(n);
            create(&disk, SyncPolicy::Always).unwrap();
            let mut bench = Bench::open(disk.clone(), CLEAN, &small()).unwrap().0;
            disk.fail_in(n, fault);
            let result = course(&mut bench);
            let visible = bench.log.visible_end();
            let faulted = disk.faulted();
            if matches!(faulted, Some("sync" | "sync_dir")) {
                assert!(result.is_err(), "G12: a failed sync ends the log ({n}, {fault:?})");
            }
            if result.is_ok() && faulted.is_some() && fault != Fault::Kill {
                bench.wait(Micros::from_secs(3));
                assert!(bench.log.failed().is_none(), "call {n}: {fault:?}");
                assert_eq!(bench.log.durable_end(), bench.log.written_end());
            }
            drop(bench);
            let what = format!("call {n} ({faulted:?}, {fault:?})");
            let rebooted = disk.fork();
            rebooted.crash();
            reopened(&rebooted, REBOOTED, visible, &what);
            // The same, but a second life on the same page cache comes in between.
            disk.revive();
            let mut bench = reopened(&disk, KILLED, visible, &what);
            course(&mut bench).unwrap();
            let visible = bench.log.visible_end();
            drop(bench);
            disk.crash();
            reopened(&disk, REBOOTED, visible, &what);
            if faulted.is_none() {
                break;
            }
        }
    }
}

/// A log under `always` must have all that was visible.
fn reopened(disk: &SimDisk, boot: Boot, visible: Offset, what: &str) -> Bench {
    let (bench, recovered) = Bench::open(disk.clone(), boot, &small())
        .unwrap_or_else(|error| panic!("{what}, {boot:?}: {error}"));
    assert!(bench.log.written_end() >= visible, "{what}, {boot:?}");
    assert_eq!(recovered.gaps, []);
    bench
}

/// G12: an error of a writeback concerns every sync that is under way, whichever meets it.
#[test]
fn failed_sync_does_not_let_the_other_one_confirm() {
    let mut bench = Bench::new(SyncPolicy::Always);
    bench.append(&["a"]);
    bench.collect();
    bench.append(&[&"b".repeat(300)]);
    bench.collect();
    assert_eq!(bench.jobs.len(), 2, "two syncs at once");
    bench.disk.fail_in(1, Fault::Eio);
    bench.run_only(1);
    bench.run_only(0);
    bench.complete(1);
    assert_eq!(bench.log.visible_end(), Offset(0));
    bench.complete(0);
    assert_eq!(bench.log.visible_end(), Offset(0));
    assert!(bench.log.failed().is_some());
}

/// G10: what a refused write left in the file is nowhere, after an orderly stop too.
#[test]
fn refused_write_leaves_nothing_behind() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        create(&disk, SyncPolicy::Always).unwrap();
        let mut bench = Bench::open(disk.clone(), CLEAN, &small()).unwrap().0;
        bench.append(&["kept"]);
        bench.wait(Micros::from_secs(2));
        disk.break_calls(Some(("write_all_at", Fault::Enospc)));
        let refused = bench.try_append(&["x".repeat(900)]);
        assert!(matches!(refused, Err(AppendError::Full { .. })));
        disk.break_calls(None);
        bench.close();
        drop(bench);
        disk.crash();
        let (mut bench, _) = Bench::open(disk, CLEAN, &small()).unwrap();
        assert_eq!(bench.read(Offset(0), 100).unwrap(), numbered(&["kept"]));
    }
}

/// G9: what a power loss tore is cut, and all of it is kept for people; what stands in front of it
/// is served.
#[test]
fn a_torn_tail_is_cut_and_kept_aside() {
    use mq::log::storage::{Storage, StorageFile};
    let mut bench = Bench::new(SyncPolicy::Always);
    bench.append(&["kept"]);
    bench.wait(Micros::from_secs(2));
    bench.append(&["torn one"]);
    bench.append(&["torn two"]);
    let disk = bench.disk.clone();
    drop(bench);
    let segment =
        disk.files().into_iter().rfind(|(path, _)| path.ends_with("0000000000000001.seg"));
    let (path, length) = segment.expect("a segment");
    let mut before = Vec::new();
    disk.tamper(&path, |bytes| {
        let torn = bytes.windows(8).position(|text| text == b"torn one").expect("it was written");
        bytes[torn] ^= 1;
        before = bytes.clone();
    });
    let (mut bench, recovered) = Bench::open(disk.clone(), REBOOTED, &small()).unwrap();
    assert_eq!(bench.read(Offset(0), 100).unwrap(), numbered(&["kept"]));
    let torn = recovered.torn.expect("it was torn");
    assert_eq!((torn.offset, torn.position.0 + torn.bytes.0), (Offset(1), length as u64));
    let [kept] = &torn.kept[..] else { panic!("one file is cut: {torn:?}") };
    let mut bytes = vec![0; torn.bytes.0 as usize];
    let file = disk.open(kept).expect("it is there");
    assert_eq!(file.read_at(&mut bytes, mq::units::Position(0)).unwrap(), bytes.len());
    assert_eq!(bytes, before[torn.position.0 as usize..]);
}

/// Retention: what is wholly gone gives back its space, and the record of it survives.
#[test]
fn dropped_segments_stay_dropped() {
    let mut bench = Bench::new(SyncPolicy::Always);
    for n in 0..40 {
        bench.append(&[&format!("{n} {}", "d".repeat(150))]);
        bench.settle();
    }
    let before = bench.disk.used();
    let segments = bench.log.segment_extents(&[OffsetRange::new(Offset(0), Offset(40))]);
    assert!(segments.len() >= 3);
    // Not in order: the second first.
    for n in [1, 0, 2] {
        bench.log.drop_segment(segments[n].0);
        bench.settle();
    }
    assert!(bench.disk.used() < before);
    let end = segments[2].1.end;
    assert_eq!(bench.log.start(), end);
    assert!(matches!(
        bench.log.locate(Offset(0), Offset(1), 1, &Select::default()),
        Err(LogError::Gone(_))
    ));
    let disk = bench.disk.clone();
    drop(bench);
    disk.crash();
    let (mut bench, recovered) = Bench::open(disk, REBOOTED, &small()).unwrap();
    assert_eq!(recovered.gone, [OffsetRange::new(Offset(0), end)]);
    assert_eq!(recovered.start, end);
    assert_eq!(bench.read(end, 500).unwrap().len() as u64, 40 - end.0);
    bench.close();
    let report = check(&bench.disk, &name(), CheckBound::All, &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
}

/// The real disk behaves as the simulated one where nothing fails.
#[test]
fn log_works_on_a_real_disk() {
    use mq::log::storage::{Disk, StorageFile};
    use mq::log::{Log, create_queue};
    use mq::settings::Settings;
    let dir = tempfile::tempdir().unwrap();
    let disk = std::sync::Arc::new(Disk::new(dir.path()));
    let id = mq::units::QueueId::from_bytes([7; 16]);
    let settings = Settings { sync: SyncPolicy::Always, ..Settings::default() };
    create_queue(&*disk, &name(), id, &settings, WallTime(1)).unwrap();
    let options = Options { segment_bytes: 256 << 10, ..Options::default() };
    let mut end = Offset(0);
    for boot in [CLEAN, KILLED, REBOOTED] {
        let (mut log, recovered) = Log::open(disk.clone(), &name(), boot, &options).unwrap();
        assert_eq!(recovered.end, end);
        let now = mq::units::Monotonic(1);
        for _ in 0..40 {
            let payload = b"0123456789abcdef\n".repeat(1000);
            let batch = NewBatch {
                framing: Framing::Delimited(b'\n'),
                flags: 0,
                count: 1000,
                payload: &payload,
                producer: ProducerId(3),
                sequence: Sequence(end.0 + 1000),
                epoch: Epoch(0),
            };
            let range = loop {
                match log.append(now, WallTime(5), &batch) {
                    Ok(range) => break range,
                    Err(AppendError::NotYet) => {}
                    Err(error) => panic!("{error}"),
                }
                let done = log.next_job(now).expect("a job to wait for").run();
                log.complete(now, done);
            };
            end = range.end;
            while let Some(job) = log.next_job(now) {
                let done = job.run();
                log.complete(now, done);
            }
        }
        assert_eq!(log.visible_end(), end);
        let found = log.locate(Offset(end.0 - 40_000), end, 1 << 20, &Select::default()).unwrap();
        let Found::Whole { file, place, bytes, .. } = found else { panic!("not whole") };
        let mut buffer = vec![0; bytes as usize];
        assert_eq!(file.read_at(&mut buffer, place.position).unwrap() as u64, bytes);
        assert!(file.descriptor().is_some());
    }
    let report = check(&*disk, &name(), CheckBound::All, &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
}

/// G10: a full disk is an answer; reading and acking go on; sending works again with room.
#[test]
fn full_disk_refuses_and_goes_on() {
    let options = Options { segment_bytes: 64 << 10, ..small() };
    let disk = SimDisk::new(3);
    create(&disk, SyncPolicy::Always).unwrap();
    let mut bench = Bench::open(disk.clone(), CLEAN, &options).unwrap().0;
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    bench.settle();
    disk.set_capacity(disk.used() + (200 << 10));
    let mut all = Vec::new();
    let text = "f".repeat(1000);
    let refused = loop {
        match bench.try_append(std::slice::from_ref(&text)) {
            Ok(range) => all.push((range.start.0, text.clone())),
            Err(AppendError::NotYet) => {}
            Err(error) => break error,
        }
        bench.settle();
    };
    assert!(matches!(refused, AppendError::Full { .. }), "{refused}");
    assert!(all.len() > 50);
    assert_eq!(bench.read(Offset(0), 5000).unwrap(), all);
    let range = OffsetRange::new(Offset(0), Offset(5));
    bench.log.settled(group, &[range], Ending::Acked, Offset(5), GroupPosition::default).unwrap();
    bench.wait(Micros::from_secs(2));
    disk.set_capacity(1 << 30);
    bench.wait(Micros::from_secs(2));
    let mut range = bench.try_append(std::slice::from_ref(&text));
    while range == Err(AppendError::NotYet) {
        bench.settle();
        range = bench.try_append(std::slice::from_ref(&text));
    }
    all.push((range.unwrap().start.0, text));
    bench.settle();
    assert_eq!(bench.read(Offset(0), 5000).unwrap(), all);
    drop(bench);
    disk.crash();
    let (mut bench, recovered) = Bench::open(disk, REBOOTED, &options).unwrap();
    assert_eq!(bench.read(Offset(0), 5000).unwrap(), all);
    assert_eq!(recovered.groups[0].1.settled, [OffsetRange::new(Offset(0), Offset(5))]);
}

/// G10: the journal of a new group finds room on a full disk, and survives every crash; the room
/// is not given to two, though a crash may bring back the name that it had.
#[test]
fn first_group_finds_room_on_a_full_disk() {
    let name = |n: &str| Name::new(n).unwrap();
    let range = [OffsetRange::new(Offset(0), Offset(2))];
    let settled = GroupPosition {
        settled: range.to_vec(),
        handed: Offset(2),
        account: journals::acked(2),
        ..Default::default()
    };
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        create(&disk, SyncPolicy::Always).unwrap();
        let mut bench = Bench::open(disk.clone(), CLEAN, &small()).unwrap().0;
        bench.append(&["a", "b"]);
        bench.settle();
        disk.set_capacity(disk.used());
        let first = bench.log.add_group(&name("first")).unwrap();
        bench.log.settled(first, &range, Ending::Acked, Offset(2), || settled.clone()).unwrap();
        assert!(bench.log.add_group(&name("second")).is_err(), "there was room for one");
        let installed = seed % 4 != 0;
        if installed {
            bench.wait(Micros::from_secs(2));
            assert_eq!(bench.installed, [first]);
        }
        drop(bench);
        disk.crash();
        disk.set_capacity(1 << 30);
        let (mut bench, recovered) = Bench::open(disk.clone(), REBOOTED, &small()).unwrap();
        let expected = installed.then(|| (name("first"), settled.clone()));
        assert_eq!(recovered.groups, Vec::from_iter(expected), "seed {seed}");
        // Room for the next one, which leaves the first alone.
        bench.settle();
        disk.set_capacity(disk.used());
        bench.log.add_group(&name("third")).unwrap();
        bench.wait(Micros::from_secs(2));
        drop(bench);
        disk.crash();
        let (_, recovered) = Bench::open(disk, REBOOTED, &small()).unwrap();
        let third = (name("third"), GroupPosition::default());
        let first = installed.then(|| (name("first"), settled.clone()));
        assert_eq!(recovered.groups, Vec::from_iter(first.into_iter().chain([third])));
    }
}

/// Lives of a log found it: an ack that the disk refused counted as written, so a segment could go
/// whose acks no journal had.
#[test]
fn segments_wait_for_acks_that_were_not_written() {
    let mut bench = Bench::new(SyncPolicy::Always);
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    while bench.log.segments() < 3 {
        bench.append(&[&"x".repeat(500)]);
        bench.settle();
    }
    bench.wait(Micros::from_secs(2));
    let (first, extent) = bench.log.segment_extents(&[OffsetRange::new(Offset(0), Offset(1))])[0];
    let whole = GroupPosition { settled: vec![extent], handed: extent.end, ..Default::default() };
    bench.disk.break_calls(Some(("write_all_at", Fault::Eio)));
    assert!(
        bench.log.settled(group, &[extent], Ending::Acked, extent.end, || whole.clone()).is_err()
    );
    bench.disk.break_calls(None);
    let segments = bench.log.segments();
    bench.log.drop_segment(first);
    bench.wait(Micros::from_secs(2));
    assert_eq!(bench.log.segments(), segments, "its acks are not written");
    bench.log.settled(group, &[], Ending::Acked, extent.end, || whole.clone()).unwrap();
    bench.wait(Micros::from_secs(2));
    assert_eq!(bench.log.segments(), segments - 1);
    let disk = bench.disk.clone();
    drop(bench);
    disk.crash();
    let (_, recovered) = Bench::open(disk, REBOOTED, &small()).unwrap();
    assert_eq!(recovered.groups, [(Name::new("g").unwrap(), whole)]);
}

/// G12: after a failed sync nothing is confirmed, whatever later syncs say.
#[test]
fn failed_sync_confirms_nothing_ever_after() {
    let mut bench = Bench::new(SyncPolicy::Always);
    bench.append(&["a"]);
    bench.settle();
    bench.append(&["b"]);
    bench.disk.break_calls(Some(("sync", Fault::Eio)));
    bench.settle();
    bench.disk.break_calls(None);
    let failed = bench.progress.last().unwrap().failed.clone();
    assert!(failed.unwrap().contains("syncing"));
    assert_eq!(bench.log.visible_end(), Offset(1));
    assert!(matches!(bench.try_append(&["c".to_owned()]), Err(AppendError::Failed(_))));
    bench.wait(Micros::from_secs(5));
    assert_eq!(bench.log.visible_end(), Offset(1));
    assert!(!bench.log.is_closed());
    let disk = bench.disk.clone();
    drop(bench);
    // The pages look clean now. What the next life confirms must survive all the same.
    let (mut bench, _) = Bench::open(disk.clone(), KILLED, &small()).unwrap();
    let found = bench.read(Offset(0), 1000).unwrap();
    drop(bench);
    disk.crash();
    let (mut bench, _) = Bench::open(disk, REBOOTED, &small()).unwrap();
    assert!(bench.read(Offset(0), 1000).unwrap().starts_with(&found));
}

/// G9: under a weak policy no offset that anyone can have seen is given again.
#[test]
fn offsets_go_on_behind_what_a_power_loss_took() {
    for sync in [SyncPolicy::Never, SyncPolicy::Interval(Micros::from_secs(60))] {
        let disk = SimDisk::new(11);
        create(&disk, sync).unwrap();
        let options = Options { segment_messages: 64, ..small() };
        let mut boot = CLEAN;
        let mut seen = Offset(0);
        for round in 0..6 {
            let (mut bench, recovered) = Bench::open(disk.clone(), boot, &options).unwrap();
            assert!(recovered.end >= seen, "{sync}, round {round}");
            for _ in 0..30 {
                bench.append(&["some", "lines"]);
            }
            seen = bench.log.visible_end();
            assert_eq!(seen, bench.log.written_end(), "visible when written");
            drop(bench);
            disk.crash();
            boot = REBOOTED;
        }
    }
}

/// G2: a retry is stored once, over kills and power losses too.
#[test]
fn producers_are_known_after_a_restart() {
    let mut bench = Bench::new(SyncPolicy::Always);
    let batch = |sequence: u64| NewBatch {
        framing: Framing::Delimited(b'\n'),
        flags: 0,
        count: 1,
        payload: b"x\n",
        producer: ProducerId(7),
        sequence: Sequence(sequence),
        epoch: Epoch(0),
    };
    for n in 1..=60 {
        while bench.log.append(bench.now, WallTime(1), &batch(n)) == Err(AppendError::NotYet) {
            bench.settle();
        }
        bench.settle();
    }
    let named = ProducerId(9);
    let opened = bench.log.open_producer(bench.now, WallTime(1), named).unwrap();
    assert_eq!((opened.epoch, opened.sequence, opened.annex), (Epoch(1), Sequence(0), None));
    bench.settle();
    assert_eq!(bench.log.durable_bytes(), bench.log.written_bytes());
    let disk = bench.disk.clone();
    drop(bench);
    for boot in [KILLED, REBOOTED] {
        if boot == REBOOTED {
            disk.crash();
        }
        let (mut bench, _) = Bench::open(disk.clone(), boot, &small()).unwrap();
        let judge = |bench: &mut Bench, expected, next| {
            let (expected, next) = (Sequence(expected), Sequence(next));
            bench.log.producers().judge(ProducerId(7), Epoch(0), expected, next)
        };
        let sequence = Sequence(60);
        assert_eq!(judge(&mut bench, 59, 60), Judgement::Duplicate { sequence });
        assert_eq!(judge(&mut bench, 60, 61), Judgement::Store);
        assert_eq!(bench.log.producers().last(named), Some((Epoch(1), Sequence(0))));
    }
}

fn record(bytes: usize) -> Vec<u8> {
    let mut record = Vec::new();
    Record { attribute_bytes: &[], body: &vec![b'y'; bytes] }.encode(&mut record);
    record
}

/// G2: a large message is there wholly or not at all.
#[test]
fn chain_is_visible_whole_or_not_at_all() {
    let options = Options { segment_bytes: 8 << 20, ..small() };
    let disk = SimDisk::new(5);
    create(&disk, SyncPolicy::Always).unwrap();
    let mut bench = Bench::open(disk.clone(), CLEAN, &options).unwrap().0;
    bench.append(&["before"]);
    bench.settle();
    let mut staging = bench.log.stage_begin().unwrap();
    for part in record(3 << 20).chunks(1 << 20) {
        staging.push(part).unwrap();
    }
    bench.log.append_chain(WallTime(1), &staging, &NewChain::default()).unwrap();
    assert_eq!(bench.try_append(&["b".to_owned()]), Err(AppendError::NotYet));
    bench.collect();
    // Killed within the third of four writes.
    let killed = disk.fork();
    disk.fail_in(6, Fault::Kill);
    bench.run(0);
    assert!(disk.is_killed());
    drop(bench);
    disk.revive();
    let (mut bench, recovered) = Bench::open(disk, KILLED, &options).unwrap();
    assert_eq!(recovered.end, Offset(1));
    assert!(recovered.torn.is_some());
    assert_eq!(bench.append(&["after"]).start, Offset(1));
    bench.settle();
    assert_eq!(bench.read(Offset(0), 100).unwrap(), numbered(&["before", "after"]));
    drop(killed);
}

/// The time of a queue was told while a large message was being copied, and went back when it was there:
/// what came then was older than what was said.
#[test]
fn time_does_not_go_back_when_a_chain_is_there() {
    let options = Options { segment_bytes: 8 << 20, ..small() };
    let disk = SimDisk::new(5);
    create(&disk, SyncPolicy::Always).unwrap();
    let mut bench = Bench::open(disk, CLEAN, &options).unwrap().0;
    let mut staging = bench.log.stage_begin().unwrap();
    staging.push(&record(1 << 20)).unwrap();
    bench.log.append_chain(WallTime(10), &staging, &NewChain::default()).unwrap();
    assert!(bench.log.is_copying());
    assert_eq!(bench.log.reach_time(WallTime(50)), WallTime(50));
    bench.settle();
    assert!(!bench.log.is_copying());
    assert_eq!(bench.log.reach_time(WallTime(20)), WallTime(50));
}

#[test]
fn chain_is_read_back_and_survives() {
    let options = Options { segment_bytes: 8 << 20, ..small() };
    let disk = SimDisk::new(5);
    create(&disk, SyncPolicy::Always).unwrap();
    let mut bench = Bench::open(disk.clone(), CLEAN, &options).unwrap().0;
    bench.append(&["before"]);
    let mut staging = bench.log.stage_begin().unwrap();
    for part in record(3 << 20).chunks(700_000) {
        staging.push(part).unwrap();
    }
    bench.log.append_chain(WallTime(1), &staging, &NewChain::default()).unwrap();
    bench.settle();
    let range = OffsetRange::new(Offset(1), Offset(2));
    assert!(bench.progress.iter().any(|progress| progress.chain == Some(Ok(range))));
    bench.append(&["after"]);
    bench.settle();
    let found = bench.log.locate(Offset(1), Offset(3), 100, &Select::default()).unwrap();
    assert!(
        matches!(found, Found::Chain { ref parts, end, .. } if parts.len() == 4 && end == Offset(2))
    );
    drop(bench);
    disk.crash();
    let (mut bench, _) = Bench::open(disk, REBOOTED, &options).unwrap();
    let found = bench.read(Offset(0), 100).unwrap();
    assert_eq!(found.iter().map(|(_, text)| text.len()).collect::<Vec<_>>(), [6, 3 << 20, 5]);
}

#[test]
fn queue_is_made_and_removed_wholly() {
    for n in 1..40 {
        for fault in [Fault::Kill, Fault::Enospc] {
            let disk = SimDisk::new(n);
            disk.fail_in(n, fault);
            let made = create(&disk, SyncPolicy::Always).is_ok();
            disk.crash();
            sweep_removed(&disk).unwrap();
            let there = list_queues(&disk).unwrap().contains(&name());
            assert!(there || !made);
            if !there {
                assert_eq!(disk.files(), []);
                create(&disk, SyncPolicy::Always).unwrap();
            }
            assert!(matches!(create(&disk, SyncPolicy::Always), Err(LogError::Exists(_))));
            let (bench, _) = Bench::open(disk.clone(), REBOOTED, &small()).unwrap();
            let id = bench.log.id();
            drop(bench);
            let job = remove_queue(&std::sync::Arc::new(disk.clone()), &name(), id).unwrap();
            assert_eq!(list_queues(&disk).unwrap(), []);
            if n % 2 == 0 {
                assert_eq!(job.run().error(), None);
            } else {
                disk.crash();
                sweep_removed(&disk).unwrap();
            }
            assert_eq!(disk.files(), []);
        }
    }
}

/// A receiver with credit for one message must not cost a read of the whole batch each time.
#[test]
fn cutting_one_by_one_reads_a_batch_once() {
    let options = Options { segment_bytes: 1 << 20, ..small() };
    let disk = SimDisk::new(5);
    create(&disk, SyncPolicy::Always).unwrap();
    let mut bench = Bench::open(disk.clone(), CLEAN, &options).unwrap().0;
    let lines: Vec<String> = (0..2000).map(|n| format!("line {n} with some more text")).collect();
    let refs: Vec<&str> = lines.iter().map(String::as_str).collect();
    bench.append(&refs);
    bench.settle();
    let (mut reads, mut bytes) = (disk.traffic().0, Bytes(0));
    for n in 0..2000 {
        let found =
            bench.log.locate(Offset(n), Offset(n + 1), 1 << 20, &Select::default()).unwrap();
        let Found::Cut { bytes: cut, end, .. } = found else { panic!("not cut") };
        assert_eq!(end, Offset(n + 1));
        bytes.0 += cut.len() as u64;
    }
    reads = disk.traffic().0 - reads;
    assert!(reads <= 2001 + 2, "{reads} reads: one small one for each header, one for the payload");
    assert!(bytes.0 > 2000 * 64);
}

/// The simulator found it: a log that was killed ended with a mark that only the page cache had.
/// The next life found nothing above the mark, so it synced nothing, wrote nothing more, and its
/// orderly stop said that the log ends behind that mark; a power loss then took the mark, and the
/// queue was called damaged.
#[test]
fn mark_that_a_kill_left_unsynced_is_durable_after_an_orderly_stop() {
    for jobs in 0..6 {
        for seed in 0..4 {
            let mut bench = Bench::new(SyncPolicy::Always);
            bench.append(&["a"]);
            bench.settle();
            bench.now = bench.now.plus(Micros::from_secs(2));
            for _ in 0..jobs {
                bench.collect();
                if !bench.jobs.is_empty() {
                    bench.run(0);
                }
            }
            bench.collect();
            let disk = bench.disk.clone();
            drop(bench);
            let (mut bench, _) = Bench::open(disk.clone(), KILLED, &small()).unwrap();
            bench.close();
            drop(bench);
            disk.reseed(seed);
            disk.crash();
            let boot = Boot { clean: true, same_boot: false };
            let (mut bench, _) = Bench::open(disk, boot, &small()).expect("nothing is damaged");
            assert_eq!(bench.read(Offset(0), 700).unwrap(), numbered(&["a"]));
        }
    }
}

/// The simulator found it: acks had found no room on a full disk, and an orderly stop synced the
/// journal that had lost them again and again, without end.
#[test]
fn orderly_stop_ends_though_acks_found_no_room() {
    let mut bench = Bench::new(SyncPolicy::Always);
    let disk = bench.disk.clone();
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    bench.settle();
    for _ in 0..4 {
        bench.append(&["a"; 60]);
        bench.settle();
    }
    disk.break_calls(Some(("write_all_at", Fault::Enospc)));
    let acked = OffsetRange::new(Offset(3), Offset(4));
    bench.log.settled(group, &[acked], Ending::Acked, Offset(9), GroupPosition::default).unwrap();
    disk.break_calls(None);
    let mut jobs = 0;
    while let Some(job) = bench.log.close_jobs(bench.now) {
        jobs += 1;
        assert!(jobs < 100, "the stop does not end");
        bench.jobs.push(job);
        bench.run(0);
    }
    assert!(!bench.log.is_closed_cleanly(), "an ack is lost, and the stop called clean");
}

/// The simulator found it: a block was changed while a queue was closed. The next start said that
/// the queue is damaged, as an orderly stop had left more in it. But that start was not an orderly
/// one's successor any more when the power failed, and the one after it cut off what it could not
/// read, although the snapshot of the orderly stop had covered it.
#[test]
fn what_an_orderly_stop_left_is_never_taken_for_a_torn_end() {
    let mut bench = Bench::new(SyncPolicy::Always);
    bench.append(&["a"]);
    bench.append(&["b"]);
    bench.settle();
    bench.close();
    let disk = bench.disk.clone();
    drop(bench);
    let (segment, length) = segments(&disk).remove(0);
    disk.tamper(&segment, |bytes| bytes[64..].fill(0));
    for boot in [CLEAN, KILLED, REBOOTED] {
        let opened = Bench::open(disk.clone(), boot, &small());
        assert!(matches!(opened, Err(LogError::Corrupt(_))), "{boot:?}");
        let still_there = disk.files().contains(&(segment.clone(), length));
        assert!(still_there, "something was deleted, {boot:?}");
    }
}

/// A bit changed in the mark that an orderly stop had left at the end, and the machine was started anew
/// after a life that wrote nothing: the mark was cut off as a torn end, and the snapshot that covered
/// it was thrown away, with all that it knew of producers.
#[test]
fn a_mark_that_a_snapshot_covers_is_never_taken_for_a_torn_end() {
    let mut bench = Bench::new(SyncPolicy::Always);
    bench.append(&["a"]);
    bench.settle();
    bench.close();
    let disk = bench.disk.clone();
    drop(bench);
    let (segment, length) = segments(&disk).remove(0);
    disk.tamper(&segment, |bytes| bytes[length - 1] ^= 1);
    for boot in [CLEAN, KILLED, REBOOTED] {
        let opened = Bench::open(disk.clone(), boot, &small());
        assert!(matches!(opened, Err(LogError::Corrupt(_))), "{boot:?}");
    }
}

/// The simulator found it: under a weak policy the power failed when the mark that opened a producer
/// stood at the end of one segment and its first batch in the next one. The mark was lost and the batch
/// was not. The next start took the producer for one without a name and forgot its annex, so delayed
/// messages that had come into the queue came in again.
#[test]
fn annex_is_known_though_the_mark_that_opened_its_producer_is_lost() {
    let disk = SimDisk::new(5);
    create(&disk, SyncPolicy::Never).unwrap();
    let options = Options { segment_messages: 8, ..small() };
    let (mut bench, _) = Bench::open(disk.clone(), CLEAN, &options).unwrap();
    for _ in 0..4 {
        bench.append(&["a", "b"]);
    }
    bench.settle();
    let producer = ProducerId(9);
    let opened = bench.log.open_producer(bench.now, WallTime(1), producer).unwrap();
    let internal = InternalBatch {
        producer,
        epoch: opened.epoch,
        sequence: Sequence(1),
        annex: b"what was taken",
        framing: Framing::Delimited(b'\n'),
        flags: 0,
        count: 1,
        messages: b"c\n",
    };
    let committed = bench.log.append_internal(bench.now, WallTime(1), &internal).unwrap();
    assert_eq!(committed.range.start, Offset(8), "it is the first of the next segment");
    drop(bench);
    let (first, _) = segments(&disk).remove(0);
    disk.tamper(&first, |bytes| {
        let mark = bytes.len() - 64;
        bytes[mark..].fill(0);
    });
    let (mut bench, _) = Bench::open(disk, REBOOTED, &options).unwrap();
    assert_eq!(bench.read(Offset(8), 700).unwrap(), [(8, "c".to_owned())], "the batch is there");
    assert_eq!(bench.log.producers_known().annex(producer), Some(&b"what was taken"[..]));
}

/// The simulator found it (`pipe:14638`): a loss of power left a segment that was being made, without
/// its header. The next start removed it, as nothing can be in it; its orderly stop had nothing to
/// write, so nothing made the removal durable. A loss of power behind that brought the file back, and
/// behind an orderly stop a segment without a header is damage.
#[test]
fn a_segment_that_was_broken_off_does_not_come_back_behind_an_orderly_stop() {
    let mut bench = Bench::new(SyncPolicy::Always);
    bench.append(&["a"]);
    bench.settle();
    bench.close();
    let disk = bench.disk.clone();
    drop(bench);
    disk.create(&Path::new("queues/q").join(format!("{:016}.seg", 2))).unwrap();
    for boot in [REBOOTED, Boot { clean: true, same_boot: false }] {
        let (mut bench, _) = Bench::open(disk.clone(), boot, &small()).expect("nothing is damaged");
        assert_eq!(bench.read(Offset(0), 700).unwrap(), numbered(&["a"]));
        bench.close();
        drop(bench);
        // Whatever is not synced is not there.
        disk.crash_choosing(&mut |n| n - 1);
    }
}

/// The simulator found it (`wide:1078`): a loss of power under a weak policy left a segment without
/// messages, at the offset where the log was to go on. That segment was dropped in time, and the next
/// one had no message yet when the server was killed: the start took the log to end in front of all
/// that, where it had been durable far behind, and called the queue damaged.
#[test]
fn a_log_goes_on_behind_a_dropped_segment_that_had_no_message() {
    let disk = SimDisk::new(3);
    create(&disk, SyncPolicy::Never).unwrap();
    let options = Options { segment_bytes: 128, ..small() };
    let (mut bench, _) = Bench::open(disk.clone(), CLEAN, &options).unwrap();
    bench.append(&["a"]);
    bench.settle();
    drop(bench);
    // Everything is there after all.
    disk.crash_choosing(&mut |n| n.saturating_sub(2));
    let (mut bench, _) = Bench::open(disk.clone(), REBOOTED, &options).unwrap();
    let end = bench.log.written_end();
    bench.log.roll_if_gone();
    bench.settle();
    bench.log.drop_segment(SegmentNumber(2));
    bench.settle();
    drop(bench);
    assert!(disk.files().iter().all(|(path, _)| !path.ends_with("0000000000000002.seg")));
    let (mut bench, recovered) = Bench::open(disk, KILLED, &options).expect("nothing is damaged");
    assert_eq!((recovered.end, bench.append(&["b"]).start), (end, end));
    assert_eq!(bench.read(Offset(0), 700).unwrap(), [(0, "a".to_owned()), (end.0, "b".to_owned())]);
}

/// The simulator found it: a bit of the footer of an old segment changed, so that the next start read its
/// batches, and took it for one that is not sealed, which come behind the sealed ones. So the log seemed to
/// begin behind it, and receivers passed it over.
#[test]
fn a_segment_that_is_sealed_anew_stands_in_its_old_place() {
    let (disk, all) = store(Left::Closed);
    let (segment, length) = segments(&disk).remove(0);
    for boot in [CLEAN, KILLED, REBOOTED] {
        let disk = disk.fork();
        disk.tamper(&segment, |bytes| bytes[length - 1] ^= 1);
        let opened = Bench::open(disk, boot, &small());
        let (mut bench, recovered) = opened.expect("its batches are sound");
        assert_eq!(recovered.start, Offset(0), "{boot:?}");
        bench.settle();
        for from in 0..all.len() {
            let found = bench.read(Offset(all[from].0), 300).expect("sound");
            assert_eq!(found, all[from..], "{boot:?}, from {from}");
        }
    }
}
