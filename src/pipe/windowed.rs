//! The loop of a pipe with windows: messages into windows, and those that close on to
//! `closing`.
//!
//! ```text
//! source ─▶ key, time ─▶ windows (pure) ─ closed ─▶ filters, -P at once ─▶ one commit
//!              └ bytes ─▶ spool ─────────┘ stdin           late ─▶ --late, committed before it
//! ```
//!
//! All windows that a message closes are one step, and one commit. Called by `run`, whose session it
//! works on.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use xxhash_rust::xxh3::xxh3_128;

use super::late::LateSink;
use super::load::DELIMITER;
use super::mark::Mark;
use super::order::Origin;
use super::report::{Host, Misfit, Note, PipeError};
use super::run::{Pipe, Session};
use super::source::{Input, SourceError, Word};
use super::spool::Spool;
use super::window::{Fate, Key, Message, Spec, Windows};
use super::{key, time};
use crate::batch;
use crate::client::delivery::{Batch, DeliveryError, Origin as BatchOrigin};
use crate::client::envelope;
use crate::limits;
use crate::units::{Attempts, LeaseNumber, Name, Offset, OffsetRange, QueueId};
use crate::wire::ClockInfo;

/// Bytes of what a mark says of windows as a user wants them; a longer text is cut short.
const SPEC_BYTES_MAX: usize = 256;

/// How soon the server is asked for the time again, when the answer was of no use.
pub(super) const CLOCK_PAUSE: Duration = Duration::from_millis(10);

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
    pub(super) windows: Windows,
    wanted: Windowed,
    key: Option<key::Spec>,
    /// See [`Windowed::text`].
    pub(super) text: String,
    pub(super) spool: Spool,
    /// Where the spool was when messages from an offset on came, now and then.
    kept: VecDeque<(Offset, u64)>,
    pub(super) late: Option<LateSink>,
    /// Messages since the last commit.
    pub(super) unsaved: u64,
    /// What the last commit said.
    pub(super) floor: Offset,
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
    pub(super) fn give_back(&mut self, floor: Offset) {
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
            Origin::Engine(_) | Origin::Stdin => Name::default(),
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
    pub(super) fn ask_clock(&mut self, session: &mut Session) -> Result<ClockInfo, PipeError> {
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
}

impl Session {
    pub(super) fn windowing(&mut self) -> &mut Windowing {
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
