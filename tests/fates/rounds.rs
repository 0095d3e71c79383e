//! The same fates while servers and receivers are killed at random moments.
//!
//! The delivery limit is so high that kills alone do not make a dead letter: a message whose
//! command was interrupted has one attempt more, and its fate goes by the attempt.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::commands::await_quiet;
use crate::fate::{Fate, Script, TIMEOUT, assert_same, letters};
use crate::harness::{Random, Running, Store, eventually};
use crate::size;

const LIMIT: u32 = 12;
const RECEIVERS: usize = 2;
const PARALLEL: usize = 4;

/// How many commands one kill may interrupt, or make go unheard.
const IN_FLIGHT: usize = RECEIVERS * PARALLEL;

/// What receivers may begin without another word from their server: what they have credit for.
const UNHEARD: usize = 2 * IN_FLIGHT;

struct Crew<'a> {
    store: &'a Store,
    script: String,
    receivers: Vec<Running>,
}

impl<'a> Crew<'a> {
    fn new(store: &'a Store, script: &Script) -> Crew<'a> {
        let mut crew = Crew { store, script: script.text(), receivers: Vec::new() };
        crew.receivers = (0..RECEIVERS).map(|_| crew.receiver()).collect();
        crew
    }

    fn receiver(&self) -> Running {
        let args = ["-P4", "--timeout", TIMEOUT, "--backoff", "10ms..100ms", "work"];
        self.store.spawn("mq-recv", &[&args[..], &["--", "sh", "-c", &self.script]].concat())
    }

    /// Kills a receiver as it is; its commands go on by themselves. Another takes its place.
    fn kill(&mut self, index: usize) {
        self.receivers[index].signal(Signal::KILL);
        self.receivers[index].await_end();
        self.receivers[index] = self.receiver();
    }

    fn assert_well(&mut self) {
        for receiver in &mut self.receivers {
            assert!(!receiver.has_ended(), "a receiver ended: {}", receiver.stderr());
        }
    }

    fn end(self) {
        for mut receiver in self.receivers {
            receiver.signal(Signal::TERM);
            assert_eq!(receiver.await_end(), 143, "{}", receiver.stderr());
        }
    }
}

#[test]
fn fates_are_the_same_under_kills_of_servers_and_receivers() {
    let rounds = size("MQ_ROUNDS", 6);
    let portion = 150;
    let store = Store::new();
    let limit = LIMIT.to_string();
    store.run("mq-admin", &["declare", "work", "--delivery-limit", &limit], b"").ok();
    let script = Script::new(&store, "work");
    let mut crew = Crew::new(&store, &script);
    // Number 11 hangs for ever, which takes too long with this limit.
    let numbers: Vec<u64> = (1..=rounds * portion).filter(|n| *n != 11).collect();
    let mut random = Random(7);
    let mut kills = 0;
    let mut server_kills = Vec::new();
    for of_round in numbers.chunks(portion as usize) {
        let lines: String = of_round.iter().map(|n| Fate::line(*n)).collect();
        let mut sender = store.spawn("mq-send", &["work"]);
        sender.write(lines.as_bytes());
        drop(sender.take_stdin());
        let tried = || script.tries().len();
        let goal = tried() + 1 + random.below(portion) as usize;
        let patience = Instant::now() + Duration::from_secs(10);
        eventually("commands run", || (tried() >= goal || Instant::now() > patience).then_some(()));
        let whom = random.below(5);
        if whom != 0 {
            crew.kill((whom % RECEIVERS as u64) as usize);
            kills += 1;
        }
        if whom == 0 || whom > 2 {
            let before = tried();
            store.kill_server();
            server_kills.push(before.saturating_sub(UNHEARD)..tried() + IN_FLIGHT);
            kills += 1;
        }
        sender.finish().ok();
        crew.assert_well();
    }
    await_quiet(&store, "work");
    crew.assert_well();
    crew.end();

    let dies = |n: &u64| Fate::of(*n).dies_after(LIMIT).is_some();
    let (dead, acked): (BTreeSet<u64>, BTreeSet<u64>) = numbers.iter().partition(|n| dies(n));
    let done = script.done();
    assert_same("acked", &done.keys().copied().collect(), &acked);
    let twice: usize = done.values().map(|attempts| attempts.len() - 1).sum();
    assert!(twice <= kills * IN_FLIGHT, "{twice} succeeded twice under {kills} kills");

    let letters = letters(&store, "work.dead");
    assert_same("dead", &letters.keys().copied().collect(), &dead);
    let first = 0;
    for (letter, number) in letters.values().map(|letter| (letter, letter.n)) {
        let place = numbers.binary_search(&number).expect("a number of ours") as u64;
        letter.check("work", first + place);
        let due = Fate::of(number).dies_after(LIMIT).expect("it dies");
        assert!(letter.attempts() >= due && letter.attempts() <= LIMIT, "attempts of {number}");
    }
    explain_repeats(&script, &server_kills);
    assert_attempts_survive(&script, &numbers, kills);
    println!("{kills} kills, {} messages, {twice} done twice", numbers.len());
}

/// An attempt is made twice only if its command began and ended while its server was dying, which
/// so never read a word of it.
fn explain_repeats(script: &Script, server_kills: &[Range<usize>]) {
    let mut first = HashMap::new();
    for (place, tried) in script.tries().into_iter().enumerate() {
        if let Some(before) = first.insert(tried, place) {
            let explained = server_kills.iter().any(|kill| kill.contains(&before));
            let (n, attempt) = tried;
            assert!(
                explained,
                "attempt {attempt} on {n} was made twice, as number {before} and {place} of all; \
                 servers were killed at {server_kills:?}"
            );
        }
    }
}

/// No attempt is made that neither a fate nor a kill asks for. One that was counted may have been
/// cut off before it could say so.
fn assert_attempts_survive(script: &Script, numbers: &[u64], kills: usize) {
    let tried = script.tried();
    let (mut more, mut unseen) = (0, 0);
    for n in numbers {
        let mut attempts = tried.get(n).unwrap_or_else(|| panic!("{n} was never tried")).clone();
        attempts.sort_unstable();
        attempts.dedup();
        let last = *attempts.last().expect("one");
        assert!(last <= LIMIT, "{n} was tried as {attempts:?}");
        more += last.saturating_sub(Fate::of(*n).attempts(LIMIT)) as usize;
        unseen += last as usize - attempts.len();
    }
    assert!(more <= kills * IN_FLIGHT, "{more} attempts too many under {kills} kills");
    assert!(unseen <= kills * IN_FLIGHT, "{unseen} attempts without a command, {kills} kills");
}
