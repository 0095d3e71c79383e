//! The ledger: what has been delivered and is not settled, in the order in which it goes to the
//! outlet. It maps bytes that the reader took to offsets that may be acknowledged.
//!
//! ```text
//!              front                      next
//!   settled  ┌────────┬────────┬────────┬────────┬────────┐
//!   ........ │ piece  │ piece  │ piece  │ piece  │ piece  │
//!            └──┬─────┴────────┴────────┴──┬─────┴────────┘
//!               taken                      written
//! ```
//!
//! Costs are per piece: one that is wholly taken is settled as a range; only in the piece where
//! the reader stands are messages counted, and each byte at most once. Does no I/O.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use super::piece::Piece;
use super::receive::MemberNumber;
use crate::units::{Count, OffsetRange};

/// A piece, of which queue it is, and whether its messages are still ours to acknowledge. They are not when another
/// receiver got them while the server was away, or when their queue is gone.
#[derive(Debug)]
struct Entry {
    member: MemberNumber,
    piece: Piece,
    is_void: bool,
}

/// Delivered messages that are not settled.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: VecDeque<Entry>,
    /// Where the front piece begins, in bytes since the start.
    start: u64,
    /// Messages of the front piece that are settled, and the bytes of it that are accounted for.
    front_settled: u64,
    front_counted: usize,
    /// The first piece that is not wholly written, and how much of it is.
    next: usize,
    next_written: usize,
    /// Bytes not yet written.
    unwritten: usize,
    /// Messages of all pieces that were wholly written.
    messages_written: u64,
}

/// What became of taken bytes, in messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Taken whole.
    pub messages: u64,
    /// Of these, the ones that count against the channel's credit.
    pub credited: u64,
}

impl Ledger {
    /// A delivered piece.
    pub fn push(&mut self, member: MemberNumber, piece: Piece) {
        self.unwritten += piece.len();
        self.entries.push_back(Entry { member, piece, is_void: false });
        self.skip_written();
    }

