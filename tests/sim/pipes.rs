//! Simulated pipes: what mq-pipe says on the wire, with the production code for what is pure in it:
//! its marks, the trial of a batch, and windows with their checkpoints.
//!
//! As the tool does, a session forgets everything when one of its connections is lost, and the
//! next one goes on from the annex of the destination's last commit. At the end the destination
//! and the state must be what one undisturbed run gives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use mq::batch::{Framing, flags, push_annex};
use mq::pipe::mark::{Mark, WindowMark};
use mq::pipe::state::{Claim, Files, StateDir, StateError, StateMark};
use mq::pipe::trial::{Ran, Rules, Step, Trial};
use mq::pipe::window::{Closed, Fate, Windows};
use mq::server::engine::ConnectionId;
use mq::settings::{Backoff, Start};
use mq::units::{
    Count, Epoch, Micros, Name, Offset, OffsetRange, ProducerId, QueueId, Sequence, WallTime,
};
use mq::wire::{
    Admin, ClockInfo, CommitHead, DeliverHead, ErrorCode, Fault, Nack, OpenReceive, OpenSend,
    ReceiveMode, Reply, Request,
};

use crate::filter::{self, Manner, State, key_of, key_of_window, part_of};
use crate::model::Message;
use crate::rng::{Chance, Random};
use crate::state_files::{STATE_DIR, SimFiles};
use crate::wire::{CHANNEL, Frames, headers_of, hello, messages_of, ranges, take_frames};
use crate::world::{trace, trace_fault};

/// Questions for the time.
const CLOCK_CHANNEL: u16 = 3;

/// What a session knows.
#[derive(Debug)]
struct Session {
    /// The last sequence of ours.
    last: u64,
    mark: Mark,
    /// What lies below was committed before it began.
    floor: Offset,
    windows: Option<Windows>,
    /// Where filters keep what they know.
    state: Option<StateDir<SimFiles>>,
    source_id: Option<QueueId>,
    /// Read and not worked on.
    input: VecDeque<(Offset, Message)>,
    /// The batch that is worked on.
    trial: Option<(Trial, Vec<(Offset, Message)>)>,
    /// What was said in the run that was told of last.
    ran: Option<Vec<String>>,
    /// Delivered and not settled.
    held: BTreeSet<Offset>,
    /// Behind all that was delivered.
    seen: Offset,
    /// Commits that are not confirmed.
    waiting: VecDeque<Waiting>,
    /// Frames of a commit that have yet to be said.
    saying: VecDeque<Frames>,
    /// The server was asked for the time.
    asked: bool,
    /// Above this offset nothing may be older: what it said when nothing waited.
    time_floor: Option<(Offset, WallTime)>,
}

/// A commit that is not confirmed.
#[derive(Debug)]
struct Waiting {
    sequence: u64,
    /// It settles what lies below.
    floor: Offset,
    state: Option<StateMark>,
}

/// One mq-pipe.
#[derive(Debug)]
pub struct Pipe {
    pub source: Name,
    pub destination: Name,
    pub manner: Manner,
    /// To the destination, and to the source.
    pub connections: Option<[ConnectionId; 2]>,
    pub inbound: [Vec<u8>; 2],
    /// The server refused it for now: it begins another session.
    pub refused: bool,
    /// Nothing more will come: open windows are closed.
    pub flush: bool,
    producer: ProducerId,
    session: Option<Session>,
    files: SimFiles,
    /// What filters have ever written, where: no two of them work in one place.
    written: BTreeMap<PathBuf, State>,
    /// All that was ever read, where.
    pub read: BTreeMap<Offset, Message>,
    /// Commits that were confirmed, in all sessions.
    pub confirmed: usize,
    pub in_parts: usize,
    pub buried: usize,
    pub windows_closed: usize,
    pub reread: usize,
    /// Times that the server said what time it is, and that nothing waits.
    pub times_told: usize,
    /// Times that the disk under its state ended it.
    pub stopped: usize,
    /// Something on the disk has changed by itself.
    pub may_be_damaged: bool,
}

