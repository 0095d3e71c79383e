//! A file as the destination.

use crate::harness::{Random, Store, eventually, skip};
use crate::{pipe, seq, size};

#[test]
fn a_file_gets_each_message_once() {
    let store = Store::new();
    store.send("a", &seq(1, 1000));
    let file = store.beside("out.txt");
    std::fs::write(&file, b"before\n").expect("writes");
    pipe(&store, &["-e", "a", "file:out.txt", "--", "cat"]).ok();
    pipe(&store, &["-e", "a", "file:out.txt", "--", "cat"]).ok();
    let expected = [b"before\n".to_vec(), seq(1, 1000)].concat();
    assert_eq!(std::fs::read(&file).expect("reads"), expected);
    std::fs::write(&file, b"cut\n").expect("writes");
    pipe(&store, &["-e", "a", "file:out.txt", "--", "cat"]).exits(1).says("--reset");
    pipe(&store, &["-e", "--reset", "a", "file:out.txt", "--", "cat"]).ok();
    assert_eq!(std::fs::read(&file).expect("reads"), b"cut\n", "nothing of a is left to read");
}

/// Only UTF-8 was taken, and the argument was not named.
#[test]
fn a_file_may_have_any_name() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", &seq(1, 3));
    // Each is a pipe of its own, though they look alike where they are shown.
    store.sh("mq-pipe -e a file:$'caf\\xe9' -- cat && mq-pipe -e a file:$'caf\\xe8' -- cat").ok();
    store.sh("cmp $'caf\\xe9' <(seq 3) && cmp $'caf\\xe8' <(seq 3)").ok();
    store
        .sh("mq-pipe -e a $'caf\\xe9' -- cat")
        .exits(2)
        .says("\"caf\\xE9\" is no name for a queue");
}

/// A link that leads nowhere yet: the file is made there, and there its name has to be durable.
#[test]
fn a_file_behind_a_link_is_made_durable_where_it_is() {
    let store = Store::new();
    if store.sh("strace -o /dev/null true").code != 0 {
        return skip("a_file_behind_a_link_is_made_durable_where_it_is", "needs strace");
    }
    store.send("a", b"x\n");
    let pipe = "mq-pipe -e a file:out -- cat";
    let trace_of = |store: &Store, pipe: &str| {
        store.sh(&format!("strace -f -y -qq -o trace -e trace=fsync {pipe}")).ok();
        std::fs::read_to_string(store.beside("trace")).expect("strace wrote it")
    };
    store.sh("mkdir there && ln -s there/out out").ok();
    let trace = trace_of(&store, pipe);
    assert_eq!(std::fs::read(store.beside("there/out")).expect("reads"), b"x\n");
    assert!(trace.contains("/there>"), "{trace}");
    // A session that was killed may have left the name of a journal, which lies beside the link.
    let again = trace_of(&store, pipe);
    let beside = format!("<{}>", store.beside("").display().to_string().trim_end_matches('/'));
    let opening = again.lines().take_while(|line| !line.contains("/there>")).count();
    let beside_at = again.lines().position(|line| line.contains(&beside));
    assert!(beside_at.is_some_and(|at| at < opening), "{beside} first in {again}");
}

/// Once, what came after the file was moved went into a file without a name, and was let go of.
#[test]
fn a_file_that_is_moved_while_a_pipe_writes_it_is_not_written_any_more() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    let args = ["--name", "p", "a", "file:out.txt", "--", "cat"];
    let mut running = store.spawn("mq-pipe", &args);
    let file = store.beside("out.txt");
    eventually("it has written", || (std::fs::read(&file).ok()? == seq(1, 10)).then_some(()));
    std::fs::rename(&file, store.beside("out.txt.1")).expect("renames");
    store.send("a", &seq(11, 20));
    assert_eq!(running.await_end(), 1);
    let said = running.last_words();
    assert!(said.contains("out.txt: it was moved or removed while the pipe ran"), "{said}");
    store.await_number("a", "ready", 10);
    pipe(&store, &[&["-e"], &args[..]].concat()).exits(1).says("was cut or removed");
    std::fs::rename(store.beside("out.txt.1"), &file).expect("renames");
    pipe(&store, &[&["-e"], &args[..]].concat()).ok();
    assert_eq!(std::fs::read(&file).expect("reads"), seq(1, 20));
}

