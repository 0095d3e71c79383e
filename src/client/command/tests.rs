use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use tempfile::TempDir;

use super::*;

/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pool that reports into a pipe, and a clock that the test can set forward.
struct Rig {
    pool: Pool,
    sink: File,
    began: Instant,
    ahead: Micros,
    dir: TempDir,
}

fn spec(argv: &[&str], parallel: usize) -> Spec {
    Spec { argv: argv.iter().map(OsString::from).collect(), parallel, timeout: None }
}

fn shell(script: &str) -> Spec {
    spec(&["sh", "-c", script], 1)
}

impl Rig {
    fn new(spec: Spec) -> Rig {
        let (sink, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        Rig {
            pool: Pool::reporting_to(spec, stderr).unwrap(),
            sink: File::from(sink),
            began: Instant::now(),
            ahead: Micros(0),
            dir: TempDir::new().unwrap(),
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic(self.began.elapsed().as_micros() as u64).plus(self.ahead)
    }

    /// Starts a job that finds a directory of its own in `$D`.
    fn start(&mut self, id: u64, input: &[&[u8]]) {
        let input = input.iter().map(|chunk| Slice::whole(chunk.to_vec())).collect();
        let env = vec![("D".into(), self.dir.path().into())];
        let now = self.now();
        self.pool.start(Job { id, input, env }, now).unwrap();
    }

    /// Waits for something to do, and does it.
    fn turn(&mut self) -> Vec<Finished> {
        let now = self.now();
        let left = match self.pool.next_deadline() {
            Some(deadline) => deadline.since(now).to_duration().min(PATIENCE),
            None => PATIENCE,
        };
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.pool, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
        assert!(self.began.elapsed() < PATIENCE, "nothing happens");
        let now = self.now();
        self.pool.turn(now)
    }

    /// Waits for the next job that ends.
    fn finished(&mut self) -> Finished {
        loop {
            let mut finished = self.turn();
            if let Some(one) = finished.pop() {
                assert!(finished.is_empty(), "one at a time here");
                return one;
            }
        }
    }

    fn run(&mut self, input: &[&[u8]]) -> Finished {
        self.start(1, input);
        self.finished()
    }

    /// Turns until this has been passed on to our stderr.
    fn expect_report(&mut self, expected: &str) {
        let mut came = Vec::new();
        while came.len() < expected.len() {
            assert_eq!(self.turn(), [], "the job is not over");
            while !report::ready(&self.sink, PollFlags::IN).is_empty() {
                let mut byte = [0];
                self.sink.read_exact(&mut byte).unwrap();
                came.push(byte[0]);
            }
        }
        assert_eq!(String::from_utf8_lossy(&came), expected);
    }

    /// Each is good for one writer: the next one's reader could meet the first.
    fn fifo(&self, name: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        path
    }

    /// Sets the clock forward.
    fn skip(&mut self, time: Micros) {
        self.ahead = Micros(self.ahead.0 + time.0);
    }
}

/// Whether a process runs; one that has ended and nobody has asked for does not.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Waits until it runs no more: a signal takes its time.
fn assert_dies(pid: &str) {
    let began = Instant::now();
    while is_alive(pid) {
        assert!(began.elapsed() < PATIENCE, "{pid} lives on");
        std::thread::yield_now();
    }
}

fn text(finished: &Finished) -> String {
    String::from_utf8_lossy(&finished.stderr_tail).into_owned()
}

#[test]
fn command_finds_its_input_byte_for_byte_and_then_the_end() {
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let inputs: [&[&[u8]]; 6] = [
        &[],
        &[b""],
        &[b"a\n"],
        &[b"no end", b"", b"\0\r\n\xff"],
        &[&large[..5000]],
        &[&large[..70_000], b"", b"x", &large],
    ];
    let mut rig = Rig::new(shell("cat > $D/out"));
    for input in inputs {
        assert_eq!(rig.run(input).outcome, Outcome::Exit(0));
        assert!(std::fs::read(rig.dir.path().join("out")).unwrap() == input.concat());
    }
}

#[test]
fn input_that_is_not_read_is_no_error() {
    let large = vec![b'x'; 1_000_000];
    let mut rig = Rig::new(spec(&["true"], 1));
    for input in [&b"a\n"[..], &large[..10_000], &large] {
        assert_eq!(rig.run(&[input]).outcome, Outcome::Exit(0));
    }
    let mut rig = Rig::new(shell("exec <&-; read x < $D/fifo"));
    let fifo = rig.fifo("fifo");
    rig.start(1, &[&large]);
    // The pool sees that nobody reads, and goes on waiting for the end.
    assert_eq!(rig.turn(), []);
    std::fs::write(fifo, "go\n").unwrap();
    assert_eq!(rig.finished().outcome, Outcome::Exit(0));
}

#[test]
fn exit_statuses_and_signals_come_back() {
    for (script, outcome) in [
        ("exit 0", Outcome::Exit(0)),
        ("exit 65", Outcome::Exit(65)),
        ("exit 255", Outcome::Exit(255)),
        ("kill -9 $$", Outcome::Signal(9)),
        ("kill -15 $$", Outcome::Signal(15)),
        ("kill -13 $$", Outcome::Signal(13)),
    ] {
        let mut rig = Rig::new(shell(script));
        let finished = Finished { id: 1, outcome, stderr_tail: Vec::new() };
        assert_eq!(rig.run(&[]), finished, "{script}");
        assert_eq!((rig.pool.running(), rig.pool.has_room()), (0, true));
    }
}

#[test]
fn command_begins_with_default_signals_its_own_group_and_no_foreign_descriptors() {
    let sigpipe = 1u64 << 12;
    // Signals above are real-time ones, two of which are the C library's own, which posix_spawn
    // has ignored; no program can do anything with them.
    let usual = (1u64 << 31) - 1;
    let ours: u64 = (1..32)
        .filter(|signal| crate::client::dispositions::is_ignored(*signal))
        .map(|signal| 1 << (signal - 1))
        .sum();
    assert_ne!(ours & sigpipe, 0, "Rust ignores SIGPIPE, so there is something to reset");
    let script =
        "exec >&2; cat /proc/self/status; cut -d' ' -f5 /proc/self/stat | sed 's/^/GROUP:/'
                  exec ls -l /proc/self/fd";
    let mut rig = Rig::new(shell(script));
    let finished = rig.run(&[b"x\n"]);
    let text = text(&finished);
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
    };
    assert_eq!(field("SigBlk:"), "0000000000000000");
    let ignored = usual & u64::from_str_radix(&field("SigIgn:"), 16).unwrap();
    assert_eq!(ignored & sigpipe, 0);
    assert_eq!(ignored, ours & !sigpipe, "what was ignored on purpose stays so");
    let group = field("GROUP:");
    assert_ne!(group, rustix::process::getpgrp().as_raw_nonzero().to_string());
    // Beside its three it has what this process was itself given to be passed on, and what ls
    // opens.
    let fds = text.lines().filter_map(|line| line.split_once(" -> "));
    for (fd, _) in fds.filter(|(_, target)| !target.starts_with("/proc/")) {
        let fd = fd.rsplit(' ').next().unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0").trim();
        let is_private = u32::from_str_radix(flags, 8).unwrap() & 0o2_000_000 != 0;
        assert!(
            !info.is_empty() && (!is_private || matches!(fd, "0" | "1" | "2")),
            "descriptor {fd} leaked: {info}"
        );
    }
}

#[test]
fn stderr_is_passed_on_at_once() {
    let mut rig = Rig::new(shell("echo one >&2; read x < $D/fifo; echo two >&2; exit 4"));
    let fifo = rig.fifo("fifo");
    rig.start(7, &[]);
    rig.expect_report("one\n");
    std::fs::write(fifo, "go\n").unwrap();
    let finished = rig.finished();
    assert_eq!((finished.id, finished.outcome), (7, Outcome::Exit(4)));
    assert_eq!(text(&finished), "one\ntwo\n");
    let mut rest = [0; 4];
    rig.sink.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"two\n");
}

