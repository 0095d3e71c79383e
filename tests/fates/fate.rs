//! The fate of a message, written in its body; the command that brings it about; what the command
//! notes; what must come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{Random, Store};

/// What the command does with a message. Those with a number do it that often, then succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Ack,
    /// Exits with 1.
    Fail(u32),
    /// Does not end before the timeout.
    Hang(u32),
    /// Kills itself.
    Kill(u32),
    /// Exits with 65.
    Poison,
}

/// More often than any delivery limit.
const EVER: u32 = 1_000_000;

/// How long a command may take; those that hang take so long each time.
pub const TIMEOUT: &str = "2s";

impl Fate {
    /// The fate of message number `n`. Few hang, as each of those takes its time.
    pub fn of(n: u64) -> Fate {
        match n {
            7 => return Fate::Hang(1),
            11 => return Fate::Hang(EVER),
            _ => {}
        }
        match Random(n).below(10_000) {
            0..7_000 => Fate::Ack,
            7_000..7_600 => Fate::Fail(1),
            7_600..8_200 => Fate::Fail(2),
            8_200..8_800 => Fate::Fail(EVER),
            8_800..9_100 => Fate::Kill(1),
            9_100..9_400 => Fate::Kill(EVER),
            9_400..9_996 => Fate::Poison,
            9_996..9_998 => Fate::Hang(2),
            _ => Fate::Hang(EVER),
        }
    }

    /// The line of message number `n`.
    pub fn line(n: u64) -> String {
        let (word, times) = match Fate::of(n) {
            Fate::Ack => ("ack", 0),
            Fate::Fail(times) => ("fail", times),
            Fate::Hang(times) => ("hang", times),
            Fate::Kill(times) => ("kill", times),
            Fate::Poison => ("poison", 0),
        };
        format!("{n} {word} {times}\n")
    }

    /// After how many attempts it is a dead letter, with this delivery limit.
    pub fn dies_after(self, limit: u32) -> Option<u32> {
        match self {
            Fate::Ack => None,
            Fate::Fail(times) | Fate::Hang(times) | Fate::Kill(times) => {
                (times >= limit).then_some(limit)
            }
            Fate::Poison => Some(1),
        }
    }

    /// How often it is tried in all.
    pub fn attempts(self, limit: u32) -> u32 {
        self.dies_after(limit).unwrap_or(match self {
            Fate::Fail(times) | Fate::Hang(times) | Fate::Kill(times) => times + 1,
            Fate::Ack | Fate::Poison => 1,
        })
    }

    /// What a dead letter says of the reason, and the stderr that comes with it.
    fn last_words(self, n: u64) -> (String, Option<String>) {
        match self {
            Fate::Fail(_) => ("exit status 1".to_owned(), Some(format!("no {n}\n"))),
            Fate::Poison => ("exit status 65".to_owned(), Some(format!("bad {n}\n"))),
            Fate::Hang(_) => ("timeout after 2 s".to_owned(), None),
            Fate::Kill(_) => ("signal 9".to_owned(), None),
            Fate::Ack => panic!("message {n} never dies"),
        }
    }
}

/// The command, and the files in which it notes what it does.
pub struct Script {
    tried: PathBuf,
    done: PathBuf,
}

impl Script {
    pub fn new(store: &Store, name: &str) -> Script {
        let script = Script {
            tried: store.beside(&format!("{name}.tried")),
            done: store.beside(&format!("{name}.done")),
        };
        for file in [&script.tried, &script.done] {
            std::fs::write(file, "").expect("room for notes");
        }
        script
    }

    /// For `sh -c`. One line per note is one write, so that notes of several do not mix.
    pub fn text(&self) -> String {
        format!(
            "read -r n fate times || exit 99
             echo \"$n $MQ_ATTEMPT\" >> '{tried}'
             case $fate in
             ack) ;;
             fail) [ \"$MQ_ATTEMPT\" -gt \"$times\" ] || {{ echo \"no $n\" >&2; exit 1; }} ;;
             hang) [ \"$MQ_ATTEMPT\" -gt \"$times\" ] || exec sleep 20 ;;
             kill) [ \"$MQ_ATTEMPT\" -gt \"$times\" ] || kill -9 $$ ;;
             poison) echo \"bad $n\" >&2; exit 65 ;;
             *) exit 98 ;;
             esac
             echo \"$n $MQ_ATTEMPT\" >> '{done}'",
            tried = self.tried.display(),
            done = self.done.display()
        )
    }

    /// The attempts on each message, in the order in which they began.
    pub fn tried(&self) -> BTreeMap<u64, Vec<u32>> {
        by_message(self.tries())
    }

    /// All attempts in the order in which they began: message and attempt.
    pub fn tries(&self) -> Vec<(u64, u32)> {
        notes(&self.tried)
    }

    /// The attempts on each message that succeeded.
    pub fn done(&self) -> BTreeMap<u64, Vec<u32>> {
        by_message(notes(&self.done))
    }
}

