//! The worker in its receiver, against a server played by the test; the commands are real.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::*;
use crate::client::format::Shape;
use crate::client::receive::stage::{Play, QUEUE, Said, Server, name, options, range};
use crate::client::receive::{End, Options, Queues};
use crate::units::Micros;
use crate::wire::{Begun, MEMBER_CHANNELS, OpenReceive, QueuePattern, Receiving, Reply};

/// A shell's command for each message, in a directory of its own.
struct Bench {
    dir: tempfile::TempDir,
    work: Work,
}

impl Bench {
    fn new(script: &str) -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let script = format!("cd {}; {script}", dir.path().display());
        let argv = ["sh", "-c", &script].map(OsString::from).to_vec();
        let command = Spec { argv, parallel: 1, timeout: None };
        Bench { dir, work: Work { command, batch: None, group: name("default") } }
    }

    fn start(&self, options: Options) -> Play {
        let work = self.work.clone();
        Play::start(options, move || {
            Worker::new(work, Format::new(Shape::Body(Some(b'\n')))).expect("a shell")
        })
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// A pipe with a name, on which a command can wait for the test.
    fn gate(&self, file: &str) -> PathBuf {
        let path = self.path(file);
        let status = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(status.expect("mkfifo").success());
        path
    }

    fn said(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).unwrap_or_default()
    }
}

/// Waits until a command reads from the gate, and lets it go on.
fn pass(gate: &Path) {
    std::fs::write(gate, "go\n").expect("a command waits");
}

fn open(server: &mut Server, limit: Option<u32>, kept: Vec<OffsetRange>) -> OpenReceive {
    let Some(Said::Open(open)) = server.hear() else { panic!("no OPEN_RECEIVE") };
    server.say(&Reply::Receiving(Receiving {
        queue_id: Some(QUEUE),
        delivery_limit: limit,
        kept,
        ..Receiving::default()
    }));
    open
}

fn nack(
    ranges: &[OffsetRange],
    attempt: u32,
    reason: &str,
    dead: bool,
    stderr: &str,
) -> Option<Said> {
    let (reason, stderr) = (reason.to_owned(), stderr.to_owned());
    let attempt = Attempts(attempt);
    Some(Said::Nack(Nack { ranges: ranges.to_vec(), attempt, dead, reason, stderr }))
}

#[test]
fn a_try_is_announced_before_it_begins_and_acknowledged_when_it_succeeds() {
    let bench = Bench::new("cat >> out");
    let play = bench.start(Options { until_end: true, ..options() });
    let mut server = play.serve();
    assert!(open(&mut server, None, vec![]).tries);
    assert_eq!(server.hear_credit(1), 2, "one that runs and one that waits");
    server.deliver_on(1, 4, b"a\nb\n", 1);
    for (offset, out) in [(4, "a\n"), (5, "a\nb\n")] {
        assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(offset, offset + 1)])));
        assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(offset, offset + 1)])));
        assert!(bench.said("out").starts_with(out));
    }
    assert_eq!(server.hear_credit(4), 4);
    server.say(&Reply::End);
    server.closed();
    let (end, tally, _) = play.ended();
    assert!(matches!(end, Ok(End::Done)), "{end:?}");
    assert_eq!((tally.messages, tally.bytes, tally.failed), (2, 4, 0));
}

#[test]
fn a_failure_is_told_with_its_reason_and_the_end_of_stderr() {
    let bench = Bench::new("read x; echo oh $x >&2; exit $x");
    let play = bench.start(Options { limit: Some(3), ..options() });
    let mut server = play.serve();
    open(&mut server, Some(2), vec![]);
    server.hear_credit(1);
    server.deliver_on(1, 1, b"3\n65\n", 1);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
    assert_eq!(server.hear_news(), nack(&[range(1, 2)], 1, "exit status 3", false, "oh 3\n"));
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(2, 3)])));
    assert_eq!(server.hear_news(), nack(&[range(2, 3)], 1, "exit status 65", true, "oh 65\n"));
    server.hear_credit(3);
    server.deliver_on(1, 1, b"4\n", 2);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
    assert_eq!(server.hear_news(), nack(&[range(1, 2)], 2, "exit status 4", false, "oh 4\n"));
    server.closed();
    let (_, tally, _) = play.ended();
    assert_eq!((tally.messages, tally.failed, tally.dead), (3, 3, 2), "at once, and at the limit");
}

#[test]
fn a_command_that_takes_too_long_fails() {
    let mut bench = Bench::new("exec sleep 60");
    bench.work.command.timeout = Some(Micros::from_millis(50));
    let play = bench.start(Options { limit: Some(1), ..options() });
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    server.hear_credit(1);
    server.deliver_on(1, 1, b"a\n", 1);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
    assert_eq!(server.hear_news(), nack(&[range(1, 2)], 1, "timeout after 0.05 s", false, ""));
    server.closed();
    let _ = play.ended();
}

