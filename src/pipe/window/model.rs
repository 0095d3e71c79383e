//! Windows against a plain model, over random histories, and against themselves after crashes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::units::Micros;

/// What happens to windows.
#[derive(Clone, Debug)]
enum Event {
    /// A message so many offsets further on.
    Message { skip: u64, time: Option<u64>, key: Option<u8> },
    /// The log is read to its end.
    Clock(u64),
    /// As at the end of an input.
    Flush,
    /// A commit.
    Commit,
    /// A crash and a restart from the last commit.
    Crash,
}

/// A closed window, and the offsets in it.
type Told = (Extent, Key, Vec<u64>);

/// The plainest way to have windows: every one by itself, all looked at every time.
struct Model {
    spec: Spec,
    watermark: u64,
    next: u64,
    open: Vec<(i64, i64, Key, Vec<u64>)>,
    counting: BTreeMap<Key, Vec<u64>>,
    told: Vec<Told>,
    late: Vec<u64>,
}

impl Model {
    fn new(spec: Spec) -> Model {
        Model {
            spec,
            watermark: 0,
            next: 0,
            open: Vec::new(),
            counting: BTreeMap::new(),
            told: Vec::new(),
            late: Vec::new(),
        }
    }

    fn message(&mut self, offset: u64, time: Option<u64>, key: &Key) {
        self.next = offset + 1;
        let spans = match (self.spec.kind, time) {
            (Kind::Count(count), _) => {
                let members = self.counting.entry(key.clone()).or_default();
                members.push(offset);
                if members.len() as u64 == count {
                    self.tell_count(&key.clone());
                }
                return;
            }
            (_, None) => return self.late.push(offset),
            (Kind::Session { gap }, Some(time)) => return self.session(offset, time, gap.0, key),
            (Kind::Aligned { size, every }, Some(time)) => {
                let (size, every, time) = (size.0 as i64, every.0 as i64, time as i64);
                (-size..=time)
                    .filter(|start| start % every == 0 && *start <= time && time < start + size)
                    .map(|start| (start, start + size))
                    .filter(|(_, end)| *end > self.watermark as i64)
                    .collect::<Vec<_>>()
            }
        };
        if spans.is_empty() {
            self.late.push(offset);
        }
        for (start, end) in spans {
            let found = self.open.iter_mut().find(|w| w.0 == start && w.2 == *key);
            match found {
                Some(window) => window.3.push(offset),
                None => self.open.push((start, end, key.clone(), vec![offset])),
            }
        }
        self.rise(time.expect("there is one").saturating_sub(self.spec.late.0));
    }

    fn session(&mut self, offset: u64, time: u64, gap: u64, key: &Key) {
        let (mut start, mut end) = (time as i64, (time + gap) as i64);
        let touches = |w: &(i64, i64, Key, Vec<u64>)| w.2 == *key && w.0 < end && start < w.1;
        let (touched, others): (Vec<_>, Vec<_>) = self.open.drain(..).partition(touches);
        self.open = others;
        if touched.is_empty() && end <= self.watermark as i64 {
            return self.late.push(offset);
        }
        let mut members = vec![offset];
        for session in touched {
            start = start.min(session.0);
            end = end.max(session.1);
            members.extend(session.3);
        }
        members.sort_unstable();
        self.open.push((start, end, key.clone(), members));
        self.rise(time.saturating_sub(self.spec.late.0));
    }

    fn tell_count(&mut self, key: &Key) {
        let members = self.counting.remove(key).expect("it counts");
        let (first, last) = (members[0], members[members.len() - 1]);
        let extent = Extent::Offsets { first: Offset(first), last: Offset(last) };
        self.told.push((extent, key.clone(), members));
    }

    fn rise(&mut self, to: u64) {
        self.watermark = self.watermark.max(to);
        let watermark = self.watermark as i64;
        let (mut closed, open): (Vec<_>, Vec<_>) =
            self.open.drain(..).partition(|window| window.1 <= watermark);
        self.open = open;
        closed.sort_by(|a, b| (a.1, a.0, &a.2).cmp(&(b.1, b.0, &b.2)));
        for (start, end, key, members) in closed {
            self.told.push((Extent::Times { start, end }, key, members));
        }
    }

    fn flush(&mut self) {
        let mut counting: Vec<(u64, Key)> =
            self.counting.iter().map(|(k, m)| (m[m.len() - 1], k.clone())).collect();
        counting.sort();
        counting.iter().for_each(|(_, key)| self.tell_count(key));
        if let Some(end) = self.open.iter().map(|window| window.1).max() {
            self.rise(end as u64);
        }
    }
}

