//! Administrative calls: a request, its answer; and the orderly stop of a server of any version.
//!
//! Nothing here starts a server. `mq-admin` uses it.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::connection::{Connection, PAUSES, unexpected};
use super::wait::Patience;
use super::{ClientError, Filled};
use crate::store::{StoreDir, StoreError};
use crate::units::Name;
use crate::wire::{Admin, Kind, QueueInfo, Reply, Request, StoreInfo, WireError};

/// The channel of a call: one is under way at a time.
const CHANNEL: u16 = 1;

/// Asks, and waits for the answer.
///
/// # Errors
/// [`ClientError::Refused`] with the server's words; [`ClientError::Silent`] when the patience is
/// over; [`ClientError::Lost`].
pub fn call<T: DeserializeOwned>(
    connection: &mut Connection,
    request: Admin,
    patience: Patience<'_>,
) -> Result<T, ClientError> {
    connection.push(CHANNEL, &Request::Admin(request));
    connection.answer(patience, |_, reply| match reply {
        Reply::Reply(json) => serde_json::from_slice(json)
            .map(Some)
            .map_err(|source| WireError::Json { kind: Kind::Reply, source }.into()),
        Reply::Goodbye(_) => Err(ClientError::Lost),
        other => Err(unexpected(&other)),
    })
}

/// All queues of the store, by name.
///
/// # Errors
/// See [`call`].
pub fn list(
    connection: &mut Connection,
    patience: Patience<'_>,
) -> Result<Vec<QueueInfo>, ClientError> {
    let mut queues: Vec<QueueInfo> = Vec::new();
    loop {
        let after: Option<Name> = queues.last().map(|info| info.queue.clone());
        let page: StoreInfo = call(connection, Admin::List { after }, patience)?;
        let more = page.more && !page.queues.is_empty();
        queues.extend(page.queues);
        if !more {
            return Ok(queues);
        }
    }
}

/// What an attempt to stop a server came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It has ended.
    Ended,
    /// There was none.
    NoServer,
    /// This process holds the store and does not listen on its socket.
    Deaf(Option<u32>),
    /// It has not ended within the patience.
    Still(Option<u32>),
}

/// Stops the server of the store at `store` in an orderly way, and waits until it has ended.
/// Needs no handshake, so it stops one of any version.
///
/// # Errors
/// [`ClientError::Store`], [`ClientError::Io`], [`ClientError::Interrupted`].
pub fn stop(store: &std::path::Path, patience: Patience<'_>) -> Result<Stopped, ClientError> {
    let store = match StoreDir::open(store, false) {
        Ok(store) => store,
        Err(StoreError::Missing { .. }) => return Ok(Stopped::NoServer),
        Err(error) => return Err(error.into()),
    };
    let mut connection = match reach(&store, patience)? {
        Some(connection) => connection,
        None if store.has_server()? => return Ok(Stopped::Deaf(store.server_pid())),
        None => return Ok(Stopped::NoServer),
    };
    connection.push(0, &Request::Stop);
    if !drain(&mut connection, patience)? || !wait_for_lock(&store, patience)? {
        return Ok(Stopped::Still(store.server_pid()));
    }
    Ok(Stopped::Ended)
}

/// Connects; `None` when nobody listens.
fn reach(store: &StoreDir, patience: Patience<'_>) -> Result<Option<Connection>, ClientError> {
    use std::io::ErrorKind;
    loop {
        match Connection::connect(store) {
            Ok(connection) => return Ok(Some(connection)),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && !patience.is_over() => {
                patience.sleep(PAUSES.1)?;
            }
            Err(error) => return Err(ClientError::io("connect to the server's socket")(error)),
        }
    }
}

/// Writes what is pushed and reads until the server hangs up; false when the patience is over.
fn drain(connection: &mut Connection, patience: Patience<'_>) -> Result<bool, ClientError> {
    use rustix::event::PollFlags;
    use std::os::fd::AsFd;
    loop {
        let flushed = connection.flush().map_err(ClientError::io("write to the server"))?;
        match connection.fill().map_err(ClientError::io("read from the server"))? {
            Filled::Closed => return Ok(true),
            // Whatever it says: an older server may say something that is not known any more.
            Filled::Data(_) => connection.discard(),
            Filled::WouldBlock => {
                let out = if flushed { PollFlags::empty() } else { PollFlags::OUT };
                if patience.wait_for(connection.as_fd(), PollFlags::IN | out)?.is_empty() {
                    return Ok(false);
                }
            }
        }
    }
}

fn wait_for_lock(store: &StoreDir, patience: Patience<'_>) -> Result<bool, ClientError> {
    let mut pause = PAUSES.0;
    while store.has_server()? {
        if patience.is_over() {
            return Ok(false);
        }
        patience.sleep(pause)?;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(true)
}
