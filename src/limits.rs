//! Every bound of mq in one place, with its reason, and the relations between them checked at
//! compile time.
//!
//! Nothing per connection or per queue grows without one of these. Used everywhere; uses only
//! [`units`](crate::units).

use crate::units::{Micros, WallTime};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Bytes in the name of a queue or group: with a suffix it still fits a file name of 255.
pub const NAME_BYTES_MAX: usize = 200;

/// Bytes of the address of a queue that lives elsewhere: several hosts and all options fit.
pub const URL_BYTES_MAX: usize = 2 * KIB;

/// Bytes of one message. Larger ones are refused (exit status 65).
pub const MESSAGE_BYTES_MAX: usize = 64 * MIB;

/// Bytes of payload in one batch. A message that does not fit goes as a chain of batches.
pub const BATCH_PAYLOAD_BYTES_MAX: usize = MIB + 4 * KIB;

/// Messages in one batch; a flood of empty lines ends a batch here.
pub const BATCH_MESSAGES_MAX: u64 = 1 << 20;

/// What a sender puts into one batch by itself: small enough to stay in a core's cache on its
/// way through three processes, large enough to make a system call cheap.
pub const SEND_BATCH_BYTES: usize = 256 * KIB;

/// Batches in the chain of one large message.
pub const CHAIN_BATCHES_MAX: usize = MESSAGE_BYTES_MAX / MIB + 1;

/// Body bytes of one frame, both ways: a batch with its header and the frame's own fields.
pub const FRAME_BODY_BYTES_MAX: usize = BATCH_PAYLOAD_BYTES_MAX + 64 * KIB;

/// Bytes of a JSON body in a frame.
pub const JSON_BYTES_MAX: usize = 256 * KIB;

/// Bytes that the server puts into one DELIVER frame, if more than one batch fits.
pub const DELIVER_BYTES: usize = 512 * KIB;

/// Bytes of deliveries that are copied into one connection's outbox before the next must wait: a
/// receiver that does not read keeps no more of the server's memory than this and one delivery.
/// Enough for eight of the largest that are copied, so that a turn is worth its while.
pub const DELIVER_MEMORY_BYTES: usize = 128 * KIB;

/// Bytes of batches in one EXTENT: few frames, and an end that comes soon enough.
pub const EXTENT_BYTES: usize = 8 * MIB;

/// Fewer bytes than this are delivered as bytes: a receiver that reads a file has to ask for each
/// header and each payload.
pub const EXTENT_BYTES_MIN: u64 = 64 * KIB as u64;

/// Batches that are passed over to find what is delivered at once: more than fit a DELIVER, so that
/// it bounds only how long an EXTENT of tiny batches takes to be put together.
pub const BATCHES_PER_DELIVERY_MAX: usize = 8 * KIB;

/// EXTENTs that are under way to one receiver, whatever it asks for: each may hold a descriptor.
pub const EXTENTS_UNDER_WAY_MAX: u64 = 16;

/// Bytes that a socket of the server may hold on its way to a client, if the system grants so
/// much: several batches, so that server and receiver need not take turns.
pub const SOCKET_BYTES: usize = MIB;

/// Ranges in one ACK or RELEASE frame.
pub const RANGES_PER_FRAME_MAX: usize = 2048;

/// Channels (senders and receivers) of one connection.
pub const CHANNELS_PER_CONNECTION_MAX: usize = 64;

/// Connections of one server; the next one is told that the server is full.
pub const CONNECTIONS_MAX: usize = 4096;

/// Connections that are accepted before those that are there have their turn again: who connects and
/// hangs up as fast as he can must not hold up everybody else.
pub const ACCEPTS_PER_TURN_MAX: usize = 16;

/// Descriptors that connections leave to the files of queues, or an eighth of what the system
/// allows: enough for every helper thread to make a queue or roll a segment.
pub const DESCRIPTORS_FOR_FILES: u64 = 32;

/// Queues of one store.
pub const QUEUES_MAX: usize = 10_000;

/// Groups of one queue.
pub const GROUPS_PER_QUEUE_MAX: usize = 256;

/// Ranges that are walked to see whether a peek has more before it than its credit admits: asked
/// after each delivery, and so not to cost what thousands of holes cost.
pub const PEEK_RANGES_MAX: usize = 64;

/// Settled ranges that a group may hold above its floor. At the bound the group gets nothing
/// new until holes close.
pub const SETTLED_RANGES_PER_GROUP_MAX: usize = 16 * 1024;

