//! Sending to an engine: confirmed once it is there, sent again when a connection is lost, refused in words.

use std::time::{Duration, Instant};

use mq::limits;
use mq::remote::failure::{Failure, Kind};

use crate::desk::Desk;
use crate::harness::seq;
use crate::memory::Stored;
use crate::stand::Stand;

fn bodies(lines: &[u8]) -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = lines.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    bodies.pop();
    bodies
}

#[test]
fn every_line_is_a_message_there() {
    let stand = Stand::new("every_line_is_a_message_there");
    let lines = seq(1, 100_000);
    stand.store.run("mq-send", &["q"], &lines).ok().quietly();
    assert_eq!(stand.broker.ready("q"), bodies(&lines));
}

#[test]
fn every_byte_and_every_attribute_is_there() {
    let stand = Stand::new("every_byte_and_every_attribute_is_there");
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    stand.store.run("mq-send", &["--whole", "q"], &large).ok();
    let args = ["q", "-m", "a\nb", "-k", "key", "-H", "n=v", "--id", "i", "--ttl", "1h"];
    stand.store.run("mq-send", &args, b"").ok();
    let stored: Vec<Stored> =
        stand.broker.with(|state| state.queues["q"].ready.iter().cloned().collect());
    assert_eq!(stored[0].body, large);
    assert_eq!(stored[1].body, b"a\nb");
    let facts = stored[1].facts.as_ref().expect("facts");
    assert_eq!((facts.key.as_deref(), facts.id.as_deref()), (Some("key"), Some("i")));
    assert_eq!(facts.headers, [("n".to_owned(), "v".to_owned())]);
    assert!(facts.expires.is_some() && facts.event_time.is_none());
}

#[test]
fn what_is_not_confirmed_is_sent_again_in_order_and_stored_once() {
    let stand = Stand::new("what_is_not_confirmed_is_sent_again");
    let lines = seq(1, 200_000);
    for kill in [2, 1, 3] {
        stand.broker.with(|state| state.dies_after = Some(kill));
        stand.store.run("mq-send", &["q"], &lines).ok();
        let died = stand.broker.with(|state| state.dies_after.is_none());
        assert!(died, "it did not die");
        let ready = stand.broker.ready("q");
        assert_eq!(ready, bodies(&lines), "killed after {kill} batches");
        stand.broker.with(|state| state.queues.clear());
    }
}

/// With a name, what the engine has is not even sent again: neither by the session, when the connection
/// was lost behind what was stored, nor by a rerun.
#[test]
fn what_a_sender_with_a_name_has_stored_is_not_sent_again() {
    let stand = Stand::new("what_a_sender_with_a_name_has_stored");
    let send = |lines: &[u8]| stand.store.run("mq-send", &["--producer", "p", "-v", "q"], lines);
    let repeated = || stand.broker.with(|state| state.queues["q"].repeated);
    let lines = seq(1, 200_000);
    stand.broker.with(|state| state.dies_after = Some(2));
    send(&lines).ok().says("200000 messages");
    assert!(stand.broker.with(|state| state.dies_after.is_none()), "it did not die");
    assert_eq!((stand.broker.ready("q"), repeated()), (bodies(&lines), 0));
    send(&lines).ok().says("0 messages").says("after 200000 that an earlier run had stored");
    assert_eq!((stand.broker.ready("q").len(), repeated()), (200_000, 0));
    let more = seq(1, 200_005);
    send(&more).ok().says("5 messages").says("after 200000");
    assert_eq!((stand.broker.ready("q"), repeated()), (bodies(&more), 0));
    send(&seq(2, 200_005)).exits(65).says("not the input that was sent under this name before");
    send(&seq(1, 3)).exits(65).says("it has 3 messages, and 200005 are stored");
    assert_eq!(stand.broker.ready("q").len(), 200_005);
}

