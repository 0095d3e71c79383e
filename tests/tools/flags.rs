//! What all flags promise: each spelling, progress, colour, how much a server tells.

use crate::harness::Store;
use crate::seq;
use crate::terminal::Terminal;

#[test]
fn long_spellings_do_what_the_short_ones_do() {
    let store = Store::new();
    let send = |args: &[&str], input: &[u8]| store.run("mq-send", args, input).ok();
    send(&["--null", "q"], b"a\0b\0");
    send(&["--delimiter", ",", "q"], b"c,d");
    send(&["--message", "e", "--key", "k", "--header", "h=1", "--id", "i", "q"], b"");
    send(&["--json", "--wait", "10s", "q"], b"{\"data\":\"f\"}\n");
    let tee = send(&["--tee", "--quiet", "q"], b"g\n");
    assert_eq!(tee.text(), "g\n");
    let receive = |args: &[&str]| store.run("mq-recv", args, b"").ok().stdout;
    assert_eq!(receive(&["--count", "2", "--null", "q"]), b"a\0b\0");
    assert_eq!(receive(&["--count", "2", "--delimiter", ",", "q"]), b"c,d,");
    let format = "%s %k %h\\n";
    assert_eq!(receive(&["--count", "1", "--format", format, "q"]), b"e k h=1\n");
    let envelope = receive(&["--count", "1", "--json", "--wait", "10s", "q"]);
    let envelope: serde_json::Value = serde_json::from_slice(&envelope).expect("JSON");
    assert_eq!(envelope["data"], "f");
    receive(&["--group", "other", "--from", "oldest", "--end", "q"]);
    assert_eq!(receive(&["--end", "--parallel", "2", "q", "--", "cat"]), b"g\n");
    let listed = store.run("mq-admin", &["ls", "--long", "--json"], b"").ok();
    let info: serde_json::Value = serde_json::from_str(listed.text().trim()).expect("JSON");
    assert_eq!(info["ready"], 0);
}

#[test]
fn progress_is_told_on_stderr_when_it_is_asked_for() {
    let store = Store::new();
    let input = seq(1, 10_000);
    store.run("mq-send", &["q"], &input).ok().quietly();
    store.run("mq-send", &["-p", "q"], &input).ok().says("10000 messages");
    let done = store.run("mq-recv", &["-e", "--progress", "q"], b"").ok().says("20000 messages");
    assert!(done.stdout == [&input[..], &input].concat(), "only messages on stdout");
}

#[test]
fn colour_is_for_terminals_unless_it_is_asked_for() {
    let store = Store::new();
    store.send("q", b"x\n");
    let has_escapes = |args: &[&str]| {
        let done = store.run("mq-admin", &[&["ls"], args].concat(), b"").ok();
        done.stdout.contains(&0x1b)
    };
    assert!(!has_escapes(&[]));
    assert!(!has_escapes(&["--color", "auto"]));
    assert!(!has_escapes(&["--color", "never"]));
    assert!(has_escapes(&["--color", "always"]));
    let done = store.sh("NO_COLOR=1 mq-admin ls --color always").ok();
    assert!(done.stdout.contains(&0x1b), "a flag goes before the environment");
    for tool in ["mq-send", "mq-recv", "mq-admin", "mq-stat", "mq-serve"] {
        store.run(tool, &["--color", "sometimes"], b"").exits(2).says("--color");
    }
}

/// `--color` was said to be of messages, and changed nothing about any.
#[test]
fn usage_errors_are_coloured_as_the_flag_says() {
    let store = Store::new();
    for tool in ["mq-send", "mq-recv", "mq-pipe", "mq-admin", "mq-stat", "mq-serve"] {
        let wrong = |args: &[&str]| store.run(tool, &[args, &["--wrong"]].concat(), b"").exits(2);
        assert!(!wrong(&[]).stderr.contains('\x1b'), "{tool}");
        assert!(wrong(&["--color", "always"]).stderr.contains('\x1b'), "{tool}");
        assert!(wrong(&["--color=always"]).stderr.contains('\x1b'), "{tool}");
        let command = store.command(tool, &["--color", "never", "--wrong"]);
        let mut terminal = Terminal::start(&command, 80, 24);
        assert_eq!(terminal.await_end(), 2);
        let bytes = String::from_utf8_lossy(&terminal.bytes);
        assert!(bytes.contains("--wrong") && !bytes.contains('\x1b'), "{tool}: {bytes:?}");
    }
}

