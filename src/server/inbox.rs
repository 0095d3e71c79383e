//! What has been received from one client and is not yet a whole frame.
//!
//! It does no I/O and knows nothing of what frames mean: the event loop receives into
//! [`Inbox::space`] and takes whole frames out. A connection that is between frames holds no
//! memory; one in the middle of a frame holds at most that frame. What all hold together is
//! bounded by the [`Budget`]. While that is ample, a frame gets its room at once, as its header
//! announces it; else only as much as has come in twice over, so that announcing costs nobody
//! anything. A part of the budget is for small frames alone: those of clients that shake hands,
//! acknowledge, or ask.

use crate::limits;
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, WireError};

/// Bytes received at once when no large frame is under way.
const READ_BYTES: usize = 64 * 1024;

/// From this many missing bytes on, exactly the rest of a frame is received, so that the next
/// frame begins at the front of the buffer and nothing has to be moved.
const EXACT_BYTES: usize = 16 * 1024;

/// The memory that all inboxes of a server share, with the buffers that are not in use.
#[derive(Debug, Default)]
pub struct Budget {
    used: usize,
    /// Bytes that were set aside.
    aside: usize,
    spare: Vec<Vec<u8>>,
}

/// Buffers kept for the next use; more are given back to the system.
const SPARE_BUFFERS_MAX: usize = 4;

impl Budget {
    /// A buffer of at least this size, if the budget allows it or `beyond` it is allowed. A spare
    /// one counts with all of its bytes, so a large one does not stand in for a small one when
    /// room is short.
    fn take(&mut self, bytes: usize, beyond: bool) -> Option<Vec<u8>> {
        let has_room = |size: usize| {
            let kept = if bytes > READ_BYTES { limits::RECEIVE_SMALL_BYTES } else { 0 };
            beyond || self.used + size + kept <= limits::RECEIVE_BUDGET_BYTES
        };
        if !has_room(bytes) {
            return None;
        }
        // The last one put back is the one that is most likely still in the core's cache.
        let fits = |spare: &Vec<u8>| spare.len() >= bytes && has_room(spare.len());
        let buffer = match self.spare.iter().rposition(fits) {
            Some(at) => self.spare.remove(at),
            None => vec![0; bytes],
        };
        self.used += buffer.len();
        Some(buffer)
    }

    fn put(&mut self, buffer: Vec<u8>) {
        self.used -= buffer.len();
        // One that was shrunk fits nobody, and would keep the place of one that does.
        if buffer.len() >= READ_BYTES && self.spare.len() < SPARE_BUFFERS_MAX {
            self.spare.push(buffer);
        }
    }

    /// Whether a frame may get room for what it has announced.
    fn is_ample(&self) -> bool {
        self.used <= limits::RECEIVE_BUDGET_BYTES / 2
    }

    /// Bytes of buffers in use, those set aside apart.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Empty while nothing is held.
    buffer: Vec<u8>,
    start: usize,
    filled: usize,
    /// The buffer was set aside: it does not count against what is used.
    aside: bool,
}

impl Inbox {
    /// Room to receive into; `None` when the budget does not allow it now, unless `beyond` it is
    /// allowed.
    ///
    /// # Errors
    /// A frame header that is wrong; the connection must end.
    pub fn space(
        &mut self,
        budget: &mut Budget,
        beyond: bool,
    ) -> Result<Option<&mut [u8]>, WireError> {
        let held = self.filled - self.start;
        let missing = match self.header()? {
            Some(header) => FRAME_HEADER_BYTES + header.length as usize - held,
            None => 0,
        };
        let exact = missing >= EXACT_BYTES;
        // Behind an exact frame, the next header is received along.
        let want = if exact { missing + FRAME_HEADER_BYTES } else { READ_BYTES.max(missing) };
        let want = if beyond || budget.is_ample() { want } else { want.min(held.max(READ_BYTES)) };
        if self.buffer.len() - self.filled < want && !self.make_room(held + want, budget, beyond) {
            return Ok(None);
        }
        let all = self.buffer.len();
        let end = if exact { all.min(self.filled + missing + FRAME_HEADER_BYTES) } else { all };
        Ok(Some(&mut self.buffer[self.filled..end]))
    }