/// A newer sender of the same name ends an older one, and that does not try again.
#[test]
fn a_sender_whose_name_another_took_ends() {
    let stand = Stand::new("a_sender_whose_name_another_took");
    let mut sender = stand.store.spawn("mq-send", &["--producer", "p", "q"]);
    sender.write(b"a\n");
    crate::harness::eventually("it is there", || {
        (stand.broker.ready("q").len() == 1).then_some(())
    });
    let fenced = Failure::new(Kind::Fenced, "a newer mq-send of this name is there");
    stand.broker.with(|state| state.fails = Some(fenced));
    sender.write(b"b\n");
    sender.finish().exits(1).says("a newer mq-send").says("confirmed: 1 leading messages");
}

/// What was confirmed and is not there any more is no reason to send the rest as if it were.
#[test]
fn a_queue_that_was_removed_under_a_name_is_not_gone_on_with() {
    let stand = Stand::new("a_queue_removed_under_a_name");
    let mut sender = stand.store.spawn("mq-send", &["--producer", "p", "q"]);
    sender.write(b"a\n");
    crate::harness::eventually("it is there", || {
        (stand.broker.ready("q").len() == 1).then_some(())
    });
    stand.broker.with(|state| state.queues.clear());
    stand.broker.kill();
    sender.write(b"b\n");
    sender.finish().exits(1).says("had confirmed 1 messages of this producer").says("knows of 0");
    assert!(stand.broker.ready("q").is_empty());
}

/// A queue that is full takes the first messages of a batch and refuses the others: only those come again, or
/// it would be full of the first ones for ever.
#[test]
fn what_was_confirmed_of_a_batch_is_not_sent_again() {
    let stand = Stand::new("what_was_confirmed_of_a_batch");
    let lines = seq(1, 1000);
    stand.broker.with(|state| state.takes_part = Some(400));
    stand.store.run("mq-send", &["q"], &lines).ok();
    assert_eq!(stand.broker.ready("q"), bodies(&lines));
    let repeated = stand.broker.with(|state| state.queues["q"].repeated);
    assert_eq!(repeated, 0, "they were confirmed");
}

/// RabbitMQ reads nothing more when its disk is nearly full, and the connection stands.
#[test]
fn an_engine_that_takes_nothing_says_why_and_is_waited_for() {
    let full = || Some(Failure::new(Kind::Busy, "Memory is low on disk"));
    let stand = Stand::new("an_engine_that_takes_nothing_for_long");
    stand.broker.with(|state| state.holds.send_replace(full()));
    stand.store.run("mq-send", &["-w", "300ms", "q", "-m", "x"], b"").exits(75).says("low on disk");
    let stand = Stand::new("an_engine_that_takes_nothing");
    stand.broker.with(|state| state.holds.send_replace(full()));
    let mut sender = stand.store.spawn("mq-send", &["q", "-m", "x"]);
    crate::harness::eventually("the user is told", || {
        sender.stderr().contains("Memory is low on disk; waiting for room").then_some(())
    });
    assert!(!sender.has_ended());
    stand.broker.with(|state| state.holds.send_replace(None));
    sender.finish().ok();
    assert_eq!(stand.broker.ready("q"), [b"x".to_vec()]);
}

/// A sender that waited for room no longer asked a new connection what was stored: there is no second
/// helper, so it said that the helper was gone (69), seconds after its time was over.
#[test]
fn an_engine_that_takes_nothing_is_given_up_in_its_own_words() {
    let desk = Desk::new("an_engine_that_takes_nothing_is_given_up");
    let full = Failure::new(Kind::Busy, "Memory is low on disk");
    desk.bench.feed("mq-send", &[&desk.url("q")], b"a\n").ok();
    desk.broker.with(|state| state.holds.send_replace(Some(full)));
    let began = Instant::now();
    let args = ["-w", "300ms", &desk.url("q"), "-m", "x"];
    let done = desk.bench.run("mq-send", &args).exits(75);
    done.says("low on disk; waiting for room").says("confirmed: 0 leading");
    assert!(began.elapsed() < limits::DRAIN.to_duration(), "after {:?}", began.elapsed());
    assert_eq!(desk.broker.ready("q"), [b"a".to_vec()]);
}

