//! The loop of a pipe with windows: messages into windows, and each window that closes through a
//! filter of its own.
//!
//! ```text
//! source ─▶ key, time ─▶ windows (pure) ─ closed ─▶ filters, -P at once ─▶ one commit
//!              └ bytes ─▶ spool ─────────┘ stdin           late ─▶ --late, committed before it
//! ```
//!
//! All windows that a message closes are one step, and one commit. A window is tried as a whole,
//! again and again after pauses; in the end the pipe stops, or gives up all its messages. Called by
//! `run`, whose session it works on.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant, SystemTime};

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::filter::{self, Finished, Job, Stdin};
use super::late::LateSink;
use super::load::DELIMITER;
use super::mark::{Mark, WindowMark};
use super::order::Origin;
use super::report::{Host, Misfit, Note, PipeError};
use super::run::{Failure, Pipe, Session};
use super::source::{Input, Letter, SourceError, Word};
use super::spool::Spool;
use super::trial::{self, Ran};
use super::window::{Closed, Extent, Fate, Key, Message, Spec, Windows};
use super::{key, time};
use crate::batch;
use crate::client::delivery::{Batch, DeliveryError, Origin as BatchOrigin};
use crate::client::envelope::{self, TimeText};
use crate::limits;
use crate::units::{Attempts, LeaseNumber, Micros, Name, Offset, OffsetRange, QueueId, WallTime};
use crate::wire::ClockInfo;

/// Bytes of what a mark says of windows as a user wants them; a longer text is cut short.
const SPEC_BYTES_MAX: usize = 256;

/// How soon the server is asked for the time again, when the answer was of no use.
const CLOCK_PAUSE: Duration = Duration::from_millis(10);

/// Windows as a user wants them.
#[derive(Clone, Debug)]
pub struct Windowed {
    /// Which.
    pub spec: Spec,
    /// What time a message has.
    pub time: time::Spec,
    /// Where messages go that come late.
    pub late: Option<Name>,
    /// Whether all windows are closed at the end.
    pub flush: bool,
}

impl Windowed {
    /// What must be the same for a mark to make sense.
    fn text(&self, key: Option<&key::Spec>) -> String {
        let mut text = format!("--window {}", self.spec);
        if self.spec.has_times() {
            text.push_str(&format!(" --time {}", self.time));
        }
        if let Some(key) = key {
            text.push_str(&format!(" --key {key}"));
        }
        shortened(text)
    }

    fn goes_with_the_clock(&self) -> bool {
        self.spec.has_times() && self.time.goes_with_the_clock()
    }
}

/// What a session knows of windows.
pub(super) struct Windowing {
    windows: Windows,
    wanted: Windowed,
    key: Option<key::Spec>,
    /// See [`Windowed::text`].
    text: String,
    spool: Spool,
    /// Where the spool was when messages from an offset on came, now and then.
    kept: VecDeque<(Offset, u64)>,
    pub(super) late: Option<LateSink>,
    /// Messages since the last commit.
    unsaved: u64,
    /// What the last commit said.
    floor: Offset,
    /// The server was asked for the time.
    is_asked: bool,
    /// Not to be asked before.
    ask_after: Option<Instant>,
    told_ambiguous: bool,
    /// A message has come.
    is_reading: bool,
    /// What came while something else was waited for, in order.
    ahead: VecDeque<Batch>,
}

impl Windowing {
    /// The windows of a session that goes on at this mark.
    pub(super) fn new(
        wanted: &Windowed,
        key: Option<&key::Spec>,
        mark: &Mark,
        late: Option<LateSink>,
    ) -> Result<Windowing, PipeError> {
        let text = wanted.text(key);
        let windows = match &mark.window {
            None => Windows::new(&wanted.spec, mark.next),
            Some(known) if known.spec != text => {
                let (name, had) = (mark.name.clone(), known.spec.clone());
                return Err(Misfit::OtherWindows { name, had, wanted: text }.into());
            }
            Some(known) if !known.at.is_sound() => {
                return Err(Misfit::BadWindows(mark.name.clone()).into());
            }
            Some(known) => Windows::resume(&wanted.spec, known.at.clone()),
        };
        Ok(Windowing {
            windows,
            wanted: wanted.clone(),
            key: key.cloned(),
            text,
            spool: Spool::new()?,
            kept: VecDeque::new(),
            late,
            unsaved: 0,
            floor: mark.floor,
            is_asked: false,
            ask_after: None,
            told_ambiguous: false,
            is_reading: false,
            ahead: VecDeque::new(),
        })
    }

