//! A log on the simulated disk, with its clock and its jobs, and the ways that tests use it.

#![allow(dead_code)] // Each test binary uses its part of this.

use std::sync::Arc;

use mq::batch::{BatchHeader, Framing, HEADER_BYTES, Place, bodies};
use mq::log::storage::StorageFile;
use mq::log::{
    AppendError, Boot, Done, Found, GroupFile, Job, Log, LogError, NewBatch, Options, Progress,
    Recovered, Select, Staging, create_queue,
};
use mq::settings::Settings;
use mq::units::{
    Bytes, Epoch, Micros, Monotonic, Name, Offset, OffsetRange, ProducerId, QueueId, Sequence,
    SyncPolicy, WallTime,
};

use super::disk::{SimDisk, SimFile};

pub const KILLED: Boot = Boot { clean: false, same_boot: true };
pub const REBOOTED: Boot = Boot { clean: false, same_boot: false };
pub const CLEAN: Boot = Boot { clean: true, same_boot: true };

pub fn name() -> Name {
    Name::new("q").unwrap()
}

/// Segments so small that a few batches fill one.
pub fn small() -> Options {
    Options {
        reserve: Some(Bytes(0)),
        segment_bytes: 2048,
        segment_messages: 1 << 21,
        index_every: 256,
        sync_gather: 200,
        ..Options::default()
    }
}

pub fn create(disk: &SimDisk, sync: SyncPolicy) -> Result<(), LogError> {
    create_with(disk, &Settings { sync, ..Settings::default() })
}

pub fn create_with(disk: &SimDisk, settings: &Settings) -> Result<(), LogError> {
    create_queue(disk, &name(), QueueId::from_bytes(*b"an identity of q"), settings, WallTime(1))
}

/// A log with its clock and its jobs.
pub struct Bench {
    pub disk: SimDisk,
    pub log: Log<SimDisk>,
    pub now: Monotonic,
    pub jobs: Vec<Job<SimDisk>>,
    /// Jobs that have run and are not taken in yet.
    pub done: Vec<Done<SimDisk>>,
    pub progress: Vec<Progress>,
    /// Groups whose journals are durable.
    pub installed: Vec<GroupFile>,
    /// A chain under way, and the offset that it gets.
    pub chain: Option<(Staging<SimDisk>, OffsetRange)>,
}

impl Bench {
    pub fn new(sync: SyncPolicy) -> Bench {
        let disk = SimDisk::new(1);
        create(&disk, sync).unwrap();
        Bench::open(disk, CLEAN, &small()).unwrap().0
    }

    pub fn open(
        disk: SimDisk,
        boot: Boot,
        options: &Options,
    ) -> Result<(Bench, Recovered), LogError> {
        let (log, recovered) = Log::open(Arc::new(disk.clone()), &name(), boot, options)?;
        let (jobs, progress, installed) = (Vec::new(), Vec::new(), Vec::new());
        let now = Monotonic(1);
        let done = Vec::new();
        Ok((Bench { disk, log, now, jobs, done, progress, installed, chain: None }, recovered))
    }

    /// Takes the jobs that are due, without running them.
    pub fn collect(&mut self) {
        while let Some(job) = self.log.next_job(self.now) {
            self.jobs.push(job);
        }
    }

    pub fn run(&mut self, at: usize) {
        let done = self.jobs.remove(at).run();
        self.done.push(done);
        self.complete(self.done.len() - 1);
    }

    /// Runs a job on its thread; the log does not hear of it yet.
    pub fn run_only(&mut self, at: usize) {
        let done = self.jobs.remove(at).run();
        self.done.push(done);
    }

    /// Takes in what came of a job.
    pub fn complete(&mut self, at: usize) {
        let done = self.done.remove(at);
        let progress = self.log.complete(self.now, done);
        self.installed.extend(&progress.groups);
        self.progress.push(progress);
    }

    /// Runs jobs until none is due.
    pub fn settle(&mut self) {
        self.collect();
        while !self.jobs.is_empty() {
            self.run(0);
            self.collect();
        }
    }

    pub fn wait(&mut self, micros: Micros) {
        self.now = self.now.plus(micros);
        self.settle();
    }

