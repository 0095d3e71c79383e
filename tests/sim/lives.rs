//! Many lives of one log under one seed: random appends, acks, drops and settings, jobs in any
//! order, and each life ended by a kill, a power loss, a fault or an orderly stop. A simple
//! model says after each start what must be there, what may be, and what must not.

#![allow(dead_code)] // Each test binary uses its part of this.

use std::collections::{BTreeMap, BTreeSet};

use mq::batch::{Framing, Record, push_attribute, tags};
use mq::log::{
    AppendError, Boot, CheckBound, GroupAccount, GroupPosition, InternalBatch, LogError, NewBatch,
    NewChain, Options, Recovered, check,
};
use mq::settings::{IdWindow, Settings};
use mq::units::{
    Bytes, Ending, Epoch, Micros, Name, Offset, OffsetRange, ProducerId, Sequence, SyncPolicy,
    WallTime,
};

use super::bench::{Bench, create_with, name};
use super::disk::{Fault, Random, SimDisk};

/// What was appended with one call.
#[derive(Clone, Debug)]
struct Sent {
    range: OffsetRange,
    lines: Vec<String>,
    producer: u64,
    sequence: u64,
    /// Its messages have ids: their texts.
    ids: bool,
    /// What the producer said with it.
    annex: Option<String>,
    /// The log's count of written bytes behind it, in the life in which it was sent.
    written: u64,
    /// Durable in the knowledge of the log.
    durable: bool,
    /// Told to the sender as stored.
    confirmed: bool,
}

#[derive(Clone, Debug, Default)]
struct Group {
    settled: BTreeSet<u64>,
    /// Of them, those that were certainly written.
    sure: BTreeSet<u64>,
    handed: u64,
    /// Settled, and dropped because of it.
    owed: BTreeSet<u64>,
    /// Its journal was durable.
    installed: bool,
}

/// What must be, may be and must not be in the log.
#[derive(Debug, Default)]
struct Model {
    sent: Vec<Sent>,
    /// Sent, with an outcome that no one knows.
    limbo: Vec<Sent>,
    groups: BTreeMap<String, Group>,
    /// Groups whose removal was asked for.
    leaving: BTreeSet<String>,
    /// Below this, offsets have been seen.
    seen: u64,
    gone: BTreeSet<u64>,
    next_text: u64,
    /// All messages that anyone ever tried to append.
    texts: Vec<String>,
    sequences: BTreeMap<u64, u64>,
}

/// How a life ended, for the figures that show that the test tests something.
#[derive(Debug, Default)]
pub struct Figures {
    pub lives: u64,
    pub kills: u64,
    pub reboots: u64,
    pub clean: u64,
    pub failed: u64,
    pub full: u64,
    pub torn: u64,
    pub gaps: u64,
    pub drops: u64,
    pub chains: u64,
    pub messages: u64,
    pub trace: u64,
}

struct Lives<'a> {
    random: Random,
    disk: SimDisk,
    options: Options,
    model: Model,
    figures: &'a mut Figures,
    /// The log was opened wholly since the last reboot.
    opened: bool,
    /// No fault but the end itself disturbs this seed.
    calm: bool,
    settings: Settings,
    /// Ids that are remembered.
    window: Option<u64>,
}

/// The producer that has a name.
const NAMED: u64 = 9;

/// Runs the lives of one seed.
///
/// # Panics
/// When a promise is broken.
pub fn run(seed: u64, figures: &mut Figures) {
    let mut random = Random(seed);
    let policy = match random.below(5) {
        0 => SyncPolicy::Never,
        1 => SyncPolicy::Interval(Micros::from_millis(5)),
        _ => SyncPolicy::Always,
    };
    let disk = SimDisk::new(random.next());
    let window = random.one_in(2).then(|| 1 + random.below(30));
    let unique_ids = window.map(IdWindow::Count);
    let settings = Settings { sync: policy, unique_ids, ..Settings::default() };
    create_with(&disk, &settings).unwrap();
    let options = Options {
        reserve: Some(Bytes(0)),
        segment_bytes: 600 + random.below(2000),
        segment_messages: 64,
        index_every: 128 + random.below(512),
        sync_gather: random.below(400),
        ..Options::default()
    };
    let calm = random.one_in(2);
    let model = Model::default();
    let opened = true;
    let mut lives = Lives { random, disk, options, model, figures, opened, calm, settings, window };
    let mut boot = Boot { clean: true, same_boot: true };
    for _ in 0..2 + lives.random.below(5) {
        boot = lives.life(boot);
    }
    lives.disk.revive();
    let (mut bench, recovered) = Bench::open(lives.disk.clone(), boot, &lives.options).unwrap();
    lives.verify(&mut bench, &recovered, boot);
    bench.settle();
    bench.close();
    let report = check(&lives.disk, &name(), CheckBound::All, &mut |_| {}).unwrap();
    assert_eq!(report.findings, [], "a closed log has nothing wrong");
    lives.figures.trace ^= lives.disk.trace();
}