    /// Moves what is held to the front, into a larger buffer if it must be.
    fn make_room(&mut self, bytes: usize, budget: &mut Budget, beyond: bool) -> bool {
        if self.buffer.len() >= bytes {
            self.buffer.copy_within(self.start..self.filled, 0);
        } else {
            let Some(mut larger) = budget.take(bytes, beyond) else { return false };
            larger[..self.filled - self.start]
                .copy_from_slice(&self.buffer[self.start..self.filled]);
            self.give_back(budget);
            self.buffer = larger;
        }
        self.filled -= self.start;
        self.start = 0;
        true
    }

    /// So many bytes have been received into the space.
    pub fn received(&mut self, bytes: usize) {
        self.filled += bytes;
        assert!(self.filled <= self.buffer.len(), "more received than there was space");
    }

    fn header(&self) -> Result<Option<FrameHeader>, WireError> {
        let held = &self.buffer[self.start..self.filled];
        match held.first_chunk::<FRAME_HEADER_BYTES>() {
            Some(bytes) => FrameHeader::decode(bytes).map(Some),
            None => Ok(None),
        }
    }

    /// The next whole frame, if there is one; it stays until [`Inbox::consume`].
    ///
    /// # Errors
    /// A frame header that is wrong; the connection must end.
    pub fn frame(&self) -> Result<Option<(FrameHeader, &[u8])>, WireError> {
        let Some(header) = self.header()? else { return Ok(None) };
        let body = self.start + FRAME_HEADER_BYTES;
        let end = body + header.length as usize;
        Ok((end <= self.filled).then(|| (header, &self.buffer[body..end])))
    }

    /// The frame has been dealt with.
    pub fn consume(&mut self, header: &FrameHeader) {
        self.start += FRAME_HEADER_BYTES + header.length as usize;
        assert!(self.start <= self.filled, "a frame that was not there");
    }

    /// Gives the buffer back if nothing is held.
    pub fn rest(&mut self, budget: &mut Budget) {
        if self.start == self.filled {
            self.clear(budget);
        }
    }

