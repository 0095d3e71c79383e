//! Waiting: for descriptors, until a moment, unless a signal comes.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::ClientError;

/// How long a caller may be kept waiting, and what ends the waiting early.
#[derive(Clone, Copy, Debug)]
pub struct Patience<'a> {
    /// Not beyond this moment; `None`: for ever.
    pub until: Option<Instant>,
    /// Readable once a signal came (see `cli::Signals`).
    pub interrupt: Option<BorrowedFd<'a>>,
}

impl<'a> Patience<'a> {
    /// Until `wait` from now.
    #[must_use]
    pub fn lasting(wait: Duration, interrupt: Option<BorrowedFd<'a>>) -> Patience<'a> {
        Patience { until: Instant::now().checked_add(wait), interrupt }
    }

    /// The same, but at most until `wait` from now.
    #[must_use]
    pub fn at_most(self, wait: Duration) -> Patience<'a> {
        let until = Instant::now().checked_add(wait);
        Patience { until: earlier(self.until, until), ..self }
    }

    /// The same, but not before `wait` from now.
    #[must_use]
    pub fn at_least(self, wait: Duration) -> Patience<'a> {
        let least = Instant::now().checked_add(wait);
        let until = self.until.and_then(|until| least.map(|least| until.max(least)));
        Patience { until, ..self }
    }

    /// The same, but by `more` longer.
    #[must_use]
    pub fn longer(self, more: Duration) -> Patience<'a> {
        let until = self.until.and_then(|until| until.checked_add(more));
        Patience { until, ..self }
    }

    /// Whether the moment has come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Waits until `fd` is ready for `events`. Returns what it is ready for; nothing when the
    /// patience is over.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`]; [`ClientError::Io`].
    pub fn wait_for(
        &self,
        fd: BorrowedFd<'_>,
        events: PollFlags,
    ) -> Result<PollFlags, ClientError> {
        let interrupt = self.interrupt.unwrap_or(fd);
        let watched = if self.interrupt.is_some() { PollFlags::IN } else { PollFlags::empty() };
        let mut fds =
            [PollFd::from_borrowed_fd(fd, events), PollFd::from_borrowed_fd(interrupt, watched)];
        poll(&mut fds, self.until)?;
        if self.interrupt.is_some() && !fds[1].revents().is_empty() {
            return Err(ClientError::Interrupted);
        }
        Ok(fds[0].revents())
    }

    /// Sleeps for `pause`, or until the patience is over.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`]; [`ClientError::Io`].
    pub fn sleep(&self, pause: Duration) -> Result<(), ClientError> {
        let until = self.at_most(pause).until;
        let Some(interrupt) = self.interrupt else {
            return poll(&mut [], until).map(|_| ());
        };
        let mut fds = [PollFd::from_borrowed_fd(interrupt, PollFlags::IN)];
        if poll(&mut fds, until)? > 0 {
            return Err(ClientError::Interrupted);
        }
        Ok(())
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Waits until a descriptor is ready or the moment has come; returns how many are ready. A signal
/// that was handled does not end it: who cares for signals watches a descriptor for them.
///
/// # Errors
/// [`ClientError::Io`].
pub fn poll(fds: &mut [PollFd<'_>], until: Option<Instant>) -> Result<usize, ClientError> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match rustix::event::poll(fds, timeout.as_ref()) {
            Ok(ready) => return Ok(ready),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(ClientError::io("wait for input")(errno.into())),
        }
    }
}
