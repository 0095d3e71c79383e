//! Dealing with one batch: its trial, what is committed of it, and its dead letters.
//!
//! Which of these comes next the trial says; this does it. Called by `run`, and for a commit by
//! [`windowed`](super::windowed).

use super::committer::Commit;
use super::held::alone;
use super::load::Load;
use super::mark::Mark;
use super::report::{Host, Note, PipeError};
use super::run::{Failure, Pipe, Session};
use super::source::{Input, Letter, SourceError, Word};
use super::trial::{Ran, Rules, Step, Trial};
use crate::client::delivery::DeliveryError;
use crate::units::{Offset, OffsetRange};

impl<H: Host> Pipe<'_, H> {
    /// What is found damaged as it is given to the filter the server is told of, whose word counts.
    pub(super) fn complain(session: &mut Session, error: PipeError) -> PipeError {
        let PipeError::Source(SourceError::Garbled(DeliveryError::Damaged {
            segment,
            position,
            ..
        })) = &error
        else {
            return error;
        };
        session.source.complain(*segment, *position);
        while let Some(input) = session.source.next() {
            if let Input::Failed(said) = input {
                return said.into();
            }
        }
        error
    }

    /// Runs the filter on a batch until all of it is committed or given up.
    pub(super) fn deal_with(
        &mut self,
        session: &mut Session,
        mut load: Load,
    ) -> Result<(), PipeError> {
        if session.loader.take_ambiguous() {
            self.host.note(Note::Ambiguous);
        }
        let rules = Rules {
            limit: session.limit,
            may_bury: self.order.buries && self.has_acks,
            may_halve: true,
            backoff: self.order.backoff,
        };
        let mut trial = Trial::new(load.count(), rules);
        let mut outputs = Vec::new();
        // Given up, and named by no commit yet.
        let mut dead = 0;
        loop {
            let step = trial.step();
            if let Step::Run(range) | Step::Commit(range) | Step::Dead(range, _) = &step
                && *range != (0..load.count())
            {
                load.read_in().map_err(SourceError::Garbled)?;
            }
            match step {
                Step::Run(range) => {
                    let part = load.part(range);
                    let ran = self.try_on(session, &part, &mut outputs)?;
                    if ran == Ran::TooMuch && part.count() == 1 {
                        return Err(PipeError::TooMuch(part.first().unwrap_or_default()));
                    }
                    trial.ran(ran);
                }
                Step::Commit(range) => {
                    let outputs = std::mem::take(&mut outputs);
                    let read = range.end - range.start + std::mem::take(&mut dead);
                    self.commit(session, &load.part(range), read, outputs)?;
                }
                Step::Dead(range, attempts) => {
                    dead += range.end - range.start;
                    for n in range {
                        self.bury(session, &load.part(n..n + 1), attempts);
                    }
                }
                Step::Pause(pause) => {
                    let (messages, count) = at_fault(&trial, &mut load)?;
                    let pause = pause.to_duration();
                    let reason = self.failure.reason.as_str();
                    self.host.note(Note::Failed { messages, count, reason, pause });
                    if self.pause(pause, Some(session))? {
                        return Err(PipeError::Interrupted);
                    }
                }
                Step::GiveUp => {
                    let (messages, _) = at_fault(&trial, &mut load)?;
                    let reason = self.failure.reason.clone();
                    self.drain(session, None)?;
                    return Err(PipeError::GaveUp { messages, reason });
                }
                Step::Done if dead > 0 => {
                    // Of a control, whose effects have been committed before.
                    if let Some(state) = &mut session.state {
                        state.abandon_kept()?;
                    }
                    return self.commit(session, &load, dead, Vec::new());
                }
                Step::Done => return Ok(()),
            }
        }
    }

    /// Commits the outputs of a part, up to its end, after so many messages more.
    fn commit(
        &mut self,
        session: &mut Session,
        part: &Load,
        read: u64,
        outputs: Vec<Vec<u8>>,
    ) -> Result<(), PipeError> {
        let next = part.end().expect("what ran had messages");
        self.commit_at(session, (next, next), read, outputs)
    }

    /// Hands over a commit that goes on at `next` and holds the source at `floor`, after so many
    /// more messages.
    pub(super) fn commit_at(
        &mut self,
        session: &mut Session,
        (next, floor): (Offset, Offset),
        read: u64,
        outputs: Vec<Vec<u8>>,
    ) -> Result<(), PipeError> {
        while !session.committer.has_room() {
            self.hear(session)?;
            if !session.committer.has_room() {
                self.wait_committer(session, None)?;
            }
        }
        let mark = &mut session.mark;
        if let Some(state) = &mut session.state {
            mark.state = Some(state.seal()?);
        }
        mark.src_id = session.id;
        mark.turn = session.turn;
        mark.figures.batches += 1;
        mark.figures.read += read;
        let commit = match self.order.is_at_engine() {
            // Offsets that mean nothing to another session.
            true => {
                let mark = Mark { next: Offset(0), ..mark.clone() };
                Commit { outputs, mark, settles: floor }
            }
            false => Commit::new(outputs, Mark { next, floor, ..mark.clone() }),
        };
        session.committer.push(commit);
        Ok(())
    }

    /// One message is a dead letter.
    fn bury(&mut self, session: &mut Session, one: &Load, attempts: u32) {
        let Some(offset) = one.first() else { return };
        session.mark.note_dead(offset);
        if self.order.is_at_engine() {
            session.mark.dead.clear();
        }
        let Failure { reason, stderr } = &self.failure;
        self.host.note(Note::Dead { offset, reason });
        let letter = Letter {
            messages: vec![alone(offset)],
            attempts,
            reason: reason.clone(),
            stderr: String::from_utf8_lossy(stderr).into_owned(),
        };
        session.source.words().push(Word::Bury(letter), 0);
    }
}

/// The messages on which the filter failed, and how many they are.
fn at_fault(trial: &Trial, load: &mut Load) -> Result<(OffsetRange, u64), PipeError> {
    let part = trial.at_fault();
    if part == (0..load.count()) {
        return Ok((range_of(load), load.count()));
    }
    load.read_in().map_err(SourceError::Garbled)?;
    let part = load.part(part);
    Ok((range_of(&part), part.count()))
}

fn range_of(load: &Load) -> OffsetRange {
    let first = load.first().unwrap_or_default();
    OffsetRange::new(first, load.end().unwrap_or(first))
}
