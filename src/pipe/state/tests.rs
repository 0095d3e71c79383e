//! The state directory, with a crash after every step.

use std::fs::{self, File};

use super::*;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

const PIPE: &str = "counts";

fn destination(n: u128) -> QueueId {
    QueueId(uuid::Uuid::from_u128(n))
}

/// A pipe with a state directory, and what its destination has in its last commit.
struct Bench {
    root: tempfile::TempDir,
    parts: usize,
    epoch: u32,
    mark: Option<StateMark>,
}

impl Bench {
    fn new(parts: usize) -> Bench {
        let root = tempfile::tempdir().expect("a directory");
        Bench { root, parts, epoch: 0, mark: None }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("state")
    }

    fn claim(&self) -> Claim<'_> {
        Claim {
            pipe: PIPE,
            destination: destination(1),
            parts: self.parts,
            epoch: Epoch(self.epoch),
            mark: self.mark.as_ref(),
            is_reset: false,
        }
    }

    fn open(&mut self) -> StateDir {
        self.epoch += 1;
        StateDir::open(&self.dir(), &self.claim(), None).expect("opened")
    }

    fn error<'a>(&'a self, change: impl FnOnce(&mut Claim<'a>)) -> StateError {
        let mut claim = self.claim();
        change(&mut claim);
        StateDir::open(&self.dir(), &claim, None).expect_err("refused")
    }

    /// What the filter of a part would find.
    fn content(&mut self, part: usize) -> String {
        let mut state = self.open();
        let path = state.begin(part).expect("begun");
        let content = fs::read_to_string(path.join("count")).unwrap_or_default();
        state.abandon(part).expect("abandoned");
        content
    }

    fn states(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir())
            .expect("there")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
        let mut states: Vec<String> = names.filter(|name| state_name(name).is_some()).collect();
        states.sort();
        states
    }
}

/// What a filter does: it adds a letter to a file.
fn append(path: &Path, letter: &str) {
    let file = path.join("count");
    let old = fs::read_to_string(&file).unwrap_or_default();
    fs::write(file, old + letter).expect("written");
}