/// Bytes in all partly received frames of the server together; beyond it sockets are not read.
pub const RECEIVE_BUDGET_BYTES: usize = 8 * MIB;

/// Bytes of that which only frames of at most 64 KiB get: large ones that do not come to an end
/// must not keep others from shaking hands, acknowledging and asking.
pub const RECEIVE_SMALL_BYTES: usize = MIB;

/// Bytes of frames that wait for room in a full queue, of all senders together: they must not use up
/// what others are received with. Beyond it, such a sender is turned away.
pub const HELD_BYTES_MAX: usize = 64 * MIB;

/// Bytes of memory that wait for one connection when it is not read from any more: a peer that
/// sends requests and does not read the answers. Deliveries are put in only below
/// [`DELIVER_BYTES`], so they do not come near.
pub const OUTBOX_MEMORY_BYTES_MAX: usize = 2 * MIB;

/// Bytes of memory that a server needs at most for what is in no proportion to anything: buffers,
/// indexes and books of a few queues. With the two that follow it is what users are promised
/// (mq(7)); a test measures it.
pub const MEMORY_BYTES: u64 = 32 * MIB as u64;

/// What each connection adds to that while its client reads what is sent to it.
pub const MEMORY_PER_CONNECTION_BYTES: u64 = 32 * KIB as u64;

/// What a receiver adds that has asked for messages and does not read them. One that asks on and
/// on without reading the answers: [`OUTBOX_MEMORY_BYTES_MAX`], then it is hung up on.
pub const MEMORY_PER_DEAF_BYTES: u64 = (DELIVER_MEMORY_BYTES + DELIVER_BYTES) as u64;

/// What a group adds whose settled messages are so scattered that it may have no more holes
/// ([`SETTLED_RANGES_PER_GROUP_MAX`]).
pub const MEMORY_PER_GROUP_BYTES: u64 = 4 * MIB as u64;

/// Bytes that a sender may have unconfirmed: enough to keep the disk busy through one slow sync.
pub const UNCONFIRMED_BYTES_MAX: usize = 16 * MIB;

/// Appends of one channel that the server keeps unconfirmed; beyond it the connection is not
/// read. The bytes of a sender's window in small batches come to less.
pub const UNCONFIRMED_APPENDS_MAX: usize = 16 * 1024;

/// Bytes of a record's attributes.
pub const ATTRIBUTE_BYTES_MAX: usize = 64 * KIB;

/// Bytes after which a segment is sealed. Retention deletes whole segments, recovery reads
/// unsealed ones, so this bounds both the space held too long and the time to come back.
pub const SEGMENT_BYTES: u64 = 64 * MIB as u64;

/// Bytes that a segment file can have at most: a chain stays in one segment.
pub const SEGMENT_BYTES_MAX: u64 =
    SEGMENT_BYTES + (MESSAGE_BYTES_MAX + CHAIN_BATCHES_MAX * 4 * KIB + 4 * MIB) as u64;

/// Messages that a segment holds at most. After a reboot under a weak sync policy the next
/// offset is taken this far on, so that no offset that anyone has seen is given again.
pub const SEGMENT_MESSAGES_MAX: u64 = 1 << 26;

/// Bytes of file between two entries of a segment's sparse index.
pub const INDEX_EVERY_BYTES: u64 = 256 * KIB as u64;

/// Disk space is reserved ahead in steps of this size, at first smaller (see the log).
pub const ALLOCATE_STEP_BYTES_MAX: u64 = 8 * MIB as u64;

/// The first reservation of a new segment: many small queues stay small.
pub const ALLOCATE_STEP_BYTES_MIN: u64 = 64 * KIB as u64;

/// Sending stops before free space falls below this, or below 5 % if that is smaller.
pub const DISK_RESERVE_BYTES: u64 = 1 << 30;

/// An ack journal is compacted when it is this large and more than twice what is alive in it.
pub const JOURNAL_COMPACT_BYTES: u64 = MIB as u64;

/// Producers without a connection that one queue remembers.
pub const PRODUCERS_PER_QUEUE_MAX: usize = 4096;

/// How long a producer without a connection is remembered: the time a sender has to reconnect.
pub const PRODUCER_RETRY: Micros = Micros::from_secs(600);

/// Bytes of an annex: what a named producer says with its batch, kept with its sequence.
pub const ANNEX_BYTES_MAX: usize = 16 * KIB;

