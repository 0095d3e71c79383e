//! Who may come in: accepting connections, and listening anew when the socket was deleted.

use std::io::{self, ErrorKind, Write};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Token};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::{EventLoop, FIRST_CONNECTION, LISTENER, Link, Phase};
use crate::limits;
use crate::log::storage::Storage;
use crate::server::engine::{ConnectionId, Peer};
use crate::server::inbox::Inbox;
use crate::units::{Micros, Moment};
use crate::wire::{ErrorCode, Fault, Reply};

/// Said to those for whom no descriptor is left.
const NO_DESCRIPTORS: &str = "the server has its limit of open files (see `ulimit -n`)";

/// After descriptors ran out, accepting is tried again this often.
const ACCEPT_AGAIN: Micros = Micros::from_millis(200);

impl<S: Storage> EventLoop<S> {
    pub(super) fn accept(&mut self, moment: Moment) {
        self.accept_again = None;
        for _ in 0..limits::ACCEPTS_PER_TURN_MAX {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    self.spare.renew();
                    self.admit(socket, moment);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_passing(&error) => {}
                // Also said when nobody is there to be accepted.
                Err(error) if is_out_of_descriptors(&error) && self.spare.spend() => {
                    let refused = self.accept_to_refuse(&error);
                    self.spare.renew();
                    if !refused {
                        return;
                    }
                }
                Err(error) => {
                    // Out of memory, or of descriptors twice over: those that are connected go on.
                    self.report.error(&format!("cannot accept a connection: {error}"));
                    self.accept_again = Some(moment.now.plus(ACCEPT_AGAIN));
                    return;
                }
            }
        }
        // More may wait; those who are connected have their turn first.
        self.accept_again = Some(moment.now);
    }

    /// With the one descriptor that was kept back. False when nobody waits.
    fn accept_to_refuse(&mut self, why: &io::Error) -> bool {
        match self.listener.accept() {
            Ok((socket, _)) => {
                self.report_shortage(&why.to_string());
                refuse(socket, ErrorCode::Busy, NO_DESCRIPTORS);
                true
            }
            // Whatever else is wrong is found again by the next ordinary try.
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }

    fn report_shortage(&mut self, why: &str) {
        if self.spare.is_news() {
            self.report.error(&format!("connections are refused: {why}"));
        }
    }

    fn admit(&mut self, mut socket: UnixStream, moment: Moment) {
        // The process id of a peer in another namespace is 0, which nix can tell.
        let peer = match getsockopt(&socket, PeerCredentials) {
            Ok(credentials) => credentials,
            Err(error) => {
                self.report.error(&format!("cannot tell who connects: {error}"));
                return;
            }
        };
        let uid = peer.uid();
        let refusal = if uid != self.owner && uid != 0 {
            self.report.error(&format!("user {uid} was refused"));
            Some((ErrorCode::Access, "this store belongs to another user"))
        } else if self.links.len() >= limits::CONNECTIONS_MAX {
            Some((ErrorCode::Busy, "the server has its limit of connections"))
        } else if self.spare.is_short(&socket) {
            self.report_shortage("too few descriptors are left");
            Some((ErrorCode::Busy, NO_DESCRIPTORS))
        } else if self.phase != Phase::Serving {
            Some((ErrorCode::Stopping, "the server is stopping"))
        } else {
            None
        };
        if let Some((code, why)) = refusal {
            refuse(socket, code, why);
            return;
        }
        // What the system grants is enough.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, limits::SOCKET_BYTES);
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let token = Token(FIRST_CONNECTION + connection.0 as usize);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut socket, token, interest) {
            self.report.error(&format!("cannot watch a connection: {error}"));
            return;
        }
        self.report.debug(&format!("process {} connects", peer.pid()));
        self.spare.taken_in();
        let peer = Peer { pid: u32::try_from(peer.pid()).unwrap_or(0), uid: Some(uid) };
        self.engine.connected(connection, peer, moment);
        self.links.insert(
            connection,
            Link {
                socket,
                inbox: Inbox::default(),
                readable: false,
                writable: true,
                hung: false,
                deaf: false,
                active: false,
                moved: moment.now,
                frame_since: moment.now,
            },
        );
    }

    /// Something was deleted in the store: if it was our socket, listen anew.
    pub(super) fn restore_socket(&mut self, moment: Moment) {
        let Some(socket) = &self.socket else { return };
        if self.engine.has_queues() && socket.is_store_gone() {
            // What is appended from here on would go into files that nobody finds again.
            self.engine.fail("the files of the store were deleted");
            return;
        }
        let restored = socket.restore().and_then(|listener| {
            let Some(listener) = listener else { return Ok(false) };
            listener.set_nonblocking(true)?;
            let mut listener = UnixListener::from_std(listener);
            self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
            self.listener = listener;
            Ok(true)
        });
        match restored {
            Ok(true) => {
                self.report.info("the socket was deleted; listening on a new one");
                self.accept(moment);
            }
            Ok(false) => {}
            Err(error) => self.report.error(&format!("cannot restore the socket: {error}")),
        }
    }
}

/// Tells a client why it is not served, and hangs up.
fn refuse(mut socket: UnixStream, code: ErrorCode, why: &str) {
    let fault = Fault::new(code, why);
    let mut bytes = Vec::new();
    Reply::Error(fault).encode(0, &mut bytes);
    // One small write into an empty socket buffer; a peer that is gone needs no answer.
    let _ = socket.write(&bytes);
}

/// The client hung up before it was accepted, or a signal came.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}
