//! What is measured of queues while they move messages: latencies, and the flow of the last
//! minutes.
//!
//! Called where messages change hands, once for a batch or a range. A queue gets its meter when
//! it first moves a message; when there are too many, the one that was idle for longest goes, with
//! what it had measured, if that was long enough.

use crate::broker::GroupKey;
use crate::limits;
use crate::log::storage::Storage;
use crate::stat::{Flow, Handing, Latency, Meter, Slice};
use crate::units::{
    Bytes, Count, Ending, Micros, Moment, Monotonic, Offset, OffsetRange, WallTime,
};
use crate::wire::stat as told;

use super::session::Receiver;
use super::{Engine, QueueNumber};

/// When a sender had read the messages of an append, and how many of them were stored.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Origin {
    /// On the clock that all processes share; 0: not known.
    pub read: Monotonic,
    pub messages: u32,
    /// They went to the log of delayed messages.
    pub delayed: bool,
}

/// How many meters there are, and when it was last found that none of them can go.
#[derive(Default)]
pub(super) struct Meters {
    count: usize,
    looked: Option<Monotonic>,
}

/// How long it takes before another look for a meter that can go.
const LOOK_AGAIN: Micros = Micros::from_secs(1);

impl<S: Storage> Engine<S> {
    /// The meter of a queue that moves messages; none while there are too many.
    fn meter(&mut self, number: QueueNumber) -> Option<&mut Meter<GroupKey>> {
        if self.hosted.get(&number)?.meter.is_none() {
            if self.meters.count >= limits::METERS_MAX && !self.drop_idle_meter() {
                return None;
            }
            self.meters.count += 1;
        }
        let hosted = self.hosted.get_mut(&number)?;
        Some(hosted.meter.get_or_insert_default())
    }

    /// Drops the meter that was idle for longest, if that was long.
    fn drop_idle_meter(&mut self) -> bool {
        let now = self.clock.now;
        if self.meters.looked.is_some_and(|looked| now < looked.plus(LOOK_AGAIN)) {
            return false;
        }
        self.meters.looked = Some(now);
        let metered = self.hosted.values_mut().filter_map(|hosted| {
            let used = hosted.meter.as_ref()?.used;
            Some((used, hosted))
        });
        let Some((used, idle)) = metered.min_by_key(|(used, _)| *used) else { return false };
        let goes = now.since(used) >= limits::METER_IDLE;
        if goes {
            idle.meter = None;
            self.meters.count -= 1;
            self.meters.looked = None;
        }
        goes
    }

    /// A queue goes.
    pub(super) fn meter_gone(&mut self) {
        self.meters.count -= 1;
    }

    /// From being read to now; none if what the sender says cannot be.
    fn produce(&self, read: Monotonic, moment: Moment) -> Option<Micros> {
        let now = self.clock_zero.0 + moment.now.0;
        let took = Micros(now.checked_sub(read.0)?);
        (read.0 > 0 && took <= limits::LATENCY_MAX).then_some(took)
    }

    /// Messages are visible from now on: `range` in the queue, of which `origins` tells what ends
    /// where; and delayed ones.
    pub(super) fn count_visible(
        &mut self,
        number: QueueNumber,
        range: OffsetRange,
        origins: &[(Offset, Origin)],
        moment: Moment,
    ) {
        if range.is_empty() && origins.is_empty() {
            return;
        }
        let produced: Vec<Option<Micros>> =
            origins.iter().map(|(_, origin)| self.produce(origin.read, moment)).collect();
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let stored = hosted.log.counted().stored_bytes;
        let bytes = stored.0 - std::mem::replace(&mut hosted.bytes_counted, stored).0;
        let Some(meter) = self.meter(number) else { return };
        let mut at = range.start;
        for ((end, origin), produce) in origins.iter().zip(produced) {
            if origin.delayed {
                // They come into the queue when they are due; nobody waits for them before.
                meter.produce.note(produce.unwrap_or_default(), u64::from(origin.messages));
                continue;
            }
            let start = Offset(end.0 - u64::from(origin.messages)).clamp(at, range.end);
            let end = (*end).clamp(start, range.end);
            meter.visible(moment.now, OffsetRange::new(at, start), None);
            meter.visible(moment.now, OffsetRange::new(start, end), produce);
            at = end;
        }
        meter.visible(moment.now, OffsetRange::new(at, range.end), None);
        let flow = Flow { stored: range.span(), stored_bytes: bytes, ..Flow::default() };
        meter.note(moment, flow);
    }

    /// Messages are handed over; `stored` is when the first of them was.
    pub(super) fn count_handed(
        &mut self,
        receiver: Receiver,
        group: GroupKey,
        range: OffsetRange,
        redelivered: bool,
        stored: WallTime,
    ) {
        let moment = self.clock;
        let how = Handing { redelivered, tries: receiver.how.tries, stored };
        if let Some(meter) = self.meter(receiver.queue) {
            meter.handed(moment, group, range, how);
        }
    }

