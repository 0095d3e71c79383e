//! The server's own socket in the store: bound at the start, bound again when someone deletes
//! it, removed at the end. A socket that a supervisor passed is not one of these.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::fs::{AtFlags, inotify};
use rustix::io::Errno;

use crate::store::StoreDir;

/// See the module's page.
#[derive(Debug)]
pub struct OwnSocket {
    store: StoreDir,
    /// Becomes readable when something in the store's directory is deleted or renamed.
    watch: OwnedFd,
}

impl OwnSocket {
    /// Clears what a dead server left and listens. The store must be locked.
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(store: StoreDir) -> io::Result<(OwnSocket, UnixListener)> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let gone = inotify::WatchFlags::DELETE | inotify::WatchFlags::MOVED_FROM;
        // From here on it is watched wherever it is.
        inotify::add_watch(&watch, store.path(), gone)?;
        let socket = OwnSocket { store, watch };
        let listener = socket.listen()?;
        Ok((socket, listener))
    }

    fn listen(&self) -> io::Result<UnixListener> {
        match self.unlink() {
            Err(Errno::NOENT) | Ok(()) => {}
            Err(errno) => return Err(errno.into()),
        }
        // The name of a socket is what the system's lists show of it.
        let address = match self.store.is_at_its_path() {
            true => self.store.socket_address(),
            false => self.store.own_path().join("sock"),
        };
        UnixListener::bind(address)
    }

    /// By way of the open directory: at the store's path there may be another one by now.
    fn unlink(&self) -> rustix::io::Result<()> {
        rustix::fs::unlinkat(self.store.dir(), "sock", AtFlags::empty())
    }

    fn has(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::statat(self.store.dir(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What to poll for reading before [`OwnSocket::restore`].
    #[must_use]
    pub fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Listens anew when the socket has been deleted.
    ///
    /// # Errors
    /// What the system says; the old listener is of no use any more, its clients go on.
    pub fn restore(&self) -> io::Result<Option<UnixListener>> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        // Only that something happened counts: what stands in the directory is looked at.
        while events.next().is_ok() {}
        // The whole store may have been deleted: then there is nothing to listen for.
        if self.has("sock")? || !self.has("queues")? {
            return Ok(None);
        }
        self.listen().map(Some)
    }

    /// Whether the directory of the queues was deleted, or moved out of the store.
    #[must_use]
    pub fn is_store_gone(&self) -> bool {
        matches!(self.has("queues"), Ok(false))
    }

    /// Removes the socket: the server ends. Left behind, it would be cleared by the next start.
    pub fn remove(self) {
        let _ = self.unlink();
    }
}
