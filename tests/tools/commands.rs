//! A command for each message: what its end means, what it finds, and what becomes of its
//! messages when something dies. (Rates and long rounds stand elsewhere.)

use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Done, Random, Store, eventually};
use crate::seq;
use crate::terminal::Terminal;

/// Runs `mq-recv ARGS -- sh -c SCRIPT` beside the store.
#[track_caller]
fn work(store: &Store, args: &[&str], script: &str) -> Done {
    let args = [args, &["--", "sh", "-c", script]].concat();
    store.run("mq-recv", &args, b"")
}

fn read(store: &Store, file: &str) -> String {
    std::fs::read_to_string(store.beside(file)).unwrap_or_default()
}

/// The lines of a file, sorted.
fn sorted(store: &Store, file: &str) -> Vec<String> {
    let mut lines: Vec<String> = read(store, file).lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// A pipe with a name, on which commands wait.
fn gate(store: &Store) -> std::path::PathBuf {
    store.sh("mkfifo gate").ok();
    store.beside("gate")
}

/// Lets one command on.
fn pass(gate: &Path) {
    std::fs::write(gate, "go\n").expect("a command waits");
}

#[test]
fn each_message_is_on_the_stdin_of_a_command_and_gone_when_it_succeeds() {
    let store = Store::new();
    store.send("q", &seq(1, 50));
    let done = work(&store, &["-e", "-P4", "q"], "cat >> out").ok().quietly();
    assert_eq!(done.text(), "");
    let mut numbers: Vec<u64> = read(&store, "out").lines().map(|n| n.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=50).collect::<Vec<u64>>());
    assert_eq!(store.number("q", "ready") + store.number("q", "unacked"), 0);
}

#[test]
fn every_byte_of_a_message_arrives() {
    let store = Store::new();
    let large = Random(7).bytes(3 << 20);
    for (index, body) in
        [b"".as_slice(), b"\0\xff\r\n\n", b"no newline", &large].into_iter().enumerate()
    {
        store.run("mq-send", &["--whole", "q"], body).ok();
        work(&store, &["--raw", "-n1", "q"], "cat > out").ok();
        assert!(std::fs::read(store.beside("out")).unwrap() == body, "message {index}");
    }
    store.send("q", b"a\nb\n");
    assert_eq!(
        work(&store, &["-0", "-n2", "q"], "od -An -c").ok().text(),
        "   a  \\0\n   b  \\0\n"
    );
}

#[test]
fn a_command_need_not_read_its_message() {
    let store = Store::new();
    store.run("mq-send", &["--whole", "q"], &vec![b'x'; 4 << 20]).ok();
    store.run("mq-recv", &["-n1", "q", "--", "true"], b"").ok().quietly();
    assert_eq!(store.number("q", "ready"), 0);
}

#[test]
fn output_and_errors_of_a_command_are_those_of_the_receiver() {
    let store = Store::new();
    store.send("q", b"a\n");
    let done = work(&store, &["-e", "q"], "cat; echo told >&2").ok();
    assert_eq!((done.text(), done.stderr.as_str()), ("a\n", "told\n"));
}

#[test]
fn facts_are_in_the_environment() {
    let store = Store::new();
    store.run("mq-send", &["-k", "key", "-H", "content-type=a b", "q", "-m", "x"], b"").ok();
    store.run("mq-send", &["--id", "id1", "q", "-m", "y"], b"").ok();
    let print = "env | grep ^MQ_ | grep -v -e ^MQ_DIR -e ^MQ_TIME | sort; echo";
    let done = work(&store, &["-e", "q"], print).ok();
    assert_eq!(
        done.text(),
        "MQ_ATTEMPT=1\nMQ_GROUP=default\nMQ_HEADER_CONTENT_TYPE=a b\nMQ_KEY=key\nMQ_OFFSET=0\n\
         MQ_QUEUE=q\n\nMQ_ATTEMPT=1\nMQ_GROUP=default\nMQ_ID=id1\nMQ_OFFSET=1\nMQ_QUEUE=q\n\n"
    );
}