#[test]
fn all_of_stderr_is_passed_on_in_order_and_its_end_is_kept() {
    let mut rig = Rig::new(shell("seq 100000 >&2"));
    let mut sink = rig.sink.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        sink.read_to_end(&mut all).unwrap();
        all
    });
    let finished = rig.run(&[]);
    drop(rig);
    let all: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(reader.join().unwrap() == all.as_bytes());
    assert_eq!(finished.stderr_tail.len(), limits::STDERR_TAIL_BYTES);
    assert!(all.as_bytes().ends_with(&finished.stderr_tail));
}

#[test]
fn process_left_behind_holds_up_nothing_and_is_still_heard() {
    let script = "(read x < $D/fifo; echo late >&2; read x < $D/last) & echo early >&2; exit 3";
    let mut rig = Rig::new(shell(script));
    let (fifo, last) = (rig.fifo("fifo"), rig.fifo("last"));
    let finished = rig.run(&[]);
    assert_eq!(finished.outcome, Outcome::Exit(3));
    assert_eq!(text(&finished), "early\n");
    let mut early = [0; 6];
    rig.sink.read_exact(&mut early).unwrap();
    std::fs::write(fifo, "go\n").unwrap();
    rig.expect_report("late\n");
    std::fs::write(last, "go\n").unwrap();
    // Its end is seen, and its stderr is let go of.
    while rig.pool.reports.lingering() > 0 {
        rig.turn();
    }
}

