//! Delayed messages come when they are due: never early, never lost, never twice, whatever the
//! disk does. Everything runs on the simulated disk; a failure prints its seed.

mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use mq::batch::{Framing, Record, push_attribute, tags};
use mq::log::{
    AppendError, Boot, CheckBound, Delays, Done, Job, LogError, NewBatch, Options, Taking, check,
    create_delays,
};
use mq::settings::Settings;
use mq::units::{Bytes, Epoch, Monotonic, ProducerId, QueueId, Sequence, SyncPolicy, WallTime};
use sim::bench::{CLEAN, KILLED, REBOOTED, create, name};
use sim::disk::{Fault, Random, SimDisk};

fn id() -> QueueId {
    QueueId::from_bytes(*b"an identity of q")
}

/// An index so small that a few messages make a run, and few runs a merge.
fn small() -> Options {
    Options {
        reserve: Some(Bytes(0)),
        segment_bytes: 2048,
        segment_messages: 1 << 21,
        delay_index: 12,
        delay_runs: 3,
        ..Options::default()
    }
}

/// What the queue's own log holds: each batch of due messages with its annex.
#[derive(Clone, Default)]
struct Main {
    taken: Vec<(Vec<u64>, Vec<u8>)>,
    durable: usize,
}

impl Main {
    fn annex(&self) -> Option<&[u8]> {
        self.taken.last().map(|(_, annex)| annex.as_slice())
    }
}

struct Bench {
    disk: SimDisk,
    delays: Delays<SimDisk>,
    main: Main,
    now: u64,
    jobs: Vec<Job<SimDisk>>,
    done: Vec<Done<SimDisk>>,
}

fn make(disk: &SimDisk, sync: SyncPolicy) {
    create(disk, sync).unwrap();
    let settings = Settings { sync, ..Settings::default() };
    create_delays(disk, &name(), id(), &settings, WallTime(1)).unwrap();
}

fn open(disk: &SimDisk, boot: Boot, main: &Main) -> Result<Delays<SimDisk>, LogError> {
    let storage = Arc::new(disk.clone());
    let delays = Delays::open(storage, &name(), id(), boot, &small(), main.annex())?;
    Ok(delays.expect("the queue has delayed messages"))
}

fn record(number: u64, due: u64) -> Vec<u8> {
    let mut attributes = Vec::new();
    push_attribute(&mut attributes, tags::NOT_BEFORE, &due.to_le_bytes());
    let filler = "x".repeat((number * 37 % 90) as usize);
    let body = format!("{number} {due} {filler}");
    let mut out = Vec::new();
    Record { attribute_bytes: &attributes, body: body.as_bytes() }.encode(&mut out);
    out
}

/// The numbers of the messages in a payload, with their due times.
fn numbers(payload: &[u8]) -> Vec<(u64, u64)> {
    mq::batch::bodies(Framing::Records, payload)
        .map(|body| {
            let text = std::str::from_utf8(body).unwrap();
            let mut words = text.split(' ').map(|word| word.parse().unwrap_or(0));
            (words.next().unwrap(), words.next().unwrap())
        })
        .collect()
}

impl Bench {
    fn new(sync: SyncPolicy) -> Bench {
        let disk = SimDisk::new(1);
        make(&disk, sync);
        Bench::open(disk, CLEAN, Main::default(), 1_000).unwrap()
    }

    fn open(disk: SimDisk, boot: Boot, main: Main, now: u64) -> Result<Bench, LogError> {
        let delays = open(&disk, boot, &main)?;
        Ok(Bench { disk, delays, main, now, jobs: Vec::new(), done: Vec::new() })
    }

    fn try_append(&mut self, messages: &[(u64, u64)]) -> Result<(), AppendError> {
        let payload: Vec<u8> = messages.iter().flat_map(|(n, due)| record(*n, *due)).collect();
        let batch = NewBatch {
            framing: Framing::Records,
            flags: 0,
            count: messages.len() as u32,
            payload: &payload,
            producer: ProducerId(7),
            sequence: Sequence(messages.last().unwrap().0),
            epoch: Epoch(1),
        };
        self.delays.append(Monotonic(self.now), WallTime(self.now), &batch).map(|_| ())
    }

