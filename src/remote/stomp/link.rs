//! A connection that speaks STOMP: made, kept alive by heart-beats, read and written frame by frame.
//!
//! One task writes, so that whoever sends waits only when the socket does, and heart-beats go out
//! whatever else is done. Reading is left to whoever waits for something.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::frame::{Encoder, Frame, decode};
use crate::remote::address::Host;
use crate::remote::failure::{Failure, Kind};
use crate::remote::place::{Place, look_up, of_io};
use crate::remote::tls::TlsFiles;

/// Both sides say something at least so often.
const BEAT: Duration = Duration::from_secs(10);
/// We do after a silence of so long: a broker may look at the end of each interval whether something came in
/// it, and what is a little late is on its way.
const QUIET: Duration = Duration::from_secs(5);
/// Nothing for so long: the connection is lost. Twice the interval and some, as the specification advises.
const SILENT: Duration = Duration::from_secs(25);
/// How many buffers may wait to be written.
const WAITING: usize = 16;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a connection needs beyond a host.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) vhost: Option<String>,
    /// With TLS, and these files.
    pub(super) tls: Option<TlsFiles>,
}

/// The side that is read.
pub(super) struct Frames {
    place: Place,
    stream: tokio::io::ReadHalf<Box<dyn Stream>>,
    buffer: BytesMut,
    _writer: Writer,
}

/// The side that is written.
#[derive(Clone)]
pub(super) struct Outlet {
    place: Place,
    sender: mpsc::Sender<Bytes>,
    written: Arc<AtomicU64>,
}

/// The task that writes; ends with whoever reads.
struct Writer(JoinHandle<()>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn write(
    mut stream: tokio::io::WriteHalf<Box<dyn Stream>>,
    mut waiting: mpsc::Receiver<Bytes>,
    count: Arc<AtomicU64>,
) {
    loop {
        let next = tokio::time::timeout(QUIET, waiting.recv()).await;
        let written = match next {
            Ok(Some(bytes)) => write_counting(&mut stream, bytes, &count).await,
            Ok(None) => return drop(stream.shutdown().await),
            Err(_) => stream.write_all(b"\n").await,
        };
        // What was lost is seen where it is read.
        if written.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// Writes all, and counts what the socket has taken of it.
async fn write_counting(
    stream: &mut tokio::io::WriteHalf<Box<dyn Stream>>,
    mut bytes: Bytes,
    count: &AtomicU64,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = stream.write_buf(&mut bytes).await?;
        count.fetch_add(written as u64, Ordering::Relaxed);
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

impl Outlet {
    /// How many bytes the socket has taken.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Writes; waits only when the socket is behind.
    pub(super) async fn send(&self, bytes: Bytes) -> Result<(), Failure> {
        let sent = self.sender.send(bytes).await;
        sent.map_err(|_| self.place.lost("it cannot be written to"))
    }
}

impl Frames {
    /// The next frame. Safe to be cancelled.
    pub(super) async fn next(&mut self) -> Result<Frame, Failure> {
        loop {
            if let Some(frame) = self.here()? {
                return Ok(frame);
            }
            self.buffer.reserve(64 * 1024);
            let read = tokio::time::timeout(SILENT, self.stream.read_buf(&mut self.buffer)).await;
            match read {
                Err(_) => return Err(self.place.lost(format!("nothing came for {SILENT:?}"))),
                Ok(Ok(0)) => return Err(self.place.lost("the broker closed it")),
                Ok(Ok(_)) => (),
                Ok(Err(error)) => return Err(self.place.lost(error)),
            }
        }
    }

    /// The next frame that is here; an ERROR is a failure.
    pub(super) fn here(&mut self) -> Result<Option<Frame>, Failure> {
        let frame =
            decode(&mut self.buffer).map_err(|error| self.place.other("talk STOMP", error))?;
        match frame {
            Some(frame) if frame.command == "ERROR" => Err(said(&self.place, &frame)),
            frame => Ok(frame),
        }
    }
}

/// What an ERROR says.
fn said(place: &Place, frame: &Frame) -> Failure {
    let message = frame.header("message").unwrap_or("an error without words");
    let text = message.to_ascii_lowercase();
    let kind = if text.contains("not authorized") || text.contains("password") {
        Kind::Denied
    } else if text.contains("full") || text.contains("resource") {
        Kind::Busy
    } else {
        Kind::Other
    };
    Failure::new(kind, format!("{place} says: {message}"))
}

/// Connects and logs in.
pub(super) async fn open(
    place: &Place,
    host: &Host,
    port: u16,
    login: &Login,
    wait: Duration,
) -> Result<(Frames, Outlet), Failure> {
    let opening = async {
        let stream = connect(place, host, port, login, wait).await?;
        log_in(place, stream, host, login).await
    };
    match tokio::time::timeout(wait, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(place.silent("connecting", wait)),
    }
}

async fn connect(
    place: &Place,
    host: &Host,
    port: u16,
    login: &Login,
    wait: Duration,
) -> Result<Box<dyn Stream>, Failure> {
    let found = look_up(place, host, port, wait).await?;
    let stream = TcpStream::connect(&found[..]).await;
    let stream = stream.map_err(|error| of_io(place, &error, false))?;
    // Frames are put together here; the kernel need not wait for more.
    let _ = stream.set_nodelay(true);
    let Some(files) = &login.tls else { return Ok(Box::new(stream)) };
    let config = files.client_config(place)?;
    let name = ServerName::try_from(host.name.clone()).map_err(|error| place.tls(error))?;
    let shaking = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    match shaking {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            Err(place.tls("it ended the connection during the handshake"))
        }
        Err(error) => Err(of_io(place, &error, true)),
    }
}

async fn log_in(
    place: &Place,
    stream: Box<dyn Stream>,
    host: &Host,
    login: &Login,
) -> Result<(Frames, Outlet), Failure> {
    let (read, write_half) = tokio::io::split(stream);
    let (sender, waiting) = mpsc::channel(WAITING);
    let written = Arc::default();
    let writer = Writer(tokio::spawn(write(write_half, waiting, Arc::clone(&written))));
    let outlet = Outlet { place: place.clone(), sender, written };
    let buffer = BytesMut::with_capacity(64 * 1024);
    let mut frames = Frames { place: place.clone(), stream: read, buffer, _writer: writer };
    let beat = BEAT.as_millis();
    let mut out = Encoder::default();
    out.begin("CONNECT")
        .plain_header("accept-version", "1.2")
        .plain_header("host", login.vhost.as_deref().unwrap_or(&host.name))
        .plain_header("heart-beat", &format!("{beat},{beat}"));
    for (name, value) in [("login", &login.user), ("passcode", &login.password)] {
        if let Some(value) = value {
            if value.contains(['\n', '\r']) {
                let why = "STOMP has user and password on one line";
                return Err(Failure::unsupported(why));
            }
            out.plain_header(name, value);
        }
    }
    out.end();
    outlet.send(out.take()).await?;
    match frames.next().await {
        Ok(frame) if frame.command == "CONNECTED" => Ok((frames, outlet)),
        Ok(frame) => Err(place.other("talk STOMP", format!("it answers with {}", frame.command))),
        Err(failure) if failure.kind == Kind::Denied => {
            Err(place.denied(login.user.as_deref(), "user or password is wrong, or is needed"))
        }
        Err(failure) => Err(failure),
    }
}
