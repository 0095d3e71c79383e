//! The stand: a store at whose socket sessions with the engine in memory answer.

use std::time::Duration;

use mq::remote::session::{self, Opening};
use mq::store::StoreDir;
use mq::url::Url;

use crate::harness::Store;
use crate::memory::{Broker, Memory};

/// A store and the broker behind it.
pub struct Stand {
    pub store: Store,
    pub broker: Broker,
}

impl Stand {
    /// For the test of this name.
    pub fn new(test: &str) -> Stand {
        Stand::with(test, "", Duration::from_secs(30))
    }

    /// With options in the URL, and what `-w` would be.
    pub fn with(test: &str, options: &str, wait: Duration) -> Stand {
        let store = Store::new();
        let dir = StoreDir::open(store.path(), true).expect("a store");
        let listener = std::os::unix::net::UnixListener::bind(dir.socket_address()).expect("bound");
        let url = Url::new(&format!("mem://{test}/q{options}")).expect("a URL");
        std::thread::spawn(move || {
            // Ends with the process.
            for stream in listener.incoming() {
                let (stream, url) = (stream.expect("a client"), url.clone());
                std::thread::spawn(move || {
                    serve(stream, Opening { url, wait: Some(wait), is_quiet: true })
                });
            }
        });
        Stand { store, broker: Broker::named(test) }
    }
}

/// Serves one client to its end.
pub fn serve(stream: std::os::unix::net::UnixStream, opening: Opening) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let served = runtime.block_on(async {
        stream.set_nonblocking(true).expect("non-blocking");
        let stream = tokio::net::UnixStream::from_std(stream).expect("a socket");
        session::serve::<Memory>(stream, opening).await
    });
    assert_eq!(served, Ok(()), "the session and the client do not understand each other");
}