/// Producers with a name that one queue remembers. None is ever forgotten: at the bound another
/// is refused. With their annexes they take at most 64 MiB, as a rule a few KiB.
pub const NAMED_PRODUCERS_PER_QUEUE_MAX: usize = 4096;

/// Bytes of a large message in each batch of its chain but the last.
pub const CHAIN_PART_BYTES: u64 = MIB as u64;

/// Bytes of an annex that goes with a large message: it shares a batch with the last part.
pub const LARGE_ANNEX_BYTES_MAX: usize = 4 * KIB - 4;

/// Bytes of the payloads of one commit in all: the largest message, and what stands around it.
pub const COMMIT_BYTES_MAX: usize = MESSAGE_BYTES_MAX + MIB;

/// Bytes of commits that are on their way in which the server keeps in memory, of all queues
/// together: two of the largest batches of a pipe. What does not fit goes through a file.
pub const COMMIT_MEMORY_BYTES: usize = 16 * MIB;

/// Batches of one commit.
pub const COMMIT_BATCHES_MAX: usize = 1024;

/// Attempts after which a message is a dead letter, unless the queue says otherwise.
pub const DELIVERY_LIMIT_DEFAULT: u32 = 20;

/// The first and the longest pause before a failed message is tried again, unless the receiver
/// says otherwise.
pub const BACKOFF_FIRST: Micros = Micros::from_secs(1);
/// See [`BACKOFF_FIRST`].
pub const BACKOFF_MAX: Micros = Micros::from_secs(300);

/// The longest pause that a receiver may ask for; no message rests longer, whatever becomes of the
/// clock over a restart.
pub const BACKOFF_LONGEST: Micros = Micros::from_secs(86_400);

/// How long a message that has had its last attempt waits after a restart of the server for the
/// receiver that had begun it, before it is a dead letter.
pub const HOLDER_GRACE: Micros = Micros::from_secs(2);

/// Ranges of messages of one group that were tried and are not settled; at the bound the group
/// gets nothing new until some are.
pub const TRIED_RANGES_PER_GROUP_MAX: usize = 16 * 1024;

/// Leases with receipts that one group has at most; at the bound none is given until some end.
pub const LEASES_PER_GROUP_MAX: usize = 16 * 1024;

/// The longest lease, and the shortest.
pub const LEASE_MAX: Micros = Micros::from_secs(30 * 86_400);
/// See [`LEASE_MAX`].
pub const LEASE_MIN: Micros = Micros::from_millis(10);

/// Ids that a queue remembers at most, about 64 bytes each; also of those in a window of time.
pub const UNIQUE_IDS_MAX: u64 = 1 << 18;

/// Messages with keys that are pending in a queue with unique keys at most, about 40 bytes each;
/// and so its different keys.
pub const UNIQUE_KEYS_MAX: u64 = 1 << 18;

/// Queues that one receiver takes from.
pub const MEMBERS_PER_CHANNEL_MAX: usize = 1024;

/// Bytes of the reason and of the stderr tail that go with a dead letter.
pub const REASON_BYTES_MAX: usize = 512;
/// See [`REASON_BYTES_MAX`].
pub const STDERR_TAIL_BYTES: usize = 4 * KIB;

/// Commands that one receiver runs at once: each needs up to three descriptors here, and 1024 is
/// what a process usually has.
pub const COMMANDS_MAX: usize = 256;

/// How long the processes of a command that were told to end may take before they are killed.
pub const COMMAND_GRACE: Micros = Micros::from_secs(5);

/// Messages that one command is given at most.
pub const WORK_BATCH_MAX: usize = 1 << 16;

/// Names and patterns that a receiver of several queues is given, so that they and what it holds
/// fit a request.
pub const PATTERNS_PER_RECEIVER_MAX: usize = 256;

/// Bytes of messages that wait in a receiver for a command; beyond it nothing more is read, but
/// what has been read is kept.
pub const WORK_AHEAD_BYTES: usize = 8 * MIB;

/// The stderr of commands that are over which a receiver still passes on because processes that
/// they left behind hold it; the oldest is closed for another.
pub const LINGERING_REPORTS_MAX: usize = 64;

/// Delayed messages of one queue of which the server knows in memory when they come due; when
/// there are so many, they are written into a run.
pub const DELAY_INDEX_MAX: usize = 16 * 1024;

