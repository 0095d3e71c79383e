//! The sender: input to queue, confirmed, once.
//!
//! One loop over the input, the socket, the signals and the copy of `--tee`. What one read returns
//! is cut and sent at once; the next read waits until the socket has taken it, so the pipe in
//! front fills and the next read returns more: batches form by themselves, and the same few
//! buffers stay in the core's cache. When the connection is lost, what is not confirmed is sent
//! again to the next server, in the same batches, under the same producer, so that it is stored
//! once.
//!
//! It never prints: the tool learns by way of [`Host`]. `mq-send` uses it.

mod report;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub use report::{Host, Notice, SendError};
use rustix::event::{PollFd, PollFlags};

use super::connection::{ANSWER_LEAST, Connection, Filled, PAUSES, unexpected};
use super::cut::Misfit;
use super::intake::Intake;
use super::rerun;
use super::source::Source;
use super::tee::Tee;
use super::wait::{self, Patience};
use super::window::{CHANNEL, Window};
use super::{ClientError, Dialer};
use crate::limits;
use crate::units::{Micros, Name, ProducerId, Sequence};
use crate::wire::{ErrorCode, Fault, OpenSend, Reply, Request, Resume, Sending};

/// What to send, and how.
#[derive(Debug)]
pub struct Order {
    /// The queue.
    pub queue: Name,
    /// How the input is taken in.
    pub intake: Intake,
    /// A message at hand, to be sent before the sources are read.
    pub text: Option<Vec<u8>>,
    /// The inputs, one after another.
    pub sources: Vec<Source>,
    /// How long to wait for a server, and for room, if the user said so.
    pub wait: Option<Micros>,
    /// Where to copy what is confirmed.
    pub tee: Option<Tee>,
    /// The name under which a rerun of the same input stores each message once. The intake then
    /// has a [`Rerun`](super::rerun::Rerun).
    pub producer: Option<String>,
    /// Whether a message is stored only if none of its key is pending.
    pub unless_pending: bool,
}

/// An end that only waits for the confirmation of what was sent.
#[derive(Debug)]
struct Ending {
    why: SendError,
    until: Option<Instant>,
}

/// A condition that is waited out as long as nothing gets better.
#[derive(Clone, Copy, Debug)]
struct Trying {
    since: Instant,
    /// The tries so far.
    count: u32,
    /// What was confirmed or stored then.
    at: Sequence,
}

/// There is no room: what was said of that, and since when nothing has become better.
#[derive(Debug)]
struct Held {
    fault: Fault,
    since: Instant,
}

/// See the module's page.
pub struct Sender<'a, H: Host> {
    dialer: Dialer,
    host: &'a mut H,
    queue: Name,
    producer: ProducerId,
    is_named: bool,
    unless_pending: bool,
    wait: Option<Micros>,
    /// A message at hand that can be taken once it is known what an earlier run has stored.
    text: Option<Vec<u8>>,
    sources: VecDeque<Source>,
    intake: Intake,
    looks_for_nul: bool,
    window: Window,
    tee: Option<Tee>,
    connection: Option<Connection>,
    /// What the last server said about the producer.
    opened: Option<Sending>,
    /// The server said goodbye because somebody wanted it stopped.
    orderly: bool,
    losing: Option<Trying>,
    full: Option<Trying>,
    held: Option<Held>,
    ending: Option<Ending>,
    bytes: u64,
    /// Messages that were there already, by connections that are lost, and by this one.
    there_before: u64,
    there: u64,
}

impl<'a, H: Host> Sender<'a, H> {
    /// Prepares to carry out `order` on the store of `dialer`.
    ///
    /// # Errors
    /// A text that cannot be taken.
    pub fn new(dialer: Dialer, order: Order, host: &'a mut H) -> Result<Self, SendError> {
        let mut window = Window::default();
        let mut intake = order.intake;
        let (is_named, mut text) = (order.producer.is_some(), order.text);
        if let (Some(text), false) = (&text, is_named) {
            intake.message(text, &mut window).map_err(bad_text)?;
        }
        Ok(Sender {
            dialer,
            host,
            queue: order.queue,
            producer: order.producer.map_or_else(random_producer, |n| rerun::producer_of(&n)),
            is_named,
            unless_pending: order.unless_pending,
            wait: order.wait,
            text: text.take().filter(|_| is_named),
            sources: order.sources.into(),
            looks_for_nul: intake.expects_text(),
            intake,
            window,
            tee: order.tee,
            connection: None,
            opened: None,
            orderly: false,
            losing: None,
            full: None,
            held: None,
            ending: None,
            bytes: 0,
            there_before: 0,
            there: 0,
        })
    }

