//! A simulated receiver of several queues: one connection and one credit, a channel for each queue.

use std::collections::{BTreeMap, BTreeSet};

use mq::server::engine::ConnectionId;
use mq::settings::Start;
use mq::units::{Name, Offset, OffsetRange, QueueId};
use mq::wire::{
    DeliverHead, ErrorCode, Fault, OpenReceive, QueuePattern, ReceiveMode, Reply, Request,
};

use crate::group::Delivery;
use crate::model::QueueModel;
use crate::rng::{Chance, Random};
use crate::wire::{CHANNEL, Frames, hello, messages_of, ranges, take_frames};
use crate::world::trace_fault;

/// One queue of it.
#[derive(Debug)]
struct Member {
    queue: Name,
    id: QueueId,
    held: BTreeSet<Offset>,
}

/// One mq-recv of several queues.
#[derive(Debug)]
pub struct Several {
    pub queues: Vec<Name>,
    /// Those that stood still.
    left_out: Vec<Name>,
    pub group: Name,
    strict: bool,
    pub connection: Option<ConnectionId>,
    pub inbound: Vec<u8>,
    /// By their channels.
    members: BTreeMap<u16, Member>,
    credit: u64,
    delivered: u64,
    /// Acked on this connection, of which queue.
    acked: Vec<(Name, Vec<OffsetRange>)>,
    /// The server refused it for now: it hangs up and comes again.
    pub refused: bool,
    /// Messages that it was given, on all connections.
    pub taken: usize,
}

impl Several {
    pub fn new(queues: Vec<Name>, group: Name, rng: &mut Random) -> Several {
        Several {
            queues,
            left_out: Vec::new(),
            group,
            strict: rng.chance(50),
            connection: None,
            inbound: Vec::new(),
            members: BTreeMap::new(),
            credit: 0,
            delivered: 0,
            acked: Vec::new(),
            refused: false,
            taken: 0,
        }
    }

    /// What it held on another connection is ready again for everyone.
    pub fn connect(&mut self, connection: ConnectionId) -> Frames {
        self.connection = Some(connection);
        self.inbound.clear();
        self.members.clear();
        self.acked.clear();
        (self.credit, self.delivered, self.refused) = (0, 0, false);
        let mut out = Frames::new();
        hello(&mut out);
        let patterns = self.queues.iter().map(|queue| QueuePattern(queue.to_string()));
        let open = OpenReceive {
            patterns: patterns.collect(),
            strict: self.strict,
            from: Some(Start::Oldest),
            ..OpenReceive::new(self.queues[0].clone(), self.group.clone(), ReceiveMode::Take)
        };
        Request::OpenReceive(open).encode(CHANNEL, &mut out);
        out
    }

    pub fn lost(&mut self) {
        self.connection = None;
    }

    /// A damaged queue that was left out may be sound again once power was lost, and is asked once more.
    pub fn ask_again(&mut self) {
        self.refused |= self.connection.is_some() && !self.left_out.is_empty();
        self.queues.append(&mut self.left_out);
    }

    /// Reads what the server said, and answers: more credit, and acks.
    pub fn step(
        &mut self,
        models: &mut BTreeMap<Name, QueueModel>,
        now: &Delivery,
        rng: &mut Random,
        hurries: bool,
    ) -> Frames {
        let mut out = Frames::new();
        for (header, body) in take_frames(&mut self.inbound) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Receiving(receiving) => {
                    let (Some(queue), Some(id)) = (receiving.queue, receiving.queue_id) else {
                        continue;
                    };
                    assert!(self.queues.contains(&queue), "{queue} was not asked for");
                    let held = BTreeSet::new();
                    self.members.insert(header.channel, Member { queue, id, held });
                }
                Reply::Deliver(head, batches) => {
                    self.take_in(header.channel, &head, batches, models, now, &mut out);
                }
                Reply::Closed => drop(self.members.remove(&header.channel)),
                Reply::Error(fault) => self.is_refused(header.channel, &fault, models),
                _ => {}
            }
        }
        if hurries || rng.chance(50) {
            self.credit = self.credit.max(self.delivered + 1 + rng.below(20));
            Request::Credit(self.credit).encode(CHANNEL, &mut out);
        }
        for (channel, member) in &mut self.members {
            let most = if hurries { usize::MAX } else { rng.below(8) as usize };
            let some: Vec<Offset> = member.held.iter().copied().take(most).collect();
            if some.is_empty() {
                continue;
            }
            member.held.retain(|offset| !some.contains(offset));
            let acked = ranges(some.iter().copied());
            Request::Ack(acked.clone()).encode(*channel, &mut out);
            let model = models.get_mut(&member.queue).expect("a queue's model");
            model.group(&self.group).acked.extend(some);
            self.acked.push((member.queue.clone(), acked));
        }
        out
    }

    /// A queue that is asked for by name and stands still is in the way of all: it is left out then.
    fn is_refused(&mut self, channel: u16, fault: &Fault, models: &BTreeMap<Name, QueueModel>) {
        use ErrorCode::{Busy, Corrupt, Disk, Full, Gone};
        let excused = matches!(trace_fault(fault).code, Busy | Corrupt | Disk | Full | Gone);
        assert!(excused, "a proper receiver was refused: {fault:?}");
        self.members.remove(&channel);
        self.refused |= channel == CHANNEL || fault.code != Corrupt;
        if channel == CHANNEL && fault.code == Corrupt {
            let spoilt = self.queues.extract_if(.., |queue| models[queue].spoilt);
            self.left_out.extend(spoilt);
        }
    }

    fn take_in(
        &mut self,
        channel: u16,
        head: &DeliverHead,
        batches: &[u8],
        models: &mut BTreeMap<Name, QueueModel>,
        now: &Delivery,
        out: &mut Frames,
    ) {
        let member = self.members.get_mut(&channel).expect("delivered before its turn");
        let model = models.get_mut(&member.queue).expect("a queue's model");
        let (messages, bad) = messages_of(member.id, head, batches);
        for (offset, body) in messages {
            let delivery = Delivery { offset, redelivered: head.redelivered, ..*now };
            model.delivered(&self.group, &delivery, &body);
            member.held.insert(offset);
            self.delivered += 1;
            self.taken += 1;
        }
        assert!(self.delivered <= self.credit, "more delivered than there was credit for");
        if let Some(place) = bad {
            assert!(model.spoilt, "G11: a batch at {place:?} does not verify");
            Request::Complain(place.segment, place.position).encode(channel, out);
        }
    }

    /// Acks that the server has taken in: frames are served in their order.
    pub fn served(&mut self) -> Vec<(Name, Vec<OffsetRange>)> {
        std::mem::take(&mut self.acked)
    }
}
