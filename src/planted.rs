//! Bugs that are planted on purpose, to test the tests: each must be caught by an ordinary test.
//!
//! Only a build with the feature `planted`, which is for this alone and never for use, has them;
//! there the environment variable `MQ_PLANTED` switches one on by its name. In every other build
//! [`is`] is a constant, and nothing is left of the places that ask it. `tests/planted.rs` goes
//! through the list; `tests/README.md` says what catches each. Asked in one line wherever a bug
//! sits; knows nothing of what it breaks.

/// Makes the enum and its names from one list.
macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $bug:ident = $name:literal,)+) => {
        /// A bug that somebody could have made.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $doc])+ $bug,)+
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)+];

            /// What it is called in `MQ_PLANTED`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Bug::$bug => $name,)+
                }
            }
        }
    };
}

bugs! {
    /// What is written is visible, and so confirmed, whatever the policy says.
    ConfirmBeforeSync = "confirm-before-sync",
    /// The directory is not synced after a segment was made.
    NoDirectorySync = "no-directory-sync",
    /// A sync that failed is tried again, and believed then.
    RetryAfterFailedSync = "retry-after-failed-sync",
    /// A batch's checksum does not cover where it stands.
    ChecksumWithoutPosition = "checksum-without-position",
    /// Batches do not say up to where the log was durable.
    MarkNeverAdvanced = "mark-never-advanced",
    /// The end of a sync confirms what was written since it began.
    AckBeyondDurable = "ack-beyond-durable",
    /// A snapshot is written before the log is durable to where it covers, and believed.
    SnapshotAheadOfLog = "snapshot-ahead-of-log",
    /// A segment goes before the acks that allow it are synced.
    UnlinkBeforeAcks = "unlink-before-acks",
    /// After a power loss under a weak policy offsets go on where the log happens to end.
    OffsetReused = "offset-reused",
    /// The commit of a pipe is confirmed, so that its source settles, before it is synced.
    CommitNotSynced = "commit-not-synced",
    /// Windows that were closed before a restart are closed again.
    WindowClosedTwice = "window-closed-twice",
    /// An older instance of a producer may still append.
    EpochNotChecked = "epoch-not-checked",
    /// An attempt is counted for each message that is handed out, tried or not.
    PrefetchCounted = "prefetch-counted",
    /// After a start nobody looks at what movers had done in their destinations.
    WaybillIgnored = "waybill-ignored",
    /// Moved messages are settled at home before they are durable in their destination.
    MovedBeforeDurable = "moved-before-durable",
    /// Leases with receipts end with the server.
    LeaseLostAtRestart = "lease-lost-at-restart",
    /// A torn tail is cut and not kept aside.
    TornTailThrownAway = "torn-tail-thrown-away",
    /// What was tried is forgotten when a journal is written anew.
    CompactionForgetsTries = "compaction-forgets-tries",
    /// After an unclean end, pages that a failed sync left are taken for durable.
    TailNotRewritten = "tail-not-rewritten",
    /// What a failed write left behind the last batch stays there.
    FailedWriteStays = "failed-write-stays",
    /// The journal is not told what was handed out, so a redelivery is not marked after a kill.
    HandedNotNoted = "handed-not-noted",
    /// Two syncs at once share one descriptor, of which only one is told of an error.
    SharedDescriptor = "shared-descriptor",
    /// Metadata is renamed into place before it is synced.
    RenamedBeforeSync = "renamed-before-sync",
    /// Due messages are taken again from the beginning after a start.
    DelayedTakenAgain = "delayed-taken-again",
    /// Payloads are not checked against their checksum.
    PayloadNotVerified = "payload-not-verified",
}

/// Whether this bug is switched on.
///
/// # Panics
/// `MQ_PLANTED` is not the name of a bug.
#[cfg(feature = "planted")]
#[must_use]
pub fn is(bug: Bug) -> bool {
    static ON: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let on = ON.get_or_init(|| {
        let name = std::env::var("MQ_PLANTED").ok().filter(|name| !name.is_empty())?;
        let found = Bug::ALL.iter().find(|bug| bug.name() == name);
        Some(*found.unwrap_or_else(|| panic!("MQ_PLANTED={name} is no planted bug")))
    });
    *on == Some(bug)
}

/// Whether this bug is switched on: there are none in this build.
#[cfg(not(feature = "planted"))]
#[inline(always)]
#[must_use]
pub const fn is(_: Bug) -> bool {
    false
}
