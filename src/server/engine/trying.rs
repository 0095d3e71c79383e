//! Tries: BEGIN counts one, NACK ends one that failed, and the pause before the next.

use crate::broker::{ConsumerKey, GroupKey, Pause};
use crate::log::storage::Storage;
use crate::settings::Backoff;
use crate::units::{Attempts, Moment, Monotonic, Offset, OffsetRange};
use crate::wire::{Begun, Nack};

use super::groups::tried_facts;
use super::{ConnectionId, Engine, QueueNumber, Trouble, protocol};

/// When a message that fails now is ready again.
pub(super) fn rests(
    backoff: Option<Backoff>,
    clock: Moment,
) -> impl FnMut(Offset, Attempts) -> Monotonic {
    let backoff = backoff.unwrap_or_default();
    move |offset, attempts| clock.now.plus(backoff.rest(offset, attempts.0))
}

impl<S: Storage> Engine<S> {
    pub(super) fn begin(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        ranges: &[OffsetRange],
    ) -> Result<(), Trouble> {
        let Some(receiver) = self.receiver(connection, channel)? else { return Ok(()) };
        let Some(group) = receiver.group.filter(|_| receiver.how.tries) else {
            return Err(protocol("a BEGIN from a receiver that does not try"));
        };
        let counted = self.broker.begin(receiver.consumer, ranges);
        self.count_begun(receiver.queue, group, ranges);
        self.note(
            receiver.queue,
            group,
            &tried_facts(&counted, self.journal_clock(receiver.queue)),
        );
        Ok(())
    }

    /// What a receiver that came back had begun counts, if the last server was not told.
    pub(super) fn has_begun(
        &mut self,
        (queue, group): (QueueNumber, GroupKey),
        consumer: ConsumerKey,
        begun: &[Begun],
    ) {
        for Begun { attempt, ranges } in begun {
            let raised = self.broker.has_begun(consumer, ranges, *attempt);
            self.note(queue, group, &tried_facts(&raised, self.journal_clock(queue)));
        }
    }

    pub(super) fn nack(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        nack: &Nack,
    ) -> Result<(), Trouble> {
        let Some(receiver) = self.receiver(connection, channel)? else { return Ok(()) };
        let Some(group) = receiver.group else {
            return Err(protocol("a NACK from a receiver that only looks"));
        };
        // A try that was not announced, to us at least, counts all the same.
        let mut known = match nack.attempt {
            Attempts(0) => self.broker.begin(receiver.consumer, &nack.ranges),
            attempt => self.broker.has_begun(receiver.consumer, &nack.ranges, attempt),
        };
        let tried = if nack.dead {
            self.broker.bury(receiver.consumer, &nack.ranges)
        } else {
            let rest: Pause<'_> = &mut rests(receiver.how.backoff, self.clock);
            self.broker.nack(receiver.consumer, &nack.ranges, rest)
        };
        known.extend(tried.iter().copied());
        let failed: Vec<OffsetRange> = tried.iter().map(|tried| tried.range).collect();
        self.note_failure(group, &failed, nack, self.clock);
        self.count_failed(receiver.queue, group, &failed);
        self.note(receiver.queue, group, &tried_facts(&known, self.journal_clock(receiver.queue)));
        Ok(())
    }
}
