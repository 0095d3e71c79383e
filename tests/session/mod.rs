//! A session of operations on a log with a past, and a model of what a start after it may find,
//! wherever it was broken off (G1, G2, G9).
//!
//! Used by the exhaustive tests, which go through all short sessions, and by the fuzz target
//! `session`, which makes up long ones.

#![allow(dead_code)] // Each test binary uses its part of this.

use std::collections::BTreeSet;

use mq::batch::{Framing, Record};
use mq::log::{AppendError, Boot, GroupPosition, InternalBatch, Options, Recovered};
use mq::units::{
    Ending, Micros, Name, Offset, OffsetRange, ProducerId, Sequence, SyncPolicy, WallTime,
};

use crate::sim::bench::{Bench, CLEAN, KILLED, create, small};
use crate::sim::disk::SimDisk;

const NAMED: ProducerId = ProducerId(9);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A message is appended; nothing is synced yet.
    Append,
    /// A message is appended, and all jobs run.
    Settle,
    /// One that needs another segment.
    Roll,
    /// A named producer appends with an annex.
    Commit,
    /// A group acks all that it can.
    Ack,
    /// What the group has acked is dropped.
    Drop,
    /// Two seconds pass: the log goes idle.
    Rest,
    /// An orderly stop, and a start.
    Stop,
    /// The server is killed, and starts.
    Kill,
}

pub const ACTS: [Act; 9] = [
    Act::Append,
    Act::Settle,
    Act::Roll,
    Act::Commit,
    Act::Ack,
    Act::Drop,
    Act::Rest,
    Act::Stop,
    Act::Kill,
];

pub fn options() -> Options {
    Options { segment_messages: 64, ..small() }
}

pub fn group() -> Name {
    Name::new("g").unwrap()
}

/// What was done, and what was said of it.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Messages in the order of their offsets.
    sent: Vec<(u64, String)>,
    /// What was being appended when it broke off.
    limbo: Vec<String>,
    texts: u64,
    /// Commits that were stored, by their offsets.
    commits: Vec<(u64, u64)>,
    visible: u64,
    durable: u64,
    acked: BTreeSet<u64>,
    /// Messages that may be dropped.
    dropped: BTreeSet<u64>,
}

/// A log with its model.
pub struct Case {
    pub bench: Bench,
    pub model: Model,
    pub policy: SyncPolicy,
}

impl Case {
    /// A log with a past: two segments and a bit, a group that has acked the first.
    pub fn with_past(policy: SyncPolicy) -> Case {
        let disk = SimDisk::new(1);
        create(&disk, policy).unwrap();
        let bench = Bench::open(disk, CLEAN, &options()).unwrap().0;
        let mut case = Case { bench, model: Model::default(), policy };
        for act in [Act::Roll, Act::Commit, Act::Ack, Act::Roll, Act::Settle, Act::Rest] {
            case.act(act);
        }
        case
    }

    /// The same on a copy of its disk.
    pub fn fork(disk: &SimDisk, boot: Boot, model: &Model, policy: SyncPolicy) -> Case {
        let bench = Bench::open(disk.fork(), boot, &options()).unwrap().0;
        Case { bench, model: model.clone(), policy }
    }

    pub fn is_over(&self) -> bool {
        self.bench.disk.is_killed()
    }

    fn text(&mut self, bytes: usize) -> String {
        self.model.texts += 1;
        format!("{} {}", self.model.texts, "x".repeat(bytes))
    }

    /// Does something, as far as the disk lets it.
    pub fn act(&mut self, act: Act) {
        match act {
            Act::Append => self.append(40),
            Act::Settle => {
                self.append(300);
                self.settle();
            }
            Act::Roll => {
                self.append(1500);
                self.settle();
            }
            Act::Commit => {
                self.commit();
                self.settle();
            }
            Act::Ack => self.ack(),
            Act::Drop => self.drop_acked(),
            Act::Rest => {
                self.bench.now = self.bench.now.plus(Micros::from_secs(2));
                self.settle();
            }
            Act::Stop => {
                for _ in 0..1000 {
                    while let Some(job) = self.bench.log.close_jobs(self.bench.now) {
                        self.bench.jobs.push(job);
                    }
                    if self.bench.jobs.is_empty() || self.is_over() {
                        break;
                    }
                    self.bench.run(0);
                    self.look();
                }
                if !self.is_over() {
                    assert!(self.bench.log.is_closed_cleanly());
                    self.start(CLEAN);
                }
            }
            Act::Kill => self.start(KILLED),
        }
        self.look();
    }