    fn append(&mut self, messages: &[(u64, u64)]) {
        loop {
            match self.try_append(messages) {
                Ok(()) => return,
                Err(AppendError::NotYet) => assert!(self.work(), "nothing to wait for"),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn collect(&mut self) {
        while let Some(job) = self.delays.next_job(Monotonic(self.now)) {
            self.jobs.push(job);
        }
    }

    /// Runs one job, the first; false when there is none.
    fn work(&mut self) -> bool {
        self.collect();
        if self.jobs.is_empty() {
            return false;
        }
        let done = self.jobs.remove(0).run();
        self.delays.complete(Monotonic(self.now), done);
        true
    }

    fn settle(&mut self) {
        while self.work() {}
    }

    /// One batch of what is due goes into the queue. False when nothing is.
    fn take(&mut self) -> Result<bool, LogError> {
        match self.delays.take(WallTime(self.now))? {
            Taking::Nothing => Ok(false),
            Taking::Cold(job) => {
                self.jobs.push(job);
                Ok(self.work())
            }
            Taking::Batch(batch) => {
                let found = numbers(&batch.payload);
                assert_eq!(found.len(), batch.count as usize);
                for (number, due) in &found {
                    assert!(*due <= self.now, "message {number} comes early");
                }
                let found = found.into_iter().map(|(number, _)| number).collect();
                self.main.taken.push((found, self.delays.annex()));
                self.delays.appended();
                Ok(true)
            }
        }
    }

    fn commit(&mut self) {
        if self.delays.is_in_flight() {
            self.main.durable = self.main.taken.len();
            self.delays.committed();
        }
    }

    /// Everything that is due goes into the queue.
    fn drain(&mut self) {
        loop {
            let took = self.take().unwrap();
            self.commit();
            let worked = self.work();
            if !took && !worked {
                return;
            }
        }
    }

    fn all_taken(&self) -> Vec<u64> {
        self.main.taken.iter().flat_map(|(numbers, _)| numbers.iter().copied()).collect()
    }

    /// The server's life ends; how much of the queue's own log is left is the disk's choice.
    fn fall(self, boot: Boot, random: &mut Random) -> Result<Bench, LogError> {
        let Bench { disk, mut main, now, .. } = self;
        if boot == KILLED {
            disk.revive();
        } else {
            disk.crash();
            let more = random.below((main.taken.len() - main.durable) as u64 + 1);
            main.taken.truncate(main.durable + more as usize);
        }
        main.durable = main.taken.len();
        Bench::open(disk, boot, main, now)
    }
}

#[test]
fn delayed_messages_come_in_the_order_of_their_times() {
    let mut bench = Bench::new(SyncPolicy::Always);
    let mut all = Vec::new();
    for number in 0..200u64 {
        let due = 2_000 + number * 7919 % 1000;
        bench.append(&[(number, due)]);
        all.push((due, number));
        bench.settle();
    }
    bench.drain();
    assert_eq!(bench.delays.len().0, 200);
    assert!(bench.all_taken().is_empty(), "nothing is due");
    for now in 2_000..3_000 {
        bench.now = now;
        bench.drain();
    }
    all.sort_unstable();
    let expected: Vec<u64> = all.into_iter().map(|(_, number)| number).collect();
    assert_eq!(bench.all_taken(), expected);
    assert!(bench.delays.is_empty());
    let files: Vec<_> = bench.disk.files().into_iter().map(|(path, _)| path).collect();
    let runs = files.iter().filter(|path| path.to_string_lossy().contains("run-")).count();
    assert_eq!(runs, 0, "what was used up is removed: {files:?}");
    let segments = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == "seg");
    let hidden = files.iter().filter(|path| path.starts_with("queues/q/delayed"));
    assert!(hidden.filter(segments).count() <= 2, "{files:?}");
}

#[test]
fn a_stored_message_that_is_too_large_is_damage_and_never_taken() {
    let mut bench = Bench::new(SyncPolicy::Always);
    bench.append(&[(1, 2_000)]);
    let mut attributes = Vec::new();
    push_attribute(&mut attributes, tags::NOT_BEFORE, &3_000u64.to_le_bytes());
    let body = vec![b'x'; mq::limits::DELAYED_RECORD_BYTES_MAX];
    let mut payload = Vec::new();
    Record { attribute_bytes: &attributes, body: &body }.encode(&mut payload);
    let batch = NewBatch {
        framing: Framing::Records,
        flags: 0,
        count: 1,
        payload: &payload,
        producer: ProducerId(7),
        sequence: Sequence(2),
        epoch: Epoch(1),
    };
    while let Err(error) = bench.delays.append(Monotonic(1_000), WallTime(1_000), &batch) {
        assert!(matches!(error, AppendError::NotYet), "{error}");
        assert!(bench.work(), "nothing to wait for");
    }
    bench.settle();
    bench.now = 4_000;
    while !bench.take().unwrap() {
        bench.settle();
    }
    bench.commit();
    assert_eq!(bench.all_taken(), [1]);
    assert!(matches!(bench.take(), Err(LogError::Corrupt(_))));
    assert!(matches!(bench.take(), Err(LogError::Corrupt(_))));
    assert_eq!(bench.delays.next_due(), None);
}

#[test]
fn an_undelayed_crowd_does_not_wait_for_a_distant_one() {
    let mut bench = Bench::new(SyncPolicy::Always);
    bench.append(&[(0, 1_000_000)]);
    for number in 1..300u64 {
        bench.append(&[(number, bench.now + 1)]);
        bench.settle();
        bench.now += 2;
        bench.drain();
    }
    assert_eq!(bench.all_taken(), (1..300).collect::<Vec<_>>());
    assert_eq!(bench.delays.len().0, 1);
    assert!(bench.delays.bytes().0 < 6 * 2048, "the hidden log is dropped behind it");
    bench.now = 1_000_000;
    bench.drain();
    assert_eq!(bench.all_taken().last(), Some(&0));
}

#[test]
fn a_clock_that_is_set_back_loses_and_repeats_nothing() {
    let mut bench = Bench::new(SyncPolicy::Always);
    let mut random = Random(3);
    let mut number = 0;
    for round in 0..60u64 {
        bench.now = 1_000_000 - round * 1_000;
        for _ in 0..3 {
            bench.append(&[(number, bench.now + 1 + random.below(40))]);
            number += 1;
        }
        bench.settle();
        bench.now += 20;
        bench.drain();
        bench = bench.fall(KILLED, &mut random).unwrap();
    }
    bench.now = 2_000_000;
    bench.drain();
    let mut taken = bench.all_taken();
    taken.sort_unstable();
    assert_eq!(taken, (0..number).collect::<Vec<_>>());
}

#[test]
fn purged_messages_stay_gone_and_later_ones_come() {
    let mut bench = Bench::new(SyncPolicy::Always);
    for number in 0..50 {
        bench.append(&[(number, 5_000)]);
        bench.settle();
    }
    assert_eq!(bench.delays.purge().0, 50);
    bench.append(&[(50, 5_000)]);
    bench.drain();
    let mut bench = bench.fall(REBOOTED, &mut Random(1)).unwrap();
    bench.now = 6_000;
    bench.drain();
    assert_eq!(bench.all_taken(), [50]);
}

#[test]
fn every_flipped_bit_of_a_run_is_found_and_nothing_is_deleted() {
    let mut bench = Bench::new(SyncPolicy::Always);
    for number in 0..14 {
        bench.append(&[(number, 5_000 + number)]);
        bench.settle();
    }
    bench.drain();
    let main = bench.main.clone();
    let disk = bench.disk.fork();
    drop(bench);
    let runs: Vec<_> = disk.files().into_iter().filter(|(p, _)| is_run(p)).collect();
    let [(path, length)] = &runs[..] else { panic!("one run: {runs:?}") };
    for bit in (0..length * 8).step_by(3) {
        let bad = disk.fork();
        bad.tamper(path, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        let report = check(&bad, &name(), CheckBound::All, &mut |_| {}).unwrap();
        let blank = [12..16, 40..60].iter().any(|range| range.contains(&(bit / 8)));
        assert!(!report.findings.is_empty() || blank, "check overlooks bit {bit}");
        let found = Bench::open(bad.clone(), KILLED, main.clone(), 9_000).and_then(|mut bench| {
            while bench.take()? {
                bench.commit();
                bench.settle();
            }
            assert_eq!(bench.delays.len().0, 0);
            Ok(())
        });
        assert!(matches!(found, Err(LogError::Corrupt(_))), "bit {bit}: {found:?}");
        assert!(bad.files().iter().any(|(p, n)| (p, n) == (path, length)), "it is still there");
    }
}

fn is_run(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run-"))
}

#[test]
fn a_missing_run_is_reported() {
    let mut bench = Bench::new(SyncPolicy::Always);
    for number in 0..14 {
        bench.append(&[(number, 5_000 + number)]);
        bench.settle();
    }
    bench.drain();
    let (disk, main) = (bench.disk.clone(), bench.main.clone());
    let (path, _) = disk.files().into_iter().find(|(p, _)| is_run(p)).unwrap();
    mq::log::storage::Storage::remove_file(&disk, &path).unwrap();
    drop(bench);
    assert!(matches!(open(&disk, KILLED, &main), Err(LogError::Corrupt(_))));
}

/// What is known of the messages in one history.
#[derive(Default)]
struct Model {
    /// Appended: whether it is known to be durable.
    sent: BTreeMap<u64, bool>,
    /// In the queue's own log, durably.
    there: BTreeSet<u64>,
    next: u64,
}

/// One history: appends, time, takes and jobs in any order, with kills, power losses and faults.
fn life(seed: u64, sync: SyncPolicy, steps: u64) -> (u64, u64) {
    let mut random = Random(seed);
    let disk = SimDisk::new(random.next());
    make(&disk, sync);
    let mut bench = Bench::open(disk, CLEAN, Main::default(), 1_000).unwrap();
    let mut model = Model { next: 1, ..Model::default() };
    let mut waiting: Vec<(u64, Vec<u64>)> = Vec::new();
    let mut falls = 0;
    for _ in 0..steps {
        match random.below(20) {
            0..6 => {
                let count = 1 + random.below(4);
                let messages: Vec<(u64, u64)> = (model.next..model.next + count)
                    .map(|n| (n, bench.now + random.below(4000)))
                    .collect();
                if bench.try_append(&messages).is_ok() {
                    let needs = bench.delays.log().written_bytes().0;
                    waiting.push((needs, messages.iter().map(|(n, _)| *n).collect()));
                    model.sent.extend(messages.iter().map(|(n, _)| (*n, false)));
                    model.next += count;
                } else if bench.disk.faulted().is_some() {
                    // Whether it stands there shows after the fall that follows.
                    model.sent.extend(messages.iter().map(|(n, _)| (*n, false)));
                    model.next += count;
                }
            }
            6..10 => {
                let _ = bench.take();
            }
            10..12 => bench.commit(),
            12..15 => bench.now += random.below(800),
            15..19 => {
                bench.collect();
                if !bench.jobs.is_empty() {
                    if random.one_in(30) {
                        bench.disk.fail_in(1 + random.below(6), Fault::Kill);
                    }
                    let which = random.below(bench.jobs.len() as u64) as usize;
                    let done = bench.jobs.swap_remove(which).run();
                    bench.done.push(done);
                }
                if random.one_in(2) && !bench.done.is_empty() && !bench.disk.is_killed() {
                    let done = bench.done.swap_remove(0);
                    bench.delays.complete(Monotonic(bench.now), done);
                }
            }
            _ => {
                if random.one_in(300) {
                    bench.disk.fail_in(1 + random.below(20), Fault::Kill);
                }
            }
        }
        let durable = bench.delays.log().durable_bytes().0;
        if !bench.disk.is_killed() {
            for (_, numbers) in waiting.extract_if(.., |(needs, _)| *needs <= durable) {
                model.sent.extend(numbers.into_iter().map(|n| (n, true)));
            }
        }
        if bench.disk.is_killed() || random.one_in(150) {
            falls += 1;
            let boot = if random.one_in(2) { KILLED } else { REBOOTED };
            let durable: Vec<u64> = bench.main.taken[..bench.main.durable]
                .iter()
                .flat_map(|(numbers, _)| numbers.clone())
                .collect();
            model.there.extend(durable);
            waiting.clear();
            bench = bench.fall(boot, &mut random).unwrap_or_else(|e| panic!("{boot:?}: {e}"));
            let found = bench.all_taken();
            for number in &model.there {
                assert!(found.contains(number), "{number} was there");
            }
        }
    }
    // A fault that was planted and not met must not strike now.
    bench = bench.fall(KILLED, &mut random).unwrap();
    bench.now += 10_000;
    bench.drain();
    let taken = bench.all_taken();
    let once: BTreeSet<u64> = taken.iter().copied().collect();
    assert_eq!(once.len(), taken.len(), "a message comes twice: {taken:?}");
    for (number, durable) in &model.sent {
        assert!(once.contains(number) || !durable, "{number} was confirmed and is lost");
    }
    assert!(bench.delays.is_empty(), "{} are left", bench.delays.len());
    let report = check(&bench.disk, &name(), CheckBound::All, &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
    (taken.len() as u64, falls)
}

#[test]
fn histories_with_kills_and_power_losses_lose_and_repeat_nothing() {
    let seeds = std::env::var("MQ_SIM_SEEDS").map_or(150, |n| n.parse().expect("a number"));
    let one = std::env::var("MQ_SIM_SEED").ok().map(|n| n.parse::<u64>().expect("a number"));
    let (mut messages, mut falls) = (0, 0);
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        let sync = if seed % 3 == 2 { SyncPolicy::Never } else { SyncPolicy::Always };
        let result = std::panic::catch_unwind(|| life(seed, sync, 1_500));
        let (taken, fell) = result.unwrap_or_else(|panic| {
            eprintln!("seed {seed} fails; again with MQ_SIM_SEED={seed}");
            std::panic::resume_unwind(panic)
        });
        (messages, falls) = (messages + taken, falls + fell);
    }
    println!("{messages} messages, {falls} falls");
    assert!(one.is_some() || falls > seeds, "the histories are too calm");
}

#[test]
fn a_crash_at_every_step_loses_and_repeats_nothing() {
    // The same course each time, broken off at one call of the disk after the other.
    let course = |bench: &mut Bench| -> Vec<u64> {
        let mut durable = Vec::new();
        for number in 0..60u64 {
            let due = 2_000 + number * 53 % 97 * 10;
            if bench.try_append(&[(number, due)]).is_err() && bench.disk.is_killed() {
                break;
            }
            while bench.work() && !bench.disk.is_killed() {}
            if bench.disk.is_killed() {
                break;
            }
            durable.push(number);
            if number % 9 == 8 {
                bench.now = bench.now.max(2_000) + 60;
                let took = bench.take().is_ok_and(|took| took);
                if took && !bench.disk.is_killed() {
                    bench.commit();
                }
            }
        }
        durable
    };
    let mut calls = 0;
    for at in 1.. {
        for (boot, seed) in [(KILLED, 0), (REBOOTED, 1), (REBOOTED, 2)] {
            let mut bench = Bench::new(SyncPolicy::Always);
            bench.disk.reseed(at * 7 + seed);
            bench.disk.fail_in(at, Fault::Kill);
            let durable = course(&mut bench);
            let hit = bench.disk.is_killed();
            let mut bench = bench
                .fall(boot, &mut Random(at + seed))
                .unwrap_or_else(|error| panic!("step {at}, {boot:?}: {error}"));
            bench.now = 10_000;
            bench.drain();
            let taken = bench.all_taken();
            let once: BTreeSet<u64> = taken.iter().copied().collect();
            assert_eq!(once.len(), taken.len(), "step {at}: twice");
            for number in &durable {
                assert!(once.contains(number), "step {at}, {boot:?}: {number} is lost");
            }
            if !hit {
                calls = at;
            }
        }
        if calls > 0 {
            break;
        }
    }
    assert!(calls > 200, "the course is too short: {calls} calls");
}

/// G11: every bit and every truncation of everything that the delayed messages have on the disk:
/// the log in which they stand first, runs, metadata. An error, and then nothing is deleted; or
/// every message, once. A file that is cut short may take its end along.
#[test]
fn every_bit_and_truncation_of_the_delayed_store_is_an_error_or_changes_nothing() {
    let mut bench = Bench::new(SyncPolicy::Always);
    for number in 0..20 {
        bench.append(&[(number, 5_000_000 + number)]);
        bench.settle();
    }
    // The log goes idle, and says so; some stay in it alone.
    bench.now = 2_500_000;
    bench.settle();
    let (main, disk) = (bench.main.clone(), bench.disk.fork());
    drop(bench);
    let drained = |disk: SimDisk, boot: Boot| -> Result<Vec<u64>, LogError> {
        let mut bench = Bench::open(disk, boot, main.clone(), 9_000_000)?;
        while bench.take()? {
            bench.commit();
            bench.settle();
        }
        Ok(bench.all_taken())
    };
    let all: Vec<u64> = (0..20).collect();
    assert_eq!(drained(disk.fork(), KILLED).unwrap(), all);
    let files = disk.files().into_iter().filter(|(path, _)| path.starts_with("queues/q/delayed"));
    let mut looked_at = 0;
    for (path, length) in files {
        let step = if cfg!(debug_assertions) { 7 } else { 1 };
        let bits = (0..length * 8).step_by(step).map(|bit| (bit, false));
        for (at, is_cut) in bits.chain((0..length).step_by(step).map(|short| (short, true))) {
            looked_at += 1;
            for boot in [KILLED, REBOOTED] {
                let bad = disk.fork();
                bad.tamper(&path, |bytes| match is_cut {
                    true => bytes.truncate(at),
                    false => bytes[at / 8] ^= 1 << (at % 8),
                });
                let what = format!("{} {at} {is_cut} {boot:?}", path.display());
                match drained(bad.clone(), boot) {
                    // Where whole batches are cut off the end, there is nothing left to tell.
                    Ok(taken) if is_cut => assert!(all.starts_with(&taken), "{what}: {taken:?}"),
                    Ok(taken) => assert_eq!(taken, all, "{what}"),
                    Err(LogError::Io { source, .. }) => panic!("{what}: {source}"),
                    Err(_) => {
                        let is_there = bad.files().iter().any(|(found, _)| *found == path);
                        assert!(is_there, "{what}: it was deleted");
                    }
                }
            }
        }
    }
    assert!(looked_at > 1_000, "only {looked_at} changes");
}

/// G1, G10, G12: each call of the disk fails once, in both ways. What was durable comes once.
#[test]
fn any_call_may_fail_and_what_was_durable_comes_once() {
    for fault in [Fault::Eio, Fault::Enospc] {
        for at in 1.. {
            let mut bench = Bench::new(SyncPolicy::Always);
            bench.disk.reseed(at);
            bench.disk.fail_in(at, fault);
            let mut durable = Vec::new();
            for number in 0..50u64 {
                let due = 2_000 + number * 53 % 97 * 10;
                let appended = bench.try_append(&[(number, due)]).is_ok();
                while bench.work() {}
                let log = bench.delays.log();
                if appended && log.failed().is_none() && log.durable_bytes() == log.written_bytes()
                {
                    durable.push(number);
                }
                if number % 9 == 8 {
                    bench.now = bench.now.max(2_000) + 60;
                    match bench.take() {
                        Ok(true) if bench.delays.log().failed().is_none() => bench.commit(),
                        Ok(_) => {}
                        // The queue stands still then, until a start.
                        Err(_) => break,
                    }
                }
            }
            let what = format!("call {at} ({:?}, {fault:?})", bench.disk.faulted());
            let is_hit = bench.disk.faulted().is_some();
            let boot = if at % 2 == 0 { KILLED } else { REBOOTED };
            let mut bench = bench
                .fall(boot, &mut Random(at))
                .unwrap_or_else(|error| panic!("{what}, {boot:?}: {error}"));
            bench.now = 10_000;
            bench.drain();
            let taken = bench.all_taken();
            let once: BTreeSet<u64> = taken.iter().copied().collect();
            assert_eq!(once.len(), taken.len(), "{what}: twice");
            for number in &durable {
                assert!(once.contains(number), "{what}, {boot:?}: {number} is lost");
            }
            if !is_hit {
                assert!(at > 150, "the course is too short: {at} calls");
                break;
            }
        }
    }
}

/// The simulator found it: a run was written, and could not be read when it was taken into use, to pass
/// over what had been taken meanwhile. It was dropped, and what was in it forgotten with the next commit.
#[test]
fn a_run_that_cannot_be_read_when_it_is_taken_into_use_loses_nothing() {
    let mut bench = Bench::new(SyncPolicy::Always);
    for number in 1..=12 {
        let due = if number <= 3 { 1_010 } else { 5_000 };
        bench.append(&[(number, due)]);
        if number < 12 {
            bench.settle();
        }
    }
    // It becomes durable; then the index is full.
    assert!(bench.work());
    bench.collect();
    let flush = bench.jobs.remove(0);
    assert!(bench.jobs.is_empty(), "nothing else is to be done");
    bench.now = 1_010;
    assert!(bench.take().unwrap(), "three are due, while the run is written");
    bench.commit();
    assert_eq!(bench.all_taken(), [1, 2, 3]);
    let done = flush.run();
    bench.disk.fail_in(1, Fault::Eio);
    let progress = bench.delays.complete(Monotonic(bench.now), done);
    assert!(bench.disk.faulted().is_some(), "it was not read");
    assert!(progress.log.failed.is_some(), "the server goes on");
    assert_eq!(bench.delays.len().0, 9);
    let mut bench = bench.fall(KILLED, &mut Random(1)).unwrap();
    bench.now = 5_000;
    bench.drain();
    let mut all = bench.all_taken();
    all.sort_unstable();
    assert_eq!(all, (1..=12).collect::<Vec<u64>>());
}