#[test]
fn stderr_that_nobody_takes_stops_the_command_and_not_the_pool() {
    let mut rig = Rig::new(shell("seq 100000 >&2"));
    rig.start(1, &[]);
    let asleep = |rig: &Rig| {
        let mut fds = [PollFd::new(&rig.pool, PollFlags::IN)];
        let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        rustix::event::poll(&mut fds, Some(&wait)).unwrap() == 0
    };
    while !asleep(&rig) {
        assert_eq!(rig.turn(), []);
    }
    // Read one page: there is something to do again.
    let mut page = [0; 8192];
    rig.sink.read_exact(&mut page).unwrap();
    assert_eq!(rig.turn(), []);
    while !asleep(&rig) {
        assert_eq!(rig.turn(), []);
    }
    rig.pool.kill();
    assert_eq!(rig.finished().outcome, Outcome::Signal(9));
}

#[test]
fn reader_of_stderr_that_goes_away_stops_nothing() {
    let mut rig = Rig::new(shell("echo one >&2; seq 100000 >&2; echo two >&2; exit 1"));
    rig.sink = File::open("/dev/null").unwrap();
    let finished = rig.run(&[]);
    assert_eq!(finished.outcome, Outcome::Exit(1));
    assert!(text(&finished).ends_with("\n100000\ntwo\n"));
}

#[test]
fn command_that_takes_too_long_is_told_to_end() {
    let timeout = Some(Micros::from_secs(600));
    let mut rig = Rig::new(Spec { timeout, ..shell("echo ready >&2; exec sleep 1000") });
    rig.start(1, &[]);
    rig.expect_report("ready\n");
    assert!(rig.pool.next_deadline().is_some());
    rig.skip(Micros::from_secs(600));
    let finished = rig.finished();
    assert_eq!((finished.id, finished.outcome), (1, Outcome::TimedOut));
    assert_eq!(rig.pool.next_deadline(), None);
}

#[test]
fn command_that_does_not_end_is_killed_after_the_grace() {
    let timeout = Some(Micros::from_secs(600));
    let script = "trap '' TERM; echo ready >&2; while :; do sleep 1000; done";
    let mut rig = Rig::new(Spec { timeout, ..shell(script) });
    rig.start(1, &[]);
    rig.expect_report("ready\n");
    rig.skip(Micros::from_secs(600));
    let now = rig.now();
    assert_eq!(rig.pool.turn(now), []);
    let grace = rig.pool.next_deadline().unwrap().since(now);
    assert_eq!(grace, limits::COMMAND_GRACE);
    rig.skip(grace);
    assert_eq!(rig.finished().outcome, Outcome::TimedOut);
}