    /// When the server is to be asked for the time, if it is worth it.
    fn asks_at(&mut self) -> Option<Instant> {
        if self.is_asked || !self.wanted.goes_with_the_clock() {
            return None;
        }
        let due = self.windows.next_deadline()?.0;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_micros(due).saturating_sub(now);
        let at = Instant::now().checked_add(left)?;
        Some(self.ask_after.map_or(at, |after| at.max(after)))
    }

    /// Remembers where the spool is, and gives back what is before the oldest open window.
    fn give_back(&mut self, floor: Offset) {
        while self.kept.get(1).is_some_and(|(offset, _)| *offset <= floor) {
            self.kept.pop_front();
        }
        if let Some((offset, place)) = self.kept.front()
            && *offset <= floor
        {
            self.spool.forget_below(*place);
        }
    }

    fn keep_place(&mut self, offset: Offset) {
        let end = self.spool.end();
        if self.kept.back().is_none_or(|(_, at)| end >= at + limits::SPOOL_GIVE_BACK_BYTES) {
            self.kept.push_back((offset, end));
        }
    }
}

/// A window on its way through its filter.
struct Run {
    closed: Closed,
    part: usize,
    output: Option<Vec<u8>>,
}

impl<H: Host> Pipe<'_, H> {
    /// Goes through the source until its end.
    pub(super) fn windows(&mut self, session: &mut Session) -> Result<(), PipeError> {
        loop {
            self.hear(session)?;
            if let Some(batch) = session.windowing().ahead.pop_front() {
                self.take_batch(session, &batch)?;
                continue;
            }
            match session.source.next() {
                Some(Input::Batch(batch)) => self.take_batch(session, &batch)?,
                Some(Input::Clock(clock)) => self.take_clock(session, clock)?,
                Some(other) => self.take_news(session, other)?,
                None if session.ended => break,
                None => self.wait_for_more(session)?,
            }
        }
        // Without a source there is no clock to ask.
        if session.id.is_some() && session.windowing().wanted.goes_with_the_clock() {
            let clock = self.ask_clock(session)?;
            self.take_clock(session, clock)?;
        }
        if session.windowing().wanted.flush {
            let next = session.mark.next;
            session.windowing().windows.handle_flush(next);
            self.run_closed(session)?;
        }
        if session.windowing().unsaved > 0 {
            self.commit_windows(session, Vec::new())?;
        }
        self.drain(session, None)
    }

    fn take_batch(&mut self, session: &mut Session, batch: &Batch) -> Result<(), PipeError> {
        self.look_for_gap(session, batch.header.offset);
        let next = session.mark.next;
        let windowing = session.windowing();
        let (floor, start) = (windowing.floor, batch.header.offset);
        if !std::mem::replace(&mut windowing.is_reading, true) && (floor..next).contains(&start) {
            self.note_lost(floor, start);
        }
        let header = &batch.header;
        let payload = batch.payload.bytes();
        batch::check_messages(header.framing, payload, header.count)
            .map_err(|error| SourceError::Garbled(DeliveryError::of(&batch.place, error)))?;
        let queue = match &self.order.source {
            Origin::Queue(name) => name.clone(),
            Origin::Stdin => Name::default(),
        };
        let origin = BatchOrigin {
            queue: &queue,
            queue_id: QueueId::default(),
            group: &queue,
            attempt: Attempts(0),
            lease: LeaseNumber(0),
        };
        session.windowing().keep_place(header.offset);
        for message in envelope::messages(origin, header, payload) {
            if self.take_message(session, &message)? {
                self.run_closed(session)?;
            } else if session.windowing().late.as_ref().is_some_and(LateSink::is_full) {
                self.commit_windows(session, Vec::new())?;
            }
        }
        Ok(())
    }

    /// The oldest message of an open window is not the first that comes again.
    fn note_lost(&mut self, floor: Offset, start: Offset) {
        if floor < start {
            self.host.note(Note::Gone(OffsetRange::new(floor, start)));
        }
    }

    /// Whether windows may be closed now.
    fn take_message(
        &mut self,
        session: &mut Session,
        message: &envelope::Message<'_>,
    ) -> Result<bool, PipeError> {
        let windowing = session.windowing.as_mut().expect("a pipe with windows");
        let envelope::Message { offset, attributes, body, .. } = message;
        let place = windowing.spool.push(body)?.start..windowing.spool.push(&[DELIMITER])?.end;
        let key = windowing.key.as_ref().and_then(|key| key.key_of(attributes, body));
        let key = key.map_or(Key::none(), |key| Key::new(&key));
        let time = windowing.wanted.time.time_of(message.time, attributes, body);
        let message_in = Message { offset: *offset, time, key, place };
        let fate = windowing.windows.handle_message(message_in)?;
        session.mark.next = session.mark.next.max(Offset(offset.0 + 1));
        windowing.unsaved += u64::from(fate != Fate::Reread);
        match fate {
            Fate::Reread => return Ok(false),
            Fate::Taken => {}
            Fate::Late | Fate::Untimed => {
                let figures = &mut session.mark.figures;
                match fate {
                    Fate::Late => figures.late += 1,
                    _ => figures.untimed += 1,
                }
                if let Some(late) = &mut windowing.late {
                    if !late.has_room(body.len()) {
                        late.commit(*offset, &[self.host.as_fd()])?;
                    }
                    late.push(message, fate);
                }
                return Ok(false);
            }
        }
        if !windowing.told_ambiguous && body.contains(&DELIMITER) {
            windowing.told_ambiguous = true;
            self.host.note(Note::Ambiguous);
        }
        Ok(true)
    }

    fn take_clock(&mut self, session: &mut Session, clock: ClockInfo) -> Result<(), PipeError> {
        let next = session.mark.next;
        let windowing = session.windowing();
        windowing.is_asked = false;
        windowing.ask_after = Some(Instant::now() + CLOCK_PAUSE);
        // What waits may be older than the clock says.
        if clock.waiting.0 > 0 {
            return Ok(());
        }
        windowing.windows.handle_clock(next, clock.now);
        self.run_closed(session)
    }

    /// Asks the server for the time. What comes before the answer, which is as much as is under way,
    /// is for later.
    fn ask_clock(&mut self, session: &mut Session) -> Result<ClockInfo, PipeError> {
        if !std::mem::replace(&mut session.windowing().is_asked, true) {
            session.source.words().push(Word::AskClock, 0);
        }
        loop {
            self.hear(session)?;
            match session.source.next() {
                Some(Input::Clock(clock)) => {
                    session.windowing().is_asked = false;
                    return Ok(clock);
                }
                Some(Input::Batch(batch)) => session.windowing().ahead.push_back(batch),
                Some(other) => self.take_news(session, other)?,
                None => self.wait(session, None)?,
            }
        }
    }

    /// Nothing is there now: what came late is handed on, and the clock is looked at.
    fn wait_for_more(&mut self, session: &mut Session) -> Result<(), PipeError> {
        let next = session.mark.next;
        let windowing = session.windowing();
        let has_late = windowing.late.as_ref().is_some_and(LateSink::has_any);
        let is_free = !windowing.windows.is_resuming()
            && windowing.unsaved > 0
            && windowing.windows.checkpoint(next).floor > windowing.floor;
        if has_late || is_free {
            return self.commit_windows(session, Vec::new());
        }
        let at = session.windowing().asks_at();
        if at.is_some_and(|at| at <= Instant::now()) {
            session.windowing().is_asked = true;
            session.source.words().push(Word::AskClock, 0);
            return Ok(());
        }
        self.wait(session, at)
    }

    // ---- closed windows ----

    /// Runs the filter on each window that is closed, and commits what comes of all of them.
    fn run_closed(&mut self, session: &mut Session) -> Result<(), PipeError> {
        let mut outputs = Vec::new();
        let mut bytes = 0;
        let mut waiting = None;
        let mut any = false;
        loop {
            let wave = self.next_wave(session, &mut waiting);
            if wave.is_empty() {
                break;
            }
            any = true;
            for output in self.run_wave(session, wave)? {
                bytes += output.len();
                outputs.push(output);
            }
            if bytes > limits::PIPE_OUTPUT_BYTES_MAX {
                return Err(PipeError::WindowsTooMuch);
            }
        }
        if any { self.commit_windows(session, outputs) } else { Ok(()) }
    }

    /// The next windows that may be worked on at once, in order: as many as there are filters, and
    /// with state only one for each part.
    fn next_wave(&self, session: &mut Session, waiting: &mut Option<Closed>) -> Vec<Run> {
        let has_state = session.state.is_some();
        let parallel = self.order.parallel;
        let mut wave: Vec<Run> = Vec::new();
        while wave.len() < parallel {
            let next = waiting.take().or_else(|| session.windowing().windows.next_closed());
            let Some(closed) = next else { break };
            let hash = xxh3_64(closed.key.bytes().unwrap_or_default());
            let part = if has_state { (hash % parallel as u64) as usize } else { wave.len() };
            if wave.iter().any(|run| run.part == part) {
                *waiting = Some(closed);
                break;
            }
            wave.push(Run { closed, part, output: None });
        }
        wave
    }

    /// The outputs of some windows, however often they have to be tried.
    fn run_wave(
        &mut self,
        session: &mut Session,
        mut wave: Vec<Run>,
    ) -> Result<Vec<Vec<u8>>, PipeError> {
        let mut attempts = 0;
        loop {
            let failed = self.try_wave(session, &mut wave)?;
            let Some(first) = failed.first().map(|(n, _)| range_of(&wave[*n].closed)) else {
                break;
            };
            attempts += 1;
            let is_over = session.limit.is_some_and(|limit| attempts >= limit);
            for (n, ran) in &failed {
                if !is_over && *ran != Ran::Never {
                    continue;
                }
                if !self.order.buries || self.order.source == Origin::Stdin {
                    let reason = self.failure.reason.clone();
                    self.drain(session, None)?;
                    let messages = range_of(&wave[*n].closed);
                    return Err(PipeError::WindowGaveUp { messages, reason });
                }
                let run = &mut wave[*n];
                run.output = Some(Vec::new());
                self.bury_window(session, &run.closed, attempts)?;
            }
            if wave.iter().all(|run| run.output.is_some()) {
                break;
            }
            let pause = trial::pause_after(self.order.backoff, attempts).to_duration();
            let count = wave.iter().filter(|run| run.output.is_none()).count() as u64;
            let reason = self.failure.reason.as_str();
            self.host.note(Note::WindowsFailed { first, count, reason, pause });
            if self.pause(pause, Some(session))? {
                return Err(PipeError::Interrupted);
            }
        }
        Ok(wave.into_iter().map(|run| run.output.expect("it is over")).collect())
    }

    /// Runs the filters of those that have no output yet. Which failed, and how.
    fn try_wave(
        &mut self,
        session: &mut Session,
        wave: &mut [Run],
    ) -> Result<Vec<(usize, Ran)>, PipeError> {
        let began = Instant::now();
        let mut jobs = Vec::new();
        let mut numbers = Vec::new();
        for (n, run) in wave.iter().enumerate().filter(|(_, run)| run.output.is_none()) {
            let stdin = session.windowing().spool.gather(&run.closed.members)?;
            let mut env = self.window_facts(run);
            if let Some(state) = &mut session.state {
                env.push(("MQ_STATE".into(), state.begin(run.part)?.into()));
            }
            jobs.push(Job { input: Stdin::File(stdin), env });
            numbers.push(n);
        }
        let timeout = self.order.timeout.map(Micros::to_duration);
        let over = session.ended();
        let others = [self.host.as_fd(), over.as_fd()];
        let finished = filter::run(&mut self.program, jobs, timeout, &others)?;
        let mut failed = Vec::new();
        for (n, Finished { how, output, stderr }) in numbers.into_iter().zip(finished) {
            let ran = self.verdict(how)?;
            let run = &mut wave[n];
            match (ran, &mut session.state) {
                (Ran::Well, Some(state)) => state.keep(run.part)?,
                (_, Some(state)) => state.abandon(run.part)?,
                (_, None) => {}
            }
            match ran {
                Ran::Well => run.output = Some(output),
                Ran::TooMuch => return Err(PipeError::WindowsTooMuch),
                Ran::Failed | Ran::Never => {
                    self.failure = Failure { reason: how.to_string(), stderr };
                    failed.push((n, ran));
                }
            }
        }
        let figures = &mut session.mark.figures;
        figures.filter_us.0 += u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        figures.retries += failed.len() as u64;
        Ok(failed)
    }

    fn window_facts(&self, run: &Run) -> Vec<(OsString, OsString)> {
        let Run { closed, part, .. } = run;
        let mut env = self.facts(None, *part);
        let number = |number: u64| OsString::from(number.to_string());
        let (start, end) = match closed.extent {
            Extent::Times { start, end } => (time_text(start), time_text(end)),
            Extent::Offsets { first, last } => (number(first.0), number(last.0)),
        };
        env.push(("MQ_WINDOW_START".into(), start));
        env.push(("MQ_WINDOW_END".into(), end));
        if let Some(key) = closed.key.bytes() {
            env.push(("MQ_KEY".into(), OsString::from_vec(key.to_vec())));
        }
        env.push(("MQ_OFFSET".into(), number(closed.members.first().0)));
        env.push(("MQ_COUNT".into(), number(closed.members.count())));
        env
    }

    /// All messages of a window become dead letters. They are on their way before the commit that
    /// passes over them, and have arrived; so none is lost between the two.
    fn bury_window(
        &mut self,
        session: &mut Session,
        closed: &Closed,
        attempts: u32,
    ) -> Result<(), PipeError> {
        let Failure { reason, stderr } = self.failure.clone();
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let count = closed.members.count();
        self.host.note(Note::DeadWindow { messages: range_of(closed), count, reason: &reason });
        let messages = closed.members.runs().iter().map(|run| run.offsets).collect();
        let letter = Letter { messages, attempts, reason, stderr };
        session.source.words().push(Word::Bury(letter), 0);
        session.mark.figures.dead += count;
        let mut clock = self.ask_clock(session)?;
        if clock.dying.0 == 0 {
            return Ok(());
        }
        let mut connection = self.dial()?;
        while clock.dying.0 > 0 {
            if self.pause(CLOCK_PAUSE, Some(session))? {
                return Err(PipeError::Interrupted);
            }
            clock = self.clock(&mut connection)?;
        }
        Ok(())
    }

    fn commit_windows(
        &mut self,
        session: &mut Session,
        outputs: Vec<Vec<u8>>,
    ) -> Result<(), PipeError> {
        let next = session.mark.next;
        let windowing = session.windowing();
        let checkpoint = windowing.windows.checkpoint(next);
        let floor = checkpoint.floor;
        let open = windowing.windows.figures().windows as u64;
        let mark = WindowMark { spec: windowing.text.clone(), at: checkpoint };
        let read = std::mem::take(&mut windowing.unsaved);
        windowing.floor = floor;
        windowing.give_back(floor);
        session.mark.window = Some(mark);
        session.mark.figures.open_windows = open;
        if let Some(late) = &mut session.windowing().late {
            late.commit(next, &[self.host.as_fd()])?;
        }
        self.commit_at(session, (next, floor), read, outputs)
    }
}

impl Session {
    fn windowing(&mut self) -> &mut Windowing {
        self.windowing.as_mut().expect("a pipe with windows")
    }
}

/// What a mark has room for, and the same only for the same text.
fn shortened(text: String) -> String {
    let mut most = SPEC_BYTES_MAX;
    if text.len() <= most {
        return text;
    }
    while !text.is_char_boundary(most) {
        most -= 1;
    }
    format!("{}... ({:032x})", &text[..most], xxh3_128(text.as_bytes()))
}

fn range_of(closed: &Closed) -> OffsetRange {
    OffsetRange::new(closed.members.first(), Offset(closed.members.last().0 + 1))
}

/// A time for people and programs, RFC 3339 in UTC.
fn time_text(micros: i64) -> OsString {
    if let Ok(micros) = u64::try_from(micros) {
        let mut text = Vec::new();
        TimeText::default().push(WallTime(micros), &mut text);
        return OsString::from_vec(text);
    }
    let time = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MIN);
    format!("{time:.6}").into()
}
