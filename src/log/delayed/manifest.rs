//! The manifest: how far the delayed messages have been taken, and which runs hold the rest.
//!
//! It is the annex of the batch that puts due messages into the queue's own log, so it changes in
//! one append with what it speaks of: there is no moment at which a message is in both places or
//! in none. What it names is there, what it does not name is litter. Pure; kept by the store.
//!
//! # Layout
//!
//! Little-endian; the batch that carries it has the checksum.
//!
//! ```text
//!  0         4        8      12    16       24       32
//! ┌─────────┬────────┬──────┬─────┬────────┬────────┬──────────────┬───────────┐
//! │ version │ levels │ runs │ 0   │ floor  │ purged │ levels       │ runs      │
//! │ u32     │ u32    │ u32  │ u32 │ u64    │ u64    │ 24 bytes each│ 24 bytes  │
//! └─────────┴────────┴──────┴─────┴────────┴────────┴──────────────┴───────────┘
//! level: end u64, due u64 (µs), offset u64      run: number u64, taken u64, position u64
//! ```
//!
//! * Messages of the hidden log below `floor` are in a run, or were taken.
//! * Of those at or above it and below a level's `end` (and not below the `end` of the level in
//!   front of it), all up to `(due, offset)` were taken, and none behind.
//! * `purged` messages were purged before their time, ever. In version 1 this field was not there.
//! * Of a run, the first `taken` entries were; the next one stands at `position`.

use super::super::files::{u32_at, u64_at};
use super::Due;
use crate::limits;
use crate::units::{Count, Offset, WallTime};

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 32;
/// Of version 1, which did not know what was purged.
const HEADER_BYTES_FIRST: usize = 24;
const ENTRY_BYTES: usize = 24;

/// Messages below `end` are taken up to `up_to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub end: Offset,
    pub up_to: Due,
}

/// A run, and how far it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunPoint {
    pub number: u64,
    pub taken: u64,
    pub position: u64,
}

/// See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    pub floor: Offset,
    /// Messages that were purged before their time, ever.
    pub purged: Count,
    pub levels: Levels,
    pub runs: Vec<RunPoint>,
}

/// What was taken of the messages that are in no run. Messages are taken in the order in which
/// they come due, so one level says it all, as long as no message comes due before one that was
/// taken already. That happens when the clock is set back, and then for each such time there is
/// one more level, each with a lower bound than the one in front of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Levels(Vec<Level>);

impl Levels {
    /// Everything below `end` that is due up to `up_to` has been taken.
    pub fn took(&mut self, end: Offset, up_to: Due) {
        while self.0.last().is_some_and(|last| last.up_to <= up_to) {
            self.0.pop();
        }
        self.0.push(Level { end, up_to });
    }

    /// What lies below `floor` is spoken of elsewhere.
    pub fn forget_below(&mut self, floor: Offset) {
        self.0.retain(|level| level.end > floor);
    }

    /// Whether this message was taken.
    pub fn has_taken(&self, due: Due) -> bool {
        self.0.iter().find(|level| due.offset < level.end).is_some_and(|level| due <= level.up_to)
    }

    /// Whether there is room for one more.
    pub fn is_full(&self) -> bool {
        self.0.len() >= limits::DELAY_LEVELS_MAX
    }
}

impl Manifest {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [VERSION, self.levels.0.len() as u32, self.runs.len() as u32, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.floor.0.to_le_bytes());
        out.extend_from_slice(&self.purged.0.to_le_bytes());
        let levels = self.levels.0.iter().map(|l| [l.end.0, l.up_to.at.0, l.up_to.offset.0]);
        let runs = self.runs.iter().map(|run| [run.number, run.taken, run.position]);
        for entry in levels.chain(runs) {
            entry.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        }
        out
    }

    /// Reads what [`encode`](Manifest::encode) wrote; what is wrong with it, else.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, &'static str> {
        let cut = "the account of delayed messages is cut short";
        let header = match bytes.first_chunk().map(|version| u32::from_le_bytes(*version)) {
            Some(1) => HEADER_BYTES_FIRST,
            Some(VERSION) => HEADER_BYTES,
            Some(_) => {
                return Err(
                    "the account of delayed messages has a format that this mq does not know",
                );
            }
            None => return Err(cut),
        };
        if bytes.len() < header {
            return Err(cut);
        }
        let (levels, runs) = (u32_at(bytes, 4) as usize, u32_at(bytes, 8) as usize);
        let entries = bytes[header..].chunks_exact(ENTRY_BYTES);
        let fits = entries.remainder().is_empty() && entries.len() == levels.saturating_add(runs);
        if !fits {
            return Err("the account of delayed messages has an impossible length");
        }
        let purged = if header == HEADER_BYTES { Count(u64_at(bytes, 24)) } else { Count(0) };
        let floor = Offset(u64_at(bytes, 16));
        let mut manifest = Manifest { floor, purged, ..Manifest::default() };
        for (n, entry) in entries.enumerate() {
            let [a, b, c] = [u64_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16)];
            if n < levels {
                let up_to = Due { at: WallTime(b), offset: Offset(c) };
                manifest.levels.0.push(Level { end: Offset(a), up_to });
            } else {
                manifest.runs.push(RunPoint { number: a, taken: b, position: c });
            }
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(at: u64, offset: u64) -> Due {
        Due { at: WallTime(at), offset: Offset(offset) }
    }

    #[test]
    fn manifest_round_trips_and_no_cut_panics() {
        let mut levels = Levels::default();
        levels.took(Offset(9), due(50, 3));
        levels.took(Offset(12), due(40, 10));
        let runs = vec![RunPoint { number: 4, taken: 5, position: 900 }];
        let manifest = Manifest { floor: Offset(2), purged: Count(1 << 40), levels, runs };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes).as_ref(), Ok(&manifest));
        for length in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..length]).is_err());
        }
        let mut first = bytes;
        first.drain(HEADER_BYTES_FIRST..HEADER_BYTES);
        first[0] = 1;
        let known = Manifest { purged: Count(0), ..manifest };
        assert_eq!(Manifest::decode(&first), Ok(known), "version 1 is read");
    }

    #[test]
    fn levels_tell_what_was_taken_though_the_clock_is_set_back() {
        let mut levels = Levels::default();
        levels.took(Offset(10), due(100, 4));
        assert!(levels.has_taken(due(100, 4)) && levels.has_taken(due(5, 9)));
        assert!(!levels.has_taken(due(100, 5)) && !levels.has_taken(due(101, 0)));
        assert!(!levels.has_taken(due(5, 10)), "it came later");
        // The clock is set back, and message 12 comes due before what was taken already.
        levels.took(Offset(13), due(30, 12));
        assert!(levels.has_taken(due(30, 12)) && !levels.has_taken(due(31, 11)));
        assert!(levels.has_taken(due(90, 2)), "still");
        // Later all of it is behind.
        levels.took(Offset(20), due(200, 15));
        assert_eq!(levels.0.len(), 1);
        assert!(levels.has_taken(due(31, 11)) && levels.has_taken(due(150, 7)));
        levels.forget_below(Offset(20));
        assert!(!levels.has_taken(due(1, 19)));
    }
}
