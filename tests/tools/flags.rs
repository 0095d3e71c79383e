//! What all flags promise: each spelling, progress, colour, how much a server tells.

use crate::harness::Store;
use crate::seq;

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