    /// Whether it is in the middle of a frame.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.start != self.filled
    }

    /// Gives back what was announced and has not come in. What is held after that is exactly what
    /// has been received.
    pub fn shrink(&mut self, budget: &mut Budget) {
        if self.aside || !self.is_wide() {
            return;
        }
        let held = self.buffer[self.start..self.filled].to_vec();
        self.give_back(budget);
        budget.used += held.len();
        (self.start, self.filled) = (0, held.len());
        self.buffer = held;
    }

    /// Whether it holds room for more than has come in.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.buffer.len() > self.filled - self.start
    }

    /// A frame that may have to wait for long: what is held no longer counts against what all
    /// inboxes share, but against [`limits::HELD_BYTES_MAX`]. False when that is used up.
    pub fn set_aside(&mut self, budget: &mut Budget) -> bool {
        let bytes = self.filled - self.start;
        if self.aside {
            return true;
        }
        if budget.aside + bytes > limits::HELD_BYTES_MAX {
            return false;
        }
        let held = self.buffer[self.start..self.filled].to_vec();
        self.give_back(budget);
        budget.aside += held.len();
        (self.buffer, self.start, self.filled, self.aside) = (held, 0, bytes, true);
        true
    }

    /// Whether it holds nothing of what all inboxes share.
    #[must_use]
    pub fn is_aside(&self) -> bool {
        self.aside
    }

    fn give_back(&mut self, budget: &mut Budget) {
        let buffer = std::mem::take(&mut self.buffer);
        if std::mem::take(&mut self.aside) {
            budget.aside -= buffer.len();
        } else {
            budget.put(buffer);
        }
    }

    /// Drops what is held and gives the buffer back.
    pub fn clear(&mut self, budget: &mut Budget) {
        self.give_back(budget);
        self.start = 0;
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Request;

    /// The header of a frame that is as long as one may be.
    const LONGEST: FrameHeader = FrameHeader {
        length: limits::FRAME_BODY_BYTES_MAX as u32,
        kind: crate::wire::Kind::Publish,
        flags: 0,
        channel: 1,
    };

    /// Feeds `bytes` in steps of `step` and gives the lengths of the frames that come out.
    fn feed(bytes: &[u8], step: usize, budget: &mut Budget) -> Vec<u32> {
        let mut inbox = Inbox::default();
        let mut rest = bytes;
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let space = inbox.space(budget, false).expect("valid").expect("room");
            let n = space.len().min(step).min(rest.len());
            space[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            inbox.received(n);
            while let Some((header, body)) = inbox.frame().expect("valid") {
                assert_eq!(body.len(), header.length as usize);
                frames.push(header.length);
                inbox.consume(&header);
            }
            inbox.rest(budget);
        }
        assert!(!inbox.is_partial());
        frames
    }

    #[test]
    fn frames_come_out_whole_however_they_come_in() {
        let mut bytes = Vec::new();
        let mut lengths = Vec::new();
        for size in [0usize, 1, 100, 16 * 1024, 300_000, 5, limits::BATCH_PAYLOAD_BYTES_MAX, 7] {
            let payload = vec![b'x'; size];
            let head = crate::wire::PublishHead {
                sequence: crate::units::Sequence(1),
                count: 1,
                framing: crate::batch::Framing::Delimited(b'\n'),
                batch_flags: 0,
                read: crate::units::Monotonic(0),
                more: false,
            };
            Request::Publish(head, &payload).encode(1, &mut bytes);
            lengths.push((size + crate::wire::PUBLISH_HEAD_BYTES) as u32);
        }
        let mut budget = Budget::default();
        for step in [1000, 1001, 65_536, 70_000, 200_000, usize::MAX] {
            assert_eq!(feed(&bytes, step, &mut budget), lengths, "step {step}");
            assert_eq!(budget.used(), 0, "step {step}");
        }
    }

    #[test]
    fn budget_bounds_what_all_hold() {
        let mut budget = Budget::default();
        let header = LONGEST;
        let mut inboxes = Vec::new();
        loop {
            let mut inbox = Inbox::default();
            let Some(space) = inbox.space(&mut budget, false).expect("valid") else { break };
            space[..8].copy_from_slice(&header.encode());
            inbox.received(8);
            let room = inbox.space(&mut budget, false).expect("valid").is_some();
            inboxes.push(inbox);
            if !room {
                break;
            }
            assert!(inboxes.len() < 100, "the budget never ends");
        }
        assert!(inboxes.len() >= 4);
        assert!(budget.used() <= limits::RECEIVE_BUDGET_BYTES);
        for mut inbox in inboxes {
            inbox.clear(&mut budget);
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_set_aside_does_not_count_and_has_a_bound_of_its_own() {
        let mut budget = Budget::default();
        let mut bytes = Vec::new();
        Request::Stop.encode(0, &mut bytes);
        let frame = vec![7u8; 200_000];
        let mut aside = Vec::new();
        loop {
            let mut inbox = Inbox::default();
            let space = inbox.space(&mut budget, true).expect("valid").expect("room");
            space[..bytes.len()].copy_from_slice(&bytes);
            inbox.received(bytes.len());
            inbox.make_room(frame.len(), &mut budget, true);
            inbox.received(frame.len() - bytes.len());
            if !inbox.set_aside(&mut budget) {
                inbox.clear(&mut budget);
                break;
            }
            assert_eq!(budget.used(), 0);
            aside.push(inbox);
        }
        assert_eq!(aside.len(), limits::HELD_BYTES_MAX / frame.len());
        let (header, _) = aside[0].frame().expect("valid").expect("whole");
        aside[0].consume(&header);
        assert!(aside[0].is_aside());
        for mut inbox in aside {
            inbox.clear(&mut budget);
        }
        assert_eq!((budget.used(), budget.aside), (0, 0));
    }

    #[test]
    fn what_is_announced_takes_no_room_from_those_who_send() {
        let mut budget = Budget::default();
        let header = LONGEST;
        let mut idle = Vec::new();
        for n in 0..1000 {
            let mut inbox = Inbox::default();
            let space = inbox.space(&mut budget, false).expect("valid").expect("room for a header");
            space[..8].copy_from_slice(&header.encode());
            inbox.received(8);
            if inbox.space(&mut budget, false).expect("valid").is_none() {
                // As the event loop does when somebody has to wait.
                idle.iter_mut().for_each(|inbox: &mut Inbox| inbox.shrink(&mut budget));
                assert!(inbox.space(&mut budget, false).expect("valid").is_some(), "after {n}");
            }
            idle.push(inbox);
        }
        idle.iter_mut().for_each(|inbox| inbox.shrink(&mut budget));
        assert_eq!(budget.used(), 8 * idle.len());
        // One that was shrunk is received all the same.
        let mut frame = header.encode().to_vec();
        frame.resize(FRAME_HEADER_BYTES + header.length as usize, 1);
        let inbox = &mut idle[0];
        let mut rest = &frame[8..];
        while !rest.is_empty() {
            let space = inbox.space(&mut budget, false).expect("valid").expect("room");
            let n = space.len().min(rest.len()).min(70_000);
            space[..n].copy_from_slice(&rest[..n]);
            inbox.received(n);
            rest = &rest[n..];
        }
        assert_eq!(inbox.frame().expect("valid").expect("whole").1, &frame[8..]);
        idle.iter_mut().for_each(|inbox| inbox.clear(&mut budget));
        assert_eq!(budget.used(), 0);
        assert!(budget.spare.iter().all(|spare| spare.len() >= READ_BYTES), "of use to others");
    }

    #[test]
    fn small_frames_find_room_beside_large_ones_that_do_not_come_to_an_end() {
        let mut budget = Budget::default();
        let mut large = Vec::new();
        while let Some(buffer) = budget.take(limits::FRAME_BODY_BYTES_MAX, false) {
            large.push(buffer);
        }
        let small: Vec<_> = std::iter::from_fn(|| budget.take(READ_BYTES, false)).collect();
        assert!(small.len() >= limits::RECEIVE_SMALL_BYTES / READ_BYTES, "{}", small.len());
        assert!(budget.used() <= limits::RECEIVE_BUDGET_BYTES);
    }

    /// A spare buffer of a megabyte was handed out for 64 KiB while the room was checked for 64
    /// KiB, so small inboxes could take more than the budget.
    #[test]
    fn spare_buffers_count_with_their_size() {
        let mut budget = Budget::default();
        let large =
            (limits::RECEIVE_BUDGET_BYTES - limits::RECEIVE_SMALL_BYTES) / SPARE_BUFFERS_MAX;
        let spares: Vec<_> =
            (0..SPARE_BUFFERS_MAX).map(|_| budget.take(large, false).expect("room")).collect();
        assert!(budget.take(READ_BYTES + 1, false).is_none(), "the budget is used up");
        spares.into_iter().for_each(|spare| budget.put(spare));
        let mut held = Vec::new();
        while let Some(buffer) = budget.take(large / 2 + 1, false) {
            held.push(buffer);
            assert!(budget.used() <= limits::RECEIVE_BUDGET_BYTES);
        }
        assert!(held.len() >= SPARE_BUFFERS_MAX, "a spare one stands in where there is room");
    }
}
