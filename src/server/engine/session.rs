//! What the engine knows of one connection: who it is, its channels, its outbox.

use std::collections::{BTreeMap, VecDeque};

use crate::broker::{ConsumerKey, GroupKey, Mode};
use crate::limits;
use crate::log::Staging;
use crate::log::storage::Storage;
use crate::server::outbox::Outbox;
use crate::settings::{Backoff, Wanted};
use crate::units::{
    Bytes, Count, Epoch, Micros, Monotonic, Name, ProducerId, SegmentNumber, Sequence,
};
use crate::wire::{Admin, ClientInfo, Fault, MEMBER_CHANNELS, OpenReceive, OpenSend};

use super::QueueNumber;
use super::commit::Gathering;
use super::figures::Share;
use super::members::Several;

/// The number of a connection within one run of a server; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Who is at the other end, by the kernel's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The process; 0: not known here.
    pub pid: u32,
    /// The user.
    pub uid: Option<u32>,
}

/// What a channel is used for.
pub(super) enum Channel<S: Storage> {
    /// OPEN_SEND waits for the queue to be made.
    OpeningSend(OpenSend),
    /// Batches may come.
    Sending(Sender<S>),
    /// OPEN_RECEIVE waits for the queue to appear, or for its group to stand.
    OpeningReceive(Opening),
    /// Messages go out.
    Receiving(Receiver),
    /// Messages of several queues go out, on channels of their own.
    Several(Box<Several>),
    /// A request about a group waits for a group or for the disk.
    AskingGroup(Box<Admin>),
    /// A DECLARE waits for its queue to be made.
    Declaring(Box<(Name, Wanted, bool)>),
    /// A REQUEUE waits for a group.
    Requeuing(Box<RequeueWanted>),
    /// A PURGE waits for a group.
    Purging(Name),
    /// An administrative request waits for something.
    Admin,
    /// It failed and was told so; what still comes on it is dropped until CLOSE.
    Failed,
}

/// A channel that is to receive.
pub(super) struct Opening {
    pub open: OpenReceive,
    /// The newest CREDIT that has come meanwhile.
    pub credit: Option<u64>,
}

/// Letters that are to go back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequeueWanted {
    /// Where they are.
    pub queue: Name,
    /// At most so many.
    pub count: Option<Count>,
    /// To this queue rather than home.
    pub to: Option<Name>,
    /// Only those whose reason holds this.
    pub reason: Option<String>,
}

/// A channel that sends.
pub(super) struct Sender<S: Storage> {
    pub queue: QueueNumber,
    pub producer: ProducerId,
    pub epoch: Epoch,
    /// The producer has a name, and may say something in an annex.
    pub named: bool,
    /// Messages whose key is pending are not stored.
    pub unless_pending: bool,
    /// What it sent last went to the log of delayed messages.
    pub delayed: bool,
    /// It is known to that log.
    pub known_to_delay: bool,
    /// A PUBLISH of the other kind waits until nothing is unconfirmed, and what went before is
    /// durable: when so many bytes of its log are.
    pub switching: Option<Bytes>,
    /// A large message of which parts have come.
    pub large: Option<Large<S>>,
    /// A commit of which frames have come.
    pub commit: Option<Box<Gathering<S>>>,
    /// Appends that have not been confirmed.
    pub unconfirmed: usize,
    /// Messages so far that were there already.
    pub there: Count,
    /// It was told that it waits for room.
    pub held: bool,
    /// What comes is dropped; this is said when all before it is confirmed.
    pub refused: Option<Fault>,
    /// CLOSE has come: CLOSED goes out when nothing is unconfirmed.
    pub closing: bool,
    pub share: Share,
    /// When its newest messages were read, on the clock that all processes share; 0: not known.
    pub read: Monotonic,
}

/// A large message on its way in.
pub(super) struct Large<S: Storage> {
    pub sequence: Sequence,
    pub staging: Staging<S>,
    /// Bytes of the whole record, as its header says.
    pub record_bytes: u64,
    /// Its end has come and waits for the log: it comes again.
    pub ended: bool,
}

/// A channel that receives.
#[derive(Clone, Copy)]
pub(super) struct Receiver {
    pub queue: QueueNumber,
    pub consumer: ConsumerKey,
    pub group: Option<GroupKey>,
    pub mode: Mode,
    pub how: How,
    /// For a member of a receiver of several queues: that one's channel.
    pub main: Option<u16>,
    /// For an exclusive one: the number of its turn, if it is its turn.
    pub epoch: Option<u64>,
    /// It stands in the session's list of channels to deliver to.
    pub ready: bool,
    pub share: Share,
    pub extents: Extents,
}

/// What a receiver reads of the segments itself.
#[derive(Clone, Copy)]
pub(super) struct Extents {
    /// How many may be under way; 0: it does not want any.
    pub most: u64,
    /// How many were sent, and how many it is done with.
    pub sent: u64,
    /// See [`Extents::sent`].
    pub done: u64,
    /// The segment of which it has a descriptor.
    pub segment: SegmentNumber,
}