#[test]
fn with_the_end_each_message_is_tried_once_and_a_failure_shows_in_the_status() {
    let store = Store::new();
    store.send("q", &seq(1, 6));
    let fail_odd = "read n; echo $n $MQ_ATTEMPT >> tries; exit $((n % 2 * 3))";
    work(&store, &["-e", "--backoff", "1ms", "q"], fail_odd).exits(123);
    assert_eq!(sorted(&store, "tries"), ["1 1", "2 1", "3 1", "4 1", "5 1", "6 1"]);
    eventually("three are ready again", || (store.number("q", "ready") == 3).then_some(()));
    work(&store, &["-e", "q"], "read n; echo $n $MQ_ATTEMPT >> again").ok();
    assert_eq!(sorted(&store, "again"), ["1 2", "3 2", "5 2"]);
    work(&store, &["-e", "q"], "false").ok();
}

/// The pause is the server's: another receiver does not get it earlier.
#[test]
fn a_failed_message_rests_before_it_is_tried_again() {
    let store = Store::new();
    store.send("q", b"a\nb\n");
    work(&store, &["-n1", "--backoff", "1h", "q"], "false").ok();
    assert_eq!(store.receive("q"), b"b\n");
    assert_eq!(store.receive("q"), b"");
    store.run("mq-recv", &["-w", "50ms", "q"], b"").exits(124);
    assert_eq!(store.show("q").expect("q").pointer("/groups/0/resting").unwrap(), 1);
}

#[test]
fn after_the_delivery_limit_a_message_is_a_dead_letter() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "--delivery-limit", "3", "q"], b"").ok();
    store.send("q", b"a\n");
    let script = "echo $MQ_ATTEMPT >> tries; echo why >&2; exit 7";
    work(&store, &["-n3", "--backoff", "1ms", "q"], script).exits(123);
    assert_eq!(sorted(&store, "tries"), ["1", "2", "3"]);
    store.await_number("q.dead", "ready", 1);
    let done = store.run("mq-recv", &["-J", "-e", "q.dead"], b"").ok();
    let letter: serde_json::Value = serde_json::from_str(done.text()).expect("an envelope");
    assert_eq!(letter["data"], "a");
    let headers = &letter["headers"];
    assert_eq!(headers["mq-dead-queue"], "q");
    assert_eq!(headers["mq-dead-attempts"], "3");
    assert_eq!(headers["mq-dead-reason"], "exit status 7");
    assert_eq!(headers["mq-dead-stderr"], "why\n");
}

#[test]
fn status_65_makes_a_dead_letter_at_once() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    work(&store, &["-n3", "q"], "read n; [ $n != 2 ] || exit 65").exits(123);
    store.await_number("q.dead", "ready", 1);
    assert_eq!(store.receive("q.dead"), b"2\n");
    assert_eq!(store.number("q", "ready"), 0);
}

/// Dead letters cannot be stored here, so they are still dying when the server is killed.
#[test]
fn what_status_65_buried_stays_so_after_a_kill_of_the_server() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    work(&store, &["-n3", "q"], "exit 65").exits(123);
    store.kill_server();
    assert_eq!(store.receive("q"), b"");
    store.await_number("q.dead", "ready", 3);
    assert_eq!(store.receive("q"), b"");
}

#[test]
fn a_command_that_is_not_there_takes_nothing_and_burns_no_attempt() {
    let store = Store::new();
    store.send("q", b"a\n");
    store.run("mq-recv", &["q", "--", "no-such-command"], b"").exits(127).says("no-such-command");
    store.run("mq-recv", &["q", "--", "/etc/passwd"], b"").exits(126).says("/etc/passwd");
    work(&store, &["q"], "no-such-command").exits(127).says("127");
    assert_eq!(work(&store, &["-e", "q"], "cat; echo $MQ_ATTEMPT").ok().text(), "a\n2\n");
}

