//! The waybill: what a mover says with each batch that it puts into a queue, as the batch's
//! annex: which messages of which queue are in it.
//!
//! It makes a move happen once: after a crash the server asks the destination for the last
//! waybill of each mover, and settles in the source what that names. Pure.
//!
//! # Layout
//!
//! Little-endian; the batch that carries it has the checksum.
//!
//! ```text
//!  0          8         12       16             32         40      44         48
//! ┌──────────┬─────────┬────────┬─────────────┬──────────┬───────┬──────────┬───────┬────────┐
//! │ "mq-move"│ version │ length │ id of the   │ sequence │ ranges│ purpose  │ group │ ranges │
//! │ and NUL  │ u32     │ of     │ source,     │ u64      │ u32   │ u32      │       │ (u64,  │
//! │          │         │ group  │ 16 bytes    │          │       │          │       │ u64)*  │
//! └──────────┴─────────┴────────┴─────────────┴──────────┴───────┴──────────┴───────┴────────┘
//! ```
//!
//! * `sequence`: the messages are there once the mover's sequence has reached this. A batch
//!   carries its own; the waybill of a large message comes in front of it, and so says one more
//!   than what was stored then.
//! * Purposes: 1 dead letters; 2 dead letters that go back.
//!
//! To change the format, raise the version and keep the reader of the one before.

use crate::limits;
use crate::units::{Name, Offset, OffsetRange, ProducerId, QueueId, Sequence};

const MAGIC: &[u8; 8] = b"mq-move\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 48;

/// What a mover moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Messages of a group that are dead, into the dead-letter queue.
    Dead,
    /// Dead letters back home, or to another queue.
    Requeue,
}

impl Purpose {
    fn number(self) -> u32 {
        match self {
            Purpose::Dead => 1,
            Purpose::Requeue => 2,
        }
    }
}

/// Who moves: one mover for each group of a queue and each purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mover {
    /// The queue that it takes from.
    pub source: QueueId,
    /// The group.
    pub group: Name,
    /// What for.
    pub purpose: Purpose,
}

impl Mover {
    /// Its number as a producer: always the same one.
    #[must_use]
    pub fn producer(&self) -> ProducerId {
        let mut text = b"mq-mover ".to_vec();
        text.extend_from_slice(self.source.as_bytes());
        text.extend_from_slice(&self.purpose.number().to_le_bytes());
        text.extend_from_slice(self.group.as_str().as_bytes());
        ProducerId(xxhash_rust::xxh3::xxh3_64(&text).max(1))
    }
}

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waybill {
    /// Who moves.
    pub mover: Mover,
    /// The messages are there once the mover's sequence has reached this.
    pub sequence: Sequence,
    /// Which messages of the source; none, when what was moved is settled there.
    pub ranges: Vec<OffsetRange>,
}

/// Ranges in one waybill.
pub const RANGES_MAX: usize = 900;

const _: () =
    assert!(HEADER_BYTES + limits::NAME_BYTES_MAX + RANGES_MAX * 16 <= limits::ANNEX_BYTES_MAX);

impl Waybill {
    /// The annex's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let group = self.mover.group.as_str().as_bytes();
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(group.len() as u32).to_le_bytes());
        out.extend_from_slice(self.mover.source.as_bytes());
        out.extend_from_slice(&self.sequence.0.to_le_bytes());
        out.extend_from_slice(&(self.ranges.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.mover.purpose.number().to_le_bytes());
        out.extend_from_slice(group);
        for range in &self.ranges {
            out.extend_from_slice(&range.start.0.to_le_bytes());
            out.extend_from_slice(&range.end.0.to_le_bytes());
        }
        out
    }

    /// Reads an annex; none for one that is no waybill: it belongs to another named producer.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Waybill> {
        let u32_at = |at| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |bytes: &[u8], at: usize| {
            Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        if bytes.get(..8)? != MAGIC || u32_at(8)? != VERSION {
            return None;
        }
        let group = bytes.get(HEADER_BYTES..)?.get(..u32_at(12)? as usize)?;
        let group = Name::new(std::str::from_utf8(group).ok()?).ok()?;
        let purpose = match u32_at(44)? {
            1 => Purpose::Dead,
            2 => Purpose::Requeue,
            _ => return None,
        };
        let rest = &bytes[HEADER_BYTES + group.as_str().len()..];
        if rest.len() != (u32_at(40)? as usize).checked_mul(16)? {
            return None;
        }
        let mut ranges = Vec::new();
        for pair in rest.chunks_exact(16) {
            let (start, end) = (Offset(u64_at(pair, 0)?), Offset(u64_at(pair, 8)?));
            ranges.push((start < end).then_some(OffsetRange { start, end })?);
        }
        let source = QueueId::from_bytes(bytes.get(16..32)?.try_into().ok()?);
        let sequence = Sequence(u64_at(bytes, 32)?);
        Some(Waybill { mover: Mover { source, group, purpose }, sequence, ranges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waybills_round_trip_and_no_cut_reads_as_one() {
        let mover = Mover {
            source: QueueId::from_bytes(*b"0123456789abcdef"),
            group: Name::new("g").expect("a name"),
            purpose: Purpose::Requeue,
        };
        let ranges =
            vec![OffsetRange::new(Offset(1), Offset(3)), OffsetRange::new(Offset(7), Offset(8))];
        let waybill = Waybill { mover: mover.clone(), sequence: Sequence(9), ranges };
        let bytes = waybill.encode();
        assert_eq!(Waybill::decode(&bytes), Some(waybill));
        for length in 0..bytes.len() {
            assert_eq!(Waybill::decode(&bytes[..length]), None);
        }
        let other = Mover { purpose: Purpose::Dead, ..mover.clone() };
        assert_ne!(mover.producer(), other.producer());
    }
}
