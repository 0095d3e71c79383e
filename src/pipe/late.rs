//! The late sink: messages whose windows were closed when they came, on their way to a queue of
//! their own.
//!
//! It has a connection and a named producer there, as the pipe itself has in its destination, and
//! what it stores says up to where the source was read: so each late message is stored once, though
//! it is read again after a crash. Its commit is durable before that of the pipe. Called by
//! [`windowed`](super::windowed).

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags};

use super::committer::{Commit, Committer, Done};
use super::mark::Mark;
use super::report::PipeError;
use super::window::Fate;
use crate::batch::{Record, push_attribute, tags};
use crate::client::envelope::{Message, push_header};
use crate::client::wait;
use crate::limits;
use crate::units::Offset;

/// The header that says why a message is there.
const WHY: &str = "mq-late";
/// The header with the key of a message that had one: what is committed has no keys of its own, as
/// they could keep it from being stored.
const KEY: &str = "mq-key";
/// The header with the offset that it had in the source.
const OFFSET: &str = "mq-offset";

/// See the module's page.
#[derive(Debug)]
pub struct LateSink {
    committer: Committer,
    mark: Mark,
    /// Records, a few MiB in each.
    waiting: Vec<Vec<u8>>,
}

impl LateSink {
    /// Goes on from where the mark is.
    #[must_use]
    pub fn new(committer: Committer, mark: Mark) -> LateSink {
        LateSink { committer, mark, waiting: Vec::new() }
    }

    /// Takes a message, unless it is stored already.
    pub fn push(&mut self, message: &Message<'_>, fate: Fate) {
        if message.offset < self.mark.next {
            return;
        }
        let attributes = attributes_of(message, fate);
        let record = Record { attribute_bytes: &attributes, body: message.body };
        let fits = |last: &Vec<u8>| last.len() + message.body.len() <= limits::PIPE_BATCH_BYTES;
        match self.waiting.last_mut().filter(|last| fits(last)) {
            Some(last) => record.encode(last),
            None => {
                let mut first = Vec::new();
                record.encode(&mut first);
                self.waiting.push(first);
            }
        }
    }

    /// Whether a message of so many bytes may be taken before what waits is committed: all that
    /// waits is committed at once.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        let waiting = self.waiting.iter().map(Vec::len).sum::<usize>();
        waiting == 0 || waiting + bytes <= limits::MESSAGE_BYTES_MAX
    }

    /// Whether any wait for a commit.
    #[must_use]
    pub fn has_any(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether so many wait that they should not become more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting.iter().map(Vec::len).sum::<usize>() >= limits::PIPE_BATCH_BYTES
    }

    /// Stores what waits, and that the source has been read up to `next`. It is durable when this
    /// returns.
    ///
    /// # Errors
    /// The queue cannot be written to; [`PipeError::Interrupted`] when one of `others` is ready.
    pub fn commit(&mut self, next: Offset, others: &[BorrowedFd<'_>]) -> Result<(), PipeError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.mark.next = next;
        self.mark.floor = next;
        let outputs = std::mem::take(&mut self.waiting);
        self.committer.push(Commit::new(outputs, self.mark.clone()));
        self.drain(others)
    }

    fn drain(&mut self, others: &[BorrowedFd<'_>]) -> Result<(), PipeError> {
        loop {
            match self.committer.take() {
                Some(Done::Committed(mark)) => self.mark = *mark,
                Some(Done::Failed(error)) => return Err(error.into()),
                Some(Done::Held(_)) => {}
                None if self.committer.is_idle() => return Ok(()),
                None => {
                    let mut fds: Vec<PollFd<'_>> = others
                        .iter()
                        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                        .collect();
                    fds.push(PollFd::new(&self.committer, PollFlags::IN));
                    wait::poll(&mut fds, None)?;
                    if fds[..others.len()].iter().any(|fd| !fd.revents().is_empty()) {
                        return Err(PipeError::Interrupted);
                    }
                }
            }
        }
    }
}

/// What goes with a late message: why it is late and where it was, its event time, its key, and its
/// headers as far as there is room.
fn attributes_of(message: &Message<'_>, fate: Fate) -> Vec<u8> {
    let mut attributes = Vec::new();
    let why = if fate == Fate::Untimed { "no time" } else { "late" };
    push_fitting(WHY, why, &mut attributes);
    push_fitting(OFFSET, &message.offset.to_string(), &mut attributes);
    if let Some(time) = message.attributes.event_time {
        push_attribute(&mut attributes, tags::EVENT_TIME, &time.0.to_le_bytes());
    }
    if let Some(key) = message.attributes.key {
        push_fitting(KEY, &String::from_utf8_lossy(key), &mut attributes);
    }
    for (name, value) in message.attributes.headers() {
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        // Those of a message that was late before say nothing any more.
        if ![WHY, OFFSET, KEY].contains(&&*name) {
            push_fitting(&name, &value, &mut attributes);
        }
    }
    attributes
}

/// Adds a header, unless there is no room for it. Bytes that are no UTF-8 become longer as text, so
/// that what was a header may not be one any more.
fn push_fitting(name: &str, value: &str, attributes: &mut Vec<u8>) {
    let before = attributes.len();
    let pushed = push_header(name, value, attributes);
    if pushed.is_err() || attributes.len() > limits::ATTRIBUTE_BYTES_MAX {
        attributes.truncate(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::delivery::Origin;
    use crate::client::envelope::Attributes;
    use crate::units::{Attempts, LeaseNumber, Name, QueueId, WallTime};

    /// Once, a header whose name became too long for one as text ended the pipe with a panic, and
    /// one too many headers took along what says why the message is there.
    #[test]
    fn headers_of_any_bytes_and_number_do_no_harm() {
        let origin = Origin {
            queue: &Name::default(),
            queue_id: QueueId::default(),
            group: &Name::default(),
            attempt: Attempts(0),
            lease: LeaseNumber(0),
        };
        let mut bytes = Vec::new();
        let bad = [&60_000u16.to_le_bytes()[..], &[0xff; 60_000], b"value"].concat();
        push_attribute(&mut bytes, tags::HEADER, &bad);
        push_header("good", "value", &mut bytes).expect("a header");
        push_header("long", &"x".repeat(limits::ATTRIBUTE_BYTES_MAX), &mut bytes).expect("one");
        push_attribute(&mut bytes, tags::KEY, b"k");
        let attributes = Attributes::parse(&bytes);
        let (offset, time) = (Offset(0), WallTime(0));
        let late =
            attributes_of(&Message { origin, offset, time, attributes, body: b"" }, Fate::Late);
        assert!(late.len() <= limits::ATTRIBUTE_BYTES_MAX);
        let late = Attributes::parse(&late);
        let headers: Vec<(&[u8], &[u8])> = late.headers().collect();
        let expected: [(&[u8], &[u8]); 4] =
            [(b"mq-late", b"late"), (b"mq-offset", b"0"), (b"mq-key", b"k"), (b"good", b"value")];
        assert_eq!(headers, expected);
    }
}
