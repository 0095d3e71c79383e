//! The worker: a command for each message, or for each batch of them.
//!
//! ```text
//!          accept          begin             launch            settle
//! messages ──────▶ lots ──────────▶ chosen ──────────▶ running ──────▶ ACK, NACK, RELEASE
//!                         BEGIN, out to the server       │
//!                                                     a process
//! ```
//!
//! A try counts as an attempt once the server's socket has been handed the word of it, and only
//! then does the command start; so a message that ends whatever works on it is known to have been
//! tried. What a command's end means is in `job::verdict`. The worker is a
//! [`Sink`] of the [receiver](super::receive), which talks to the server for it; the processes
//! are the [pool](super::command)'s. It prints nothing.

mod facts;
mod job;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::event::epoll::EventFlags;

use super::command::{self, Finished, Pool, Spec, StartError};
use super::credit::{Credit, messages_in};
use super::delivery::{Batch, Origin};
use super::envelope;
use super::format::Format;
use super::ledger::Settled;
use super::outlet;
use super::piece::Slice;
use super::receive::{Alarm, MemberNumber, Members, Note, ReceiveError, Sink, Taking, Tally, Turn};
use crate::batch::{self, BatchError};
use crate::limits;
use crate::units::{Attempts, Monotonic, Name, Offset, OffsetRange};
use crate::wire::{Begun, Nack};
use facts::Facts;
use job::{Job, Lot, Message, Verdict, verdict};

/// What to run for messages.
#[derive(Clone, Debug)]
pub struct Work {
    /// The command.
    pub command: Spec,
    /// Messages that one command is given at most; `None`: one, and nothing is said of batches.
    pub batch: Option<usize>,
    /// The group that messages are received for.
    pub group: Name,
}

/// See the module's page.
pub struct Worker {
    work: Work,
    pool: Pool,
    format: Format,
    facts: Facts,
    /// Not begun, in the order in which they came, as far as they go together.
    lots: VecDeque<Lot>,
    /// Bytes in them.
    waiting_bytes: usize,
    /// The server is being told that a try of these begins.
    chosen: VecDeque<Job>,
    /// By the number that the pool knows them by.
    running: HashMap<u64, Job>,
    next_id: u64,
    /// Begins nothing more.
    is_stopping: bool,
    /// How often the commands were asked to end.
    hurries: u32,
    tally: Tally,
}

impl Worker {
    /// Runs commands on messages in this format.
    ///
    /// # Errors
    /// The command cannot be run.
    pub fn new(work: Work, format: Format) -> Result<Worker, StartError> {
        Ok(Worker {
            pool: Pool::new(work.command.clone())?,
            facts: Facts::new(work.group.clone(), work.batch.is_some()),
            work,
            format,
            lots: VecDeque::new(),
            waiting_bytes: 0,
            chosen: VecDeque::new(),
            running: HashMap::new(),
            next_id: 0,
            is_stopping: false,
            hurries: 0,
            tally: Tally::default(),
        })
    }

    fn batch(&self) -> usize {
        self.work.batch.unwrap_or(1)
    }

    /// The lot that messages of this queue and attempt go into.
    fn lot(&mut self, member: MemberNumber, attempt: Attempts) -> &mut Lot {
        let found =
            self.lots.iter().rposition(|lot| (lot.member, lot.attempt) == (member, attempt));
        let index = found.unwrap_or_else(|| {
            self.lots.push_back(Lot { member, attempt, messages: VecDeque::new() });
            self.lots.len() - 1
        });
        &mut self.lots[index]
    }

    /// The next messages to be worked on, from the first queue that can be told of it.
    fn choose(&mut self, members: &Members) -> Option<Job> {
        let index = self.lots.iter().position(|lot| members.at(lot.member).is_open())?;
        let batch = self.batch();
        let job = self.lots[index].take(batch);
        if self.lots[index].messages.is_empty() {
            self.lots.remove(index);
        }
        self.waiting_bytes -= job.bytes();
        Some(job)
    }

    /// Puts messages back that were chosen and not begun.
    fn put_back(&mut self, job: Job) {
        self.waiting_bytes += job.bytes();
        let (member, attempt) = (job.member, job.attempt);
        self.lots.push_front(Lot { member, attempt, messages: job.messages.into() });
    }