    /// How many leading messages of the input are confirmed, by an earlier run or this one.
    #[must_use]
    pub fn confirmed(&self) -> u64 {
        // As long as it may be another input, nothing of this one is known to be stored.
        if self.intake.is_open() { 0 } else { self.window.confirmed().0 }
    }

    /// How many of the confirmed messages were not stored, because they were there already.
    #[must_use]
    pub fn there_already(&self) -> u64 {
        self.there_before + self.there
    }

    /// How many of the confirmed messages an earlier run has stored.
    #[must_use]
    pub fn skipped(&mut self) -> u64 {
        self.intake.rerun().map_or(0, |rerun| rerun.skipped())
    }

    /// How many bytes of the input are confirmed, delimiters included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sends everything and returns when everything is confirmed. The queue is made if it is not
    /// there, even if there is nothing to send.
    ///
    /// # Errors
    /// Why not everything is confirmed; [`Sender::confirmed`] says how much is.
    pub fn run(&mut self) -> Result<(), SendError> {
        loop {
            self.write()?;
            self.take_text()?;
            if self.is_done() {
                return self.finish();
            }
            self.turn()?;
        }
    }

    fn is_done(&self) -> bool {
        let read = self.sources.is_empty() && self.text.is_none();
        (read || self.ending.is_some())
            && self.opened.is_some()
            && self.window.is_empty()
            && self.tee.as_ref().is_none_or(Tee::is_empty)
    }

    fn finish(&mut self) -> Result<(), SendError> {
        if let Some(ending) = self.ending.take() {
            return Err(ending.why);
        }
        match self.tee.as_mut().and_then(Tee::take_error) {
            Some(error) => Err(SendError::Copy(error)),
            None => Ok(()),
        }
    }

    /// Reads no more; ends with `why` once what was cut is confirmed, or after a bounded time.
    fn end(&mut self, why: SendError) {
        self.intake.drop_unfinished();
        if self.intake.is_open() {
            self.window.truncate(self.window.confirmed());
        }
        let until = Instant::now().checked_add(limits::CONFIRM_PATIENCE.to_duration());
        self.ending.get_or_insert(Ending { why, until });
    }

    // ---- the connection ----

