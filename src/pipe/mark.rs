//! The mark: what a commit says of itself. It goes as the annex of the pipe's producer with the
//! outputs, so that both are there or neither; the newest one in the destination is where the pipe
//! goes on after any end.
//!
//! Plain data; JSON, so that fields can be added. Written by `run`, read by the next
//! session, and by the server for its views.

use serde::{Deserialize, Serialize};

use super::state::StateMark;
use super::window::Checkpoint;
use crate::limits;
use crate::units::{Offset, QueueId, WallTime};
use crate::wire::PipeFigures;

/// The version that this build writes; a newer one is refused.
pub const VERSION: u32 = 1;

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// [`VERSION`] of who wrote it.
    pub pipe: u32,
    /// The pipe's name.
    pub name: String,
    /// Where it reads.
    pub src: String,
    /// The incarnation of that queue; absent before the first batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_id: Option<QueueId>,
    /// The turn of the pipe's group in which that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<Turn>,
    /// The next offset to read.
    pub next: Offset,
    /// Everything below has no more to give: the source lets go of it.
    pub floor: Offset,
    /// Messages below `next` that were sent to the dead letters lately: should the source not
    /// know of that any more, they are sent again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead: Vec<Offset>,
    /// A reset was begun: the group of the source has yet to be made anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// It is not that of the destination, but of the queue for what is late.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// The windows that were open at `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowMark>,
    /// The state of the filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateMark>,
    /// What was done so far.
    #[serde(default)]
    pub figures: PipeFigures,
}

/// A turn of the pipe's group: later ones of the same group have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// When the group was made.
    pub born: WallTime,
    /// Its number.
    pub epoch: u64,
}

impl Turn {
    /// Whether the group stands where it stood in an earlier turn, as far as others are concerned.
    #[must_use]
    pub fn follows(self, earlier: Turn) -> bool {
        let place = |turn: Turn| turn.epoch / limits::TURNS_PER_PLACE_MAX;
        place(self) == place(earlier)
    }
}

/// What a mark says of windows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowMark {
    /// Which windows, times and keys: with others, the rest would make no sense.
    pub spec: String,
    /// Where they stand.
    pub at: Checkpoint,
}

/// Why a mark cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// It is of a newer version.
    #[error("it was written by a newer mq-pipe")]
    Newer,
    /// It does not fit an annex.
    #[error(
        "it is over {} KiB; with fewer filters at once (-P), or fewer keys, it is smaller",
        limits::ANNEX_BYTES_MAX >> 10
    )]
    TooLarge,
    /// It is none.
    #[error("it is not that of a pipe")]
    Foreign,
}

impl Mark {
    /// Before the first batch.
    #[must_use]
    pub fn new(name: &str, src: &str) -> Mark {
        Mark {
            pipe: VERSION,
            name: name.to_owned(),
            src: src.to_owned(),
            src_id: None,
            turn: None,
            next: Offset(0),
            floor: Offset(0),
            dead: Vec::new(),
            reset: false,
            late: false,
            window: None,
            state: None,
            figures: PipeFigures::default(),
        }
    }

    /// As an annex has it.
    ///
    /// # Errors
    /// It does not fit one: states of very many parts, and windows of very many keys.
    pub fn encode(&self) -> Result<Vec<u8>, MarkError> {
        let bytes = serde_json::to_vec(self).expect("our own type serializes");
        if bytes.len() > limits::ANNEX_BYTES_MAX { Err(MarkError::TooLarge) } else { Ok(bytes) }
    }

    /// Reads one.
    ///
    /// # Errors
    /// See [`MarkError`].
    pub fn decode(annex: &[u8]) -> Result<Mark, MarkError> {
        #[derive(Deserialize)]
        struct Version {
            pipe: u32,
        }
        let Version { pipe } = serde_json::from_slice(annex).map_err(|_| MarkError::Foreign)?;
        if pipe > VERSION {
            return Err(MarkError::Newer);
        }
        serde_json::from_slice(annex).map_err(|_| MarkError::Foreign)
    }

    /// A message is a dead letter; the oldest of those that are remembered is forgotten for it when
    /// there are too many.
    pub fn note_dead(&mut self, offset: Offset) {
        if self.dead.len() >= limits::PIPE_DEAD_REMEMBERED {
            self.dead.remove(0);
        }
        self.dead.push(offset);
        self.figures.dead += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip_and_others_are_told_apart() {
        let mut mark = Mark::new("p", "src");
        mark.next = Offset(17);
        for n in 0..2 * limits::PIPE_DEAD_REMEMBERED as u64 {
            mark.note_dead(Offset(u64::MAX - n));
        }
        assert_eq!(mark.dead.len(), limits::PIPE_DEAD_REMEMBERED);
        assert_eq!(Mark::decode(&mark.encode().expect("it fits")), Ok(mark.clone()));
        mark.src = "x".repeat(limits::ANNEX_BYTES_MAX);
        assert_eq!(mark.encode(), Err(MarkError::TooLarge));
        assert_eq!(Mark::decode(b"{\"pipe\":2}"), Err(MarkError::Newer));
        assert_eq!(Mark::decode(b"\x01abc"), Err(MarkError::Foreign));
        assert_eq!(Mark::decode(b"{\"pipe\":1}"), Err(MarkError::Foreign));
    }
}
