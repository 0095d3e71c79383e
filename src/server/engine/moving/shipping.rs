//! What a mover sends: a parcel with one append, a large message by way of a staging file.

use crate::batch::{Framing, flags};
use crate::log::storage::Storage;
use crate::log::{AppendError, InternalBatch, NewChain, Staging};
use crate::units::{Epoch, Moment, Name, OffsetRange, ProducerId, Sequence};

use super::parcel::Parcel;
use super::waybill::Waybill;
use super::{
    Cargo, Copying, Engine, FoundChain, Hitch, Lane, Large, Look, NotCopied, Phase, QueueNumber,
    Work,
};
use crate::broker::GroupKey;
use crate::server::engine::hosting::ChainOwner;

impl<S: Storage> Engine<S> {
    /// The mover's epoch and sequence in the destination, where it is opened first.
    fn open_mover(
        &mut self,
        dest: QueueNumber,
        producer: ProducerId,
        moment: Moment,
    ) -> Result<(Epoch, Sequence), Hitch<S>> {
        let hosted = self.hosted.get_mut(&dest).expect("a destination that was found");
        if !self.movers.opened.contains(&(dest, producer)) {
            if let Err(error) = hosted.log.open_producer(moment.now, moment.wall, producer) {
                return Err(self.not_appended(dest, &error));
            }
            self.movers.opened.insert((dest, producer));
        }
        let hosted = self.hosted.get_mut(&dest).expect("a destination that was found");
        Ok(hosted.log.producers().last(producer).expect("it was opened"))
    }

    pub(super) fn not_appended(&mut self, dest: QueueNumber, error: &AppendError) -> Hitch<S> {
        let name = &self.hosted[&dest].name;
        match error {
            AppendError::NotYet => Hitch::WaitFor(dest),
            AppendError::Full { .. } | AppendError::TooManyProducers => {
                Hitch::Rest(format!("messages cannot be moved to {name}: {error}"))
            }
            AppendError::Failed(why) => {
                let why = format!("cannot store messages in {name}: {why}");
                self.failed.get_or_insert(why);
                Hitch::Over
            }
        }
    }

    pub(super) fn send_parcel(
        &mut self,
        lane: Lane,
        group: GroupKey,
        parcel: Parcel,
        dest: QueueNumber,
        only: Option<Name>,
        moment: Moment,
    ) -> Result<Phase<S>, Hitch<S>> {
        let mover = self.mover(lane, group);
        let producer = mover.producer();
        let sent = self.open_mover(dest, producer, moment).and_then(|(epoch, last)| {
            let sequence = Sequence(last.0 + u64::from(parcel.count));
            let waybill = Waybill { mover, sequence, ranges: parcel.ranges.clone() };
            let batch = InternalBatch {
                producer,
                epoch,
                sequence,
                annex: &waybill.encode(),
                framing: Framing::Records,
                flags: if only.is_some() { flags::SELECTIVE } else { 0 },
                count: parcel.count,
                messages: &parcel.payload,
            };
            let hosted = self.hosted.get_mut(&dest).expect("a destination that was found");
            let appended = hosted.log.append_internal(moment.now, moment.wall, &batch);
            appended.map_err(|error| self.not_appended(dest, &error))
        });
        match sent {
            Ok(committed) => {
                self.reserve_for(dest, committed.range, only);
                self.touch(dest);
                let (mark, ranges) = (committed.mark, parcel.ranges);
                Ok(Phase::Committed { dest, mark, ranges })
            }
            Err(hitch) => {
                // What a request has in hand is not looked for again.
                if let Some(request) = &mut self.movers.lanes.get_mut(&lane).expect("it").request {
                    request.in_hand = Some(Look::Parcel(parcel, dest, only));
                }
                Err(hitch)
            }
        }
    }

    /// Messages that will be visible are for one group only.
    fn reserve_for(&mut self, dest: QueueNumber, range: OffsetRange, only: Option<Name>) {
        if let Some(group) = only {
            let hosted = self.hosted.get_mut(&dest).expect("a destination that was found");
            hosted.only.push_back((range, group));
        }
    }

    /// Starts to copy a large message.
    pub(super) fn copy_large(
        &mut self,
        lane: Lane,
        large: Large,
        cargo: Cargo<S>,
    ) -> Result<Phase<S>, Hitch<S>> {
        let hosted = self.hosted.get_mut(&large.dest).expect("a destination that was found");
        let staging = hosted.log.stage_begin().and_then(|mut staging| {
            if let Cargo::Record(record) = &cargo {
                staging.push(record)?;
            }
            Ok(staging)
        });
        match (staging, cargo) {
            (Ok(staging), Cargo::Record(_)) => Ok(Phase::Staged(large, staging)),
            (Ok(staging), Cargo::Chain(chain, change)) => {
                let FoundChain { file, parts, .. } = *chain;
                self.jobs.push(Work::copy(lane, Copying { file, parts, change, staging }));
                Ok(Phase::Copying(large))
            }
            (Err(error), cargo) => {
                let name = &self.hosted[&large.dest].name;
                let why = format!("a large message cannot be moved to {name}: {error}");
                if let Some(request) = &mut self.movers.lanes.get_mut(&lane).expect("it").request {
                    request.in_hand = Some(Look::Large(large, cargo));
                }
                Err(Hitch::Rest(why))
            }
        }
    }

