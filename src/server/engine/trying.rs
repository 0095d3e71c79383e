//! Tries: BEGIN counts one, NACK ends one that failed, and the pause before the next.

use crate::broker::{ConsumerKey, GroupKey, Pause};
use crate::limits;
use crate::log::storage::Storage;
use crate::settings::Backoff;
use crate::units::{Attempts, Micros, Moment, Monotonic, Offset, OffsetRange};
use crate::wire::{Begun, Nack};

use super::groups::tried_facts;
use super::{ConnectionId, Engine, QueueNumber, Trouble, protocol};

/// How long a message rests after a failed attempt: the first pause, doubled with each attempt up
/// to the longest, and up to a quarter more, so that what failed together does not come again
/// together. The quarter depends on the message and the attempt only.
fn pause(backoff: Backoff, offset: Offset, attempts: Attempts) -> Micros {
    let doubled = backoff.first.0.saturating_mul(1 << (attempts.0.saturating_sub(1)).min(40));
    let whole = doubled.min(backoff.max.0).min(limits::BACKOFF_LONGEST.0);
    // splitmix64: every bit of the input reaches every bit of the outcome.
    let mut mixed = offset.0 ^ (u64::from(attempts.0) << 48);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let share = (mixed ^ (mixed >> 31)) >> 32;
    Micros(whole + ((u128::from(whole / 4) * u128::from(share)) >> 32) as u64)
}

/// When a message that fails now is ready again.
pub(super) fn rests(
    backoff: Option<Backoff>,
    clock: Moment,
) -> impl FnMut(Offset, Attempts) -> Monotonic {
    let backoff = backoff.unwrap_or_default();
    move |offset, attempts| clock.now.plus(pause(backoff, offset, attempts))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_by_a_quarter() {
        let backoff = Backoff { first: Micros(1_000), max: Micros(6_000) };
        for (attempts, whole) in [(1, 1_000), (2, 2_000), (3, 4_000), (4, 6_000), (200, 6_000)] {
            let pauses: Vec<u64> =
                (0..1_000).map(|n| pause(backoff, Offset(n), Attempts(attempts)).0).collect();
            assert!(pauses.iter().all(|pause| (whole..=whole + whole / 4).contains(pause)));
            let (low, high) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
            assert!(high - low > whole / 5, "{low} to {high} after {attempts}");
        }
        let endless = Backoff { first: Micros(u64::MAX), max: Micros(u64::MAX) };
        let longest = limits::BACKOFF_LONGEST.0;
        assert!(pause(endless, Offset(1), Attempts(9)).0 <= longest + longest / 4);
    }
}
