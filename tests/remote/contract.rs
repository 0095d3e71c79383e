//! What every engine keeps, as far as its [`Abilities`](mq::remote::engine::Abilities) go: one set of
//! tests for all of them, through the seam that the session uses.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mq::remote::address::Address;
use mq::remote::engine::{
    Ability, ConsumeWish, Consumer, Engine, PublishWish, Publisher, Received, Settlement,
    Unconfirmed,
};
use mq::remote::failure::{Failure, Kind};
use mq::remote::message::{Facts, Incoming, Outgoing};
use mq::settings::Start;
use mq::units::WallTime;

use super::servers::Server;

/// How long a test may take before it fails: long enough for a loaded machine.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long an engine has for one connection.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An engine with a server to try it on.
pub trait Tried: Engine {
    /// The port of the server that all tests share; `None`, said: there is none here.
    fn shared() -> Option<u16>;
    /// The URL of a queue there.
    fn url(port: u16, queue: &str) -> String;
    /// The same with a password that is wrong, if the server has any.
    fn url_with_wrong_password(port: u16, queue: &str) -> Option<String>;
    /// A group has to exist before what it is to see is sent.
    const GROUPS_BEGIN_AT_THE_END: bool = false;
    /// Each message is acked by itself; else only up to the first that is not.
    const ACKS_ONE_BY_ONE: bool = true;
    /// Headers may have any names and values.
    const ANY_HEADERS: bool = true;
}

/// Runs a test, within [`DEADLINE`].
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let done = runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await });
    runtime.shutdown_timeout(Duration::from_secs(5));
    done.expect("the test ends in time")
}

pub fn can(ability: Ability) -> bool {
    !matches!(ability, Ability::No(_))
}

pub async fn connect<E: Tried>(port: u16, queue: &str) -> E {
    let address = Address::parse(&E::url(port, queue)).expect("a URL");
    E::connect(&address, PATIENCE).await.unwrap_or_else(|failure| panic!("{failure}"))
}

/// A queue that no other test has.
pub fn new_queue(test: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{}-{next}", test.rsplit("::").next().expect("a name"), std::process::id())
}

pub fn to_send(queue: &str) -> PublishWish {
    PublishWish { queue: queue.to_owned(), sender: 7, named: false }
}

pub fn to_receive(queue: &str) -> ConsumeWish {
    ConsumeWish {
        queue: queue.to_owned(),
        group: "default".to_owned(),
        from: None,
        until_end: false,
        peek: false,
        no_ack: false,
        prefetch: 1000,
    }
}

pub fn plain(number: u64, body: impl Into<Bytes>) -> Outgoing {
    Outgoing { body: body.into(), facts: None, number }
}

/// Messages `range`, each with its number as its body.
pub fn numbered(range: Range<u64>) -> Vec<Outgoing> {
    range.map(|number| plain(number, number.to_string())).collect()
}

pub fn number(message: &Incoming) -> u64 {
    std::str::from_utf8(&message.body).expect("digits").parse().expect("a number")
}

/// Sends and waits until all is confirmed.
pub async fn send<E: Engine>(engine: &E, queue: &str, batch: Vec<Outgoing>) {
    let mut publisher = engine.publisher(&to_send(queue)).await.expect("a publisher");
    let confirmation = publisher.publish(batch).await.expect("sent");
    confirmation.await.expect("confirmed");
    publisher.finish().await.expect("an end");
}

/// Receives so many messages.
pub async fn receive<C: Consumer>(consumer: &mut C, count: usize) -> Vec<Incoming> {
    let mut all = Vec::new();
    while all.len() < count {
        match consumer.receive(count - all.len()).await.expect("received") {
            Received::Messages(messages) => {
                assert!(!messages.is_empty() && messages.len() <= count - all.len());
                all.extend(messages);
            }
            Received::End => panic!("the end after {} of {count}", all.len()),
        }
    }
    all
}

/// Receives to the end, acking each.
pub async fn drain<C: Consumer>(mut consumer: C) -> Vec<Incoming> {
    let mut all = Vec::new();
    while let Received::Messages(messages) = consumer.receive(500).await.expect("received") {
        let from = all.len() as u64;
        all.extend(messages);
        let range = from..all.len() as u64;
        consumer.settle(&[range], Settlement::Ack).await.expect("acked");
    }
    consumer.finish().await.expect("an end");
    all
}