#[test]
fn a_command_that_takes_too_long_is_ended_with_all_it_started() {
    let store = Store::new();
    store.send("q", b"a\n");
    let script = "sleep 600 & echo $! > child; wait";
    work(&store, &["-e", "--timeout", "200ms", "--backoff", "1ms", "q"], script).exits(123);
    let child = read(&store, "child");
    eventually("the child of the command is gone", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.trim()));
        status.map_or(true, |status| status.contains("State:\tZ")).then_some(())
    });
    assert_eq!(work(&store, &["-n1", "q"], "cat").ok().text(), "a\n");
}

#[test]
fn batches_are_of_one_queue_and_settled_together() {
    let store = Store::new();
    store.send("q", &seq(1, 100));
    let script = "cat > batch.$MQ_OFFSET; n=$(wc -l < batch.$MQ_OFFSET); \
                  [ $n = $MQ_COUNT ] && [ $n -le 30 ] || exit 1; echo $n >> counts";
    work(&store, &["-e", "-P2", "--batch", "30", "q"], script).ok();
    let counts: u64 = read(&store, "counts").lines().map(|n| n.parse::<u64>().unwrap()).sum();
    assert_eq!(counts, 100);
    assert_eq!(store.sh("cat batch.* | sort -n").ok().stdout, seq(1, 100));
    assert_eq!(store.number("q", "ready"), 0);
    store.send("q", &seq(1, 3));
    work(&store, &["-e", "--batch", "30", "--backoff", "1ms", "q"], "false").exits(123);
    eventually("all of a failed batch is ready again", || {
        (store.number("q", "ready") == 3).then_some(())
    });
}

#[test]
fn a_first_signal_waits_for_what_runs_and_a_second_ends_it() {
    let store = Store::new();
    store.send("q", &seq(1, 5));
    let gate = gate(&store);
    let args = ["q", "--", "sh", "-c", "echo >> begun; cat gate > /dev/null; echo >> done"];
    let mut receiver = store.spawn("mq-recv", &args);
    eventually("a command runs", || (read(&store, "begun") == "\n").then_some(()));
    receiver.signal(Signal::INT);
    eventually("the rest is back", || (store.number("q", "ready") == 4).then_some(()));
    pass(&gate);
    assert_eq!(receiver.await_end(), 130);
    assert_eq!((read(&store, "done").as_str(), store.number("q", "ready")), ("\n", 4));
    let mut receiver = store.spawn("mq-recv", &["q", "--", "sleep", "600"]);
    eventually("a command runs", || (store.number("q", "unacked") > 0).then_some(()));
    receiver.signal(Signal::TERM);
    eventually("the rest is back", || (store.number("q", "ready") == 3).then_some(()));
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.await_end(), 143);
    assert_eq!(store.number("q", "ready"), 4);
}

#[test]
fn what_runs_when_the_server_dies_is_done_once() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    let gate = gate(&store);
    let script = "read n; echo $n $MQ_ATTEMPT >> begun; cat gate > /dev/null";
    let mut receiver = store.spawn("mq-recv", &["-n3", "q", "--", "sh", "-c", script]);
    eventually("a command runs", || (read(&store, "begun") == "1 1\n").then_some(()));
    store.kill_server();
    pass(&gate);
    for count in 2..=3 {
        eventually("another", || (read(&store, "begun").lines().count() == count).then_some(()));
        pass(&gate);
    }
    assert_eq!(receiver.await_end(), 0);
    assert_eq!(read(&store, "begun"), "1 1\n2 1\n3 1\n");
    assert_eq!(store.number("q", "ready") + store.number("q", "unacked"), 0);
}

/// G5, G13: the message that was being worked on has been tried, the one that waited has not.
#[test]
fn a_killed_receiver_burns_an_attempt_of_what_it_ran_only() {
    let store = Store::new();
    store.send("q", b"a\nb\n");
    let script = "echo $$ > begun; exec sleep 600";
    let mut receiver = store.spawn("mq-recv", &["q", "--", "sh", "-c", script]);
    eventually("a command runs", || read(&store, "begun").ends_with('\n').then_some(()));
    receiver.signal(Signal::KILL);
    receiver.await_end();
    // Nobody is left who could end it.
    store.sh("kill -9 $(cat begun)").ok();
    eventually("both are back", || (store.number("q", "ready") == 2).then_some(()));
    let done = work(&store, &["-e", "q"], "cat; echo $MQ_ATTEMPT").ok();
    assert_eq!(done.text(), "a\n2\nb\n1\n");
}

