//! What commands write to stderr: passed on to our own at once, with the end of it kept.
//!
//! Nothing here blocks: when nobody takes our stderr, the commands' is not read either, and their
//! pipes hold them up as our stderr itself would have done.
//!
//! A process that a command leaves behind may keep the command's stderr open. That holds up no
//! job; what it writes later is still passed on while the pool is there.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;

use super::child::Child;
use super::{EVENTS, Token};
use crate::limits;

/// Bytes that a pipe which is ready to be written to takes without blocking (PIPE_BUF).
const WRITE_BYTES: usize = 4096;

/// Events about the stderr of commands that are over have this bit.
const LINGERING: u64 = 1 << 63;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The end of what came, at most [`limits::STDERR_TAIL_BYTES`].
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        if self.0.len() > 2 * limits::STDERR_TAIL_BYTES {
            self.cut();
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn cut(&mut self) {
        let over = self.0.len().saturating_sub(limits::STDERR_TAIL_BYTES);
        self.0.drain(..over);
    }

    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        self.cut();
        self.0
    }
}

/// What is ready on a descriptor now.
pub(super) fn ready<F: AsFd>(fd: &F, interest: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(fd, interest)];
    match rustix::event::poll(&mut fds, Some(&AT_ONCE)) {
        Ok(_) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

/// How far a stderr was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// Up to what was there.
    Read,
    /// Up to its end: nobody holds it any more.
    Ended,
    /// Not so far: our own stderr takes nothing now.
    Blocked,
}

/// Our stderr, or what stands for it in a test.
#[derive(Debug)]
struct Sink {
    fd: OwnedFd,
    /// Its reader went away: commands' words are lost, which is no reason to stop.
    is_gone: bool,
}

impl Sink {
    fn has_room(&self) -> bool {
        // A descriptor in trouble is "ready" too: the write then tells.
        self.is_gone || !ready(&self.fd, PollFlags::OUT).is_empty()
    }

    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_gone {
            match rustix::io::write(&self.fd, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                // Others write to it as well, and one of them made it not block.
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
                    let _: Result<usize, Errno> = rustix::event::poll(&mut fds, None);
                }
                Err(_) => self.is_gone = true,
            }
        }
    }

    /// Passes on at most `bytes` of what is there; says how many.
    fn take(&mut self, from: &OwnedFd, mut bytes: usize, tail: &mut Tail) -> (Flow, usize) {
        let mut buffer = [0u8; WRITE_BYTES];
        let mut taken = 0;
        while bytes > 0 {
            if !self.has_room() {
                return (Flow::Blocked, taken);
            }
            match rustix::io::read(from, &mut buffer[..bytes.min(WRITE_BYTES)]) {
                Ok(0) => return (Flow::Ended, taken),
                Ok(read) => {
                    tail.push(&buffer[..read]);
                    self.write(&buffer[..read]);
                    taken += read;
                    bytes -= read;
                }
                Err(Errno::INTR) => {}
                Err(_) => return (Flow::Ended, taken),
            }
        }
        (Flow::Read, taken)
    }

    /// Passes on what is there, if anything.
    fn take_all(&mut self, from: &OwnedFd, tail: &mut Tail) -> Flow {
        match waiting(from) {
            Waiting::Bytes(bytes) => self.take(from, bytes, tail).0,
            Waiting::Nothing => Flow::Read,
            Waiting::End => Flow::Ended,
        }
    }
}

/// What waits in a stderr.
enum Waiting {
    Bytes(usize),
    Nothing,
    End,
}

