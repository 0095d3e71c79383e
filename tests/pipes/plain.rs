//! What a pipe does when nothing fails.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Store, eventually, skip};
use crate::{pipe, seq};

/// G14: each message once, also when the same pipe is run again.
#[test]
fn each_message_goes_through_once() {
    let store = Store::new();
    store.send("a", &seq(1, 100_000));
    pipe(&store, &["-e", "a", "b", "--", "cat"]).ok().quietly();
    pipe(&store, &["-e", "a", "b", "--", "cat"]).ok().quietly();
    assert_eq!(store.number("b", "end"), 100_000, "none is stored twice");
    assert_eq!(store.receive("b"), seq(1, 100_000));
    store.send("a", b"more\n");
    pipe(&store, &["-e", "a", "b", "--", "cat"]).ok();
    assert_eq!(store.receive("b"), b"more\n");
}

/// Once, `mq-pipe a - >&-` took its input and ended with 0, as a closed descriptor takes everything.
#[test]
fn closed_descriptors_are_errors_before_anything_is_read() {
    let store = Store::new();
    store.send("a", &seq(1, 3));
    store.sh("mq-pipe -e a - -- cat >&-").exits(1).says("cannot write to stdout: it is closed");
    store.sh("mq-pipe -e - b -- cat <&-").exits(1).says("cannot read stdin: it is closed");
    store.sh("echo x | mq-pipe -e - - -- cat >&-").exits(1).says("closed");
    assert_eq!((store.number("a", "ready"), store.show("b")), (3, None), "nothing was touched");
    // Where nothing is read or printed they are not missed.
    store.sh("mq-pipe -e a b -- cat <&- >&- 2>&-").ok();
    assert_eq!(store.receive("b"), seq(1, 3));
}

/// The source lets go of what was committed.
#[test]
fn what_was_committed_is_settled_in_the_source() {
    let store = Store::new();
    store.send("a", &seq(1, 1000));
    pipe(&store, &["-e", "--name", "p", "a", "b", "--", "cat"]).ok();
    eventually("all is settled", || {
        let info = store.show("a")?;
        let groups = info["groups"].as_array()?.iter();
        let mut ours = groups.filter(|group| group["group"] == "pipe.p");
        (ours.next()?["ready"] == 0).then_some(())
    });
}

/// Two pipes of different names each see everything.
#[test]
fn pipes_of_other_names_see_everything_too() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--retain", "log", "a"], b"").ok();
    store.send("a", &seq(1, 100));
    for to in ["b", "c"] {
        pipe(&store, &["-e", "a", to, "--", "cat"]).ok();
        assert_eq!(store.receive(to), seq(1, 100));
    }
}

/// No output is a result too.
#[test]
fn a_filter_that_finds_nothing_moves_on() {
    let store = Store::new();
    store.send("a", b"one\ntwo\n");
    pipe(&store, &["-e", "--ok", "0,1", "a", "b", "--", "grep", "three"]).ok();
    store.send("a", b"three\n");
    pipe(&store, &["-e", "--ok", "0,1", "a", "b", "--", "grep", "three"]).ok();
    assert_eq!(store.receive("b"), b"three\n");
}

/// Batches have at most so many messages.
#[test]
fn batches_are_bounded_by_a_number() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    pipe(&store, &["-e", "--batch", "3", "a", "b", "--", "wc", "-l"]).ok();
    assert_eq!(store.receive("b"), b"3\n3\n3\n1\n");
    store.send("a", &seq(11, 14));
    let facts = "cat >/dev/null; echo $MQ_QUEUE $MQ_PIPE $MQ_OFFSET $MQ_COUNT";
    let args =
        ["-e", "--batch", "3", "--name", "n", "--from", "-4", "a", "c", "--", "sh", "-c", facts];
    pipe(&store, &args).ok();
    assert_eq!(store.receive("c"), b"a n 10 3\na n 13 1\n");
}

