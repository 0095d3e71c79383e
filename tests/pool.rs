//! The process pool in processes of its own: what it leaves behind, and what it makes of what
//! whoever started it left. Each test starts itself again under the circumstances it is about.

use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use mq::client::command::{Finished, Job, Outcome, Pool, Spec};
use mq::client::piece::Slice;
use mq::units::{Micros, Monotonic};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Set in the second process.
const INNER: &str = "MQ_TEST_INNER";

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test of this file again, alone in a process that a shell starts after `before`.
/// `false`: this is that process.
fn is_outer(test: &str, before: &str) -> bool {
    if std::env::var_os(INNER).is_some() {
        return false;
    }
    let own = std::env::current_exe().expect("a test is a program");
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("{before}\nexec \"$0\" --exact {test} --nocapture --test-threads=1"))
        .arg(own)
        .env(INNER, "1")
        .output()
        .expect("there is a shell");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
    true
}

fn pool(script: &str, parallel: usize, timeout: Option<Micros>) -> Pool {
    let argv = ["sh", "-c", script].map(Into::into).to_vec();
    Pool::new(Spec { argv, parallel, timeout }).expect("there is a shell")
}

fn now(began: Instant) -> Monotonic {
    Monotonic(began.elapsed().as_micros() as u64)
}

/// Runs `jobs` jobs, with the job's number as input.
fn run(pool: &mut Pool, jobs: u64) -> Vec<Finished> {
    let began = Instant::now();
    let (mut started, mut finished) = (0, Vec::new());
    while finished.len() < jobs as usize {
        while pool.has_room() && started < jobs {
            let input = vec![Slice::whole(format!("{started}\n").into_bytes())];
            pool.start(Job { id: started, input, env: Vec::new() }, now(began)).expect("starts");
            started += 1;
        }
        let wait = match pool.next_deadline() {
            Some(deadline) => deadline.since(now(began)).to_duration().min(PATIENCE),
            None => PATIENCE,
        };
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        rustix::event::poll(&mut [PollFd::new(&pool.as_fd(), PollFlags::IN)], Some(&wait)).ok();
        assert!(began.elapsed() < PATIENCE, "{} of {jobs} jobs ended", finished.len());
        finished.extend(pool.turn(now(began)));
    }
    finished
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

#[test]
fn nothing_is_left_behind() {
    if is_outer("nothing_is_left_behind", ":") {
        return;
    }
    // By the number: ends well, fails, kills itself, says much, closes all, leaves somebody who
    // ends soon, does not end in time.
    let script = "read n; case $((n % 7)) in
        0) ;; 1) exit 1;; 2) kill -9 $$;; 3) seq 2000 >&2;; 4) exec <&- >&- 2>&-;;
        5) sleep 0.05 & ;; 6) exec sleep 1000;; esac";
    let before = descriptors();
    let mut pool = pool(script, 8, Some(Micros::from_millis(300)));
    let with_pool = descriptors();
    let finished = run(&mut pool, 140);
    for one in &finished {
        let outcome = match one.id % 7 {
            1 => Outcome::Exit(1),
            2 => Outcome::Signal(9),
            6 => Outcome::TimedOut,
            _ => Outcome::Exit(0),
        };
        // A loaded machine may be slower than the timeout.
        assert!(one.outcome == outcome || one.outcome == Outcome::TimedOut, "{one:?}");
    }
    let began = Instant::now();
    while descriptors() > with_pool {
        assert!(began.elapsed() < PATIENCE, "descriptors are left");
        pool.turn(Monotonic(0));
    }
    drop(pool);
    assert_eq!(descriptors(), before);
    let options = rustix::process::WaitOptions::NOHANG;
    assert_eq!(rustix::process::wait(options).map(|_| ()), Err(rustix::io::Errno::CHILD));
}

#[test]
fn statuses_are_told_even_if_children_were_to_be_ignored() {
    let test = "statuses_are_told_even_if_children_were_to_be_ignored";
    if is_outer(test, "trap '' CHLD") {
        return;
    }
    let finished = run(&mut pool("read n; exit $n", 2, None), 4);
    let mut outcomes: Vec<(u64, Outcome)> =
        finished.into_iter().map(|one| (one.id, one.outcome)).collect();
    outcomes.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(outcomes, [0, 1, 2, 3].map(|id| (id, Outcome::Exit(id as i32))));
}

#[test]
fn facts_of_an_outer_message_are_not_passed_on() {
    let test = "facts_of_an_outer_message_are_not_passed_on";
    let outer = "export MQ_KEY=k MQ_HEADER_X=h MQ_OFFSET=7 MQ_DIR=/d MQ_LOG=l";
    if is_outer(test, outer) {
        return;
    }
    let script = "env | grep ^MQ_ | sort >&2";
    let finished = run(&mut pool(script, 1, None), 1);
    let expected = format!("MQ_DIR=/d\nMQ_LOG=l\n{INNER}=1\n");
    assert_eq!(String::from_utf8_lossy(&finished[0].stderr_tail), expected);
}
