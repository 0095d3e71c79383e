//! A word to whoever waits for something that is usually there at once.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Longer than a server that is well takes for an answer.
const USUAL: Duration = Duration::from_millis(1500);

/// Says something, once, if it still lives after a while; nothing when it is dropped before.
#[derive(Debug)]
pub struct Slow {
    _done: Sender<()>,
}

impl Slow {
    /// Begins to watch the clock, on a thread of its own. Without one nothing is said.
    #[must_use = "it ends when it is dropped"]
    pub fn watch(say: impl FnOnce() + Send + 'static) -> Slow {
        let (done, ended) = channel();
        let _ = std::thread::Builder::new().name("slow".to_owned()).spawn(move || {
            if ended.recv_timeout(USUAL) == Err(RecvTimeoutError::Timeout) {
                say();
            }
        });
        Slow { _done: done }
    }
}
