//! The live view of mq-stat, on real terminals.

use std::process::Command;

use mq::settings::Wanted;
use mq::units::Name;
use mq::wire::{Admin, Kind, Request};
use rustix::process::Signal;

use crate::harness::peer::Peer;
use crate::harness::{Running, Store, skip};
use crate::terminal::Terminal;

fn view(store: &Store, args: &[&str]) -> Command {
    let mut command = store.command("mq-stat", args);
    command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
    command
}

fn watch(store: &Store, args: &[&str], columns: u16, lines: u16) -> Terminal {
    Terminal::start(&view(store, args), columns, lines)
}

/// Makes queues, all over one connection.
fn declare(store: &Store, names: impl Iterator<Item = String>) {
    let mut peer = Peer::connect(store).expect("a server");
    for name in names {
        let queue = Name::new(&name).expect("a name");
        let declare = Admin::Declare { queue, wanted: Wanted::default(), change: false };
        peer.say(1, &Request::Admin(declare)).expect("said");
        peer.frame_of(Kind::Reply);
    }
}

/// The number in a column of a queue's line.
fn cell(text: &str, queue: &str, column: usize) -> Option<String> {
    let line = text.lines().find(|line| line.get(2..).is_some_and(|l| l.starts_with(queue)))?;
    line.get(2..)?.split_whitespace().nth(column).map(str::to_owned)
}