/// It goes on as messages come, waits for its source, and ends by a signal.
#[test]
fn it_runs_until_it_is_told_to_end() {
    let store = Store::new();
    let mut running = store.spawn("mq-pipe", &["a", "b", "--", "cat"]);
    running.await_stderr("there is no queue a yet");
    let mut reader = store.spawn("mq-recv", &["b"]);
    for line in ["one", "two"] {
        store.send("a", format!("{line}\n").as_bytes());
        assert_eq!(reader.line().as_deref(), Some(line));
    }
    running.signal(Signal::TERM);
    assert_eq!(running.await_end(), 143);
    store.send("a", b"three\n");
    assert!(!reader.has_output(Duration::from_millis(100)));
    pipe(&store, &["-e", "a", "b", "--", "cat"]).ok();
    assert_eq!(reader.line().as_deref(), Some("three"));
}

/// A filter that runs when the signal comes is ended, and its batch is not lost.
#[test]
fn a_signal_ends_the_filter_too() {
    let store = Store::new();
    store.send("a", b"x\n");
    let started = store.beside("started");
    let script = format!("echo $$ > {}; sleep 1000", started.display());
    let mut running = store.spawn("mq-pipe", &["--name", "p", "a", "b", "--", "sh", "-c", &script]);
    let pid = eventually("the filter runs", || {
        std::fs::read_to_string(&started).ok()?.trim().parse::<i32>().ok()
    });
    running.signal(Signal::INT);
    assert_eq!(running.await_end(), 130);
    let pid = rustix::process::Pid::from_raw(pid).expect("a process");
    eventually("the filter is gone", || rustix::process::test_kill_process(pid).err().map(drop));
    pipe(&store, &["-e", "--name", "p", "a", "b", "--", "cat"]).ok();
    assert_eq!(store.receive("b"), b"x\n");
}

/// Standard input and output are ends too, with the promises of a plain pipe.
#[test]
fn standard_input_and_output_are_ends_too() {
    let store = Store::new();
    let done = store.run("mq-pipe", &["-", "b", "--", "sed", "s/^/> /"], b"a\nb\nlast");
    done.ok().quietly();
    assert_eq!(store.receive("b"), b"> a\n> b\n> last\n");
    store.send("a", &seq(1, 10));
    let done = pipe(&store, &["-e", "a", "-", "--", "cat"]).ok();
    assert_eq!(done.stdout, seq(1, 10));
    assert_eq!(pipe(&store, &["-e", "a", "-", "--", "cat"]).ok().stdout, b"");
    let done = store.run("mq-pipe", &["-", "-", "--", "tr", "a-z", "A-Z"], b"abc\n").ok();
    assert_eq!(done.stdout, b"ABC\n");
    store.send("a", &seq(1, 200_000));
    store.sh("mq-pipe -e a - -- cat | head -1").exits(141);
}

/// Several filters at once, each on a piece of the batch: the order is kept.
#[test]
fn pieces_of_a_batch_keep_their_order() {
    let store = Store::new();
    store.send("a", &seq(1, 50_000));
    pipe(&store, &["-e", "-P3", "a", "b", "--", "cat"]).ok();
    assert_eq!(store.receive("b"), seq(1, 50_000));
}

/// By key: all messages of a key go to the same filter, in order.
#[test]
fn a_key_stays_with_its_filter_in_order() {
    let store = Store::new();
    let lines: String = (0..20_000).map(|n| format!("k{} {n}\n", n % 7)).collect();
    store.send("a", lines.as_bytes());
    let filter = "while read -r key n; do echo $key $n $MQ_PART; done";
    pipe(&store, &["-e", "-P3", "--key", "1", "a", "b", "--", "sh", "-c", filter]).ok();
    let out = String::from_utf8(store.receive("b")).expect("text");
    let mut last = std::collections::BTreeMap::new();
    let mut parts = std::collections::BTreeMap::new();
    for line in out.lines() {
        let mut words = line.split(' ');
        let (key, n, part) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let n: i64 = n.parse().expect("a number");
        assert!(last.insert(key, n).is_none_or(|before: i64| before + 7 == n), "{line}");
        assert_eq!(parts.entry(key).or_insert(part), &part, "{line}");
    }
    assert_eq!(out.lines().count(), 20_000);
    assert!(parts.values().collect::<std::collections::BTreeSet<_>>().len() > 1);
}