fn key_of(key: Option<u8>) -> Key {
    key.map_or(Key::none(), |key| Key::new(&[b'a' + key]))
}

/// The windows under test with the messages of their source.
struct Run {
    spec: Spec,
    windows: Windows,
    log: Vec<Message>,
    told: Vec<Told>,
    late: Vec<u64>,
    /// The last commit: what it said, how much had been told by then, and how much was late.
    commit: (Checkpoint, usize, usize),
}

impl Run {
    fn new(spec: Spec) -> Run {
        let mut windows = Windows::new(&spec, Offset(0));
        let checkpoint = windows.checkpoint(Offset(0));
        Run {
            spec,
            windows,
            log: Vec::new(),
            told: Vec::new(),
            late: Vec::new(),
            commit: (checkpoint, 0, 0),
        }
    }

    fn tell(&mut self) {
        while let Some(closed) = self.windows.next_closed() {
            let offsets = closed.members.runs().iter().flat_map(|run| {
                assert_eq!(run.offsets.start.0 * 10..run.offsets.end.0 * 10, run.place);
                run.offsets.start.0..run.offsets.end.0
            });
            self.told.push((closed.extent, closed.key, offsets.collect()));
        }
    }

    fn feed(&mut self, message: Message) -> Fate {
        let fate = self.windows.handle_message(message).expect("within bounds");
        self.tell();
        fate
    }

    fn message(&mut self, offset: u64, time: Option<u64>, key: &Key) {
        let message = Message {
            offset: Offset(offset),
            time: time.map(WallTime),
            key: key.clone(),
            place: offset * 10..offset * 10 + 10,
        };
        self.log.push(message.clone());
        match self.feed(message) {
            Fate::Taken => {}
            Fate::Late | Fate::Untimed => self.late.push(offset),
            Fate::Reread => panic!("{offset} is new"),
        }
    }

    fn next(&self) -> Offset {
        self.log.last().map_or(Offset(0), |message| Offset(message.offset.0 + 1))
    }

    fn commit(&mut self) {
        let checkpoint = self.windows.checkpoint(self.next());
        assert!(checkpoint.is_sound(), "{checkpoint:?}");
        self.commit = (checkpoint, self.told.len(), self.late.len());
    }

    /// Back to the last commit, and through the messages again that were open there.
    fn restart(&mut self) {
        let (checkpoint, told, late) = self.commit.clone();
        self.told.truncate(told);
        self.late.truncate(late);
        self.log.retain(|message| message.offset < checkpoint.next);
        self.windows = Windows::resume(&self.spec, checkpoint.clone());
        for message in self.log.clone() {
            if message.offset >= checkpoint.floor {
                assert_eq!(self.feed(message), Fate::Reread);
            }
        }
        assert_eq!(self.told.len(), told, "what was told is not told again");
    }
}

/// Does events with or without crashes; each crash goes back to the last commit and does again
/// what came behind it.
fn run(spec: Spec, events: &[Event], has_crashes: bool) -> Run {
    let mut run = Run::new(spec);
    let mut committed_at = 0;
    let mut crashed = vec![false; events.len()];
    let mut at = 0;
    while at < events.len() {
        let event = &events[at];
        at += 1;
        match event {
            Event::Message { skip, time, key } => {
                let offset = run.next().0 + skip;
                run.message(offset, *time, &key_of(*key));
            }
            Event::Clock(now) => {
                let next = run.next();
                run.windows.handle_clock(next, WallTime(*now));
                run.tell();
            }
            Event::Flush => {
                let next = run.next();
                run.windows.handle_flush(next);
                run.tell();
            }
            Event::Commit => {
                run.commit();
                committed_at = at;
            }
            Event::Crash if has_crashes && !crashed[at - 1] => {
                crashed[at - 1] = true;
                run.restart();
                at = committed_at;
            }
            Event::Crash => {}
        }
    }
    run
}

fn model(spec: Spec, events: &[Event]) -> Model {
    let mut model = Model::new(spec);
    for event in events {
        match event {
            Event::Message { skip, time, key } => {
                model.message(model.next + skip, *time, &key_of(*key));
            }
            Event::Clock(now) if spec.has_times() => model.rise(now.saturating_sub(spec.late.0)),
            Event::Flush => model.flush(),
            Event::Clock(_) | Event::Commit | Event::Crash => {}
        }
    }
    model
}