impl Pipe {
    pub fn new(source: Name, destination: Name, files: SimFiles, rng: &mut Random) -> Pipe {
        Pipe {
            source,
            destination,
            manner: Manner::any(rng),
            connections: None,
            inbound: [Vec::new(), Vec::new()],
            refused: false,
            flush: false,
            producer: ProducerId(rng.next() | 1),
            session: None,
            files,
            written: BTreeMap::new(),
            read: BTreeMap::new(),
            confirmed: 0,
            in_parts: 0,
            buried: 0,
            windows_closed: 0,
            reread: 0,
            times_told: 0,
            stopped: 0,
            may_be_damaged: false,
        }
    }

    /// Begins a session: the destination is opened; the source when that has answered.
    pub fn connect(&mut self, connections: [ConnectionId; 2]) -> [Frames; 2] {
        self.connections = Some(connections);
        (self.refused, self.flush) = (false, false);
        self.inbound = [Vec::new(), Vec::new()];
        self.session = None;
        let mut frames = [Frames::new(), Frames::new()];
        frames.iter_mut().for_each(hello);
        let open =
            OpenSend { named: true, ..OpenSend::new(self.destination.clone(), self.producer) };
        Request::OpenSend(open).encode(CHANNEL, &mut frames[0]);
        frames
    }

    pub fn lost(&mut self) {
        self.connections = None;
    }

    /// Whether all that it has read is in the destination; open windows may hold some back.
    pub fn is_done(&self) -> bool {
        self.connections.is_some()
            && self.session.as_ref().is_some_and(|session| {
                session.waiting.is_empty()
                    && session.saying.is_empty()
                    && session.input.is_empty()
                    && session.trial.is_none()
            })
    }