#[test]
fn what_a_slow_command_has_started_ends_with_it() {
    let timeout = Some(Micros::from_secs(600));
    let script = "sleep 1000 & echo $! >&2; wait";
    let mut rig = Rig::new(Spec { timeout, ..shell(script) });
    rig.start(1, &[]);
    while rig.pool.slots[0].as_ref().unwrap().tail.is_empty() {
        rig.turn();
    }
    rig.skip(Micros::from_secs(600));
    let finished = rig.finished();
    assert_eq!(finished.outcome, Outcome::TimedOut);
    assert_dies(text(&finished).trim());
}

#[test]
fn group_has_its_grace_also_when_its_leader_is_gone() {
    let timeout = Some(Micros::from_secs(600));
    // The leader dies of TERM; what it started tidies up first.
    let script = "(trap 'read x < $D/fifo; echo tidied >&2; exit' TERM; echo ready >&2
                   while :; do sleep 0.01; done) & wait";
    let mut rig = Rig::new(Spec { timeout, ..shell(script) });
    let fifo = rig.fifo("fifo");
    rig.start(1, &[]);
    rig.expect_report("ready\n");
    rig.skip(Micros::from_secs(600));
    while !rig.pool.slots[0].as_ref().unwrap().has_exited() {
        assert_eq!(rig.turn(), []);
    }
    assert_eq!(rig.turn(), [], "the group is there");
    std::fs::write(fifo, "go\n").unwrap();
    let finished = rig.finished();
    assert_eq!(finished.outcome, Outcome::TimedOut);

    // And if it never ends, it is killed.
    let script = "(trap '' TERM; echo $(exec sh -c 'echo $PPID') >&2; exec sleep 1000) & wait";
    let mut rig = Rig::new(Spec { timeout, ..shell(script) });
    rig.start(1, &[]);
    while rig.pool.slots[0].as_ref().unwrap().tail.is_empty() {
        rig.turn();
    }
    rig.skip(Micros::from_secs(600));
    while !rig.pool.slots[0].as_ref().unwrap().has_exited() {
        assert_eq!(rig.turn(), []);
    }
    assert_eq!(rig.turn(), []);
    rig.skip(limits::COMMAND_GRACE);
    let finished = rig.finished();
    assert_eq!(finished.outcome, Outcome::TimedOut);
    assert_dies(text(&finished).trim());
}

#[test]
fn all_commands_can_be_ended() {
    let script = "echo ready >&2; exec sleep 1000";
    let mut rig = Rig::new(Spec { parallel: 3, ..shell(script) });
    for end in [Pool::terminate as fn(&mut Pool, Monotonic), |pool, _| pool.kill()] {
        for id in 0..3 {
            assert!(rig.pool.has_room());
            rig.start(id, &[]);
        }
        assert!(!rig.pool.has_room());
        rig.expect_report("ready\nready\nready\n");
        let now = rig.now();
        end(&mut rig.pool, now);
        let mut ids = Vec::new();
        while rig.pool.running() > 0 {
            for finished in rig.turn() {
                assert!(matches!(finished.outcome, Outcome::Signal(9 | 15)));
                ids.push(finished.id);
            }
        }
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2]);
    }
}

#[test]
fn commands_run_at_the_same_time() {
    // Each end of the fifo waits for the other.
    let mut rig = Rig::new(spec(&["sh", "-c", "read way; eval \"$way\""], 2));
    rig.fifo("fifo");
    rig.start(1, &[b"read x < $D/fifo; test $x = hello\n"]);
    rig.start(2, &[b"echo hello > $D/fifo\n"]);
    let mut ended = Vec::new();
    while ended.len() < 2 {
        ended.extend(rig.turn());
    }
    assert!(ended.iter().all(|finished| finished.outcome == Outcome::Exit(0)));
}

