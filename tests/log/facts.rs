//! What a log knows beside its messages survives kills and power losses, exactly: producers'
//! annexes, ids, keys, attempts, leases, epochs. And what it selects, seeks and gives up is what it
//! says.
//!
//! Everything runs on the simulated disk.

use crate::sim::bench::{Bench, CLEAN, KILLED, REBOOTED, create_with, small};
use crate::sim::disk::{Fault, SimDisk};
use mq::batch::{Framing, Record, flags, push_attribute, tags};
use mq::log::{
    AppendError, Boot, Found, GroupPosition, InternalBatch, NewBatch, NewChain, Options, Select,
    Sought,
};
use mq::settings::{IdWindow, Settings};
use mq::units::{
    Count, Ending, Epoch, Micros, Name, Offset, OffsetRange, ProducerId, Sequence, SyncPolicy,
    WallTime,
};

pub fn range(start: u64, end: u64) -> OffsetRange {
    OffsetRange::new(Offset(start), Offset(end))
}

pub fn bench_with(settings: &Settings, options: &Options) -> Bench {
    let disk = SimDisk::new(1);
    create_with(&disk, settings).unwrap();
    Bench::open(disk, CLEAN, options).unwrap().0
}

/// The same queue in its next life.
fn again(mut bench: Bench, boot: Boot, options: &Options) -> Bench {
    let disk = bench.disk.clone();
    if boot == CLEAN {
        bench.close();
    }
    drop(bench);
    if boot == REBOOTED {
        disk.crash();
    }
    Bench::open(disk, boot, options).unwrap().0
}

const BOOTS: [Boot; 3] = [KILLED, REBOOTED, CLEAN];

/// A record with one attribute.
fn record(out: &mut Vec<u8>, tag: u8, value: &[u8], body: &[u8]) {
    let mut attributes = Vec::new();
    push_attribute(&mut attributes, tag, value);
    Record { attribute_bytes: &attributes, body }.encode(out);
}