#[test]
fn a_command_that_does_not_find_what_it_runs_stops_everything() {
    let bench = Bench::new("no-such-command 2>/dev/null");
    let play = bench.start(options());
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    server.hear_credit(1);
    server.deliver_on(1, 1, b"a\nb\n", 1);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
    assert_eq!(server.hear_news(), Some(Said::Release(vec![range(1, 3)])));
    server.closed();
    let (end, tally, _) = play.ended();
    assert!(matches!(end, Err(ReceiveError::Unrunnable { status: 127, .. })), "{end:?}");
    assert_eq!((tally.messages, tally.failed), (0, 0));
}

#[test]
fn a_command_that_is_not_there_any_more_burns_no_attempt() {
    let mut bench = Bench::new("");
    let script = bench.path("script");
    let written = std::process::Command::new("sh")
        .args(["-c", r#"printf '#!/bin/sh\n' > "$1"; chmod +x "$1""#, "sh"])
        .arg(&script)
        .status();
    assert!(written.expect("sh").success());
    bench.work.command.argv = vec![script.clone().into()];
    let play = bench.start(options());
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    server.hear_credit(1);
    std::fs::remove_file(script).expect("it was there");
    server.deliver_on(1, 1, b"a\nb\n", 1);
    assert_eq!(server.hear_news(), Some(Said::Release(vec![range(1, 3)])));
    server.closed();
    let end = play.ended().0;
    assert!(matches!(end, Err(ReceiveError::Command(StartError::NotFound(_)))), "{end:?}");
}

#[test]
fn batches_are_of_one_attempt_and_settled_together() {
    let mut bench = Bench::new(
        "cat > $MQ_OFFSET; echo $MQ_COUNT $MQ_ATTEMPT >> facts; exit $((MQ_ATTEMPT - 1))",
    );
    bench.work.batch = Some(3);
    let play = bench.start(Options { limit: Some(6), ..options() });
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    assert_eq!(server.hear_credit(1), 6);
    // All before the receiver looks what to do next, so that the batches are known.
    let mut frames = Vec::new();
    for (first, lines, attempt) in
        [(1, b"a\nb\n".as_slice(), 1), (9, b"x\n", 2), (3, b"c\nd\n", 1), (12, b"y\n", 2)]
    {
        let (head, bytes) = server.batch(first, lines);
        let head = crate::wire::DeliverHead { attempt, ..head };
        Reply::Deliver(head, &bytes).encode(1, &mut frames);
    }
    server.write(&frames);
    let mut said = Vec::new();
    while said.len() < 6 {
        said.push(server.hear_news().expect("news"));
    }
    let failed = [range(9, 10), range(12, 13)];
    assert!(said.contains(&Said::Begin(vec![range(1, 4)])), "{said:?}");
    assert!(said.contains(&Said::Ack(vec![range(1, 4)])), "{said:?}");
    assert!(said.contains(&Said::Ack(vec![range(4, 5)])), "{said:?}");
    assert!(said.contains(&Said::Begin(failed.to_vec())), "{said:?}");
    assert!(said.contains(&nack(&failed, 2, "exit status 1", false, "").unwrap()), "{said:?}");
    server.closed();
    let _ = play.ended();
    assert_eq!((bench.said("1"), bench.said("9")), ("a\nb\nc\n".into(), "x\ny\n".into()));
    let facts = bench.said("facts");
    let mut facts: Vec<&str> = facts.lines().collect();
    facts.sort_unstable();
    assert_eq!(facts, ["1 1", "2 2", "3 1"]);
}

#[test]
fn facts_are_in_the_environment_and_what_there_is_not_is_absent() {
    let bench = Bench::new("env | grep '^MQ_' | sort > facts");
    let play = bench.start(Options { limit: Some(1), ..options() });
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    server.hear_credit(1);
    server.deliver_on(1, 7, b"a\n", 2);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(7, 8)])));
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(7, 8)])));
    server.closed();
    let _ = play.ended();
    let facts = bench.said("facts");
    let ours = facts.lines().filter(|line| !line.starts_with("MQ_DIR="));
    let expected = [
        "MQ_ATTEMPT=2",
        "MQ_GROUP=default",
        "MQ_OFFSET=7",
        "MQ_QUEUE=q",
        "MQ_TIME=1970-01-01T00:00:00.000001Z",
    ];
    assert_eq!(ours.collect::<Vec<_>>(), expected);
}

#[test]
fn a_signal_lets_running_commands_finish_and_gives_the_rest_back() {
    let bench = Bench::new("cat gate > /dev/null");
    let gate = bench.gate("gate");
    let mut play = bench.start(options());
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    server.hear_credit(1);
    server.deliver_on(1, 1, b"a\nb\n", 1);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
    play.signal(15);
    assert_eq!(server.hear_news(), Some(Said::Release(vec![range(2, 3)])));
    pass(&gate);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(1, 2)])));
    server.closed();
    assert!(matches!(play.ended().0, Ok(End::Signal(15))));
}

