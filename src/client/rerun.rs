//! A producer with a name: a rerun of the same input stores each of its messages once.
//!
//! The producer's number is made from its name, and its sequence is the place of a message in the
//! input. With every batch goes an annex that says how many messages the input had so far, and
//! their running checksum. So a rerun learns from the server how many messages to skip, and
//! checks while skipping that they are the same. Pure; the [packer](super::packer) asks it about
//! each message.
//!
//! ```text
//! ┌─────────┬────────────┬──────────────────────────────────────────┐
//! │ version │ messages   │ XXH3 (64 bits) over each message's       │
//! │ u8, 1   │ u64        │ length (u64) and bytes, u64              │
//! └─────────┴────────────┴──────────────────────────────────────────┘
//! ```
//!
//! The checksum is over the input as it came: what a flag adds (a key, the end of a delay) is no
//! part of it.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::units::{ProducerId, Sequence};

/// Bytes of an annex.
pub const ANNEX_BYTES: usize = 17;

const VERSION: u8 = 1;

/// The number of the producer of this name: the same on every machine and in every version.
#[must_use]
pub fn producer_of(name: &str) -> ProducerId {
    let mut text = b"mq-send\0".to_vec();
    text.extend_from_slice(name.as_bytes());
    ProducerId(xxh3_64(&text).max(1))
}

/// How far an input was sent by an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    messages: u64,
    checksum: u64,
}

impl Sent {
    fn decode(annex: &[u8]) -> Option<Sent> {
        let annex: &[u8; ANNEX_BYTES] = annex.try_into().ok()?;
        let number = |at: usize| {
            u64::from_le_bytes(annex[at..at + 8].try_into().expect("eight bytes of an annex"))
        };
        (annex[0] == VERSION).then(|| Sent { messages: number(1), checksum: number(9) })
    }
}

/// Why an input is not the one that was sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Its first messages, so many, are others.
    Differs(u64),
    /// It ends with its first number of messages, and the other number is stored.
    Shorter(u64, u64),
}

/// See the module's page.
pub struct Rerun {
    messages: u64,
    checksum: Xxh3,
    /// So many are stored.
    stored: u64,
    /// What is to be the same, until that is known.
    to_verify: Option<Sent>,
}

impl Rerun {
    /// Before the first message, with nothing stored.
    #[must_use]
    pub fn new() -> Rerun {
        Rerun { messages: 0, checksum: Xxh3::new(), stored: 0, to_verify: None }
    }

    /// So much is stored, and the earlier run said this with it.
    ///
    /// # Errors
    /// An annex that this version did not write.
    pub fn expect(&mut self, stored: Sequence, annex: Option<&[u8]>) -> Result<(), &'static str> {
        self.stored = stored.0;
        if let Some(annex) = annex {
            let sent = Sent::decode(annex).ok_or("an annex of an mq-send that is not known")?;
            self.to_verify = Some(sent).filter(|sent| sent.messages > 0);
        }
        Ok(())
    }

    /// Whether the message that comes next is stored.
    #[must_use]
    pub fn is_next_stored(&self) -> bool {
        self.messages < self.stored
    }

    /// The next message of the input.
    ///
    /// # Errors
    /// [`Mismatch::Differs`].
    pub fn next(&mut self, message: &[u8]) -> Result<(), Mismatch> {
        self.messages += 1;
        self.checksum.update(&(message.len() as u64).to_le_bytes());
        self.checksum.update(message);
        if let Some(sent) = self.to_verify
            && sent.messages == self.messages
        {
            if sent.checksum != self.checksum.digest() {
                return Err(Mismatch::Differs(sent.messages));
            }
            self.to_verify = None;
        }
        Ok(())
    }

    /// Whether nothing may be sent yet, because the input may still turn out to be another one.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.to_verify.is_some() || self.messages < self.stored
    }

    /// The input has ended.
    ///
    /// # Errors
    /// [`Mismatch::Shorter`].
    pub fn end(&self) -> Result<(), Mismatch> {
        let stored = self.to_verify.map_or(0, |sent| sent.messages).max(self.stored);
        if self.messages < stored {
            return Err(Mismatch::Shorter(self.messages, stored));
        }
        Ok(())
    }

    /// How many messages of the input were stored by an earlier run.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.stored
    }

    /// What to say with a batch that ends with the message that came last.
    #[must_use]
    pub fn annex(&self) -> [u8; ANNEX_BYTES] {
        let mut annex = [VERSION; ANNEX_BYTES];
        annex[1..9].copy_from_slice(&self.messages.to_le_bytes());
        annex[9..].copy_from_slice(&self.checksum.digest().to_le_bytes());
        annex
    }
}

impl Default for Rerun {
    fn default() -> Rerun {
        Rerun::new()
    }
}

impl std::fmt::Debug for Rerun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rerun { messages, stored, to_verify, .. } = self;
        write!(f, "Rerun {{ messages: {messages}, stored: {stored}, to_verify: {to_verify:?} }}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(messages: &[&str]) -> Rerun {
        let mut run = Rerun::new();
        for message in messages {
            assert!(!run.is_next_stored());
            assert_eq!(run.next(message.as_bytes()), Ok(()));
        }
        run
    }

    fn rerun(stored: u64, annex: &[u8]) -> Rerun {
        let mut rerun = Rerun::new();
        rerun.expect(Sequence(stored), Some(annex)).expect("ours");
        rerun
    }

    #[test]
    fn the_number_of_a_name_never_changes() {
        assert_eq!(producer_of("nightly"), producer_of("nightly"));
        assert_ne!(producer_of("nightly"), producer_of("weekly"));
        assert_eq!(producer_of("nightly"), ProducerId(2_445_261_150_723_873_782));
    }

    #[test]
    fn what_is_stored_is_skipped_and_the_rest_is_sent() {
        let annex = after(&["a", "", "c"]).annex();
        // Of the last batch only the beginning was stored.
        let mut run = rerun(2, &annex);
        for (message, is_stored) in [("a", true), ("", true), ("c", false)] {
            assert!(run.is_open());
            assert_eq!(run.is_next_stored(), is_stored);
            assert_eq!(run.next(message.as_bytes()), Ok(()));
        }
        assert!(!run.is_open());
        assert_eq!(run.annex(), annex);
        assert_eq!(run.next(b"d"), Ok(()));
        assert_eq!(run.end(), Ok(()));
    }

    #[test]
    fn another_input_is_told_apart() {
        let annex = after(&["ab", "c"]).annex();
        let mut run = rerun(2, &annex);
        assert_eq!(run.next(b"a"), Ok(()));
        assert_eq!(run.next(b"bc"), Err(Mismatch::Differs(2)));
        let mut run = rerun(2, &annex);
        assert_eq!(run.next(b"ab"), Ok(()));
        assert_eq!(run.end(), Err(Mismatch::Shorter(1, 2)));
        assert!(Rerun::new().expect(Sequence(1), Some(b"another tool's")).is_err());
    }
}
