//! The way to the engine: a connection is made anew, with back-off, for as long as the client's `-w` says.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::remote::address::Address;
use crate::remote::engine::Engine;
use crate::remote::failure::Failure;

/// The first and the longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// An engine has at least so long for a connection, however short the patience is.
const CONNECT_LEAST: Duration = Duration::from_secs(1);

/// It has at most so long: then a new try may find another host.
const CONNECT_MOST: Duration = Duration::from_secs(10);

/// What lasted for so long went well, though nothing may have come by it.
const LASTING: Duration = Duration::from_secs(1);

/// Since when nothing goes well.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    since: Instant,
    tries: u32,
    is_told: bool,
}

/// See the module's page.
#[derive(Debug)]
pub struct Link<E> {
    address: Address,
    /// How long it is tried; `None`: for ever.
    patience: Option<Duration>,
    is_quiet: bool,
    engine: Option<E>,
    trouble: Option<Trouble>,
}

impl<E: Engine> Link<E> {
    /// To the engine at this address. Nothing is connected to yet.
    #[must_use]
    pub fn new(address: Address, patience: Option<Duration>, is_quiet: bool) -> Link<E> {
        Link { address, patience, is_quiet, engine: None, trouble: None }
    }

    /// Where it leads.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Does a thing at the engine, which is connected to if need be; does it again when what failed
    /// may go well on a new connection.
    ///
    /// # Errors
    /// What does not pass, or did not within the patience.
    pub async fn attempt<T>(
        &mut self,
        mut act: impl AsyncFnMut(&E) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        loop {
            let attempted = match self.engine().await {
                Ok(engine) => act(engine).await,
                Err(failure) => Err(failure),
            };
            match attempted {
                Ok(done) => return Ok(done),
                Err(failure) => self.failed(failure).await?,
            }
        }
    }

    async fn engine(&mut self) -> Result<&E, Failure> {
        if self.engine.is_none() {
            let left = self.left().unwrap_or(CONNECT_MOST);
            let patience = left.clamp(CONNECT_LEAST, CONNECT_MOST);
            self.engine = Some(E::connect(&self.address, patience).await?);
        }
        Ok(self.engine.as_ref().expect("just made"))
    }

    /// How long is left of the patience.
    fn left(&self) -> Option<Duration> {
        let spent = self.trouble.map_or(Duration::ZERO, |trouble| trouble.since.elapsed());
        self.patience.map(|patience| patience.saturating_sub(spent))
    }

    /// Something failed: the connection is given up, and comes back after a pause if it may help.
    ///
    /// # Errors
    /// The failure, when there is nothing to be hoped for.
    pub async fn failed(&mut self, failure: Failure) -> Result<(), Failure> {
        if !failure.passes() {
            return Err(failure);
        }
        self.engine = None;
        let first = Trouble { since: Instant::now(), tries: 0, is_told: false };
        let trouble = self.trouble.get_or_insert(first);
        trouble.tries += 1;
        let tries = trouble.tries;
        let was_told = std::mem::replace(&mut trouble.is_told, true);
        let left = self.left();
        if left.is_some_and(|left| left.is_zero()) {
            return Err(failure);
        }
        if !was_told && !self.is_quiet {
            say(&format!("{failure}; trying again"));
        }
        let pause = (PAUSES.0 * 2u32.saturating_pow(tries.min(8))).min(PAUSES.1);
        tokio::time::sleep(pause.min(left.unwrap_or(pause))).await;
        Ok(())
    }

    /// Something went well: the patience begins anew with the next trouble.
    pub fn went_well(&mut self) {
        self.trouble = None;
    }

    /// What ends now was there since then: an outage is not the continuation of one long before it. A trouble
    /// that began meanwhile, with something else, goes on.
    pub fn lasted(&mut self, since: Instant) {
        let is_before = self.trouble.is_some_and(|trouble| trouble.since < since);
        if is_before && since.elapsed() >= LASTING {
            self.went_well();
        }
    }

    /// Says something to the user, unless nothing is wanted to be said.
    pub fn tell(&self, text: &str) {
        if !self.is_quiet {
            say(text);
        }
    }
}

/// Runs two things at once, until the first is done or the second says that nobody waits for it.
///
/// # Errors
/// What the second comes back with.
pub async fn unless<T, B>(
    work: impl Future<Output = T>,
    end: impl Future<Output = B>,
) -> Result<T, B> {
    tokio::select! {
        done = work => Ok(done),
        broken = end => Err(broken),
    }
}

fn say(text: &str) {
    use std::io::Write;
    // A stderr that is closed changes nothing.
    let _ = std::io::stderr().write_all(format!("mq-remote: {text}\n").as_bytes());
}