impl Lives<'_> {
    /// One life, from a start to its end; returns how the next one finds the store.
    fn life(&mut self, boot: Boot) -> Boot {
        self.figures.lives += 1;
        let fault = if self.calm || self.random.one_in(2) {
            Fault::Kill
        } else if self.random.one_in(2) {
            Fault::Eio
        } else {
            Fault::Enospc
        };
        let far = if self.random.one_in(4) { 40 } else { 600 };
        self.disk.fail_in(1 + self.random.below(far), fault);
        if self.random.one_in(3) {
            self.disk.set_cold(Some(3));
        }
        let mut bench = match Bench::open(self.disk.clone(), boot, &self.options) {
            Ok((mut bench, recovered)) => {
                self.opened = true;
                if !self.disk.is_killed() {
                    self.verify(&mut bench, &recovered, boot);
                }
                bench
            }
            Err(LogError::Io { .. } | LogError::Metadata { .. })
                if self.disk.faulted().is_some() =>
            {
                // Broken off in the middle; begun again next time.
                return self.end();
            }
            Err(error) => panic!("the log does not open, {boot:?}: {error}"),
        };
        let steps = 5 + self.random.below(120);
        for _ in 0..steps {
            if self.disk.is_killed() {
                break;
            }
            self.step(&mut bench);
            self.observe(&mut bench);
            if bench.log.failed().is_some() {
                self.figures.failed += 1;
                break;
            }
        }
        let sound = !self.disk.is_killed() && bench.log.failed().is_none();
        if sound && self.random.one_in(3) && self.close(&mut bench) {
            self.figures.clean += 1;
            drop(bench);
            self.disk.revive();
            if self.random.one_in(2) {
                self.disk.crash();
            }
            return Boot { clean: true, same_boot: self.random.one_in(2) };
        }
        drop(bench);
        self.end()
    }

    /// The life is over without an orderly stop.
    fn end(&mut self) -> Boot {
        let reboot = self.random.one_in(2);
        if reboot {
            self.figures.reboots += 1;
            self.disk.crash();
            self.opened = false;
        } else {
            self.figures.kills += 1;
            self.disk.revive();
        }
        // A start that did not get through does not count: the store is as it was left before.
        let same_boot = self.opened && !reboot;
        Boot { clean: false, same_boot }
    }

    fn close(&mut self, bench: &mut Bench) -> bool {
        for _ in 0..200 {
            while let Some(job) = bench.log.close_jobs(bench.now) {
                bench.jobs.push(job);
            }
            if !bench.done.is_empty() {
                bench.complete(0);
            } else if !bench.jobs.is_empty() {
                bench.run(0);
            } else {
                break;
            }
            self.observe(bench);
            bench.now = bench.now.plus(Micros::from_secs(1));
        }
        !self.disk.is_killed() && bench.log.is_closed_cleanly()
    }

    fn step(&mut self, bench: &mut Bench) {
        match self.random.below(24) {
            0..8 => self.append(bench),
            8..14 => {
                bench.collect();
                self.work(bench);
            }
            14 => bench.now = bench.now.plus(Micros(self.random.below(8_000))),
            15 => bench.now = bench.now.plus(Micros::from_millis(700)),
            16 => self.ack(bench),
            17 => self.add_group(bench),
            18 => self.drop_segments(bench),
            19 => self.chain(bench),
            20 => self.change(bench),
            21 | 22 => self.commit(bench),
            _ => {
                if bench.log.visible_end() > Offset(0) && bench.log.damage().is_none() {
                    let from = Offset(self.random.below(bench.log.visible_end().0));
                    let max = 1 + self.random.below(600) as usize;
                    if let Err(error) = bench.read(from, max) {
                        assert!(self.disk.faulted().is_some(), "reading fails: {error}");
                    }
                }
            }
        }
    }

    /// Some job runs, or one that has run is taken in; not always the oldest.
    fn work(&mut self, bench: &mut Bench) {
        if !bench.done.is_empty() && self.random.one_in(2) {
            bench.complete(self.random.below(bench.done.len() as u64) as usize);
        } else if !bench.jobs.is_empty() {
            if self.random.one_in(60) {
                // Faults strike between the calls of a job more often than chance has it.
                let fault =
                    if self.calm || self.random.one_in(2) { Fault::Kill } else { Fault::Eio };
                self.disk.fail_in(1 + self.random.below(5), fault);
            }
            bench.run_only(self.random.below(bench.jobs.len() as u64) as usize);
        }
    }

    fn lines(&mut self) -> Vec<String> {
        let count = 1 + self.random.below(4);
        let line = |lives: &mut Self| {
            lives.model.next_text += 1;
            let filler = "x".repeat(lives.random.below(120) as usize);
            format!("{}{filler}", lives.model.next_text)
        };
        let lines: Vec<String> = (0..count).map(|_| line(self)).collect();
        self.model.texts.extend_from_slice(&lines);
        lines
    }

    fn append(&mut self, bench: &mut Bench) {
        let lines = self.lines();
        let producer = self.random.below(4);
        let last = self.model.sequences.get(&producer).copied().unwrap_or(0);
        let sequence = if producer == 0 { 0 } else { last + lines.len() as u64 };
        let ids = self.random.one_in(2);
        let (framing, payload) = if ids {
            (Framing::Records, records(&lines))
        } else {
            let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
            (Framing::Delimited(b'\n'), lines.into_bytes())
        };
        let batch = NewBatch {
            framing,
            flags: 0,
            count: lines.len() as u32,
            payload: &payload,
            producer: ProducerId(producer),
            sequence: Sequence(sequence),
            epoch: Epoch(0),
        };
        let start = bench.log.written_end();
        let result = bench.log.append(bench.now, WallTime(bench.now.0), &batch);
        let range = OffsetRange::new(start, Offset(start.0 + lines.len() as u64));
        let sent = Sent {
            range,
            lines,
            producer,
            sequence,
            ids,
            annex: None,
            written: bench.log.written_bytes().0,
            durable: false,
            confirmed: false,
        };
        self.appended(bench, sent, result);
    }

    /// What came of an append.
    fn appended(
        &mut self,
        bench: &mut Bench,
        sent: Sent,
        result: Result<OffsetRange, AppendError>,
    ) {
        let start = sent.range.start;
        match result {
            Ok(stored) => {
                assert_eq!(stored, sent.range);
                self.model.stored(sent);
            }
            Err(AppendError::NotYet) => {}
            Err(AppendError::Full { .. }) => {
                self.figures.full += 1;
                assert_eq!(bench.log.written_end(), start, "nothing is visible");
                self.model.limbo.push(sent);
            }
            Err(AppendError::TooManyProducers) => unreachable!("no producer is opened here"),
            Err(AppendError::Failed(_)) => self.model.limbo.push(sent),
        }
    }

    /// The server appends in the name of its own producer, with an annex.
    fn commit(&mut self, bench: &mut Bench) {
        let producer = ProducerId(NAMED);
        let (now, wall) = (bench.now, WallTime(bench.now.0));
        if self.random.one_in(4) || bench.log.producers().last(producer).is_none() {
            // Whatever comes of it: the producer has a name from then on, or none yet.
            let _ = bench.log.open_producer(now, wall, producer);
            return;
        }
        let lines = self.lines();
        let last = self.model.sequences.get(&NAMED).copied().unwrap_or(0);
        let sequence = last + lines.len() as u64;
        let annex = format!("up to {}", self.model.next_text);
        let internal = InternalBatch {
            producer,
            epoch: Epoch(1),
            sequence: Sequence(sequence),
            annex: annex.as_bytes(),
            framing: Framing::Records,
            flags: 0,
            count: lines.len() as u32,
            messages: &records(&lines),
        };
        let start = bench.log.written_end();
        let result = bench.log.append_internal(now, wall, &internal).map(|done| done.range);
        let sent = Sent {
            range: OffsetRange::new(start, Offset(start.0 + lines.len() as u64)),
            lines,
            producer: NAMED,
            sequence,
            ids: true,
            annex: Some(annex),
            written: bench.log.written_bytes().0,
            durable: false,
            confirmed: false,
        };
        self.appended(bench, sent, result);
    }

    fn chain(&mut self, bench: &mut Bench) {
        if bench.chain.is_some() {
            return;
        }
        self.model.next_text += 1;
        let body = format!("{}{}", self.model.next_text, "y".repeat(1200));
        self.model.texts.push(body.clone());
        let record = records(std::slice::from_ref(&body));
        let Ok(mut staging) = bench.log.stage_begin() else { return };
        if record.chunks(500).any(|part| staging.push(part).is_err()) {
            return;
        }
        let start = bench.log.written_end();
        let wall = WallTime(bench.now.0);
        let begun = bench.log.append_chain(wall, &staging, &NewChain::default());
        if begun.is_ok() {
            let range = OffsetRange::new(start, Offset(start.0 + 1));
            let sent = Sent {
                range,
                lines: vec![body],
                producer: 0,
                sequence: 0,
                ids: true,
                annex: None,
                written: 0,
                durable: false,
                confirmed: false,
            };
            self.model.limbo.push(sent.clone());
            bench.chain = Some((staging, range));
            self.figures.chains += 1;
        }
    }

    fn add_group(&mut self, bench: &mut Bench) {
        let text = format!("g{}", self.random.below(3));
        let group = Name::new(&text).unwrap();
        match bench.log.find_group(&group) {
            None if self.model.leaving.contains(&text) => {}
            None => {
                if bench.log.add_group(&group).is_ok() {
                    self.model.groups.insert(text, Group::default());
                }
            }
            Some(file) if self.random.one_in(6) => {
                bench.log.remove_group(file, GroupAccount::default());
                self.model.leaving.insert(text);
            }
            Some(_) => {}
        }
    }

    fn ack(&mut self, bench: &mut Bench) {
        let end = bench.log.visible_end().0;
        for (text, group) in &mut self.model.groups {
            let Some(file) = bench.log.find_group(&Name::new(text).unwrap()) else { continue };
            if end == 0 {
                continue;
            }
            let start = if self.random.one_in(2) {
                (0..).find(|offset| !group.settled.contains(offset)).unwrap().min(end)
            } else {
                self.random.below(end)
            };
            let behind = (start + 1 + self.random.below(25)).min(end);
            let range = OffsetRange::new(Offset(start), Offset(behind.max(start)));
            group.settled.extend(range.start.0..range.end.0);
            group.handed = group.handed.max(range.end.0);
            let state = || GroupPosition {
                settled: group
                    .settled
                    .iter()
                    .map(|o| OffsetRange::new(Offset(*o), Offset(o + 1)))
                    .collect(),
                handed: Offset(group.handed),
                ..GroupPosition::default()
            };
            match bench.log.settled(file, &[range], Ending::Acked, Offset(group.handed), state) {
                Ok(()) => group.sure.extend(range.start.0..range.end.0),
                Err(error) => assert!(self.disk.faulted().is_some(), "acking fails: {error}"),
            }
        }
    }

    fn drop_segments(&mut self, bench: &mut Bench) {
        let groups: Vec<&Group> = self
            .model
            .groups
            .iter()
            .filter(|(n, _)| !self.model.leaving.contains(*n))
            .map(|(_, g)| g)
            .collect();
        if groups.is_empty() || groups.iter().any(|group| !group.installed) {
            return;
        }
        let all = OffsetRange::new(Offset(0), bench.log.visible_end());
        let mut dropped = BTreeSet::new();
        for (number, extent) in bench.log.segment_extents(&[all]) {
            let is_gone =
                |group: &&Group| (extent.start.0..extent.end.0).all(|o| group.settled.contains(&o));
            if groups.iter().all(is_gone) {
                bench.log.drop_segment(number);
                self.figures.drops += 1;
                dropped.extend(extent.start.0..extent.end.0);
            }
        }
        self.model.groups.values_mut().for_each(|group| group.owed.extend(&dropped));
        self.model.gone.extend(dropped);
    }

    fn change(&mut self, bench: &mut Bench) {
        if self.random.one_in(4) {
            let sync = match self.random.below(3) {
                0 => SyncPolicy::Never,
                1 => SyncPolicy::Interval(Micros::from_millis(5)),
                _ => SyncPolicy::Always,
            };
            self.settings.sync = sync;
            bench.log.change_settings(&self.settings);
        } else if self.random.one_in(3) {
            bench.log.want_durable();
        } else {
            bench.log.roll_if_gone();
        }
    }

    /// Takes in what the log says after a step.
    fn observe(&mut self, bench: &mut Bench) {
        for progress in std::mem::take(&mut bench.progress) {
            if let Some(result) = progress.chain {
                let (_, range) = bench.chain.take().expect("a chain was under way");
                if let Ok(stored) = result {
                    assert_eq!(stored, range);
                    let at = self.model.limbo.iter().rposition(|sent| sent.range == range);
                    let at = at.expect("the chain is in limbo");
                    let mut sent = self.model.limbo.remove(at);
                    sent.written = bench.log.written_bytes().0;
                    self.model.stored(sent);
                }
            }
            for text in progress.removed_groups {
                self.model.groups.remove(text.as_str());
                self.model.leaving.remove(text.as_str());
            }
        }
        if self.disk.is_killed() {
            return;
        }
        for (text, group) in &mut self.model.groups {
            let file = bench.log.find_group(&Name::new(text).unwrap());
            group.installed |= file.is_some_and(|file| bench.installed.contains(&file));
        }
        let (durable, visible) = (bench.log.durable_bytes().0, bench.log.visible_end().0);
        self.model.seen = self.model.seen.max(visible);
        for sent in &mut self.model.sent {
            sent.durable |= sent.written <= durable;
            sent.confirmed |= sent.range.end.0 <= visible;
        }
    }

    /// After a start: compares what the log says with the model, and goes on from there.
    fn verify(&mut self, bench: &mut Bench, recovered: &Recovered, boot: Boot) {
        self.figures.torn += u64::from(recovered.torn.is_some());
        self.figures.gaps += recovered.gaps.len() as u64;
        assert!(recovered.end.0 >= self.model.seen, "an offset that was seen is given again");
        assert_eq!(recovered.end, bench.log.written_end());
        let disk = self.disk.clone();
        let found = disk.undisturbed(|| bench.read(Offset(0), 1 << 20)).unwrap();
        self.figures.messages += found.len() as u64;
        let gone: BTreeSet<u64> =
            recovered.gone.iter().flat_map(|range| range.start.0..range.end.0).collect();
        let mut kept = gone.iter().filter(|offset| !self.model.gone.contains(offset));
        assert!(!kept.any(|offset| self.model.was_sent(*offset)), "dropped without being asked");
        self.compare(&found, &gone, boot);
        self.compare_producers(bench);
        self.compare_ids(bench);
        self.compare_groups(bench, recovered, &gone, boot);
        self.model.seen = self.model.seen.max(recovered.end.0);
    }

    /// What is there is a prefix of what was sent, with all that must be there.
    fn compare(&mut self, found: &[(u64, String)], gone: &BTreeSet<u64>, boot: Boot) {
        let found: BTreeMap<u64, &String> = found.iter().map(|(o, text)| (*o, text)).collect();
        let mut kept = Vec::new();
        let mut ended = false;
        let mut claimed = 0;
        let mut all: Vec<(Sent, bool)> =
            self.model.sent.drain(..).map(|sent| (sent, true)).collect();
        for limbo in self.model.limbo.drain(..) {
            // Only where nothing that is known to be stored took its place.
            if all.iter().all(|(sent, _)| sent.range.intersection(&limbo.range).is_none()) {
                all.push((limbo, false));
            }
        }
        all.sort_by_key(|(sent, stored)| (sent.range.start, !stored));
        for (mut sent, stored) in all {
            let offsets = sent.range.start.0..sent.range.end.0;
            let lost = offsets.clone().all(|offset| gone.contains(&offset));
            let there = offsets
                .clone()
                .filter(|o| found.get(o) == Some(&&sent.lines[(o - offsets.start) as usize]))
                .count();
            if lost || there == sent.lines.len() {
                assert!(!ended, "what survives is a prefix: {sent:?}");
                claimed += there;
                sent.written = 0;
                sent.durable = true;
                sent.confirmed = true;
                kept.push(sent);
                continue;
            }
            if !stored {
                continue;
            }
            assert!(there == 0, "never cut, never merged: {sent:?}");
            let needed = if boot.same_boot { sent.confirmed } else { sent.durable };
            assert!(!needed, "lost though {boot:?}: {sent:?}");
            ended = true;
        }
        assert_eq!(claimed, found.len(), "nothing is invented");
        self.model.sent = kept;
        self.model.sequences.clear();
        for sent in &self.model.sent {
            if sent.producer != 0 {
                self.model.sequences.insert(sent.producer, sent.sequence);
            }
        }
    }

    /// The last ids are known, and no others.
    fn compare_ids(&mut self, bench: &mut Bench) {
        let Some(window) = self.window else { return };
        let with_ids = self.model.sent.iter().filter(|sent| sent.ids);
        let stored: Vec<&String> = with_ids.flat_map(|sent| &sent.lines).collect();
        let first = stored.len().saturating_sub(window as usize);
        let last: BTreeSet<&String> = stored[first..].iter().copied().collect();
        for text in &self.model.texts {
            let id = bench.log.unique().digest(id_of(text).as_bytes());
            let known = bench.log.unique().knows_id(id, WallTime(bench.now.0));
            assert_eq!(known, last.contains(text), "id of {text}");
        }
    }

    fn compare_producers(&mut self, bench: &mut Bench) {
        let committed = self.model.sent.iter().rfind(|sent| sent.annex.is_some());
        let annex = committed.and_then(|sent| sent.annex.as_deref());
        let found = bench.log.producers().annex(ProducerId(NAMED));
        assert_eq!(found, annex.map(str::as_bytes), "the annex of the last commit");
        for producer in 1..4 {
            let known = bench.log.producers().last(ProducerId(producer)).map(|(_, s)| s.0);
            let expected = self.model.sequences.get(&producer).copied();
            assert_eq!(known.filter(|s| *s > 0), expected, "producer {producer}");
        }
    }

    fn compare_groups(
        &mut self,
        bench: &mut Bench,
        recovered: &Recovered,
        gone: &BTreeSet<u64>,
        boot: Boot,
    ) {
        let there: BTreeMap<&str, _> =
            recovered.groups.iter().map(|(name, position)| (name.as_str(), position)).collect();
        for name in there.keys() {
            assert!(self.model.groups.contains_key(*name), "group {name} is invented");
        }
        let leaving = std::mem::take(&mut self.model.leaving);
        self.model.groups.retain(|name, group| {
            let Some(position) = there.get(name.as_str()) else {
                assert!(!group.installed || leaving.contains(name), "group {name} is lost");
                return false;
            };
            // What a power loss took is settled, as lost, and is no message any more.
            let is_gap = |n: &u64| recovered.gaps.iter().any(|gap| gap.contains(Offset(*n)));
            let settled: BTreeSet<u64> =
                position.settled.iter().flat_map(|r| r.start.0..r.end.0).collect();
            let was_acked = settled.iter().all(|n| group.settled.contains(n) || is_gap(n));
            assert!(was_acked, "{name} acked what was never acked");
            assert!(position.handed.0 <= group.handed, "{name} was never handed that");
            if boot.same_boot && group.installed && self.calm {
                assert!(
                    group.sure.is_subset(&settled),
                    "{name} forgot acks though nothing was lost"
                );
            }
            if group.installed && !leaving.contains(name) {
                for offset in gone.intersection(&group.owed) {
                    assert!(settled.contains(offset), "{name} lost the ack of dropped {offset}");
                }
            }
            let owed = std::mem::take(&mut group.owed);
            let sure = settled.clone();
            *group = Group { settled, sure, handed: position.handed.0, owed, installed: true };
            true
        });
        for file in
            self.model.groups.keys().filter_map(|n| bench.log.find_group(&Name::new(n).unwrap()))
        {
            bench.installed.push(file);
        }
        self.model.gone.clone_from(gone);
    }
}

/// The number that a text begins with.
fn id_of(text: &str) -> &str {
    text.trim_end_matches(|c: char| !c.is_ascii_digit())
}

/// Messages with their ids.
fn records(texts: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for text in texts {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, tags::ID, id_of(text).as_bytes());
        Record { attribute_bytes: &attributes, body: text.as_bytes() }.encode(&mut out);
    }
    out
}

impl Model {
    fn stored(&mut self, sent: Sent) {
        if sent.producer != 0 {
            self.sequences.insert(sent.producer, sent.sequence);
        }
        // What failed at these offsets is not there any more, now that something else is.
        self.limbo.retain(|limbo| limbo.range.intersection(&sent.range).is_none());
        self.sent.push(sent);
    }

    fn was_sent(&self, offset: u64) -> bool {
        self.sent.iter().any(|sent| sent.range.contains(Offset(offset)))
    }
}
