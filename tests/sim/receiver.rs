//! Simulated receivers: what mq-recv says on the wire, driven step by step.

use std::collections::{BTreeMap, BTreeSet};

use mq::server::engine::ConnectionId;
use mq::settings::{Backoff, Start};
use mq::units::{LeaseNumber, Micros, Name, Offset, OffsetRange, QueueId};
use mq::wire::{
    DeliverHead, ErrorCode, Nack, OpenReceive, Receipt, ReceiveMode, Receiving, ReleaseMode, Reply,
    Request,
};

use crate::group::Delivery;
use crate::model::QueueModel;
use crate::rng::{Chance, Random};
use crate::wire::{CHANNEL, Frames, hello, messages_of, ranges, take_frames};
use crate::world::{trace, trace_fault};

/// How a receiver takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Holds them as long as it is connected.
    Plain,
    /// Holds the group alone.
    Exclusive,
    /// Under leases of so long, settled by receipts.
    Leased(Micros),
    /// What is delivered is settled by that.
    AtMostOnce,
}

/// A delivery that is settled by its receipt.
#[derive(Clone, Debug)]
pub struct Leased {
    pub receipt: Receipt,
    pub until: u64,
    /// The era in which it was leased.
    pub era: u32,
}

/// One mq-recv.
#[derive(Debug)]
pub struct Receiver {
    pub queue: Name,
    pub group: Name,
    pub take: Take,
    pub connection: Option<ConnectionId>,
    pub inbound: Vec<u8>,
    queue_id: Option<QueueId>,
    /// Tries are announced.
    tries: bool,
    /// RECEIVING has come: what it holds is what the server says that it keeps.
    open: bool,
    credit: u64,
    delivered: u64,
    /// Held: delivered, not acked.
    pub held: BTreeSet<Offset>,
    /// Acked on this connection; known to be written down when the server has taken it in.
    acked: Vec<OffsetRange>,
    /// What it has heard up to now was said at this age of the history or later.
    pub heard_at: u64,
    /// Deliveries that wait for their receipts to be used.
    pub leases: BTreeMap<Offset, Leased>,
    /// The server refused it for now: it hangs up and comes again.
    pub refused: bool,
    pub ended: bool,
    /// It does nothing before this age of the history.
    pub stalled_until: u64,
}

impl Receiver {
    pub fn new(queue: Name, group: Name, take: Take, rng: &mut Random) -> Receiver {
        Receiver {
            queue,
            group,
            take,
            connection: None,
            inbound: Vec::new(),
            queue_id: None,
            tries: matches!(take, Take::Plain | Take::Exclusive) && rng.chance(70),
            open: false,
            credit: 0,
            delivered: 0,
            held: BTreeSet::new(),
            acked: Vec::new(),
            heard_at: 0,
            leases: BTreeMap::new(),
            refused: false,
            ended: false,
            stalled_until: 0,
        }
    }

    /// Connects; with `keep`, presents what it holds.
    pub fn connect(&mut self, connection: ConnectionId, keep: bool) -> Frames {
        self.connection = Some(connection);
        self.inbound.clear();
        self.acked.clear();
        self.credit = 0;
        (self.open, self.refused) = (false, false);
        self.delivered = 0;
        if !keep {
            self.held.clear();
        }
        let mut out = Frames::new();
        hello(&mut out);
        let lease = match self.take {
            Take::Leased(span) => Some(span),
            _ => None,
        };
        let open = OpenReceive {
            queue_id: self.queue_id,
            holding: ranges(self.held.iter().copied()),
            tries: self.tries,
            exclusive: self.take == Take::Exclusive,
            no_ack: self.take == Take::AtMostOnce,
            lease,
            from: (self.group != Name::default()).then_some(Start::Oldest),
            backoff: Some(Backoff { first: Micros(1_000), max: Micros(4_000) }),
            ..OpenReceive::new(self.queue.clone(), self.group.clone(), ReceiveMode::Take)
        };
        Request::OpenReceive(open).encode(CHANNEL, &mut out);
        out
    }

    pub fn lost(&mut self) {
        self.connection = None;
        self.open = false;
    }

    pub fn more_credit(&mut self, rng: &mut Random) -> Frames {
        let mut out = Frames::new();
        self.credit = self.credit.max(self.delivered + 1 + rng.below(30));
        Request::Credit(self.credit).encode(CHANNEL, &mut out);
        out
    }

    /// Begins to try some of what it holds: an attempt is counted, whatever becomes of it.
    pub fn begin(&mut self, rng: &mut Random) -> Frames {
        let mut out = Frames::new();
        let some: Vec<Offset> = self.held.iter().copied().filter(|_| rng.chance(20)).collect();
        if !some.is_empty() && self.open && self.tries {
            Request::Begin(ranges(some.into_iter())).encode(CHANNEL, &mut out);
        }
        out
    }

    /// Acks some of what it holds: the oldest, or any; or gives it back. What is poison fails.
    pub fn ack(&mut self, model: &mut QueueModel, rng: &mut Random) -> Frames {
        let mut out = Frames::new();
        let in_order = rng.chance(70);
        let give_back = rng.chance(5);
        let count = 1 + rng.below(10) as usize;
        let some: Vec<Offset> = if in_order {
            self.held.iter().copied().take(count).collect()
        } else {
            self.held.iter().copied().filter(|_| rng.chance(40)).take(count).collect()
        };
        self.settle(some, give_back, model, &mut out);
        out
    }

    /// Acks all that it holds.
    pub fn ack_all(&mut self, model: &mut QueueModel) -> Frames {
        let mut out = Frames::new();
        let all = self.held.iter().copied().take(500).collect();
        self.settle(all, false, model, &mut out);
        out
    }