/// Appends records at this time, running whatever jobs that takes.
fn append_records(
    bench: &mut Bench,
    flags: u16,
    records: &[u8],
    count: u32,
    wall: u64,
) -> OffsetRange {
    let batch = NewBatch {
        framing: Framing::Records,
        flags,
        count,
        payload: records,
        producer: ProducerId(0),
        sequence: Sequence(0),
        epoch: Epoch(0),
    };
    loop {
        match bench.log.append(bench.now, WallTime(wall), &batch) {
            Ok(range) => {
                bench.settle();
                return range;
            }
            Err(AppendError::NotYet) => bench.settle(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn append_one(bench: &mut Bench, tag: u8, value: &[u8], wall: u64) -> OffsetRange {
    let mut records = Vec::new();
    record(&mut records, tag, value, b"some body of a message that fills a segment in time");
    append_records(bench, 0, &records, 1, wall)
}

fn knows(bench: &mut Bench, id: &str, wall: u64) -> bool {
    let id = bench.log.unique().digest(id.as_bytes());
    bench.log.unique().knows_id(id, WallTime(wall))
}

#[test]
fn annex_survives_any_end() {
    let mut bench = bench_with(&Settings::default(), &small());
    let producer = ProducerId(77);
    let mut expected = None;
    for round in 0..9u64 {
        let opened = loop {
            match bench.log.open_producer(bench.now, WallTime(1), producer) {
                Err(AppendError::NotYet) => bench.settle(),
                other => break other.unwrap(),
            }
        };
        assert_eq!(opened.epoch, Epoch(round as u32 + 1));
        assert_eq!(opened.annex, expected, "round {round}");
        // Sometimes behind a roll and the snapshot that goes with it, sometimes not.
        for n in 0..round * 2 {
            let annex = format!("commit {round} {n}").into_bytes();
            let count = (n % 3) as u32;
            let internal = InternalBatch {
                producer,
                epoch: opened.epoch,
                sequence: Sequence(
                    bench.log.producers().last(producer).unwrap().1.0 + u64::from(count),
                ),
                annex: &annex,
                framing: Framing::Delimited(b'\n'),
                flags: 0,
                count,
                messages: &b"0123456789012345678901234567890123456789\n".repeat(count as usize),
            };
            let committed = loop {
                match bench.log.append_internal(bench.now, WallTime(1), &internal) {
                    Err(AppendError::NotYet) => bench.settle(),
                    other => break other.unwrap(),
                }
            };
            bench.settle();
            assert!(bench.log.durable_bytes() >= committed.mark);
            expected = Some(annex);
        }
        bench = again(bench, BOOTS[round as usize % 3], &small());
        assert_eq!(bench.log.producers().annex(producer), expected.as_deref(), "round {round}");
    }
    assert!(bench.log.segments() > 3);
    let all = bench.read(Offset(0), 1 << 20).unwrap();
    assert!(all.iter().all(|(_, text)| text.len() == 40), "an annex is no message");
}

#[test]
fn annex_that_was_not_durable_goes_with_its_batch() {
    let mut bench = bench_with(&Settings::default(), &small());
    let producer = ProducerId(5);
    bench.log.open_producer(bench.now, WallTime(1), producer).unwrap();
    bench.settle();
    let internal = InternalBatch {
        producer,
        epoch: Epoch(1),
        sequence: Sequence(1),
        annex: b"moved",
        framing: Framing::Delimited(b'\n'),
        flags: 0,
        count: 1,
        messages: b"x\n",
    };
    bench.log.append_internal(bench.now, WallTime(1), &internal).unwrap();
    let mut bench = again(bench, REBOOTED, &small());
    let there = bench.log.written_end() == Offset(1);
    assert_eq!(bench.log.producers().annex(producer).is_some(), there, "both or none");
}

#[test]
fn ids_are_known_exactly_after_any_end() {
    let settings = Settings { unique_ids: Some(IdWindow::Count(25)), ..Settings::default() };
    let mut bench = bench_with(&settings, &small());
    let mut sent = 0u64;
    for round in 0..9 {
        for _ in 0..round * 3 + 1 {
            append_one(&mut bench, tags::ID, format!("id {sent}").as_bytes(), 1);
            sent += 1;
        }
        bench = again(bench, BOOTS[round % 3], &small());
        for n in 0..sent {
            let known = knows(&mut bench, &format!("id {n}"), 1);
            assert_eq!(known, n + 25 >= sent, "round {round}: id {n} of {sent}");
        }
        assert!(!knows(&mut bench, "another", 1));
    }
    assert!(bench.log.segments() > 5);
}

#[test]
fn ids_leave_a_window_of_time() {
    let window = IdWindow::Time(Micros(100));
    let settings = Settings { unique_ids: Some(window), ..Settings::default() };
    let mut bench = bench_with(&settings, &small());
    for n in 0..50u64 {
        append_one(&mut bench, tags::ID, format!("id {n}").as_bytes(), 1000 + n * 10);
    }
    bench = again(bench, KILLED, &small());
    for n in 0..50 {
        assert_eq!(knows(&mut bench, &format!("id {n}"), 1500), 1000 + n * 10 > 1400, "{n}");
    }
    assert!(!knows(&mut bench, "id 49", 2000));
}

#[test]
fn ids_of_large_messages_are_known_too() {
    let settings = Settings {
        unique_ids: Some(IdWindow::Count(25)),
        unique_keys: Some(3),
        ..Settings::default()
    };
    let options = Options { segment_bytes: 8 << 20, ..small() };
    let mut bench = bench_with(&settings, &options);
    for id in ["large one", "large two"] {
        let mut bytes = Vec::new();
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, tags::ID, id.as_bytes());
        push_attribute(&mut attributes, tags::KEY, b"a key");
        Record { attribute_bytes: &attributes, body: &vec![b'x'; 3 << 20] }.encode(&mut bytes);
        let mut staging = bench.log.stage_begin().unwrap();
        bytes.chunks(1 << 20).for_each(|part| staging.push(part).unwrap());
        bench.log.append_chain(WallTime(1), &staging, &NewChain::default()).unwrap();
        bench.settle();
        assert!(knows(&mut bench, id, 1));
    }
    for boot in BOOTS {
        bench = again(bench, boot, &options);
        assert!(knows(&mut bench, "large one", 1) && knows(&mut bench, "large two", 1));
        assert!(!knows(&mut bench, "x", 1));
        let key = bench.log.unique().digest(b"a key");
        assert!(bench.log.unique().is_pending(key, |offset| offset == Offset(0)));
    }
}

#[test]
fn keys_are_known_exactly_after_any_end() {
    let settings = Settings { unique_keys: Some(1000), ..Settings::default() };
    let mut bench = bench_with(&settings, &small());
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    bench.settle();
    let mut settled = Vec::new();
    let mut sent = 0u64;
    for round in 0..9 {
        let group = bench.log.find_group(&Name::new("g").unwrap()).unwrap_or(group);
        for _ in 0..round * 3 + 1 {
            append_one(&mut bench, tags::KEY, format!("key {sent}").as_bytes(), 1);
            if sent.is_multiple_of(3) {
                let it = range(sent, sent + 1);
                settled.push(it);
                let state = || GroupPosition { settled: settled.clone(), ..Default::default() };
                bench.log.settled(group, &[it], Ending::Acked, it.end, state).unwrap();
            }
            sent += 1;
        }
        bench.wait(Micros::from_secs(2));
        bench = again(bench, BOOTS[round % 3], &small());
        for n in 0..sent {
            let key = bench.log.unique().digest(format!("key {n}").as_bytes());
            let pending = bench.log.unique().is_pending(key, |_| false);
            assert_eq!(pending, n % 3 != 0, "round {round}: key {n} of {sent}");
        }
    }
}

#[test]
fn tables_follow_the_settings_and_survive_their_change() {
    let mut bench = bench_with(&Settings::default(), &small());
    append_one(&mut bench, tags::ID, b"before", 1);
    let settings = Settings { unique_ids: Some(IdWindow::Count(25)), ..Settings::default() };
    bench.log.change_settings(&settings);
    append_one(&mut bench, tags::ID, b"while", 1);
    bench.settle();
    assert_eq!(bench.log.settings(), &settings);
    append_one(&mut bench, tags::ID, b"after", 1);
    bench = again(bench, KILLED, &small());
    assert!(knows(&mut bench, "while", 1) && knows(&mut bench, "after", 1));
    bench.log.change_settings(&Settings::default());
    bench.settle();
    assert!(!bench.log.unique().has_ids());
}

/// What a receiver of this group gets at this time, and what it does not: the kind of each run.
fn selected(bench: &mut Bench, select: &Select<'_>, max_bytes: usize) -> Vec<(char, u64)> {
    let (mut at, mut runs) = (Offset(0), Vec::new());
    let end = bench.log.visible_end();
    while at < end {
        let found = bench.log.locate(at, end, max_bytes, select).unwrap();
        let kind = match &found {
            Found::Expired { .. } => 'e',
            Found::NotOurs { .. } => 'n',
            Found::Whole { .. } => 'w',
            Found::Cut { .. } => 'c',
            Found::Chain { .. } => 'l',
            Found::Cold { .. } => panic!("nothing is cold"),
        };
        let mut messages = Vec::new();
        let behind = bench.take(found, &mut messages).unwrap().unwrap();
        if "cwl".contains(kind) {
            assert_eq!(messages.len() as u64, behind.0 - at.0);
        }
        runs.push((kind, behind.0 - at.0));
        at = behind;
    }
    runs
}

#[test]
fn what_expired_or_is_for_another_is_never_found() {
    let options = Options { segment_bytes: 8 << 20, ..small() };
    let mut bench = bench_with(&Settings::default(), &options);
    let at = |n: u64| n.to_le_bytes();
    bench.append(&["plain", "lines"]);
    let mut records = Vec::new();
    record(&mut records, tags::KEY, b"k", b"for all");
    record(&mut records, tags::EXPIRES, &at(50), b"until 50");
    record(&mut records, tags::EXPIRES, &at(60), b"until 60");
    record(&mut records, tags::ONLY_GROUP, b"h", b"for h");
    append_records(&mut bench, flags::SELECTIVE, &records, 4, 2);
    bench.append(&["more"]);
    let mut large = Vec::new();
    record(&mut large, tags::EXPIRES, &at(70), &vec![b'x'; 2 << 20]);
    let mut staging = bench.log.stage_begin().unwrap();
    large.chunks(1 << 20).for_each(|part| staging.push(part).unwrap());
    let chain = NewChain { flags: flags::SELECTIVE, ..NewChain::default() };
    bench.settle();
    bench.log.append_chain(WallTime(3), &staging, &chain).unwrap();
    bench.settle();
    bench = again(bench, KILLED, &options);
    let (g, h) = (Name::new("g").unwrap(), Name::new("h").unwrap());
    let select = |wall, group| Select { wall: Some(WallTime(wall)), group: Some(group) };
    let runs = |bench: &mut Bench, wall, group| selected(bench, &select(wall, group), 1 << 20);
    assert_eq!(runs(&mut bench, 10, &h), [('w', 2), ('c', 4), ('w', 1), ('l', 1)]);
    assert_eq!(runs(&mut bench, 10, &g), [('w', 2), ('c', 3), ('n', 1), ('w', 1), ('l', 1)]);
    let later = [('w', 2), ('c', 1), ('e', 1), ('c', 2), ('w', 1), ('l', 1)];
    assert_eq!(runs(&mut bench, 50, &h), later);
    let all = [('w', 2), ('c', 1), ('e', 2), ('n', 1), ('w', 1), ('e', 1)];
    assert_eq!(runs(&mut bench, 70, &g), all);
    assert_eq!(selected(&mut bench, &Select::default(), 1 << 20), [('w', 7), ('l', 1)]);
}

#[test]
fn times_and_counts_are_found() {
    for options in [small(), Options { segment_bytes: 1 << 20, ..small() }] {
        let mut bench = bench_with(&Settings::default(), &options);
        let mut stored = Vec::new();
        for n in 0..60u64 {
            let lines: Vec<String> =
                (0..=n % 3).map(|m| format!("{n} {m} {}", "y".repeat(40))).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            // Steps of different lengths, and some batches of the same time.
            bench.now.0 += 10 * (n % 4);
            let range = bench.append(&lines);
            (range.start.0..range.end.0).for_each(|offset| stored.push((offset, bench.now.0)));
            bench.settle();
        }
        bench = again(bench, KILLED, &options);
        let end = bench.log.visible_end();
        let last = stored.last().unwrap().1;
        for wall in 0..last + 20 {
            let expected = stored.iter().find(|(_, time)| *time >= wall).map_or(end.0, |s| s.0);
            match bench.log.offset_at_time(WallTime(wall)).unwrap() {
                Sought::At(offset) => assert_eq!(offset.0, expected, "time {wall}"),
                Sought::Cold { .. } => panic!("nothing is cold"),
            }
        }
        for count in 0..end.0 + 5 {
            let expected = end.0.saturating_sub(count);
            assert_eq!(bench.log.offset_before_end(Count(count)), Offset(expected));
        }
    }
}

/// Gives up what is overdue, as the server does; says from where on the log keeps messages.
fn retain(bench: &mut Bench, wall: u64) -> u64 {
    bench.log.roll_for_retention(WallTime(wall));
    bench.settle();
    if let Some(overdue) = bench.log.overdue(WallTime(wall)) {
        for (number, extent) in bench.log.segment_extents(&[range(0, overdue.0)]) {
            assert!(extent.end <= overdue, "whole segments go");
            bench.log.drop_segment(number);
        }
        bench.settle();
    }
    bench.log.start().0
}

#[test]
fn retention_keeps_what_it_says_and_little_more() {
    use mq::settings::Retention;
    let log = Settings { retain: Retention::Log, ..Settings::default() };
    let options = Options { segment_bytes: 64 << 20, ..small() };
    let line = "z".repeat(999);
    // Each message has about a thousand bytes; each comes a second after the one before.
    let cases = [
        (Settings { max_messages: Some(1000), ..log.clone() }, 1000, 1000 / 8 + 70),
        (Settings { max_bytes: Some(1 << 20), ..log.clone() }, 980, 980 / 8 + 70),
        (Settings { max_age: Some(Micros::from_secs(500)), ..log.clone() }, 499, 500 / 8 + 2),
        (Settings { max_messages: Some(10), ..log.clone() }, 10, 140),
        (log.clone(), 3000, 0),
    ];
    for (settings, least, more) in cases {
        let mut bench = bench_with(&settings, &options);
        for n in 1..=1600u64 {
            bench.now = mq::units::Monotonic(n * 1_000_000);
            while bench.try_append(std::slice::from_ref(&line)) == Err(AppendError::NotYet) {
                bench.settle();
            }
            let kept = n - retain(&mut bench, n * 1_000_000);
            assert!(kept >= n.min(least), "{settings:?}: {kept} of {n}");
            assert!(kept <= least + more, "{settings:?}: {kept} of {n}");
        }
        let boot = if settings.max_age.is_some() { REBOOTED } else { KILLED };
        let start = bench.log.start();
        bench = again(bench, boot, &options);
        assert_eq!(bench.log.start(), start);
        assert_eq!(bench.read(start, 1 << 20).unwrap().len() as u64, 1600 - start.0);
    }
}

#[test]
fn age_is_looked_at_when_it_is_due() {
    use mq::settings::Retention;
    let age = Micros::from_secs(80);
    let settings = Settings { retain: Retention::Log, max_age: Some(age), ..Settings::default() };
    let mut bench = bench_with(&settings, &small());
    assert_eq!(bench.log.retention_due(WallTime(0), Offset(0)), None);
    bench.now = mq::units::Monotonic(1_000_000);
    bench.append(&["x"]);
    bench.settle();
    let due = |bench: &Bench, wall| bench.log.retention_due(WallTime(wall), Offset(0));
    assert_eq!(due(&bench, 1_000_000), Some(WallTime(11_000_000)), "an eighth of the age");
    assert_eq!(retain(&mut bench, 11_000_000), 0);
    assert_eq!(due(&bench, 11_000_000), Some(WallTime(81_000_000)));
    assert_eq!(retain(&mut bench, 81_000_000), 1);
    assert_eq!(due(&bench, 81_000_000), None);
}

#[test]
fn bytes_are_shared_out_by_messages() {
    let mut bench = bench_with(&Settings::default(), &small());
    for _ in 0..40 {
        bench.append(&[&"b".repeat(100)]);
        bench.settle();
    }
    let all = bench.log.bytes_of(|range| range.span()).0;
    let each = (40.0 * 165.0) as u64;
    assert!(all >= each && all < each + 1000, "{all}");
    let half = bench.log.bytes_of(|range| range.span() / 2).0;
    assert!(half < all * 6 / 10 && half > all * 4 / 10, "{half} of {all}");
    assert_eq!(bench.log.bytes_of(|_| 0).0, 0);
}

#[test]
fn the_oldest_message_is_dated_by_itself_and_not_by_a_mark_in_front_of_it() {
    // A queue that was idle before anything was sent showed its first message as of 1970.
    let mut bench = bench_with(&Settings::default(), &small());
    bench.wait(Micros::from_secs(2));
    bench.wait(Micros::from_secs(2));
    let now = bench.now.0;
    bench.append(&["a", "b"]);
    bench.settle();
    for offset in [0, 1] {
        assert_eq!(bench.log.time_of(Offset(offset)), Some(WallTime(now)));
    }
    assert_eq!(bench.log.time_of(Offset(2)), None);
    assert_eq!(bench.log.extents().next().unwrap().first, WallTime(now));
    bench = again(bench, KILLED, &small());
    assert_eq!(bench.log.extents().next().unwrap().first, WallTime(now));
}

/// Few offsets are passed over after a power loss.
fn few() -> Options {
    Options { segment_messages: 64, ..small() }
}

/// What is counted of a queue with two groups, and what both say of each message, after a power loss
/// under this policy.
struct Losses {
    disk: SimDisk,
    /// Messages that were stored, ever.
    stored: u64,
    /// Offsets that each group acked.
    acked: [Vec<OffsetRange>; 2],
    /// Offsets that are known to be lost.
    lost: Vec<u64>,
}

impl Losses {
    fn new(seed: u64, sync: SyncPolicy) -> Losses {
        let disk = SimDisk::new(seed);
        create_with(&disk, &Settings { sync, ..Settings::default() }).unwrap();
        let mut bench = Bench::open(disk.clone(), CLEAN, &few()).unwrap().0;
        for name in ["a", "b"] {
            bench.log.add_group(&Name::new(name).unwrap()).unwrap();
            bench.settle();
        }
        Losses { disk, stored: 0, acked: Default::default(), lost: Vec::new() }
    }

    /// Stores `messages`, hands all of them to both groups, lets each ack some, and takes away the
    /// power: what was acked is on the disk, and of the messages what chance left there.
    fn lose_power(&mut self, boot: Boot, messages: u64, acked: [OffsetRange; 2]) {
        let mut bench = Bench::open(self.disk.clone(), boot, &few()).unwrap().0;
        let begin = bench.log.written_end();
        for _ in 0..messages {
            bench.append(&["some message"]);
        }
        self.stored += messages;
        let end = bench.log.written_end();
        assert_eq!(bench.log.visible_end(), end, "visible when written");
        for ((name, acked), all) in ["a", "b"].iter().zip(acked).zip(&mut self.acked) {
            let acked = range(begin.0 + acked.start.0, begin.0 + acked.end.0);
            all.push(acked);
            let group = bench.log.find_group(&Name::new(name).unwrap()).unwrap();
            let whole = || unreachable!("small");
            bench.log.settled(group, &[acked], Ending::Acked, end, whole).unwrap();
            bench.log.want_group_durable(group);
        }
        bench.settle();
        drop(bench);
        self.disk.crash();
        let (mut bench, _) = Bench::open(self.disk.fork(), REBOOTED, &few()).unwrap();
        let there = bench.read(begin, 1 << 20).unwrap();
        self.lost.extend(begin.0 + there.len() as u64..end.0);
    }

    fn has_acked(&self, group: usize, offset: u64) -> bool {
        self.acked[group].iter().any(|range| range.contains(Offset(offset)))
    }

    /// The counters and accounts say what happened.
    fn check(&self) {
        let disk = self.disk.fork();
        self.check_on(&disk, REBOOTED);
        // They are the same in the next life.
        self.check_on(&disk, KILLED);
    }

    fn check_on(&self, disk: &SimDisk, boot: Boot) {
        let (mut bench, recovered) = Bench::open(disk.clone(), boot, &few()).unwrap();
        let there = bench.read(Offset(0), 1 << 20).unwrap();
        let counted = *bench.log.counted();
        assert_eq!(counted.stored.0, self.stored);
        assert_eq!(self.stored, there.len() as u64 + self.lost.len() as u64);
        let by_any =
            self.lost.iter().filter(|n| !self.has_acked(0, **n) || !self.has_acked(1, **n));
        assert_eq!(counted.lost.0, by_any.count() as u64, "each once");
        for (group, (_, position)) in recovered.groups.iter().enumerate() {
            let tally = position.account.tally;
            let lost = self.lost.iter().filter(|n| !self.has_acked(group, **n)).count() as u64;
            assert_eq!(tally.of(Ending::Lost).0, lost);
            let settled = |n: &u64| position.settled.iter().any(|r| r.contains(Offset(*n)));
            let unsettled = there.iter().filter(|(offset, _)| !settled(offset)).count() as u64;
            assert_eq!(counted.stored.0, tally.total().0 + unsettled, "it adds up");
        }
    }
}

/// Reliability is what is saved of what was stored: each lost message is counted, once, and for each
/// group that had not settled it, whatever gaps there are and wherever a start is broken off.
#[test]
fn what_a_power_loss_took_is_counted_as_lost() {
    let mut lost = 0;
    for seed in 0..60 {
        let sync =
            [SyncPolicy::Never, SyncPolicy::Interval(Micros::from_secs(60))][seed as usize % 2];
        let mut losses = Losses::new(seed, sync);
        losses.lose_power(KILLED, 12, [range(0, 4), range(2, 12)]);
        losses.check();
        losses.lose_power(REBOOTED, 7, [range(3, 7), range(5, 6)]);
        losses.check();
        // A start that is broken off anywhere counts nothing twice.
        for steps in (1..).take_while(|_| seed.is_multiple_of(15)) {
            let disk = losses.disk.fork();
            disk.fail_in(steps, Fault::Kill);
            let is_whole = Bench::open(disk.clone(), REBOOTED, &few()).is_ok();
            disk.revive();
            losses.check_on(&disk, REBOOTED);
            if is_whole {
                break;
            }
        }
        lost += losses.lost.len();
    }
    assert!(lost > 100, "only {lost} were lost");
}