fn notes(file: &std::path::Path) -> Vec<(u64, u32)> {
    let text = std::fs::read_to_string(file).expect("notes");
    let numbers = |line: &str| {
        let (n, attempt) = line.split_once(' ')?;
        Some((n.parse().ok()?, attempt.parse().ok()?))
    };
    text.lines().map(|line| numbers(line).unwrap_or_else(|| panic!("no note: {line:?}"))).collect()
}

fn by_message(notes: Vec<(u64, u32)>) -> BTreeMap<u64, Vec<u32>> {
    let mut attempts: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (n, attempt) in notes {
        attempts.entry(n).or_default().push(attempt);
    }
    attempts
}

/// The numbers of the messages that must be dead in the end.
pub fn computed_dead(messages: u64, limit: u32) -> BTreeSet<u64> {
    (1..=messages).filter(|n| Fate::of(*n).dies_after(limit).is_some()).collect()
}

/// The numbers of the messages that must be acknowledged in the end.
pub fn computed_acked(messages: u64, limit: u32) -> BTreeSet<u64> {
    (1..=messages).filter(|n| Fate::of(*n).dies_after(limit).is_none()).collect()
}

/// A dead letter.
pub struct Letter {
    pub n: u64,
    envelope: Value,
}

impl Letter {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.envelope["headers"][name].as_str()
    }

    pub fn attempts(&self) -> u32 {
        let text = self.header("mq-dead-attempts").expect("attempts");
        text.parse().expect("a number")
    }

    fn time(&self, name: &str) -> jiff::Timestamp {
        let text = self.header(name).unwrap_or_else(|| panic!("no {name} in {}", self.envelope));
        text.parse().unwrap_or_else(|e| panic!("{name} {text}: {e}"))
    }

    /// Where it came from and when it died.
    pub fn check(&self, queue: &str, offset: u64) {
        let n = self.n;
        let header = |name| self.header(name).unwrap_or_else(|| panic!("no {name}: {n}"));
        assert_eq!(self.envelope["data"].as_str(), Some(Fate::line(n).trim_end()), "the body");
        assert_eq!(header("mq-dead-queue"), queue);
        assert_eq!(header("mq-dead-group"), "default");
        assert_eq!(header("mq-dead-offset"), offset.to_string());
        let now = jiff::Timestamp::now();
        assert!(self.time("mq-dead-time") <= now);
        if self.header("mq-dead-first").is_some() {
            assert!(self.time("mq-dead-first") <= self.time("mq-dead-time"));
        }
    }

    /// The reason and the tail of stderr are those of its last attempt.
    pub fn check_last_words(&self) {
        let (reason, stderr) = Fate::of(self.n).last_words(self.n);
        let found = self.header("mq-dead-reason").expect("a reason");
        assert!(found.contains(&reason), "{found:?} is not {reason:?}");
        assert_eq!(self.header("mq-dead-stderr"), stderr.as_deref(), "stderr of {}", self.n);
    }
}

/// Takes all dead letters out of their queue; no message may have two.
pub fn letters(store: &Store, queue: &str) -> BTreeMap<u64, Letter> {
    let done = store.run("mq-recv", &["-e", "-J", queue], b"").ok();
    let mut letters = BTreeMap::new();
    for line in done.text().lines() {
        let envelope: Value = serde_json::from_str(line).expect("JSON lines");
        let body = envelope["data"].as_str().unwrap_or_else(|| panic!("no body in {line}"));
        let n = body.split(' ').next().and_then(|n| n.parse().ok());
        let n = n.unwrap_or_else(|| panic!("a body that nobody sent: {line}"));
        let earlier = letters.insert(n, Letter { n, envelope: envelope.clone() });
        assert!(earlier.is_none(), "message {n} is dead twice: {line}");
    }
    letters
}

/// Panics with a few examples when the sets differ.
pub fn assert_same(what: &str, found: &BTreeSet<u64>, computed: &BTreeSet<u64>) {
    let missing: Vec<_> = computed.difference(found).take(10).map(|n| (n, Fate::of(*n))).collect();
    let excess: Vec<_> = found.difference(computed).take(10).map(|n| (n, Fate::of(*n))).collect();
    assert!(
        missing.is_empty() && excess.is_empty(),
        "{what}: without {missing:?}, with {excess:?}"
    );
}