    /// How long to wait for a server; less when an end is near.
    fn patience(&self) -> Patience<'_> {
        patience(self.host, self.wait, self.ending.as_ref())
    }

    /// Tries to reach a server and to open the channel; there may be no connection afterwards.
    fn connect(&mut self) -> Result<(), SendError> {
        match self.try_connect() {
            // What came right behind the answer makes no socket readable any more.
            Ok(()) => self.heed(Filled::WouldBlock),
            Err(ClientError::Interrupted) => Err(self
                .host
                .take_signal()
                .map_or(ClientError::Interrupted.into(), SendError::Signal)),
            Err(error) if error.is_lost() => self.lost(),
            Err(ClientError::Refused(fault)) => self.refused(fault),
            Err(error @ ClientError::NoServer { .. }) if self.opened.is_some() => {
                Err(SendError::Away(error))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn try_connect(&mut self) -> Result<(), ClientError> {
        let patience = patience(self.host, self.wait, self.ending.as_ref());
        let resume = self.opened.as_ref().map(|opened| Resume {
            queue_id: opened.queue_id,
            opened: opened.opened,
            confirmed: self.window.confirmed(),
        });
        let open = OpenSend {
            resume,
            named: self.is_named,
            unless_pending: self.unless_pending,
            ..OpenSend::new(self.queue.clone(), self.producer)
        };
        self.dialer.open_with(CHANNEL, &Request::OpenSend(open));
        let mut connection = match &self.opened {
            None => self.dialer.dial(patience)?,
            Some(_) => self.dialer.redial(self.orderly, patience)?,
        };
        let mut orderly = false;
        let granted = connection.patience(patience.at_least(ANSWER_LEAST));
        let answer = connection.answer(granted, |_, reply| match reply {
            Reply::Sending(sending) => Ok(Some(sending)),
            Reply::Goodbye(goodbye) => {
                orderly = goodbye.orderly;
                Err(ClientError::Lost)
            }
            other => Err(unexpected(&other)),
        });
        self.orderly = orderly;
        let sending = answer?;
        self.there_before += std::mem::take(&mut self.there);
        if let (None, Some(rerun)) = (&self.opened, self.intake.rerun()) {
            rerun.expect(sending.last, sending.annex.as_deref()).map_err(nonsense)?;
            self.window.skip_to(sending.last);
        }
        self.window.resume(sending.last).map_err(nonsense)?;
        if let Some(Ending { why: SendError::Client(_), .. }) = &self.ending {
            // It refused the rest: only what it has is still to be confirmed.
            self.window.truncate(sending.last);
        }
        self.opened = Some(sending);
        self.connection = Some(connection);
        // A batch may have become two, of which the first was confirmed before.
        self.settle();
        Ok(())
    }

    /// The connection is lost. What is unconfirmed is sent again over a new one; with nothing to
    /// send, a new one is made only when there is something.
    fn lost(&mut self) -> Result<(), SendError> {
        self.connection = None;
        self.held = None;
        self.window.rewind();
        if self.dialer.is_to_engine() {
            // Nothing is tried again: the next connection is refused with how the helper has ended.
            return Ok(());
        }
        let tries = again(&mut self.losing, self.window.confirmed());
        if tries.count == 1 {
            self.host.notice(Notice::Lost { orderly: self.orderly });
        } else {
            // A server that ends again and again, before it confirms anything.
            let wait = self.wait.unwrap_or(limits::SERVER_WAIT).to_duration();
            if tries.since.elapsed() >= wait {
                return Err(SendError::Away(self.dialer.why_dying()));
            }
            self.pause(tries.count)?;
        }
        Ok(())
    }

    fn pause(&mut self, tries: u32) -> Result<(), SendError> {
        let pause = PAUSES.0 * 2u32.saturating_pow(tries.min(10));
        match self.patience().sleep(pause.min(Duration::from_secs(1))) {
            Err(ClientError::Interrupted) => Err(self
                .host
                .take_signal()
                .map_or(ClientError::Interrupted.into(), SendError::Signal)),
            other => Ok(other?),
        }
    }

    /// The server refused. A lack of room is waited out if the user said how long; otherwise what
    /// is stored is learnt by a new connection and confirmed, so that the count that the user is
    /// told is exact.
    fn refused(&mut self, fault: Fault) -> Result<(), SendError> {
        self.connection = None;
        self.window.rewind();
        if self.dialer.is_to_engine() {
            // The helper has waited for as long as it may, and confirmed all that is stored.
            return Err(ClientError::Refused(fault).into());
        }
        if let (ErrorCode::Elsewhere, Some(url)) = (fault.code, fault.url.clone()) {
            self.held = None;
            self.dialer.go_to(url);
            return Ok(());
        }
        let passing = matches!(fault.code, ErrorCode::Full | ErrorCode::Busy);
        if !passing || self.ending.is_some() {
            return Err(ClientError::Refused(fault).into());
        }
        let tries = again(&mut self.full, self.window.confirmed());
        if self.wait.is_some_and(|wait| tries.since.elapsed() < wait.to_duration()) {
            if tries.count == 1 {
                self.host.notice(Notice::Full(&fault));
            }
            return self.pause(tries.count + 4);
        }
        if self.opened.is_none() {
            return Err(ClientError::Refused(fault).into());
        }
        self.give_up(fault)
    }

    /// There is no room for the rest. What is stored is learnt by a new connection, but from a helper, which
    /// has said all that it knows and is not started twice.
    fn give_up(&mut self, fault: Fault) -> Result<(), SendError> {
        self.connection = None;
        if self.dialer.is_to_engine() {
            return Err(ClientError::Refused(fault).into());
        }
        self.held = None;
        self.window.rewind();
        self.end(ClientError::Refused(fault).into());
        self.connect()
    }

    /// What was sent last waits for room in the queue.
    fn hold(&mut self, fault: Fault) {
        if self.ending.is_some() {
            return;
        }
        if self.held.is_none() {
            self.host.notice(Notice::Full(&fault));
        }
        self.held = Some(Held { fault, since: Instant::now() });
    }

    /// When the user does not want to wait for room any longer.
    fn held_until(&self) -> Option<Instant> {
        self.held.as_ref()?.since.checked_add(self.wait?.to_duration())
    }

    // ---- the loop ----

    /// Hands the socket as much as it takes; makes a connection first if there is none.
    fn write(&mut self) -> Result<(), SendError> {
        // With nothing to send there is no need of a server, once the queue is made.
        while self.connection.is_none() && (self.opened.is_none() || !self.window.is_empty()) {
            self.connect()?;
            if self.connection.is_some() && self.losing.is_some() {
                self.host.notice(Notice::Back);
            }
        }
        let Some(connection) = &mut self.connection else { return Ok(()) };
        loop {
            let bytes = self.window.unwritten();
            if bytes.is_empty() || self.intake.is_open() {
                return Ok(());
            }
            let written =
                connection.write_through(bytes).map_err(ClientError::io("write to the server"))?;
            if written == 0 {
                return Ok(());
            }
            self.window.wrote(written);
        }
    }

    /// Waits until something can be done, and does it.
    fn turn(&mut self) -> Result<(), SendError> {
        let Some(ready) = self.wait()? else {
            return match self.held.take().filter(|_| self.ending.is_none()) {
                Some(held) => self.give_up(held.fault),
                // The bounded time is over, and not everything is confirmed.
                None => self.finish(),
            };
        };
        if ready.signal {
            self.take_signal()?;
        }
        if ready.input {
            self.read()?;
        }
        if let (true, Some(tee)) = (ready.copy, &mut self.tee) {
            tee.write(&mut self.window);
        }
        if ready.socket {
            self.hear()?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<Option<Ready>, SendError> {
        let mut fds: [Option<PollFd<'_>>; 4] = [const { None }; 4];
        let unwritten = !self.window.unwritten().is_empty() && !self.intake.is_open();
        if let Some(connection) = &self.connection {
            let out = if unwritten { PollFlags::OUT } else { PollFlags::empty() };
            fds[0] = Some(PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN | out));
        }
        if let Some(signals) = self.host.signals() {
            fds[1] = Some(PollFd::from_borrowed_fd(signals, PollFlags::IN));
        }
        let has_room = self.window.has_room() && self.tee.as_ref().is_none_or(Tee::has_room);
        if let (true, false, None, Some(source)) =
            (has_room, unwritten, &self.ending, self.sources.front())
        {
            fds[2] = Some(PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN));
        }
        if let Some(tee) = self.tee.as_ref().filter(|tee| !tee.is_empty()) {
            fds[3] = Some(PollFd::from_borrowed_fd(tee.as_fd(), PollFlags::OUT));
        }
        let until = match &self.ending {
            Some(ending) => ending.until,
            None => self.held_until(),
        };
        poll_some(&fds, until)
    }

    fn take_signal(&mut self) -> Result<(), SendError> {
        while let Some(signal) = self.host.take_signal() {
            let second = matches!(self.ending, Some(Ending { why: SendError::Signal(_), .. }));
            if second {
                return Err(SendError::Signal(signal));
            }
            // What ends it now is the signal, even if something else was about to.
            self.ending = None;
            self.end(SendError::Signal(signal));
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), SendError> {
        let Some(source) = self.sources.front() else { return Ok(()) };
        let space = self.intake.space();
        let read = match source.read(space) {
            Ok(None) => return Ok(()),
            Ok(Some(bytes)) => bytes,
            Err(error) => {
                let name = source.name().to_owned();
                self.end(SendError::Input { name, source: error });
                return Ok(());
            }
        };
        if self.looks_for_nul && memchr::memchr(0, &space[..read]).is_some() {
            self.looks_for_nul = false;
            self.host.notice(Notice::NulBytes);
        }
        let mut taken = self.intake.take(read, &mut self.window);
        if read == 0 && self.sources.len() == 1 {
            taken = taken.and_then(|()| self.intake.end());
        }
        if let Err(what) = taken {
            let name = source.name().to_owned();
            return self.misfit(SendError::BadInput { name, what });
        }
        if read == 0 {
            self.sources.pop_front();
        }
        Ok(())
    }

    /// Takes the message at hand, once it is known what an earlier run has stored.
    fn take_text(&mut self) -> Result<(), SendError> {
        if self.opened.is_none() {
            return Ok(());
        }
        let Some(text) = self.text.take() else { return Ok(()) };
        let taken = self.intake.message(&text, &mut self.window);
        match taken.and_then(|()| self.intake.end()) {
            Ok(()) => self.write(),
            Err(what) => self.misfit(bad_text(what)),
        }
    }

    fn misfit(&mut self, why: SendError) -> Result<(), SendError> {
        if let SendError::BadInput { what: Misfit::Rerun(_), .. } = why {
            // Nothing was sent that could be waited for.
            return Err(why);
        }
        self.end(why);
        Ok(())
    }

    /// Takes what the server says.
    fn hear(&mut self) -> Result<(), SendError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let filled = connection.fill().map_err(ClientError::io("read from the server"))?;
        self.heed(filled)
    }

    /// Heeds all that was read of what the server says; `filled`: what the last read found.
    fn heed(&mut self, filled: Filled) -> Result<(), SendError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let before = self.window.confirmed();
        let (mut fault, mut held) = (None, None);
        while let Some((header, body)) = connection.next_frame().map_err(ClientError::from)? {
            match Reply::decode(&header, body).map_err(ClientError::from)? {
                Reply::Confirm(sequence, _, there) => {
                    self.window.confirm(sequence).map_err(nonsense)?;
                    self.there = there.0;
                }
                Reply::Held(fault) => held = Some(fault),
                Reply::Goodbye(goodbye) => self.orderly = goodbye.orderly,
                Reply::Error(refusal) => {
                    fault = Some(refusal);
                    break;
                }
                other => return Err(unexpected(&other).into()),
            }
        }
        if self.window.confirmed() > before {
            self.settle();
        }
        if let Some(held) = held {
            self.hold(held);
        }
        match fault {
            Some(fault) if fault.code == ErrorCode::Stopping => self.lost(),
            Some(fault) => self.refused(fault),
            None if filled == Filled::Closed => self.lost(),
            None => Ok(()),
        }
    }

    /// Something more is confirmed: it is counted, copied, and its buffers are used again.
    fn settle(&mut self) {
        while let Some(piece) = self.window.take_confirmed() {
            self.bytes += piece.input_bytes();
            match &mut self.tee {
                Some(tee) => tee.push(piece, &mut self.window),
                None => self.window.recycle(piece),
            }
        }
        let confirmed = self.window.confirmed();
        self.losing = self.losing.filter(|trying| confirmed <= trying.at);
        self.full = self.full.filter(|trying| confirmed <= trying.at);
        if let Some(held) = &mut self.held {
            held.since = Instant::now();
        }
        if self.window.is_empty() {
            self.held = None;
        }
        self.host.confirmed(confirmed.0, self.bytes);
    }
}

fn patience<'h, H: Host>(
    host: &'h H,
    wait: Option<Micros>,
    ending: Option<&Ending>,
) -> Patience<'h> {
    let wait = wait.unwrap_or(limits::SERVER_WAIT).to_duration();
    let patience = Patience::lasting(wait, host.signals());
    match ending {
        Some(Ending { until: Some(until), .. }) => {
            patience.at_most(until.saturating_duration_since(Instant::now()))
        }
        _ => patience,
    }
}

