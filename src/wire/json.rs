//! The JSON bodies. Fields are only ever added; unknown ones are ignored; an absent optional
//! field means what it meant before the field was there.

use serde::{Deserialize, Serialize};

use super::receipt::Receipt;
use super::stat::{Account, Counted, FiguresWanted};
use crate::limits::TOOL_BYTES_MAX;
use crate::settings::{Backoff, Settings, Start, Wanted};
use crate::units::{
    Attempts, Count, Epoch, Micros, Name, Offset, OffsetRange, ProducerId, QueueId, Sequence,
    WallTime,
};

/// Who a client is, for the server's views.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// The tool's name, `mq-send`.
    pub tool: String,
    /// The version of the package.
    pub version: String,
    /// The program that it runs on messages, if it does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
}

impl ClientInfo {
    /// No longer than what is kept of it.
    #[must_use]
    pub fn shortened(mut self) -> ClientInfo {
        for text in [&mut self.tool, &mut self.version, &mut self.command] {
            let mut end = text.len().min(TOOL_BYTES_MAX);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
        }
        self
    }
}

/// Who a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// The version of the package.
    pub version: String,
    /// The server's process.
    pub pid: u32,
    /// How long the server remembers a producer that has lost its connection.
    pub producer_retry: Micros,
    /// What this server cannot do, by the names of the flags that need it; and [`CANNOT_ACK`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cannot: Vec<String>,
}

/// In [`ServerInfo::cannot`]: nothing waits for an ack, so what was under way at an end is gone.
pub const CANNOT_ACK: &str = "ack";

/// Opens a channel for sending to a queue, which is made when it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSend {
    /// The queue.
    pub queue: Name,
    /// The producer: a random number of the client's choice.
    pub producer: ProducerId,
    /// When resuming: the incarnation that it sent to, so that a queue made anew is told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
    /// The producer has a name that it comes back under (its number is made from it): it is never
    /// forgotten, opening it fences off older instances, and what it said last in an annex is
    /// kept.
    #[serde(default)]
    pub named: bool,
    /// A message is stored only if none of its key is unsettled in any group.
    #[serde(default)]
    pub unless_pending: bool,
}

impl OpenSend {
    /// The plain request: a producer without a name, not resumed.
    #[must_use]
    pub fn new(queue: Name, producer: ProducerId) -> OpenSend {
        OpenSend { queue, producer, resume: None, named: false, unless_pending: false }
    }
}

/// What a sender knows of the queue from before its connection broke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The incarnation of the queue.
    pub queue_id: QueueId,
    /// When its producer was opened, as [`Sending::opened`] said.
    pub opened: WallTime,
    /// What was confirmed to it.
    pub confirmed: Sequence,
}

/// A channel for sending is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sending {
    /// The incarnation of the queue.
    pub queue_id: QueueId,
    /// The last sequence of this producer that is stored; the next message has the next number.
    pub last: Sequence,
    /// The producer's epoch from now on.
    pub epoch: Epoch,
    /// When the producer was first opened, on the server's wall clock.
    pub opened: WallTime,
    /// For a named producer: the annex that it stored last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annex: Option<Vec<u8>>,
}

/// How messages are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiveMode {
    /// Leased until settled.
    Take,
    /// Only looked at.
    Peek,
}

/// Which queues a receiver takes from: a name, or a name with `*`, `?` and `[...]` in it.
///
/// A pattern includes queues that appear later, and no `*.dead` unless it ends so itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QueuePattern(pub String);

/// What a receiver that comes back had begun: the word of it may not have reached the server
/// that is gone, or it may; each attempt counts once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Which attempt it was on each of the messages.
    pub attempt: Attempts,
    /// The messages, ascending.
    pub ranges: Vec<OffsetRange>,
}

/// What a receiver of several queues held of one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The queue.
    pub queue: Name,
    /// Its incarnation.
    pub queue_id: QueueId,
    /// What is held, unsettled.
    pub ranges: Vec<OffsetRange>,
    /// What of it was begun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<Begun>,
    /// With `until_end`: where the end was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Offset>,
}

