//! Reaching a server, for the first time and after one was lost: what is presented to it, and how
//! long it is waited for.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll;

use super::link::Link;
use super::{
    Caller, Dial, MemberNumber, Note, Phase, Queues, ReceiveError, Receiver, Sink, Taking,
};
use crate::client::ClientError;
use crate::client::wait::Patience;
use crate::limits;
use crate::units::{Micros, Name};
use crate::wire::{OpenReceive, ReceiveMode};

/// A connection that lasts so long ends for a reason of its own.
const LASTING: Micros = Micros::from_secs(1);

impl<D: Dial, S: Sink> Receiver<D, S> {
    /// Reaches a server, or comes back without one when there is something else to do first.
    pub(super) fn connect(&mut self, caller: &mut dyn Caller) -> Result<(), ReceiveError> {
        let dialled = self.dial(caller);
        match dialled {
            Ok(connection) => {
                let open = self.open_request();
                self.link = Some(Link::open(connection, open));
                self.credit.reopen(self.options.limit.map(|limit| limit - self.accepted));
                self.is_hung_up = false;
                self.linked = self.now();
                self.waiting_since = self.linked;
                if let Phase::Closing(_, deadline) = &mut self.phase {
                    *deadline = self.waiting_since.plus(limits::DRAIN);
                }
                Ok(())
            }
            Err(ClientError::Interrupted) => {
                if !self.take_signals(caller) {
                    self.sink.alarmed();
                }
                Ok(())
            }
            // Whatever ended the server before may have ended this one while it came up.
            Err(ClientError::StartFailed { .. })
                if self.lost.is_some()
                    && self.now().since(self.adrift_since) < limits::SERVER_WAIT =>
            {
                self.pause_longer();
                Ok(())
            }
            // The sink wanted to be called on; the server may yet come.
            Err(ClientError::NoServer { .. }) if !self.is_patience_over() => Ok(()),
            Err(error) => self.broken(error.into()),
        }
    }

    fn dial(&mut self, caller: &dyn Caller) -> Result<crate::client::Connection, ClientError> {
        let watch = self.watch(caller);
        let sink_end = self.sink.alarm().and_then(|alarm| self.instant(alarm.at?));
        let patience = Patience {
            until: self.patience_end().into_iter().chain(sink_end).min(),
            interrupt: Some(watch.as_ref().map_or(caller.as_fd(), AsFd::as_fd)),
        };
        patience.sleep(self.pause.to_duration())?;
        self.dialer.dial(self.lost, patience)
    }

    /// Until when a server is waited for; for ever, if whoever stopped the last one decides when
    /// there is one again.
    fn patience_end(&self) -> Option<Instant> {
        let wait = match (self.options.wait, self.lost) {
            (None, Some(true)) if !self.options.until_end => return None,
            (wait, _) => wait.unwrap_or(limits::SERVER_WAIT),
        };
        self.instant(self.adrift_since.plus(wait))
    }

    fn is_patience_over(&self) -> bool {
        self.patience_end().is_some_and(|end| Instant::now() >= end)
    }

    /// A descriptor that shows a signal, or what the sink must not wait with.
    fn watch(&self, caller: &dyn Caller) -> Option<OwnedFd> {
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&watch, caller, data, epoll::EventFlags::IN).ok()?;
        if let Some(alarm) = self.sink.alarm() {
            // A regular file cannot be watched, and has nothing to tell.
            let _: Result<(), rustix::io::Errno> = epoll::add(&watch, alarm.fd, data, alarm.events);
        }
        Some(watch)
    }

    fn open_request(&mut self) -> OpenReceive {
        let options = self.options.clone();
        let mode = match options.taking {
            Taking::Looked => ReceiveMode::Peek,
            Taking::Acked | Taking::Unacked | Taking::Leased(_) => ReceiveMode::Take,
        };
        let lease = match options.taking {
            Taking::Leased(lease) => Some(lease),
            _ => None,
        };
        let is_acked = options.taking == Taking::Acked;
        let mut open = OpenReceive {
            until_end: options.until_end,
            from: options.from,
            no_ack: options.taking == Taking::Unacked,
            lease,
            exclusive: options.exclusive,
            backoff: options.backoff,
            tries: S::TRIES && is_acked,
            ..OpenReceive::new(Name::default(), options.group, mode)
        };
        let sink = &self.sink;
        // Nothing else is ours to hold.
        let held = |number| is_acked.then(|| sink.held(number));
        match options.queues {
            Queues::One(name) => {
                let member = self.members.at_mut(MemberNumber(0));
                let mut holding = member.holding(held(MemberNumber(0)));
                holding.truncate(limits::RANGES_PER_FRAME_MAX);
                open.queue = name;
                open.queue_id = member.queue_id;
                open.until = member.until;
                open.holding = holding;
                open.begun = if is_acked { sink.begun(MemberNumber(0)) } else { Vec::new() };
            }
            Queues::Several { patterns, strict } => {
                open.patterns = patterns;
                open.strict = strict;
                open.holdings = self.members.holdings(held, |number| sink.begun(number));
            }
        }
        open
    }

    /// The connection is gone. What was not acknowledged for sure is presented to the next server.
    pub(super) fn lose(&mut self, orderly: bool, caller: &mut dyn Caller) {
        self.link = None;
        self.lost = Some(orderly);
        self.adrift_since = self.now();
        self.pause_longer();
        if self.adrift_since.since(self.linked) >= LASTING {
            self.pause = Micros(0);
        }
        self.has_ended = false;
        self.members.lost();
        self.sink.lost();
        if self.needs_server() {
            caller.note(Note::ServerGone(orderly));
        }
    }

    /// A server that ends again and again is not started again and again without a pause.
    fn pause_longer(&mut self) {
        self.pause = Micros((self.pause.0 * 2).clamp(1_000, LASTING.0));
    }
}