/// Runs of delayed messages of one queue after which the smaller ones are merged, and the most
/// that there are: a window of each is in memory.
pub const DELAY_MERGE_RUNS: usize = 16;
/// See [`DELAY_MERGE_RUNS`].
pub const DELAY_RUNS_MAX: usize = 64;

/// How often a clock may be set back between two runs before nothing more is taken until the next.
pub const DELAY_LEVELS_MAX: usize = 64;

/// Bytes of a delayed message, its attributes included: it goes in one batch.
pub const DELAYED_RECORD_BYTES_MAX: usize = MIB;

/// Messages of all queues of which the server remembers why they failed, until they are settled.
pub const FAILURES_MAX: usize = 16 * 1024;

/// Bytes of what was said of them; the tails of stderr take at most half of it.
pub const FAILURE_BYTES_MAX: usize = 8 * MIB;

/// Receipts in one request.
pub const RECEIPTS_PER_REQUEST_MAX: usize = 256;

/// Seconds and minutes of a queue's history that the server keeps, those in which nothing was
/// counted included: enough for a line as wide as a terminal, and for the last hour.
pub const HISTORY_SECONDS: u32 = 180;
/// See [`HISTORY_SECONDS`].
pub const HISTORY_MINUTES: u32 = 180;

/// The longest latency that is told apart; a longer one counts as this. It also bounds how long ago
/// a sender can say that it read its messages.
pub const LATENCY_MAX: Micros = Micros::from_secs(86_400);

/// Appends of one queue of which is remembered when they became visible, about 40 bytes each.
pub const METER_MARKS_MAX: usize = 256;

/// Ranges of messages of one queue in someone's hands of which is remembered since when, about 100
/// bytes each.
pub const METER_HANDS_MAX: usize = 1024;

/// Queues of which latencies and history are kept at once. With a day of traffic through all of
/// these they take about 60 KiB each at most, and as a rule less than a tenth of that.
pub const METERS_MAX: usize = 2048;

/// At that bound, what was measured of a queue goes for another's sake only after it was idle for
/// so long.
pub const METER_IDLE: Micros = Micros::from_secs(60);

/// Clients of one queue that are told to whoever asks for its figures.
pub const CLIENTS_SHOWN_MAX: usize = 256;

/// Bytes of what a client says about itself that are kept.
pub const TOOL_BYTES_MAX: usize = 64;

/// Bytes of messages in one batch of a pipe: enough that the start of a filter is cheap beside
/// what it does with them.
pub const PIPE_BATCH_BYTES: usize = 8 * MIB;

/// Bytes of messages that a pipe reads ahead of its filter.
pub const PIPE_AHEAD_BYTES: usize = 2 * PIPE_BATCH_BYTES;

/// Bytes of messages of one batch that a pipe leaves in its file until the filter takes them: below,
/// a few system calls cost more than the bytes; above, it does not fit the pipe in which it is
/// held while it is verified, whose pages are not all full.
pub const STORED_BYTES_MIN: usize = 16 * KIB;
/// See [`STORED_BYTES_MIN`].
pub const STORED_BYTES_MAX: usize = 512 * KIB;

/// Bytes that are read at once of a batch in a file to verify it: they are read and forgotten, and
/// stay in a core's second cache meanwhile.
pub const VERIFY_BYTES: usize = 64 * KIB;

/// Bytes that are in files count so much less, in [`PIPE_AHEAD_BYTES`], than bytes in memory: they
/// take none, and what is bounded is how far ahead of its commits a pipe takes messages.
pub const PIPE_STORED_WEIGHT: usize = 4;

/// Bytes of messages in one batch of a pipe at most, if they are in files and the filter is quick
/// and writes little: each start of a filter costs about a millisecond. Twice as much was measured to
/// be no faster. When such a batch fails, all of it is read into memory.
///
/// So a pipe holds in memory at most: [`PIPE_AHEAD_BYTES`] and a delivery that are read ahead; this much
/// for the batch in the filter; [`VERIFY_BYTES`] for each filter that runs; and the
/// outputs of that batch and of [`PIPE_COMMITS_AHEAD`] commits, [`MESSAGE_BYTES_MAX`] each.
pub const PIPE_BATCH_BYTES_MAX: usize = 4 * PIPE_BATCH_BYTES;

/// EXTENTs under way to a pipe: one is taken apart while the next comes.
pub const PIPE_EXTENTS: u32 = 2;