/// Opens a channel for receiving.
///
/// With `patterns` the channel takes from several queues, its *members*. Each is announced by a
/// RECEIVING with its name, on a channel of its own that the server numbers (from
/// [`MEMBER_CHANNELS`](super::MEMBER_CHANNELS) on): DELIVER, ACK, RELEASE, BEGIN, NACK and COMPLAIN
/// travel there. CREDIT counts for all members together and travels, as CLOSE, CLOSED and END do,
/// on the channel itself. A member whose queue is removed is told by CLOSED on its channel.
///
/// When the queues that were there at the start have been announced, and every one of `holdings`
/// is answered (by a RECEIVING that names the queue, without `queue_id` if there is none of that
/// name), RECEIVING comes on the channel itself, with neither queue nor id: the receiver may then
/// close without giving back what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenReceive {
    /// The queue; waited for when it is not there, unless `until_end`. Not looked at when there
    /// are `patterns`.
    pub queue: Name,
    /// The group.
    pub group: Name,
    /// How messages are taken.
    pub mode: ReceiveMode,
    /// Whether to say END at the end of what is ready now.
    #[serde(default)]
    pub until_end: bool,
    /// When resuming: the incarnation of the queue that `holding` speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_id: Option<QueueId>,
    /// When resuming: what the receiver still holds, unsettled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holding: Vec<OffsetRange>,
    /// When resuming: what of `holding` was begun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<Begun>,
    /// When resuming with `until_end`: where the end was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Offset>,
    /// Several queues, or patterns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<QueuePattern>,
    /// With `patterns`: always the first, in their order, that has any; else in turn.
    #[serde(default)]
    pub strict: bool,
    /// With `patterns`, when resuming: what is held of which queue.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holdings: Vec<Holding>,
    /// Makes the group, beginning there, if the queue has none of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Start>,
    /// What is delivered is settled by that: at most once.
    #[serde(default)]
    pub no_ack: bool,
    /// Messages are leased for so long, beyond the connection, and settled by their receipts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Micros>,
    /// Only one such receiver of the group gets anything; the next takes over when it goes. With
    /// `until_end`, END comes in its turn.
    #[serde(default)]
    pub exclusive: bool,
    /// Only what is durable is delivered, whatever the queue's policy: what the receiver makes of
    /// it is to last longer than what a power loss may take from the queue.
    #[serde(default)]
    pub durable: bool,
    /// The pauses before messages that this receiver failed are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// A try is announced by BEGIN and settled by ACK or NACK; so what is delivered and given
    /// back counts no attempt.
    #[serde(default)]
    pub tries: bool,
    /// How many EXTENTs may be under way to this receiver, which asks for them by that; 0: none.
    /// A server that knows nothing of them sends DELIVERs.
    #[serde(default)]
    pub extents: u32,
}

impl OpenReceive {
    /// The plain request: nothing held, nothing special.
    #[must_use]
    pub fn new(queue: Name, group: Name, mode: ReceiveMode) -> OpenReceive {
        OpenReceive {
            queue,
            group,
            mode,
            until_end: false,
            queue_id: None,
            holding: Vec::new(),
            begun: Vec::new(),
            until: None,
            patterns: Vec::new(),
            strict: false,
            holdings: Vec::new(),
            from: None,
            no_ack: false,
            lease: None,
            exclusive: false,
            durable: false,
            backoff: None,
            tries: false,
            extents: 0,
        }
    }
}

/// A try that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nack {
    /// The messages, ascending.
    pub ranges: Vec<OffsetRange>,
    /// Which attempt it was, so that it counts once even if this server was not told that it
    /// began; 0: not known, and one more than were counted unless it was begun.
    #[serde(default)]
    pub attempt: Attempts,
    /// They are dead letters at once.
    #[serde(default)]
    pub dead: bool,
    /// Why, in a few words: `exit status 3`. At most
    /// [`REASON_BYTES_MAX`](crate::limits::REASON_BYTES_MAX).
    #[serde(default)]
    pub reason: String,
    /// The last of what the command said on stderr, as far as it is UTF-8. At most
    /// [`STDERR_TAIL_BYTES`](crate::limits::STDERR_TAIL_BYTES).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stderr: String,
}