/// Once, what had been read ahead of a server that was lost was forgotten piece by piece, and the pipe took
/// a later piece meanwhile: its commit passed over those that were gone, and they were acked.
#[test]
fn a_file_has_no_hole_after_kills_of_the_server() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    // Many batches, so that many pieces are read ahead.
    let batches = 300;
    let feed =
        format!("for n in $(seq 1 {batches}); do seq $((n*10-9)) $((n*10)) | mq-send a; done");
    store.sh(&feed).ok();
    let expected = seq(1, batches * 10);
    let mut random = Random(7);
    for round in 0..size("MQ_ROUNDS", 8) {
        // From the oldest each time, and a queue has but so many groups.
        let to = format!("file:out{round}");
        let args = ["--reset", "--stay", "--name", "p", "a", &to, "--", "cat"];
        let mut running = store.spawn("mq-pipe", &args);
        let file = store.beside(&format!("out{round}"));
        let least = random.below(expected.len() as u64 / 2);
        eventually("it has written some", || {
            assert!(!running.has_ended(), "the pipe ended: {}", running.stderr());
            (std::fs::metadata(&file).ok()?.len() > least).then_some(())
        });
        store.kill_server();
        let length = || std::fs::metadata(&file).map_or(0, |meta| meta.len());
        eventually("all is there", || (length() >= expected.len() as u64).then_some(()));
        running.signal(rustix::process::Signal::TERM);
        running.await_end();
        assert!(std::fs::read(&file).expect("reads") == expected, "round {round}");
    }
}

/// G14: kill -9 of the pipe at any moment.
#[test]
fn a_file_is_exact_over_kills_of_the_pipe() {
    let store = Store::new();
    let rounds = size("MQ_ROUNDS", 8);
    let mut random = Random(3);
    let args = ["--batch", "50", "--name", "p", "a", "file:out.txt", "--", "cat"];
    let mut sent = 0;
    for _ in 0..rounds {
        store.send("a", &seq(sent + 1, sent + 1000));
        sent += 1000;
        let mut running = store.spawn("mq-pipe", &args);
        let file = store.beside("out.txt");
        let length = || std::fs::metadata(&file).map_or(0, |meta| meta.len());
        let least = length() + random.below(3000);
        eventually("it has written some", || (length() > least).then_some(()));
        running.signal(rustix::process::Signal::KILL);
        running.await_end();
    }
    // Many rounds leave much behind, which need not go in small batches.
    pipe(&store, &["-e", "--name", "p", "a", "file:out.txt", "--", "cat"]).ok();
    assert!(std::fs::read(store.beside("out.txt")).expect("reads") == seq(1, sent));
}

/// Once, a pipe of another name went on from what stood in the journal, though that was where the
/// first had read to: what this one had not read was passed over.
#[test]
fn a_file_is_that_of_one_pipe() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", &seq(1, 10));
    pipe(&store, &["-e", "--name", "p", "a", "file:out.txt", "--", "cat"]).ok();
    let other = ["-e", "--name", "q", "a", "file:out.txt", "--", "cat"];
    pipe(&store, &other).exits(1).says("was written by pipe p, and this is pipe q");
    let other = ["-e", "--reset", "--name", "q", "a", "file:out.txt", "--", "cat"];
    pipe(&store, &other).ok();
    let both = [seq(1, 10), seq(1, 10)].concat();
    assert_eq!(std::fs::read(store.beside("out.txt")).expect("reads"), both);
}

/// Once, a device was taken for a file: what it had was looked for in vain in the next run, and a
/// journal stood beside it in /dev.
#[test]
fn only_a_regular_file_will_do() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    store.sh("mkfifo fifo; mkdir dir").ok();
    for name in ["fifo", "dir"] {
        let to = format!("file:{name}");
        pipe(&store, &["-e", "a", &to, "--", "cat"]).exits(1).says("is no regular file");
        assert!(!store.beside(&format!("{name}.mq-pipe.lock")).exists());
    }
}
