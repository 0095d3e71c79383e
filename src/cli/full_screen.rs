//! The terminal as a full screen, for as long as a value lives: raw keys, the alternate screen, no
//! cursor; and as it was before, whatever ends it: a drop, a panic on any thread, a suspension.
//!
//! The one place where a tool takes a terminal over. Frames are written as they come, each with one
//! system call as far as the terminal takes it.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use rustix::event::{PollFd, PollFlags, poll};

/// Takes the screen over: alternate screen, cursor hidden, lines cut at the edge.
const TAKE: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[0m\x1b[2J";

/// Gives it back, also in the middle of a frame.
const GIVE_BACK: &[u8] = b"\x1b[?2026l\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Whether the terminal is ours at the moment.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, taken over.
#[derive(Debug)]
pub struct FullScreen {
    _private: (),
}

impl FullScreen {
    /// Takes the terminal on stdout over, with its keyboard.
    ///
    /// # Errors
    /// What the system says, when it is no terminal or has no keyboard.
    pub fn take() -> io::Result<FullScreen> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // Else the message would be written onto a screen that vanishes.
                give_back();
                before(panic);
            }));
        });
        let screen = FullScreen { _private: () };
        screen.take_again()?;
        Ok(screen)
    }

    /// Gives the terminal back for a while.
    pub fn pause(&self) {
        give_back();
    }

    /// Takes it over again.
    ///
    /// # Errors
    /// See [`FullScreen::take`].
    pub fn take_again(&self) -> io::Result<()> {
        enable_raw_mode()?;
        IS_TAKEN.store(true, Ordering::SeqCst);
        self.write(TAKE)
    }

    /// Its columns and lines; 80 and 24 where it does not say.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        match rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (usize::from(size.ws_col), usize::from(size.ws_row))
            }
            _ => (80, 24),
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// What the system says: the terminal is gone.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        write_all(bytes)
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        // Whatever can be done is done; a terminal that is gone needs nothing.
        let _ = write_all(GIVE_BACK);
        let _ = disable_raw_mode();
    }
}

fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    use rustix::io::Errno;
    let stdout = rustix::stdio::stdout();
    while !bytes.is_empty() {
        match rustix::io::write(stdout, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Somebody who shares the terminal has made it so.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], None);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