#[test]
fn two_receivers_share_and_each_message_is_done_once() {
    let store = Store::new();
    store.send("q", &seq(1, 400));
    let script =
        "mq-recv -e -P2 q -- sh -c 'cat >> out1' & mq-recv -e -P2 q -- sh -c 'cat >> out2'; wait";
    store.sh(script).ok();
    assert_eq!(store.sh("sort -n out1 out2").ok().stdout, seq(1, 400));
    for file in ["out1", "out2"] {
        assert!(read(&store, file).lines().count() > 50, "{file} got its share");
    }
}

#[test]
fn envelopes_go_from_queue_to_queue_by_a_command() {
    let store = Store::new();
    store.send("a", &seq(1, 1000));
    store
        .run("mq-recv", &["-J", "-e", "--batch", "100", "a", "--", "mq-send", "-J", "b"], b"")
        .ok();
    assert_eq!(store.receive("b"), seq(1, 1000));
    assert_eq!(store.number("a", "ready"), 0);
}

#[test]
fn what_makes_no_sense_with_a_command_is_a_usage_error() {
    let store = Store::new();
    let usage = |args: &[&str], says: &str| {
        store.run("mq-recv", args, b"").exits(2).says(says);
    };
    usage(&["q", "--", "echo", "{}"], "IFS= read -r x; echo \"$x\"");
    usage(&["-P2", "q"], "CMD");
    usage(&["-P0", "q", "--", "true"], "number");
    usage(&["--timeout", "0", "q", "--", "true"], "time");
    usage(&["--backoff", "5m..1s", "q", "--", "true"], "backwards");
    usage(&["--peek", "q", "--", "true"], "--peek");
    usage(&["--lease", "1m", "-J", "q", "--", "true"], "receipt");
    usage(&["q", "./work"], "--");
    usage(&["--", "true"], "QUEUE");
    assert!(!store.path().exists(), "nothing was made");
}

/// The commands used to be failed one after another, until all messages were dead letters.
#[test]
fn a_reader_of_the_output_that_goes_costs_no_message() {
    let store = Store::new();
    store.run("mq-admin", &["declare", "q", "--delivery-limit", "2"], b"").ok();
    store.send("q", &seq(1, 4));
    store.sh("{ mq-recv q -- sh -c 'sleep 0.1; cat'; echo $? > status; } | true").ok();
    assert_eq!(read(&store, "status"), "141\n");
    assert_eq!(store.number("q", "ready"), 4);
    assert!(store.show("q.dead").is_none());
}

#[test]
fn a_command_that_is_not_there_takes_nothing() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    let done = store.run("mq-recv", &["-e", "q", "--"], b"").exits(2);
    assert!(done.stderr.contains("no command behind --"), "{}", done.stderr);
    store.sh("mq-recv -e q -- cat >&-; test $? = 1").ok();
    assert_eq!(store.number("q", "ready"), 3);
}

/// A command that asks the terminal is stopped by the system: it was waited for without a word.
#[test]
fn a_command_that_asks_the_terminal_is_told_of() {
    let store = Store::new();
    store.send("q", b"x\n");
    let args = ["-e", "q", "--", "sh", "-c", "read answer < /dev/tty; echo got"];
    let mut terminal = Terminal::start(&store.command("mq-recv", &args), 200, 24);
    let text = terminal.await_words("asked the terminal");
    let (_, rest) = text.split_once("the command (process ").expect("it is named");
    let pid = rest.split(')').next().expect("a number").to_owned();
    store.sh(&format!("kill -9 {pid}")).ok();
    assert_eq!(terminal.await_end(), 123);
}