fn waiting(from: &OwnedFd) -> Waiting {
    let flags = ready(from, PollFlags::IN);
    if flags.contains(PollFlags::IN) {
        let bytes = rustix::io::ioctl_fionread(from).unwrap_or(0);
        return Waiting::Bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    if flags.is_empty() { Waiting::Nothing } else { Waiting::End }
}

/// The stderr of all commands.
#[derive(Debug)]
pub(super) struct Reports {
    /// Watches them; itself watched by the pool unless our own stderr takes nothing.
    epoll: OwnedFd,
    sink: Sink,
    is_blocked: bool,
    /// Those of commands that are over, with a number each.
    lingering: VecDeque<(u64, OwnedFd)>,
    next_lingering: u64,
}

impl Reports {
    pub(super) fn new(sink: OwnedFd) -> Result<Reports, Errno> {
        Ok(Reports {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sink: Sink { fd: sink, is_gone: false },
            is_blocked: false,
            lingering: VecDeque::new(),
            next_lingering: LINGERING,
        })
    }

    /// How many are kept for processes that were left behind.
    #[cfg(test)]
    pub(super) fn lingering(&self) -> usize {
        self.lingering.len()
    }

    /// Puts all of them under the pool's watch.
    pub(super) fn watch(&self, pool: &OwnedFd) -> Result<(), Errno> {
        epoll::add(pool, &self.epoll, Token::Reports.encode(), epoll::EventFlags::IN)
    }

    pub(super) fn add(&self, slot: usize, report: &OwnedFd) -> Result<(), Errno> {
        let data = epoll::EventData::new_u64(slot as u64);
        epoll::add(&self.epoll, report, data, epoll::EventFlags::IN)
    }

    /// Passes on what has come.
    pub(super) fn pass_on(&mut self, pool: &OwnedFd, slots: &mut [Option<Child>]) {
        let mut events = Vec::with_capacity(EVENTS);
        let asked = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&AT_ONCE));
        if asked.is_err() {
            return;
        }
        for event in events {
            let key = event.data.u64();
            let flow = if key >= LINGERING {
                self.pass_on_lingering(key)
            } else {
                let child = slots.get_mut(key as usize).and_then(Option::as_mut);
                child.map_or(Flow::Read, |child| self.pass_on_child(child))
            };
            if flow == Flow::Blocked {
                self.block(pool);
                return;
            }
        }
    }

    fn pass_on_child(&mut self, child: &mut Child) -> Flow {
        let Some(report) = &child.report else { return Flow::Read };
        let flow = if child.has_exited() {
            let (flow, taken) = self.sink.take(report, child.rest, &mut child.tail);
            child.rest -= taken;
            flow
        } else {
            self.sink.take_all(report, &mut child.tail)
        };
        if flow == Flow::Ended {
            child.report = None;
            child.rest = 0;
        }
        flow
    }

    fn pass_on_lingering(&mut self, key: u64) -> Flow {
        let Some(index) = self.lingering.iter().position(|(number, _)| *number == key) else {
            return Flow::Read;
        };
        // Its command was told of long ago; nobody asks for the tail.
        let flow = self.sink.take_all(&self.lingering[index].1, &mut Tail::default());
        if flow == Flow::Ended {
            self.lingering.remove(index);
        }
        flow
    }

    /// Passes on what a command that has just exited left in its stderr. What others write to it
    /// from now on is not waited for.
    pub(super) fn pass_on_rest(&mut self, pool: &OwnedFd, child: &mut Child) {
        let Some(report) = &child.report else { return };
        match waiting(report) {
            Waiting::End => child.report = None,
            Waiting::Nothing => {}
            Waiting::Bytes(bytes) => {
                child.rest = bytes;
                if self.pass_on_child(child) == Flow::Blocked {
                    self.block(pool);
                }
            }
        }
    }

    /// Watches our own stderr for room instead of the commands'.
    fn block(&mut self, pool: &OwnedFd) {
        if self.is_blocked {
            return;
        }
        let writable = epoll::EventFlags::OUT;
        // What cannot be watched, a file, always has room.
        self.is_blocked = epoll::add(pool, &self.sink.fd, Token::Sink.encode(), writable).is_ok();
        if self.is_blocked {
            epoll::delete(pool, &self.epoll).expect("it is watched");
        }
    }

    /// Our own stderr has room again.
    pub(super) fn unblock(&mut self, pool: &OwnedFd) {
        if self.is_blocked {
            self.is_blocked = false;
            epoll::delete(pool, &self.sink.fd).expect("it is watched");
            self.watch(pool).expect("it was watched");
        }
    }

    /// Keeps a stderr whose command is over, if somebody else still holds it.
    pub(super) fn linger(&mut self, report: OwnedFd) {
        if matches!(waiting(&report), Waiting::End) {
            return;
        }
        let key = self.next_lingering;
        self.next_lingering += 1;
        let data = epoll::EventData::new_u64(key);
        if epoll::modify(&self.epoll, &report, data, epoll::EventFlags::IN).is_err() {
            return;
        }
        if self.lingering.len() == limits::LINGERING_REPORTS_MAX {
            self.lingering.pop_front();
        }
        self.lingering.push_back((key, report));
    }
}