    /// A large message was copied, or could not be.
    pub(in crate::server::engine) fn copied(
        &mut self,
        lane: Lane,
        result: Result<Staging<S>, NotCopied>,
        moment: Moment,
    ) {
        let Some(state) = self.movers.lanes.get_mut(&lane) else { return };
        // Its group may have been removed meanwhile, and the lane be that of another.
        let Phase::Copying(large) = &state.phase else { return };
        let large = large.clone();
        state.phase = Phase::Looking;
        match result {
            Ok(staging) => {
                state.phase = Phase::Staged(large, staging);
                self.movers.woken.insert(lane);
            }
            Err(NotCopied::Staging(error)) => {
                let why = format!("a large message cannot be moved: {error}");
                self.drop_in_hand(lane);
                self.hold_mover(lane, Hitch::Rest(why), moment);
            }
            Err(NotCopied::Source(unreadable)) => {
                drop(self.source_damaged(lane.source(), unreadable));
            }
        }
    }

    /// Appends a large message that was staged. Its waybill goes in front of it.
    pub(super) fn append_large(
        &mut self,
        lane: Lane,
        group: GroupKey,
        large: Large,
        staging: Staging<S>,
        moment: Moment,
    ) -> Result<Option<Phase<S>>, Hitch<S>> {
        let dest = large.dest;
        if self.hosted.get(&dest).is_none_or(|hosted| hosted.removing.is_some()) {
            self.drop_in_hand(lane);
            return Ok(Some(Phase::Looking));
        }
        let mover = self.mover(lane, group);
        let producer = mover.producer();
        let appended = if self.hosted[&dest].chain.is_some() {
            Err(Hitch::WaitFor(dest))
        } else {
            self.open_mover(dest, producer, moment).and_then(|(epoch, last)| {
                let sequence = Sequence(last.0 + 1);
                let waybill = Waybill { mover, sequence, ranges: vec![large.range] };
                let batch = InternalBatch {
                    producer,
                    epoch,
                    sequence: last,
                    annex: &waybill.encode(),
                    framing: Framing::Records,
                    flags: 0,
                    count: 0,
                    messages: &[],
                };
                let flags = if large.only.is_some() { flags::SELECTIVE } else { 0 };
                let chain = NewChain { flags, producer, sequence, epoch };
                let log = &mut self.hosted.get_mut(&dest).expect("it was found").log;
                log.admit_chain(&staging, batch.annex)
                    .and_then(|()| log.append_internal(moment.now, moment.wall, &batch))
                    .and_then(|_| log.append_chain(moment.wall, &staging, &chain))
                    .map_err(|error| self.not_appended(dest, &error))
            })
        };
        match appended {
            Ok(()) => {
                self.hosted.get_mut(&dest).expect("it is there").chain =
                    Some(ChainOwner::Mover(lane));
                self.touch(dest);
                Ok(Some(Phase::Chaining(large)))
            }
            Err(Hitch::Rest(why)) => {
                self.drop_in_hand(lane);
                Err(Hitch::Rest(why))
            }
            Err(hitch) => {
                let state = self.movers.lanes.get_mut(&lane).expect("it is there");
                state.phase = Phase::Staged(large, staging);
                Err(hitch)
            }
        }
    }

    /// A large message stands in its destination, or could not be appended.
    pub(in crate::server::engine) fn large_moved(
        &mut self,
        lane: Lane,
        dest: QueueNumber,
        result: Result<OffsetRange, AppendError>,
    ) {
        let Some(state) = self.movers.lanes.get_mut(&lane) else { return };
        let Phase::Chaining(large) = &state.phase else { return };
        let large = large.clone();
        state.phase = Phase::Looking;
        match result {
            Ok(range) => {
                let log = &mut self.hosted.get_mut(&dest).expect("a queue with a job").log;
                log.want_durable();
                let mark = log.written_bytes();
                let ranges = vec![large.range];
                let committed = Phase::Committed { dest, mark, ranges };
                self.movers.lanes.get_mut(&lane).expect("it is there").phase = committed;
                self.reserve_for(dest, range, large.only);
            }
            Err(error) => {
                self.drop_in_hand(lane);
                if let Hitch::Rest(why) = self.not_appended(dest, &error) {
                    self.movers.troubles.insert(lane.source(), why);
                }
            }
        }
        self.movers.woken.insert(lane);
    }

    /// What a request had in hand is given back: it is offered again.
    pub(super) fn drop_in_hand(&mut self, lane: Lane) {
        let state = self.movers.lanes.get(&lane);
        if let Some(request) = state.and_then(|state| state.request.as_ref()) {
            let consumer = request.consumer;
            let held: Vec<OffsetRange> = self.broker.held(consumer).iter().collect();
            self.broker.release(consumer, &held);
        }
    }
}