#[test]
fn dropped_pool_leaves_no_command_behind() {
    let mut rig = Rig::new(shell("sleep 1000 & echo $$ $! >&2; wait"));
    rig.start(1, &[]);
    while rig.pool.slots[0].as_ref().unwrap().tail.is_empty() {
        rig.turn();
    }
    drop(rig.pool);
    let mut pids = String::new();
    rig.sink.read_to_string(&mut pids).unwrap();
    for pid in pids.split_whitespace() {
        assert_dies(pid);
    }
}

#[test]
fn environment_is_that_of_the_job_alone() {
    let mut rig = Rig::new(spec(&["sh", "-c", "env | grep -e ^MQ_ -e ^TWICE >&2"], 1));
    let mut run = |env: &[(&str, &str)]| {
        let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        rig.pool.start(Job { id: 1, input: Vec::new(), env }, Monotonic(0)).unwrap();
        let finished = rig.finished();
        let mut lines: Vec<String> = text(&finished).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(run(&[("MQ_KEY", "k v"), ("TWICE", "1")]), ["MQ_KEY=k v", "TWICE=1"]);
    assert_eq!(run(&[("MQ_OFFSET", "7")]), ["MQ_OFFSET=7"]);
    // What no environment can hold is left out.
    assert_eq!(run(&[("MQ_KEY", "a\0b"), ("MQ_=x", "1"), ("", "2"), ("MQ_ID", "3")]), ["MQ_ID=3"]);
}

fn check(argv: &[&str]) -> Result<(), u8> {
    spec(argv, 1).check().map_err(|error| error.exit_status())
}

fn script(path: &Path, text: &str) {
    let mut file = File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn command_that_cannot_run_is_known_beforehand() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(dir.path().join("data"), "text").unwrap();
    assert_eq!(check(&["true"]), Ok(()));
    assert_eq!(check(&["/bin/sh"]), Ok(()));
    assert_eq!(check(&["mq-no-such-command"]), Err(127));
    assert_eq!(check(&[""]), Err(127));
    assert_eq!(check(&[&path("absent")]), Err(127));
    assert_eq!(check(&[&path("data/below")]), Err(127));
    assert_eq!(check(&[dir.path().to_str().unwrap()]), Err(126));
    assert_eq!(check(&[&path("data")]), Err(126));
}

#[test]
fn start_tells_what_shells_tell() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("script");
    let start = |rig: &mut Rig| {
        let job = Job { id: 1, input: vec![Slice::whole(b"in\n".to_vec())], env: Vec::new() };
        rig.pool.start(job, Monotonic(0)).map_err(|error| error.exit_status())
    };

    // Without a first line that says what runs it, the shell does.
    script(&path, "read x; echo \"$x $1\" >&2; exit 9\n");
    let mut rig = Rig::new(spec(&[path.to_str().unwrap(), "a b"], 1));
    for _ in 0..2 {
        assert_eq!(start(&mut rig), Ok(()));
        let finished = rig.finished();
        assert_eq!((finished.outcome, text(&finished).as_str()), (Outcome::Exit(9), "in a b\n"));
    }

    script(&path, "#!/no/such/interpreter\n");
    let mut rig = Rig::new(spec(&[path.to_str().unwrap()], 1));
    assert_eq!(start(&mut rig), Err(126));
    assert_eq!((rig.pool.running(), rig.pool.has_room()), (0, true));
    let check = |rig: &Rig| rig.pool.check().map_err(|error| error.exit_status());
    assert_eq!(check(&rig), Ok(()));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(check(&rig), Err(127));
    assert_eq!(start(&mut rig), Err(127));
    script(&path, "#!/bin/sh\nexit 5\n");
    assert_eq!(start(&mut rig), Ok(()));
    assert_eq!(rig.finished().outcome, Outcome::Exit(5));
}