    /// The next life, on the same page cache.
    fn start(&mut self, boot: Boot) {
        let disk = self.bench.disk.clone();
        self.model.limbo.clear();
        match Bench::open(disk, boot, &options()) {
            Ok((bench, _)) => self.bench = bench,
            Err(error) => assert!(self.is_over(), "{boot:?}: {error}"),
        }
    }

    /// Notes what the log says, while there is a process to hear it.
    fn look(&mut self) {
        if self.is_over() {
            return;
        }
        let log = &self.bench.log;
        self.model.visible = self.model.visible.max(log.visible_end().0);
        self.model.durable = self.model.durable.max(log.durable_end().0);
    }

    fn settle(&mut self) {
        self.bench.collect();
        while !self.bench.jobs.is_empty() && !self.is_over() {
            self.bench.run(0);
            self.look();
            self.bench.collect();
        }
    }

    /// Appends until there is an answer; NotYet waits for jobs.
    fn until_done<T>(
        &mut self,
        mut append: impl FnMut(&mut Bench) -> Result<T, AppendError>,
    ) -> Option<T> {
        loop {
            match append(&mut self.bench) {
                Ok(done) if !self.is_over() => return Some(done),
                Ok(_) | Err(AppendError::Failed(_)) => return None,
                Err(AppendError::NotYet) => {
                    self.bench.collect();
                    if self.is_over() || self.bench.jobs.is_empty() {
                        return None;
                    }
                    self.bench.run(0);
                    self.look();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn append(&mut self, bytes: usize) {
        let text = self.text(bytes);
        self.model.limbo.push(text.clone());
        let line = std::slice::from_ref(&text).to_vec();
        if let Some(range) = self.until_done(|bench| bench.try_append(&line)) {
            self.model.sent.push((range.start.0, text));
            self.model.limbo.clear();
        }
    }

    fn commit(&mut self) {
        let wall = WallTime(1);
        let opened = self.until_done(|bench| bench.log.open_producer(bench.now, wall, NAMED));
        let Some(opened) = opened else { return };
        let text = self.text(60);
        self.model.limbo.push(text.clone());
        let mut messages = Vec::new();
        Record { attribute_bytes: &[], body: text.as_bytes() }.encode(&mut messages);
        let sequence = Sequence(opened.sequence.0 + 1);
        let annex = format!("commit {sequence}");
        let stored = self.until_done(|bench| {
            let internal = InternalBatch {
                producer: NAMED,
                epoch: opened.epoch,
                sequence,
                annex: annex.as_bytes(),
                framing: Framing::Records,
                flags: 0,
                count: 1,
                messages: &messages,
            };
            bench.log.append_internal(bench.now, wall, &internal)
        });
        if let Some(stored) = stored {
            self.model.commits.push((stored.range.start.0, sequence.0));
            self.model.sent.push((stored.range.start.0, text));
            self.model.limbo.clear();
        }
    }

    fn ack(&mut self) {
        if self.bench.log.find_group(&group()).is_none() {
            if self.bench.log.add_group(&group()).is_err() {
                return assert!(self.is_over());
            }
            self.settle();
        }
        let Some(file) = self.bench.log.find_group(&group()) else { return };
        if self.is_over() {
            return;
        }
        let end = self.bench.log.visible_end();
        self.model.acked.extend(0..end.0);
        let range = OffsetRange::new(Offset(0), end);
        let state =
            || GroupPosition { settled: vec![range], handed: end, ..GroupPosition::default() };
        let said = self.bench.log.settled(file, &[range], Ending::Acked, end, state);
        assert!(said.is_ok() || self.is_over());
        self.settle();
    }

    fn drop_acked(&mut self) {
        let all = OffsetRange::new(Offset(0), self.bench.log.visible_end());
        for (number, extent) in self.bench.log.segment_extents(&[all]) {
            if (extent.start.0..extent.end.0).all(|offset| self.model.acked.contains(&offset)) {
                self.bench.log.drop_segment(number);
                self.model.dropped.extend(extent.start.0..extent.end.0);
            }
        }
        self.settle();
    }
}

/// What a start after it may find.
pub fn verify(disk: &SimDisk, boot: Boot, case: &Case, what: &str) -> Bench {
    let (mut bench, recovered) = Bench::open(disk.clone(), boot, &options())
        .unwrap_or_else(|error| panic!("{what}: the log does not open: {error}"));
    let model = &case.model;
    assert!(recovered.end.0 >= model.visible, "{what}: G9: an offset that was seen comes again");
    let found = bench.read(Offset(0), 1 << 20).unwrap_or_else(|error| panic!("{what}: {error}"));
    let gone: BTreeSet<u64> =
        recovered.gone.iter().flat_map(|range| range.start.0..range.end.0).collect();
    let mut rest = &found[..];
    let mut ended = false;
    for (offset, text) in &model.sent {
        if gone.contains(offset) {
            assert!(model.dropped.contains(offset), "{what}: {offset} was never to be dropped");
            continue;
        }
        if let Some(((at, there), behind)) = rest.split_first()
            && (at, there) == (offset, text)
        {
            assert!(!ended, "{what}: G9: {offset} is there, and one in front of it is not");
            rest = behind;
            continue;
        }
        ended = true;
        let is_kept = boot.same_boot || case.policy == SyncPolicy::Always;
        let kept = if is_kept { model.visible } else { model.durable };
        assert!(*offset >= kept.max(model.durable), "{what}: G1: {offset} is lost");
    }
    let new = rest.iter().all(|(_, text)| model.limbo.contains(text));
    assert!(new && rest.len() <= 1, "{what}: G2: {rest:?} was never stored");
    verify_commits(&mut bench, model, &found, &gone, what);
    verify_group(&recovered, model, &gone, what);
    bench
}

/// The newest commit that is there is the one that the log knows.
fn verify_commits(
    bench: &mut Bench,
    model: &Model,
    found: &[(u64, String)],
    gone: &BTreeSet<u64>,
    what: &str,
) {
    let is_there = |offset: &u64| gone.contains(offset) || found.iter().any(|(at, _)| at == offset);
    let newest = model.commits.iter().rfind(|(offset, _)| is_there(offset));
    let known = bench.log.producers().last(NAMED).map_or(0, |(_, sequence)| sequence.0);
    let newest = newest.map_or(0, |(_, sequence)| *sequence);
    // One in limbo may be there too.
    let limbo = found.iter().filter(|(_, text)| model.limbo.contains(text)).count() as u64;
    assert!(known == newest || known == newest + limbo, "{what}: commit {known}, not {newest}");
    let annex = (known > 0).then(|| format!("commit {known}").into_bytes());
    assert_eq!(bench.log.producers().annex(NAMED), annex.as_deref(), "{what}");
}

/// What it says that it has acked was acked; what was dropped because of it, it has.
fn verify_group(recovered: &Recovered, model: &Model, gone: &BTreeSet<u64>, what: &str) {
    let Some((_, position)) = recovered.groups.first() else {
        return assert!(gone.is_empty(), "{what}: dropped, and the group is lost");
    };
    let is_gap = |n: &u64| recovered.gaps.iter().any(|gap| gap.contains(Offset(*n)));
    let settled: BTreeSet<u64> =
        position.settled.iter().flat_map(|range| range.start.0..range.end.0).collect();
    let invented = settled.iter().find(|n| !model.acked.contains(n) && !is_gap(n));
    assert_eq!(invented, None, "{what}: acked and never was");
    let forgotten = gone.iter().find(|n| !settled.contains(n));
    assert_eq!(forgotten, None, "{what}: dropped, and its ack is lost");
}

/// A store that was mended goes on, and closes in order.
pub fn goes_on(mut bench: Bench, what: &str) {
    let before = bench.read(Offset(0), 1 << 20).unwrap();
    let range = bench.append(&["behind it all"]);
    bench.settle();
    let after = bench.read(Offset(0), 1 << 20).unwrap();
    assert!(after.starts_with(&before), "{what}");
    assert_eq!(after.last().map(|(offset, _)| *offset), Some(range.start.0), "{what}");
    bench.close();
    let disk = bench.disk.clone();
    drop(bench);
    disk.crash();
    let (mut bench, _) = Bench::open(disk, CLEAN, &options())
        .unwrap_or_else(|error| panic!("{what}, after an orderly stop: {error}"));
    assert_eq!(bench.read(Offset(0), 1 << 20).unwrap(), after, "{what}");
}