    fn finished(&mut self, finished: Finished, turn: &mut Turn<'_>) -> Result<(), ReceiveError> {
        let Some(job) = self.running.remove(&finished.id) else { return Ok(()) };
        let ours = messages_in(&job.ranges);
        turn.credit.taken(turn.now, ours, self.is_empty());
        let count = job.count as u64;
        self.tally.messages += count;
        let (reason, dead) = match verdict(finished.outcome, self.work.command.timeout) {
            Verdict::Done => {
                job.ranges.iter().for_each(|range| turn.members.settle(job.member, *range));
                return Ok(());
            }
            Verdict::Unrunnable(status) => {
                self.tally.messages -= count;
                job.give_back(turn.members);
                let command = self.work.command.argv[0].to_string_lossy().into_owned();
                return Err(ReceiveError::Unrunnable { command, status });
            }
            // Nobody reads what commands print: they fail for that, and not for their messages.
            Verdict::Failed { .. } if outlet::is_stdout_deserted() => {
                self.tally.messages -= count;
                job.give_back(turn.members);
                return Err(ReceiveError::Deserted);
            }
            // We ended it ourselves.
            Verdict::Failed { .. } if self.hurries > 0 => {
                job.give_back(turn.members);
                return Ok(());
            }
            Verdict::Failed { reason, dead } => (reason, dead),
        };
        self.tally.failed += count;
        let limit = turn.members.at(job.member).delivery_limit;
        if dead || (job.attempt.0 > 0 && limit.is_some_and(|limit| job.attempt.0 >= limit)) {
            self.tally.dead += ours;
        }
        let stderr = job::text_tail(&finished.stderr_tail);
        let Job { ranges, attempt, .. } = job;
        turn.members.fail(job.member, Nack { ranges, attempt, dead, reason, stderr });
        Ok(())
    }
}

impl Sink for Worker {
    const TRIES: bool = true;

    /// What runs, and as much again, so that no command waits for the server.
    fn credit(&self, limit: Option<u64>, _: Taking) -> Credit {
        let window = 2 * self.work.command.parallel as u64 * self.batch() as u64;
        Credit::fixed(window.min(limits::CREDIT_MAX), limit)
    }

    fn accept(
        &mut self,
        member: MemberNumber,
        origin: &Origin<'_>,
        batch: Batch,
        which: Range<u64>,
    ) -> Result<(), BatchError> {
        let Batch { header, payload, .. } = batch;
        batch::check_messages(header.framing, payload.bytes(), header.count)?;
        let mut bytes = Vec::with_capacity(payload.bytes().len() + 1);
        let mut messages = Vec::new();
        for message in envelope::messages(*origin, &header, payload.bytes()) {
            let number = message.offset.0 - header.offset.0;
            if !which.contains(&number) {
                continue;
            }
            let start = bytes.len();
            self.format.push(&message, &mut bytes);
            messages.push((message.offset, start, message.attributes.bytes().into()));
        }
        let buffer = Arc::new(bytes);
        self.waiting_bytes += buffer.len();
        let ends: Vec<usize> = messages.iter().skip(1).map(|m| m.1).chain([buffer.len()]).collect();
        let lot = self.lot(member, origin.attempt);
        for ((offset, start, attributes), end) in messages.into_iter().zip(ends) {
            let input = Slice::new(Arc::clone(&buffer), start..end);
            lot.messages.push_back(Message { offset, time: header.time, attributes, input });
        }
        Ok(())
    }

    fn take_note(&mut self) -> Option<Note> {
        self.pool.take_stopped().map(Note::Stopped)
    }

    fn wants_more(&self) -> bool {
        self.waiting_bytes < limits::WORK_AHEAD_BYTES
    }

    fn push(&mut self, _: &mut Turn<'_>) -> Result<(), ReceiveError> {
        Ok(())
    }

