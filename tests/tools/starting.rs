//! How a server comes and goes: started once by many, stopped on purpose, found again after its
//! socket was lost.

use std::time::Duration;

use mq::limits;
use rustix::process::Signal;

use crate::harness::{Running, Store, eventually, peer::Peer, process, skip};
use crate::seq;

#[test]
fn fifty_senders_on_a_cold_store_start_one_server() {
    let store = Store::new();
    let senders: Vec<Running> =
        (1..=50).map(|n| store.spawn("mq-send", &["q", "-m", &n.to_string()])).collect();
    senders.into_iter().for_each(|sender| drop(sender.finish().ok().quietly()));
    assert_eq!(store.servers().len(), 1);
    let done = store.sh("mq-recv -e q | sort -n").ok();
    assert_eq!(done.stdout, seq(1, 50));
}

#[test]
fn a_started_server_stands_on_its_own() {
    let store = Store::new();
    store.send("q", b"x\n");
    let pid = store.server().expect("a server").as_raw_nonzero();
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).expect("its directory");
    assert_eq!(cwd.to_str(), Some("/"), "it holds no directory of its starter");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its state");
    let session = stat.rsplit_once(") ").expect("a name").1.split(' ').nth(3);
    assert_eq!(session, Some(&*pid.to_string()), "it leads its own session");
    // That it holds nothing else of its starter is what the test with flock shows.
    for (descriptor, target) in [(0, "/dev/null"), (1, "/dev/null"), (2, "server.log")] {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).expect("open");
        assert!(link.ends_with(target), "{descriptor} is {}", link.display());
    }
}

#[test]
fn no_server_is_started_where_that_is_turned_off() {
    let store = Store::new();
    for args in [&["mq-send", "-w0", "q", "-m", "x"][..], &["mq-recv", "-w0", "-e", "q"]] {
        let mut command = store.command(args[0], &args[1..]);
        command.env("MQ_NO_AUTOSTART", "1");
        process::run(command, b"").exits(69);
    }
    assert!(store.server().is_none());
}

#[test]
fn only_those_who_need_one_start_a_server() {
    let store = Store::new();
    for args in [&["ls"][..], &["show", "q"], &["purge", "q"], &["rm", "q"], &["wait", "q"]] {
        store.run("mq-admin", args, b"").exits(69);
    }
    store.run("mq-admin", &["stop"], b"").ok();
    assert!(store.server().is_none());
    store.run("mq-admin", &["declare", "q"], b"").ok();
    assert!(store.server().is_some());
    // A verb behind one that found nothing works now.
    store.run("mq-admin", &["ls"], b"").ok();
}

#[test]
fn stop_waits_until_the_server_is_gone_and_the_next_command_starts_another() {
    let store = Store::new();
    store.send("q", &seq(1, 1000));
    store.run("mq-admin", &["stop"], b"").ok();
    assert_eq!(store.server(), None);
    assert_eq!(store.receive("q"), seq(1, 1000));
}

/// After an orderly stop, who was connected waits for a new server without starting it.
#[test]
fn connected_clients_wait_after_a_stop_and_go_on_with_the_next_server() {
    let store = Store::new();
    let mut receiver = store.spawn("mq-recv", &["q"]);
    let mut sender = store.spawn("mq-send", &["q"]);
    sender.write(b"1\n");
    assert_eq!(receiver.line().as_deref(), Some("1"));
    store.run("mq-admin", &["stop"], b"").ok();
    sender.write(b"2\n");
    assert!(!receiver.has_output(Duration::from_millis(500)), "nobody started a server");
    assert_eq!(store.server(), None);
    store.send("q", b"3\n");
    sender.finish().ok();
    let mut lines = receiver.lines(2);
    lines.sort();
    assert_eq!(lines, ["2", "3"]);
}

#[test]
fn a_server_that_was_killed_leaves_no_obstacle() {
    let store = Store::new();
    store.send("q", b"a\n");
    store.kill_server();
    assert!(store.path().join("sock").exists(), "a kill leaves the socket behind");
    store.send("q", b"b\n");
    assert_eq!(store.receive("q"), b"a\nb\n");
}

/// Someone cleans up too much.
#[test]
fn a_deleted_socket_is_made_again_or_said() {
    let store = Store::new();
    store.send("q", b"a\n");
    std::fs::remove_file(store.path().join("sock")).expect("the socket");
    store.send("q", b"b\n");
    assert_eq!(store.receive("q"), b"a\nb\n");
    assert_eq!(store.servers().len(), 1);
}

#[test]
fn a_second_server_says_who_holds_the_store() {
    let store = Store::new();
    let server = store.serve();
    let done = store.run("mq-serve", &[] as &[&str], b"").exits(75);
    done.says(&server.pid().as_raw_nonzero().to_string());
    store.send("q", b"the first one goes on\n");
}

#[test]
fn a_terminated_server_exits_0_within_its_time() {
    let store = Store::new();
    let server = store.serve();
    store.send("q", b"a\n");
    let _silent = Peer::silent(&store).expect("a connection");
    let _idle = store.spawn("mq-recv", &["other"]);
    let start = std::time::Instant::now();
    server.signal(Signal::TERM);
    server.finish().ok();
    assert!(start.elapsed() < Duration::from_secs(8), "it took {:?}", start.elapsed());
    store.end_servers();
}

