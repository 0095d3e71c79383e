//! Sending what the outboxes hold, as far as the sockets take it.

use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use mio::net::UnixStream;

use super::EventLoop;
use super::phases::Phase;
use crate::log::storage::{Storage, StorageFile};
use crate::server::engine::ConnectionId;
use crate::server::outbox::Front;

impl<S: Storage> EventLoop<S> {
    pub(super) fn send_dirty(&mut self) {
        for connection in self.engine.take_dirty() {
            self.send(connection);
        }
    }

    /// Nothing can be sent any more. What the peer said before it went may still be there: that a
    /// message is settled, or that a try of it has begun.
    fn hear_out(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        (link.deaf, link.readable) = (true, true);
        self.activate(connection);
    }

    /// Sends what the outbox holds, as far as the socket takes it.
    pub(super) fn send(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection).filter(|link| !link.deaf) else { return };
        let Some(outbox) = self.engine.outbox(connection) else { return };
        let mut broken = false;
        let mut unreadable = None;
        while link.writable {
            let sent = match outbox.front() {
                None => break,
                Some(Front::Bytes(bytes, more)) => send_bytes(&link.socket, bytes, more),
                Some(Front::Descriptor(bytes, fd)) => send_descriptor(&link.socket, bytes, fd),
                Some(Front::File { file, queue, position, bytes }) => {
                    let sent = send_file(&link.socket, &**file, position, bytes);
                    unreadable = file_error(&sent).map(|why| (queue, why));
                    sent
                }
            };
            match sent {
                Ok(0) => {
                    broken = true;
                    break;
                }
                Ok(n) => outbox.advance(n as u64),
                Err(error) if error.kind() == ErrorKind::WouldBlock => link.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        let finished = outbox.is_empty() && self.engine.is_ending(connection);
        if let Some((queue, why)) = unreadable {
            self.report.error(&format!("a segment cannot be read: {why}"));
            self.engine.unreadable(queue, &why);
            // It waits for the rest of a frame, which will not come: it hears why when it comes back.
            return self.hang_up(connection);
        }
        if broken && self.phase == Phase::Serving && !self.engine.is_ending(connection) {
            return self.hear_out(connection);
        }
        if broken || finished {
            self.hang_up(connection);
            return;
        }
        self.engine.sent(connection);
        self.go_on_reading(connection);
    }
}

/// Why a range of a file could not be sent, if it was the file's fault and not the socket's.
fn file_error(sent: &io::Result<usize>) -> Option<String> {
    match sent {
        Ok(0) => Some("the file is shorter than it was".to_owned()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            Some(error.to_string())
        }
        _ => None,
    }
}

fn send_bytes(socket: &UnixStream, bytes: &[u8], more: bool) -> io::Result<usize> {
    use rustix::net::SendFlags;
    let flags = SendFlags::NOSIGNAL | if more { SendFlags::MORE } else { SendFlags::empty() };
    Ok(rustix::net::send(socket.as_fd(), bytes, flags)?)
}

fn send_descriptor(socket: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "room for one descriptor");
    let parts = [IoSlice::new(bytes)];
    Ok(sendmsg(socket.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL)?)
}

fn send_file<F: StorageFile>(
    socket: &UnixStream,
    file: &F,
    position: u64,
    bytes: u64,
) -> io::Result<usize> {
    let Some(descriptor) = file.descriptor() else {
        return Err(ErrorKind::Unsupported.into());
    };
    let mut position = position;
    let count = usize::try_from(bytes).unwrap_or(usize::MAX);
    Ok(rustix::fs::sendfile(socket.as_fd(), descriptor, Some(&mut position), count)?)
}
