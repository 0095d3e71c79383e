//! Waybills after a start, and when what they say must not be believed any more.

use std::collections::BTreeMap;

use crate::batch::Framing;
use crate::broker::GroupKey;
use crate::log::InternalBatch;
use crate::log::storage::Storage;
use crate::planted::{self, Bug};
use crate::units::{Ending, Moment};

use super::waybill::{Mover, Purpose, Waybill};
use super::{Engine, QueueNumber};

impl<S: Storage> Engine<S> {
    /// After a start, before anything is served: what the last waybill of each mover names is
    /// settled in its source.
    pub(in crate::server::engine) fn settle_waybills(&mut self) {
        let mut waybills = Vec::new();
        for hosted in self.hosted.values_mut() {
            let producers = hosted.log.producers();
            for (producer, annex) in producers.annexes() {
                let Some(waybill) = Waybill::decode(annex) else { continue };
                let stored = producers.last(producer).is_some_and(|(_, s)| s >= waybill.sequence);
                if stored && !waybill.ranges.is_empty() && !planted::is(Bug::WaybillIgnored) {
                    waybills.push(waybill);
                }
            }
        }
        let numbers: BTreeMap<_, _> =
            self.hosted.iter().map(|(number, hosted)| (hosted.log.id(), *number)).collect();
        for waybill in waybills {
            let Some(&number) = numbers.get(&waybill.mover.source) else { continue };
            let key = self.hosted[&number].key;
            let Some(group) = self.broker.find_group(key, &waybill.mover.group) else { continue };
            let ending = match waybill.mover.purpose {
                Purpose::Dead => Ending::Dead,
                Purpose::Requeue => Ending::Acked,
            };
            let settled = self.broker.settle_stored(group, &waybill.ranges, ending);
            self.settle(number, group, &settled, ending);
        }
    }

    /// A group is to stand elsewhere, or to go: what movers said of it before is taken back, so
    /// that a start does not believe it.
    pub(in crate::server::engine) fn withdraw_waybills(
        &mut self,
        number: QueueNumber,
        group: GroupKey,
        moment: Moment,
    ) {
        let source = self.hosted[&number].log.id();
        let group = self.broker.group_name(group).clone();
        for purpose in [Purpose::Dead, Purpose::Requeue] {
            let mover = Mover { source, group: group.clone(), purpose };
            let producer = mover.producer();
            let numbers: Vec<QueueNumber> = self.hosted.keys().copied().collect();
            for dest in numbers {
                let log = &mut self.hosted.get_mut(&dest).expect("it is there").log;
                let annex = log.producers().annex(producer).and_then(Waybill::decode);
                let Some(waybill) = annex.filter(|waybill| !waybill.ranges.is_empty()) else {
                    continue;
                };
                let Some((epoch, sequence)) = log.producers().last(producer) else { continue };
                let blank = Waybill { ranges: Vec::new(), ..waybill };
                let batch = InternalBatch {
                    producer,
                    epoch,
                    sequence,
                    annex: &blank.encode(),
                    framing: Framing::Records,
                    flags: 0,
                    count: 0,
                    messages: &[],
                };
                // Without room for it a start may settle again what was settled before.
                if log.append_internal(moment.now, moment.wall, &batch).is_ok() {
                    self.touch(dest);
                }
            }
        }
    }
}