    /// Whether everything delivered is settled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that are not yet written.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.unwritten
    }

    /// Messages that were written as a whole since the start.
    #[must_use]
    pub fn messages_written(&self) -> u64 {
        self.messages_written + self.whole_in_next()
    }

    /// The bytes to be written next, as at most `max` slices.
    #[must_use]
    pub fn slices(&self, max: usize) -> Vec<IoSlice<'_>> {
        let mut skip = self.next_written;
        self.entries
            .range(self.next..)
            .take(max)
            .map(|entry| IoSlice::new(&entry.piece.bytes()[std::mem::take(&mut skip)..]))
            .filter(|slice| !slice.is_empty())
            .collect()
    }

    /// So many more bytes were written.
    pub fn written(&mut self, bytes: usize) {
        assert!(bytes <= self.unwritten, "more was written than there was");
        self.unwritten -= bytes;
        self.next_written += bytes;
        self.skip_written();
    }

    fn skip_written(&mut self) {
        while let Some(entry) = self.entries.get(self.next) {
            if self.next_written < entry.piece.len() {
                return;
            }
            self.next_written -= entry.piece.len();
            self.next += 1;
            self.messages_written += entry.piece.count();
        }
    }

    /// The bytes before `position` are taken: hands what is settled by it to `settle`.
    pub fn taken(
        &mut self,
        position: u64,
        settle: &mut impl FnMut(MemberNumber, OffsetRange),
    ) -> Taken {
        let mut taken = Taken::default();
        while self.next > 0 {
            let piece = &self.entries[0].piece;
            let length = piece.len() as u64;
            if self.start + length > position {
                break;
            }
            let rest = piece.count() - self.front_settled;
            self.settle_in_front(rest, settle, &mut taken);
            self.entries.pop_front();
            self.start += length;
            self.next -= 1;
            self.front_settled = 0;
            self.front_counted = 0;
        }
        self.taken_in_front(position, settle, &mut taken);
        taken
    }

    fn taken_in_front(
        &mut self,
        position: u64,
        settle: &mut impl FnMut(MemberNumber, OffsetRange),
        taken: &mut Taken,
    ) {
        let Some(Entry { piece, .. }) = self.entries.front() else { return };
        let within = usize::try_from(position.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let written = if self.next == 0 { self.next_written } else { piece.len() };
        let within = within.min(written);
        if within <= self.front_counted {
            return;
        }
        let more = piece.count_ended(self.front_settled, self.front_counted, within);
        // The last message ends with the piece and not before, whatever its body holds.
        let more = more.min(piece.count() - self.front_settled - 1);
        self.front_counted = within;
        self.settle_in_front(more, settle, taken);
    }

    /// The next `messages` of the front piece are settled.
    fn settle_in_front(
        &mut self,
        messages: u64,
        settle: &mut impl FnMut(MemberNumber, OffsetRange),
        taken: &mut Taken,
    ) {
        let Entry { member, piece, is_void } = &self.entries[0];
        let start = piece.range().start.plus(Count(self.front_settled));
        self.front_settled += messages;
        taken.messages += messages;
        if !is_void {
            taken.credited += messages;
            settle(*member, OffsetRange::new(start, start.plus(Count(messages))));
        }
    }

    /// What of a member is delivered, not settled, and ours; ascending and merged.
    #[must_use]
    pub fn held(&self, member: MemberNumber) -> Vec<OffsetRange> {
        let mut held = Settled::default();
        for (index, entry) in self.entries.iter().enumerate() {
            let skip = if index == 0 { self.front_settled } else { 0 };
            if !entry.is_void && entry.member == member {
                let range = entry.piece.range();
                held.push(OffsetRange::new(range.start.plus(Count(skip)), range.end));
            }
        }
        held.take()
    }

    /// Messages that end in the written part of the next piece.
    fn whole_in_next(&self) -> u64 {
        let Some(Entry { piece, .. }) = self.entries.get(self.next) else { return 0 };
        piece.count_ended(0, 0, self.next_written).min(piece.count() - 1)
    }

    /// Bytes that are written of a message that is not written whole.
    #[must_use]
    pub fn partly_written(&self) -> usize {
        let Some(Entry { piece, .. }) = self.entries.get(self.next) else { return 0 };
        self.next_written - piece.end_of(self.whole_in_next())
    }

    /// The written part of a message was cut off again where it went to.
    pub fn forget_partly_written(&mut self) {
        let partial = self.partly_written();
        self.next_written -= partial;
        self.unwritten += partial;
    }

    /// Takes away what is not written, but for the rest of a message that is written in part;
    /// returns what was taken away, as far as it was ours.
    pub fn cut_unwritten(&mut self) -> Vec<(MemberNumber, OffsetRange)> {
        self.rebuild(|entry, written| {
            let must = 0..written;
            (entry.is_void, vec![(must, entry.is_void)])
        })
    }

    /// A new server says what of a member is still ours, in ascending ranges. The rest is void
    /// if it is written or begun, and dropped if not; returns what was dropped.
    pub fn keep(&mut self, member: MemberNumber, kept: &[OffsetRange]) -> Vec<OffsetRange> {
        let dropped = self.rebuild(|entry, written| {
            if entry.member != member {
                return (entry.is_void, vec![(0..entry.piece.count(), entry.is_void)]);
            }
            let range = entry.piece.range();
            let ours = if entry.is_void { &[] } else { kept };
            let mut parts = Vec::new();
            let mut at = 0;
            for part in ours.iter().filter_map(|kept| range.intersection(kept)) {
                let (from, to) = (part.start.0 - range.start.0, part.end.0 - range.start.0);
                if at < from.min(written) {
                    parts.push((at..from.min(written), true));
                }
                parts.push((from..to, false));
                at = to;
            }
            if at < written {
                parts.push((at..written, true));
            }
            (entry.is_void, parts)
        });
        let mut merged = Settled::default();
        dropped.into_iter().for_each(|(_, range)| merged.push(range));
        merged.take()
    }

    /// Replaces each entry by the parts of it that `choose` names, ranges of its messages
    /// without overlap and in order, with whether each is void. `choose` is told how many
    /// messages of the entry are written or begun, which it must not leave out. Returns what was
    /// left out and had been ours.
    fn rebuild(
        &mut self,
        choose: impl Fn(&Entry, u64) -> (bool, Vec<(Range<u64>, bool)>),
    ) -> Vec<(MemberNumber, OffsetRange)> {
        self.trim_front();
        let mut left_out = Vec::new();
        let begun = self.whole_in_next() + u64::from(self.partly_written() > 0);
        let ahead: u64 = self.entries.range(..self.next).map(|e| e.piece.len() as u64).sum();
        let mut written = ahead + self.next_written as u64;
        let whole = self.messages_written();
        let old = std::mem::take(&mut self.entries);
        for (index, entry) in old.into_iter().enumerate() {
            let must = match index.cmp(&self.next) {
                std::cmp::Ordering::Less => entry.piece.count(),
                std::cmp::Ordering::Equal => begun,
                std::cmp::Ordering::Greater => 0,
            };
            let (was_void, parts) = choose(&entry, must);
            let mut at = 0;
            for (part, is_void) in parts.into_iter().filter(|(part, _)| !part.is_empty()) {
                if at < part.start && !was_void {
                    left_out.push((entry.member, entry.piece.messages(at..part.start).range()));
                }
                at = part.end;
                let piece = entry.piece.messages(part);
                self.entries.push_back(Entry { piece, is_void, ..entry });
            }
            let count = entry.piece.count();
            if at < count && !was_void {
                left_out.push((entry.member, entry.piece.messages(at..count).range()));
            }
        }
        // The bytes that are written are the same; only the pieces that they lie in changed.
        let total: u64 = self.entries.iter().map(|entry| entry.piece.len() as u64).sum();
        self.unwritten = (total - written) as usize;
        self.next = 0;
        while let Some(entry) = self.entries.get(self.next)
            && entry.piece.len() as u64 <= written
        {
            written -= entry.piece.len() as u64;
            self.next += 1;
        }
        self.next_written = written as usize;
        self.messages_written = whole.saturating_sub(self.whole_in_next());
        left_out
    }

    /// Cuts the settled messages off the front piece.
    fn trim_front(&mut self) {
        if self.front_settled == 0 {
            return;
        }
        let front = &mut self.entries[0].piece;
        let bytes = front.end_of(self.front_settled);
        *front = front.messages(self.front_settled..front.count());
        self.start += bytes as u64;
        self.front_counted -= bytes;
        if self.next == 0 {
            self.next_written -= bytes;
            self.messages_written += self.front_settled;
        }
        self.front_settled = 0;
    }
}