#[test]
fn load_is_shown_and_so_is_a_new_server() {
    let store = Store::new();
    let flood = Running::start(store.shell("yes | mq-send flood"));
    let slow = store.spawn("mq-recv", &["flood", "--", "sleep", "60"]);
    let mut terminal = watch(&store, &[], 80, 24);
    terminal.await_words("throughput");
    let is_large = |cell: Option<String>| cell.is_some_and(|c| c.ends_with(['k', 'M', 'G']));
    let text = terminal.await_text("a backlog", |text| is_large(cell(text, "flood", 1)));
    terminal.await_text("a rate", |text| is_large(cell(text, "flood", 3)));
    for head in ["QUEUE", "READY", "UNACK", "IN/s", "OUT/s", "AGE", "P50", "P99", "ETA", "TREND"] {
        assert!(text.contains(head), "{head} is not in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(terminal.is_taken(), (true, true));
    terminal.resize(200, 60);
    let text = terminal.await_words("B OUT");
    assert!(text.contains("RECV"), "{text}");
    terminal.resize(60, 15);
    terminal.await_text("a small view", |text| text.contains("IN/s") && !text.contains("TREND"));
    terminal.resize(80, 24);
    terminal.await_words("TREND");
    // The senders start another server.
    store.kill_server();
    let text = terminal.await_words("started anew");
    assert!(text.contains("flood"), "{text}");
    terminal.await_text("load again", |text| is_large(cell(text, "flood", 1)));
    terminal.keys("\r");
    let page = terminal.await_words("CLIENT");
    assert!(page.contains("LATENCY") && page.contains("GROUP"), "{page}");
    let page = terminal
        .await_text("both ends", |text| text.contains("mq-send") && text.contains("mq-recv"));
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    assert!(!crate::harness::is_root() || page.contains("root"), "{user} is not in\n{page}");
    terminal.keys("?");
    terminal.await_words("invert the order");
    terminal.keys("q");
    terminal.is_given_back(0);
    flood.signal(Signal::TERM);
    slow.signal(Signal::TERM);
    drop((flood, slow));
    assert!(!terminal.text().contains("QUEUE"), "the screen from before is back");
}

#[test]
fn a_server_is_waited_for_and_none_is_started() {
    let store = Store::new();
    let mut terminal = watch(&store, &[], 80, 24);
    terminal.await_words("no mq-serve runs on the store");
    terminal.await_words("waiting for a server");
    assert!(store.servers().is_empty(), "watching starts none");
    let server = store.serve();
    terminal.await_words("no queue yet");
    declare(&store, ["first".to_owned()].into_iter());
    terminal.await_words("first");
    store.send("second", b"1\n2\n3\n");
    terminal.await_text("3 ready", |text| cell(text, "second", 1).as_deref() == Some("3"));
    server.signal(Signal::STOP);
    terminal.await_words("does not answer");
    server.signal(Signal::CONT);
    terminal.await_text("an answer", |text| !text.contains("does not answer"));
    store.run("mq-admin", &["stop"], b"").ok();
    terminal.await_words("these figures are the last");
    terminal.keys("\x03");
    terminal.is_given_back(130);
}

#[test]
fn a_thousand_queues_are_sorted_filtered_and_scrolled() {
    let store = Store::new();
    let _server = store.serve();
    declare(&store, (0..1000).map(|number| format!("queue-{number:03}")));
    store.send("queue-700", b"1\n2\n3\n");
    let mut terminal = watch(&store, &[], 80, 24);
    terminal.await_words("1,000 queues");
    terminal.await_words("queue-000");
    // By name, then by ready.
    terminal.keys("ss");
    terminal.await_text("the fullest first", |text| {
        text.lines().nth(7).is_some_and(|line| line.contains("queue-700"))
    });
    terminal.keys("\x1b[F");
    terminal.await_words("queue-999");
    terminal.keys("/99\r");
    let text = terminal.await_words("of 19");
    assert!(text.contains("queue-990") && !text.contains("queue-989"), "{text}");
    terminal.keys("q");
    terminal.is_given_back(0);
    // Only some are asked for.
    let mut terminal = watch(&store, &["queue-70?", "--sort", "ready"], 80, 24);
    terminal.await_words("10 queues");
    terminal.keys("q");
    terminal.is_given_back(0);
}

#[test]
fn the_terminal_is_as_it_was_whatever_ends_the_view() {
    let store = Store::new();
    let _server = store.serve();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let mut terminal = watch(&store, &[], 80, 24);
        terminal.await_words("no queue yet");
        assert!(!terminal.is_as_found(), "keys are raw");
        terminal.signal(signal);
        terminal.is_given_back(code);
    }
    for (keys, code) in [("q", 0), ("\x03", 130)] {
        let mut terminal = watch(&store, &[], 80, 24);
        terminal.await_words("no queue yet");
        terminal.keys(keys);
        terminal.is_given_back(code);
    }
}

#[test]
fn a_view_that_is_stopped_gives_the_terminal_back_and_takes_it_again() {
    let store = Store::new();
    let _server = store.serve();
    let mut terminal = watch(&store, &[], 80, 24);
    terminal.await_words("no queue yet");
    terminal.signal(Signal::TSTP);
    terminal.await_state('T');
    terminal.await_text("the screen from before", |text| !text.contains("no queue yet"));
    assert!(terminal.is_as_found());
    assert_eq!(terminal.is_taken(), (false, false));
    terminal.signal(Signal::CONT);
    terminal.await_words("no queue yet");
    assert_eq!(terminal.is_taken(), (true, true));
    terminal.keys("q");
    terminal.is_given_back(0);
}

/// What the next test runs on a terminal.
#[test]
#[ignore = "run by the test below, on a terminal"]
fn a_tool_that_panics() {
    if std::env::var_os("PANIC_ON_TERMINAL").is_none() {
        return;
    }
    let screen = mq::cli::FullScreen::take().expect("a terminal");
    screen.write(b"\x1b[?2026hhalf a frame").expect("written");
    if std::env::var_os("PANIC_ON_TERMINAL").is_some_and(|thread| thread == "other") {
        let other = std::thread::spawn(|| panic!("on purpose, elsewhere"));
        other.join().expect_err("a panic");
    }
    panic!("on purpose");
}

#[test]
fn the_terminal_is_as_it_was_after_a_panic() {
    for thread in ["main", "other"] {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "watching::a_tool_that_panics", "--ignored", "--nocapture"]);
        command.env("PANIC_ON_TERMINAL", thread);
        let mut terminal = Terminal::start(&command, 80, 24);
        let text = terminal.await_words("on purpose");
        assert!(!text.contains("half a frame"), "the screen from before is back:\n{text}");
        terminal.is_given_back(101);
    }
}