    /// Messages of a sender are turned away.
    pub(super) fn count_refused(&mut self, number: QueueNumber, messages: u64) {
        if let Some(hosted) = self.hosted.get_mut(&number) {
            hosted.log.counters().refused.0 += messages;
        }
    }

    /// The bytes of what is handed over lie in an outbox.
    pub(super) fn count_shipped(
        &mut self,
        number: QueueNumber,
        range: OffsetRange,
        bytes: u64,
        redelivered: bool,
    ) {
        let moment = self.clock;
        if let Some(hosted) = self.hosted.get_mut(&number) {
            let counters = hosted.log.counters();
            counters.delivered.0 += range.span();
            counters.delivered_bytes.0 += bytes;
            counters.redelivered.0 += if redelivered { range.span() } else { 0 };
        }
        if let Some(meter) = self.meter(number) {
            let flow = Flow { delivered: range.span(), delivered_bytes: bytes, ..Flow::default() };
            meter.note(moment, flow);
        }
        self.count_ready(number);
    }

    /// A try begins.
    pub(super) fn count_begun(
        &mut self,
        number: QueueNumber,
        group: GroupKey,
        ranges: &[OffsetRange],
    ) {
        let now = self.clock.now;
        if let Some(meter) = self.meter(number) {
            meter.begun(now, group, ranges);
        }
    }

    /// A try failed.
    pub(super) fn count_failed(
        &mut self,
        number: QueueNumber,
        group: GroupKey,
        ranges: &[OffsetRange],
    ) {
        let moment = self.clock;
        let retried = ranges.iter().map(OffsetRange::span).sum();
        if let Some(hosted) = self.hosted.get_mut(&number) {
            hosted.log.counters().retried.0 += retried;
        }
        if let Some(meter) = self.meter(number) {
            meter.returned(group, ranges);
            meter.note(moment, Flow { retried, ..Flow::default() });
        }
    }

    /// Messages are given back untried.
    pub(super) fn count_returned(
        &mut self,
        number: QueueNumber,
        group: Option<GroupKey>,
        ranges: &[OffsetRange],
    ) {
        if let (Some(group), Some(meter)) = (group, self.meter(number)) {
            meter.returned(group, ranges);
        }
    }

    /// Messages are settled.
    pub(super) fn count_settled(
        &mut self,
        number: QueueNumber,
        group: GroupKey,
        ranges: &[OffsetRange],
        ending: Ending,
    ) {
        let moment = self.clock;
        let Some(meter) = self.meter(number) else { return };
        let count = ranges.iter().map(OffsetRange::span).sum();
        match ending {
            Ending::Acked => {
                meter.acked(moment, group, ranges);
                meter.note(moment, Flow { acked: count, ..Flow::default() });
            }
            Ending::Dead => {
                meter.returned(group, ranges);
                meter.note(moment, Flow { dead: count, ..Flow::default() });
            }
            _ => meter.returned(group, ranges),
        }
    }

    /// A group is gone, or stands elsewhere.
    pub(super) fn count_group_moved(&mut self, number: QueueNumber, group: GroupKey) {
        if let Some(hosted) = self.hosted.get_mut(&number)
            && let Some(meter) = &mut hosted.meter
        {
            meter.forget_group(group);
        }
    }

    /// The history learns how many messages are ready.
    pub(super) fn count_ready(&mut self, number: QueueNumber) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let Some(meter) = &mut hosted.meter else { return };
        let mut groups = self.broker.groups(hosted.key).peekable();
        let ready = match groups.peek() {
            None => self.broker.counts_without_group(hosted.key).0,
            Some(_) => groups.map(|(group, _)| self.broker.counts(group).ready.0).sum(),
        };
        meter.history.set_ready(self.clock.wall, ready);
    }
}

/// The latencies of a queue as they are told.
pub(super) fn latencies(meter: &Meter<GroupKey>, all: bool) -> told::Latencies {
    let others = |latency: &Latency| histogram(latency).filter(|_| all);
    told::Latencies {
        produce: others(&meter.produce),
        queue: others(&meter.queue),
        consume: others(&meter.consume),
        whole: histogram(&meter.whole),
    }
}

fn histogram(latency: &Latency) -> Option<told::Histogram> {
    (latency.count() > 0).then(|| told::Histogram {
        count: latency.count(),
        sum: latency.sum(),
        max: latency.max(),
        buckets: latency.buckets().collect(),
    })
}

/// Slices of the history as they are told.
pub(super) fn slices(slices: Vec<Slice>) -> Vec<told::Slice> {
    let told = slices.into_iter().map(|Slice { at, flow, ready, whole }| told::Slice {
        at,
        stored: Count(flow.stored),
        stored_bytes: Bytes(flow.stored_bytes),
        delivered: Count(flow.delivered),
        delivered_bytes: Bytes(flow.delivered_bytes),
        acked: Count(flow.acked),
        retried: Count(flow.retried),
        dead: Count(flow.dead),
        ready: Count(ready),
        whole,
    });
    told.collect()
}