fn numbers(messages: &[Incoming]) -> Vec<u64> {
    messages.iter().map(number).collect()
}

fn sorted(mut numbers: Vec<u64>) -> Vec<u64> {
    numbers.sort_unstable();
    numbers
}

/// 100,000 messages, sent in batches with several unconfirmed, received and acked in batches.
pub async fn many_messages_come_through<E: Tried>(port: u16, queue: &str) {
    const COUNT: u64 = 100_000;
    let engine: E = connect(port, queue).await;
    let mut consumer = engine.consumer(&to_receive(queue)).await.expect("a consumer");
    let mut publisher = engine.publisher(&to_send(queue)).await.expect("a publisher");
    let sending = tokio::spawn(async move {
        let mut waiting = std::collections::VecDeque::new();
        for first in (0..COUNT).step_by(1000) {
            let batch = numbered(first..first + 1000);
            waiting.push_back(publisher.publish(batch).await.expect("sent"));
            if waiting.len() > 4 {
                waiting.pop_front().expect("one").await.expect("confirmed");
            }
        }
        for confirmation in waiting {
            confirmation.await.expect("confirmed");
        }
        publisher.finish().await.expect("an end");
    });
    let mut all = Vec::new();
    while (all.len() as u64) < COUNT {
        let from = all.len() as u64;
        all.extend(numbers(&receive_some(&mut consumer).await));
        consumer.settle(&[from..all.len() as u64], Settlement::Ack).await.expect("acked");
    }
    sending.await.expect("sent");
    consumer.finish().await.expect("an end");
    if !matches!(E::ABILITIES.ordered, Ability::Yes) {
        all.sort_unstable();
    }
    assert!(all.iter().copied().eq(0..COUNT), "each once, in order");
    let left = engine.consumer(&ConsumeWish { until_end: true, ..to_receive(queue) }).await;
    assert!(drain(left.expect("a consumer")).await.is_empty());
}

async fn receive_some<C: Consumer>(consumer: &mut C) -> Vec<Incoming> {
    match consumer.receive(1000).await.expect("received") {
        Received::Messages(messages) => messages,
        Received::End => panic!("no end was asked for"),
    }
}

/// What was not acked as its consumer vanished comes again, and only that.
pub async fn what_was_not_acked_comes_again<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    // One key is one partition, where there are such: so there is one hole.
    let key = (!E::ACKS_ONE_BY_ONE).then(|| "k".to_owned());
    let facts = key.map(|key| Box::new(Facts { key: Some(key), ..Facts::default() }));
    let batch = numbered(0..10).into_iter();
    let batch = batch.map(|message| Outgoing { facts: facts.clone(), ..message });
    send(&engine, queue, batch.collect()).await;
    let mut consumer = engine.consumer(&to_receive(queue)).await.expect("a consumer");
    let first = receive(&mut consumer, 10).await;
    assert_eq!(sorted(numbers(&first)), (0..10).collect::<Vec<_>>());
    assert!(first.iter().all(|message| !message.redelivered && message.attempt <= 1));
    let acked = [first[0].clone(), first[1].clone(), first[5].clone()];
    consumer.settle(&[0..2, 5..6], Settlement::Ack).await.expect("acked");
    consumer.flush().await.expect("flushed");
    drop(consumer);
    drop(engine);
    let engine: E = connect(port, queue).await;
    let mut consumer = engine.consumer(&to_receive(queue)).await.expect("a consumer");
    let acked = &acked[..if E::ACKS_ONE_BY_ONE { 3 } else { 2 }];
    let rest = 10 - acked.len();
    let again = receive(&mut consumer, rest).await;
    let mut all = numbers(&again);
    all.extend(numbers(acked));
    assert_eq!(sorted(all), (0..10).collect::<Vec<_>>());
    if E::ACKS_ONE_BY_ONE {
        assert!(again.iter().all(|message| message.redelivered), "{again:?}");
    }
    consumer.settle(&[0..rest as u64], Settlement::Ack).await.expect("acked");
    consumer.finish().await.expect("an end");
}