/// Receive buffers that a pipe keeps for use again: as many as hold what is read ahead and in the
/// filter, in deliveries of the usual size.
pub const PIPE_BUFFERS: usize = (PIPE_AHEAD_BYTES + PIPE_BATCH_BYTES) / DELIVER_BYTES + 2;

/// Bytes of the outputs that a pipe commits at once: the largest message, and what ends it.
pub const PIPE_OUTPUT_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 1;

/// Commits of a pipe that are not confirmed yet: one is on its way while the next is made.
pub const PIPE_COMMITS_AHEAD: usize = 2;

/// Messages that a pipe has unsettled at an engine at most: more than AMQP lets anyone have.
pub const PIPE_UNSETTLED_MAX: u64 = 1 << 16;

/// Bytes of them, as far as it can be told from those that came before.
pub const PIPE_UNSETTLED_BYTES: usize = 4 * PIPE_BATCH_BYTES;

/// In front of a pipe's name in that of its group.
pub const PIPE_GROUP_PREFIX: &str = "pipe.";

/// Pipes of one queue that are told to whoever asks for it.
pub const PIPES_SHOWN_MAX: usize = 256;

/// Turns of exclusive receivers of a group between two times when it is set to another place. The
/// number of a turn divided by this tells how often that was: so who comes back for another turn
/// sees that the group does not stand where it left it. Nobody takes four thousand million turns.
pub const TURNS_PER_PLACE_MAX: u64 = 1 << 32;

/// Dead letters of a pipe that its mark names; see there.
pub const PIPE_DEAD_REMEMBERED: usize = 256;

/// A peer that has not finished its handshake after this is hung up on.
pub const HANDSHAKE: Micros = Micros::from_secs(10);

/// Helper threads of the server for syncs, unlinks and cold reads.
pub const HELPER_THREADS: usize = 4;

/// Syncs of one queue under way at once.
pub const SYNCS_PER_QUEUE_MAX: usize = 2;

/// How long `mq-recv` waits for the dead letters that it tells of to arrive.
pub const LETTERS_WAIT: Micros = Micros::from_secs(5);

/// How long a stopping server waits for its connections to drain.
pub const DRAIN: Micros = Micros::from_secs(5);

/// A server that a client started ends after this long without connections.
pub const IDLE_EXIT: Micros = Micros::from_secs(15 * 60);

/// A queue without writes for this long is "idle": it gets a synced mark. Long enough that a
/// sender of a line now and then does not pay for a mark with each.
pub const IDLE_MARK: Micros = Micros::from_secs(1);

/// Under weak sync policies a sync is asked for after this many unsynced bytes, so that what a
/// recovery has to write anew stays small, and so does the wait at the end of a segment.
pub const BACKGROUND_SYNC_BYTES: u64 = 16 * MIB as u64;

/// Handles of dropped segments that wait to be closed when there is time: each segment has two, and
/// its room is free after that.
pub const CLOSING_FILES_MAX: usize = 8;

/// With less free space than this, dropped segments are closed at once.
pub const CLOSE_LATER_SPACE_BYTES: u64 = 4 * DISK_RESERVE_BYTES;

/// While one sync runs, a second one starts only when this much has gathered.
pub const SYNC_GATHER_BYTES: u64 = MIB as u64;

/// An ack journal is synced this long after its first unsynced record: what a power loss takes
/// back, and so delivers again, is at most this old.
pub const JOURNAL_SYNC: Micros = Micros::from_secs(1);

/// Space of an ack journal is reserved in steps that double from the smaller to the larger.
pub const JOURNAL_ALLOCATE_BYTES_MIN: u64 = 64 * KIB as u64;
/// See [`JOURNAL_ALLOCATE_BYTES_MIN`].
pub const JOURNAL_ALLOCATE_BYTES_MAX: u64 = MIB as u64;

/// Bytes that an ack journal can have: twice the largest state, and what comes in while one
/// compaction is under way. A longer one is damaged.
pub const JOURNAL_BYTES_MAX: u64 = 256 * MIB as u64;

/// Background work that failed for want of space is tried again after this.
pub const CHORE_RETRY: Micros = Micros::from_secs(1);

/// Sealed segments of one queue whose files and indexes are kept open for readers.
pub const OPEN_SEGMENTS_PER_QUEUE_MAX: usize = 8;

/// Places that one log remembers for sequential readers, so that they go on without a search.
pub const LOCATE_HINTS: usize = 64;