/// Ranges of messages, merged as they come.
#[derive(Debug, Default)]
pub struct Settled(Vec<OffsetRange>);

impl Settled {
    /// Adds a range.
    pub fn push(&mut self, range: OffsetRange) {
        match self.0.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.0.push(range),
        }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All ranges, ascending and merged, as a frame wants them; nothing is left behind.
    #[must_use]
    pub fn take(&mut self) -> Vec<OffsetRange> {
        let mut ranges = std::mem::take(&mut self.0);
        if !ranges.is_sorted_by_key(|range| range.start) {
            ranges.sort_unstable();
        }
        let mut merged = Settled::default();
        for range in ranges {
            match merged.0.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::piece::{Ends, Slice};
    use super::*;
    use crate::units::Offset;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(Offset(start), Offset(end))
    }

    fn piece(first: u64, bytes: &[u8]) -> Piece {
        let count = memchr::memchr_iter(b'\n', bytes).count() as u64;
        Piece::new(Slice::whole(bytes.to_vec()), Offset(first), count, Ends::Delimited(b'\n'))
    }

    const ONE: MemberNumber = MemberNumber(0);
    const OTHER: MemberNumber = MemberNumber(1);

    fn take(ledger: &mut Ledger, position: u64, settled: &mut Settled) -> Taken {
        ledger.taken(position, &mut |_, range| settled.push(range))
    }

    fn cut(ledger: &mut Ledger) -> Vec<OffsetRange> {
        let mut cut = Settled::default();
        ledger.cut_unwritten().into_iter().for_each(|(_, range)| cut.push(range));
        cut.take()
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.push(ONE, piece(1, b"a\nb\nc\n"));
        ledger.push(ONE, piece(4, b"dd\nee\n"));
        ledger
    }

    #[test]
    fn whole_pieces_settle_without_counting() {
        let mut ledger = ledger();
        let mut settled = Settled::default();
        ledger.written(12);
        assert_eq!(take(&mut ledger, 8, &mut settled).messages, 3);
        assert_eq!(settled.take(), [range(1, 4)]);
        assert_eq!(take(&mut ledger, 12, &mut settled).messages, 2);
        assert_eq!(settled.take(), [range(4, 6)]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn within_a_piece_only_whole_messages_settle() {
        let mut ledger = ledger();
        let mut settled = Settled::default();
        ledger.written(12);
        for (position, expected) in
            [(1, vec![]), (3, vec![range(1, 2)]), (8, vec![range(2, 4)]), (9, vec![range(4, 5)])]
        {
            take(&mut ledger, position, &mut settled);
            assert_eq!(settled.take(), expected, "at {position}");
        }
        assert_eq!(ledger.held(ONE), [range(5, 6)]);
        take(&mut ledger, 12, &mut settled);
        assert_eq!(settled.take(), [range(5, 6)]);
    }

    #[test]
    fn a_message_is_not_settled_before_its_last_byte_in_spite_of_delimiters_inside() {
        let mut ledger = Ledger::default();
        let slice = Slice::whole(b"a\nb\nc\n".to_vec());
        ledger.push(ONE, Piece::new(slice, Offset(7), 1, Ends::Delimited(b'\n')));
        ledger.written(6);
        let mut settled = Settled::default();
        assert_eq!(take(&mut ledger, 5, &mut settled).messages, 0);
        assert_eq!(take(&mut ledger, 6, &mut settled).messages, 1);
    }

    #[test]
    fn slices_go_on_where_the_last_write_ended() {
        let mut ledger = ledger();
        ledger.written(3);
        let slices = ledger.slices(10);
        assert_eq!(slices.len(), 2);
        assert_eq!((&*slices[0], &*slices[1]), (b"\nc\n".as_slice(), b"dd\nee\n".as_slice()));
        ledger.written(9);
        assert!(ledger.slices(10).is_empty());
        assert_eq!(ledger.messages_written(), 5);
    }

    #[test]
    fn cutting_keeps_the_message_that_is_written_in_part() {
        let mut ledger = ledger();
        ledger.written(3);
        assert_eq!((ledger.messages_written(), ledger.partly_written()), (1, 1));
        assert_eq!(cut(&mut ledger), [range(3, 6)]);
        assert_eq!(&*ledger.slices(10)[0], b"\n");
        ledger.written(1);
        assert_eq!((ledger.messages_written(), ledger.partly_written()), (2, 0));
        let mut settled = Settled::default();
        take(&mut ledger, 4, &mut settled);
        assert_eq!(settled.take(), [range(1, 3)]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn cutting_between_messages_keeps_none() {
        let mut ledger = ledger();
        ledger.written(4);
        assert_eq!(cut(&mut ledger), [range(3, 6)]);
        assert_eq!(ledger.unwritten(), 0);
        assert_eq!(ledger.messages_written(), 2);
    }

    #[test]
    fn after_a_restart_only_kept_messages_are_written() {
        let mut ledger = ledger();
        ledger.written(2);
        let dropped = ledger.keep(ONE, &[range(1, 2), range(3, 5)]);
        assert_eq!(dropped, [range(2, 3), range(5, 6)]);
        let bytes: Vec<u8> = ledger.slices(10).iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(bytes, b"c\ndd\n");
        ledger.written(5);
        let mut settled = Settled::default();
        assert_eq!(take(&mut ledger, 7, &mut settled).messages, 3);
        assert_eq!(settled.take(), [range(1, 2), range(3, 5)]);
    }

    #[test]
    fn after_a_restart_what_is_written_and_not_kept_is_not_acknowledged() {
        let mut ledger = ledger();
        ledger.written(3);
        let mut settled = Settled::default();
        take(&mut ledger, 2, &mut settled);
        assert_eq!(settled.take(), [range(1, 2)]);
        // The second message is begun and must be brought to its end, the third is not.
        assert_eq!(ledger.keep(ONE, &[range(4, 5)]), [range(3, 4), range(5, 6)]);
        assert_eq!(ledger.held(ONE), [range(4, 5)]);
        let bytes: Vec<u8> = ledger.slices(10).iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(bytes, b"\ndd\n");
        ledger.written(4);
        assert_eq!(ledger.messages_written(), 3);
        let taken = take(&mut ledger, 7, &mut settled);
        assert_eq!((taken.messages, taken.credited), (2, 1));
        assert_eq!(settled.take(), [range(4, 5)]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn what_came_from_a_queue_that_is_gone_is_not_acknowledged() {
        let mut ledger = ledger();
        ledger.written(8);
        assert_eq!(ledger.keep(ONE, &[]), [range(5, 6)]);
        ledger.push(ONE, piece(1, b"x\n"));
        assert_eq!(ledger.held(ONE), [range(1, 2)]);
        assert_eq!(ledger.keep(ONE, &[range(1, 2)]), [], "twice in a row");
        ledger.written(ledger.unwritten());
        let mut settled = Settled::default();
        let taken = take(&mut ledger, u64::MAX, &mut settled);
        assert_eq!((taken.messages, taken.credited), (5, 1));
        assert_eq!(settled.take(), [range(1, 2)]);
    }

    #[test]
    fn what_is_kept_of_one_queue_changes_nothing_for_another() {
        let mut ledger = ledger();
        ledger.push(OTHER, piece(1, b"x\ny\n"));
        ledger.push(ONE, piece(6, b"f\n"));
        ledger.written(2);
        assert_eq!(ledger.keep(ONE, &[range(1, 2), range(6, 7)]), [range(2, 6)]);
        assert_eq!(
            (ledger.held(ONE), ledger.held(OTHER)),
            (vec![range(1, 2), range(6, 7)], vec![range(1, 3)])
        );
        ledger.written(6);
        let mut settled = Vec::new();
        ledger.taken(8, &mut |member, range| settled.push((member, range)));
        assert_eq!(settled, [(ONE, range(1, 2)), (OTHER, range(1, 3)), (ONE, range(6, 7))]);
    }

    /// Against a plain list of messages: whatever is written, taken, cut and kept.
    #[test]
    fn a_ledger_is_a_list_of_messages() {
        use proptest::prelude::*;
        #[derive(Clone, Debug)]
        enum Step {
            Push(Vec<u8>),
            Write(usize),
            Take(usize),
            Cut,
            Keep(u64),
        }
        let step = prop_oneof![
            prop::collection::vec(0..4u8, 1..6).prop_map(Step::Push),
            (0..12usize).prop_map(Step::Write),
            (0..12usize).prop_map(Step::Take),
            Just(Step::Cut),
            any::<u64>().prop_map(Step::Keep),
        ];
        proptest!(|(steps in prop::collection::vec(step, 1..60))| {
            // Offset, end in the stream of bytes, ours.
            let mut model: Vec<(u64, u64, bool)> = Vec::new();
            let (mut ledger, mut offset) = (Ledger::default(), 0u64);
            let (mut written, mut taken, mut end) = (0u64, 0u64, 0u64);
            let mut settled = Settled::default();
            let mut acked: Vec<u64> = Vec::new();
            let offsets = |ranges: &[OffsetRange]| -> Vec<u64> {
                ranges.iter().flat_map(|range| range.start.0..range.end.0).collect()
            };
            for step in steps {
                match step {
                    Step::Push(lengths) => {
                        let mut bytes = Vec::new();
                        for length in &lengths {
                            bytes.extend(std::iter::repeat_n(b'x', usize::from(*length)));
                            bytes.push(b'\n');
                            end += u64::from(*length) + 1;
                            model.push((offset, end, true));
                            offset += 1;
                        }
                        ledger.push(ONE, piece(offset - lengths.len() as u64, &bytes));
                    }
                    Step::Write(bytes) => {
                        let bytes = bytes.min(ledger.unwritten());
                        ledger.written(bytes);
                        written += bytes as u64;
                    }
                    Step::Take(bytes) => {
                        taken = written.min(taken + bytes as u64);
                        take(&mut ledger, taken, &mut settled);
                        acked.extend(offsets(&settled.take()));
                        let due: Vec<u64> =
                            model.iter().filter(|m| m.1 <= taken && m.2).map(|m| m.0).collect();
                        prop_assert_eq!(&acked, &due);
                    }
                    Step::Cut | Step::Keep(_) => {
                        // Settle first, so that the model need not tell the two apart.
                        take(&mut ledger, taken, &mut settled);
                        acked.extend(offsets(&settled.take()));
                        let mask = if let Step::Keep(mask) = step { Some(mask) } else { None };
                        let mut kept = Settled::default();
                        let (mut expected, mut at, mut left) = (Vec::new(), 0, Vec::new());
                        for (o, stop, ours) in model.drain(..) {
                            let begun = at < written;
                            let keep = mask.is_some_and(|mask| mask >> (o % 64) & 1 == 1) && ours;
                            if keep {
                                kept.push(range(o, o + 1));
                            }
                            let length = stop - at;
                            at = stop;
                            if begun || keep {
                                let so_far = expected.last().map_or(0, |last: &(u64, u64, bool)| last.1);
                                let settled = stop <= taken;
                                let ours = if mask.is_none() || settled { ours } else { keep };
                                expected.push((o, so_far + length, ours));
                            } else if ours {
                                left.push(o);
                            }
                        }
                        let dropped =
                            if mask.is_some() { ledger.keep(ONE, &kept.take()) } else { cut(&mut ledger) };
                        prop_assert_eq!(offsets(&dropped), left);
                        model = expected;
                        end = model.last().map_or(0, |last| last.1);
                    }
                }
                prop_assert_eq!(ledger.unwritten() as u64, end - written);
                let whole = model.iter().filter(|m| m.1 <= written).count() as u64;
                prop_assert_eq!(ledger.messages_written(), whole);
                let bytes: usize = ledger.slices(1000).iter().map(|slice| slice.len()).sum();
                prop_assert_eq!(bytes, ledger.unwritten());
                let held: Vec<u64> = model.iter().filter(|m| m.2).map(|m| m.0).collect();
                prop_assert_eq!(offsets(&ledger.held(ONE)), &held[acked.len()..]);
            }
        });
    }

    #[test]
    fn empty_messages_without_delimiters_settle_too() {
        let mut ledger = Ledger::default();
        ledger.push(ONE, Piece::new(Slice::whole(vec![]), Offset(1), 2, Ends::At(vec![0, 0])));
        ledger
            .push(ONE, Piece::new(Slice::whole(b"x".to_vec()), Offset(3), 2, Ends::At(vec![0, 1])));
        let mut settled = Settled::default();
        take(&mut ledger, 0, &mut settled);
        assert_eq!(settled.take(), [range(1, 3)]);
        ledger.written(1);
        take(&mut ledger, 1, &mut settled);
        assert_eq!(settled.take(), [range(3, 5)]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn ranges_are_merged_and_in_order() {
        let mut settled = Settled::default();
        for (start, end) in [(5, 6), (6, 9), (1, 2), (2, 5)] {
            settled.push(range(start, end));
        }
        assert_eq!(settled.take(), [range(1, 9)]);
        assert!(settled.is_empty());
    }
}
