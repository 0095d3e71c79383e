//! The closer: closes files that have no name any more, when there is time for it.
//!
//! Closing the last handle of an unlinked file frees its pages: 64 MiB take about 6 ms of a
//! processor, which whoever sends, filters or receives could use at that moment. So a thread of low
//! priority does it. Few files wait for that, and none where space is short: then whoever dropped
//! the segments closes them himself. Used by the real disk alone.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use crate::limits;

/// How much less than others its thread gets of a processor, as `nice` has it.
const NICENESS: i32 = 10;

/// See the module's page. Clones share a thread, which ends with the last of them.
#[derive(Debug)]
pub(super) struct Closer<F>(Arc<OnceLock<Option<SyncSender<Arc<F>>>>>);

impl<F> Clone for Closer<F> {
    fn clone(&self) -> Closer<F> {
        Closer(Arc::clone(&self.0))
    }
}

impl<F> Default for Closer<F> {
    fn default() -> Closer<F> {
        Closer(Arc::default())
    }
}

impl<F: Send + Sync + 'static> Closer<F> {
    /// Closes these handles soon; at once when too many wait already.
    pub fn close(&self, files: Vec<Arc<F>>) {
        let closer = self.0.get_or_init(|| {
            let (sender, files) = sync_channel(limits::CLOSING_FILES_MAX);
            let thread = std::thread::Builder::new().name("closer".to_owned());
            let run = move || {
                // Of this thread alone, as the system has it. With the usual one it works as well.
                let _ = rustix::process::setpriority_process(None, NICENESS);
                files.into_iter().for_each(drop::<Arc<F>>);
            };
            thread.stack_size(64 << 10).spawn(run).ok().map(|_| sender)
        });
        for file in files {
            if let Some(closer) = closer {
                // What does not fit comes back, and is closed here.
                let _ = closer.try_send(file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Says that it is closed, after it was allowed to be.
    struct File(Mutex<Receiver<()>>, Sender<()>);

    impl Drop for File {
        fn drop(&mut self) {
            let _ = self.0.lock().expect("nobody panics").recv();
            let _ = self.1.send(());
        }
    }

    #[test]
    fn files_are_closed_elsewhere_as_long_as_few_wait() {
        let closer = Closer::default();
        let (told, closed) = channel();
        let file = |allowed: Receiver<()>| Arc::new(File(Mutex::new(allowed), told.clone()));
        // Nobody holds the other end: it may be closed at once.
        let free = || channel().1;
        let (allow, allowed) = channel();
        closer.close(vec![file(allowed)]);
        // That one is being closed or waits, and so do these.
        let many = (1..limits::CLOSING_FILES_MAX).map(|_| file(free())).collect();
        closer.clone().close(many);
        assert!(closed.try_recv().is_err(), "none is closed here");
        closer.close(vec![file(free()), file(free())]);
        closed.recv().expect("what did not fit was closed at once");
        drop(allow);
        for _ in 0..=limits::CLOSING_FILES_MAX {
            closed.recv().expect("all are closed");
        }
    }
}