/// What is ready after a wait.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    socket: bool,
    signal: bool,
    input: bool,
    copy: bool,
}

/// Polls those that are there; `None` when the time is over first.
fn poll_some(
    wanted: &[Option<PollFd<'_>>; 4],
    until: Option<Instant>,
) -> Result<Option<Ready>, SendError> {
    let mut fds: Vec<PollFd<'_>> = wanted.iter().flatten().cloned().collect();
    if wait::poll(&mut fds, until)? == 0 {
        return Ok(None);
    }
    let mut polled = fds.iter();
    let [socket, signal, input, copy] = [0, 1, 2, 3]
        .map(|n| wanted[n].is_some() && polled.next().is_some_and(|fd| !fd.revents().is_empty()));
    Ok(Some(Ready { socket, signal, input, copy }))
}

/// One more try of something that did not get better since the last.
fn again(trying: &mut Option<Trying>, at: Sequence) -> Trying {
    let trying = trying.get_or_insert(Trying { since: Instant::now(), count: 0, at });
    trying.count += 1;
    *trying
}

fn nonsense(what: &'static str) -> ClientError {
    ClientError::Unexpected(what.to_owned())
}

fn bad_text(what: Misfit) -> SendError {
    SendError::BadInput { name: "the text".to_owned(), what }
}

/// A producer that nobody else is.
#[must_use]
pub fn random_producer() -> ProducerId {
    let mut bytes = [0u8; 8];
    // Eight bytes come whole, and the pool is seeded before any user's program runs.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the system gives no random numbers");
    ProducerId(u64::from_le_bytes(bytes).max(1))
}
