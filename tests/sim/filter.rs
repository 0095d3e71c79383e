//! What simulated pipes do with messages: filters with and without state, of single messages and of
//! windows, and what one undisturbed run of them gives.

use std::collections::{BTreeMap, BTreeSet};

use mq::pipe::window::{self, Closed, Fate, Key, Windows};
use mq::units::{Micros, Offset, WallTime};

use crate::model::Message;
use crate::rng::Random;

/// How a pipe works on its input.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Messages are put into windows.
    pub windows: Option<window::Spec>,
    /// The filter keeps something from run to run.
    pub state: bool,
    /// Filters at once, each for its keys.
    pub parts: u64,
}

/// What a filter keeps: how many messages of each key it has seen, by the part that has the key.
pub type State = BTreeMap<u64, u64>;

impl Manner {
    pub fn any(rng: &mut Random) -> Manner {
        let late = Micros(rng.below(2) * 5_000);
        let millis = Micros::from_millis;
        let aligned =
            |size, every| window::Kind::Aligned { size: millis(size), every: millis(every) };
        let windows = match rng.below(8) {
            0 => Some(aligned(10, 10)),
            1 => Some(aligned(20, 5)),
            2 => Some(window::Kind::Session { gap: millis(3) }),
            3 => Some(window::Kind::Count(1 + rng.below(6))),
            _ => None,
        };
        let late = |kind| match kind {
            window::Kind::Count(_) => Micros(0),
            _ => late,
        };
        let windows = windows.map(|kind| window::Spec { kind, late: late(kind) });
        Manner { windows, state: rng.one_in(2), parts: 1 + rng.below(2) }
    }
}

fn noise(message: Message) -> u64 {
    Random(message.sender << 32 | message.number).next()
}

/// The key of a message.
pub fn key_of(message: Message) -> u64 {
    noise(message) % 3
}

/// The time of a message, which is about in order; a few have none.
pub fn time_of(message: Message) -> Option<WallTime> {
    let noise = noise(message) >> 8;
    let time = 1_000_000 + message.number * 1_000 + noise % 8_000;
    (!noise.is_multiple_of(23)).then_some(WallTime(time))
}

/// Whether the filter drops a message.
fn is_dropped(message: Message) -> bool {
    message.number % 7 == 3
}

/// What the filter of a part says of its messages; none if it fails on one of them.
pub fn run(
    manner: Manner,
    part: u64,
    messages: &[Message],
    state: &mut State,
) -> Option<Vec<String>> {
    let ours = |message: &&Message| part_of(manner, key_of(**message)) == part;
    let mut outputs = Vec::new();
    for message in messages.iter().filter(ours) {
        if message.is_poison() {
            return None;
        }
        let key = key_of(*message);
        let seen = state.entry(key).or_default();
        *seen += u64::from(manner.state);
        if !is_dropped(*message) {
            outputs.push(format!("{key}/{seen}/{}", message.body()));
        }
    }
    Some(outputs)
}

/// The part that has a key.
pub fn part_of(manner: Manner, key: u64) -> u64 {
    key % manner.parts
}

/// The key of a window.
pub fn key_of_window(closed: &Closed) -> u64 {
    closed.key.bytes().map_or(9, |key| u64::from(key[0]))
}

/// What the filter says of a window.
pub fn run_window(manner: Manner, closed: &Closed, state: &mut State) -> String {
    let key = key_of_window(closed);
    let seen = state.entry(key).or_default();
    *seen += closed.members.count() * u64::from(manner.state);
    let runs: Vec<String> =
        closed.members.runs().iter().map(|run| format!("{:?}", run.offsets)).collect();
    format!("{key}/{seen}/{:?}/{}", closed.extent, runs.join("+"))
}

/// A state as a filter writes it to a file.
pub fn write_state(state: &State) -> String {
    state.iter().map(|(key, seen)| format!("{key} {seen}\n")).collect()
}

/// A state as it reads it.
pub fn read_state(text: &[u8]) -> State {
    let line = |line: &str| {
        let (key, seen) = line.split_once(' ').expect("a line of ours");
        (key.parse().expect("a key"), seen.parse().expect("a count"))
    };
    std::str::from_utf8(text).expect("text of ours").lines().map(line).collect()
}

/// Hands a message to windows; those that it closes.
pub fn hand_in(windows: &mut Windows, offset: Offset, message: Message) -> (Fate, Vec<Closed>) {
    let message = window::Message {
        offset,
        time: time_of(message),
        key: Key::new(&[key_of(message) as u8]),
        place: 0..0,
    };
    let fate = windows.handle_message(message).expect("there is room");
    let mut closed = Vec::new();
    while let Some(one) = windows.next_closed() {
        closed.push(one);
    }
    (fate, closed)
}

/// What one undisturbed run gives.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub outputs: Vec<String>,
    pub state: State,
    pub dead: BTreeSet<Message>,
    pub late: u64,
    pub untimed: u64,
}

/// One run over the whole input, without anything that gets in its way.
pub fn undisturbed(manner: Manner, input: &BTreeMap<Offset, Message>) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(spec) = manner.windows else {
        for message in input.values() {
            let part = part_of(manner, key_of(*message));
            match run(manner, part, &[*message], &mut outcome.state) {
                Some(outputs) => outcome.outputs.extend(outputs),
                None => {
                    outcome.dead.insert(*message);
                }
            }
        }
        return outcome;
    };
    let mut windows = Windows::new(&spec, Offset(0));
    let mut all = Vec::new();
    for (offset, message) in input {
        let (fate, closed) = hand_in(&mut windows, *offset, *message);
        outcome.late += u64::from(fate == Fate::Late);
        outcome.untimed += u64::from(fate == Fate::Untimed);
        all.extend(closed);
    }
    let next = input.last_key_value().map_or(Offset(0), |(last, _)| Offset(last.0 + 1));
    windows.handle_flush(next);
    all.extend(std::iter::from_fn(|| windows.next_closed()));
    for closed in all {
        let output = run_window(manner, &closed, &mut outcome.state);
        outcome.outputs.push(output);
    }
    outcome
}

/// The same outputs in an order that does not depend on where batches ended: filters for several
/// parts of the keys say theirs one behind the other.
pub fn by_key(manner: Manner, mut outputs: Vec<String>) -> Vec<String> {
    if manner.parts > 1 && manner.windows.is_none() {
        outputs.sort_by_key(|output| output.split('/').next().map(str::to_owned));
    }
    outputs
}