#[test]
fn an_idle_server_ends_by_itself_and_a_busy_one_does_not() {
    let store = Store::new();
    let mut server = store.serve_with(&["--idle-exit", "300ms"]);
    let peer = Peer::connect(&store).expect("a connection");
    std::thread::sleep(Duration::from_millis(600));
    assert!(!server.has_ended(), "a connection keeps it");
    drop(peer);
    assert_eq!(server.await_end(), 0);
    store.send("q", b"the next one starts another\n");
}

/// No wake-ups when nothing happens: seen from outside as no time on a processor.
#[test]
fn idle_processes_do_nothing() {
    let store = Store::new();
    store.send("q", &seq(1, 1000));
    let mut receiver = store.spawn("mq-recv", &["q"]);
    receiver.lines(1000);
    let mut sender = store.spawn("mq-send", &["q"]);
    sender.write(b"x\n");
    receiver.line();
    let server = store.server().expect("a server");
    let switches = |pid: rustix::process::Pid| -> u64 {
        std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))
            .expect("it runs")
            .filter_map(|task| {
                let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
                let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
                line?.trim().parse::<u64>().ok()
            })
            .sum()
    };
    for pid in [server, receiver.pid(), sender.pid()] {
        // Whatever is owed after the last message comes to an end: a synced mark, the sync of a
        // journal. Each comes a second later, so that half a second's rest was no sign of it.
        let owed = limits::IDLE_MARK.0.max(limits::JOURNAL_SYNC.0) * 3 / 2;
        let mut last = switches(pid);
        eventually("the process has come to rest", || {
            std::thread::sleep(Duration::from_micros(owed));
            let now = switches(pid);
            let rest = now == last;
            last = now;
            rest.then_some(())
        });
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(switches(pid), last, "process {pid:?} wakes up while nothing happens");
    }
}

/// A failed start shows what the server says.
#[test]
fn a_start_that_fails_is_explained_by_the_sender() {
    let store = Store::new();
    std::fs::create_dir(store.path()).expect("room");
    if crate::stores::set_mode(store.path(), 0o700).is_err() {
        return skip("a_start_that_fails_is_explained_by_the_sender", "cannot set modes");
    }
    std::fs::write(store.path().join("queues"), "not a directory").expect("room");
    let done = store.run("mq-send", &["-w", "2s", "q", "-m", "x"], b"");
    assert_ne!(done.code, 0);
    done.says("queues");
}

/// What went wrong before the server could tell its client was in a file only, and did not name the
/// value.
#[test]
fn a_start_that_fails_early_is_explained_by_the_servers_log() {
    let store = Store::new();
    let mut command = store.command("mq-send", &["q", "-m", "x"]);
    command.env("MQ_LOG", "foo");
    let done = crate::harness::process::run(command, b"").exits(69);
    let why = "the environment variable MQ_LOG: \"foo\" is no log level";
    done.says(&format!("cannot start mq-serve on the store {}: {why}", store.path().display()));
}

/// For supervisors: readiness is told when the server answers, and the beginning of its end.
#[test]
fn a_supervisor_is_told_of_readiness_and_of_the_end() {
    let store = Store::new();
    let path = store.beside("notify");
    let notify = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    notify.set_read_timeout(Some(crate::harness::DEADLINE)).expect("a socket");
    let mut command = store.command("mq-serve", &[] as &[&str]);
    command.env("NOTIFY_SOCKET", &path);
    let server = Running::start(command);
    let hears = |word: &str| {
        let mut buffer = [0u8; 4096];
        loop {
            let length = notify.recv(&mut buffer).expect("a notification");
            if String::from_utf8_lossy(&buffer[..length]).contains(word) {
                return;
            }
        }
    };
    hears("READY=1");
    Peer::connect(&store).expect("ready means that it answers");
    server.signal(Signal::TERM);
    hears("STOPPING=1");
    server.finish().ok();
}

/// A socket that is handed over is used, and is still there afterwards.
#[test]
fn a_socket_that_was_handed_over_is_served_and_left_in_place() {
    let store = Store::new();
    if store.sh("command -v python3").code != 0 {
        return skip("a_socket_that_was_handed_over...", "needs python3 to hand it over");
    }
    store.send("q", b"a\n");
    store.run("mq-admin", &["stop"], b"").ok();
    let script = "import os, socket, sys\n\
        s = socket.socket(socket.AF_UNIX)\n\
        os.chdir(sys.argv[1])\n\
        s.bind('sock'); s.listen(64)\n\
        os.dup2(s.fileno(), 3)\n\
        os.set_inheritable(3, True)\n\
        os.environ['LISTEN_FDS'] = '1'; os.environ['LISTEN_PID'] = str(os.getpid())\n\
        os.execvp('mq-serve', ['mq-serve', '--dir', sys.argv[1]])\n";
    let _ = std::fs::remove_file(store.path().join("sock"));
    let mut command = store.shell("exec python3 -c \"$0\" \"$MQ_DIR\"");
    command.arg(script);
    let server = Running::start(command);
    eventually("it answers", || Peer::connect(&store).ok());
    assert_eq!(store.receive("q"), b"a\n");
    server.signal(Signal::TERM);
    server.finish().ok();
    assert!(store.path().join("sock").exists(), "the supervisor's socket stays");
}