    /// Messages that the source has not let go of, as the pipe knows.
    pub fn held(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.held.len() as u64)
    }

    /// The source is at its end, and so many messages of it are not settled: if those have all
    /// come, open windows are closed.
    pub fn flush_if_all(&mut self, unsettled: u64) {
        self.flush = self.manner.windows.is_some() && self.held() == unsettled;
    }

    /// The state that the last commit named, and what that commit counted.
    pub fn committed(&self) -> (State, Mark) {
        let mark = self.session.as_ref().expect("a session").mark.clone();
        (self.state_of(&mark), mark)
    }

    /// What is on the disk of the state that a commit names: what its filters wrote.
    fn state_of(&self, mark: &Mark) -> State {
        let mut all = State::new();
        let parts = mark.state.iter().flat_map(|state| state.parts.iter().enumerate());
        for (part, name) in parts.filter_map(|(part, name)| Some((part, (*name)?))) {
            let path = file_in(&Path::new(STATE_DIR).join(format!("{part}.{name}")));
            let there = filter::read_state(&self.files.0.contents(&path));
            assert_eq!(there, self.written[&path], "G14: the state that a commit names, {path:?}");
            all.extend(there);
        }
        all
    }

    /// The system, or the disk, was in its way: the tool ends; somebody starts it again.
    fn stopped_by(&mut self, error: &StateError) {
        trace(|| format!("pipe: stopped: {error}"));
        let is_system = matches!(error, StateError::Io { .. });
        assert!(is_system || self.may_be_damaged, "G14: a proper pipe is refused: {error}");
        self.refused = true;
        self.stopped += 1;
    }

    /// What it says after it has heard what came: to the destination, and to the source.
    pub fn step(&mut self, rng: &mut Random, hurries: bool) -> [Frames; 2] {
        let mut out = [Frames::new(), Frames::new()];
        self.hear_destination(&mut out[1]);
        self.hear_source(&mut out[1]);
        if self.refused {
            return out;
        }
        if rng.chance(10) {
            self.ask_for_time(&mut out[1]);
        }
        let has_room =
            self.session.as_ref().is_some_and(|s| s.saying.is_empty() && s.waiting.len() < 3);
        if has_room {
            match self.manner.windows {
                Some(_) => {
                    if let Err(error) = self.work_on_windows(rng, hurries) {
                        self.stopped_by(&error);
                    }
                }
                None => self.work_on_batch(rng, hurries, &mut out[1]),
            }
        }
        // A commit of several frames may take many steps.
        let Some(session) = &mut self.session else { return out };
        while let Some(frame) = session.saying.pop_front() {
            out[0].extend(frame);
            if !hurries && rng.chance(40) {
                break;
            }
        }
        out
    }

    fn hear_destination(&mut self, to_source: &mut Frames) {
        for (header, body) in take_frames(&mut self.inbound[0]) {
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Sending(sending) => {
                    let mark = sending.annex.map_or_else(
                        || Mark::new("p", self.source.as_str()),
                        |annex| Mark::decode(&annex).expect("a mark of ours"),
                    );
                    trace(|| format!("pipe: SENDING {} {mark:?}", sending.last));
                    let whose = (sending.queue_id, sending.epoch);
                    if let Err(error) = self.begin(sending.last.0, whose, mark) {
                        return self.stopped_by(&error);
                    }
                    let group = group();
                    let open = OpenReceive {
                        from: Some(Start::Oldest),
                        exclusive: true,
                        durable: true,
                        tries: true,
                        ..OpenReceive::new(self.source.clone(), group, ReceiveMode::Take)
                    };
                    Request::OpenReceive(open).encode(CHANNEL, to_source);
                    Request::Credit(u64::MAX >> 1).encode(CHANNEL, to_source);
                }
                Reply::Confirm(sequence, _, Count(there)) => {
                    assert_eq!(there, 0, "a commit is never there already");
                    self.committed_up_to(sequence.0, to_source);
                }
                Reply::Error(fault) => self.is_refused(&fault),
                _ => {}
            }
        }
    }

    fn begin(
        &mut self,
        last: u64,
        (destination, epoch): (QueueId, Epoch),
        mark: Mark,
    ) -> Result<(), StateError> {
        let windows = self.manner.windows.map(|spec| match &mark.window {
            None => Windows::new(&spec, mark.next),
            Some(known) => {
                assert!(known.at.is_sound(), "G14: windows of a commit are not sound");
                Windows::resume(&spec, known.at.clone())
            }
        });
        let mut state = None;
        if self.manner.state {
            let parts = self.manner.parts as usize;
            let mark = mark.state.as_ref();
            let claim = Claim { pipe: "p", destination, parts, epoch, mark, is_reset: false };
            state =
                Some(StateDir::open_on(self.files.clone(), Path::new(STATE_DIR), &claim, None)?);
        }
        self.state_of(&mark);
        self.session = Some(Session {
            last,
            floor: mark.floor,
            mark,
            windows,
            state,
            source_id: None,
            input: VecDeque::new(),
            trial: None,
            ran: None,
            held: BTreeSet::new(),
            seen: Offset(0),
            waiting: VecDeque::new(),
            saying: VecDeque::new(),
            asked: false,
            time_floor: None,
        });
        Ok(())
    }

    fn committed_up_to(&mut self, sequence: u64, to_source: &mut Frames) {
        let session = self.session.as_mut().expect("a session");
        let mut result = Ok(());
        while session.waiting.front().is_some_and(|waiting| waiting.sequence <= sequence) {
            let Waiting { floor, state, .. } =
                session.waiting.pop_front().expect("there is a first");
            self.confirmed += 1;
            session.settle_below(floor, to_source);
            if let (Some(dir), Some(named)) = (&mut session.state, &state) {
                result = result.and(dir.committed(named));
            }
        }
        if let Err(error) = result {
            self.stopped_by(&error);
        }
    }

    /// Only a disk may be in its way, or a newer instance of it.
    fn is_refused(&mut self, fault: &Fault) {
        use ErrorCode::{Corrupt, Disk, Fenced, Full};
        let excused = matches!(trace_fault(fault).code, Corrupt | Disk | Fenced | Full);
        assert!(excused, "a proper pipe was refused: {fault:?}");
        self.refused = true;
    }

    fn hear_source(&mut self, to_source: &mut Frames) {
        for (header, body) in take_frames(&mut self.inbound[1]) {
            if self.refused {
                // Behind what does not verify it takes nothing any more.
                return;
            }
            match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                Reply::Receiving(receiving) if receiving.epoch.is_some() => {
                    self.session.as_mut().expect("a session").source_id = receiving.queue_id;
                }
                Reply::Deliver(head, batches) => self.take_in(&head, batches, to_source),
                Reply::Reply(json) => self.learn_time(json),
                Reply::Error(fault) => self.is_refused(&fault),
                _ => {}
            }
        }
    }

    fn ask_for_time(&mut self, to_source: &mut Frames) {
        let (queue, group) = (self.source.clone(), group());
        if let Some(session) = self.session.as_mut()
            && session.source_id.is_some()
            && !std::mem::replace(&mut session.asked, true)
        {
            Request::Admin(Admin::Clock { queue, group }).encode(CLOCK_CHANNEL, to_source);
        }
    }

    fn learn_time(&mut self, json: &[u8]) {
        let clock: ClockInfo = serde_json::from_slice(json).expect("what the time is");
        let session = self.session.as_mut().expect("a session");
        session.asked = false;
        if clock.waiting == Count(0) {
            session.time_floor = Some((session.seen, clock.now));
            self.times_told += 1;
        }
    }

    /// Nothing that comes now is older than the server said.
    fn check_times(&mut self, queue: QueueId, head: &DeliverHead, batches: &[u8]) {
        let session = self.session.as_mut().expect("a session");
        for header in headers_of(queue, head, batches) {
            let late = session
                .time_floor
                .filter(|(seen, floor)| header.offset >= *seen && header.time < *floor);
            assert!(late.is_none(), "G14: {} is older than was said: {late:?}", header.offset);
            session.seen = session.seen.max(header.end());
        }
    }

    fn take_in(&mut self, head: &DeliverHead, batches: &[u8], to_source: &mut Frames) {
        let session = self.session.as_ref().expect("a session");
        let queue = session.source_id.expect("delivered before its turn");
        self.check_times(queue, head, batches);
        let (messages, bad) = messages_of(queue, head, batches);
        if let Some(place) = bad {
            assert!(self.may_be_damaged, "G11: a batch at {place:?} does not verify");
            Request::Complain(place.segment, place.position).encode(CHANNEL, to_source);
            self.refused = true;
        }
        let session = self.session.as_mut().expect("a session");
        for (offset, body) in messages {
            let message = Message::parse(&body).expect("G2: what somebody sent");
            let before = self.read.insert(offset, message);
            let is_same = before.is_none_or(|before| before == message);
            assert!(is_same || self.may_be_damaged, "{offset} has two messages");
            session.held.insert(offset);
            // Windows read again what was in open ones.
            let is_wanted = offset >= session.mark.next || session.windows.is_some();
            if is_wanted {
                let last = session.input.back().map(|(last, _)| *last);
                assert!(last < Some(offset), "G4: {offset} behind {last:?}");
                session.input.push_back((offset, message));
            } else if session.mark.dead.contains(&offset) {
                session.bury(offset, to_source);
            }
        }
        session.settle_below(session.floor, to_source);
        let floor = session.floor;
        session.input.retain(|(offset, _)| *offset >= floor);
    }

    // ---- batches ----

    fn work_on_batch(&mut self, rng: &mut Random, hurries: bool, to_source: &mut Frames) {
        let session = self.session.as_mut().expect("a session");
        if session.trial.is_none() {
            let most = rng.below(8) as usize + usize::from(hurries);
            let batch: Vec<_> = session.input.drain(..most.min(session.input.len())).collect();
            if batch.is_empty() {
                return;
            }
            let rules = Rules {
                limit: Some(3),
                may_bury: true,
                may_halve: true,
                backoff: Backoff { first: Micros(1_000), max: Micros(4_000) },
            };
            session.trial = Some((Trial::new(batch.len() as u64, rules), batch));
        }
        loop {
            let session = self.session.as_mut().expect("a session");
            let (trial, batch) = session.trial.as_mut().expect("it was just begun");
            let part =
                |range: std::ops::Range<u64>| &batch[range.start as usize..range.end as usize];
            match trial.step() {
                Step::Run(range) => {
                    let messages: Vec<Message> = part(range).iter().map(|(_, m)| *m).collect();
                    // It may fail for reasons that have nothing to do with its input; not on one
                    // message again and again.
                    let falters = messages.len() > 1 && !hurries && rng.chance(10);
                    let ran = match self.run_filters(&messages, falters) {
                        Ok(ran) => ran,
                        Err(error) => return self.stopped_by(&error),
                    };
                    let session = self.session.as_mut().expect("a session");
                    session.ran = ran;
                    let never = messages.len() == 1 && messages[0].is_poison();
                    let (trial, _) = session.trial.as_mut().expect("it was just begun");
                    trial.ran(match &session.ran {
                        Some(_) => Ran::Well,
                        None if never => Ran::Never,
                        None => Ran::Failed,
                    });
                }
                Step::Commit(range) => {
                    let next = Offset(part(range.clone()).last().expect("not empty").0.0 + 1);
                    let outputs = session.ran.take().expect("it was just run");
                    let read = range.end - range.start;
                    if let Err(error) = self.commit(next, next, read, &outputs, rng) {
                        return self.stopped_by(&error);
                    }
                }
                Step::Dead(range, _) => {
                    for (offset, _) in part(range).to_vec() {
                        session.mark.note_dead(offset);
                        session.mark.next = Offset(offset.0 + 1);
                        session.bury(offset, to_source);
                        self.buried += 1;
                    }
                }
                Step::Pause(_) => return,
                Step::GiveUp => {
                    // The tool ends; somebody starts it again.
                    trace(|| format!("pipe: gives up on {batch:?}"));
                    self.refused = true;
                    return;
                }
                Step::Done => {
                    session.trial = None;
                    return;
                }
            }
        }
    }

    /// Runs the filters of all parts that have any of these messages; what they say, if all of them
    /// succeed.
    fn run_filters(
        &mut self,
        messages: &[Message],
        falters: bool,
    ) -> Result<Option<Vec<String>>, StateError> {
        let manner = self.manner;
        if let Some(dir) = &mut self.session.as_mut().expect("a session").state {
            dir.abandon_kept()?;
        }
        let (mut outputs, mut parts) = (Some(Vec::new()).filter(|_| !falters), Vec::new());
        for part in 0..manner.parts {
            if !messages.iter().any(|message| part_of(manner, key_of(*message)) == part) {
                continue;
            }
            parts.push(part as usize);
            let run = |state: &mut State| filter::run(manner, part, messages, state);
            let said = self.in_state(part as usize, run)?;
            outputs = outputs.zip(said).map(|(all, said)| [all, said].concat());
        }
        if let Some(dir) = &mut self.session.as_mut().expect("a session").state {
            match &outputs {
                Some(_) => parts.into_iter().try_for_each(|part| dir.keep(part))?,
                None => dir.abandon_kept()?,
            }
        }
        Ok(outputs)
    }

    /// Runs a filter with the state of its part, if there is one: it reads a file, and writes it.
    fn in_state<T>(
        &mut self,
        part: usize,
        filter: impl FnOnce(&mut State) -> T,
    ) -> Result<T, StateError> {
        let Some(dir) = &mut self.session.as_mut().expect("a session").state else {
            return Ok(filter(&mut State::new()));
        };
        let path = file_in(&dir.begin(part)?);
        let failed = |error| StateError::Io { doing: "work on", path: path.clone(), error };
        let mut state = match self.files.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::new(),
            read => filter::read_state(&read.map_err(failed)?),
        };
        let said = filter(&mut state);
        let text = filter::write_state(&state);
        self.files.write(&path, text.as_bytes()).map_err(failed)?;
        let shown = path.display().to_string();
        let before = self.written.insert(path, state);
        assert!(before.is_none(), "G14: two filters work on one state: {shown}");
        Ok(said)
    }

    // ---- windows ----

    fn work_on_windows(&mut self, rng: &mut Random, hurries: bool) -> Result<(), StateError> {
        let most = if hurries { 100 } else { rng.below(8) };
        let mut unsaved = 0;
        for _ in 0..most {
            let session = self.session.as_mut().expect("a session");
            let Some((offset, message)) = session.input.pop_front() else { break };
            let windows = session.windows.as_mut().expect("a pipe with windows");
            let (fate, closed) = filter::hand_in(windows, offset, message);
            let figures = &mut session.mark.figures;
            figures.late += u64::from(fate == Fate::Late);
            figures.untimed += u64::from(fate == Fate::Untimed);
            self.reread += usize::from(fate == Fate::Reread);
            unsaved += u64::from(fate != Fate::Reread);
            session.mark.next = session.mark.next.max(Offset(offset.0 + 1));
            if !closed.is_empty() {
                self.commit_windows(&closed, unsaved, rng)?;
                unsaved = 0;
            }
        }
        let session = self.session.as_mut().expect("a session");
        let windows = session.windows.as_mut().expect("a pipe with windows");
        if self.flush && session.input.is_empty() && session.waiting.is_empty() {
            windows.handle_flush(session.mark.next);
            let closed: Vec<Closed> = std::iter::from_fn(|| windows.next_closed()).collect();
            if unsaved > 0 || !session.held.is_empty() || !closed.is_empty() {
                self.commit_windows(&closed, unsaved, rng)?;
            }
        } else if unsaved > 0 {
            self.commit_windows(&[], unsaved, rng)?;
        }
        Ok(())
    }

    fn commit_windows(
        &mut self,
        closed: &[Closed],
        read: u64,
        rng: &mut Random,
    ) -> Result<(), StateError> {
        let manner = self.manner;
        let mut outputs = Vec::new();
        for closed in closed {
            let part = part_of(manner, key_of_window(closed)) as usize;
            let run = |state: &mut State| filter::run_window(manner, closed, state);
            outputs.push(self.in_state(part, run)?);
            if let Some(dir) = &mut self.session.as_mut().expect("a session").state {
                dir.keep(part)?;
            }
        }
        let session = self.session.as_mut().expect("a session");
        self.windows_closed += closed.len();
        let next = session.mark.next;
        let at = session.windows.as_mut().expect("a pipe with windows").checkpoint(next);
        let floor = at.floor;
        session.mark.window = Some(WindowMark { spec: String::new(), at });
        self.commit(next, floor, read, &outputs, rng)
    }

    // ---- output ----

    /// Makes a commit that goes on at `next` and lets go of all below `floor`.
    fn commit(
        &mut self,
        next: Offset,
        floor: Offset,
        read: u64,
        outputs: &[String],
        rng: &mut Random,
    ) -> Result<(), StateError> {
        let session = self.session.as_mut().expect("a session");
        session.last += 1;
        let sequence = session.last;
        if let Some(dir) = &mut session.state {
            session.mark.state = Some(dir.seal()?);
        }
        session.mark.figures.batches += 1;
        session.mark.figures.read += read;
        (session.mark.next, session.mark.floor) = (next, floor);
        session.waiting.push_back(Waiting { sequence, floor, state: session.mark.state.clone() });
        trace(|| format!("pipe: commit {sequence} to {next}, floor {floor}: {outputs:?}"));
        let mut annex = Vec::new();
        push_annex(&mut annex, &session.mark.encode().expect("it fits"));
        let head = |count: u32, more: bool| CommitHead {
            sequence: Sequence(sequence),
            count,
            framing: Framing::Delimited(b'\n'),
            batch_flags: if more { 0 } else { flags::ANNEX },
            more,
        };
        let mut say = |head: CommitHead, payload: &[u8]| {
            let mut frame = Frames::new();
            Request::Commit(head, payload).encode(CHANNEL, &mut frame);
            session.saying.push_back(frame);
        };
        let lines: Vec<String> = outputs.iter().map(|output| format!("{output}\n")).collect();
        if lines.len() < 2 || rng.chance(50) {
            let payload = [annex, lines.concat().into_bytes()].concat();
            say(head(lines.len() as u32, false), &payload);
            return Ok(());
        }
        for line in &lines {
            say(head(1, true), line.as_bytes());
        }
        say(head(0, false), &annex);
        self.in_parts += 1;
        Ok(())
    }
}

/// The group that it takes from.
fn group() -> Name {
    Name::new("pipe").expect("a name")
}

/// The file that a filter keeps its state in.
fn file_in(dir: &Path) -> PathBuf {
    dir.join("counts")
}

impl Session {
    fn settle_below(&mut self, floor: Offset, to_source: &mut Frames) {
        let above = self.held.split_off(&floor);
        let below = std::mem::replace(&mut self.held, above);
        if !below.is_empty() {
            Request::Ack(ranges(below.into_iter())).encode(CHANNEL, to_source);
        }
    }

    fn bury(&mut self, offset: Offset, to_source: &mut Frames) {
        self.held.remove(&offset);
        let one = OffsetRange::new(offset, offset.plus(Count(1)));
        let nack = Nack { ranges: vec![one], dead: true, ..Nack::default() };
        Request::Nack(nack).encode(CHANNEL, to_source);
    }
}