/// A channel for receiving is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiving {
    /// The incarnation of the queue; absent while the queue does not exist: then this comes
    /// again when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_id: Option<QueueId>,
    /// What of `holding` the receiver keeps; the rest has gone to another or is settled. Kept
    /// messages count against the channel's credit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<OffsetRange>,
    /// With `until_end`: where the end is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Offset>,
    /// The queue's name, for a member of a receiver of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
    /// For an exclusive receiver: the fencing number of its turn. Absent: it is not its turn yet,
    /// and this comes again when it is. Divided by
    /// [`TURNS_PER_PLACE_MAX`](crate::limits::TURNS_PER_PLACE_MAX) it says how often the group was
    /// set to another place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// For an exclusive receiver that is announced before its turn: others have the group, or hold
    /// messages of it. Else its turn begins once its number is stored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// For an exclusive receiver: when its group was made, by which it is told from another of the
    /// same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born: Option<WallTime>,
    /// For a receiver with `tries`: the attempts after which a message that fails is a dead
    /// letter; absent: never. Comes again, with nothing kept, when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_limit: Option<u32>,
    /// Messages that no group gets, as the receiver's is the first of the queue and was made to begin
    /// behind them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub passed: Count,
}

fn is_zero(count: &Count) -> bool {
    count.0 == 0
}

/// What becomes of a leased message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settlement {
    /// It is done.
    Ack,
    /// It failed: ready again after its back-off.
    Nack,
    /// Its lease ends so long from now, unless it ends later anyway.
    Extend(Micros),
}

/// An administrative request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Admin {
    /// Makes a queue, or checks or changes its settings. Answered by [`QueueInfo`].
    Declare {
        /// The queue.
        queue: Name,
        /// The settings.
        #[serde(default)]
        wanted: Wanted,
        /// Whether settings that differ are changed rather than refused.
        #[serde(default)]
        change: bool,
    },
    /// Lists the queues, a page at a time. Answered by [`StoreInfo`].
    List {
        /// Only those whose names come behind this one; absent: from the first on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Name>,
    },
    /// Moves dead letters back home, each for the group that failed it only. Answered by a
    /// [`Count`] when they are there.
    Requeue {
        /// The queue of dead letters.
        queue: Name,
        /// At most so many, the oldest; absent: all that are ready.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<Count>,
        /// To this queue, for all its groups, rather than home.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Name>,
        /// Only those whose reason holds this text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Settles leased messages by their receipts. Answered by a list: `null` for each that is
    /// done, else the [`Fault`](super::Fault) that says why not.
    Settle {
        /// The receipts, at most
        /// [`RECEIPTS_PER_REQUEST_MAX`](crate::limits::RECEIPTS_PER_REQUEST_MAX).
        receipts: Vec<Receipt>,
        /// What becomes of them.
        how: Settlement,
    },
    /// Makes a group. Answered by [`GroupInfo`] when it is durable.
    AddGroup {
        /// The queue.
        queue: Name,
        /// The group.
        group: Name,
        /// Where it begins.
        from: Start,
    },
    /// Removes a group. Answered by `null`.
    RemoveGroup {
        /// The queue.
        queue: Name,
        /// The group.
        group: Name,
    },
    /// Sets a group without receivers to another place. Answered by [`GroupInfo`].
    SeekGroup {
        /// The queue.
        queue: Name,
        /// The group.
        group: Name,
        /// Where to.
        to: Start,
    },
    /// Shows one queue. Answered by [`QueueInfo`].
    Show {
        /// The queue.
        queue: Name,
    },
    /// What time it is for the readers of a group. Answered by [`ClockInfo`].
    Clock {
        /// The queue.
        queue: Name,
        /// The group.
        group: Name,
    },
    /// What the server counts. Answered by [`Figures`](super::stat::Figures).
    Figures(FiguresWanted),
    /// Settles all that is ready, in every group. Answered by a [`Count`].
    Purge {
        /// The queue.
        queue: Name,
    },
    /// Removes a queue with all that is in it. Answered by `null`.
    Remove {
        /// The queue.
        queue: Name,
    },
    /// Answers `null` once nothing is ready or leased; the client's patience decides.
    Wait {
        /// The queue.
        queue: Name,
    },
    /// Reads one queue, or all, and verifies every checksum. Answered by [`CheckReport`].
    Check {
        /// The queue; absent: all of the store.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        queue: Option<Name>,
    },
}

/// The time of a queue, for the readers of a group. Whatever is stored after this answer has no
/// earlier time, as long as the server runs. The answer comes behind all that was handed over on the
/// same connection before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockInfo {
    /// The server's wall clock, or the time of the newest message if that is later.
    pub now: WallTime,
    /// Messages that are stored and not handed over: they may be older.
    pub waiting: Count,
    /// Messages on their way to the dead letters.
    pub dying: Count,
}

