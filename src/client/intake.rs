//! How a sender takes its input in: by [cutting](super::cut) it, which looks at no single message,
//! or by [packing](super::packer) it, when messages have attributes.

use std::time::{SystemTime, UNIX_EPOCH};

use super::cut::{Cut, Cutter, Misfit, push_message};
use super::packer::{Packer, Packing};
use super::rerun::Rerun;
use super::window::Window;
use crate::units::{Monotonic, WallTime};

/// See the module's page.
#[derive(Debug)]
pub enum Intake {
    /// What one read returns is a batch as it stands.
    Cut(Cut, Cutter),
    /// Each message is looked at.
    Pack(Box<Packer>),
}

impl Intake {
    /// Cuts the input.
    #[must_use]
    pub fn cutting(cut: Cut) -> Intake {
        Intake::Cut(cut, Cutter::new(cut))
    }

    /// Packs the input.
    #[must_use]
    pub fn packing(packing: Packing) -> Intake {
        Intake::Pack(Box::new(Packer::new(packing)))
    }

    /// Where to read into; never nothing.
    pub fn space(&mut self) -> &mut [u8] {
        match self {
            Intake::Cut(_, cutter) => cutter.space(),
            Intake::Pack(packer) => packer.space(),
        }
    }

    /// `bytes` were read into [`Intake::space`]; none at the end of the source.
    ///
    /// # Errors
    /// What cannot be taken as it is; everything before it is in the window.
    pub fn take(&mut self, bytes: usize, window: &mut Window) -> Result<(), Misfit> {
        window.read_at(monotonic_now());
        match self {
            Intake::Cut(_, cutter) if bytes > 0 => Ok(cutter.advance(bytes, window)?),
            Intake::Cut(_, cutter) => Ok(cutter.end_source(window)?),
            Intake::Pack(packer) if bytes > 0 => packer.advance(bytes, wall_now(), window),
            Intake::Pack(packer) => packer.end_source(wall_now(), window),
        }
    }

    /// Takes one message that is at hand, whatever is in it.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub fn message(&mut self, message: &[u8], window: &mut Window) -> Result<(), Misfit> {
        window.read_at(monotonic_now());
        match self {
            Intake::Cut(cut, _) => Ok(push_message(message, *cut, window)?),
            Intake::Pack(packer) => packer.message(message, wall_now(), window),
        }
    }

    /// The input has ended.
    ///
    /// # Errors
    /// When there should have been more.
    pub fn end(&mut self) -> Result<(), Misfit> {
        match self.rerun() {
            Some(rerun) => Ok(rerun.end()?),
            None => Ok(()),
        }
    }

    /// Forgets the message that has begun and not ended.
    pub fn drop_unfinished(&mut self) {
        match self {
            Intake::Cut(_, cutter) => {
                cutter.drop_unfinished();
            }
            Intake::Pack(packer) => packer.drop_unfinished(),
        }
    }

    /// Whether the input is text, cut at newlines, which NUL bytes would be strange in.
    #[must_use]
    pub fn expects_text(&self) -> bool {
        match self {
            Intake::Cut(cut, _) => *cut == Cut::At(b'\n'),
            Intake::Pack(packer) => packer.expects_text(),
        }
    }

    /// What is known of an earlier run of the same input, for a producer with a name.
    pub fn rerun(&mut self) -> Option<&mut Rerun> {
        match self {
            Intake::Cut(..) => None,
            Intake::Pack(packer) => packer.rerun(),
        }
    }

    /// Whether nothing may be sent yet, because the input may turn out to be another one than that
    /// of an earlier run.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self {
            Intake::Cut(..) => false,
            Intake::Pack(packer) => packer.is_open(),
        }
    }
}

/// The clock that runs while the machine does, and is the same for all of its processes.
fn monotonic_now() -> Monotonic {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Monotonic(now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000)
}

fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(since.as_micros() as u64)
}
