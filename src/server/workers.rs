//! The helper threads: they run what would make the event loop wait for a disk.
//!
//! They own no state: a job carries everything that it needs, and its outcome goes back to the
//! event loop, which a waker wakes. Jobs of one queue may run side by side; what must come in
//! order is one job. Used by the event loop alone; the simulator runs jobs itself.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Something to run on a helper thread.
pub trait Job: Send + 'static {
    /// What comes back.
    type Outcome: Send + 'static;

    /// Runs it; may take as long as a disk takes.
    fn run(self) -> Self::Outcome;
}

struct Shared<J: Job> {
    state: Mutex<State<J>>,
    work: Condvar,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct State<J: Job> {
    jobs: VecDeque<J>,
    outcomes: Vec<J::Outcome>,
    stopping: bool,
}

impl<J: Job> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // A thread that panicked inside a job has not touched the state.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn serve(&self) {
        loop {
            let job = {
                let mut state = self.lock();
                loop {
                    if let Some(job) = state.jobs.pop_front() {
                        break job;
                    }
                    if state.stopping {
                        return;
                    }
                    state =
                        self.work.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
            };
            let outcome = job.run();
            let first = {
                let mut state = self.lock();
                state.outcomes.push(outcome);
                state.outcomes.len() == 1
            };
            if first {
                (self.wake)();
            }
        }
    }
}

/// The threads and the queue of jobs between them and the event loop.
pub struct Workers<J: Job> {
    shared: Arc<Shared<J>>,
}

impl<J: Job> Workers<J> {
    /// Starts `count` threads; `wake` is called, from any of them, when outcomes are there.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        count: usize,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Workers<J>> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                outcomes: Vec::new(),
                stopping: false,
            }),
            work: Condvar::new(),
            wake: Box::new(wake),
        });
        let workers = Workers { shared };
        for n in 0..count {
            let shared = Arc::clone(&workers.shared);
            // Detached: see the end of this file's `Drop`.
            std::thread::Builder::new()
                .name(format!("helper-{n}"))
                .stack_size(256 * 1024)
                .spawn(move || shared.serve())?;
        }
        Ok(workers)
    }

    /// Hands a job out. The number of jobs under way is bounded by the logs, each of which has
    /// only a few at a time.
    pub fn submit(&self, job: J) {
        self.shared.lock().jobs.push_back(job);
        self.shared.work.notify_one();
    }

    /// Takes what has been done since the last call.
    pub fn outcomes(&self) -> Vec<J::Outcome> {
        std::mem::take(&mut self.shared.lock().outcomes)
    }
}

impl<J: Job> Drop for Workers<J> {
    /// Ends the threads as soon as each has run the job that it is at. Nobody waits for that: who
    /// ends in order has had all outcomes that matter, and a server that is told to end at once
    /// must not wait for a disk.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        state.jobs.clear();
        drop(state);
        self.shared.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Square(u64);

    impl Job for Square {
        type Outcome = u64;

        fn run(self) -> u64 {
            self.0 * self.0
        }
    }

    #[test]
    fn every_job_comes_back_once() {
        let (sender, woken) = mpsc::channel();
        let workers =
            Workers::start(3, move || sender.send(()).expect("the test waits")).expect("threads");
        for n in 0..100 {
            workers.submit(Square(n));
        }
        let mut all = Vec::new();
        while all.len() < 100 {
            woken.recv().expect("a wake for each time outcomes appear");
            all.extend(workers.outcomes());
        }
        all.sort_unstable();
        assert_eq!(all, (0..100).map(|n| n * n).collect::<Vec<u64>>());
    }
}