/// Bytes of batches kept to cut further messages from, in all logs of a store together.
pub const CUT_CACHE_BYTES: usize = 16 * MIB;

/// An active segment this large is rolled when everything in it is gone, to give back its space.
pub const ROLL_GONE_BYTES: u64 = MIB as u64;

/// A queue that keeps messages for replay goes on in another segment after an eighth of what it
/// keeps, but not below so many bytes or before this time: a segment costs a few syncs.
pub const RETENTION_ROLL_BYTES: u64 = 64 * KIB as u64;
/// See [`RETENTION_ROLL_BYTES`].
pub const RETENTION_ROLL_AGE: Micros = Micros::from_secs(1);

/// Bytes of a queue's metadata file; a longer one is damaged.
pub const QUEUE_META_BYTES_MAX: u64 = MIB as u64;

/// Shortest and longest interval of the `interval` sync policy.
pub const SYNC_INTERVAL_MIN: Micros = Micros::from_millis(1);
/// See [`SYNC_INTERVAL_MIN`].
pub const SYNC_INTERVAL_MAX: Micros = Micros::from_secs(3600);

/// The longest duration that a user may give: about 100 years.
pub const DURATION_MAX: Micros = Micros::from_secs(100 * 366 * 86_400);

/// Messages that a receiver may hold at most, however fast its reader.
pub const CREDIT_MAX: u64 = 1 << 22;

/// A receiver holds no more than its reader takes in this time.
pub const CREDIT_HORIZON: Micros = Micros::from_millis(100);

/// Bytes that a receiver takes from its socket ahead of what its reader's pipe has room for: one
/// frame being written while the next arrives.
pub const RECEIVE_AHEAD_BYTES: usize = 2 * DELIVER_BYTES;

/// A delivery up to this size is copied out of the receive buffer, so that many small ones that
/// wait in a pipe do not hold a large buffer each.
pub const RECEIVE_COPY_BYTES_MAX: usize = 128 * KIB;

/// Receive buffers that are kept for use again: as many as hold the bytes that are in a pipe of
/// [`PIPE_BYTES`] or ahead of it in the smallest frames that are not copied, and two for the
/// ends. Large frames need a third of them; what is not needed is never touched.
pub const RECEIVE_BUFFERS: usize = 12;

/// Bytes that the pipe to a fast reader is enlarged to: enough to make a system call cheap on both
/// sides, and few enough to stay in a core's cache on the way through it. Larger ones (an
/// unprivileged user may ask for 1 MiB) were measured to be no faster.
pub const PIPE_BYTES: usize = 256 * KIB;

/// How often a receiver looks whether its reader took something, while there is something to
/// take: at first, and at most.
pub const PROGRESS_MIN: Micros = Micros::from_millis(1);
/// See [`PROGRESS_MIN`].
pub const PROGRESS_MAX: Micros = Micros::from_millis(100);

/// The shortest pause of a receiver that has nothing left to do but to see its reader take the
/// last messages: a script waits for it to end.
pub const PROGRESS_LAST: Micros = Micros(50);

/// Bytes of requests that wait for a server; beyond it acks are merged rather than sent.
pub const REQUEST_BACKLOG_BYTES: usize = 64 * KIB;

/// Ranges that a receiver remembers to have acknowledged, to say so again to a new server if the
/// old one ended before it heard of them.
pub const ACKED_RANGES_REMEMBERED: usize = 256;

/// Damaged deliveries in a row that the server finds nothing wrong with, before a receiver gives
/// up: something between the two is broken.
pub const COMPLAINTS_MAX: u32 = 3;

/// Bytes that a receiver writes to a regular file before it syncs, if more is ready at once.
pub const FILE_SYNC_BYTES: u64 = 8 * MIB as u64;

/// Slices of one vectored write; the kernel's own bound.
pub const SLICES_PER_WRITE_MAX: usize = 1024;

/// Bytes of `server.log` before it is cut.
pub const SERVER_LOG_BYTES_MAX: u64 = MIB as u64;

/// After a restart, how long receivers wait for each other to come back with what they hold: a
/// client looks for a new server every 50 ms.
pub const RETURN_GRACE: Micros = Micros::from_millis(300);

/// How long clients wait for a server, unless told otherwise.
pub const SERVER_WAIT: Micros = Micros::from_secs(30);

/// How long a sender that ends early waits for the confirmation of what it has sent.
pub const CONFIRM_PATIENCE: Micros = Micros::from_secs(10);