/// What makes no sense is refused with what to do.
#[test]
fn what_makes_no_sense_is_refused() {
    let store = Store::new();
    pipe(&store, &["a", "a", "--", "cat"]).exits(2).says("round for ever");
    pipe(&store, &["a", "b", "--", "xargs", "{}"]).exits(2).says("stdin");
    pipe(&store, &["a", "dir/b", "--", "cat"]).exits(2).says("file:dir/b");
    pipe(&store, &["a", "b"]).exits(2);
    pipe(&store, &["--key", "1", "a", "b", "--", "cat"]).exits(2);
    assert!(store.show("a").is_none() && store.server().is_none(), "no server was asked");
}

/// `show` of the destination tells how its pipes stand.
#[test]
fn the_destination_tells_of_its_pipes() {
    let store = Store::new();
    store.send("a", &seq(1, 100));
    pipe(
        &store,
        &["-e", "--batch", "50", "--name", "p", "--ok", "0,1", "a", "b", "--", "grep", "1$"],
    )
    .ok();
    store.send("a", &seq(1, 5));
    let told = eventually("what was committed is settled", || {
        let info = store.show("b")?;
        let told = info["pipes"][0].clone();
        (told["lag"] == 5).then_some(told)
    });
    assert_eq!((&told["name"], &told["src"]), (&"p".into(), &"a".into()));
    let figures = &told["figures"];
    assert_eq!(
        (&figures["batches"], &figures["read"], &figures["written"]),
        (&2.into(), &100.into(), &10.into())
    );
    let page = store.run("mq-admin", &["show", "b"], b"").ok();
    assert!(
        page.text().contains("p from a: lag 5, 2 batches, 100 read, 10 written"),
        "{}",
        page.text()
    );
}

/// `-p` tells on stderr how far it is, and what it came to.
#[test]
fn progress_is_told_on_stderr() {
    let store = Store::new();
    store.send("a", &seq(1, 10));
    let told = pipe(&store, &["-e", "-p", "--name", "p", "a", "b", "--", "cat"]).ok();
    told.says("pipe p: 10 messages read, 10 written, in 1 batches; 0 failures, 0 dead letters");
    let quiet = pipe(&store, &["-e", "--name", "q", "a", "c", "--", "cat"]).ok();
    quiet.quietly();
}

/// Once, it was "cannot make a pipe for: Too many open files", and no word that it may pass.
#[test]
fn too_few_descriptors_are_told_of_and_may_pass() {
    let store = Store::new();
    let _server = store.serve();
    store.send("a", &seq(1, 10));
    let run =
        |limit: u32| store.sh(&format!("ulimit -n {limit}; exec mq-pipe -e --name p a b -- cat"));
    let told: Vec<_> = (14..40).map(run).take_while(|done| done.code != 0).collect();
    assert!(told.iter().any(|done| done.stderr.contains("make a pipe for a filter: Too many")));
    for done in told {
        assert!(done.stderr.contains("Too many open files"), "{}", done.stderr);
        assert_eq!(done.code, 75, "{}", done.stderr);
    }
    assert_eq!(store.receive("b"), seq(1, 10));
}

/// Once, input that the system did not take for the filter, short of memory, was left out: the filter
/// was told that this was all, and what it made of it was committed.
#[test]
fn what_a_filter_was_not_given_is_not_passed_over() {
    let store = Store::new();
    if store.sh("strace -o /dev/null true").code != 0 {
        return skip("what_a_filter_was_not_given_is_not_passed_over", "needs strace");
    }
    let _server = store.serve();
    let lines = seq(1, 400_000);
    store.send("a", &lines);
    // The way of what is in memory, and of what is in a file.
    for (call, n) in [("writev", 1), ("splice", 4)] {
        let traced = format!(
            "exec strace -f -qq -o /dev/null -e trace={call} -e inject={call}:error=ENOMEM:when={n} \
             mq-pipe -e --name p a b -- cat"
        );
        let done = store.sh(&traced);
        if done.code != 0 {
            assert_eq!(done.code, 75, "{}", done.stderr);
            assert!(done.stderr.contains("cannot write to a filter"), "{}", done.stderr);
        }
    }
    pipe(&store, &["-e", "--name", "p", "a", "b", "--", "cat"]).ok();
    assert!(store.receive("b") == lines);
}
