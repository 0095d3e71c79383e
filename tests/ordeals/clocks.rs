//! A clock that is set back and forth under the real server. The tools are linked statically, so
//! that a preloaded library cannot lie to them: this needs a server of its own, which
//! `tests/README.md` says how to build (`.ci/run` does), and libfaketime.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Running, Store, eventually, peer::Peer, skip};
use crate::seq;

/// Where a server that is linked dynamically lies, when it was built.
fn server() -> Option<PathBuf> {
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/dynamic");
    let host = std::fs::read_dir(&target).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let found = host.chain([target]).map(|dir| dir.join("debug/mq-serve"));
    found.into_iter().find(|path| path.exists())
}

/// libfaketime, where its package puts it.
fn library() -> Option<PathBuf> {
    let below = std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let found = below.map(|dir| dir.join("faketime/libfaketime.so.1"));
    found.chain(["/usr/lib/faketime/libfaketime.so.1".into()]).find(|path| path.exists())
}

/// A store whose server believes what a file says of the time.
struct Clock {
    store: Store,
    file: PathBuf,
}

impl Clock {
    fn new() -> Option<Clock> {
        let store = Store::new();
        let file = store.beside("clock");
        (server().is_some() && library().is_some()).then_some(Clock { store, file })
    }

    /// From now on it is so many seconds later than it is, or earlier.
    fn set(&self, seconds: i64) {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}\n")).expect("room");
        std::fs::rename(next, &self.file).expect("ours");
    }

    fn serve(&self) -> Running {
        let mut command = Command::new(server().expect("it was there"));
        command
            .arg("--dir")
            .arg(self.store.path())
            .env("LD_PRELOAD", library().expect("it was there"))
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
        let mut server = Running::start(command);
        eventually("the server answers", || {
            assert!(!server.has_ended(), "{}", server.stderr());
            Peer::connect(&self.store).ok()
        });
        server
    }

    /// The times at which messages were stored, as they are delivered: ms since 1970.
    fn times(&self, queue: &str) -> Vec<i64> {
        let args = ["--peek", "-e", "-F", "%T\\n", queue];
        let done = self.store.run("mq-recv", &args, b"").ok();
        done.text().lines().map(|line| line.parse().expect("a number")).collect()
    }
}

/// G4, G5: stored times never decrease, rests and leases end after as long as they should, delayed
/// messages come once and not before the clock that the server has, whatever is done to it.
#[test]
fn a_clock_that_is_set_back_and_forth_breaks_nothing() {
    let Some(clock) = Clock::new() else {
        let name = "a_clock_that_is_set_back_and_forth_breaks_nothing";
        return skip(name, "needs libfaketime and a server that is linked dynamically");
    };
    let store = &clock.store;
    clock.set(0);
    let mut running = clock.serve();
    let mut sent = 0;
    for shift in [0, -3600, -3600 * 24 * 400, 3600, 0, -60] {
        clock.set(shift);
        store.send("q", &seq(sent + 1, sent + 100));
        sent += 100;
        // A failed try rests for a moment, not for the hour that the clock went back.
        store.send("jobs", format!("{sent}\n").as_bytes());
        let begun = Instant::now();
        store.sh("mq-recv -n2 --backoff 50ms jobs -- sh -c '[ $MQ_ATTEMPT -gt 1 ]' || true").ok();
        store.run("mq-admin", &["wait", "jobs"], b"").ok();
        assert!(begun.elapsed() < Duration::from_secs(20), "a rest of {:?}", begun.elapsed());
        // A lease ends after its time.
        store.send("leased", b"x\n");
        store.run("mq-recv", &["-n1", "-J", "--lease", "200ms", "leased"], b"").ok();
        store.await_number("leased", "ready", 1);
        assert_eq!(store.receive("leased"), b"x\n");
        if shift % 7200 == 3600 {
            store.kill_server();
            running.await_end();
            running = clock.serve();
        }
    }
    let times = clock.times("q");
    assert_eq!(times.len() as u64, sent);
    assert!(times.is_sorted(), "stored times never decrease");
    assert_eq!(store.receive("q"), seq(1, sent));
    // Due in a second of the clock as it is; the clock goes back, and comes forward again.
    clock.set(0);
    store.run("mq-send", &["--delay", "1s", "late", "-m", "once"], b"").ok();
    clock.set(-30);
    store.kill_server();
    running.await_end();
    running = clock.serve();
    assert_eq!(store.receive("late"), b"", "not before its time");
    clock.set(2);
    store.kill_server();
    running.await_end();
    running = clock.serve();
    store.await_number("late", "ready", 1);
    clock.set(-3600);
    store.kill_server();
    running.await_end();
    running = clock.serve();
    assert_eq!(store.receive("late"), b"once\n");
    assert_eq!(store.receive("late"), b"", "it comes once");
    store.run("mq-admin", &["check"], b"").ok();
    store.run("mq-admin", &["stop"], b"").ok();
    running.finish().ok();
}