/// What is released comes again to whoever is there, and what is retried after a while.
pub async fn what_is_released_comes_again<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    send(&engine, queue, numbered(0..3)).await;
    let mut consumer = engine.consumer(&to_receive(queue)).await.expect("a consumer");
    let first = numbers(&receive(&mut consumer, 3).await);
    consumer.settle(&[0..1, 2..3], Settlement::Ack).await.expect("acked");
    consumer.settle(&[1..2], Settlement::Release).await.expect("released");
    let again = receive(&mut consumer, 1).await;
    assert_eq!(numbers(&again), [first[1]]);
    assert!(again[0].redelivered);
    if E::ABILITIES.delays_retries {
        let wait = Duration::from_millis(300);
        let then = std::time::Instant::now();
        consumer.settle(&[3..4], Settlement::Retry(wait)).await.expect("put off");
        assert_eq!(numbers(&receive(&mut consumer, 1).await), [first[1]]);
        assert!(then.elapsed() >= wait * 9 / 10, "after {:?}", then.elapsed());
        consumer.settle(&[4..5], Settlement::Progress).await.expect("told");
        consumer.settle(&[4..5], Settlement::Ack).await.expect("acked");
    } else {
        consumer.settle(&[3..4], Settlement::Ack).await.expect("acked");
    }
    consumer.finish().await.expect("an end");
    let wish = ConsumeWish { until_end: true, ..to_receive(queue) };
    assert!(drain(engine.consumer(&wish).await.expect("a consumer")).await.is_empty());
}

/// `-e`: all that was there at the start, once, though some is released and the prefetch is smaller.
pub async fn the_end_is_where_it_was_at_the_start<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    let wish = ConsumeWish { until_end: true, prefetch: 10, ..to_receive(queue) };
    let empty = engine.consumer(&wish).await.expect("a consumer");
    assert!(drain(empty).await.is_empty(), "of a queue that was not there");
    send(&engine, queue, numbered(0..50)).await;
    let mut consumer = engine.consumer(&wish).await.expect("a consumer");
    let mut all = Vec::new();
    while let Received::Messages(messages) = consumer.receive(3).await.expect("received") {
        assert!(messages.len() <= 3);
        let from = all.len() as u64;
        all.extend(numbers(&messages));
        if from == 0 {
            send(&engine, queue, numbered(50..60)).await;
        }
        let settlement = if from.is_multiple_of(2) { Settlement::Ack } else { Settlement::Release };
        consumer.settle(&[from..all.len() as u64], settlement).await.expect("settled");
    }
    let first: BTreeSet<u64> = all.iter().copied().collect();
    assert_eq!(first.len(), all.len(), "each once: {all:?}");
    assert!((0..50).all(|number| first.contains(&number)), "all that were there: {all:?}");
    consumer.finish().await.expect("an end");
}

/// Every kind of body and all facts, there and back.
pub async fn bodies_and_facts_stay_as_they_are<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    let abilities = E::ABILITIES;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut headers = vec![pair("a", "1"), pair("b", ""), pair("c", "ümlaut: x")];
    if E::ANY_HEADERS {
        headers.push(pair("colon:ed\\", "line\nline\r:\\"));
    }
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_micros();
    let tomorrow = u64::try_from(now).expect("in time") + 86_400_000_123;
    let facts = Facts {
        key: can(abilities.keys).then(|| "the key".to_owned()),
        id: can(abilities.ids).then(|| "id-1".to_owned()),
        headers: if can(abilities.headers) { headers } else { Vec::new() },
        event_time: can(abilities.headers).then_some(WallTime(1_700_000_000_123_456)),
        expires: can(abilities.ttl).then_some(WallTime(tomorrow)),
        not_before: None,
    };
    let large: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    let bodies: [&[u8]; 5] = [b"", b"\0\r\n\xff\0", b"plain", &large, "ümlaut".as_bytes()];
    let batch = (0..).zip(bodies).map(|(number, body)| Outgoing {
        body: Bytes::copy_from_slice(body),
        facts: (number != 2).then(|| {
            let id = facts.id.as_ref().map(|id| format!("{id}-{number}"));
            Box::new(Facts { id, ..facts.clone() })
        }),
        number,
    });
    let batch: Vec<_> = batch.collect();
    send(&engine, queue, batch.clone()).await;
    let mut consumer = engine.consumer(&to_receive(queue)).await.expect("a consumer");
    let got = receive(&mut consumer, bodies.len()).await;
    for sent in &batch {
        let got = got.iter().find(|got| got.body == sent.body).expect("the body came");
        let mut there = got.facts.clone().unwrap_or_default();
        let mut wanted = sent.facts.clone().unwrap_or_default();
        there.headers.sort();
        wanted.headers.sort();
        if sent.facts.is_none() {
            // The engine may tell when it stored it, and where.
            there.event_time = None;
            there.id = None;
        }
        assert_eq!(there, wanted, "of message {}", sent.number);
    }
    consumer.settle(&[0..bodies.len() as u64], Settlement::Ack).await.expect("acked");
    consumer.finish().await.expect("an end");
}