    pub fn try_append(&mut self, lines: &[String]) -> Result<OffsetRange, AppendError> {
        let payload: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let batch = NewBatch {
            framing: Framing::Delimited(b'\n'),
            flags: 0,
            count: lines.len() as u32,
            payload: payload.as_bytes(),
            producer: ProducerId(0),
            sequence: Sequence(0),
            epoch: Epoch(0),
        };
        self.log.append(self.now, WallTime(self.now.0), &batch)
    }

    /// Appends, running whatever jobs that takes.
    pub fn append(&mut self, lines: &[&str]) -> OffsetRange {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        loop {
            match self.try_append(&lines) {
                Ok(range) => return range,
                Err(AppendError::NotYet) => {
                    self.collect();
                    assert!(!self.jobs.is_empty(), "nothing to wait for");
                    self.run(0);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// All messages from `from` on, with their offsets, taken as a receiver takes them.
    pub fn read(&mut self, from: Offset, max_bytes: usize) -> Result<Vec<(u64, String)>, LogError> {
        let mut found = Vec::new();
        let mut at = from;
        while at < self.log.visible_end() {
            let got =
                match self.log.locate(at, self.log.visible_end(), max_bytes, &Select::default()) {
                    Err(LogError::Gone(_)) => {
                        at = Offset(at.0 + 1);
                        continue;
                    }
                    other => other?,
                };
            at = self.take(got, &mut found)?.unwrap_or(at);
        }
        Ok(found)
    }

    pub fn take(
        &mut self,
        got: Found<SimDisk>,
        found: &mut Vec<(u64, String)>,
    ) -> Result<Option<Offset>, LogError> {
        match got {
            Found::Whole { file, place, bytes, end, .. } => {
                let mut buffer = vec![0; bytes as usize];
                fetch(&file, &mut buffer, place)?;
                self.unpack(&buffer, place, found)?;
                Ok(Some(end))
            }
            Found::Cut { bytes, end, .. } => {
                self.unpack(&bytes, Place::cut(self.log.id()), found)?;
                Ok(Some(end))
            }
            Found::Chain { file, parts, end, .. } => {
                let mut record = Vec::new();
                for (place, bytes) in parts {
                    let mut buffer = vec![0; bytes as usize];
                    fetch(&file, &mut buffer, place)?;
                    let header = BatchHeader::decode(&buffer, &place).unwrap();
                    if header.verify(&buffer[HEADER_BYTES..]).is_err() {
                        self.log.complaint(place)?;
                    }
                    record.extend_from_slice(&buffer[HEADER_BYTES..]);
                }
                let body: Vec<&[u8]> = bodies(Framing::Records, &record).collect();
                found.push((end.0 - 1, String::from_utf8(body[0].to_vec()).unwrap()));
                Ok(Some(end))
            }
            Found::Expired { end } | Found::NotOurs { end } => Ok(Some(end)),
            Found::Cold { read } => {
                let done = read.run();
                self.log.complete(self.now, done);
                Ok(None)
            }
        }
    }

    pub fn unpack(
        &mut self,
        mut bytes: &[u8],
        mut place: Place,
        found: &mut Vec<(u64, String)>,
    ) -> Result<(), LogError> {
        while !bytes.is_empty() {
            let header = BatchHeader::decode(bytes, &place).unwrap();
            let payload = &bytes[HEADER_BYTES..header.length() as usize];
            if header.verify(payload).is_err() {
                self.log.complaint(place)?;
                panic!("the log says that a bad batch is good");
            }
            let messages = header.messages_part(payload).unwrap();
            for (n, body) in bodies(header.framing, messages).enumerate() {
                let body = String::from_utf8(body.to_vec()).unwrap();
                found.push((header.offset.0 + n as u64, body));
            }
            bytes = &bytes[header.length() as usize..];
            place = place.advanced(header.length());
        }
        Ok(())
    }

    /// Stops in order.
    pub fn close(&mut self) {
        for _ in 0..1000 {
            while let Some(job) = self.log.close_jobs(self.now) {
                self.jobs.push(job);
            }
            if self.jobs.is_empty() {
                break;
            }
            self.run(0);
        }
        assert!(self.log.is_closed_cleanly(), "the log does not close");
    }
}

/// Reads as a server's `sendfile` would.
fn fetch(file: &SimFile, buffer: &mut [u8], place: Place) -> Result<(), LogError> {
    file.read_at(buffer, place.position).map(|_| ()).map_err(|source| LogError::Io {
        doing: "reading",
        path: "a segment".into(),
        source,
    })
}