impl Extents {
    pub fn of(open: &OpenReceive) -> Extents {
        let most = u64::from(open.extents).min(limits::EXTENTS_UNDER_WAY_MAX);
        Extents { most, sent: 0, done: 0, segment: SegmentNumber(u64::MAX) }
    }

    /// It has to read what it has before more is sent.
    pub fn is_behind(&self) -> bool {
        self.most > 0 && self.sent - self.done >= self.most
    }
}

/// How a receiver takes its messages.
#[derive(Clone, Copy)]
pub(super) struct How {
    /// It announces its tries.
    pub tries: bool,
    /// What is delivered is settled by that.
    pub no_ack: bool,
    /// Messages go out under leases of this length.
    pub lease: Option<Micros>,
    /// It gets only what is durable.
    pub durable: bool,
    pub backoff: Option<Backoff>,
}

impl How {
    pub fn of(open: &OpenReceive) -> How {
        let OpenReceive { tries, no_ack, lease, durable, backoff, .. } = *open;
        How { tries, no_ack, lease, durable, backoff }
    }
}

/// See the module's page.
pub(super) struct Session<S: Storage> {
    pub greeted: bool,
    /// Of the protocol, as both speak it.
    pub version: u16,
    pub peer: Peer,
    pub client: ClientInfo,
    pub channels: BTreeMap<u16, Channel<S>>,
    pub outbox: Outbox<S::File>,
    /// Channels whose consumers can be offered something, each once.
    pub ready: VecDeque<u16>,
    /// It stands in the engine's list of hungry connections.
    pub hungry: bool,
    /// The highest number of a channel so far.
    pub newest_channel: u16,
    /// The last channel that was given to a member of a receiver of several queues.
    newest_member: u16,
    /// A channel that waited and goes on: its number is taken already.
    pub reopening: Option<u16>,
    /// Its last PUBLISH must wait for its log, with the frames behind it: it comes again.
    pub parked: bool,
    /// What it must wait for is room in a queue.
    pub held: bool,
    /// To be closed when the outbox is empty.
    pub ending: bool,
}

impl<S: Storage> Session<S> {
    pub fn new(peer: Peer) -> Session<S> {
        Session {
            greeted: false,
            version: 0,
            peer,
            client: ClientInfo::default(),
            channels: BTreeMap::new(),
            outbox: Outbox::new(),
            ready: VecDeque::new(),
            hungry: false,
            newest_channel: 0,
            newest_member: u16::MAX,
            reopening: None,
            parked: false,
            held: false,
            ending: false,
        }
    }

    /// Its last PUBLISH may come again.
    pub fn unpark(&mut self) {
        self.parked = false;
        self.held = false;
    }

    /// Whether a sender has so many appends unconfirmed that it must wait.
    pub fn is_ahead(&self) -> bool {
        self.channels.values().any(|channel| match channel {
            Channel::Sending(sender) => sender.unconfirmed >= limits::UNCONFIRMED_APPENDS_MAX,
            _ => false,
        })
    }

    /// Whether deliveries can be put into the outbox.
    pub fn wants_food(&self) -> bool {
        !self.ready.is_empty() && self.has_room()
    }

    /// Whether the outbox is empty enough for another delivery.
    pub fn has_room(&self) -> bool {
        let queued = self.outbox.queued() < limits::DELIVER_BYTES as u64;
        queued && self.outbox.memory() < limits::DELIVER_MEMORY_BYTES
    }

    /// Takes a number for a channel that sends or receives. Numbers only grow, so that nothing
    /// that is said to a channel can reach another that came after it.
    pub fn open(&mut self, channel: u16) -> Result<(), &'static str> {
        if self.reopening != Some(channel) && channel <= self.newest_channel {
            return Err("the number of a new channel must be above those before it");
        }
        self.request(channel)
    }

    /// A number for a member of a receiver of several queues: the next one, as long as possible.
    pub fn next_member(&mut self) -> u16 {
        loop {
            self.newest_member = self.newest_member.checked_add(1).unwrap_or(MEMBER_CHANNELS);
            if !self.channels.contains_key(&self.newest_member) {
                return self.newest_member;
            }
        }
    }

    /// Takes a number for a request, which may be used again when it has been answered.
    pub fn request(&mut self, channel: u16) -> Result<(), &'static str> {
        if channel == 0 {
            return Err("channel 0 is the connection itself");
        }
        if channel >= MEMBER_CHANNELS {
            return Err("channels of this number are opened by the server");
        }
        if self.channels.contains_key(&channel) {
            return Err("the channel is open already");
        }
        let of_client = self.channels.range(..MEMBER_CHANNELS).count();
        if of_client >= limits::CHANNELS_PER_CONNECTION_MAX {
            return Err("too many channels on one connection");
        }
        self.newest_channel = self.newest_channel.max(channel);
        Ok(())
    }
}
