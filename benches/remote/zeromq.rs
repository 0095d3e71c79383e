//! ZeroMQ, by the zeromq crate: PUSH to a PULL and the other way round. Nothing is kept, so the other side
//! is a thread of this process with a runtime of its own; a sample ends when it has all.

use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use zeromq::{PullSocket, PushSocket, Socket, SocketRecv as _, SocketSend as _, ZmqError};

use crate::beside::{Beside, Side};
use crate::servers::free_port;

pub struct ZeroMq;

fn endpoint(queue: &str) -> String {
    format!("tcp://127.0.0.1:{queue}")
}

/// Runs one side on a thread of its own, which says when it listens.
fn apart<F: Future<Output = ()>>(
    work: impl FnOnce(std::sync::mpsc::Sender<()>) -> F + Send + 'static,
) -> JoinHandle<()> {
    let (sender, ready) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(work(sender));
    });
    ready.recv().expect("it listens");
    thread
}

async fn push_all(socket: &mut PushSocket, messages: &[Bytes]) {
    for message in messages {
        let mut message = message.clone().into();
        loop {
            match socket.send(message).await {
                Ok(()) => break,
                Err(ZmqError::ReturnToSender { message: back, .. }) => message = back,
                Err(error) => panic!("{error}"),
            }
            // Nobody has come yet.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(30);

async fn pull_all(socket: &mut PullSocket, count: u64) {
    let mut got = 0;
    while got < count {
        // Without this the crate goes round for ever once tokio holds back the socket of a task that has
        // read much in one turn.
        let next = tokio::task::unconstrained(socket.recv());
        match tokio::time::timeout(PATIENCE, next).await {
            Ok(Ok(_)) => got += 1,
            // Whoever only looks whether somebody listens ends in an error.
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(_) => panic!("{got} of {count} messages came, and then none for {PATIENCE:?}"),
        }
    }
}

impl Beside for ZeroMq {
    const ENGINE: &'static str = "ZeroMQ";
    const CLIENT: &'static str = "zeromq";

    fn start() -> Result<ZeroMq, String> {
        Ok(ZeroMq)
    }

    async fn new_queue(&self, _: u64) -> String {
        free_port().to_string()
    }

    fn url(&self, queue: &str) -> String {
        format!("zmq+tcp://127.0.0.1:{queue}")
    }

    async fn send(&self, queue: &str, messages: &[Bytes]) {
        let mut socket = PushSocket::new();
        socket.connect(&endpoint(queue)).await.expect("connected");
        push_all(&mut socket, messages).await;
        socket.close().await;
    }

    async fn receive(&self, queue: &str, count: u64) {
        let mut socket = PullSocket::new();
        socket.connect(&endpoint(queue)).await.expect("connected");
        pull_all(&mut socket, count).await;
        socket.close().await;
    }

    fn opposite(&self, side: Side, queue: &str, messages: &[Bytes]) -> Option<JoinHandle<()>> {
        let (at, messages) = (endpoint(queue), messages.to_vec());
        Some(match side {
            Side::Send => apart(move |ready| async move {
                let mut socket = PullSocket::new();
                socket.bind(&at).await.expect("bound");
                ready.send(()).expect("it is waited for");
                pull_all(&mut socket, messages.len() as u64).await;
                socket.close().await;
            }),
            Side::Receive => apart(move |ready| async move {
                let mut socket = PushSocket::new();
                socket.bind(&at).await.expect("bound");
                ready.send(()).expect("it is waited for");
                push_all(&mut socket, &messages).await;
                socket.close().await;
            }),
        })
    }
}