/// The steps of three batches: one that works, one whose filter fails once, one of two runs.
#[derive(Clone, Copy, Debug)]
enum Step {
    Begin,
    Write(&'static str),
    Keep,
    Abandon,
    Seal,
    Commit,
    Committed,
}

const STEPS: &[Step] = &[
    Step::Begin,
    Step::Write("a"),
    Step::Keep,
    Step::Seal,
    Step::Commit,
    Step::Committed,
    Step::Begin,
    Step::Write("x"),
    Step::Abandon,
    Step::Begin,
    Step::Write("b"),
    Step::Keep,
    Step::Seal,
    // The next batch is worked on while the commit is on its way.
    Step::Begin,
    Step::Write("c"),
    Step::Commit,
    Step::Committed,
    Step::Keep,
    Step::Begin,
    Step::Write("d"),
    Step::Keep,
    Step::Seal,
    Step::Commit,
    Step::Committed,
];

/// After each commit: what the state then is.
const COMMITTED: [&str; 4] = ["", "a", "ab", "abcd"];

#[test]
fn a_crash_after_any_step_leaves_the_state_of_the_last_commit() {
    for steps in 0..=STEPS.len() {
        let mut bench = Bench::new(1);
        let mut state = bench.open();
        let mut path = PathBuf::new();
        let mut sealed = std::collections::VecDeque::new();
        let mut commits = 0;
        for step in &STEPS[..steps] {
            match step {
                Step::Begin => path = state.begin(0).expect("begun"),
                Step::Write(letter) => append(&path, letter),
                Step::Keep => state.keep(0).expect("kept"),
                Step::Abandon => state.abandon(0).expect("abandoned"),
                Step::Seal => sealed.push_back(state.seal().expect("sealed")),
                Step::Commit => {
                    bench.mark = sealed.pop_front();
                    commits += 1;
                }
                Step::Committed => {
                    let mark = bench.mark.clone().expect("there is a commit");
                    state.committed(&mark).expect("cleared");
                }
            }
        }
        drop(state);
        assert_eq!(bench.content(0), COMMITTED[commits], "after {steps} steps");
        assert_eq!(bench.states().len(), usize::from(commits > 0), "after {steps} steps");
        // A copy or a removal that a crash cut short.
        let half = bench.dir().join("0.99.1");
        fs::create_dir_all(half.join("sub")).expect("made");
        assert_eq!(bench.content(0), COMMITTED[commits]);
        assert!(!half.exists());
    }
}

#[test]
fn people_find_the_committed_state() {
    for (parts, link) in [(1, "current"), (2, "current.1")] {
        let mut bench = Bench::new(parts);
        let mut state = bench.open();
        let path = state.begin(parts - 1).expect("begun");
        append(&path, "a");
        state.keep(parts - 1).expect("kept");
        let mark = state.seal().expect("sealed");
        let file = bench.dir().join(link).join("count");
        assert!(!file.exists(), "before the commit");
        state.committed(&mark).expect("committed");
        assert_eq!(fs::read_to_string(file).expect("there"), "a");
    }
}

#[test]
fn parts_have_states_of_their_own() {
    let mut bench = Bench::new(2);
    let mut state = bench.open();
    for (part, letter) in [(0, "a"), (1, "b")] {
        let path = state.begin(part).expect("begun");
        append(&path, letter);
        state.keep(part).expect("kept");
    }
    let first = state.seal().expect("sealed");
    state.committed(&first).expect("committed");
    let path = state.begin(1).expect("begun");
    append(&path, "c");
    state.keep(1).expect("kept");
    let second = state.seal().expect("sealed");
    assert_eq!(first.parts[0], second.parts[0], "a part that did not change is not copied");
    bench.mark = Some(second);
    drop(state);
    assert_eq!((bench.content(0), bench.content(1)), ("a".into(), "bc".into()));
}

#[test]
fn what_was_kept_goes_when_it_is_done_again() {
    let mut bench = Bench::new(1);
    let mut state = bench.open();
    let path = state.begin(0).expect("begun");
    append(&path, "a");
    state.keep(0).expect("kept");
    state.abandon_kept().expect("abandoned");
    let mark = state.seal().expect("sealed");
    assert_eq!(mark.parts, [None]);
    assert!(bench.states().is_empty());
}

#[test]
fn a_directory_of_anything_else_is_not_touched() {
    let bench = Bench::new(1);
    fs::create_dir(bench.dir()).expect("made");
    fs::write(bench.dir().join("thesis.tex"), "years of work").expect("written");
    let error = bench.error(|claim| claim.is_reset = true);
    assert!(matches!(error, StateError::Foreign { .. }), "{error}");
    assert!(bench.dir().join("thesis.tex").exists() && !bench.dir().join(OWNER).exists());
}

#[test]
fn a_state_goes_on_only_with_what_it_belongs_to() {
    let other = StateMark { id: uuid::Uuid::from_u128(7), parts: vec![None, None] };
    let mut bench = Bench::new(2);
    let mut state = bench.open();
    let path = state.begin(0).expect("begun");
    append(&path, "a");
    state.keep(0).expect("kept");
    bench.mark = Some(state.seal().expect("sealed"));
    let lock = File::open(bench.dir()).expect("there");
    let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(locked, Err(Errno::WOULDBLOCK), "one instance at a time");
    drop(state);

    let error = bench.error(|claim| claim.parts = 3);
    assert!(matches!(error, StateError::Parts { had: 2, wanted: 3, .. }), "{error}");
    let error = bench.error(|claim| claim.pipe = "other");
    assert!(matches!(error, StateError::Other { is_same_pipe: false, .. }), "{error}");
    let error = bench.error(|claim| (claim.pipe, claim.is_reset) = ("other", true));
    assert!(matches!(error, StateError::Other { is_same_pipe: false, .. }), "{error}");
    let error = bench.error(|claim| claim.destination = destination(2));
    assert!(matches!(error, StateError::Other { is_same_pipe: true, .. }), "{error}");
    let error = bench.error(|claim| claim.mark = Some(&other));
    assert!(matches!(error, StateError::Missing { .. }), "{error}");
    assert_eq!(bench.content(0), "a");

    let reset = Claim { is_reset: true, parts: 3, destination: destination(2), ..bench.claim() };
    let state = StateDir::open(&bench.dir(), &reset, None).expect("thrown away");
    drop(state);
    assert!(bench.states().is_empty());
    let error = bench.error(|_| {});
    assert!(matches!(error, StateError::Other { .. } | StateError::Missing { .. }), "{error}");
}

#[test]
fn a_committed_state_that_is_gone_is_missed() {
    let mut bench = Bench::new(1);
    let mut state = bench.open();
    state.begin(0).expect("begun");
    state.keep(0).expect("kept");
    bench.mark = Some(state.seal().expect("sealed"));
    drop(state);
    tree::remove(&System, &bench.dir().join("0.1.1")).expect("removed");
    let error = bench.error(|_| {});
    assert!(error.to_string().contains("0.1.1"), "{error}");
    tree::remove(&System, &bench.dir()).expect("removed");
    let error = bench.error(|_| {});
    assert!(matches!(error, StateError::Missing { .. }), "{error}");
}

/// Once, a filter could put a link in the place of its state, which was committed, and could not be
/// copied ever after.
#[test]
fn a_state_that_is_no_directory_is_not_kept() {
    let mut bench = Bench::new(1);
    let mut state = bench.open();
    let path = state.begin(0).expect("begun");
    fs::remove_dir(&path).expect("removed");
    std::os::unix::fs::symlink("/etc", &path).expect("linked");
    assert!(matches!(state.keep(0), Err(StateError::NoDirectory { .. })));
    let path = state.begin(0).expect("begun");
    fs::remove_dir(&path).expect("removed");
    assert!(matches!(state.keep(0), Err(StateError::NoDirectory { .. })));
}

#[test]
fn a_mark_reads_back_as_it_was_written() {
    let name = Name { epoch: Epoch(3), number: 17 };
    let mark = StateMark { id: uuid::Uuid::from_u128(5), parts: vec![Some(name), None] };
    let text = serde_json::to_string(&mark).expect("written");
    assert!(text.ends_with(r#""parts":["3.17",null]}"#), "{text}");
    assert_eq!(serde_json::from_str::<StateMark>(&text).expect("read"), mark);
    for bad in ["", "3", "3.", ".1", "3.x", "+3.1", "03.1"] {
        assert!(bad.parse::<Name>().is_err(), "{bad}");
    }
}