/// Bytes of a key that messages are told apart by: it must fit the environment of a filter. A
/// longer one counts as none.
pub const KEY_BYTES_MAX: usize = 4 * KIB;

/// Windows of a pipe are at least this long, and each message is in so many at most.
pub const WINDOW_MIN: Micros = Micros::from_millis(1);
/// See [`WINDOW_MIN`].
pub const WINDOWS_PER_MESSAGE_MAX: u64 = 1440;

/// Messages in one window that is a number of messages.
pub const WINDOW_COUNT_MAX: u64 = 1 << 30;

/// Windows of one pipe that are open at once (of sliding ones, the parts of time that they have in
/// common), some 200 bytes each.
pub const OPEN_WINDOWS_MAX: usize = 1 << 20;

/// Runs of messages in the open windows of one pipe, 32 bytes each. Without keys a window has one
/// run, however many messages; with keys, up to one for each message.
pub const OPEN_RUNS_MAX: usize = 1 << 22;

/// Times at which the server's clock was set back that a pipe remembers, while a window is open.
pub const WATERMARK_RISES_MAX: usize = 16;

/// Keys that filled a window of messages since the oldest open one began: each stands in the
/// pipe's commit.
pub const COUNTED_KEYS_MAX: usize = 1024;

/// Bytes that a commit has for what it says of windows; see [`ANNEX_BYTES_MAX`].
pub const CHECKPOINT_BYTES_MAX: usize = 14 * KIB;

/// Bytes that go to and from the spool of open windows at once.
pub const SPOOL_BUFFER_BYTES: usize = 256 * KIB;

/// Bytes of the spool that are given back at once when nobody needs them any more.
pub const SPOOL_GIVE_BACK_BYTES: u64 = 4 * MIB as u64;

/// Files of a filter's state: each is copied for each run.
pub const STATE_ENTRIES_MAX: usize = 1 << 16;

/// Parts of a state, each named in every commit.
pub const STATE_PARTS_MAX: usize = 64;

/// How long a pipe waits for an instance that it has fenced off to let go of the state.
pub const STATE_LOCK_WAIT: Micros = Micros::from_secs(10);

/// How long a file as a pipe's destination is waited for, while another `mq-pipe` has it: a filter
/// that an instance was just starting when it was killed holds the lock for a moment more.
pub const FILE_LOCK_WAIT: Micros = Micros::from_secs(1);

/// Up to here a time can be shown: the end of the year 9999. A message with a later one has none
/// that can be read.
pub const EVENT_TIME_MAX: WallTime = WallTime(253_402_207_200_000_000);

/// No watermark is later: the end of the longest window of the latest message.
pub const WATERMARK_MAX: WallTime = WallTime(EVENT_TIME_MAX.0 + 2 * DURATION_MAX.0);
/// Steps of a queue's past that a view keeps: as many as a sparkline has columns at most.
pub const VIEW_STEPS: usize = 120;

/// The shortest and the longest interval between two looks of a view.
pub const LOOK_MIN: Micros = Micros::from_millis(100);
/// See [`LOOK_MIN`].
pub const LOOK_MAX: Micros = Micros::from_secs(3600);

/// Bytes of deliveries that `mq-remote` has ready for its client beyond what the socket holds.
pub const REMOTE_AHEAD_BYTES: usize = 2 * MIB;
/// Batches, and their bytes ([`UNCONFIRMED_BYTES_MAX`]), that it has with an engine and that are not
/// confirmed. A client has no more bytes under way either.
pub const REMOTE_UNCONFIRMED_MAX: usize = 1024;
/// Messages of a batch that an engine is handed at once: a frame may hold half a million, for which one that
/// stores ten thousand a second would take a minute and say nothing of them before the last.
pub const REMOTE_BATCH_MAX: u32 = 8192;
/// Messages that failed and that it keeps, unsettled, until their back-off is over: at the bound it
/// receives nothing new.
pub const REMOTE_RESTING_MAX: usize = 1000;
/// Messages whose attempts it knows when they come again after a connection was lost.
pub const REMOTE_KNOWN_MAX: usize = 16 * 1024;
/// Bytes of the messages that it keeps because they may fail, or rest.
pub const REMOTE_KEPT_BYTES: usize = 64 * MIB;
/// Requests of a client that it keeps while it connects to an engine.
pub const REMOTE_REQUESTS_AHEAD: usize = 64;
/// How often it tells an engine that what the client holds is being worked on.
pub const REMOTE_PROGRESS: Micros = Micros::from_secs(10);