fn specs() -> impl Strategy<Value = Spec> {
    let kind = prop_oneof![
        (1u64..30).prop_map(|n| Kind::Aligned { size: Micros(n), every: Micros(n) }),
        (1u64..30, 1u64..30)
            .prop_map(|(a, b)| Kind::Aligned { size: Micros(a.max(b)), every: Micros(a.min(b)) }),
        (1u64..20).prop_map(|gap| Kind::Session { gap: Micros(gap) }),
        (1u64..6).prop_map(Kind::Count),
    ];
    (kind, 0u64..30).prop_map(|(kind, late)| Spec { kind, late: Micros(late) })
}

/// Times that go on, with some disorder: each as the step from a time that grows by and by.
fn events(has_clock: bool) -> impl Strategy<Value = Vec<Event>> {
    let time = prop_oneof![20 => (-25i64..6).prop_map(Some), 1 => Just(None)];
    let key = prop_oneof![Just(None), (0u8..3).prop_map(Some)];
    let message = (0u64..3, time, key).prop_map(|(skip, time, key)| (skip.max(1) - 1, time, key));
    let step = prop_oneof![
        16 => message.prop_map(|(skip, time, key)| (0, skip, time, key)),
        2 => (-20i64..40).prop_map(|ahead| (1, 0, Some(ahead), None)),
        1 => Just((2, 0, None, None)),
        3 => Just((3, 0, None, None)),
        3 => Just((4, 0, None, None)),
    ];
    proptest::collection::vec(step, 1..120).prop_map(move |steps| {
        let mut now = 30i64;
        let mut events = Vec::new();
        for (what, skip, time, key) in steps {
            let at = |ahead: i64| (now + ahead).max(0) as u64;
            events.push(match what {
                0 => Event::Message { skip, time: time.map(at), key },
                1 if has_clock => Event::Clock(at(time.unwrap_or(0))),
                2 if has_clock => Event::Flush,
                3 => Event::Commit,
                4 => Event::Crash,
                _ => continue,
            });
            now += 2;
        }
        events
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Also with a clock that is set back, and flushes in the midst.
    #[test]
    fn windows_are_those_of_the_model(spec in specs(), events in events(true)) {
        let run = run(spec, &events, false);
        let model = model(spec, &events);
        prop_assert_eq!(&run.told, &model.told);
        prop_assert_eq!(&run.late, &model.late);
    }

    #[test]
    fn crashes_change_nothing(spec in specs(), events in events(true)) {
        let undisturbed = run(spec, &events, false);
        let mut crashed = run(spec, &events, true);
        prop_assert_eq!(&crashed.told, &undisturbed.told);
        prop_assert_eq!(&crashed.late, &undisturbed.late);
        // What is open is the same, too.
        let next = crashed.next();
        crashed.windows.handle_flush(next);
        crashed.tell();
        let events = [events, vec![Event::Flush]].concat();
        prop_assert_eq!(&crashed.told, &run(spec, &events, false).told);
    }

    /// Without a clock, the state after a restart is the very same.
    #[test]
    fn a_restart_comes_to_the_same_checkpoint(spec in specs(), events in events(false)) {
        let mut run = run(spec, &events, false);
        run.commit();
        let (before, figures) = (run.commit.0.clone(), run.windows.figures());
        run.restart();
        let next = run.next();
        run.windows.handle_clock(next, WallTime(0));
        run.tell();
        prop_assert_eq!(run.windows.checkpoint(next), before);
        prop_assert_eq!(run.windows.figures(), figures);
    }

    /// A queue that keeps its messages gives the same windows when it is read again, though no
    /// clock helps then: messages are stored at no earlier time than the clock has told before.
    #[test]
    fn a_replay_gives_the_same_windows(spec in specs(), events in events(true)) {
        let mut time_floor = 0;
        let mut with_clock = Vec::new();
        for event in events {
            with_clock.push(match event {
                Event::Message { skip, time, key } => {
                    time_floor = time_floor.max(time.unwrap_or(0));
                    Event::Message { skip, time: Some(time_floor), key }
                }
                Event::Clock(now) => {
                    time_floor = time_floor.max(now);
                    Event::Clock(time_floor)
                }
                _ => continue,
            });
        }
        let is_message = |event: &&Event| matches!(event, Event::Message { .. });
        let mut replay: Vec<Event> = with_clock.iter().filter(is_message).cloned().collect();
        with_clock.push(Event::Flush);
        replay.push(Event::Flush);
        let first = run(spec, &with_clock, false);
        prop_assert_eq!(first.late.len(), 0);
        prop_assert_eq!(first.told, run(spec, &replay, false).told);
    }
}
