//! The server's own socket in the store: bound at the start, bound again when someone deletes
//! it, removed at the end. A socket that a supervisor passed is not one of these.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::fs::inotify;

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
        inotify::add_watch(&watch, store.path(), gone)?;
        let socket = OwnSocket { store, watch };
        let listener = socket.listen()?;
        Ok((socket, listener))
    }

    fn listen(&self) -> io::Result<UnixListener> {
        match std::fs::remove_file(self.store.join("sock")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        UnixListener::bind(self.store.socket_address())
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
        match std::fs::symlink_metadata(self.store.join("sock")) {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The whole store may have been deleted: then there is nothing to listen for.
                if self.store.join("queues").exists() { self.listen().map(Some) } else { Ok(None) }
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the directory of the queues was deleted, or moved out of the store.
    #[must_use]
    pub fn is_store_gone(&self) -> bool {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let found = rustix::fs::statat(self.store.dir(), "queues", flags);
        found.err() == Some(rustix::io::Errno::NOENT)
    }

    /// Removes the socket: the server ends. Left behind, it would be cleared by the next start.
    pub fn remove(self) {
        let _ = std::fs::remove_file(self.store.join("sock"));
    }
}
