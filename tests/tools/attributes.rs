//! Messages with attributes: what goes in with a message comes out with it, to the byte and the
//! microsecond; and what is no envelope is refused where it stands.

use serde_json::{Map, Value, json};

use crate::harness::{Done, Random, Store};
use crate::{numbers, seq, size};

fn envelopes(done: &Done) -> Vec<Value> {
    done.text().lines().map(|line| serde_json::from_str(line).expect("an envelope")).collect()
}

fn peek(store: &Store, queue: &str) -> Vec<Value> {
    envelopes(&store.run("mq-recv", &["--peek", "-J", queue], b"").ok())
}

/// Some text, with characters that JSON must escape and with ones of several bytes.
fn text(random: &mut Random, most: u64) -> String {
    let signs = ['a', 'b', '"', '\\', '/', '\n', '\r', '\t', '\0', '\u{1b}', 'é', '€', '🦀'];
    let length = random.below(most + 1);
    (0..length).map(|_| signs[random.below(signs.len() as u64) as usize]).collect()
}

fn time(random: &mut Random) -> String {
    // A date of this or the next century, with microseconds.
    let (year, month, day) = (2000 + random.below(150), 1 + random.below(12), 1 + random.below(28));
    let (hour, minute, second) = (random.below(24), random.below(60), random.below(60));
    let micros = random.below(1_000_000);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// A message such as nobody sends, with any of the fields.
fn any_message(random: &mut Random, number: u64) -> Value {
    let mut message = Map::new();
    let has = |random: &mut Random| random.below(3) > 0;
    if random.below(2) == 0 {
        message.insert("data".to_owned(), json!(text(random, 40)));
    } else {
        use base64::Engine;
        let mut body = random.bytes(30);
        body.truncate(random.below(31) as usize);
        body.push(0xff);
        let body = base64::engine::general_purpose::STANDARD.encode(body);
        message.insert("data_base64".to_owned(), json!(body));
    }
    if has(random) {
        message.insert("key".to_owned(), json!(text(random, 9)));
    }
    if has(random) {
        message.insert("id".to_owned(), json!(format!("{number}{}", text(random, 5))));
    }
    if has(random) {
        let headers: Map<String, Value> = (0..1 + random.below(4))
            .map(|n| (format!("{n}{}", text(random, 4)), json!(text(random, 9))))
            .collect();
        message.insert("headers".to_owned(), Value::Object(headers));
    }
    if has(random) {
        message.insert("event_time".to_owned(), json!(time(random)));
    }
    if has(random) {
        message.insert("expires".to_owned(), json!(time(random).replacen("2", "3", 1)));
    }
    Value::Object(message)
}

fn lines(messages: &[Value]) -> Vec<u8> {
    messages.iter().flat_map(|message| format!("{message}\n").into_bytes()).collect()
}

/// What has to be the same on the way from queue to queue: all but the place in the queue.
fn without_place(mut envelope: Value, queue: &str) -> Value {
    let fields = envelope.as_object_mut().expect("an object");
    assert_eq!(fields.remove("queue"), Some(json!(queue)));
    assert!(fields.remove("offset").is_some_and(|offset| offset.is_u64()));
    fields.remove("attempt");
    assert!(fields.remove("time").is_some_and(|time| time.is_string()));
    envelope
}

#[test]
fn messages_are_the_same_after_a_round_trip_through_envelopes() {
    let store = Store::new();
    let mut random = Random(0x5eed);
    let messages: Vec<Value> =
        (0..size("MQ_MESSAGES", 100_000)).map(|n| any_message(&mut random, n)).collect();
    store.run("mq-send", &["-J", "a"], &lines(&messages)).ok();
    let in_a = peek(&store, "a");
    assert_eq!(in_a.len(), messages.len());
    store.sh("mq-recv -J -e a | mq-send -J b").ok();
    let in_b = peek(&store, "b");
    assert_eq!(in_b.len(), messages.len());
    let id = store.show("a").expect("it is there")["id"].clone();
    let id = id.as_str().expect("a text");
    for ((message, a), b) in messages.into_iter().zip(in_a).zip(in_b) {
        let mut expected = message;
        let (offset, time) = (a["offset"].clone(), a["time"].clone());
        let fields = expected.as_object_mut().expect("an object");
        fields.entry("id").or_insert_with(|| json!(format!("{id}:{offset}")));
        let event_time = a.get("event_time").cloned();
        assert_eq!(without_place(a, "a"), expected);
        // A message without a time of its own happened when it was first stored.
        expected["event_time"] = event_time.unwrap_or(time);
        assert_eq!(without_place(b, "b"), expected);
    }
}

#[test]
fn large_messages_are_the_same_after_a_round_trip_through_envelopes() {
    let store = Store::new();
    let mut random = Random(7);
    let mut body = random.bytes((3 << 20) + 17);
    body[0] = 0xff;
    store.run("mq-send", &["--whole", "-k", "k", "-H", "a=b", "a"], &body).ok();
    store.run("mq-send", &["--whole", "a"], &vec![b'"'; (1 << 20) + 4097]).ok();
    store.sh("mq-recv -J -e a | mq-send -J b").ok();
    let done = store.run("mq-recv", &["--peek", "-F", "%k %h %S.", "b"], b"").ok();
    assert_eq!(done.text(), format!("k a=b {}.  {}.", body.len(), (1 << 20) + 4097));
    let done = store.run("mq-recv", &["-n", "1", "--raw", "b"], b"").ok();
    assert!(done.stdout == body);
}

#[test]
fn what_the_command_line_gives_comes_out() {
    let store = Store::new();
    let flags = ["-k", "ключ", "-H", "a=1=2", "-H", "b=", "--id", "i-1", "--ttl", "1h"];
    store.run("mq-send", &[&flags[..], &["q", "-m", "two\nlines"]].concat(), b"").ok();
    store.run("mq-send", &["-k", "k2", "q"], b"one\n\nthree").ok();
    let found = peek(&store, "q");
    assert_eq!(found[0]["key"], "ключ");
    assert_eq!(found[0]["headers"], json!({ "a": "1=2", "b": "" }));
    assert_eq!((&found[0]["id"], &found[0]["data"]), (&json!("i-1"), &json!("two\nlines")));
    let (time, expires) = (&found[0]["time"], &found[0]["expires"]);
    assert!(time.as_str() < expires.as_str(), "{time} {expires}");
    let bodies: Vec<&str> = found[1..].iter().filter_map(|m| m["data"].as_str()).collect();
    assert_eq!(bodies, ["one", "", "three"]);
    assert!(found[1..].iter().all(|m| m["key"] == "k2" && m.get("headers").is_none()));
}

#[test]
fn a_line_that_is_no_envelope_ends_the_sending_after_those_before_it() {
    let store = Store::new();
    let input = b"{\"data\":\"a\"}\n\n{\"data\":\"b\"}\nplain\n{\"data\":\"c\"}\n";
    let done = store.run("mq-send", &["-J", "q"], input).exits(65);
    assert!(done.stderr.contains("line 4 of stdin"), "{}", done.stderr);
    assert!(done.stderr.contains("confirmed: 2 leading messages"), "{}", done.stderr);
    assert_eq!(store.receive("q"), b"a\nb\n");
    let keyed = "x".repeat(70_000);
    let done =
        store.run("mq-send", &["-J", "q"], lines(&[json!({"data":"", "key": keyed})]).as_slice());
    assert!(numbers(&done.exits(65).stderr).contains(&64));
}

#[test]
fn flags_that_make_no_sense_together_are_usage_errors() {
    let store = Store::new();
    for args in [
        &["--id", "i", "q"][..],
        &["--id", "i", "--whole", "q", "a", "b"],
        &["--unless-pending", "q"],
        &["-H", "no-value", "q"],
        &["-H", "a=1", "-H", "a=2", "q"],
        &["-J", "-0", "q"],
        &["--delay", "tomorrow", "q"],
    ] {
        store.run("mq-send", args, b"x\n").exits(2);
    }
    store.run("mq-recv", &["-F", "%z", "q"], b"").exits(2).says("%I time as RFC 3339");
    assert!(store.server().is_none());
}

#[test]
fn a_copy_is_of_the_input_as_it_came() {
    let store = Store::new();
    let input = b"{\"data\":\"a\"}\n{ \"data\" : \"b\" }\n";
    assert_eq!(store.run("mq-send", &["-T", "-J", "q"], input).ok().stdout, input);
    let done = store.run("mq-send", &["-T", "-k", "k", "q"], &seq(1, 100_000)).ok();
    assert!(done.stdout == seq(1, 100_000));
}

#[test]
fn formats_show_what_they_are_asked_for() {
    let store = Store::new();
    store.run("mq-send", &["-k", "k", "-H", "a=1", "q", "-m", "%s\\n"], b"").ok();
    let format = "%q|%o|%k|%h|%S|%s|%x|%%\\t\\x41\\0";
    let done = store.run("mq-recv", &["--peek", "-F", format, "q"], b"").ok();
    let offset = peek(&store, "q")[0]["offset"].clone();
    assert_eq!(done.text(), format!("q|{offset}|k|a=1|4|%s\\n|25735c6e|%\tA\0"));
}