/// No more are handed out than may be unsettled, and the rest comes once there is room.
pub async fn the_prefetch_is_a_bound<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    send(&engine, queue, numbered(0..30)).await;
    let wish = ConsumeWish { prefetch: 10, ..to_receive(queue) };
    let mut consumer = engine.consumer(&wish).await.expect("a consumer");
    let mut all = numbers(&receive(&mut consumer, 10).await);
    // Another one gets what is left: what the first was given beyond its prefetch would be missing.
    let mut second = engine.consumer(&wish).await.expect("a consumer");
    all.extend(numbers(&receive(&mut second, 10).await));
    consumer.settle(&[0..10], Settlement::Ack).await.expect("acked");
    second.settle(&[0..10], Settlement::Release).await.expect("released");
    second.finish().await.expect("an end");
    let rest = numbers(&receive(&mut consumer, 10).await);
    consumer.settle(&[10..20], Settlement::Ack).await.expect("acked");
    let last = numbers(&receive(&mut consumer, 10).await);
    consumer.settle(&[20..30], Settlement::Ack).await.expect("acked");
    all.truncate(10);
    all.extend(rest);
    all.extend(last);
    assert_eq!(sorted(all), (0..30).collect::<Vec<_>>());
    consumer.finish().await.expect("an end");
}

/// A credit that grows is followed, at once and in order.
pub async fn more_is_handed_out_once_it_is_allowed<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    send(&engine, queue, numbered(0..300)).await;
    let wish = ConsumeWish { prefetch: 1, ..to_receive(queue) };
    let mut consumer = engine.consumer(&wish).await.expect("a consumer");
    let mut all = numbers(&receive(&mut consumer, 1).await);
    for prefetch in [2, 4, 64, 300] {
        consumer.allow(prefetch).await.expect("allowed");
        let more = prefetch as usize - all.len();
        all.extend(numbers(&receive(&mut consumer, more).await));
    }
    if matches!(E::ABILITIES.ordered, Ability::Yes) {
        assert!(all.iter().copied().eq(0..300), "{all:?}");
    }
    assert_eq!(sorted(all), (0..300).collect::<Vec<_>>());
    consumer.settle(&[0..300], Settlement::Ack).await.expect("acked");
    consumer.finish().await.expect("an end");
}

/// Two groups see everything, each for itself.
pub async fn each_group_sees_everything<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    let group = |name: &str, from| ConsumeWish {
        group: name.to_owned(),
        from,
        prefetch: 1000,
        ..to_receive(queue)
    };
    let failure = engine.consumer(&group("typo", None)).await.err().expect("no such group");
    assert_eq!(failure.kind, Kind::Missing, "{failure}");
    let from = if E::GROUPS_BEGIN_AT_THE_END { Start::Newest } else { Start::Oldest };
    let mut all = Vec::new();
    for name in ["audit", "billing"] {
        let consumer = engine.consumer(&group(name, Some(from))).await.expect("a consumer");
        if E::GROUPS_BEGIN_AT_THE_END {
            consumer.finish().await.expect("an end");
        }
    }
    send(&engine, queue, numbered(0..100)).await;
    for name in ["audit", "billing"] {
        let mut consumer = engine.consumer(&group(name, None)).await.expect("a consumer");
        let got = numbers(&receive(&mut consumer, 100).await);
        consumer.settle(&[0..100], Settlement::Ack).await.expect("acked");
        consumer.finish().await.expect("an end");
        all.push(sorted(got));
    }
    assert!(all.iter().all(|got| got.iter().copied().eq(0..100)), "{all:?}");
}