/// A queue, as `ls` and `show` tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Its name.
    pub queue: Name,
    /// Its incarnation.
    pub id: QueueId,
    /// Its settings.
    pub settings: Settings,
    /// When it was made.
    pub created: WallTime,
    /// Messages ready in the default group, or not gone while there is no group.
    pub ready: Count,
    /// Messages leased in the default group.
    pub unacked: Count,
    /// Where the next message goes.
    pub end: Offset,
    /// Bytes of its segment files.
    pub bytes: u64,
    /// Its segment files.
    pub segments: u64,
    /// Its receivers.
    pub receivers: u64,
    /// Its senders.
    pub senders: u64,
    /// Messages that wait for their time.
    #[serde(default)]
    pub delayed: Count,
    /// When the oldest message that some group has not settled was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_time: Option<WallTime>,
    /// The group that holds the oldest message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_group: Option<Name>,
    /// Messages that were dropped to make room, ever.
    #[serde(default)]
    pub dropped: Count,
    /// Messages that expired, ever.
    #[serde(default)]
    pub expired: Count,
    /// What is counted over its life.
    #[serde(default)]
    pub counted: Counted,
    /// Its groups.
    pub groups: Vec<GroupInfo>,
    /// The pipes that write to it, when one queue is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pipes: Vec<PipeInfo>,
    /// Why the queue stands still, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// What of this is not known, by the names of the fields: of a queue at an engine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// A pipe, as `show` of its destination tells it: what its last commit says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeInfo {
    /// Its name.
    pub name: String,
    /// The queue that it reads.
    pub src: String,
    /// The next offset that it reads.
    pub next: Offset,
    /// Messages of its source that it has not committed yet; absent if the source is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<Count>,
    /// What it has done.
    #[serde(default)]
    pub figures: PipeFigures,
    /// This queue gets only what comes too late for its windows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

/// What a pipe has done since it was made, or was reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PipeFigures {
    /// Batches that were committed.
    pub batches: u64,
    /// Messages that were read in them.
    pub read: u64,
    /// Messages that came out of them.
    pub written: u64,
    /// Runs of the filter that failed.
    pub retries: u64,
    /// Messages that became dead letters.
    pub dead: u64,
    /// Time in the filter, of all its runs.
    pub filter_us: Micros,
    /// Windows that are open now; of sliding ones, the parts of time that they have in common.
    #[serde(skip_serializing_if = "is_none")]
    pub open_windows: u64,
    /// Messages whose windows were closed when they came.
    #[serde(skip_serializing_if = "is_none")]
    pub late: u64,
    /// Messages that had no time, for windows of time.
    #[serde(skip_serializing_if = "is_none")]
    pub untimed: u64,
}

fn is_none(number: &u64) -> bool {
    *number == 0
}

/// A group, as `show` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its name.
    pub group: Name,
    /// Messages that it can be given.
    pub ready: Count,
    /// Messages that its receivers hold, or that are leased.
    pub unacked: Count,
    /// Messages that failed and wait for their back-off.
    #[serde(default)]
    pub resting: Count,
    /// Messages that became dead letters, ever.
    #[serde(default)]
    pub dead: Count,
    /// Its receivers.
    pub receivers: u64,
    /// The lowest offset that is not settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Offset>,
    /// Ranges of settled messages that it keeps.
    pub settled_ranges: u64,
    /// Whether it is at the bound of those, and so gets nothing new until holes close.
    #[serde(default)]
    pub stuck: bool,
    /// Messages that no group gets, as this one is the first of the queue and was made to begin behind
    /// them: said to who made it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub passed: Count,
    /// What became of its messages.
    #[serde(default)]
    pub account: Account,
    /// What of this is not known, by the names of the fields: of a group at an engine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// A store, as `ls` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreInfo {
    /// Its queues, by name: as many as fit.
    pub queues: Vec<QueueInfo>,
    /// Whether there are more behind the last of these.
    #[serde(default)]
    pub more: bool,
}

/// What `check` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Queues read.
    pub queues: u64,
    /// Batches verified.
    pub batches: u64,
    /// Messages in them.
    pub messages: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong; nothing, if all is well.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// In which queue.
    pub queue: String,
    /// In which file, relative to the store.
    pub file: String,
    /// Where in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// Which messages, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<Offset>,
    /// What.
    pub what: String,
}
