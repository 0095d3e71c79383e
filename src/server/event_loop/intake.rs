//! Reading from the connections in turns, within the budget that their inboxes share, and handing
//! whole frames to the engine.

use std::io::{ErrorKind, Read};

use super::{EventLoop, Phase};
use crate::log::storage::Storage;
use crate::server::engine::ConnectionId;
use crate::units::{Micros, Moment, Monotonic};

/// Bytes received from one connection before the others have their turn.
const READ_PER_TURN: usize = 1 << 20;

/// While the receive budget is used up, a connection in the middle of a frame that has not moved
/// for this long loses its place.
const STALLED: Micros = Micros::from_secs(1);

/// While the receive budget is used up, a frame that comes in bit by bit may take so long.
const FRAME_PATIENCE: Micros = Micros::from_secs(10);

impl<S: Storage> EventLoop<S> {
    pub(super) fn activate(&mut self, connection: ConnectionId) {
        if let Some(link) = self.links.get_mut(&connection)
            && !link.active
        {
            link.active = true;
            self.active.push_back(connection);
        }
    }

    pub(super) fn read_active(&mut self, moment: Moment) {
        if self.phase != Phase::Serving {
            self.active.clear();
            return;
        }
        if !self.starved.is_empty() {
            self.make_budget(moment);
        }
        for _ in 0..self.active.len() {
            let Some(connection) = self.active.pop_front() else { return };
            let Some(link) = self.links.get_mut(&connection) else { continue };
            link.active = false;
            if self.read(connection, moment) {
                self.activate(connection);
            }
            let is_deaf = self.links.get(&connection).is_some_and(|link| link.deaf);
            if is_deaf && self.engine.is_ending(connection) {
                self.hang_up(connection);
            }
        }
    }

    /// Reads from one connection. True when there may be more right now.
    fn read(&mut self, connection: ConnectionId, moment: Moment) -> bool {
        let mut done = 0;
        loop {
            if !self.take_frames(connection, moment) {
                return false;
            }
            let Some(link) = self.links.get_mut(&connection) else { return false };
            if !link.readable || self.engine.is_ending(connection) {
                link.inbox.rest(&mut self.budget);
                return false;
            }
            if done >= READ_PER_TURN {
                return true;
            }
            if !link.inbox.is_partial() {
                link.frame_since = moment.now;
            }
            let beyond = self.overdraft == Some(connection);
            let space = match link.inbox.space(&mut self.budget, beyond) {
                Ok(Some(space)) => space,
                Ok(None) => {
                    self.starved.push(connection);
                    return false;
                }
                Err(wrong) => {
                    self.engine.malformed(connection, &wrong.to_string());
                    return false;
                }
            };
            match link.socket.read(space) {
                Ok(0) => {
                    self.hang_up(connection);
                    return false;
                }
                Ok(n) => {
                    link.inbox.received(n);
                    link.moved = moment.now;
                    done += n;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => link.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.hang_up(connection);
                    return false;
                }
            }
        }
    }

    /// Hands whole frames to the engine. False when the connection must wait or is gone.
    fn take_frames(&mut self, connection: ConnectionId, moment: Moment) -> bool {
        let Some(link) = self.links.get_mut(&connection) else { return false };
        loop {
            if self.engine.is_paused(connection) {
                if link.deaf {
                    // It would wait for an answer that it does not take.
                    self.hang_up(connection);
                }
                return false;
            }
            match link.inbox.frame() {
                Ok(Some((header, body))) => {
                    if !self.engine.frame(connection, &header, body, moment) {
                        self.keep_waiting(connection);
                        return false;
                    }
                    link.inbox.consume(&header);
                    link.frame_since = moment.now;
                    if self.engine.is_ending(connection) {
                        return false;
                    }
                }
                Ok(None) => return true,
                Err(wrong) => {
                    self.engine.malformed(connection, &wrong.to_string());
                    return false;
                }
            }
        }
    }

    /// The connection's frame comes again. One that waits for room in a queue may wait for long.
    fn keep_waiting(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        if !self.engine.is_held(connection) {
            return;
        }
        if link.hung {
            self.hang_up(connection);
        } else if !link.inbox.set_aside(&mut self.budget) {
            self.engine.turn_away(connection);
        }
    }

    /// While the receive budget is used up: whoever sits in the middle of a frame and has nothing
    /// more to be received keeps no more than has come in, and loses its place when it does not
    /// move, or moves too little; and the first of those that wait may go beyond the budget by one
    /// frame, so that somebody always gets on.
    fn make_budget(&mut self, moment: Moment) {
        let mut stalled = Vec::new();
        for (&connection, link) in &mut self.links {
            if !link.inbox.is_partial() {
                continue;
            }
            let is_late = moment.now.since(link.moved) >= STALLED
                || moment.now.since(link.frame_since) >= FRAME_PATIENCE;
            let is_slow = is_late && matches!(link.inbox.frame(), Ok(None));
            if !is_slow && !link.inbox.is_wide() {
                continue;
            }
            if rustix::io::ioctl_fionread(&link.socket).unwrap_or(0) == 0 {
                link.inbox.shrink(&mut self.budget);
                if is_slow {
                    stalled.push(connection);
                }
            }
        }
        for connection in stalled {
            if self.engine.is_parked(connection) {
                continue;
            }
            self.engine.malformed(connection, "a frame that stands still while others wait");
            if let Some(link) = self.links.get_mut(&connection) {
                link.inbox.clear(&mut self.budget);
            }
        }
        let starved = std::mem::take(&mut self.starved);
        let held = self.overdraft.and_then(|connection| self.links.get(&connection));
        if held.is_none_or(|link| !link.inbox.is_partial() || link.inbox.is_aside()) {
            self.overdraft = starved.first().copied();
        }
        for connection in starved {
            self.activate(connection);
        }
    }

    /// A connection that was not read from because it had to wait may be read from again.
    pub(super) fn go_on_reading(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get(&connection) else { return };
        let waits = (link.readable || link.inbox.is_partial()) && !link.active;
        if waits && !self.engine.is_paused(connection) {
            self.activate(connection);
        }
    }

    /// When those that wait for the budget are to be looked at again.
    pub(super) fn starved_deadline(&self, now: Monotonic) -> Option<Monotonic> {
        (!self.starved.is_empty()).then(|| now.plus(Micros(STALLED.0 / 4)))
    }
}