/// The name of a command that runs on messages, which anybody may choose.
#[test]
fn a_command_cannot_talk_to_the_terminal() {
    let store = Store::new();
    store.send("q", b"x\n");
    let evil = store.beside("evil\x1b]0;owned\x07");
    std::fs::copy("/bin/sleep", &evil).expect("copied");
    let receiver = store.spawn("mq-recv", &["q", "--", evil.to_str().expect("UTF-8"), "60"]);
    let mut terminal = watch(&store, &[], 120, 30);
    terminal.await_text("the queue", |text| cell(text, "q", 2).as_deref() == Some("1"));
    terminal.keys("\r");
    terminal.await_words("mq-recv");
    terminal.keys("q");
    terminal.is_given_back(0);
    let said = String::from_utf8_lossy(&terminal.bytes).into_owned();
    assert!(!said.contains("\x1b]0;"), "{said:?}");
    drop(receiver);
}

#[test]
fn plain_terminals_get_plain_text() {
    let store = Store::new();
    store.send("q", b"1\n2\n");
    let mut plain = view(&store, &[]);
    plain.env("LC_ALL", "C").env("NO_COLOR", "1");
    let mut terminal = Terminal::start(&plain, 80, 24);
    terminal.await_words("READY");
    terminal.keys("\r");
    terminal.await_words("LATENCY");
    terminal.keys("q");
    terminal.is_given_back(0);
    assert!(terminal.bytes.is_ascii());
    let said = String::from_utf8_lossy(&terminal.bytes).into_owned();
    for colour in ["31m", "32m", "33m", "36m"] {
        assert!(!said.contains(colour), "{said:?}");
    }
    let mut dumb = view(&store, &["-i", "100ms"]);
    dumb.env("TERM", "dumb");
    let mut terminal = Terminal::start(&dumb, 80, 24);
    terminal.await_words("TIME");
    terminal.signal(Signal::INT);
    assert_eq!(terminal.await_end(), 130);
    assert!(!terminal.bytes.contains(&0x1b), "lines only");
}

#[test]
fn a_pane_of_tmux_shows_the_view_and_then_the_shell() {
    let tmux = |args: &[&str]| {
        let store = Command::new("tmux").args(args).env_remove("TMUX").output();
        store.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if tmux(&["-V"]).is_err() {
        skip("a_pane_of_tmux_shows_the_view_and_then_the_shell", "there is no tmux");
        return;
    }
    let store = Store::new();
    store.send("pane", b"1\n2\n3\n");
    let socket = store.beside("tmux").display().to_string();
    let dir = store.path().display().to_string();
    let program = crate::harness::tool("mq-stat").display().to_string();
    let line = format!("echo before; MQ_DIR='{dir}' '{program}'; echo ended with $?; exec cat");
    let mut start = Command::new("tmux");
    start.args(["-S", &socket, "-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24"]);
    let started = start.arg(&line).env("LC_ALL", "C.UTF-8").env_remove("TMUX").status();
    assert!(started.expect("tmux runs").success());
    let pane = || tmux(&["-S", &socket, "capture-pane", "-p"]).expect("a pane");
    let shows = |what: &str| {
        crate::harness::eventually(&format!("the pane shows {what}"), || {
            pane().contains(what).then_some(())
        });
    };
    shows("mq-serve");
    shows("TREND");
    assert!(pane().contains("pane"), "{}", pane());
    tmux(&["-S", &socket, "resize-window", "-x", "200", "-y", "50"]).expect("resized");
    shows("B OUT");
    tmux(&["-S", &socket, "send-keys", "q"]).expect("typed");
    shows("ended with 0");
    assert!(pane().contains("before") && !pane().contains("TREND"), "{}", pane());
    tmux(&["-S", &socket, "kill-server"]).expect("ended");
}