/// A look shows everything, and settles nothing.
pub async fn a_look_takes_nothing<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    let wish = ConsumeWish { peek: true, until_end: true, prefetch: 10, ..to_receive(queue) };
    send(&engine, queue, numbered(0..40)).await;
    for _ in 0..2 {
        let mut seen = Vec::new();
        let mut consumer = engine.consumer(&wish).await.expect("a consumer");
        while let Received::Messages(messages) = consumer.receive(7).await.expect("received") {
            seen.extend(numbers(&messages));
        }
        consumer.finish().await.expect("an end");
        assert_eq!(sorted(seen), (0..40).collect::<Vec<_>>());
    }
    let wish = ConsumeWish { until_end: true, ..to_receive(queue) };
    assert_eq!(drain(engine.consumer(&wish).await.expect("a consumer")).await.len(), 40);
}

/// `--no-ack`: what was handed out is gone.
pub async fn without_acks_each_comes_once<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    send(&engine, queue, numbered(0..20)).await;
    let wish = ConsumeWish { no_ack: true, until_end: true, ..to_receive(queue) };
    let mut consumer = engine.consumer(&wish).await.expect("a consumer");
    let mut all = Vec::new();
    while let Received::Messages(messages) = consumer.receive(7).await.expect("received") {
        all.extend(numbers(&messages));
    }
    consumer.finish().await.expect("an end");
    assert_eq!(sorted(all), (0..20).collect::<Vec<_>>());
    let wish = ConsumeWish { until_end: true, ..to_receive(queue) };
    assert!(drain(engine.consumer(&wish).await.expect("a consumer")).await.is_empty());
}

/// Figures, purge and remove, as far as the engine has them.
pub async fn figures_and_purge_are_the_engines_own<E: Tried>(port: u16, queue: &str) {
    let engine: E = connect(port, queue).await;
    if can(E::ABILITIES.figures) {
        assert_eq!(engine.figures(queue).await.expect("asked"), None, "it is not there yet");
    }
    send(&engine, queue, numbered(0..25)).await;
    if can(E::ABILITIES.figures) {
        let figures = engine.figures(queue).await.expect("asked").expect("it is there");
        assert_eq!(figures.ready.or(figures.end), Some(25));
    }
    if can(E::ABILITIES.purge) {
        let purged = engine.purge(queue).await.expect("purged");
        assert!(purged.is_none_or(|count| count == 25), "{purged:?}");
        let wish = ConsumeWish { until_end: true, ..to_receive(queue) };
        assert!(drain(engine.consumer(&wish).await.expect("a consumer")).await.is_empty());
    }
    if can(E::ABILITIES.remove) {
        engine.remove(queue).await.expect("removed");
        if can(E::ABILITIES.figures) {
            assert_eq!(engine.figures(queue).await.expect("asked"), None);
        }
        let failure = engine.remove(queue).await.expect_err("it is gone");
        assert_eq!(failure.kind, Kind::Missing, "{failure}");
    }
}

async fn refused<E: Tried>(url: &str) -> Failure {
    let address = Address::parse(url).expect("a URL");
    let failure = E::connect(&address, PATIENCE).await.err();
    let failure = failure.unwrap_or_else(|| panic!("{url} was accepted"));
    assert!(!failure.message.contains("s3cret"), "{failure}");
    failure
}

/// Each mistake has its own kind and words.
pub async fn each_mistake_has_its_own_words<E: Tried>(port: u16, queue: &str) {
    let url = E::url(port, queue);
    let place = format!("127.0.0.1:{port}");
    let nobody = super::servers::free_port();
    let failure = refused::<E>(&url.replace(&place, &format!("127.0.0.1:{nobody}"))).await;
    assert_eq!(failure.kind, Kind::Unreachable, "{failure}");
    assert!(failure.message.contains("onnection refused"), "{failure}");
    assert!(failure.message.contains(&nobody.to_string()), "{failure}");
    let unknown = url.replace(&place, &format!("no-such-host.invalid:{port}"));
    let failure = refused::<E>(&unknown).await;
    assert_eq!(failure.kind, Kind::Unreachable, "{failure}");
    assert!(failure.message.contains("no host no-such-host.invalid is known"), "{failure}");
    let sep = if url.contains('?') { '&' } else { '?' };
    let failure = refused::<E>(&format!("{url}{sep}colour=red")).await;
    assert_eq!(failure.kind, Kind::Unsupported, "{failure}");
    assert!(failure.message.contains("?colour"), "{failure}");
    if let Some(url) = E::url_with_wrong_password(port, queue) {
        let failure = refused::<E>(&url).await;
        assert_eq!(failure.kind, Kind::Denied, "{failure}");
    }
}