#[test]
fn quiet_goes_before_progress() {
    let store = Store::new();
    store.run("mq-send", &["-p", "-q", "q"], &seq(1, 5)).ok().quietly();
    let told = store.run("mq-send", &["-p", "q"], &seq(1, 5)).ok().stderr;
    assert_eq!(told, "mq-send: 5 messages (10 bytes) stored\n");
    store.run("mq-recv", &["-p", "-q", "-n3", "q"], b"").ok().quietly();
    store.run("mq-pipe", &["-p", "-q", "-e", "q", "p", "--", "cat"], b"").ok().quietly();
}

/// One that is no UTF-8 was refused without being named, as "one or more".
#[test]
fn an_argument_that_is_no_utf8_is_named() {
    let store = Store::new();
    for script in
        ["mq-send $'caf\\xe9' -m x", "mq-recv -F $'caf\\xe9' q", "mq-admin show $'caf\\xe9'"]
    {
        let done = store.sh(script).exits(2);
        done.says("the argument \"caf\\xE9\" is not UTF-8");
    }
}

/// What is written as it should be was said not to be, where it is only too much.
#[test]
fn values_beyond_a_limit_are_told_the_limit() {
    let store = Store::new();
    let wrong = |args: &[&str], why: &str| {
        store.run("mq-send", &[args, &["-m", "x", "q"]].concat(), b"").exits(2).says(why);
    };
    wrong(&["--ttl", "100000d"], "36600d is the longest duration");
    wrong(&["--delay", "100000d"], "36600d is the longest duration");
    wrong(&["--delay", "9999-12-31T23:59:59Z"], "to 9999-12-30T22:00:00Z");
    wrong(&["--delay", "1969-12-31T23:59:59Z"], "before 1970");
    wrong(&["-k", &"k".repeat(70_000)], "each message has 70005 bytes of key, id and headers");
    let done = store.run("mq-recv", &["--from", "9999-12-31T23:59:59Z", "-g", "g", "q"], b"");
    done.exits(2).says("to 9999-12-30T22:00:00Z");
    store.run("mq-admin", &["ls", "q*"], b"").exits(2).says("mq-admin show QUEUE");
}

#[test]
fn a_server_tells_as_much_as_it_is_asked_to() {
    let store = Store::new();
    let told = |args: &[&str], environment: Option<&str>| {
        let mut command = store.command("mq-serve", args);
        command.envs(environment.map(|level| ("MQ_LOG", level)));
        let server = crate::harness::Running::start(command);
        crate::harness::eventually("the server answers", || {
            (store.run("mq-admin", &["ls"], b"").code == 0).then_some(())
        });
        store.run("mq-admin", &["stop"], b"").ok();
        let stderr = server.finish().ok().stderr;
        (stderr.contains("queues recovered"), stderr.contains("connects"))
    };
    let (nothing, info, debug) = ((false, false), (true, false), (true, true));
    assert_eq!(told(&[], None), info);
    for quiet in [&["--log-level", "error"][..], &["-q"], &["--quiet"]] {
        assert_eq!(told(quiet, Some("debug")), nothing, "{quiet:?}");
    }
    assert_eq!(told(&[], Some("error")), nothing);
    assert_eq!(told(&[], Some("debug")), debug);
    // -v once gave way to the environment.
    for verbose in [&["--log-level", "debug"][..], &["-v"], &["--verbose"]] {
        assert_eq!(told(verbose, Some("error")), debug, "{verbose:?}");
    }
    let done = store.sh("MQ_LOG=loud mq-serve").exits(2);
    assert!(done.stderr.contains("MQ_LOG"), "{}", done.stderr);
}