#[test]
fn an_engine_that_comes_back_is_waited_for() {
    let stand = Stand::new("an_engine_that_comes_back_is_waited_for");
    stand.broker.with(|state| state.is_down = true);
    let mut sender = stand.store.spawn("mq-send", &["q", "-m", "x"]);
    crate::harness::eventually("it tries", || {
        stand.broker.with(|state| (state.connections > 1).then_some(()))
    });
    assert!(!sender.has_ended());
    stand.broker.with(|state| state.is_down = false);
    sender.finish().ok();
    assert_eq!(stand.broker.ready("q"), [b"x".to_vec()]);
}

#[test]
fn what_cannot_be_sent_ends_with_its_status_and_the_confirmed_count() {
    let short = Duration::from_millis(300);
    for (n, (kind, status)) in [
        (Kind::Unreachable, 69),
        (Kind::Busy, 75),
        (Kind::Denied, 1),
        (Kind::Missing, 1),
        (Kind::Tls, 1),
        (Kind::Unsupported, 2),
        (Kind::BadInput, 65),
        (Kind::Other, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let stand = Stand::with(&format!("statuses{n}"), "", short);
        let failure = Failure::new(kind, "no such luck").with_remedy("some other day");
        stand.broker.with(|state| state.refuses = Some(failure.clone()));
        let done = stand.store.run("mq-send", &["q"], b"a\nb\n").exits(status);
        done.says("no such luck").says("try: some other day").says("confirmed: 0 leading messages");
        // Half way.
        stand.broker.with(|state| state.refuses = None);
        let mut sender = stand.store.spawn("mq-send", &["q"]);
        sender.write(b"a\nb\n");
        crate::harness::eventually("two are there", || {
            (stand.broker.ready("q").len() == 2).then_some(())
        });
        stand.broker.with(|state| state.fails = Some(failure));
        sender.write(b"c\n");
        let done = sender.finish().exits(status);
        done.says("no such luck").says("confirmed: 2 leading messages");
    }
}

#[test]
fn what_the_engine_cannot_do_is_refused_in_words() {
    let stand = Stand::new("what_the_engine_cannot_do_is_refused");
    for (args, part) in [
        (&["q", "-m", "x", "--delay", "1h"][..], "--delay with Memory: it forgets"),
        (&["q", "-m", "x", "-k", "k", "--unless-pending"], "--unless-pending with Memory"),
    ] {
        stand.store.run("mq-send", args, b"").exits(2).says(part);
    }
    assert!(stand.broker.ready("q").is_empty());
}

#[test]
fn figures_are_shown_as_far_as_they_are_known() {
    let stand = Stand::new("figures_are_shown_as_far_as_known");
    stand.store.run("mq-admin", &["show", "q"], b"").exits(1).says("Memory has no queue q");
    stand.store.run("mq-send", &["q"], &seq(1, 3)).ok();
    let shown = stand.store.run("mq-admin", &["show", "q"], b"").ok().stdout;
    let shown = String::from_utf8(shown).expect("text");
    let line = |name: &str| {
        let found = shown.lines().find(|line| line.starts_with(name)).expect("a line");
        found.split_whitespace().nth(1).expect("a value").to_owned()
    };
    assert_eq!(
        (line("ready"), line("unacked"), line("bytes")),
        ("3".into(), "0".into(), "-".into())
    );
    assert_eq!(line("at "), "mem://figures_are_shown_as_far_as_known/q");
    let listed = stand.store.run("mq-admin", &["ls"], b"").ok();
    assert!(listed.text().contains("q  at mem://"), "{}", listed.text());
    let lines = stand.store.run("mq-stat", &["-n1", "q"], b"").ok();
    let line: Vec<&str> = lines.text().lines().nth(1).expect("a line").split_whitespace().collect();
    assert_eq!(line[1..], ["3", "0", "-", "-", "-", "-", "-", "-", "-", "q"]);
    let json = stand.store.run("mq-stat", &["-J", "-n1", "q"], b"").ok();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("an object");
    assert_eq!((&json["ready"], json.get("senders"), json.get("rate")), (&3.into(), None, None));
    let text = stand.store.run("mq-stat", &["--prometheus", "q"], b"").ok();
    assert!(text.text().contains("mq_queue_messages_ready{queue=\"q\"} 3"), "{}", text.text());
    assert!(!text.text().contains("published_total{"), "{}", text.text());
    let check = ["--check", "--max-ready", "1,9", "q"];
    stand.store.run("mq-stat", &check, b"").exits(1);
    let check = stand.store.run("mq-stat", &["--check", "--max-age", "1m,9m", "q"], b"").exits(3);
    assert!(check.text().contains("its engine does not tell oldest"), "{}", check.text());
    stand.store.run("mq-admin", &["-v", "purge", "q"], b"").ok().says("3 messages of q are gone");
    stand.store.run("mq-admin", &["rm", "q"], b"").ok();
    stand.store.run("mq-admin", &["requeue", "q"], b"").exits(2).says("no more");
}

/// A frame holds half a million short lines. Of an engine that was slow, or took no more, it was said that it
/// had stored none of them until it had them all.
#[test]
fn a_large_batch_is_confirmed_on_the_way() {
    let desk = Desk::new("a_large_batch_is_confirmed_on_the_way");
    desk.broker.with(|state| state.holds_after = Some(3));
    let args = ["-w", "300ms", &desk.url("q")];
    let done = desk.bench.feed("mq-send", &args, &b"y\n".repeat(100_000)).exits(75);
    let stored = desk.broker.ready("q").len();
    assert_eq!(stored, 3 * limits::REMOTE_BATCH_MAX as usize);
    done.says(&format!("confirmed: {stored} leading"));
}

/// A connection was lost whose engine's client took nothing more, as a socket that is full: what had failed
/// was known, and still the batch that could not be handed over was waited for.
#[test]
fn a_batch_that_cannot_be_handed_over_is_not_waited_for_on_a_lost_connection() {
    let stand = Stand::new("a_batch_that_cannot_be_handed_over");
    stand.broker.with(|state| (state.is_silent, state.hangs_after) = (true, Some(1)));
    let lines = seq(1, 50_000);
    let mut sender = stand.store.spawn("mq-send", &["q"]);
    sender.write(&lines);
    drop(sender.take_stdin());
    crate::harness::eventually("the second batch waits", || {
        stand.broker.with(|state| state.is_hung.then_some(()))
    });
    stand.broker.with(|state| state.hangs_after = None);
    stand.broker.kill();
    stand.broker.with(|state| state.is_silent = false);
    sender.finish_within(Duration::from_secs(30)).ok();
    assert_eq!(stand.broker.ready("q"), bodies(&lines));
}

/// The batch behind one that was refused for good was counted in its place, so that more was said to be
/// confirmed than there was.
#[test]
fn what_is_stored_behind_a_batch_that_was_refused_is_not_counted() {
    let stand = Stand::new("what_is_stored_behind_a_batch");
    let too_large = Failure::new(Kind::BadInput, "a message is too large");
    stand.broker.with(|state| (state.is_silent, state.spoils) = (true, Some(too_large)));
    let mut sender = stand.store.spawn("mq-send", &["q"]);
    let batch = u64::from(limits::REMOTE_BATCH_MAX);
    sender.write(&seq(1, batch + 1000));
    drop(sender.take_stdin());
    crate::harness::eventually("the second batch is there", || {
        (!stand.broker.ready("q").is_empty()).then_some(())
    });
    stand.broker.with(|state| state.is_silent = false);
    sender.finish().exits(65).says("too large").says("confirmed: 0 leading");
}