    fn settle(
        &mut self,
        some: Vec<Offset>,
        give_back: bool,
        model: &mut QueueModel,
        out: &mut Frames,
    ) {
        if some.is_empty() || !self.open {
            return;
        }
        for offset in &some {
            self.held.remove(offset);
        }
        trace(|| {
            let what = if give_back { "gives back" } else { "settles" };
            format!("  {}/{} {what} {some:?}", self.queue, self.group)
        });
        if give_back {
            let ranges = ranges(some.into_iter());
            Request::Release(ReleaseMode::Release, ranges).encode(CHANNEL, out);
            return;
        }
        let fails = model.group(&self.group).fails;
        let is_poison = |offset: &Offset| fails && model.seen[offset].message.is_poison();
        let (poison, fine): (Vec<Offset>, Vec<Offset>) = some.into_iter().partition(is_poison);
        if !poison.is_empty() {
            let ranges = ranges(poison.into_iter());
            let reason = "poison".to_owned();
            Request::Nack(Nack { ranges, reason, ..Nack::default() }).encode(CHANNEL, out);
        }
        if !fine.is_empty() {
            let ranges = ranges(fine.iter().copied());
            Request::Ack(ranges.clone()).encode(CHANNEL, out);
            model.group(&self.group).acked.extend(fine);
            self.acked.extend(ranges);
        }
    }

    /// Acks that the server has taken in: frames are served in their order.
    pub fn served(&mut self) -> Vec<OffsetRange> {
        std::mem::take(&mut self.acked)
    }

    /// Whether the server has told it off, heard or not.
    pub fn was_refused(&self) -> bool {
        if self.refused || self.ended {
            return true;
        }
        let mut bytes = self.inbound.clone();
        let refuses = |(header, body): &(_, Vec<u8>)| {
            let said = Reply::decode(header, body).expect("the server speaks the protocol");
            matches!(said, Reply::Error(_))
        };
        take_frames(&mut bytes).iter().any(refuses)
    }

    /// Reads what the server said; answers with what it says then. `now` is the delivery's time.
    pub fn hear(&mut self, model: &mut QueueModel, now: &Delivery) -> Frames {
        let mut out = Frames::new();
        for (header, body) in take_frames(&mut self.inbound) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Receiving(receiving) => self.opened(&receiving, model),
                Reply::Deliver(head, batches) => {
                    self.take_in(&head, batches, model, now, &mut out);
                }
                Reply::Error(fault) => match trace_fault(&fault).code {
                    ErrorCode::Full | ErrorCode::Busy | ErrorCode::Disk => self.refused = true,
                    ErrorCode::Corrupt if !model.spoilt => self.refused = true,
                    ErrorCode::Corrupt | ErrorCode::Gone => self.ended = true,
                    _ => panic!("a proper receiver was refused: {fault:?}"),
                },
                _ => {}
            }
        }
        out
    }

    fn opened(&mut self, receiving: &Receiving, model: &mut QueueModel) {
        let Some(id) = receiving.queue_id else { return };
        assert!(model.id.is_none_or(|known| known == id), "another incarnation");
        model.id = Some(id);
        self.queue_id = Some(id);
        if self.take == Take::Exclusive {
            let Some(epoch) = receiving.epoch else { return };
            model.group(&self.group).begin_turn(epoch);
        }
        self.open = true;
        let kept = &receiving.kept;
        self.held.retain(|offset| kept.iter().any(|range| range.contains(*offset)));
        self.delivered = self.held.len() as u64;
    }

    fn take_in(
        &mut self,
        head: &DeliverHead,
        batches: &[u8],
        model: &mut QueueModel,
        now: &Delivery,
        out: &mut Frames,
    ) {
        assert!(self.open, "delivered before its turn");
        let queue = self.queue_id.expect("delivered before RECEIVING");
        let (messages, bad) = messages_of(queue, head, batches);
        for (offset, body) in messages {
            trace(|| {
                let mark = if head.redelivered { "again" } else { "first" };
                format!(
                    "  {}/{} gets {offset}, {mark}, lease {}",
                    self.queue, self.group, head.lease.0
                )
            });
            let leased_until = match self.take {
                Take::Leased(span) => Some(self.heard_at + span.0),
                _ => None,
            };
            let delivery = Delivery {
                offset,
                redelivered: head.redelivered,
                leased_until,
                lease: head.lease.0,
                ..*now
            };
            model.delivered(&self.group, &delivery, &body);
            self.delivered += 1;
            match leased_until {
                Some(until) => self.keep_lease(queue, offset, head.lease, until, model.era),
                None if self.take == Take::AtMostOnce => {
                    let one = OffsetRange::new(offset, Offset(offset.0 + 1));
                    let group = model.group(&self.group);
                    group.acked.insert(offset);
                    group.settle(&[one], now.is_noted);
                }
                None => {
                    self.held.insert(offset);
                }
            }
        }
        assert!(self.delivered <= self.credit, "more delivered than there was credit for");
        if let Some(place) = bad {
            assert!(model.spoilt, "G11: a batch at {place:?} does not verify");
            Request::Complain(place.segment, place.position).encode(CHANNEL, out);
        }
    }

    fn keep_lease(
        &mut self,
        queue: QueueId,
        offset: Offset,
        number: LeaseNumber,
        until: u64,
        era: u32,
    ) {
        assert_ne!(number, LeaseNumber(0), "a delivery under a lease has a number");
        let receipt = Receipt {
            queue: self.queue.clone(),
            group: self.group.clone(),
            incarnation: queue.0.as_fields().0,
            offset,
            number,
        };
        self.leases.insert(offset, Leased { receipt, until, era });
    }
}