    fn settle(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError> {
        let mut result = Ok(());
        for finished in self.pool.turn(turn.now) {
            let outcome = self.finished(finished, turn);
            result = result.and(outcome);
        }
        result
    }

    fn begin(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError> {
        if self.is_stopping {
            return Ok(());
        }
        while self.pool.running() + self.chosen.len() < self.work.command.parallel {
            let Some(job) = self.choose(turn.members) else { break };
            // Before anything counts as an attempt. It may have been removed meanwhile.
            if let Err(error) = self.pool.check() {
                self.put_back(job);
                return Err(error.into());
            }
            turn.members.begin(job.member, &job.ranges);
            self.chosen.push_back(job);
        }
        Ok(())
    }

    fn launch(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError> {
        while let Some(mut job) = self.chosen.pop_front() {
            let id = self.next_id;
            self.next_id += 1;
            let env = self.facts.of(&job, turn.members.at(job.member));
            let input = job.take_input();
            self.tally.bytes += input.iter().map(|slice| slice.bytes().len() as u64).sum::<u64>();
            if let Err(error) = self.pool.start(command::Job { id, input, env }, turn.now) {
                job.give_back(turn.members);
                return Err(error.into());
            }
            self.running.insert(id, job);
        }
        Ok(())
    }

    /// Commands that run do so to their end; the rest is given back.
    fn stop(&mut self, members: &mut Members) {
        self.is_stopping = true;
        self.chosen.drain(..).for_each(|job| job.give_back(members));
        for lot in self.lots.drain(..) {
            lot.give_back(members);
        }
        self.waiting_bytes = 0;
    }

    /// Asks the commands to end, which the pool enforces after a grace; once more, and it does so
    /// at once.
    fn hurry(&mut self, now: Monotonic) {
        self.hurries += 1;
        if self.hurries == 1 {
            self.pool.terminate(now);
        } else {
            self.pool.kill();
        }
    }

    fn hasten(&mut self, _: Monotonic, _: bool) {}

    fn look_last(&mut self) {}

    fn is_gone(&self) -> bool {
        false
    }

    fn is_busy(&self) -> bool {
        !self.running.is_empty()
    }

    fn is_begun(&self) -> bool {
        !self.running.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.running.is_empty() && self.chosen.is_empty() && self.lots.is_empty()
    }

    fn held(&self, member: MemberNumber) -> Vec<OffsetRange> {
        let mut held = Settled::default();
        let jobs = self.running.values().chain(&self.chosen).filter(|job| job.member == member);
        jobs.flat_map(|job| &job.ranges).for_each(|range| held.push(*range));
        let lots = self.lots.iter().filter(|lot| lot.member == member);
        lots.flat_map(Lot::ranges).for_each(|range| held.push(range));
        held.take()
    }

    fn begun(&self, member: MemberNumber) -> Vec<Begun> {
        let jobs = self.running.values().filter(|job| job.member == member);
        let told = |job: &Job| Begun { attempt: job.attempt, ranges: job.ranges.clone() };
        jobs.filter(|job| job.attempt.0 > 0 && !job.ranges.is_empty()).map(told).collect()
    }

    fn keep(&mut self, member: MemberNumber, kept: &[OffsetRange]) -> Vec<OffsetRange> {
        // On a connection that goes on, some may be chosen: nothing has begun for them either.
        let (of_it, others) = self.chosen.drain(..).partition(|job| job.member == member);
        self.chosen = others;
        let of_it: VecDeque<Job> = of_it;
        of_it.into_iter().rev().for_each(|job| self.put_back(job));
        let mut dropped = Settled::default();
        for lot in self.lots.iter_mut().filter(|lot| lot.member == member) {
            lot.keep(kept, &mut dropped);
        }
        self.lots.retain(|lot| !lot.messages.is_empty());
        self.waiting_bytes = self.lots.iter().map(Lot::bytes).sum();
        for job in self.running.values_mut().filter(|job| job.member == member) {
            job.keep(kept);
        }
        dropped.take()
    }

    /// What was chosen may not have been told, and is chosen anew.
    fn lost(&mut self) {
        while let Some(job) = self.chosen.pop_back() {
            self.put_back(job);
        }
    }

    fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        Some((self.pool.as_fd(), PollFlags::IN))
    }

    fn polled(&mut self, _: PollFlags) {}

    /// Commands go on while a server is waited for.
    fn alarm(&self) -> Option<Alarm<'_>> {
        let at = self.pool.next_deadline();
        Some(Alarm { fd: self.pool.as_fd(), events: EventFlags::IN, at })
    }

    fn alarmed(&mut self) {}

    fn deadline(&self) -> Option<Monotonic> {
        self.pool.next_deadline()
    }

    fn tally(&self) -> Tally {
        self.tally
    }
}

/// The messages of ascending offsets as ranges, merged.
fn ranges_of(offsets: impl Iterator<Item = Offset>) -> Vec<OffsetRange> {
    let mut ranges = Settled::default();
    for offset in offsets {
        ranges.push(OffsetRange::new(offset, Offset(offset.0 + 1)));
    }
    ranges.take()
}