#[test]
fn a_second_signal_ends_the_commands_and_gives_their_messages_back() {
    let bench = Bench::new("exec sleep 60");
    let mut play = bench.start(options());
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    server.hear_credit(1);
    server.deliver_on(1, 1, b"a\n", 1);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
    play.signal(2);
    play.signal(2);
    assert_eq!(server.hear_news(), Some(Said::Release(vec![range(1, 2)])));
    server.closed();
    let (end, tally, _) = play.ended();
    assert!(matches!(end, Ok(End::Signal(2))));
    assert_eq!(tally.failed, 0);
}

#[test]
fn what_runs_when_the_server_restarts_is_kept_and_told_to_the_new_one() {
    for (script, expected) in [
        ("cat gate > /dev/null", Some(Said::Ack(vec![range(1, 2)]))),
        ("cat gate > /dev/null; exit 3", nack(&[range(1, 2)], 1, "exit status 3", false, "")),
    ] {
        let bench = Bench::new(script);
        let gate = bench.gate("gate");
        let play = bench.start(Options { until_end: true, ..options() });
        let mut server = play.serve();
        open(&mut server, None, vec![]);
        server.hear_credit(1);
        server.deliver_on(1, 1, b"a\nb\n", 1);
        assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
        drop(server);
        // It ends while there is no server.
        pass(&gate);
        let mut server = play.serve();
        assert_eq!(open(&mut server, None, vec![range(1, 2)]).holding, [range(1, 3)]);
        assert_eq!(server.hear_news(), expected);
        server.say(&Reply::End);
        server.closed();
        let (end, tally, _) = play.ended();
        assert!(matches!(end, Ok(End::Done)), "{end:?}");
        assert_eq!(tally.messages, 1, "the second went to another");
    }
}

#[test]
fn a_new_server_is_told_what_had_begun() {
    let bench = Bench::new("cat gate > /dev/null");
    let gate = bench.gate("gate");
    let mut play = bench.start(options());
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    server.hear_credit(1);
    server.deliver_on(1, 1, b"a\nb\n", 3);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
    drop(server);
    let mut server = play.serve();
    let resumed = open(&mut server, None, vec![range(1, 2)]);
    assert_eq!(resumed.holding, [range(1, 3)]);
    let (attempt, ranges) = (Attempts(3), vec![range(1, 2)]);
    assert_eq!(resumed.begun, [Begun { attempt, ranges }], "not what only waits");
    pass(&gate);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(1, 2)])));
    play.signal(15);
    server.closed();
    let _ = play.ended();
}

#[test]
fn what_another_got_meanwhile_is_worked_on_and_not_told() {
    let bench = Bench::new("cat gate > /dev/null");
    let gate = bench.gate("gate");
    let play = bench.start(Options { until_end: true, ..options() });
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    server.hear_credit(1);
    server.deliver_on(1, 1, b"a\n", 1);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
    drop(server);
    let mut server = play.serve();
    open(&mut server, None, vec![]);
    server.hear_credit(1);
    server.say(&Reply::End);
    pass(&gate);
    server.closed();
    assert!(matches!(play.ended().0, Ok(End::Done)));
}

/// What was kept of one queue used to be begun while others were not announced yet, and its
/// command ran before the server had been told.
#[test]
fn nothing_begins_before_the_server_can_be_told() {
    let bench = Bench::new("cat gate > /dev/null");
    let gate = bench.gate("gate");
    let patterns = vec![QueuePattern("*".to_owned())];
    let queues = Queues::Several { patterns, strict: false };
    let play = bench.start(Options { limit: Some(2), queues, ..options() });
    let announce = |server: &mut Server, kept| {
        let (queue_id, queue) = (Some(QUEUE), Some(name("q")));
        let receiving = Receiving { queue_id, queue, kept, ..Receiving::default() };
        server.say_on(MEMBER_CHANNELS, &Reply::Receiving(receiving));
    };
    let mut server = play.serve();
    assert!(matches!(server.hear(), Some(Said::Open(_))));
    announce(&mut server, vec![]);
    server.say(&Reply::Receiving(Receiving::default()));
    server.hear_credit(2);
    server.deliver_on(MEMBER_CHANNELS, 1, b"a\nb\n", 1);
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(1, 2)])));
    drop(server);
    pass(&gate);
    let mut server = play.serve();
    assert!(matches!(server.hear(), Some(Said::Open(_))));
    announce(&mut server, vec![range(1, 3)]);
    assert!(!server.has_news(Micros::from_millis(100)), "not before all is announced");
    server.say(&Reply::Receiving(Receiving::default()));
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(1, 2)])));
    assert_eq!(server.hear_news(), Some(Said::Begin(vec![range(2, 3)])));
    pass(&gate);
    assert_eq!(server.hear_news(), Some(Said::Ack(vec![range(2, 3)])));
    server.closed();
    assert_eq!(play.ended().1.messages, 2);
}