const _: () = {
    assert!(SEND_BATCH_BYTES <= BATCH_PAYLOAD_BYTES_MAX);
    assert!(
        DISK_RESERVE_BYTES + CLOSING_FILES_MAX as u64 * SEGMENT_BYTES_MAX
            <= CLOSE_LATER_SPACE_BYTES
    );
    assert!(PIPE_EXTENTS as u64 <= EXTENTS_UNDER_WAY_MAX);
    assert!(SEND_BATCH_BYTES <= STORED_BYTES_MAX && STORED_BYTES_MAX <= BATCH_PAYLOAD_BYTES_MAX);
    // What is ahead makes up a batch.
    assert!(PIPE_AHEAD_BYTES * PIPE_STORED_WEIGHT >= PIPE_BATCH_BYTES_MAX);
    // A batch in the filter, those that are committed, and what is ahead; and the helper keeps them.
    assert!(PIPE_UNSETTLED_BYTES >= (PIPE_COMMITS_AHEAD + 2) * PIPE_BATCH_BYTES);
    assert!(PIPE_UNSETTLED_BYTES < REMOTE_KEPT_BYTES);
    assert!(BATCH_PAYLOAD_BYTES_MAX + 4 * KIB <= FRAME_BODY_BYTES_MAX);
    assert!(DELIVER_BYTES + 4 * KIB <= FRAME_BODY_BYTES_MAX);
    assert!(RANGES_PER_FRAME_MAX * 16 + 64 <= FRAME_BODY_BYTES_MAX);
    assert!(JSON_BYTES_MAX <= FRAME_BODY_BYTES_MAX);
    assert!(CHAIN_PART_BYTES as usize + 4 + LARGE_ANNEX_BYTES_MAX <= BATCH_PAYLOAD_BYTES_MAX);
    // A commit, with its headers and its annex, stays in one segment.
    assert!(
        SEGMENT_BYTES + (COMMIT_BYTES_MAX + COMMIT_BATCHES_MAX * 64 + 2 * ANNEX_BYTES_MAX) as u64
            <= SEGMENT_BYTES_MAX
    );
    assert!(COMMIT_BYTES_MAX / SEND_BATCH_BYTES < COMMIT_BATCHES_MAX / 2);
    // Even of nothing but empty lines, a commit has fewer messages than a segment holds.
    assert!(COMMIT_BYTES_MAX as u64 <= SEGMENT_MESSAGES_MAX + MIB as u64);
    // The budget must let several connections receive a full frame at once.
    assert!(RECEIVE_BUDGET_BYTES - RECEIVE_SMALL_BYTES >= 4 * FRAME_BODY_BYTES_MAX);
    assert!(BATCH_MESSAGES_MAX <= SEGMENT_MESSAGES_MAX);
    assert!(SEGMENT_BYTES_MAX < u32::MAX as u64);
    assert!(UNCONFIRMED_BYTES_MAX >= 4 * BATCH_PAYLOAD_BYTES_MAX);
    assert!(CHAIN_BATCHES_MAX * MIB >= MESSAGE_BYTES_MAX + ATTRIBUTE_BYTES_MAX + 8);
    assert!((RECEIVE_BUFFERS - 2) * RECEIVE_COPY_BYTES_MAX >= RECEIVE_AHEAD_BYTES + PIPE_BYTES);
    assert!(RECEIVE_COPY_BYTES_MAX < DELIVER_BYTES);
    assert!(PROGRESS_MAX.0 <= CREDIT_HORIZON.0);
    assert!(BATCH_MESSAGES_MAX >= (BATCH_PAYLOAD_BYTES_MAX as u64) / 2);
    assert!(BACKGROUND_SYNC_BYTES <= SEGMENT_BYTES);
    assert!(CUT_CACHE_BYTES >= 2 * BATCH_PAYLOAD_BYTES_MAX);
    // An annex holds a checkpoint and what else a commit says.
    assert!(CHECKPOINT_BYTES_MAX + KIB <= ANNEX_BYTES_MAX);
    assert!(WATERMARK_MAX.0 <= i64::MAX as u64);
    // The full state of a group must fit a journal several times.
    assert!(SETTLED_RANGES_PER_GROUP_MAX as u64 * 32 * 2 <= JOURNAL_BYTES_MAX);
};
