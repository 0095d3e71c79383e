//! The sink: what becomes of received messages. The receiver brings them, and tells the server
//! what the sink says of them.
//!
//! ```text
//!            accept               begin, launch
//! receiver ─────────▶ messages ──────────────────▶ a reader, or commands
//!          ◀─────────          ◀──────────────────
//!            Members               push, settle
//! ```
//!
//! Two of them: the [printer](super::Printer) writes to stdout, the [worker](crate::client::work)
//! runs commands. A sink never waits and never talks to a server.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::event::PollFlags;
use rustix::event::epoll::EventFlags;

use super::members::{MemberNumber, Members};
use super::{Note, ReceiveError, Taking, Tally};
use crate::batch::BatchError;
use crate::client::credit::Credit;
use crate::client::delivery::{Batch, Origin};
use crate::units::{Monotonic, OffsetRange};
use crate::wire::Begun;

/// What a sink is given to work with.
pub struct Turn<'a> {
    /// The time.
    pub now: Monotonic,
    /// Whether more may be delivered; else the end is near.
    pub is_running: bool,
    /// Whether the server has sent more already, which is not read yet. A system call: ask
    /// seldom.
    pub has_more: &'a dyn Fn() -> bool,
    /// To be told when messages are done with.
    pub credit: &'a mut Credit,
    /// To be told which messages are settled, and how.
    pub members: &'a mut Members,
}

/// What a sink cannot let wait, even while a server is waited for.
pub struct Alarm<'a> {
    /// A descriptor.
    pub fd: BorrowedFd<'a>,
    /// What of it, beside that it hangs up.
    pub events: EventFlags,
    /// A time.
    pub at: Option<Monotonic>,
}

/// See the module's page.
pub trait Sink {
    /// Whether it begins tries, which are settled by their outcome.
    const TRIES: bool;

    /// The credit for a receiver that takes at most `limit` messages, and so.
    fn credit(&self, limit: Option<u64>, taking: Taking) -> Credit;

    /// Takes messages of a batch: the ones with these numbers, counted from its first.
    ///
    /// # Errors
    /// [`BatchError::Messages`] when the messages do not come out as the header says.
    fn accept(
        &mut self,
        member: MemberNumber,
        origin: &Origin<'_>,
        batch: Batch,
        which: Range<u64>,
    ) -> Result<(), BatchError>;

    /// Something that the user should know of the messages that came, or of what is done with them;
    /// each once.
    fn take_note(&mut self) -> Option<Note>;

    /// Whether it has so few messages that more should be read.
    fn wants_more(&self) -> bool;

    /// Moves what it can move at once; called often, also between two reads.
    ///
    /// # Errors
    /// Why it cannot go on; then it is stopped.
    fn push(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError>;

    /// Looks what is done, and tells the members.
    ///
    /// # Errors
    /// Why it cannot go on; then it is stopped.
    fn settle(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError>;

    /// Chooses what to do next, and tells the members that it begins. Called only while there is
    /// a server.
    ///
    /// # Errors
    /// Why it cannot go on; then it is stopped.
    fn begin(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError>;

    /// Does what was chosen: the server's socket has been handed the word of it.
    ///
    /// # Errors
    /// Why it cannot go on; then it is stopped.
    fn launch(&mut self, turn: &mut Turn<'_>) -> Result<(), ReceiveError>;

    /// What of this member's messages is begun and not over, to be told to a new server.
    fn begun(&self, _: MemberNumber) -> Vec<Begun> {
        Vec::new()
    }

    /// Begins nothing more; what is not begun is given back.
    fn stop(&mut self, members: &mut Members);

    /// Asked to end a second time.
    fn hurry(&mut self, now: Monotonic);

    /// Something has come, or (`is_last`) nobody waits for anything but the end now: look soon.
    fn hasten(&mut self, now: Monotonic, is_last: bool);

    /// The last look before the end: whatever is not settled by it never will be here.
    fn look_last(&mut self);

    /// Whether the one it works for is gone.
    fn is_gone(&self) -> bool;

    /// Whether something is begun that comes to its end without a server, and is better not
    /// left alone.
    fn is_busy(&self) -> bool;

    /// Whether something is begun that is to be brought to its end even if nothing else is done.
    fn is_begun(&self) -> bool;

    /// Whether everything that it was given is settled.
    fn is_empty(&self) -> bool;

    /// What it holds of a member, unsettled and ours; ascending and merged.
    fn held(&self, member: MemberNumber) -> Vec<OffsetRange>;

    /// The server says what of a member is still ours, in ascending ranges. The rest is void if
    /// it is begun, and dropped if not; returns what was dropped.
    fn keep(&mut self, member: MemberNumber, kept: &[OffsetRange]) -> Vec<OffsetRange>;

    /// The server is gone; nothing that was chosen is announced any more.
    fn lost(&mut self);

    /// What is to be polled, and for what.
    fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)>;

    /// What has come of that.
    fn polled(&mut self, events: PollFlags);

    /// What must interrupt the waiting for a server.
    fn alarm(&self) -> Option<Alarm<'_>>;

    /// The waiting for a server was interrupted, and not by a signal.
    fn alarmed(&mut self);

    /// When it is to be called again even if nothing happens.
    fn deadline(&self) -> Option<Monotonic>;

    /// What has been done, but for what the receiver itself counts.
    fn tally(&self) -> Tally;
}
