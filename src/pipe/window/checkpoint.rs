//! What a commit says of windows: where a restart reads on, from where it reads again, and with
//! what.
//!
//! A part of the mark that a pipe puts into the annex of its commit, as JSON; so fields are only
//! ever added, with a default.

use serde::{Deserialize, Serialize};

use super::Rise;
use crate::limits;
use crate::units::{Offset, WallTime};

/// See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The first message that was not read.
    pub next: Offset,
    /// The watermark there.
    pub watermark: WallTime,
    /// The oldest message in an open window, else `next`.
    pub floor: Offset,
    /// The watermark just before that was read.
    pub floor_watermark: WallTime,
    /// Rises of the watermark behind the floor that messages do not show.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rises: Vec<Rise>,
    /// For windows of so many messages: the last one of the last closed window of each key,
    /// where that is not before the floor; in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "distances")]
    pub lasts: Vec<Offset>,
}

impl Checkpoint {
    /// Whether its numbers fit each other, as all do that [`Windows`](super::Windows) made.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let inside = self.floor..=self.next;
        self.floor <= self.next
            && self.floor_watermark <= self.watermark
            && self.watermark <= limits::WATERMARK_MAX
            && self.rises.len() <= limits::WATERMARK_RISES_MAX + 1
            && self.lasts.len() <= limits::COUNTED_KEYS_MAX
            && self.rises.iter().all(|rise| inside.contains(&rise.at) && rise.to <= self.watermark)
            && self.lasts.is_sorted()
            && self.lasts.iter().all(|last| inside.contains(last))
    }
}

/// Offsets as how far each lies behind the one before, so that a thousand fit an annex.
mod distances {
    use super::Offset;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(offsets: &[Offset], to: S) -> Result<S::Ok, S::Error> {
        let mut before = 0;
        let distances: Vec<u64> = offsets
            .iter()
            .map(|offset| offset.0 - std::mem::replace(&mut before, offset.0))
            .collect();
        distances.serialize(to)
    }

    pub(super) fn deserialize<'de, D>(from: D) -> Result<Vec<Offset>, D::Error>
    where
        D: Deserializer<'de>,
    {
        let mut at = 0u64;
        Vec::<u64>::deserialize(from)?
            .into_iter()
            .map(|distance| {
                at = at.checked_add(distance).ok_or_else(|| Error::custom("not an offset"))?;
                Ok(Offset(at))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rise(at: u64, to: u64) -> Rise {
        Rise { at: Offset(at), to: WallTime(to) }
    }

    fn example() -> Checkpoint {
        Checkpoint {
            next: Offset(1_000_000),
            watermark: WallTime(90),
            floor: Offset(1000),
            floor_watermark: WallTime(40),
            rises: vec![rise(1001, 50), rise(2000, 70)],
            lasts: [1000, 1001, 1300, 900_000].map(Offset).to_vec(),
        }
    }

    #[test]
    fn it_reads_back_as_it_was_written() {
        for checkpoint in [example(), Checkpoint::default()] {
            let text = serde_json::to_string(&checkpoint).expect("it can be written");
            assert_eq!(serde_json::from_str::<Checkpoint>(&text).expect(&text), checkpoint);
            assert!(checkpoint.is_sound());
        }
    }

    #[test]
    fn the_largest_fits_an_annex() {
        let lasts = (1..=limits::COUNTED_KEYS_MAX as u64).map(|n| Offset(n << 30)).collect();
        let (at, to) = (1 << 40, 2_000_000_000_000_000);
        let largest = Checkpoint {
            next: Offset(1 << 40),
            watermark: WallTime(to),
            lasts,
            rises: vec![rise(at, to); limits::WATERMARK_RISES_MAX],
            ..Checkpoint::default()
        };
        assert!(largest.is_sound());
        let text = serde_json::to_string(&largest).expect("it can be written");
        assert!(text.len() <= limits::CHECKPOINT_BYTES_MAX, "{}", text.len());
    }

    #[test]
    fn numbers_that_do_not_fit_are_found() {
        for change in [
            |c: &mut Checkpoint| c.floor = Offset(c.next.0 + 1),
            |c: &mut Checkpoint| c.floor_watermark = WallTime(c.watermark.0 + 1),
            |c: &mut Checkpoint| c.watermark = WallTime(u64::MAX),
            |c: &mut Checkpoint| c.rises[0].at = Offset(0),
            |c: &mut Checkpoint| c.rises[0].to = WallTime(91),
            |c: &mut Checkpoint| c.lasts.swap(0, 1),
            |c: &mut Checkpoint| c.lasts[0] = Offset(999),
            |c: &mut Checkpoint| c.lasts = vec![c.floor; limits::COUNTED_KEYS_MAX + 1],
        ] {
            let mut checkpoint = example();
            change(&mut checkpoint);
            assert!(!checkpoint.is_sound(), "{checkpoint:?}");
        }
    }
}