/// What would be several queues there, or another one, is refused: it would be sent to, or purged.
pub async fn names_of_none_are_refused<E: Tried>(port: u16, names: &[&str]) {
    let engine: E = connect(port, "any").await;
    for name in names {
        let sent = engine.publisher(&to_send(name)).await.err();
        let received = engine.consumer(&to_receive(name)).await.err();
        let purged = engine.purge(name).await.err();
        for failure in [sent, received, purged] {
            let failure = failure.unwrap_or_else(|| panic!("{name} was taken"));
            assert_eq!(failure.kind, Kind::Unsupported, "{failure}");
            assert!(failure.message.contains(name), "{failure}");
        }
    }
}

/// The server is killed while messages are sent, and started again: all that was confirmed is there.
pub async fn nothing_confirmed_is_lost_by_a_kill<E: Tried>(server: Server, queue: &str) {
    let engine: E = connect(server.port, queue).await;
    let mut confirmed = Vec::new();
    let mut next = 0;
    let mut kill_at = Some(4_000);
    let mut publisher = engine.publisher(&to_send(queue)).await.expect("a publisher");
    let mut waiting = std::collections::VecDeque::new();
    loop {
        if kill_at.is_some_and(|at| confirmed.len() >= at) {
            kill_at = None;
            server.kill();
        }
        let Ok(confirmation) = publisher.publish(numbered(next..next + 200)).await else { break };
        waiting.push_back((next..next + 200, confirmation));
        next += 200;
        if waiting.len() > 8 {
            let (range, confirmation) = waiting.pop_front().expect("one");
            match confirmation.await {
                Ok(()) => confirmed.extend(range),
                Err(Unconfirmed { stored, failure }) => {
                    assert!(failure.passes(), "{failure}");
                    confirmed.extend(range.take(stored));
                    break;
                }
            }
        }
    }
    assert!(kill_at.is_none(), "it failed before it was killed");
    for (range, confirmation) in waiting {
        match confirmation.await {
            Ok(()) => confirmed.extend(range),
            Err(Unconfirmed { stored, .. }) => confirmed.extend(range.take(stored)),
        }
    }
    drop((publisher, engine));
    server.start_again();
    let engine: E = loop {
        let address = Address::parse(&E::url(server.port, queue)).expect("a URL");
        match E::connect(&address, PATIENCE).await {
            Ok(engine) => break engine,
            Err(failure) => assert!(failure.passes(), "{failure}"),
        }
        tokio::task::yield_now().await;
    };
    let wish = ConsumeWish { until_end: true, ..to_receive(queue) };
    let got: BTreeSet<u64> = loop {
        match engine.consumer(&wish).await {
            Ok(consumer) => break drain(consumer).await.iter().map(number).collect(),
            Err(failure) => assert!(failure.passes(), "{failure}"),
        }
    };
    let lost: Vec<_> = confirmed.iter().filter(|number| !got.contains(number)).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), confirmed.len());
}

/// The same tests for an engine, each by its name.
#[macro_export]
macro_rules! contracts {
    ($engine:ty: $($test:ident),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                let Some(port) = <$engine as $crate::contract::Tried>::shared() else { return };
                let queue = $crate::contract::new_queue(stringify!($test));
                $crate::contract::run($crate::contract::$test::<$engine>(port, &queue));
            }
        )*
    };
}

/// The same for those whose server can be killed.
#[macro_export]
macro_rules! survives_kills {
    ($engine:ty, $start:path) => {
        #[test]
        fn nothing_confirmed_is_lost_by_a_kill() {
            match $start() {
                Err(why) => $crate::servers::skipped(&why),
                Ok(server) => {
                    $crate::contract::run($crate::contract::nothing_confirmed_is_lost_by_a_kill::<
                        $engine,
                    >(server, "killed"))
                }
            }
        }
    };
}
