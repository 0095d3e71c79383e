//! The JSON bodies. Fields are only ever added; unknown ones are ignored; an absent optional
//! field means what it meant before the field was there.

use serde::{Deserialize, Serialize};

use crate::units::{
    Count, Epoch, Micros, Name, Offset, OffsetRange, ProducerId, QueueId, Sequence, SyncPolicy,
    WallTime,
};

/// Who a client is, for the server's views.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// The tool's name, `mq-send`.
    pub tool: String,
    /// The version of the package.
    pub version: String,
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
    /// What this server cannot do, by the names of the flags that need it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cannot: Vec<String>,
}

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

/// Opens a channel for receiving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenReceive {
    /// The queue; waited for when it is not there, unless `until_end`.
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
    /// When resuming with `until_end`: where the end was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Offset>,
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
}

/// An administrative request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Admin {
    /// Makes a queue, or checks or changes its settings. Answered by [`QueueInfo`].
    Declare {
        /// The queue.
        queue: Name,
        /// The sync policy; absent: the default, or what it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sync: Option<SyncPolicy>,
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
    /// Shows one queue. Answered by [`QueueInfo`].
    Show {
        /// The queue.
        queue: Name,
    },
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

/// A queue, as `ls` and `show` tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Its name.
    pub queue: Name,
    /// Its incarnation.
    pub id: QueueId,
    /// Its sync policy.
    pub sync: SyncPolicy,
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
    /// Its groups.
    pub groups: Vec<GroupInfo>,
    /// Why the queue stands still, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A group, as `show` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its name.
    pub group: Name,
    /// Messages that it can be given.
    pub ready: Count,
    /// Messages that its receivers hold.
    pub unacked: Count,
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

/// Why something was refused, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The two sides speak different versions.
    Version,
    /// A frame that breaks the protocol; the connection ends.
    Protocol,
    /// Not allowed for this user.
    Access,
    /// A request that makes no sense.
    Usage,
    /// The input cannot be stored as it is.
    BadInput,
    /// The disk or a bound is full; later it may work.
    Full,
    /// The server has too many of something; later it may work.
    Busy,
    /// There is no such queue or group.
    NotFound,
    /// The queue exists with other settings.
    Different,
    /// The queue was removed, or removed and made anew.
    Gone,
    /// Another instance has taken over this producer.
    Fenced,
    /// What is stored is damaged.
    Corrupt,
    /// The disk failed.
    Disk,
    /// The server is stopping.
    Stopping,
    /// A code from a newer version.
    #[serde(other)]
    Unknown,
}

/// The body of an ERROR frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What kind of fault.
    pub code: ErrorCode,
    /// What was being done, on what, and why it failed.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The body of a GOODBYE frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// Why, for people.
    pub reason: String,
    /// Whether someone asked for it: then connected clients do not start a new server.
    pub orderly: bool,
}
